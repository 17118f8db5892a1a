"""Figures beside the shipped model: counted from committed results, and shown for that model alone."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import pytest
from conftest import PROJECT
from serving import small_classifier

from cervicyte.dashboard.model_view import model_html
from cervicyte.evaluation.shipped_figures import FILE_NAME, ShippedFigures, shipped_figures
from cervicyte.inference.classifier import Classifier
from cervicyte.network.description import shipped_model
from cervicyte.network.model_file import load_model_file


@pytest.fixture(scope="module")
def shipped() -> Classifier:
    return Classifier(load_model_file(shipped_model()))


@pytest.fixture(scope="module")
def figures(shipped) -> ShippedFigures:
    found = shipped_figures(shipped.weights_sha256)
    assert found is not None
    return found


def test_the_file_is_what_its_command_writes_now():
    path = PROJECT / "benchmarks" / "shipped_figures.py"
    spec = importlib.util.spec_from_file_location("shipped_figures_command", path)
    assert spec is not None
    assert spec.loader is not None
    command: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    written = json.loads(shipped_model().with_name(FILE_NAME).read_text("utf-8"))
    assert written == command.figures().model_dump(mode="json"), "python benchmarks/shipped_figures.py"


def test_the_matrix_says_what_the_model_file_says_of_its_cross_validation(shipped, figures):
    counts = np.array(figures.confusion.counts)
    said = shipped.model.metadata["cross_validation"]
    assert figures.confusion.class_names == shipped.class_names
    assert counts.sum() == said["cells"]
    assert figures.confusion.groups == said["groups"]
    assert np.trace(counts) / counts.sum() == pytest.approx(said["figures"]["accuracy"]["value"])
    for place, name in enumerate(shipped.class_names):
        recall = counts[place, place] / counts[place].sum()
        assert recall == pytest.approx(said["figures"][f"recall, {name}"]["value"])


def test_the_page_shows_the_matrix_with_its_source(shipped, figures):
    text = model_html(shipped, "model")
    for row in figures.confusion.counts:
        for count in row:
            assert f">{count:,}<" in text
    assert "docs/results/model/group/predictions.csv" in text
    assert f"commit {figures.confusion.source.commit}" in text


def test_another_model_has_no_figures_of_the_shipped_one():
    other = small_classifier()
    assert shipped_figures(other.weights_sha256) is None
    assert "holds no confusion matrix" in model_html(other, "model")


def test_what_adapting_brought_is_a_sentence_with_its_interval(figures):
    gain = figures.adaptation
    assert gain.difference.value == pytest.approx(gain.after.value - gain.before.value, abs=1e-9)
    assert gain.difference.low < gain.difference.value < gain.difference.high
    for value in (gain.before.value, gain.after.value, gain.difference.low, gain.difference.high):
        assert f"{value:.3f}" in gain.sentence
