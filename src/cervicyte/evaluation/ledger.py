"""The test-use ledger: every opening of a test part is written down beside its split.

A test part that is looked at again and again is no test any more: of many models, the one that suits it
by chance is kept. The ledger does not hinder that; it lets every report say how often it happened.
`split.csv` has its ledger in `split.openings.jsonl`: one JSON object a line, only ever added to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cervicyte.errors import SplitError
from cervicyte.provenance import RESEARCH_USE_ONLY

UNREADABLE = "not readable"  # the model of a line that is damaged


def ledger_path(split_path: Path) -> Path:
    """Return where the openings of a split's test part are recorded."""
    return split_path.with_name(f"{split_path.stem}.openings.jsonl")


def record_opening(
    split_path: Path, split_hash: str, *, model: str, part: str = "test", command: str | None = None
) -> str:
    """Add one line to the ledger beside a split, just before the part is predicted.

    Args:
        split_path: the split's CSV file; it need not be there yet.
        split_hash: see `datasets.splits.split_hash`.
        model: hash of the weights that answer, or the name of what has none.
        part: which part is opened.
        command: the command line.

    Returns:
        How often it has been opened now, see `times_opened`.

    Raises:
        SplitError: the line cannot be written; nothing may be opened unrecorded.
    """
    path = ledger_path(split_path)
    opening = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "split_hash": split_hash,
        "part": part,
        "model": model,
        "command": command,
        "notice": RESEARCH_USE_ONLY,
    }
    line = json.dumps(opening, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = "\n" + line  # after a line that was cut off
            file.write(line.encode())  # one write in append mode: two processes do not mix their lines
            os.fsync(file.fileno())
    except OSError as error:
        raise SplitError(
            f"{path}: the opening of the test part cannot be recorded ({error.strerror}); copy the split to "
            "a folder that can be written to."
        ) from error
    return times_opened(openings(split_path, split_hash))


def openings(split_path: Path, split_hash: str) -> list[dict[str, Any]]:
    """Return the recorded openings of this very split, oldest first; none if there is no ledger.

    A damaged line counts, as an opening by a model that is not readable: what was opened stays opened.

    Raises:
        SplitError: the ledger cannot be read.
    """
    path = ledger_path(split_path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SplitError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    recorded = [_opening(line) for line in lines if line.strip()]
    return [opening for opening in recorded if opening.get("split_hash", split_hash) == split_hash]


def times_opened(recorded: Sequence[dict[str, Any]]) -> str:
    """Say how often, and by how many models: "3 openings by 2 models".

    The same model on the same split again, as when an evaluation is resumed, is an opening by no
    further model.
    """
    models = len({(opening.get("split_hash"), opening.get("model", UNREADABLE)) for opening in recorded})
    return f"{_counted(len(recorded), 'opening')} by {_counted(models, 'model')}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _opening(line: str) -> dict[str, Any]:
    try:
        opening = json.loads(line)
    except ValueError:
        opening = None
    return opening if isinstance(opening, dict) else {"model": UNREADABLE}
