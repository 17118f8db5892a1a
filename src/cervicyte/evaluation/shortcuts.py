"""Shortcuts: what predicts the class besides the cell itself (Geirhos et al., Nature Mach. Intell. 2020).

A network that is rewarded for the class takes whatever tells it: a slide's stain, a border, how large the
crops of a class were cut. Each statistic of the inspection alone, all of them, and the outer margin of
the crops are given to a small classifier, and compared with chance and with the probe of whole crops.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cervicyte.datasets.inspection_findings import Addition, Finding, Inspection
from cervicyte.datasets.inspection_page import SMALL_PICTURE_PIXELS
from cervicyte.datasets.layouts import Cell
from cervicyte.evaluation.cross_validation import as_json
from cervicyte.evaluation.out_of_fold import fitted_neighbours, out_of_fold_probabilities
from cervicyte.evaluation.predictions import predictions_table
from cervicyte.evaluation.tables import evaluate_predictions
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.images.statistics import STATISTICS
from cervicyte.metrics import Estimate
from cervicyte.pages import picture
from cervicyte.provenance import sha256_of_json

# Crops are cut round the cell, so that its outline touches the middle of the sides and leaves the
# corners. An ellipse 1.1 times as wide and high as the crop hides 99 % or more of 95 in 100 synthetic
# cells (98 % at worst) and leaves a ninth of the picture; one of the crop's own size hides 95 %.
HIDDEN = 1.1
HIDDEN_COLOUR = (124, 116, 104)  # ImageNet's mean, which normalises to nothing
CLEARLY = 0.1  # of the way from chance to always right: where the interval begins, it is a shortcut
SHOWN_OF_CLASS = 4

ALL_STATISTICS, BACKGROUND, WHOLE = "all_statistics", "background_only", "whole_crop"
TITLES = {
    **{name: title for name, (title, _, _) in STATISTICS.items()},
    ALL_STATISTICS: "All of these together",
    BACKGROUND: "Background only",
    WHOLE: "The whole crop",
}
ALSO_BIOLOGY = {
    "size_px": "superficial cells are large and parabasal ones small",
    "lightness": "thick cytoplasm and large nuclei are dark",
    "background": "in a crop that the cell fills, thin cytoplasm lets more light through",
    "redness": "mature and keratinised cytoplasm takes up pink and orange",
    "focus": "the texture of chromatin and cytoplasm counts as sharpness",
    ALL_STATISTICS: "each of them is also what the cells are like",
    BACKGROUND: "cells of one kind lie side by side, and some reach into the corners",
}
"""What each tells of the cells themselves. A finding says it: to predict is not yet to cheat."""


@dataclass(frozen=True)
class Row:
    """How well one thing predicts the class."""

    name: str
    balanced_accuracy: Estimate
    macro_auc: Estimate
    class_auc: dict[str, Estimate]

    @property
    def best_class(self) -> str:
        """The class that it tells best from the rest."""
        return max(self.class_auc, key=lambda label: self.class_auc[label].value)


class BackgroundOnly(Preprocessing):
    """Preprocessing of a crop of which only the corners are left."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Hide the cell, then go on as for any image."""
        return super().__call__(background_only(image))

    def fingerprint(self) -> str:
        """Return a fingerprint that no preprocessing of whole crops has."""
        return sha256_of_json([super().fingerprint(), "background", HIDDEN, HIDDEN_COLOUR])[:16]


def hidden_region(height: int, width: int) -> np.ndarray:
    """Return where the cell is taken to be, bool [height, width]: an ellipse round the middle."""
    down = (np.arange(height) + 0.5) / height * 2 - 1
    across = (np.arange(width) + 0.5) / width * 2 - 1
    return down[:, None] ** 2 + across[None, :] ** 2 < HIDDEN**2


def background_only(image: np.ndarray) -> np.ndarray:
    """Return an image, uint8 [H, W, 3], with everything but the corners in one colour."""
    left = image.copy()
    left[hidden_region(*image.shape[:2])] = HIDDEN_COLOUR
    return left


def row_of(
    name: str,
    cells: Sequence[Cell],
    groups: Sequence[str],
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> Row:
    """Return the figures of out-of-fold probabilities [N, C], with intervals over the joined groups.

    Probabilities are first divided by how frequent each class is, so that chance is the same in every
    data set: one over the number of classes, and 0.5 for the area under the curve.
    """
    labels = [cell.label for cell in cells]
    frequency = np.array([labels.count(label) for label in class_names]) / len(labels)
    evenly = probabilities / frequency
    evenly /= evenly.sum(1, keepdims=True)
    table = predictions_table(cells, labels, evenly, class_names).assign(group=list(groups))
    evaluation = evaluate_predictions(table, class_names)
    return Row(
        name,
        evaluation.overall["balanced_accuracy"],
        evaluation.overall["macro_auc"],
        {label: figures["auc"] for label, figures in evaluation.per_class.items()},
    )


def statistics_rows(table: pd.DataFrame, cells: Sequence[Cell], class_names: Sequence[str]) -> list[Row]:
    """Return a row for each statistic alone and one for all together.

    Args:
        table: path, label, joined group and the columns of `STATISTICS`; one row a cell.
        cells: the same cells in the same order.
        class_names: the classes, sorted.
    """
    targets = np.searchsorted(np.asarray(class_names), table["label"].to_numpy(str))
    groups = list(table["group"])
    rows = []
    for name, columns in (*((one, [one]) for one in STATISTICS), (ALL_STATISTICS, list(STATISTICS))):
        probabilities = out_of_fold_probabilities(
            table[columns].to_numpy(float), targets, groups, len(class_names), fitted_neighbours
        )
        rows.append(row_of(name, cells, groups, probabilities, class_names))
    return rows


def is_clear(row: Row, class_count: int) -> bool:
    """Whether the interval of the balanced accuracy begins clearly above chance. NaN is not clear."""
    chance = 1 / class_count
    return row.balanced_accuracy.low >= chance + CLEARLY * (1 - chance)


def shortcut_addition(inspection: Inspection, rows: Sequence[Row], class_names: Sequence[str]) -> Addition:
    """Return finding, section and content for rows of statistics, background and the whole crop."""
    chance = 1 / len(class_names)
    named = [row for row in rows if row.name != WHOLE and is_clear(row, len(class_names))]
    (whole,) = (row for row in rows if row.name == WHOLE)
    findings = [
        Finding(
            "shortcuts",
            f"{_subject(row.name)} predicts the class: balanced accuracy "
            f"{_text(row.balanced_accuracy)}, where chance is {chance:.2f} and the whole crop "
            f"{whole.balanced_accuracy.value:.2f}, best {row.best_class} (AUC "
            f"{row.class_auc[row.best_class].value:.2f}). Not all of that need be a shortcut, for "
            f"{ALSO_BIOLOGY[row.name]}; but a network can use it without looking at the cell's inside.",
        )
        for row in named
    ]
    content = {
        "balanced_accuracy_of_chance": chance,
        "named_from": chance + CLEARLY * (1 - chance),
        "named": [row.name for row in named],
        "hidden_region": f"ellipse of {HIDDEN} times the crop's height and width",
        "predictors": {
            row.name: {
                "balanced_accuracy": as_json(row.balanced_accuracy),
                "macro_auc": as_json(row.macro_auc),
                "class_auc": {label: as_json(figure) for label, figure in row.class_auc.items()},
            }
            for row in rows
        },
    }
    section = _section_parts(rows, named, class_names, inspection)
    return Addition(
        findings, [("Does anything but the cell predict the class?", section)], {"shortcuts": content}
    )


def _subject(name: str) -> str:
    if name == BACKGROUND:
        return "The background in the corners of the crops alone"
    if name == ALL_STATISTICS:
        *most, last = (title.lower() for title, _, _ in STATISTICS.values())
        return f"The set of {', '.join(most)} and {last}, and nothing else,"
    return f"{TITLES[name]} alone ({STATISTICS[name][2].split(':')[0]})"


def _text(figure: Estimate) -> str:
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def _section_parts(
    rows: Sequence[Row], named: Sequence[Row], class_names: Sequence[str], inspection: Inspection
) -> str:
    chance = 1 / len(class_names)
    body = "".join(
        f"<tr><th scope=row>{html.escape(TITLES[row.name])}</th>"
        f"<td class=number>{_text(row.balanced_accuracy)}</td>"
        f"<td>{_interval(row.balanced_accuracy, chance)}</td>"
        f"<td class=number>{_text(row.macro_auc)}</td>"
        f"<td>{html.escape(row.best_class)}, {row.class_auc[row.best_class].value:.2f}</td>"
        f"<td>{'yes' if row in named else '' if row.name == WHOLE else 'no'}</td></tr>"
        for row in rows
    )
    biology = " ".join(
        f"{TITLES[row.name]}: {ALSO_BIOLOGY[row.name]}."
        for row in rows
        if row.name not in (WHOLE, ALL_STATISTICS)
    )
    return (
        "<p class=note>Each row is a small classifier that sees only this and is tested on groups that it "
        f"has not seen; with 95 % intervals over groups. Chance is {chance:.2f} and an AUC of 0.5: the line "
        "in the drawing. Statistics go into k nearest neighbours, background and whole crop into the same "
        "probe of a frozen network. A shortcut is named where the interval begins at "
        f"{chance + CLEARLY * (1 - chance):.2f} or above, a tenth of the way from chance to always right.</p>"
        "<div class=scroll><table><thead><tr><th>Seen</th><th>Balanced accuracy</th><th></th>"
        "<th>Macro AUC</th><th>Best told class, AUC</th><th>Named</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
        f"<p class=note>To predict is not yet to cheat: some of this is what the cells are like. "
        f"{html.escape(biology)} A split by group does not remove a shortcut that all groups of a class "
        "share; cells from another laboratory show whether it holds there.</p>"
        f"<p class=note>What the probe saw as background: the corners, with an ellipse {HIDDEN} times the "
        "crop's size hidden, since crops are cut round the cell. How much a picture was enlarged still "
        "shows in them, and with it the size.</p>"
        f"{_examples(class_names, inspection)}"
    )


def _interval(figure: Estimate, chance: float) -> str:
    """Return the interval as a small drawing from 0 to 1, with a line at chance."""
    if np.isnan(figure.low):
        return ""
    return (
        '<svg class=strip viewBox="0 0 120 24" role="img" aria-label="interval from 0 to 1">'
        f'<rect x="0" y="11.5" width="120" height="1" opacity=".4"/>'
        f'<rect x="{120 * chance - 0.5:.1f}" y="2" width="1" height="20"/>'
        f'<rect x="{120 * figure.low:.1f}" y="9" width="{max(1.0, 120 * (figure.high - figure.low)):.1f}" '
        'height="6" opacity=".6"/>'
        f'<circle cx="{120 * figure.value:.1f}" cy="12" r="4"/></svg>'
    )


def _examples(class_names: Sequence[str], inspection: Inspection) -> str:
    cell_of = {cell.name: cell for cell in inspection.dataset.cells}
    rows = []
    for label in class_names:
        paths = inspection.statistics.loc[inspection.statistics["label"] == label, "path"].to_list()
        shown = [
            paths[place * len(paths) // SHOWN_OF_CLASS] for place in range(min(SHOWN_OF_CLASS, len(paths)))
        ]
        pictures = " ".join(
            picture(background_only(read_image(cell_of[path].path)), path, SMALL_PICTURE_PIXELS)
            for path in shown
        )
        rows.append(f"<tr><th scope=row>{html.escape(label)}</th><td>{pictures}</td></tr>")
    return f"<div class=scroll><table><tbody>{''.join(rows)}</tbody></table></div>"
