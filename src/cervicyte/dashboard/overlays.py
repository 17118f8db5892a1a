"""The overlays of a whole worklist in one archive, each map held against controls before it goes out.

That takes many passes through the network a cell, so that it runs beside the page, a cell at a time: each has
its own place in the queue, and between two of them others go first. Only one cell lies in memory; the archive
grows in the server's private folder, and goes with the list. What has no overlay is named with its reason.
"""

from __future__ import annotations

import contextlib
import csv
import html
import io
import secrets
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cervicyte import __version__
from cervicyte.dashboard.batching import Batcher, Busy, QueuedClassifier, log_failure
from cervicyte.dashboard.cell_view import absent_sentence, look
from cervicyte.dashboard.downloads import Source, overlay_png, safe_name
from cervicyte.dashboard.reading_log import no_formula
from cervicyte.dashboard.worklist import Entry, Worklist
from cervicyte.explanation import cam
from cervicyte.explanation.verdict import Verdict
from cervicyte.inference.classifier import Classifier
from cervicyte.pages import agreeing, counted
from cervicyte.progress import duration
from cervicyte.provenance import RESEARCH_USE_ONLY

LONGEST_PAUSE = 5.0  # seconds that a cell stands back for those who wait, so that it is made some day
SECONDS_TO_RETRY = 1.0  # where the queue is full
INDEX, README = "index.csv", "README.txt"

BEATS, FAILS, UNTESTED = "beats_controls", "does_not_beat_controls", "not_tested"
DECLINED, ERROR = "declined", "error"
OUTCOMES = {
    BEATS: "Maps that beat the controls",
    FAILS: "Maps that do not beat the controls: do not rely on where they point",
    UNTESTED: "Maps that were not tested against controls: do not rely on where they point",
    DECLINED: "No overlay, as the model takes the image for no single cell",
    ERROR: "No overlay, as there is no answer or no map",
}
NOT_MADE = "The server failed to make this overlay; its log says where."
NO_VERDICTS = "The map was not tested against controls: the dashboard was started without verdicts."


@dataclass(frozen=True)
class Outcome:
    """What came of one file of the list.

    Attributes:
        number: of its row in the worklist's CSV, from 1.
        entry: of the worklist.
        kind: of `OUTCOMES`.
        sentence: the map's verdict, or why there is no overlay.
        overlay: the picture's name in the archive; empty if there is none.
        verdict: on the map, if it was held against controls.
    """

    number: int
    entry: Entry
    kind: str
    sentence: str
    overlay: str = ""
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Overlays:
    """An archive of a list's overlays.

    Attributes:
        path: of the archive.
        bytes: that it takes of the disk.
        outcomes: of each file, in the order of the worklist's CSV.
    """

    path: Path
    bytes: int
    outcomes: tuple[Outcome, ...]

    def is_of(self, worklist: Worklist) -> bool:
        """Return whether it is of this list as it is now: no files have come, no other model answers."""
        return [one.entry for one in self.outcomes] == worklist.sorted()

    def remove(self) -> None:
        """Remove the archive; one that is just being sent goes with the server's folder on Windows."""
        with contextlib.suppress(OSError):
            self.path.unlink()


class Stopped(Exception):
    """Nobody wants the overlays any more."""


@dataclass
class MakingOverlays:
    """Overlays at work: how far they are, for the page.

    Attributes:
        total, done: files of the list.
        bytes: that they take of the disk by now.
        error: why they came to nothing, a sentence.
        is_done: whether it has ended.
    """

    total: int
    done: int = 0
    bytes: int = 0
    error: str = ""
    is_done: bool = False
    began: float = field(default_factory=time.monotonic)
    _stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def is_stopped(self) -> bool:
        """Whether they are not wanted any more."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Let the cell that is at work be the last."""
        self._stopped.set()

    def go_on(self, after: float = 0) -> None:
        """Go on after so many seconds.

        Raises:
            Stopped: they are not wanted any more.
        """
        if self._stopped.wait(after):
            raise Stopped

    @property
    def seconds_left(self) -> float | None:
        """How long it still takes at the rate so far; None before the first is done."""
        if not self.done:
            return None
        return (time.monotonic() - self.began) / self.done * (self.total - self.done)


def make_overlays(
    source: Source,
    entries: Sequence[Entry],
    batcher: Batcher,
    making: MakingOverlays,
    folder: Path,
    *,
    with_verdicts: bool = True,
    before_each: Callable[[], None] = lambda: None,
) -> Overlays:
    """Make the overlays of a list: of each cell the map of its predicted class, as it is shown at first.

    Args:
        source: what downloads are made of.
        entries: of the list, in the order of its CSV.
        batcher: gives the turns.
        making: is told how far it is, and says when to stop.
        folder: private; takes the archive.
        with_verdicts: whether each map is held against controls.
        before_each: is called before each cell; what it raises ends the work.

    Raises:
        Stopped: nobody wants them any more.
        OSError: the disk takes no more.
    """
    path = folder / f"overlays-{secrets.token_hex(16)}.zip"
    outcomes = []
    try:
        # Pictures do not get smaller by being packed again.
        with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
            for number, entry in enumerate(entries, 1):
                making.go_on()
                before_each()
                name = f"overlays/{number:0{max(3, len(str(len(entries))))}}_{safe_name(entry.name)}.png"
                outcome, picture = _of_cell(source, number, entry, name, batcher, making, with_verdicts)
                outcomes.append(outcome)
                if picture is not None:
                    archive.writestr(name, picture)
                    making.bytes += len(picture)
                making.done += 1
            archive.writestr(INDEX, index_csv(outcomes))
            archive.writestr(README, "\n".join(readme(source, outcomes)) + "\n")
        return Overlays(path, path.stat().st_size, tuple(outcomes))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _of_cell(
    source: Source,
    number: int,
    entry: Entry,
    name: str,
    batcher: Batcher,
    making: MakingOverlays,
    with_verdicts: bool,
) -> tuple[Outcome, bytes | None]:
    """Return what comes of one file, and its picture."""
    if entry.prediction is None:
        return Outcome(number, entry, ERROR, entry.error), None
    if entry.prediction.verdict == "not_a_cell":
        return Outcome(number, entry, DECLINED, entry.prediction.sentence), None

    def draw(unqueued: Classifier) -> tuple[bytes, Verdict | None]:
        looked = look(unqueued, entry)
        verdict = looked.judge(unqueued, looked.asked) if with_verdicts else None
        return overlay_png(source, looked), verdict

    try:
        picture, verdict = _in_turn(source.classifier, draw, batcher, making)
    except Stopped:
        raise
    except Exception as error:  # one cell's failure is not to be the others'
        log_failure(error)
        return Outcome(number, entry, ERROR, NOT_MADE), None
    if verdict is None:
        return Outcome(number, entry, UNTESTED, NO_VERDICTS, name), picture
    kind = (BEATS if verdict.beats_controls else FAILS) if verdict.tested else UNTESTED
    return Outcome(number, entry, kind, verdict.sentence, name, verdict), picture


def _in_turn(
    classifier: QueuedClassifier,
    draw: Callable[[Classifier], tuple[bytes, Verdict | None]],
    batcher: Batcher,
    making: MakingOverlays,
) -> tuple[bytes, Verdict | None]:
    """Draw when those who look at a page have had their turn, however long that takes."""
    while True:
        batcher.until_idle(LONGEST_PAUSE)
        making.go_on()
        try:
            return classifier.aside(draw)
        except Busy:
            making.go_on(SECONDS_TO_RETRY)


# --- what stands beside the pictures -------------------------------------------------------------


def index_csv(outcomes: Iterable[Outcome]) -> str:
    """Return a row for each file of the list, in the order and with the numbers of its CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["number", "overlay", "path", "sha256", "predicted_class", "outcome", "score", "sentence", "notice"]
    )
    for one in outcomes:
        prediction = one.entry.prediction
        writer.writerow(
            [
                one.number,
                one.overlay,
                no_formula(one.entry.name),
                one.entry.sha256,
                "" if prediction is None else prediction.class_name,
                one.kind,
                f"{one.verdict.score:z.4f}" if one.verdict is not None and one.verdict.tested else "",
                no_formula(one.sentence),
                RESEARCH_USE_ONLY,
            ]
        )
    return text.getvalue()


def readme(source: Source, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines that say what the archive holds, of which model, and which maps not to rely on."""
    classifier = source.classifier
    method = cam.METHODS[cam.DEFAULT_METHOD].title
    yield RESEARCH_USE_ONLY
    yield ""
    written = datetime.now(UTC).isoformat(timespec="seconds")
    yield f"Overlays of a worklist, Cervicyte {__version__}, {written}"
    yield source.model_line
    yield f"Preprocessing fingerprint {classifier.model.preprocessing.fingerprint()}"
    yield f"Maps: what spoke for the predicted class, {method} at {classifier.default_layer}"
    yield absent_sentence(classifier.class_names)
    yield ""
    yield "The number before each picture's name is that of the row in the worklist's CSV, counted from 1."
    yield f"{INDEX} has a row for each file, with its SHA-256 and what was found of its map."
    for kind, title in OUTCOMES.items():
        those = [one for one in outcomes if one.kind == kind]
        if those:
            yield ""
            yield f"{title} ({len(those)}):"
            yield from map(_line_of, those)


def _line_of(one: Outcome) -> str:
    named = one.sentence.startswith(one.entry.name)  # as that of a file that could not be read
    said = one.sentence if named else f"{one.entry.name}: {one.sentence}"
    return f"  {one.number} {' '.join(said.split())}"


# --- markup --------------------------------------------------------------------------------------


def progress_html(making: MakingOverlays | None) -> str:
    """Return how far overlays are; nothing where none are at work."""
    if making is None:
        return ""
    if making.is_stopped:
        return '<p class="fine busy">Stopping after this cell …</p>'
    left = making.seconds_left
    said = "" if left is None else f", about {duration(left)} left"
    return f'<p class="fine busy">{making.done} of {making.total} done{said}</p>'


def overlays_html(
    is_at_work: bool,
    made: Overlays | None,
    worklist: Worklist,
    error: str = "",
    with_verdicts: bool = True,
) -> str:
    """Return what came of a list's overlays, or the button that stops them.

    Args:
        is_at_work: whether some are being made.
        made: the last ones.
        worklist: as it is now.
        error: why the last try came to nothing.
        with_verdicts: whether each map is held against controls.
    """
    said = f'<p class="failed" role="alert">{html.escape(error)}</p>' if error else ""
    if is_at_work:
        tested = "Each map is held against controls first, which takes its time. " if with_verdicts else ""
        return (
            f'{said}<p role="status"><b>Making overlays.</b> {tested}You can go on looking at cells.</p>'
            '<div class="saves"><button type="button" data-send="stop" data-focus="stop">Stop</button></div>'
        )
    if made is None:
        return said
    counts = {kind: sum(one.kind == kind for one in made.outcomes) for kind in OUTCOMES}
    pictures = sum(bool(one.overlay) for one in made.outcomes)
    fails, untested = counts[FAILS], counts[UNTESTED]
    without = counts[DECLINED] + counts[ERROR]
    parts = [
        f"{counted(counts[BEATS], 'map', 'beats', 'beat')} the controls" if counts[BEATS] else "",
        f"{fails} {agreeing(fails, 'does', 'do')} not" if fails else "",
        f"{untested} {agreeing(untested, 'was', 'were')} not tested" if untested else "",
        f"{without} without an overlay" if without else "",
    ]
    stale = "" if made.is_of(worklist) else " The list or its model has changed since; make them anew."
    return (
        f'{said}<p role="status"><b>{counted(pictures, "overlay")} made</b>: '
        f"{', '.join(filter(None, parts))}."
        f'{stale}</p><div class="saves"><button type="button" data-fetch="overlays" '
        f'data-name="cervicyte_overlays.zip" data-focus="save-overlays">Save the zip '
        f"({made.bytes / 1e6:.1f} MB)</button></div>"
    )
