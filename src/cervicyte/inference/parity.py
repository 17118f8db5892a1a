"""Whether an engine says what the network says: measured on cells, and refused where it does not.

Compared are all things that an answer is made of: logits, probabilities, the means that tell how familiar an
image is, and the evidence that maps are drawn from. Two engines never agree to the last bit; the bounds below
are what rounding at each precision may do, and say so in every report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cervicyte.datasets.synthetic import SAMPLES
from cervicyte.evaluation.predictions import softmax
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.inference.engines import Engine
from cervicyte.network.graph import Output

AT_ONCE = 8

# By figure of `Parity`; probabilities are absolute, the others shares of the largest value.
BOUNDS: Mapping[str, Mapping[str, float]] = {
    "float32": {"logits": 1e-3, "probabilities": 1e-3, "means": 1e-3, "evidence": 1e-3},
    "bfloat16": {"logits": 0.05, "probabilities": 0.05, "means": 0.1, "evidence": 0.1},
    "int8": {"logits": 0.2, "probabilities": 0.1, "means": 0.5, "evidence": 0.5},
}


@dataclass(frozen=True)
class Parity:
    """How far one engine is from another on the same images.

    Attributes:
        precision: of the engine; says which bounds hold.
        images: how many were compared.
        label_agreement: share of images with the same likeliest class.
        logits, means, evidence: largest difference, as a share of the largest value of the reference; None
            of what the engine does not give.
        probabilities: largest difference, uncalibrated.
    """

    precision: str
    images: int
    label_agreement: float
    logits: float
    probabilities: float
    means: float | None
    evidence: float | None

    @property
    def faults(self) -> list[str]:
        """What is wrong, a few words each; none where the engine may answer."""
        faults = [
            f"{name} differ by {apart:.2g} (at most {bound:g})"
            for name, bound in BOUNDS[self.precision].items()
            if (apart := getattr(self, name)) is not None
            and not apart <= bound  # what is no number is wrong, too
        ]
        if self.label_agreement < 1:
            faults.append(f"{1 - self.label_agreement:.1%} of the images get another class")
        return faults

    def to_json(self) -> dict[str, Any]:
        """Return the figures, with the bounds that they were held against."""
        return {**asdict(self), "bounds": dict(BOUNDS[self.precision]), "faults": self.faults}


def compare(engine: Engine, reference: Engine, images: np.ndarray) -> Parity:
    """Compare an engine with the one that is right.

    Args:
        engine, reference: of the same model.
        images: preprocessed, uint8 [N, S, S, 3]; at least one.
    """
    return held_against(engine, images, _all_of(reference, images))


def held_against(engine: Engine, images: np.ndarray, right: Output) -> Parity:
    """Compare an engine with what is right for images, preprocessed, uint8 [N, S, S, 3]."""
    given = _all_of(engine, images)
    return Parity(
        precision=engine.precision,
        images=len(images),
        label_agreement=float(np.mean(given.logits.argmax(1) == right.logits.argmax(1))),
        logits=_apart(given.logits, right.logits),
        probabilities=float(np.abs(softmax(given.logits) - softmax(right.logits)).max()),
        means=max((_apart(given.means[stage], right.means[stage]) for stage in given.means), default=None),
        evidence=None if given.evidence is None else _apart(given.evidence, right.evidence),
    )


def sample_cells(preprocessing: Preprocessing) -> np.ndarray:
    """Return the drawn cells that ship, and each turned by a quarter, preprocessed: uint8 [N, S, S, 3]."""
    cells = [read_image(path) for path in sorted(SAMPLES.glob("*.png"))]
    return np.stack([preprocessing(np.rot90(cell, turns)) for turns in range(2) for cell in cells])


def _all_of(engine: Engine, images: np.ndarray) -> Output:
    parts = [
        engine.run(images[start : start + AT_ONCE], evidence=True) for start in range(0, len(images), AT_ONCE)
    ]
    evidence = [part.evidence for part in parts if part.evidence is not None]
    return Output(
        np.concatenate([part.logits for part in parts]),
        {stage: np.concatenate([part.means[stage] for part in parts]) for stage in parts[0].means},
        np.concatenate(evidence) if evidence else None,
    )


def _apart(given: np.ndarray, right: np.ndarray | None) -> float:
    assert right is not None  # the network gives everything
    return float(np.abs(given - right).max() / max(np.abs(right).max(), np.finfo(np.float32).tiny))
