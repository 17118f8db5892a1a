"""Whether a map marks what the network in truth relies on: take it away, or show it alone, and ask again.

All measures use only the order in which a map ranks pixels, so that maps of any scale, and controls that
are no explanations at all, are measured alike. Pixels of equal value, such as the many that a ReLU sets
to zero, are ranked by one fixed draw and not from top left to bottom right.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from cervicyte.explanation import cam
from cervicyte.explanation.controls import network_input

if TYPE_CHECKING:  # what measures an engine's maps needs no torch
    import torch

    from cervicyte.network.model_file import ModelFile
    from cervicyte.network.resnet import CBAMResNet50

Score = Callable[[np.ndarray], np.ndarray]
"""images uint8 [N, S, S, 3] -> the probability of every class, float [N, C]."""

SCORED_AT_ONCE = 16  # images; twice as many no longer fit the caches and take a quarter longer each
BLUR_SIGMA = 1 / 12  # of the image's side: leaves colour and rough shape, no texture
TIE_SEED = 0


def probabilities_of(model: ModelFile) -> Score:
    """Return the function that gives the network's probability of every class. It changes nothing.

    It computes in `score_precision()`: in bfloat16 a probability moves by some thousandths, an area under a
    curve of them by less, and the same work takes less than half the time.
    """
    import torch

    precision = torch.bfloat16 if score_precision() == "bfloat16" else torch.float32
    network = _network_that_scores(model.network, precision)

    @torch.inference_mode()
    def score(images: np.ndarray) -> np.ndarray:
        found = [np.empty((0, len(model.class_names)))]
        for start in range(0, len(images), SCORED_AT_ONCE):
            inputs = network_input(model, images[start : start + SCORED_AT_ONCE])
            found.append(network(inputs.to(precision)).double().softmax(1).cpu().numpy())
        return np.concatenate(found)

    return score


_scoring: weakref.WeakKeyDictionary[CBAMResNet50, tuple[object, CBAMResNet50]] = weakref.WeakKeyDictionary()
_scoring_lock = threading.Lock()


def _network_that_scores(network: CBAMResNet50, precision: torch.dtype) -> CBAMResNet50:
    """Return a copy of the network for scores, made once for as long as its weights stay as they are.

    It is folded, and its weights lie in memory as they are computed with: on one core of an AMD EPYC that
    makes 83 images/s of 160 pixels of 59.
    """
    import torch

    from cervicyte.network.resnet import folded

    values = network.state_dict(keep_vars=True).values()
    state = precision, *((value.data_ptr(), value._version) for value in values)
    with _scoring_lock:
        known = _scoring.get(network)
        if known is None or known[0] != state:
            with torch.inference_mode(False):
                copied = folded(network).to(precision, memory_format=torch.channels_last)
            known = _scoring[network] = state, copied
        return known[1]


def of_target(probabilities: np.ndarray, target: cam.Target) -> np.ndarray:
    """Return what is measured of a target in the probabilities of all classes, float [..., C] -> [...].

    Of a class it is its probability; of a contrast, which names both classes, that of the first among
    these two alone, the sigmoid of the difference of their logits.

    Example:
        >>> found = np.array([0.6, 0.2, 0.2])
        >>> float(of_target(found, 0)), round(float(of_target(found, cam.Contrast(0, 1))), 2)
        (0.6, 0.75)
    """
    if not isinstance(target, cam.Contrast):
        return probabilities[..., int(target)]
    if target.of is None or target.against is None:
        raise ValueError("a contrast to be measured names both classes")
    own, other = probabilities[..., target.of], probabilities[..., target.against]
    return own / (own + other)


def score_precision() -> str:
    """Return "bfloat16" where the hardware computes in it, else "float32"."""
    from cervicyte.network.precision import computes_in_bfloat16

    return "bfloat16" if computes_in_bfloat16("auto") else "float32"


def enlarged(values: np.ndarray, side: int) -> np.ndarray:
    """Lay a map, float [h, w], over the input that it covers edge to edge: float32 [S, S], bilinear."""
    return cv2.resize(values.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)


@functools.cache
def _ties(size: int) -> np.ndarray:
    return np.random.default_rng(TIE_SEED).permutation(size)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return each pixel's place in the order of importance, int [S, S]; 0 is the most important."""
    flat = values.ravel()
    places = np.empty(len(flat), np.int64)
    places[np.lexsort((_ties(len(flat)), -flat))] = np.arange(len(flat))
    return places.reshape(values.shape)


def marked(places: np.ndarray, shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the first so many pixels of an order, from `ranks`, once for each share of all.

    Args:
        places: int [S, S].
        shares: of the pixels, 0 to 1.

    Returns:
        bool [len(shares), S, S].
    """
    counts = np.round(np.asarray(shares) * places.size).astype(int)
    return places < counts[:, None, None]


def different(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the masks, bool [N, S, S], differ from all before them, and which of these each one is.

    Two maps may mark the same pixels, as Grad-CAM and HiResCAM do behind the last layer, where gradients are
    the same all over: such images are scored once.

    Returns:
        int [D], places in `masks`; int [N], places in what `masks` has at these places.

    Example:
        >>> first, which = different(np.array([[[True, False]], [[False, True]], [[True, False]]]))
        >>> first.tolist(), which.tolist()
        ([0, 1], [0, 1, 0])
    """
    numbers: dict[bytes, int] = {}
    packed = np.packbits(masks.reshape(len(masks), -1), axis=1)
    which = np.array([numbers.setdefault(one.tobytes(), len(numbers)) for one in packed])
    return np.unique(which, return_index=True)[1], which


# --- deletion and insertion ----------------------------------------------------------------------


def mean_colour(image: np.ndarray) -> np.ndarray:
    """Return the image's mean colour everywhere, uint8 [S, S, 3]: what deletion leaves."""
    return np.broadcast_to(np.round(image.mean((0, 1))).astype(np.uint8), image.shape)


def blurred(image: np.ndarray) -> np.ndarray:
    """Return the image without texture, uint8 [S, S, 3]: what insertion begins with."""
    return cv2.GaussianBlur(image, (0, 0), BLUR_SIGMA * len(image), borderType=cv2.BORDER_REFLECT)


def replaced(image: np.ndarray, by: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the image with other pixels where a mask is, uint8 [N, S, S, 3] for masks bool [N, S, S]."""
    return np.where(masks[..., None], by, image)


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
        scored: images that were scored.
    """

    deletion: np.ndarray
    insertion: np.ndarray
    scored: int


def deletion_and_insertion(
    score: Score,
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    targets: Sequence[cam.Target],
    steps: int,
    whole: np.ndarray | None = None,
) -> Areas:
    """Return the areas under the deletion and the insertion curve of each map.

    V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018. Deletion replaces pixels, the most important first, by the image's mean colour: the lower
    the area under the class's score, the better the map. Insertion begins with the blurred image and puts
    the pixels back, the most important first: the higher the better.

    Args:
        score: see `Score`.
        image: preprocessed, uint8 [S, S, 3].
        maps: float [h, w] each, of any size.
        targets: what each map explains, see `of_target`.
        steps: into how many equal parts the pixels are divided.
        whole: score of the unchanged image, float [C], where it is known.
    """
    inner = np.arange(1, steps) / steps
    masks = np.concatenate([marked(ranks(enlarged(values, len(image))), inner) for values in maps])
    first, which = different(masks)
    masks = masks[first]
    empty, soft = mean_colour(image), blurred(image)
    ends = [empty, soft] if whole is not None else [empty, soft, image]
    scores = score(np.concatenate([ends, replaced(image, empty, masks), replaced(soft, image, masks)]))
    none, softened = scores[:2]
    if whole is None:
        whole = scores[2]
    inside = scores[len(ends) :].reshape(2, len(masks), -1)[:, which].reshape(2, len(maps), len(inner), -1)
    deletion, insertion = np.empty(len(maps)), np.empty(len(maps))
    for place, (removed, put_back, target) in enumerate(zip(*inside, targets, strict=True)):
        deletion[place] = area(of_target(np.stack([whole, *removed, none]), target))
        insertion[place] = area(of_target(np.stack([softened, *put_back, whole]), target))
    return Areas(deletion, insertion, len(scores))


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
    # Of every colour its own copy: an axis of length 1 that is stretched takes NumPy three times as long.
    hole = np.repeat(missing[..., None], values.shape[2], axis=2)
    start = _coarse_guess(values, missing) if min(height, width) >= 2 * SMALLEST_SIDE else values
    solution = np.where(hole > 0, start, values).astype(np.float32)
    # At the border a pixel has fewer neighbours, whose weights are then the larger.
    total = _neighbours(np.ones_like(values))

    def applied(direction: np.ndarray) -> np.ndarray:
        found = total * direction
        found -= _neighbours(direction)
        found *= hole
        return found

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
        direction *= left / before
        direction += residual
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
    maps: Sequence[np.ndarray],
    targets: Sequence[cam.Target],
    percentiles: Sequence[int] = ROAD_PERCENTILES,
) -> Road:
    """Return each target's score after shares of the pixels were taken away and filled in, see `imputed`.

    Arguments are those of `deletion_and_insertion`.
    """
    shares = np.asarray(percentiles) / 100
    masks, seeds = [], [*percentiles, *percentiles] * len(maps)
    for values in maps:
        places = ranks(enlarged(values, len(image)))
        masks += [*marked(places, shares), *marked(places.size - 1 - places, shares)]
    first, which = different(np.stack(masks))
    scores = score(np.stack([imputed(image, masks[place], noise_seed=seeds[place]) for place in first]))
    of_map = scores[which].reshape(len(maps), 2, len(percentiles), -1)
    found = np.stack([of_target(one, target) for one, target in zip(of_map, targets, strict=True)])
    return Road(found[:, 0], found[:, 1])


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
