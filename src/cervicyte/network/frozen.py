"""Models whose networks engines compute without torch: a graph that was exported, or weights as they are.

A graph carries what is said of the network, and what the network itself gave for the drawn cells when it was
exported: no engine answers before it was held against that. Weights (`.safetensors`) are held against
`plain`. Imports no torch, and onnx or openvino only to open their files.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load

from cervicyte.errors import ModelFileError, UsageError, to_install
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.description import (
    ABOUT,
    BESIDE,
    DEFAULT_NETWORK,
    HEADER_KEY,
    NO_METADATA,
    PLACEMENTS,
    REMEDY,
    Placement,
    check_description,
    check_names,
    damaged,
    hash_of,
    layers_of,
    preprocessing_of,
)
from cervicyte.network.graph import OUTPUTS, Output
from cervicyte.network.plain import KINDS, Weights, computed, parameter_count, shapes_of
from cervicyte.provenance import sha256_of_file

if TYPE_CHECKING:
    from cervicyte.network.model_file import ModelFile

GRAPH_SUFFIXES = (".onnx", ".xml")
GRAPH_OF_FOLDER = "model.xml"  # in the folder that an export to OpenVINO writes
REFERENCE = "reference."  # begins the names of what a graph is held against
PRECISION_KEY = "graph_precision"


@dataclass(frozen=True)
class Reference:
    """What the network gave for some images.

    Attributes:
        images: uint8 [N, S, S, 3], preprocessed.
        output: of the network itself in float32.
    """

    images: np.ndarray
    output: Output

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything by name, as a graph carries it."""
        assert self.output.evidence is not None
        means = self.output.means.values()
        values = (
            ("images", self.images),
            *zip(OUTPUTS, (self.output.logits, *means, self.output.evidence), strict=True),
        )
        return {REFERENCE + name: value for name, value in values}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Reference:
        """Read what `arrays` returned; others beside them are left alone.

        Raises:
            KeyError: something is missing.
        """
        images, logits, stage2, stage4, evidence = (arrays[REFERENCE + name] for name in ("images", *OUTPUTS))
        return cls(images, Output(logits, {"stage2": stage2, "stage4": stage4}, evidence))


@dataclass(frozen=True)
class FrozenModel:
    """A network that engines compute, with all that is said of it, see `description.Described`.

    Attributes:
        source: the graph's file, or the weights in float32 under their names in `CBAMResNet50`.
        reference: of a graph; None of weights, see `held_against`.
        precision: of a graph, `float32` or `int8`.
        kind: which network it is, of `resnet.NETWORKS`.
        path: of the file.
    """

    source: Path | Weights
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    placement: Placement
    weights_sha256: str
    path: Path
    reference: Reference | None = None
    precision: str = "float32"
    epoch: int = 0
    best_validation_accuracy: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    original: bool = False
    kind: str = DEFAULT_NETWORK

    @property
    def layers(self) -> tuple[str, ...]:
        """The network's last layer: maps at others need its gradients."""
        return layers_of(self.placement)[-1:]

    @property
    def files_sha256(self) -> list[str]:
        """Of a graph's file and, if it is OpenVINO's, of the weights beside it; none of weights."""
        if not isinstance(self.source, Path):
            return []
        beside = [self.source.with_suffix(".bin")] if self.source.suffix == ".xml" else []
        return [sha256_of_file(path) for path in (self.source, *beside)]

    @property
    def tensors_sha256(self) -> str:
        """Over names and values of all `tensors`, in the order of their names."""
        return hash_of(dict(sorted(self.tensors.items())))

    @property
    def parameter_count(self) -> int:
        """How many numbers training could change."""
        return parameter_count(len(self.class_names), self.placement, self.kind)

    def held_against(self, images: np.ndarray) -> Reference:
        """Return what an engine is held against: what the graph carries, or what `plain` makes of images."""
        if self.reference is not None:
            return self.reference
        assert not isinstance(self.source, Path)  # a graph without a reference is not opened
        return Reference(images, computed(self.source, self.preprocessing, images))


def torch_is_installed() -> bool:
    """Return whether torch is there, without importing it."""
    return util.find_spec("torch") is not None


def need_torch(what: str) -> None:
    """Refuse what only torch can do, where it is not installed.

    Raises:
        UsageError: it is not; the text begins with `what`, such as "cervicyte train".
    """
    if not torch_is_installed():
        raise UsageError(f"{what} needs torch; install it with: {to_install('train')}.")


def is_graph(path: Path) -> bool:
    """Return whether a path is an exported graph's, by its name alone, or its folder's."""
    return path.suffix in GRAPH_SUFFIXES or (path / GRAPH_OF_FOLDER).is_file()


def load_described(path: Path, without_torch: bool = False) -> ModelFile | FrozenModel:
    """Read a model file or a graph; the network itself is loaded where torch is installed and has weights.

    Args:
        path: a model file, see `load_model_file`; an exported `.onnx` or `.xml`, or the latter's folder.
        without_torch: read weights as arrays though torch is installed; only of `.safetensors`.

    Raises:
        ModelFileError: missing, damaged, of another kind, from a newer format, or of other shapes; or only
            torch can read it, and is not installed.
        UsageError: what opens the graph is not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / GRAPH_OF_FOLDER
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file; {REMEDY}.")
    if path.suffix in GRAPH_SUFFIXES:
        return _load_graph(path)
    if _begins_as_safetensors(path) and (without_torch or not torch_is_installed()):
        return _load_weights(path)
    if not torch_is_installed():
        raise ModelFileError(
            f"{path}: is no .safetensors and no exported graph, and only torch reads others; export it to "
            f"safetensors where torch is, or install torch: {to_install('train')}."
        )
    return _load_by_torch(path)


def _load_by_torch(path: Path) -> ModelFile:
    from cervicyte.network.model_file import load_model_file

    return load_model_file(path)


def _begins_as_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


# --- weights ---------------------------------------------------------------------------------------


def _load_weights(path: Path) -> ModelFile | FrozenModel:
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except Exception as error:  # of safetensors, of the operating system; none is ours to show
        raise ModelFileError(f"{path}: not a model file, or damaged; {REMEDY}.") from error
    own = _description(text, path)
    if (kind := own.get("network", DEFAULT_NETWORK)) not in KINDS:
        # Names and shapes may be the same, and what is computed from them another thing.
        if not torch_is_installed():
            raise ModelFileError(
                f"{path}: holds a network of the kind {kind!r}, whose weights only torch computes; export "
                f"it to onnx where torch is, or install torch: {to_install('train')}."
            )
        return _load_by_torch(path)
    beside = {name: arrays.pop(name) for name in list(arrays) if name.startswith(BESIDE)}
    names = check_names(own["class_names"], path)
    placement = _placement_of(own, path)
    shapes = shapes_of(len(names), placement, kind)
    if shapes != {name: arrays[name].shape if name in arrays else None for name in {**shapes, **arrays}}:
        raise ModelFileError(
            f"{path}: its tensors are not those of a ResNet-50 with CBAM for {len(names)} classes; {REMEDY}."
        )
    weights = {name: arrays[name] for name in shapes}
    weights = {
        name: value.astype(np.float32) if value.dtype == np.float16 else value
        for name, value in weights.items()
    }
    if hash_of(weights) != own["weights_sha256"]:
        raise damaged(path)
    return _frozen(weights, own, beside, path, None)


def _placement_of(own: Mapping[str, Any], path: Path) -> Placement:
    for placement in PLACEMENTS:
        if own.get("placement") == placement:
            return placement
    raise ModelFileError(f"{path}: its own description is damaged, at placement; {REMEDY}.")


def _description(text: str | None, path: Path) -> dict[str, Any]:
    """Return the JSON values of a header, checked."""
    if text is None:
        raise ModelFileError(f"{path}: holds weights, but no model of Cervicyte; {REMEDY}.")
    try:
        own = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"{path}: its own description is damaged; {REMEDY}.") from error
    if not isinstance(own, dict) or None in (own.get("class_names"), own.get("weights_sha256")):
        raise ModelFileError(f"{path}: its own description is damaged; {REMEDY}.")
    check_description(own, path)
    return own


def _frozen(
    source: Path | Weights,
    own: dict[str, Any],
    beside: Mapping[str, np.ndarray],
    path: Path,
    reference: Reference | None,
) -> FrozenModel:
    tensors = {name.removeprefix(BESIDE): value for name, value in beside.items()}
    if own.get("tensors_sha256") not in (None, hash_of(dict(sorted(tensors.items())))):
        raise damaged(path)
    try:
        epoch, accuracy = int(own.get("epoch") or 0), float(own.get("best_val_acc") or 0.0)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{path}: its epoch or best_val_acc is no number; {REMEDY}.") from error
    return FrozenModel(
        source=source,
        class_names=check_names(own["class_names"], path),
        preprocessing=preprocessing_of(own, path),
        placement=_placement_of(own, path),
        weights_sha256=str(own["weights_sha256"]),
        path=path,
        reference=reference,
        precision=str(own.get(PRECISION_KEY, "float32")),
        epoch=epoch,
        best_validation_accuracy=accuracy,
        metadata={key: value for key, value in own.items() if key not in (*NO_METADATA, PRECISION_KEY)},
        tensors=tensors,
        original=bool(own.get("original")),
        kind=str(own.get("network", DEFAULT_NETWORK)),
    )


# --- graphs ----------------------------------------------------------------------------------------


def _load_graph(path: Path) -> FrozenModel:
    text = _about_of_openvino(path) if path.suffix == ".xml" else _about_of_onnx(path)
    if text is None:
        raise ModelFileError(
            f"{path}: does not say of which model it is (no {ABOUT} among its metadata): classes, "
            "preprocessing and calibration are not known; write it with `cervicyte export`."
        )
    try:
        content = base64.b64decode(text, validate=True)
        arrays = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        own = _description(header["__metadata__"].get(HEADER_KEY), path)
    except ModelFileError:
        raise
    except Exception as error:  # of base64, of JSON, of safetensors
        raise ModelFileError(f"{path}: what it says of its model is damaged; export it anew.") from error
    beside = {name: value for name, value in arrays.items() if name.startswith(BESIDE)}
    try:
        reference = Reference.of(arrays)
    except KeyError as error:
        raise ModelFileError(
            f"{path}: carries nothing that an engine could be held against; export it anew."
        ) from error
    return _frozen(path, own, beside, path, reference)


def _about_of_onnx(path: Path) -> str | None:
    try:
        if util.find_spec("onnx") is not None:
            import onnx

            properties = onnx.load(path, load_external_data=False).metadata_props
            return {one.key: one.value for one in properties}.get(ABOUT)
        if util.find_spec("onnxruntime") is not None:
            import onnxruntime

            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            found: str | None = session.get_modelmeta().custom_metadata_map.get(ABOUT)
            return found
    except Exception as error:  # protobuf's, or onnxruntime's, which have no common base
        raise ModelFileError(f"{path}: is no ONNX graph, or damaged; export it anew.") from error
    raise UsageError(f"{path}: needs the package onnx; install it with: {to_install()}.")


def _about_of_openvino(path: Path) -> str | None:
    if util.find_spec("openvino") is None:
        raise UsageError(f"{path}: needs the package openvino; install it with: {to_install()}.")
    import openvino

    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        raise ModelFileError(f"{path}: is no graph of OpenVINO, or damaged; export it anew.") from error
    return str(model.get_rt_info([ABOUT]).astype(str)) if model.has_rt_info([ABOUT]) else None
