"""What a network sees of an image just before it answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cervicyte.evaluation.feature_space import STAGES
from cervicyte.evaluation.predictions import BATCH
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT, Progress
from cervicyte.training.cells import normalised


def stage_activations(
    network: CBAMResNet50, inputs: Tensor, stages: Sequence[str] = STAGES
) -> dict[str, Tensor]:
    """Return the last activations of each of some stages, float [N, K, h, w].

    Args:
        network: in evaluation mode, on the device of `inputs`.
        inputs: normalised images, float [N, 3, S, S].
        stages: of `stage1` to `stage4`.
    """
    found: dict[str, Tensor] = {}
    activations, done = inputs, None
    for stage in sorted(stages):
        end = [name for name in network.layers if name[-1] == stage[-1]][-1]
        found[stage] = activations = network.features(activations, end, after=done)
        done = end
    return found


def stage_means(network: CBAMResNet50, inputs: Tensor) -> dict[str, Tensor]:
    """Return the means over the last activations of each of `STAGES`, [N, 512] and [N, 2048].

    Arguments are those of `stage_activations`.
    """
    return {stage: values.mean((2, 3)) for stage, values in stage_activations(network, inputs).items()}


@torch.no_grad()  # in inference mode, the weights that it moves could not be differentiated later
def pooled_features(
    network: CBAMResNet50,
    images: np.ndarray,
    preprocessing: Preprocessing,
    progress: Progress = SILENT,
    title: str = "Features",
    before: list[Tensor] | None = None,
) -> dict[str, np.ndarray]:
    """Return of each of `STAGES` the means over its last activations, float32 [N, 512] and [N, 2048].

    The network's logits are its last linear layer, `network.fc`, of those of stage 4.

    Args:
        network: is put into evaluation mode, and on the GPU if there is one.
        images: uint8 [N, S, S, 3], preprocessed.
        preprocessing: that they went through; says how they are normalised.
        progress: is told of every batch.
        title: of the progress.
        before: takes what stands before the last stage, batch by batch, float [n, K, h, w] on the CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.eval().to(device, memory_format=torch.channels_last)
    features: dict[str, list[np.ndarray]] = {stage: [] for stage in STAGES}
    progress.start(title, len(images))
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(np.asarray(images[start : start + BATCH])).permute(0, 3, 1, 2)
        inputs = normalised(batch.to(device), preprocessing)
        found = stage_activations(network, inputs, STAGES if before is None else (*STAGES, "stage3"))
        if before is not None:
            before.append(found.pop("stage3").float().cpu())
        for stage, values in found.items():
            features[stage].append(values.mean((2, 3)).float().cpu().numpy())
        progress.advance(len(batch))
    progress.close()
    return {stage: np.concatenate(batches) for stage, batches in features.items()}


@torch.no_grad()
def logits_of_means(network: CBAMResNet50, means: np.ndarray) -> np.ndarray:
    """Return the logits, float32 [N, classes], for means over the last activations, float32 [N, 2048]."""
    device = next(network.parameters()).device
    logits: np.ndarray = network.fc(torch.from_numpy(means).to(device)).float().cpu().numpy()
    return logits
