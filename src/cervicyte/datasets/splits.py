"""Train, validation and test: made once, written to a file, and checked whenever it is used.

A split is a table with one row a cell: `path` (relative to the data set's root), `sha256` of the file,
`class`, `group` and `part`. The group is always the independent group, whatever the split was made by,
so that a bootstrap can resample it. How the split was made (`by`, `folds`, `fold`, `seed`, `allow_leak`)
stands in `split.attrs` and in a JSON file beside the table, which stays plain CSV for any other reader.
The table alone is enough to use a split again.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from cervicyte.datasets.layouts import Cell, CellDataset
from cervicyte.errors import SplitError, UsageError
from cervicyte.provenance import (
    RESEARCH_USE_ONLY,
    refuse_to_replace,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_text,
)

By = Literal["group", "field", "cell"]
Leak = Literal["field", "cell"]
"""What may stand on both sides of a split: parts of a group whose fields stay whole, or of a field too."""

COLUMNS = ["path", "sha256", "class", "group", "part"]
PARTS = ("train", "validation", "test")
UNKNOWN = "not recorded"  # what `by` says of a split whose JSON file is missing
GIVEN_PARTS = "given parts"  # what `by` says of a data set that has parts of its own
VALIDATION_FOLDS = 8  # validation is one of so many folds of what is not test
HASHING_THREADS = 4


def make_split(
    dataset: CellDataset,
    by: By = "group",
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    allow_leak: Leak | None = None,
) -> pd.DataFrame:
    """Divide a data set into train, validation and test, stratified by class.

    Test is fold `fold` of `folds`, validation about an eighth of the rest, both drawn by scikit-learn's
    StratifiedGroupKFold. Where the data set has parts of its own, they are kept, and validation is
    taken from train if there is none.

    Args:
        dataset: the cells.
        by: what stays whole. "group" is the honest one; "field" and "cell" are there to show what
            leaking gains. Such a split is made, but whoever uses it must name the leak: see `check_split`.
        folds: number of folds; `fold` counts from 0.
        fold: the one that is test.
        seed: of the shuffling.
        allow_leak: recorded as allowed; needed for a data set whose own parts share groups.

    Raises:
        SplitError: a part would lack a class, or the data set's own parts share groups or files.
    """
    if by not in get_args(By):
        raise SplitError(f"A split is made by one of {', '.join(get_args(By))}, not by '{by}'.")
    if folds < 2 or not 0 <= fold < folds:
        raise SplitError(
            f"There is no fold {fold} of {folds}; give two folds or more, and count them from 0."
        )
    if not 0 <= seed < 2**32:
        raise SplitError(f"The seed {seed} is out of range; give one from 0 to {2**32 - 1}.")
    cells = sorted(dataset.cells, key=lambda cell: cell.name)
    labels = np.array([cell.label for cell in cells])
    units = np.array([cell.name if by == "cell" else getattr(cell, by) for cell in cells])
    given = any(cell.part for cell in cells)
    if given:
        parts = np.array([cell.part for cell in cells], dtype=object)
    else:
        parts = np.full(len(cells), "train", dtype=object)
        parts[_test_rows(labels, units, folds, fold, seed)] = "test"
    rest = np.flatnonzero(parts == "train")
    if "validation" not in parts and len(rest):
        parts[rest[_validation_rows(labels[rest], units[rest], seed)]] = "validation"

    split = pd.DataFrame(
        {
            "path": [cell.name for cell in cells],
            "sha256": _hashes([cell.path for cell in cells]),
            "class": labels,
            "group": [cell.group for cell in cells],
            "part": parts,
        },
        columns=COLUMNS,
        dtype=object,
    )
    split.attrs = {
        "by": GIVEN_PARTS if given else by,
        "folds": None if given else folds,
        "fold": None if given else fold,
        "seed": seed,
        "allow_leak": allow_leak,
        "notice": RESEARCH_USE_ONLY,
    }
    _check_classes(split)
    if given or by == "group":
        check_split(split, allow_leak, [cell.field for cell in cells])
    return split


def check_split(
    split: pd.DataFrame, allow_leak: Leak | None = None, fields: Sequence[str] | None = None
) -> None:
    """Hold that nothing stands in two parts but what is named as allowed.

    Args:
        split: see above.
        allow_leak: None: no group and no file content may. "field": groups may, as in a split by field
            number, but no field. "cell": all may, as in a split by cell.
        fields: of each row; without them "field" cannot be told from "cell".

    Raises:
        SplitError: something does; the text names the first case and the leak.
        UsageError: there is no such leak.
    """
    if allow_leak is not None and allow_leak not in get_args(Leak):
        raise UsageError(
            f"--allow-leak {allow_leak}: a leak is named {' or '.join(get_args(Leak))}, after what was kept "
            "whole when the split was made."
        )
    if allow_leak == "cell" or (allow_leak == "field" and fields is None):
        return
    units = split if fields is None else split.assign(field=list(fields))
    columns = {"field": "field"} if allow_leak else {"group": "group", "sha256": "file content"}
    for column, what in columns.items():
        parts = units.groupby(column, sort=True)["part"].nunique()
        torn = parts.index[parts > 1]
        if len(torn):
            rows = units[units[column] == torn[0]].drop_duplicates("part")
            raise SplitError(
                f"The split puts the {what} {torn[0]} into more than one part "
                f"({' and '.join(f'{row.path} in {row.part}' for row in rows.itertuples())}; "
                f"{len(torn):,} such in all), so its test results would be too good; make a split by group, "
                f"or name the leak: --allow-leak {_leak_of(units)}."
            )


def _leak_of(units: pd.DataFrame) -> Leak:
    """Return "field" if every field is whole, so that only what is named a group leaks."""
    if "field" not in units:
        return "cell"
    return "cell" if (units.groupby("field")["part"].nunique() > 1).any() else "field"


def leak_of(split: pd.DataFrame) -> str | None:
    """Say what stands on both sides of a split, as every artefact made with it must; None if nothing."""
    leaking = int((split.groupby("group")["part"].nunique() > 1).sum())
    if not leaking:
        return None
    named = split.attrs.get("allow_leak")
    return (
        f"Leak{f' by {named}, allowed by name' if named else ''}: {leaking:,} groups stand in more than one "
        "part, so cells of the test part have their twins in training, and the figures flatter."
    )


def write_split(split: pd.DataFrame, path: Path) -> None:
    """Write a split as CSV, and beside it, with the ending `.json`, how it was made."""
    write_text(path, split.to_csv(columns=COLUMNS, index=False, lineterminator="\n"))
    about = {**split.attrs, "notice": RESEARCH_USE_ONLY, "hash": split_hash(split)}
    write_json(about_path(path), about)


def about_path(path: Path) -> Path:
    """Return the file beside a split that says how it was made."""
    return path.with_suffix(".json")


def refuse_to_replace_split(path: Path, force: bool = False) -> None:
    """Refuse a name for a split under which something lies already, or beside which it would.

    Args:
        path: of the split.
        force: replace what is there.

    Raises:
        UsageError: something is there, or the name is that of the file beside it.
    """
    if path == about_path(path):
        raise UsageError(f"{path}: a split is a table; name it so with --out, such as split.csv.")
    for file in (path, about_path(path)):
        refuse_to_replace(file, force)


def read_split(path: Path) -> pd.DataFrame:
    """Read a split that `write_split` wrote.

    Raises:
        SplitError: the file is missing or malformed; a leak is for `check_split` to find.
    """
    path = Path(path)
    try:
        table = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SplitError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise SplitError(f"{path}: is not a text file; give a split.csv of Cervicyte.") from error
    try:
        split = pd.read_csv(StringIO(table), dtype=str, keep_default_na=False).astype(object).fillna("")
    except ValueError as error:  # EmptyDataError and ParserError are such
        reason = " ".join(str(error).split())
        raise SplitError(f"{path}: is not a split ({reason}); give a split.csv of Cervicyte.") from error
    # Of rows longer than the header, pandas would take the first values as an index.
    if list(split.columns) != COLUMNS or not isinstance(split.index, pd.RangeIndex):
        raise SplitError(
            f"{path}: its columns are not {', '.join(COLUMNS)}; give a split.csv as Cervicyte wrote it."
        )
    if split.empty:
        raise SplitError(f"{path}: holds no cell; give a split.csv as Cervicyte wrote it.")
    for problem, wrong in (
        ("an empty value", (split == "").any(axis=1)),
        ("a part other than train, validation and test", ~split["part"].isin(PARTS)),
        ("a sha256 that is not 64 hexadecimal digits", ~split["sha256"].str.fullmatch("[0-9a-f]{64}")),
        ("a path that stands there twice", split["path"].duplicated()),
    ):
        if wrong.any():
            row = int(np.argmax(wrong)) + 2  # after the header, counted from 1
            raise SplitError(f"{path}, line {row}: has {problem}; give a split.csv as Cervicyte wrote it.")
    split.attrs.update(_read_attrs(about_path(path), split_hash(split)))
    return split


def _read_attrs(path: Path, digest: str) -> dict[str, Any]:
    """Return how a split was made, if the file beside it is there and speaks of this very split."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict) or about.get("hash") != digest:
        return {"by": UNKNOWN, "allow_leak": None}
    about["allow_leak"] = about.get("allow_leak") or None  # before leaks had names, False
    return {key: value for key, value in about.items() if key != "hash"}


def split_hash(split: pd.DataFrame) -> str:
    """Return the SHA-256 over the sorted (path, sha256, class, part) rows: 64 hexadecimal digits."""
    rows = split[["path", "sha256", "class", "part"]].to_numpy(str).tolist()
    return sha256_of_json(sorted(rows))


def cells_of(split: pd.DataFrame, dataset: CellDataset, part: str) -> list[Cell]:
    """Return the cells of one part ("train", "validation", "test") in the split's order.

    Raises:
        SplitError: the data set lacks a file of the part or labels it otherwise, or a group stands in
            two parts, by the split's groups or by the data set's, and `split.attrs["allow_leak"]` does
            not name that leak; see `check_split`.
    """
    if part not in PARTS:
        raise SplitError(f"'{part}' is no part of a split; the parts are {', '.join(PARTS)}.")
    allow_leak = split.attrs.get("allow_leak")
    cell_of = {cell.name: cell for cell in dataset.cells}
    known = [cell_of.get(name) for name in split["path"]]
    fields = [cell.field if cell else name for cell, name in zip(known, split["path"], strict=True)]
    check_split(split, allow_leak, fields)
    # The data set may know of groups that the split, made elsewhere, did not know of.
    groups = [cell.group if cell else name for cell, name in zip(known, split["path"], strict=True)]
    check_split(split.assign(group=groups), allow_leak, fields)
    return _cells_of_rows(split[split["part"] == part], dataset)


def verify_contents(split: pd.DataFrame, dataset: CellDataset) -> None:
    """Hold that every file still has the content that the split recorded.

    Raises:
        SplitError: a file is missing, has another label, or was changed.
    """
    paths = [cell.path for cell in _cells_of_rows(split, dataset)]
    found = _hashes(paths)
    changed = [path for path, was, now in zip(paths, split["sha256"], found, strict=True) if was != now]
    if changed:
        raise SplitError(
            f"{changed[0]}: its content is not what the split recorded ({len(changed):,} such files); "
            "give the data that the split was made for, or make a new split."
        )


def _cells_of_rows(rows: pd.DataFrame, dataset: CellDataset) -> list[Cell]:
    cell_of = {cell.name: cell for cell in dataset.cells}
    cells = []
    for name, label in zip(rows["path"], rows["class"], strict=True):
        if name not in cell_of:
            raise SplitError(
                f"{dataset.root / name}: stands in the split but not in the data set; give the data that the "
                "split was made for."
            )
        cell = cell_of[name]
        if cell.label != label:
            raise SplitError(
                f"{cell.path}: is {label} in the split but {cell.label} in the data set; make a new split."
            )
        cells.append(cell)
    return cells


def _test_rows(labels: np.ndarray, units: np.ndarray, folds: int, fold: int, seed: int) -> np.ndarray:
    rarest, count = _rarest(labels, units)
    if count < len(PARTS):
        raise SplitError(
            f"Class {rarest} has only {count} independent group(s), and training, validation and test need "
            "one each; add cells of other fields to it, or leave it out."
        )
    if count < folds:
        raise SplitError(
            f"Class {rarest} has only {count} independent groups, too few for {folds} folds; take {count} "
            "folds or fewer."
        )
    return list(_stratified_folds(labels, units, folds, seed))[fold]


def _validation_rows(labels: np.ndarray, units: np.ndarray, seed: int) -> np.ndarray:
    """Of eight folds, or fewer where a class has fewer groups, return the one with the evenest classes."""
    rarest, count = _rarest(labels, units)
    names, sizes = np.unique(labels, return_counts=True)

    def unevenness(held: np.ndarray) -> float:
        shares = np.array([np.sum(labels[held] == name) for name in names]) / sizes
        return float(np.ptp(shares)) if shares.min() > 0 and shares.max() < 1 else np.inf

    for folds in range(min(VALIDATION_FOLDS, count), 1, -1):
        held = min(_stratified_folds(labels, units, folds, seed), key=unevenness)
        if unevenness(held) < np.inf:
            return held
    raise SplitError(
        f"Class {rarest} has too few independent groups ({count} beside the test part) to be in training "
        "and validation; add cells or take another fold or seed."
    )


def _stratified_folds(labels: np.ndarray, units: np.ndarray, folds: int, seed: int) -> Iterator[np.ndarray]:
    # Imported here: reading a split needs no scikit-learn, whose import takes a second.
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of small classes
        for _, held in splitter.split(labels, labels, units):
            yield held


def _rarest(labels: np.ndarray, units: np.ndarray) -> tuple[str, int]:
    """Return the class with the fewest groups, and how many it has."""
    counts = {label: len(set(units[labels == label])) for label in sorted(set(labels))}
    fewest = min(counts, key=counts.__getitem__)
    return fewest, counts[fewest]


def _check_classes(split: pd.DataFrame) -> None:
    classes: set[str] = set(split["class"])
    for part in PARTS:
        missing = sorted(classes - set(split.loc[split["part"] == part, "class"]))
        if missing:
            remedy = (
                "complete the data set's own parts, or give its cells without parts to have them divided here"
                if split.attrs["by"] == GIVEN_PARTS
                else "take another fold or seed, or fewer folds, or add cells"
            )
            raise SplitError(f"The {part} part would have no cell of {', '.join(missing)}; {remedy}.")


def _hashes(paths: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor(min(HASHING_THREADS, os.cpu_count() or 1)) as threads:
        try:
            return list(threads.map(sha256_of_file, paths))
        except OSError as error:
            raise SplitError(
                f"{error.filename}: cannot be read ({error.strerror}); give the data set as it was."
            ) from error
