"""An ablation compares variants over the same inner cells, and never reads the test part."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROJECT, draw_two_classes
from sklearn.metrics import accuracy_score, log_loss
from torchvision.models import resnet50

from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.splits import make_split
from cervicyte.errors import RecipeError, RunFolderError, UsageError
from cervicyte.evaluation import ablation
from cervicyte.evaluation.ablation import JUDGED_NAME, ablate, closed_test_part, judged_cells, read_plan
from cervicyte.evaluation.predictions import logits_of, softmax
from cervicyte.evaluation.run import labelled_images
from cervicyte.progress import Progress
from cervicyte.training.loop import MODEL_NAME
from cervicyte.training.soup import soup

PLAN = """
base:
  backbone: none
  preprocessing: {image_size: 32, canvas_size: 32}
  epochs: 1
  batch_size: 8
  frozen_stages: 4
  ema_decay: 0
variants:
  without CBAM: {placement: none}
  slower: {learning_rate: 0.00001}
outer_folds: 3
inner_folds: 2
judged: [0, 1]
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two classes, nine fields each, two cells a field."""
    return draw_two_classes(tmp_path_factory.mktemp("data") / "cells", 9, 2)


def plan_of(folder, text=PLAN):
    path = folder / "plan.yaml"
    path.write_text(text)
    return read_plan(path)


@pytest.fixture(scope="module")
def done(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation")
    return out, ablate(cells, out / "a", plan_of(out), command="a command")


def test_the_test_part_of_the_outer_split_is_never_read(cells, done, monkeypatch, tmp_path):
    outer = make_split(read_dataset(cells), folds=3)
    closed = set(outer.loc[outer["part"] == "test", "path"])
    read: list[str] = []
    real = ablation.labelled_images

    def noted(cells, *rest):
        read.extend(cell.name for cell in cells)
        return real(cells, *rest)

    monkeypatch.setattr(ablation, "labelled_images", noted)
    ablate(cells, tmp_path / "b", plan_of(tmp_path))
    assert closed
    assert not closed & set(read)
    assert set(read) == set(outer["path"]) - closed


def test_every_cell_that_is_not_test_is_judged_once_by_a_network_that_saw_no_cell_of_its_group(cells, done):
    out, _ = done
    plan = plan_of(out)
    rest, _ = closed_test_part(read_dataset(cells), plan)
    table = judged_cells(out / "a" / "without_cbam", plan.judged)
    assert table is not None
    assert sorted(table["path"]) == sorted(cell.name for cell in rest.cells)
    for fold in plan.judged:
        part = pd.read_csv(out / "a" / "base" / f"inner_{fold}" / "judged_predictions.csv")
        others = set(table["path"]) - set(part["path"])
        groups = {cell.name: cell.group for cell in rest.cells}
        assert not {groups[name] for name in part["path"]} & {groups[name] for name in others}


def test_figures_and_differences_are_those_of_scikit_learn(done):
    out, content = done
    tables = {name: judged_cells(out / "a" / name, (0, 1)) for name in ("base", "slower")}

    def by_hand(table):
        accuracy = accuracy_score(table["true_class"], table["predicted_class"])
        return accuracy, log_loss(table["true_class"], table[["p_dark", "p_light"]], labels=["dark", "light"])

    (a, loss), (b, other_loss) = by_hand(tables["base"]), by_hand(tables["slower"])
    row = next(one for one in content["variants"] if one["name"] == "slower")
    assert row["figures"]["accuracy"]["value"] == pytest.approx(b)
    assert row["figures"]["negative_log_likelihood"]["value"] == pytest.approx(other_loss)
    assert row["differences"]["accuracy"]["value"] == pytest.approx(b - a)
    assert row["differences"]["negative_log_likelihood"]["value"] == pytest.approx(other_loss - loss)
    assert row["changes"] == {"learning_rate": 0.00001}


def test_the_last_epoch_is_judged_whatever_the_plan_says(tmp_path):
    plan = plan_of(tmp_path, PLAN.replace("ema_decay: 0", "ema_decay: 0\n  keep: best"))
    assert {recipe.keep for recipe in plan.recipes.values()} == {"last"}


def test_an_ablation_goes_on_and_says_what_was_not_run(cells, tmp_path):
    class Stop(Progress):
        def say(self, text: str) -> None:
            if text.startswith("slower"):
                raise KeyboardInterrupt

    plan = plan_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        ablate(cells, tmp_path / "c", plan, progress=Stop())
    halfway = json.loads((tmp_path / "c" / "ablation.json").read_text())
    assert [one["run"] for one in halfway["variants"]] == [True, True, False]
    page = (tmp_path / "c" / "ablation.md").read_text()
    assert "| slower | not run: `--only 'slower'` |" in page
    assert "by `cervicyte ablate … --only" not in page
    assert "with the option in its row" in page
    base = tmp_path / "c" / "base" / "inner_0" / "judged_predictions.csv"
    before = base.stat().st_mtime_ns
    content = ablate(cells, tmp_path / "c", plan)
    assert all(one["run"] for one in content["variants"])
    assert base.stat().st_mtime_ns == before
    assert not list((tmp_path / "c").rglob("*.pth"))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"minutes": "1", "parameters": 1, "commit": "a"}'])
def test_a_damaged_note_of_a_training_is_named(done, cells, tmp_path, content):
    shutil.copytree(done[0] / "a", tmp_path / "a")
    (tmp_path / "a" / "slower" / "inner_1" / "about.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"inner_1/about\.json: is damaged.* done anew"):
        ablate(cells, tmp_path / "a", plan_of(tmp_path))


def test_trainings_of_another_recipe_are_not_taken_for_this_plans(cells, done, tmp_path):
    out, _ = done
    other = plan_of(tmp_path, PLAN.replace("batch_size: 8", "batch_size: 4"))
    with pytest.raises(RunFolderError, match="another recipe"):
        ablate(cells, out / "a", other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "a plan has"),
        ("base: {}", "a plan has"),
        ("variants: {a: {placment: none}}", "variant a: .*did you mean placement"),
        ("variants: {}\nfolds: 3", "there is no key folds"),
        ("variants: {a b: {}, a-b: {}}", "differ in signs alone"),
        ("variants: {1: {}, '1': {}}", "differ in signs alone or not at all"),
        ("variants: {base: {epochs: 1}}", "differ in signs alone or not at all"),
        ("variants: {}\n7: x\nz: y", "there is no key 7"),
        ("{", "cannot be read"),
        ("variants: {}\nseed: 2026-13-01", "cannot be read"),
        ("variants: {a: 3}", "variant a = 3 will not do: give `key: value` lines"),
        ("variants: {a: [1]}", r"variant a = \[1\] will not do"),
        ("variants: {a: false}", "variant a = False will not do"),
        ("variants: {}\nbase: 3", "base = 3 will not do"),
        ("variants: {}\njudged: 3", "judged = 3 will not do: give a list of whole numbers"),
        ("variants: {}\njudged: null", "judged = None will not do"),
        ("variants: {}\njudged: [[1]]", "judged = .* will not do"),
        ("variants: {}\njudged: [true]", "judged = .* will not do"),
        ("variants: {}\njudged: []", "judged: give inner folds from 0 to 3, one or more"),
        ("variants: {}\njudged: [9]", "judged: give inner folds from 0 to 3"),
        ("variants: {}\njudged: [0, 0]", "judged: .* each once"),
        ("variants: {}\ninner_folds: x", "inner_folds = 'x' will not do: give a whole number"),
        ("variants: {}\ninner_folds: 1\njudged: [0]", "inner_folds = 1 will not do: give 2 or more"),
        ("variants: {}\nouter_folds: 2.5", "outer_folds = 2.5 will not do"),
        ("variants: {}\nouter_folds: '5'", "outer_folds = '5' will not do"),
        ("variants: {}\nouter_fold: 5", "outer_fold: give one from 0 to 4"),
        ("variants: {}\nseed: true", "seed = True will not do"),
    ],
)
def test_a_plan_that_will_not_do_is_refused_by_name(tmp_path, text, said):
    with pytest.raises(RecipeError, match=f"^{re.escape(str(tmp_path / 'plan.yaml'))}.*{said}"):
        plan_of(tmp_path, text)


def test_the_shipped_plans_are_valid():
    paths = sorted((PROJECT / "recipes" / "plans").glob("*.yaml"))
    assert paths
    for path in paths:
        assert len(read_plan(path).recipes) > 1


def test_a_variant_alone_is_trained_and_judged_elsewhere_and_an_unknown_one_refused(tmp_path):
    cells, foreign = (
        draw_two_classes(tmp_path / name, 6, 2, names)
        for name, names in (
            ("home", ("Parabasal", "Koilocytotic")),
            ("away", ("normal_superficiel", "light_dysplastic")),
        )
    )
    plan = plan_of(tmp_path)
    out = tmp_path / "d"
    content = ablate(cells, out, plan, only=["base", "slower"], elsewhere=foreign, keep_models=True)
    rows = {one["name"]: one for one in content["variants"]}
    assert [rows[name]["run"] for name in ("base", "without CBAM", "slower")] == [True, False, True]
    assert rows["slower"]["elsewhere"]["cells"] == 24
    table = pd.read_csv(out / "slower" / "inner_0" / "elsewhere_predictions.csv")
    assert len(table) == 24
    assert (out / "slower" / "inner_0" / "best_model.pth").is_file()
    assert rows["base"]["elsewhere"]["differences"]["abnormal_auc_all"]["value"] == 0
    page = (out / "ablation.md").read_text()
    assert "Another laboratory's cells" in page
    with pytest.raises(UsageError, match="faster: is no variant"):
        ablate(cells, out, plan, only=["faster"])


def test_flips_ask_the_same_networks_for_eight_views_and_train_none(cells, tmp_path, monkeypatch):
    text = PLAN.replace("  slower: {learning_rate: 0.00001}", "  flips: {test_time_flips: true}")
    trained = []
    real = ablation.train

    def noted(recipe, *rest, **options):
        trained.append(recipe)
        return real(recipe, *rest, **options)

    monkeypatch.setattr(ablation, "train", noted)
    plan = plan_of(tmp_path, text)
    ablate(cells, tmp_path / "a", plan, only=["base"], keep_models=True)
    assert len(trained) == 2
    content = ablate(cells, tmp_path / "a", plan, only=["flips"], keep_models=True)
    assert len(trained) == 2
    plain, flipped = (judged_cells(tmp_path / "a" / name, plan.judged) for name in ("base", "flips"))
    assert plain is not None
    assert flipped is not None
    assert list(plain["path"]) == list(flipped["path"])
    assert (plain["confidence"] - flipped["confidence"]).abs().max() > 1e-6
    (row,) = (one for one in content["variants"] if one["name"] == "flips")
    assert row["run"]
    # Without networks to take over, they are trained.
    ablate(cells, tmp_path / "b", plan, only=["base", "flips"])
    assert len(trained) == 6


def test_a_soup_is_judged_as_the_mean_of_its_seeds_networks(cells, tmp_path, monkeypatch):
    backbone = tmp_path / "backbone.pth"
    torch.manual_seed(5)
    torch.save(resnet50().state_dict(), backbone)
    text = PLAN.replace("backbone: none", f"backbone: {backbone}").replace(
        "  slower: {learning_rate: 0.00001}", "  mixed: {soup: 2}"
    )
    plan = plan_of(tmp_path, text)
    assert plan.recipes["mixed"] == plan.recipes["base"]
    seeds = []
    real = ablation.train

    def noted(recipe, *rest, **options):
        seeds.append(recipe.seed)
        return real(recipe, *rest, **options)

    monkeypatch.setattr(ablation, "train", noted)
    content = ablate(cells, tmp_path / "a", plan, only=["base", "mixed"], keep_models=True)
    assert seeds == [0, 0, 0, 1, 0, 1]
    (row,) = (one for one in content["variants"] if one["name"] == "mixed")
    assert row["run"]
    base, mixed = (judged_cells(tmp_path / "a" / name, plan.judged) for name in ("base", "mixed"))
    assert base is not None
    assert mixed is not None
    assert (base["confidence"] - mixed["confidence"]).abs().max() > 1e-6
    folder = tmp_path / "a" / "mixed" / "inner_0"
    mean = soup([folder / f"seed_{seed}" / MODEL_NAME for seed in (0, 1)])
    judged = pd.read_csv(folder / JUDGED_NAME)
    listed = {cell.name: cell for cell in read_dataset(cells).cells}
    images = labelled_images([listed[path] for path in judged["path"]], mean.class_names, mean.preprocessing)
    expected = softmax(logits_of(mean, images.images)).max(1)
    np.testing.assert_allclose(judged["confidence"], expected, atol=1e-5)


def test_a_soup_that_cannot_be_made_is_refused(tmp_path):
    for change, sentence in (
        ("{soup: 1}", "mixed: soup is a number of seeds, 2 or more"),
        ("{soup: null}", "mixed: soup is a number of seeds, 2 or more"),
        ("{soup: many}", "mixed: soup is a number of seeds, 2 or more"),
        ("{soup: 3}", "mixed: a soup is of networks fine-tuned from the same weights; name these"),
    ):
        text = PLAN.replace("  slower: {learning_rate: 0.00001}", f"  mixed: {change}")
        with pytest.raises(RecipeError, match=sentence):
            plan_of(tmp_path, text)
