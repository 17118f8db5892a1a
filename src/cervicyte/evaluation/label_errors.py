"""Likely label errors: cells that a classifier of all other groups would label otherwise.

Confident learning (Northcutt, Jiang & Chuang, J. Artif. Intell. Res. 2021), as cleanlab computes it: a
label is doubted if another class is more probable than that class usually is where it is the label, in
as many cells as the estimated noise of each pair of classes allows. The probe is wrong, too: what is
listed are cells to look at, not errors.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from cervicyte import metrics
from cervicyte.datasets.inspection import LABEL_ERRORS_FILE
from cervicyte.datasets.inspection_findings import Addition, Finding, Inspection
from cervicyte.datasets.inspection_page import picture_of
from cervicyte.datasets.layouts import Cell
from cervicyte.evaluation.cross_validation import as_json, bootstrap_estimates

COLUMNS = (
    "path", "group", "given_label", "suggested_label", "p_given", "p_suggested", "label_quality",
    "twins_labelled",
)  # fmt: skip
SHOWN = 96  # in the gallery; all stand in the table
PAIRS_NAMED = 3  # in the finding
WEAK = 0.8  # a probe that agrees with fewer labels is likelier to be wrong than they are


def doubted_labels(
    table: pd.DataFrame, probabilities: np.ndarray, class_names: Sequence[str]
) -> pd.DataFrame:
    """Return the cells whose label is likely wrong, the likeliest first, with the columns `COLUMNS`.

    `label_quality` is cleanlab's normalised margin, 0 to 1: half of (1 + probability of the given label
    - probability of the likeliest other); low is doubtful (Kuan & Mueller, ICML DataPerf 2022).
    `twins_labelled` is empty here, see `with_twins`.

    Args:
        table: path, label and group, one row a cell.
        probabilities: out of fold, [N, C].
        class_names: the order of the C columns; each has cells in the table.
    """
    names = np.asarray(class_names)
    given = np.searchsorted(names, table["label"].to_numpy(str))
    # One process: starting others costs more than it gains.
    doubted = find_label_issues(given, probabilities, n_jobs=1)
    quality = get_label_quality_scores(given, probabilities, method="normalized_margin")
    suggested = probabilities.argmax(1)
    rows = np.flatnonzero(doubted & (suggested != given))
    rows = rows[np.argsort(quality[rows], kind="stable")]
    return pd.DataFrame(
        {
            "path": table["path"].to_numpy()[rows],
            "group": table["group"].to_numpy()[rows],
            "given_label": names[given[rows]],
            "suggested_label": names[suggested[rows]],
            "p_given": probabilities[rows, given[rows]].round(4),
            "p_suggested": probabilities[rows, suggested[rows]].round(4),
            "label_quality": quality[rows].round(4),
            "twins_labelled": "",
        },
        columns=list(COLUMNS),
    )


def with_twins(doubted: pd.DataFrame, inspection: Inspection) -> pd.DataFrame:
    """Fill in which other labels a cell's twins and copies bear: evidence that the probe knows not of."""
    label_of = {cell.name: cell.label for cell in inspection.dataset.cells}
    others: dict[str, set[str]] = {}
    for finding in inspection.findings:
        if finding.kind == "label-conflicts":
            for one, other in finding.pairs:
                others.setdefault(one, set()).add(label_of[other])
                others.setdefault(other, set()).add(label_of[one])
    labels = ["; ".join(sorted(others.get(path, ()))) for path in doubted["path"]]
    return doubted.assign(twins_labelled=labels)


def label_error_addition(
    inspection: Inspection, table: pd.DataFrame, probabilities: np.ndarray, class_names: Sequence[str]
) -> tuple[Addition, pd.DataFrame]:
    """Return finding, section and content, and the table of `label_errors.csv`. See `doubted_labels`."""
    doubted = with_twins(doubted_labels(table, probabilities, class_names), inspection)
    truth = np.searchsorted(np.asarray(class_names), table["label"].to_numpy(str))
    correct = probabilities.argmax(1) == truth
    (agreement,) = bootstrap_estimates(
        table["group"], lambda weights: metrics.ratio(weights @ correct, weights.sum(-1))[:, None]
    )
    findings = []
    if len(doubted):
        pairs = Counter(zip(doubted["given_label"], doubted["suggested_label"], strict=True))
        which = ", ".join(
            f"{given} that looks like {suggested} {count:,}"
            for (given, suggested), count in pairs.most_common(PAIRS_NAMED)
        )
        more = "most" if len(pairs) > PAIRS_NAMED else "all"
        is_one = len(doubted) == 1
        verb = "is likely wrong or its cell" if is_one else "are likely wrong or their cells"
        findings.append(
            Finding(
                "label-errors",
                f"{len(doubted):,} of {len(table):,} labels {verb} hard to tell "
                f"({more} of them: {which}); look before changing anything. {_trust(agreement)}",
                tuple(doubted["path"]),
            )
        )
    content = {
        "method": "cleanlab, confident learning on out-of-fold probabilities of logistic regression on "
        "frozen ResNet-50 features",
        "cells_judged": len(table),
        "probe_agrees_with_label": as_json(agreement),
        "cells": doubted.to_dict("records"),
    }
    section = _section_parts(doubted, len(table), agreement, inspection.dataset.cells)
    return (
        Addition(findings, [("Likely label errors", section)], {"label_errors": content}),
        doubted,
    )


def _section_parts(
    doubted: pd.DataFrame, judged: int, agreement: metrics.Estimate, cells: Sequence[Cell]
) -> str:
    method = (
        "<p class=note>A classifier (logistic regression on features of a frozen ImageNet network) that saw "
        f"no cell of the same group would label these of {judged:,} cells otherwise, with as much confidence "
        f"as it usually has where it is right. {_trust(agreement)} Look before changing anything, and let a "
        "cytologist decide. The number is cleanlab's label quality, from 0 for the most doubtful to 1.</p>"
    )
    if doubted.empty:
        return "<p class=lead>None of the labels is doubted.</p>" + method
    cell_of = {cell.name: cell for cell in cells}
    shown = doubted.head(SHOWN).to_dict("records")
    figures = "".join(_figure(row, cell_of[row["path"]]) for row in shown)
    count = f"The first {SHOWN} of {len(doubted):,}" if len(doubted) > SHOWN else f"All {len(doubted):,}"
    return (
        f"{method}{_pairs_table(doubted)}<p class=note>{count}, the most doubtful first; all stand in "
        f"{LABEL_ERRORS_FILE} and inspection.json.</p><div class=pairs>{figures}</div>"
    )


def _trust(agreement: metrics.Estimate) -> str:
    """Say how far the probe can be trusted, which tells labels from hard cells."""
    figure = (
        f"The probe agrees with {agreement.value:.1%} of the labels (95 % interval {agreement.low:.1%} to "
        f"{agreement.high:.1%})"
    )
    if agreement.value < WEAK:
        return f"{figure}, so most of these are its own mistakes: it tells these classes apart too poorly."
    return f"{figure}, so some of these are its own mistakes."


def _figure(row: Mapping[Any, Any], cell: Cell) -> str:
    twin = (
        f"<span><b>A twin is labelled {html.escape(row['twins_labelled'])}</b></span>"
        if row["twins_labelled"]
        else ""
    )
    return (
        f"<figure class=pair><div>{picture_of(cell)}</div>"
        f"<div><span>Labelled <b>{html.escape(row['given_label'])}</b>, {row['p_given']:.1%}</span>"
        f"<span>Looks like <b>{html.escape(row['suggested_label'])}</b>, {row['p_suggested']:.1%}</span>"
        f"{twin}</div><figcaption>{row['label_quality']:.2f}</figcaption>"
        f'<code style="grid-column:1/-1">{html.escape(row["path"])}</code></figure>'
    )


def _pairs_table(doubted: pd.DataFrame) -> str:
    counts = pd.crosstab(doubted["given_label"], doubted["suggested_label"])
    head = "".join(f"<th scope=col>{html.escape(str(name))}</th>" for name in counts.columns)
    rows = "".join(
        f"<tr><th scope=row>{html.escape(str(name))}</th>"
        + "".join(f"<td class=number>{count or '&middot;'}</td>" for count in row)
        + "</tr>"
        for name, row in zip(counts.index, counts.to_numpy(), strict=True)
    )
    return (
        "<div class=scroll><table><thead><tr><th>Labelled (rows), looks like (columns)</th>"
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
