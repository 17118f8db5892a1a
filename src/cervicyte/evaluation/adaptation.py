"""Fits a model to another laboratory's images without labels.

A network's batch normalisation holds the mean and the variance of each channel among the training cells.
Another stain or camera shifts both. They are measured anew on the laboratory's images and blended with the
training cells' own, which stand for a number of images themselves: few images move them little (S. Schneider
et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020). The
light where the glass is clear is brought to that of the training cells. Small crops stay small, see
`framing`. What is usual, by which an image is called unlike the training cells, is measured on the
laboratory's images too.

Nothing else changes: no weight is trained, and calibration stays that of the training laboratory.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cervicyte.errors import UsageError
from cervicyte.evaluation.familiarity import FEWEST_IMAGES, Familiarity, distances_of, fit_familiarity
from cervicyte.evaluation.features import pooled_features
from cervicyte.evaluation.framing import framed
from cervicyte.images.preprocessing import LARGEST_GAIN, Preprocessing
from cervicyte.images.statistics import background_of, image_statistics
from cervicyte.network.heads import without_other_heads
from cervicyte.network.model_file import ModelFile, weights_hash
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.pages import counted
from cervicyte.progress import SILENT, Progress
from cervicyte.training.cells import normalised

TRAINING_COUNTS_FOR = 150  # images; this and the next were chosen on Herlev, see docs/elsewhere.md
LARGEST_SHARE = 0.5
BATCH = 64
SEED = 0


def share_of(images: int) -> float:
    """Return the weight of the laboratory's statistics, in [0, 1], by the number of its images."""
    return min(LARGEST_SHARE, images / (images + TRAINING_COUNTS_FOR))


def adapted(
    model: ModelFile,
    images: Sequence[np.ndarray],
    *,
    share: float | None = None,
    white_point: bool = True,
    framing: bool = True,
    progress: Progress = SILENT,
) -> ModelFile:
    """Return a copy of a model that is fitted to a laboratory's images; the model itself is not changed.

    Args:
        model: any; where it carries familiarity, that is fitted anew.
        images: uint8 [H, W, 3], RGB, of any sizes and, as far as one can tell, of all kinds of cells: what
            most of them are is taken for usual.
        share: weight of the new statistics, in [0, 1]; None goes by the number of images, see `share_of`.
        white_point: bring the light where the glass is clear to the training cells', if the model knows it.
        framing: keep small crops small, see `framing`, if the model knows its training cells' size.
        progress: is told of every batch.

    Returns:
        The model, with `metadata["adaptation"]` that says what was done.

    Raises:
        UsageError: there are fewer than two images.
    """
    if len(images) < 2:
        raise UsageError(
            f"{counted(len(images), 'image', 'is', 'are')} too few to adapt to; give {FEWEST_IMAGES} or more."
        )
    model = without_other_heads(model)  # theirs would be answers of a network that is no more
    share = share_of(len(images)) if share is None else share
    background = np.median([background_of(image) for image in images], axis=0)
    preprocessing, metadata = model.preprocessing, copy.deepcopy(model.metadata)
    if white_point and metadata.get("background"):
        wanted = np.asarray(metadata["background"]) * preprocessing.gain
        gain = np.clip(wanted / np.maximum(background, 1), 1 / LARGEST_GAIN, LARGEST_GAIN)
        preprocessing = preprocessing.model_copy(update={"gain": tuple(float(f"{one:.4f}") for one in gain)})
        # The light that the new gain brings to what is wanted, so that who adapts once more wants the same.
        metadata["background"] = [float(one) for one in wanted / preprocessing.gain]
    if framing:
        preprocessing = preprocessing.model_copy(update={"least_side": framed(model).least_side})
    network = copy.deepcopy(model.network)
    inputs = np.stack([preprocessing(image) for image in images])
    blend_normalisation(network, inputs, preprocessing, share, progress)
    made = ModelFile(
        network,
        model.class_names,
        preprocessing,
        model.epoch,
        model.best_validation_accuracy,
        metadata,
        dict(model.tensors),
        model.original,
    )
    made.metadata["adaptation"] = {
        "images": len(images),
        "share": share,
        "gain": list(preprocessing.gain),
        "least_side": preprocessing.least_side,
        "background": [float(level) for level in background],
        "of_weights_sha256": weights_hash(model.network),
    }
    if usual := model.metadata.get("familiarity"):
        familiarity = Familiarity.from_parts(usual, model.tensors, "The model's familiarity")
        familiarity = _usual_here(familiarity, network, preprocessing, images, inputs, progress)
        made.metadata["familiarity"] = familiarity.to_json()
        made.tensors |= familiarity.tensors()
    return made


def _usual_here(
    familiarity: Familiarity,
    network: CBAMResNet50,
    preprocessing: Preprocessing,
    images: Sequence[np.ndarray],
    inputs: np.ndarray,
    progress: Progress,
) -> Familiarity:
    """Return what is usual among the laboratory's images, still by their distance to the training cells."""
    features = pooled_features(network, inputs, preprocessing, progress)
    statistics = np.array([image_statistics(image) for image in images])
    return fit_familiarity(
        familiarity.spaces,
        statistics,
        distances_of(familiarity.spaces, features),
        statistics,
        [str(place) for place in range(len(images))],  # which images belong together is not known
    )


# --- batch normalisation -----------------------------------------------------------------------


@torch.inference_mode()
def blend_normalisation(
    network: CBAMResNet50,
    images: np.ndarray,
    preprocessing: Preprocessing,
    share: float,
    progress: Progress = SILENT,
) -> None:
    """Blend the statistics of every batch normalisation with those of images, in place.

    Each layer is measured behind layers that are blended already, batch by batch, so that what it meets in
    use is what it was measured on.

    Args:
        network: is put into evaluation mode.
        images: uint8 [N, S, S, 3], preprocessed, at least two.
        preprocessing: that they went through.
        share: weight of the images' statistics, in [0, 1].
        progress: is told of every batch.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    network.eval()
    device = next(network.parameters()).device
    order = np.random.default_rng(SEED).permutation(len(images))  # folders are sorted, often by kind
    batches = np.array_split(order, max(1, round(len(order) / BATCH)))
    sums = {layer: torch.zeros(2, layer.num_features, device=device) for layer in layers}

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(layer, nn.BatchNorm2d)
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)
        sums[layer] += torch.stack([mean, variance]) * (len(inputs[0]) / len(images))
        return functional.batch_norm(
            inputs[0], *_blended(layer, mean, variance, share), layer.weight, layer.bias, eps=layer.eps
        )

    hooks = [layer.register_forward_hook(measure) for layer in layers]
    progress.start("Measuring the laboratory's images", len(images))
    try:
        for batch in batches:
            network(normalised(torch.from_numpy(images[batch]).permute(0, 3, 1, 2).to(device), preprocessing))
            progress.advance(len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    progress.close()
    for layer in layers:
        mean, variance = sums[layer]
        layer.running_mean, layer.running_var = _blended(layer, mean, variance, share)


def _blended(layer: nn.BatchNorm2d, mean: Tensor, variance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return (
        torch.lerp(layer.running_mean, mean, share),
        torch.lerp(layer.running_var, variance, share),
    )
