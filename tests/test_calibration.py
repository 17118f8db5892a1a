"""Probabilities come true as often as they say, and nothing is fitted on what it is judged by."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from cervicyte import metrics
from cervicyte.errors import CalibrationError, SplitError, UsageError
from cervicyte.evaluation.calibration import (
    CALIBRATION_NAME,
    Calibration,
    ClassThreshold,
    fit_calibration,
    fit_temperature,
    read_calibration,
)
from cervicyte.evaluation.cross_fitting import calibration_figures_of_cells, cross_fitted, widened_coverage
from cervicyte.metrics import Estimate

NAMES = ("Dyskeratotic", "Metaplastic", "Parabasal")


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def table_of(truth, probabilities, groups, names=NAMES, **columns) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            **columns,
            "path": [f"{number:05d}.png" for number in range(len(truth))],
            "group": [f"g{group:04d}" for group in groups],
            "true_class": [names[index] for index in truth],
            "predicted_class": [names[index] for index in probabilities.argmax(1)],
            "confidence": probabilities.max(1),
        }
    )
    return table.assign(**{f"p_{name}": probabilities[:, index] for index, name in enumerate(names)})


def drawn_groups(rng, groups, sharpness=1.0, cells=4):
    """Return truth, probabilities and groups of cells; a group has one class, and is easy or hard."""
    groups_of_cells = np.repeat(np.arange(groups), rng.integers(1, 2 * cells, groups))
    truth = (np.arange(groups) % len(NAMES))[groups_of_cells]
    shared = rng.normal(size=(groups, len(NAMES)))[groups_of_cells]
    logits = 2.5 * np.eye(len(NAMES))[truth] + 1.2 * shared + 0.5 * rng.normal(size=shared.shape)
    return truth, softmax(sharpness * logits), groups_of_cells


def pooled_of(seed=0, groups=240, folds=3, seeds=(0,), sharpness=2.0) -> pd.DataFrame:
    """Return pooled predictions in which a group stands in one fold of each seed."""
    tables = []
    for one in seeds:
        rng = np.random.default_rng([seed, one])
        truth, probabilities, of_group = drawn_groups(rng, groups, sharpness)
        fold = rng.permutation(np.arange(groups) % folds)[of_group]
        tables.append(table_of(truth, probabilities, of_group, seed=one, fold=fold))
    return pd.concat(tables, ignore_index=True)


def calibration_of(temperature=1.5, thresholds=(0.2, None, 0.4)) -> Calibration:
    names = NAMES[: len(thresholds)]
    classes = [ClassThreshold(name, one, 30, 20) for name, one in zip(names, thresholds, strict=True)]
    return Calibration(temperature, tuple(classes), 0.95, 0.6, 0.9, 90, 60)


# --- temperature ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found_again(temperature):
    rng = np.random.default_rng(1)
    logits = 3 * rng.normal(size=(6000, 5))
    truth = np.array([rng.choice(5, p=one) for one in softmax(logits / temperature)])
    found = fit_temperature(softmax(logits), truth)
    assert found == pytest.approx(temperature, rel=0.06)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_no_temperature_of_a_fine_grid_is_likelier(seed):
    rng = np.random.default_rng(seed)
    truth, probabilities, _ = drawn_groups(rng, 40, sharpness=rng.uniform(0.3, 3))
    found = fit_temperature(probabilities, truth)
    grid = np.exp(np.linspace(-2.9, 2.9, 200))

    def loss(temperature):
        return -np.log(softmax(np.log(probabilities) / temperature)[np.arange(len(truth)), truth]).mean()

    losses = [loss(one) for one in grid]
    if found is None:
        assert np.argmin(losses) in (0, len(grid) - 1)
    else:
        assert loss(found) <= min(losses) + 1e-12


def test_where_no_cell_is_wrong_or_confidence_misleads_there_is_no_temperature():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    assert fit_temperature(probabilities, probabilities.argmax(1)) is None
    assert fit_temperature(probabilities, probabilities.argmin(1)) is None


def test_a_true_class_without_any_probability_costs_certainty_and_breaks_nothing():
    probabilities = np.tile([[1.0, 0.0]], (101, 1))
    truth = np.zeros(101, int)
    truth[0] = 1
    found = fit_temperature(probabilities, truth)
    calibrated = calibration_of(found, (0.1, 0.1)).apply(probabilities)
    assert calibrated[:, 0] == pytest.approx(100 / 101)


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_calibrated_probabilities_sum_to_one_keep_their_order_and_compose(seed, one, other):
    raw = np.random.default_rng(seed).dirichlet(np.ones(3), 20) * 0.99 + 0.01 / 3
    calibrated = calibration_of(one).apply(raw)
    assert calibrated.sum(1) == pytest.approx(1)
    np.testing.assert_array_equal(calibrated.argmax(1), raw.argmax(1))
    powers = raw ** (1 / one)
    np.testing.assert_allclose(calibrated, powers / powers.sum(1, keepdims=True), atol=1e-9)
    if min(one, one * other) > 0.3:  # sharper ones fall below the least probability that counts
        twice = calibration_of(other).apply(calibrated)
        np.testing.assert_allclose(twice, calibration_of(one * other).apply(raw), atol=1e-6)


def test_without_a_temperature_probabilities_stay_and_a_note_says_so():
    raw = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    calibration = calibration_of(None)
    np.testing.assert_array_equal(calibration.apply(raw), raw)
    assert any("No temperature" in note for note in calibration.notes)
    assert not any("No temperature" in note for note in calibration_of(1.5).notes)


def test_probabilities_of_other_classes_are_refused():
    with pytest.raises(CalibrationError, match="3 classes and the probabilities are of 4"):
        calibration_of().apply(np.full((2, 4), 0.25))


def test_confidence_calibrated_on_other_groups_is_right_more_nearly_as_often_as_it_says():
    first, second = pooled_of(1, groups=800), pooled_of(2, groups=800)
    raw = second[[f"p_{name}" for name in NAMES]].to_numpy()
    calibrated = fit_calibration(first, NAMES).apply(raw)
    correct = (second["true_class"] == second["predicted_class"]).to_numpy()
    before, after = (metrics.adaptive_calibration_error(one.max(1), correct) for one in (raw, calibrated))
    assert after < before / 2
    before, after = (log_loss(second["true_class"], one, labels=NAMES) for one in (raw, calibrated))
    assert after < before


# --- a whole calibration ---------------------------------------------------------------------------


def test_a_cell_of_a_new_group_is_covered_although_temperature_and_thresholds_share_their_cells():
    rng, covered = np.random.default_rng(5), []
    for _ in range(300):
        truth, probabilities, groups = drawn_groups(rng, 90)
        calibration = fit_calibration(table_of(truth, probabilities, groups), NAMES)
        truth, probabilities, groups = drawn_groups(rng, 30)
        in_set = calibration.sets(calibration.apply(probabilities))
        hit = pd.Series(in_set[np.arange(len(truth)), truth]).groupby(groups).mean()
        covered.append([hit[np.arange(30) % len(NAMES) == index].mean() for index in range(len(NAMES))])
    error = np.std(covered, axis=0) / np.sqrt(len(covered))
    assert (np.mean(covered, axis=0) > 0.95 - 2 * error).all()
    assert (np.mean(covered, axis=0) < 0.95 + 1 / 31 + 2 * error).all()


def test_the_certainty_leaves_the_stated_share_answered():
    table = pooled_of(3)
    calibration = fit_calibration(table, NAMES, coverage=0.8)
    calibrated = calibration.apply(table[[f"p_{name}" for name in NAMES]].to_numpy())
    assert 0.8 <= (~calibration.declines(calibrated)).mean() < 0.8 + 1 / len(table) + 1e-9


def test_cells_and_groups_of_each_class_are_counted_once_however_many_seeds():
    table = pooled_of(0, seeds=(0,))
    twice = pd.concat([table, table.assign(seed=1)], ignore_index=True)
    once, again = fit_calibration(table, NAMES), fit_calibration(twice, NAMES)
    assert [(one.cells, one.groups) for one in again.classes] == [
        ((table["true_class"] == name).sum(), table.loc[table["true_class"] == name, "group"].nunique())
        for name in NAMES
    ]
    assert again.temperature == pytest.approx(once.temperature, rel=1e-5)
    for one, other in zip(once.classes, again.classes, strict=True):
        assert other.threshold == pytest.approx(one.threshold, rel=1e-5)


def test_a_class_of_few_groups_stands_in_every_set_and_a_note_says_so():
    table = pooled_of(4)
    rare = table["true_class"] == "Parabasal"
    kept = table[rare]["group"].unique()[:18]
    calibration = fit_calibration(table[~rare | table["group"].isin(kept)], NAMES)
    assert [one.threshold is None for one in calibration.classes] == [False, False, True]
    (note,) = calibration.notes
    assert note.startswith("Parabasal has 18 calibration groups where 19 are needed")
    calibrated = calibration.apply(table[[f"p_{name}" for name in NAMES]].to_numpy())
    assert calibration.sets(calibrated)[:, 2].all()


# --- as JSON ---------------------------------------------------------------------------------------

shares = st.one_of(st.none(), st.floats(0, 1))
classes = st.lists(
    st.tuples(st.text(), shares, st.integers(0, 9999), st.integers(0, 999)),
    min_size=1,
    unique_by=lambda one: one[0],
)


@given(st.one_of(st.none(), st.floats(0.01, 50)), classes, st.floats(0.01, 0.99), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_a_calibration_comes_back_from_json_as_it_was(temperature, of_classes, level, decline_below):
    thresholds = tuple(ClassThreshold(*one) for one in of_classes)
    calibration = Calibration(temperature, thresholds, level, decline_below, 0.9, 100, 20)
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 0), ("temperature", "1.5"), ("temperature", float("nan")), ("temperature", True),
        ("level", 1), ("level", None), ("classes", []), ("classes", {}), ("decline_below", 1.1),
        ("coverage", 0), ("cells", -1), ("cells", 2.5), ("new", 1),
        ("classes", [{"name": "a", "threshold": 2, "cells": 1, "groups": 1}]),
        ("classes", [{"name": "a", "threshold": 0.5, "cells": 1}]),
        ("classes", 2 * [{"name": "a", "threshold": 0.5, "cells": 1, "groups": 1}]),
    ],
)  # fmt: skip
def test_damaged_values_are_refused_with_the_name_of_the_file(key, value):
    with pytest.raises(CalibrationError, match=r"^model\.pth: .*cross-validate"):
        Calibration.from_json({**calibration_of().to_json(), key: value}, "model.pth")


def test_a_missing_key_and_something_else_altogether_are_refused():
    content = calibration_of().to_json()
    del content["temperature"]
    values: list[Any] = [content, None, [], "text", {"a": object()}]
    for wrong in values:
        with pytest.raises(CalibrationError):
            Calibration.from_json(wrong)


def test_a_file_is_read_from_its_folder_and_a_damaged_one_refused(tmp_path):
    path = tmp_path / CALIBRATION_NAME
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_calibration(path)
    path.write_text(json.dumps({"calibration": calibration_of().to_json()}))
    assert read_calibration(path) == read_calibration(tmp_path) == calibration_of()
    for text in ("{", "[]", "{}", '{"calibration": 1}', "\ud800"):
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with pytest.raises(CalibrationError, match=r"calibration\.json"):
            read_calibration(path)


# --- cross-fitting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", range(3))
def test_a_folds_own_labels_and_probabilities_change_nothing_in_its_calibration(fold):
    pooled = pooled_of(6)
    before = cross_fitted(pooled, NAMES).calibrations
    own, changed = pooled["fold"] == fold, pooled.copy()
    rng = np.random.default_rng(0)
    changed.loc[own, "true_class"] = rng.permutation(pooled.loc[own, "true_class"])
    changed.loc[own, [f"p_{name}" for name in NAMES]] = rng.dirichlet(np.ones(3), own.sum())
    after = cross_fitted(changed, NAMES).calibrations
    assert after[0, fold] == before[0, fold]
    assert all(after[0, other] != before[0, other] for other in range(3) if other != fold)


def test_each_fold_is_calibrated_by_a_fit_of_the_others():
    pooled = pooled_of(7)
    fitted = cross_fitted(pooled, NAMES)
    for fold in range(3):
        calibration = fit_calibration(pooled[pooled["fold"] != fold], NAMES)
        assert calibration.temperature is not None
        own = (pooled["fold"] == fold).to_numpy()
        columns = [f"p_{name}" for name in NAMES]
        raws = pooled.loc[own, columns].to_numpy(float)
        for raw, (_, row) in zip(raws, fitted.table[own].iterrows(), strict=True):
            powers = raw ** (1 / calibration.temperature)
            given_now = powers / powers.sum()
            np.testing.assert_allclose(row[columns].to_numpy(float), given_now)
            held = [
                one.name
                for one, share in zip(calibration.classes, given_now, strict=True)
                if share >= one.threshold
            ]
            assert row["prediction_set"] == " | ".join(held or [row["predicted_class"]])
            assert row["confidence"] == pytest.approx(given_now.max())
            assert row["declined"] == (given_now.max() < calibration.decline_below)


def test_rows_stay_what_and_where_they_are():
    pooled = pooled_of(8, seeds=(0, 1)).sample(frac=1, random_state=0)
    table = cross_fitted(pooled, NAMES).table
    for column in ("seed", "fold", "path", "group", "true_class", "predicted_class"):
        pd.testing.assert_series_equal(table[column], pooled[column])
    assert list(table.columns) == [*pooled.columns, "prediction_set", "declined"]


def test_each_seed_is_fitted_by_itself():
    both = cross_fitted(pooled_of(9, seeds=(0, 1)), NAMES)
    for seed in (0, 1):
        alone = pooled_of(9, seeds=(seed,))
        fitted = cross_fitted(alone, NAMES)
        assert {key: both.calibrations[key] for key in fitted.calibrations} == fitted.calibrations
        rows = both.table[both.table["seed"] == seed].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, fitted.table)


def test_a_group_in_two_folds_of_one_seed_is_refused_unless_the_leak_is_named():
    pooled = pooled_of(0, seeds=(0, 1))  # in two seeds a group may stand in two folds
    cross_fitted(pooled, NAMES)
    group = pooled["group"].value_counts().index[0]
    rows = pooled.index[(pooled["seed"] == 1) & (pooled["group"] == group)]
    pooled.loc[rows[0], "fold"] = (pooled.loc[rows[1], "fold"] + 1) % 3
    with pytest.raises(SplitError, match=f"Seed 1: the group {group} stands in more than one fold"):
        cross_fitted(pooled, NAMES)
    assert len(cross_fitted(pooled, NAMES, allow_leak="field").table) == len(pooled)


def test_one_fold_has_nothing_to_be_calibrated_by():
    with pytest.raises(UsageError, match="two folds or more"):
        cross_fitted(pooled_of(0, folds=1), NAMES)


def test_tiny_data_of_two_folds_say_what_could_not_be_fitted():
    pooled = pooled_of(0, groups=6, folds=2)
    pooled["predicted_class"] = pooled["true_class"]
    hot = np.array([[0.8 if name == true else 0.1 for name in NAMES] for true in pooled["true_class"]])
    pooled[[f"p_{name}" for name in NAMES]] = hot
    fitted = cross_fitted(pooled, NAMES)
    assert set(fitted.table["prediction_set"]) == {" | ".join(NAMES)}
    assert len(fitted.caveats) == len(NAMES) + 1
    assert fitted.caveats[0].startswith("Dyskeratotic: in 2 of 2 fits it had fewer than 19 groups")
    names, statistic = calibration_figures_of_cells(pooled, fitted, NAMES)
    figures = dict(zip(names, statistic(np.ones((1, len(pooled))))[0], strict=True))
    undefined = {name for name, value in figures.items() if np.isnan(value)}
    assert undefined == {name for name in names if name.endswith("_after")}
    assert figures["mean_set_size"] == 3
    assert not cross_fitted(pooled_of(0), NAMES).caveats


# --- figures ---------------------------------------------------------------------------------------


def test_figures_of_sets_are_those_of_a_plain_loop():
    pooled = pooled_of(10, groups=120, folds=2)
    fitted = cross_fitted(pooled, NAMES)
    names, statistic = calibration_figures_of_cells(pooled, fitted, NAMES)
    figures = dict(zip(names, statistic(np.ones((1, len(pooled))))[0], strict=True))
    rows = [
        (
            row["true_class"],
            row["group"],
            row["prediction_set"].split(" | "),
            row["declined"],
            row["predicted_class"],
        )
        for _, row in fitted.table.iterrows()
    ]
    for name in NAMES:
        hits = [(group, name in held) for true, group, held, *_ in rows if true == name]
        assert figures[f"set_coverage, {name}"] == pytest.approx(np.mean([hit for _, hit in hits]))
        of_groups = [
            np.mean([hit for other, hit in hits if other == group]) for group in {one for one, _ in hits}
        ]
        assert figures[f"set_coverage_of_groups, {name}"] == pytest.approx(np.mean(of_groups))
    assert figures["mean_set_size"] == pytest.approx(np.mean([len(held) for _, _, held, *_ in rows]))
    assert figures["sets_of_one_class"] == pytest.approx(np.mean([len(held) == 1 for _, _, held, *_ in rows]))
    answered = [true == called for true, _, _, declined, called in rows if not declined]
    assert figures["answered"] == pytest.approx(len(answered) / len(rows))
    assert figures["accuracy_of_answered"] == pytest.approx(np.mean(answered))
    columns = [f"p_{name}" for name in NAMES]
    for when, table in (("before", pooled), ("after", fitted.table)):
        expected = log_loss(table["true_class"], table[columns].to_numpy(), labels=NAMES)
        assert figures[f"negative_log_likelihood_{when}"] == pytest.approx(expected)


def test_a_group_of_weight_two_is_the_group_drawn_twice():
    pooled = pooled_of(11, groups=60, folds=2)
    fitted = cross_fitted(pooled, NAMES)
    groups, of_cell = np.unique(pooled["group"], return_inverse=True)
    times = np.random.default_rng(0).integers(0, 3, len(groups))[of_cell]
    weighted = calibration_figures_of_cells(pooled, fitted, NAMES)[1](times[None].astype(float))

    rows = np.repeat(np.arange(len(pooled)), times)
    copy = np.concatenate([np.arange(one) for one in times])  # another name for a group's second time
    again = pooled.iloc[rows].assign(group=pooled["group"].iloc[rows] + [f"/{one}" for one in copy])
    drawn = type(fitted)(fitted.table.iloc[rows], fitted.in_set[rows], fitted.calibrations)
    repeated = calibration_figures_of_cells(again, drawn, NAMES)[1](np.ones((1, len(rows))))
    np.testing.assert_allclose(weighted, repeated)


def test_full_coverage_does_not_mean_that_no_cell_is_ever_missed():
    pooled = pooled_of(12)
    figures = {"set_coverage, Parabasal": Estimate(1, 1, 1), "answered": Estimate(1, 1, 1)}
    widened = widened_coverage(figures, pooled, NAMES)
    groups = pooled.loc[pooled["true_class"] == "Parabasal", "group"].nunique()
    assert widened["set_coverage, Parabasal"].low == 1 - metrics.upper_bound_of_none(groups)
    assert widened["answered"] == figures["answered"]
