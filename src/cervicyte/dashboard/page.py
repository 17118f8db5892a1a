"""The dashboard's page: choose a cell, read its class, see which places spoke for it.

Pictures go to the browser inside the page, not as files, so that nothing of a cell is left on the disk.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

import cervicyte
from cervicyte.datasets.classes import known_class
from cervicyte.errors import CervicyteError
from cervicyte.explanation import cam
from cervicyte.explanation.panels import overlay, percent
from cervicyte.explanation.verdict import Verdict
from cervicyte.images.reader import read_image
from cervicyte.inference.classifier import Classifier, Prediction
from cervicyte.pages import plural
from cervicyte.provenance import RESEARCH_USE_ONLY

MAX_UPLOAD_MB = 50
MAX_PIXELS = 20_000_000
"""Bound for one upload, height times width; a whole SIPaKMeD field has 3.1 million."""
SHOWN_SIDE = 1024  # pixels; larger pictures are shown smaller
SECONDS_KEPT = 3600  # a read cell, in the memory of the server
SAMPLES = Path(cervicyte.__file__).parent / "sample_image"

THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="md",
    # System fonts: Gradio's other themes ask Google for theirs.
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
).set(body_text_color_subdued="*neutral_600")  # the theme's own is too pale to read (WCAG AA)


@dataclass(frozen=True)
class ReadCell:
    """All that the page shows of one cell; the file itself is not kept.

    Attributes:
        name: the file's, without folders.
        height, width: of the image in pixels.
        prediction: what the network says.
        image: uint8 [h, w, 3], RGB, no side longer than `SHOWN_SIDE`.
        overlays: class -> uint8 [h, w, 3], the image with the map of what spoke for the class, all
            classes on one scale.
        preprocessed: uint8 [S, S, 3], what the network saw; the maps are tested on it.
    """

    name: str
    height: int
    width: int
    prediction: Prediction
    image: np.ndarray
    overlays: dict[str, np.ndarray]
    preprocessed: np.ndarray


def read_cell(classifier: Classifier, path: Path) -> ReadCell:
    """Read, classify and explain one file.

    Raises:
        ImageError: the file cannot be used; the text begins with its name, without folders.
    """
    image = read_image(path, name=path.name, max_pixels=MAX_PIXELS)
    height, width = image.shape[:2]
    maps = classifier.explain(image)
    highest = max(float(values.max()) for values in maps.values())
    return ReadCell(
        path.name,
        height,
        width,
        classifier.predict([image])[0],
        shown(image),
        {name: shown(overlay(image, values, highest)) for name, values in maps.items()},
        classifier.model.preprocessing(image),
    )


def shown(image: np.ndarray) -> np.ndarray:
    """Shrink uint8 [H, W, 3] to the size in which it is shown."""
    small = Image.fromarray(image)
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return np.asarray(small)


def answer(classifier: Classifier, path: Path, with_verdicts: bool = True) -> tuple[Any, ...]:
    """Return what a file changes on the page: upload field (free again), cell, answer, picker, map, verdict.

    The verdict is pending: it takes many times as long as the rest, which is therefore shown first. Without
    verdicts it says that there is none.
    """
    try:
        cell = read_cell(classifier, path)
    except CervicyteError as error:
        hidden = gr.update(visible=False)
        return None, None, error_html(str(error)), hidden, hidden, hidden
    name = cell.prediction.class_name
    return (
        None,
        cell,
        answer_html(cell),
        gr.update(value=name, visible=True),
        gr.update(value=map_html(cell, name), visible=True),
        gr.update(value=PENDING if with_verdicts else UNTESTED, visible=True),
    )


def answer_upload(classifier: Classifier, upload: Path, with_verdicts: bool = True) -> tuple[Any, ...]:
    """Return as `answer` does, and delete the file."""
    try:
        return answer(classifier, upload, with_verdicts)
    finally:
        upload.unlink(missing_ok=True)


def build_page(
    classifier: Classifier, model_name: str, samples: Path = SAMPLES, with_verdicts: bool = True
) -> gr.Blocks:
    """Return the page for a classifier.

    Args:
        classifier: answers.
        model_name: as the page names the model.
        samples: holds pictures (PNG) to try, if it is there.
        with_verdicts: whether each map is held against controls after it is shown.
    """
    sample_files = sorted(samples.glob("*.png"))

    def answer_file(upload: str) -> tuple[Any, ...]:
        return answer_upload(classifier, Path(upload), with_verdicts)

    def answer_sample(event: gr.EventData) -> tuple[Any, ...]:
        return answer(classifier, sample_files[int(event.index)], with_verdicts)

    def explain_class(cell: ReadCell | None, class_name: str) -> tuple[str, str]:
        if cell is None:
            return error_html("The server no longer keeps this cell; choose its file again."), ""
        return map_html(cell, class_name), PENDING if with_verdicts else UNTESTED

    def judge(cell: ReadCell | None, class_name: str | None) -> str:
        if cell is None or class_name is None:
            return ""
        return verdict_html(class_name, classifier.judge(cell.preprocessed, class_name))

    with gr.Blocks(title="Cervicyte", analytics_enabled=False, delete_cache=(60, 60)) as page:
        cell = gr.State(time_to_live=SECONDS_KEPT)
        gr.HTML(HEADER)
        with gr.Row(elem_id="work"):
            with gr.Column(min_width=320):
                gr.HTML(UPLOAD_TITLE)
                # Of any type: what a file is, is told by its contents, and an error in our words.
                upload = gr.File(label="Cell image", show_label=False, height=150, elem_id="upload")
                if sample_files:
                    sample_list = gr.HTML(samples_html(sample_files), js_on_load=CHOOSE_SAMPLE)
            with gr.Column(min_width=320):
                answer_view = gr.HTML(EMPTY)
        picker = gr.Radio(
            list(classifier.class_names), label="Places that spoke for", visible=False, elem_id="picker"
        )
        map_view = gr.HTML(visible=False, elem_id="maps")
        verdict_view = gr.HTML(visible=False, elem_id="verdict")
        gr.HTML(about_html(classifier, model_name))

        outputs = [upload, cell, answer_view, picker, map_view, verdict_view]
        event: dict[str, Any] = {
            "outputs": outputs,
            "show_progress_on": answer_view,
            "api_visibility": "private",
        }
        shown_first = [upload.upload(answer_file, upload, **event)]
        if sample_files:
            shown_first.append(sample_list.choose(answer_sample, **event))
        shown_first.append(
            picker.input(
                explain_class,
                [cell, picker],
                [map_view, verdict_view],
                show_progress="minimal",
                api_visibility="private",
            )
        )
        for each in shown_first if with_verdicts else ():
            each.then(judge, [cell, picker], verdict_view, show_progress="hidden", api_visibility="private")
    return page


# --- what the page is made of ------------------------------------------------------------------


def answer_html(cell: ReadCell) -> str:
    """Return the class, its confidence, and every class's probability from high to low."""
    prediction = cell.prediction
    rows = "".join(
        f"<li{' class=best' if name == prediction.class_name else ''}><span>{html.escape(name)}</span>"
        f'<span class="track"><i style="width:{100 * probability:.1f}%"></i></span>'
        f"<b>{percent(probability)}</b></li>"
        for name, probability in sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    )
    return (
        f'<section class="card answer" aria-live="polite"><p class="kicker">Most probable class</p>'
        f"<h2>{html.escape(prediction.class_name)}</h2>"
        f'<p class="confidence">Confidence <b>{percent(prediction.confidence)}</b></p>'
        f"{doubt_html(prediction)}"
        f'<ul class="bars">{rows}</ul>'
        f'<p class="fine">{html.escape(cell.name)}, {cell.width} by {cell.height} pixels</p></section>'
    )


def doubt_html(prediction: Prediction) -> str:
    """Return what the program says of its own answer: in doubt, and of what, or how like the cell is."""
    lines = []
    if prediction.verdict != "answer":
        lines.append(f'<p class="doubt" role="note">{html.escape(prediction.sentence)}</p>')
    if prediction.prediction_set:
        names = html.escape(", ".join(prediction.prediction_set))
        lines.append(f'<p class="fine">Classes that it may well be: <b>{names}</b></p>')
    if prediction.unlike is not None:
        lines.append(
            '<p class="fine">More unlike the training cells than '
            f"{math.floor(prediction.unlike.unlike_percentile)} % of cells of the same laboratory</p>"
        )
    return "".join(lines)


def map_html(cell: ReadCell, class_name: str) -> str:
    """Return the cell and, beside it, the map of what spoke for a class."""
    original = picture(cell.image, "The cell as it was read")
    explained = picture(cell.overlays[class_name], f"Map of the places that spoke for {class_name}")
    return (
        f'<section class="pair"><figure>{original}<figcaption>The cell</figcaption></figure>'
        f"<figure>{explained}<figcaption>Places that spoke for <strong>{html.escape(class_name)}</strong>"
        f'<span class="scale">little {SCALE} much</span></figcaption></figure></section>'
    )


def verdict_html(class_name: str, verdict: Verdict) -> str:
    """Return whether the map of a class beats the controls, as it stands below the map."""
    mark, title = "untested", "Map not tested"
    if verdict.tested:
        mark = "beats" if verdict.beats_controls else "fails"
        title = "Map tested: " + ("it beats the controls" if verdict.beats_controls else "unproven")
    passes = f"{verdict.forward_passes} {plural('pass', verdict.forward_passes)} through the network"
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


def error_html(sentence: str) -> str:
    """Return an error's sentence as it stands on the page."""
    return f'<section class="card refusal" role="alert"><p>{html.escape(sentence)}</p></section>'


def samples_html(files: list[Path]) -> str:
    """Return the drawn cells as buttons."""
    buttons = "".join(
        f'<button type="button" data-index="{index}">'
        f"{picture(read_image(file), '')}<span>{html.escape(sample_name(file))}</span></button>"
        for index, file in enumerate(files)
    )
    return f'<section class="samples"><p class="kicker">Or try a drawn cell</p><div>{buttons}</div></section>'


def sample_name(file: Path) -> str:
    """Return the class that a drawn cell's file is named for, else the file's name in words."""
    known = known_class("SIPaKMeD", file.stem)
    return known.name if known else file.stem.replace("_", " ")


def about_html(classifier: Classifier, model_name: str) -> str:
    """Return what the map means, and what is known of the model."""
    model = classifier.model
    facts = {"File": model_name, "Classes": ", ".join(classifier.class_names)}
    facts["Accuracy"] = measured_accuracy(model.metadata) or "not recorded in the model file"
    if "data" in model.metadata:
        facts["Trained on"] = str(model.metadata["data"])
    if model.original:
        facts["Origin"] = "checkpoint of the original notebook"
    rows = "".join(f"<dt>{key}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())
    return (
        f'<section class="about"><div class="card"><h3>What the map means</h3>{MEANING}</div>'
        f'<div class="card"><h3>The model</h3><dl>{rows}</dl>'
        f'<p class="fine">Cervicyte {cervicyte.__version__}. Runs on this computer alone; a file is read '
        "and then deleted.</p></div></section>"
    )


def measured_accuracy(metadata: Mapping[str, Any]) -> str | None:
    """Return the accuracy on the run's test part or in its cross-validation, with its 95 % interval."""
    tested = metadata.get("metrics", {}).get("test", {}).get("accuracy")
    validated = metadata.get("cross_validation", {}).get("figures", {}).get("accuracy")
    for figure, where in ((tested, "on the test part"), (validated, "in cross-validation")):
        if figure is not None and figure["value"] is not None:
            value, low, high = (f"{100 * figure[key]:.1f}" for key in ("value", "low", "high"))
            return f"{value} % {where} (95 % interval: {low} to {high})"
    return None


def picture(image: np.ndarray, description: str) -> str:
    """Return uint8 [H, W, 3] as an HTML image that carries its pixels."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(description)}">'


# The colours of the maps on a grey that is as bright as thin cytoplasm.
SCALE = picture(
    overlay(np.full((10, 256, 3), 215, np.uint8), np.tile(np.linspace(0, 1, 256), (10, 1))), "colour scale"
)

HEADER = f"""
<header class="masthead">
  <div><h1>Cervicyte</h1>
  <p>Names the class of a Pap-smear cell and shows what spoke for it.</p></div>
  <p class="notice" role="note">{RESEARCH_USE_ONLY}</p>
</header>
"""

UPLOAD_TITLE = f"""
<p class="upload-title"><span class="kicker">Image of one cell</span>
<span class="fine">PNG, JPEG, BMP or TIFF, up to {MAX_UPLOAD_MB} MB</span></p>
"""

EMPTY = """
<section class="card empty"><p>No cell chosen yet</p>
<p class="fine">Its class and the probability of every class will stand here, its map below.</p>
</section>
"""

PENDING = """
<section class="verdict" aria-live="polite"><p><strong>Testing the map …</strong></p>
<p>Does it find better than three controls what the network relies on? Until this is known, take it
for a picture.</p></section>
"""

UNTESTED = """
<section class="verdict"><p><strong>Map not tested</strong></p>
<p>The dashboard was started without verdicts (--no-verdict): whether this map beats any control is not
known.</p></section>
"""

MEANING = f"""
<p>Coloured places are those whose features raised the network's score of the chosen class, by
{cam.METHODS[cam.DEFAULT_METHOD].title} at {cam.DEFAULT_LAYER}. All classes of a cell share one
scale, so a pale map means that little spoke for its class.</p>
<ul>
<li>It is coarse, and no outline of a nucleus, a cell or a lesion.</li>
<li>Every class has a map, a wrong one too: a map does not say that the answer is right.</li>
<li>Maps of different cells cannot be compared by their colours.</li>
<li>For images unlike those that the network was trained on, its confidence means little.</li>
</ul>
"""

# Real buttons, so that keyboards and screen readers reach them.
CHOOSE_SAMPLE = """
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) trigger('choose', {index: button.dataset.index});
});
"""

HEAD = '<meta name="color-scheme" content="light dark">'

# Colours are the theme's, so that the page follows the browser's light or dark.
CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important;
  padding: clamp(16px, 3vw, 32px) clamp(14px, 2vw, 24px) 40px !important; }
.gradio-container .main, .gradio-container .html-container { padding: 0 !important; }
.gradio-container footer { display: none !important; }
.upload-title { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline;
  gap: 0 12px; margin: 0 0 -8px; }
#upload { border-radius: 10px; }
#upload button { font-size: 15px; line-height: 1.5; }
.form:has(#picker) { border: 0; background: none; }
#picker { padding: 4px 0 0; border: 0; background: var(--body-background-fill); }
#picker > span { margin-bottom: 8px; font-size: 13px; font-weight: 600;
  color: var(--body-text-color-subdued); }
#maps { margin-bottom: 8px; }
.masthead h1, .card h2, .card h3, .masthead p, .card p, .card ul, .card dl { margin: 0; }
.masthead { display: flex; justify-content: space-between; align-items: flex-end; gap: 16px 32px;
  flex-wrap: wrap; padding-bottom: 18px; border-bottom: 1px solid var(--border-color-primary); }
.masthead h1 { font-size: 28px; font-weight: 650; letter-spacing: -0.01em; line-height: 1.2; }
.masthead p { color: var(--body-text-color-subdued); font-size: 15px; }
.masthead .notice { color: #7a4b00; background: #fff4d6; border: 1px solid #f0d48a; border-radius: 6px;
  padding: 7px 14px; font-weight: 600; font-size: 14px; }
.dark .masthead .notice { color: #ffdf94; background: #3a2c08; border-color: #6b5312; }

.card { background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: 10px; padding: 20px 24px; }
.kicker { color: var(--body-text-color-subdued); font-size: 13px; font-weight: 600; }
.fine { color: var(--body-text-color-subdued); font-size: 13px; }
.empty { min-height: 300px; display: flex; flex-direction: column; justify-content: center;
  align-items: center; gap: 6px; text-align: center; border-style: dashed; }
.empty p:first-child { font-size: 17px; font-weight: 600; }
.refusal { border-color: #d9534f; border-left-width: 5px; overflow-wrap: anywhere; }
.refusal p { font-size: 16px; }

.answer h2 { font-size: 30px; font-weight: 650; line-height: 1.25; letter-spacing: -0.01em; }
.answer .confidence { font-size: 17px; color: var(--body-text-color-subdued); }
.answer .doubt { margin-top: 10px; padding: 8px 14px; border-left: 5px solid #d08a1c; font-size: 15px;
  font-weight: 600; background: var(--background-fill-secondary); }
.answer .confidence b { color: var(--body-text-color); }
.card ul.bars { list-style: none; padding: 0; margin: 20px 0 16px; display: grid; gap: 9px; }
.bars li { display: grid; grid-template-columns: minmax(0, 13em) 1fr 4.6em; gap: 12px;
  align-items: center; margin: 0; }
.bars .track { height: 10px; border-radius: 5px; background: var(--neutral-200); overflow: hidden; }
.dark .bars .track { background: var(--neutral-700); }
.bars i { display: block; height: 100%; background: var(--neutral-400); }
.bars .best i { background: var(--primary-600); }
.bars .best span:first-child { font-weight: 650; }
.bars b { text-align: right; font-weight: 500; font-variant-numeric: tabular-nums; }
.bars .best b { font-weight: 650; }

.samples > div { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 12px;
  margin-top: 8px; }
.samples button { padding: 0; border: 0; background: none; cursor: pointer; font: inherit; font-size: 12px;
  line-height: 1.3; color: var(--body-text-color-subdued); display: flex; flex-direction: column; gap: 5px;
  text-align: left; overflow-wrap: anywhere; }
.samples img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 8px; display: block;
  border: 1px solid var(--border-color-primary); }
.samples button:hover img, .samples button:focus-visible img { outline: 2px solid var(--primary-500);
  outline-offset: 1px; }
.samples button:hover, .samples button:focus-visible { color: var(--body-text-color); outline: none; }

.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; align-items: start; }
.pair figure { margin: 0; }
.pair img { width: 100%; max-height: 520px; object-fit: contain; border-radius: 8px; display: block;
  background: var(--neutral-100); }
.dark .pair img { background: var(--neutral-900); }
.pair figcaption { margin-top: 8px; font-size: 14px; color: var(--body-text-color-subdued); }
.pair figcaption strong { color: var(--body-text-color); }
.scale { display: flex; align-items: center; gap: 8px; font-size: 13px; margin-top: 6px; }
.scale img { flex: 0 1 160px; min-width: 0; width: auto; height: 10px; object-fit: fill; border-radius: 5px; }

.verdict { border-left: 5px solid var(--neutral-400); padding: 8px 16px; margin: 4px 0 8px; font-size: 14px; }
.verdict p { margin: 0; }
.verdict.beats { border-color: var(--primary-600); }
.verdict.fails { border-color: #d08a1c; }

.about { display: grid; grid-template-columns: 3fr 2fr; gap: 20px; margin-top: 12px; }
.about h3 { font-size: 16px; font-weight: 650; margin-bottom: 8px; }
.about ul { padding-left: 20px; list-style: disc; margin-top: 8px; }
.about li { margin: 4px 0; }
.about .card { font-size: 14px; line-height: 1.55; }
.about dl { display: grid; grid-template-columns: auto 1fr; gap: 6px 16px; }
.about dt { color: var(--body-text-color-subdued); }
.about dd { margin: 0; overflow-wrap: anywhere; }
.about .fine { margin-top: 14px; }

@media (max-width: 720px) {
  .gradio-container { padding: 18px 14px 32px !important; }
  .masthead .notice { width: 100%; }
  .about { grid-template-columns: 1fr; }
  .card { padding: 16px; }
  .empty { min-height: 120px; }
  .pair { gap: 10px; }
  .answer h2 { font-size: 26px; }
  .bars li { grid-template-columns: minmax(0, 9.5em) 1fr 4.2em; gap: 8px; font-size: 14px; }
  .samples > div { gap: 6px; }
  .samples button { font-size: 10.5px; }
}
"""
