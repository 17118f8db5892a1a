"""Recognises how labelled cells are laid out, by looking, and lists them without decoding any.

- SIPaKMeD's published archive: `im_X/im_X/CROPPED/NNN_MM.bmp`, or without the outer `im_X`. The whole
  fields (`NNN.bmp`) and contours (`*_cyt*.dat`, `*_nuc*.dat`) beside `CROPPED` are not cells: a loader
  that takes every image counts 5,015 cells where there are 4,049.
- A folder a class, such as Herlev's. The masks `*-d.bmp` beside its cells are not cells: the same
  loader counts 1,834 where there are 917.
- `train`, `val` (or `validation`) and `test` folders, each holding one of the above.
- A CSV or Parquet manifest with the columns `path,label` and, if known, `group` and `split`.
- What was added to `LAYOUTS`.

Whatever lies in none of these ways is refused with the reason: no cell, field or mask is guessed.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

import pandas as pd
from PIL import Image

from cervicyte.datasets.classes import KNOWN_CLASSES, PUBLISHED_CELLS, known_class, proper_names
from cervicyte.datasets.groups import field_number, group_by_name, join_equal_contents
from cervicyte.errors import DatasetError
from cervicyte.images.folders import files_of_folder
from cervicyte.images.reader import IMAGE_SUFFIXES
from cervicyte.pages import agreeing, counted
from cervicyte.provenance import as_utf8

T = TypeVar("T")

PART_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
MANIFEST_SUFFIXES = (".csv", ".parquet")
MANIFEST_COLUMNS = ("path", "label", "group", "split")

CONTOUR = re.compile(r"\d+(_\d+)?_(cyt|nuc)\d*\.dat", re.IGNORECASE)
WHOLE_FIELD = re.compile(r"\d+")
CROP = re.compile(r"\d+_\d+")
HERLEV_MASK = re.compile(r"\d+-\d+-\d+-d", re.IGNORECASE)
SIPAKMED_FIELD_SIZE = (2048, 1536)  # pixels, width and height
SYNTHETIC_MARK = b"Synthetic cell drawn by Cervicyte"
"""Stands near the beginning of every file of `cervicyte synth`, whose names are like SIPaKMeD's."""
MASK_FOLDERS = {"mask", "masks", "segmentation", "segmentations", "contours", "annotations"}

LAYOUTS: dict[str, Callable[[Path], pd.DataFrame | None]] = {}
"""Further layouts by name, asked before those above: each takes a folder and returns what a manifest would
say of it, with the same columns and paths relative to the folder, or None where the folder lies otherwise."""


@dataclass(frozen=True)
class Cell:
    """One labelled crop.

    `name` is the path relative to the data set's root, with `/`; `label` the proper class name;
    `group` what must stay on one side of a split; `field` the photograph it was cut from; `part` is
    "train", "validation" or "test" where the data set has parts of its own, else None.
    """

    path: Path
    name: str
    label: str
    group: str
    field: str
    part: str | None = None


@dataclass(frozen=True)
class CellDataset:
    """The cells of a data set, sorted by name, and sentences that its user should read.

    `layout` says in words how the files lie; `known` is "SIPaKMeD" or "Herlev" if its class and file
    names are those of that data set.
    """

    root: Path
    layout: str
    known: str | None
    cells: tuple[Cell, ...]
    warnings: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names that occur, sorted."""
        return tuple(sorted({cell.label for cell in self.cells}))


@dataclass
class _Listing:
    """What was found before labels and groups are settled: names are relative to `root`."""

    root: Path
    layout: str = "class folders"
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: list[str | None] = field(default_factory=list)
    groups: list[str] | None = None  # of a manifest's own column
    empty: list[str] = field(default_factory=list)
    fields: int = 0
    masks: int = 0
    other_files: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def left_out(self) -> list[str]:
        """Say in sentences which files were not taken for cells."""
        sentences = []
        if self.fields:
            sentences.append(
                f"{counted(self.fields, 'whole field')} beside the crops "
                f"{agreeing(self.fields, 'was', 'were')} left out."
            )
        if self.masks:
            sentences.append(
                f"{counted(self.masks, 'mask')} (`-d`) beside the cells "
                f"{agreeing(self.masks, 'was', 'were')} left out."
            )
        if self.other_files:
            sentences.append(
                f"{counted(len(self.other_files), 'file')} without an image's name "
                f"{agreeing(len(self.other_files), 'was', 'were')} left out, such as "
                f"{self.other_files[0]}."
            )
        if self.empty:
            sentences.append(f"No images lie in {_listed(self.empty)}, so there is no such class.")
        return sentences


def read_dataset(root: Path, known_groups: bool = True) -> CellDataset:
    """List the labelled cells of a folder or manifest. No image is decoded.

    Args:
        root: a folder in one of the layouts above, or a manifest file.
        known_groups: whether SIPaKMeD's fields that show the same place are joined; False is for
            showing what that hides.

    Raises:
        DatasetError: the layout is not recognised, or would count something else as a cell; or a name is not
            UTF-8.
    """
    root = Path(root)
    try:
        if root.is_dir():
            listing = _list_as_added(root) or _list_folders(root)
        elif root.is_file():
            listing = _list_manifest(root)
        else:
            raise DatasetError(f"{root}: there is no such folder or manifest; check the path.")
        return _settled(root, listing, known_groups)
    except OSError as error:
        raise DatasetError(
            f"{error.filename or root}: cannot be read ({error.strerror}); check its permissions."
        ) from error


def read_images_or_dataset(root: Path) -> list[Cell] | list[Path]:
    """Return what there is to be looked at: labelled cells, or images of unknown class.

    Args:
        root: an image file, a folder of images, or a data set.

    Raises:
        DatasetError: it is none of these, or a name is not UTF-8.
    """
    root = Path(root)
    if root.is_file() and _is_image_name(root.name):
        refuse_undecoded_names([root])
        return [root]
    if not root.exists():
        raise DatasetError(f"{root}: there is no such image, folder or manifest; check the path.")
    if root.is_dir() and (added := _list_as_added(root)):
        return list(_settled(root, added, known_groups=True).cells)
    if root.is_dir():
        folders, images, _ = _look_into(root)
        if images and not folders:
            refuse_undecoded_names(images)
            return _without_masks(_Listing(root), root, images)
        if not images and not folders:
            raise DatasetError(
                f"{root}: holds no image and no folder; give an image, a folder of images or a data set."
            )
    return list(read_dataset(root).cells)


def refuse_undecoded_names(paths: Iterable[Path]) -> None:
    """Refuse a name that is not UTF-8, as on an old disk: no table, page or record could hold it.

    Raises:
        DatasetError: there is one; the text shows it with escapes.
    """
    for path in map(str, paths):
        if (shown := as_utf8(path)) != path:
            raise DatasetError(
                f"{shown}: the name is not UTF-8, which no table or page can hold; rename the file or folder."
            )


def evenly_spaced(things: Sequence[T], limit: int) -> list[T]:
    """Return so many of the things, at most, in their order and far apart.

    Example:
        >>> evenly_spaced("abcdefghi", 3)
        ['a', 'd', 'g']
    """
    count = min(limit, len(things))
    return [things[position * len(things) // count] for position in range(count)]


def _settled(root: Path, listing: _Listing, known_groups: bool) -> CellDataset:
    """Give the cells their proper labels and their groups."""
    refuse_undecoded_names(listing.root / name for name in listing.names)
    _refuse_one_cell_in_two_formats(root, listing.names)
    paths = [listing.root / name for name in listing.names]
    synthetic = [_is_synthetic(path) for path in paths]
    labels, known, warnings = _proper_labels(root, listing, synthetic)
    if len(set(labels)) < 2:
        raise DatasetError(
            f"{root}: holds {len(labels):,} cells of {len(set(labels))} class(es), and two classes are the "
            "least that can be told apart; give the folder or manifest that has them all."
        )
    if listing.groups is None:
        known_of_cell = ["synthetic" if drawn else known for drawn in synthetic]
        grouped = group_by_name(listing.names, labels, known_of_cell, known_groups)
        groups, fields = grouped.groups, grouped.fields
        warnings += grouped.warnings
    else:
        groups = fields = listing.groups
    groups, copies = join_equal_contents(paths, groups, labels)
    rows = zip(paths, listing.names, labels, groups, fields, listing.parts, strict=True)
    cells = sorted((Cell(*row) for row in rows), key=lambda cell: cell.name)
    return CellDataset(
        root=listing.root,
        layout=listing.layout,
        known=known,
        cells=tuple(cells),
        warnings=tuple(map(as_utf8, (*listing.warnings, *listing.left_out(), *warnings, *copies))),
    )


def _proper_labels(
    root: Path, listing: _Listing, synthetic: Sequence[bool]
) -> tuple[list[str], str | None, list[str]]:
    """Return each cell's label, the published data set that the cells are of, and warnings."""
    found = sorted(set(listing.labels))
    recognised = proper_names(found)
    if recognised is None:
        warnings = []
        for data_set in KNOWN_CLASSES:
            strange = [name for name in found if known_class(data_set, name) is None]
            if 0 < len(strange) < len(found) / 2:
                warnings.append(
                    f"{_listed(strange)} is not a class of {data_set}, so all classes keep the names of "
                    "their folders or labels."
                )
        return listing.labels, None, warnings

    data_set, proper = recognised
    names_of = defaultdict(list)
    for name, proper_name in proper.items():
        names_of[proper_name].append(name)
    for proper_name, names in names_of.items():
        if len(names) > 1:
            raise DatasetError(f"{root}: {_listed(names)} are all {proper_name}; give the class one name.")
    labels = [proper[label] for label in listing.labels]

    warnings = []
    if any(synthetic):
        warnings.append(
            f"{sum(synthetic):,} of {len(synthetic):,} cells are drawn, not photographed: figures on "
            "them say nothing of real cells."
        )
    real = [
        (name, label)
        for name, label, drawn in zip(listing.names, labels, synthetic, strict=True)
        if not drawn
    ]
    own = sum(field_number(data_set, label, PurePosixPath(name).stem) is not None for name, label in real)
    # Other cells with the same class names are not that data set.
    if own <= len(real) / 2:
        return labels, None, warnings
    return labels, data_set, warnings + _count_warnings(data_set, Counter(label for _, label in real))


def _is_synthetic(path: Path) -> bool:
    with open(path, "rb") as file:
        return SYNTHETIC_MARK in file.read(512)


def _count_warnings(data_set: str, counts: Counter[str]) -> list[str]:
    published = PUBLISHED_CELLS[data_set]
    too_many = [f"{counts[name]:,} of {name}" for name in published if counts[name] > published[name]]
    if too_many:
        return [
            f"There are more cells than {data_set} has ({', '.join(too_many)}): copies, changed copies or "
            "something else may be among them."
        ]
    if counts.total() < sum(published.values()):
        return [
            f"By its names this is a part of {data_set}: {counts.total():,} of "
            f"{sum(published.values()):,} cells, {len(counts)} of {len(published)} classes."
        ]
    return []


# --- folders ---------------------------------------------------------------------------------------


def _list_folders(root: Path) -> _Listing:
    folders, images, others = _look_into(root)
    listing = _Listing(root, other_files=others)
    parts = [folder for folder in folders if folder.name.lower() in PART_OF_FOLDER]
    if parts and len(parts) == len(folders):
        for folder in parts:
            class_folders, beside, others = _look_into(folder)
            listing.other_files += others
            _warn_of_unlabelled(listing, folder, beside)
            _list_class_folders(listing, folder, class_folders, PART_OF_FOLDER[folder.name.lower()])
        listing.layout = f"train, validation and test folders with {listing.layout}"
    elif parts:
        classes = [folder.name for folder in folders if folder not in parts]
        raise DatasetError(
            f"{root}: holds both parts ({_listed(folder.name for folder in parts)}) and other folders "
            f"({_listed(classes)}), so a class cannot be told from a part; move one of the two elsewhere."
        )
    else:
        _list_class_folders(listing, root, folders, None)
        _warn_of_unlabelled(listing, root, images)
    return listing


def _warn_of_unlabelled(listing: _Listing, folder: Path, images: list[Path]) -> None:
    if images:
        listing.warnings.append(
            f"{counted(len(images), 'image')} beside the class folders of {folder} "
            f"{agreeing(len(images), 'has no label and was', 'have no label and were')} left out, such as "
            f"{images[0].name}."
        )


def _list_class_folders(listing: _Listing, parent: Path, folders: list[Path], part: str | None) -> None:
    if len(folders) < 2:
        inside = f"holds only the folder '{folders[0].name}'" if folders else "holds no folders"
        raise DatasetError(
            f"{parent}: {inside}, and a folder for each of two or more classes is needed; give the folder "
            "that holds the class folders, or a manifest with the columns path,label."
        )
    for folder in folders:
        if folder.name.lower() in MASK_FOLDERS:
            raise DatasetError(
                f"{folder}: looks like masks, which would be counted as a class of cells; move it elsewhere, "
                "or give the folder that holds nothing but the class folders."
            )
        cells = _cells_of_class(listing, folder)
        if not cells:
            listing.empty.append(str(folder))
        names = [path.relative_to(listing.root).as_posix() for path in cells]
        listing.names += names
        listing.labels += [folder.name] * len(names)
        listing.parts += [part] * len(names)


def _cells_of_class(listing: _Listing, folder: Path) -> list[Path]:
    """Return the cells in a class folder, in any layout; note on the listing what else lies there."""
    subfolders, images, others = _look_into(folder)
    inner = [subfolder for subfolder in subfolders if subfolder.name.lower() == folder.name.lower()]
    if inner and not images:  # the archive's im_X/im_X
        listing.other_files += others
        _refuse_images_in(listing, [subfolder for subfolder in subfolders if subfolder not in inner])
        subfolders, images, others = _look_into(inner[0])
        folder = inner[0]
    listing.other_files += others

    cropped = [subfolder for subfolder in subfolders if subfolder.name.lower() == "cropped"]
    _refuse_images_in(listing, [subfolder for subfolder in subfolders if subfolder not in cropped])
    if not cropped:
        return _without_masks(listing, folder, _without_fields(folder, images))

    listing.layout = "SIPaKMeD's archive"
    strange = [image for image in images if not WHOLE_FIELD.fullmatch(image.stem)]
    if strange:
        raise DatasetError(
            f"{strange[0]}: lies beside {cropped[0].name}, where the whole fields are, but is not named as "
            f"one ({len(strange):,} such files); move cells into {cropped[0].name} and the rest elsewhere."
        )
    listing.fields += len(images)
    subfolders, images, others = _look_into(cropped[0])
    _refuse_images_in(listing, subfolders)
    listing.other_files += others
    return _without_masks(listing, cropped[0], _without_fields(cropped[0], images))


def _without_fields(folder: Path, images: list[Path]) -> list[Path]:
    """Return the images, or refuse them if whole fields lie among the crops or in their place."""
    fields = [image for image in images if WHOLE_FIELD.fullmatch(image.stem)]
    crops = [image for image in images if CROP.fullmatch(image.stem)]
    if fields and crops:
        raise DatasetError(
            f"{folder}: holds single cells ({crops[0].name}) and what is named as whole fields "
            f"({fields[0].name}; {len(fields):,} such files), which are not cells; move the fields elsewhere."
        )
    if fields and known_class("SIPaKMeD", _class_folder(folder).name) and _is_whole_field(fields[0]):
        raise DatasetError(
            f"{folder}: holds whole fields ({fields[0].name}), not single cells; give the folder whose class "
            "folders hold CROPPED."
        )
    return images


def _class_folder(folder: Path) -> Path:
    return folder.parent if folder.name.lower() == "cropped" else folder


def _is_whole_field(path: Path) -> bool:
    """Tell from contours beside it, or from its size in the header, whether this is a whole field."""
    if (path.parent / f"{path.stem}_cyt01.dat").exists():
        return True
    with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path) as image:
        return image.size == SIPAKMED_FIELD_SIZE
    return False


def _without_masks(listing: _Listing, folder: Path, images: list[Path]) -> list[Path]:
    """Leave out each `X-d` beside its `X`; refuse one of Herlev's masks that lies without its cell."""
    stems = {image.stem for image in images}
    masks = {image for image in images if image.stem[:-2] in stems and image.stem[-2:].lower() == "-d"}
    lone = [image for image in images if image not in masks and HERLEV_MASK.fullmatch(image.stem)]
    if lone:
        raise DatasetError(
            f"{lone[0]}: is named as a mask of the Herlev data set, and its cell does not lie beside it "
            f"({len(lone):,} such files in {folder.name}); put the cells there or move the masks elsewhere."
        )
    listing.masks += len(masks)
    return [image for image in images if image not in masks]


def _refuse_images_in(listing: _Listing, folders: list[Path]) -> None:
    for folder in folders:
        for file in files_of_folder(folder, listing.root):
            if _is_image_name(file.name):
                raise DatasetError(
                    f"{file}: lies deeper than a class folder's images, so what it is "
                    "cannot be told; move the images up or give a manifest with path,label,group."
                )


def _look_into(folder: Path) -> tuple[list[Path], list[Path], list[str]]:
    """Return a folder's subfolders, images and other files, sorted, hidden folders left out.

    Hidden files are other files: a Mac writes a `._001_01.bmp` beside 001_01.bmp that is no image.
    """
    folders, images, others = [], [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                if not entry.name.startswith(".") and entry.name != "__MACOSX":
                    folders.append(Path(entry.path))
            elif _is_image_name(entry.name):
                images.append(Path(entry.path))
            elif not CONTOUR.fullmatch(entry.name):
                others.append(entry.path)
    return folders, images, others


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def _refuse_one_cell_in_two_formats(root: Path, names: Sequence[str]) -> None:
    name_of: dict[str, str] = {}
    for name in names:
        stem = name.rpartition(".")[0].lower()
        if stem in name_of:
            raise DatasetError(
                f"{root}: {name_of[stem]} and {name} seem to be one cell in two formats, which would be "
                "counted twice; keep one of them."
            )
        name_of[stem] = name


# --- manifests -------------------------------------------------------------------------------------


def _list_as_added(root: Path) -> _Listing | None:
    """List a folder in the first added layout that it is in, if it is in one."""
    for name, manifest_of in LAYOUTS.items():
        table = manifest_of(root)
        if table is not None:
            return _list_rows(root, root, _manifest_of(root, table), name)
    return None


def _list_manifest(path: Path) -> _Listing:
    return _list_rows(path, path.parent, _manifest_table(path), "manifest")


def _list_rows(path: Path, folder: Path, table: pd.DataFrame, layout: str) -> _Listing:
    """List the rows of a table in which all is text; `path` is what messages name."""
    strange = [column for column in table.columns if column not in MANIFEST_COLUMNS]
    listing = _Listing(folder, layout=layout)
    if strange:
        listing.warnings.append(f"{path}: the columns {_listed(strange)} are not used.")
    row_of: dict[str, str] = {}
    for row, values in zip(table.index, table.to_dict("records"), strict=True):
        where = f"{path}, row {row}"
        for column in MANIFEST_COLUMNS:
            if column in values and not values[column]:
                raise DatasetError(f"{where}: '{column}' is empty; fill it in or take the row out.")
        name = _manifest_name(where, values["path"])
        place = os.path.realpath(folder / name)
        if place in row_of:
            raise DatasetError(f"{where}: {name} stands already in {row_of[place]}; keep one of them.")
        if not os.path.isfile(place):  # noqa: PTH113
            raise DatasetError(
                f"{where}: there is no file {name}; paths are taken from the manifest's own folder."
            )
        if not _is_image_name(Path(place).name) and not _is_image_name(PurePosixPath(name).name):
            raise DatasetError(f"{where}: {name} has no image's ending; give BMP, PNG, JPEG or TIFF files.")
        part = PART_OF_FOLDER.get(values["split"].lower()) if "split" in values else None
        if "split" in values and part is None:
            raise DatasetError(
                f"{where}: split '{values['split']}' is not one of train, validation, test; correct it."
            )
        row_of[place] = f"row {row}"
        listing.names.append(name)
        listing.labels.append(values["label"])
        listing.parts.append(part)
    _refuse_masks_and_fields_named_in(path, listing.names)
    if "group" in table.columns:
        listing.groups = list(table["group"])
    return listing


def _manifest_table(path: Path) -> pd.DataFrame:
    """Return the manifest that lies in a file."""
    try:
        if path.suffix.lower() == ".csv":
            text = path.read_bytes().decode("utf-8-sig")
            if "\0" in text:  # where some versions of pandas end the field
                raise ValueError("it holds a zero byte")
            # pandas would rename the second of two columns, and nameless ones are a spreadsheet's commas.
            header = next(csv.reader(StringIO(text, newline="")), [])
            _refuse_a_column_twice(path, [name.strip() for name in header if name.strip()])
            table = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False, skip_blank_lines=False)
        elif path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        else:
            raise DatasetError(
                f"{path}: is neither a folder nor a manifest; give a folder of class folders, or a .csv or "
                ".parquet file with the columns path,label."
            )
    except (ValueError, csv.Error, pd.errors.ParserError) as error:  # also UnicodeDecodeError, ArrowInvalid
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{path}: cannot be read as a {path.suffix[1:]} table ({reason}); save it anew as UTF-8."
        ) from error
    # Of rows longer than the header, pandas would take the first values as an index.
    if path.suffix.lower() == ".csv" and not isinstance(table.index, pd.RangeIndex):
        raise DatasetError(f"{path}: its rows have more values than there are columns; make them agree.")
    return _manifest_of(path, table)


def _manifest_of(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table as text, its index the row numbers that a spreadsheet shows."""
    columns = [str(column).strip() for column in table.columns]
    missing = [column for column in ("path", "label") if column not in columns]
    if missing:
        raise DatasetError(
            f"{path}: has no column {_listed(missing)}; a manifest's columns are path,label[,group,split]."
        )
    _refuse_a_column_twice(path, columns)
    rows = [["" if pd.isna(value) else str(value).strip() for value in row] for row in table.to_numpy(object)]
    numbered = [(number, row) for number, row in enumerate(rows, start=2) if any(row)]
    return pd.DataFrame(
        [row for _, row in numbered], columns=columns, index=[number for number, _ in numbered], dtype=object
    )


def _refuse_a_column_twice(path: Path, columns: Sequence[str]) -> None:
    if len(set(columns)) < len(columns):
        raise DatasetError(f"{path}: has a column twice ({_listed(columns)}); keep one of each.")


def _manifest_name(where: str, entry: str) -> str:
    if "\0" in entry:
        raise DatasetError(f"{where}: the path {entry!r} holds a zero byte, as no file's does; correct it.")
    name = entry.replace("\\", "/")
    if name.startswith("/") or PureWindowsPath(entry).is_absolute():
        raise DatasetError(
            f"{where}: the path {entry} is absolute, which holds on one machine only; write it relative to "
            "the manifest's folder."
        )
    return PurePosixPath(name).as_posix()


def _refuse_masks_and_fields_named_in(path: Path, names: Sequence[str]) -> None:
    """Refuse a manifest that was written by taking every image of an archive."""
    stems_in: dict[PurePosixPath, set[str]] = defaultdict(set)
    for name in map(PurePosixPath, names):
        stems_in[name.parent].add(name.stem)
    for folder, stems in stems_in.items():
        masks = [stem for stem in stems if HERLEV_MASK.fullmatch(stem)]
        masks += [stem for stem in stems if stem[-2:].lower() == "-d" and stem[:-2] in stems]
        fields = [stem for stem in stems if WHOLE_FIELD.fullmatch(stem)]
        crops_beside = any(CROP.fullmatch(stem) for stem in stems) or folder / "CROPPED" in stems_in
        if masks:
            raise DatasetError(
                f"{path}: names masks as cells ({folder / min(masks)}; {len(masks):,} such rows in that "
                "folder); take them out."
            )
        if fields and crops_beside:
            raise DatasetError(
                f"{path}: names whole fields as cells ({folder / min(fields)}; {len(fields):,} such rows in "
                "that folder); take them out."
            )


def _listed(names: Iterable[str]) -> str:
    """Return up to five names in quotes, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more
