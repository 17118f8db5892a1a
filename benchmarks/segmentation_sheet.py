"""Contact sheet of crops with the outlines that `images/segmentation.py` finds, to be judged by eye.

    python benchmarks/segmentation_sheet.py ../shared/data/sipakmed --seed 7 --out sheet.png

Yellow: nucleus. Cyan: cell. Each picture bears its number; `sheet.json` beside the sheet lists the names.
Sheets of real cells are looked at and thrown away, never committed; the counts are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from cervicyte.datasets.layouts import read_dataset
from cervicyte.images.reader import read_image
from cervicyte.images.segmentation import segment
from cervicyte.provenance import RESEARCH_USE_ONLY, write_json, written_atomically

TILE = 200  # pixels


def tile(image: np.ndarray, number: int) -> np.ndarray:
    """Return the crop with its outlines beside the bare crop, uint8 [TILE, 2 TILE, 3]."""
    height, width = image.shape[:2]
    scale = TILE / max(height, width)
    size = (round(width * scale), round(height * scale))
    bare = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    drawn = bare.copy()
    outlines = segment(image)
    for mask, colour in (
        () if outlines is None else ((outlines.cell, (0, 255, 255)), (outlines.nucleus, (255, 255, 0)))
    ):
        large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, colour, 1)
    if outlines is None:
        cv2.line(drawn, (0, 0), size, (255, 0, 0), 2)
    canvas = np.full((TILE, 2 * TILE, 3), 255, np.uint8)
    canvas[: size[1], : size[0]] = drawn
    canvas[: size[1], TILE : TILE + size[0]] = bare
    cv2.putText(canvas, str(number), (3, TILE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 3)
    cv2.putText(canvas, str(number), (3, TILE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--per-class", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    options = parser.parse_args()
    dataset = read_dataset(options.data)
    rng = np.random.default_rng(options.seed)
    chosen = []
    for label in dataset.classes:
        of_class = [cell for cell in dataset.cells if cell.label == label]
        places = rng.choice(len(of_class), min(options.per_class, len(of_class)), replace=False)
        chosen += [of_class[place] for place in sorted(places)]
    tiles = [tile(read_image(cell.path), number) for number, cell in enumerate(chosen)]
    while len(tiles) % options.columns:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [
        np.hstack(tiles[start : start + options.columns]) for start in range(0, len(tiles), options.columns)
    ]
    with written_atomically(options.out) as partial:
        cv2.imwrite(str(partial), np.vstack(rows)[..., ::-1])
    names = [{"number": number, "name": cell.name, "class": cell.label} for number, cell in enumerate(chosen)]
    write_json(
        options.out.with_suffix(".json"), {"notice": RESEARCH_USE_ONLY, "seed": options.seed, "cells": names}
    )


if __name__ == "__main__":
    main()
