"""Cervicyte asks nothing of the internet, and neither do the libraries that compute for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import PROJECT

ENGINES = {"onnx": "OnnxEngine", "openvino": "OpenVinoEngine"}
# An engine on the smallest graph there is. What a library reports, it reports within these seconds.
STARTED = """
import time
import onnx
from cervicyte.inference.engines import {engine}

value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
node = onnx.helper.make_node("Relu", ["a"], ["b"])
graph = onnx.helper.make_graph([node], "smallest", value[:1], value[1:])
{engine}(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    .SerializeToString())
time.sleep(2)
"""
SILENCING = (
    "CI",
    "TF_BUILD",
    "JENKINS_URL",
    "ORT_DISABLE_TELEMETRY",
)  # where libraries are silent by themselves


@pytest.fixture
def proxy():
    """Return the address of a proxy that only listens, and what was asked of it."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # the test is over
                    return
                with connection:
                    asked.append(connection.recv(200))

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked


def run_at_home(arguments: list[str], proxy: str, home: Path) -> None:
    """Run Python with a home folder of its own, behind a proxy."""
    own = {key: value for key, value in os.environ.items() if key not in SILENCING and "XDG" not in key}
    own |= dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), proxy)
    own |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), proxy)
    own |= {"HOME": str(home), "no_proxy": "", "NO_PROXY": ""}
    done = subprocess.run([sys.executable, *arguments], env=own, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_reports_to_nobody_and_keeps_no_number_of_this_machine(name, proxy, tmp_path):
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    address, asked = proxy
    run_at_home(["-c", STARTED.format(engine=ENGINES[name])], address, tmp_path)
    assert asked == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.full
@pytest.mark.parametrize("name", ["torch", *ENGINES])
def test_predict_asks_nothing_of_the_internet(name, proxy, tmp_path):
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
    address, asked = proxy
    cell = PROJECT / "src" / "cervicyte" / "sample_image" / "Parabasal.png"
    run_at_home(["-m", "cervicyte", "predict", str(cell), "--engine", name], address, tmp_path)
    assert asked == []
    left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {"predictions.csv", "predictions.csv.json", ".cache"}
    assert [path.name for path in tmp_path.glob(".cache/*")] in ([], ["cervicyte"])
