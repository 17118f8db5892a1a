"""The dashboard without a browser: what it answers, refuses, and never asks for."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import dataclasses
import hashlib
import html
import io
import json
import os
import re
import socket
import stat
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import uvicorn
from conftest import PROJECT
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from serving import small_classifier
from starlette.types import ASGIApp, Message

from cervicyte import __version__
from cervicyte.dashboard import cell_view, intake, limits, page, server, uploads
from cervicyte.dashboard import worklist as worklist_module
from cervicyte.dashboard.batching import Batcher
from cervicyte.dashboard.cell_view import Looked, look, outline_path
from cervicyte.dashboard.downloads import Download, Source, download_of_cell, download_of_worklist, table_csv
from cervicyte.dashboard.events import Events
from cervicyte.dashboard.intake import Arrived
from cervicyte.dashboard.markup import SHOWN_SIDE
from cervicyte.dashboard.model_view import model_html
from cervicyte.dashboard.reading import AnotherCell, Reading, reading_html, summary_html
from cervicyte.dashboard.reading_log import ReadingLog
from cervicyte.dashboard.results import schema
from cervicyte.dashboard.worklist import Entry, Worklist, filter_html, worklist_html
from cervicyte.datasets.class_guide import guide_of
from cervicyte.datasets.classes import HERLEV_CLASSES, SIPAKMED_CLASSES
from cervicyte.datasets.synthetic import draw_cell
from cervicyte.errors import UsageError
from cervicyte.evaluation.familiarity import Judgement
from cervicyte.explanation.colours import overlay
from cervicyte.explanation.panels import percent
from cervicyte.explanation.verdict import Verdict
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.inference.classifier import Classifier, Prediction
from cervicyte.network.model_file import ModelFile, save_model, weights_hash
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

CLASSES = ("Koilocytotic", "Parabasal", "<b>Odd & old</b>")
HOME = "http://127.0.0.1"  # the name that the server is called by
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
    assert "94.1 % [92.1, 95.9]" in text


def test_every_tab_says_alike_how_long_cells_are_kept(client):
    config = client.get("/config").text
    assert (limits.SECONDS_AFTER_LEAVING, limits.SECONDS_KEPT) == (15 * 60, 4 * 3600)
    assert "15 minutes after this page was left, or 4 hours after you last" in limits.HOW_LONG
    assert config.count(f"alone, {limits.HOW_LONG}.") == 3  # cells, cells to read, what was read
    assert len(re.findall("minutes after|hours after", config)) == 6  # and nowhere otherwise


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
    content = bytes(limits.MAX_UPLOAD_MB * 1024**2 + 1)
    assert client.post("/gradio_api/upload", files={"files": ("big.png", content)}).status_code == 413


BOUNDARY = "cell"
HEAD_OF_FILE = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
)
END_OF_FILE = b"\r\n"
END_OF_FORM = f"--{BOUNDARY}--\r\n".encode()


def uploaded(app: ASGIApp, *pieces: bytes, **last: object) -> list[Message]:
    """Send an upload to an application in pieces, without saying its size; return what it answers."""
    waiting: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    waiting.append({"type": "http.request", "body": b"", "more_body": False} | last)
    kind = f"multipart/form-data; boundary={BOUNDARY}".encode()
    headers = [(b"host", b"127.0.0.1"), (b"content-type", kind)]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "query_string": b""}
    answer: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        answer.append(message)

    async def send_all() -> None:
        await app({**scope, "headers": headers, "root_path": "", "http_version": "1.1"}, receive, send)

    asyncio.run(send_all())
    return answer


def test_the_files_of_one_upload_are_bounded_together_before_and_while_they_come(
    classifier, tmp_path, monkeypatch
):
    path = tmp_path / "best_model.pth"
    save_model(path, classifier.model)
    app = server.build_app(path)
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    piece = bytes(300_000)
    files = [HEAD_OF_FILE, piece, END_OF_FILE] * 4
    with TestClient(app, base_url=HOME) as client:

        def lying() -> list[str]:
            return [found.name for found in folder.rglob("*") if found.is_file() and found.name != "lock"]

        assert uploaded(app, *files, END_OF_FORM)[0]["status"] == 200
        before = lying()
        monkeypatch.setattr(uploads, "MAX_UPLOADS_MB", 1)
        # By what it says of itself, then without that.
        content = [("files", ("a.png", piece)) for _ in range(4)]
        response = client.post("/gradio_api/upload", files=content)
        assert response.status_code == 413
        assert response.json()["detail"] == uploads.TOO_LARGE
        assert uploaded(app, *files, END_OF_FORM)[0]["status"] == 413
        assert lying() == before
        assert uploaded(app, *files[:3], END_OF_FORM)[0]["status"] == 200
        before = lying()
        # A browser that goes away in the middle leaves nothing on the disk.
        uploaded(app, HEAD_OF_FILE, piece, type="http.disconnect")
        assert lying() == before
        for bound in ("MAX_LYING_MB", "MAX_UPLOADS_TOGETHER_MB"):
            with monkeypatch.context() as full:
                full.setattr(uploads, bound, 0)
                response = client.post("/gradio_api/upload", files=content[:1])
            assert response.status_code == 503
            assert response.headers["retry-after"]
            assert lying() == before


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


def at_once(monkeypatch: pytest.MonkeyPatch, *, ready: bool) -> None:
    """Let `serve` announce, and end."""
    batcher = SimpleNamespace(tried=threading.Event(), ready=threading.Event())
    batcher.tried.set()
    if ready:
        batcher.ready.set()
    app = SimpleNamespace(state=SimpleNamespace(batcher=batcher))
    monkeypatch.setattr(server, "build_app", lambda *arguments: app)
    monkeypatch.setattr(server.AnnouncingServer, "run", lambda self, sockets: self.announce())


@pytest.mark.parametrize("ended", [False, True])
def test_the_server_answers_at_once_and_is_announced_when_its_model_was_tried(ended):
    tried, announced, app = threading.Event(), threading.Event(), FastAPI()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical")
        served = server.AnnouncingServer(config, tried.is_set, announced.set)
        serving = threading.Thread(target=served.run, args=([listener],))
        serving.start()
        try:
            with pytest.raises(HTTPError, match="404"):
                urlopen(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60)
            assert not announced.wait(0.3)
            if not ended:
                tried.set()
                assert announced.wait(60)
        finally:
            served.should_exit = True
            serving.join(60)
    assert not serving.is_alive()
    assert announced.is_set() is not ended


def test_a_server_whose_model_fails_at_a_first_image_does_not_call_itself_ready(
    monkeypatch, capsys, tmp_path
):
    at_once(monkeypatch, ready=False)
    server.serve(tmp_path / "best_model.pth", port=0, open_browser=False)
    said = capsys.readouterr().out
    assert "ready" not in said
    assert "its model failed at a first image, at http://127.0.0.1:" in said


def test_a_first_image_that_fails_ends_the_wait(classifier, monkeypatch):
    def fail(images: object) -> None:
        raise MemoryError

    monkeypatch.setattr(classifier, "predict", fail)
    with contextlib.closing(Batcher(classifier)) as batcher:
        assert batcher.tried.wait(60)
        assert not batcher.ready.is_set()


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_only_a_host_that_others_can_reach_is_warned_of(host, warned, monkeypatch, capsys, tmp_path):
    at_once(monkeypatch, ready=True)
    server.serve(tmp_path / "best_model.pth", host=host, port=0, open_browser=False)
    said = capsys.readouterr()
    assert ("Warning" in said.err) is warned
    assert ("?token=" in said.out) is warned
    assert re.search(r"http://(127\.0\.0\.1|localhost):[1-9]\d*", said.out)
    assert RESEARCH_USE_ONLY in said.out


# --- what comes in ---------------------------------------------------------------------------------


def png(seed: int = 0, size: tuple[int, int] = (30, 50)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_an_archive_is_told_by_its_contents_opened_and_deleted(tmp_path):
    members = {"a/one.png": png(1), "__MACOSX/a/._one.png": b"", "read me.txt": b"", "two.PNG": png(2)}
    lone = tmp_path / "lone.bmp"
    lone.write_bytes(b"any")
    found = list(intake.arrivals([zipped(tmp_path / "cells.dat", members), lone]))
    assert [(one.name, one.content) for one in found] == [
        ("one.png", png(1)),
        ("two.PNG", png(2)),
        ("lone.bmp", b"any"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_an_archive_hides_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "MAX_UPLOAD_MB", 1)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.png", bytes(5 << 20))
    (found,) = intake.arrivals([path])
    assert found.error == "big.png: is larger than 1 MB; pack it anew."


@pytest.mark.parametrize("damage", [slice(40, 60), slice(-60, -40), slice(0, 0)])
def test_a_damaged_archive_is_answered_by_a_sentence(tmp_path, damage):
    content = bytearray(zipped(tmp_path / "cells.zip", {"one.png": png()}).read_bytes())
    content[damage] = b"\x55" * len(content[damage])
    (tmp_path / "cells.zip").write_bytes(content if damage.stop else content[:200])
    (found,) = intake.arrivals([tmp_path / "cells.zip"])
    assert found.error.endswith(".")
    assert str(tmp_path) not in found.error
    assert list(tmp_path.iterdir()) == []


def test_names_in_no_encoding_cost_an_archive_alone(tmp_path):
    content = zipped(tmp_path / "cells.zip", {"\u00e4.png": png()}).read_bytes()
    (tmp_path / "cells.zip").write_bytes(content.replace("\u00e4".encode(), b"\xff\xff"))
    (tmp_path / "cell.png").write_bytes(png())
    damaged, cell = intake.arrivals([tmp_path / "cells.zip", tmp_path / "cell.png"])
    assert "is damaged or locked inside its archive" in damaged.error
    assert cell.content == png()


def test_more_images_than_there_is_room_for_are_left_out_in_one_sentence(tmp_path):
    members = {f"{number}.png": png(number) for number in range(5)}
    found = list(intake.arrivals([zipped(tmp_path / "cells.zip", members)], room=2))
    assert [one.name for one in found[:2]] == ["0.png", "1.png"]
    assert len(found) == 3
    assert found[2].error.endswith("clear it, then go on.")


# --- the worklist ----------------------------------------------------------------------------------


@pytest.fixture
def worklist(classifier) -> Worklist:
    found = Worklist(classifier.class_names)
    arrived = [Arrived("a.png", png(1)), Arrived("note.png", b"this is text"), Arrived("b.png", png(2))]
    assert list(found.read(classifier, arrived)) == [3]
    return found


def answered(name: str, key: int, **probabilities: float) -> Entry:
    best = max(probabilities, key=lambda one: probabilities[one])
    return Entry(key, name, prediction=Prediction(best, probabilities[best], probabilities))


def test_the_list_stands_most_abnormal_first_and_what_cannot_be_read_last():
    listed = Worklist(("Dyskeratotic", "Koilocytotic", "Parabasal"))
    listed.entries = [
        answered("sure", 0, Dyskeratotic=0.6, Koilocytotic=0.0, Parabasal=0.4),
        Entry(1, "text", error="text: is no image."),
        answered("normal", 2, Dyskeratotic=0.1, Koilocytotic=0.0, Parabasal=0.9),
        # Neither abnormal class leads, but together they outweigh the first cell's.
        answered("torn", 3, Dyskeratotic=0.35, Koilocytotic=0.27, Parabasal=0.38),
    ]
    assert [entry.name for entry in listed.sorted()] == ["torn", "sure", "normal", "text"]


def test_where_no_class_is_known_to_be_abnormal_the_least_certain_come_first():
    listed = Worklist(("a", "b"))
    listed.entries = [answered("sure", 0, a=0.9, b=0.1), answered("torn", 1, a=0.5, b=0.5)]
    assert [entry.name for entry in listed.sorted()] == ["torn", "sure"]


def test_the_list_answers_as_the_classifier_does_whatever_the_company(classifier, worklist):
    for entry in worklist.answered():
        (alone,) = classifier.predict([read_image(entry.content)])
        assert entry.prediction.class_name == alone.class_name
        assert entry.prediction.confidence == pytest.approx(alone.confidence, abs=1e-5)
        assert entry.sha256 == hashlib.sha256(entry.content).hexdigest()


def test_an_error_stays_in_the_list_as_its_sentence(worklist):
    text = worklist_html(worklist)
    assert text.count("<li") == 3
    assert text.count("data-open") == 2
    assert "note.png: is not an image in a known format; give a BMP, PNG, JPEG or TIFF file." in text


def test_a_list_holds_so_many_bytes_and_no_more(classifier, monkeypatch):
    monkeypatch.setattr(worklist_module, "MAX_WORKLIST_MB", 0)
    found = Worklist(classifier.class_names)
    list(found.read(classifier, [Arrived("a.png", png())]))
    assert found.entries[0].error.endswith("clear it, then go on.")


def test_an_image_over_the_bound_is_refused_before_it_is_decoded(classifier, monkeypatch):
    monkeypatch.setattr(worklist_module, "MAX_PIXELS", 100)
    found = Worklist(classifier.class_names)
    list(found.read(classifier, [Arrived("a.png", png())]))
    assert "more than the 100 that are read" in found.entries[0].error


def test_files_that_come_in_at_two_doors_at_once_keep_keys_of_their_own(classifier):
    found = Worklist(classifier.class_names)

    def take_in(door: int) -> None:
        list(found.read(classifier, [Arrived(f"{door}_{n}.png", png(n)) for n in range(9)]))

    with ThreadPoolExecutor(2) as doors:
        list(doors.map(take_in, range(2)))
    assert [entry.key for entry in found.entries] == list(range(18))
    assert len({entry.name for entry in found.entries}) == 18


def test_doubt_and_unlikeness_are_marked_in_the_list():
    listed = Worklist(("Koilocytotic", "Metaplastic"))
    probabilities = {"Koilocytotic": 0.6, "Metaplastic": 0.4}
    unlike = Judgement({}, 99.7, "unlike_training", ("smaller than 99 % of the training cells",))
    listed.entries = [
        Entry(
            0,
            "torn",
            prediction=Prediction("Koilocytotic", 0.6, probabilities, tuple(probabilities), "uncertain"),
        ),
        Entry(
            1, "odd", prediction=Prediction("Koilocytotic", 0.6, probabilities, (), "unlike_training", unlike)
        ),
    ]
    text = worklist_html(listed)
    assert "or Metaplastic" in text
    assert "unlike training cells" in text
    assert 'data-kind="abnormal doubt"' in text
    assert 'data-kind="abnormal flagged"' in text


# --- one cell --------------------------------------------------------------------------------------


@pytest.fixture
def looked(classifier, worklist) -> Looked:
    return look(classifier, worklist.answered()[0])


def test_a_cell_is_explained_for_every_class_on_one_scale(classifier, looked):
    assert tuple(looked.overlays) == CLASSES
    assert max(looked.peaks.values()) == pytest.approx(1)
    maps = classifier.explain(looked.image)
    highest = max(float(values.max()) for values in maps.values())
    for name, values in maps.items():
        np.testing.assert_array_equal(looked.overlays[name], overlay(looked.image, values, highest))


def test_another_method_or_layer_gives_another_map_and_the_class_stays(classifier, looked):
    before = looked.overlays[CLASSES[1]]
    looked.explain(classifier, CLASSES[1], "layercam", "layer3")
    assert looked.asked == (CLASSES[1], "layercam", "layer3")
    assert (looked.overlays[CLASSES[1]] != before).any()
    with pytest.raises(UsageError):
        looked.explain(classifier, "no such class", "layercam", "layer3")
    with pytest.raises(UsageError):
        looked.explain(classifier, CLASSES[1], "no such method", "layer3")
    assert looked.asked == (CLASSES[1], "layercam", "layer3")


def test_a_large_image_is_shown_smaller_and_explained_whole(classifier):
    found = Worklist(classifier.class_names)
    list(found.read(classifier, [Arrived("wide.png", png(0, (40, 2 * SHOWN_SIDE)))]))
    cell = look(classifier, found.entries[0])
    assert found.entries[0].width == 2 * SHOWN_SIDE
    assert cell.shown.shape == cell.overlays[CLASSES[0]].shape == (20, SHOWN_SIDE, 3)


def test_a_16_bit_tiff_is_shown_as_it_was_decoded(classifier):
    grey, file = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16), io.BytesIO()
    Image.fromarray(grey).save(file, "TIFF")
    found = Worklist(classifier.class_names)
    list(found.read(classifier, [Arrived("deep.tif", file.getvalue())]))
    np.testing.assert_array_equal(look(classifier, found.entries[0]).shown[..., 0], np.round(grey / 257))


def test_outlines_lie_round_nucleus_and_cell_of_a_drawn_cell(classifier):
    cell = draw_cell("Superficial-Intermediate", np.random.default_rng(3))
    file = io.BytesIO()
    Image.fromarray(cell.image).save(file, "PNG")
    found = Worklist(classifier.class_names)
    list(found.read(classifier, [Arrived("drawn.png", file.getvalue())]))
    seen = look(classifier, found.entries[0])
    assert seen.areas is not None
    nucleus, whole = seen.areas
    assert nucleus / whole == pytest.approx(cell.nucleus.sum() / cell.cell.sum(), rel=0.5)
    assert f"{100 * nucleus / whole:.0f} %" in cell_view.areas_html(seen)
    mask = np.zeros((12, 20), bool)
    mask[3:8, 5:15] = True
    assert outline_path(mask) == "M5.5,3.5 5.5,7.5 14.5,7.5 14.5,3.5Z"


def test_the_verdict_says_what_was_measured_of_the_map_that_is_shown(classifier, looked):
    for name in CLASSES:
        found = looked.judge(classifier, (name, "grad-cam", "layer4"))
        text = cell_view.verdict_html(name, found)
        assert html.escape(found.sentence) in text
        assert f"{found.forward_passes} pass" in text
        assert f"({html.escape(name)})" in text
        assert "Odd" not in name or name not in text
        assert ("verdict beats" in text) is found.beats_controls
        assert looked.judge(classifier, (name, "grad-cam", "layer4")) is found  # measured once


def test_a_class_without_probability_is_not_called_tested():
    text = cell_view.verdict_html("Parabasal", Verdict(float("nan"), {}, 1, 0.004))
    assert "Map not tested" in text
    assert "verdict untested" in text
    assert "0.4 %" in text
    assert "from 1 pass through the network" in text


def events_of(classifier: Classifier, folder: Path, with_verdicts: bool = True) -> Events:
    return Events(classifier, "model", Batcher(classifier), folder, with_verdicts)


def test_after_everything_that_shows_a_map_the_verdict_follows(classifier, tmp_path):
    """As chained events, so that the map never waits for its verdict."""
    config = page.build_page(events_of(classifier, tmp_path), "model").config
    named = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
    after = [one["trigger_after"] for one in config["dependencies"]]
    of_bridge = {
        one["targets"][0][1]: one["id"]
        for one in config["dependencies"]
        if one["targets"] and one["targets"][0][0] == named["bridge"]
    }
    for name in ("open", "explain", "use"):
        assert after.count(of_bridge[name]) == 1, name
    # After files were read the first cell is opened, and that is followed by the verdict.
    opening = next(
        one["id"] for one in config["dependencies"] if one["trigger_after"] == of_bridge["samples"]
    )
    assert after.count(opening) == 1
    assert sum(one is not None for one in after) == 7


def test_verdicts_can_be_left_out(classifier, tmp_path):
    config = page.build_page(events_of(classifier, tmp_path, with_verdicts=False), "model").config
    assert [one["trigger_after"] is not None for one in config["dependencies"]].count(True) == 2
    assert "not\nknown" in cell_view.UNTESTED


def test_names_cannot_write_into_the_page(classifier):
    found = Worklist(classifier.class_names)
    arrived = [Arrived("<script>x.png", png()), Arrived("<script>y.png", b"no")]
    list(found.read(classifier, arrived))
    cell = look(classifier, found.entries[0])
    everything = (
        worklist_html(found)
        + cell_view.answer_html(found, cell)
        + cell_view.viewer_html(classifier, cell)
        + cell_view.details_html(classifier, cell, {})
        + page.masthead_html("<script>")
        + filter_html(classifier.class_names)
    )
    assert "<script>" not in everything
    assert "<b>Odd" not in everything
    assert "&lt;b&gt;Odd &amp; old&lt;/b&gt;" in everything


def test_probabilities_stand_from_high_to_low_and_the_set_is_marked():
    prediction = Prediction("b", 0.6, {"a": 0.1, "b": 0.6, "c": 0.3}, ("b", "c"))
    text = cell_view.bars_html(prediction, {"a": None, "b": None, "c": None})
    assert re.findall(r"<span>(\w) .*?<b>(.*?)</b>", text) == [
        ("b", "60.0 %"),
        ("c", "30.0 %"),
        ("a", "10.0 %"),
    ]
    assert text.count("in the set</span>") == 2
    assert "b or c" in cell_view.set_html(prediction)


def test_doubt_stands_in_plain_words():
    assert cell_view.doubt_html(Prediction("b", 0.9, {"a": 0.1, "b": 0.9}, ("b",))) == ""
    torn = Prediction("b", 0.5, {"a<": 0.4, "b": 0.5, "c": 0.1}, ("b", "a<"), "uncertain")
    assert "Uncertain between b and a&lt;." in cell_view.doubt_html(torn)
    unlike = Judgement(
        {"size_px": 0.3}, 99.7, "unlike_training", ("smaller than 99 % of the training cells",)
    )
    strange = Prediction("b", 0.9, {"a": 0.1, "b": 0.9}, ("b",), "unlike_training", unlike)
    assert "trained on: smaller than 99 % of the training cells." in cell_view.doubt_html(strange)
    classifier = small_classifier()
    text = cell_view.unlike_html(classifier, strange)
    assert "99 %</b> of other cells of the training laboratory" in text  # never 100 of what is not all
    assert "Size" in text
    classifier.answerer = dataclasses.replace(classifier.answerer, is_adapted=True)
    assert "99 %</b> of the images that the model was adapted to" in cell_view.unlike_html(
        classifier, strange
    )


def test_what_the_model_cannot_name_is_said():
    sipakmed = tuple(one.name for one in SIPAKMED_CLASSES)
    assert cell_view.absent_sentence(sipakmed).startswith(
        "High-grade lesions (HSIL), carcinoma and glandular cells"
    )
    assert "cannot be named" in cell_view.absent_sentence(("a", "b"))


def test_every_known_class_is_described_and_no_other():
    for classes in (SIPAKMED_CLASSES, HERLEV_CLASSES):
        names = tuple(one.name for one in classes)
        assert tuple(guide_of(names)) == names
        for one in classes:
            assert guide_of(names)[one.name].means.lower().startswith(str(one.grouping))
    assert guide_of(("a", "b")) == {}


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.5, "50.0 %"), (0.9994, "99.9 %"), (0.99999, "> 99.9 %"), (1.0, "> 99.9 %"), (0.0001, "< 0.1 %")],
)
def test_rounding_makes_no_certainty(probability, text):
    assert percent(probability) == text


def test_drawn_cells_are_named_for_their_class():
    assert cell_view.drawn_name("superficial_intermediate") == "Superficial-Intermediate"
    assert cell_view.drawn_name("my_cell") == "my cell"


# --- downloads -------------------------------------------------------------------------------------


@pytest.fixture
def source(classifier, worklist, looked) -> Source:
    looked.judge(classifier, looked.asked)
    return Source(classifier, "my_run/best_model.pth", worklist, looked)


@pytest.mark.parametrize(
    ("of", "kinds"), [("cell", ("json", "csv", "pdf", "png")), ("list", ("json", "csv", "pdf"))]
)
def test_every_download_carries_the_notice_and_the_hashes(source, of, kinds):
    weights = weights_hash(source.classifier.model.network)
    for kind in kinds:
        found = made(source, of, kind)
        assert found.name.endswith(f".{kind}")
        text = words_in(found)
        assert RESEARCH_USE_ONLY in text
        assert kind == "csv" or weights in text
        assert source.looked.entry.sha256 in text
    assert download_of_cell(source, "exe") is None
    assert download_of_worklist(source, "exe") is None


def made(source: Source, of: str, kind: str) -> Download:
    found = (download_of_cell if of == "cell" else download_of_worklist)(source, kind)
    assert found is not None
    return found


def text_of_png(content: bytes) -> dict[str, str]:
    image = Image.open(io.BytesIO(content))
    assert isinstance(image, PngImageFile)
    return dict(image.text)


def words_in(found: Download) -> str:
    """Return what a reader can read in a download, with other programs than those that wrote it."""
    if found.name.endswith(".pdf"):
        pdfium = pytest.importorskip("pypdfium2", reason="needs pypdfium2: pip install pypdfium2")
        pages = [one.get_textpage().get_text_bounded() for one in pdfium.PdfDocument(found.content)]
        # A hash stands alone in its line, and a line's end is no part of a sentence.
        return re.sub(r"\s+", " ", " ".join(pages))
    if found.name.endswith(".png"):
        return " ".join(text_of_png(found.content).values())
    return found.content.decode("utf-8")


def test_json_is_of_the_published_schema_and_holds_no_more_than_numbers(source):
    published = json.loads((PROJECT / "docs" / "schemas" / "results-1.json").read_text("utf-8"))
    assert published == schema(), "write it anew: see docs/dashboard.md"
    content = json.loads(made(source, "list", "json").content, parse_constant=pytest.fail)
    assert [one["image"]["name"] for one in content["cells"]] == [e.name for e in source.worklist.sorted()]
    assert content["cells"][-1]["error"].startswith("note.png: ")
    checker = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install jsonschema")
    checker.validate(content, published)
    del content["notice"]
    with pytest.raises(checker.ValidationError):
        checker.validate(content, published)


def test_the_table_has_a_row_a_file_and_no_formula(classifier):
    found = Worklist(classifier.class_names)
    list(found.read(classifier, [Arrived("=cmd|' /C calc'!A0.png", png()), Arrived("=note.png", b"text")]))
    rows = list(csv.DictReader(io.StringIO(table_csv(classifier, found.sorted()))))
    assert [row["path"][0] for row in rows] == ["'", "'"]
    assert rows[0]["predicted_class"] in CLASSES
    (said, _) = (entry.prediction for entry in found.sorted())
    assert said is not None
    assert float(rows[0]["confidence"]) == pytest.approx(said.confidence, abs=1e-6)
    assert rows[1]["error"].startswith("'=note.png: ")


def test_the_picture_shows_the_map_that_was_looked_at(source):
    before = made(source, "cell", "png").content
    source.looked.explain(source.classifier, CLASSES[1], "layercam", "layer3")
    after = made(source, "cell", "png").content
    assert before != after
    assert "LayerCAM at layer3" in text_of_png(after)["Description"]


def test_the_same_download_twice_is_two_downloads(source):
    found = made(source, "cell", "csv")
    first, second = json.loads(found.packed()), json.loads(found.packed())
    assert first != second
    assert first["data"] == second["data"]


# --- reading blind ---------------------------------------------------------------------------------


@pytest.fixture
def reading(classifier) -> Reading:
    found = Reading(Worklist(classifier.class_names))
    list(found.cells.read(classifier, [Arrived("a_Parabasal.png", png(1)), Arrived("b.png", png(2))]))
    return found


def test_a_reading_comes_before_the_answer_and_names_no_file(classifier, reading):
    text = reading_html(reading, classifier.class_names)
    assert "Cell 1 of 2" in text
    assert "a_Parabasal" not in text
    assert " %" not in text  # no probability
    assert text.count('type="radio"') == len(CLASSES) + 1
    reading.record(classifier, "0", "Parabasal", "small", set(), None)
    text = reading_html(reading, classifier.class_names)
    assert "a_Parabasal" in text
    assert html.escape(reading.taken[0].entry.prediction.class_name) in text
    assert text.count('class="track ') == len(CLASSES)


def test_a_reading_cannot_be_made_again_while_the_answer_is_shown(classifier, reading):
    reading.record(classifier, "0", "Parabasal", "", set(), None)
    reading.record(classifier, "0", "Parabasal", "", set(), None)  # sent twice
    with pytest.raises(AnotherCell):
        reading.record(classifier, "0", "Koilocytotic", "", set(), None)
    assert [one.label for one in reading.taken] == ["Parabasal"]
    reading.revealed = False
    assert "Cell 2 of 2" in reading_html(reading, classifier.class_names)


def test_a_reading_of_another_cell_than_the_next_is_not_kept(classifier, reading, tmp_path):
    """A tab that was duplicated shows the same list."""
    log = ReadingLog(tmp_path / "readings.sqlite")
    reading.record(classifier, "0", "Parabasal", "in one tab", set(), log)
    reading.revealed = False
    with pytest.raises(AnotherCell, match="was not kept"):
        reading.record(classifier, "0", "Koilocytotic", "in the other", set(), log)
    assert [one.remark for one in log.rows()] == ["in one tab"]
    assert len(reading.taken) == 1
    assert 'name="cell" value="1"' in reading_html(reading, classifier.class_names)


def test_what_was_seen_before_does_not_count_as_blind(classifier, reading):
    seen = {reading.cells.entries[0].sha256}
    for cell in "01":
        reading.record(classifier, cell, "Parabasal", "", seen, None)
        reading.revealed = False
    assert [one.blind for one in reading.taken] == [False, True]
    assert reading.agreement().cells == 1


def test_a_cell_without_a_class_counts_as_read_but_not_as_agreement(classifier, reading):
    reading.record(classifier, "0", "no such class", "folded", set(), None)
    assert (reading.taken[0].label, reading.agreement().cells) == ("", 0)
    assert "You gave no class" in reading_html(reading, classifier.class_names)


def test_readings_are_kept_in_the_log_if_there_is_one(classifier, reading, tmp_path):
    log = ReadingLog(tmp_path / "readings.sqlite")
    reading.record(classifier, "0", "Parabasal", "small", set(), log)
    (row,) = log.rows()
    assert (row.label, row.remark, row.blind) == ("Parabasal", "small", True)
    assert row.image_sha256 == reading.taken[0].entry.sha256
    assert "kept in the reading log" in summary_html(reading, logged=True)
    assert f"kept for this page alone, {limits.HOW_LONG}" in summary_html(reading, logged=False)


def test_readings_leave_as_a_table(classifier, reading):
    reading.record(classifier, "0", "Parabasal", '=1+1, "quoted"\nand more', set(), None)
    (row,) = csv.DictReader(io.StringIO(reading.csv(classifier)))
    assert row["remark"] == '\'=1+1, "quoted"\nand more'
    assert row["notice"] == RESEARCH_USE_ONLY
    assert row["label"] == "Parabasal"
    assert row["model_sha256"] == weights_hash(classifier.model.network)


# --- the model -------------------------------------------------------------------------------------


def test_the_model_s_figures_stand_with_their_intervals_and_its_matrix_if_there_is_one(classifier):
    text = model_html(classifier, "<model>")
    assert "94.1 % [92.1, 95.9]" in text
    assert "&lt;model&gt;" in text
    assert "holds no confusion matrix" in text
    counts = {"counts": [[51, 2, 3], [4, 55, 6], [7, 8, 59]]}
    metrics = {**MEASURED["metrics"], "test_confusion_matrix": counts}
    model = dataclasses.replace(classifier.model, metadata={"metrics": metrics})
    text = model_html(Classifier(model), "model")
    for count in (51, 55, 59):
        assert f">{count}<small>" in text
    assert "91.1 %" in text  # 51 of 56
    assert "No figures were recorded" in model_html(
        Classifier(dataclasses.replace(model, metadata={})), "model"
    )
