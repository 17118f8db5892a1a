"""A released model was trained on all cells and carries what its cross-validation found out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import draw_two_classes
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.splits import read_split
from cervicyte.errors import RunFolderError
from cervicyte.evaluation.calibration import read_calibration
from cervicyte.evaluation.cross_validation import cross_validate, fold_folder
from cervicyte.evaluation.familiarity import distances_of, fit_spaces
from cervicyte.evaluation.features import pooled_features
from cervicyte.evaluation.release import release
from cervicyte.evaluation.run import labelled_images
from cervicyte.images.reader import read_image
from cervicyte.inference.classifier import Classifier
from cervicyte.network.model_file import load_model_file
from cervicyte.provenance import RESEARCH_USE_ONLY

RECIPE = {
    "backbone": "none",
    "preprocessing.image_size": 32,
    "preprocessing.canvas_size": 32,
    "epochs": 1,
    "batch_size": 8,
    "frozen_stages": 4,
    "ema_decay": 0,
    "keep": "last",
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return draw_two_classes(tmp_path_factory.mktemp("data") / "cells", 9, 2)


@pytest.fixture(scope="module")
def folds(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("folds") / "cv"
    cross_validate(cells, out, overrides=RECIPE, folds=3)
    return out


@pytest.fixture(scope="module")
def released(cells, folds, tmp_path_factory):
    out = tmp_path_factory.mktemp("release") / "out"
    result = CliRunner().invoke(
        app, ["release", str(cells), "--folds", str(folds), "--out", str(out), "--licence", "Some"]
    )
    assert result.exit_code == 0, result.output
    assert RESEARCH_USE_ONLY in result.output
    return out


def test_the_model_carries_figures_and_calibration_of_the_cross_validation(released, folds, cells):
    model = load_model_file(released / "model.safetensors")
    summary = json.loads((folds / "cross_validation.json").read_text())
    assert model.metadata["cross_validation"]["figures"]["accuracy"] == {
        end: summary["figures"]["accuracy"][end] for end in ("value", "low", "high")
    }
    assert model.metadata["calibration"] == read_calibration(folds).to_json()
    dataset = read_dataset(cells)
    assert len(model.metadata["seen"]["sha256"]) == len(dataset.cells)
    assert model.metadata["recipe"]["keep"] == "last"
    images = [read_image(cell.path).reshape(-1, 3) for cell in dataset.cells]
    background = np.median([np.percentile(image, 95, axis=0) for image in images], axis=0)
    assert model.metadata["background"] == pytest.approx(list(background))
    assert not (released / "checkpoint.pth").exists()
    card = (released / "model_card.md").read_text()
    assert "Weights: Some." in card
    assert "In a cross-validation of networks trained alike (36 cells, 18 groups)" in card


def test_both_files_answer_alike_and_say_how_unlike_an_image_is(released, cells):
    images = [read_image(cell.path) for cell in read_dataset(cells).cells[:6]]
    answers = [
        Classifier.from_file(released / name, "cpu").predict(images)
        for name in ("best_model.pth", "model.safetensors")
    ]
    for one, other in zip(*answers, strict=True):
        assert one.class_name == other.class_name
        assert one.confidence == pytest.approx(other.confidence, abs=0.01)
        assert one.unlike is not None


def test_a_cells_distance_is_that_in_the_fold_that_had_not_seen_it(released, cells, folds):
    dataset = read_dataset(cells)
    distances = {}
    for fold in range(3):
        folder = fold_folder(folds, 0, fold)
        model, split = load_model_file(folder / "best_model.pth"), read_split(folder / "split.csv")
        part = dict(zip(split["path"], split["part"], strict=True))
        images = labelled_images(dataset.cells, dataset.classes, model.preprocessing)
        features = pooled_features(model.network, images.images, model.preprocessing)
        trained = np.array([part[cell.name] == "train" for cell in dataset.cells])
        spaces = fit_spaces(
            {stage: values[trained] for stage, values in features.items()}, images.targets[trained]
        )
        found = distances_of(spaces, features)["stage4"]
        for at, cell in enumerate(dataset.cells):
            if part[cell.name] == "test":
                distances[cell.name] = found[at]
    usual = load_model_file(released / "model.safetensors").metadata["familiarity"]
    expected = np.percentile(list(distances.values()), [0, 50, 100])
    np.testing.assert_allclose([usual["distances"]["stage4"][at] for at in (0, 50, 100)], expected, rtol=1e-2)
    assert usual["reference_cells"] == 36


def test_a_released_model_refuses_all_its_cells(released, cells, tmp_path):
    result = CliRunner().invoke(
        app,
        ["evaluate", str(released / "model.safetensors"), "--data", str(cells), "--out", str(tmp_path / "e")],
    )
    assert result.exit_code == 2
    assert "36 of 36 cells" in result.output


def test_what_no_model_can_be_made_of_is_refused(cells, folds, tmp_path):
    with pytest.raises(RunFolderError, match="finish `cervicyte cross-validate` first"):
        release(cells, tmp_path, tmp_path / "out")
    probe = tmp_path / "probe"
    probe.mkdir()
    summary = json.loads((folds / "cross_validation.json").read_text())
    (probe / "cross_validation.json").write_text(json.dumps(summary | {"recipe": None}))
    with pytest.raises(RunFolderError, match="linear probe"):
        release(cells, probe, tmp_path / "out")
    leaking = tmp_path / "leaking"
    leaking.mkdir()
    summary["context"]["leak"] = "Groups stand on both sides."
    (leaking / "cross_validation.json").write_text(json.dumps(summary))
    with pytest.raises(RunFolderError, match="must not flatter"):
        release(cells, leaking, tmp_path / "out")


@pytest.mark.parametrize("content", ["[1]", "5", "{}", '{"recipe": {}}', '{"recipe": {}, "context": {}}'])
def test_a_summary_of_another_shape_is_refused_by_name(tmp_path, content):
    (tmp_path / "cross_validation.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"cross_validation\.json: is damaged .*; cross-validate anew"):
        release(tmp_path / "cells", tmp_path, tmp_path / "out")
