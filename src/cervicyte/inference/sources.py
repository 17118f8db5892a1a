"""Where the images to be classified come from: files, folders, patterns, lists, standard input, zip archives.

Images are named and read one after another, so that a million of them take no more memory than ten.
"""

from __future__ import annotations

import glob
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cervicyte.errors import UsageError
from cervicyte.images.reader import IMAGE_SUFFIXES

LARGEST_FILE = 1 << 30  # bytes; a larger one is not read
LIST_PREFIX = "@"
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Source:
    """One image: its name in the table, and where its bytes lie.

    Attributes:
        name: the path as given or, in an archive, `archive.zip/member`.
        path: of the file or of the archive.
        member: in the archive; None for a file.
    """

    name: str
    path: Path
    member: str | None = None

    def read(self, largest: int = LARGEST_FILE) -> bytes:
        """Return the file's bytes.

        Args:
            largest: bytes; what an archive states of a file's size is not believed.

        Raises:
            OSError: it cannot be read.
            ValueError: it is larger than `largest`, or the archive is damaged.
        """
        if self.member is None:
            if self.path.stat().st_size > largest:
                raise ValueError(f"is larger than {largest >> 20:,} MB")
            return self.path.read_bytes()
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                content = file.read(largest + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
            EOFError,
            KeyError,
        ) as error:
            raise ValueError(f"is damaged or locked inside its archive ({error})") from error
        if len(content) > largest:
            raise ValueError(f"is larger than {largest >> 20:,} MB")
        return content


def sources_of(names: Sequence[str]) -> Iterator[Source]:
    """Yield the images of what a command line names, always in the same order.

    Args:
        names: of each, a file; a folder, with all below it that is called as an image is; a zip archive,
            likewise; a pattern with `*`, `?` or `[`; `@FILE`, a list with a name a line; or `-`, such a list
            on standard input.

    Raises:
        UsageError: nothing lies there; the text names it.
    """
    for name in names:
        if name == STANDARD_INPUT:
            for line in sys.stdin:
                yield from _listed(line)
        elif name.startswith(LIST_PREFIX) and not Path(name).exists():
            try:
                with open(name[1:], encoding="utf-8") as lines:
                    for line in lines:
                        yield from _listed(line)
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{name[1:]}: cannot be read as a list of names, one a line.") from error
        else:
            yield from _named(name)


def _listed(line: str) -> Iterator[Source]:
    """Yield the image of a line. A missing file gets a row with its error, as a list may be long."""
    if name := line.rstrip("\r\n"):
        yield Source(name, Path(name))


def _named(name: str) -> Iterator[Source]:
    path = Path(name)
    if path.is_dir():
        yield from _of_folder(path)
    elif path.is_file():
        yield from _of_file(path)
    elif any(sign in name for sign in "*?["):
        found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  # patterns may be absolute
        if not found:
            raise UsageError(f"{name}: no file fits this pattern; check it.")
        for one in found:
            yield from _named(glob.escape(one) if not Path(one).exists() else one)
    else:
        raise UsageError(f"{name}: no such file or folder; check the path.")


def _of_folder(folder: Path) -> Iterator[Source]:
    found = False
    for root, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith("."):
                found = True
                path = Path(root) / file
                yield Source(path.as_posix(), path)
    if not found:
        raise UsageError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")


def _of_file(path: Path) -> Iterator[Source]:
    if path.suffix.lower() != ".zip":
        yield Source(path.as_posix(), path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(name for name in archive.namelist() if _is_image(name))
    except (zipfile.BadZipFile, OSError) as error:
        raise UsageError(f"{path}: is no zip archive, or damaged; pack it anew.") from error
    if not members:
        raise UsageError(f"{path}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    for member in members:
        yield Source(f"{path.as_posix()}/{member}", path, member)


def _is_image(name: str) -> bool:
    """Return whether an archive's member is called as an image is, and is not a resource fork of a Mac's."""
    parts = Path(name).parts
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and Path(name).suffix.lower() in IMAGE_SUFFIXES
