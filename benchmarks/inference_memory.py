"""How much memory `predict` takes over 100,000 rows, with a small network of 32-pixel input.

python benchmarks/inference_memory.py --out benchmarks/results/inference_memory.json

A list names a few drawn images over and over, so that no disk is filled; each line is read, hashed, decoded,
prepared, classified and written as if it were another file. Memory is what this process holds, taken every
few batches. A chart of it is written beside, to `docs/results/inference_memory.png`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cervicyte.images.preprocessing import Preprocessing
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.predict import predict
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, written_atomically

ROWS = 100_000
SIZE = 32
FILES = 50
MOST_GROWTH_MIB = 32  # from a tenth of the rows to all: what an allocator may keep, and no row's share
CHART = Path(__file__).resolve().parents[1] / "docs" / "results" / "inference_memory.png"


def held_mib() -> float:
    """Return what this process holds in memory now, in MiB; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Watched(Progress):
    """Takes the memory about every hundredth of the rows."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        self.rows, self.step, self.taken = done, total // 100, [(0, held_mib())]

    def advance(self, count: int = 1, note: str = "") -> None:
        self.rows += count
        if self.rows - self.taken[-1][0] >= self.step:
            self.taken.append((self.rows, held_mib()))


def measure(rows: int, engine: str, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    names = [folder / f"{at}.png" for at in range(FILES)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(name)
    listed = folder / "names.txt"
    listed.write_text("".join(f"{names[at % FILES]}\n" for at in range(rows)))
    torch.manual_seed(0)
    preprocessing = Preprocessing(canvas_size=SIZE, image_size=SIZE)
    model = ModelFile(CBAMResNet50(2), ("Parabasal", "Koilocytotic"), preprocessing)
    watched = Watched()
    outcome = predict(Classifier(model, "cpu", engine), [f"@{listed}"], folder / "out.csv", progress=watched)
    assert (outcome.rows, outcome.errors) == (rows, 0)
    early = next(held for row, held in watched.taken if row >= rows / 10)
    return {
        "rows": rows,
        "engine": engine,
        "memory_mib": [[row, round(held, 1)] for row, held in watched.taken],
        "growth_mib": round(max(held for row, held in watched.taken if row >= rows / 10) - early, 1),
        "most_growth_mib": MOST_GROWTH_MIB,
    }


def chart(found: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*found["memory_mib"], strict=True), color="#2a6fb0")
    most = max(held for _, held in found["memory_mib"])
    axes.set(xlabel="rows written", ylabel="memory of the process, MiB")
    axes.set(xlim=(0, found["rows"]), ylim=(0, 1.15 * most))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"cervicyte predict, {found['rows']:,} rows: memory", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.supxlabel(RESEARCH_USE_ONLY, fontsize=7, x=1, ha="right")
    with written_atomically(path) as partial:
        figure.savefig(partial, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory over many rows.")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--out", type=Path, help="a JSON file; the chart is written, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.rows, arguments.engine, Path(folder))
    print(f"{found['rows']:,} rows: {found['growth_mib']} MiB more from a tenth of them on")
    if arguments.out is not None:
        write_json(arguments.out, {"provenance": provenance(shlex.join(["python", *sys.argv])), **found})
        chart(found, CHART)


if __name__ == "__main__":
    main()
