"""What a network sees of an image just before it answers."""

from __future__ import annotations

import numpy as np
import torch

from cervicyte.evaluation.predictions import BATCH
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT, Progress
from cervicyte.training.cells import normalised


@torch.inference_mode()
def pooled_features(
    network: CBAMResNet50,
    images: np.ndarray,
    preprocessing: Preprocessing,
    progress: Progress = SILENT,
    title: str = "Features",
) -> np.ndarray:
    """Return the means over the last layer's activations, float32 [N, 2048].

    The last linear layer makes its logits of them, so that `network.fc` gives the answers at no cost.

    Args:
        network: is put into evaluation mode, and on the GPU if there is one.
        images: uint8 [N, S, S, 3], preprocessed.
        preprocessing: that they went through; says how they are normalised.
        progress: is told of every batch.
        title: of the progress.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.eval().to(device, memory_format=torch.channels_last)
    last = network.layers[-1]
    features = np.empty((len(images), network.fc.in_features), np.float32)
    progress.start(title, len(images))
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(np.asarray(images[start : start + BATCH])).permute(0, 3, 1, 2)
        activations = network.features(normalised(batch.to(device), preprocessing), last)
        features[start : start + BATCH] = activations.mean((2, 3)).float().cpu().numpy()
        progress.advance(len(batch))
    progress.close()
    return features
