"""Mixed batches: each image is of itself and its neighbour, and the classes are mixed by the same share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cervicyte.training.mixing import BatchMixing, dominant_class
from cervicyte.training.recipe import Recipe

STEPS = range(30)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Images uint8 [6, 3, 16, 16], each of a class of its own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator), torch.arange(6)


def own_share(shares: Tensor) -> float:
    """Return the share of each image's own class, which is one for the batch; its neighbour's is the rest."""
    share = shares[0, 0].item()
    expected = share * torch.eye(6) + (1 - share) * torch.eye(6).roll(1, 0)
    torch.testing.assert_close(shares, expected)
    return share


def is_cut(mixed: Tensor, images: Tensor) -> bool:
    """Return whether every pixel is that of one image or of the other."""
    return bool(((mixed == images) | (mixed == images.roll(1, 0))).all())


def test_switched_off_nothing_is_done_and_nothing_is_drawn(batch):
    images, targets = batch
    state = torch.get_rng_state()
    mixed, shares = BatchMixing(Recipe(), 6)(images, targets, 0)
    assert mixed is images
    assert shares is targets
    assert torch.equal(torch.get_rng_state(), state)


def test_mixup_lays_images_over_one_another_by_the_share_of_their_classes(batch):
    images, targets = batch
    mixing = BatchMixing(Recipe(mixup_alpha=1.0), 6)
    found = []
    for step in STEPS:
        mixed, shares = mixing(images, targets, step)
        share = own_share(shares)
        expected = share * images.float() + (1 - share) * images.roll(1, 0).float()
        torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-3)
        found.append(share)
    assert min(found) < 0.3
    assert max(found) > 0.7


def test_cutmix_takes_as_many_pixels_as_the_neighbours_class_has_share(batch):
    images, targets = batch
    mixing = BatchMixing(Recipe(cutmix_alpha=1.0), 6)
    for step in STEPS:
        mixed, shares = mixing(images, targets, step)
        assert is_cut(mixed, images)
        foreign = (mixed != images).any(1).float().mean((1, 2))
        torch.testing.assert_close(foreign, torch.full((6,), 1 - own_share(shares)), rtol=0, atol=0.01)


def test_of_both_a_batch_goes_through_one_and_in_time_through_each(batch):
    images, targets = batch
    mixing = BatchMixing(Recipe(mixup_alpha=1.0, cutmix_alpha=1.0), 6)
    cut = []
    for step in STEPS:
        mixed, shares = mixing(images, targets, step)
        share = own_share(shares)
        laid_over = share * images.float() + (1 - share) * images.roll(1, 0).float()
        cut.append(is_cut(mixed, images))
        assert cut[-1] or torch.allclose(mixed, laid_over, rtol=1e-5, atol=1e-3)
    assert 5 < sum(cut) < 25


def test_what_is_drawn_depends_on_seed_and_step_alone(batch):
    images, targets = batch
    recipe = Recipe(mixup_alpha=1.0, cutmix_alpha=1.0)
    mixed, shares = BatchMixing(recipe, 6)(images, targets, 5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = BatchMixing(recipe, 6)(images, targets, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again[0], mixed)
    assert torch.equal(again[1], shares)
    assert not torch.equal(BatchMixing(recipe, 6)(images, targets, 6)[1], shares)
    other_seed = recipe.model_copy(update={"seed": 1})
    assert not torch.equal(BatchMixing(other_seed, 6)(images, targets, 5)[1], shares)


def test_the_dominant_class_is_the_one_of_which_an_image_shows_most():
    assert dominant_class(torch.tensor([2, 0])).tolist() == [2, 0]
    assert dominant_class(torch.tensor([[0.2, 0.8, 0.0], [0.6, 0.0, 0.4]])).tolist() == [1, 0]
