"""Figures of calibrated probabilities and prediction sets, nothing fitted on what it is reported on.

Of a cross-validation's pooled predictions, those of each fold are calibrated by what was fitted on the
other folds of the same seed: temperature, thresholds of sets, certainty. Their groups differ, so the
figures are those of new groups. What a model takes along is fitted on all folds, and a little better
fitted than these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cervicyte import metrics
from cervicyte.datasets.splits import Leak
from cervicyte.errors import SplitError, UsageError
from cervicyte.evaluation.calibration import COVERAGE, Calibration, fit_calibration
from cervicyte.evaluation.prediction_sets import fewest_groups, set_texts
from cervicyte.evaluation.tables import arrays_of
from cervicyte.metrics import Estimate, Statistic

CONFIDENCE_FIGURES = (
    "expected_calibration_error",
    "adaptive_calibration_error",
    "negative_log_likelihood",
)
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class CrossFitted:
    """Pooled predictions, each row calibrated by the other folds of its seed.

    Attributes:
        table: as the pooled predictions, in their order, with calibrated `p_<class>` and `confidence`;
            `prediction_set`, names of classes; `declined`, whether the confidence is too low.
        in_set: bool [N, C], the same sets.
        calibrations: (seed, fold) -> what was applied to that fold.
    """

    table: pd.DataFrame
    in_set: np.ndarray
    calibrations: Mapping[tuple[int, int], Calibration]

    @property
    def caveats(self) -> list[str]:
        """What could not be fitted for some folds, and what follows for the figures."""
        fits, caveats = list(self.calibrations.values()), []
        for classes in zip(*(one.classes for one in fits), strict=True):
            groups = [one.groups for one in classes if one.threshold is None]
            if groups:
                caveats.append(
                    f"{classes[0].name}: in {len(groups)} of {len(fits)} fits it had fewer than "
                    f"{fewest_groups(fits[0].level)} groups to calibrate by (fewest {min(groups)}); it then "
                    "stands in every prediction set, and its coverage says nothing."
                )
        without = sum(one.temperature is None for one in fits)
        if without:
            caveats.append(
                f"In {without} of {len(fits)} fits no temperature could be found: the cells to calibrate by "
                "were all called right, or no better than by chance. Probabilities then stay as the network "
                "gave them, and the errors after calibration are undefined."
            )
        return caveats


def cross_fitted(
    pooled: pd.DataFrame, class_names: Sequence[str], allow_leak: Leak | None = None
) -> CrossFitted:
    """Calibrate each fold by the others, each seed by itself.

    Args:
        pooled: a predictions table with the columns `seed` and `fold` besides.
        class_names: in the model's order.
        allow_leak: the leak that was accepted by name when the splits were made, see `check_split`;
            the artefact must say it.

    Raises:
        SplitError: a group stands in two folds of one seed, and no leak is named.
        UsageError: a seed has one fold only, or the table does not fit the classes.
    """
    if allow_leak is None:
        _check_groups_whole(pooled)
    raw = arrays_of(pooled, class_names)[2]
    calibrated, in_set = np.empty_like(raw), np.empty(raw.shape, bool)
    declined = np.empty(len(raw), bool)
    calibrations = {}
    for seed, fold in sorted(set(zip(pooled["seed"], pooled["fold"], strict=True))):
        of_seed, of_fold = (pooled["seed"] == seed).to_numpy(), (pooled["fold"] == fold).to_numpy()
        others, own = pooled[of_seed & ~of_fold], of_seed & of_fold
        if others.empty:
            raise UsageError(f"Seed {seed} has one fold, and none to calibrate it by; use two folds or more.")
        calibration = fit_calibration(others, class_names)
        calibrated[own] = calibration.apply(raw[own])
        in_set[own] = calibration.sets(calibrated[own])
        declined[own] = calibration.declines(calibrated[own])
        calibrations[int(seed), int(fold)] = calibration
    table = pooled.assign(
        confidence=calibrated.max(1),
        **{f"p_{name}": calibrated[:, index] for index, name in enumerate(class_names)},
        prediction_set=set_texts(in_set, class_names),
        declined=declined,
    )
    return CrossFitted(table, in_set, calibrations)


def _check_groups_whole(pooled: pd.DataFrame) -> None:
    """Refuse a group that stands in two folds of one seed."""
    folds = pooled.groupby(["seed", "group"], sort=True)["fold"].nunique()
    torn = folds.index[folds > 1]
    if len(torn):
        seed, group = torn[0]
        raise SplitError(
            f"Seed {seed}: the group {group} stands in more than one fold, so a calibration would be fitted "
            "on cells like those that it is judged by; cross-validate by group, or name the leak with "
            "--allow-leak."
        )


# --- figures -------------------------------------------------------------------------------------


def calibration_figures_of_cells(
    pooled: pd.DataFrame, fitted: CrossFitted, class_names: Sequence[str]
) -> tuple[list[str], Statistic]:
    """Return the names of the K figures, and the function from cell weights [D, N] to figures [D, K].

    The errors of confidence before and after calibration; of each class, the share of its cells that
    have it in their set, and the same with every group counting once, which is what sets promise;
    the size of sets; the accuracy on the most certain share of all cells, and on those that the
    certainty fitted on other folds did not decline.
    """
    truth, predicted, raw = arrays_of(pooled, class_names)
    calibrated = arrays_of(fitted.table, class_names)[2]
    correct = truth == predicted
    confidence = calibrated.max(1)
    has_temperature = all(one.temperature is not None for one in fitted.calibrations.values())
    covered = fitted.in_set[np.arange(len(truth)), truth]
    size = fitted.in_set.sum(1)
    answered = ~fitted.table["declined"].to_numpy(bool)
    share_of_group = _shares_of_groups(pooled["group"].to_numpy(str), truth, len(class_names))

    def statistic(weights: np.ndarray) -> np.ndarray:
        before = _confidence_figures(raw, truth, correct, weights)
        after = _confidence_figures(calibrated, truth, correct, weights)
        if not has_temperature:
            after = [np.full(len(weights), np.nan)] * len(after)
        columns = [figure for both in zip(before, after, strict=True) for figure in both]
        total = weights.sum(-1)
        for index in range(len(class_names)):
            own = weights * (truth == index)
            for counted in (own, own * share_of_group):
                # By what was missed, so that sums of shares make full coverage 1 and no digit less.
                columns.append(1 - metrics.ratio(counted @ ~covered, counted.sum(-1)))
        columns += [
            metrics.ratio(weights @ size, total),
            metrics.ratio(weights @ (size == 1), total),
            metrics.accuracy_at_coverage(confidence, correct, COVERAGE, weights),
            metrics.ratio(weights @ answered, total),
            metrics.ratio(weights @ (answered & correct), weights @ answered),
        ]
        return np.stack(columns, axis=-1)

    names = [f"{name}_{when}" for name in CONFIDENCE_FIGURES for when in (BEFORE, AFTER)]
    for name in class_names:
        names += [f"set_coverage, {name}", f"set_coverage_of_groups, {name}"]
    names += [
        "mean_set_size",
        "sets_of_one_class",
        f"accuracy_at_{COVERAGE * 100:.0f}_coverage",
        "answered",
        "accuracy_of_answered",
    ]
    return names, statistic


def widened_coverage(
    figures: Mapping[str, Estimate], pooled: pd.DataFrame, class_names: Sequence[str]
) -> dict[str, Estimate]:
    """Return the figures, intervals of full coverage admitting misses that were not seen."""
    groups = {name: pooled.loc[pooled["true_class"] == name, "group"].nunique() for name in class_names}
    return {
        name: metrics.widened(figure, groups[name.split(", ", 1)[1]])
        if name.startswith("set_coverage")
        else figure
        for name, figure in figures.items()
    }


def _confidence_figures(
    probabilities: np.ndarray, truth: np.ndarray, correct: np.ndarray, weights: np.ndarray
) -> list[np.ndarray]:
    """Return those of `CONFIDENCE_FIGURES`, each [D]."""
    confidence = probabilities.max(1)
    return [
        metrics.expected_calibration_error(confidence, correct, weights),
        metrics.adaptive_calibration_error(confidence, correct, weights),
        metrics.negative_log_likelihood(probabilities, truth, weights),
    ]


def _shares_of_groups(groups: np.ndarray, truth: np.ndarray, class_count: int) -> np.ndarray:
    """Return 1 over the number of rows of the same group and class, [N]."""
    pairs = np.unique(groups, return_inverse=True)[1] * class_count + truth
    return 1 / np.bincount(pairs)[pairs]
