r"""Classify all cells of some folders as a user would, and keep what the table says in a few figures.

    python benchmarks/predict_all.py ../shared/data/sipakmed ../shared/data/herlev \
      --out benchmarks/results/predict_all.json

The command is run as from a shell, so that its time is a user's. The model that ships was trained on the
cells of SIPaKMeD: how many of them it calls rightly says nothing of others, and is not counted here.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from cervicyte.evaluation.familiarity import UNLIKE_RATE
from cervicyte.inference.engines import thread_count
from cervicyte.inference.predict import origin_path
from cervicyte.provenance import provenance, write_json


def summary(table: pd.DataFrame, folders: list[str]) -> list[dict[str, Any]]:
    """Return, of each folder, how many rows there are and which verdicts and classes they have."""
    found = []
    for folder in folders:
        part = table[table["path"].str.startswith(f"{folder.rstrip('/')}/")]
        read = part[part["verdict"] != "error"]
        found.append(
            {
                "folder": Path(folder).name,
                "rows": len(part),
                "errors": len(part) - len(read),
                "verdicts": read["verdict"].value_counts().sort_index().to_dict(),
                "predicted": read["predicted_class"].value_counts().sort_index().to_dict(),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify all cells as a user would.")
    parser.add_argument("folders", nargs="+", help="as for `cervicyte predict`")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--table", type=Path, default=Path("runs/all_shared.csv"))
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    options = ["--engine", arguments.engine, "--precision", arguments.precision]
    words = ["predict", *arguments.folders, *options, "--out", str(arguments.table), "--force"]
    load = round(os.getloadavg()[0], 2)
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-m", "cervicyte", *words])
    seconds = time.perf_counter() - began
    if ended.returncode not in (0, 1):  # 1: some could not be read
        sys.exit(ended.returncode)
    table = pd.read_csv(arguments.table, keep_default_na=False)
    about = json.loads(origin_path(arguments.table).read_text(encoding="utf-8"))
    figures = {
        "user_command": shlex.join(["cervicyte", *words]),
        "status": ended.returncode,
        "rows": len(table),
        "seconds": round(seconds, 1),
        "images_per_second": round(len(table) / seconds, 1),
        "threads": thread_count(),
        "load_average_1_min": load,
        "engine": about["engine"],
        "weights_sha256": about["weights_sha256"],
        "unlike_rate": UNLIKE_RATE,
        "folders": summary(table, arguments.folders),
        "notes": about["notes"],
    }
    print(json.dumps(figures, indent=2))
    if arguments.out is not None:
        write_json(arguments.out, {"provenance": provenance(shlex.join(["python", *sys.argv])), **figures})


if __name__ == "__main__":
    main()
