"""Claims about preprocessing, the way back onto the original, and the measures of quality."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cervicyte.images import preprocessing as preprocessing_module
from cervicyte.images.preprocessing import (
    ORIGINAL_PREPROCESSING,
    CanvasPlacement,
    Preprocessing,
    ScaledToFitWarning,
)
from cervicyte.images.quality import contrast_ratio, psnr, ssim, steps_against_original
from cervicyte.images.reader import read_image

REPOSITORY = Path(__file__).resolve().parents[1]
CELLS = REPOSITORY.parent / "shared" / "data" / "sipakmed_original_sample"

SIDES = st.integers(1, 40) | st.integers(1, 600)
SCALES = st.sampled_from(["fit", "native"])
RESAMPLINGS = st.sampled_from(["area", "lanczos"])
SHADES = st.integers(0, 255)
EXTREME = [(1, 5000), (5000, 1), (1, 1), (2, 3001), (1, 40_000), (600, 7)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def canvas_of(settings: Preprocessing, image: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScaledToFitWarning)
        return dict(settings.steps(image))["square"]


def with_extremes(test):
    for size in EXTREME:
        for scale in ("fit", "native"):
            test = example(size=size, scale=scale, resampling="area")(test)
    return test


@with_extremes
@settings(max_examples=60, deadline=None)
@given(size=st.tuples(SIDES, SIDES), scale=SCALES, resampling=RESAMPLINGS)
def test_rest_of_the_canvas_is_the_mirror_image_for_every_size(size, scale, resampling):
    image = noise(*size)
    settings_ = Preprocessing(canvas_size=96, image_size=32, scale=scale, resampling=resampling)
    where = settings_.placement(*size)
    canvas = canvas_of(settings_, image)
    assert canvas.shape == (96, 96, 3)
    placed = canvas[where.top : where.top + where.height, where.left : where.left + where.width]
    below, beside = 96 - where.top - where.height, 96 - where.left - where.width
    mirrored = np.pad(placed, ((where.top, below), (where.left, beside), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(canvas, mirrored)
    assert abs(where.top - below) <= 1, "the image stands in the middle"
    assert abs(where.left - beside) <= 1


@with_extremes
@settings(max_examples=60, deadline=None)
@given(size=st.tuples(SIDES, SIDES), scale=SCALES, resampling=RESAMPLINGS)
def test_no_constant_border_remains_for_any_size(size, scale, resampling):
    height, width = size
    if max(size) == 1:
        return  # one pixel has one colour
    # Black and white in turn, coarse enough that no scaling averages it to grey.
    rows, columns = np.mgrid[:height, :width]
    cells = (rows * 12 // max(size) + columns * 12 // max(size)) % 2
    image = np.repeat((cells * 255).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
    if image.min() == image.max():
        return  # too small a square for two cells
    settings_ = Preprocessing(canvas_size=96, image_size=48, scale=scale, resampling=resampling)
    where = settings_.placement(*size)
    if max(where.height, where.width) < 12:
        return  # shrunk until its cells are one pixel or less
    canvas = canvas_of(settings_, image)
    cell = max(where.height, where.width) / 12
    for border, along in (
        (canvas[: where.top], where.width),
        (canvas[where.top + where.height :], where.width),
        (canvas[:, : where.left], where.height),
        (canvas[:, where.left + where.width :], where.height),
    ):
        # A strip that shows less than two cells of the image may well lie in one of them.
        if border.size and max(along, min(border.shape[:2])) > 2 * cell:
            assert int(border.max()) - int(border.min()) > 50


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(SIDES, SIDES),
    scale=SCALES,
    resampling=RESAMPLINGS,
    sides=st.sampled_from([(16, 16), (256, 224), (64, 96)]),
)
def test_output_has_the_stated_shape_for_every_size(size, scale, resampling, sides):
    settings_ = Preprocessing(
        canvas_size=sides[0], image_size=sides[1], scale=scale, resampling=resampling, clahe=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScaledToFitWarning)
        image = settings_(noise(*size))
    assert image.shape == (sides[1], sides[1], 3)
    assert image.dtype == np.uint8


def test_shrinking_by_a_whole_factor_takes_the_mean_of_each_block():
    image = noise(512, 512)
    means = image.reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(canvas_of(Preprocessing(), image), means, atol=0.5001)


@pytest.mark.parametrize("resampling", ["area", "lanczos"])
def test_shrinking_does_not_alias(resampling):
    stripes = np.zeros((700, 700, 3), np.uint8)
    stripes[:, ::2] = 254
    canvas = canvas_of(Preprocessing(resampling=resampling), stripes)
    # Without antialiasing some column would take black or white alone.
    assert np.abs(canvas[8:-8, 8:-8].astype(int) - 127).max() <= 40


def test_enlarging_is_smooth_and_not_by_repeated_pixels():
    ramp = np.repeat(np.arange(0, 240, 6, dtype=np.uint8)[np.newaxis, :, np.newaxis], 40, axis=0)
    for resampling in ("area", "lanczos"):
        canvas = canvas_of(Preprocessing(resampling=resampling), np.repeat(ramp, 3, axis=2))
        steps = np.diff(canvas[128, 20:-20, 0].astype(int))
        assert steps.max() <= 2
        assert steps.min() >= 0


def test_the_same_pixels_come_out_of_any_memory_layout():
    image = noise(90, 61)
    flipped = image[:, ::-1]
    for settings_ in (Preprocessing(), Preprocessing(resampling="lanczos", clahe=True)):
        np.testing.assert_array_equal(settings_(flipped), settings_(flipped.copy()))


def test_input_is_left_as_it_was():
    image = noise(256, 256)
    before = image.copy()
    result = ORIGINAL_PREPROCESSING(image)
    result[:] = 0
    Preprocessing(image_size=256)(image)[:] = 0
    np.testing.assert_array_equal(image, before)


def test_steps_come_in_their_order_with_their_names():
    image = noise(40, 30)
    assert [name for name, _ in Preprocessing().steps(image)] == ["original", "square", "resized"]
    stages = ORIGINAL_PREPROCESSING.steps(image)
    assert [name for name, _ in stages] == ["original", "square", "denoised", "CLAHE", "resized"]
    assert stages[0][1] is image
    np.testing.assert_array_equal(stages[-1][1], ORIGINAL_PREPROCESSING(image))


def test_the_white_point_is_the_first_step_and_has_a_name_of_its_own():
    settings_ = ORIGINAL_PREPROCESSING.model_copy(update={"white_point": True})
    stages = settings_.steps(noise(40, 30))
    names = ["original", "white point", "square", "denoised", "CLAHE", "resized"]
    assert [name for name, _ in stages] == names


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 999), darkest=SHADES)
def test_the_white_point_makes_the_95th_percentile_240_with_a_gain_of_at_most_1_6(size, seed, darkest):
    rng = np.random.default_rng(seed)
    image = rng.integers(darkest, rng.integers(darkest + 1, 257, 3), (*size, 3)).astype(np.uint8)
    white = dict(Preprocessing(canvas_size=16, image_size=16, white_point=True).steps(image))["white point"]
    for channel in range(3):
        before = image[..., channel].astype(float)
        background = max(1.0, np.percentile(before, 95, method="inverted_cdf"))
        gain = min(240 / background, 1.6)
        np.testing.assert_allclose(white[..., channel], (before * gain).clip(0, 255), atol=0.5001)


def test_the_white_point_takes_a_tint_away_and_leaves_the_cell_as_dark_as_it_was_to_the_background():
    image = np.full((40, 40, 3), (200, 180, 220), np.uint8)
    image[10:20, 10:20] = (100, 60, 110)  # half, a third and half of the light of the background
    white = dict(Preprocessing(white_point=True).steps(image))["white point"]
    assert white[0, 0].tolist() == [240, 240, 240]
    assert white[15, 15].tolist() == [120, 80, 120]


def test_a_crop_without_background_is_brightened_only_so_far_and_keeps_its_colour():
    white = dict(Preprocessing(white_point=True).steps(np.full((9, 9, 3), (100, 60, 50), np.uint8)))
    assert white["white point"][0, 0].tolist() == [160, 96, 80]


def test_few_bright_pixels_are_not_taken_for_the_background():
    image = np.full((20, 20, 3), 200, np.uint8)
    lit = image.copy()
    lit[0, :19] = 255  # 4.75 % of the pixels
    on = Preprocessing(white_point=True)
    assert dict(on.steps(lit))["white point"][10, 10].tolist() == [240, 240, 240]


def test_a_gain_goes_before_the_white_point():
    image = noise(40, 60, seed=3) // 2
    both = Preprocessing(white_point=True, gain=(0.5, 1.0, 1.1))
    gained = dict(Preprocessing(gain=both.gain).steps(image))["gain"]
    white = dict(Preprocessing(white_point=True).steps(gained))["white point"]
    np.testing.assert_array_equal(dict(both.steps(image))["white point"], white)
    assert (white != dict(Preprocessing(white_point=True).steps(image))["white point"]).any()


def test_the_white_point_moves_nothing():
    on, off = Preprocessing(white_point=True), Preprocessing()
    assert on.placement(91, 200) == off.placement(91, 200)
    values = np.random.default_rng(0).random((7, 7))
    np.testing.assert_array_equal(on.onto_original(values, 91, 200), off.onto_original(values, 91, 200))
    np.testing.assert_array_equal(on.padding_mask(91, 200), off.padding_mask(91, 200))


def test_masks_go_through_the_geometry_alone():
    every_step = Preprocessing(scale="native", white_point=True, denoise=True, clahe=True)
    mask = np.repeat((np.random.default_rng(0).random((80, 60, 1)) > 0.5) * np.uint8(255), 3, axis=2)
    assert every_step.geometry() == Preprocessing(scale="native")
    assert (every_step(mask) != every_step.geometry()(mask)).any()


def test_original_steps_are_opencvs_with_the_stated_constants():
    stages = dict(ORIGINAL_PREPROCESSING.steps(noise(40, 30)))
    for channel in range(3):
        square, denoised, equalised = (
            np.ascontiguousarray(stages[name][..., channel]) for name in ("square", "denoised", "CLAHE")
        )
        np.testing.assert_array_equal(denoised, cv2.fastNlMeansDenoising(square, None, 3, 7, 21))
        np.testing.assert_array_equal(equalised, cv2.createCLAHE(1.2, (6, 6)).apply(denoised))


def test_native_scale_is_one_scale_for_every_cell():
    settings_ = Preprocessing(scale="native", native_factor=0.5)
    for height, width in ((100, 60), (512, 300), (48, 48)):
        where = settings_.placement(height, width)
        assert where.scale == 0.5
        assert (where.height, where.width) == (height // 2, width // 2)


def test_cell_too_large_for_its_native_scale_is_scaled_to_fit_with_a_warning():
    settings_ = Preprocessing(scale="native", native_factor=0.5)
    with pytest.warns(ScaledToFitWarning, match="600x300") as caught:
        image = settings_(noise(600, 300))
    assert caught[0].filename == __file__, "the warning points at the caller"
    np.testing.assert_array_equal(image, Preprocessing()(noise(600, 300)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings_(noise(512, 300))
        Preprocessing()(noise(600, 300))


@pytest.mark.parametrize("scale", ["fit", "native"])
@pytest.mark.parametrize("size", [(150, 90), (33, 471), (540, 553)])
def test_marker_in_the_original_lands_where_placement_says(scale, size):
    settings_ = Preprocessing(scale=scale)
    where = settings_.placement(*size)
    row, column = size[0] // 3, size[1] * 3 // 4
    image = np.zeros((*size, 3), np.uint8)
    image[row - 4 : row + 5, column - 4 : column + 5] = 255
    weights = np.zeros((256, 256))
    inside = np.s_[where.top : where.top + where.height, where.left : where.left + where.width]
    weights[inside] = canvas_of(settings_, image)[inside][..., 0]
    rows, columns = np.mgrid[:256, :256] + 0.5
    assert (rows * weights).sum() / weights.sum() == pytest.approx(
        where.top + (row + 0.5) * where.height / size[0], abs=0.1
    )
    assert (columns * weights).sum() / weights.sum() == pytest.approx(
        where.left + (column + 0.5) * where.width / size[1], abs=0.1
    )
    assert where.height == pytest.approx(size[0] * where.scale, abs=0.5)
    assert where.width == pytest.approx(size[1] * where.scale, abs=0.5)


@given(size=st.tuples(SIDES, SIDES), scale=SCALES)
def test_image_always_lies_wholly_on_the_canvas(size, scale):
    where = Preprocessing(scale=scale, native_factor=3).placement(*size)
    assert isinstance(where, CanvasPlacement)
    assert where.top >= 0 <= where.left
    assert where.height >= 1 <= where.width
    assert where.top + where.height <= 256 >= where.left + where.width
    if scale == "fit":
        assert max(where.height, where.width) == 256


@settings(max_examples=80, deadline=None)
@given(size=st.tuples(SIDES, SIDES), cells=st.tuples(st.integers(2, 60), st.integers(2, 60)), scale=SCALES)
def test_ramp_over_the_input_is_laid_onto_the_original_to_sub_pixel(size, cells, scale):
    settings_ = Preprocessing(scale=scale)
    where = settings_.placement(*size)
    # The map's value at any point is 2 x its row + 3 x its column on the canvas.
    canvas_rows, canvas_columns = ((np.arange(n) + 0.5) * 256 / n for n in cells)
    values = 2 * canvas_rows[:, np.newaxis] + 3 * canvas_columns
    laid = settings_.onto_original(values, *size)
    rows = where.top + (np.arange(size[0]) + 0.5) * where.height / size[0]
    columns = where.left + (np.arange(size[1]) + 0.5) * where.width / size[1]
    # Beyond the centres of the outermost cells the map is constant.
    rows = rows.clip(canvas_rows[0], canvas_rows[-1])
    columns = columns.clip(canvas_columns[0], canvas_columns[-1])
    np.testing.assert_allclose(laid, 2 * rows[:, np.newaxis] + 3 * columns, atol=1e-9)


@pytest.mark.parametrize("scale", ["fit", "native"])
@pytest.mark.parametrize("size", [(150, 90), (91, 200), (430, 512)])
def test_image_and_way_back_are_each_others_inverse(size, scale):
    settings_ = Preprocessing(scale=scale)
    rows, columns = np.mgrid[: size[0], : size[1]]
    wave = 128 + 60 * np.sin(2 * np.pi * rows / 80) + 60 * np.cos(2 * np.pi * columns / 60)
    image = np.repeat(wave.astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
    back = settings_.onto_original(settings_(image)[..., 1].astype(np.float32), *size)
    assert back.dtype == np.float32
    # A shift by one pixel would be off by up to 6 grey levels, and in the mean by 3.
    assert np.abs(back - wave).mean() < 1
    assert np.abs(back - wave)[4:-4, 4:-4].max() < 3


def test_constant_map_stays_constant_at_any_size():
    laid = Preprocessing().onto_original(np.full((1, 1), 0.25), 5, 9)
    assert laid.shape == (5, 9)
    assert (laid == 0.25).all()


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(SIDES, SIDES), scale=SCALES, image_size=st.sampled_from([224, 64, 37]))
def test_padding_mask_is_where_no_share_of_a_pixel_is_image(size, scale, image_size):
    settings_ = Preprocessing(scale=scale, image_size=image_size)
    where = settings_.placement(*size)

    def share(start: int, length: int) -> np.ndarray:
        # Each input pixel covers 256 of 256 * image_size fine ones: a count in whole numbers.
        fine = np.zeros(256 * image_size, bool)
        fine[start * image_size : (start + length) * image_size] = True
        return fine.reshape(image_size, 256).sum(axis=1)

    image_share = np.outer(share(where.top, where.height), share(where.left, where.width))
    np.testing.assert_array_equal(settings_.padding_mask(*size), image_share == 0)


@pytest.mark.parametrize("size", EXTREME)
def test_thinnest_image_still_has_pixels_of_its_own(size):
    mask = Preprocessing().padding_mask(*size)
    assert mask.shape == (224, 224)
    assert not mask.all()


def test_square_image_has_no_padding():
    assert not Preprocessing().padding_mask(140, 140).any()


def test_normalised_image_has_the_networks_layout_and_scale():
    images = noise(5, 4)[np.newaxis]
    values = Preprocessing().normalise(images)
    assert values.dtype == np.float32
    assert values.shape == (1, 3, 5, 4)
    assert values.flags.c_contiguous
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (images[0, 3, 2, channel] / 255 - mean) / std
        assert values[0, channel, 3, 2] == pytest.approx(expected, rel=1e-5)


CHANGES = {
    "canvas_size": 255,
    "image_size": 160,
    "scale": "native",
    "native_factor": 0.75,
    "resampling": "lanczos",
    "denoise": True,
    "clahe": True,
    "white_point": True,
    "gain": (1.0, 1.2, 0.9),
    "least_side": 200,
    "mean": (0.5, 0.456, 0.406),
    "std": (0.229, 0.224, 0.5),
}


def test_fingerprint_differs_with_each_setting():
    assert set(CHANGES) == set(Preprocessing.model_fields)
    prints = {Preprocessing(**{name: value}).fingerprint() for name, value in CHANGES.items()}
    assert len(prints | {Preprocessing().fingerprint()}) == len(CHANGES) + 1
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in prints)


@pytest.mark.parametrize("constant", sorted(preprocessing_module.ALGORITHM))
def test_fingerprint_differs_with_each_constant_of_the_algorithm(constant, monkeypatch):
    every_step = Preprocessing(white_point=True, gain=(1.0, 1.0, 1.1), least_side=90)
    before_it = Preprocessing()
    before, unaware = every_step.fingerprint(), before_it.fingerprint()
    monkeypatch.setitem(preprocessing_module.ALGORITHM, constant, "another")
    assert every_step.fingerprint() != before
    # Files of models from before a step was added must go on to load.
    added_later = constant in preprocessing_module.ADDED_LATER
    assert (before_it.fingerprint() == unaware) == added_later


def test_fingerprint_survives_json_and_does_not_change_by_accident():
    for settings_ in (Preprocessing(), ORIGINAL_PREPROCESSING):
        again = Preprocessing.model_validate_json(settings_.model_dump_json())
        assert again == settings_
        assert again.fingerprint() == settings_.fingerprint()
    # Model files store it. A change here must be meant, and goes with a new ALGORITHM["version"].
    assert Preprocessing().fingerprint() == "6947bd9f45f23bcc"
    assert Preprocessing(image_size=160).fingerprint() == "609ee01d79f23232"
    assert ORIGINAL_PREPROCESSING.fingerprint() == "d49eca9a323908b0"


def test_original_preprocessing_denoises_and_equalises():
    assert Preprocessing(denoise=True, clahe=True) == ORIGINAL_PREPROCESSING


@pytest.mark.parametrize(
    "settings_",
    [
        {"canvas_size": 8},
        {"canvas_size": 100_000},
        {"image_size": 15},
        {"image_size": 1025},
        {"image_size": 224.5},
        {"scale": "stretch"},
        {"resampling": "nearest"},
        {"native_factor": 0},
        {"native_factor": math.nan},
        {"native_factor": math.inf},
        {"mean": (0.5, 0.5)},
        {"mean": (123.7, 116.3, 103.5)},
        {"std": (0.2, 0.2, 0)},
        {"std": (0.2, 0.2, math.nan)},
        {"denoise": "perhaps"},
        {"sharpen": True},
    ],
)
def test_settings_out_of_range_are_refused(settings_):
    with pytest.raises(ValidationError):
        Preprocessing(**settings_)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValidationError):
        Preprocessing().image_size = 64  # type: ignore[misc]
    assert hash(Preprocessing()) == hash(Preprocessing())


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_rgb_image_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        Preprocessing()(image)
    with pytest.raises(ValueError, match="uint8"):
        psnr(image, image)


def test_maps_and_sizes_without_pixels_are_refused():
    with pytest.raises(ValueError, match="map"):
        Preprocessing().onto_original(np.zeros((2, 2, 2)), 5, 5)
    with pytest.raises(ValueError, match="pixel"):
        Preprocessing().placement(0, 5)


# Quality.


def test_equal_images_have_infinite_psnr_full_similarity_and_equal_contrast():
    image = noise(30, 20)
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1, abs=1e-12)
    assert contrast_ratio(image, image) == 1


def test_psnr_of_one_known_error():
    reference = np.full((4, 5, 3), 100, np.uint8)
    image = reference.copy()
    image[0, 0, 0] = 70  # squared error 900 over 60 values: MSE 15
    assert psnr(reference, image) == pytest.approx(10 * math.log10(65025 / 15))
    # Unsigned differences would wrap round.
    assert psnr(image, reference) == psnr(reference, image)


def test_ssim_of_constant_images_is_its_luminance_term():
    dark, bright = np.full((12, 12, 3), 100, np.uint8), np.full((12, 12, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, bright) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rel=1e-9)


def test_ssim_is_wangs_formula_window_by_window():
    reference, image = noise(14, 17), noise(14, 17, seed=1)
    image = (0.6 * reference + 0.4 * image).astype(np.uint8)
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, np.newaxis] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = (each @ np.array([0.299, 0.587, 0.114]) for each in (reference, image))
    found = []
    for top in range(14 - 10):
        for left in range(17 - 10):
            a, b = (each[top : top + 11, left : left + 11] for each in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            variance_a = (weights * (a - mean_a) ** 2).sum()
            variance_b = (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 2.55**2, 7.65**2
            found.append(
                (2 * mean_a * mean_b + c1)
                * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
            )
    assert ssim(reference, image) == pytest.approx(np.mean(found), rel=1e-9)


def test_more_noise_means_less_psnr_and_less_similarity():
    rows, columns = np.mgrid[:64, :64]
    reference = np.repeat((rows * 2 + columns)[:, :, np.newaxis], 3, axis=2).astype(np.uint8)
    draw = np.random.default_rng(0)
    noisy = [
        (reference + draw.normal(0, sigma, reference.shape)).clip(0, 255).astype(np.uint8)
        for sigma in (2, 8, 32)
    ]
    for measure in (psnr, ssim):
        found = [measure(reference, image) for image in noisy]
        assert found == sorted(found, reverse=True)


def test_contrast_ratio_of_halved_differences_is_one_half():
    reference = np.zeros((4, 4, 3), np.uint8)
    reference[:2], reference[2:] = 50, 150
    image = np.where(reference == 50, np.uint8(75), np.uint8(125))
    assert contrast_ratio(reference, image) == pytest.approx(0.5)
    assert contrast_ratio(image, reference) == pytest.approx(2)
    flat = np.full_like(reference, 77)
    assert contrast_ratio(flat, flat) == 1
    assert contrast_ratio(reference, flat) == 0
    assert contrast_ratio(flat, reference) == math.inf


def test_measures_refuse_images_of_different_or_too_small_size():
    for measure in (psnr, ssim, contrast_ratio):
        with pytest.raises(ValueError, match="differ in size"):
            measure(noise(20, 20), noise(20, 21))
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(noise(10, 30), noise(10, 30))


@pytest.mark.shared
def test_real_cells_come_out_in_shape_and_without_a_constant_border():
    if not CELLS.is_dir():
        pytest.skip("the real cells are missing: ../shared/data/sipakmed_original_sample")
    paths = sorted(CELLS.rglob("*.bmp"))
    assert len(paths) > 90
    for path in paths:
        image = read_image(path)
        for settings_ in (Preprocessing(), Preprocessing(scale="native", clahe=True)):
            result = settings_(image)
            assert result.shape == (224, 224, 3)
            assert result.dtype == np.uint8
            for edge in (result[0], result[-1], result[:, 0], result[:, -1]):
                assert np.ptp(edge, axis=0).max() > 0, f"{path.name}: an edge of one colour"
            back = settings_.onto_original(result[..., 1].astype(np.float32), *image.shape[:2])
            assert back.shape == image.shape[:2]
            if not settings_.clahe:
                assert np.corrcoef(back.ravel(), image[..., 1].ravel())[0, 1] > 0.97


def test_gain_multiplies_each_channel_and_stops_at_white():
    image = np.full((20, 20, 3), (100, 200, 50), np.uint8)
    seen = Preprocessing(image_size=16, gain=(1.5, 1.5, 0.5))(image)
    assert (seen == (150, 255, 25)).all()
    names = [name for name, _ in Preprocessing(gain=(1.5, 1.5, 0.5)).steps(image)]
    assert names == ["original", "gain", "square", "resized"]


def test_each_step_is_held_against_the_original_on_the_original_s_pixels():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    smooth = cv2.GaussianBlur(image, (0, 0), 3)
    preprocessing = Preprocessing(canvas_size=90, image_size=32, clahe=True)
    steps = {step.name: step for step in steps_against_original(preprocessing, smooth)}
    assert list(steps) == ["original", "square", "CLAHE", "resized"]
    assert steps["original"].psnr == math.inf
    # On a canvas of its own size nothing is lost, whatever the padding holds.
    assert steps["square"].psnr == math.inf
    assert steps["square"].ssim == pytest.approx(1)
    assert steps["CLAHE"].contrast > 1.02
    assert steps["resized"].image.shape == (32, 32, 3)
    (*_, shrunk) = steps_against_original(Preprocessing(canvas_size=90, image_size=32), smooth)
    assert shrunk.ssim is not None
    assert 0.5 < shrunk.ssim < 0.999
    brighter = Preprocessing(image_size=32, gain=(1.1, 1.1, 1.1))
    assert steps_against_original(brighter, smooth)[1].contrast == pytest.approx(1.1, abs=0.01)
    tiny = steps_against_original(Preprocessing(image_size=32), smooth[:8])
    assert [step.ssim for step in tiny] == [None] * 3
