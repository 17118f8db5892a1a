"""What training makes small: cross-entropy or the focal loss, with classes weighted by what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cervicyte.datasets.classes import grouping_of
from cervicyte.errors import RecipeError
from cervicyte.training.recipe import Recipe

# Keeps the focal loss's gradient finite where a probability is 1 in float32 and gamma below 1.
LEAST_DOUBT = 1e-12


def classification_loss(logits: Tensor, targets: Tensor, class_weights: Tensor, recipe: Recipe) -> Tensor:
    """Return the loss of a batch, averaged over its cells by the weights of their classes.

    Cross-entropy; or the focal loss, which multiplies the term of a class of probability p by
    (1 - p)^gamma, so that cells already told with certainty weigh less (Lin et al., "Focal loss for dense
    object detection", ICCV 2017). With gamma 0 it is the cross-entropy.

    Args:
        logits: [N, C].
        targets: class indices, int64 [N], or the classes' shares of mixed images, float [N, C].
        class_weights: [C].
        recipe: loss, focal_gamma and label_smoothing.
    """
    gamma = recipe.focal_gamma if recipe.loss == "focal" else 0.0
    smoothing = recipe.label_smoothing
    if gamma == 0 and targets.ndim == 1:
        return functional.cross_entropy(logits, targets, weight=class_weights, label_smoothing=smoothing)
    shares = targets if targets.ndim == 2 else functional.one_hot(targets, logits.shape[1]).to(logits)
    smoothed = (1 - smoothing) * shares + smoothing / logits.shape[1]
    log_probabilities = functional.log_softmax(logits, 1)
    doubt = -torch.expm1(log_probabilities)  # 1 - p, exact near 0
    terms = class_weights * smoothed * doubt.clamp_min(LEAST_DOUBT) ** gamma * log_probabilities
    # PyTorch's cross_entropy of shares divides by N; by the weights, as it does for indices, a batch of
    # mixed images counts as much as any other.
    return -terms.sum() / (class_weights * shares).sum()


def cost_of_classes(class_names: Sequence[str], missed_abnormal_cost: float) -> Tensor:
    """Return what an error on a cell of each class costs, float32 [C]: 1 unless the class is abnormal.

    With each class weighted by its cost, the most probable class is the cheapest one to name (Elkan,
    "The foundations of cost-sensitive learning", IJCAI 2001). The probabilities are then those of a
    laboratory that sees so many times more abnormal cells. A weight and not a term for P(normal): that
    one's gradient vanishes where the network is surest of its mistake. To call an abnormal cell benign
    costs as much as to call it normal; between two abnormal classes nothing is shifted.

    Raises:
        RecipeError: errors are to cost differently, and it is not known whether a class is abnormal.
    """
    if missed_abnormal_cost == 1:
        return torch.ones(len(class_names))
    groupings = grouping_of(class_names)
    unknown = [name for name, grouping in groupings.items() if grouping is None]
    if unknown:
        raise RecipeError(
            f"missed_abnormal_cost = {missed_abnormal_cost:g}: whether the class {unknown[0]} is abnormal "
            "is not known, since it is neither SIPaKMeD's nor Herlev's; leave the cost at 1."
        )
    abnormal = [groupings[name] == "abnormal" for name in class_names]
    return torch.where(torch.tensor(abnormal), missed_abnormal_cost, 1.0)
