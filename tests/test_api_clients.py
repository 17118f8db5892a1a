"""The clients in examples/ work as they stand."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT
from PIL import Image
from serving import api_of, png_of, served, small_classifier

from cervicyte.dashboard.access import TokenGate
from cervicyte.dashboard.api import Answers

TOKEN = "a-token-of-the-test"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with api_of(small_classifier()) as app:
        app.add_middleware(TokenGate, token=TOKEN)
        with served(app) as address:
            yield address


@pytest.fixture
def cells(tmp_path) -> list[str]:
    for seed, name in enumerate(("one cell.png", "other.png")):
        (tmp_path / name).write_bytes(png_of(seed))
    return ["one cell.png", "other.png"]


def run(command: list[str], folder: Path, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CERVICYTE_TOKEN": token}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=60)


def test_the_python_client_prints_a_line_an_image_and_writes_its_map(address, cells, tmp_path):
    client = [sys.executable, str(PROJECT / "examples" / "api_client.py"), address]
    finished = run([*client, *cells], tmp_path)
    assert finished.returncode == 0, finished.stderr
    first, second = finished.stdout.splitlines()
    assert first.startswith("one cell.png: ")
    assert second.startswith("other.png: ")
    drawn = Image.open(io.BytesIO((tmp_path / "one cell.map.png").read_bytes()))
    assert drawn.size == (40, 30)
    (tmp_path / "note.png").write_text("text")
    failed = run([*client, "note.png"], tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("422: note.png: is not an image")
    assert "401: A token is needed" in run([*client, "other.png"], tmp_path, "wrong").stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_client_prints_the_answer_to_all_images(address, cells, tmp_path):
    client = ["sh", str(PROJECT / "examples" / "api_client.sh"), address]
    finished = run([*client, *cells], tmp_path)
    assert finished.returncode == 0, finished.stderr
    answers = Answers.model_validate(json.loads(finished.stdout))
    assert [one.name for one in answers.results] == cells
    refused = run([*client, *cells], tmp_path, "wrong")
    assert refused.returncode != 0
    assert json.loads(refused.stdout)["status"] == 401
