"""An image is said to be unlike the training cells as often, and in what, as is stated."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from scipy.stats import norm, ortho_group, percentileofscore
from sklearn.decomposition import PCA

from cervicyte.errors import FamiliarityError
from cervicyte.evaluation.familiarity import (
    FEATURES,
    NOT_A_CELL,
    UNLIKE_RATE,
    WEIGHTS,
    Familiarity,
    distances_of,
    fit_familiarity,
    fit_spaces,
    normal_score,
    percentile_of,
    rarity,
    reason,
)
from cervicyte.evaluation.feature_space import FeatureSpace
from cervicyte.evaluation.features import STAGES, pooled_features
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.statistics import STATISTICS, image_statistics
from cervicyte.network.resnet import CBAMResNet50

USUAL_STATISTICS = {"size_px": 150, "lightness": 160, "background": 220, "redness": 0.05, "focus": -0.5}
SPREAD = {"size_px": 40, "lightness": 20, "background": 10, "redness": 0.04, "focus": 0.3}


def cells(rng, count, size=24, classes=3):
    """Return features [N, size] with a few directions of much variance, classes, and statistics [N, 5]."""
    targets = np.arange(count) % classes
    spread = 1 / np.sqrt(1 + np.arange(size))
    features = 4 * np.eye(size)[targets] + spread * rng.normal(size=(count, size))
    statistics = np.array(list(USUAL_STATISTICS.values())) + rng.normal(size=(count, 5)) * list(
        SPREAD.values()
    )
    return features, targets, statistics


def stages(rng, count, **options):
    """Return features of both stages, classes, and statistics."""
    early, targets, statistics = cells(rng, count, **options)
    return {"stage2": early, "stage4": cells(rng, count, **options)[0]}, targets, statistics


def fit_on(training, reference, groups, **options) -> Familiarity:
    """Fit on features, classes and statistics of training cells, and of reference cells."""
    spaces = fit_spaces(training[0], training[1])
    distances = distances_of(spaces, reference[0])
    return fit_familiarity(spaces, training[2], distances, reference[2], groups, **options)


def fitted(seed=0, training=400, reference=300, groups=150, **options) -> Familiarity:
    rng = np.random.default_rng(seed)
    return fit_on(stages(rng, training), stages(rng, reference), np.arange(reference) % groups, **options)


def usual(**changed) -> np.ndarray:
    return np.array([[{**USUAL_STATISTICS, **changed}[name] for name in STATISTICS]])


def usual_features(far=0.0) -> dict[str, np.ndarray]:
    """Return features of one cell, moved by `far` along a direction in which cells differ little."""
    features = stages(np.random.default_rng(5), 1)[0]
    return {stage: one + far * np.eye(24)[[23]] for stage, one in features.items()}


def unit(features) -> np.ndarray:
    return np.array([one / np.linalg.norm(one) for one in features])


# --- the statistics of an image ------------------------------------------------------------------


def test_statistics_are_what_they_are_called_by_hand():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (40, 90, 3), dtype=np.uint8)
    found = dict(zip(STATISTICS, image_statistics(image), strict=True))
    luminance = np.round(image @ [0.299, 0.587, 0.114])
    red, green, _ = image.reshape(-1, 3).mean(0)
    assert found["size_px"] == pytest.approx(60)
    assert found["lightness"] == pytest.approx(luminance.mean(), abs=0.1)
    assert found["background"] == pytest.approx(np.percentile(luminance, 95), abs=1)
    assert found["redness"] == pytest.approx(np.log10((red + 1) / (green + 1)))
    inside = luminance[1:-1, 1:-1]
    laplacian = luminance[:-2, 1:-1] + luminance[2:, 1:-1] + luminance[1:-1, :-2] + luminance[1:-1, 2:]
    assert found["focus"] == pytest.approx(
        np.log10((laplacian - 4 * inside).var() / luminance.var()), abs=0.03
    )


@given(height=st.integers(1, 30), width=st.integers(1, 30), low=st.integers(0, 255), seed=st.integers(0, 9))
def test_light_and_spread_are_numpys_of_the_same_grey(height, width, low, seed):
    image = np.random.default_rng(seed).integers(low, 256, (height, width, 3), dtype=np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found = dict(zip(STATISTICS, image_statistics(image), strict=True))
    assert found["background"] == pytest.approx(np.percentile(grey, 95), rel=1e-12)
    assert found["lightness"] == pytest.approx(grey.mean(), rel=1e-12)
    edges = cv2.Laplacian(grey, cv2.CV_64F).var() / max(grey.var(), 1)
    assert found["focus"] == pytest.approx(np.log10(max(edges, 1e-6)), abs=1e-9)


# --- the distance of features --------------------------------------------------------------------


def covariance_of(space: FeatureSpace) -> np.ndarray:
    directions = space.directions.astype(float)
    size = directions.shape[1]
    *along, others = space.variances.astype(float)
    within = directions.T @ np.diag(along) @ directions
    return within + others * (np.eye(size) - directions.T @ directions)


def test_the_distance_is_that_of_mahalanobis_to_the_nearest_mean():
    rng = np.random.default_rng(0)
    features, targets, _ = cells(rng, 200)
    space = FeatureSpace.fit(features, targets, directions=8)
    precision = np.linalg.inv(covariance_of(space))
    asked = 3 * rng.normal(size=(20, 24))
    by_hand = [
        min(mahalanobis(one, mean, precision) for mean in space.means.astype(float)) for one in unit(asked)
    ]
    np.testing.assert_allclose(space.distances(asked) * np.sqrt(24), by_hand, rtol=2e-3)


def test_with_one_class_the_space_is_that_of_probabilistic_principal_components():
    features = cells(np.random.default_rng(1), 300, classes=1)[0]
    space = FeatureSpace.fit(features, np.zeros(300, int), directions=5)
    model = PCA(5).fit(unit(features))
    # scikit-learn divides by N - 1.
    by_hand = model.get_covariance() * 299 / 300
    np.testing.assert_allclose(covariance_of(space), by_hand, atol=3e-3 * by_hand.max())
    likelihood = model.score_samples(unit(features))  # a constant less half the squared distance
    squares = 24 * space.distances(features) ** 2
    assert np.corrcoef(likelihood, -squares / 2)[0, 1] > 0.9999


def test_means_and_spread_are_those_within_classes():
    features, targets, _ = cells(np.random.default_rng(2), 600)
    space = FeatureSpace.fit(features, targets, directions=23)
    np.testing.assert_allclose(space.means[1], unit(features)[targets == 1].mean(0), atol=1e-3)
    assert np.sqrt(np.mean(space.distances(features) ** 2)) == pytest.approx(1, abs=0.02)


@given(st.integers(0, 1000), st.floats(0.2, 5))
@settings(max_examples=15, deadline=None)
def test_a_turned_and_scaled_feature_space_gives_the_same_distances(seed, factor):
    rng = np.random.default_rng(seed)
    features, targets, _ = cells(rng, 150, size=10)
    asked = 3 * rng.normal(size=(12, 10))
    turn = factor * ortho_group.rvs(10, random_state=seed)
    plain = FeatureSpace.fit(features, targets, 4).distances(asked)
    moved = FeatureSpace.fit(features @ turn, targets, 4).distances(asked @ turn)
    np.testing.assert_allclose(moved, plain, rtol=0.02)  # half precision


@pytest.mark.parametrize("count", [2, 3, 7])
def test_fewer_cells_than_dimensions_give_finite_distances_that_grow(count):
    features, targets, _ = cells(np.random.default_rng(3), count, size=64)
    space = FeatureSpace.fit(features, targets)
    near, far = space.distances(np.stack([features[0], -features[0]]))
    assert np.isfinite([near, far]).all()
    assert far > near


def test_cells_that_are_all_the_same_give_finite_distances():
    space = FeatureSpace.fit(np.ones((5, 8)), np.zeros(5, int))
    assert np.isfinite(space.distances(np.zeros((2, 8)))).all()


def test_no_cells_and_broken_features_are_refused():
    with pytest.raises(FamiliarityError, match="at least two"):
        FeatureSpace.fit(np.ones((1, 8)), [0])
    with pytest.raises(FamiliarityError, match="finite"):
        FeatureSpace.fit(np.full((4, 8), np.nan), [0, 0, 1, 1])


def test_features_of_another_network_are_refused():
    with pytest.raises(FamiliarityError, match="8 features and the training cells 24"):
        fitted().judge({stage: np.ones((1, 8)) for stage in STAGES}, usual())


def test_what_travels_with_a_real_network_is_small():
    rng = np.random.default_rng(0)
    sizes = {"stage2": 512, "stage4": 2048}
    features = {stage: rng.random((160, size), np.float32) for stage, size in sizes.items()}
    spaces = fit_spaces(features, np.arange(160) % 7)
    held = sum(tensor.nbytes for space in spaces.values() for tensor in space.tensors("").values())
    assert held < 0.75e6


# --- percentiles and scores ----------------------------------------------------------------------


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_percentiles_are_those_of_the_cells(seed):
    rng = np.random.default_rng(seed)
    values = rng.gamma(2, size=3000)
    quantiles = np.percentile(values, range(101))
    asked = rng.gamma(2, size=50)
    by_hand = [percentileofscore(values, one) for one in asked]
    np.testing.assert_allclose(percentile_of(asked, quantiles), by_hand, atol=1)
    # At a quantile itself there is nothing to interpolate.
    np.testing.assert_allclose(percentile_of(quantiles, quantiles), np.arange(101))


def test_beyond_all_cells_the_percentile_is_0_or_100():
    assert list(percentile_of(np.array([-9.0, 999.0]), range(101))) == [0, 100]


def test_scores_of_a_normal_distribution_are_its_standard_deviations_far_beyond_the_cells():
    quantiles = [*norm.ppf(np.arange(1, 100) / 100, 7, 3)]
    quantiles = [quantiles[0] - 2, *quantiles, quantiles[-1] + 2]
    asked = np.array([-4.0, -1.5, 0, 0.7, 2, 4, 10])
    np.testing.assert_allclose(normal_score(7 + 3 * asked, quantiles), asked, atol=0.02)


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_scores_rise_with_the_value_without_a_jump(seed, with_ties):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(size=200)
    quantiles = np.percentile(np.round(values) if with_ties else values, range(101))
    asked = np.linspace(-5, 30, 4000)
    scores = normal_score(asked, quantiles)
    assert (np.diff(scores) >= 0).all()
    if not with_ties:
        assert normal_score(quantiles[[1, 50, 99]], quantiles) == pytest.approx(norm.ppf([0.01, 0.5, 0.99]))


def test_where_all_cells_are_the_same_the_same_is_usual_and_another_is_not():
    alike = [80.0] * 101
    assert normal_score(np.array([80.0]), alike) == pytest.approx(0)
    assert abs(normal_score(np.array([79.0, 81.0]), alike)).min() > 10
    assert percentile_of(np.array([80.0]), alike) == pytest.approx(50)


# --- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_home_cells_are_flagged_as_often_as_is_stated(rate):
    flagged = []
    for seed in range(40):
        familiarity = fitted(seed, training=300, reference=200, groups=200, rate=rate)
        features, _, statistics = stages(np.random.default_rng(seed + 10_000), 500)
        kinds = [judgement.kind for judgement in familiarity.judge(features, statistics)]
        flagged.append(np.mean([kind != "familiar" for kind in kinds]))
    # With 200 groups, between rate - 1/201 and rate on average; and the mean of 40 has its own error.
    assert rate - 0.012 < np.mean(flagged) < rate + 2 * np.std(flagged) / np.sqrt(40)


def test_the_flag_is_set_where_split_conformal_prediction_sets_it():
    """Of n cells on their own, at the ceil((n + 1) (1 - rate))-th least unlike."""
    for count, rate in ((99, 0.02), (100, 0.02), (199, 0.1), (30, 0.02)):
        familiarity = fitted(reference=count, groups=count, rate=rate)
        among = np.array(familiarity.usual.unlikeness)
        place = min(count, int(np.ceil(round((count + 1) * (1 - familiarity.usual.rate), 6))))
        share = 100 * place / count
        assert among[int(np.floor(share - 1e-6))] <= familiarity.usual.unlike_beyond
        assert familiarity.usual.unlike_beyond <= among[int(np.ceil(share))]
        if place == count:
            assert familiarity.usual.unlike_beyond == among[-1]


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_share_of_flagged_cells_is_read_from_what_a_file_holds(seed):
    """As a fit for that share would have set it, but for less than the next of the whole percents."""
    strict, wide = (fitted(seed, reference=400, groups=400, rate=rate) for rate in (0.02, 0.05))
    read = strict.usual.flagging(0.05)
    assert read.rate == 0.05
    among = strict.usual.unlikeness
    assert among[95] <= read.unlike_beyond <= among[96]
    assert among[95] <= wide.usual.unlike_beyond <= among[96]
    assert wide.usual.flagging(0.02) is wide.usual  # a smaller one is not told by whole percents
    old = Familiarity.from_parts(strict.to_json(), strict.tensors())
    assert old.usual.unlike_beyond == read.unlike_beyond < strict.usual.unlike_beyond


def test_one_large_group_of_odd_cells_does_not_move_the_flag():
    rng = np.random.default_rng(0)
    training, (features, _, statistics) = stages(rng, 400), stages(rng, 300)
    statistics[:100] += 6 * np.array(list(SPREAD.values()))
    groups = [0] * 100 + [*range(1, 201)]
    by_group = fit_on(training, (features, None, statistics), groups).usual.unlike_beyond
    by_cell = fit_on(training, (features, None, statistics), range(300)).usual.unlike_beyond
    without = fitted(reference=200, groups=200).usual.unlike_beyond
    assert by_group == pytest.approx(without, abs=0.6)
    assert by_cell > by_group + 2


@pytest.mark.parametrize("each", [2, 8])
def test_cells_of_new_groups_are_flagged_about_as_often_as_is_stated(each):
    flagged = []
    for seed in range(30):
        rng = np.random.default_rng(seed)

        def grouped(rng, count):
            features, targets, statistics = stages(rng, count)
            shift = np.repeat(rng.normal(size=(count // each, 5)), each, 0) * list(SPREAD.values())
            return features, targets, statistics * 0.2 + 0.8 * usual() + shift

        familiarity = fit_on(grouped(rng, 480), grouped(rng, 60 * each), np.arange(60 * each) // each)
        features, _, statistics = grouped(rng, 480)
        flagged.append(np.mean([one.kind != "familiar" for one in familiarity.judge(features, statistics)]))
    # 60 groups of like cells are little more than 60 cells: at worst one group in 61 more.
    assert 0.02 < np.mean(flagged) < UNLIKE_RATE + 1 / 61


def test_a_handful_of_cells_raises_the_stated_rate_and_few_groups_are_said_to_be_rough():
    familiarity = fitted(reference=9, groups=9)
    assert familiarity.usual.rate == pytest.approx(0.1)
    assert any("Only 9 groups" in note and "10 %" in note for note in familiarity.notes)
    assert fitted(reference=300, groups=15).usual.rate == UNLIKE_RATE
    assert "Only 15 groups" in fitted(reference=300, groups=15).notes[0]
    assert not fitted().notes


def test_the_unlike_percentile_is_the_share_of_reference_cells_that_are_less_unlike():
    rng = np.random.default_rng(0)
    training, held_back = stages(rng, 400), stages(rng, 500)
    familiarity = fit_on(training, held_back, np.arange(500))
    unlike = rarity(familiarity.scores(held_back[0], held_back[2])).max(1)
    found = [one.unlike_percentile for one in familiarity.judge(held_back[0], held_back[2])]
    # The reference cells themselves were each judged without their own fold, which moves them a little.
    np.testing.assert_allclose(found, [100 * np.mean(unlike < one) for one in unlike], atol=3)


def test_each_group_counts_once_in_the_unlike_percentile():
    rng = np.random.default_rng(0)
    training, (features, _, statistics) = stages(rng, 400), stages(rng, 300)
    features["stage4"][:200] = features["stage4"][0]  # one group of 200 of the same cell
    features["stage2"][:200] = features["stage2"][0]
    statistics[:200] = usual()
    groups = [0] * 200 + [*range(1, 101)]
    familiarity = fit_on(training, (features, None, statistics), groups)
    others = {stage: one[200:] for stage, one in features.items()}
    found = [one.unlike_percentile for one in familiarity.judge(others, statistics[200:])]
    assert np.median(found) == pytest.approx(50, abs=3)


def test_rarity_is_the_weighed_p_value():
    scores = np.array([[0, 1.0, -2, 3, -4, 1.5]])
    p_values = [2 * norm.sf(abs(one)) for one in scores[0, :5]] + [norm.sf(1.5)]
    np.testing.assert_allclose(10 ** -rarity(scores)[0], p_values / WEIGHTS)
    assert WEIGHTS.sum() == pytest.approx(1)
    assert np.isfinite(rarity(np.full((1, 6), 1e6))).all()


def test_a_usual_cell_is_familiar_and_without_reasons():
    (judgement,) = fitted().judge(usual_features(), usual())
    assert judgement.kind == "familiar"
    assert not judgement.reasons
    assert 1 < judgement.percentiles["size_px"] < 99


@pytest.mark.parametrize(
    ("name", "sign", "words"),
    [
        ("size_px", -1, "smaller than"), ("size_px", 1, "larger than"),
        ("lightness", -1, "darker than"), ("lightness", 1, "lighter than"),
        ("background", -1, "with a darker background than"),
        ("background", 1, "with a brighter background than"),
        ("redness", -1, "stained bluer than"), ("redness", 1, "stained redder than"),
        ("focus", -1, "less sharp than"), ("focus", 1, "sharper or noisier than"),
    ],
)  # fmt: skip
def test_reasons_name_the_statistic_and_the_right_direction(name, sign, words):
    value = USUAL_STATISTICS[name] + sign * 8 * SPREAD[name]
    (judgement,) = fitted().judge(usual_features(), usual(**{name: value}))
    assert judgement.kind == "unlike_training"
    assert judgement.reasons == (f"{words} all of the training cells",)
    assert judgement.percentiles[name] == (0 if sign < 0 else 100)


def test_the_words_agree_with_what_is_done_to_an_image():
    """Paler, bluer, blurred and darker images get the words that a person would use."""
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal((190, 150, 190), 15, (60, 60, 3)), 0, 255).astype(np.uint8)
    plain = dict(zip(STATISTICS, image_statistics(image), strict=True))
    bluer = dict(zip(STATISTICS, image_statistics(image[..., [1, 0, 2]]), strict=True))
    darker = dict(zip(STATISTICS, image_statistics(image // 2), strict=True))
    blurred = np.repeat(np.repeat(image[::4, ::4], 4, 0), 4, 1)
    softer = dict(zip(STATISTICS, image_statistics(blurred), strict=True))
    assert bluer["redness"] < plain["redness"]
    assert darker["lightness"] < plain["lightness"]
    assert darker["background"] < plain["background"]
    assert softer["focus"] < plain["focus"]


def test_the_strongest_reason_comes_first():
    changed = {"size_px": USUAL_STATISTICS["size_px"] - 6 * SPREAD["size_px"], "redness": 2.0}
    (judgement,) = fitted().judge(usual_features(), usual(**changed))
    assert [one.split(" than")[0] for one in judgement.reasons] == ["stained redder", "smaller"]


def test_strange_features_are_a_reason_and_very_strange_ones_are_no_cell():
    familiarity = fitted()
    judged = [familiarity.judge(usual_features(far), usual())[0] for far in (0, 1.2, 40)]
    assert [one.kind for one in judged] == ["familiar", "unlike_training", "not_a_cell"]
    assert judged[2].reasons == ("the network has seen nothing like it",)
    assert judged[2].percentiles[FEATURES] == 100
    assert familiarity.scores(usual_features(40), usual())[0, -1] > NOT_A_CELL


def test_unusually_plain_features_are_no_reason():
    """The nearest to a class mean are as unusual as the farthest, but nothing to warn of."""
    familiarity = fitted()
    means = {stage: space.means[:1].astype(float) for stage, space in familiarity.spaces.items()}
    assert familiarity.scores(means, usual())[0, -1] < -2
    assert familiarity.judge(means, usual())[0].kind == "familiar"


def test_of_a_flagged_image_other_unusual_statistics_are_named_too():
    paler = USUAL_STATISTICS["lightness"] + 2.45 * SPREAD["lightness"]
    familiarity = fitted()
    assert not familiarity.judge(usual_features(), usual(lightness=paler))[0].reasons
    strange, pale = familiarity.judge(usual_features(40), usual(lightness=paler))[0].reasons
    assert strange == "the network has seen nothing like it"
    assert pale == "lighter than 99 % of the training cells"


def test_a_share_is_never_rounded_up():
    assert reason("size_px", 99.97) == "larger than 99 % of the training cells"
    assert reason("size_px", 0.4) == "smaller than 99 % of the training cells"
    assert reason("size_px", 0.0) == "smaller than all of the training cells"


# --- round trip ----------------------------------------------------------------------------------


def test_what_is_written_and_read_judges_the_same():
    familiarity = fitted()
    content = json.loads(json.dumps(familiarity.to_json()))
    again = Familiarity.from_parts(content, {**familiarity.tensors(), "fc.weight": torch.zeros(2)})
    features, _, statistics = stages(np.random.default_rng(9), 50)
    assert again.judge(features, 2 * statistics) == familiarity.judge(features, 2 * statistics)
    assert again.usual == familiarity.usual


def test_what_is_written_is_a_copy():
    familiarity = fitted()
    familiarity.tensors()["familiarity.stage2.means"].zero_()
    assert familiarity.spaces["stage2"].means.any()


@pytest.mark.parametrize(
    "damage",
    [
        {"rate": 0}, {"unlike_beyond": "far"}, {"features": [1.0] * 100}, {"unknown": 1},
        {"unlikeness": [*range(100), 5.0]}, {"distances": {}}, {"statistics": {}}, {"training_cells": "many"},
    ],
)  # fmt: skip
def test_a_damaged_description_is_refused_and_the_file_named(damage):
    familiarity = fitted()
    with pytest.raises(FamiliarityError, match=r"model\.safetensors: .*; fit it anew"):
        Familiarity.from_parts(
            {**familiarity.to_json(), **damage}, familiarity.tensors(), "model.safetensors"
        )
    with pytest.raises(FamiliarityError):
        Familiarity.from_parts(None, familiarity.tensors())


@pytest.mark.parametrize(
    "damage",
    [
        {"means": torch.zeros(3, 9, dtype=torch.float16)}, {"directions": torch.zeros(23, 24)},
        {"variances": torch.zeros(24)}, {"variances": torch.ones(4)},
        {"means": torch.full((3, 24), torch.nan, dtype=torch.float16)},
    ],
)  # fmt: skip
def test_damaged_tensors_are_refused(damage):
    familiarity = fitted()
    tensors = {**familiarity.tensors(), **{f"familiarity.stage4.{name}": one for name, one in damage.items()}}
    with pytest.raises(FamiliarityError, match="tensors"):
        Familiarity.from_parts(familiarity.to_json(), tensors)


def test_a_missing_tensor_is_named():
    familiarity = fitted()
    tensors = familiarity.tensors()
    del tensors["familiarity.stage4.variances"]
    with pytest.raises(FamiliarityError, match=r"lacks the tensor familiarity\.stage4\.variances"):
        Familiarity.from_parts(familiarity.to_json(), tensors)


def test_statistics_of_another_number_and_no_cells_are_refused():
    familiarity = fitted()
    with pytest.raises(FamiliarityError, match="5 each"):
        familiarity.judge(usual_features(), np.ones((1, 4)))
    distances = dict.fromkeys(STAGES, np.ones(3))
    with pytest.raises(FamiliarityError, match="too few"):
        fit_familiarity(familiarity.spaces, np.ones((0, 5)), distances, np.ones((3, 5)), ["a", "b", "c"])


@pytest.mark.parametrize("reference", [1, 2, 5])
def test_a_handful_of_cells_does_not_break_anything(reference):
    rng = np.random.default_rng(0)
    training, held_back, asked = (stages(rng, count, size=40) for count in (4, reference, 6))
    familiarity = fit_on(training, held_back, range(reference))
    for judgement in familiarity.judge(asked[0], asked[2]):
        assert np.isfinite([judgement.unlike_percentile, *judgement.percentiles.values()]).all()


# --- features of a network -----------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["stage", "block", "none"])
def test_pooled_features_are_what_the_network_computes_on_its_way_to_the_logits(placement):
    torch.manual_seed(0)
    network = CBAMResNet50(3, placement).eval()
    preprocessing = Preprocessing(canvas_size=32, image_size=32)
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    found = pooled_features(network, images, preprocessing)
    second = network.cbam2 if placement == "stage" else network.layer2
    seen = []
    hooks = [
        second.register_forward_hook(lambda _, __, output: seen.append(output.mean((2, 3)))),
        network.avgpool.register_forward_hook(lambda _, __, output: seen.append(output.flatten(1))),
    ]
    with torch.inference_mode():
        logits = network(torch.from_numpy(preprocessing.normalise(images)))
        again = network.fc(torch.from_numpy(found["stage4"]))
    for hook in hooks:
        hook.remove()
    for stage, by_hook in zip(STAGES, seen, strict=True):
        np.testing.assert_allclose(found[stage], by_hook.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(again, logits, rtol=1e-3, atol=1e-4)
    assert [one.shape[1] for one in found.values()] == [512, 2048]
