"""Workers of Ray make the rows that one process makes, whatever becomes of a worker."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cervicyte import __version__
from cervicyte.cli import app
from cervicyte.errors import UsageError, WorkersError
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.inference import on_ray
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.on_ray import Crew, RayWorkers, Worker, crew_of
from cervicyte.inference.predict import predict, rows_here
from cervicyte.inference.sources import Source, sources_of
from cervicyte.network.model_file import ModelFile, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import Progress

IMAGES = 700  # more than a worker is handed at once, several times

# --- without Ray -------------------------------------------------------------------------------------


def test_there_are_as_many_workers_as_the_machines_have_room_for():
    machines = [{"CPU": 8.0}, {"CPU": 3.0}, {"CPU": 1.0}]
    assert crew_of(machines, 1, wants_gpu=True) == Crew(12, 1, 0)
    assert crew_of(machines, 2, wants_gpu=False) == Crew(5, 2, 0)  # none takes parts of two machines
    with pytest.raises(WorkersError, match=r"has 9 processors for a worker, the largest has 8; .*--ray-th"):
        crew_of(machines, 9, wants_gpu=False)


def test_a_gpu_takes_one_worker_where_the_engine_has_use_for_it():
    machines = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 8.0}]
    assert crew_of(machines, 1, wants_gpu=True) == Crew(6, 1, 1)
    assert crew_of(machines, 1, wants_gpu=False) == Crew(26, 1, 0)


def answered(*numbers: list[int]):
    for part in numbers:
        yield pa.table({"number": part, "row": [[str(number)] for number in part]})


@pytest.mark.parametrize("numbers", [([0, 1], [1, 2]), ([0, 1], [3]), ([2], [0, 1]), ([0, 1],)], ids=str)
def test_rows_that_are_lost_or_doubled_on_the_way_are_seen(numbers):
    assert list(on_ray._checked(answered([0, 1], [2]), 3)) == [[["0"], ["1"]], [["2"]]]
    with pytest.raises(WorkersError, match="lost"):
        list(on_ray._checked(answered(*numbers), 3))


def test_a_worker_of_another_version_is_refused():
    with pytest.raises(WorkersError, match=f"has Cervicyte {__version__}, and 0.0.7 is what asks"):
        Worker(None, ".pth", "torch", "float32", 1, "", "0.0.7")


def test_a_worker_makes_the_rows_of_one_process(model, cells, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
        for path in sorted(cells.glob("a/*.png"))[:5]:
            archive.write(path, path.name)
    names = [str(tmp_path / "cells.zip"), str(cells / "b" / "damaged.png"), str(cells / "b" / "001.png")]
    classifier = Classifier.from_file(model, "cpu")
    threads = torch.get_num_threads()
    try:
        content, right = model.read_bytes(), classifier.weights_sha256
        worker = Worker(content, ".pth", "torch", "float32", 1, right, __version__)
        answer = worker(on_ray._table_of(list(sources_of(names)), 64))
        (expected,) = rows_here(classifier, sources_of(names))
        with pytest.raises(WorkersError, match="was changed after it was read"):
            Worker(content, ".pth", "torch", "float32", 1, right[::-1], __version__)
    finally:
        torch.set_num_threads(threads)
    assert answer.column("number").to_pylist() == list(range(64, 71))
    assert answer.column("row").to_pylist() == expected
    assert [row[-2] for row in expected].count("error") == 1


def test_what_a_worker_says_reaches_the_user_as_one_sentence():
    told = on_ray._of_ray(
        RuntimeError(
            "The actor died because of an error raised in its creation task\n  File x\n"
            "cervicyte.errors.UsageError: The engine onnx needs the package onnxruntime; install it.\n"
        )
    )
    assert str(told) == (
        "The workers on Ray could not go on: The engine onnx needs the package onnxruntime; install it. "
        "What was answered is kept: repeat the command once it is mended."
    )
    assert "could not go on: TimeoutError. What" in str(on_ray._of_ray(TimeoutError()))


def test_paths_reach_workers_whatever_folder_they_stand_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = [Source("a.png", "a.png"), Source("s3://b/c.zip/d.png", "s3://b/c.zip", "d.png")]
    table = on_ray._table_of(sources, 64).to_pylist()
    assert [row["number"] for row in table] == [64, 65]
    assert [row["name"] for row in table] == ["a.png", "s3://b/c.zip/d.png"]
    assert [row["location"] for row in table] == [os.fsencode(tmp_path / "a.png"), b"s3://b/c.zip"]
    assert [row["member"] for row in table] == [None, "d.png"]


def test_without_ray_one_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"The engine ray needs the package ray; .*'\.\[ray\]' in"):
        RayWorkers(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "127.0.0.1:99999"]
)
def test_a_cluster_that_does_not_answer_is_not_waited_for(address):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        with pytest.raises(WorkersError, match=r"no Ray cluster answers there \(.+\); check --ray-address"):
            on_ray._knock(address.format(port=port))
        taken.listen()
        on_ray._knock(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["local", "auto", "ray://127.0.0.1:1"])
def test_what_rays_own_words_mean_is_left_to_ray(address):
    on_ray._knock(address)


def test_options_of_ray_are_refused_without_it(tmp_path):
    result = CliRunner().invoke(app, ["predict", str(tmp_path), "--ray-threads", "2"])
    assert result.exit_code == 2
    assert "is for --engine ray alone; choose that" in result.output


# --- two workers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(one_thread):  # as a worker has
    """Two machines with a processor each, as far as Ray can tell."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    for name, value in on_ray.QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pth"
    save_model(path, ModelFile(CBAMResNet50(2), ("Parabasal", "Koilocytotic"), Preprocessing(image_size=32)))
    return path


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    """Many images in two folders, one of them damaged, and a file of text."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("cells")
    for name in ("a", "b"):
        (folder / name).mkdir()
    for at in range(IMAGES):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[at % 2] / f"{at:03d}.png")
    (folder / "b" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "a" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def alone(cluster, model, cells, tmp_path_factory) -> str:
    """The table that one process makes."""
    out = tmp_path_factory.mktemp("alone") / "out.csv"
    predict(Classifier.from_file(model, "cpu"), [str(cells)], out)
    return out.read_text()


def workers_of(process: int) -> list[int]:
    """Return the processes below this one in which Ray has a worker with a model."""
    parents, workers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                workers.append(int(folder.name))
        except (OSError, ValueError):  # it has ended
            continue

    def is_below(one: int) -> bool:
        while one in parents and one != process:
            one = parents[one]
        return one == process

    return [one for one in workers if is_below(one)]


class KillsAWorker(Progress):
    """Ends a worker's process as soon as the first rows are here, as a machine's failure would."""

    killed: int | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        if self.killed is None:
            self.killed = workers_of(os.getpid())[0]
            os.kill(self.killed, signal.SIGKILL)


class Stop(Progress):
    """Interrupts the work when the first rows are here."""

    def advance(self, count: int = 1, note: str = "") -> None:
        raise KeyboardInterrupt


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux for the workers' processes")
def test_a_worker_killed_in_mid_run_loses_nothing_and_doubles_nothing(cluster, model, cells, alone, tmp_path):
    progress = KillsAWorker()
    classifier = Classifier.from_file(model, "cpu")
    outcome = predict(
        classifier, [str(cells)], tmp_path / "out.csv", progress=progress, workers=RayWorkers(model)
    )
    assert progress.killed is not None
    assert (outcome.rows, outcome.errors) == (IMAGES + 1, 1)
    assert (tmp_path / "out.csv").read_text() == alone


@pytest.mark.full
def test_a_table_that_was_interrupted_here_is_gone_on_with_by_workers(cluster, model, cells, alone, tmp_path):
    out, classifier = tmp_path / "out.csv", Classifier.from_file(model, "cpu")
    with pytest.raises(KeyboardInterrupt):
        predict(classifier, [str(cells)], out, progress=Stop())
    begun = (tmp_path / ".out.csv.partial.csv").read_text()
    assert 1 < begun.count("\n") < IMAGES
    assert alone.startswith(begun)
    predict(classifier, [str(cells)], out, workers=RayWorkers(model))
    assert out.read_text() == alone
    about = json.loads((tmp_path / "out.csv.json").read_text())
    assert about["engine"]["name"] == "torch"
    assert about["ray"]["threads_per_worker"] == 1


@pytest.mark.full
def test_the_command_takes_uris_and_lists_in_parquet_and_ends_with_1_where_some_cannot_be_read(
    cluster, model, cells, tmp_path
):
    listed = tmp_path / "names.parquet"
    pd.DataFrame({"path": [f"{cells}/a/000.png", f"{cells}/a/missing.png"]}).to_parquet(listed)
    names = [f"file://{cells}/b", f"@{listed}"]
    command = ["predict", *names, "--model", str(model), "--out"]
    there = CliRunner().invoke(app, [*command, str(tmp_path / "there.csv"), "--engine", "ray"])
    here = CliRunner().invoke(app, [*command, str(tmp_path / "here.csv")])
    assert (there.exit_code, here.exit_code) == (1, 1), there.output
    assert f"{IMAGES // 2 + 3} images, 2 of which could not be read" in there.output
    assert (tmp_path / "there.csv").read_text() == (tmp_path / "here.csv").read_text()


@pytest.mark.full
def test_workers_that_cannot_begin_are_one_sentence(cluster, model, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "__version__", "0.0.7")
    classifier = Classifier.from_file(model, "cpu")
    with pytest.raises(WorkersError, match=r"could not go on: a worker has Cervicyte .* 0\.0\.7 is what"):
        predict(classifier, [str(cells)], tmp_path / "out.csv", workers=RayWorkers(model))


class EndsAMachine(Progress):
    """Takes a machine away as soon as the first rows are here, with its worker and what it had answered."""

    def __init__(self, cluster) -> None:
        self.cluster, self.ended = cluster, False

    def advance(self, count: int = 1, note: str = "") -> None:
        if not self.ended:
            self.ended = True
            self.cluster.remove_node(self.cluster.list_all_nodes()[-1], allow_graceful=False)


@pytest.mark.full
def test_a_machine_that_dies_in_mid_run_loses_nothing_and_doubles_nothing(
    cluster, model, cells, alone, tmp_path
):
    """The last test: one machine is left."""
    progress = EndsAMachine(cluster)
    predict(
        Classifier.from_file(model, "cpu"),
        [str(cells)],
        tmp_path / "out.csv",
        progress=progress,
        workers=RayWorkers(model),
    )
    assert progress.ended
    assert (tmp_path / "out.csv").read_text() == alone
