"""Cells as tensors: each image is read and preprocessed once, and kept as uint8."""

from __future__ import annotations

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

    Asked for by (epoch, index): an image's changes are drawn from (seed, epoch, index) alone.
    """

    def __init__(self, images: np.ndarray, targets: np.ndarray, augment: v2.Transform, seed: int) -> None:
        """Take uint8 [N, S, S, 3], int64 [N], the augmentation and the seed."""
        self.images, self.targets, self.augment, self.seed = images, targets, augment, seed

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.images)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        """Return the image of (epoch, index) as that epoch sees it, uint8 [3, S, S], and its class."""
        epoch, index = place
        image = torch.from_numpy(np.asarray(self.images[index])).permute(2, 0, 1).contiguous()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(self.seed, epoch, index))
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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches of the current `epoch`."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, int(index)) for index in order[start : start + self.batch_size]]


def draw_seed(*parts: int) -> int:
    """Return a 63-bit seed that differs for every combination of parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def normalised(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Map uint8 [N, 3, S, S] on any device to the network's float32 input, channels last."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    values = images.float().div_(255).sub_(mean).div_(std)
    return values.contiguous(memory_format=torch.channels_last)
