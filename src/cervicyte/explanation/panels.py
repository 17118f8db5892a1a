"""Pictures of the maps: each cell, what the network saw of it, and the map laid over it.

A map is shown in shares of the highest value that any class of the model reaches in this cell at this
layer. The scale is never stretched for a class by itself, so a class that little speaks for stays pale
beside one that much speaks for. Between layers and between cells heat is not comparable.

Panels are drawn with Pillow: 20 to 40 ms each for cells of 100 to 500 pixels on one thread.
"""

from __future__ import annotations

import functools
import hashlib
import html
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import matplotlib
import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from cervicyte import __version__
from cervicyte.datasets.layouts import Cell
from cervicyte.errors import UsageError
from cervicyte.explanation.cam import DEFAULT_METHOD, check_layers, differentiate, method_named
from cervicyte.images.reader import read_image
from cervicyte.network.model_file import ModelFile
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import RESEARCH_USE_ONLY, provenance, write_text, written_atomically

PREDICTED_FOLDER = "gradcam_outputs"
CLASSES_FOLDER = "gradcam_specific_class_outputs"
ALL_CLASSES = "all"
BATCH = 16

COLOUR_MAP = "inferno"  # perceptually ordered; its yellow is no colour of the Papanicolaou stain
COLOURS = (0.4, 0.9)  # the part used: black would darken tissue, and pale yellow vanish on white glass
OPACITY = 0.6  # of the hottest place: the tissue must show through
OPACITY_POWER = 0.7  # below 1, so that the middle of the scale can be seen on pink and purple tissue

SIDE = 360  # pixels of a tile for all but larger images
LARGEST_SIDE = 1024
MOST_COLUMNS = 5
INK, GREY, RED, FRAME, MAT = "#1b1f24", "#57606a", "#a40e26", "#d0d7de", "#f6f8fa"


@dataclass(frozen=True)
class Explanation:
    """One cell with its maps on its own pixels.

    Attributes:
        name: path relative to the data set's root.
        true_class: None if unknown.
        image: uint8 [H, W, 3], RGB.
        network_input: uint8 [S, S, 3], after preprocessing.
        inside: left, top, right, bottom of the cell's own pixels in `network_input`; the rest is mirrored.
        probabilities: float [C].
        maps: layer -> float32 [C, H, W], of every class, never negative, on one scale for each layer.
    """

    name: str
    true_class: str | None
    image: np.ndarray
    network_input: np.ndarray
    inside: tuple[int, int, int, int]
    probabilities: np.ndarray
    maps: dict[str, np.ndarray]

    @property
    def predicted(self) -> int:
        """Index of the class with the highest probability."""
        return int(self.probabilities.argmax())


def overlay(image: np.ndarray, values: np.ndarray, highest: float | None = None) -> np.ndarray:
    """Lay a map over an image at full resolution; where the map is zero, the pixels stay as they are.

    Args:
        image: uint8 [H, W, 3], RGB.
        values: float [H, W], not negative; see `Preprocessing.onto_original`.
        highest: the value that is shown hottest, larger ones too; the same for all maps that are to be
            compared. None is the map's own highest.

    Returns:
        uint8 [H, W, 3]. Opacity grows with the value, up to `OPACITY`.

    Raises:
        ValueError: shapes differ, or values that are not finite.

    Example:
        >>> overlay(np.full((1, 2, 3), 200, np.uint8), np.array([[0.0, 1.0]]))[0].tolist()
        [[200, 200, 200], [228, 209, 122]]
    """
    if values.shape != image.shape[:2] or not np.isfinite(values).all():
        raise ValueError(f"a map for an image {image.shape} is finite and {image.shape[:2]}: {values.shape}")
    top = float(values.max()) if highest is None else highest
    shares = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    # 256 colours are looked up in a table of as many, instead of for each pixel in floating point.
    table = colormaps[COLOUR_MAP](np.linspace(*COLOURS, 256))[:, :3].astype(np.float32) * 255
    colours = table[(shares * 255).round().astype(np.uint8)]
    opacity = (OPACITY * shares**OPACITY_POWER).astype(np.float32)[..., np.newaxis]
    return (image * (1 - opacity) + colours * opacity).round().astype(np.uint8)


def explain_cells(
    model: ModelFile,
    cells: Sequence[Cell | Path],
    out: Path,
    *,
    method: str = DEFAULT_METHOD,
    layers: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Write a panel for every cell, and a page that shows them all.

    Panels with the map of the predicted class lie in `OUT/gradcam_outputs/<Class>/`, those with the maps
    of the classes asked for in `OUT/gradcam_specific_class_outputs/<Class>/`, <Class> being the cell's
    true class or, where that is unknown, the predicted one.

    Args:
        model: works on the device that its network lies on.
        cells: of a data set, or paths of images whose class is unknown.
        out: files of the same name there are replaced.
        method: one of `cam.METHODS`.
        layers: of the network; None is the last.
        classes: names, upper or lower case, whose maps are to be shown beside each other, or `all`.
        progress: is told of every cell.

    Returns:
        The page, `OUT/index.html`.

    Raises:
        UsageError: unknown method, layer or class; no cell, or one twice. Nothing is written then.
        ImageError: a file cannot be read; the text names it.
    """
    layers = model.network.layers[-1:] if layers is None else list(dict.fromkeys(layers))
    check_layers(model.network, layers)
    title = method_named(method).title
    asked = None if classes is None else class_indices(model.class_names, classes)
    named = _named(cells)
    entries = []
    progress.start("Explaining cells", len(cells))
    for start in range(0, len(named), BATCH):
        for cell in _explained(model, named[start : start + BATCH], method, layers):
            entries.append(_write_panels(out, model.class_names, cell, title, asked))
            progress.advance()
    progress.close()
    page = out / "index.html"
    write_text(page, _index_page(model, entries, title, layers))
    return page


def class_indices(class_names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Return the indices of classes named in upper or lower case; `all` is every class in order.

    Raises:
        UsageError: no such class, or none at all; the text names those that exist.
    """
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if [name.casefold() for name in wanted] == [ALL_CLASSES]:
        return list(range(len(class_names)))
    known = {name.casefold(): index for index, name in enumerate(class_names)}
    for name in wanted:
        if name.casefold() not in known:
            raise UsageError(
                f"The model has no class {name!r}; choose from {', '.join(class_names)}, or {ALL_CLASSES}."
            )
    if not wanted:
        raise UsageError(f"No class was named; choose from {', '.join(class_names)}, or {ALL_CLASSES}.")
    return list(dict.fromkeys(known[name.casefold()] for name in wanted))


def _named(cells: Sequence[Cell | Path]) -> list[tuple[Path, str, str | None]]:
    """Return path, name and true class of each; images without a data set are named from the folder
    that holds them all."""
    if not cells:
        raise UsageError("There is no cell to explain; name at least one image or a folder that holds some.")
    paths = [Path(cell).absolute() for cell in cells if isinstance(cell, Path)]
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    named: list[tuple[Path, str, str | None]] = [
        (cell, cell.absolute().relative_to(root).as_posix(), None)
        if isinstance(cell, Path)
        else (cell.path, cell.name, cell.label)
        for cell in cells
    ]
    names = [name for _, name, _ in named]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice} stands twice among the cells to explain; name each cell once.")
    return named


def _explained(
    model: ModelFile, named: Sequence[tuple[Path, str, str | None]], method: str, layers: Sequence[str]
) -> Iterator[Explanation]:
    """Explain one batch of cells for every class of the model."""
    images = [read_image(path) for path, _, _ in named]
    inputs = np.stack([model.preprocessing(image) for image in images])
    device = next(model.network.parameters()).device
    found = differentiate(
        model.network, torch.from_numpy(model.preprocessing.normalise(inputs)).to(device), layers
    )
    probabilities = found.logits.double().softmax(1).cpu().numpy()
    formula = method_named(method)
    maps = {
        layer: formula.maps(found.activations[layer], found.gradients[layer]).cpu().numpy()
        for layer in layers
    }
    for position, ((_, name, true_class), image) in enumerate(zip(named, images, strict=True)):
        height, width = image.shape[:2]
        own = np.argwhere(~model.preprocessing.padding_mask(height, width))
        (top, left), (bottom, right) = own.min(0), own.max(0)
        yield Explanation(
            name,
            true_class,
            image,
            inputs[position],
            (int(left), int(top), int(right), int(bottom)),
            probabilities[position],
            {
                layer: np.stack(
                    [
                        model.preprocessing.onto_original(values, height, width)
                        for values in found_maps[position]
                    ]
                )
                for layer, found_maps in maps.items()
            },
        )


@dataclass(frozen=True)
class Entry:
    """What the page says of one cell; panels are paths relative to the page."""

    name: str
    true_class: str | None
    predicted_class: str
    confidence: float
    panels: tuple[tuple[str, str], ...]  # (path, what it shows)


def _write_panels(
    out: Path, class_names: Sequence[str], cell: Explanation, title: str, asked: list[int] | None
) -> Entry:
    """Write one cell's panels."""
    predicted = class_names[cell.predicted]
    file = PurePosixPath(_safe(cell.true_class or predicted), _file_name(cell.name))
    panels = {PREDICTED_FOLDER / file: (panel_of_predicted(cell, class_names, title), "the predicted class")}
    if asked is not None:
        shown = ", ".join(class_names[index] for index in asked)
        panels[CLASSES_FOLDER / file] = (panel_of_classes(cell, class_names, title, asked), shown)
    for path, (picture, _) in panels.items():
        _write_png(out / path, picture)
    return Entry(
        cell.name,
        cell.true_class,
        predicted,
        float(cell.probabilities[cell.predicted]),
        tuple((path.as_posix(), shown) for path, (_, shown) in panels.items()),
    )


def _safe(text: str) -> str:
    """Return a file name of the text: letters, digits, `-`, `_` and `.`, none of them leading it astray."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:40] or "_"


def _file_name(name: str) -> str:
    """Return a file name that no other cell of the data set has, whatever folder that one lies in."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{_safe(PurePosixPath(name).stem)}-{digest}.png"


def _write_png(path: Path, picture: Image.Image) -> None:
    notice = PngImagePlugin.PngInfo()
    notice.add_text("Description", RESEARCH_USE_ONLY)
    notice.add_text("Software", f"Cervicyte {__version__}")
    with written_atomically(path) as partial:
        picture.save(partial, pnginfo=notice, compress_level=3)


# Drawing


@dataclass(frozen=True)
class Tile:
    """One picture of a panel under its title and a line in small print."""

    picture: np.ndarray
    title: str
    remark: str
    frame: tuple[int, int, int, int] | None = None  # in pixels of `picture`


def panel_of_predicted(cell: Explanation, class_names: Sequence[str], method: str) -> Image.Image:
    """Draw the original, the network's input and, for each layer, the map of the predicted class."""
    tiles = _tiles_of_original(cell)
    for layer, maps in cell.maps.items():
        tiles.append(_tile_of_map(cell, layer, maps, cell.predicted, class_names))
    return _panel(cell, class_names, method, [tiles])


def panel_of_classes(
    cell: Explanation, class_names: Sequence[str], method: str, asked: Sequence[int]
) -> Image.Image:
    """Draw, for each layer, the original and the maps of the classes asked for, on one scale."""
    rows = []
    for layer, maps in cell.maps.items():
        of_classes = [_tile_of_map(cell, layer, maps, index, class_names) for index in asked]
        rows.append([*_tiles_of_original(cell)[:1], *of_classes])
    return _panel(cell, class_names, method, rows)


def _tiles_of_original(cell: Explanation) -> list[Tile]:
    height, width = cell.image.shape[:2]
    size = cell.network_input.shape[0]
    padded = cell.inside != (0, 0, size - 1, size - 1)
    return [
        Tile(cell.image, "Original", f"{width} x {height} pixels"),
        Tile(
            cell.network_input,
            "Input of the network",
            f"{size} x {size} pixels" + ("; outside the frame: mirrored" if padded else ""),
            cell.inside if padded else None,
        ),
    ]


def _tile_of_map(
    cell: Explanation, layer: str, maps: np.ndarray, index: int, class_names: Sequence[str]
) -> Tile:
    title = f"{class_names[index]}, {_percent(cell.probabilities[index])}"
    highest = float(maps.max())
    peak = f"peak {maps[index].max() / highest:.2f} of the scale" if highest > 0 else "no evidence anywhere"
    return Tile(overlay(cell.image, maps[index], highest), title, f"{layer}; {peak}")


def _panel(
    cell: Explanation, class_names: Sequence[str], method: str, blocks: Sequence[Sequence[Tile]]
) -> Image.Image:
    """Lay tiles in rows of equal squares, under the cell's name and above the colour bar and the notice."""
    # No pixel of an original is lost up to the largest side; type and margins grow with the tiles.
    side = min(max(SIDE, *cell.image.shape[:2]), LARGEST_SIDE)

    def px(length: float) -> int:
        return round(length * side / SIDE)

    columns = max(-(-len(tiles) // -(-len(tiles) // MOST_COLUMNS)) for tiles in blocks)
    rows = [tiles[n : n + columns] for tiles in blocks for n in range(0, len(tiles), columns)]
    margin, gap, line, small_line = px(24), px(16), px(23), px(18)
    inner = max(columns, 2) * (side + gap) - gap  # two columns have room for the colour bar and most names
    name_font, bold, plain = _font(px(20), bold=True), _font(px(16), bold=True), _font(px(16))
    small = _font(px(13))

    predicted = class_names[cell.predicted]
    truth = "True class: " + (cell.true_class or "unknown")
    wrong = cell.true_class not in (None, predicted)
    header = [
        (text, font, ink, height)
        for whole, font, ink, height in (
            (cell.name, name_font, INK, px(28)),
            (f"Predicted: {predicted}, confidence {_percent(cell.probabilities.max())}", plain, INK, line),
            (truth + (" (not the predicted one)" if wrong else ""), plain, RED if wrong else GREY, line),
            (f"{method} at {', '.join(cell.maps)}", plain, GREY, line),
        )
        for text in _wrapped(whole, font, inner)
    ]
    titles = [[_wrapped(tile.title, bold, side) for tile in row] for row in rows]
    most_lines = [max(map(len, row)) for row in titles]
    legend = _wrapped(
        f"{method}: share of the highest value of all {len(class_names)} classes in this cell at this layer",
        small,
        inner,
    )
    height = margin + sum(entry[3] for entry in header) + px(14)
    height += sum(most * line + small_line + px(6) + side + px(18) for most in most_lines)
    height += px(34) + len(legend) * small_line + px(14) + small_line + margin

    canvas = Image.new("RGB", (2 * margin + inner, height), "white")
    draw = ImageDraw.Draw(canvas)
    y = margin
    for text, font, ink, advance in header:
        draw.text((margin, y), text, ink, font)
        y += advance
    y += px(14)
    for row, lines_of_row, most in zip(rows, titles, most_lines, strict=True):
        remark_y = y + most * line
        picture_y = remark_y + small_line + px(6)
        for column, (tile, lines) in enumerate(zip(row, lines_of_row, strict=True)):
            x = margin + column * (side + gap)
            for above, text in enumerate(reversed(lines), start=1):
                draw.text((x, remark_y - above * line), text, INK, bold)
            draw.text((x, remark_y), _shortened(tile.remark, small, side), GREY, small)
            _draw_tile(canvas, tile, x, picture_y, side)
        y = picture_y + side + px(18)
    _draw_colour_bar(canvas, margin, y, px(420), px(14), small)
    y += px(34)
    for text in legend:
        draw.text((margin, y), text, GREY, small)
        y += small_line
    draw.line((margin, y + px(7), margin + inner - 1, y + px(7)), FRAME, px(1))
    draw.text((margin, y + px(14)), RESEARCH_USE_ONLY, INK, small)
    return canvas


def _draw_tile(canvas: Image.Image, tile: Tile, x: int, y: int, side: int) -> None:
    """Centre the picture in its square, as large as it will go."""
    height, width = tile.picture.shape[:2]
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    left, top = x + (side - size[0]) // 2, y + (side - size[1]) // 2
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((x, y, x + side - 1, y + side - 1), MAT)
    canvas.paste(Image.fromarray(tile.picture).resize(size, Image.Resampling.LANCZOS), (left, top))
    if tile.frame is not None:
        first, above, last, below = tile.frame
        edges = (
            left + first * factor,
            top + above * factor,
            left + (last + 1) * factor - 1,
            top + (below + 1) * factor - 1,
        )
        stroke = max(1, side // SIDE)
        # White beside black can be told from any stain.
        draw.rectangle(edges, outline="black", width=2 * stroke)
        inset = (edges[0] + stroke, edges[1] + stroke, edges[2] - stroke, edges[3] - stroke)
        draw.rectangle(inset, outline="white", width=stroke)


def _draw_colour_bar(
    canvas: Image.Image, x: int, y: int, width: int, height: int, font: ImageFont.FreeTypeFont
) -> None:
    """Draw the scale as it looks over pale tissue, from 0 to 1."""
    tissue = np.full((height, width, 3), (226, 222, 230), np.uint8)
    bar = overlay(tissue, np.broadcast_to(np.linspace(0, 1, width), (height, width)), 1.0)
    canvas.paste(Image.fromarray(bar), (x, y))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((x, y, x + width - 1, y + height - 1), outline=FRAME)
    for share, anchor in ((0.0, "la"), (0.25, "ma"), (0.5, "ma"), (0.75, "ma"), (1.0, "ra")):
        draw.text((x + share * (width - 1), y + height + 2), f"{share:g}", GREY, font, anchor)


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib, so that panels look the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 3) -> list[str]:
    """Break text into lines of at most `width` pixels, after a space or a joining sign."""
    lines = [""]
    for piece in re.findall(r"[^ /_-]*[ /_-]*", text):
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


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# The page

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere }
nav a { margin-right: 1.2rem; white-space: nowrap } .notice { font-weight: 600 } .small { color: #57606a }
.wrong { color: #a40e26 } section { border-top: 1px solid #d0d7de }
img { max-width: 100%; height: auto; border: 1px solid #d0d7de; margin-bottom: .75rem; background: white }
"""


def _index_page(model: ModelFile, entries: Sequence[Entry], method: str, layers: Sequence[str]) -> str:
    """Return the page, with links relative to the folder that it lies in."""
    by_class: dict[str, list[Entry]] = {}
    for entry in entries:
        by_class.setdefault(entry.true_class or entry.predicted_class, []).append(entry)
    record = provenance()
    write = html.escape
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{write(method)} of {len(entries)} cells</title><style>{STYLE}</style></head><body>",
        f"<h1>Where the network looked: {len(entries)} {'cell' if len(entries) == 1 else 'cells'}</h1>",
        f'<p class="notice">{RESEARCH_USE_ONLY}</p>',
        f"<p>{write(method)} at {write(', '.join(layers))}. Colour shows which places raise the score of a "
        "class: in shares of the highest value that any of the model's "
        f"{len(model.class_names)} classes reaches in the same cell at the same layer. It can be compared "
        "between the classes of one cell, not between cells or layers. A map shows what the network used, "
        "not whether it was right.</p>",
        f'<p class="small">Written {record["written"]} by Cervicyte {__version__} ({record["commit"]}).</p>',
        "<nav>",
    ]
    ordered = sorted(by_class)
    for number, name in enumerate(ordered):
        parts.append(f'<a href="#class-{number}">{write(name)} ({len(by_class[name])})</a>')
    parts.append("</nav>")
    for number, name in enumerate(ordered):
        parts.append(f'<section id="class-{number}"><h2>{write(name)}</h2>')
        for entry in by_class[name]:
            parts.append(f"<h3>{write(entry.name)}</h3>")
            verdict = f"Predicted {entry.predicted_class}, confidence {_percent(entry.confidence)}"
            if entry.true_class is None:
                parts.append(f"<p>{write(verdict)}; true class unknown.</p>")
            elif entry.true_class == entry.predicted_class:
                parts.append(f"<p>{write(verdict)}; this is the true class.</p>")
            else:
                truth = f"true class {entry.true_class}"
                parts.append(f'<p>{write(verdict)}; <strong class="wrong">{write(truth)}</strong>.</p>')
            for path, shown in entry.panels:
                alt = f"{method} of {entry.name} for {shown}. {verdict}."
                link = quote(path)
                parts.append(f'<a href="{link}"><img loading="lazy" src="{link}" alt="{write(alt)}"></a>')
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>\n"])
