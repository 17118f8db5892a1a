"""The audit as files: one page that anyone can open, all figures, and a long table."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cervicyte.datasets.layouts import Cell
from cervicyte.evaluation import charts
from cervicyte.evaluation.tables import UNDEFINED, write_table
from cervicyte.explanation import cam
from cervicyte.explanation.audit_cells import ANOTHER_CELL, CONTROL_MAPS, map_name
from cervicyte.explanation.audit_figures import ALL_CLASSES, as_table
from cervicyte.explanation.controls import class_maps
from cervicyte.explanation.panels import overlay
from cervicyte.images.reader import read_image
from cervicyte.network.model_file import ModelFile
from cervicyte.pages import bullets, counted, facts, page_of, picture, section, table
from cervicyte.provenance import provenance, write_json, write_text

PICTURE_PIXELS = 144  # the longer side of a cell's picture on the page
CONTROL_TITLES = {"centre": "centre blob", "darkness": "darkness", "random": "random weights"}
IN_PERCENT = {"beats_controls", "nucleus_share", "nucleus_hit", "cell_share", "cell_hit"}
MINUS = "\N{MINUS SIGN}"

Figures = Mapping[str, Any]


def write_audit(
    out: Path,
    figures: dict[str, Any],
    model: ModelFile,
    pictured: Mapping[str, Cell] | None = None,
    command: str | None = None,
) -> None:
    """Write `explanation_audit.csv`, `.html` and, last, `.json`.

    Args:
        out: the folder.
        figures: from `audit_figures.figures_of`; they gain the provenance of this moment.
        model: draws the maps of the cells that are shown.
        pictured: name -> cell of those that may be shown; without it no cell is.
        command: the command line.
    """
    figures["provenance"] = provenance(command)
    figures["reading"] = reading(figures)
    write_table(as_table(figures), out / "explanation_audit.csv")
    examples = [] if pictured is None else _examples(figures, model, pictured)
    write_text(out / "explanation_audit.html", audit_page(figures, examples))
    write_json(out / "explanation_audit.json", figures)


def audit_page(figures: Figures, examples: Sequence[str] = ()) -> str:
    """Return the page; `examples` is markup of cells with their maps."""
    cells, groups = figures["cells_audited"], figures["groups"]
    sections = [
        section("What the maps are worth", bullets(figures["reading"])),
        section("What to keep in mind", bullets(figures["caveats"])),
        section("Does the network rely on what a map marks?", *_faithfulness(figures)),
        section("Against what knows nothing", *_against_controls(figures)),
        section("Class by class", *_by_class(figures)),
        section("Where the maps lie", *_location(figures)),
        section("Do the maps depend on what was learnt?", *_randomisation(figures)),
        section("Do the maps stay when nothing of the cell changes?", *_stability(figures)),
        section("What the network answers when it sees only a part", *_shown_only(figures)),
        section("The most and the least faithful map of each class", *examples) if examples else "",
        section("How it was measured", facts("", figures["definitions"]), _interval_note(figures)),
        section("Where this comes from", *_origin(figures)),
    ]
    lead = (
        f"{counted(cells, 'cell')} in {counted(groups, 'group')}; accuracy on them "
        f"{_plain_text(figures['correct'], percent=True)}. Written "
        f"{html.escape(figures['provenance']['written'][:10])} by Cervicyte."
    )
    return page_of(f"{figures['data']}: audit of the explanations", lead, sections)


# --- the reading -----------------------------------------------------------------------------------


def reading(figures: Figures) -> list[str]:
    """Return what the figures say, in sentences; each follows from figures that the page has."""
    return [
        *_most_faithful(figures),
        *_beats_or_not(figures),
        *_shown_by_default(figures),
        *_centre_bias(figures),
        *_where_not_to_trust(figures),
        *_sanity(figures),
        *_least_stable(figures),
        *_shortcut(figures),
    ]


def _most_faithful(figures: Figures) -> list[str]:
    sentences = []
    for measure, title in (("score", "insertion minus deletion"), ("road", "ROAD")):
        best = figures["best"][measure]
        alike = [
            title_of_map(name)
            for name, figure in figures["against_best"][measure].items()
            if figure["low"] is None or figure["low"] <= 0
        ]
        rest = (
            f" Not told apart from it: {', '.join(alike)}." if alike else " It is ahead of every other map."
        )
        sentences.append(
            f"Most faithful by {title}: {title_of_map(best)}, "
            f"{_plain_text(figures['maps'][ALL_CLASSES][best][measure])}.{rest}"
        )
    sentences.append(
        "The best of several is chosen on the same cells on which it is reported, which flatters it a little."
    )
    return sentences


def _beats_or_not(figures: Figures) -> list[str]:
    best = figures["best"]["score"]
    parts = []
    for control, measures in figures["against_controls"][ALL_CLASSES][best].items():
        figure = measures["score"]
        sure = figure["low"] is not None and figure["low"] > 0
        verb = "beats" if sure else "does not surely beat"
        parts.append(f"{verb} {CONTROL_TITLES[control]} (by {_plain_text(figure, signed=True)})")
    share = figures["maps"][ALL_CLASSES][best]["beats_controls"]
    return [
        f"Over all cells {title_of_map(best)} {', '.join(parts)}. It beats all three at once on "
        f"{_plain_text(share, percent=True)} of the cells; on the others its map should not be trusted."
    ]


def _shown_by_default(figures: Figures) -> list[str]:
    name = map_name(cam.DEFAULT_METHOD, cam.DEFAULT_LAYER)
    best = figures["best"]["score"]
    if name not in figures["explanations"] or name == best:
        return []
    behind = figures["against_best"]["score"][name]
    share = figures["maps"][ALL_CLASSES][name]["beats_controls"]
    return [
        f"{title_of_map(name)}, which Cervicyte shows unless told otherwise, is behind the best "
        f"map by {_plain_text(behind)} and beats all three controls on "
        f"{_plain_text(share, percent=True)} of the cells."
    ]


def _centre_bias(figures: Figures) -> list[str]:
    best = figures["best"]["score"]
    maps = figures["maps"][ALL_CLASSES]
    blob, own = maps["centre"]["score"], maps[best]["score"]
    like = maps[best].get("like_centre")
    sentence = (
        f"Centre bias: a blob in the middle, which knows nothing, reaches a score of {_plain_text(blob)} "
        f"where the best map has {_plain_text(own)}"
    )
    if own["value"] and own["value"] > 0 and blob["value"] is not None:
        sentence += f", that is {100 * max(0.0, blob['value'] / own['value']):.0f} % of it"
    if like:
        sentence += f"; that map's rank correlation with the blob is {_plain_text(like)}"
    return [sentence + "."]


def _where_not_to_trust(figures: Figures) -> list[str]:
    best = figures["best"]["score"]
    doubtful = []
    for label in figures["cells_per_class"]:
        lost = [
            CONTROL_TITLES[control]
            for control, measures in figures["against_controls"][label][best].items()
            if measures["score"]["low"] is None or measures["score"]["low"] <= 0
        ]
        if lost:
            doubtful.append(f"{label} (not surely ahead of {', '.join(lost)})")
    weakest = min(
        figures["cells_per_class"],
        key=lambda label: figures["maps"][label][best]["beats_controls"]["value"] or 0.0,
    )
    share = figures["maps"][weakest][best]["beats_controls"]
    sentences = [
        f"The class whose maps beat the controls least often is {weakest}: "
        f"{_plain_text(share, percent=True)} of its cells."
    ]
    if doubtful:
        sentences.insert(0, f"Maps of these classes should not be trusted by default: {'; '.join(doubtful)}.")
    return sentences


def _sanity(figures: Figures) -> list[str]:
    stages, best = figures["randomisation"], figures["best"]["score"]
    if "fc" not in stages:
        return []
    last = list(stages)[-2]

    def ssim_at(stage: str) -> str:
        return f"{_plain_text(stages[stage][best]['ssim'])} ({_pairs(stages[stage][best])})"

    return [
        f"With the classifier's weights drawn anew, the SSIM of {title_of_map(best)} with its own map is "
        f"{ssim_at('fc')}, with all weights drawn anew {ssim_at(last)}; maps of two different cells have "
        f"{ssim_at(ANOTHER_CELL)}. A map that stays more alike than that does not depend on the weights that "
        "were drawn anew. Pairs with an empty map are left out.",
    ]


def _least_stable(figures: Figures) -> list[str]:
    best = figures["best"]["score"]
    changes = {
        change: maps[best] for change, maps in figures["stability"].items() if maps[best]["value"] is not None
    }
    if not changes:
        return []
    worst = min(changes, key=lambda change: changes[change]["value"])
    return [
        f"Least stable under the change '{worst}': rank correlation {_plain_text(changes[worst])} with the "
        "map before it."
    ]


def _shortcut(figures: Figures) -> list[str]:
    if ALL_CLASSES not in figures["shown_only"]:
        return []
    found = figures["shown_only"][ALL_CLASSES]
    filling = next(iter(found))
    parts = ", ".join(
        f"{part} {_plain_text(figure, percent=True)}" for part, figure in found[filling].items()
    )
    chance = 1 / len(figures["class_names"])
    return [
        f"Accuracy when only one part of the image is visible, the rest filled ({filling}): {parts}. "
        f"Guessing would give {100 * chance:.0f} %. What the background alone achieves above that is a "
        "shortcut, or the shape of the hole that the cell leaves."
    ]


# --- sections --------------------------------------------------------------------------------------


def _faithfulness(figures: Figures) -> list[str]:
    maps = figures["maps"][ALL_CLASSES]
    names = [*figures["explanations"], *figures["controls"]]
    measures = ("score", "deletion", "insertion", "road", "road_most", "road_least", "beats_controls")
    head = ["Map", "Score", "Deletion", "Insertion", "ROAD", "ROAD, most first", "ROAD, least first"]
    rows = [(html.escape(title_of_map(name)), [_cell(maps[name], one) for one in measures]) for name in names]
    chart = _chart("Score and ROAD of each map, with 95 % intervals", "faithfulness", _dots(figures, names))
    return [
        f"<div class='charts wide'>{chart}</div>",
        table(
            [*head, "Beats the controls"], rows, "All cells; higher is better but for deletion and most first"
        ),
        "<p class=note>Score: insertion minus deletion. ROAD: least minus most relevant first. The two need "
        "not agree: they leave different pictures where pixels are taken away.</p>",
    ]


def _against_controls(figures: Figures) -> list[str]:
    found = figures["against_controls"][ALL_CLASSES]
    head = ["Map"]
    for control in CONTROL_TITLES.values():
        head += [f"Score {MINUS} {control}", f"ROAD {MINUS} {control}"]
    rows = [
        (
            html.escape(title_of_map(name)),
            [
                _text(found[name][control][measure], signed=True)
                for control in CONTROL_TITLES
                for measure in ("score", "road")
            ],
        )
        for name in figures["explanations"]
    ]
    best = figures["best"]
    against_best = [
        (
            html.escape(title_of_map(name)),
            [
                _text(figures["against_best"][measure][name], signed=True)
                if name in figures["against_best"][measure]
                else "the best"
                for measure in ("score", "road")
            ],
        )
        for name in figures["explanations"]
    ]
    return [
        table(head, rows, "Paired differences over all cells; an interval above 0 means: ahead"),
        "<h3>How far the best map is ahead of the others</h3>",
        table(
            ["Map", f"Score of {title_of_map(best['score'])}", f"ROAD of {title_of_map(best['road'])}"],
            against_best,
            "Paired differences over all cells; an interval that holds 0 means: not told apart",
        ),
    ]


def _by_class(figures: Figures) -> list[str]:
    labels = list(figures["cells_per_class"])
    parts = []
    for measure, title in (("score", "Score"), ("road", "ROAD"), ("beats_controls", "Beats the controls")):
        names = list(figures["explanations"])
        if measure != "beats_controls":
            names += figures["controls"]
        rows = [
            (
                html.escape(title_of_map(name)),
                [_cell(figures["maps"][label][name], measure) for label in labels],
            )
            for name in names
        ]
        parts += [f"<h3>{title}</h3>", table(["Map", *labels], rows, f"{title} by true class")]
    best = figures["best"]["score"]
    rows = [
        (
            html.escape(label),
            [
                f"{figures['cells_per_class'][label]:,}",
                *(
                    _text(figures["against_controls"][label][best][control]["score"], signed=True)
                    for control in CONTROL_TITLES
                ),
            ],
        )
        for label in labels
    ]
    head = ["Class", "Cells", *(f"{MINUS} {control}" for control in CONTROL_TITLES.values())]
    parts += [
        f"<h3>{html.escape(title_of_map(best))} against the controls</h3>",
        table(head, rows, "Paired differences of the score by true class"),
    ]
    return parts


def _location(figures: Figures) -> list[str]:
    measures = (
        "nucleus_share", "nucleus_enrichment", "nucleus_hit", "cell_share", "cell_enrichment", "cell_hit",
        "like_centre", "like_darkness",
    )  # fmt: skip
    head = [
        "Map", "In the nucleus", "Enrichment", "Highest there", "In the cell", "Enrichment", "Highest there",
        "Like the centre", "Like the darkness",
    ]  # fmt: skip
    names = [*figures["explanations"], *figures["controls"]]
    maps = figures["maps"][ALL_CLASSES]
    rows = [(html.escape(title_of_map(name)), [_cell(maps[name], one) for one in measures]) for name in names]
    outlines = figures["outlines"]
    sources = ", ".join(f"{count:,} {source}" for source, count in outlines["sources"].items())
    areas = ""
    if "nucleus_area" in outlines:
        areas = (
            f" The nucleus takes {_text(outlines['nucleus_area'], percent=True)} of a crop, the cell "
            f"{_text(outlines['cell_area'], percent=True)}."
        )
    return [
        table(head, rows, "All cells with outlines; enrichment 1 is what a map that knows nothing has"),
        f"<p class=note>Outlines: {html.escape(sources)}.{areas} Darkness lies in the nucleus by nature: "
        "a map is not good because it lies there, only where the network's answer depends on it.</p>",
    ]


def _randomisation(figures: Figures) -> list[str]:
    stages = figures["randomisation"]
    if not stages:
        return ["<p>Not measured.</p>"]
    names = figures["explanations"]
    likeness = [
        (
            html.escape(title_of_map(name)),
            [
                f"{_text(maps[name]['ssim'])}<br><small>{_pairs(maps[name])}</small>"
                for maps in stages.values()
            ],
        )
        for name in names
    ]
    drawn_anew = [stage for stage in stages if stage != ANOTHER_CELL]
    emptied = [
        (
            html.escape(title_of_map(name)),
            [
                _text(next(iter(stages.values()))[name]["empty_before"], percent=True),
                *(_text(stages[stage][name]["empty_after"], percent=True) for stage in drawn_anew),
            ],
        )
        for name in names
    ]
    chart = _chart("SSIM with the trained network's map", "randomisation", _falling(figures))
    return [
        f"<div class='charts wide'>{chart}</div>",
        table(
            ["Map", *stages], likeness, "SSIM of maps after weights were drawn anew, from the classifier down"
        ),
        f"<p class=note>Each stage includes those before it. '{ANOTHER_CELL}' is the likeness of maps that "
        "have nothing in common but the network: what any map of a centred cell has for free. Pairs in which "
        "a map is empty are left out, since their SSIM says nothing.</p>",
        table(["Map", "none", *drawn_anew], emptied, "Share of maps that are empty, by weights drawn anew"),
        "<p class=note>A map is empty where nothing speaks for the class after the ReLU. It differs from the "
        "trained network's map, too; how much, SSIM cannot tell.</p>",
    ]


def _pairs(measures: Mapping[str, Any]) -> str:
    """Say over how many pairs of maps the likeness is taken."""
    return f"{measures['ssim']['cells']} of {counted(measures['empty_before']['cells'], 'pair')}"


def _stability(figures: Figures) -> list[str]:
    found = figures["stability"]
    if not found:
        return ["<p>Not measured.</p>"]
    rows = [
        (html.escape(title_of_map(name)), [_text(maps[name]) for maps in found.values()])
        for name in figures["explanations"]
    ]
    cells = next(iter(next(iter(found.values())).values()))["cells"]
    return [
        table(["Map", *found], rows, f"Rank correlation with the map before the change, up to {cells} cells"),
        "<p class=note>Shifted: by a twentieth of the side, right and down. Brighter and darker: by a tenth. "
        "The class explained stays that of the unchanged image.</p>",
    ]


def _shown_only(figures: Figures) -> list[str]:
    found = figures["shown_only"]
    if not found:
        return ["<p>Not measured: no cell has outlines.</p>"]
    parts = []
    for filling in found[ALL_CLASSES]:
        rows = [
            (
                html.escape("All" if label == ALL_CLASSES else label),
                [_text(figure, percent=True) for figure in fillings[filling].values()],
            )
            for label, fillings in found.items()
        ]
        head = ["True class", *(part.capitalize() for part in found[ALL_CLASSES][filling])]
        parts.append(table(head, rows, f"Accuracy; what is not shown is filled: {filling}"))
    return [
        *parts,
        "<p class=note>Such images are like none that the network was trained on: a low accuracy may mean "
        "that it needs the rest, or only that it is confused. A class with a high accuracy under everything "
        "is one that confused images are taken for.</p>",
    ]


def _origin(figures: Figures) -> list[str]:
    origin = figures["provenance"]
    about = {key: value for key, value in origin.items() if key not in ("notice", "versions")}
    chosen = {"settings": figures["settings"], "split": figures["split"], "data": figures["data"]}
    chosen["scores computed in"] = figures["score_precision"]
    chosen["cells that there were"] = figures["cells_available"]
    chosen["cells seen in training"] = figures["cells_seen_in_training"]
    return [
        facts("Audit", {**chosen, **about}),
        facts("Model", figures["model"]),
        facts("Versions", origin["versions"]),
    ]


def _interval_note(figures: Figures) -> str:
    intervals = figures["intervals"]
    return (
        f"<p class=note>In brackets: 95 % intervals from {intervals['draws']:,} bootstrap draws of whole "
        "groups. They hold for other cells of the same kind and this one network; another training run may "
        "rank the methods otherwise. An interval without width is no certainty: draws cannot hold what was "
        "not seen.</p>"
    )


# --- pictures ----------------------------------------------------------------------------------------


def _examples(figures: Figures, model: ModelFile, pictured: Mapping[str, Cell]) -> list[str]:
    rows = []
    for example in figures["most_and_least_faithful"]:
        image = read_image(pictured[example["name"]].path)
        method, layer = example["map"].split("@")
        wanted = [model.class_names.index(example["predicted_class"])]
        inputs = model.preprocessing(image)[np.newaxis]
        values = class_maps(model.network, model, inputs, wanted, (method,), (layer,))[method, layer][0]
        on_original = model.preprocessing.onto_original(values, *image.shape[:2])
        highest = float(on_original.max()) or 1.0
        rows.append(
            (
                f"<code>{html.escape(example['name'])}</code>",
                [
                    picture(image, f"{example['class']} cell", PICTURE_PIXELS),
                    picture(
                        overlay(image, on_original, highest),
                        f"its map for {example['predicted_class']}",
                        PICTURE_PIXELS,
                    ),
                    html.escape(example["class"]),
                    html.escape(example["predicted_class"]),
                    f"{example['kind']} faithful: {example['score']:.2f}",
                    "yes" if example["beats_controls"] else "no",
                ],
            )
        )
    head = ["Cell", "Picture", "Map", "True class", "Explained", "Score", "Beats the controls"]
    caption = f"By the score of {title_of_map(figures['best']['score'])}"
    return [table(head, rows, caption, style="mistakes")]


@charts.styled
def _dots(figures: Figures, names: Sequence[str]) -> Figure:
    figure = _empty(9, 0.9 + 0.24 * len(names))
    maps = figures["maps"][ALL_CLASSES]
    places = np.arange(len(names))[::-1]
    for axes, measure, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("score", "road"),
        ("Insertion minus deletion", "ROAD"),
        strict=True,
    ):
        for place, name in zip(places, names, strict=True):
            found = maps[name][measure]
            colour = charts.SECOND if name in figures["controls"] else charts.ACCENT
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [place, place], color=colour)
            axes.plot(found["value"], place, "s" if name in figures["controls"] else "o", color=colour, ms=5)
        axes.axvline(0, color=charts.MUTED, linewidth=0.8)
        axes.set(title=title)
    figure.axes[0].set_yticks(places, [title_of_map(name) for name in names])
    return figure


@charts.styled
def _falling(figures: Figures) -> Figure:
    figure = _empty(9, 3.8)
    axes = figure.subplots()
    stages = figures["randomisation"]
    for index, name in enumerate(figures["explanations"]):
        axes.plot(
            range(len(stages)),
            # Where all maps are empty, the line has a gap.
            np.array([stages[stage][name]["ssim"]["value"] for stage in stages], float),
            color=charts.CLASS_COLOURS[index % len(charts.CLASS_COLOURS)],
            linestyle=charts.LINES[index // 4 % len(charts.LINES)],
            marker="o",
            ms=3,
            label=title_of_map(name),
        )
    axes.set_xticks(range(len(stages)), list(stages))
    axes.set(ylabel="SSIM", xlabel="drawn anew down to", ylim=(-0.05, 1.02))
    figure.legend(loc="outside right center")
    return figure


def _empty(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _chart(title: str, name: str, figure: Figure) -> str:
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>{charts.svg_of(figure, name, title)}</figure>"
    )


# --- figures as text ---------------------------------------------------------------------------------


def title_of_map(name: str) -> str:
    """Return the name of a map as people read it.

    Example:
        >>> title_of_map("grad-cam++@cbam4"), title_of_map("centre"), title_of_map("random grad-cam@layer4")
        ('Grad-CAM++ at cbam4', 'centre blob', 'random weights, Grad-CAM at layer4')
    """
    if name in CONTROL_MAPS:
        return CONTROL_TITLES[name]
    random, _, explanation = name.rpartition(" ")
    method, _, layer = explanation.partition("@")
    title = f"{cam.METHODS[method].title} at {layer}"
    return f"{CONTROL_TITLES[random]}, {title}" if random else title


def _cell(measures: Mapping[str, Any], measure: str) -> str:
    if measure not in measures:
        return UNDEFINED
    return _text(measures[measure], percent=measure in IN_PERCENT)


def _text(figure: Mapping[str, Any], percent: bool = False, signed: bool = False) -> str:
    """Return a figure and its interval as markup."""
    value, interval = _as_text(figure, percent, signed)
    return f"{value}<br><small>{interval}</small>" if interval else value


def _plain_text(figure: Mapping[str, Any], percent: bool = False, signed: bool = False) -> str:
    value, interval = _as_text(figure, percent, signed)
    return f"{value} {interval}".rstrip()


def _as_text(figure: Mapping[str, Any], percent: bool, signed: bool) -> tuple[str, str]:
    def number(value: float) -> str:
        sign = "+" if signed and value > 0 else ""
        return sign + (f"{100 * value:.0f}" if percent else f"{value:.2f}").replace("-", MINUS)

    if figure["value"] is None:
        return UNDEFINED, ""
    value = number(figure["value"]) + (" %" if percent else "")
    if figure["low"] is None:
        return value, ""
    return value, f"[{number(figure['low'])}, {number(figure['high'])}]"
