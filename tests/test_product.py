"""What a stranger gets: the demo, and the wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest
from conftest import PROJECT


@pytest.mark.full
def test_the_demo_learns_explains_and_ends(tmp_path):
    command = [sys.executable, "-m", "cervicyte", "demo", "--no-serve", "--out", str(tmp_path / "demo")]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, cwd=tmp_path
    )  # 3 minutes if quiet
    assert finished.returncode == 0, finished.stderr[-2000:]
    told = json.loads((tmp_path / "demo" / "shipped_model.json").read_text())
    assert told["cells"] == 600
    assert told["recognised"] >= 0.8
    assert f"calls {told['recognised']:.1%} of 600" in finished.stderr
    run = tmp_path / "demo" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["overall"]["accuracy"]["value"] > 0.8
    assert metrics["context"]["model"]["backbone"]["source"] == "none"
    assert len(list((run / "gradcam_outputs").rglob("*.png"))) == 10
    assert "left" in finished.stderr
    assert str(run / "report.html") in finished.stderr


@pytest.mark.full
def test_a_built_wheel_holds_all_that_the_program_reads(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(PROJECT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("cervicyte-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "cervicyte/datasets/sipakmed_field_groups.csv" in names
    assert {"cervicyte/evaluation/checklists.yaml", "cervicyte/evaluation/references.bib"} <= set(names)
    assert {"cervicyte/model/cervicyte.safetensors", "cervicyte/model/model_card.md"} <= set(names)
    assert wheel.stat().st_size < 60_000_000
    assert sum(name.startswith("cervicyte/sample_image/") and name.endswith(".png") for name in names) == 5
    assert all(any(name.endswith(f"licenses/{file}") for name in names) for file in ("LICENSE", "NOTICE"))
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True)
    told = subprocess.run(
        [sys.executable, "-c", "import cervicyte; print(cervicyte.__file__)"],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(target) in told.stdout
    synth = [sys.executable, "-m", "cervicyte", "synth", str(tmp_path / "cells"), "--cells", "5"]
    subprocess.run(synth, env={**os.environ, "PYTHONPATH": str(target)}, cwd=tmp_path, check=True)
    split = [sys.executable, "-m", "cervicyte", "--help"]
    subprocess.run(split, env={**os.environ, "PYTHONPATH": str(target)}, cwd=tmp_path, check=True)
