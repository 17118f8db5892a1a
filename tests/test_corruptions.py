"""Each corruption is what its paper says, grows with its severity, and spoils the same image alike."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from cervicyte.datasets.synthetic import draw_cell
from cervicyte.images import corruptions
from cervicyte.images.corruptions import CORRUPTIONS, SEVERITIES, as_large_as_theirs, corrupted


@pytest.fixture(scope="module")
def cell():
    return draw_cell("Parabasal", np.random.default_rng(0)).image


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_severe_is_further_from_the_image(cell, name):
    clean = as_large_as_theirs(cell).astype(float)
    distances = [np.abs(corrupted(cell, name, severity) - clean).mean() for severity in SEVERITIES]
    if name != "stain":  # whose shifts are drawn anew
        assert distances == sorted(distances)
    assert distances[0] > 0
    assert distances[-1] > 1.5 * distances[0] or name == "JPEG"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_image_is_always_spoilt_alike_and_another_one_otherwise(cell, name):
    spoilt = corrupted(cell, name, 3)
    assert spoilt.dtype == np.uint8
    assert max(spoilt.shape) == corruptions.SIDE
    assert np.array_equal(spoilt, corrupted(cell.copy(), name, 3))
    if name in ("gaussian noise", "shot noise", "stain"):
        other = cell.copy()
        other[0, 0] ^= 128
        assert np.abs(corrupted(other, name, 3)[5:, 5:].astype(int) - spoilt[5:, 5:]).max() > 0


def test_gaussian_blur_is_scipys_but_for_the_tails(cell):
    clean = as_large_as_theirs(cell) / 255
    for severity, sigma in zip(SEVERITIES, (1, 2, 3, 4, 6), strict=True):
        wanted = gaussian_filter(clean, (sigma, sigma, 0), mode="nearest", truncate=4)
        found = corrupted(cell, "gaussian blur", severity) / 255
        assert np.abs(found - wanted).max() < 0.01


def test_jpeg_is_that_of_another_encoder_but_for_rounding(cell):
    clean = as_large_as_theirs(cell)
    file = io.BytesIO()
    Image.fromarray(clean).save(file, "JPEG", quality=7)
    wanted = np.asarray(Image.open(file)).astype(int)
    assert np.abs(corrupted(cell, "JPEG", 5).astype(int) - wanted).mean() < 2


def test_noise_has_the_spread_that_is_stated():
    grey = np.full((224, 224, 3), 128, np.uint8)
    for severity in (1, 2):  # beyond, clipping takes some of it away
        spread = corrupted(grey, "gaussian noise", severity).std() / 255
        assert spread == pytest.approx(corruptions.GAUSSIAN_NOISE_SIGMA[severity - 1], rel=0.03)
        # Photons: variance of a count is its mean.
        shot = corrupted(grey, "shot noise", severity) / 255
        assert shot.mean() == pytest.approx(128 / 255, abs=0.01)
        photons = corruptions.SHOT_NOISE_PHOTONS[severity - 1]
        assert shot.std() == pytest.approx(math.sqrt(128 / 255 / photons), rel=0.1)


def test_defocus_spreads_a_point_over_its_disc():
    point = np.zeros((224, 224, 3), np.uint8)
    point[112, 112] = 255
    for severity in range(5):
        values = corruptions.defocus_blur(point / 255.0, severity, np.random.default_rng(0))
        assert values.sum(axis=(0, 1)) == pytest.approx([1, 1, 1], abs=1e-4)
    values = corruptions.defocus_blur(point / 255.0, 2, np.random.default_rng(0))  # radius 6
    rows, columns = np.nonzero(values[..., 0] > values.max() / 2)
    distance = np.hypot(rows - 112, columns - 112)
    assert 5.5 <= distance.max() <= 6.5
    assert len(rows) == pytest.approx(math.pi * 36, rel=0.15)


def test_brightness_keeps_hue_and_raises_value():
    pixels = np.tile(np.array([100, 50, 150], np.uint8), (224, 224, 1))
    found = corrupted(pixels, "brightness", 1)[0, 0] / 255
    value = 150 / 255 + 0.1
    assert found.max() == pytest.approx(value, abs=0.005)
    assert found / found.max() == pytest.approx(np.array([100, 50, 150]) / 150, abs=0.01)


def test_a_stain_shift_is_the_same_density_everywhere_in_the_units_of_hed(cell):
    rng = np.random.default_rng(5)
    shift = np.random.default_rng(5).uniform(-0.02, 0.02, 3)
    values = np.clip(as_large_as_theirs(cell) / 255, 0.2, 0.6)  # far from black and white
    changed = corruptions.stain(values, 0, rng)
    gained = (np.log(changed) - np.log(values)) / math.log(1e-6)
    assert gained == pytest.approx(np.broadcast_to(shift @ corruptions.STAINS, values.shape), abs=1e-9)


def test_the_numbers_are_the_papers():
    assert corruptions.GAUSSIAN_NOISE_SIGMA == (0.08, 0.12, 0.18, 0.26, 0.38)
    assert corruptions.JPEG_QUALITY == (25, 18, 15, 10, 7)
    assert [len(strengths) for strengths in (corruptions.STAIN_SHIFT, corruptions.BRIGHTNESS_ADDED)] == [5, 5]
