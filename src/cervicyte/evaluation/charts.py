"""Charts of an evaluation: PNG files for the run folder, SVG for the report.

Figures are built without pyplot, which keeps global state. Nothing in a file depends on the time or
on the place of the run, so that the same figures give the same bytes.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cervicyte import metrics
from cervicyte.evaluation.tables import UNDEFINED, Evaluation
from cervicyte.provenance import RESEARCH_USE_ONLY, written_atomically

INK = "#1b2027"  # text and axes; in an SVG it becomes the colour of the page's text
MUTED = "#858b94"
FOOTER = "#5c636d"
ACCENT = "#2a6fb0"
SECOND = "#d1621c"
# Of middling lightness: they stand out from a white and from a dark page.
CLASS_COLOURS = (
    "#2f7fc1", "#d1621c", "#2e9b57", "#b14fb8", "#d04a3e",
    "#9a7a3c", "#1d9a9a", "#7a6fd0", "#7f8c2b", "#7d858f",
)  # fmt: skip
ENDS = ("value", "low", "high")
LINES = ("-", "--", "-.", ":")  # with the colours, so that colour is not all that tells lines apart
SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#9ec3e6", "#1f5a94"])
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.color": MUTED,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be named with a $
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
styled = rc_context(STYLE)


@styled
def write_png(figure: Figure, path: Path, remark: str | None = None) -> None:
    """Write a figure with the notice below it, and a remark such as what leaks."""
    notice = f"{RESEARCH_USE_ONLY} {remark or ''}".strip()
    characters = int(figure.get_figwidth() * 16)
    figure.supxlabel(textwrap.fill(notice, characters), fontsize=7, color=FOOTER)
    with written_atomically(path) as partial:
        figure.savefig(partial, dpi=150, metadata={"Software": None, "Description": notice})


def svg_of(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an SVG element that stands in a page and takes on its text colour.

    Args:
        figure: one of those below.
        name: distinguishes the element's ids from those of other charts on the page.
        description: of what is to be seen, for those who cannot see it.
    """
    text = StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", drawing).replace("xlink:href", "href")
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
    view_box = re.search(r'viewBox="[^"]*"', drawing)
    assert view_box is not None  # matplotlib always writes one
    opening = f'<svg role="img" aria-label="{html.escape(description)}" {view_box[0]}>'
    return opening + drawing[drawing.index(">") + 1 :].strip()


@styled
def confusion_figure(evaluation: Evaluation) -> Figure:
    """Draw the confusion matrix twice: counts, and shares of each true class in percent."""
    counts = evaluation.confusion
    shares = metrics.ratio(counts, counts.sum(1, keepdims=True))
    names = [textwrap.fill(name, 18) for name in evaluation.class_names]
    side = max(2.4, 0.62 * len(names))
    figure = _figure(2 * side + 3.4, side + 2.0)
    left, right = figure.subplots(1, 2, sharey=True)
    as_counts = [[f"{count:,}" for count in row] for row in counts]
    as_shares = [[UNDEFINED if np.isnan(share) else f"{100 * share:.1f}" for share in row] for row in shares]
    _matrix(left, shares, as_counts, names, "Cells")
    _matrix(right, shares, as_shares, names, "Share of the true class (%)")
    left.set_ylabel("True class")
    return figure


@styled
def history_figure(history: pd.DataFrame, kept: int) -> Figure:
    """Draw loss and accuracy of training and validation over the epochs, the one that was kept marked.

    The training curves are of augmented images and, in the loss, of smoothed labels: they may well lie
    on the worse side of the validation's.
    """
    figure = _figure(9, 3.7)
    for axes, (key, title) in zip(
        figure.subplots(1, 2), [("loss", "Loss"), ("accuracy", "Accuracy")], strict=True
    ):
        for part, colour, line in (("train", MUTED, "--"), ("validation", ACCENT, "-")):
            label = "training (augmented)" if part == "train" else part
            marker = "o" if len(history) < 30 else ""
            axes.plot(
                history["epoch"], history[f"{part}_{key}"], line, c=colour, marker=marker, ms=3, label=label
            )
        axes.axvline(kept, color=SECOND, linewidth=1, linestyle=":", label=f"kept: epoch {kept}")
        axes.plot(kept, history.loc[history["epoch"] == kept, f"validation_{key}"].iloc[0], "o", c=SECOND)
        axes.set(title=title, xlabel="Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    figure.axes[1].legend(loc="lower right")
    return figure


def best_epoch(history: pd.DataFrame) -> int:
    """Return the epoch of highest validation accuracy, among several that of lowest loss."""
    ranked = history.sort_values(
        ["validation_accuracy", "validation_loss"], ascending=[False, True], kind="stable"
    )
    return int(ranked["epoch"].iloc[0])


@styled
def roc_figure(evaluation: Evaluation) -> Figure:
    """Draw the ROC curve of each class against the rest."""
    from sklearn.metrics import roc_curve  # takes a second to come, and a model card needs it not

    figure, axes = _square(
        len(evaluation.class_names), "1 \N{MINUS SIGN} specificity", "Recall (sensitivity)"
    )
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
    for index, name in enumerate(evaluation.class_names):
        positive = evaluation.truth == index
        if positive.any() and not positive.all():
            false_rate, true_rate, _ = roc_curve(positive, evaluation.probabilities[:, index])
            area = evaluation.per_class[name]["auc"].value
            axes.plot(false_rate, true_rate, **_line_of(index), label=f"{name}: AUC {area:.3f}")
    _legend_below(figure)
    return figure


@styled
def precision_recall_figure(evaluation: Evaluation) -> Figure:
    """Draw the precision-recall curve of each class, with its average precision."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, axes = _square(len(evaluation.class_names), "Recall", "Precision")
    for index, name in enumerate(evaluation.class_names):
        positive = evaluation.truth == index
        if positive.any():
            scores = evaluation.probabilities[:, index]
            precision, recall, _ = precision_recall_curve(positive, scores)
            average = average_precision_score(positive, scores)
            axes.step(
                recall, precision, where="post", **_line_of(index), label=f"{name}: average {average:.3f}"
            )
    _legend_below(figure)
    return figure


@styled
def reliability_figure(evaluation: Evaluation) -> Figure:
    """Draw accuracy against confidence in the bins of the calibration error, and the cells of each bin."""
    confidence = evaluation.probabilities.max(1)
    bins = metrics.calibration_bin(confidence)
    cells = np.bincount(bins, minlength=metrics.CALIBRATION_BINS)
    correct = np.bincount(bins, evaluation.truth == evaluation.predicted, metrics.CALIBRATION_BINS)
    stated = metrics.ratio(np.bincount(bins, confidence, metrics.CALIBRATION_BINS), cells)
    observed = metrics.ratio(correct, cells)
    edges = np.linspace(0, 1, metrics.CALIBRATION_BINS + 1)
    filled = cells > 0

    figure = _figure(4.4, 4.9)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    above.bar(
        edges[:-1][filled], observed[filled], 1 / len(cells), align="edge", color=ACCENT, alpha=0.35,
        edgecolor=ACCENT, label="observed accuracy",
    )  # fmt: skip
    above.plot(stated[filled], observed[filled], "o", color=SECOND, ms=4, label="at the mean confidence")
    above.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle="--", label="perfect calibration")
    above.set(ylabel="Share that is right", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(loc="upper left")
    below.bar(edges[:-1], cells, 1 / len(cells), align="edge", color=MUTED, alpha=0.6)
    below.set(xlabel="Confidence of the predicted class", ylabel="Cells")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return figure


@styled
def learning_curve_figure(rows: Sequence[Mapping[str, Any]], figures: Mapping[str, str]) -> Figure:
    """Draw figures by the number of labelled cells a class, a panel each and a line a method.

    Args:
        rows: see `learning_curve`: method, cells_a_class, and under `figures` value, low and high.
        figures: name -> title, one that ends with "%" in percent.
    """
    figure = _figure(3.6 * len(figures), 4.2)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    panels = np.atleast_1d(figure.subplots(1, len(figures)))
    for axes, (name, title) in zip(panels, figures.items(), strict=True):
        known = [row for row in rows if row["figures"][name]["value"] is not None]
        for index, method in enumerate(methods):
            own = [row for row in known if row["method"] == method]
            if not own:
                continue
            # Side by side, so that one interval does not hide another.
            aside = 0.5 * (index - (len(methods) - 1) / 2) if len(own) > 1 else 0.0
            counts = [row["cells_a_class"] + aside for row in own]
            value, low, high = (np.array([row["figures"][name][end] for row in own]) for end in ENDS)
            axes.errorbar(
                counts, value, [value - low, high - value], label=method, capsize=2, marker="o", markersize=3,
                elinewidth=0.8, **_line_of(index),
            )  # fmt: skip
        title = title.removesuffix(", %") if (share := title.endswith("%")) else title
        axes.set(title=title[0].upper() + title[1:], xlabel="Labelled cells a class")
        axes.set_xticks(sorted({row["cells_a_class"] for row in rows}))
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=len(methods), handlelength=3)
    return figure


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def _square(class_count: int, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure with one square plot of two shares, and room for a legend below."""
    figure = _figure(4.4, 4.5 + 0.19 * class_count)
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    return figure, axes


def _legend_below(figure: Figure) -> None:
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", handlelength=3)


def _line_of(index: int) -> dict[str, Any]:
    return {
        "color": CLASS_COLOURS[index % len(CLASS_COLOURS)],
        "linestyle": LINES[(index + index // len(CLASS_COLOURS)) % len(LINES)],
    }


def _matrix(
    axes: Axes, shares: np.ndarray, texts: Sequence[Sequence[str]], names: Sequence[str], title: str
) -> None:
    """Draw one matrix, shaded by the share of the true class."""
    axes.imshow(np.nan_to_num(shares), cmap=SHADES, vmin=0, vmax=1, aspect="equal")
    for (row, column), share in np.ndenumerate(shares):
        empty = texts[row][column] in ("0", "0.0", UNDEFINED)
        colour = MUTED if empty else "white" if share > 0.8 else INK
        weight = "bold" if row == column and not empty else "normal"
        axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontweight=weight)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(False)
    axes.grid(True, which="minor", color="#d5d9de", alpha=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=title, xlabel="Predicted class")
