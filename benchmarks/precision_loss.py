"""What a precision costs in accuracy, on cells of groups that the networks have not seen.

python benchmarks/precision_loss.py FOLDS --data DATA --out benchmarks/results/precision_loss.json

FOLDS is the folder of a cross-validation by group: each fold's network answers for its own test part, by
OpenVINO in float32 and at the precision asked for. The loss is the difference of the shares of cells called
rightly over all folds that are there, with an interval from drawing whole groups; beside it stand how many
cells get another class, and the largest change of any probability. `int8` is calibrated on cells that trained
the fold's network.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.splits import cells_of, read_split
from cervicyte.evaluation.predictions import BATCH, softmax
from cervicyte.inference.choice import graph_of
from cervicyte.inference.engines import INT8, Engine, OpenVinoEngine
from cervicyte.inference.quantise import quantised
from cervicyte.inference.torch_engine import TorchEngine
from cervicyte.metrics import group_bootstrap
from cervicyte.network.model_file import load_model_file
from cervicyte.provenance import provenance, write_json
from cervicyte.training.cells import load_cells

MOST_LOSS = 0.002  # the project's goal: 0.2 points
MOST_CHANGE = 0.1  # of a probability
CALIBRATING = 128  # cells, about, for int8


def logits_of(engine: Engine, images: np.ndarray) -> np.ndarray:
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([engine.run(batch).logits for batch in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description="What a precision costs in accuracy.")
    parser.add_argument("folds", type=Path, help="of a cross-validation by group, such as runs/folds/seed_0")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    precision: str = arguments.precision
    dataset = read_dataset(arguments.data)
    right: dict[str, list[np.ndarray]] = {"float32": [], precision: []}
    other_class, changes, folds, groups = 0, [], [], []
    for run in sorted(arguments.folds.glob("fold_*")):
        model = load_model_file(run / "best_model.pth")
        cells = cells_of(read_split(run / "split.csv"), dataset, "test")
        images = load_cells(cells, model.preprocessing)
        truth = np.array([model.class_names.index(cell.label) for cell in cells])
        graph = graph_of(model)
        if precision == INT8:
            training = cells_of(read_split(run / "split.csv"), dataset, "train")
            calibrating = load_cells(training[:: max(1, len(training) // CALIBRATING)], model.preprocessing)
            other = OpenVinoEngine(quantised(graph, calibrating))
        else:
            other = OpenVinoEngine(graph, precision)  # type: ignore[arg-type]  # refused if it is none
        found = {"float32": logits_of(OpenVinoEngine(graph), images), precision: logits_of(other, images)}
        few = images[:16]
        assert np.array_equal(
            TorchEngine(model).run(few).logits.argmax(1), found["float32"][: len(few)].argmax(1)
        )
        for name, logits in found.items():
            right[name].append(logits.argmax(1) == truth)
        other_class += int(np.sum(found["float32"].argmax(1) != found[precision].argmax(1)))
        changes.append(np.abs(softmax(found["float32"]) - softmax(found[precision])).max(1))
        groups += [cell.group for cell in cells]
        seen = {"image_size": model.preprocessing.image_size, "epochs": model.epoch}
        folds.append({"fold": run.name, "cells": len(cells), **seen})
        print(run.name, {name: float(values[-1].mean()) for name, values in right.items()}, flush=True)
    accuracy = {name: float(np.concatenate(values).mean()) for name, values in right.items()}
    change = np.concatenate(changes)
    lost = np.concatenate(right["float32"]).astype(float) - np.concatenate(right[precision])
    drawn = group_bootstrap(groups, lambda weights: (weights @ lost / weights.sum(1))[:, np.newaxis])
    figures: dict[str, Any] = {
        "engine": "openvino",
        "precision": precision,
        "cells": len(change),
        "folds": folds,
        "accuracy": accuracy,
        "loss": accuracy["float32"] - accuracy[precision],
        "loss_interval": [float(drawn.low[0]), float(drawn.high[0])],
        "cells_with_another_class": other_class,
        "largest_change_of_a_probability": float(change.max()),
        "change_of_a_probability_99th_percentile": float(np.percentile(change, 99)),
        "bounds": {"loss": MOST_LOSS, "change_of_a_probability": MOST_CHANGE},
    }
    print(figures)
    if arguments.out is not None:
        write_json(arguments.out, {"provenance": provenance(shlex.join(["python", *sys.argv])), **figures})


if __name__ == "__main__":
    main()
