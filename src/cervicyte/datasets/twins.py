"""Finds twins: crops that show the same cell or place, photographed again or copied.

Between two photographs of one place the crop's box moves, the picture turns by a degree or two, the
focus and the light change. The search has three steps, each exact:

1. Every crop is reduced by one factor for the whole data set (scale is evidence: a microscope does not
   change it) and its log luminance is band-passed, which takes away the light.
2. Candidates: cosine between small central patches, of each crop with every other, over 25 shifts and two
   scales, and over the seven turns and mirrorings that augmentation makes; block by block, so that memory
   grows with the number of crops and not with its square.
3. Each candidate pair is aligned (normalised cross-correlation over shifts and turns, then ECC: Evangelidis
   & Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization", IEEE TPAMI
   30(10), 2008) and scored by the correlation of two bands, coarse and fine, where the crops overlap.

The score is (coarse + fine) / 2 x (0.8 + 0.2 x IoU): how alike the two are where they overlap, and how alike
the boxes are. Blurred nuclei of different cells correlate to 0.85 in the coarse band and not in the fine
one; a small crop that fits a nucleus in a large one has a low IoU (intersection over union of the boxes).

When twins join two photographs, the pairs between their other crops are tried as well.

Left for later: crops that share only a margin (features with RANSAC), and whole fields.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from cervicyte.progress import SILENT, Progress

# On the 3,445 cells of SIPaKMeD in ../shared: the 60 pairs just above (0.70 to 0.86) were looked at and are
# all twins; of the 60 just below (0.60 to 0.70) three are. Of all 421 above, 418 lie in one group of the
# shipped table, and the other three are twins that the table misses (Parabasal 014 and 016).
THRESHOLD = 0.70
"""Score from which a pair counts as twins."""

TURNED_THRESHOLD = 0.85
"""The same for a pair of which one is mirrored or turned by quarters: an augmented copy is the same picture,
so it scores high, and a round nucleus resembles another in one of seven turns by chance."""

WORKING_SIZE = 96  # pixels, the side to which the median crop is reduced
COARSE_BAND = (1.0, 10.0)  # sigma in working pixels of the two Gaussians whose difference it is
MIDDLE_BAND = (1.0, 4.0)
FINE_BAND = (0.6, 2.0)
SHADOW = 8  # grey levels added before the logarithm, so that noise in the dark does not count

PATCH, SHIFTS = 10, 2  # points a side, and how many points it is moved each way
CANDIDATES = 6  # of each crop on each of two scales, the nearest
TURNED_CANDIDATES = 3  # of each crop in each of the seven turns
LEAST_COSINE = 0.7
LEAST_TURNED_COSINE = 0.85
LEAST_COARSE = 0.6  # correlation over shifts from which turns are tried
LEAST_ALIGNED = 0.7  # the same after turns, from which the middle band is looked at
LEAST_MIDDLE = 0.5  # from which the pair is aligned finely
BLOCK = 512  # crops whose distances to all others are held at once
LARGEST_TURN = 10.0  # degrees; the largest between true twins of SIPaKMeD is 3.7
TEMPLATE_SHARE = 0.75  # of the smaller crop's sides; the rest is the room to be moved in
LEAST_OVERLAP = 200  # working pixels

TURNS = (
    "as it is", "turned by 90°", "turned by 180°", "turned by 270°",
    "mirrored", "mirrored and turned by 90°", "mirrored and turned by 180°", "mirrored and turned by 270°",
)  # fmt: skip


@dataclass(frozen=True)
class Reduced:
    """What the search keeps of a crop, about 16 kB.

    grey: uint8 [h, w], luminance in working pixels; coarse: uint8 [h/2, w/2], the coarse band at half that
    resolution; patches: float32 [2, 14, 14], its centre at a quarter and an eighth of it.
    """

    grey: np.ndarray
    coarse: np.ndarray
    patches: np.ndarray


@dataclass(frozen=True, order=True)
class Twin:
    """Two crops by index, first < second, their score, and which of `TURNS` takes the first to the second."""

    first: int
    second: int
    score: float
    turn: int = 0


def working_scale(sides_px: Iterable[float]) -> float:
    """Return the factor that takes the median of the crops' sides to the working size, at most 1."""
    return min(1.0, WORKING_SIZE / float(np.median(list(sides_px))))


def reduce_crop(image: np.ndarray, scale: float) -> Reduced:
    """Reduce a crop, uint8 [H, W, 3], RGB, to what the search keeps of it."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = [max(8, round(side * scale)) for side in grey.shape[::-1]]
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    band = _band(grey, COARSE_BAND)
    half = cv2.resize(band, [max(4, side // 2) for side in size], interpolation=cv2.INTER_AREA)
    spread = max(float(half.std()), 1e-6)
    coarse = np.clip(128 + half * (32 / spread), 0, 255).astype(np.uint8)
    return Reduced(grey, coarse, _patches(coarse))


def find_twins(
    crops: Sequence[Reduced],
    fields: Sequence[str],
    threshold: float = THRESHOLD,
    progress: Progress = SILENT,
) -> list[Twin]:
    """Return the twins among the crops, sorted by index.

    Args:
        crops: see `reduce_crop`, all of one scale.
        fields: the photograph that each crop was cut from, as far as is known.
        threshold: least score of pairs that stand alike; see also `TURNED_THRESHOLD`.
    """
    # OpenCV's own threads would fight with those below for the same cores.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor() as pool:
            candidates = _candidates(crops, progress)
            twins = _verified(crops, sorted(candidates), threshold, pool, progress)
            tried = {(first, second) for first, second, turn in candidates if not turn}
            while more := _between_joined_fields(twins, fields, tried):
                tried.update((first, second) for first, second, _ in more)
                twins += _verified(crops, more, threshold, pool, progress)
    finally:
        cv2.setNumThreads(threads)
    best: dict[tuple[int, int], Twin] = {}
    for twin in twins:
        pair = (twin.first, twin.second)
        if pair not in best or twin.score > best[pair].score:
            best[pair] = twin
    return sorted(best.values())


def joined(groups: Sequence[str], pairs: Iterable[tuple[int, int]], first: str = "") -> list[str]:
    """Return the groups with those that a pair connects made one.

    The joined group bears the first of their names, names that begin with `first` before all others.
    """
    joined_to = {group: group for group in groups}

    def representative(group: str) -> str:
        while joined_to[group] != group:
            joined_to[group] = joined_to[joined_to[group]]
            group = joined_to[group]
        return group

    for one, other in pairs:
        found = {representative(groups[one]), representative(groups[other])}
        name = min(found, key=lambda group: (not group.startswith(first), group))
        joined_to.update(dict.fromkeys(found, name))
    return [representative(group) for group in groups]


# --- candidates ----------------------------------------------------------------------------------


def _band(grey: np.ndarray, sigmas: tuple[float, float]) -> np.ndarray:
    """Return a band of the log luminance, float32: a factor on the light drops out."""
    values = np.log(grey.astype(np.float32) + SHADOW)
    return cv2.GaussianBlur(values, (0, 0), sigmas[0]) - cv2.GaussianBlur(values, (0, 0), sigmas[1])


def _patches(coarse: np.ndarray) -> np.ndarray:
    side = PATCH + 2 * SHIFTS
    centre = ((coarse.shape[1] - 1) / 2, (coarse.shape[0] - 1) / 2)
    levels = []
    for step in (2, 4):
        patch = cv2.getRectSubPix(coarse, (side * step, side * step), centre)
        levels.append(cv2.resize(patch, (side, side), interpolation=cv2.INTER_AREA))
    return np.stack(levels).astype(np.float32)


def _unit(patches: np.ndarray) -> np.ndarray:
    """Return float32 [..., PATCH²] of mean 0 and length 1 from patches [..., PATCH, PATCH]."""
    flat = patches.reshape(*patches.shape[:-2], -1)
    flat = flat - flat.mean(-1, keepdims=True)
    return flat / (np.linalg.norm(flat, axis=-1, keepdims=True) + 1e-6)


def _turned(values: np.ndarray, turn: int) -> np.ndarray:
    """Return [..., H, W] in one of `TURNS`."""
    mirrored = values[..., ::-1] if turn >= 4 else values
    return np.ascontiguousarray(np.rot90(mirrored, turn % 4, axes=(-2, -1)))


def _candidates(crops: Sequence[Reduced], progress: Progress) -> set[tuple[int, int, int]]:
    """Return (first, second, turn) of pairs that resemble each other at some shift."""
    if len(crops) < 2:
        return set()
    patches = np.stack([crop.patches for crop in crops])
    centre = slice(SHIFTS, SHIFTS + PATCH)
    base = _unit(patches[:, :, centre, centre])
    found: set[tuple[int, int, int]] = set()
    progress.start("Comparing cells", len(crops))
    for begin in range(0, len(crops), BLOCK):
        block = patches[begin : begin + BLOCK]
        for level in range(patches.shape[1]):
            windows = np.lib.stride_tricks.sliding_window_view(block[:, level], (PATCH, PATCH), axis=(1, 2))
            best = np.full((len(block), len(crops)), -1, np.float32)
            for down in range(2 * SHIFTS + 1):
                for right in range(2 * SHIFTS + 1):
                    np.maximum(best, _unit(windows[:, down, right]) @ base[:, level].T, out=best)
            found |= set(_nearest(best, begin, CANDIDATES, LEAST_COSINE, 0))
        for turn in range(1, len(TURNS)):
            turned = _turned(block[:, :, centre, centre], turn)
            # Both levels must agree: a round nucleus alone looks the same in every turn.
            cosine = np.minimum(*(_unit(turned[:, level]) @ base[:, level].T for level in range(2)))
            found |= set(_nearest(cosine, begin, TURNED_CANDIDATES, LEAST_TURNED_COSINE, turn))
        progress.advance(len(block))
    progress.close()
    return found


def _nearest(
    cosine: np.ndarray, begin: int, count: int, least: float, turn: int
) -> Iterator[tuple[int, int, int]]:
    """Yield for each row of [rows, crops] its nearest crops; row 0 is crop `begin`."""
    rows = np.arange(len(cosine))
    cosine[rows, begin + rows] = -1
    count = min(count, cosine.shape[1] - 1)
    nearest = np.argpartition(cosine, -count, axis=1)[:, -count:]
    for row, others in enumerate(nearest):
        for other in others[cosine[row, others] >= least]:
            first, second = begin + row, int(other)
            if first < second:
                yield first, second, turn
            else:
                yield second, first, _inverse(turn)


def _inverse(turn: int) -> int:
    return turn if turn >= 4 else -turn % 4


def _between_joined_fields(
    twins: Sequence[Twin], fields: Sequence[str], tried: set[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """Return the untried pairs between photographs that twins join."""
    cells_of = defaultdict(list)
    for index, field in enumerate(fields):
        cells_of[field].append(index)
    ways = {
        (fields[twin.first], fields[twin.second])
        for twin in twins
        if not twin.turn and fields[twin.first] != fields[twin.second]
    }
    pairs = {
        (min(one, other), max(one, other))
        for first, second in ways
        for one in cells_of[first]
        for other in cells_of[second]
    }
    return [(first, second, 0) for first, second in sorted(pairs - tried)]


# --- verification --------------------------------------------------------------------------------


def _verified(
    crops: Sequence[Reduced],
    candidates: Sequence[tuple[int, int, int]],
    threshold: float,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> list[Twin]:
    def score(batch: Sequence[tuple[int, int, int]]) -> list[Twin]:
        scored = [
            Twin(first, second, pair_score(crops[first], crops[second], turn), turn)
            for first, second, turn in batch
        ]
        return [twin for twin in scored if twin.score >= (TURNED_THRESHOLD if twin.turn else threshold)]

    batches = [candidates[begin : begin + 256] for begin in range(0, len(candidates), 256)]
    twins: list[Twin] = []
    progress.start("Verifying pairs", len(candidates))
    for batch, found in zip(batches, pool.map(score, batches), strict=True):
        twins += found
        progress.advance(len(batch), f"{len(twins)} twins")
    progress.close()
    return twins


def pair_score(first: Reduced, second: Reduced, turn: int = 0) -> float:
    """Return how surely two crops show one place, 0 to 1; 0 stands for pairs that are not worth aligning.

    Args:
        first, second: see `reduce_crop`, of one scale.
        turn: which of `TURNS` the first is seen in.
    """
    coarse, grey = first.coarse, first.grey
    if turn:
        coarse, grey = _turned(coarse, turn), _turned(grey, turn)
    start = _coarse_alignment(coarse, second.coarse)
    if start is None:
        return 0.0
    angle, right, down = start
    height, width = grey.shape
    # The picture's middle, not that of its upper left pixel, is what stays in place.
    middle = ((width - 1) / 2, (height - 1) / 2)
    warp = cv2.getRotationMatrix2D(middle, angle, 1).astype(np.float32)
    warp[:, 2] += (right, down)
    bands = [(_band(grey, MIDDLE_BAND), _band(second.grey, MIDDLE_BAND))]
    if _correlations(bands, warp)[0] < LEAST_MIDDLE:
        return 0.0
    ends = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 1e-3)
    try:
        everywhere = np.ones(second.grey.shape, np.uint8)
        _, aligned = cv2.findTransformECC(*bands[0], warp, cv2.MOTION_EUCLIDEAN, ends, everywhere, 1)
    except cv2.error:  # it did not converge: nothing there to be aligned
        return 0.0
    warp = np.asarray(aligned)
    if abs(math.degrees(math.atan2(warp[1, 0], warp[0, 0]))) > LARGEST_TURN:
        return 0.0
    bands.append((_band(grey, FINE_BAND), _band(second.grey, FINE_BAND)))
    middle_band, fine_band, overlap = _correlations(bands, warp)
    union = grey.size + second.grey.size - overlap
    return float(np.clip((middle_band + fine_band) / 2 * (0.8 + 0.2 * overlap / union), 0, 1))


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


def _correlations(bands: Sequence[tuple[np.ndarray, np.ndarray]], warp: np.ndarray) -> list[float]:
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
