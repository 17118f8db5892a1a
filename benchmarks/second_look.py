"""What a second look costs at home, on cells of groups that the networks have not seen.

python benchmarks/second_look.py FOLDS --data DATA --out docs/results/second_look.json

FOLDS is the folder of a cross-validation by group, or of some of its folds: each fold's network answers for
its own test part, with and without a second look at what it calls unlike its training cells, see
`evaluation.framing`; what is usual is fitted on its validation part, as folds carry nothing of it. Both
shares of cells called rightly, and their difference with an interval from drawing whole groups; beside it
stand how many cells were flagged, looked at again, and called otherwise, and what it would cost to look at
all cells so.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cervicyte import metrics
from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.splits import cells_of, read_split
from cervicyte.evaluation.answers import UNLIKE, answered_cells, attach, fit_answers
from cervicyte.evaluation.cross_validation import as_json, bootstrap_estimates
from cervicyte.evaluation.framing import framed, second_look
from cervicyte.evaluation.run import labelled_images
from cervicyte.network.model_file import load_model_file
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return metrics.ratio(weights @ values, weights.sum(1))[:, np.newaxis]


def main() -> None:
    parser = argparse.ArgumentParser(description="What a second look costs at home.")
    parser.add_argument("folds", type=Path, help="of a cross-validation by group, such as runs/folds/seed_0")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    dataset = read_dataset(arguments.data)
    right: dict[str, list[np.ndarray]] = {"once": [], "again": [], "all": []}
    flagged = looked_again = other_class = 0
    folds, groups = [], []
    for run in sorted(arguments.folds.glob("fold_*")):
        model = load_model_file(run / "best_model.pth")
        split = read_split(run / "split.csv")
        cells = cells_of(split, dataset, "test")
        if "familiarity" not in model.metadata:
            parts = []
            for part in ("train", "validation"):
                of_part = cells_of(split, dataset, part)
                parts.append((labelled_images(of_part, model.class_names, model.preprocessing), of_part))
            answers = fit_answers(model, *parts[0], *parts[1])
            attach(model, *answers)
        assert second_look(model) is not None, f"{run}: takes no second look"
        so = replace(model, preprocessing=framed(model))
        tables = {
            "once": answered_cells(model, cells, framing=False),
            "again": answered_cells(model, cells),
            "all": answered_cells(so, cells),
        }
        for name, table in tables.items():
            right[name].append((table["predicted_class"] == table["true_class"]).to_numpy(float))
        flagged += int(tables["once"]["verdict"].isin(UNLIKE).sum())
        changed = tables["once"]["confidence"] != tables["again"]["confidence"]
        looked_again += int(changed.sum())
        other_class += int((tables["once"]["predicted_class"] != tables["again"]["predicted_class"]).sum())
        groups += [cell.group for cell in cells]
        folds.append(
            {
                "fold": run.name,
                "cells": len(cells),
                "least_side": so.preprocessing.least_side,
                "image_size": model.preprocessing.image_size,
                "epochs": model.epoch,
            }
        )
        print(run.name, {name: float(values[-1].mean()) for name, values in right.items()}, flush=True)
    accuracy = {name: float(np.concatenate(values).mean()) for name, values in right.items()}
    costs = {}
    for name in ("again", "all"):
        lost = np.concatenate(right["once"]) - np.concatenate(right[name])
        (estimate,) = bootstrap_estimates(pd.Series(groups), functools.partial(weighted_mean, lost))
        costs[name] = as_json(estimate)
    content = {
        "notice": RESEARCH_USE_ONLY,
        "cells": len(groups),
        "groups": len(set(groups)),
        "folds": folds,
        "accuracy": accuracy,
        "lost_by_a_second_look": costs["again"],
        "lost_if_all_were_looked_at_so": costs["all"],
        "flagged": flagged,
        "looked_at_again": looked_again,
        "called_otherwise": other_class,
        "provenance": provenance(shlex.join(["python", *sys.argv])),
    }
    print(content)
    if arguments.out is not None:
        write_json(arguments.out, content)


if __name__ == "__main__":
    main()
