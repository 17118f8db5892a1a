"""What a few labelled cells bring is measured on groups of which none has trained."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.errors import UsageError
from cervicyte.evaluation import learning_curve
from cervicyte.evaluation.learning_curve import Answers, draw_cells, means_with_intervals
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT
from cervicyte.provenance import RESEARCH_USE_ONLY

NAMES = ("Columnar", "Mild dysplasia", "Superficial squamous")


def cells_in_groups(seed=0, groups=40):
    """Three classes; groups of one to four cells, some of two classes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, groups)
    of_group = np.repeat(np.arange(groups).astype(str), sizes)
    truth = (of_group.astype(int) + (rng.random(len(of_group)) < 0.2)) % 3
    return truth, of_group


@pytest.mark.parametrize("seed", range(5))
def test_no_group_trains_and_is_tested_and_every_cell_is_tested_once_in_four_draws(seed):
    truth, groups = cells_in_groups(seed)
    tested = []
    for number in range(4):
        draw = draw_cells(truth, groups, (2, 5), seed, number, NAMES)
        for cells in draw.training.values():
            assert not set(groups[cells]) & set(groups[draw.tested])
        assert set(draw.training[2]) <= set(draw.training[5])
        assert (np.bincount(truth[draw.training[2]]) == 2).all()
        tested += draw.tested.tolist()
    assert sorted(tested) == list(range(len(truth)))


def test_a_class_that_has_fewer_cells_gives_all_that_do_not_test():
    truth, groups = cells_in_groups()
    draw = draw_cells(truth, groups, (1000,), 0, 0, NAMES)
    assert sorted([*draw.training[1000], *draw.tested]) == list(range(len(truth)))


def test_a_class_in_too_few_groups_is_named():
    with pytest.raises(UsageError, match=r"The class Mild dysplasia has only 1 independent group"):
        draw_cells(np.repeat([0, 1, 2], 6), np.array([*"abcdef", *"gggggg", *"hijklm"]), (1,), 0, 0, NAMES)


def test_a_mean_is_that_of_the_draws_and_its_interval_holds_it():
    truth, groups = cells_in_groups()
    rng = np.random.default_rng(0)
    answers = []
    for draw in range(3):
        tested = np.flatnonzero(np.arange(len(truth)) % 3 != draw)
        score = rng.random(len(tested)) + 0.5 * (truth[tested] == 1)
        answers.append(Answers(tested, score, rng.integers(0, 3, len(tested))))
    estimates = means_with_intervals(answers, truth, groups, NAMES)
    aucs = [roc_auc_score(truth[one.tested] == 1, one.abnormal) for one in answers]
    squamous = [
        roc_auc_score((truth[one.tested] == 1)[truth[one.tested] != 0], one.abnormal[truth[one.tested] != 0])
        for one in answers
    ]
    accuracies = [(one.predicted == truth[one.tested]).mean() for one in answers]
    for name, values in zip(estimates, (aucs, squamous, accuracies), strict=True):
        assert estimates[name].value == pytest.approx(np.mean(values))
        assert estimates[name].low < estimates[name].value < estimates[name].high
    alike = means_with_intervals([answers[0]] * 3, truth, groups, NAMES)["accuracy"]
    alone = means_with_intervals(answers[:1], truth, groups, NAMES)["accuracy"]
    assert (alike.value, alike.low, alike.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_other_classes_have_no_accuracy():
    truth, groups = cells_in_groups()
    answer = Answers(np.arange(len(truth)), np.random.default_rng(0).random(len(truth)), None)
    assert np.isnan(means_with_intervals([answer], truth, groups, NAMES)["accuracy"].value)


def test_the_activations_of_every_cell_are_found_and_held_once(monkeypatch):
    torch.manual_seed(0)
    model = ModelFile(CBAMResNet50(2), ("a", "b"), Preprocessing(canvas_size=32, image_size=32))
    raw = list(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8))
    made, right = [], learning_curve.turned_activations

    def kept(*given, **named):
        made.append(right(*given, **named))
        return made[-1]

    monkeypatch.setattr(learning_curve, "turned_activations", kept)
    training, tested = np.array([1, 4, 5]), np.array([3, 0])
    seen = learning_curve._seen(model, raw, training, tested, True, SILENT)
    assert seen.activations is made[0]
    assert torch.equal(seen.turned(np.array([5, 1])), made[0][:, [2, 0]])
    assert torch.equal(seen.as_they_are(tested), made[1][0][[1, 0]])
    everything = np.arange(len(raw))
    seen = learning_curve._seen(model, raw, everything, everything, True, SILENT)
    assert torch.equal(seen.as_they_are(tested), made[2][0][[3, 0]])
    assert len(made) == 3


@pytest.mark.parametrize("adapt", [False, True])
def test_a_curve_of_drawn_cells_is_written_with_its_command(tmp_path, adapt, monkeypatch):
    held: list[weakref.ref] = []
    right = learning_curve._seen

    def kept(*given):
        assert not any(one() for one in held)  # two at once may be more than there is memory
        seen = right(*given)
        held.append(weakref.ref(seen))
        return seen

    monkeypatch.setattr(learning_curve, "_seen", kept)
    rng = np.random.default_rng(0)
    for label, level in (("normal_superficiel", 30), ("normal_columnar", 90), ("light_dysplastic", 150)):
        (tmp_path / "cells" / label).mkdir(parents=True)
        for frame in range(6):
            pixels = (rng.integers(0, 60, (24, 24, 3)) + level).astype(np.uint8)
            name = f"{148494000 + frame}-{level:03d}-001.png"
            Image.fromarray(pixels).save(tmp_path / "cells" / label / name)
    torch.manual_seed(0)
    preprocessing = Preprocessing(canvas_size=32, image_size=32)
    model = ModelFile(CBAMResNet50(2), ("Koilocytotic", "Parabasal"), preprocessing)
    save_model(tmp_path / "model.pth", model)
    out = tmp_path / "out"
    options = [
        "--from",
        str(tmp_path / "model.pth"),
        "--cells",
        "0,2,3",
        "--draws",
        "2",
        "--last-stage",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(
        app, ["learning-curve", str(tmp_path / "cells"), *options, *(["--adapt"] if adapt else [])]
    )
    assert result.exit_code == 0, result.output
    assert RESEARCH_USE_ONLY in result.output
    assert "other classes" in result.output
    content = json.loads((out / "learning_curve.json").read_text())
    assert content["notice"] == RESEARCH_USE_ONLY
    assert [(row["cells_a_class"], row["method"]) for row in content["rows"]] == [
        (0, "zero-shot"),
        *[
            (n, method)
            for n in (2, 3)
            for method in (
                "covariance",
                "last stage",
                "second and last stage",
                "last stage learns too",
                "chosen on inner folds",
            )
        ],
    ]
    table = pd.read_csv(out / "learning_curve.csv")
    for row in content["rows"]:
        own = table[(table["method"] == row["method"]) & (table["cells_a_class"] == row["cells_a_class"])]
        assert row["figures"]["abnormal_auc_all"]["value"] == pytest.approx(own["abnormal_auc_all"].mean())
    assert (out / "learning_curve.png").stat().st_size > 10_000
    assert adapt == content["adapted"]
    assert adapt == ("first adapted" in result.output)
    refused = CliRunner().invoke(
        app, ["learning-curve", str(tmp_path / "cells"), *options[:2], "--cells", "-1"]
    )
    assert "from 0 up" in refused.stderr
