"""What is said of an image follows from what the model carries, and says when it does not know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cervicyte.datasets.layouts import Cell
from cervicyte.errors import CalibrationError, FamiliarityError
from cervicyte.evaluation.answers import Answerer, answered_cells, attach
from cervicyte.evaluation.calibration import Calibration, ClassThreshold
from cervicyte.evaluation.familiarity import distances_of, fit_familiarity, fit_spaces
from cervicyte.evaluation.tables import ANSWER_COLUMNS
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.images.statistics import STATISTICS
from cervicyte.inference.classifier import Classifier
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import CBAMResNet50

NAMES = ("Dyskeratotic", "Koilocytotic", "Metaplastic")
CALIBRATION = Calibration(
    temperature=2.0,
    classes=(
        ClassThreshold("Dyskeratotic", 0.3, 100, 50),
        ClassThreshold("Koilocytotic", 0.3, 100, 50),
        ClassThreshold("Metaplastic", 0.6, 100, 50),
    ),
    level=0.95,
    decline_below=0.55,
    coverage=0.9,
    cells=300,
    groups=150,
)


def usual_images(rng, count):
    """Return features and statistics of images that are like one another."""
    features = {
        "stage2": 2 + 0.1 * rng.normal(size=(count, 512)),
        "stage4": 2 + 0.1 * rng.normal(size=(count, 2048)),
    }
    return features, 10 + rng.normal(size=(count, len(STATISTICS)))


@pytest.fixture(scope="module")
def familiarity():
    rng = np.random.default_rng(0)
    (trained, statistics), (held_out, of_held_out) = usual_images(rng, 200), usual_images(rng, 150)
    spaces = fit_spaces(trained, np.arange(200) % 3)
    return fit_familiarity(
        spaces, statistics, distances_of(spaces, held_out), of_held_out, np.arange(150).astype(str)
    )


def logits_for(*probabilities):
    """Return logits whose probabilities are these once they are calibrated."""
    return CALIBRATION.temperature * np.log(np.array(probabilities, float))


NO_FEATURES: tuple[dict[str, np.ndarray], np.ndarray] = ({}, np.zeros((0, len(STATISTICS))))


@pytest.mark.parametrize(
    ("probabilities", "prediction_set", "verdict", "sentence"),
    [
        ((0.9, 0.05, 0.05), ("Dyskeratotic",), "answer", "Dyskeratotic."),
        # Sure enough of one, and it stands alone in its set: but two reach their thresholds here.
        (
            (0.35, 0.6, 0.05),
            ("Koilocytotic", "Dyskeratotic"),
            "uncertain",
            "Uncertain between Koilocytotic and Dyskeratotic.",
        ),
        # One alone in the set, yet below the confidence from which on cells are answered.
        (
            (0.29, 0.5, 0.21),
            ("Koilocytotic",),
            "uncertain",
            "Uncertain between Koilocytotic and Dyskeratotic.",
        ),
        # None reaches its threshold: the likeliest stands alone.
        (
            (0.26, 0.22, 0.52),
            ("Metaplastic",),
            "uncertain",
            "Uncertain between Metaplastic and Dyskeratotic.",
        ),
    ],
)
def test_a_set_of_several_or_little_confidence_is_uncertain(probabilities, prediction_set, verdict, sentence):
    answerer = Answerer(NAMES, CALIBRATION)
    (prediction,) = answerer.predictions(logits_for(probabilities), *NO_FEATURES)
    assert prediction.prediction_set == prediction_set
    assert prediction.verdict == verdict
    assert prediction.sentence == sentence
    assert list(prediction.probabilities.values()) == pytest.approx(list(probabilities))
    assert prediction.class_name == NAMES[int(np.argmax(probabilities))]


def test_without_a_calibration_nothing_is_claimed():
    answerer = Answerer(NAMES)
    (prediction,) = answerer.predictions(np.log([[0.4, 0.35, 0.25]]), *NO_FEATURES)
    assert prediction.prediction_set == ()
    assert prediction.verdict == "answer"
    assert prediction.unlike is None
    assert list(prediction.probabilities.values()) == pytest.approx([0.4, 0.35, 0.25])
    assert "no calibration" in answerer.notes[0]
    assert "cannot tell" in answerer.notes[1]


def test_a_strange_image_is_flagged_whatever_the_confidence(familiarity):
    rng = np.random.default_rng(1)
    features, statistics = usual_images(rng, 1)
    answerer = Answerer(NAMES, CALIBRATION, familiarity)
    sure = logits_for((0.98, 0.01, 0.01))
    (usual,) = answerer.predictions(sure, features, np.full((1, len(STATISTICS)), 10.0))
    assert usual.verdict == "answer"
    assert usual.unlike is not None
    strange = {stage: rng.normal(size=values.shape) for stage, values in features.items()}
    (other,) = answerer.predictions(sure, strange, statistics)
    assert other.verdict == "not_a_cell"
    assert other.class_name == "Dyskeratotic"  # stands there all the same
    assert other.sentence.startswith("This does not look like a single cervical cell: ")
    far = np.full((1, len(STATISTICS)), 10.0)
    far[0, list(STATISTICS).index("lightness")] = 1000
    (light,) = answerer.predictions(sure, features, far)
    assert light.verdict == "unlike_training"
    assert "lighter than all of the training cells" in light.sentence


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_a_model_answers_by_travels_in_its_file(familiarity, tmp_path, suffix):
    torch.manual_seed(0)
    model = ModelFile(CBAMResNet50(3), NAMES, Preprocessing(image_size=32))
    attach(model, CALIBRATION, familiarity)
    path = tmp_path / f"model{suffix}"
    save_model(path, model)
    read = load_model_file(path)
    answerer = Answerer.of(read)
    assert answerer.calibration == CALIBRATION
    assert answerer.familiarity is not None
    features, statistics = usual_images(np.random.default_rng(2), 5)
    np.testing.assert_array_equal(
        answerer.familiarity.scores(features, statistics), familiarity.scores(features, statistics)
    )
    image = np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8)
    (prediction,) = Classifier(read, "cpu").predict([image])
    assert prediction.prediction_set
    assert prediction.unlike is not None


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_changed_tensor_beside_the_weights_is_found(familiarity, tmp_path, suffix):
    model = ModelFile(CBAMResNet50(3), NAMES, Preprocessing(image_size=32))
    attach(model, CALIBRATION, familiarity)
    path = tmp_path / f"model{suffix}"
    save_model(path, model)
    content = path.read_bytes()
    needle = model.tensors["familiarity.stage2.means"].numpy().tobytes()[:64]
    assert content.count(needle) == 1
    path.write_bytes(content.replace(needle, needle[:-1] + bytes([needle[-1] ^ 1])))
    with pytest.raises(Exception, match="damaged"):
        load_model_file(path)


def test_what_does_not_fit_the_model_is_refused(familiarity):
    model = ModelFile(CBAMResNet50(3), NAMES[::-1], Preprocessing(image_size=32))
    attach(model, CALIBRATION, familiarity)
    with pytest.raises(CalibrationError, match="other classes"):
        Answerer.of(model)
    model = ModelFile(CBAMResNet50(3), NAMES, Preprocessing(image_size=32))
    attach(model, replace(CALIBRATION, temperature=None), familiarity)
    del model.tensors["familiarity.stage4.means"]
    with pytest.raises(FamiliarityError, match="lacks the tensor"):
        Answerer.of(model)


def test_the_table_of_cells_says_what_each_prediction_says_and_no_more(familiarity, tmp_path):
    torch.manual_seed(0)
    model = ModelFile(CBAMResNet50(3).eval(), NAMES, Preprocessing(image_size=32))
    attach(model, CALIBRATION, familiarity)
    cells = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        cells.append(Cell(path, path.name, "Metaplastic", str(number), str(number), None))
    said = Classifier(model).predict([read_image(cell.path) for cell in cells])
    table = answered_cells(model, cells)
    of_heads = {"abnormal"}  # the model has none
    assert list(table.columns[-3:]) == [name for name in ANSWER_COLUMNS if name not in of_heads]
    for row, one in zip(table.itertuples(), said, strict=True):
        assert row.predicted_class == one.class_name
        assert row.prediction_set == " | ".join(one.prediction_set)
        assert row.verdict == one.verdict
        assert one.unlike is not None
        assert row.unlike_percentile == pytest.approx(one.unlike.unlike_percentile)
    ready = np.stack([model.preprocessing(read_image(cell.path)) for cell in cells])
    pd.testing.assert_frame_equal(answered_cells(model, cells, inputs=ready), table)
    plain = ModelFile(model.network, NAMES, model.preprocessing)
    assert not {*ANSWER_COLUMNS} & {*answered_cells(plain, cells)}
