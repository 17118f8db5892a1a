"""Lays one crop over another and tells how surely both show one place.

Each pair is aligned (normalised cross-correlation over shifts and turns, or the shift on which keypoints
agree; then ECC: Evangelidis & Psarakis, "Parametric image alignment using enhanced correlation coefficient
maximization", IEEE TPAMI 30(10), 2008) and scored by the correlation of two bands, middle and fine, where the
crops overlap. Blurred nuclei of different cells correlate to 0.85 in a coarse band and not in the fine one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cervicyte.datasets.crops import Reduced, band, turned
from cervicyte.datasets.keypoints import agreed_shift

MIDDLE_BAND = (1.0, 4.0)  # sigma in working pixels of the two Gaussians whose difference it is
FINE_BAND = (0.6, 2.0)

LEAST_COARSE = 0.6  # correlation over shifts from which turns are tried
LEAST_ALIGNED = 0.7  # the same after turns, from which the middle band is looked at
LEAST_MIDDLE = 0.5  # from which the pair is aligned finely
LEAST_MIDDLE_OF_PART = 0.3  # the same where keypoints agree
LARGEST_TURN = 10.0  # degrees; the largest between true twins of SIPaKMeD is 3.7
LARGEST_TURN_OF_PART = 6.0  # a small part fits many things if it may turn
TEMPLATE_SHARE = 0.75  # of the smaller crop's sides; the rest is the room to be moved in
LEAST_OVERLAP = 200  # working pixels
LEAST_OVERLAP_OF_PART = 500


def pair_score(first: Reduced, second: Reduced, turn: int = 0) -> float:
    """Return how surely two crops show one place, 0 to 1; 0 stands for pairs that are not worth aligning.

    Args:
        first, second: see `reduce_crop`, of one scale.
        turn: which of `TURNS` the first is seen in.
    """
    coarse, grey = first.coarse, first.grey
    if turn:
        coarse, grey = turned(coarse, turn), turned(grey, turn)
    start = _coarse_alignment(coarse, second.coarse)
    if start is None:
        return 0.0
    angle, right, down = start
    height, width = grey.shape
    # The picture's middle, not that of its upper left pixel, is what stays in place.
    middle = ((width - 1) / 2, (height - 1) / 2)
    warp = cv2.getRotationMatrix2D(middle, angle, 1).astype(np.float32)
    warp[:, 2] += (right, down)
    aligned = align(grey, second.grey, warp, LEAST_MIDDLE, LARGEST_TURN)
    if aligned is None or aligned.overlap < LEAST_OVERLAP:
        return 0.0
    union = grey.size + second.grey.size - aligned.overlap
    return float(np.clip(aligned.correlation * (0.8 + 0.2 * aligned.overlap / union), 0, 1))


def part_score(first: Reduced, second: Reduced, least_keypoints: int, least_share: float = 0.0) -> float:
    """Return how surely two crops share a part, 0 to 1; 0 if too few keypoints agree where it moved.

    The score is the correlation of middle and fine band in that part: how little the boxes have in common
    says nothing here, since keypoints that agree are evidence of their own.

    Args:
        first, second: see `reduce_crop`, of one scale.
        least_keypoints: so many must agree.
        least_share: of the smaller crop, that must lie in both.
    """
    shift = agreed_shift(first.keypoints, second.keypoints, least_keypoints)
    if shift is None:
        return 0.0
    warp = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    aligned = align(first.grey, second.grey, warp, LEAST_MIDDLE_OF_PART, LARGEST_TURN_OF_PART)
    least = max(LEAST_OVERLAP_OF_PART, least_share * min(first.grey.size, second.grey.size))
    if aligned is None or aligned.overlap < least:
        return 0.0
    return max(0.0, min(1.0, aligned.correlation))


@dataclass(frozen=True)
class Aligned:
    """How two pictures lie over one another: the mean correlation of both bands, and the pixels they share.

    warp: float32 [2, 3], takes a place in the first to its place in the second.
    """

    correlation: float
    overlap: int
    warp: np.ndarray


def align(
    first: np.ndarray, second: np.ndarray, warp: np.ndarray, least_middle: float, largest_turn: float
) -> Aligned | None:
    """Lay one grey picture over the other, from a first guess, or return None if they do not fit.

    Args:
        first, second: uint8 [h, w].
        warp: the guess, see `Aligned`.
        least_middle: correlation of the middle band by that guess from which it is worth refining.
        largest_turn: degrees.
    """
    bands = [(band(first, MIDDLE_BAND), band(second, MIDDLE_BAND))]
    if correlations(bands, warp)[0] < least_middle:
        return None
    ends = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 1e-3)
    try:
        everywhere = np.ones(second.shape, np.uint8)
        _, found = cv2.findTransformECC(*bands[0], warp.copy(), cv2.MOTION_EUCLIDEAN, ends, everywhere, 1)
    except cv2.error:  # it did not converge: nothing there to be aligned
        return None
    warp = np.asarray(found)
    if abs(math.degrees(math.atan2(warp[1, 0], warp[0, 0]))) > largest_turn:
        return None
    bands.append((band(first, FINE_BAND), band(second, FINE_BAND)))
    middle_band, fine_band, overlap = correlations(bands, warp)
    return Aligned((middle_band + fine_band) / 2, int(overlap), warp)


def _coarse_alignment(first: np.ndarray, second: np.ndarray) -> tuple[float, int, int] | None:
    """Return the turn in degrees and the shift in working pixels that fit best, or None if nothing does."""
    sides = [
        (int(TEMPLATE_SHARE * min(one, other)), one, other)
        for one, other in zip(first.shape, second.shape, strict=True)
    ]
    height, width = (side for side, _, _ in sides)
    top, left = ((one - side) // 2 for side, one, _ in sides)
    # The template may move by an eighth of the smaller crop each way, in a window about the middle.
    reach = [max(3, math.ceil(min(one, other) / 8)) for _, one, other in sides]
    spans = [
        (max(0, (other - side) // 2 - room), min(other, (other - side) // 2 + side + room))
        for (side, _, other), room in zip(sides, reach, strict=True)
    ]
    window = second[slice(*spans[0]), slice(*spans[1])]
    middle = ((first.shape[1] - 1) / 2, (first.shape[0] - 1) / 2)

    def fit(angle: float) -> tuple[float, float, int, int]:
        turned = first
        if angle:
            matrix = cv2.getRotationMatrix2D(middle, angle, 1)
            turned = cv2.warpAffine(first, matrix, first.shape[::-1], borderMode=cv2.BORDER_REFLECT)
        template = turned[top : top + height, left : left + width]
        _, value, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(window, template, cv2.TM_CCOEFF_NORMED))
        return value, angle, 2 * (spans[1][0] + x - left), 2 * (spans[0][0] + y - top)

    best = fit(0.0)
    if best[0] < LEAST_COARSE:
        return None
    best = max(best, fit(3.0), fit(-3.0))
    if best[1]:
        best = max(best, fit(2 * best[1]))
    return best[1:] if best[0] >= LEAST_ALIGNED else None


def correlations(bands: Sequence[tuple[np.ndarray, np.ndarray]], warp: np.ndarray) -> list[float]:
    """Return the correlation of each band where the crops overlap, and the overlap in working pixels.

    Args:
        bands: of the first and of the second crop, float32 [h, w].
        warp: float32 [2, 3], takes a place in the first to its place in the second.
    """
    size = bands[0][0].shape[::-1]
    inside = cv2.warpAffine(
        np.ones(bands[0][1].shape, np.uint8), warp, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    ).astype(bool)
    overlap = int(inside.sum())
    values = []
    for first, second in bands:
        if overlap < LEAST_OVERLAP:
            values.append(0.0)
            continue
        moved = cv2.warpAffine(second, warp, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        one, other = first[inside], moved[inside]
        one, other = one - one.mean(), other - other.mean()
        values.append(float(one @ other / math.sqrt(max(float((one @ one) * (other @ other)), 1e-12))))
    return [*values, overlap]
