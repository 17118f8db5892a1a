"""Cervicyte: an attention classifier for cervical cells, its honest evaluation, and why it decides.

For research use only. Importing this package imports no torch; the rooms do, when they are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cervicyte.inference.classifier import Classifier

__all__ = ["__version__", "load_model"]
__version__ = "0.1.0"


def load_model(path: str | Path | None = None, device: str = "auto") -> Classifier:
    """Load a model that answers for images: `predict` for classes, `explain` for maps.

    Args:
        path: a model file of Cervicyte (`.safetensors`, `.pth`) or of the original notebook; None is the
            model that ships in the package.
        device: as PyTorch names it; `auto` is a CUDA device if there is one.

    Raises:
        ModelFileError: the file is missing, damaged or no model, or this build ships none.
        UsageError: there is no such device here.

    Example:
        >>> from cervicyte import load_model
        >>> classifier = load_model("best_model.pth")  # doctest: +SKIP
        >>> classifier.predict([image])[0].class_name  # doctest: +SKIP
        'Parabasal'
    """
    from cervicyte.inference.classifier import Classifier
    from cervicyte.network.model_file import shipped_model

    return Classifier.from_file(shipped_model() if path is None else Path(path), device)
