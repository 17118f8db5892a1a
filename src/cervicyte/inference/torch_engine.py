"""torch as an engine: the network itself, against which all others are compared."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cervicyte.evaluation.features import stage_activations
from cervicyte.explanation.controls import network_input
from cervicyte.inference.engines import Engine, Precision
from cervicyte.network.graph import Output
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import folded

# Not measured; half of what `benchmarks/gpu_speed.py` asks for at once, and more than `predict` does.
AT_ONCE_ON_A_GPU = 128


class TorchEngine(Engine):
    """The network on the device where it lies, as it is in float32, or a copy of it in bfloat16.

    Attributes:
        at_once: images that go through the network together, of those that it is asked for at once.
    """

    name = "torch"
    package = "torch"
    extra = "train"
    precisions = ("float32", "bfloat16")

    def __init__(self, model: ModelFile, precision: Precision = "float32") -> None:
        """Take a model whose network lies on its device, in evaluation mode.

        Raises:
            UsageError: there is no such precision.
        """
        self.refuse_unusable(precision)
        self.precision = precision
        self._model = model
        self._network = model.network
        if precision == "bfloat16":
            network = folded(model.network).to(torch.bfloat16, memory_format=torch.channels_last)
            network.fc = copy.deepcopy(model.network.fc)  # next to no work, and most to lose
            self._network = network
        self.at_once = AT_ONCE_ON_A_GPU if next(model.network.parameters()).is_cuda else None

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`; devices round otherwise."""
        return super().describe() | {"device": self._network.conv1.weight.device.type}

    @torch.inference_mode()
    def run(self, images: np.ndarray, evidence: bool = False) -> Output:
        """See `Engine.run`."""
        # Fetched once all are on their way: a GPU computes one part while the next is copied to it.
        count = max(1, len(images))  # no images are one part
        step = self.at_once or count
        parts = [self._computed(images[start : start + step], evidence) for start in range(0, count, step)]
        logits, stage2, stage4, *shares = (_array(torch.cat(found)) for found in zip(*parts, strict=True))
        return Output(logits, {"stage2": stage2, "stage4": stage4}, shares[0] if shares else None)

    def _computed(self, images: np.ndarray, evidence: bool) -> list[Tensor]:
        network = self._network
        inputs = network_input(self._model, images)
        activations = stage_activations(network, inputs.to(network.conv1.weight.dtype))
        # A mean in bfloat16 would round once more.
        means = {stage: values.mean((2, 3), dtype=torch.float32) for stage, values in activations.items()}
        logits = network.fc(means["stage4"])
        shares = [self._evidence(activations["stage4"].float())] if evidence else []
        return [logits, means["stage2"], means["stage4"], *shares]

    def _evidence(self, last: Tensor) -> Tensor:
        shares = self._network.fc.weight[:, :, None, None] / (last.shape[2] * last.shape[3])
        return conv2d(last, shares)


def _array(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.float().cpu().numpy()
    return found
