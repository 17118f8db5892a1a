"""Takes the pictures of docs/dashboard.md, of drawn cells: `python docs/take_screenshots.py`.

Needs `pip install '.[browser]'` and Chromium. The dashboard runs with the model that ships.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from playwright.sync_api import FilePayload, Page, sync_playwright

from cervicyte.datasets.classes import SIPAKMED_CLASSES
from cervicyte.datasets.synthetic import draw_cell

FOLDER = Path(__file__).parent / "images"
MOST_BYTES = 150_000
PATIENCE = 180_000  # milliseconds
DRAWN = tuple(one.name for one in SIPAKMED_CLASSES)
MORE = 70  # cells, to adapt to


def keep(page: Page, name: str) -> None:
    """Write what is seen as a PNG of at most `MOST_BYTES`, of as many colours as that allows."""
    page.wait_for_timeout(700)
    image = Image.open(BytesIO(page.screenshot())).convert("RGB")
    for colours in (256, 192, 128, 96, 64, 48, 32):
        file = BytesIO()
        reduced = image.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        reduced.save(file, "PNG", optimize=True)
        if file.tell() <= MOST_BYTES:
            break
    (FOLDER / f"dashboard_{name}.png").write_bytes(file.getvalue())
    print(f"dashboard_{name}.png: {colours} colours, {file.tell():,} bytes")


def main() -> None:
    """Start the dashboard, walk through it, and take the pictures."""
    FOLDER.mkdir(exist_ok=True)
    command = [sys.executable, str(FOLDER.parents[1] / "app.py"), "--port", "0", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(line.split()[3] for line in server.stdout if line.startswith("Dashboard ready"))
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        with sync_playwright() as engine:
            browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            windows: tuple[tuple[Literal["light", "dark"], int, int], ...]
            windows = ("light", 1360, 900), ("dark", 1360, 900), ("light", 390, 844)
            for scheme, width, height in windows:
                page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
                page.set_default_timeout(PATIENCE)
                page.goto(address)
                walk(page, "phone" if width < 500 else scheme)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def walk(page: Page, kind: str) -> None:
    """Read the drawn cells, and keep what is seen on the way."""
    if kind == "light":
        page.click("[role=tab]:has-text('Reading')")
        page.click("#read-side button.samples")
        page.wait_for_selector("#reading form")
        page.keyboard.press("1")
        keep(page, "reading")
        page.click("text=Record and reveal")
        page.wait_for_selector(".outcome")
        keep(page, "revealed")
        page.click("[role=tab]:has-text('Model')")
        keep(page, "model")
        page.click("[role=tab]:has-text('Cells')")
    page.click("button.samples >> nth=0")
    page.wait_for_selector(".verdict:has-text('through the network')")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    if kind == "dark":
        page.fill("#split", "50")
        page.check("#outlined")
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    if kind == "phone":
        page.evaluate("document.querySelector('#nav').scrollIntoView()")
    keep(page, f"cells_{kind}")
    if kind == "light":
        adapt(page)
        page.evaluate("document.querySelectorAll('#details details').forEach(one => one.open = true)")
        page.wait_for_timeout(500)
        page.evaluate("document.querySelector('#details').scrollIntoView()")
        keep(page, "details")


def adapt(page: Page) -> None:
    """Adapt the model to more drawn cells, look at what changed, and go back to the few."""
    generator = np.random.default_rng(0)
    drawn = [draw_cell(kind, generator).image for kind in DRAWN for _ in range(MORE // len(DRAWN))]
    files: list[FilePayload] = []
    for number, image in enumerate(drawn):
        file = BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append({"name": f"drawn_{number:02}.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.set_input_files("#upload input[type=file]", files)
    page.wait_for_selector(f"text={len(files) + len(DRAWN)} cells read")
    page.click("#adaptation summary")
    page.click("text=Adapt to these images")
    page.click("text=Use the adapted model for this list")
    page.wait_for_selector(".answer .adapted")
    page.wait_for_selector(".verdict:has-text('through the network')")
    page.evaluate("document.activeElement.blur(); document.querySelector('#adaptation').scrollIntoView()")
    keep(page, "adapted")
    page.click("text=Use the original again")
    page.wait_for_selector(".answer:not(:has(.adapted))")


if __name__ == "__main__":
    main()
