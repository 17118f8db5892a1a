"""Export: the original notebook's own network opens what we write, and nothing is lost to and fro."""

from __future__ import annotations

import base64
import json
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from conftest import PROJECT
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load
from torch import nn
from torchvision import transforms
from torchvision.models import resnet50
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.datasets.synthetic import SAMPLES
from cervicyte.errors import ModelFileError, UsageError
from cervicyte.images.preprocessing import ORIGINAL_PREPROCESSING, Preprocessing
from cervicyte.inference import export as exporting
from cervicyte.inference import parity, quantise
from cervicyte.inference.choice import graph_of
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.export import export_model
from cervicyte.inference.sources import sources_of
from cervicyte.network.model_file import ModelFile, load_model_file, save_model, weights_hash
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

SMALL = Preprocessing(image_size=32)
NAMES = ("Dyskeratotic", "Koilocytotic", "Metaplastic", "Parabasal", "Superficial-Intermediate")


# --- the original notebook's network, written from its description alone ---------------------------


class OriginalChannelAttention(nn.Module):
    def __init__(self, planes):
        super().__init__()
        self.avg_pool, self.max_pool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Sequential(
            nn.Conv2d(planes, planes // 16, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(planes // 16, planes, 1, bias=False),
        )

    def forward(self, x):
        return torch.sigmoid(self.fc(self.avg_pool(x)) + self.fc(self.max_pool(x)))


class OriginalSpatialAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        average, (largest, _) = torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)
        return torch.sigmoid(self.conv(torch.cat((average, largest), 1)))


class OriginalCBAM(nn.Module):
    def __init__(self, planes):
        super().__init__()
        self.channel_attention = OriginalChannelAttention(planes)
        self.spatial_attention = OriginalSpatialAttention()

    def forward(self, x):
        x = x * self.channel_attention(x)
        return x * self.spatial_attention(x)


class OriginalNetwork(nn.Module):
    def __init__(self, class_count):
        super().__init__()
        plain = resnet50(num_classes=class_count)
        for name, part in plain.named_children():
            self.add_module(name, part)
        for stage, planes in enumerate((256, 512, 1024, 2048), start=1):
            self.add_module(f"cbam{stage}", OriginalCBAM(planes))

    def forward(self, x):
        stages = [f"{part}{stage}" for stage in (1, 2, 3, 4) for part in ("layer", "cbam")]
        for name in ("conv1", "bn1", "relu", "maxpool", *stages, "avgpool"):
            x = self.get_submodule(name)(x)
        return self.get_submodule("fc")(torch.flatten(x, 1))


# --- what is exported ------------------------------------------------------------------------------


def trained(placement="stage", preprocessing=SMALL) -> ModelFile:
    torch.manual_seed(0)
    network = CBAMResNet50(5, placement).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "cbam" in name:
                parameter.normal_(0, 0.1)
    return ModelFile(network, NAMES, preprocessing, 7, 0.95, {"recipe": {"seed": 3}})


@pytest.fixture(scope="module")
def best_model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "best_model.pth"
    save_model(path, trained())
    return path


def cervicyte(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(result) -> str:
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


def test_to_and_fro_between_the_formats_nothing_is_lost_but_the_first_rounding(best_model, tmp_path):
    first, back, second = (tmp_path / name for name in ("a.safetensors", "best_model.pth", "b.safetensors"))
    for source, out in ((best_model, first), (first, back), (back, second)):
        result = cervicyte("export", source, "--format", out.suffix[1:], "--out", out)
        assert result.exit_code == 0, result.output
        assert RESEARCH_USE_ONLY in result.output
    assert first.read_bytes() == second.read_bytes()
    read = load_model_file(back)
    assert read.metadata["recipe"] == {"seed": 3}
    assert read.metadata["rounded_from_sha256"] == weights_hash(load_model_file(best_model).network)
    assert read.metadata["provenance"] == load_model_file(best_model).metadata["provenance"]
    assert first.stat().st_size < 0.51 * back.stat().st_size


def test_the_original_notebooks_loader_opens_an_exported_pth_to_the_same_logits(tmp_path):
    model = trained(preprocessing=ORIGINAL_PREPROCESSING)
    save_model(tmp_path / "m.safetensors", model)
    shipped = load_model_file(tmp_path / "m.safetensors")
    assert export_model(shipped, tmp_path / "best_model.pth", "pth") == []

    checkpoint = torch.load(tmp_path / "best_model.pth", weights_only=True)
    original = OriginalNetwork(len(checkpoint["class_names"]))
    original.load_state_dict(checkpoint["model_state_dict"])
    assert checkpoint["class_names"] == list(NAMES)
    assert (checkpoint["epoch"], checkpoint["best_val_acc"]) == (7, 0.95)
    floating = {v.dtype for v in checkpoint["model_state_dict"].values() if v.is_floating_point()}
    assert floating == {torch.float32}
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = original.eval()(images)
        assert expected.std() > 0.01
        torch.testing.assert_close(shipped.network(images), expected, atol=1e-5, rtol=0)


def test_a_checkpoint_of_the_original_stays_one_in_either_format(tmp_path):
    content = {"model_state_dict": OriginalNetwork(5).state_dict(), "class_names": list(NAMES), "epoch": 3}
    torch.save(content, tmp_path / "original.pth")
    model = load_model_file(tmp_path / "original.pth")
    for name in ("m.safetensors", "m.pth"):
        assert export_model(model, tmp_path / name, name.split(".")[1]) == []
        again = load_model_file(tmp_path / name)
        assert again.original
        assert again.preprocessing == ORIGINAL_PREPROCESSING
        assert "seen" not in again.metadata


@pytest.mark.parametrize(
    ("placement", "preprocessing", "said"),
    [
        ("stage", SMALL, "prepares images in its own way"),
        ("block", ORIGINAL_PREPROCESSING, "cannot load this one, whose placement is block"),
        ("none", ORIGINAL_PREPROCESSING, "cannot load this one, whose placement is none"),
    ],
)
def test_where_the_original_would_answer_otherwise_its_user_is_told(placement, preprocessing, said, tmp_path):
    (note,) = export_model(trained(placement, preprocessing), tmp_path / "best_model.pth", "pth")
    assert said in note


# --- what computes by itself ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def carrying() -> ModelFile:
    model = trained()
    model.tensors["familiarity.stage2.means"] = torch.arange(6.0).reshape(2, 3)
    return model


def about_of(content: bytes, tmp_path) -> tuple[dict, dict]:
    """Return what a graph carries along, by safetensors alone."""
    (tmp_path / "about").write_bytes(content)
    with safe_open(tmp_path / "about", "numpy") as file:
        return json.loads(file.metadata()["cervicyte"]), load(content)


def check_about(content: bytes, tmp_path) -> None:
    about, tensors = about_of(content, tmp_path)
    assert about["class_names"] == list(NAMES)
    assert about["preprocessing"]["image_size"] == 32
    assert about["recipe"] == {"seed": 3}
    np.testing.assert_array_equal(tensors["beside.familiarity.stage2.means"], np.arange(6).reshape(2, 3))


def check_report(path: Path) -> None:
    report = json.loads(path.read_text())
    assert report["notice"] == RESEARCH_USE_ONLY
    assert report["command"] == "a command"
    assert report["parity"]["label_agreement"] == 1
    assert report["parity"]["images"] == 10
    assert 0 < report["parity"]["logits"] < report["parity"]["bounds"]["logits"]


def test_an_exported_onnx_computes_by_itself_and_carries_the_model_along(carrying, tmp_path):
    path = tmp_path / "out" / "m.onnx"
    assert export_model(carrying, path, "onnx", command="a command") == []
    assert sorted(file.name for file in path.parent.iterdir()) == ["m.onnx", "m.onnx.parity.json"]
    check_report(path.parent / "m.onnx.parity.json")
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    (prop,) = graph.metadata_props
    assert prop.key == "cervicyte.safetensors"
    check_about(base64.b64decode(prop.value), tmp_path)


def test_an_exported_openvino_folder_answers_and_carries_the_model_along(carrying, tmp_path):
    folder = tmp_path / "openvino"
    assert export_model(carrying, folder, "openvino", command="a command") == []
    assert sorted(file.name for file in folder.iterdir()) == ["model.bin", "model.xml", "parity.json"]
    check_report(folder / "parity.json")
    text = openvino.Core().read_model(folder / "model.xml").get_rt_info(["cervicyte.safetensors"]).astype(str)
    check_about(base64.b64decode(text), tmp_path)


def test_an_exported_torchscript_takes_bytes_and_gives_everything(carrying, tmp_path):
    path = tmp_path / "m.pt"
    assert export_model(carrying, path, "torchscript", command="a command") == []
    check_report(tmp_path / "m.pt.parity.json")
    kept = {"cervicyte.safetensors": b""}
    script = torch.jit.load(path, _extra_files=kept)
    check_about(kept["cervicyte.safetensors"], tmp_path)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    logits, stage2, stage4, evidence = script(images)
    inputs = torch.from_numpy(SMALL.normalise(images.numpy()))
    torch.testing.assert_close(logits, carrying.network(inputs), atol=1e-4, rtol=1e-4)
    assert (stage2.shape, stage4.shape, evidence.shape) == ((3, 512), (3, 2048), (3, 5, 1, 1))


def test_what_wsinfer_takes_gives_logits_and_says_what_its_schema_asks_for(carrying, tmp_path):
    folder = tmp_path / "for_wsinfer"
    (note,) = export_model(carrying, folder, "wsinfer", spacing=0.4, command="a command")
    assert "one cell in the middle" in note
    names = ["config.json", "parity.json", "torchscript_model.pt"]
    assert sorted(file.name for file in folder.iterdir()) == names
    check_report(folder / "parity.json")
    config = json.loads((folder / "config.json").read_text())
    # A patch that goes through the steps by name, as WSInfer takes it through them, is what was trained on.
    patch = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    steps = [getattr(transforms, one["name"])(**one.get("arguments", {})) for one in config["transform"]]
    taken = transforms.Compose(steps)(Image.fromarray(patch))
    np.testing.assert_allclose(taken.numpy(), SMALL.normalise(patch[np.newaxis])[0], atol=1e-5)
    # The required properties of model-config.schema.json of wsinfer-zoo, and their types.
    assert config.pop("transform") == [
        {"name": "Resize", "arguments": {"size": 32}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": list(SMALL.mean), "std": list(SMALL.std)}},
    ]
    assert config == {
        "spec_version": "1.0",
        "architecture": "cbam_resnet50",
        "num_classes": 5,
        "class_names": list(NAMES),
        "patch_size_pixels": 32,
        "spacing_um_px": 0.4,
    }
    inputs = torch.randn(2, 3, 32, 32)
    logits = torch.jit.load(folder / "torchscript_model.pt")(inputs)
    torch.testing.assert_close(logits, carrying.network(inputs), atol=1e-4, rtol=1e-4)


def test_torch_gives_no_advice_on_the_way_to_wsinfer(tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        export_model(trained(), tmp_path / "m", "wsinfer", spacing=0.4)
    assert not [str(one.message) for one in said if "torch" in str(one.message)]


@pytest.mark.parametrize("file_format", ["onnx", "wsinfer"])
def test_an_export_that_answers_otherwise_is_not_left_there(carrying, file_format, tmp_path, monkeypatch):
    other = trained()
    with torch.no_grad():
        other.network.fc.weight[0] *= -1
    other_graph = graph_of(other)
    monkeypatch.setattr(exporting, "TorchEngine", lambda model: exporting.OnnxEngine(other_graph))
    out = tmp_path / ("m.onnx" if file_format == "onnx" else "folder")
    spacing = 0.4 if file_format == "wsinfer" else None
    with pytest.raises(ModelFileError, match="answers otherwise than the network: logits differ"):
        export_model(carrying, out, file_format, spacing=spacing)
    assert not list(tmp_path.iterdir())


def test_a_graph_is_compared_on_the_images_that_are_named(best_model, tmp_path):
    out = tmp_path / "m.pt"
    result = cervicyte("export", best_model, "--format", "torchscript", "--out", out, "--images", SAMPLES)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "m.pt.parity.json").read_text())
    assert report["parity"]["images"] == 5


# --- what is refused -------------------------------------------------------------------------------


def test_a_format_that_does_not_exist_is_refused_with_those_that_do(best_model, tmp_path):
    said = error_of(cervicyte("export", best_model, "--format", "h5", "--out", tmp_path / "m.h5"))
    assert "'h5'" in said
    assert "pth, safetensors, onnx, torchscript, openvino, wsinfer" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file_format", "spacing", "preprocessing", "said"),
    [
        ("wsinfer", None, SMALL, "wsinfer needs --spacing"),
        ("wsinfer", 0.0, SMALL, "wsinfer needs --spacing"),
        ("wsinfer", 0.4, SMALL.model_copy(update={"clahe": True}), "clahe, which WSInfer cannot do"),
        (
            "wsinfer",
            0.4,
            SMALL.model_copy(update={"gain": (1.2, 1.0, 0.9)}),
            "gain, .*which WSInfer cannot do",
        ),
        ("openvino", 0.4, SMALL, "--spacing is for wsinfer alone"),
    ],
)
def test_wsinfer_alone_is_told_the_spacing(file_format, spacing, preprocessing, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        export_model(trained(preprocessing=preprocessing), tmp_path / "m", file_format, spacing=spacing)
    assert not list(tmp_path.iterdir())


def test_a_name_that_says_another_format_is_refused(best_model, tmp_path):
    said = error_of(cervicyte("export", best_model, "--format", "pth", "--out", tmp_path / "m.safetensors"))
    assert "does not end with .pth" in said


def test_a_file_is_replaced_only_by_force(best_model, tmp_path):
    out = tmp_path / "m.safetensors"
    out.write_text("something dear")
    asked = ("export", best_model, "--format", "safetensors", "--out", out)
    assert "--force" in error_of(cervicyte(*asked))
    assert out.read_text() == "something dear"
    assert cervicyte(*asked, "--force").exit_code == 0
    assert load_model_file(out).class_names == NAMES


def test_a_missing_model_is_named(tmp_path):
    out = tmp_path / "m.pth"
    assert "none.pth" in error_of(cervicyte("export", tmp_path / "none.pth", "--format", "pth", "--out", out))


def test_an_export_onto_itself_leaves_the_same_model(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, trained())
    before = path.read_bytes()
    model = load_model_file(path)
    with pytest.raises(UsageError, match="--force"):
        export_model(model, path, "safetensors")
    export_model(model, path, "safetensors", force=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", ["export", "card"])
def test_the_page_lists_every_option(command):
    page = (PROJECT / "docs" / "model_file.md").read_text()
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    options = [name for one in group.commands[command].params for name in one.opts if name[0] == "-"]
    assert options
    for option in options:
        assert f"| `{option}` |" in page, option


# --- int8 -------------------------------------------------------------------------------------------


def test_what_int8_costs_is_the_loss_where_classes_are_known_and_else_what_cannot_be_less():
    right = np.array([[3.0, 0.0], [0.0, 3.0], [0.1, 0.0], [0.0, 0.1]] * 50)
    given = right.copy()
    given[2] = [0.0, 0.1]  # from rightly to wrongly
    given[3] = [0.1, 0.0]  # and the other way about
    truth = np.array([0, 1, 0, 0] * 50)
    unknown, known = quantise.cost_of(given, right), quantise.cost_of(given, right, truth)
    assert unknown["another_class"] == known["another_class"] == 0.01
    assert unknown["faults"] == ["1.00% of the images get another class (at most 0.2%)"]
    assert known["accuracy"]["float32"] == known["accuracy"]["int8"]
    assert known["faults"] == []
    given[0] = [3.0, 2.0]  # the same class, and far less sure
    (fault,) = quantise.cost_of(given, right, truth)["faults"]
    assert re.match(r"a probability moves by 0\.22 \(at most 0\.1; 99 in 100 by less than", fault)


def test_int8_is_not_measured_on_what_calibrated_it_nor_on_too_little():
    compared = [bytes([number]) for number in range(100)]
    quantise.refuse_what_calibrated([b"other"], compared)
    with pytest.raises(UsageError, match="2 of the images that int8 is measured on calibrate it, too"):
        quantise.refuse_what_calibrated(compared[:2], compared)
    with pytest.raises(UsageError, match="99 images are too few to say what int8 costs"):
        quantise.refuse_what_calibrated([], compared[1:])


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> tuple[Path, Path]:
    """Return a folder of 32 images to calibrate with, and one of 100 to compare."""
    folders = tmp_path_factory.mktemp("calibrating"), tmp_path_factory.mktemp("compared")
    rng = np.random.default_rng(0)
    for folder, count in zip(folders, (32, 100), strict=True):
        for number in range(count):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return folders


@pytest.fixture(scope="module")
def rounded(carrying, noise) -> bytes:
    """Return the model's graph in int8, made once."""
    _, cells = exporting._read(carrying, sources_of([str(noise[0])]))
    return quantise.quantised(graph_of(carrying), cells)


def test_an_int8_graph_that_costs_next_to_nothing_is_written_with_its_figures_and_opens(
    carrying, noise, rounded, tmp_path, monkeypatch
):
    monkeypatch.setattr(exporting, "quantised", lambda graph, cells: rounded)
    monkeypatch.setattr(quantise, "MOST_LOSS", 1)
    monkeypatch.setattr(quantise, "MOST_CHANGE", 1)
    monkeypatch.setattr(parity.Parity, "faults", [])
    monkeypatch.setenv("CERVICYTE_CACHE", str(tmp_path / "cache"))
    int8 = exporting.Int8([str(noise[0])])
    assert export_model(carrying, tmp_path / "m.onnx", "onnx", int8=int8, images=[str(noise[1])]) == []
    export_model(carrying, tmp_path / "folder", "openvino", int8=int8, images=[str(noise[1])])
    report = json.loads((tmp_path / "m.onnx.parity.json").read_text())
    assert (report["calibrating_images"], report["int8"]["images"]) == (32, 100)
    assert (report["calibrating_images_found"], report["images_found"], report["seed"]) == (32, 100, 0)
    assert report["int8"]["largest_change_of_a_probability"] > 0
    graph = onnx.load(tmp_path / "m.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert sum(kind == onnx.TensorProto.INT8 for kind in kinds.values()) > 50
    assert kinds["conv1.weight"] == kinds["fc.weight"] == onnx.TensorProto.FLOAT
    for name in ("m.onnx", "folder"):
        classifier = Classifier.from_file(tmp_path / name)
        assert classifier.engine.describe()["precision"] == "int8"
        assert classifier.predict([np.zeros((9, 9, 3), np.uint8)])
        with pytest.raises(UsageError, match="A graph in int8 has this precision and no other"):
            Classifier.from_file(tmp_path / name, engine="openvino", precision="bfloat16")


def test_of_more_images_as_many_are_drawn_from_all_classes_and_the_report_says_of_how_many(
    carrying, rounded, tmp_path, monkeypatch
):
    rng = np.random.default_rng(1)
    for name, count in (("calibrating/a", 320), ("calibrating/b", 80), ("compared/a", 100)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number:03d}.png")
    read = exporting._read
    asked = []

    def kept(model, sources):
        asked.append([Path(source.name).parent.name for source in sources])
        return read(model, sources[:100])

    monkeypatch.setattr(exporting, "_read", kept)
    monkeypatch.setattr(exporting, "quantised", lambda graph, cells: rounded)
    monkeypatch.setattr(quantise, "MOST_LOSS", 1)
    monkeypatch.setattr(quantise, "MOST_CHANGE", 1)
    monkeypatch.setattr(parity.Parity, "faults", [])
    int8 = exporting.Int8([str(tmp_path / "calibrating")])
    images = [str(tmp_path / "compared")]
    export_model(carrying, tmp_path / "m.onnx", "onnx", int8=int8, images=images)
    calibrating, compared = asked
    assert len(calibrating) == 300
    assert 40 <= calibrating.count("b") <= 80  # 60 of 300 in the mean
    assert compared == ["a"] * 100
    report = json.loads((tmp_path / "m.onnx.parity.json").read_text())
    assert (report["calibrating_images_found"], report["images_found"], report["seed"]) == (400, 100, 0)


def test_int8_that_costs_too_much_is_refused_with_the_figures(
    carrying, noise, rounded, tmp_path, monkeypatch
):
    monkeypatch.setattr(exporting, "quantised", lambda graph, cells: rounded)
    monkeypatch.setattr(quantise, "MOST_CHANGE", 1e-9)
    int8 = exporting.Int8([str(noise[0])])
    with pytest.raises(ModelFileError, match=r"int8 costs too much on 100 images: .*a probability moves by"):
        export_model(carrying, tmp_path / "m.onnx", "onnx", int8=int8, images=[str(noise[1])])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "pth", "--out", "m.pth"], "int8 is for onnx and openvino alone"),
        (["--format", "onnx", "--out", "m.onnx", "--images", "COMPARED"], "0 images are too few to calib"),
        (["--format", "onnx", "--out", "m.onnx", "--calibration", "COMPARED"], "too few to say what int8"),
    ],
)
def test_int8_needs_cells_to_calibrate_and_others_to_measure(best_model, noise, arguments, said, tmp_path):
    named = {"COMPARED": str(noise[1]), "m.pth": str(tmp_path / "m.pth"), "m.onnx": str(tmp_path / "m.onnx")}
    asked = [named.get(one, one) for one in arguments]
    assert said in error_of(cervicyte("export", best_model, "--precision", "int8", *asked))


@pytest.mark.parametrize("option", ["--calibration", "--held-out"])
def test_what_is_for_int8_alone_is_not_passed_over_in_silence(best_model, noise, option, tmp_path):
    out = tmp_path / "m.onnx"
    refused = cervicyte("export", best_model, "--format", "onnx", "--out", out, option, noise[1])
    assert "are for --precision int8" in error_of(refused)
    assert not out.exists()
