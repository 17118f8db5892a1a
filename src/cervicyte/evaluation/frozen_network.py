"""A classifier for few cells: logistic regression on what a frozen network sees.

Some tens of cells are too few for a network's weights and enough for its last layer. The regression is fitted
on the means over the last activations, and becomes the network's own last layer, so that whatever reads model
files reads the result. `classifier: covariance` puts pooling by covariance in place of the last stage before,
see `covariance`; `classifier: last_stage` lets the last stage learn too, from there on: `last_stage`.

How strongly it is held back is chosen on inner folds of the training cells, in whole groups.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

from cervicyte.evaluation.covariance import covariance_network
from cervicyte.evaluation.features import pooled_features
from cervicyte.evaluation.last_stage import last_stage_means, train_last_stage, turned_activations
from cervicyte.evaluation.predictions import softmax
from cervicyte.metrics import LEAST_PROBABILITY
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT, Progress
from cervicyte.training.loop import LabelledImages, balanced_weights
from cervicyte.training.loss import cost_of_classes
from cervicyte.training.recipe import Recipe
from cervicyte.training.start import first_network

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's C; that of the lowest loss on inner folds is taken."""
UNCHOSEN = 1e-2  # where the cells lie in too few groups to choose
INNER_FOLDS = 4
LEAST_SCALE = 1e-9  # of the largest: directions in which the cells do not differ


@dataclass(frozen=True)
class LogisticFit:
    """A fitted regression, on features as they are.

    Attributes:
        weight, bias: float [C, D] and [C]: logits are features times weights plus bias.
        strength: scikit-learn's C.
        inner_loss: mean negative log-likelihood on the inner folds; None if none could be made.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float
    inner_loss: float | None

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities [N, C] for features [N, D]."""
        return softmax(features.astype(np.float64) @ self.weight.T + self.bias)


def fit_logistic(
    features: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[str],
    class_weights: np.ndarray,
    seed: int = 0,
) -> LogisticFit:
    """Fit a regression, as strongly held back as inner folds say.

    Args:
        features: float [N, D].
        targets: int [N], of classes 0 to C - 1, each of which has a cell.
        groups: of each cell; cells of one are never on both sides of an inner fold.
        class_weights: [C], what an error on a cell of each class counts.
        seed: draws the inner folds.
    """
    values = features.astype(np.float64)
    middle, spread = values.mean(0), values.std(0)
    spread[spread == 0] = 1
    # A penalised regression stays within the span of its cells, where it has few coordinates.
    _, scales, axes = np.linalg.svd((values - middle) / spread, full_matrices=False)
    axes = axes[scales > LEAST_SCALE * scales[0]]
    places = ((values - middle) / spread) @ axes.T
    weights = class_weights[targets]

    def fitted(strength: float, chosen: np.ndarray) -> LogisticRegression:
        regression = LogisticRegression(C=strength, max_iter=1000)
        return regression.fit(places[chosen], targets[chosen], weights[chosen])

    strength, loss = UNCHOSEN, None
    folds = _inner_folds(targets, np.asarray(groups), seed)
    if folds:
        losses = [
            np.mean(
                np.concatenate([_losses(fitted(one, ~held), places[held], targets[held]) for held in folds])
            )
            for one in STRENGTHS
        ]
        strength, loss = STRENGTHS[int(np.argmin(losses))], float(min(losses))
    regression = fitted(strength, np.ones(len(values), bool))
    coefficients, intercept = regression.coef_, regression.intercept_
    if len(coefficients) == 1:  # of two classes, the second's logit; half to each is the same
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    weight = coefficients @ axes / spread
    return LogisticFit(weight, intercept - weight @ middle, strength, loss)


def _inner_folds(targets: np.ndarray, groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return which cells each fold holds back, bool [N]; none if a class lies in one group alone."""
    fewest = min(len(set(groups[targets == one])) for one in set(targets.tolist()))
    if fewest < 2:
        return []
    splitter = StratifiedGroupKFold(min(INNER_FOLDS, fewest), shuffle=True, random_state=seed)
    folds = []
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of small classes
        for _, held in splitter.split(targets, targets, groups):
            chosen = np.zeros(len(targets), bool)
            chosen[held] = True
            if 0 < len(held) < len(targets) and len(set(targets[~chosen].tolist())) > 1:
                folds.append(chosen)
    return folds


def _losses(regression: LogisticRegression, places: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return -log of the probability of each cell's class; one that the fold did not train has none."""
    column_of = {int(one): column for column, one in enumerate(regression.classes_)}
    probabilities = regression.predict_proba(places)
    given = [
        probabilities[row, column_of[target]] if target in column_of else 0.0
        for row, target in enumerate(targets.tolist())
    ]
    return -np.log(np.maximum(given, LEAST_PROBABILITY))


@torch.no_grad()
def set_classifier(network: CBAMResNet50, fit: LogisticFit) -> None:
    """Make a regression on the means over the last activations the network's last layer, in place."""
    classes, features = fit.weight.shape
    device = next(network.parameters()).device
    network.fc = nn.Linear(features, classes, device=device).train(network.training)
    network.fc.weight.copy_(torch.from_numpy(fit.weight))
    network.fc.bias.copy_(torch.from_numpy(fit.bias))


def fit_classifier(
    recipe: Recipe,
    training: LabelledImages,
    groups: Sequence[str],
    class_names: Sequence[str],
    progress: Progress = SILENT,
) -> ModelFile:
    """Return the recipe's first network with a classifier fitted on training cells; see the module.

    Args:
        recipe: names backbone or parent, class weights and seed, and what the classifier reads and whether
            the last stage learns too; what is said of training by gradient does not count.
        training: preprocessed as the recipe says.
        groups: of each training cell.
        class_names: in the order of the targets.
        progress: is told of every step.
    """
    network, origin = first_network(recipe, class_names)
    model = ModelFile(network.eval(), tuple(class_names), recipe.preprocessing)
    kind = "logistic regression on the frozen network's features"
    weights = balanced_weights(training.targets, len(class_names), recipe.class_weights)
    costs = (weights * cost_of_classes(class_names, recipe.missed_abnormal_cost)).numpy()
    if recipe.classifier == "last_stage":
        activations = turned_activations(network, training.images, recipe.preprocessing, progress)
        features = last_stage_means(network, activations)
    elif recipe.classifier == "covariance":
        kind = "logistic regression on the covariance of what stands before the network's last stage"
        activations = turned_activations(
            network, training.images, recipe.preprocessing, progress, turns=1, precision="float32"
        )
        network = covariance_network(network, activations[0])
        model = dataclasses.replace(model, network=network)
        features = last_stage_means(network, activations)
    else:
        features = pooled_features(network, training.images, recipe.preprocessing, progress)["stage4"]
    fit = fit_logistic(features, training.targets, groups, costs, recipe.seed)
    set_classifier(network, fit)
    if recipe.classifier == "last_stage":
        train_last_stage(network, activations, training.targets, costs, recipe.seed)
        kind = "logistic regression on the network's features, then the last stage by gradient"
    network.cpu()
    model.metadata = {
        "recipe": recipe.model_dump(mode="json"),
        **origin,
        "device": "cpu",
        "precision": "float32",
        "classifier": {
            "kind": kind,
            "strength": fit.strength,
            "inner_loss": fit.inner_loss,
        },
    }
    return model
