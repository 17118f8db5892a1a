"""What the command line refuses before any room is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cervicyte.cli import app, refuse_empty
from cervicyte.datasets.synthetic import write_dataset


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        (["inspect", ""], "An argument"),
        (["evaluate", "--data", ""], "What follows --data"),
        (["train", "cells", "--out="], "What follows --out"),
        (["explain", "--no-verdict", ""], "What follows --no-verdict"),
        (["log", "verify", ""], "An argument"),
        (["serve", "--token", "s3cr3t", ""], "An argument"),
    ],
)
def test_an_empty_name_is_refused_and_not_taken_for_the_current_folder(typed, what, tmp_path, monkeypatch):
    write_dataset(tmp_path, 5, 0)
    monkeypatch.chdir(tmp_path / "cells")
    before = sorted(Path().rglob("*"))
    result = CliRunner().invoke(app, typed)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {what} is empty; ")
    assert sorted(Path().rglob("*")) == before


def test_a_root_path_may_be_empty():
    refuse_empty(["serve", "--root-path", "", "--root-path=", "--log", "a", "--set", "key="])
