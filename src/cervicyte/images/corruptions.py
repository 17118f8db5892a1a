"""Ways in which other cameras, files and stains spoil an image, each at five strengths.

Blur, noise, JPEG and brightness are those of D. Hendrycks & T. Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", ICLR 2019 (ImageNet-C), with that paper's numbers for
images of 224 pixels: an image is first scaled so that its longer side has 224, as theirs have. Stain is a
shift of the densities of haematoxylin, eosin and DAB (A. Ruifrok & D. Johnston, Anal. Quant. Cytol. Histol.
2001) in the units of scikit-image's `rgb2hed`. The numbers were fixed before any network was measured.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import cv2
import numpy as np

SIDE = 224  # pixels of the longer side
SEVERITIES = (1, 2, 3, 4, 5)

DEFOCUS_RADIUS_AND_ALIAS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # pixels
GAUSSIAN_BLUR_SIGMA = (1, 2, 3, 4, 6)  # pixels
GAUSSIAN_NOISE_SIGMA = (0.08, 0.12, 0.18, 0.26, 0.38)  # of the range
SHOT_NOISE_PHOTONS = (60, 25, 12, 5, 3)  # at full brightness
JPEG_QUALITY = (25, 18, 15, 10, 7)
BRIGHTNESS_ADDED = (0.1, 0.2, 0.3, 0.4, 0.5)  # to the value of HSV
STAIN_SHIFT = (0.02, 0.04, 0.06, 0.08, 0.10)  # each stain's by up to so much, either way

# Densities of one unit of each stain in R, G, B, and the logarithm of what scikit-image calls darkest.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DARKEST = 1e-6


def corrupted(image: np.ndarray, name: str, severity: int) -> np.ndarray:
    """Return an image as it would look corrupted, uint8 [h, w, 3], its longer side `SIDE` pixels.

    Noise and shifts are drawn from the image's own pixels, so that the same image is always spoilt alike.

    Args:
        image: uint8 [H, W, 3], RGB.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
    """
    small = as_large_as_theirs(image)
    digest = hashlib.sha256(small.tobytes() + f"{name} {severity}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    values = CORRUPTIONS[name](small.astype(np.float64) / 255, severity - 1, rng)
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def as_large_as_theirs(image: np.ndarray) -> np.ndarray:
    """Return an image whose longer side has `SIDE` pixels: what corruptions are applied to."""
    height, width = image.shape[:2]
    factor = SIDE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""(values float [H, W, 3] in 0 to 1, severity from 0, random numbers) -> values."""


def defocus_blur(values: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Spread each point over a disc, softened at its rim, as a lens out of focus does."""
    radius, alias = DEFOCUS_RADIUS_AND_ALIAS[severity]
    reach = np.arange(-radius - 2, radius + 3)  # room for the softened rim: the light stays the same
    disc = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float64)
    softened = cv2.GaussianBlur(disc / disc.sum(), (3, 3) if radius <= 8 else (5, 5), alias)
    return cv2.filter2D(values, -1, softened, borderType=cv2.BORDER_REFLECT_101)


def gaussian_blur(values: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian; beyond the border lies the pixel at the border."""
    sigma = GAUSSIAN_BLUR_SIGMA[severity]
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def gaussian_noise(values: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add noise that is the same in bright and in dark places."""
    return values + rng.normal(0, GAUSSIAN_NOISE_SIGMA[severity], values.shape)


def shot_noise(values: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Count photons instead of measuring light."""
    photons = SHOT_NOISE_PHOTONS[severity]
    return rng.poisson(values * photons) / photons


def jpeg(values: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Compress as JPEG."""
    pixels = np.round(values[..., ::-1] * 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY[severity]])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1].astype(np.float64) / 255


def brightness(values: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Raise the value of HSV, as too much light does; hue and saturation stay."""
    hsv = cv2.cvtColor(values.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + BRIGHTNESS_ADDED[severity], 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float64)


def stain(values: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Shift the density of each stain everywhere, more of it or less, as another laboratory's stain would."""
    most = STAIN_SHIFT[severity]
    shift = rng.uniform(-most, most, 3) @ STAINS
    density = np.log(np.maximum(values, DARKEST)) / math.log(DARKEST) + shift
    return np.exp(np.maximum(density, 0) * math.log(DARKEST))


CORRUPTIONS: dict[str, Corruption] = {
    "defocus blur": defocus_blur,
    "gaussian blur": gaussian_blur,
    "gaussian noise": gaussian_noise,
    "shot noise": shot_noise,
    "JPEG": jpeg,
    "brightness": brightness,
    "stain": stain,
}
