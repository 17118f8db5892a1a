"""The audit: which cells it takes, that it can be interrupted, and what its page says."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROJECT
from torch import nn
from typer.testing import CliRunner

from cervicyte import cli
from cervicyte.datasets.layouts import Cell, read_dataset
from cervicyte.datasets.synthetic import write_dataset
from cervicyte.errors import RunFolderError, SplitError, UsageError
from cervicyte.evaluation.seen import seen_of
from cervicyte.explanation import audit_cells, audit_figures, cam
from cervicyte.explanation.audit import audit_model, stratified
from cervicyte.explanation.audit_cells import (
    ANOTHER_CELL,
    RANDOMISED_STAGES,
    STABLE_UNDER,
    Auditor,
    AuditSettings,
    changed,
    controls_of,
    stages_of,
)
from cervicyte.explanation.audit_page import reading, title_of_map
from cervicyte.explanation.audit_records import RECORDS_NAME, read_records
from cervicyte.explanation.controls import network_input, random_twin
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY, sha256_of_file

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = AuditSettings(
    cells=6,
    methods=("grad-cam++", "hirescam"),
    layers=("cbam3",),
    steps=2,
    sanity_cells=2,
    stability_cells=2,
    percentiles=(50,),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("audit") / "synthetic", 7, 3)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, data):
    torch.manual_seed(0)
    network = CBAMResNet50(5).eval()
    nn.init.normal_(network.fc.weight, std=0.3)
    model = ModelFile(network, read_dataset(data).classes, Preprocessing(image_size=32))
    path = tmp_path_factory.mktemp("model") / "best_model.pth"
    save_model(path, model)
    return path


@pytest.fixture(scope="module")
def finished(data, model_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, audit_model(model_path, data, out, settings=SETTINGS, with_pictures=False)


def without_time(figures):
    return {key: value for key, value in figures.items() if key not in ("provenance", "minutes_of_last_run")}


# --- which cells -----------------------------------------------------------------------------------


def cells_in(groups_of_class):
    return [
        Cell(PROJECT, f"{label}/{group}_{k}", label, f"{label}{group}", "field")
        for label, sizes in groups_of_class.items()
        for group, size in enumerate(sizes)
        for k in range(size)
    ]


def test_cells_are_spread_over_classes_and_then_over_groups():
    cells = cells_in({"a": [50, 1, 1, 1], "b": [2, 2, 2], "c": [9]})
    chosen = stratified(cells, 12, seed=0)
    assert len(set(chosen)) == 12
    assert Counter(cell.label for cell in chosen) == {"a": 4, "b": 4, "c": 4}
    assert len({cell.group for cell in chosen if cell.label == "a"}) == 4
    assert len({cell.group for cell in chosen if cell.label == "b"}) == 3
    assert {cell.label for cell in chosen[:3]} == {"a", "b", "c"}


def test_where_a_class_is_small_others_fill_up_and_no_cell_is_taken_twice():
    cells = cells_in({"a": [30], "b": [1]})
    chosen = stratified(cells, 20, seed=1)
    assert Counter(cell.label for cell in chosen) == {"a": 19, "b": 1}
    assert len(set(chosen)) == 20
    assert stratified(cells, 99, seed=1) == stratified(cells, 99, seed=1)
    assert len(stratified(cells, 99, seed=1)) == 31
    assert stratified([], 5, seed=0) == []


def test_cells_seen_in_training_are_refused_or_named_on_every_artefact(data, model_path, tmp_path):
    model = load_model_file(model_path)
    cells = read_dataset(data).cells
    model.metadata["seen"] = {"sha256": [sha256_of_file(cells[0].path)], "groups": []}
    path = tmp_path / "seen.pth"
    save_model(path, model)
    assert len(seen_of(model, cells)) == 1
    with pytest.raises(SplitError, match=r"1 of 7 cells, first .*--allow-seen"):
        audit_model(path, data, tmp_path / "refused", settings=SETTINGS)
    assert not (tmp_path / "refused").exists()
    settings = replace(SETTINGS, cells=7, methods=("grad-cam",), sanity_cells=0, stability_cells=0)
    figures = audit_model(path, data, tmp_path / "all", settings=settings, allow_seen=True)
    assert figures["cells_seen_in_training"] == 1
    said = "1 of 7 cells was seen in training"
    assert said in (tmp_path / "all" / "explanation_audit.html").read_text()
    assert said in (tmp_path / "all" / "explanation_audit.json").read_text()
    assert said in (tmp_path / "all" / RECORDS_NAME).read_text()
    table = pd.read_csv(tmp_path / "all" / "explanation_audit.csv")
    assert (table["cells_seen_in_training"] == 1).all()


# --- interruptions ---------------------------------------------------------------------------------


def test_an_interrupted_audit_goes_on_to_the_same_figures(finished, data, model_path, tmp_path, monkeypatch):
    measured: list[int] = []
    again: list[int] = []
    record = Auditor.record

    def interrupted(self, index):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(index)
        return record(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Auditor, "record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            audit_model(model_path, data, tmp_path, settings=SETTINGS, with_pictures=False)
    path = tmp_path / RECORDS_NAME
    text = path.read_text()
    path.write_text(text + text.splitlines()[-1][:40])  # half a line, as of a power cut
    assert not (tmp_path / "explanation_audit.json").exists()

    def counted(self, index):
        again.append(index)
        return record(self, index)

    monkeypatch.setattr(Auditor, "record", counted)
    resumed = audit_model(model_path, data, tmp_path, settings=SETTINGS, with_pictures=False, resume=True)
    assert again == [3, 4, 5]
    assert without_time(resumed) == without_time(finished[1])
    assert path.read_text() == (finished[0] / RECORDS_NAME).read_text()


def test_an_audit_is_neither_overwritten_nor_mixed_with_another(finished, data, model_path):
    out = finished[0]
    with pytest.raises(RunFolderError, match="--resume"):
        audit_model(model_path, data, out, settings=SETTINGS)
    with pytest.raises(RunFolderError, match="another settings"):
        audit_model(model_path, data, out, settings=AuditSettings(cells=5), resume=True)
    with pytest.raises(UsageError, match="give one of them"):
        audit_model(model_path, data, out, settings=SETTINGS, resume=True, force=True)
    path = out / RECORDS_NAME
    text = path.read_text()
    path.write_text(text.replace('"records_format": 2', '"records_format": 1', 1))
    with pytest.raises(RunFolderError, match=r"another version of Cervicyte.*--force"):
        audit_model(model_path, data, out, settings=SETTINGS, resume=True)
    path.write_text(text)
    (damaged := out / "damaged.jsonl").write_text("no records\n")
    with pytest.raises(RunFolderError, match="damaged"):
        read_records(damaged)


def test_an_unknown_layer_or_method_is_refused_before_anything_is_written(data, model_path, tmp_path):
    for settings in (
        AuditSettings(layers=("layer9",)),
        AuditSettings(methods=("guess",)),
        AuditSettings(sanity_cells=1),
    ):
        with pytest.raises(UsageError):
            audit_model(model_path, data, tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


# --- what is measured ------------------------------------------------------------------------------


def test_every_map_is_held_against_its_controls(finished):
    figures = finished[1]
    assert figures["explanations"] == ["grad-cam++@cbam3", "hirescam@cbam3"]
    assert figures["controls"] == [
        "centre", "darkness", "random grad-cam++@cbam3", "random hirescam@cbam3",
    ]  # fmt: skip
    for name in figures["explanations"]:
        assert set(figures["against_controls"]["all"][name]) == {"centre", "darkness", "random"}
    maps = figures["maps"]["all"]
    for name in figures["explanations"]:
        for kind, control in (("centre", "centre"), ("random", f"random {name}")):
            difference = figures["against_controls"]["all"][name][kind]["score"]["value"]
            gain = maps[name]["score"]["value"] - maps[control]["score"]["value"]
            assert difference == pytest.approx(gain, abs=1e-5)
    assert maps["centre"]["like_centre"]["value"] == pytest.approx(1)
    assert maps["darkness"]["like_darkness"]["value"] == pytest.approx(1)
    assert figures["outlines"]["sources"] == {"file": 6}


def test_the_random_control_of_a_map_is_the_same_methods_at_the_same_layer(data, model_path):
    model = load_model_file(model_path)
    cells = list(read_dataset(data).cells)
    settings = replace(SETTINGS, methods=tuple(cam.METHODS), layers=("cbam3", "cbam4"))
    auditor = Auditor(model, settings, cells, [cell.label for cell in cells])
    preprocessed = model.preprocessing(read_image(cells[0].path))
    maps = auditor.maps(preprocessed, 1)
    assert list(maps) == [*settings.explanations, *settings.controls]
    batch = network_input(model, preprocessed[np.newaxis])
    for name in settings.explanations:
        centre, darkness, random = controls_of(name)
        assert (centre, darkness) == ("centre", "darkness")
        method, layer = name.split("@")
        expected = cam.explain(random_twin(model.network), batch, method, [layer], 1)[layer][0, 0].numpy()
        np.testing.assert_allclose(maps[random], expected, rtol=1e-4, atol=1e-5 * max(1e-9, expected.max()))


def test_an_empty_map_beats_nothing_however_its_pixels_were_drawn():
    settings = AuditSettings(methods=("hirescam",), layers=("cbam4",), percentiles=(50,))
    measured = {"road_most": [0.0], "road_least": [0.0], "like_darkness": 0.1}
    weak = {**measured, "deletion": 0.5, "insertion": 0.5, "like_centre": 0.1}
    strong = {**measured, "deletion": 0.1, "insertion": 0.9, "like_centre": 0.1}
    records = [
        {"maps": {**dict.fromkeys(settings.controls, weak), "hirescam@cbam4": own}}
        for own in (strong, strong | {"like_centre": None}, weak)
    ]
    # Ahead of what is worse still, but what it marks counts for no more than what it leaves out.
    worse = weak | {"deletion": 0.6}
    records.append({"maps": {**dict.fromkeys(settings.controls, worse), "hirescam@cbam4": weak}})
    found = audit_figures.values_of(records, settings)["hirescam@cbam4"]
    assert found["beats_controls"].tolist() == [1, 0, 0, 0]


def test_differences_are_paired_and_intervals_are_over_groups():
    settings = AuditSettings(methods=("hirescam",), layers=("cbam4",))
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c", "d"], 5)
    # Cells differ from group to group, never within one.
    of_group = np.repeat([0.1, 0.4, 0.6, 0.9], 5)
    values = {name: {"score": of_group.copy(), "road": rng.random(20)} for name in settings.controls}
    values["hirescam@cbam4"] = {"score": of_group + 0.2, "road": rng.random(20)}
    found = audit_figures._against_controls(values, settings, groups, np.full(20, True))["hirescam@cbam4"]
    for control in ("centre", "darkness", "random"):
        # What is hard about a cell is the same for both maps: nothing of it is left in the difference.
        assert found[control]["score"] == {"value": 0.2, "low": 0.2, "high": 0.2, "cells": 20}
    by_group = audit_figures._mean(of_group, groups)
    by_cell = audit_figures._mean(of_group, np.arange(20))
    assert by_group["high"] - by_group["low"] > 1.5 * (by_cell["high"] - by_cell["low"])


def test_weights_are_drawn_anew_stage_by_stage_and_changes_are_undone(finished):
    figures = finished[1]
    stages = [stage for stage, _ in RANDOMISED_STAGES]
    assert list(figures["randomisation"]) == [*stages, ANOTHER_CELL]
    assert set(figures["stability"]) == set(STABLE_UNDER)
    # The classifier decides HiResCAM's map at a late layer: new weights, another map.
    found = figures["randomisation"]["fc"]["hirescam@cbam3"]
    assert found["rank"]["cells"] == 0 or found["rank"]["value"] < 0.9


def test_a_pair_with_an_empty_map_is_counted_and_left_out_of_the_likeness():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 4, 5, 5), np.float32)
    before[1] = after[1] = after[2] = 0
    found = audit_cells._likeness(before, after, 40)
    assert found["empty_before"] == [False, True, False, False]
    assert found["empty_after"] == [False, True, True, False]
    for measure in ("ssim", "rank"):
        assert np.isnan(found[measure]).tolist() == [False, True, True, False]
    same = audit_cells._likeness(before[:1], 7 * before[:1], 40)
    assert same["ssim"] == pytest.approx([1])
    assert same["rank"] == pytest.approx([1])


def test_the_share_of_empty_maps_stands_beside_the_likeness_of_those_that_are_not(
    finished, data, model_path, tmp_path, monkeypatch
):
    explanations = Auditor.explanations

    def mostly_empty(self, network, inputs, classes, methods):
        found = explanations(self, network, inputs, classes, methods)
        if network is not self.model.network and len(inputs) == 3:
            for maps in found.values():
                maps[1:] = 0
        return found

    monkeypatch.setattr(Auditor, "explanations", mostly_empty)
    settings = replace(SETTINGS, cells=3, sanity_cells=3, stability_cells=0)
    figures = audit_model(model_path, data, tmp_path, settings=settings, with_pictures=False)
    for stage, _ in RANDOMISED_STAGES:
        for measures in figures["randomisation"][stage].values():
            assert measures["empty_after"]["value"] >= 2 / 3 - 1e-6
            assert measures["ssim"]["cells"] <= 1
    page = (tmp_path / "explanation_audit.html").read_text()
    assert "of 3 pairs" in page
    assert "Share of maps that are empty" in page
    table = pd.read_csv(tmp_path / "explanation_audit.csv")
    assert {"ssim at fc", "empty_before at fc", "empty_after at fc"} <= set(table["measure"])


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("stage", ["fc", "cbam4", "layer4", "cbam3", "layer3", "layer2", "layer1", "conv1"]),
        ("none", ["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]),
    ],
)
def test_a_stage_that_a_network_does_not_have_is_not_in_the_table(placement, expected):
    stages = stages_of(CBAMResNet50(3, placement))
    assert [stage for stage, _ in stages] == expected
    names = [name for _, names in stages for name in names]
    assert set(names) <= {name for name, _ in CBAMResNet50(3, placement).named_children()}


def test_a_change_moved_back_shows_the_same_place():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for name in ("mirrored", "upside down", "shifted"):
        before, after = audit_cells._moved_back(image[..., 0], changed(image, name)[..., 0], name)
        np.testing.assert_array_equal(before, after)
    for name in ("brighter", "darker", "JPEG 50"):
        after = changed(image, name).astype(int)
        assert after.shape == image.shape
        assert (after != image).any()
    assert changed(image, "brighter").mean() > image.mean() > changed(image, "darker").mean()
    with pytest.raises(ValueError, match="no change"):
        changed(image, "turned")


def test_weights_below_a_stage_stay_until_their_turn(model_path, data):
    model = load_model_file(model_path)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    cells = list(read_dataset(data).cells)
    auditor = Auditor(model, SETTINGS, cells, [cell.label for cell in cells])
    auditor.randomised_stages()
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, before[name])
    covered = {name for _, names in RANDOMISED_STAGES for name in names}
    parts = dict(model.network.named_children())
    assert covered == {name for name, part in parts.items() if list(part.parameters())}


# --- the page --------------------------------------------------------------------------------------


def test_the_page_needs_no_other_file_says_what_it_is_and_shows_no_cell_unasked(finished):
    out, figures = finished
    page = (out / "explanation_audit.html").read_text()
    assert RESEARCH_USE_ONLY in page
    assert "<img" not in page
    assert "http://" not in page
    assert "https://" not in page
    for sentence in figures["reading"]:
        assert sentence.split(" [")[0].split("'")[0] in page
    assert json.loads((out / "explanation_audit.json").read_text())["notice"] == RESEARCH_USE_ONLY
    table = pd.read_csv(out / "explanation_audit.csv")
    row = table[(table["map"] == "centre") & (table["class"] == "all") & (table["measure"] == "score")].iloc[
        0
    ]
    assert row["value"] == figures["maps"]["all"]["centre"]["score"]["value"]


def test_the_reading_follows_the_figures(finished):
    figures = json.loads(json.dumps(finished[1]))
    best = figures["best"]["score"]
    for measures in figures["against_controls"]["all"][best].values():
        measures["score"] |= {"value": 0.2, "low": 0.1, "high": 0.3}
    said = " ".join(reading(figures))
    assert "beats centre blob (by +0.20 [+0.10, +0.30])" in said
    assert "does not surely beat" not in said
    figures["against_controls"]["all"][best]["centre"]["score"]["low"] = -0.1
    assert "does not surely beat centre blob" in " ".join(reading(figures))


def test_maps_have_the_names_that_people_know():
    assert title_of_map("grad-cam++@cbam4") == "Grad-CAM++ at cbam4"
    assert title_of_map("random grad-cam@layer4") == "random weights, Grad-CAM at layer4"
    assert title_of_map("centre") == "centre blob"


@pytest.mark.full
def test_the_command_audits_with_pictures_and_its_default_layers(data, model_path, tmp_path):
    options = ["audit", str(model_path), "--data", str(data), "--cells", "5", "--method", "hirescam"]
    options += ["--sanity-cells", "0", "--stability-cells", "0", "--out", str(tmp_path / "audit")]
    result = CliRunner().invoke(cli.app, options)
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "audit" / "explanation_audit.json").read_text())
    assert figures["settings"]["layers"] == ["cbam3", "layer4", "cbam4"]
    assert (tmp_path / "audit" / "explanation_audit.html").read_text().count("<img") == 20
