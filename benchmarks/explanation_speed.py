r"""What Grad-CAM++ maps of all five classes cost, against one forward pass and against pytorch-grad-cam.

    OMP_NUM_THREADS=1 python benchmarks/explanation_speed.py --out benchmarks/results/explanation_speed.json

The three take turns in each round, in one process, on the same network and the same images, in float32, so
that other load on the machine falls on all of them: a ratio is taken within its round, and median, lowest
and highest of the rounds are told. The forward pass is the network's own, without gradients.

pytorch-grad-cam is used as its documentation shows: one object, one call for each class. Its maps are
resized to the image and stretched to [0, 1] besides, as it has no way to leave that out.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_grad_cam import GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from cervicyte.explanation.cam import explain
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import provenance, write_json

METHOD = "grad-cam++"
LAYER = "layer4"
CLASSES = 5
SIZE = 224
MOST_FORWARD_PASSES = 1.4  # the project's goal
LEAST_TIMES_AS_FAST = 12.0  # the project's goal


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(network: CBAMResNet50, images: int, rounds: int, device: torch.device) -> dict[str, object]:
    batch = torch.randn(images, 3, SIZE, SIZE, device=device)

    @torch.no_grad()
    def forward() -> object:
        return network(batch)

    def ours() -> object:
        return explain(network, batch, METHOD, [LAYER])

    def theirs() -> None:
        with GradCAMPlusPlus(network, [network.get_submodule(LAYER)]) as cam:
            for index in range(CLASSES):
                cam(batch, [ClassifierOutputTarget(index)] * images)

    works: dict[str, Callable[[], object]] = {
        "forward_pass": forward,
        "cervicyte": ours,
        "pytorch_grad_cam": theirs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            taken = seconds_of(work, device)
            if number:  # the first round warms up
                seconds[name].append(taken)
    by_round = list(zip(*seconds.values(), strict=True))
    return {
        "images": images,
        "maps": images * CLASSES,
        "seconds": {name: [round(value, 4) for value in found] for name, found in seconds.items()},
        "cervicyte_in_forward_passes": spread([own / forward for forward, own, _ in by_round]),
        "pytorch_grad_cam_in_forward_passes": spread([other / forward for forward, _, other in by_round]),
        "times_as_fast_as_pytorch_grad_cam": spread([other / own for _, own, other in by_round]),
    }


def spread(values: list[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What maps of all classes cost.")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4], help="in one batch; one or several")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    network = CBAMResNet50(CLASSES).eval().to(device)
    batches = []
    for images in arguments.images:
        found = measure(network, images, arguments.rounds, device)
        batches.append(found)
        print(
            f"{images} images: {found['cervicyte_in_forward_passes']} forward passes (goal: at most "
            f"{MOST_FORWARD_PASSES}), {found['times_as_fast_as_pytorch_grad_cam']} times as fast as "
            f"pytorch-grad-cam (goal: at least {LEAST_TIMES_AS_FAST:g})",
            flush=True,
        )
    if arguments.out is not None:
        command = shlex.join(["python", *sys.argv])
        threads = os.environ.get("OMP_NUM_THREADS")
        command = f"OMP_NUM_THREADS={threads} {command}" if threads else command
        figures = {
            "method": METHOD,
            "layer": LAYER,
            "classes": CLASSES,
            "size_pixels": SIZE,
            "rounds": arguments.rounds,
            "precision": "float32",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "load_average_1_min": round(os.getloadavg()[0], 2),
            "goals": {
                "cervicyte_in_forward_passes": MOST_FORWARD_PASSES,
                "times_as_fast_as_pytorch_grad_cam": LEAST_TIMES_AS_FAST,
            },
            "batches": batches,
        }
        write_json(arguments.out, {"provenance": provenance(command), **figures})


if __name__ == "__main__":
    main()
