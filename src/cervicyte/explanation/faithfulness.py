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
from cervicyte.training.loop import computes_in_bfloat16

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(images uint8 [N, S, S, 3], classes int [N]) -> the score of each image's own class, float [N]."""

BLUR_SIGMA = 1 / 12  # of the image's side: leaves colour and rough shape, no texture
TIE_SEED = 0


def probability_of(model: ModelFile, against: int | None = None) -> Score:
    """Return the function that gives the network's probability of a class. It changes nothing.

    With `against`, the index of another class, it is the probability among these two alone: the sigmoid of
    the difference of their logits, which a contrast explains.

    It computes in `score_precision()`: in bfloat16 a probability moves by some thousandths, an area
    under a curve of them by less, and the same work takes less than half the time (31 images/s instead of
    12 on one core of an AMD EPYC, at 160 pixels).
    """
    in_bfloat16 = score_precision() == "bfloat16"

    @torch.inference_mode()
    def score(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        found = np.empty(len(images))
        for start in range(0, len(images), AT_ONCE):
            stop = start + AT_ONCE
            inputs = network_input(model, images[start:stop]).contiguous(memory_format=torch.channels_last)
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=in_bfloat16):
                logits = model.network(inputs).double()
            of_class = torch.as_tensor(classes[start:stop], device=logits.device)[:, None]
            if against is None:
                probabilities = logits.softmax(1).gather(1, of_class)[:, 0]
            else:
                probabilities = (logits.gather(1, of_class)[:, 0] - logits[:, against]).sigmoid()
            found[start:stop] = probabilities.cpu().numpy()
        return found

    return score


def score_precision() -> str:
    """Return "bfloat16" where the hardware computes in it, else "float32"."""
    return "bfloat16" if computes_in_bfloat16("auto") else "float32"


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


# --- ROAD ----------------------------------------------------------------------------------------

ROAD_PERCENTILES = (20, 40, 60, 80)  # of the pixels, taken away
ROAD_NOISE = 2.5  # grey levels, standard deviation: 0.01 of the range, as in the authors' code
# Weights of a pixel's neighbours, as in the authors' code: beside 1/6, across the corner 1/12.
NEIGHBOURS = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]], np.float32) / 12
SMALLEST_SIDE = 12  # pixels; below, no coarser grid is used to begin with
TOLERANCE = 0.002  # grey levels, root mean square of what the equations leave over


def imputed(image: np.ndarray, missing: np.ndarray, noise_seed: int | None = None) -> np.ndarray:
    """Fill missing pixels from the others, so that neither content nor the hole's shape shows.

    Noisy linear imputation of Y. Rong et al., "A Consistent and Efficient Evaluation Strategy for
    Attribution Methods" (ROAD), ICML 2022: every missing pixel is the weighted mean of its eight
    neighbours, missing or not, and noise is added. The equations are solved by conjugate gradients, from
    a solution on half as fine a grid, until what they leave over is below `TOLERANCE`.

    Args:
        image: uint8 [S, S, 3].
        missing: bool [S, S]; where all are, their mean colour is left.
        noise_seed: draws the noise; None adds none.

    Returns:
        uint8 [S, S, 3].
    """
    if missing.all():
        values = np.broadcast_to(image.mean((0, 1)), image.shape).astype(np.float32)
    else:
        values = _solved(image.astype(np.float32), missing.astype(np.float32))
    if noise_seed is not None:
        noise = np.random.default_rng(noise_seed).standard_normal(image.shape, np.float32) * ROAD_NOISE
        values = values + noise
    filled = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return np.where(missing[..., None], filled, image)


def _solved(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return values float32 [h, w, 3] in which missing ones, 1 in [h, w], solve the equations."""
    height, width = missing.shape
    hole = missing[..., None]
    start = _coarse_guess(values, missing) if min(height, width) >= 2 * SMALLEST_SIDE else values
    solution = np.where(hole > 0, start, values).astype(np.float32)
    # At the border a pixel has fewer neighbours, whose weights are then the larger.
    total = _neighbours(np.ones((height, width), np.float32))[..., None]

    def applied(direction: np.ndarray) -> np.ndarray:
        return (total * direction - _neighbours(direction)) * hole

    residual = -applied(solution)
    direction = residual.copy()
    left = float(np.vdot(residual, residual))
    enough = TOLERANCE**2 * max(1.0, float(missing.sum())) * values.shape[2]
    for _ in range(4 * (height + width)):
        if left <= enough:
            break
        change = applied(direction)
        step = left / float(np.vdot(direction, change))
        solution += step * direction
        residual -= step * change
        before, left = left, float(np.vdot(residual, residual))
        direction = residual + (left / before) * direction
    return solution


def _coarse_guess(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    height, width = missing.shape
    half = (-(-width // 2), -(-height // 2))
    known = 1 - missing
    share = cv2.resize(known, half, interpolation=cv2.INTER_AREA)
    colours = cv2.resize(values * known[..., None], half, interpolation=cv2.INTER_AREA)
    coarse = colours / np.maximum(share, 1e-6)[..., None]
    solved = _solved(coarse, (share < 1e-6).astype(np.float32))
    return cv2.resize(solved, (width, height), interpolation=cv2.INTER_LINEAR)


def _neighbours(values: np.ndarray) -> np.ndarray:
    """Return the weighted sum over each pixel's eight neighbours; beyond the border there are none."""
    return cv2.filter2D(values, -1, NEIGHBOURS, borderType=cv2.BORDER_CONSTANT)


class Road(NamedTuple):
    """Scores of M maps of one image after pixels were taken away, float [M, len(ROAD_PERCENTILES)].

    Attributes:
        most_first: the most relevant pixels removed (MoRF): the lower the score, the better the map.
        least_first: the least relevant removed (LeRF): the higher, the better.
    """

    most_first: np.ndarray
    least_first: np.ndarray


def road(
    score: Score,
    image: np.ndarray,
    class_index: int,
    maps: Sequence[np.ndarray],
    percentiles: Sequence[int] = ROAD_PERCENTILES,
) -> Road:
    """Return the class's score after the given shares of pixels were taken away and filled in, see `imputed`.

    Arguments are those of `deletion_and_insertion`.
    """
    tried = []
    for values in maps:
        places = ranks(enlarged(values, len(image)))
        for percent in percentiles:
            count = round(percent / 100 * places.size)
            tried += [
                imputed(image, places < count, noise_seed=percent),
                imputed(image, places >= places.size - count, noise_seed=percent),
            ]
    images = np.stack(tried)
    scores = score(images, np.full(len(images), class_index)).reshape(len(maps), len(percentiles), 2)
    return Road(scores[..., 0], scores[..., 1])


# --- where a map lies ----------------------------------------------------------------------------


class Localisation(NamedTuple):
    """How much of a map lies in a region.

    Attributes:
        share: of what is positive in the map, 0 to 1; NaN if nothing is.
        area: of the region in the image, 0 to 1.
        hit: whether the map's highest place lies in the region.
    """

    share: float
    area: float
    hit: bool

    @property
    def enrichment(self) -> float:
        """Return share over area: 1 if the map does not know of the region."""
        return self.share / self.area if self.area else float("nan")


def localisation(values: np.ndarray, region: np.ndarray) -> Localisation:
    """Return how much of a map, float [H, W], lies in a region, bool [H, W].

    The pointing game is that of J. Zhang et al., "Top-Down Neural Attention by Excitation Backprop",
    IJCV 2018, without its tolerance of 15 pixels: a nucleus may be smaller.
    """
    positive = np.maximum(values, 0).astype(np.float64)
    total = positive.sum()
    share = float(positive[region].sum() / total) if total > 0 else float("nan")
    hit = bool(region.ravel()[values.argmax()]) if total > 0 else False
    return Localisation(share, float(region.mean()), hit)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's correlation of two maps of one shape, ties sharing their mean rank; NaN if flat."""
    a, b = (_mean_ranks(values.ravel()) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, level, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[level]
