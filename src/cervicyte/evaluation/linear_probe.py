"""The control: logistic regression on what a frozen ImageNet network sees.

A fine-tuned network that does not beat it on the same split has learnt nothing that the frozen one
does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cervicyte.datasets.layouts import Cell
from cervicyte.evaluation.features import pooled_features
from cervicyte.evaluation.predictions import predictions_table
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.backbone import load_backbone
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT, Progress
from cervicyte.training.cells import load_cells

STRENGTHS = (0.001, 0.01, 0.1)  # sklearn's C; the best on the validation part is taken


def frozen_features(
    cells: Sequence[Cell], backbone: str, preprocessing: Preprocessing, progress: Progress = SILENT
) -> np.ndarray:
    """Return the 2,048 pooled features of a plain frozen ResNet-50, float32 [N, 2048]."""
    images = load_cells(cells, preprocessing, progress)
    network = CBAMResNet50(1, "none")
    load_backbone(network, backbone)
    return pooled_features(network, images, preprocessing, progress, "Frozen features")["stage4"]


def probe_predictions(
    features: np.ndarray,
    cells: Sequence[Cell],
    parts: Sequence[str],
    class_names: Sequence[str],
) -> tuple[pd.DataFrame, float]:
    """Fit the probe and return its table of test predictions and the strength chosen.

    The strength is chosen on the validation part; the final fit uses training and validation cells.

    Args:
        features: [N, D], one row a cell.
        cells: the N cells.
        parts: train, validation or test for each of them.
        class_names: the order of the columns.
    """
    part = np.asarray(parts)
    index_of = {name: index for index, name in enumerate(class_names)}
    targets = np.array([index_of[cell.label] for cell in cells])

    def fitted(strength: float, chosen: np.ndarray):  # type: ignore[no-untyped-def]
        regression = LogisticRegression(C=strength, max_iter=2000)
        return make_pipeline(StandardScaler(), regression).fit(features[chosen], targets[chosen])

    training, validation, test = (part == name for name in ("train", "validation", "test"))
    scores = [fitted(c, training).score(features[validation], targets[validation]) for c in STRENGTHS]
    best = STRENGTHS[int(np.argmax(scores))]
    probabilities = fitted(best, training | validation).predict_proba(features[test])
    tested = [cell for cell, is_test in zip(cells, test, strict=True) if is_test]
    return predictions_table(tested, [c.label for c in tested], probabilities, class_names), best
