"""Nearest vectors among many: exact for a few, by inverted lists for more.

Inverted lists (Sivic & Zisserman, "Video Google", ICCV 2003): vectors are sorted into lists by the nearest of
some k-means centres, and a query looks only into the lists whose centres are nearest to it. Queries that
look into the same list do so in one matrix product. The centres are the same on each run.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

LIST_SIZE = 800  # vectors; exact search is as fast up to a few lists
ROUNDS, SAMPLED = 6, 32  # of k-means, and the vectors it looks at for each centre
BLOCK = 4096  # queries whose distances are held at once, at most
HELD = 1 << 22  # distances held at once by a thread


class Lists:
    """Vectors, float [n, d], ready to be searched; one list, which is exact, or many.

    They may be of half precision to save memory; products are made in single precision.
    """

    def __init__(self, vectors: np.ndarray, exact: bool, pool: ThreadPoolExecutor) -> None:
        """Sort the vectors into lists.

        Args:
            vectors: those that are to be found; they are kept as they are, and not copied.
            exact: look at every vector for every query.
            pool: where the work is done.
        """
        self._pool = pool
        count = 1 if exact else max(1, round(len(vectors) / LIST_SIZE))
        self._centres = _centres(vectors, count, pool)
        of_vector = self._nearest_centres(vectors, 1)[:, 0]
        self._ids = np.argsort(of_vector, kind="stable").astype(np.int32)
        self._vectors = vectors
        self._halves = 0.5 * _squared_lengths(vectors)
        self._starts = np.searchsorted(of_vector[self._ids], np.arange(len(self._centres) + 1))

    def search(self, queries: np.ndarray, count: int, probes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest vectors of each query: indices and squared distances, [q, count], nearest first.

        Places without a vector have the index -1 and an infinite distance.
        """
        probes = min(probes, len(self._centres))
        lists = self._nearest_centres(queries, probes)
        found = np.full((len(queries) * probes, count), -1, np.int32)
        likeness = np.full(found.shape, -np.inf, np.float32)
        order = np.argsort(lists.ravel(), kind="stable")
        bounds = np.searchsorted(lists.ravel()[order], np.arange(len(self._centres) + 1))

        def look_into(task: tuple[int, int, int]) -> None:
            which, begin, last = task
            start, end = self._starts[which : which + 2]
            kept = min(count, end - start)
            places = order[begin:last]
            ids = self._ids[start:end]
            members = self._vectors[ids].astype(np.float32, copy=False)
            values = queries[places // probes].astype(np.float32, copy=False) @ members.T
            values -= self._halves[ids]
            best = np.argpartition(values, -kept, axis=1)[:, -kept:]
            found[places, :kept] = ids[best]
            likeness[places, :kept] = np.take_along_axis(values, best, axis=1)

        tasks = []
        for which, members in enumerate(np.diff(self._starts).tolist()):
            if members:
                rows = min(BLOCK, max(1, HELD // members))
                begins = range(int(bounds[which]), int(bounds[which + 1]), rows)
                tasks += [(which, begin, min(begin + rows, int(bounds[which + 1]))) for begin in begins]
        list(self._pool.map(look_into, tasks))
        found, likeness = found.reshape(len(queries), -1), likeness.reshape(len(queries), -1)
        best = np.argsort(-likeness, axis=1, kind="stable")[:, :count]
        distances = _squared_lengths(queries)[:, None] - 2 * np.take_along_axis(likeness, best, axis=1)
        return np.take_along_axis(found, best, axis=1), distances

    def _nearest_centres(self, vectors: np.ndarray, count: int) -> np.ndarray:
        return _nearest_of(self._centres, vectors, count, self._pool)


def _squared_lengths(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", vectors, vectors, dtype=np.float32)


def _nearest_of(centres: np.ndarray, vectors: np.ndarray, count: int, pool: ThreadPoolExecutor) -> np.ndarray:
    """Return the indices of the centres nearest to each vector, int32 [n, count], in any order."""
    nearest = np.zeros((len(vectors), count), np.int32)
    if len(centres) == 1:
        return nearest
    halves = 0.5 * _squared_lengths(centres)

    def compare(begin: int) -> None:
        block = slice(begin, begin + BLOCK)
        values = vectors[block].astype(np.float32, copy=False) @ centres.T - halves
        if count == 1:
            nearest[block, 0] = values.argmax(1)
        else:
            nearest[block] = np.argpartition(values, -count, axis=1)[:, -count:]

    list(pool.map(compare, range(0, len(vectors), BLOCK)))
    return nearest


def _centres(vectors: np.ndarray, count: int, pool: ThreadPoolExecutor) -> np.ndarray:
    """Return k-means centres of a sample; one that loses its vectors stays where it was."""
    if count == 1:
        return vectors[:1].astype(np.float32)
    rng = np.random.default_rng(0)
    sample = vectors[np.sort(rng.permutation(len(vectors))[: SAMPLED * count])].astype(np.float32)
    centres = sample[rng.permutation(len(sample))[:count]].copy()
    for _ in range(ROUNDS):
        of_vector = _nearest_of(centres, sample, 1, pool)[:, 0]
        order = np.argsort(of_vector, kind="stable")
        bounds = np.searchsorted(of_vector[order], np.arange(count + 1))
        for which, (start, end) in enumerate(pairwise(bounds)):
            if end > start:
                centres[which] = sample[order[start:end]].mean(0)
    return centres
