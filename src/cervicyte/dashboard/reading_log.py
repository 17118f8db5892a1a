"""What a reader called each cell, kept beside what the model said: a log that only grows.

One SQLite file, one row a reading. Each row carries a hash over itself and over the hash of the row before
it, so that a row that was changed, taken out or moved is found (`verify`). Whoever may write the file could
compute all hashes anew, or cut off its end: against that, note the last hash elsewhere, and `verify` with it.

A row is written in one transaction of a database that waits for the disk: after a crash in mid-write it is
there whole or not at all. No image is kept, only the SHA-256 of its file, and no name.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cervicyte.errors import ReadingLogError, UsageError
from cervicyte.evaluation.prediction_sets import SEPARATOR
from cervicyte.metrics import (
    Estimate,
    accuracy,
    cohen_kappa,
    confusion_matrix,
    group_bootstrap,
    upper_bound_of_none,
)
from cervicyte.pages import counted
from cervicyte.provenance import RESEARCH_USE_ONLY, refuse_to_replace, write_text

if TYPE_CHECKING:  # PyTorch comes with it, and a log is verified without
    from cervicyte.evaluation.answers import Prediction

APPLICATION_ID = 0x43767463  # "Cvtc", in the file's header: what tells our files from other databases
FORMAT_VERSION = 1
FIRST_HASH = hashlib.sha256(b"cervicyte reading log, format 1").hexdigest()
SECONDS_TO_WAIT = 10  # for another process that writes
LONGEST_LABEL, LONGEST_REMARK = 200, 4000  # characters
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes what begins so

SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS reading (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  time TEXT NOT NULL,
  image_sha256 TEXT NOT NULL,
  model_sha256 TEXT NOT NULL,
  answer TEXT NOT NULL,
  label TEXT NOT NULL,
  remark TEXT NOT NULL,
  blind INTEGER NOT NULL,
  hash TEXT NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS no_change BEFORE UPDATE ON reading
  BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TRIGGER IF NOT EXISTS no_removal BEFORE DELETE ON reading
  BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT_VERSION};
COMMIT;
"""
TEXTS = ("time", "image_sha256", "model_sha256", "answer", "label", "remark", "hash")
COLUMNS = "number, time, image_sha256, model_sha256, answer, label, remark, blind, hash"


@dataclass(frozen=True)
class Reading:
    """One row of the log.

    Attributes:
        number: from 1, without gaps.
        time: UTC, ISO 8601.
        image_sha256: of the image's file.
        model_sha256: of the model's weights, see `model_file.weights_hash`.
        answer: what the model said: predicted_class, confidence, probabilities, prediction_set, verdict.
        label: what the reader called the cell; empty if nothing.
        remark: the reader's.
        blind: whether the reader had not yet seen the model's answer.
        hash: over all above and the hash of the row before.
    """

    number: int
    time: str
    image_sha256: str
    model_sha256: str
    answer: dict[str, Any]
    label: str
    remark: str
    blind: bool
    hash: str


@dataclass(frozen=True)
class Agreement:
    """How far reader and model agree on the cells that were read blind.

    Attributes:
        cells: that have a blind label. Of a cell read several times for one model the first counts: later,
            the answer may be known.
        agreed: share of them that both call the same, 0 to 1.
        kappa: Cohen's, agreement beyond chance, -1 to 1; NaN where both use one label only.
        labels: of reader and model, sorted.
        table: int [L, L], rows are the reader's labels, columns the model's.
    """

    cells: int
    agreed: Estimate
    kappa: Estimate
    labels: tuple[str, ...]
    table: np.ndarray

    @property
    def sentence(self) -> str:
        """The agreement in words."""
        if not self.cells:
            return "No cell has been read blind yet, so that there is no agreement to tell."
        cells = f"{counted(self.cells, 'cell')} read blind"
        what = f"Reader and model agree on {self.agreed.value:.1%} of {cells}"
        if math.isnan(self.kappa.value):
            return f"{what}; kappa is undefined, as both used one label only."
        if math.isnan(self.kappa.low):
            return f"{what}; kappa {self.kappa.value:.2f}, of too few cells for an interval."
        return (
            f"{what}; kappa {self.kappa.value:.2f} (95 % interval: {self.kappa.low:.2f} to "
            f"{self.kappa.high:.2f})."
        )


@dataclass(frozen=True)
class Verification:
    """Whether a log is as it was written.

    Attributes:
        rows: that hold.
        last_hash: of the last row that holds.
        fault: what does not hold, in a sentence; None if all does.
    """

    rows: int
    last_hash: str
    fault: str | None


class ReadingLog:
    """A log in a file; made if there is none. Any number of threads and processes may use it at once.

    Example:
        >>> log = ReadingLog(Path("readings.sqlite"))  # doctest: +SKIP
        >>> log.add(sha256, classifier_sha256, prediction, "Parabasal", blind=True)  # doctest: +SKIP
        >>> log.agreement().sentence  # doctest: +SKIP
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open a log, readable by its owner only.

        Args:
            path: of the file.
            create: make it if it is not there.

        Raises:
            ReadingLogError: it is no log, is damaged, or cannot be made.
        """
        self.path = Path(path)
        if not self.path.exists():
            if not create:
                raise ReadingLogError(f"{path}: there is no such reading log; check the path.")
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            except OSError as error:
                raise ReadingLogError(
                    f"{path}: cannot be made ({error.strerror}); choose a folder that may be written to."
                ) from error
        with self._connected() as database:
            if self._is_empty(database) and create:
                database.executescript(SCHEMA)
            found = database.execute("PRAGMA application_id").fetchone()[0]
            version = database.execute("PRAGMA user_version").fetchone()[0]
        if found != APPLICATION_ID:
            raise ReadingLogError(f"{path}: is not a reading log of Cervicyte; name another file.")
        if version != FORMAT_VERSION:
            raise ReadingLogError(f"{path}: was written by a newer Cervicyte; update this one.")

    def add(
        self,
        image_sha256: str,
        model_sha256: str,
        prediction: Prediction,
        label: str,
        remark: str = "",
        *,
        blind: bool,
    ) -> Reading:
        """Append a reading; when this returns, it is on the disk.

        Args:
            image_sha256: of the image's file.
            model_sha256: see `model_file.weights_hash`.
            prediction: what the model says.
            label: what the reader calls the cell; empty if nothing.
            remark: the reader's.
            blind: whether the reader has not seen what the model says.

        Raises:
            UsageError: label or remark is too long.
            ReadingLogError: the file cannot be written.
        """
        for text, longest, name in (
            (label, LONGEST_LABEL, "label"),
            (remark, LONGEST_REMARK, "remark"),
        ):
            if len(text) > longest:
                raise UsageError(f"The {name} has {len(text)} characters; {longest} is the most.")
        row = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "image_sha256": image_sha256,
            "model_sha256": model_sha256,
            "answer": _canonical(answer_of(prediction)),
            # Unpaired surrogates, which a browser can send, are no text.
            "label": label.encode("utf-8", "replace").decode(),
            "remark": remark.encode("utf-8", "replace").decode(),
            "blind": int(blind),
        }
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            last = database.execute(
                "SELECT number, hash FROM reading ORDER BY number DESC LIMIT 1"
            ).fetchone()
            number, before = (last[0] + 1, last[1]) if last else (1, FIRST_HASH)
            if not isinstance(before, str):
                raise ReadingLogError(
                    f"{self.path}: the hash of reading {last[0]} is not what Cervicyte writes there, so that "
                    "no reading can be added; take an intact copy, or name another file."
                )
            stored = (number, *row.values())
            digest = _hash(before, stored)
            marks = ", ".join("?" * (len(stored) + 1))
            database.execute(f"INSERT INTO reading ({COLUMNS}) VALUES ({marks})", (*stored, digest))
            database.execute("COMMIT")
        return _reading(self.path, (*stored, digest))

    def rows(self) -> list[Reading]:
        """Return all readings in their order.

        Raises:
            ReadingLogError: the file is damaged, or a row is not one that Cervicyte wrote.
        """
        with self._connected() as database:
            return [_reading(self.path, row) for row in _all(database)]

    def agreement(self) -> Agreement:
        """Return how far reader and model agree, with 95 % intervals from drawing cells with replacement.

        Raises:
            ReadingLogError: the file is damaged.
        """
        first: dict[tuple[str, str], Reading] = {}
        for reading in self.rows():
            first.setdefault((reading.image_sha256, reading.model_sha256), reading)
        read = [one for one in first.values() if one.blind and one.label]
        return agreement_of([(one.label, one.answer["predicted_class"]) for one in read])

    def verify(self, known_hash: str | None = None) -> Verification:
        """Hold every row against its hash.

        Args:
            known_hash: of any row, noted earlier; it must still be there, or rows were cut off or all
                hashes were made anew.

        Raises:
            ReadingLogError: the file is damaged.
        """
        before, rows = FIRST_HASH, 0
        known = known_hash in (None, FIRST_HASH)
        with self._connected() as database:
            for stored in _all(database):
                if stored[0] != rows + 1:
                    return Verification(rows, before, f"Reading {rows + 1} is missing.")
                if not _holds(before, stored):
                    return Verification(
                        rows,
                        before,
                        f"Reading {rows + 1} is not as it was written, or one before it is gone.",
                    )
                before, rows = stored[-1], rows + 1
                known = known or before == known_hash
            counted = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'reading'").fetchone()
        if counted and counted[0] > rows:
            return Verification(
                rows, before, f"Readings after {rows} are missing; {counted[0]} were written."
            )
        if not known:
            return Verification(rows, before, "No reading has the hash that was noted; the log is another.")
        return Verification(rows, before, None)

    def csv(self) -> str:
        """Return all readings as a table: see docs/dashboard_server.md for its columns.

        Text that a spreadsheet would take for a formula gets an apostrophe before it.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(
            [
                *("number", "time", "image_sha256", "model_sha256", "blind", "label", "remark"),
                *("predicted_class", "confidence", "prediction_set", "verdict", "hash", "notice"),
            ]
        )
        for one in self.rows():
            said = one.answer
            origin = [one.number, one.time, one.image_sha256, one.model_sha256]
            read = [str(one.blind).lower(), no_formula(one.label), no_formula(one.remark)]
            answer = [no_formula(said["predicted_class"]), f"{said['confidence']:.6f}"]
            answer += [no_formula(SEPARATOR.join(said["prediction_set"])), said["verdict"]]
            writer.writerow([*origin, *read, *answer, one.hash, RESEARCH_USE_ONLY])
        return table.getvalue()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection of its own to each caller; what was not committed is undone."""
        try:
            # rw: a file that has gone is not made anew, and what a crash left half done is undone.
            address = f"{self.path.resolve().as_uri()}?mode=rw"
            with contextlib.closing(
                sqlite3.connect(address, uri=True, timeout=SECONDS_TO_WAIT, isolation_level=None)
            ) as database:
                database.execute("PRAGMA synchronous = FULL")
                yield database
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise ReadingLogError(
                f"{self.path}: cannot be used as a reading log ({error}); check its permissions and the "
                "disk, or take an intact copy."
            ) from error

    @staticmethod
    def _is_empty(database: sqlite3.Connection) -> bool:
        return not database.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]


def answer_of(prediction: Prediction) -> dict[str, Any]:
    """Return what is kept of a prediction, as JSON values."""
    return {
        "predicted_class": prediction.class_name,
        "confidence": prediction.confidence,
        "probabilities": prediction.probabilities,
        "prediction_set": list(prediction.prediction_set),
        "verdict": prediction.verdict,
    }


def agreement_of(pairs: list[tuple[str, str]]) -> Agreement:
    """Return how far pairs agree, each of a reader's label and a model's class for one cell.

    Where all agree, a bootstrap cannot draw a disagreement and would say [1, 1]: there the lower end comes
    from `upper_bound_of_none`, kappa's with the agreement by chance held fixed.
    """
    labels = tuple(sorted({label for pair in pairs for label in pair}))
    if not pairs:
        undefined = Estimate(math.nan, math.nan, math.nan)
        return Agreement(0, undefined, undefined, (), np.zeros((0, 0), int))
    read, said = (np.array([labels.index(label) for label in column]) for column in zip(*pairs, strict=True))

    def figures(weights: np.ndarray) -> np.ndarray:
        table = confusion_matrix(read, said, len(labels), weights)
        return np.stack([accuracy(table), cohen_kappa(table)], axis=-1)

    agreed, kappa = (
        Estimate(*map(float, one))
        for one in zip(*group_bootstrap(np.arange(len(read)), figures), strict=True)
    )
    table = confusion_matrix(read, said, len(labels)).astype(int)
    if agreed.value == 1:
        least = 1 - upper_bound_of_none(len(read))
        agreed = Estimate(1.0, least, 1.0)
        by_chance = float((table.sum(0) * table.sum(1)).sum()) / len(read) ** 2
        if by_chance < 1:
            kappa = Estimate(1.0, (least - by_chance) / (1 - by_chance), 1.0)
    return Agreement(len(read), agreed, kappa, labels, table)


def export_readings(log: ReadingLog, path: Path, *, force: bool = False) -> None:
    """Write all readings as CSV, atomically.

    Raises:
        UsageError: `path` does not end with .csv, or there is a file and no `force`.
    """
    if path.suffix != ".csv":
        raise UsageError(f"{path}: must end with .csv; name the file so with --out.")
    refuse_to_replace(path, force)
    write_text(path, log.csv())


def _all(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return database.execute(f"SELECT {COLUMNS} FROM reading ORDER BY number").fetchall()


def _reading(path: Path, row: tuple[Any, ...]) -> Reading:
    """Return a row as a reading; `path` is what messages name.

    Raises:
        ReadingLogError: it is not one that Cervicyte wrote.
    """
    values = dict(zip([field.name for field in dataclasses.fields(Reading)], row, strict=True))
    strange = [name for name in TEXTS if not isinstance(values[name], str)]
    answer = None if strange else _answer(values["answer"])
    if answer is None:
        raise ReadingLogError(
            f"{path}: the {strange[0] if strange else 'answer'} of reading {values['number']} is not what "
            "Cervicyte writes there, so the log was changed; take an intact copy."
        )
    return Reading(**{**values, "answer": answer, "blind": bool(values["blind"])})


def _answer(text: str) -> dict[str, Any] | None:
    """Return what `answer_of` gave, from its JSON; None if it is anything else."""
    try:
        said = json.loads(text)
        json.dumps(said, ensure_ascii=False).encode()  # no file takes the half of a character as an escape
    except (ValueError, RecursionError):
        return None
    holds = (
        isinstance(said, dict)
        and isinstance(said.get("predicted_class"), str)
        and isinstance(said.get("confidence"), int | float)
        and 0 <= round(said["confidence"], 3) <= 1
        and isinstance(said.get("probabilities"), dict)
        and isinstance(said.get("prediction_set"), list)
        and all(isinstance(name, str) for name in said["prediction_set"])
        and isinstance(said.get("verdict"), str)
    )
    return said if holds else None


def _holds(before: str, stored: tuple[Any, ...]) -> bool:
    """Return whether a row has the hash that it was written with; bytes, which no log holds, have none."""
    try:
        return bool(stored[-1] == _hash(before, stored[:-1]))
    except (TypeError, ValueError):
        return False


def _hash(before: str, stored: tuple[Any, ...]) -> str:
    return hashlib.sha256(_canonical([before, *stored]).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)


def no_formula(text: str) -> str:
    """Return text that no spreadsheet takes for a formula, with an apostrophe before it where one might."""
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text
