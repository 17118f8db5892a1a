"""What happens when something is asked on the page: each event says which places of it change, and to what.

Every question that takes the network waits in the queue that the API's images wait in. Where no place is to
be had, and where the server no longer keeps the page's cells, the page says so in a sentence.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from cervicyte.dashboard import cell_view
from cervicyte.dashboard.adaptation import (
    SECONDS_BETWEEN_LOOKS,
    Adaptation,
    Adapting,
    adapt_to_worklist,
    adaptation_html,
    adapting_html,
    not_adaptable,
    predictions_of,
)
from cervicyte.dashboard.batching import Batcher, Busy, QueuedClassifier, log_failure
from cervicyte.dashboard.cell_view import Looked, look
from cervicyte.dashboard.downloads import Download, Source, download_of_cell, download_of_worklist
from cervicyte.dashboard.intake import Arrived, arrivals
from cervicyte.dashboard.limits import MAX_OVERLAID_LISTS
from cervicyte.dashboard.markup import error_html, thumbnail
from cervicyte.dashboard.overlays import (
    MakingOverlays,
    Stopped,
    make_overlays,
    overlays_html,
)
from cervicyte.dashboard.overlays import progress_html as overlays_progress_html
from cervicyte.dashboard.reading import AnotherCell, reading_html, summary_html
from cervicyte.dashboard.reading_log import LONGEST_REMARK, ReadingLog
from cervicyte.dashboard.session import NO_MEMORY, NOT_KEPT, NOT_OPENED, Full, Gone, Session, Sessions
from cervicyte.dashboard.worklist import Entry, Worklist, progress_html, worklist_html
from cervicyte.datasets.synthetic import SAMPLES
from cervicyte.errors import CervicyteError
from cervicyte.evaluation.shipped_figures import shipped_figures
from cervicyte.images.reader import read_image
from cervicyte.inference.classifier import Classifier

LIST_GROWS = 1.5  # by this factor at least from one time that it is shown to the next, while files are read
SECONDS_OF_REST = 0.4  # a map is tested once the reader stays with it
NOT_HERE = "This cell is not in the list any more; choose another one."
BUSY = "The server is busy with what others asked. Try again in a minute."
NOT_ALL_READ = "Not all images were read: the server is busy. Send those that are missing again in a minute."
NOT_TESTED = "The map was not tested: the server is busy. Choose the cell again in a minute."
BROKEN_OFF = "Reading ended when the page was left: send the images that are missing again."
STAYS = "What you see here is as it was before."
OTHERS_FIRST = "A model is being adapted for another page just now. Try again in a few minutes."
STILL_STOPPING = "The overlays that were stopped are just ending. Try again in a few seconds."
OTHER_LISTS_FIRST = "Overlays of many other lists are being made just now. Try again in a few minutes."
STOPPED = "Stopped before all were made; nothing of them is kept."
DISK_FULL = "The server could not write the overlays, as its disk may be full. Try again later."

Changes = dict[str, Any]
"""Place of the page -> its new content; other places stay."""

# What shows something of a session.
ANSWER, VIEWER, VERDICT, DETAILS = "answer", "viewer", "verdict", "details"
UPLOAD, PROGRESS, LISTED, ADAPTATION = "upload", "progress", "worklist", "adaptation"
TO_READ, READ_PROGRESS, READING, SUMMARY = "upload-reading", "read-progress", "reading", "summary"
SAVED, OVERLAYS, OVERLAID = "saved", "overlays", "overlays-progress"
PLACES = (
    *(ANSWER, VIEWER, VERDICT, DETAILS, UPLOAD, PROGRESS, LISTED, ADAPTATION),
    *(TO_READ, READ_PROGRESS, READING, SUMMARY, SAVED, OVERLAYS, OVERLAID),
)


def of_session(place: str) -> Callable[[Any], Any]:
    """Hand an event the session that a key names; where it is gone or the server full, say so at `place`.

    The cell that is looked at stays as it was then, and the sentence stands above it.
    """

    def around(event: Any) -> Any:
        if inspect.isgeneratorfunction(event):

            @wraps(event)
            def change(self: Events, key: str, *asked: Any) -> Iterator[Changes]:
                try:
                    yield from event(self, self.sessions.of(key), *asked)
                except Gone as gone:
                    yield self.gone(gone)
                except (Busy, Full) as full:
                    yield {place: error_html(str(full) or BUSY)}

        else:

            @wraps(event)
            def change(self: Events, key: str, *asked: Any) -> Changes:
                try:
                    session = self.sessions.of(key)
                    changes: Changes = event(self, session, *asked)
                except Gone as gone:
                    return self.gone(gone)
                except (Busy, Full) as full:
                    said = str(full) or BUSY
                    return self._cell(session, said) if place == VIEWER else {place: error_html(said)}
                return changes

        return change

    return around


class Events:
    """The events of all pages of a server.

    Attributes:
        classifier: the served model; it asks its network in turn.
        sessions: what is kept for the pages.
        with_verdicts: whether each map is held against controls after it is shown.
        is_logged: whether readings are kept in a log.
        pictures: class -> address of a picture of a drawn cell.
    """

    def __init__(
        self,
        classifier: Classifier,
        model_name: str,
        batcher: Batcher,
        folder: Path,
        with_verdicts: bool = True,
        reading_log: ReadingLog | None = None,
        samples: Path = SAMPLES,
    ) -> None:
        """Begin with no page.

        Args:
            classifier: answers.
            model_name: how downloads name the model.
            batcher: gives the turns.
            folder: private; takes adapted models.
            with_verdicts: whether each map is held against controls after it is shown.
            reading_log: keeps what is read blind, if the user turned it on.
            samples: holds pictures (PNG) to try, if it is there.
        """
        self.classifier = QueuedClassifier(classifier, batcher)
        self.sessions = Sessions(classifier.class_names)
        self._model_name, self._batcher, self._folder = model_name, batcher, folder
        self.with_verdicts, self.is_logged = with_verdicts, reading_log is not None
        self._log = reading_log
        self._drawn = [Arrived(file.name, file.read_bytes()) for file in sorted(samples.glob("*.png"))]
        self.pictures = {
            cell_view.drawn_name(Path(one.name).stem): thumbnail(read_image(one.content, one.name))
            for one in self._drawn
        }
        self._figures = shipped_figures(classifier.weights_sha256)
        self._one_at_a_time = threading.Lock()
        self._few_lists = threading.BoundedSemaphore(MAX_OVERLAID_LISTS)
        self._beginning = threading.Lock()

    # --- the page itself ---------------------------------------------------------------------------

    def opened(self, key: str, resumed: bool, page: str) -> Iterator[Changes]:
        """Show what a tab had before its page was loaded again."""
        try:
            session = self.sessions.open(key, page, resumed)
        except Gone as gone:
            yield self.gone(gone)
            return
        yield {} if session.is_empty else self._everything(session)
        followed = (
            self._followed(session, session.adapting),
            self._overlays_followed(session, session.making),
        )
        for one, other in itertools.zip_longest(*followed):
            yield {**(one or {}), **(other or {})}

    def left(self, page: str) -> None:
        """Note that a page was left."""
        self.sessions.leave(page)

    def gone(self, why: Gone) -> Changes:
        """Empty the page and say why."""
        return self._everything(Session.of(self.classifier.class_names)) | {ANSWER: error_html(str(why))}

    def _everything(self, session: Session) -> Changes:
        progress = progress_html(session.worklist) if session.worklist.entries else ""
        cells = session.reading.cells
        return {
            **self._cell(session),
            **self._list(session),
            PROGRESS: progress,
            READ_PROGRESS: progress_html(cells) if cells.entries else "",
            **self._reading(session),
        }

    # --- cells -------------------------------------------------------------------------------------

    @of_session(PROGRESS)
    def read_uploads(self, session: Session, uploads: list[str]) -> Iterator[Changes]:
        """Read files into the list while it is looked at."""
        yield from self._taken_in(session, arrivals(map(Path, uploads), session.worklist.room))

    @of_session(PROGRESS)
    def read_samples(self, session: Session) -> Iterator[Changes]:
        """Read the drawn cells into the list."""
        yield from self._taken_in(session, iter(self._drawn[: session.worklist.room]))

    def _taken_in(self, session: Session, arrived: Iterator[Arrived]) -> Iterator[Changes]:
        """Read files a few at a time; the field for files is free again at the end."""
        worklist, remark, shown = session.worklist, "", 0
        worklist.broken_off = BROKEN_OFF  # unless the end is reached
        answering = self._answering(session)
        try:
            for _ in worklist.read(answering, self._within_memory(session, arrived)):
                if session.worklist is not worklist:  # it was cleared meanwhile
                    break
                changes = {PROGRESS: progress_html(worklist, reading=True)}
                # The list goes over the wire as a whole: the longer it is, the more must be new.
                if len(worklist.entries) >= LIST_GROWS * shown:
                    shown = len(worklist.entries)
                    changes |= self._list(session)
                yield changes
            adaptation = session.adaptation
            if adaptation is not None and self._answering(session) is not answering:
                self._use(session, adaptation, adaptation.in_use)  # the other model was chosen meanwhile
        except Busy:
            remark = NOT_ALL_READ
        worklist.broken_off = ""
        yield {
            UPLOAD: None,
            PROGRESS: progress_html(session.worklist, remark=remark),
            **self._list(session),
        }

    def _within_memory(self, session: Session, arrived: Iterable[Arrived]) -> Iterator[Arrived]:
        """Yield files until the memory for all pages is full."""
        for one in arrived:
            if not self.sessions.make_room(len(one.content), session):
                yield Arrived("Further images", error=f"Further images {NO_MEMORY}")
                return
            yield one

    def _answering(self, session: Session) -> QueuedClassifier:
        """Return the classifier whose answers the list shows."""
        adaptation = session.adaptation
        return adaptation.classifier if adaptation is not None and adaptation.in_use else self.classifier

    def _list(self, session: Session) -> Changes:
        return {
            LISTED: worklist_html(session.worklist),
            ADAPTATION: self._adaptation(session),
            **self._overlays(session),
        }

    def _cell(self, session: Session, refused: str = "") -> Changes:
        """Return all that shows the cell that is looked at; `refused` says why it is not another one."""
        looked = session.looked
        if looked is None:
            nothing = (error_html(refused) if refused else "") + cell_view.EMPTY_CELL
            return {ANSWER: "", VIEWER: stamped(nothing, bool(refused)), VERDICT: "", DETAILS: ""}
        adaptation = session.adaptation
        name = adaptation.name if adaptation is not None and adaptation.in_use else ""
        classifier = self._answering(session)
        return {
            ANSWER: cell_view.answer_html(session.worklist, looked, name),
            VIEWER: stamped(
                cell_view.viewer_html(classifier, looked, f"{refused} {STAYS}" if refused else ""),
                bool(refused),
            ),
            VERDICT: self._said_of_map(looked),
            DETAILS: cell_view.details_html(classifier, looked, self.pictures),
        }

    def _said_of_map(self, looked: Looked) -> str:
        if looked.verdict is not None:
            return cell_view.verdict_html(looked.class_name, looked.verdict)
        return cell_view.PENDING if self.with_verdicts else cell_view.UNTESTED

    @of_session(ANSWER)
    def open_first(self, session: Session) -> Changes:
        """Look at the first of the list, unless one is looked at already."""
        answered = session.worklist.answered()
        if session.looked is not None or not answered:
            return {}
        self._look_at(session, answered[0])
        return self._cell(session)

    @of_session(VIEWER)
    def open_cell(self, session: Session, cell: int) -> Changes:
        """Look at a cell of the list."""
        entry = session.worklist.entry(cell)
        if entry is None or entry.prediction is None:
            session.looked = None
            return self._cell(session) | {ANSWER: error_html(NOT_HERE)}
        self._look_at(session, entry)
        return self._cell(session)

    def _look_at(self, session: Session, entry: Entry) -> Looked:
        """Look at a cell, if there is memory for its pictures; else the one before stays.

        Raises:
            Busy, Full: there was no place in the queue, or no memory.
        """
        looked = look(self._answering(session), entry)
        before = 0 if session.looked is None else session.looked.held_bytes
        if not self.sessions.make_room(looked.held_bytes - before, session):
            raise Full(NOT_OPENED)
        session.looked = looked
        return looked

    @of_session(VIEWER)
    def explain(self, session: Session, cell: int, class_name: str, method: str, layer: str) -> Changes:
        """Show the map of another class, by another method or at another layer."""
        looked, entry = session.looked, session.worklist.entry(cell)
        if entry is None or entry.prediction is None:
            return self._cell(session) | {ANSWER: error_html(NOT_HERE)}
        classifier, refused = self._answering(session), ""
        if looked is None or looked.entry.key != cell:  # another page of the tab's key looks elsewhere
            looked = self._look_at(session, entry)
        try:
            looked.explain(classifier, class_name, method, layer)
        except CervicyteError as error:
            refused = str(error)
        return {
            VIEWER: stamped(cell_view.viewer_html(classifier, looked, refused), bool(refused)),
            VERDICT: self._said_of_map(looked),
        }

    @of_session(VERDICT)
    def judge(self, session: Session) -> Changes:
        """Hold the map that is shown against controls; say nothing if another one is shown by then."""
        looked = session.looked
        if looked is None or looked.verdict is not None:
            return {}
        asked = looked.asked
        time.sleep(SECONDS_OF_REST)
        if session.looked is not looked or looked.asked != asked:
            return {}
        try:
            verdict = looked.judge(self._answering(session), asked)
        except Busy:
            return {VERDICT: error_html(NOT_TESTED)}
        if session.looked is not looked or looked.asked != asked:
            return {}
        return {VERDICT: cell_view.verdict_html(asked[0], verdict)}

    @of_session(PROGRESS)
    def clear(self, session: Session) -> Changes:
        """Empty the list."""
        session.note_seen()
        session.worklist, session.looked = Worklist(self.classifier.class_names), None
        session.forget_adaptation()
        session.forget_overlays()
        return {**self._cell(session), PROGRESS: "", **self._list(session)}

    # --- adapting ------------------------------------------------------------------------------------

    @of_session(ADAPTATION)
    def adapt(self, session: Session) -> Iterator[Changes]:
        """Adapt the model to the list's images, beside the page, and show how far that is."""
        adapting = session.adapting
        if adapting is None and not not_adaptable(self.classifier, session.worklist):
            if not self._one_at_a_time.acquire(blocking=False):
                yield {ADAPTATION: self._adaptation(session, OTHERS_FIRST)}
                return
            adapting = session.adapting = Adapting(self._batcher)
            threading.Thread(
                target=self._adapt, args=(session, adapting), name="cervicyte-adapting", daemon=True
            ).start()
        yield {ADAPTATION: self._adaptation(session)}  # the page wants an answer in any case
        yield from self._followed(session, adapting)

    def _adapt(self, session: Session, adapting: Adapting) -> None:
        worklist = session.worklist
        try:
            made = adapt_to_worklist(
                self.classifier, self._model_name, worklist, session.adaptation, adapting, self._folder
            )
            if session.worklist is worklist:
                self._keep(session, made)
            else:  # the list was cleared meanwhile
                made.remove()
            if session.worklist is not worklist:  # or just now
                session.forget_adaptation()
        except (Busy, Full) as full:
            adapting.error = str(full) or BUSY
        except CervicyteError as error:
            adapting.error = str(error)
        except Exception as error:
            log_failure(error)
            adapting.error = "The server failed to adapt the model; its log says where."
        finally:
            session.adapting = None
            adapting.is_done = True
            self._one_at_a_time.release()

    def _keep(self, session: Session, made: Adaptation) -> None:
        """Take up an adapted model in place of the one before, or, where that cannot be, remove it."""
        before = session.adaptation
        try:
            if not self.sessions.make_room(made.held_bytes - (before.held_bytes if before else 0), session):
                raise Full(NOT_KEPT)
            if before is not None and before.in_use:
                self._use(session, made, True)
        except BaseException:
            made.remove()
            raise
        session.forget_adaptation()
        session.adaptation = made

    def _followed(self, session: Session, adapting: Adapting | None) -> Iterator[Changes]:
        """Show how far an adaptation is until it has ended, and what came of it."""
        if adapting is None:
            return
        while not adapting.is_done:
            yield {ADAPTATION: adapting_html(adapting)}
            time.sleep(SECONDS_BETWEEN_LOOKS)
        yield {LISTED: worklist_html(session.worklist), ADAPTATION: self._adaptation(session, adapting.error)}

    def _adaptation(self, session: Session, error: str = "") -> str:
        if session.adapting is not None:
            return adapting_html(session.adapting)
        hindrance = not_adaptable(self.classifier, session.worklist)
        return adaptation_html(session.worklist, hindrance, session.adaptation, self._figures, error)

    @of_session(ADAPTATION)
    def use(self, session: Session, adapted: bool) -> Changes:
        """Show what the adapted model says of the list, or what the served one does."""
        error = ""
        try:
            if session.adaptation is not None:
                self._use(session, session.adaptation, adapted)
        except Busy:
            error = BUSY
        said = {ADAPTATION: self._adaptation(session, error)}  # the choice stays beside the error
        return {**self._list(session), **self._cell(session), **said}

    def _use(self, session: Session, adaptation: Adaptation, adapted: bool) -> None:
        """Let the list and the cell show what an adapted model says, or what the served one does.

        Raises:
            Busy: there was no place in the queue; nothing is changed.
        """
        classifier = adaptation.classifier if adapted else self.classifier
        known = adaptation.own if adapted else adaptation.original
        known |= predictions_of(classifier, session.worklist.answered(), known)
        looked = session.looked
        if looked is not None and looked.entry.key in known:
            # Before anything is changed: list and cell are to be of one model.
            entry = replace(looked.entry, prediction=known[looked.entry.key], evidence=None)
            looked = look(classifier, entry)
        adaptation.in_use = adapted
        session.worklist.say(known)
        session.looked = looked

    def adapted_file(self, key: str) -> Path | None:
        """Return the adapted model's file of a session; None if there is none."""
        session = self.sessions.there(key)
        adaptation = session.adaptation if session is not None else None
        return adaptation.path if adaptation is not None and adaptation.path.is_file() else None

    # --- reading blind -------------------------------------------------------------------------------

    @of_session(READ_PROGRESS)
    def uploads_to_read(self, session: Session, uploads: list[str]) -> Iterator[Changes]:
        """Take in cells that are to be read blind."""
        yield from self._taken_to_read(session, arrivals(map(Path, uploads), session.reading.cells.room))

    @of_session(READ_PROGRESS)
    def samples_to_read(self, session: Session) -> Iterator[Changes]:
        """Take in the drawn cells to be read blind."""
        yield from self._taken_to_read(session, iter(self._drawn[: session.reading.cells.room]))

    def _taken_to_read(self, session: Session, arrived: Iterator[Arrived]) -> Iterator[Changes]:
        cells, remark = session.reading.cells, ""
        cells.broken_off = BROKEN_OFF
        try:
            for _ in cells.read(self.classifier, self._within_memory(session, arrived)):
                yield {READ_PROGRESS: progress_html(cells, reading=True)}
        except Busy:
            remark = NOT_ALL_READ
        cells.broken_off = ""
        yield {TO_READ: None, READ_PROGRESS: progress_html(cells, remark=remark), **self._reading(session)}

    def _reading(self, session: Session) -> Changes:
        reading = session.reading
        return {
            READING: reading_html(reading, self.classifier.class_names),
            SUMMARY: summary_html(reading, self.is_logged),
        }

    @of_session(READING)
    def record(self, session: Session, cell: str, label: str, remark: str) -> Changes:
        """Keep what the reader says of a cell, and reveal the answer."""
        session.note_seen()
        reading = session.reading
        try:
            reading.record(self.classifier, cell, label, remark[:LONGEST_REMARK], session.seen, self._log)
        except AnotherCell as error:
            return {READ_PROGRESS: error_html(str(error)), **self._reading(session)}
        except CervicyteError as error:
            return {READ_PROGRESS: error_html(str(error))}  # what the reader entered stays
        return {READ_PROGRESS: progress_html(reading.cells), **self._reading(session)}

    @of_session(READING)
    def next_to_read(self, session: Session) -> Changes:
        """Show the next cell to be read."""
        session.reading.revealed = False
        return self._reading(session)

    # --- saving --------------------------------------------------------------------------------------

    @of_session(PROGRESS)
    def save(self, session: Session, what: str, of: str) -> Changes:
        """Make a download."""
        if of == "reading":
            readings = session.reading.csv(self.classifier).encode("utf-8")
            return {SAVED: Download("cervicyte_readings.csv", readings).packed()}
        source = self._source(session)
        if of == "cell" and self.with_verdicts and session.looked is not None:
            session.looked.judge(source.classifier, session.looked.asked)  # no map goes out untested
        make = download_of_cell if of == "cell" else download_of_worklist
        made = make(source, what)
        return {SAVED: made.packed()} if made else {}

    def _source(self, session: Session) -> Source:
        classifier, name = self._answering(session), self._model_name
        if classifier is not self.classifier and session.adaptation is not None:
            name = f"{name}, {session.adaptation.name}"
        return Source(classifier, name, session.worklist, session.looked)

    @of_session(OVERLAYS)
    def overlays(self, session: Session) -> Iterator[Changes]:
        """Make the overlays of the list, beside the page, and show how far that is."""
        making, error = self._begun_overlays(session) if session.worklist.answered() else (None, "")
        yield self._overlays(session, error)  # the page wants an answer in any case
        yield from self._overlays_followed(session, making)

    def _begun_overlays(self, session: Session) -> tuple[MakingOverlays | None, str]:
        """Begin to make overlays unless some are at work; return those, or why it cannot be, a sentence."""
        with self._beginning:
            making = session.making
            if making is not None:
                return making, STILL_STOPPING if making.is_stopped else ""
            if not self._few_lists.acquire(blocking=False):
                return None, OTHER_LISTS_FIRST
            making = session.making = MakingOverlays(len(session.worklist.entries))
        threading.Thread(
            target=self._make_overlays, args=(session, making), name="cervicyte-overlays", daemon=True
        ).start()
        return making, ""

    def _make_overlays(self, session: Session, making: MakingOverlays) -> None:
        worklist, source = session.worklist, self._source(session)
        try:
            made = make_overlays(
                source,
                worklist.sorted(),
                self._batcher,
                making,
                self._folder,
                with_verdicts=self.with_verdicts,
                before_each=lambda: self.sessions.go_on(session),
            )
            before, session.overlays = session.overlays, made
            if before is not None:
                before.remove()
            if session.worklist is not worklist:  # it was cleared meanwhile
                session.forget_overlays()
        except Stopped:
            making.error = STOPPED if session.worklist is worklist else ""
        except Full as full:
            making.error = str(full)
        except OSError as error:
            log_failure(error)
            making.error = DISK_FULL
        except Exception as error:
            log_failure(error)
            making.error = "The server failed to make the overlays; its log says where."
        finally:
            session.making = None
            making.is_done = True
            self._few_lists.release()

    def _overlays_followed(self, session: Session, making: MakingOverlays | None) -> Iterator[Changes]:
        """Show how far overlays are until they have ended, and what came of them."""
        shown = ""
        if making is None:
            return
        while not making.is_done:
            said = overlays_progress_html(making)
            yield {OVERLAID: said} if said != shown else {}
            shown = said
            time.sleep(SECONDS_BETWEEN_LOOKS)
        yield self._overlays(session, making.error)

    def _overlays(self, session: Session, error: str = "") -> Changes:
        making = session.making
        return {
            OVERLAYS: overlays_html(
                making is not None, session.overlays, session.worklist, error, self.with_verdicts
            ),
            OVERLAID: overlays_progress_html(making),
        }

    @of_session(OVERLAYS)
    def stop_overlays(self, session: Session) -> Changes:
        """Let the overlays that are being made be."""
        if session.making is not None:
            session.making.stop()
        return {OVERLAID: overlays_progress_html(session.making)}

    def overlays_file(self, key: str) -> Path | None:
        """Return the archive of a session's overlays; None if there is none."""
        session = self.sessions.there(key)
        made = session.overlays if session is not None else None
        return made.path if made is not None and made.path.is_file() else None


def stamped(markup: str, refused: bool = False) -> str:
    """Return markup that differs from all before it, so that the browser notices that an answer is here.

    Args:
        markup: of the viewer.
        refused: whether it is what was there before, not what was asked for.
    """
    return f'<div data-stamp="{uuid.uuid4().hex}"{" data-refused" if refused else ""}>{markup}</div>'
