"""Random changes of training images, with torchvision's transforms v2 on uint8 tensors.

Every image's changes are drawn from (seed, epoch, index) alone: the same whatever the number of
worker processes or devices, and after a resumed run.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from cervicyte.training.recipe import Augmentation

# Optical densities of haematoxylin, eosin and DAB in RGB (Ruifrok & Johnston, Anal. Quant. Cytol.
# Histol. 2001). Papanicolaou's stains differ; as axes along which to vary colour they serve.
STAIN_DENSITIES = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAIN_UNMIXING = torch.linalg.inv(STAIN_DENSITIES)


class StainJitter(v2.Transform):
    """Scale each stain's optical density by 1 ± `strength` (Tellez et al., IEEE TMI 2018)."""

    def __init__(self, strength: float) -> None:
        """Take the largest relative change of a stain's density."""
        super().__init__()
        self.strength = strength

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, H, W] to uint8 [3, H, W]."""
        factors = 1 + self.strength * (2 * torch.rand(3) - 1)
        # Unmix, scale and mix again are three linear maps: one matrix, applied to the densities.
        change = STAIN_UNMIXING @ torch.diag(factors) @ STAIN_DENSITIES
        density = DENSITY_OF_BYTE[inpt.int()]
        changed = torch.einsum("chw,cd->dhw", density, change)
        return torch.exp(-changed).mul_(256).sub_(1).round_().clamp_(0, 255).to(torch.uint8)


DENSITY_OF_BYTE = -torch.log((torch.arange(256) + 1) / 256)


class Magnification(v2.Transform):
    """Magnify by a factor drawn between `low` and `high`; mirror what lies beyond the edge."""

    def __init__(self, low: float, high: float) -> None:
        """Take the smallest and the largest magnification."""
        super().__init__()
        self.low, self.high = low, high

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, S, S] to uint8 [3, S, S]."""
        size = inpt.shape[-1]
        factor = math.exp(torch.empty(1).uniform_(math.log(self.low), math.log(self.high)).item())
        window = round(size / factor)
        margin = max(0, math.ceil((window - size) / 2))
        if margin:  # OpenCV mirrors as often as needed, torchvision only once
            edges = [margin] * 4
            inpt = _image(cv2.copyMakeBorder(_pixels(inpt), *edges, cv2.BORDER_REFLECT_101))
        room = max(0, inpt.shape[-1] - window)
        top, left = torch.randint(0, room + 1, (2,)).tolist()
        return functional.resized_crop(
            inpt, top, left, window, window, [size, size], InterpolationMode.BILINEAR, antialias=True
        )


class QuarterTurn(v2.Transform):
    """Turn by 0, 90, 180 or 270 degrees: a smear has no up."""

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map [3, S, S] to [3, S, S]."""
        return torch.rot90(inpt, int(torch.randint(0, 4, (1,))), dims=(-2, -1))


class JPEG(v2.Transform):
    """Compress as JPEG at a quality drawn from `low` to `high`, as other people's images are.

    OpenCV's own, since torchvision has announced that it gives up encoding.
    """

    def __init__(self, low: int, high: int) -> None:
        """Take the lowest and the highest quality, 1 to 100."""
        super().__init__()
        self.low, self.high = low, high

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, H, W] to uint8 [3, H, W]."""
        quality = int(torch.randint(self.low, self.high + 1, (1,)))
        _, encoded = cv2.imencode(".jpg", _pixels(inpt), [cv2.IMWRITE_JPEG_QUALITY, quality])
        return _image(cv2.imdecode(encoded, cv2.IMREAD_COLOR))


def build_augmentation(settings: Augmentation) -> v2.Transform:
    """Return the chain of random changes, uint8 [3, S, S] to uint8 [3, S, S]."""
    steps: list[v2.Transform] = []
    if settings.flips:
        steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    if settings.quarter_turns:
        steps.append(QuarterTurn())
    if settings.scale_low < 1 or settings.scale_high > 1:
        steps.append(Magnification(settings.scale_low, settings.scale_high))
    if settings.stain:
        steps.append(StainJitter(settings.stain))
    if settings.colour:
        steps.append(v2.ColorJitter(settings.colour, settings.colour, settings.colour))
    if settings.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(5, sigma=(0.3, 1.5))], settings.blur))
    if settings.jpeg:
        steps.append(v2.RandomApply([JPEG(40, 95)], settings.jpeg))
    return v2.Compose(steps) if steps else v2.Identity()


def _pixels(image: Tensor) -> np.ndarray:
    """Return uint8 [3, H, W] as OpenCV takes it, [H, W, 3]."""
    return image.permute(1, 2, 0).contiguous().numpy()


def _image(pixels: np.ndarray) -> Tensor:
    """Return uint8 [H, W, 3] as torchvision takes it, [3, H, W]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
