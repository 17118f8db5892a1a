"""The main job on synthetic cells, from nothing to the dashboard, in a few minutes on two cores.

The model that ships is asked of drawn cells, of which it never saw one; then a small network is trained on
them, as a user would train one on cells of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cervicyte import load_model
from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.splits import cells_of, read_split
from cervicyte.datasets.synthetic import write_dataset
from cervicyte.evaluation.predictions import BATCH
from cervicyte.evaluation.run import SPLIT_NAME, train_and_evaluate
from cervicyte.explanation.gallery import explain_cells
from cervicyte.images.reader import read_image
from cervicyte.inference.classifier import Classifier
from cervicyte.network.description import SHIPPED_MODEL
from cervicyte.network.model_file import load_model_file
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json
from cervicyte.training.loop import MODEL_NAME

CELLS = 600
SEED = 0
RECOGNISED_NAME = "shipped_model.json"
EXPLAINED_PER_CLASS = 2
# From scratch on small images: no weights are downloaded, and two cores see each cell often enough.
RECIPE = {
    "backbone": "none",
    "preprocessing.image_size": 64,
    "epochs": 16,
    "patience": 16,
    "learning_rate": 1e-3,
    "layer_decay": 1.0,
    "ema_decay": 0.95,
    "batch_size": 16,
}


def run_demo(
    out: Path,
    *,
    serve_page: bool = True,
    port: int = 7860,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict:
    """Draw cells, train, evaluate, explain, say where all of it lies, and open the dashboard.

    An interrupted demo goes on where it stopped; a finished one trains no more.

    Returns:
        The figures of the run's `metrics.json`.
    """
    progress.say(f"Cervicyte demo. {RESEARCH_USE_ONLY}")
    data, run = out / "synthetic", out / "run"
    cells = write_dataset(data, CELLS, SEED, progress)
    shipped = None
    if SHIPPED_MODEL.is_file():
        shipped = recognised(load_model(), cells, progress) | {"provenance": provenance(command)}
        write_json(out / RECOGNISED_NAME, shipped)
    metrics = train_and_evaluate(
        cells, run, overrides=RECIPE, resume=True, command=command, progress=progress
    )
    model = load_model_file(run / MODEL_NAME)
    dataset = read_dataset(cells)
    tested = cells_of(read_split(run / SPLIT_NAME), dataset, "test")
    chosen = [
        cell
        for name in dataset.classes
        for cell in [cell for cell in tested if cell.label == name][:EXPLAINED_PER_CLASS]
    ]
    # At 64 pixels the last layer's map has two by two places; the one before it shows more.
    index = explain_cells(
        model, chosen, run, layers=("cbam3", "cbam4"), force=True, command=command, progress=progress
    ).page

    accuracy = metrics["overall"]["accuracy"]
    if shipped is not None:
        progress.say(
            f"\nThe model that ships with Cervicyte, which never saw a drawn cell, calls "
            f"{shipped['recognised']:.1%} of {shipped['cells']} what they were drawn as, and finds "
            f"{shipped['flagged']:.1%} unlike the cells that it was trained on."
        )
    progress.say(
        f"\nA small network trained here on drawn cells: accuracy on {metrics['cells']} kept aside "
        f"{accuracy['value']:.1%}, "
        f"95 % interval {accuracy['low']:.1%} to {accuracy['high']:.1%}\n"
        f"  cells      {cells}\n  model      {run / MODEL_NAME}\n  report     {run / 'report.html'}\n"
        f"  heat maps  {index}\n{RESEARCH_USE_ONLY}"
    )
    if serve_page:
        from cervicyte.dashboard.server import serve

        serve(SHIPPED_MODEL if shipped is not None else run / MODEL_NAME, port=port)
    return metrics


def recognised(classifier: Classifier, cells: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Ask a model that has seen no drawn cell how many of them it calls what they were drawn as.

    Returns:
        `recognised` and `flagged` as unlike the training cells, shares of `cells`; `recognised_of`, the
        share of each class; `weights_sha256`.
    """
    dataset = read_dataset(cells)
    right, flagged = [], []
    progress.start("Asking about drawn cells", len(dataset.cells))
    for start in range(0, len(dataset.cells), BATCH):
        chosen = dataset.cells[start : start + BATCH]
        predictions = classifier.predict([read_image(cell.path) for cell in chosen])
        for cell, prediction in zip(chosen, predictions, strict=True):
            right.append(prediction.class_name == cell.label)
            flagged.append(prediction.verdict in ("unlike_training", "not_a_cell"))
        progress.advance(len(chosen))
    progress.close()
    labels = np.array([cell.label for cell in dataset.cells])
    return {
        "notice": RESEARCH_USE_ONLY,
        "cells": len(right),
        "recognised": float(np.mean(right)),
        "recognised_of": {name: float(np.mean(np.array(right)[labels == name])) for name in dataset.classes},
        "flagged": float(np.mean(flagged)) if classifier.answerer.familiarity else None,
        "weights_sha256": classifier.model.weights_sha256,
    }
