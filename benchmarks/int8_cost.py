"""What int8 costs the shipped model and what it brings, on cells that it was never trained on.

python benchmarks/int8_cost.py --calibration DATA --images OTHER --out benchmarks/results/int8_cost.json

The graph is calibrated on cells of DATA and compared with float32 on the images of OTHER, whose classes the
model does not have: so the share that gets another class stands for the loss of accuracy, which cannot be
larger. The loss on held-out groups is for the networks of a cross-validation: `benchmarks/precision_loss.py
--precision int8`. Rates are of the network alone on one batch in memory, in turns in one process; ratios are
taken turn by turn.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cervicyte.errors import UsageError
from cervicyte.evaluation.predictions import BATCH
from cervicyte.images.reader import read_image
from cervicyte.inference.choice import graph_of
from cervicyte.inference.engines import Engine, OnnxEngine, OpenVinoEngine, thread_count
from cervicyte.inference.quantise import cost_of, quantised
from cervicyte.inference.sources import sources_of
from cervicyte.network.description import shipped_model
from cervicyte.network.frozen import FrozenModel, load_described
from cervicyte.provenance import provenance, write_json


def preprocessed(model: FrozenModel, folder: Path, most: int) -> np.ndarray:
    """Return at most so many images, evenly spaced by name, uint8 [N, S, S, 3]."""
    sources = list(sources_of([str(folder)]))
    chosen = sources[:: max(1, len(sources) // most)][:most]
    return np.stack([model.preprocessing(read_image(one.read(), name=one.name)) for one in chosen])


def logits_of(engine: Engine, images: np.ndarray) -> np.ndarray:
    starts = range(0, len(images), BATCH)
    return np.concatenate([engine.run(images[start : start + BATCH]).logits for start in starts])


def rates_of(engines: dict[str, Engine], batch: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Return each engine's images a second in each round; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.run(batch)
            if number:
                found[name].append(len(batch) / (time.perf_counter() - began))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What int8 costs and brings.")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--calibrating", type=int, default=128)
    parser.add_argument("--compared", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    load = round(os.getloadavg()[0], 2)  # above the number of cores other work spreads the ratios
    model = load_described(shipped_model(), without_torch=True)
    assert isinstance(model, FrozenModel)
    graph = graph_of(model)
    images = preprocessed(model, arguments.images, arguments.compared)
    cells = preprocessed(model, arguments.calibration, arguments.calibrating)
    in_int8 = quantised(graph, cells)
    right = logits_of(OpenVinoEngine(graph), images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        path.write_bytes(in_int8)
        engines: dict[str, Engine] = {
            "openvino_float32": OpenVinoEngine(graph),
            "openvino_int8": OpenVinoEngine(path),
            "onnx_int8": OnnxEngine(path),
        }
        with contextlib.suppress(UsageError):  # this processor has none
            engines["openvino_bfloat16"] = OpenVinoEngine(graph, "bfloat16")
        costs = {name: cost_of(logits_of(engine, images), right) for name, engine in engines.items()}
        rates = rates_of(engines, images[:BATCH], arguments.rounds)
    ratios = {
        name: [one / other for one, other in zip(found, rates["openvino_float32"], strict=True)]
        for name, found in rates.items()
    }
    figures: dict[str, Any] = {
        "calibrating_images": len(cells),
        "threads": thread_count(),
        "load_average_1_min": load,
        "engines": {
            name: {
                **cost,
                "images_per_second": round(statistics.median(rates[name]), 2),
                "times_float32": {
                    "median": round(statistics.median(ratios[name]), 3),
                    "min": round(min(ratios[name]), 3),
                    "max": round(max(ratios[name]), 3),
                },
            }
            for name, cost in costs.items()
        },
    }
    print(figures)
    if arguments.out is not None:
        write_json(arguments.out, {"provenance": provenance(shlex.join(["python", *sys.argv])), **figures})


if __name__ == "__main__":
    main()
