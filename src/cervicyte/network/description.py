"""What is said of a network, whatever holds it: classes, preprocessing, calibration, provenance.

A model file, a graph that was exported and weights that are read without torch say it in the same words.
Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cervicyte.errors import ModelFileError
from cervicyte.images.preprocessing import ORIGINAL_PREPROCESSING, Preprocessing

Placement = Literal["stage", "block", "none"]
PLACEMENTS: tuple[Placement, ...] = ("stage", "block", "none")
DEFAULT_NETWORK = "cbam-resnet50"  # the kind of the network that there has always been
COVARIANCE_NETWORK = "cbam-resnet50-covariance"  # its last stage replaced, see `covariance`
LAYERS = ("layer1", "cbam1", "layer2", "cbam2", "layer3", "cbam3", "layer4", "cbam4")

FORMAT_VERSION = 1
SAFETENSORS = ".safetensors"
SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "model" / "cervicyte.safetensors"
HEADER_KEY = "cervicyte"
ABOUT = "cervicyte.safetensors"  # the name under which a graph carries all of the model but its weights
BESIDE = "beside."  # begins, in a safetensors file, the names of tensors that are no weights
REMEDY = "give a model file written by `cervicyte train` or `cervicyte export`, or by the original notebook"

# Said from what the network and its preprocessing are when a file is written, whatever metadata say.
OF_THE_NETWORK = (
    "format_version",
    "original",
    "network",
    "placement",
    "preprocessing",
    "preprocessing_fingerprint",
    "weights_sha256",
    "tensors_sha256",
)
OF_THE_CHECKPOINT = ("class_names", "epoch", "best_val_acc")  # keys of the original notebook
NO_METADATA = frozenset((*OF_THE_NETWORK, *OF_THE_CHECKPOINT))


class Described(Protocol):
    """A network with all that is said of it: a `ModelFile` or a `FrozenModel`.

    Attributes:
        class_names: the classes in the order of the logits.
        preprocessing: what images go through before the network.
        epoch: the epoch (from 1) that the weights come from.
        best_validation_accuracy: of that epoch, in [0, 1].
        metadata: JSON values, see `Metadata`.
        tensors: by name, what belongs to the metadata and is too large for JSON.
        original: whether it is a checkpoint of the original notebook.
        placement: where the network has its attention.
        layers: those of the network at which maps can be had.
        parameter_count: of the network.
        weights_sha256: over names and values of all weights, see `hash_of`.
        tensors_sha256: likewise of `tensors`, in the order of their names.
        kind: which network it is, of `resnet.NETWORKS`.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def preprocessing(self) -> Preprocessing: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def best_validation_accuracy(self) -> float: ...  # noqa: D102
    @property
    def metadata(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def tensors(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def original(self) -> bool: ...  # noqa: D102
    @property
    def placement(self) -> Placement: ...  # noqa: D102
    @property
    def layers(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def parameter_count(self) -> int: ...  # noqa: D102
    @property
    def weights_sha256(self) -> str: ...  # noqa: D102
    @property
    def tensors_sha256(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102


class Seen(BaseModel):
    """The cells that took part in training: SHA-256 of their files, and the known groups they belong to."""

    sha256: list[str] = []
    groups: list[str] = []


class Metadata(BaseModel):
    """The form of those metadata that the program reads. All may be missing, and others may stand there."""

    model_config = ConfigDict(extra="allow")

    data: str | None = None
    data_set: str | None = None
    leak: str | None = None
    caveats: list[str] = []
    seen: Seen = Seen()
    split: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    backbone: dict[str, Any] = {}
    parent: dict[str, Any] = {}
    classifier: dict[str, Any] = {}
    metrics: dict[str, dict[str, Any] | None] = {}
    cross_validation: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    familiarity: dict[str, Any] = {}
    adaptation: dict[str, Any] = {}
    head: str | None = None
    heads: list[dict[str, Any]] = []
    provenance: dict[str, Any] = {}


def shipped_model() -> Path:
    """Return the path of the model that ships in the package.

    Raises:
        ModelFileError: this build ships none.
    """
    if not SHIPPED_MODEL.is_file():
        raise ModelFileError(
            "This build of Cervicyte ships no model; train one with `cervicyte train`, or name a model file."
        )
    return SHIPPED_MODEL


def layers_of(placement: Placement) -> tuple[str, ...]:
    """Return the layers of a network at which maps can be had, in the order of computation."""
    return tuple(name for name in LAYERS if placement == "stage" or not name.startswith("cbam"))


def hash_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 over names and values of arrays, in their order."""
    digest = hashlib.sha256()
    for name, value in arrays.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def check_names(names: object, path: Path) -> tuple[str, ...]:
    """Return the classes, or refuse what names none.

    Raises:
        ModelFileError: they are no list of different names.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ModelFileError(f"{path}: its class_names are no list of names; {REMEDY}.")
    if not names or len(set(names)) < len(names):
        raise ModelFileError(f"{path}: its class_names are none, or name one class twice; {REMEDY}.")
    return tuple(names)


def damaged(path: Path) -> ModelFileError:
    """Return what is said of a file whose weights are not those that it was written with."""
    return ModelFileError(
        f"{path}: its weights are not those that it was written with, so that it is damaged; fetch or "
        "write it anew."
    )


def check_description(own: object, path: Path) -> None:
    """Refuse a description from another format, or of a form on which the program does not count."""
    if not isinstance(own, dict):
        raise ModelFileError(f"{path}: its own description is damaged; {REMEDY}.")
    if own.get("format_version") != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: has format version {own.get('format_version')!r}, this program reads "
            f"{FORMAT_VERSION}; install the version of Cervicyte that wrote it."
        )
    try:
        Metadata.model_validate(own)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ModelFileError(f"{path}: its own description is damaged, at {where}; {REMEDY}.") from error


def preprocessing_of(own: dict[str, Any] | None, path: Path) -> Preprocessing:
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
