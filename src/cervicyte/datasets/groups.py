"""Which cells belong together, so that no split puts them on both sides.

A field is one photograph; a group is everything that shows the same place on the glass. Of SIPaKMeD's
966 fields many overlap, so its groups come from a table (`sipakmed_field_groups.md` tells how it was
made). Groups are not patients: neither SIPaKMeD nor Herlev has patient numbers.
"""

from __future__ import annotations

import csv
import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cervicyte.datasets.classes import known_class
from cervicyte.pages import counted
from cervicyte.provenance import sha256_of_file

FIELD_AND_CELL = re.compile(r"(\d+)_\d+")
"""SIPaKMeD's `NNN_MM`: the number of the field within its class, and of the cell."""

SIPAKMED_PREFIX = "sipakmed:"
"""Begins the names of the table's groups, which mean the same in every copy of SIPaKMeD."""

FRAME_AND_CELL = re.compile(r"(\d+)-\d+-\d+")
"""Herlev's names begin with the number of the frame. Of the 161 frames in 467 cells, 25 hold cells of
two or three classes, so frames are counted over all classes together."""


@dataclass(frozen=True)
class Grouped:
    """The group and the field of each image, in the order given, and what the user should know."""

    groups: list[str]
    fields: list[str]
    warnings: list[str]


@functools.cache
def sipakmed_field_groups() -> dict[tuple[str, int], str]:
    """Return the shipped table: (proper class name, field number) to group, `g000` and so on."""
    table = resources.files("cervicyte.datasets").joinpath("sipakmed_field_groups.csv")
    groups = {}
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        cell_class = known_class("SIPaKMeD", row["class"])
        assert cell_class is not None
        groups[cell_class.name, int(row["field"])] = row["group"]
    return groups


def field_number(known: str | None, label: str, stem: str) -> int | None:
    """Return the number of the field (Herlev: frame) that a file name tells, or None.

    Args:
        known: "SIPaKMeD" or "Herlev" if the labels are those of that data set.
        label: the proper class name.
        stem: the file name without its suffix.
    """
    pattern = FRAME_AND_CELL if known == "Herlev" else FIELD_AND_CELL
    match = pattern.fullmatch(stem)
    number = int(match[1]) if match else None
    if known == "SIPaKMeD" and (label, number) not in sipakmed_field_groups():
        return None
    return number


def group_by_name(
    names: Sequence[str], labels: Sequence[str], known: Sequence[str | None], known_groups: bool = True
) -> Grouped:
    """Group images by what their file names tell; an image whose name tells nothing stands alone.

    Args:
        names: paths with `/`.
        labels: their class names.
        known: for each image "SIPaKMeD" or "Herlev" if it is of that data set, "synthetic" if it was drawn
            here, else None.
        known_groups: whether SIPaKMeD's fields that show the same place are joined.
    """
    groups, fields, alone = [], [], []
    for name, label, data_set in zip(names, labels, known, strict=True):
        stem = name.rpartition("/")[2].rpartition(".")[0]
        number = field_number(data_set, label, stem)
        if number is None:
            field = group = f"image:{name}"
            alone.append(name)
        elif data_set == "Herlev":
            field = group = f"frame:{number}"
        else:
            field = group = f"{label}/field:{number:03d}"
            if data_set == "SIPaKMeD" and known_groups:
                group = SIPAKMED_PREFIX + sipakmed_field_groups()[label, number]
        groups.append(group)
        fields.append(field)

    warnings = []
    if alone:
        which = "every image" if len(alone) == len(names) else f"{len(alone):,} of {len(names):,} images"
        warnings.append(
            f"It is not known what belongs together, so {which} (such as {alone[0]}) counts as "
            "independent; if some come from the same field, slide or patient, say so in a manifest's "
            "`group` column."
        )
    if not any(known) and len(alone) < len(names):
        warnings.append(
            "Cells are grouped by the number before the `_` in their file names, within each class; if "
            "it does not number the fields, give a manifest with a `group` column."
        )
    if "SIPaKMeD" in known and not known_groups:
        warnings.append(
            "SIPaKMeD's overlapping fields are not joined: about one test cell in five may stand beside "
            "its twin in the training set."
        )
    return Grouped(groups, fields, warnings)


def join_equal_contents(
    paths: Sequence[Path], groups: Sequence[str], labels: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Join the groups of files with the same bytes, also across classes.

    Returns:
        The group of each file, the first of the joined ones by name standing for all, and warnings.
    """
    members = defaultdict(list)
    for index in _files_of_equal_size(paths):
        members[sha256_of_file(paths[index])].append(index)
    copies = [indices for indices in members.values() if len(indices) > 1]
    if not copies:
        return list(groups), []

    joined_to = {group: group for group in groups}

    def representative(group: str) -> str:
        while joined_to[group] != group:
            group = joined_to[group]
        return group

    for indices in copies:
        found = sorted(
            {representative(groups[index]) for index in indices},
            key=lambda group: (not group.startswith(SIPAKMED_PREFIX), group),
        )
        joined_to.update(dict.fromkeys(found, found[0]))

    twice = sum(len(indices) for indices in copies)
    warnings = [
        f"{twice:,} files have the same content as another (such as {paths[copies[0][0]].name} and "
        f"{paths[copies[0][1]].name}); each such set counts as one group."
    ]
    contradictions = [indices for indices in copies if len({labels[index] for index in indices}) > 1]
    if contradictions:
        first = contradictions[0]
        warnings.append(
            f"{counted(len(contradictions), 'image', 'carries', 'carry')} two labels: "
            f"{' and '.join(f'{paths[index]} ({labels[index]})' for index in first[:2])} are the same file."
        )
    return [representative(group) for group in groups], warnings


def _files_of_equal_size(paths: Sequence[Path]) -> list[int]:
    """Return the indices of files that share their size: only those can be equal and need hashing."""
    by_size = defaultdict(list)
    for index, path in enumerate(paths):
        by_size[path.stat().st_size].append(index)
    return [index for indices in by_size.values() if len(indices) > 1 for index in indices]
