"""How unlike the training cells an image is, in what, and whether to answer for it at all.

An image is placed among cells of the training laboratory by each of `images.statistics.STATISTICS` and by
the distance of its features, see `feature_space`. Each place is turned into a normal score, so that they can
be compared; beyond the outermost percentiles, where the cells tell nothing, it grows with the distance. The
largest of them says how unlike the image is, and is held against the same figure of reference cells: cells
that the network was not trained on, from groups of their own.

**What is promised.** A cell drawn from a new group of the same laboratory is flagged with a probability of at
most the stated rate (split-conformal, groups counted and not cells, see `prediction_sets`): an image that is
unlike in one of six ways is not flagged six times as often. Nothing is promised of how many foreign images
are flagged, and likeness is no warrant of a right answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from scipy.stats import norm
from torch import Tensor

from cervicyte.errors import FamiliarityError
from cervicyte.evaluation.feature_space import REMEDY, FeatureSpace
from cervicyte.evaluation.prediction_sets import fewest_groups, threshold_of
from cervicyte.images.statistics import STATISTICS

UNLIKE_RATE = 0.02  # of home cells that are flagged all the same
NOT_A_CELL = 3.0  # times the score from which an image is flagged; see docs/unlike_training.md
FEATURES = "features"  # the name of the feature distance among the statistics
PERCENTS = np.arange(101)
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
        distances: the same of the feature distance among the reference cells.
        unlikeness: the same of the largest score among the reference cells, a group counting once.
        unlike_beyond: the largest score from which on an image is unlike the training cells.
        rate: the most that a home cell is flagged, in a new group.
        training_cells, reference_cells, reference_groups: that all of it was fitted on.
    """

    statistics: dict[str, Quantiles]
    distances: Quantiles
    unlikeness: Quantiles
    unlike_beyond: Annotated[float, Field(gt=0)]
    rate: Annotated[float, Field(gt=0, lt=1)]
    training_cells: Count
    reference_cells: Count
    reference_groups: Count


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
        space: where the training cells lie among the network's features; goes into `tensors`.
        usual: everything else; goes into `to_json`.
    """

    space: FeatureSpace
    usual: Usual

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be done as asked, a sentence each, for people."""
        needed = fewest_groups(1 - UNLIKE_RATE)
        groups = self.usual.reference_groups
        if self.usual.rate <= UNLIKE_RATE or groups >= needed:
            return ()
        return (
            f"Only {groups} {'group' if groups == 1 else 'groups'} of cells could be held back where "
            f"{needed} are needed, so up to {100 * self.usual.rate:.0f} % of home cells are flagged as "
            "unlike the training cells.",
        )

    def scores(self, features: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        """Return how unlike each image is in each way, float64 [N, statistics + 1], 0 or more.

        The last column is of the features. A score is a number of standard deviations in a normal
        distribution; that of a statistic counts both ways, that of the features only far distances.

        Args:
            features: float [N, D], see `features.pooled_features`.
            statistics: float [N, statistics], in the order of `STATISTICS`, of the image as it was read.

        Raises:
            FamiliarityError: features or statistics are of another number.
        """
        return _scores(
            self.space.distances(features), statistics, self.usual.distances, self.usual.statistics
        )

    def judge(self, features: np.ndarray, statistics: np.ndarray) -> list[Judgement]:
        """Say of each image how unlike the training cells it is. Arguments and errors as of `scores`."""
        distances = self.space.distances(features)
        scores = _scores(distances, statistics, self.usual.distances, self.usual.statistics)
        percentiles = np.column_stack(
            [
                *(percentile_of(statistics[:, place], self.usual.statistics[name])
                  for place, name in enumerate(STATISTICS)),
                percentile_of(distances, self.usual.distances),
            ]
        )  # fmt: skip
        unlike = percentile_of(scores.max(1), self.usual.unlikeness)
        return [
            Judgement(
                percentiles=dict(zip((*STATISTICS, FEATURES), map(float, shares), strict=True)),
                unlike_percentile=float(percentile),
                kind=self._kind(of_image),
                reasons=self._reasons(of_image, shares),
            )
            for of_image, shares, percentile in zip(scores, percentiles, unlike, strict=True)
        ]

    def _kind(self, scores: np.ndarray) -> Kind:
        if scores[-1] > NOT_A_CELL * self.usual.unlike_beyond:
            return "not_a_cell"
        return "unlike_training" if scores.max() > self.usual.unlike_beyond else "familiar"

    def _reasons(self, scores: np.ndarray, percentiles: np.ndarray) -> tuple[str, ...]:
        names = (*STATISTICS, FEATURES)
        beyond = [
            place for place in np.argsort(-scores, kind="stable") if scores[place] > self.usual.unlike_beyond
        ]
        return tuple(reason(names[place], float(percentiles[place])) for place in beyond)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; with `tensors`, `from_parts` reads them."""
        return dict(_ADAPTER.dump_python(self.usual, mode="json"))

    def tensors(self) -> dict[str, Tensor]:
        """Return what is too large for JSON, as tensors by name."""
        return self.space.tensors()

    @classmethod
    def from_parts(
        cls, content: Any, tensors: Mapping[str, Tensor], name: str = "The familiarity"
    ) -> Familiarity:
        """Read what `to_json` and `tensors` returned.

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
        if set(usual.statistics) != set(STATISTICS):
            raise FamiliarityError(f"{name}: is of other statistics than this program's; {REMEDY}.")
        for each in (*usual.statistics.values(), usual.distances, usual.unlikeness):
            if np.any(np.diff(each) < 0):
                raise FamiliarityError(f"{name}: has quantiles that do not rise; {REMEDY}.")
        return cls(FeatureSpace.from_tensors(tensors, name), usual)


_ADAPTER = TypeAdapter(Usual)


# --- fitting -------------------------------------------------------------------------------------


def fit_familiarity(
    space: FeatureSpace,
    training_statistics: np.ndarray,
    reference_distances: np.ndarray,
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
        space: of the network that is to be used.
        training_statistics: float [N, statistics], see `images.statistics.image_statistics`.
        reference_distances: float [M], see `FeatureSpace.distances`, of cells not trained on.
        reference_statistics: float [M, statistics], of the same cells.
        groups: of the M cells; cells of one group are alike, so a group counts once.
        rate: share of home cells that may be flagged. With fewer than 1 / rate - 1 groups it is not to be
            had; what is beyond all reference cells is then flagged, and `Usual.rate` says how often that is.

    Raises:
        FamiliarityError: there are no cells, or numbers that are not finite.
    """
    given = (training_statistics, reference_distances, reference_statistics)
    if not all(len(each) and np.isfinite(each).all() for each in given):
        raise FamiliarityError(
            f"{len(training_statistics)} training cells and {len(reference_distances)} reference cells with "
            "finite statistics are too few to say what is usual; hold back some cells with `--split`."
        )
    names = tuple(STATISTICS)
    of_statistics = {name: _quantiles(training_statistics[:, place]) for place, name in enumerate(names)}
    distances = _quantiles(reference_distances)
    largest = _scores(reference_distances, reference_statistics, distances, of_statistics).max(1)
    count = len(np.unique(np.asarray(groups)))
    kept = max(rate, 1 / (count + 1))
    beyond = threshold_of(-largest, groups, 1 - kept)
    assert beyond is not None  # with that many groups there always is one
    usual = Usual(
        statistics=of_statistics,
        distances=distances,
        unlikeness=_quantiles(largest, groups),
        # A data set whose images are all alike has a score of 0; only what differs is flagged.
        unlike_beyond=max(-beyond, _LEAST_SCORE),
        rate=kept,
        training_cells=len(training_statistics),
        reference_cells=len(reference_distances),
        reference_groups=count,
    )
    return Familiarity(space, usual)


_LEAST_SCORE = 1e-3


def _quantiles(values: np.ndarray, groups: Sequence[str] | np.ndarray | None = None) -> tuple[float, ...]:
    """Return the quantiles at 0 to 100 %; with groups, each group has the same weight."""
    if groups is None:
        return tuple(map(float, np.percentile(values.astype(np.float64), PERCENTS)))
    _, group_of, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    weights = 1 / sizes[group_of]
    found = np.percentile(values.astype(np.float64), PERCENTS, weights=weights, method="inverted_cdf")
    return tuple(map(float, found))


# --- scores and words ----------------------------------------------------------------------------


def percentile_of(values: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """Return the percentile, 0 to 100, of values [N] among what has these quantiles at 0 to 100 %.

    Between quantiles it is interpolated; of equal ones, the middle.
    """
    places, percents = _distinct(quantiles)
    inside = np.interp(values, places, percents)
    return np.where(values < places[0], 0.0, np.where(values > places[-1], 100.0, inside))


def normal_score(values: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """Return values [N] as numbers of standard deviations in a normal distribution of equal percentiles.

    Beyond the 1st and the 99th percentile it goes on in a straight line, in units of the distance of that
    percentile from the median: there, cells are too few to tell percentiles apart.
    """
    middle = quantiles[50]
    inner = np.asarray(quantiles)[OUTERMOST : 101 - OUTERMOST]
    places, percents = _distinct(inner, PERCENTS[OUTERMOST : 101 - OUTERMOST])
    scores = np.interp(values, places, norm.ppf(percents / 100))
    last = float(norm.ppf(1 - OUTERMOST / 100))
    lowest, highest = places[0], places[-1]
    for end, past in (
        (lowest, np.minimum(values - lowest, 0)),
        (highest, np.maximum(values - highest, 0)),
    ):
        # Where all cells are the same, what differs by a thousandth of that differs much.
        scores = scores + past * last / max(abs(end - middle), 1e-3 * abs(middle), 1e-9)
    return scores


def _distinct(
    quantiles: Sequence[float] | np.ndarray, percents: np.ndarray = PERCENTS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct quantiles, rising, and the mean percent of each."""
    places, which, counts = np.unique(np.asarray(quantiles, float), return_inverse=True, return_counts=True)
    return places, np.bincount(which, percents) / counts


def _scores(
    distances: np.ndarray,
    statistics: np.ndarray,
    usual_distances: Sequence[float],
    usual_statistics: Mapping[str, Sequence[float]],
) -> np.ndarray:
    if statistics.ndim != 2 or statistics.shape != (len(distances), len(STATISTICS)):
        raise FamiliarityError(
            f"The statistics are {list(statistics.shape)} where {len(distances)} images have "
            f"{len(STATISTICS)} each; compute them with `image_statistics`."
        )
    columns = [
        np.abs(normal_score(statistics[:, place], usual_statistics[name]))
        for place, name in enumerate(STATISTICS)
    ]
    return np.column_stack([*columns, np.maximum(normal_score(distances, usual_distances), 0)])


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
