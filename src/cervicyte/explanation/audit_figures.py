"""From the records of an audit to its figures: means, differences and their intervals.

Intervals are 95 % percentile intervals from drawing whole groups, `metrics.group_bootstrap`. A difference
is taken cell by cell before it is averaged, so that what is hard about a cell is the same for both maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cervicyte import metrics
from cervicyte.explanation.audit_cells import (
    ANOTHER_CELL,
    FILLINGS,
    PARTS,
    RANDOMISED_STAGES,
    STABLE_UNDER,
    AuditSettings,
    controls_of,
)
from cervicyte.explanation.audit_records import Audit
from cervicyte.explanation.faithfulness import BLUR_SIGMA, ROAD_NOISE
from cervicyte.explanation.verdict import MARGIN, is_ahead
from cervicyte.metrics import Estimate
from cervicyte.provenance import RESEARCH_USE_ONLY

ALL_CLASSES = "all"
MEASURES = {
    "score": "insertion minus deletion",
    "deletion": "area under the deletion curve, the lower the better",
    "insertion": "area under the insertion curve, the higher the better",
    "road": "ROAD: score without the least relevant pixels minus score without the most relevant",
    "road_most": "ROAD: score without the most relevant pixels, the lower the better",
    "road_least": "ROAD: score without the least relevant pixels, the higher the better",
    "beats_controls": "share of cells on which the map beats all three controls",
    "nucleus_share": "share of the map inside the nucleus",
    "nucleus_enrichment": "that share over the nucleus's share of the image",
    "nucleus_hit": "share of cells in which the map is highest in the nucleus",
    "cell_share": "share of the map inside the cell",
    "cell_enrichment": "that share over the cell's share of the image",
    "cell_hit": "share of cells in which the map is highest in the cell",
    "like_centre": "rank correlation with the centre blob",
    "like_darkness": "rank correlation with the image's darkness",
}
COMPARED = ("score", "road")
COMPUTED = ("score", "road", "road_most", "road_least", "beats_controls")  # here, from what was recorded

Values = dict[str, dict[str, np.ndarray]]
"""map -> measure -> float [N], NaN where undefined."""


def figures_of(audit: Audit) -> dict[str, Any]:
    """Return all figures of an audit as JSON values; undefined ones are None."""
    settings = AuditSettings.from_json(audit.header["settings"])
    order = {name: place for place, name in enumerate(audit.header["cells"])}
    records = sorted(audit.records, key=lambda record: order[record["name"]])
    values = values_of(records, settings)
    groups = np.array([record["group"] for record in records])
    classes = np.array([record["true_class"] for record in records])
    best = {measure: best_map(values, settings, measure) for measure in COMPARED}
    maps = {
        label: _means(values, groups, _of(classes, label)) for label in (ALL_CLASSES, *sorted(set(classes)))
    }
    content: dict[str, Any] = {
        "notice": RESEARCH_USE_ONLY,
        **audit.header,
        "cells_audited": len(records),
        "groups": len(set(groups)),
        "cells_per_class": {label: int((classes == label).sum()) for label in sorted(set(classes))},
        "correct": _mean([record["predicted_class"] == record["true_class"] for record in records], groups),
        "measures": MEASURES,
        "definitions": definitions(settings),
        "explanations": settings.explanations,
        "controls": settings.controls,
        "best": best,
        "maps": maps,
        "against_controls": {
            label: _against_controls(values, settings, groups, _of(classes, label))
            for label in (ALL_CLASSES, *sorted(set(classes)))
        },
        "against_best": {
            measure: {
                name: _difference(values, best[measure], name, measure, groups)
                for name in settings.explanations
                if name != best[measure]
            }
            for measure in COMPARED
        },
        "randomisation": _randomisation(audit, groups, settings),
        "stability": _stability(records, groups, settings),
        "shown_only": _shown_only(records, groups, classes),
        "outlines": _outlines(records, groups),
        "most_and_least_faithful": _extremes(records, values, best["score"]),
        "intervals": {
            "level": metrics.LEVEL,
            "method": "percentile interval of a bootstrap that draws whole groups",
            "draws": metrics.DRAWS,
            "seed": 0,
        },
    }
    return content


def values_of(records: Sequence[Mapping[str, Any]], settings: AuditSettings) -> Values:
    """Return every measure of every map, over the cells in order."""
    values: Values = {}
    for name in (*settings.explanations, *settings.controls):
        of_map = [record["maps"][name] for record in records]

        found = {
            measure: np.array([_number(one.get(measure)) for one in of_map])
            for measure in MEASURES
            if measure not in COMPUTED
        }
        found |= {
            measure: np.array([np.mean(one[measure]) for one in of_map])
            for measure in ("road_most", "road_least")
        }
        found["score"] = found["insertion"] - found["deletion"]
        found["road"] = found["road_least"] - found["road_most"]
        found["beats_controls"] = np.full(len(records), np.nan)
        values[name] = found
    for name, found in values.items():
        if name in settings.explanations:
            others = [values[control]["score"] for control in controls_of(name)]
            ahead = is_ahead(found["score"], others)
            # A map without likeness to anything is empty, and beats nothing, as in a verdict.
            found["beats_controls"] = (ahead & ~np.isnan(found["like_centre"])).astype(float)
    return values


def best_map(values: Values, settings: AuditSettings, measure: str) -> str:
    """Return the explanation with the highest mean over all cells."""
    return max(settings.explanations, key=lambda name: float(np.nanmean(values[name][measure])))


def definitions(settings: AuditSettings) -> dict[str, str]:
    """Say what was done, with the constants."""
    return {
        "explained class": "the class that the network predicts, whether it is right or not",
        "score": "the network's probability of that class",
        "deletion": f"pixels replaced by the image's mean colour, in {settings.steps} equal steps",
        "insertion": (
            f"pixels put back into the image blurred with a sigma of {BLUR_SIGMA:.3g} of its side, in "
            f"{settings.steps} equal steps"
        ),
        "ROAD": (
            f"{', '.join(map(str, settings.percentiles))} % of the pixels replaced by noisy linear "
            f"imputation (noise of {ROAD_NOISE:g} grey levels); the mean over these percentages is given"
        ),
        "nucleus and cell": "outlines on the original's pixels; what of a map lies on padding is left out",
        "beats controls": (
            f"the map is not empty, and its score exceeds 0 and that of each of its three controls by more "
            f"than {MARGIN:g}"
        ),
        "random": "the map by the same method at the same layer of one network with random weights",
        "shown only": (
            "the rest of the image replaced by its mean colour, or filled smoothly from the pixels that are "
            "shown (linear imputation without noise); the outline of what is shown remains visible"
        ),
        "stability": "rank correlation of the map before and after a change, moved back where things moved",
        "randomisation": (
            "weights drawn anew from the classifier down; SSIM and rank correlation of the map with the "
            "trained network's, each scaled to its own highest value, over the pairs in which neither map is "
            "empty (zero all over)"
        ),
        "empty before, after": "share of the trained network's maps, and of those afterwards, that are empty",
    }


def as_table(figures: Mapping[str, Any]) -> pd.DataFrame:
    """Return the long table: a row a class, map and measure, then the other parts of the audit."""
    rows: list[dict[str, Any]] = []

    def add(part: str, label: str, name: str, measure: str, figure: Mapping[str, Any]) -> None:
        rows.append(
            {"part": part, "class": label, "map": name, "measure": measure}
            | {end: figure[end] for end in ("value", "low", "high", "cells")}
        )

    for label, maps in figures["maps"].items():
        for name, measures in maps.items():
            for measure, figure in measures.items():
                add("map", label, name, measure, figure)
    for label, maps in figures["against_controls"].items():
        for name, controls in maps.items():
            for control, measures in controls.items():
                for measure, figure in measures.items():
                    add(f"difference from {control}", label, name, measure, figure)
    for measure, maps in figures["against_best"].items():
        for name, figure in maps.items():
            add(f"difference of {figures['best'][measure]}", ALL_CLASSES, name, measure, figure)
    for stage, maps in figures["randomisation"].items():
        for name, measures in maps.items():
            for measure, figure in measures.items():
                add("randomisation", ALL_CLASSES, name, f"{measure} at {stage}", figure)
    for change, maps in figures["stability"].items():
        for name, figure in maps.items():
            add("stability", ALL_CLASSES, name, change, figure)
    for label, fillings in figures["shown_only"].items():
        for filling, parts in fillings.items():
            for part, figure in parts.items():
                add("shown only", label, "", f"accuracy, {part}, {filling}", figure)
    table = pd.DataFrame(rows)
    # So that no line of it can be quoted without.
    table["cells_seen_in_training"] = figures["cells_seen_in_training"]
    table["notice"] = RESEARCH_USE_ONLY
    return table


# --- means with intervals --------------------------------------------------------------------------


def _means(values: Values, groups: np.ndarray, rows: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return map -> measure -> figure, over some of the cells, all from the same draws."""
    places = [
        (name, measure)
        for name, found in values.items()
        for measure in MEASURES
        if not np.isnan(found[measure][rows]).all()
    ]
    columns = np.stack([values[name][measure][rows] for name, measure in places], axis=1)
    means: dict[str, dict[str, Any]] = {name: {} for name in values}
    for (name, measure), figure in zip(places, _intervals(columns, groups[rows]), strict=True):
        means[name][measure] = figure
    return means


def _against_controls(
    values: Values, settings: AuditSettings, groups: np.ndarray, rows: np.ndarray
) -> dict[str, dict[str, dict[str, Any]]]:
    places = [
        (name, control, measure)
        for name in settings.explanations
        for control in controls_of(name)
        for measure in COMPARED
    ]
    columns = np.stack(
        [(values[name][measure] - values[control][measure])[rows] for name, control, measure in places],
        axis=1,
    )
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, control, measure), figure in zip(places, _intervals(columns, groups[rows]), strict=True):
        kind = control.partition(" ")[0]
        found.setdefault(name, {}).setdefault(kind, {})[measure] = figure
    return found


def _difference(values: Values, first: str, second: str, measure: str, groups: np.ndarray) -> dict[str, Any]:
    return _mean(values[first][measure] - values[second][measure], groups)


def _mean(column: Sequence[Any] | np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    return _intervals(np.asarray(column, float)[:, np.newaxis], groups)[0]


def _intervals(columns: np.ndarray, groups: np.ndarray) -> list[dict[str, Any]]:
    """Return the mean of each column [N, K] with its interval; NaN are cells without the measure."""
    defined = ~np.isnan(columns)
    filled = np.where(defined, columns, 0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return metrics.ratio(weights @ filled, weights @ defined)

    found = metrics.group_bootstrap(groups, statistic)
    return [
        {**_as_json(Estimate(*map(float, ends))), "cells": int(count)}
        for *ends, count in zip(*found, defined.sum(0), strict=True)
    ]


def _as_json(figure: Estimate) -> dict[str, float | None]:
    return {end: None if np.isnan(value) else round(value, 6) for end, value in figure._asdict().items()}


def _of(classes: np.ndarray, label: str) -> np.ndarray:
    return np.full(len(classes), True) if label == ALL_CLASSES else classes == label


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


# --- the other parts -------------------------------------------------------------------------------


def _randomisation(
    audit: Audit, groups: np.ndarray, settings: AuditSettings
) -> dict[str, dict[str, dict[str, Any]]]:
    stages = [stage for stage, _ in RANDOMISED_STAGES] + [ANOTHER_CELL]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in stages:
        if stage in audit.stages:
            found[stage] = {
                name: {
                    measure: _mean([_number(one) for one in likeness], groups[: len(likeness)])
                    for measure, likeness in audit.stages[stage][name].items()
                }
                for name in settings.explanations
            }
    return found


def _stability(
    records: Sequence[Mapping[str, Any]], groups: np.ndarray, settings: AuditSettings
) -> dict[str, dict[str, Any]]:
    rows = [index for index, record in enumerate(records) if "stability" in record]
    if not rows:
        return {}
    return {
        change: {
            name: _mean([_number(records[row]["stability"][change][name]) for row in rows], groups[rows])
            for name in settings.explanations
        }
        for change in STABLE_UNDER
    }


def _shown_only(
    records: Sequence[Mapping[str, Any]], groups: np.ndarray, classes: np.ndarray
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return class -> filling -> part -> accuracy; `whole` is the accuracy on the same, unchanged cells."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for label in (ALL_CLASSES, *sorted(set(classes))):
        rows = [row for row in np.flatnonzero(_of(classes, label)).tolist() if "shown_only" in records[row]]
        if not rows:
            continue

        def accuracy(answer: Callable[[Mapping[str, Any]], str], rows: list[Any] = rows) -> dict[str, Any]:
            return _mean([answer(records[row]) == records[row]["true_class"] for row in rows], groups[rows])

        found[label] = {
            filling: {
                "whole": accuracy(lambda record: record["predicted_class"]),
                **{
                    part: accuracy(
                        lambda record, filling=filling, part=part: record["shown_only"][filling][part]  # type: ignore[misc]
                    )
                    for part in PARTS
                },
            }
            for filling in FILLINGS
        }
    return found


def _outlines(records: Sequence[Mapping[str, Any]], groups: np.ndarray) -> dict[str, Any]:
    sources = [record["outlines"] for record in records]
    found: dict[str, Any] = {"sources": {source: sources.count(source) for source in sorted(set(sources))}}
    for part in ("nucleus_area", "cell_area"):
        column = np.array([_number(record.get(part)) for record in records])
        if not np.isnan(column).all():
            found[part] = _mean(column, groups)
    return found


def _extremes(records: Sequence[Mapping[str, Any]], values: Values, best: str) -> list[dict[str, Any]]:
    """Return, of each class, the cell whose map is the most faithful and the one whose map is the least."""
    found = []
    margin = values[best]["score"]
    for label in sorted({record["true_class"] for record in records}):
        rows = [row for row, record in enumerate(records) if record["true_class"] == label]
        ranked = sorted(rows, key=lambda row: -margin[row])
        for kind, row in (("most", ranked[0]), ("least", ranked[-1])):
            found.append(
                {
                    "kind": kind,
                    "class": label,
                    "name": records[row]["name"],
                    "predicted_class": records[row]["predicted_class"],
                    "map": best,
                    "score": round(float(margin[row]), 6),
                    "beats_controls": bool(values[best]["beats_controls"][row]),
                }
            )
    return found
