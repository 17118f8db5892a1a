"""Pooling by covariance: the root, its parts by place, its graph, and the network that cells make of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cervicyte.errors import RecipeError
from cervicyte.evaluation.covariance import combinations_of, covariance_network
from cervicyte.evaluation.frozen_network import fit_classifier, fit_logistic, set_classifier
from cervicyte.evaluation.last_stage import last_stage_means, turned_activations
from cervicyte.evaluation.predictions import softmax
from cervicyte.explanation import audit_cells, cam, faithfulness
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.inference.quantise import quantised
from cervicyte.inference.torch_engine import TorchEngine
from cervicyte.network import plain
from cervicyte.network.covariance import CovariancePooling, inverse_root
from cervicyte.network.graph import COVARIANCE, RIDGE, onnx_graph
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import CBAMResNet50, CBAMResNet50Covariance, folded
from cervicyte.training.cells import normalised
from cervicyte.training.loop import LabelledImages
from cervicyte.training.recipe import read_recipe
from cervicyte.training.start import first_network

SMALL = Preprocessing(canvas_size=48, image_size=48)


def images(count, size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def learnt(placement="stage"):
    """Return a network whose signal does not die out, with gates that are not shut half."""
    torch.manual_seed(0)
    network = CBAMResNet50(3, placement).eval()
    network.compensate_fresh_gates()
    return network


def activations_before(network, cells, seen):
    return turned_activations(network, cells, seen, turns=1, precision="float32")[0]


def made_of(network, seen=SMALL, count=6):
    return covariance_network(network, activations_before(network, images(count), seen))


def test_the_mean_over_places_is_the_root_of_the_covariance():
    torch.manual_seed(0)
    pooling, x = CovariancePooling(40, 8), torch.rand(3, 40, 5, 4)
    with torch.no_grad():
        parts = pooling(x)
        y = pooling.project(x).flatten(2).double().numpy()
    assert parts.shape == (3, 64, 5, 4)
    for one, found in zip(y, parts.mean((2, 3)).reshape(3, 8, 8).numpy(), strict=True):
        values, vectors = np.linalg.eigh(np.cov(one, bias=True) + RIDGE * np.eye(8))
        assert np.allclose(found, vectors * np.sqrt(values) @ vectors.T, atol=1e-5)


@pytest.mark.parametrize("smallest", [1.0, 1e-1, 1e-3])
def test_the_inverse_root_holds_down_to_a_thousandth_of_the_trace(smallest):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    values = np.geomspace(smallest, 1, 12)
    values /= values.sum()
    matrix = torch.from_numpy(basis * values @ basis.T).float()[None]
    expected = basis / np.sqrt(values) @ basis.T
    found = inverse_root(matrix)[0].numpy()
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_a_root_is_computed_in_float32_whatever_the_rest_is():
    torch.manual_seed(0)
    pooling, x = CovariancePooling(40, 8), torch.rand(2, 40, 4, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = pooling(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, pooling(x))


def test_a_network_in_bfloat16_answers_nearly_as_it_does_in_float32():
    fitted = made_of(learnt())
    model = ModelFile(fitted, ("a", "b", "c"), SMALL)
    exact, rounded = (TorchEngine(model, one).run(images(4, seed=3), True) for one in ("float32", "bfloat16"))
    assert np.abs(exact.logits - rounded.logits).max() < 0.1 * np.abs(exact.logits).max()
    assert rounded.evidence is not None
    assert rounded.evidence.shape == (4, 3, 3, 3)
    assert rounded.means["stage4"].dtype == np.float32


def test_maps_are_held_against_controls_by_a_copy_in_bfloat16(monkeypatch):
    monkeypatch.setattr(faithfulness, "score_precision", lambda: "bfloat16")
    model = ModelFile(made_of(learnt()), ("a", "b", "c"), SMALL)
    found = faithfulness.probabilities_of(model)(images(2))
    assert np.allclose(found.sum(1), 1, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_trace_is_bound_to_no_device():
    traced = torch.jit.trace(made_of(learnt()), torch.rand(1, 3, 48, 48))
    assert "eye" not in str(traced.inlined_graph)
    assert "torch.device" not in str(traced.inlined_graph)


@pytest.mark.parametrize("placement", ["stage", "block", "none"])
def test_it_is_computed_without_torch(placement):
    fitted = made_of(learnt(placement))
    state = {name: value.numpy() for name, value in fitted.state_dict().items()}
    shapes = {name: value.shape for name, value in state.items()}
    assert list(plain.shapes_of(3, placement, fitted.kind).items()) == list(shapes.items())
    assert plain.parameter_count(3, placement, fitted.kind) == sum(one.numel() for one in fitted.parameters())
    assert {name: one.shape for name, one in plain.drawn(3, placement, 0, fitted.kind).items()} == shapes
    theirs = plain.computed(state, SMALL, images(2, seed=4))
    ours = TorchEngine(ModelFile(fitted, ("a", "b", "c"), SMALL)).run(images(2, seed=4), True)
    assert theirs.evidence is not None
    assert ours.evidence is not None
    assert np.allclose(theirs.logits, ours.logits, atol=1e-3)
    assert np.allclose(theirs.evidence, ours.evidence, atol=1e-3)
    assert np.allclose(theirs.means["stage4"], ours.means["stage4"], atol=1e-3)


def test_int8_leaves_the_root_alone():
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    state = {name: value.numpy() for name, value in made_of(learnt()).state_dict().items()}
    graph = quantised(onnx_graph(state, SMALL).SerializeToString(), images(32))
    nodes = onnx.load_model_from_string(graph).graph.node
    made = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    kept = [node for node in nodes if node.name.startswith(COVARIANCE)]
    assert len(kept) > 60
    first = next(node for node in kept if node.op_type == "Conv")
    assert not any(name in made for node in kept if node is not first for name in node.input)
    assert first.input[1] not in made


def test_an_audit_of_it_draws_no_stage_anew_that_has_no_weights():
    stages = [name for name, _ in audit_cells.stages_of(made_of(learnt()))]
    assert stages == ["fc", "layer4", "cbam3", "layer3", "layer2", "layer1", "conv1"][: len(stages)]
    assert "cbam4" not in stages


@pytest.mark.parametrize("placement", ["stage", "block", "none"])
@pytest.mark.parametrize("size", [48, 70])
def test_its_graph_computes_what_the_network_does(placement, size):
    onnxruntime = pytest.importorskip("onnxruntime")
    seen = Preprocessing(canvas_size=size, image_size=size)
    network = learnt(placement)
    fitted = covariance_network(network, activations_before(network, images(5, size), seen))
    state = {name: value.numpy() for name, value in fitted.state_dict().items()}
    session = onnxruntime.InferenceSession(onnx_graph(state, seen).SerializeToString())
    cells = images(3, size, seed=1)
    logits, stage2, stage4, evidence = session.run(None, {"images": cells})
    inputs = normalised(torch.from_numpy(cells).permute(0, 3, 1, 2), seen)
    with torch.no_grad():
        activations = fitted.features(inputs, fitted.layers[-1])
        expected = fitted(inputs)
        once_more = folded(fitted)(inputs)
    assert np.allclose(logits, expected, atol=1e-3)
    assert np.allclose(once_more, expected, atol=1e-3)
    assert np.allclose(stage4, activations.mean((2, 3)), atol=1e-3)
    assert (stage2.shape, stage4.shape) == ((3, 512), (3, 1024))
    maps = cam.explain(fitted, inputs, "hirescam", [fitted.layers[-1]], signed=True)[fitted.layers[-1]]
    assert evidence.shape == maps.shape
    assert np.allclose(evidence.sum((2, 3)) + fitted.fc.bias.detach().numpy(), logits, atol=1e-3)
    assert np.allclose(evidence, maps.detach(), atol=1e-3)


def test_combinations_are_those_along_which_places_differ_most_each_of_variance_one():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(50, 20)) @ rng.normal(size=(20, 20)) * np.geomspace(1, 0.01, 20) + 7
    activations = torch.from_numpy(mixed.reshape(5, 2, 5, 20)).permute(0, 3, 1, 2).float()
    combined = mixed @ combinations_of(activations, 6).numpy().T
    assert np.allclose(np.cov(combined.T, bias=True), np.eye(6), atol=1e-3)
    _, scales, axes = np.linalg.svd(mixed - mixed.mean(0), full_matrices=False)
    theirs = (mixed - mixed.mean(0)) @ (axes[:6].T / scales[:6]) * np.sqrt(50)
    assert np.allclose(np.abs(combined - combined.mean(0)), np.abs(theirs), atol=1e-2)


def test_cells_that_do_not_differ_give_no_infinite_combination():
    assert combinations_of(torch.ones(3, 40, 2, 2), 8).isfinite().all()


def test_stages_before_the_last_are_taken_as_they_are():
    network = learnt()
    fitted = made_of(network)
    kept = network.state_dict()
    taken = {
        name for name, value in fitted.state_dict().items() if name in kept and not name.startswith("fc")
    }
    assert {name.split(".")[0] for name in kept} - {name.split(".")[0] for name in taken} == {
        "layer4",
        "cbam4",
        "fc",
    }
    assert all(torch.equal(fitted.state_dict()[name], kept[name]) for name in taken)
    again = covariance_network(fitted, activations_before(fitted, images(6), SMALL))
    assert torch.equal(again.layer4.project.weight, fitted.layer4.project.weight)


def test_it_is_made_of_a_trained_network_of_the_kind_that_ships():
    with pytest.raises(RecipeError, match="made of a trained model"):
        first_network(read_recipe(overrides={"network": CBAMResNet50Covariance.kind}), ("a", "b"))

    class Another(CBAMResNet50):
        kind = "another"

    with pytest.raises(RecipeError, match="choose logistic"):
        covariance_network(Another(2), torch.ones(2, 1024, 3, 3))


def test_it_tells_apart_what_means_over_places_do_not():
    """Two kinds of cells with the same channels, which go together in one kind and apart in the other."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 40, 6, 6)).astype(np.float32)
    targets = np.arange(60) % 2
    values[:, 1] = np.where(targets, 1, -1)[:, None, None] * values[:, 0]
    values -= values.mean((2, 3), keepdims=True)
    pooling = CovariancePooling(40, 40)
    with torch.no_grad():
        pooling.project.weight.copy_(torch.eye(40)[:, :, None, None])
        roots = pooling(torch.from_numpy(values)).mean((2, 3)).numpy()
    assert np.abs(values.mean((2, 3))).max() < 1e-6  # there is nothing else to tell them by
    assert (np.sign(roots[:, 1]) == np.where(targets, 1, -1)).all()


def test_a_model_of_it_is_written_read_and_explained(tmp_path):
    parent = tmp_path / "parent.pth"
    save_model(parent, ModelFile(learnt(), ("a", "b", "c"), SMALL))
    recipe = read_recipe(
        overrides={"parent": str(parent), "classifier": "covariance", "preprocessing.canvas_size": 48}
        | {"preprocessing.image_size": 48}
    )
    cells = LabelledImages(images(12), np.arange(12) % 3)
    model = fit_classifier(recipe, cells, [str(place // 3) for place in range(12)], ("a", "b", "c"))
    assert "covariance" in model.metadata["classifier"]["kind"]
    for name in ("model.pth", "model.safetensors"):
        save_model(tmp_path / name, model)
        read = load_model_file(tmp_path / name)
        assert isinstance(read.network, CBAMResNet50Covariance)
        inputs = normalised(torch.from_numpy(images(2, seed=2)).permute(0, 3, 1, 2), SMALL)
        with torch.no_grad():
            assert torch.allclose(read.network(inputs), model.network(inputs), atol=0.05)
    for method in cam.METHODS:
        maps = cam.explain(model.network, inputs, method, model.network.layers)
        assert all(values.isfinite().all() for values in maps.values())
    assert list(cam.cbam_gates(model.network, inputs)) == ["cbam1", "cbam2", "cbam3"]


def test_the_network_s_answer_is_that_of_the_fitted_regression():
    network, cells = learnt(), images(12)
    before = activations_before(network, cells, SMALL)
    fitted = covariance_network(network, before)
    means, targets = last_stage_means(fitted, before[None]), np.arange(12) % 3
    fit = fit_logistic(means, targets, [str(place) for place in range(12)], np.ones(3))
    set_classifier(fitted, fit)
    inputs = normalised(torch.from_numpy(cells).permute(0, 3, 1, 2), SMALL)
    with torch.no_grad():
        found = softmax(fitted(inputs).numpy())
    assert np.allclose(found, fit.probabilities(means), atol=1e-3)
    assert (found.argmax(1) == targets).all()
