"""The folder in which the pages' uploads lie until they are read: private, and gone with the server.

A server that ends removes its folder. One that was killed cannot: the next one to start does, and knows the
folder as abandoned by its lock, which the system lets go with the process, however that ended.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a killed server leaves is left to the system's own cleaning
    fcntl = None  # type: ignore[assignment]

PREFIX = "cervicyte-"
LOCK = "lock"


def new_folder_name() -> Path:
    """Return a path for a folder of uploads that nobody can guess; nothing is made."""
    return Path(tempfile.gettempdir()) / f"{PREFIX}{secrets.token_hex(16)}"


@contextlib.contextmanager
def private_folder(folder: Path) -> Iterator[None]:
    """Make a folder that only this user can enter, and remove it at the end with all that lies in it.

    Before, what killed servers of this user left is removed.
    """
    remove_abandoned(folder.parent)
    folder.mkdir(mode=0o700)
    try:
        with open(folder / LOCK, "wb") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove and return the folders of uploads whose servers are no more."""
    if fcntl is None:
        return []
    removed = []
    for folder in parent.glob(f"{PREFIX}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _is_abandoned(folder: Path) -> bool:
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return False  # another user's, or a link that leads elsewhere
        # Without a lock yet, it is one that another server is making just now.
        with open(folder / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
