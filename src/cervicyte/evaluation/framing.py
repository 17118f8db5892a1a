"""How another laboratory's crops are shown to a network, which are cut otherwise than its training cells.

A network that sees every cell enlarged to one size cannot tell a small glandular cell, cut close, from a
dysplastic one. Here no crop is enlarged beyond a usual training cell's size: smaller ones are laid on a
square of that side, so that small cells stay small. Pixels are taken to measure about what they do in the
training laboratory.

The network has learnt from crops that fill the canvas, and that is how home cells are shown to it. Others are
shown otherwise where it is known that they are others: by an adapted model, and in a second look at an image
that is unlike the training cells.
"""

from __future__ import annotations

import numpy as np

from cervicyte.errors import FamiliarityError
from cervicyte.images.preprocessing import LARGEST_SIDE, Preprocessing
from cervicyte.network.description import Described


def framed(model: Described) -> Preprocessing:
    """Return a model's preprocessing with a least side: the median size of its training cells.

    That is the median of the geometric mean of height and width, in pixels. The preprocessing is returned as
    it is where it has a least side already, shows all images at one scale anyhow, or where the model does not
    know its training cells' sizes, as an adapted one, whose usual sizes are its laboratory's.

    Raises:
        FamiliarityError: what the model knows of its training cells is damaged.
    """
    seen, usual = model.preprocessing, model.metadata.get("familiarity")
    if not usual or "adaptation" in model.metadata or seen.scale != "fit" or seen.least_side:
        return seen
    try:
        sizes = usual["statistics"]["size_px"]
        least = min(LARGEST_SIDE, round(sizes[len(sizes) // 2]))
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
        raise FamiliarityError("The model's familiarity: is damaged; take another copy of it.") from error
    return seen.model_copy(update={"least_side": least})


def second_look(model: Described) -> Preprocessing | None:
    """Return how a model sees an image once more that is unlike its training cells; None if it does not.

    An adapted model sees all images as they are to be seen in its laboratory, and looks once. So does a model
    with several heads: each knows other training cells, and what they share is to be the same by any of them.
    """
    wide = framed(model)
    return None if wide == model.preprocessing or model.metadata.get("heads") else wide


def is_small(image: np.ndarray, preprocessing: Preprocessing | None) -> bool:
    """Return whether a least side keeps an image, uint8 [H, W, 3], from being enlarged as far as else."""
    return preprocessing is not None and max(image.shape[:2]) < preprocessing.least_side
