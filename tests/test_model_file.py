"""The model file that ships: half as large, whole, and refused if anything about it is amiss."""

from __future__ import annotations

import json
import random
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT, SHARED, needs_shared

import cervicyte
from cervicyte.errors import ModelFileError
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.network import description, model_file
from cervicyte.network.backbone import load_backbone, read_state_dict
from cervicyte.network.model_file import ModelFile, load_model_file, save_model, weights_hash
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

NAMES = ("Dyskeratotic", "Koilocytotic", "Metaplastic", "Parabasal", "Superficial-Intermediate")
WEIGHTS = SHARED / "weights" / "resnet50_imagenet_v15_fp16.safetensors"
PREPROCESSING = Preprocessing(image_size=32, clahe=True)
METADATA = {
    "recipe": {"seed": 4},
    "leak": None,
    "seen": {
        "sha256": [f"{n:064x}" for n in range(3445)],
        "groups": [f"sipakmed:{n:03d}" for n in range(758)],
    },
    "metrics": {"test": {"accuracy": {"value": 0.9, "low": 0.8, "high": None}}},
    "of_a_later_version": ["kept", 1.5, True],
}


def random_network(seed: int = 0) -> CBAMResNet50:
    """Return a network whose gates and statistics are not the fresh ones, and whose logits spread."""
    torch.manual_seed(seed)
    network = CBAMResNet50(5).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "cbam" in name:
                parameter.normal_(0, 0.1)
        for name, statistics in network.named_buffers():
            if name.endswith("running_mean"):
                statistics.normal_(0, 0.1)
            elif name.endswith("running_var"):
                statistics.uniform_(0.5, 1.5)
        network.fc.weight.normal_(0, 0.3)
    return network


def parts_of(path: Path) -> tuple[dict, dict, bytes]:
    """Return header, description and tensors of a safetensors file, by its published layout."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["cervicyte"]), content[8 + length :]


def write_parts(path: Path, header: dict, description: object, tensors: bytes) -> Path:
    header["__metadata__"] = {
        "cervicyte": description if isinstance(description, str) else json.dumps(description)
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + tensors)
    return path


@pytest.fixture(scope="module")
def network() -> CBAMResNet50:
    return random_network()


@pytest.fixture(scope="module")
def model(network) -> ModelFile:
    return ModelFile(network, NAMES, PREPROCESSING, 3, 0.9, METADATA)


@pytest.fixture(scope="module")
def shipped(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "cervicyte.safetensors"
    save_model(path, model)
    return path


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A file that tests write over and over: fifty megabytes each would be too many."""
    return tmp_path_factory.mktemp("changed") / "m.safetensors"


# --- what is written and read --------------------------------------------------------------------


def test_both_formats_carry_the_same(model, shipped, tmp_path):
    save_model(tmp_path / "best_model.pth", model)
    for read in (load_model_file(shipped), load_model_file(tmp_path / "best_model.pth")):
        assert read.class_names == NAMES
        assert read.preprocessing == PREPROCESSING
        assert (read.epoch, read.best_validation_accuracy, read.original) == (3, 0.9, False)
        assert {key: read.metadata[key] for key in METADATA} == METADATA
        assert read.metadata["provenance"]["notice"] == RESEARCH_USE_ONLY
        assert not read.network.training
        assert {value.dtype for value in read.network.parameters()} == {torch.float32}
        assert set(read.metadata) <= {*METADATA, "provenance", "rounded_from_sha256"}


def test_a_network_of_five_classes_with_3445_seen_cells_is_at_most_50_megabytes(shipped):
    assert shipped.stat().st_size <= 50_000_000


def test_matrices_are_float16_and_everything_else_is_exact(network, shipped):
    header, _, tensors = parts_of(shipped)
    for name, value in network.state_dict().items():
        start, end = header[name]["data_offsets"]
        stored = np.frombuffer(
            tensors[start:end], {"F16": "<f2", "F32": "<f4", "I64": "<i8"}[header[name]["dtype"]]
        )
        rounded = value.numpy().astype(np.float16) if value.ndim > 1 else value.numpy()
        assert stored.dtype == rounded.dtype, name
        np.testing.assert_array_equal(stored.reshape(header[name]["shape"]), rounded)


def test_all_that_is_said_is_one_text_of_json_in_the_header(shipped):
    header, description, _ = parts_of(shipped)
    assert list(header["__metadata__"]) == ["cervicyte"]
    assert description["class_names"] == list(NAMES)
    assert description["weights_sha256"] == weights_hash(load_model_file(shipped).network)
    assert RESEARCH_USE_ONLY in json.dumps(description)


def test_rounding_hardly_moves_the_logits_of_a_random_network(network, shipped):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = network(images), load_model_file(shipped).network(images)
    assert before.std() > 0.3
    assert 0 < (before - after).abs().max() < 0.03


@needs_shared
def test_on_real_cells_rounding_moves_no_logit_by_a_tenth_and_no_probability_by_a_hundredth(tmp_path):
    plain = {key: value.float() for key, value in read_state_dict(WEIGHTS).items()}
    network = CBAMResNet50(1000).eval()
    network.fc.load_state_dict({"weight": plain["fc.weight"], "bias": plain["fc.bias"]})
    load_backbone(network, str(WEIGHTS))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # The file's weights are float16 already: each is moved by up to half a step, so that it must be.
            parameter.mul_(1 + (torch.rand(parameter.shape, generator=generator) - 0.5) * 2**-10)
            if "cbam" in name:
                parameter.normal_(0, 0.01, generator=generator)
    preprocessing = Preprocessing(image_size=128)
    save_model(tmp_path / "m.safetensors", ModelFile(network, tuple(map(str, range(1000))), preprocessing))
    cells = [p for name in NAMES for p in sorted((SHARED / "data/sipakmed" / f"im_{name}").glob("*.jpg"))[:2]]
    images = np.stack([preprocessing(read_image(path)) for path in cells])
    batch = torch.from_numpy(preprocessing.normalise(images))
    with torch.no_grad():
        before, after = network(batch), load_model_file(tmp_path / "m.safetensors").network(batch)
    assert before.std() > 2
    assert 0 < (before - after).abs().max() < 0.1
    assert (before.softmax(1) - after.softmax(1)).abs().max() < 0.01


def test_variances_that_float16_has_no_number_for_are_kept_exactly(tmp_path):
    network = random_network()
    name = "bn1.running_var"
    extremes = torch.tensor([0.0, 1e-30, 1e-9, 65_520.0, 1e9])
    with torch.no_grad():
        network.state_dict()[name][:5] = extremes
    save_model(tmp_path / "m.safetensors", ModelFile(network, NAMES, PREPROCESSING))
    read = load_model_file(tmp_path / "m.safetensors").network.state_dict()
    assert torch.equal(read[name][:5], extremes)
    counted = "bn1.num_batches_tracked"
    assert torch.equal(read[counted], network.state_dict()[counted])


@pytest.mark.parametrize("value", [65_520.0, -1e6, float("inf"), float("nan")])
def test_a_weight_that_float16_cannot_hold_is_refused_by_name(tmp_path, value):
    network = random_network()
    with torch.no_grad():
        network.layer3[0].conv2.weight[0, 0, 0, 0] = value
    with pytest.raises(ModelFileError, match=r"m\.safetensors.*layer3\.0\.conv2\.weight.*65,504"):
        save_model(tmp_path / "m.safetensors", ModelFile(network, NAMES, PREPROCESSING))
    assert not list(tmp_path.iterdir())


def test_the_largest_weight_of_float16_is_no_hindrance(tmp_path):
    network = random_network()
    with torch.no_grad():
        network.fc.weight[0, 0] = 65_504
    save_model(tmp_path / "m.safetensors", ModelFile(network, NAMES, PREPROCESSING))
    assert load_model_file(tmp_path / "m.safetensors").network.fc.weight[0, 0] == 65_504


@pytest.mark.parametrize("value", [float("nan"), {1, 2}], ids=["not a number", "a set"])
def test_metadata_that_are_no_json_are_refused(network, tmp_path, value):
    model = ModelFile(network, NAMES, PREPROCESSING, metadata={"loss": value})
    with pytest.raises(ModelFileError, match=r"m\.safetensors.*no JSON"):
        save_model(tmp_path / "m.safetensors", model)
    assert not list(tmp_path.iterdir())


def test_more_metadata_than_safetensors_reads_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "LARGEST_HEADER", 10_000)
    with pytest.raises(ModelFileError, match=r"m\.safetensors.*larger than safetensors allows"):
        save_model(tmp_path / "m.safetensors", model)


def test_a_file_can_be_read_by_whom_other_new_files_can(shipped, tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE(shipped.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_the_content_says_which_format_it_is(model, shipped, tmp_path):
    (tmp_path / "a.pth").write_bytes(shipped.read_bytes())
    save_model(tmp_path / "b.pth", model)
    (tmp_path / "b.pth").rename(tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert load_model_file(tmp_path / name).class_names == NAMES


def test_a_model_written_anew_keeps_the_provenance_of_its_training(shipped, tmp_path):
    model = load_model_file(shipped)
    model.metadata["provenance"]["written"] = "2001-01-01T00:00:00+00:00"
    save_model(tmp_path / "again.pth", model)
    assert load_model_file(tmp_path / "again.pth").metadata["provenance"] == model.metadata["provenance"]


# --- what is refused -----------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        load_model_file(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "format version 2.*install"),
        ({"format_version": None}, "format version None"),
        ({"class_names": "abcde"}, "no list of names"),
        ({"class_names": ["a", "b", "c", "d", "a"]}, "name one class twice"),
        ({"class_names": ["a", "b"]}, "for 2 classes"),
        ({"class_names": []}, "are none"),
        ({"epoch": "seven"}, "epoch.*no number"),
        ({"best_val_acc": [0.9]}, "best_val_acc.*no number"),
        ({"preprocessing": {"image_size": 32}}, "fingerprint"),
        ({"preprocessing": None}, "preprocessing cannot be read"),
        ({"seen": ["a"]}, "damaged, at seen"),
        ({"seen": {"sha256": "abc"}}, "damaged, at seen.sha256"),
        ({"split": 5}, "damaged, at split"),
        ({"weights_sha256": None}, "description is damaged"),
        ({"weights_sha256": "0" * 64}, "weights are not those"),
    ],
)  # fmt: skip
def test_a_description_that_cannot_be_trusted_is_refused(shipped, changed, change, said):
    header, description, tensors = parts_of(shipped)
    path = write_parts(changed, header, {**description, **change}, tensors)
    assert re.search(said, refused(path))


@pytest.mark.parametrize("description", ["", "{", "[]", "5", "null", "[" * 100_000])
def test_a_header_without_a_description_is_refused(shipped, changed, description):
    header, _, tensors = parts_of(shipped)
    refused(write_parts(changed, header, description, tensors))


def test_weights_of_something_else_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert "no model of Cervicyte" in refused(tmp_path / "other.safetensors")


def test_a_single_changed_bit_of_the_weights_is_found(shipped, changed):
    content = bytearray(shipped.read_bytes())
    content[-1_000_001] ^= 1
    changed.write_bytes(content)
    assert "weights are not those" in refused(changed)


def test_a_changed_weight_of_a_pth_is_found(model, tmp_path):
    save_model(tmp_path / "m.pth", model)
    content = torch.load(tmp_path / "m.pth", weights_only=True)
    content["model_state_dict"]["fc.bias"][0] += 1e-6
    torch.save(content, tmp_path / "m.pth")
    assert "weights are not those" in refused(tmp_path / "m.pth")


def test_a_pth_from_before_there_was_a_hash_is_read(model, tmp_path):
    save_model(tmp_path / "m.pth", model)
    content = torch.load(tmp_path / "m.pth", weights_only=True)
    del content["cervicyte"]["weights_sha256"], content["cervicyte"]["original"]
    torch.save(content, tmp_path / "m.pth")
    assert load_model_file(tmp_path / "m.pth").original is False


@pytest.mark.parametrize("length", [0, 7, 9, 5_000, 400_000, 1_000_000, 49_000_000])
def test_half_a_file_is_refused(shipped, changed, length):
    changed.write_bytes(shipped.read_bytes()[:length])
    refused(changed)


def test_whatever_is_changed_in_the_header_gives_the_same_weights_or_a_named_error(shipped, changed):
    content = shipped.read_bytes()
    length = int.from_bytes(content[:8], "little")
    digest = weights_hash(load_model_file(shipped).network)
    draw = random.Random(0)
    refusals = 0
    for _ in range(15):
        damaged = bytearray(content)
        damaged[draw.randrange(8 + length)] = draw.randrange(256)
        changed.write_bytes(damaged)
        try:
            assert weights_hash(load_model_file(changed).network) == digest
        except ModelFileError:
            refusals += 1
    assert refusals


# --- the shipped model and the page --------------------------------------------------------------


def test_a_build_without_a_model_says_so_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(description, "SHIPPED_MODEL", tmp_path / "none.safetensors")
    with pytest.raises(
        ModelFileError, match=r"ships no model; train one with `cervicyte train`, or name"
    ) as error:
        cervicyte.load_model()
    assert "\n" not in str(error.value)


def test_the_shipped_model_lies_in_the_package_where_the_wheel_takes_it_along():
    import tomllib

    package = PROJECT / "src" / "cervicyte"
    patterns = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    place = description.SHIPPED_MODEL.relative_to(package)
    assert any(place.match(pattern) for pattern in patterns["cervicyte"])
    if description.SHIPPED_MODEL.is_file():
        assert description.SHIPPED_MODEL.stat().st_size <= 50_000_000
        assert load_model_file(description.SHIPPED_MODEL).metadata["seen"]["sha256"]


def test_load_model_takes_a_path_or_the_shipped_model(shipped, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    given = cervicyte.load_model(str(shipped), device="cpu").predict([image])[0]
    monkeypatch.setattr(description, "SHIPPED_MODEL", shipped)
    assert cervicyte.load_model(device="cpu").predict([image])[0] == given
    assert tuple(given.probabilities) == NAMES


def test_the_package_is_imported_without_torch_or_numpy():
    code = "import sys; from cervicyte import load_model; sys.exit(bool({'torch', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def blocks_of_the_page() -> list[str]:
    page = (PROJECT / "docs" / "model_file.md").read_text()
    return [block.split("```")[0] for block in page.split("```python\n")[1:]]


def test_the_example_of_the_page_that_loads_a_model_runs(model, tmp_path, monkeypatch):
    save_model(tmp_path / "best_model.pth", model)
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    names: dict = {"image": image}
    exec(blocks_of_the_page()[0], names)
    assert names["prediction"].class_name in NAMES
    assert names["maps"]["Parabasal"].shape == (40, 50)


def test_the_example_of_the_page_reads_the_file_without_cervicyte_and_torch(network, shipped, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(shipped)
    check = "import numpy, sys\nnumpy.save('fc.npy', weights['fc.weight'])\nassert 'torch' not in sys.modules"
    code = f"import sys\nsys.modules['cervicyte'] = None\n{blocks_of_the_page()[1]}\n{check}"
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert RESEARCH_USE_ONLY in told.stdout
    assert "(5, 2048)" in told.stdout
    expected = network.fc.weight.detach().half().float().numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "fc.npy"), expected)
