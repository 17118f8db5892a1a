"""What each ingredient of a recipe brings: one change at a time, judged on inner groups.

The test part of the outer split is never read. What is not test is divided once more into inner folds by
group; each variant is trained on all but one of them and judged on that one, by the weights of the last
epoch, so that nothing at all is chosen on the judged cells. Every variant is compared with the base over
the same cells, paired.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from cervicyte import metrics
from cervicyte.datasets.layouts import Cell, CellDataset, read_dataset
from cervicyte.datasets.splits import cells_of, make_split, split_hash
from cervicyte.errors import RecipeError, RunFolderError, UsageError
from cervicyte.evaluation.cross_validation import (
    as_json,
    bootstrap_estimates,
    figures_of_cells,
)
from cervicyte.evaluation.cross_validation_page import interval_text
from cervicyte.evaluation.elsewhere import ANSWERS_NAME, FIGURES, ask_elsewhere, elsewhere_statistic
from cervicyte.evaluation.predictions import logits_of, predictions_table, softmax
from cervicyte.evaluation.run import RECIPE_NAME, labelled_images
from cervicyte.evaluation.seen import NOT_PATIENTS
from cervicyte.evaluation.tables import read_predictions, write_table
from cervicyte.metrics import Statistic
from cervicyte.network.model_file import load_model_file
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import (
    RESEARCH_USE_ONLY,
    provenance,
    read_json,
    write_json,
    write_text,
    written_atomically,
)
from cervicyte.training.loop import CHECKPOINT_NAME, HISTORY_NAME, MODEL_NAME, train
from cervicyte.training.recipe import Recipe, read_recipe, write_recipe
from cervicyte.training.soup import soup
from cervicyte.training.start import refuse_few_cells
from cervicyte.yaml_files import load_yaml

FLIPS = "test_time_flips"
SOUP = "soup"
NOT_OF_THE_RECIPE = (FLIPS, SOUP)
BASE = "base"
JUDGED_NAME = "judged_predictions.csv"
ABOUT_NAME = "about.json"  # of one training; written last
TITLES = {
    "accuracy": "accuracy, %",
    "macro_f1": "macro F1, %",
    "negative_log_likelihood": "negative log-likelihood",
    "abnormal_auc": "abnormal AUC",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        recipes: name -> resolved recipe; the first is the base.
        changes: name -> what differs from the base, dotted keys.
        outer_fold, outer_folds, seed: the split whose test part stays closed.
        flipped: names of variants whose networks are asked for all eight views of each cell.
        soups: name -> of how many seeds' networks the weights are averaged (`training.soup`).
        inner_folds: into how many parts the rest is divided.
        judged: which of them are judged, each by a training of its own.
    """

    recipes: dict[str, Recipe]
    changes: dict[str, dict[str, Any]]
    flipped: frozenset[str] = frozenset()
    soups: Mapping[str, int] = dataclasses.field(default_factory=dict)
    outer_folds: int = 5
    outer_fold: int = 0
    seed: int = 0
    inner_folds: int = 4
    judged: tuple[int, ...] = (0, 1)


def read_plan(path: Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Read a plan: YAML with `base` (a recipe), `variants` (name -> changes, dotted keys, or
    `test_time_flips: true`, which asks networks differently and trains them alike, or `soup: N`, which
    trains with N seeds and averages the weights) and, if the defaults of `Plan` will not do,
    `outer_folds`, `outer_fold`, `seed`, `inner_folds`, `judged`.

    Args:
        path: the YAML file.
        overrides: dotted keys that change every recipe, such as the backbone's file.

    Raises:
        RecipeError: the file is missing, is no plan, or a recipe in it is not valid; the text names it.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as a plan; check the path and the YAML.") from error
    numbers = {field.name for field in dataclasses.fields(Plan)} - {"recipes", "changes", "flipped", "soups"}
    if not isinstance(content, dict) or not isinstance(content.get("variants"), dict):
        raise RecipeError(f"{path}: a plan has `base`, a recipe, and `variants`, a list of `name: changes`.")
    unknown = sorted(map(str, set(content) - numbers - {"base", "variants"}))
    if unknown:
        raise RecipeError(
            f"{path}: there is no key {unknown[0]}; the keys are base, variants, "
            f"{', '.join(sorted(numbers))}."
        )
    stated = _stated(path, {key: value for key, value in content.items() if key in numbers})
    named = [(BASE, content.get("base"))]
    named += [(f"variant {name}", change) for name, change in content["variants"].items()]
    for name, settings in named:
        if not isinstance(settings, dict | None):
            raise RecipeError(f"{path}: {name} = {settings!r} will not do: give `key: value` lines.")
    names = [BASE, *map(str, content["variants"])]
    if len(set(map(_folder_name, names))) < len(names):
        raise RecipeError(
            f"{path}: two variants' names, or one and {BASE}, differ in signs alone or not at all; name them "
            "apart."
        )
    base = _flat(content.get("base") or {})
    changes: dict[str, dict[str, Any]] = {BASE: {}}
    for name, change in content["variants"].items():
        changes[str(name)] = _flat(change or {})
    recipes = {}
    flipped = frozenset(name for name, change in changes.items() if change.get(FLIPS))
    soups = {name: change[SOUP] for name, change in changes.items() if SOUP in change}
    for name, listed in changes.items():
        change = {key: value for key, value in listed.items() if key not in NOT_OF_THE_RECIPE}
        try:
            # Of the judged cells nothing may be learnt, not even when to stop.
            recipes[name] = read_recipe(
                None, {**base, **change, **(overrides or {}), "keep": "last", "seed": stated.get("seed", 0)}
            )
        except RecipeError as error:
            raise RecipeError(f"{path}, variant {name}: {error}") from error
        if name in soups:
            _refuse_soup(path, name, soups[name], recipes[name])
    plan = Plan(recipes, changes, flipped, soups, **stated)
    _refuse_folds(path, plan)
    return plan


def _stated(path: Path, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a plan for `Plan`, or refuse the first that is none."""
    for key, value in numbers.items():
        several = key == "judged"
        listed = value if several else [value]
        if not isinstance(listed, list) or any(type(one) is not int for one in listed):
            wanted = "a list of whole numbers, such as [0, 1]" if several else "a whole number"
            raise RecipeError(f"{path}: {key} = {value!r} will not do: give {wanted}.")
    return {key: tuple(value) if key == "judged" else value for key, value in numbers.items()}


def _refuse_folds(path: Path, plan: Plan) -> None:
    """Refuse folds that there are not, and one that would be judged twice."""
    for key in ("outer_folds", "inner_folds"):
        if getattr(plan, key) < 2:
            raise RecipeError(f"{path}: {key} = {getattr(plan, key)} will not do: give 2 or more.")
    if not 0 <= plan.outer_fold < plan.outer_folds:
        raise RecipeError(f"{path}: outer_fold: give one from 0 to {plan.outer_folds - 1}.")
    there = all(0 <= fold < plan.inner_folds for fold in plan.judged)
    if not there or not plan.judged or len(set(plan.judged)) < len(plan.judged):
        raise RecipeError(
            f"{path}: judged: give inner folds from 0 to {plan.inner_folds - 1}, one or more, each once."
        )


def _refuse_soup(path: Path, name: str, seeds: Any, recipe: Recipe) -> None:
    """Refuse a soup that cannot be made."""
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 2:
        raise RecipeError(f"{path}, variant {name}: {SOUP} is a number of seeds, 2 or more.")
    if recipe.backbone == "none":
        raise RecipeError(
            f"{path}, variant {name}: a {SOUP} is of networks fine-tuned from the same weights; "
            "name these with --backbone."
        )


def ablate(
    data: Path,
    out: Path,
    plan: Plan,
    *,
    known_groups: bool = True,
    only: Sequence[str] = (),
    elsewhere: Path | None = None,
    keep_models: bool = False,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train and judge every variant of a plan, going on where an earlier call stopped; write the tables.

    Args:
        data: folder or manifest of labelled cells.
        out: takes `VARIANT/inner_K/`, and `ablation.csv`, `.json` and `.md`, written anew after each
            variant; what is not trained yet stands there as not run.
        plan: see `read_plan`.
        known_groups: whether SIPaKMeD's fields are grouped by the table that ships with Cervicyte.
        only: train these variants alone, by their names; all if empty. Several processes may so share `out`.
        elsewhere: cells of another laboratory, whose classes may differ but are known as normal or
            abnormal; each network is asked of them too, and is never trained on them.
        keep_models: keep each training's model file, 100 MB of it.
        command: the command line, recorded in every artefact.
        progress: is told of every step.

    Returns:
        The content of `ablation.json`.

    Raises:
        UsageError: `only` names a variant that there is not.
        RunFolderError: `out` holds trainings of other recipes or cells.
    """
    if unknown := [name for name in only if name not in plan.recipes]:
        raise UsageError(f"{unknown[0]}: is no variant of the plan; they are {', '.join(plan.recipes)}.")
    dataset = read_dataset(data, known_groups)
    for warning in dataset.warnings:
        progress.say(f"Note: {warning}")
    foreign = None if elsewhere is None else read_dataset(elsewhere)
    rest, outer_hash = closed_test_part(dataset, plan)
    inner = {
        fold: make_split(rest, folds=plan.inner_folds, fold=fold, seed=plan.seed) for fold in plan.judged
    }
    content: dict[str, Any] = {}
    for recipe in plan.recipes.values():
        refuse_few_cells(recipe, "An ablation compares trainings")
    for name, recipe in plan.recipes.items():
        if only and name not in only:
            continue
        for fold, split in inner.items():
            progress.say(f"{name}, inner fold {fold}")
            folder = out / _folder_name(name) / f"inner_{fold}"
            if name in plan.flipped and not (folder / MODEL_NAME).is_file():
                _take_over(recipe, plan, out, fold, folder)
            variant = Variant(recipe, name in plan.flipped, plan.soups.get(name, 1))
            _train_and_judge(rest, split, variant, folder, foreign, keep_models, command, progress)
        content = summary_of(out, plan, dataset, rest, outer_hash, command)
        write_table(_flat_table(content), out / "ablation.csv")
        write_text(out / "ablation.md", ablation_page(content))
        write_json(out / "ablation.json", content)
    return content


def _take_over(recipe: Recipe, plan: Plan, out: Path, fold: int, folder: Path) -> None:
    """Copy the network of a variant of the same recipe into `folder`, if one was kept; it is asked anew."""
    for name, other in plan.recipes.items():
        if name in plan.soups:
            continue
        there = out / _folder_name(name) / f"inner_{fold}"
        finished = (there / ABOUT_NAME).is_file() and (there / MODEL_NAME).is_file()
        if other == recipe and finished and there != folder and read_recipe(there / RECIPE_NAME) == recipe:
            folder.mkdir(parents=True, exist_ok=True)
            for file in (MODEL_NAME, HISTORY_NAME):
                with written_atomically(folder / file) as partial:
                    shutil.copyfile(there / file, partial)
            return


def closed_test_part(dataset: CellDataset, plan: Plan) -> tuple[CellDataset, str]:
    """Return the data set without the outer test part, and the hash of the outer split."""
    outer = make_split(dataset, folds=plan.outer_folds, fold=plan.outer_fold, seed=plan.seed)
    open_to_us = set(outer.loc[outer["part"] != "test", "path"])
    cells = tuple(dataclasses.replace(cell, part=None) for cell in dataset.cells if cell.name in open_to_us)
    return dataclasses.replace(dataset, cells=cells), split_hash(outer)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One variant: how it is trained, whether it is asked for eight views, of how many seeds it is a soup."""

    recipe: Recipe
    flips: bool = False
    seeds: int = 1


def _train_and_judge(
    dataset: CellDataset,
    split: pd.DataFrame,
    variant: Variant,
    folder: Path,
    foreign: CellDataset | None,
    keep_models: bool,
    command: str | None,
    progress: Progress,
) -> None:
    """Train on all inner folds but one, and keep what the network says of that one; once."""
    recipe, begun = variant.recipe, folder / RECIPE_NAME
    if begun.is_file() and read_recipe(begun) != recipe:
        raise RunFolderError(f"{folder}: was begun with another recipe; choose another folder with --out.")
    if (folder / ABOUT_NAME).is_file():
        return
    write_recipe(recipe, begun)
    judged = cells_of(split, dataset, "test")
    shown: list[Cell] = [cell for part in ("train", "validation") for cell in cells_of(split, dataset, part)]
    training, judging = (
        labelled_images(cells, dataset.classes, recipe.preprocessing, progress, part)
        for cells, part in ((shown, "training"), (judged, "judged"))
    )

    def trained(recipe: Recipe, folder: Path) -> float:
        """Train one network, unless it is there; return the seconds that it took."""
        if (folder / MODEL_NAME).is_file() and not (folder / CHECKPOINT_NAME).is_file():
            history = pd.read_csv(folder / HISTORY_NAME)  # trained, or taken over
        else:
            origin = {"split": {"hash": split_hash(split)}}
            history = train(
                recipe,
                training,
                judging,
                dataset.classes,
                folder,
                metadata=origin,
                resume=True,
                progress=progress,
            )
            (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
        return float(history["seconds"].sum())

    parts = {folder: recipe}
    if variant.seeds > 1:
        seeds = range(recipe.seed, recipe.seed + variant.seeds)
        parts = {folder / f"seed_{seed}": recipe.model_copy(update={"seed": seed}) for seed in seeds}
    seconds = 0.0
    for part, own in parts.items():
        if variant.seeds > 1:
            progress.say(f"seed {own.seed}, one of {variant.seeds}")
        seconds += trained(own, part)
    files = [part / MODEL_NAME for part in parts]
    model = soup(files) if variant.seeds > 1 else load_model_file(files[0])
    probabilities = softmax(logits_of(model, judging.images, progress, flips=variant.flips))
    labels = [cell.label for cell in judged]
    write_table(predictions_table(judged, labels, probabilities, dataset.classes), folder / JUDGED_NAME)
    if foreign is not None and not variant.flips:
        ask_elsewhere(model, foreign.cells, folder, progress)
    write_json(
        folder / ABOUT_NAME,
        {
            "split": split_hash(split),
            "minutes": round(seconds / 60, 1),
            "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
            **provenance(command),
        },
    )
    if not keep_models:
        for file in files:
            file.unlink()


# --- figures -------------------------------------------------------------------------------------


def summary_of(
    out: Path, plan: Plan, dataset: CellDataset, rest: CellDataset, outer_hash: str, command: str | None
) -> dict[str, Any]:
    """Return the figures of every variant that was judged on all inner folds, and what was not run."""
    tables = {name: judged_cells(out / _folder_name(name), plan.judged) for name in plan.recipes}
    base = tables[BASE]
    variants = []
    for name, table in tables.items():
        row: dict[str, Any] = {"name": name, "changes": plan.changes[name], "run": table is not None}
        if table is not None and base is not None:
            folders = [out / _folder_name(name) / f"inner_{fold}" for fold in plan.judged]
            about = [_about(folder / ABOUT_NAME) for folder in folders]
            row |= figures_against(base, table, rest.classes)
            row |= elsewhere_against(out / _folder_name(BASE), out / _folder_name(name), plan.judged)
            row |= {
                "minutes": round(sum(one["minutes"] for one in about), 1),
                "parameters": about[0]["parameters"],
                "commits": sorted({one["commit"] for one in about}),
            }
        variants.append(row)
    return {
        "notice": RESEARCH_USE_ONLY,
        "data": dataset.root.name,
        "outer_split": {
            "folds": plan.outer_folds,
            "fold": plan.outer_fold,
            "seed": plan.seed,
            "hash": outer_hash,
        },
        "inner_folds": plan.inner_folds,
        "judged_folds": list(plan.judged),
        "cells": 0 if base is None else len(base),
        "groups": 0 if base is None else int(base["group"].nunique()),
        "seed": plan.seed,
        "base": plan.recipes[BASE].model_dump(mode="json"),
        "variants": variants,
        "intervals": {
            "level": metrics.LEVEL,
            "method": "percentile bootstrap of whole groups, the same draws for both",
            "draws": metrics.DRAWS,
        },
        "caveats": [
            NOT_PATIENTS,
            "One training a variant and inner fold: the intervals hold the draw of the cells, not that of "
            "the training.",
        ],
        "provenance": provenance(command),
    }


def judged_cells(folder: Path, judged: Sequence[int]) -> pd.DataFrame | None:
    """Return the predictions of all judged inner folds; None while one is missing."""
    parts = [folder / f"inner_{fold}" for fold in judged]
    if not all((part / ABOUT_NAME).is_file() for part in parts):
        return None
    tables = [read_predictions(part / JUDGED_NAME) for part in parts]
    return pd.concat(tables).sort_values("path", kind="stable", ignore_index=True)


def _about(path: Path) -> dict[str, Any]:
    """Return what was noted of one training."""
    shape = {"minutes": int | float, "parameters": int, "commit": str}
    anew = "delete it, and the training is done anew"
    return read_json(path, shape, missing=anew, damaged=anew)


def figures_against(
    base: pd.DataFrame, table: pd.DataFrame, class_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return each figure of a variant with its interval, and what it exceeds the base's by, paired.

    Raises:
        UsageError: the two are not of the same cells.
    """
    p_value = metrics.compare_paired(base, table).p_value
    before, after = (_statistic(one, class_names) for one in (base, table))
    own = bootstrap_estimates(table["group"], after)
    gained = bootstrap_estimates(table["group"], lambda weights: after(weights) - before(weights))
    return {
        "figures": {name: as_json(one) for name, one in zip(TITLES, own, strict=True)},
        "differences": {name: as_json(one) for name, one in zip(TITLES, gained, strict=True)},
        "accuracy_p_value": {"value": p_value},
    }


def elsewhere_against(base: Path, folder: Path, judged: Sequence[int]) -> dict[str, Any]:
    """Return a variant's figures on another laboratory's cells, and what they exceed the base's by, paired;
    nothing where the networks were not asked of them."""
    mine, before = ([one / f"inner_{fold}" / ANSWERS_NAME for fold in judged] for one in (folder, base))
    if not all(path.is_file() for path in (*mine, *before)):
        return {}
    tables = [[read_predictions(path) for path in paths] for paths in (mine, before)]
    after, others = (elsewhere_statistic(one) for one in tables)
    groups = tables[0][0]["group"]
    own = bootstrap_estimates(groups, after)
    gained = bootstrap_estimates(groups, lambda weights: after(weights) - others(weights))
    return {
        "elsewhere": {
            "cells": len(groups),
            "groups": int(groups.nunique()),
            "figures": {key: as_json(one) for key, one in zip(FIGURES, own, strict=True)},
            "differences": {key: as_json(one) for key, one in zip(FIGURES, gained, strict=True)},
        }
    }


def _statistic(table: pd.DataFrame, class_names: Sequence[str]) -> Statistic:
    """Return the function from cell weights [D, N] to the figures of `TITLES`, [D, K]."""
    names, figures = figures_of_cells(table, class_names)
    places = [names.index(name) for name in TITLES if name != "negative_log_likelihood"]
    probabilities = table[[f"p_{name}" for name in class_names]].to_numpy(float)
    truth = table["true_class"].map({name: at for at, name in enumerate(class_names)}).to_numpy(int)

    def statistic(weights: np.ndarray) -> np.ndarray:
        loss = metrics.negative_log_likelihood(probabilities, truth, weights)
        return np.insert(
            figures(weights)[:, places], list(TITLES).index("negative_log_likelihood"), loss, axis=1
        )

    return statistic


def _flat_table(content: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for variant in content["variants"]:
        row = {"variant": variant["name"], "run": variant["run"]}
        for kind in ("figures", "differences"):
            for name, figure in variant.get(kind, {}).items():
                key = name if kind == "figures" else f"{name}_difference"
                row |= {key: figure["value"], f"{key}_low": figure["low"], f"{key}_high": figure["high"]}
        for kind in ("figures", "differences"):
            for name, figure in variant.get("elsewhere", {}).get(kind, {}).items():
                key = f"elsewhere_{name}" + ("" if kind == "figures" else "_difference")
                row |= {key: figure["value"], f"{key}_low": figure["low"], f"{key}_high": figure["high"]}
        row["accuracy_p_value"] = variant.get("accuracy_p_value", {}).get("value")
        row["minutes"] = variant.get("minutes")
        rows.append(row)
    return pd.DataFrame(rows)


def ablation_page(content: Mapping[str, Any]) -> str:
    """Return the table as Markdown, with what was compared on what."""
    lines = [
        f"| {variant['name']} | " + " | ".join(_cells_of_row(variant)) + " |"
        for variant in content["variants"]
    ]
    origin, outer = content["provenance"], content["outer_split"]
    elsewhere = _elsewhere_part(content["variants"])
    return f"""# Ablation: {content["data"]}

{content["notice"]}

Each variant changes one thing of the base and is judged on {content["cells"]:,} cells in \
{content["groups"]:,} groups: inner folds {", ".join(map(str, content["judged_folds"]))} of \
{content["inner_folds"]}, by group, of what is not the test part of fold {outer["fold"]} of \
{outer["folds"]} (seed {outer["seed"]}), which stayed closed. Weights are those of the last epoch: nothing \
was chosen on the judged cells.

| variant | accuracy, % | less base | macro F1, % | less base | negative log-likelihood \
| less base | abnormal AUC | less base | p (accuracy) | minutes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}

In brackets: 95 % intervals from {content["intervals"]["draws"]:,} bootstrap draws of whole groups; of \
differences, the same draws for both. A lower negative log-likelihood is better. \
{" ".join(content["caveats"])}
{_not_run(content)}{elsewhere}
Command: `{origin["command"] or "called from Python"}`; commit {origin["commit"]}; {origin["machine"]}; \
written {origin["written"][:10]}.
"""


def _cells_of_row(variant: Mapping[str, Any]) -> list[str]:
    if not variant.get("figures"):
        return [f"not run: `--only '{variant['name']}'`", *[""] * 9]
    cells = []
    for name in TITLES:
        own, gained = variant["figures"][name], variant["differences"][name]
        cells += [
            interval_text(own, name),
            "" if variant["name"] == BASE else interval_text(gained, name, signed=True),
        ]
    p_value = "" if variant["name"] == BASE else f"{variant['accuracy_p_value']['value']:.3f}"
    return [*cells, p_value, f"{variant['minutes']:.1f}"]


def _not_run(content: Mapping[str, Any]) -> str:
    """Return how to run what was not, if anything was not."""
    if all(variant.get("figures") for variant in content["variants"]):
        return ""
    command = re.sub(r" --only ('[^']*'|\S+)", "", content["provenance"]["command"] or "cervicyte ablate …")
    return f"""
What was not run is trained, and written into this table, by `{command}` with the option in its row.
"""


def _elsewhere_part(variants: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of another laboratory's cells, if any network was asked of them."""
    asked = [variant for variant in variants if variant.get("elsewhere")]
    if not asked:
        return ""
    about = asked[0]["elsewhere"]
    rows = []
    for variant in asked:
        cells = []
        for name in FIGURES:
            figure, gained = (variant["elsewhere"][kind][name] for kind in ("figures", "differences"))
            cells += [
                interval_text(figure, "abnormal_auc"),
                "" if variant["name"] == BASE else interval_text(gained, "abnormal_auc", signed=True),
            ]
        rows.append(f"| {variant['name']} | " + " | ".join(cells) + " |")
    return f"""
## Another laboratory's cells

{about["cells"]:,} cells in {about["groups"]:,} groups, none of which was trained on: abnormal cells against \
the others by the summed probability of the network's abnormal classes, AUC, the mean over the networks of \
the inner folds. These cells may guide the choice of a recipe; a claim needs others.

| variant | {" | less base | ".join(FIGURES.values())} | less base |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _folder_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
