"""Images of any origin become rows, once each, whatever interrupts."""

from __future__ import annotations

import dataclasses
import errno
import gc
import io
import json
import os
import sys
import weakref
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROJECT
from PIL import Image
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.errors import RunFolderError, UsageError
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.inference import predict as predicting
from cervicyte.inference import sources
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.predict import predict
from cervicyte.inference.sources import sources_of
from cervicyte.network import model_file
from cervicyte.network.frozen import FrozenModel
from cervicyte.network.model_file import ModelFile, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, sha256_of_file

CLASSES = ("Parabasal", "Koilocytotic")


class Stop(Progress):
    """Interrupts the work after the first batch."""

    def advance(self, count: int = 1, note: str = "") -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(ModelFile(CBAMResNet50(2), CLASSES, Preprocessing(image_size=32)), "cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five images in two folders, one of them damaged, and a file of text."""
    rng = np.random.default_rng(0)
    for name in ("b/2.png", "a/1.png", "a/10.jpg", "c.bmp"):
        path = tmp_path / "cells" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    (tmp_path / "cells" / "b" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "cells" / "notes.txt").write_text("no image")
    return tmp_path / "cells"


def table_of(path):
    return pd.read_csv(path, keep_default_na=False)


def test_every_image_has_a_row_with_the_classifiers_answer_or_its_error(classifier, folder, tmp_path):
    outcome = predict(classifier, [str(folder)], tmp_path / "out.csv", command="a command")
    table = table_of(tmp_path / "out.csv")
    assert (outcome.rows, outcome.errors) == (5, 1)
    assert [Path(name).name for name in table["path"]] == ["c.bmp", "1.png", "10.jpg", "2.png", "damaged.png"]
    assert list(table) == [
        "path", "sha256", "predicted_class", "confidence", "p_Parabasal", "p_Koilocytotic",
        "prediction_set", "unlike_percentile", "verdict", "error",
    ]  # fmt: skip
    for row in table.itertuples():
        assert row.sha256 == sha256_of_file(Path(row.path))
    damaged = table.iloc[-1]
    assert damaged["verdict"] == "error"
    assert damaged["error"].startswith(damaged["path"])
    assert damaged["predicted_class"] == damaged["confidence"] == ""
    image = np.asarray(Image.open(folder / "a" / "1.png"))
    (expected,) = classifier.predict([image])
    row = table.iloc[1]
    assert row["predicted_class"] == expected.class_name
    assert float(row["p_Koilocytotic"]) == pytest.approx(expected.probabilities["Koilocytotic"], abs=1e-4)
    about = json.loads((tmp_path / "out.csv.json").read_text())
    assert about["notice"] == RESEARCH_USE_ONLY
    assert (about["rows"], about["errors"], about["command"]) == (5, 1, "a command")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "out.csv", "out.csv.json"]


def test_parquet_holds_the_same(classifier, folder, tmp_path):
    for name in ("out.csv", "out.parquet"):
        predict(classifier, [str(folder)], tmp_path / name)
    columns, csv = pd.read_parquet(tmp_path / "out.parquet"), table_of(tmp_path / "out.csv")
    assert list(columns) == list(csv)
    assert list(columns["path"]) == list(csv["path"])
    assert columns["confidence"].dtype == float
    assert np.isnan(columns["confidence"].iloc[-1])
    np.testing.assert_allclose(columns["p_Parabasal"][:-1], csv["p_Parabasal"][:-1].astype(float))


def test_tables_that_differ_in_their_ending_alone_each_say_where_they_come_from(classifier, folder, tmp_path):
    predict(classifier, [str(folder)], tmp_path / "out.csv", command="the first")
    predict(classifier, [str(folder / "a")], tmp_path / "out.parquet", command="the second")
    for name, rows, command in (("out.csv", 5, "the first"), ("out.parquet", 2, "the second")):
        about = json.loads((tmp_path / f"{name}.json").read_text())
        assert (about["rows"], about["command"]) == (rows, command)


def test_an_interrupted_table_is_gone_on_with_and_no_row_is_lost_or_doubled(
    classifier, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(predicting, "BATCH", 2)

    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        predict(classifier, [str(folder)], out, progress=Stop())
    partial = tmp_path / ".out.csv.partial.csv"
    assert partial.read_text().count("\n") == 3
    with open(partial, "ab") as file:  # a damaged row, and half a row, as a power cut leaves it
        file.write(b"\xff\xff\n/somewhere/b/2.p")
    about = tmp_path / ".out.csv.partial.json"
    said = about.read_text()
    for damaged in ("", "{bad", "\x00"):
        about.write_text(damaged)
        with pytest.raises(RunFolderError, match=r"partial\.json: is damaged; delete .*partial\.csv"):
            predict(classifier, [str(folder)], out)
    about.write_text(said)
    asked = []

    class Counted(Progress):
        def start(self, title: str, total: int, done: int = 0) -> None:
            asked.append((total, done))

    outcome = predict(classifier, [str(folder)], out, progress=Counted())
    assert asked == [(5, 2)]
    predict(classifier, [str(folder)], tmp_path / "whole.csv")
    assert outcome.errors == 1
    assert out.read_text() == (tmp_path / "whole.csv").read_text()
    assert not partial.exists()


def test_an_interrupted_table_of_other_images_or_another_model_is_not_gone_on_with(
    classifier, folder, tmp_path, monkeypatch
):
    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        predict(classifier, [str(folder)], out, progress=Stop())
    with pytest.raises(RunFolderError, match="other images, or of another model"):
        predict(classifier, [str(folder / "a")], out)
    other = Classifier(ModelFile(CBAMResNet50(2), CLASSES, Preprocessing(image_size=32)), "cpu")
    with pytest.raises(RunFolderError, match="another model"):
        predict(other, [str(folder)], out)
    (folder / "a" / "1.png").unlink()
    with pytest.raises(RunFolderError, match="not of the images that are there now"):
        predict(classifier, [str(folder)], out)


def _begun(classifier: Classifier, names: list[str], out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(classifier, names, out, progress=Stop())


def _drawn_cells(folder: Path, seed: int, count: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("names", [["."], ["@../names.txt"], ["*.png"]], ids=lambda names: names[0])
def test_a_table_of_relative_names_is_not_gone_on_with_in_another_folder(
    classifier, tmp_path, monkeypatch, names
):
    monkeypatch.setattr(predicting, "BATCH", 2)
    (tmp_path / "names.txt").write_text("".join(f"{number}.png\n" for number in range(8)))
    for folder, seed in (("s1", 1), ("s2", 1), ("s3", 2)):
        _drawn_cells(tmp_path / folder, seed)
    out = tmp_path / "out.csv"
    monkeypatch.chdir(tmp_path / "s1")
    _begun(classifier, names, out)
    for folder in ("s2", "s3"):
        monkeypatch.chdir(tmp_path / folder)
        with pytest.raises(RunFolderError, match="is of other images"):
            predict(classifier, names, out)
    monkeypatch.chdir(tmp_path / "s1")
    assert predict(classifier, names, out).rows == 8


def test_a_table_of_absolute_names_is_gone_on_with_from_any_folder(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "BATCH", 2)
    cells, out = _drawn_cells(tmp_path / "cells", 1), tmp_path / "out.csv"
    _begun(classifier, [str(cells)], out)
    monkeypatch.chdir(cells)
    assert predict(classifier, [str(cells)], out).rows == 8


@pytest.mark.parametrize("archived", [False, True], ids=["files", "an archive"])
@pytest.mark.parametrize("changed", [0, 1])
def test_a_table_whose_images_were_changed_since_is_not_gone_on_with(
    classifier, tmp_path, monkeypatch, archived, changed
):
    monkeypatch.setattr(predicting, "BATCH", 2)
    cells, out = _drawn_cells(tmp_path / "cells", 1), tmp_path / "out.csv"
    name = tmp_path / "cells.zip" if archived else cells

    def pack() -> None:
        with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
            for path in sorted(cells.iterdir()):
                archive.write(path, path.name)

    pack()
    _begun(classifier, [str(name)], out)
    before = (cells / f"{changed}.png").read_bytes()
    (cells / f"{changed}.png").write_bytes((cells / "7.png").read_bytes())
    pack()
    with pytest.raises(RunFolderError, match="not of the images that are there now"):
        predict(classifier, [str(name)], out)
    (cells / f"{changed}.png").write_bytes(before)
    (cells / "5.png").write_bytes((cells / "7.png").read_bytes())  # of which there is no row yet
    pack()
    assert predict(classifier, [str(name)], out).rows == 8
    assert table_of(out)["sha256"][5] == sha256_of_file(cells / "7.png")


def test_of_a_long_table_some_images_are_read_anew_from_the_first_to_the_last(
    classifier, tmp_path, monkeypatch
):
    monkeypatch.setattr(predicting, "BATCH", 2)
    monkeypatch.setattr(predicting, "READ_ANEW", 5)
    cells, out = _drawn_cells(tmp_path / "cells", 1, 40), tmp_path / "out.csv"

    class Later(Progress):
        done = 0

        def advance(self, count: int = 1, note: str = "") -> None:
            self.done += count
            if self.done == 36:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(classifier, [str(cells)], out, progress=Later())
    names, read = [one.name for one in sources_of([str(cells)])], []
    with monkeypatch.context() as patch:
        patch.setattr(predicting, "_is_another", lambda source, digest: read.append(source.name))
        _begun(classifier, [str(cells)], out)
    assert sorted(map(names.index, read)) == [0, 8, 16, 24, 32]


def test_an_image_that_is_gone_by_now_keeps_its_row(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "BATCH", 2)
    cells, out = _drawn_cells(tmp_path / "cells", 1), tmp_path / "out.csv"
    (tmp_path / "names.txt").write_text("".join(f"{cells}/{number}.png\n" for number in range(8)))
    _begun(classifier, [f"@{tmp_path}/names.txt"], out)
    (cells / "0.png").unlink()
    assert predict(classifier, [f"@{tmp_path}/names.txt"], out).errors == 0


def test_a_table_whose_header_was_half_written_is_begun_anew(classifier, folder, tmp_path):
    (tmp_path / ".out.csv.partial.csv").write_text("path,sha2")
    predict(classifier, [str(folder)], tmp_path / "out.csv")
    assert len(table_of(tmp_path / "out.csv")) == 5


def test_rows_of_a_batch_that_was_not_finished_are_asked_again_so_that_batches_stay_the_same(
    classifier, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(predicting, "BATCH", 2)
    out, partial = tmp_path / "out.csv", tmp_path / ".out.csv.partial.csv"
    with pytest.raises(KeyboardInterrupt):
        predict(classifier, [str(folder)], out, progress=Stop())
    lines = partial.read_text().splitlines(keepends=True)
    partial.write_text("".join(lines[:2]))  # a header and one row of two, as the disk may have kept them
    asked = []

    class Counted(Progress):
        def start(self, title: str, total: int, done: int = 0) -> None:
            asked.append(done)

    assert predict(classifier, [str(folder)], out, progress=Counted()).rows == 5
    assert asked == [0]
    assert len(table_of(out)) == 5


@pytest.mark.parametrize(
    "changed",
    [
        {"metadata": {"adaptation": {"images": 64}}},
        {"tensors": {"familiarity.stage4.mean": torch.ones(4, dtype=torch.float16)}},
    ],
    ids=["adapted", "what is usual"],
)
def test_an_interrupted_table_of_a_model_with_the_same_weights_that_answers_otherwise_is_not_gone_on_with(
    classifier, folder, tmp_path, changed
):
    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        predict(classifier, [str(folder)], out, progress=Stop())
    other = Classifier(dataclasses.replace(classifier.model, **changed), "cpu")
    with pytest.raises(RunFolderError, match="another model"):
        predict(other, [str(folder)], out)
    assert predict(classifier, [str(folder)], out).rows == 5


def test_graphs_of_the_same_weights_that_were_rounded_otherwise_begin_tables_of_their_own(tmp_path):
    said = set()
    for name, content in (("one", b"\x01"), ("other", b"\x02"), ("copy", b"\x01")):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        graph = FrozenModel(path, CLASSES, Preprocessing(), "stage", "ab" * 32, path, precision="int8")
        answerer = SimpleNamespace(second_look=None)
        holder = SimpleNamespace(model=graph, class_names=CLASSES, answerer=answerer)
        said.add(predicting._fingerprint(cast(Classifier, holder)))
    assert len(said) == 2


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_kill_while_the_table_is_put_in_place_loses_nothing(
    classifier, folder, tmp_path, monkeypatch, suffix
):
    out = tmp_path / f"out{suffix}"

    def killed(*given, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if suffix == ".csv":
            patch.setattr(Path, "replace", lambda one, other: killed() if other == out else one.rename(other))
        else:
            patch.setattr(predicting.pyarrow.parquet.ParquetWriter, "write_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(classifier, [str(folder)], out)
    assert not out.exists()
    outcome = predict(classifier, [str(folder)], out)
    assert (outcome.rows, outcome.errors) == (5, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"cells", out.name, f"{out.name}.json"}


@pytest.mark.skipif(predicting.fcntl is None, reason="Windows has no such locks")
def test_a_file_that_is_called_as_what_stands_beside_the_table_is_not_written_over(
    classifier, folder, tmp_path
):
    beside = tmp_path / "out.csv.json"
    beside.write_text('{"cells": 5}')
    with pytest.raises(UsageError, match=r"out\.csv\.json: is there already and not of a table"):
        predict(classifier, [str(folder)], tmp_path / "out.csv")
    assert beside.read_text() == '{"cells": 5}'
    predict(classifier, [str(folder)], tmp_path / "out.csv", force=True)
    (tmp_path / "out.csv").unlink()
    assert predict(classifier, [str(folder)], tmp_path / "out.csv").rows == 5  # what a table left is replaced


def test_two_commands_do_not_write_one_table(classifier, folder, tmp_path):
    class Second(Progress):
        def advance(self, count: int = 1, note: str = "") -> None:
            with pytest.raises(RunFolderError, match="another command is writing this table"):
                predict(classifier, [str(folder)], tmp_path / "out.csv")

    assert predict(classifier, [str(folder)], tmp_path / "out.csv", progress=Second()).rows == 5
    assert len(table_of(tmp_path / "out.csv")) == 5


def test_a_full_disk_is_one_sentence_and_the_table_is_gone_on_with(classifier, folder, tmp_path, monkeypatch):
    out, sync = tmp_path / "out.csv", os.fsync
    monkeypatch.setattr(predicting, "BATCH", 2)
    asked = []

    def full(file):
        asked.append(file)
        if len(asked) == 4:  # after what was begun, the header, and the first rows
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFolderError, match=r"cannot be written \(No space left on device\); make room"):
            predict(classifier, [str(folder)], out)
    predict(classifier, [str(folder)], out)
    predict(classifier, [str(folder)], tmp_path / "whole.csv")
    assert out.read_text() == (tmp_path / "whole.csv").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_names_that_no_table_can_hold_are_escaped(classifier, folder, tmp_path, suffix):
    image = (folder / "c.bmp").read_bytes()
    for name in (b"a\nb.bmp", b"\xff.bmp", b'"q, r".bmp'):
        (folder / os.fsdecode(name)).write_bytes(image)
    out = tmp_path / f"out{suffix}"
    with pytest.raises(KeyboardInterrupt):
        predict(classifier, [str(folder)], out, progress=Stop())
    assert predict(classifier, [str(folder)], out).errors == 1
    table = table_of(out) if suffix == ".csv" else pd.read_parquet(out)
    assert [Path(name).name for name in table["path"]][:4] == [
        '"q, r".bmp', "a\\nb.bmp", "c.bmp", "\\udcff.bmp",
    ]  # fmt: skip
    assert set(table["sha256"][:4]) == {sha256_of_file(folder / "c.bmp")}


def test_an_archive_that_begins_with_its_own_folder_and_a_list_as_windows_writes_it_are_read(
    folder, tmp_path
):
    image = (folder / "c.bmp").read_bytes()
    with zipfile.ZipFile(tmp_path / "dot.zip", "w") as archive:
        archive.writestr("./", b"")
        archive.writestr("./c.bmp", image)
    (source,) = sources_of([str(tmp_path / "dot.zip")])
    assert (source.member, source.read()) == ("./c.bmp", image)
    (tmp_path / "list.txt").write_text(f"{folder / 'c.bmp'}\r\n", encoding="utf-8-sig")
    (source,) = sources_of([f"@{tmp_path / 'list.txt'}"])
    assert source.read() == image


def test_what_would_be_passed_over_or_guessed_is_refused(folder, monkeypatch):
    with pytest.raises(UsageError, match="An empty name is no image"):
        list(sources_of([""]))
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UsageError, match=r"/b: cannot be listed \(Permission denied\)"):
        list(sources_of([str(folder)]))


@pytest.fixture
def linked(folder, tmp_path) -> Path:
    """Links to a folder elsewhere, one of them from within it, to a folder of the tree, and in a circle."""
    image = (folder / "c.bmp").read_bytes()
    for name in ("elsewhere/deep/3.bmp", "elsewhere/4.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    for name, target in {
        "a/linked": tmp_path / "elsewhere",
        "a/zz": tmp_path / "elsewhere" / "deep",
        "again": tmp_path / "elsewhere",
        "a/circle": folder,
        "aa": folder / "b",
        "nothing": tmp_path / "missing",
    }.items():
        (folder / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "elsewhere" / "up").symlink_to(folder, target_is_directory=True)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("as_uri", [False, True])
def test_links_to_folders_are_followed_and_every_image_is_named_once(linked, as_uri):
    name = f"file://{linked}" if as_uri else str(linked)
    assert [source.name.removeprefix(f"{name}/") for source in sources_of([name])] == [
        "c.bmp", "a/1.png", "a/10.jpg", "a/zz/3.bmp", "again/4.bmp", "b/2.png", "b/damaged.png",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folder_that_is_a_link_itself_is_gone_through(linked, tmp_path):
    (tmp_path / "link").symlink_to(linked, target_is_directory=True)
    named = [source.name for source in sources_of([str(tmp_path / "link")])]
    assert named == [
        source.name.replace(str(linked), f"{tmp_path}/link", 1) for source in sources_of([str(linked)])
    ]


def test_what_is_no_list_on_standard_input_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\x89PNG\xff\n"), encoding="utf-8"))
    with pytest.raises(UsageError, match="Standard input is no list of names"):
        list(sources_of(["-"]))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no such devices")
def test_devices_and_pipes_in_a_list_are_errors_and_are_not_waited_for(classifier, folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.txt").write_text(f"/dev/zero\n{tmp_path}/pipe.png\n{folder}/a\n")
    assert predict(classifier, [f"@{tmp_path}/list.txt"], tmp_path / "out.csv").errors == 3
    errors = list(table_of(tmp_path / "out.csv")["error"])
    assert ["is a device or a pipe" in error for error in errors] == [True, True, False]
    assert "Is a directory" in errors[2]


def test_an_archive_is_opened_once_for_all_its_images_and_closed_after_the_last(
    classifier, folder, tmp_path, monkeypatch
):
    archive = tmp_path / "cells.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(100):
            file.write(folder / "a" / "1.png", f"{number:03d}.png")
    opened = []
    right = sources.open_file

    def counted(name):
        file = right(name)
        opened.append(weakref.ref(file))
        return file

    monkeypatch.setattr(sources, "open_file", counted)
    predict(classifier, [str(archive)], tmp_path / "out.csv")
    assert len(opened) <= 4  # three times for the names in it, once for all images
    gc.collect()
    assert not any(file() for file in opened)
    table = table_of(tmp_path / "out.csv")
    assert set(table["sha256"]) == {sha256_of_file(folder / "a" / "1.png")}
    # Its table is a list, too.
    again = list(sources_of([f"@{_as_list(table, tmp_path)}"]))
    assert [one.name for one in again] == list(table["path"])
    assert again[7].read() == (folder / "a" / "1.png").read_bytes()


def _as_list(table: pd.DataFrame, folder: Path) -> Path:
    table.to_parquet(folder / "list.parquet")
    return folder / "list.parquet"


def test_a_damaged_archive_has_a_row_with_its_error_and_the_others_are_answered(classifier, folder, tmp_path):
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(b"PK\x03\x04 and no more")
    outcome = predict(classifier, [str(damaged), str(folder)], tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert outcome.rows == len(table) > 1
    (row,) = table[table["path"] == str(damaged)].to_dict("records")
    assert row["verdict"] == "error"
    assert "is damaged or locked inside its archive" in row["error"]
    assert (table["verdict"] != "error").any()


def _with_a_damaged_member(content: bytes) -> bytes:
    at = content.index(b"1.png") + 100  # amid what is compressed
    return content[:at] + b"\xff" * 50 + content[at + 50 :]


@pytest.mark.parametrize(
    ("damage", "rows", "said"),
    [
        (_with_a_damaged_member, 2, "Corrupt input data"),
        (
            lambda content: content.replace(b"PK\x01\x02\x3f\x03\x3f", b"PK\x01\x02\x3f\x03\xff"),
            1,
            "version 25.5",
        ),
        (lambda content: content.replace("\u00e4".encode(), b"\xff\xff"), 1, "'utf-8' codec"),
    ],
    ids=["a member", "the version", "a name"],
)
def test_whatever_is_wrong_with_an_archive_it_has_a_row_and_the_others_are_answered(
    classifier, folder, tmp_path, damage, rows, said
):
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(damaged, "w", zipfile.ZIP_LZMA) as archive:
        for name in ("1.png", "\u00e4.png"):
            archive.write(folder / "a" / "1.png", name)
    content = damaged.read_bytes()
    damaged.write_bytes(damage(content))
    assert damaged.read_bytes() != content
    outcome = predict(classifier, [str(damaged), str(folder / "a")], tmp_path / "out.csv")
    assert (outcome.rows, outcome.errors) == (rows + 2, 1)
    error = table_of(tmp_path / "out.csv")["error"][0]
    assert "is damaged or locked inside its archive" in error
    assert said in error


def test_archives_lists_patterns_and_standard_input_are_read(folder, tmp_path, monkeypatch):
    archive = tmp_path / "cells.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("x/2.png", "1.png", "__MACOSX/1.png", "readme.txt"):
            file.write(folder / "a" / "1.png", name)
    found = list(sources_of([str(archive)]))
    assert [source.name for source in found] == [f"{archive}/1.png", f"{archive}/x/2.png"]
    assert found[0].read() == (folder / "a" / "1.png").read_bytes()
    named = tmp_path / "list.txt"
    named.write_text(f"{folder}/c.bmp\n\n{folder}/missing.png\n")
    expected = [f"{folder}/c.bmp", f"{folder}/missing.png"]
    assert [source.name for source in sources_of([f"@{named}"])] == expected
    monkeypatch.setattr("sys.stdin", io.StringIO(named.read_text()))
    assert [source.name for source in sources_of(["-"])] == expected
    assert [Path(source.name).name for source in sources_of([f"{folder}/a/*"])] == ["1.png", "10.jpg"]


@pytest.mark.parametrize(
    ("pattern", "right"),
    [
        ("**", ["c.bmp", "a/1.png", "a/10.jpg", "b/2.png", "b/damaged.png", "b/more.zip/1.png"]),
        (
            "**/*",
            ["a/1.png", "a/10.jpg", "b/2.png", "b/damaged.png", "b/more.zip/1.png", "c.bmp", "notes.txt"],
        ),
        ("**/*.png", ["a/1.png", "b/2.png", "b/damaged.png"]),
        ("[ab]*/**/[12]*", ["a/1.png", "a/10.jpg", "b/2.png"]),
        ("*", ["a/1.png", "a/10.jpg", "b/2.png", "b/damaged.png", "c.bmp", "notes.txt"]),
    ],
)
def test_what_fits_a_pattern_comes_once_and_folders_without_images_are_passed_over(folder, pattern, right):
    (folder / "empty.zip").mkdir()
    with zipfile.ZipFile(folder / "b" / "more.zip", "w") as archive:
        archive.write(folder / "a" / "1.png", "1.png")
    names = [source.name.removeprefix(f"{folder}/") for source in sources_of([f"{folder}/{pattern}"])]
    assert names == right
    with pytest.raises(UsageError, match=r"empty\*: holds no images"):
        list(sources_of([f"{folder}/empty*"]))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_that_fit_a_pattern_double_nothing_and_one_that_leads_nowhere_is_an_error(folder):
    (folder / "aa").symlink_to(folder / "b", target_is_directory=True)
    for pattern, right in (
        ("[ab]*", ["a/1.png", "a/10.jpg", "aa/2.png", "aa/damaged.png"]),
        ("*/2.png", ["aa/2.png"]),
        ("**/2.png", ["aa/2.png"]),
    ):
        found = sources_of([f"{folder}/{pattern}"])
        assert [source.name.removeprefix(f"{folder}/") for source in found] == right
    (folder / "away.png").symlink_to(folder / "no.png")
    (source,) = sources_of([f"{folder}/aw*.png"])
    assert "No such file" in predicting.image_of(source)[2]


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory")
def test_a_hundred_thousand_rows_take_the_memory_of_ten_thousand(tmp_path):
    pytest.importorskip("openvino")
    sys.path.insert(0, str(PROJECT / "benchmarks"))
    from inference_memory import MOST_GROWTH_MIB, measure

    found = measure(100_000, "openvino", tmp_path)
    assert found["growth_mib"] <= MOST_GROWTH_MIB
    assert (tmp_path / "out.csv").read_text().count("\n") == 100_001


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "no such file"),
        ("*.gif", "no file fits"),
        ("@missing", "list of names"),
        ("empty", "holds no"),
    ],
)
def test_what_leads_to_nothing_is_refused_by_name(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=said):
        list(sources_of([name]))


def test_the_command_ends_with_1_and_the_count_where_some_cannot_be_read(classifier, folder, tmp_path):
    save_model(tmp_path / "model.pth", classifier.model)
    command = ["predict", "-", "--model", str(tmp_path / "model.pth"), "--out", str(tmp_path / "out.csv")]
    lines = f"{folder}/c.bmp\n{folder}/missing.png\n"
    result = CliRunner().invoke(app, command, input=lines)
    assert result.exit_code == 1, result.output
    assert "2 images, 1 of which could not be read" in result.output
    assert RESEARCH_USE_ONLY in result.output
    assert "carries no calibration" in result.output
    one = CliRunner().invoke(app, [*command, "--force"], input=f"{folder}/c.bmp\n")
    assert one.exit_code == 0
    assert "out.csv: 1 image\n" in one.output
    again = CliRunner().invoke(app, command, input=lines)
    assert again.exit_code == 2
    assert "is there already" in again.output
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["cells", "model.pth", "out.csv", "out.csv.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="it allows no such names")
def test_names_on_standard_input_are_taken_as_they_are(classifier, folder, tmp_path, monkeypatch):
    image = (folder / "c.bmp").read_bytes()
    for name in ("a\tb.bmp", "q\x1f\u0085.bmp", "\u00e4\\n.bmp"):
        (folder / name).write_bytes(image)
    with zipfile.ZipFile(folder / "t\tu.zip", "w") as archive:
        archive.writestr("v\tw.bmp", image)
    names = [str(path) for path in folder.glob("*.bmp")]
    names += [f"{folder}/t\tu.zip/v\tw.bmp", "x\ry.bmp", "\udcff.bmp"]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{name}\n" for name in names), newline="\n"))
    assert predict(classifier, ["-"], tmp_path / "out.csv").errors == 2
    table = table_of(tmp_path / "out.csv")
    assert list(table["path"]) == [sources.shown(name) for name in names]
    assert set(table["sha256"][:-2]) == {sha256_of_file(folder / "c.bmp")}


@pytest.mark.parametrize("place", ["C.ZIP", "c.Zip", "folder.zip/c.zip"])
def test_what_a_table_says_of_an_archives_image_can_be_read_back_however_it_is_spelt(folder, tmp_path, place):
    archive = tmp_path / place
    archive.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.write(folder / "a" / "1.png", "d/1.png")
    (first,) = sources_of([str(archive)])
    (tmp_path / "list.txt").write_text(f"{first.name}\n{tmp_path}/{'long' * 99}.zip/1.png\n")
    again, _ = sources_of([f"@{tmp_path}/list.txt"])
    assert again == first
    assert again.read() == (folder / "a" / "1.png").read_bytes()


@pytest.mark.parametrize("name", ["-", "@empty.txt"])
def test_no_image_at_all_is_refused_and_nothing_is_written(classifier, tmp_path, monkeypatch, name):
    save_model(tmp_path / "model.pth", classifier.model)
    (tmp_path / "empty.txt").touch()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["predict", name, "--model", "model.pth", "--out", "out.csv"], input="")
    assert result.exit_code == 2
    assert "There is no image to classify" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "model.pth"]


def test_a_list_that_is_named_like_an_image_is_told_how_lists_are_named(tmp_path):
    (tmp_path / "names.txt").write_text("a.png\n")
    (source,) = sources_of([str(tmp_path / "names.txt")])
    assert predicting.image_of(source)[2].endswith(f"or name a list of images as @{source.name}.")


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_the_weights_are_hashed_once_for_the_file_the_engine_and_the_table(
    classifier, folder, tmp_path, monkeypatch, engine
):
    save_model(tmp_path / "model.pth", classifier.model)
    monkeypatch.setenv("CERVICYTE_CACHE", str(tmp_path / "cache"))
    hashed = []
    right = model_file._hash_of

    def counted(state):
        hashed.append(len(state))
        return right(state)

    monkeypatch.setattr(model_file, "_hash_of", counted)
    answerer = Classifier.from_file(tmp_path / "model.pth", "cpu", engine)
    predict(answerer, [str(folder)], tmp_path / "out.csv")
    weights = len(classifier.model.network.state_dict())
    assert hashed.count(weights) == 1
    about = json.loads((tmp_path / "out.csv.json").read_text())
    assert about["weights_sha256"] == right(classifier.model.network.state_dict())


@pytest.mark.parametrize(("unlike", "said"), [(0, False), (2, False), (3, True)])
def test_many_images_unlike_the_training_cells_speak_of_another_laboratory(unlike, said):
    verdicts = Counter({"answer": 10 - unlike, "unlike_training": unlike, "error": 90})
    notes = list(predicting._notes_on(verdicts))
    assert bool(notes) == said
    assert not said or notes[0].startswith("30% of the images are unlike")
