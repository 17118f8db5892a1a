"""The inspection as one page, with the evidence side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cervicyte.datasets import twins
from cervicyte.datasets.crops import TURNS
from cervicyte.datasets.inspection_findings import OUTLYING, Finding, Inspection, Look
from cervicyte.datasets.layouts import Cell
from cervicyte.datasets.twins import Twin
from cervicyte.datasets.unlike_groups import FEWEST_CELLS, GROUP_OUTLYING
from cervicyte.images.reader import read_image
from cervicyte.images.statistics import STATISTICS
from cervicyte.pages import PICTURE_PIXELS, bullets, counted, facts, key_figures, page_of, picture, section

PAIRS_SHOWN = 24  # in each gallery
SMALL_PICTURE_PIXELS = 56  # the longer side, in a table
FIELD_PICTURE_PIXELS = 240
LISTED = 12  # names shown of a finding; the rest stand in inspection.json
IN_WHOLE_NUMBERS = ("size_px", "lightness", "background")

TITLES = {
    "refused": "Refused as it lies",
    "other-images": "Images that are no cells",
    "counts": "Counted what is no cell",
    "partial-copy": "Partial copy",
    "more-than-published": "More than was published",
    "unreadable": "Unreadable",
    "fields-among-crops": "Fields among crops",
    "masks-among-images": "Masks among images",
    "misnamed": "Not what the name says",
    "blank": "Blank",
    "tiny": "Tiny",
    "augmented-names": "Named as augmented",
    "duplicate-files": "Duplicate files",
    "duplicate-pixels": "Duplicate pictures",
    "augmented-copies": "Augmented copies",
    "twins": "Twins across fields",
    "twins-in-one-field": "Twins in one field",
    "twins-beyond-the-table": "Twins beyond the table",
    "fields-joined": "Overlapping fields",
    "label-conflicts": "Label conflicts",
    "label-errors": "Likely label errors",
    "shortcuts": "Shortcuts",
    "seen-in-training": "Seen in training",
}


def inspection_page(
    inspection: Inspection,
    looks: Sequence[Look],
    content: dict[str, Any],
    added: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the inspection as one HTML page that needs no other file and no network.

    Args:
        inspection: the data set and what was found.
        looks: one an image, in the order of the data set's cells.
        content: of `inspection.json`.
        added: title and markup of further sections.
    """
    dataset = inspection.dataset
    sections = [
        section("At a glance", _key_figures(inspection, content)),
        section("Findings", _findings_table(inspection.findings)),
        *_galleries(inspection),
        *_field_gallery(inspection),
        *(section(title, part) for title, part in added),
        section("What the cells are like", *_class_parts(inspection, looks)),
        section("Cells unlike their class", _outlier_table(content["outliers"], dataset.cells)),
        section("Groups unlike their class", _unlike_groups_table(content, inspection)),
        section("Where this comes from", _origin(content)),
    ]
    lead = (
        f"{counted(len(dataset.cells), 'cell')}, {counted(len(dataset.classes), 'class')}, "
        f"{html.escape(dataset.known or dataset.layout)}. "
        f"Written {html.escape(content['provenance']['written'][:10])} by Cervicyte."
    )
    return page_of(f"Inspection of {dataset.root.resolve().name}", lead, sections, style=STYLE)


def _key_figures(inspection: Inspection, content: dict[str, Any]) -> str:
    involved = {index for twin in inspection.twins for index in (twin.first, twin.second)}
    conflicts = sum(len(one.pairs) for one in inspection.findings if one.kind == "label-conflicts")
    figures = (
        ("Cells", f"{content['cells']:,}", counted(len(content["cells_of_class"]), "class")),
        ("Groups", f"{content['groups']:,}", f"{content['groups_before']:,} before twins were joined"),
        ("Largest group", f"{content['largest_group']:,}", "cells that stay on one side of a split"),
        (
            "Twin pairs",
            f"{content['twin_pairs']:,}",
            counted(len(involved), "cell", "has a twin", "have a twin"),
        ),
        ("Label conflicts", f"{conflicts:,}", "pairs of one cell under two labels"),
        ("Unreadable", f"{len(content['unreadable']):,}", "files"),
    )
    return key_figures([(title, f"<b>{value}</b>", meaning) for title, value, meaning in figures])


def _findings_table(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p class=lead>There are none.</p>"
    rows = []
    for finding in findings:
        names = [*finding.paths, *(f"{one} and {other}" for one, other in finding.pairs)]
        more = f"<li>and {len(names) - LISTED:,} more in inspection.json</li>" if len(names) > LISTED else ""
        listed = "".join(f"<li><code>{html.escape(name)}</code></li>" for name in names[:LISTED]) + more
        fold = (
            f"<details><summary>{len(names):,} listed</summary><ul>{listed}</ul></details>" if names else ""
        )
        rows.append(
            f"<tr><th scope=row>{html.escape(TITLES[finding.kind])}</th>"
            f"<td>{html.escape(finding.text)}{fold}</td></tr>"
        )
    return f"<table class=findings><tbody>{''.join(rows)}</tbody></table>"


def _galleries(inspection: Inspection) -> list[str]:
    """Return the evidence: one gallery of pairs for each question that a reader will have."""
    cells, found = inspection.dataset.cells, inspection.twins
    across = [twin for twin in found if cells[twin.first].field != cells[twin.second].field and not twin.turn]
    surest = sorted(across, key=lambda twin: -twin.score)
    shown = min(PAIRS_SHOWN, len(surest))
    table = inspection.dataset.known == "SIPaKMeD"
    galleries = (
        (
            "One cell under two labels",
            "The same cell, photographed twice and labelled differently.",
            [
                twin
                for twin in found
                if not twin.partial and cells[twin.first].label != cells[twin.second].label
            ],
        ),
        (
            "Twins beyond the table" if table else "Twins across fields that names do not tell",
            "Not joined by the data set's own groups; joined here.",
            [twin for twin in across if cells[twin.first].group != cells[twin.second].group],
        ),
        (
            "The least sure twins",
            f"The pairs next to the threshold of {twins.THRESHOLD}, where a mistake is likeliest.",
            surest[::-1],
        ),
        (
            "Crops that share a part",
            "Found by keypoints: a neighbouring cell or a margin lies in both crops. The least sure first.",
            sorted((twin for twin in across if twin.partial), key=lambda twin: twin.score),
        ),
        (
            "Twins across fields",
            "Evenly spaced by score.",
            [surest[place * len(surest) // shown] for place in range(shown)],
        ),
        (
            "Twins in one field",
            "Crops of one photograph, or numbered as one, that show the same place.",
            [twin for twin in found if cells[twin.first].field == cells[twin.second].field and not twin.turn],
        ),
        ("Augmented copies", "One picture, mirrored or turned by quarters.", [t for t in found if t.turn]),
    )
    sections = []
    for title, text, pairs in galleries:
        if pairs:
            total = len(across) if title == "Twins across fields" else len(pairs)
            count = counted(total, "pair") if total <= PAIRS_SHOWN else f"{PAIRS_SHOWN} of {total:,} pairs"
            figures = "".join(_pair(cells, twin) for twin in pairs[:PAIRS_SHOWN])
            note = f"<p class=note>{html.escape(text)} {count}; all found stand in twins.csv.</p>"
            sections.append(section(title, note, f"<div class=pairs>{figures}</div>"))
    return sections


def _field_gallery(inspection: Inspection) -> list[str]:
    """Return the overlapping fields side by side, the least sure first, or nothing."""
    fields = inspection.fields
    figures = []
    for pair in fields.pairs[: -PAIRS_SHOWN - 1 : -1]:
        sides = "".join(
            f"<div>{picture(read_image(fields.files[name]), name, FIELD_PICTURE_PIXELS)}"
            f"<code>{html.escape(name)}</code></div>"
            for name in (pair.first, pair.second)
        )
        words = f"{pair.score:.2f}, {pair.share:.0%}"
        figures.append(f"<figure class=pair>{sides}<figcaption>{words}</figcaption></figure>")
    if not figures:
        return []
    total = counted(len(fields.pairs), "pair")
    count = f"{len(figures)} of {total}" if len(fields.pairs) > PAIRS_SHOWN else f"All {total}"
    note = (
        f"<p class=note>Whole photographs that show the same place in part: how well they agree there, and "
        f"the share of the smaller one that overlaps. {count}, the least sure first; all stand in "
        "inspection.json.</p>"
    )
    return [section("Overlapping fields", note, f"<div class=pairs>{''.join(figures)}</div>")]


def _pair(cells: Sequence[Cell], twin: Twin) -> str:
    sides = []
    for index in (twin.first, twin.second):
        cell = cells[index]
        sides.append(
            f"<div>{picture_of(cell)}<span>{html.escape(cell.label)}</span>"
            f"<code>{html.escape(cell.path.name)}</code></div>"
        )
    turn = f", {TURNS[twin.turn]}" if twin.turn else ""
    return f"<figure class=pair>{''.join(sides)}<figcaption>{twin.score:.2f}{turn}</figcaption></figure>"


def picture_of(cell: Cell, side: int = PICTURE_PIXELS) -> str:
    """Return a small JPEG of a cell as an element."""
    return picture(read_image(cell.path), cell.name, side)


def _class_parts(inspection: Inspection, looks: Sequence[Look]) -> list[str]:
    """Return a table of the classes: median of each statistic and how its values spread."""
    statistics = inspection.statistics
    if statistics.empty:
        return ["<p>There is no cell that could be measured.</p>"]
    colour_of = {cell.name: look.colour for cell, look in zip(inspection.dataset.cells, looks, strict=True)}
    head = "".join(
        f"<th scope=col>{title}{f', {unit}' if unit else ''}</th>" for title, unit, _ in STATISTICS.values()
    )
    ends = {
        name: (float(np.percentile(statistics[name], 1)), float(np.percentile(statistics[name], 99)))
        for name in STATISTICS
    }
    rows = []
    for label, cells in statistics.groupby("label"):
        red, green, blue = np.median([colour_of[path] for path in cells["path"]], axis=0).astype(int)
        swatch = f'<i class=swatch style="background:rgb({red},{green},{blue})"></i>'
        texts = [
            f"<td>{_median_text(name, cells[name])}{_strip(cells[name].to_numpy(), *ends[name])}</td>"
            for name in STATISTICS
        ]
        rows.append(
            f"<tr><th scope=row>{swatch}{html.escape(str(label))}<br>"
            f"<small>{counted(len(cells), 'cell')}</small></th>{''.join(texts)}</tr>"
        )
    notes = " ".join(f"{title}: {meaning}." for title, _, meaning in STATISTICS.values())
    return [
        f"<div class=scroll><table class=classes><thead><tr><th scope=col>Class</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>",
        f"<p class=note>Median, and how the cells spread between the 1st and 99th percentile of all classes; "
        f"the square is the median colour. {html.escape(notes)}</p>",
    ]


def _median_text(name: str, values: pd.Series) -> str:
    return _value_text(name, float(np.median(values)))


def _value_text(name: str, value: float) -> str:
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{value:.0f}" if name in IN_WHOLE_NUMBERS else f"{round(value, 2) + 0:.2f}"


def _strip(values: np.ndarray, low: float, high: float) -> str:
    """Return a histogram as a small drawing that takes the text's colour."""
    counts, _ = np.histogram(np.clip(values, low, high), bins=30, range=(low, max(high, low + 1e-9)))
    tallest = max(1, counts.max())
    bars = "".join(
        f'<rect x="{4 * index}" y="{24 - 24 * count / tallest:.1f}" width="3.4" '
        f'height="{24 * count / tallest:.1f}"/>'
        for index, count in enumerate(counts)
        if count
    )
    return f'<svg class=strip viewBox="0 0 120 24" role="img" aria-label="spread of the values">{bars}</svg>'


def _outlier_table(found: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> str:
    if not found:
        return f"<p>No cell lies {OUTLYING:g} robust standard deviations from the median of its class.</p>"
    cell_of = {cell.name: cell for cell in cells}
    rows = "".join(
        f"<tr><td>{picture_of(cell_of[one['path']], SMALL_PICTURE_PIXELS)}</td>"
        f"<th scope=row><code>{html.escape(one['path'])}</code></th><td>{html.escape(one['label'])}</td>"
        f"<td>{STATISTICS[one['statistic']][0]}</td>"
        f"<td class=number>{_value_text(one['statistic'], one['value'])}</td>"
        f"<td class=number>{_value_text(one['statistic'], one['class_median'])}</td>"
        f"<td class=number>{one['robust_deviations']:+.1f}</td></tr>"
        for one in found[:LISTED]
    )
    more = f"The first {LISTED} of {len(found):,}; all" if len(found) > LISTED else "All"
    return (
        "<div class=scroll><table><thead><tr><th>Picture</th><th>Cell</th><th>Class</th><th>Statistic</th>"
        "<th>Value</th><th>Median of the class</th><th>Robust deviations</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f"<p class=note>{more} stand in inspection.json. Unlike is not wrong: look before leaving one out."
        "</p>"
    )


def _unlike_groups_table(content: dict[str, Any], inspection: Inspection) -> str:
    found = content["groups_unlike_their_class"]
    if not found:
        return (
            f"<p>No group of {FEWEST_CELLS} cells or more lies {GROUP_OUTLYING:g} robust standard deviations "
            "from the other groups of its class.</p>"
        )
    cell_of = {cell.name: cell for cell in inspection.dataset.cells}
    rows = "".join(
        f"<tr><td>{''.join(picture_of(cell_of[path], SMALL_PICTURE_PIXELS) for path in one['shown'])}</td>"
        f"<th scope=row><code>{html.escape(one['group'])}</code><br>"
        f"<small>{counted(one['cells'], 'cell')}</small></th>"
        f"<td>{html.escape(one['label'])}</td><td>{STATISTICS[one['statistic']][0]}</td>"
        f"<td class=number>{_value_text(one['statistic'], one['median'])}</td>"
        f"<td class=number>{_value_text(one['statistic'], one['median_of_groups'])}</td>"
        f"<td class=number>{one['robust_deviations']:+.1f}</td></tr>"
        for one in found[:LISTED]
    )
    more = f"The first {LISTED} of {len(found):,}; all" if len(found) > LISTED else "All"
    return (
        "<div class=scroll><table><thead><tr><th>Three of its cells</th><th>Group</th><th>Class</th>"
        "<th>Statistic</th><th>Median of the group</th><th>Median of the class's groups</th>"
        f"<th>Robust deviations</th></tr></thead><tbody>{rows}</tbody></table></div>"
        f"<p class=note>{more} stand in inspection.json. A group's median is compared with the medians of "
        f"the other groups of its class, from {FEWEST_CELLS} cells and {GROUP_OUTLYING:g} robust standard "
        "deviations on. Such a group was stained, lit or focused in its own way, or holds another kind of "
        "cell; in the test part it shows how a model copes, in the training part it is rare.</p>"
    )


def _origin(content: dict[str, Any]) -> str:
    origin = content["provenance"]
    about = {
        "Data": content["data"],
        "Layout": content["layout"],
        "Known groups": "from the shipped table" if content["known_groups"] else "left out",
        "Least score of twins": content["twin_threshold"],
        **{key: origin[key] for key in ("command", "commit", "machine", "written")},
        "Versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
    }
    caveat = (
        "Groups are what shows the same place, not patients. Two photographs of one cell that differ in "
        "focus beyond recognition are not found; nor are fields that overlap where no crop was cut, unless "
        "the whole fields lie beside the crops."
    )
    return bullets([*content["warnings"], caveat]) + facts("", about)


# What the other pages have no use for: histograms and colours of classes, pairs side by side, names that
# unfold below a finding, and pictures in a row of a table.
STYLE = """
.number { text-align: right; }
.findings { width: 100%; }
.findings th { width: 13rem; font-weight: 600; }
.findings summary { margin-top: 0; font-size: .88rem; font-weight: 400; color: var(--soft); }
.classes td { min-width: 8rem; }
.strip { width: 7.5rem; height: 1.5rem; fill: var(--soft); margin-top: .2rem; }
.swatch { display: inline-block; width: .9rem; height: .9rem; border-radius: 3px; margin-right: .45rem;
  vertical-align: -.1rem; border: 1px solid var(--line); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); gap: .8rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr 3.2rem; gap: .4rem; padding: .6rem;
  align-items: start; background: var(--panel); border: 1px solid var(--line); border-radius: 8px; }
.pair img { max-width: 100%; height: auto; margin-bottom: .3rem; }
.pair span { display: block; font-size: .78rem; line-height: 1.2; }
.pair figcaption { text-align: right; font-variant-numeric: tabular-nums; font-size: .9rem;
  overflow-wrap: anywhere; }
td img { display: inline; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
@media (max-width: 40rem) { .findings th { width: 8rem; } }
"""
