"""Planted label errors and shortcuts are found, none where none was planted, and no group helps itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from cleanlab.rank import get_label_quality_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.datasets.inspection import FILES, LABEL_ERRORS_FILE, inspect_dataset
from cervicyte.datasets.inspection_page import TITLES
from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.synthetic import APPEARANCES, CELLS_PER_FIELD, SyntheticCell, dataset_cell
from cervicyte.datasets.unlike_groups import GROUP_OUTLYING, unlike_groups
from cervicyte.evaluation import closer_look as closer
from cervicyte.evaluation import cross_validation
from cervicyte.evaluation.label_errors import COLUMNS, doubted_labels
from cervicyte.evaluation.out_of_fold import (
    FOLDS,
    fitted_neighbours,
    fitted_probe,
    grouped_folds,
    out_of_fold_probabilities,
)
from cervicyte.evaluation.shortcuts import (
    BACKGROUND,
    HIDDEN_COLOUR,
    WHOLE,
    BackgroundOnly,
    background_only,
    hidden_region,
)
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.statistics import STATISTICS
from cervicyte.network.model_file import ModelFile, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT
from cervicyte.provenance import sha256_of_file

LABELS = ("Dyskeratotic", "Parabasal", "Superficial-Intermediate")
SMALL = Preprocessing(image_size=48, canvas_size=48)


# --- folds ---------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 14)), max_size=60),
    st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_no_group_is_tested_in_two_folds(further, seed):
    """Five groups of each class, and further cells of any class in any of them."""
    cells = [(number // FOLDS, number) for number in range(3 * FOLDS)] + further
    targets = np.array([label for label, _ in cells])
    groups = [f"g{group}" for _, group in cells]
    fold_of = grouped_folds(targets, groups, seed=seed)
    assert set(fold_of) <= set(range(FOLDS))
    assert pd.Series(fold_of).groupby(groups).nunique().max() == 1
    for fold in range(FOLDS):
        assert set(targets[fold_of != fold]) == {0, 1, 2}


def test_no_cell_is_judged_by_a_classifier_that_saw_its_group():
    """The only feature is the number of the group, and the classifier remembers which it was given."""

    class Remembering:
        classes_ = np.array([0, 1])

        def __init__(self, seen):
            self.seen = set(seen[:, 0])

        def predict_proba(self, features):
            assert not self.seen & set(features[:, 0])
            return np.full((len(features), 2), 0.5)

    group = np.repeat(np.arange(20), 3)
    targets = group % 2
    fitted = []

    def fit(features, targets, groups):
        assert [str(number) for number in features[:, 0]] == list(groups)
        fitted.append(len(features))
        return Remembering(features)

    probabilities = out_of_fold_probabilities(group[:, None], targets, [str(g) for g in group], 2, fit)
    assert (probabilities == 0.5).all()
    assert sum(len(group) - count for count in fitted) == len(group)


@pytest.mark.parametrize("fit", [fitted_probe, fitted_neighbours])
def test_what_tells_the_classes_is_learnt_and_noise_is_not(fit):
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(3), 40)
    groups = [f"g{index // 4}" for index in range(120)]
    for features, at_least, at_most in (
        (targets[:, None] + 0.1 * rng.normal(size=(120, 1)), 0.95, 1.0),
        (rng.normal(size=(120, 1)), 0.0, 0.5),
    ):
        probabilities = out_of_fold_probabilities(features, targets, groups, 3, fit)
        assert np.allclose(probabilities.sum(1), 1)
        assert at_least <= (probabilities.argmax(1) == targets).mean() <= at_most


# --- label errors --------------------------------------------------------------------------------


def described(cell: SyntheticCell) -> list[float]:
    """What a cytologist would measure: sizes of cell and nucleus, and the colours of both."""
    cytoplasm = cell.cell & ~cell.nucleus
    sizes = np.log([cell.cell.sum(), cell.nucleus.sum(), cell.nucleus.sum() / cell.cell.sum()])
    colours = [cv2.mean(cell.image, part.astype(np.uint8))[:3] for part in (cell.nucleus, cytoplasm)]
    return [*sizes, *colours[0], *colours[1]]


@pytest.fixture(scope="session")
def drawn() -> list[tuple[str, str, SyntheticCell]]:
    """Label, group and cell of 96 synthetic cells."""
    return [
        (label, f"{label} {number // CELLS_PER_FIELD}", dataset_cell(label, number, 4))
        for label in LABELS
        for number in range(32)
    ]


def test_planted_label_errors_are_found_and_rank_above_clean_cells(drawn):
    features = np.array([described(cell) for _, _, cell in drawn])
    groups = [group for _, group, _ in drawn]
    found, named_rightly, listed_in_all = [], [], 0
    for seed in range(5):
        labels = np.array([label for label, _, _ in drawn])
        wrong = np.random.default_rng(seed).choice(len(drawn), 4, replace=False)
        labels[wrong] = [LABELS[(LABELS.index(labels[index]) + 1) % 3] for index in wrong]
        table = pd.DataFrame({"path": np.arange(len(drawn)), "label": labels, "group": groups})
        targets = np.searchsorted(LABELS, labels)
        probabilities = out_of_fold_probabilities(features, targets, groups, 3, fitted_probe)
        doubted = doubted_labels(table, probabilities, LABELS)
        assert list(doubted.columns) == list(COLUMNS)
        assert doubted["label_quality"].is_monotonic_increasing
        assert len(doubted) < 12
        listed = doubted[doubted["path"].isin(wrong)]
        found += [index in set(listed["path"]) for index in wrong]
        named_rightly += [
            suggested == drawn[path][0]
            for path, suggested in zip(listed["path"], listed["suggested_label"], strict=True)
        ]
        quality = get_label_quality_scores(targets, probabilities, method="normalized_margin")
        area = roc_auc_score(np.isin(np.arange(len(drawn)), wrong), -quality)
        assert area > 0.95
        listed_in_all += len(doubted)
    # cleanlab lists as many as it estimates to be wrong, which among few cells is cautious.
    assert np.mean(found) >= 0.5
    assert sum(found) / listed_in_all >= 0.6
    assert np.mean(named_rightly) >= 0.75


def test_labels_that_the_probe_agrees_with_are_not_doubted():
    targets = np.repeat(np.arange(3), 20)
    probabilities = np.full((60, 3), 0.05)
    probabilities[np.arange(60), targets] = 0.9
    table = pd.DataFrame({"path": np.arange(60), "label": np.array(LABELS)[targets], "group": "g"})
    assert doubted_labels(table, probabilities, LABELS).empty
    probabilities[7] = (0.02, 0.96, 0.02)
    (row,) = doubted_labels(table, probabilities, LABELS).to_dict("records")
    assert (row["path"], row["given_label"], row["suggested_label"]) == (7, LABELS[0], LABELS[1])
    assert (row["p_given"], row["p_suggested"]) == (0.02, 0.96)
    assert row["label_quality"] == pytest.approx((1 + 0.02 - 0.96) / 2)


# --- shortcuts -----------------------------------------------------------------------------------


def write_cells(root: Path, *, border: bool, cells: int = 24) -> Path:
    """Write two classes that are drawn alike, each cell in a field of its own; a border may tell one."""
    for number in range(cells):
        image = dataset_cell(LABELS[1], number * CELLS_PER_FIELD, 11).image.copy()
        label = "ab"[number % 2]
        if border and label == "b":
            image[:6], image[-6:], image[:, :6], image[:, -6:] = ((200, 0, 200),) * 4
        path = root / f"kind {label}" / f"{number:03d}_01.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def looked_at(data: Path, out: Path) -> dict:
    look = closer.closer_look(out, label_errors=True, shortcuts=True, backbone="none", preprocessing=SMALL)
    inspection = inspect_dataset(data, out, look_closer=look)
    content = json.loads((out / "inspection.json").read_text())
    assert [one["kind"] for one in content["findings"]] == [one.kind for one in inspection.findings]
    return content


@pytest.fixture(scope="session")
def with_border(tmp_path_factory) -> tuple[Path, Path, dict]:
    root = tmp_path_factory.mktemp("border")
    data = write_cells(root / "data", border=True)
    return data, root / "out", looked_at(data, root / "out")


def test_a_planted_border_is_a_shortcut_by_name(with_border):
    _, _, content = with_border
    assert BACKGROUND in content["shortcuts"]["named"]
    figures = content["shortcuts"]["predictors"][BACKGROUND]["balanced_accuracy"]
    assert figures["low"] > 0.65
    assert any("background" in one["text"] for one in content["findings"] if one["kind"] == "shortcuts")


def test_without_the_border_nothing_is_a_shortcut(tmp_path):
    content = looked_at(write_cells(tmp_path / "data", border=False), tmp_path / "out")
    assert content["shortcuts"]["named"] == []
    assert "shortcuts" not in {one["kind"] for one in content["findings"]}
    assert set(content["shortcuts"]["predictors"]) == {*STATISTICS, "all_statistics", BACKGROUND, WHOLE}


def test_the_hidden_ellipse_hides_the_cell_and_leaves_a_ninth(drawn):
    cells = [*(cell for _, _, cell in drawn)]
    cells += [dataset_cell(label, 0, 4) for label in APPEARANCES]
    shares = [(hidden_region(*cell.cell.shape) & cell.cell).sum() / cell.cell.sum() for cell in cells]
    assert np.percentile(shares, 5) > 0.98
    left = background_only(cells[0].image)
    hidden = hidden_region(*left.shape[:2])
    assert (left[hidden] == HIDDEN_COLOUR).all()
    assert (left[~hidden] == cells[0].image[~hidden]).all()
    assert 0.1 < 1 - hidden.mean() < 0.12


def test_background_and_whole_crop_have_other_fingerprints():
    assert BackgroundOnly().fingerprint() != Preprocessing().fingerprint()
    assert len(BackgroundOnly().fingerprint()) == len(Preprocessing().fingerprint())


# --- the files -----------------------------------------------------------------------------------


def test_every_doubted_label_stands_in_both_files(with_border):
    _, out, content = with_border
    table = pd.read_csv(out / LABEL_ERRORS_FILE, keep_default_na=False)
    assert list(table.columns) == list(COLUMNS)
    assert table.to_dict("records") == content["label_errors"]["cells"]
    assert {path.name for path in out.iterdir()} == {
        *FILES, LABEL_ERRORS_FILE, "features",
    }  # fmt: skip
    kept = {path.name for path in (out / "features").iterdir()}
    assert kept == {"whole_crop_000.npz", "background_only_000.npz"}


def test_the_page_shows_both_sections_and_needs_nothing_from_outside(with_border):
    _, out, content = with_border
    text = (out / "inspection.html").read_text()
    assert "<h2>Likely label errors</h2>" in text
    assert "<h2>Does anything but the cell predict the class?</h2>" in text
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert {one["kind"] for one in content["findings"]} <= set(TITLES)


def test_a_second_look_reads_the_features_from_the_folder(with_border, monkeypatch):
    data, out, content = with_border

    def computed(*_):
        raise AssertionError("features were computed again")

    monkeypatch.setattr(cross_validation, "frozen_features", computed)
    assert looked_at(data, out)["shortcuts"] == content["shortcuts"]


def test_an_interrupted_look_goes_on_with_the_next_file_of_features(tmp_path, monkeypatch):
    cells = read_dataset(write_cells(tmp_path / "data", border=False, cells=7)).cells
    computed: list[list[str]] = []

    def features(some, *_):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append([cell.name for cell in some])
        return np.full((len(some), 2048), len(computed), np.float32)

    def look():
        contents = [cell.name for cell in cells]
        return closer._features(cells, contents, "none", SMALL, tmp_path / "kept", "whole", SILENT)

    monkeypatch.setattr(closer, "CELLS_IN_FILE", 3)
    monkeypatch.setattr(cross_validation, "frozen_features", features)
    with pytest.raises(KeyboardInterrupt):
        look()
    monkeypatch.setattr(
        cross_validation, "frozen_features", lambda some, *_: np.full((len(some), 2048), 9, np.float32)
    )
    assert look()[:, 0].tolist() == [1, 1, 1, 2, 2, 2, 9]
    assert computed == [[cell.name for cell in cells[:3]], [cell.name for cell in cells[3:6]]]


def test_weights_that_were_trained_on_the_cells_are_refused_unless_allowed_and_then_named(tmp_path):
    data, out = write_cells(tmp_path / "data", border=False), tmp_path / "out"
    cells = read_dataset(data).cells
    seen = {"sha256": [sha256_of_file(cell.path) for cell in cells[:3]], "groups": []}
    model = ModelFile(CBAMResNet50(2, "none").eval(), ("a", "b"), SMALL, 1, 0.5, {"seen": seen})
    save_model(tmp_path / "model.pth", model)
    command = ["inspect", str(data), "--out", str(out), "--label-errors"]
    command += ["--backbone", str(tmp_path / "model.pth")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "3 of 24 cells, first" in refused.output
    assert "look with other weights, or say --allow-seen" in refused.output
    allowed = CliRunner().invoke(app, [*command, "--allow-seen"])
    assert allowed.exit_code == 1
    content = json.loads((out / "inspection.json").read_text())
    (found,) = (one for one in content["findings"] if one["kind"] == "seen-in-training")
    assert sorted(found["paths"]) == sorted(cell.name for cell in cells[:3])
    assert "3 of 24 cells took part in training" in (out / "inspection.html").read_text()


def test_classes_in_too_few_groups_are_said_not_judged(tmp_path):
    for number in range(8):
        path = tmp_path / "data" / f"kind {'ab'[number // 4]}" / f"{number:03d}_01.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset_cell(LABELS[0], 4 * number, 3).image).save(path)
    content = looked_at(tmp_path / "data", tmp_path / "out")
    assert f"{FOLDS} groups or more" in content["not_looked_for"]
    assert "not looked for" in (tmp_path / "out" / "inspection.html").read_text()


def test_without_the_options_nothing_imports_torch(tmp_path):
    data = write_cells(tmp_path / "data", border=False, cells=4)
    code = (
        "import sys; from typer.testing import CliRunner; from cervicyte.cli import app;"
        f"result = CliRunner().invoke(app, ['inspect', {str(data)!r}, '--out', {str(tmp_path / 'out')!r}]);"
        "assert result.exit_code in (0, 1), result.output; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- groups --------------------------------------------------------------------------------------


def test_a_group_unlike_its_class_is_named_and_one_of_two_cells_is_not():
    rng = np.random.default_rng(0)
    rows = [
        (f"{group}_{cell}.png", "a", f"g{group}", rng.normal(100 + group % 3, 1))
        for group in range(15)
        for cell in range(4)
    ]
    rows += [(f"far_{cell}.png", "a", "far", 150.0 + cell) for cell in range(3)]
    rows += [(f"two_{cell}.png", "a", "two", 200.0) for cell in range(2)]
    table = pd.DataFrame(rows, columns=["path", "label", "group", "lightness"])
    (found,) = unlike_groups(table, ["lightness"])
    assert (found["group"], found["cells"], found["median"]) == ("far", 3, 151.0)
    assert set(found["shown"]) == {"far_0.png", "far_1.png", "far_2.png"}
    medians = table[table["group"] != "two"].groupby("group")["lightness"].median()
    spread = 1.4826 * np.median(np.abs(medians - medians.median()))
    assert found["robust_deviations"] == pytest.approx((151 - medians.median()) / spread, abs=0.06)
    assert found["robust_deviations"] > GROUP_OUTLYING


def test_a_class_of_few_groups_has_no_spread_to_judge_by():
    table = pd.DataFrame(
        {"path": [str(i) for i in range(9)], "label": "a", "group": ["x"] * 3 + ["y"] * 3 + ["z"] * 3}
    )
    table["focus"] = [0.0] * 6 + [9.0] * 3
    assert unlike_groups(table, ["focus"]) == []
