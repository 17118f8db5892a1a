"""How far networks get with another laboratory's cells, whose classes are others.

What both have in common is normal against abnormal: cells are ranked by the summed probability of the
network's abnormal classes, and held against the grouping that the cells' own classes have. The networks may
be the folds of a cross-validation, none of which has seen any of these cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cervicyte import metrics
from cervicyte.datasets.classes import grouping_of
from cervicyte.datasets.layouts import Cell, read_dataset
from cervicyte.errors import DatasetError, UsageError
from cervicyte.evaluation.cross_validation import as_json, bootstrap_estimates
from cervicyte.evaluation.cross_validation_page import interval_text
from cervicyte.evaluation.predictions import predict_cells
from cervicyte.evaluation.run import NOT_PATIENTS, refuse_seen, weights_hash
from cervicyte.evaluation.tables import write_table
from cervicyte.metrics import Statistic
from cervicyte.network.model_file import ModelFile, load_model_file
from cervicyte.pages import plural
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text
from cervicyte.training.loop import MODEL_NAME

FIGURES = {"abnormal_auc_all": "all classes", "abnormal_auc_squamous": "without columnar cells"}
COLUMNAR = "Columnar"  # Herlev's class of glandular cells, which SIPaKMeD lacks
ANSWERS_NAME = "elsewhere_predictions.csv"


def elsewhere(
    models: Sequence[Path],
    data: Path,
    out: Path,
    *,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Ask networks of another laboratory's cells; write `elsewhere.json` and `.md`, and every answer.

    Args:
        models: model files, or run folders, such as the folds of a cross-validation.
        data: the cells; the classes are known as normal or abnormal.
        out: takes the tables.
        command: the command line, recorded in every artefact.
        progress: is told of every batch.

    Returns:
        The content of `elsewhere.json`.

    Raises:
        UsageError: no model is given.
        DatasetError: it is not known which of the classes are abnormal, or all or none of the cells are.
        SplitError: a model has seen some of the cells.
    """
    if not models:
        raise UsageError("Name one model or more.")
    dataset = read_dataset(data)
    _check_groupings(dataset.classes, data)
    tables, hashes = [], []
    for path in models:
        model = load_model_file(path / MODEL_NAME if path.is_dir() else path)
        _check_groupings(model.class_names, path)
        refuse_seen(model, dataset.cells, data, False, "take other cells, or")
        table = predict_cells(model, dataset.cells, progress=progress)
        table.insert(0, "model", path.name)
        tables.append(table)
        hashes.append(weights_hash(model.network))
    content = {
        "notice": RESEARCH_USE_ONLY,
        "data": dataset.root.name,
        "models": len(models),
        "weights_sha256": hashes,
        "cells": len(dataset.cells),
        "groups": len({cell.group for cell in dataset.cells}),
        "figures": elsewhere_figures(tables),
        "each_model": [elsewhere_figures([table]) for table in tables],
        "mean_score": _mean_scores(tables),
        "caveats": [NOT_PATIENTS],
        "intervals": {"level": metrics.LEVEL, "method": "bootstrap of whole groups", "draws": metrics.DRAWS},
        "provenance": provenance(command),
    }
    write_table(pd.concat(tables, ignore_index=True), out / ANSWERS_NAME)
    write_text(out / "elsewhere.md", elsewhere_page(content))
    write_json(out / "elsewhere.json", content)
    return content


def ask_elsewhere(model: ModelFile, cells: Sequence[Cell], out: Path, progress: Progress = SILENT) -> None:
    """Write what one model says of another laboratory's cells into `out`."""
    write_table(predict_cells(model, cells, progress=progress), out / ANSWERS_NAME)


def elsewhere_figures(tables: Sequence[pd.DataFrame]) -> dict[str, dict[str, float | None]]:
    """Return each of `FIGURES` with its interval, the mean over the networks of the tables."""
    estimates = bootstrap_estimates(tables[0]["group"], elsewhere_statistic(tables))
    return {name: as_json(one) for name, one in zip(FIGURES, estimates, strict=True)}


def elsewhere_statistic(tables: Sequence[pd.DataFrame]) -> Statistic:
    """Return the function from cell weights [D, N] to `FIGURES`, [D, K]; see the module.

    Args:
        tables: of each network, see `predictions.predictions_table`, over the same cells in one order.
    """
    truth = tables[0]["true_class"].to_numpy(str)
    groupings = grouping_of(map(str, np.unique(truth)))
    abnormal = np.array([groupings[name] == "abnormal" for name in truth])
    squamous = (truth != COLUMNAR).astype(float)
    scores = [_abnormal_score(table) for table in tables]

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                np.mean([metrics.auc(abnormal, score, weights * counted) for score in scores], axis=0)
                for counted in (np.ones(len(truth)), squamous)
            ],
            axis=-1,
        )

    return statistic


def _abnormal_score(table: pd.DataFrame) -> np.ndarray:
    own = grouping_of(name[2:] for name in table.columns if name.startswith("p_"))
    chosen = [f"p_{name}" for name, grouping in own.items() if grouping == "abnormal"]
    return table[chosen].sum(axis=1).to_numpy(float)


def _mean_scores(tables: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Return of each true class the mean probability of being abnormal, over cells and networks."""
    scores = np.mean([_abnormal_score(table) for table in tables], axis=0)
    truth = tables[0]["true_class"].to_numpy(str)
    return {str(name): float(scores[truth == name].mean()) for name in np.unique(truth)}


def _check_groupings(class_names: Sequence[str], where: Path) -> None:
    found = grouping_of(class_names)
    unknown = [name for name, grouping in found.items() if grouping is None]
    if unknown:
        raise DatasetError(
            f"{where}: it is not known whether the class {unknown[0]} is normal or abnormal; name the "
            "classes as SIPaKMeD or Herlev do."
        )
    if len({grouping == "abnormal" for grouping in found.values()}) < 2:
        raise DatasetError(f"{where}: has no normal or no abnormal class; give a data set with both.")


def elsewhere_page(content: Mapping[str, Any]) -> str:
    """Return the figures as Markdown."""
    rows = "\n".join(
        f"| {title} | {interval_text(content['figures'][name], 'abnormal_auc')} | "
        + ", ".join(f"{one[name]['value']:.3f}" for one in content["each_model"])
        + " |"
        for name, title in FIGURES.items()
    )
    means = "\n".join(f"| {name} | {100 * value:.0f} |" for name, value in content["mean_score"].items())
    origin = content["provenance"]
    return f"""# Another laboratory's cells: {content["data"]}

{content["notice"]}

{content["cells"]:,} cells in {content["groups"]:,} groups, of which no network was trained on any. AUC of \
abnormal cells against the others, by the summed probability of the network's abnormal classes: the mean \
over {content["models"]} {plural("network", content["models"])}, and each.

| | AUC | each network |
| --- | --- | --- |
{rows}

| class | mean probability of being abnormal, % |
| --- | ---: |
{means}

In brackets: 95 % intervals from {content["intervals"]["draws"]:,} bootstrap draws of whole groups. \
{" ".join(content["caveats"])}

Command: `{origin["command"] or "called from Python"}`; commit {origin["commit"]}; written \
{origin["written"][:10]}.
"""
