"""Whether a map marks what the network in truth relies on: take it away, or show it alone, and ask again.

All measures use only the order in which a map ranks pixels, so that maps of any scale, and controls that
are no explanations at all, are measured alike. Pixels of equal value, such as the many that a ReLU sets
to zero, are ranked by one fixed draw and not from top left to bottom right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from cervicyte.explanation.controls import AT_ONCE, network_input
from cervicyte.network.model_file import ModelFile

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(images uint8 [N, S, S, 3], classes int [N]) -> the score of each image's own class, float [N]."""

BLUR_SIGMA = 1 / 12  # of the image's side: leaves colour and rough shape, no texture
TIE_SEED = 0


def probability_of(model: ModelFile) -> Score:
    """Return the function that gives the network's probability of a class. It changes nothing."""

    @torch.inference_mode()
    def score(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        found = np.empty(len(images))
        for start in range(0, len(images), AT_ONCE):
            stop = start + AT_ONCE
            logits = model.network(network_input(model, images[start:stop])).double()
            of_class = torch.as_tensor(classes[start:stop], device=logits.device)[:, None]
            found[start:stop] = logits.softmax(1).gather(1, of_class)[:, 0].cpu().numpy()
        return found

    return score


def enlarged(values: np.ndarray, side: int) -> np.ndarray:
    """Lay a map, float [h, w], over the input that it covers edge to edge: float32 [S, S], bilinear."""
    return cv2.resize(values.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return each pixel's place in the order of importance, int [S, S]; 0 is the most important."""
    flat = values.ravel()
    ties = np.random.default_rng(TIE_SEED).permutation(len(flat))
    places = np.empty(len(flat), np.int64)
    places[np.lexsort((ties, -flat))] = np.arange(len(flat))
    return places.reshape(values.shape)


# --- deletion and insertion ----------------------------------------------------------------------


def mean_colour(image: np.ndarray) -> np.ndarray:
    """Return the image's mean colour everywhere, uint8 [S, S, 3]: what deletion leaves."""
    return np.broadcast_to(np.round(image.mean((0, 1))).astype(np.uint8), image.shape)


def blurred(image: np.ndarray) -> np.ndarray:
    """Return the image without texture, uint8 [S, S, 3]: what insertion begins with."""
    return cv2.GaussianBlur(image, (0, 0), BLUR_SIGMA * len(image), borderType=cv2.BORDER_REFLECT)


def replaced(
    image: np.ndarray, by: np.ndarray, places: np.ndarray, shares: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Return the image with its most important pixels replaced, once for each share of them.

    Args:
        image, by: uint8 [S, S, 3].
        places: from `ranks`.
        shares: of the pixels, 0 to 1.

    Returns:
        uint8 [len(shares), S, S, 3].
    """
    counts = np.round(np.asarray(shares) * places.size).astype(int)
    return np.where((places < counts[:, None, None])[..., None], by, image)


def area(curve: np.ndarray) -> np.ndarray:
    """Return the area under scores [..., K] over evenly spaced shares from 0 to 1, by trapezoids.

    Example:
        >>> float(area(np.array([1.0, 0.5, 0.0])))
        0.5
    """
    return (curve[..., 1:] + curve[..., :-1]).mean(-1) / 2


class Areas(NamedTuple):
    """Areas under the curves of M maps of one image.

    Attributes:
        deletion: float [M], the lower the better.
        insertion: float [M], the higher the better.
        whole: the score of the unchanged image.
        scored: images that were scored.
    """

    deletion: np.ndarray
    insertion: np.ndarray
    whole: float
    scored: int


def deletion_and_insertion(
    score: Score, image: np.ndarray, class_index: int, maps: Sequence[np.ndarray], steps: int
) -> Areas:
    """Return the areas under the deletion and the insertion curve of each map.

    V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018. Deletion replaces pixels, the most important first, by the image's mean colour: the lower
    the area under the class's score, the better the map. Insertion begins with the blurred image and puts
    the pixels back, the most important first: the higher the better.

    Args:
        score: see `Score`.
        image: preprocessed, uint8 [S, S, 3].
        class_index: the class explained.
        maps: float [h, w] each, of any size.
        steps: into how many equal parts the pixels are divided.
    """
    inner = np.arange(1, steps) / steps
    empty, soft = mean_colour(image), blurred(image)
    places = [ranks(enlarged(values, len(image))) for values in maps]
    tried = [image[None], empty[None], soft[None]]
    tried += [replaced(image, empty, place, inner) for place in places]
    tried += [replaced(soft, image, place, inner) for place in places]
    images = np.concatenate(tried)
    scores = score(images, np.full(len(images), class_index))
    whole, none, softened = scores[:3]
    curves = scores[3:].reshape(2, len(maps), len(inner))
    ends = np.ones((len(maps), 1))
    deletion = area(np.concatenate([whole * ends, curves[0], none * ends], 1))
    insertion = area(np.concatenate([softened * ends, curves[1], whole * ends], 1))
    return Areas(deletion, insertion, float(whole), len(images))
