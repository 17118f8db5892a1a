"""Keypoints of a picture, and which pictures share enough of them to be looked at together.

SIFT (Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 60(2), 2004) with the square
root of each value (Arandjelovic & Zisserman, CVPR 2012), all upright: between two photographs of one place a
microscope turns by a few degrees at most, and an upright descriptor tells more.

Pictures that show one place agree on where it moved. Each match of two descriptors proposes a shift; so
RANSAC (Fischler & Bolles, CACM 24(6), 1981) needs one match a guess and can try them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from cervicyte.datasets.nearest import Lists
from cervicyte.progress import SILENT, Progress

MOST_KEYPOINTS = 32  # of a crop, the strongest
LEAST_CONTRAST, MOST_EDGE = 0.008, 15  # SIFT's; blurred cells have little contrast
EXACT_KEYPOINTS = 15_000  # up to so many are compared each with each
DIMENSIONS = 32  # of a descriptor in the search, of 128
NEIGHBOURS, PROBES = 8, 4  # matches of a keypoint, and lists that are looked into
FARTHEST = 0.3  # squared distance of matches in the search, where 2 is that of strangers
FARTHEST_OF_PAIR = 0.5  # the same between two pictures that are looked at together
SIZE_RATIO = 1.5  # of two keypoints that match
SHIFT_PX = 8  # within which matches of the search agree
TOLERANCE_PX, TOLERANCE_SHARE, MOST_TOLERANCE_PX = 2.0, 0.12, 8.0  # grows with distance: 0.12 is 7 degrees
LEAST_VOTES = 3
SEARCHED = 1 << 16  # queries at once
RANKED = 1 << 16  # pairs looked through at once


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of a picture: places x, y float32 [n, 2], sizes float32 [n], descriptors uint8 [n, 128]."""

    places: np.ndarray
    sizes: np.ndarray
    descriptors: np.ndarray


NO_KEYPOINTS = Keypoints(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, 128), np.uint8))


def find_keypoints(grey: np.ndarray, most: int = MOST_KEYPOINTS) -> Keypoints:
    """Return the strongest keypoints of a picture, uint8 [H, W]."""
    sift = cv2.SIFT.create(contrastThreshold=LEAST_CONTRAST, edgeThreshold=MOST_EDGE)
    strongest: dict[tuple[float, float, float], cv2.KeyPoint] = {}
    # One that has several directions comes several times.
    for point in sorted(sift.detect(grey, None), key=lambda point: (-point.response, point.pt)):
        strongest.setdefault((point.pt[0], point.pt[1], point.size), point)
    chosen = list(strongest.values())[:most]
    for point in chosen:
        point.angle = 0.0
    if not chosen:
        return NO_KEYPOINTS
    described, descriptors = sift.compute(grey, chosen)
    return Keypoints(
        np.array([point.pt for point in described], np.float32),
        np.array([point.size for point in described], np.float32),
        descriptors.astype(np.uint8),
    )


def sharing_pairs(
    pictures: Sequence[Keypoints],
    pool: ThreadPoolExecutor,
    most_of_each: int,
    progress: Progress = SILENT,
) -> list[tuple[int, int, int]]:
    """Return (matches that agree on a shift, first, second) of pictures, most first.

    Args:
        pictures: their keypoints.
        pool: where the work is done.
        most_of_each: so many pictures, those with most matches, are kept of each.
        progress: what the user sees of it.
    """
    counts = np.array([len(one.places) for one in pictures])
    if counts.sum() == 0:
        return []
    places = np.concatenate([one.places for one in pictures])
    sizes = np.log(np.concatenate([one.sizes for one in pictures]))
    owners = np.repeat(np.arange(len(pictures), dtype=np.int32), counts)
    vectors = _projected(pictures, counts)
    lists = Lists(vectors, len(vectors) <= EXACT_KEYPOINTS, pool)
    votes: list[np.ndarray] = []
    starts = np.concatenate([[0], np.cumsum(counts)])
    progress.start("Matching keypoints", len(pictures))
    begin = 0
    while begin < len(pictures):
        # Whole pictures, so that all the votes of one are counted together.
        end = max(begin + 1, int(np.searchsorted(starts, starts[begin] + SEARCHED, "right")) - 1)
        queries = np.arange(starts[begin], starts[end])
        found, distances = lists.search(vectors[queries], NEIGHBOURS, PROBES)
        matched = (found >= 0) & (distances < FARTHEST)
        one = np.repeat(queries, found.shape[1])[matched.ravel()]
        other = found[matched]
        alike = (owners[one] != owners[other]) & (np.abs(sizes[one] - sizes[other]) < np.log(SIZE_RATIO))
        one, other = one[alike], other[alike]
        votes.append(_votes(owners[one], owners[other], places[other] - places[one]))
        progress.advance(end - begin)
        begin = end
    progress.close()
    return _most_of_each(np.concatenate(votes), most_of_each)


def agreed_shift(first: Keypoints, second: Keypoints, least: int) -> np.ndarray | None:
    """Return the shift from first to second picture on which at least so many places agree, or None."""
    if min(len(first.places), len(second.places)) < least:
        return None
    ones, others = np.nonzero(_distances(first, second) < FARTHEST_OF_PAIR)
    if len(ones) < least:
        return None
    places, shifts = first.places[ones], second.places[others] - first.places[ones]
    best: np.ndarray | None = None
    most = least - 1
    # A turn moves far places more than near ones.
    for place, shift in zip(places, shifts, strict=True):
        tolerance = TOLERANCE_PX + TOLERANCE_SHARE * np.hypot(*(places - place).T)
        agree = np.hypot(*(shifts - shift).T) < np.minimum(tolerance, MOST_TOLERANCE_PX)
        if agree.sum() > most:
            # Several sizes at one place are one piece of evidence.
            distinct = len(np.unique(np.round(places[agree] / 2), axis=0))
            if distinct > most:
                best, most = agree, distinct
    return None if best is None else np.median(shifts[best], axis=0)


def matches(first: Keypoints, second: Keypoints) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of keypoints of both pictures that are each other's nearest."""
    if not len(first.places) or not len(second.places):
        return np.zeros(0, int), np.zeros(0, int)
    distances = _distances(first, second)
    nearest = distances.argmin(1)
    ones = np.arange(len(nearest))
    mutual = (distances.argmin(0)[nearest] == ones) & (distances[ones, nearest] < FARTHEST_OF_PAIR)
    return ones[mutual], nearest[mutual]


def _distances(first: Keypoints, second: Keypoints) -> np.ndarray:
    """Return squared distances of descriptors, 9 where the keypoints are of different size."""
    distances = 2 - 2 * _rooted(first.descriptors) @ _rooted(second.descriptors).T
    ratio = np.abs(np.subtract.outer(np.log(first.sizes), np.log(second.sizes)))
    return np.where(ratio < np.log(SIZE_RATIO), distances, 9.0)


def _rooted(descriptors: np.ndarray) -> np.ndarray:
    """Return the square roots of descriptors, float32 [n, 128], of length 1."""
    values = descriptors.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1))


def _projected(pictures: Sequence[Keypoints], counts: np.ndarray) -> np.ndarray:
    """Return all descriptors on their principal axes, float16 [n, DIMENSIONS]: what tells most of them."""
    every = max(1, int(counts.sum()) // 50_000)
    sample = np.concatenate([_rooted(one.descriptors[::every]) for one in pictures])
    middle = sample.mean(0)
    _, axes = np.linalg.eigh(np.cov(sample - middle, rowvar=False))
    axes = axes[:, : -DIMENSIONS - 1 : -1].astype(np.float32)
    vectors = np.empty((int(counts.sum()), DIMENSIONS), np.float16)
    begin = 0
    for one, count in zip(pictures, counts, strict=True):
        vectors[begin : begin + count] = (_rooted(one.descriptors) - middle) @ axes
        begin += count
    return vectors


def _votes(first: np.ndarray, second: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return the pairs of pictures with enough matches of about one shift: rows of (matches, the lower index,
    the higher), int32 [P, 3], a pair once or several times.

    Shifts are counted in squares, on four grids of them, so that none is cut by every grid.
    """
    rows = [np.zeros((0, 3), np.int32)]
    low, high = np.minimum(first, second), np.maximum(first, second)
    # The other way round a match is another one: pictures vote each for itself.
    swapped = (first > second).astype(np.int64)
    for right in (0, SHIFT_PX / 2):
        for down in (0, SHIFT_PX / 2):
            cells = np.floor((shifts + np.array([right, down])) / SHIFT_PX).astype(np.int64) + (1 << 11)
            of_pair = low.astype(np.int64) << 31 | high
            keys = np.stack([of_pair, swapped << 24 | cells[:, 0] << 12 | cells[:, 1]], axis=1)
            keys = keys[np.lexsort(keys.T[::-1])]
            bounds = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(1), True])
            numbers = np.diff(bounds)
            enough = np.flatnonzero(numbers >= LEAST_VOTES)
            pairs = keys[bounds[enough], 0]
            found = np.stack([numbers[enough], pairs >> 31, pairs & (1 << 31) - 1], axis=1)
            rows.append(found.astype(np.int32))
    return np.concatenate(rows)


def _most_of_each(votes: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Return (matches, first, second), most first, at most so many of each picture."""
    ranked = votes[np.lexsort((votes[:, 2], votes[:, 1], -votes[:, 0]))]
    taken: dict[int, int] = defaultdict(int)
    seen: set[tuple[int, int]] = set()
    kept = []
    for begin in range(0, len(ranked), RANKED):  # not all of them as Python's own numbers at once
        for number, first, second in ranked[begin : begin + RANKED].tolist():
            if (first, second) in seen or min(taken[first], taken[second]) >= most:
                continue
            seen.add((first, second))
            kept.append((number, first, second))
            taken[first] += 1
            taken[second] += 1
    return kept
