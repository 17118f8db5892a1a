"""How unlike the training cells an image is, in what, and whether to answer for it at all.

An image is placed among cells of the training laboratory by each of `images.statistics.STATISTICS`, and by
the distances of its features in an early and in the last stage of the network, see `feature_space`. Each
place becomes a normal score; beyond the outermost percentiles, where cells are few, it grows with the value.
The two distances are averaged to one, which tells more than either (docs/unlike_training.md).

An image may be unlike in one of several ways, and must not be flagged as many times as often. So the rarity
of each is weighed, half for the features and half for all statistics, the rarest counts (Bonferroni's rule
with weights), and that is held against reference cells: cells that the network was not trained on.

**What is promised.** Of cells from new groups of the same laboratory, about the stated share is flagged: were
every group a single cell, at most that share on average (split-conformal prediction). A group of like cells
counts once, and with few groups the share is rough; `prediction_sets` promises more, but for so small a share
that takes hundreds of groups. Nothing is promised of how many foreign images are flagged, and likeness is no
warrant of a right answer.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from scipy.special import log_ndtr, ndtri

from cervicyte.errors import FamiliarityError
from cervicyte.evaluation.feature_space import REMEDY, STAGES, FeatureSpace
from cervicyte.images.statistics import STATISTICS

if TYPE_CHECKING:
    from torch import Tensor

UNLIKE_RATE = 0.05  # of home cells that are flagged all the same; docs/unlike_training.md says why
FEWEST_IMAGES = 64  # to adapt to: fewer say more of the cells at hand than of the laboratory
NOT_A_CELL = 5.0  # standard deviations of the features' score; docs/unlike_training.md says why
FEATURES = "features"  # the name of the features' distance among the statistics
WEIGHTS = np.array([0.5 / len(STATISTICS)] * len(STATISTICS) + [0.5])
UNUSUAL = float(ndtri(0.99))  # standard deviations, from which on a statistic of a flagged image is named
PREFIX = "familiarity."  # of the tensors' names, among those of a network
PERCENTS = np.arange(101)
FOLDS = 20  # of the reference groups, each judged by the quantiles of the others
OUTERMOST = 1  # percent: the quantiles beyond which a score grows with the distance

DIRECTIONS_IN_WORDS = {
    "size_px": ("smaller", "larger"),
    "lightness": ("darker", "lighter"),
    "background": ("with a darker background", "with a brighter background"),
    "redness": ("stained bluer", "stained redder"),
    "focus": ("less sharp", "sharper or noisier"),
}
"""Of each statistic, what a low and a high value is called: "smaller than 99 % of the training cells"."""

Kind = Literal["familiar", "unlike_training", "not_a_cell"]
Quantiles = Annotated[tuple[float, ...], Field(min_length=101, max_length=101)]
Count = Annotated[int, Field(ge=1)]
CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=CHECKED)
class Usual:
    """What is usual in the training laboratory.

    Attributes:
        statistics: of each of `STATISTICS`, its quantiles among the training cells, 0 to 100 %.
        distances: the same of each stage's distance among the reference cells.
        features: the same of the mean of the distances' scores.
        unlikeness: the same of how unlike the reference cells are, a group counting once.
        unlike_beyond: the unlikeness beyond which an image is unlike the training cells.
        rate: the share of home cells that is flagged, about.
        training_cells, reference_cells, reference_groups: that all of it was fitted on.
    """

    statistics: dict[str, Quantiles]
    distances: dict[str, Quantiles]
    features: Quantiles
    unlikeness: Quantiles
    unlike_beyond: float
    rate: Annotated[float, Field(gt=0, lt=1)]
    training_cells: Count
    reference_cells: Count
    reference_groups: Count

    def flagging(self, rate: float) -> Usual:
        """Return the same by which another share of home cells is flagged, a larger one than its own.

        The bound is read from the quantiles of how unlike the reference cells are. A smaller share than that
        of the fit would lie among their outermost, of which the quantiles tell too little.
        """
        if rate <= self.rate:
            return self
        level = min(1.0, (1 - rate) * (1 + 1 / self.reference_cells))
        return replace(
            self, unlike_beyond=float(np.interp(100 * level, PERCENTS, self.unlikeness)), rate=rate
        )

    def scores(self, distances: Mapping[str, np.ndarray], statistics: np.ndarray) -> np.ndarray:
        """Return the normal scores of images, see `Familiarity.scores`, for distances of each stage."""
        count = len(next(iter(distances.values())))
        if statistics.shape != (count, len(STATISTICS)):
            raise FamiliarityError(
                f"The statistics are {list(statistics.shape)} where {count} images have {len(STATISTICS)} "
                "each; compute them with `image_statistics`."
            )
        columns = [
            normal_score(statistics[:, place], self.statistics[name]) for place, name in enumerate(STATISTICS)
        ]
        mean = _mean_score(distances, self.distances)
        return np.column_stack([*columns, normal_score(mean, self.features)])


@plain_dataclass(frozen=True)
class Judgement:
    """What is said of one image.

    Attributes:
        percentiles: 0 to 100, of each statistic among the training cells, and under `features` of the
            feature distance among the reference cells.
        unlike_percentile: 0 to 100, the share of reference cells that are less unlike the training cells.
        kind: whether it is flagged, and as what.
        reasons: why it is flagged, in words, the strongest first; none if it is familiar.
    """

    percentiles: dict[str, float]
    unlike_percentile: float
    kind: Kind
    reasons: tuple[str, ...]


@plain_dataclass(frozen=True)
class Familiarity:
    """What travels with a model to say how unlike its training cells an image is.

    Attributes:
        spaces: of each of `features.STAGES`, where the training cells lie; go into `tensors`.
        usual: everything else; goes into `to_json`.
    """

    spaces: dict[str, FeatureSpace]
    usual: Usual

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be done as asked, a sentence each, for people."""
        groups = self.usual.reference_groups
        return self._if_few(
            f"Only {groups} {'group' if groups == 1 else 'groups'} of cells could be held back, so that the "
            "share of home cells that is flagged"
        )

    @property
    def notes_if_adapted(self) -> tuple[str, ...]:
        """The same of an adapted model, whose reference are the images that it was adapted to."""
        return self._if_few(
            f"It was adapted to only {self.usual.reference_groups} images, so that the share of that "
            "laboratory's images that is flagged"
        )

    def _if_few(self, said: str) -> tuple[str, ...]:
        if self.usual.reference_groups >= math.ceil(1 / UNLIKE_RATE):
            return ()
        return (f"{said}, meant to be {100 * self.usual.rate:.0f} %, is rough.",)

    def scores(self, features: Mapping[str, np.ndarray], statistics: np.ndarray) -> np.ndarray:
        """Return how unusual each image is in each way, float64 [N, statistics + 1].

        A score is a number of standard deviations of a normal distribution. That of a statistic is unusual
        both ways; the last, of the features, only far above 0.

        Args:
            features: see `features.pooled_features`.
            statistics: float [N, statistics], in the order of `STATISTICS`, of the image as it was read.

        Raises:
            FamiliarityError: features or statistics are of another number.
        """
        return self.usual.scores(distances_of(self.spaces, features), statistics)

    def judge(self, features: Mapping[str, np.ndarray], statistics: np.ndarray) -> list[Judgement]:
        """Say of each image how unlike the training cells it is. Arguments and errors as of `scores`."""
        scores = self.scores(features, statistics)
        percentiles = np.column_stack(
            [
                *(
                    percentile_of(statistics[:, place], self.usual.statistics[name])
                    for place, name in enumerate(STATISTICS)
                ),
                # Scores rise with what they are of, so that their percentiles are the same.
                percentile_of(scores[:, -1], normal_score(self.usual.features, self.usual.features)),
            ]
        )
        rarities = rarity(scores)
        unlike = percentile_of(rarities.max(1), self.usual.unlikeness)
        return [
            Judgement(
                percentiles=dict(zip((*STATISTICS, FEATURES), map(float, percentiles[place]), strict=True)),
                unlike_percentile=float(unlike[place]),
                kind=self._kind(scores[place], rarities[place]),
                reasons=self._reasons(scores[place], rarities[place], percentiles[place]),
            )
            for place in range(len(scores))
        ]

    def _kind(self, scores: np.ndarray, rarities: np.ndarray) -> Kind:
        if rarities.max() <= self.usual.unlike_beyond:
            return "familiar"
        return "not_a_cell" if scores[-1] > NOT_A_CELL else "unlike_training"

    def _reasons(self, scores: np.ndarray, rarities: np.ndarray, percentiles: np.ndarray) -> tuple[str, ...]:
        if rarities.max() <= self.usual.unlike_beyond:
            return ()
        unusual = np.append(np.abs(scores[:-1]), scores[-1]) > UNUSUAL
        named = unusual | (rarities > self.usual.unlike_beyond)
        names = (*STATISTICS, FEATURES)
        order = np.argsort(-rarities, kind="stable")
        return tuple(reason(names[place], float(percentiles[place])) for place in order if named[place])

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; with `tensors`, `from_parts` reads them."""
        return dict(_ADAPTER.dump_python(self.usual, mode="json"))

    def tensors(self) -> dict[str, Tensor]:
        """Return what is too large for JSON, as tensors by name, float16 but for a few numbers."""
        return {
            name: tensor
            for stage, space in self.spaces.items()
            for name, tensor in space.tensors(f"{PREFIX}{stage}.").items()
        }

    @classmethod
    def from_parts(
        cls, content: Any, tensors: Mapping[str, Any], name: str = "The familiarity"
    ) -> Familiarity:
        """Read what `to_json` and `tensors` returned.

        A file that was fitted for a smaller share of flagged home cells than `UNLIKE_RATE` flags as many as
        are flagged today, see `Usual.flagging`.

        Args:
            content: JSON values.
            tensors: by name; others beside them are left alone.
            name: where they come from, with which an error begins.

        Raises:
            FamiliarityError: something is missing, unknown, of the wrong kind or out of range.
        """
        try:
            usual = _ADAPTER.validate_json(json.dumps(content, allow_nan=False))
        except (TypeError, ValueError) as error:  # a ValidationError is such
            raise FamiliarityError(f"{name}: is damaged ({_first_fault(error)}); {REMEDY}.") from error
        if set(usual.statistics) != set(STATISTICS) or set(usual.distances) != set(STAGES):
            raise FamiliarityError(f"{name}: is of other statistics than this program's; {REMEDY}.")
        for each in (*usual.statistics.values(), *usual.distances.values(), usual.features, usual.unlikeness):
            if np.any(np.diff(each) < 0):
                raise FamiliarityError(f"{name}: has quantiles that do not rise; {REMEDY}.")
        spaces = {stage: FeatureSpace.from_tensors(tensors, f"{PREFIX}{stage}.", name) for stage in STAGES}
        return cls(spaces, usual.flagging(UNLIKE_RATE))


_ADAPTER = TypeAdapter(Usual)


# --- fitting -------------------------------------------------------------------------------------


def fit_spaces(
    features: Mapping[str, np.ndarray], targets: Sequence[int] | np.ndarray
) -> dict[str, FeatureSpace]:
    """Return where the training cells lie in each stage. Arguments and errors as of `FeatureSpace.fit`."""
    return {stage: FeatureSpace.fit(features[stage], targets) for stage in STAGES}


def distances_of(
    spaces: Mapping[str, FeatureSpace], features: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return each image's distance in each stage. Errors as of `FeatureSpace.distances`."""
    return {stage: spaces[stage].distances(features[stage]) for stage in STAGES}


def fit_familiarity(
    spaces: dict[str, FeatureSpace],
    training_statistics: np.ndarray,
    reference_distances: Mapping[str, np.ndarray],
    reference_statistics: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    rate: float = UNLIKE_RATE,
) -> Familiarity:
    """Fit what is usual, and from where on an image is unlike the training cells.

    Statistics are compared with those of the training cells: no network has learnt them. The distances of
    training cells' features are too small, since the network was fitted to these very cells, so distances
    are compared with those of the reference cells. These may also be pooled over folds, each cell's distance
    being that in the space of a network that had not seen it.

    Args:
        spaces: of the network that is to be used, see `fit_spaces`.
        training_statistics: float [N, statistics], see `images.statistics.image_statistics`.
        reference_distances: see `distances_of`, float [M] each, of cells not trained on.
        reference_statistics: float [M, statistics], of the same cells.
        groups: of the M cells; cells of one group are alike, so a group counts once.
        rate: share of home cells that are to be flagged. With fewer than 1 / rate - 1 cells, those beyond
            all reference cells are, and `Usual.rate` says how many that is.

    Raises:
        FamiliarityError: there are no cells, or numbers that are not finite.
    """
    given = (training_statistics, reference_statistics, *reference_distances.values())
    if not all(len(each) and np.isfinite(each).all() for each in given):
        raise FamiliarityError(
            f"{len(training_statistics)} training cells and {len(reference_statistics)} reference cells with "
            "finite statistics are too few to say what is usual; hold back some cells by a split."
        )
    known, group_of = np.unique(np.asarray(groups), return_inverse=True)
    distances, features = _usual_features(reference_distances)
    usual = Usual(
        statistics={name: _quantiles(training_statistics[:, place]) for place, name in enumerate(STATISTICS)},
        distances=distances,
        features=features,
        unlikeness=(0.0,) * 101,
        unlike_beyond=0.0,
        rate=max(rate, 1 / (len(reference_statistics) + 1)),
        training_cells=len(training_statistics),
        reference_cells=len(reference_statistics),
        reference_groups=len(known),
    )
    unlikeness = _crossed_unlikeness(usual, reference_distances, reference_statistics, group_of)
    # The new cell is one of its own kind: without it, the (n + 1) (1 - rate)-th of n cells is too low.
    level = min(1.0, (1 - usual.rate) * (1 + 1 / len(unlikeness)))
    beyond = _weighed_percentile(unlikeness, group_of, 100 * level)
    quantiles = tuple(map(float, _weighed_percentile(unlikeness, group_of, PERCENTS)))
    return Familiarity(dict(spaces), replace(usual, unlikeness=quantiles, unlike_beyond=float(beyond)))


def _usual_features(distances: Mapping[str, np.ndarray]) -> tuple[dict[str, Quantiles], Quantiles]:
    """Return the quantiles of the distances of each stage, and of the mean of their scores."""
    of_stages = {stage: _quantiles(distances[stage]) for stage in STAGES}
    return of_stages, _quantiles(_mean_score(distances, of_stages))


def _crossed_unlikeness(
    usual: Usual, distances: Mapping[str, np.ndarray], statistics: np.ndarray, group_of: np.ndarray
) -> np.ndarray:
    """Return how unlike each reference cell is, [M], by the quantiles of other groups' distances.

    By quantiles that a cell itself is among, it would look more usual than a new one does.
    """
    fold_of = group_of % FOLDS
    unlikeness = np.empty(len(statistics))
    for fold in np.unique(fold_of):
        own = fold_of == fold
        others = ~own if not own.all() else own  # a single group has no others
        of_stages, features = _usual_features({stage: distances[stage][others] for stage in STAGES})
        held_out = replace(usual, distances=of_stages, features=features)
        scores = held_out.scores({stage: distances[stage][own] for stage in STAGES}, statistics[own])
        unlikeness[own] = rarity(scores).max(1)
    return unlikeness


def _quantiles(values: np.ndarray) -> Quantiles:
    """Return the quantiles at 0 to 100 %."""
    return tuple(map(float, np.percentile(values.astype(np.float64), PERCENTS)))


def _weighed_percentile(values: np.ndarray, group_of: np.ndarray, percents: np.ndarray | float) -> np.ndarray:
    """Return the least values that groups of a share of `percents` do not exceed, each group counting once.

    The rounding of sums of many shares is taken off, so that it never moves on to the next value.
    """
    weights = 1 / np.bincount(group_of)[group_of]
    asked = np.maximum(np.asarray(percents) - 1e-9, 0)
    return np.asarray(np.percentile(values, asked, weights=weights, method="inverted_cdf"))


# --- scores and words ----------------------------------------------------------------------------


def percentile_of(values: np.ndarray, quantiles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the percentile, 0 to 100, of values [N] among what has these quantiles at 0 to 100 %.

    Between quantiles it is interpolated; of equal ones, the middle.
    """
    places, percents = _distinct(tuple(quantiles))
    inside = np.interp(values, places, percents)
    return np.where(values < places[0], 0.0, np.where(values > places[-1], 100.0, inside))


def normal_score(values: np.ndarray | Sequence[float], quantiles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return values [N] as numbers of standard deviations in a normal distribution of equal percentiles.

    Beyond the 1st and the 99th percentile it goes on in a straight line, in units of the distance of that
    percentile from the median: there, cells are too few to tell percentiles apart.
    """
    values, middle = np.asarray(values, np.float64), quantiles[50]
    places, percents = _distinct(tuple(quantiles)[OUTERMOST : 101 - OUTERMOST], OUTERMOST)
    scores = np.interp(values, places, ndtri(percents / 100))
    last = float(ndtri(1 - OUTERMOST / 100))
    lowest, highest = places[0], places[-1]
    for end, past in (
        (lowest, np.minimum(values - lowest, 0)),
        (highest, np.maximum(values - highest, 0)),
    ):
        # Where all cells are the same, what differs by a thousandth of that differs much.
        scores = scores + past * last / max(abs(end - middle), 1e-3 * abs(middle), 1e-9)
    return scores


@functools.lru_cache(maxsize=64)  # a model has ten, and asks for them with every batch
def _distinct(quantiles: tuple[float, ...], first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct ones of quantiles at `first` % and on, rising, and the mean percent of each."""
    places, which, counts = np.unique(np.array(quantiles, float), return_inverse=True, return_counts=True)
    return places, np.bincount(which, first + np.arange(len(quantiles))) / counts


def _mean_score(distances: Mapping[str, np.ndarray], usual: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Return the mean over the stages of the scores of distances, [N]."""
    scores = [normal_score(distances[stage], usual[stage]) for stage in STAGES]
    return np.asarray(np.mean(scores, axis=0))


def rarity(scores: np.ndarray) -> np.ndarray:
    """Return -log10 of the weighed p-value of each score, [N, statistics + 1]: 2 is one home cell in 100.

    Two-sided for statistics, one-sided for the last column, of the features.
    """
    tails = np.column_stack([math.log(2) + log_ndtr(-np.abs(scores[:, :-1])), log_ndtr(-scores[:, -1])])
    return (np.log(WEIGHTS) - tails) / math.log(10)


def reason(name: str, percentile: float) -> str:
    """Return in words in what an image is unlike: "smaller than 99 % of the training cells"."""
    if name == FEATURES:
        if percentile >= 100:
            return "the network has seen nothing like it"
        return f"stranger to the network than {_share(percentile)} of the cells that it was tried on"
    low, high = DIRECTIONS_IN_WORDS[name]
    word, share = (low, 100 - percentile) if percentile < 50 else (high, percentile)
    return f"{word} than {_share(share)} of the training cells"


def _share(percent: float) -> str:
    return "all" if percent >= 100 else f"{math.floor(percent)} %"


def _first_fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
