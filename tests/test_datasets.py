"""Data sets: every cell is found once, nothing else is counted, and what belongs together is known."""

from __future__ import annotations

import csv
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, needs_shared
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cervicyte.datasets import layouts
from cervicyte.datasets.classes import (
    HERLEV_CLASSES,
    PUBLISHED_CELLS,
    SIPAKMED_CLASSES,
    grouping_of,
    known_class,
    proper_names,
)
from cervicyte.datasets.groups import join_equal_contents, sipakmed_field_groups
from cervicyte.datasets.inspection import _images_under, inspect_dataset
from cervicyte.datasets.layouts import Cell, evenly_spaced, read_dataset, read_images_or_dataset
from cervicyte.datasets.synthetic import write_dataset
from cervicyte.errors import DatasetError

SIPAKMED_FOLDERS = [
    "im_Dyskeratotic",
    "im_Koilocytotic",
    "im_Metaplastic",
    "im_Parabasal",
    "im_Superficial-Intermediate",
]
HERLEV_FOLDERS = [
    "carcinoma_in_situ",
    "light_dysplastic",
    "moderate_dysplastic",
    "normal_columnar",
    "normal_intermediate",
    "normal_superficiel",
    "severe_dysplastic",
]


def write_files(root: Path, *names: str) -> Path:
    """Write files that are told apart by their content: no reader may need to decode them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}", errors="backslashreplace")
    return root


def archive(root: Path, outer: bool = True) -> Path:
    """Write the published archive's layout: in each class two fields of two cells, with contours."""
    for folder in SIPAKMED_FOLDERS:
        inner = f"{folder}/{folder}" if outer else folder
        for number in ("001", "002"):
            write_files(root, f"{inner}/{number}.bmp")
            for cell in ("01", "02"):
                write_files(
                    root,
                    f"{inner}/{number}_cyt{cell}.dat",
                    f"{inner}/{number}_nuc{cell}.dat",
                    f"{inner}/CROPPED/{number}_{cell}.bmp",
                    f"{inner}/CROPPED/{number}_{cell}_cyt.dat",
                    f"{inner}/CROPPED/{number}_{cell}_nuc.dat",
                )
    return root


def refusal_of(root: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        read_dataset(root)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert str(root) in text
    return text


# --- classes ---------------------------------------------------------------------------------------


def test_the_published_counts_add_up():
    assert sum(PUBLISHED_CELLS["SIPaKMeD"].values()) == 4049
    assert sum(PUBLISHED_CELLS["Herlev"].values()) == 917
    assert set(PUBLISHED_CELLS["SIPaKMeD"]) == {one.name for one in SIPAKMED_CLASSES}
    assert set(PUBLISHED_CELLS["Herlev"]) == {one.name for one in HERLEV_CLASSES}


def test_superficial_and_parabasal_are_normal_and_metaplastic_is_benign():
    assert grouping_of([one.name for one in SIPAKMED_CLASSES]) == {
        "Dyskeratotic": "abnormal",
        "Koilocytotic": "abnormal",
        "Metaplastic": "benign",
        "Parabasal": "normal",
        "Superficial-Intermediate": "normal",
    }
    assert Counter(grouping_of(HERLEV_FOLDERS).values()) == {"normal": 3, "abnormal": 4}
    assert grouping_of(["Metaplastic", "HSIL"]) == {"Metaplastic": "benign", "HSIL": None}


@given(
    st.sampled_from([*SIPAKMED_FOLDERS, *HERLEV_FOLDERS]),
    st.sampled_from(["", " ", "_", "-", "."]),
    st.sampled_from([str.lower, str.upper, str.title, str]),
)
def test_a_class_is_recognised_in_any_case_and_with_any_separators(folder, separator, case):
    data_set = "SIPaKMeD" if folder.startswith("im_") else "Herlev"
    written = case(re.sub("[_-]", separator, folder))
    assert known_class(data_set, written) == known_class(data_set, folder) is not None


def test_names_are_made_proper_only_where_all_are_known():
    assert proper_names(["im_Parabasal", "Metaplastic"]) == (
        "SIPaKMeD",
        {"im_Parabasal": "Parabasal", "Metaplastic": "Metaplastic"},
    )
    assert proper_names(["im_Parabasal", "other"]) is None
    assert proper_names(["im_Parabasal", "light_dysplastic"]) is None


# --- SIPaKMeD's archive ----------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [True, False], ids=["im_X/im_X", "im_X"])
def test_only_crops_of_the_archive_are_cells(tmp_path, outer):
    dataset = read_dataset(archive(tmp_path, outer))
    assert len(dataset.cells) == 5 * 2 * 2
    assert all("CROPPED" in cell.name for cell in dataset.cells)
    assert dataset.layout == "SIPaKMeD's archive"
    assert dataset.known == "SIPaKMeD"
    assert dataset.classes == tuple(sorted(one.name for one in SIPAKMED_CLASSES))
    assert any("10 whole fields" in warning for warning in dataset.warnings)
    assert any("20 of 4,049 cells" in warning for warning in dataset.warnings)
    assert not any(".dat" in warning for warning in dataset.warnings)


def test_names_are_relative_to_the_root_and_sorted(tmp_path):
    dataset = read_dataset(archive(tmp_path))
    names = [cell.name for cell in dataset.cells]
    assert names == sorted(names)
    assert names[0] == "im_Dyskeratotic/im_Dyskeratotic/CROPPED/001_01.bmp"
    assert all(dataset.root / cell.name == cell.path and cell.path.is_file() for cell in dataset.cells)


def test_crops_beside_cropped_are_refused(tmp_path):
    write_files(archive(tmp_path), "im_Parabasal/im_Parabasal/009_01.bmp")
    assert "009_01.bmp" in refusal_of(tmp_path)


@pytest.mark.parametrize("folder", ["im_Parabasal", "im_Parabasal/im_Parabasal/CROPPED"])
def test_fields_among_the_crops_are_refused(tmp_path, folder):
    root = tmp_path
    if "CROPPED" in folder:
        archive(root)
    else:
        write_files(root, "im_Metaplastic/001_01.bmp", "im_Parabasal/001_01.bmp")
    write_files(root, f"{folder}/001.bmp")
    assert "whole fields (001.bmp" in refusal_of(root)


def test_fields_in_place_of_the_crops_are_refused_by_their_contours(tmp_path):
    write_files(tmp_path, "im_Metaplastic/001_01.bmp", "im_Parabasal/001.bmp", "im_Parabasal/001_cyt01.dat")
    assert "whole fields" in refusal_of(tmp_path)


def test_fields_in_place_of_the_crops_are_refused_by_their_size(tmp_path):
    write_files(tmp_path, "im_Metaplastic/001_01.bmp", "im_Parabasal/.keep")
    Image.fromarray(np.zeros((1536, 2048), np.uint8)).save(tmp_path / "im_Parabasal/001.png")
    assert "whole fields" in refusal_of(tmp_path)


def test_own_cells_with_numbers_for_names_are_cells(tmp_path):
    write_files(tmp_path, "Metaplastic/001.png", "Parabasal/001.png", "Parabasal/002.png")
    dataset = read_dataset(tmp_path)
    assert len(dataset.cells) == 3
    assert dataset.classes == ("Metaplastic", "Parabasal")
    assert dataset.known is None


# --- class folders ---------------------------------------------------------------------------------


def test_masks_of_herlev_are_not_cells(tmp_path):
    for folder in HERLEV_FOLDERS:
        for number in ("001", "002"):
            stem = f"{folder}/149056321-149056343-{number}"
            write_files(tmp_path, f"{stem}.BMP", f"{stem}-d.bmp")
    dataset = read_dataset(tmp_path)
    assert len(dataset.cells) == 14
    assert dataset.known == "Herlev"
    assert "Carcinoma in situ" in dataset.classes
    assert any("14 masks" in warning for warning in dataset.warnings)


def test_a_mask_of_herlev_without_its_cell_is_refused(tmp_path):
    write_files(tmp_path, *(f"{folder}/149056321-149056343-001.png" for folder in HERLEV_FOLDERS))
    write_files(tmp_path, "normal_columnar/149056321-149056343-002-d.bmp")
    assert "149056321-149056343-002-d.bmp" in refusal_of(tmp_path)


def test_a_name_that_merely_ends_in_d_is_a_cell(tmp_path):
    write_files(tmp_path, *(f"{folder}/cell-{letter}.png" for folder in "xy" for letter in "abcd"))
    assert len(read_dataset(tmp_path).cells) == 8


def test_a_frame_of_herlev_is_one_group_over_all_classes(tmp_path):
    write_files(
        tmp_path,
        "normal_superficiel/209307421-209307597-001.png",
        "normal_intermediate/209307421-209307504-001.png",
        "normal_intermediate/149053945-149053969-001.png",
    )
    groups = {cell.name[-17:]: cell.group for cell in read_dataset(tmp_path).cells}
    assert len(set(groups.values())) == 2
    assert groups["209307597-001.png"] == groups["209307504-001.png"] == "frame:209307421"


def test_classes_of_other_data_keep_the_names_of_their_folders(tmp_path):
    write_files(tmp_path, "NILM/a.png", "LSIL/b.jpg", "HSIL/c.tif")
    dataset = read_dataset(tmp_path)
    assert dataset.classes == ("HSIL", "LSIL", "NILM")
    assert dataset.known is None
    assert len({cell.group for cell in dataset.cells}) == 3
    assert any("not known what belongs together" in warning for warning in dataset.warnings)


def test_one_strange_folder_among_known_ones_is_named(tmp_path):
    write_files(tmp_path, *(f"{folder}/001_01.png" for folder in [*SIPAKMED_FOLDERS, "leftovers"]))
    dataset = read_dataset(tmp_path)
    assert "leftovers" in dataset.classes
    assert "im_Parabasal" in dataset.classes
    assert any("'leftovers' is not a class of SIPaKMeD" in warning for warning in dataset.warnings)


def test_two_folders_of_one_class_are_refused(tmp_path):
    write_files(tmp_path, "im_Parabasal/001_01.png", "parabasal/002_01.png", "im_Metaplastic/001_01.png")
    assert "are all Parabasal" in refusal_of(tmp_path)


def test_a_cell_in_two_formats_is_refused(tmp_path):
    write_files(tmp_path, "x/001_01.bmp", "x/001_01.jpg", "y/001_01.bmp")
    text = refusal_of(tmp_path)
    assert "x/001_01.bmp" in text
    assert "x/001_01.jpg" in text


def test_other_files_are_left_out_and_said_so(tmp_path):
    write_files(tmp_path, "x/a.png", "x/Thumbs.db", "x/._a.png", "y/b.png", "README.txt", ".git/z/c.png")
    dataset = read_dataset(tmp_path)
    assert [cell.name for cell in dataset.cells] == ["x/a.png", "y/b.png"]
    assert any("3 files without an image's name" in warning for warning in dataset.warnings)


def test_an_empty_class_folder_is_named(tmp_path):
    write_files(tmp_path, "x/a.png", "y/b.png", "hollow/notes.txt")
    dataset = read_dataset(tmp_path)
    assert dataset.classes == ("x", "y")
    assert any("hollow" in warning and "no such class" in warning for warning in dataset.warnings)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["a.png"], "holds no folders"),
        (["x/a.png"], "holds only the folder 'x'"),
        (["x/a.png", "y/notes.txt"], "two classes are the least"),
        (["x/a.png", "y/patient_1/b.png"], "lies deeper"),
        (["x/a.png", "y/b.png", "masks/a.png"], "looks like masks"),
        (["train/x/a.png", "train/y/b.png", "z/c.png"], "a class cannot be told from a part"),
    ],
)
def test_a_folder_that_cannot_be_understood_is_refused(tmp_path, files, reason):
    assert reason in refusal_of(write_files(tmp_path, *files))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_to_class_folders_are_followed_and_what_lies_too_deep_behind_one_is_refused(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write_files(data, "x/a.png", "y/b.png", "y/notes/readme.txt")
    write_files(elsewhere, "z/c.png")
    (data / "z").symlink_to(elsewhere / "z", target_is_directory=True)
    (data / "y" / "notes" / "circle").symlink_to(data, target_is_directory=True)
    assert [cell.name for cell in read_dataset(data).cells] == ["x/a.png", "y/b.png", "z/c.png"]
    assert _images_under(data) == ["x/a.png", "y/b.png", "z/c.png"]
    (data / "y" / "notes" / "more").symlink_to(elsewhere, target_is_directory=True)
    refused = refusal_of(data)
    assert "y/notes/more/z/c.png: lies deeper" in refused


def test_a_missing_folder_is_refused(tmp_path):
    assert "no such folder" in refusal_of(tmp_path / "nowhere")


ELSEWHERE = pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")


@ELSEWHERE
@pytest.mark.parametrize("name", ["x/\udcff.png", "\udce9/a.png"])
def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_made_of_it(tmp_path, name):
    write_files(tmp_path, "x/1.png", "y/2.png", name)
    shown = str(tmp_path / name).replace("\udcff", r"\udcff").replace("\udce9", r"\udce9")
    looks = [
        lambda: read_dataset(tmp_path),
        lambda: read_images_or_dataset(tmp_path),
        lambda: read_images_or_dataset((tmp_path / name).parent),
        lambda: read_images_or_dataset(tmp_path / name),
        lambda: inspect_dataset(tmp_path, tmp_path / "out"),
        lambda: inspect_dataset((tmp_path / name).parent, tmp_path / "out"),  # is listed though refused
    ]
    for look in looks:
        with pytest.raises(DatasetError) as caught:
            look()
        assert str(caught.value).startswith(f"{shown}: the name is not UTF-8")
        assert str(caught.value).endswith("rename the file or folder.")
    assert not (tmp_path / "out").exists()


@ELSEWHERE
def test_a_file_that_is_left_out_may_have_any_name_and_is_named_with_escapes(tmp_path):
    write_files(tmp_path, "x/1.png", "y/2.png", "y/r\udce9sum\udce9.txt")
    (warning,) = (one for one in read_dataset(tmp_path).warnings if "left out" in one)
    assert r"y/r\udce9sum\udce9.txt" in warning


def test_part_folders_become_parts(tmp_path):
    for part in ("train", "val", "test"):
        write_files(tmp_path, f"{part}/x/{part}1.png", f"{part}/y/{part}2.png")
    dataset = read_dataset(tmp_path)
    assert Counter(cell.part for cell in dataset.cells) == {"train": 2, "validation": 2, "test": 2}
    assert dataset.classes == ("x", "y")


def test_a_part_folder_may_hold_the_archive(tmp_path):
    for part in ("train", "test"):
        archive(tmp_path / part)
    dataset = read_dataset(tmp_path)
    assert len(dataset.cells) == 40
    assert len({cell.group for cell in dataset.cells if cell.label == "Parabasal"}) == 2


# --- groups ----------------------------------------------------------------------------------------


def test_the_shipped_table_joins_966_fields_into_758_groups():
    table = sipakmed_field_groups()
    assert len(table) == 966
    assert len(set(table.values())) == 758
    per_class = Counter(label for label, _ in table)
    assert per_class == {
        "Superficial-Intermediate": 126,
        "Parabasal": 108,
        "Koilocytotic": 238,
        "Metaplastic": 271,
        "Dyskeratotic": 223,
    }


def test_cells_that_carry_two_labels_are_in_one_group():
    table = sipakmed_field_groups()
    assert table["Koilocytotic", 16] == table["Metaplastic", 171] == table["Metaplastic", 94]
    assert table["Koilocytotic", 17] == table["Metaplastic", 96]
    classes_of = {
        group: {label for (label, _), other in table.items() if other == group} for group in table.values()
    }
    assert sum(len(classes) == 2 for classes in classes_of.values()) == 6


def test_fields_that_overlap_are_one_group_unless_told_otherwise(tmp_path):
    write_files(
        tmp_path, "im_Koilocytotic/016_01.bmp", "im_Metaplastic/171_01.bmp", "im_Metaplastic/001_01.bmp"
    )
    koilocyte, other, metaplastic = (cell.group for cell in read_dataset(tmp_path).cells)
    assert koilocyte == metaplastic != other
    apart = read_dataset(tmp_path, known_groups=False)
    assert [cell.group for cell in apart.cells] == [cell.field for cell in apart.cells]
    assert len({cell.group for cell in apart.cells}) == 3
    assert any("overlapping fields are not joined" in warning for warning in apart.warnings)


def test_a_field_that_sipakmed_does_not_have_stands_alone_with_a_warning(tmp_path):
    write_files(tmp_path, "im_Parabasal/001_01.png", "im_Metaplastic/001_01.png", "im_Parabasal/900_01.png")
    dataset = read_dataset(tmp_path)
    assert dataset.cells[-1].group == "image:im_Parabasal/900_01.png"
    assert any("1 of 3 images (such as im_Parabasal/900_01.png)" in warning for warning in dataset.warnings)


def test_field_numbers_of_other_data_group_within_the_class(tmp_path):
    write_files(tmp_path, "x/12_1.png", "x/012_2.png", "y/12_1.png", "y/13_1.png")
    dataset = read_dataset(tmp_path)
    assert [cell.group for cell in dataset.cells] == [
        "x/field:012",
        "x/field:012",
        "y/field:012",
        "y/field:013",
    ]
    assert any("number before the `_`" in warning for warning in dataset.warnings)


def test_drawn_cells_are_not_taken_for_sipakmed(tmp_path):
    dataset = read_dataset(write_dataset(tmp_path, cells=10, seed=0))
    assert dataset.known is None
    assert not any(cell.group.startswith("sipakmed:") for cell in dataset.cells)
    assert any("10 of 10 cells are drawn" in warning for warning in dataset.warnings)


def test_equal_contents_are_one_group_also_across_classes(tmp_path):
    write_files(tmp_path, "x/a.png", "x/b.png", "y/c.png", "y/d.png")
    (tmp_path / "y/c.png").write_bytes((tmp_path / "x/a.png").read_bytes())
    dataset = read_dataset(tmp_path)
    group = {cell.path.stem: cell.group for cell in dataset.cells}
    assert group["a"] == group["c"]
    assert len(set(group.values())) == 3
    assert any("1 image carries two labels" in warning for warning in dataset.warnings)


@given(data=st.data(), count=st.integers(1, 12))
def test_joined_groups_are_the_connected_parts_of_groups_and_contents(tmp_path_factory, data, count):
    """Oracle: spread the smallest index along shared groups and contents until nothing changes."""
    groups = data.draw(st.lists(st.sampled_from("abcdef"), min_size=count, max_size=count))
    contents = data.draw(st.lists(st.sampled_from("uvwxyz"), min_size=count, max_size=count))
    folder = tmp_path_factory.mktemp("equal")
    paths = [folder / str(index) for index in range(count)]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    joined, _ = join_equal_contents(paths, groups, ["label"] * count)

    expected = list(range(count))
    for _ in range(count):
        for keys in (groups, contents):
            smallest: dict[str, int] = {}
            for key, mark in zip(keys, expected, strict=True):
                smallest[key] = min(mark, smallest.get(key, mark))
            expected = [smallest[key] for key in keys]
    for first in range(count):
        for second in range(count):
            assert (joined[first] == joined[second]) == (expected[first] == expected[second])


# --- manifests -------------------------------------------------------------------------------------


def manifest(root: Path, text: str, *files: str) -> Path:
    write_files(root, *files)
    path = root / "cells.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest_gives_labels_groups_and_parts(tmp_path, suffix):
    write_files(tmp_path, "one.png", "deep/two.png", "deep/three.png")
    table = pd.DataFrame(
        {
            "path": ["one.png", "deep/two.png", "deep\\three.png"],
            "label": ["im_Parabasal", "im_Parabasal", "im_Metaplastic"],
            "group": [7, 8, 8],
            "split": ["train", "val", "Test"],
        }
    )
    path = tmp_path / f"cells{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    dataset = read_dataset(path)
    assert [(cell.name, cell.label, cell.group, cell.part) for cell in dataset.cells] == [
        ("deep/three.png", "Metaplastic", "8", "test"),
        ("deep/two.png", "Parabasal", "8", "validation"),
        ("one.png", "Parabasal", "7", "train"),
    ]
    assert dataset.root == tmp_path
    assert dataset.warnings == ()


def test_a_manifest_without_groups_takes_them_from_the_table_or_says_so(tmp_path):
    known = manifest(
        tmp_path, "path,label\n171_01.png,Metaplastic\n016_01.png,Koilocytotic\n", "171_01.png", "016_01.png"
    )
    assert len({cell.group for cell in read_dataset(known).cells}) == 1
    other = manifest(tmp_path, "path,label,groups\na.png,x,1\nb.png,y,1\n", "a.png", "b.png")
    dataset = read_dataset(other)
    assert len({cell.group for cell in dataset.cells}) == 2
    assert any("'groups' are not used" in warning for warning in dataset.warnings)
    assert any("every image" in warning for warning in dataset.warnings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,label\na.png,x\n", "has no column 'path'"),
        ("path\na.png\n", "has no column 'label'"),
        ("path,label\na.png,x\nb.png,\n", "row 3: 'label' is empty"),
        ("path,label\n\na.png,x\n,y\n", "row 4: 'path' is empty"),
        ("path,label,group\na.png,x,1\nb.png,y,\n", "row 3: 'group' is empty"),
        ("path,label\na.png,x\nnone.png,y\n", "row 3: there is no file none.png"),
        ("path,label\na.png,x\nb.png,y\n./a.png,x\n", "row 4: a.png stands already in row 2"),
        ("path,label\na.png,x\nsub/../a.png,y\n", "stands already in row 2"),
        ("path,label\na.png,x\n/b.png,y\n", "row 3: the path /b.png is absolute"),
        ("path,label,split\na.png,x,train\nb.png,y,dev\n", "row 3: split 'dev'"),
        ("path,label\na.png,x\nnotes.txt,y\n", "row 3: notes.txt has no image's ending"),
        ("path,label\na.png,x\nb.png,x\n", "two classes are the least"),
        ("path,label\n", "two classes are the least"),
        ("path,label\na.png,b.png,x\nb.png,a.png,y\n", "more values than there are columns"),
        ("path,label\na.png,x\nb.png,y,z\n", "cannot be read as a csv table"),
        ("path,label\na.png,x\na-d.png,x\nb.png,y\n", "names masks as cells"),
        ("path,label\n001_01.png,x\n001.png,x\nb.png,y\n", "names whole fields as cells"),
        ('path,label\n"a.png,x\n', "cannot be read as a csv table"),
        ("", "cannot be read as a csv table"),
        ("path,label,label\na.png,x,y\nb.png,y,x\n", "has a column twice ('path', 'label', 'label')"),
        ("path, path,label,,\na.png,b.png,x,,\n", "has a column twice ('path', 'path', 'label')"),
        ("path,label\na.png,x\na\0b.png,y\n", "cannot be read as a csv table (it holds a zero byte)"),
        (f"{'path' * 50_000},label\na.png,x\n", "cannot be read as a csv table (field larger"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_by_its_row(tmp_path, text, reason):
    files = ["a.png", "b.png", "a-d.png", "001.png", "001_01.png", "notes.txt", "sub/c.png"]
    assert reason in refusal_of(manifest(tmp_path, text, *files))


def test_nameless_columns_are_no_column_twice(tmp_path):
    commas = manifest(tmp_path, "path,label,,\na.png,x,,\nb.png,y,,\n", "a.png", "b.png")
    assert [cell.label for cell in read_dataset(commas).cells] == ["x", "y"]


def test_files_that_are_no_manifest_are_refused(tmp_path):
    write_files(tmp_path, "cells.xlsx", "cells.parquet")
    (tmp_path / "cells.csv").write_bytes(b"path,label\n\xff\xfe\x00,x\n")
    assert "neither a folder nor a manifest" in refusal_of(tmp_path / "cells.xlsx")
    assert "cannot be read as a parquet table" in refusal_of(tmp_path / "cells.parquet")
    assert "save it anew as UTF-8" in refusal_of(tmp_path / "cells.csv")


# --- what there is to be looked at -----------------------------------------------------------------


def test_an_image_a_folder_of_images_and_a_data_set_can_all_be_looked_at(tmp_path):
    write_files(tmp_path, *(f"{folder}/{number}.png" for folder in "xy" for number in range(9)))
    assert read_images_or_dataset(tmp_path / "x/3.png") == [tmp_path / "x/3.png"]
    assert read_images_or_dataset(tmp_path / "x") == [tmp_path / f"x/{number}.png" for number in range(9)]
    cells = read_images_or_dataset(tmp_path)
    assert [cell.label for cell in cells if isinstance(cell, Cell)] == ["x"] * 9 + ["y"] * 9
    assert evenly_spaced(range(9), 3) == [0, 3, 6]
    assert evenly_spaced(range(3), 9) == [0, 1, 2]


def test_herlevs_masks_are_not_looked_at_as_cells(tmp_path):
    write_files(tmp_path, "149143370-149143378-001.BMP", "149143370-149143378-001-d.bmp")
    assert read_images_or_dataset(tmp_path) == [tmp_path / "149143370-149143378-001.BMP"]


def test_where_there_is_nothing_to_look_at_images_are_named_among_what_could_be_given(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.png: there is no such image, folder or manifest"):
        read_images_or_dataset(tmp_path / "nowhere.png")
    write_files(tmp_path / "texts", "notes.txt")
    with pytest.raises(DatasetError, match=r"texts: holds no image and no folder; give an image"):
        read_images_or_dataset(tmp_path / "texts")


# --- the real cells --------------------------------------------------------------------------------


@needs_shared
def test_the_real_sipakmed_cells_are_3445_of_627_groups():
    began = time.process_time()
    dataset = read_dataset(SHARED / "data/sipakmed")
    assert time.process_time() - began < 3  # seconds; no image is decoded
    assert dataset.known == "SIPaKMeD"
    assert Counter(cell.label for cell in dataset.cells) == {
        "Dyskeratotic": 692,
        "Koilocytotic": 702,
        "Metaplastic": 675,
        "Parabasal": 669,
        "Superficial-Intermediate": 707,
    }
    assert len({cell.group for cell in dataset.cells}) == 627
    assert len({cell.field for cell in dataset.cells}) == 803
    assert any("3,445 of 4,049 cells" in warning for warning in dataset.warnings)


@needs_shared
def test_the_real_archive_has_as_many_cells_as_crops():
    root = SHARED / "data/sipakmed_original_sample"
    dataset = read_dataset(root)
    assert len(dataset.cells) == sum(1 for _ in root.rglob("CROPPED/*.bmp")) > 0
    assert dataset.layout == "SIPaKMeD's archive"


@needs_shared
def test_a_cell_of_the_archive_has_the_group_that_its_flat_copy_has():
    of_copy = {
        (cell.label, cell.path.stem): cell.group for cell in read_dataset(SHARED / "data/sipakmed").cells
    }
    cells = read_dataset(SHARED / "data/sipakmed_original_sample").cells
    shared = [cell for cell in cells if (cell.label, cell.path.stem) in of_copy]
    assert shared
    assert all(cell.group == of_copy[cell.label, cell.path.stem] for cell in shared)


@needs_shared
def test_the_real_herlev_cells_are_467_of_161_frames():
    dataset = read_dataset(SHARED / "data/herlev")
    assert dataset.known == "Herlev"
    assert len(dataset.cells) == 467
    assert len(dataset.classes) == 7
    assert len({cell.group for cell in dataset.cells}) == 161


@needs_shared
def test_the_shipped_table_is_the_shared_one():
    with open(SHARED / "data/sipakmed_field_groups.csv") as file:
        rows = list(csv.DictReader(file))
    table = sipakmed_field_groups()
    assert len(rows) == len(table)
    for row in rows:
        label = known_class("SIPaKMeD", row["class"])
        assert label is not None
        assert table[label.name, int(row["field"])] == row["group"]


def test_an_added_layout_is_asked_first_and_held_to_what_manifests_are_held_to(tmp_path, monkeypatch):
    write_files(tmp_path / "odd", "a-1.png", "a-2.png", "b-1.png")
    (tmp_path / "other" / "x").mkdir(parents=True)

    def table(folder):
        names = sorted(path.name for path in folder.glob("?-*.png"))
        return pd.DataFrame({"path": names, "label": [name[0] for name in names]}) if names else None

    assert read_images_or_dataset(tmp_path / "odd") == sorted((tmp_path / "odd").iterdir())
    monkeypatch.setitem(layouts.LAYOUTS, "letters", table)
    dataset = read_dataset(tmp_path / "odd")
    assert (dataset.layout, [cell.label for cell in dataset.cells]) == ("letters", ["a", "a", "b"])
    assert read_images_or_dataset(tmp_path / "odd") == list(dataset.cells)
    with pytest.raises(DatasetError, match="holds only the folder"):  # None: the folder lies otherwise
        read_dataset(tmp_path / "other")
    monkeypatch.setitem(layouts.LAYOUTS, "letters", lambda folder: pd.DataFrame({"path": ["c.png"]}))
    with pytest.raises(DatasetError, match="has no column 'label'"):
        read_dataset(tmp_path / "odd")
