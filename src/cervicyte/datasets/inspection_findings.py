"""What an inspection finds, from what one reading of each image left: names, counts and pairs.

A finding is one sentence with the images that it concerns; what is found here needs no network.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cervicyte.datasets.classes import PUBLISHED_CELLS
from cervicyte.datasets.crops import Reduced
from cervicyte.datasets.layouts import (
    HERLEV_MASK,
    MASK_FOLDERS,
    SIPAKMED_FIELD_SIZE,
    WHOLE_FIELD,
    Cell,
    CellDataset,
)
from cervicyte.datasets.twins import Twin
from cervicyte.datasets.whole_fields import FieldMatches
from cervicyte.images.reader import FORMAT_OF_SUFFIX
from cervicyte.images.statistics import STATISTICS
from cervicyte.pages import agreeing, counted

PUBLISHED_FIELDS = {"SIPaKMeD": 966}
TINY = 24  # pixels; the smallest side of SIPaKMeD's crops is 62, of Herlev's 33
BLANK = 2.0  # grey levels, standard deviation of luminance
MASK_COLOURS = 8  # a mask has as many colours at most
FIELD_PIXELS = 1_000_000
FIELD_RATIO = 16  # times the pixels of the median image
OUTLYING = 5.0  # robust standard deviations (1.4826 times the median absolute deviation)
AUGMENTED_NAME = re.compile(
    r"(?:^|[_\-. ])(?:aug(?:mented)?|flip(?:ped)?|[hv]flip|mirror(?:ed)?|rot(?:ate[d]?)?[_-]?\d*"
    r"|bright(?:ness)?|noise|noisy|zoom(?:ed)?|shear(?:ed)?)(?:[_\-. \d]|$)|_copy\b| \(\d+\)$| - copy",
    re.IGNORECASE,
)


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


def cell_indices(looks: Sequence[Look]) -> list[int]:
    """Return the indices of what can be a cell: read, not blank, not a mask, not a whole field."""
    return [
        index
        for index, look in enumerate(looks)
        if look.reduced is not None and look.deviation >= BLANK and not look.few_colours
    ]


def count_findings(dataset: CellDataset, every: int) -> list[Finding]:
    """Compare how many cells there are with `every` image there, and with what was published."""
    findings = []
    others = every - len(dataset.cells)
    if others > 0:
        findings.append(
            Finding(
                "other-images",
                f"{counted(others, 'image')} beside the {counted(len(dataset.cells), 'cell')} "
                f"{agreeing(others, 'is', 'are')} none: a loader that takes every image counts {every:,}.",
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
                    f"This is {words} {dataset.known}: {counted(len(dataset.cells), 'cell')} where "
                    f"{total:,} were published ({which}).",
                )
            )
    return findings


def file_findings(cells: Sequence[Cell], looks: Sequence[Look]) -> list[Finding]:
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

    kinds: tuple[tuple[str, str, str, Callable[[Cell, Look], bool]], ...] = (
        (
            "fields-among-crops",
            "image among the crops is as large as a whole field",
            "images among the crops are as large as whole fields",
            is_field,
        ),
        (
            "masks-among-images",
            f"image has a mask's name or at most {MASK_COLOURS} colours",
            f"images have a mask's name or at most {MASK_COLOURS} colours",
            is_mask,
        ),
        (
            "misnamed",
            "file is of another format than its name says",
            "files are of another format than their names say",
            is_misnamed,
        ),
        (
            "blank",
            "image is blank: all pixels are nearly alike",
            "images are blank: all pixels are nearly alike",
            lambda _, look: look.deviation < BLANK,
        ),
        (
            "tiny",
            f"image has a side under {TINY} pixels",
            f"images have a side under {TINY} pixels",
            lambda _, look: min(look.width, look.height) < TINY,
        ),
    )
    findings = []
    unreadable = [(cell, look) for cell, look in zip(cells, looks, strict=True) if look.error is not None]
    if unreadable:
        findings.append(
            Finding(
                "unreadable",
                f"{counted(len(unreadable), 'file')} cannot be read, the first: {unreadable[0][1].error}",
                tuple(cell.name for cell, _ in unreadable),
            )
        )
    for kind, one, several, holds in kinds:
        names = tuple(
            cell.name
            for cell, look in zip(cells, looks, strict=True)
            if look.error is None and holds(cell, look)
        )
        if names:
            findings.append(Finding(kind, f"{len(names):,} {agreeing(len(names), one, several)}.", names))
    named = tuple(cell.name for cell in cells if AUGMENTED_NAME.search(cell.path.stem))
    if named:
        findings.append(
            Finding(
                "augmented-names",
                f"{counted(len(named), 'file', 'is', 'are')} named like augmented copies.",
                named,
            )
        )
    return findings


def copies_among(looks: Sequence[Look]) -> list[list[int]]:
    """Return the sets of images, by index, whose decoded pixels are the same."""
    same = defaultdict(list)
    for index, look in enumerate(looks):
        # Blank images are alike without being copies, and are a finding of their own.
        if look.error is None and look.deviation >= BLANK:
            same[look.pixels_sha256].append(index)
    return [indices for indices in same.values() if len(indices) > 1]


def copy_findings(
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
    for same_bytes, kind, verbs, what in (
        (True, "duplicate-files", ("is", "are"), "the same file as another"),
        (False, "duplicate-pixels", ("holds", "hold"), "the same pixels as another, in a different file"),
    ):
        if pairs[same_bytes]:
            said = f"{counted(len(pairs[same_bytes]), 'image', *verbs)} {what}."
            findings.append(Finding(kind, said, pairs=tuple(pairs[same_bytes])))
    return findings


def twin_findings(dataset: CellDataset, found: Sequence[Twin], known_groups: bool) -> list[Finding]:
    """Tell augmented copies, twins across fields and within one, and those that the table does not know."""
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
                f"{counted(len(turned), 'pair', 'is', 'are')} one picture, mirrored or turned by quarters: "
                "augmented copies.",
                pairs=names(turned),
            )
        )
    if across:
        involved = {index for twin in across for index in (twin.first, twin.second)}
        findings.append(
            Finding(
                "twins",
                f"{counted(len(across), 'pair', 'shows', 'show')} the same place under different field "
                f"numbers, {len(involved):,} of {len(cells):,} cells: a split by cell or by field number "
                "puts twins on both sides.",
                pairs=names(across),
            )
        )
    if within:
        findings.append(
            Finding(
                "twins-in-one-field",
                f"{counted(len(within), 'pair', 'shows', 'show')} the same place under one field number.",
                pairs=names(within),
            )
        )
    if unknown and dataset.known == "SIPaKMeD" and known_groups:
        findings.append(
            Finding(
                "twins-beyond-the-table",
                f"{len(unknown):,} of these pairs {agreeing(len(unknown), 'is', 'are')} not joined by the "
                "shipped table of SIPaKMeD's field groups.",
                pairs=names(unknown),
            )
        )
    return findings


def crops_of_fields(cells: Sequence[Cell], matches: FieldMatches) -> list[tuple[int, int]]:
    """Return pairs of cells, by index: one of each overlapping field, and fields that lie among the cells."""
    first_of: dict[str, int] = {}
    at_path = {cell.path: index for index, cell in enumerate(cells)}
    for index, cell in enumerate(cells):
        first_of.setdefault(cell.field, index)
    pairs = [(first_of[pair.first], first_of[pair.second]) for pair in matches.pairs]
    pairs += [(first_of[name], at_path[path]) for name, path in matches.files.items() if path in at_path]
    return pairs


def field_findings(matches: FieldMatches, before: Sequence[str], after: Sequence[str]) -> list[Finding]:
    """Say which fields overlap, and how many groups that joins: each cell's group `before` and `after`."""
    if not matches.pairs:
        return []
    joins = len(set(before)) - len(set(after))
    return [
        Finding(
            "fields-joined",
            f"{counted(len(matches.pairs), 'pair')} of the {len(matches.files):,} whole fields "
            f"{agreeing(len(matches.pairs), 'overlaps; it joins', 'overlap; they join')} "
            f"{counted(joins, 'group')} to others that neither names nor crops had joined.",
            pairs=tuple((pair.first, pair.second) for pair in matches.pairs),
        )
    ]


def label_findings(cells: Sequence[Cell], pairs: Sequence[tuple[int, int]]) -> list[Finding]:
    """Name the pairs, by index, that show one cell under two labels."""
    contrary = sorted({pair for pair in pairs if cells[pair[0]].label != cells[pair[1]].label})
    if not contrary:
        return []
    kinds = Counter(tuple(sorted(cells[index].label for index in pair)) for pair in contrary)
    which = ", ".join(f"{one} and {other} {count:,}" for (one, other), count in kinds.most_common())
    return [
        Finding(
            "label-conflicts",
            f"{counted(len(contrary), 'pair', 'shows', 'show')} one cell under two labels ({which}).",
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
