"""What several tests share: the real cells beside the project, where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CERVICYTE_SHARED", PROJECT.parent / "shared"))


def needs_shared(test):
    """Mark a test that uses real cells or weights; it skips, and says so, where they are missing."""
    skip = pytest.mark.skipif(
        not SHARED.is_dir(), reason="the real cells and weights in ../shared are not here"
    )
    return pytest.mark.shared(skip(test))
