"""How far networks get with another laboratory's cells, whose classes are others.

What both have in common is normal against abnormal: cells are ranked by the summed probability of the
network's abnormal classes, and held against the grouping that the cells' own classes have. The networks may
be the folds of a cross-validation, none of which has seen any of these cells.

They may also be adapted to the laboratory first, see `adaptation`: each half of the groups is then judged by
a network that was adapted to unlabelled images of the other half.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cervicyte import metrics
from cervicyte.datasets.classes import grouping_of
from cervicyte.datasets.layouts import Cell, read_dataset
from cervicyte.errors import DatasetError, UsageError
from cervicyte.evaluation.adaptation import adapted, share_of
from cervicyte.evaluation.answers import UNLIKE, answered_cells
from cervicyte.evaluation.cross_validation import as_json, bootstrap_estimates
from cervicyte.evaluation.cross_validation_page import interval_text
from cervicyte.evaluation.framing import framed
from cervicyte.evaluation.prediction_sets import SEPARATOR
from cervicyte.evaluation.seen import OTHER_CELLS, caveats_elsewhere, refuse_seen
from cervicyte.evaluation.tables import write_table
from cervicyte.images.reader import read_image
from cervicyte.metrics import Statistic
from cervicyte.network.model_file import ModelFile, load_model_file, weights_hash
from cervicyte.pages import plural
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text
from cervicyte.training.loop import MODEL_NAME

DRAWS = 3
FIGURES = {"abnormal_auc_all": "all classes", "abnormal_auc_squamous": "without columnar cells"}
COLUMNAR = "Columnar"  # Herlev's class of glandular cells, which SIPaKMeD lacks
ANSWERS_NAME = "elsewhere_predictions.csv"


def elsewhere(
    models: Sequence[Path],
    data: Path,
    out: Path,
    *,
    adapt: Sequence[int] = (),
    draws: int = DRAWS,
    white_point: bool = True,
    framing: bool = True,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Ask networks of another laboratory's cells; write `elsewhere.json` and `.md`, and every answer.

    Args:
        models: model files, or run folders, such as the folds of a cross-validation.
        data: the cells; the classes are known as normal or abnormal.
        out: takes the tables.
        adapt: numbers of images to which the networks are adapted as well.
        draws: of halves and images, for each such number.
        white_point: whether adaptation matches the background's light too.
        framing: whether small crops stay small, in a second look and in adapted networks, of models that know
            their training cells' sizes.
        command: the command line, recorded in every artefact.
        progress: is told of every batch.

    Returns:
        The content of `elsewhere.json`.

    Raises:
        UsageError: no model is given, or half of the groups have fewer images than are to be adapted to.
        DatasetError: it is not known which of the classes are abnormal, or all or none of the cells are.
        SplitError: a model has seen some of the cells.
    """
    if not models:
        raise UsageError("Name one model or more.")
    dataset = read_dataset(data)
    check_groupings(dataset.classes, data)
    halves = [_halves(dataset.cells, seed) for seed in range(draws if adapt else 0)]
    fewest = min((len(half) for pair in halves for half in pair), default=0)
    if adapt and max(adapt) > fewest:
        raise UsageError(
            f"{data}: half of its groups have {fewest} images, so that no network can be adapted to "
            f"{max(adapt)} and judged on others; adapt to fewer."
        )
    pictures = _read(dataset.cells, progress) if adapt else []
    after: dict[int, list[pd.DataFrame]] = {count: [] for count in adapt}
    tables, hashes, framing_known = [], [], True
    fit = functools.partial(adapted, white_point=white_point, framing=framing)
    for path in models:
        model = load_model_file(path / MODEL_NAME if path.is_dir() else path)
        check_groupings(model.class_names, path)
        refuse_seen(model, dataset.cells, data, False, OTHER_CELLS)
        table = answered_cells(model, dataset.cells, None, progress, path.name, framing=framing)
        table.insert(0, "model", path.name)
        tables.append(table)
        hashes.append(weights_hash(model.network))
        framing_known &= framed(model).least_side > 0
        for count in adapt:
            for seed, pair in enumerate(halves):
                asked = f"{path.name}, adapted to {count} images, draw {seed + 1} of {draws}"
                after[count].append(
                    _adapted_answers(model, dataset.cells, pictures, pair, count, fit, progress, asked)
                )
    content = {
        "notice": RESEARCH_USE_ONLY,
        "data": dataset.root.name,
        "models": len(models),
        "framing": framing and framing_known,
        "weights_sha256": hashes,
        "cells": len(dataset.cells),
        "groups": len({cell.group for cell in dataset.cells}),
        "figures": elsewhere_figures(tables),
        "each_model": [elsewhere_figures([table]) for table in tables],
        "mean_score": _mean_scores(tables),
        "doubt": _doubt(tables),
        "adapted": [
            {
                "images": count,
                "share": share_of(count),
                "white_point": white_point,
                "draws": draws,
                "figures": elsewhere_figures(after[count]),
                "less_zero_shot": _differences(after[count], tables),
                "mean_score": _mean_scores(after[count]),
                "doubt": _doubt(after[count]),
            }
            for count in adapt
        ],
        "caveats": caveats_elsewhere([dataset.known]),
        "intervals": {"level": metrics.LEVEL, "method": "bootstrap of whole groups", "draws": metrics.DRAWS},
        "provenance": provenance(command),
    }
    write_table(pd.concat(tables, ignore_index=True), out / ANSWERS_NAME)
    write_text(out / "elsewhere.md", elsewhere_page(content))
    write_json(out / "elsewhere.json", content)
    return content


def _halves(cells: Sequence[Cell], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the cells of one half of the groups, drawn at random, and of the other half."""
    groups = np.array([cell.group for cell in cells])
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    first = np.isin(groups, names[: len(names) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def _adapted_answers(
    model: ModelFile,
    cells: Sequence[Cell],
    pictures: Sequence[np.ndarray],
    halves: tuple[np.ndarray, np.ndarray],
    count: int,
    fit: Callable[[ModelFile, Sequence[np.ndarray]], ModelFile],
    progress: Progress,
    title: str,
) -> pd.DataFrame:
    """Return every cell's answer by a network that was adapted to images of the other half of the groups."""
    tables = []
    for own, others in (halves, halves[::-1]):
        chosen = np.random.default_rng(count).permutation(others)[:count]
        new = fit(model, [pictures[place] for place in chosen])
        tables.append(answered_cells(new, [cells[place] for place in own], None, progress, title))
    order = np.argsort(np.concatenate(halves), kind="stable")
    return pd.concat(tables, ignore_index=True).iloc[order].reset_index(drop=True)


def _doubt(tables: Sequence[pd.DataFrame]) -> dict[str, float | None]:
    """Return the share of cells that is flagged and the mean size of the sets, over those who can say."""
    flags = [table["verdict"].isin(UNLIKE).mean() for table in tables if "unlike_percentile" in table]
    sizes = [
        table["prediction_set"].map(lambda names: len(names.split(SEPARATOR))).mean()
        for table in tables
        if "prediction_set" in table
    ]
    return {
        "flagged": float(np.mean(flags)) if flags else None,
        "set_size": float(np.mean(sizes)) if sizes else None,
    }


def _read(cells: Sequence[Cell], progress: Progress) -> list[np.ndarray]:
    progress.start("Reading cells", len(cells))
    pictures = []
    for cell in cells:
        pictures.append(read_image(cell.path))
        progress.advance()
    progress.close()
    return pictures


def _differences(
    after: Sequence[pd.DataFrame], before: Sequence[pd.DataFrame]
) -> dict[str, dict[str, float | None]]:
    """Return of each of `FIGURES` what adaptation adds, with its interval from the same draws."""
    new, old = elsewhere_statistic(after), elsewhere_statistic(before)
    estimates = bootstrap_estimates(before[0]["group"], lambda weights: new(weights) - old(weights))
    return {name: as_json(one) for name, one in zip(FIGURES, estimates, strict=True)}


def ask_elsewhere(model: ModelFile, cells: Sequence[Cell], out: Path, progress: Progress = SILENT) -> None:
    """Write what one model says of another laboratory's cells into `out`."""
    write_table(answered_cells(model, cells, None, progress), out / ANSWERS_NAME)


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


def check_groupings(class_names: Sequence[str], where: Path) -> None:
    """Hold that normal and abnormal classes are known.

    Raises:
        DatasetError: they are not; the text begins with `where` they stand.
    """
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
    adapted_rows = "".join(
        f"| {title}, adapted to {one['images']} images | "
        f"{interval_text(one['figures'][name], 'abnormal_auc')} | "
        f"{interval_text(one['less_zero_shot'][name], 'abnormal_auc', signed=True)} |\n"
        for one in content["adapted"]
        for name, title in FIGURES.items()
    )
    adaptation = ""
    if content["adapted"]:
        draws = content["adapted"][0]["draws"]
        adaptation = f"""Adapted to unlabelled images of the laboratory (`cervicyte adapt`): each half of \
the groups is judged by networks that were adapted to images of the other half, {draws} \
{plural("draw", draws)} of halves; the mean over networks and draws.

| | AUC | less without adaptation |
| --- | --- | --- |
{adapted_rows}
"""
    doubts = {"zero-shot": content["doubt"]}
    doubts |= {f"adapted to {one['images']} images": one["doubt"] for one in content["adapted"]}
    doubt_rows = "".join(
        f"| {title} | {100 * doubt['flagged']:.0f} | {_size(doubt['set_size'])} |\n"
        for title, doubt in doubts.items()
        if doubt["flagged"] is not None
    )
    doubt_table = (
        f"""| | flagged as unlike the training cells, % | classes in a prediction set, mean |
| --- | ---: | ---: |
{doubt_rows}
"""
        if doubt_rows
        else ""
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

{adaptation}{doubt_table}| class | mean probability of being abnormal, % |
| --- | ---: |
{means}

In brackets: 95 % intervals from {content["intervals"]["draws"]:,} bootstrap draws of whole groups. \
{" ".join(content["caveats"])}

Command: `{origin["command"] or "called from Python"}`; commit {origin["commit"]}; written \
{origin["written"][:10]}.
"""


def _size(size: float | None) -> str:
    return "no sets" if size is None else f"{size:.2f}"
