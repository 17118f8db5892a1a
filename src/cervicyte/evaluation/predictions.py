"""A model's answers for labelled cells, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cervicyte.datasets.layouts import Cell
from cervicyte.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from cervicyte.network.model_file import ModelFile

BATCH = 32


def logits_of(
    model: ModelFile,
    images: np.ndarray,
    progress: Progress = SILENT,
    title: str = "Classifying",
    flips: bool = False,
) -> np.ndarray:
    """Return logits, float32 [N, classes], for preprocessed images, uint8 [N, S, S, 3].

    A smear has no up: with `flips` the network is asked for all eight views of a square, mirrored and
    turned, which costs eight times the computation. What comes back is then the logarithm of the mean
    probability, so that its softmax is that mean; it is the same however the image is mirrored or turned.
    """
    import torch

    from cervicyte.training.cells import normalised

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = model.network.eval().to(device, memory_format=torch.channels_last)
    logits = np.empty((len(images), len(model.class_names)), np.float32)
    progress.start(title, len(images))
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(np.asarray(images[start : start + BATCH])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            views = views_of(batch.to(device)) if flips else [batch.to(device)]
            answers = [network(normalised(view, model.preprocessing)).float() for view in views]
            logits[start : start + BATCH] = _together(answers).cpu().numpy()
        progress.advance(len(batch))
    progress.close()
    return logits


def views_of(images: Tensor) -> Iterator[Tensor]:
    """Yield the eight views of square images [N, 3, S, S]: each quarter turn, plain and mirrored."""
    import torch

    for seen in (images, images.flip(-1)):
        for turns in range(4):
            yield torch.rot90(seen, turns, dims=(-2, -1))


def _together(answers: Sequence[Tensor]) -> Tensor:
    """Return one view's logits as they are, of several the logarithm of their mean probability."""
    import torch
    from torch.nn.functional import log_softmax

    if len(answers) == 1:
        return answers[0]
    return torch.stack([log_softmax(answer, 1) for answer in answers]).logsumexp(0) - math.log(len(answers))


def predictions_table(
    cells: Sequence[Cell], truth: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str]
) -> pd.DataFrame:
    """Put probabilities [N, classes] beside the cells that they belong to."""
    table = pd.DataFrame(
        {
            "path": [cell.name for cell in cells],
            "group": [cell.group for cell in cells],
            "true_class": list(truth),
            "predicted_class": [class_names[index] for index in probabilities.argmax(1)],
            "confidence": probabilities.max(1),
        }
    )
    for index, name in enumerate(class_names):
        table[f"p_{name}"] = probabilities[:, index]
    return table


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [N, classes] in float64 for logits [N, classes]."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def logistic(logits: np.ndarray) -> np.ndarray:
    """Return probabilities in float64 for logits of any shape."""
    probabilities: np.ndarray = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    return probabilities
