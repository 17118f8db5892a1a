"""What a few labelled cells of a laboratory bring: figures by the number of cells a class.

In each draw a part of the groups is kept for testing, and of the others so many cells a class are drawn, the
fewer always among the more. What is fitted on them is `frozen_network.fit_logistic`, on what several networks
see, so that one may be chosen by its loss on inner folds of the training cells, before any test cell is
looked at. No weight of a network changes, so its features are computed once; pooling by covariance, see
`covariance`, is fitted on them first. If asked for, the last stage learns from there on, see `last_stage`;
all before it stands still and is computed once, too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from cervicyte import metrics
from cervicyte.datasets.classes import grouping_of
from cervicyte.datasets.layouts import read_dataset
from cervicyte.errors import UsageError
from cervicyte.evaluation import charts
from cervicyte.evaluation.adaptation import adapted
from cervicyte.evaluation.answers import Answerer
from cervicyte.evaluation.covariance import covariance_network
from cervicyte.evaluation.cross_validation import as_json
from cervicyte.evaluation.cross_validation_page import interval_text
from cervicyte.evaluation.elsewhere import COLUMNAR, check_groupings
from cervicyte.evaluation.features import logits_of_means, pooled_features
from cervicyte.evaluation.framing import framed
from cervicyte.evaluation.frozen_network import LogisticFit, fit_logistic, set_classifier
from cervicyte.evaluation.last_stage import (
    last_stage_logits,
    last_stage_means,
    train_last_stage,
    turned_activations,
)
from cervicyte.evaluation.predictions import softmax
from cervicyte.evaluation.seen import OTHER_CELLS, caveats_elsewhere, refuse_seen
from cervicyte.evaluation.tables import write_table
from cervicyte.images.reader import read_image
from cervicyte.metrics import Estimate
from cervicyte.network.backbone import load_backbone
from cervicyte.network.model_file import ModelFile, load_model_file, weights_hash
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text
from cervicyte.training.cells import load_cells
from cervicyte.training.loop import balanced_weights

COUNTS = (0, 5, 10, 25, 50)
DRAWS = 20
TESTED = 4  # one group in so many is tested; in so many draws, every group once
ZERO_SHOT = "zero-shot"
LAST_STAGE = "last stage"
COVARIANCE = "covariance"
TWO_STAGES = "second and last stage"
IMAGENET = "ImageNet"
LEARNING = "last stage learns too"
CHOSEN = "chosen on inner folds"
METHODS = {
    ZERO_SHOT: "the model as it is, by its summed probability of abnormal classes",
    COVARIANCE: "a new classifier on how the channels before the model's last stage vary together: what "
    "`recipes/few-cells.yaml` trains",
    LAST_STAGE: "a new classifier on the model's last stage: `classifier: logistic`",
    TWO_STAGES: "the same on the model's second and last stage, which no model file holds",
    IMAGENET: "the same on the last stage of a ResNet-50 that has seen ImageNet only",
    LEARNING: "the classifier first, then the last stage with it: `classifier: last_stage`; its settings "
    "were chosen on such draws of Herlev",
    CHOSEN: "in each draw, of the frozen ones the one of lowest loss on inner folds of the training cells",
}
FIGURES = {
    "abnormal_auc_all": "normal against abnormal, AUC",
    "abnormal_auc_squamous": "the same without columnar cells",
    "accuracy": "accuracy over all classes, %",
}


@dataclass(frozen=True)
class Draw:
    """The cells of one draw, by place: int arrays.

    Attributes:
        training: number of cells a class -> the cells, in which those of fewer are contained.
        tested: of groups of which no cell trains.
    """

    training: dict[int, np.ndarray]
    tested: np.ndarray


@dataclass(frozen=True)
class Answers:
    """What was said of the tested cells of a draw.

    Attributes:
        tested: places, int [T].
        abnormal: [T], the score by which abnormal cells are ranked.
        predicted: class indices, int [T]; None where the model's classes are others.
        inner_loss, strength: see `LogisticFit`; None where nothing was fitted.
    """

    tested: np.ndarray
    abnormal: np.ndarray
    predicted: np.ndarray | None
    inner_loss: float | None = None
    strength: float | None = None


@dataclass(frozen=True)
class Seen:
    """What a network sees of cells, by their places.

    Attributes:
        network: that sees them.
        stages: see `pooled_features`.
        before: what stands before the last stage, [M, K, h, w].
        looked_at: places of the cells of its rows, int [M], that rise.
        means: see `last_stage_means`; None if the last stage stands still.
        activations: likewise, of each turn of the cells that train, see `turned_activations`.
        upright: of the cells that are tested alone, as they are; None if there are none.
        places: of the rows of both, in their order, int arrays that rise.
    """

    network: CBAMResNet50
    stages: dict[str, np.ndarray]
    before: Tensor
    looked_at: np.ndarray
    means: np.ndarray | None = None
    activations: Tensor | None = None
    upright: Tensor | None = None
    places: tuple[np.ndarray, np.ndarray] = (np.empty(0, int), np.empty(0, int))

    def turned(self, cells: np.ndarray) -> Tensor:
        """Return every turn's activations of cells that train, [turns, N, K, h, w]."""
        assert self.activations is not None
        return self.activations[:, _rows(cells, self.places[0])]

    def as_they_are(self, cells: np.ndarray) -> Tensor:
        """Return the activations of cells that are tested, [N, K, h, w]: all train, or none does."""
        assert self.activations is not None
        if self.upright is None:
            return self.activations[0, _rows(cells, self.places[0])]
        return self.upright[_rows(cells, self.places[1])]


def learning_curve(
    model_path: Path,
    data: Path,
    out: Path,
    *,
    counts: Sequence[int] = COUNTS,
    draws: int = DRAWS,
    seed: int = 0,
    backbone: str | None = None,
    last_stage: bool = False,
    adapt: bool = False,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure what so many labelled cells a class bring; write `learning_curve.json`, `.md`, `.csv`, `.png`.

    Args:
        model_path: the model to start from, which has not seen the cells.
        data: cells whose classes are known as normal or abnormal.
        out: takes the four files.
        counts: numbers of cells a class; 0 is the model as it is.
        draws: of tested groups and training cells.
        seed: of the draws.
        backbone: ImageNet's weights, see `load_backbone`, to compare with; None leaves them out.
        last_stage: measure too what the last stage brings that learns with the classifier, half a minute a
            draw.
        adapt: adapt the model first, in each draw, to all cells of the groups that are not tested, without
            their labels.
        command: the command line, recorded in every artefact.
        progress: is told of every step.

    Returns:
        The content of `learning_curve.json`.

    Raises:
        UsageError: a count or the number of draws will not do, or a class lies in too few groups.
        DatasetError: it is not known which of the classes are abnormal, or all or none of the cells are.
        SplitError: the model has seen some of the cells.
    """
    counts = sorted(set(counts))
    if not counts or counts[0] < 0 or draws < 1:
        raise UsageError(
            "Give numbers of cells from 0 up, such as --cells 0,5,10,25,50, and --draws 1 or more."
        )
    dataset = read_dataset(data)
    check_groupings(dataset.classes, data)
    model = load_model_file(model_path)
    refuse_seen(model, dataset.cells, data, False, OTHER_CELLS)
    class_names = tuple(dataset.classes)
    index_of = {name: index for index, name in enumerate(class_names)}
    truth = np.array([index_of[cell.label] for cell in dataset.cells])
    groups = np.array([cell.group for cell in dataset.cells])
    drawn = [draw_cells(truth, groups, counts, seed, draw, class_names) for draw in range(draws)]

    plain = None
    if backbone is not None:
        images = load_cells(dataset.cells, model.preprocessing, progress)
        network = CBAMResNet50(1, "none")
        load_backbone(network, backbone)
        plain = pooled_features(network, images, model.preprocessing, progress, "ImageNet's features")[
            "stage4"
        ]
    raw = [read_image(cell.path) for cell in dataset.cells]
    if 0 in counts:
        check_groupings(model.class_names, model_path)
    fitted_counts = [count for count in counts if count]
    answers: dict[tuple[str, int], list[Answers]] = {}
    seen = None
    for number, one in enumerate(drawn):
        progress.say(f"Draw {number + 1} of {len(drawn)}")
        if adapt or seen is None:
            training = tested = np.arange(len(raw))
            of_draw = model
            if adapt:
                training, tested = np.unique(np.concatenate(list(one.training.values()))), one.tested
                of_draw = _adapted_elsewhere(model, raw, tested, progress)
            seen = None  # what the draw before has seen goes first: it takes gigabytes
            seen = _seen(of_draw, raw, training, tested, last_stage and bool(fitted_counts), progress)
        features = {
            LAST_STAGE: seen.stages["stage4"],
            TWO_STAGES: np.concatenate([seen.stages["stage2"], seen.stages["stage4"]], axis=1),
        }
        if plain is not None:
            features[IMAGENET] = plain
        if 0 in counts:
            told = Answerer.of(model).calibrated(logits_of_means(seen.network, seen.stages["stage4"]))
            zero_shot = _zero_shot(told, model.class_names, class_names, one)
            answers.setdefault((ZERO_SHOT, 0), []).append(zero_shot)
        for count in fitted_counts:
            features[COVARIANCE] = _covariances(seen, one.training[count])
            at_hand = {}
            for method, values in features.items():
                at_hand[method] = answers_of_regression(
                    values, truth, groups, class_names, one, count, seed + number
                )
                answers.setdefault((method, count), []).append(at_hand[method])
            best = min(at_hand.values(), key=lambda answer: answer.inner_loss or 0.0)
            answers.setdefault((CHOSEN, count), []).append(best)
            if last_stage:
                learnt = _learnt(seen, truth, groups, class_names, one, count, seed + number)
                answers.setdefault((LEARNING, count), []).append(learnt)

    figures = [name for name in FIGURES if name != "abnormal_auc_squamous" or COLUMNAR in class_names]
    in_order = sorted(answers, key=lambda key: (key[1], list(METHODS).index(key[0])))
    rows = [_row(*key, answers[key], drawn, truth, groups, class_names, figures) for key in in_order]
    content = {
        "notice": RESEARCH_USE_ONLY,
        "data": dataset.root.name,
        "model": {
            "file": model_path.name,
            "weights_sha256": weights_hash(model.network),
            "trained_on": model.metadata.get("data_set") or model.metadata.get("data"),
        },
        "adapted": adapt,
        "backbone": None if backbone is None else Path(backbone).name,
        "class_names": list(class_names),
        "cells": len(truth),
        "groups": len(np.unique(groups)),
        "draws": draws,
        "seed": seed,
        "rows": rows,
        "caveats": caveats_elsewhere([dataset.known]),
        "intervals": {
            "level": metrics.LEVEL,
            "method": "bootstrap of draws and of whole groups",
            "draws": metrics.DRAWS,
        },
        "provenance": provenance(command),
    }
    write_table(_table_of_draws(answers, drawn, truth, class_names, figures), out / "learning_curve.csv")
    charts.write_png(
        charts.learning_curve_figure(rows, {name: FIGURES[name] for name in figures}),
        out / "learning_curve.png",
    )
    write_text(out / "learning_curve.md", learning_curve_page(content))
    write_json(out / "learning_curve.json", content)
    return content


# --- draws -------------------------------------------------------------------------------------


def draw_cells(
    truth: np.ndarray,
    groups: np.ndarray,
    counts: Sequence[int],
    seed: int,
    draw: int,
    class_names: Sequence[str],
) -> Draw:
    """Return which cells train and which are tested in one draw.

    Groups are gone through in a random order, and of each class the first cells are taken: they come from few
    groups, as those do that a laboratory labels field by field. A class that has fewer gives all.

    Args:
        truth: class indices, int [N].
        groups: [N], those of one never on both sides.
        counts: numbers of cells a class.
        seed, draw: what is drawn; `TESTED` draws in a row test every group once.
        class_names: for the error.

    Raises:
        UsageError: a class lies in too few groups to train and to be tested.
    """
    fewest = min(range(len(class_names)), key=lambda one: len(np.unique(groups[truth == one])))
    if (found := len(np.unique(groups[truth == fewest]))) < TESTED:
        raise UsageError(
            f"The class {class_names[fewest]} has only {found} independent group(s), and a learning curve "
            f"needs {TESTED}; add cells of other fields to it, or leave it out."
        )
    splitter = StratifiedGroupKFold(TESTED, shuffle=True, random_state=seed + draw // TESTED)
    pool, tested = list(splitter.split(truth, truth, groups))[draw % TESTED]
    rng = np.random.default_rng([seed, draw])
    rank_of = {name: rank for rank, name in enumerate(rng.permutation(np.unique(groups[pool])))}
    order = sorted(rng.permutation(pool), key=lambda place: rank_of[groups[place]])
    of_class = [[place for place in order if truth[place] == one] for one in range(len(class_names))]
    return Draw(
        {count: np.array([place for cells in of_class for place in cells[:count]], int) for count in counts},
        tested,
    )


def answers_of_regression(
    features: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    class_names: Sequence[str],
    draw: Draw,
    count: int,
    seed: int,
) -> Answers:
    """Return what a regression on so many cells a class says, fitted on the rows of features [N, D]."""
    fit, _ = _regression(features, truth, groups, class_names, draw.training[count], seed)
    probabilities = fit.probabilities(features[draw.tested])
    score = probabilities[:, _abnormal(class_names)].sum(1)
    return Answers(draw.tested, score, probabilities.argmax(1), fit.inner_loss, fit.strength)


def _learnt(
    seen: Seen,
    truth: np.ndarray,
    groups: np.ndarray,
    class_names: Sequence[str],
    draw: Draw,
    count: int,
    seed: int,
) -> Answers:
    """Return what a copy of the network says whose last stage has learnt from the drawn cells.

    The loss on inner folds is that of the regression before, and says nothing of what came after: none.
    """
    chosen = draw.training[count]
    assert seen.means is not None
    fit, weights = _regression(seen.means, truth, groups, class_names, chosen, seed)
    learnt = copy.deepcopy(seen.network)
    set_classifier(learnt, fit)
    train_last_stage(learnt, seen.turned(chosen), truth[chosen], weights, seed)
    probabilities = softmax(last_stage_logits(learnt, seen.as_they_are(draw.tested)))
    score = probabilities[:, _abnormal(class_names)].sum(1)
    return Answers(draw.tested, score, probabilities.argmax(1), strength=fit.strength)


def _adapted_elsewhere(
    model: ModelFile, raw: Sequence[np.ndarray], tested: np.ndarray, progress: Progress
) -> ModelFile:
    """Return the model adapted to the images that are not tested, nor of a tested cell's group."""
    others = np.setdiff1d(np.arange(len(raw)), tested)
    # What is usual is not asked for here, and would take another pass.
    metadata = {key: value for key, value in model.metadata.items() if key != "familiarity"}
    known = replace(model, metadata=metadata, preprocessing=framed(model))
    return adapted(known, [raw[place] for place in others], progress=progress)


def _seen(
    model: ModelFile,
    raw: Sequence[np.ndarray],
    training: np.ndarray,
    tested: np.ndarray,
    last_stage: bool,
    progress: Progress,
) -> Seen:
    """Return what a model sees of cells that train or are tested; of others, what is no number."""
    cells = np.union1d(training, tested)
    images = np.stack([model.preprocessing(raw[place]) for place in cells])
    batches: list[Tensor] = []
    found = pooled_features(
        model.network, images, model.preprocessing, progress, "The model's features", before=batches
    )
    before, start = torch.empty(len(cells), *batches[0].shape[1:]), 0
    while batches:  # some thousand cells take gigabytes
        batch = batches.pop(0)
        before[start : start + len(batch)] = batch
        start += len(batch)
    stages = {name: _by_place(values, cells, len(raw)) for name, values in found.items()}
    if not last_stage:
        return Seen(model.network, stages, before, cells)
    trains = np.isin(cells, training)
    turned = turned_activations(model.network, images[trains], model.preprocessing, progress)
    means = _by_place(last_stage_means(model.network, turned), cells[trains], len(raw))
    upright = None
    if not trains.all():  # who is tested alone is asked as it is
        upright = turned_activations(model.network, images[~trains], model.preprocessing, progress, turns=1)[
            0
        ]
    return Seen(model.network, stages, before, cells, means, turned, upright, (cells[trains], cells[~trains]))


def _covariances(seen: Seen, training: np.ndarray) -> np.ndarray:
    """Return what pooling by covariance gives of the cells looked at, [N, K], fitted to those that train."""
    fitted = covariance_network(seen.network, seen.before[_rows(training, seen.looked_at)])
    return _by_place(last_stage_means(fitted, seen.before[None]), seen.looked_at, len(seen.stages["stage4"]))


def _rows(cells: np.ndarray, places: np.ndarray) -> Tensor:
    """Return the rows of cells among those whose places are given, in rising order."""
    rows = np.searchsorted(places, cells)
    assert np.array_equal(places[rows], cells)
    return torch.from_numpy(rows)


def _by_place(values: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    whole = np.full((count, *values.shape[1:]), np.nan, values.dtype)
    whole[places] = values
    return whole


def _regression(
    features: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    class_names: Sequence[str],
    chosen: np.ndarray,
    seed: int,
) -> tuple[LogisticFit, np.ndarray]:
    """Return a regression on the chosen cells, and the weights of the classes."""
    weights = balanced_weights(truth[chosen], len(class_names), "balanced").numpy()
    return fit_logistic(features[chosen], truth[chosen], groups[chosen].tolist(), weights, seed), weights


def _zero_shot(
    probabilities: np.ndarray, own_names: Sequence[str], class_names: Sequence[str], draw: Draw
) -> Answers:
    told = probabilities[draw.tested]
    predicted = None
    if set(class_names) <= set(own_names):
        predicted = told[:, [own_names.index(name) for name in class_names]].argmax(1)
    return Answers(draw.tested, told[:, _abnormal(own_names)].sum(1), predicted)


def _abnormal(class_names: Sequence[str]) -> np.ndarray:
    """Return which classes are abnormal, bool [C]."""
    return np.array([grouping == "abnormal" for grouping in grouping_of(class_names).values()])


# --- figures -----------------------------------------------------------------------------------


def _figures_of(
    answers: Answers, truth: np.ndarray, class_names: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return every figure of one draw, [D], for weights of all cells, [D, N]."""
    own = truth[answers.tested]
    abnormal = _abnormal(class_names)[own]
    squamous = np.array([name != COLUMNAR for name in class_names])[own]
    weights = weights[:, answers.tested]
    right = np.full(len(own), np.nan) if answers.predicted is None else answers.predicted == own
    return {
        "abnormal_auc_all": metrics.auc(abnormal, answers.abnormal, weights),
        "abnormal_auc_squamous": metrics.auc(abnormal, answers.abnormal, weights * squamous),
        "accuracy": metrics.ratio((weights * right).sum(-1), weights.sum(-1)),
    }


def means_with_intervals(
    answers: Sequence[Answers],
    truth: np.ndarray,
    groups: np.ndarray,
    class_names: Sequence[str],
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return the mean of each figure over draws, with its 95 % interval.

    A bootstrap draws whole groups and, at the same time, draws: the interval holds for other tested cells and
    for other cells to train on, of the same laboratory.
    """
    names, group_of_cell = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    shares = np.full(len(names), 1 / len(names))
    weights = rng.multinomial(len(names), shares, size=metrics.DRAWS)[:, group_of_cell].astype(float)
    weights = np.concatenate([np.ones((1, len(truth))), weights])
    often = rng.multinomial(len(answers), np.full(len(answers), 1 / len(answers)), size=metrics.DRAWS)
    often = np.concatenate([np.ones((1, len(answers)), int), often])
    of_draws = [_figures_of(one, truth, class_names, weights) for one in answers]
    estimates = {}
    for name in FIGURES:
        values = np.stack([figures[name] for figures in of_draws], axis=-1)
        defined = often * ~np.isnan(values)
        means = metrics.ratio((np.nan_to_num(values) * defined).sum(-1), defined.sum(-1))
        if np.isnan(means[0]):
            estimates[name] = Estimate(*[float("nan")] * 3)
            continue
        ends = np.nanquantile(means[1:], [(1 - metrics.LEVEL) / 2, (1 + metrics.LEVEL) / 2])
        estimates[name] = Estimate(float(means[0]), *map(float, ends))
    return estimates


def _row(
    method: str,
    count: int,
    answers: Sequence[Answers],
    drawn: Sequence[Draw],
    truth: np.ndarray,
    groups: np.ndarray,
    class_names: Sequence[str],
    figures: Sequence[str],
) -> dict[str, Any]:
    """Return the figures of a method at a number of cells, as JSON values."""
    estimates = means_with_intervals(answers, truth, groups, class_names)
    losses = [one.inner_loss for one in answers if one.inner_loss is not None]
    in_all = [len(draw.training[count]) for draw in drawn]
    fewest = [np.bincount(truth[draw.training[count]], minlength=len(class_names)).min() for draw in drawn]
    return {
        "method": method,
        "cells_a_class": count,
        "training_cells": float(np.mean(in_all)),
        "fewest_of_a_class": int(min(fewest)),
        "tested_cells": float(np.mean([len(draw.tested) for draw in drawn])),
        "inner_loss": float(np.mean(losses)) if losses else None,
        "figures": {name: as_json(estimates[name]) for name in figures},
    }


def _table_of_draws(
    answers: Mapping[tuple[str, int], Sequence[Answers]],
    drawn: Sequence[Draw],
    truth: np.ndarray,
    class_names: Sequence[str],
    figures: Sequence[str],
) -> pd.DataFrame:
    """Return one row a draw, number of cells and method."""
    alone = np.ones((1, len(truth)))
    rows = []
    for (method, count), given in answers.items():
        for draw, one in enumerate(given):
            values = _figures_of(one, truth, class_names, alone)
            rows.append(
                {
                    "method": method,
                    "cells_a_class": count,
                    "draw": draw,
                    "training_cells": len(drawn[draw].training[count]),
                    "tested_cells": len(one.tested),
                    "inner_loss": one.inner_loss,
                    "strength": one.strength,
                    **{name: float(values[name][0]) for name in figures},
                }
            )
    return pd.DataFrame(rows)


def learning_curve_page(content: Mapping[str, Any]) -> str:
    """Return the figures as Markdown."""
    names = list(content["rows"][0]["figures"])
    rows = "\n".join(
        f"| {row['cells_a_class']} | {row['training_cells']:.0f} ({row['fewest_of_a_class']}) | "
        f"{row['method']} | "
        + " | ".join(_text(row["figures"][name], name) for name in names)
        + f" | {'' if row['inner_loss'] is None else format(row['inner_loss'], '.3f')} |"
        for row in content["rows"]
    )
    titles = " | ".join(FIGURES[name] for name in names)
    used = [method for method in METHODS if any(row["method"] == method for row in content["rows"])]
    methods = "\n".join(f"- *{method}*: {METHODS[method]}." for method in used)
    origin, model = content["provenance"], content["model"]
    tested = content["rows"][0]["tested_cells"]
    adaptation = (
        " In each draw the model was first adapted (`cervicyte adapt`) to all images of the groups that are "
        "not tested, without their labels."
        if content.get("adapted")
        else ""
    )
    return f"""# What a few labelled cells bring: {content["data"]}

{content["notice"]}

{content["cells"]:,} cells in {content["groups"]:,} groups, of which the model, {model["file"]} (trained on \
{model["trained_on"] or "data that it does not name"}), was trained on none. In each of {content["draws"]} \
draws a quarter of the groups is tested, {tested:.0f} cells in the mean, and of the others so many cells of \
each class train, or all that there are of a class that has fewer. Every number of cells of a draw is tested \
on the same cells.{adaptation}

| cells a class | in all (fewest of a class) | method | {titles} | inner loss |
| ---: | ---: | --- | {" | ".join("---" for _ in names)} | ---: |
{rows}

{methods}

![Learning curve](learning_curve.png)

Means over draws; in brackets 95 % intervals from {content["intervals"]["draws"]:,} bootstrap draws, of \
whole groups and of these draws. Inner loss: the mean negative log-likelihood on inner folds of the training \
cells, by which strength and method are chosen. {" ".join(content["caveats"])}

Command: `{origin["command"] or "called from Python"}`; seed {content["seed"]}; commit \
{origin["commit"]}; written {origin["written"][:10]}.
"""


def _text(figure: Mapping[str, Any], name: str) -> str:
    if figure["value"] is None:
        return "other classes"
    return interval_text(figure, "abnormal_auc" if name.startswith("abnormal_auc") else name)
