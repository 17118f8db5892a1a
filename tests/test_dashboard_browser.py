"""The dashboard in a browser: a cell goes in, its class and map come out, and nobody else is asked."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT, browser_module, chromium_path
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from serving import encoded

from cervicyte.dashboard import limits
from cervicyte.dashboard.uploads import TOO_LARGE
from cervicyte.datasets.synthetic import draw_cell
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

pytestmark = pytest.mark.full

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
PATIENCE = 120_000  # milliseconds, for a busy machine

SERVE = """
import functools, sys
from pathlib import Path
from cervicyte.dashboard import server
server.Events = functools.partial(server.Events, samples=Path(sys.argv[2]))
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
    playwright = browser_module("playwright.sync_api", "playwright")
    chromium = chromium_path()
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=QUIET_CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """Return a function that opens the page in a window of its own."""
    contexts = []

    def open_page(width: int = 1280, height: int = 900, **settings):
        # Without our own policy, which would hide what the page tries to load.
        context = browser.new_context(
            viewport={"width": width, "height": height}, bypass_csp=True, accept_downloads=True, **settings
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.asked, page.failures = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.failures.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#worklist .empty")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(opened):
    return opened()


def upload(page, *files: Path, field: str = "#upload") -> None:
    page.set_input_files(f"{field} input[type=file]", list(files))


def tab(page, name: str) -> None:
    page.click(f"[role=tab]:has-text('{name}')")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_a_cell_is_answered_and_nobody_else_is_asked(opened, address, samples, width, height):
    page = opened(width, height)
    assert page.is_visible(f"text={RESEARCH_USE_ONLY}")
    assert not page.is_visible("footer")
    upload(page, samples / "koilocytotic.png")
    page.wait_for_selector(".answer h2")
    (predicted,) = [name for name in CLASSES if name in page.inner_text(".answer h2")]
    assert page.locator(".bars li").count() == len(CLASSES)
    assert page.inner_text(".legend strong") == predicted
    page.wait_for_selector(f".verdict:has-text('({predicted})')")
    assert "through the network" in page.inner_text("#verdict")
    for picture in page.locator("#viewer img").all():
        assert picture.evaluate("image => image.naturalWidth") > 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    elsewhere = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    assert len(page.asked) > 10
    assert elsewhere == []
    assert page.failures == []


def archive_of(count: int, folder: Path) -> Path:
    """Return a zip archive of so many drawn cells."""
    with zipfile.ZipFile(folder / "cells.zip", "w") as archive:
        for number in range(count):
            cell = draw_cell(CLASSES[number % 3], np.random.default_rng(number)).image
            archive.writestr(f"cell_{number:02}.png", encoded(Image.fromarray(cell)))
    return folder / "cells.zip"


def test_twenty_cells_in_an_archive_are_listed_filtered_and_flipped_through(page, tmp_path):
    cells = archive_of(20, tmp_path)
    with zipfile.ZipFile(cells, "a") as archive:
        archive.writestr("note.png", "this is text")
    upload(page, cells)
    page.wait_for_selector("text=20 cells read, 1 could not be")
    assert page.inner_text("#worklist li:last-child") == (
        "note.png: is not an image in a known format; give a BMP, PNG, JPEG or TIFF file."
    )
    risks = [float(re.sub(r"[^0-9.]", "", text)) for text in page.locator(".risk").all_inner_texts()]
    assert len(risks) == 20
    assert risks == sorted(risks, reverse=True)
    page.wait_for_selector("[data-place]:has-text('1 of 20')")
    for _ in range(3):
        page.keyboard.press("j")  # faster than the server answers
    page.keyboard.press("k")
    wanted = page.inner_text("#worklist li:nth-child(3) .name")
    page.wait_for_selector(f".answer .kicker:has-text('{wanted}')")
    page.wait_for_selector("[data-place]:has-text('3 of 20')")
    page.fill("#filter-text", "cell_1")
    assert page.inner_text("#filter-count") == "10 of 21 shown"
    page.fill("#filter-text", "")
    page.select_option("#filter-kind", "kind:error")
    assert page.inner_text("#filter-count") == "1 of 21 shown"
    assert page.failures == []


def test_text_named_as_a_picture_is_refused_in_one_sentence_and_a_cell_read_after_it(page, tmp_path):
    (tmp_path / "note.png").write_text("this is no picture")
    upload(page, tmp_path / "note.png")
    page.wait_for_selector("#worklist .failed")
    assert page.inner_text("#worklist .failed") == (
        "note.png: is not an image in a known format; give a BMP, PNG, JPEG or TIFF file."
    )
    assert not page.is_visible(".answer")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(tmp_path / "deep.tif")
    upload(page, tmp_path / "deep.tif")
    page.wait_for_selector(".answer h2")
    assert page.locator("#worklist li").count() == 2


def test_another_class_method_and_layer_are_shown_when_they_are_chosen(page):
    page.click("button.samples >> nth=0")
    page.wait_for_selector(".legend strong")
    predicted = page.inner_text(".legend strong")
    before = page.get_attribute(".pane .map", "src")
    other = next(name for name in CLASSES if name != predicted)
    page.fill("#opacity", "40")
    page.click(f".strip button[data-class='{other}']")
    page.wait_for_selector(f".legend strong:has-text('{other}')")
    of_other = page.get_attribute(".pane .map", "src")
    assert of_other != before
    page.wait_for_selector(f".verdict:has-text('({other})')")
    page.select_option("#method", "layercam")
    page.wait_for_function("before => document.querySelector('.pane .map').src !== before", arg=of_other)
    by_layercam = page.get_attribute(".pane .map", "src")
    page.select_option("#layer", "layer3")
    page.wait_for_function("before => document.querySelector('.pane .map').src !== before", arg=by_layercam)
    assert page.input_value("#method") == "layercam"
    # What the reader set stays as it was set.
    assert page.input_value("#opacity") == "40"
    assert page.evaluate("getComputedStyle(document.querySelector('.pane .map')).opacity") == "0.4"
    page.fill("#split", "50")
    assert "50%" in page.evaluate("getComputedStyle(document.querySelector('.pane .map')).clipPath")


def test_where_a_cell_was_not_opened_the_list_marks_the_one_that_is_shown(page):
    page.click("button.samples >> nth=0")
    page.wait_for_selector("[data-place]:has-text('1 of 3')")
    page.wait_for_selector("#viewer [data-key]")
    # As the server answers when it is full, to whom chose the second.
    page.evaluate(
        """() => {
          window.cervicyte.send = () => {};
          document.querySelector("#worklist li:nth-child(2) button").click();
        }"""
    )
    page.wait_for_selector("[data-place]:has-text('2 of 3')")
    page.evaluate(
        """() => {
          const answer = document.querySelector("#viewer [data-stamp]");
          answer.outerHTML = answer.outerHTML.replace(/data-stamp="[^"]*"/, 'data-stamp="new" data-refused');
        }"""
    )
    page.wait_for_selector("[data-place]:has-text('1 of 3')")
    shown = page.get_attribute("#viewer [data-key]", "data-key")
    assert page.get_attribute("#worklist button[aria-current]", "data-open") == shown


def test_the_line_between_before_and_after_is_dragged_in_the_picture(page):
    page.click("button.samples >> nth=0")
    page.wait_for_selector(".legend strong")
    page.fill("#split", "50")
    page.locator("#viewer .stage").scroll_into_view_if_needed()
    pane = page.locator("#viewer .pane").bounding_box()
    height = pane["y"] + pane["height"] / 2
    page.mouse.move(pane["x"] + pane["width"] * 0.5, height)
    page.mouse.down()
    page.mouse.move(pane["x"] + pane["width"] * 0.8, height)
    page.mouse.up()
    assert page.input_value("#split") == "80"
    page.mouse.move(pane["x"] + pane["width"] * 0.2, height)  # let go: it stays
    assert page.input_value("#split") == "80"


def test_a_page_that_is_loaded_again_has_its_cells_and_a_new_one_has_none(page, opened, tmp_path):
    assert page.locator("[data-of]:disabled").count() == 8  # nothing is there to be saved
    page.click("button.samples >> nth=0")
    page.wait_for_selector("[data-place]:has-text('1 of 3')")
    page.keyboard.press("j")
    wanted = page.inner_text("#worklist li:nth-child(2) .name")
    page.wait_for_selector(f".answer .kicker:has-text('{wanted}')")
    tab(page, "Reading")
    page.click("#read-side button.samples")
    page.wait_for_selector("#reading form")
    page.keyboard.press("1")
    page.click("text=Record and reveal")
    page.wait_for_selector(".outcome")
    page.reload()
    page.wait_for_selector(f".answer .kicker:has-text('{wanted}')")
    assert page.locator("#worklist button").count() == 3
    page.wait_for_selector("[data-place]:has-text('2 of 3')")
    page.keyboard.press("k")
    first = page.inner_text("#worklist li:nth-child(1) .name")
    page.wait_for_selector(f".answer .kicker:has-text('{first}')")
    tab(page, "Reading")
    assert page.is_visible(".outcome")
    assert opened().locator("#worklist button").count() == 0
    asked = []

    def accept(dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", accept)
    tab(page, "Cells")
    page.click("text=Clear list")
    page.wait_for_selector("#worklist .empty")
    assert asked == ["Remove all 3 from the list?"]
    assert page.failures == []


def test_a_page_whose_cells_are_gone_when_it_is_loaded_again_says_why(page):
    # As a tab that had cells finds it after the server was started anew.
    page.add_init_script(
        f"sessionStorage.setItem('cervicyte-key', '{'c' * 64}');"
        "sessionStorage.setItem('cervicyte-cells', 'yes');"
    )
    page.reload()
    page.wait_for_selector("#answer:has-text('The server was started anew')")
    assert page.failures == []


def test_a_model_is_adapted_to_a_list_used_for_it_and_saved(page, tmp_path):
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
        for number in range(64):
            cell = draw_cell(CLASSES[number % 3], np.random.default_rng(100 + number)).image
            Image.fromarray(cell).save(tmp_path / "cell.png")
            archive.write(tmp_path / "cell.png", f"cell_{number:02}.png")
    page.click("button.samples >> nth=0")
    page.wait_for_selector("text=3 cells read")
    page.click("#adaptation summary")
    assert "this list has 3" in page.inner_text("#adaptation")
    upload(page, tmp_path / "cells.zip")
    page.wait_for_selector("text=67 cells read")
    page.click("text=Adapt to these images")
    page.wait_for_selector("text=Use the adapted model for this list")
    assert page.locator("#adaptation tbody tr").count() == len(CLASSES) + 5
    assert RESEARCH_USE_ONLY in page.inner_text("#adaptation")
    page.click("text=Use the adapted model for this list")
    page.wait_for_selector(".answer .adapted:has-text('adapted to 67 images')")
    page.wait_for_selector(".verdict:has-text('through the network')")
    with page.expect_download() as waiting:
        page.click("text=Save the adapted model")
    waiting.value.save_as(tmp_path / "adapted.safetensors")
    assert load_model_file(tmp_path / "adapted.safetensors").metadata["adaptation"]["images"] == 67
    page.click("text=Use the original again")
    page.wait_for_selector(".answer:not(:has(.adapted))")
    assert page.failures == []


def test_a_picture_is_pasted_from_the_clipboard(page, samples):
    pixels = base64.b64encode((samples / "parabasal.png").read_bytes()).decode()
    page.evaluate(
        """pixels => {
          const bytes = Uint8Array.from(atob(pixels), sign => sign.charCodeAt(0));
          const held = new DataTransfer();
          held.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
          document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: held, bubbles: true}));
        }""",
        pixels,
    )
    page.wait_for_selector(".answer .kicker:has-text('pasted.png')")


def test_every_download_is_saved_and_can_be_opened(page, tmp_path):
    page.click("button.samples >> nth=0")
    page.wait_for_selector(".answer h2")
    for of, kind in [("cell", kind) for kind in ("png", "json", "csv", "pdf")] + [
        ("list", kind) for kind in ("json", "csv", "pdf")
    ]:
        with page.expect_download() as waiting:
            page.click(f"[data-save={kind}][data-of={of}]")
        path = tmp_path / f"{of}.{kind}"
        waiting.value.save_as(path)
        assert waiting.value.suggested_filename.endswith(f".{kind}")
        if kind == "png":
            assert PngImageFile(path).text["Copyright"] == RESEARCH_USE_ONLY
        elif kind == "json":
            content = json.loads(path.read_text("utf-8"))
            assert content["notice"] == RESEARCH_USE_ONLY
            assert len(content["cells"]) == (1 if of == "cell" else len(CLASSES))
        elif kind == "csv":
            rows = list(csv.DictReader(path.open(newline="")))
            assert {row["notice"] for row in rows} == {RESEARCH_USE_ONLY}
        else:
            assert path.read_bytes().startswith(b"%PDF-")
    page.click("text=Overlay PNGs (zip)")
    page.wait_for_selector(f"text={len(CLASSES)} overlays made")
    with page.expect_download() as waiting:
        page.click("text=Save the zip")
    assert waiting.value.suggested_filename == "cervicyte_overlays.zip"
    waiting.value.save_as(tmp_path / "overlays.zip")
    rows = list(csv.DictReader((tmp_path / "list.csv").open(newline="")))
    with zipfile.ZipFile(tmp_path / "overlays.zip") as archive:
        index = list(csv.DictReader(io.StringIO(archive.read("index.csv").decode())))
        assert archive.read("README.txt").decode().startswith(RESEARCH_USE_ONLY)
        assert [one["sha256"] for one in index] == [row["sha256"] for row in rows]
        for one in index:
            picture = PngImageFile(io.BytesIO(archive.read(one["overlay"])))
            assert picture.text["Copyright"] == RESEARCH_USE_ONLY
            assert one["sha256"] in picture.text["Description"]
    assert page.failures == []


def test_overlays_that_are_being_made_are_stopped_and_followed_when_the_page_is_loaded_again(page, tmp_path):
    upload(page, archive_of(40, tmp_path))
    page.wait_for_selector("text=40 cells read")
    page.click("text=Overlay PNGs (zip)")
    page.wait_for_selector("#overlays-progress:has-text('left')")
    page.reload()
    page.wait_for_selector("#overlays-progress:has-text('left')")
    page.click("#overlays >> text=Stop")
    page.wait_for_selector("#overlays:has-text('Stopped before all were made')")
    assert page.failures == []


def test_files_that_are_too_large_together_are_refused_in_a_sentence_and_others_read_after_them(
    page, samples, tmp_path
):
    said = []

    def accept(dialog) -> None:
        said.append(dialog.message)
        dialog.accept()

    page.on("dialog", accept)
    # In the browser's own process: what is sent over from here is bounded, too.
    page.evaluate(
        """files => {
          const held = new DataTransfer();
          for (let number = 0; number < files; number += 1)
            held.items.add(new File([new Uint8Array(45 << 20)], `${number}.png`));
          const field = document.querySelector("#upload input[type=file]");
          field.files = held.files;
          field.dispatchEvent(new Event("change", {bubbles: true}));
        }""",
        limits.MAX_UPLOADS_MB // 45 + 1,
    )
    page.wait_for_function("document.querySelector('#upload').textContent.includes('Error')")
    assert said == [TOO_LARGE]
    upload(page, samples / "koilocytotic.png")
    page.wait_for_selector(".answer h2")


def test_a_cell_is_read_before_the_answer_is_shown(page, tmp_path):
    tab(page, "Reading")
    page.click("#read-side button.samples")
    page.wait_for_selector("#reading form")
    assert "%" not in page.inner_text("#reading")
    assert not any(name.lower() in page.inner_html("#reading .stage").lower() for name in CLASSES)
    page.keyboard.press("2")
    page.fill("textarea[name=remark]", "folded")
    page.focus("#reading input:checked")
    page.keyboard.press("Enter")
    page.wait_for_selector(".outcome")
    assert "Koilocytotic" in page.inner_text(".both")
    page.wait_for_function("document.activeElement.textContent === 'Next cell'")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Cell 2 of 3")
    with page.expect_download() as waiting:
        page.click("text=Save readings as CSV")
    waiting.value.save_as(tmp_path / "readings.csv")
    (row,) = csv.DictReader((tmp_path / "readings.csv").open(newline=""))
    assert (row["label"], row["remark"], row["blind"]) == ("Koilocytotic", "folded", "true")


def test_everything_is_reached_by_keyboard_alone(page):
    page.focus("button.samples >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-place]:has-text('1 of 3')")
    page.focus("#worklist button[aria-current]")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("[data-place]:has-text('2 of 3')")
    wanted = page.inner_text("#worklist li:nth-child(2) .name")
    page.wait_for_selector(f".answer .kicker:has-text('{wanted}')")
    page.keyboard.press("o")
    assert page.is_checked("#outlined")
    page.keyboard.press("m")
    assert page.input_value("#opacity") == "0"
    page.keyboard.press("+")
    page.wait_for_selector(".stage.zoomed")
    page.keyboard.press("0")
    page.wait_for_selector(".stage:not(.zoomed)")
    other = page.locator(".strip button[aria-pressed=false]").first
    name = other.get_attribute("data-class")
    other.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f".legend strong:has-text('{name}')")
    # The place where one was is not lost when the picture changes.
    page.wait_for_function("name => document.activeElement.dataset.class === name", arg=name)


def test_axe_finds_nothing_serious_on_any_page_in_dark_or_light(opened):
    axe = browser_module("axe_playwright_python.sync_playwright", "axe-playwright-python")
    page = opened(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    brightness = [sum(map(int, re.findall(r"\d+", page.evaluate(ground))[:3]))]
    page.click("button.samples >> nth=0")
    page.wait_for_selector(".verdict:has-text('through the network')")
    for summary in page.locator("#work summary").all():
        summary.click()
    # A colour on its way from dark to light is no colour of either.
    page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    found = []
    for name in ("Cells", "Reading", "Model"):
        tab(page, name)
        if name == "Reading":
            page.click("#read-side button.samples")
            page.wait_for_selector("#reading form")
        page.wait_for_timeout(300)
        for scheme in ("dark", "light"):
            page.evaluate("dark => document.body.classList.toggle('dark', dark)", scheme == "dark")
            for one in axe.Axe().run(page).response["violations"]:
                if one["impact"] in ("serious", "critical"):
                    found += [f"{name}, {scheme}: {one['id']}: {node['html'][:160]}" for node in one["nodes"]]
        brightness.append(sum(map(int, re.findall(r"\d+", page.evaluate(ground))[:3])))
    assert brightness[0] < 120 < 600 < brightness[1]  # the page follows the browser, and both were looked at
    assert found == []


def test_control_c_ends_the_server_in_good_order(model_path, samples):
    server, _ = start(model_path, samples)
    server.send_signal(signal.SIGINT)
    said, complained = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Dashboard ended." in said
    assert "Traceback" not in complained


# The server as the page's script sees it: it ends the stream of answers although another question was put in
# that moment, and tells its answer to whoever listens next.
ANOTHER_SERVER = """
const said = [
  [{msg: "process_completed", event_id: "first"}, {msg: "close_stream"}],
  [{msg: "process_completed", event_id: "second"}, {msg: "close_stream"}],
];
window.listened = 0;
window.fetch = async (url) => {
  const late = url.includes("second") ? 50 : 100 * window.listened;
  await new Promise((resolve) => setTimeout(resolve, late));
  if (url.includes("join")) return new Response(JSON.stringify({event_id: url.split("=")[1]}));
  const messages = said[window.listened++].map((one) => `data: ${JSON.stringify(one)}\\n\\n`);
  return new Response(new Blob(messages).stream());
};
"""
ASK_TWICE = """async () => {
  await fetch("/queue/join?=first");
  const second = fetch("/queue/join?=second");
  const stream = await fetch("/queue/data?session_hash=a");
  await second;
  return (await stream.text()).match(/first|second|close_stream/g);
}"""


def test_what_is_asked_while_the_stream_of_answers_ends_is_answered(browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto("about:blank")
    page.evaluate(f"() => {{ {ANOTHER_SERVER} }}")
    script = (PROJECT / "src" / "cervicyte" / "dashboard" / "script.js").read_text()
    page.evaluate(f"() => {{ {script.partition('// What the dashboard does')[0]} }}")
    assert page.evaluate(ASK_TWICE.replace('"/', '"http://a/')) == ["first", "second", "close_stream"]
    assert page.evaluate("listened") == 2
    context.close()
