"""A network's last stage learns from few cells, from where a regression has left the classifier.

A classifier of random weights pulls what stands before it out of shape; one that is fitted first does not
(A. Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR
2022). So `frozen_network.fit_logistic` comes first, and then a few epochs of the last stage, its gates and
the classifier. The statistics of batch normalisation stand still.

All before the last stage stands still too: what it gives is computed once for each quarter turn of the cells.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cervicyte.evaluation.predictions import BATCH
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.precision import computes_in_bfloat16
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT, Progress
from cervicyte.training.cells import normalised

TURNS = 4  # by 90 degrees each
# Chosen on Herlev, on 4 draws of 25 cells a class, see docs/elsewhere.md.
EPOCHS = 6
LEARNING_RATE = 4e-4
STEP = 32  # cells
WEIGHT_DECAY = 0.05
LONGEST_GRADIENT = 1.0


@torch.no_grad()
def turned_activations(
    network: CBAMResNet50,
    images: np.ndarray,
    preprocessing: Preprocessing,
    progress: Progress = SILENT,
    turns: int = TURNS,
    precision: str = "auto",
) -> Tensor:
    """Return what stands before the last stage, [turns, N, K, h, w], of each quarter turn of the images.

    Args:
        network: is put into evaluation mode, and on the GPU if there is one; the result is on the CPU.
        images: uint8 [N, S, S, 3], preprocessed; one at least.
        preprocessing: that they went through; says how they are normalised.
        progress: is told of every batch.
        turns: of each image; the first leaves it as it is.
        precision: `auto`, `float32` or `bfloat16`, see `computes_in_bfloat16`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.eval().to(device, memory_format=torch.channels_last)
    found: Tensor | None = None  # gigabytes of some hundred cells, so that they are written to their place
    progress.start("Features of turned cells", turns * len(images))
    for turn in range(turns):
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(np.asarray(images[start : start + BATCH])).permute(0, 3, 1, 2)
            turned = torch.rot90(batch, turn, (2, 3)).to(device)
            with _autocast(device, precision):
                values = network.features(normalised(turned, preprocessing), _before_last_stage(network))
            if found is None:
                found = torch.empty((turns, len(images), *values.shape[1:]), dtype=values.dtype)
            found[turn, start : start + len(batch)] = values.cpu()
            progress.advance(len(batch))
    progress.close()
    assert found is not None
    return found


@torch.no_grad()
def last_stage_means(network: CBAMResNet50, activations: Tensor) -> np.ndarray:
    """Return the means over the last activations, float32 [N, 2048], and over the turns.

    Args:
        network: in evaluation mode.
        activations: see `turned_activations`.
    """
    before, last = _before_last_stage(network), network.layers[-1]
    device = next(network.parameters()).device
    total = torch.zeros(activations.shape[1], network.fc.in_features)
    for turn in activations:
        means = []
        for batch in turn.split(BATCH):
            with _autocast(device):
                means.append(
                    network.features(batch.to(device), last, after=before).float().mean((2, 3)).cpu()
                )
        total += torch.cat(means)
    return np.asarray((total / len(activations)).numpy())


def train_last_stage(
    network: CBAMResNet50, activations: Tensor, targets: np.ndarray, class_weights: np.ndarray, seed: int = 0
) -> None:
    """Train the last stage, its gates and the classifier, in place; in the end nothing more can learn.

    Args:
        network: with a fitted classifier, on the device to train on.
        activations: of the training cells, see `turned_activations`.
        targets: int [N], class indices.
        class_weights: [C], what an error on a cell of each class counts.
        seed: draws the order of the cells, and the turn of each in each epoch.
    """
    before = _before_last_stage(network)
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    network.eval().requires_grad_(False)
    learning = [network.get_submodule(name) for name in network.layers[network.layers.index(before) + 1 :]]
    learning.append(network.fc)
    parameters = [parameter for module in learning for parameter in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        [
            {"params": [one for one in parameters if one.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [one for one in parameters if one.ndim == 1], "weight_decay": 0.0},
        ]
    )
    weights = torch.as_tensor(class_weights, dtype=torch.float32, device=device)
    truth = torch.as_tensor(targets, dtype=torch.int64)
    parts = max(1, round(len(truth) / STEP))
    for epoch in range(EPOCHS):
        order = torch.randperm(len(truth), generator=generator)
        for part, chosen in enumerate(order.tensor_split(parts)):
            step = epoch * parts + part
            warm = min(1.0, (step + 1) / (parts + 1))
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * warm * (1 + math.cos(math.pi * step / (EPOCHS * parts))) / 2
            turns = torch.randint(len(activations), (len(chosen),), generator=generator)
            with _autocast(device):
                logits = network.logits_from(activations[turns, chosen].to(device), before)
            loss = functional.cross_entropy(logits.float(), truth[chosen].to(device), weights)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
            optimiser.step()
    network.requires_grad_(False)


@torch.no_grad()
def last_stage_logits(network: CBAMResNet50, activations: Tensor) -> np.ndarray:
    """Return the logits, float32 [N, classes], for activations before the last stage, [N, K, h, w]."""
    device = next(network.parameters()).device
    logits = []
    for batch in activations.split(BATCH):
        with _autocast(device):
            logits.append(network.logits_from(batch.to(device), _before_last_stage(network)).float().cpu())
    return np.asarray(torch.cat(logits).numpy())


def _before_last_stage(network: CBAMResNet50) -> str:
    return network.layers[network.layers.index("layer4") - 1]


def _autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16(precision))
