"""How many drawn cells are called what they were drawn as, by models that never saw a drawn cell.

    python benchmarks/drawn_cells.py --others runs/folds/seed_0/fold_0/best_model.pth \\
        --out docs/results/model/drawn_cells.json

The first model asked is the one that ships. The others, such as a fold's, confirm it: none of them guided the
drawing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from cervicyte import load_model
from cervicyte.datasets.synthetic import write_dataset
from cervicyte.demo import CELLS, SEED, recognised
from cervicyte.progress import TerminalProgress
from cervicyte.provenance import provenance, write_json


def main() -> None:
    """Ask, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="more model files")
    parser.add_argument("--cells", type=int, default=CELLS, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=SEED, help="draws them")
    parser.add_argument("--out", type=Path, required=True, help="takes the figures")
    options = parser.parse_args()
    progress = TerminalProgress()
    with tempfile.TemporaryDirectory() as folder:
        cells = write_dataset(Path(folder), options.cells, options.seed, progress)
        models = [None, *options.others]
        found = [recognised(load_model(path), cells, progress) for path in models]
    command = shlex.join(["python", "benchmarks/drawn_cells.py", *sys.argv[1:]])
    write_json(
        options.out,
        {
            "seed": options.seed,
            "shipped": found[0],
            "others": found[1:],
            "provenance": provenance(command),
        },
    )


if __name__ == "__main__":
    main()
