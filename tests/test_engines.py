"""Whatever computes the network, the answer is the same; one that answers otherwise is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cervicyte.errors import UsageError
from cervicyte.explanation import cam
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.inference import choice
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.engines import Engine, OnnxEngine, OpenVinoEngine, Output
from cervicyte.inference.parity import compare, sample_cells
from cervicyte.inference.predict import predict
from cervicyte.inference.torch_engine import TorchEngine
from cervicyte.network.description import shipped_model
from cervicyte.network.graph import cells_along
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50

CLASSES = ("Parabasal", "Koilocytotic", "Metaplastic")
SIZE = 48


def model_of(placement="stage", seed=0) -> ModelFile:
    """Return a network all of whose parts matter: gates, and normalisation as training leaves it."""
    torch.manual_seed(seed)
    network = CBAMResNet50(3, placement).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "cbam" in name:
                value.normal_(0, 0.1)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_(0, 0.1)
                module.get_buffer("running_var").uniform_(0.5, 1.5)
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
        network.fc.weight.mul_(5)
    return ModelFile(network, CLASSES, Preprocessing(image_size=SIZE))


@pytest.fixture(scope="module")
def model() -> ModelFile:
    return model_of()


@pytest.fixture(scope="module")
def graph(model) -> bytes:
    return choice.graph_of(model)


@pytest.fixture(scope="module")
def images(model) -> np.ndarray:
    return sample_cells(model.preprocessing)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(choice.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def close(given: Output, right: Output, tolerance=1e-4) -> bool:
    assert given.evidence is not None
    assert right.evidence is not None
    pairs = [(given.logits, right.logits), (given.evidence, right.evidence)]
    pairs += [(given.means[stage], right.means[stage]) for stage in right.means]
    return all(np.abs(one - other).max() <= tolerance * np.abs(other).max() for one, other in pairs)


# --- the same answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["stage", "block", "none"])
def test_the_graph_written_from_the_weights_computes_the_network(placement, images):
    model = model_of(placement)
    given = OpenVinoEngine(choice.graph_of(model)).run(images[:3], evidence=True)
    right = TorchEngine(model).run(images[:3], evidence=True)
    assert np.abs(right.logits).max() > 0.1
    assert close(given, right)


@pytest.mark.parametrize("engine", [OnnxEngine, OpenVinoEngine])
def test_engines_give_what_torch_gives_and_are_told_apart_by_nothing_else(engine, model, graph, images):
    made, reference = engine(graph), TorchEngine(model)
    assert close(made.run(images, evidence=True), reference.run(images, evidence=True))
    assert made.run(images[:1]).evidence is None
    parity = compare(made, reference, images)
    assert parity.faults == []
    assert (parity.label_agreement, parity.images) == (1, len(images))
    assert made.describe()["name"] == engine.name


def test_evidence_adds_up_to_the_logits_and_is_grad_cam_where_it_is_positive(model, graph, images):
    output = OpenVinoEngine(graph).run(images[:4], evidence=True)
    assert output.evidence is not None
    bias = model.network.fc.bias.detach().numpy()
    np.testing.assert_allclose(output.evidence.sum((2, 3)) + bias, output.logits, atol=1e-4)
    inputs = torch.from_numpy(model.preprocessing.normalise(images[:4]))
    expected = cam.grad_cam(model.network, inputs, "cbam4").numpy()
    np.testing.assert_allclose(output.evidence.clip(min=0), expected, atol=1e-5)
    assert output.evidence.shape[2] == cells_along(SIZE) == 2


def test_bfloat16_rounds_but_answers_alike(model, images):
    parity = compare(TorchEngine(model, "bfloat16"), TorchEngine(model), images)
    assert 1e-5 < parity.logits < 0.1
    assert parity.probabilities < 0.05


def test_threads_share_an_engine(graph, images):
    engine = OpenVinoEngine(graph)
    alone = [engine.run(images[at : at + 1]).logits for at in range(4)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda at: engine.run(images[at % 4][np.newaxis]).logits, range(12)))
    for at, logits in enumerate(together):
        np.testing.assert_allclose(logits, alone[at % 4], atol=1e-5)


CTRL_C = """
import signal, sys, threading
from pathlib import Path
from cervicyte.inference.engines import OpenVinoEngine

if sys.argv[2] == "traced":
    import faulthandler
    faulthandler.enable()
engines = [OpenVinoEngine(Path(sys.argv[1]))]
dropping = threading.Thread(target=engines.clear)
dropping.start()
dropping.join()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("how", ["plain", "traced"])
def test_ctrl_c_interrupts_after_an_engine_was_dropped_by_another_thread(how, graph, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(graph)
    command = [sys.executable, "-c", CTRL_C, str(tmp_path / "graph.onnx"), how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted\n"


def test_one_pass_gives_the_answer_and_every_map(model):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 40, 3), np.uint8)
    classifier = Classifier(model, "cpu", engine="openvino")
    prediction, maps = classifier.predict_with_maps(image)
    by_torch = Classifier(model, "cpu")
    assert prediction.probabilities == pytest.approx(by_torch.predict([image])[0].probabilities, abs=1e-4)
    expected = by_torch.explain(image, layer="cbam4")
    assert list(maps) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(maps[name], values, atol=1e-4 * values.max())


# --- which one --------------------------------------------------------------------------------------


class Slanted(OpenVinoEngine):
    """Answers wrongly, as a library with an error would."""

    def run(self, images, evidence=False):
        output = super().run(images, evidence)
        return output._replace(logits=output.logits[:, ::-1])


def test_an_engine_that_answers_otherwise_is_refused_and_auto_passes_it_by(model, monkeypatch):
    monkeypatch.setitem(choice.GRAPH_ENGINES, "openvino", Slanted)
    with pytest.raises(UsageError, match="does not answer as the network does: logits differ"):
        choice.engine_for(model, "openvino")
    assert choice.engine_for(model, "auto").name in ("torch", "onnx")


def test_auto_takes_the_fastest_and_asks_only_once(model, cache, monkeypatch):
    chosen = choice.engine_for(model, "auto")
    files = sorted((cache / "engines").iterdir())
    found = [json.loads(path.read_text()) for path in files]
    (speed,) = (one for one in found if "fastest" in one)
    of_engines = [one for one in found if "fastest" not in one]
    assert sorted(one["engine"]["name"] for one in of_engines) == ["onnx", "openvino", "torch"]
    rates = speed["images_per_second"]
    assert sorted(rates) == ["onnx", "openvino", "torch"]
    assert chosen.name == speed["fastest"] == max(rates, key=rates.get)
    monkeypatch.setattr(choice, "compare", None)  # would fail
    assert choice.engine_for(model, "auto").name == chosen.name
    assert sorted((cache / "engines").iterdir()) == files


def test_engines_take_turns_when_the_fastest_is_looked_for(model):
    asked = []

    class Slow(Engine):
        name, package, precisions, precision = "slow", "numpy", ("float32",), "float32"
        takes = 0.02

        def run(self, images, evidence=False):
            asked.append(self.name)
            time.sleep(self.takes)

    class Fast(Slow):
        name, takes = "fast", 0.001

    both = [Slow(), Fast()]
    assert choice._fastest(both, model, "weights").name == "fast"
    assert asked == ["slow", "fast"] * (1 + choice.ROUNDS)
    assert choice._fastest(both, model, "weights").name == "fast"
    assert len(asked) == 2 * (1 + choice.ROUNDS)  # once for all


def test_images_go_through_in_parts_to_the_same_answers(model, images, monkeypatch):
    engine = TorchEngine(model)
    assert engine.at_once is None
    whole = engine.run(images, evidence=True)
    engine.at_once = 4
    given = len(images) // 4 * 4 - 1  # the last part is smaller
    parts = engine.run(images[:given], evidence=True)
    assert parts.evidence is not None
    assert len(parts.logits) == len(parts.evidence) == given
    assert close(parts, Output(*(_first(one, given) for one in whole)))
    assert engine.run(images[:given]).evidence is None
    sizes, computed = [], engine._computed

    def watched(part, evidence):
        sizes.append(len(part))
        return computed(part, evidence)

    monkeypatch.setattr(engine, "_computed", watched)
    engine.run(images[:given])
    assert sizes == [4] * (given // 4) + [3]


def _first(one, count):
    return {name: value[:count] for name, value in one.items()} if isinstance(one, dict) else one[:count]


def test_other_weights_are_tried_anew(model, cache):
    choice.engine_for(model, "openvino")
    choice.engine_for(model_of(seed=1), "openvino")
    assert len(list((cache / "engines").iterdir())) == 2


@pytest.mark.parametrize("content", [None, '{"faults": []}'])
def test_a_cache_that_cannot_be_written_or_read_changes_no_answer(model, cache, content, monkeypatch):
    if content is None:
        cache.write_text("a file where the folder should be")
    else:
        choice.engine_for(model, "openvino")
        (path,) = (cache / "engines").iterdir()
        path.write_text(content)
    assert choice.engine_for(model, "openvino").name == "openvino"


@pytest.mark.parametrize(
    ("name", "precision", "said"),
    [
        ("cuda", "float32", "There is no engine 'cuda'"),
        ("torch", "float64", "There is no precision 'float64'"),
        ("onnx", "bfloat16", "The engine onnx has no bfloat16"),
    ],
)
def test_what_there_is_not_is_refused_by_name(model, name, precision, said):
    with pytest.raises(UsageError, match=said):
        choice.engine_for(model, name, precision)


def test_an_engine_whose_package_is_missing_says_how_to_install_it(model, monkeypatch):
    monkeypatch.setattr(Engine, "installed", classmethod(lambda engine: engine.name == "torch"))
    with pytest.raises(
        UsageError, match=r"needs the package openvino; .*pip install \. in the program's folder\.$"
    ):
        choice.engine_for(model, "openvino")
    with pytest.raises(UsageError, match=r"needs the package onnxruntime; .*'\.\[fast\]' in"):
        choice.engine_for(model, "onnx")
    assert choice.engine_for(model, "auto").name == "torch"


def test_where_nobody_says_which_a_processor_computes_by_openvino_without_torch(tmp_path):
    image = tmp_path / "cell.png"
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(image)
    asked = (
        "import sys; from cervicyte.cli import main; "
        f"sys.argv = ['cervicyte', 'predict', {str(image)!r}, '--out', {str(tmp_path / 'rows.csv')!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)

    has_gpu = torch.cuda.is_available()
    engine = json.loads((tmp_path / "rows.csv.json").read_text())["engine"]["name"]
    assert (engine, done.stdout.split()[-1]) == (("torch", "True") if has_gpu else ("openvino", "False"))


def test_a_gpu_that_torch_can_use_is_found_without_torch():
    assert choice._torch_has_a_gpu() == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("build", "devices", "expected"),
    [
        ("2.11.0+cu128", 1, True),
        ("2.11.0+cu128", 0, False),
        ("2.11.0", None, False),
        ("2.11.0+cpu", 1, False),
        ("2.11.0+rocm6.4", None, True),
    ],
)
def test_a_gpu_is_torchs_only_if_torch_was_built_for_it(build, devices, expected, monkeypatch):
    class Driver:
        def cuInit(self, flags):
            return 0

        def cuDeviceGetCount(self, count):
            count._obj.value = devices
            return 0

    def opened(name):
        if devices is None:
            raise OSError("no driver")
        return Driver()

    monkeypatch.setattr(choice.metadata, "version", lambda name: build)
    monkeypatch.setattr(choice.ctypes, "CDLL", opened)
    assert choice._torch_has_a_gpu() is expected


@pytest.mark.parametrize("name", ["model.pth", "model.onnx", "model.xml"])
def test_what_only_torch_reads_and_graphs_are_left_to_the_choice(name):
    assert choice.usual_engine(Path(name)) is None


def test_torch_answers_with_a_note_where_openvino_is_wrong(monkeypatch):
    monkeypatch.setattr(choice, "_torch_has_a_gpu", lambda: False)
    monkeypatch.setattr(choice, "_faults", lambda *arguments: ["logits differ by 3"])
    classifier = Classifier.as_usual(shipped_model())

    assert classifier.engine.name == "torch"
    assert (
        "torch answers, since the engine openvino does not answer as the network does: logits differ by 3."
        in (classifier.notes)
    )


def test_a_precision_that_the_processor_has_not_is_told_where_torch_answers_in_it(model, monkeypatch):
    def refuse(self, graph, precision="float32"):
        raise UsageError("This processor computes no bfloat16; choose --precision float32.")

    monkeypatch.setattr(OpenVinoEngine, "__init__", refuse)
    engine = choice.engine_for(model, "auto", "bfloat16")
    assert engine.name == "torch"
    assert engine.notes == ("torch answers, since openvino: this processor computes no bfloat16.",)
    monkeypatch.setattr(OpenVinoEngine, "installed", classmethod(lambda engine: False))
    assert choice.engine_for(model, "auto", "bfloat16").notes == ()


def test_a_table_says_which_engine_answered(model, tmp_path):
    from cervicyte.datasets.synthetic import SAMPLES

    rows = {}
    for engine in ("torch", "openvino"):
        classifier = Classifier(model, "cpu", engine)
        predict(classifier, [str(SAMPLES)], tmp_path / f"{engine}.csv")
        rows[engine] = (tmp_path / f"{engine}.csv").read_text().splitlines()
        about = json.loads((tmp_path / f"{engine}.csv.json").read_text())
        assert about["engine"] == classifier.engine.describe()
        assert about["engine"]["name"] == engine
    assert len(rows["torch"]) == 6
    assert [row.split(",")[:3] for row in rows["torch"]] == [row.split(",")[:3] for row in rows["openvino"]]
