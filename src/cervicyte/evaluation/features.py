"""What a network sees of an image just before it answers."""

from __future__ import annotations

import numpy as np
import torch

from cervicyte.evaluation.predictions import BATCH
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT, Progress
from cervicyte.training.cells import normalised

STAGES = ("stage2", "stage4")
"""Of which means are kept: the second has colours and textures, the last what they add up to."""


@torch.inference_mode()
def pooled_features(
    network: CBAMResNet50,
    images: np.ndarray,
    preprocessing: Preprocessing,
    progress: Progress = SILENT,
    title: str = "Features",
) -> dict[str, np.ndarray]:
    """Return of each of `STAGES` the means over its last activations, float32 [N, 512] and [N, 2048].

    The network's logits are its last linear layer, `network.fc`, of those of stage 4.

    Args:
        network: is put into evaluation mode, and on the GPU if there is one.
        images: uint8 [N, S, S, 3], preprocessed.
        preprocessing: that they went through; says how they are normalised.
        progress: is told of every batch.
        title: of the progress.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.eval().to(device, memory_format=torch.channels_last)
    ends = {stage: [name for name in network.layers if name[-1] == stage[-1]][-1] for stage in STAGES}
    features: dict[str, list[np.ndarray]] = {stage: [] for stage in STAGES}
    progress.start(title, len(images))
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(np.asarray(images[start : start + BATCH])).permute(0, 3, 1, 2)
        activations, done = normalised(batch.to(device), preprocessing), None
        for stage, end in ends.items():
            activations = network.features(activations, end, after=done)
            features[stage].append(activations.mean((2, 3)).float().cpu().numpy())
            done = end
        progress.advance(len(batch))
    progress.close()
    return {stage: np.concatenate(batches) for stage, batches in features.items()}
