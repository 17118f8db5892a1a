"""What the server keeps for one open page, in memory alone, and forgets when the page is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cervicyte.dashboard.cell_view import Looked
from cervicyte.dashboard.reading import Reading
from cervicyte.dashboard.worklist import Worklist

SECONDS_KEPT = 4 * 3600
"""After the last thing that was asked."""


@dataclass
class Session:
    """One page's cells.

    Attributes:
        worklist: the cells that were given to it.
        reading: those that are read blind.
        looked: the one that is looked at.
    """

    worklist: Worklist
    reading: Reading
    looked: Looked | None = None

    @classmethod
    def of(cls, class_names: tuple[str, ...]) -> Self:
        """Return an empty one for a model's classes."""
        return cls(Worklist(class_names), Reading(Worklist(class_names)))
