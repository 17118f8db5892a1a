"""The folder of uploads is private, goes with the server and, after a crash, with the next start."""

from __future__ import annotations

import contextlib
import signal
import stat
import subprocess
import sys
import tempfile

import pytest

from cervicyte.dashboard import uploads
from cervicyte.dashboard.uploads import new_folder_name, private_folder, remove_abandoned

HOLD = """
import sys
from cervicyte.dashboard.uploads import new_folder_name, private_folder
folder = new_folder_name()
with private_folder(folder):
    (folder / "cell.png").write_bytes(b"a cell")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def held() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_it_is_private_and_goes_at_the_end_even_after_an_error(tmp_path):
    folder = new_folder_name()
    with contextlib.suppress(ZeroDivisionError), private_folder(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "cell.png").write_bytes(b"a cell")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(uploads.fcntl is None, reason="locks of this kind are not on this system")
def test_what_a_killed_server_left_goes_with_the_next_start_and_a_living_ones_stays(tmp_path):
    killed, left = held()
    living, kept = held()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    try:
        assert {str(path) for path in tmp_path.iterdir()} == {left, kept}
        folder = new_folder_name()
        with private_folder(folder):
            assert {str(path) for path in tmp_path.iterdir()} == {kept, str(folder)}
            assert (tmp_path / kept / "cell.png").read_bytes() == b"a cell"
    finally:
        living.communicate(timeout=30)
    assert list(tmp_path.iterdir()) == []


def test_other_folders_and_links_are_left_alone(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").touch()
    (tmp_path / "cervicyte-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "cervicyte-file").touch()
    (tmp_path / "cervicyte-without-lock").mkdir()
    assert remove_abandoned(tmp_path) == []
    assert (tmp_path / "elsewhere" / "lock").exists()
