"""The folder in which the pages' uploads lie until they are read: private, bounded, and gone with the server.

A server that ends removes its folder. One that was killed cannot: the next one to start does, and knows the
folder as abandoned by its lock, which the system lets go with the process, however that ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cervicyte.dashboard.access import path_of
from cervicyte.dashboard.limits import MAX_LYING_MB, MAX_UPLOADS_MB, MAX_UPLOADS_TOGETHER_MB
from cervicyte.dashboard.problems import ProblemError, busy

try:
    import fcntl
except ImportError:  # Windows: what a killed server leaves is left to the system's own cleaning
    fcntl = None  # type: ignore[assignment]

PREFIX = "cervicyte-"
LOCK = "lock"
PLACE = re.compile(r"[0-9a-f]{64}")  # how the folder of one upload is called, which Gradio makes
ROUTES = ("/gradio_api/upload", "/upload")
# Gradio knows by the middle of it that this is a matter of size (status 413).
TOO_LARGE = f"The files together exceed the maximum allowed size of {MAX_UPLOADS_MB} MB; send fewer at once."
ENDED_EARLY = "The upload ended early; send it again."


class BoundedUploads:
    """Bounds the bytes of a page's upload by what it says of itself, and while they come in.

    Gradio bounds each file alone. Of an upload that ends early, too, nothing is left on the disk.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        """Wrap an application; in the folder uploads lie until they are read."""
        self.app, self.folder = app, folder
        self.bytes = 0  # of all uploads that are on their way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or path_of(scope) not in ROUTES:
            await self.app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "")
        size = int(stated) if stated.isdigit() else 0
        if size > MAX_UPLOADS_MB << 20:
            await ProblemError(413, TOO_LARGE).response()(scope, receive, send)
            return
        lying = await asyncio.to_thread(self._bytes_lying)
        if self.bytes + size > MAX_UPLOADS_TOGETHER_MB << 20 or lying + size > MAX_LYING_MB << 20:
            await busy().response()(scope, receive, send)
            return
        received, is_whole = 0, False

        async def counted() -> Message:
            nonlocal received, is_whole
            message = await receive()
            count = len(message.get("body", b""))
            received += count
            self.bytes += count
            # Gradio's parser removes the files that it has begun, as long as it is an error of this kind.
            if message["type"] == "http.disconnect" and not is_whole:
                raise MultiPartException(ENDED_EARLY)
            is_whole = not message.get("more_body", False)
            if received > MAX_UPLOADS_MB << 20 or self.bytes > MAX_UPLOADS_TOGETHER_MB << 20:
                raise MultiPartException(TOO_LARGE)
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.bytes -= received

    def _bytes_lying(self) -> int:
        found = 0
        for file in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):  # it was read just now
                found += file.stat().st_size
        return found


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
