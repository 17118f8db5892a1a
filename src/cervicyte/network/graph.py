"""The network as an ONNX graph, written from its weights alone: for engines that need no torch.

The graph takes images as preprocessing leaves them and normalises them itself, so that no user of it can do
so wrongly. Each batch normalisation is folded into its convolution, in float64. The description of the
network in `resnet.py` is the one that counts: a test holds both together for every placement of the
attention, and no engine answers before it was compared with the network.

Imports no torch, and onnx only once a graph is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cervicyte.errors import UsageError, to_install
from cervicyte.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    import onnx

OPSET = 18
IR_VERSION = 9  # engines refuse a newer one than they know
STAGE_BLOCKS = (3, 4, 6, 3)  # of the network that ships
MEANS_OF = (2, 4)  # the stages of which means are kept
# Of pooling by covariance, see `covariance`; the first two were chosen on Herlev, see docs/elsewhere.md.
COMBINATIONS = 32  # of channels
RIDGE = 0.1  # where the combinations have variance 1 over all places of the images that they were chosen on
ITERATIONS = 14  # bring the root of what is a thousandth of the trace within the rounding of float32
PROJECTION = "layer4.project.weight"  # there where the pooling stands in place of the last stage
EPSILON = 1e-5  # of batch normalisation, as torch has it
COVARIANCE = "covariance_"  # begins the names of that pooling's nodes
INPUT = "images"
OUTPUTS = ("logits", "stage2", "stage4", "evidence")


class Output(NamedTuple):
    """What the network gives for N images, whatever computes it, all float32.

    Attributes:
        logits: [N, C].
        means: of `features.STAGES`, [N, 512] and [N, 2048], or as many as the last layer reads.
        evidence: [N, C, h, w], how much each place of the last layer adds to each class's logit, see
            `onnx_graph`; what of it is positive is Grad-CAM at that layer. None where not asked for.
    """

    logits: np.ndarray
    means: dict[str, np.ndarray]
    evidence: np.ndarray | None


def onnx_graph(state: Mapping[str, np.ndarray], preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the network as an ONNX model.

    Its input is `images`, uint8 [N, S, S, 3], RGB, preprocessed. Its outputs are float32: `logits` [N, C];
    `stage2` [N, 512] and `stage4` [N, 2048] (behind pooling by covariance [N, 1024]), the means over the last
    activations of those stages; `evidence` [N, C, h, w], how much each place of the last layer adds to each
    class's logit: summed over all places it is the logit less the class's bias, and what of it is positive is
    Grad-CAM at that layer, exactly.

    Args:
        state: the network's weights under their names in `CBAMResNet50`.
        preprocessing: that images go through; says S and how they are normalised.

    Raises:
        UsageError: onnx is not installed.
    """
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise UsageError(f"The package onnx is needed for this; install it with: {to_install()}.") from error
    builder = _Builder(state)
    size, side = preprocessing.image_size, builder.places_along(preprocessing.image_size)
    for name, made in zip(OUTPUTS, builder.network(preprocessing), strict=True):
        builder.node("Identity", [made], out=name)
    classes = len(state["fc.bias"])
    shapes: tuple[list[str | int], ...] = (
        ["N", classes],
        ["N", 512],
        ["N", state["fc.weight"].shape[1]],
        ["N", classes, side, side],
    )
    graph = helper.make_graph(
        builder.nodes,
        "cervicyte",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", size, size, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(OUTPUTS, shapes, strict=True)
        ],
        builder.constants,
    )
    return helper.make_model(
        graph,
        producer_name="cervicyte",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def cells_along(size: int, halvings: int = 5) -> int:
    """Return how many places the last layer has along each side of an image of `size` pixels.

    `halvings` is how often the network halves the sides, rounding up.
    """
    for _ in range(halvings):
        size = (size + 1) // 2
    return size


class _Builder:
    """Collects nodes and constants; each method returns the name of what it adds."""

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        self.state = state
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: set[str] = set()
        self.prefix = ""  # of the names of nodes

    def node(self, kind: str, inputs: Sequence[str], out: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = out or f"{self.prefix}{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self._names:
            self._names.add(name)
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def places_along(self, size: int) -> int:
        """Return how many places the last layer has along each side: pooling by covariance halves none."""
        return cells_along(size, 4 if PROJECTION in self.state else 5)

    def network(self, preprocessing: Preprocessing) -> tuple[str, str, str, str]:
        """Add everything; return what `OUTPUTS` stand for."""
        x = self._normalised(preprocessing)
        x = self._relu(self._convolution(x, "conv1", "bn1", stride=2))
        x = self.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        means = []
        for stage in range(1, len(STAGE_BLOCKS) + 1):
            blocks = {name.split(".")[1] for name in self.state if name.startswith(f"layer{stage}.")}
            if stage == len(STAGE_BLOCKS) and PROJECTION in self.state:
                x = self._covariance(x, preprocessing.image_size)
            else:
                for block in range(len(blocks)):
                    stride = 2 if stage > 1 and block == 0 else 1
                    x = self._bottleneck(x, f"layer{stage}.{block}", stride)
            x = self._gated(x, f"cbam{stage}")
            if stage in MEANS_OF:
                means.append(self.node("Squeeze", [self._mean(x, 2, 3), self._axes(2, 3)]))
        weight, bias = self._value("fc.weight"), self._value("fc.bias")
        logits = self.node(
            "Gemm", [means[-1], self.constant("fc.weight", weight), self.constant("fc.bias", bias)], transB=1
        )
        # Average pooling shares out: a place adds its own activations over the number of places.
        places = self.places_along(preprocessing.image_size) ** 2
        shares = weight[:, :, np.newaxis, np.newaxis] / places
        stage2, stage4 = means
        return logits, stage2, stage4, self.node("Conv", [x, self.constant("fc.shares", shares)])

    def _normalised(self, preprocessing: Preprocessing) -> str:
        values = self.node("Cast", [self.node("Transpose", [INPUT], perm=[0, 3, 1, 2])], to=1)
        mean, std = (
            255 * np.array(colours, np.float32).reshape(1, 3, 1, 1)
            for colours in (preprocessing.mean, preprocessing.std)
        )
        return self.node(
            "Div", [self.node("Sub", [values, self.constant("mean", mean)]), self.constant("std", std)]
        )

    def _bottleneck(self, x: str, name: str, stride: int) -> str:
        out = self._relu(self._convolution(x, f"{name}.conv1", f"{name}.bn1"))
        out = self._relu(self._convolution(out, f"{name}.conv2", f"{name}.bn2", stride))
        out = self._gated(self._convolution(out, f"{name}.conv3", f"{name}.bn3"), f"{name}.cbam")
        if f"{name}.downsample.0.weight" in self.state:
            x = self._convolution(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
        return self._relu(self.node("Add", [out, x]))

    def _covariance(self, x: str, size: int) -> str:
        """Add pooling by covariance, see `covariance.CovariancePooling`."""
        self.prefix = COVARIANCE
        weight = self._value(PROJECTION)
        count, side = len(weight), self.places_along(size)

        def number(name: str, value: float) -> str:
            return self.constant(name, np.array(value, np.float32))

        def transposed(matrices: str) -> str:
            return self.node("Transpose", [matrices], perm=[0, 2, 1])

        y = self.node("Conv", [x, self.constant(PROJECTION, weight)])
        y = self.node("Reshape", [y, self.constant("by_place", np.array([0, count, side**2], np.int64))])
        y = self.node("Sub", [y, self._mean(y, 2)])
        identity = self.constant("identity", np.eye(count, dtype=np.float32))
        covariance = self.node("MatMul", [y, transposed(y)])
        covariance = self.node("Div", [covariance, number("places", side**2)])
        covariance = self.node(
            "Add", [covariance, self.constant("ridge", RIDGE * np.eye(count, dtype=np.float32))]
        )
        diagonal = self.node("Mul", [covariance, identity])
        trace = self.node("ReduceSum", [diagonal, self._axes(1, 2)], keepdims=1)
        root, inverse = self.node("Div", [covariance, trace]), identity
        for _ in range(ITERATIONS):
            step = self.node("Mul", [self.node("MatMul", [inverse, root]), number("half", 0.5)])
            step = self.node(
                "Sub", [self.constant("one_and_a_half", 1.5 * np.eye(count, dtype=np.float32)), step]
            )
            root, inverse = self.node("MatMul", [root, step]), self.node("MatMul", [step, inverse])
        inverse = self.node("Div", [inverse, self.node("Sqrt", [trace])])
        turned = self.node("MatMul", [inverse, y])
        product = self.node(
            "Mul",
            [
                self.node("Unsqueeze", [y, self._axes(2)]),
                self.node("Unsqueeze", [turned, self._axes(1)]),
            ],
        )
        both = self.node("Add", [product, self.node("Transpose", [product], perm=[0, 2, 1, 3])])
        shared = self.node("Mul", [inverse, number("of_the_ridge", RIDGE)])
        parts = self.node(
            "Add",
            [
                self.node("Mul", [both, number("half", 0.5)]),
                self.node("Unsqueeze", [shared, self._axes(3)]),
            ],
        )
        form = self.constant("by_channel", np.array([0, count**2, side, side], np.int64))
        laid = self.node("Reshape", [parts, form])
        self.prefix = ""
        return laid

    def _gated(self, x: str, name: str) -> str:
        """Add the channel gate and the spatial gate, where the network has them."""
        if f"{name}.spatial_attention.conv.weight" not in self.state:
            return x
        asked = []
        for pooled in (self._mean(x, 2, 3), self._largest(x, 2, 3)):
            hidden = self._relu(self._convolution(pooled, f"{name}.channel_attention.fc.0"))
            asked.append(self._convolution(hidden, f"{name}.channel_attention.fc.2"))
        x = self.node("Mul", [x, self.node("Sigmoid", [self.node("Add", asked)])])
        summary = self.node("Concat", [self._mean(x, 1), self._largest(x, 1)], axis=1)
        gate = self.node("Sigmoid", [self._convolution(summary, f"{name}.spatial_attention.conv")])
        return self.node("Mul", [x, gate])

    def _convolution(self, x: str, name: str, normalisation: str | None = None, stride: int = 1) -> str:
        weight = self._value(f"{name}.weight")
        inputs = [x]
        if normalisation is None:
            inputs.append(self.constant(f"{name}.weight", weight))
        else:
            scale, shift, mean, variance = (
                self.state[f"{normalisation}.{part}"].astype(np.float64)
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            factor = scale / np.sqrt(variance + EPSILON)
            folded = (weight * factor[:, np.newaxis, np.newaxis, np.newaxis]).astype(np.float32)
            inputs.append(self.constant(f"{name}.weight", folded))
            inputs.append(self.constant(f"{name}.bias", (shift - mean * factor).astype(np.float32)))
        kernel = list(weight.shape[2:])
        pads = [side // 2 for side in kernel] * 2
        return self.node("Conv", inputs, kernel_shape=kernel, strides=[stride, stride], pads=pads)

    def _value(self, name: str) -> np.ndarray:
        return self.state[name].astype(np.float32)

    def _relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def _mean(self, x: str, *axes: int) -> str:
        return self.node("ReduceMean", [x, self._axes(*axes)], keepdims=1)

    def _largest(self, x: str, *axes: int) -> str:
        return self.node("ReduceMax", [x, self._axes(*axes)], keepdims=1)

    def _axes(self, *axes: int) -> str:
        return self.constant("axes_" + "_".join(map(str, axes)), np.array(axes, np.int64))
