"""Maps that know nothing of what the network learnt: what a real explanation must beat.

- centre: a blob in the middle. Crops are centred on their cell, so that looking at the middle is half
  the answer already.
- darkness: the image's own darkness. Nuclei are dark, so that any edge or stain detector finds them.
- random: the same method at the same layer of a network of the same shape that has learnt nothing
  (J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from cervicyte.explanation import cam
from cervicyte.images.quality import LUMINANCE
from cervicyte.network import plain
from cervicyte.network.description import Placement
from cervicyte.network.frozen import FrozenModel

if TYPE_CHECKING:  # an engine's maps have controls where there is no torch, too
    import torch
    from torch import Tensor, nn

    from cervicyte.network.model_file import ModelFile
    from cervicyte.network.resnet import CBAMResNet50

CONTROLS = ("centre", "darkness", "random")
CENTRE_SIGMA = 0.25  # of the input's side
DARKNESS_SIGMA = 1 / 32  # of the input's side: the grain of the last layer's maps, not single pixels
RANDOM_SEED = 0
AT_ONCE = 32  # images in one pass through a network


def control_maps(
    model: ModelFile | FrozenModel,
    inputs: np.ndarray,
    targets: Sequence[cam.Target],
    method: str,
    layer: str,
) -> dict[str, np.ndarray]:
    """Return each control's maps, float32 [N, h, w], by the names in `CONTROLS`.

    Args:
        model: whose explanation is held against them.
        inputs: preprocessed images, uint8 [N, S, S, 3], RGB.
        targets: what was explained, of each image.
        method, layer: of the explanation; the random network is asked for the same.
    """
    blob = centre_blob(inputs.shape[1])
    if isinstance(model, FrozenModel):
        random = _plain_random_maps(model, inputs, targets)
    else:
        twin = random_twin(model.network)
        random = class_maps(twin, model, inputs, targets, (method,), (layer,))[method, layer]
    return {
        "centre": np.repeat(blob[np.newaxis], len(inputs), axis=0),
        "darkness": np.stack([darkness(image) for image in inputs]),
        "random": random,
    }


def centre_blob(side: int) -> np.ndarray:
    """Return a Gaussian in the middle, float32 [S, S], at most 1."""
    along = (np.arange(side) + 0.5) / side - 0.5
    squared = along[:, np.newaxis] ** 2 + along**2
    return np.exp(-squared / (2 * CENTRE_SIGMA**2)).astype(np.float32)


def darkness(image: np.ndarray) -> np.ndarray:
    """Return how dark the surroundings of each pixel are, float32 [S, S], 0 to 255."""
    dark = (255 - image @ LUMINANCE).astype(np.float32)
    return cv2.GaussianBlur(dark, (0, 0), max(0.5, DARKNESS_SIGMA * len(image)))


def _plain_random_maps(model: FrozenModel, inputs: np.ndarray, targets: Sequence[cam.Target]) -> np.ndarray:
    """Return at the last layer what random weights make of images, without torch."""
    weights = plain.drawn(len(model.class_names), model.placement, RANDOM_SEED, model.kind)
    found: dict[bytes, np.ndarray] = {}
    for image in inputs:
        if image.tobytes() not in found:
            evidence = plain.computed(weights, model.preprocessing, image[np.newaxis]).evidence
            assert evidence is not None
            found[image.tobytes()] = evidence[0]
    return np.stack(
        [
            cam.evidence_for(found[image.tobytes()], target).clip(min=0)
            for image, target in zip(inputs, targets, strict=True)
        ]
    )


def random_twin(network: CBAMResNet50) -> CBAMResNet50:
    """Return a network of the same shape, on the same device, with random weights: kept once a process."""
    device = next(network.parameters()).device
    return _random_network(network.kind, network.fc.out_features, network.placement, device)


@functools.lru_cache(maxsize=2)
def _random_network(kind: str, class_count: int, placement: Placement, device: torch.device) -> CBAMResNet50:
    import torch

    from cervicyte.network.resnet import NETWORKS

    # Made without values first: the constructor would draw from the generator that all threads share.
    with torch.device("meta"):
        network = NETWORKS[kind](class_count, placement)
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    randomise(network, torch.Generator().manual_seed(RANDOM_SEED))
    return network.to(device, memory_format=torch.channels_last)


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Give all layers of a module the random weights that training from nothing begins with, in place.

    Convolutions are drawn as by K. He et al., "Delving Deep into Rectifiers", ICCV 2015, for the number
    of outputs; normalisation becomes none. A gate's last layer, which our training begins with zeros, is
    drawn too: a gate that is one half everywhere would be no control of a gate.
    """
    from torch import nn

    from cervicyte.network.cbam import CBAM

    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        elif isinstance(part, nn.Linear):
            nn.init.kaiming_uniform_(part.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(part.bias)
        elif isinstance(part, CBAM):
            nn.init.normal_(part.spatial_attention.conv.weight, std=0.1, generator=generator)


def class_maps(
    network: CBAMResNet50,
    model: ModelFile,
    inputs: np.ndarray,
    targets: Sequence[cam.Target],
    methods: tuple[str, ...],
    layers: tuple[str, ...],
) -> dict[tuple[str, str], np.ndarray]:
    """Return (method, layer) -> maps of what speaks for each image's own target, float32 [N, h, w].

    Args:
        network: the model's own or one of its shape.
        model: whose preprocessing the inputs went through.
        inputs: preprocessed images, uint8 [N, S, S, 3], RGB.
        targets: class index or contrast of each image.
        methods: of `cam.METHODS`.
        layers: of the network's.
    """
    import torch

    found: dict[tuple[str, str], list[np.ndarray]] = {
        (method, layer): [] for method in methods for layer in layers
    }
    for start in range(0, len(inputs), AT_ONCE):
        batch = network_input(model, inputs[start : start + AT_ONCE])
        wanted = list(targets[start : start + AT_ONCE])
        different = list(dict.fromkeys(wanted))
        of_image = torch.tensor([different.index(target) for target in wanted], device=batch.device)
        rows = torch.arange(len(batch), device=batch.device)
        derivatives = cam.differentiate(network, batch, layers, different)
        for method, layer in found:
            gradients = derivatives.gradients[layer][rows, of_image][:, None]
            maps = cam.method_named(method).maps(derivatives.activations[layer], gradients)
            found[method, layer].append(maps[:, 0].cpu().numpy())
    return {key: np.concatenate(parts) for key, parts in found.items()}


def network_input(model: ModelFile, inputs: np.ndarray) -> Tensor:
    """Map preprocessed images, uint8 [N, S, S, 3], to the network's float32 input on its device."""
    import torch

    from cervicyte.training.cells import normalised

    device = next(model.network.parameters()).device
    batch = torch.from_numpy(np.ascontiguousarray(inputs))
    to_gpu = device.type == "cuda"
    if to_gpu:  # from pinned memory a GPU fetches several times as fast, and all threads copy there
        batch = batch.pin_memory()
    batch = batch.to(device, non_blocking=to_gpu).permute(0, 3, 1, 2)
    return normalised(batch, model.preprocessing)
