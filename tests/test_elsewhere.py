"""Networks are judged on another laboratory's cells by what both have in common."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.errors import DatasetError, UsageError
from cervicyte.evaluation.elsewhere import elsewhere, elsewhere_statistic
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

NAMES = ("Koilocytotic", "Parabasal", "Dyskeratotic")
HERLEV = ("normal_superficiel", "normal_columnar", "light_dysplastic", "severe_dysplastic")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "herlev"
    rng = np.random.default_rng(0)
    for number, name in enumerate(HERLEV):
        (root / name).mkdir(parents=True)
        for frame in range(4):
            pixels = rng.integers(0, 256, (24, 30, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{148494000 + 10 * number + frame}-001.png")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in range(2):
        torch.manual_seed(seed)
        save_model(folder / f"{seed}.pth", ModelFile(CBAMResNet50(3), NAMES, Preprocessing(image_size=32)))
    return [folder / "0.pth", folder / "1.pth"]


def test_the_figures_are_scikit_learns_mean_over_the_networks(cells, models, tmp_path):
    named = [str(path) for path in models]
    result = CliRunner().invoke(app, ["elsewhere", *named, "--data", str(cells), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert RESEARCH_USE_ONLY in result.output
    content = json.loads((tmp_path / "elsewhere.json").read_text())
    table = pd.read_csv(tmp_path / "elsewhere_predictions.csv")
    expected: dict[str, list[float]] = {"abnormal_auc_all": [], "abnormal_auc_squamous": []}
    for _, rows in table.groupby("model"):
        for name, chosen in (
            ("abnormal_auc_all", rows),
            ("abnormal_auc_squamous", rows[rows["true_class"] != "Columnar"]),
        ):
            positive = chosen["true_class"].str.contains("dysplasia")
            score = chosen["p_Koilocytotic"] + chosen["p_Dyskeratotic"]
            expected[name].append(roc_auc_score(positive, score))
    for name, values in expected.items():
        assert content["figures"][name]["value"] == pytest.approx(np.mean(values))
        assert content["figures"][name]["low"] <= content["figures"][name]["value"]
        assert [one[name]["value"] for one in content["each_model"]] == pytest.approx(values)
    assert (content["cells"], content["groups"], content["models"]) == (16, 16, 2)


def test_a_network_that_ranks_all_rightly_reaches_1():
    truth = ["Superficial squamous", "Columnar", "Mild dysplasia", "Carcinoma in situ"]
    table = pd.DataFrame(
        {
            "group": list("abcd"),
            "true_class": truth,
            "p_Koilocytotic": [0.1, 0.9, 0.4, 0.5],
            "p_Dyskeratotic": [0.1, 0.0, 0.1, 0.5],
            "p_Parabasal": [0.8, 0.1, 0.5, 0.0],
        }
    )
    both = elsewhere_statistic([table])(np.ones((1, 4)))[0]
    assert both == pytest.approx([0.75, 1.0])


def test_classes_of_no_known_grouping_are_refused_and_so_is_no_model(cells, models, tmp_path):
    for name in ("odd", "normal_columnar"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "data" / name / "1.png")
    with pytest.raises(DatasetError, match=r"the class (odd|normal_columnar) is"):
        elsewhere(models, tmp_path / "data", tmp_path / "out")
    with pytest.raises(UsageError, match="one model or more"):
        elsewhere([], cells, tmp_path / "out")
