"""What one takes away: a picture, a table, JSON and a report in PDF, each with the notice on it.

All are made in memory and saved by the browser; the server's disk sees nothing of them.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import textwrap
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cervicyte.dashboard.batching import QueuedClassifier
from cervicyte.dashboard.cell_view import Looked, absent_sentence, usual_cells
from cervicyte.dashboard.reading_log import no_formula
from cervicyte.dashboard.results import Results, results_of
from cervicyte.dashboard.worklist import Entry, Worklist
from cervicyte.explanation import cam
from cervicyte.explanation.panels import percent
from cervicyte.images.segmentation import Outlines
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.predict import ERROR, header_of, values_of
from cervicyte.pages import counted
from cervicyte.provenance import RESEARCH_USE_ONLY

A4 = (8.27, 11.69)  # inches
LEFT = 0.07  # margin; as all measures of a page, in shares of it
LINES_A_PAGE = 30
LIST_TOP, LINE = 0.88, 0.0247
COLUMNS = {
    "No.": LEFT,
    "File, SHA-256 of the image": 0.105,
    "Class": 0.35,
    "Conf.": 0.52,
    "Abnormal": 0.58,
    "Remark": 0.665,
}
"""Of a list, and where each begins."""
REMARK_WIDTH = 40  # characters of a line, of which a remark has two
TYPES = {"png": "image/png", "json": "application/json", "csv": "text/csv", "pdf": "application/pdf"}


@dataclass(frozen=True)
class Download:
    """A file for the browser to save."""

    name: str
    content: bytes

    def packed(self) -> str:
        """Return it as text for `save` in `script.js`; no two packs are the same, so that each is saved."""
        return json.dumps(
            {
                "name": self.name,
                "type": TYPES[PurePath(self.name).suffix[1:]],
                "data": base64.b64encode(self.content).decode("ascii"),
                "number": uuid.uuid4().hex,
            }
        )


@dataclass(frozen=True)
class Source:
    """What downloads are made of; the classifier asks its network in turn."""

    classifier: QueuedClassifier
    model_name: str
    worklist: Worklist
    looked: Looked | None

    def results(self, entries: list[Entry]) -> Results:
        """Return the results of entries in the published form."""
        return results_of(self.classifier, self.model_name, self.worklist, entries, self.looked)

    @property
    def model_line(self) -> str:
        """The model and its hash, in a line."""
        return f"Model {self.model_name}, SHA-256 of the weights {self.classifier.weights_sha256}"


def download_of_cell(source: Source, kind: str) -> Download | None:
    """Return a download of the cell that is looked at; None if there is none, or of no such kind."""
    looked = source.looked
    if looked is None or kind not in TYPES:
        return None
    name = f"cervicyte_{safe_name(looked.entry.name)}.{kind}"
    if kind == "png":
        return Download(name, overlay_png(source, looked))
    if kind == "pdf":
        return Download(name, _pdf(cell_pages(source, looked)))
    return Download(name, _as_text(source, [looked.entry], kind))


def download_of_worklist(source: Source, kind: str) -> Download | None:
    """Return a download of the whole list; None if it is empty, or of no such kind."""
    entries = source.worklist.sorted()
    if not entries or kind not in ("json", "csv", "pdf"):
        return None
    name = f"cervicyte_worklist.{kind}"
    if kind == "pdf":
        return Download(name, _pdf(worklist_pages(source, entries)))
    return Download(name, _as_text(source, entries, kind))


def _as_text(source: Source, entries: list[Entry], kind: str) -> bytes:
    if kind == "json":
        return source.results(entries).model_dump_json(indent=2).encode("utf-8")
    return table_csv(source.classifier, entries).encode("utf-8")


def table_csv(classifier: Classifier, entries: Sequence[Entry]) -> str:
    """Return entries as `cervicyte predict` would write them, with the notice in a column of its own.

    A name, or a sentence that begins with one, that a spreadsheet would take for a formula gets an apostrophe
    before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header_of(classifier), "notice"])
    for entry in entries:
        name = no_formula(entry.name)
        if entry.prediction is None:
            blank = [""] * (len(classifier.class_names) + 4)
            writer.writerow([name, entry.sha256, *blank, ERROR, no_formula(entry.error), RESEARCH_USE_ONLY])
        else:
            writer.writerow([name, entry.sha256, *values_of(entry.prediction), "", RESEARCH_USE_ONLY])
    return text.getvalue()


# --- the picture -----------------------------------------------------------------------------------


def overlay_png(source: Source, looked: Looked) -> bytes:
    """Return the cell under its map, with what it shows and the notice in a strip below and in the file."""
    picture = Image.fromarray(looked.overlays[looked.class_name])
    scale = max(1, round(640 / max(picture.size)))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)
    width = max(picture.width, 480)
    font, characters = ImageFont.load_default(14), width // 8
    said = [line for text in captions(source, looked) for line in textwrap.wrap(text, characters)]
    sheet = Image.new("RGB", (width, picture.height + 16 + 20 * len(said)), "white")
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(said):
        draw.text((8, picture.height + 8 + 20 * number), line, "#17202a", font)
    about = PngInfo()
    about.add_text("Copyright", RESEARCH_USE_ONLY)
    about.add_itxt("Description", "\n".join(captions(source, looked)))
    file = io.BytesIO()
    sheet.save(file, "PNG", pnginfo=about)
    return file.getvalue()


def captions(source: Source, looked: Looked) -> list[str]:
    """Return what must stand below a picture of a map."""
    prediction = looked.prediction
    verdict = looked.verdict
    return [
        RESEARCH_USE_ONLY,
        f"{looked.entry.name}: {prediction.class_name}, confidence {percent(prediction.confidence)}.",
        f"Map: what spoke for {looked.class_name}, {cam.METHODS[looked.method].title} at {looked.layer}.",
        verdict.sentence if verdict else "The map was not tested against controls.",
        f"Image SHA-256 {looked.entry.sha256}",
        source.model_line,
    ]


# --- the report ------------------------------------------------------------------------------------


def cell_pages(source: Source, looked: Looked) -> Iterator[Figure]:
    """Yield the one page that reports a cell."""
    entry, prediction = looked.entry, looked.prediction
    page = _page(f"{prediction.class_name}, confidence {percent(prediction.confidence)}", entry.name, 1, 1)
    panels = (
        ("The cell", looked.shown),
        (f"What spoke for {looked.class_name}", looked.overlays[looked.class_name]),
        ("Outlines, drawn by a program", _outlined(looked.shown, looked.outlines)),
    )
    for place, (title, image) in enumerate(panels):
        axes = page.add_axes((0.07 + 0.295 * place, 0.64, 0.27, 0.20))
        axes.imshow(image)
        axes.set_title(textwrap.fill(title, 30), fontsize=9)
        axes.axis("off")
    names = sorted(prediction.probabilities, key=lambda name: prediction.probabilities[name])
    axes = page.add_axes((0.33, 0.46, 0.50, 0.14))
    bars = axes.barh(
        names,
        [prediction.probabilities[name] for name in names],
        color=["#0f766e" if name in prediction.prediction_set else "#94a3b8" for name in names],
    )
    axes.bar_label(bars, [percent(prediction.probabilities[name]) for name in names], fontsize=8, padding=3)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([])
    axes.tick_params(labelsize=9, length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title("Probabilities; dark: classes that it may well be", fontsize=9, loc="left")
    _write(page, 0.43, _said_of(source, looked))
    yield page


def _said_of(source: Source, looked: Looked) -> list[str]:
    prediction, entry = looked.prediction, looked.entry
    said = [f"Answer: {prediction.sentence}"]
    if prediction.prediction_set:
        said.append(f"Prediction set: {' or '.join(prediction.prediction_set)}.")
    abnormal = source.worklist.abnormal(prediction)
    if abnormal is not None:
        said.append(f"Abnormal classes together: {percent(abnormal)}.")
    if prediction.unlike is not None:
        reasons = "; ".join(prediction.unlike.reasons) or "not flagged"
        said.append(
            f"More unlike the training cells than {int(prediction.unlike.unlike_percentile)} % of "
            f"{usual_cells(source.classifier)}: {reasons}."
        )
    if looked.areas is not None:
        ratio = looked.areas[0] / looked.areas[1]
        said.append(f"Nucleus-to-cell ratio, by area, from the outlines: {100 * ratio:.0f} %.")
    said.append(captions(source, looked)[2] + " " + captions(source, looked)[3])
    said.append(absent_sentence(source.classifier.class_names))
    said.append(f"Image: {entry.name}, {entry.width} x {entry.height} pixels, SHA-256 {entry.sha256}")
    said.append(source.model_line)
    said.append(f"Preprocessing fingerprint {source.classifier.seen_through(prediction).fingerprint()}")
    return said


def worklist_pages(source: Source, entries: Sequence[Entry]) -> Iterator[Figure]:
    """Yield the pages that report a list, a line a cell."""
    total = -(-len(entries) // LINES_A_PAGE)
    for number in range(total):
        part = entries[number * LINES_A_PAGE : (number + 1) * LINES_A_PAGE]
        page = _page("Worklist, most abnormal first", counted(len(entries), "file"), number + 1, total)
        _write_row(page, LIST_TOP, COLUMNS, weight="bold")
        for place, entry in enumerate(part):
            row = [str(number * LINES_A_PAGE + place + 1), *_row(source.worklist, entry)]
            _write_row(page, LIST_TOP - LINE * (place + 0.8), row, sha256=entry.sha256)
        _write(page, 0.10, [absent_sentence(source.classifier.class_names), source.model_line], 7)
        yield page


def _write_row(
    page: Figure, top: float, texts: Iterable[str], *, sha256: str = "", weight: str = "normal"
) -> None:
    """Write a line of the list under a rule; the hash stands whole under the file's name."""
    for text, (column, left) in zip(texts, COLUMNS.items(), strict=True):
        lines = textwrap.wrap(text, REMARK_WIDTH)[:2] if column == "Remark" else [text]
        page.text(left, top, _plain("\n".join(lines)), fontsize=7, va="top", weight=weight)
    left = list(COLUMNS.values())[1]
    page.text(left, top - 0.012, sha256, fontsize=5.5, va="top", family="monospace", color="#4b5563")
    page.add_artist(Line2D([LEFT, 1 - LEFT], [top + 0.004] * 2, color="#d1d5db", linewidth=0.5))


def _row(worklist: Worklist, entry: Entry) -> list[str]:
    prediction = entry.prediction
    if prediction is None:
        said = _short(entry.error.removeprefix(f"{entry.name}: "), 2 * REMARK_WIDTH - 8)
        return [_short(entry.name, 34), "could not be read", "", "", said]
    abnormal = worklist.abnormal(prediction)
    remark = {"unlike_training": "unlike training cells", "not_a_cell": "not a single cell?"}.get(
        prediction.verdict,
        "" if prediction.verdict == "answer" else _short(prediction.sentence, 2 * REMARK_WIDTH - 8),
    )
    return [
        _short(entry.name, 34),
        _short(prediction.class_name, 26),
        percent(prediction.confidence),
        "" if abnormal is None else percent(abnormal),
        remark,
    ]


def _page(title: str, below: str, number: int, total: int) -> Figure:
    """Return a page with the notice above and below, a title and its number."""
    page = Figure(figsize=A4)
    for height in (0.965, 0.03):
        page.text(0.5, height, RESEARCH_USE_ONLY, ha="center", fontsize=9, weight="bold", color="#7a4b00")
    page.text(0.07, 0.925, _plain(_short(title, 60)), fontsize=16, weight="bold")
    page.text(0.07, 0.90, _plain(_short(below, 90)), fontsize=10, color="#4b5563")
    page.text(0.93, 0.90, f"Cervicyte · page {number} of {total}", fontsize=8, ha="right", color="#4b5563")
    return page


def _write(page: Figure, top: float, sentences: Sequence[str], size: float = 9) -> None:
    for sentence in sentences:
        lines = textwrap.wrap(sentence, round(900 / size))
        page.text(0.07, top, _plain("\n".join(lines)), fontsize=size, va="top", linespacing=1.35)
        top -= (0.0175 * len(lines) + 0.006) * size / 9


def _outlined(image: np.ndarray, outlines: Outlines | None) -> np.ndarray:
    """Return a copy of an image with the borders of nucleus and cell drawn into it."""
    drawn = image.copy()
    if outlines is None:
        return drawn
    for mask, colour in ((outlines.cell, (11, 61, 145)), (outlines.nucleus, (0, 194, 168))):
        padded = np.pad(mask, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        drawn[mask & ~core] = colour
    return drawn


def _pdf(pages: Iterator[Figure]) -> bytes:
    file = io.BytesIO()
    about = {"Title": "Cervicyte report", "Subject": RESEARCH_USE_ONLY, "Creator": "Cervicyte"}
    with PdfPages(file, metadata=about) as pdf:
        for page in pages:
            pdf.savefig(page)
    return file.getvalue()


def _short(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _plain(text: str) -> str:
    """Return text in which the dollar signs begin no formula."""
    return text.replace("$", r"\$")


def safe_name(name: str) -> str:
    """Return a file's name without its ending and without what a disk or a shell may stumble over.

    It has so few letters that with what is put around it no disk takes it for too long (255 bytes).
    """
    return re.sub(r"[^\w-]+", "_", PurePath(name).stem).strip("_")[:55] or "cell"


SAVES = """
<div class="saves" role="group" aria-label="Downloads"><span>Save this cell:</span>
<button type="button" data-save="png" data-of="cell">Overlay PNG</button>
<button type="button" data-save="json" data-of="cell">JSON</button>
<button type="button" data-save="csv" data-of="cell">CSV</button>
<button type="button" data-save="pdf" data-of="cell">PDF report</button>
<span class="gap"></span><span>The whole list:</span>
<button type="button" data-save="json" data-of="list">JSON</button>
<button type="button" data-save="csv" data-of="list">CSV</button>
<button type="button" data-save="pdf" data-of="list">PDF report</button>
<button type="button" data-send="overlays" data-of="list">Overlay PNGs (zip)</button></div>
"""
