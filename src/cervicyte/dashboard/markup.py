"""Small pieces of the dashboard's pages: pictures that carry their pixels, errors, the colour scale."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image

from cervicyte.dashboard.limits import SHOWN_SIDE
from cervicyte.explanation.colours import overlay

THUMBNAIL_SIDE = 112  # pixels: twice the size in which it stands in a list
LOSSLESS_SIDE = 640  # pixels; a larger picture goes to the browser as JPEG


def smaller(image: np.ndarray, side: int = SHOWN_SIDE) -> np.ndarray:
    """Shrink uint8 [H, W, 3] so that no side is longer than `side`; a smaller image stays as it is."""
    if max(image.shape[:2]) <= side:
        return image
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def onto(shown: np.ndarray, maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shrink maps, float32 [H, W], to an image that `smaller` has made of theirs, uint8 [h, w, 3]."""
    height, width = shown.shape[:2]
    return {
        name: cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA)
        for name, values in maps.items()
    }


def data_uri(image: np.ndarray, lossless: bool | None = None) -> str:
    """Return uint8 [H, W, 3] as an address that carries its pixels; nothing has to lie on a disk.

    Args:
        image: in RGB.
        lossless: PNG or JPEG; by its size unless given.
    """
    if lossless is None:
        lossless = max(image.shape[:2]) <= LOSSLESS_SIDE
    file = io.BytesIO()
    if lossless:
        Image.fromarray(image).save(file, "PNG", compress_level=4)
    else:
        Image.fromarray(image).save(file, "JPEG", quality=90)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def picture(image: np.ndarray, description: str, class_name: str = "") -> str:
    """Return uint8 [H, W, 3] as an HTML image; an empty description says that it tells nothing more."""
    named = f' class="{class_name}"' if class_name else ""
    return f'<img{named} src="{data_uri(image)}" alt="{html.escape(description)}" draggable="false">'


def thumbnail(image: np.ndarray) -> str:
    """Return a small square from the middle of an image as an address that carries its pixels."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return data_uri(smaller(image[top : top + side, left : left + side], THUMBNAIL_SIDE), lossless=False)


def error_html(sentence: str) -> str:
    """Return an error's sentence as it stands on the page."""
    return f'<p class="refusal" role="alert">{html.escape(sentence)}</p>'


def percent_bar(share: float, class_name: str = "") -> str:
    """Return a bar that is filled to a share, for people who see; the figure stands beside it."""
    return f'<span class="track {class_name}"><i style="width:{100 * share:.1f}%"></i></span>'


# The colours of the maps on a grey that is as bright as thin cytoplasm.
SCALE = picture(
    overlay(np.full((10, 256, 3), 215, np.uint8), np.tile(np.linspace(0, 1, 256), (10, 1))), "colour scale"
)
