"""Files that have a URI instead of a path: in an object store, on HDFS, or wherever fsspec leads.

pyarrow opens `s3://`, `gs://`, `abfs://`, `hdfs://` and `file://` by itself, with the keys that it finds in
the environment; for anything else fsspec is asked. Nothing is asked of a network but what a user's own URI
names.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
from pyarrow import fs

from cervicyte.images.folders import files_of_folder

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # of two letters or more: one is a drive of Windows


def is_uri(name: str) -> bool:
    """Return whether a name is a URI and no path."""
    return SCHEME.match(name) is not None


def open_file(location: str) -> BinaryIO:
    """Open a file for reading, by its path or URI; it can be sought in.

    Raises:
        OSError: it cannot be opened, or nothing here knows such URIs.
    """
    if not is_uri(location):
        return open(location, "rb")
    system, path = _place(location)
    try:
        with _only_os_errors(location):
            return cast(BinaryIO, system.open_input_file(path))
    except FileNotFoundError as error:  # whose own text is another in every store
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location) from error


def size_of(location: str) -> int:
    """Return the size of a file in bytes, by its path or URI.

    Raises:
        OSError: it cannot be asked for, or nothing here knows such URIs.
        ValueError: there is something that never ends, such as a device, or that waits for a writer.
    """
    if not is_uri(location):
        about = os.stat(location)  # noqa: PTH116  # a location is no Path
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise ValueError("is a device or a pipe, no file")
        return about.st_size
    with open_file(location) as file:
        return file.seek(0, os.SEEK_END)


def is_folder(uri: str) -> bool:
    """Return whether a URI leads to a folder; False if to a file.

    Raises:
        OSError: nothing lies there, it cannot be asked for, or nothing here knows such URIs.
    """
    system, path = _place(uri)
    with _only_os_errors(uri):
        kind = system.get_file_info(path).type
    if kind == fs.FileType.NotFound:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri)
    return bool(kind == fs.FileType.Directory)


def files_below(folder: str) -> Iterator[str]:
    """Yield the URIs of all files below a folder, always in the same order: its own, then its folders'.

    A folder at a time is held in memory. Of this machine's, links are followed, see `files_of_folder`.

    Raises:
        OSError: a folder cannot be listed.
    """
    folder = folder.rstrip("/")
    system, path = _place(folder)
    if isinstance(system, fs.LocalFileSystem):
        for file in files_of_folder(Path(path)):
            yield f"{folder}/{file.relative_to(path).as_posix()}"
        return
    with _only_os_errors(folder):
        found = sorted((one.base_name, one.type) for one in system.get_file_info(fs.FileSelector(path)))
    for name, kind in found:
        if kind == fs.FileType.File and name:
            yield f"{folder}/{name}"
    for name, kind in found:
        if kind == fs.FileType.Directory and name:
            yield from files_below(f"{folder}/{name}")


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line; its name, if it says nothing."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__


@contextlib.contextmanager
def _only_os_errors(uri: str) -> Iterator[None]:
    """Turn the errors that a store's own package has classes of its own for into OSErrors."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, reason_of(error), uri) from error


def _place(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system that a URI names, and the path there."""
    scheme, _, rest = uri.partition("://")
    host, _, path = rest.partition("/")
    system, root = _file_system(f"{scheme}://{host}/")
    return system, f"{root.rstrip('/')}/{path}".rstrip("/") or "/"


@functools.cache
def _file_system(root: str) -> tuple[fs.FileSystem, str]:
    """Return what opens the files below a URI, and the URI as a path there; asked for once."""
    try:
        try:
            return fs.FileSystem.from_uri(root)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # a scheme that pyarrow does not know
            import fsspec

            system, path = fsspec.core.url_to_fs(root)
            return fs.PyFileSystem(fs.FSSpecHandler(system)), path
    except OSError:
        raise
    except Exception as error:  # no such scheme or package, or one that finds no keys
        raise OSError(errno.EINVAL, f"nothing here opens {root}: {reason_of(error)}", root) from error
