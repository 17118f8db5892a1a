"""A model fitted to another laboratory's images differs in what was measured on them, and in nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from cervicyte.cli import GO_ON, app
from cervicyte.errors import UsageError
from cervicyte.evaluation import elsewhere as elsewhere_module
from cervicyte.evaluation.adaptation import LARGEST_SHARE, adapted, blend_normalisation, share_of
from cervicyte.evaluation.answers import UNLIKE, Answerer, answered_cells
from cervicyte.evaluation.elsewhere import elsewhere
from cervicyte.evaluation.familiarity import distances_of, fit_familiarity, fit_spaces
from cervicyte.evaluation.features import pooled_features
from cervicyte.evaluation.model_card import model_card
from cervicyte.images.preprocessing import LARGEST_GAIN, Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.images.statistics import background_of, image_statistics
from cervicyte.inference.adapt import warnings_of
from cervicyte.network.model_file import ModelFile, load_model_file, save_model, weights_hash
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY, sha256_of_file
from cervicyte.training.cells import normalised

NAMES = ("Koilocytotic", "Parabasal", "Dyskeratotic")
PREPROCESSING = Preprocessing(image_size=32)


def pictures(count, seed=0, brightest=256):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, brightest, (24, 30, 3)).astype(np.uint8) for _ in range(count)]


def network_of(seed=0):
    torch.manual_seed(seed)
    return CBAMResNet50(3).eval()


def of_normalisation(network):
    return {
        name: (layer.running_mean.clone(), layer.running_var.clone())
        for name, layer in network.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        and layer.running_mean is not None
        and layer.running_var is not None
    }


@pytest.fixture(scope="module")
def model():
    """A model that knows its training laboratory's light and what is usual there."""
    made = ModelFile(network_of(), NAMES, PREPROCESSING)
    images = pictures(60)
    inputs = np.stack([PREPROCESSING(image) for image in images])
    features = pooled_features(made.network, inputs, PREPROCESSING)
    statistics = np.array([image_statistics(image) for image in images])
    spaces = fit_spaces(features, np.arange(60) % 3)
    familiarity = fit_familiarity(
        spaces, statistics, distances_of(spaces, features), statistics, [str(n) for n in range(60)]
    )
    made.metadata["background"] = [float(level) for level in background_of(np.concatenate(images))]
    made.metadata["familiarity"] = familiarity.to_json()
    made.tensors |= familiarity.tensors()
    return made


def test_wholly_new_statistics_are_those_that_pytorch_measures_in_training_mode():
    images = np.stack([PREPROCESSING(image) for image in pictures(12)])
    ours, theirs = network_of(), network_of()
    blend_normalisation(ours, images, PREPROCESSING, 1.0)
    sizes = {}
    for name, layer in theirs.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.register_forward_hook(
                lambda _, inputs, output, name=name: sizes.update({name: output.numel() // output.shape[1]})
            )
    order = np.random.default_rng(0).permutation(len(images))
    inputs = normalised(torch.from_numpy(images[order]).permute(0, 3, 1, 2), PREPROCESSING)
    with torch.no_grad():
        theirs.train()(inputs)
    expected = of_normalisation(theirs)
    for name, (mean, variance) in of_normalisation(ours).items():
        torch.testing.assert_close(mean, expected[name][0], rtol=1e-3, atol=1e-4)
        biased = expected[name][1] * (sizes[name] - 1) / sizes[name]
        torch.testing.assert_close(variance, biased, rtol=1e-3, atol=1e-4)


def test_a_share_of_nothing_changes_nothing_and_a_half_lies_between():
    images = np.stack([PREPROCESSING(image) for image in pictures(100)])  # two batches
    network = network_of()
    before = of_normalisation(network)
    blend_normalisation(network, images, PREPROCESSING, 0.0)
    for name, values in of_normalisation(network).items():
        torch.testing.assert_close(values, before[name])
    half, whole = network_of(), network_of()
    blend_normalisation(half, images, PREPROCESSING, 0.5)
    blend_normalisation(whole, images, PREPROCESSING, 1.0)
    # Of the first layer, whose input no blending changes.
    halfway = torch.lerp(before["bn1"][0], whole.bn1.running_mean, 0.5)
    torch.testing.assert_close(half.bn1.running_mean, halfway)


def test_the_share_grows_with_the_images_up_to_a_bound():
    shares = [share_of(images) for images in (2, 64, 200, 10_000)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[1] < LARGEST_SHARE == shares[-1]


def test_only_normalisation_light_framing_and_what_is_usual_change(model):
    weights, stored = weights_hash(model.network), json.dumps(model.metadata)
    new = adapted(model, pictures(20, seed=1, brightest=128))
    assert (weights_hash(model.network), json.dumps(model.metadata)) == (weights, stored)
    running = ("running_mean", "running_var")
    old_state = model.network.state_dict()
    for name, value in new.network.state_dict().items():
        if not name.endswith(running):
            assert torch.equal(value, old_state[name]), name
    assert {key for key in new.metadata if new.metadata[key] != model.metadata.get(key)} == {
        "adaptation",
        "background",  # the light that the new gain is for
        "familiarity",
    }
    assert new.metadata["adaptation"]["of_weights_sha256"] == weights
    old = {"gain": model.preprocessing.gain, "least_side": 0}
    assert new.preprocessing.model_copy(update=old) == model.preprocessing


@pytest.mark.parametrize("brightest", [200, 128, 32])
def test_the_background_becomes_as_bright_as_in_the_training_laboratory(model, brightest):
    new = adapted(model, pictures(10, seed=2, brightest=brightest))
    usual = np.array(model.metadata["background"])
    as_seen = np.array(new.metadata["adaptation"]["background"]) * new.preprocessing.gain
    within = usual / np.array(new.metadata["adaptation"]["background"]) <= LARGEST_GAIN
    np.testing.assert_allclose(as_seen[within], usual[within], rtol=1e-3)
    assert max(new.preprocessing.gain) <= LARGEST_GAIN
    assert within.all() == (brightest > 32)  # so dark that no gain suffices
    unchanged = adapted(model, pictures(10), white_point=False, framing=False)
    assert unchanged.preprocessing == model.preprocessing


@pytest.mark.parametrize("brightest", [200, 128])
def test_to_adapt_once_more_brings_the_light_to_the_training_laboratory_s_again(model, brightest):
    first = adapted(model, pictures(10, seed=2, brightest=150))
    again = adapted(first, pictures(10, seed=2, brightest=150))
    np.testing.assert_allclose(again.preprocessing.gain, first.preprocessing.gain, rtol=1e-3)
    assert first.preprocessing.gain != model.preprocessing.gain
    elsewhere = pictures(10, seed=4, brightest=brightest)
    at_once, by_way = adapted(model, elsewhere), adapted(first, elsewhere)
    np.testing.assert_allclose(by_way.preprocessing.gain, at_once.preprocessing.gain, rtol=1e-3)


def test_what_was_unlike_the_training_cells_is_usual_afterwards(model):
    dark = pictures(100, seed=3, brightest=90)

    def flagged(one):
        inputs = np.stack([one.preprocessing(image) for image in dark])
        features = pooled_features(one.network, inputs, one.preprocessing)
        statistics = np.array([image_statistics(image) for image in dark])
        said = Answerer.of(one).predictions(np.zeros((100, 3)), features, statistics)
        return np.mean([each.verdict in UNLIKE for each in said])

    assert flagged(model) > 0.9
    assert flagged(adapted(model, dark)) < 0.1


def test_an_adapted_model_says_so_wherever_it_answers(model, tmp_path):
    new = adapted(model, pictures(5))
    save_model(tmp_path / "new.safetensors", new)
    read = load_model_file(tmp_path / "new.safetensors")
    assert read.preprocessing == new.preprocessing
    assert any("unlabelled images" in note for note in Answerer.of(read).notes)
    assert any("adapted to only 5 images" in note for note in Answerer.of(read).notes)
    assert not any("home cells" in note for note in Answerer.of(read).notes)
    assert "## Adaptation" in model_card(read)
    assert "## Adaptation" not in model_card(model)


def test_one_image_is_refused(model):
    with pytest.raises(UsageError, match="1 image is too few"):
        adapted(model, pictures(1))


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("laboratory")
    for number, image in enumerate(pictures(70, seed=4, brightest=150)):
        Image.fromarray(image).save(root / f"{number:02d}.png")
    return root


@pytest.fixture
def model_path(model, tmp_path):
    save_model(tmp_path / "model.pth", model)
    return tmp_path / "model.pth"


def adapt(*arguments):
    return CliRunner().invoke(app, ["adapt", *map(str, arguments)])


def test_the_command_writes_a_new_model_and_what_changed(model_path, folder, tmp_path):
    before, out = sha256_of_file(model_path), tmp_path / "new.safetensors"
    result = adapt(model_path, "--images", folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert RESEARCH_USE_ONLY in result.output
    assert "before" in result.output
    assert sha256_of_file(model_path) == before
    content = json.loads((tmp_path / "new.json").read_text())
    assert (content["images"], content["images_found"]) == (70, 70)
    for time in ("before", "after"):
        assert sum(content[time]["classes"].values()) == pytest.approx(1)
        assert sum(content[time]["verdicts"].values()) == pytest.approx(1)
    assert content["adapted"]["weights_sha256"] == weights_hash(load_model_file(out).network)
    assert load_model_file(out).metadata["adaptation"]["provenance"]["command"].startswith("cervicyte")
    # A second time: not over it, unless it is said.
    assert adapt(model_path, "--images", folder, "--out", out).exit_code == 2
    assert adapt(model_path, "--images", folder, "--out", out, "--force").exit_code == 0


def test_the_model_itself_another_ending_and_a_damaged_image_are_refused(model_path, folder, tmp_path):
    before = sha256_of_file(model_path)
    for out, said in ((model_path, "is the model itself"), (tmp_path / "new.onnx", "must end with")):
        result = adapt(model_path, "--images", folder, "--out", out, "--force")
        assert result.exit_code == 2
        assert said in result.output
    assert sha256_of_file(model_path) == before
    (tmp_path / "mine.json").write_text("{}")  # where it is written what changed
    result = adapt(model_path, "--images", folder, "--out", tmp_path / "mine.pth")
    assert (result.exit_code, (tmp_path / "mine.json").read_text()) == (2, "{}")
    assert "mine.json: is there already" in result.output
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no image")
    result = adapt(model_path, "--images", tmp_path / "bad", "--out", tmp_path / "new.pth")
    assert result.exit_code == 2
    assert "1.png" in result.output
    assert not (tmp_path / "new.pth").exists()


def test_images_that_cannot_be_read_are_left_out_and_named(model_path, tmp_path):
    (tmp_path / "some").mkdir()
    for number, image in enumerate(pictures(3, seed=5)):
        Image.fromarray(image).save(tmp_path / "some" / f"{number}.png")
    for number in range(4):
        (tmp_path / "some" / f"bad{number}.png").write_bytes(b"no image")
    result = adapt(model_path, "--images", tmp_path / "some", "--out", tmp_path / "new.pth")
    assert result.exit_code == 0, result.output
    assert "Warning: 4 images were left out, unreadable: " in result.output
    assert "bad2.png, …." in result.output
    assert "bad3.png" not in result.output
    content = json.loads((tmp_path / "new.json").read_text())
    assert (content["images"], content["images_found"], len(content["images_unreadable"])) == (3, 7, 4)


def test_copies_of_an_image_count_once(model_path, tmp_path):
    (tmp_path / "some").mkdir()
    for number in range(6):
        Image.fromarray(pictures(1, seed=number // 3)[0]).save(tmp_path / "some" / f"{number}.png")
    result = adapt(model_path, "--images", tmp_path / "some", "--out", tmp_path / "new.pth")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "new.json").read_text())
    assert (content["images"], content["images_found"], content["images_copied"]) == (2, 6, 4)
    assert load_model_file(tmp_path / "new.pth").metadata["adaptation"]["images"] == 2


def test_images_too_large_together_are_refused_before_the_memory_is_full(
    model_path, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("cervicyte.inference.adapt.MOST_PIXELS", 24 * 30 * 5)
    result = adapt(model_path, "--images", folder, "--out", tmp_path / "new.pth")
    assert result.exit_code == 2
    assert "give fewer, or crops of single cells" in result.output
    assert not (tmp_path / "new.pth").exists()


def test_an_interruption_promises_nothing_that_was_not_kept(model_path, folder, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cervicyte.inference.adapt.adapt", interrupted)
    monkeypatch.setattr("cervicyte.inference.predict.predict", interrupted)
    result = adapt(model_path, "--images", folder, "--out", tmp_path / "new.pth")
    assert (result.exit_code, result.output) == (130, "Stopped.\n")
    arguments = ["predict", str(folder), "--model", str(model_path), "--out", str(tmp_path / "out.csv")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    assert "repeat the command to go on" in result.output
    commands = get_command(app)
    assert isinstance(commands, TyperGroup)
    assert commands.commands.keys() >= GO_ON


def content_of(images=100, largest=0.5, no_cells=0.0, before=0.5):
    return {
        "images": images,
        "before": {
            "classes": {"Metaplastic": before, "Parabasal": 1 - before},
            "verdicts": {"not_a_cell": no_cells},
        },
        "after": {"classes": {"Parabasal": largest, "Metaplastic": 1 - largest}},
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (content_of(), None),
        (content_of(images=63), "63 images are too few"),
        (content_of(largest=0.9), "90% of the images are called Parabasal afterwards: they look"),
        (content_of(before=0.93), "93% of the images are called Metaplastic beforehand: they look"),
        (
            content_of(before=0.93, largest=0.9),
            "93% of the images are called Metaplastic beforehand, and 90% of the images are called Parabasal",
        ),
        (content_of() | {"images_copied": 1}, "1 image is a copy of another"),
        (content_of() | {"images_copied": 7}, "7 images are copies of others, and count once"),
        (content_of() | {"model_was_adapted": True}, "The model was adapted before"),
        (content_of() | {"median_size_px": 1774.0}, "Half of the images are larger than 1774 pixels"),
        (content_of() | {"median_size_px": 540.0}, None),
        (content_of(no_cells=0.5), "50% of the images do not look like single cervical cells"),
    ],
)
def test_what_speaks_against_it_is_said(content, said):
    warnings = warnings_of(content)
    assert len(warnings) == (said is not None)
    assert said is None or warnings[0].startswith(said)


# --- what it brings ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def herlev(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "herlev"
    for number, name in enumerate(("normal_superficiel", "normal_columnar", "light_dysplastic")):
        (root / name).mkdir(parents=True)
        for frame, image in enumerate(pictures(4, seed=number, brightest=180)):
            Image.fromarray(image).save(root / name / f"{148494000 + 10 * number + frame}-001.png")
    return root


def test_no_cell_is_judged_by_a_network_that_was_adapted_to_its_frame(
    herlev, model_path, tmp_path, monkeypatch
):
    shown: list[set[bytes]] = []
    judged: list[set[bytes]] = []

    def watched_adapted(model, images, **options):
        shown.append({image.tobytes() for image in images})
        return adapted(model, images, **options)

    def watched_answers(model, cells, *rest, **options):
        if "adaptation" in model.metadata:
            judged.append({read_image(cell.path).tobytes() for cell in cells})
        return answered_cells(model, cells, *rest, **options)

    monkeypatch.setattr(elsewhere_module, "adapted", watched_adapted)
    monkeypatch.setattr(elsewhere_module, "answered_cells", watched_answers)
    content = elsewhere([model_path], herlev, tmp_path / "out", adapt=[4], draws=2)
    assert len(shown) == len(judged) == 4
    for adapted_to, answered in zip(shown, judged, strict=True):
        assert len(adapted_to) == 4
        assert not adapted_to & answered
    assert len(judged[0] | judged[1]) == 12
    one = content["adapted"][0]
    for name, figure in one["figures"].items():
        difference = figure["value"] - content["figures"][name]["value"]
        assert one["less_zero_shot"][name]["value"] == pytest.approx(difference)
    assert 0 <= content["doubt"]["flagged"] <= 1
    page = (tmp_path / "out" / "elsewhere.md").read_text()
    assert "adapted to 4 images" in page
    assert "flagged as unlike" in page


def test_more_images_than_half_of_the_groups_have_are_refused(herlev, model_path, tmp_path):
    with pytest.raises(UsageError, match="half of its groups have 6 images"):
        elsewhere([model_path], herlev, tmp_path / "out", adapt=[64])
