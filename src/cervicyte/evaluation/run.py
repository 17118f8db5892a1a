"""The main job: labelled cells in, a run folder out.

`train_and_evaluate` goes from a data set to a finished run folder, `evaluate_model` judges any model
file on any labelled cells, `probe` runs the control. All three end in the same files, see `report`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from accelerate import PartialState

from cervicyte.datasets.groups import SIPAKMED_PREFIX
from cervicyte.datasets.layouts import Cell, CellDataset, read_dataset
from cervicyte.datasets.splits import (
    PARTS,
    Leak,
    about_path,
    cells_of,
    leak_of,
    make_split,
    read_split,
    split_hash,
    verify_contents,
    write_split,
)
from cervicyte.errors import DatasetError, RunFolderError, SplitError, UsageError
from cervicyte.evaluation.answers import Answerer, answered_cells, attach, fit_answers, usual_background
from cervicyte.evaluation.frozen_network import fit_classifier
from cervicyte.evaluation.ledger import record_opening
from cervicyte.evaluation.linear_probe import frozen_features, probe_predictions
from cervicyte.evaluation.report import REPORT_FILES, leave_out_pictures, write_evaluation
from cervicyte.evaluation.seen import (
    NOT_PATIENTS,
    note_on_unknown_training,
    or_name_them,
    refuse_seen,
    remedy_by_split,
    seen_of,
)
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.network.heads import load_with_head
from cervicyte.network.model_file import ModelFile, load_model_file, save_model, weights_hash
from cervicyte.pages import agreeing, counted
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import read_json
from cervicyte.training.cells import load_cells
from cervicyte.training.loop import (
    CHECKPOINT_NAME,
    HISTORY_NAME,
    MODEL_NAME,
    LabelledImages,
    train,
)
from cervicyte.training.loss import cost_of_classes
from cervicyte.training.recipe import NO_PARENT, Recipe, differing_keys, read_recipe, write_recipe
from cervicyte.training.start import first_network, load_parent, with_parents_settings
from cervicyte.yaml_files import load_yaml

RECIPE_NAME = "recipe.yaml"
SPLIT_NAME = "split.csv"
SPLIT_FILES = (SPLIT_NAME, about_path(Path(SPLIT_NAME)).name)
METRICS_NAME = "metrics.json"
FIGURE_SHAPE = dict.fromkeys(("value", "low", "high"), int | float | None)
METRICS_SHAPE = {
    "cells": int,
    "groups": int,
    "class_names": [str],
    "overall": {"accuracy": FIGURE_SHAPE, ...: FIGURE_SHAPE},
    "per_class": {
        ...: {"support": int, **dict.fromkeys(("precision", "recall", "specificity"), FIGURE_SHAPE)}
    },
    "confusion_matrix": [[int]],
    "intervals": {"level": float, "draws": int, "seed": int},
    "context": {"title": str, "data": str, "layout": str},
    "provenance": {"versions": dict, "machine": str},
}
"""What is read of `report.figures_of`."""
RUN_FILES = (
    MODEL_NAME,
    HISTORY_NAME,
    CHECKPOINT_NAME,
    RECIPE_NAME,
    *SPLIT_FILES,
    *REPORT_FILES,
)


@dataclass(frozen=True)
class SplitChoice:
    """How cells are parted: by a file, or anew. What is None takes the default of `make_split`."""

    file: Path | None = None
    by: str | None = None
    folds: int | None = None
    fold: int | None = None
    seed: int | None = None
    allow_leak: Leak | None = None

    @property
    def files(self) -> list[Path]:
        """The file and what stands beside it; none of a split that is made anew."""
        return [] if self.file is None else [self.file, about_path(self.file)]

    def made(self, dataset: CellDataset) -> pd.DataFrame:
        """Return the split of these cells; one from a file is checked against their contents."""
        if self.file is not None:
            if self._stated():
                raise UsageError(
                    f"{self.file}: a split file says all; leave out --{' and --'.join(self._stated())}."
                )
            split = read_split(self.file)
            verify_contents(split, dataset)
        else:
            split = make_split(dataset, **self._stated(), allow_leak=self.allow_leak)
        # Whoever made the file may have allowed a leak; whoever uses it must name it again.
        split.attrs["allow_leak"] = self.allow_leak
        return split

    def of_run(self, dataset: CellDataset, path: Path, resume: bool) -> pd.DataFrame:
        """Return the split that a run which goes on has begun with, in the file `path`; else a new one."""
        if not (resume and path.is_file()):
            return self.made(dataset)
        split = read_split(path)
        self.check_same(split, path)
        verify_contents(split, dataset)
        return split

    def check_same(self, split: pd.DataFrame, path: Path) -> None:
        """Refuse a choice that differs from a split that a run has begun with."""
        differs = {key: value for key, value in self._stated().items() if split.attrs.get(key) != value}
        other_file = self.file is not None and split_hash(read_split(self.file)) != split_hash(split)
        if differs or other_file:
            raise RunFolderError(
                f"{path}: the run began with another split; resume without split options, or start anew "
                "with --force."
            )

    def _stated(self) -> dict[str, Any]:
        options = {"by": self.by, "folds": self.folds, "fold": self.fold, "seed": self.seed}
        return {key: value for key, value in options.items() if value is not None}


# --- training ----------------------------------------------------------------------------------


def train_and_evaluate(
    data: Path,
    out: Path,
    *,
    recipe_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    split_choice: SplitChoice = SplitChoice(),
    with_pictures: bool = True,
    known_groups: bool = True,
    calibrate: bool = True,
    resume: bool = False,
    force: bool = False,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Split, train, evaluate on the test part, and leave a finished run folder.

    Args:
        data: folder or manifest of labelled cells.
        out: the run folder. It is finished when `metrics.json` is there and `checkpoint.pth` is not.
        recipe_file, overrides: the recipe and changes to it, see `read_recipe`.
        split_choice: which cells train, validate and test.
        with_pictures: whether the report shows the cells that were mistaken.
        known_groups: whether SIPaKMeD's fields are grouped by the table that ships with Cervicyte.
        calibrate: fit on the validation cells what the model answers by, see `answers.fit_answers`; a
            cross-validation, which calibrates each fold by the others, does without.
        resume: go on with an unfinished run, with the recipe and the split that it began with.
        force: throw away what an earlier run left in `out`.
        command: the command line, recorded in every artefact.
        progress: is told of every step.

    Returns:
        The figures of `metrics.json`.

    Raises:
        RunFolderError: `out` holds a run and neither `resume` nor `force` is given, or one of another
            recipe or split.
        CervicyteError: of the rooms before, for unreadable data, splits, recipes or weights.
    """
    began = time.monotonic()
    processes = PartialState()  # one, unless started by `accelerate launch`
    recipe_given = recipe_file
    if resume and recipe_file is None and (out / RECIPE_NAME).is_file():
        recipe_given = out / RECIPE_NAME
    stated = dict(overrides or {})
    recipe = read_recipe(recipe_given, stated)
    if recipe.parent != NO_PARENT and "backbone" in stated:
        raise UsageError("--backbone and --from: a training starts from one of them; leave the other out.")
    parent = load_parent(recipe)
    recipe = with_parents_settings(recipe, parent)
    if processes.is_main_process:
        if resume and is_finished(out):
            _check_same_run(out, recipe, split_choice)
            progress.say(f"{out}: this run is finished; nothing is left to do.")
            finished = read_metrics(out)
            if not with_pictures:
                leave_out_pictures(out, finished, pd.read_csv(out / HISTORY_NAME))
            return finished
        read: list[str | Path | None] = [recipe.parent, recipe.backbone, *split_choice.files]
        claim(out, files_of_run(out), is_finished(out), resume=resume, force=force, read=read)
    processes.wait_for_everyone()
    resume = resume and not force

    dataset = read_dataset(data, known_groups)
    for warning in dataset.warnings:
        progress.say(f"Note: {warning}")
    split = split_choice.of_run(dataset, out / SPLIT_NAME, resume)
    cells = {part: cells_of(split, dataset, part) for part in PARTS}
    class_names = dataset.classes
    for part in PARTS:
        _check_classes(cells[part], class_names, part)
    caveats = caveats_of(dataset, split)
    if parent is not None:
        caveats = [*_caveats_of_parent(parent, cells, data), *caveats]
    progress.say("; ".join(f"{part}: {counted(len(cells[part]), 'cell')}" for part in PARTS))
    # All that can be wrong with the input is found before anything is trained or written.
    cost_of_classes(class_names, recipe.missed_abnormal_cost)
    first_network(recipe, class_names)
    training, validation, test = (
        labelled_images(cells[part], class_names, recipe.preprocessing, progress, part) for part in PARTS
    )
    processes.wait_for_everyone()  # another may still be reading
    if processes.is_main_process and force:
        throw_away(files_of_run(out), kept=split_choice.files)
    # A run that goes on keeps what it began with, even if `train` then refuses another recipe.
    if processes.is_main_process and not (out / CHECKPOINT_NAME).exists():
        write_recipe(recipe, out / RECIPE_NAME)
        write_split(split, out / SPLIT_NAME)
    split_facts = facts_of_split(split)
    metadata = {
        "split": split_facts,
        "leak": leak_of(split),
        "data": dataset.root.name,
        "data_set": dataset.known,
        "caveats": caveats,
        "seen": _with_those_of(parent, seen_cells(split)),
    }
    history, fitting_began = None, time.monotonic()
    if recipe.classifier != "gradient":
        if processes.is_main_process:
            groups = [cell.group for cell in cells["train"]]
            model = fit_classifier(recipe, training, groups, class_names, progress)
            model.metadata |= metadata
            save_model(out / MODEL_NAME, model)
        seconds = time.monotonic() - fitting_began
    else:
        history = train(
            recipe,
            training,
            validation,
            class_names,
            out,
            metadata=metadata,
            resume=resume,
            progress=progress,
        )
        seconds = float(history["seconds"].sum())
    if not processes.is_main_process:
        return {}

    model = load_model_file(out / MODEL_NAME)
    model.metadata["background"] = usual_background(cells["train"], progress)  # `adapt` goes by it
    if calibrate:
        answers = (training, cells["train"], validation, cells["validation"])
        attach(model, *fit_answers(model, *answers, progress))
    opened = record_opening(
        split_choice.file or out / SPLIT_NAME,
        split_hash(split),
        model=weights_hash(model.network),
        command=command,
    )
    predictions = answered_cells(model, cells["test"], None, progress, inputs=test.images)
    context = {
        "title": f"{dataset.known or dataset.root.name}: test part",
        "data": dataset.root.name,
        "layout": dataset.layout,
        "split": split_facts,
        "leak": leak_of(split),
        "test_part_opened": opened,
        "model": facts_of_model(model),
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "command": command,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "training_minutes": round(seconds / 60, 1),
        "caveats": [*caveats, *Answerer.of(model).notes] if parent else caveats,
    }
    metrics = write_evaluation(
        out,
        predictions,
        class_names,
        history=history,
        context=context,
        image_of=picture_reader(cells["test"]) if with_pictures else None,
        seed=recipe.seed,
    )
    model.metadata["metrics"] = model.metadata.get("metrics", {}) | {
        "test": metrics["overall"],
        "test_per_class": metrics["per_class"],
        "test_roll_up": metrics.get("roll_up"),
        "test_confusion_matrix": {"counts": metrics["confusion_matrix"]},
    }
    model.metadata["training_minutes"] = context["training_minutes"]
    save_model(out / MODEL_NAME, model)
    (out / CHECKPOINT_NAME).unlink(missing_ok=True)
    return metrics


def is_finished(out: Path) -> bool:
    """Return whether a run folder holds a finished run."""
    return (out / METRICS_NAME).is_file() and not (out / CHECKPOINT_NAME).exists()


def _check_same_run(out: Path, recipe: Recipe, split_choice: SplitChoice) -> None:
    """Refuse a recipe or a split that is not that of a finished run: its figures are of its own."""
    if (out / RECIPE_NAME).is_file() and (changed := differing_keys(read_recipe(out / RECIPE_NAME), recipe)):
        raise RunFolderError(
            f"{out}: this run is finished, with another recipe ({', '.join(changed)} differ); leave the "
            "change out, choose another folder with --out, or start anew with --force."
        )
    if (out / SPLIT_NAME).is_file():
        split_choice.check_same(read_split(out / SPLIT_NAME), out / SPLIT_NAME)


def read_metrics(out: Path) -> dict[str, Any]:
    """Return the figures of a finished run folder.

    Raises:
        RunFolderError: there are none, or they are damaged.
    """
    return read_json(
        out / METRICS_NAME,
        METRICS_SHAPE,
        missing="finish the run with --resume first",
        damaged="evaluate anew with --force",
    )


def files_of_run(out: Path) -> list[Path]:
    """Return all that a run may have in its folder, whether it is there or not."""
    return [out / name for name in RUN_FILES]


def claim(
    out: Path,
    own: Sequence[Path],
    finished: bool,
    *,
    resume: bool = False,
    force: bool = False,
    read: Sequence[str | Path | None] = (),
) -> None:
    """Make sure that `out` can take a run, and that no earlier work in it is lost unasked.

    What `force` replaces stays until `throw_away`: a mistake in what is named beside it costs nothing.

    Args:
        out: the run folder; made, if it is not there.
        own: all files that a run may have in it.
        finished: whether a run in it is.
        resume, force: see `train_and_evaluate`.
        read: files that are still needed when the earlier run is thrown away. A split that lies in `out`
            as a run's own may be among them, as it is kept, see `throw_away`.

    Raises:
        RunFolderError: it holds a run, and neither `resume` nor `force` is given, or `force` would throw away
            what is to be read.
    """
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out}: is a file; choose a folder with --out.")
    there = [path for path in own if path.exists()]
    if there and force:
        _refuse_to_throw_away(there, read)
    elif there and not resume:
        if finished:
            raise RunFolderError(
                f"{out}: holds a finished run; choose another folder with --out, or replace it with --force."
            )
        raise RunFolderError(
            f"{out}: holds an unfinished run; go on with --resume, or start anew with --force."
        )
    out.mkdir(parents=True, exist_ok=True)


def _refuse_to_throw_away(files: Sequence[Path], read: Sequence[str | Path | None]) -> None:
    for path in (Path(one) for one in read if one is not None):
        for file in files:
            if file.name not in SPLIT_FILES and path.exists() and path.samefile(file):
                raise RunFolderError(
                    f"{path}: is to be read, and --force would throw it away with the run in {file.parent}; "
                    "choose another folder with --out."
                )


def throw_away(own: Sequence[Path], kept: Sequence[Path] = ()) -> None:
    """Remove what an earlier run left, but for `kept`, once nothing that is read can be wrong any more."""
    there = [path for path in kept if path.exists()]
    for path in own:
        if not (path.exists() and any(path.samefile(one) for one in there)):
            path.unlink(missing_ok=True)


# --- evaluation of a model file ----------------------------------------------------------------


def evaluate_model(
    model_path: Path,
    data: Path,
    out: Path,
    *,
    split_file: Path | None = None,
    part: str | None = None,
    class_map: Mapping[str, str] | None = None,
    allow_seen: bool = False,
    allow_leak: Leak | None = None,
    head: str | None = None,
    with_pictures: bool = True,
    known_groups: bool = True,
    force: bool = False,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Evaluate a model file on labelled cells: all of them, or one part of a split.

    Args:
        model_path: ours, or the original notebook's checkpoint.
        data: folder or manifest of labelled cells.
        out: folder for the report.
        split_file, part: take only the cells of this part; None is the test part.
        class_map: the data set's class names -> the model's, where they differ.
        allow_seen: evaluate even though cells, or others of their groups, took part in training.
        allow_leak: the leak of the split that is accepted by name, see `check_split`.
        head: of a model that has several, see `network.heads`.
        with_pictures, known_groups, force, command, progress: see `train_and_evaluate`.

    Raises:
        DatasetError: a class is none of the model's and `class_map` does not name it.
        SplitError: cells were seen in training.
        UsageError: there is a part and no split, or `class_map` names a class that there is not.
    """
    part = part_of_split(split_file, part)
    model = load_with_head(model_path, head)
    split_files = SplitChoice(split_file).files
    claim(out, files_of_run(out), is_finished(out), force=force, read=(model_path, *split_files))
    dataset = read_dataset(data, known_groups)
    for warning in dataset.warnings:
        progress.say(f"Note: {warning}")
    if split_file is not None:
        split = read_split(split_file)
        split.attrs["allow_leak"] = allow_leak
        verify_contents(split, dataset)
        cells: Sequence[Cell] = cells_of(split, dataset, part)
    else:
        cells = dataset.cells
    true_classes = mapped_classes(cells, model.class_names, class_map or {}, data, dataset.classes)
    seen = refuse_seen(model, cells, data, allow_seen, remedy_by_split("evaluate"))
    which = f"{len(seen)} of {counted(len(cells), 'cell')} {agreeing(len(seen), 'was', 'were')}"
    seen_caveat = f"{which} seen in training: the figures flatter."
    caveats = [seen_caveat, NOT_PATIENTS] if seen else [NOT_PATIENTS]
    if unknown := note_on_unknown_training(model):
        caveats.insert(0, unknown)
    if force:
        throw_away(files_of_run(out), kept=split_files)
    opened = None
    if split_file is not None and (leak := leak_of(split)):
        caveats.insert(0, leak)
    if split_file is not None and part == "test":
        opened = record_opening(
            split_file, split_hash(split), model=weights_hash(model.network), command=command
        )
    predictions = answered_cells(model, cells, true_classes, progress)
    context = {
        "title": f"{dataset.known or dataset.root.name}: {part + ' part' if split_file else 'all cells'}",
        "data": dataset.root.name,
        "layout": dataset.layout,
        "model": facts_of_model(model),
        "class_map": dict(class_map or {}),
        "cells_seen_in_training": len(seen),
        "seen_in_training": seen_caveat if seen else None,
        "command": command,
        "caveats": caveats,
    }
    if split_file is not None:
        context["split"] = facts_of_split(split)
        context["leak"] = leak_of(split)
        context["test_part_opened"] = opened
    return write_evaluation(
        out,
        predictions,
        model.class_names,
        context=context,
        image_of=picture_reader(cells) if with_pictures else None,
    )


def part_of_split(split_file: Path | None, part: str | None) -> str:
    """Return the part of a split that is asked for, the test part if none is.

    Raises:
        UsageError: a part is asked for, and there is no split.
    """
    if part is not None and split_file is None:
        raise UsageError(
            f"--part {part} needs --split: name the file that says which cells are of that part."
        )
    return "test" if part is None else part


def mapped_classes(
    cells: Sequence[Cell],
    class_names: Sequence[str],
    class_map: Mapping[str, str],
    data: Path,
    data_classes: Sequence[str],
) -> list[str]:
    """Return each cell's true class in the model's names.

    Args:
        cells: of a part of the data set, or of all.
        class_names: the model's.
        class_map: the data set's class names -> the model's, where they differ.
        data: what messages name.
        data_classes: of the whole data set.

    Raises:
        DatasetError: a class has no counterpart; the text says how to give one.
        UsageError: the map leads to a class that the model does not have, or from one that the data do not.
    """
    valid = ", ".join(class_names)
    for name in class_map.values():
        if name not in class_names:
            raise UsageError(f"--class-map: the model has no class {name}; its classes are {valid}.")
    for name in class_map:
        if name not in data_classes:
            raise UsageError(
                f"{data}: has no class {name}, which --class-map names; its classes are "
                f"{', '.join(data_classes)}; correct the line or take it out."
            )
    labels = {cell.label for cell in cells}
    unknown = sorted(labels - set(class_map) - set(class_names))
    if unknown:
        raise DatasetError(
            f"{data}: the model does not know the class {unknown[0]}; give a YAML file of lines "
            f"`{unknown[0]}: CLASS` with --class-map, where CLASS is one of {valid}."
        )
    return [class_map.get(cell.label, cell.label) for cell in cells]


def read_class_map(path: Path) -> dict[str, str]:
    """Read `data set's class: model's class` lines from YAML.

    Raises:
        UsageError: the file is missing or holds something else.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as a class map; check the path and the YAML.") from error
    if not isinstance(content, dict) or not all(isinstance(v, str) for kv in content.items() for v in kv):
        raise UsageError(f"{path}: must consist of lines `data set's class: model's class`.")
    return content


def seen_cells(split: pd.DataFrame) -> dict[str, list[str]]:
    """Return the contents and known groups that training and validation saw, for the model file."""
    shown = split[split["part"] != "test"]
    groups = {group for group in shown["group"] if group.startswith(SIPAKMED_PREFIX)}
    return {"sha256": sorted(set(shown["sha256"])), "groups": sorted(groups)}


def _with_those_of(parent: ModelFile | None, seen: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the cells that a model saw, with those that its parent saw."""
    before = {} if parent is None else parent.metadata.get("seen", {})
    return {key: sorted({*names, *before.get(key, ())}) for key, names in seen.items()}


def _caveats_of_parent(parent: ModelFile, cells: Mapping[str, Sequence[Cell]], data: Path) -> list[str]:
    """Return what is to be said of the cells that the model to start from has seen, or may have seen.

    Raises:
        SplitError: some of them are to test.
    """
    if seen := seen_of(parent, cells["test"]):
        raise SplitError(
            f"{data}: {len(seen)} of {len(cells['test'])} test cells, first {seen[0].name}, took part in the "
            "training of the model to start from, or show the same place as one that did; give a split file "
            f"in which they train, or start from a model that has not seen them{or_name_them(parent, seen)}."
        )
    caveats = []
    if unknown := note_on_unknown_training(parent):
        caveats.append(f"The training started from another model. {unknown}")
    if seen := seen_of(parent, cells["validation"]):
        caveats.append(
            f"{len(seen)} of {len(cells['validation'])} validation cells were seen by the model that the "
            "training started from: the calibration may be too certain."
        )
    return caveats


# --- the control -------------------------------------------------------------------------------


def probe(
    data: Path,
    out: Path,
    *,
    backbone: str,
    preprocessing: Preprocessing | None = None,
    split_choice: SplitChoice = SplitChoice(),
    known_groups: bool = True,
    force: bool = False,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Evaluate logistic regression on frozen features over a split; see `linear_probe`."""
    preprocessing = preprocessing or Preprocessing()
    claim(out, files_of_run(out), is_finished(out), force=force, read=split_choice.files)
    dataset = read_dataset(data, known_groups)
    split = split_choice.made(dataset)
    cells = {part: cells_of(split, dataset, part) for part in PARTS}
    everything = [cell for part in PARTS for cell in cells[part]]
    parts = [part for part in PARTS for _ in cells[part]]
    features = frozen_features(everything, backbone, preprocessing, progress)
    if force:
        throw_away(files_of_run(out), kept=split_choice.files)
    write_split(split, out / SPLIT_NAME)
    probe_of = f"linear probe, {Path(backbone).name}, {preprocessing.fingerprint()}"
    ledger_of = split_choice.file or out / SPLIT_NAME
    opened = record_opening(ledger_of, split_hash(split), model=probe_of, command=command)
    predictions, strength = probe_predictions(features, everything, parts, dataset.classes)
    return write_evaluation(
        out,
        predictions,
        dataset.classes,
        context={
            "title": f"{dataset.known or dataset.root.name}: linear probe, test part",
            "data": dataset.root.name,
            "layout": dataset.layout,
            "split": facts_of_split(split),
            "leak": leak_of(split),
            "test_part_opened": opened,
            "model": {
                "kind": f"logistic regression (C = {strength:g}) on 2,048 frozen ResNet-50 features",
                "backbone": Path(backbone).name,
                "image_size": preprocessing.image_size,
                "preprocessing": preprocessing.fingerprint(),
            },
            "command": command,
            "caveats": caveats_of(dataset, split),
        },
    )


# --- what a report says of its origin ----------------------------------------------------------


def labelled_images(
    cells: Sequence[Cell],
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    progress: Progress = SILENT,
    part: str = "",
) -> LabelledImages:
    """Read cells, once, as the loop takes them."""
    index_of = {name: index for index, name in enumerate(class_names)}
    images = load_cells(cells, preprocessing, progress, f"Reading {part} cells")
    return LabelledImages(images, np.array([index_of[cell.label] for cell in cells], np.int64))


def facts_of_split(split: pd.DataFrame) -> dict[str, Any]:
    """Return what a report says of a split: how it was made, its hash, cells and groups of each part."""
    keys = ("by", "folds", "fold", "seed")
    stated: dict[str, Any] = {key: split.attrs[key] for key in keys if key in split.attrs}
    parts = {
        part: {"cells": len(rows), "groups": int(rows["group"].nunique())}
        for part, rows in split.groupby("part")
    }
    return {**stated, "hash": split_hash(split), **{str(part): parts[part] for part in parts}}


def facts_of_model(model: ModelFile) -> dict[str, Any]:
    """Return what a report says of a model."""
    parent = model.metadata.get("parent", {})
    return {
        "started_from": {key: parent[key] for key in ("file", "weights_sha256", "data")} if parent else None,
        "classifier": model.metadata.get("classifier"),
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "network": model.network.kind,
        "placement": model.network.placement,
        "backbone": model.metadata.get("backbone"),
        "weights_sha256": weights_hash(model.network),
        "trained_on": model.metadata.get("device"),
        "precision": model.metadata.get("precision"),
        "epoch": model.epoch,
        "best_validation_accuracy": model.best_validation_accuracy,
        "image_size": model.preprocessing.image_size,
        "preprocessing": model.preprocessing.fingerprint(),
    }


def caveats_of(dataset: CellDataset, split: pd.DataFrame) -> list[str]:
    """Return what a reader of the figures must know."""
    caveats = [NOT_PATIENTS, *dataset.warnings]
    leak = leak_of(split)
    return [leak, *caveats] if leak else caveats


def picture_reader(cells: Sequence[Cell]) -> Callable[[str], np.ndarray]:
    """Return a function from a cell's name to its image, uint8 [H, W, 3]."""
    path_of = {cell.name: cell.path for cell in cells}
    return lambda name: read_image(path_of[name])


def _check_classes(cells: Sequence[Cell], class_names: Sequence[str], part: str) -> None:
    missing = sorted(set(class_names) - {cell.label for cell in cells})
    if missing and part != "test":
        raise SplitError(
            f"The {part} part has no cell of the class {missing[0]}; use fewer folds, or a split file that "
            "has some."
        )
