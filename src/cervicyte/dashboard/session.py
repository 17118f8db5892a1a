"""What the server keeps for one open page, in memory alone, and forgets when the page is left alone."""

from __future__ import annotations

from dataclasses import dataclass

from cervicyte.dashboard.cell_view import Looked
from cervicyte.dashboard.worklist import Worklist

SECONDS_KEPT = 4 * 3600
"""After the last thing that was asked."""


@dataclass
class Session:
    """One page's cells.

    Attributes:
        worklist: the cells that were given to it.
        looked: the one that is looked at.
    """

    worklist: Worklist
    looked: Looked | None = None
