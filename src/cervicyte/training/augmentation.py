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

from cervicyte.images.corruptions import STAINS
from cervicyte.training.recipe import Augmentation

# Haematoxylin, eosin and DAB. Papanicolaou's stains differ; as axes along which to vary colour they serve.
STAIN_DENSITIES = torch.tensor(STAINS, dtype=torch.float32)
# Settings that imitate another laboratory, and are off at 0; `framing` is, at 1.
FOREIGN = ("stain_shift", "illumination", "white_balance", "focus", "resolution", "noise")
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
        density = torch.from_numpy(cv2.LUT(_pixels(inpt), DENSITY_OF_BYTE.numpy()[None]))
        changed = torch.exp(density @ -change).mul_(256).sub_(1).round_().clamp_(0, 255).to(torch.uint8)
        return changed.permute(2, 0, 1).contiguous()


DENSITY_OF_BYTE = -torch.log((torch.arange(256) + 1) / 256)


class StainShift(v2.Transform):
    """Add ± `strength` to each stain's optical density (Tellez et al., Medical Image Analysis 2019).

    On the background too, which takes on the stains' colour, as where the washing of a slide left some.
    """

    def __init__(self, strength: float) -> None:
        """Take the largest optical density (natural logarithm) that is added or taken away."""
        super().__init__()
        self.strength = strength

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, H, W] to uint8 [3, H, W]."""
        shifts = self.strength * (2 * torch.rand(3) - 1) @ STAIN_DENSITIES
        levels = torch.exp(-(DENSITY_OF_BYTE + shifts[:, None])) * 256 - 1
        return _through_tables(inpt, levels)


class WhiteBalance(v2.Transform):
    """Scale each channel by 1 ± `strength`, as lamps and cameras balanced to another white do."""

    def __init__(self, strength: float) -> None:
        """Take the largest relative change of a channel."""
        super().__init__()
        self.strength = strength

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, H, W] to uint8 [3, H, W]."""
        gains = 1 + self.strength * (2 * torch.rand(3) - 1)
        return _through_tables(inpt, torch.arange(256) * gains[:, None])


class Illumination(v2.Transform):
    """Brighten and darken smoothly across the field by up to `strength`, as a lamp out of its middle does.

    The gradient is linear and quadratic (Likar et al., "Retrospective shading correction based on
    entropy minimization", J. Microscopy 2000).
    """

    def __init__(self, strength: float) -> None:
        """Take the largest relative change of brightness, which a corner or the middle shows."""
        super().__init__()
        self.strength = strength

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, H, W] to uint8 [3, H, W]."""
        y, x = (torch.linspace(-1, 1, side) for side in inpt.shape[1:])
        tilt_x, tilt_y, bowl = 2 * torch.rand(3) - 1
        size = self.strength * torch.rand(1) / (tilt_x.abs() + tilt_y.abs() + bowl.abs())
        shape = (tilt_x * x + bowl * x**2) + (tilt_y * y + bowl * (y**2 - 1))[:, None]
        return (inpt * (1 + size * shape)).round_().clamp_(0, 255).to(torch.uint8)


class Framing(v2.Transform):
    """Look closer at the middle, where the nucleus is, or from farther off, as other croppers of cells do.

    Magnified by up to `largest`, or shrunk by up to its root amid mirrored surroundings. `Magnification`
    takes its window from anywhere in the image, which at such factors would cut through the nucleus. At
    2, the middle holds 94 % of the nucleus in the mean of 100 SIPaKMeD crops and 76 % of 99 of Herlev, which
    are framed more closely; at 3, 76 % and 53 %.
    """

    def __init__(self, largest: float) -> None:
        """Take the largest magnification, from 1."""
        super().__init__()
        self.largest = largest

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, S, S] to uint8 [3, S, S]."""
        size = inpt.shape[-1]
        factor = self.largest ** torch.empty(1).uniform_(-0.5, 1).item()
        window = max(1, round(size / factor))
        before, pixels = abs(window - size) // 2, _pixels(inpt)
        if window > size:
            pixels = _mirrored(pixels, before, window - size - before, cv2.BORDER_REFLECT)
        else:
            pixels = pixels[before : before + window, before : before + window]
        how = cv2.INTER_AREA if window > size else cv2.INTER_LINEAR
        return _image(cv2.resize(pixels, (size, size), interpolation=how))


class Defocus(v2.Transform):
    """Blur by a disc, as a lens out of focus does (Goodman, Introduction to Fourier Optics, 1968)."""

    def __init__(self, largest: float) -> None:
        """Take the largest radius in pixels."""
        super().__init__()
        self.largest = largest

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, H, W] to uint8 [3, H, W]."""
        radius = self.largest * torch.rand(1).item()
        reach = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
        disc = np.clip(radius + 0.5 - np.hypot(reach, reach[:, None]), 0, 1)  # soft at the edge
        blurred = cv2.filter2D(_pixels(inpt), -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT_101)
        return _image(blurred)


class Coarseness(v2.Transform):
    """Shrink and enlarge again, as a camera with fewer pixels or a weaker objective would have seen it."""

    def __init__(self, smallest: float) -> None:
        """Take the smallest share of the pixels along a side that is left, up to 1."""
        super().__init__()
        self.smallest = smallest

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, S, S] to uint8 [3, S, S]."""
        size = inpt.shape[-1]
        few = max(1, round(size * torch.empty(1).uniform_(self.smallest, 1).item()))
        coarse = cv2.resize(_pixels(inpt), (few, few), interpolation=cv2.INTER_AREA)
        return _image(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR))


class SensorNoise(v2.Transform):
    """Add a sensor's noise: a constant part and one that grows with the light.

    Foi et al., "Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data",
    IEEE Transactions on Image Processing 2008: the variance is linear in the grey level.
    """

    def __init__(self, largest: float) -> None:
        """Take the largest standard deviation, that at white, in grey levels."""
        super().__init__()
        self.largest = largest

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, H, W] to uint8 [3, H, W]."""
        at_white, by_light = self.largest * torch.rand(1), torch.rand(1)
        deviation_of_byte = at_white * torch.sqrt(1 - by_light + by_light * torch.arange(256) / 255)
        deviation = torch.from_numpy(cv2.LUT(inpt.numpy(), deviation_of_byte.numpy()[None]))
        noise = torch.randn(inpt.shape).mul_(deviation)
        return noise.add_(inpt).round_().clamp_(0, 255).to(torch.uint8)


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
            inpt = _image(_mirrored(_pixels(inpt), margin, margin, cv2.BORDER_REFLECT_101))
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
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert decoded is not None  # it was encoded a moment ago
        return _image(decoded)


class Either(v2.Transform):
    """Apply the first of two transforms to a share of images, and the second to the others."""

    def __init__(self, first: v2.Transform, second: v2.Transform, share: float) -> None:
        """Take both, and the share of the first, 0 to 1."""
        super().__init__()
        self.first, self.second, self.share = first, second, share

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Map uint8 [3, S, S] to uint8 [3, S, S]."""
        chosen = self.first if torch.rand(1).item() < self.share else self.second
        return torch.as_tensor(chosen(inpt))


def build_augmentation(settings: Augmentation) -> v2.Transform:
    """Return the chain of random changes, uint8 [3, S, S] to uint8 [3, S, S].

    With `foreign` below 1, an image goes through the whole chain or through that of its own laboratory.
    """
    if settings.foreign == 1:
        return _chain(settings)
    at_home = settings.model_copy(update=dict.fromkeys(FOREIGN, 0) | {"framing": 1})
    return Either(_chain(settings), _chain(at_home), settings.foreign)


def _chain(settings: Augmentation) -> v2.Transform:
    """Return the changes in the order in which they happen: the cell lies and is framed, the slide is
    stained, the microscope and the camera show it, a file keeps it."""
    steps: list[v2.Transform] = []
    if settings.flips:
        steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    if settings.quarter_turns:
        steps.append(QuarterTurn())
    if settings.framing > 1:
        steps.append(Framing(settings.framing))
    if settings.scale_low < 1 or settings.scale_high > 1:
        steps.append(Magnification(settings.scale_low, settings.scale_high))
    if settings.stain:
        steps.append(StainJitter(settings.stain))
    if settings.stain_shift:
        steps.append(StainShift(settings.stain_shift))
    if settings.illumination:
        steps.append(Illumination(settings.illumination))
    if settings.white_balance:
        steps.append(WhiteBalance(settings.white_balance))
    if settings.colour:
        steps.append(v2.ColorJitter(settings.colour, settings.colour, settings.colour))
    if settings.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(5, sigma=(0.3, 1.5))], settings.blur))
    if settings.focus:
        steps.append(v2.RandomApply([Defocus(settings.focus_radius)], settings.focus))
    if settings.resolution:
        steps.append(v2.RandomApply([Coarseness(settings.resolution_low)], settings.resolution))
    if settings.noise:
        steps.append(SensorNoise(settings.noise))
    if settings.jpeg:
        steps.append(v2.RandomApply([JPEG(40, 95)], settings.jpeg))
    return v2.Compose(steps) if steps else v2.Identity()


def _through_tables(image: Tensor, levels: Tensor) -> Tensor:
    """Map each channel's grey levels, uint8 [3, H, W], to the new ones in `levels`, float [3, 256]."""
    tables = levels.round().clamp(0, 255).to(torch.uint8).T.contiguous().numpy()
    return _image(cv2.LUT(_pixels(image), tables[None]))


def _mirrored(pixels: np.ndarray, before: int, after: int, border: int) -> np.ndarray:
    """Widen [H, W, 3] by mirrored surroundings, `before` and `after` pixels in each direction."""
    return cv2.copyMakeBorder(pixels, before, after, before, after, border)


def _pixels(image: Tensor) -> np.ndarray:
    """Return uint8 [3, H, W] as OpenCV takes it, [H, W, 3]."""
    return image.permute(1, 2, 0).contiguous().numpy()


def _image(pixels: np.ndarray) -> Tensor:
    """Return uint8 [H, W, 3] as torchvision takes it, [3, H, W]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
