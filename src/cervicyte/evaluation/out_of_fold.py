"""Probabilities for every cell by a small classifier that saw no cell of its group.

Inspection asks with them which labels are doubtful and what predicts the class. Groups are the joined
ones, twins that inspection found included: a twin in training would repeat its own wrong label.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cervicyte.evaluation.linear_probe import STRENGTHS

FOLDS = 5
INNER_FOLDS = 4  # one of them chooses the probe's strength


class Classifier(Protocol):
    """What scikit-learn calls a classifier, fitted."""

    classes_: np.ndarray

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities [N, C] in the order of `classes_`."""
        ...


Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Classifier]
"""Features [N, D], class indices [N] and groups [N] -> a fitted classifier."""


def classes_in_enough_groups(table: pd.DataFrame) -> list[str]:
    """Return the classes, sorted, that lie in `FOLDS` groups or more; others cannot be in every fold."""
    groups = table.groupby("label")["group"].nunique()
    return sorted(str(label) for label in groups.index[groups >= FOLDS])


def grouped_folds(
    targets: np.ndarray, groups: Sequence[str], folds: int = FOLDS, seed: int = 0
) -> np.ndarray:
    """Return the fold, int [N], in which each cell is tested: stratified by class, groups whole."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(targets), np.int64)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of small classes
        for fold, (_, tested) in enumerate(splitter.split(targets, targets, np.asarray(groups))):
            fold_of[tested] = fold
    return fold_of


def out_of_fold_probabilities(
    features: np.ndarray, targets: np.ndarray, groups: Sequence[str], class_count: int, fit: Fit
) -> np.ndarray:
    """Return float64 [N, class_count], each row by a classifier fitted without the cell's group.

    Args:
        features: [N, D].
        targets: class indices, int [N]; every class in `FOLDS` groups or more.
        groups: of the N cells.
        class_count: number of classes.
        fit: `fitted_probe` or `fitted_neighbours`.
    """
    group_of = np.asarray(groups)
    fold_of = grouped_folds(targets, groups)
    probabilities = np.zeros((len(targets), class_count))
    for fold in range(FOLDS):
        tested, training = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        classifier = fit(features[training], targets[training], group_of[training])
        probabilities[np.ix_(tested, classifier.classes_)] = classifier.predict_proba(features[tested])
    return probabilities


def fitted_probe(features: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> Classifier:
    """Fit logistic regression; a grouped inner fold chooses its strength by log loss.

    Log loss and not accuracy: what is asked for are probabilities.
    """
    held = grouped_folds(targets, list(groups), INNER_FOLDS) == 0
    losses = []
    for strength in STRENGTHS:
        inner = _probe(strength).fit(features[~held], targets[~held])
        known = held & np.isin(targets, inner.classes_)
        losses.append(log_loss(targets[known], inner.predict_proba(features[known]), labels=inner.classes_))
    return _probe(STRENGTHS[int(np.argmin(losses))]).fit(features, targets)


def _probe(strength: float):  # type: ignore[no-untyped-def]
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def fitted_neighbours(features: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> Classifier:
    """Fit k nearest neighbours: statistics may tell a class by a range, or only together.

    k is the root of the number of cells, the usual rule (Duda, Hart & Stork, Pattern Classification, 2001,
    section 4.4).
    """
    neighbours = KNeighborsClassifier(round(len(targets) ** 0.5))
    return make_pipeline(StandardScaler(), neighbours).fit(features, targets)
