"""How well `images/segmentation.py` finds the outlines of synthetic cells, whose masks are known.

    OMP_NUM_THREADS=1 python benchmarks/segmentation_dice.py --out docs/results/segmentation_dice.json

The seed is none that the method's constants were chosen on. These are our own drawings: for real crops see
`segmentation_sheet.py`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

import numpy as np

from cervicyte.datasets.synthetic import APPEARANCES, dataset_cell
from cervicyte.images.segmentation import dice, segment
from cervicyte.provenance import provenance, write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path("segmentation_dice.json"))
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    not_found, seconds = 0, 0.0
    for label in APPEARANCES:
        of_class: dict[str, list[float]] = {"nucleus": [], "cell": []}
        for k in range(options.per_class):
            drawn = dataset_cell(label, k, options.seed)
            began = time.process_time()
            outlines = segment(drawn.image)
            seconds += time.process_time() - began
            not_found += outlines is None
            for part, values in of_class.items():
                mask = getattr(drawn, part)
                values.append(dice(getattr(outlines, part), mask) if outlines else 0.0)
        found[label] = {part: round(float(np.mean(values)), 4) for part, values in of_class.items()}
    cells = options.per_class * len(found)
    everything = {
        part: round(float(np.mean([of[part] for of in found.values()])), 4) for part in ("nucleus", "cell")
    }
    content = {
        "provenance": provenance(shlex.join(["python", *sys.argv])),
        "what": "Mean Dice of outlines found in synthetic cells; a nucleus that is not found counts as 0.",
        "cells": cells,
        "seed": options.seed,
        "not_found": not_found,
        "processor_ms_per_crop": round(1000 * seconds / cells, 1),
        "dice": {"all": everything, **found},
    }
    write_json(options.out, content)
    print(f"{options.out}: nucleus {everything['nucleus']}, cell {everything['cell']}, {cells} cells")


if __name__ == "__main__":
    main()
