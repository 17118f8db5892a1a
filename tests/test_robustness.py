"""What is left is measured on each run's own test cells, and every figure follows from the answers."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import draw_two_classes
from PIL import Image
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.errors import SplitError, UsageError
from cervicyte.evaluation.cross_validation import cross_validate, fold_folder
from cervicyte.evaluation.robustness import robustness, robustness_figures
from cervicyte.images.corruptions import CORRUPTIONS, SEVERITIES
from cervicyte.provenance import RESEARCH_USE_ONLY

TINY = {
    "preprocessing.image_size": 32,
    "preprocessing.canvas_size": 32,
    "backbone": "none",
    "epochs": 1,
    "batch_size": 8,
    "frozen_stages": 4,
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two classes, six fields each, one cell a field."""
    return draw_two_classes(tmp_path_factory.mktemp("data") / "cells", 6, 1)


@pytest.fixture(scope="module")
def folds(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("folds")
    cross_validate(cells, out, overrides=TINY, folds=2)
    return [fold_folder(out, 0, fold) for fold in (0, 1)]


def test_every_cell_is_asked_for_clean_and_spoilt_by_the_network_that_did_not_see_it(
    cells, folds, tmp_path, monkeypatch
):
    arguments = ["robustness", *map(str, folds), "--data", str(cells), "--out", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", ["cervicyte", *arguments])
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    table = pd.read_csv(tmp_path / "r" / "robustness_predictions.csv")
    assert len(table) == 12 * (1 + len(CORRUPTIONS) * len(SEVERITIES))
    clean = table[table["corruption"] == "clean"].set_index("path")["predicted_class"]
    for fold in folds:
        tested = pd.read_csv(fold / "test_predictions.csv").set_index("path")["predicted_class"]
        assert clean[tested.index].equals(tested)
        lines = (fold / "split.openings.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["command"].startswith("cervicyte robustness ")
    content = json.loads((tmp_path / "r" / "robustness.json").read_text())
    assert content["cells"] == 12
    assert any("the like of: JPEG, brightness, gaussian blur, stain." in one for one in content["caveats"])
    assert content["notice"] == RESEARCH_USE_ONLY
    assert RESEARCH_USE_ONLY in told.output


def test_figures_are_plain_means_and_the_share_is_their_quotient():
    rng = np.random.default_rng(0)
    rows = [
        (f"cell {cell}", f"group {cell // 2}", name, severity, "a", "a" if rng.random() < right else "b")
        for cell in range(40)
        for name, severities, right in [
            ("clean", (0,), 0.9),
            *((one, SEVERITIES, 0.6) for one in CORRUPTIONS),
        ]
        for severity in severities
    ]
    columns = ["path", "group", "corruption", "severity", "true_class", "predicted_class"]
    table = pd.DataFrame(rows, columns=columns)
    figures = robustness_figures(table)
    right = (table["true_class"] == table["predicted_class"]).groupby(
        [table["corruption"], table["severity"]]
    )
    by_hand = right.mean()
    assert figures["clean"]["value"] == pytest.approx(by_hand["clean", 0])
    for name in CORRUPTIONS:
        of = figures["corruptions"][name]
        assert of["by_severity"]["3"]["value"] == pytest.approx(by_hand[name, 3])
        assert of["mean"]["value"] == pytest.approx(float(np.mean(by_hand[name])))
    mean = by_hand.drop("clean").mean()
    assert figures["mean"]["value"] == pytest.approx(mean)
    assert figures["share_of_clean"]["value"] == pytest.approx(mean / by_hand["clean", 0])
    assert figures["mean"]["low"] < mean < figures["mean"]["high"]


def test_runs_that_test_the_same_cell_are_refused(cells, folds, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(folds[0], again)
    with pytest.raises(UsageError, match="tested by two of the runs"):
        robustness([folds[0], again], cells, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_cells_that_changed_since_the_split_are_refused(cells, folds, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(cells, other)
    changed = next((other / "dark").iterdir())
    Image.new("RGB", (40, 40)).save(changed)
    with pytest.raises(SplitError, match=changed.name):
        robustness(folds[:1], other, tmp_path / "r")


def test_fewer_cells_are_whole_groups_of_every_run(cells, folds, tmp_path):
    content = robustness(folds, cells, tmp_path / "r", cells=5)
    assert (content["cells"], content["of_cells"]) == (6, 12)  # three of each run: half of five, rounded up
    table = pd.read_csv(tmp_path / "r" / "robustness_predictions.csv")
    for fold in folds:
        tested = pd.read_csv(fold / "test_predictions.csv")
        asked = tested["path"].isin(table["path"])
        assert asked.sum() == 3
        assert not set(tested["group"][asked]) & set(tested["group"][~asked])
    assert "6 cells of 12, drawn by whole groups" in (tmp_path / "r" / "robustness.md").read_text()
    with pytest.raises(UsageError, match="1 cell is fewer than the 2 runs"):
        robustness(folds, cells, tmp_path / "s", cells=1)
