"""Where the training cells lie among the features of one stage of a network, and how far others lie.

The distance is that of Mahalanobis to the nearest class mean, under one covariance for all classes (K. Lee
et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
NeurIPS 2018), of features brought to unit length. Some thousand cells give no covariance worth inverting,
and its square is no luggage for a model: within the principal subspace the covariance is the cells' own,
outside of it one variance holds for every direction (probabilistic principal components: M. Tipping and
C. Bishop, J. R. Stat. Soc. B 1999). So the distance counts what is unusual along the directions in which
cells differ, and what lies outside of them, which tells most (H. Wang et al., "ViM", CVPR 2022).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cervicyte.errors import FamiliarityError

if TYPE_CHECKING:
    from torch import Tensor

STAGES = ("stage2", "stage4")
"""Of which means are kept: the second has colours and textures, the last what they add up to."""
DIRECTIONS = 128  # of the principal subspace; docs/unlike_training.md says what was compared
REMEDY = "fit it anew on the model's training cells"
NAMES = ("means", "directions", "variances")
_LEAST_SHARE = 1e-6  # of the total variance: what a direction without any is taken to have


@dataclass(frozen=True)
class FeatureSpace:
    """Class means of features of unit length, and the covariance of cells about their class's mean.

    Attributes:
        means: float16 [C, D], in the order of the classes.
        directions: float16 [K, D], orthonormal but for rounding, those of most variance first.
        variances: float32 [K + 1], along each direction, and last along any other.
    """

    means: np.ndarray
    directions: np.ndarray
    variances: np.ndarray

    @classmethod
    def fit(
        cls, features: np.ndarray, targets: Sequence[int] | np.ndarray, directions: int = DIRECTIONS
    ) -> FeatureSpace:
        """Fit it on the features of the training cells.

        Args:
            features: float [N, D].
            targets: int [N], the class of each.
            directions: of the subspace, fewer where the cells span fewer.

        Raises:
            FamiliarityError: there are fewer than two cells, or features that are no finite numbers.
        """
        if len(features) < 2 or not np.isfinite(features).all():
            raise FamiliarityError(
                f"{len(features)} training cells with finite features are too few to say what is unlike "
                "them; give the features of at least two."
            )
        known, place = np.unique(np.asarray(targets), return_inverse=True)
        features = unit_length(features)
        # Rounded at once, so that what is fitted on it later holds for what is read from a file.
        means = np.stack([features[place == one].mean(0) for one in range(len(known))]).astype(np.float16)
        centred = features - means[place]
        kept = max(1, min(directions, len(features) - 1, features.shape[1] - 1))
        _, spreads, axes = np.linalg.svd(centred, full_matrices=False)
        along = spreads**2 / len(features)
        others = along[kept:].sum() / max(1, features.shape[1] - kept)
        least = max(_LEAST_SHARE * along.sum() / features.shape[1], np.finfo(np.float32).tiny)
        variances = np.maximum([*along[:kept], others], least)
        return cls(means, axes[:kept].astype(np.float16), variances.astype(np.float32))

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Return how far features, float [N, D], lie from the nearest class mean, float64 [N].

        About 1 is usual: the root of the mean square over all D directions, in standard deviations.

        Raises:
            FamiliarityError: they are of another number of dimensions.
        """
        if features.ndim != 2 or features.shape[1] != self.means.shape[1]:
            raise FamiliarityError(
                f"The images have {features.shape[-1]} features and the training cells "
                f"{self.means.shape[1]}; use what came with the model."
            )
        features = unit_length(features)
        means, directions, within_of_means = self._in_float64
        *along, others = self.variances.astype(np.float64)
        # By products, once for all classes: the differences themselves would take several times as long.
        away = (features**2).sum(1)[:, np.newaxis] - 2 * features @ means.T + (means**2).sum(1)
        within_of_features = features @ directions.T
        squares = []
        for place, within_of_mean in enumerate(within_of_means):
            within = (within_of_features - within_of_mean) ** 2
            outside = np.maximum(away[:, place] - within.sum(1), 0)
            squares.append((within / along).sum(1) + outside / others)
        return np.sqrt(np.min(squares, axis=0) / features.shape[1])

    @functools.cached_property
    def _in_float64(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means, directions, and what of the means lies within the subspace, [C, K]."""
        means, directions = self.means.astype(np.float64), self.directions.astype(np.float64)
        return means, directions, means @ directions.T

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the arrays as tensors by name, which `from_tensors` reads."""
        import torch

        return {prefix + name: torch.from_numpy(getattr(self, name).copy()) for name in NAMES}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Any], prefix: str, name: str = "The feature space"
    ) -> FeatureSpace:
        """Read what `tensors` returned; others beside them are left alone.

        Args:
            tensors: by name, of torch or of NumPy.
            prefix: of the names.
            name: where they come from, with which an error begins.

        Raises:
            FamiliarityError: one is missing, of another shape or kind, or not finite.
        """
        try:
            means, directions, variances = (np.asarray(tensors[prefix + each]) for each in NAMES)
        except KeyError as error:
            raise FamiliarityError(f"{name}: lacks the tensor {error.args[0]}; {REMEDY}.") from error
        fits = (
            (means.ndim, directions.ndim, variances.ndim) == (2, 2, 1)
            and means.dtype == directions.dtype == np.float16
            and variances.dtype == np.float32
            and means.shape[1] == directions.shape[1]
            and len(variances) == len(directions) + 1
            and len(means) > 0
        )
        if not fits:
            raise FamiliarityError(f"{name}: its tensors do not fit together; {REMEDY}.")
        if (
            not all(np.isfinite(each).all() for each in (means, directions, variances))
            or variances.min() <= 0
        ):
            raise FamiliarityError(f"{name}: its tensors hold values that no fit leaves; {REMEDY}.")
        return cls(means, directions, variances)


def unit_length(features: np.ndarray) -> np.ndarray:
    """Return features [N, D] divided by their lengths, float64: contrast and light drop out of them."""
    values = np.asarray(features, np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float64).tiny)
