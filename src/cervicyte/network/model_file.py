"""What a model file carries: weights, and everything that is needed to use them rightly.

Two formats hold the same, see docs/model_file.md. `best_model.pth`, which training writes, is a plain
dictionary: the keys `model_state_dict`, `class_names`, `epoch` and `best_val_acc` are those of the
original notebook's checkpoints, which load here, as ours load there; `cervicyte` holds the rest as JSON
values, and `cervicyte_tensors` what of it is too large for that. `.safetensors`, half as large, has the
matrices in float16 and all that is said of them as one JSON text in its header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from cervicyte.errors import ModelFileError
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.description import (
    BESIDE,
    FORMAT_VERSION,
    HEADER_KEY,
    NO_METADATA,
    OF_THE_CHECKPOINT,
    OF_THE_NETWORK,
    REMEDY,
    SAFETENSORS,
    Placement,
    check_description,
    check_names,
    damaged,
    hash_of,
    preprocessing_of,
)
from cervicyte.network.frozen import GRAPH_SUFFIXES
from cervicyte.network.resnet import NETWORKS, CBAMResNet50
from cervicyte.provenance import provenance, written_atomically

TENSORS_KEY = "cervicyte_tensors"
LARGEST_HEADER = 99_000_000  # bytes; safetensors reads no header above 100 MB


@dataclass
class ModelFile:
    """A network with all that travels with it.

    Attributes:
        network: in evaluation mode, float32, on the CPU.
        class_names: the classes in the order of the logits.
        preprocessing: what images go through before the network.
        epoch: the epoch (from 1) that the weights come from.
        best_validation_accuracy: of that epoch, in [0, 1].
        metadata: JSON values: recipe, split hash, metrics, backbone, calibration, provenance.
        tensors: by name, what belongs to the metadata and is too large for JSON; no weights.
        original: True for a checkpoint of the original notebook, which states no preprocessing; the
            notebook's own is then assumed.
        sha256_as_read: `weights_hash` of the network when it was read from a file; empty if it was not.
            Whoever changes weights afterwards has others.
    """

    network: CBAMResNet50
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    epoch: int = 0
    best_validation_accuracy: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    original: bool = False
    sha256_as_read: str = ""

    @property
    def placement(self) -> Placement:
        """Where the network has its attention."""
        return self.network.placement

    @property
    def layers(self) -> tuple[str, ...]:
        """Those of the network at which maps can be had, in the order of computation."""
        return self.network.layers

    @property
    def parameter_count(self) -> int:
        """How many numbers training may change."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def weights_sha256(self) -> str:
        """See `weights_hash`; computed anew with every call, as the weights may change."""
        return weights_hash(self.network)

    @property
    def tensors_sha256(self) -> str:
        """Over names and values of all `tensors`, in the order of their names; computed anew likewise."""
        return _hash_of(dict(sorted(self.tensors.items())))

    @property
    def kind(self) -> str:
        """Which network it is, of `resnet.NETWORKS`."""
        return self.network.kind


# --- writing -----------------------------------------------------------------------------------


def save_model(path: Path, model: ModelFile) -> None:
    """Write a model file atomically: `.safetensors` if it is called so, else as `.pth`.

    `.safetensors` rounds what has two dimensions or more, the convolutions and the classifier's matrix, to
    float16. Batch normalisation and biases stay as they are: variances lie where float16 has no numbers.
    Provenance is that of this moment, unless the metadata have one: a file written anew was not trained
    anew.

    Raises:
        ModelFileError: the weights do not fit into float16, or the metadata are no JSON values.
    """
    path = Path(path)
    state = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    if path.suffix == SAFETENSORS:
        _write_safetensors(path, model, state)
        return
    content = {
        "model_state_dict": state,
        **_of_the_checkpoint(model),
        "cervicyte": _description(model, state),
        TENSORS_KEY: _beside(model),
    }
    with written_atomically(path) as partial:
        torch.save(content, partial)


def all_but_weights(
    model: ModelFile, tensors: Mapping[str, np.ndarray] = MappingProxyType({}), **said: Any
) -> bytes:
    """Return all that a model file says besides the weights, as the bytes of a safetensors file.

    Its header has what `.safetensors` has there, its tensors are those that begin with `BESIDE`. A graph for
    another engine carries it along.

    Args:
        model: of which it is said.
        tensors: further ones, by name.
        said: further JSON values.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    text = json.dumps({**_of_the_checkpoint(model), **_description(model, state), **said}, allow_nan=False)
    beside = {BESIDE + name: value for name, value in _beside(model).items()}
    more = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
    content: bytes = save({**beside, **more}, metadata={HEADER_KEY: text})
    return content


def weights_hash(network: torch.nn.Module) -> str:
    """Return the SHA-256 over names and values of all weights: the same whatever file holds them."""
    return _hash_of(network.state_dict())


def _hash_of(state: Mapping[str, Tensor]) -> str:
    return hash_of({name: value.detach().cpu().numpy() for name, value in state.items()})


def _beside(model: ModelFile) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.tensors.items()}


def _of_the_checkpoint(model: ModelFile) -> dict[str, Any]:
    values = (list(model.class_names), model.epoch, model.best_validation_accuracy)
    return dict(zip(OF_THE_CHECKPOINT, values, strict=True))


def _description(model: ModelFile, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return all that is said of weights beside the checkpoint's own keys, as JSON values."""
    of_the_network = (
        FORMAT_VERSION,
        model.original,
        model.kind,
        model.network.placement,
        model.preprocessing.model_dump(mode="json"),
        model.preprocessing.fingerprint(),
        _hash_of(state),
        model.tensors_sha256,
    )
    return {
        **dict(zip(OF_THE_NETWORK, of_the_network, strict=True)),
        "provenance": provenance(),
        **{key: value for key, value in model.metadata.items() if key not in NO_METADATA},
    }


def _write_safetensors(path: Path, model: ModelFile, state: Mapping[str, Tensor]) -> None:
    stored = {name: value.half() if value.ndim > 1 else value for name, value in state.items()}
    for name, value in stored.items():
        if not value.isfinite().all():
            raise ModelFileError(
                f"{path}: cannot be written, since {name} holds a weight that is no number or that is beyond "
                "65,504, the largest of float16; keep the .pth, or train anew at a lower learning rate."
            )
    description = _description(model, {name: value.to(state[name].dtype) for name, value in stored.items()})
    before = _hash_of(state)
    if before != description["weights_sha256"]:
        description["rounded_from_sha256"] = before
    try:
        text = json.dumps({**_of_the_checkpoint(model), **description}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: cannot be written, since a value in the metadata is no JSON ({error}); keep the .pth."
        ) from error
    if len(json.dumps(text)) > LARGEST_HEADER:
        raise ModelFileError(
            f"{path}: cannot be written, since its metadata are larger than safetensors allows (100 MB); "
            "keep the .pth."
        )
    with written_atomically(path) as partial:
        # Not by safetensors' own `save_file`: recent ones let nobody but the owner read the file.
        stored |= {BESIDE + name: value for name, value in _beside(model).items()}
        partial.write_bytes(save(stored, metadata={HEADER_KEY: text}))


# --- reading -----------------------------------------------------------------------------------


def load_model_file(path: Path) -> ModelFile:
    """Read a model file, `.safetensors` or `.pth`, ours or the original notebook's; content decides which.

    Nothing is unpickled: `.pth` is read with `weights_only=True`.

    Raises:
        ModelFileError: missing, damaged, of another kind, from a newer format, or of other shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file; {REMEDY}.")
    if path.suffix in GRAPH_SUFFIXES:
        raise ModelFileError(
            f"{path}: is a graph, which answers and is not evaluated, changed or exported again; name the "
            "model file that it was exported from."
        )
    content = _read_safetensors(path) if _is_safetensors(path) else _read_pth(path)
    state, names, own = content["model_state_dict"], content["class_names"], content.get("cervicyte")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelFileError(f"{path}: its model_state_dict holds no tensors; {REMEDY}.")
    names = check_names(names, path)
    if own is not None:
        check_description(own, path)
    beside = content.get(TENSORS_KEY, {})
    if not isinstance(beside, dict) or not all(isinstance(value, Tensor) for value in beside.values()):
        raise ModelFileError(f"{path}: its {TENSORS_KEY} hold no tensors; {REMEDY}.")
    network = _network_of(state, len(names), own, path)
    # Neither format finds a changed bit by itself. Files from before there was a hash have none.
    stated = {} if own is None else own
    digest = weights_hash(network)
    if stated.get("weights_sha256") not in (None, digest) or stated.get("tensors_sha256") not in (
        None,
        _hash_of(dict(sorted(beside.items()))),
    ):
        raise damaged(path)
    epoch, best_validation_accuracy = _epoch_of(content, path)
    return ModelFile(
        network=network,
        class_names=names,
        preprocessing=preprocessing_of(own, path),
        epoch=epoch,
        best_validation_accuracy=best_validation_accuracy,
        metadata={key: value for key, value in stated.items() if key not in NO_METADATA},
        tensors=beside,
        original=own is None or bool(own.get("original")),
        sha256_as_read=digest,
    )


def _is_safetensors(path: Path) -> bool:
    """Return whether a header in JSON follows on the eight bytes of its length."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _read_pth(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:  # given a path, torch goes by its suffix
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign files raise errors of many modules; none is ours to show
        raise ModelFileError(f"{path}: not a model file, or damaged; {REMEDY}.") from error
    if not isinstance(content, dict) or not {"model_state_dict", "class_names"} <= content.keys():
        raise ModelFileError(f"{path}: holds no model of Cervicyte or of the original; {REMEDY}.")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return the file's content under the keys of a `.pth`."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
        state = load_file(path)
        own = None if text is None else json.loads(text)
    except Exception as error:  # of safetensors, of JSON, of the operating system; none is ours to show
        raise ModelFileError(f"{path}: not a model file, or damaged; {REMEDY}.") from error
    if own is None:
        raise ModelFileError(f"{path}: holds weights, but no model of Cervicyte; {REMEDY}.")
    if not isinstance(own, dict) or None in (own.get("class_names"), own.get("weights_sha256")):
        raise ModelFileError(f"{path}: its own description is damaged; {REMEDY}.")
    of_the_checkpoint = {key: own.get(key) for key in OF_THE_CHECKPOINT}
    beside = {name: state.pop(name) for name in list(state) if name.startswith(BESIDE)}
    return {
        "model_state_dict": state,
        **of_the_checkpoint,
        "cervicyte": own,
        TENSORS_KEY: {name.removeprefix(BESIDE): value for name, value in beside.items()},
    }


def _epoch_of(content: Mapping[str, Any], path: Path) -> tuple[int, float]:
    """Return the epoch and its validation accuracy; 0 where a checkpoint does not say."""
    try:
        return int(content.get("epoch") or 0), float(content.get("best_val_acc") or 0.0)
    # Such as a text, a list, a tensor of several numbers, or infinity.
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ModelFileError(f"{path}: its epoch or best_val_acc is no number; {REMEDY}.") from error


def _network_of(
    state: dict[str, Tensor], class_count: int, own: Mapping[str, Any] | None, path: Path
) -> CBAMResNet50:
    """Build the network of the stated kind that the tensors' names call for, and fill it strictly."""
    kind = (own or {}).get("network", CBAMResNet50.kind)
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise ModelFileError(
            f"{path}: holds a network of the kind {kind!r}, this program knows {', '.join(NETWORKS)}; add it "
            "as docs/extend.md says."
        )
    placement: Placement = "none"
    if any(key.startswith("cbam") for key in state):
        placement = "stage"
    elif any(".cbam." in key for key in state):
        placement = "block"
    network = NETWORKS[kind](class_count, placement)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelFileError(
            f"{path}: its tensors are not those of a ResNet-50 with CBAM for {class_count} classes; {REMEDY}."
        ) from error
    return network.eval()
