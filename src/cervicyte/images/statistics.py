"""What can be told of an image without knowing what it shows: size, light, stain and focus.

They are what differs between laboratories. Inspection looks for outliers in them, and
`evaluation.familiarity` says in which of them an image is unlike the training cells.
"""

from __future__ import annotations

import cv2
import numpy as np

STATISTICS = {
    "size_px": ("Size", "px", "geometric mean of height and width"),
    "lightness": ("Lightness", "", "mean luminance, 0 to 255"),
    "background": ("Exposure", "", "95th percentile of luminance: the light where the glass is clear"),
    "redness": ("Stain", "", "difference of mean optical density, green minus red: above 0 is pink to red"),
    "focus": ("Focus", "", "log10 of the variance of the Laplacian over that of luminance"),
}
"""Of each statistic its title, its unit and what it is."""


def image_statistics(image: np.ndarray) -> tuple[float, ...]:
    """Return the values of `STATISTICS` in their order, for an image uint8 [H, W, 3], RGB."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    density = [-np.log10((value + 1) / 256) for value in cv2.mean(image)[:3]]
    sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var()) / max(float(grey.var()), 1.0)
    return (
        float(height * width) ** 0.5,
        float(grey.mean()),
        float(np.percentile(grey, 95)),
        float(density[1] - density[0]),
        float(np.log10(max(sharpness, 1e-6))),
    )


def background_of(image: np.ndarray) -> np.ndarray:
    """Return the light where the glass is clear: each channel's 95th percentile, float64 [3], 0 to 255."""
    return np.asarray(np.percentile(image.reshape(-1, 3), 95, axis=0))
