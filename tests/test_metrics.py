"""Every formula against scikit-learn, and what intervals and comparisons promise."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from cervicyte import metrics
from cervicyte.errors import UsageError

CLASSES = 4


def drawn(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth, predicted and probabilities, rounded so that scores tie."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(CLASSES), rng.integers(0, CLASSES, count - CLASSES)])
    scores = np.round(rng.random((count, CLASSES)) + 0.7 * np.eye(CLASSES)[truth], 1) + 0.05
    probabilities = scores / scores.sum(1, keepdims=True)
    return truth, probabilities.argmax(1), probabilities


def weights_for(seed: int, count: int) -> np.ndarray:
    """Return whole weights, one at least, so that every class stays."""
    return np.random.default_rng(seed + 1).integers(1, 4, count).astype(float)


def table(truth, predicted, groups, names="abcd") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": [f"{index:04d}.png" for index in range(len(truth))],
            "group": [f"g{group}" for group in groups],
            "true_class": [names[index] for index in truth],
            "predicted_class": [names[index] for index in predicted],
        }
    )


# --- the formulas --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weighted", [False, True])
def test_figures_of_a_confusion_matrix_equal_scikit_learns(seed, weighted):
    truth, predicted, _ = drawn(seed)
    weights = weights_for(seed, len(truth)) if weighted else None
    confusion = metrics.confusion_matrix(truth, predicted, CLASSES, weights)
    options = {"sample_weight": weights}
    expected = sklearn_metrics.confusion_matrix(truth, predicted, **options)
    np.testing.assert_array_equal(confusion, expected)
    for ours, theirs in [
        (metrics.accuracy, sklearn_metrics.accuracy_score),
        (metrics.balanced_accuracy, sklearn_metrics.balanced_accuracy_score),
        (metrics.cohen_kappa, sklearn_metrics.cohen_kappa_score),
        (metrics.matthews_correlation, sklearn_metrics.matthews_corrcoef),
    ]:
        assert ours(confusion) == pytest.approx(theirs(truth, predicted, **options), abs=1e-12)
    expected = sklearn_metrics.f1_score(truth, predicted, average="macro", **options)
    assert metrics.macro_f1(confusion) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_figures_of_each_class_equal_scikit_learns(seed):
    truth, predicted, _ = drawn(seed)
    figures = metrics.class_metrics(metrics.confusion_matrix(truth, predicted, CLASSES))
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(truth, predicted)
    np.testing.assert_allclose(figures["precision"], precision, atol=1e-12)
    np.testing.assert_allclose(figures["recall"], recall, atol=1e-12)
    np.testing.assert_allclose(figures["f1"], f1, atol=1e-12)
    for index in range(CLASSES):
        is_true, is_called = truth == index, predicted == index
        accuracy = sklearn_metrics.accuracy_score(is_true, is_called)
        specificity = sklearn_metrics.recall_score(~is_true, ~is_called)
        assert figures["accuracy"][index] == pytest.approx(accuracy, abs=1e-12)
        assert figures["specificity"][index] == pytest.approx(specificity, abs=1e-12)


@given(st.integers(0, 10_000), st.integers(8, 60))
@settings(max_examples=60, deadline=None)
def test_auc_and_brier_score_with_ties_and_weights_equal_scikit_learns(seed, count):
    truth, _, probabilities = drawn(seed, count)
    weights = weights_for(seed, count)
    for index in range(CLASSES):
        ours = metrics.auc(truth == index, probabilities[:, index], weights)
        theirs = sklearn_metrics.roc_auc_score(truth == index, probabilities[:, index], sample_weight=weights)
        assert ours == pytest.approx(theirs, abs=1e-12)
    ours = metrics.brier_score(probabilities, truth, weights)
    by_class = [
        np.average((probabilities[:, index] - (truth == index)) ** 2, weights=weights)
        for index in range(CLASSES)
    ]
    assert ours == pytest.approx(sum(by_class), abs=1e-12)
    two = probabilities[:, :1] / probabilities[:, :2].sum(1, keepdims=True)
    both, is_first = np.hstack([two, 1 - two]), truth == 0
    expected = 2 * sklearn_metrics.brier_score_loss(is_first, two[:, 0], sample_weight=weights)
    assert metrics.brier_score(both, (~is_first).astype(int), weights) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_equals_the_published_formula_bin_by_bin():
    rng = np.random.default_rng(3)
    confidence = np.concatenate([rng.random(500), [0.0, 1.0, 1 / 15, 0.2, 0.6]])
    correct = rng.random(len(confidence)) < confidence**2
    expected = 0.0
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        inside = (confidence > low) & (confidence <= high) | ((index == 0) & (confidence == 0))
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.sum() / len(confidence) * gap
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_a_perfectly_calibrated_table_has_no_calibration_error():
    confidence, correct = np.full(10, 0.7), np.arange(10) < 7
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 10_000), st.integers(2, 80))
@settings(max_examples=60, deadline=None)
def test_the_adaptive_error_equals_a_plain_loop_over_bins_of_equal_size(seed, count):
    """Each cell stands there 15 times, so that 15 bins of as many cells as there are fit exactly."""
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(count), rng.random(count) < 0.7
    order = np.argsort(confidence)
    cells = [(confidence[one], correct[one]) for one in order for _ in range(15)]
    expected = 0.0
    for index in range(15):
        inside = cells[index * count : (index + 1) * count]
        expected += abs(sum(right for _, right in inside) - sum(stated for stated, _ in inside)) / len(cells)
    assert metrics.adaptive_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 80), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
@settings(max_examples=60, deadline=None)
def test_accuracy_at_coverage_equals_a_plain_loop_over_the_most_certain(seed, count, coverage):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(count), rng.random(count) < 0.7
    left, right = coverage * count, 0.0
    for _, one in sorted(zip(confidence, correct, strict=True), reverse=True):
        right += min(1.0, left) * one
        left -= min(1.0, left)
    ours = metrics.accuracy_at_coverage(confidence, correct, coverage)
    assert ours == pytest.approx(right / (coverage * count), abs=1e-12)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_ties_count_as_the_mean_over_all_their_orders_and_rows_may_be_shuffled(seed):
    rng = np.random.default_rng(seed)
    confidence, correct = np.round(rng.random(40), 1), rng.random(40) < 0.6
    shuffled = rng.permutation(40)
    for figure in (
        metrics.adaptive_calibration_error,
        lambda confidence, correct: metrics.accuracy_at_coverage(confidence, correct, 0.7),
    ):
        assert figure(confidence, correct) == pytest.approx(
            figure(confidence[shuffled], correct[shuffled]), abs=1e-12
        )
    one_level, two_of_three = np.full(3, 0.5), np.array([True, True, False])
    assert metrics.accuracy_at_coverage(one_level, two_of_three, 1 / 3) == pytest.approx(2 / 3)


def test_negative_log_likelihood_equals_scikit_learns_and_is_never_infinite():
    truth, _, probabilities = drawn(2)
    weights = weights_for(2, len(truth))
    expected = sklearn_metrics.log_loss(truth, probabilities, sample_weight=weights)
    assert metrics.negative_log_likelihood(probabilities, truth, weights) == pytest.approx(expected)
    worst = metrics.negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([1]))
    assert worst == pytest.approx(-math.log(metrics.LEAST_PROBABILITY))


def test_many_weightings_at_once_give_what_one_at_a_time_gives():
    truth, predicted, probabilities = drawn(0)
    many = np.stack([weights_for(seed, len(truth)) for seed in range(6)])
    together = metrics.macro_f1(metrics.confusion_matrix(truth, predicted, CLASSES, many))
    areas = metrics.auc(truth == 1, probabilities[:, 1], many)

    def confidence_figures(weights):
        given = probabilities.max(1), truth == predicted
        return [
            metrics.adaptive_calibration_error(*given, weights),
            metrics.accuracy_at_coverage(*given, 0.9, weights),
            metrics.negative_log_likelihood(probabilities, truth, weights),
        ]

    of_confidence = confidence_figures(many)
    for row, weights in enumerate(many):
        confusion = metrics.confusion_matrix(truth, predicted, CLASSES, weights)
        assert together[row] == pytest.approx(metrics.macro_f1(confusion), abs=1e-12)
        area = metrics.auc(truth == 1, probabilities[:, 1], weights)
        assert areas[row] == pytest.approx(area, abs=1e-12)
        for figures, alone in zip(of_confidence, confidence_figures(weights), strict=True):
            assert figures[row] == pytest.approx(alone, abs=1e-12)


def test_a_weight_of_two_is_the_cell_twice():
    truth, predicted, probabilities = drawn(1)
    weights = weights_for(1, len(truth))
    repeated = np.repeat(np.arange(len(truth)), weights.astype(int))
    ours = metrics.brier_score(probabilities, truth, weights)
    assert ours == pytest.approx(metrics.brier_score(probabilities[repeated], truth[repeated]), abs=1e-12)
    confidence, correct = probabilities.max(1), truth == predicted
    ours = metrics.expected_calibration_error(confidence, correct, weights)
    twice = metrics.expected_calibration_error(confidence[repeated], correct[repeated])
    assert ours == pytest.approx(twice, abs=1e-12)
    ours = metrics.adaptive_calibration_error(confidence, correct, weights)
    twice = metrics.adaptive_calibration_error(confidence[repeated], correct[repeated])
    assert ours == pytest.approx(twice, abs=1e-12)
    ours = metrics.accuracy_at_coverage(confidence, correct, 0.9, weights)
    twice = metrics.accuracy_at_coverage(confidence[repeated], correct[repeated], 0.9)
    assert ours == pytest.approx(twice, abs=1e-12)


# --- what is undefined ---------------------------------------------------------------------------


def test_an_absent_class_has_no_figures_and_does_not_enter_the_means():
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])  # class 2 is called but absent
    confusion = metrics.confusion_matrix(truth, predicted, 3)
    figures = metrics.class_metrics(confusion)
    for name in ("accuracy", "precision", "recall", "f1"):
        assert math.isnan(figures[name][2]), name
    assert figures["specificity"][2] == 0.75
    assert metrics.balanced_accuracy(confusion) == pytest.approx(0.75)
    assert metrics.macro_f1(confusion) == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(metrics.auc(truth == 2, np.arange(4.0)))


def test_a_class_that_is_never_called_has_no_precision_but_an_f1_of_zero():
    figures = metrics.class_metrics(metrics.confusion_matrix(np.array([0, 1]), np.array([0, 0]), 2))
    assert math.isnan(figures["precision"][1])
    assert figures["f1"][1] == 0


def test_agreement_is_undefined_when_there_is_one_class_only():
    confusion = metrics.confusion_matrix(np.zeros(5, int), np.zeros(5, int), 2)
    assert math.isnan(metrics.cohen_kappa(confusion))
    assert math.isnan(metrics.matthews_correlation(confusion))


# --- the bootstrap over groups -------------------------------------------------------------------


def share_of(values: np.ndarray):
    return lambda weights: (weights @ values / weights.sum(-1))[:, None]


def test_groups_of_like_cells_give_a_wider_interval_than_single_cells():
    groups = np.repeat(np.arange(40), 10)
    values = np.repeat(np.random.default_rng(0).random(40) < 0.8, 10).astype(float)
    by_group = metrics.group_bootstrap(groups, share_of(values))
    by_cell = metrics.group_bootstrap(np.arange(400), share_of(values))
    assert by_group.high - by_group.low > 2 * (by_cell.high - by_cell.low)
    assert by_group.value == by_cell.value == pytest.approx(values.mean())


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        values = np.repeat((rng.random(60) < 0.7).astype(float), 5)
        interval = metrics.group_bootstrap(
            np.repeat(np.arange(60), 5), share_of(values), draws=400, seed=trial
        )
        held += bool(interval.low[0] <= 0.7 <= interval.high[0])
    assert 0.89 <= held / 200 <= 0.99


def test_with_single_cells_as_groups_the_width_is_that_of_the_binomial():
    values = (np.arange(900) % 10 < 8).astype(float)
    interval = metrics.group_bootstrap(np.arange(900), share_of(values))
    half_width = 1.96 * math.sqrt(0.8 * 0.2 / 900)
    assert (interval.high[0] - interval.low[0]) / 2 == pytest.approx(half_width, rel=0.1)


def test_one_group_gives_a_figure_without_an_interval():
    interval = metrics.group_bootstrap(["only"] * 6, share_of(np.arange(6.0)))
    assert interval.value[0] == 2.5
    assert math.isnan(interval.low[0])
    assert math.isnan(interval.high[0])


def test_a_class_in_a_single_group_gets_no_interval_that_seems_certain():
    truth, groups = np.array([0] * 20 + [1] * 5), np.array([*range(20), *[99] * 5])
    predicted = truth.copy()
    predicted[[0, 24]] = [1, 0]

    def recall(weights):
        return metrics.class_metrics(metrics.confusion_matrix(truth, predicted, 2, weights))["recall"]

    interval = metrics.group_bootstrap(groups, recall)
    assert interval.value[1] == 0.8
    assert np.isnan([interval.low[1], interval.high[1]]).all()
    assert interval.low[0] < interval.value[0] < interval.high[0] + 1e-12


def test_the_same_seed_gives_the_same_interval_whatever_fits_in_memory(monkeypatch):
    groups, values = np.arange(50) % 17, np.arange(50.0)
    first = metrics.group_bootstrap(groups, share_of(values), seed=5)
    monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", 500)
    again = metrics.group_bootstrap(groups, share_of(values), seed=5)
    other = metrics.group_bootstrap(groups, share_of(values), seed=6)
    np.testing.assert_allclose(first.low, again.low, rtol=1e-12)
    assert first.low != other.low


@pytest.mark.parametrize("groups", [1, 5, 30, 400])
def test_the_bound_of_what_was_not_seen_is_clopper_and_pearsons(groups):
    """Its definition: with that rate, nothing would be seen in 2.5 % of such samples."""
    assert (1 - metrics.upper_bound_of_none(groups)) ** groups == pytest.approx(0.025)


# --- paired comparison ---------------------------------------------------------------------------


@pytest.fixture
def two_tables():
    rng = np.random.default_rng(4)
    truth, groups = rng.integers(0, 4, 300), np.arange(300) // 4
    better, worse = (
        np.where(rng.random(300) < share, truth, rng.integers(0, 4, 300)) for share in (0.9, 0.6)
    )
    return table(truth, better, groups), table(truth, worse, groups)


def test_a_comparison_turned_round_is_its_negative(two_tables):
    better, worse = two_tables
    there, back = metrics.compare_paired(worse, better), metrics.compare_paired(better, worse)
    for name in ("accuracy", "macro_f1"):
        one, other = getattr(there, name), getattr(back, name)
        assert tuple(one) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-12)
    assert there.p_value == back.p_value
    assert there.accuracy.low > 0
    assert there.p_value < 0.001


def test_the_difference_is_that_of_the_accuracies(two_tables):
    better, worse = two_tables
    right = [(one["true_class"] == one["predicted_class"]).mean() for one in (worse, better)]
    assert metrics.compare_paired(worse, better).accuracy.value == pytest.approx(right[1] - right[0])


def test_a_table_compared_with_itself_differs_by_nothing(two_tables):
    same = metrics.compare_paired(two_tables[0], two_tables[0])
    assert tuple(same.accuracy) == tuple(same.macro_f1) == (0, 0, 0)
    assert same.p_value == 1


def test_the_order_of_rows_does_not_matter(two_tables):
    better, worse = two_tables
    shuffled = worse.sample(frac=1, random_state=0)
    assert metrics.compare_paired(better, shuffled) == metrics.compare_paired(better, worse)


def test_chance_differences_seldom_have_small_p_values():
    rng = np.random.default_rng(7)
    p_values = []
    for trial in range(100):
        truth, groups = rng.integers(0, 4, 60), np.arange(60) // 3
        one, other = (np.where(rng.random(60) < 0.7, truth, (truth + 1) % 4) for _ in range(2))
        first, second = table(truth, one, groups), table(truth, other, groups)
        p_values.append(metrics.compare_paired(first, second, draws=10, seed=trial).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.12


def test_the_p_value_of_a_few_groups_is_that_of_all_their_signs():
    """Six groups, each better by one cell: 2 of 2^6 sign patterns are as far out."""
    truth = np.zeros(12, int)
    groups = np.arange(12) // 2
    worse = np.arange(12) % 2
    comparison = metrics.compare_paired(table(truth, worse, groups), table(truth, truth, groups))
    assert comparison.p_value == pytest.approx(2 / 64, abs=0.006)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("path", "elsewhere.png", "one of the compared runs only"), ("true_class", "x", "true class differs"),
     ("group", "x", "group differs")],
)  # fmt: skip
def test_tables_of_other_cells_are_refused_by_name(two_tables, column, value, said):
    first, second = two_tables
    second.loc[2, column] = value
    with pytest.raises(UsageError, match=said) as refused:
        metrics.compare_paired(first, second)
    assert "0002.png" in str(refused.value)


def test_a_cell_that_stands_twice_is_refused_by_name(two_tables):
    first, second = two_tables
    with pytest.raises(UsageError, match=r"0003\.png: stands twice"):
        metrics.compare_paired(first, pd.concat([second, second.iloc[3:4]]))
