"""The READMEs and tutorials are run: each block of shell, each line in order, and each command of the table.

What is run is what is written, with further options behind it that make it small enough for a test
(`SMALLER`); of an option that is given twice, the last counts. What is not run stands in `NOT_RUN` with the
reason, and a test fails where a line is in neither.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest
import torch
from conftest import PROJECT
from safetensors.torch import save_file
from torchvision.models import resnet50
from typer.testing import CliRunner

from cervicyte.cli import app
from cervicyte.dashboard.reading_log import ReadingLog
from cervicyte.datasets.synthetic import write_dataset
from cervicyte.provenance import RESEARCH_USE_ONLY

READMES = ("README.md", "README_DASHBOARD.md")
TUTORIALS = tuple(f"docs/tutorials/{name}.md" for name in ("first_model", "own_images", "publish", "deploy"))
SHOWN = ("text",)  # languages of blocks that show what is printed
FROM_THE_PROJECT = ("src", "recipes", "docs", "examples")  # what the pages take from "this folder"
WRITTEN_ADDRESS = "http://127.0.0.1:7860"

# Options behind those that are written, by the command's first words: fewer and smaller cells, no download, a
# port that is free, and no browser.
SMALLER = {
    "cervicyte synth": "--cells 150",
    "cervicyte train": "--backbone none --image-size 32 --epochs 1 --set batch_size=16",
    "cervicyte train labelled --from": "--folds 3",
    "cervicyte learning-curve": "--cells 0,2 --draws 2",
    "cervicyte explain": "--limit 1",
    "cervicyte serve": "--no-browser --port 0",
}
# Lines that are not run here, and why. A reason that names a test must name one that there is.
NOT_RUN = {
    "make demo": "installs, then does what tests/test_product.py does in a process of its own: "
    "test_the_demo_learns_explains_and_ends",
    "make test": "runs these tests",
    "python3 -m venv .venv": "installation: test_a_built_wheel_holds_all_that_the_program_reads",
    ". .venv/bin/activate": "installation: test_a_built_wheel_holds_all_that_the_program_reads",
    "pip install '.[train]'": "installation: test_a_built_wheel_holds_all_that_the_program_reads",
    "cervicyte demo": "test_the_demo_learns_explains_and_ends",
}
# Lines whose status tells of findings: the status that is allowed besides 0.
FINDINGS = {"cervicyte inspect": 1}
# What a page takes from elsewhere: the model that the dashboard's page serves is that of the first tutorial.
MADE_BEFORE = {"first_run/best_model.pth": "cbam_resnet50_cervical/best_model.pth"}


class Block(NamedTuple):
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    text = (PROJECT / page).read_text()
    return [Block(*found) for found in re.findall(r"^```(\S*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def lines_of(block: Block) -> list[str]:
    """Return a block's lines of shell, continued ones joined, without their remarks."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines) if line]


def smaller(line: str) -> str:
    """Return a line with the options of `SMALLER` behind each of its commands."""

    def with_options(command: str) -> str:
        starts = [start for start in SMALLER if command.startswith(start)]
        return f"{command} {SMALLER[max(starts, key=len)]}" if starts else command

    return " && ".join(map(with_options, line.split(" && ")))


def rows_of_commands() -> list[str]:
    """Return what the README's table of commands says is to be typed, in order."""
    rows = [line.split(" | ")[0] for line in (PROJECT / "README.md").read_text().splitlines()]
    return [
        command for row in rows if row.startswith("| `") for command in re.findall(r"`(cervicyte .*?)`", row)
    ]


# --- nothing is left out ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*READMES, *TUTORIALS])
def test_every_block_is_run_or_shows_what_is_printed(page):
    """A line of shell is run unless it stands in `NOT_RUN`, see `run_page`."""
    blocks = blocks_of(page)
    assert (PROJECT / page).read_text().count("```") == 2 * len(blocks)
    for block in blocks:
        assert block.language in ("sh", "python", *(SHOWN if page in TUTORIALS else ())), block.text


def test_every_tutorial_is_run():
    assert {f"docs/tutorials/{path.name}" for path in (PROJECT / "docs/tutorials").glob("*.md")} == set(
        TUTORIALS
    )


def test_what_is_left_out_stands_in_the_pages_and_names_tests_that_there_are():
    lines = [line for page in (*READMES, *TUTORIALS) for block in blocks_of(page) for line in lines_of(block)]
    tests = "".join(path.read_text() for path in (PROJECT / "tests").glob("test_*.py"))
    for line, reason in NOT_RUN.items():
        assert line in lines, line
        for name in re.findall(r"\btest_[a-z_]{20,}", reason):
            assert f"def {name}(" in tests, name
    assert len(NOT_RUN) < len(lines) / 2


def test_a_smaller_line_is_the_pages_own_with_options_behind_it():
    assert (
        smaller("cervicyte synth a --cells 300 && mv a b")
        == "cervicyte synth a --cells 300 --cells 150 && mv a b"
    )
    assert smaller("cervicyte card") == "cervicyte card"


# --- the pages are run -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shell():
    """Return the environment in which `cervicyte` and `python` are those of these tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT / "src"), "PYTHONUNBUFFERED": "1"}


def run_page(page: str, folder: Path, shell: dict[str, str]) -> str:
    """Run a page's blocks from the first line to the last, and return all that they print.

    A server lives until the next one or the end of the page.
    """
    said = ""
    with contextlib.ExitStack() as servers:
        address = ""
        for block in blocks_of(page):
            if block.language == "python":
                done = run([sys.executable, "-c", block.text], folder, shell)
                assert done.returncode == 0, done.stderr[-2000:]
                said += done.stdout
                continue
            for line in lines_of(block) if block.language == "sh" else ():
                if line in NOT_RUN:
                    continue
                if line.startswith("cervicyte serve"):
                    servers.close()
                    address = servers.enter_context(served_by(smaller(line), folder, shell))
                    continue
                done = run(["bash", "-c", smaller(line).replace(WRITTEN_ADDRESS, address)], folder, shell)
                allowed = {0} | {status for start, status in FINDINGS.items() if line.startswith(start)}
                assert done.returncode in allowed, f"{line}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
                said += done.stdout
    return said


def run(command: list[str], folder: Path, shell: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=shell, capture_output=True, text=True)


@contextlib.contextmanager
def served_by(line: str, folder: Path, shell: dict[str, str]) -> Iterator[str]:
    """Start a server and yield its address once it answers; end it as Ctrl-C does."""
    server = subprocess.Popen(
        ["bash", "-c", f"exec {line}"], cwd=folder, env=shell, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        said = ""
        while not (address := re.search(r"http://[^\s?]+", said)):
            more = server.stdout.readline()
            assert more, f"{line}: ended after {said!r}"
            said += more
        with urlopen(f"{address[0].rstrip('/')}/api/v1/ready", timeout=60) as answer:
            assert RESEARCH_USE_ONLY.encode() in answer.read()
        yield address[0].rstrip("/")
        server.send_signal(signal.SIGINT)
        assert server.wait(180) in (0, 130)  # a busy machine takes its time
    finally:
        server.kill()
        server.wait()


def assert_left(folder: Path, *names: str) -> None:
    for name in names:
        assert RESEARCH_USE_ONLY in (folder / name).read_text(), name


@pytest.fixture
def folder(tmp_path):
    """Return a folder that has what the pages take from the program's own."""
    for name in FROM_THE_PROJECT:
        (tmp_path / name).symlink_to(PROJECT / name)
    return tmp_path


@pytest.mark.full
def test_both_readmes_work_from_the_first_line_to_the_last(folder, shell):
    assert "Koilocytotic" in run_page("README.md", folder, shell)
    for name, made in MADE_BEFORE.items():
        (folder / name).parent.mkdir()
        shutil.copy(folder / made, folder / name)
    run_page("README_DASHBOARD.md", folder, shell)
    assert_left(
        folder, "explanation/index.html", "maps/index.html", "inspection/inspection.html",
        "evaluation/report.html", "cbam_resnet50_cervical/report.html",
        "cbam_resnet50_cervical/checklist_claim.md",
    )  # fmt: skip
    text = (PROJECT / "README.md").read_text()
    said = re.search(r"A run folder holds (.*?) and\s`report.html`", text, re.DOTALL)
    assert said is not None
    for name in re.findall(r"`(\w+\.\w+)`", said[1]):
        assert (folder / "cbam_resnet50_cervical" / name).is_file(), name


LEFT = {  # by each tutorial, and by none of the others
    "docs/tutorials/first_model.md": ("explanation/index.html", "first_run/report.html"),
    "docs/tutorials/own_images.md": ("measured/report.html", "my_run/report.html", "maps/index.html"),
    "docs/tutorials/publish.md": ("checklist_claim.md", "checklist_tripod-ai.md"),
    "docs/tutorials/deploy.md": (),
}


@pytest.mark.full
@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_works_from_its_first_line_to_its_last(page, folder, shell):
    if "curl " in (PROJECT / page).read_text() and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    said = run_page(page, folder, shell)
    assert_left(folder, *LEFT[page])
    if page == "docs/tutorials/deploy.md":
        assert '"status":"ready"' in said
        assert '"status":401' in said
        assert '"predicted_class":"Koilocytotic"' in said


# --- the table of commands is run ------------------------------------------------------------------

TINY = "--set preprocessing.image_size=32 --set epochs=1 --set batch_size=16 --set frozen_stages=4"
# What is typed for each row of the table: names for its capital letters, and options that make it small.
# `cells` are 150 drawn cells and `other_cells` 75 others, `random.safetensors` random weights, `plan.yaml` a
# plan of one variant; `run` and `folds` were left by rows before.
ROWS = {
    "cervicyte inspect DATA": "inspect cells",
    "cervicyte train DATA": f"train cells --out run --backbone none {TINY}",
    "cervicyte evaluate [MODEL] --data DATA": "evaluate run/best_model.pth --data other_cells",
    "cervicyte probe DATA": "probe cells --backbone random.safetensors --image-size 32 --out control",
    "cervicyte compare RUN RUN …": "compare run control",
    "cervicyte cross-validate DATA": f"cross-validate cells --folds 3 --backbone none {TINY} --out folds",
    "cervicyte optimism DATA": "optimism cells --frozen --folds 3 --backbone random.safetensors",
    "cervicyte robustness RUN … --data DATA": "robustness run --data cells --cells 10",
    "cervicyte elsewhere MODEL … --data DATA": "elsewhere run/best_model.pth --data other_cells",
    "cervicyte train-together DATA DATA …": "train-together cells other_cells --folds 3 --backbone none "
    f"{TINY}",
    "cervicyte train DATA --from MODEL": "train other_cells --from run/best_model.pth "
    "--recipe recipes/few-cells.yaml --folds 3 --out run_from",
    "cervicyte learning-curve DATA --from MODEL": "learning-curve other_cells --from run/best_model.pth "
    "--cells 0,2 --draws 2",
    "cervicyte adapt [MODEL] --images FOLDER --out FILE": "adapt run/best_model.pth --images other_cells "
    "--out adapted.safetensors",
    "cervicyte release DATA --folds FOLDER": "release cells --folds folds",
    "cervicyte ablate DATA PLAN": "ablate cells plan.yaml",
    "cervicyte split DATA": "split cells",
    "cervicyte explain [MODEL] IMAGES …": "explain run/best_model.pth other_cells --limit 1 --no-verdict",
    "cervicyte predict IMAGES … --out predictions.csv": "predict other_cells --out predictions.csv",
    "cervicyte audit [MODEL] --data DATA": "audit run/best_model.pth --data other_cells --cells 5 "
    "--layer cbam3 --method grad-cam --steps 2 --sanity-cells 2 --stability-cells 2",
    "cervicyte export [MODEL] --format FORMAT --out FILE": "export run/best_model.pth --format safetensors "
    "--out model.safetensors",
    "cervicyte card [MODEL]": "card run/best_model.pth",
    "cervicyte report RUN --checklist NAME": "report run --checklist tripod-ai",
    "cervicyte synth OUT": "synth anew --cells 5",
    "cervicyte serve [MODEL]": "",
    "cervicyte log verify FILE": "log verify readings.log",
    "cervicyte log export FILE": "log export readings.log",
    "cervicyte demo": "",
}
RUN_ELSEWHERE = {  # rows that the blocks above have, or that another test runs
    "cervicyte serve [MODEL]": "test_both_readmes_work_from_the_first_line_to_the_last",
    "cervicyte demo": NOT_RUN["cervicyte demo"],
}
PLAN = """
base:
  {backbone: none, preprocessing: {image_size: 32}, epochs: 1, batch_size: 16, frozen_stages: 4, ema_decay: 0}
variants:
  slower: {learning_rate: 0.00001}
outer_folds: 3
inner_folds: 2
judged: [0]
"""


def test_every_row_of_the_table_is_run_as_it_is_written():
    assert rows_of_commands() == list(ROWS)
    for row, typed in ROWS.items():
        if row in RUN_ELSEWHERE:
            assert not typed
            continue
        wanted = [word for word in row.split()[1:] if not re.fullmatch(r"\[?[A-Z]+\]?|…", word)]
        assert [word for word in typed.split() if word in wanted] == wanted, row


@pytest.mark.full
def test_every_command_of_the_table_does_what_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CERVICYTE_CACHE", str(tmp_path / "cache"))
    Path("recipes").symlink_to(PROJECT / "recipes")
    write_dataset(Path("drawn"), 150, 0).rename("cells")
    write_dataset(Path("drawn_anew"), 75, 1).rename("other_cells")
    torch.manual_seed(0)
    save_file(resnet50(weights=None).state_dict(), "random.safetensors")
    Path("plan.yaml").write_text(PLAN)
    ReadingLog(Path("readings.log"))
    for row, typed in ROWS.items():
        if not typed:
            continue
        done = CliRunner().invoke(app, typed.split())
        allowed = {0, FINDINGS.get(row.removesuffix(" DATA"), 0)}
        assert done.exit_code in allowed, f"{typed}\n{done.output[-2000:]}\n{done.exception!r}"
    for left in (
        "inspection/inspection.html", "run/report.html", "evaluation/report.html", "control/metrics.json",
        "folds/cross_validation.md", "optimism/optimism.md", "robustness/robustness.md",
        "elsewhere/elsewhere.md", "together/together.md", "run_from/report.html",
        "learning_curve/learning_curve.md",
        "release/model_card.md", "ablation/ablation.md", "split.csv", "explanation/index.html",
        "predictions.csv", "audit/explanation_audit.html", "run/checklist_tripod-ai.md", "readings.csv",
    ):  # fmt: skip
        assert Path(left).stat().st_size, left
