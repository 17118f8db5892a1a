"""Several class lists over one network: each cell teaches its own, and every one comes back as it was."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from test_training import Stop
from torch.nn import functional

from cervicyte.errors import ModelFileError, RecipeError, UsageError
from cervicyte.evaluation import predictions
from cervicyte.evaluation.adaptation import adapted
from cervicyte.evaluation.answers import Answerer, answers_for
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.inference.choice import CACHE_VARIABLE
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.export import export_model
from cervicyte.network.frozen import FrozenModel
from cervicyte.network.heads import (
    Head,
    abnormal_unit,
    heads_of,
    load_with_head,
    parted,
    wide_names,
    with_head,
)
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.training.cells import EvenBatches
from cervicyte.training.heads import HeadsLoss, refuse_for_heads
from cervicyte.training.loop import MODEL_NAME, LabelledImages, train
from cervicyte.training.recipe import Recipe

SMALL = Preprocessing(canvas_size=32, image_size=32)
HEADS = (
    Head("first", ("a", "b", "c"), ("normal", "abnormal", "benign")),
    Head("second", ("a", "z"), ("abnormal", None)),
)
RECIPE = Recipe(
    backbone="none",
    preprocessing=SMALL,
    epochs=2,
    batch_size=8,
    precision="float32",
    keep="last",
)


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(0)
    return ModelFile(CBAMResNet50(6).eval(), tuple(wide_names(HEADS)), SMALL, metadata={"seen": {}})


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def logits_of(model, images):
    with torch.inference_mode():
        return model.network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


# --- the model file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_each_head_answers_as_its_rows_of_the_trained_layer(wide, images, tmp_path, ending):
    path = tmp_path / f"model{ending}"
    save_model(path, parted(wide, HEADS))
    whole = logits_of(wide, images)
    rtol, atol = (1e-2, 2e-2) if ending == ".safetensors" else (1e-5, 1e-5)
    torch.testing.assert_close(logits_of(load_with_head(path), images), whole[:, :3], rtol=rtol, atol=atol)
    second = load_with_head(path, "second")
    assert second.class_names == ("a", "z")
    assert not any(module.training for module in second.network.modules())
    torch.testing.assert_close(logits_of(second, images), whole[:, 3:5], rtol=rtol, atol=atol)
    assert [head.name for head in heads_of(second)] == ["first", "second"]


def test_the_shared_answer_is_the_last_row_whatever_head_is_asked(wide, images):
    model = parted(wide, HEADS)
    answers = [
        [one.abnormal for one in answers_for(chosen, Answerer.of(chosen), images, images)]
        for chosen in (model, with_head(model, "second"))
    ]
    assert answers[0] == answers[1]
    whole = predictions.logits_of(wide, images)
    assert answers[0] == pytest.approx(torch.sigmoid(torch.from_numpy(whole[:, 5])).tolist())


def test_what_belongs_to_a_head_stands_aside_with_it_and_comes_back(wide):
    model = parted(wide, HEADS)
    model.metadata |= {"calibration": {"temperature": 2.0}, "data": "first", "licence": "of all"}
    model.tensors["familiarity.stage4.mean"] = torch.ones(3)
    second = with_head(model, "second")
    assert not {"calibration", "data"} & second.metadata.keys()
    assert second.metadata["licence"] == "of all"
    assert "familiarity.stage4.mean" not in second.tensors
    back = with_head(second, "first")
    assert back.metadata == model.metadata
    assert back.class_names == model.class_names
    assert back.tensors.keys() == model.tensors.keys()
    for name, value in model.network.state_dict().items():
        assert torch.equal(back.network.state_dict()[name], value), name


def test_a_head_that_is_not_there_is_refused_by_name(wide, tmp_path):
    with pytest.raises(UsageError, match=r"--head third: .* choose one of first, second"):
        with_head(parted(wide, HEADS), "third")
    with pytest.raises(UsageError, match="one class list"):
        with_head(wide, "first")
    assert abnormal_unit(wide) is None


@pytest.mark.parametrize("name", ["m.safetensors", "m.onnx"])
def test_an_engine_without_torch_gives_the_head_that_lies_in_the_file_and_the_shared_answer(
    wide, images, tmp_path, name, monkeypatch
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    save_model(tmp_path / "m.safetensors", parted(wide, HEADS))
    if name == "m.onnx":
        export_model(load_model_file(tmp_path / "m.safetensors"), tmp_path / name, "onnx")
    by_torch = Classifier.from_file(tmp_path / "m.safetensors", "cpu").predict(images)
    for head in (None, "first"):
        classifier = Classifier.from_file(tmp_path / name, engine="openvino", head=head)
        assert isinstance(classifier.model, FrozenModel)
        for one, other in zip(classifier.predict(images), by_torch, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-3)
            assert one.abnormal == pytest.approx(other.abnormal, abs=1e-3)
    if name == "m.onnx":
        with pytest.raises(UsageError, match="is a graph, which has one class list"):
            Classifier.from_file(tmp_path / name, engine="openvino", head="second")


@pytest.mark.parametrize("lost", ["head1.fc.weight", "abnormal.weight"])
def test_damaged_heads_are_refused(wide, tmp_path, lost):
    model = parted(wide, HEADS)
    del model.tensors[lost]
    path = tmp_path / "model.pth"
    save_model(path, model)
    with pytest.raises(ModelFileError, match="damaged"):
        Answerer.of(load_with_head(path, "second"))


def test_an_adapted_model_keeps_the_chosen_head_and_the_shared_answer(wide, images):
    model = adapted(with_head(parted(wide, HEADS), "second"), list(images), share=0.5)
    assert [head.name for head in heads_of(model)] == ["second"]
    assert set(model.tensors) == {"abnormal.weight", "abnormal.bias"}
    assert abnormal_unit(model) is not None


# --- learning -------------------------------------------------------------------------------------------


def test_data_sets_come_equally_often_and_so_do_the_classes_of_each():
    targets = np.repeat([0, 1, 2, 3, 4], [60, 30, 10, 5, 15])
    batches = EvenBatches(targets, np.array([0, 0, 0, 1, 1]), 8, seed=3)
    places = batches.places()
    assert len(places) == len(set(places)) == 120
    counts = Counter(int(targets[place[-1]]) for place in places)
    assert dict(counts) == {0: 20, 1: 20, 2: 20, 3: 30, 4: 30}
    assert max(Counter(place[-1] for place in places if targets[place[-1]] == 3).values()) == 6
    assert sum(map(len, batches)) == 120
    batches.epoch = 2
    assert {place[1:] for place in batches.places()} != {place[1:] for place in places}


def test_the_loss_is_each_heads_own_and_the_shared_one():
    torch.manual_seed(1)
    logits, targets = torch.randn(4, 6), torch.tensor([0, 1, 3, 4])  # the last is of an unknown side
    recipe = RECIPE.model_copy(update={"label_smoothing": 0.0})
    first = functional.cross_entropy(logits[:2, :3], torch.tensor([0, 1]), reduction="sum")
    second = functional.cross_entropy(logits[2:, 3:5], torch.tensor([0, 1]), reduction="sum")
    sides = torch.tensor([0.0, 1.0, 1.0])
    shared = -(sides * logits[:3, 5].sigmoid().log() + (1 - sides) * (-logits[:3, 5]).sigmoid().log()).sum()
    loss = HeadsLoss(HEADS, recipe)(logits, targets)
    assert loss.item() == pytest.approx(((first + second + shared) / 4).item(), rel=1e-5)


def test_a_cell_moves_no_other_list_and_an_unknown_side_not_the_shared_answer():
    logits = torch.zeros(2, 6, requires_grad=True)
    HeadsLoss(HEADS, RECIPE)(logits, torch.tensor([1, 4])).backward()
    assert logits.grad is not None
    moved = logits.grad.bool().tolist()
    assert moved[0] == [True, True, True, False, False, True]
    assert moved[1] == [False, False, False, True, True, False]


def test_validation_counts_every_data_set_alike():
    loss = HeadsLoss(HEADS, RECIPE)
    weights = loss.even_weights(np.array([0, 1, 2, 0, 1, 2, 3, 4]))
    assert weights.mean() == pytest.approx(1)
    assert weights[:6].sum() == pytest.approx(weights[6:].sum())
    called = loss.among_own(torch.tensor([[0.0, 1, 0, 9, 9, 9], [9, 9, 9, 0, 1, 9]]), torch.tensor([1, 4]))
    assert called.argmax(1).tolist() == [1, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"mixup_alpha": 0.2},
        {"cutmix_alpha": 1.0},
        {"missed_abnormal_cost": 2.0},
        {"class_weights": "balanced"},
        {"parent": "shipped"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_recipe_that_has_no_meaning_for_several_lists_is_refused(change):
    with pytest.raises(RecipeError, match="parent" if "parent" in change else next(iter(change))):
        refuse_for_heads(RECIPE.model_copy(update=change))


def spots(counts, seed):
    """Grey images, brighter by the class."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(5), counts)
    images = rng.integers(0, 40, (len(targets), 32, 32, 3)) + 50 * (targets % 3)[:, None, None, None]
    return LabelledImages(images.astype(np.uint8), targets.astype(np.int64))


def test_an_interrupted_training_of_several_heads_ends_in_the_same_weights(tmp_path):
    cells, held = spots([8, 4, 4, 4, 4], 0), spots([2] * 5, 1)
    names = wide_names(HEADS)
    train(RECIPE, cells, held, names, tmp_path / "whole", heads=HEADS)
    with pytest.raises(SystemExit):
        train(RECIPE, cells, held, names, tmp_path / "broken", heads=HEADS, progress=Stop(4))
    train(RECIPE, cells, held, names, tmp_path / "broken", heads=HEADS, resume=True)
    whole, broken = (load_model_file(tmp_path / name / MODEL_NAME) for name in ("whole", "broken"))
    assert whole.class_names == ("a", "b", "c")
    for name, value in whole.network.state_dict().items():
        assert torch.equal(broken.network.state_dict()[name], value), name
    for name, value in whole.tensors.items():
        assert torch.equal(broken.tensors[name], value), name
