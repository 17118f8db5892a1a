"""The model for use: trained on all cells, with all that its cross-validation found out.

No cell is left to judge such a network by, so its figures are those of the folds' networks, which were
trained alike on fewer cells. They also give what it answers by: the calibration is fitted on what the folds
said of cells that they had not seen, and how unlike its training cells an image may be is learnt from each
cell's distance in the fold that had not seen it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cervicyte.datasets.layouts import CellDataset, read_dataset
from cervicyte.datasets.splits import cells_of, read_split, verify_contents
from cervicyte.errors import RunFolderError
from cervicyte.evaluation.answers import attach, statistics_of, usual_background
from cervicyte.evaluation.calibration import Calibration, read_calibration
from cervicyte.evaluation.cross_validation import SUMMARY_NAME, fold_folder, read_summary
from cervicyte.evaluation.familiarity import Familiarity, distances_of, fit_familiarity, fit_spaces
from cervicyte.evaluation.features import STAGES, pooled_features
from cervicyte.evaluation.model_card import model_card
from cervicyte.evaluation.run import RECIPE_NAME, SPLIT_NAME, caveats_of, labelled_images, seen_cells
from cervicyte.network.description import SAFETENSORS
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import provenance, sha256_of_file, write_text
from cervicyte.training.loop import CHECKPOINT_NAME, HISTORY_NAME, MODEL_NAME, LabelledImages, train
from cervicyte.training.recipe import Recipe, read_recipe, write_recipe
from cervicyte.training.start import refuse_few_cells

RELEASED_NAME = f"model{SAFETENSORS}"
CARD_NAME = "model_card.md"
KEPT = ("value", "low", "high")  # of each figure


def release(
    data: Path,
    folds: Path,
    out: Path,
    *,
    backbone: str | None = None,
    licence: str | None = None,
    known_groups: bool = True,
    command: str | None = None,
    progress: Progress = SILENT,
) -> ModelFile:
    """Train on all cells with the recipe of a cross-validation, and attach what it found out.

    Args:
        data: the cells of the cross-validation.
        folds: its folder, with the folds' models.
        out: takes `best_model.pth`, `model.safetensors`, the history and `model_card.md`; an interrupted
            training there is gone on with.
        backbone: where the recipe's first weights lie now, if they were moved.
        licence: under which the weights are given on, for the card.
        known_groups: whether SIPaKMeD's fields are grouped by the table that ships with Cervicyte.
        command: the command line, recorded in every artefact.
        progress: is told of every step.

    Raises:
        RunFolderError: the cross-validation is unfinished, was none of networks, or leaks; or `out` was
            begun with another recipe.
        SplitError: the cells are not those of the cross-validation.
    """
    summary = _summary_of(folds)
    dataset = read_dataset(data, known_groups)
    first_seed = summary["context"]["seeds"][0]
    folders = [fold_folder(folds, first_seed, fold) for fold in range(summary["context"]["folds"])]
    splits = [read_split(folder / SPLIT_NAME) for folder in folders]
    for folder, split in zip(folders, splits, strict=True):
        verify_contents(split, dataset)
        if not (folder / MODEL_NAME).is_file():
            raise RunFolderError(f"{folder / MODEL_NAME}: is missing; cross-validate anew.")
    calibration = read_calibration(folds)
    overrides = {"keep": "last"} | ({} if backbone is None else {"backbone": backbone})
    recipe = read_recipe(None, {**summary["recipe"], **overrides})
    refuse_few_cells(recipe, "A release is the training")
    begun = out / RECIPE_NAME
    if begun.is_file() and read_recipe(begun) != recipe:
        raise RunFolderError(f"{out}: was begun with another recipe; choose another folder with --out.")

    everything = labelled_images(dataset.cells, dataset.classes, recipe.preprocessing, progress, "all")
    if not (out / MODEL_NAME).is_file() or (out / CHECKPOINT_NAME).is_file():
        write_recipe(recipe, begun)
        train(
            recipe,
            everything,
            None,
            dataset.classes,
            out,
            metadata=_metadata(dataset, splits[0], folds, summary, calibration, command),
            resume=True,
            progress=progress,
        )
    model = load_model_file(out / MODEL_NAME)
    familiarity = _familiarity(model, dataset, everything, folders, splits, recipe, progress)
    attach(model, calibration, familiarity)
    model.metadata["background"] = usual_background(dataset.cells, progress)
    model.metadata["training_minutes"] = _minutes(out)
    if licence is not None:
        model.metadata["licence"] = licence
    save_model(out / MODEL_NAME, model)
    save_model(out / RELEASED_NAME, model)
    released = load_model_file(out / RELEASED_NAME)
    write_text(out / CARD_NAME, model_card(released))
    (out / CHECKPOINT_NAME).unlink(missing_ok=True)
    return released


def _summary_of(folds: Path) -> dict[str, Any]:
    """Return what a cross-validation left, if a model can be made by it."""
    path, summary = folds / SUMMARY_NAME, read_summary(folds)
    if summary["recipe"] is None:
        raise RunFolderError(f"{path}: is of a linear probe; cross-validate networks, without --frozen.")
    if leak := summary["context"].get("leak"):
        raise RunFolderError(f"{path}: {leak} Figures that travel with a model must not flatter.")
    return summary


def _metadata(
    dataset: CellDataset,
    split: pd.DataFrame,
    folds: Path,
    summary: Mapping[str, Any],
    calibration: Calibration,
    command: str | None,
) -> dict[str, Any]:
    """Return what is said of the model in its file, but for what is fitted after training."""
    context = summary["context"]
    everything = split.assign(part="train")
    everything.attrs.clear()
    return {
        "data": dataset.root.name,
        "data_set": dataset.known,
        "split": {
            "by": "none: all cells train",
            "train": {"cells": len(split), "groups": int(split["group"].nunique())},
        },
        "leak": None,
        "caveats": caveats_of(dataset, split),
        "seen": seen_cells(everything),
        "cross_validation": {
            **{key: summary[key] for key in ("cells", "groups")},
            **{key: context[key] for key in ("by", "folds", "seeds", "command")},
            "commit": summary["provenance"]["commit"],
            "written": summary["provenance"]["written"],
            "sha256": sha256_of_file(folds / SUMMARY_NAME),
            "figures": {
                name: {end: figure[end] for end in KEPT} for name, figure in summary["figures"].items()
            },
        },
        "calibration": calibration.to_json(),
        "provenance": provenance(command),
    }


def _familiarity(
    model: ModelFile,
    dataset: CellDataset,
    everything: LabelledImages,
    folders: list[Path],
    splits: list[pd.DataFrame],
    recipe: Recipe,
    progress: Progress,
) -> Familiarity:
    """Fit what is usual: statistics of all cells, and each cell's distance in the fold that tested it."""
    place_of = {cell.name: place for place, cell in enumerate(dataset.cells)}
    distances = {stage: np.empty(len(dataset.cells)) for stage in STAGES}
    for fold, (folder, split) in enumerate(zip(folders, splits, strict=True)):
        network = load_model_file(folder / MODEL_NAME).network
        trained, tested = (
            np.array([place_of[cell.name] for cell in cells_of(split, dataset, part)])
            for part in ("train", "test")
        )
        title = f"Features of fold {fold + 1} of {len(folders)}"
        of_trained, of_tested = (
            pooled_features(network, everything.images[places], recipe.preprocessing, progress, title)
            for places in (trained, tested)
        )
        spaces = fit_spaces(of_trained, everything.targets[trained])
        for stage, values in distances_of(spaces, of_tested).items():
            distances[stage][tested] = values
    features = pooled_features(
        model.network, everything.images, recipe.preprocessing, progress, "Features of all cells"
    )
    statistics = statistics_of(dataset.cells, progress)
    return fit_familiarity(
        fit_spaces(features, everything.targets),
        statistics,
        distances,
        statistics,
        [cell.group for cell in dataset.cells],
    )


def _minutes(out: Path) -> float:
    return round(float(pd.read_csv(out / HISTORY_NAME)["seconds"].sum()) / 60, 1)
