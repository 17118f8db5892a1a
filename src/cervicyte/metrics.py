"""The formulas behind every figure, and the intervals round them.

Every figure is computed from cell weights, so that one matrix product yields it for thousands of
bootstrap draws at once: a draw gives each cell the number of times that its group was drawn. `...`
in a shape stands for such leading dimensions. What is undefined, such as the recall of a class
without cells, is NaN and never 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cervicyte.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION_BINS = 15
LEVEL = 0.95  # of every interval
DRAWS = 2000
FLIPS = 10_000
LEAST_PROBABILITY = 1e-12  # none at all counts as this, lest one cell make a mean infinite
MOST_UNDEFINED = 0.1  # share of draws that may be undefined before an interval is, too
_WEIGHTS_AT_ONCE = 4_000_000  # 32 MB; bounds the memory of a bootstrap over many cells

Statistic = Callable[[np.ndarray], np.ndarray]
"""Cell weights, float [D, N] -> figures [D, K]."""


class Estimate(NamedTuple):
    """A figure with the ends of its 95 % interval; NaN where undefined."""

    value: float
    low: float
    high: float


# --- from a confusion matrix [..., C, C]: rows are true classes, columns predicted ones ---------


def confusion_matrix(
    truth: np.ndarray, predicted: np.ndarray, class_count: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the weighted counts [..., C, C] of class indices, int [N], with weights [..., N]."""
    weights = np.ones(len(truth)) if weights is None else weights
    cell_of_matrix = np.eye(class_count**2)[truth * class_count + predicted]
    return (weights @ cell_of_matrix).reshape(*weights.shape[:-1], class_count, class_count)


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the share of cells that were called what they are, [...]."""
    return ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def class_metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return accuracy, precision, recall, specificity and F1 of each class, [..., C], one against the rest.

    With TP, FP, FN, TN of a class: accuracy (TP + TN) / N, precision TP / (TP + FP), recall
    TP / (TP + FN), specificity TN / (TN + FP), F1 = 2 TP / (2 TP + FP + FN) (van Rijsbergen, Information
    Retrieval, 1979). A class without cells has a specificity only: all else would speak of cells that
    are not there. A class that is never predicted has no precision.
    """
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, called = confusion.sum(-1), confusion.sum(-2)
    total = confusion.sum((-2, -1))[..., None]
    missed, false = support - correct, called - correct
    there = support > 0
    return {
        "accuracy": np.where(there, ratio(total - missed - false, total), np.nan),
        "precision": np.where(there, ratio(correct, called), np.nan),
        "recall": ratio(correct, support),
        "specificity": ratio(total - support - false, total - support),
        "f1": np.where(there, ratio(2 * correct, support + called), np.nan),
    }


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the mean recall of the classes that have cells, [...] (Brodersen et al., ICPR 2010)."""
    return mean_of_defined(class_metrics(confusion)["recall"])


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Return the mean F1 of the classes that have cells, [...]."""
    return mean_of_defined(class_metrics(confusion)["f1"])


def cohen_kappa(confusion: np.ndarray) -> np.ndarray:
    """Return the agreement beyond chance, [...] (Cohen, Educ. Psychol. Meas. 1960)."""
    total = confusion.sum((-2, -1))
    expected = ratio((confusion.sum(-1) * confusion.sum(-2)).sum(-1), total**2)
    return ratio(accuracy(confusion) - expected, 1 - expected)


def matthews_correlation(confusion: np.ndarray) -> np.ndarray:
    """Return the correlation of truth and prediction, [...] (Gorodkin, Comput. Biol. Chem. 2004)."""
    true, called = confusion.sum(-1), confusion.sum(-2)
    total = confusion.sum((-2, -1))
    covariance = np.trace(confusion, axis1=-2, axis2=-1) * total - (true * called).sum(-1)
    variances = (total**2 - (true**2).sum(-1)) * (total**2 - (called**2).sum(-1))
    return ratio(covariance, np.sqrt(variances))


# --- from probabilities --------------------------------------------------------------------------


def auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the area under the ROC curve, [...]: the chance that a positive outranks a negative.

    Mann & Whitney's U over the number of pairs, ties counting half (Hanley & McNeil, Radiology 1982).

    Args:
        positive: bool [N].
        scores: [N], higher for positive.
        weights: [..., N].
    """
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    ranked, is_positive = weights[..., order], positive[order]
    first_of_level = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    positives = np.add.reduceat(ranked * is_positive, first_of_level, axis=-1)
    negatives = np.add.reduceat(ranked * ~is_positive, first_of_level, axis=-1)
    outranked = np.cumsum(negatives, axis=-1) - negatives / 2
    return ratio((positives * outranked).sum(-1), positives.sum(-1) * negatives.sum(-1))


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean distance of confidence and accuracy over 15 bins, [...].

    Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017, equation 3:
    bins of equal width, open below and closed above.

    Args:
        confidence: [N], of the predicted class.
        correct: bool [N].
        weights: [..., N].
    """
    weights = np.ones(len(confidence)) if weights is None else weights
    in_bin = np.eye(CALIBRATION_BINS)[calibration_bin(confidence)]
    gaps = weights @ (in_bin * (correct - confidence)[:, None])
    return ratio(np.abs(gaps).sum(-1), weights.sum(-1))


def calibration_bin(confidence: np.ndarray) -> np.ndarray:
    """Return the index of each confidence's bin, int [N]."""
    upper_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:]
    return np.minimum(np.searchsorted(upper_edges, confidence, side="left"), CALIBRATION_BINS - 1)


def adaptive_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean distance of confidence and accuracy over 15 bins of equal weight, [...].

    Nguyen & O'Connor, "Posterior calibration and exploratory analysis for natural language processing
    models", EMNLP 2015: the bins follow the confidences, most of which lie close to 1, in one or two of
    the bins of equal width. A cell at an edge counts in both bins by its shares, and cells of equal
    confidence are shared out alike, so that the order of rows does not matter.

    Args:
        confidence: [N], of the predicted class.
        correct: bool [N].
        weights: [..., N].
    """
    weights = np.ones(len(confidence)) if weights is None else weights
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    gaps = np.diff(_sum_of_first(edges, confidence, correct - confidence, weights), axis=-1)
    return ratio(np.abs(gaps).sum(-1), weights.sum(-1))


def accuracy_at_coverage(
    confidence: np.ndarray, correct: np.ndarray, coverage: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the accuracy on the most certain share of the cells, [...].

    A point of the risk-coverage curve (El-Yaniv & Wiener, J. Mach. Learn. Res. 2010; Geifman & El-Yaniv,
    NeurIPS 2017). Of cells of equal confidence at the edge, each counts by the same part, which is the
    mean over all orders that they could stand in.

    Args:
        confidence: [N], of the predicted class.
        correct: bool [N].
        coverage: above 0, at most 1.
        weights: [..., N].
    """
    weights = np.ones(len(confidence)) if weights is None else weights
    right = _sum_of_first(np.array([coverage]), -confidence, correct, weights)[..., 0]
    return ratio(right, coverage * weights.sum(-1))


def negative_log_likelihood(
    probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean of -log of the probability [N, C] given to the truth, int [N]: best 0, [...].

    Good, J. R. Stat. Soc. B 1952. Probabilities below `LEAST_PROBABILITY` count as that.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    given = np.maximum(probabilities[np.arange(len(truth)), truth], LEAST_PROBABILITY)
    return ratio(weights @ -np.log(given), weights.sum(-1))


def brier_score(
    probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean squared distance of probabilities [N, C] from the truth, int [N]: 0 to 2, [...].

    Brier, Monthly Weather Review 1950: summed over the classes.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    distances = ((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(1)
    return ratio(weights @ distances, weights.sum(-1))


# --- intervals and comparisons -------------------------------------------------------------------


class Bootstrap(NamedTuple):
    """Figures [K] with the ends of their intervals [K]."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def group_bootstrap(
    groups: Sequence[str] | np.ndarray,
    statistic: Statistic,
    draws: int = DRAWS,
    seed: int = 0,
) -> Bootstrap:
    """Return figures with 95 % percentile intervals from drawing whole groups with replacement.

    Cells of one group are alike, so that drawing single cells would make intervals too narrow (Efron &
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; Field & Welsh, J. R. Stat. Soc. B
    2007). An interval is NaN where there is one group only, and where more than a tenth of the draws
    leave the figure undefined, as for a class that lies in one or two groups.

    Args:
        groups: of each of N cells.
        statistic: gives K figures.
        draws: number of draws.
        seed: of the draws.
    """
    names, group_of_cell = np.unique(np.asarray(groups), return_inverse=True)
    value = statistic(np.ones((1, len(group_of_cell))))[0]
    if len(names) < 2:
        return Bootstrap(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    rng = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // len(group_of_cell))
    drawn = []
    for start in range(0, draws, at_once):
        times = rng.multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=min(at_once, draws - start)
        )
        drawn.append(statistic(times[:, group_of_cell].astype(float)))
    low, high = _percentile_interval(np.concatenate(drawn))
    undefined = np.isnan(value)
    return Bootstrap(value, np.where(undefined, np.nan, low), np.where(undefined, np.nan, high))


def upper_bound_of_none(group_count: int) -> float:
    """Return the upper end of the 95 % interval of a rate of which no case was seen in so many groups.

    A bootstrap cannot draw what was not seen and would say [0, 0]. This is Clopper & Pearson's (Biometrika
    1934) exact end for 0 of `group_count`, each group counted as a single case: on the safe side.
    """
    return 1 - ((1 - LEVEL) / 2) ** (1 / group_count) if group_count else float("nan")


class PairedComparison(NamedTuple):
    """What the second table's figures exceed the first's by."""

    accuracy: Estimate
    macro_f1: Estimate
    p_value: float


def compare_paired(
    first: pd.DataFrame, second: pd.DataFrame, draws: int = DRAWS, seed: int = 0
) -> PairedComparison:
    """Return the second's accuracy and macro F1 minus the first's, over the same cells.

    Intervals come from drawing whole groups, the same for both. The p-value of the accuracy's
    difference is that of a sign-flip permutation test over groups: were both alike, each group's
    difference would be as likely with either sign (Good, Permutation Tests, 2000; with one added to
    both counts, Phipson & Smyth 2010).

    Raises:
        UsageError: the tables are not of the same cells, with the same classes and groups.
    """
    for table in (first, second):
        if table["path"].duplicated().any():
            raise UsageError(
                f"{table.loc[table['path'].duplicated(), 'path'].iloc[0]}: stands twice in one table of "
                "predictions; compare tables that name each cell once."
            )
    first, second = first.set_index("path").sort_index(), second.set_index("path").sort_index()
    lone = first.index.symmetric_difference(second.index)
    if len(lone):
        raise UsageError(
            f"{lone[0]}: is in one of the compared runs only; evaluate both on the same part of one split."
        )
    for column in ("true_class", "group"):
        differs = (first[column] != second[column]).to_numpy()
        if differs.any():
            raise UsageError(
                f"{first.index[differs][0]}: its {column.replace('_', ' ')} differs between the compared "
                "runs; evaluate both on the same split."
            )

    labels = [first["true_class"], first["predicted_class"], second["predicted_class"]]
    names, indices = np.unique(np.concatenate([one.to_numpy(str) for one in labels]), return_inverse=True)
    truth, called_first, called_second = indices.reshape(3, -1)
    groups = first["group"].to_numpy(str)

    def difference(weights: np.ndarray) -> np.ndarray:
        before, after = (
            confusion_matrix(truth, called, len(names), weights) for called in (called_first, called_second)
        )
        return np.stack([accuracy(after) - accuracy(before), macro_f1(after) - macro_f1(before)], axis=-1)

    bootstrap = group_bootstrap(groups, difference, draws, seed)
    by_accuracy, by_macro_f1 = (Estimate(*map(float, figures)) for figures in zip(*bootstrap, strict=True))

    gained = (called_second == truth).astype(int) - (called_first == truth)
    group_of_cell = np.unique(groups, return_inverse=True)[1]
    gained_in_group = np.bincount(group_of_cell, gained)
    gained_in_group = gained_in_group[gained_in_group != 0]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(FLIPS, len(gained_in_group)))
    as_far = np.abs(signs @ gained_in_group) >= abs(gained_in_group.sum())
    return PairedComparison(by_accuracy, by_macro_f1, float((as_far.sum() + 1) / (FLIPS + 1)))


def widened(figure: Estimate, group_count: int) -> Estimate:
    """Return a rate with an interval that admits what was never seen, see `upper_bound_of_none`.

    Args:
        figure: a rate; of 0 the upper end moves, of 1 the lower, any other stays as it is.
        group_count: of the cells that the rate is of.
    """
    bound = upper_bound_of_none(group_count)
    if figure.value == 0:
        return Estimate(0.0, 0.0, bound)
    return Estimate(1.0, 1 - bound, 1.0) if figure.value == 1 else figure


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of what is not NaN, [...]."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where the whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole != 0)


def _sum_of_first(
    shares: np.ndarray, order_by: np.ndarray, values: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the weighted sum of `values` [N] over the first shares [S] of all weight [..., N]: [..., S].

    The first are those of smallest `order_by` [N]; of equal ones, each counts by the same part.
    """
    order = np.argsort(order_by, kind="stable")
    first_of_level = np.flatnonzero(np.diff(order_by[order], prepend=-np.inf))
    passed, summed = (
        np.cumsum(np.add.reduceat(one[..., order], first_of_level, axis=-1), axis=-1).reshape(
            -1, len(first_of_level)
        )
        for one in (weights, weights * values)
    )
    sums = [
        np.interp(shares * weight[-1], np.append(0, weight), np.append(0, total))
        for weight, total in zip(passed, summed, strict=True)
    ]
    return np.array(sums).reshape(*weights.shape[:-1], len(shares))


def _percentile_interval(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high [K] of draws [D, K], leaving undefined draws out."""
    interval = np.full((2, drawn.shape[1]), np.nan)
    tail = (1 - LEVEL) / 2 * 100
    for column, figures in enumerate(drawn.T):
        defined = figures[~np.isnan(figures)]
        if len(defined) >= (1 - MOST_UNDEFINED) * len(figures):
            interval[:, column] = np.percentile(defined, [tail, 100 - tail])
    return interval[0], interval[1]
