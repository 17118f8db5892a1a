"""What a classifier for few labelled cells is to read: means, deviations or covariances, of which stage.

    python benchmarks/few_cells_pooling.py ../shared/data/herlev --out docs/results/few_cells_pooling

On draws of 25 labelled cells a class, as `cervicyte learning-curve` makes them, the same regression is fitted
on what different poolings make of the shipped model's activations. `classifier: covariance` was chosen on the
same cells: the figures say what was tried, and are no measure of what to expect elsewhere.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cervicyte import metrics
from cervicyte.datasets.layouts import read_dataset
from cervicyte.evaluation.covariance import combinations_of
from cervicyte.evaluation.cross_validation import as_json
from cervicyte.evaluation.cross_validation_page import interval_text
from cervicyte.evaluation.features import stage_activations
from cervicyte.evaluation.framing import framed
from cervicyte.evaluation.learning_curve import (
    FIGURES,
    answers_of_regression,
    draw_cells,
    means_with_intervals,
)
from cervicyte.evaluation.seen import OTHER_CELLS, caveats_elsewhere, refuse_seen
from cervicyte.images.reader import read_image
from cervicyte.network.covariance import COMBINATIONS, RIDGE, CovariancePooling
from cervicyte.network.description import shipped_model
from cervicyte.network.model_file import load_model_file, weights_hash
from cervicyte.progress import TerminalProgress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text
from cervicyte.training.cells import normalised

BATCH = 32
STAGES = ("stage2", "stage3", "stage4")
TITLES = {"stage2": "second", "stage3": "third", "stage4": "last"}
Pooling = Callable[[Tensor, np.ndarray], np.ndarray]
"""Activations [N, K, h, w] and the places of the cells that train -> features [N, D]."""


def mean(activations: Tensor, training: np.ndarray) -> np.ndarray:
    """Return the mean of each channel over places, what the network itself reads."""
    return activations.mean((2, 3)).numpy()


def deviation(activations: Tensor, training: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each channel over places."""
    return activations.std((2, 3)).numpy()


def largest(activations: Tensor, training: np.ndarray) -> np.ndarray:
    """Return the largest value of each channel."""
    return activations.amax((2, 3)).numpy()


def covariance(combinations: int = COMBINATIONS, root: bool = True) -> Pooling:
    """Return pooling by covariance, with its matrix square root or as it is."""

    @torch.no_grad()
    def pooled(activations: Tensor, training: np.ndarray) -> np.ndarray:
        pooling = CovariancePooling(activations.shape[1], combinations)
        chosen = combinations_of(activations[torch.from_numpy(training)], combinations)
        pooling.project.weight.copy_(chosen[:, :, None, None])
        found = torch.cat([pooling(batch).mean((2, 3)) for batch in activations.split(BATCH)])
        if not root:
            matrices = found.unflatten(1, (combinations, combinations))
            found = (matrices @ matrices).flatten(1)  # with the ridge, which moves every cell's alike
        return found.numpy()

    return pooled


VARIANTS: Mapping[tuple[str, str], Pooling] = {
    **{(f"covariance, {COMBINATIONS} combinations, its root", stage): covariance() for stage in STAGES[::-1]},
    **{
        (f"covariance, {count} combinations, its root", "stage3"): covariance(count)
        for count in (16, 24, 48, 64, 96)
    },
    (f"covariance, {COMBINATIONS} combinations, without the root", "stage3"): covariance(root=False),
    **{("mean", stage): mean for stage in STAGES[::-1]},
    ("standard deviation", "stage3"): deviation,
    ("largest value", "stage3"): largest,
}


def main() -> None:
    """Measure every variant and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="labelled cells of another laboratory")
    parser.add_argument("--out", type=Path, required=True, help="the table, less .md and .json")
    parser.add_argument("--cells", type=int, default=25, help="labelled cells a class")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    dataset = read_dataset(asked.data)
    model = load_model_file(shipped_model())
    refuse_seen(model, dataset.cells, asked.data, False, OTHER_CELLS)
    class_names = tuple(dataset.classes)
    truth = np.array([class_names.index(cell.label) for cell in dataset.cells])
    groups = np.array([cell.group for cell in dataset.cells])
    drawn = [
        draw_cells(truth, groups, [asked.cells], asked.seed, draw, class_names) for draw in range(asked.draws)
    ]
    seen = framed(model)
    images = np.stack([seen(read_image(cell.path)) for cell in dataset.cells])

    progress = TerminalProgress()
    found: dict[str, list[Tensor]] = {stage: [] for stage in STAGES}
    progress.start("What the network sees", len(images))
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2)
        with torch.no_grad():
            for stage, values in stage_activations(model.network, normalised(batch, seen), STAGES).items():
                found[stage].append(values)
        progress.advance(len(batch))
    progress.close()
    activations = {stage: torch.cat(batches) for stage, batches in found.items()}

    rows = []
    progress.start("Variants and draws", len(VARIANTS) * len(drawn))
    for (what, stage), pooling in VARIANTS.items():
        answers = []
        for number, draw in enumerate(drawn):
            features = pooling(activations[stage], draw.training[asked.cells])
            seed = asked.seed + number
            answers.append(
                answers_of_regression(features, truth, groups, class_names, draw, asked.cells, seed)
            )
            progress.advance(1)
        figures = means_with_intervals(answers, truth, groups, class_names, asked.seed)
        rows.append(
            {
                "pooling": what,
                "stage": stage,
                "features": features.shape[1],
                "figures": {name: as_json(figures[name]) for name in FIGURES},
            }
        )
    progress.close()
    content = {
        "notice": RESEARCH_USE_ONLY,
        "data": dataset.root.name,
        "cells": len(truth),
        "groups": len(set(groups.tolist())),
        "cells_a_class": asked.cells,
        "draws": asked.draws,
        "seed": asked.seed,
        "ridge": RIDGE,
        "least_side": seen.least_side,
        "weights_sha256": weights_hash(model.network),
        "rows": rows,
        "caveats": caveats_elsewhere([dataset.known]),
        "intervals": {"level": metrics.LEVEL, "method": "bootstrap of draws and of whole groups"},
        "provenance": provenance(shlex.join(["python", *sys.argv])),
    }
    write_text(asked.out.with_suffix(".md"), page(content))
    write_json(asked.out.with_suffix(".json"), content)
    print(page(content))


def page(content: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    rows = "\n".join(
        f"| {row['pooling']} | {TITLES[row['stage']]} | {row['features']:,} | "
        + " | ".join(
            interval_text(figure, "abnormal_auc" if name.startswith("abnormal_auc") else name)
            for name, figure in row["figures"].items()
        )
        + " |"
        for row in content["rows"]
    )
    origin = content["provenance"]
    return f"""# What a classifier for few cells is to read: {content["data"]}

{content["notice"]}

{content["cells"]} cells in {content["groups"]} groups, none of which the shipped model was trained on; it \
was not adapted, and saw small crops on a square of {content["least_side"]} pixels. In each of \
{content["draws"]} draws a quarter of the groups is tested, and of the others {content["cells_a_class"]} \
cells of each class train the same logistic regression, on what each pooling makes of a stage's activations. \
`classifier: covariance` is the first row of the third stage, `classifier: logistic` the mean of the last.

| pooling over places | stage | features | {" | ".join(FIGURES.values())} |
| --- | --- | ---: | {" | ".join("---" for _ in FIGURES)} |
{rows}

Means over draws; in brackets 95 % intervals from bootstrap draws, of whole groups and of these draws. The \
choice of `classifier: covariance` was made on these cells, in trials on the adapted model, so that the best \
rows flatter. {" ".join(content["caveats"])}

Command: `{origin["command"]}`; seed {content["seed"]}; commit {origin["commit"]}; written \
{origin["written"][:10]}.
"""


if __name__ == "__main__":
    main()
