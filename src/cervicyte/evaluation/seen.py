"""Which cells a model has seen in training: they say nothing of new cells, whatever is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cervicyte.datasets.layouts import Cell
from cervicyte.errors import SplitError
from cervicyte.network.description import Described
from cervicyte.provenance import sha256_of_file

NOT_PATIENTS = (
    "Independent groups are not independent patients: the data set names no patients, so figures for "
    "cells of new patients may be lower."
)

GUIDED = "Herlev"
HERLEV_GUIDED = (
    "Herlev's cells, as far as this project has them, guided the choice among recipes and settings of "
    "adaptation: expect less of other cells."
)


def caveats_elsewhere(data_sets: Sequence[str | None]) -> list[str]:
    """Return what is to be said of figures on other laboratories' cells, by the known names of their sets."""
    return [NOT_PATIENTS, *([HERLEV_GUIDED] if GUIDED in data_sets else [])]


def seen_of(model: Described, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that the model saw in training, or that share a known group with one."""
    record = model.metadata.get("seen", {})
    contents, groups = set(record.get("sha256", ())), set(record.get("groups", ()))
    if not contents and not groups:
        return []
    return [cell for cell in cells if cell.group in groups or sha256_of_file(cell.path) in contents]


OTHER_CELLS = "take other cells"
"""The remedy where nothing lets cells through that were seen."""


def remedy_by_split(verb: str) -> str:
    """Return the remedy where a split's test part may be taken, or seen cells be let through by name."""
    return f"{verb} the run's test part with --split RUN/split.csv, or say --allow-seen"


def refuse_seen(
    model: Described, cells: Sequence[Cell], data: Path, allow_seen: bool, remedy: str
) -> list[Cell]:
    """Return the cells that the model saw in training; there are none unless they are allowed by name.

    Args:
        model: says what it has seen.
        cells: of `data`, which the error names.
        allow_seen: let them through; every artefact must then say that they were seen.
        remedy: what to do instead, without a full stop.

    Raises:
        SplitError: cells were seen, and `allow_seen` is not given.
    """
    seen = seen_of(model, cells)
    if seen and not allow_seen:
        raise SplitError(
            f"{data}: {len(seen)} of {len(cells)} cells, first {seen[0].name}, took part in this model's "
            f"training or show the same place as one that did; {remedy}{or_name_them(model, seen)}."
        )
    return seen


def or_name_them(model: Described, seen: Sequence[Cell]) -> str:
    """Return a further remedy where no cell is known by its content: others' may bear SIPaKMeD's names."""
    contents = set(model.metadata.get("seen", {}).get("sha256", ()))
    if not seen or any(sha256_of_file(cell.path) in contents for cell in seen):
        return ""
    return (
        "; or, if cells of your own only bear the names of SIPaKMeD's classes and files, say what belongs "
        "together in a manifest's `group` column"
    )


def note_on_unknown_training(model: Described) -> str | None:
    """Return what is to be said of a model that does not know its training cells; None if it does."""
    if not model.metadata.get("parent", {}).get("knows_its_cells", True):
        return "The model that this one was trained from does not say which cells it was trained on."
    if "seen" in model.metadata:
        return None
    whose = "The original's checkpoint" if model.original else "The model file"
    return f"{whose} does not say which cells it was trained on."
