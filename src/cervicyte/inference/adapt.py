"""Makes a model for another laboratory from its unlabelled images, and says what that changed.

Nobody has said what the images show, so nothing here says that the new model is better: class shares and
certainty before and after are all there is to see, and they tell when something is wrong.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cervicyte.errors import UsageError
from cervicyte.evaluation.adaptation import adapted
from cervicyte.evaluation.answers import Prediction
from cervicyte.evaluation.familiarity import FEWEST_IMAGES
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.predict import image_of
from cervicyte.inference.sources import Source, drawn_sources
from cervicyte.network.description import SAFETENSORS
from cervicyte.network.model_file import ModelFile, load_model_file, save_model, weights_hash
from cervicyte.pages import agreeing, counted
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, refuse_to_replace, write_json

SUFFIXES = (SAFETENSORS, ".pth")
MOST_IMAGES = 1000  # held in memory; more hardly move what is measured
MOST_PIXELS = 500_000_000  # of all images, likewise
FIELD_PIXELS = 1000  # height or width, about: half of the images are larger than any crop of a single cell
ONE_CLASS = 0.8  # of the images: more in one class is no mix
NO_CELLS = 0.2  # of the images that are called no single cell
NAMED = 3  # of the files that cannot be read
VERDICTS = ("answer", "uncertain", "unlike_training", "not_a_cell")


def adapt(
    path: Path,
    names: Sequence[str],
    out: Path,
    *,
    force: bool = False,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write a model that is fitted to a laboratory's unlabelled images; the original stays as it is.

    Args:
        path: the model's file.
        names: of the images, see `sources.sources_of`. Of more than `MOST_IMAGES`, as many are drawn. Those
            that cannot be read, and copies of others, are left out.
        out: the new model's file, `.safetensors` or `.pth`; what changed is written beside it as `.json`.
        force: replace a file that is there.
        command: the command line, recorded in the model.
        progress: is told of every step.

    Returns:
        The content of the `.json`: counts, `images_unreadable` (names), `images_copied`, `before` and
        `after`, and `warnings` for people.

    Raises:
        UsageError: `out` ends otherwise, is the model itself, or is there, or its `.json`, and no `force`; or
            there are fewer than two images that can be read, or they are too large together.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: must end with {' or '.join(SUFFIXES)}; name the file so with --out.")
    if out.exists() and out.samefile(path):
        raise UsageError(f"{out}: is the model itself, which stays as it is; choose another name with --out.")
    for written_to in (out, out.with_suffix(".json")):
        refuse_to_replace(written_to, force)
    model = load_model_file(path)
    sources, found = drawn_sources(names, MOST_IMAGES)
    images, hashes, unreadable = _read(sources, progress)
    copied = len(sources) - len(unreadable) - len(images)
    before = classified(model, images)
    new = written(model, images, digest_of(hashes), out, of=path.name, command=command, progress=progress)
    content = {
        "notice": RESEARCH_USE_ONLY,
        "model": {"file": path.name, "weights_sha256": weights_hash(model.network)},
        "adapted": {"file": out.name, "weights_sha256": weights_hash(new.network)},
        "images_found": found,
        "images_unreadable": unreadable,
        "images_copied": copied,
        "median_size_px": float(np.median([math.sqrt(image[..., 0].size) for image in images])),
        "model_was_adapted": "adaptation" in model.metadata,
        **{key: value for key, value in new.metadata["adaptation"].items() if key != "of"},
        "before": before,
        "after": classified(new, images),
    }
    content["warnings"] = warnings_of(content)
    write_json(out.with_suffix(".json"), content)
    return content


def written(
    model: ModelFile,
    images: Sequence[np.ndarray],
    digest: str,
    out: Path,
    *,
    of: str,
    command: str | None = None,
    progress: Progress = SILENT,
) -> ModelFile:
    """Fit a model to images, write it, and return it as it was written: rounded, if its format rounds.

    Args:
        model: stays as it is.
        images: uint8 [H, W, 3], RGB, see `adapted`.
        digest: of their files, see `digest_of`.
        out: the new model's file.
        of: how the model is called, recorded in the new one.
        command: likewise.
        progress: is told of every step.

    Raises:
        UsageError: there are fewer than two images.
    """
    new = adapted(model, images, progress=progress)
    new.metadata["adaptation"] |= {"of": of, "images_sha256": digest, "provenance": provenance(command)}
    save_model(out, new)
    return load_model_file(out)


def digest_of(hashes: Iterable[str]) -> str:
    """Return the SHA-256 over the sorted SHA-256 hashes of files: which ones they were, in any order."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def _read(sources: Sequence[Source], progress: Progress) -> tuple[list[np.ndarray], set[str], list[str]]:
    """Return the images that differ, the SHA-256 hashes of their files, and names that cannot be read.

    Raises:
        UsageError: fewer than two are left, or they have more than `MOST_PIXELS` together.
    """
    images, hashes, unreadable, pixels = [], set[str](), list[str](), 0
    progress.start("Reading images", len(sources))
    for source in sources:
        digest, image, _ = image_of(source)
        if image is None:
            unreadable.append(source.name)
        elif digest not in hashes:
            images.append(image)
            hashes.add(digest)
            pixels += image[..., 0].size
        if pixels > MOST_PIXELS:
            raise UsageError(
                f"{source.name}: with this image they have more than {MOST_PIXELS // 1_000_000} million "
                "pixels together, which is too much to adapt to; give fewer, or crops of single cells."
            )
        progress.advance()
    progress.close()
    if len(images) < 2:
        others = f"{counted(len(unreadable), 'image')} cannot be read: {_first_of(unreadable)}"
        but = f" ({others})" if unreadable else ""
        raise UsageError(
            f"{counted(len(images), 'image', 'is', 'are')} too few to adapt to{but}; give {FEWEST_IMAGES} or "
            "more."
        )
    return images, hashes, unreadable


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def classified(model: ModelFile, images: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return shares of classes and verdicts, in [0, 1], mean confidence and mean size of prediction sets."""
    return summary_of(Classifier(model).predict(images), model.class_names)


def summary_of(predictions: Sequence[Prediction], class_names: Sequence[str]) -> dict[str, Any]:
    """Return shares of classes and verdicts, in [0, 1], mean confidence and mean size of prediction sets."""
    classes = Counter(one.class_name for one in predictions)
    verdicts = Counter[str](one.verdict for one in predictions)
    sizes = [len(one.prediction_set) for one in predictions if one.prediction_set]
    return {
        "classes": {name: classes[name] / len(predictions) for name in class_names},
        "verdicts": {name: verdicts[name] / len(predictions) for name in VERDICTS},
        "mean_confidence": float(np.mean([one.confidence for one in predictions])),
        "mean_set_size": float(np.mean(sizes)) if sizes else None,
    }


def warnings_of(content: Mapping[str, Any]) -> list[str]:
    """Return what speaks against the new model, a sentence each.

    Args:
        content: `images`, their number; `before` and `after`, see `summary_of`; and, where they are known,
            the other counts of `adapt`.
    """
    warnings = []
    if unreadable := content.get("images_unreadable"):
        left_out = counted(len(unreadable), "image", "was", "were")
        warnings.append(f"{left_out} left out, unreadable: {_first_of(unreadable)}.")
    if copied := content.get("images_copied"):
        are = counted(copied, "image", "is a copy of another", "are copies of others")
        warnings.append(f"{are}, and count{agreeing(copied, 's', '')} once.")
    if content.get("model_was_adapted"):
        warnings.append(
            "The model was adapted before, and its statistics are blended once more: adapt the one that it "
            "was made of."
        )
    if content.get("median_size_px", 0) > FIELD_PIXELS:
        warnings.append(
            f"Half of the images are larger than {content['median_size_px']:.0f} pixels across, as whole "
            "fields are: give crops of single cells, which is what the model answers for."
        )
    images, before, after = content["images"], content["before"], content["after"]
    if images < FEWEST_IMAGES:
        warnings.append(
            f"{counted(images, 'image', 'is', 'are')} too few "
            "to tell the laboratory from the cells at hand; give "
            f"{FEWEST_IMAGES} or more."
        )
    # Adapting spreads a single class out over others, so that it may not show any more afterwards.
    one_sided = []
    for classes, when in ((before["classes"], "beforehand"), (after["classes"], "afterwards")):
        name, share = max(classes.items(), key=lambda item: item[1])
        if share > ONE_CLASS:
            one_sided.append(f"{share:.0%} of the images are called {name} {when}")
    if one_sided:
        warnings.append(
            f"{', and '.join(one_sided)}: they look like a single class, and the method presumes a mix. If "
            "they are one, give images of all kinds of cells, or do not use the new model."
        )
    if before["verdicts"]["not_a_cell"] > NO_CELLS:
        warnings.append(
            f"{before['verdicts']['not_a_cell']:.0%} of the images do not look like single cervical cells to "
            "the original model. If they are none, the new model takes such images for usual: look through "
            "the folder."
        )
    return warnings


def adaptation_text(content: Mapping[str, Any]) -> str:
    """Return before and after side by side, for a terminal."""
    before, after = content["before"], content["after"]
    rows = list(compared(before, after))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'':{width}}  before   after"]
    lines += [f"{name:{width}}  {one:6.1%}  {other:6.1%}" for name, one, other in rows]
    if before["mean_set_size"] is not None:
        sizes = (before["mean_set_size"], after["mean_set_size"])
        lines.append(f"{'classes in a set':{width}}  {sizes[0]:6.2f}  {sizes[1]:6.2f}")
    return "\n".join(lines)


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield what is said of two `summary_of`, a name and a share in each: classes, verdicts, confidence."""
    yield from ((name, before["classes"][name], after["classes"][name]) for name in before["classes"])
    yield from ((_in_words(name), before["verdicts"][name], after["verdicts"][name]) for name in VERDICTS)
    yield "mean confidence", before["mean_confidence"], after["mean_confidence"]


def _in_words(verdict: str) -> str:
    return {
        "answer": "answered",
        "uncertain": "uncertain",
        "unlike_training": "unlike training",
        "not_a_cell": "not a single cell",
    }[verdict]
