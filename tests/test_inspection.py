"""Each trap is found by name, nothing is found in a clean data set, and the page stands by itself."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, needs_shared
from PIL import Image
from test_twins import photographed_again

from cervicyte import cli
from cervicyte.datasets.inspection import FILES, LABEL_ERRORS_FILE, inspect_dataset
from cervicyte.datasets.inspection_findings import (
    OUTLYING,
    Addition,
    Finding,
    Inspection,
    count_findings,
    outliers,
)
from cervicyte.datasets.inspection_page import TITLES
from cervicyte.datasets.synthetic import APPEARANCES, dataset_cell
from cervicyte.datasets.synthetic_fields import draw_scene, photograph
from cervicyte.errors import DatasetError
from cervicyte.images.statistics import STATISTICS
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json

LABELS = tuple(APPEARANCES)


def write(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture(scope="session")
def drawn() -> dict[str, list[np.ndarray]]:
    return {label: [dataset_cell(label, number, 6).image for number in range(3)] for label in LABELS[:3]}


@pytest.fixture
def data(tmp_path, drawn) -> Path:
    """A clean data set of nine cells in three classes of no known data set."""
    root = tmp_path / "data"
    for place, (_, images) in enumerate(drawn.items()):
        for number, image in enumerate(images):
            write(root / f"kind {'abc'[place]}" / f"{number + 1:03d}_01.png", image)
    return root


def kinds(inspection: Inspection) -> dict[str, Finding]:
    return {finding.kind: finding for finding in inspection.findings}


def test_a_clean_data_set_has_no_findings(data, tmp_path):
    assert inspect_dataset(data, tmp_path / "out").findings == []


def test_a_record_holds_a_command_line_of_any_bytes(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["cervicyte", "inspect", "cells", "--out", "\udcff"])
    write_json(tmp_path / "record.json", provenance(cli._command_line()))
    assert r"--out '\udcff'" in json.loads((tmp_path / "record.json").read_text())["command"]


def test_each_finding_has_a_title():
    files = {function.__code__.co_filename for function in (inspect_dataset, count_findings)}
    source = "\n".join(Path(file).read_text() for file in files)
    named = set(re.findall(r'Finding\(\s*"([a-z-]+)"', source)) | set(
        re.findall(r'^ +\(?"([a-z-]+)",\s+f?"', source, re.M)
    )
    assert {"refused", "twins", "unreadable", "misnamed", "tiny"} <= named <= set(TITLES)


def test_every_unreadable_file_is_listed_not_only_the_first(data, tmp_path):
    (data / "kind a" / "100_01.png").write_bytes(b"")
    (data / "kind b" / "101_01.png").write_bytes(b"no picture")
    half = (data / "kind c" / "001_01.png").read_bytes()
    (data / "kind c" / "102_01.png").write_bytes(half[: len(half) // 2])
    inspection = inspect_dataset(data, tmp_path / "out")
    assert kinds(inspection)["unreadable"].paths == (
        "kind a/100_01.png", "kind b/101_01.png", "kind c/102_01.png",
    )  # fmt: skip
    listed = json.loads((tmp_path / "out" / "inspection.json").read_text())["unreadable"]
    assert all(one["path"] in one["reason"] for one in listed)
    assert set(kinds(inspection)) == {"unreadable"}


def test_a_data_set_of_nothing_readable_is_told_as_such(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_bytes(b"no picture")
    inspection = inspect_dataset(tmp_path / "data", tmp_path / "out")
    assert kinds(inspection)["unreadable"].paths == ("a/1.png", "b/2.png")
    assert len(pd.read_csv(tmp_path / "out" / "groups.csv")) == 2


def test_a_file_that_is_not_what_its_name_says_is_named(data, tmp_path, drawn):
    write(data / "kind a" / "100_01.jpg", dataset_cell(LABELS[0], 30, 6).image, format="PNG")
    assert kinds(inspect_dataset(data, tmp_path / "out"))["misnamed"].paths == ("kind a/100_01.jpg",)


def test_blank_and_tiny_images_are_named_and_are_nobodys_twins(data, tmp_path):
    for name in ("100_01", "101_01"):
        write(data / "kind a" / f"{name}.png", np.full((90, 90, 3), 220, np.uint8))
    write(data / "kind b" / "100_01.png", dataset_cell(LABELS[0], 9, 6).image[:12, :12])
    found = kinds(inspect_dataset(data, tmp_path / "out"))
    assert found["blank"].paths == ("kind a/100_01.png", "kind a/101_01.png")
    assert found["tiny"].paths == ("kind b/100_01.png",)
    assert not {"twins", "twins-in-one-field", "duplicate-pixels", "augmented-copies"} & set(found)


def test_the_same_file_and_the_same_pixels_are_told_apart(data, tmp_path, drawn):
    shutil.copy(data / "kind a" / "001_01.png", data / "kind a" / "100_01.png")
    write(data / "kind b" / "100_01.bmp", drawn[LABELS[1]][0])
    inspection = inspect_dataset(data, tmp_path / "out")
    assert kinds(inspection)["duplicate-files"].pairs == (("kind a/001_01.png", "kind a/100_01.png"),)
    assert kinds(inspection)["duplicate-pixels"].pairs == (("kind b/001_01.png", "kind b/100_01.bmp"),)
    groups = pd.read_csv(tmp_path / "out" / "groups.csv").set_index("path")["group"]
    assert groups["kind b/001_01.png"] == groups["kind b/100_01.bmp"]
    assert groups.nunique() == 9


def test_crops_that_share_a_part_under_two_labels_are_twins_and_no_conflict(data, tmp_path):
    """Two cells that lie side by side may well be of two classes."""
    scene = draw_scene(7, 1, 900, 900, 6)
    shots = [photograph(scene, 700, 700, seed=1)]
    shots.append(photograph(scene, 700, 700, degrees=2, blur_px=0.8, exposure=0.85, seed=2))
    write(data / "kind a" / "100_01.png", shots[0].image[200:400, 200:420])
    write(data / "kind b" / "100_01.png", shots[1].image[200:400, 310:530])
    inspection = inspect_dataset(data, tmp_path / "out")
    assert kinds(inspection)["twins"].pairs == (("kind a/100_01.png", "kind b/100_01.png"),)
    assert [twin.partial for twin in inspection.twins] == [True]
    assert "label-conflicts" not in kinds(inspection)


def test_a_twin_under_another_label_is_a_conflict_and_joins_the_groups(data, tmp_path, drawn):
    again = photographed_again(drawn[LABELS[0]][1], (0.05, -0.04), 3, 0.8, 0.9)
    write(data / "kind b" / "100_01.png", again)
    found = kinds(inspect_dataset(data, tmp_path / "out"))
    pair = ("kind a/002_01.png", "kind b/100_01.png")
    assert found["twins"].pairs == found["label-conflicts"].pairs == (pair,)
    table = pd.read_csv(tmp_path / "out" / "twins.csv")
    assert list(table.columns) == ["path_a", "path_b", "score"]
    assert table[["path_a", "path_b"]].to_numpy().tolist() == [list(pair)]
    assert table["score"].between(0.7, 1).all()
    groups = pd.read_csv(tmp_path / "out" / "groups.csv").set_index("path")["group"]
    assert groups[pair[0]] == groups[pair[1]]


def test_mirrored_copies_and_their_names_are_augmented_copies(data, tmp_path, drawn):
    write(data / "kind c" / "002_01_flip.png", np.ascontiguousarray(drawn[LABELS[2]][1][:, ::-1]))
    found = kinds(inspect_dataset(data, tmp_path / "out"))
    assert found["augmented-copies"].pairs == (("kind c/002_01.png", "kind c/002_01_flip.png"),)
    assert found["augmented-names"].paths == ("kind c/002_01_flip.png",)


def test_masks_and_fields_are_found_by_their_pixels(data, tmp_path, drawn):
    mask = np.zeros((80, 80, 3), np.uint8)
    mask[20:60, 20:60] = (0, 0, 255)
    write(data / "kind a" / "100_01.png", mask)
    field = np.random.default_rng(0).integers(0, 255, (1536, 2048, 3), np.uint8)
    write(data / "kind b" / "100_01.png", field, compress_level=0)
    found = kinds(inspect_dataset(data, tmp_path / "out"))
    assert found["masks-among-images"].paths == ("kind a/100_01.png",)
    assert found["fields-among-crops"].paths == ("kind b/100_01.png",)


def test_fields_and_masks_beside_the_cells_are_counted(tmp_path, drawn):
    """Whole fields above CROPPED: a loader that takes every image counts them."""
    root = tmp_path / "data"
    for place, label in enumerate(("Dyskeratotic", "Koilocytotic", "Metaplastic")):
        folder = root / f"im_{label}" / f"im_{label}"
        write(folder / "001.bmp", np.full((20, 20, 3), 7, np.uint8))
        write(folder / "CROPPED" / "001_01.bmp", drawn[LABELS[place]][0])
        write(folder / "CROPPED" / "001_02.bmp", drawn[LABELS[place]][1])
    found = kinds(inspect_dataset(root, tmp_path / "out"))
    assert "3 images beside the 6 cells" in found["other-images"].text
    assert found["other-images"].text.startswith("3 images beside the 6 cells are none: ")
    assert "6 cells where 4,049 were published" in found["partial-copy"].text


def test_a_refused_data_set_is_inspected_all_the_same(tmp_path, drawn):
    """Fields lie among the crops: read_dataset refuses, and here the refusal is the first finding."""
    root = tmp_path / "data"
    for place, label in enumerate(("Dyskeratotic", "Koilocytotic")):
        write(root / f"im_{label}" / "001.png", np.full((1536, 2048, 3), 9, np.uint8))
        write(root / f"im_{label}" / "001_01.png", drawn[LABELS[place]][0])
    inspection = inspect_dataset(root, tmp_path / "out")
    assert inspection.findings[0].kind == "refused"
    assert kinds(inspection)["fields-among-crops"].paths == (
        "im_Dyskeratotic/001.png", "im_Koilocytotic/001.png",
    )  # fmt: skip
    assert inspection.dataset.classes == ("Dyskeratotic", "Koilocytotic")


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.mkdir()], ids=["missing", "empty"])
def test_nothing_to_inspect_is_refused(tmp_path, make):
    make(tmp_path / "data")
    with pytest.raises(DatasetError):
        inspect_dataset(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_four_files_carry_the_notice_and_need_nothing_from_outside(data, tmp_path, drawn):
    write(data / "kind b" / "100_01.png", photographed_again(drawn[LABELS[0]][1], (0.05, 0), 2, 0.5, 1.1))
    (data / "kind a" / "<script>.png").write_bytes(b"x")
    inspect_dataset(data, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    text = (tmp_path / "out" / "inspection.html").read_text()
    assert text.count(RESEARCH_USE_ONLY) == 2
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert text.count("data:image/jpeg;base64,") >= 2
    content = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert content["notice"] == RESEARCH_USE_ONLY
    assert content["cells"] == 11
    assert set(content["statistics"]["kind a"]) == set(STATISTICS)


def test_label_errors_of_an_earlier_look_do_not_stay(data, tmp_path):
    """They go before a closer look is asked, so that an interrupted one leaves none; what it writes stays."""
    table = tmp_path / "out" / LABEL_ERRORS_FILE

    def look(_: Inspection) -> Addition:
        assert not table.exists()
        table.write_text("of this look")
        return Addition()

    for _ in range(2):
        inspect_dataset(data, tmp_path / "out", look_closer=look)
        assert table.read_text() == "of this look"
    inspect_dataset(data, tmp_path / "out")
    assert {path.name for path in table.parent.iterdir()} == set(FILES)


def test_two_runs_find_the_same(data, tmp_path, drawn):
    write(data / "kind b" / "100_01.png", photographed_again(drawn[LABELS[0]][1], (0.05, 0), 2, 0.5, 1.1))
    for out in ("one", "two"):
        inspect_dataset(data, tmp_path / out)
    for name in ("groups.csv", "twins.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_outliers_are_told_by_robust_deviations():
    values = [*np.linspace(90, 110, 21), 400.0]
    table = pd.DataFrame({"path": [f"{index}.png" for index in range(22)], "label": "a"})
    for name in STATISTICS:
        table[name] = 1.0
    table["size_px"] = values
    (found,) = outliers(table)
    middle = np.median(values)
    expected = (400 - middle) / (1.4826 * np.median(np.abs(np.array(values) - middle)))
    assert (found["path"], found["statistic"]) == ("21.png", "size_px")
    assert found["robust_deviations"] == pytest.approx(expected, abs=0.05)
    assert expected > OUTLYING


@needs_shared
def test_the_published_copies_of_real_cells_are_looked_through(tmp_path):
    inspection = inspect_dataset(SHARED / "data" / "herlev", tmp_path / "out")
    found = kinds(inspection)
    assert "467 cells where 917 were published" in found["partial-copy"].text
    assert set(found) == {"partial-copy", "twins-in-one-field"}
    assert len(inspection.statistics) == 467
