"""How much a split that leaks flatters: the same recipe under splits by cell, by field and by group.

Every cell is tested once under each split, so the splits are compared cell by cell: the difference of
a figure is computed on the same bootstrap draws of groups for both. A difference of two figures that
came from different cells would be less certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cervicyte import metrics
from cervicyte.datasets.splits import By, read_split
from cervicyte.evaluation.cross_validation import (
    FEATURES_NAME,
    POOLED_NAME,
    as_json,
    bootstrap_estimates,
    cross_validate,
    figure_estimates,
    figures_of_cells,
    fold_folder,
)
from cervicyte.evaluation.cross_validation_page import interval_text, title_of_figure
from cervicyte.evaluation.run import SPLIT_NAME
from cervicyte.evaluation.seen import NOT_PATIENTS
from cervicyte.evaluation.tables import FIRST_COLUMNS, write_table
from cervicyte.metrics import Statistic
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text

HONEST: By = "group"
FLATTERING: tuple[By, ...] = ("cell", "field")
SPLITS: tuple[By, ...] = (*FLATTERING, HONEST)
SEEN, UNSEEN = "a cell of the same group in training", "no cell of the same group in training"


def optimism(
    data: Path,
    out: Path,
    *,
    frozen: bool = True,
    recipe_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    folds: int = 5,
    seeds: Sequence[int] = (0,),
    backbone: str | None = None,
    known_groups: bool = True,
    with_pictures: bool = True,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Cross-validate under the three splits; write `optimism.csv`, `.json` and `.md`.

    Args:
        data: folder or manifest of labelled cells.
        out: takes a cross-validation for each split, in `cell`, `field` and `group`, and the tables.
        frozen: probe frozen features (minutes) instead of training networks (hours).
        recipe_file, overrides, folds, seeds, backbone, known_groups, with_pictures, command, progress: see
            `cross_validate`. Without known groups there is nothing that the split by group mends.

    Returns:
        The content of `optimism.json`: figures of each split, differences to the split by group, and
        the accuracy of cells with and without others of their group in training.

    Raises:
        CervicyteError: see `cross_validate`.
    """
    pooled: dict[By, pd.DataFrame] = {}
    for by in SPLITS:
        progress.say(f"Split by {by}")
        summary = cross_validate(
            data,
            out / by,
            recipe_file=recipe_file,
            overrides=overrides,
            folds=folds,
            seeds=seeds,
            by=by,
            frozen=frozen,
            backbone=backbone,
            allow_leak=None if by == "group" else by,  # each leak bears the name of what stays whole
            known_groups=known_groups,
            features_file=out / FEATURES_NAME,
            with_pictures=with_pictures,
            command=command,
            progress=progress,
        )
        pooled[by] = _read_pooled(out / by)
    class_names = summary["class_names"]
    content = {
        "notice": RESEARCH_USE_ONLY,
        "cells": summary["cells"],
        "groups": summary["groups"],
        "folds": folds,
        "seeds": list(seeds),
        "data": summary["context"]["data"],
        "model": summary["context"]["model"],
        "recipe": summary["recipe"],
        "figures": _side_by_side(pooled, class_names),
        "company_in_training": [row for by in FLATTERING for row in _by_company(by, pooled, out / by)],
        "intervals": {**summary["intervals"], "paired": "the same draws of groups for both splits"},
        "caveats": [NOT_PATIENTS],
        "provenance": provenance(command),
    }
    write_table(_flat_table(content), out / "optimism.csv")
    write_text(out / "optimism.md", optimism_page(content))
    write_json(out / "optimism.json", content)
    return content


def _read_pooled(out: Path) -> pd.DataFrame:
    text = dict.fromkeys(FIRST_COLUMNS[:4], str)
    return pd.read_csv(out / POOLED_NAME, keep_default_na=False, dtype=text)


def _side_by_side(pooled: Mapping[By, pd.DataFrame], class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return each figure under each split, and what it exceeds that of the split by group by."""
    statistics = {by: figures_of_cells(table, class_names)[1] for by, table in pooled.items()}
    columns = {str(by): figure_estimates(table, class_names) for by, table in pooled.items()}
    names = list(columns[HONEST])
    for by in FLATTERING:
        difference = _difference(statistics[by], statistics[HONEST])
        estimates = bootstrap_estimates(pooled[HONEST]["group"], difference)
        columns[f"{by} - {HONEST}"] = dict(zip(names, estimates, strict=True))
    return {name: {column: as_json(figures[name]) for column, figures in columns.items()} for name in names}


def _difference(one: Statistic, other: Statistic) -> Statistic:
    return lambda weights: one(weights) - other(weights)


def _by_company(by: By, pooled: Mapping[By, pd.DataFrame], out: Path) -> list[dict[str, Any]]:
    """Return the accuracy of cells with and without others of their group in training, under a split.

    Cells with company are other cells than those without, and may be easier or harder for that alone.
    So both stand beside the accuracy of the very same cells under the split by group.
    """
    table, honest = pooled[by], pooled[HONEST]
    in_training = {
        (seed, fold): _groups_in_training(fold_folder(out, seed, fold))
        for seed, fold in set(zip(table["seed"], table["fold"], strict=True))
    }
    keys = zip(table["seed"], table["fold"], table["group"], strict=True)
    seen = np.array([group in in_training[seed, fold] for seed, fold, group in keys])
    correct, honestly_correct = (
        (one["true_class"] == one["predicted_class"]).to_numpy(float) for one in (table, honest)
    )

    rows = []
    for company, chosen in ((SEEN, seen), (UNSEEN, ~seen)):
        figures = bootstrap_estimates(table["group"], _accuracies(chosen, correct, honestly_correct))
        accuracy, by_group, difference = map(as_json, figures)
        rows.append(
            {
                "split": by,
                "company": company,
                "tests": int(chosen.sum()),
                "accuracy": accuracy,
                "accuracy_by_group": by_group,
                "difference": difference,
            }
        )
    return rows


def _accuracies(chosen: np.ndarray, correct: np.ndarray, honestly_correct: np.ndarray) -> Statistic:
    """Return the function from weights to both accuracies of the chosen cells and their difference."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        counted = weights * chosen
        rates = [metrics.ratio(counted @ one, counted.sum(-1)) for one in (correct, honestly_correct)]
        return np.stack([*rates, rates[0] - rates[1]], axis=-1)

    return statistic


def _groups_in_training(folder: Path) -> set[str]:
    split = read_split(folder / SPLIT_NAME)
    return set(split.loc[split["part"] != "test", "group"])


# --- tables --------------------------------------------------------------------------------------


def _flat_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row a figure and a row for each kind of company, with value, low and high of each."""
    rows = [
        {"figure": name, "split": split, **figure}
        for name, columns in content["figures"].items()
        for split, figure in columns.items()
    ]
    for row in content["company_in_training"]:
        name = f"accuracy, {row['company']}"
        splits = {
            row["split"]: row["accuracy"],
            HONEST: row["accuracy_by_group"],
            f"{row['split']} - {HONEST}": row["difference"],
        }
        of = f", of the split by {row['split']}"
        rows += [{"figure": name + of, "split": split, **figure} for split, figure in splits.items()]
    return pd.DataFrame(rows)


def optimism_page(content: Mapping[str, Any]) -> str:
    """Return the tables as Markdown, with the command, the seeds and the commit."""
    differences = [f"{by} - {HONEST}" for by in FLATTERING]
    figures = [
        f"| {title_of_figure(name)} | "
        + " | ".join(interval_text(columns[by], name) for by in SPLITS)
        + " | "
        + " | ".join(interval_text(columns[one], name, signed=True) for one in differences)
        + " |"
        for name, columns in content["figures"].items()
    ]
    company = [
        f"| {row['split']} | {row['company']} | {row['tests']:,} | {interval_text(row['accuracy'])} | "
        f"{interval_text(row['accuracy_by_group'])} | {interval_text(row['difference'], signed=True)} |"
        for row in content["company_in_training"]
    ]
    origin, model = content["provenance"], content["model"]
    seeds = ", ".join(map(str, content["seeds"]))
    kind = model["kind"][0].upper() + model["kind"][1:]
    return f"""# What a split that leaks is worth: {content["data"]}

{content["notice"]}

{kind}, backbone {model["backbone"]}, {model["image_size"]} pixels; {content["cells"]:,} cells in \
{content["groups"]:,} independent groups; {content["folds"]} folds, seed {seeds}. Every cell is tested \
once under each split and seed.

| | by cell | by field | by group | cell less group | field less group |
| --- | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(figures)}

In brackets: 95 % intervals from {content["intervals"]["draws"]:,} bootstrap draws of whole groups over the \
pooled predictions; of differences, the same draws for both splits, in percentage points. They do not \
contain what other folds or another training would change. {" ".join(content["caveats"])}

## Test cells with and without company

The accuracy of test cells that have another cell of their independent group in training (the parts train \
and validation), and of those that have none; beside it the accuracy of the very same cells when the split \
is by group.

| Split by | Test cells with | Tests | Accuracy | The same cells, split by group | Difference |
| --- | --- | ---: | ---: | ---: | ---: |
{chr(10).join(company)}

Command: `{origin["command"] or "called from Python"}`; commit {origin["commit"]}; written \
{origin["written"][:10]}.
"""
