"""Outlines of nucleus and cell in the crop of a single cell, from its colours alone.

Made for the audit of explanations, which asks how much of a map lies in the nucleus; it is no measuring
instrument. The crop is taken to be cut round one cell, as in SIPaKMeD and Herlev.

Nucleus: light is turned into optical density (Beer-Lambert), which stains add up in. The smoothed density
is cut at many levels, as maximally stable extremal regions are found (J. Matas et al., BMVC 2002), in two
colours; each connected region near the middle is a candidate, and the best is kept: sharp drop of density
across its outline, compact, near the middle. Cell: a normal distribution of colour round the nucleus
against one of the crop's corners, with a prior that the cell fills the crop's inscribed ellipse.

Everything is deterministic and takes some 20 ms of one core a crop. How well it does on real crops is
counted in docs/results/segmentation.json.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

WORKING_SIDE = 120  # pixels; the longer side of the image on which outlines are sought
LEVELS = 18  # at which the density is cut
SMALLEST_NUCLEUS, LARGEST_NUCLEUS = 0.004, 0.45  # of the crop's area
WIDEST_NUCLEUS = 0.8  # of the crop's side
FARTHEST_NUCLEUS = 0.62  # of half the side: how far from the middle its centre may lie
LEAST_DROP = 0.05  # of optical density across the outline; below, there is no nucleus to be seen
SOFTEN = 0.4  # of optical density, added to the unevenness outside that a drop is held against
RING = 2  # pixels: width of the strips inside and outside an outline that are compared


@dataclass(frozen=True)
class Outlines:
    """Masks of one crop, bool [H, W]: the nucleus, and the whole cell with its nucleus."""

    nucleus: np.ndarray
    cell: np.ndarray


def segment(image: np.ndarray) -> Outlines | None:
    """Return nucleus and cell of a crop, uint8 [H, W, 3], RGB; None if no nucleus can be found."""
    height, width = image.shape[:2]
    scale = WORKING_SIDE / max(height, width)
    size = tuple(max(8, round(side * scale)) for side in (width, height))
    shrinks = scale < 1
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    density = optical_density(small)
    nucleus = _nucleus(density)
    if nucleus is None:
        return None
    cell = _cell(density, nucleus)
    return Outlines(*(_enlarged(mask, height, width) for mask in (nucleus, cell)))


def optical_density(image: np.ndarray) -> np.ndarray:
    """Return -ln(light / lamp) of each channel, float32 [H, W, 3]; the lamp is the brightest 1 %."""
    light = image.astype(np.float32) + 1
    lamp = np.percentile(light.reshape(-1, 3), 99, axis=0).astype(np.float32)
    return np.maximum(-np.log(light / lamp), 0)


# --- nucleus -------------------------------------------------------------------------------------


def _nucleus(density: np.ndarray) -> np.ndarray | None:
    """Return the best candidate over both colours, uint8 [h, w] of 0 and 1."""
    smooth = cv2.GaussianBlur(density, (0, 0), 1.2)
    best, best_score, seen_in = None, 0.0, smooth[..., 0]
    # Blue nuclei take the red light first, purple ones the green; green cytoplasm takes none of the latter.
    for values in (smooth[..., 0], smooth[..., 1]):
        for mask, score in _candidates(np.ascontiguousarray(values)):
            if score > best_score:
                best, best_score, seen_in = mask, score, values
    return None if best is None else _at_half_height(seen_in, best)


def _at_half_height(values: np.ndarray, nucleus: np.ndarray) -> np.ndarray:
    """Move the outline to where the density is half way between inside and outside."""
    near = cv2.dilate(nucleus, _disc(3))
    core, outside = cv2.erode(nucleus, _disc(RING)), cv2.dilate(near, _disc(RING)) - near
    if not core.any() or not outside.any():
        return nucleus
    level = (np.median(values[core > 0]) + np.median(values[outside > 0])) / 2
    _, labels = cv2.connectedComponents(((values > level) & (near > 0)).astype(np.uint8), connectivity=4)
    own = np.bincount(labels[(core > 0) & (labels > 0)], minlength=1)
    if not own.any():
        return nucleus
    moved = _without_holes((labels == own.argmax()).astype(np.uint8))
    return moved if 0.5 < moved.sum() / nucleus.sum() < 2 else nucleus


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Return the largest region without holes and without what hangs on it by a narrow neck."""
    filled = np.zeros_like(mask)
    for _ in range(2):
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if not contours:
            return filled
        outline = max(contours, key=cv2.contourArea)
        filled = np.zeros_like(mask)
        cv2.drawContours(filled, [outline], -1, 1, -1)
        if cv2.contourArea(outline) > 0.93 * cv2.contourArea(cv2.convexHull(outline)):
            return filled
        # Folds and neighbours that touch a nucleus hang on it by something narrower than itself.
        mask = cv2.morphologyEx(filled, cv2.MORPH_OPEN, _disc(int(0.5 * np.sqrt(filled.sum() / np.pi))))
    return filled


def _candidates(values: np.ndarray) -> list[tuple[np.ndarray, float]]:
    height, width = values.shape
    low, high = np.percentile(values, [30, 99.7])
    found = []
    for level in np.linspace(low, high, LEVELS + 2)[1:-1]:
        regions = (values > level).astype(np.uint8)
        regions = cv2.morphologyEx(regions, cv2.MORPH_OPEN, _disc(1))
        count, labels, boxes, centres = cv2.connectedComponentsWithStats(regions, connectivity=4)
        for label in range(1, count):
            left, top, box_width, box_height, pixels = boxes[label]
            share = pixels / values.size
            widest = max(box_width / width, box_height / height)
            if not SMALLEST_NUCLEUS < share < LARGEST_NUCLEUS or widest > WIDEST_NUCLEUS:
                continue
            off = np.hypot(*((centres[label] + 0.5) / (width, height) * 2 - 1))
            if off > FARTHEST_NUCLEUS:
                continue
            # With a margin, in which the strip outside the outline lies.
            rows = slice(max(0, top - 4), top + box_height + 4)
            columns = slice(max(0, left - 4), left + box_width + 4)
            score, filled = _merit(values[rows, columns], (labels[rows, columns] == label), off, share)
            if score > 0:
                mask = np.zeros(values.shape, np.uint8)
                mask[rows, columns] = filled
                found.append((mask, score))
    return found


def _merit(values: np.ndarray, region: np.ndarray, off: float, share: float) -> tuple[float, np.ndarray]:
    """Return how much a region looks like a nucleus, 0 for not at all, and the region without holes."""
    filled = _without_holes(region.astype(np.uint8))
    contours, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return 0.0, filled
    outline = contours[0]
    hull, area = (cv2.contourArea(each) for each in (cv2.convexHull(outline), outline))
    if hull < 4:
        return 0.0, filled
    solidity = area / hull
    (_, sides, _) = cv2.minAreaRect(outline)
    elongation = max(sides) / max(1.0, min(sides))
    inside = filled - cv2.erode(filled, _disc(RING))
    outside = cv2.dilate(filled, _disc(RING + 1)) - cv2.dilate(filled, _disc(1))
    if not inside.any() or not outside.any():
        return 0.0, filled
    within, without = values[inside > 0], values[outside > 0]
    drop = float(within.mean() - without.mean())
    if drop < LEAST_DROP or solidity < 0.75 or elongation > 3:
        return 0.0, filled
    # A nucleus is darker all round: the weakest quarter of its surroundings counts as well.
    all_round = float(np.clip((np.median(within) - np.percentile(without, 85)) / drop, 0, 1))
    compact = solidity**3 / max(1.0, 0.5 + 0.4 * elongation)
    central = np.exp(-((off / 0.35) ** 2))
    # Nuclei take 1 to 20 % of a crop; what takes more is rather a dense cell.
    size = np.exp(-((np.log(share / 0.08) / (1.9 if share < 0.08 else 1.2)) ** 2))
    # Sharpness counts more than depth: a dense cell on a bright slide has the deepest drop of all.
    clear = drop / (SOFTEN + float(without.std()))
    return clear * (0.25 + all_round) * compact * central * size, filled


# --- cell ----------------------------------------------------------------------------------------


def _cell(density: np.ndarray, nucleus: np.ndarray) -> np.ndarray:
    """Return the cell round a nucleus, uint8 [h, w] of 0 and 1."""
    height, width = nucleus.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    radius = np.hypot((x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1)
    prior = 6 * (0.92 - radius)  # log odds of lying in the cell
    colours = cv2.GaussianBlur(density, (0, 0), 1.5)
    inside = (radius < 0.75).astype(np.float32)
    ring = cv2.dilate(nucleus, _disc(6)) - cv2.dilate(nucleus, _disc(1))
    inside = np.maximum(0.5 * inside, ring) * (1 - nucleus)
    outside = (radius > 1.08).astype(np.float32)
    for _ in range(2):
        odds = _log_likelihood(colours, inside) - _log_likelihood(colours, outside)
        odds = cv2.GaussianBlur(np.clip(odds, -4, 4).astype(np.float32), (0, 0), 2) + prior
        odds[nucleus > 0] = 4
        share = 1 / (1 + np.exp(-odds))
        inside, outside = share * (1 - nucleus) * (radius < 1.1), (1 - share) * (radius > 0.6)
    mask = (odds > 0).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _disc(3))
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _disc(3)) | nucleus
    _, labels = cv2.connectedComponents(mask, connectivity=4)
    own = labels[nucleus > 0]
    contours, _ = cv2.findContours(
        (labels == np.bincount(own).argmax()).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, -1)
    return filled | nucleus


def _log_likelihood(colours: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the log density, [h, w], of colours under a normal distribution fitted with weights."""
    flat, weight = colours.reshape(-1, 3), weights.ravel()
    total = weight.sum() + 1e-6
    mean = weight @ flat / total
    centred = flat - mean
    covariance = (centred * weight[:, None]).T @ centred / total + 0.003 * np.eye(3, dtype=np.float32)
    distance = ((centred @ np.linalg.inv(covariance)) * centred).sum(1)
    return (-0.5 * (distance + np.log(np.linalg.det(covariance)))).reshape(weights.shape)


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _enlarged(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)
    return cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return twice the common area over the sum of both areas, 0 to 1; of two empty masks 1 (Dice 1945).

    Example:
        >>> dice(np.array([True, True, False]), np.array([True, False, False]))
        0.6666666666666666
    """
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0
