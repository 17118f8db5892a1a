"""Adapting the model to the images of a worklist, without labels, and what that changes.

It takes a while, so that it runs beside the page, one list at a time on a server, and stands back while
others wait for the network. The model that is served stays as it is: the new one is for this list alone, and
its file lies in the server's private folder until the list is cleared or forgotten.
"""

from __future__ import annotations

import contextlib
import html
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from cervicyte.dashboard.batching import Batcher, QueuedClassifier
from cervicyte.dashboard.limits import MAX_ADAPTED_PIXELS
from cervicyte.dashboard.worklist import AT_ONCE, PREDICTION_BYTES, Entry, Worklist
from cervicyte.evaluation.answers import Prediction
from cervicyte.evaluation.familiarity import FEWEST_IMAGES
from cervicyte.evaluation.shipped_figures import ShippedFigures
from cervicyte.explanation import cam
from cervicyte.inference.choice import TORCH
from cervicyte.inference.classifier import Classifier
from cervicyte.pages import table
from cervicyte.progress import Progress
from cervicyte.provenance import RESEARCH_USE_ONLY

LONGEST_PAUSE = 5.0  # seconds that a step stands back for those who wait, so that it ends some day
SECONDS_BETWEEN_LOOKS = 0.4


@dataclass
class Adaptation:
    """What came of adapting a model to a worklist.

    Attributes:
        classifier: the adapted model; it asks its network in turn.
        network_bytes: what its network takes of the memory.
        path: its file.
        images: how many it was adapted to.
        before, after: what the models say of them, see `summary_of`.
        warnings: what speaks against the new model, a sentence each.
        own, original: of the worklist's entries by key, what the new and what the served model says.
        in_use: whether the worklist shows what the new one says.
    """

    classifier: QueuedClassifier
    network_bytes: int
    path: Path
    images: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    warnings: Sequence[str]
    own: dict[int, Prediction]
    original: dict[int, Prediction]
    in_use: bool = False

    @property
    def name(self) -> str:
        """How the model is called where it answers."""
        return f"adapted to {self.images:,} images of this list"

    @property
    def held_bytes(self) -> int:
        """What its network and both models' answers take of the memory, about."""
        return self.network_bytes + PREDICTION_BYTES * (len(self.own) + len(self.original))

    def remove(self) -> None:
        """Remove the model's file; one that is just being sent goes with the server's folder on Windows."""
        with contextlib.suppress(OSError):
            self.path.unlink()


@dataclass
class Adapting(Progress):
    """An adaptation at work: how far it is, for the page; between steps others go first.

    Attributes:
        batcher: whose queue it stands back for.
        title, done, total: of the step.
        error: why it came to nothing, a sentence.
        is_done: whether it has ended.
    """

    batcher: Batcher
    title: str = "Reading images"
    done: int = 0
    total: int = 0
    error: str = ""
    is_done: bool = field(default=False)

    def start(self, title: str, total: int, done: int = 0) -> None:
        """See `Progress.start`."""
        self.title, self.total, self.done = title, total, done

    def advance(self, count: int = 1, note: str = "") -> None:
        """See `Progress.advance`."""
        self.done += count
        self.batcher.until_idle(LONGEST_PAUSE)


def not_adaptable(classifier: Classifier, worklist: Worklist) -> str:
    """Return why a model cannot be adapted to a worklist, a sentence; empty if it can."""
    if len(classifier.methods) < len(cam.METHODS):
        return "A model that is computed without torch, such as an exported graph, cannot be adapted here."
    entries = worklist.answered()
    different = len({entry.sha256 for entry in entries})
    if different < FEWEST_IMAGES:
        return (
            f"This takes {FEWEST_IMAGES} images or more, of all kinds of cells, as fewer say more of the "
            f"cells at hand than of the laboratory; this list has {different}."
        )
    if sum(entry.height * entry.width for entry in entries) > MAX_ADAPTED_PIXELS:
        return (
            f"The images of this list have more than {MAX_ADAPTED_PIXELS // 1_000_000} million pixels "
            "together, which is too much to adapt to here; give crops of single cells."
        )
    return ""


def adapt_to_worklist(
    served: QueuedClassifier,
    name: str,
    worklist: Worklist,
    before: Adaptation | None,
    progress: Adapting,
    folder: Path,
) -> Adaptation:
    """Adapt the served model to the images of a worklist.

    Args:
        served: the model, which stays as it is.
        name: how the new one names it.
        worklist: with images enough, see `not_adaptable`.
        before: an earlier adaptation to this list, which knows what the served model says.
        progress: is told of every step, and lets others go first.
        folder: takes the new model's file.

    Raises:
        Busy: the queue stayed full.
    """
    # Brings torch along, which answering does without.
    from cervicyte.inference.adapt import digest_of, summary_of, warnings_of, written
    from cervicyte.network.model_file import SAFETENSORS

    entries = sorted(worklist.answered(), key=lambda entry: entry.key)
    progress.start("Reading images", len(entries))
    known = before.original if before is not None else _shown(entries)
    original = predictions_of(served, entries, known, progress.advance)
    once = {entry.sha256: entry for entry in entries}  # a copy says nothing more of the laboratory
    images = [entry.image() for entry in once.values()]
    digest = digest_of(once)
    path = folder / f"adapted-{secrets.token_hex(16)}{SAFETENSORS}"
    try:
        model = written(
            served.torch_model(),
            images,
            digest,
            path,
            of=name,
            command="cervicyte serve: adapt",
            progress=progress,
        )
        del images
        network_bytes = sum(value.nbytes for value in model.network.state_dict().values())
        new = QueuedClassifier(Classifier(model, served.device, TORCH), progress.batcher)
        progress.start("Answering anew", len(entries))
        own = predictions_of(new, entries, {}, progress.advance)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    said_before, said_after = (summary_of(list(one.values()), served.class_names) for one in (original, own))
    said: dict[str, Any] = {
        "images": len(once),
        "images_copied": len(entries) - len(once),
        "median_size_px": median(math.sqrt(entry.height * entry.width) for entry in once.values()),
        "model_was_adapted": "adaptation" in served.model.metadata,
        "before": said_before,
        "after": said_after,
    }
    return Adaptation(
        new, network_bytes, path, len(once), said_before, said_after, warnings_of(said), own, original
    )


def predictions_of(
    classifier: Classifier,
    entries: Sequence[Entry],
    known: Mapping[int, Prediction],
    advance: Callable[[int], None] = lambda count: None,
) -> dict[int, Prediction]:
    """Return what a classifier says of entries by their keys, a few at a time; `known` is not asked again."""
    found = {}
    for start in range(0, len(entries), AT_ONCE):
        part = entries[start : start + AT_ONCE]
        unknown = [entry for entry in part if entry.key not in known]
        said = iter(classifier.predict([entry.image() for entry in unknown]) if unknown else ())
        for entry in part:
            found[entry.key] = known[entry.key] if entry.key in known else next(said)
        advance(len(part))
    return found


def _shown(entries: Sequence[Entry]) -> dict[int, Prediction]:
    return {entry.key: entry.prediction for entry in entries if entry.prediction is not None}


# --- markup --------------------------------------------------------------------------------------


def adapting_html(adapting: Adapting) -> str:
    """Return how far an adaptation is."""
    return _card(
        f'<p class="fine busy" role="status">{html.escape(adapting.title)} … {adapting.done} of '
        f"{adapting.total}. You can go on looking at cells.</p>"
    )


def adaptation_html(
    worklist: Worklist,
    hindrance: str,
    adaptation: Adaptation | None,
    figures: ShippedFigures | None,
    error: str = "",
) -> str:
    """Return what adapting is good for, the button for it, and what came of it.

    Args:
        worklist: whose images the model is adapted to.
        hindrance: why it cannot be, see `not_adaptable`.
        adaptation: the last one, if there is one.
        figures: of the model that ships, if that is the one served.
        error: why the last try came to nothing.
    """
    if not worklist.entries:
        return ""
    said = f'<p class="failed" role="alert">{html.escape(error)}</p>' if error else ""
    again = "Adapt anew" if adaptation is not None else "Adapt to these images"
    button = (
        f"<p><b>{html.escape(hindrance)}</b></p>"
        if hindrance
        else f'<button type="button" class="plain" data-send="adapt">{again}</button>'
    )
    outcome = "" if adaptation is None else _outcome(adaptation)
    return _card(f"{said}{outcome}<p>{INTRODUCTION}</p>{_brought(figures)}{button}")


def _card(content: str) -> str:
    return (
        '<details class="card adapt" data-keep="adapt"><summary>Other stain or camera? Adapt</summary>'
        f"{content}</details>"
    )


def _brought(figures: ShippedFigures | None) -> str:
    unknown = "What it brings on your cells is not known until you have labelled some."
    if figures is None:
        return f'<p class="fine">{unknown} {RESEARCH_USE_ONLY}</p>'
    return f'<p class="fine">{html.escape(figures.adaptation.sentence)} {unknown} {RESEARCH_USE_ONLY}</p>'


def _outcome(adaptation: Adaptation) -> str:
    from cervicyte.inference.adapt import compared

    rows = [
        (html.escape(name), [f"{before:.0%}".replace("%", " %"), f"{after:.0%}".replace("%", " %")])
        for name, before, after in compared(adaptation.before, adaptation.after)
    ]
    warnings = "".join(f'<p class="failed">{html.escape(one)}</p>' for one in adaptation.warnings)
    used = adaptation.in_use
    said = (
        "This list shows what the <b>adapted</b> model says."
        if used
        else "This list shows what the <b>original</b> says."
    )
    return (
        f"{warnings}{table(['', 'Before', 'After'], rows, f'{adaptation.images:,} images, before and after')}"
        f'<p role="status">{said}</p><div class="saves">'
        f'<button type="button" data-send="use" data-value="{"" if used else "adapted"}">'
        f"{'Use the original again' if used else 'Use the adapted model for this list'}</button>"
        '<button type="button" data-fetch="adapted-model" '
        'data-name="cervicyte_adapted.safetensors">Save the adapted model</button></div>'
    )


INTRODUCTION = (
    "Your laboratory's stain, light and camera move what the network sees. This measures by how much on your "
    "images, without labels, and takes part of it back: no weight is trained, and the original stays as it "
    "is. What counts as usual is measured on your images, too: that fewer are then unlike the training cells "
    "does not say that the answers are right. Blind reading goes on with the original."
)
