"""From cells to a finished run folder, by the command line as its user would type it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import PROJECT
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.evaluation import run as running
from cervicyte.evaluation.run import SPLIT_FILES
from cervicyte.network.description import Metadata
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

TINY = ["--backbone", "none", "--image-size", "32", "--epochs", "1", "--set", "preprocessing.canvas_size=32"]
TINY += ["--set", "batch_size=8", "--folds", "3"]
RUN_FILES = {
    "best_model.pth", "training_history.csv", "training_history.png", "test_predictions.csv",
    "per_class_metrics.csv", "confusion_matrix.png", "metrics.json", "split.csv", "recipe.yaml",
    "split.json", "split.openings.jsonl", "report.html",
}  # fmt: skip


def cervicyte(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_sentence(result) -> str:
    """Return the error of a refused command, after checking that it is one sentence and status 2."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two classes, eight fields each, three cells a field."""
    root = tmp_path_factory.mktemp("data") / "cells"
    rng = np.random.default_rng(0)
    for label, level in (("dark", 40), ("light", 180)):
        for field in range(1, 9):
            for cell in range(1, 4):
                path = root / label / f"{field:03d}_{cell:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 40, (40, 50, 3)) + level
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def run(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    result = cervicyte("train", cells, "--out", out, *TINY)
    assert result.exit_code == 0, result.output
    return out


def test_a_run_folder_holds_all_that_was_promised(run):
    assert {path.name for path in run.iterdir()} == RUN_FILES


def test_no_group_stands_on_both_sides_and_the_test_part_is_what_was_predicted(run):
    split = pd.read_csv(run / "split.csv")
    assert (split.groupby("group")["part"].nunique() == 1).all()
    predictions = pd.read_csv(run / "test_predictions.csv")
    assert sorted(predictions["path"]) == sorted(split.loc[split["part"] == "test", "path"])
    columns = ["path", "group", "true_class", "predicted_class", "confidence", "p_dark", "p_light"]
    assert list(predictions.columns) == [*columns, "prediction_set", "unlike_percentile", "verdict"]
    assert np.allclose(predictions[["p_dark", "p_light"]].sum(axis=1), 1)


def test_the_model_file_says_where_it_comes_from(run):
    model = load_model_file(run / "best_model.pth")
    metrics = json.loads((run / "metrics.json").read_text())
    assert model.class_names == ("dark", "light")
    assert model.metadata["split"]["hash"] == metrics["context"]["split"]["hash"]
    assert model.metadata["metrics"]["test"] == metrics["overall"]
    assert model.metadata["metrics"]["test_per_class"] == metrics["per_class"]
    assert model.metadata["metrics"]["test_confusion_matrix"]["counts"] == metrics["confusion_matrix"]
    assert model.metadata["metrics"]["validation"]["epoch"] == model.epoch
    assert model.metadata["caveats"] == metrics["context"]["caveats"]
    assert model.metadata["training_minutes"] == metrics["context"]["training_minutes"]
    assert len(model.metadata["seen"]["sha256"]) == (pd.read_csv(run / "split.csv")["part"] != "test").sum()
    assert model.metadata["recipe"] == yaml.safe_load((run / "recipe.yaml").read_text())
    assert metrics["context"]["seed"] == 0
    assert metrics["context"]["command"].startswith("cervicyte")


def test_a_report_has_no_row_without_a_value(run):
    """A network from random weights has no file of first weights, and so no hash of one."""
    assert ">Backbone, source<" in (run / "report.html").read_text()
    assert "<td></td>" not in (run / "report.html").read_text()


def test_every_artefact_says_that_it_is_for_research_only(run):
    for name in ("metrics.json", "report.html", "split.json"):
        assert RESEARCH_USE_ONLY in (run / name).read_text()
    model = torch.load(run / "best_model.pth", weights_only=True)
    assert RESEARCH_USE_ONLY in json.dumps(model["cervicyte"])


def test_a_finished_run_is_not_overwritten(run, cells):
    before = (run / "best_model.pth").read_bytes()
    assert "--force" in one_sentence(cervicyte("train", cells, "--out", run, *TINY))
    assert (run / "best_model.pth").read_bytes() == before


def test_force_throws_nothing_away_before_all_that_is_read_is_right(run, cells, tmp_path):
    kept = tmp_path / "run"
    shutil.copytree(run, kept)
    before = {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()}
    model, split, into = kept / "best_model.pth", kept / "split.csv", ("--out", kept, "--force")
    assert "nowhere" in one_sentence(cervicyte("train", tmp_path / "nowhere", *into, *TINY))
    assert "nowhere" in one_sentence(cervicyte("probe", tmp_path / "nowhere", *into, "--backbone", "none"))
    assert cervicyte("probe", tmp_path, *into, "--image-size", "0").exit_code == 2
    evaluated = cervicyte("evaluate", model, "--data", cells, "--split", split, *into)
    assert f"{model}: is to be read, and --force would throw it away" in one_sentence(evaluated)
    goes_on = cervicyte("train", cells, "--from", model, *into)
    assert f"{model}: is to be read, and --force would throw it away" in one_sentence(goes_on)
    assert {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()} == before


def test_force_keeps_the_split_that_is_named_whatever_comes_after(run, cells, tmp_path, monkeypatch):
    kept, into = tmp_path / "run", ("--out", tmp_path / "run", "--force")
    shutil.copytree(run, kept)
    split, before = kept / "split.csv", {name: (kept / name).read_bytes() for name in SPLIT_FILES}

    def lost() -> dict[str, bytes]:
        return {name: now for name in SPLIT_FILES if (now := (kept / name).read_bytes()) != before[name]}

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "write_recipe", killed)
        assert cervicyte("train", cells, "--split", split, *into, *TINY[:-2]).exit_code == 130
    assert not (kept / "metrics.json").exists()
    assert not lost()
    evaluated = cervicyte(
        "evaluate", run / "best_model.pth", "--data", cells, "--split", split, *into, "--no-images"
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert not lost()
    named_as_another = kept / "metrics.csv"
    split.rename(named_as_another)
    for command in (("train", cells, *TINY[:-2]), ("probe", cells, "--backbone", "none")):
        refused = one_sentence(cervicyte(*command, "--split", named_as_another, *into))
        assert "metrics.json: is to be read, and --force would throw it away" in refused
    assert named_as_another.read_bytes() == before["split.csv"]


@pytest.mark.parametrize("content", ["[1, 2]", "5", "null", "{}", '{"cells": 5}'])
def test_figures_of_another_shape_are_no_finished_run(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    refused = one_sentence(cervicyte("train", tmp_path / "cells", "--out", tmp_path, "--resume"))
    assert "metrics.json: is damaged or of another kind; evaluate anew with --force." in refused


def test_resuming_a_finished_run_changes_nothing(run, cells):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    result = cervicyte("train", cells, "--out", run, "--resume")
    assert result.exit_code == 0, result.output
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--epochs", "2"], "another recipe (epochs differ)"),
        (["--set", "augmentation.blur=0", "--seed", "5"], "another recipe (seed, augmentation.blur differ)"),
        (["--recipe", "RECIPE"], "another recipe"),
        (["--fold", "1"], "another split"),
    ],
)
def test_a_finished_run_is_not_resumed_with_another_recipe_or_split(change, named, run, cells, tmp_path):
    (tmp_path / "recipe.yaml").write_text("patience: 2\n")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    change = [str(tmp_path / "recipe.yaml") if word == "RECIPE" else word for word in change]
    assert named in one_sentence(cervicyte("train", cells, "--out", run, "--resume", *change))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_finished_run_takes_the_same_command_again(run, cells):
    result = cervicyte("train", cells, "--out", run, "--resume", *TINY)
    assert result.exit_code == 0, result.output
    assert "nothing is left to do" in result.stderr


def test_an_unfinished_run_asks_whether_to_go_on(cells, tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")
    assert "--resume" in one_sentence(cervicyte("train", cells, "--out", tmp_path, *TINY))


def test_a_resumed_run_does_not_change_its_split(run, cells, tmp_path):
    for name in ("split.csv", "recipe.yaml"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    refused = cervicyte("train", cells, "--out", tmp_path, "--resume", "--fold", "1")
    assert "another split" in one_sentence(refused)


def test_resuming_with_another_recipe_is_refused_and_keeps_the_first(run, cells, tmp_path):
    for name in ("split.csv", "split.json", "recipe.yaml"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    torch.save({"fingerprint": "of the first recipe"}, tmp_path / "checkpoint.pth")
    refused = cervicyte("train", cells, "--out", tmp_path, "--resume", "--epochs", "2")
    assert "another recipe" in one_sentence(refused)
    assert (tmp_path / "recipe.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()


def test_a_split_file_is_used_as_it_is(run, cells, tmp_path):
    out = tmp_path / "again"
    tiny = TINY[:-2]
    result = cervicyte("train", cells, "--out", out, "--split", run / "split.csv", *tiny)
    assert result.exit_code == 0, result.output
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (run, out))
    assert first["context"]["split"]["hash"] == second["context"]["split"]["hash"]
    assert first["context"]["model"]["weights_sha256"] == second["context"]["model"]["weights_sha256"]


# --- evaluate ----------------------------------------------------------------------------------


def test_a_model_is_not_evaluated_on_the_cells_it_was_trained_on(run, cells, tmp_path):
    model = run / "best_model.pth"
    sentence = one_sentence(cervicyte("evaluate", model, "--data", cells, "--out", tmp_path / "e"))
    assert "--allow-seen" in sentence
    allowed = cervicyte("evaluate", model, "--data", cells, "--out", tmp_path / "e", "--allow-seen")
    assert allowed.exit_code == 0, allowed.output
    assert "seen in training" in (tmp_path / "e" / "report.html").read_text()


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    """The run's model as it would ship."""
    path = tmp_path_factory.mktemp("shipped") / "model.safetensors"
    result = cervicyte("export", run / "best_model.pth", "--format", "safetensors", "--out", path)
    assert result.exit_code == 0, result.output
    return path


def test_an_exported_model_knows_its_training_cells_and_every_artefact_says_that_they_were_seen(
    run, shipped, cells, tmp_path
):
    parts = pd.read_csv(run / "split.csv")["part"]
    counted = f"{(parts != 'test').sum()} of {len(parts)} cells"
    refused = one_sentence(cervicyte("evaluate", shipped, "--data", cells, "--out", tmp_path))
    assert counted in refused
    assert "evaluate the run's test part with --split" in refused
    refused = one_sentence(cervicyte("audit", shipped, "--data", cells, "--out", tmp_path / "audit"))
    assert counted in refused
    assert "audit the run's test part with --split" in refused
    allowed = cervicyte("evaluate", shipped, "--data", cells, "--out", tmp_path, "--allow-seen", "--force")
    assert allowed.exit_code == 0, allowed.output
    said = f"{counted} were seen in training: the figures flatter."
    assert said in (tmp_path / "report.html").read_text()
    assert said in json.loads((tmp_path / "metrics.json").read_text())["context"]["caveats"]
    assert said in Image.open(tmp_path / "confusion_matrix.png").info["Description"]


def test_an_exported_model_calls_the_test_cells_what_the_run_called_them(run, shipped, cells, tmp_path):
    split = ("--split", run / "split.csv")
    result = cervicyte("evaluate", shipped, "--data", cells, *split, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    first, second = (pd.read_csv(f / "test_predictions.csv") for f in (run, tmp_path))
    unlike = "unlike_percentile"  # of rounded features
    pd.testing.assert_frame_equal(first.drop(columns=unlike), second.drop(columns=unlike), atol=1e-3)
    np.testing.assert_allclose(first[unlike], second[unlike], atol=5)  # among few reference cells
    explained = cervicyte("explain", shipped, cells, "--out", tmp_path / "x", "--limit", "1", "--no-verdict")
    assert explained.exit_code == 0, explained.output


def test_the_page_on_the_model_file_has_every_field_of_one(shipped):
    page = (PROJECT / "docs" / "model_file.md").read_text()
    with safe_open(shipped, framework="numpy") as file:
        fields = json.loads(file.metadata()["cervicyte"])
    assert {"seen", "recipe", "metrics", "split"} < fields.keys()
    for field in [*fields, *Metadata.model_fields, *fields["metrics"]]:
        assert f"`{field}`" in page, field


def test_the_card_of_a_run_has_the_figures_of_its_report(run):
    card = cervicyte("card", run / "best_model.pth").output
    accuracy = json.loads((run / "metrics.json").read_text())["overall"]["accuracy"]
    value, low, high = (f"{100 * accuracy[key]:.1f}" for key in ("value", "low", "high"))
    assert f"| Accuracy | {value} % [{low}, {high}] |" in card


def test_the_test_part_evaluated_again_gives_the_same_predictions(run, cells, tmp_path):
    result = cervicyte(
        "evaluate", run / "best_model.pth", "--data", cells, "--split", run / "split.csv", "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    first, second = (pd.read_csv(f / "test_predictions.csv") for f in (run, tmp_path))
    pd.testing.assert_frame_equal(first, second, atol=1e-5)


def test_other_classes_need_a_map_and_get_along_with_one(run, cells, tmp_path):
    other = tmp_path / "other"
    for label, source in (("black", "dark"), ("white", "light")):
        (other / label).mkdir(parents=True)
        for index in range(4):
            rng = np.random.default_rng(index)
            pixels = rng.integers(0, 60, (30, 30, 3)) + (20 if source == "dark" else 190)
            Image.fromarray(pixels.astype(np.uint8)).save(other / label / f"a{index}.png")
    model = run / "best_model.pth"
    sentence = one_sentence(cervicyte("evaluate", model, "--data", other, "--out", tmp_path / "e"))
    assert "--class-map" in sentence
    assert "black" in sentence
    mapping = tmp_path / "map.yaml"
    mapping.write_text("black: dark\nwhite: bright\n")
    wrong = cervicyte("evaluate", model, "--data", other, "--out", tmp_path / "e", "--class-map", mapping)
    assert "bright" in one_sentence(wrong)
    mapping.write_text("black: dark\nwhite: light\ngrey: light\n")
    wrong = cervicyte("evaluate", model, "--data", other, "--out", tmp_path / "e", "--class-map", mapping)
    assert "has no class grey, which --class-map names; its classes are black, white" in one_sentence(wrong)
    mapping.write_text("black: dark\nwhite: light\n")
    result = cervicyte("evaluate", model, "--data", other, "--out", tmp_path / "e", "--class-map", mapping)
    assert result.exit_code == 0, result.output
    assert set(pd.read_csv(tmp_path / "e" / "test_predictions.csv")["true_class"]) == {
        "dark",
        "light",
    }


def test_a_checkpoint_of_the_original_notebook_is_evaluated(cells, tmp_path):
    path = tmp_path / "original.pth"
    state = CBAMResNet50(2).state_dict()
    torch.save({"model_state_dict": state, "class_names": ["dark", "light"], "epoch": 3}, path)
    result = cervicyte("evaluate", path, "--data", cells, "--out", tmp_path / "e", "--no-images")
    assert result.exit_code == 0, result.output
    assert "does not say which cells" in (tmp_path / "e" / "report.html").read_text()


# --- what goes wrong ---------------------------------------------------------------------------


def test_a_damaged_image_is_named_and_nothing_is_trained(cells, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(cells, broken)
    out = tmp_path / "run"
    for name in ("001_02.png", "003_02.png", "005_02.png"):  # of whatever part, the test part too
        bad = broken / "dark" / name
        whole = bad.read_bytes()
        bad.write_bytes(whole[:100])
        assert name in one_sentence(cervicyte("train", broken, "--out", out, *TINY))
        assert not list(out.iterdir())
        bad.write_bytes(whole)


def test_after_weights_that_are_missing_the_same_command_with_others_goes_through(cells, tmp_path):
    out = tmp_path / "run"
    wrong = ["none.pth" if argument == "none" else argument for argument in TINY]
    assert "none.pth" in one_sentence(cervicyte("train", cells, "--out", out, *wrong))
    result = cervicyte("train", cells, "--out", out, *TINY)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "nowhere"], "nowhere"),
        (["train", "CELLS", "--set", "epoch=3"], "did you mean epochs"),
        (["train", "CELLS", "--recipe", "no.yaml"], "no.yaml"),
        (["train", "CELLS", "--backbone", "no.safetensors", "--folds", "3"], "no.safetensors"),
        (["train", "CELLS", "--set", "missed_abnormal_cost=3", "--folds", "3"], "whether the class dark"),
        (["train", "CELLS", "--split", "no.csv"], "no.csv"),
        (["evaluate", "no.pth", "--data", "CELLS"], "no.pth"),
        (["evaluate", "MODEL", "--data", "CELLS", "--part", "nopart"], "--part nopart needs --split"),
        (["audit", "MODEL", "--data", "CELLS", "--part", "test"], "--part test needs --split"),
        (["explain", "no.pth", "CELLS"], "no.pth"),
        (["explain", "MODEL", "nowhere"], "nowhere"),
        (["explain", "CELLS", "--model", "no.pth"], "no.pth"),
        (["explain", "cell.png"], "cell.png: there is no such image"),
        (["explain", "MODEL"], "name one image or folder"),
        (["explain", "MODEL", "CELLS", "--method", "guess"], "guess"),
        (["serve", "no.pth", "--no-browser"], "no.pth"),
        (["serve", "no.safetensors", "--no-browser"], "no.safetensors"),
        (["card", "no.pth"], "no.pth"),
        (["export", "no.pth", "--format", "pth", "--out", "out.pth"], "no.pth"),
        (["compare", "no_run", "no_other"], "no_run"),
    ],
)
def test_bad_input_gets_one_sentence_that_names_it(arguments, named, run, cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"CELLS": cells, "MODEL": run / "best_model.pth"}
    result = cervicyte(*[places.get(argument, argument) for argument in arguments])
    assert named in one_sentence(result)


def test_a_group_on_both_sides_of_a_split_is_refused_by_name(run, cells, tmp_path):
    lines = (run / "split.csv").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith(",test"))
    group = lines[first].split(",")[3]
    lines[first] = lines[first][: -len("test")] + "train"
    leaking = tmp_path / "leaking.csv"
    leaking.write_text("\n".join(lines) + "\n")
    refused = cervicyte("train", cells, "--split", leaking, "--out", tmp_path / "run", *TINY[:-2])
    assert group in one_sentence(refused)
    assert not (tmp_path / "run" / "best_model.pth").exists()


def test_a_split_is_not_written_over_unasked_nor_a_file_that_is_called_as_what_stands_beside_it(
    cells, tmp_path
):
    split = tmp_path / "split.csv"
    for name in (split.name, "split.json"):
        there = tmp_path / name
        there.write_text("mine")
        refused = one_sentence(cervicyte("split", cells, "--folds", "3", "--out", split))
        assert f"{there}: is there already" in refused
        assert "--force" in refused
        assert there.read_text() == "mine"
        there.rename(tmp_path / "elsewhere")
    assert cervicyte("split", cells, "--folds", "3", "--out", split).exit_code == 0
    before = split.read_text()
    assert "--force" in one_sentence(cervicyte("split", cells, "--folds", "4", "--out", split))
    assert split.read_text() == before
    assert cervicyte("split", cells, "--folds", "4", "--out", split, "--force").exit_code == 0
    assert split.read_text() != before
    assert "is a table" in one_sentence(cervicyte("split", cells, "--out", tmp_path / "new.json"))


def test_a_named_leak_is_let_through_and_every_artefact_says_so(cells, tmp_path):
    by_cell, out = tmp_path / "by_cell.csv", tmp_path / "run"
    made = cervicyte("split", cells, "--by", "cell", "--out", by_cell)
    assert made.exit_code == 0, made.output
    assert "must name the leak: --allow-leak cell" in made.stderr
    asked = ("train", cells, "--split", by_cell, "--out", out, *TINY[:-2])
    assert "--allow-leak cell" in one_sentence(cervicyte(*asked))
    assert "--allow-leak cell" in one_sentence(cervicyte(*asked, "--allow-leak", "field"))
    trained = cervicyte(*asked, "--allow-leak", "cell")
    assert trained.exit_code == 0, trained.output
    said = "Leak by cell, allowed by name"
    assert said in json.loads((out / "metrics.json").read_text())["context"]["leak"]
    assert said in (out / "report.html").read_text()
    assert said in load_model_file(out / "best_model.pth").metadata["leak"]
    for name in ("confusion_matrix.png", "training_history.png"):
        assert said in Image.open(out / name).info["Description"]
    again = ("evaluate", out / "best_model.pth", "--data", cells, "--split", by_cell, "--out", tmp_path / "e")
    assert "--allow-leak cell" in one_sentence(cervicyte(*again))
    judged = cervicyte(*again, "--allow-leak", "cell", "--allow-seen")
    assert judged.exit_code == 0, judged.output
    assert said in json.loads((tmp_path / "e" / "metrics.json").read_text())["context"]["leak"]


def test_inspect_says_by_its_status_whether_there_are_findings(cells, tmp_path):
    import shutil

    copied = tmp_path / "copied"
    shutil.copytree(cells, copied)
    shutil.copy(copied / "dark" / "001_01.png", copied / "light" / "009_01.png")
    result = cervicyte("inspect", copied, "--out", tmp_path / "found")
    assert result.exit_code == 1, result.output
    written = {path.name for path in (tmp_path / "found").iterdir()}
    assert written == {"inspection.html", "inspection.json", "groups.csv", "twins.csv"}
    assert "nowhere" in one_sentence(cervicyte("inspect", "nowhere", "--out", tmp_path / "none"))


# --- compare, explain, and the door itself -------------------------------------------------------


def test_a_run_compared_with_its_copy_differs_by_nothing(run, tmp_path):
    assert "named twice" in one_sentence(cervicyte("compare", run, run))
    copy = shutil.copy(run / "test_predictions.csv", tmp_path / "copy.csv")
    result = cervicyte("compare", run, copy)
    assert result.exit_code == 0, result.output
    first, second = result.output.split(f"{copy}: ")
    assert "is there already" in one_sentence(cervicyte("compare", run, copy, "--out", run / "split.csv"))
    assert "p = " not in first
    assert re.search(r"Accuracy  [\d.]+ \[[\d., ]+\], \+0\.0 \[\+0\.0, \+0\.0\], p = 1\n", second)
    assert re.search(r"Macro F1  [\d.]+ \[[\d., ]+\], \+0\.0 \[\+0\.0, \+0\.0\]\n", second)
    assert result.output.strip().endswith(RESEARCH_USE_ONLY)


def test_explain_leaves_maps_of_unseen_cells_of_each_class(run, cells, tmp_path):
    options = ["--limit", "1", "--no-verdict", "--arrays", "--colormap", "jet"]
    result = cervicyte("explain", run / "best_model.pth", cells, "--out", tmp_path, *options)
    assert result.exit_code == 0, result.output
    for folder, beginning in (("gradcam_outputs", ""), ("gradcam_specific_class_outputs", "specific_class_")):
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert [name.startswith(f"gradcam_{beginning}{label}_") for name, label in zip(
            names, ("dark", "light"), strict=True
        )] == [True, True]  # fmt: skip
    assert "took part in training" in result.output
    assert "HiResCAM at cbam4 plus the class's bias is its logit" in result.output
    record = json.loads((tmp_path / "explanation.json").read_text())
    parts = dict(line.split(",")[0::4] for line in (run / "split.csv").read_text().splitlines())
    assert {parts[cell["name"]] for cell in record["cells"]} == {"test"}


def test_images_of_unknown_class_can_be_explained_with_a_verdict(run, cells, tmp_path):
    images = [cells / label / "001_01.png" for label in ("dark", "light")]
    result = cervicyte("explain", run / "best_model.pth", *images, "--out", tmp_path, "--target", "contrast")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "gradcam_outputs").iterdir())) == 2
    named = ("--model", run / "best_model.pth", "--out", tmp_path / "named", "--no-verdict")
    assert cervicyte("explain", *images, *named).exit_code == 0
    again = cervicyte("explain", run / "best_model.pth", images[0], "--out", tmp_path)
    assert "--force" in one_sentence(again)
    result = cervicyte("explain", run / "best_model.pth", images[0], "--out", tmp_path, "--force")
    assert result.exit_code == 0, result.output
    assert "Verdicts: " in result.output
    assert len(list((tmp_path / "gradcam_outputs").iterdir())) == 1


def test_help_imports_nothing_that_takes_long():
    """It answers in 0.3 s on a quiet machine; numpy and OpenCV would add 0.3 s, torch 2 s."""
    command = [sys.executable, "-X", "importtime", "-m", "cervicyte", "--help"]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "cross-validate" in said.stdout
    imported = {line.rsplit("|")[-1].strip().split(".")[0] for line in said.stderr.splitlines()}
    assert {"typer", "cervicyte"} <= imported
    assert not imported & {
        "numpy",
        "cv2",
        "pandas",
        "torch",
        "sklearn",
        "matplotlib",
        "PIL",
        "pydantic",
        "gradio",
    }


def test_a_model_saved_by_us_loads_in_the_original_notebook(tmp_path):
    """The notebook reads these keys, and loads the state dict strictly into the same names."""
    path = tmp_path / "best_model.pth"
    from cervicyte.images.preprocessing import Preprocessing

    save_model(path, ModelFile(CBAMResNet50(5), tuple("abcde"), Preprocessing(), 4, 0.9))
    content = torch.load(path, weights_only=True)
    assert (content["epoch"], content["best_val_acc"], content["class_names"]) == (4, 0.9, list("abcde"))
    CBAMResNet50(5).load_state_dict(content["model_state_dict"], strict=True)
