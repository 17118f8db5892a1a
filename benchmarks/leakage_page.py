"""Write docs/leakage.md: what leaks in SIPaKMeD, how it was found, what it is worth. No figure is typed.

    python benchmarks/leakage_page.py --data ../shared/data/sipakmed

Takes what `cervicyte inspect`, `cervicyte optimism` and `twin_quality.py` wrote under docs/results/, and
counts anew in how many test cells' training part a twin stands, under the three kinds of split.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from cervicyte.datasets.groups import sipakmed_field_groups
from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.splits import By, make_split
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_json, write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
SPLITS: tuple[By, ...] = ("cell", "field", "group")
FOLDS = 5
OTHER_FIELDS = "twins"  # the finding of inspect: pairs of different field numbers
COMMAND = "python benchmarks/leakage_page.py --data ../shared/data/sipakmed"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def finding(inspection: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a finding of an inspection by its kind; an empty one if it was not made."""
    found = [one for one in inspection["findings"] if one["kind"] == kind]
    return found[0] if found else {"text": "", "paths": [], "pairs": []}


def exposed(data: Path, pairs: list[list[str]], seed: int) -> dict[str, dict[str, float]]:
    """Return how many test cells have a twin of another field number in train or validation, by split."""
    twins = defaultdict(set)
    for one, other in pairs:
        twins[one].add(other)
        twins[other].add(one)
    dataset = read_dataset(data)
    found: dict[str, dict[str, float]] = {}
    for by in SPLITS:
        beside = tested = 0
        for fold in range(FOLDS):
            split = make_split(dataset, by=by, folds=FOLDS, fold=fold, seed=seed)
            test = set(split.loc[split["part"] == "test", "path"])
            tested += len(test)
            beside += sum(bool(twins[name] - test) for name in test)
        found[by] = {"tested": tested, "beside_a_twin": beside, "share": beside / tested}
    return found


def rate(figure: dict[str, Any], signed: bool = False) -> str:
    form = "+.1f" if signed else ".1f"
    value, low, high = (format(100 * figure[key], form).replace("-", "−") for key in ("value", "low", "high"))  # noqa: RUF001
    return f"{value} [{low}, {high}]"


def counted(figure: dict[str, Any]) -> str:
    low, high = figure["interval_of_counts"]
    return f"{figure['right']} of {figure['of']} [{100 * low:.0f}, {100 * high:.0f}]"


def worth_of(optimism: dict[str, Any]) -> str:
    """Return the table of figures under each split, and what splitting otherwise than by group adds."""
    rows = "".join(
        f"| {title} | "
        + " | ".join(
            rate(optimism["figures"][name][column], signed="-" in column)
            for column in (*SPLITS, "cell - group", "field - group")
        )
        + " |\n"
        for name, title in (
            ("accuracy", "accuracy"),
            ("macro_f1", "macro F1"),
            ("recall, Koilocytotic", "recall, koilocytotic"),
            ("abnormal_sensitivity_at_95_specificity", "abnormal: sensitivity at 95 % specificity"),
        )
    )
    return f"""| % | by cell | by field | by group | cell less group | field less group |
| --- | --- | --- | --- | --- | --- |
{rows}"""


def finetuned(optimism: dict[str, Any] | None) -> str:
    """Return what fine-tuning gains by leaking, or that it was not run."""
    command = "cervicyte optimism ../shared/data/sipakmed --recipe recipes/quick.yaml --backbone FILE"
    if optimism is None:
        return f"""That table is **not run** (`make optimism-finetuned`, 15 trainings): `{command}`."""
    recipe = optimism["recipe"]
    differences = (optimism["figures"]["accuracy"][f"{by} - group"] for by in ("cell", "field"))
    by_cell, by_field = (
        rate(one, signed=True) + ("" if one["low"] > 0 else " (not told apart from nothing)")
        for one in differences
    )
    return f"""[The same with fine-tuned networks](results/optimism_finetuned/optimism.md): ResNet-50
{"without" if recipe["placement"] == "none" else "with"} CBAM, all after stage {recipe["frozen_stages"]}
trained for {recipe["epochs"]} epochs at
{optimism["model"]["image_size"]} pixels, which is less than a good network gets, seed
{", ".join(map(str, optimism["seeds"]))}:

{worth_of(optimism)}
Here the split by cell flatters accuracy by {by_cell} points, one by field
number by {by_field}. One training a fold and split: what another seed
would change is not in the intervals, and may be as large. A longer training at full size was not run under
all three splits."""


def page(
    inspection: dict[str, Any],
    quality: dict[str, Any],
    optimism: dict[str, Any],
    of_networks: dict[str, Any] | None,
    exposure: Any,
) -> str:
    table = sipakmed_field_groups()
    sizes = Counter(table.values())
    classes_of = defaultdict(set)
    for (label, _), group in table.items():
        classes_of[group].add(label)
    mixed = sum(len(classes) > 1 for classes in classes_of.values())
    across, conflicts = finding(inspection, OTHER_FIELDS), finding(inspection, "label-conflicts")
    twinned = {name for pair in across["pairs"] for name in pair}
    beyond = quality["table"]["fields_joined_beyond_the_table"]
    accuracy = optimism["figures"]["accuracy"]
    test = quality["labelled"]["test"]
    kinds = "".join(
        f"| by {by} | {exposure[by]['beside_a_twin']:,} of {exposure[by]['tested']:,} | "
        f"{100 * exposure[by]['share']:.1f} % |\n"
        for by in SPLITS
    )
    company = "".join(
        f"| by {row['split']} | {row['company']} | {row['tests']:,} | {rate(row['accuracy'])} | "
        f"{rate(row['accuracy_by_group'])} | {rate(row['difference'], signed=True)} |\n"
        for row in optimism["company_in_training"]
    )
    labelled = "".join(
        f"| {title} | {counted(test[key]['precision'])} | {counted(test[key]['recall'])} |\n"
        for title, key in (
            ("different field numbers, as labelled", "different_fields"),
            ("different field numbers, labels corrected", "different_fields_corrected"),
            ("all pairs, labels corrected", "corrected"),
        )
    )
    drawn = quality["synthetic"]["photographs_known"]
    again = drawn["recall_of_cells_photographed_again"]
    seeds = ", ".join(map(str, optimism["seeds"]))
    by_cell, by_field = (rate(accuracy[f"{by} - group"], signed=True) for by in ("cell", "field"))
    return f"""# What leaks in SIPaKMeD, how it was found, and what it is worth

**{RESEARCH_USE_ONLY}**

Written by `{COMMAND}` from the files that it names; no figure here was typed. In brackets: 95 %
intervals.

## What leaks

SIPaKMeD's {len(table):,} fields are not {len(table):,} places on the glass. Many places were photographed
again, shifted, refocused or at another exposure, under another field number and now and then under another
class. The table of field groups that ships with Cervicyte
([provenance](../src/cervicyte/datasets/sipakmed_field_groups.md)) joins the {len(table):,} fields into
{len(sizes):,} independent groups; {mixed} of them hold two classes, and the largest joins
{max(sizes.values())} fields.

In the {inspection["cells"]:,} of 4,049 cells that were at hand, `cervicyte inspect` finds
{len(across["pairs"]):,} pairs of crops that show the same place under *different* field numbers:
{len(twinned):,} cells ({100 * len(twinned) / inspection["cells"]:.0f} %) have such a twin.
{len(conflicts["pairs"])} pairs show the very same cell under two labels.

So a split by cell, and just as well a split by field number, puts twins on both sides. Over five folds
(seed {exposure["seed"]}), test cells with a twin of another field number in training:

| split | cells | share |
| --- | ---: | ---: |
{kinds}
What is left by group are pairs that the table lacks and crops show; a split of the `groups.csv` that
`inspect` writes (as a manifest's `group` column) leaves none of them.

## How it was found

`cervicyte inspect` compares every crop with every other: candidates by small band-passed patches over shifts
and turns and by keypoints, each verified by alignment and normalised cross-correlation in two bands
([details](datasets.md#inspection)). How well that works was measured with the shipped table switched off, on
pairs from a search that shares nothing with it (regions of a frozen ResNet-50, every pair of cells, drawn by
rank), judged by eye without names or scores by one reader, a language model. The half that had taken no part
in tuning was opened when the finder was finished, and read once more, by the same finder, when one label had
been corrected. Correct pairs of all, with Wilson's interval:

| {test["pairs"]} pairs of the test half, {test["twins"]} labelled twins | precision | recall |
| --- | --- | --- |
{labelled}
Labels that proved wrong after the half had been opened: {len(test["corrections"])}, published with the
reason. So few pairs cannot show a precision of 98 % by themselves: that needs the second check, cells drawn
by the project and photographed twice, where recall of cells photographed again is
{counted(again)} and precision {counted(drawn["precision"])} ([all figures](results/twins/quality.md)).

**What the table has that crops alone do not show.** Of the {quality["table"]["joins_of_the_table"]} joins of
the table between the fields at hand, crops alone show {quality["table"]["joins_that_crops_show"]}. The others
are fields that overlap where no cell was cut out; to see those, whole fields must be matched, as `inspect`
does where they lie beside the crops (here they did not). The other way round, crops show {len(beyond)} joins
that the table lacks: {"; ".join(" and ".join(pair) for pair in beyond)}. `inspect` adds them to the groups.

## What it is worth

The same recipe under three splits, every cell tested once under each
([all figures](results/optimism_frozen/optimism.md)): {optimism["model"]["kind"]},
{optimism["cells"]:,} cells, {optimism["folds"]} folds, seeds {seeds}; paired over the same draws of groups,
in percentage points.

{worth_of(optimism)}
The usual split by cell flatters accuracy by {by_cell} points; one by field number by {by_field}, although it
is often called honest. The gain is where the company is: cells without another cell of their group in
training gain nothing.

| split | test cells with | tests | accuracy, % | the same cells, split by group | difference |
| --- | --- | ---: | --- | --- | --- |
{company}
This is a linear classifier on frozen features, which cannot learn a cell by heart. A fine-tuned network can.
{finetuned(of_networks)}

## What nobody can know from this data

There are no patient numbers. Independent groups are not independent patients, slides or laboratories; figures
by group are an upper bound for cells of new patients. Fields that overlap where neither a crop nor the table
shows it would still leak.

## Do it again

    cervicyte inspect SIPAKMED --label-errors --shortcuts     # make inspection
    python benchmarks/twin_quality.py --data SIPAKMED --half tuning
    cervicyte optimism SIPAKMED --frozen --seeds 0,1,2,3,4    # make optimism
    cervicyte optimism SIPAKMED --recipe recipes/quick.yaml   # make optimism-finetuned
    cervicyte split SIPAKMED --by group --folds 5             # a split that does not leak, for any program

Inspection: commit `{inspection["provenance"]["commit"]}`; test half: `{test["provenance"]["commit"]}`;
optimism: `{optimism["provenance"]["commit"]}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results = arguments.docs / "results"
    inspection = read(results / "inspection" / "sipakmed.json")
    exposure: dict[str, Any] = exposed(
        arguments.data, finding(inspection, OTHER_FIELDS)["pairs"], arguments.seed
    )
    exposure |= {"seed": arguments.seed, **provenance(COMMAND)}
    write_json(results / "inspection" / "exposed_test_cells.json", exposure)
    quality = read(results / "twins" / "quality.json")
    optimism = read(results / "optimism_frozen" / "optimism.json")
    of_networks = results / "optimism_finetuned" / "optimism.json"
    text = page(inspection, quality, optimism, read(of_networks) if of_networks.is_file() else None, exposure)
    write_text(arguments.docs / "leakage.md", text)


if __name__ == "__main__":
    main()
