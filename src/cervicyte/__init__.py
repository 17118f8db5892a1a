"""Cervicyte: an attention classifier for cervical cells, its honest evaluation, and why it decides.

For research use only. Importing this package imports no torch; the rooms do, when they are used.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cervicyte.inference.classifier import Classifier

__all__ = ["__version__", "load_model"]
__version__ = "0.1.0"

# Cervicyte asks nothing of the internet; its engines report their start to their makers: ONNX Runtime 1.32
# to Microsoft, OpenVINO 2026.4 through Google. The first has a switch; the second is silent where the package
# that reports for it cannot be imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def load_model(
    path: str | Path | None = None,
    device: str = "auto",
    engine: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    head: str | None = None,
) -> Classifier:
    """Load a model that answers for images: `predict` for classes, `explain` for maps.

    Args:
        path: a model file of Cervicyte (`.safetensors`, `.pth`) or of the original notebook, or a graph that
            `cervicyte export` wrote (`.onnx`, `.xml`); None is the model that ships in the package.
        device: as PyTorch names it; `auto` is a CUDA device if there is one.
        engine: `torch`, `onnx` or `openvino`, or `auto`, the fastest that is installed and right. None is
            torch, or `auto` where torch is not installed or a graph is given.
        precision: of its multiplications.
        head: the class list to answer in, of a model that was trained on several data sets together; None
            is the first.

    Raises:
        ModelFileError: the file is missing, damaged or no model, or this build ships none.
        UsageError: there is no such head, device, engine or precision here, or the engine is wrong.

    Example:
        >>> from cervicyte import load_model
        >>> classifier = load_model("best_model.pth")  # doctest: +SKIP
        >>> classifier.predict([image])[0].class_name  # doctest: +SKIP
        'Parabasal'
    """
    from cervicyte.inference.classifier import Classifier
    from cervicyte.network.description import shipped_model

    named = shipped_model() if path is None else Path(path)
    return Classifier.from_file(named, device, engine, precision, head)
