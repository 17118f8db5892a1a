"""The model: what it reached, with intervals, which classes it confuses, what it cannot do, and its card."""

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
from cervicyte.evaluation.shipped_figures import shipped_figures
from cervicyte.explanation.panels import percent
from cervicyte.inference.classifier import Classifier
from cervicyte.network.description import Metadata

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
    matrix = confusion_html(classifier.class_names, *_confusion(classifier, about))
    return (
        f'<section class="about card"><header><h2>The model: {html.escape(model_name)}</h2>{trained}'
        f"{original}</header><div>{''.join(parts)}</div><div><h3>Which classes it confuses</h3>{matrix}</div>"
        f'<div class="wide"><h3>Limits</h3>{_list(limits(classifier, about))}</div></section>'
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


def _confusion(classifier: Classifier, about: Metadata) -> tuple[Sequence[Sequence[int]], str, str]:
    """Return the counts of a confusion matrix, which cells they are of, and where they are from."""
    counts = (about.metrics.get("test_confusion_matrix") or {}).get("counts") or ()
    if counts:
        return counts, "Cells of the test part", ""
    shipped = shipped_figures(classifier.weights_sha256)
    if shipped is None or shipped.confusion.class_names != classifier.class_names:
        return (), "", ""
    source = shipped.confusion.source
    return (
        shipped.confusion.counts,
        "Cells of the cross-validation, each answered by a network that had not seen it",
        f"From {source.file}, which “{source.command}” wrote at commit {source.commit}.",
    )


def confusion_html(
    class_names: Sequence[str], counts: Sequence[Sequence[int]], of_what: str = "", source: str = ""
) -> str:
    """Return a confusion matrix, or that there is none.

    Args:
        class_names: in the model's order.
        counts: [C, C], rows are true classes.
        of_what: which cells were counted.
        source: a sentence on where the counts are from.
    """
    if not counts:
        return (
            "<p>The model file holds no confusion matrix: it was trained on all cells. The run folder or the "
            "results in the documentation have that of its cross-validation.</p>"
        )
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in class_names)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{_counts(row, place)}</tr>'
        for place, (name, row) in enumerate(zip(class_names, counts, strict=True))
    )
    said = f'<p class="fine">{html.escape(source)}</p>' if source else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="matrix">'
        f"<caption>{html.escape(of_what)}: rows are true classes, columns answers; below each count its "
        f'share of the row</caption><thead><tr><th scope="col">True class</th>{head}</tr></thead><tbody>'
        f"{rows}</tbody></table></div>{said}"
    )


def _counts(row: Sequence[int], place: int) -> str:
    """Return a row's counts with their shares; `place` is that of the right answer."""
    total = sum(row)
    cells = []
    for column, count in enumerate(row):
        share = count / total if total else 0.0
        kind = "right" if column == place else "wrong"
        shade = f"--share:{share if kind == 'right' else min(1.0, 4 * share):.3f}"  # errors are rare
        text = f"<small>{percent(share)}</small>" if count else ""
        cells.append(f'<td class="{kind}" style="{shade}">{count:,}{text}</td>')
    return "".join(cells)


def limits(classifier: Classifier, about: Metadata) -> list[str]:
    """Return what this model cannot do, a sentence each."""
    return [
        "It judges single cells, not slides and not patients, and no decision about a person may rest on it.",
        absent_sentence(classifier.class_names),
        *(str(caveat) for caveat in about.caveats or ()),
        *classifier.notes,
        "Cells of another laboratory, stain or camera may be answered wrongly with high confidence; the mark "
        "“unlike training cells” finds many of them, not all.",
    ]


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>"
