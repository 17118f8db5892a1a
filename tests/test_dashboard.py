"""The dashboard without a browser: what it answers, refuses, and never asks for."""

from __future__ import annotations

import html
import re
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from cervicyte import __version__
from cervicyte.dashboard import page, server
from cervicyte.errors import OversizedImage, UsageError
from cervicyte.evaluation.familiarity import Judgement
from cervicyte.explanation.verdict import Verdict
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.inference.classifier import Classifier, Prediction
from cervicyte.network.model_file import ModelFile, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

CLASSES = ("Koilocytotic", "Parabasal", "<b>Odd & old</b>")
HOME = "http://127.0.0.1"
MEASURED = {"metrics": {"test": {"accuracy": {"value": 0.9412, "low": 0.921, "high": 0.9588}}}}


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ModelFile(CBAMResNet50(3), CLASSES, Preprocessing(image_size=32), metadata=MEASURED))


@pytest.fixture(scope="module")
def client(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("private") / "my_run" / "best_model.pth"
    save_model(path, classifier.model)
    with TestClient(server.build_app(path), base_url=HOME) as client:
        yield client


@pytest.fixture
def cell_file(tmp_path) -> Path:
    path = tmp_path / "cell.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(path)
    return path


# --- the server ----------------------------------------------------------------------------------


def test_health_names_model_version_and_notice(client):
    assert client.get("/health").json() == {
        "status": "ok",
        "model": "my_run/best_model.pth",
        "version": __version__,
        "notice": RESEARCH_USE_ONLY,
    }


def test_the_page_carries_the_notice_the_model_and_its_accuracy(client):
    text = client.get("/").text
    assert RESEARCH_USE_ONLY in text
    assert "my_run/best_model.pth" in text
    assert "94.1 % on the test part (95 % interval: 92.1 to 95.9)" in text


def test_the_page_loads_nothing_from_elsewhere(client):
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"([^\"]+)\"", client.get("/").text)
    assert loaded
    assert not [address for address in loaded if re.match(r"(https?:)?//", address)]
    assert not re.search(r"@import|url\([\"']?(https?:)?//", client.get("/theme.css").text)


def test_browsers_are_told_to_ask_no_other_address(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "http" not in policy
    assert "*" not in policy


def test_the_page_reports_nothing_and_remembers_nothing(client):
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert not any(dependency["api_visibility"] == "public" for dependency in config["dependencies"])


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_pages_that_load_scripts_from_elsewhere_are_not_served(client, path):
    assert client.get(path).status_code == 404


def test_an_upload_over_the_bound_is_refused(client):
    content = bytes(page.MAX_UPLOAD_MB * 1024**2 + 1)
    assert client.post("/gradio_api/upload", files={"files": ("big.png", content)}).status_code == 413


def test_uploads_lie_in_a_private_folder_that_goes_with_the_server(classifier, tmp_path):
    save_model(tmp_path / "best_model.pth", classifier.model)
    with TestClient(server.build_app(tmp_path / "best_model.pth"), base_url=HOME) as client:
        upload = Path(client.post("/gradio_api/upload", files={"files": ("a.png", b"content")}).json()[0])
        folder = next(parent for parent in upload.parents if parent.name.startswith("cervicyte-"))
        assert upload.read_bytes() == b"content"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_a_port_that_is_taken_is_told_in_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^Port {port} of 127\.0\.0\.1 .*--port\.$"):
            server.serve(tmp_path / "never_read.pth", port=port)


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_only_a_host_that_others_can_reach_is_warned_of(host, warned, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(server, "build_app", lambda *arguments: None)
    monkeypatch.setattr(server.AnnouncingServer, "run", lambda self, sockets: self.announce())
    server.serve(tmp_path / "best_model.pth", host=host, port=0, open_browser=False)
    said = capsys.readouterr()
    assert ("Warning" in said.err) is warned
    assert ("?token=" in said.out) is warned
    assert re.search(r"http://(127\.0\.0\.1|localhost):[1-9]\d*", said.out)
    assert RESEARCH_USE_ONLY in said.out


# --- the page ------------------------------------------------------------------------------------


def test_a_cell_is_read_classified_and_explained_for_every_class(classifier, cell_file):
    cell = page.read_cell(classifier, cell_file)
    assert (cell.name, cell.height, cell.width) == ("cell.png", 30, 50)
    assert tuple(cell.overlays) == CLASSES
    assert all(values.shape == (30, 50, 3) for values in cell.overlays.values())
    assert any((values != cell.image).any() for values in cell.overlays.values())


def test_a_16_bit_tiff_is_shown_as_it_was_decoded(classifier, tmp_path):
    grey = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.tif")
    image = page.read_cell(classifier, tmp_path / "deep.tif").image
    np.testing.assert_array_equal(image[..., 0], np.round(grey / 257))


def test_a_large_image_is_shown_smaller_and_a_huge_one_refused(classifier, tmp_path, monkeypatch):
    Image.new("RGB", (2 * page.SHOWN_SIDE, 40)).save(tmp_path / "wide.png")
    cell = page.read_cell(classifier, tmp_path / "wide.png")
    assert cell.width == 2 * page.SHOWN_SIDE
    assert cell.image.shape == next(iter(cell.overlays.values())).shape == (20, page.SHOWN_SIDE, 3)
    monkeypatch.setattr(page, "MAX_PIXELS", 100)
    with pytest.raises(OversizedImage):
        page.read_cell(classifier, tmp_path / "wide.png")


def test_an_upload_is_answered_and_deleted(classifier, cell_file):
    field, cell, answer, picker, view, verdict = page.answer_upload(classifier, cell_file)
    assert field is None
    assert cell.prediction.class_name == picker["value"]
    assert "Confidence" in answer
    assert picker["visible"]
    assert view["visible"]
    assert view["value"].count("<img") == 3  # the cell, its overlay, the colour scale
    assert verdict == {"value": page.PENDING, "visible": True, "__type__": "update"}
    assert not cell_file.exists()


@pytest.mark.parametrize("content", [b"this is text", b"", b"\x89PNG\r\n\x1a\n and no more"])
def test_an_unreadable_file_is_answered_with_its_sentence_and_deleted(classifier, tmp_path, content):
    path = tmp_path / "note.png"
    path.write_bytes(content)
    _, cell, answer, picker, view, verdict = page.answer_upload(classifier, path)
    assert cell is None
    assert re.search(r"<p>note\.png: [^<]+\.</p>", answer)
    assert str(tmp_path) not in answer
    assert not picker["visible"]
    assert not view["visible"]
    assert not verdict["visible"]
    assert not path.exists()


def test_the_verdict_says_what_was_measured_of_the_map_that_is_shown(classifier, cell_file):
    cell = page.read_cell(classifier, cell_file)
    for name in CLASSES:
        found = classifier.judge(cell.preprocessed, name)
        text = page.verdict_html(name, found)
        assert html.escape(found.sentence) in text
        assert f"{found.forward_passes} pass" in text
        assert f"({html.escape(name)})" in text
        assert "Odd" not in name or name not in text
        assert ("verdict beats" in text) is found.beats_controls


def test_a_class_without_probability_is_not_called_tested():
    text = page.verdict_html("Parabasal", Verdict(float("nan"), {}, 1, 0.004))
    assert "Map not tested" in text
    assert "verdict untested" in text
    assert "0.4 %" in text
    assert "from 1 pass through the network" in text


def test_after_everything_that_shows_a_map_the_verdict_follows(classifier):
    """As chained events, so that the map never waits for its verdict."""
    config = page.build_page(classifier, "model").config
    view = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "verdict")
    judging = [one for one in config["dependencies"] if one["outputs"] == [view]]
    before = {one["id"] for one in config["dependencies"] if view in one["outputs"] and one not in judging}
    assert len(judging) == 3
    assert {one["trigger_after"] for one in judging} == before


def test_verdicts_can_be_left_out_and_the_page_then_says_so(classifier, cell_file):
    config = page.build_page(classifier, "model", with_verdicts=False).config
    assert not [one for one in config["dependencies"] if one["trigger_after"] is not None]
    shown = page.answer(classifier, cell_file, with_verdicts=False)[-1]["value"]
    assert "Map not tested" in shown
    assert shown != page.answer(classifier, cell_file)[-1]["value"]


def test_names_cannot_write_into_the_page(classifier, tmp_path):
    path = tmp_path / "<script>x.png"
    Image.new("RGB", (20, 20)).save(path)
    cell = page.read_cell(classifier, path)
    everything = (
        page.answer_html(cell) + page.map_html(cell, CLASSES[2]) + page.about_html(classifier, "<script>")
    )
    assert "<script>" not in everything
    assert "<b>Odd" not in everything
    assert "&lt;b&gt;Odd &amp; old&lt;/b&gt;" in everything
    assert "<script>" not in page.error_html("<script>: is not an image.")


def test_probabilities_stand_from_high_to_low():
    prediction = Prediction("b", 0.6, {"a": 0.1, "b": 0.6, "c": 0.3})
    cell = page.ReadCell("cell.png", 1, 1, prediction, np.zeros((1, 1, 3), np.uint8), {}, np.zeros((1, 1, 3)))
    assert re.findall(r"<li[^>]*><span>(\w)</span>.*?<b>(.*?)</b>", page.answer_html(cell)) == [
        ("b", "60.0 %"),
        ("c", "30.0 %"),
        ("a", "10.0 %"),
    ]


def test_doubt_stands_above_the_probabilities_in_plain_words():
    sure = Prediction("b", 0.9, {"a": 0.1, "b": 0.9}, ("b",))
    assert "doubt" not in page.doubt_html(sure)
    assert "Classes that it may well be: <b>b</b>" in page.doubt_html(sure)
    torn = Prediction("b", 0.5, {"a<": 0.4, "b": 0.5, "c": 0.1}, ("b", "a<"), "uncertain")
    assert "Uncertain between b and a&lt;." in page.doubt_html(torn)
    unlike = Judgement({}, 99.7, "unlike_training", ("smaller than 99 % of the training cells",))
    strange = Prediction("b", 0.9, {"a": 0.1, "b": 0.9}, ("b",), "unlike_training", unlike)
    text = page.doubt_html(strange)
    assert "trained on: smaller than 99 % of the training cells." in text
    assert "than 100 % of cells" not in text


def test_a_released_models_accuracy_is_that_of_its_cross_validation():
    figures = {"accuracy": {"value": 0.96, "low": 0.95, "high": 0.97}}
    said = page.measured_accuracy({"metrics": {}, "cross_validation": {"figures": figures}})
    assert said == "96.0 % in cross-validation (95 % interval: 95.0 to 97.0)"


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.5, "50.0 %"), (0.9994, "99.9 %"), (0.99999, "> 99.9 %"), (1.0, "> 99.9 %"), (0.0001, "< 0.1 %")],
)
def test_rounding_makes_no_certainty(probability, text):
    assert page.percent(probability) == text


def test_an_accuracy_that_was_not_measured_is_not_claimed():
    assert page.measured_accuracy({}) is None
    assert page.measured_accuracy({"metrics": {"validation": {"accuracy": 0.9}}}) is None


def test_drawn_cells_are_named_for_their_class():
    assert page.sample_name(Path("superficial_intermediate.png")) == "Superficial-Intermediate"
    assert page.sample_name(Path("my_cell.png")) == "my cell"
