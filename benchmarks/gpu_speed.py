"""How fast a GPU classifies batches, with maps and without, against the network on a batch that lies on it.

    python benchmarks/gpu_speed.py ../shared/data/sipakmed --out benchmarks/results/gpu_speed.json

Batches of 256 preprocessed cells go to the GPU from this machine's memory, in parts as the engine sends them,
and come back as what an answer needs: logits, the stages' means and, with maps, the evidence of each class.
All take turns in each round, in one process; a share is taken within its round; median, lowest and highest
of the rounds are told.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from inference_speed import seconds_of, spread

from cervicyte import load_model
from cervicyte.datasets.layouts import read_dataset
from cervicyte.errors import CervicyteError
from cervicyte.evaluation.features import stage_activations
from cervicyte.explanation.controls import network_input
from cervicyte.images.reader import read_image
from cervicyte.inference.engines import Precision
from cervicyte.inference.torch_engine import TorchEngine
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import provenance, write_json

BATCH = 256
GOAL = 0.8  # of the images a second of the network on a resident batch
WARM_UP = 3  # rounds that choose algorithms and fill memory
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def rates_at(precision: Precision, paths: list[Path], rounds: int, device: str) -> dict[str, Any]:
    """Return images a second of the three ways in turns, and their shares of the resident batch's."""
    classifier = load_model(device=device, engine="torch", precision=precision)
    engine = classifier.engine
    assert isinstance(engine, TorchEngine)
    images = classifier.preprocessed([read_image(path) for path in (paths * BATCH)[:BATCH]])
    resident = network_input(classifier.torch_model(), images).to(engine._network.conv1.weight.dtype)

    def resident_pass(network: CBAMResNet50 = engine._network, batch: torch.Tensor = resident) -> None:
        with torch.inference_mode():
            stage_activations(network, batch)  # all but one small product
        if batch.is_cuda:
            torch.cuda.synchronize()

    works: dict[str, Callable[[], object]] = {
        "resident": resident_pass,
        "without_maps": partial(engine.run, images),
        "with_maps": partial(engine.run, images, evidence=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + WARM_UP):
        for name, work in works.items():
            rate = BATCH / seconds_of(work)
            if number >= WARM_UP:
                rates[name].append(rate)
    return {
        "engine": engine.describe(),
        "images_at_once": engine.at_once,
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        **{
            f"share_{name}": spread(
                [one / two for one, two in zip(rates[name], rates["resident"], strict=True)]
            )
            for name in ("without_maps", "with_maps")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast a GPU classifies.")
    parser.add_argument("data", type=Path, help="a data set of cells")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No CUDA device is at hand; the benchmark needs one.")
    try:
        paths = [cell.path for cell in read_dataset(arguments.data).cells[:BATCH]]
        found = [rates_at(precision, paths, arguments.rounds, arguments.device) for precision in PRECISIONS]
    except CervicyteError as error:
        raise SystemExit(str(error)) from error
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device,
        "batch": BATCH,
        "rounds": arguments.rounds,
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "size_pixels": load_model(device="cpu").model.preprocessing.image_size,
        "precisions": found,
        "goals": {"share_of_a_resident_batch": GOAL},
    }
    for one in found:
        print(one, flush=True)
    if arguments.out is not None:
        write_json(arguments.out, {"provenance": provenance(shlex.join(["python", *sys.argv])), **figures})


if __name__ == "__main__":
    main()
