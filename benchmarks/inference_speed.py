"""How fast cells are classified: files to rows, the network alone, one cell with its maps, a cold start.

    python benchmarks/inference_speed.py ../shared/data/sipakmed --results benchmarks/results

All take turns in each round, in one process, so that other load on the machine falls on all of them: a ratio
is taken within its round, and median, lowest and highest of the rounds are told. Only the cold start runs in
a process of its own, as a user's does.

The original's way is PyTorch, eager, float32, NCHW, one image at a time at 224 pixels, after the original
notebook's resizing, denoising and CLAHE; it is measured with resizing alone, too, and so at the size that the
model that ships takes. Its rows are class and probabilities; ours have hash, calibration, prediction set and
familiarity besides.

int8 is a graph as `cervicyte export` makes it, calibrated on other cells of the data; what it costs is for
`precision_loss.py` and `int8_cost.py` to say. An engine or a precision that this machine has not is left out,
and the file says why. Processors with bfloat16 and without have a file each.

Without the network: the same from files to rows, where the network's answers are at hand, in milliseconds an
image: what stands beside the network, whatever computes it.

In bfloat16, where products are fast, the processor's cache may decide: the network alone is also given a
batch in parts of 4, 8 and 16 images.

A forward pass is of the same network, engine, precision and batch. The processor's rate is that of the best
square product of 1024 to 4096 in torch, at the same precision, in the same round.

A GPU has a benchmark of its own, `gpu_speed.py`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cervicyte import load_model
from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.synthetic import SAMPLES
from cervicyte.errors import UsageError
from cervicyte.evaluation.predictions import BATCH
from cervicyte.images.preprocessing import ORIGINAL_PREPROCESSING, Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.inference.choice import graph_of
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.engines import INT8, Engine, OpenVinoEngine, thread_count
from cervicyte.inference.predict import predict
from cervicyte.inference.quantise import quantised
from cervicyte.network.graph import Output
from cervicyte.provenance import provenance, write_json

ENGINES = (
    ("torch", "float32"),
    ("onnx", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", INT8),
)
CALIBRATING = 128  # cells for int8
OF_THE_ORIGINAL = 4  # images a round; they are slow
PRODUCTS = (1024, 2048, 4096)
PARTS = (4, 8, 16)
GIVEN_PARTS = ("openvino", "bfloat16")
GOALS = {
    "times_the_original": 12.0,
    "times_resizing_alone": 4.0,
    "share_of_the_network_alone": 0.9,
    "share_of_the_processors_rate": 1.0,
    "forward_passes_with_maps": 1.5,
    "cold_start_s": 4.0,
}


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spread(values: list[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in found.items()}


def one_by_one(classifier: Classifier, preprocessing: Preprocessing, paths: list[Path]) -> None:
    """Classify as the original does, with the same network."""
    for path in paths:
        inputs = torch.from_numpy(preprocessing.normalise(preprocessing(read_image(path))[np.newaxis]))
        with torch.no_grad():
            classifier.torch_model().network(inputs).softmax(1).numpy()


class AtHand(Engine):
    """Gives what an engine gave for the same images before."""

    name, package, precisions = "none", "numpy", ()

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[bytes, Output] = {}
        self.precision = engine.precision

    def run(self, images: np.ndarray, evidence: bool = False) -> Output:
        key = images[:, ::40, ::40].tobytes()  # next to no work
        if key not in self._known:
            self._known[key] = self._engine.run(images, evidence)
        return self._known[key]


def classifiers_here(cells: list[Path]) -> tuple[dict[tuple[str, str], Classifier], dict[str, str]]:
    """Return a classifier for each of `ENGINES` that this machine has, and why it has not the others.

    Args:
        cells: that calibrate int8.
    """
    found: dict[tuple[str, str], Classifier] = {}
    missing = {}
    for name, precision in ENGINES:
        try:
            if precision == INT8:
                found[name, precision] = in_int8(cells)
            else:
                found[name, precision] = load_model(device="cpu", engine=name, precision=precision)  # type: ignore[arg-type]  # refused if it is none
        except UsageError as error:
            missing[f"{name}, {precision}"] = str(error)
    return found, missing


def in_int8(cells: list[Path]) -> Classifier:
    classifier = load_model(device="cpu", engine="openvino")
    graph = quantised(
        graph_of(classifier.model), classifier.preprocessed([read_image(cell) for cell in cells])
    )
    classifier.engine = OpenVinoEngine(graph)
    classifier.engine.precision = INT8
    return classifier


def processor() -> dict[str, Any]:
    """Return what OpenVINO says of the processor."""
    import openvino

    core = openvino.Core()
    return {
        "name": core.get_property("CPU", "FULL_DEVICE_NAME"),
        "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
    }


def rate_of_products(precision: str) -> float:
    """Return the processor's best rate over `PRODUCTS`, operations a second."""
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    best = 0.0
    for size in PRODUCTS:
        one, other = (torch.randn(size, size).to(kind) for _ in range(2))
        best = max(best, *(2 * size**3 / seconds_of(partial(torch.matmul, one, other)) for _ in range(2)))
    return best


def operations_of(classifier: Classifier) -> int:
    """Return the multiplications and additions of one image's forward pass."""
    size = classifier.model.preprocessing.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier.torch_model().network(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


def measure(paths: list[Path], calibrating: list[Path], rounds: int, batch: int) -> dict[str, Any]:
    classifiers, missing = classifiers_here(calibrating)
    without = load_model(device="cpu", engine="openvino")
    without.engine = AtHand(without.engine)
    # The original's memory format.
    original = load_model(device="cpu")
    original.torch_model().network.to(memory_format=torch.contiguous_format)
    shipped = original.model.preprocessing
    few = paths[:OF_THE_ORIGINAL]
    resident = original.preprocessed([read_image(path) for path in (paths * batch)[:batch]])
    content = paths[0].read_bytes()

    def with_maps(classifier: Classifier) -> None:
        classifier.predict_with_maps(read_image(content, name="cell"))

    works: dict[str, tuple[int, Callable[[], object]]] = {
        "original": (len(few), lambda: one_by_one(original, ORIGINAL_PREPROCESSING, few)),
        "resizing_alone": (len(few), lambda: one_by_one(original, Preprocessing(), few)),
        "resizing_alone_at_our_size": (len(few), lambda: one_by_one(original, shipped, few)),
        "without_the_network": (len(paths), partial(rows_of, without, paths)),
    }
    for key, classifier in classifiers.items():
        name = "_".join(key)
        works[f"files_{name}"] = (len(paths), partial(rows_of, classifier, paths))
        works[f"network_{name}"] = (batch, partial(classifier.engine.run, resident))
        if key == GIVEN_PARTS:
            for size in PARTS:
                works[f"parts_{size}_{name}"] = (
                    batch,
                    partial(run_in_parts, classifier.engine, resident, size),
                )
        works[f"one_{name}"] = (1, partial(classifier.engine.run, resident[:1]))
        works[f"maps_{name}"] = (1, partial(with_maps, classifier))
    rates: dict[str, list[float]] = {name: [] for name in works}
    products: dict[str, list[float]] = {precision: [] for _, precision in classifiers if precision != INT8}
    for number in range(rounds + 1):
        for name, (count, work) in works.items():
            rate = count / seconds_of(work)
            if number:  # the first round warms up
                rates[name].append(rate)
        for precision, found in products.items():
            rate = rate_of_products(precision)
            if number:
                found.append(rate)
        print(f"round {number} of {rounds}", flush=True)
    operations = operations_of(original)

    def ratio(name: str, other: str) -> dict[str, float]:
        return spread([one / two for one, two in zip(rates[name], rates[other], strict=True)])

    engines = []
    for key, classifier in classifiers.items():
        name = "_".join(key)
        in_parts = {
            str(size): ratio(f"parts_{size}_{name}", f"network_{name}")
            for size in PARTS
            if f"parts_{size}_{name}" in rates
        }
        share = [
            operations * rate / most
            for rate, most in zip(rates[f"network_{name}"], products.get(key[1], []), strict=key[1] != INT8)
        ]
        engines.append(
            {
                "engine": classifier.engine.describe(),
                **({"times_whole_batches": in_parts} if in_parts else {}),
                "times_the_original": ratio(f"files_{name}", "original"),
                "times_resizing_alone": ratio(f"files_{name}", "resizing_alone"),
                "times_resizing_alone_at_our_size": ratio(f"files_{name}", "resizing_alone_at_our_size"),
                "share_of_the_network_alone": ratio(f"files_{name}", f"network_{name}"),
                # torch has no product in int8 to hold it against
                **({"share_of_the_processors_rate": spread(share)} if share else {}),
                "forward_passes_with_maps": ratio(f"one_{name}", f"maps_{name}"),
            }
        )
    return {
        "images_per_second": {name: spread(found) for name, found in rates.items()},
        "operations_per_image": operations,
        "processor_operations_per_second": {name: spread(found) for name, found in products.items()},
        "without_the_network_ms": spread([1000 / rate for rate in rates["without_the_network"]]),
        "engines": engines,
        "not_run": missing,
    }


def run_in_parts(engine: Engine, images: np.ndarray, size: int) -> None:
    for start in range(0, len(images), size):
        engine.run(images[start : start + size])


def rows_of(classifier: Classifier, paths: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        predict(classifier, [str(path) for path in paths], Path(folder) / "rows.csv")


def cold_start(runs: int) -> list[float]:
    """Return the seconds of `cervicyte predict one.bmp` from shell to answer."""
    from PIL import Image

    taken = []
    with tempfile.TemporaryDirectory() as folder:
        cell, out = Path(folder) / "one.bmp", Path(folder) / "rows.csv"
        Image.open(next(SAMPLES.glob("*.png"))).convert("RGB").save(cell)
        command = [sys.executable, "-m", "cervicyte", "predict", str(cell), "--out", str(out), "--force"]
        for _ in range(runs + 1):
            taken.append(seconds_of(lambda: subprocess.run(command, check=True, capture_output=True)))
    return taken[1:]  # the first fills the system's cache of files


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast cells are classified.")
    parser.add_argument("data", type=Path, help="a data set of cells")
    parser.add_argument("--images", type=int, default=256, help="from files to rows, in each round")
    parser.add_argument("--batch", type=int, default=BATCH, help="of the network alone")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, help="a folder for the JSON file")
    arguments = parser.parse_args()
    cells = [cell.path for cell in read_dataset(arguments.data).cells]
    paths = cells[:: max(1, len(cells) // arguments.images)][: arguments.images]
    others = [path for path in cells if path not in set(paths)] or cells
    calibrating = others[:: max(1, len(others) // CALIBRATING)][:CALIBRATING]
    about = processor()
    figures: dict[str, Any] = {
        "images": len(paths),
        "rounds": arguments.rounds,
        "batch": arguments.batch,
        "threads": thread_count(),
        "processor": about,
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "cold_start_s": spread(cold_start(3)),
        **measure(paths, calibrating, arguments.rounds, arguments.batch),
        "goals": GOALS,
        "size_pixels": load_model(device="cpu").model.preprocessing.image_size,
    }
    for one in figures["engines"]:
        print(one)
    print(f"cold start, s: {figures['cold_start_s']}")
    print(f"without the network, ms an image: {figures['without_the_network_ms']}")
    if arguments.results is not None:
        fastest = "bfloat16" if "BF16" in about["capabilities"] else "float32"
        write_json(
            arguments.results / f"inference_speed_{fastest}.json",
            {"provenance": provenance(shlex.join(["python", *sys.argv])), **figures},
        )


if __name__ == "__main__":
    main()
