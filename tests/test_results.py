"""Every published figure comes from a file that a command wrote."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pytest
from conftest import PROJECT

from cervicyte.evaluation.tables import evaluate_predictions, read_predictions

sys.path.insert(0, str(PROJECT / "benchmarks"))
RESULTS = PROJECT / "docs" / "results"
RUNS = sorted(path.parent for path in RESULTS.rglob("metrics.json"))


def test_the_page_of_results_says_what_the_files_say():
    from results_table import page

    assert (RESULTS / "README.md").read_text() == page()


def test_the_page_of_benchmarks_says_what_the_files_say():
    from benchmarks_page import page

    assert (PROJECT / "docs" / "benchmarks.md").read_text() == page()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_published_figures_follow_from_the_published_predictions(run):
    metrics = json.loads((run / "metrics.json").read_text())
    evaluation = evaluate_predictions(read_predictions(run), metrics["class_names"], draws=2)
    assert evaluation.overall["accuracy"].value == pytest.approx(metrics["overall"]["accuracy"]["value"])
    assert evaluation.confusion.tolist() == metrics["confusion_matrix"]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_published_splits_keep_groups_whole(run):
    split = pd.read_csv(run / "split.csv")
    assert (split.groupby("group")["part"].nunique() == 1).all()
    assert set(split.loc[split["part"] == "test", "path"]) == set(read_predictions(run)["path"])


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_published_figures_carry_command_seed_and_commit(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["context"]["command"].startswith("cervicyte ")
    assert "dirty" not in metrics["provenance"]["commit"]
    assert len(metrics["context"]["split"]["hash"]) == 64
