"""The exact search agrees with brute force; inverted lists lose little and keep what is asked of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cervicyte.datasets.nearest import Lists


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def vectors(count: int) -> np.ndarray:
    """Return clustered vectors, as descriptors are."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16))
    return (centres[rng.integers(40, size=count)] + 0.3 * rng.normal(size=(count, 16))).astype(np.float32)


def brute_force(base: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    distances = ((queries[:, None].astype(float) - base[None]) ** 2).sum(-1)
    nearest = np.argsort(distances, axis=1)[:, :count]
    return nearest, np.take_along_axis(distances, nearest, axis=1)


def test_exact_search_agrees_with_brute_force(pool):
    base, queries = np.split(vectors(790), [700])
    found, distances = Lists(base, True, pool).search(queries, 5, probes=4)
    expected, expected_distances = brute_force(base, queries, 5)
    assert np.array_equal(found, expected)
    assert np.allclose(distances, expected_distances, atol=1e-4)


def test_inverted_lists_find_nearly_all_that_brute_force_finds(pool):
    base, queries = np.split(vectors(5200), [5000])
    found, _ = Lists(base, False, pool).search(queries, 5, probes=3)
    expected, _ = brute_force(base, queries, 5)
    kept = [len(set(one) & set(other)) for one, other in zip(found, expected, strict=True)]
    assert np.mean(kept) >= 0.97 * 5


def test_half_precision_and_more_neighbours_than_there_are(pool):
    base = vectors(3).astype(np.float16)
    found, distances = Lists(base, True, pool).search(base, 5, probes=1)
    assert [sorted(row) for row in found] == [[-1, -1, 0, 1, 2]] * 3
    assert found[:, 0].tolist() == [0, 1, 2]
    assert np.isinf(distances[found < 0]).all()


def test_the_lists_are_the_same_on_each_run(pool):
    base = vectors(4000)
    ones, others = (Lists(base, False, pool).search(base[:300], 4, probes=2) for _ in range(2))
    assert np.array_equal(ones[0], others[0])
