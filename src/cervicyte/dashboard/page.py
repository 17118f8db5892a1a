"""The dashboard's page: what lies where, and which event each question is. What happens is in `events.py`.

Pictures go to the browser inside the page and downloads are made there, so that nothing of a cell is left on
the disk. What the page looks like and does without the server is in `style.css` and `script.js`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from cervicyte.dashboard import cell_view
from cervicyte.dashboard import events as happens
from cervicyte.dashboard.downloads import SAVES
from cervicyte.dashboard.events import Changes, Events
from cervicyte.dashboard.intake import MAX_CELLS
from cervicyte.dashboard.limits import HOW_LONG, MAX_UPLOAD_MB, SECONDS_LYING
from cervicyte.dashboard.model_view import model_html
from cervicyte.dashboard.reading import NOTHING_TO_READ, summary_html
from cervicyte.dashboard.session import Session
from cervicyte.dashboard.worklist import Worklist, filter_html, worklist_html
from cervicyte.evaluation.model_card import model_card
from cervicyte.provenance import RESEARCH_USE_ONLY

AT_ONCE = 4  # of one kind of question; a long list of one reader does not hold up another's

# The names stand here in quotes: Gradio makes events of those alone.
BRIDGE = """
const known = ['open', 'explain', 'samples', 'clear', 'save', 'drawn', 'record', 'next', 'adapt', 'use',
  'overlays', 'stop'];
window.cervicyte.send = (name, data) => { if (known.includes(name)) trigger(name, data); };
"""

SAVE = "watch('value', () => window.cervicyte.save(props.value));"
# The tab's key goes before what is asked; see `session.py`.
KEYED = "(...given) => [window.cervicyte.key(), ...given.slice(1)]"
OPENED = "() => [window.cervicyte.key(), window.cervicyte.hadCells()]"


def build_page(events: Events, model_name: str) -> gr.Blocks:
    """Return the page; `model_name` is how it names the model."""
    classifier, pictures = events.classifier, list(events.pictures.values())
    with gr.Blocks(title="Cervicyte", analytics_enabled=False, delete_cache=(60, SECONDS_LYING)) as page:
        bridge = part("", js_on_load=BRIDGE, elem_id="bridge")
        key = part("", elem_id="key")  # filled in by the browser with every question
        parts: dict[str, Any] = {
            # Shows nothing: what is put there is saved by the browser.
            happens.SAVED: part("", html_template="", js_on_load=SAVE, elem_id="saved")
        }
        part(masthead_html(model_name))
        with gr.Tabs():
            with gr.Tab("Cells"), gr.Row(elem_id="work"):
                with gr.Column(elem_id="side"):
                    part('<p class="field-title">Images of single cells, or zip archives</p>')
                    parts[happens.UPLOAD] = files(happens.UPLOAD)
                    part(samples_html(pictures))
                    parts[happens.PROGRESS] = part("", elem_id=happens.PROGRESS)
                    part(filter_html(classifier.class_names))
                    empty = worklist_html(Worklist(classifier.class_names))
                    parts[happens.LISTED] = part(empty, elem_id=happens.LISTED)
                    parts[happens.ADAPTATION] = part("", elem_id=happens.ADAPTATION)
                with gr.Column(elem_id="cell"):
                    part(NAVIGATION, elem_id="nav")
                    parts[happens.ANSWER] = part("", elem_id=happens.ANSWER)
                    parts[happens.VIEWER] = part(cell_view.EMPTY_CELL, elem_id=happens.VIEWER)
                    parts[happens.VERDICT] = part("", elem_id=happens.VERDICT)
                    parts[happens.DETAILS] = part("", elem_id=happens.DETAILS)
                    with gr.Column(elem_id="saves"):
                        part(SAVES)
                        parts[happens.OVERLAYS] = part("", elem_id=happens.OVERLAYS)
                        parts[happens.OVERLAID] = part("", elem_id=happens.OVERLAID)
            with gr.Tab("Reading"), gr.Row(elem_id="read"):
                with gr.Column(elem_id="read-side"):
                    part('<p class="field-title">Cells to read blind: images or zip archives</p>')
                    parts[happens.TO_READ] = files(happens.TO_READ)
                    part(samples_html(pictures, "drawn"))
                    parts[happens.READ_PROGRESS] = part("", elem_id=happens.READ_PROGRESS)
                    nothing = summary_html(Session.of(classifier.class_names).reading, events.is_logged)
                    parts[happens.SUMMARY] = part(nothing, elem_id=happens.SUMMARY)
                with gr.Column(elem_id="reading-column"):
                    parts[happens.READING] = part(NOTHING_TO_READ, elem_id=happens.READING)
            with gr.Tab("Model"):
                part(model_html(classifier, model_name), elem_id="model")
                with gr.Accordion("The whole model card", open=False):
                    gr.Markdown(model_card(classifier.model), elem_id="card")
        _listen(page, events, bridge, key, parts)
    return page


def _listen(page: gr.Blocks, events: Events, bridge: Any, key: Any, parts: dict[str, Any]) -> None:
    """Say which event each question is."""

    def placed(changes: Changes) -> dict[Any, Any]:
        # Gradio takes no empty answer.
        return {parts[name]: value for name, value in (changes or {happens.SAVED: gr.skip()}).items()}

    def at_once(event: Callable[..., Changes], *names: str) -> Callable[..., Any]:
        """Return a handler that answers with one change; `names` are of what the browser sends along."""

        def handle(key: str, sent: gr.EventData) -> dict[Any, Any]:
            return placed(event(key, *(getattr(sent, name) for name in names)))

        return handle

    def bit_by_bit(event: Callable[..., Iterator[Changes]]) -> Callable[..., Any]:
        def handle(key: str) -> Iterator[dict[Any, Any]]:
            yield from map(placed, event(key))

        return handle

    def of_files(event: Callable[..., Iterator[Changes]]) -> Callable[..., Any]:
        def handle(key: str, uploads: list[str]) -> Iterator[dict[Any, Any]]:
            yield from map(placed, event(key, uploads))

        return handle

    def opened(key: str, had_cells: bool, request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield from map(placed, events.opened(key, bool(had_cells), str(request.session_hash)))

    def left(request: gr.Request) -> None:
        events.left(str(request.session_hash))

    quiet: dict[str, Any] = {
        "outputs": list(parts.values()),
        "js": KEYED,
        "show_progress": "hidden",
        "api_visibility": "private",
        "concurrency_limit": AT_ONCE,
    }
    often: dict[str, Any] = {**quiet, "trigger_mode": "multiple"}
    upload, to_read = parts[happens.UPLOAD], parts[happens.TO_READ]
    page.load(opened, [key, key], **{**quiet, "js": OPENED, "concurrency_limit": None})
    page.unload(left)
    read = [
        upload.upload(of_files(events.read_uploads), [key, upload], **quiet),
        bridge.samples(bit_by_bit(events.read_samples), key, **quiet),
    ]
    shows_map = [each.then(at_once(events.open_first), key, **quiet) for each in read]
    shows_map.append(bridge.open(at_once(events.open_cell, "cell"), key, **often))
    of_map = ("cell", "class_name", "method", "layer")
    shows_map.append(bridge.explain(at_once(events.explain, *of_map), key, **often))
    shows_map.append(bridge.use(at_once(events.use, "adapted"), key, **often))
    bridge.adapt(bit_by_bit(events.adapt), key, **quiet)
    bridge.clear(at_once(events.clear), key, **quiet)
    to_read.upload(of_files(events.uploads_to_read), [key, to_read], **quiet)
    bridge.drawn(bit_by_bit(events.samples_to_read), key, **quiet)
    bridge.record(at_once(events.record, "cell", "label", "remark"), key, **quiet)
    bridge.next(at_once(events.next_to_read), key, **quiet)
    bridge.save(at_once(events.save, "what", "of"), key, **often)
    bridge.overlays(bit_by_bit(events.overlays), key, **{**quiet, "concurrency_limit": None})
    bridge.stop(at_once(events.stop_overlays), key, **quiet)
    # After the map, which takes a small part of the time.
    for each in shows_map if events.with_verdicts else ():
        each.then(at_once(events.judge), key, **{**quiet, "trigger_mode": "always_last"})


def files(name: str) -> gr.File:
    """Return a field for files of any type: its contents tell what a file is, and errors are in our words."""
    return gr.File(
        label="Images or zip archives", show_label=False, file_count="multiple", height=104, elem_id=name
    )


def part(value: str = "", **settings: Any) -> gr.HTML:
    """Return a place for markup that only the page's own style sheet dresses."""
    return gr.HTML(value, apply_default_css=False, **settings)


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
        f"Kept in the server's memory alone, {HOW_LONG}.</p>"
    )


NAVIGATION = """
<div class="steps-bar"><button type="button" class="step" data-step="-1">← Previous</button>
<span data-place aria-live="polite"></span>
<button type="button" class="step" data-step="1">Next →</button>
<span class="fine">Keys: <kbd>J</kbd> next, <kbd>K</kbd> previous, <kbd>M</kbd> map on or off,
<kbd>O</kbd> outlines, <kbd>+</kbd> <kbd>&minus;</kbd> <kbd>0</kbd> zoom</span></div>
"""
