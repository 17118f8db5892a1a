"""Which cells are explained, and what each is called.

Of a data set only cells that the model has not seen: a map of a cell that it was trained on shows what it
learnt by heart, not how it will look at new ones.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cervicyte.datasets.layouts import Cell, evenly_spaced, read_images_or_dataset
from cervicyte.errors import UsageError
from cervicyte.evaluation.seen import or_name_them, seen_of
from cervicyte.network.description import Described


@dataclass(frozen=True)
class Subject:
    """A cell to be explained: its file, its name, its true class if known, and the end of its file name."""

    path: Path
    name: str
    true_class: str | None
    seen: bool
    stem: str


def choose_cells(
    model: Described, sources: Sequence[Path], limit: int, allow_seen: bool = False
) -> tuple[list[Cell | Path], list[str]]:
    """Return the cells of images, folders and data sets that are to be explained, and notes on the choice.

    Of a data set only cells that the model has not seen are taken: of its own test part where it has one,
    and none that the model file names as seen in training. Images and folders of images are taken as they
    are.

    Args:
        model: says what it has seen.
        sources: image files, folders of images, data sets.
        limit: of each class of a data set, or of each folder of images, so many, evenly spaced by name.
        allow_seen: take cells of a data set whatever the model has seen.

    Raises:
        UsageError: a data set has no unseen cell.
        DatasetError: a source is none of these.
    """
    chosen: dict[Path, Cell | Path] = {}
    notes: list[str] = []
    for source in sources:
        found = read_images_or_dataset(source)
        cells = [cell for cell in found if isinstance(cell, Cell)]
        if cells and not allow_seen:
            cells, note = _unseen(model, cells, source)
            notes += note
        kinds: dict[str | None, list[Cell | Path]] = {}
        for cell in cells:
            kinds.setdefault(cell.label, []).append(cell)
        kinds[None] = [path for path in found if isinstance(path, Path)]
        for things in kinds.values():
            for thing in evenly_spaced(things, limit):
                path = thing.path if isinstance(thing, Cell) else thing
                # The same file by two ways is explained once, with its class if one of them tells it.
                if isinstance(thing, Cell) or path.resolve() not in chosen:
                    chosen[path.resolve()] = thing
    return list(chosen.values()), notes


def _unseen(model: Described, cells: list[Cell], source: Path) -> tuple[list[Cell], list[str]]:
    tested = [cell for cell in cells if cell.part == "test"]
    kept = tested or cells
    seen = seen_of(model, kept)
    names = {cell.name for cell in seen}
    kept = [cell for cell in kept if cell.name not in names]
    left_out = len(cells) - len(kept)
    if not kept:
        raise UsageError(
            f"{source}: the model has seen every cell in training; name other cells, or say --allow-seen"
            f"{or_name_them(model, seen)}."
        )
    if not left_out:
        return kept, []
    return kept, [
        f"{source.name}: {left_out:,} of {len(cells):,} cells took part in training or show the same place "
        f"as one that did, and were left out; --allow-seen takes them{or_name_them(model, seen)}."
    ]


def subjects_of(model: Described, cells: Sequence[Cell | Path]) -> list[Subject]:
    """Give each cell its name, and an end of its file name that no other cell has."""
    if not cells:
        raise UsageError("There is no cell to explain; name at least one image or a folder that holds some.")
    paths = [(cell.path if isinstance(cell, Cell) else cell).absolute() for cell in cells]
    names = _names(paths, [_own_length(cell) for cell in cells])
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice} stands twice among the cells to explain; name each cell once.")
    labels = [cell.label if isinstance(cell, Cell) else None for cell in cells]
    records = [
        cell if isinstance(cell, Cell) else Cell(path, name, "", "", "")
        for cell, path, name in zip(cells, paths, names, strict=True)
    ]
    seen = {cell.path for cell in seen_of(model, records)}
    return [
        Subject(path, name, label, record.path in seen, stem)
        for path, name, label, record, stem in zip(
            paths, names, labels, records, _stems(names, labels), strict=True
        )
    ]


def _own_length(cell: Cell | Path) -> int:
    """Return how many parts of its path name a cell within its data set; an image by itself has one."""
    return len(PurePosixPath(cell.name).parts) if isinstance(cell, Cell) else 1


def _names(paths: Sequence[Path], lengths: list[int]) -> list[str]:
    """Return the last so many parts of each path, and more of them only where two would be the same.

    The folders above are nobody's business who is shown the page.
    """
    parts = [path.parts[1:] for path in paths]  # without the root
    lengths = list(lengths)
    while True:
        names = ["/".join(own[-length:]) for own, length in zip(parts, lengths, strict=True)]
        count = Counter(names)
        longer = [n for n, name in enumerate(names) if count[name] > 1 and lengths[n] < len(parts[n])]
        if not longer:
            return names
        for n in longer:
            lengths[n] += 1


def _stems(names: Sequence[str], labels: Sequence[str | None]) -> list[str]:
    """Return the last part of each file name: the cell's own, with a digest where two would be the same.

    What class an unlabelled cell will stand under is not known yet, so its name must differ from all.
    """
    stems = [safe(PurePosixPath(name).stem) for name in names]
    of_stem = Counter(stem.casefold() for stem in stems)
    of_both = Counter(
        (stem.casefold(), safe(label).casefold()) for stem, label in zip(stems, labels, strict=True) if label
    )
    unlabelled = {stem.casefold() for stem, label in zip(stems, labels, strict=True) if not label}

    def is_alone(stem: str, label: str | None) -> bool:
        key = stem.casefold()
        if label is None or key in unlabelled:
            return of_stem[key] == 1
        return of_both[key, safe(label).casefold()] == 1

    return [
        stem if is_alone(stem, label) else f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for name, stem, label in zip(names, stems, labels, strict=True)
    ]


def safe(text: str) -> str:
    """Return a file name of the text: letters, digits, `-`, `_` and `.`, none of them leading it astray."""
    short = re.sub(r"[^\w.-]+", "_", text).strip("._").encode()[:60].decode(errors="ignore")
    return short.strip("._") or "_"
