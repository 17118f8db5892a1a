"""The files that an evaluation leaves: tables, charts, figures, and one page that shows them all."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cervicyte import metrics
from cervicyte.evaluation import charts
from cervicyte.evaluation.tables import (
    CLASS_METRICS,
    GROUPINGS,
    PREDICTIONS_NAME,
    UNDEFINED,
    Evaluation,
    RollUp,
    confident_mistakes,
    evaluate_predictions,
    per_class_table,
    read_predictions,
    write_table,
)
from cervicyte.metrics import Estimate
from cervicyte.pages import (
    bullets,
    counted,
    facts,
    key_figures,
    page_of,
    picture,
    section,
    table,
    title_of,
)
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text

REPORT_NAME = "report.html"
REPORT_FILES = (
    PREDICTIONS_NAME,
    "per_class_metrics.csv",
    "confusion_matrix.png",
    "training_history.png",
    REPORT_NAME,
    "metrics.json",
)
PICTURE = "Picture"  # heads the column of mistaken cells
MISTAKES_SHOWN = 24

OVERALL_TITLES = {
    "accuracy": ("Accuracy", "cells called what they are"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes"),
    "macro_f1": ("Macro F1", "mean F1 of the classes"),
    "macro_auc": ("Macro AUC", "mean area under the ROC curves"),
    "cohen_kappa": ("Cohen's kappa", "agreement beyond chance, at most 1"),
    "matthews_correlation": ("Matthews correlation", "of truth and prediction, at most 1"),
    "expected_calibration_error": ("Calibration error", "confidence against accuracy, best 0"),
    "brier_score": ("Brier score", "squared error of the probabilities, best 0, worst 2"),
}
CLASS_TITLES = {"f1": "F1", "auc": "AUC"}
NOT_IN_PERCENT = {
    "macro_auc", "auc", "cohen_kappa", "matthews_correlation", "expected_calibration_error", "brier_score",
}  # fmt: skip


def write_evaluation(
    out: Path,
    predictions: pd.DataFrame,
    class_names: Sequence[str],
    *,
    history: pd.DataFrame | None = None,
    context: Mapping[str, Any],
    image_of: Callable[[str], np.ndarray] | None = None,
    seed: int = 0,
    draws: int = metrics.DRAWS,
) -> dict[str, Any]:
    """Write the tables, charts and report of a predictions table; `metrics.json` comes last.

    Args:
        out: the folder; files of these names are replaced.
        predictions: see `predictions.predictions_table`.
        class_names: in the order of the model.
        history: of the training, see `training.loop`; without it there is no chart of it.
        context: JSON values that say what was evaluated: title, data, split, model, recipe, command,
            caveats and whatever else is worth a line; `leak` and `seen_in_training` also stand below the
            charts.
        image_of: path of a cell -> uint8 [H, W, 3]; without it the report shows no cell.
        seed, draws: of the bootstrap over groups.

    Returns:
        The content of `metrics.json`; undefined figures are None.

    Raises:
        UsageError: the table is empty, lacks a column, or does not fit the classes.
    """
    evaluation = evaluate_predictions(predictions, class_names, draws, seed)
    content = figures_of(evaluation, history, context)
    write_table(predictions, out / PREDICTIONS_NAME)
    write_table(per_class_table(evaluation), out / "per_class_metrics.csv")
    remark = " ".join(context[key] for key in ("leak", "seen_in_training") if context.get(key))
    charts.write_png(charts.confusion_figure(evaluation), out / "confusion_matrix.png", remark)
    if history is not None:
        charts.write_png(
            charts.history_figure(history, _kept(history, context)), out / "training_history.png", remark
        )
    write_text(out / REPORT_NAME, report_page(evaluation, predictions, content, history, image_of))
    write_json(out / "metrics.json", content)
    return content


def leave_out_pictures(out: Path, content: Mapping[str, Any], history: pd.DataFrame | None = None) -> None:
    """Write the report of a finished evaluation anew without cells, if it shows any.

    Args:
        out: the folder that `write_evaluation` left.
        content: of its `metrics.json`.
        history: as it was given there.
    """
    path = out / REPORT_NAME
    if not path.is_file() or f">{PICTURE}<" not in path.read_text(encoding="utf-8"):
        return
    predictions, intervals = read_predictions(out), content["intervals"]
    evaluation = evaluate_predictions(
        predictions, content["class_names"], intervals["draws"], intervals["seed"]
    )
    write_text(path, report_page(evaluation, predictions, content, history))


def figures_of(
    evaluation: Evaluation, history: pd.DataFrame | None, context: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all figures as JSON values."""
    content: dict[str, Any] = {
        "notice": RESEARCH_USE_ONLY,
        "cells": evaluation.cells,
        "groups": evaluation.groups,
        "class_names": list(evaluation.class_names),
        "overall": _as_json(evaluation.overall),
        "macro": _as_json(evaluation.macro),
        "per_class": {
            name: {"support": evaluation.support[name], **_as_json(figures)}
            for name, figures in evaluation.per_class.items()
        },
        "confusion_matrix": evaluation.confusion.tolist(),
        "intervals": {
            "level": metrics.LEVEL,
            "method": interval_method(evaluation),
            "draws": evaluation.draws,
            "seed": evaluation.seed,
        },
    }
    if evaluation.roll_up is not None:
        content["roll_up"] = {
            true: {
                f"called_{called}": {
                    "count": evaluation.roll_up.counts[true][called],
                    "of": sum(evaluation.roll_up.counts[true].values()),
                    **_as_json({"rate": evaluation.roll_up.rates[true, called]})["rate"],
                }
                for called in GROUPINGS
            }
            for true in GROUPINGS
        }
    if history is not None:
        content["training"] = {"epochs": len(history), "kept_epoch": _kept(history, context)}
    content["context"] = dict(context)
    content["provenance"] = provenance(context.get("command"))
    return content


def interval_method(evaluation: Evaluation) -> str:
    """Say how the intervals were made, or why there are none."""
    if evaluation.groups < 2:
        return "There are no intervals: all cells belong to one group."
    return (
        f"In brackets: 95 % percentile intervals from {evaluation.draws:,} bootstrap draws of whole groups "
        f"({counted(evaluation.groups, 'group')}). They hold for other cells of the same kind; they do not "
        "contain what another training run, laboratory or stain would change."
    )


# --- the page ------------------------------------------------------------------------------------


def report_page(
    evaluation: Evaluation,
    predictions: pd.DataFrame,
    content: Mapping[str, Any],
    history: pd.DataFrame | None = None,
    image_of: Callable[[str], np.ndarray] | None = None,
) -> str:
    """Return the report as one HTML page that needs no other file and no network."""
    context = content["context"]
    title = str(context.get("title") or "Evaluation")
    mistakes = int((evaluation.truth != evaluation.predicted).sum())
    calibration = _figure_text("expected_calibration_error", evaluation.overall["expected_calibration_error"])
    curves = [
        _chart("ROC curves", "roc", charts.roc_figure(evaluation), "each class against the rest"),
        _chart("Precision-recall curves", "pr", charts.precision_recall_figure(evaluation), "each class"),
        _chart(
            "Reliability",
            "reliability",
            charts.reliability_figure(evaluation),
            f"accuracy against confidence; calibration error {calibration}",
        ),
    ]
    caveats = [str(caveat) for caveat in context.get("caveats", ())]
    sections = [
        section(
            "At a glance",
            _key_figures(evaluation),
            f"<p class=note>{html.escape(interval_method(evaluation))}</p>",
        ),
        section("What to keep in mind", bullets(caveats)) if caveats else "",
        section("Normal, benign, abnormal", *_roll_up_parts(evaluation.roll_up))
        if evaluation.roll_up
        else "",
        section("Each class", _class_table(evaluation)),
        section("Confusion matrix", _confusion_table(evaluation)),
        section("Curves and calibration", f"<div class=charts>{''.join(curves)}</div>"),
        section("Training", *_training_parts(history, _kept(history, context)))
        if history is not None
        else "",
        section(f"The most confident mistakes (of {mistakes:,})", _mistakes(predictions, image_of)),
        section("Where this comes from", *_origin(context, content["provenance"])),
    ]
    cells = f"{counted(evaluation.cells, 'cell')} in {counted(evaluation.groups, 'group')}"
    written = html.escape(content["provenance"]["written"][:10])
    classes = counted(len(evaluation.class_names), "class")
    return page_of(title, f"{cells}, {classes}. Written {written} by Cervicyte.", sections)


def _key_figures(evaluation: Evaluation) -> str:
    figures = []
    for name, (title, meaning) in OVERALL_TITLES.items():
        figure = evaluation.overall[name]
        interval = f"<span class=interval>{_interval_text(name, figure)}</span>"
        figures.append((title, f"<b>{_value_text(name, figure.value)}</b> {interval}", meaning))
    return key_figures(figures)


def _roll_up_parts(roll_up: RollUp) -> list[str]:
    """Say first how many abnormal cells were called normal, then give the whole table."""

    def called(true: str, other: str) -> str:
        count, of = roll_up.counts[true][other], sum(roll_up.counts[true].values())
        return f"{count:,} of {of:,}, {_figure_text('rate', roll_up.rates[true, other])}"

    there = [one for one in GROUPINGS if sum(roll_up.counts[one].values())]
    parts = []
    if "abnormal" in there:
        benign = ""
        if "benign" in there:
            benign = f" Called benign: {called('abnormal', 'benign')}."
        parts.append(
            f"<p class=lead><b>Abnormal cells called normal: {called('abnormal', 'normal')}.</b>{benign}</p>"
        )
    else:
        parts.append("<p class=lead>There is no abnormal cell among those evaluated.</p>")
    if "normal" in there:
        parts.append(f"<p>Normal cells called abnormal: {called('normal', 'abnormal')}.</p>")
    if "benign" in there:
        parts.append(
            f"<p>Benign cells called abnormal: {called('benign', 'abnormal')}; called normal: "
            f"{called('benign', 'normal')}.</p>"
        )
    columns = [*there, *(["unknown"] if any(roll_up.counts[one]["unknown"] for one in there) else [])]
    for one in GROUPINGS:
        if one not in columns and any(roll_up.counts[true][one] for true in there):
            columns.append(one)
    rows = []
    for true in there:
        row = [f"{sum(roll_up.counts[true].values()):,}"]
        for other in columns:
            rate = roll_up.rates.get((true, other))
            share = f"<br><small>{_figure_text('rate', rate)}</small>" if rate else ""
            row.append(f"{roll_up.counts[true][other]:,}{share}")
        rows.append((html.escape(true), row))
    parts.append(
        table(["Truly", "Cells", *(f"Called {one}" for one in columns)], rows, "Cells by grouping of classes")
    )
    parts.append(
        "<p class=note>The grouping is that of the data set's authors. It says what single cells were "
        "called, not what becomes of a patient. Where nothing was seen, or everything, the interval's other "
        "end is Clopper and Pearson's with each group counted once.</p>"
    )
    return parts


def _class_table(evaluation: Evaluation) -> str:
    def cells_of(figures: Mapping[str, Estimate]) -> list[str]:
        return [
            f"{_value_text(metric, figures[metric].value)}<br>"
            f"<small>{_interval_text(metric, figures[metric])}</small>"
            for metric in CLASS_METRICS
        ]

    rows = [
        (html.escape(name), [f"{evaluation.support[name]:,}", *cells_of(figures)])
        for name, figures in evaluation.per_class.items()
    ]
    rows.append(("Mean", [f"{evaluation.cells:,}", *cells_of(evaluation.macro)]))
    titles = [CLASS_TITLES.get(metric, metric.capitalize()) for metric in CLASS_METRICS]
    text = table(["Class", "Cells", *titles], rows, "Each class against the rest", last_is_total=True)
    everything = [figure for figures in evaluation.per_class.values() for figure in figures.values()]
    notes = []
    if any(figure.low == figure.high for figure in everything):
        notes.append(
            "An interval without width, such as [100.0, 100.0], is no certainty: draws cannot hold an error "
            "that was not seen."
        )
    if any(math.isnan(figure.low) and not math.isnan(figure.value) for figure in everything):
        notes.append(f"[{UNDEFINED}]: too few groups for an interval.")
    if any(math.isnan(figure.value) for figure in everything):
        notes.append(f"{UNDEFINED}: not defined, as the class has no cells here or was never called.")
    return text + (f"<p class=note>{' '.join(notes)}</p>" if notes else "")


def _confusion_table(evaluation: Evaluation) -> str:
    shares = metrics.ratio(evaluation.confusion, evaluation.confusion.sum(1, keepdims=True))
    rows = []
    for name, counts, row_shares in zip(evaluation.class_names, evaluation.confusion, shares, strict=True):
        texts = []
        for count, share in zip(counts, row_shares, strict=True):
            shade = 0 if np.isnan(share) else round(0.6 * share, 3)
            texts.append(
                f'<div class=shade style="background:rgba(42,111,176,{shade})">{count:,}'
                f"<br><small>{_value_text('rate', share)}</small></div>"
            )
        rows.append((html.escape(name), texts))
    head = ["True class", *(f"Called {name}" for name in evaluation.class_names)]
    return table(head, rows, "Cells, and their share of the true class", style="matrix")


def _kept(history: pd.DataFrame, context: Mapping[str, Any]) -> int:
    """Return the epoch whose weights were kept: the last, or the best on the validation part."""
    keeps_last = context.get("recipe", {}).get("keep") == "last"
    return int(history["epoch"].iloc[-1]) if keeps_last else charts.best_epoch(history)


def _training_parts(history: pd.DataFrame, kept: int) -> list[str]:
    best = history[history["epoch"] == kept].iloc[0]
    chart = _chart(
        "Training history", "history", charts.history_figure(history, kept), "loss and accuracy by epoch"
    )
    return [
        f"<p>{counted(len(history), 'epoch')}; epoch {int(best['epoch'])} was kept, with a "
        f"validation accuracy of {_value_text('rate', float(best['validation_accuracy']))}.</p>",
        f"<div class='charts wide'>{chart}</div>",
        "<p class=note>Training figures are of augmented images, so that they may lie below those of "
        "validation. The test part took no part in choosing the epoch.</p>",
    ]


def _mistakes(predictions: pd.DataFrame, image_of: Callable[[str], np.ndarray] | None) -> str:
    worst = confident_mistakes(predictions, MISTAKES_SHOWN)
    if worst.empty:
        return "<p>There are none.</p>"
    rows = []
    for _, row in worst.iterrows():
        called = f"{row['true_class']} cell called {row['predicted_class']}"
        shown = [picture(image_of(row["path"]), called)] if image_of is not None else []
        rows.append(
            (
                f"<code>{html.escape(row['path'])}</code>",
                [
                    *shown,
                    html.escape(row["true_class"]),
                    html.escape(row["predicted_class"]),
                    _value_text("rate", row["confidence"]),
                    _value_text("rate", row["p_true_class"]),
                ],
            )
        )
    head = ["Cell", *([PICTURE] if image_of is not None else [])]
    head += ["True class", "Called", "Confidence", "Probability of the true class"]
    return table(head, rows, "Wrong calls, the most confident first", style="mistakes")


def _origin(context: Mapping[str, Any], origin: Mapping[str, Any]) -> list[str]:
    """List what the context and the provenance say; the recipe, being long, folds away."""
    simple = {key: value for key, value in context.items() if not isinstance(value, Mapping)}
    simple = {key: value for key, value in simple.items() if key not in ("title", "caveats")}
    about = {key: value for key, value in origin.items() if key not in ("notice", "versions")}
    parts = [facts("Run", {**simple, **{key: value for key, value in about.items() if value is not None}})]
    for key, value in context.items():
        if isinstance(value, Mapping) and value and key != "recipe":
            parts.append(facts(title_of(key), value))
    parts.append(facts("Versions", origin["versions"]))
    if context.get("recipe"):
        parts.append(f"<details><summary>Recipe</summary>{facts('', context['recipe'])}</details>")
    return parts


# --- pieces of markup ----------------------------------------------------------------------------


def _chart(title: str, name: str, figure: Figure, description: str) -> str:
    drawing = charts.svg_of(figure, name, f"{title}: {description}")
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{drawing}</figure>"


def _value_text(name: str, value: float) -> str:
    if math.isnan(value):
        return UNDEFINED
    return f"{value:.3f}" if name in NOT_IN_PERCENT else f"{100 * value:.1f} %"


def _interval_text(name: str, figure: Estimate) -> str:
    if math.isnan(figure.value):
        return ""
    if math.isnan(figure.low):
        return f"[{UNDEFINED}]"
    ends = [f"{end:.3f}" if name in NOT_IN_PERCENT else f"{100 * end:.1f}" for end in figure[1:]]
    return f"[{', '.join(ends)}]"


def _figure_text(name: str, figure: Estimate) -> str:
    return f"{_value_text(name, figure.value)} {_interval_text(name, figure)}".rstrip()


def _as_json(figures: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {end: None if math.isnan(value) else value for end, value in figure._asdict().items()}
        for name, figure in figures.items()
    }
