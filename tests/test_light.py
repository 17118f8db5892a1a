"""An installation without torch answers, explains and serves as others do; graphs open like models."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import PROJECT
from lowest_versions import lowest
from packaging.version import Version
from test_engines import CLASSES, close, model_of
from typer.testing import CliRunner

import cervicyte
from cervicyte.cli import app
from cervicyte.dashboard.batching import Asked, Batcher, Wanted
from cervicyte.dashboard.cell_view import look
from cervicyte.dashboard.intake import Arrived
from cervicyte.dashboard.worklist import Worklist
from cervicyte.datasets.synthetic import SAMPLES
from cervicyte.errors import ModelFileError, UsageError
from cervicyte.evaluation.model_card import model_card
from cervicyte.explanation import cam
from cervicyte.explanation.cam import Contrast
from cervicyte.explanation.gallery import explain_cells
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.inference import choice
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.export import export_model
from cervicyte.inference.parity import BOUNDS, sample_cells
from cervicyte.inference.torch_engine import TorchEngine
from cervicyte.network import plain
from cervicyte.network.description import PLACEMENTS
from cervicyte.network.frozen import FrozenModel, load_described
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import NETWORKS, CBAMResNet50

CELL = SAMPLES / "Koilocytotic.png"
WITHOUT_TORCH = (
    "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'accelerate', 'cleanlab']))"
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(choice.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with one model in four forms."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "m.safetensors", model_of())
    model = load_model_file(folder / "m.safetensors")  # as it was rounded
    save_model(folder / "m.pth", model)
    export_model(model, folder / "m.onnx", "onnx")
    export_model(model, folder / "openvino", "openvino")
    return folder


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return read_image(CELL)


# --- the network in NumPy ---------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_numpy_alone_computes_the_network(placement):
    model = model_of(placement)
    images = sample_cells(model.preprocessing)[:3]
    weights = {name: value.numpy() for name, value in model.network.state_dict().items()}
    given = plain.computed(weights, model.preprocessing, images)
    right = TorchEngine(model).run(images, evidence=True)
    assert np.abs(right.logits).max() > 0.1
    assert close(given, right)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_names_shapes_and_order_of_the_weights_are_those_of_torch(placement):
    network = CBAMResNet50(4, placement)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert list(plain.shapes_of(4, placement).items()) == list(shapes.items())
    trained = sum(value.numel() for value in network.parameters())
    assert plain.parameter_count(4, placement) == trained
    assert {name: value.shape for name, value in plain.drawn(4, placement, 0).items()} == shapes


# --- a model opens in every form --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.safetensors", "m.onnx", "openvino", "openvino/model.xml"])
def test_what_is_said_of_a_model_is_the_same_in_every_form(folder, name):
    frozen, model = load_described(folder / name, without_torch=True), load_model_file(folder / "m.pth")
    assert isinstance(frozen, FrozenModel)
    for key in ("class_names", "preprocessing", "placement", "weights_sha256", "parameter_count", "original"):
        assert getattr(frozen, key) == getattr(model, key), key
    assert frozen.metadata == model.metadata
    assert model_card(frozen) == model_card(model)


@pytest.mark.parametrize(
    ("name", "engine"),
    [("m.safetensors", "openvino"), ("m.onnx", "onnx"), ("m.onnx", "openvino"), ("openvino", None)],
)
def test_every_form_gives_the_same_answer_and_the_same_maps(folder, image, name, engine):
    right = Classifier.from_file(folder / "m.pth", "cpu")
    given = Classifier.from_file(folder / name, engine=engine)
    assert given.engine.name == (engine or "openvino")
    (prediction,), (expected,) = given.predict([image]), right.predict([image])
    assert prediction.class_name == expected.class_name
    assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert given.default_layer == "cbam4"
    maps, by_gradients = given.explain(image), right.explain(image, layer="cbam4")
    assert list(maps) == list(CLASSES)
    for one in CLASSES:
        np.testing.assert_allclose(maps[one], by_gradients[one], atol=1e-4 * by_gradients[one].max())


def test_a_map_of_an_engine_is_judged_without_torch(folder, image):
    given = Classifier.from_file(folder / "m.onnx")
    verdict = given.judge(given.preprocessed([image])[0], given.predict([image])[0].class_name)
    assert verdict.tested
    assert set(verdict.controls) == {"centre", "darkness", "random"}
    by_torch = Classifier.from_file(folder / "m.pth", "cpu")
    expected = by_torch.judge(
        by_torch.preprocessed([image])[0], by_torch.predict([image])[0].class_name, "cbam4"
    )
    assert verdict.score == pytest.approx(expected.score, abs=0.02)  # torch may score in bfloat16
    assert verdict.forward_passes == expected.forward_passes


def test_a_graph_has_no_gradients_and_says_which_maps_there_are(folder, image):
    graph = Classifier.from_file(folder / "m.onnx")
    assert (graph.layers, graph.methods) == (("cbam4",), ("grad-cam", "hirescam"))
    with pytest.raises(
        UsageError, match=r"Maps by grad-cam at layer3 need .* grad-cam and hirescam at cbam4"
    ):
        graph.explain(image, layer="layer3")
    weights = Classifier.from_file(folder / "m.safetensors", engine="openvino")
    assert "layer3" in weights.layers  # torch is here
    expected = Classifier.from_file(folder / "m.pth", "cpu").explain(image, ["Parabasal"], "layer3")
    np.testing.assert_allclose(
        weights.explain(image, ["Parabasal"], "layer3")["Parabasal"],
        expected["Parabasal"],
        rtol=1e-3,
        atol=1e-4,
    )  # threads add up in another order


def test_a_gallery_of_an_engine_shows_the_maps_of_the_gradients_contrasts_too(folder, tmp_path):
    model = load_model_file(folder / "m.pth")
    targets = ["Parabasal", "contrast:Parabasal,Metaplastic", "all"]
    graph = Classifier.from_file(folder / "m.onnx")
    for name, about, engine in (("torch", model, None), ("graph", graph.model, graph.engine)):
        explain_cells(
            about, [CELL], tmp_path / name, layers=["cbam4"], targets=targets, arrays=True,
            with_verdicts=False, engine=engine,
        )  # fmt: skip
    (one,), (other,) = ((tmp_path / name / "gradcam_arrays").iterdir() for name in ("torch", "graph"))
    with np.load(one) as right, np.load(other) as given:
        for key in ("maps", "signed_maps", "logits"):
            np.testing.assert_allclose(given[key], right[key], atol=1e-4 * np.abs(right[key]).max())
        assert list(given["classes"]) == list(right["classes"])
    assert "both from the same pass" in (tmp_path / "graph" / "index.html").read_text()


def test_contrasts_of_numpy_are_those_of_torch():
    logits = np.array([0.5, 2.0, 1.0, -1.0], np.float32)
    for contrast in (Contrast(), Contrast(of=2), Contrast(against=1, of=0), Contrast(against=3)):
        of, against = cam.contrasted(torch.from_numpy(logits[np.newaxis]), contrast)
        assert cam.contrasted_of(logits, contrast) == (int(of), int(against))


def counting(classifier: Classifier, monkeypatch) -> list[bool]:
    """Return a list that grows with every pass of the classifier's engine."""
    passes: list[bool] = []
    run = classifier.engine.run

    def counted(images, evidence=False):
        passes.append(evidence)
        return run(images, evidence)

    monkeypatch.setattr(classifier.engine, "run", counted)
    return passes


def test_the_server_gets_answer_and_maps_from_one_pass(folder, image, monkeypatch):
    classifier = Classifier.from_file(folder / "m.onnx", engine="openvino")
    with contextlib.closing(Batcher(classifier)) as batcher:
        assert batcher.ready.wait(60)
        passes = counting(classifier, monkeypatch)
        asked = Asked(CELL.read_bytes(), "cell", Wanted(CLASSES, "cbam4", "grad-cam"))
        batcher.submit([asked])
        found = asked.answer.result(60)
    assert passes == [True]
    for name, values in classifier.explain(image).items():
        np.testing.assert_allclose(found.maps[name], values, atol=1e-5)


def test_a_cell_is_looked_at_without_a_second_pass(folder, monkeypatch):
    classifier = Classifier.from_file(folder / "m.onnx", engine="openvino")
    worklist = Worklist(CLASSES)
    assert list(worklist.read(classifier, [Arrived(CELL.name, CELL.read_bytes())])) == [1]
    passes = counting(classifier, monkeypatch)
    looked = look(classifier, worklist.entries[0])
    assert passes == []
    assert (looked.layer, set(looked.overlays)) == ("cbam4", set(CLASSES))
    assert max(looked.peaks.values()) == 1


# --- what is refused --------------------------------------------------------------------------------


def test_a_graph_that_does_not_say_of_which_model_it_is_is_refused_in_a_sentence(folder, tmp_path):
    graph = onnx.load(folder / "m.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(
        ModelFileError, match=r"m\.onnx: does not say of which model it is .* `cervicyte export`"
    ):
        cervicyte.load_model(tmp_path / "m.onnx")


def test_a_damaged_graph_does_not_answer(folder, tmp_path):
    graph = onnx.load(folder / "m.onnx")
    (bias,) = [one for one in graph.graph.initializer if one.name == "fc.bias"]
    bias.raw_data = np.array([9, 0, 0], np.float32).tobytes()
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(
        UsageError, match="The engine onnx does not answer as the network does: logits differ"
    ):
        cervicyte.load_model(tmp_path / "m.onnx", engine="onnx")
    (tmp_path / "n.onnx").write_bytes((folder / "m.onnx").read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="is no ONNX graph, or damaged"):
        cervicyte.load_model(tmp_path / "n.onnx")


@pytest.mark.parametrize("name", ["m.onnx", "openvino/model.xml"])
def test_what_needs_weights_says_that_a_graph_has_none(folder, name):
    with pytest.raises(ModelFileError, match=r"is a graph, .* name the model file that it was exported from"):
        load_model_file(folder / name)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_graph_that_another_program_has_changed_is_refused_in_a_sentence(folder, tmp_path, engine):
    graph = onnx.load(folder / "m.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1  # one image at once, and no more
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=r"m\.onnx: its graph does not take or give .* export it anew"):
        cervicyte.load_model(tmp_path / "m.onnx", engine=engine)


def test_of_a_graph_that_onnx_runtime_cannot_open_auto_takes_openvino_and_says_so(folder, tmp_path):
    graph = onnx.load(folder / "m.onnx")
    graph.ir_version = 99  # as of a newer version of ONNX
    onnx.save(graph, tmp_path / "m.onnx")
    ran = CliRunner().invoke(
        app, ["predict", str(CELL), "--model", str(tmp_path / "m.onnx"), "--out", str(tmp_path / "rows.csv")]
    )
    assert ran.exit_code == 0, ran.output
    assert re.search(
        r"Note: openvino answers, since it cannot be read by onnx \(.*IR version: 99.*\)", ran.stderr
    )
    about = json.loads((tmp_path / "rows.csv.json").read_text())
    assert about["engine"]["name"] == "openvino"
    assert any("openvino answers" in note for note in about["notes"])
    assert not cervicyte.load_model(folder / "m.onnx").engine.notes


def test_a_graph_that_no_engine_opens_is_one_sentence_with_the_reason_of_each(folder, tmp_path):
    graph = onnx.load(folder / "m.onnx")
    graph.graph.node[3].op_type = "Nonsense"
    onnx.save(graph, tmp_path / "m.onnx")
    ran = CliRunner().invoke(
        app, ["predict", str(CELL), "--model", str(tmp_path / "m.onnx"), "--out", str(tmp_path / "rows.csv")]
    )
    assert ran.exit_code == 2, ran.output
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"Error: {tmp_path / 'm.onnx'}: no engine here answers in float32: ")
    assert re.search(r"read by onnx \(.*Nonsense.*\), and it cannot be read by openvino \(.*\); export", line)


def test_weights_with_a_changed_bit_are_refused_without_torch_too(folder, tmp_path):
    content = bytearray((folder / "m.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelFileError, match="so that it is damaged"):
        load_described(tmp_path / "m.safetensors", without_torch=True)


def test_weights_of_another_kind_are_not_computed_as_those_that_ship(tmp_path, monkeypatch):
    class Other(CBAMResNet50):
        """The same names and shapes, and another thing computed from them."""

        kind = "other"

    monkeypatch.setitem(NETWORKS, Other.kind, Other)
    path = tmp_path / "m.safetensors"
    save_model(path, ModelFile(Other(2).eval(), ("Parabasal", "Koilocytotic"), Preprocessing(image_size=32)))
    model = load_described(path, without_torch=True)
    assert isinstance(model, ModelFile)
    assert isinstance(model.network, Other)
    monkeypatch.setattr("cervicyte.network.frozen.torch_is_installed", lambda: False)
    with pytest.raises(
        ModelFileError, match="network of the kind 'other', whose weights only torch computes"
    ):
        load_described(path)


@pytest.mark.parametrize(
    ("name", "engine", "said"),
    [
        ("m.onnx", "torch", "has no network that torch could"),
        ("openvino", "onnx", "cannot be opened by onnx"),
    ],
)
def test_an_engine_that_cannot_take_the_graph_says_so(folder, name, engine, said):
    with pytest.raises(UsageError, match=said):
        cervicyte.load_model(folder / name, engine=engine)


# --- without torch ----------------------------------------------------------------------------------


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line where torch cannot be imported."""
    code = f"{WITHOUT_TORCH}; from cervicyte.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_predict_needs_no_torch(folder, tmp_path):
    out = tmp_path / "rows.csv"
    finished = without_torch(
        "predict", CELL, "--model", folder / "m.safetensors", "--engine", "onnx", "--out", out
    )
    assert finished.returncode == 0, finished.stderr
    (row,) = csv.DictReader(out.open())
    (expected,) = cervicyte.load_model(folder / "m.pth", "cpu").predict([read_image(CELL)])
    assert row["predicted_class"] == expected.class_name
    assert float(row["confidence"]) == pytest.approx(
        expected.confidence, abs=BOUNDS["float32"]["probabilities"]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "."], r"cervicyte train needs torch; install it with: pip install '\.\[train\]' in "),
        (["predict", str(CELL), "--model", "m.pth"], r"m\.pth: is no \.safetensors .* install torch: pip"),
    ],
)
def test_what_needs_torch_says_so_in_a_sentence(arguments, said, folder, tmp_path):
    arguments = [str(folder / one) if one == "m.pth" else one for one in arguments]
    finished = without_torch(*arguments, "--out", tmp_path / "out.csv")
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith("Error: ")
    assert re.search(said, line)


def test_the_rooms_that_answer_are_imported_without_torch():
    modules = ("inference.predict", "explanation.gallery", "dashboard.server", "evaluation.model_card")
    code = f"import sys, {', '.join(f'cervicyte.{one}' for one in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.full
@pytest.mark.parametrize("versions", ["newest", "lowest"])
def test_an_installation_without_torch_predicts_explains_and_serves(versions, tmp_path):
    """In an environment of its own, made from the wheel with the extra `light`."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(PROJECT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("cervicyte-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    bounds = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    (tmp_path / "lowest.txt").write_text("\n".join(map(lowest, bounds)))
    install = [binaries / "python", "-m", "pip", "install", "--quiet", f"{wheel}[light]"]
    install += ["--constraint", tmp_path / "lowest.txt"] if versions == "lowest" else []
    subprocess.run(list(map(str, install)), check=True, env=own)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, arguments)), capture_output=True, text=True, env=own, cwd=tmp_path, check=True
        )

    packages = json.loads(run(binaries / "python", "-m", "pip", "list", "--format", "json").stdout)
    assert not {"torch", "torchvision", "accelerate", "cleanlab"} & {one["name"] for one in packages}
    pinned = dict(line.split("==") for line in map(lowest, bounds))
    found = {one["name"]: Version(one["version"]) for one in packages}
    assert (found["numpy"] == Version(pinned["numpy"])) == (versions == "lowest")
    run(binaries / "cervicyte", "predict", SAMPLES, "--out", "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    cells = [read_image(Path(row["path"])) for row in rows]
    expected = cervicyte.load_model(device="cpu").predict(cells)
    assert len(rows) == 5
    for row, one in zip(rows, expected, strict=True):
        assert (row["predicted_class"], row["verdict"]) == (one.class_name, one.verdict)
        for name, probability in one.probabilities.items():
            assert float(row[f"p_{name}"]) == pytest.approx(
                probability, abs=BOUNDS["float32"]["probabilities"]
            )
    run(binaries / "cervicyte", "explain", CELL, "--out", "explanation", "--arrays")
    (arrays,) = (tmp_path / "explanation" / "gradcam_arrays").iterdir()
    with np.load(arrays) as given:
        assert (str(given["layer"]), given["maps"].shape) == ("cbam4", (5, 5, 5))
    assert "on this image the map" in (tmp_path / "explanation" / "index.html").read_text().lower()
    log = (tmp_path / "serve.log").open("w+")
    serving = subprocess.Popen(
        [str(binaries / "cervicyte"), "serve", "--no-browser", "--port", "0"],
        stdout=log, stderr=log, env=own, cwd=tmp_path,
    )  # fmt: skip
    try:
        address = None
        for _ in range(1800):
            address = re.search(r"ready at (\S+)", (tmp_path / "serve.log").read_text())
            if address or serving.poll() is not None:
                break
            time.sleep(0.2)
        assert address, (tmp_path / "serve.log").read_text()
        request = urllib.request.Request(
            f"{address[1]}/api/v1/explain?maps=values", method="POST",
            data=b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
            + CELL.read_bytes() + b"\r\n--b--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )  # fmt: skip
        answer = json.load(urllib.request.urlopen(request))["results"][0]
    finally:
        serving.terminate()
        serving.wait(60)
    (by_torch,) = cervicyte.load_model(device="cpu").predict([read_image(CELL)])
    assert answer["probabilities"] == pytest.approx(
        by_torch.probabilities, abs=BOUNDS["float32"]["probabilities"]
    )
    assert [one["layer"] for one in answer["maps"]] == ["cbam4"] * 5
