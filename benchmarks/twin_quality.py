r"""How well twins are found: precision and recall on labelled pairs and on drawn cells photographed twice.

    OMP_NUM_THREADS=1 python benchmarks/twin_quality.py --data ../shared/data/sipakmed --half tuning
    OMP_NUM_THREADS=1 python benchmarks/twin_quality.py --scenes 150

Labelled pairs (`benchmarks/twins/labelled_pairs.csv`, drawn by `twin_candidates.py` from a search that
shares nothing with the finder; judged once, by one reader, a language model that saw neither names nor
scores) are weighted by the inverse of the probability with which they were drawn. The tuning half may be
looked at as often as one likes; each opening of the test half is recorded beside the file.

Crops of one photograph that overlap hold the same pixels, so there the truth needs no eye: both figures are
given, with same-field pairs as labelled, and with them judged by their pixels, twins if as much of the
smaller crop lies in both as the finder asks for.

Each run replaces its own part of quality.json and writes the page anew from all parts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from cervicyte.datasets.crops import Reduced, reduce_crop, working_scale
from cervicyte.datasets.groups import sipakmed_field_groups
from cervicyte.datasets.inspection import look_through
from cervicyte.datasets.layouts import CellDataset, read_dataset
from cervicyte.datasets.synthetic_fields import Photograph, draw_scene, photograph
from cervicyte.datasets.twins import LEAST_SHARE_IN_ONE_FIELD, THRESHOLD, Twin, find_twins, joined
from cervicyte.evaluation.ledger import record_opening
from cervicyte.images.reader import read_image
from cervicyte.progress import Progress, TerminalProgress
from cervicyte.provenance import (
    RESEARCH_USE_ONLY,
    provenance,
    sha256_of_file,
    source_commit,
    write_json,
    write_text,
)

PAIRS = Path(__file__).resolve().parent / "twins" / "labelled_pairs.csv"
OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "twins"
GOALS = {"precision": 0.98, "recall": 0.95, "recall_of_different_fields": 0.95}
DRAWS = 2000
SEED = 0

# Crops of one photograph share pixels if, where they overlap by so much, they are the same but for JPEG.
SAME_PIXELS = 0.985
LEAST_SHARED_PX = 400

# How a scene is photographed again, and how far a crop's box moves, in shares of its sides.
SCENE_PX, PHOTOGRAPH_PX, CELLS = 1100, 860, 5
TURN, BLUR_PX, EXPOSURE, SHIFT_PX = 5.0, (0.0, 1.5), (0.75, 1.2), 60.0
NEAR, FAR = 0.08, (0.25, 0.9)
OVERLAPS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


# --- figures -------------------------------------------------------------------------------------


def estimate(
    right: np.ndarray, all_: np.ndarray, clusters: np.ndarray, counts: tuple[int, int]
) -> dict[str, Any]:
    """Return a ratio of sums with its 95 % interval by a bootstrap over clusters.

    Where nothing went wrong the bootstrap cannot tell how little that may mean, so Wilson's interval (JASA
    22, 1927) for the plain counts stands beside it.
    """
    total = float(all_.sum())
    if not total:
        return {"value": None, "low": None, "high": None, "right": counts[0], "of": counts[1]}
    _, which = np.unique(clusters, return_inverse=True)
    sums = np.stack([np.bincount(which, values) for values in (right, all_)])
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, sums.shape[1], (DRAWS, sums.shape[1]))
    tops, bottoms = (part[drawn].sum(1) for part in sums)
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {
        "value": round(float(right.sum() / total), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "right": counts[0],
        "of": counts[1],
        "interval_of_counts": wilson_interval(*counts),
    }


def wilson_interval(right: int, of: int) -> list[float]:
    z = 1.96
    share = right / of
    middle = share + z * z / (2 * of)
    reach = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return [round(abs(middle + sign * reach) / (1 + z * z / of), 4) for sign in (-1, 1)]


def precision_and_recall(table: pd.DataFrame) -> dict[str, Any]:
    """Return both from columns truth and found (bool), weight and cluster."""
    both = table["truth"] & table["found"]

    def of(condition: pd.Series) -> dict[str, Any]:
        weight = table["weight"].to_numpy(float)
        return estimate(
            weight * both.to_numpy(),
            weight * condition.to_numpy(),
            table["cluster"].to_numpy(),
            (int(both.sum()), int(condition.sum())),
        )

    return {"precision": of(table["found"]), "recall": of(table["truth"])}


# --- the real cells ------------------------------------------------------------------------------


def find_in(data: Path, progress: Progress) -> tuple[CellDataset, dict[tuple[str, str], Twin]]:
    """Return the data set and the twins found in it by names, with the shipped table switched off."""
    dataset = read_dataset(data, known_groups=False)
    looks = look_through(dataset.cells, progress)
    kept = [index for index, look in enumerate(looks) if look.reduced is not None]
    crops = [reduced for look in looks if (reduced := look.reduced) is not None]
    found = find_twins(crops, [dataset.cells[index].field for index in kept], progress=progress)
    names = [dataset.cells[index].name for index in kept]
    return dataset, {_pair(names[twin.first], names[twin.second]): twin for twin in found}


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


def labelled_figures(
    pairs: pd.DataFrame, dataset: CellDataset, found: dict[tuple[str, str], Twin]
) -> dict[str, Any]:
    """Return precision and recall on labelled pairs, unsure ones left out, and each mistake by name."""
    field_of = {cell.name: cell.field for cell in dataset.cells}
    path_of = {cell.name: cell.path for cell in dataset.cells}
    names = [_pair(one, other) for one, other in zip(pairs["path_a"], pairs["path_b"], strict=True)]
    table = pd.DataFrame(
        {
            "pair": names,
            "verdict": pairs["verdict"].to_numpy(),
            "truth": (pairs["verdict"] == "twin").to_numpy(),
            "found": [pair in found for pair in names],
            "weight": pairs["weight"].to_numpy(float),
            "cluster": [" ".join(sorted((field_of[one], field_of[other]))) for one, other in names],
            "same_field": [field_of[one] == field_of[other] for one, other in names],
        }
    )
    sure = table[table["verdict"] != "unsure"]
    correction = pairs["correction"].reset_index(drop=True)
    corrected = table.assign(truth=(correction.where(correction != "", table["verdict"]) == "twin"))
    corrected = corrected[corrected["verdict"] != "unsure"]
    by_pixels = table.copy()
    same = by_pixels["same_field"]
    shares = [shared_pixels(path_of[one], path_of[other]) for one, other in table.loc[same, "pair"]]
    by_pixels["share"] = 0.0
    by_pixels.loc[same, "share"] = shares
    by_pixels.loc[same, "truth"] = [share >= LEAST_SHARE_IN_ONE_FIELD for share in shares]
    by_pixels = by_pixels[(by_pixels["verdict"] != "unsure") | same]
    unlike = by_pixels[same & (by_pixels["truth"] != table.loc[by_pixels.index, "truth"])]
    return {
        "pairs": len(table),
        "twins": int(sure["truth"].sum()),
        "unsure_left_out": len(table) - len(sure),
        "as_labelled": precision_and_recall(sure),
        "different_fields": precision_and_recall(sure[~sure["same_field"]]),
        "corrected": precision_and_recall(corrected),
        "different_fields_corrected": precision_and_recall(corrected[~corrected["same_field"]]),
        "corrections": pairs.loc[
            pairs["correction"] != "", ["path_a", "path_b", "correction", "why"]
        ].to_dict("records"),
        "same_field_by_pixels": precision_and_recall(by_pixels),
        "labelled_otherwise_than_pixels_say": [
            {"pair": list(pair), "verdict": verdict, "share": round(share, 3), "weight": weight}
            for pair, verdict, share, weight in listed(unlike, "share")
        ],
        "mistakes": [
            {"pair": list(pair), "verdict": verdict, "found": bool(twin), "weight": weight}
            for pair, verdict, twin, weight in listed(sure[sure["truth"] != sure["found"]], "found")
        ],
    }


def listed(table: pd.DataFrame, column: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name] for name in ("pair", "verdict", column, "weight")), strict=True))


def shared_pixels(first: Path, second: Path) -> float:
    """Return the share of the smaller of two crops of one photograph that lies in both.

    Their pixels are compared at every shift. Where crops overlap they are equal but for JPEG: correlations
    are 0.997 and more, of others in the tuning half 0.96 and less.

    Correlation where they overlap, for all shifts at once by Fourier transforms (Padfield, "Masked object
    registration in the Fourier domain", IEEE TIP 21(5), 2012).
    """
    one, other = (
        cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY).astype(float) for path in (first, second)
    )
    shape = [int(a + b - 1) for a, b in zip(one.shape, other.shape, strict=True)]

    def transform(values: np.ndarray) -> np.ndarray:
        return np.fft.rfft2(values, shape)

    def at_all_shifts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.fft.irfft2(transform(a) * np.conj(transform(b)), shape)

    one, other = one - one.mean(), other - other.mean()
    ones, others = np.ones_like(one), np.ones_like(other)
    count = np.round(at_all_shifts(ones, others))
    with np.errstate(divide="ignore", invalid="ignore"):
        sum_one, sum_other = at_all_shifts(one, others), at_all_shifts(ones, other)
        cross = at_all_shifts(one, other) - sum_one * sum_other / count
        spread_one = at_all_shifts(one**2, others) - sum_one**2 / count
        spread_other = at_all_shifts(ones, other**2) - sum_other**2 / count
        correlation = cross / np.sqrt(spread_one * spread_other)
    # Where both are flat, noise decides.
    worth = (count >= LEAST_SHARED_PX) & (np.minimum(spread_one, spread_other) > 25 * count)
    same = worth & (correlation >= SAME_PIXELS)
    return float(count[same].max(initial=0)) / min(one.size, other.size)


def table_figures(dataset: CellDataset, found: dict[tuple[str, str], Twin]) -> dict[str, Any]:
    """Compare with the shipped table: what of its joins the crops alone show, and what they show beyond."""
    cells = {cell.name: cell for cell in dataset.cells}
    table = sipakmed_field_groups()
    group_of = {cell.field: table[cell.label, int(cell.field[-3:])] for cell in dataset.cells}
    across = {
        pair: twin
        for pair, twin in found.items()
        if len({cells[name].field for name in pair}) == 2 and not twin.turn
    }
    fields = sorted(group_of)
    place = {field: index for index, field in enumerate(fields)}
    known = [pair for pair in across if len({group_of[cells[name].field] for name in pair}) == 1]
    links = [(place[cells[one].field], place[cells[other].field]) for one, other in known]
    component = dict(zip(fields, joined(fields, links), strict=True))
    parts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for field in fields:
        parts[group_of[field]][component[field]].append(field)
    needed = sum(sum(map(len, of.values())) - 1 for of in parts.values())
    missing = sum(len(of) - 1 for of in parts.values())
    beyond = sorted({tuple(sorted(cells[name].field for name in pair)) for pair in set(across) - set(known)})
    return {
        "cells": len(cells),
        "fields": len(fields),
        "twin_pairs": len(found),
        "pairs_of_different_fields": len(across),
        "by_keypoints": sum(twin.partial for twin in across.values()),
        "inside_the_tables_groups": len(known),
        "fields_joined_beyond_the_table": [list(pair) for pair in beyond],
        "joins_of_the_table": needed,
        "joins_that_crops_show": needed - missing,
        "joins_that_crops_do_not_show": {
            group: list(of.values()) for group, of in sorted(parts.items()) if len(of) > 1
        },
    }


# --- drawn scenes --------------------------------------------------------------------------------


def drawn_crops(scenes: int, progress: Progress) -> tuple[list[np.ndarray], pd.DataFrame]:
    """Return crops of scenes photographed twice, and a row for each.

    Columns: scene, photograph, cell, moved ("first", "near", "far"), corners (in the scene, float32 [4, 2]).
    """
    images: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []

    def cut(shot: Photograph, box: np.ndarray, **row: Any) -> None:
        """Cut a box of the scene, upright in the photograph, unless it reaches beyond it."""
        corners = shot.place(box.reshape(2, 2).mean(0, keepdims=True))[0]
        half = (box[2:] - box[:2]) / 2
        left, top = np.round(corners - half).astype(int)
        right, bottom = np.round(corners + half).astype(int)
        if min(left, top) < 0 or right > PHOTOGRAPH_PX or bottom > PHOTOGRAPH_PX:
            return
        images.append(shot.image[top:bottom, left:right])
        around = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)
        linear, moved = shot.to_photograph[:, :2], shot.to_photograph[:, 2]
        rows.append({**row, "corners": ((around - moved) @ np.linalg.inv(linear).T).astype(np.float32)})

    progress.start("Drawing scenes", scenes)
    for number in range(scenes):
        rng = np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(number, 1)))
        scene = draw_scene(SEED, number, SCENE_PX, SCENE_PX, CELLS)
        shots = [
            photograph(scene, PHOTOGRAPH_PX, PHOTOGRAPH_PX, seed=2 * number),
            photograph(
                scene,
                PHOTOGRAPH_PX,
                PHOTOGRAPH_PX,
                shift_px=(rng.uniform(-SHIFT_PX, SHIFT_PX), rng.uniform(-SHIFT_PX, SHIFT_PX)),
                degrees=rng.uniform(-TURN, TURN),
                blur_px=rng.uniform(*BLUR_PX),
                exposure=rng.uniform(*EXPOSURE),
                seed=2 * number + 1,
            ),
        ]
        for cell, box in enumerate(scene.boxes):
            sides = box[2:] - box[:2]
            angle = rng.uniform(0, 2 * math.pi)
            far = rng.uniform(*FAR) * np.array([math.cos(angle), math.sin(angle)]) * sides
            near = rng.uniform(-NEAR, NEAR, 2) * sides
            for shot, moved, shift in ((0, "first", 0 * near), (1, "near", near), (1, "far", far)):
                cut(
                    shots[shot],
                    box + np.tile(shift, 2),
                    scene=number,
                    photograph=shot,
                    cell=cell,
                    moved=moved,
                )
        progress.advance()
    progress.close()
    return images, pd.DataFrame(rows)


def overlapping(table: pd.DataFrame) -> dict[tuple[int, int], float]:
    """Return for each two crops of a scene that overlap the share of the smaller that is common."""
    shares = {}
    corners: list[np.ndarray] = table["corners"].tolist()
    for _, crops in table.groupby("scene"):
        for one, other in combinations(crops.index.tolist(), 2):
            common, _ = cv2.intersectConvexConvex(corners[one], corners[other])
            if common > 0:
                least = min(cv2.contourArea(corners[one]), cv2.contourArea(corners[other]))
                shares[one, other] = min(1.0, common / least)
    return shares


def synthetic_figures(scenes: int, progress: Progress) -> dict[str, Any]:
    """Return precision and recall on drawn scenes that were photographed twice."""
    images, table = drawn_crops(scenes, progress)
    shares = overlapping(table)
    scale = working_scale(math.sqrt(image.shape[0] * image.shape[1]) for image in images)
    crops = [reduce_crop(image, scale) for image in images]
    fields = [f"{row.scene} {row.photograph}" for row in table.itertuples()]
    alone = [str(index) for index in range(len(crops))]
    return {
        "scenes": scenes,
        "crops": len(crops),
        "photographed_again": {
            "turn_degrees": [-TURN, TURN], "blur_px": BLUR_PX, "exposure": EXPOSURE, "shift_px": SHIFT_PX,
            "box_moved_near_shares_of_sides": NEAR, "box_moved_far_shares_of_sides": FAR,
        },
        "photographs_known": _synthetic_figures(crops, fields, table, shares, progress),
        "each_crop_for_itself": _synthetic_figures(crops, alone, table, shares, progress),
    }  # fmt: skip


def _synthetic_figures(
    crops: Sequence[Reduced],
    fields: Sequence[str],
    table: pd.DataFrame,
    shares: dict[tuple[int, int], float],
    progress: Progress,
) -> dict[str, Any]:
    found = {(twin.first, twin.second) for twin in find_twins(crops, fields, progress=progress)}
    scene, shot, moved, cell = (table[name].to_numpy() for name in ("scene", "photograph", "moved", "cell"))
    # Crops of one photograph are not what is asked: they hold the same pixels.
    pairs = sorted(
        pair
        for pair in found | set(shares)
        if scene[pair[0]] != scene[pair[1]] or shot[pair[0]] != shot[pair[1]]
    )
    result = pd.DataFrame(
        {
            "truth": [pair in shares for pair in pairs],
            "found": [pair in found for pair in pairs],
            "weight": 1.0,
            "cluster": [scene[one] for one, _ in pairs],
            "share": [shares.get(pair, 0.0) for pair in pairs],
            "rerendered": [
                scene[one] == scene[other]
                and cell[one] == cell[other]
                and {moved[one], moved[other]} == {"first", "near"}
                for one, other in pairs
            ],
        }
    )
    strangers = len(crops) * (len(crops) - 1) // 2 - len(shares)

    def recall_where(condition: pd.Series) -> dict[str, Any]:
        return precision_and_recall(result[condition])["recall"]

    return {
        "precision": precision_and_recall(result)["precision"],
        "strangers": strangers,
        "recall_of_cells_photographed_again": recall_where(result["rerendered"]),
        "recall_by_overlap": [
            {
                "from": low,
                "to": high,
                **recall_where(result["truth"] & (result["share"] > low) & (result["share"] <= high)),
            }
            for low, high in pairwise(OVERLAPS)
        ],
    }


# --- the page ------------------------------------------------------------------------------------


def rate(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return f"none of {figure['of']}"
    low, high = figure["interval_of_counts"]
    return (
        f"{100 * figure['value']:.1f} % [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]; "
        f"{figure['right']:,} of {figure['of']:,} pairs [{100 * low:.1f}, {100 * high:.1f}]"
    )


def page(content: dict[str, Any]) -> str:
    lines = [
        "# How well twins are found",
        "",
        f"**{RESEARCH_USE_ONLY}**",
        "",
        "Written by `benchmarks/twin_quality.py` from `quality.json` beside it. A pair counts from a score "
        f"of {THRESHOLD} on. Goals: precision {GOALS['precision']:.0%}, recall {GOALS['recall']:.0%}, and "
        "the latter for pairs of different field numbers alone. In brackets: 95 % intervals, from 2,000 "
        "bootstrap draws of whole pairs of photographs (of scenes, where cells are drawn), then Wilson's "
        "for the plain counts, which say more where little or nothing went wrong.",
        "",
    ]
    for half, figures in content.get("labelled", {}).items():
        lines += labelled_lines(half, figures)
    if table := content.get("table"):
        lines += table_lines(table)
    if drawn := content.get("synthetic"):
        lines += synthetic_lines(drawn)
    return "\n".join(lines)


def by_command(figures: dict[str, Any]) -> str:
    return f"`{figures['provenance']['command']}` at `{figures['provenance']['commit']}`."


def labelled_lines(half: str, figures: dict[str, Any]) -> list[str]:
    opened = f" The test half has seen {figures['openings']}." if "openings" in figures else ""
    lines = [
        f"## Labelled pairs of SIPaKMeD, {half} half",
        "",
        f"{by_command(figures)} {figures['pairs']} pairs, {figures['twins']} twins, "
        f"{figures['unsure_left_out']} unsure and left out; weighted by the inverse of the probability with "
        f"which each was drawn. The shipped table was switched off.{opened}",
        "",
        "| | precision | recall |",
        "| --- | --- | --- |",
    ]
    # A label that proved wrong stays, and so do the figures with it.
    corrected_rows: tuple[tuple[str, str], ...] = ()
    if figures.get("corrections"):
        corrected_rows = (
            ("different field numbers, labels corrected", "different_fields_corrected"),
            ("all pairs, labels corrected", "corrected"),
        )
    for title, key in (
        ("different field numbers", "different_fields"),
        ("all pairs, as labelled", "as_labelled"),
        *corrected_rows,
        ("all pairs, same-field pairs judged by their pixels", "same_field_by_pixels"),
    ):
        lines.append(f"| {title} | {rate(figures[key]['precision'])} | {rate(figures[key]['recall'])} |")
    lines.append("")
    for one in figures["labelled_otherwise_than_pixels_say"]:
        lines.append(
            f"- {' and '.join(one['pair'])}: labelled {one['verdict']}; {one['share']:.0%} of the "
            "smaller lies in both, pixel by pixel."
        )
    for one in figures["mistakes"]:
        said = "found" if one["found"] else "not found"
        lines.append(f"- {' and '.join(one['pair'])}: labelled {one['verdict']}, {said}.")
    for one in figures.get("corrections", []):
        lines.append(
            f"- {one['path_a']} and {one['path_b']}: corrected to {one['correction']}, {one['why']}."
        )
    return [*lines, ""]


def table_lines(table: dict[str, Any]) -> list[str]:
    missing = table["joins_that_crops_do_not_show"]
    beyond = ", ".join(" and ".join(pair) for pair in table["fields_joined_beyond_the_table"]) or "none"
    return [
        "## Beside the shipped table of field groups",
        "",
        f"{by_command(table)} Crops alone, {table['cells']:,} cells of {table['fields']} fields: "
        f"{table['pairs_of_different_fields']} pairs of different fields are found "
        f"({table['by_keypoints']} by keypoints, as they share a part), "
        f"{table['inside_the_tables_groups']} of them inside one group of the table. "
        f"Fields joined beyond it: {beyond}.",
        "",
        f"Of the table's {table['joins_of_the_table']} joins between these fields, crops alone show "
        f"**{table['joins_that_crops_show']}**. The others, in {len(missing)} groups, are of fields none of "
        "whose crops were found to share a place; to see those, whole fields must be matched, as `inspect` "
        "does where they lie beside the crops. The groups are listed in quality.json.",
        "",
    ]


def synthetic_lines(drawn: dict[str, Any]) -> list[str]:
    again = drawn["photographed_again"]
    near, far = again["box_moved_near_shares_of_sides"], again["box_moved_far_shares_of_sides"]
    ways = [drawn["photographs_known"], drawn["each_crop_for_itself"]]
    rows = [
        ("precision", [way["precision"] for way in ways]),
        ("recall of cells photographed again", [way["recall_of_cells_photographed_again"] for way in ways]),
    ]
    for place, (low, high) in enumerate(pairwise(OVERLAPS)):
        title = f"recall at {low:.0%} to {high:.0%} overlap"
        rows.append((title, [way["recall_by_overlap"][place] for way in ways]))
    return [
        "## Drawn cells, photographed twice",
        "",
        f"{by_command(drawn)} {drawn['scenes']} scenes, {drawn['crops']:,} crops. The second photograph is "
        f"turned by up to {again['turn_degrees'][1]:g}°, blurred by up to {again['blur_px'][1]} pixels "
        f"(standard deviation), lit {again['exposure'][0]} to {again['exposure'][1]} times as bright, with "
        f"noise of its own. Of each cell it gives one crop whose box moved by up to {near:.0%} of its sides "
        f"(the cell photographed again) and one whose box moved by {far[0]:.0%} to {far[1]:.0%}. "
        f"{ways[0]['strangers']:,} pairs overlap nowhere.",
        "",
        "| | photographs known | each crop for itself |",
        "| --- | --- | --- |",
        *(f"| {title} | {' | '.join(rate(figure) for figure in figures)} |" for title, figures in rows),
        "",
        "Overlap is the share of the smaller crop that lies in both, empty glass included. Where photographs "
        "are known, two that some pair joins are searched again with fewer keypoints.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Precision and recall of the twin finder.")
    parser.add_argument(
        "--data", type=Path, help="SIPaKMeD: labelled pairs and the comparison with the table"
    )
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="labelled pairs")
    parser.add_argument("--half", choices=("tuning", "test"), default="tuning", help="of the labelled pairs")
    parser.add_argument("--scenes", type=int, default=0, help="so many scenes are drawn; 0: none")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder for quality.json and quality.md")
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS")
    command = f"{f'OMP_NUM_THREADS={threads} ' if threads else ''}{shlex.join(['python', *sys.argv])}"
    progress = TerminalProgress()
    file = arguments.out / "quality.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    content |= {"notice": RESEARCH_USE_ONLY, "goals": GOALS, "threshold": THRESHOLD}
    origin = {"provenance": provenance(command), "seed": SEED}
    if arguments.data is not None:
        dataset, found = find_in(arguments.data, progress)
        content["table"] = {**table_figures(dataset, found), **origin}
        if arguments.pairs.exists():
            openings = {}
            if arguments.half == "test":
                model = f"twin finder at {source_commit()}"
                openings["openings"] = record_opening(
                    arguments.pairs, sha256_of_file(arguments.pairs), model=model, command=command
                )
            pairs = pd.read_csv(arguments.pairs, keep_default_na=False)
            figures = labelled_figures(pairs[pairs["half"] == arguments.half], dataset, found)
            content.setdefault("labelled", {})[arguments.half] = {**figures, **openings, **origin}
    if arguments.scenes:
        content["synthetic"] = {**synthetic_figures(arguments.scenes, progress), **origin}
    write_json(file, content)
    write_text(arguments.out / "quality.md", page(content))
    print(page(content))


if __name__ == "__main__":
    main()
