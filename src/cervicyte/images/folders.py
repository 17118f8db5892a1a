"""Which files lie in a folder, with all below it, links to other folders among them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_of_folder(folder: Path, within: Path | None = None, hidden: bool = True) -> Iterator[Path]:
    """Yield the files below a folder, always in the same order: its own by name, then its folders'.

    Links to folders are followed, but no folder is gone through twice, so that a link in a circle ends and no
    file is named twice: one to a folder within the tree is left to its own place there, and of several to a
    folder elsewhere the first counts, those in a folder before those in its subfolders.

    Args:
        folder: where to begin; may be a link.
        within: the tree to which it belongs; None is `folder` itself.
        hidden: go through folders, too, that begin with a dot, or that a Mac's archives bring.

    Raises:
        OSError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:  # which os.walk would pass over, with all below
        raise error

    tree = folder if within is None else within
    root, elsewhere = Path(os.path.realpath(tree)), set[Path]()

    def is_new(path: Path) -> bool:
        real = Path(os.path.realpath(path))
        if real == root / path.relative_to(tree):  # no link leads there
            return True
        if real.is_relative_to(root) or real in elsewhere:
            return False
        elsewhere.add(real)
        return True

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        parent = Path(place)
        folders[:] = [name for name in sorted(folders) if (hidden or not _is_hidden(name))]
        folders[:] = [name for name in folders if is_new(parent / name)]
        yield from (parent / name for name in sorted(files))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
