"""Which engine answers: the one that was asked for, or the fastest that is installed and right.

An engine is compared with the network the first time that a model meets it on a machine. Which of those that
are right is the fastest is measured once, in turns, so that other work on the machine falls on all of them.
What was found is kept in the user's cache folder, under everything that it may depend on; where nothing can
be written there, it is found anew each time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cervicyte import __version__
from cervicyte.errors import ModelFileError, UsageError, to_install
from cervicyte.inference.engines import (
    INT8,
    PRECISIONS,
    Engine,
    OnnxEngine,
    OpenVinoEngine,
    Precision,
    thread_count,
)
from cervicyte.inference.parity import AT_ONCE, BOUNDS, Parity, compare, held_against, sample_cells
from cervicyte.network.frozen import FrozenModel, torch_is_installed
from cervicyte.network.graph import onnx_graph
from cervicyte.provenance import sha256_of_json, write_json

if TYPE_CHECKING:  # torch takes a second to come, and the other engines need it not
    from cervicyte.inference.torch_engine import TorchEngine
    from cervicyte.network.model_file import ModelFile

AUTO = "auto"
TORCH = "torch"
# By name, all that compute a network's graph; another is one line more, see docs/extend.md.
GRAPH_ENGINES: dict[str, Any] = {engine.name: engine for engine in (OnnxEngine, OpenVinoEngine)}
CACHE_VARIABLE = "CERVICYTE_CACHE"
ROUNDS = 5  # of which the fastest counts, after one that warms up


def engine_for(
    model: ModelFile | FrozenModel,
    name: str | None = None,
    precision: Precision = "float32",
    weights_sha256: Callable[[], str] | None = None,
) -> Engine:
    """Return the engine that answers for a model.

    Args:
        model: its network, if it has one, lies on its device, in evaluation mode.
        name: `TORCH`, of `GRAPH_ENGINES`, or `AUTO`: the fastest of those that are installed, have the
            precision and are right. None: torch, or `AUTO` for what torch does not compute.
        precision: of `PRECISIONS`; a graph in int8 stays so.
        weights_sha256: gives the model's, for whoever has it already.

    Raises:
        UsageError: there is no such engine or precision here, or the engine is wrong.
    """
    frozen = isinstance(model, FrozenModel)
    name = name or (AUTO if frozen else TORCH)
    if precision not in PRECISIONS:
        raise UsageError(f"There is no precision {precision!r}; choose {' or '.join(PRECISIONS)}.")
    if name not in (AUTO, TORCH, *GRAPH_ENGINES):
        raise UsageError(f"There is no engine {name!r}; choose {', '.join([AUTO, TORCH, *GRAPH_ENGINES])}.")
    if not isinstance(model, FrozenModel) and (name, precision) == (TORCH, "float32"):
        return _torch_engine(model)
    graph = _Graph(model)
    digest = weights_sha256 or functools.cache(lambda: model.weights_sha256)
    if name != AUTO:
        engine = _make(name, model, precision, graph)
        if faults := _faults(engine, model, digest()):
            raise UsageError(
                f"The engine {name} does not answer as the network does: {'; '.join(faults)}. Choose "
                f"{'another' if frozen else TORCH}."
            )
        return engine
    right, unusable, wrong, refused = [], [], [], []
    for kind in (TORCH, *GRAPH_ENGINES):
        if kind == TORCH and frozen:
            continue
        try:
            engine = _make(kind, model, precision, graph)
            if faults := _faults(engine, model, digest()):
                wrong.append(f"{kind} does not answer as the network does ({', '.join(faults)})")
            else:
                right.append(engine)
        except UsageError as error:  # such as a processor without this precision, or no package
            unusable.append(_reason(error, kind, model))
            if precision != "float32" and _has(kind, precision) and not _on_a_gpu(model):
                refused.append(unusable[-1])
        except ModelFileError as error:  # a library that cannot open the graph, which another may
            wrong.append(_reason(error, kind, model))
    if right:
        engine = _fastest(right, model, digest())
        if wrong or refused:
            engine.notes = (f"{engine.name} answers, since {' and '.join([*wrong, *refused])}.",)
        return engine
    if not any(kind.installed() for kind in GRAPH_ENGINES.values()) and frozen:
        raise UsageError(
            f"Nothing that computes a network is installed; install torch with: {to_install('train')}, or "
            f"OpenVINO with: {to_install()}."
        )
    which = f"{model.path}: no engine here" if isinstance(model, FrozenModel) else "No engine here"
    remedy = "export the model anew" if frozen else "choose --engine torch in float32"
    raise UsageError(f"{which} answers in {precision}: {', and '.join([*wrong, *unusable])}; {remedy}.")


def usual_engine(path: Path) -> str | None:
    """Return what computes a model's file where nobody says what: OpenVINO where a processor computes.

    It is faster than torch, which takes seconds to come. None leaves the choice to `engine_for`: for a file
    that only torch reads, a graph, a GPU that torch can use, and where one of both is not installed.
    """
    if path.suffix != ".safetensors" or not torch_is_installed():
        return None
    return OpenVinoEngine.name if OpenVinoEngine.installed() and not _torch_has_a_gpu() else None


def _has(kind: str, precision: Precision) -> bool:
    """Return whether an engine is installed and has this precision, on some processor."""
    engine = GRAPH_ENGINES.get(kind)
    return engine is not None and engine.installed() and precision in engine.precisions


def _on_a_gpu(model: ModelFile | FrozenModel) -> bool:
    return not isinstance(model, FrozenModel) and next(model.network.parameters()).is_cuda


def _torch_has_a_gpu() -> bool:
    """Return whether torch would compute on a GPU, without importing it."""
    build = metadata.version(TORCH).partition("+")[2]
    if build.startswith(("cpu", "rocm")):  # AMD's has no other driver
        return not build.startswith("cpu")
    # CUDA driver API: cuInit and cuDeviceGetCount, which go by CUDA_VISIBLE_DEVICES.
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        devices = ctypes.c_int()
        return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(devices)) == 0 and devices.value > 0
    except (OSError, AttributeError):  # no driver
        return False


def _reason(error: Exception, kind: str, model: ModelFile | FrozenModel) -> str:
    """Return what an error says, without its remedy, and which engine it is of."""
    said = str(error)
    if isinstance(model, FrozenModel):
        said = said.replace(f"{model.path}: its", "its").replace(f"{model.path}:", "it")
    return reason_in_short(said, kind)


def reason_in_short(error: Exception | str, engine: str) -> str:
    """Return what is said of an engine, without the remedy, to go on in a sentence."""
    said = str(error).partition(";")[0].partition(". Choose")[0]
    said = said[0].lower() + said[1:]
    return said if engine in said else f"{engine}: {said}"


class _Graph:
    """What engines read: a model's ONNX graph, written once, if at all; or an exported graph's file."""

    def __init__(self, model: ModelFile | FrozenModel) -> None:
        self._model, self._bytes = model, b""

    def __call__(self) -> bytes | Path:
        if isinstance(self._model, FrozenModel) and isinstance(self._model.source, Path):
            return self._model.source
        if not self._bytes:
            self._bytes = graph_of(self._model)
        return self._bytes


def graph_of(model: ModelFile | FrozenModel) -> bytes:
    """Return a model's network as the bytes of an ONNX model, see `network.graph`."""
    if isinstance(model, FrozenModel):
        assert not isinstance(model.source, Path)  # a graph is one already
        state = model.source
    else:
        state = {name: value.cpu().numpy() for name, value in model.network.state_dict().items()}
    content: bytes = onnx_graph(state, model.preprocessing).SerializeToString()
    return content


def _torch_engine(model: ModelFile, precision: Precision = "float32") -> TorchEngine:
    from cervicyte.inference.torch_engine import TorchEngine

    return TorchEngine(model, precision)


def _make(
    name: str, model: ModelFile | FrozenModel, precision: Precision, graph: Callable[[], bytes | Path]
) -> Engine:
    if name == TORCH:
        if isinstance(model, FrozenModel):
            raise UsageError(
                f"{model.path}: has no network that torch could compute here; leave out --engine, or choose "
                f"{' or '.join(GRAPH_ENGINES)}."
            )
        return _torch_engine(model, precision)
    kind = GRAPH_ENGINES[name]
    is_int8 = isinstance(model, FrozenModel) and model.precision == INT8
    if is_int8 and precision != "float32":
        raise UsageError("A graph in int8 has this precision and no other; leave out --precision.")
    kind.refuse_unusable(precision)  # before the graph is written
    content = graph()
    if isinstance(content, Path) and content.suffix not in kind.reads:
        raise UsageError(f"{content}: cannot be opened by {name}; leave out --engine, or export to onnx.")
    engine = kind(content, precision)
    if is_int8:
        engine.precision = INT8
    return engine


# --- the first use ---------------------------------------------------------------------------------


def _faults(engine: Engine, model: ModelFile | FrozenModel, weights_sha256: str) -> list[str]:
    """Return why an engine may not answer, see `parity.Parity`, from the cache or now; none where it may."""
    about = _about(engine, model, weights_sha256)
    known = _read(about).get("faults")
    if isinstance(known, list):
        return list(map(str, known))
    parity = _compared(engine, model)
    faults = [] if parity is None else parity.faults
    _keep(about, {"faults": faults})
    return faults


def _fastest(engines: Sequence[Engine], model: ModelFile | FrozenModel, weights_sha256: str) -> Engine:
    """Return the engine that takes the least time for some images, from the cache or now."""
    if len(engines) == 1:
        return engines[0]
    about = {"fastest_of": [_about(engine, model, weights_sha256) for engine in engines]}
    names = [engine.name for engine in engines]
    known = _read(about).get("fastest")
    if known not in names:
        images = np.concatenate([sample_cells(model.preprocessing)] * AT_ONCE)[:AT_ONCE]
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(1 + ROUNDS):
            for engine in engines:
                began = time.perf_counter()
                engine.run(images)
                taken[engine.name].append(time.perf_counter() - began)
        rates = {name: AT_ONCE / min(found[1:]) for name, found in taken.items()}
        known = max(rates, key=lambda name: rates[name])
        _keep(about, {"fastest": known, "images_per_second": rates})
    return engines[names.index(known)]


def _compared(engine: Engine, model: ModelFile | FrozenModel) -> Parity | None:
    """Return how far an engine is from the network on drawn cells; None where it is the network."""
    cells = sample_cells(model.preprocessing)
    if isinstance(model, FrozenModel):
        known = model.held_against(cells)
        try:
            return held_against(engine, known.images, known.output)
        except Exception as error:  # each engine's own: a graph that another program has changed
            if not isinstance(model.source, Path):
                raise
            raise ModelFileError(
                f"{model.path}: its graph does not take or give what `cervicyte export` wrote, such as any "
                "number of images at once; export it anew."
            ) from error
    if (engine.name, engine.precision) == (TORCH, "float32"):
        return None
    return compare(engine, _torch_engine(model), cells)


def _about(engine: Engine, model: ModelFile | FrozenModel, weights_sha256: str) -> dict[str, Any]:
    """Return everything that may change what a first use finds."""
    return {
        "engine": engine.describe(),
        "weights_sha256": weights_sha256,
        "preprocessing": model.preprocessing.fingerprint(),
        **_about_the_reference(model),
        "cervicyte": __version__,
        "bounds": dict(BOUNDS[engine.precision]),
        "processor": _processor(),
        "threads": thread_count(),
    }


def _about_the_reference(model: ModelFile | FrozenModel) -> dict[str, Any]:
    if not isinstance(model, FrozenModel):
        device = str(next(model.network.parameters()).device)
        return {"reference": TORCH, "torch": metadata.version("torch"), "device": device}
    if not isinstance(model.source, Path):
        return {"reference": "numpy", "numpy": np.__version__}
    return {"reference": "recorded", "files_sha256": model.files_sha256}


def _path(about: Mapping[str, Any]) -> Path:
    return cache_folder() / "engines" / f"{sha256_of_json(about)[:32]}.json"


def _read(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept under this key; nothing, if it is none of ours or damaged."""
    try:
        content = json.loads(_path(about).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _keep(about: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a folder that nobody may write to; the answer is the same
        write_json(_path(about), {**about, **found})


def cache_folder() -> Path:
    """Return where what can be found anew is kept: $CERVICYTE_CACHE, or the system's folder for such."""
    if stated := os.environ.get(CACHE_VARIABLE):
        return Path(stated)
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  # Path.home() raises where there is none
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "cervicyte"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "cervicyte" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "cervicyte"


def _processor() -> str:
    """Return the processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
