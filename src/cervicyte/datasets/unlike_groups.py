"""Groups whose cells are unlike the other groups of their class: in size, stain, focus or exposure.

Cells of one field share stain, light and focus, so that a test of cell against cell would call nearly
every group different. The yardstick is therefore how much the groups' medians differ among each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

FEWEST_CELLS = 3  # of a group that is judged: the median of fewer is a single cell's value
FEWEST_GROUPS = 10  # of a class: fewer tell no spread
# Iglewicz & Hoaglin, "How to detect and handle outliers", 1993, advise 3.5 for this distance.
GROUP_OUTLYING = 3.5
SHOWN = 3


def group_medians(statistics: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the median of each statistic in each group of `FEWEST_CELLS` or more, class by class.

    Args:
        statistics: path, label, group and the columns `names`; one row a cell.
        names: of the statistics.

    A group with cells of two classes stands there twice, once for the cells of each.
    """
    return [
        {
            "label": str(label),
            "group": str(group),
            "cells": len(cells),
            **{name: round(float(cells[name].median()), 4) for name in names},
        }
        for (label, group), cells in statistics.groupby(["label", "group"])
        if len(cells) >= FEWEST_CELLS
    ]


def unlike_groups(statistics: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the groups whose median lies far from the medians of their class's groups, the farthest first.

    Distance is in robust standard deviations: 1.4826 times the median absolute deviation. `shown` names
    the cells of the group that lie next to its median.

    Args:
        statistics: path, label, group and the columns `names`; one row a cell.
        names: of the statistics.
    """
    medians = pd.DataFrame(group_medians(statistics, names), columns=["label", "group", "cells", *names])
    cells_of = statistics.groupby(["label", "group"]).indices
    found: list[dict[str, Any]] = []
    for label, groups in medians.groupby("label"):
        if len(groups) < FEWEST_GROUPS:
            continue
        for name in names:
            values = groups[name].to_numpy()
            middle = float(np.median(values))
            spread = max(1.4826 * float(np.median(np.abs(values - middle))), 1e-9)
            for group, count, value in zip(groups["group"], groups["cells"], values, strict=True):
                distance = (float(value) - middle) / spread
                if abs(distance) < GROUP_OUTLYING:
                    continue
                cells = statistics.iloc[cells_of[label, group]]
                nearest = (cells[name] - value).abs().sort_values(kind="stable").index[:SHOWN]
                found.append(
                    {
                        "group": group,
                        "label": label,
                        "cells": int(count),
                        "statistic": name,
                        "median": round(float(value), 3),
                        "median_of_groups": round(middle, 3),
                        "robust_deviations": round(distance, 1),
                        "shown": list(cells.loc[nearest, "path"]),
                    }
                )
    return sorted(found, key=lambda one: -abs(one["robust_deviations"]))
