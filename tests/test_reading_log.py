"""The reading log: it only grows, it shows what was done to it, and a crash leaves no half a row."""

from __future__ import annotations

import csv
import dataclasses
import gc
import io
import math
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.dashboard.reading_log import FIRST_HASH, LONGEST_LABEL, ReadingLog, agreement_of
from cervicyte.errors import ReadingLogError, UsageError
from cervicyte.evaluation.answers import Prediction
from cervicyte.provenance import RESEARCH_USE_ONLY

SAID = Prediction("Parabasal", 0.8, {"Parabasal": 0.8, "Koilocytotic": 0.2}, ("Parabasal",))
MODEL = "b" * 64


def fill(path: Path, rows: int = 4) -> ReadingLog:
    log = ReadingLog(path)
    for number in range(rows):
        log.add(f"{number:064x}", MODEL, SAID, "Parabasal" if number % 2 else "Koilocytotic", blind=True)
    return log


def tamper(path: Path, *statements: str) -> None:
    """Change a log as its owner could, the triggers taken out of the way."""
    database = sqlite3.connect(path)
    for statement in ("DROP TRIGGER no_change", "DROP TRIGGER no_removal", *statements):
        database.execute(statement)
    database.commit()
    database.close()


def loosened(path: Path, *statements: str) -> None:
    """Change a log as its owner could, in a table that takes whatever it is given."""
    columns = "time, image_sha256, model_sha256, answer, label, remark, blind, hash"
    tamper(
        path,
        "ALTER TABLE reading RENAME TO strict",
        f"CREATE TABLE reading (number INTEGER PRIMARY KEY AUTOINCREMENT, {columns})",
        "INSERT INTO reading SELECT * FROM strict",
        *statements,
    )


def test_what_was_added_is_read_back(tmp_path):
    log = ReadingLog(tmp_path / "log.sqlite")
    added = log.add("a" * 64, MODEL, SAID, "Koilocytotic", "halo, ändert nichts 🔬", blind=True)
    (read,) = ReadingLog(tmp_path / "log.sqlite", create=False).rows()
    assert read == added
    assert (read.number, read.image_sha256, read.model_sha256) == (1, "a" * 64, MODEL)
    assert (read.label, read.remark, read.blind) == ("Koilocytotic", "halo, ändert nichts 🔬", True)
    assert read.answer == {
        "predicted_class": "Parabasal",
        "confidence": 0.8,
        "probabilities": {"Parabasal": 0.8, "Koilocytotic": 0.2},
        "prediction_set": ["Parabasal"],
        "verdict": "answer",
    }


def test_only_its_owner_can_read_it(tmp_path):
    fill(tmp_path / "log.sqlite", 1)
    assert stat.S_IMODE((tmp_path / "log.sqlite").stat().st_mode) == 0o600


def test_a_log_as_it_was_written_holds(tmp_path):
    log = fill(tmp_path / "log.sqlite")
    found = log.verify()
    assert (found.rows, found.fault) == (4, None)
    assert found.last_hash == log.rows()[-1].hash
    assert ReadingLog(tmp_path / "none.sqlite").verify().last_hash == FIRST_HASH


@pytest.mark.parametrize(
    "change",
    [f"UPDATE reading SET {column} = '0' WHERE number = 2" for column in ("label", "time", "image_sha256",
     "model_sha256", "answer", "remark", "blind", "hash")],
)  # fmt: skip
def test_any_changed_value_is_found(tmp_path, change):
    log = fill(tmp_path / "log.sqlite")
    tamper(log.path, change)
    found = log.verify()
    assert found.rows == 1
    assert str(found.fault).startswith("Reading 2 is not as it was written")


@pytest.mark.parametrize(
    ("removed", "said"), [(1, "Reading 1 is missing."), (3, "Reading 3 is missing."), (4, "Readings after 3")]
)
def test_a_removed_row_is_found_wherever_it_was(tmp_path, removed, said):
    log = fill(tmp_path / "log.sqlite")
    tamper(log.path, f"DELETE FROM reading WHERE number = {removed}")
    assert str(log.verify().fault).startswith(said)


def test_rows_that_changed_places_are_found(tmp_path):
    log = fill(tmp_path / "log.sqlite")
    tamper(
        log.path,
        *(f"UPDATE reading SET number = {new} WHERE number = {old}" for old, new in ((2, 9), (3, 2), (9, 3))),
    )
    assert "Reading 2 is not" in str(log.verify().fault)


def test_a_log_made_anew_is_found_by_a_hash_noted_before(tmp_path):
    noted = fill(tmp_path / "log.sqlite").verify().last_hash
    fill(tmp_path / "log.sqlite", 2)
    assert ReadingLog(tmp_path / "log.sqlite").verify(noted).fault is None
    other = ReadingLog(tmp_path / "other.sqlite")
    other.add("c" * 64, MODEL, SAID, "Parabasal", blind=True)
    assert other.verify().fault is None
    assert "another" in str(other.verify(noted).fault)


def test_rows_are_neither_changed_nor_removed_by_accident(tmp_path):
    log = fill(tmp_path / "log.sqlite")
    database = sqlite3.connect(log.path)
    for statement in ("UPDATE reading SET label = 'x'", "DELETE FROM reading"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            database.execute(statement)


def test_threads_write_one_chain(tmp_path):
    log = ReadingLog(tmp_path / "log.sqlite")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: log.add(f"{n:064x}", MODEL, SAID, "Parabasal", blind=True), range(40)))
    assert log.verify().rows == 40
    assert log.verify().fault is None


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from cervicyte.dashboard.reading_log import ReadingLog
from types import SimpleNamespace
log = ReadingLog(Path(sys.argv[1]))
said = SimpleNamespace(  # a prediction, without PyTorch
    class_name="Parabasal", confidence=1.0, probabilities={}, prediction_set=(), verdict="answer"
)
for number in range(100_000):
    log.add(f"{number:064x}", "m" * 64, said, "Parabasal", "x" * 3000, blind=True)
    print(number + 1, flush=True)
"""


@pytest.mark.full
def test_killed_in_mid_write_it_holds_every_row_that_was_said_to_be_written(tmp_path):
    path = tmp_path / "log.sqlite"
    told = 0
    for killed_after in (0.05, 0.11, 0.23):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "1"
        time.sleep(killed_after)
        writer.send_signal(signal.SIGKILL)
        told += 1 + sum(line.endswith("\n") for line in writer.stdout)
        writer.wait()
        found = ReadingLog(path, create=False).verify()
        assert found.fault is None
        assert told <= found.rows <= told + 1  # the last may be written and not yet told
        told = found.rows
    assert told > 3


# --- agreement -----------------------------------------------------------------------------------


def test_kappa_is_scikit_learns_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    names = np.array(["a", "b", "c"])
    read = names[rng.integers(0, 3, 120)]
    said = np.where(rng.random(120) < 0.7, read, names[rng.integers(0, 3, 120)])
    found = agreement_of(list(zip(read.tolist(), said.tolist(), strict=True)))
    assert found.kappa.value == pytest.approx(cohen_kappa_score(read, said))
    assert found.agreed.value == pytest.approx((read == said).mean())
    assert found.kappa.low < found.kappa.value < found.kappa.high
    assert 0.15 < found.kappa.high - found.kappa.low < 0.35
    assert found.table.sum() == 120
    assert found.labels == ("a", "b", "c")


def test_agreement_on_all_of_few_cells_is_not_called_certain():
    found = agreement_of([("a", "a"), ("b", "b")] * 5)
    assert (found.kappa.value, found.kappa.high) == (1, 1)
    assert 0.3 < found.kappa.low < 0.5  # 10 cells: agreement above 0.69, of which 0.5 by chance
    assert "1.00 (95 % interval: 0.38 to 1.00)" in found.sentence


def test_agreement_without_cells_or_with_one_label_is_said_in_words():
    assert "No cell has been read blind" in agreement_of([]).sentence
    assert "kappa is undefined" in agreement_of([("a", "a")] * 3).sentence
    assert "too few" in agreement_of([("a", "b")]).sentence


def test_only_the_first_reading_of_a_cell_counts_and_only_if_it_was_blind(tmp_path):
    log = ReadingLog(tmp_path / "log.sqlite")
    log.add("1" * 64, MODEL, SAID, "Koilocytotic", blind=True)
    log.add("1" * 64, MODEL, SAID, "Parabasal", blind=True)  # has seen the answer by now
    log.add("2" * 64, MODEL, SAID, "Parabasal", blind=False)
    log.add("2" * 64, MODEL, SAID, "Parabasal", blind=True)
    log.add("3" * 64, MODEL, SAID, "", blind=True)  # no label
    log.add("4" * 64, MODEL, SAID, "Parabasal", blind=True)
    found = log.agreement()
    assert found.cells == 2
    assert found.agreed.value == 0.5


# --- refusals ------------------------------------------------------------------------------------


def test_what_is_no_log_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "note.txt").write_text("no database, but long enough " * 100)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE reading (label TEXT)")
    other.close()
    for name, said in (
        ("note.txt", "file is not a database"),
        ("other.sqlite", "is not a reading log of Cervicyte"),
        ("none/log.sqlite", "cannot be made"),
    ):
        before = (tmp_path / name).read_bytes() if (tmp_path / name).exists() else None
        with pytest.raises(ReadingLogError, match=said):
            ReadingLog(tmp_path / name)
        assert before is None or (tmp_path / name).read_bytes() == before
    with pytest.raises(ReadingLogError, match="no such reading log"):
        ReadingLog(tmp_path / "absent.sqlite", create=False)
    assert not (tmp_path / "absent.sqlite").exists()


ANSWER = '{"predicted_class":%s,"confidence":%s,"probabilities":{},"prediction_set":%s,"verdict":"answer"}'


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "value",
    [
        *("'{}'", "'[1]'", "'null'", "NULL", "'not json'", "x'7b7d'", "5"),
        *(f"'{ANSWER % said}'" for said in (("1", "0.5", "[]"), ('"a"', "true", "[1]"), ('"a"', '"1"', "[]"),
          ('"a"', "1" + "0" * 400, "[]"), ('"a"', "NaN", "[]"), (r'"\ud83d"', "0.5", "[]"))),
    ],
)  # fmt: skip
def test_a_row_whose_answer_was_changed_is_named_in_one_sentence(tmp_path, value):
    log = fill(tmp_path / "log.sqlite")
    loosened(log.path, f"UPDATE reading SET answer = {value} WHERE number = 3")
    exported = CliRunner().invoke(app, ["log", "export", str(log.path), "--out", str(tmp_path / "r.csv")])
    assert exported.exit_code == 2
    assert f"{log.path}: the answer of reading 3 is not what Cervicyte writes" in exported.output
    assert exported.output.count("\n") == 1
    assert not (tmp_path / "r.csv").exists()
    assert str(log.verify().fault).startswith("Reading 3 is not as it was written")
    del exported
    gc.collect()  # what was left in mid-course would say so now


@pytest.mark.parametrize("column", ["time", "image_sha256", "model_sha256", "label", "remark", "hash"])
def test_bytes_in_place_of_text_are_not_as_it_was_written(tmp_path, column):
    log = fill(tmp_path / "log.sqlite")
    loosened(log.path, f"UPDATE reading SET {column} = x'ff00' WHERE number = 2")
    verified = CliRunner().invoke(app, ["log", "verify", str(log.path)])
    assert verified.exit_code == 1
    assert "Reading 2 is not as it was written" in verified.output
    with pytest.raises(ReadingLogError, match=f"the {column} of reading 2 is not what"):
        log.csv()


def test_nothing_is_added_after_a_hash_that_is_none(tmp_path):
    log = fill(tmp_path / "log.sqlite")
    loosened(log.path, "UPDATE reading SET hash = x'ff00' WHERE number = 4")
    with pytest.raises(ReadingLogError, match="the hash of reading 4 is not what"):
        log.add("9" * 64, MODEL, SAID, "Parabasal", blind=True)


def test_too_long_a_label_is_refused(tmp_path):
    with pytest.raises(UsageError, match=f"{LONGEST_LABEL} is the most"):
        ReadingLog(tmp_path / "log.sqlite").add("1" * 64, MODEL, SAID, "x" * 201, blind=True)


# --- export and the command line -----------------------------------------------------------------


def test_the_table_has_a_row_a_reading_and_no_formulas(tmp_path):
    log = fill(tmp_path / "log.sqlite", 2)
    log.add("9" * 64, MODEL, SAID, "=cmd()", '@SUM(1), "quoted"\nnext line', blind=False)
    rows = list(csv.DictReader(io.StringIO(log.csv())))
    assert [row["number"] for row in rows] == ["1", "2", "3"]
    assert rows[2]["label"] == "'=cmd()"
    assert rows[2]["remark"].startswith("'@SUM(1)")
    assert (rows[0]["blind"], rows[2]["blind"]) == ("true", "false")
    assert {row["notice"] for row in rows} == {RESEARCH_USE_ONLY}
    assert rows[0]["hash"] == log.rows()[0].hash


def test_the_commands_verify_and_export(tmp_path):
    log = fill(tmp_path / "log.sqlite")
    run = CliRunner().invoke
    verified = run(app, ["log", "verify", str(log.path)])
    assert verified.exit_code == 0
    assert log.rows()[-1].hash in verified.output
    out = str(tmp_path / "readings.csv")
    exported = run(app, ["log", "export", str(log.path), "--out", out])
    assert exported.exit_code == 0, exported.output
    assert "agree on 50.0% of 4 cells" in exported.output
    assert Path(out).read_text() == log.csv()
    assert run(app, ["log", "export", str(log.path), "--out", out]).exit_code == 2
    assert run(app, ["log", "export", str(log.path), "--out", out, "--force"]).exit_code == 0
    assert run(app, ["log", "verify", str(log.path), "--expect", "0" * 64]).exit_code == 1
    tamper(log.path, "UPDATE reading SET label = 'Parabasal' WHERE number = 1")
    verified = run(app, ["log", "verify", str(log.path)])
    assert verified.exit_code == 1
    assert "Reading 1 is not as it was written" in verified.output
    assert run(app, ["log", "verify", str(tmp_path / "none")]).exit_code == 2


def test_a_reading_cannot_be_changed(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        fill(tmp_path / "log.sqlite", 1).rows()[0].label = "x"  # type: ignore[misc]
    assert math.isnan(agreement_of([]).kappa.value)
