"""The page of a training on several data sets, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cervicyte.evaluation.cross_validation_page import interval_text
from cervicyte.evaluation.tables import UNDEFINED
from cervicyte.pages import plural

HEAD = "| | AUC | abnormal found, % | others passed, % |\n| --- | --- | --- | --- |"


def together_page(content: Mapping[str, Any]) -> str:
    """Return the content of `together.json` as Markdown."""
    data_sets, left_out, origin = content["data_sets"], content["left_out"], content["provenance"]
    heads = "\n".join(
        f"| {name} | {len(one['classes'])} | {one['cells']:,} | {one['groups']:,} | "
        f"{interval_text(one['accuracy'])} | {interval_text(one['macro_f1'])} |"
        for name, one in data_sets.items()
    )
    common = "\n".join(
        row
        for name, one in data_sets.items()
        for row in (
            *_rows(f"{name}, common answer", one["common"]),
            *_rows(f"{name}, own abnormal classes together", one["own_head"]),
        )
    )
    sides = "\n".join(
        f"| {name} | {label} | {side or 'not known: no part in the common answer'} |"
        for name, one in [*data_sets.items(), *([(left_out["name"], left_out)] if left_out else [])]
        for label, side in one["classes"].items()
    )
    epochs = content["training"]["epochs"]
    title = f"Trained together: {', '.join(data_sets)}"
    return f"""# {title}{f"; left out: {left_out['name']}" if left_out else ""}

{content["notice"]}

One CBAM-ResNet50 with a head for each class list and one unit that tells abnormal cells from others; \
{content["recipe"]["preprocessing"]["image_size"]} pixels, {epochs} {plural("epoch", epochs)}, seed \
{content["recipe"]["seed"]}, {content["training"]["minutes"]} minutes of training.

{_left_out(left_out) if left_out else ""}## Each class list, on the test part of its data set

| data set | classes | cells | groups | accuracy, % | macro F1, % |
| --- | ---: | ---: | ---: | --- | --- |
{heads}

## Abnormal against others, on the same cells

{HEAD}
{common}

"Found" and "passed" are shares called abnormal from a probability of {content["called_abnormal_from"]} on, \
and below; the common answer is not calibrated. Benign classes count among the others.

| data set | class | side |
| --- | --- | --- |
{sides}

In brackets: 95 % intervals from {content["intervals"]["draws"]:,} bootstrap draws of whole groups. They do \
not contain what another training run would change. {" ".join(content["caveats"])}

Command: `{origin["command"] or "called from Python"}`; commit {origin["commit"]}; written \
{origin["written"][:10]}.
"""


def _left_out(one: Mapping[str, Any]) -> str:
    rows = [*_rows("common answer", one["common"])]
    for name, figures in one["by_head"].items():
        rows += _rows(f"abnormal classes of {name} together", figures)
    means = "\n".join(f"| {name} | {100 * value:.0f} |" for name, value in one["mean_score"].items())
    lines = "\n".join(rows)
    return f"""## {one["name"]}, left out: abnormal against others

{one["cells"]:,} cells in {one["groups"]:,} groups, none of which was trained on.

{HEAD}
{lines}

| class | mean probability of being abnormal, common answer, % |
| --- | ---: |
{means}

"""


def _rows(title: str, figures: Mapping[str, Any]) -> Iterable[str]:
    """Yield the row of a score, and one without columnar cells where there are some."""
    if not figures:
        yield f"| {title} | {UNDEFINED} | {UNDEFINED} | {UNDEFINED} |"
        return
    shares = " | ".join(interval_text(figures[name]) for name in ("found", "passed"))
    yield f"| {title} | {interval_text(figures['auc'], 'abnormal_auc')} | {shares} |"
    if "auc_squamous" in figures:
        squamous = interval_text(figures["auc_squamous"], "abnormal_auc")
        yield f"| {title}, without columnar cells | {squamous} | | |"
