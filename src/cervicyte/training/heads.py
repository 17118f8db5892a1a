"""What several heads over one network learn from: each cell from its own data set's classes alone.

The last layer has the rows of all heads side by side, and one more that all share, see
`network.heads.wide_names`. Data sets come equally often, and within each its classes, see `EvenBatches`: no
class weighs more than another besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cervicyte.errors import RecipeError
from cervicyte.network.heads import Head
from cervicyte.training.loss import classification_loss
from cervicyte.training.recipe import Recipe
from cervicyte.training.start import refuse_few_cells


class HeadsLoss:
    """The loss of a batch of several data sets' cells.

    Attributes:
        head_of: of each class the position of its head, int [C].
        own: which rows are of the same head as each class, bool [C, C + 1]; the shared unit is of none.
        abnormal: of each class 1 if it is abnormal, 0 if normal or benign, NaN if that is not known, [C].
    """

    def __init__(self, heads: Sequence[Head], recipe: Recipe, device: torch.device | None = None) -> None:
        """Take the heads in the order of the rows, what the recipe says of loss, and where logits lie."""
        self.recipe = recipe
        sizes = [len(head.class_names) for head in heads]
        self.head_of = np.repeat(np.arange(len(heads)), sizes)
        ends = np.cumsum(sizes).tolist()
        self.rows = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        same = torch.from_numpy(self.head_of[:, None] == self.head_of[None, :])
        self.own = functional.pad(same, (0, 1)).to(device)
        sides = [
            float("nan") if one is None else float(one == "abnormal")
            for head in heads
            for one in head.groupings
        ]
        self.abnormal = torch.tensor(sides, device=device)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the cells of the loss within each one's head, and of the shared unit's.

        The shared unit's is the binary cross-entropy, over the cells of which it is known whether they are
        abnormal. Both count the same.

        Args:
            logits: [N, C + 1].
            targets: rows of the cells' classes, int64 [N].
        """
        total = logits.new_zeros(())
        for rows in self.rows:
            mine = (targets >= rows.start) & (targets < rows.stop)
            if count := int(mine.sum()):
                weights = logits.new_ones(rows.stop - rows.start)
                loss = classification_loss(
                    logits[mine, rows], targets[mine] - rows.start, weights, self.recipe
                )
                total = total + loss * (count / len(targets))
        side = self.abnormal[targets]
        known = ~side.isnan()
        if bool(known.any()):
            smoothing = self.recipe.label_smoothing
            wanted = (1 - smoothing) * side[known] + smoothing / 2
            loss = functional.binary_cross_entropy_with_logits(logits[known, -1], wanted, reduction="sum")
            total = total + loss / len(targets)
        return total

    def among_own(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return logits [N, C + 1] with those of other heads than the cell's, and the shared one, at -inf."""
        return logits.masked_fill(~self.own[targets], -torch.inf)

    def even_weights(self, targets: np.ndarray) -> np.ndarray:
        """Return a weight for each cell, [N], with mean 1, by which every data set counts the same."""
        heads = self.head_of[targets]
        counts = np.bincount(heads)
        weights: np.ndarray = len(heads) / (np.count_nonzero(counts) * counts[heads])
        return weights


def refuse_for_heads(recipe: Recipe) -> None:
    """Refuse what has no meaning for several class lists.

    Raises:
        RecipeError: the text names the key.
    """
    refuse_few_cells(recipe, "Several data sets are learnt together by a training")
    for key, plain, why in (
        ("mixup_alpha", 0, "images of two class lists cannot be mixed"),
        ("cutmix_alpha", 0, "images of two class lists cannot be mixed"),
        ("missed_abnormal_cost", 1, "the shared answer weighs normal and abnormal cells alike"),
    ):
        if getattr(recipe, key) != plain:
            raise RecipeError(f"{key} = {getattr(recipe, key):g} will not do: {why}; leave the key out.")
    if recipe.class_weights == "balanced":
        raise RecipeError(
            "class_weights = 'balanced' will not do: data sets and their classes come equally often as it "
            "is; leave the key out."
        )
