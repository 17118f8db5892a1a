"""What several tests share: the real cells beside the project, where they are, and a browser."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CERVICYTE_SHARED", PROJECT.parent / "shared"))

# Set to "required", tests of browser and proxy fail, and do not skip, where these are missing.
BROWSER_AND_PROXY = "CERVICYTE_BROWSER_AND_PROXY"


def without_browser_or_proxy(reason: str) -> NoReturn:
    """Skip a test, or fail it where browser and proxy are required."""
    if os.environ.get(BROWSER_AND_PROXY) == "required":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def browser_module(name: str, package: str) -> ModuleType:
    """Return a module that drives the browser."""
    try:
        return importlib.import_module(name)
    except ImportError:
        without_browser_or_proxy(f"needs {package}: pip install {package}")


def chromium_path() -> str:
    """Return where Chromium is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    return found or without_browser_or_proxy("needs Chromium: apt-get install chromium")


def needs_shared(test):
    """Mark a test that uses real cells or weights; it skips, and says so, where they are missing."""
    skip = pytest.mark.skipif(
        not SHARED.is_dir(), reason="the real cells and weights in ../shared are not here"
    )
    return pytest.mark.shared(skip(test))


def draw_two_classes(root: Path, fields: int, cells: int, names: tuple[str, str] = ("dark", "light")) -> Path:
    """Write noise of two classes that differ in brightness, so many fields each and cells a field."""
    rng = np.random.default_rng(0)
    for label, level in zip(names, (40, 90), strict=True):
        (root / label).mkdir(parents=True)
        for field in range(1, fields + 1):
            for cell in range(1, cells + 1):
                pixels = (rng.integers(0, 120, (40, 50, 3)) + level).astype(np.uint8)
                Image.fromarray(pixels).save(root / label / f"{field:03d}_{cell:02d}.png")
    return root


@pytest.fixture(scope="module")
def one_thread():
    """Sums are the same each time: several threads add them up in another order."""
    import torch  # which some installations that are tested do not have

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
