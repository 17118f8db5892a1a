"""Cross-validation: every cell is tested once, by a network that saw no cell of its group.

Each fold is a run folder of its own, `seed_S/fold_K`, so that an interrupted cross-validation goes on
where it stopped. The seed draws the folds and the training alike. Within a fold, the best epoch (or the
probe's strength) is chosen on a validation part made by the same kind of unit as the test part. What the
folds predicted is pooled, and every figure is computed from the pool, with intervals from a bootstrap
over groups. Figures of calibrated probabilities and prediction sets are cross-fitted besides, see
`cross_fitting`: each fold is calibrated by the others.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cervicyte import metrics
from cervicyte.datasets.classes import grouping_of
from cervicyte.datasets.layouts import Cell, CellDataset, read_dataset
from cervicyte.datasets.splits import (
    COLUMNS,
    By,
    Leak,
    check_split,
    leak_of,
    make_split,
    read_split,
    split_hash,
    write_split,
)
from cervicyte.errors import RunFolderError, UsageError
from cervicyte.evaluation.calibration import CALIBRATION_NAME, fit_calibration
from cervicyte.evaluation.cross_fitting import (
    CrossFitted,
    calibration_figures_of_cells,
    cross_fitted,
    widened_coverage,
)
from cervicyte.evaluation.cross_validation_page import cross_validation_page
from cervicyte.evaluation.ledger import openings, record_opening, times_opened
from cervicyte.evaluation.linear_probe import frozen_features, probe_predictions
from cervicyte.evaluation.report import write_evaluation
from cervicyte.evaluation.run import (
    FIGURE_SHAPE,
    RECIPE_NAME,
    SPLIT_NAME,
    SplitChoice,
    caveats_of,
    picture_reader,
    read_metrics,
    train_and_evaluate,
)
from cervicyte.evaluation.tables import PREDICTIONS_NAME, read_predictions, write_table
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.metrics import Estimate, Statistic
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import (
    RESEARCH_USE_ONLY,
    provenance,
    read_json,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_text,
    written_atomically,
)
from cervicyte.training.recipe import NO_PARENT, Recipe, read_recipe
from cervicyte.training.start import load_parent, with_parents_settings

TABLE_NAME = "cross_validation.csv"
SUMMARY_NAME = "cross_validation.json"
SUMMARY_SHAPE = {
    "cells": int,
    "groups": int,
    "class_names": [str],
    "figures": {
        "accuracy": {**FIGURE_SHAPE, "standard_deviation_over_seeds": float | None},
        "expected_calibration_error_before": FIGURE_SHAPE,
        "expected_calibration_error_after": FIGURE_SHAPE,
        ...: FIGURE_SHAPE,
    },
    "fold_accuracy": [{"accuracy": float}],
    "context": {
        **dict.fromkeys(("title", "data", "layout", "by", "test_parts_opened"), str),
        "folds": int,
        "seeds": [int],
        "command": str | None,
        "model": {"backbone": str, "image_size": int},
    },
    "recipe": dict | None,
    "provenance": {"commit": str, "written": str, "versions": dict, "machine": str},
}
"""What is read of the summary of `cross_validate`."""
PAGE_NAME = "cross_validation.md"
POOLED_NAME = "predictions.csv"
CALIBRATED_NAME = "calibrated_predictions.csv"
FEATURES_NAME = "features.npz"
PROBE_NAME = "probe.json"  # of a fold that was not trained but probed; written last
SPECIFICITY = 0.95
OTHER_NETWORK = (
    "It was fitted on the folds' networks, each of which saw fewer cells than one trained on all of them: "
    "that one is taken to be about as certain, and no cell is left to check it by."
)


def cross_validate(
    data: Path,
    out: Path,
    *,
    recipe_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    folds: int = 5,
    seeds: Sequence[int] = (0,),
    by: By = "group",
    frozen: bool = False,
    backbone: str | None = None,
    allow_leak: Leak | None = None,
    known_groups: bool = True,
    features_file: Path | None = None,
    only_folds: Sequence[int] = (),
    with_pictures: bool = True,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train and test on every fold, going on where an earlier call stopped; pool, and write the tables.

    Args:
        data: folder or manifest of labelled cells.
        out: takes `seed_S/fold_K/`, the pooled `predictions.csv`, the same calibrated by the other folds
            in `calibrated_predictions.csv`, all figures in `cross_validation.csv`, `.json` and `.md`, what
            a model takes along in `calibration.json`, and, for the first seed, what an evaluation leaves.
        recipe_file, overrides: the recipe and changes to it; the seed in it gives way to `seeds`.
        folds: number of folds.
        seeds: of the folds and of the training; each tests every cell once more.
        by: what stays whole, see `make_split`.
        frozen: probe frozen features, see `linear_probe`, instead of training a network.
        backbone: in place of the recipe's.
        allow_leak: the leak that is accepted by name, see `check_split`: go on although a split by field
            or cell puts a group on both sides.
        known_groups: whether SIPaKMeD's fields are grouped by the table that ships with Cervicyte.
        features_file: where frozen features are kept, `out/features.npz` unless given.
        only_folds: train and test these alone, so that several machines may share the work, and leave the
            tables to a call without.
        with_pictures: whether the reports show the cells that were mistaken.
        command: the command line, recorded in every artefact.
        progress: is told of every step.

    Returns:
        The content of `cross_validation.json`; undefined figures are None. Nothing with `only_folds`.

    Raises:
        UsageError: no seeds, a seed twice, a fold that there is not, or a data set with parts of its own.
        SplitError: a group would stand on both sides and `allow_leak` does not name that.
        RunFolderError: `out` holds folds of another recipe, other cells or another split.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError("A cross-validation needs one seed or more, each given once; mend --seeds.")
    if only_folds and (frozen or not set(only_folds) <= set(range(folds))):
        raise UsageError(f"--only-fold: takes folds from 0 to {folds - 1}, and no --frozen.")
    overrides = {**(overrides or {}), **({} if backbone is None else {"backbone": backbone})}
    dataset = read_dataset(data, known_groups)
    for warning in dataset.warnings:
        progress.say(f"Note: {warning}")
    if any(cell.part for cell in dataset.cells):
        raise UsageError(
            f"{data}: has train and test parts of its own, which folds would mix; give its cells without "
            "parts, or use train."
        )
    stated = {seed: read_recipe(recipe_file, {**overrides, "seed": seed}) for seed in seeds}
    parent = load_parent(stated[seeds[0]])
    recipes = {seed: with_parents_settings(recipe, parent) for seed, recipe in stated.items()}
    splits: dict[tuple[int, int], pd.DataFrame] = {}
    field_of = {cell.name: cell.field for cell in dataset.cells}
    for seed in seeds:
        for fold in range(folds):
            split = make_split(dataset, by=by, folds=folds, fold=fold, seed=seed, allow_leak=allow_leak)
            check_split(split, allow_leak, [field_of[name] for name in split["path"]])
            _check_folder(fold_folder(out, seed, fold), split, recipes[seed], frozen)
            splits[seed, fold] = split

    if frozen:
        cached = out / FEATURES_NAME if features_file is None else features_file
        _probe_folds(dataset, out, splits, recipes[seeds[0]], cached, command, progress)
    else:
        for seed, fold in splits:
            if only_folds and fold not in only_folds:
                continue
            progress.say(f"Seed {seed}, fold {fold} of 0 to {folds - 1}")
            train_and_evaluate(
                data,
                fold_folder(out, seed, fold),
                recipe_file=recipe_file,
                overrides={**overrides, "seed": seed},
                split_choice=SplitChoice(None, by, folds, fold, seed, allow_leak),
                with_pictures=with_pictures,
                known_groups=known_groups,
                calibrate=False,
                resume=True,
                command=command,
                progress=progress,
            )

    if only_folds:
        return {}
    pooled = _pooled(out, splits)
    write_table(pooled, out / POOLED_NAME)
    first = pooled[pooled["seed"] == seeds[0]]
    # As parts, the folds show which groups stand on both sides.
    as_parts = first.assign(part=first["fold"])
    as_parts.attrs["allow_leak"] = allow_leak
    context: dict[str, Any] = {
        "title": f"{dataset.known or dataset.root.name}: {folds}-fold cross-validation by {by}",
        "data": dataset.root.name,
        "layout": dataset.layout,
        "by": by,
        "folds": folds,
        "seeds": seeds,
        "leak": leak_of(as_parts),
        "model": _facts_of_model(recipes[seeds[0]], frozen),
        "test_parts_opened": _openings_of_all(out, splits),
        "command": command,
        "caveats": caveats_of(dataset, as_parts),
    }
    write_evaluation(
        out,
        first.drop(columns=["seed", "fold"]),
        dataset.classes,
        context={**context, "seeds": seeds[:1]},
        image_of=picture_reader(dataset.cells) if with_pictures else None,
    )
    calibrated = cross_fitted(pooled, dataset.classes, allow_leak)
    write_table(calibrated.table, out / CALIBRATED_NAME)
    write_json(out / CALIBRATION_NAME, _calibration_of_all(pooled, dataset.classes, out, context))
    figures = pooled_figures(pooled, dataset.classes) | calibration_figures(
        pooled, calibrated, dataset.classes
    )
    write_table(_figures_table(figures), out / TABLE_NAME)
    summary = {
        "notice": RESEARCH_USE_ONLY,
        "training_minutes": None if frozen else _minutes(out, splits),
        "cells": len(first),
        "groups": int(first["group"].nunique()),
        "class_names": list(dataset.classes),
        "figures": figures,
        "calibrations": [
            {"seed": seed, "fold": fold, **calibration.to_json()}
            for (seed, fold), calibration in calibrated.calibrations.items()
        ],
        "fold_accuracy": [
            {"seed": seed, "fold": fold, "cells": len(rows), "accuracy": _share_correct(rows)}
            for (seed, fold) in splits
            for rows in [pooled[(pooled["seed"] == seed) & (pooled["fold"] == fold)]]
        ],
        "intervals": {
            "level": metrics.LEVEL,
            "method": "percentile bootstrap of whole groups, of predictions pooled over folds and seeds; "
            "calibrations stay as fitted",
            "draws": metrics.DRAWS,
            "seed": 0,
        },
        "context": {**context, "caveats": [*context["caveats"], *calibrated.caveats]},
        "recipe": None if frozen else recipes[seeds[0]].model_dump(mode="json"),
        "provenance": provenance(command),
    }
    write_text(out / PAGE_NAME, cross_validation_page(summary))
    write_json(out / SUMMARY_NAME, summary)
    return summary


def fold_folder(out: Path, seed: int, fold: int) -> Path:
    """Return the run folder of one fold."""
    return out / f"seed_{seed}" / f"fold_{fold}"


# --- figures -------------------------------------------------------------------------------------


def pooled_figures(pooled: pd.DataFrame, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return each figure of pooled predictions: value, low, high, each seed's value and their spread.

    The spread is the standard deviation over seeds, None for a single seed.
    """
    statistic = figures_of_cells(pooled, class_names)[1]
    return _over_seeds(pooled, figure_estimates(pooled, class_names), statistic)


def calibration_figures(
    pooled: pd.DataFrame, fitted: CrossFitted, class_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return each figure of `calibration_figures_of_cells` as `pooled_figures` does.

    Where every cell was covered, the lower end is that of `metrics.widened`.
    """
    names, statistic = calibration_figures_of_cells(pooled, fitted, class_names)
    estimates = dict(zip(names, bootstrap_estimates(pooled["group"], statistic), strict=True))
    return _over_seeds(pooled, widened_coverage(estimates, pooled, class_names), statistic)


def _over_seeds(
    pooled: pd.DataFrame, estimates: Mapping[str, Estimate], statistic: Statistic
) -> dict[str, dict[str, Any]]:
    """Put beside each figure its value for each seed, and their spread."""
    seeds = sorted(set(pooled["seed"]))
    of_seed = np.concatenate([statistic((pooled["seed"] == seed).to_numpy(float)[None]) for seed in seeds])
    spread = of_seed.std(0, ddof=1) if len(seeds) > 1 else np.full(len(estimates), np.nan)
    return {
        name: {
            **as_json(estimate),
            "over_seeds": {str(seed): _number(of_seed[row, place]) for row, seed in enumerate(seeds)},
            "standard_deviation_over_seeds": _number(spread[place]),
        }
        for place, (name, estimate) in enumerate(estimates.items())
    }


def figure_estimates(table: pd.DataFrame, class_names: Sequence[str]) -> dict[str, Estimate]:
    """Return each figure with its interval from a bootstrap over groups.

    Where no abnormal cell was called normal, the upper end is that of `metrics.widened`.
    """
    names, statistic = figures_of_cells(table, class_names)
    figures = dict(zip(names, bootstrap_estimates(table["group"], statistic), strict=True))
    abnormal = table["true_class"].map(grouping_of(class_names)) == "abnormal"
    figures["abnormal_called_normal"] = metrics.widened(
        figures["abnormal_called_normal"], table.loc[abnormal, "group"].nunique()
    )
    return figures


def figures_of_cells(table: pd.DataFrame, class_names: Sequence[str]) -> tuple[list[str], Statistic]:
    """Return the names of the K figures, and the function from cell weights [D, N] to figures [D, K].

    Abnormal against the rest is ranked by the summed probability of the abnormal classes. Its figures
    are undefined where the grouping of a class is not known.
    """
    index_of = {name: index for index, name in enumerate(class_names)}
    truth, predicted = (
        table[name].map(index_of).to_numpy(np.int64) for name in ("true_class", "predicted_class")
    )
    grouping = list(grouping_of(class_names).values())
    known = None not in grouping
    is_abnormal = np.array([one == "abnormal" for one in grouping])
    is_normal = np.array([one == "normal" for one in grouping])
    score = table[[f"p_{name}" for name in class_names]].to_numpy(float) @ is_abnormal
    positive = is_abnormal[truth]
    called_normal = positive & is_normal[predicted]

    def statistic(weights: np.ndarray) -> np.ndarray:
        confusion = metrics.confusion_matrix(truth, predicted, len(class_names), weights)
        recall = metrics.class_metrics(confusion)["recall"]
        columns = [metrics.accuracy(confusion), metrics.macro_f1(confusion), *np.moveaxis(recall, -1, 0)]
        abnormal = [
            metrics.auc(positive, score, weights),
            sensitivity_at_specificity(positive, score, weights),
            metrics.ratio(weights @ called_normal, weights @ positive),
        ]
        columns += abnormal if known else [np.full(len(weights), np.nan)] * len(abnormal)
        return np.stack(columns, axis=-1)

    names = ["accuracy", "macro_f1", *(f"recall, {name}" for name in class_names)]
    names += ["abnormal_auc", "abnormal_sensitivity_at_95_specificity", "abnormal_called_normal"]
    return names, statistic


def sensitivity_at_specificity(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray, specificity: float = SPECIFICITY
) -> np.ndarray:
    """Return the highest sensitivity of a threshold whose specificity is at least so high, [D].

    A cell is called positive if its score is the threshold or above; only scores that occur are
    thresholds, nothing is interpolated.

    Args:
        positive: bool [N].
        scores: [N], higher for positive.
        weights: [D, N].
        specificity: 0 to 1.
    """
    order = np.argsort(scores, kind="stable")
    ranked, is_positive = weights[:, order], positive[order]
    first_of_level = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    below = []
    for chosen in (is_positive, ~is_positive):
        of_level = np.add.reduceat(ranked * chosen, first_of_level, axis=-1)
        total = of_level.sum(-1, keepdims=True)
        below.append(metrics.ratio(np.cumsum(of_level, axis=-1) - of_level, total))
    missed, cleared = below  # [D, levels]: shares of positives and negatives under each threshold
    reached = np.where(cleared >= specificity - 1e-12, 1 - missed, 0.0).max(-1)
    return np.where(np.isnan(missed[:, 0]) | np.isnan(cleared[:, 0]), np.nan, reached)


def bootstrap_estimates(groups: pd.Series, statistic: Statistic) -> list[Estimate]:
    """Return the K figures with intervals from a bootstrap over groups."""
    bootstrap = metrics.group_bootstrap(groups.to_numpy(str), statistic)
    return [Estimate(*map(float, one)) for one in zip(*bootstrap, strict=True)]


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what a finished cross-validation left.

    Raises:
        RunFolderError: it left nothing, or something else.
    """
    path, anew = folder / SUMMARY_NAME, "cross-validate anew"
    missing = "finish `cervicyte cross-validate` first"
    summary = read_json(path, SUMMARY_SHAPE, missing=missing, damaged=anew)
    try:
        if summary["recipe"] is not None:
            Recipe.model_validate(summary["recipe"])
    except ValueError as error:
        raise RunFolderError(f"{path}: its recipe is damaged; {anew}.") from error
    return summary


def as_json(figure: Estimate) -> dict[str, float | None]:
    """Return value, low and high; what is undefined is None."""
    return {end: _number(value) for end, value in figure._asdict().items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _calibration_of_all(
    pooled: pd.DataFrame, class_names: Sequence[str], out: Path, context: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of `calibration.json`: what a network trained on all cells takes along.

    It is fitted on the predictions of all folds and all seeds. A group counts once however many seeds
    there are, so that more seeds make it steadier and promise no more.
    """
    calibration = fit_calibration(pooled, class_names)
    stated = ("data", "layout", "by", "folds", "seeds", "model")
    return {
        "notice": RESEARCH_USE_ONLY,
        "calibration": calibration.to_json(),
        "fitted_on": {
            **{key: context[key] for key in stated},
            "predictions": "of all folds and seeds, each for cells that its network had not seen",
            "predictions_sha256": sha256_of_file(out / POOLED_NAME),
        },
        "leak": context["leak"],
        "caveats": [*context["caveats"], OTHER_NETWORK, *calibration.notes],
        "provenance": provenance(context["command"]),
    }


def _share_correct(rows: pd.DataFrame) -> float:
    return float((rows["true_class"] == rows["predicted_class"]).mean())


def _figures_table(figures: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    rows = []
    for name, figure in figures.items():
        row = {"figure": name, **{end: figure[end] for end in Estimate._fields}}
        row["standard_deviation_over_seeds"] = figure["standard_deviation_over_seeds"]
        rows.append(row | {f"seed_{seed}": value for seed, value in figure["over_seeds"].items()})
    return pd.DataFrame(rows)


# --- folds ---------------------------------------------------------------------------------------


def _check_folder(folder: Path, split: pd.DataFrame, recipe: Recipe, frozen: bool) -> None:
    """Refuse a fold that an earlier call began with other cells, another split or recipe."""
    differs = ""
    if (folder / (RECIPE_NAME if frozen else PROBE_NAME)).exists():
        differs = "a trained network" if frozen else "a linear probe"
    elif not frozen and (folder / RECIPE_NAME).is_file() and read_recipe(folder / RECIPE_NAME) != recipe:
        differs = "another recipe"
    if (folder / SPLIT_NAME).is_file():
        begun = read_split(folder / SPLIT_NAME)[COLUMNS].to_numpy(str)
        if not np.array_equal(begun, split[COLUMNS].to_numpy(str)):
            differs = "another split or other cells"
    if differs:
        raise RunFolderError(f"{folder}: was begun with {differs}; choose another folder with --out.")


def _probe_folds(
    dataset: CellDataset,
    out: Path,
    splits: Mapping[tuple[int, int], pd.DataFrame],
    recipe: Recipe,
    cached: Path,
    command: str | None,
    progress: Progress,
) -> None:
    """Probe every fold that is not done; the features are computed once, and only if one is needed."""
    cell_of = {cell.name: cell for cell in dataset.cells}
    features: np.ndarray | None = None
    for (seed, fold), split in splits.items():
        folder = fold_folder(out, seed, fold)
        cells = [cell_of[name] for name in split["path"]]  # in every split the same order: by name
        key = features_key(list(split["sha256"]), recipe.backbone, recipe.preprocessing)
        if (folder / PROBE_NAME).is_file():
            if _features_of(folder / PROBE_NAME) != key:
                raise RunFolderError(
                    f"{folder}: was made with other features; choose another folder with --out."
                )
            continue
        if features is None:
            features = cached_features(cells, key, recipe.backbone, recipe.preprocessing, cached, progress)
        write_split(split, folder / SPLIT_NAME)
        digest = split_hash(split)
        record_opening(
            folder / SPLIT_NAME, digest, model=f"linear probe of features {key[:16]}", command=command
        )
        predictions, strength = probe_predictions(features, cells, list(split["part"]), dataset.classes)
        write_table(predictions, folder / PREDICTIONS_NAME)
        about = {"features": key, "split": digest, "strength": strength, **provenance(command)}
        write_json(folder / PROBE_NAME, about)
        progress.say(f"Seed {seed}, fold {fold}: accuracy {_share_correct(predictions):.1%}")


def _features_of(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: is damaged; delete it, and the fold is done anew.") from error


def features_key(contents: Sequence[str], backbone: str, preprocessing: Preprocessing) -> str:
    """Return the hash of what frozen features depend on, which is nothing of any split.

    Args:
        contents: SHA-256 of each cell's file, in the order of the features.
        backbone: see `load_backbone`; of a file, the content counts and not the name.
        preprocessing: by its fingerprint.
    """
    path = Path(backbone)
    weights = sha256_of_file(path) if path.is_file() else backbone
    return sha256_of_json([list(contents), weights, preprocessing.fingerprint()])


def cached_features(
    cells: Sequence[Cell],
    key: str,
    backbone: str,
    preprocessing: Preprocessing,
    cached: Path,
    progress: Progress = SILENT,
) -> np.ndarray:
    """Return frozen features, float32 [N, 2048], from the file `cached` if it has those of this key.

    The file is NumPy's, without pickles: `features`, `key` and the notice. Another key's is replaced.
    """
    try:
        with np.load(cached, allow_pickle=False) as content:
            if str(content["key"]) == key:
                return np.asarray(content["features"])
        progress.say(f"{cached}: holds features of other cells or settings; computing them anew.")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        progress.say(f"{cached}: is damaged; computing the features anew.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights that are not loaded, of `--backbone none`, are drawn
        features = frozen_features(cells, backbone, preprocessing, progress)
    with written_atomically(cached) as partial:
        np.savez(partial, features=features, key=np.array(key), notice=np.array(RESEARCH_USE_ONLY))
    return features


def _pooled(out: Path, splits: Mapping[tuple[int, int], pd.DataFrame]) -> pd.DataFrame:
    """Return the predictions of all folds, by seed and then by path."""
    tables = []
    for seed, fold in splits:
        table = read_predictions(fold_folder(out, seed, fold))
        table.insert(0, "fold", fold)
        table.insert(0, "seed", seed)
        tables.append(table)
    return pd.concat(tables).sort_values(["seed", "path"], kind="stable", ignore_index=True)


def _openings_of_all(out: Path, splits: Mapping[tuple[int, int], pd.DataFrame]) -> str:
    recorded = [
        opening
        for (seed, fold), split in splits.items()
        for opening in openings(fold_folder(out, seed, fold) / SPLIT_NAME, split_hash(split))
    ]
    return f"{times_opened(recorded)} of {len(splits)} test parts"


def _minutes(out: Path, splits: Mapping[tuple[int, int], pd.DataFrame]) -> list[float]:
    """Return how long the training of each fold took, minutes."""
    return [
        float(read_metrics(fold_folder(out, seed, fold))["context"]["training_minutes"])
        for seed, fold in splits
    ]


def _facts_of_model(recipe: Recipe, frozen: bool) -> dict[str, Any]:
    return {
        "kind": "logistic regression on 2,048 frozen ResNet-50 features"
        if frozen
        else "logistic regression on a frozen network's features"
        if recipe.classifier == "logistic"
        else "logistic regression on the covariance of a frozen network's features"
        if recipe.classifier == "covariance"
        else "fine-tuned last stage"
        if recipe.classifier == "last_stage"
        else "fine-tuned network",
        **({} if recipe.parent == NO_PARENT else {"started_from": Path(recipe.parent).name}),
        "backbone": Path(recipe.backbone).name,
        "image_size": recipe.preprocessing.image_size,
        "preprocessing": recipe.preprocessing.fingerprint(),
    }
