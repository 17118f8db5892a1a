"""Outlines of nucleus and cell that a data set brings along: SIPaKMeD's contour files, synthetic masks.

SIPaKMeD keeps, beside each crop `NNN_MM.bmp`, the hand-drawn contours `NNN_MM_cyt*.dat` (the whole cell,
its nucleus included) and `NNN_MM_nuc*.dat`: a line `x,y` a point, in the crop's pixels, origin top left,
not closed. (Files named `NNN_cytMM.dat` belong to the whole field and are not read.) Of the published
4,049 cells 49 have a broken contour; such a cell counts as having none.
"""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from cervicyte.datasets.layouts import Cell
from cervicyte.images.reader import read_image
from cervicyte.images.segmentation import Outlines

FEWEST_POINTS = 3
FARTHEST_OUTSIDE = 3.0  # pixels that a drawn contour may lie outside its crop
LEAST_COMMON = 0.5  # share of the nucleus that lies in the cell, before the two are taken for mismatched
SYNTHETIC_CELLS, SYNTHETIC_MASKS = "cells", "masks"


class BrokenContour(ValueError):
    """A contour file holds no outline of this crop. The cell can still be used, without it."""


def outlines_beside(cell: Cell, height: int, width: int) -> Outlines | None:
    """Return the outlines that lie beside a crop of this size, in pixels; None if there are none.

    Raises:
        BrokenContour: there are, but they cannot be used.
    """
    return _drawn_by_hand(cell.path, height, width) or _of_synthetic(cell.path, height, width)


def read_contour(path: Path, height: int, width: int) -> np.ndarray:
    """Return the filled outline of a contour file, bool [H, W].

    Raises:
        BrokenContour: not lines of `x,y`, too few of them, outside the crop, or without area.
    """
    try:
        lines = path.read_text(encoding="ascii").split()
        points = np.array([[float(number) for number in line.split(",")] for line in lines])
    except (OSError, ValueError) as error:
        raise BrokenContour(f"{path}: does not hold lines of x,y.") from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < FEWEST_POINTS:
        raise BrokenContour(f"{path}: holds fewer than {FEWEST_POINTS} points of x,y.")
    if not np.isfinite(points).all():
        raise BrokenContour(f"{path}: holds a point that is no number.")
    beyond = max(float((-points).max()), float((points - (width - 1, height - 1)).max()))
    if beyond > FARTHEST_OUTSIDE:
        raise BrokenContour(f"{path}: lies {beyond:.0f} pixels outside its crop of {width} by {height}.")
    mask = np.zeros((height, width), np.uint8)
    # In sixteenths of a pixel, as OpenCV's `shift` reads them.
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    corners = points.astype(np.float32)
    if cv2.contourArea(corners) < 1:
        raise BrokenContour(f"{path}: encloses no area.")
    return mask > 0


def _drawn_by_hand(path: Path, height: int, width: int) -> Outlines | None:
    name = re.compile(rf"{re.escape(path.stem)}_(cyt|nuc)\d*\.dat", re.IGNORECASE)
    found: dict[str, Path] = {}
    for beside in sorted(path.parent.glob(f"{path.stem}_*.[dD][aA][tT]")):
        match = name.fullmatch(beside.name)
        if match:
            found.setdefault(match[1].lower(), beside)
    if not found:
        return None
    if len(found) < 2:
        raise BrokenContour(f"{path}: only one of its two contour files is there.")
    nucleus, cell = (read_contour(found[part], height, width) for part in ("nuc", "cyt"))
    if (nucleus & cell).sum() < LEAST_COMMON * nucleus.sum():
        raise BrokenContour(f"{found['nuc']}: the nucleus lies outside its cell.")
    return Outlines(nucleus, nucleus | cell)


def _of_synthetic(path: Path, height: int, width: int) -> Outlines | None:
    """Return the masks that `cervicyte synth` draws: `masks/<Class>/<name>` for `cells/<Class>/<name>`."""
    if len(path.parents) < 3 or path.parents[1].name != SYNTHETIC_CELLS:
        return None
    mask_path = path.parents[2] / SYNTHETIC_MASKS / path.parent.name / path.name
    if not mask_path.is_file():
        return None
    values = read_image(mask_path)[..., 0]
    if values.shape != (height, width):
        raise BrokenContour(f"{mask_path}: is not of the size of its cell.")
    return Outlines(values >= 2, values >= 1)
