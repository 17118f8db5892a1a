r"""How many Grad-CAM++ maps a second: one engine pass for all classes and layers, and pytorch-grad-cam.

    OMP_NUM_THREADS=1 python benchmarks/explanation_speed.py --images 4 \
        --out benchmarks/results/explanation_speed.json

pytorch-grad-cam is used as its documentation shows: one object for each layer, one call for each class.
Its maps are resized to the image and stretched to [0, 1] besides, as it has no way to leave that out.
The two take turns in each repeat, so that other load on the machine falls on both.
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

LAYERS = ("cbam3", "cbam4")
CLASSES = 5
SIZE = 224


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(images: int, repeats: int, device: torch.device) -> dict[str, object]:
    torch.manual_seed(0)
    network = CBAMResNet50(CLASSES).eval().to(device)
    batch = torch.randn(images, 3, SIZE, SIZE, device=device)

    def ours() -> None:
        explain(network, batch, "grad-cam++", LAYERS)

    def theirs() -> None:
        for layer in LAYERS:
            with GradCAMPlusPlus(network, [network.get_submodule(layer)]) as cam:
                for index in range(CLASSES):
                    cam(batch, [ClassifierOutputTarget(index)] * images)

    seconds: dict[str, list[float]] = {"cervicyte": [], "pytorch_grad_cam": []}
    for repeat in range(repeats + 1):
        for name, work in zip(seconds, (ours, theirs), strict=True):
            taken = seconds_of(work, device)
            if repeat:  # the first warms up
                seconds[name].append(taken)
    maps = images * len(LAYERS) * CLASSES
    rates = {name: maps / statistics.median(found) for name, found in seconds.items()}
    return {
        "images": images,
        "size_pixels": SIZE,
        "layers": list(LAYERS),
        "classes": CLASSES,
        "method": "grad-cam++",
        "maps": maps,
        "repeats": repeats,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "seconds": {name: [round(value, 4) for value in found] for name, found in seconds.items()},
        "maps_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "times_as_fast": round(rates["cervicyte"] / rates["pytorch_grad_cam"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Maps a second, against pytorch-grad-cam.")
    parser.add_argument("--images", type=int, default=4, help="in one batch")
    parser.add_argument("--repeats", type=int, default=3, help="the median is reported")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    figures = measure(arguments.images, arguments.repeats, torch.device(arguments.device))
    rates = figures["maps_per_second"]
    print(
        f"{figures['device']}, {figures['threads']} thread(s), {arguments.images} images of {SIZE} pixels, "
        f"{CLASSES} classes, layers {', '.join(LAYERS)}, maps/s: {rates}, "
        f"{figures['times_as_fast']} times as fast"
    )
    if arguments.out is not None:
        command = shlex.join(["python", *sys.argv])
        threads = os.environ.get("OMP_NUM_THREADS")
        command = f"OMP_NUM_THREADS={threads} {command}" if threads else command
        write_json(arguments.out, {"provenance": provenance(command), **figures})


if __name__ == "__main__":
    main()
