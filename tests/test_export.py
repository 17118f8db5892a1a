"""Export: the original notebook's own network opens what we write, and nothing is lost to and fro."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import PROJECT
from torch import nn
from torchvision.models import resnet50
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.errors import UsageError
from cervicyte.images.preprocessing import ORIGINAL_PREPROCESSING, Preprocessing
from cervicyte.inference.export import export_model
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


# --- what is refused -------------------------------------------------------------------------------


def test_a_format_that_does_not_exist_is_refused_with_those_that_do(best_model, tmp_path):
    said = error_of(cervicyte("export", best_model, "--format", "onnx", "--out", tmp_path / "m.onnx"))
    assert "'onnx'" in said
    assert "pth or safetensors" in said
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
