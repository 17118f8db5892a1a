"""A model's answers for labelled cells, as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from cervicyte.datasets.layouts import Cell
from cervicyte.network.model_file import ModelFile
from cervicyte.progress import SILENT, Progress
from cervicyte.training.cells import load_cells, normalised

BATCH = 32


@torch.inference_mode()
def logits_of(
    model: ModelFile, images: np.ndarray, progress: Progress = SILENT, title: str = "Classifying"
) -> np.ndarray:
    """Return logits, float32 [N, classes], for preprocessed images, uint8 [N, S, S, 3]."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = model.network.eval().to(device, memory_format=torch.channels_last)
    logits = np.empty((len(images), len(model.class_names)), np.float32)
    progress.start(title, len(images))
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(np.asarray(images[start : start + BATCH])).permute(0, 3, 1, 2)
        answers = network(normalised(batch.to(device), model.preprocessing))
        logits[start : start + BATCH] = answers.float().cpu().numpy()
        progress.advance(len(batch))
    progress.close()
    return logits


def predict_cells(
    model: ModelFile,
    cells: Sequence[Cell],
    true_classes: Sequence[str] | None = None,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Return one row a cell: path, group, true_class, predicted_class, confidence, p_<class> ….

    Args:
        model: carries the preprocessing that the images go through.
        cells: in the order of the rows.
        true_classes: in the model's names, where the data set's labels are others.
        progress: is told of every batch.

    Raises:
        ImageError: a file cannot be read; the text names it.
    """
    images = load_cells(cells, model.preprocessing, progress, "Reading cells to classify")
    probabilities = softmax(logits_of(model, images, progress))
    truth = [cell.label for cell in cells] if true_classes is None else true_classes
    return predictions_table(cells, truth, probabilities, model.class_names)


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
