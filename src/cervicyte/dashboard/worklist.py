"""The list of cells that lie before the reader: answered, most abnormal first, errors in their place."""

from __future__ import annotations

import hashlib
import html
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cervicyte.dashboard.intake import MAX_CELLS, MAX_WORKLIST_MB, Arrived
from cervicyte.dashboard.limits import MAX_PIXELS
from cervicyte.dashboard.markup import thumbnail
from cervicyte.datasets.classes import Grouping, grouping_of
from cervicyte.errors import ImageError
from cervicyte.explanation import cam
from cervicyte.explanation.panels import percent
from cervicyte.images.reader import read_image
from cervicyte.inference.classifier import Classifier, Prediction
from cervicyte.pages import counted

AT_ONCE = 8  # images that are answered together, so that the list grows as one looks at it
PIXELS_AT_ONCE = 40_000_000
PREDICTION_BYTES = 4096  # of one entry's answer and figures in memory, rounded up; measured: 2.7 kB
_ADDING = threading.Lock()
FLAGGED = ("unlike_training", "not_a_cell")


@dataclass(frozen=True)
class Entry:
    """One file of the list.

    Attributes:
        key: its place in the order of arrival, which never changes.
        name: the file's, without folders.
        content: the file's bytes; the image is decoded again when it is looked at.
        sha256: of the bytes.
        height, width: of the image in pixels.
        thumbnail: address that carries its pixels.
        prediction: None where there is an error.
        error: why it could not be read, a sentence.
        evidence: float32 [C, h, w], where the classifier gives it with the prediction.
    """

    key: int
    name: str
    content: bytes = b""
    sha256: str = ""
    height: int = 0
    width: int = 0
    thumbnail: str = ""
    prediction: Prediction | None = None
    error: str = ""
    evidence: np.ndarray | None = field(default=None, compare=False, repr=False)

    def image(self) -> np.ndarray:
        """Return the image, uint8 [H, W, 3], RGB."""
        return read_image(self.content, name=self.name, max_pixels=MAX_PIXELS)


@dataclass
class Worklist:
    """What one page has been given.

    Attributes:
        class_names: of the model.
        entries: in the order of arrival.
        held_bytes: of their files, thumbnails and answers, about.
        broken_off: a sentence while files are read; what is said if that never comes to its end.
    """

    class_names: tuple[str, ...]
    entries: list[Entry] = field(default_factory=list)
    held_bytes: int = 0
    broken_off: str = ""

    @property
    def groupings(self) -> dict[str, Grouping | None]:
        """Of each class: normal, benign, abnormal, or not known."""
        return grouping_of(self.class_names)

    @property
    def room(self) -> int:
        """Images that may still come in."""
        return max(0, MAX_CELLS - len(self.entries))  # what was left out has its row, too

    def abnormal(self, prediction: Prediction) -> float | None:
        """Return the probability that a cell is of an abnormal class; None if it is not known which are."""
        abnormal = [name for name, grouping in self.groupings.items() if grouping == "abnormal"]
        return sum(prediction.probabilities[name] for name in abnormal) if abnormal else None

    def sorted(self) -> list[Entry]:
        """Return the entries as they are shown: most abnormal first, what could not be read last.

        Where it is not known which classes are abnormal, the least certain come first.
        """

        def place(entry: Entry) -> tuple[bool, float, int]:
            if entry.prediction is None:
                return True, 0.0, entry.key
            abnormal = self.abnormal(entry.prediction)
            return False, entry.prediction.confidence if abnormal is None else -abnormal, entry.key

        return sorted(self.entries, key=place)

    def answered(self) -> list[Entry]:
        """Return the sorted entries that have an answer."""
        return [entry for entry in self.sorted() if entry.prediction is not None]

    def entry(self, key: int) -> Entry | None:
        """Return the entry of a key, or None if it is not here any more."""
        return self.entries[key] if 0 <= key < len(self.entries) else None

    def say(self, predictions: Mapping[int, Prediction]) -> None:
        """Put other answers into the entries, by their keys."""
        with _ADDING:
            self.entries = [
                replace(entry, prediction=predictions[entry.key], evidence=None)
                if entry.key in predictions
                else entry
                for entry in self.entries
            ]

    def read(self, classifier: Classifier, arrived: Iterable[Arrived]) -> Iterator[int]:
        """Read and answer files, a few at a time; yield how many there are by now."""
        held = sum(len(entry.content) for entry in self.entries)
        remaining = iter(arrived)
        while batch := list(itertools.islice(remaining, AT_ONCE)):
            images: list[np.ndarray] = []
            waiting: list[tuple[Arrived, np.ndarray]] = []
            for one in batch:
                held += len(one.content)
                try:
                    if one.error:
                        raise ImageError(one.error)
                    if held > MAX_WORKLIST_MB << 20:
                        held -= len(one.content)
                        raise ImageError(
                            f"{one.name}: was left out, as a list holds {MAX_WORKLIST_MB} MB of files; clear "
                            "it, then go on."
                        )
                    waiting.append((one, read_image(one.content, name=one.name, max_pixels=MAX_PIXELS)))
                except ImageError as error:
                    self._answer(classifier, waiting)
                    self._add(Entry(0, one.name, error=str(error)))
                images = [image for _, image in waiting]
                if sum(image.shape[0] * image.shape[1] for image in images) > PIXELS_AT_ONCE:
                    self._answer(classifier, waiting)
            self._answer(classifier, waiting)
            yield len(self.entries)

    def _answer(self, classifier: Classifier, waiting: list[tuple[Arrived, np.ndarray]]) -> None:
        """Answer for what has been read, and forget its pixels."""
        with_evidence = classifier.in_one_pass(classifier.default_layer, cam.DEFAULT_METHOD)
        answered = classifier.answered([image for _, image in waiting], with_evidence)
        for (one, image), (prediction, evidence) in zip(waiting, answered, strict=True):
            self._add(
                Entry(
                    0,
                    one.name,
                    one.content,
                    hashlib.sha256(one.content).hexdigest(),
                    height=image.shape[0],
                    width=image.shape[1],
                    thumbnail=thumbnail(image),
                    prediction=prediction,
                    evidence=evidence,
                )
            )
        waiting.clear()

    def _add(self, entry: Entry) -> None:
        """Append an entry under its own key; files may come in at two doors of a page at once."""
        with _ADDING:
            self.entries.append(replace(entry, key=len(self.entries)))
            evidence = 0 if entry.evidence is None else entry.evidence.nbytes
            self.held_bytes += len(entry.content) + len(entry.thumbnail) + evidence + PREDICTION_BYTES


# --- markup --------------------------------------------------------------------------------------


def worklist_html(worklist: Worklist) -> str:
    """Return the list, a button a cell; an error stands in it as a sentence."""
    if not worklist.entries:
        return EMPTY
    rows = "".join(_row(worklist, entry) for entry in worklist.sorted())
    return f'<ol class="worklist" aria-label="Cells, most abnormal first">{rows}</ol>'


def _row(worklist: Worklist, entry: Entry) -> str:
    name = html.escape(entry.name)
    if entry.prediction is None:
        return (
            f'<li data-kind="error" data-text="{name}"><p class="failed" role="note">'
            f"{html.escape(entry.error)}</p></li>"
        )
    prediction = entry.prediction
    grouping = worklist.groupings[prediction.class_name] or "unknown"
    kinds = ["doubt"] if prediction.verdict == "uncertain" else []
    marks = []
    others = [name for name in prediction.prediction_set if name != prediction.class_name]
    if others:
        marks.append(f'<span class="also">or {html.escape(", ".join(others))}</span>')
    elif prediction.verdict == "uncertain":
        marks.append('<span class="also">uncertain</span>')
    if prediction.verdict in FLAGGED:
        kinds.append("flagged")
        said = "not a single cell?" if prediction.verdict == "not_a_cell" else "unlike training cells"
        marks.append(f'<span class="flag">{said}</span>')
    abnormal = worklist.abnormal(prediction)
    risk = "" if abnormal is None else f'<span class="risk">abnormal {percent(abnormal)}</span>'
    return (
        f'<li data-kind="{" ".join([grouping, *kinds])}" data-class="{html.escape(prediction.class_name)}" '
        f'data-text="{name}"><button type="button" data-open="{entry.key}" class="{grouping}">'
        f'<img src="{entry.thumbnail}" alt="" width="56" height="56"><span class="what">'
        f'<span class="name">{name}</span><span class="class"><b>{html.escape(prediction.class_name)}</b> '
        f'<span class="num">{percent(prediction.confidence)}</span></span>'
        f'<span class="marks">{risk}{"".join(marks)}</span></span>'
        "</button></li>"
    )


def filter_html(class_names: Sequence[str]) -> str:
    """Return the fields that narrow the list; the browser does it, without asking the server."""
    kinds = {
        "": "All cells",
        "abnormal": "Abnormal classes",
        "doubt": "In doubt",
        "flagged": "Unlike training cells",
        "error": "Could not be read",
    }
    options = "".join(f'<option value="kind:{kind}">{text}</option>' for kind, text in kinds.items())
    options += "".join(
        f'<option value="class:{html.escape(name)}">{html.escape(name)}</option>' for name in class_names
    )
    return (
        '<div class="filter"><label>Show <select id="filter-kind">'
        f'{options}</select></label><label>Name <input id="filter-text" type="search" autocomplete="off" '
        'placeholder="part of the name"></label></div><div class="count-row"><p id="filter-count" '
        'class="fine" aria-live="polite"></p><button type="button" class="quiet" data-send="clear">'
        "Clear list</button></div>"
    )


def progress_html(worklist: Worklist, reading: bool = False, remark: str = "") -> str:
    """Return how far the reading of files is, for a place that is announced when it changes.

    Args:
        worklist: that they are read into.
        reading: whether that goes on.
        remark: a sentence on what went wrong.
    """
    count, failed = len(worklist.entries), sum(entry.prediction is None for entry in worklist.entries)
    if reading:
        return f'<p class="fine busy">Reading … {count} so far</p>'
    remark = remark or worklist.broken_off
    warned = f'<p class="failed" role="alert">{html.escape(remark)}</p>' if remark else ""
    said = f"{counted(count - failed, 'cell')} read"
    said += f", {failed} could not be" if failed else ""
    return f'{warned}<p class="fine">{said}</p>'


EMPTY = """
<div class="empty"><p>No cells yet</p><p class="fine">Drop images or a zip above, paste one from the
clipboard, or try the drawn cells. They are listed here, most abnormal first.</p></div>
"""
