"""Figures of a predictions table, with intervals, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from cervicyte import metrics
from cervicyte.datasets.classes import Grouping, grouping_of
from cervicyte.errors import RunFolderError, UsageError
from cervicyte.metrics import Estimate
from cervicyte.provenance import write_text

PREDICTIONS_NAME = "test_predictions.csv"
FIRST_COLUMNS = ("path", "group", "true_class", "predicted_class", "confidence")
ANSWER_COLUMNS = ("abnormal", "prediction_set", "unlike_percentile", "verdict")
"""Stand last, where the model that answered can say so."""
OVERALL_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_auc",
    "cohen_kappa",
    "matthews_correlation",
    "expected_calibration_error",
    "brier_score",
)
CLASS_METRICS = ("accuracy", "precision", "recall", "specificity", "f1", "auc")
ROUNDING = 1e-6  # by which a probability may lie outside of 0 to 1
ANEW = "evaluate the model anew"
UNDEFINED = "\N{EN DASH}"  # what people read where a figure does not exist
GROUPINGS: tuple[str, ...] = get_args(Grouping)


@dataclass(frozen=True)
class RollUp:
    """Classes merged into normal, benign and abnormal: what was called what.

    `counts[true]` has the cells called each grouping, and `"unknown"` for classes without one;
    `rates[true, called]` is the share of the true grouping's cells.
    """

    counts: dict[str, dict[str, int]]
    rates: dict[tuple[str, str], Estimate]


@dataclass(frozen=True)
class Evaluation:
    """All figures of one predictions table, in the model's class order."""

    class_names: tuple[str, ...]
    cells: int
    groups: int
    draws: int
    seed: int
    truth: np.ndarray  # int [N], class indices
    predicted: np.ndarray  # int [N]
    probabilities: np.ndarray  # [N, C]
    confusion: np.ndarray  # int [C, C], rows are true classes
    overall: dict[str, Estimate]
    macro: dict[str, Estimate]  # the mean over classes of each of CLASS_METRICS
    per_class: dict[str, dict[str, Estimate]]  # class -> metric -> figure
    roll_up: RollUp | None  # None unless both normal and abnormal classes are known

    @property
    def support(self) -> dict[str, int]:
        """Cells of each true class."""
        return dict(zip(self.class_names, self.confusion.sum(1).tolist(), strict=True))


def evaluate_predictions(
    predictions: pd.DataFrame, class_names: Sequence[str], draws: int = metrics.DRAWS, seed: int = 0
) -> Evaluation:
    """Compute every figure of a predictions table, with 95 % intervals from a bootstrap over groups.

    Raises:
        UsageError: the table is empty, lacks a column, or names a class that is not in `class_names`.
    """
    truth, predicted, probabilities = arrays_of(predictions, class_names)
    confidence = predictions["confidence"].to_numpy(float)
    count = len(class_names)
    grouping = grouping_of(class_names)
    membership = np.array([[grouping[name] == one for name in class_names] for one in GROUPINGS], float)
    pairs = [(true, called) for true in GROUPINGS for called in GROUPINGS]

    def statistic(weights: np.ndarray) -> np.ndarray:  # [D, N] -> [D, K]
        confusion = metrics.confusion_matrix(truth, predicted, count, weights)
        aucs = [metrics.auc(truth == index, probabilities[:, index], weights) for index in range(count)]
        of_classes = {**metrics.class_metrics(confusion), "auc": np.stack(aucs, axis=-1)}
        merged = membership @ confusion  # [D, 3, C]
        rates = metrics.ratio(merged @ membership.T, merged.sum(-1, keepdims=True))
        overall = [
            metrics.accuracy(confusion),
            metrics.balanced_accuracy(confusion),
            metrics.macro_f1(confusion),
            metrics.mean_of_defined(of_classes["auc"]),
            metrics.cohen_kappa(confusion),
            metrics.matthews_correlation(confusion),
            metrics.expected_calibration_error(confidence, truth == predicted, weights),
            metrics.brier_score(probabilities, truth, weights),
        ]
        macro = [metrics.mean_of_defined(of_classes[name]) for name in CLASS_METRICS]
        columns = [*overall, *macro]
        columns += [of_classes[name][:, index] for index in range(count) for name in CLASS_METRICS]
        columns += [rates[:, GROUPINGS.index(true), GROUPINGS.index(called)] for true, called in pairs]
        return np.stack(columns, axis=-1)

    groups = predictions["group"].to_numpy(str)
    bootstrap = metrics.group_bootstrap(groups, statistic, draws, seed)
    figures = (Estimate(*map(float, one)) for one in zip(*bootstrap, strict=True))
    overall = {name: next(figures) for name in OVERALL_METRICS}
    macro = {name: next(figures) for name in CLASS_METRICS}
    per_class = {name: {metric: next(figures) for metric in CLASS_METRICS} for name in class_names}
    rates = dict(zip(pairs, figures, strict=True))
    return Evaluation(
        class_names=tuple(class_names),
        cells=len(predictions),
        groups=len(np.unique(groups)),
        draws=draws,
        seed=seed,
        truth=truth,
        predicted=predicted,
        probabilities=probabilities,
        confusion=metrics.confusion_matrix(truth, predicted, count).astype(int),
        overall=overall,
        macro=macro,
        per_class=per_class,
        roll_up=_roll_up(truth, predicted, groups, [grouping[name] for name in class_names], rates),
    )


def per_class_table(evaluation: Evaluation) -> pd.DataFrame:
    """Return one row a class and two more: the mean over classes, and the accuracy over all cells.

    Each metric stands with its interval as NAME, NAME_low, NAME_high; what is undefined is missing.
    """
    everything = {**evaluation.per_class, "macro average": evaluation.macro}
    everything["overall"] = {"accuracy": evaluation.overall["accuracy"]}
    rows = []
    for name, figures in everything.items():
        row: dict[str, object] = {"class": name, "support": evaluation.support.get(name, evaluation.cells)}
        for metric in CLASS_METRICS:
            value, low, high = figures.get(metric, (np.nan,) * 3)
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def confident_mistakes(predictions: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the `count` wrong rows of highest confidence, with the probability of the true class."""
    wrong = predictions[predictions["true_class"] != predictions["predicted_class"]]
    worst = wrong.sort_values(["confidence", "path"], ascending=[False, True]).head(count)
    of_truth = [row[f"p_{row['true_class']}"] for _, row in worst.iterrows()]
    return worst[list(FIRST_COLUMNS)].assign(p_true_class=of_truth)


def comparison_table(
    named_tables: Mapping[str, pd.DataFrame], draws: int = metrics.DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Return accuracy and macro F1 of each predictions table, and its paired difference to the first.

    One row a table; every figure stands with its 95 % interval as NAME, NAME_low, NAME_high, and the
    difference in accuracy with the p-value of a permutation test, see `metrics.compare_paired`.

    Raises:
        UsageError: the tables are not of the same cells; the text names one that differs. Or one has cells
            of a class that its model does not know.
    """
    first = next(iter(named_tables.values()))
    rows = []
    for name, table in named_tables.items():
        class_names = [column.removeprefix("p_") for column in table.columns if column.startswith("p_")]
        if unknown := sorted({*table["true_class"]} - {*class_names}):
            raise UsageError(
                f"{name}: the true class {unknown[0]} is none of its model's classes; evaluate it with "
                "--class-map, or on cells of its classes."
            )
        overall = evaluate_predictions(table, class_names, draws, seed).overall
        difference = metrics.compare_paired(first, table, draws, seed)
        figures = {
            "accuracy": overall["accuracy"],
            "macro_f1": overall["macro_f1"],
            "accuracy_difference": difference.accuracy,
            "macro_f1_difference": difference.macro_f1,
        }
        row: dict[str, object] = {"run": name, "cells": len(table)}
        for figure, (value, low, high) in figures.items():
            row |= {figure: value, f"{figure}_low": low, f"{figure}_high": high}
        rows.append(row | {"p_value": difference.p_value})
    return pd.DataFrame(rows)


def read_predictions(run: Path, beside: Sequence[str] = ()) -> pd.DataFrame:
    """Read the predictions of a run folder, or such a file itself.

    Its true classes may be others than those that the model knows: another laboratory's, say.

    Args:
        run: the folder or the file.
        beside: columns that this table has beside the usual ones.

    Raises:
        RunFolderError: there are none, or they are not a predictions table, or a damaged one.
    """
    path = run / PREDICTIONS_NAME if run.is_dir() else run
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read ({error.strerror}); name a finished run.") from error
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{path}: is not a table of predictions; name a finished run.") from error
    try:
        # As a row like any other, since pandas renames a column that stands there twice.
        header = pd.read_csv(StringIO(text), header=None, nrows=1, keep_default_na=False, dtype=str).iloc[0]
        if header.duplicated().any():
            twice = header[header.duplicated()].iloc[0]
            raise RunFolderError(f"{path}: has the column {twice} twice; {ANEW}.")
        table = pd.read_csv(
            StringIO(text), keep_default_na=False, dtype=dict.fromkeys(FIRST_COLUMNS[:4], str)
        )
        missing = {*FIRST_COLUMNS, *beside} - {*table.columns}
        scores = table.columns.drop([*FIRST_COLUMNS, *ANSWER_COLUMNS, *beside], errors="ignore")
        shifted = not isinstance(table.index, pd.RangeIndex)  # rows are longer than the header
        if missing or shifted or scores.empty or not all(name.startswith("p_") for name in scores):
            raise ValueError("wrong columns")
        table = table.astype(dict.fromkeys(["confidence", *scores], float))
    except ValueError as error:  # ParserError and EmptyDataError are such
        raise RunFolderError(f"{path}: is not a table of predictions; name a finished run.") from error
    _refuse_damaged(path, table, list(scores))
    return table


def _refuse_damaged(path: Path, table: pd.DataFrame, scores: Sequence[str]) -> None:
    """Refuse a table without cells, one of shares that are none, and calls that have no probability."""
    if table.empty:
        raise RunFolderError(f"{path}: holds no cell; {ANEW}.")
    for column in ("confidence", *scores):
        wrong = table[~table[column].between(-ROUNDING, 1 + ROUNDING)]  # NaN is between nothing
        if len(wrong):
            cell, value = wrong.iloc[0][["path", column]]
            raise RunFolderError(f"{path}: {cell} has {column} = {value}, which is not from 0 to 1; {ANEW}.")
    unknown = table[~("p_" + table["predicted_class"]).isin(scores)]
    if len(unknown):
        cell, called = unknown.iloc[0][["path", "predicted_class"]]
        raise RunFolderError(f"{path}: {cell} is called {called}, but there is no column p_{called}; {ANEW}.")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as plain CSV, for any reader; what is undefined is left empty."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def arrays_of(
    predictions: pd.DataFrame, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth, int [N], and predictions, int [N], as class indices, and probabilities [N, C].

    Raises:
        UsageError: see `evaluate_predictions`.
    """
    scores = [f"p_{name}" for name in class_names]
    missing = [column for column in (*FIRST_COLUMNS, *scores) if column not in predictions]
    if missing:
        raise UsageError(
            f"The predictions lack the column {missing[0]}; evaluate with the classes of the model."
        )
    if predictions.empty:
        raise UsageError("There is no cell to evaluate; choose a part of the split that has some.")
    index_of = {name: index for index, name in enumerate(class_names)}
    for column in ("true_class", "predicted_class"):
        unknown = set(predictions[column]) - set(class_names)
        if unknown:
            raise UsageError(
                f"The {column.replace('_', ' ')} {min(map(str, unknown))} is none of the model's classes; "
                "give its counterpart with --class-map."
            )
    probabilities = predictions[scores].to_numpy(float)
    broken = ~np.isfinite(probabilities).all(1)
    if broken.any():
        raise UsageError(
            f"{predictions['path'][broken].iloc[0]}: its probabilities are not numbers; train the model anew "
            "with a lower learning rate."
        )
    truth, predicted = (
        predictions[column].map(index_of).to_numpy(np.int64) for column in ("true_class", "predicted_class")
    )
    return truth, predicted, probabilities


def _roll_up(
    truth: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    grouping: Sequence[Grouping | None],
    rates: Mapping[tuple[str, str], Estimate],
) -> RollUp | None:
    """Count cells by grouping, and widen the intervals of what was never or always seen."""
    if not {"normal", "abnormal"} <= set(grouping):
        return None
    named = np.array([one or "unknown" for one in grouping])
    true, called = named[truth], named[predicted]
    counts = {
        one: {other: int(((true == one) & (called == other)).sum()) for other in (*GROUPINGS, "unknown")}
        for one in GROUPINGS
    }
    widened = {
        (one, other): metrics.widened(rate, len(np.unique(groups[true == one])))
        for (one, other), rate in rates.items()
    }
    return RollUp(counts, widened)
