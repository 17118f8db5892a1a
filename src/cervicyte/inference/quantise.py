"""A network's graph in eight bits: convolutions in int8, by ranges that real cells say, and what that costs.

Static quantisation of ONNX Runtime (B. Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018): weights to int8 by channel, activations to uint8
between what all but a hundred-thousandth of the calibration cells' values lie under and over (H. Wu et al.,
"Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", 2020): between the
very least and greatest, a few outliers make the steps of all others twice as large. The first convolution,
the first block, the gates and the classifier stay in float32: they are little work, and most to lose.

Nothing says beforehand what that does to an answer, so it is measured on images that did not calibrate it:
where more is lost than `MOST_LOSS`, or a probability moves by more than `MOST_CHANGE`, there is no int8.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from cervicyte.errors import UsageError, to_install
from cervicyte.evaluation.predictions import softmax
from cervicyte.pages import counted

MOST_LOSS = 0.002  # of the accuracy: 0.2 points
MOST_CHANGE = 0.1  # of an uncalibrated probability
FEWEST_CELLS = 32  # that calibrate
FEWEST_COMPARED = (
    100  # images: of fewer, one that gets another class is more than is allowed, or nothing is known
)
AT_ONCE = 8
PERCENTILE = 99.999  # of the values that calibrate; what lies beyond is cut off
KEPT = ("attention", "fc.")  # of the names of weights: gates and classifier
# What all others read; the block was chosen on validation cells of SIPaKMeD's fold 0.
FIRST = ("conv1.", "layer1.0.")


def quantised(graph: bytes, cells: np.ndarray) -> bytes:
    """Return an ONNX graph, see `network.graph`, with its convolutions in int8.

    Args:
        graph: in float32.
        cells: preprocessed, uint8 [N, S, S, 3], RGB, of the kind that it will see.

    Raises:
        UsageError: onnxruntime is not installed, or there are too few cells.
    """
    if util.find_spec("onnxruntime") is None:
        raise UsageError(f"int8 needs the package onnxruntime; install it with: {to_install('fast')}.")
    if len(cells) < FEWEST_CELLS:
        raise UsageError(
            f"{counted(len(cells), 'image', 'is', 'are')} too few to calibrate int8; give {FEWEST_CELLS} or "
            "more with --calibration."
        )
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    from cervicyte.network.graph import COVARIANCE, INPUT

    class Cells(CalibrationDataReader):
        """Gives `AT_ONCE` cells at a time, a range of such batches after another."""

        def __init__(self) -> None:
            self.set_range(0, len(self))

        def __len__(self) -> int:
            return -(-len(cells) // AT_ONCE)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._starts = iter(range(start_index * AT_ONCE, end_index * AT_ONCE, AT_ONCE))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self._starts, None)
            return None if start is None else {INPUT: cells[start : start + AT_ONCE]}

    kept = [
        node.name
        for node in onnx.load_model_from_string(graph).graph.node
        if node.name.startswith(COVARIANCE)  # a root of rounded values is another one
        or (node.op_type == "Conv" and _stays(node.input[1]))
    ]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(graph)
        quantize_static(
            before,
            after,
            Cells(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Add"],
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.Percentile,
            # Only one batch's activations lie in memory.
            extra_options={"CalibPercentile": PERCENTILE, "CalibStridedMinMax": 1},
        )
        return after.read_bytes()


def _stays(weight: str) -> bool:
    """Return whether the convolution by a weight stays in float32."""
    return weight.startswith(FIRST) or any(part in weight for part in KEPT)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back onnxruntime's progress, and its advice to prepare the graph first, which is not needed."""
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(before)


def refuse_what_calibrated(calibration: Sequence[bytes], compared: Sequence[bytes]) -> None:
    """Refuse to measure on images that calibrated, or on too few.

    Args:
        calibration, compared: the files' contents.

    Raises:
        UsageError: one stands in both, or there are fewer than `FEWEST_COMPARED`.
    """
    if len(compared) < FEWEST_COMPARED:
        raise UsageError(
            f"{counted(len(compared), 'image', 'is', 'are')} too few to say what int8 costs; give "
            f"{FEWEST_COMPARED} or more with --images."
        )
    known = {hashlib.sha256(content).digest() for content in calibration}
    both = sum(hashlib.sha256(content).digest() in known for content in compared)
    if both:
        raise UsageError(
            f"{both} of the images that int8 is measured on calibrate it, too; name others with --images."
        )


def cost_of(given: np.ndarray, right: np.ndarray, truth: np.ndarray | None = None) -> dict[str, Any]:
    """Return what a rounding costs, as JSON values, with `faults`: none where it may answer.

    Args:
        given, right: logits [N, C], rounded and in float32, of images that did not calibrate.
        truth: int [N], the images' classes, if they are known and the network has not seen them. Without, the
            share of images that get another class stands for the loss, which cannot be larger.
    """
    moved = np.abs(softmax(given) - softmax(right)).max(1)
    other = float(np.mean(given.argmax(1) != right.argmax(1)))
    figures: dict[str, Any] = {
        "images": len(given),
        "another_class": other,
        "largest_change_of_a_probability": float(moved.max()),
        "change_of_a_probability_99th_percentile": float(np.percentile(moved, 99)),
        "accuracy": None,
        "bounds": {"loss": MOST_LOSS, "change_of_a_probability": MOST_CHANGE},
    }
    loss, what = other, "of the images get another class"
    if truth is not None:
        accuracy = {
            name: float(np.mean(logits.argmax(1) == truth))
            for name, logits in (("float32", right), ("int8", given))
        }
        figures["accuracy"] = accuracy
        loss, what = accuracy["float32"] - accuracy["int8"], "of the cells are no longer called rightly"
    figures["faults"] = []
    if loss > MOST_LOSS:
        figures["faults"].append(f"{loss:.2%} {what} (at most {MOST_LOSS:.1%})")
    if moved.max() > MOST_CHANGE:
        figures["faults"].append(
            f"a probability moves by {moved.max():.2f} (at most {MOST_CHANGE:g}; 99 in 100 by less than "
            f"{figures['change_of_a_probability_99th_percentile']:.2f})"
        )
    return figures
