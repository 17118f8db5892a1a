"""Ask a Cervicyte server about images, with nothing but Python. For research use only.

    python examples/api_client.py http://127.0.0.1:7860 cell.png another.png

Prints a line an image and writes the map of the predicted class beside each image, as NAME.map.png. If the
server asks for a token, put it into the environment variable CERVICYTE_TOKEN.
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TRIES = 5


def ask(server: str, path: str, body: object) -> dict:
    """Return the answer to a request; wait and repeat it while the server is at its limit."""
    request = urllib.request.Request(f"{server}/api/v1/{path}", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if token := os.environ.get("CERVICYTE_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    for attempt in range(1, TRIES + 1):
        try:
            with urllib.request.urlopen(request) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code == 503 and attempt < TRIES:
                time.sleep(float(error.headers.get("Retry-After", 1)))
                continue
            # The sentence says what was wrong and what to do.
            sys.exit(f"{error.code}: {json.load(error)['detail']}")
    raise AssertionError


def main() -> None:
    """Ask about each image that the command line names."""
    server, *names = sys.argv[1:]
    for name in names:
        image = {"name": Path(name).name, "data": base64.b64encode(Path(name).read_bytes()).decode()}
        (result,) = ask(server.rstrip("/"), "explain", {"images": [image]})["results"]
        print(f"{name}: {result['sentence']} Confidence {result['confidence']:.0%}.")
        predicted = result["predicted_class"]
        (found,) = (one for one in result["maps"] if one["class_name"] == predicted)
        Path(name).with_suffix(".map.png").write_bytes(base64.b64decode(found["overlay_png"]))


if __name__ == "__main__":
    main()
