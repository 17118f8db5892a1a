"""What data loading, augmentation and bookkeeping cost: the loop against one resident batch.

    python benchmarks/training_speed.py --out benchmarks/results/training_speed.json

Both train the same network at the same precision with the same optimiser. The reference repeats
forward, backward, clipping and step on one batch that lies on the device. The two are timed in turns,
epoch by epoch, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.precision import computes_in_bfloat16
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import TerminalProgress
from cervicyte.provenance import provenance, write_json
from cervicyte.training.cells import normalised
from cervicyte.training.loop import LabelledImages, parameter_groups, train
from cervicyte.training.recipe import Recipe


def resident_speed(recipe: Recipe, steps: int) -> float:
    """Return images/s of training steps on one random batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = CBAMResNet50(5, recipe.placement)
    network = network.train().to(device, memory_format=torch.channels_last)
    for module in network.freeze(recipe.frozen_stages):
        module.eval()
    optimiser = torch.optim.AdamW(parameter_groups(network, recipe))
    size = recipe.preprocessing.image_size
    images = torch.randint(0, 256, (recipe.batch_size, 3, size, size), dtype=torch.uint8, device=device)
    batch = normalised(images, recipe.preprocessing)
    targets = torch.arange(recipe.batch_size, device=device) % 5
    mixed = computes_in_bfloat16(recipe.precision)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            logits = network(batch)
        functional.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip_norm)
        optimiser.step()
        optimiser.zero_grad()

    step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return steps * recipe.batch_size / (time.perf_counter() - began)


def loop_speed(recipe: Recipe, steps: int) -> float:
    """Return images/s of the second epoch of the training loop, as its history states it."""
    size = recipe.preprocessing.image_size
    count = steps * recipe.batch_size
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    cells = LabelledImages(images, np.arange(count) % 5)
    few = LabelledImages(images[:5], np.arange(5))
    with tempfile.TemporaryDirectory() as folder:
        history = train(
            recipe.model_copy(update={"epochs": 2}),
            cells,
            few,
            [f"class {i}" for i in range(5)],
            Path(folder),
        )
    return float(history["images_per_second"].iloc[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frozen-stages", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = Recipe(
        backbone="none",
        preprocessing=Preprocessing(image_size=arguments.image_size),
        batch_size=arguments.batch_size,
        frozen_stages=arguments.frozen_stages,
    )
    progress = TerminalProgress()
    resident, loop = [], []
    progress.start("Rounds", arguments.rounds)
    for _ in range(arguments.rounds):
        resident.append(resident_speed(recipe, arguments.steps))
        loop.append(loop_speed(recipe, arguments.steps))
        progress.say(f"resident {resident[-1]:.2f} images/s, loop {loop[-1]:.2f} images/s")
        progress.advance()
    progress.close()
    result: dict[str, Any] = {
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
        "frozen_stages": arguments.frozen_stages,
        "steps": arguments.steps,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "resident_images_per_second": [round(value, 3) for value in resident],
        "loop_images_per_second": [round(value, 3) for value in loop],
        "share": round(statistics.median(loop) / statistics.median(resident), 4),
        "provenance": provenance("python benchmarks/training_speed.py"),
    }
    print(f"The loop reaches {result['share']:.1%} of one resident batch's images/s.")
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
