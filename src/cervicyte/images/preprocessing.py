"""What every image goes through before the network: one value object that travels with the model.

The steps, in this order: the channels are multiplied (optional); the bright background is made white
(optional); the image is scaled and centred on a square canvas, the rest of which is filled by its mirror
image; noise is removed (optional); local contrast is raised (optional); the canvas is resized to the
network's input. Mirror reflection leaves no constant border, which a network could learn to take for a
class: the cells' aspect ratio differs from class to class.

A crop that is cut close round a small cell fills the canvas as a large cell does. With a least side it stays
small: it is laid on a square of that side, which has the colour of its border. Mirror images would be more
cells.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from cervicyte.provenance import sha256_of_json

# Constants of the algorithm. They and the order of the steps take part in the fingerprint; raise the
# version with any change that alters a pixel. A step added later has an entry under its setting's name,
# which takes part where the step is on, so that model files from before it keep their fingerprint.
ALGORITHM: dict[str, Any] = {
    "version": 1,
    "steps": ["square", "denoise", "clahe", "resize"],
    "border": "mirror, edge pixel repeated",
    "enlarging": {"area": "bilinear", "lanczos": "lanczos"},
    # Buades, Coll & Morel: "A non-local algorithm for image denoising", CVPR 2005.
    "denoise": {"strength": 3, "template": 7, "search": 21},
    # Zuiderveld: "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994.
    "clahe": {"clip_limit": 1.2, "tiles": 6},
    # The bright background is a channel's 95th percentile: of 3,445 SIPaKMeD crops the median is 191, 192
    # and 209 in red, green and blue, of 467 Herlev crops 181, 174 and 185. A crop that the cell fills shows
    # no background; the bound on the gain, which holds in 33 % and 16 % of them, keeps it from washing out.
    "white_point": {"before": "square", "percentile": 95, "white": 240, "largest_gain": 1.6},
    # One for all images of a laboratory, unlike the white point, which is each image's own.
    "gain": {"before": "white_point"},
    "least_side": {"border": "median of the outermost pixels, each channel"},
}
ADDED_LATER = ("white_point", "gain", "least_side")
LARGEST_GAIN = 3.0
LARGEST_SIDE = 2048  # pixels
NO_GAIN = (1.0, 1.0, 1.0)

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Gain = Annotated[float, Field(ge=1 / LARGEST_GAIN, le=LARGEST_GAIN, allow_inf_nan=False)]


class ScaledToFitWarning(UserWarning):
    """At its native scale an image is larger than the canvas; it was scaled to fit instead."""


@dataclass(frozen=True)
class CanvasPlacement:
    """Where an image lies on the square canvas, in canvas pixels.

    Attributes:
        scale: canvas pixels per image pixel, before sides are rounded to whole pixels.
        top, left: the image's first row and column.
        height, width: the image's size there.
    """

    scale: float
    top: int
    left: int
    height: int
    width: int


class Preprocessing(BaseModel):
    """Settings and steps that lead from an image to the network's input. Immutable.

    Example:
        >>> preprocessing = Preprocessing(image_size=64)
        >>> preprocessing(np.zeros((150, 90, 3), np.uint8)).shape
        (64, 64, 3)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    canvas_size: int = Field(
        default=256, ge=16, le=LARGEST_SIDE, description="side of the square canvas, pixels"
    )
    image_size: int = Field(default=224, ge=16, le=1024, description="side of the network's input, pixels")
    scale: Literal["fit", "native"] = Field(
        default="fit", description="fit: the longer side fills the canvas; native: every image at one scale"
    )
    # At 0.5, canvases of 256 take 512 pixels: 99.8 % of the 3,445 SIPaKMeD crops in ../shared (longer
    # side: median 196, largest 534) and 99.6 % of the 467 Herlev crops need no further scaling.
    native_factor: float = Field(
        default=0.5, ge=0.01, le=16, allow_inf_nan=False, description="canvas pixels per image pixel (native)"
    )
    least_side: int = Field(
        default=0,
        ge=0,
        le=LARGEST_SIDE,
        description="fit: smaller images lie on a square of so many pixels; what is left has the border's "
        "colour; 0: none",
    )
    resampling: Literal["area", "lanczos"] = Field(
        default="area",
        description="area: pixel areas when shrinking, bilinear when enlarging; lanczos: Lanczos 3",
    )
    denoise: bool = Field(default=False, description="non-local means of each channel")
    clahe: bool = Field(default=False, description="contrast-limited adaptive equalisation of each channel")
    white_point: bool = Field(default=False, description="scale each channel so that the background is white")
    gain: tuple[Gain, Gain, Gain] = Field(
        default=NO_GAIN, description="multiplies each channel, RGB; `cervicyte adapt` finds a laboratory's"
    )
    # ImageNet's figures, with which the backbones' first weights were trained.
    mean: tuple[Share, Share, Share] = Field(default=(0.485, 0.456, 0.406), description="subtracted, RGB")
    std: tuple[Spread, Spread, Spread] = Field(default=(0.229, 0.224, 0.225), description="divided by, RGB")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Map an image, uint8 [H, W, 3], RGB, to uint8 [image_size, image_size, 3].

        Warns:
            ScaledToFitWarning: at its native scale the image is larger than the canvas.

        Raises:
            ValueError: not an array as described, or without pixels.
        """
        return self.steps(image)[-1][1]

    def steps(self, image: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Return every stage with its name, each uint8 [h, w, 3]: original, gain and white point (where
        they are on), square, denoised and CLAHE (where they are on), resized. Warns and raises as the call
        itself does.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"an image is uint8 [H, W, 3] with pixels, not {image.dtype} {image.shape}")
        stages = [("original", image)]
        if self.gain != NO_GAIN:
            stages.append(("gain", cv2.merge([*map(_times, cv2.split(image), self.gain)])))
        if self.white_point:
            stages.append(("white point", _white(stages[-1][1])))
        stages.append(("square", self._square(stages[-1][1])))
        if self.denoise:
            stages.append(("denoised", _denoised(stages[-1][1])))
        if self.clahe:
            stages.append(("CLAHE", _equalised(stages[-1][1])))
        stages.append(("resized", self._resized(stages[-1][1], self.image_size, self.image_size)))
        return stages

    def placement(self, height: int, width: int) -> CanvasPlacement:
        """Return where an image of this size, in pixels, lies on the canvas."""
        if height < 1 or width < 1:
            raise ValueError(f"an image has at least one pixel, not {height}x{width}")
        factor = self.canvas_size / max(height, width, self.least_side if self.scale == "fit" else 1)
        if self.scale == "native":
            factor = min(factor, self.native_factor)
        placed_height, placed_width = (max(1, math.floor(side * factor + 0.5)) for side in (height, width))
        top, left = (self.canvas_size - placed_height) // 2, (self.canvas_size - placed_width) // 2
        return CanvasPlacement(factor, top, left, placed_height, placed_width)

    def onto_original(self, values: np.ndarray, height: int, width: int) -> np.ndarray:
        """Lay a map over the preprocessed image onto the original's pixels; the padding falls away.

        Args:
            values: float [h, w] of any resolution; it covers the preprocessed image edge to edge.
            height, width: the original's size in pixels.

        Returns:
            float [height, width], float32 unless `values` is float64: bilinear between the centres
            of the map's cells, and constant beyond the outermost centres.
        """
        if values.ndim != 2 or not values.size:
            raise ValueError(f"a map is [h, w] with cells, not {values.shape}")
        placement = self.placement(height, width)
        rows, row_shares = self._cells_under(placement.top, placement.height, height, values.shape[0])
        columns, column_shares = self._cells_under(placement.left, placement.width, width, values.shape[1])
        kind = values.dtype if values.dtype == np.float64 else np.float32
        values, row_shares, column_shares = (a.astype(kind) for a in (values, row_shares, column_shares))
        below = np.minimum(rows + 1, values.shape[0] - 1)
        beside = np.minimum(columns + 1, values.shape[1] - 1)
        by_row = values[rows] + (values[below] - values[rows]) * row_shares[:, np.newaxis]
        left, right = by_row[:, columns], by_row[:, beside]
        return left + (right - left) * column_shares

    def padding_mask(self, height: int, width: int) -> np.ndarray:
        """Return bool [image_size, image_size]: True where a pixel shows padding alone.

        `height` and `width` are the original's, in pixels. A pixel that the image's edge crosses
        counts as image, so that the thinnest image still has pixels of its own.
        """
        placement = self.placement(height, width)
        # In units of 1 / image_size of a canvas pixel: whole numbers, so that edges can coincide.
        edges = np.arange(self.image_size + 1) * self.canvas_size
        in_rows, in_columns = (
            (edges[1:] > start * self.image_size) & (edges[:-1] < (start + length) * self.image_size)
            for start, length in ((placement.top, placement.height), (placement.left, placement.width))
        )
        return ~(in_rows[:, np.newaxis] & in_columns)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 [N, H, W, 3], RGB, to the network's float32 [N, 3, H, W]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (images.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))

    def geometry(self) -> Preprocessing:
        """Return the same without the steps that change colours: what masks go through."""
        return self.model_copy(
            update={"gain": NO_GAIN, "white_point": False, "denoise": False, "clahe": False}
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that differ where any setting or constant in use does."""
        algorithm, settings = dict(ALGORITHM), self.model_dump(mode="json")
        for step in ADDED_LATER:
            if getattr(self, step) == type(self).model_fields[step].default:
                del algorithm[step], settings[step]
        return sha256_of_json({"algorithm": algorithm, "settings": settings})[:16]

    def _square(self, image: np.ndarray) -> np.ndarray:
        """Place the image on the canvas and fill the rest with its mirror image, or its border's colour."""
        height, width = image.shape[:2]
        placement = self.placement(height, width)
        if self.scale == "native" and placement.scale < self.native_factor:
            warnings.warn(
                f"an image of {height}x{width} pixels is larger than the canvas of {self.canvas_size} at "
                f"{self.native_factor:g} canvas pixels each; it was scaled to fit, by {placement.scale:.3g}",
                ScaledToFitWarning,
                stacklevel=4,
            )
        placed = self._resized(image, placement.height, placement.width)
        bottom = self.canvas_size - placement.top - placement.height
        right = self.canvas_size - placement.left - placement.width
        sides = (placement.top, bottom, placement.left, right)
        if self.least_side and self.scale == "fit":
            border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            colour = np.median(border, axis=0).round().tolist()
            return cv2.copyMakeBorder(placed, *sides, cv2.BORDER_CONSTANT, value=colour)
        # BORDER_REFLECT repeats the reflection as often as needed, and is defined for a side of one
        # pixel, which BORDER_REFLECT_101 is not.
        return cv2.copyMakeBorder(placed, *sides, cv2.BORDER_REFLECT)

    def _resized(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        if image.shape[:2] == (height, width):
            return image
        if self.resampling == "lanczos":
            # Pillow widens the kernel when shrinking; OpenCV's INTER_LANCZOS4 does not, and aliases.
            shrunk = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
            return np.array(shrunk)
        # OpenCV's INTER_AREA is nearest-neighbour-like when enlarging.
        shrinks = height <= image.shape[0] and width <= image.shape[1]
        return cv2.resize(
            image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )

    def _cells_under(self, start: int, length: int, pixels: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each original pixel's centre along one side, the map cell before it and the
        share of the cell after it; `start` and `length` are the placement's.
        """
        on_canvas = start + (np.arange(pixels) + 0.5) * (length / pixels)
        on_map = np.clip(on_canvas * (cells / self.canvas_size) - 0.5, 0, cells - 1)
        before = on_map.astype(np.intp)
        return before, on_map - before


ORIGINAL_PREPROCESSING = Preprocessing(denoise=True, clahe=True)
"""Of the original notebook's checkpoints, which do not state theirs."""


def _white(image: np.ndarray) -> np.ndarray:
    """Scale each channel so that its bright background becomes the white of `ALGORITHM`.

    The white patch algorithm of colour constancy (Land & McCann, "Lightness and retinex theory", J. Opt.
    Soc. Am. 1971), with a percentile in place of the brightest pixel.
    """
    settings = ALGORITHM["white_point"]

    def scaled(channel: np.ndarray) -> np.ndarray:
        darker = np.cumsum(np.bincount(channel.ravel(), minlength=256))  # or as dark
        background = int(np.searchsorted(darker, settings["percentile"] / 100 * channel.size))
        return _times(channel, min(settings["white"] / max(1, background), settings["largest_gain"]))

    return _by_channel(image, scaled)


def _times(channel: np.ndarray, gain: float) -> np.ndarray:
    return cv2.LUT(channel, np.clip(np.round(np.arange(256) * gain), 0, 255).astype(np.uint8))


def _denoised(image: np.ndarray) -> np.ndarray:
    settings = ALGORITHM["denoise"]
    return _by_channel(
        image,
        lambda channel: cv2.fastNlMeansDenoising(
            channel, None, settings["strength"], settings["template"], settings["search"]
        ),
    )


def _equalised(image: np.ndarray) -> np.ndarray:
    tiles = ALGORITHM["clahe"]["tiles"]
    # One for each call: OpenCV's CLAHE objects hold state that threads must not share.
    clahe = cv2.createCLAHE(ALGORITHM["clahe"]["clip_limit"], (tiles, tiles))
    return _by_channel(image, clahe.apply)


def _by_channel(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return cv2.merge([change(channel) for channel in cv2.split(image)])
