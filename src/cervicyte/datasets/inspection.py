"""Looks through a data set before anybody learns from it: what is there, what leaks, what contradicts.

Every image is read once. What is found is named, listed whole in `inspection.json`, and shown on one page
with the evidence side by side; `groups.csv` says what must stay on one side of a split.

Likely label errors and shortcuts need a network: `evaluation.closer_look` finds them and hands them in
as an `Addition`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from cervicyte.datasets import twins
from cervicyte.datasets.candidates import EXHAUSTIVE
from cervicyte.datasets.classes import proper_names
from cervicyte.datasets.crops import WORKING_SIZE, Reduced, reduce_crop, working_scale
from cervicyte.datasets.groups import SIPAKMED_PREFIX, group_by_name
from cervicyte.datasets.inspection_findings import (
    FIELD_PIXELS,
    MASK_COLOURS,
    Addition,
    Finding,
    Inspection,
    Look,
    cell_indices,
    copies_among,
    copy_findings,
    count_findings,
    crops_of_fields,
    field_findings,
    file_findings,
    label_findings,
    outliers,
    twin_findings,
)
from cervicyte.datasets.inspection_page import inspection_page
from cervicyte.datasets.layouts import (
    PART_OF_FOLDER,
    Cell,
    CellDataset,
    read_dataset,
    refuse_undecoded_names,
)
from cervicyte.datasets.unlike_groups import group_medians, unlike_groups
from cervicyte.datasets.whole_fields import FIELD_THRESHOLD, field_files, match_fields
from cervicyte.errors import DatasetError, ImageError
from cervicyte.images.folders import files_of_folder
from cervicyte.images.reader import IMAGE_SUFFIXES, read_image, sniff_format
from cervicyte.images.statistics import STATISTICS, image_statistics
from cervicyte.images.threads import one_thread_a_call
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, as_utf8, provenance, write_json, write_text

FILES = ("inspection.html", "inspection.json", "groups.csv", "twins.csv")
LABEL_ERRORS_FILE = "label_errors.csv"  # of `evaluation.closer_look`, where it is asked for them
SIZES_SAMPLED = 200  # images that tell the median size before all are read


def inspect_dataset(
    data: Path,
    out: Path,
    *,
    known_groups: bool = True,
    look_closer: Callable[[Inspection], Addition] | None = None,
    progress: Progress = SILENT,
    command: str | None = None,
) -> Inspection:
    """Look through a data set and write `inspection.html`, `.json`, `groups.csv` and `twins.csv`.

    Args:
        data: as for `layouts.read_dataset`. What that refuses because something else would be counted as
            cells is listed plainly all the same, and the refusal is the first finding.
        out: the folder for the four files; those there are replaced, and the label errors of an earlier
            look are taken away.
        known_groups: whether SIPaKMeD's fields that show the same place are joined from the table.
        look_closer: adds what another room finds, see `evaluation.closer_look`. The files are written
            before it is asked, so that an interruption leaves them, and again with what it found.
        command: what the user typed, for the record.

    Raises:
        DatasetError: there is nothing that could be inspected.
    """
    data = Path(data)
    dataset, findings = _listed(data, known_groups)
    looks = look_through(dataset.cells, progress)
    findings += count_findings(dataset, _image_count(dataset))
    findings += file_findings(dataset.cells, looks)
    cells_at = cell_indices(looks)
    copies = copies_among(looks)
    findings += copy_findings(dataset.cells, looks, copies)

    found = twins.find_twins(
        [_reduced(looks[index]) for index in cells_at],
        [dataset.cells[index].field for index in cells_at],
        progress=progress,
    )
    found = [replace(twin, first=cells_at[twin.first], second=cells_at[twin.second]) for twin in found]
    findings += twin_findings(dataset, found, known_groups)
    pairs = [(twin.first, twin.second) for twin in found]
    pairs += [(same[0], other) for same in copies for other in same[1:]]
    by_crops = twins.joined([cell.group for cell in dataset.cells], pairs, first=SIPAKMED_PREFIX)
    matches = match_fields(field_files(dataset.cells), progress)
    groups = twins.joined(by_crops, crops_of_fields(dataset.cells, matches), first=SIPAKMED_PREFIX)
    findings += field_findings(matches, by_crops, groups)
    # Crops that share a part only show one place, but not one cell: two labels are no contradiction there.
    partial = {(twin.first, twin.second) for twin in found if twin.partial}
    findings += label_findings(dataset.cells, [pair for pair in pairs if pair not in partial])

    statistics = pd.DataFrame(
        [
            (dataset.cells[index].name, dataset.cells[index].label, groups[index], *looks[index].statistics)
            for index in cells_at
        ],
        columns=["path", "label", "group", *STATISTICS],
    )
    inspection = Inspection(dataset, findings, matches, found, groups, statistics)
    # One of an earlier look would not belong to this one.
    (Path(out) / LABEL_ERRORS_FILE).unlink(missing_ok=True)
    _write(inspection, looks, Path(out), provenance(command), known_groups, Addition())
    if look_closer is not None:
        addition = look_closer(inspection)
        findings += addition.findings
        _write(inspection, looks, Path(out), provenance(command), known_groups, addition)
    return inspection


# --- listing and reading -------------------------------------------------------------------------


def _listed(data: Path, known_groups: bool) -> tuple[CellDataset, list[Finding]]:
    """Return the data set, listed plainly if `read_dataset` refuses it, with the refusal as finding."""
    try:
        return read_dataset(data, known_groups), []
    except DatasetError as error:
        if not data.is_dir():
            raise
        names = _images_under(data)
        if not names:
            raise
        refuse_undecoded_names(data / name for name in names)
        return _plain_dataset(data, names, known_groups), [Finding("refused", as_utf8(str(error)))]


def _images_under(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix()
        for path in files_of_folder(root, hidden=False)
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _image_count(dataset: CellDataset) -> int:
    """Return how many images a loader would count that takes every one."""
    return len(dataset.cells) if dataset.layout == "manifest" else len(_images_under(dataset.root))


def _plain_dataset(root: Path, names: Sequence[str], known_groups: bool) -> CellDataset:
    """Take every image as a cell, labelled by the nearest folder that is not CROPPED or a part."""

    def label_of(name: str) -> str:
        folders = [
            folder for folder in name.split("/")[:-1] if folder.lower() not in (*PART_OF_FOLDER, "cropped")
        ]
        return folders[-1] if folders else root.name

    labels = [label_of(name) for name in names]
    recognised = proper_names(set(labels))
    known, proper = recognised if recognised else (None, {})
    labels = [proper.get(label, label) for label in labels]
    grouped = group_by_name(names, labels, [known] * len(names), known_groups)
    rows = zip((root / name for name in names), names, labels, grouped.groups, grouped.fields, strict=True)
    return CellDataset(root, "every image under the folder", known, tuple(Cell(*row) for row in rows))


def look_through(cells: Sequence[Cell], progress: Progress = SILENT) -> list[Look]:
    """Read every image once. One that cannot be read is in the list, with the reason."""
    every = max(1, len(cells) // SIZES_SAMPLED)
    sides = [side for cell in cells[::every] if (side := _side(cell.path))]
    scale = working_scale(sides or [WORKING_SIZE])
    looks = []
    progress.start("Reading images", len(cells))
    with one_thread_a_call(), ThreadPoolExecutor() as pool:
        for look in pool.map(lambda cell: _look(cell.path, scale), cells):
            looks.append(look)
            progress.advance()
    progress.close()
    return looks


def _side(path: Path) -> float | None:
    try:
        height, width = read_image(path).shape[:2]
    except ImageError:
        return None
    return float(height * width) ** 0.5


def _look(path: Path, scale: float) -> Look:
    try:
        kind = sniff_format(path)
        content = path.read_bytes()
        image = read_image(content, str(path))
    except ImageError as error:
        return Look(error=str(error))
    except OSError as error:
        return Look(error=f"{path}: cannot be read ({error.strerror}); check the disk.")
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    large = height * width > FIELD_PIXELS
    return Look(
        format=kind,
        bytes_sha256=hashlib.sha256(content).hexdigest(),
        pixels_sha256=hashlib.sha256(f"{height}x{width}".encode() + image.tobytes()).hexdigest(),
        width=width,
        height=height,
        deviation=float(grey.std()),
        few_colours=_has_few_colours(image),
        colour=_colour(image),
        statistics=image_statistics(image),
        # A whole field is no crop; what is smaller than a few points holds nothing to be compared.
        reduced=None if large or min(height, width) < 8 else reduce_crop(image, scale),
    )


def _has_few_colours(image: np.ndarray) -> bool:
    pixels = image.reshape(-1, 3)[:: max(1, image.shape[0] * image.shape[1] // 4096)].astype(np.uint32)
    return len(np.unique(pixels @ np.array([65536, 256, 1], np.uint32))) <= MASK_COLOURS


def _colour(image: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(value) for value in cv2.mean(image)[:3])
    return red, green, blue


def _reduced(look: Look) -> Reduced:
    assert look.reduced is not None
    return look.reduced


# --- files ---------------------------------------------------------------------------------------


def _write(
    inspection: Inspection,
    looks: Sequence[Look],
    out: Path,
    origin: dict[str, Any],
    known_groups: bool,
    addition: Addition,
) -> None:
    dataset = inspection.dataset
    groups = pd.DataFrame({"path": [cell.name for cell in dataset.cells], "group": inspection.groups})
    write_text(out / "groups.csv", groups.to_csv(index=False, lineterminator="\n"))
    rows = [
        (dataset.cells[twin.first].name, dataset.cells[twin.second].name, f"{twin.score:.4f}")
        for twin in inspection.twins
    ]
    table = pd.DataFrame(rows, columns=["path_a", "path_b", "score"])
    write_text(out / "twins.csv", table.to_csv(index=False, lineterminator="\n"))
    content = {
        "notice": RESEARCH_USE_ONLY,
        "data": str(dataset.root),
        "layout": dataset.layout,
        "known": dataset.known,
        "known_groups": known_groups,
        "cells": len(dataset.cells),
        "cells_of_class": dict(sorted(Counter(cell.label for cell in dataset.cells).items())),
        "groups_before": len({cell.group for cell in dataset.cells}),
        "groups": len(set(inspection.groups)),
        "largest_group": max(Counter(inspection.groups).values()),
        "twin_pairs": len(inspection.twins),
        "twin_pairs_by_keypoints": sum(twin.partial for twin in inspection.twins),
        "all_twin_pairs_listed": len(dataset.cells) <= EXHAUSTIVE,
        "twin_threshold": twins.THRESHOLD,
        "whole_fields": len(inspection.fields.files),
        "field_threshold": FIELD_THRESHOLD,
        "field_pairs": [asdict(pair) for pair in inspection.fields.pairs],
        "findings": [asdict(finding) for finding in inspection.findings],
        "unreadable": [
            {"path": cell.name, "reason": look.error}
            for cell, look in zip(dataset.cells, looks, strict=True)
            if look.error is not None
        ],
        "statistics": _class_figures(inspection.statistics),
        "outliers": outliers(inspection.statistics),
        "statistics_of_groups": group_medians(inspection.statistics, tuple(STATISTICS)),
        "groups_unlike_their_class": unlike_groups(inspection.statistics, tuple(STATISTICS)),
        **addition.content,
        "warnings": list(dataset.warnings),
        "provenance": origin,
    }
    write_text(out / "inspection.html", inspection_page(inspection, looks, content, addition.sections))
    write_json(out / "inspection.json", content)


def _class_figures(statistics: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return for each class and statistic the 5th, 25th, 50th, 75th and 95th percentile."""
    return {
        str(label): {
            name: {
                f"p{share}": round(float(np.percentile(cells[name], share)), 4)
                for share in (5, 25, 50, 75, 95)
            }
            for name in STATISTICS
        }
        for label, cells in statistics.groupby("label")
    }
