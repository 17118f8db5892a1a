"""The two notebooks are whole, small, say what they are for, and run from top to bottom."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from conftest import PROJECT

from cervicyte.provenance import RESEARCH_USE_ONLY

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
LARGEST = 3_000_000  # bytes


def cells_of(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_there_are_the_two_of_the_original():
    assert [path.name for path in NOTEBOOKS] == [
        "CBAM_ResNet50_Cervical_Classification.ipynb",
        "CBAM_ResNet50_Explainability_GradCAM.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_small_and_stored_with_its_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < LARGEST
    code = cells_of(path, "code")
    ran = [
        cell["execution_count"] for cell in code if not all(line.startswith("#") for line in cell["source"])
    ]
    assert ran == sorted(ran), "run from top to bottom: make notebooks"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_is_for_and_is_changed_in_one_cell(path):
    words = "".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    assert words.count(RESEARCH_USE_ONLY) >= 2
    settings = [cell for cell in cells_of(path, "code") if "parameters" in cell["metadata"].get("tags", ())]
    assert len(settings) == 1
    assert re.search(r"^DATA = None", "".join(settings[0]["source"]), re.MULTILINE)


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    notebook = nbformat.read(copy, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6
