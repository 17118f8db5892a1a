"""What the audit of explanations measures on each cell, and on the first few with weights drawn anew.

Explained is the class that the network predicts, right or wrong: that is what a map shows to people. What
is measured stands in `faithfulness`, against what in `controls`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from cervicyte.datasets.contours import BrokenContour, outlines_beside
from cervicyte.datasets.layouts import Cell
from cervicyte.explanation import cam
from cervicyte.explanation.controls import (
    centre_blob,
    class_maps,
    darkness,
    network_input,
    random_twin,
    randomise,
)
from cervicyte.explanation.faithfulness import (
    ROAD_PERCENTILES,
    Score,
    deletion_and_insertion,
    enlarged,
    imputed,
    localisation,
    mean_colour,
    probabilities_of,
    rank_correlation,
    road,
)
from cervicyte.explanation.verdict import STEPS
from cervicyte.images.quality import ssim
from cervicyte.images.reader import read_image
from cervicyte.images.segmentation import Outlines, segment
from cervicyte.network.model_file import ModelFile
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT, Progress

DEFAULT_LAYERS = ("cbam3", "layer4", "cbam4")
LAYERS_WITHOUT_GATES = ("layer3", "layer4")
CONTROL_MAPS = ("centre", "darkness")
RANDOM = "random"
FILLINGS = ("mean colour", "smooth")
PARTS = ("nucleus", "cytoplasm", "cell", "background")
STABLE_UNDER = ("mirrored", "upside down", "shifted", "brighter", "darker", "JPEG 50")
SHIFT = 1 / 20  # of the input's side, right and down
# The network from its end to its beginning: at each stage this and all before it are random.
RANDOMISED_STAGES = (
    ("fc", ("fc",)),
    ("cbam4", ("cbam4",)),
    ("layer4", ("layer4",)),
    ("cbam3", ("cbam3",)),
    ("layer3", ("layer3",)),
    ("layer2", ("cbam2", "layer2")),
    ("layer1", ("cbam1", "layer1")),
    ("conv1", ("conv1", "bn1")),
)
ANOTHER_CELL = "another cell"


@dataclass(frozen=True)
class AuditSettings:
    """What an audit does; one that is resumed must have the same.

    Attributes:
        cells: how many, over all classes.
        methods: of `cam.METHODS`.
        layers: of the network's; none is `DEFAULT_LAYERS`, or what a network without gates has of them.
        steps: of deletion and insertion; by default those of a verdict, so that the two agree.
        sanity_cells, stability_cells: the first so many take part in these, which need further maps.
        seed: chooses the cells.
        percentiles: of the pixels that ROAD takes away.
    """

    cells: int = 200
    methods: tuple[str, ...] = tuple(cam.METHODS)
    layers: tuple[str, ...] = ()
    steps: int = STEPS
    sanity_cells: int = 30
    stability_cells: int = 60
    seed: int = 0
    percentiles: tuple[int, ...] = ROAD_PERCENTILES

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> AuditSettings:
        """Return settings from what a file of records says of them."""
        lists = {key: tuple(value) for key, value in stated.items() if isinstance(value, list)}
        values: dict[str, Any] = {**stated, **lists}
        return cls(**values)

    @property
    def explanations(self) -> list[str]:
        """The names of all maps that explain, `method@layer`."""
        return [map_name(method, layer) for layer in self.layers for method in self.methods]

    @property
    def controls(self) -> list[str]:
        """The names of all maps that explain nothing: centre, darkness, a random one for each that does."""
        return [*CONTROL_MAPS, *map(random_name, self.explanations)]


def map_name(method: str, layer: str) -> str:
    """Return `method@layer`, the name of a map in records and tables."""
    return f"{method}@{layer}"


def random_name(explanation: str) -> str:
    """Return `random method@layer`, the name of the same method's map of the network with random weights."""
    return f"{RANDOM} {explanation}"


def controls_of(explanation: str) -> list[str]:
    """Return the names of the three controls of an explanation."""
    return [*CONTROL_MAPS, random_name(explanation)]


def stages_of(network: CBAMResNet50) -> list[tuple[str, tuple[str, ...]]]:
    """Return the stages of `RANDOMISED_STAGES` that this network has: one without gates has fewer."""
    children = {name for name, part in network.named_children() if any(True for _ in part.parameters())}
    there = {stage: tuple(name for name in names if name in children) for stage, names in RANDOMISED_STAGES}
    return [(stage, names) for stage, names in there.items() if names]


class Auditor:
    """Measures cells, one after another; each cell's record depends on that cell alone."""

    def __init__(
        self, model: ModelFile, settings: AuditSettings, cells: Sequence[Cell], true_classes: Sequence[str]
    ) -> None:
        """Take the model, what to do, and the cells with their classes in the model's names."""
        self.model, self.settings, self.cells, self.true_classes = model, settings, cells, true_classes
        model.network.eval()
        self.score: Score = probabilities_of(model)
        self.twin = random_twin(model.network)
        self.geometry = model.preprocessing.geometry()

    def record(self, index: int) -> dict[str, Any]:
        """Return all that is measured on one cell."""
        cell, true_class = self.cells[index], self.true_classes[index]
        image = read_image(cell.path)
        preprocessed = self.model.preprocessing(image)
        probabilities = self.probabilities(preprocessed[np.newaxis])[0]
        predicted = int(probabilities.argmax())
        maps = self.maps(preprocessed, predicted)
        asked = self.score, preprocessed, list(maps.values()), [predicted] * len(maps)
        areas = deletion_and_insertion(*asked, self.settings.steps)
        removal = road(*asked, self.settings.percentiles)
        outlines, source = outlines_of(cell, image)
        blob = centre_blob(preprocessed.shape[0])
        dark = darkness(preprocessed)
        measured = {}
        for place, (name, values) in enumerate(maps.items()):
            large = enlarged(values, len(preprocessed))
            measured[name] = {
                "deletion": areas.deletion[place],
                "insertion": areas.insertion[place],
                "road_most": removal.most_first[place],
                "road_least": removal.least_first[place],
                "like_centre": rank_correlation(large, blob),
                "like_darkness": rank_correlation(large, dark),
                **self.located(values, outlines, image.shape[:2]),
            }
        record: dict[str, Any] = {
            "name": cell.name,
            "group": cell.group,
            "true_class": true_class,
            "predicted_class": self.model.class_names[predicted],
            "probability": probabilities[predicted],
            "outlines": source,
            "maps": measured,
        }
        if outlines is not None:
            record["nucleus_area"] = float(outlines.nucleus.mean())
            record["cell_area"] = float(outlines.cell.mean())
            record["shown_only"] = self.shortcuts(preprocessed, outlines)
        if index < self.settings.stability_cells:
            record["stability"] = self.stability(preprocessed, predicted)
        return record

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Return the probabilities, float [N, C], of preprocessed images."""
        with torch.inference_mode():
            logits = self.model.network(network_input(self.model, inputs))
            return logits.double().softmax(1).cpu().numpy()

    def explanations(
        self, network: CBAMResNet50, inputs: np.ndarray, classes: np.ndarray, methods: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """Return name -> maps [N, h, w] of every method and layer for each image's class."""
        layers = self.settings.layers
        found = class_maps(network, self.model, inputs, classes.tolist(), methods, layers)
        return {map_name(method, layer): found[method, layer] for layer in layers for method in methods}

    def maps(self, preprocessed: np.ndarray, class_index: int) -> dict[str, np.ndarray]:
        """Return name -> map [h, w]: the explanations, then the controls."""
        inputs, wanted = preprocessed[np.newaxis], np.array([class_index])
        own = self.explanations(self.model.network, inputs, wanted, self.settings.methods)
        blind = self.explanations(self.twin, inputs, wanted, self.settings.methods)
        return {
            **{name: values[0] for name, values in own.items()},
            "centre": centre_blob(len(preprocessed)),
            "darkness": darkness(preprocessed),
            **{random_name(name): values[0] for name, values in blind.items()},
        }

    def located(
        self, values: np.ndarray, outlines: Outlines | None, size: tuple[int, int]
    ) -> dict[str, float | bool]:
        """Return how much of a map lies in nucleus and cell, on the original's pixels."""
        if outlines is None:
            return {}
        on_original = self.model.preprocessing.onto_original(values, *size)
        found: dict[str, float | bool] = {}
        for part, region in (("nucleus", outlines.nucleus), ("cell", outlines.cell)):
            place = localisation(on_original, region)
            found |= {
                f"{part}_share": place.share,
                f"{part}_enrichment": place.enrichment,
                f"{part}_hit": place.hit,
            }
        return found

    def shortcuts(self, preprocessed: np.ndarray, outlines: Outlines) -> dict[str, dict[str, str]]:
        """Return filling -> part -> class predicted when nothing but this part of the image is shown."""
        nucleus, cell = (self.mask_in_input(mask) for mask in (outlines.nucleus, outlines.cell))
        shown = {"nucleus": nucleus, "cytoplasm": cell & ~nucleus, "cell": cell, "background": ~cell}
        tried = []
        for part in PARTS:
            hidden = ~shown[part]
            tried.append(np.where(hidden[..., None], mean_colour(preprocessed), preprocessed))
            tried.append(imputed(preprocessed, hidden))
        predicted = self.probabilities(np.stack(tried)).argmax(1).reshape(len(PARTS), len(FILLINGS))
        return {
            filling: {part: self.model.class_names[predicted[row, column]] for row, part in enumerate(PARTS)}
            for column, filling in enumerate(FILLINGS)
        }

    def mask_in_input(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask of the original, bool [H, W], as it lies in the network's input, bool [S, S]."""
        as_image = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
        return self.geometry(as_image)[..., 0] >= 128

    def stability(self, preprocessed: np.ndarray, class_index: int) -> dict[str, dict[str, float]]:
        """Return change -> map -> rank correlation of the map before and after, moved back."""
        side = len(preprocessed)
        inputs = np.stack([preprocessed, *(changed(preprocessed, name) for name in STABLE_UNDER)])
        wanted = np.full(len(inputs), class_index)
        found = self.explanations(self.model.network, inputs, wanted, self.settings.methods)
        result: dict[str, dict[str, float]] = {name: {} for name in STABLE_UNDER}
        for name, maps in found.items():
            before, *after = (enlarged(values, side) for values in maps)
            for change, values in zip(STABLE_UNDER, after, strict=True):
                result[change][name] = rank_correlation(*_moved_back(before, values, change))
        return result

    def randomised_stages(self, progress: Progress = SILENT) -> dict[str, dict[str, Any]]:
        """Return stage -> map -> likeness of each sanity cell's map to the trained network's: `_likeness`.

        J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018: weights are drawn anew from
        the classifier down; a map that stays as it is does not depend on them. For scale, each cell's map
        is also held against that of the next cell.
        """
        cells = self.cells[: self.settings.sanity_cells]
        inputs = np.stack([self.model.preprocessing(read_image(cell.path)) for cell in cells])
        wanted = np.concatenate([self.probabilities(image[np.newaxis]).argmax(1) for image in inputs])
        methods, side = self.settings.methods, inputs.shape[1]
        own = self.explanations(self.model.network, inputs, wanted, methods)
        found = {
            ANOTHER_CELL: {name: _likeness(maps, np.roll(maps, 1, 0), side) for name, maps in own.items()}
        }
        network, generator = copy.deepcopy(self.model.network), torch.Generator().manual_seed(1)
        stages = stages_of(network)
        progress.start("Randomising weights", len(stages))
        for stage, names in stages:
            for name in names:
                randomise(network.get_submodule(name), generator)
            maps_now = self.explanations(network, inputs, wanted, methods)
            found[stage] = {name: _likeness(own[name], maps, side) for name, maps in maps_now.items()}
            progress.advance(note=stage)
        progress.close()
        return found


def outlines_of(cell: Cell, image: np.ndarray) -> tuple[Outlines | None, str]:
    """Return a cell's outlines and where they come from: `file`, `segmentation`, or `none`.

    Outlines beside the cell that are broken are replaced by found ones: `segmentation, file broken`.
    """
    source = "segmentation"
    try:
        drawn = outlines_beside(cell, *image.shape[:2])
        if drawn is not None:
            return drawn, "file"
    except BrokenContour:
        source = "segmentation, file broken"
    found = segment(image)
    return (found, source) if found is not None else (None, "none")


def changed(image: np.ndarray, change: str) -> np.ndarray:
    """Return an image, uint8 [S, S, 3], changed in a way that changes nothing of the cell."""
    match change:
        case "mirrored":
            return np.ascontiguousarray(image[:, ::-1])
        case "upside down":
            return np.ascontiguousarray(image[::-1])
        case "shifted":
            by = round(SHIFT * len(image))
            return cv2.copyMakeBorder(image[:-by, :-by], by, 0, by, 0, cv2.BORDER_REFLECT)
        case "brighter" | "darker":
            factor = 1.1 if change == "brighter" else 0.9
            return np.clip(np.round(image * factor), 0, 255).astype(np.uint8)
        case "JPEG 50":
            _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])
            return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    raise ValueError(f"there is no change {change!r}")


def _moved_back(before: np.ndarray, after: np.ndarray, change: str) -> tuple[np.ndarray, np.ndarray]:
    """Return both maps where they show the same place."""
    match change:
        case "mirrored":
            return before, after[:, ::-1]
        case "upside down":
            return before, after[::-1]
        case "shifted":
            by = round(SHIFT * len(before))
            return before[:-by, :-by], after[by:, by:]
    return before, after


def _likeness(before: np.ndarray, after: np.ndarray, side: int) -> dict[str, list[float] | list[bool]]:
    """Return SSIM and rank correlation of maps [N, h, w], pair by pair, each scaled to its own highest.

    An empty map, zero all over, is like nothing and like everything: of a pair with one, neither is defined.
    Which maps are empty is told.
    """
    found: dict[str, list[Any]] = {"ssim": [], "rank": [], "empty_before": [], "empty_after": []}
    for one, other in zip(before, after, strict=True):
        empty = not one.any(), not other.any()
        large = enlarged(one, side), enlarged(other, side)
        found["ssim"].append(float("nan") if any(empty) else ssim(*map(_as_grey, large)))
        found["rank"].append(float("nan") if any(empty) else rank_correlation(*large))
        found["empty_before"].append(empty[0])
        found["empty_after"].append(empty[1])
    return found


def _as_grey(values: np.ndarray) -> np.ndarray:
    """Return a map that is not empty as a grey image, uint8 [S, S, 3], its highest place white."""
    grey = np.round(255 * values / values.max()).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
