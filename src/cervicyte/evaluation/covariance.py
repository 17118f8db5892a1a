"""Makes a network that reads textures of one that has learnt: pooling by covariance, fitted to a few cells.

What a network's last stage gives is made for the classes that it was trained on. The stage before it knows
textures of all kinds, and how they vary together tells classes apart that the last stage does not, see
docs/elsewhere.md. Which combinations of its channels count is found on the cells at hand: those along which
they differ most among all places of all cells, brought to variance 1 (principal components).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cervicyte.errors import RecipeError
from cervicyte.network.graph import COMBINATIONS
from cervicyte.network.resnet import CBAMResNet50, CBAMResNet50Covariance

LEAST_VARIANCE = 1e-6  # of the largest: along less, cells do not differ
CELLS_AT_ONCE = 64


@torch.no_grad()
def covariance_network(network: CBAMResNet50, activations: Tensor) -> CBAMResNet50Covariance:
    """Return a network with pooling by covariance in place of the last stage; its classifier is random.

    Args:
        network: whose stages before the last are taken as they are; it is not changed.
        activations: of the cells to fit to, before its last stage, float32 [N, K, h, w], see
            `last_stage.turned_activations`.

    Raises:
        RecipeError: it is of another kind, whose stages are others.
    """
    if network.kind not in (CBAMResNet50.kind, CBAMResNet50Covariance.kind):
        raise RecipeError(
            f"classifier = 'covariance' will not do: the model to start from is a {network.kind}, and "
            f"this is made of a {CBAMResNet50.kind}; choose logistic."
        )
    device = next(network.parameters()).device
    made = CBAMResNet50Covariance(network.fc.out_features, network.placement)
    taken = made.state_dict()
    for name, value in network.state_dict().items():
        if name in taken and not name.startswith(("layer4", "fc")):
            taken[name] = value
    made.load_state_dict(taken)
    made.layer4.project.weight.copy_(combinations_of(activations)[:, :, None, None])
    made.eval().to(device, memory_format=torch.channels_last)
    return made


def combinations_of(activations: Tensor, count: int = COMBINATIONS) -> Tensor:
    """Return combinations of channels that vary most over all places, float32 [count, K], each of variance 1.

    Args:
        activations: [N, K, h, w].
        count: of combinations, at most K.
    """
    channels = activations.shape[1]
    places = len(activations) * activations.shape[2] * activations.shape[3]
    total, products = torch.zeros(channels).double(), torch.zeros(channels, channels).double()
    for batch in activations.split(CELLS_AT_ONCE):
        values = batch.movedim(1, -1).reshape(-1, channels).double()
        total += values.sum(0)
        products += values.T @ values
    mean = total / places
    variances, directions = torch.linalg.eigh(products / places - torch.outer(mean, mean))
    variances, directions = variances.flip(0)[:count], directions.flip(1)[:, :count]
    # The sign of a direction is a matter of rounding: the largest part is made positive.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * largest.sign()
    least = max(float(variances[0]) * LEAST_VARIANCE, torch.finfo(torch.float32).tiny)
    return (directions / variances.clamp(min=least).sqrt()).T.float()
