"""How an image compares with a reference: PSNR, SSIM and contrast ratio, on uint8 [H, W, 3], RGB.

PSNR is taken over all three channels; SSIM and contrast on luminance, Y = 0.299 R + 0.587 G + 0.114 B
(ITU-R BT.601), in floating point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from cervicyte.images.preprocessing import Preprocessing

PEAK = 255.0
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

# Wang et al. 2004, section III.C.
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels
SSIM_C1, SSIM_C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(reference: np.ndarray, image: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in decibels, 10 log10(255² / MSE); infinite if equal.

    Raises:
        ValueError: the two are not uint8 [H, W, 3] of one size.
    """
    _check(reference, image)
    error = float(np.mean((reference.astype(np.float64) - image) ** 2))
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def ssim(reference: np.ndarray, image: np.ndarray) -> float:
    """Return the mean structural similarity, -1 to 1; 1 if equal.

    Source: Wang, Bovik, Sheikh & Simoncelli: "Image quality assessment: from error visibility to
    structural similarity", IEEE TIP 13(4), 2004, with its Gaussian window of 11 pixels, sigma 1.5,
    K1 = 0.01 and K2 = 0.03, where the window lies wholly on the image.

    Raises:
        ValueError: the two are not uint8 [H, W, 3] of one size, or a side is under 11 pixels.
    """
    _check(reference, image)
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs sides of {SSIM_WINDOW} pixels or more, not {image.shape[:2]}")
    x, y = reference @ LUMINANCE, image @ LUMINANCE
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x, variance_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)) / (
        (mean_x**2 + mean_y**2 + SSIM_C1) * (variance_x + variance_y + SSIM_C2)
    )
    return float(similarity.mean())


def contrast_ratio(reference: np.ndarray, image: np.ndarray) -> float:
    """Return the image's RMS contrast over the reference's: over 1 where contrast was raised.

    RMS contrast is the standard deviation of luminance (Peli: "Contrast in complex images", JOSA A
    7(10), 1990). Of two images without contrast the ratio is 1; over a reference without, infinite.

    Raises:
        ValueError: the two are not uint8 [H, W, 3] of one size.
    """
    _check(reference, image)
    of_reference, of_image = (_rms_contrast(each) for each in (reference, image))
    if of_reference == 0:
        return 1.0 if of_image == 0 else math.inf
    return of_image / of_reference


@dataclass(frozen=True)
class Step:
    """One step of the preprocessing, and what is left of the original after it.

    Attributes:
        name: see `Preprocessing.steps`.
        image: uint8 [h, w, 3], as the step leaves it.
        psnr: decibels, infinite where nothing is lost.
        ssim: None for images with a side too short for its window.
        contrast: ratio to the original's.
    """

    name: str
    image: np.ndarray
    psnr: float
    ssim: float | None
    contrast: float


def steps_against_original(preprocessing: Preprocessing, image: np.ndarray) -> list[Step]:
    """Return the steps of the preprocessing, each held against the original.

    A step that changes the size is laid back onto the original's pixels first, so that what is measured is
    the detail that it cost, and padding does not count.

    Args:
        preprocessing: with its settings.
        image: uint8 [H, W, 3], RGB.
    """
    height, width = image.shape[:2]
    found = []
    on_canvas = False
    for name, after in preprocessing.steps(image):
        on_canvas = on_canvas or name == "square"  # what comes before it has the image's own pixels
        laid = after
        if on_canvas:
            channels = [
                preprocessing.onto_original(after[..., c].astype(np.float32), height, width) for c in range(3)
            ]
            laid = np.clip(np.round(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)
        similarity = ssim(image, laid) if min(height, width) >= SSIM_WINDOW else None
        found.append(Step(name, after, psnr(image, laid), similarity, contrast_ratio(image, laid)))
    return found


def _rms_contrast(image: np.ndarray) -> float:
    luminance = image @ LUMINANCE
    # Subtracting any one pixel first makes a constant image's deviation exactly 0.
    return float(np.std(luminance - luminance[0, 0]))


def _windowed(values: np.ndarray) -> np.ndarray:
    """Return the Gaussian-weighted mean in each window that lies wholly inside, float64."""
    margin = SSIM_WINDOW // 2
    smooth = cv2.GaussianBlur(values, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA)
    return smooth[margin:-margin, margin:-margin]


def _check(reference: np.ndarray, image: np.ndarray) -> None:
    for each in (reference, image):
        if each.dtype != np.uint8 or each.ndim != 3 or each.shape[2] != 3 or not each.size:
            raise ValueError(f"an image is uint8 [H, W, 3] with pixels, not {each.dtype} {each.shape}")
    if reference.shape != image.shape:
        raise ValueError(f"the images differ in size: {reference.shape[:2]} and {image.shape[:2]}")
