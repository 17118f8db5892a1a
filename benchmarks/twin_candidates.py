"""Draw pairs of crops to be judged by eye, for `twin_quality.py`: are they twins or not?

The pairs come from a search that shares nothing with the finder: every crop with every other one, by
what a frozen ImageNet ResNet-50 sees in regions of both (third stage, regions as in R-MAC: Tolias, Sicre &
Jégou, "Particular object retrieval with integral max-pooling of CNN activations", ICLR 2016; whitened by
PCA). A pair's score is the mean of its three best matches of regions. Pairs are ranked, and drawn from strata
of rank with known probability, so that precision and recall can be estimated for all pairs of the data set,
not for those that were drawn. Half of the photographs' pairs serve for tuning, half is opened once.

    python benchmarks/twin_candidates.py --out benchmarks/twins/labelled_pairs.csv --sheets /tmp/sheets

The sheets are for the eyes of whoever labels and are not committed: they show real cells.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from cervicyte.datasets.layouts import Cell, read_dataset
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.network.backbone import load_backbone
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import TerminalProgress
from cervicyte.provenance import provenance, write_json, write_text
from cervicyte.training.cells import load_cells, normalised

BATCH = 16
GRIDS = (1, 2, 3)  # regions a side, each overlapping its neighbours
DIMENSIONS = 128
BEST_MATCHES = 3
# Ranks of all pairs (from 0), and how many are drawn of those of different and of one field number.
STRATA = (
    (0, 200, 30, 10),
    (200, 400, 30, 15),
    (400, 600, 30, 15),
    (600, 1_000, 30, 15),
    (1_000, 2_000, 25, 15),
    (2_000, 10_000, 20, 15),
    (10_000, 100_000, 15, 5),
)
PAIRS_OF_SHEET = 20
SIDE = 220  # pixels of a picture on a sheet


def regions(features: torch.Tensor) -> np.ndarray:
    """Return the maxima over overlapping regions, float32 [N, regions, K], of features [N, K, h, w]."""
    side = features.shape[-1]
    pooled = []
    for grid in GRIDS:
        length = -(-2 * side // (grid + 1))
        starts = np.linspace(0, side - length, grid).round().astype(int)
        pooled += [
            features[:, :, top : top + length, left : left + length].amax((2, 3))
            for top in starts
            for left in starts
        ]
    return torch.stack(pooled, 1).numpy()


@torch.inference_mode()
def described(cells: Sequence[Cell], backbone: str, progress: TerminalProgress) -> np.ndarray:
    """Return whitened region descriptors of length 1, float32 [N, regions, DIMENSIONS]."""
    preprocessing = Preprocessing(scale="native")
    images = load_cells(cells, preprocessing, progress)
    network = CBAMResNet50(1, "none")
    load_backbone(network, backbone)
    network.eval().to(memory_format=torch.channels_last)
    found = []
    progress.start("Describing cells", len(cells))
    for start in range(0, len(cells), BATCH):
        batch = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2)
        found.append(regions(network.features(normalised(batch, preprocessing), "layer3")))
        progress.advance(len(batch))
    progress.close()
    values = np.concatenate(found)
    flat = values.reshape(-1, values.shape[-1])
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat - flat.mean(0)
    variances, axes = np.linalg.eigh(np.cov(flat, rowvar=False))
    whitening = axes[:, ::-1][:, :DIMENSIONS] / np.sqrt(variances[::-1][:DIMENSIONS] + 1e-9)
    white = flat @ whitening.astype(np.float32)
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    return white.reshape(*values.shape[:2], DIMENSIONS)


def pair_scores(descriptors: np.ndarray, progress: TerminalProgress) -> np.ndarray:
    """Return the score of each pair, float32 [N, N], above the diagonal; the rest is -1."""
    count, per_cell, _ = descriptors.shape
    flat = descriptors.reshape(count * per_cell, -1)
    scores = np.full((count, count), -1, np.float32)
    progress.start("Comparing every pair", count)
    for start in range(0, count, 32):
        block = descriptors[start : start + 32]
        cosine = (block.reshape(-1, flat.shape[1]) @ flat.T).reshape(len(block), per_cell, count, per_cell)
        best = np.sort(cosine.max(3), axis=1)[:, -BEST_MATCHES:].mean(1)
        for row in range(len(block)):
            scores[start + row, start + row + 1 :] = best[row, start + row + 1 :]
        progress.advance(len(block))
    progress.close()
    return scores


def drawn_pairs(cells: Sequence[Cell], scores: np.ndarray, seed: int) -> pd.DataFrame:
    """Return the drawn pairs with stratum, weight (inverse of the probability to be drawn) and half."""
    generator = np.random.default_rng(seed)
    first, second = np.nonzero(scores > -1)
    values = scores[first, second]
    order = np.argsort(-values, kind="stable")[: STRATA[-1][1]]
    fields = np.array([cell.field for cell in cells])
    rows = []
    for low, high, across, within in STRATA:
        places = order[low:high]
        same = fields[first[places]] == fields[second[places]]
        for chosen, count, same_field in ((places[~same], across, False), (places[same], within, True)):
            if not len(chosen):
                continue
            for place in generator.choice(chosen, min(count, len(chosen)), replace=False):
                one, other = cells[first[place]], cells[second[place]]
                rows.append(
                    {
                        "path_a": one.name,
                        "path_b": other.name,
                        "same_field": same_field,
                        "stratum": f"{low}-{high}",
                        "weight": round(len(chosen) / min(count, len(chosen)), 3),
                        "descriptor_score": round(float(values[place]), 4),
                        "half": half_of(one, other),
                        "verdict": "",
                    }
                )
    return pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)


def half_of(one: Cell, other: Cell) -> str:
    """Return the half; all pairs of the same two photographs fall into the same one."""
    digest = hashlib.sha256("|".join(sorted((one.field, other.field))).encode()).digest()
    return "tuning" if digest[0] % 2 else "test"


def draw_sheets(pairs: pd.DataFrame, cells: Sequence[Cell], out: Path) -> None:
    """Write contact sheets: numbered pairs without names, labels or scores, so that the eye is free."""
    path_of = {cell.name: cell.path for cell in cells}
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(pairs), PAIRS_OF_SHEET):
        tiles = []
        for number, row in list(pairs.iterrows())[start : start + PAIRS_OF_SHEET]:
            images = [read_image(path_of[row[side]]) for side in ("path_a", "path_b")]
            # One factor for both: scale is evidence.
            factor = SIDE / max(max(image.shape[:2]) for image in images)
            tile = np.full((SIDE + 22, 2 * SIDE + 14, 3), 255, np.uint8)
            for place, image in enumerate(images):
                small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
                height, width = min(small.shape[0], SIDE), min(small.shape[1], SIDE)
                tile[22 : 22 + height, place * (SIDE + 4) :][:, :width] = small[:height, :width]
            cv2.putText(tile, str(number), (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 2)
            tiles.append(tile)
        tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 4)
        sheet = np.vstack([np.hstack(tiles[begin : begin + 4]) for begin in range(0, len(tiles), 4)])
        cv2.imwrite(str(out / f"sheet_{start // PAIRS_OF_SHEET:02d}.png"), sheet[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sipakmed"))
    parser.add_argument(
        "--backbone", default="../shared/weights/resnet50_imagenet_v15_fp16.safetensors", help="weights file"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/twins/labelled_pairs.csv"))
    parser.add_argument("--sheets", type=Path, help="folder, outside the project, for contact sheets")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out}: holds pairs already, perhaps judged; move it away first.")
    progress = TerminalProgress()
    cells = read_dataset(arguments.data, known_groups=False).cells
    scores = pair_scores(described(cells, arguments.backbone, progress), progress)
    pairs = drawn_pairs(cells, scores, arguments.seed)
    write_text(arguments.out, pairs.to_csv(index=False, lineterminator="\n"))
    about = {"seed": arguments.seed, "strata": STRATA, "data": arguments.data.name, "cells": len(cells)}
    write_json(arguments.out.with_suffix(".json"), {**about, **provenance("benchmarks/twin_candidates.py")})
    if arguments.sheets is not None:
        draw_sheets(pairs, cells, arguments.sheets)
    print(pairs.groupby(["stratum", "same_field", "half"]).size().to_string())


if __name__ == "__main__":
    main()
