"""Small crops stay small where it is known that they are another laboratory's; else nothing changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cervicyte.errors import FamiliarityError
from cervicyte.evaluation.adaptation import adapted
from cervicyte.evaluation.answers import SECOND_LOOK, UNLIKE, Answerer, answers_for
from cervicyte.evaluation.familiarity import distances_of, fit_familiarity, fit_spaces
from cervicyte.evaluation.features import pooled_features
from cervicyte.evaluation.framing import framed, second_look
from cervicyte.evaluation.predictions import softmax
from cervicyte.explanation.gallery import explain_cells
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.statistics import image_statistics
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.predict import predict
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50

NAMES = ("Koilocytotic", "Parabasal", "Dyskeratotic")
SEEN = Preprocessing(image_size=32)
USUAL_SIDE = 27  # of the model's training cells, 24 x 30 pixels: the geometric mean


def pictures(count, height, width, brightest=256, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, brightest, (height, width, 3)).astype(np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = ModelFile(CBAMResNet50(3).eval(), NAMES, SEEN)
    images = pictures(60, 24, 30)
    features = pooled_features(made.network, np.stack([SEEN(image) for image in images]), SEEN)
    statistics = np.array([image_statistics(image) for image in images])
    spaces = fit_spaces(features, np.arange(60) % 3)
    usual = fit_familiarity(
        spaces, statistics, distances_of(spaces, features), statistics, [str(n) for n in range(60)]
    )
    made.metadata["familiarity"] = usual.to_json()
    made.tensors |= usual.tensors()
    return made


@pytest.fixture(scope="module")
def images():
    """A usual one; three that are too dark: small, large, and small as well."""
    return [*pictures(1, 24, 30), *(pictures(1, *size, 60)[0] for size in ((16, 20), (40, 33), (9, 18)))]


LOOKED_AGAIN = [False, True, False, True]


# --- preprocessing -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (1, 1), (99, 7), (100, 100), (160, 80), (300, 299)])
def test_a_small_image_stays_small_in_the_middle_of_its_border_s_colour(size):
    image = pictures(1, *size)[0]
    seen = Preprocessing(canvas_size=200, image_size=64, least_side=100)
    where = seen.placement(*size)
    expected = max(1, round(size[0] * 200 / max(100, *size)))
    assert where.height == pytest.approx(expected, abs=1)
    canvas = dict(seen.steps(image))["square"]
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    outside = np.ones((200, 200), bool)
    outside[where.top : where.top + where.height, where.left : where.left + where.width] = False
    assert (canvas[outside] == np.median(border, axis=0).round()).all()
    assert abs(where.top - (200 - where.top - where.height)) <= 1
    assert abs(where.left - (200 - where.left - where.width)) <= 1


def test_what_is_larger_keeps_its_scale():
    with_it, without = Preprocessing(least_side=100), Preprocessing()
    assert with_it.placement(140, 90) == without.placement(140, 90)
    assert with_it.placement(70, 90) != without.placement(70, 90)


def test_a_map_lies_on_the_pixels_that_it_is_of():
    seen = Preprocessing(canvas_size=200, image_size=100, least_side=100)
    values = np.zeros((100, 100), np.float32)
    values[45:50, 45:50] = 1  # of the network's input: the quarter above and left of the middle
    laid = seen.onto_original(values, 20, 20)  # which an image of 20 pixels fills a fifth of
    assert laid[5:9, 5:9].min() > 0.99
    assert laid[11:].max() == laid[:, 11:].max() == 0
    assert seen.padding_mask(20, 20).mean() == pytest.approx(1 - 0.2**2, abs=0.01)


def test_images_at_one_scale_anyhow_know_no_least_side():
    image = pictures(1, 50, 40)[0]
    native = Preprocessing(scale="native")
    other = native.model_copy(update={"least_side": 500})
    np.testing.assert_array_equal(native(image), other(image))


# --- who is shown so -----------------------------------------------------------------------------


def test_the_least_side_is_a_usual_training_cell_s(model):
    assert framed(model) == SEEN.model_copy(update={"least_side": USUAL_SIDE}) == second_look(model)


@pytest.mark.parametrize(
    ("changed", "metadata"),
    [
        ({"least_side": 12}, ("familiarity",)),
        ({"scale": "native"}, ("familiarity",)),
        ({}, ()),
        ({}, ("familiarity", "adaptation")),  # what is usual are its laboratory's sizes
    ],
)
def test_a_model_keeps_what_it_has_or_cannot_know(model, changed, metadata):
    seen = SEEN.model_copy(update=changed)
    known = model.metadata | {"adaptation": {}}
    other = replace(model, preprocessing=seen, metadata={name: known[name] for name in metadata})
    assert framed(other) == seen
    assert second_look(other) is None


def test_an_adapted_model_shows_all_images_so_and_looks_once(model):
    new = adapted(model, pictures(10, 12, 15, seed=1))
    assert new.preprocessing.least_side == new.metadata["adaptation"]["least_side"] == USUAL_SIDE
    assert second_look(new) is None
    assert adapted(new, pictures(10, 12, 15, seed=2)).preprocessing.least_side == USUAL_SIDE
    assert adapted(model, pictures(10, 12, 15, seed=1), framing=False).preprocessing.least_side == 0


@pytest.mark.parametrize(
    "usual", [{"other": 1}, {"statistics": {}}, {"statistics": {"size_px": []}}, {"statistics": 3}]
)
def test_what_is_damaged_is_said_in_a_sentence(model, usual):
    with pytest.raises(FamiliarityError, match="is damaged"):
        framed(replace(model, metadata={"familiarity": usual}))


def test_a_model_that_was_adapted_without_knows_only_its_laboratory_s_sizes(model):
    first = adapted(model, pictures(10, 12, 15, seed=1), framing=False)
    assert adapted(first, pictures(10, 12, 15, seed=2)).preprocessing.least_side == 0


# --- a second look -------------------------------------------------------------------------------


def test_only_what_is_small_and_unlike_is_looked_at_again(model, images):
    found = Classifier(model).predict(images)
    assert [one.looked_again for one in found] == LOOKED_AGAIN
    assert [one.verdict in UNLIKE for one in found] == [False, True, True, True]
    assert [SECOND_LOOK in one.sentence for one in found] == LOOKED_AGAIN


def test_class_and_probabilities_are_the_second_look_s_and_the_verdict_the_first_s(model, images):
    once = Classifier(replace(model, metadata=model.metadata | {"adaptation": {}})).predict(images)
    at_their_own_size = replace(model, preprocessing=framed(model), metadata={}, tensors={})
    seen_so = Classifier(at_their_own_size).predict(images)
    for prediction, first, second in zip(Classifier(model).predict(images), once, seen_so, strict=True):
        expected = second if prediction.looked_again else first
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert prediction.class_name == expected.class_name
        assert (prediction.verdict, prediction.unlike) == (first.verdict, first.unlike)
    assert once[1].probabilities != pytest.approx(seen_so[1].probabilities, abs=1e-4)  # it can be told


def test_a_model_with_several_heads_looks_once(model):
    assert second_look(replace(model, metadata=model.metadata | {"heads": [{"name": "own"}]})) is None


def test_every_way_to_an_answer_says_the_same(model, images, tmp_path):
    paths = [tmp_path / f"{place}.png" for place in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    classifier = Classifier(model)
    expected = [list(one.probabilities.values()) for one in classifier.predict(images)]
    predict(classifier, [str(tmp_path)], tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(table[[f"p_{name}" for name in NAMES]], expected, atol=1e-5)
    inputs = np.stack([SEEN(image) for image in images])
    by_torch = answers_for(model, Answerer.of(model), images, inputs)
    np.testing.assert_allclose([list(one.probabilities.values()) for one in by_torch], expected, atol=1e-5)
    assert [one.looked_again for one in by_torch] == LOOKED_AGAIN


@pytest.mark.parametrize("engine", [None, "onnx"])
def test_maps_are_of_the_look_that_gave_the_answer(model, images, engine):
    classifier = Classifier(model, engine=engine)
    layer = classifier.model.layers[-1]
    at_its_own_size = Classifier(
        replace(model, preprocessing=framed(model), metadata={}, tensors={}), engine=engine
    )
    image = images[1]
    prediction = classifier.predict([image])[0]
    expected = at_its_own_size.explain(image, layer=layer, method="grad-cam")
    enlarged = Classifier(replace(model, metadata={}, tensors={})).explain(
        image, layer=layer, method="grad-cam"
    )
    for given in (None, prediction):
        found = classifier.explain(image, layer=layer, method="grad-cam", prediction=given)
        for name in NAMES:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    assert any(not np.allclose(found[name], enlarged[name], atol=1e-4) for name in NAMES)


def test_maps_that_come_with_the_answer_are_of_the_same_look(model, images):
    classifier = Classifier(model, engine="onnx")
    layer = classifier.model.layers[-1]
    for image, (prediction, evidence) in zip(images, classifier.answered(images, evidence=True), strict=True):
        assert evidence is not None
        found = classifier.maps_of(image, evidence, prediction)
        expected = classifier.explain(image, layer=layer, method="grad-cam", prediction=prediction)
        for name in NAMES:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


@pytest.mark.parametrize("engine", [None, "onnx"])
def test_pictures_of_explanations_show_the_look_that_gave_the_answer(model, images, tmp_path, engine):
    paths = [tmp_path / f"{place}.png" for place in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    at_its_own_size = Classifier(replace(model, preprocessing=framed(model), metadata={}, tensors={}))
    enlarged = Classifier(replace(model, metadata={}, tensors={}))
    computes = None if engine is None else Classifier(model, engine=engine).engine
    explain_cells(model, paths, tmp_path / "out", arrays=True, with_verdicts=False, engine=computes)
    for place, (image, again) in enumerate(zip(images, LOOKED_AGAIN, strict=True)):
        (path,) = (tmp_path / "out").glob(f"*/gradcam_*_{place}_*.npz")
        written = np.load(path)
        expected = (at_its_own_size if again else enlarged).probabilities(
            (framed(model) if again else SEEN)(image)[np.newaxis]
        )[0]
        np.testing.assert_allclose(softmax(written["logits"][np.newaxis])[0], expected, atol=1e-5)
        left, top, right, bottom = written["inside"]
        assert (max(right - left, bottom - top) < 32) == again
