"""What the documentation says is so: its options, keys, links, commands and figures are the program's."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from conftest import PROJECT
from test_architecture import tracked

from cervicyte import __version__
from cervicyte.provenance import RESEARCH_USE_ONLY
from cervicyte.training.recipe import recipe_keys

sys.path.insert(0, str(PROJECT / "docs"))
import write_pages

DOCS = PROJECT / "docs"
try:
    PAGES = [path for path in tracked("*.md") if "inner_" not in str(path)]
except pytest.skip.Exception:  # this is no git checkout
    PAGES = []
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MACHINE = re.compile(r"/(?:work|root|home|tmp)/\w")


def name_of(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


# --- the program is what the pages say -----------------------------------------------------------


def test_the_page_of_the_command_line_is_the_programs_own():
    assert (DOCS / "command_line.md").read_text() == write_pages.command_line_page()


def test_every_option_says_what_it_does():
    for name, command in write_pages.commands_and_theirs().items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"cervicyte {name}: {write_pages.spelling_of(parameter)} has no help text"


def test_the_page_of_the_command_line_has_the_options_of_every_command():
    page = (DOCS / "command_line.md").read_text()

    def hold(name: str, command: Any) -> None:
        if inner := getattr(command, "commands", None):
            for one, each in inner.items():
                hold(f"{name} {one}", each)
            return
        _, _, section = page.partition(f"\n## cervicyte {name}\n")
        section = section.partition("\n## ")[0]
        for parameter in command.params:
            for spelling in (*parameter.opts, *parameter.secondary_opts):
                if spelling.startswith("--") and spelling != "--help":
                    assert f"`{spelling}`" in section, f"cervicyte {name}: {spelling}"
        assert "``" not in section

    for name, command in write_pages.commands().items():
        hold(name, command)


def test_every_key_of_the_recipe_is_documented():
    page = (DOCS / "recipe.md").read_text()
    for key, meaning in recipe_keys().items():
        assert meaning, key
        assert f"| `{key}` |" in page, f"docs/recipe.md: lacks {key}"


def test_the_picture_of_the_rooms_shows_the_rooms():
    from test_architecture import ROOMS

    assert list(write_pages.ROOMS) == ROOMS
    picture = (DOCS / "pictures" / "rooms.svg").read_text()
    assert picture == write_pages.rooms_picture()
    assert all(f">{room}</text>" in picture for room in ROOMS)


def test_the_readmes_figures_are_those_of_the_files():
    text = (PROJECT / "README.md").read_text()
    assert text == write_pages.readme_with_figures(text), "run python docs/write_pages.py"
    assert "95.4 % [94.0, 96.5]" in text  # of docs/results/model/group/cross_validation.json


def test_published_figures_name_their_source():
    for one in yaml.safe_load((DOCS / "results" / "published.yaml").read_text()):
        assert one["source"].startswith("http")
        assert 0 < one["accuracy"] < 100


# --- pages hang together -------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(without_code(page.read_text())):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if "python_modules/" in path:  # written when the site is built
            continue
        assert there.exists(), f"{name_of(page)}: {target} leads nowhere"
        if anchor and there.suffix == ".md":
            assert anchor in anchors_of(there), f"{name_of(page)}: {target}: there is no such heading"


def test_every_page_stands_in_the_table_of_contents():
    listed = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```\{toctree\}(.*?)```", page.read_text(), re.DOTALL):
            listed |= {
                (page.parent / line).resolve()
                for line in block.splitlines()
                if line and not line.startswith(":")
            }
    for page in PAGES:
        if page.is_relative_to(DOCS) and page != DOCS / "index.md":
            assert page.with_suffix("") in listed, f"{name_of(page)}: is missing in docs/index.md"


def test_no_page_or_notebook_names_a_machines_folder():
    for path in tracked("*.md", "*.ipynb", "*.cff", "NOTICE", "docs/*.py", "docs/*.svg"):
        found = MACHINE.search(path.read_text())
        assert not found, f"{name_of(path)}: {found}"


def test_pages_for_users_say_for_research_use_only():
    for name in (
        "README.md", "README_DASHBOARD.md", "NOTICE", "CITATION.cff", "docs/index.md", "docs/classes.md",
        "docs/command_line.md", "docs/tutorials/first_model.md",
    ):  # fmt: skip
        # A sentence may be broken into lines and parts.
        text = " ".join((PROJECT / name).read_text().replace("**", "").split())
        assert RESEARCH_USE_ONLY in text, name


def test_the_citation_has_the_programs_version_and_licence():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert citation["title"] == "Cervicyte"
    assert f"({__version__})" in (PROJECT / "CHANGELOG.md").read_text()


# --- what is to be typed works -------------------------------------------------------------------

COMMANDS = re.compile(r"^(?:    |\t)?((?:cervicyte|make) (?:.*\\\n)*.*)", re.MULTILINE)


def typed(page: Path) -> list[list[str]]:
    """Return the words of each command in a page's blocks of shell and in its indented lines."""
    text = page.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = "\n".join(line for line in rest.splitlines() if line.startswith("    "))
    lines = [line for part in (*blocks, indented) for line in COMMANDS.findall(part)]
    lines += re.findall(r"&& (cervicyte .*)", text)
    return [shlex.split(line.partition(" && ")[0].replace("\\\n", " "), comments=True) for line in lines]


def test_commands_are_found_in_the_readme():
    found = typed(PROJECT / "README.md")
    assert ["make", "demo"] in found
    assert ["cervicyte", "train", "cells/", "--resume"] in found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_is_one_that_the_program_takes(page):
    commands = write_pages.commands()
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for words in typed(page):
        if words[0] == "make":
            for word in words[1:]:
                assert word in targets or "=" in word or not word.islower(), f"{name_of(page)}: make {word}"
            continue
        name, *arguments = words[1:]
        if name in ("--version", "--help", "COMMAND"):
            continue
        assert name in commands, f"{name_of(page)}: there is no command {name}"
        arguments = [one for one in arguments if one not in ("…", "...")]
        with commands[name].make_context(name, arguments):
            pass  # it takes these options; a word that it does not know ends here


def test_the_python_of_the_page_on_extending_adds_one_of_each(tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="the page's engine is ONNX's own evaluator")
    from cervicyte.datasets import layouts
    from cervicyte.explanation import cam
    from cervicyte.inference import choice
    from cervicyte.network import resnet

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CERVICYTE_CACHE", str(tmp_path / "cache"))
    added = {(cam, "METHODS"): "plain-gradient", (resnet, "NETWORKS"): "cbam-resnet26"}
    added |= {(choice, "GRAPH_ENGINES"): "reference", (layouts, "LAYOUTS"): "named by label"}
    text = (DOCS / "extend.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("\n## ") == 5
    with contextlib.ExitStack() as put_back:
        for room, table in added:
            put_back.enter_context(mock.patch.dict(getattr(room, table)))
            assert f"`{room.__name__}.{table}`" in " ".join(text.split())
        for block in blocks:
            exec(compile(block, "extend.md", "exec"), {})
        for (room, table), name in added.items():
            assert name in getattr(room, table)
    assert "reference" not in choice.GRAPH_ENGINES


@pytest.mark.full
def test_the_documentation_builds_without_a_warning_and_asks_nothing_of_the_internet(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "docs",
        str(tmp_path),
    ]
    built = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    for page in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        if "_downloads" in page.parts:
            continue
        text = page.read_text(encoding="utf-8")
        assert not re.search(
            r"(?:src|href)=\"https?://[^\"]+\.(?:js|css|woff2?)\"|url\(\s*[\"']?https?:", text
        ), page
        assert page.suffix == ".css" or RESEARCH_USE_ONLY in text, page
