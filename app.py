"""Starts the dashboard with the model that ships: `python app.py`, with the options of `cervicyte serve`.

For research use only. Not for diagnostic procedures.
"""

import sys

from cervicyte.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "serve")
    main()
