"""How many foreign cells the shipped model flags, by the share of home cells that it may flag.

    OMP_NUM_THREADS=1 python benchmarks/flag_rates.py --foreign ../shared/data/herlev \
        --out docs/results/model/flag_rates.json

The shares at home are those of the reference cells, each judged by a network that saw no cell of its group;
a group counts once. They are in the model's file, as quantiles, and hold for other cells of that laboratory.
No label of a foreign cell has a part in where the bound lies; which share is allowed was chosen with these
figures in view.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from cervicyte import metrics
from cervicyte.datasets.layouts import read_dataset
from cervicyte.evaluation.answers import statistics_of
from cervicyte.evaluation.familiarity import FEATURES, UNLIKE_RATE, Familiarity, rarity
from cervicyte.evaluation.features import pooled_features
from cervicyte.images.statistics import STATISTICS
from cervicyte.network.description import shipped_model
from cervicyte.network.model_file import load_model_file, weights_hash
from cervicyte.progress import TerminalProgress
from cervicyte.provenance import provenance, write_json
from cervicyte.training.cells import load_cells

RATES = (0.02, 0.03, 0.04, 0.05, 0.10)


def share_of(flagged: np.ndarray, groups: list[str]) -> dict[str, float]:
    """Return the share of cells that are flagged, with its interval by group."""

    def share(weights: np.ndarray) -> np.ndarray:
        return metrics.ratio(weights @ flagged, weights.sum(-1))[:, None]

    found = metrics.group_bootstrap(groups, share)
    ends = zip(("value", "low", "high"), found, strict=True)
    return {end: round(float(one[0]), 4) for end, one in ends}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--foreign", type=Path, required=True, help="cells of another laboratory")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model, progress = load_model_file(shipped_model()), TerminalProgress()
    cells = read_dataset(arguments.foreign).cells
    images = load_cells(cells, model.preprocessing, progress)
    features = pooled_features(model.network, images, model.preprocessing, progress)
    familiarity = Familiarity.from_parts(model.metadata["familiarity"], model.tensors, "The shipped model")
    rarities = rarity(familiarity.scores(features, statistics_of(cells, progress)))
    fitted_at = float(model.metadata["familiarity"]["rate"])
    as_fitted = replace(familiarity.usual, rate=min(RATES) / 2)  # so that each is read from the quantiles
    groups, labels = [cell.group for cell in cells], np.array([cell.label for cell in cells])
    rows = []
    for rate in RATES:
        beyond = as_fitted.flagging(rate).unlike_beyond
        over = rarities > beyond
        flagged = np.asarray(over.any(1))
        rows.append(
            {
                "home": rate,
                "unlike_beyond": round(beyond, 4),
                "foreign": share_of(flagged.astype(float), groups),
                "by_each_alone": {
                    name: round(float(over[:, place].mean()), 4)
                    for place, name in enumerate((*STATISTICS, FEATURES))
                },
                "classes": {
                    name: round(float(flagged[labels == name].mean()), 4) for name in np.unique(labels)
                },
            }
        )
    write_json(
        arguments.out,
        {
            "provenance": provenance(shlex.join(["python", *sys.argv])),
            "what": "Share of another laboratory's cells that the shipped model flags as unlike its training "
            "cells, by the share of home cells that may be flagged. Intervals: 95 % percentile bootstrap of "
            "whole groups.",
            "weights": weights_hash(model.network),
            "reference_cells": as_fitted.reference_cells,
            "reference_groups": as_fitted.reference_groups,
            "fitted_at": fitted_at,
            "used": UNLIKE_RATE,
            "foreign": {"data": arguments.foreign.name, "cells": len(cells), "groups": len(set(groups))},
            "rates": rows,
        },
    )


if __name__ == "__main__":
    main()
