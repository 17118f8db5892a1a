"""Writes a model in another format, for those who use it without Cervicyte or without torch.

What computes by itself (ONNX, OpenVINO, TorchScript, WSInfer) is compared with the network on cells before it
is put in place: it stands there only if it answers alike, with a report beside it that says how nearly.
"""

from __future__ import annotations

import base64
import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from cervicyte.datasets.layouts import read_dataset
from cervicyte.errors import ModelFileError, UsageError
from cervicyte.evaluation.features import stage_activations
from cervicyte.evaluation.predictions import BATCH
from cervicyte.evaluation.seen import OTHER_CELLS, refuse_seen
from cervicyte.images.preprocessing import NO_GAIN, ORIGINAL_PREPROCESSING, Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.inference.choice import graph_of
from cervicyte.inference.engines import INT8, Engine, OnnxEngine, OpenVinoEngine
from cervicyte.inference.parity import compare, sample_cells
from cervicyte.inference.quantise import cost_of, quantised, refuse_what_calibrated
from cervicyte.inference.sources import Source, drawn_sources
from cervicyte.inference.torch_engine import TorchEngine
from cervicyte.network.description import ABOUT
from cervicyte.network.frozen import PRECISION_KEY, Reference
from cervicyte.network.graph import Output
from cervicyte.network.model_file import ModelFile, all_but_weights, save_model
from cervicyte.network.resnet import CBAMResNet50, folded
from cervicyte.provenance import provenance, refuse_to_replace, write_json
from cervicyte.training.cells import load_cells

FOLDER = ""
SUFFIXES = {
    "pth": ".pth",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "torchscript": ".pt",
    "openvino": FOLDER,
    "wsinfer": FOLDER,
}
REPORT = "parity.json"
MOST_IMAGES = 200  # that a report compares
IN_INT8 = ("onnx", "openvino")
MOST_IN_INT8 = 1000  # that int8 is measured on
MOST_CALIBRATING = 300
SEED = 0  # draws images where there are more


@dataclass(frozen=True)
class Int8:
    """How a graph is rounded to eight bits, and on what that is measured, see `quantise`.

    Attributes:
        calibration: images of the kind that it will see, as `sources_of` takes them; of more than 300,
            as many are drawn.
        held_out: labelled cells that the model has not seen, for the loss of accuracy; without, the share of
            images that get another class stands for it.
    """

    calibration: Sequence[str]
    held_out: Path | None = None


def export_model(
    model: ModelFile,
    path: Path,
    file_format: str,
    *,
    force: bool = False,
    images: Sequence[str] = (),
    spacing: float | None = None,
    int8: Int8 | None = None,
    command: str | None = None,
) -> list[str]:
    """Write a model; return what its user must know.

    Args:
        model: as read from a file; its network lies on the CPU. It is not changed.
        path: ends as `SUFFIXES` has it; of `openvino` and `wsinfer`, a folder.
        file_format: `pth`, in float32, with the keys that the original notebook reads; `safetensors`, see
            `save_model`; `onnx`, `openvino` and `torchscript`, whose input and outputs are those of
            `network.graph`; or `wsinfer`, which takes normalised images and gives logits. All carry all
            metadata.
        force: replace what is there.
        images: on which what computes by itself is compared with the network, as `sources_of` takes them, at
            most `MOST_IMAGES`, drawn where there are more; none are the drawn cells that ship.
        spacing: of `wsinfer` alone, and needed there: micrometres a pixel of the network's input.
        int8: of `onnx` and `openvino`: round to eight bits, if that costs next to nothing.
        command: the command line, recorded in the report.

    Raises:
        UsageError: there is no such format, `path` ends otherwise, there is something and no `force`, or
            a package or the spacing is missing.
        ModelFileError: the format cannot hold this model, or what was written answers otherwise than the
            network; then nothing is left of it.
        ImageError: one of `images` cannot be read.
    """
    if file_format not in SUFFIXES:
        raise UsageError(
            f"There is no format {file_format!r} to export to; choose one of {', '.join(SUFFIXES)}."
        )
    suffix = SUFFIXES[file_format]
    if path.suffix != suffix:
        ending = f"does not end with {suffix}" if suffix else "is to be a folder, whose name has no ending"
        raise UsageError(f"{path}: {ending}; name it so with --out.")
    refuse_to_replace(path, force)
    if file_format == "wsinfer":
        _refuse_for_wsinfer(model.preprocessing, spacing)
    elif spacing is not None:
        raise UsageError(f"--spacing is for wsinfer alone, not for {file_format}; leave it out.")
    if int8 is not None and file_format not in IN_INT8:
        raise UsageError(f"int8 is for {' and '.join(IN_INT8)} alone, not for {file_format}.")
    if file_format not in WRITERS:
        save_model(path, model)
        return _notes_on_pth(model) if file_format == "pth" else []
    if int8 is not None:
        _write_int8(model, path, file_format, int8, images, command)
        return []
    _write_checked(model, path, file_format, images, spacing, command)
    if file_format == "wsinfer":
        return [
            f"A patch is {model.preprocessing.image_size} pixels, {model.preprocessing.image_size} times the "
            "spacing, wide. This model knows patches with one cell in the middle that fills them; on any "
            "other patch its answer means nothing, and WSInfer's probabilities are not calibrated."
        ]
    return []


def _write_checked(
    model: ModelFile,
    path: Path,
    file_format: str,
    images: Sequence[str],
    spacing: float | None,
    command: str | None,
) -> None:
    """Write into a neighbouring folder, compare, and put in place what is right, with its report."""
    compared, origin = _compared(model, images)

    def checked(folder: Path) -> dict[str, Any]:
        engine = WRITERS[file_format](model, folder, path.name, spacing)
        parity = compare(engine, TorchEngine(model), compared)
        if parity.faults:
            raise ModelFileError(
                f"{path}: is not written, since it answers otherwise than the network: "
                f"{'; '.join(parity.faults)}; tell the makers of Cervicyte."
            )
        return {"engine": engine.describe(), **provenance(command), **origin, "parity": parity.to_json()}

    _put_in_place(path, file_format, checked)


def _put_in_place(path: Path, file_format: str, checked: Callable[[Path], dict[str, Any]]) -> None:
    """Let `checked` write into a neighbouring folder, and move everything to its place with the report."""
    target = path.parent if SUFFIXES[file_format] else path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as beside:
        folder = Path(beside)
        said = checked(folder)
        report = f"{path.name}.{REPORT}" if SUFFIXES[file_format] else REPORT
        write_json(folder / report, {"format": file_format, **said})
        target.mkdir(exist_ok=True)
        for written in sorted(folder.iterdir()):
            written.replace(target / written.name)


def _write_int8(
    model: ModelFile, path: Path, file_format: str, int8: Int8, images: Sequence[str], command: str | None
) -> None:
    """Write a graph in int8, measure what that costs, and put it in place only if that is next to nothing."""
    sources, found = drawn_sources(int8.calibration, MOST_CALIBRATING, SEED)
    calibrating, cells = _read(model, sources)
    truth = None
    drawn = {"calibrating_images": len(cells), "calibrating_images_found": found, "seed": SEED}
    if int8.held_out is None:
        sources, drawn["images_found"] = drawn_sources(images, MOST_IN_INT8, SEED)
        measuring, compared = _read(model, sources)
    else:
        measuring, compared, truth = _read_held_out(model, int8.held_out)
    refuse_what_calibrated(calibrating, measuring)
    graph = quantised(graph_of(model), cells)
    network = TorchEngine(model)

    def checked(folder: Path) -> dict[str, Any]:
        write = _write_onnx if file_format == "onnx" else _write_openvino
        engine = write(model, folder, path.name, None, graph)
        engine.precision = INT8
        cost = cost_of(_logits(engine, compared), _logits(network, compared), truth)
        parity = compare(engine, network, sample_cells(model.preprocessing))
        if faults := [*cost["faults"], *(f"on drawn cells {fault}" for fault in parity.faults)]:
            raise ModelFileError(
                f"{path}: is not written, since int8 costs too much on {len(compared)} images: "
                f"{'; '.join(faults)}; stay with float32, or with bfloat16, which needs no other file."
            )
        origin = {"engine": engine.describe(), **provenance(command), **drawn}
        return {**origin, "int8": cost, "parity": parity.to_json()}

    _put_in_place(path, file_format, checked)


def _logits(engine: Engine, images: np.ndarray) -> np.ndarray:
    starts = range(0, len(images), BATCH)
    return np.concatenate([engine.run(images[start : start + BATCH]).logits for start in starts])


def _read(model: ModelFile, sources: Iterable[Source]) -> tuple[list[bytes], np.ndarray]:
    """Return the contents and the preprocessed images of files."""
    size = model.preprocessing.image_size
    contents, found = [], [np.empty((0, size, size, 3), np.uint8)]
    for source in sources:
        try:
            contents.append(source.read())
            found.append(model.preprocessing(read_image(contents[-1], name=source.name))[np.newaxis])
        except (OSError, ValueError) as error:
            raise UsageError(f"{source.name}: cannot be read ({error}); leave it out.") from error
    return contents, np.concatenate(found)


def _read_held_out(model: ModelFile, data: Path) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Return the contents, the preprocessed images and the classes of labelled cells not seen in training."""
    cells = read_dataset(data).cells
    refuse_seen(model, cells, data, False, OTHER_CELLS)
    unknown = sorted({cell.label for cell in cells} - set(model.class_names))
    if unknown:
        raise UsageError(f"{data}: has the class {unknown[0]}, which the model does not have; take it out.")
    truth = np.array([model.class_names.index(cell.label) for cell in cells])
    contents = [cell.path.read_bytes() for cell in cells]
    return contents, load_cells(cells, model.preprocessing), truth


def _compared(model: ModelFile, names: Sequence[str]) -> tuple[np.ndarray, dict[str, int]]:
    """Return the preprocessed images on which an export is compared, and how they were drawn."""
    if not names:
        return sample_cells(model.preprocessing), {}
    sources, found = drawn_sources(names, MOST_IMAGES, SEED)
    if not sources:
        raise UsageError("--images names no image; name some, or leave it out.")
    return _read(model, sources)[1], {"images_found": found, "seed": SEED}


# --- what computes by itself -----------------------------------------------------------------------


def _write_onnx(
    model: ModelFile, folder: Path, name: str, spacing: float | None, graph: bytes | None = None
) -> Engine:
    """Write the network's graph, or the given one in int8."""
    import onnx

    path = folder / name
    written = onnx.load_model_from_string(graph or graph_of(model))
    onnx.helper.set_model_props(written, {ABOUT: _about(model, INT8 if graph else "float32")})
    path.write_bytes(written.SerializeToString())
    return OnnxEngine(path) if OnnxEngine.installed() else OpenVinoEngine(path)


def _write_openvino(
    model: ModelFile, folder: Path, name: str, spacing: float | None, graph: bytes | None = None
) -> Engine:
    """Write the network's graph, or the given one in int8."""
    OpenVinoEngine.refuse_unusable("float32")
    import openvino

    path = folder / "model.xml"
    network = openvino.Core().read_model(graph or graph_of(model))
    network.set_rt_info(_about(model, INT8 if graph else "float32"), [ABOUT])
    openvino.save_model(network, path, compress_to_fp16=False)
    return OpenVinoEngine(path)


def _write_torchscript(model: ModelFile, folder: Path, name: str, spacing: float | None) -> Engine:
    size = model.preprocessing.image_size
    graph = _Graph(folded(model.network), model.preprocessing)
    _save_script(graph, torch.zeros(2, size, size, 3, dtype=torch.uint8), folder / name, model)
    return _ScriptEngine(folder / name)


def _write_wsinfer(model: ModelFile, folder: Path, name: str, spacing: float | None) -> Engine:
    """Write what WSInfer and its QuPath extension take, by the schema of its model zoo.

    Source: `model-config.schema.json` and `WSInferModelLocal.java` of the projects wsinfer-zoo and
    qupath-extension-wsinfer, which look for these two names. Both apply softmax to what comes out.
    """
    size = model.preprocessing.image_size
    path = folder / "torchscript_model.pt"
    _save_script(folded(model.network), torch.zeros(2, 3, size, size), path, model)
    write_json(
        folder / "config.json",
        {
            "spec_version": "1.0",
            "architecture": "cbam_resnet50",
            "num_classes": len(model.class_names),
            "patch_size_pixels": size,
            "spacing_um_px": spacing,
            "class_names": list(model.class_names),
            "transform": [
                {"name": "Resize", "arguments": {"size": size}},
                {"name": "ToTensor"},
                {
                    "name": "Normalize",
                    "arguments": {
                        "mean": list(model.preprocessing.mean),
                        "std": list(model.preprocessing.std),
                    },
                },
            ],
        },
    )
    return _ScriptEngine(path, model.preprocessing)


WRITERS: dict[str, Callable[[ModelFile, Path, str, float | None], Engine]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torchscript": _write_torchscript,
    "wsinfer": _write_wsinfer,
}


def _about(model: ModelFile, precision: str) -> str:
    """Return what a graph carries, in base64: all but the weights, and what it is held against."""
    cells = sample_cells(model.preprocessing)
    reference = Reference(cells, TorchEngine(model).run(cells, evidence=True))
    said = {PRECISION_KEY: precision}
    return base64.b64encode(all_but_weights(model, reference.arrays(), **said)).decode()


class _Graph(nn.Module):
    """The network with the input and the outputs of `network.graph`."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: CBAMResNet50, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            colours = 255 * torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1)
            self.register_buffer(name, colours)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        activations = stage_activations(self.network, inputs)
        last = activations["stage4"]
        means = [values.mean((2, 3)) for values in activations.values()]
        shares = self.network.fc.weight[:, :, None, None] / (last.shape[2] * last.shape[3])
        return self.network.fc(means[1]), means[0], means[1], conv2d(last, shares)


class _ScriptEngine(Engine):
    """TorchScript as it lies on the disk, for its comparison alone."""

    name = "torchscript"
    package = "torch"
    precisions = ("float32",)

    def __init__(self, path: Path, preprocessing: Preprocessing | None = None) -> None:
        """Take the file and, if it wants images normalised and gives logits alone, how that is done."""
        self.precision = "float32"
        with _without_advice():
            self._script = torch.jit.load(str(path), map_location="cpu").eval()
        self._preprocessing = preprocessing

    @torch.inference_mode()
    def run(self, images: np.ndarray, evidence: bool = False) -> Output:
        """See `Engine.run`."""
        if self._preprocessing is not None:
            inputs = torch.from_numpy(self._preprocessing.normalise(images))
            return Output(self._script(inputs).numpy(), {}, None)
        found = [values.numpy() for values in self._script(torch.from_numpy(images))]
        return Output(found[0], {"stage2": found[1], "stage4": found[2]}, found[3])


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keep torch from advising other ways than TorchScript, which WSInfer and QuPath cannot read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _save_script(network: nn.Module, example: Tensor, path: Path, model: ModelFile) -> None:
    with _without_advice():
        script = torch.jit.trace(network.eval(), example)
        torch.jit.save(script, str(path), _extra_files={ABOUT: all_but_weights(model)})


def _refuse_for_wsinfer(preprocessing: Preprocessing, spacing: float | None) -> None:
    if spacing is None or not 0 < spacing < 100:
        raise UsageError(
            "wsinfer needs --spacing, micrometres a pixel of the network's input; measure it, do not guess."
        )
    extra = [name for name in ("white_point", "denoise", "clahe") if getattr(preprocessing, name)]
    if extra:
        raise UsageError(
            f"This model's images go through {' and '.join(extra)}, which WSInfer cannot do: its answers "
            "there would be others. Export a model that was trained without."
        )
    if preprocessing.gain != NO_GAIN:
        raise UsageError(
            "This model's images are brought to another light by a gain, as `cervicyte adapt` sets it, which "
            "WSInfer cannot do: its answers there would be others. Export the model that it was adapted "
            "from, or this one in another format."
        )


def _notes_on_pth(model: ModelFile) -> list[str]:
    """Say what the original notebook, which knows one network and one preprocessing, makes of the file."""
    if model.network.kind != CBAMResNet50.kind:
        return [f"The original notebook cannot load this network, {model.network.kind}. Cervicyte can."]
    if model.network.placement != "stage":
        return [
            "The original notebook's network has CBAM after each stage; it cannot load this one, whose "
            f"placement is {model.network.placement}. Cervicyte can."
        ]
    if model.preprocessing != ORIGINAL_PREPROCESSING:
        return [
            "The original notebook prepares images in its own way, not as this model was trained: its "
            "answers there will differ from Cervicyte's."
        ]
    return []
