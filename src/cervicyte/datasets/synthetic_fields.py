"""Draws places on the glass larger than a photograph, and photographs them again and again.

What was moved, turned, blurred and relit is then known, and so is which photographs and crops show one
place: the truth that matching is measured against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from cervicyte.datasets.synthetic import APPEARANCES, dataset_cell

FEATHER = 0.06  # of a cell's diameter, over which it fades into the background


@dataclass(frozen=True)
class Scene:
    """A place on the glass: image uint8 [H, W, 3], RGB, and the cells on it.

    boxes: float [n, 4], left, top, right, bottom of each cell in pixels; labels: their classes.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Photograph:
    """A photograph of a scene: image uint8 [h, w, 3], and where a place of the scene lies in it.

    to_photograph: float [2, 3].
    """

    image: np.ndarray
    to_photograph: np.ndarray

    def place(self, points: np.ndarray) -> np.ndarray:
        """Return places in the photograph, float [n, 2], of places in the scene."""
        return points @ self.to_photograph[:, :2].T + self.to_photograph[:, 2]


def draw_scene(seed: int, number: int, height: int, width: int, cells: int) -> Scene:
    """Draw the scene of that number: cells of the five classes on a background with streaks and specks.

    Cells may lie over one another as they do on the glass: each dims the light once more.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
    light = rng.uniform((195, 200, 205), (235, 240, 245))
    transmitted = _background(rng, height, width)
    boxes, labels = [], []
    for which in range(cells):
        label = str(rng.choice(list(APPEARANCES)))
        drawn = dataset_cell(label, number * cells + which, seed)  # no cell lies in two scenes
        image, mask = drawn.image, drawn.cell
        turns = int(rng.integers(4))
        image, mask = np.rot90(image, turns), np.rot90(mask, turns)
        tall, wide = mask.shape
        if tall >= height or wide >= width:
            continue
        top, left = int(rng.integers(height - tall)), int(rng.integers(width - wide))
        around = np.percentile(image[~mask], 90, axis=0) if (~mask).any() else image.max((0, 1))
        opaque = _faded(mask)[..., None]
        share = np.minimum(1.0, image / np.maximum(around, 1.0))
        transmitted[top : top + tall, left : left + wide] *= 1 - opaque * (1 - share)
        boxes.append((left, top, left + wide, top + tall))
        labels.append(label)
    image = np.clip(np.round(transmitted * light), 0, 255).astype(np.uint8)
    return Scene(image, np.array(boxes, float).reshape(-1, 4), tuple(labels))


def photograph(
    scene: Scene,
    height: int,
    width: int,
    *,
    shift_px: tuple[float, float] = (0.0, 0.0),
    degrees: float = 0.0,
    blur_px: float = 0.0,
    exposure: float = 1.0,
    noise: float = 2.0,
    seed: int = 0,
) -> Photograph:
    """Photograph a scene.

    Args:
        scene: what lies under the microscope.
        height, width: of the photograph in pixels.
        shift_px: right and down, of the photograph's middle from that of the scene.
        degrees: by which the camera is turned.
        blur_px: standard deviation of the loss of focus.
        exposure: factor on the light.
        noise: grey levels, standard deviation.
        seed: of the noise.
    """
    middle = np.array(scene.image.shape[1::-1]) / 2 + shift_px
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    warp = np.column_stack([turn, (width / 2, height / 2) - turn @ middle])
    image = cv2.warpAffine(
        scene.image, warp, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    if blur_px:
        image = cv2.GaussianBlur(image, (0, 0), blur_px)
    grain = np.random.default_rng(seed).normal(0, noise, image.shape)
    return Photograph(np.clip(np.round(image * exposure + grain), 0, 255).astype(np.uint8), warp)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return the share of light that passes the empty glass, float [H, W, 3]: uneven mucus and specks."""
    density = np.zeros((height, width), np.float32)
    for grain_px, strength in ((150, 0.03), (40, 0.015), (12, 0.006)):
        noise = rng.standard_normal((height // (grain_px // 2) + 2, width // (grain_px // 2) + 2))
        density += strength * (2 + cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
    specks = np.zeros((height, width), np.uint8)
    for _ in range(rng.poisson(height * width / 12_000)):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        dx, dy = (int(value) for value in rng.integers(-6, 7, 2))
        cv2.line(specks, (x - dx, y - dy), (x + dx, y + dy), int(rng.integers(40, 140)), 1, cv2.LINE_AA)
    density += cv2.GaussianBlur(specks, (0, 0), 0.8).astype(np.float32) / 255
    tint = rng.uniform(0.7, 1.3, 3)
    return np.exp(-density[..., None] * tint)


def _faded(mask: np.ndarray) -> np.ndarray:
    """Return a mask, bool [H, W], that fades at its edge, float from 0 to 1."""
    sigma = max(1.0, FEATHER * math.sqrt(mask.size) / 2)
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)
