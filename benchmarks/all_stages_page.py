"""Write docs/results/all_stages/README.md: what it brings to train every stage, which takes a GPU.

    python benchmarks/all_stages_page.py

Reads what `make all-stages` left in docs/results/all_stages/, and in docs/results/model/ the figures of the
recipe of the model that ships. The folds of both are the same cells, so that they are compared cell by cell.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from goals_page import RESULTS, folds_of, read, text

from cervicyte.evaluation.tables import comparison_table
from cervicyte.provenance import RESEARCH_USE_ONLY, write_text

HERE = RESULTS / "all_stages"
SHIPPED = RESULTS / "model"
ROWS = (  # title, key, in percent, decimals
    ("accuracy, five classes", "accuracy", True, 1),
    ("macro F1", "macro_f1", True, 1),
    ("AUC, abnormal against the rest", "abnormal_auc", False, 4),
    ("abnormal called normal", "abnormal_called_normal", True, 2),
    ("negative log-likelihood, calibrated", "negative_log_likelihood_after", False, 3),
    ("accuracy on the 90 % most certain", "accuracy_at_90_coverage", True, 1),
    ("mean size of a 95 % prediction set", "mean_set_size", False, 3),
)


def needed(path: Path) -> dict[str, Any]:
    """Return a JSON file's content.

    Raises:
        SystemExit: it is missing; the text says what makes it.
    """
    if (content := read(path)) is None:
        raise SystemExit(f"{path}: is missing; run `make all-stages` first.")
    return content


def page() -> str:
    """Return the page from the files."""
    ours, theirs = (
        needed(folder / "cross_validation.json") for folder in (SHIPPED / "group", HERE / "folds")
    )
    rows = [
        f"| {title} | {text(ours['figures'][key], percent, decimals)} "
        f"| {text(theirs['figures'][key], percent, decimals)} |"
        for title, key, percent, decimals in ROWS
    ]
    spoilt = [needed(folder / "robustness" / "robustness.json") for folder in (SHIPPED, HERE)]
    rows.append(
        "| mean accuracy on spoilt images, of the clean one | "
        + " | ".join(text(one["share_of_clean"]) for one in spoilt)
        + " |"
    )
    foreign = [needed(folder / "elsewhere" / "elsewhere.json") for folder in (SHIPPED, HERE)]
    for name, key in (("Herlev, AUC", "all"), ("Herlev, AUC, without columnar cells", "squamous")):
        stages = [("never trained on", [one["figures"] for one in foreign])]
        stages += [
            (f"adapted to {pair[0]['images']} images", [one["figures"] for one in pair])
            for pair in zip(*(one["adapted"] for one in foreign), strict=True)
        ]
        for stage, figures in stages:
            found = " | ".join(text(one[f"abnormal_auc_{key}"], False, 3) for one in figures)
            rows.append(f"| {name}, {stage} | {found} |")
    tables = {"shipped": folds_of(SHIPPED / "group"), "all stages": folds_of(HERE / "folds")}
    compared = comparison_table(tables).iloc[1]
    value, low, high = (100 * compared[f"accuracy_difference{end}"] for end in ("", "_low", "_high"))
    origins = "\n".join(
        f"- {name}: `{one['provenance']['command']}`, commit `{one['provenance']['commit']}`"
        for name, one in (
            ("folds", theirs),
            ("spoilt images", spoilt[1]),
            ("another laboratory", foreign[1]),
        )
    )
    minutes = ", ".join(f"{one:.1f}" for one in theirs["training_minutes"])
    return f"""# Every stage trained

{RESEARCH_USE_ONLY}

Written by `python benchmarks/all_stages_page.py` from the files beside it, which `make all-stages` writes; \
no figure was typed.

The weights that ship were trained on two processor cores, which is why the stem and the first stage keep \
ImageNet's weights and ten epochs have to do. `recipes/all-stages.yaml` trains every stage for twenty. Five \
folds by group of either, one training a fold, the same {ours["cells"]:,} cells:

| | recipe of the model that ships | every stage, twenty epochs |
| --- | --- | --- |
{chr(10).join(rows)}

Accuracy, paired over the same cells: {value:+.1f} points [{low:+.1f}, {high:+.1f}], p = \
{compared["p_value"]:.3f}. In brackets: 95 % intervals from a bootstrap over groups. One training a fold: \
another seed would give other figures, which the intervals do not hold.

{all_cells()}**What follows.** What training more brings at home lies within the draw of cells, and by the \
folds' networks another laboratory's cells are told no better: the weights that ship stayed. Wider \
augmentation, mixup and an even learning rate were tried as well, on inner groups: [the \
ablation](ablation/ablation.md), in which the share of images as of other laboratories was chosen.

## How it came about

Training took {minutes} minutes for the folds, all five at once on one {gpu_name()}.

{origins}

At that commit `recipes/shipped.yaml` held what is now `recipes/all-stages.yaml`. Split by cell, and with \
images of no cell, it was **not run**: `make all-stages` does not do so either.
"""


def all_cells() -> str:
    """Return what the network of this recipe that was trained on all cells says of another laboratory's."""
    # Both as they were before small crops stayed small, since theirs was not measured again.
    ours = read(SHIPPED / "elsewhere_shipped_no_framing" / "elsewhere.json")
    theirs = read(HERE / "elsewhere_all_cells" / "elsewhere.json")
    if ours is None or theirs is None:
        return ""
    said = []
    for whose, one in (("the weights that ship", ours), ("those of every stage", theirs)):
        figures = [one["figures"], *(adapted["figures"] for adapted in one["adapted"])]
        aucs = ", ".join(f"{each['abnormal_auc_all']['value']:.3f}" for each in figures)
        said.append(
            f"{whose} {aucs}, with {100 * one['doubt']['flagged']:.0f} % of the cells flagged at first"
        )
    counts = " and ".join(str(one["images"]) for one in theirs["adapted"])
    return (
        "Trained on all cells, one network each, the AUC on Herlev, never trained on and adapted to "
        f"{counts} images: {'; '.join(said)} ([table](elsewhere_all_cells/elsewhere.md)). Folds and networks "
        "differ among themselves by more than the recipes do. All figures on Herlev here are from before "
        "[small crops stayed small](../../elsewhere.md#small-crops-stay-small), which "
        "concerns either recipe.\n\n"
    )


def gpu_name() -> str:
    """Return the GPU that was at hand, which its benchmark names."""
    speed = read(RESULTS.parents[1] / "benchmarks" / "results" / "gpu_speed.json")
    return str(speed["device"]) if speed else "GPU"


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    write_text(HERE / "README.md", page())


if __name__ == "__main__":
    main()
