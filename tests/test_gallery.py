"""What a folder of explanations keeps to: unseen cells, files of their own, all of it or nothing."""

import dataclasses
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cervicyte.datasets.layouts import Cell
from cervicyte.errors import RunFolderError, TruncatedImage, UsageError
from cervicyte.evaluation.calibration import Calibration, ClassThreshold
from cervicyte.explanation import cam, gallery, panels
from cervicyte.explanation.cam import Contrast
from cervicyte.explanation.gallery import Targets, explain_cells, targets_named
from cervicyte.explanation.samples import choose_cells, safe, subjects_of
from cervicyte.explanation.verdict import FORWARD_PASSES, verdicts
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.inference.classifier import Classifier
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY, sha256_of_file

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("Dyskeratotic", "Parabasal", "a/b <c> & d")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = CBAMResNet50(len(CLASSES)).eval()
    torch.nn.init.normal_(network.fc.weight, std=0.5)
    torch.nn.init.normal_(network.fc.bias)
    return ModelFile(network, CLASSES, Preprocessing(image_size=64))


def cell_at(root, name, label, size=(50, 80), seed=0):
    """An image file of noise, as a data set would name it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return Cell(path=path, name=name, label=label, group=name, field="", part=None)


def quick(model, cells, out, **options):
    return explain_cells(model, cells, out, **{"with_verdicts": False, **options})


class Links(HTMLParser):
    """Every address, every picture's alternative text and all words of a page."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.alternatives, self.words = [], [], ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [found[key] for key in ("href", "src") if key in found]
        if tag == "img":
            self.alternatives.append(found["alt"])

    def handle_data(self, data):
        self.words += data


def files_in(out, kind="png"):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob(f"*.{kind}"))


# --- pictures and names --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """A folder with pictures of four cells, three of one file name and one of a name that needs care."""
    root = tmp_path_factory.mktemp("cells")
    cells = [
        cell_at(root, "im_Parabasal/001_01.png", "Parabasal", seed=1),
        cell_at(root, "im_Dyskeratotic/001_01.png", "Dyskeratotic", seed=2),
        cell_at(root, "im_Parabasal/other/001_01.png", "Parabasal", (48, 48), seed=3),
        cell_at(root, "odd/é 100% #1?<b>&.png", "a/b <c> & d", (90, 48), seed=4),
    ]
    out = tmp_path_factory.mktemp("out") / "explained"
    return out, quick(model, cells, out, layers=["layer4", "cbam4"], arrays=True), cells


def test_every_cell_has_its_own_files_named_for_its_class(written):
    out, _, _ = written
    names = files_in(out)
    for folder, beginning in (
        ("gradcam_outputs", "gradcam_"),
        ("gradcam_specific_class_outputs", "gradcam_specific_class_"),
    ):
        own = [name.removeprefix(f"{folder}/{beginning}") for name in names if name.startswith(folder + "/")]
        assert "Dyskeratotic_001_01.png" in own  # what is unique keeps its plain name
        assert sum(bool(re.fullmatch(r"Parabasal_001_01-[0-9a-f]{8}\.png", name)) for name in own) == 2
        assert sum(name.startswith("a_b_c_d_") for name in own) == 1
        assert len(own) == 4
        assert all(re.fullmatch(r"[\w.-]+", name) for name in own)
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def test_every_picture_carries_the_notice(written):
    out, _, _ = written
    for name in files_in(out):
        with Image.open(out / name) as picture:
            assert picture.info["Description"] == RESEARCH_USE_ONLY


def test_the_page_shows_every_picture_with_words_for_those_who_cannot_see_it(written):
    out, made, cells = written
    links = Links(made.page)
    shown = {unquote(address) for address in links.addresses if not address.startswith("#")}
    assert shown == {*files_in(out), *files_in(out, "npz"), "explanation.json"}
    assert len(links.alternatives) == len(files_in(out)) == 8
    for cell in cells:
        assert sum(cell.name in text for text in links.alternatives) == 2
        assert cell.name in links.words
    assert all("Predicted" in text and "confidence" in text for text in links.alternatives)
    assert RESEARCH_USE_ONLY in links.words


def test_page_and_record_have_no_absolute_path_and_no_outside_address(written):
    out, made, cells = written
    for address in Links(made.page).addresses:
        assert re.match(r"#|gradcam_|explanation\.json", address)
    for text in (made.page.read_text("utf-8"), (out / "explanation.json").read_text("utf-8")):
        for place in (str(out), str(cells[0].path.parents[1]), os.fspath(Path.home()), "://", "file:"):
            assert place not in text


def test_verdicts_stand_beside_the_maps_with_their_cost(model, tmp_path):
    cells = [cell_at(tmp_path, f"{n}.png", "Parabasal", seed=n) for n in range(2)]
    layers, targets = ["layer4", "cbam4"], ["all", "contrast"]
    made = explain_cells(model, cells, tmp_path / "out", layers=layers, targets=targets)
    words = Links(made.page).words
    record = json.loads((tmp_path / "out" / "explanation.json").read_text())
    passes = 0
    for cell in record["cells"]:
        shown = [(layer, question) for layer in layers for question in CLASSES]
        judged = [(one["layer"], one["map"]) for one in cell["verdicts"] if "not" not in one["map"].split()]
        assert sorted(judged) == sorted(shown)  # each map has one, and none has two
        assert len(cell["verdicts"]) == len(shown) + len(layers)  # the contrast
        for verdict in cell["verdicts"]:
            assert f"{verdict['layer']}, {verdict['map']}: " in words
            assert verdict["sentence"] in words
            assert verdict["tested"] == bool(verdict["controls"]) == (verdict["score"] is not None)
            if verdict["tested"]:
                beaten = all(verdict["score"] > value for value in verdict["controls"].values())
                assert beaten or not verdict["beats_controls"]
            passes += verdict["forward_passes"]
    tested = sum(verdict["tested"] for cell in record["cells"] for verdict in cell["verdicts"])
    assert f"of {tested} tested maps beat their controls" in words
    assert f"The verdicts cost {passes:,} forward passes, {passes / 2:.0f} a cell" in words
    assert passes < tested * FORWARD_PASSES  # shared


def test_a_map_has_the_verdict_that_it_has_alone(model, tmp_path):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    (everything,) = explain_cells(model, [cell], tmp_path / "all").entries
    classifier = Classifier(model, "cpu")
    preprocessed = model.preprocessing(read_image(cell.path))
    assert everything.verdicts[0].question == everything.predicted_class
    assert any(judged.verdict.tested for judged in everything.verdicts)
    for judged in everything.verdicts:
        alone = classifier.judge(preprocessed, judged.question)
        assert judged.verdict.tested == alone.tested
        assert judged.verdict.score == pytest.approx(alone.score, abs=0.01, nan_ok=True)
        assert judged.verdict.controls == pytest.approx(alone.controls, abs=0.01)


def test_a_verdict_is_on_what_speaks_for_the_class_alone(model, tmp_path, monkeypatch):
    asked = []

    def watched(model, inputs, maps, targets, *rest):
        asked.append((maps, targets))
        return verdicts(model, inputs, maps, targets, *rest)

    monkeypatch.setattr(gallery, "verdicts", watched)
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    targets = ["contrast:Parabasal,Dyskeratotic"]
    explain_cells(model, [cell], tmp_path / "out", method="grad-cam++", targets=targets, arrays=True)
    ((maps, found),) = asked
    assert found == [Contrast(1, 0), 1, 0]
    (path,) = (tmp_path / "out" / "gradcam_arrays").iterdir()
    with np.load(path) as arrays:
        for values, row in zip(maps, (3, 1, 0), strict=True):
            assert values.min() >= 0
            np.testing.assert_array_equal(values, arrays["maps"][row])


def test_the_share_on_padding_is_told_for_every_cell(written):
    _, made, cells = written
    assert Links(made.page).words.count("of the map on padding") == 2 * len(cells)
    shares = [entry.on_padding["cbam4"] for entry in made.entries]
    assert shares[2] == 0  # the square cell
    assert all(0.1 < share < 0.9 for share in [*shares[:2], shares[3]])


def test_without_verdicts_the_page_says_so(model, tmp_path):
    made = quick(model, [cell_at(tmp_path, "cell.png", "Parabasal")], tmp_path / "out")
    words = Links(made.page).words
    assert "Verdicts were left out: whether these maps beat any control is not known." in words
    assert f"One costs up to {FORWARD_PASSES} forward passes." in words
    assert not made.entries[0].verdicts


@pytest.mark.parametrize("with_verdicts", [True, False])
def test_every_map_in_a_picture_stands_with_its_verdict_or_with_the_word_that_it_has_none(
    model, tmp_path, monkeypatch, with_verdicts
):
    seen = []
    panel = panels._panel

    def watched(*drawn):
        seen.append(drawn)
        return panel(*drawn)

    monkeypatch.setattr(panels, "_panel", watched)
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    (entry,) = explain_cells(model, [cell], tmp_path / "out", with_verdicts=with_verdicts).entries
    by_itself, side_by_side = (rows for _, _, rows, _ in seen)
    said = {judged.question: judged.verdict for judged in entry.verdicts}
    first = by_itself[0].sentences[0].text
    below = {name: tile.below.short for name, tile in zip(CLASSES, side_by_side[0].tiles[1:], strict=True)}
    if with_verdicts:
        assert first == said[entry.predicted_class].sentence
        assert below == {name: verdict.short for name, verdict in said.items()}
    else:
        assert "--no-verdict" in first
        assert set(below.values()) == {"not tested (--no-verdict)"}


def test_the_sum_of_hirescam_is_told_and_is_the_logit(written):
    _, made, _ = written
    (note,) = [note for note in made.notes if note.startswith("HiResCAM at cbam4 plus")]
    assert "is its logit" in note
    assert float(note.split()[-1].rstrip(".")) < 1e-4
    assert note in Links(made.page).words


def test_raw_maps_are_those_of_the_engine_and_need_no_pickle(model, written):
    out, _, cells = written
    cell = cells[1]
    image = read_image(cell.path)
    normalised = torch.from_numpy(model.preprocessing.normalise(model.preprocessing(image)[None]))
    for layer in ("layer4", "cbam4"):
        path = out / f"gradcam_arrays/gradcam_Dyskeratotic_001_01_{layer}.npz"
        with np.load(path, allow_pickle=False) as arrays:
            for key, signed in (("maps", False), ("signed_maps", True)):
                maps = cam.explain(model.network, normalised, layers=[layer], signed=signed)
                expected = maps[layer][0]
                np.testing.assert_allclose(arrays[key], expected, atol=1e-4 * float(expected.abs().max()))
            assert str(arrays["layer"]) == layer
            assert str(arrays["method"]) == cam.DEFAULT_METHOD
            assert arrays["classes"].tolist() == list(CLASSES)
            assert str(arrays["notice"]) == RESEARCH_USE_ONLY
            left, top, right, bottom = arrays["inside"]
            assert (right - left, bottom - top) == (64, 40)  # 80 x 50 pixels


def test_images_are_named_with_no_more_folders_than_needed_and_for_the_predicted_class(model, tmp_path):
    for name in ("a/x.png", "b/x.png", "b/y.png"):
        cell_at(tmp_path / "in", name, "", seed=len(name) + ord(name[0]))
    paths = sorted((tmp_path / "in").rglob("*.png"))
    made = quick(model, paths, tmp_path / "out")
    links = Links(made.page)
    assert [entry.name for entry in made.entries] == ["a/x.png", "b/x.png", "y.png"]
    assert "a/x.png" in links.words
    assert "true class unknown" in links.words
    assert str(tmp_path) not in made.page.read_text("utf-8")
    assert len(files_in(tmp_path / "out")) == 6
    for entry in made.entries:
        assert entry.panels[0][0].startswith(f"gradcam_outputs/gradcam_{safe(entry.predicted_class)}_")


def test_a_labelled_and_an_unlabelled_cell_of_one_name_have_two_files(model, tmp_path):
    labelled = cell_at(tmp_path, "a/x.png", "Parabasal")
    unlabelled = cell_at(tmp_path, "b/X.png", "").path
    stems = [subject.stem for subject in subjects_of(model, [labelled, unlabelled])]
    assert len({stem.casefold() for stem in stems}) == 2


@given(name=st.text(min_size=1, max_size=300))
def test_a_part_of_a_file_name_stays_in_its_folder_and_is_short_enough_for_any_file_system(name):
    part = safe(name)
    assert 0 < len(part.encode()) <= 60
    assert Path(part).name == part
    assert not part.startswith(".")


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 120), (120, 40), (60, 60)])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_hot_corner_of_the_cell_is_hot_in_that_corner_of_the_original(model, size, corner):
    image = np.zeros((*size, 3), np.uint8)
    left, top, right, bottom = gallery._inside(model.preprocessing, image)
    values = np.zeros((64, 64), np.float32)
    rows = slice(top, top + 5) if corner[0] == 0 else slice(bottom - 5, bottom)
    columns = slice(left, left + 5) if corner[1] == 0 else slice(right - 5, right)
    values[rows, columns] = 1
    laid = gallery._laid(model.preprocessing, values, image)
    assert laid.shape == size
    assert laid[corner] > 0
    here = np.argwhere(laid > 0)
    row, column = (here[:, axis] if corner[axis] == 0 else size[axis] - 1 - here[:, axis] for axis in (0, 1))
    assert row.max() < size[0] / 3
    assert column.max() < size[1] / 3


def test_the_share_on_padding_is_that_of_the_area_for_an_even_map_and_none_where_nothing_is(model):
    wide = np.zeros((40, 120, 3), np.uint8)
    even = np.ones((7, 7), np.float32)
    assert gallery._on_padding(model.preprocessing, even, wide) == pytest.approx(2 / 3, abs=0.03)
    assert gallery._on_padding(model.preprocessing, even, np.zeros((60, 60, 3), np.uint8)) == 0
    assert gallery._on_padding(model.preprocessing, 0 * even, wide) == 0
    above = np.zeros((64, 64), np.float32)
    above[:10] = 1
    assert gallery._on_padding(model.preprocessing, above, wide) == pytest.approx(1)


def test_maps_of_a_batch_lie_on_the_originals_pixels_and_are_those_of_each_cell_alone(model, tmp_path):
    cells = [cell_at(tmp_path, f"{n}.png", "Parabasal", (30 + 20 * n, 90), n) for n in range(3)]
    subjects = subjects_of(model, cells)
    job = gallery._job_of(model, "grad-cam++", ("layer3", "cbam4"), None, "inferno", False, False)
    assert isinstance(job, gallery.MapJob)
    for n, (found, subject) in enumerate(zip(list(job.explained(subjects)), subjects, strict=True)):
        (alone,) = job.explained([subject])
        assert sum(found.cell.said.probabilities.values()) == pytest.approx(1)
        for layer, (shown, beside) in found.cell.maps.items():
            assert shown.of == found.cell.predicted
            assert [one.of for one in beside] == [0, 1, 2]
            top = found.cell.highest[layer]
            assert top == max(one.values.max() for one in beside)
            for one, other in zip(beside, alone.cell.maps[layer][1], strict=True):
                assert one.values.shape == one.signed.shape == (30 + 20 * n, 90)
                assert one.values.min() >= 0
                np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-4 * top)


def test_a_contrast_stands_beside_its_two_classes_and_asks_why_one_and_not_the_other(model, tmp_path):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    options = {"method": "hirescam", "arrays": True}
    made = quick(model, [cell], tmp_path / "out", targets=["contrast:parabasal,DYSKERATOTIC"], **options)
    assert made.entries[0].question == "Parabasal, not Dyskeratotic"
    (path,) = (tmp_path / "out" / "gradcam_arrays").iterdir()
    with np.load(path) as arrays:
        assert arrays["classes"].tolist()[-1] == "Parabasal, not Dyskeratotic"
        signed = arrays["signed_maps"]
        np.testing.assert_allclose(signed[-1], signed[1] - signed[0], atol=1e-4 * np.abs(signed).max())


def test_a_contrast_has_a_verdict_of_its_own(model, tmp_path):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    contrast, alone = (
        explain_cells(model, [cell], tmp_path / targets[0], targets=targets).entries[0]
        for targets in (["contrast:Parabasal,Dyskeratotic"], ["Parabasal"])
    )
    judged, of_class = contrast.verdicts[0].verdict, alone.verdicts[0].verdict
    assert [one.question for one in contrast.verdicts] == [
        "Parabasal, not Dyskeratotic", "Parabasal", "Dyskeratotic",
    ]  # fmt: skip
    page = tmp_path / "contrast:Parabasal,Dyskeratotic" / "index.html"
    assert judged.sentence in " ".join(Links(page).words.split())
    assert judged.probability > of_class.probability  # among two classes, not among all


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, Targets(None, (0, 1, 2))),
        (["ALL"], Targets(None, (0, 1, 2))),
        (["parabasal", "DYSKERATOTIC"], Targets(1, (1, 0))),
        (["all", "contrast"], Targets(None, (0, 1, 2, Contrast()))),
        (["Contrast"], Targets(Contrast(), (Contrast(),))),
        (["contrast:A/b <c> & d, parabasal"], Targets(Contrast(2, 1), (Contrast(2, 1),))),
    ],
)
def test_targets_are_found_in_any_case_and_kept_in_the_order_asked(wanted, expected):
    assert targets_named(CLASSES, wanted) == expected


def test_a_contrast_may_name_classes_with_commas():
    classes = ("squamous, small", "squamous, large")
    named = targets_named(classes, ["contrast:squamous, large,squamous, small"])
    assert named.by_itself == Contrast(1, 0)


@pytest.mark.parametrize("arrays", [True, False])
def test_gates_are_shown_and_stored_as_the_engine_has_them(model, tmp_path, arrays):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    made = quick(model, [cell], tmp_path / "out", method="gates", layers=["cbam4", "cbam1"], arrays=arrays)
    assert files_in(tmp_path / "out") == ["gate_outputs/gates_Parabasal_cell.png"]
    assert "Gates depend on no class" in Links(made.page).words
    stored = files_in(tmp_path / "out", "npz")
    assert len(stored) == 2 * arrays
    for name in stored:
        with np.load(tmp_path / "out" / name) as found:
            image = model.preprocessing(read_image(cell.path))[None]
            gate = cam.cbam_gates(model.network, torch.from_numpy(model.preprocessing.normalise(image)))
            np.testing.assert_array_equal(found["channel"], gate[str(found["layer"])].channel[0])


def test_a_network_without_stage_gates_is_explained_at_its_last_layer(tmp_path):
    model = ModelFile(CBAMResNet50(3, "none").eval(), CLASSES, Preprocessing(image_size=64))
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    made = quick(model, [cell], tmp_path / "out")
    assert "layer4" in made.page.read_text("utf-8")
    with pytest.raises(UsageError, match="placement 'stage'"):
        quick(model, [cell], tmp_path / "gates", method="gates")


# --- all of it or nothing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"targets": ["Koilocytotic"]},
            r"no class 'Koilocytotic'.*Dyskeratotic, Parabasal, a/b.*contrast:A,B",
        ),
        ({"targets": ["contrast:Parabasal"]}, r"contrast:A,B with two of the model's classes"),
        ({"targets": ["contrast:Parabasal,Round"]}, r"two of the model's classes, Dyskeratotic"),
        ({"targets": ["contrast:Parabasal,parabasal"]}, "two different classes"),
        ({"layers": ["cbam5"]}, r"no layer 'cbam5'.*layer1.*cbam4"),
        ({"layers": []}, r"list of names.*cbam4"),
        ({"method": "guess"}, r"no explanation method 'guess'.*grad-cam\+\+.*gates"),
        ({"method": "gates", "layers": ["layer4"]}, r"no gates at 'layer4'.*cbam1, cbam2, cbam3, cbam4"),
        ({"method": "gates", "targets": ["all"]}, r"leave out --target"),
        ({"colours": "rainbow"}, r"no colour map 'rainbow'.*jet"),
    ],
)
def test_what_does_not_exist_is_refused_by_naming_what_does_before_anything_is_written(
    model, tmp_path, wrong, said
):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    with pytest.raises(UsageError, match=said):
        quick(model, [cell], tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_no_cell_and_the_same_cell_twice_are_refused(model, tmp_path):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    with pytest.raises(UsageError, match="no cell to explain"):
        quick(model, [], tmp_path / "out")
    with pytest.raises(UsageError, match=r"cell.png stands twice"):
        quick(model, [cell, cell], tmp_path / "out")


def test_a_truncated_file_is_refused_by_name_and_nothing_is_left(model, tmp_path):
    good = cell_at(tmp_path, "good.png", "Parabasal")
    short = cell_at(tmp_path, "short.png", "Parabasal")
    short.path.write_bytes(short.path.read_bytes()[:400])
    gallery_batch, gallery.BATCH = gallery.BATCH, 1
    try:
        with pytest.raises(TruncatedImage, match=r"short\.png"):
            quick(model, [good, short], tmp_path / "out")
        assert not (tmp_path / "out").exists()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        with pytest.raises(TruncatedImage):
            quick(model, [good, short], tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    finally:
        gallery.BATCH = gallery_batch


def test_two_runs_do_not_mix_in_one_folder(model, tmp_path):
    out = tmp_path / "out"
    first, second = (cell_at(tmp_path, f"{name}.png", "Parabasal") for name in ("first", "second"))
    quick(model, [first], out, arrays=True)
    (out / "notes.txt").write_text("mine")
    before = files_in(out)
    with pytest.raises(RunFolderError, match=r"earlier run.*--force"):
        quick(model, [second], out)
    assert files_in(out) == before
    quick(model, [second], out, force=True)
    assert [name for name in files_in(out) if "second" not in name] == []
    assert files_in(out, "npz") == []
    assert (out / "notes.txt").read_text() == "mine"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        quick(model, [first], blocked, force=True)


def test_a_folder_that_cannot_be_made_is_refused_by_its_own_name_before_anything_is_computed(
    model, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cam, "differentiate", None)
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    with pytest.raises(RunFolderError, match=r"file/out: cannot be written to \(not a directory\).*--out"):
        quick(model, [cell], tmp_path / "file" / "out")


# --- which cells ---------------------------------------------------------------------------------


@pytest.fixture
def data_set(tmp_path):
    """Two classes of six cells each; no two are alike."""
    for label in ("dark", "light"):
        for n in range(6):
            cell_at(tmp_path / "data", f"{label}/{n}.png", label, (20, 20), seed=n + 10 * (label == "dark"))
    return tmp_path / "data"


def model_that_saw(paths):
    """All that the choice of cells asks of a model: what its file says that it has seen."""
    seen = {"sha256": [sha256_of_file(path) for path in paths], "groups": []}
    return ModelFile(None, ("dark", "light"), Preprocessing(), metadata={"seen": seen})  # type: ignore[arg-type]


def names_of(chosen):
    return [cell.name for cell in chosen]


def test_of_a_data_set_only_unseen_cells_are_taken_and_it_is_said(data_set):
    saw = model_that_saw([*data_set.glob("dark/[0-3].png"), *data_set.glob("light/[2-5].png")])
    chosen, notes = choose_cells(saw, [data_set], limit=10)
    assert names_of(chosen) == ["dark/4.png", "dark/5.png", "light/0.png", "light/1.png"]
    (note,) = notes
    assert note.startswith("data: 8 of 12 cells took part in training")
    assert "--allow-seen" in note
    chosen, notes = choose_cells(saw, [data_set], limit=3, allow_seen=True)
    assert names_of(chosen) == [f"{label}/{n}.png" for label in ("dark", "light") for n in (0, 2, 4)]
    assert not notes


def test_the_limit_counts_unseen_cells_of_each_class(data_set):
    chosen, _ = choose_cells(model_that_saw(data_set.glob("*/[0-2].png")), [data_set], limit=2)
    assert names_of(chosen) == ["dark/3.png", "dark/4.png", "light/3.png", "light/4.png"]


def test_a_data_set_that_was_all_seen_is_refused(data_set):
    with pytest.raises(UsageError, match=r"data: the model has seen every cell.*--allow-seen"):
        choose_cells(model_that_saw(data_set.rglob("*.png")), [data_set], limit=1)


def test_a_data_sets_own_test_part_is_taken(tmp_path):
    for part in ("train", "test"):
        for label in ("dark", "light"):
            cell_at(tmp_path, f"{part}/{label}/1.png", label, seed=ord(part[1]) + ord(label[0]))
    chosen, notes = choose_cells(model_that_saw([]), [tmp_path], limit=5)
    assert names_of(chosen) == ["test/dark/1.png", "test/light/1.png"]
    assert notes


def test_several_images_folders_and_data_sets_are_taken_each_file_once(model, data_set, tmp_path):
    loose = cell_at(tmp_path, "loose/0.png", "", seed=99).path
    other = tmp_path / "other"
    cell_at(other, "dark/0.png", "", seed=50)
    cell_at(other, "light/0.png", "", seed=51)
    sources = [loose, loose.parent, data_set / "dark" / "0.png", data_set, other]
    chosen, _ = choose_cells(model_that_saw([]), sources, limit=10)
    assert len(chosen) == 1 + 12 + 2
    subjects = subjects_of(model, chosen)
    assert len({subject.name for subject in subjects}) == len(chosen)
    labelled = {subject.name: subject.true_class for subject in subjects}
    assert labelled["data/dark/0.png"] == "dark"  # a cell of the other data set has the same name there
    assert labelled["other/dark/0.png"] == "dark"
    assert labelled["light/1.png"] == "light"
    assert labelled["0.png"] is None


def test_a_cell_that_was_seen_is_marked_on_the_page(model, tmp_path):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    saw = ModelFile(model.network, CLASSES, model.preprocessing)
    saw.metadata["seen"] = {"sha256": [sha256_of_file(cell.path)], "groups": []}
    for one, there in ((cell, True), (cell.path, True), (cell_at(tmp_path, "new.png", "x", seed=9), False)):
        made = quick(saw, [one], tmp_path / "out", force=True)
        assert ("took part in training" in Links(made.page).words) == there
        assert made.entries[0].seen_in_training == there


@needs_shared
def test_real_cells_have_pictures(model, tmp_path):
    paths = sorted((SHARED / "data" / "sipakmed").rglob("*.jpg"))[::700]
    quick(model, paths, tmp_path / "out")
    assert len(files_in(tmp_path / "out")) == 2 * len(paths)


def test_confidences_are_calibrated_as_everywhere_else(model, tmp_path):
    """A picture and the dashboard must not give one cell two confidences."""
    thresholds = tuple(ClassThreshold(name, None, 0, 0) for name in CLASSES)
    calibration = Calibration(3.0, thresholds, 0.95, 0.0, 1.0, 10, 10)
    tempered = dataclasses.replace(model, metadata={"calibration": calibration.to_json()})
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    (expected,) = Classifier(tempered, "cpu").predict([read_image(cell.path)])
    for method in ("grad-cam", "gates"):
        (raw,) = quick(model, [cell], tmp_path / f"raw_{method}", method=method).entries
        (entry,) = quick(tempered, [cell], tmp_path / method, method=method).entries
        assert entry.said.confidence == pytest.approx(expected.confidence, abs=1e-4)
        assert entry.said.confidence < raw.said.confidence - 0.01
