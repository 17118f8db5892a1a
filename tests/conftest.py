"""What several tests share: the real cells beside the project, where they are, and a browser."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CERVICYTE_SHARED", PROJECT.parent / "shared"))

# How long an example takes is other work's matter, too: a fifth of a second is not enough beside it.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

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


def in_yardsticks(work: Callable[[], object], tries: int = 3) -> float:
    """Return the processor time of work on images, in units of some fixed work of that kind beside it.

    Machines differ several times in speed, and one machine from hour to hour as others use its memory. A
    yardstick takes 0.15 s on a quiet one. On one thread: those that wait for each other count as working. The
    least of the tries counts.
    """

    def seconds(do: Callable[[], object]) -> float:
        began = time.process_time()
        do()
        return time.process_time() - began

    def yardstick() -> None:
        values: np.ndarray = np.full((512, 512, 3), 0.5, np.float32)
        for _ in range(20):
            values = cv2.GaussianBlur(np.exp(-values), (0, 0), 3)

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        found = []
        for _ in range(tries):
            before, taken, after = seconds(yardstick), seconds(work), seconds(yardstick)
            found.append(2 * taken / (before + after))
        return min(found)
    finally:
        cv2.setNumThreads(threads)


@pytest.fixture(scope="module")
def one_thread():
    """Sums are the same each time: several threads add them up in another order."""
    import torch  # which some installations that are tested do not have

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
