"""The verdict beside a map: what beats the controls, what does not, and that nothing is left behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from cervicyte.explanation import cam, verdict
from cervicyte.explanation.controls import (
    CONTROLS,
    centre_blob,
    class_maps,
    control_maps,
    darkness,
    network_input,
    random_twin,
)
from cervicyte.explanation.verdict import LEAST_PROBABILITY, Verdict, verdicts
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50

SIDE = 48
CORNER = (slice(2, 14), slice(30, 44))


class LooksAtACorner(CBAMResNet50):
    """A network whose first class is the texture of one corner of the image and nothing else."""

    def forward(self, images):
        patch = images[:, :, CORNER[0], CORNER[1]].float()
        energy = (patch - patch.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
        return torch.stack([6 * energy - 3, torch.zeros_like(energy), torch.full_like(energy, -1.0)], 1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = LooksAtACorner(3).eval()
    return ModelFile(network, ("a", "b", "c"), Preprocessing(image_size=SIDE))


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


def corner_map(high=1.0):
    values = np.zeros((SIDE, SIDE), np.float32)
    values[CORNER] = high
    return values


def test_the_map_of_what_the_network_looks_at_beats_the_controls(model, inputs):
    for found in verdicts(model, inputs, [corner_map()] * 3, [0, 0, 0]):
        assert found.beats_controls
        assert found.score > 0.5
        assert set(found.controls) == set(CONTROLS)
        assert "beats all 3 controls" in found.sentence


@pytest.mark.parametrize("values", [1 - corner_map(), np.ones((3, 3), np.float32)])
def test_a_map_that_points_elsewhere_or_everywhere_does_not(model, inputs, values):
    for found in verdicts(model, inputs, [values] * 3, [0, 0, 0]):
        assert not found.beats_controls
        assert "does not beat" in found.sentence
        assert "Do not rely" in found.sentence


def test_an_empty_map_is_not_tested_since_a_draw_of_pixels_might_win(model, inputs):
    for found in verdicts(model, inputs, np.zeros((3, 3, 3), np.float32), [0, 0, 0]):
        assert not found.tested
        assert not found.beats_controls
        assert found.probability >= LEAST_PROBABILITY
        assert "The map is empty" in found.sentence
        assert found.short == "not tested: the map is empty"


def test_a_contrast_is_judged_by_the_probability_among_its_two_classes(model, inputs):
    logits = model.network(network_input(model, inputs)).double()
    expected = torch.sigmoid(logits[:, 0] - logits[:, 2]).numpy()
    asked = [cam.Contrast(0, 2)] * 3
    for found, probability in zip(verdicts(model, inputs, [corner_map()] * 3, asked), expected, strict=True):
        assert found.probability == pytest.approx(probability, abs=1e-3)
        assert found.beats_controls
    opposite = verdicts(model, inputs, [corner_map()] * 3, [cam.Contrast(2, 0)] * 3)
    assert not any(found.beats_controls for found in opposite)
    with pytest.raises(ValueError, match="names both classes"):
        verdicts(model, inputs[:1], [corner_map()], [cam.Contrast(0)])


def test_a_control_never_beats_itself(model, inputs):
    classes = [0, 0, 0]
    controls = control_maps(model, inputs, classes, cam.DEFAULT_METHOD, cam.DEFAULT_LAYER)
    for name in CONTROLS:
        for found in verdicts(model, inputs, controls[name], classes):
            assert found.score == pytest.approx(found.controls[name])
            assert not found.beats_controls


def test_a_class_of_next_to_no_probability_is_not_judged(model):
    flat = np.full((1, SIDE, SIDE, 3), 128, np.uint8)
    (found,) = verdicts(model, flat, [corner_map()], [0])
    assert found.probability < LEAST_PROBABILITY
    assert not found.tested
    assert not found.beats_controls
    assert not found.controls
    assert "Not to be relied on" in found.sentence
    assert found.short == "not tested: under 5 %, uncalibrated"
    assert found.forward_passes == 1


def test_whether_a_class_is_probable_enough_is_told_by_the_probability_that_is_stated(model, inputs):
    (usual,) = verdicts(model, inputs[:1], [corner_map()], [0])
    for probability in (np.nextafter(LEAST_PROBABILITY, 0), LEAST_PROBABILITY):

        def score(images, probability=probability):
            return np.tile([probability, 1 - probability, 0], (len(images), 1))

        (found,) = verdicts(model, inputs[:1], [corner_map()], [0], score=score)
        assert found.probability == probability
        assert found.tested == bool(found.controls) == (probability >= LEAST_PROBABILITY)
        assert found.forward_passes == (usual.forward_passes if found.tested else 1)


@pytest.fixture
def counted(monkeypatch):
    """Images that went through the network that scores; the random network's are another's."""
    seen = []
    forward = LooksAtACorner.forward

    def watched(self, images):
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(LooksAtACorner, "forward", watched)
    return seen


def test_the_stated_cost_is_what_goes_through_the_networks(model, inputs, counted):
    found = verdicts(model, inputs, [corner_map()] * 3, [0, cam.Contrast(0, 1), 0])
    random_maps = len(inputs)
    assert sum(counted) + random_maps == sum(one.forward_passes for one in found)
    assert all(one.forward_passes == verdict.FORWARD_PASSES for one in found)


def test_several_maps_of_an_image_cost_less_than_each_alone_and_are_judged_alike(model, inputs, counted):
    targets: list[cam.Target] = [0, 1, 2, cam.Contrast(0, 2)]
    dull = inputs[:1] // 8 + 112
    maps = [corner_map(), 1 - corner_map(), corner_map(), corner_map()]
    alone = [verdicts(model, dull, [one], [target])[0] for one, target in zip(maps, targets, strict=True)]
    counted.clear()
    together = verdicts(model, np.repeat(dull, 4, axis=0), maps, targets)
    tested = [one for one in together if one.tested]
    assert 2 <= len(tested) < 4
    assert sum(counted) + len(tested) == sum(one.forward_passes for one in together)
    assert sum(one.forward_passes for one in together) < sum(one.forward_passes for one in alone)
    for one, expected in zip(together, alone, strict=True):
        assert one.tested == expected.tested
        assert one.score == pytest.approx(expected.score, abs=1e-5, nan_ok=True)
        assert one.controls == pytest.approx(expected.controls, abs=1e-5)


def test_threads_share_a_network_and_leave_nothing_in_it(model, inputs):
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    state_of_generator = torch.random.get_rng_state()
    alone = [verdicts(model, inputs[[k]], [corner_map()], [k % 2])[0] for k in range(3)]
    with ThreadPoolExecutor(6) as threads:
        tasks = [threads.submit(verdicts, model, inputs[[k]], [corner_map()], [k % 2]) for k in (0, 1, 2) * 2]
        together = [task.result()[0] for task in tasks]
    for one, expected in zip(together, alone * 2, strict=True):
        assert one.score == pytest.approx(expected.score, abs=1e-5, nan_ok=True)
        assert one.controls == pytest.approx(expected.controls, abs=1e-5)
    assert torch.equal(torch.random.get_rng_state(), state_of_generator)
    assert not model.network.training
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_nothing_to_judge_is_no_error_and_a_mismatch_is_one(model, inputs):
    assert verdicts(model, inputs[:0], [], []) == []
    with pytest.raises(ValueError, match="3 images, 1 maps and 3 targets"):
        verdicts(model, inputs, [corner_map()], [0, 0, 0])


@pytest.mark.parametrize(
    ("score", "is_win"), [(0.005, False), (-0.2, False), (0.01, False), (0.011, True), (0.3, True)]
)
def test_a_map_that_counts_for_nothing_wins_nothing_though_the_controls_are_worse(score, is_win):
    found = Verdict(score, {"centre": score - 0.02, "darkness": -0.5, "random": score - 0.1}, 44, 0.9)
    assert not found.unbeaten
    assert found.beats_controls is is_win
    assert ("Do not rely on where it points" in found.sentence) is not is_win
    assert ("what the map marks counts for no more than what it leaves out" in found.sentence) is not is_win
    assert (found.short == "beats the controls") is is_win


def test_a_near_draw_is_not_called_a_win():
    found = Verdict(0.305, {"centre": 0.3, "darkness": 0.1, "random": 0.0}, 44, 0.9)
    assert not found.beats_controls
    assert "does not beat a blob in the centre (0.30)" in found.sentence
    assert "darkness" not in found.sentence
    assert found.short == "does not beat: centre"


# --- the controls themselves ---------------------------------------------------------------------


def test_the_centre_blob_is_highest_in_the_middle_and_the_same_from_every_side():
    blob = centre_blob(9)
    assert np.unravel_index(blob.argmax(), blob.shape) == (4, 4)
    for turned in (blob[::-1], blob[:, ::-1], blob.T):
        np.testing.assert_allclose(turned, blob)


def test_darkness_is_highest_where_the_image_is_darkest():
    image = np.full((SIDE, SIDE, 3), 220, np.uint8)
    image[30:36, 8:14] = (60, 20, 80)
    row, column = np.unravel_index(darkness(image).argmax(), image.shape[:2])
    assert 30 <= row < 36
    assert 8 <= column < 14


def test_the_random_twin_has_the_same_shape_no_equal_weight_and_is_made_once(model):
    twin = random_twin(model.network)
    assert twin is random_twin(model.network)
    own = model.network.state_dict()
    for name, value in twin.state_dict().items():
        assert value.shape == own[name].shape
        assert value.isfinite().all()
        if value.ndim == 4:
            assert value.std() > 0
            assert not torch.equal(value, own[name])


def test_each_image_gets_the_map_of_its_own_class(inputs):
    torch.manual_seed(1)
    network = CBAMResNet50(3).eval()
    nn.init.normal_(network.fc.weight)
    model = ModelFile(network, ("a", "b", "c"), Preprocessing(image_size=SIDE))
    classes = np.array([2, 0, 2])
    found = class_maps(
        network, model, inputs, classes.tolist(), ("grad-cam", "layercam"), ("layer3", "cbam4")
    )
    for (method, layer), maps in found.items():
        everything = cam.explain(network, network_input(model, inputs), method, [layer])[layer]
        expected = everything[torch.arange(3), torch.from_numpy(classes)].numpy()
        np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6 * max(1, expected.max()))
