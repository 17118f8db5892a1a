"""Makes a network that reads textures of one that has learnt: pooling by covariance, fitted to a few cells.

What a network's last stage gives is made for the classes that it was trained on. The stage before it knows
textures of all kinds, and how they vary together tells classes apart that the last stage does not, see
docs/elsewhere.md. Which combinations of its channels count is found on the cells at hand: those along which
they differ most among all places of all cells, brought to variance 1 (principal components).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cervicyte.errors import RecipeError
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.graph import COMBINATIONS
from cervicyte.network.resnet import CBAMResNet50, CBAMResNet50Covariance
from cervicyte.progress import SILENT, Progress
from cervicyte.training.cells import normalised

LEAST_VARIANCE = 1e-6  # of the largest: along less, cells do not differ
CELLS_AT_ONCE = 64


@torch.no_grad()
def activations_before(
    network: CBAMResNet50, images: np.ndarray, preprocessing: Preprocessing, progress: Progress = SILENT
) -> Tensor:
    """Return what stands before the last stage, float32 [N, K, h, w] on the CPU, computed in float32.

    Args:
        network: is put into evaluation mode, and on the GPU if there is one.
        images: uint8 [N, S, S, 3], preprocessed; one at least.
        preprocessing: that they went through; says how they are normalised.
        progress: is told of every batch.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.eval().to(device, memory_format=torch.channels_last)
    end = network.layers[network.layers.index("layer4") - 1]
    found: Tensor | None = None
    progress.start("Features", len(images))
    for start in range(0, len(images), CELLS_AT_ONCE):
        batch = torch.from_numpy(np.asarray(images[start : start + CELLS_AT_ONCE])).permute(0, 3, 1, 2)
        values = network.features(normalised(batch.to(device), preprocessing), end)
        if found is None:
            found = torch.empty(len(images), *values.shape[1:])
        found[start : start + len(batch)] = values.cpu()
        progress.advance(len(batch))
    progress.close()
    assert found is not None
    return found


@torch.no_grad()
def covariance_means(network: CBAMResNet50Covariance, activations: Tensor) -> np.ndarray:
    """Return what the classifier of such a network reads, float32 [N, K²]: see `activations_before`."""
    device = next(network.parameters()).device
    means = [
        network.layer4(batch.to(device)).mean((2, 3)).cpu() for batch in activations.split(CELLS_AT_ONCE)
    ]
    return np.asarray(torch.cat(means).numpy())


@torch.no_grad()
def covariance_network(network: CBAMResNet50, activations: Tensor) -> CBAMResNet50Covariance:
    """Return a network with pooling by covariance in place of the last stage; its classifier is random.

    Args:
        network: whose stages before the last are taken as they are; it is not changed.
        activations: of the cells to fit to, before its last stage, [N, K, h, w], see
            `activations_before`.

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
