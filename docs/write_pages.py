"""Write what the program itself says: `command_line.md` of its commands, `pictures/rooms.svg` of its rooms.

python docs/write_pages.py
"""

from __future__ import annotations

import argparse
import ast
import json
from html import escape
from pathlib import Path
from typing import Any

import typer.main
import yaml

from cervicyte.cli import app
from cervicyte.provenance import RESEARCH_USE_ONLY, write_text

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "src" / "cervicyte"
ROOMS = (
    "images", "datasets", "network", "training", "evaluation", "explanation", "inference", "dashboard",
)  # fmt: skip


# --- the command line ----------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Return name -> command, in the order of `cervicyte --help`."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def commands_and_theirs() -> dict[str, Any]:
    """Return the same, with the commands of a command, such as `log verify`, in its place."""
    found: dict[str, Any] = {}
    for name, command in commands().items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {one}": each for one, each in inner.items()} if inner else {name: command}
    return found


def spelling_of(parameter: Any) -> str:
    """Return how a parameter is written on the command line."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def default_of(parameter: Any) -> str:
    """Return the default in words; nothing where leaving the option out is its own meaning."""
    if parameter.required:
        return "must be given"
    value = parameter.default
    if isinstance(value, bool):
        if value:
            return f"`{parameter.opts[0]}`"
        return f"`{parameter.secondary_opts[0]}`" if parameter.secondary_opts else "off"
    if isinstance(value, (str, int, float, Path)) and value != "":
        return f"`{value}`"
    return ""


def command_line_page() -> str:
    """Return the reference of every command and option, as Markdown."""
    lines = [
        "# The command line",
        "",
        f"**{RESEARCH_USE_ONLY}**",
        "",
        "Written by `python docs/write_pages.py` from the program itself; `cervicyte COMMAND --help` says "
        "the same. "
        "Input that cannot be used ends a command with one sentence and status 2; Ctrl-C with status 130.",
        "",
    ]
    for name, command in commands_and_theirs().items():
        lines += [f"## cervicyte {name}", "", (command.help or "").strip(), ""]
        lines += ["| | meaning | default |", "| --- | --- | --- |"]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            meaning = " ".join((parameter.help or "").split()).replace("|", "\\|")
            lines.append(f"| {spelling_of(parameter)} | {meaning} | {default_of(parameter)} |")
        lines.append("")
    return "\n".join(lines)


# --- the picture of the rooms --------------------------------------------------------------------

WIDTH, HEIGHT, GAP, MARGIN, ABOVE = 168, 92, 24, 16, 40


def rooms_picture() -> str:
    """Return an SVG of the rooms in the order in which data walk through them, each with its own sentence."""
    across = 4
    rows = -(-len(ROOMS) // across)
    width = 2 * MARGIN + across * WIDTH + (across - 1) * GAP
    height = ABOVE + rows * HEIGHT + (rows - 1) * (GAP + 12) + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" role="img">',
        "<title>The rooms of Cervicyte, in the order in which data walk through them</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="26" font-size="14" fill="#1b1f24">A room imports from rooms '
        "before it, never from rooms after it.</text>",
    ]
    for index, room in enumerate(ROOMS):
        row, column = divmod(index, across)
        x, y = MARGIN + column * (WIDTH + GAP), ABOVE + row * (HEIGHT + GAP + 12)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3f8" '
            'stroke="#57606a"/>'
        )
        parts.append(
            f'<text x="{x + 10}" y="{y + 22}" font-size="15" font-weight="bold" fill="#1b1f24">{room}</text>'
        )
        for number, line in enumerate(_wrapped(sentence_of(room), 26)[:4]):
            parts.append(
                f'<text x="{x + 10}" y="{y + 40 + 14 * number}" font-size="11" '
                f'fill="#40474f">{escape(line)}</text>'
            )
        if index + 1 < len(ROOMS):
            if column + 1 < across:
                path = f"M{x + WIDTH + 3} {y + HEIGHT / 2:g} h{GAP - 8}"
            else:
                half, first = (GAP + 12) // 2, MARGIN + WIDTH / 2
                path = f"M{x + WIDTH / 2:g} {y + HEIGHT + 3} v{half - 3} H{first:g} v{half - 6}"
            parts.append(
                f'<path d="{path}" fill="none" stroke="#57606a" stroke-width="2" marker-end="url(#tip)"/>'
            )
    parts += [
        '<defs><marker id="tip" markerWidth="6" markerHeight="6" refX="4" refY="3" orient="auto">'
        '<path d="M0 0 L6 3 L0 6 z" fill="#57606a"/></marker></defs>',
        f'<text x="{MARGIN}" y="{height - 20}" font-size="12" fill="#40474f">cli.py and demo.py stand at the '
        "door and "
        "only call. Beside the rooms: errors, provenance, progress, metrics, pages.</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def sentence_of(room: str) -> str:
    """Return what a room says of itself: the first line of its docstring, without the room's own name."""
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    said = text.splitlines()[0].removeprefix(f"{room.capitalize()}: ")
    return said[:1].upper() + said[1:]


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


# --- the README's table of figures ---------------------------------------------------------------

README = HERE.parent / "README.md"
BEGIN, END = "<!-- figures: python docs/write_pages.py -->", "<!-- end of figures -->"


def figures_table(results: Path = HERE / "results") -> str:
    """Return the table of measured and published figures, as Markdown."""

    def read(*parts: str) -> dict[str, Any]:
        return dict(json.loads(results.joinpath(*parts).read_text(encoding="utf-8")))

    def rate(figure: dict[str, Any], decimals: int = 1) -> str:
        value, low, high = (f"{100 * figure[end]:.{decimals}f}" for end in ("value", "low", "high"))
        return f"{value} % [{low}, {high}]"

    ours, probe = read("model", "group", "cross_validation.json"), read("optimism_frozen", "optimism.json")
    foreign = read("model", "elsewhere", "elsewhere.json")
    accuracy = probe["figures"]["accuracy"]
    control = "Control: logistic regression on frozen ImageNet features"
    leaking = f"{control}, tested as most publications do"
    rows = [
        ("**The model that ships** (its five folds' networks)", "by independent group",
         f"**{rate(ours['figures']['accuracy'])}**"),
        ("The same recipe, tested as most publications do", "by cell: twins on both sides",
         rate(read("model", "cell", "cross_validation.json")["figures"]["accuracy"])),
        (control, "by independent group", rate(accuracy["group"])),
        (leaking, "by cell: twins on both sides", rate(accuracy["cell"])),
    ]  # fmt: skip
    for one in yaml.safe_load((results / "published.yaml").read_text(encoding="utf-8")):
        rows.append((f"[{one['who']}]({one['source']})", one["split"], f"{one['accuracy']} %"))
    area = foreign["figures"]
    return "\n".join(
        [
            "| SIPaKMeD, five classes | split | accuracy |",
            "| --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"Measured on {ours['cells']:,} of 4,049 cells in {ours['groups']:,} groups, each tested once a "
            "seed; in brackets 95 % intervals over groups. Published figures are as their authors state "
            "them, over other splits, so no row tells which network is better. Abnormal cells called normal: "
            f"{rate(ours['figures']['abnormal_called_normal'], 2)}. Another laboratory's cells (Herlev), "
            "normal against abnormal, AUC: "
            + ", ".join(
                f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}] {which}"
                for figure, which in (
                    (area["abnormal_auc_all"], "for all classes"),
                    (area["abnormal_auc_squamous"], "without columnar cells"),
                )
            )
            + ".",
        ]
    )


def readme_with_figures(text: str) -> str:
    """Return the README with the table between its two marks written anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{figures_table()}\n\n{END}{after}"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    write_text(HERE / "command_line.md", command_line_page())
    write_text(HERE / "pictures" / "rooms.svg", rooms_picture())
    write_text(README, readme_with_figures(README.read_text(encoding="utf-8")))
