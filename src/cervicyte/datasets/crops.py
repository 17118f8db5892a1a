"""What the search for twins keeps of a crop, so that no image is read twice.

Every crop is reduced by one factor for the whole data set (scale is evidence: a microscope does not change
it), and its log luminance is band-passed, which takes away the light.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from cervicyte.datasets.keypoints import Keypoints, find_keypoints

WORKING_SIZE = 96  # pixels, the side to which the median crop is reduced
COARSE_BAND = (1.0, 10.0)  # sigma in working pixels of the two Gaussians whose difference it is
SHADOW = 8  # grey levels added before the logarithm, so that noise in the dark does not count
PATCH, SHIFTS = 10, 2  # points a side, and how many points it is moved each way

TURNS = (
    "as it is", "turned by 90°", "turned by 180°", "turned by 270°",
    "mirrored", "mirrored and turned by 90°", "mirrored and turned by 180°", "mirrored and turned by 270°",
)  # fmt: skip


@dataclass(frozen=True)
class Reduced:
    """What the search keeps of a crop, about 23 kB.

    grey: uint8 [h, w], luminance in working pixels; coarse: uint8 [h/2, w/2], the coarse band at half that
    resolution; patches: uint8 [2, 14, 14], its centre at a quarter and an eighth of it; keypoints: of `grey`.
    """

    grey: np.ndarray
    coarse: np.ndarray
    patches: np.ndarray
    keypoints: Keypoints


def working_scale(sides_px: Iterable[float]) -> float:
    """Return the factor that takes the median of the crops' sides to the working size, at most 1."""
    return min(1.0, WORKING_SIZE / float(np.median(list(sides_px))))


def reduce_crop(image: np.ndarray, scale: float) -> Reduced:
    """Reduce a crop, uint8 [H, W, 3], RGB, to what the search keeps of it."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = [max(8, round(side * scale)) for side in grey.shape[::-1]]
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    half = cv2.resize(
        band(grey, COARSE_BAND), [max(4, side // 2) for side in size], interpolation=cv2.INTER_AREA
    )
    spread = max(float(half.std()), 1e-6)
    coarse = np.clip(128 + half * (32 / spread), 0, 255).astype(np.uint8)
    return Reduced(grey, coarse, _patches(coarse), find_keypoints(grey))


def band(grey: np.ndarray, sigmas: tuple[float, float]) -> np.ndarray:
    """Return a band of the log luminance, float32: a factor on the light drops out."""
    values = np.log(grey.astype(np.float32) + SHADOW)
    return cv2.GaussianBlur(values, (0, 0), sigmas[0]) - cv2.GaussianBlur(values, (0, 0), sigmas[1])


def turned(values: np.ndarray, turn: int) -> np.ndarray:
    """Return [..., H, W] in one of `TURNS`."""
    mirrored = values[..., ::-1] if turn >= 4 else values
    return np.ascontiguousarray(np.rot90(mirrored, turn % 4, axes=(-2, -1)))


def inverse_turn(turn: int) -> int:
    """Return which of `TURNS` takes a turned picture back."""
    return turn if turn >= 4 else -turn % 4


def _patches(coarse: np.ndarray) -> np.ndarray:
    side = PATCH + 2 * SHIFTS
    centre = ((coarse.shape[1] - 1) / 2, (coarse.shape[0] - 1) / 2)
    levels = []
    for step in (2, 4):
        patch = cv2.getRectSubPix(coarse, (side * step, side * step), centre)
        levels.append(cv2.resize(patch, (side, side), interpolation=cv2.INTER_AREA))
    return np.stack(levels)
