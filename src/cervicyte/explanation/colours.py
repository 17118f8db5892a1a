"""Colours of the maps, over tissue and by themselves.

Evidence for a class runs from purple over orange to yellow: lightness rises all the way, so that the order
survives a grey print and every kind of colour blindness, and yellow is no colour of the Papanicolaou stain.
Where a scale has two sides, evidence against is blue, which every kind of colour blindness but the very
rare loss of blue tells from yellow. Zero is no colour at all: tissue stays as it is, and a map by itself is
black there.
"""

from __future__ import annotations

import functools

import numpy as np
from matplotlib import colormaps

from cervicyte.errors import UsageError

DEFAULT_COLOURS = "inferno"
# The part of each map that is used over tissue: near black would darken it, near white vanish on glass.
PARTS = {"inferno": (0.4, 0.9), "cividis": (0.3, 1.0), "viridis": (0.3, 1.0), "jet": (0.0, 1.0)}
COLOURS = tuple(PARTS)
ORIGINAL = "jet"
"""The look of the original notebook: the rainbow laid evenly over the whole image. Its order is lost in a
grey print and to the colour-blind."""

FOR = (0.65, 0.9)  # the part of inferno for evidence for, where a scale has two sides: orange to yellow
AGAINST = ((32, 64, 150), (40, 125, 245))  # RGB, weak to strong: pale blue would vanish on glass
OPACITY = 0.6  # of the hottest place: the tissue must show through
OPACITY_POWER = 0.7  # below 1, so that the middle of the scale can be seen on pink and purple tissue
ORIGINAL_OPACITY = 0.5  # as `show_cam_on_image` of pytorch-grad-cam


def strong_colour(colours: str) -> str:
    """Return the name of the colour of the strongest evidence for a class, where a scale has two sides."""
    return "red" if colours == ORIGINAL else "yellow"


def check_colours(name: str) -> None:
    """Refuse colours that there are not.

    Raises:
        UsageError: the text names all.
    """
    if name not in COLOURS:
        raise UsageError(f"There is no colour map {name!r}; choose one of {', '.join(COLOURS)}.")


def overlay(
    image: np.ndarray,
    values: np.ndarray,
    highest: float | None = None,
    colours: str = DEFAULT_COLOURS,
    signed: bool = False,
) -> np.ndarray:
    """Lay a map over an image at full resolution; where the map is zero, the pixels stay as they are.

    Args:
        image: uint8 [H, W, 3], RGB.
        values: float [H, W]; see `Preprocessing.onto_original`.
        highest: the value that is shown hottest, larger ones too; the same for all maps that are to be
            compared. None is the map's own highest.
        colours: one of `COLOURS`.
        signed: whether values below zero are shown as evidence against; else they are left out.

    Returns:
        uint8 [H, W, 3]. Opacity grows with the value, up to `OPACITY`; but see `ORIGINAL`.

    Raises:
        ValueError: shapes differ, or values that are not finite.

    Example:
        >>> overlay(np.full((1, 2, 3), 200, np.uint8), np.array([[0.0, 1.0]]))[0].tolist()
        [[200, 200, 200], [228, 209, 122]]
    """
    if values.shape != image.shape[:2] or not np.isfinite(values).all():
        raise ValueError(f"a map for an image {image.shape} is finite and {image.shape[:2]}: {values.shape}")
    shares = _shares(values, highest, signed)
    if colours == ORIGINAL:
        opacity = np.full((*values.shape, 1), ORIGINAL_OPACITY, np.float32)
    else:
        opacity = (OPACITY * np.abs(shares) ** OPACITY_POWER).astype(np.float32)[..., np.newaxis]
    return (image * (1 - opacity) + _colour_of(shares, colours, signed) * opacity).round().astype(np.uint8)


def alone(
    values: np.ndarray, highest: float | None = None, colours: str = DEFAULT_COLOURS, signed: bool = False
) -> np.ndarray:
    """Draw a map by itself, uint8 [H, W, 3]: the colours that it has over tissue, on black.

    Arguments are those of `overlay`.

    Example:
        >>> alone(np.array([[-1.0, 0.0, 1.0]]), signed=True)[0].tolist()
        [[40, 125, 245], [0, 0, 0], [246, 215, 70]]
    """
    shares = _shares(values, highest, signed)
    opaque = 1.0 if colours == ORIGINAL else np.abs(shares)[..., np.newaxis] ** OPACITY_POWER
    return (_colour_of(shares, colours, signed) * opaque).round().astype(np.uint8)


def _shares(values: np.ndarray, highest: float | None, signed: bool) -> np.ndarray:
    """Return the values in shares of the highest, float32 in [0, 1] or, signed, in [-1, 1]."""
    top = float(np.abs(values).max() if signed else values.max()) if highest is None else highest
    if top <= 0:
        return np.zeros(values.shape, np.float32)
    return np.clip(values / top, -1 if signed else 0, 1).astype(np.float32)


def _colour_of(shares: np.ndarray, colours: str, signed: bool) -> np.ndarray:
    # 511 colours, zero in the middle, are looked up, instead of computed for each pixel.
    table = _signed_table(colours) if signed else _table(colours)
    return table[(shares * 255).round().astype(np.int16) + (255 if signed else 0)]


@functools.cache
def _table(colours: str) -> np.ndarray:
    """Return float32 [256, 3], RGB from 0 to 255, for shares from 0 to 1."""
    return colormaps[colours](np.linspace(*PARTS[colours], 256))[:, :3].astype(np.float32) * 255


@functools.cache
def _signed_table(colours: str) -> np.ndarray:
    """Return float32 [511, 3], RGB from 0 to 255, for shares from -1 to 1."""
    if colours == ORIGINAL:
        return colormaps[colours](np.linspace(0, 1, 511))[:, :3].astype(np.float32) * 255
    against = np.linspace(AGAINST[1], AGAINST[0], 255, dtype=np.float32)
    speaks_for = colormaps[DEFAULT_COLOURS](np.linspace(*FOR, 256))[:, :3].astype(np.float32) * 255
    return np.concatenate([against, speaks_for])
