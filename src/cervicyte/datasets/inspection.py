"""Looks through a data set before anybody learns from it: what is there, what leaks, what contradicts.

Every image is read once. What is found is named, listed whole in `inspection.json`, and shown on one page
with the evidence side by side; `groups.csv` says what must stay on one side of a split.

Likely label errors and shortcuts need a network: `evaluation.closer_look` finds them and hands them in
as an `Addition`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from cervicyte.datasets import twins
from cervicyte.datasets.candidates import EXHAUSTIVE
from cervicyte.datasets.classes import PUBLISHED_CELLS, proper_names
from cervicyte.datasets.crops import TURNS, WORKING_SIZE, Reduced, reduce_crop, working_scale
from cervicyte.datasets.groups import SIPAKMED_PREFIX, group_by_name
from cervicyte.datasets.layouts import (
    HERLEV_MASK,
    MASK_FOLDERS,
    PART_OF_FOLDER,
    SIPAKMED_FIELD_SIZE,
    WHOLE_FIELD,
    Cell,
    CellDataset,
    read_dataset,
)
from cervicyte.datasets.twins import Twin
from cervicyte.datasets.unlike_groups import FEWEST_CELLS, GROUP_OUTLYING, group_medians, unlike_groups
from cervicyte.datasets.whole_fields import FIELD_THRESHOLD, FieldMatches, field_files, match_fields
from cervicyte.errors import DatasetError, ImageError
from cervicyte.images.reader import FORMAT_OF_SUFFIX, IMAGE_SUFFIXES, read_image, sniff_format
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text

FILES = ("inspection.html", "inspection.json", "groups.csv", "twins.csv")

PUBLISHED_FIELDS = {"SIPaKMeD": 966}
TINY = 24  # pixels; the smallest side of SIPaKMeD's crops is 62, of Herlev's 33
BLANK = 2.0  # grey levels, standard deviation of luminance
MASK_COLOURS = 8  # a mask has as many colours at most
FIELD_PIXELS = 1_000_000
FIELD_RATIO = 16  # times the pixels of the median image
OUTLYING = 5.0  # robust standard deviations (1.4826 times the median absolute deviation)
SIZES_SAMPLED = 200  # images that tell the median size before all are read
AUGMENTED_NAME = re.compile(
    r"(?:^|[_\-. ])(?:aug(?:mented)?|flip(?:ped)?|[hv]flip|mirror(?:ed)?|rot(?:ate[d]?)?[_-]?\d*"
    r"|bright(?:ness)?|noise|noisy|zoom(?:ed)?|shear(?:ed)?)(?:[_\-. \d]|$)|_copy\b| \(\d+\)$| - copy",
    re.IGNORECASE,
)
PAIRS_SHOWN = 24  # in each gallery
PICTURE_PIXELS = 112  # the longer side of a picture on the page
SMALL_PICTURE_PIXELS = 56
FIELD_PICTURE_PIXELS = 240
LISTED = 12  # names shown of a finding; the rest stand in inspection.json

STATISTICS = {
    "size_px": ("Size", "px", "geometric mean of height and width"),
    "lightness": ("Lightness", "", "mean luminance, 0 to 255"),
    "background": ("Exposure", "", "95th percentile of luminance: the light where the glass is clear"),
    "redness": ("Stain", "", "difference of mean optical density, green minus red: above 0 is pink to red"),
    "focus": ("Focus", "", "log10 of the variance of the Laplacian over that of luminance"),
}
IN_WHOLE_NUMBERS = ("size_px", "lightness", "background")


@dataclass(frozen=True)
class Finding:
    """Something that a user of the data set must know: what kind, in one sentence, and where.

    `paths` are the images it concerns, `pairs` those that belong together.
    """

    kind: str
    text: str
    paths: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Look:
    """What one reading of an image leaves; `error` is the reader's sentence if it cannot be read."""

    error: str | None = None
    format: str = ""
    bytes_sha256: str = ""
    pixels_sha256: str = ""
    width: int = 0
    height: int = 0
    deviation: float = 0.0
    few_colours: bool = False
    colour: tuple[int, int, int] = (0, 0, 0)
    statistics: tuple[float, ...] = ()
    reduced: Reduced | None = None


@dataclass(frozen=True)
class Inspection:
    """The result: the data set, its findings, twins by index into `dataset.cells`, the joined groups.

    `fields` are the whole photographs, where there are any, and those that overlap.
    """

    dataset: CellDataset
    findings: list[Finding]
    fields: FieldMatches
    twins: list[Twin]
    groups: list[str]
    statistics: pd.DataFrame
    """path, label, joined group and the columns of `STATISTICS`, of the images that are cells."""


@dataclass(frozen=True)
class Addition:
    """What a later room adds to an inspection: it may use a network, which this room does not know.

    `sections` are titles and HTML of the page, `content` are further keys of `inspection.json`.
    """

    findings: list[Finding] = field(default_factory=list)
    sections: list[tuple[str, str]] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)


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
        out: the folder for the four files; those there are replaced.
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
    findings += _count_findings(dataset)
    findings += _file_findings(dataset.cells, looks)
    cells_at = _cell_indices(looks)
    copies = _copies(looks)
    findings += _copy_findings(dataset.cells, looks, copies)

    found = twins.find_twins(
        [_reduced(looks[index]) for index in cells_at],
        [dataset.cells[index].field for index in cells_at],
        progress=progress,
    )
    found = [replace(twin, first=cells_at[twin.first], second=cells_at[twin.second]) for twin in found]
    findings += _twin_findings(dataset, found, known_groups)
    pairs = [(twin.first, twin.second) for twin in found]
    pairs += [(same[0], other) for same in copies for other in same[1:]]
    by_crops = twins.joined([cell.group for cell in dataset.cells], pairs, first=SIPAKMED_PREFIX)
    matches = match_fields(field_files(dataset.cells), progress)
    groups = twins.joined(by_crops, _crops_of_fields(dataset.cells, matches), first=SIPAKMED_PREFIX)
    findings += _field_findings(matches, by_crops, groups)
    findings += _label_findings(dataset.cells, pairs)

    statistics = pd.DataFrame(
        [
            (dataset.cells[index].name, dataset.cells[index].label, groups[index], *looks[index].statistics)
            for index in cells_at
        ],
        columns=["path", "label", "group", *STATISTICS],
    )
    inspection = Inspection(dataset, findings, matches, found, groups, statistics)
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
        return _plain_dataset(data, names, known_groups), [Finding("refused", str(error))]


def _images_under(root: Path) -> list[str]:
    names = []
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in files:
            path = Path(parent) / name
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                names.append(path.relative_to(root).as_posix())
    return sorted(names)


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
    with twins.one_thread_a_call(), ThreadPoolExecutor() as pool:
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
        statistics=_statistics(image, grey),
        # A whole field is no crop; what is smaller than a few points holds nothing to be compared.
        reduced=None if large or min(height, width) < 8 else reduce_crop(image, scale),
    )


def _has_few_colours(image: np.ndarray) -> bool:
    pixels = image.reshape(-1, 3)[:: max(1, image.shape[0] * image.shape[1] // 4096)].astype(np.uint32)
    return len(np.unique(pixels @ np.array([65536, 256, 1], np.uint32))) <= MASK_COLOURS


def _colour(image: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(value) for value in cv2.mean(image)[:3])
    return red, green, blue


def _statistics(image: np.ndarray, grey: np.ndarray) -> tuple[float, ...]:
    """Return the values of `STATISTICS` in their order."""
    height, width = grey.shape
    density = [-np.log10((value + 1) / 256) for value in cv2.mean(image)[:3]]
    sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var()) / max(float(grey.var()), 1.0)
    return (
        float(height * width) ** 0.5,
        float(grey.mean()),
        float(np.percentile(grey, 95)),
        float(density[1] - density[0]),
        float(np.log10(max(sharpness, 1e-6))),
    )


def _reduced(look: Look) -> Reduced:
    assert look.reduced is not None
    return look.reduced


def _cell_indices(looks: Sequence[Look]) -> list[int]:
    """Return the indices of what can be a cell: read, not blank, not a mask, not a whole field."""
    return [
        index
        for index, look in enumerate(looks)
        if look.reduced is not None and look.deviation >= BLANK and not look.few_colours
    ]


# --- findings ------------------------------------------------------------------------------------


def _count_findings(dataset: CellDataset) -> list[Finding]:
    findings = []
    every = len(_images_under(dataset.root)) if dataset.layout != "manifest" else len(dataset.cells)
    if every > len(dataset.cells):
        findings.append(
            Finding(
                "other-images",
                f"{every - len(dataset.cells):,} images beside the {len(dataset.cells):,} cells are none: a "
                f"loader that takes every image counts {every:,}.",
            )
        )
    if dataset.known is None:
        return findings
    published = PUBLISHED_CELLS[dataset.known]
    total = sum(published.values())
    fields = PUBLISHED_FIELDS.get(dataset.known, 0)
    extra = {total + fields: "the whole fields", 2 * total: "the masks"}
    for count in {every, len(dataset.cells)}:
        if count != total and count in extra:
            findings.append(
                Finding(
                    "counts", f"{count:,} images are {total:,} cells of {dataset.known} and {extra[count]}."
                )
            )
    counts = Counter(cell.label for cell in dataset.cells)
    short = {name: counts[name] for name in published if counts[name] < published[name]}
    over = {name: counts[name] for name in published if counts[name] > published[name]}
    for kind, classes, words in (
        ("partial-copy", short, "a part of"),
        ("more-than-published", over, "more than"),
    ):
        if classes:
            which = ", ".join(f"{name} {count:,} of {published[name]:,}" for name, count in classes.items())
            findings.append(
                Finding(
                    kind,
                    f"This is {words} {dataset.known}: {len(dataset.cells):,} cells where {total:,} were "
                    f"published ({which}).",
                )
            )
    return findings


def _file_findings(cells: Sequence[Cell], looks: Sequence[Look]) -> list[Finding]:
    """Name what lies among the cells and is none, or cannot be used."""
    readable = [look.width * look.height for look in looks if look.error is None]
    median = float(np.median(readable)) if readable else 0.0

    def is_field(cell: Cell, look: Look) -> bool:
        pixels = look.width * look.height
        return (look.width, look.height) == SIPAKMED_FIELD_SIZE or (
            pixels > FIELD_PIXELS
            and (pixels > FIELD_RATIO * median or bool(WHOLE_FIELD.fullmatch(cell.path.stem)))
        )

    def is_mask(cell: Cell, look: Look) -> bool:
        named = HERLEV_MASK.fullmatch(cell.path.stem) or MASK_FOLDERS & {
            folder.lower() for folder in cell.name.split("/")[:-1]
        }
        return bool(named) or (look.few_colours and look.deviation >= BLANK)

    def is_misnamed(cell: Cell, look: Look) -> bool:
        return look.format != FORMAT_OF_SUFFIX.get(cell.path.suffix.lower(), look.format)

    kinds: tuple[tuple[str, str, Callable[[Cell, Look], bool]], ...] = (
        ("fields-among-crops", "{} images among the crops are as large as whole fields.", is_field),
        ("masks-among-images", f"{{}} images have a mask's name or at most {MASK_COLOURS} colours.", is_mask),
        ("misnamed", "{} files are of another format than their names say.", is_misnamed),
        (
            "blank",
            "{} images are blank: all pixels are nearly alike.",
            lambda _, look: look.deviation < BLANK,
        ),
        (
            "tiny",
            f"{{}} images have a side under {TINY} pixels.",
            lambda _, look: min(look.width, look.height) < TINY,
        ),
    )
    findings = []
    unreadable = [(cell, look) for cell, look in zip(cells, looks, strict=True) if look.error is not None]
    if unreadable:
        findings.append(
            Finding(
                "unreadable",
                f"{len(unreadable):,} files cannot be read, the first: {unreadable[0][1].error}",
                tuple(cell.name for cell, _ in unreadable),
            )
        )
    for kind, text, holds in kinds:
        names = tuple(
            cell.name
            for cell, look in zip(cells, looks, strict=True)
            if look.error is None and holds(cell, look)
        )
        if names:
            findings.append(Finding(kind, text.format(f"{len(names):,}"), names))
    named = tuple(cell.name for cell in cells if AUGMENTED_NAME.search(cell.path.stem))
    if named:
        findings.append(
            Finding("augmented-names", f"{len(named):,} files are named like augmented copies.", named)
        )
    return findings


def _copies(looks: Sequence[Look]) -> list[list[int]]:
    """Return the sets of images, by index, whose decoded pixels are the same."""
    same = defaultdict(list)
    for index, look in enumerate(looks):
        # Blank images are alike without being copies, and are a finding of their own.
        if look.error is None and look.deviation >= BLANK:
            same[look.pixels_sha256].append(index)
    return [indices for indices in same.values() if len(indices) > 1]


def _copy_findings(
    cells: Sequence[Cell], looks: Sequence[Look], copies: Sequence[Sequence[int]]
) -> list[Finding]:
    """Tell copies of the file from copies of the picture in another file."""
    findings = []
    pairs: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for indices in copies:
        for other in indices[1:]:
            same_bytes = looks[other].bytes_sha256 in {
                looks[index].bytes_sha256 for index in indices if index < other
            }
            pairs[same_bytes].append((cells[indices[0]].name, cells[other].name))
    for same_bytes, kind, words in (
        (True, "duplicate-files", "are the same file as another"),
        (False, "duplicate-pixels", "hold the same pixels as another, in a different file"),
    ):
        if pairs[same_bytes]:
            findings.append(
                Finding(kind, f"{len(pairs[same_bytes]):,} images {words}.", pairs=tuple(pairs[same_bytes]))
            )
    return findings


def _twin_findings(dataset: CellDataset, found: Sequence[Twin], known_groups: bool) -> list[Finding]:
    cells = dataset.cells

    def names(some: Iterable[Twin]) -> tuple[tuple[str, str], ...]:
        return tuple((cells[twin.first].name, cells[twin.second].name) for twin in some)

    turned = [twin for twin in found if twin.turn]
    plain = [twin for twin in found if not twin.turn]
    within = [twin for twin in plain if cells[twin.first].field == cells[twin.second].field]
    across = [twin for twin in plain if cells[twin.first].field != cells[twin.second].field]
    unknown = [twin for twin in across if cells[twin.first].group != cells[twin.second].group]
    findings = []
    if turned:
        findings.append(
            Finding(
                "augmented-copies",
                f"{len(turned):,} pairs are one picture, mirrored or turned by quarters: augmented copies.",
                pairs=names(turned),
            )
        )
    if across:
        involved = {index for twin in across for index in (twin.first, twin.second)}
        findings.append(
            Finding(
                "twins",
                f"{len(across):,} pairs show the same place under different field numbers, {len(involved):,} "
                f"of {len(cells):,} cells: a split by cell or by field number puts twins on both sides.",
                pairs=names(across),
            )
        )
    if within:
        findings.append(
            Finding(
                "twins-in-one-field",
                f"{len(within):,} pairs show the same place under one field number.",
                pairs=names(within),
            )
        )
    if unknown and dataset.known == "SIPaKMeD" and known_groups:
        findings.append(
            Finding(
                "twins-beyond-the-table",
                f"{len(unknown):,} of these pairs are not joined by the shipped table of SIPaKMeD's "
                "field groups.",
                pairs=names(unknown),
            )
        )
    return findings


def _crops_of_fields(cells: Sequence[Cell], matches: FieldMatches) -> list[tuple[int, int]]:
    """Return pairs of cells, by index: one of each overlapping field, and fields that lie among the cells."""
    first_of: dict[str, int] = {}
    at_path = {cell.path: index for index, cell in enumerate(cells)}
    for index, cell in enumerate(cells):
        first_of.setdefault(cell.field, index)
    pairs = [(first_of[pair.first], first_of[pair.second]) for pair in matches.pairs]
    pairs += [(first_of[name], at_path[path]) for name, path in matches.files.items() if path in at_path]
    return pairs


def _field_findings(matches: FieldMatches, before: Sequence[str], after: Sequence[str]) -> list[Finding]:
    if not matches.pairs:
        return []
    joins = len(set(before)) - len(set(after))
    return [
        Finding(
            "fields-joined",
            f"{len(matches.pairs):,} pairs of the {len(matches.files):,} whole fields overlap; they join "
            f"{joins:,} groups to others that neither names nor crops had joined.",
            pairs=tuple((pair.first, pair.second) for pair in matches.pairs),
        )
    ]


def _label_findings(cells: Sequence[Cell], pairs: Sequence[tuple[int, int]]) -> list[Finding]:
    contrary = sorted({pair for pair in pairs if cells[pair[0]].label != cells[pair[1]].label})
    if not contrary:
        return []
    kinds = Counter(tuple(sorted(cells[index].label for index in pair)) for pair in contrary)
    which = ", ".join(f"{one} and {other} {count:,}" for (one, other), count in kinds.most_common())
    return [
        Finding(
            "label-conflicts",
            f"{len(contrary):,} pairs show one cell under two labels ({which}).",
            pairs=tuple((cells[one].name, cells[other].name) for one, other in contrary),
        )
    ]


def outliers(statistics: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the cells that lie far from the median of their class, the farthest first.

    Distance is in robust standard deviations: 1.4826 times the median absolute deviation.
    """
    found: list[dict[str, Any]] = []
    for label, cells in statistics.groupby("label"):
        for name in STATISTICS:
            values = cells[name].to_numpy()
            middle = np.median(values)
            spread = max(1.4826 * float(np.median(np.abs(values - middle))), 1e-9)
            for path, value in zip(cells["path"], values, strict=True):
                distance = (value - middle) / spread
                if abs(distance) >= OUTLYING and len(values) >= 10:
                    found.append(
                        {
                            "path": path,
                            "label": label,
                            "statistic": name,
                            "value": round(float(value), 3),
                            "class_median": round(float(middle), 3),
                            "robust_deviations": round(float(distance), 1),
                        }
                    )
    return sorted(found, key=lambda one: -abs(one["robust_deviations"]))


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
    write_text(out / "inspection.html", page(inspection, looks, content, addition.sections))
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


# --- the page ------------------------------------------------------------------------------------

TITLES = {
    "refused": "Refused as it lies",
    "other-images": "Images that are no cells",
    "counts": "Counted what is no cell",
    "partial-copy": "Partial copy",
    "more-than-published": "More than was published",
    "unreadable": "Unreadable",
    "fields-among-crops": "Fields among crops",
    "masks-among-images": "Masks among images",
    "misnamed": "Not what the name says",
    "blank": "Blank",
    "tiny": "Tiny",
    "augmented-names": "Named as augmented",
    "duplicate-files": "Duplicate files",
    "duplicate-pixels": "Duplicate pictures",
    "augmented-copies": "Augmented copies",
    "twins": "Twins across fields",
    "twins-in-one-field": "Twins in one field",
    "twins-beyond-the-table": "Twins beyond the table",
    "fields-joined": "Overlapping fields",
    "label-conflicts": "Label conflicts",
    "label-errors": "Likely label errors",
    "shortcuts": "Shortcuts",
}


def page(
    inspection: Inspection,
    looks: Sequence[Look],
    content: dict[str, Any],
    added: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the inspection as one HTML page that needs no other file and no network."""
    sections = [
        _section("At a glance", _key_figures(inspection, content)),
        _section("Findings", _findings_table(inspection.findings)),
        *_galleries(inspection),
        *_field_gallery(inspection),
        *(_section(title, part) for title, part in added),
        _section("What the cells are like", *_class_parts(inspection, looks)),
        _section("Cells unlike their class", _outlier_table(content["outliers"], inspection.dataset.cells)),
        _section("Groups unlike their class", _unlike_groups_table(content, inspection)),
        _section("Where this comes from", _origin(content)),
    ]
    name = html.escape(inspection.dataset.root.resolve().name)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Inspection of {name}</title>
<style>{PAGE_STYLE}</style>
</head>
<body>
<p class="notice" role="note">{html.escape(RESEARCH_USE_ONLY)}</p>
<main>
<header>
<h1>Inspection of {name}</h1>
<p>{len(inspection.dataset.cells):,} cells, {len(inspection.dataset.classes)} classes, \
{html.escape(inspection.dataset.known or inspection.dataset.layout)}. \
Written {html.escape(content["provenance"]["written"][:10])} by Cervicyte.</p>
</header>
{"".join(sections)}</main>
<footer>{html.escape(RESEARCH_USE_ONLY)}</footer>
</body>
</html>
"""


def _key_figures(inspection: Inspection, content: dict[str, Any]) -> str:
    involved = {index for twin in inspection.twins for index in (twin.first, twin.second)}
    figures = (
        ("Cells", f"{content['cells']:,}", f"{len(content['cells_of_class'])} classes"),
        ("Groups", f"{content['groups']:,}", f"{content['groups_before']:,} before twins were joined"),
        ("Largest group", f"{content['largest_group']:,}", "cells that stay on one side of a split"),
        ("Twin pairs", f"{content['twin_pairs']:,}", f"{len(involved):,} cells have a twin"),
        (
            "Label conflicts",
            f"{sum(len(one.pairs) for one in inspection.findings if one.kind == 'label-conflicts'):,}",
            "pairs of one cell under two labels",
        ),
        ("Unreadable", f"{len(content['unreadable']):,}", "files"),
    )
    items = "".join(
        f"<div><dt>{html.escape(title)}</dt><dd><b>{value}</b></dd>"
        f"<dd class=note>{html.escape(meaning)}</dd></div>"
        for title, value, meaning in figures
    )
    return f"<dl class=key>{items}</dl>"


def _findings_table(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p class=lead>There are none.</p>"
    rows = []
    for finding in findings:
        names = [*finding.paths, *(f"{one} and {other}" for one, other in finding.pairs)]
        more = f"<li>and {len(names) - LISTED:,} more in inspection.json</li>" if len(names) > LISTED else ""
        listed = "".join(f"<li><code>{html.escape(name)}</code></li>" for name in names[:LISTED]) + more
        fold = (
            f"<details><summary>{len(names):,} listed</summary><ul>{listed}</ul></details>" if names else ""
        )
        rows.append(
            f"<tr><th scope=row>{html.escape(TITLES[finding.kind])}</th>"
            f"<td>{html.escape(finding.text)}{fold}</td></tr>"
        )
    return f"<table class=findings><tbody>{''.join(rows)}</tbody></table>"


def _galleries(inspection: Inspection) -> list[str]:
    """Return the evidence: one gallery of pairs for each question that a reader will have."""
    cells, found = inspection.dataset.cells, inspection.twins
    across = [twin for twin in found if cells[twin.first].field != cells[twin.second].field and not twin.turn]
    surest = sorted(across, key=lambda twin: -twin.score)
    shown = min(PAIRS_SHOWN, len(surest))
    table = inspection.dataset.known == "SIPaKMeD"
    galleries = (
        (
            "One cell under two labels",
            "The same place, photographed twice and labelled differently.",
            [twin for twin in found if cells[twin.first].label != cells[twin.second].label],
        ),
        (
            "Twins beyond the table" if table else "Twins across fields that names do not tell",
            "Not joined by the data set's own groups; joined here.",
            [twin for twin in across if cells[twin.first].group != cells[twin.second].group],
        ),
        (
            "The least sure twins",
            f"The pairs next to the threshold of {twins.THRESHOLD}, where a mistake is likeliest.",
            surest[::-1],
        ),
        (
            "Crops that share a part",
            "Found by keypoints: a neighbouring cell or a margin lies in both crops. The least sure first.",
            sorted((twin for twin in across if twin.partial), key=lambda twin: twin.score),
        ),
        (
            "Twins across fields",
            "Evenly spaced by score.",
            [surest[place * len(surest) // shown] for place in range(shown)],
        ),
        (
            "Twins in one field",
            "Crops of one photograph, or numbered as one, that show the same place.",
            [twin for twin in found if cells[twin.first].field == cells[twin.second].field and not twin.turn],
        ),
        ("Augmented copies", "One picture, mirrored or turned by quarters.", [t for t in found if t.turn]),
    )
    sections = []
    for title, text, pairs in galleries:
        if pairs:
            total = len(across) if title == "Twins across fields" else len(pairs)
            count = f"{total:,} pairs" if total <= PAIRS_SHOWN else f"{PAIRS_SHOWN} of {total:,} pairs"
            figures = "".join(_pair(cells, twin) for twin in pairs[:PAIRS_SHOWN])
            note = f"<p class=note>{html.escape(text)} {count}; all found stand in twins.csv.</p>"
            sections.append(_section(title, note, f"<div class=pairs>{figures}</div>"))
    return sections


def _field_gallery(inspection: Inspection) -> list[str]:
    """Return the overlapping fields side by side, the least sure first, or nothing."""
    fields = inspection.fields
    figures = []
    for pair in fields.pairs[: -PAIRS_SHOWN - 1 : -1]:
        sides = "".join(
            f"<div>{pixels_as_picture(read_image(fields.files[name]), name, FIELD_PICTURE_PIXELS)}"
            f"<code>{html.escape(name)}</code></div>"
            for name in (pair.first, pair.second)
        )
        words = f"{pair.score:.2f}, {pair.share:.0%}"
        figures.append(f"<figure class=pair>{sides}<figcaption>{words}</figcaption></figure>")
    if not figures:
        return []
    count = f"{len(figures)} of {len(fields.pairs):,}" if len(fields.pairs) > PAIRS_SHOWN else "All"
    note = (
        f"<p class=note>Whole photographs that show the same place in part: how well they agree there, and "
        f"the share of the smaller one that overlaps. {count} pairs, the least sure first; all stand in "
        "inspection.json.</p>"
    )
    return [_section("Overlapping fields", note, f"<div class=pairs>{''.join(figures)}</div>")]


def _pair(cells: Sequence[Cell], twin: Twin) -> str:
    sides = []
    for index in (twin.first, twin.second):
        cell = cells[index]
        sides.append(
            f"<div>{picture(cell)}<span>{html.escape(cell.label)}</span>"
            f"<code>{html.escape(cell.path.name)}</code></div>"
        )
    turn = f", {TURNS[twin.turn]}" if twin.turn else ""
    return f"<figure class=pair>{''.join(sides)}<figcaption>{twin.score:.2f}{turn}</figcaption></figure>"


def picture(cell: Cell, side: int = PICTURE_PIXELS) -> str:
    """Return a small JPEG of a cell as an element."""
    return pixels_as_picture(read_image(cell.path), cell.name, side)


def pixels_as_picture(image: np.ndarray, description: str, side: int = PICTURE_PIXELS) -> str:
    """Return an image, uint8 [H, W, 3], as an element that shows it as a small JPEG."""
    small = Image.fromarray(image)

    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(description)}" width={small.width} '
        f"height={small.height}>"
    )


def _class_parts(inspection: Inspection, looks: Sequence[Look]) -> list[str]:
    """Return a table of the classes: median of each statistic and how its values spread."""
    statistics = inspection.statistics
    if statistics.empty:
        return ["<p>There is no cell that could be measured.</p>"]
    colour_of = {cell.name: look.colour for cell, look in zip(inspection.dataset.cells, looks, strict=True)}
    head = "".join(
        f"<th scope=col>{title}{f', {unit}' if unit else ''}</th>" for title, unit, _ in STATISTICS.values()
    )
    ends = {
        name: (float(np.percentile(statistics[name], 1)), float(np.percentile(statistics[name], 99)))
        for name in STATISTICS
    }
    rows = []
    for label, cells in statistics.groupby("label"):
        red, green, blue = np.median([colour_of[path] for path in cells["path"]], axis=0).astype(int)
        swatch = f'<i class=swatch style="background:rgb({red},{green},{blue})"></i>'
        texts = [
            f"<td>{_median_text(name, cells[name])}{_strip(cells[name].to_numpy(), *ends[name])}</td>"
            for name in STATISTICS
        ]
        rows.append(
            f"<tr><th scope=row>{swatch}{html.escape(str(label))}<br><small>{len(cells):,} cells</small></th>"
            f"{''.join(texts)}</tr>"
        )
    notes = " ".join(f"{title}: {meaning}." for title, _, meaning in STATISTICS.values())
    return [
        f"<div class=scroll><table class=classes><thead><tr><th scope=col>Class</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>",
        f"<p class=note>Median, and how the cells spread between the 1st and 99th percentile of all classes; "
        f"the square is the median colour. {html.escape(notes)}</p>",
    ]


def _median_text(name: str, values: pd.Series) -> str:
    return _value_text(name, float(np.median(values)))


def _value_text(name: str, value: float) -> str:
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{value:.0f}" if name in IN_WHOLE_NUMBERS else f"{round(value, 2) + 0:.2f}"


def _strip(values: np.ndarray, low: float, high: float) -> str:
    """Return a histogram as a small drawing that takes the text's colour."""
    counts, _ = np.histogram(np.clip(values, low, high), bins=30, range=(low, max(high, low + 1e-9)))
    tallest = max(1, counts.max())
    bars = "".join(
        f'<rect x="{4 * index}" y="{24 - 24 * count / tallest:.1f}" width="3.4" '
        f'height="{24 * count / tallest:.1f}"/>'
        for index, count in enumerate(counts)
        if count
    )
    return f'<svg class=strip viewBox="0 0 120 24" role="img" aria-label="spread of the values">{bars}</svg>'


def _outlier_table(found: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> str:
    if not found:
        return f"<p>No cell lies {OUTLYING:g} robust standard deviations from the median of its class.</p>"
    cell_of = {cell.name: cell for cell in cells}
    rows = "".join(
        f"<tr><td>{picture(cell_of[one['path']], SMALL_PICTURE_PIXELS)}</td>"
        f"<th scope=row><code>{html.escape(one['path'])}</code></th><td>{html.escape(one['label'])}</td>"
        f"<td>{STATISTICS[one['statistic']][0]}</td>"
        f"<td class=number>{_value_text(one['statistic'], one['value'])}</td>"
        f"<td class=number>{_value_text(one['statistic'], one['class_median'])}</td>"
        f"<td class=number>{one['robust_deviations']:+.1f}</td></tr>"
        for one in found[:LISTED]
    )
    more = f"The first {LISTED} of {len(found):,}; all" if len(found) > LISTED else "All"
    return (
        "<div class=scroll><table><thead><tr><th>Picture</th><th>Cell</th><th>Class</th><th>Statistic</th>"
        "<th>Value</th><th>Median of the class</th><th>Robust deviations</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f"<p class=note>{more} stand in inspection.json. Unlike is not wrong: look before leaving one out."
        "</p>"
    )


def _unlike_groups_table(content: dict[str, Any], inspection: Inspection) -> str:
    found = content["groups_unlike_their_class"]
    if not found:
        return (
            f"<p>No group of {FEWEST_CELLS} cells or more lies {GROUP_OUTLYING:g} robust standard deviations "
            "from the other groups of its class.</p>"
        )
    cell_of = {cell.name: cell for cell in inspection.dataset.cells}
    rows = "".join(
        f"<tr><td>{''.join(picture(cell_of[path], SMALL_PICTURE_PIXELS) for path in one['shown'])}</td>"
        f"<th scope=row><code>{html.escape(one['group'])}</code><br>"
        f"<small>{one['cells']:,} cells</small></th>"
        f"<td>{html.escape(one['label'])}</td><td>{STATISTICS[one['statistic']][0]}</td>"
        f"<td class=number>{_value_text(one['statistic'], one['median'])}</td>"
        f"<td class=number>{_value_text(one['statistic'], one['median_of_groups'])}</td>"
        f"<td class=number>{one['robust_deviations']:+.1f}</td></tr>"
        for one in found[:LISTED]
    )
    more = f"The first {LISTED} of {len(found):,}; all" if len(found) > LISTED else "All"
    return (
        "<div class=scroll><table><thead><tr><th>Three of its cells</th><th>Group</th><th>Class</th>"
        "<th>Statistic</th><th>Median of the group</th><th>Median of the class's groups</th>"
        f"<th>Robust deviations</th></tr></thead><tbody>{rows}</tbody></table></div>"
        f"<p class=note>{more} stand in inspection.json. A group's median is compared with the medians of "
        f"the other groups of its class, from {FEWEST_CELLS} cells and {GROUP_OUTLYING:g} robust standard "
        "deviations on. Such a group was stained, lit or focused in its own way, or holds another kind of "
        "cell; in the test part it shows how a model copes, in the training part it is rare.</p>"
    )


def _origin(content: dict[str, Any]) -> str:
    origin = content["provenance"]
    facts = {
        "Data": content["data"],
        "Layout": content["layout"],
        "Known groups": "from the shipped table" if content["known_groups"] else "left out",
        "Least score of twins": content["twin_threshold"],
        **{
            key.capitalize(): origin[key]
            for key in ("command", "commit", "machine", "written")
            if origin[key]
        },
        "Versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
    }
    rows = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    warnings = "".join(f"<li>{html.escape(warning)}</li>" for warning in content["warnings"])
    caveat = (
        "Groups are what shows the same place, not patients. Two photographs of one cell that differ in "
        "focus beyond recognition are not found; nor are fields that overlap where no crop was cut, unless "
        "the whole fields lie beside the crops."
    )
    return (
        f"<ul>{warnings}<li>{caveat}</li></ul>"
        f"<div class=scroll><table class=facts><tbody>{rows}</tbody></table></div>"
    )


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{''.join(parts)}\n</section>\n"


PAGE_STYLE = """
:root { --paper: #fff; --ink: #1b2027; --soft: #565e69; --line: #d8dce1; --panel: #f4f6f8;
  --warn: #7a3b00; --warn-paper: #fff3e0; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e8ebef; --soft: #a4adb8;
  --line: #353c45; --panel: #1d2228; --warn: #ffd8a8; --warn-paper: #3a2a12; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem 2rem; }
.notice { margin: 0; padding: .6rem 1.25rem; text-align: center; font-weight: 600;
  color: var(--warn); background: var(--warn-paper); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.6rem 0 .3rem; overflow-wrap: anywhere; }
header p { margin: 0; color: var(--soft); }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; padding-top: .9rem; border-top: 1px solid var(--line); }
.note, small { color: var(--soft); font-size: .85rem; }
.note { max-width: 60rem; }
.lead { font-size: 1.1rem; }
.key { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .8rem; margin: 0; }
.key div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .9rem; }
.key dt { font-size: .9rem; color: var(--soft); }
.key dd { margin: 0; }
.key b { font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 500; }
.number { text-align: right; }
.findings { width: 100%; }
.findings th { width: 13rem; font-weight: 600; }
.classes td { min-width: 8rem; }
.strip { display: block; width: 7.5rem; height: 1.5rem; fill: var(--soft); margin-top: .2rem; }
.swatch { display: inline-block; width: .9rem; height: .9rem; border-radius: 3px; margin-right: .45rem;
  vertical-align: -.1rem; border: 1px solid var(--line); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); gap: .8rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr 3.2rem; gap: .4rem; margin: 0; padding: .6rem;
  align-items: start; background: var(--panel); border: 1px solid var(--line); border-radius: 8px; }
.pair img { display: block; border-radius: 3px; max-width: 100%; height: auto; margin-bottom: .3rem; }
.pair span { display: block; font-size: .78rem; line-height: 1.2; }
.pair figcaption { text-align: right; font-weight: 600; font-variant-numeric: tabular-nums;
  font-size: .9rem; overflow-wrap: anywhere; }
code { font-size: .82rem; overflow-wrap: anywhere; }
.facts { width: 100%; }
.facts th { width: 13rem; color: var(--soft); }
.facts td { overflow-wrap: anywhere; }
summary { cursor: pointer; font-size: .88rem; color: var(--soft); }
ul { margin: .3rem 0; padding-left: 1.2rem; }
footer { text-align: center; padding: 1rem; color: var(--soft); border-top: 1px solid var(--line); }
@media (max-width: 40rem) { th, td { padding: .35rem .4rem; } .facts th, .findings th { width: 8rem; } }
@media print { .pair, tr { break-inside: avoid; } body { font-size: 11px; } main { max-width: none; } }
"""
