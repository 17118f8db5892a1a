"""From cells to a folder of pictures, and a page of them all.

Nothing is seen in the folder before everything is made; pictures of an earlier run are refused or, with
`force`, taken away, so that one folder never shows two runs as one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from cervicyte import __version__
from cervicyte.datasets.layouts import Cell
from cervicyte.errors import RunFolderError, UsageError
from cervicyte.evaluation.answers import Answerer, answers_for
from cervicyte.evaluation.seen import note_on_unknown_training
from cervicyte.explanation import cam, panels
from cervicyte.explanation.cam import Contrast, Gates, Target
from cervicyte.explanation.colours import DEFAULT_COLOURS, check_colours, strong_colour
from cervicyte.explanation.gallery_page import RECORD, Entry, Judged, gallery_page
from cervicyte.explanation.panels import Asked, Explanation, Map, Sentence
from cervicyte.explanation.raw_maps import Computes, OfEngine, OfNetwork, put_second_looks
from cervicyte.explanation.samples import Subject, safe, subjects_of
from cervicyte.explanation.verdict import FORWARD_PASSES, LEAST_PROBABILITY, Verdict, verdicts
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.network.description import Described
from cervicyte.network.frozen import FrozenModel
from cervicyte.pages import agreeing, counted
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text, written_atomically

if TYPE_CHECKING:
    from cervicyte.network.model_file import ModelFile

CELLS_FOLDER = "gradcam_outputs"
CLASSES_FOLDER = "gradcam_specific_class_outputs"
GATES_FOLDER = "gate_outputs"
ARRAYS_FOLDER = "gradcam_arrays"
FOLDERS = (CELLS_FOLDER, CLASSES_FOLDER, GATES_FOLDER, ARRAYS_FOLDER)
PAGE = "index.html"

GATES = "gates"
METHODS = (*cam.METHODS, GATES)
ALL_CLASSES, CONTRAST = "all", "contrast"
BATCH = 4
LEFT_OUT = Sentence(
    "Not tested: verdicts were left out (--no-verdict), so whether this map beats any control is not known.",
    short="not tested (--no-verdict)",
)


@dataclass(frozen=True)
class Targets:
    """Which maps are shown.

    Attributes:
        by_itself: in the picture of one map; None is the class predicted for the cell.
        side_by_side: in the picture of several; a contrast stands there with its two classes.
    """

    by_itself: Target | None
    side_by_side: tuple[Target, ...]


@dataclass(frozen=True)
class Gallery:
    """What was written, and the sentences that go with it.

    Attributes:
        page: `OUT/index.html`.
        entries: one a cell, in order.
        notes: on the cells, on HiResCAM's sum, on the verdicts.
    """

    page: Path
    entries: list[Entry]
    notes: list[str]


# --- which maps ----------------------------------------------------------------------------------


def targets_named(class_names: Sequence[str], wanted: Sequence[str] | None) -> Targets:
    """Return the targets of these names: a class in upper or lower case, `all`, `contrast` (the predicted
    class against the runner-up), or `contrast:A,B`.

    Raises:
        UsageError: no such class; the text names those that exist.
    """
    every = tuple(range(len(class_names)))
    found: list[Target] = []
    first: Target | None = None
    for position, text in enumerate(wanted or [ALL_CLASSES]):
        known = {name.casefold(): index for index, name in enumerate(class_names)}
        head, _, rest = text.partition(":")
        if text.casefold() in known:
            target: Target = known[text.casefold()]
        elif text.casefold() == ALL_CLASSES:
            found += every
            continue
        elif head.casefold() == CONTRAST:
            target = _contrast_named(class_names, known, rest, text)
        else:
            raise UsageError(
                f"The model has no class {text!r}; choose from {', '.join(class_names)}, {ALL_CLASSES}, "
                f"{CONTRAST} or {CONTRAST}:A,B."
            )
        found.append(target)
        first = target if position == 0 else first
    return Targets(first, tuple(dict.fromkeys(found)))


def _contrast_named(class_names: Sequence[str], known: dict[str, int], rest: str, text: str) -> Contrast:
    """Return the contrast of `A,B`; a class's own name may hold commas."""
    if not rest:
        return Contrast()
    for position in [place.start() for place in re.finditer(",", rest)]:
        pair = [rest[:position].strip().casefold(), rest[position + 1 :].strip().casefold()]
        if all(name in known for name in pair):
            if pair[0] == pair[1]:
                raise UsageError(f"{text}: a contrast needs two different classes.")
            return Contrast(known[pair[0]], known[pair[1]])
    raise UsageError(
        f"{text}: must be {CONTRAST}:A,B with two of the model's classes, {', '.join(class_names)}."
    )


# --- the job -------------------------------------------------------------------------------------


def explain_cells(
    model: ModelFile | FrozenModel,
    cells: Sequence[Cell | Path],
    out: Path,
    *,
    method: str = cam.DEFAULT_METHOD,
    layers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    colours: str = DEFAULT_COLOURS,
    arrays: bool = False,
    with_verdicts: bool = True,
    force: bool = False,
    notes: Sequence[str] = (),
    engine: Computes | None = None,
    command: str | None = None,
    progress: Progress = SILENT,
) -> Gallery:
    """Write pictures of every cell, and a page that shows them all.

    `OUT/gradcam_outputs/gradcam_<class>_<name>.png` has the cell, the map and the overlay;
    `OUT/gradcam_specific_class_outputs/gradcam_specific_class_<class>_<name>.png` the maps of all classes
    or of the targets asked for, <class> being the true class or, where that is unknown, the predicted one.
    With the method `gates`, `OUT/gate_outputs/gates_<class>_<name>.png` has the attention's gates instead.

    Args:
        model: works on the device that its network lies on.
        cells: of a data set, or paths of images whose class is unknown.
        out: the folder.
        method: one of `METHODS`.
        layers: of the network; None is `layer4`, or with an engine the last (of gates: all).
        targets: see `targets_named`; None is the predicted class by itself and all side by side.
        colours: one of `colours.COLOURS`.
        arrays: also write the raw maps, `OUT/gradcam_arrays/gradcam_<class>_<name>_<layer>.npz`.
        with_verdicts: hold each map that is shown against controls; costs at most `verdict.FORWARD_PASSES` a
            map, and next to nothing where the network gives its class next to no probability.
        force: take away what an earlier run left there.
        notes: sentences for the page.
        engine: computes the network in place of torch; then there are maps at the last layer alone, by
            `cam.AT_THE_LAST`. A frozen model needs one.
        command: the command line, for the record.
        progress: is told of every cell.

    Raises:
        UsageError: unknown method, layer, class or colours; no cell, or one twice.
        RunFolderError: `out` holds pictures of an earlier run and `force` is not given.
        ImageError: a file cannot be read; the text names it. Nothing is written in any of these cases.
    """
    check_colours(colours)
    job = _job_of(model, method, layers, targets, colours, arrays, with_verdicts, engine)
    _refuse_what_is_there(out, force)
    subjects = subjects_of(model, cells)
    existed = out.exists()
    staging = out / f".explaining-{os.getpid()}.partial"
    entries: list[Entry] = []
    try:
        _make_folder(staging, out)
        progress.start("Explaining cells", len(subjects))
        for start in range(0, len(subjects), BATCH):
            made = list(job.write(subjects[start : start + BATCH], staging))
            entries += made
            progress.advance(len(made))
        progress.close()
        said = [*notes, *_notes_on_seen(model, entries), *job.notes(entries)]
        record: dict[str, Any] = {
            "provenance": provenance(command),
            "method": method,
            "layers": list(job.layers),
            "classes": list(model.class_names),
            "colours": colours,
            "notes": said,
            "cells": [entry.record() for entry in entries],
        }
        write_json(staging / RECORD, record)
        page = gallery_page(job.title, job.meaning, entries, model.class_names, said, record["provenance"])
        write_text(staging / PAGE, page)
        _publish(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
    return Gallery(out / PAGE, entries, said)


def _job_of(
    model: ModelFile | FrozenModel,
    method: str,
    layers: Sequence[str] | None,
    targets: Sequence[str] | None,
    colours: str,
    arrays: bool,
    with_verdicts: bool,
    engine: Computes | None = None,
) -> MapJob | GateJob:
    """Return what is to be done with each batch of cells, after checking that it can be done."""
    if method not in METHODS:
        raise UsageError(f"There is no explanation method {method!r}; choose one of {', '.join(METHODS)}.")
    if method == GATES and targets:
        raise UsageError("Gates depend on no class; leave out --target, or choose another --method.")
    if isinstance(model, FrozenModel) or engine is not None:
        assert engine is not None  # a frozen model's
        last = model.layers[-1]
        asked = [last] if layers is None else list(dict.fromkeys(layers))
        if method not in cam.AT_THE_LAST or asked != [last]:
            raise UsageError(
                f"The engine {engine.name} gives maps at {last} alone, by {' or '.join(cam.AT_THE_LAST)}; "
                "others need the gradients of a model file and torch: leave out --engine, if both are here."
            )
        named = targets_named(model.class_names, targets)
        from_engine = OfEngine(model, engine, _contrasts_in(named))
        return MapJob(model, method, (last,), named, colours, arrays, with_verdicts, from_engine)
    if method == GATES:
        cam.check_gates(model.network)
        gated = cam.gated_layers(model.network)
        wanted = gated if layers is None else list(dict.fromkeys(layers))
        for layer in wanted:
            if layer not in gated:
                raise UsageError(f"There are no gates at {layer!r}; choose from {', '.join(gated)}.")
        return GateJob(model, tuple(wanted), colours, arrays)
    wanted = [cam.DEFAULT_LAYER] if layers is None else list(dict.fromkeys(layers))
    cam.check_layers(model.network, wanted)
    named = targets_named(model.class_names, targets)
    from_network = OfNetwork(model, tuple(wanted), method, _contrasts_in(named))
    return MapJob(model, method, tuple(wanted), named, colours, arrays, with_verdicts, from_network)


@dataclass
class MapJob:
    """Maps of one method, for batches of cells."""

    model: ModelFile | FrozenModel
    method: str
    layers: tuple[str, ...]
    targets: Targets
    colours: str
    arrays: bool
    with_verdicts: bool
    source: OfNetwork | OfEngine

    @property
    def title(self) -> str:
        """The method's name as its paper writes it."""
        return cam.method_named(self.method).title

    @property
    def meaning(self) -> str:
        """How the pictures are to be read."""
        strong = strong_colour(self.colours)
        return (
            f"{self.title} at {', '.join(self.layers)}. Colour shows which places raise the score of a "
            f"class, in shares of the highest value that any of the model's {len(self.model.class_names)} "
            "classes reaches in the same cell at the same layer. It can be compared between the classes of "
            "one cell, not between cells or layers. Where several maps stand side by side, "
            f"{strong} speaks for the class and blue against it. A map shows what the network used, not "
            "whether it was right."
        )

    def write(self, subjects: Sequence[Subject], folder: Path) -> Iterator[Entry]:
        """Explain one batch, and write the pictures of each cell."""
        batch = list(self.explained(subjects))
        judged = self._judged(batch) if self.with_verdicts else [{} for _ in batch]
        for subject, made, found in zip(subjects, batch, judged, strict=True):
            said = {(layer, asked): LEFT_OUT for layer in self.layers for asked in made.rows}
            for place, verdict in found.items():
                good = verdict.beats_controls if verdict.tested else None
                said[place] = Sentence(verdict.sentence, good, verdict.short)
            cell = replace(made.cell, verdicts=said)
            yield self._written(subject, replace(made, cell=cell), found, folder)

    def explained(self, subjects: Sequence[Subject]) -> Iterator[Made]:
        """Explain one batch for every class of the model and every target."""
        names = self.model.class_names
        images = [read_image(subject.path) for subject in subjects]
        inputs = np.stack([self.model.preprocessing(image) for image in images])
        contrasts = _contrasts_in(self.targets)
        found = self.source.raw(images, inputs)
        pairs, raw, logits = found.pairs, found.maps, found.logits
        for n, (subject, image) in enumerate(zip(subjects, images, strict=True)):
            cell = Explanation(
                subject.name, subject.true_class, image, names, found.said[n], seen=subject.seen
            )
            preprocessing = self.source.answerer.seen_through(self.model, found.said[n])
            asked = _asked(
                self.targets, cell.predicted, contrasts, {c: pairs[c][n] for c in contrasts}, names
            )
            for layer, (values, signed) in raw.items():
                laid = [_laid(preprocessing, one, image) for one in values[n]]
                laid_signed = [_laid(preprocessing, one, image) for one in signed[n]]
                maps = [
                    Map(
                        of,
                        against,
                        laid[row],
                        laid_signed[row],
                        (values.shape[2], values.shape[3]),
                        _on_padding(
                            preprocessing,
                            values[n][row] if against is None else np.abs(signed[n][row]),
                            image,
                        ),
                    )
                    for row, of, against in asked
                ]
                cell.maps[layer] = maps[0], tuple(maps[1:])
                cell.highest[layer] = max(float(one.max()) for one in laid[: len(names)])
                cell.largest[layer] = max(
                    *(float(np.abs(one).max()) for one in laid_signed[: len(names)]),
                    *(float(np.abs(one.signed).max()) for one in maps),
                )
            yield Made(
                cell,
                inputs[n],
                preprocessing,
                logits[n],
                {(of, against): row for row, of, against in asked},
                [names[k] for k in range(len(names))] + [_question(names, pairs[c][n]) for c in contrasts],
                {layer: (values[n], signed[n]) for layer, (values, signed) in raw.items()},
            )

    def _judged(self, batch: Sequence[Made]) -> list[dict[tuple[str, Asked], Verdict]]:
        """Hold every map that is shown against the controls."""
        shown = [(number, asked) for number, made in enumerate(batch) for asked in made.rows]
        inputs = np.stack([batch[number].network_input for number, _ in shown])
        targets = [of if against is None else Contrast(of, against) for _, (of, against) in shown]
        found: list[dict[tuple[str, Asked], Verdict]] = [{} for _ in batch]
        for layer in self.layers:
            maps = [batch[number].raw[layer][0][batch[number].rows[asked]] for number, asked in shown]
            judged = verdicts(self.model, inputs, maps, targets, self.method, layer, self.source.score)
            for (number, asked), verdict in zip(shown, judged, strict=True):
                found[number][layer, asked] = verdict
        return found

    def _written(
        self, subject: Subject, made: Made, found: dict[tuple[str, Asked], Verdict], folder: Path
    ) -> Entry:
        cell, entry = made.cell, _entry_of(made.cell)
        shown = next(iter(cell.maps.values()))[0]
        entry.question = cell.question(shown)
        entry.on_padding = {layer: one.on_padding for layer, (one, _) in cell.maps.items()}
        for (layer, (of, against)), verdict in found.items():
            question = cell.class_names[of] if against is None else _question(cell.class_names, (of, against))
            entry.verdicts.append(Judged(layer, question, verdict))
        end = f"{safe(entry.class_name)}_{subject.stem}"
        pictures = (
            (CELLS_FOLDER, "gradcam", panels.panel_of_cell, entry.question),
            (CLASSES_FOLDER, "gradcam_specific_class", panels.panel_of_classes, "several classes"),
        )
        for place, beginning, draw, what in pictures:
            file = f"{place}/{beginning}_{end}.png"
            _write_png(folder / file, draw(cell, self.title, self.colours))
            entry.panels.append((file, what))
        if self.arrays:
            for layer, (values, signed) in made.raw.items():
                file = f"{ARRAYS_FOLDER}/gradcam_{end}_{layer}.npz"
                _write_arrays(
                    folder / file,
                    maps=values,
                    signed_maps=signed,
                    layer=layer,
                    method=self.method,
                    classes=made.questions,
                    class_names=cell.class_names,
                    logits=made.logits,
                    name=cell.name,
                    inside=_inside(made.preprocessing, cell.image),
                )
                entry.arrays.append(file)
        return entry

    def notes(self, entries: Sequence[Entry]) -> list[str]:
        """Return what is to be said of all maps together."""
        count = len(entries)
        said = [self.source.note(count)]
        found = [judged.verdict for entry in entries for judged in entry.verdicts]
        if found:
            tested = [verdict for verdict in found if verdict.tested]
            passes = sum(verdict.forward_passes for verdict in found)
            least = f"{100 * LEAST_PROBABILITY:.0f} %"
            said.append(
                f"Verdicts: {sum(verdict.beats_controls for verdict in tested)} of "
                f"{counted(len(tested), 'tested map')} beat their controls; {len(found) - len(tested)} "
                f"{agreeing(len(found) - len(tested), 'was', 'were')} not tested, since the network gives "
                f"their class under {least} before calibration, or they are empty. The verdicts cost "
                f"{passes:,} forward passes, {passes / count:.0f} a cell. Each is on what speaks for a "
                "class, not on what speaks against it."
            )
        if not self.with_verdicts:
            said.append(
                "Verdicts were left out: whether these maps beat any control is not known. One costs up to "
                f"{FORWARD_PASSES} forward passes."
            )
        return said


@dataclass(frozen=True)
class Made:
    """One explained cell, with what its arrays and its verdict need.

    Attributes:
        cell: for the pictures.
        network_input: uint8 [S, S, 3].
        preprocessing: that the image went through.
        logits: float32 [C].
        rows: what each map that is shown asks, first the one by itself -> its row in the raw maps.
        questions: what each row of the raw maps answers.
        raw: layer -> evidence for, and for minus against, float32 [T, h, w] each.
    """

    cell: Explanation
    network_input: np.ndarray
    preprocessing: Preprocessing
    logits: np.ndarray
    rows: dict[Asked, int]
    questions: list[str]
    raw: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class GateJob:
    """The gates of the attention modules, for batches of cells."""

    model: ModelFile
    layers: tuple[str, ...]
    colours: str
    arrays: bool
    title = "Gates of the attention modules"
    meaning = (
        "Each picture runs from the place where a gate passes on least to where it passes on most. Gates say "
        "what is passed on, not what it speaks for."
    )

    def write(self, subjects: Sequence[Subject], folder: Path) -> Iterator[Entry]:
        """Show the gates of one batch."""
        from cervicyte.explanation.controls import network_input

        images = [read_image(subject.path) for subject in subjects]
        inputs = np.stack([self.model.preprocessing(image) for image in images])
        answerer = Answerer.of(self.model)
        said = answers_for(self.model, answerer, images, inputs)
        put_second_looks(answerer, images, said, inputs)
        gates = cam.cbam_gates(self.model.network, network_input(self.model, inputs))
        for n, (subject, image) in enumerate(zip(subjects, images, strict=True)):
            cell = Explanation(
                subject.name,
                subject.true_class,
                image,
                self.model.class_names,
                said[n],
                seen=subject.seen,
            )
            preprocessing = answerer.seen_through(self.model, said[n])
            own = {layer: Gates(gates[layer].spatial[n], gates[layer].channel[n]) for layer in self.layers}
            entry = _entry_of(cell)
            end = f"{safe(entry.class_name)}_{subject.stem}"
            file = f"{GATES_FOLDER}/gates_{end}.png"
            laid = {
                layer: (gate, _laid(preprocessing, gate.spatial.cpu().numpy(), image))
                for layer, gate in own.items()
            }
            _write_png(folder / file, panels.panel_of_gates(cell, laid, self.colours))
            entry.panels.append((file, "the gates"))
            if self.arrays:
                for layer, gate in own.items():
                    file = f"{ARRAYS_FOLDER}/gates_{end}_{layer}.npz"
                    _write_arrays(
                        folder / file,
                        spatial=gate.spatial.cpu().numpy(),
                        channel=gate.channel.cpu().numpy(),
                        layer=layer,
                        method=GATES,
                        name=cell.name,
                        inside=_inside(preprocessing, image),
                    )
                    entry.arrays.append(file)
            yield entry

    def notes(self, entries: Sequence[Entry]) -> list[str]:
        """Return what is to be said of all gates together."""
        return ["Gates depend on no class, and no verdict is given on them."]


def _notes_on_seen(model: Described, entries: Sequence[Entry]) -> list[str]:
    seen = sum(entry.seen_in_training for entry in entries)
    if seen:
        return [
            f"{seen:,} of {len(entries):,} cells took part in training, or show the same place as one that "
            "did: their maps say nothing of new cells."
        ]
    unknown = note_on_unknown_training(model)
    return [unknown] if unknown else []


def _contrasts_in(targets: Targets) -> tuple[Contrast, ...]:
    everything = (targets.by_itself, *targets.side_by_side)
    return tuple(dict.fromkeys(target for target in everything if isinstance(target, Contrast)))


def _asked(
    targets: Targets,
    predicted: int,
    contrasts: Sequence[Contrast],
    pairs: dict[Contrast, list[int]],
    names: Sequence[str],
) -> list[tuple[int, int, int | None]]:
    """Return (row of the maps, class, class held against): first the map by itself, then those beside."""

    def one(target: Target) -> tuple[int, int, int | None]:
        if isinstance(target, Contrast):
            return len(names) + contrasts.index(target), pairs[target][0], pairs[target][1]
        return int(target), int(target), None

    beside = []
    for target in targets.side_by_side:
        if isinstance(target, Contrast):
            beside += [one(index) for index in pairs[target]]
        beside.append(one(target))
    first = predicted if targets.by_itself is None else targets.by_itself
    return [one(first), *dict.fromkeys(beside)]


def _question(names: Sequence[str], pair: Sequence[int]) -> str:
    return f"{names[pair[0]]}, not {names[pair[1]]}"


def _laid(preprocessing: Preprocessing, values: np.ndarray, image: np.ndarray) -> np.ndarray:
    return preprocessing.onto_original(values, *image.shape[:2])


def _on_padding(preprocessing: Preprocessing, values: np.ndarray, image: np.ndarray) -> float:
    """Return which share of a map, none of it negative, lies on padding, in [0, 1]."""
    size = preprocessing.image_size
    # The same interpolation as `onto_original`: bilinear between centres, constant beyond the outermost.
    everywhere = cv2.resize(values.astype(np.float64), (size, size), interpolation=cv2.INTER_LINEAR)
    total = float(everywhere.sum())
    return float(everywhere[preprocessing.padding_mask(*image.shape[:2])].sum()) / total if total > 0 else 0.0


def _inside(preprocessing: Preprocessing, image: np.ndarray) -> list[int]:
    """Return left, top, right, bottom (the last two past the end) of the image in the network's input."""
    own = np.argwhere(~preprocessing.padding_mask(*image.shape[:2]))
    (top, left), (bottom, right) = own.min(0), own.max(0) + 1
    return [int(left), int(top), int(right), int(bottom)]


# --- files ---------------------------------------------------------------------------------------


def _refuse_what_is_there(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out}: is a file; choose a folder with --out.")
    there = [name for name in (PAGE, RECORD, *FOLDERS) if (out / name).exists()]
    if there and not force:
        raise RunFolderError(
            f"{out}: holds the pictures of an earlier run ({there[0]}); choose another folder with --out, or "
            "replace them with --force."
        )


def _make_folder(staging: Path, out: Path) -> None:
    """Find out before anything is computed whether the pictures can be written."""
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise RunFolderError(
            f"{out}: cannot be written to ({reason}); choose another folder with --out."
        ) from error


def _publish(staging: Path, out: Path) -> None:
    """Take away what an earlier run left, and move everything to its place, the page last."""
    for name in (PAGE, RECORD):
        (out / name).unlink(missing_ok=True)
    for folder in FOLDERS:
        for path in list((out / folder).glob("*")):
            if path.name.startswith(("gradcam_", "gates_")) and path.suffix in {".png", ".npz"}:
                path.unlink()
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == PAGE):
        target = out / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def _write_png(path: Path, picture: Image.Image) -> None:
    notice = PngImagePlugin.PngInfo()
    notice.add_text("Description", RESEARCH_USE_ONLY)
    notice.add_text("Software", f"Cervicyte {__version__}")
    with written_atomically(path) as partial:
        picture.save(partial, pnginfo=notice, compress_level=3)


def _write_arrays(path: Path, **values: Any) -> None:
    """Write arrays, numbers and texts that `numpy.load` reads without pickles."""
    arrays: dict[str, Any] = {key: np.asarray(value) for key, value in values.items()}
    arrays["notice"] = np.asarray(RESEARCH_USE_ONLY)
    with written_atomically(path) as partial:
        np.savez_compressed(partial, **arrays)


def _entry_of(cell: Explanation) -> Entry:
    return Entry(
        cell.name,
        cell.true_class,
        cell.said,
        cell.seen,
    )
