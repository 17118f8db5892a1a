"""Several data sets are learnt together, each judged by its own groups, and one may be left out."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from cervicyte import load_model
from cervicyte.cli import app
from cervicyte.datasets.classes import Grouping
from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.synthetic import write_dataset
from cervicyte.errors import UsageError
from cervicyte.evaluation.together import abnormal_figures, named_paths, read_sides
from cervicyte.images.reader import read_image
from cervicyte.network.model_file import load_model_file
from cervicyte.provenance import RESEARCH_USE_ONLY, sha256_of_file

SMALL = (
    "--set", "preprocessing.image_size=32", "--set", "preprocessing.canvas_size=32",
    "--set", "epochs=1", "--set", "batch_size=8", "--backbone", "none", "--folds", "3", "--no-images",
)  # fmt: skip
LEVELS = {"quiet": 20, "loud": 100, "odd": 190}


def cervicyte(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(result) -> str:
    assert result.exit_code == 2, result.output
    return next(line for line in result.stderr.splitlines() if line.startswith("Error: "))


def draw_cells(root, labels, seed):
    rng = np.random.default_rng(seed)
    for label in labels:
        (root / label).mkdir(parents=True)
        for field in range(1, 5):
            pixels = rng.integers(0, 50, (36, 30, 3)) + LEVELS[label]
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{field:03d}_01.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Drawn cells of SIPaKMeD's classes, and a data set of other classes, one of which nobody knows."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "synthetic", 60, 1)
    draw_cells(root / "own", LEVELS, 2)
    (root / "sides.yaml").write_text("own: {quiet: normal, loud: abnormal}\n")
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    named = (f"drawn={data / 'synthetic' / 'cells'}", data / "own")
    result = cervicyte("train-together", *named, "--sides", data / "sides.yaml", *SMALL, "--out", out)
    assert result.exit_code == 0, result.output
    assert RESEARCH_USE_ONLY in result.output
    assert "own: it is not known whether the class odd is normal or abnormal" in result.output
    return out


@pytest.fixture(scope="module")
def left_out(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "left_out"
    named = (f"drawn={data / 'synthetic' / 'cells'}", data / "own")
    options = ("--sides", data / "sides.yaml", "--leave-out", "own")
    result = cervicyte("train-together", *named, *options, *SMALL, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_every_data_set_has_the_files_of_a_run(run):
    for name, count in (("drawn", 5), ("own", 3)):
        split = pd.read_csv(run / name / "split.csv")
        assert (split.groupby("group")["part"].nunique() == 1).all()
        table = pd.read_csv(run / name / "test_predictions.csv")
        assert set(table["path"]) == set(split.loc[split["part"] == "test", "path"])
        assert len(json.loads((run / name / "metrics.json").read_text())["class_names"]) == count
        for file in ("per_class_metrics.csv", "confusion_matrix.png", "report.html"):
            assert (run / name / file).stat().st_size > 0
    assert not (run / "checkpoint.pth").exists()
    assert RESEARCH_USE_ONLY in (run / "together.md").read_text()


def test_the_common_answer_is_judged_on_the_cells_whose_side_is_known(run):
    content = json.loads((run / "together.json").read_text())["data_sets"]
    assert content["own"]["classes"] == {"loud": "abnormal", "odd": None, "quiet": "normal"}
    assert content["drawn"]["classes"]["Metaplastic"] == "benign"
    drawn = pd.read_csv(run / "drawn" / "test_predictions.csv")
    positive = drawn["true_class"].isin(["Dyskeratotic", "Koilocytotic"])
    assert content["drawn"]["common"]["auc"]["value"] == pytest.approx(
        roc_auc_score(positive, drawn["abnormal"])
    )
    together = drawn["p_Dyskeratotic"] + drawn["p_Koilocytotic"]
    assert content["drawn"]["own_head"]["auc"]["value"] == pytest.approx(roc_auc_score(positive, together))
    own = pd.read_csv(run / "own" / "test_predictions.csv")
    own = own[own["true_class"] != "odd"]
    assert content["own"]["common"]["auc"]["value"] == pytest.approx(
        roc_auc_score(own["true_class"] == "loud", own["abnormal"])
    )


def test_the_model_answers_in_either_list_and_alike_on_normal_and_abnormal(run, data):
    image = read_image(next((data / "own" / "odd").glob("*.png")))
    default, own = load_model(run / "best_model.pth"), load_model(run / "best_model.pth", head="own")
    assert len(default.class_names) == 5
    assert own.class_names == ("loud", "odd", "quiet")
    (first,), (second,) = default.predict([image]), own.predict([image])
    assert first.abnormal == pytest.approx(second.abnormal)
    assert first.abnormal is not None
    assert 0 <= first.abnormal <= 1
    assert own.model.metadata["split"]["hash"] != default.model.metadata["split"]["hash"]
    assert set(own.explain(image)) == set(own.class_names)
    named = {one["name"] for one in own.model.metadata["calibration"]["classes"]}
    assert named == set(own.class_names)


def test_every_command_takes_the_head_by_name(run, data, tmp_path):
    model, own = run / "best_model.pth", data / "own"
    table = tmp_path / "table.csv"
    assert cervicyte("predict", own, "--model", model, "--head", "own", "--out", table).exit_code == 0
    assert {"p_odd", "abnormal"} <= set(pd.read_csv(table).columns)
    options = ("--split", run / "own" / "split.csv", "--head", "own", "--no-images")
    judged = cervicyte("evaluate", model, "--data", own, *options, "--out", tmp_path / "judged")
    assert judged.exit_code == 0, judged.output
    again = pd.read_csv(tmp_path / "judged" / "test_predictions.csv")
    assert again["abnormal"].to_list() == pytest.approx(
        pd.read_csv(run / "own" / "test_predictions.csv")["abnormal"].to_list(), abs=1e-4
    )
    image = next((own / "odd").glob("*.png"))
    shown = cervicyte("explain", model, image, "--head", "own", "--no-verdict", "--out", tmp_path / "shown")
    assert shown.exit_code == 0, shown.output
    out = tmp_path / "own.safetensors"
    assert cervicyte("export", model, "--format", "safetensors", "--head", "own", "--out", out).exit_code == 0
    assert load_model_file(out).class_names == ("loud", "odd", "quiet")
    assert "drawn" in cervicyte("card", out).output
    wrong = cervicyte("predict", own, "--model", model, "--head", "other", "--out", tmp_path / "none.csv")
    assert "choose one of drawn, own" in error_of(wrong)


def test_the_dashboard_opens_with_the_chosen_head(run):
    from fastapi.testclient import TestClient

    from cervicyte.dashboard.server import build_app

    application = build_app(run / "best_model.pth", with_verdicts=False, head="own")
    with TestClient(application, base_url="http://127.0.0.1") as client:
        assert client.get("/health").json()["status"] == "ok"


def test_a_cell_that_trained_in_any_data_set_is_refused_later(run, data, tmp_path):
    refused = cervicyte(
        "evaluate", run / "best_model.pth", "--data", data / "own", "--head", "own", "--out", tmp_path
    )
    assert "took part in this model's training" in error_of(refused)


def test_what_is_left_out_is_not_trained_on_and_judged_as_a_whole(left_out, data):
    model = load_model_file(left_out / "best_model.pth")
    cells = read_dataset(data / "own").cells
    assert not set(model.metadata["seen"]["sha256"]) & {sha256_of_file(cell.path) for cell in cells}
    assert model.metadata["together"] == {"data_sets": ["drawn"], "left_out": "own"}
    assert not (left_out / "own").exists()
    table = pd.read_csv(left_out / "left_out_predictions.csv")
    assert len(table) == len(cells)
    content = json.loads((left_out / "together.json").read_text())["left_out"]
    known = table[table["true_class"] != "odd"]
    for score, figures in (("abnormal", content["common"]), ("by_drawn", content["by_head"]["drawn"])):
        expected = roc_auc_score(known["true_class"] == "loud", known[score])
        assert figures["auc"]["value"] == pytest.approx(expected)
    assert "left out" in (left_out / "together.md").read_text()


def test_a_finished_run_is_gone_on_with_only_as_it_was(left_out, data):
    named = (f"drawn={data / 'synthetic' / 'cells'}", data / "own")
    before = (left_out / "together.json").read_bytes()
    sides = ("--sides", data / "sides.yaml")
    again = cervicyte("train-together", *named, *sides, "--leave-out", "own", "--out", left_out, "--resume")
    assert again.exit_code == 0, again.output
    assert (left_out / "together.json").read_bytes() == before
    other = cervicyte("train-together", *named, *sides, "--out", left_out, "--resume")
    assert "with other data sets" in error_of(other)
    apart = ("--leave-out", "own", "--split-seed", "5", "--out", left_out, "--resume")
    assert "began with another split" in error_of(cervicyte("train-together", *named, *sides, *apart))
    anew = cervicyte("train-together", *named, *sides, "--out", left_out)
    assert "holds a finished run" in error_of(anew)


@pytest.mark.parametrize("content", ["[1]", "5", "{}", '{"data_sets": {}, "left_out": 1, "recipe": {}}', "{"])
def test_figures_of_another_shape_are_refused_by_name(tmp_path, content):
    (tmp_path / "together.json").write_text(content)
    named = (tmp_path / "one", tmp_path / "two")
    refused = error_of(cervicyte("train-together", *named, "--out", tmp_path, "--resume"))
    assert "together.json: is damaged" in refused
    assert "start anew with --force" in refused


def test_force_throws_nothing_away_before_all_that_is_read_is_right(run, data):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    named = (f"drawn={data / 'synthetic' / 'cells'}", data / "own")
    result = cervicyte(
        "train-together", *named, "--sides", data / "sides.yml", *SMALL, "--out", run, "--force"
    )
    assert "sides.yml: cannot be read" in error_of(result)
    again = ("--sides", data / "sides.yaml", *SMALL, "--backbone", run / "best_model.pth")
    result = cervicyte("train-together", *named, *again, "--out", run, "--force")
    assert "best_model.pth: is to be read, and --force would throw it away" in error_of(result)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_side_is_never_guessed(data, tmp_path):
    named = (data / "synthetic" / "cells", data / "own")
    refused = cervicyte("train-together", *named, "--leave-out", "own", *SMALL, "--out", tmp_path / "out")
    assert "declare them with --sides" in error_of(refused)


def test_two_data_sets_with_a_cell_in_common_are_refused(data, tmp_path):
    copy = draw_cells(tmp_path / "copy", LEVELS, 2)  # the same cells
    named = (data / "synthetic" / "cells", data / "own", copy)
    refused = cervicyte("train-together", *named, *SMALL, "--out", tmp_path / "out")
    assert "own and copy have 12 cells or known groups in common" in error_of(refused)


def test_names_and_declarations_that_fit_nothing_are_refused(data, tmp_path):
    own = data / "own"
    out = ("--out", tmp_path / "out")
    assert "two data sets or more" in error_of(cervicyte("train-together", own, *out))
    twice = cervicyte("train-together", own, own, *out)
    assert "two data sets are called own" in error_of(twice)
    named = ("train-together", own, f"other={own}", *out)
    assert "choose one of own, other" in error_of(cervicyte(*named, "--leave-out", "third"))
    sides = tmp_path / "sides.yaml"
    for text, said in (
        ("third: {quiet: normal}", "no data set third"),
        ("own: {silent: normal}", "no class silent"),
        ("own: {quiet: healthy}", "say normal, benign or abnormal"),
        ("own: normal", "must name data sets"),
    ):
        sides.write_text(text)
        assert said in error_of(cervicyte(*named, "--sides", sides))
    with pytest.raises(UsageError, match="cannot be read"):
        read_sides(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="cannot name a folder"):
        named_paths(["../x=cells"])


def test_columnar_cells_are_counted_apart_and_one_side_alone_gives_no_figure():
    table = pd.DataFrame(
        {"group": list("abcd"), "true_class": ["Columnar", "Superficial squamous", "Mild dysplasia", "odd"]}
    )
    groupings: dict[str, Grouping | None] = {
        "Columnar": "normal",
        "Superficial squamous": "normal",
        "Mild dysplasia": "abnormal",
    }
    figures = abnormal_figures(table, {**groupings, "odd": None}, np.array([0.9, 0.1, 0.6, 0.0]))
    assert figures["auc"]["value"] == 0.5
    assert figures["auc_squamous"]["value"] == 1.0
    assert figures["found"]["value"] == 1.0
    assert figures["passed"]["value"] == 0.5
    assert abnormal_figures(table[:2], groupings, np.array([0.9, 0.1])) == {}
