"""What the drawings keep to: one scale for a cell, nothing over the margins, no line beyond its place."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cervicyte.evaluation.answers import Prediction
from cervicyte.explanation import colours, panels
from cervicyte.explanation.cam import Gates
from cervicyte.explanation.panels import Explanation, Map, Sentence

CLASSES = ("Dyskeratotic", "Parabasal", "a class with a name that is far too long for its place <c> & d")


def said_of(classes, probabilities, verdict="answer"):
    of = dict(zip(classes, map(float, probabilities), strict=True))
    best = max(of, key=lambda name: of[name])
    return Prediction(best, of[best], of, verdict=verdict)


def explanation(
    size=(50, 80), classes=CLASSES, true_class="Parabasal", against=None, verdict="answer", **options
):
    """A cell of noise whose maps grow with the index of the class; the second class is predicted."""
    rng = np.random.default_rng(0)
    probabilities = np.array([0.2, 0.7, *[0.1 / (len(classes) - 2)] * (len(classes) - 2)])
    maps = [
        Map(n, None, values, values - 0.5, (7, 7), 0.25)
        for n in range(len(classes))
        for values in [(1 + n) * rng.random(size).astype(np.float32)]
    ]
    shown = maps[1] if against is None else Map(1, against, maps[1].values, maps[1].signed, (7, 7), 0.0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return Explanation(
        "im_X/001_01.png",
        true_class,
        image,
        classes,
        said_of(classes, probabilities, verdict),
        {"cbam4": (shown, tuple(maps))},
        {"cbam4": max(float(one.values.max()) for one in maps)},
        {"cbam4": max(float(np.abs(one.signed).max()) for one in maps)},
        **options,
    )


@pytest.fixture
def drawn(monkeypatch):
    """Rows of tiles and colour bars, as they are handed to the drawing."""
    seen = []
    panel = panels._panel

    def watched(cell, what, rows, bar):
        seen.append((rows, bar))
        return panel(cell, what, rows, bar)

    monkeypatch.setattr(panels, "_panel", watched)
    return seen


def assert_margins_are_empty(picture):
    pixels = np.asarray(picture)
    edge = [pixels[:20].reshape(-1, 3), pixels[-20:].reshape(-1, 3)]
    edge += [pixels[:, :20].reshape(-1, 3), pixels[:, -20:].reshape(-1, 3)]
    assert (np.concatenate(edge) == 255).all(), "something is drawn over the margin"


@pytest.mark.parametrize("size", [(50, 80), (80, 50), (3, 500), (60, 60), (900, 1200)])
def test_nothing_is_drawn_over_the_margins_whatever_the_cells_shape(size):
    said = Sentence("A verdict of many words. " * 20, False, "one that is short but not at all " * 5)
    cell = explanation(size, seen=True, verdicts={("cbam4", (n, None)): said for n in range(3)})
    assert_margins_are_empty(panels.panel_of_cell(cell, "Grad-CAM++"))
    assert_margins_are_empty(panels.panel_of_classes(cell, "Grad-CAM++"))


def test_three_panels_show_the_cell_the_map_and_both_on_the_scale_of_all_classes(drawn):
    cell = explanation()
    panels.panel_of_cell(cell, "Grad-CAM++")
    ((rows, bar),) = drawn
    ((image, bare, over),) = [row.tiles for row in rows]
    shown, top = cell.maps["cbam4"][0], cell.highest["cbam4"]
    assert np.array_equal(image.picture, cell.image)
    assert np.array_equal(bare.picture, colours.alone(shown.values, top))
    assert np.array_equal(over.picture, colours.overlay(cell.image, shown.values, top))
    assert over.title == "Parabasal, 70.0 %"
    assert over.remark == "25 % of the map on padding"
    assert f"strongest {shown.values.max() / top:.2f}" in bare.remark
    assert shown.values.max() < top
    assert bar.labels[0] == "0: none"


def test_maps_side_by_side_share_one_signed_scale_and_one_reaches_its_end(drawn):
    cell = explanation()
    panels.panel_of_classes(cell, "HiResCAM")
    ((rows, bar),) = drawn
    (first, *over), (blank, *alone) = (row.tiles for row in rows)
    beside, top = cell.maps["cbam4"][1], cell.largest["cbam4"]
    assert blank.picture is None
    assert np.array_equal(first.picture, cell.image)
    for tile, bare, shown in zip(over, alone, beside, strict=True):
        assert np.array_equal(tile.picture, colours.overlay(cell.image, shown.signed, top, signed=True))
        assert np.array_equal(bare.picture, colours.alone(shown.signed, top, signed=True))
    assert [tile.remark.endswith("for 1.00") for tile in over] == [False, False, True]
    assert bar.labels == ("1 against", "0: neither", "1 for")


def test_every_map_side_by_side_has_its_own_verdict_below_it_and_its_colour(drawn):
    said = {
        0: Sentence("Not to be relied on.", None, "not tested: under 5 %, uncalibrated"),
        1: Sentence("It beats.", True, "beats the controls"),
        2: Sentence("It does not.", False, "does not beat: centre"),
    }
    cell = explanation(verdicts={("cbam4", (n, None)): sentence for n, sentence in said.items()})
    picture = panels.panel_of_classes(cell, "HiResCAM")
    ((rows, _),) = drawn
    assert [tile.below for tile in rows[0].tiles] == [None, *said.values()]
    assert not any(tile.below for tile in rows[1].tiles)
    assert "what speaks for its class (yellow), not on what speaks against" in rows[1].tiles[0].remark
    inks = [sentence.ink for sentence in said.values()]
    assert inks == [panels.GREY, panels.GREEN, panels.RED]
    pixels = np.asarray(picture)
    for ink in (panels.GREEN, panels.RED):  # as many letters as the sentence has
        assert (pixels == [int(ink[k : k + 2], 16) for k in (1, 3, 5)]).all(2).sum() > 50
    plain = panels.panel_of_classes(explanation(), "HiResCAM")
    assert plain.height < picture.height
    assert "verdict" not in drawn[1][0][1].tiles[0].remark


def test_more_classes_than_columns_go_on_in_further_rows(drawn):
    cell = explanation(classes=tuple("abcdefg"))
    panels.panel_of_classes(cell, "Grad-CAM++")
    ((rows, _),) = drawn
    assert [len(row.tiles) for row in rows] == [6, 6, 3, 3]
    assert [tile.title[0] for row in rows[::2] for tile in row.tiles[1:]] == list("abcdefg")


def test_a_contrast_shows_both_sides_and_names_them(drawn):
    cell = explanation(against=0)
    panels.panel_of_cell(cell, "Grad-CAM++")
    ((rows, bar),) = drawn
    signed = cell.maps["cbam4"][0].signed
    expected = colours.overlay(cell.image, signed, cell.largest["cbam4"], signed=True)
    assert np.array_equal(rows[0].tiles[2].picture, expected)
    assert rows[0].tiles[2].title == "Why Parabasal, not Dyskeratotic?"
    assert bar.labels == ("1 for Dyskeratotic", "0: neither", "1 for Parabasal")
    assert not rows[0].sentences
    cell = explanation(against=0, verdicts={("cbam4", (1, 0)): Sentence("It beats.", True)})
    panels.panel_of_cell(cell, "Grad-CAM++")
    verdict, what = drawn[1][0][0].sentences
    assert verdict.text == "It beats."
    assert "what speaks for Parabasal (yellow)" in what.text


def test_doubt_takes_a_line_of_its_own():
    sure, unsure = (
        panels.panel_of_cell(explanation(verdict=one), "HiResCAM") for one in ("answer", "uncertain")
    )
    assert unsure.height > sure.height
    assert_margins_are_empty(unsure)


def test_gates_are_shown_from_least_to_most_and_an_even_gate_shows_nothing(drawn):
    cell = Explanation(
        "x.png", None, np.full((40, 60, 3), 200, np.uint8), CLASSES, said_of(CLASSES, (0.2, 0.7, 0.1))
    )
    even = Gates(torch.full((7, 7), 0.5), torch.full((64,), 0.5))
    looking = Gates(torch.linspace(0.2, 0.8, 49).reshape(7, 7), torch.linspace(1, 0, 64))
    laid = np.tile(np.linspace(0.2, 0.8, 60, dtype=np.float32), (40, 1))
    gates = {"cbam1": (even, np.full((40, 60), 0.5, np.float32)), "cbam4": (looking, laid)}
    assert_margins_are_empty(panels.panel_of_gates(cell, gates))
    (((looks, channels), _),) = drawn
    assert np.array_equal(looks.tiles[1].picture, cell.image)
    assert looks.tiles[1].remark == "passes on 0.50 to 0.50"
    assert looks.tiles[2].remark == "passes on 0.20 to 0.80"
    change = np.abs(looks.tiles[2].picture.astype(int) - cell.image).sum(2)
    assert change[0, 0] == 0 < change[0, -1]
    assert channels.tiles[1].title == "All 64 channels 0.50 open"
    assert channels.tiles[2].title == "50 % of 64 channels over half open"
    assert channels.tiles[2].remark == "most open: 0, 1, 2, 3, 4"


@pytest.mark.parametrize(
    ("true_class", "said"),
    [
        (None, "unknown"),
        ("Parabasal", "True class: Parabasal"),
        ("Dyskeratotic", "not the predicted one"),
        ("Columnar", "none of the model's"),
    ],
)
def test_the_true_class_is_told_where_it_is_known(true_class, said):
    text, ink = panels._truth(explanation(true_class=true_class))
    assert said in text
    assert (ink == panels.RED) == (true_class == "Dyskeratotic")


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=200), width=st.integers(60, 400))
def test_no_line_of_a_panel_is_wider_than_its_place(text, width):
    font = panels._font(16)
    lines = panels._wrapped(text, font, width)
    assert 1 <= len(lines) <= 3
    assert all(font.getlength(line) <= width for line in lines)


def test_a_minus_stays_with_its_number_and_a_hyphen_with_the_word_before():
    font = panels._font(16)
    assert panels._wrapped("score (-0.03)", font, int(font.getlength("score (-0"))) == ["score", "(-0.03)"]
    width = int(font.getlength("Intermediate")) + 1
    assert panels._wrapped("Superficial-Intermediate", font, width) == ["Superficial-", "Intermediate"]


def test_every_example_in_the_documentation_runs():
    result = doctest.testmod(panels)
    assert result.attempted >= 1
    assert result.failed == 0
