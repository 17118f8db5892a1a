"""Which engine answers: the one that was asked for, or the fastest that is installed and right.

An engine is compared with the network the first time that a model meets it on a machine, and its speed is
measured. What was found is kept in the user's cache folder, under everything that it may depend on; where
nothing can be written there, it is found anew each time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cervicyte import __version__
from cervicyte.errors import UsageError
from cervicyte.inference.engines import (
    PRECISIONS,
    Engine,
    OnnxEngine,
    OpenVinoEngine,
    Precision,
    thread_count,
)
from cervicyte.inference.parity import AT_ONCE, BOUNDS, compare, sample_cells
from cervicyte.inference.torch_engine import TorchEngine
from cervicyte.network.graph import onnx_graph
from cervicyte.network.model_file import ModelFile, weights_hash
from cervicyte.provenance import sha256_of_json, write_json

AUTO = "auto"
ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (TorchEngine, OnnxEngine, OpenVinoEngine)
}
CACHE_VARIABLE = "CERVICYTE_CACHE"
ROUNDS = 3  # of which the fastest counts


@dataclass(frozen=True)
class Trial:
    """What the first use of an engine found.

    Attributes:
        faults: see `parity.Parity`; none where the engine may answer.
        images_per_second: of the network alone, on this machine as busy as it was.
    """

    faults: tuple[str, ...]
    images_per_second: float


def engine_for(
    model: ModelFile,
    name: str = "torch",
    precision: Precision = "float32",
    weights_sha256: Callable[[], str] | None = None,
) -> Engine:
    """Return the engine that answers for a model.

    Args:
        model: its network lies on its device, in evaluation mode.
        name: of `ENGINES`, or `AUTO`: the fastest of those that are installed, have the precision and are
            right.
        precision: of `PRECISIONS`.
        weights_sha256: gives `weights_hash` of the network, for whoever has it already.

    Raises:
        UsageError: there is no such engine or precision here, or the engine is wrong.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"There is no precision {precision!r}; choose {' or '.join(PRECISIONS)}.")
    if name != AUTO and name not in ENGINES:
        raise UsageError(f"There is no engine {name!r}; choose {', '.join([AUTO, *ENGINES])}.")
    if (name, precision) == ("torch", "float32"):
        return TorchEngine(model)
    graph = _Graph(model)
    digest = weights_sha256 or functools.cache(lambda: weights_hash(model.network))
    if name != AUTO:
        engine = _make(name, model, precision, graph)
        if faults := _trial(engine, model, digest()).faults:
            raise UsageError(
                f"The engine {name} does not answer as the network does: {'; '.join(faults)}. Choose torch."
            )
        return engine
    best, most = None, 0.0
    for kind in ENGINES.values():
        if precision not in kind.precisions or not kind.installed():
            continue
        try:
            engine = _make(kind.name, model, precision, graph)
        except UsageError:  # such as a processor without this precision, or no onnx
            continue
        trial = _trial(engine, model, digest())
        if not trial.faults and trial.images_per_second > most:
            best, most = engine, trial.images_per_second
    if best is None:
        raise UsageError(f"No engine here is right in {precision}; choose --engine torch in float32.")
    return best


class _Graph:
    """A model's ONNX graph, written once, if at all."""

    def __init__(self, model: ModelFile) -> None:
        self._model, self._bytes = model, b""

    def __call__(self) -> bytes:
        if not self._bytes:
            self._bytes = graph_of(self._model)
        return self._bytes


def graph_of(model: ModelFile) -> bytes:
    """Return a model's network as the bytes of an ONNX model, see `network.graph`."""
    state = {name: value.cpu().numpy() for name, value in model.network.state_dict().items()}
    content: bytes = onnx_graph(state, model.preprocessing).SerializeToString()
    return content


def _make(name: str, model: ModelFile, precision: Precision, graph: Callable[[], bytes]) -> Engine:
    if name == TorchEngine.name:
        return TorchEngine(model, precision)
    kind = OnnxEngine if name == OnnxEngine.name else OpenVinoEngine
    kind.refuse_unusable(precision)  # before the graph is written
    return kind(graph(), precision)


# --- the first use ---------------------------------------------------------------------------------


def _trial(engine: Engine, model: ModelFile, weights_sha256: str) -> Trial:
    """Return what the engine's first use found, from the cache or now."""
    about = _about(engine, model, weights_sha256)
    path = cache_folder() / "engines" / f"{sha256_of_json(about)[:32]}.json"
    known = _read(path)
    if known is not None:
        return known
    cells = sample_cells(model.preprocessing)
    reference = TorchEngine(model)
    faults = [] if _is(engine, reference) else compare(engine, reference, cells).faults
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        engine.run(cells[:AT_ONCE])
        taken.append(time.perf_counter() - began)
    found = Trial(tuple(faults), AT_ONCE / min(taken))
    with contextlib.suppress(OSError):  # a folder that nobody may write to; the answer is the same
        write_json(path, {**about, "faults": faults, "images_per_second": found.images_per_second})
    return found


def _is(engine: Engine, reference: Engine) -> bool:
    return (engine.name, engine.precision) == (reference.name, reference.precision)


def _about(engine: Engine, model: ModelFile, weights_sha256: str) -> dict[str, Any]:
    """Return everything that may change what a first use finds."""
    return {
        "engine": engine.describe(),
        "weights_sha256": weights_sha256,
        "preprocessing": model.preprocessing.fingerprint(),
        "device": str(next(model.network.parameters()).device),
        "cervicyte": __version__,
        "torch": metadata.version("torch"),
        "bounds": dict(BOUNDS[engine.precision]),
        "processor": _processor(),
        "threads": thread_count(),
    }


def _read(path: Path) -> Trial | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Trial(tuple(map(str, content["faults"])), float(content["images_per_second"]))
    except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours
        return None


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
