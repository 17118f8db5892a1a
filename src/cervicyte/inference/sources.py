"""Where the images to be classified come from: files, folders, patterns, lists, standard input, zip archives.

Each of them may lie on this machine or, by its URI, in an object store. Images are named and read one after
another, so that a million of them take no more memory than ten.
"""

from __future__ import annotations

import functools
import glob
import io
import os
import re
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from cervicyte.errors import UsageError
from cervicyte.images.folders import files_of_folder
from cervicyte.images.reader import IMAGE_SUFFIXES
from cervicyte.inference.object_store import files_below, is_folder, is_uri, open_file, reason_of, size_of
from cervicyte.provenance import as_utf8

LARGEST_FILE = 1 << 30  # bytes; a larger one is not read
LIST_PREFIX = "@"
STANDARD_INPUT = "-"
PARQUET = ".parquet"
ZIP = ".zip"
PATH_COLUMN = "path"  # of a list in Parquet, as in the tables that `predict` writes


class Archive:
    """A zip archive that is opened with its first image and stays open for the next ones.

    To open one is to read the names of all that it holds: once an image would take hours of a large one. Any
    number of threads may read; the file is closed when nobody holds the archive any more.
    """

    def __init__(self, location: str) -> None:
        """Take a path or URI; nothing is opened yet."""
        self._location, self._lock = location, threading.Lock()
        self._opened: zipfile.ZipFile | None = None

    def read(self, member: str, largest: int) -> bytes:
        """Return at most `largest` bytes of a member.

        Raises:
            OSError: the archive cannot be read.
            ValueError: it is damaged or locked.
        """
        try:
            with self._lock:
                if self._opened is None:
                    self._opened = zipfile.ZipFile(open_file(self._location))
            with self._opened.open(member) as file:
                return file.read(largest)
        except OSError:
            raise
        except Exception as error:  # every way to compress has its own, with no common base
            raise ValueError(f"is damaged or locked inside its archive ({reason_of(error)})") from error


@dataclass(frozen=True)
class Source:
    """One image: its name in the table, and where its bytes lie.

    Attributes:
        name: the path or URI as given or, in an archive, `archive.zip/member`; see `shown`.
        location: path or URI of the file or of the archive.
        member: in the archive; None for a file, empty for an archive that cannot be opened.
        archive: that at `location`, where several images share it.
    """

    name: str
    location: str
    member: str | None = None
    archive: Archive | None = field(default=None, compare=False, repr=False)

    def read(self, largest: int = LARGEST_FILE) -> bytes:
        """Return the file's bytes.

        Args:
            largest: bytes; what an archive states of a file's size is not believed.

        Raises:
            OSError: it cannot be read.
            ValueError: it is larger than `largest`, the archive is damaged, or the store's own package fails.
        """
        if self.member is None:
            try:
                if size_of(self.location) > largest:
                    raise ValueError(f"is larger than {largest >> 20:,} MB")
                with open_file(self.location) as file:
                    return file.read()
            except OSError:
                raise
            except Exception as error:  # a store's package may have classes of its own
                raise ValueError(reason_of(error)) from error
        content = (self.archive or Archive(self.location)).read(self.member, largest + 1)
        if len(content) > largest:
            raise ValueError(f"is larger than {largest >> 20:,} MB")
        return content


def shown(name: str) -> str:
    """Return a name as a line of a table can hold it.

    A name on a disk may have any bytes: what is no UTF-8, and what would end a line, becomes an escape
    such as `\\udcff` or `\\n`.
    """
    escaped = re.sub(r"[\x00-\x1f\x7f]", lambda sign: sign[0].encode("unicode_escape").decode(), name)
    return as_utf8(escaped)


def sources_of(names: Sequence[str]) -> Iterator[Source]:
    """Yield the images of what a command line names, always in the same order.

    Args:
        names: of each, a file; a folder, with all below it that is called as an image is; a zip archive,
            likewise; a pattern with `*`, `?` or `[`; `@FILE`, a list with a name a line, or in Parquet with
            the names in the column `path`; or `-`, a list on standard input. File, folder, archive and list
            may be a URI, such as `s3://bucket/cells`.

    Raises:
        UsageError: nothing lies there; the text names it.
    """
    for name in names:
        if name == STANDARD_INPUT:
            try:
                yield from _listed(sys.stdin)
            except UnicodeDecodeError as error:
                raise UsageError("Standard input is no list of names in UTF-8, one a line.") from error
        elif name.startswith(LIST_PREFIX) and not Path(name).exists():
            yield from _of_list(name[1:])
        elif is_uri(name):
            yield from _of_uri(name)
        else:
            yield from _named(name)


def drawn_sources(names: Sequence[str], most: int, seed: int = 0) -> tuple[list[Source], int]:
    """Return at most so many images of what `sources_of` finds, in its order, and how many that are.

    Of more, as many are drawn at random: the first by name may all be of one class, or of one slide.
    """
    sources = list(sources_of(names))
    found = len(sources)
    if found > most:
        drawn = np.random.default_rng(seed).choice(found, most, replace=False)
        sources = [sources[place] for place in sorted(drawn)]
    return sources, found


def _of_list(location: str) -> Iterator[Source]:
    try:
        with open_file(location) as file:
            if location.lower().endswith(PARQUET):
                yield from _listed(_column(pa.parquet.ParquetFile(file)))
            else:
                # Windows begins such files with a mark that is no part of the first name.
                yield from _listed(io.TextIOWrapper(file, encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{location}: cannot be read as a list of names, one a line.") from error
    except (pa.ArrowException, KeyError) as error:
        raise UsageError(
            f"{location}: cannot be read as a list in Parquet with the names in a column `{PATH_COLUMN}`."
        ) from error


def _column(table: pa.parquet.ParquetFile) -> Iterator[str]:
    for batch in table.iter_batches(columns=[PATH_COLUMN]):
        for name in batch.column(PATH_COLUMN).cast(pa.string()).to_pylist():
            yield name or ""


def _listed(lines: Iterable[str]) -> Iterator[Source]:
    """Yield the images of lines. A missing file gets a row with its error, as a list may be long."""
    archive, of_archive = None, ""
    for line in lines:
        name = line.rstrip("\r\n")
        location, member = _split(name)
        if member is None:
            if name:
                yield Source(shown(name), name)
            continue
        if archive is None or location != of_archive:
            archive, of_archive = Archive(location), location
        yield Source(shown(name), location, member, archive)


def _split(name: str) -> tuple[str, str | None]:
    """Return the archive and the member of a name as a table has it; no member, if it is of a file."""
    for end in re.finditer(rf"{re.escape(ZIP)}(?=/)", name, re.IGNORECASE):
        if not os.path.isdir(name[: end.end()]):  # noqa: PTH112  # of a name that is too long it says no
            return name[: end.end()], name[end.end() + 1 :]
    return name, None


def _named(name: str) -> Iterator[Source]:
    if not name:  # such as a variable of the shell that is not set; Path takes it for this folder
        raise UsageError("An empty name is no image; name a file or a folder, `.` for this one.")
    path = Path(name)
    if path.is_dir():
        yield from _one_at_least(_of_folder(path), str(path))
    elif path.is_file():
        yield from _one_at_least(_of_file(path.as_posix()), path.as_posix())
    elif any(sign in name for sign in "*?["):
        yield from _one_at_least(_of_pattern(name), name)
    else:
        raise UsageError(f"{name}: no such file or folder; check the path.")


def _one_at_least(sources: Iterator[Source], name: str) -> Iterator[Source]:
    """Yield images; refuse the name that leads to none."""
    first = next(sources, None)
    if first is None:
        raise UsageError(f"{name}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    yield first
    yield from sources


def _of_pattern(pattern: str) -> Iterator[Source]:
    """Yield the images of what fits a pattern, each once: `**` fits a folder and all that lies in it.

    The paths that fit are held in memory, not those below a folder that fits.
    """
    found = sorted(set(glob.glob(pattern, recursive=True)))  # noqa: PTH207  # patterns may be absolute
    if not found:
        raise UsageError(f"{pattern}: no file fits this pattern; check it.")
    # By os.path, as Path raises an error where it must not look.
    is_dir, is_file, join = os.path.isdir, os.path.isfile, os.path.join
    real = functools.cache(os.path.realpath)
    folders, taken = {real(one) for one in found if is_dir(one)}, set[str]()
    for one in found:
        path = Path(one)
        location = path.as_posix()
        place = real(one) if is_dir(one) else join(real(str(path.parent)), path.name)
        comes_with_a_folder = not folders.isdisjoint(map(str, Path(place).parents))
        if comes_with_a_folder and location.lower().endswith(ZIP) and is_file(one):
            comes_with_a_folder = False  # which is gone through for images alone
        if comes_with_a_folder or place in taken:
            continue
        taken.add(place)
        if is_dir(one):
            yield from _of_folder(path)
        elif is_file(one):
            yield from _of_file(location)
        else:  # a link that leads nowhere, or a device
            yield Source(shown(location), location)  # a row, which says why


def _of_uri(uri: str) -> Iterator[Source]:
    try:
        yield from _one_at_least(_below(uri) if is_folder(uri) else _of_file(uri), uri)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{uri}: cannot be read ({reason_of(error)}); check the URI, and the keys to it."
        ) from error


def _below(uri: str) -> Iterator[Source]:
    for one in files_below(uri):
        if _is_called_so(PurePath(one).name):
            yield Source(shown(one), one)


def _of_folder(folder: Path) -> Iterator[Source]:
    try:
        for file in files_of_folder(folder):
            if _is_called_so(file.name):
                yield Source(shown(file.as_posix()), file.as_posix())
    except OSError as error:
        raise UsageError(
            f"{error.filename}: cannot be listed ({error.strerror}); check its permissions."
        ) from error


def _of_file(location: str) -> Iterator[Source]:
    if not location.lower().endswith(ZIP):
        yield Source(shown(location), location)
        return
    try:
        with open_file(location) as file, zipfile.ZipFile(file) as archive:
            members = sorted(name for name in archive.namelist() if _is_image(name))
    except Exception:  # of damaged names and sizes, of versions, of a store: no common base
        yield Source(shown(location), location, "", Archive(location))  # a row, which says why
        return
    shared = Archive(location)
    for member in members:
        yield Source(shown(f"{location}/{member}"), location, member, shared)


def _is_image(name: str) -> bool:
    """Return whether an archive's member is called as an image is, and is not a resource fork of a Mac's."""
    *folders, file = PurePath(name).parts or ("",)  # `./`, as some programs begin an archive
    hidden = any(folder.startswith((".", "__MACOSX")) for folder in folders)
    return not hidden and _is_called_so(file)


def _is_called_so(file: str) -> bool:
    """Return whether a file is called as an image is; one that begins with a dot is hidden."""
    return PurePath(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith(".")
