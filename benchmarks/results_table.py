"""Write docs/results/README.md from the result files beside it, so that no figure is typed by hand.

python benchmarks/results_table.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from cervicyte.explanation.cam import DEFAULT_LAYER, DEFAULT_METHOD
from cervicyte.provenance import RESEARCH_USE_ONLY, write_text

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
AUDIT_FILES = ("explanation_audit", "network_metrics")
RUNS = {
    "sipakmed": ("SIPaKMeD, fold 0 of 5 by independent group", "make sipakmed"),
    "herlev": ("Herlev, fold 0 of 5 by frame", "make herlev"),
}


def rate(figure: dict[str, Any]) -> str:
    """Return a share with its interval, in percent."""
    if figure["value"] is None:
        return "undefined"
    if figure["low"] is None:
        return f"{figure['value']:.1%}"
    return f"{100 * figure['value']:.1f} % [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def section(name: str, title: str, command: str, results: Path) -> list[str]:
    """Return the lines on one run, its control and their paired difference."""
    run, control = (json.loads((results / f / "metrics.json").read_text()) for f in (name, f"{name}_probe"))
    comparison = pd.read_csv(results / f"{name}_comparison.csv").iloc[1]
    context = run["context"]
    split, provenance = context["split"], run["provenance"]
    shape = {key: comparison[f"accuracy_difference{key}"] for key in ("", "_low", "_high")}
    lines = [
        f"## {title}",
        "",
        f"`{command}` on {provenance['machine']}; training took {context['training_minutes']:g} minutes. "
        f"Seed {context['seed']}, split seed {split['seed']}, split `{split['hash'][:12]}`, "
        f"commit `{provenance['commit']}`; {split['train']['cells']:,} cells trained, "
        f"{split['validation']['cells']:,} chose the epoch, {run['cells']:,} cells in {run['groups']:,} "
        f"groups tested. [Report]({name}/report.html), [figures]({name}/metrics.json), "
        f"[predictions]({name}/test_predictions.csv), [split]({name}/split.csv), "
        f"[recipe]({name}/recipe.yaml).",
        "",
        "| | accuracy | macro F1 |",
        "| --- | --- | --- |",
        f"| CBAM-ResNet50, {context['model']['image_size']} pixels | {rate(run['overall']['accuracy'])} "
        f"| {rate(run['overall']['macro_f1'])} |",
        f"| linear probe on frozen features, {control['context']['model']['image_size']} pixels "
        f"| {rate(control['overall']['accuracy'])} | {rate(control['overall']['macro_f1'])} |",
        f"| difference, paired | {100 * shape['']:+.1f} points [{100 * shape['_low']:+.1f}, "
        f"{100 * shape['_high']:+.1f}], p = {comparison['p_value']:.3f} | "
        f"{100 * comparison['macro_f1_difference']:+.1f} points "
        f"[{100 * comparison['macro_f1_difference_low']:+.1f}, "
        f"{100 * comparison['macro_f1_difference_high']:+.1f}] |",
        "",
        "| class | cells | precision | recall | F1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, figures in run["per_class"].items():
        shares = " | ".join(rate(figures[key]) for key in ("precision", "recall", "f1"))
        lines.append(f"| {label} | {figures['support']} | {shares} |")
    if "roll_up" in run:
        missed = run["roll_up"]["abnormal"]["called_normal"]
        lines += ["", f"Abnormal cells called normal: {missed['count']} of {missed['of']}, {rate(missed)}."]
    return [*lines, ""]


def inspection_lines(results: Path) -> list[str]:
    """Return what inspection found in each data set, and what predicts the class besides the cell."""
    files = sorted((results / "inspection").glob("*.json"))
    found = {path.stem: json.loads(path.read_text()) for path in files}
    found = {name: content for name, content in found.items() if "findings" in content}
    if not found:
        return []
    lines = [
        "## What inspection finds in the data",
        "",
        "`make inspection`; all findings by name of cell in "
        + ", ".join(f"[{name}.json](inspection/{name}.json)" for name in found)
        + "; what it means for SIPaKMeD: [what leaks](../leakage.md).",
        "",
    ]
    for name, content in found.items():
        lines += [f"**{name}**, commit `{content['provenance']['commit']}`:", ""]
        lines += [
            f"- {one['kind']}: {one['text']}" for one in content["findings"] if one["kind"] != "shortcuts"
        ]
        lines.append("")
    lines += [
        "Does anything but the cell predict the class? Balanced accuracy of a small classifier that sees "
        "only this, on groups that it has not seen:",
        "",
        "| seen | " + " | ".join(found) + " |",
        "| --- |" + " --- |" * len(found),
    ]
    predictors = next(iter(found.values()))["shortcuts"]["predictors"]
    lines += [
        f"| {name.replace('_', ' ').replace(' px', '')} | "
        + " | ".join(
            rate(content["shortcuts"]["predictors"][name]["balanced_accuracy"]) for content in found.values()
        )
        + " |"
        for name in predictors
    ]
    chance = " | ".join(
        f"{content['shortcuts']['balanced_accuracy_of_chance']:.1%}" for content in found.values()
    )
    return [*lines, f"| chance | {chance} |", ""]


def audit_lines(results: Path) -> list[str]:
    """Return what the maps of the audited network are worth."""
    path = results / "audit" / "explanation_audit.json"
    if not path.is_file():
        return []
    audit = json.loads(path.read_text())
    network = json.loads((path.parent / "network_metrics.json").read_text())
    maps, settings = audit["maps"]["all"], audit["settings"]
    best, default = audit["best"]["score"], f"{DEFAULT_METHOD}@{DEFAULT_LAYER}"
    lines = [
        "## What explanations are worth",
        "",
        f"`make audit`, commit `{audit['provenance']['commit']}`: {audit['cells_audited']} cells in "
        f"{audit['groups']} groups of the test part of fold 0, chosen with seed {settings['seed']}; scores "
        f"in {audit['score_precision']}. The network was trained anew with the recipe above (accuracy on the "
        f"whole test part {rate(network['overall']['accuracy'])}, weights "
        f"`{network['context']['model']['weights_sha256'][:12]}`), which opened that part once more. "
        "[All figures](audit/explanation_audit.html), as [JSON](audit/explanation_audit.json) and "
        "[CSV](audit/explanation_audit.csv); [what the measures mean](../explanation_audit.md).",
        "",
        "Score: insertion minus deletion, higher is better. Centre, darkness and random are the controls, "
        f"which know nothing of what the network has learnt. Random: {audit['definitions']['random']}.",
        "",
        "| map | score | ROAD | beats all three controls on |",
        "| --- | --- | --- | --- |",
    ]
    for name in (*audit["explanations"], *audit["controls"]):
        figures = maps[name]
        beats = f"{rate(figures['beats_controls'])} of cells" if "beats_controls" in figures else ""
        numbers = " | ".join(
            f"{figures[key]['value']:.3f} [{figures[key]['low']:.3f}, {figures[key]['high']:.3f}]"
            for key in ("score", "road")
        )
        title = f"**{name}**" if name == best else name
        lines.append(f"| {title} | {numbers} | {beats} |")
    share = maps["centre"]["score"]["value"] / maps[best]["score"]["value"]
    return [
        *lines,
        "",
        f"**How to read it.** The best map by score, {best}, gains {gains(audit, best)}; the blob in the "
        f"middle alone reaches {share:.0%} of its score. {told_apart(audit, default)} All of this on the "
        "cells on which the best was chosen.",
        "",
        f"The default is {default}: it gains {gains(audit, default)}. By class, over the centre blob: "
        f"{by_class(audit, default)}. Where an interval holds 0, do not rely on where these maps point "
        "without the verdict on the image itself.",
        "",
        *earlier_audit_lines(path.parent / "earlier_network", default),
    ]


def signed(figure: dict[str, Any]) -> str:
    return f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"


def gains(audit: dict[str, Any], name: str) -> str:
    """Return by how much a map's score exceeds each control's."""
    against = audit["against_controls"]["all"][name]
    return ", ".join(f"{signed(against[control]['score'])} over {control}" for control in against)


def folds_lines(results: Path) -> list[str]:
    """Return the cross-validated linear probe, calibrated and nested: what a fine-tuned network must beat."""
    content = json.loads((results / "probe_cross_validation" / "cross_validation.json").read_text())
    figures, seeds = content["figures"], ", ".join(map(str, content["context"]["seeds"]))
    least = min(
        (figures[f"set_coverage, {name}"] for name in content["class_names"]), key=lambda one: one["value"]
    )
    size, error = (figures[name] for name in ("mean_set_size", "adaptive_calibration_error_after"))
    return [
        "## SIPaKMeD, all five folds by group: the linear probe",
        "",
        f"`make probe-folds`, commit `{content['provenance']['commit']}`; {content['cells']:,} cells in "
        f"{content['groups']:,} groups, seeds {seeds}; {content['context']['model']['kind']}. What a "
        "fine-tuned network must beat. Temperature, thresholds and certainty are fitted on the other folds. "
        "[All figures](probe_cross_validation/cross_validation.md).",
        "",
        f"Accuracy {rate(figures['accuracy'])}, macro F1 {rate(figures['macro_f1'])}, abnormal called normal "
        f"{rate(figures['abnormal_called_normal'])}; calibration error over bins of equal size "
        f"{error['value']:.3f} [{error['low']:.3f}, {error['high']:.3f}]; prediction sets of 95 % hold the "
        f"class of {rate(least)} of the cells of the least covered class, and {size['value']:.2f} "
        f"[{size['low']:.2f}, {size['high']:.2f}] classes in the mean; accuracy on the 90 % most certain "
        f"{rate(figures['accuracy_at_90_coverage'])}.",
        "",
        _fine_tuned(results),
        "",
    ]


def _fine_tuned(results: Path) -> str:
    """Return what fine-tuned networks reach on the same folds, in one line."""
    path = results / "model" / "group" / "cross_validation.json"
    if not path.is_file():
        return "Fine-tuned networks on all five folds: **not run** (`make folds`)."
    content = json.loads(path.read_text())
    seeds = ", ".join(map(str, content["context"]["seeds"]))
    return (
        f"The recipe of the model that ships, on the same folds (seed {seeds}): accuracy "
        f"{rate(content['figures']['accuracy'])}; "
        "[goal against reached](goals.md), [all figures](model/group/cross_validation.md)."
    )


def unlike_lines(results: Path) -> list[str]:
    """Return what of foreign images the audited network knows not to know."""
    path = results / "unlike_training.json"
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    fitted, home = content["fitted"], content["home"]
    lines = [
        "## What is unlike the training cells",
        "",
        f"`{content['provenance']['command']}`, commit `{content['provenance']['commit']}`, seed "
        f"{content['seed']}; of one network (fold 0, weights `{content['weights'][:12]}`). Fitted on "
        f"{fitted['training_cells']:,} training and {fitted['reference_cells']:,} validation cells; the flag "
        f"is set for about {fitted['rate_asked']:.0%} of home cells. Of {home['images']:,} test cells "
        f"{rate(home['flagged'])} are flagged. Herlev, two of the photographs and the drawn kinds helped to "
        "choose the method and are no unseen sources; other microscopy is not among them. "
        "[What it means](../unlike_training.md), [all figures](unlike_training.json).",
        "",
        "| images | how many | AUROC against home cells | flagged | of these as no cell |",
        "| --- | ---: | --- | --- | ---: |",
    ]
    for name, figures in content["others"].items():
        area = figures["auroc"]
        # Of a single photograph there is no interval.
        ends = "" if area["low"] is None else f" [{area['low']:.3f}, {area['high']:.3f}]"
        lines.append(
            f"| {name} | {figures['images']} | {area['value']:.3f}{ends} | {rate(figures['flagged'])} | "
            f"{figures['flagged_as_no_cell']:.0%} |"
        )
    return [*lines, ""]


def told_apart(audit: dict[str, Any], name: str) -> str:
    """Say of a map whether it is told apart from the best, by score and by ROAD."""
    said = []
    for measure, title in (("score", "score"), ("road", "ROAD")):
        best = audit["best"][measure]
        if name == best:
            said.append(f"by {title} it is the best")
        else:
            behind = audit["against_best"][measure][name]
            word = "is behind" if behind["low"] > 0 else "is not told apart from"
            said.append(f"by {title} it {word} the best, {best} ({signed(behind)})")
    return f"Of {name}: {', '.join(said)}."


def by_class(audit: dict[str, Any], name: str) -> str:
    return ", ".join(
        f"{label} {signed(audit['against_controls'][label][name]['centre']['score'])}"
        for label in audit["cells_per_class"]
    )


def earlier_audit_lines(folder: Path, name: str) -> list[str]:
    """Return what the audit of another training of the same recipe found of the same map."""
    audit, network = (json.loads((folder / f"{f}.json").read_text()) for f in AUDIT_FILES)
    against = audit["against_controls"]["all"][name]
    over = ", ".join(
        f"{signed(against[control]['score'])} over {control}" for control in ("centre", "darkness")
    )
    return [
        f"**Another training of the same recipe** (accuracy {rate(network['overall']['accuracy'])}, audit of "
        f"commit `{audit['provenance']['commit']}`, the same cells; [JSON](audit/earlier_network/"
        f"explanation_audit.json)) had {audit['best']['score']} as the best map; {name} gained {over}. So "
        "what an audit finds holds for one network: audit your own. That audit held all methods against the "
        "random network's Grad-CAM++, so its comparison with random weights is left out here.",
        "",
    ]


def page(results: Path = RESULTS) -> str:
    """Return the page over all runs whose files are there."""
    lines = [
        "# Results",
        "",
        f"**{RESEARCH_USE_ONLY}**",
        "",
        "This page was written by `python benchmarks/results_table.py` from the files beside it. In "
        "brackets: 95 % intervals from 2,000 bootstrap draws of whole groups; they hold for one training "
        "run on one fold, and say nothing of another laboratory. Independent groups are not "
        "independent patients. The test fold of each run was looked "
        "at when its training had ended; the epoch was chosen on validation groups.",
        "",
    ]
    for name, (title, command) in RUNS.items():
        if (results / name / "metrics.json").is_file():
            lines += section(name, title, command, results)
    lines += folds_lines(results)
    if (results / "optimism_frozen" / "optimism.md").is_file():
        lines += [
            "## What a split that leaks is worth",
            "",
            "[The same linear probe under splits by cell, by field and by independent "
            "group](optimism_frozen/optimism.md) (`make optimism`); [the same with fine-tuned "
            "networks](optimism_finetuned/optimism.md) (`make optimism-finetuned`); "
            "[what leaks, how it was found, what it is worth](../leakage.md) (`make leakage`); "
            "[how well twins are found](twins/quality.md) (`make twins`).",
            "",
        ]
    lines += inspection_lines(results)
    lines += audit_lines(results)
    lines += unlike_lines(results)
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    write_text(RESULTS / "README.md", page())
