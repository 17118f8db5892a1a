"""Pictures of the maps: each cell, the map, and the map laid over the cell.

A map is shown in shares of the highest value that any class of the model reaches in this cell at this
layer. The scale is never stretched for a class by itself, so a class that little speaks for stays pale
beside one that much speaks for. Between layers and between cells heat is not comparable.

Panels are drawn with Pillow: 20 to 60 ms each for cells of 100 to 500 pixels on one thread.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cervicyte.evaluation.answers import Prediction
from cervicyte.explanation.colours import DEFAULT_COLOURS, alone, overlay, strong_colour
from cervicyte.provenance import RESEARCH_USE_ONLY

if TYPE_CHECKING:
    from cervicyte.explanation.cam import Gates

SIDE = 360  # pixels of a tile for all but larger images
LARGEST_SIDE = 1024
MOST_COLUMNS = 6
CHANNELS = "How far each channel is open, from 0 (shut, below) to 1 (above), sorted; the lines are quarters."
EVEN = 1e-3  # a gate that varies less says nothing; its rounding is not to be blown up
Asked = tuple[int, int | None]
"""A class, and the one that it is held against or None."""

INK, GREY, RED, GREEN, FRAME, MAT = "#1b1f24", "#57606a", "#a40e26", "#116329", "#d0d7de", "#f6f8fa"


@dataclass(frozen=True)
class Map:
    """What speaks for one class, or for one class rather than another, on a cell's own pixels.

    Attributes:
        of: index of the class.
        against: index of the class that it is held against; None where it stands for itself.
        values: float32 [H, W]: evidence for, never negative.
        signed: float32 [H, W]: evidence for minus evidence against.
        places: rows and columns of the map as the network has it.
        on_padding: share of the map's evidence for that lies outside the cell's image, in [0, 1].
    """

    of: int
    against: int | None
    values: np.ndarray
    signed: np.ndarray
    places: tuple[int, int]
    on_padding: float

    @property
    def asked(self) -> Asked:
        """What the map answers; no two maps of one cell and layer have the same."""
        return self.of, self.against


@dataclass(frozen=True)
class Sentence:
    """What stands below pictures, in few words where the place is narrow; good news, bad news or neither."""

    text: str
    good: bool | None = None
    short: str = ""

    @property
    def ink(self) -> str:
        """The colour of its letters."""
        return {None: GREY, True: GREEN, False: RED}[self.good]


@dataclass(frozen=True)
class Explanation:
    """One cell with its maps.

    Attributes:
        name: path relative to the data set's root.
        true_class: None if unknown.
        image: uint8 [H, W, 3], RGB.
        class_names: of the model, in order.
        said: what the model says of it.
        maps: layer -> the map shown by itself, then those shown side by side.
        highest: layer -> the highest value of any class of the model in this cell.
        largest: layer -> the largest signed value, of either sign, of any class or map shown.
        seen: whether it, or another photograph of the same place, took part in training.
        verdicts: layer and question of a map, see `Map.asked` -> what is to be said of it.
    """

    name: str
    true_class: str | None
    image: np.ndarray
    class_names: tuple[str, ...]
    said: Prediction
    maps: dict[str, tuple[Map, tuple[Map, ...]]] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    seen: bool = False
    verdicts: dict[tuple[str, Asked], Sentence] = field(default_factory=dict)

    @property
    def predicted(self) -> int:
        """Index of the class with the highest probability."""
        return self.class_names.index(self.said.class_name)

    def question(self, shown: Map) -> str:
        """Return what a map answers: a class, or one class and not another."""
        name = self.class_names[shown.of]
        return name if shown.against is None else f"{name}, not {self.class_names[shown.against]}"


def panel_of_cell(cell: Explanation, method: str, colours: str = DEFAULT_COLOURS) -> Image.Image:
    """Draw for each layer the cell, the map, and the map over the cell."""
    rows, bar = [], _one_sided_bar(cell, colours)
    for layer, (shown, _) in cell.maps.items():
        signed = shown.against is not None  # a contrast has two sides; a class by itself shows one
        values = shown.signed if signed else shown.values
        top = cell.largest[layer] if signed else cell.highest[layer]
        if shown.against is not None:
            sides = cell.class_names[shown.against], cell.class_names[shown.of]
            bar = _two_sided_bar(cell, colours, f"1 for {sides[0]}", f"1 for {sides[1]}")
        peak = np.abs(values).max() / top if top > 0 else 0.0
        said = [cell.verdicts[layer, shown.asked]] if (layer, shown.asked) in cell.verdicts else []
        if said and shown.against is not None:
            said.append(Sentence(_only_what_speaks_for(cell.class_names[shown.of], colours)))
        rows.append(
            Row(
                (
                    _cell_tile(cell),
                    Tile(
                        alone(values, top, colours, signed),
                        f"Map: {cell.question(shown)}",
                        f"{_at(layer, shown)}; strongest {peak:.2f}",
                    ),
                    Tile(
                        overlay(cell.image, values, top, colours, signed),
                        _with_confidence(cell, shown),
                        padding_sentence(shown.on_padding),
                    ),
                ),
                tuple(said),
            )
        )
    return _panel(cell, f"{method} at {', '.join(cell.maps)}", rows, bar)


def panel_of_classes(cell: Explanation, method: str, colours: str = DEFAULT_COLOURS) -> Image.Image:
    """Draw for each layer the cell and the maps side by side, over the cell and below by themselves.

    All maps of a layer share one scale with two sides: evidence for and evidence against. Each has its own
    verdict below it, where there is one.
    """
    rows = []
    on_verdicts = f" {_only_what_speaks_for('its class', colours)}" if cell.verdicts else ""
    for layer, (_, beside) in cell.maps.items():
        top = cell.largest[layer]
        over = [
            Tile(
                overlay(cell.image, shown.signed, top, colours, signed=True),
                _with_confidence(cell, shown),
                _extremes(shown.signed, top),
                cell.verdicts.get((layer, shown.asked)),
            )
            for shown in beside
        ]
        by_itself = [Tile(alone(shown.signed, top, colours, signed=True), "", "") for shown in beside]
        each = MOST_COLUMNS - 1
        for start in range(0, len(beside), each):
            first = _cell_tile(cell)
            blank = Tile(None, "", f"The same maps by themselves: {_at(layer, beside[0])}.{on_verdicts}")
            rows.append(Row((first, *over[start : start + each])))
            rows.append(Row((blank, *by_itself[start : start + each])))
    return _panel(cell, f"{method} at {', '.join(cell.maps)}", rows, _two_sided_bar(cell, colours))


def panel_of_gates(
    cell: Explanation,
    gates: dict[str, tuple[Gates, np.ndarray]],
    colours: str = DEFAULT_COLOURS,
) -> Image.Image:
    """Draw where each spatial gate looks, over the cell, and how far its channels are open.

    Args:
        cell: without maps.
        gates: layer -> the gates of this cell alone ([h, w] and [K]), and the spatial one on the cell's own
            pixels, float32 [H, W].
        colours: one of `colours.COLOURS`.
    """
    looks, channels = [_cell_tile(cell)], [Tile(None, "", CHANNELS)]
    for layer, (gate, laid) in gates.items():
        low, high = float(gate.spatial.min()), float(gate.spatial.max())
        spread = laid - low if high - low > EVEN else np.zeros_like(laid)
        looks.append(
            Tile(
                overlay(cell.image, spread, high - low, colours),
                f"Where {layer} looks",
                f"passes on {low:.2f} to {high:.2f}",
            )
        )
        values = gate.channel.cpu().numpy()
        title = f"{100 * (values > 0.5).mean():.0f} % of {len(values)} channels over half open"
        remark = "most open: " + ", ".join(str(index) for index in np.argsort(-values, kind="stable")[:5])
        if np.ptp(values) < EVEN:
            title, remark = f"All {len(values)} channels {values.mean():.2f} open", "none stands out"
        channels.append(Tile(_curve(np.sort(values)[::-1]), title, remark))
    bar = Bar(
        "From the place where a gate passes on least to where it passes on most, for each gate by itself. "
        "Gates depend on no class: they say what is passed on, not what it speaks for.",
        ("least", "", "most"),
        functools.partial(_strip, colours=colours, signed=False),
    )
    return _panel(cell, "Gates of the attention modules", [Row(tuple(looks)), Row(tuple(channels))], bar)


def padding_sentence(share: float) -> str:
    """Say how much of a map lies outside the cell's image, on the padding that makes it square."""
    return f"{100 * share:.0f} % of the map on padding" if share >= 0.005 else "none of the map on padding"


def percent(share: float) -> str:
    """Return a probability in percent; never a certainty that rounding alone has made.

    Example:
        >>> percent(0.99999), percent(0.5), percent(0.0001)
        ('> 99.9 %', '50.0 %', '< 0.1 %')
    """
    if share > 0.9995:
        return "> 99.9 %"
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


# --- tiles ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """One picture of a panel, uint8 [H, W, 3] or None for an empty place, under its title and a line in
    small print, and above what is said of it in few words."""

    picture: np.ndarray | None
    title: str
    remark: str
    below: Sentence | None = None


@dataclass(frozen=True)
class Row:
    """Tiles side by side, and sentences below them."""

    tiles: tuple[Tile, ...]
    sentences: tuple[Sentence, ...] = ()


@dataclass(frozen=True)
class Bar:
    """The colour bar: what it means, what stands under its ends and middle, and how it is drawn."""

    meaning: str
    labels: tuple[str, str, str]
    draw: Callable[[int, int], np.ndarray]


def _cell_tile(cell: Explanation) -> Tile:
    height, width = cell.image.shape[:2]
    return Tile(cell.image, "Cell", f"{width} x {height} pixels")


def _at(layer: str, shown: Map) -> str:
    return f"{layer}, {shown.places[0]} x {shown.places[1]} places"


def _with_confidence(cell: Explanation, shown: Map) -> str:
    if shown.against is not None:
        return f"Why {cell.question(shown)}?"
    return f"{cell.class_names[shown.of]}, {percent(cell.said.probabilities[cell.class_names[shown.of]])}"


def _only_what_speaks_for(name: str, colours: str) -> str:
    return f"A verdict is on what speaks for {name} ({strong_colour(colours)}), not on what speaks against."


def _extremes(signed: np.ndarray, top: float) -> str:
    if top <= 0:
        return "no evidence anywhere"
    low, high = min(0.0, float(signed.min()) / top), max(0.0, float(signed.max()) / top)
    return f"against {abs(low):.2f}, for {high:.2f}"


def _one_sided_bar(cell: Explanation, colours: str) -> Bar:
    return Bar(
        "Evidence for the class, in shares of the highest value of all "
        f"{len(cell.class_names)} classes in this cell at this layer. Above: in the map. Below: over tissue.",
        ("0: none", "0.5", "1"),
        functools.partial(_strip, colours=colours, signed=False),
    )


def _two_sided_bar(
    cell: Explanation, colours: str, against: str = "1 against", speaks_for: str = "1 for"
) -> Bar:
    return Bar(
        "Evidence against and for, in shares of the largest value, of either sign, of all "
        f"{len(cell.class_names)} classes in this cell at this layer. Above: in the map. Below: over tissue.",
        (against, "0: neither", speaks_for),
        functools.partial(_strip, colours=colours, signed=True),
    )


def _strip(height: int, width: int, colours: str, signed: bool) -> np.ndarray:
    """Draw the scale as it looks in a map and, below, over pale tissue."""
    shares = np.broadcast_to(np.linspace(-1 if signed else 0, 1, width), (height // 2, width))
    tissue = np.full((*shares.shape, 3), (226, 222, 230), np.uint8)
    return np.concatenate(
        [alone(shares, 1.0, colours, signed), overlay(tissue, shares, 1.0, colours, signed)]
    )


def _curve(values: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Draw values from 0 to 1 as a filled curve with lines at the quarters."""
    columns = values[np.arange(side) * len(values) // side]
    heights = np.arange(side)[::-1, np.newaxis] / side
    picture = np.where((heights < columns)[..., np.newaxis], (96, 112, 130), (246, 248, 250)).astype(np.uint8)
    for quarter in (0.25, 0.5, 0.75):
        picture[round(side * (1 - quarter))] = (208, 215, 222) if quarter != 0.5 else (27, 31, 36)
    return picture


# --- drawing -------------------------------------------------------------------------------------


def _panel(cell: Explanation, what: str, rows: Sequence[Row], bar: Bar) -> Image.Image:
    """Lay tiles in rows of equal places, under the cell's name and above the colour bar and the notice."""
    # No pixel of an original is lost up to the largest side; type and margins grow with the tiles.
    side = min(max(SIDE, *cell.image.shape[:2]), LARGEST_SIDE)

    def px(length: float) -> int:
        return round(length * side / SIDE)

    columns = max(len(row.tiles) for row in rows)
    margin, gap, line, small_line = px(24), px(16), px(23), px(18)
    inner = max(columns, 2) * (side + gap) - gap  # two columns have room for the colour bar and most names
    name_font, bold, plain = _font(px(20), bold=True), _font(px(16), bold=True), _font(px(16))
    small, bold_small = _font(px(13)), _font(px(14), bold=True)

    predicted = cell.class_names[cell.predicted]
    truth, ink = _truth(cell)
    header = [
        (text, font, ink, height)
        for whole, font, ink, height in (
            (cell.name, name_font, INK, px(28)),
            (f"Predicted: {predicted}, confidence {percent(cell.said.confidence)}", plain, INK, line),
            (cell.said.doubt or "", plain, RED, line),
            (truth, plain, ink, line),
            (what, plain, GREY, line),
            ("This cell took part in training: its map says nothing of new cells.", plain, RED, line),
        )[: None if cell.seen else 5]
        if whole
        for text in _wrapped(whole, font, inner)
    ]
    titles = [[_wrapped(tile.title, bold, side) if tile.title else [] for tile in row.tiles] for row in rows]
    most_lines = [max(map(len, row)) for row in titles]
    remark_lines = [
        small_line * any(tile.remark and tile.picture is not None for tile in row.tiles) for row in rows
    ]
    heights = [
        max(_fitted(tile.picture, side)[1] for tile in row.tiles if tile.picture is not None) for row in rows
    ]
    below_lines = [px(4) + line * any(tile.below for tile in row.tiles) for row in rows]
    sentences = [
        [
            (text, sentence.ink)
            for sentence in row.sentences
            for text in _wrapped(sentence.text, plain, inner, most=4)
        ]
        for row in rows
    ]
    meaning = _wrapped(bar.meaning, small, inner)
    height = margin + sum(entry[3] for entry in header) + px(14)
    for most, remark, tall, under, said in zip(
        most_lines, remark_lines, heights, below_lines, sentences, strict=True
    ):
        height += most * line + remark + px(6) + tall + under + px(8) + len(said) * line + px(10)
    height += px(28) + px(22) + len(meaning) * small_line + px(14) + small_line + margin

    canvas = Image.new("RGB", (2 * margin + inner, height), "white")
    draw = ImageDraw.Draw(canvas)
    y = margin
    for text, font, colour, advance in header:
        draw.text((margin, y), text, colour, font)
        y += advance
    y += px(14)
    for row, lines_of_row, most, remark, tall, under, said in zip(
        rows, titles, most_lines, remark_lines, heights, below_lines, sentences, strict=True
    ):
        remark_y = y + most * line
        picture_y = remark_y + remark + px(6)
        for column, (tile, lines) in enumerate(zip(row.tiles, lines_of_row, strict=True)):
            x = margin + column * (side + gap)
            for above, text in enumerate(reversed(lines), start=1):
                draw.text((x, remark_y - above * line), text, INK, bold)
            if tile.picture is None:
                for number, text in enumerate(_wrapped(tile.remark, small, side, most=5)):
                    draw.text((x, picture_y + number * small_line), text, GREY, small)
                continue
            draw.text((x, remark_y), _shortened(tile.remark, small, side), GREY, small)
            _draw_picture(canvas, tile.picture, (x, picture_y), (side, tall))
            if tile.below is not None:
                text = _shortened(tile.below.short, bold_small, side)
                draw.text((x, picture_y + tall + px(6)), text, tile.below.ink, bold_small)
        y = picture_y + tall + under + px(8)
        for text, colour in said:
            draw.text((margin, y), text, colour, plain)
            y += line
        y += px(10)
    _draw_bar(canvas, bar, margin, y, px(420), px(28), small)
    y += px(28) + px(22)
    for text in meaning:
        draw.text((margin, y), text, GREY, small)
        y += small_line
    draw.line((margin, y + px(7), margin + inner - 1, y + px(7)), FRAME, px(1))
    draw.text((margin, y + px(14)), RESEARCH_USE_ONLY, INK, small)
    return canvas


def _truth(cell: Explanation) -> tuple[str, str]:
    """Return the line on the true class, and its colour."""
    if cell.true_class is None:
        return "True class: unknown", GREY
    if cell.true_class not in cell.class_names:
        return f"True class: {cell.true_class} (none of the model's)", GREY
    if cell.true_class == cell.class_names[cell.predicted]:
        return f"True class: {cell.true_class}", GREY
    return f"True class: {cell.true_class} (not the predicted one)", RED


def _fitted(picture: np.ndarray, side: int) -> tuple[int, int]:
    """Return width and height of a picture, as large as it will go into a square."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _draw_picture(
    canvas: Image.Image, picture: np.ndarray, corner: tuple[int, int], place: tuple[int, int]
) -> None:
    """Centre the picture in its place, which is as wide as a square and as tall as the row."""
    (x, y), size = corner, _fitted(picture, place[0])
    left, top = x + (place[0] - size[0]) // 2, y + (place[1] - size[1]) // 2
    ImageDraw.Draw(canvas).rectangle((x, y, x + place[0] - 1, y + place[1] - 1), MAT)
    canvas.paste(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), (left, top))


def _draw_bar(
    canvas: Image.Image, bar: Bar, x: int, y: int, width: int, height: int, font: ImageFont.FreeTypeFont
) -> None:
    canvas.paste(Image.fromarray(bar.draw(height, width)), (x, y))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((x, y, x + width - 1, y + height - 1), outline=FRAME)
    for share, anchor, label in zip((0.0, 0.5, 1.0), ("la", "ma", "ra"), bar.labels, strict=True):
        draw.text((x + share * (width - 1), y + height + 2), label, GREY, font, anchor)


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib, so that panels look the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 3) -> list[str]:
    """Break text into lines of at most `width` pixels, after a space or a joining sign."""
    lines = [""]
    # A hyphen joins two words; a minus, which stands before a number, stays with it.
    for piece in filter(None, re.findall(r"(?:[^ /_-]|(?<!\w)-)*(?:[ /_]+|-)?", text)):
        if lines[-1] and font.getlength((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    lines = [*lines[: most - 1], "".join(lines[most - 1 :])] if len(lines) > most else lines
    return [_shortened(line.rstrip(), font, width) for line in lines]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Take away from the middle what does not fit: the ends of a path tell most."""
    kept = len(text)
    shown = text
    while kept > 1 and font.getlength(shown) > width:
        kept -= 1
        shown = text[: math.ceil(kept / 2)] + "…" + text[len(text) - kept // 2 :]
    return shown
