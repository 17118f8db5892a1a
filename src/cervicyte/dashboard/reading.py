"""Reading blind: the reader calls a cell first, then sees what the model says; how far the two agree."""

from __future__ import annotations

import csv
import html
import io
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cervicyte.dashboard.cell_view import bars_html, doubt_html
from cervicyte.dashboard.limits import HOW_LONG
from cervicyte.dashboard.markup import picture, smaller
from cervicyte.dashboard.reading_log import FORMULA_SIGNS, Agreement, ReadingLog, agreement_of
from cervicyte.dashboard.worklist import Entry, Worklist
from cervicyte.errors import UsageError
from cervicyte.evaluation.prediction_sets import SEPARATOR
from cervicyte.explanation.panels import percent
from cervicyte.inference.classifier import Classifier
from cervicyte.pages import counted, table
from cervicyte.provenance import RESEARCH_USE_ONLY

ANOTHER_CELL = (
    "This reading was not kept: the list has gone on in another tab, where the cell was read already; go on "
    "with what is shown now."
)
CANNOT_SAY = ""  # the label of a cell that is none of the classes, or cannot be told


class AnotherCell(UsageError):
    """A reading is of a cell that was read already."""


@dataclass(frozen=True)
class Taken:
    """One reading.

    Attributes:
        entry: the cell; it has a prediction.
        label: what the reader calls it; empty if nothing.
        remark: the reader's.
        blind: whether the reader had not seen what the model says.
        time: UTC, ISO 8601.
    """

    entry: Entry
    label: str
    remark: str
    blind: bool
    time: str


@dataclass
class Reading:
    """The cells of one page that are read blind.

    Attributes:
        cells: in their order of arrival; what could not be read stands there with its error.
        taken: readings so far.
        revealed: whether the last one is shown beside the model's answer.
    """

    cells: Worklist
    taken: list[Taken] = field(default_factory=list)
    revealed: bool = False

    @property
    def waiting(self) -> list[Entry]:
        """The cells that are still to be read."""
        done = {one.entry.key for one in self.taken}
        return [one for one in self.cells.entries if one.prediction is not None and one.key not in done]

    def record(
        self,
        classifier: Classifier,
        cell: str,
        label: str,
        remark: str,
        seen: set[str],
        log: ReadingLog | None,
    ) -> None:
        """Keep what the reader says of the next cell, and reveal the answer.

        Args:
            classifier: that answered.
            cell: the key of the cell that the reader saw.
            label: a class, or `CANNOT_SAY`; others are taken for the latter.
            remark: the reader's.
            seen: hashes of the files whose answers this page has shown.
            log: that keeps readings on the disk, if the user turned it on.

        Raises:
            UsageError: the remark is too long.
            AnotherCell: the cell was read already: two tabs may show one list.
            ReadingLogError: the log cannot be written; nothing is kept then.
        """
        label = label if label in classifier.class_names else CANNOT_SAY
        last = self.taken[-1] if self.revealed else None
        if last and (str(last.entry.key), last.label, last.remark) == (cell, label, remark):
            return  # sent twice
        if self.revealed or not self.waiting or cell != str(self.waiting[0].key):
            raise AnotherCell(ANOTHER_CELL)
        entry = self.waiting[0]
        assert entry.prediction is not None
        blind = entry.sha256 not in seen | {one.entry.sha256 for one in self.taken}
        if log is not None:
            model = classifier.weights_sha256
            log.add(entry.sha256, model, entry.prediction, label, remark, blind=blind)
        self.taken.append(Taken(entry, label, remark, blind, datetime.now(UTC).isoformat(timespec="seconds")))
        self.revealed = True

    def agreement(self) -> Agreement:
        """Return how far reader and model agree on what was read blind and given a class."""
        return agreement_of(
            [
                (one.label, one.entry.prediction.class_name)
                for one in self.taken
                if one.blind and one.label != CANNOT_SAY and one.entry.prediction is not None
            ]
        )

    def csv(self, classifier: Classifier) -> str:
        """Return all readings as a table; text that a spreadsheet would compute gets an apostrophe."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            [
                *("number", "time", "file", "image_sha256", "model_sha256", "blind", "label", "remark"),
                *("predicted_class", "confidence", "prediction_set", "verdict", "notice"),
            ]
        )
        model = classifier.weights_sha256
        for number, one in enumerate(self.taken, start=1):
            said = one.entry.prediction
            assert said is not None
            read = [str(one.blind).lower(), *map(_plain, (one.label, one.remark))]
            answer = [_plain(said.class_name), f"{said.confidence:.6f}"]
            answer += [_plain(SEPARATOR.join(said.prediction_set)), said.verdict]
            origin = [number, one.time, _plain(one.entry.name), one.entry.sha256, model]
            writer.writerow([*origin, *read, *answer, RESEARCH_USE_ONLY])
        return text.getvalue()


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text


# --- markup --------------------------------------------------------------------------------------


def reading_html(reading: Reading, class_names: tuple[str, ...]) -> str:
    """Return the cell that is to be read, or the last one beside the model's answer."""
    if reading.revealed:
        return _revealed(reading)
    if not reading.waiting:
        return DONE if reading.taken else NOTHING_TO_READ
    entry = reading.waiting[0]
    options = "".join(
        f'<label><input type="radio" name="label" value="{html.escape(name)}" required> '
        f"<kbd>{number}</kbd> {html.escape(name)}</label>"
        for number, name in enumerate(class_names, start=1)
    )
    options += (
        f'<label><input type="radio" name="label" value="{CANNOT_SAY}" required> '
        f"<kbd>{len(class_names) + 1}</kbd> Other, or cannot say</label>"
    )
    return (
        f'<section class="read-one card" aria-label="Cell to be read">{_head(reading, entry)}'
        f'<div class="read-grid">{_stage(entry)}<form data-send="record" aria-label="Your reading">'
        f'<input type="hidden" name="cell" value="{entry.key}">'
        f'<fieldset><legend>What is it?</legend>{options}</fieldset><label class="remark">Remark '
        '<textarea name="remark" rows="3" maxlength="4000"></textarea></label>'
        '<button type="submit" class="main-action">Record and reveal</button>'
        '<p class="fine">The model has answered already; its answer is shown once yours is kept. A reading '
        f"cannot be changed afterwards. Keys: <kbd>1</kbd> to <kbd>{len(class_names) + 1}</kbd> choose, "
        "<kbd>Enter</kbd> records and goes on.</p></form></div></section>"
    )


def _revealed(reading: Reading) -> str:
    taken = reading.taken[-1]
    prediction = taken.entry.prediction
    assert prediction is not None
    own = html.escape(taken.label) or "no class"
    agrees = taken.label == prediction.class_name
    mark = "agrees" if agrees else ("differs" if taken.label else "open")
    said = {"agrees": "You agree", "differs": "You differ", "open": "You gave no class"}[mark]
    not_blind = (
        ""
        if taken.blind
        else '<p class="doubt">The model\'s answer to this cell was shown on this page before, so that your '
        "reading does not count as blind.</p>"
    )
    following = "Next cell" if reading.waiting else "Finish"
    groupings = reading.cells.groupings
    return (
        f'<section class="read-one card" aria-label="Answer">{_head(reading, taken.entry)}'
        f'<div class="read-grid">{_stage(taken.entry)}<div aria-live="polite">'
        f'<p class="outcome {mark}">{said}</p><dl class="both"><dt>You</dt><dd>{own}</dd><dt>Model</dt><dd>'
        f"{html.escape(prediction.class_name)}, {percent(prediction.confidence)}</dd></dl>{not_blind}"
        f"{doubt_html(prediction)}{bars_html(prediction, groupings)}"
        f'<p class="fine">File: {html.escape(taken.entry.name)}</p>'
        f'<button type="button" class="main-action" data-send="next" data-autofocus>{following}</button>'
        "</div></div></section>"
    )


def _head(reading: Reading, entry: Entry) -> str:
    """Return where one is in the list; the file's name may tell the class, and is left out."""
    total = sum(one.prediction is not None for one in reading.cells.entries)
    place = len(reading.taken) + (not reading.revealed)
    return f'<p class="kicker">Cell {place} of {total} · {entry.width} &times; {entry.height} pixels</p>'


def _stage(entry: Entry) -> str:
    image = smaller(entry.image())
    height, width = image.shape[:2]
    return (
        '<div class="stage" tabindex="0" role="group" aria-label="Cell. Plus and minus zoom, 0 fits." '
        f'style="--ratio:{width / height:.4f}"><div class="pane">'
        f"{picture(image, 'The cell as it was read', 'original')}</div></div>"
    )


def summary_html(reading: Reading, logged: bool) -> str:
    """Return how far reader and model agree so far, and where the readings are."""
    agreement = reading.agreement()
    count = len(reading.taken)
    failed = "".join(
        f'<p class="failed">{html.escape(one.error)}</p>' for one in reading.cells.entries if one.error
    )
    kept = (
        "Your readings are kept in the reading log of this server; on this page they stand"
        if logged
        else "Save your readings: they are kept for this page alone,"
    )
    matrix = ""
    if agreement.cells:
        rows = [
            (html.escape(label), [str(value) for value in row])
            for label, row in zip(agreement.labels, agreement.table.tolist(), strict=True)
        ]
        matrix = table(["You", *agreement.labels], rows, "Rows: you; columns: the model; read blind")
    save = (
        '<button type="button" class="plain" data-save="csv" data-of="reading">Save readings as CSV</button>'
        if count
        else ""
    )
    return (
        f'{failed}<section class="summary card"><h2>Agreement</h2><p>{html.escape(agreement.sentence)}</p>'
        f'{matrix}<p class="fine">{counted(count, "reading")}. {kept} {HOW_LONG}. The model is no '
        f"gold standard: where you differ, either may be right.</p>{save}</section>"
    )


NOTHING_TO_READ = """
<div class="empty card"><p>Read first, then reveal</p><p class="fine">Drop images of cells into the field. You
say what each cell is before the model's answer is shown; the page counts how far you agree.</p></div>
"""

DONE = """
<div class="empty card"><p>All cells are read</p><p class="fine">Save your readings, or drop
further cells.</p></div>
"""
