"""The network once more, in NumPy alone: what engines are held against where there is no torch.

Slow, some tenths of a second an image, and plain enough to be read beside `resnet.py`, whose description of
the network is the one that counts: a test holds both together. Imports neither torch nor any engine.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.description import COVARIANCE_NETWORK, DEFAULT_NETWORK, Placement
from cervicyte.network.graph import (
    COMBINATIONS,
    EPSILON,
    ITERATIONS,
    MEANS_OF,
    PROJECTION,
    RIDGE,
    STAGE_BLOCKS,
    Output,
)

STAGE_CHANNELS = (256, 512, 1024, 2048)
EXPANSION = 4  # a block's outputs over the channels inside it
REDUCTION = 16  # of the channels in a channel gate
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of the weights, what no training changes
KINDS = (DEFAULT_NETWORK, COVARIANCE_NETWORK)  # of networks that are computed here
Weights = Mapping[str, np.ndarray]


def computed(weights: Weights, preprocessing: Preprocessing, images: np.ndarray) -> Output:
    """Return what a network makes of images.

    Args:
        weights: under their names in `CBAMResNet50`, see `shapes_of`; float32.
        preprocessing: that the images went through; says how they are normalised.
        images: uint8 [N, S, S, 3], RGB.
    """
    x = np.ascontiguousarray(preprocessing.normalise(images).transpose(0, 2, 3, 1))  # [N, H, W, K] from here
    x = _relu(_normalised(weights, "bn1", _convolution(weights, "conv1", x, stride=2)))
    x = _windows(x, side=3, stride=2, fill=-np.inf).max((-2, -1))
    means: dict[str, np.ndarray] = {}
    for stage, blocks in enumerate(STAGE_BLOCKS, start=1):
        if stage == len(STAGE_BLOCKS) and PROJECTION in weights:
            x = _covariance(weights, x)
        else:
            for block in range(blocks):
                name = f"layer{stage}.{block}"
                x = _bottleneck(weights, name, x, stride=2 if stage > 1 and block == 0 else 1)
        x = _gated(weights, f"cbam{stage}", x)
        if stage in MEANS_OF:
            means[f"stage{stage}"] = x.mean((1, 2))
    weight = weights["fc.weight"]
    logits = means["stage4"] @ weight.T + weights["fc.bias"]
    evidence = (x @ weight.T / (x.shape[1] * x.shape[2])).transpose(0, 3, 1, 2)
    return Output(logits, means, np.ascontiguousarray(evidence))


def shapes_of(
    class_count: int, placement: Placement, kind: str = DEFAULT_NETWORK
) -> dict[str, tuple[int, ...]]:
    """Return the name and the shape of each weight, in the order of torch's state dict.

    Example:
        >>> shapes = shapes_of(5, "stage")
        >>> next(iter(shapes.items())), shapes["fc.bias"]
        (('conv1.weight', (64, 3, 7, 7)), (5,))
    """
    return dict(_shapes(class_count, placement, kind))


def parameter_count(class_count: int, placement: Placement, kind: str = DEFAULT_NETWORK) -> int:
    """Return how many numbers training may change."""
    shapes = shapes_of(class_count, placement, kind)
    return sum(math.prod(shape) for name, shape in shapes.items() if name.split(".")[-1] not in BUFFERS)


@functools.lru_cache(maxsize=2)
def drawn(class_count: int, placement: Placement, seed: int, kind: str = DEFAULT_NETWORK) -> Weights:
    """Return random weights, as training from nothing begins with, but for gates, which are drawn, too.

    Convolutions as by K. He et al., "Delving Deep into Rectifiers", ICCV 2015, for the number of outputs.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in _shapes(class_count, placement, kind):
        if name.endswith("spatial_attention.conv.weight"):
            value = rng.normal(0, 0.1, shape)
        elif len(shape) == 4:
            value = rng.normal(0, math.sqrt(2 / (shape[0] * shape[2] * shape[3])), shape)
        elif name == "fc.weight":
            value = rng.uniform(-1, 1, shape) / math.sqrt(shape[1])
        else:
            value = np.full(shape, float(name.endswith(("running_var", "weight"))))
        weights[name] = value.astype(np.float32)
    return weights


def _shapes(class_count: int, placement: Placement, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    stages = list(enumerate(zip(STAGE_BLOCKS, STAGE_CHANNELS, strict=True), start=1))
    if pools := kind == COVARIANCE_NETWORK:
        stages.pop()
    yield "conv1.weight", (64, 3, 7, 7)
    yield from _of_normalisation("bn1", 64)
    inputs = 64
    for stage, (blocks, outputs) in stages:
        for block in range(blocks):
            yield from _of_bottleneck(f"layer{stage}.{block}", inputs, outputs, placement == "block")
            inputs = outputs
    if pools:
        yield PROJECTION, (COMBINATIONS, inputs, 1, 1)
        inputs = COMBINATIONS**2
    yield "fc.weight", (class_count, inputs)
    yield "fc.bias", (class_count,)
    if placement == "stage":
        for stage, (_, channels) in stages:
            yield from _of_gates(f"cbam{stage}", channels)


def _of_bottleneck(
    name: str, inputs: int, outputs: int, gated: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    planes = outputs // EXPANSION
    for place, shape in enumerate(
        ((planes, inputs, 1, 1), (planes, planes, 3, 3), (outputs, planes, 1, 1)), start=1
    ):
        yield f"{name}.conv{place}.weight", shape
        yield from _of_normalisation(f"{name}.bn{place}", shape[0])
    if name.endswith(".0"):
        yield f"{name}.downsample.0.weight", (outputs, inputs, 1, 1)
        yield from _of_normalisation(f"{name}.downsample.1", outputs)
    if gated:
        yield from _of_gates(f"{name}.cbam", outputs)


def _of_gates(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = channels // REDUCTION
    yield f"{name}.channel_attention.fc.0.weight", (hidden, channels, 1, 1)
    yield f"{name}.channel_attention.fc.2.weight", (channels, hidden, 1, 1)
    yield f"{name}.spatial_attention.conv.weight", (1, 2, 7, 7)


def _of_normalisation(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def _bottleneck(weights: Weights, name: str, x: np.ndarray, stride: int) -> np.ndarray:
    def layer(x: np.ndarray, convolution: str, normalisation: str, stride: int = 1) -> np.ndarray:
        out = _convolution(weights, f"{name}.{convolution}", x, stride)
        return _normalised(weights, f"{name}.{normalisation}", out)

    out = _relu(layer(x, "conv1", "bn1"))
    out = _relu(layer(out, "conv2", "bn2", stride))
    out = _gated(weights, f"{name}.cbam", layer(out, "conv3", "bn3"))
    if f"{name}.downsample.0.weight" in weights:
        x = layer(x, "downsample.0", "downsample.1", stride)
    return _relu(out + x)


def _covariance(weights: Weights, x: np.ndarray) -> np.ndarray:
    """Pool by covariance, see `covariance.CovariancePooling`."""
    count, height, width, _ = x.shape
    y = (x @ weights[PROJECTION][:, :, 0, 0].T).reshape(count, height * width, -1)
    y = y - y.mean(1, keepdims=True)
    identity = np.eye(y.shape[2], dtype=np.float32)
    covariance = y.transpose(0, 2, 1) @ y / np.float32(y.shape[1]) + np.float32(RIDGE) * identity
    trace = covariance.trace(axis1=1, axis2=2)[:, np.newaxis, np.newaxis]
    root, inverse = covariance / trace, identity[np.newaxis]
    for _ in range(ITERATIONS):
        step = np.float32(1.5) * identity - np.float32(0.5) * (inverse @ root)
        root, inverse = root @ step, step @ inverse
    inverse = inverse / np.sqrt(trace)
    turned = y @ inverse  # symmetric
    product = y[:, :, :, np.newaxis] * turned[:, :, np.newaxis]
    both = (product + product.transpose(0, 1, 3, 2)) / 2
    parts = both + np.float32(RIDGE) * inverse[:, np.newaxis]
    return parts.reshape(count, height, width, -1)


def _gated(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Apply the channel gate and the spatial gate, where the network has them."""
    if f"{name}.spatial_attention.conv.weight" not in weights:
        return x
    first, second = (weights[f"{name}.channel_attention.fc.{place}.weight"][:, :, 0, 0] for place in (0, 2))
    asked = [_relu(pooled @ first.T) @ second.T for pooled in (x.mean((1, 2)), x.max((1, 2)))]
    x = x * _sigmoid(asked[0] + asked[1])[:, np.newaxis, np.newaxis]
    summary = np.stack([x.mean(3), x.max(3)], axis=3)
    return x * _sigmoid(_convolution(weights, f"{name}.spatial_attention.conv", summary))


def _convolution(weights: Weights, name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
    weight = weights[f"{name}.weight"]
    windows = _windows(x, weight.shape[2], stride)
    return windows.reshape(*windows.shape[:3], -1) @ weight.reshape(len(weight), -1).T


def _windows(x: np.ndarray, side: int, stride: int, fill: float = 0.0) -> np.ndarray:
    """Return what each output sees of x [N, H, W, K]: [N, H', W', K, side, side]."""
    edge = (side // 2, side // 2)
    padded = np.pad(x, ((0, 0), edge, edge, (0, 0)), constant_values=fill)
    return sliding_window_view(padded, (side, side), axis=(1, 2))[:, ::stride, ::stride]


def _normalised(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    scale, shift, mean, variance = (
        weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / np.sqrt(variance + np.float32(EPSILON))
    return x * factor + (shift - mean * factor)


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # Not by exp(-x) alone, which overflows where a gate is shut.
    return (0.5 * (1 + np.tanh(x / 2))).astype(x.dtype)
