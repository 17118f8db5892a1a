"""The model: what it reached, with intervals, whom it confuses, what it cannot do, and its card."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cervicyte.dashboard.cell_view import absent_sentence
from cervicyte.evaluation.model_card import (
    FIGURE_TITLES,
    RECALL,
    cross_validated,
    figure_text,
    is_defined,
    validated_text,
    validated_title,
)
from cervicyte.inference.classifier import Classifier
from cervicyte.network.description import Metadata
from cervicyte.pages import table

SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "abnormal_called_normal")
"""Of a model's figures those that are shares and are seen first, with the recall of each class."""


def model_html(classifier: Classifier, model_name: str) -> str:
    """Return the model's figures, its confusion matrix and its limits."""
    model = classifier.model
    about = Metadata.model_validate(model.metadata)
    tested: dict[str, Any] = dict(about.metrics.get("test") or {})
    for name, figures in (about.metrics.get("test_per_class") or {}).items():
        tested[f"{RECALL}{name}"] = figures.get("recall")
    parts = [figures_html("On the test part of its data", _of_test(tested))]
    validated = cross_validated(about)
    counts = ", ".join(
        f"{about.cross_validation[key]:,} {key}"
        for key in ("cells", "groups")
        if isinstance(about.cross_validation.get(key), int)
    )
    title = "In a cross-validation of networks trained alike" + (f": {counts}" if counts else "")
    parts.append(figures_html(title, _of_validation(validated)))
    if not any(parts):
        parts = ["<p>No figures were recorded in the model file.</p>"]
    data = about.data_set or about.data
    trained = f"<p>Trained on {html.escape(str(data))}.</p>" if data else ""
    original = "<p>A checkpoint of the original notebook.</p>" if model.original else ""
    counts_of_test = (about.metrics.get("test_confusion_matrix") or {}).get("counts")
    matrix = confusion_html(classifier.class_names, counts_of_test)
    return (
        f'<section class="about card"><div><h2>The model: {html.escape(model_name)}</h2>{trained}{original}'
        f"{''.join(parts)}<h3>Whom it confuses</h3>{matrix}"
        f"<h3>Limits</h3>{_list(limits(classifier, about))}</div></section>"
    )


def figures_html(title: str, rows: Iterable[tuple[str, Mapping[str, Any], str]]) -> str:
    """Return shares with their intervals as marks on a scale from 0 to 1; nothing if there are none.

    Args:
        title: above them.
        rows: name, figure (value, low, high) and its text.
    """
    items = []
    for name, figure, text in rows:
        low, high = figure.get("low"), figure.get("high")
        interval = (
            f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
            if low is not None and high is not None
            else ""
        )
        items.append(
            f'<li><span>{html.escape(name)}</span><span class="range" aria-hidden="true">{interval}'
            f'<b style="left:{100 * figure["value"]:.1f}%"></b></span><span>{html.escape(text)}</span></li>'
        )
    if not items:
        return ""
    return (
        f'<h3>{html.escape(title)}</h3><ul class="figures">{"".join(items)}</ul>'
        '<p class="fine">On a scale from 0 to 100 %. In brackets and as a band: 95 % intervals from a '
        "bootstrap over independent groups of cells.</p>"
    )


def _of_test(figures: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any], str]]:
    for key, figure in figures.items():
        if is_defined(figure) and (key in SHOWN or key.startswith(RECALL)):
            title = FIGURE_TITLES.get(key, key[:1].upper() + key[1:])
            yield title, figure, figure_text(key, figure)


def _of_validation(figures: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any], str]]:
    for key, figure in figures.items():
        if is_defined(figure) and (key in SHOWN or key.startswith(RECALL)):
            yield validated_title(key), figure, validated_text(key, figure)


def confusion_html(class_names: Sequence[str], counts: Sequence[Sequence[int]] | None) -> str:
    """Return the confusion matrix of the test part, or that the model file has none."""
    if not counts:
        return (
            "<p>The model file holds no confusion matrix: it was trained on all cells. The run folder or the "
            "results in the documentation have that of its cross-validation.</p>"
        )
    rows = [
        (html.escape(name), [f"{count:,}" for count in row])
        for name, row in zip(class_names, counts, strict=True)
    ]
    return table(
        ["True class", *class_names], rows, "Cells of the test part: rows are true classes, columns answers"
    )


def limits(classifier: Classifier, about: Metadata) -> list[str]:
    """Return what this model cannot do, a sentence each."""
    return [
        "It judges single cells, not slides and not patients, and no decision about a person may rest on it.",
        absent_sentence(classifier.class_names),
        *(str(caveat) for caveat in about.caveats or ()),
        *classifier.answerer.notes,
        "Cells of another laboratory, stain or camera may be answered wrongly with high confidence; the mark "
        "“unlike training cells” finds many of them, not all.",
    ]


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>"
