"""What is done to training images: every change leaves an image, and is drawn from the seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from cervicyte.training.augmentation import (
    JPEG,
    STAIN_DENSITIES,
    Coarseness,
    Defocus,
    Framing,
    Illumination,
    Magnification,
    QuarterTurn,
    SensorNoise,
    StainJitter,
    StainShift,
    WhiteBalance,
    build_augmentation,
)
from cervicyte.training.cells import TrainingCells
from cervicyte.training.recipe import Augmentation

NEUTRAL_AND_STRONG = {
    "stain": (StainJitter(0.0), StainJitter(0.5)),
    "stain_shift": (StainShift(0.0), StainShift(0.3)),
    "white_balance": (WhiteBalance(0.0), WhiteBalance(0.3)),
    "illumination": (Illumination(0.0), Illumination(0.5)),
    "framing": (Framing(1.0), Framing(2.0)),
    "scale": (Magnification(1.0, 1.0), Magnification(0.25, 4.0)),
    "focus": (Defocus(0.0), Defocus(8.0)),
    "resolution": (Coarseness(1.0), Coarseness(0.1)),
    "noise": (SensorNoise(0.0), SensorNoise(32.0)),
}
OFF = {
    "flips": False,
    "quarter_turns": False,
    "scale_low": 1,
    "scale_high": 1,
    "stain": 0,
    "colour": 0,
    "blur": 0,
    "jpeg": 0,
}
SWITCHED_ON = {
    "framing": 2,
    "stain_shift": 0.2,
    "illumination": 0.3,
    "white_balance": 0.2,
    "focus": 1,
    "resolution": 1,
    "noise": 10,
}


def noise(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


def ramp() -> Tensor:
    """Every grey level in every channel."""
    return torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(3, 1, 1)


def changed(change: v2.Transform, image: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return change(image)


def drawn(seed: int, *sizes: int) -> list[Tensor]:
    """What a change that asks for so many random numbers, one after another, gets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [torch.rand(size) for size in sizes]


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEUTRAL_AND_STRONG)
@settings(max_examples=25, deadline=None)
@given(size=st.integers(16, 70), seed=st.integers(0, 2**32))
def test_every_change_leaves_an_image_and_depends_on_the_seed_alone(name, size, seed):
    _, strong = NEUTRAL_AND_STRONG[name]
    image = noise(size, seed)
    before = image.clone()
    result = changed(strong, image, seed)
    assert result.shape == image.shape
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    assert torch.equal(image, before), "the stored image is not touched"
    changed(strong, image, seed + 1)
    assert torch.equal(changed(strong, image, seed), result)


@pytest.mark.parametrize("name", NEUTRAL_AND_STRONG)
@settings(max_examples=25, deadline=None)
@given(size=st.integers(16, 70), seed=st.integers(0, 2**32))
def test_every_change_of_neutral_strength_is_none(name, size, seed):
    neutral, _ = NEUTRAL_AND_STRONG[name]
    image = noise(size, seed)
    assert torch.equal(changed(neutral, image, seed), image)


@pytest.mark.parametrize("key", SWITCHED_ON)
def test_every_key_changes_images_as_seed_epoch_and_index_say(key):
    images = np.stack([noise(32, seed).permute(1, 2, 0).numpy() for seed in range(3)])
    augment = build_augmentation(Augmentation(**OFF, **{key: SWITCHED_ON[key]}))
    cells = TrainingCells(images, np.zeros(3, np.int64), augment, seed=7)
    first = cells[1, 1][0]
    assert not torch.equal(first, torch.from_numpy(images[1]).permute(2, 0, 1))
    assert not torch.equal(cells[2, 1][0], first)
    torch.manual_seed(99)
    assert torch.equal(cells[1, 1][0], first)
    other_seed = TrainingCells(images, np.zeros(3, np.int64), augment, seed=8)
    assert not torch.equal(other_seed[1, 1][0], first)


def test_with_everything_off_nothing_is_done():
    image = noise(32)
    assert torch.equal(build_augmentation(Augmentation(**OFF))(image), image)


def test_the_defaults_are_the_changes_of_the_first_version_bit_for_bit():
    first_version = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            QuarterTurn(),
            Magnification(0.8, 1.2),
            StainJitter(0.1),
            v2.ColorJitter(0.15, 0.15, 0.15),
            v2.RandomApply([v2.GaussianBlur(5, sigma=(0.3, 1.5))], 0.2),
            v2.RandomApply([JPEG(40, 95)], 0.2),
        ]
    )
    today = build_augmentation(Augmentation())
    for seed in range(20):
        assert torch.equal(changed(today, noise(32), seed), changed(first_version, noise(32), seed))


# --- each of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_stain_shift_adds_one_optical_density_to_every_pixel_of_a_channel(seed):
    result = changed(StainShift(0.2), ramp(), seed)
    (numbers,) = drawn(seed, 3)
    added = (0.2 * (2 * numbers - 1)) @ STAIN_DENSITIES
    for channel in range(3):
        expected = (ramp()[channel] + 1.0) * math.exp(-added[channel]) - 1
        torch.testing.assert_close(result[channel].float(), expected.clamp(0, 255), atol=0.5001, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_white_balance_scales_each_channel_by_a_gain_of_its_own(seed):
    result = changed(WhiteBalance(0.2), ramp(), seed)
    (numbers,) = drawn(seed, 3)
    for channel in range(3):
        expected = ramp()[channel] * (0.8 + 0.4 * numbers[channel])
        torch.testing.assert_close(result[channel].float(), expected.clamp(0, 255), atol=0.5001, rtol=0)


@pytest.mark.parametrize("seed", range(10))
def test_illumination_is_smooth_alike_in_all_channels_and_bounded(seed):
    even = torch.full((3, 64, 64), 160, dtype=torch.uint8)
    result = changed(Illumination(0.4), even, seed).int()
    assert torch.equal(result[0], result[1])
    assert torch.equal(result[0], result[2])
    assert result.min() >= 160 * 0.6 - 0.5
    assert result.max() <= min(255, 160 * 1.4 + 0.5)
    assert result.max() > result.min()
    for axis in (1, 2):
        assert result.diff(dim=axis).abs().max() <= 160 * 0.4 * 4 / 63 + 1


@pytest.mark.parametrize("seed", range(10))
def test_framing_magnifies_about_the_middle_within_its_bounds(seed):
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    nucleus = torch.where(x**2 + y**2 < 10**2, 50, 200).to(torch.uint8).repeat(3, 1, 1)
    result = changed(Framing(2.0), nucleus, seed)
    seen = (result[0] < 125) & (x**2 + y**2 < 25**2)  # without what the mirror shows
    area = seen.sum().item() / (nucleus[0] < 125).sum().item()
    assert 1 / 2 * 0.9 < area < 4 * 1.1
    assert abs((x * seen).sum() / seen.sum()) < 1
    assert abs((y * seen).sum() / seen.sum()) < 1


def test_framing_goes_farther_in_than_out():
    # A ramp's slope tells the magnification.
    image = torch.arange(64, dtype=torch.uint8).mul(3).repeat(3, 64, 1)
    slopes = [changed(Framing(2.0), image, seed)[0, 32].int()[28:37] for seed in range(200)]
    factors = np.array([3 * 8 / (slope[-1] - slope[0]).item() for slope in slopes])
    assert 1.9 < factors.max() < 2.15
    assert 1 / math.sqrt(2) * 0.93 < factors.min() < 0.78


@pytest.mark.parametrize("change", [Framing(2.0), Magnification(0.25, 0.25), Coarseness(0.1), Defocus(8.0)])
def test_no_border_appears_where_there_was_none(change):
    image = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    for seed in range(10):
        assert torch.equal(changed(change, image, seed), image)


@pytest.mark.parametrize("seed", range(5))
def test_a_point_out_of_focus_becomes_an_even_disc(seed):
    image = torch.zeros(3, 41, 41, dtype=torch.uint8)
    image[:, 20, 20] = 255
    result = changed(Defocus(4.0), image, seed)[0].float()
    (numbers,) = drawn(seed, 1)
    radius = 4 * numbers.item()
    distance = torch.hypot(*torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij"))
    assert (result[distance > radius + 0.5] == 0).all()
    inside = result[distance < radius - 0.5] if radius > 0.5 else result[20, 20]
    assert inside.max() - inside.min() <= 1
    area = max(1.0, math.pi * radius**2)
    assert inside.max().item() == pytest.approx(255 / area, rel=0.3, abs=1)


def test_a_coarser_camera_loses_what_is_finer_than_its_pixels_and_keeps_the_mean():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    for seed in range(5):
        result = changed(Coarseness(0.3), stripes, seed).float()
        (numbers,) = drawn(seed, 1)
        left = 0.3 + 0.7 * numbers.item()
        assert result.mean().item() == pytest.approx(100, abs=3)
        if left <= 0.5:
            assert result.std() < 0.3 * stripes.float().std()


@pytest.mark.parametrize("seed", range(3))
def test_the_variance_of_sensor_noise_is_linear_in_the_light(seed):
    at_white, by_light = (numbers.item() for numbers in drawn(seed, 1, 1))
    at_white *= 12
    for level in (60, 128, 190):
        image = torch.full((3, 128, 128), level, dtype=torch.uint8)
        added = changed(SensorNoise(12.0), image, seed).double() - level
        rounding = 1 / 12  # the variance of a number rounded to whole ones
        expected = at_white**2 * (1 - by_light + by_light * level / 255) + rounding
        assert added.var().item() == pytest.approx(expected, rel=0.04)
        assert added.mean().item() == pytest.approx(0, abs=5 * math.sqrt(expected / added.numel()))


def test_a_share_of_images_keeps_what_is_of_its_own_laboratory():
    """With everything at home switched off, an image comes back as it was, or spoilt."""
    calm = {"flips": False, "quarter_turns": False, "scale_low": 1, "scale_high": 1}
    calm |= {"stain": 0, "colour": 0, "blur": 0, "jpeg": 0, "noise": 20, "framing": 2}
    image = noise(32)
    for share in (0.0, 0.3, 1.0):
        augment = build_augmentation(Augmentation(**calm, foreign=share))
        torch.manual_seed(0)
        changed_ones = sum(not torch.equal(augment(image), image) for _ in range(200))
        assert changed_ones == pytest.approx(200 * share, abs=0 if share in (0, 1) else 30)
