"""What computes the network: one seam, and behind it ONNX Runtime or OpenVINO; torch is in `torch_engine`.

An engine maps images as preprocessing leaves them to all that an answer needs, so that nobody in front of the
seam knows which one computes. Engines differ by rounding; `parity` says by how much, and refuses one that is
wrong. This module imports neither torch nor, until an engine is made, the library that it runs.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from importlib import metadata, util
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from cervicyte.errors import ModelFileError, UsageError, to_install
from cervicyte.inference.signal_stack import signal_stack_kept
from cervicyte.network.graph import INPUT, OUTPUTS, Output

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
LONGEST_REASON = 160  # signs of a library's own words in a sentence
INT8 = "int8"  # of a graph that was exported so; no engine makes it of another


class Engine(ABC):
    """Computes one model's network at one precision; any number of threads may ask at once.

    Attributes:
        name: as the command line has it.
        package: that it needs.
        extra: of the program that brings it; None: it always comes.
        precisions: that it has.
        reads: the endings of the graphs' files that it opens.
        precision: of its multiplications; what comes out is float32.
        notes: why it answers and not another that is installed, a sentence, where there is such a reason.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str | None] = None
    precisions: ClassVar[tuple[Precision, ...]]
    reads: ClassVar[tuple[str, ...]] = ()
    precision: str
    notes: tuple[str, ...] = ()

    @abstractmethod
    def run(self, images: np.ndarray, evidence: bool = False) -> Output:
        """Return what the network makes of images, uint8 [N, S, S, 3], RGB, preprocessed."""

    @classmethod
    def installed(cls) -> bool:
        """Return whether its package is there, without importing it."""
        return util.find_spec(cls.package) is not None

    def describe(self) -> dict[str, Any]:
        """Return what a table records of the engine that answered."""
        return {"name": self.name, "version": metadata.version(self.package), "precision": self.precision}

    @classmethod
    def refuse_unusable(cls, precision: Precision) -> None:
        """Raise a UsageError where the engine has not this precision, or its package is not installed."""
        if precision not in cls.precisions:
            raise UsageError(f"The engine {cls.name} has no {precision}; choose another with --engine.")
        if not cls.installed():
            raise UsageError(
                f"The engine {cls.name} needs the package {cls.package}; install it with: "
                f"{to_install(cls.extra)}."
            )


class OnnxEngine(Engine):
    """ONNX Runtime on the processor."""

    name = "onnx"
    package = "onnxruntime"
    extra = "fast"
    precisions = ("float32",)
    reads = (".onnx",)

    def __init__(self, graph: bytes | Path, precision: Precision = "float32") -> None:
        """Take an ONNX model's bytes, or its file.

        Raises:
            UsageError: onnxruntime is not installed, or has not this precision.
            ModelFileError: it cannot read the graph.
        """
        self.refuse_unusable(precision)
        import onnxruntime

        self.precision = precision
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = thread_count()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                graph if isinstance(graph, bytes) else os.fspath(graph),
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # its errors have no common base
            raise _unreadable(graph, self.name, error) from error

    def run(self, images: np.ndarray, evidence: bool = False) -> Output:
        """See `Engine.run`."""
        wanted = OUTPUTS if evidence else OUTPUTS[:-1]
        return _output(self._session.run(list(wanted), {INPUT: np.ascontiguousarray(images)}))


class OpenVinoEngine(Engine):
    """OpenVINO on the processor."""

    name = "openvino"
    package = "openvino"
    precisions = ("float32", "bfloat16")
    reads = (".onnx", ".xml")

    def __init__(self, graph: bytes | Path, precision: Precision = "float32") -> None:
        """Take an ONNX model's bytes, or the file of an ONNX model or of OpenVINO's own form (.xml).

        Raises:
            UsageError: openvino is not installed, or this processor has not this precision.
            ModelFileError: it cannot read the graph.
        """
        self.refuse_unusable(precision)
        import openvino

        self.precision = precision
        with signal_stack_kept():
            core = openvino.Core()
            if precision == "bfloat16" and "BF16" not in core.get_property(
                "CPU", "OPTIMIZATION_CAPABILITIES"
            ):
                raise UsageError("This processor computes no bfloat16; choose --precision float32.")
            try:
                model = core.read_model(graph if isinstance(graph, bytes) else os.fspath(graph))
                self._compiled = core.compile_model(
                    model,
                    "CPU",
                    {
                        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
                        "INFERENCE_NUM_THREADS": thread_count(),
                        "PERFORMANCE_HINT": "LATENCY",
                    },
                )
            except RuntimeError as error:
                raise _unreadable(graph, self.name, error) from error
        self._of_thread = threading.local()  # a request answers one at a time

    def run(self, images: np.ndarray, evidence: bool = False) -> Output:
        """See `Engine.run`."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        # What comes out is copied: the request's own memory is written anew with its next images.
        found = self._of_thread.request.infer({INPUT: np.ascontiguousarray(images)})
        return _output([found[name] for name in (OUTPUTS if evidence else OUTPUTS[:-1])])


def thread_count() -> int:
    """Return how many threads an engine takes: OMP_NUM_THREADS, or the processors that there are for us."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdecimal() and int(stated):
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _output(found: list[np.ndarray]) -> Output:
    logits, stage2, stage4, *evidence = found
    return Output(logits, {"stage2": stage2, "stage4": stage4}, evidence[0] if evidence else None)


def _unreadable(graph: bytes | Path, name: str, error: Exception) -> ModelFileError:
    what = "The graph" if isinstance(graph, bytes) else f"{graph}:"
    return ModelFileError(f"{what} cannot be read by {name} ({_in_short(error)}); export the model anew.")


def _in_short(error: Exception) -> str:
    """Return the end of what a library says, where the reason stands, without its advice and its `;`."""
    lines = [line.strip(" -") for line in str(error).splitlines() if "http" not in line]
    last = next((line for line in reversed(lines) if line), type(error).__name__).replace(";", ",")
    return last if len(last) <= LONGEST_REASON else f"…{last[-LONGEST_REASON:]}"
