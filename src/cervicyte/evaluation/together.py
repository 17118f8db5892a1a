"""Several data sets in one training: a head for each class list, and one answer on normal and abnormal.

Each data set is split by its own independent groups and keeps its own classes; what they have in common is
whether a cell is abnormal. Where that is neither published nor declared for a class, its cells train their
own head alone and have no part in the common answer: it is not guessed. One data set may be left out of the
training, to measure the common answer on cells of a laboratory that the network has never seen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import yaml
from accelerate import PartialState

from cervicyte import metrics
from cervicyte.datasets.classes import Grouping, grouping_of
from cervicyte.datasets.groups import SIPAKMED_PREFIX
from cervicyte.datasets.layouts import Cell, CellDataset, read_dataset
from cervicyte.datasets.splits import (
    PARTS,
    cells_of,
    leak_of,
    read_split,
    split_hash,
    write_split,
)
from cervicyte.errors import DatasetError, RunFolderError, SplitError, UsageError
from cervicyte.evaluation import charts
from cervicyte.evaluation.answers import Answerer, answered_cells, attach, fit_answers, usual_background
from cervicyte.evaluation.cross_validation import as_json, bootstrap_estimates
from cervicyte.evaluation.elsewhere import COLUMNAR
from cervicyte.evaluation.features import logits_of_means, pooled_features
from cervicyte.evaluation.ledger import record_opening
from cervicyte.evaluation.predictions import logistic
from cervicyte.evaluation.report import leave_out_pictures, write_evaluation
from cervicyte.evaluation.run import (
    RECIPE_NAME,
    SPLIT_NAME,
    SplitChoice,
    caveats_of,
    claim,
    facts_of_model,
    facts_of_split,
    files_of_run,
    labelled_images,
    picture_reader,
    read_metrics,
    seen_cells,
    throw_away,
)
from cervicyte.evaluation.seen import caveats_elsewhere
from cervicyte.evaluation.tables import write_table
from cervicyte.evaluation.together_page import together_page
from cervicyte.network.heads import Head, abnormal_unit, wide_names, with_head
from cervicyte.network.model_file import ModelFile, load_model_file, save_model, weights_hash
from cervicyte.pages import counted
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import (
    RESEARCH_USE_ONLY,
    provenance,
    read_json,
    sha256_of_file,
    write_json,
    write_text,
)
from cervicyte.training.cells import load_cells
from cervicyte.training.heads import refuse_for_heads
from cervicyte.training.loop import CHECKPOINT_NAME, MODEL_NAME, LabelledImages, train
from cervicyte.training.recipe import Recipe, differing_keys, read_recipe, write_recipe
from cervicyte.training.start import first_network
from cervicyte.yaml_files import load_yaml

SUMMARY_NAME = "together.json"
PAGE_NAME = "together.md"
LEFT_OUT_NAME = "left_out_predictions.csv"
FOLDER_NAME = re.compile(r"\w[\w .-]*")
CALLED_ABNORMAL = 0.5  # from this probability on
BY = "by_"  # begins the columns of what a head's abnormal classes have together


@dataclass(frozen=True)
class Named:
    """A data set under its name, with the grouping of each of its classes; None where it is not known."""

    name: str
    data: CellDataset
    groupings: dict[str, Grouping | None]

    @property
    def head(self) -> Head:
        """The class list that is learnt from it."""
        return Head(self.name, self.data.classes, tuple(self.groupings[name] for name in self.data.classes))

    @property
    def unknown(self) -> list[str]:
        """The classes that have no part in the common answer."""
        return [name for name, grouping in self.groupings.items() if grouping is None]

    @property
    def notes(self) -> list[str]:
        """What its user must know of the classes, a sentence each."""
        return [
            f"{self.name}: it is not known whether the class {name} is normal or abnormal, so its cells have "
            "no part in the common answer; declare it with --sides."
            for name in self.unknown
        ]


def train_together(
    data: Sequence[str],
    out: Path,
    *,
    recipe_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    sides: Path | None = None,
    leave_out: str | None = None,
    split_choice: SplitChoice | None = None,
    with_pictures: bool = True,
    known_groups: bool = True,
    resume: bool = False,
    force: bool = False,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Split each data set, train one network on all, judge each head and the common answer.

    Args:
        data: folders or manifests of labelled cells, each as `PATH` or `NAME=PATH`; the name is that of the
            folder unless it is given.
        out: the run folder; each data set has a folder of its own in it, as a run has. It is finished when
            `together.json` is there and `checkpoint.pth` is not.
        recipe_file, overrides: the recipe and changes to it, see `read_recipe`.
        sides: YAML that says of each data set which classes are normal, benign or abnormal, see `read_sides`.
        leave_out: the name of a data set that is not trained on, but judged on as a whole.
        split_choice: of every data set alike; None takes the defaults.
        with_pictures, known_groups, resume, force, command, progress: see `run.train_and_evaluate`.

    Returns:
        The content of `together.json`.

    Raises:
        UsageError: too few data sets, a name twice, or none of that name to leave out.
        DatasetError: no class or all classes of those that train, or of the one left out, are abnormal.
        SplitError: two data sets share a cell.
        RunFolderError, CervicyteError: see `run.train_and_evaluate`.
    """
    began = time.monotonic()
    main = PartialState().is_main_process
    if resume and recipe_file is None and (out / RECIPE_NAME).is_file():
        recipe_file = out / RECIPE_NAME
    recipe = read_recipe(recipe_file, dict(overrides or {}))
    refuse_for_heads(recipe)
    paths = named_paths(data)
    if leave_out is not None and leave_out not in paths:
        raise UsageError(f"--leave-out {leave_out}: there is no such data set; choose one of {_list(paths)}.")
    if len(paths) < 2:
        raise UsageError("Name two data sets or more; `cervicyte train` is for one.")
    trained_names = [name for name in paths if name != leave_out]
    own, choice = _own_files(out, list(paths)), split_choice or SplitChoice()
    if resume and _is_finished(out):
        content = _finished(out, recipe, trained_names, leave_out, choice, progress)
        if not with_pictures:
            for name in trained_names:
                leave_out_pictures(out / name, read_metrics(out / name))
        return content
    if main:
        claim(out, own, _is_finished(out), resume=resume, force=force, read=[recipe.backbone])
    PartialState().wait_for_everyone()
    resume = resume and not force

    declared = read_sides(sides) if sides else {}
    named = _read(paths, declared, known_groups)
    trained = [named[name] for name in trained_names]
    left_out = None if leave_out is None else named[leave_out]
    notes = [note for one in named.values() for note in one.notes]
    for one in named.values():
        for warning in one.data.warnings:
            progress.say(f"Note: {one.name}: {warning}")
    for note in notes:
        progress.say(f"Note: {note}")
    _check_sides(trained, left_out)
    splits = {one.name: _split_of(one, out / one.name / SPLIT_NAME, choice, resume) for one in trained}
    refuse_shared_cells(splits, left_out)
    cells = {
        one.name: {part: cells_of(splits[one.name], one.data, part) for part in PARTS} for one in trained
    }
    for name, parts in cells.items():
        progress.say(
            f"{name}: " + "; ".join(f"{part}: {counted(len(parts[part]), 'cell')}" for part in PARTS)
        )
    heads = [one.head for one in trained]
    first_network(recipe, wide_names(heads))  # what can be wrong with it is found before anything is written
    images = {
        one.name: {
            part: labelled_images(
                cells[one.name][part],
                one.data.classes,
                recipe.preprocessing,
                progress,
                f"{one.name}'s {part}",
            )
            for part in PARTS
        }
        for one in trained
    }
    PartialState().wait_for_everyone()  # another may still be reading
    if main and force:
        throw_away(own)
    if main and not (out / CHECKPOINT_NAME).exists():
        write_recipe(recipe, out / RECIPE_NAME)
        for name, split in splits.items():
            write_split(split, out / name / SPLIT_NAME)
    seen = [seen_cells(split) for split in splits.values()]
    history = train(
        recipe,
        _together([images[head.name]["train"] for head in heads], heads),
        _together([images[head.name]["validation"] for head in heads], heads),
        wide_names(heads),
        out,
        heads=heads,
        metadata={
            "seen": {key: sorted({name for one in seen for name in one[key]}) for key in seen[0]},
            "together": {"data_sets": trained_names, "left_out": leave_out},
        },
        resume=resume,
        progress=progress,
    )
    if not main:
        return {}

    minutes = round(float(history["seconds"].sum()) / 60, 1)
    model = load_model_file(out / MODEL_NAME)
    model.metadata["training_minutes"] = minutes
    data_sets: dict[str, Any] = {}
    for one in trained:
        model = with_head(model, one.name)
        answers = [(images[one.name][part], cells[one.name][part]) for part in ("train", "validation")]
        split, caveats = splits[one.name], [*caveats_of(one.data, splits[one.name]), *one.notes]
        model.metadata |= {
            "data": one.name,
            "data_set": one.data.known,
            "split": facts_of_split(split),
            "leak": leak_of(split),
            "caveats": caveats,
            "background": usual_background(cells[one.name]["train"], progress),
        }
        attach(model, *fit_answers(model, *answers[0], *answers[1], progress))
        context = {
            "title": f"{one.name}: test part, of a network that was trained on {_list(trained_names)}",
            "data": one.data.root.name,
            "layout": one.data.layout,
            "trained_together": trained_names,
            "left_out": leave_out,
            "split": facts_of_split(split),
            "leak": leak_of(split),
            "test_part_opened": record_opening(
                out / one.name / SPLIT_NAME,
                split_hash(split),
                model=weights_hash(model.network),
                command=command,
            ),
            "model": facts_of_model(model),
            "recipe": recipe.model_dump(mode="json"),
            "seed": recipe.seed,
            "command": command,
            "training_minutes": minutes,
            "caveats": caveats,
        }
        data_sets[one.name] = _judged(
            model,
            one,
            cells[one.name]["test"],
            images[one.name]["test"],
            out,
            context,
            with_pictures,
            progress,
        )
    model = with_head(model, heads[0].name)
    content = {
        "notice": RESEARCH_USE_ONLY,
        "data_sets": data_sets,
        "left_out": None
        if left_out is None
        else _judged_left_out(model, heads, left_out, recipe, out, progress),
        "called_abnormal_from": CALLED_ABNORMAL,
        "training": {"epochs": len(history), "kept_epoch": model.epoch, "minutes": minutes},
        "model": facts_of_model(model),
        "recipe": recipe.model_dump(mode="json"),
        "caveats": [*caveats_elsewhere([one.data.known for one in named.values()]), *notes],
        "intervals": {"level": metrics.LEVEL, "method": "bootstrap of whole groups", "draws": metrics.DRAWS},
        "minutes": round((time.monotonic() - began) / 60, 1),
        "provenance": provenance(command),
    }
    save_model(out / MODEL_NAME, model)
    charts.write_png(charts.history_figure(history, model.epoch), out / "training_history.png")
    write_text(out / PAGE_NAME, together_page(content))
    write_json(out / SUMMARY_NAME, content)
    (out / CHECKPOINT_NAME).unlink(missing_ok=True)
    return content


# --- what is named and declared --------------------------------------------------------------------


def named_paths(data: Sequence[str]) -> dict[str, Path]:
    """Return the data sets' paths under their names, from `PATH` or `NAME=PATH`.

    Raises:
        UsageError: a name stands there twice, or cannot be a folder's.
    """
    paths: dict[str, Path] = {}
    for text in data:
        name, equals, rest = text.partition("=")
        path = Path(rest) if equals and not Path(text).exists() else Path(text)
        if path == Path(text):
            name = path.resolve().stem if path.is_file() else path.resolve().name
        if not FOLDER_NAME.fullmatch(name):
            raise UsageError(f"{text}: {name!r} cannot name a folder; give another with NAME={path}.")
        if name in paths:
            raise UsageError(f"{text}: two data sets are called {name}; name one otherwise: OTHER={path}.")
        paths[name] = path
    return paths


def read_sides(path: Path) -> dict[str, dict[str, Grouping]]:
    """Read which classes are normal, benign or abnormal: `data set: {class: normal}` in YAML.

    Raises:
        UsageError: the file is missing or holds something else.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read; check the path and the YAML.") from error
    if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
        raise UsageError(
            f"{path}: must name data sets, and below each lines `class: normal`, `benign` or `abnormal`."
        )
    for name, classes in content.items():
        for label, side in classes.items():
            if side not in get_args(Grouping):
                raise UsageError(
                    f"{path}: {name}, {label}: {side!r} will not do; say normal, benign or abnormal."
                )
    return {str(name): {str(label): side for label, side in one.items()} for name, one in content.items()}


def _read(
    paths: Mapping[str, Path], declared: Mapping[str, Mapping[str, Grouping]], known_groups: bool
) -> dict[str, Named]:
    if strange := sorted(set(declared) - set(paths)):
        raise UsageError(f"--sides: there is no data set {strange[0]}; they are {_list(paths)}.")
    named = {}
    for name, path in paths.items():
        dataset = read_dataset(path, known_groups)
        own = declared.get(name, {})
        if strange := sorted(set(own) - set(dataset.classes)):
            raise UsageError(
                f"--sides: {name} has no class {strange[0]}; its classes are {', '.join(dataset.classes)}."
            )
        named[name] = Named(name, dataset, {**grouping_of(dataset.classes), **own})
    return named


def _check_sides(trained: Sequence[Named], left_out: Named | None) -> None:
    """Hold that there are abnormal cells and others to learn from, and to judge on."""
    for whose, those in (("trained on", trained), ("left out", [left_out] if left_out else [])):
        sides = {grouping for one in those for grouping in one.groupings.values()}
        if those and ("abnormal" not in sides or not sides & {"normal", "benign"}):
            raise DatasetError(
                f"{_list(one.name for one in those)}: of what is {whose}, no class is known as abnormal, or "
                "none as normal; declare them with --sides."
            )


def refuse_shared_cells(splits: Mapping[str, pd.DataFrame], left_out: Named | None = None) -> None:
    """Refuse data sets of which two have a file content, or one of SIPaKMeD's known groups, in common.

    A cell that trains in one of them would test in the other.

    Raises:
        SplitError: they have; the text names it.
    """
    marks = {
        name: {*split["sha256"], *(group for group in split["group"] if group.startswith(SIPAKMED_PREFIX))}
        for name, split in splits.items()
    }
    if left_out is not None:
        cells = left_out.data.cells
        marks[left_out.name] = {sha256_of_file(cell.path) for cell in cells}
        marks[left_out.name] |= {cell.group for cell in cells if cell.group.startswith(SIPAKMED_PREFIX)}
    owner: dict[str, str] = {}
    for name, own in marks.items():
        if shared := sorted(own & owner.keys()):
            raise SplitError(
                f"{owner[shared[0]]} and {name} have {len(shared):,} cells or known groups in common, first "
                f"{shared[0][:40]}, so that what trains in one would test in the other; take them out of one."
            )
        owner |= dict.fromkeys(own, name)


def _split_of(one: Named, path: Path, choice: SplitChoice, resume: bool) -> pd.DataFrame:
    try:
        return choice.of_run(one.data, path, resume)
    except SplitError as error:
        raise SplitError(f"{one.name}: {error}") from error


def _together(parts: Sequence[LabelledImages], heads: Sequence[Head]) -> LabelledImages:
    """Return the cells of all data sets, whose targets are rows of a layer that is all heads at once."""
    starts = np.cumsum([0, *(len(head.class_names) for head in heads)])
    targets = [part.targets + start for part, start in zip(parts, starts, strict=False)]
    return LabelledImages(np.concatenate([part.images for part in parts]), np.concatenate(targets))


# --- judging -------------------------------------------------------------------------------------


def _judged(
    model: ModelFile,
    one: Named,
    cells: Sequence[Cell],
    test: LabelledImages,
    out: Path,
    context: Mapping[str, Any],
    with_pictures: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluate one head on its test part, put its figures into the model, and return what is said of it."""
    table = answered_cells(model, cells, None, progress, f"Classifying {one.name}", test.images)
    figures = write_evaluation(
        out / one.name,
        table,
        model.class_names,
        context=context,
        image_of=picture_reader(cells) if with_pictures else None,
        seed=context["seed"],
    )
    model.metadata["metrics"] = {
        "test": figures["overall"],
        "test_per_class": figures["per_class"],
        "test_roll_up": figures.get("roll_up"),
        "test_confusion_matrix": {"counts": figures["confusion_matrix"]},
    }
    own = table[[f"p_{name}" for name, side in one.groupings.items() if side == "abnormal"]].sum(axis=1)
    return {
        "classes": one.groupings,
        "split": context["split"],
        "cells": figures["cells"],
        "groups": figures["groups"],
        "accuracy": figures["overall"]["accuracy"],
        "macro_f1": figures["overall"]["macro_f1"],
        "common": abnormal_figures(table, one.groupings, table["abnormal"].to_numpy(float)),
        "own_head": abnormal_figures(table, one.groupings, own.to_numpy(float)),
    }


def _judged_left_out(
    model: ModelFile, heads: Sequence[Head], one: Named, recipe: Recipe, out: Path, progress: Progress
) -> dict[str, Any]:
    """Judge the common answer, and each head's abnormal classes, on all cells of a data set left out."""
    images = load_cells(one.data.cells, recipe.preprocessing, progress, f"Reading {one.name}")
    means = pooled_features(
        model.network, images, recipe.preprocessing, progress, f"Classifying {one.name}, left out"
    )["stage4"]
    unit = abnormal_unit(model)
    assert unit is not None
    table = pd.DataFrame(
        {
            "path": [cell.name for cell in one.data.cells],
            "group": [cell.group for cell in one.data.cells],
            "true_class": [cell.label for cell in one.data.cells],
            "abnormal": logistic(means @ unit[0] + unit[1]),
        }
    )
    for head in heads:
        chosen = with_head(model, head.name)
        probabilities = Answerer.of(chosen).calibrated(logits_of_means(chosen.network, means))
        is_abnormal = np.array([side == "abnormal" for side in head.groupings])
        table[f"{BY}{head.name}"] = probabilities[:, is_abnormal].sum(1)
    write_table(table, out / LEFT_OUT_NAME)
    return {
        "name": one.name,
        "classes": one.groupings,
        "cells": len(table),
        "groups": int(table["group"].nunique()),
        "common": abnormal_figures(table, one.groupings, table["abnormal"].to_numpy(float)),
        "by_head": {
            head.name: abnormal_figures(table, one.groupings, table[f"{BY}{head.name}"].to_numpy(float))
            for head in heads
            if "abnormal" in head.groupings
        },
        "mean_score": {
            str(name): float(rows["abnormal"].mean()) for name, rows in table.groupby("true_class")
        },
    }


def abnormal_figures(
    table: pd.DataFrame, groupings: Mapping[str, Grouping | None], score: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """Return how well a score tells abnormal cells from others, with intervals from a bootstrap over groups.

    Args:
        table: of N cells, with `group` and `true_class`.
        groupings: of the classes; cells of an unknown one do not count, benign ones count as not abnormal.
        score: [N], the higher the more abnormal, in [0, 1].

    Returns:
        `auc`; `auc_squamous`, without columnar cells, where there are some; `found`, the share of abnormal
        cells with a score of `CALLED_ABNORMAL` or more; `passed`, that of others with less. Nothing where
        there are cells of one side only.
    """
    known = np.array([groupings[name] is not None for name in table["true_class"]])
    rows, score = table[known], score[known]
    abnormal = np.array([groupings[name] == "abnormal" for name in rows["true_class"]], bool)
    if abnormal.all() or not abnormal.any():
        return {}
    squamous = (rows["true_class"] != COLUMNAR).to_numpy()
    called = score >= CALLED_ABNORMAL
    names = ["auc", "found", "passed", *([] if squamous.all() else ["auc_squamous"])]

    def statistic(weights: np.ndarray) -> np.ndarray:
        figures = [
            metrics.auc(abnormal, score, weights),
            metrics.ratio(weights @ (abnormal & called), weights @ abnormal),
            metrics.ratio(weights @ (~abnormal & ~called), weights @ ~abnormal),
            metrics.auc(abnormal, score, weights * squamous),
        ]
        return np.stack(figures[: len(names)], axis=-1)

    estimates = bootstrap_estimates(rows["group"], statistic)
    return {name: as_json(one) for name, one in zip(names, estimates, strict=True)}


# --- the run folder ----------------------------------------------------------------------------------


def _is_finished(out: Path) -> bool:
    return (out / SUMMARY_NAME).is_file() and not (out / CHECKPOINT_NAME).exists()


def _finished(
    out: Path,
    recipe: Recipe,
    names: Sequence[str],
    left_out: str | None,
    choice: SplitChoice,
    progress: Progress,
) -> dict[str, Any]:
    """Return the figures of a finished run, unless they are of another recipe, split or other data sets."""
    content = read_json(
        out / SUMMARY_NAME,
        {"data_sets": dict, "left_out": dict | None, "recipe": dict},
        missing="start anew with --force",
        damaged="start anew with --force",
    )
    try:
        changed = differing_keys(Recipe.model_validate(content["recipe"]), recipe)
    except ValueError as error:
        raise RunFolderError(f"{out / SUMMARY_NAME}: is damaged; start anew with --force.") from error
    begun = list(content["data_sets"]), (content["left_out"] or {}).get("name")
    if changed or begun != (list(names), left_out):
        what = f"another recipe ({', '.join(changed)} differ)" if changed else "other data sets"
        raise RunFolderError(
            f"{out}: this run is finished, with {what}; choose another folder with --out, or start anew with "
            "--force."
        )
    for path in (out / name / SPLIT_NAME for name in names):
        if path.is_file():
            choice.check_same(read_split(path), path)
    progress.say(f"{out}: this run is finished; nothing is left to do.")
    return content


def _own_files(out: Path, names: Sequence[str]) -> list[Path]:
    """Return all that a run of these data sets may have in its folder."""
    of_all = [out / name for name in (SUMMARY_NAME, PAGE_NAME, LEFT_OUT_NAME)]
    return [
        *of_all,
        *(path for folder in (out, *(out / name for name in names)) for path in files_of_run(folder)),
    ]


def _list(names: Any) -> str:
    return ", ".join(names)
