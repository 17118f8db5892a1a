"""The network: its size, its names, and that it begins as plain ResNet-50."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared
from torchvision.models import resnet50

from cervicyte.errors import ModelFileError, RecipeError, WeightsError
from cervicyte.explanation.controls import random_twin
from cervicyte.images.preprocessing import ORIGINAL_PREPROCESSING, Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.inference.choice import graph_of
from cervicyte.network.backbone import load_backbone, read_state_dict
from cervicyte.network.cbam import CBAM
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import NETWORKS, CBAMResNet50, folded
from cervicyte.training.recipe import Recipe, read_recipe
from cervicyte.training.start import first_network, with_parents_settings

NAMES = ("Dyskeratotic", "Koilocytotic", "Metaplastic", "Parabasal", "Superficial-Intermediate")
WEIGHTS = SHARED / "weights" / "resnet50_imagenet_v15_fp16.safetensors"


@pytest.fixture(scope="module")
def plain():
    """ResNet-50 with weights that are random, but whose statistics are not the fresh ones."""
    torch.manual_seed(1)
    network = resnet50(num_classes=5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.0)
                torch.nn.init.normal_(module.bias, 0, 0.1)
                module.running_mean = torch.randn(module.num_features) * 0.1
                module.running_var = torch.rand(module.num_features) + 0.5
    return network.eval()


@pytest.fixture(scope="module")
def backbone_file(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save({k: v for k, v in plain.state_dict().items() if not k.startswith("fc.")}, path)
    return path


def test_five_classes_make_exactly_24_214_989_parameters():
    assert sum(p.numel() for p in CBAMResNet50(5).parameters()) == 24_214_989


def test_the_state_dict_has_the_names_of_the_original():
    plain_keys = set(resnet50(num_classes=5).state_dict())
    gates = {
        f"cbam{stage}.{gate}.weight"
        for stage in range(1, 5)
        for gate in ("channel_attention.fc.0", "channel_attention.fc.2", "spatial_attention.conv")
    }
    assert set(CBAMResNet50(5).state_dict()) == plain_keys | gates
    assert set(CBAMResNet50(5, "none").state_dict()) == plain_keys


@pytest.mark.parametrize("placement", ["stage", "block", "none"])
def test_a_fresh_network_computes_what_plain_resnet50_computes(plain, backbone_file, placement):
    network = CBAMResNet50(5, placement)
    network.fc.load_state_dict(plain.fc.state_dict())
    load_backbone(network, str(backbone_file))
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = plain(images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(network.eval()(images), expected, atol=1e-4, rtol=0)


@needs_shared
@pytest.mark.parametrize("placement", ["stage", "block"])
def test_on_real_cells_logits_equal_those_of_plain_resnet50(placement):
    state = {k: v.float() for k, v in read_state_dict(WEIGHTS).items()}
    plain = resnet50()
    plain.load_state_dict(state)
    network = CBAMResNet50(1000, placement)
    network.fc.load_state_dict(plain.fc.state_dict())
    load_backbone(network, str(WEIGHTS))
    preprocessing = Preprocessing(image_size=128)
    paths = [min((SHARED / "data/sipakmed" / f"im_{name}").glob("*.jpg")) for name in NAMES]
    images = torch.stack(
        [torch.from_numpy(preprocessing.normalise(preprocessing(read_image(p))[None])[0]) for p in paths]
    )
    with torch.no_grad():
        expected = plain.eval()(images)
        assert expected.std() > 0.5
        torch.testing.assert_close(network.eval()(images), expected, atol=1e-4, rtol=0)


def test_the_gates_follow_the_formulas_of_the_paper():
    torch.manual_seed(0)
    gate = CBAM(32)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_(0, 0.5)
    x = torch.randn(2, 32, 5, 7)
    weights = dict(gate.named_parameters())
    first, second = (weights[f"channel_attention.fc.{i}.weight"][:, :, 0, 0] for i in (0, 2))

    def mlp(pooled):
        return (pooled @ first.T).relu() @ second.T

    channel = torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))
    y = x * channel[:, :, None, None]
    pooled = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
    spatial = torch.sigmoid(torch.nn.functional.conv2d(pooled, gate.spatial_attention.conv.weight, padding=3))
    torch.testing.assert_close(gate(x), y * spatial)


def test_features_and_the_rest_of_the_network_make_the_whole():
    network = CBAMResNet50(5).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for layer in network.layers:
            torch.testing.assert_close(
                network.logits_from(network.features(images, layer), layer), network(images)
            )


# --- backbone weights --------------------------------------------------------------------------


def test_a_backbone_with_a_missing_tensor_is_refused(plain, tmp_path):
    state = dict(plain.state_dict())
    del state["layer3.2.conv2.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match=r"short\.pth.*layer3\.2\.conv2\.weight"):
        load_backbone(CBAMResNet50(5), str(tmp_path / "short.pth"))


def test_a_backbone_of_other_shapes_is_refused(plain, tmp_path):
    state = dict(plain.state_dict()) | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    torch.save(state, tmp_path / "grey.pth")
    with pytest.raises(WeightsError, match=r"conv1\.weight has shape \[64, 1, 7, 7\]"):
        load_backbone(CBAMResNet50(5), str(tmp_path / "grey.pth"))


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_holds_no_weights_is_refused_in_one_sentence(tmp_path, content, suffix):
    path = tmp_path / f"odd{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="odd") as refused:
        load_backbone(CBAMResNet50(5), str(path))
    assert "\n" not in str(refused.value)


def test_without_a_network_the_default_backbone_names_the_other_two(monkeypatch, tmp_path, capsys):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(WeightsError, match=r"--backbone FILE.*--backbone none"):
        load_backbone(CBAMResNet50(5), "imagenet")
    assert "MB from https://download.pytorch.org" in capsys.readouterr().err


# --- model files -------------------------------------------------------------------------------


def test_a_model_file_carries_everything_and_loads_safely(tmp_path):
    network = CBAMResNet50(5).eval()
    preprocessing = Preprocessing(image_size=96, clahe=True)
    path = tmp_path / "best_model.pth"
    save_model(path, ModelFile(network, NAMES, preprocessing, 3, 0.9, {"recipe": {"seed": 4}}))
    content = torch.load(path, weights_only=True)
    assert {"model_state_dict", "class_names", "epoch", "best_val_acc"} <= content.keys()
    model = load_model_file(path)
    assert model.class_names == NAMES
    assert model.preprocessing == preprocessing
    assert (model.epoch, model.best_validation_accuracy, model.original) == (3, 0.9, False)
    assert model.metadata["recipe"] == {"seed": 4}
    assert "versions" in model.metadata["provenance"]
    for key, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value)


def test_a_checkpoint_of_the_original_notebook_loads_strictly(tmp_path):
    state = CBAMResNet50(5).state_dict()
    path = tmp_path / "best_model.pth"
    torch.save(
        {"model_state_dict": state, "class_names": list(NAMES), "epoch": 7, "best_val_acc": 95.5}, path
    )
    model = load_model_file(path)
    assert model.original
    assert model.preprocessing == ORIGINAL_PREPROCESSING
    assert model.class_names == NAMES


def test_a_model_file_whose_preprocessing_was_changed_is_refused(tmp_path):
    path = tmp_path / "best_model.pth"
    save_model(path, ModelFile(CBAMResNet50(2), ("a", "b"), Preprocessing()))
    content = torch.load(path, weights_only=True)
    content["cervicyte"]["preprocessing"]["clahe"] = True
    torch.save(content, path)
    with pytest.raises(ModelFileError, match="fingerprint"):
        load_model_file(path)


def test_a_model_file_from_before_the_white_point_still_loads(tmp_path):
    path = tmp_path / "best_model.pth"
    save_model(path, ModelFile(CBAMResNet50(2), ("a", "b"), Preprocessing(image_size=160)))
    content = torch.load(path, weights_only=True)
    del content["cervicyte"]["preprocessing"]["white_point"]
    content["cervicyte"]["preprocessing_fingerprint"] = "609ee01d79f23232"  # of docs/results/sipakmed
    torch.save(content, path)
    assert load_model_file(path).preprocessing == Preprocessing(image_size=160)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        {"other": torch.zeros(1)},
        {"model_state_dict": {"fc.weight": torch.zeros(2, 3)}, "class_names": ["a", "b"]},
        {"model_state_dict": {}, "class_names": 5},
    ],
)
def test_a_file_that_is_no_model_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelFileError, match=r"model\.pth") as refused:
        load_model_file(path)
    assert "\n" not in str(refused.value)


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"gone\.pth: no such model file"):
        load_model_file(tmp_path / "gone.pth")


@pytest.mark.parametrize("placement", ["stage", "block", "none"])
def test_a_folded_copy_computes_the_same_without_normalising_and_the_network_stays(backbone_file, placement):
    network = CBAMResNet50(5, placement).eval()
    load_backbone(network, backbone_file)
    gates = [module for module in network.modules() if isinstance(module, CBAM)]
    for gate in gates:
        torch.nn.init.normal_(gate.spatial_attention.conv.weight, std=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copied, images = folded(network), torch.rand(2, 3, 64, 64)
    assert not [module for module in copied.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        torch.testing.assert_close(copied(images), network(images), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# --- another kind ----------------------------------------------------------------------------------


class HalfAsDeep(CBAMResNet50):
    """Two blocks a stage."""

    kind = "half-as-deep"
    stage_blocks = (2, 2, 2, 2)


@pytest.fixture
def another(monkeypatch):
    monkeypatch.setitem(NETWORKS, HalfAsDeep.kind, HalfAsDeep)
    return HalfAsDeep


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_of_another_kind_comes_back_from_its_file_as_what_it_was(another, suffix, tmp_path):
    torch.manual_seed(0)
    network = another(3).eval()
    path = tmp_path / f"model{suffix}"
    save_model(path, ModelFile(network, ("A", "B", "C"), Preprocessing(image_size=32)))
    loaded = load_model_file(path).network
    assert type(loaded) is another
    assert len(loaded.layer3) == 2
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), network(images), rtol=0.02, atol=0.02)
    assert type(random_twin(loaded)) is another


def test_the_graph_of_a_network_of_another_depth_computes_the_same(another):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = another(3)
    network.compensate_fresh_gates()
    model = ModelFile(network.eval(), ("A", "B", "C"), Preprocessing(image_size=32))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    session = onnxruntime.InferenceSession(graph_of(model), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images})
    with torch.inference_mode():
        wanted = network(torch.from_numpy(model.preprocessing.normalise(images)))
    np.testing.assert_allclose(logits, wanted.numpy(), rtol=1e-3, atol=1e-3)


def test_a_kind_that_the_program_has_not_is_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    with monkeypatch.context() as there:
        there.setitem(NETWORKS, HalfAsDeep.kind, HalfAsDeep)
        save_model(path, ModelFile(HalfAsDeep(2), ("A", "B"), Preprocessing(image_size=32)))
    with pytest.raises(ModelFileError, match=r"model\.pth: holds a network of the kind 'half-as-deep'"):
        load_model_file(path)
    with pytest.raises(RecipeError, match="'half-as-deep' will not do: choose one of cbam-resnet50"):
        first_network(read_recipe(None, {"network": "half-as-deep", "backbone": "none"}), ("A", "B"))
    assert Recipe().network == CBAMResNet50.kind


def test_a_model_to_start_from_brings_its_kind_along(another):
    parent = ModelFile(another(2), ("A", "B"), Preprocessing(image_size=32))
    assert with_parents_settings(read_recipe(), parent).network == another.kind
    with pytest.raises(RecipeError, match="to start from is a half-as-deep"):
        with_parents_settings(read_recipe(None, {"network": "cbam-resnet50"}), parent)
