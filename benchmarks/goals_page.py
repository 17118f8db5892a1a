"""Write docs/results/goals.md: what the shipped model was to reach, and what its folds reached.

    python benchmarks/goals_page.py

Reads only what commands wrote into docs/results/model/: `group/` and `cell/` (cross-validations),
`robustness/`, `elsewhere/`, `unlike_training.json`, `flag_rates.json` and `drawn_cells.json`, and beside it
into `learning_curve*/`. What is not there stands as not run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cervicyte.evaluation.learning_curve import COVARIANCE, LAST_STAGE, LEARNING
from cervicyte.evaluation.tables import comparison_table
from cervicyte.provenance import RESEARCH_USE_ONLY, write_text

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
# Kinds of images of no cell; of the first four the goal speaks.
OTHERS = ("photograph", "other microscopy", "noise", "blank", "background", "out of focus")
CLEAR = OTHERS[:4]
HERLEV = {"all": "all seven classes", "squamous": "without columnar cells"}
Figure = Mapping[str, Any]
NOT_RUN = "not run"
FOREIGN_RECIPE = "half from other laboratories"  # of the ablation: what the shipped recipe does


def read(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's content, None where it is missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def text(figure: Figure, percent: bool = True, decimals: int = 1) -> str:
    """Return a figure with its interval."""
    factor, unit = (100, " %") if percent else (1, "")
    value = f"{factor * figure['value']:.{decimals}f}{unit}"
    if figure.get("low") is None:
        return value
    return f"{value} [{factor * figure['low']:.{decimals}f}, {factor * figure['high']:.{decimals}f}]"


def row(what: str, goal: str, reached: str, met: bool | None) -> str:
    """Return a line of the table; `met` is None where there is no goal, or nothing was run."""
    verdict = {None: "", True: "reached", False: "**missed**"}[met]
    return f"| {what} | {goal} | {reached} | {verdict} |"


def at_home(folds: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the cross-validation by group."""
    figures = folds["figures"]

    def line(
        what: str, key: str, goal: str, met: Callable[[float], bool], percent: bool = True, decimals: int = 1
    ) -> str:
        figure = figures[key]
        return row(what, goal, text(figure, percent, decimals), met(figure["value"]))

    yield line("accuracy, five classes", "accuracy", "≥ 96.0 %, aim 97.0", lambda value: value >= 0.96)
    yield line("macro F1", "macro_f1", "≥ 96.0 %, aim 97.0", lambda value: value >= 0.96)
    yield line(
        "AUC, abnormal against the rest",
        "abnormal_auc",
        "≥ 0.993, aim 0.995",
        lambda value: value >= 0.993,
        False,
        4,
    )
    yield line(
        "sensitivity to abnormal cells at a specificity of 95 %",
        "abnormal_sensitivity_at_95_specificity",
        "≥ 98 %",
        lambda value: value >= 0.98,
    )
    yield line(
        "abnormal called normal",
        "abnormal_called_normal",
        "≤ 1.0 %, aim 0.5",
        lambda value: value <= 0.01,
        decimals=2,
    )
    for kind, key in (("15 bins", "expected"), ("bins of equal size", "adaptive")):
        yield line(
            f"calibration error after temperature scaling, {kind}",
            f"{key}_calibration_error_after",
            "≤ 0.010",
            lambda value: value <= 0.010,
            False,
            4,
        )
    coverages = {name: figures[f"set_coverage, {name}"] for name in folds["class_names"]}
    least = min(coverages, key=lambda name: coverages[name]["value"])
    yield row(
        f"95 % prediction sets: coverage of the least covered class ({least})",
        "≥ 93 %",
        text(coverages[least]),
        coverages[least]["value"] >= 0.93,
    )
    yield line(
        "95 % prediction sets: mean size",
        "mean_set_size",
        "≤ 1.15",
        lambda value: value <= 1.15,
        False,
        3,
    )
    yield line(
        "accuracy on the 90 % most certain",
        "accuracy_at_90_coverage",
        "≥ 99 %",
        lambda value: value >= 0.99,
    )


def folds_of(folder: Path) -> pd.DataFrame:
    """Return what the first seed's folds said of every cell."""
    table = pd.read_csv(folder / "predictions.csv", dtype={"path": str, "group": str})
    return table[table["seed"] == table["seed"].min()].drop(columns=["seed", "fold"])


def by_cell(folder: Path) -> str:
    """Return the line on the same recipe split by cell."""
    what = "the same recipe split by cell, less by group (accuracy)"
    if not (folder / "cell" / "predictions.csv").is_file():
        return row(what, "stated", NOT_RUN, None)
    tables = {by: folds_of(folder / by) for by in ("group", "cell")}
    # Every cell counts under its group, however the folds were made.
    groups = dict(zip(tables["group"]["path"], tables["group"]["group"], strict=True))
    tables["cell"] = tables["cell"].assign(group=tables["cell"]["path"].map(groups))
    compared = comparison_table(tables).iloc[1]
    ends = {key: 100 * compared[f"accuracy_difference{key}"] for key in ("", "_low", "_high")}
    reached = (
        f"{100 * compared['accuracy']:.1f} %; difference {ends['']:+.1f} points [{ends['_low']:+.1f}, "
        f"{ends['_high']:+.1f}]"
    )
    return row(what, "stated", reached, None)


def beyond_home(folder: Path) -> Iterable[str]:
    """Yield the lines on spoilt images, another laboratory, and images of no cell."""
    what = "mean accuracy on spoilt images, of the clean one"
    if spoilt := read(folder / "robustness" / "robustness.json"):
        share = spoilt["share_of_clean"]
        yield row(what, "≥ 90 %, aim 92", text(share), share["value"] >= 0.90)
    else:
        yield row(what, "≥ 90 %, aim 92", NOT_RUN, None)
    foreign = read(folder / "elsewhere" / "elsewhere.json")
    for key, title in HERLEV.items():
        found = text(foreign["figures"][f"abnormal_auc_{key}"], False, 3) if foreign else NOT_RUN
        yield row(f"Herlev, normal against abnormal, AUC, {title}", "stated", found, None)
    unlike = read(folder / "unlike_training.json")
    for kind in OTHERS:
        what = f"no cell: {kind}, AUROC against home cells"
        if unlike is None or kind not in unlike["groups"]:
            yield row(what, "≥ 0.99" if kind in CLEAR else "stated", NOT_RUN, None)
            continue
        figure = unlike["groups"][kind]["auroc"]
        goal = ("≥ 0.99", figure["value"] >= 0.99) if kind in CLEAR else ("stated", None)
        yield row(
            f"{what} ({unlike['groups'][kind]['images']} images)", goal[0], text(figure, False, 3), goal[1]
        )


def labelled(results: Path) -> Iterable[str]:
    """Yield the lines on labelled cells of the laboratory."""
    recipe = "25 labelled cells a class (`recipes/few-cells.yaml`"
    ways = (
        ("learning_curve", COVARIANCE, f"{recipe})"),
        ("learning_curve", LAST_STAGE, f"{recipe}, `classifier: logistic`)"),
        ("learning_curve_last_stage", LEARNING, f"{recipe}, `classifier: last_stage`)"),
        ("learning_curve_adapted", COVARIANCE, f"adapted, then {recipe})"),
        ("learning_curve_adapted", LAST_STAGE, f"adapted, then {recipe}, `classifier: logistic`)"),
        (
            "learning_curve_adapted_last_stage",
            LEARNING,
            f"adapted, then {recipe}, `classifier: last_stage`)",
        ),
    )
    if read(results / "learning_curve" / "learning_curve.json") is None:
        yield row("25 labelled cells a class: AUC, all seven classes", "≥ 0.92", NOT_RUN, None)
    for name, method, what in ways:
        if (curve := read(results / name / "learning_curve.json")) is None:
            continue
        found = [one for one in curve["rows"] if one["cells_a_class"] == 25 and one["method"] == method]
        what = f"{what}, {curve['draws']} draws"
        for figures in (one["figures"] for one in found):
            for key, title in HERLEV.items():
                figure = figures[f"abnormal_auc_{key}"]
                goal, met = ("≥ 0.92", figure["value"] >= 0.92) if key == "all" else ("stated", None)
                yield row(f"{what}: AUC, {title}", goal, text(figure, False, 3), met)
            yield row(f"{what}: accuracy over seven classes", "stated", text(figures["accuracy"]), None)


def flags(folder: Path) -> Iterable[str]:
    """Yield the lines on foreign cells that are flagged, by the share of home cells that may be."""
    content = read(folder / "flag_rates.json")
    if not content:
        return
    for one in content["rates"]:
        used = one["home"] == content["used"]
        yield row(
            f"shipped model, never trained on: flagged where {100 * one['home']:.0f} % of home cells are"
            + (", as the program does: chosen with these figures in view" if used else ""),
            "≥ 90 %" if used else "stated",
            text(one["foreign"]),
            one["foreign"]["value"] >= 0.90 if used else None,
        )


def wider_sets(whose: str, size: float, folder: Path) -> str:
    """Return the line on foreign cells' prediction sets, held against those of the folds at home."""
    folds = read(folder / "group" / "cross_validation.json")
    home = folds["figures"]["mean_set_size"]["value"] if folds else None
    goal, met = (f"> {home:.3f}, at home", size > home) if home is not None else ("stated", None)
    return row(f"{whose}: mean prediction set, classes", goal, f"{size:.3f}, without an interval", met)


def in_points(value: float, low: float, high: float) -> str:
    """Return a difference of shares with its interval; a zero has no minus."""
    value, low, high = (100 * end + 0.0 for end in (value, low, high))
    return f"{value:+.2f} points [{low:+.2f}, {high:+.2f}]"


def cost_at_home(results: Path) -> Iterable[str]:
    """Yield the line on what training for other laboratories costs at home, on inner folds."""
    ablation = read(results / "ablation" / "ablation.json")
    for one in ablation["variants"] if ablation else ():
        if one["name"] == FOREIGN_RECIPE and one.get("run"):
            difference = one["differences"]["accuracy"]
            points = in_points(difference["value"], difference["low"], difference["high"])
            yield row(
                "five classes at home, by group: accuracy with the recipe's changes for other laboratories, "
                "less without, on inner folds ([ablation](ablation/ablation.md))",
                "≥ -0.3 points",
                points,
                100 * difference["value"] >= -0.3,
            )


def second_look(results: Path) -> Iterable[str]:
    """Yield the lines on what it costs at home that small crops stay small, in a second look or all."""
    content = read(results / "second_look.json")
    if not content:
        return
    fold, *others = content["folds"]
    networks = f"{len(others) + 1} folds"
    if not others:
        networks = f"{fold['fold'].replace('_', ' ')}, {fold['image_size']} pixels, {fold['epochs']} epochs"
    flagged = f"{content['flagged']} of {content['cells']:,} cells flagged"
    for name, what in (
        ("lost_by_a_second_look", f"{flagged}, {content['looked_at_again']} looked at again"),
        ("lost_if_all_were_looked_at_so", "if all were looked at so"),
    ):
        lost = content[name]
        least = name == "lost_by_a_second_look"
        yield row(
            f"five classes at home, by group: accuracy with small crops kept small, less without ({what}; "
            f"{networks})",
            "≥ -0.3 points" if least else "stated",
            in_points(-lost["value"], -lost["high"], -lost["low"]),
            -100 * lost["value"] >= -0.3 if least else None,
        )


def another_laboratory(folder: Path) -> str:
    """Return the section on Herlev: never trained on, adapted, and after some cells were labelled."""
    lines = []
    for name, whose in (("elsewhere", "five folds"), ("elsewhere_shipped", "shipped model")):
        content = read(folder / name / "elsewhere.json")
        if content is None:
            continue
        if not content.get("framing"):
            whose += ", small crops enlarged"
        stages = [("never trained on", content, 0.80, "≥ 0.80, aim 0.85")]
        stages += [
            (f"adapted to {one['images']} unlabelled images", one, 0.85, "≥ 0.85, aim 0.90")
            for one in content.get("adapted", ())
        ]
        for stage, of, least, goal in stages:
            for key, title in HERLEV.items():
                figure = of["figures"][f"abnormal_auc_{key}"]
                met = figure["value"] >= least if key == "all" else None
                what = f"{whose}, {stage}: AUC, {title}"
                lines.append(row(what, goal if met is not None else "stated", text(figure, False, 3), met))
            doubt = of.get("doubt", {})
            if doubt.get("set_size") is not None and of is content:
                lines.append(wider_sets(f"{whose}, {stage}", doubt["set_size"], folder))
            if doubt.get("flagged") is not None:
                before = of is content and not (folder / "flag_rates.json").is_file()
                said = f"{100 * doubt['flagged']:.0f} %; {doubt['set_size']:.2f} classes"
                lines.append(
                    row(
                        f"{whose}, {stage}: flagged as unlike the training cells; mean prediction set",
                        "≥ 90 % flagged" if before else "stated",
                        said,
                        doubt["flagged"] >= 0.90 if before else None,
                    )
                )
    lines += [
        *second_look(folder.parent),
        *flags(folder),
        *labelled(folder.parent),
        *cost_at_home(folder.parent),
    ]
    return f"""## Another laboratory

Herlev's cells, normal against abnormal; no network was trained on any of them but in the last rows, see \
[the learning curve](learning_curve/learning_curve.md). They guided the choice among \
recipes and settings of adaptation: expect less elsewhere. The folds' networks do not know the light of \
their laboratory, nor the sizes of their training cells: they were adapted without matching it, and enlarge \
[small crops](../elsewhere.md#small-crops-stay-small). [How it is measured](../elsewhere.md).

| | goal | reached | |
| --- | --- | --- | --- |
{chr(10).join(lines)}
"""


def _others(drawn: Mapping[str, Any]) -> str:
    others = ", ".join(f"{100 * one['recognised']:.1f} %" for one in drawn["others"])
    return f", and a fold's network {others}" if others else ""


def page(results: Path = RESULTS) -> str:
    """Return the page from the files in `results/model`."""
    folder = results / "model"
    folds = read(folder / "group" / "cross_validation.json")
    if folds is None:
        raise SystemExit(f"{folder / 'group'}: holds no cross-validation; run `make folds` first.")
    origin, context = folds["provenance"], folds["context"]
    minutes = folds["training_minutes"]
    lines = [*at_home(folds), by_cell(folder), *beyond_home(folder)]
    commands = [
        (name, content["provenance"])
        for name, path in (
            ("folds by group", "group/cross_validation.json"),
            ("folds by cell", "cell/cross_validation.json"),
            ("spoilt images", "robustness/robustness.json"),
            ("another laboratory", "elsewhere/elsewhere.json"),
            ("no cells", "unlike_training.json"),
            ("flags", "flag_rates.json"),
            ("a second look at home", "../second_look.json"),
            ("another laboratory, the model that ships", "elsewhere_shipped/elsewhere.json"),
        )
        if (content := read(folder / path))
    ]
    where = "\n".join(f"- {name}: `{one['command']}`, commit `{one['commit']}`" for name, one in commands)
    demo = ""
    if drawn := read(folder / "drawn_cells.json"):
        shipped = drawn["shipped"]
        demo = (
            f"\nOf {shipped['cells']:,} drawn cells (seed {drawn['seed']}), of which it never saw one, the "
            f"shipped model calls {100 * shipped['recognised']:.1f} % what they were drawn as (aim 80 %)"
            f"{_others(drawn)}; {100 * shipped['flagged']:.1f} % are flagged as unlike the training cells. "
            f"`{drawn['provenance']['command']}`, commit `{drawn['provenance']['commit']}`.\n"
        )
        if before := read(folder / "drawn_cells_no_second_look.json"):
            demo += (
                f"\nBefore there was a [second look](../elsewhere.md#small-crops-stay-small) it was "
                f"{100 * before['shipped']['recognised']:.1f} %{_others(before)} "
                f"(`{before['provenance']['command']}`, commit `{before['provenance']['commit']}`): drawn "
                "cells are cut as home cells are, so that the second look costs something where so many are "
                "flagged.\n"
            )
    return f"""# The shipped model: goal against reached

{RESEARCH_USE_ONLY}

Written by `python benchmarks/goals_page.py` from the files in `docs/results/model/`; no figure was typed. \
{folds["cells"]:,} cells in {folds["groups"]:,} independent groups, {context["folds"]} folds by group, seed \
{", ".join(map(str, context["seeds"]))}: each cell is tested by a network that saw no cell of its group, and \
what calibrates it was fitted on the other folds. In brackets: 95 % intervals from a bootstrap over groups. \
A goal counts as reached by the value, whatever the interval.

| | goal | reached | |
| --- | --- | --- | --- |
{chr(10).join(lines)}
{demo}
{another_laboratory(folder)}
## How it came about

Training took {", ".join(f"{one:.0f}" for one in minutes)} minutes for the folds, on one or two cores of \
{origin["machine"]}, beside other work. One training a fold: another seed would give other figures, which \
the intervals do not hold. The recipe was chosen on inner groups of what is not test in fold 0, see \
[the ablation](ablation/ablation.md), and on Herlev's cells; cells of the other folds took part in that \
choice.

{where}

{context["caveats"][0] if context["caveats"] else ""}
"""


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    write_text(RESULTS / "goals.md", page())


if __name__ == "__main__":
    main()
