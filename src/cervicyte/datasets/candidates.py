"""Which crops resemble each other in their middle: pairs that are worth being laid over one another.

Cosine between small central patches, of each crop with every other, over 25 shifts and two scales, and over
the seven turns and mirrorings that augmentation makes. Up to `EXHAUSTIVE` crops every pair is compared, block
by block; beyond, each crop is compared with those of the inverted lists nearest to it (`nearest.Lists`), so
that time grows with the number of crops and not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cervicyte.datasets.crops import PATCH, SHIFTS, TURNS, Reduced, inverse_turn, turned
from cervicyte.datasets.nearest import Lists
from cervicyte.progress import SILENT, Progress

EXHAUSTIVE = 10_000  # crops up to which every pair is compared: half a minute on two cores
CANDIDATES = 6  # of each crop on each of two scales, the nearest
TURNED_CANDIDATES = 3  # of each crop in each of the seven turns
LEAST_COSINE = 0.7
LEAST_TURNED_COSINE = 0.85
BLOCK = 512  # crops whose distances to all others are held at once
SEARCHED = 1 << 15  # crops whose patches are searched at once
PROBES = 3  # inverted lists that are looked into for each shift
EXTRA = 4  # times as many by one scale, of those that may be alike on both

Pair = tuple[int, int, int]
"""First and second crop by index, first < second, and which of `TURNS` takes the first to the second."""

# Millions of pairs of a large data set, as Python's own numbers, would take ten times the memory.
FOUND = np.dtype([("first", np.int32), ("second", np.int32), ("turn", np.int32), ("cosine", np.float32)])


def resembling_pairs(
    crops: Sequence[Reduced], pool: ThreadPoolExecutor, exhaustive: int, progress: Progress = SILENT
) -> np.ndarray:
    """Return the pairs that resemble each other at some shift, int32 [P, 3], each a `Pair`, surest first."""
    if len(crops) < 2:
        return np.zeros((0, 3), np.int32)
    patches = np.stack([crop.patches for crop in crops])
    search = _among_all if len(crops) <= exhaustive else _among_lists
    found = np.fromiter(((*pair, cosine) for pair, cosine in search(patches, pool, progress)), FOUND)
    if not len(found):
        return np.zeros((0, 3), np.int32)
    pairs = np.stack([found[name] for name in ("first", "second", "turn")], axis=1)
    # One that was found several times stands where it was surest.
    order = np.lexsort((-found["cosine"], *pairs.T[::-1]))
    again = np.r_[False, (pairs[order][1:] == pairs[order][:-1]).all(1)]
    order = order[~again]
    return pairs[order[np.argsort(-found["cosine"][order], kind="stable")]]


def _among_all(
    patches: np.ndarray, _: ThreadPoolExecutor, progress: Progress
) -> Iterator[tuple[Pair, float]]:
    centre = slice(SHIFTS, SHIFTS + PATCH)
    base = _unit(patches[:, :, centre, centre])
    progress.start("Comparing cells", len(patches))
    for begin in range(0, len(patches), BLOCK):
        block = patches[begin : begin + BLOCK]
        for level in range(patches.shape[1]):
            best = np.full((len(block), len(patches)), -1, np.float32)
            for window in _windows(block[:, level]):
                np.maximum(best, _unit(window) @ base[:, level].T, out=best)
            yield from _nearest(best, begin, CANDIDATES, LEAST_COSINE, 0)
        for turn in range(1, len(TURNS)):
            seen = turned(block[:, :, centre, centre], turn)
            # Both levels must agree: a round nucleus alone looks the same in every turn.
            cosine = np.minimum(*(_unit(seen[:, level]) @ base[:, level].T for level in range(2)))
            yield from _nearest(cosine, begin, TURNED_CANDIDATES, LEAST_TURNED_COSINE, turn)
        progress.advance(len(block))
    progress.close()


def _among_lists(
    patches: np.ndarray, pool: ThreadPoolExecutor, progress: Progress
) -> Iterator[tuple[Pair, float]]:
    centre = slice(SHIFTS, SHIFTS + PATCH)
    middles = patches[:, :, centre, centre]
    base = [_unit(middles[:, level]) for level in range(2)]
    lists = [Lists(vectors, False, pool) for vectors in base]
    progress.start("Comparing cells", len(patches))
    for begin in range(0, len(patches), SEARCHED):
        block = patches[begin : begin + SEARCHED]
        for level in range(2):
            nearest = _Nearest(begin, len(block), CANDIDATES)
            for window in _windows(block[:, level]):
                # One more than asked for, as each crop finds itself.
                found, distances = lists[level].search(_unit(window), CANDIDATES + 1, PROBES)
                nearest.take(found, 1 - distances / 2)
            yield from nearest.pairs(LEAST_COSINE, 0)
        for turn in range(1, len(TURNS)):
            seen = turned(middles[begin : begin + SEARCHED], turn)
            ones = [_unit(seen[:, level]) for level in range(2)]
            found, distances = lists[1].search(ones[1], EXTRA * TURNED_CANDIDATES, PROBES)
            other = np.einsum("nd,nkd->nk", ones[0], base[0][found])
            nearest = _Nearest(begin, len(block), TURNED_CANDIDATES)
            nearest.take(found, np.where(found >= 0, np.minimum(1 - distances / 2, other), -1))
            yield from nearest.pairs(LEAST_TURNED_COSINE, turn)
        progress.advance(len(block))
    progress.close()


class _Nearest:
    """The nearest of each crop of a block over several searches, each crop and neighbour once."""

    def __init__(self, begin: int, rows: int, count: int) -> None:
        self._begin, self._count = begin, count
        self._found = np.full((rows, count), -1, np.int32)
        self._cosine = np.full((rows, count), -1, np.float32)

    def take(self, found: np.ndarray, cosine: np.ndarray) -> None:
        own = self._begin + np.arange(len(found))[:, None]
        cosine = np.where((found == own) | (found < 0), -1, cosine).astype(np.float32)
        found = np.concatenate([self._found, found], axis=1)
        cosine = np.concatenate([self._cosine, cosine], axis=1)
        # By neighbour and then by cosine, so that of one neighbour the best stands first.
        order = np.lexsort((-cosine, found), axis=1)
        found, cosine = (np.take_along_axis(values, order, axis=1) for values in (found, cosine))
        cosine[:, 1:][found[:, 1:] == found[:, :-1]] = -1
        best = np.argpartition(-cosine, self._count - 1, axis=1)[:, : self._count]
        self._found, self._cosine = (np.take_along_axis(values, best, axis=1) for values in (found, cosine))

    def pairs(self, least: float, turn: int) -> Iterator[tuple[Pair, float]]:
        for row, place in zip(*np.nonzero(self._cosine >= least), strict=True):
            pair = _ordered(self._begin + int(row), int(self._found[row, place]), turn)
            yield pair, float(self._cosine[row, place])


def _windows(patches: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the shifted middles, [n, PATCH, PATCH], of patches [n, side, side]."""
    for down in range(2 * SHIFTS + 1):
        for right in range(2 * SHIFTS + 1):
            yield patches[:, down : down + PATCH, right : right + PATCH]


def _unit(patches: np.ndarray) -> np.ndarray:
    """Return float32 [..., PATCH²] of mean 0 and length 1 from patches [..., PATCH, PATCH]."""
    flat = patches.reshape(*patches.shape[:-2], -1).astype(np.float32)
    flat -= flat.mean(-1, keepdims=True)
    return flat / (np.linalg.norm(flat, axis=-1, keepdims=True) + 1e-6)


def _nearest(
    cosine: np.ndarray, begin: int, count: int, least: float, turn: int
) -> Iterator[tuple[Pair, float]]:
    """Yield for each row of [rows, crops] its nearest crops; row 0 is crop `begin`."""
    rows = np.arange(len(cosine))
    cosine[rows, begin + rows] = -1
    count = min(count, cosine.shape[1] - 1)
    nearest = np.argpartition(cosine, -count, axis=1)[:, -count:]
    for row, others in enumerate(nearest):
        for other in others[cosine[row, others] >= least]:
            yield _ordered(begin + row, int(other), turn), float(cosine[row, other])


def _ordered(one: int, other: int, turn: int) -> Pair:
    return (one, other, turn) if one < other else (other, one, inverse_turn(turn))
