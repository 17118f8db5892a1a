"""The page of a folder of explanations, and what it and the record beside it say of each cell."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from cervicyte import __version__
from cervicyte.evaluation.answers import Prediction
from cervicyte.explanation.panels import padding_sentence, percent
from cervicyte.explanation.verdict import Verdict
from cervicyte.pages import bullets, counted, page_of

RECORD = "explanation.json"
STYLE = """
main img { max-width: 100%; height: auto; margin-bottom: .75rem }
.verdicts { list-style: none; padding: 0; max-width: 60rem; }
.verdicts li { border-left: 4px solid var(--line); padding: .1rem .7rem; margin: .3rem 0; }
.verdicts .beats { border-color: #2c8a47; }
.verdicts .fails { border-color: #c62f45; }
"""


@dataclass(frozen=True)
class Judged:
    """A map that is shown, and its verdict.

    Attributes:
        layer: of the network.
        question: what the map answers: a class, or one class and not another.
        verdict: on what speaks for it.
    """

    layer: str
    question: str
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """Return what the record says of it, as JSON values."""
        verdict = self.verdict
        return {
            "layer": self.layer,
            "map": self.question,
            "tested": verdict.tested,
            "beats_controls": verdict.beats_controls,
            "probability": round(verdict.probability, 6),
            "score": round(verdict.score, 4) if verdict.tested else None,
            "controls": {name: round(value, 4) for name, value in verdict.controls.items()},
            "forward_passes": verdict.forward_passes,
            "sentence": verdict.sentence,
        }


@dataclass
class Entry:
    """What the page and the record say of one cell; files are relative to the page."""

    name: str
    true_class: str | None
    said: Prediction
    seen_in_training: bool
    question: str = ""
    on_padding: dict[str, float] = field(default_factory=dict)
    verdicts: list[Judged] = field(default_factory=list)  # first of the map shown by itself
    panels: list[tuple[str, str]] = field(default_factory=list)  # (file, what it shows)
    arrays: list[str] = field(default_factory=list)

    @property
    def predicted_class(self) -> str:
        """The class with the highest probability."""
        return self.said.class_name

    @property
    def class_name(self) -> str:
        """The class that it stands under: the true one or, where that is unknown, the predicted one."""
        return self.true_class or self.predicted_class

    def record(self) -> dict[str, Any]:
        """Return what the record says of it, as JSON values."""
        return {
            "name": self.name,
            "true_class": self.true_class,
            "predicted_class": self.predicted_class,
            "confidence": round(self.said.confidence, 6),
            "prediction_set": list(self.said.prediction_set),
            "unlike_percentile": self.said.unlike and round(self.said.unlike.unlike_percentile, 2),
            "verdict": self.said.verdict,
            "seen_in_training": self.seen_in_training,
            "question": self.question,
            "share_on_padding": {layer: round(share, 4) for layer, share in self.on_padding.items()},
            "verdicts": [judged.record() for judged in self.verdicts],
            "files": [*(file for file, _ in self.panels), *self.arrays],
        }


def gallery_page(
    title: str,
    meaning: str,
    entries: Sequence[Entry],
    class_names: Sequence[str],
    notes: Sequence[str],
    provenance: dict[str, Any],
) -> str:
    """Return the page, with links relative to the folder that it lies in.

    Args:
        title: of the method.
        meaning: how the pictures are to be read.
        entries: one a cell.
        class_names: of the model.
        notes: sentences on all cells together.
        provenance: of the record.
    """
    by_class: dict[str, list[Entry]] = {}
    for entry in entries:
        by_class.setdefault(entry.class_name, []).append(entry)
    write = html.escape
    ordered = sorted(by_class)
    links = "".join(
        f'<a href="#class-{number}">{write(name)} ({len(by_class[name])})</a> '
        for number, name in enumerate(ordered)
    )
    parts = [
        f"<p>{write(meaning)}</p>",
        bullets(notes),
        f'<p class=note>All figures: <a href="{RECORD}">{RECORD}</a>.</p>',
        f"<nav>{links}</nav>",
    ]
    for number, name in enumerate(ordered):
        parts.append(f'<section id="class-{number}"><h2>{write(name)}</h2>')
        for entry in by_class[name]:
            parts += _entry_html(entry, class_names, title)
        parts.append("</section>")
    return page_of(
        f"Where the network looked: {counted(len(entries), 'cell')}",
        f"{write(title)}. Written {provenance['written']} by Cervicyte {__version__} "
        f"({provenance['commit']}).",
        [part + "\n" for part in parts],
        style=STYLE,
    )


def _entry_html(entry: Entry, class_names: Sequence[str], title: str) -> Iterator[str]:
    write = html.escape
    said = f"Predicted {entry.predicted_class}, confidence {percent(entry.said.confidence)}"
    yield f"<h3>{write(entry.name)}</h3>"
    if entry.true_class is None:
        truth = "true class unknown"
    elif entry.true_class == entry.predicted_class:
        truth = "this is the true class"
    elif entry.true_class in class_names:
        truth = f"<strong>true class {write(entry.true_class)}</strong>"
    else:
        truth = f"true class {write(entry.true_class)}, none of the model's"
    seen = " <strong>This cell took part in training.</strong>" if entry.seen_in_training else ""
    yield f"<p>{write(said)}; {truth}.{seen}</p>"
    if entry.said.doubt:
        yield f"<p><strong>{write(entry.said.doubt)}</strong></p>"
    if entry.verdicts:
        yield f"<ul class=verdicts>{''.join(map(_verdict_html, entry.verdicts))}</ul>"
    if entry.on_padding:
        shares = (f"{layer}: {padding_sentence(share)}" for layer, share in entry.on_padding.items())
        yield f"<p class=note>{write('; '.join(shares))}.</p>"
    for file, shown in entry.panels:
        alt = f"{title} of {entry.name} for {shown}. {said}."
        link = quote(file)
        yield f'<a href="{link}"><img loading="lazy" src="{link}" alt="{write(alt)}"></a>'
    if entry.arrays:
        links = ", ".join(f'<a href="{quote(file)}">{write(file)}</a>' for file in entry.arrays)
        yield f"<p class=note>Raw: {links}</p>"


def _verdict_html(judged: Judged) -> str:
    verdict, mark = judged.verdict, "untested"
    if verdict.tested:
        mark = "beats" if verdict.beats_controls else "fails"
    head = f"{judged.layer}, {judged.question}: {verdict.short}."
    return f"<li class={mark}><strong>{html.escape(head)}</strong> {html.escape(verdict.sentence)}</li>"
