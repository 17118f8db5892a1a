"""A model goes on from another: on few cells, with other classes, not tested on what that one saw."""

from __future__ import annotations

import copy
import json
import weakref
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import PROJECT
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.errors import RecipeError
from cervicyte.evaluation import last_stage
from cervicyte.evaluation.features import logits_of_means, pooled_features
from cervicyte.evaluation.frozen_network import STRENGTHS, UNCHOSEN, fit_logistic
from cervicyte.evaluation.predictions import softmax
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import sha256_of_file
from cervicyte.training.cells import normalised
from cervicyte.training.loop import parameter_groups
from cervicyte.training.recipe import read_recipe
from cervicyte.training.start import first_network, refuse_few_cells, with_parents_settings

SMALL = Preprocessing(canvas_size=32, image_size=32)
LEVELS = {"dark": 20, "middle": 100, "light": 190}


def cervicyte(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(result) -> str:
    assert result.exit_code == 2, result.output
    return next(line for line in result.stderr.splitlines() if line.startswith("Error: "))


def draw_cells(root, labels, seed, fields=5, each=1):
    rng = np.random.default_rng(seed)
    for label in labels:
        (root / label).mkdir(parents=True)
        for field in range(1, fields + 1):
            for cell in range(1, each + 1):
                pixels = rng.integers(0, 50, (36, 30, 3)) + LEVELS[label]
                Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{field:03d}_{cell:02d}.png")
    return root


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Three classes of five cells, each in a field of its own: as few as a laboratory may label."""
    return draw_cells(tmp_path_factory.mktemp("data") / "cells", LEVELS, 1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("parent") / "parent.pth"
    metadata = {"seen": {"sha256": ["0" * 64], "groups": ["sipakmed:g001"]}, "data": "elsewhere"}
    save_model(path, ModelFile(CBAMResNet50(2), ("light", "other"), SMALL, metadata=metadata))
    return path


@pytest.fixture(scope="module")
def run(cells, parent, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = PROJECT / "recipes" / "few-cells.yaml"
    result = cervicyte("train", cells, "--from", parent, "--recipe", recipe, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_five_cells_a_class_make_a_model_that_says_what_it_cannot_promise(run, parent):
    model = load_model_file(run / "best_model.pth")
    assert model.class_names == ("dark", "light", "middle")
    assert model.preprocessing == SMALL
    assert model.kind == "cbam-resnet50-covariance"
    kept = load_model_file(parent).network.state_dict()
    for name, value in model.network.state_dict().items():
        if not name.startswith(("fc.", "layer4.")):
            assert torch.equal(value, kept[name]), name
    report = json.loads((run / "metrics.json").read_text())
    assert any("stands in every prediction set" in caveat for caveat in report["context"]["caveats"])
    assert "stands in every prediction set" in (run / "report.html").read_text()
    assert report["cells"] == 3


def test_a_model_file_names_its_parent_and_carries_its_cells_along(run, parent):
    about = load_model_file(run / "best_model.pth").metadata
    assert about["parent"]["file"] == "parent.pth"
    assert about["parent"]["sha256"] == sha256_of_file(parent)
    assert about["parent"]["rows_kept"] == ["light"]
    split = pd.read_csv(run / "split.csv")
    own = set(split.loc[split["part"] != "test", "sha256"])
    assert set(about["seen"]["sha256"]) == own | {"0" * 64}
    assert about["seen"]["groups"] == ["sipakmed:g001"]
    assert yaml.safe_load((run / "recipe.yaml").read_text())["preprocessing"]["image_size"] == 32
    assert "parent.pth" in cervicyte("card", run / "best_model.pth").output


def test_a_cell_that_the_parent_saw_does_not_test(run, cells, tmp_path):
    seen = run / "best_model.pth"
    refused = error_of(cervicyte("train", cells, "--from", seen, "--fold", "1", "--out", tmp_path / "other"))
    assert "test cells, first" in refused
    assert "of the model to start from" in refused
    split = ("--split", run / "split.csv", "--set", "classifier=logistic")
    allowed = cervicyte("train", cells, "--from", seen, *split, "--out", tmp_path / "same")
    assert allowed.exit_code == 0, allowed.output
    caveats = json.loads((tmp_path / "same" / "metrics.json").read_text())["context"]["caveats"]
    assert any("validation cells were seen" in caveat for caveat in caveats)


def test_a_parent_that_does_not_know_its_cells_is_said_so_from_then_on(cells, tmp_path):
    path = tmp_path / "unknown.pth"
    save_model(path, ModelFile(CBAMResNet50(2), ("a", "b"), SMALL))
    out = tmp_path / "run"
    result = cervicyte("train", cells, "--from", path, "--set", "classifier=logistic", "--out", out)
    assert result.exit_code == 0, result.output
    card = " ".join(cervicyte("card", out / "best_model.pth").output.split())
    assert "that this one was trained from does not say which cells it was trained on" in card


def test_a_parent_is_fine_tuned_by_gradient_too(cells, parent, tmp_path):
    options = ["--set", "frozen_stages=3", "--set", "keep=last", "--epochs", "1", "--out", tmp_path]
    result = cervicyte("train", cells, "--from", parent, *options)
    assert result.exit_code == 0, result.output
    before = load_model_file(parent).network.state_dict()
    after = load_model_file(tmp_path / "best_model.pth").network.state_dict()
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"layer4", "cbam4", "fc"}
    assert cervicyte("train", cells, "--from", parent, *options, "--resume").exit_code == 0


def test_the_last_stage_learns_with_a_fitted_classifier_and_nothing_before_it(cells, parent, tmp_path):
    recipe = ("--recipe", PROJECT / "recipes" / "few-cells.yaml", "--set", "classifier=last_stage")
    result = cervicyte("train", cells, "--from", parent, *recipe, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    before = load_model_file(parent).network.state_dict()
    model = load_model_file(tmp_path / "best_model.pth")
    after = model.network.state_dict()
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"layer4", "cbam4", "fc"}
    assert all(torch.equal(after[name], before[name]) for name in before if "running" in name)
    assert "then the last stage" in model.metadata["classifier"]["kind"]


def test_backbone_and_parent_are_not_both_taken(cells, parent, tmp_path):
    both = cervicyte("train", cells, "--from", parent, "--backbone", "none", "--out", tmp_path)
    assert "one of them" in error_of(both)
    assert "gone.pth" in error_of(cervicyte("train", cells, "--from", "gone.pth", "--out", tmp_path))


# --- parts -------------------------------------------------------------------------------------------------


def test_a_recipe_takes_from_the_parent_what_it_does_not_state(parent):
    model = load_model_file(parent)
    recipe = with_parents_settings(read_recipe(overrides={"preprocessing.image_size": 64}), model)
    assert (recipe.preprocessing.canvas_size, recipe.preprocessing.image_size) == (32, 64)
    with pytest.raises(RecipeError, match="gates at 'stage'"):
        with_parents_settings(read_recipe(overrides={"placement": "none"}), model)


def test_classes_of_the_same_name_keep_their_rows(parent):
    recipe = read_recipe(overrides={"parent": str(parent), "preprocessing.image_size": 32})
    network, about = first_network(recipe, ("new", "light"))
    before = load_model_file(parent).network
    assert torch.equal(network.fc.weight[1], before.fc.weight[0])
    assert not torch.equal(network.fc.weight[0], before.fc.weight[1])
    assert about["parent"]["rows_kept"] == ["light"]


def test_trained_gates_learn_as_slowly_as_their_stage_and_freeze_with_it(parent):
    recipe = read_recipe(overrides={"parent": str(parent), "learning_rate": 1.0, "layer_decay": 0.5})
    network, _ = first_network(recipe, ("a", "b"))
    rate_of = {
        id(parameter): group["lr"]
        for group in parameter_groups(network, recipe)
        for parameter in group["params"]
    }
    rates = {name: rate_of[id(parameter)] for name, parameter in network.named_parameters()}
    assert rates["fc.weight"] == 1
    assert rates["cbam4.spatial_attention.conv.weight"] == rates["layer4.0.conv1.weight"] == 0.5
    network.freeze(3, gates=True)
    assert {name.split(".")[0] for name, one in network.named_parameters() if one.requires_grad} == {
        "layer4",
        "cbam4",
        "fc",
    }


def test_a_release_or_an_ablation_does_not_start_from_a_model(parent):
    with pytest.raises(RecipeError, match=r"An ablation .* leave parent and classifier out"):
        refuse_few_cells(read_recipe(overrides={"parent": str(parent)}), "An ablation compares trainings")


@pytest.mark.parametrize("classes", [2, 4])
def test_the_regression_is_scikit_learns_at_the_strength_that_was_chosen(classes):
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(classes), 12)
    features = rng.normal(3, 2, (len(targets), 90)) + 1.5 * np.eye(classes, 90)[targets]
    features[:, 5] = 1.0  # one that says nothing has no spread to divide by
    fit = fit_logistic(
        features, targets, [str(place // 2) for place in range(len(targets))], np.ones(classes)
    )
    assert fit.strength in STRENGTHS
    assert fit.inner_loss < np.log(classes)
    scaler = StandardScaler().fit(features)
    theirs = LogisticRegression(C=fit.strength, max_iter=5000, tol=1e-8).fit(
        scaler.transform(features), targets
    )
    new = rng.normal(3, 2, (20, 90))
    assert np.allclose(fit.probabilities(new), theirs.predict_proba(scaler.transform(new)), atol=5e-3)


def test_cells_in_one_group_a_class_leave_the_strength_as_it_is():
    features = np.random.default_rng(0).normal(size=(6, 8))
    fit = fit_logistic(features, np.array([0, 0, 0, 1, 1, 1]), list("aaabbb"), np.ones(2))
    assert (fit.strength, fit.inner_loss) == (UNCHOSEN, None)


@pytest.mark.parametrize("placement", ["stage", "none"])
def test_what_stands_before_the_last_stage_goes_on_to_the_network_s_own_answer(placement):
    torch.manual_seed(0)
    network = CBAMResNet50(2, placement)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    activations = last_stage.turned_activations(network, images, SMALL)
    means = pooled_features(network, np.rot90(images, 3, (1, 2)).copy(), SMALL)["stage4"]
    alone = last_stage.last_stage_means(network, activations[3:])
    assert np.allclose(alone, means, rtol=0.05, atol=0.02 * np.abs(means).max())
    logits = last_stage.last_stage_logits(network, activations[3])
    assert np.allclose(logits, logits_of_means(network, alone), atol=0.05 * np.abs(logits).max())


class LiveTensors(TorchDispatchMode):
    """Knows how many bytes all tensors together take, at most, that were made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self._made.append(weakref.ref(out))
        storages = [made.untyped_storage() for one in self._made if (made := one()) is not None]
        self.most = max(self.most, sum({one.data_ptr(): one.nbytes() for one in storages}.values()))
        return out


class Wide(torch.nn.Module):
    """Gives 64 channels for 3, as the stages of a network do."""

    layers = ("layer3", "layer4")

    def features(self, inputs, until):
        return inputs[:, :1].repeat(1, 64, 1, 1)


def test_turned_activations_are_held_once_on_the_way_to_their_place():
    images = np.random.default_rng(0).integers(0, 256, (8 * last_stage.BATCH, 8, 8, 3)).astype(np.uint8)
    live = LiveTensors()
    with live:
        activations = last_stage.turned_activations(cast(CBAMResNet50, Wide()), images, SMALL)
    assert activations.shape == (4, len(images), 64, 8, 8)
    assert live.most < 1.5 * activations.nbytes
    inputs = normalised(torch.from_numpy(images).permute(0, 3, 1, 2), SMALL)[:, 0]
    for turn in range(4):
        right = torch.rot90(inputs, turn, (1, 2))
        assert torch.equal(activations[turn, :, 5], right.to(activations.dtype))


def test_the_last_stage_learns_what_its_cells_show_the_same_from_the_same_seed():
    torch.manual_seed(0)
    network = CBAMResNet50(2)
    images = np.random.default_rng(0).integers(0, 60, (16, 32, 32, 3)).astype(np.uint8)
    targets = np.tile([0, 1], 8)
    images[targets == 1, :16] += 120  # lighter above, and after a turn at the side or below
    activations = last_stage.turned_activations(network, images, SMALL)
    with torch.no_grad():  # a classifier that knows nothing
        network.fc.weight.zero_(), network.fc.bias.zero_()
    answers = []
    for seed in (1, 1, 2):
        learnt = copy.deepcopy(network)
        before = last_stage.last_stage_logits(learnt, activations[0])
        last_stage.train_last_stage(learnt, activations, targets, np.ones(2), seed)
        answers.append(last_stage.last_stage_logits(learnt, activations[0]))
    losses = [-np.log(softmax(one)[np.arange(16), targets]).mean() for one in (before, *answers)]
    assert max(losses[1:]) < losses[0]
    assert np.array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])
    changed = {
        name.split(".")[0]
        for (name, old), new in zip(network.named_parameters(), learnt.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {"layer4", "cbam4", "fc"}


def test_what_says_nothing_is_held_back_most():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(60, 200)), np.tile([0, 1, 2], 20)
    fit = fit_logistic(features, targets, [str(place) for place in range(60)], np.ones(3))
    assert fit.strength == min(STRENGTHS)
