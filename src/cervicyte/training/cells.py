"""Cells as tensors: each image is read and preprocessed once, and kept as uint8."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cervicyte.datasets.layouts import Cell
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.progress import SILENT, Progress

if TYPE_CHECKING:  # importing torchvision takes as long as torch itself
    from torchvision.transforms import v2

# Above this, the images lie in a temporary file that the system pages in and out.
LARGEST_IN_MEMORY = 4 << 30  # bytes
READING_THREADS = 4


def load_cells(
    cells: Sequence[Cell],
    preprocessing: Preprocessing,
    progress: Progress = SILENT,
    title: str = "Reading cells",
) -> np.ndarray:
    """Read and preprocess cells into one array, uint8 [N, S, S, 3], RGB.

    Raises:
        ImageError: a file cannot be read; the text names it.
    """
    size = preprocessing.image_size
    shape = (len(cells), size, size, 3)
    images: np.ndarray
    if int(np.prod(shape)) <= LARGEST_IN_MEMORY:
        images = np.empty(shape, np.uint8)
    else:
        images = np.memmap(tempfile.TemporaryFile(), np.uint8, "w+", shape=shape)  # noqa: SIM115

    def read(position: int) -> None:
        images[position] = preprocessing(read_image(cells[position].path))

    progress.start(title, len(cells))
    with ThreadPoolExecutor(READING_THREADS) as threads:
        try:
            for _ in threads.map(read, range(len(cells))):
                progress.advance()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    progress.close()
    return images


class TrainingCells(Dataset):
    """Training images [3, S, S], augmented on the fly, with the index of their class.

    Asked for by (epoch, index), or by (epoch, time, index) where an epoch shows an image several times: its
    changes are drawn from the seed and these alone.
    """

    def __init__(self, images: np.ndarray, targets: np.ndarray, augment: v2.Transform, seed: int) -> None:
        """Take uint8 [N, S, S, 3], int64 [N], the augmentation and the seed."""
        self.images, self.targets, self.augment, self.seed = images, targets, augment, seed

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.images)

    def __getitem__(self, place: tuple[int, ...]) -> tuple[Tensor, int]:
        """Return the image of (epoch, index) as that epoch sees it, uint8 [3, S, S], and its class."""
        index = place[-1]
        image = torch.from_numpy(np.asarray(self.images[index])).permute(2, 0, 1).contiguous()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(self.seed, *place))
            return self.augment(image), int(self.targets[index])


class EpochBatches:
    """Batches of (epoch, index) in an order drawn from (seed, epoch); a short last batch is left out."""

    drop_last = True

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        """Take the number of cells, of cells in a batch, and the seed."""
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.epoch = 1

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        """Yield the batches of the current `epoch`."""
        places = self.places()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield places[start : start + self.batch_size]

    def places(self) -> list[tuple[int, ...]]:
        """Return the current epoch's (epoch, index) in their order."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        return [(self.epoch, int(index)) for index in order]


class EvenBatches(EpochBatches):
    """Batches of (epoch, time, index) in which data sets come equally often, and within each its classes.

    An epoch is as many images as there are cells. A cell of a small data set comes several times, as `time`
    says, and of a large one not every cell comes in every epoch: which ones is drawn anew from (seed, epoch).
    """

    def __init__(self, targets: np.ndarray, data_set_of: np.ndarray, batch_size: int, seed: int) -> None:
        """Take the class of each cell, int64 [N], the data set of each class, [C], batch size and seed."""
        super().__init__(len(targets), batch_size, seed)
        self.targets, self.data_set_of = targets, data_set_of

    def places(self) -> list[tuple[int, ...]]:
        """Return the current epoch's (epoch, time, index) in their order."""
        rng = np.random.default_rng([self.seed, self.epoch])
        data_sets = self.data_set_of[self.targets]
        chosen: list[tuple[int, ...]] = []
        for data_set, share in _shared_out(self.count, np.unique(data_sets), rng):
            classes = np.unique(self.targets[data_sets == data_set])
            for target, count in _shared_out(share, classes, rng):
                cells = np.flatnonzero(self.targets == target)
                for time in range(-(-count // len(cells))):
                    drawn = rng.permutation(cells)[: count - time * len(cells)]
                    chosen += [(self.epoch, time, int(index)) for index in drawn]
        return [chosen[place] for place in rng.permutation(len(chosen))]


def _shared_out(count: int, names: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return each name with its even share of `count`; who gets what cannot be shared is drawn."""
    shares = np.full(len(names), count // len(names))
    shares[rng.permutation(len(names))[: count % len(names)]] += 1
    return list(zip(names.tolist(), shares.tolist(), strict=True))


def draw_seed(*parts: int) -> int:
    """Return a 63-bit seed that differs for every combination of parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@functools.lru_cache(maxsize=8)
def _moments(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what normalises, float32 [1, 3, 1, 1] each; to copy them anew would wait for a GPU's work."""
    with torch.inference_mode(False):
        one, other = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
    return one, other


def normalised(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Map uint8 [N, 3, S, S] on any device to the network's float32 input, channels last."""
    mean, std = _moments(preprocessing.mean, preprocessing.std, images.device)
    values = images.float().div_(255).sub_(mean).div_(std)
    return values.contiguous(memory_format=torch.channels_last)
