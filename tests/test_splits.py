"""Splits: nothing that belongs together stands on both sides, and a split that was changed is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, needs_shared
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cervicyte.datasets.layouts import Cell, CellDataset, read_dataset
from cervicyte.datasets.splits import (
    COLUMNS,
    PARTS,
    cells_of,
    check_split,
    leak_of,
    make_split,
    read_split,
    split_hash,
    verify_contents,
    write_split,
)
from cervicyte.errors import SplitError, UsageError
from cervicyte.provenance import RESEARCH_USE_ONLY, sha256_of_file


def dataset_of(root: Path, rows: list[tuple[str, str, str]], parts: list[str] | None = None) -> CellDataset:
    """Return a data set of (label, group, field) rows, each with a file of its own content."""
    cells = []
    for index, (label, group, field) in enumerate(rows):
        path = root / f"{index:03d}.png"
        path.write_text(f"content {index}")
        cells.append(Cell(path, path.name, label, group, field, parts[index] if parts else None))
    return CellDataset(root, "class folders", None, tuple(cells))


def two_classes(root: Path, groups: int = 10, cells_a_group: int = 3) -> CellDataset:
    """Return a data set whose groups hold two fields each where they hold two cells or more."""
    rows = [
        (label, f"{label}{group}", f"{label}{group}.{cell % 2}")
        for label in "xy"
        for group in range(groups)
        for cell in range(cells_a_group)
    ]
    return dataset_of(root, rows)


def parts_of(split: pd.DataFrame, column: str) -> pd.Series:
    return split.groupby(column)["part"].nunique()


# --- making ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), by=st.sampled_from(["group", "field", "cell"]), seed=st.integers(0, 1000))
def test_what_a_split_is_made_by_never_stands_in_two_parts(tmp_path_factory, data, by, seed):
    count = data.draw(st.integers(9, 60))
    labels = data.draw(st.lists(st.sampled_from("xyz"), min_size=count, max_size=count))
    groups = data.draw(st.lists(st.integers(0, 25), min_size=count, max_size=count))
    fields = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    assume(len(set(labels)) > 1)
    rows = [
        (label, f"g{group}", f"g{group}.{half}")
        for label, group, half in zip(labels, groups, fields, strict=True)
    ]
    dataset = dataset_of(tmp_path_factory.mktemp("cells"), rows)
    try:
        split = make_split(dataset, by=by, folds=3, seed=seed)
    except SplitError:
        return
    unit = {cell.name: cell.name if by == "cell" else getattr(cell, by) for cell in dataset.cells}
    assert parts_of(split.assign(unit=split["path"].map(unit)), "unit").max() == 1
    assert sorted(split["path"]) == [cell.name for cell in dataset.cells]
    for part in PARTS:
        assert set(split.loc[split["part"] == part, "class"]) == set(labels)
    assert list(split["group"]) == [cell.group for cell in dataset.cells]


def test_a_split_of_many_groups_succeeds(tmp_path):
    """So that the property above is not held by refusing everything."""
    split = make_split(two_classes(tmp_path), seed=3)
    assert Counter(split["part"]) == {"train": 42, "validation": 6, "test": 12}


def test_every_cell_is_tested_once_over_all_folds(tmp_path):
    dataset = two_classes(tmp_path)
    tested = [
        name for fold in range(5) for name in make_split(dataset, fold=fold).query("part == 'test'")["path"]
    ]
    assert sorted(tested) == [cell.name for cell in dataset.cells]


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_cells(tmp_path):
    dataset = two_classes(tmp_path)
    backwards = replace(dataset, cells=dataset.cells[::-1])
    assert split_hash(make_split(dataset)) == split_hash(make_split(backwards))
    assert split_hash(make_split(dataset, seed=1)) != split_hash(make_split(dataset, seed=2))


def test_the_parts_are_the_same_on_every_machine(tmp_path):
    """Stored: a change of scikit-learn or NumPy that moves cells must not pass unseen."""
    parts = make_split(two_classes(tmp_path, cells_a_group=1), seed=0)["part"]
    assert "".join(part[1] for part in parts) == "rarrreerrrrerarrrrer"


def test_a_split_records_how_it_was_made_and_the_contents(tmp_path):
    dataset = two_classes(tmp_path)
    split = make_split(dataset, by="field", folds=4, fold=2, seed=9)
    assert split.attrs == {
        "by": "field",
        "folds": 4,
        "fold": 2,
        "seed": 9,
        "allow_leak": None,
        "notice": RESEARCH_USE_ONLY,
    }
    assert list(split.columns) == COLUMNS
    assert list(split["sha256"]) == [sha256_of_file(cell.path) for cell in dataset.cells]


@pytest.mark.parametrize("by", ["field", "cell"])
def test_a_split_by_field_or_cell_is_refused_as_honest(tmp_path, by):
    split = make_split(two_classes(tmp_path), by=by)
    with pytest.raises(SplitError, match=r"puts the group .* into more than one part"):
        check_split(split)
    check_split(split, allow_leak=by)
    assert set(split["group"]) == {f"{label}{group}" for label in "xy" for group in range(10)}


def test_a_leak_is_allowed_by_its_own_name_only(tmp_path):
    dataset = two_classes(tmp_path)
    fields = [cell.field for cell in dataset.cells]
    by_field, by_cell = (make_split(dataset, by=by) for by in ("field", "cell"))
    check_split(by_field, "field", fields)
    with pytest.raises(SplitError, match=r"puts the group .*: --allow-leak field"):
        check_split(by_field, None, fields)
    with pytest.raises(SplitError, match=r"puts the field .*: --allow-leak cell"):
        check_split(by_cell, "field", fields)
    check_split(by_cell, "cell", fields)
    with pytest.raises(UsageError, match="--allow-leak patient: a leak is named field or cell"):
        check_split(by_cell, "patient", fields)  # type: ignore[arg-type]


def test_what_leaks_is_said_in_words_that_artefacts_can_carry(tmp_path):
    dataset = two_classes(tmp_path)
    assert leak_of(make_split(dataset)) is None
    split = make_split(dataset, by="cell", allow_leak="cell")
    count = int((split.groupby("group")["part"].nunique() > 1).sum())
    assert (leak_of(split) or "").startswith(
        f"Leak by cell, allowed by name: {count} groups stand in more than one"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"by": "patient"}, "one of group, field, cell"),
        ({"fold": 5}, "no fold 5 of 5"),
        ({"fold": -1}, "no fold -1"),
        ({"folds": 1}, "two folds or more"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"folds": 11}, "Class x has only 10 independent groups"),
    ],
)
def test_options_without_a_meaning_are_refused(tmp_path, options, reason):
    with pytest.raises(SplitError, match=reason):
        make_split(two_classes(tmp_path), **options)


def test_a_class_of_two_groups_cannot_be_split(tmp_path):
    rows = [("x", f"x{index}", "") for index in range(9)] + [
        ("rare", f"r{index % 2}", "") for index in range(9)
    ]
    with pytest.raises(SplitError, match="Class rare has only 2 independent group"):
        make_split(dataset_of(tmp_path, rows), folds=2)


# --- data sets with parts of their own -------------------------------------------------------------


def given_parts(root: Path, validation: bool = True) -> CellDataset:
    parts = ["train"] * 8 + ["validation" if validation else "train"] * 2 + ["test"] * 2
    rows = [(label, f"{label}{index}", f"{label}{index}") for label in "xy" for index in range(12)]
    return dataset_of(root, rows, parts * 2)


def test_parts_of_the_data_set_are_kept(tmp_path):
    dataset = given_parts(tmp_path)
    split = make_split(dataset)
    assert list(split["part"]) == [cell.part for cell in dataset.cells]
    assert split.attrs["by"] == "given parts"
    assert split.attrs["folds"] is None


def test_validation_is_taken_from_the_training_part_by_group(tmp_path):
    dataset = given_parts(tmp_path, validation=False)
    cells = [replace(cell, group=f"{cell.label}{index // 2}") for index, cell in enumerate(dataset.cells)]
    split = make_split(replace(dataset, cells=tuple(cells)))
    assert [part == "test" for part in split["part"]] == [cell.part == "test" for cell in cells]
    assert set(split.loc[split["part"] == "validation", "class"]) == {"x", "y"}
    assert parts_of(split, "group").max() == 1


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_data_set_with_parts_of_its_own_needs_train_and_test(tmp_path, missing):
    dataset = given_parts(tmp_path)
    rest = tuple(cell for cell in dataset.cells if cell.part != missing)
    with pytest.raises(SplitError, match=f"The {missing} part would have no cell of x, y"):
        make_split(replace(dataset, cells=rest))


def test_a_group_in_two_given_parts_is_refused_unless_allowed(tmp_path):
    dataset = given_parts(tmp_path)
    cells = list(dataset.cells)
    cells[11] = replace(cells[11], group=cells[0].group)
    leaking = replace(dataset, cells=tuple(cells))
    with pytest.raises(SplitError, match=r"the group .*000.png in train and 011.png in test; 1 such"):
        make_split(leaking)
    split = make_split(leaking, allow_leak="cell")
    assert split.attrs["allow_leak"] == "cell"
    assert len(cells_of(split, leaking, "test")) == 4


def test_equal_contents_in_two_given_parts_are_refused(tmp_path):
    for part in ("train", "val", "test"):
        for label in "xy":
            (tmp_path / part / label).mkdir(parents=True)
            (tmp_path / part / label / f"{part}.png").write_text(f"{part} {label}")
    make_split(read_dataset(tmp_path))
    (tmp_path / "test/x/test.png").write_text("train x")
    with pytest.raises(SplitError, match=r"the group .* into more than one part .*1 such"):
        make_split(read_dataset(tmp_path))


# --- the file --------------------------------------------------------------------------------------


def test_a_split_comes_back_from_its_file_as_it_was(tmp_path):
    dataset = two_classes(tmp_path)
    split = make_split(dataset, seed=4)
    write_split(split, tmp_path / "split.csv")
    again = read_split(tmp_path / "split.csv")
    pd.testing.assert_frame_equal(again, split)
    assert again.attrs == split.attrs
    assert json.loads((tmp_path / "split.json").read_text())["notice"] == RESEARCH_USE_ONLY


def test_a_split_is_plain_csv_and_the_table_alone_can_be_used_again(tmp_path):
    dataset = two_classes(tmp_path)
    write_split(make_split(dataset), tmp_path / "split.csv")
    assert list(pd.read_csv(tmp_path / "split.csv").columns) == COLUMNS
    (tmp_path / "split.json").unlink()
    split = read_split(tmp_path / "split.csv")
    assert split.attrs["by"] == "not recorded"
    assert cells_of(split, dataset, "test")


def test_what_is_said_of_another_split_is_not_believed(tmp_path):
    dataset = two_classes(tmp_path)
    write_split(make_split(dataset, fold=1), tmp_path / "split.csv")
    about = (tmp_path / "split.json").read_text()
    write_split(make_split(dataset, fold=0), tmp_path / "split.csv")
    (tmp_path / "split.json").write_text(about)
    assert read_split(tmp_path / "split.csv").attrs == {"by": "not recorded", "allow_leak": None}


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=12).filter(str.isprintable), min_size=3, unique=True))
def test_any_name_survives_the_file(tmp_path_factory, names):
    names = [name for name in names if name.strip()]
    assume(names)
    split = pd.DataFrame(
        [[name, "0" * 64, name, name, "train"] for name in names], columns=COLUMNS, dtype=object
    )
    split.attrs = {"by": "group"}
    path = tmp_path_factory.mktemp("split") / "split.csv"
    write_split(split, path)
    assert split_hash(read_split(path)) == split_hash(split)


def test_the_hash_tells_parts_classes_and_contents_but_not_the_order(tmp_path):
    split = make_split(two_classes(tmp_path))
    assert split_hash(split.sample(frac=1, random_state=0)) == split_hash(split)
    for column, value in (("part", "test"), ("class", "z"), ("sha256", "f" * 64), ("path", "z.png")):
        changed = split.copy()
        changed.loc[split.index[split["part"] == "train"][0], column] = value
        assert split_hash(changed) != split_hash(split)


GOOD_ROW = "a.png," + "0" * 64 + ",x,g,train\n"
NAMES = "path,sha256,class,group,part\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a split"),
        ("# a remark\n" + NAMES + GOOD_ROW, "its columns are not"),
        ("path,part\na.png,train\n", "its columns are not path, sha256"),
        (NAMES + GOOD_ROW + GOOD_ROW, "line 3: has a path that stands there twice"),
        (NAMES + GOOD_ROW.replace("train", "dev"), "line 2: has a part other than"),
        (NAMES + GOOD_ROW.replace("0" * 64, "0" * 63), "line 2: has a sha256"),
        (NAMES + GOOD_ROW.replace(",x,", ",,"), "line 2: has an empty value"),
        (NAMES + "a.png,0\n", "line 2: has an empty value"),
        (NAMES + GOOD_ROW.strip() + ",more,still\n", "its columns are not"),
        (NAMES, "holds no cell"),
    ],
)
def test_a_malformed_split_is_refused_by_its_line(tmp_path, text, reason):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(SplitError, match=reason) as caught:
        read_split(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_split_is_refused(tmp_path):
    with pytest.raises(SplitError, match="cannot be read"):
        read_split(tmp_path / "none.csv")
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(SplitError, match="not a text file"):
        read_split(tmp_path / "model.pth")


# --- using a split ---------------------------------------------------------------------------------


def test_the_cells_of_a_part_come_in_the_order_of_the_split(tmp_path):
    dataset = two_classes(tmp_path)
    split = make_split(dataset).sample(frac=1, random_state=0)
    for part in PARTS:
        assert [cell.name for cell in cells_of(split, dataset, part)] == list(
            split.query(f"part == '{part}'")["path"]
        )
    with pytest.raises(SplitError, match="no part of a split"):
        cells_of(split, dataset, "dev")


def test_a_split_tampered_with_is_refused(tmp_path):
    dataset = two_classes(tmp_path)
    split = make_split(dataset)
    moved = split.copy()
    moved.loc[split.index[split["part"] == "test"][0], "part"] = "train"
    with pytest.raises(SplitError, match=r"puts the group .* into more than one part"):
        cells_of(moved, dataset, "test")


def test_a_split_whose_groups_were_rewritten_is_refused_by_those_of_the_data_set(tmp_path):
    dataset = two_classes(tmp_path)
    moved = make_split(dataset)
    moved.loc[moved.index[moved["part"] == "test"][0], "part"] = "train"
    moved["group"] = moved["path"]
    check_split(moved)
    with pytest.raises(SplitError, match=r"puts the group .* into more than one part"):
        cells_of(moved, dataset, "test")


def test_equal_contents_on_both_sides_are_refused(tmp_path):
    split = make_split(two_classes(tmp_path))
    train, test = (split.index[split["part"] == part][0] for part in ("train", "test"))
    split.loc[train, "sha256"] = split.loc[test, "sha256"]
    with pytest.raises(SplitError, match=r"the file content .* into more than one part"):
        check_split(split)


def test_a_missing_file_and_another_label_are_named(tmp_path):
    dataset = two_classes(tmp_path)
    split = make_split(dataset)
    test = cells_of(split, dataset, "test")
    without = replace(dataset, cells=tuple(cell for cell in dataset.cells if cell != test[1]))
    with pytest.raises(SplitError, match=f"{test[1].name}: stands in the split but not in the data set"):
        cells_of(split, without, "test")
    relabelled = [replace(cell, label="z") if cell == test[0] else cell for cell in dataset.cells]
    with pytest.raises(SplitError, match=f"{test[0].name}: is x in the split but z in the data set"):
        cells_of(split, replace(dataset, cells=tuple(relabelled)), "test")


def test_a_changed_file_is_found(tmp_path):
    dataset = two_classes(tmp_path)
    split = make_split(dataset)
    verify_contents(split, dataset)
    (tmp_path / "007.png").write_text("another picture")
    with pytest.raises(SplitError, match=r"007.png: its content is not what the split recorded"):
        verify_contents(split, dataset)
    (tmp_path / "007.png").unlink()
    with pytest.raises(SplitError, match=r"007.png: cannot be read"):
        verify_contents(split, dataset)


# --- the real cells --------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("name", ["sipakmed", "herlev"])
def test_folds_of_real_cells_are_even_and_share_no_group(name):
    dataset = read_dataset(SHARED / "data" / name)
    split = make_split(dataset)
    check_split(split)
    assert parts_of(split, "group").max() == 1
    share = pd.crosstab(split["class"], split["part"], normalize="index")
    assert np.allclose(share["test"], 0.2, atol=0.06)
    assert np.allclose(share["validation"], 0.1, atol=0.06)


@needs_shared
def test_splitting_real_cells_by_field_number_puts_twins_on_both_sides():
    split = make_split(read_dataset(SHARED / "data/sipakmed"), by="field")
    seen = set(split.loc[split["part"] == "train", "group"])
    test = split[split["part"] == "test"]
    assert test["group"].isin(seen).mean() > 0.1
