"""What comes in at the dashboard's door: image files and zip archives, bounded, and gone from the disk."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cervicyte.dashboard.limits import MAX_UPLOAD_MB
from cervicyte.dashboard.uploads import PLACE
from cervicyte.errors import CervicyteError
from cervicyte.images.reader import sniff_format
from cervicyte.inference.sources import Source, sources_of

MAX_CELLS = 500
"""Images in one worklist."""
MAX_WORKLIST_MB = 200
"""Bytes of the files in one worklist, which lie in the memory of the server."""


@dataclass(frozen=True)
class Arrived:
    """One file: its name without folders, and its bytes or the sentence that says why there are none."""

    name: str
    content: bytes = b""
    error: str = ""


def arrivals(uploads: Iterable[Path], room: int = MAX_CELLS) -> Iterator[Arrived]:
    """Yield the images of uploads one after another; each upload is deleted once it is read.

    Args:
        uploads: image files, or zip archives of them.
        room: images that may still come in; the first one too many is answered by a sentence, and the rest
            is left.
    """
    uploads = list(uploads)
    try:
        sources = itertools.chain.from_iterable(map(_sources_of, uploads))
        for number, one in enumerate(sources):
            if number >= room:
                yield Arrived(
                    "Further images",
                    error=f"Further images were left out: a list holds {MAX_CELLS}; clear it, then go on.",
                )
                return
            yield one
    finally:
        for upload in uploads:
            upload.unlink(missing_ok=True)
            if PLACE.fullmatch(upload.parent.name):
                with contextlib.suppress(OSError):
                    upload.parent.rmdir()


def _sources_of(upload: Path) -> Iterator[Arrived]:
    """Yield the images in an upload; an archive is told by its first bytes, not by its name."""
    try:
        archived = sniff_format(upload) == "ZIP"
        if not archived:
            yield Arrived(upload.name, upload.read_bytes())
            return
        named_so = upload if upload.suffix.lower() == ".zip" else upload.rename(upload.with_suffix(".zip"))
        try:
            # None is held longer than it is read: the archive is closed before it is deleted.
            yield from map(_member, sources_of([str(named_so)]))
        finally:
            named_so.unlink(missing_ok=True)
    except (CervicyteError, OSError, ValueError) as error:
        # Where the server puts uploads is nobody's business.
        said = str(error).replace(f"{upload.parent}/", "")
        yield Arrived(upload.name, error=said)


def _member(source: Source) -> Arrived:
    name = Path(source.member or source.name).name
    try:
        return Arrived(name, source.read(MAX_UPLOAD_MB << 20))
    except (OSError, ValueError) as error:
        return Arrived(name, error=f"{name}: {error}; pack it anew.")
