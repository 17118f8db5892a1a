"""A loaded model: its answers are the evaluation's, its maps lie on the original's pixels."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cervicyte.errors import ModelFileError, UsageError
from cervicyte.evaluation.predictions import logits_of, softmax
from cervicyte.explanation import cam
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.inference import classifier as inference
from cervicyte.inference.classifier import Classifier
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import CBAMResNet50

CLASSES = ("Parabasal", "Koilocytotic", "Metaplastic")  # not in alphabetical order, on purpose


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "best_model.pth"
    save_model(path, ModelFile(CBAMResNet50(3), CLASSES, Preprocessing(image_size=64)))
    return path


@pytest.fixture(scope="module")
def classifier(model_path) -> Classifier:
    return Classifier.from_file(model_path, device="cpu")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 90), (70, 30), (64, 64))]


def test_predictions_are_those_of_the_evaluation(classifier, model_path, images):
    model = load_model_file(model_path)
    expected = softmax(logits_of(model, np.stack([model.preprocessing(image) for image in images])))
    for prediction, row in zip(classifier.predict(images), expected, strict=True):
        assert tuple(prediction.probabilities) == CLASSES
        np.testing.assert_allclose(list(prediction.probabilities.values()), row, atol=1e-5)
        assert prediction.class_name == CLASSES[row.argmax()]
        assert prediction.confidence == max(prediction.probabilities.values())
        assert sum(prediction.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("cell.png", "a str;"),
        (["cell.png"], "a str in it"),
        ([Path("cell.png")], "Path in it"),
        ([Image.new("RGB", (4, 4))], "an? Image in it"),
        (np.zeros((9, 8, 3), np.uint8), r"one array uint8 \[9, 8, 3\]"),
        ([np.zeros((9, 8), np.uint8)], r"uint8 \[9, 8\] in it"),
        ([np.zeros((9, 8, 3))], r"float64 \[9, 8, 3\] in it"),
    ],
)
def test_what_is_no_list_of_images_is_refused_with_what_is_needed(classifier, given, said):
    with pytest.raises(UsageError, match=said) as error:
        classifier.predict(given)
    assert "uint8 arrays [H, W, 3]" in str(error.value)
    assert "read_image" in str(error.value)


def test_a_cell_is_answered_alike_alone_and_in_batches(classifier, images, monkeypatch):
    alone = [classifier.predict([image])[0] for image in images]
    monkeypatch.setattr(inference, "BATCH", 2)
    for one, other in zip(alone, classifier.predict(images), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_no_images_have_no_predictions(classifier):
    assert classifier.predict([]) == []


def test_a_prediction_cannot_be_changed(classifier, images):
    with pytest.raises(dataclasses.FrozenInstanceError):
        classifier.predict(images[:1])[0].confidence = 1.0


def test_maps_lie_on_the_originals_pixels_in_the_order_asked_for(classifier, images):
    image = images[0]
    asked = ("Metaplastic", "Parabasal")
    found = classifier.explain(image, asked, layer="layer3", method="grad-cam")
    assert tuple(found) == asked
    preprocessing, network = classifier.model.preprocessing, classifier.model.network
    batch = torch.from_numpy(preprocessing.normalise(preprocessing(image)[np.newaxis]))
    for name, values in found.items():
        expected = cam.grad_cam(network, batch, "layer3", CLASSES.index(name))[0, 0].numpy()
        assert values.shape == image.shape[:2]
        assert values.dtype == np.float32
        assert values.max() > 0
        np.testing.assert_allclose(
            values, preprocessing.onto_original(expected, *image.shape[:2]), rtol=1e-3, atol=1e-6
        )


def test_every_class_is_explained_at_the_last_layer_unless_told_otherwise(classifier, images):
    plain, explicit = (
        classifier.explain(images[1]),
        classifier.explain(images[1], CLASSES, cam.DEFAULT_LAYER, cam.DEFAULT_METHOD),
    )
    assert tuple(plain) == CLASSES
    for name in CLASSES:
        np.testing.assert_allclose(plain[name], explicit[name], rtol=1e-5)


def test_a_network_without_attention_is_explained_too(images):
    model = ModelFile(CBAMResNet50(3, "none"), CLASSES, Preprocessing(image_size=64))
    assert Classifier(model).explain(images[0], ["Parabasal"])["Parabasal"].shape == images[0].shape[:2]


def test_answers_leave_nothing_behind_in_the_network(classifier, images):
    network = classifier.model.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    classifier.predict(images)
    classifier.explain(images[0])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_threads_are_answered_as_one_after_another_would_be(classifier, images):
    def ask(image: np.ndarray) -> tuple[list[float], np.ndarray]:
        return list(classifier.predict([image])[0].probabilities.values()), classifier.explain(image)[
            "Parabasal"
        ]

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(ask, images * 4))
    for (probabilities, values), image in zip(together, images * 4, strict=True):
        alone_probabilities, alone_values = ask(image)
        np.testing.assert_allclose(probabilities, alone_probabilities, atol=1e-6)
        np.testing.assert_allclose(values, alone_values, rtol=1e-4, atol=1e-7)


def test_what_is_not_there_is_named(classifier, images, model_path, tmp_path):
    with pytest.raises(UsageError, match=r"no class 'Endocervical'; choose from Parabasal, Koilocytotic"):
        classifier.explain(images[0], ["Endocervical"])
    preprocessed = classifier.model.preprocessing(images[0])
    for wrong, said in (
        (("Endocervical",), "no class 'Endocervical'"),
        (("Parabasal", "cbam9"), "no layer 'cbam9'"),
        (("Parabasal", "layer4", "guess"), "no explanation method 'guess'"),
    ):
        with pytest.raises(UsageError, match=said):
            classifier.judge(preprocessed, *wrong)
    with pytest.raises(UsageError, match="no device 'abacus' here"):
        Classifier.from_file(model_path, device="abacus")
    with pytest.raises(ModelFileError, match=r"none\.pth: no such model file"):
        Classifier.from_file(tmp_path / "none.pth")
