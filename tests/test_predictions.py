"""A model's answers, for an image as it lies and for all the ways in which it could lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cervicyte.evaluation.predictions import logits_of, softmax
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50


@pytest.fixture(scope="module")
def model() -> ModelFile:
    torch.manual_seed(0)
    network = CBAMResNet50(3)
    torch.nn.init.normal_(network.fc.weight)  # answers far enough apart to be told from one another
    return ModelFile(network, ("a", "b", "c"), Preprocessing(image_size=32, canvas_size=32))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def eight_views(images: np.ndarray) -> list[np.ndarray]:
    seen = (images, images[:, :, ::-1])
    return [np.rot90(one, turns, axes=(1, 2)).copy() for one in seen for turns in range(4)]


def test_with_flips_the_answer_is_the_mean_probability_of_the_eight_views(model, images):
    of_views = np.stack([softmax(logits_of(model, view)) for view in eight_views(images)])
    assert of_views.std(0).max() > 0.01, "the views are answered differently"
    np.testing.assert_allclose(
        softmax(logits_of(model, images, flips=True)), of_views.mean(0), rtol=1e-4, atol=1e-7
    )


def test_with_flips_the_answer_does_not_depend_on_how_the_image_lies(model, images):
    expected = logits_of(model, images, flips=True)
    for view in eight_views(images)[1:]:
        np.testing.assert_allclose(logits_of(model, view, flips=True), expected, rtol=1e-4, atol=1e-5)


def test_a_class_that_every_view_excludes_still_has_a_finite_logit(model, images):
    sure = torch.nn.Linear(2048, 3)
    torch.nn.init.zeros_(sure.weight)
    with torch.no_grad():
        sure.bias.copy_(torch.tensor([0.0, 400.0, -400.0]))
    network = CBAMResNet50(3)
    network.fc = sure
    certain = ModelFile(network, model.class_names, model.preprocessing)
    logits = logits_of(certain, images, flips=True)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[:, 1] - logits[:, 2], 800, rtol=1e-5)
