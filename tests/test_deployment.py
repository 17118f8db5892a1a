"""The examples of docs/deployment.md: they fit the program and each other, and nginx runs its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import (
    BROWSER_AND_PROXY,
    PROJECT,
    browser_module,
    chromium_path,
    without_browser_or_proxy,
)
from serving import CLASSES, png_of, small_classifier
from typer.core import TyperGroup
from typer.main import get_command

from cervicyte.cli import app
from cervicyte.dashboard import limits
from cervicyte.network.model_file import save_model

PAGE = (PROJECT / "docs" / "deployment.md").read_text(encoding="utf-8")
TOKEN = "a-token-of-the-test"
NAME = "cells.lab.example"
PATIENCE = 120  # seconds, for a busy machine


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def unit() -> dict[str, str]:
    text = re.sub(r"\\\n\s*", "", example("ini"))
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")


def directives(text: str) -> list[list[str]]:
    """Return the words of every directive of a configuration for nginx; its braces must close."""
    text = re.sub(r"#.*", "", text)
    assert text.count("{") == text.count("}")
    return [one.split() for one in re.split(r"[;{}]", text) if one.strip()]


def test_proxy_and_service_speak_of_one_server(unit):
    proxy: dict[str, list[list[str]]] = {}
    for name, *words in directives(example("nginx")):
        proxy.setdefault(name, []).append(words)
    command = unit["ExecStart"].split()
    given = dict(itertools.pairwise(command))
    below = given["--root-path"]
    assert proxy["location"] == [[f"{below}/"], [f"{below}/api/"]]
    assert proxy["server_name"] == [[given["--allow-host"]]]
    serve = get_command(app)
    assert isinstance(serve, TyperGroup)
    port = next(one.default for one in serve.commands["serve"].params if one.name == "port")
    behind = f"http://127.0.0.1:{port}"
    assert proxy["proxy_pass"] == [[f"{behind}/"], [f"{behind}/api/"]]
    (size,), (size_of_api,) = proxy["client_max_body_size"]
    assert int(size.rstrip("m")) == limits.MAX_UPLOADS_MB + 1  # a page sends its files in one request
    assert int(size_of_api.rstrip("m")) == limits.MAX_UPLOAD_MB + 1
    tutorial = (PROJECT / "docs" / "tutorials" / "deploy.md").read_text("utf-8")
    assert f"`client_max_body_size {size}`" in tutorial
    assert given["--log"].startswith(unit["ReadWritePaths"])


def test_proxy_writes_neither_uploads_nor_the_token(unit):
    assert ["proxy_request_buffering", "off"] in directives(example("nginx"))
    assert ["access_log", "off"] in directives(example("nginx"))
    assert unit["PrivateTmp"] == "yes"  # where uploads lie until they are read


def test_the_service_has_memory_for_all_that_pages_may_hold(unit):
    assert int(unit["MemoryMax"].rstrip("G")) << 10 > 2 * (limits.MAX_SESSIONS_MB + limits.MAX_BODIES_MB)


def test_systemd_takes_the_unit(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    path = tmp_path / "cervicyte.service"
    path.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={sys.executable}", example("ini")))
    verified = subprocess.run([analyze, "verify", "--man=no", path], capture_output=True, text=True)
    complaints = [line for line in verified.stderr.splitlines() if "cervicyte.service" in line]
    assert [line for line in complaints if "Unknown" in line or "Failed to parse" in line] == []


def test_where_browser_and_proxy_are_required_nothing_of_them_skips(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *names, **where: None)
    missing = (chromium_path, lambda: browser_module("no_such_module", "it"))
    monkeypatch.delenv(BROWSER_AND_PROXY, raising=False)
    for one in missing:
        with pytest.raises(pytest.skip.Exception, match="needs"):
            one()
    monkeypatch.setenv(BROWSER_AND_PROXY, "required")
    for one in missing:
        with pytest.raises(pytest.fail.Exception, match="needs"):
            one()
    assert f"export {BROWSER_AND_PROXY}=required" in (PROJECT / ".ci" / "run").read_text("utf-8")


# --- nginx itself ----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None or shutil.which("openssl") is None:
        without_browser_or_proxy("needs nginx and openssl: apt-get install nginx openssl")
    return found


def configuration(folder: Path, port: int, behind: int) -> Path:
    """Write the page's example with this machine's ports and files."""
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
    subprocess.run(
        [*made, "-keyout", folder / "key.pem", "-out", folder / "cells.pem"], check=True, capture_output=True
    )
    text = example("nginx").replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    text = text.replace("/etc/ssl/cells.pem", f"{folder}/cells.pem")
    text = text.replace("/etc/ssl/cells.key", f"{folder}/key.pem")
    text = text.replace("/var/log/nginx/error.log", f"{folder}/error.log")
    text = text.replace("127.0.0.1:7860", f"127.0.0.1:{behind}")
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.getuid() == 0 else ""  # or its workers could not enter the test's folder
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; {user} pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{\n{temporary}\n{text}}}\n"
    )
    return path


def test_nginx_takes_the_example(nginx, tmp_path):
    path = configuration(tmp_path, free_port(), 7860)
    tested = subprocess.run([nginx, "-t", "-p", tmp_path, "-c", path], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr


@pytest.fixture(scope="module")
def proxied(nginx, tmp_path_factory) -> Iterator[tuple[Path, int]]:
    """Run the server behind nginx as the page says; yield the proxy's folder and port."""
    folder = tmp_path_factory.mktemp("proxy")
    save_model(folder / "best_model.pth", small_classifier().torch_model())
    (folder / "token").write_text(TOKEN)
    port, behind = free_port(), free_port()
    command = [sys.executable, "-m", "cervicyte", "serve", folder / "best_model.pth", "--no-browser"]
    command += ["--token-file", folder / "token", "--allow-host", NAME, "--root-path", "/cells"]
    environment = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    with contextlib.ExitStack() as stack:
        for arguments in (
            [*command, "--port", str(behind)],
            [nginx, "-p", folder, "-c", configuration(folder, port, behind)],
        ):
            running = subprocess.Popen(
                arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(running.wait, 30)
            stack.callback(running.terminate)
        with client_of(port) as client:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/cells/api/v1/ready").status_code == 200:
                        break
                time.sleep(0.2)
        yield folder, port


def client_of(port: int, **headers: str) -> httpx.Client:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    return httpx.Client(
        base_url=f"https://127.0.0.1:{port}",
        verify=trusting,
        timeout=PATIENCE,
        headers={"host": f"{NAME}:{port}", **headers},
    )


@pytest.mark.full
def test_behind_the_proxy_the_api_answers_and_the_pages_ask_for_the_token(proxied):
    _, port = proxied
    with client_of(port) as client:
        assert client.get("/cells/api/v1/model").status_code == 401
        assert client.get("/cells/", headers={"accept": "text/html"}).status_code == 401
        signed_in = client.get(f"/cells/?token={TOKEN}", headers={"accept": "text/html"})
        assert signed_in.status_code == 303
        assert signed_in.headers["location"] == "/cells/"
        assert "Secure" in signed_in.headers["set-cookie"]
    with client_of(port, authorization=f"Bearer {TOKEN}") as client:
        answer = client.post("/cells/api/v1/predict", files={"images": ("a.png", png_of(1))})
        assert answer.json()["results"][0]["predicted_class"] in CLASSES
        assert client.get("/cells/config").json()["root"] == f"https://{NAME}:{port}/cells"
        too_large = client.post("/cells/api/v1/predict", content=bytes(52 << 20))
        assert too_large.status_code == 413
        together = [("files", (f"{number}.png", bytes(30 << 20))) for number in range(2)]
        assert client.post("/cells/gradio_api/upload", files=together).status_code == 200


@pytest.mark.full
def test_a_browser_reads_cells_through_the_proxy_and_sees_them_come_in(proxied, tmp_path):
    playwright = browser_module("playwright.sync_api", "playwright")
    chromium = chromium_path()
    folder, port = proxied
    files = []
    for seed in range(12):
        files.append(tmp_path / f"{seed:02}.png")
        files[-1].write_bytes(png_of(seed))
    flags = ["--no-sandbox", "--disable-gpu", f"--host-resolver-rules=MAP {NAME} 127.0.0.1"]
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(ignore_https_errors=True)
        page.set_default_timeout(PATIENCE * 1000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"https://{NAME}:{port}/cells/")
        page.fill("#token", TOKEN)
        page.click("text=Open")
        page.wait_for_selector("#worklist .empty")
        page.evaluate(
            """() => {
              window.said = [];
              new MutationObserver(() => said.push(document.querySelector("#progress").textContent))
                .observe(document.querySelector("#progress"), {childList: true, subtree: true});
            }"""
        )
        page.set_input_files("#upload input[type=file]", files)
        page.wait_for_selector("text=12 cells read")
        assert any("8 so far" in text for text in page.evaluate("said"))  # progress is not held back
        page.wait_for_selector(".answer h2")
        with page.expect_download() as waiting:
            page.click("[data-save=json][data-of=list]")
        waiting.value.save_as(tmp_path / "list.json")
        page.reload()
        page.wait_for_selector("text=12 cells read")
        browser.close()
    assert len(json.loads((tmp_path / "list.json").read_text())["cells"]) == 12
    elsewhere = [
        one for one in asked if not one.startswith((f"https://{NAME}:{port}/cells", "data:", "blob:"))
    ]
    assert elsewhere == []
    log = (folder / "error.log").read_text()
    assert TOKEN not in log
    # What came in did not wait on the proxy's disk.
    assert [
        one for kind in ("client_body", "proxy") for one in (folder / kind).rglob("*") if one.is_file()
    ] == []
