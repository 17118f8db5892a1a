"""Images of a batch mixed with one another: mixup and CutMix, torchvision's, on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from cervicyte.training.cells import draw_seed
from cervicyte.training.recipe import Recipe


class BatchMixing:
    """Mixes each batch by mixup or by CutMix, whichever are switched on; of both, by one at random.

    Mixup lays two images over one another (Zhang et al., "mixup: Beyond empirical risk minimization",
    ICLR 2018); CutMix puts a rectangle of one into the other (Yun et al., ICCV 2019). The classes are
    mixed by the same share, drawn from Beta(alpha, alpha). What is drawn depends on (seed, step) alone.
    """

    def __init__(self, recipe: Recipe, class_count: int) -> None:
        """Take the recipe's seed and alphas, and the number of classes."""
        self.seed = recipe.seed
        self.ways: list[v2.Transform] = []
        if recipe.mixup_alpha:
            self.ways.append(v2.MixUp(alpha=recipe.mixup_alpha, num_classes=class_count))
        if recipe.cutmix_alpha:
            self.ways.append(v2.CutMix(alpha=recipe.cutmix_alpha, num_classes=class_count))

    def __call__(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Map uint8 [N, 3, S, S] and int64 [N] to float32 [N, 3, S, S], 0 to 255, and shares [N, C].

        With nothing switched on, both come back as they are.
        """
        if not self.ways:
            return images, targets
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(self.seed, step))
            way = self.ways[int(torch.randint(len(self.ways), (1,)))]
            return way(images.float(), targets)


def dominant_class(targets: Tensor) -> Tensor:
    """Return the class, int64 [N], of which an image shows most: of indices [N] or shares [N, C]."""
    return targets if targets.ndim == 1 else targets.argmax(1)
