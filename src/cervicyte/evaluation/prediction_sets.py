"""Prediction sets: every class that a cell may well have, in place of the likeliest one alone.

Class-conditional (Mondrian) split-conformal sets (Vovk, Gammerman & Shafer, Algorithmic Learning in a
Random World, 2005; Vovk, Mach. Learn. 2013) of least ambiguity (Sadinle, Lei & Wasserman, J. Am. Stat.
Assoc. 2019): a class is in the set if its probability is at least that class's threshold. The threshold
is set on calibration cells of the class, so that of its new cells the stated share has it in the set,
whatever the network, without any assumption on how the probabilities come about.

**What is exchangeable are groups, not cells.** Cells of one group show one place on the glass and are
alike: ten of them tell little more than one. The usual threshold, the ceil((n + 1) level)-th of n cells
(Angelopoulos & Bates, "A gentle introduction to conformal prediction", 2021), counts them as ten and
promises more than it keeps. So each group counts once, its cells sharing its weight equally, and the
finite-sample correction counts groups. That is hierarchical conformal prediction (Lee, Barber & Willett,
"Distribution-free inference with hierarchical data", 2023, arXiv 2306.06342), which completes the pooled
CDF of Dunn, Wasserman & Ramdas, "Distribution-free prediction sets for two-layer hierarchical models",
J. Am. Stat. Assoc. 2023, by a weight for the new group, placed where it is worst. It promises: a cell of
the class, drawn from a new group that has some, has its class in its set with at least that probability,
on average over calibration sets. Larger groups count no more than small ones, so the share of all cells
may lie a little above or below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SET_LEVEL = 0.95
SEPARATOR = " | "  # between the classes of a set, where it is written as text
_ROUNDING = 1e-9  # sums of many shares may fall this far short


def threshold_of(
    probabilities: np.ndarray, groups: Sequence[str] | np.ndarray, level: float = SET_LEVEL
) -> float | None:
    """Return the probability from which on the class of these cells is in a set.

    It is the highest value that groups of a total weight of `level` reach. With K groups, each has the
    weight 1 / (K + 1), and the last such weight is of the new group, which is taken to reach none.

    Args:
        probabilities: [N], of its true class, of each calibration cell of one class.
        groups: of the N cells.
        level: 0 to 1, the share of new cells to be covered.

    Returns:
        None if there are fewer groups than `fewest_groups`: no threshold above 0 keeps the promise.
    """
    _, group_of_cell, cells_of_group = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    shares = 1 / (cells_of_group * (len(cells_of_group) + 1))
    order = np.argsort(-probabilities, kind="stable")
    reached = np.cumsum(shares[group_of_cell[order]]) >= level - _ROUNDING
    return float(probabilities[order][reached.argmax()]) if reached.any() else None


def fewest_groups(level: float = SET_LEVEL) -> int:
    """Return the number of groups from which on a class has a threshold: K / (K + 1) must reach `level`."""
    return math.ceil(level / (1 - level) - _ROUNDING)


def prediction_sets(probabilities: np.ndarray, thresholds: Sequence[float | None]) -> np.ndarray:
    """Return which classes are in each cell's set, bool [N, C].

    The likeliest class is in every set, whether it reaches its threshold or not: thresholds differ, and an
    answer that its own set denied would be none. That can only raise the share of cells that are covered.

    Args:
        probabilities: [N, C].
        thresholds: of the C classes; a class with None is in every set.
    """
    in_set = probabilities >= np.array([0.0 if one is None else one for one in thresholds])
    in_set[np.arange(len(in_set)), probabilities.argmax(1)] = True
    return in_set


def set_texts(in_set: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Return each set, a row of bool [N, C], as its classes' names in the model's order."""
    return [
        SEPARATOR.join(name for name, is_in in zip(class_names, row, strict=True) if is_in) for row in in_set
    ]
