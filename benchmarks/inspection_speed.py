r"""How long a data set takes to be inspected, and how much memory, by number of cells.

    OMP_NUM_THREADS=1 python benchmarks/inspection_speed.py ../shared/data/sipakmed \
        --sizes 3445,12500,25000,50000,100000 --out benchmarks/results/inspection_speed.json
    python benchmarks/inspection_speed.py ../shared/data/sipakmed --closer BACKBONE \
        --out benchmarks/results/inspection_closer_speed.json

The first figure is the data set as it lies; with `--closer`, also with likely label errors and shortcuts,
which a frozen network (its weights: BACKBONE) finds. Those of `--sizes` are of cells made from it, in a
temporary folder that is removed. Copy k of cell i (k from 0) is cut from it with a box of 75 to 100 % of
its sides, anywhere, after a turn by any angle and, for every second one, mirroring; each colour's optical
density is multiplied by 0.8 to 1.25 (stain), the light by 0.75 to 1.15 (exposure), noise is added. So a
cell's copies differ, and are twins where turns agree to a few degrees, modulo quarters and mirroring. Cells
that share a field and k share a field. The larger sets hold the smaller ones.

Each set is inspected in a process of its own, whose peak memory is taken; the file is written after each.
Processor time stands beside wall time, as other work on the machine lengthens only the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cervicyte.datasets.inspection import inspect_dataset
from cervicyte.datasets.layouts import Cell, read_dataset
from cervicyte.images.reader import read_image
from cervicyte.progress import Progress
from cervicyte.provenance import provenance, write_json

BOUND_S = 90  # for the 3,445 cells of SIPaKMeD in ../shared on two cores
BOUND_CLOSER_S = 600  # what label errors and shortcuts may add to it
BOUND_100_000_S = 3600
BOUND_MIB = 4096
SEED = 0


class StageTimes(Progress):
    """Keeps how long each piece of work took: wall and processor seconds."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []

    def start(self, title: str, total: int, done: int = 0) -> None:
        self._begin = (time.perf_counter(), time.process_time())
        self.stages.append({"stage": title, "steps": total})

    def close(self) -> None:
        wall, processor = self._begin
        self.stages[-1] |= {
            "wall_s": round(time.perf_counter() - wall, 1),
            "processor_s": round(time.process_time() - processor, 1),
        }


def measure(data: Path, known_groups: bool, backbone: str | None) -> dict[str, Any]:
    load = os.getloadavg()[0]
    times = StageTimes()
    with tempfile.TemporaryDirectory() as out:
        wall, processor = time.perf_counter(), time.process_time()
        look_closer = None
        if backbone is not None:
            from cervicyte.evaluation.closer_look import closer_look

            look_closer = closer_look(
                Path(out), label_errors=True, shortcuts=True, backbone=backbone, progress=times
            )
        inspection = inspect_dataset(
            data, Path(out), known_groups=known_groups, look_closer=look_closer, progress=times
        )
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        sizes = {path.name: round(path.stat().st_size / 1024) for path in sorted(Path(out).iterdir())}
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return {
        "cells": len(inspection.dataset.cells),
        "known_groups": known_groups,
        "cores": os.cpu_count(),
        "load_average_1_min": [round(load, 2), round(os.getloadavg()[0], 2)],
        "wall_s": round(wall, 1),
        "processor_s": round(processor, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20),
        "stages": times.stages,
        "files_kib": sizes,
        "twin_pairs": len(inspection.twins),
        "groups": len(set(inspection.groups)),
        "findings": [finding.text for finding in inspection.findings],
    }


def measured_apart(data: Path, known_groups: bool, backbone: str | None = None) -> dict[str, Any]:
    """Measure in a process of its own, so that its peak memory is that of this data set."""
    command = [sys.executable, __file__, str(data), "--measure"]
    command += [] if known_groups else ["--no-known-groups"]
    command += [] if backbone is None else ["--closer", backbone]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def augmented(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a cell cut, turned, stained and lit otherwise."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(0, 360), 1)
    image = cv2.warpAffine(
        np.ascontiguousarray(image), turn, (width, height), borderMode=cv2.BORDER_REFLECT_101
    )
    tall, wide = (max(48, round(side * rng.uniform(0.75, 1))) for side in (height, width))
    top, left = (int(rng.integers(max(1, all_ - part + 1))) for all_, part in ((height, tall), (width, wide)))
    light = np.percentile(image, 99, axis=(0, 1)) + 1
    density = -np.log((image[top : top + tall, left : left + wide] + 1.0) / (light + 1))
    seen = light * rng.uniform(0.75, 1.15) * np.exp(-density * rng.uniform(0.8, 1.25, 3))
    return np.clip(seen + rng.normal(0, 1.5, seen.shape), 0, 255).astype(np.uint8)


def write_augmented(cells: tuple[Cell, ...], root: Path, numbers: range) -> None:
    """Write the augmented cells of these numbers: class folders, `NNN_MM.jpg`, fields numbered by copy."""
    fields = {name: place for place, name in enumerate(sorted({cell.field for cell in cells}))}

    def write(number: int) -> None:
        copy, which = divmod(number, len(cells))
        cell = cells[which]
        rng = np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(number,)))
        pixels = augmented(read_image(cell.path), rng)
        folder = root / f"augmented {cell.label}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{copy * len(fields) + fields[cell.field]:06d}_{which:06d}.jpg"
        cv2.imwrite(str(path), pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(write, numbers):
            pass


def tell(figures: dict[str, Any]) -> None:
    print(
        f"{figures['cells']:,} cells: {figures['wall_s']} s, {figures['processor_s']} s of processor time, "
        f"{figures['peak_memory_mib']} MiB at most, {figures['twin_pairs']:,} twin pairs",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of an inspection.")
    parser.add_argument("data", type=Path, help="a data set")
    parser.add_argument("--no-known-groups", action="store_true", help="leave SIPaKMeD's table out")
    parser.add_argument("--sizes", default="", help="numbers of augmented cells, such as 12500,100000")
    parser.add_argument("--closer", metavar="BACKBONE", help="measure label errors and shortcuts too")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    known_groups = not arguments.no_known_groups
    if arguments.measure:
        print(json.dumps(measure(arguments.data, known_groups, arguments.closer)))
        return

    threads = os.environ.get("OMP_NUM_THREADS")
    command = f"{f'OMP_NUM_THREADS={threads} ' if threads else ''}{shlex.join(['python', *sys.argv])}"
    as_it_lies = measured_apart(arguments.data, known_groups)
    tell(as_it_lies)
    content = {
        "provenance": provenance(command),
        "data": arguments.data.name,
        "seed": SEED,
        "bounds": {
            "cells_of_data_s": BOUND_S,
            "closer_look_s": BOUND_CLOSER_S,
            "100000_cells_s": BOUND_100_000_S,
            "100000_cells_peak_memory_mib": BOUND_MIB,
        },
        "how_augmented": (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        **as_it_lies,
        "augmented": [],
    }
    if arguments.closer is not None:
        content["with_label_errors_and_shortcuts"] = measured_apart(
            arguments.data, known_groups, arguments.closer
        )
        tell(content["with_label_errors_and_shortcuts"])
    if arguments.out is not None:
        write_json(arguments.out, content)
    sizes = sorted(int(size) for size in arguments.sizes.split(",") if size)
    cells = read_dataset(arguments.data, known_groups=False).cells
    with tempfile.TemporaryDirectory() as folder:
        written = 0
        for size in sizes:
            began = time.perf_counter()
            write_augmented(cells, Path(folder), range(written, size))
            making = round(time.perf_counter() - began, 1)
            written = size
            figures = measured_apart(Path(folder), known_groups)
            tell(figures)
            content["augmented"].append({**figures, "made_in_s": making})
            if arguments.out is not None:
                write_json(arguments.out, content)


if __name__ == "__main__":
    main()
