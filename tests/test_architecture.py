"""The rooms stand in their order, and what the house forbids is nowhere in it."""

from __future__ import annotations

import ast
import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

PACKAGE = PROJECT / "src" / "cervicyte"
ROOMS = [
    "images", "datasets", "network", "training", "evaluation", "explanation", "inference", "dashboard",
]  # fmt: skip
BESIDE = {"errors", "provenance", "progress", "metrics", "pages", "yaml_files"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the rooms and modules of Cervicyte that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("cervicyte.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_before_it(path):
    place = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    uses = imported(path) - {place}
    if place in ROOMS:
        assert uses <= set(ROOMS[: ROOMS.index(place)]) | BESIDE
    elif place in BESIDE:
        assert uses <= BESIDE


def test_every_folder_is_a_room_and_every_room_says_what_it_is():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - {"sample_image", "model"} == set(ROOMS)
    for room in ROOMS:
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))


@pytest.mark.parametrize("room", ["images", "datasets"])
def test_the_first_rooms_need_no_torch(room):
    modules = [f"cervicyte.{room}.{path.stem}" for path in (PACKAGE / room).glob("[!_]*.py")]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_command_line_is_described_without_torch():
    code = "import sys, cervicyte.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [PROJECT / name for name in listed.stdout.split("\0") if name and (PROJECT / name).is_file()]


def test_nothing_is_unpickled():
    for path in tracked("*.py", "*.ipynb"):
        for line in path.read_text().splitlines():
            if re.search(r"torch\.load\(", line) and path != Path(__file__):
                assert "weights_only=True" in line, f"{path}: {line}"
            assert not re.match(r"\s*(import|from) (pickle|joblib|dill|cloudpickle)\b", line), path


def test_committed_pages_and_notebooks_embed_no_photographs():
    """Charts are drawn as SVG or PNG; a cell's picture would be JPEG, and is never committed."""
    for path in tracked("*.html", "*.ipynb", "*.md", "*.svg", "*.json"):
        text = path.read_text()
        assert "image/jpeg" not in text, path
        for start in re.findall(r"data:image/[a-z+]+;base64,([A-Za-z0-9+/]{16})", text):
            assert not base64.b64decode(start).startswith(b"\xff\xd8"), path


def test_committed_pictures_are_few_and_known():
    allowed = ("src/cervicyte/sample_image/", "docs/")
    for path in tracked("*.png", "*.jpg", "*.jpeg", "*.bmp", "*.tif", "*.tiff"):
        assert str(path.relative_to(PROJECT)).startswith(allowed), path
        assert path.suffix == ".png", f"{path}: pictures here are PNG, real cells would be JPEG or BMP"


def test_continuous_integration_calls_what_the_readme_names():
    assert "make test" in (PROJECT / ".ci" / "run").read_text()
    readme = (PROJECT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


def test_requirements_txt_says_what_pyproject_says():
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    assert [line for line in lines if line and not line.startswith("#")] == sorted(wanted)


def test_every_dependency_says_why_it_is_there():
    text = (PROJECT / "pyproject.toml").read_text()
    for line in re.findall(r'^  "[a-zA-Z-]+(?:>=[\d.]+)?",.*$', text, re.MULTILINE):
        assert re.search(r"# \w+", line), line
