"""Which cells a model has seen, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from cervicyte.datasets.layouts import Cell
from cervicyte.errors import SplitError
from cervicyte.evaluation.seen import refuse_seen
from cervicyte.explanation.samples import _unseen
from cervicyte.provenance import sha256_of_file

GROUP = "sipakmed:0001"


def cell_in(folder: Path, name: str, group: str) -> Cell:
    (folder / name).write_text(name)
    return Cell(folder / name, name, "Parabasal", group, group)


def test_cells_that_only_bear_the_names_of_sipakmeds_are_told_how_to_say_so(tmp_path):
    cells = [cell_in(tmp_path, "005_01.png", GROUP), cell_in(tmp_path, "006_01.png", "sipakmed:0002")]
    seen: dict[str, Any] = {"sha256": ["0" * 64], "groups": [GROUP]}
    model = Mock(metadata={"seen": seen})
    with pytest.raises(SplitError, match=r"1 of 2 cells, first 005_01\.png.*manifest's `group` column\.$"):
        refuse_seen(model, cells, tmp_path, False, "take other cells")
    seen["sha256"].append(sha256_of_file(cells[0].path))
    with pytest.raises(SplitError, match=r"; take other cells\.$"):
        refuse_seen(model, cells, tmp_path, False, "take other cells")
    assert refuse_seen(model, cells, tmp_path, True, "take other cells") == cells[:1]


def test_cells_that_explain_leaves_out_by_their_names_are_told_so_too(tmp_path):
    cells = [cell_in(tmp_path, "005_01.png", GROUP), cell_in(tmp_path, "006_01.png", "sipakmed:0002")]
    model = Mock(metadata={"seen": {"sha256": [], "groups": [GROUP]}})
    kept, (note,) = _unseen(model, cells, tmp_path)
    assert kept == cells[1:]
    assert "1 of 2 cells" in note
    assert note.endswith("manifest's `group` column.")
    own_parts = [replace(cells[0], part="train"), replace(cells[1], part="test")]
    kept, (note,) = _unseen(Mock(metadata={}), own_parts, tmp_path)
    assert kept == own_parts[1:]
    assert note.endswith("--allow-seen takes them.")
