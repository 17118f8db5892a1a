"""The dashboard's page: what lies where, and what happens when something is asked.

Pictures go to the browser inside the page and downloads are made there, so that nothing of a cell is left on
the disk. What the page looks like and does without the server is in `style.css` and `script.js`.
"""

from __future__ import annotations

import html
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from cervicyte.dashboard import cell_view
from cervicyte.dashboard.cell_view import Looked, look
from cervicyte.dashboard.downloads import SAVES, Download, Source, download_of_cell, download_of_worklist
from cervicyte.dashboard.intake import MAX_CELLS, Arrived, arrivals
from cervicyte.dashboard.limits import MAX_UPLOAD_MB
from cervicyte.dashboard.markup import error_html, thumbnail
from cervicyte.dashboard.model_view import model_html
from cervicyte.dashboard.reading import NOTHING_TO_READ, reading_html, summary_html
from cervicyte.dashboard.reading_log import LONGEST_REMARK, ReadingLog
from cervicyte.dashboard.session import SECONDS_KEPT, Session
from cervicyte.dashboard.worklist import Worklist, filter_html, progress_html, worklist_html
from cervicyte.datasets.synthetic import SAMPLES
from cervicyte.errors import CervicyteError
from cervicyte.evaluation.model_card import model_card
from cervicyte.images.reader import read_image
from cervicyte.inference.classifier import Classifier
from cervicyte.provenance import RESEARCH_USE_ONLY

SECONDS_OF_REST = 0.4  # a map is tested once the reader stays with it
READERS_AT_ONCE = 4  # of one kind of question; a long list of one reader does not hold up another's
GONE = "The server no longer keeps this cell; choose its file again."

# The names stand here in quotes: Gradio makes events of those alone.
BRIDGE = """
const known = ['open', 'explain', 'samples', 'clear', 'save', 'drawn', 'record', 'next'];
window.cervicyte.send = (name, data) => { if (known.includes(name)) trigger(name, data); };
"""

SAVE = "watch('value', () => window.cervicyte.save(props.value));"


def build_page(
    classifier: Classifier,
    model_name: str,
    samples: Path = SAMPLES,
    with_verdicts: bool = True,
    reading_log: ReadingLog | None = None,
) -> gr.Blocks:
    """Return the page for a classifier.

    Args:
        classifier: answers.
        model_name: as the page names the model.
        samples: holds pictures (PNG) to try, if it is there.
        with_verdicts: whether each map is held against controls after it is shown.
        reading_log: keeps what is read blind, if the user turned it on.
    """
    drawn = [Arrived(file.name, file.read_bytes()) for file in sorted(samples.glob("*.png"))]
    pictures = {
        cell_view.drawn_name(Path(one.name).stem): thumbnail(read_image(one.content, one.name))
        for one in drawn
    }

    def take_in(session: Session, arrived: Iterator[Arrived]) -> Iterator[tuple[Any, ...]]:
        """Read files into the list while it is looked at; the field for files is free again at the end."""
        worklist = session.worklist
        for _ in worklist.read(classifier, arrived):
            if session.worklist is not worklist:  # it was cleared meanwhile
                break
            yield gr.skip(), session, progress_html(worklist, reading=True), worklist_html(worklist)
        worklist = session.worklist
        yield None, session, progress_html(worklist, reading=False), worklist_html(worklist)

    def read_uploads(uploads: list[str], session: Session) -> Iterator[tuple[Any, ...]]:
        yield from take_in(session, arrivals(map(Path, uploads), session.worklist.room))

    def read_samples(session: Session) -> Iterator[tuple[Any, ...]]:
        yield from take_in(session, iter(drawn[: session.worklist.room]))

    def shown(session: Session) -> tuple[Any, ...]:
        """Return what is shown of the cell that is looked at: session, answer, picture, verdict, details."""
        looked = session.looked
        if looked is None:
            return session, "", stamped(cell_view.EMPTY_CELL), "", ""
        return (
            session,
            cell_view.answer_html(session.worklist, looked),
            stamped(cell_view.viewer_html(classifier, looked)),
            said_of_map(looked),
            cell_view.details_html(classifier, looked, pictures),
        )

    def said_of_map(looked: Looked) -> str:
        if looked.verdict is not None:
            return cell_view.verdict_html(looked.class_name, looked.verdict)
        return cell_view.PENDING if with_verdicts else cell_view.UNTESTED

    def open_first(session: Session) -> tuple[Any, ...]:
        """Look at the first of the list, unless one is looked at already."""
        answered = session.worklist.answered()
        if session.looked is not None or not answered:
            return (gr.skip(),) * 5
        session.looked = look(classifier, answered[0])
        return shown(session)

    def open_cell(session: Session, event: gr.EventData) -> tuple[Any, ...]:
        entry = session.worklist.entry(int(event.key))
        if entry is None or entry.prediction is None:
            return session, error_html(GONE), stamped(cell_view.EMPTY_CELL), "", ""
        session.looked = look(classifier, entry)
        return shown(session)

    def explain(session: Session, event: gr.EventData) -> tuple[Any, ...]:
        looked = session.looked
        if looked is None:
            return session, stamped(error_html(GONE)), ""
        try:
            looked.explain(classifier, event.class_name, event.method, event.layer)
        except CervicyteError as error:
            return session, stamped(error_html(str(error))), ""
        return session, stamped(cell_view.viewer_html(classifier, looked)), said_of_map(looked)

    def judge(session: Session) -> Any:
        """Hold the map that is shown against controls; say nothing if another one is shown by then."""
        looked = session.looked
        if looked is None or looked.verdict is not None:
            return gr.skip()
        asked = looked.asked
        time.sleep(SECONDS_OF_REST)
        if session.looked is not looked or looked.asked != asked:
            return gr.skip()
        verdict = looked.judge(classifier, asked)
        if session.looked is not looked or looked.asked != asked:
            return gr.skip()
        return cell_view.verdict_html(asked[0], verdict)

    def read_blind(session: Session, arrived: Iterator[Arrived]) -> Iterator[tuple[Any, ...]]:
        """Take in cells that are to be read blind; the first is shown as soon as it is there."""
        reading = session.reading
        for _ in reading.cells.read(classifier, arrived):
            yield gr.skip(), session, progress_html(reading.cells, reading=True), gr.skip(), gr.skip()
        yield None, session, progress_html(reading.cells, reading=False), *of_reading(session)

    def uploads_to_read(uploads: list[str], session: Session) -> Iterator[tuple[Any, ...]]:
        yield from read_blind(session, arrivals(map(Path, uploads), session.reading.cells.room))

    def samples_to_read(session: Session) -> Iterator[tuple[Any, ...]]:
        yield from read_blind(session, iter(drawn[: session.reading.cells.room]))

    def of_reading(session: Session) -> tuple[str, str]:
        reading = session.reading
        return reading_html(reading, classifier.class_names), summary_html(reading, reading_log is not None)

    def record(session: Session, event: gr.EventData) -> tuple[Any, ...]:
        seen = {entry.sha256 for entry in session.worklist.entries}
        try:
            session.reading.record(classifier, event.label, event.remark[:LONGEST_REMARK], seen, reading_log)
        except CervicyteError as error:
            return session, error_html(str(error)), gr.skip()
        return session, *of_reading(session)

    def next_to_read(session: Session) -> tuple[Any, ...]:
        session.reading.revealed = False
        return session, *of_reading(session)

    def save(session: Session, event: gr.EventData) -> str:
        if event.of == "reading":
            readings = session.reading.csv(classifier).encode("utf-8")
            return Download("cervicyte_readings.csv", readings).packed()
        if event.of == "cell" and with_verdicts and session.looked is not None:
            session.looked.judge(classifier, session.looked.asked)  # no map goes out untested
        source = Source(classifier, model_name, session.worklist, session.looked)
        make = download_of_cell if event.of == "cell" else download_of_worklist
        made = make(source, event.what)
        return made.packed() if made else ""

    def clear(session: Session) -> tuple[Any, ...]:
        session.worklist, session.looked = Worklist(classifier.class_names), None
        return *shown(session), "", worklist_html(session.worklist)

    with gr.Blocks(title="Cervicyte", analytics_enabled=False, delete_cache=(60, 60)) as page:
        session = gr.State(Session.of(classifier.class_names), time_to_live=SECONDS_KEPT)
        bridge = part("", js_on_load=BRIDGE, elem_id="bridge")
        # Shows nothing: what is put there is saved by the browser.
        saved = part("", html_template="", js_on_load=SAVE, elem_id="saved")
        part(masthead_html(model_name))
        with gr.Tabs():
            with gr.Tab("Cells"), gr.Row(elem_id="work"):
                with gr.Column(elem_id="side"):
                    # Of any type: what a file is, is told by its contents, and an error in our words.
                    part('<p class="field-title">Images of single cells, or zip archives</p>')
                    upload = gr.File(
                        label="Images or zip archives", show_label=False, file_count="multiple", height=104,
                        elem_id="upload",
                    )  # fmt: skip
                    part(samples_html(list(pictures.values())))
                    progress = part("", elem_id="progress")
                    part(filter_html(classifier.class_names))
                    listed = part(worklist_html(Worklist(classifier.class_names)), elem_id="worklist")
                with gr.Column(elem_id="cell"):
                    part(NAVIGATION, elem_id="nav")
                    answer = part("", elem_id="answer")
                    viewer = part(cell_view.EMPTY_CELL, elem_id="viewer")
                    verdict = part("", elem_id="verdict")
                    details = part("", elem_id="details")
                    part(SAVES, elem_id="saves")
            with gr.Tab("Reading"), gr.Row(elem_id="read"):
                with gr.Column(elem_id="read-side"):
                    part('<p class="field-title">Cells to read blind: images or zip archives</p>')
                    to_read = gr.File(
                        label="Images or zip archives", show_label=False, file_count="multiple", height=104,
                        elem_id="upload-reading",
                    )  # fmt: skip
                    part(samples_html(list(pictures.values()), "drawn"))
                    read_progress = part("")
                    summary = part(
                        summary_html(Session.of(classifier.class_names).reading, reading_log is not None),
                        elem_id="summary",
                    )
                with gr.Column(elem_id="reading-column"):
                    reading_view = part(NOTHING_TO_READ, elem_id="reading")
            with gr.Tab("Model"):
                part(model_html(classifier, model_name), elem_id="model")
                with gr.Accordion("The whole model card", open=False):
                    gr.Markdown(model_card(classifier.model), elem_id="card")

        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": READERS_AT_ONCE,
        }
        cell_parts = [session, answer, viewer, verdict, details]
        list_parts = [upload, session, progress, listed]
        read = [
            upload.upload(read_uploads, [upload, session], list_parts, **quiet),
            bridge.samples(read_samples, session, list_parts, **quiet),
        ]
        shows_map = [each.then(open_first, session, cell_parts, **quiet) for each in read]
        shows_map.append(bridge.open(open_cell, session, cell_parts, trigger_mode="multiple", **quiet))
        shows_map.append(
            bridge.explain(explain, session, [session, viewer, verdict], trigger_mode="multiple", **quiet)
        )
        bridge.clear(clear, session, [*cell_parts, progress, listed], **quiet)
        read_parts = [to_read, session, read_progress, reading_view, summary]
        to_read.upload(uploads_to_read, [to_read, session], read_parts, **quiet)
        bridge.drawn(samples_to_read, session, read_parts, **quiet)
        bridge.record(record, session, [session, reading_view, summary], **quiet)
        bridge.next(next_to_read, session, [session, reading_view, summary], **quiet)
        bridge.save(save, session, saved, trigger_mode="multiple", **quiet)
        # After the map, which takes a small part of the time.
        for each in shows_map if with_verdicts else ():
            each.then(judge, session, verdict, trigger_mode="always_last", **quiet)
    return page


def part(value: str = "", **settings: Any) -> gr.HTML:
    """Return a place for markup that only the page's own style sheet dresses."""
    return gr.HTML(value, apply_default_css=False, **settings)


def stamped(markup: str) -> str:
    """Return markup that differs from all before it, so that the browser notices that an answer is here."""
    return f'<div data-stamp="{uuid.uuid4().hex}">{markup}</div>'


def masthead_html(model_name: str) -> str:
    """Return the page's head: its name, the model's, and the notice."""
    return (
        f'<header class="masthead"><h1>Cervicyte <span>{html.escape(model_name)}</span></h1>'
        f'<p class="notice" role="note">{RESEARCH_USE_ONLY}</p></header>'
    )


def samples_html(pictures: list[str], event: str = "samples") -> str:
    """Return the drawn cells as one button that takes them all in; `event` is what it asks for."""
    if not pictures:
        return ""
    shown = "".join(f'<img src="{picture}" alt="">' for picture in pictures[:5])
    return (
        f'<button type="button" class="samples" data-send="{event}">{shown}'
        "<span>Try drawn cells</span></button>"
        f'<p class="fine">Up to {MAX_UPLOAD_MB} MB a file, {MAX_CELLS} images a list. Paste with Ctrl+V. '
        "Files are read, kept in memory and deleted.</p>"
    )


NAVIGATION = """
<div class="steps-bar"><button type="button" class="step" data-step="-1">← Previous</button>
<span data-place aria-live="polite"></span>
<button type="button" class="step" data-step="1">Next →</button>
<span class="fine">Keys: <kbd>J</kbd> next, <kbd>K</kbd> previous, <kbd>M</kbd> map on or off,
<kbd>O</kbd> outlines, <kbd>+</kbd> <kbd>&minus;</kbd> <kbd>0</kbd> zoom</span></div>
"""
