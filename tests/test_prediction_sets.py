"""Sets hold the class of a cell of a new group as often as they say, however alike a group's cells are."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervicyte.evaluation.prediction_sets import fewest_groups, prediction_sets, set_texts, threshold_of


def naive_threshold(probabilities: np.ndarray, level: float) -> float:
    """Return the textbook's threshold, which takes every cell for exchangeable."""
    rank = math.ceil((len(probabilities) + 1) * level)
    return float(np.sort(probabilities)[::-1][rank - 1]) if rank <= len(probabilities) else 0.0


# --- the threshold -------------------------------------------------------------------------------


def test_the_threshold_of_three_groups_worked_by_hand():
    """Of four groups, the new one reaches none; `a` has two cells, each of half its weight.

    Cells at 0.9 and 0.8 weigh 1/8 each, those at 0.7 and 0.2 1/4: 0.125, 0.25, 0.5, 0.75.
    """
    probabilities, groups = np.array([0.7, 0.9, 0.2, 0.8]), ["b", "a", "c", "a"]
    assert threshold_of(probabilities, groups, 0.25) == 0.8
    assert threshold_of(probabilities, groups, 0.5) == 0.7
    assert threshold_of(probabilities, groups, 0.6) == 0.2
    assert threshold_of(probabilities, groups, 0.75) == 0.2
    assert threshold_of(probabilities, groups, 0.76) is None


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 30), st.sampled_from([50, 80, 90, 95]))
@settings(max_examples=150, deadline=None)
def test_the_threshold_is_the_highest_value_that_enough_of_the_groups_reaches(seed, cells, at_most, percent):
    rng = np.random.default_rng(seed)
    probabilities, groups = np.round(rng.random(cells), 1), rng.integers(0, at_most, cells)
    names = sorted(set(groups))

    def reached(value: float) -> Fraction:
        shares = [
            Fraction(int((probabilities[groups == one] >= value).sum()), int((groups == one).sum()))
            for one in names
        ]
        return sum(shares, Fraction(0)) / (len(names) + 1)

    enough = [value for value in probabilities if reached(value) >= Fraction(percent, 100)]
    assert threshold_of(probabilities, groups, percent / 100) == (max(enough) if enough else None)


@pytest.mark.parametrize("cells", [19, 20, 38, 39, 100, 399])
def test_where_each_group_is_one_cell_it_is_the_textbooks_quantile(cells):
    probabilities = np.random.default_rng(cells).random(cells)
    assert threshold_of(probabilities, np.arange(cells)) == naive_threshold(probabilities, 0.95)


@pytest.mark.parametrize(("level", "fewest"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_fewer_groups_than_needed_give_no_threshold_however_many_cells(level, fewest):
    assert fewest_groups(level) == fewest
    for groups in (fewest - 1, fewest):
        threshold = threshold_of(np.full(10 * groups, 0.7), np.repeat(np.arange(groups), 10), level)
        assert threshold == (0.7 if groups == fewest else None)
    assert threshold_of(np.array([]), [], level) is None


# --- the sets ------------------------------------------------------------------------------------


def test_a_set_holds_what_reaches_its_threshold_and_always_the_likeliest_class():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.45, 0.45]])
    in_set = prediction_sets(probabilities, [0.6, 0.6, 0.3])
    assert in_set.tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    assert prediction_sets(probabilities, [0.9, 0.9, 0.9]).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, True, False],
    ]


def test_a_class_without_a_threshold_is_in_every_set():
    probabilities = np.array([[1.0, 0.0], [0.3, 0.7]])
    assert prediction_sets(probabilities, [0.5, None]).tolist() == [[True, True], [False, True]]


def test_sets_are_written_in_the_models_order():
    in_set = np.array([[True, False, True], [False, True, False]])
    assert set_texts(in_set, ["Parabasal", "A b", "C"]) == ["Parabasal | C", "A b"]


# --- what they promise ---------------------------------------------------------------------------


def covered_of_new_groups(rng, draw_groups, threshold, trials, groups):
    """Return how often a random cell of a new group reaches the threshold fitted on `groups` others."""
    covered = np.empty(trials)
    for trial in range(trials):
        cells = draw_groups(rng, groups + 1)
        *known, new = cells
        names = np.repeat(np.arange(groups), [len(one) for one in known])
        fitted = threshold(np.concatenate(known), names)
        covered[trial] = (new >= fitted).mean()  # the chance that a random one of its cells does
    return covered


def groups_of_equal_cells(rng, count):
    return [np.full(10, one) for one in rng.random(count)]


def groups_of_like_cells(rng, count):
    """Groups of which the larger are the easier: what is seen most of is no measure of a new group."""
    ease = rng.normal(size=count)
    sizes = 1 + rng.poisson(np.exp(1.5 + ease))
    return [
        1 / (1 + np.exp(-(2 + 2 * one + 0.3 * rng.normal(size=size))))
        for one, size in zip(ease, sizes, strict=True)
    ]


@pytest.mark.parametrize("groups", [25, 60])
def test_a_cell_of_a_new_group_is_covered_where_counting_cells_fails(groups):
    trials = 2000
    ours, naive = (
        covered_of_new_groups(np.random.default_rng(7), groups_of_like_cells, threshold, trials, groups)
        for threshold in (threshold_of, lambda given, _: naive_threshold(given, 0.95))
    )
    error = ours.std() / math.sqrt(trials)
    assert 0.95 - 2 * error < ours.mean() < 0.95 + 1 / (groups + 1) + 2 * error
    assert naive.mean() < 0.9


def test_equal_cells_are_covered_as_the_ranks_of_groups_say():
    """Of 25 groups all but none must be reached: 25 of 26 ranks. Counted as 250 cells, 24 of 26."""
    rng = np.random.default_rng(3)
    ours = covered_of_new_groups(rng, groups_of_equal_cells, threshold_of, 4000, 25)
    assert ours.mean() == pytest.approx(25 / 26, abs=0.01)
    naive = covered_of_new_groups(
        rng, groups_of_equal_cells, lambda given, names: naive_threshold(given, 0.95), 4000, 25
    )
    assert naive.mean() == pytest.approx(24 / 26, abs=0.013)
