"""A checklist says what the run folder says, and leaves to the author what it does not."""

from __future__ import annotations

import functools
import json
import re
import shutil

import pytest
from conftest import PROJECT
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.errors import RunFolderError
from cervicyte.evaluation.checklists import (
    AUTHOR_ONLY,
    draft,
    facts_of_run,
    methods_paragraph,
    pooled_metrics,
    read_checklists,
    references,
)
from cervicyte.evaluation.run import read_metrics

RESULTS = PROJECT / "docs" / "results"
METRICS = json.loads((RESULTS / "sipakmed" / "metrics.json").read_text())
CHECKLISTS = read_checklists()


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(RESULTS / "sipakmed" / "metrics.json", folder)
    return folder


def test_the_checklists_have_the_items_of_their_sources():
    assert [item.item for item in CHECKLISTS["claim"].items] == [str(number) for number in range(1, 45)]
    tripod = [item.item for item in CHECKLISTS["tripod-ai"].items]
    assert len(tripod) == 52
    assert {item.rstrip("abcdefg") for item in tripod} == {str(number) for number in range(1, 28)}
    assert tripod[:6] == ["1", "2", "3a", "3b", "3c", "4"]
    assert tripod[-3:] == ["27a", "27b", "27c"]


@pytest.mark.parametrize("name", CHECKLISTS)
def test_every_item_can_be_answered_by_the_run_or_by_the_author(name):
    known = facts_of_run(METRICS, {"calibration": {"temperature": 1.2, "cells": 10, "groups": 5}})
    for item in CHECKLISTS[name].items:
        assert set(item.facts) <= set(known), item.item
        assert item.facts or item.author, item.item


@pytest.mark.parametrize("name", CHECKLISTS)
def test_every_item_stands_in_the_draft_once(name):
    text = draft(METRICS, CHECKLISTS[name])
    for item in CHECKLISTS[name].items:
        answered = text.count(f"**{item.item}. {item.text}.**")
        left = text.count(f"| {item.item} | {item.section} |")
        assert answered + left == 1, item.item


def test_the_figures_of_a_draft_are_those_of_the_run():
    text = draft(METRICS, CHECKLISTS["claim"])
    accuracy = METRICS["overall"]["accuracy"]
    assert f"Accuracy {100 * accuracy['value']:.1f} % [{100 * accuracy['low']:.1f}, " in text
    assert "2,414 cells in 444 groups" in text
    assert "16 of 689 cells were called wrongly; most: Koilocytotic called Dyskeratotic 7" in text
    changed = json.loads(json.dumps(METRICS))
    changed["overall"]["accuracy"] = {"value": 0.1234, "low": 0.1, "high": 0.2}
    assert "Accuracy 12.3 % [10.0, 20.0]" in draft(changed, CHECKLISTS["claim"])


def test_what_the_run_does_not_know_is_left_to_the_author():
    text = draft(METRICS, CHECKLISTS["claim"])
    author = text[text.index("## What only the author can say") :]
    assert "| 44 | Other information |" in author  # funding
    assert "| 34 | Methods: evaluation |" in author  # registration
    assert AUTHOR_ONLY in text
    assert "Independent groups are not independent patients" in text


def test_a_leak_stands_where_partitions_are_described():
    leaking = json.loads(json.dumps(METRICS))
    leaking["context"]["leak"] = "Groups stand on both sides: the figures flatter."
    assert "level at which partitions are disjoint.** Groups stand on both sides" in draft(
        leaking, CHECKLISTS["claim"]
    )


def test_an_evaluation_of_a_loaded_model_claims_nothing_of_its_training():
    context = {
        key: METRICS["context"][key] for key in ("title", "data", "layout", "caveats", "command", "model")
    }
    facts = facts_of_run({**METRICS, "context": context})
    assert not {"training", "selection", "external_test", "internal_test", "partition"} & set(facts)


def test_the_bibtex_cites_what_was_used_and_only_that():
    fine_tuned = draft(METRICS, CHECKLISTS["claim"])
    assert {"plissiti2018sipakmed", "he2016resnet", "woo2018cbam", "tejani2024claim"} <= set(
        re.findall(r"^@\w+\{(\w+),$", fine_tuned, re.MULTILINE)
    )
    probe = json.loads((RESULTS / "herlev_probe" / "metrics.json").read_text())
    text = draft(probe, CHECKLISTS["tripod-ai"])
    assert "woo2018cbam" not in text
    assert "loshchilov2019adamw" not in text
    assert {"jantzen2005herlev", "collins2024tripodai"} <= set(re.findall(r"\{(\w+),$", text, re.MULTILINE))


def test_every_reference_is_whole():
    for key, entry in references().items():
        assert entry.count("{") == entry.count("}"), key
        assert all(field in entry for field in ("title", "author", "year")), key


def test_the_command_writes_a_draft_and_replaces_none_unasked(run):
    def report(*options: str):
        return CliRunner().invoke(app, ["report", str(run), *options])

    told = report("--checklist", "claim")
    assert told.exit_code == 0, told.output
    path = run / "checklist_claim.md"
    assert str(path) in told.output
    path.write_text("what the author added")
    refused = report("--checklist", "claim")
    assert refused.exit_code == 2
    assert str(path) in refused.output
    assert path.read_text() == "what the author added"
    assert report("--checklist", "claim", "--force").exit_code == 0
    assert "For research use only" in path.read_text()


def test_bad_names_get_one_sentence(run, tmp_path):
    unknown = CliRunner().invoke(app, ["report", str(run), "--checklist", "stard"])
    assert unknown.exit_code == 2
    assert "claim, tripod-ai" in unknown.output


# --- a cross-validation ----------------------------------------------------------------------------

pooled = functools.cache(pooled_metrics)  # a bootstrap takes seconds
FOLDS = {name: RESULTS / name for name in ("model/group", "model/cell", "probe_cross_validation")}


def stated(folder):
    return json.loads((folder / "cross_validation.json").read_text())


@pytest.mark.parametrize("folder", FOLDS.values(), ids=FOLDS)
def test_the_pooled_figures_are_those_that_the_cross_validation_states(folder):
    found, figures = pooled(folder, 20), stated(folder)["figures"]
    for name in ("accuracy", "macro_f1"):
        assert found["overall"][name]["value"] == pytest.approx(figures[name]["value"])
    missed = found["roll_up"]["abnormal"]["called_normal"]
    assert missed["value"] == pytest.approx(figures["abnormal_called_normal"]["value"])
    assert found["provenance"] == stated(folder)["provenance"]  # of the folds, not of this moment


def test_the_pooled_intervals_are_those_that_the_cross_validation_states():
    found, figures = pooled(FOLDS["model/group"]), stated(FOLDS["model/group"])["figures"]
    for name in ("accuracy", "macro_f1"):
        for end in ("low", "high"):
            assert found["overall"][name][end] == pytest.approx(figures[name][end], abs=1e-9)


def test_the_draft_of_a_cross_validation_says_what_was_pooled():
    text = draft(pooled(FOLDS["model/group"]), CHECKLISTS["claim"])
    assert "3,445 cells in 627 groups, each tested once." in text
    assert "into 5 folds (seed 0). Each fold was the test part once" in text
    assert "Accuracy 95.4 % [94.0, 96.5]" in text
    assert "Accuracy of single folds: 93.8% to 97.2%" in text
    assert "24,214,989 parameters" in text
    assert "commit `29894470354e`" in text
    paragraph = text[text.index("## A methods paragraph") : text.index("## BibTeX")]
    assert "Accuracy 95.4 % [94.0, 96.5]" in paragraph
    assert "calibration error before 0.042 [0.038, 0.049], after 0.009" in paragraph
    by_cell = draft(pooled(FOLDS["model/cell"], 20), CHECKLISTS["claim"])
    assert "No group of cells" not in by_cell
    assert "level at which partitions are disjoint.** Leak by cell, allowed by name: 462 groups" in by_cell


def test_of_several_seeds_tests_are_counted_and_cells_are_cells():
    text = draft(pooled(FOLDS["probe_cross_validation"], 20), CHECKLISTS["tripod-ai"])
    assert "3,445 cells in 627 groups, each tested once with each of 3 seeds (0, 1, 2)." in text
    assert "tests of cells of abnormal classes (3 seeds)" in text
    assert "Standard deviation of the accuracy over seeds: 0.12%" in text
    assert "woo2018cbam" not in text


def test_the_draft_of_folds_whose_last_stage_learnt_says_from_which_network(tmp_path):
    source = FOLDS["model/group"]
    summary = json.loads((source / "cross_validation.json").read_text())
    summary["recipe"] |= {"classifier": "last_stage", "parent": "shipped"}
    summary["context"]["model"] |= {"kind": "fine-tuned last stage", "started_from": "cervicyte.safetensors"}
    (tmp_path / "cross_validation.json").write_text(json.dumps(summary))
    (tmp_path / "predictions.csv").write_bytes((source / "predictions.csv").read_bytes())
    facts = facts_of_run(pooled(tmp_path, 20))
    assert facts["initialisation"] == "From another model's weights, `cervicyte.safetensors`."
    assert facts["technology"].startswith("Deep learning")


def test_the_command_takes_the_folder_of_a_cross_validation(tmp_path):
    shutil.copytree(FOLDS["model/group"], tmp_path / "folds")
    told = CliRunner().invoke(app, ["report", str(tmp_path / "folds"), "--checklist", "tripod-ai"])
    assert told.exit_code == 0, told.output
    assert "Accuracy 95.4 %" in (tmp_path / "folds" / "checklist_tripod-ai.md").read_text()


def test_a_cross_validation_without_its_predictions_gets_one_sentence(tmp_path):
    shutil.copy(FOLDS["model/group"] / "cross_validation.json", tmp_path)
    told = CliRunner().invoke(app, ["report", str(tmp_path), "--checklist", "claim"])
    assert told.exit_code == 2
    assert "predictions.csv: no such file" in " ".join(told.output.split())


NOT_METRICS = ("{", "[1, 2]", "5", "null", "{}", '{"context": {}}', "\xff")


@pytest.mark.parametrize("content", NOT_METRICS)
def test_figures_of_another_shape_are_refused_by_name(tmp_path, content):
    for name in ("metrics.json", "cross_validation.json"):
        (tmp_path / name).write_text(content, encoding="latin-1")
        told = CliRunner().invoke(app, ["report", str(tmp_path), "--checklist", "claim"])
        assert told.exit_code == 2, told.exception
        assert f"{name}: is damaged" in told.output.replace("\n", "")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("context", "seeds", []),
        ("context", "folds", "5"),
        ("context", "model", None),
        ("figures", "accuracy", {}),
        ("figures", "macro_f1", 0.9),
        ("recipe", "epochs", "many"),
        ("provenance", "commit", None),
    ],
)
def test_a_summary_that_lacks_what_is_read_of_it_is_refused_by_name(tmp_path, section, key, value):
    summary = stated(FOLDS["model/group"])
    summary[section][key] = value
    (tmp_path / "cross_validation.json").write_text(json.dumps(summary))
    with pytest.raises(RunFolderError, match=r"cross_validation\.json: .*damaged.*; cross-validate anew"):
        pooled_metrics(tmp_path)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("path,group\n1,2\n", "is not a table of predictions"),
        (
            "seed,fold,path,group,true_class,predicted_class,confidence,p_a\n0,0,x,g,a,a,1,1\n",
            "other classes",
        ),
    ],
)
def test_pooled_predictions_that_will_not_do_are_named(tmp_path, of, said):
    shutil.copy(FOLDS["model/group"] / "cross_validation.json", tmp_path)
    (tmp_path / "predictions.csv").write_text(of)
    with pytest.raises(RunFolderError, match=rf"predictions\.csv: .*{said}"):
        pooled_metrics(tmp_path)


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("metrics.json")), ids=lambda file: file.parent.name)
def test_the_figures_of_earlier_runs_are_still_read(file):
    assert read_metrics(file.parent) == json.loads(file.read_text())


# --- the paragraph ---------------------------------------------------------------------------------

ANSWERS = re.compile(  # how an answer begins that is no sentence
    r"(?:^|\. )(At random|By \w+;|AdamW|Backbone|From another|Frozen weights|Random changes|python|Train \d"
    r"|None:|ResNet-50 with|Logistic|\d+% percentile|\w+: [A-Z]\. )"
)


def test_the_methods_paragraph_is_made_of_sentences():
    last_stage, alone, unknown = (json.loads(json.dumps(METRICS)) for _ in range(3))
    last_stage["context"]["recipe"] |= {"classifier": "last_stage", "parent": "shipped"}
    alone["context"]["recipe"] |= {"classifier": "logistic", "parent": "shipped"}
    alone["context"]["model"]["started_from"] = {"file": "cervicyte.safetensors"}
    unknown["context"]["title"] = "Cells: test part"
    probe = json.loads((RESULTS / "herlev_probe" / "metrics.json").read_text())
    for metrics in (METRICS, pooled(FOLDS["model/group"], 20), probe, last_stage, alone, unknown):
        facts = facts_of_run(metrics)
        said = methods_paragraph(metrics, facts)
        assert ANSWERS.search(" ".join(facts.values()))
        assert not ANSWERS.search(said), ANSWERS.search(said)
        assert "  " not in said
        assert set(re.findall(r"\d+\.\d %", said)) == set(
            re.findall(r"\d+\.\d %", facts["performance"] + facts.get("diagnostic", ""))
        )
    said = methods_paragraph(METRICS, facts_of_run(METRICS))
    assert (
        "2,414 cells in 444 groups were used for training, 342 cells in 58 groups for validation, and" in said
    )
    assert "with 1 epoch of warm-up" in said
    assert "The model is a ResNet-50 with a CBAM attention module" in said
    assert "Cells were assigned at random, by group, stratified by class" in said


# --- what is not learnt by gradients ---------------------------------------------------------------


def test_a_classifier_fitted_alone_is_not_said_to_be_trained_by_gradients():
    context = json.loads(json.dumps(METRICS["context"]))
    context["recipe"] |= {"classifier": "logistic", "parent": "shipped"}
    context["model"]["started_from"] = {"file": "cervicyte.safetensors", "data": "sipakmed"}
    facts = facts_of_run({**METRICS, "context": context})
    assert "AdamW" not in facts["training"]
    assert "logistic regression" in facts["training"]
    assert facts["initialisation"] == (
        "From another model's weights, `cervicyte.safetensors`, which was trained on sipakmed."
    )


def test_a_last_stage_that_learnt_after_a_regression_is_not_said_to_be_trained_by_the_recipe():
    context = json.loads(json.dumps(METRICS["context"]))
    context["recipe"] |= {"classifier": "last_stage", "parent": "shipped", "epochs": 77}
    facts = facts_of_run({**METRICS, "context": context})
    assert "logistic regression" in facts["training"]
    assert "AdamW for 6 epochs" in facts["training"]
    assert "77" not in facts["training"]
    assert facts["augmentation"].startswith("Each training image was turned by 0, 90, 180 or 270 degrees")
    assert "highest validation accuracy" not in facts["selection"]
