"""Measures of faithfulness against figures worked by hand and a network whose reasons are known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cervicyte.explanation import cam, faithfulness
from cervicyte.explanation.controls import network_input
from cervicyte.explanation.faithfulness import (
    area,
    deletion_and_insertion,
    enlarged,
    imputed,
    localisation,
    marked,
    mean_colour,
    of_target,
    probabilities_of,
    rank_correlation,
    ranks,
    replaced,
    road,
)
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50

SIDE = 40
REASON = (slice(6, 16), slice(20, 32))


def texture_of_the_region(images):
    """The probability of the first of two classes is the contrast inside one region and nothing else."""
    patches = images[:, REASON[0], REASON[1]].astype(float) / 255
    probability = 1 - np.exp(-20 * patches.var((1, 2)).mean(-1))
    return np.stack([probability, 1 - probability], axis=1)


class Counted:
    """A score that counts the images it is asked for."""

    def __init__(self, score):
        self.score, self.images = score, 0

    def __call__(self, images):
        self.images += len(images)
        return self.score(images)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def reason_map():
    values = np.zeros((SIDE, SIDE), np.float32)
    values[REASON] = 1
    return values


def random_maps(count):
    return [np.random.default_rng(seed).random((5, 5), np.float32) for seed in range(count)]


# --- order -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, (6, 6), elements=st.sampled_from([0.0, 1.0, 2.0])))
def test_ranks_are_a_permutation_that_follows_the_values(values):
    places = ranks(values)
    assert sorted(places.ravel()) == list(range(36))
    in_order = values.ravel()[np.argsort(places.ravel())]
    assert (np.diff(in_order) <= 0).all()


def test_pixels_of_equal_value_are_not_ranked_from_the_top_left():
    first_half = ranks(np.zeros((40, 40))) < 800
    assert 0.4 < first_half[:20].mean() < 0.6
    assert 0.4 < first_half[:, :20].mean() < 0.6


def test_replacing_takes_the_most_important_pixels_first():
    image, black = np.full((2, 2, 3), 200, np.uint8), np.zeros((2, 2, 3), np.uint8)
    places = np.array([[3, 0], [1, 2]])
    found = replaced(image, black, marked(places, [0, 0.25, 0.5, 1]))
    assert [one[..., 0].tolist() for one in found] == [
        [[200, 200], [200, 200]],
        [[200, 0], [200, 200]],
        [[200, 0], [0, 200]],
        [[0, 0], [0, 0]],
    ]


# --- deletion and insertion ------------------------------------------------------------------------


def test_areas_on_four_pixels_are_those_worked_by_hand(monkeypatch):
    """The score is the first pixel's red over 200; the mean colour is 100, the blurred image is black."""
    image = np.array([[200, 100], [60, 40]], np.uint8)[..., None].repeat(3, -1)
    monkeypatch.setattr(faithfulness, "blurred", np.zeros_like)
    first = np.array([[4.0, 3.0], [2.0, 1.0]])
    last = np.array([[1.0, 2.0], [3.0, 4.0]])

    def score(images):
        return images[:, :1, 0, 0] / 200

    found = deletion_and_insertion(score, image, [first, last], [0, 0], steps=4)
    # Deletion: 1, 1/2, 1/2, 1/2, 1/2 and 1, 1, 1, 1, 1/2. Insertion: 0, 1, 1, 1, 1 and 0, 0, 0, 0, 1.
    np.testing.assert_allclose(found.deletion, [0.5625, 0.9375])
    np.testing.assert_allclose(found.insertion, [0.875, 0.125])
    # Half of the pixels of one map are the other half of the other's: no two pictures are the same.
    assert found.scored == 3 + 2 * 2 * 3


def test_the_area_of_a_straight_line_is_its_middle():
    assert area(np.linspace(0.2, 0.8, 7)) == pytest.approx(0.5)
    assert area(np.array([[1.0, 1.0], [0.0, 1.0]])).tolist() == [1.0, 0.5]


def test_the_true_reason_has_the_best_areas_and_random_maps_are_worse(image):
    maps = [reason_map(), *random_maps(12), 1 - reason_map()]
    found = deletion_and_insertion(texture_of_the_region, image, maps, [0] * len(maps), steps=8)
    score = found.insertion - found.deletion
    assert score.argmax() == 0
    assert score.argmin() == len(maps) - 1
    assert score[0] > score[1:-1].max() + 0.1
    assert abs(score[1:-1].mean()) < 0.25  # a draw finds the reason no more often than it misses it


def test_the_areas_do_not_depend_on_a_maps_scale(image):
    values = random_maps(1)[0]
    alike = [values, 1000 * values + 7]
    found = deletion_and_insertion(texture_of_the_region, image, alike, [0, 0], steps=5)
    assert found.deletion[0] == found.deletion[1]
    assert found.insertion[0] == found.insertion[1]


def test_what_maps_share_is_scored_once_and_each_has_what_it_has_alone(image):
    one, other = random_maps(2)
    maps, targets = [one, other, 2 * one, one], [0, 0, 0, 1]
    for measure in (
        lambda score, image, maps, targets: deletion_and_insertion(score, image, maps, targets, 5)[:2],
        lambda score, image, maps, targets: road(score, image, maps, targets, (30, 60)),
    ):
        together, two = Counted(texture_of_the_region), Counted(texture_of_the_region)
        found = measure(together, image, maps, targets)
        measure(two, image, maps[:2], targets[:2])
        assert together.images == two.images
        for place, (values, target) in enumerate(zip(maps, targets, strict=True)):
            alone = measure(texture_of_the_region, image, [values], [target])
            for kind, expected in zip(found, alone, strict=True):
                np.testing.assert_array_equal(kind[place], expected[0])


def test_an_unchanged_image_whose_score_is_known_is_not_scored_again(image):
    asked = image, random_maps(2), [0, 1]
    plain, spared = Counted(texture_of_the_region), Counted(texture_of_the_region)
    expected = deletion_and_insertion(plain, *asked, steps=4)
    whole = texture_of_the_region(image[None])[0]
    found = deletion_and_insertion(spared, *asked, steps=4, whole=whole)
    np.testing.assert_array_equal(found[:2], expected[:2])
    assert spared.images == found.scored == expected.scored - 1 == plain.images - 1


def test_what_deletion_leaves_is_the_mean_colour():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = (100, 50, 10)
    assert mean_colour(image)[1, 1].tolist() == [50, 25, 5]


# --- the score -------------------------------------------------------------------------------------


def test_the_score_is_the_networks_own_and_the_network_stays_as_it_is(monkeypatch):
    torch.manual_seed(0)
    network = CBAMResNet50(3).eval()
    torch.nn.init.normal_(network.fc.weight)
    model = ModelFile(network, ("a", "b", "c"), Preprocessing(image_size=48))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), np.uint8)
    with torch.inference_mode():
        expected = network(network_input(model, images)).double().softmax(1).numpy()
    for precision, tolerance in (("float32", 1e-5), (faithfulness.score_precision(), 0.03)):
        monkeypatch.setattr(faithfulness, "score_precision", lambda precision=precision: precision)
        np.testing.assert_allclose(probabilities_of(model)(images), expected, atol=tolerance)
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        network.fc.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    np.testing.assert_allclose(probabilities_of(model)(images)[:, 0], 1)
    assert probabilities_of(model)(images[:0]).shape == (0, 3)


def test_a_contrast_is_measured_among_its_two_classes():
    logits = np.random.default_rng(0).normal(size=(4, 3))
    probabilities = scipy.special.softmax(logits, axis=1)
    expected = scipy.special.expit(logits[:, 2] - logits[:, 0])
    np.testing.assert_allclose(of_target(probabilities, cam.Contrast(2, 0)), expected)
    np.testing.assert_array_equal(of_target(probabilities, 1), probabilities[:, 1])
    with pytest.raises(ValueError, match="names both classes"):
        of_target(probabilities, cam.Contrast(1))


# --- ROAD ------------------------------------------------------------------------------------------


def solved_directly(image, missing):
    """Rong et al.'s equations, one a missing pixel, by sparse elimination."""
    height, width = missing.shape
    index = np.full(missing.shape, -1)
    index[missing] = np.arange(missing.sum())
    matrix = scipy.sparse.lil_matrix((missing.sum(), missing.sum()))
    right = np.zeros((missing.sum(), 3))
    for row, (y, x) in enumerate(np.argwhere(missing)):
        for dy, dx in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                weight = 1 / 12 if dy and dx else 1 / 6
                matrix[row, row] += weight
                if missing[y + dy, x + dx]:
                    matrix[row, index[y + dy, x + dx]] -= weight
                else:
                    right[row] += weight * image[y + dy, x + dx]
    filled = image.astype(float)
    filled[missing] = scipy.sparse.linalg.spsolve(matrix.tocsr(), right)
    return filled


@pytest.mark.parametrize("percent", [5, 40, 80, 95])
def test_imputation_solves_the_equations_of_road(image, percent):
    missing = ranks(enlarged(random_maps(1)[0], SIDE)) < percent / 100 * SIDE**2
    expected = solved_directly(image, missing)
    found = imputed(image, missing).astype(float)
    assert np.abs(found - expected).max() < 3  # grey levels, rounding included; the noise has 2.5
    assert np.abs(found - expected).mean() < 0.5
    np.testing.assert_array_equal(found[~missing], image[~missing])


def test_imputed_pixels_get_noise_of_the_stated_size_and_others_none():
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    missing = np.zeros((SIDE, SIDE), bool)
    missing[:, 10:30] = True
    assert (imputed(grey, missing) == 128).all()
    noisy = imputed(grey, missing, noise_seed=1).astype(float)
    assert noisy[missing].std() == pytest.approx(faithfulness.ROAD_NOISE, rel=0.1)
    assert (noisy[~missing] == 128).all()
    np.testing.assert_array_equal(noisy, imputed(grey, missing, noise_seed=1))


def test_an_image_that_is_missing_altogether_is_its_mean_colour(image):
    found = imputed(image, np.ones((SIDE, SIDE), bool))
    assert np.ptp(found, axis=(0, 1)).max() == 0
    np.testing.assert_allclose(found[0, 0], image.mean((0, 1)), atol=0.5)


def test_road_prefers_the_true_reason_to_random_maps(image):
    maps = [reason_map(), *random_maps(6)]
    found = road(texture_of_the_region, image, maps, [0] * len(maps))
    assert found.most_first.shape == found.least_first.shape == (7, len(faithfulness.ROAD_PERCENTILES))
    gain = (found.least_first - found.most_first).mean(1)
    assert gain.argmax() == 0
    assert gain[0] > gain[1:].max() + 0.1
    assert abs(gain[1:].mean()) < 0.25


# --- where a map lies ------------------------------------------------------------------------------


def test_shares_and_the_pointing_game_by_hand():
    values = np.array([[3.0, 1.0], [0.0, -5.0]])
    region = np.array([[True, False], [False, True]])
    found = localisation(values, region)
    assert (found.share, found.area, found.hit) == (0.75, 0.5, True)
    assert found.enrichment == 1.5
    assert not localisation(values, ~region).hit


def test_a_map_that_knows_nothing_has_an_enrichment_of_one():
    region = np.random.default_rng(0).random((30, 20)) < 0.3
    assert localisation(np.ones((30, 20)), region).enrichment == pytest.approx(1)


def test_a_map_without_evidence_points_nowhere():
    found = localisation(np.zeros((3, 3)), np.ones((3, 3), bool))
    assert np.isnan(found.share)
    assert not found.hit


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, (2, 12), elements=st.integers(0, 5)))
def test_rank_correlation_is_spearmans(values):
    found = rank_correlation(*values)
    if np.ptp(values[0]) and np.ptp(values[1]):
        assert found == pytest.approx(scipy.stats.spearmanr(*values).statistic, abs=1e-12)
    else:
        assert np.isnan(found)
