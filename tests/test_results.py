"""Every published figure comes from a file that a command wrote."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import PROJECT
from sklearn.metrics import roc_auc_score

from cervicyte.evaluation.calibration import read_calibration
from cervicyte.evaluation.cross_fitting import cross_fitted
from cervicyte.evaluation.elsewhere import elsewhere_page
from cervicyte.evaluation.learning_curve import learning_curve_page
from cervicyte.evaluation.model_card import model_card
from cervicyte.evaluation.seen import HERLEV_GUIDED
from cervicyte.evaluation.tables import evaluate_predictions, read_predictions
from cervicyte.evaluation.together import LEFT_OUT_NAME
from cervicyte.evaluation.together_page import together_page
from cervicyte.network.description import shipped_model
from cervicyte.network.model_file import load_model_file
from cervicyte.provenance import sha256_of_file

sys.path.insert(0, str(PROJECT / "benchmarks"))
RESULTS = PROJECT / "docs" / "results"
RUNS = sorted(path.parent for path in RESULTS.rglob("metrics.json"))


def test_the_page_of_results_says_what_the_files_say():
    from results_table import page

    assert (RESULTS / "README.md").read_text() == page()


def test_the_page_of_benchmarks_says_what_the_files_say():
    from benchmarks_page import page

    assert (PROJECT / "docs" / "benchmarks.md").read_text() == page()


def test_the_page_of_goals_says_what_the_files_say():
    from goals_page import page

    assert (RESULTS / "goals.md").read_text() == page()


def test_the_page_on_every_stage_trained_says_what_the_files_say():
    from all_stages_page import page

    assert (RESULTS / "all_stages" / "README.md").read_text() == page()


# Commits that results name and that the history has not, or had not as it stood, and why they are left so.
NOT_IN_THE_HISTORY = {
    "f27ce318e67d": "rebased; docs/results/several_data_sets takes hours: make together",
    "3762aa93c771-dirty": "crops judged by eye; their program's only commit came after",
}


def test_every_commit_that_a_result_names_is_in_the_history():
    def git(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *command], cwd=PROJECT, capture_output=True, text=True)

    if shutil.which("git") is None:
        pytest.skip("needs git")
    if (
        git("rev-parse", "--show-toplevel", "--is-shallow-repository").stdout
        != f"{PROJECT.resolve()}\nfalse\n"
    ):
        pytest.skip("needs the project's whole history")
    files = [path for folder in (RESULTS, PROJECT / "benchmarks/results") for path in folder.rglob("*.json")]
    named = {
        commit: path.relative_to(PROJECT)
        for path in files
        for commit in re.findall(r'"commit": "([0-9a-f]{7,40}(?:-dirty)?)"', path.read_text())
    }
    assert len(named) > 10
    missing = {
        commit: path
        for commit, path in named.items()
        if git("merge-base", "--is-ancestor", commit, "HEAD").returncode
    }
    if missing.keys() == named.keys():
        pytest.skip("needs the project's own history; this is another")
    assert missing.keys() == NOT_IN_THE_HISTORY.keys(), missing


PAGES_OF = {
    "elsewhere": elsewhere_page,
    "learning_curve": learning_curve_page,
    "together": together_page,
}


@pytest.mark.parametrize(
    "path",
    sorted(path for name in PAGES_OF for path in RESULTS.rglob(f"{name}.json")),
    ids=lambda path: str(path.parent.relative_to(RESULTS)),
)
def test_pages_on_other_laboratories_follow_from_their_files_and_say_what_herlev_guided(path):
    content = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == PAGES_OF[path.stem](content)
    assert HERLEV_GUIDED in content["caveats"]


def test_the_page_on_calibration_says_how_sets_have_grown_since_the_published_folds_were_counted():
    folds = RESULTS / "model" / "group"
    content = json.loads((folds / "cross_validation.json").read_text())
    table = pd.read_csv(folds / "predictions.csv", dtype={"path": str, "group": str})
    sizes = cross_fitted(table, content["class_names"], None).in_set.sum(1)
    more = sizes.sum() - content["figures"]["mean_set_size"]["value"] * len(table)
    said = " ".join((PROJECT / "docs" / "calibration.md").read_text().split())
    assert f"{more:.0f} of the {len(table):,} cells' sets are one class larger since" in said


def test_the_page_on_several_data_sets_says_what_the_files_say():
    from several_data_sets_table import PAGE, page_with_figures

    assert PAGE.read_text() == page_with_figures(PAGE.read_text())


def test_figures_of_a_data_set_left_out_follow_from_the_published_answers():
    for summary in sorted((RESULTS / "several_data_sets").glob("*/together.json")):
        content = json.loads(summary.read_text())
        assert "dirty" not in content["provenance"]["commit"]
        if content["left_out"] is None:
            continue
        table = pd.read_csv(summary.parent / LEFT_OUT_NAME)
        sides = content["left_out"]["classes"]
        positive = table["true_class"].map(lambda name, sides=sides: sides[name] == "abnormal")
        stated = content["left_out"]["common"]["auc"]["value"]
        assert stated == pytest.approx(roc_auc_score(positive, table["abnormal"]))


def test_the_shipped_model_carries_the_published_figures_of_its_folds():
    model = load_model_file(shipped_model())
    folds = json.loads((RESULTS / "model" / "group" / "cross_validation.json").read_text())
    carried = model.metadata["cross_validation"]
    assert carried["sha256"] == sha256_of_file(RESULTS / "model" / "group" / "cross_validation.json")
    for name, figure in folds["figures"].items():
        assert carried["figures"][name] == {end: figure[end] for end in ("value", "low", "high")}
    assert model.metadata["calibration"] == read_calibration(RESULTS / "model" / "group").to_json()
    assert model.network.placement == "stage"
    assert len(model.metadata["seen"]["sha256"]) == folds["cells"]
    assert shipped_model().with_name("model_card.md").read_text() == model_card(model)


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


def test_the_published_learning_curve_is_the_mean_of_its_draws():
    folder = RESULTS / "learning_curve"
    content = json.loads((folder / "learning_curve.json").read_text())
    table = pd.read_csv(folder / "learning_curve.csv")
    assert "dirty" not in content["provenance"]["commit"]
    for row in content["rows"]:
        own = table[(table["method"] == row["method"]) & (table["cells_a_class"] == row["cells_a_class"])]
        assert len(own) == content["draws"]
        for name, figure in row["figures"].items():
            if figure["value"] is None:
                assert own[name].isna().all()
            else:
                assert figure["value"] == pytest.approx(own[name].mean())
