"""An image is said to be unlike the training cells as often, and in what, as is stated."""

from __future__ import annotations

import json

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
    Familiarity,
    fit_familiarity,
    normal_score,
    percentile_of,
    reason,
)
from cervicyte.evaluation.feature_space import FeatureSpace
from cervicyte.evaluation.features import pooled_features
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


def fitted(seed=0, training=400, reference=300, groups=150, directions=8, **options) -> Familiarity:
    rng = np.random.default_rng(seed)
    features, targets, statistics = cells(rng, training)
    space = FeatureSpace.fit(features, targets, directions)
    held_back, _, of_held_back = cells(rng, reference)
    return fit_familiarity(
        space, statistics, space.distances(held_back), of_held_back, np.arange(reference) % groups, **options
    )


def usual(**changed) -> np.ndarray:
    return np.array([[{**USUAL_STATISTICS, **changed}[name] for name in STATISTICS]])


def usual_features(size=24) -> np.ndarray:
    return cells(np.random.default_rng(5), 1, size)[0]


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
    by_hand = [min(mahalanobis(one, mean, precision) for mean in space.means.astype(float)) for one in asked]
    np.testing.assert_allclose(space.distances(asked) * np.sqrt(24), by_hand, rtol=2e-3)


def test_with_one_class_the_space_is_that_of_probabilistic_principal_components():
    features = cells(np.random.default_rng(1), 300, classes=1)[0]
    space = FeatureSpace.fit(features, np.zeros(300, int), directions=5)
    model = PCA(5).fit(features)
    # scikit-learn divides by N - 1.
    np.testing.assert_allclose(covariance_of(space), model.get_covariance() * 299 / 300, atol=3e-3)
    likelihood = model.score_samples(features)  # a constant less half the squared distance
    squares = 24 * space.distances(features) ** 2
    assert np.corrcoef(likelihood, -squares / 2)[0, 1] > 0.9999


def test_means_and_spread_are_those_within_classes():
    features, targets, _ = cells(np.random.default_rng(2), 600)
    space = FeatureSpace.fit(features, targets, directions=23)
    np.testing.assert_allclose(space.means[1], features[targets == 1].mean(0), atol=2e-3)
    assert np.sqrt(np.mean(space.distances(features) ** 2)) == pytest.approx(1, abs=0.02)


@given(st.integers(0, 1000), st.floats(0.2, 5))
@settings(max_examples=15, deadline=None)
def test_a_turned_shifted_and_scaled_feature_space_gives_the_same_distances(seed, factor):
    rng = np.random.default_rng(seed)
    features, targets, _ = cells(rng, 150, size=10)
    asked = 3 * rng.normal(size=(12, 10))
    turn, shift = ortho_group.rvs(10, random_state=seed), rng.normal(size=10)
    plain = FeatureSpace.fit(features, targets, 4).distances(asked)
    moved = FeatureSpace.fit(factor * features @ turn + shift, targets, 4).distances(
        factor * asked @ turn + shift
    )
    np.testing.assert_allclose(moved, plain, rtol=0.02)  # half precision


@pytest.mark.parametrize("count", [2, 3, 7])
def test_fewer_cells_than_dimensions_give_finite_distances_that_grow(count):
    features, targets, _ = cells(np.random.default_rng(3), count, size=64)
    space = FeatureSpace.fit(features, targets)
    near, far = space.distances(np.stack([features[0], features[0] + 5]))
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
        fitted().judge(np.ones((1, 8)), usual())


def test_a_space_of_a_real_network_is_small():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 2048)).astype(np.float32)
    space = FeatureSpace.fit(features, np.arange(200) % 7)
    assert sum(tensor.nbytes for tensor in space.tensors().values()) < 600_000


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
        features, _, statistics = cells(np.random.default_rng(seed + 10_000), 500)
        kinds = [judgement.kind for judgement in familiarity.judge(features, statistics)]
        flagged.append(np.mean([kind != "familiar" for kind in kinds]))
    # With 200 groups, between rate - 1/201 and rate on average, if cells are exchangeable.
    assert rate - 0.012 < np.mean(flagged) < rate + 0.007


def test_groups_of_like_cells_are_not_taken_for_many_witnesses():
    """Counting cells flags more of the cells of new groups than is stated."""
    rates = {"by group": [], "by cell": []}
    for seed in range(60):
        rng = np.random.default_rng(seed)

        def grouped(rng, groups, each):
            features, targets, statistics = cells(rng, groups * each)
            shift = np.repeat(rng.normal(size=(groups, 5)), each, 0) * list(SPREAD.values())
            return features, targets, statistics * 0.2 + 0.8 * usual() + shift

        features, targets, statistics = grouped(rng, 60, 8)
        space = FeatureSpace.fit(features, targets, 8)
        held_back, _, of_held_back = grouped(rng, 25, 8)
        new, _, of_new = grouped(rng, 60, 8)
        for name, groups in (("by group", np.repeat(np.arange(25), 8)), ("by cell", np.arange(200))):
            familiarity = fit_familiarity(
                space, statistics, space.distances(held_back), of_held_back, groups, rate=0.04
            )
            judged = familiarity.judge(new, of_new)
            rates[name].append(np.mean([one.kind != "familiar" for one in judged]))
    assert np.mean(rates["by group"]) < 0.045
    assert np.mean(rates["by cell"]) > 0.05


def test_too_few_groups_raise_the_stated_rate_and_a_note_says_so():
    familiarity = fitted(reference=30, groups=9)
    assert familiarity.usual.rate == pytest.approx(0.1)
    assert any("Only 9 groups" in note and "10 %" in note for note in familiarity.notes)
    assert not fitted().notes


def test_the_unlike_percentile_is_the_share_of_reference_cells_that_are_less_unlike():
    rng = np.random.default_rng(0)
    features, targets, statistics = cells(rng, 400)
    space = FeatureSpace.fit(features, targets, 8)
    held_back, _, of_held_back = cells(rng, 500)
    familiarity = fit_familiarity(space, statistics, space.distances(held_back), of_held_back, np.arange(500))
    largest = familiarity.scores(held_back, of_held_back).max(1)
    found = [one.unlike_percentile for one in familiarity.judge(held_back, of_held_back)]
    by_hand = [100 * np.mean(largest < one) for one in largest]
    np.testing.assert_allclose(found, by_hand, atol=1.01)


def test_each_group_counts_once_in_the_unlike_percentile():
    rng = np.random.default_rng(0)
    features, targets, statistics = cells(rng, 400)
    space = FeatureSpace.fit(features, targets, 8)
    held_back, _, of_held_back = cells(rng, 300)
    of_held_back[:200] = usual()  # one group of 200 that are as usual as can be
    groups = [0] * 200 + [*range(1, 101)]
    familiarity = fit_familiarity(space, statistics, space.distances(held_back), of_held_back, groups)
    others = familiarity.judge(held_back[200:], of_held_back[200:])
    assert np.median([one.unlike_percentile for one in others]) == pytest.approx(50, abs=3)


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
    direction = np.eye(24)[[23]]
    kinds = [familiarity.judge(usual_features() + far * direction, usual())[0] for far in (0, 2.2, 1000)]
    assert [one.kind for one in kinds] == ["familiar", "unlike_training", "not_a_cell"]
    assert kinds[2].reasons == ("the network has seen nothing like it",)
    assert kinds[2].percentiles[FEATURES] == 100


def test_a_share_is_never_rounded_up():
    assert reason("size_px", 99.97) == "larger than 99 % of the training cells"
    assert reason("size_px", 0.4) == "smaller than 99 % of the training cells"
    assert reason("size_px", 0.0) == "smaller than all of the training cells"


# --- round trip ----------------------------------------------------------------------------------


def test_what_is_written_and_read_judges_the_same():
    familiarity = fitted()
    content = json.loads(json.dumps(familiarity.to_json()))
    again = Familiarity.from_parts(content, {**familiarity.tensors(), "fc.weight": torch.zeros(2)})
    features, _, statistics = cells(np.random.default_rng(9), 50)
    assert again.judge(features, 2 * statistics) == familiarity.judge(features, 2 * statistics)
    assert again.usual == familiarity.usual


def test_what_is_written_is_a_copy():
    familiarity = fitted()
    familiarity.tensors()["familiarity.means"].zero_()
    assert familiarity.space.means.any()


@pytest.mark.parametrize(
    "damage",
    [
        {"rate": 0}, {"unlike_beyond": -1.0}, {"distances": [1.0] * 100}, {"unknown": 1},
        {"distances": [*range(100), 5.0]}, {"statistics": {}}, {"training_cells": "many"},
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
        {"means": torch.zeros(3, 9, dtype=torch.float16)}, {"directions": torch.zeros(8, 24)},
        {"variances": torch.zeros(9)}, {"variances": torch.ones(4)},
        {"means": torch.full((3, 24), torch.nan, dtype=torch.float16)},
    ],
)  # fmt: skip
def test_damaged_tensors_are_refused(damage):
    familiarity = fitted()
    tensors = {**familiarity.tensors(), **{f"familiarity.{name}": one for name, one in damage.items()}}
    with pytest.raises(FamiliarityError, match="tensors"):
        Familiarity.from_parts(familiarity.to_json(), tensors)


def test_a_missing_tensor_is_named():
    tensors = fitted().tensors()
    del tensors["familiarity.variances"]
    with pytest.raises(FamiliarityError, match=r"lacks the tensor familiarity\.variances"):
        FeatureSpace.from_tensors(tensors)


def test_statistics_of_another_number_and_no_cells_are_refused():
    familiarity = fitted()
    with pytest.raises(FamiliarityError, match="5 each"):
        familiarity.judge(usual_features(), np.ones((1, 4)))
    with pytest.raises(FamiliarityError, match="too few"):
        fit_familiarity(familiarity.space, np.ones((0, 5)), np.ones(3), np.ones((3, 5)), ["a", "b", "c"])


@pytest.mark.parametrize("reference", [1, 2, 5])
def test_a_handful_of_cells_does_not_break_anything(reference):
    rng = np.random.default_rng(0)
    features, targets, statistics = cells(rng, 6, size=40)
    space = FeatureSpace.fit(features[:4], targets[:4])
    familiarity = fit_familiarity(
        space,
        statistics[:4],
        space.distances(features[:reference]),
        statistics[:reference],
        [*range(reference)],
    )
    for judgement in familiarity.judge(features, statistics):
        assert np.isfinite([judgement.unlike_percentile, *judgement.percentiles.values()]).all()


# --- features of a network -----------------------------------------------------------------------


def test_pooled_features_are_what_the_last_layer_answers_from():
    torch.manual_seed(0)
    network = CBAMResNet50(3).eval()
    preprocessing = Preprocessing(canvas_size=32, image_size=32)
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    found = pooled_features(network, images, preprocessing)
    seen = []
    hook = network.avgpool.register_forward_hook(lambda _, __, output: seen.append(output.flatten(1)))
    with torch.inference_mode():
        network(torch.from_numpy(preprocessing.normalise(images)))
    hook.remove()
    np.testing.assert_allclose(found, seen[0].numpy(), rtol=1e-3, atol=1e-4)
    assert found.shape == (3, 2048)
