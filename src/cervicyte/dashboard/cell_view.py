"""One cell: what the model says of it, why, whether that is worth anything, and what it all means."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from cervicyte.dashboard.markup import SCALE, data_uri, error_html, onto, percent_bar, picture, smaller
from cervicyte.dashboard.worklist import FLAGGED, Entry, Worklist
from cervicyte.datasets.class_guide import guide_of
from cervicyte.datasets.classes import Grouping, grouping_of, known_class, proper_names
from cervicyte.errors import UsageError
from cervicyte.evaluation.familiarity import FEATURES
from cervicyte.evaluation.model_card import ABSENT_CLASSES
from cervicyte.explanation import cam
from cervicyte.explanation.colours import overlay
from cervicyte.explanation.panels import percent
from cervicyte.explanation.verdict import Verdict
from cervicyte.images.quality import Step, steps_against_original
from cervicyte.images.segmentation import Outlines, segment
from cervicyte.images.statistics import STATISTICS
from cervicyte.inference.classifier import Classifier, Prediction
from cervicyte.pages import counted

MEASURED_PIXELS = (
    4_000_000  # of a larger image, steps are shown and measured at the size in which it is shown
)
STRIP_SIDE = 128  # pixels of a map among those of all classes
Asked = tuple[str, str, str]
"""A class, a method and a layer."""


@dataclass
class Looked:
    """The cell that one looks at, with what has been computed of it.

    Attributes:
        entry: of the worklist; it has a prediction.
        image: uint8 [H, W, 3], RGB, as it was read.
        preprocessed: uint8 [S, S, 3], what the network saw; maps are tested on it.
        shown: uint8 [h, w, 3], the image in the size in which it is shown.
        outlines: of nucleus and cell on `shown`; None if no nucleus was found.
        class_name, method, layer: of the map that is shown.
        overlays: class -> uint8 [h, w, 3], the image with its map, all classes on one scale.
        peaks: class -> the highest value of its map, in shares of the highest of all classes.
        verdicts: of the maps that have been held against controls.
    """

    entry: Entry
    image: np.ndarray
    preprocessed: np.ndarray
    shown: np.ndarray
    outlines: Outlines | None
    class_name: str
    method: str = cam.DEFAULT_METHOD
    layer: str = cam.DEFAULT_LAYER
    overlays: dict[str, np.ndarray] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    verdicts: dict[Asked, Verdict] = field(default_factory=dict)

    @property
    def prediction(self) -> Prediction:
        """What the model says."""
        assert self.entry.prediction is not None
        return self.entry.prediction

    @property
    def asked(self) -> Asked:
        """What the map that is shown answers."""
        return self.class_name, self.method, self.layer

    @property
    def verdict(self) -> Verdict | None:
        """Of the map that is shown, if it has been held against controls."""
        return self.verdicts.get(self.asked)

    @property
    def held_bytes(self) -> int:
        """What its pictures and outlines take of the memory."""
        pictures = [self.image, self.preprocessed, self.shown, *self.overlays.values()]
        if self.outlines is not None:
            pictures += [self.outlines.nucleus, self.outlines.cell]
        return sum(one.nbytes for one in pictures)

    @property
    def areas(self) -> tuple[int, int] | None:
        """Pixels of the nucleus and of the whole cell, in the image as it is shown."""
        if self.outlines is None:
            return None
        return int(self.outlines.nucleus.sum()), int(self.outlines.cell.sum())

    def explain(self, classifier: Classifier, class_name: str, method: str, layer: str) -> None:
        """Take up another class, method or layer; maps are computed anew only for the latter two.

        Raises:
            UsageError: unknown class, method or layer.
        """
        if not self.overlays or (method, layer) != (self.method, self.layer):
            evidence = self.entry.evidence
            if evidence is not None and classifier.in_one_pass(layer, method):
                maps = classifier.maps_of(self.image, evidence, self.prediction)
            else:
                maps = classifier.explain(self.image, None, layer, method, prediction=self.prediction)
            highest = max(float(values.max()) for values in maps.values())
            shrunk = onto(self.shown, maps)
            self.overlays = {name: overlay(self.shown, values, highest) for name, values in shrunk.items()}
            self.peaks = {
                name: float(values.max()) / highest if highest > 0 else 0.0 for name, values in maps.items()
            }
            self.method, self.layer = method, layer
        if class_name not in self.overlays:
            raise UsageError(f"There is no class {class_name!r}; choose from {', '.join(self.overlays)}.")
        self.class_name = class_name

    def judge(self, classifier: Classifier, asked: Asked) -> Verdict:
        """Hold a map against controls, once."""
        if asked not in self.verdicts:
            class_name, method, layer = asked
            self.verdicts[asked] = classifier.judge(self.preprocessed, class_name, layer, method)
        return self.verdicts[asked]


def look(classifier: Classifier, entry: Entry) -> Looked:
    """Take up a cell of the worklist, with the map of its most probable class."""
    assert entry.prediction is not None
    image = entry.image()
    shown = smaller(image)
    looked = Looked(
        entry,
        image,
        classifier.seen_through(entry.prediction)(image),
        shown,
        segment(shown),
        entry.prediction.class_name,
        layer=classifier.default_layer,
    )
    looked.explain(classifier, looked.class_name, looked.method, looked.layer)
    return looked


# --- the answer ----------------------------------------------------------------------------------


def answer_html(worklist: Worklist, looked: Looked, model_name: str = "") -> str:
    """Return the class, its confidence, the doubts, and every class's probability from high to low.

    Args:
        worklist: that the cell is of.
        looked: the cell.
        model_name: said beside the answer if it is not the served model's.
    """
    entry, prediction = looked.entry, looked.prediction
    groupings = worklist.groupings
    grouping = groupings[prediction.class_name]
    tag = f' <span class="tag {grouping}">{grouping}</span>' if grouping else ""
    abnormal = worklist.abnormal(prediction)
    together = "" if abnormal is None else f" · abnormal classes together <b>{percent(abnormal)}</b>"
    by = f'<p class="adapted">Model {html.escape(model_name)}</p>' if model_name else ""
    return (
        f'<section class="answer card" aria-label="Answer"><p class="kicker">{html.escape(entry.name)} · '
        f"{entry.width} &times; {entry.height} pixels</p>{by}"
        f'<div aria-live="polite"><h2>{html.escape(prediction.class_name)}{tag}</h2>'
        f'<p class="confidence">Confidence <b>{percent(prediction.confidence)}</b>{together}</p>'
        f"{doubt_html(prediction)}</div>{bars_html(prediction, groupings)}{set_html(prediction)}"
        f'{areas_html(looked)}<p class="absent">{html.escape(absent_sentence(worklist.class_names))}</p>'
        "</section>"
    )


def doubt_html(prediction: Prediction) -> str:
    """Return in plain words what the program says of its own answer, where it is in doubt."""
    if prediction.verdict == "answer":
        return ""
    flagged = " flagged" if prediction.verdict in FLAGGED else ""
    return f'<p class="doubt{flagged}" role="note">{html.escape(prediction.sentence)}</p>'


def bars_html(prediction: Prediction, groupings: Mapping[str, Grouping | None]) -> str:
    """Return every class's probability as a bar, from high to low; those of the prediction set are marked."""
    rows = []
    for name, probability in sorted(prediction.probabilities.items(), key=lambda item: -item[1]):
        inside = name in prediction.prediction_set
        mark = (
            '<span class="in-set" title="in the prediction set">●<span class="sr"> in the set</span></span>'
        )
        rows.append(
            f'<li class="{groupings[name] or "unknown"}{" set" if inside else ""}">'
            f"<span>{html.escape(name)} {mark if inside else ''}</span>"
            f"{percent_bar(probability)}<b>{percent(probability)}</b></li>"
        )
    return f'<ul class="bars" aria-label="Probability of each class">{"".join(rows)}</ul>'


def set_html(prediction: Prediction) -> str:
    """Return what the marks beside the bars mean."""
    if not prediction.prediction_set:
        return '<p class="fine">This model carries no calibration: there is no prediction set.</p>'
    names = html.escape(" or ".join(prediction.prediction_set))
    return f'<p class="fine">● Classes that it may well be: <b>{names}</b></p>'


def areas_html(looked: Looked) -> str:
    """Return the ratio of the areas of nucleus and cell, as far as outlines were found."""
    if looked.areas is None:
        return '<p class="fine">No nucleus was found to outline.</p>'
    nucleus, cell = looked.areas
    return (
        f'<p class="fine">Nucleus-to-cell ratio, by area: <b>{100 * nucleus / cell:.0f} %</b>, from outlines '
        "that a simple program drew; look at the outlines before you use it.</p>"
    )


def absent_sentence(class_names: Sequence[str]) -> str:
    """Say what cytologists look for and this model cannot name."""
    data_set = (proper_names(class_names) or ("",))[0]
    absent = ABSENT_CLASSES.get(data_set)
    if absent is None:
        return (
            "Whatever an image shows is called one of these classes; what is not among them cannot be named."
        )
    return f"{absent} are not among the classes: this model cannot name them, whatever the image shows."


# --- the picture ---------------------------------------------------------------------------------


def viewer_html(classifier: Classifier, looked: Looked, remark: str = "") -> str:
    """Return the cell under its map, with what one needs to look at it, and the maps of all classes.

    Args:
        classifier: that answered.
        looked: the cell.
        remark: a sentence on why it is not what was asked for.
    """
    height, width = looked.shown.shape[:2]
    name = html.escape(looked.class_name)
    original = picture(looked.shown, "The cell as it was read", "original")
    explained = picture(
        looked.overlays[looked.class_name], f"Map of what spoke for {looked.class_name}", "map"
    )
    return (
        f'<section class="viewer card" data-key="{looked.entry.key}" aria-label="Cell and map">'
        f"{error_html(remark) if remark else ''}{VIEW_CONTROLS}"
        f'<div class="stage" tabindex="0" role="group" aria-label="Cell. Plus and minus zoom, 0 fits, arrow '
        f'keys move it when it is zoomed." style="--ratio:{width / height:.4f}"><div class="pane">'
        f"{original}{explained}{outlines_svg(looked)}"
        '<span class="divider" aria-hidden="true"></span></div></div>'
        f'<p class="legend"><span>Places that spoke for <strong>{name}</strong></span>'
        f'<span class="scale">little {SCALE} much</span></p>'
        f"{strip_html(looked)}{choices_html(classifier, looked)}</section>"
    )


def outlines_svg(looked: Looked) -> str:
    """Return the outlines of nucleus and cell as lines over the picture; nothing where there are none."""
    if looked.outlines is None:
        return ""
    height, width = looked.shown.shape[:2]
    paths = "".join(
        f'<path class="{kind}" d="{outline_path(mask)}"/>'
        for kind, mask in (("cell", looked.outlines.cell), ("nucleus", looked.outlines.nucleus))
    )
    return (
        f'<svg class="outlines" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="Outlines of nucleus and cell">{paths}</svg>'
    )


def outline_path(mask: np.ndarray) -> str:
    """Return the outer borders of a mask, bool [H, W], as an SVG path in pixels."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        points = " ".join(f"{x + 0.5:g},{y + 0.5:g}" for x, y in contour[:, 0])
        parts.append(f"M{points}Z")
    return "".join(parts)


def strip_html(looked: Looked) -> str:
    """Return the maps of all classes on one scale, as buttons that choose the class."""
    buttons = []
    for name, probability in looked.prediction.probabilities.items():
        small = data_uri(smaller(looked.overlays[name], STRIP_SIDE), lossless=False)
        buttons.append(
            f'<button type="button" data-class="{html.escape(name)}" data-focus="class-{html.escape(name)}" '
            f'aria-pressed="{str(name == looked.class_name).lower()}"><img src="{small}" alt="">'
            f"<span>{html.escape(name)}</span><b>{percent(probability)}</b>"
            f"<small>map {looked.peaks[name]:.2f}</small></button>"
        )
    return (
        '<div class="strip" role="group" aria-label="Class whose map is shown">'
        f"{''.join(buttons)}</div>"
        '<p class="fine">All classes on one scale: “map” is how strong a map is at its strongest place, with '
        "the strongest of all maps as 1. A pale map says that little spoke for its class.</p>"
    )


def choices_html(classifier: Classifier, looked: Looked) -> str:
    """Return the fields that choose method and layer."""
    methods = "".join(
        f'<option value="{key}"{" selected" if key == looked.method else ""}>{method.title}</option>'
        for key, method in cam.METHODS.items()
        if key in classifier.methods
    )
    layers = "".join(
        f"<option{' selected' if layer == looked.layer else ''}>{layer}</option>"
        for layer in classifier.layers
    )
    return (
        '<div class="choices"><label>Method '
        f'<select id="method" data-focus="method">{methods}</select></label>'
        f'<label>Layer <select id="layer" data-focus="layer">{layers}</select></label></div>'
    )


VIEW_CONTROLS = """
<div class="controls">
<label>Map opacity <input type="range" id="opacity" min="0" max="100" value="100"
 data-focus="opacity"></label>
<label>Before / after <input type="range" id="split" min="0" max="100" value="0" data-focus="split"></label>
<label><input type="checkbox" id="outlined" data-focus="outlined"> Outlines</label>
<span class="zoom" role="group" aria-label="Zoom"><button type="button" data-zoom="out" aria-label="Zoom out"
 data-focus="zoom-out">&minus;</button>
<button type="button" data-zoom="fit" data-focus="zoom-fit">Fit</button>
<button type="button" data-zoom="in" aria-label="Zoom in" data-focus="zoom-in">+</button></span>
</div>
"""


# --- the verdict ---------------------------------------------------------------------------------

PENDING = """
<section class="verdict" aria-live="polite"><p><strong>Testing the map …</strong></p>
<p>Does it find better than three controls what the network relies on? Until this is known, do not rely on
where it points.</p></section>
"""

UNTESTED = """
<section class="verdict"><p><strong>Map not tested</strong></p>
<p>The dashboard was started without verdicts (--no-verdict): whether this map beats any control is not
known.</p></section>
"""


def verdict_html(class_name: str, verdict: Verdict) -> str:
    """Return whether the map of a class beats the controls, as it stands below the map."""
    mark, title = "untested", "Map not tested"
    if verdict.tested:
        mark = "beats" if verdict.beats_controls else "fails"
        title = "Map tested: " + ("it beats the controls" if verdict.beats_controls else "unproven")
    passes = f"{counted(verdict.forward_passes, 'pass')} through the network"
    how = (
        f"Measured by taking the marked places out of this image and putting them back, in {passes}. It says "
        "whether the network relies on these places, not whether its answer is right."
        if verdict.tested
        else f"Known from {passes}, without a test."
    )
    return (
        f'<section class="verdict {mark}" aria-live="polite"><p><strong>{title}</strong> '
        f"({html.escape(class_name)})</p><p>{html.escape(verdict.sentence)}</p>"
        f'<p class="fine">{how}</p></section>'
    )


# --- what stands below ---------------------------------------------------------------------------


def details_html(classifier: Classifier, looked: Looked, drawn: Mapping[str, str]) -> str:
    """Return what one opens when one wants to know more.

    Args:
        classifier: whose classes and preprocessing these are.
        looked: the cell.
        drawn: class -> address of a picture of a drawn cell, as far as there are any.
    """
    sections = {
        "How unlike the training cells, and in what": unlike_html(classifier, looked.prediction),
        "Preprocessing, step by step": steps_html(classifier, looked),
        "What each class looks like and means": guide_html(classifier.class_names, drawn),
        "How to read a map": MEANING,
    }
    return "".join(
        f'<details class="card" data-keep="{title}"><summary>{title}</summary>{content}</details>'
        for title, content in sections.items()
    )


def usual_cells(classifier: Classifier) -> str:
    """Say among which cells it is ranked how unlike the training cells a cell is."""
    if classifier.answerer.is_adapted:
        return "the images that the model was adapted to"
    return "other cells of the training laboratory, from which the model did not learn"


def unlike_html(classifier: Classifier, prediction: Prediction) -> str:
    """Return how unlike the training cells a cell is, and where it stands among them in each way."""
    unlike = prediction.unlike
    if unlike is None:
        return "<p>This model cannot tell whether an image is unlike its training cells.</p>"
    more = math.floor(unlike.unlike_percentile)
    said = (
        f"<p>More unlike the training cells than <b>{more} %</b> of {usual_cells(classifier)}. "
        + (
            f"Flagged: {html.escape('; '.join(unlike.reasons))}."
            if unlike.reasons
            else "Not flagged, which does not say that the answer is right."
        )
        + "</p>"
    )
    rows = []
    for name, percentile in unlike.percentiles.items():
        title, meaning = (
            ("Features", "how far the network's features lie from those of the training cells")
            if name == FEATURES
            else (STATISTICS[name][0], STATISTICS[name][2])
        )
        rows.append(
            f'<li title="{html.escape(meaning)}"><span>{title}</span><span class="ruler"><i '
            f'style="left:{percentile:.1f}%"></i></span><b>{percentile:.0f}</b></li>'
        )
    return (
        f'{said}<ul class="rulers" aria-label="Percentile among these cells">{"".join(rows)}</ul>'
        '<p class="fine">Percentiles: 50 is the middle of these cells; 0 and 100 their ends. Features '
        "far to the right are strange to the network; the others are unusual at either end.</p>"
    )


def steps_html(classifier: Classifier, looked: Looked) -> str:
    """Return every step of the preprocessing as a picture with what is left of the original."""
    image, remark = looked.image, ""
    if image.shape[0] * image.shape[1] > MEASURED_PIXELS:
        image, remark = looked.shown, " Measured on the image in the size in which it is shown."
    steps = steps_against_original(classifier.seen_through(looked.prediction), image)
    figures = "".join(
        f"<figure>{picture(smaller(step.image, 320), f'After the step: {step.name}')}<figcaption>"
        f"<strong>{html.escape(step.name)}</strong> {step.image.shape[1]} &times; {step.image.shape[0]}"
        f"<br>{quality_text(step)}</figcaption></figure>"
        for step in steps
    )
    return (
        f'<div class="steps">{figures}</div><p class="fine">What is left of the original after each step, on '
        "the original's pixels: PSNR in decibels and SSIM, higher is closer (SSIM 1 is equal); contrast as a "
        f"ratio, over 1 where it was raised.{remark}</p>"
    )


def quality_text(step: Step) -> str:
    """Return PSNR, SSIM and contrast ratio of a step; nothing is lost of what is equal."""
    if math.isinf(step.psnr):
        return "equal to the original"
    similarity = "image too small" if step.ssim is None else f"{step.ssim:.3f}"
    return f"PSNR {step.psnr:.1f} dB · SSIM {similarity} · contrast&nbsp;&times;&nbsp;{step.contrast:.2f}"


def guide_html(class_names: tuple[str, ...], drawn: Mapping[str, str]) -> str:
    """Return what each class looks like and means."""
    guide = guide_of(class_names)
    if not guide:
        return "<p>These classes are of no data set that this program knows; ask those who named them.</p>"
    groupings = grouping_of(class_names)
    items = []
    for name in class_names:
        pictured = f'<img src="{drawn[name]}" alt="" width="96" height="96">' if name in drawn else ""
        items.append(
            f'<div>{pictured}<div><h3>{html.escape(name)} <span class="tag {groupings[name]}">'
            f"{groupings[name]}</span></h3><p>{guide[name].looks}</p><p>{guide[name].means}</p></div></div>"
        )
    remark = '<p class="fine">The pictures are drawn by a program, not photographed.</p>' if drawn else ""
    return f'<div class="guide">{"".join(items)}</div>{remark}'


def drawn_name(file_stem: str) -> str:
    """Return the class that a drawn cell's file is named for, else the file's name in words."""
    known = known_class("SIPaKMeD", file_stem)
    return known.name if known else file_stem.replace("_", " ")


MEANING = """
<p>Coloured places are those whose features raised the network's score of the chosen class. All classes of a
cell share one scale.</p>
<ul>
<li>A map is coarse, and no outline of a nucleus, a cell or a lesion.</li>
<li>Every class has a map, a wrong one too: a map does not say that the answer is right.</li>
<li>Maps of different cells, methods or layers cannot be compared by their colours.</li>
<li>A map that does not beat its controls may look as convincing as one that does.</li>
<li>For images unlike those that the network was trained on, its confidence means little.</li>
</ul>
"""

EMPTY_CELL = """
<div class="empty card"><p>No cell chosen</p><p class="fine">Its class, the probability of every class and the
map of what spoke for it will stand here.</p></div>
"""
