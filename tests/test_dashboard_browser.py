"""The dashboard in a browser: a cell goes in, its class and map come out, and nobody else is asked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cervicyte.datasets.synthetic import draw_cell
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

pytestmark = pytest.mark.full

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET_CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
CLASSES = ("Dyskeratotic", "Koilocytotic", "Parabasal")
PATIENCE = 60_000  # milliseconds, for a busy machine

SERVE = """
import functools, sys
from pathlib import Path
from cervicyte.dashboard import server
server.build_page = functools.partial(server.build_page, samples=Path(sys.argv[2]))
server.serve(Path(sys.argv[1]), port=0, open_browser=False)
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for seed, name in enumerate(CLASSES):
        cell = draw_cell(name, np.random.default_rng(seed))
        Image.fromarray(cell.image).save(folder / f"{name.lower()}.png")
    return folder


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "best_model.pth"
    save_model(path, ModelFile(CBAMResNet50(3), CLASSES, Preprocessing(image_size=64)))
    return path


def start(model_path: Path, samples: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the server; return it with its address, once it has said that it is ready."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(model_path), str(samples)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A dashboard built by another test of this process has named its own folder there.
        env={name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"},
    )
    assert server.stdout is not None
    assert server.stdout.readline().strip() == RESEARCH_USE_ONLY
    return server, server.stdout.readline().split()[3]


@pytest.fixture(scope="module")
def address(model_path, samples):
    server, address = start(model_path, samples)
    yield address
    server.terminate()
    server.communicate(timeout=30)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=QUIET_CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(browser, address, request):
    width, height = request.param
    # Without our own policy, which would hide what the page tries to load.
    context = browser.new_context(viewport={"width": width, "height": height}, bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.asked, page.failures = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".empty")
    yield page
    context.close()


def test_a_cell_is_answered_and_nobody_else_is_asked(page, address, samples):
    assert page.is_visible(f"text={RESEARCH_USE_ONLY}")
    assert not page.is_visible("footer")
    page.set_input_files("#upload input[type=file]", samples / "koilocytotic.png")
    page.wait_for_selector(".answer h2")
    predicted = page.inner_text(".answer h2")
    assert predicted in CLASSES
    assert page.locator(".bars li").count() == len(CLASSES)
    assert page.inner_text("figure strong") == predicted
    page.wait_for_selector(f".verdict:has-text('({predicted})')")
    assert "passes through the network" in page.inner_text("#verdict")
    for picture in page.locator("figure > img").all():
        assert picture.evaluate("image => image.naturalWidth") > 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    elsewhere = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    assert len(page.asked) > 10
    assert elsewhere == []
    assert page.failures == []


def test_another_class_is_explained_when_it_is_chosen(page):
    page.click(".samples button >> nth=2")
    page.wait_for_selector("figure strong")
    predicted = page.inner_text("figure strong")
    before = page.get_attribute("figure >> nth=1 >> img >> nth=0", "src")
    other = next(name for name in CLASSES if name != predicted)
    page.click(f"#picker label:has-text('{other}')")
    page.wait_for_selector(f"figure strong:has-text('{other}')")
    assert page.get_attribute("figure >> nth=1 >> img >> nth=0", "src") != before
    page.wait_for_selector(f".verdict:has-text('({other})')")
    assert page.inner_text(".answer h2") == predicted


def test_text_named_as_a_picture_is_refused_in_one_sentence_and_a_cell_read_after_it(page, tmp_path):
    (tmp_path / "note.png").write_text("this is no picture")
    page.set_input_files("#upload input[type=file]", tmp_path / "note.png")
    page.wait_for_selector(".refusal")
    assert page.inner_text(".refusal") == (
        "note.png: is not an image in a known format; give a BMP, PNG, JPEG or TIFF file."
    )
    assert not page.is_visible("figure")
    assert not page.is_visible("#picker")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(tmp_path / "deep.tif")
    page.set_input_files("#upload input[type=file]", tmp_path / "deep.tif")
    page.wait_for_selector(".answer h2")
    assert page.is_visible("figure")


def test_control_c_ends_the_server_in_good_order(model_path, samples):
    server, _ = start(model_path, samples)
    server.send_signal(signal.SIGINT)
    said, complained = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Dashboard ended." in said
    assert "Traceback" not in complained
