"""Figures of the model that ships which its file does not hold, from a small file beside it.

`benchmarks/shipped_figures.py` writes that file from what commands left in docs/results; it says of which
weights it speaks, and for others there are none.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cervicyte.network.description import SHIPPED_MODEL

FILE_NAME = "figures.json"


class Closed(BaseModel):
    """No further keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Closed):
    """Which file of docs/results a figure was taken from, and what wrote that."""

    file: str
    sha256: str
    command: str
    commit: str


class Confusion(Closed):
    """How often cells of each class were called each class, each by a network that had not seen them."""

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # rows are true classes
    groups: int
    source: Source


class Interval(Closed):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Gain(Closed):
    """What adapting brought on another laboratory's cells: AUC of abnormal cells against others."""

    data: str
    images: int
    before: Interval
    after: Interval
    difference: Interval
    source: Source

    @property
    def sentence(self) -> str:
        """The figure in words."""
        return (
            f"On another laboratory's cells ({self.data.capitalize()}), which the model had not seen, "
            f"adapting to {self.images} images raised how well abnormal cells are ranked before others (AUC) "
            f"from {self.before.value:.3f} to {self.after.value:.3f}, by {self.difference.value:.3f} "
            f"[{self.difference.low:.3f}, {self.difference.high:.3f}]. These cells guided its settings: "
            "expect less."
        )


class ShippedFigures(Closed):
    """The file's content."""

    notice: str
    weights_sha256: str
    confusion: Confusion
    adaptation: Gain


@lru_cache(maxsize=1)
def _read(path: Path) -> ShippedFigures | None:
    if not path.is_file():
        return None
    return ShippedFigures.model_validate(json.loads(path.read_text(encoding="utf-8")))


def shipped_figures(weights_sha256: str) -> ShippedFigures | None:
    """Return the figures of a model, by the hash of its weights; None if it is not the one that ships."""
    found = _read(SHIPPED_MODEL.with_name(FILE_NAME))
    return found if found is not None and found.weights_sha256 == weights_sha256 else None
