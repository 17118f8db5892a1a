"""The page of a cross-validation, as Markdown: each figure with its interval, and what to keep in mind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cervicyte.evaluation.cross_fitting import AFTER, BEFORE, CONFIDENCE_FIGURES
from cervicyte.evaluation.tables import UNDEFINED

TITLES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "abnormal_auc": "Abnormal against the rest, AUC",
    "abnormal_sensitivity_at_95_specificity": "Abnormal, sensitivity at 95 % specificity",
    "abnormal_called_normal": "Abnormal called normal",
    "expected_calibration_error": "Calibration error, 15 bins of equal width",
    "adaptive_calibration_error": "Calibration error, 15 bins of equal size",
    "negative_log_likelihood": "Negative log-likelihood",
    "mean_set_size": "Classes in a set, mean",
    "sets_of_one_class": "Sets of one class",
    "accuracy_at_90_coverage": "Accuracy on the most certain 90 % of all cells",
    "answered": "Cells answered by the certainty of the other folds",
    "accuracy_of_answered": "Accuracy on these",
}
ABNORMAL = ("abnormal_auc", "abnormal_sensitivity_at_95_specificity", "abnormal_called_normal")
CERTAINTY = ("accuracy_at_90_coverage", "answered", "accuracy_of_answered")
DECIMALS = {"abnormal_auc": 4, "mean_set_size": 3, "negative_log_likelihood": 3} | {
    f"{name}_{when}": 3 for name in CONFIDENCE_FIGURES for when in (BEFORE, AFTER)
}  # of what is no share; shares are in percent, with one


def title_of_figure(name: str) -> str:
    """Return how a figure is called on a page."""
    return TITLES.get(name, name[0].upper() + name[1:])


def number_text(value: float | None, name: str = "", signed: bool = False) -> str:
    """Return a value of the figure `name`, in percent if it is a share, without the sign of percent."""
    if value is None:
        return UNDEFINED
    factor, decimals = (1, DECIMALS[name]) if name in DECIMALS else (100, 1)
    return format(value * factor, f"{'+' if signed else ''}.{decimals}f").replace("-", "\N{MINUS SIGN}")


def interval_text(figure: Mapping[str, float | None], name: str = "", signed: bool = False) -> str:
    """Return value and interval of the figure `name`, see `number_text`."""
    value, low, high = (figure[end] for end in ("value", "low", "high"))
    if value is None:
        return UNDEFINED
    ends = [number_text(end, name, signed) for end in (low, high)]
    return f"{number_text(value, name, signed)} [{', '.join(ends)}]"


def comparison_text(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Return the rows of `tables.comparison_table` for a terminal of any width."""

    def figure(row: Mapping[Any, Any], name: str) -> dict[str, float | None]:
        return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}

    lines = ["In percent, with 95 % intervals; differences from the first run in points."]
    for number, row in enumerate(rows):
        lines.append(f"{row['run']}: {row['cells']:,} cells")
        for name in ("accuracy", "macro_f1"):
            line = f"  {title_of_figure(name):9} {interval_text(figure(row, name))}"
            if number:
                line += f", {interval_text(figure(row, f'{name}_difference'), signed=True)}"
                line += f", p = {row['p_value']:.2g}" if name == "accuracy" else ""
            lines.append(line)
    return "\n".join(lines)


def cross_validation_page(content: Mapping[str, Any]) -> str:
    """Return the content of `cross_validation.json` as Markdown."""
    figures, names, context = content["figures"], content["class_names"], content["context"]
    origin, model = content["provenance"], context["model"]
    seeds = context["seeds"]
    calls = ["accuracy", "macro_f1", *(f"recall, {name}" for name in names), *ABNORMAL]
    confidence = [
        f"| {TITLES[name]} | {_text(figures, f'{name}_{BEFORE}')} | {_text(figures, f'{name}_{AFTER}')} |"
        for name in CONFIDENCE_FIGURES
    ]
    coverage = [
        f"| {name} | {_text(figures, f'set_coverage, {name}')} | "
        f"{_text(figures, f'set_coverage_of_groups, {name}')} |"
        for name in names
    ]
    level = content["calibrations"][0]["level"]
    leak = f"**{context['leak']}**\n\n" if context["leak"] else ""
    caveats = [caveat for caveat in context["caveats"] if caveat != context["leak"]]
    times = "once" if len(seeds) == 1 else "once under each seed"
    return f"""# {context["title"]}

{content["notice"]}

{leak}{model["kind"][0].upper() + model["kind"][1:]}, backbone {model["backbone"]}, {model["image_size"]} \
pixels; {content["cells"]:,} cells in {content["groups"]:,} independent groups; {context["folds"]} folds, \
seed {", ".join(map(str, seeds))}. Every cell is tested {times}, by a model that was trained on other folds.

## What cells are called

{_table(figures, calls, seeds)}

## Whether confidence can be believed

Calibrated: with the temperature that was fitted on the other folds.

| | as the network gives it | calibrated |
| --- | ---: | ---: |
{chr(10).join(confidence)}

## Prediction sets

Sets of {level * 100:.0f} %, fitted on the other folds: the share of each class's cells whose set holds \
their class, and the same with every group counting once, which is what the sets promise.

| class | of its cells | of its groups |
| --- | ---: | ---: |
{chr(10).join(coverage)}

{_table(figures, ["mean_set_size", "sets_of_one_class"], seeds)}

## Leaving the least certain aside

{_table(figures, CERTAINTY, seeds)}

## What to keep in mind

In brackets: 95 % intervals from {content["intervals"]["draws"]:,} bootstrap draws of whole groups over the \
pooled predictions. They do not contain what other folds, another training or other cells to calibrate by \
would change.

{chr(10).join(f"- {caveat}" for caveat in caveats)}

Command: `{origin["command"] or "called from Python"}`; commit {origin["commit"]}; written \
{origin["written"][:10]}.
"""


def _table(figures: Mapping[str, Any], names: Sequence[str], seeds: Sequence[int]) -> str:
    """Return a row a figure; of several seeds, with the spread between them."""
    several = len(seeds) > 1
    rows = ["| | value | standard deviation over seeds |" if several else "| | value |"]
    rows.append("| --- | ---: | ---: |" if several else "| --- | ---: |")
    for name in names:
        spread = number_text(figures[name]["standard_deviation_over_seeds"], name)
        rows.append(
            f"| {title_of_figure(name)} | {_text(figures, name)} |" + (f" {spread} |" if several else "")
        )
    return "\n".join(rows)


def _text(figures: Mapping[str, Mapping[str, Any]], name: str) -> str:
    value, low, high = (figures[name][end] for end in ("value", "low", "high"))
    if value is None:
        return UNDEFINED
    percent = "" if name in DECIMALS else " %"
    return f"{number_text(value, name)}{percent} [{number_text(low, name)}, {number_text(high, name)}]"
