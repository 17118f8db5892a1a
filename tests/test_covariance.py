"""Pooling by covariance: the root, its parts by place, its graph, and the network that cells make of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cervicyte.errors import RecipeError
from cervicyte.evaluation.covariance import combinations_of, covariance_network
from cervicyte.evaluation.frozen_network import fit_classifier
from cervicyte.evaluation.last_stage import last_stage_means, turned_activations
from cervicyte.explanation import cam
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network import covariance, graph
from cervicyte.network.covariance import CovariancePooling, inverse_root
from cervicyte.network.graph import onnx_graph
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


def made_of(network, seen=SMALL, count=6):
    return covariance_network(network, turned_activations(network, images(count), seen, turns=1)[0])


def test_the_mean_over_places_is_the_root_of_the_covariance():
    torch.manual_seed(0)
    pooling, x = CovariancePooling(40, 8), torch.rand(3, 40, 5, 4)
    with torch.no_grad():
        parts = pooling(x)
        y = pooling.project(x).flatten(2).double().numpy()
    assert parts.shape == (3, 64, 5, 4)
    for one, found in zip(y, parts.mean((2, 3)).reshape(3, 8, 8).numpy(), strict=True):
        values, vectors = np.linalg.eigh(np.cov(one, bias=True) + covariance.RIDGE * np.eye(8))
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


def test_the_graph_has_the_same_constants():
    assert (graph.RIDGE, graph.ITERATIONS) == (covariance.RIDGE, covariance.ITERATIONS)


@pytest.mark.parametrize("placement", ["stage", "block", "none"])
@pytest.mark.parametrize("size", [48, 70])
def test_its_graph_computes_what_the_network_does(placement, size):
    onnxruntime = pytest.importorskip("onnxruntime")
    seen = Preprocessing(canvas_size=size, image_size=size)
    network = learnt(placement)
    fitted = covariance_network(network, turned_activations(network, images(5, size), seen, turns=1)[0])
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
    again = covariance_network(fitted, turned_activations(fitted, images(6), SMALL, turns=1)[0])
    assert torch.equal(again.layer4.project.weight, fitted.layer4.project.weight)


def test_it_is_made_of_a_trained_network_of_the_kind_that_ships():
    with pytest.raises(RecipeError, match="made of a trained model"):
        first_network(read_recipe(overrides={"network": CBAMResNet50Covariance.kind}), ("a", "b"))

    class Another(CBAMResNet50):
        kind = "another"

    with pytest.raises(RecipeError, match="choose logistic"):
        covariance_network(Another(2), torch.ones(2, 1024, 3, 3))


def test_it_tells_apart_what_means_over_places_do_not(monkeypatch):
    """Two kinds of cells with the same channels, which go together in one kind and apart in the other."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 40, 6, 6)).astype(np.float32)
    targets = np.arange(60) % 2
    values[:, 1] = np.where(targets, 1, -1)[:, None, None] * values[:, 0]
    values -= values.mean((2, 3), keepdims=True)
    monkeypatch.setattr(covariance, "COMBINATIONS", 40)
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
    network = learnt()
    activations = turned_activations(network, images(6), SMALL, turns=1)
    fitted = covariance_network(network, activations[0])
    means = last_stage_means(fitted, activations)
    inputs = normalised(torch.from_numpy(images(6)).permute(0, 3, 1, 2), SMALL)
    with torch.no_grad():
        expected = fitted.fc(torch.from_numpy(means))
        assert torch.allclose(fitted(inputs), expected, atol=1e-2)
