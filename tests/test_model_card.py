"""The model card says what the file says, and of the rest that it is not known."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.evaluation.model_card import model_card
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile, save_model, weights_hash
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

NAMES = ("Dyskeratotic", "Koilocytotic", "Metaplastic", "Parabasal", "Superficial-Intermediate")
NETWORK = CBAMResNet50(5).eval()
SECTIONS = (
    "Intended use", "Classes", "Data", "Training", "Figures", "Calibration", "Known failures",
    "Weights and preprocessing", "Licence",
)  # fmt: skip


def figure(value, low=None, high=None, **more):
    return {"value": value, "low": low, "high": high, **more}


ABOUT: dict[str, Any] = {
    "data": "cells_of_spring",
    "data_set": "SIPaKMeD",
    "leak": None,
    "caveats": ["Independent groups are not independent patients."],
    "seen": {"sha256": ["a" * 64] * 2741, "groups": ["sipakmed:1"] * 607},
    "split": {
        "by": "group", "folds": 5, "fold": 0, "seed": 11, "hash": "feed" * 16,
        "train": {"cells": 2173, "groups": 479},
        "validation": {"cells": 568, "groups": 128},
        "test": {"cells": 689, "groups": 151},
    },
    "recipe": {"seed": 17, "epochs": 23, "learning_rate": 0.0003},
    "backbone": {"source": "resnet50.safetensors", "sha256": "beef" * 16},
    "precision": "bfloat16",
    "training_minutes": 61.5,
    "metrics": {
        "test": {"accuracy": figure(0.9768, 0.9572, 0.9899), "macro_auc": figure(0.9988, 0.9971, 0.9997)},
        "test_per_class": {
            name: {"recall": figure(value, value - 0.05, value + 0.01)}
            for name, value in zip(NAMES, (0.97, 0.922, 0.978, 0.96, 0.99), strict=True)
        },
        "test_roll_up": {"abnormal": {"called_normal": figure(0.0072, 0.0, 0.0195, count=2, of=279)}},
    },
    "cross_validation": {
        "cells": 3445,
        "groups": 758,
        "figures": {
            "accuracy": figure(0.9612, 0.95, 0.97),
            "recall, Koilocytotic": figure(0.951, 0.9, 0.97),
            "recall, Parabasal": figure(0.944, 0.9, 0.96),
            "abnormal_auc": figure(0.9931, 0.99, 0.996),
            "abnormal_called_normal": figure(0.0111, 0.004, 0.02),
        },
    },
    "calibration": {"temperature": 1.37, "n": 568},
    "provenance": {"commit": "0123456789ab", "versions": {"torch": "2.9.1"}, "written": "2026-11-01"},
}  # fmt: skip


def card_of(names=NAMES, network=NETWORK, **about) -> str:
    return model_card(ModelFile(network, names, Preprocessing(image_size=32), 9, 0.9812, about))


def section_of(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def card() -> str:
    return card_of(**ABOUT)


def test_every_section_is_there_and_the_notice_comes_first(card):
    assert tuple(re.findall(r"^## (.*)$", card, re.MULTILINE)) == SECTIONS
    assert card.index(RESEARCH_USE_ONLY) < card.index("## ")


def test_data_training_and_origin_are_those_of_the_file(card):
    data = section_of(card, "Data")
    for said in (
        "cells_of_spring", "SIPaKMeD", "| train | 2,173 | 479 |", "| test | 689 | 151 |", "feed" * 16,
        "| Split, seed | 11 |", "No group stands in more than one part.", "2,741", "607",
        "- Independent groups are not independent patients.",
    ):  # fmt: skip
        assert said in data
    training = section_of(card, "Training")
    for said in (
        "| Seed | 17 |", "| Epochs | 23 |", "0.0003", "resnet50.safetensors", "beef" * 16, "bfloat16",
        "61.5", "0123456789ab", "2.9.1", "| Epoch that was kept | 9 |", "98.1 %",
    ):  # fmt: skip
        assert said in training
    assert weights_hash(NETWORK) in section_of(card, "Weights and preprocessing")
    assert Preprocessing(image_size=32).fingerprint() in section_of(card, "Weights and preprocessing")


def test_figures_stand_with_their_intervals(card):
    figures = section_of(card, "Figures")
    assert "| Accuracy | 97.7 % [95.7, 99.0] |" in figures
    assert "| Macro AUC | 0.999 [0.997, 1.000] |" in figures
    assert "| Recall, Koilocytotic | 92.2 % [87.2, 93.2] |" in figures
    assert "(3,445 cells, 758 groups)" in figures
    assert "| Accuracy | 96.1 % [95.0, 97.0] |" in figures
    assert "| Abnormal against the rest, AUC | 0.9931 [0.9900, 0.9960] |" in figures
    assert "1.37" in section_of(card, "Calibration")


def test_the_failures_are_the_lowest_recall_and_the_missed_abnormal_cells(card):
    failures = section_of(card, "Known failures")
    assert "Koilocytotic, recall 92.2 % [87.2, 93.2] on the test part" in failures
    assert "Parabasal, recall 94.4 % [90.0, 96.0] in cross-validation" in failures
    assert "2 of 279, 0.7 % [0.0, 1.9] on the test part" in failures
    assert "1.1 % [0.4, 2.0] in cross-validation" in failures


def test_a_class_that_grew_worse_becomes_the_known_failure():
    metrics = {**ABOUT["metrics"]}
    metrics["test_per_class"] = {
        **metrics["test_per_class"],
        "Metaplastic": {"recall": figure(0.5, None, None)},
    }
    failures = section_of(card_of(**{**ABOUT, "metrics": metrics}), "Known failures")
    assert "Metaplastic, recall 50.0 % on the test part" in failures


def test_what_was_not_measured_is_not_claimed():
    card = card_of()
    assert section_of(card, "Figures").strip() == "Not measured."
    assert section_of(card, "Calibration").strip() == "Not measured."
    assert section_of(card, "Known failures").count("not measured") == 2
    assert "[" not in card.replace("](", "")
    assert "does not name the data" in card
    assert "does not say which cells it was trained on" in card
    assert "SIPaKMeD" not in card  # other cells may have classes of these names
    assert "not known" in section_of(card, "Licence")


def test_undefined_figures_and_classes_without_cells_are_dashes_and_no_failures():
    undefined = figure(None)
    metrics = {
        "test": {"accuracy": undefined},
        "test_per_class": {name: {"recall": undefined} for name in NAMES},
        "test_roll_up": None,
    }
    card = card_of(metrics=metrics)
    assert "| Accuracy | \N{EN DASH} |" in card
    assert section_of(card, "Known failures").count("not measured") == 2


def test_a_leak_is_said_once_and_no_group_is_said_to_be_whole():
    leak = "Leak by cell, allowed by name: 9 groups stand in more than one part."
    data = section_of(card_of(**{**ABOUT, "leak": leak, "caveats": [leak, "Mind."]}), "Data")
    assert data.count(leak) == 1
    assert "No group stands" not in data


def test_only_the_classes_of_sipakmed_are_said_to_lack_hsil():
    assert "HSIL" in section_of(card_of(), "Intended use")
    herlev = ("Carcinoma in situ", "Columnar", "Intermediate squamous", "Mild dysplasia", "Severe dysplasia")
    assert "HSIL" not in card_of(herlev)
    assert "| Carcinoma in situ | abnormal |" in card_of(herlev)
    assert "| owl | not known |" in card_of(("owl", "b", "c", "d", "e"))


def test_the_terms_of_the_images_are_those_of_the_data_set(card):
    licence = section_of(card, "Licence")
    assert "ask to be cited; there is no licence to pass the images on" in licence
    assert "Plissiti" in licence
    assert "no licence of the weights" in licence
    assert "resnet50.safetensors" in licence
    assert "first weights" not in section_of(card_of(backbone={"source": "none"}), "Licence")


def test_a_rounded_file_says_that_training_measured_before():
    assert "rounded to float16" in section_of(card_of(**ABOUT, rounded_from_sha256="c0de" * 16), "Figures")
    assert "rounded" not in card_of(**ABOUT)


def test_a_checkpoint_of_the_original_says_how_little_is_known():
    model = ModelFile(NETWORK, NAMES, Preprocessing(), 7, 95.5, original=True)
    card = model_card(model)
    assert "By the original notebook" in section_of(card, "Training")
    assert "The original's checkpoint does not say which cells" in section_of(card, "Data")
    assert "95.5" not in card


def test_a_name_cannot_break_a_table():
    card = card_of(("a|b", "c\nd", "<b>", "e", "f"), data="x")
    rows = [line for line in section_of(card, "Classes").splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "<b>" not in card


def test_the_command_shows_the_card_or_writes_it(tmp_path):
    torch.manual_seed(0)
    save_model(
        tmp_path / "m.safetensors", ModelFile(NETWORK, NAMES, Preprocessing(image_size=32), 1, 0.5, ABOUT)
    )

    def cervicyte(*arguments):
        return CliRunner().invoke(app, ["card", *map(str, arguments)])

    shown = cervicyte(tmp_path / "m.safetensors")
    assert shown.exit_code == 0, shown.output
    written = cervicyte(tmp_path / "m.safetensors", "--out", tmp_path / "card.md")
    assert written.exit_code == 0, written.output
    assert (tmp_path / "card.md").read_text() == shown.output
    again = cervicyte(tmp_path / "m.safetensors", "--out", tmp_path / "m.safetensors")
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)
    assert cervicyte(tmp_path / "m.safetensors", "--out", tmp_path / "card.md", "--force").exit_code == 0
    into = cervicyte(tmp_path / "m.safetensors", "--out", tmp_path, "--force")
    assert (into.exit_code, f"{tmp_path}: is a folder" in into.stderr) == (2, True)
    assert "97.7 % [95.7, 99.0]" in shown.output
    refused = cervicyte(tmp_path / "none.pth")
    assert refused.exit_code == 2
    assert "none.pth" in refused.stderr
