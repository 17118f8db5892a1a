"""What a model file carries: weights, and everything that is needed to use them rightly.

`best_model.pth` is a plain dictionary. The keys `model_state_dict`, `class_names`, `epoch` and
`best_val_acc` are those of the original notebook's checkpoints, which load here, as ours load there;
`cervicyte` holds the rest as JSON values: preprocessing, recipe, split hash, metrics, versions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from cervicyte.errors import ModelFileError
from cervicyte.images.preprocessing import ORIGINAL_PREPROCESSING, Preprocessing
from cervicyte.network.resnet import CBAMResNet50, Placement
from cervicyte.provenance import provenance, written_atomically

FORMAT_VERSION = 1
REMEDY = "give a best_model.pth written by `cervicyte train` or by the original notebook"


@dataclass
class ModelFile:
    """A network with all that travels with it.

    Attributes:
        network: in evaluation mode, float32, on the CPU.
        class_names: the classes in the order of the logits.
        preprocessing: what images go through before the network.
        epoch: the epoch (from 1) that the weights come from.
        best_validation_accuracy: of that epoch, in [0, 1].
        metadata: JSON values: recipe, split hash, metrics, backbone, provenance.
        original: True for a checkpoint of the original notebook, which states no preprocessing; the
            notebook's own is then assumed.
    """

    network: CBAMResNet50
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    epoch: int = 0
    best_validation_accuracy: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)
    original: bool = False


def save_model(path: Path, model: ModelFile) -> None:
    """Write a model file atomically. Its metadata gain the provenance of this moment."""
    content = {
        "model_state_dict": {k: v.detach().cpu() for k, v in model.network.state_dict().items()},
        "class_names": list(model.class_names),
        "epoch": model.epoch,
        "best_val_acc": model.best_validation_accuracy,
        "cervicyte": {
            "format_version": FORMAT_VERSION,
            "placement": model.network.placement,
            "preprocessing": model.preprocessing.model_dump(mode="json"),
            "preprocessing_fingerprint": model.preprocessing.fingerprint(),
            "provenance": provenance(),
            **model.metadata,
        },
    }
    with written_atomically(path) as partial:
        torch.save(content, partial)


def load_model_file(path: Path) -> ModelFile:
    """Read a model file of ours or of the original notebook, with `weights_only=True`.

    Raises:
        ModelFileError: missing, damaged, of another kind, from a newer format, or of other shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file; {REMEDY}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign files raise errors of many modules; none is ours to show
        raise ModelFileError(f"{path}: not a model file, or damaged; {REMEDY}.") from error
    if not isinstance(content, dict) or not {"model_state_dict", "class_names"} <= content.keys():
        raise ModelFileError(f"{path}: holds no model of Cervicyte or of the original; {REMEDY}.")

    state, names, own = content["model_state_dict"], content["class_names"], content.get("cervicyte")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelFileError(f"{path}: its model_state_dict holds no tensors; {REMEDY}.")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ModelFileError(f"{path}: its class_names are no list of names; {REMEDY}.")
    if own is not None and not isinstance(own, dict):
        raise ModelFileError(f"{path}: its own description is damaged; {REMEDY}.")
    if own is not None and own.get("format_version") != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: has format version {own.get('format_version')!r}, this program reads "
            f"{FORMAT_VERSION}; install the version of Cervicyte that wrote it."
        )
    return ModelFile(
        network=_network_of(state, len(names), path),
        class_names=tuple(names),
        preprocessing=_preprocessing_of(own, path),
        epoch=int(content.get("epoch") or 0),
        best_validation_accuracy=float(content.get("best_val_acc") or 0.0),
        metadata={k: v for k, v in (own or {}).items() if not k.startswith(("preprocessing", "format_"))},
        original=own is None,
    )


def _network_of(state: dict[str, Tensor], class_count: int, path: Path) -> CBAMResNet50:
    """Build the network that the tensors' names call for, and fill it strictly."""
    placement: Placement = "none"
    if any(key.startswith("cbam") for key in state):
        placement = "stage"
    elif any(".cbam." in key for key in state):
        placement = "block"
    network = CBAMResNet50(class_count, placement)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelFileError(
            f"{path}: its tensors are not those of a ResNet-50 with CBAM for {class_count} classes; {REMEDY}."
        ) from error
    return network.eval()


def _preprocessing_of(own: dict[str, Any] | None, path: Path) -> Preprocessing:
    """Return the stored preprocessing, after checking that it still means what it meant."""
    if own is None:
        return ORIGINAL_PREPROCESSING
    try:
        preprocessing = Preprocessing.model_validate(own["preprocessing"])
    except (KeyError, ValidationError) as error:
        raise ModelFileError(f"{path}: its preprocessing cannot be read; {REMEDY}.") from error
    if preprocessing.fingerprint() != own.get("preprocessing_fingerprint"):
        raise ModelFileError(
            f"{path}: its preprocessing has another fingerprint than this program's; install the version "
            "of Cervicyte that wrote it."
        )
    return preprocessing
