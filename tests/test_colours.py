"""Colours of maps: zero is no colour, and their order survives grey print and colour blindness."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cervicyte.errors import UsageError
from cervicyte.explanation import colours

FOLLOWING = [name for name in colours.COLOURS if name != colours.ORIGINAL]
PALE_TISSUE = (226, 222, 230)
# Linear RGB as the colour-blind see it. G. M. Machado, M. M. Oliveira, L. Fernandes, "A Physiologically-
# based Model for Simulation of Color Vision Deficiency", IEEE TVCG 15, 2009, table 1, severity 1.0.
COLOUR_BLIND = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def seen_by(rgb, kind):
    """Return CIE L*a*b* of sRGB colours [N, 3], 0 to 255, as an eye of this kind sees them."""
    linear = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ COLOUR_BLIND[kind].T, 0, 1)
    xyz = linear @ np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ).T / (0.9505, 1.0, 1.089)  # fmt: skip
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@settings(max_examples=40, deadline=None)
@given(
    image=arrays.arrays(np.uint8, (5, 7, 3)),
    values=arrays.arrays(np.float32, (5, 7), elements=st.floats(-10, 10, width=32)),
    highest=st.floats(1, 20),
    name=st.sampled_from(FOLLOWING),
    signed=st.booleans(),
)
def test_where_the_map_is_zero_the_pixels_are_unchanged(image, values, highest, name, signed):
    values[:2] = 0
    laid = colours.overlay(image, values, highest, name, signed)
    assert laid.dtype == np.uint8
    unmarked = (values == 0) if signed else (values <= 0)
    assert np.array_equal(laid[unmarked], image[unmarked])


def test_a_map_of_nothing_leaves_the_whole_image_unchanged_and_is_black_by_itself():
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for top in (None, 0.0):
        assert np.array_equal(colours.overlay(image, np.zeros((4, 5)), top), image)
        assert not colours.alone(np.zeros((4, 5)), top).any()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("tissue", [0, 128, 255])
def test_more_evidence_changes_tissue_more_and_never_hides_it(tissue, signed):
    values = np.linspace(0, 1, 30)[np.newaxis]
    image = np.full((1, 30, 3), tissue, np.uint8)
    darker = np.full((1, 30, 3), abs(tissue - 100), np.uint8)
    laid = colours.overlay(image, values, 1.0, signed=signed).astype(int)
    change = np.abs(laid - image).sum(2)[0]
    assert change[-1] > change[10] > change[0] == 0
    assert np.abs(laid - colours.overlay(darker, values, 1.0, signed=signed)).max(2).min() >= 35


def test_on_a_shared_scale_a_weaker_map_is_less_hot():
    image = np.full((1, 2, 3), 128, np.uint8)
    strong = colours.overlay(image, np.array([[0.0, 4.0]]), 4.0)
    weak = colours.overlay(image, np.array([[0.0, 1.0]]), 4.0)
    assert np.array_equal(strong, colours.overlay(image, np.array([[0.0, 1.0]])))  # by itself it is hottest
    assert np.abs(weak.astype(int) - image).sum() < np.abs(strong.astype(int) - image).sum()


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_the_order_of_the_default_scale_is_one_of_lightness_for_every_eye_and_in_print(kind):
    scale = colours.alone(np.linspace(0, 1, 32)[np.newaxis], 1.0)[0].astype(float)
    assert (np.diff(seen_by(scale, kind)[:, 0]) > 0).all()


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_evidence_for_and_against_look_different_to_every_eye_over_tissue_and_alone(kind):
    strength = np.linspace(0.3, 1, 8)
    tissue = np.full((1, 8, 3), PALE_TISSUE, np.uint8)
    for draw in (
        lambda values: colours.alone(values, 1.0, signed=True),
        lambda values: colours.overlay(tissue, values, 1.0, signed=True),
    ):
        speaks_for, against = (
            seen_by(draw(sign * strength[np.newaxis])[0].astype(float), kind) for sign in (1, -1)
        )
        # 2.3 is just noticeable (M. Mahy et al. 1994); ten times that is told at a glance.
        assert (np.linalg.norm(speaks_for - against, axis=1) > 23).all()


def test_the_originals_look_covers_the_whole_image_with_the_rainbow():
    image = np.full((1, 2, 3), 200, np.uint8)
    laid = colours.overlay(image, np.array([[0.0, 1.0]]), 1.0, "jet")[0]
    assert laid[0, 2] > laid[0, 0] + 50  # blue where there is nothing
    assert laid[1, 0] > laid[1, 2] + 50  # red where there is most


@pytest.mark.parametrize("values", [np.zeros((3, 2)), np.full((2, 3), np.nan), np.full((2, 3), np.inf)])
def test_a_map_of_another_shape_or_without_finite_values_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        colours.overlay(np.zeros((2, 3, 3), np.uint8), values)


def test_colours_that_there_are_not_are_refused_by_naming_those_that_there_are():
    with pytest.raises(UsageError, match=r"'rainbow'.*inferno, cividis, viridis, jet"):
        colours.check_colours("rainbow")


def test_every_example_in_the_documentation_runs():
    result = doctest.testmod(colours)
    assert result.attempted >= 2
    assert result.failed == 0
