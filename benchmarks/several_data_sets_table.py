"""Write the table in docs/several_data_sets.md from the runs of `make together`, so that no figure is typed.

python benchmarks/several_data_sets_table.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from cervicyte.evaluation.cross_validation_page import interval_text
from cervicyte.evaluation.tables import UNDEFINED
from cervicyte.evaluation.together import LEFT_OUT_NAME, SUMMARY_NAME, abnormal_figures
from cervicyte.provenance import write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "several_data_sets.md"
RESULTS = DOCS / "results" / "several_data_sets"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
RUNS = {
    "both": "SIPaKMeD and Herlev",
    "without_herlev": "SIPaKMeD alone",
    "without_sipakmed": "Herlev alone",
}
TITLES = {"sipakmed": "SIPaKMeD", "herlev": "Herlev"}
HEAD = (
    "| cells | trained on | answer | AUC | without columnar cells | classes told, % |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def figures_text(results: Path = RESULTS) -> str:
    """Return the table, and which runs it lacks."""
    runs = {
        name: json.loads((results / name / SUMMARY_NAME).read_text())
        for name in RUNS
        if (results / name / SUMMARY_NAME).is_file()
    }
    rows: list[str] = []
    for data_set in TITLES:
        for name, run in runs.items():
            rows += tested_rows(data_set, RUNS[name], run)
        for name, run in runs.items():
            rows += left_out_rows(data_set, name, run, results)
    missing = [RUNS[name] for name in RUNS if name not in runs]
    lacks = f"\n\nNot run yet: trained on {', '.join(missing)}; `make together` does." if missing else ""
    return "\n".join([HEAD, *rows]) + differences_text(results) + lacks


def differences_text(results: Path) -> str:
    """Return what `cervicyte compare` found: the accuracy of each head learnt together, less alone."""
    said = []
    for data_set, title in TITLES.items():
        path = results / f"{data_set}_comparison.csv"
        if path.is_file():
            one = pd.read_csv(path).iloc[1]
            value, low, high = (100 * one[f"accuracy_difference{end}"] for end in ("", "_low", "_high"))
            said.append(f"{title} {value:+.1f} points [{low:+.1f}, {high:+.1f}], p = {one['p_value']:.3f}")
    if not said:
        return ""
    return (
        "\n\nClasses told by a head that learnt together with the other, less by one that learnt alone, "
        f"paired over the same test cells: {'; '.join(said)}."
    )


def tested_rows(data_set: str, trained_on: str, run: dict[str, Any]) -> list[str]:
    """Return what a run says of the test part of a data set that it was trained on."""
    if data_set not in run["data_sets"]:
        return []
    one = run["data_sets"][data_set]
    cells = f"{TITLES[data_set]}, test part ({one['cells']:,} cells, {one['groups']} groups)"
    return [
        row(cells, trained_on, "common", one["common"], one["accuracy"]),
        row(cells, trained_on, "its own abnormal classes", one["own_head"]),
    ]


def left_out_rows(data_set: str, name: str, run: dict[str, Any], results: Path) -> list[str]:
    """Return what a run says of the data set that it left out, and of those cells that others test on."""
    if run["left_out"] is None or run["left_out"]["name"] != data_set:
        return []
    one, trained_on = run["left_out"], RUNS[name]
    rows = []
    test = results / "both" / data_set / "test_predictions.csv"
    if test.is_file():
        tested = set(pd.read_csv(test)["path"])
        answers = pd.read_csv(results / name / LEFT_OUT_NAME)
        same = answers[answers["path"].isin(tested)]
        figures = abnormal_figures(same, one["classes"], same["abnormal"].to_numpy(float))
        cells = f"{TITLES[data_set]}, test part ({len(same):,} cells, {same['group'].nunique()} groups)"
        rows.append(row(cells, trained_on, "common", figures))
    cells = f"{TITLES[data_set]}, all ({one['cells']:,} cells, {one['groups']} groups)"
    rows.append(row(cells, trained_on, "common", one["common"]))
    for head, figures in one["by_head"].items():
        rows.append(row(cells, trained_on, f"abnormal classes of {TITLES[head]}", figures))
    return rows


def row(
    cells: str,
    trained_on: str,
    answer: str,
    figures: dict[str, Any],
    accuracy: dict[str, float | None] | None = None,
) -> str:
    """Return a row of the table."""
    aucs = [
        interval_text(figures[name], "abnormal_auc") if name in figures else ""
        for name in ("auc", "auc_squamous")
    ]
    told = "" if accuracy is None else interval_text(accuracy)
    return f"| {cells} | {trained_on} | {answer} | {aucs[0] or UNDEFINED} | {aucs[1]} | {told} |"


def page_with_figures(page: str, results: Path = RESULTS) -> str:
    """Return the page with the table of the results between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{figures_text(results)}\n{END}{after}"


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    write_text(PAGE, page_with_figures(PAGE.read_text(encoding="utf-8")))
