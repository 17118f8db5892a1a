"""What the command line refuses before any room is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cervicyte.cli import app, refuse_empty
from cervicyte.datasets.synthetic import write_dataset


@pytest.mark.parametrize(
    ("typed", "follows"),
    [
        (["inspect", ""], "inspect"),
        (["evaluate", "--data", ""], "--data"),
        (["train", "cells", "--out="], "--out"),
        (["explain", "--no-verdict", ""], "--no-verdict"),
        (["log", "verify", ""], "verify"),
    ],
)
def test_an_empty_name_is_refused_and_not_taken_for_the_current_folder(typed, follows, tmp_path, monkeypatch):
    write_dataset(tmp_path, 5, 0)
    monkeypatch.chdir(tmp_path / "cells")
    before = sorted(Path().rglob("*"))
    result = CliRunner().invoke(app, typed)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: What follows {follows} is empty; ")
    assert sorted(Path().rglob("*")) == before


def test_a_root_path_may_be_empty():
    refuse_empty(["serve", "--root-path", "", "--root-path=", "--log", "a"])
