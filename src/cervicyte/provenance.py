"""Where a result comes from, and how results are written: the same for every artefact.

Holds the words that every artefact carries, hashes, library versions and the commit, and the one way
in which files are written: to a neighbour with the ending `.partial`, then renamed, so that a reader
never meets half a file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cervicyte.errors import RunFolderError, UsageError

RESEARCH_USE_ONLY = "For research use only. Not for diagnostic procedures."

RECORDED_LIBRARIES = (
    "cervicyte",
    "torch",
    "torchvision",
    "accelerate",
    "opencv-python-headless",
    "numpy",
    "pillow",
    "scikit-learn",
    "scipy",
)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the installed version of Python and of each library that can change a result."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@functools.cache
def source_commit() -> str:
    """Return the git commit of this source tree, `…-dirty` if changed, or `release` if installed."""
    here = Path(__file__).resolve().parent
    if not (here.parents[1] / ".git").exists():
        return "release"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(command: str | None = None) -> dict[str, Any]:
    """Return what every artefact records: notice, time (UTC), commit, versions, machine, command."""
    return {
        "notice": RESEARCH_USE_ONLY,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "versions": library_versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": command,
    }


def as_utf8(text: str) -> str:
    """Return text as a file can hold it: what is no UTF-8 in a name becomes an escape such as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a neighbouring path to write to; on success it replaces `path`, on failure it goes.

    Example:
        >>> with written_atomically(Path("metrics.json")) as partial:  # doctest: +SKIP
        ...     partial.write_text("{}")
    """
    path = Path(path)
    if not path.name or path.is_dir():
        raise UsageError(f"{path}: is a folder, and a file is to be written; name a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept last: writers such as matplotlib choose the format by it.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) == partial:
            error.filename, error.filename2 = str(path), None  # which is what the user has named
        raise
    finally:
        partial.unlink(missing_ok=True)


def refuse_to_replace(path: Path, force: bool) -> None:
    """Raise a UsageError where something is there and nobody has said to replace it."""
    if path.exists() and not force:
        raise UsageError(
            f"{path}: is there already; choose another name with --out, or replace it with --force."
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with written_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, shape: Mapping[Any, Any], *, missing: str, damaged: str) -> dict[str, Any]:
    """Read a JSON object that `write_json` left, if it has what is needed of it; it may have more.

    Args:
        path: the file.
        shape: key -> what its value is: a type, the shape of an object, or a list that holds what each of
            its values is, of which there are some; the key `...` stands for every other.
        missing, damaged: what to do then, which ends the sentence.

    Raises:
        RunFolderError: the file is missing, is no JSON, or lacks something; the text names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise RunFolderError(f"{path}: {reason}; {missing}.") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: is damaged; {damaged}.") from error
    if not _fits(content, shape):
        raise RunFolderError(f"{path}: is damaged or of another kind; {damaged}.")
    return dict(content)


def _fits(value: Any, shape: Any) -> bool:
    """Return whether a JSON value has a shape, see `read_json`."""
    if isinstance(shape, list):
        return isinstance(value, list) and value != [] and all(_fits(one, shape[0]) for one in value)
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return False
        inner = dict.fromkeys(value, shape[...]) if ... in shape else {}
        inner |= {key: one for key, one in shape.items() if key is not ...}
        return all(key in value and _fits(value[key], one) for key, one in inner.items())
    return isinstance(value, shape)
