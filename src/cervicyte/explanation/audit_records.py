"""The file in which an audit keeps each cell's results as soon as they are there.

`explanation_audit_cells.jsonl`: a first line that says what was asked, then a line a cell, and a line for
each stage of randomised weights. It is only ever added to; half a line, of an interruption, is cut off.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cervicyte.errors import RunFolderError, UsageError
from cervicyte.provenance import RESEARCH_USE_ONLY, write_text

RECORDS_NAME = "explanation_audit_cells.jsonl"
RECORDS_FORMAT = 2
"""Of what is measured and how it is written. 1 had one random map a layer and did not know of empty maps."""
AUDIT_FILES = (
    RECORDS_NAME,
    "explanation_audit.html",
    "explanation_audit.json",
    "explanation_audit.csv",
)


@dataclass
class Audit:
    """What was asked and what was found, before any averaging.

    Attributes:
        header: settings, model, data and caveats, as JSON values.
        records: of each cell, in order, see `Auditor.record`.
        stages: randomised stage -> map -> likeness of each sanity cell, see `Auditor.randomised_stages`.
    """

    header: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


def begin(out: Path, header: dict[str, Any], *, resume: bool, force: bool) -> Audit:
    """Return what an earlier run has recorded, or begin a new file of records."""
    path = out / RECORDS_NAME
    if resume and force:
        raise UsageError("--resume goes on with what is there, --force throws it away; give one of them.")
    if path.exists() and not force:
        if not resume:
            raise RunFolderError(
                f"{path}: an audit lies here; go on with --resume, or replace it with --force."
            )
        audit = read_records(path)
        if audit.header.get("records_format") != header["records_format"]:
            raise RunFolderError(
                f"{path}: was begun by another version of Cervicyte, which measured otherwise; start anew "
                "with --force."
            )
        if audit.header != header:
            differs = next(key for key in header if audit.header.get(key) != header[key])
            raise RunFolderError(
                f"{path}: the audit began with another {differs.replace('_', ' ')}; resume with the same "
                "options, or start anew with --force."
            )
        return audit
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out}: is a file; choose a folder with --out.")
    for name in AUDIT_FILES:
        (out / name).unlink(missing_ok=True)
    write_text(path, _line({"notice": RESEARCH_USE_ONLY, "header": header}))
    return Audit(header)


def read_records(path: Path) -> Audit:
    """Return an audit from its file of records; half a line at the end, of an interruption, is cut off.

    Raises:
        RunFolderError: it is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        first, *lines = [json.loads(line) for line in whole.splitlines()]
        audit = Audit(first["header"])
        for line in lines:
            if "stage" in line:
                audit.stages[line["stage"]] = line["maps"]
            else:
                audit.records.append(line)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: is damaged; start the audit anew with --force.") from error
    if len(whole) < len(text):
        write_text(path, whole)
    return audit


def append(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """Add a line to the file, on the disk before this returns; return it as it will be read again."""
    line = _line(value)
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return dict(json.loads(line))


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """Return JSON values: figures with six decimals, what is undefined as None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), 6)
    return int(value) if isinstance(value, np.integer) else value
