"""How much of a network's accuracy is left when images are spoilt, see `images.corruptions`.

Measured on the test part of each run, by the run's own network. The network is never trained on these very
corruptions, and their numbers were fixed before the first measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cervicyte import metrics
from cervicyte.datasets.layouts import Cell, read_dataset
from cervicyte.datasets.splits import cells_of, leak_of, read_split, split_hash, verify_contents
from cervicyte.errors import UsageError
from cervicyte.evaluation.cross_validation import as_json, bootstrap_estimates
from cervicyte.evaluation.cross_validation_page import interval_text, number_text
from cervicyte.evaluation.ledger import record_opening
from cervicyte.evaluation.predictions import logits_of
from cervicyte.evaluation.run import SPLIT_NAME
from cervicyte.evaluation.seen import NOT_PATIENTS
from cervicyte.evaluation.tables import write_table
from cervicyte.images.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from cervicyte.images.reader import read_image
from cervicyte.network.model_file import ModelFile, load_model_file, weights_hash
from cervicyte.pages import counted, plural
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text
from cervicyte.training.cells import READING_THREADS
from cervicyte.training.loop import MODEL_NAME

CLEAN = "clean"
SEED = 0  # draws the groups where not all are asked for
# What the recipe's augmentation has in common with corruptions: a network that met the like is no stranger.
ALIKE_IN_TRAINING = {
    "blur": "gaussian blur",
    "focus": "defocus blur",
    "noise": "noise",
    "jpeg": "JPEG",
    "colour": "brightness",
    "stain": "stain",
    "stain_shift": "stain",
}
COLUMNS = ("path", "group", "corruption", "severity", "true_class", "predicted_class")
ANSWERS_NAME = "robustness_predictions.csv"


def robustness(
    runs: Sequence[Path],
    data: Path,
    out: Path,
    *,
    cells: int | None = None,
    known_groups: bool = True,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Ask each run's network for its test part, clean and spoilt; write `robustness.csv`, `.json`, `.md`.

    Args:
        runs: run folders, such as the folds of a cross-validation; each has a model and a split.
        data: the data set that they were trained on.
        out: takes the tables and every answer.
        cells: ask for about so many, an equal share of each run, in whole groups drawn at random; None is
            all of them.
        known_groups: whether SIPaKMeD's fields are grouped by the table that ships with Cervicyte.
        command: the command line, recorded in every artefact.
        progress: is told of every batch.

    Returns:
        The content of `robustness.json`.

    Raises:
        UsageError: no run is given, fewer cells than runs are asked for, or a cell is tested by two of them.
        CervicyteError: a model or split cannot be read, or does not fit the data.
    """
    if not runs:
        raise UsageError("Name one run folder or more.")
    if cells is not None and cells < len(runs):
        raise UsageError(
            f"{counted(cells, 'cell', 'is', 'are')} fewer "
            f"than the {len(runs)} runs; ask for one of each, at least."
        )
    dataset = read_dataset(data, known_groups)
    tables, leaks, met, of = [], [], set(), 0
    for run in runs:
        model = load_model_file(run / MODEL_NAME)
        split = read_split(run / SPLIT_NAME)
        verify_contents(split, dataset)
        leaks.append(leak_of(split))
        met |= met_in_training(model)
        record_opening(
            run / SPLIT_NAME, split_hash(split), model=weights_hash(model.network), command=command
        )
        tested = cells_of(split, dataset, "test")
        of += len(tested)
        asked = tested if cells is None else _whole_groups(tested, cells / len(runs))
        tables.append(answers(model, asked, progress, run.name))
    table = pd.concat(tables, ignore_index=True)
    twice = table.duplicated(["path", "corruption", "severity"])
    if twice.any():
        raise UsageError(
            f"{table.loc[twice, 'path'].iloc[0]}: is tested by two of the runs; give runs whose test parts "
            "have no cell in common."
        )
    content = {
        "notice": RESEARCH_USE_ONLY,
        "data": dataset.root.name,
        "runs": len(runs),
        "cells": int(table["path"].nunique()),
        "of_cells": of,
        "groups": int(table["group"].nunique()),
        **robustness_figures(table),
        "caveats": [
            *(leak for leak in leaks if leak),
            f"Augmentation showed the networks the like of: {', '.join(sorted(met)) or 'none of these'}.",
            NOT_PATIENTS,
            *dataset.warnings,
        ],
        "intervals": {"level": metrics.LEVEL, "method": "bootstrap of whole groups", "draws": metrics.DRAWS},
        "provenance": provenance(command),
    }
    write_table(table, out / ANSWERS_NAME)
    write_table(_flat_table(content), out / "robustness.csv")
    write_text(out / "robustness.md", robustness_page(content))
    write_json(out / "robustness.json", content)
    return content


def _whole_groups(cells: Sequence[Cell], count: float) -> list[Cell]:
    """Return the cells of groups drawn at random, until there are `count` or more."""
    names = sorted({cell.group for cell in cells})
    chosen: list[Cell] = []
    for place in np.random.default_rng(SEED).permutation(len(names)):
        if len(chosen) >= count:
            break
        chosen += [cell for cell in cells if cell.group == names[place]]
    return chosen


def met_in_training(model: ModelFile) -> set[str]:
    """Return the kinds of corruption of which training had the like, by the recipe in the model's file."""
    augmentation = model.metadata.get("recipe", {}).get("augmentation", {})
    return {kind for key, kind in ALIKE_IN_TRAINING.items() if augmentation.get(key)}


def answers(
    model: ModelFile, cells: Sequence[Cell], progress: Progress = SILENT, title: str = ""
) -> pd.DataFrame:
    """Return what a model says of every cell under every corruption, one row each, and of the clean cells."""
    images = [read_image(cell.path) for cell in cells]
    conditions = [(CLEAN, 0), *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]
    tables = []
    for name, severity in conditions:

        def prepared(image: np.ndarray, name: str = name, severity: int = severity) -> np.ndarray:
            spoilt = image if name == CLEAN else corrupted(image, name, severity)
            return model.preprocessing(spoilt)

        with ThreadPoolExecutor(READING_THREADS) as threads:
            inputs = np.stack(list(threads.map(prepared, images)))
        what = name if name == CLEAN else f"{name} {severity}"
        predicted = logits_of(model, inputs, progress, f"{title} {what}".strip()).argmax(1)
        rows = [
            (cell.name, cell.group, name, severity, cell.label, model.class_names[index])
            for cell, index in zip(cells, predicted, strict=True)
        ]
        tables.append(pd.DataFrame(rows, columns=list(COLUMNS)))
    return pd.concat(tables, ignore_index=True)


def robustness_figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return accuracy clean, for each corruption and severity, and overall, with intervals.

    The mean over all corruptions and severities is also given as a share of the clean accuracy, both from
    the same draws of groups.
    """
    table = table.assign(correct=(table["true_class"] == table["predicted_class"]).astype(float))
    wide = table.pivot(index=["path", "group"], columns=["corruption", "severity"], values="correct")
    groups = wide.index.to_frame(index=False)["group"]
    clean = wide[CLEAN, 0].to_numpy()
    of = {
        name: np.stack([wide[name, severity].to_numpy() for severity in SEVERITIES], axis=1)
        for name in CORRUPTIONS
    }
    columns = np.column_stack([clean, *of.values()])  # [N, 1 + corruptions * severities]

    def statistic(weights: np.ndarray) -> np.ndarray:
        rates = weights @ columns / weights.sum(-1, keepdims=True)
        spoilt = rates[:, 1:].reshape(len(rates), len(of), len(SEVERITIES))
        mean = spoilt.mean((1, 2))
        summary = [mean, metrics.ratio(mean, rates[:, 0])]
        return np.column_stack([rates, spoilt.mean(2), *summary])

    estimates = [as_json(one) for one in bootstrap_estimates(groups, statistic)]
    first, singles = estimates[0], iter(estimates[1:])
    by_severity = {name: {str(severity): next(singles) for severity in SEVERITIES} for name in of}
    means = {name: next(singles) for name in of}
    mean, share = singles
    return {
        "clean": first,
        "corruptions": {name: {"mean": means[name], "by_severity": by_severity[name]} for name in of},
        "mean": mean,
        "share_of_clean": share,
    }


def _flat_table(content: dict[str, Any]) -> pd.DataFrame:
    rows = [{"corruption": CLEAN, "severity": "", **content["clean"]}]
    for name, figures in content["corruptions"].items():
        rows += [
            {"corruption": name, "severity": severity, **figure}
            for severity, figure in [*figures["by_severity"].items(), ("mean", figures["mean"])]
        ]
    rows.append({"corruption": "all", "severity": "mean", **content["mean"]})
    rows.append({"corruption": "all", "severity": "share of clean", **content["share_of_clean"]})
    return pd.DataFrame(rows)


def robustness_page(content: dict[str, Any]) -> str:
    """Return the table as Markdown."""

    rows = "\n".join(
        f"| {name} | "
        + " | ".join(number_text(one["value"]) for one in figures["by_severity"].values())
        + f" | {interval_text(figures['mean'])} |"
        for name, figures in content["corruptions"].items()
    )
    origin = content["provenance"]
    all_asked = content["cells"] == content["of_cells"]
    drawn = "" if all_asked else f" of {content['of_cells']:,}, drawn by whole groups,"
    return f"""# What is left of the accuracy when images are spoilt: {content["data"]}

{content["notice"]}

{content["cells"]:,} cells{drawn} in {content["groups"]:,} groups, tested by {content["runs"]} \
{plural("network", content["runs"])} that saw no cell of their groups. Accuracy in percent: \
clean {interval_text(content["clean"])}; mean over all \
corruptions and severities {interval_text(content["mean"])}, which is \
{interval_text(content["share_of_clean"])} % of the clean one.

| corruption | {" | ".join(map(str, SEVERITIES))} | mean |
| --- | {" | ".join(["---:"] * len(SEVERITIES))} | ---: |
{rows}

In brackets: 95 % intervals from {content["intervals"]["draws"]:,} bootstrap draws of whole groups. Blur, \
noise, JPEG and brightness are ImageNet-C's (Hendrycks & Dietterich, ICLR 2019) at 224 pixels; stain shifts \
each of haematoxylin, eosin and DAB by up to 0.02 to 0.10 in scikit-image's units. \
{" ".join(content["caveats"])}

Command: `{origin["command"] or "called from Python"}`; commit {origin["commit"]}; written \
{origin["written"][:10]}.
"""
