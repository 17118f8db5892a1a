r"""What Ray costs beside one process on the same machine, and what a million cells cost at a price.

    python benchmarks/ray_speed.py ../shared/data/sipakmed --price 0.02,0.05,0.10 \
      --out benchmarks/results/ray_speed.json

One process with all threads and Ray's workers with one thread each classify the same files, in turns. Of Ray,
the time until the first rows (it begins, and workers load the model) is told apart from what follows: a long
run pays the first but once. Rows come in order, so that a block or two may be done when the first come: of
few images, Ray's rate is flattered. Rows are compared.

The cost of a million cells is that of the processor time that the rate asks for. The price of a processor for
an hour is an assumption of whoever runs this, in whatever currency; storage, transfer and idle machines are
not in it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from inference_speed import spread

from cervicyte.datasets.layouts import read_dataset
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.engines import thread_count
from cervicyte.inference.on_ray import BLOCK, RayWorkers
from cervicyte.inference.predict import predict
from cervicyte.network.description import shipped_model
from cervicyte.progress import Progress
from cervicyte.provenance import provenance, write_json

MILLION = 1_000_000


class Clock(Progress):
    """Takes the time at which the first rows and the last came."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        self.began = time.perf_counter()
        self.came: list[tuple[float, int]] = []

    def advance(self, count: int = 1, note: str = "") -> None:
        self.came.append((time.perf_counter() - self.began, count))

    @property
    def first_rows_s(self) -> float:
        return self.came[0][0]

    @property
    def rate(self) -> float:
        """Images a second from the first rows on."""
        return sum(count for _, count in self.came[1:]) / (self.came[-1][0] - self.first_rows_s)


def core_hours_of_a_million(images_per_second: float, cores: int) -> float:
    return MILLION * cores / images_per_second / 3600


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Return how two tables of the same images differ."""
    left, right = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (one, other))
    assert list(left["path"]) == list(right["path"])
    columns = [str(name) for name in left if str(name).startswith("p_")]
    read = left["verdict"] != "error"
    apart = (left.loc[read, columns].astype(float) - right.loc[read, columns].astype(float)).abs().to_numpy()
    return {
        "rows_that_differ": int((left != right).any(axis=1).sum()),
        "classes_that_differ": int((left["predicted_class"] != right["predicted_class"]).sum()),
        "largest_difference_of_a_probability": round(float(apart.max()), 6),
    }


def measure(paths: list[Path], engine: str, precision: Any, rounds: int) -> dict[str, Any]:
    model = shipped_model()
    classifier = Classifier.from_file(model, "cpu", engine, precision)
    names = [str(path) for path in paths]
    found: dict[str, list[float]] = {"here": [], "ray": [], "ray_first_rows_s": []}
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "here.csv", Path(folder) / "ray.csv"
        for number in range(rounds):
            for out, workers in ((here, None), (there, RayWorkers(model))):
                clock = Clock()
                predict(classifier, names, out, progress=clock, workers=workers, force=True)
                found["here" if workers is None else "ray"].append(clock.rate)
                if workers is not None:
                    found["ray_first_rows_s"].append(clock.first_rows_s)
            print(f"round {number + 1} of {rounds}: {found}", flush=True)
        rows = compared(here, there)
    return {
        "engine": classifier.engine.describe(),
        "images_per_second": {name: spread(found[name]) for name in ("here", "ray")},
        "share_of_one_process": spread([b / a for a, b in zip(found["here"], found["ray"], strict=True)]),
        "ray_first_rows_s": spread(found["ray_first_rows_s"]),
        "rows": rows,
        **RayWorkers(model).describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What Ray costs, and what a million cells cost.")
    parser.add_argument("data", type=Path, help="a data set of cells")
    parser.add_argument(
        "--price", required=True, help="of a processor for an hour, assumed; several with commas"
    )
    parser.add_argument("--images", type=int, default=54 * BLOCK, help="at most; many, see above")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    prices = [float(price) for price in arguments.price.split(",")]
    cells = read_dataset(arguments.data).cells
    paths = [cell.path for cell in cells[:: max(1, len(cells) // arguments.images)]][: arguments.images]
    load = round(os.getloadavg()[0], 2)
    figures = measure(paths, arguments.engine, arguments.precision, arguments.rounds)
    cores = thread_count()
    hours = core_hours_of_a_million(figures["images_per_second"]["ray"]["median"], cores)
    figures |= {
        "images": len(paths),
        "rounds": arguments.rounds,
        "cores": cores,
        "load_average_1_min": load,
        "core_hours_of_a_million": round(hours, 2),
        "cost_of_a_million": [{"price": price, "cost": round(price * hours, 3)} for price in prices],
    }
    print(figures)
    if arguments.out is not None:
        write_json(arguments.out, {"provenance": provenance(shlex.join(["python", *sys.argv])), **figures})


if __name__ == "__main__":
    main()
