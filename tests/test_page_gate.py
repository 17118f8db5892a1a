"""Of what Gradio would answer only what the page asks goes through; nobody is asked on a visitor's behalf."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from serving import png_of, small_classifier, whole_server

from cervicyte.dashboard import limits
from cervicyte.dashboard.events import LISTED, Events
from cervicyte.dashboard.page_gate import NOT_HERE, NOT_SENT, TOO_LONG

ADDRESS = "http://tracker.example/cell.png"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Iterator[tuple[TestClient, Events]]:
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        whole_server(small_classifier(), tmp_path_factory.mktemp("model"), monkeypatch) as both,
    ):
        yield both


@pytest.fixture
def client(whole) -> TestClient:
    return whole[0]


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Return the names of hosts that somebody wanted to know the address of."""
    found: list[str] = []

    def refuse(host: str, *_: object, **__: object) -> list[object]:
        found.append(host)
        raise socket.gaierror(f"{host} is not asked in a test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return found


def upload(client: TestClient, *files: tuple[str, bytes]) -> list[str]:
    response = client.post("/gradio_api/upload", files=[("files", file) for file in files])
    assert response.status_code == 200
    return response.json()


def question(client: TestClient, *paths: str, key: str = "a" * 64) -> dict[str, object]:
    """Return what the page sends when files were dropped into the first field."""
    (number,) = [
        one["id"]
        for one in client.get("/config").json()["dependencies"]
        if any(event == "upload" for _, event in one["targets"])
    ][:1]
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
    return {"data": [key, files], "fn_index": number, "session_hash": "page"}


@pytest.mark.parametrize(
    "path",
    [
        f"/gradio_api/file={ADDRESS}",
        f"/file={ADDRESS}",
        f"/gradio_api/proxy={ADDRESS}",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/openapi.json",
        "/monitoring",
    ],
)
def test_gradio_fetches_nothing_and_gives_no_file(client, asked, path):
    for given in ({}, {"origin": "https://elsewhere.example"}):
        response = client.get(path, headers=given)
        assert (response.status_code, response.json()["detail"]) == (404, NOT_HERE)
    assert asked == []


def test_a_file_that_was_not_sent_here_is_no_file(client, whole, asked, tmp_path):
    (sent,) = upload(client, ("a.png", png_of(1)))
    folder = Path(sent).parent.parent
    lock = folder / "lock"
    for place in (
        ADDRESS,
        str(lock),
        f"{folder}/../{folder.name}/lock",
        "/etc/passwd",
        str(Path(sent).parent),
    ):
        response = client.post("/gradio_api/queue/join", json=question(client, sent, place))
        assert (response.status_code, response.json()["detail"]) == (403, NOT_SENT)
    response = client.post("/gradio_api/queue/join", json={"data": [{"deep": [{"path": 7}]}], "fn_index": 0})
    assert response.status_code == 403
    assert lock.exists()
    assert asked == []


def test_what_was_sent_is_read(client, whole):
    (sent,) = upload(client, ("a.png", png_of(1)))
    assert client.post("/gradio_api/queue/join", json=question(client, sent)).status_code == 200
    end = time.monotonic() + 60
    while Path(sent).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(sent).parent.exists()


def test_a_question_is_bounded_by_what_comes_whatever_it_says_of_itself(client):
    piece = b" " * (1 << 20)

    def pieces() -> Iterator[bytes]:
        for _ in range(limits.MAX_QUESTION_MB + 1):
            yield piece

    for path in ("/gradio_api/queue/join", "/gradio_api/reset"):
        response = client.post(path, content=pieces())
        assert (response.status_code, response.json()["detail"]) == (413, TOO_LONG)


def test_two_pages_that_send_the_same_file_do_not_take_it_from_each_other(client, whole):
    _, events = whole
    same = ("cells.png", png_of(5))
    (first,), (second,) = upload(client, same), upload(client, same)
    for key, path in (("d" * 64, first), ("b" * 64, second)):
        *_, last = events.read_uploads(key, [path])
        assert last[LISTED].count("data-open") == 1
        assert 'class="failed"' not in last[LISTED]
    both = upload(client, same, same)
    *_, last = events.read_uploads("c" * 64, both)
    assert last[LISTED].count("data-open") == 2
