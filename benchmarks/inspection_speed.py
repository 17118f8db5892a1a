r"""How long a data set takes to be inspected, and how much memory.

    OMP_NUM_THREADS=1 python benchmarks/inspection_speed.py ../shared/data/sipakmed \
        --out benchmarks/results/inspection_speed.json

Processor time stands beside wall time, as other work on the machine lengthens only the latter.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import sys
import tempfile
import time
from pathlib import Path

from cervicyte.datasets.inspection import inspect_dataset
from cervicyte.provenance import provenance, write_json

BOUND_S = 90  # for the 3,445 cells of SIPaKMeD in ../shared on two cores


def measure(data: Path, known_groups: bool) -> dict[str, object]:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as out:
        wall, processor = time.perf_counter(), time.process_time()
        inspection = inspect_dataset(data, Path(out), known_groups=known_groups)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        page = (Path(out) / "inspection.html").stat().st_size
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return {
        "data": data.name,
        "cells": len(inspection.dataset.cells),
        "known_groups": known_groups,
        "cores": os.cpu_count(),
        "load_average_1_min": round(load, 2),
        "wall_s": round(wall, 1),
        "processor_s": round(processor, 1),
        "bound_s": BOUND_S,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20),
        "page_kib": round(page / 1024),
        "twin_pairs": len(inspection.twins),
        "groups": len(set(inspection.groups)),
        "findings": [finding.text for finding in inspection.findings],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of an inspection.")
    parser.add_argument("data", type=Path, help="a data set")
    parser.add_argument("--no-known-groups", action="store_true", help="leave SIPaKMeD's table out")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    figures = measure(arguments.data, not arguments.no_known_groups)
    print(
        f"{figures['cells']:,} cells: {figures['wall_s']} s, {figures['processor_s']} s of processor time, "
        f"{figures['peak_memory_mib']} MiB at most, {figures['twin_pairs']} twin pairs"
    )
    if arguments.out is not None:
        command = shlex.join(["python", *sys.argv])
        threads = os.environ.get("OMP_NUM_THREADS")
        command = f"OMP_NUM_THREADS={threads} {command}" if threads else command
        write_json(arguments.out, {"provenance": provenance(command), **figures})


if __name__ == "__main__":
    main()
