"""The loss: worked by hand, and equal to PyTorch's where PyTorch has it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from cervicyte.errors import RecipeError
from cervicyte.training.loop import LabelledImages, train
from cervicyte.training.loss import classification_loss, cost_of_classes
from cervicyte.training.recipe import Recipe

SIPAKMED = ("Dyskeratotic", "Koilocytotic", "Metaplastic", "Parabasal", "Superficial-Intermediate")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [7, 4], targets [7] and class weights [4], in float64."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(7, 4, dtype=torch.float64, generator=generator)
    return (
        logits,
        torch.tensor([0, 1, 2, 3, 1, 1, 0]),
        torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=torch.float64),
    )


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(loss="focal", focal_gamma=0)])
def test_cross_entropy_and_focal_loss_of_gamma_0_are_pytorchs_bit_for_bit(batch, recipe):
    logits, targets, weights = (one.float() if one.is_floating_point() else one for one in batch)
    expected = functional.cross_entropy(logits, targets, weight=weights, label_smoothing=0.05)
    assert torch.equal(classification_loss(logits, targets, weights, recipe), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_focal_loss_is_its_formula_summed_over_cells_and_classes(batch, smoothing):
    logits, targets, weights = batch
    recipe = Recipe(loss="focal", focal_gamma=1.5, label_smoothing=smoothing)
    loss, weight_of_batch = 0.0, 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        for index, value in enumerate(row):
            p = math.exp(value) / total
            wanted = (1 - smoothing) * (index == target) + smoothing / 4
            loss -= weights[index].item() * wanted * (1 - p) ** 1.5 * math.log(p)
        weight_of_batch += weights[target].item()
    found = classification_loss(logits, targets, weights, recipe)
    assert found.item() == pytest.approx(loss / weight_of_batch, rel=1e-9)


def test_a_cell_told_with_certainty_weighs_less_in_the_focal_loss():
    logits, targets, even = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]), torch.ones(2)
    focal, plain = (
        torch.cat([classification_loss(row[None], targets[:1], even, recipe)[None] for row in logits])
        for recipe in (Recipe(loss="focal", label_smoothing=0), Recipe(label_smoothing=0))
    )
    doubtful, certain = (focal / plain).tolist()
    assert doubtful == pytest.approx(0.25, rel=1e-5)  # (1 - 1/2)^2
    assert certain == pytest.approx((1 / (1 + math.exp(3))) ** 2, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_that_are_all_of_one_class_are_as_good_as_its_index(batch, smoothing):
    logits, targets, weights = batch
    shares = functional.one_hot(targets, 4).double()
    for loss in ("cross_entropy", "focal"):
        recipe = Recipe(loss=loss, label_smoothing=smoothing)
        of_shares, of_indices = (
            classification_loss(logits, wanted, weights, recipe) for wanted in (shares, targets)
        )
        torch.testing.assert_close(of_shares, of_indices, rtol=1e-12, atol=0)


def test_mixed_shares_are_pytorchs_cross_entropy_of_probabilities(batch):
    logits, _, _ = batch
    shares = torch.rand(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares /= shares.sum(1, keepdim=True)
    found = classification_loss(logits, shares, torch.ones(4, dtype=torch.float64), Recipe())
    torch.testing.assert_close(found, functional.cross_entropy(logits, shares, label_smoothing=0.05))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_loss_of_a_saturated_network_still_has_a_gradient(gamma):
    logits = torch.tensor([[200.0, 0.0, -200.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    recipe = Recipe(loss="focal", focal_gamma=gamma)
    classification_loss(logits, torch.tensor([0, 0]), torch.ones(3), recipe).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1, 0] < 0, "the missed class is still pulled up"


def test_only_errors_on_abnormal_cells_cost_more():
    assert cost_of_classes(SIPAKMED, 4).tolist() == [4, 4, 1, 1, 1]
    assert cost_of_classes(("Columnar", "Carcinoma in situ"), 2.5).tolist() == [1, 2.5]
    assert cost_of_classes(("cat", "dog"), 1).tolist() == [1, 1]


def test_with_a_dearer_class_the_most_probable_class_is_the_cheapest_to_name():
    # Of many cells that look the same, 30 % are abnormal: the best constant answer by each loss.
    targets = torch.tensor([0] * 3 + [1] * 7)
    weights = cost_of_classes(("Dyskeratotic", "Parabasal"), 4)
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=100)

    def closure():
        optimiser.zero_grad()
        loss = classification_loss(logits.expand(10, 2), targets, weights.double(), Recipe(label_smoothing=0))
        loss.backward()
        return loss

    optimiser.step(closure)
    # To call them normal costs 0.3 x 4 a cell, to call them abnormal 0.7: a share of 1.2 / 1.9.
    assert logits.softmax(0)[0].item() == pytest.approx(1.2 / 1.9, rel=1e-4)


def test_a_cost_of_classes_that_nobody_has_grouped_is_refused_before_anything_is_written(tmp_path):
    cells = LabelledImages(np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 1, 0, 1]))
    with pytest.raises(
        RecipeError, match=r"missed_abnormal_cost = 4: whether the class Cat .* leave"
    ) as refused:
        train(Recipe(missed_abnormal_cost=4), cells, cells, ("Cat", "Parabasal"), tmp_path)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())
