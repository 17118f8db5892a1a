"""The one look of every page that a command writes: style sheet, frame, sections, tables.

A page needs no other file and no network, follows the reader's light or dark, and prints.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cervicyte.provenance import RESEARCH_USE_ONLY

PICTURE_PIXELS = 112  # the longer side of a cell's picture


def page_of(title: str, lead: str, sections: Iterable[str], *, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text.
        lead: markup, one line below the title.
        sections: markup, see `section`.
        style: rules that this page alone needs.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>{PAGE_STYLE}{style}</style>
</head>
<body>
<p class="notice" role="note">{html.escape(RESEARCH_USE_ONLY)}</p>
<main>
<header>
<h1>{html.escape(title)}</h1>
<p>{lead}</p>
</header>
{"".join(sections)}</main>
<footer>{html.escape(RESEARCH_USE_ONLY)}</footer>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """Return a section; `title` is plain text, `parts` are markup."""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{''.join(parts)}\n</section>\n"


def bullets(items: Sequence[str]) -> str:
    """Return plain sentences as a list."""
    return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"


def key_figures(figures: Iterable[tuple[str, str, str]]) -> str:
    """Return the figures to be seen first: title as plain text, value as markup, meaning as plain text."""
    items = "".join(
        f"<div><dt>{html.escape(title)}</dt><dd>{value}</dd><dd class=note>{html.escape(meaning)}</dd></div>"
        for title, value, meaning in figures
    )
    return f"<dl class=key>{items}</dl>"


def picture(image: np.ndarray, description: str, side: int = PICTURE_PIXELS) -> str:
    """Return an image, uint8 [H, W, 3], as an element that shows it as a small JPEG.

    Args:
        image: in RGB.
        description: plain text for those who do not see it.
        side: pixels at most, height and width; an image is never enlarged.
    """
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(description)}" width={small.width} '
        f"height={small.height}>"
    )


def table(
    head: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    caption: str,
    *,
    style: str = "figures",
    last_is_total: bool = False,
) -> str:
    """Return a table; the cells of `rows` are markup, the first of each is the row's header."""
    titles = "".join(f"<th scope=col>{html.escape(title)}</th>" for title in head)
    body = []
    for index, (name, texts) in enumerate(rows):
        total = " class=total" if last_is_total and index == len(rows) - 1 else ""
        cells = "".join(f"<td>{text}</td>" for text in texts)
        body.append(f"<tr{total}><th scope=row>{name}</th>{cells}</tr>")
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{html.escape(caption)}"><table class={style}>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{titles}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def facts(title: str, facts: Mapping[str, Any]) -> str:
    """Return names and JSON values as a table of two columns; what is None is left out."""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in flat_facts(facts)
    )
    heading = f"<h3>{html.escape(title)}</h3>" if title else ""
    return (
        f"{heading}<div class=scroll><table class=facts><tbody>{rows}</tbody></table></div>" if rows else ""
    )


def flat_facts(facts: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Yield name and text of every value, nested ones as `above, name`; what is None is left out."""
    for key, value in facts.items():
        name = f"{above}, {title_of(key).lower()}" if above else title_of(key)
        if isinstance(value, Mapping):
            yield from flat_facts(value, name)
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif isinstance(value, int) and abs(value) >= 10_000:
            yield name, f"{value:,}"
        elif isinstance(value, float):
            yield name, f"{value:.6g}"
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        elif value is not None:
            yield name, str(value)


def title_of(key: object) -> str:
    """Return a key in words."""
    return str(key).replace("_", " ").capitalize()


def counted(count: int, word: str, one: str = "", several: str = "") -> str:
    """Return a count with its word, and a verb that agrees with it: `1 pair shows`, `1,200 pairs show`."""
    verb = agreeing(count, one, several)
    return f"{count:,} {plural(word, count)}" + (f" {verb}" if verb else "")


def agreeing(count: int, one: str, several: str) -> str:
    """Return the words that agree with a count, where others stand between."""
    return one if count == 1 else several


def plural(word: str, count: int) -> str:
    """Return a word as it stands beside a count."""
    return word if count == 1 else word + ("es" if word.endswith("s") else "s")


PAGE_STYLE = """
:root { --paper: #fff; --ink: #1b2027; --soft: #565e69; --line: #d8dce1; --panel: #f4f6f8;
  --warn: #7a3b00; --warn-paper: #fff3e0; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e8ebef; --soft: #a4adb8;
  --line: #353c45; --panel: #1d2228; --warn: #ffd8a8; --warn-paper: #3a2a12; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem 2rem; }
.notice { margin: 0; padding: .6rem 1.25rem; text-align: center; font-weight: 600;
  color: var(--warn); background: var(--warn-paper); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.6rem 0 .3rem; overflow-wrap: anywhere; }
header p { margin: 0; color: var(--soft); }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.3rem 0 .3rem; }
.note, small { color: var(--soft); font-size: .85rem; }
.note { max-width: 60rem; }
small { white-space: nowrap; }
.lead { font-size: 1.1rem; }
.key { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .8rem;
  margin: 0; }
.key div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .9rem; }
.key dt { font-size: .9rem; color: var(--soft); }
.key dd { margin: 0; }
.key b { font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.interval { white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .3rem; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 500; }
.figures td, .figures thead th:not(:first-child) { text-align: right; }
.total th, .total td { border-top: 2px solid var(--line); font-weight: 600; }
.total small { font-weight: 400; }
.matrix td { padding: 1px; border: 0; text-align: center; min-width: 5.2rem; }
.matrix thead th:not(:first-child) { text-align: center; font-weight: 500; max-width: 9rem; }
.matrix th { border: 0; vertical-align: middle; }
.shade { padding: .5rem .3rem; border-radius: 3px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact;
  outline: 1px solid var(--line); outline-offset: -1px; }
.shade small { color: inherit; }
.mistakes td, .mistakes th { vertical-align: middle; }
code { font-size: .85rem; overflow-wrap: anywhere; }
img { display: block; border-radius: 3px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
.charts.wide { display: block; max-width: 56rem; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: .2rem; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
.facts th { width: 16rem; color: var(--soft); }
.facts td { overflow-wrap: anywhere; }
.facts { width: 100%; }
summary { cursor: pointer; margin-top: 1rem; font-weight: 600; }
footer { text-align: center; padding: 1rem; color: var(--soft); border-top: 1px solid var(--line); }
@media (max-width: 40rem) { th, td { padding: .35rem .4rem; } .facts th { width: 9rem; } }
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --panel: #fff;
    --warn: #000; --warn-paper: #fff; }
  body { font-size: 11px; } main { max-width: none; padding: 0; } .scroll { overflow: visible; }
  figure, tr, .key div { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .charts { grid-template-columns: repeat(3, 1fr); }
  details::details-content { content-visibility: visible; }
}
"""
