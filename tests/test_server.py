"""The server as it is served: token, proxy, API and pages in one, and what a killed one leaves behind."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import CLASSES, png_of, small_classifier

from cervicyte.dashboard import server
from cervicyte.dashboard.batching import LOGGER, log_failure
from cervicyte.dashboard.problems import MEDIA_TYPE, Problem
from cervicyte.errors import UsageError
from cervicyte.network.model_file import save_model

PATIENCE = 300  # seconds, for a busy machine
HOME = "http://127.0.0.1"
TOKEN = "a-token-of-the-test"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("private") / "my_run" / "best_model.pth"
    save_model(path, small_classifier().torch_model())
    return path


@pytest.fixture(scope="module")
def gated(model_path) -> Iterator[TestClient]:
    access = server.Access(server.own_names("127.0.0.1"), TOKEN, "/cells")
    with TestClient(server.build_app(model_path, access=access), base_url=HOME) as client:
        yield client


def test_with_a_token_neither_pages_nor_uploads_nor_the_api_are_open(gated):
    for path in ("/config", "/theme.css", "/gradio_api/info", "/gradio_api/queue/data", "/api/v1/model"):
        assert gated.get(path).status_code == 401
    assert gated.post("/gradio_api/upload", files={"files": ("a.png", b"content")}).status_code == 401
    assert gated.get("/health").json()["status"] == "ok"
    assert gated.get("/api/v1/model", headers=BEARER).json()["class_names"] == list(CLASSES)


def test_a_form_of_this_page_is_sent_with_its_own_origin(gated):
    """By "no-referrer" browsers send it with the origin "null", which is refused: nobody could sign in."""
    assert gated.get("/", headers={"accept": "text/html"}).headers["referrer-policy"] == "same-origin"
    own = {"origin": HOME}
    signed_in = gated.post("/login", data={"token": TOKEN}, headers=own, follow_redirects=False)
    assert signed_in.status_code == 303


def test_behind_a_proxy_everything_is_asked_below_its_path(gated):
    assert gated.get("/config", headers=BEARER).json()["root"] == f"{HOME}/cells"
    described = gated.get("/api/v1/openapi.json", headers=BEARER).json()
    assert described["servers"] == [{"url": "/cells/api/v1"}]
    assert f'"root":"{HOME}/cells"' in gated.get("/", headers=BEARER).text.replace('": "', '":"')


def test_the_api_stands_beside_the_pages_and_has_the_same_headers(gated):
    response = gated.get("/api/v1/model", headers=BEARER)
    assert response.json()["model"]["name"] == "my_run/best_model.pth"
    assert response.headers["content-security-policy"].startswith("default-src 'self'")
    assert gated.get("/health", headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("path", ["/api/v2/predict", "/nothing", "/no/such/page"])
def test_outside_the_api_an_address_that_is_not_there_is_a_problem_too(gated, path):
    response = gated.get(path, headers=BEARER)
    assert (response.status_code, response.headers["content-type"]) == (404, MEDIA_TYPE)
    assert Problem.model_validate(response.json()).detail.startswith("There is no such address here")


def test_gradios_own_errors_stay_as_its_script_reads_them(gated):
    response = gated.post("/gradio_api/upload", headers=BEARER, content=b"no form")
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"


def test_what_a_page_is_sent_is_never_logged(gated, capfd, caplog):
    """Gradio prints its errors with what was sent."""
    asked = {"data": ["PATIENT Maria Muster"], "fn_index": 0, "session_hash": "y"}
    assert gated.post("/gradio_api/queue/join", json=asked, headers=BEARER).status_code == 200
    end = time.monotonic() + 30
    while not caplog.records and time.monotonic() < end:
        time.sleep(0.05)
    gated.get("/gradio_api/custom_component/Maria/client/a/b", headers=BEARER)
    written = capfd.readouterr()
    assert "Maria" not in written.out + written.err + caplog.text
    assert re.search(r"ValueError in \w+\.py:\d+", caplog.text)
    assert [
        name
        for name, module in sys.modules.items()
        if name.startswith("gradio.") and vars(module).get("traceback") is traceback
    ] == []


def test_a_line_that_cannot_be_logged_takes_no_text_along(capfd):
    closed = io.StringIO()
    closed.close()
    handler = server.LineHandler(closed)
    LOGGER.addHandler(handler)
    try:
        raise ValueError("PATIENT Maria Muster")
    except ValueError as error:
        log_failure(error)
    finally:
        LOGGER.removeHandler(handler)
    written = capfd.readouterr()
    assert "Maria" not in written.out + written.err


def test_a_task_that_nobody_waits_for_fails_without_its_text(model_path, capfd, caplog):
    async def fail() -> None:
        raise ValueError("PATIENT Maria Muster")

    async def serve_and_fail() -> None:
        app = server.build_app(model_path)
        async with app.router.lifespan_context(app):
            task = asyncio.create_task(fail())
            await asyncio.wait([task])
            del task
            gc.collect()

    asyncio.run(serve_and_fail())
    written = capfd.readouterr()
    assert "Maria" not in written.out + written.err + caplog.text
    assert re.search(r"ValueError in test_server\.py:\d+", caplog.text)


@pytest.mark.parametrize("root_path", ["cells", "/cells/", "/"])
def test_a_path_that_no_proxy_can_have_is_refused(root_path):
    with pytest.raises(UsageError, match="must begin with / and not end with it"):
        server.serve(Path("never_read.pth"), port=0, root_path=root_path)


# --- a process of its own --------------------------------------------------------------------------


def started(model_path: Path, folder: Path, *options: str) -> tuple[subprocess.Popen[str], str, Path]:
    """Start `cervicyte serve` with a folder for its temporary files; return it, its address, its output."""
    said = folder.parent / f"said_{time.monotonic_ns()}.txt"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cervicyte",
            "serve",
            str(model_path),
            "--no-browser",
            "--port",
            "0",
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=said.open("w"),
        text=True,
        env={**{k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"}, "TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    address = re.search(r"http://\S+", process.stdout.readline())
    assert address is not None, said.read_text()
    return process, address[0], said


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="a killed server's folder is left to the system there")
def test_a_killed_server_leaves_uploads_that_the_next_start_removes(model_path, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    cell = png_of(7)
    killed, address, _ = started(model_path, folder)
    held = httpx.post(
        f"{address}/gradio_api/upload", files={"files": ("my-cell.png", cell)}, timeout=PATIENCE
    ).json()[0]
    assert (
        httpx.post(f"{address}/api/v1/predict", files={"images": cell}, timeout=PATIENCE).status_code == 200
    )
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [path.read_bytes() for path in files_below(folder)] == [cell]
    assert folder in Path(held).parents
    living, address, said = started(model_path, folder)
    try:
        assert files_below(folder) == []
        assert (
            httpx.post(f"{address}/api/v1/predict", files={"images": cell}, timeout=PATIENCE).status_code
            == 200
        )
        httpx.post(f"{address}/api/v1/predict", files={"images": ("my-cell.png", b"text")}, timeout=PATIENCE)
        assert files_below(folder) == []
    finally:
        living.send_signal(signal.SIGINT)
        told, _ = living.communicate(timeout=PATIENCE)
    assert files_below(folder) == []  # Gradio makes an empty folder of its own
    assert list(folder.glob("cervicyte-*")) == []
    assert "my-cell" not in told + said.read_text()


@pytest.mark.full
def test_a_server_that_others_can_reach_shows_a_token_and_lets_in_by_it(model_path, tmp_path):
    process, address, said = started(model_path, tmp_path, "--host", "0.0.0.0")
    try:
        home, token = address.split("/?token=")
        assert "without encryption" in said.read_text()
        with httpx.Client(base_url=home, timeout=PATIENCE) as client:
            assert client.get("/api/v1/model").status_code == 401
            model = client.get("/api/v1/model", headers={"authorization": f"Bearer {token}"})
            assert model.json()["class_names"] == list(CLASSES)
            assert client.get("/", headers={"accept": "text/html"}).status_code == 401
            signed_in = client.get(f"/?token={token}", follow_redirects=True)
            assert signed_in.status_code == 200
            assert "gradio" in signed_in.text
            assert client.get("/api/v1/model").status_code == 200  # by the cookie
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert token not in said.read_text()
