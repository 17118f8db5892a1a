"""Draws Pap-smear cells of the five SIPaKMeD classes with their masks: pictures that may be published.

A cell is drawn as a microscope sees it: every layer (surroundings, neighbours, cytoplasm, nucleus,
debris) adds optical density in red, green and blue, the lamp's light is dimmed by the sum (Beer-Lambert),
then come blur, uneven light and noise. So overlapping cells darken one another as on the glass.

The figures in `APPEARANCES` (stain colours, crop sizes, sharpness, noise) were chosen so that the drawn
cells' statistics are near those of the SIPaKMeD cells (Plissiti et al., ICIP 2018); no pixel is copied.

Drawings are the same on every machine: masks and blurs are OpenCV's bit-exact ones on 8 and 16 bit
integers, arithmetic on arrays is elementwise, the exponential is a table of rounded integers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cervicyte.errors import UsageError
from cervicyte.pages import counted
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, library_versions, write_json, written_atomically

Range = tuple[float, float]
"""Lowest and highest value of a uniform choice."""

Colour = tuple[int, int, int]
"""Red, green, blue from 0 to 255."""

# Part of synthetic.json; raise it with any change that alters a pixel.
ALGORITHM_VERSION = 1
CELLS_PER_FIELD = 4
SAMPLES = Path(__file__).parents[1] / "sample_image"  # a drawn cell of each class, <Class>.png
SAMPLE_SEED = 23  # each is cell 001_01 of the data set of this seed
# Light scattered in the microscope: the share of the lamp's light that the densest nucleus lets through.
FLARE = 0.10
DENSITY_STEPS = 1024  # table entries per unit of (natural) optical density
_TRANSMISSION = np.round(
    65535 * (FLARE + (1 - FLARE) * np.exp(-np.arange(6 * DENSITY_STEPS) / DENSITY_STEPS))
).astype(np.uint16)


@dataclass(frozen=True)
class SyntheticCell:
    """A drawn cell: image uint8 [H, W, 3], RGB; nucleus and cell bool [H, W], nucleus inside cell."""

    image: np.ndarray
    nucleus: np.ndarray
    cell: np.ndarray


@dataclass(frozen=True)
class Stain:
    """One way in which a class is stained: how often, and the colours seen in its parts."""

    share: float
    surroundings: Colour
    cytoplasm: Colour
    nucleus: Colour


@dataclass(frozen=True)
class Appearance:
    """How cells of one class look. Shares are of the cell's diameter unless said otherwise."""

    stains: tuple[Stain, ...]
    size_px: Range  # geometric mean of the crop's height and width: median, SD of its logarithm
    nucleus_share: Range  # nucleus diameter: median, SD of its logarithm
    corners: tuple[int, int]  # of the outline, fewest and most
    unevenness: float  # how much nearer or farther than the mean a corner may lie
    smoothing: tuple[int, int]  # passes over the outline: few leave corners, many round them
    edge_px: Range  # softness of the cell's edge, standard deviation
    rim: Range  # added density along the edge, relative to the cytoplasm
    dome: Range  # 0: flat cell, 1: all density in the middle
    mottling: Range  # relative amplitude of coarse texture
    grain: Range  # relative amplitude of fine texture
    nucleus_roughness: Range
    nucleus_elongation: Range
    nucleus_offset: float  # largest distance of the nucleus from the middle
    chromatin: Range  # relative amplitude of the nucleus's texture
    halo: Range  # share of density missing round the nucleus
    folds: tuple[int, int]
    neighbours: tuple[int, int]
    murk: Range  # density of things out of focus around the cell, relative to the cytoplasm
    debris: Range  # expected number of rods and dots per cell
    blur_px: Range  # of the whole photograph, standard deviation
    mixed_stains: float  # share of cells stained otherwise than their field


APPEARANCES: dict[str, Appearance] = {
    "Dyskeratotic": Appearance(
        stains=(
            Stain(0.12, (124, 130, 124), (132, 76, 58), (54, 38, 43)),
            Stain(0.10, (150, 112, 118), (108, 62, 66), (54, 38, 44)),
            Stain(0.12, (168, 156, 156), (150, 84, 74), (64, 42, 52)),
            Stain(0.08, (162, 140, 154), (116, 80, 88), (64, 42, 56)),
            Stain(0.10, (133, 79, 82), (102, 50, 43), (48, 34, 39)),
            Stain(0.05, (135, 138, 128), (92, 74, 52), (46, 38, 42)),
            Stain(0.10, (221, 226, 217), (226, 118, 105), (135, 62, 66)),
            Stain(0.09, (173, 97, 101), (140, 62, 58), (67, 39, 46)),
            Stain(0.11, (178, 169, 162), (184, 89, 72), (120, 52, 52)),
            Stain(0.09, (248, 217, 207), (156, 80, 66), (67, 42, 47)),
            Stain(0.07, (208, 183, 250), (150, 80, 130), (70, 38, 72)),
        ),
        size_px=(107, 0.227),
        nucleus_share=(0.40, 0.22),
        corners=(5, 9),
        unevenness=0.22,
        smoothing=(10, 40),
        edge_px=(1.0, 3.5),
        rim=(0.0, 0.25),
        dome=(0.1, 0.6),
        mottling=(0.10, 0.40),
        grain=(0.02, 0.14),
        nucleus_roughness=(0.02, 0.09),
        nucleus_elongation=(1.0, 1.7),
        nucleus_offset=0.16,
        chromatin=(0.10, 0.45),
        halo=(0.0, 0.10),
        folds=(0, 1),
        neighbours=(1, 4),
        murk=(0.0, 0.5),
        debris=(0.0, 2.0),
        blur_px=(0.9, 2.4),
        mixed_stains=0.1,
    ),
    "Koilocytotic": Appearance(
        stains=(
            Stain(0.20, (203, 213, 231), (130, 108, 130), (60, 46, 70)),
            Stain(0.17, (212, 236, 241), (124, 146, 160), (58, 60, 90)),
            Stain(0.17, (209, 223, 243), (162, 150, 175), (66, 52, 80)),
            Stain(0.11, (200, 196, 208), (92, 70, 90), (55, 41, 62)),
            Stain(0.10, (175, 165, 185), (98, 86, 112), (63, 51, 80)),
            Stain(0.09, (221, 245, 251), (160, 187, 190), (76, 80, 108)),
            Stain(0.08, (189, 194, 195), (140, 130, 146), (80, 62, 90)),
            Stain(0.05, (175, 132, 152), (84, 58, 78), (50, 36, 55)),
            Stain(0.03, (215, 225, 165), (150, 150, 95), (85, 85, 80)),
            Stain(0.05, (222, 214, 226), (182, 138, 132), (84, 56, 66)),
            Stain(0.05, (205, 230, 222), (104, 170, 158), (44, 66, 84)),
            Stain(0.03, (196, 160, 166), (160, 82, 86), (80, 48, 60)),
        ),
        size_px=(160, 0.277),
        nucleus_share=(0.36, 0.18),
        corners=(4, 8),
        unevenness=0.34,
        smoothing=(3, 26),
        edge_px=(0.8, 2.5),
        rim=(0.15, 0.7),
        dome=(0.0, 0.2),
        mottling=(0.15, 0.55),
        grain=(0.04, 0.16),
        nucleus_roughness=(0.04, 0.13),
        nucleus_elongation=(1.0, 1.8),
        nucleus_offset=0.14,
        chromatin=(0.2, 0.7),
        halo=(0.32, 0.85),
        folds=(1, 6),
        neighbours=(1, 5),
        murk=(0.0, 0.45),
        debris=(0.0, 14.0),
        blur_px=(0.7, 1.8),
        mixed_stains=0.2,
    ),
    "Metaplastic": Appearance(
        stains=(
            Stain(0.21, (138, 158, 156), (55, 101, 114), (36, 58, 80)),
            Stain(0.17, (169, 191, 201), (74, 132, 152), (43, 74, 102)),
            Stain(0.13, (164, 190, 195), (49, 106, 125), (36, 56, 82)),
            Stain(0.11, (196, 215, 254), (58, 98, 138), (42, 54, 92)),
            Stain(0.10, (232, 250, 255), (165, 200, 224), (140, 112, 166)),
            Stain(0.09, (116, 120, 132), (51, 65, 81), (40, 42, 56)),
            Stain(0.09, (226, 239, 254), (115, 154, 192), (84, 78, 132)),
            Stain(0.07, (138, 156, 222), (46, 63, 94), (38, 38, 60)),
            Stain(0.03, (150, 130, 150), (88, 62, 84), (60, 36, 58)),
        ),
        size_px=(185, 0.227),
        nucleus_share=(0.285, 0.16),
        corners=(5, 9),
        unevenness=0.12,
        smoothing=(14, 70),
        edge_px=(1.2, 4.0),
        rim=(0.0, 0.35),
        dome=(0.2, 0.65),
        mottling=(0.06, 0.28),
        grain=(0.02, 0.18),
        nucleus_roughness=(0.01, 0.05),
        nucleus_elongation=(1.0, 1.6),
        nucleus_offset=0.14,
        chromatin=(0.08, 0.30),
        halo=(0.0, 0.12),
        folds=(0, 3),
        neighbours=(0, 3),
        murk=(0.0, 0.35),
        debris=(0.0, 9.0),
        blur_px=(1.0, 3.0),
        mixed_stains=0.08,
    ),
    "Parabasal": Appearance(
        stains=(
            Stain(0.20, (154, 162, 193), (113, 128, 173), (84, 86, 147)),
            Stain(0.19, (201, 212, 246), (131, 180, 212), (78, 129, 173)),
            Stain(0.15, (182, 194, 209), (139, 149, 186), (100, 96, 158)),
            Stain(0.15, (210, 217, 251), (157, 190, 222), (101, 143, 186)),
            Stain(0.14, (125, 135, 176), (93, 110, 160), (69, 73, 133)),
            Stain(0.07, (133, 123, 140), (66, 110, 132), (46, 50, 86)),
            Stain(0.08, (200, 164, 172), (202, 104, 130), (124, 54, 92)),
            Stain(0.04, (170, 195, 229), (100, 164, 199), (59, 123, 169)),
        ),
        size_px=(176, 0.295),
        nucleus_share=(0.37, 0.20),
        corners=(6, 10),
        unevenness=0.10,
        smoothing=(40, 90),
        edge_px=(4.0, 14.0),
        rim=(0.0, 0.05),
        dome=(0.1, 0.5),
        mottling=(0.05, 0.22),
        grain=(0.01, 0.07),
        nucleus_roughness=(0.0, 0.04),
        nucleus_elongation=(1.0, 1.5),
        nucleus_offset=0.12,
        chromatin=(0.03, 0.15),
        halo=(0.0, 0.08),
        folds=(0, 0),
        neighbours=(1, 4),
        murk=(0.0, 0.5),
        debris=(0.0, 3.0),
        blur_px=(1.6, 4.2),
        mixed_stains=0.08,
    ),
    "Superficial-Intermediate": Appearance(
        stains=(
            Stain(0.20, (201, 195, 214), (152, 156, 176), (80, 68, 108)),
            Stain(0.07, (205, 198, 214), (190, 148, 166), (86, 54, 84)),
            Stain(0.15, (226, 242, 252), (226, 158, 182), (105, 62, 92)),
            Stain(0.06, (230, 236, 248), (230, 146, 152), (100, 52, 74)),
            Stain(0.12, (234, 250, 253), (226, 200, 224), (110, 72, 110)),
            Stain(0.13, (233, 250, 253), (139, 184, 212), (62, 78, 122)),
            Stain(0.11, (231, 205, 232), (226, 140, 172), (105, 54, 84)),
            Stain(0.05, (150, 150, 176), (118, 88, 118), (68, 46, 78)),
            Stain(0.05, (168, 210, 254), (112, 150, 214), (70, 74, 136)),
            Stain(0.03, (105, 179, 212), (80, 121, 172), (60, 58, 106)),
            Stain(0.04, (215, 240, 190), (216, 146, 84), (100, 60, 60)),
        ),
        size_px=(342, 0.145),
        nucleus_share=(0.115, 0.20),
        corners=(5, 8),
        unevenness=0.20,
        smoothing=(1, 12),
        edge_px=(0.8, 2.0),
        rim=(0.05, 0.5),
        dome=(0.0, 0.15),
        mottling=(0.08, 0.30),
        grain=(0.04, 0.16),
        nucleus_roughness=(0.01, 0.07),
        nucleus_elongation=(1.0, 1.6),
        nucleus_offset=0.13,
        chromatin=(0.05, 0.30),
        halo=(0.0, 0.15),
        folds=(3, 10),
        neighbours=(0, 4),
        murk=(0.0, 0.3),
        debris=(0.0, 45.0),
        blur_px=(0.8, 1.6),
        mixed_stains=0.3,
    ),
}


@dataclass(frozen=True)
class _Field:
    """What the cells of one photograph share. Densities are optical densities, float [3]."""

    appearance: Appearance
    light: np.ndarray  # the lamp's colour, float [3], 0 to 255
    surroundings: np.ndarray
    cytoplasm: np.ndarray
    nucleus: np.ndarray
    blur_px: float
    noise: float
    gradient: tuple[float, float]  # change of light from left to right and from top to bottom
    edge_px: float
    debris: float


def draw_cell(label: str, rng: np.random.Generator) -> SyntheticCell:
    """Draw one cell of a class (its proper name) as the only cell of its field.

    Raises:
        UsageError: no such class.
    """
    return _draw(_draw_field(_appearance(label), rng), rng)


def _appearance(label: str) -> Appearance:
    if label not in APPEARANCES:
        raise UsageError(f"Cells of class {label!r} cannot be drawn: choose one of {', '.join(APPEARANCES)}.")
    return APPEARANCES[label]


# --- what the cells of a field share -------------------------------------------------------------


def _draw_field(look: Appearance, rng: np.random.Generator) -> _Field:
    stain = _choose_stain(look, rng)
    light, surroundings, cytoplasm, nucleus = _optical_densities(stain)
    tint = 1 + 0.06 * rng.standard_normal(3)
    strength = math.exp(0.14 * rng.standard_normal())
    cast = 0.09 if rng.random() < 0.06 else 0.025  # a camera's white balance is now and then far off
    return _Field(
        appearance=look,
        light=np.minimum(255.0, light * (1 + cast * rng.standard_normal(3)) * rng.uniform(0.9, 1.06)),
        surroundings=surroundings * tint,
        cytoplasm=cytoplasm * tint * strength,
        nucleus=nucleus * tint * strength,
        blur_px=rng.uniform(*look.blur_px),
        noise=rng.uniform(2.2, 3.6),
        gradient=(rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)),
        edge_px=rng.uniform(*look.edge_px),
        debris=rng.uniform(*look.debris),
    )


def _choose_stain(look: Appearance, rng: np.random.Generator) -> Stain:
    shares = np.array([stain.share for stain in look.stains])
    return look.stains[rng.choice(len(shares), p=shares / shares.sum())]


def _optical_densities(stain: Stain) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the lamp's colour, and what surroundings, cytoplasm, and nucleus (upon it) absorb of it."""
    surroundings, cytoplasm, nucleus = (
        np.array(colour, float) for colour in (stain.surroundings, stain.cytoplasm, stain.nucleus)
    )
    light = np.maximum(surroundings, cytoplasm) + 4
    density = [
        -np.log(np.maximum(colour / light - FLARE, 0.01) / (1 - FLARE))
        for colour in (surroundings, cytoplasm, nucleus)
    ]
    return light, density[0], density[1], np.maximum(density[2] - density[1], 0.05)


# --- one cell ------------------------------------------------------------------------------------


def _draw(field: _Field, rng: np.random.Generator) -> SyntheticCell:
    look = field.appearance
    height, width = shape = _crop_shape(look, rng)
    diameter = math.sqrt(height * width)
    outline = _cell_outline(look, shape, rng)
    nucleus_outline = _nucleus_outline(look, outline, diameter, rng)
    cell = _filled(outline, shape) >= 128
    nucleus = (_filled(nucleus_outline, shape) >= 128) & cell

    stain_here, nucleus_here = field.cytoplasm, field.nucleus
    if rng.random() < look.mixed_stains:
        _, _, stain_here, nucleus_here = _optical_densities(_choose_stain(look, rng))
    strength = math.exp(0.1 * rng.standard_normal())

    density = np.zeros((3, *shape), np.float32)
    coarse = _noise(rng, shape, diameter / 7)
    covered = _soft(outline, shape, field.edge_px)
    outside = 1 - 0.9 * covered
    _add(density, outside, field.surroundings)
    murk = rng.uniform(*look.murk) * np.maximum(0.4 + _noise(rng, shape, diameter / 4), 0)
    _add(density, murk * outside, field.cytoplasm)
    for _ in range(rng.integers(look.neighbours[0], look.neighbours[1] + 1)):
        _add_neighbour(density, field, coarse, rng)
    cytoplasm = _cytoplasm(field, outline, nucleus_outline, coarse, rng)
    _add(density, cytoplasm, stain_here * strength)
    _add(density, _nucleus(field, nucleus_outline, shape, rng), nucleus_here * strength)
    _add(density, _debris(field, shape, rng), field.nucleus)
    return SyntheticCell(_photograph(density, field, rng), nucleus, cell)


def _crop_shape(look: Appearance, rng: np.random.Generator) -> tuple[int, int]:
    """Choose height and width in pixels; real crops have a side ratio of 1.2 in the median, 1.5 at P90."""
    median, spread = look.size_px
    size = median * math.exp(spread * rng.standard_normal())
    lengthening = math.exp(0.5 * rng.normal(0.1, 0.25))
    height, width = (min(553, max(48, round(side))) for side in (size / lengthening, size * lengthening))
    return height, width


def _cell_outline(look: Appearance, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return an outline that fills its crop but for a narrow margin: float [n, 2], x and y in pixels."""
    height, width = shape
    outline = _outline(rng, look.corners, look.smoothing, look.unevenness, 0.012, rng.uniform(1.0, 1.4))
    low, high = outline.min(0), outline.max(0)
    margins = rng.uniform(0.01, 0.07, 4)
    start = np.array([width * margins[0], height * margins[1]])
    end = np.array([width * (1 - margins[2]), height * (1 - margins[3])])
    return start + (outline - low) / (high - low) * (end - start)


def _nucleus_outline(
    look: Appearance, cell: np.ndarray, diameter: float, rng: np.random.Generator
) -> np.ndarray:
    median, spread = look.nucleus_share
    radius = 0.5 * diameter * min(0.7, median * math.exp(spread * rng.standard_normal()))
    roughness = rng.uniform(*look.nucleus_roughness)
    elongation = rng.uniform(*look.nucleus_elongation)
    outline = _outline(rng, (7, 11), (12, 30), 2 * roughness, 0.3 * roughness, elongation)
    offset = look.nucleus_offset * diameter * math.sqrt(rng.random()) * _direction(_any_angle(rng))
    # A long cell has a long nucleus, which so stays inside.
    stretch = (cell.max(0) - cell.min(0)) / diameter
    return (outline * (radius / math.sqrt(elongation)) + offset) * stretch + cell.mean(0)


def _outline(
    rng: np.random.Generator,
    corners: tuple[int, int],
    smoothing: tuple[int, int],
    unevenness: float,
    roughness: float,
    elongation: float,
) -> np.ndarray:
    """Return a closed outline about the origin, radius about 1: float [72, 2]."""
    count = int(rng.integers(corners[0], corners[1] + 1))
    angles = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * (2 * math.pi / count)
    vertices = _direction(angles) * rng.uniform(1 - unevenness, 1 + unevenness, (count, 1))
    position = np.arange(72) * (count / 72)
    before = position.astype(int)
    share = (position - before)[:, None]
    points = vertices[before] * (1 - share) + vertices[(before + 1) % count] * share
    points = _smoothed(points, int(rng.integers(smoothing[0], smoothing[1] + 1)))
    points *= 1 + roughness * _smoothed(2.5 * rng.standard_normal((72, 1)), 3)
    points[:, 0] *= elongation
    x, y = points.T
    cosine, sine = _direction(_any_angle(rng))
    return np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1)


def _smoothed(points: np.ndarray, passes: int) -> np.ndarray:
    for _ in range(passes):
        ring = np.concatenate([points[-1:], points, points[:1]])
        points = 0.25 * ring[:-2] + 0.5 * points + 0.25 * ring[2:]
    return points


def _any_angle(rng: np.random.Generator) -> float:
    return rng.uniform(0, 2 * math.pi)


def _direction(angle: float | np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


# --- layers: float32 [H, W], in units of a stain's optical density; `density` is their sum [3, H, W]


def _add(density: np.ndarray, layer: np.ndarray, stain: np.ndarray) -> None:
    for channel, absorbed in zip(density, stain, strict=True):
        channel += layer * np.float32(absorbed)


def _cytoplasm(
    field: _Field, outline: np.ndarray, nucleus: np.ndarray, coarse: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    look, shape = field.appearance, coarse.shape
    diameter = math.sqrt(coarse.size)
    body = _soft(outline, shape, field.edge_px)
    dome = rng.uniform(*look.dome)
    middle = _soft(_scaled(outline, 0.7), shape, 0.15 * diameter)
    layer = body * (1 - dome + 1.5 * dome * middle)
    mottling = coarse + 0.6 * _noise(rng, shape, diameter / 16)
    layer *= np.maximum(1 + rng.uniform(*look.mottling) * mottling, 0)
    layer *= 1 + rng.uniform(*look.grain) * _noise(rng, shape, 2.5)
    rim = body * (1 - _soft(outline, shape, 0.02 * diameter + field.edge_px))
    layer += 2 * rng.uniform(*look.rim) * rim
    layer += body * _folds(look, outline, shape, rng)
    strength = rng.uniform(*look.halo)
    return _with_halo(layer, outline, nucleus, strength, rng) if strength > 0.15 else layer


def _with_halo(
    layer: np.ndarray, outline: np.ndarray, nucleus: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Clear the cytoplasm round the nucleus and thicken it along the clearing's edge (koilocytes)."""
    diameter = math.sqrt(layer.size)
    radius = 0.5 * float((nucleus.max(0) - nucleus.min(0)).mean())
    halo = nucleus.mean(0) + rng.uniform(-0.3, 0.3, 2) * radius
    halo = halo + rng.uniform(1.35, 2.0) * radius * _outline(rng, (5, 9), (4, 16), 0.22, 0.03, 1.25)
    inside = _soft(_scaled(outline, 0.86), layer.shape, 0.025 * diameter)
    clear = inside * _soft(halo, layer.shape, rng.uniform(0.012, 0.05) * diameter)
    beyond = _soft(_scaled(halo, 1.15), layer.shape, 0.04 * diameter)
    thickened = 1 + 0.5 * strength * beyond
    return layer * (thickened * (1 - clear) + (1 - strength) * clear)


def _folds(
    look: Appearance, outline: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Draw wrinkles: slightly bent lines across the cell, here stronger, there weaker."""
    layer = np.zeros(shape, np.float32)
    strength = np.maximum(0.7 + 1.5 * _noise(rng, shape, 30), 0)
    for _ in range(rng.integers(look.folds[0], look.folds[1] + 1)):
        middle = outline.mean(0)
        start, end = (middle + rng.uniform(0.3, 1) * (outline[at] - middle) for at in rng.integers(0, 72, 2))
        bend = rng.uniform(-0.12, 0.12) * (end - start)[::-1] * (1, -1)
        step = np.linspace(0, 1, 16)[:, None]
        path = start * (1 - step) + end * step + 4 * step * (1 - step) * bend
        line = np.zeros(shape, np.uint8)
        cv2.polylines(line, [_fixed_point(path)], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
        layer += rng.uniform(0.1, 0.45) * _blurred(line, rng.uniform(0.8, 3.0)) * strength
    return layer


def _nucleus(
    field: _Field, outline: np.ndarray, shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Draw the nucleus: chromatin in clumps of about an eighth of its diameter, a denser membrane."""
    diameter = float((outline.max(0) - outline.min(0)).mean())
    body = _soft(outline, shape, max(0.8, 0.35 * field.edge_px))
    inner = _soft(outline, shape, 0.06 * diameter)
    clumps = rng.uniform(*field.appearance.chromatin) * _noise(rng, shape, max(1.5, diameter / 9))
    membrane = 0.35 * body * (1 - inner)
    return body * (0.9 + 0.15 * inner + clumps) + membrane


def _add_neighbour(density: np.ndarray, field: _Field, coarse: np.ndarray, rng: np.random.Generator) -> None:
    """Add a cell of the same class that reaches into the crop from outside."""
    look, shape = field.appearance, coarse.shape
    height, width = shape
    diameter = math.sqrt(coarse.size)
    radius = 0.5 * diameter * rng.uniform(0.7, 1.1)
    place = _direction(_any_angle(rng)) * rng.uniform(1.25, 1.85)
    middle = 0.5 * np.array([width, height]) * (1 + place)
    outline = middle + radius * _outline(rng, look.corners, look.smoothing, look.unevenness, 0.012, 1.2)
    layer = _soft(outline, shape, field.edge_px * rng.uniform(1, 4)) * (1 + 0.2 * coarse)
    _, _, cytoplasm, _ = _optical_densities(_choose_stain(look, rng))
    own = rng.random() >= look.mixed_stains
    _add(density, layer, (field.cytoplasm if own else cytoplasm) * rng.uniform(0.4, 1.0))
    share = look.nucleus_share[0] * rng.uniform(0.8, 1.2)
    nucleus = (
        middle
        + rng.uniform(-0.3, 0.3, 2) * diameter
        + 0.5 * share * diameter * _outline(rng, (7, 11), (12, 30), 0.1, 0.01, rng.uniform(1.0, 1.5))
    )
    _add(density, _soft(nucleus, shape, 1.0), field.nucleus * rng.uniform(0.7, 1.1))


def _debris(field: _Field, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw bacteria (rods of 6 to 12 pixels), granules, and now and then a leucocyte's lobed nucleus."""
    specks = np.zeros(shape, np.uint8)
    height, width = shape
    for _ in range(rng.poisson(field.debris)):
        x, y = rng.integers(0, width), rng.integers(0, height)
        dx, dy = np.round(rng.uniform(1, 6) * _direction(_any_angle(rng))).astype(int)
        cv2.line(specks, (x - dx, y - dy), (x + dx, y + dy), int(rng.integers(40, 140)), 1, cv2.LINE_AA)
    if rng.random() < 0.05 * field.debris:
        corner = np.array([rng.choice([0.05, 0.95]) * width, rng.random() * height])
        for _ in range(3):
            lobe = np.round(corner + rng.uniform(-9, 9, 2)).astype(int).tolist()
            cv2.circle(specks, lobe, int(rng.integers(6, 10)), int(rng.integers(150, 255)), -1, cv2.LINE_AA)
    return _blurred(specks, 0.8)


# --- the photograph ------------------------------------------------------------------------------


def _photograph(density: np.ndarray, field: _Field, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 [H, W, 3]: the light that the density lets through, out of focus and noisy."""
    height, width = density.shape[1:]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    lamp = 1 + np.float32(field.gradient[0]) * x + np.float32(field.gradient[1]) * y
    image = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        steps = np.clip(density[channel] * DENSITY_STEPS, 0, len(_TRANSMISSION) - 1).astype(np.int32)
        transmitted = cv2.GaussianBlur(_TRANSMISSION[steps], (0, 0), field.blur_px)
        seen = transmitted * (lamp * np.float32(field.light[channel] / 65535))
        seen += np.float32(field.noise / 2**8) * _camera_noise(rng, lamp.shape)
        image[..., channel] = np.clip(np.round(seen), 0, 255)
    return image


def _camera_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return integers from -255 to 255: the sum of two uniform ones, so exact on every machine."""
    first, second = rng.integers(0, 2**8, (2, *shape), dtype=np.uint8).astype(np.int16)
    return first + second - 255


# --- masks and textures --------------------------------------------------------------------------


def _scaled(outline: np.ndarray, factor: float) -> np.ndarray:
    middle = outline.mean(0)
    return middle + factor * (outline - middle)


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """Return points in sixteenths of a pixel, as OpenCV's `shift=4` reads them."""
    return np.round(points * 16).astype(np.int32)


def _filled(outline: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [_fixed_point(outline)], 255, cv2.LINE_AA, 4)
    return mask


def _blurred(mask: np.ndarray, sigma_px: float) -> np.ndarray:
    """Return a mask, uint8 0 to 255, blurred, as float32 from 0 to 1."""
    return cv2.GaussianBlur(mask, (0, 0), sigma_px).astype(np.float32) * np.float32(1 / 255)


def _soft(outline: np.ndarray, shape: tuple[int, ...], sigma_px: float) -> np.ndarray:
    """Return a filled outline, blurred: float32 [H, W], 0 to 1. Wide blurs are made on a coarser grid."""
    step = max(1, int(sigma_px / 2))
    if step == 1:
        return _blurred(_filled(outline, shape), sigma_px)
    small = tuple(-(-side // step) for side in shape)
    mask = cv2.GaussianBlur(_filled((outline + 0.5) / step - 0.5, small), (0, 0), sigma_px / step)
    return _enlarged(mask, step, shape).astype(np.float32) * np.float32(1 / 255)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], grain_px: float) -> np.ndarray:
    """Return smooth noise about 0, float32 [H, W], standard deviation about 0.5."""
    step = max(1, int(grain_px / 2))
    small = tuple(-(-side // step) + 1 for side in shape)
    sigma = grain_px / step / 2
    values = cv2.GaussianBlur(rng.integers(0, 2**16, small, dtype=np.uint16), (0, 0), sigma)
    # A blur of sigma s leaves 1 / (2 s sqrt(pi)) of white noise's standard deviation, 2**16 / sqrt(12).
    factor = 0.5 * math.sqrt(12) / 2**16 * 2 * sigma * math.sqrt(math.pi)
    return (_enlarged(values, step, shape).astype(np.float32) - 32768) * np.float32(factor)


def _enlarged(small: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    size = (small.shape[1] * step, small.shape[0] * step)
    large = small if step == 1 else cv2.resize(small, size, interpolation=cv2.INTER_LINEAR_EXACT)
    return large[: shape[0], : shape[1]]


# --- a data set ----------------------------------------------------------------------------------


def write_dataset(out: Path, cells: int, seed: int, progress: Progress = SILENT) -> Path:
    """Write `cells` drawn cells, as many of every class as the number allows, and their masks.

    Leaves `out/cells/<Class>/NNN_MM.png` (field NNN, cell MM of it; cells of a field share stain, light
    and blur), `out/masks/<Class>/NNN_MM.png` (0 background, 1 cytoplasm, 2 nucleus) and
    `out/synthetic.json`. A cell depends only on the seed, its class and its number, not on `cells`. Run
    again, the same files come out; cells beyond `cells` that an earlier run left are removed.

    Returns:
        `out/cells`, the folder to train on.

    Raises:
        UsageError: fewer than five cells, a negative seed, or `out` holds something else.
    """
    if cells < len(APPEARANCES):
        raise UsageError(
            f"{counted(cells, 'cell', 'is', 'are')} too few: "
            f"ask for at least {len(APPEARANCES)}, one per class."
        )
    if seed < 0:
        raise UsageError(f"The seed {seed} is negative: choose one of 0 or more.")
    out = Path(out)
    record = {"notice": RESEARCH_USE_ONLY, "drawn_by": "cervicyte synth", "finished": False}
    _claim(out)
    write_json(out / "synthetic.json", record)
    counts = {
        label: cells // len(APPEARANCES) + (index < cells % len(APPEARANCES))
        for index, label in enumerate(APPEARANCES)
    }
    digest = hashlib.sha256()
    written = set()
    progress.start("Drawing cells", cells)
    for label, count in counts.items():
        for k in range(count):
            name = f"{label}/{k // CELLS_PER_FIELD + 1:03d}_{k % CELLS_PER_FIELD + 1:02d}.png"
            drawn = dataset_cell(label, k, seed)
            mask = drawn.cell.astype(np.uint8) + drawn.nucleus
            for part, pixels in (("cells", drawn.image), ("masks", mask)):
                _write_png(out / part / name, pixels)
                written.add(out / part / name)
                digest.update(f"{part}/{name} {pixels.shape}".encode() + pixels.tobytes())
            progress.advance()
    progress.close()
    _remove_cells_of_a_longer_run(out, written)
    record |= {
        "finished": True,
        "algorithm": ALGORITHM_VERSION,
        "seed": seed,
        "cells": cells,
        "cells_per_class": counts,
        "mask_values": {"background": 0, "cytoplasm": 1, "nucleus": 2},
        "sha256_of_names_shapes_and_pixels": digest.hexdigest(),
        "versions": library_versions(),
    }
    write_json(out / "synthetic.json", record)
    return out / "cells"


def dataset_cell(label: str, k: int, seed: int) -> SyntheticCell:
    """Draw the k-th cell (from 0) of a class in the data set of that seed.

    Raises:
        UsageError: no such class.
    """
    look = _appearance(label)
    class_index = list(APPEARANCES).index(label)
    field_seed = np.random.SeedSequence(seed, spawn_key=(class_index, 0, k // CELLS_PER_FIELD))
    cell_seed = np.random.SeedSequence(seed, spawn_key=(class_index, 1, k))
    field = _draw_field(look, np.random.default_rng(field_seed))
    return _draw(field, np.random.default_rng(cell_seed))


def _claim(out: Path) -> None:
    """Refuse a folder with anything in it that an earlier run did not write."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: this is a file; name a folder for the drawn cells.")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        record = json.loads((out / "synthetic.json").read_text(encoding="utf-8"))
        ours = isinstance(record, dict) and record.get("drawn_by") == "cervicyte synth"
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UsageError(f"{out}: this folder holds other files; name an empty or new one.")


def _write_png(path: Path, pixels: np.ndarray) -> None:
    notice = PngInfo()
    notice.add_text("Description", f"Synthetic cell drawn by Cervicyte. {RESEARCH_USE_ONLY}")
    with written_atomically(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG", pnginfo=notice, compress_level=1)


def _remove_cells_of_a_longer_run(out: Path, written: set[Path]) -> None:
    for part in ("cells", "masks"):
        for label in APPEARANCES:
            for path in (out / part / label).iterdir():
                if re.fullmatch(r"\d{3,}_\d{2}\.png", path.name) and path not in written:
                    path.unlink()
