"""What the pictures of maps must keep to: the original's pixels, one scale, names that nothing overwrites."""

import doctest
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cervicyte.datasets.layouts import Cell
from cervicyte.errors import TruncatedImage, UsageError
from cervicyte.explanation import panels
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import RESEARCH_USE_ONLY

SHARED = Path(__file__).resolve().parents[2] / "shared"
CLASSES = ("Dyskeratotic", "Parabasal", "a/b <c> & d")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = CBAMResNet50(len(CLASSES)).eval()
    torch.nn.init.normal_(network.fc.weight, std=0.5)
    return ModelFile(network, CLASSES, Preprocessing(image_size=64))


def cell_at(root, name, label, size=(50, 80), seed=0):
    """An image file of noise, as a data set would name it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return Cell(path=path, name=name, label=label, group=name, field="", part=None)


class Links(HTMLParser):
    """Every address, every picture's alternative text and all words of a page."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.alternatives, self.words = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [found[key] for key in ("href", "src") if key in found]
        if tag == "img":
            self.alternatives.append(found["alt"])

    def handle_data(self, data):
        self.words += data


@settings(max_examples=50, deadline=None)
@given(
    image=arrays.arrays(np.uint8, (5, 7, 3)),
    values=arrays.arrays(np.float32, (5, 7), elements=st.floats(0, 10, width=32)),
    highest=st.floats(1, 20),
)
def test_where_the_map_is_zero_the_pixels_are_unchanged(image, values, highest):
    values[:2] = 0
    laid = panels.overlay(image, values, highest)
    assert laid.dtype == np.uint8
    assert np.array_equal(laid[values == 0], image[values == 0])


def test_a_map_of_nothing_leaves_the_whole_image_unchanged():
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(panels.overlay(image, np.zeros((4, 5))), image)
    assert np.array_equal(panels.overlay(image, np.zeros((4, 5)), 0.0), image)


@pytest.mark.parametrize("tissue", [0, 128, 255])
def test_more_evidence_changes_tissue_more_and_never_hides_it(tissue):
    values = np.linspace(0, 1, 30)[np.newaxis]
    image = np.full((1, 30, 3), tissue, np.uint8)
    darker = np.full((1, 30, 3), abs(tissue - 100), np.uint8)
    laid = panels.overlay(image, values, 1.0).astype(int)
    change = np.abs(laid - image).sum(2)[0]
    assert change[-1] > change[10] > change[0] == 0
    assert np.abs(laid - panels.overlay(darker, values, 1.0)).max(2).min() >= 35


def test_on_a_shared_scale_a_weaker_map_is_less_hot():
    image = np.full((1, 2, 3), 128, np.uint8)
    strong = panels.overlay(image, np.array([[0.0, 4.0]]), 4.0)
    weak = panels.overlay(image, np.array([[0.0, 1.0]]), 4.0)
    assert np.array_equal(strong, panels.overlay(image, np.array([[0.0, 1.0]])))  # by itself it is hottest
    assert np.abs(weak.astype(int) - image).sum() < np.abs(strong.astype(int) - image).sum()


@pytest.mark.parametrize("values", [np.zeros((3, 2)), np.full((2, 3), np.nan), np.full((2, 3), np.inf)])
def test_a_map_of_another_shape_or_without_finite_values_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        panels.overlay(np.zeros((2, 3, 3), np.uint8), values)


@pytest.mark.parametrize("size", [(40, 120), (120, 40), (60, 60)])
@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_hot_corner_of_the_cell_is_hot_in_that_corner_of_the_original(model, size, corner, tmp_path):
    cell = cell_at(tmp_path, "cell.png", "Parabasal", size)
    (found,) = panels._explained(model, [(cell.path, cell.name, None)], "grad-cam++", ["cbam4"])
    left, top, right, bottom = found.inside
    values = np.zeros((64, 64), np.float32)
    rows, columns = (
        slice(top, top + 5) if corner[0] == 0 else slice(bottom - 4, bottom + 1),
        slice(left, left + 5),
    )
    if corner[1] != 0:
        columns = slice(right - 4, right + 1)
    values[rows, columns] = 1
    laid = panels.overlay(found.image, model.preprocessing.onto_original(values, *size))
    change = np.abs(laid.astype(int) - found.image).sum(2)
    assert change[corner] > 0
    here = np.argwhere(change > 0)
    row, column = (here[:, axis] if corner[axis] == 0 else size[axis] - 1 - here[:, axis] for axis in (0, 1))
    assert row.max() < size[0] / 3
    assert column.max() < size[1] / 3


def test_maps_of_all_classes_lie_on_the_originals_pixels(model, tmp_path):
    cells = [cell_at(tmp_path, f"{n}.png", "Parabasal", (30 + 20 * n, 90), n) for n in range(3)]
    named = [(cell.path, cell.name, cell.label) for cell in cells]
    together = list(panels._explained(model, named, "grad-cam++", ["layer3", "cbam4"]))
    for n, (found, one) in enumerate(zip(together, named, strict=True)):
        (alone,) = panels._explained(model, [one], "grad-cam++", ["layer3", "cbam4"])
        assert found.probabilities.sum() == pytest.approx(1)
        for layer, maps in found.maps.items():
            assert maps.shape == (len(CLASSES), 30 + 20 * n, 90)
            assert maps.min() >= 0
            np.testing.assert_allclose(maps, alone.maps[layer], rtol=0, atol=1e-4 * maps.max())


def test_classes_of_one_cell_share_one_scale_and_only_the_strongest_reaches_its_end(model, tmp_path):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    (found,) = panels._explained(model, [(cell.path, cell.name, None)], "grad-cam++", ["cbam4"])
    maps = found.maps["cbam4"]
    tiles = [panels._tile_of_map(found, "cbam4", maps, index, CLASSES) for index in range(len(CLASSES))]
    peaks = [float(re.search(r"peak (\S+)", tile.remark)[1]) for tile in tiles]  # type: ignore[index]
    assert max(peaks) == 1.0
    assert min(peaks) < 1.0
    np.testing.assert_allclose(peaks, maps.max((1, 2)) / maps.max(), atol=0.006)
    for tile, values in zip(tiles, maps, strict=True):
        assert np.array_equal(tile.picture, panels.overlay(found.image, values, float(maps.max())))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """A folder with panels of four cells, two of one file name and one of a name that needs care."""
    root = tmp_path_factory.mktemp("cells")
    cells = [
        cell_at(root, "im_Parabasal/001_01.png", "Parabasal", seed=1),
        cell_at(root, "im_Dyskeratotic/001_01.png", "Dyskeratotic", seed=2),
        cell_at(root, "im_Parabasal/other/001_01.png", "Parabasal", (48, 48), seed=3),
        cell_at(root, "odd/é 100% #1?<b>&.png", "a/b <c> & d", (90, 48), seed=4),
    ]
    out = tmp_path_factory.mktemp("out") / "explained"
    page = panels.explain_cells(
        model, cells, out, layers=["layer4", "cbam4"], classes=["PARABASAL", "dyskeratotic"]
    )
    return out, page, cells


def pictures_of(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))


def test_every_cell_has_its_own_files_in_the_folder_of_its_class(written):
    out, _, _ = written
    for folder in ("gradcam_outputs", "gradcam_specific_class_outputs"):
        names = [name for name in pictures_of(out) if name.startswith(folder + "/")]
        assert sorted(name.split("/")[1] for name in names) == [
            "Dyskeratotic",
            "Parabasal",
            "Parabasal",
            "a_b_c_d",
        ]
        assert all(name.count("/") == 2 for name in names)
        assert sum("001_01" in name for name in names) == 3
        for name in names:
            assert re.fullmatch(r"[\w./-]+", name)
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def test_every_panel_is_a_sound_picture_that_carries_the_notice(written):
    out, _, _ = written
    for name in pictures_of(out):
        with Image.open(out / name) as picture:
            assert picture.info["Description"] == RESEARCH_USE_ONLY
            pixels = np.array(picture)
        edge = np.concatenate([pixels[:20].reshape(-1, 3), pixels[-20:].reshape(-1, 3)])
        edge = np.concatenate([edge, pixels[:, :20].reshape(-1, 3), pixels[:, -20:].reshape(-1, 3)])
        assert (edge == 255).all(), "something is drawn over the margin"


def test_the_page_shows_every_panel_with_words_for_those_who_cannot_see_it(written):
    out, page, cells = written
    links = Links(page.read_text("utf-8"))
    shown = [unquote(address) for address in links.addresses if not address.startswith("#")]
    assert sorted(set(shown)) == pictures_of(out)
    assert len(links.alternatives) == len(pictures_of(out)) == 8
    for cell in cells:
        assert sum(cell.name in text for text in links.alternatives) == 2
        assert cell.name in links.words
    assert all("Predicted" in text and "confidence" in text for text in links.alternatives)
    assert RESEARCH_USE_ONLY in links.words


def test_the_page_has_no_absolute_path_and_no_outside_address(written):
    out, page, cells = written
    text = page.read_text("utf-8")
    for address in Links(text).addresses:
        assert re.match(r"#|gradcam_", address)
    for place in (str(out), str(cells[0].path.parents[1]), os.fspath(Path.home()), "://", "file:", "\\"):
        assert place not in text


def test_images_without_a_data_set_are_named_from_their_common_folder(model, tmp_path):
    for name in ("a/x.png", "b/x.png"):
        cell_at(tmp_path / "in", name, "")
    paths = sorted((tmp_path / "in").rglob("*.png"))
    page = panels.explain_cells(model, paths, tmp_path / "out")
    links = Links(page.read_text("utf-8"))
    assert "a/x.png" in links.words
    assert "b/x.png" in links.words
    assert "true class unknown" in links.words
    assert str(tmp_path) not in page.read_text("utf-8")
    assert len(pictures_of(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"classes": ["Koilocytotic"]}, r"no class 'Koilocytotic'.*Dyskeratotic, Parabasal, a/b"),
        ({"classes": []}, "No class was named.*Dyskeratotic"),
        ({"layers": ["cbam5"]}, r"no layer 'cbam5'.*layer1.*cbam4"),
        ({"layers": []}, r"list of names.*cbam4"),
        ({"method": "guess"}, r"no explanation method 'guess'.*grad-cam\+\+"),
    ],
)
def test_what_does_not_exist_is_refused_by_naming_what_does_before_anything_is_written(
    model, tmp_path, wrong, said
):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    with pytest.raises(UsageError, match=said):
        panels.explain_cells(model, [cell], tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_no_cell_and_the_same_cell_twice_are_refused(model, tmp_path):
    cell = cell_at(tmp_path, "cell.png", "Parabasal")
    with pytest.raises(UsageError, match="no cell to explain"):
        panels.explain_cells(model, [], tmp_path / "out")
    with pytest.raises(UsageError, match=r"cell.png stands twice"):
        panels.explain_cells(model, [cell, cell], tmp_path / "out")


def test_a_truncated_file_is_refused_by_name(model, tmp_path):
    cell = cell_at(tmp_path, "short.png", "Parabasal")
    cell.path.write_bytes(cell.path.read_bytes()[:400])
    with pytest.raises(TruncatedImage, match=r"short\.png"):
        panels.explain_cells(model, [cell], tmp_path / "out")


@pytest.mark.parametrize(
    ("wanted", "indices"), [(["all"], [0, 1, 2]), ("ALL", [0, 1, 2]), (["PARABASAL", "dyskeratotic"], [1, 0])]
)
def test_classes_are_found_in_any_case_and_kept_in_the_order_asked(wanted, indices):
    assert panels.class_indices(CLASSES, wanted) == indices


def test_a_network_without_stage_gates_is_explained_at_its_last_layer(tmp_path):
    model = ModelFile(CBAMResNet50(3, "none").eval(), CLASSES, Preprocessing(image_size=64))
    page = panels.explain_cells(model, [cell_at(tmp_path, "cell.png", "Parabasal")], tmp_path / "out")
    assert "layer4" in page.read_text("utf-8")


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=200), width=st.integers(60, 400))
def test_no_line_of_a_panel_is_wider_than_its_place(text, width):
    font = panels._font(16)
    lines = panels._wrapped(text, font, width)
    assert 1 <= len(lines) <= 3
    assert all(font.getlength(line) <= width for line in lines)


@given(name=st.text(min_size=1, max_size=300))
def test_a_file_name_stays_in_its_folder_and_is_short_enough_for_any_file_system(name):
    file = panels._file_name(name)
    assert len(file.encode()) < 200
    assert Path(file).name == file
    assert not file.startswith(".")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="real cells are not at hand in ../shared")
def test_real_cells_have_panels(model, tmp_path):
    paths = sorted((SHARED / "data" / "sipakmed").rglob("*.jpg"))[::700]
    panels.explain_cells(model, paths, tmp_path / "out", classes=["all"])
    assert len(pictures_of(tmp_path / "out")) == 2 * len(paths)


def test_every_example_in_the_documentation_runs():
    result = doctest.testmod(panels)
    assert result.attempted >= 1
    assert result.failed == 0
