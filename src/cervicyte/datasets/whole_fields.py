"""Matches whole photographs, where a data set has them: two that overlap show the same place.

SIPaKMeD's archive has its fields `NNN.bmp` one level above the crops `CROPPED/NNN_MM.bmp`. Two fields may
show one place without any crop of the one sharing a pixel with a crop of the other, so fields tell more.

Keypoints propose pairs of fields; a similarity (shift and turn, scale about 1) is fitted to the matches by
RANSAC, refined, and judged by the correlation where the fields overlap (`alignment.align`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cervicyte.datasets.alignment import align
from cervicyte.datasets.groups import FIELD_AND_CELL
from cervicyte.datasets.keypoints import NO_KEYPOINTS, Keypoints, find_keypoints, matches, sharing_pairs
from cervicyte.datasets.layouts import WHOLE_FIELD, Cell
from cervicyte.errors import ImageError
from cervicyte.images.reader import IMAGE_SUFFIXES, read_image
from cervicyte.images.threads import one_thread_a_call
from cervicyte.pages import counted
from cervicyte.progress import SILENT, Progress

LEAST_SIDE = 400  # pixels; what is smaller and numbered like a field is none, such as a mask
FIELD_SIZE = 768  # pixels, the longer side to which the largest field is reduced
MOST_KEYPOINTS, FEWEST_KEYPOINTS = 400, 100  # of a field
KEYPOINTS_IN_ALL = 2_000_000  # so that they fit into memory however many fields there are
PARTNERS = 12  # fields that may overlap, kept of each field
LEAST_AGREEING = 10  # keypoints that agree with the similarity
AGREEING_PX = 3.0  # reduced pixels
LARGEST_SCALE = 1.03  # or its inverse; a microscope does not zoom
LARGEST_TURN = 10.0  # degrees
LEAST_MIDDLE = 0.3  # correlation of the middle band from which a pair is refined
LEAST_SHARE = 0.02  # of the smaller field, that overlaps
FIELD_THRESHOLD = 0.50  # mean correlation of both bands; where both show empty glass, noise lowers it
FIELDS_HELD = 64  # reduced pictures in memory


@dataclass(frozen=True)
class FieldPair:
    """Two overlapping fields by name, how well they agree where they overlap, and how they lie.

    share: of the smaller field that overlaps; shift_px: right and down, in pixels of the files, from the
    first to the second; degrees: the turn.
    """

    first: str
    second: str
    score: float
    share: float
    shift_px: tuple[int, int]
    degrees: float


@dataclass(frozen=True)
class FieldMatches:
    """The fields that lie beside the crops, their files, and the pairs that overlap, the surest first."""

    files: dict[str, Path]
    pairs: tuple[FieldPair, ...] = ()


def field_files(cells: Sequence[Cell]) -> dict[str, Path]:
    """Return the photograph of each field, by the field's name, where it lies beside or above its crops."""

    @functools.cache
    def in_folder(folder: Path) -> dict[str, Path]:
        try:
            inside = sorted(folder.iterdir())
        except OSError:  # the crops could be read without it
            return {}
        return {
            path.stem: path
            for path in inside
            if WHOLE_FIELD.fullmatch(path.stem) and path.suffix.lower() in IMAGE_SUFFIXES
        }

    files: dict[str, Path] = {}
    for cell in cells:
        match = FIELD_AND_CELL.fullmatch(cell.path.stem)
        if match is None or cell.field in files:
            continue
        folder = cell.path.parent
        places = (folder, folder.parent) if folder.name.lower() == "cropped" else (folder,)
        for place in places:
            if file := in_folder(place).get(match[1]):
                files[cell.field] = file
    return files


def match_fields(files: dict[str, Path], progress: Progress = SILENT) -> FieldMatches:
    """Return the pairs of fields that overlap. What cannot be read or is no field matches none."""
    names = sorted(files)
    if len(names) < 2:
        return FieldMatches(files)
    with one_thread_a_call(), ThreadPoolExecutor() as pool:
        sizes = [side for name in names[:: max(1, len(names) // 20)] if (side := _longer_side(files[name]))]
        scale = min(1.0, FIELD_SIZE / max(sizes, default=FIELD_SIZE))
        most = min(MOST_KEYPOINTS, max(FEWEST_KEYPOINTS, KEYPOINTS_IN_ALL // len(names)))
        keypoints = []
        progress.start("Reading fields", len(names))
        for found in pool.map(lambda name: _keypoints(files[name], scale, most), names):
            keypoints.append(found)
            progress.advance()
        progress.close()

        @functools.lru_cache(FIELDS_HELD)
        def reduced(index: int) -> np.ndarray | None:
            return _reduced(files[names[index]], scale)

        def compare(pair: tuple[int, int, int]) -> FieldPair | None:
            _, first, second = pair
            warp = similarity(keypoints[first], keypoints[second])
            if warp is None:
                return None
            one, other = reduced(first), reduced(second)
            if one is None or other is None:
                return None
            return _field_pair(names[first], names[second], one, other, warp, scale)

        candidates = sorted(sharing_pairs(keypoints, pool, PARTNERS, progress), key=lambda pair: pair[1:])
        pairs = []
        progress.start("Verifying fields", len(candidates))
        for pair in pool.map(compare, candidates):
            if pair is not None:
                pairs.append(pair)
            progress.advance(1, counted(len(pairs), "pair"))
        progress.close()
    return FieldMatches(files, tuple(sorted(pairs, key=lambda pair: (-pair.score, pair.first, pair.second))))


def similarity(first: Keypoints, second: Keypoints) -> np.ndarray | None:
    """Return the shift and turn, float32 [2, 3], that enough keypoints agree with, or None."""
    ones, others = matches(first, second)
    if len(ones) < LEAST_AGREEING:
        return None
    warp, agreeing = cv2.estimateAffinePartial2D(
        first.places[ones], second.places[others], method=cv2.RANSAC, ransacReprojThreshold=AGREEING_PX
    )
    if warp is None or agreeing.sum() < LEAST_AGREEING:
        return None
    size = math.hypot(warp[0, 0], warp[1, 0])
    turn = abs(math.degrees(math.atan2(warp[1, 0], warp[0, 0])))
    if not 1 / LARGEST_SCALE <= size <= LARGEST_SCALE or turn > LARGEST_TURN:
        return None
    return warp.astype(np.float32)


def _field_pair(
    first: str, second: str, one: np.ndarray, other: np.ndarray, warp: np.ndarray, scale: float
) -> FieldPair | None:
    aligned = align(one, other, warp, LEAST_MIDDLE, LARGEST_TURN)
    if aligned is None:
        return None
    share = aligned.overlap / min(one.size, other.size)
    if aligned.correlation < FIELD_THRESHOLD or share < LEAST_SHARE:
        return None
    middle = np.array([one.shape[1] / 2, one.shape[0] / 2, 1])
    right, down = (aligned.warp @ middle - middle[:2]) / scale
    degrees = math.degrees(math.atan2(aligned.warp[1, 0], aligned.warp[0, 0]))
    return FieldPair(
        first,
        second,
        round(min(1.0, aligned.correlation), 4),
        round(share, 3),
        (round(right), round(down)),
        round(degrees, 1) + 0.0,
    )


def _longer_side(path: Path) -> int | None:
    try:
        return max(read_image(path).shape[:2])
    except ImageError:
        return None


def _reduced(path: Path, scale: float) -> np.ndarray | None:
    """Return a field, grey and reduced, or None if it cannot be read or is too small for one."""
    try:
        grey = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY)
    except ImageError:
        return None
    if min(grey.shape) < LEAST_SIDE:
        return None
    size = [max(8, round(side * scale)) for side in grey.shape[::-1]]
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def _keypoints(path: Path, scale: float, most: int) -> Keypoints:
    grey = _reduced(path, scale)
    return NO_KEYPOINTS if grey is None else find_keypoints(grey, most)
