"""How well a model tells what is unlike its training cells: another laboratory's cells, and no cells at all.

    OMP_NUM_THREADS=1 python benchmarks/unlike_training.py runs/sipakmed --data ../shared/data/sipakmed \
        --foreign ../shared/data/herlev --out docs/results/unlike_training.json

The familiarity is fitted on the run's training part, and its thresholds on the validation part, as they would
travel with the model. It is judged on the test part, which goes into the split's ledger, on all cells of the
foreign data sets, and on images that show no cell, in the sizes of the test cells so that size tells nothing.
None of these needs a download. The photographs are three, and the images of other microscopes two, which
scikit-image brings (`pip install '.[benchmark]'`); `--pictures FOLDER` takes more.
Other distances of features are compared on validation cells in place of test cells.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib.cbook
import numpy as np
from sklearn.datasets import load_sample_image
from sklearn.metrics import roc_auc_score

from cervicyte import metrics
from cervicyte.datasets.layouts import Cell, read_dataset
from cervicyte.datasets.splits import cells_of, read_split, split_hash
from cervicyte.datasets.synthetic_fields import draw_scene
from cervicyte.evaluation.familiarity import (
    FEATURES,
    NOT_A_CELL,
    UNLIKE_RATE,
    Familiarity,
    distances_of,
    fit_familiarity,
    fit_spaces,
    normal_score,
    rarity,
)
from cervicyte.evaluation.feature_space import DIRECTIONS, FeatureSpace, unit_length
from cervicyte.evaluation.features import STAGES, pooled_features
from cervicyte.evaluation.ledger import record_opening
from cervicyte.images.corruptions import corrupted
from cervicyte.images.reader import IMAGE_SUFFIXES, read_image
from cervicyte.images.segmentation import segment
from cervicyte.images.statistics import STATISTICS, image_statistics
from cervicyte.network.model_file import ModelFile, load_model_file, weights_hash
from cervicyte.provenance import provenance, write_json

DRAWN_SCENES = 10  # empty places on the glass that the background is cut from
SCENE_SIDE = 640  # pixels
AT_ONCE = 64  # images in memory
MICROSCOPY = "other microscopy"
NEIGHBOUR = 10  # the nearest training cell that counts, for comparison


class Seen:
    """What is kept of images: features of each stage, statistics [N, 5], whether a nucleus was found [N], and
    what each image shares with others, its field or its photograph [N]."""

    def __init__(
        self, features: dict[str, np.ndarray], statistics: np.ndarray, nucleus: np.ndarray, places: np.ndarray
    ) -> None:
        self.features, self.statistics, self.nucleus, self.places = features, statistics, nucleus, places


def seen_of(
    model: ModelFile,
    count: int,
    image_of: Callable[[int], np.ndarray],
    title: str,
    places: Sequence[str] | None = None,
) -> Seen:
    """Look at `count` images, a few at a time; without places each stands for itself."""
    features, statistics, nucleus = [], [], []
    for start in range(0, count, AT_ONCE):
        images = [image_of(place) for place in range(start, min(count, start + AT_ONCE))]
        ready = np.stack([model.preprocessing(image) for image in images])
        features.append(pooled_features(model.network, ready, model.preprocessing))
        statistics += [image_statistics(image) for image in images]
        nucleus += [segment(image) is not None for image in images]
        print(f"\r{title}: {start + len(images)} of {count}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    together = {stage: np.concatenate([one[stage] for one in features]) for stage in STAGES}
    alone = [f"{title} {number}" for number in range(count)]
    return Seen(together, np.array(statistics), np.array(nucleus), np.array(places or alone))


def pooled(several: Sequence[Seen]) -> Seen:
    """Return several kinds as one."""
    return Seen(
        {stage: np.concatenate([one.features[stage] for one in several]) for stage in STAGES},
        np.concatenate([one.statistics for one in several]),
        np.concatenate([one.nucleus for one in several]),
        np.concatenate([one.places for one in several]),
    )


def reader_of(paths: Sequence[Path]) -> Callable[[int], np.ndarray]:
    return lambda place: read_image(paths[place])


def cells_seen(model: ModelFile, cells: Sequence[Cell], title: str) -> Seen:
    places = [f"{title} {cell.group}" for cell in cells]
    return seen_of(model, len(cells), reader_of([cell.path for cell in cells]), title, places)


# --- what is no cell -----------------------------------------------------------------------------


def no_cells(cells: Sequence[Cell], seed: int) -> dict[str, tuple[str, str, Callable[[int], np.ndarray]]]:
    """Return of each kind its group, its source in words, and what draws an image of a number."""
    sides = [round(float(np.sqrt(np.prod(read_image(cell.path).shape[:2])))) for cell in cells]
    photographs = {
        "photograph: temple": ("scikit-learn's china.jpg", load_sample_image("china.jpg")),
        "photograph: flower": ("scikit-learn's flower.jpg", load_sample_image("flower.jpg")),
        "photograph: portrait": (
            "matplotlib's grace_hopper.jpg",
            read_image(Path(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))),
        ),
    }
    microscopy = {
        f"other microscopy: {what}": (f"scikit-image's {file}", image) for what, file, image in _microscopy()
    }
    scenes = [draw_scene(seed, number, SCENE_SIDE, SCENE_SIDE, 0).image for number in range(DRAWN_SCENES)]

    def drawn(
        kind: str, draw: Callable[[np.random.Generator, int], np.ndarray]
    ) -> Callable[[int], np.ndarray]:
        def of(number: int) -> np.ndarray:
            rng = np.random.default_rng([seed, number, *kind.encode()])
            values = draw(rng, sides[int(rng.integers(len(sides)))])
            return np.clip(np.round(values), 0, 255).astype(np.uint8)

        return of

    def blurred(severity: int) -> Callable[[int], np.ndarray]:
        order = np.random.default_rng(seed).permutation(len(cells))
        return lambda number: corrupted(
            read_image(cells[order[number % len(cells)]].path), "defocus blur", severity
        )

    kinds = {
        name: (group, f"crops of one {group}, {source}", drawn(name, _crop_of(image)))
        for group, images in (("photograph", photographs), (MICROSCOPY, microscopy))
        for name, (source, image) in images.items()
    }
    for name, (group, source, draw) in DRAWN.items():
        kinds[name] = (group, source, drawn(name, draw))
    kinds["background, drawn"] = (
        "background",
        f"crops of {DRAWN_SCENES} synthetic places on the glass without cells",
        drawn("background", lambda rng, side: _window(scenes[int(rng.integers(len(scenes)))], rng, side)),
    )
    for severity in (3, 5):
        kinds[f"defocus, strength {severity}"] = (
            "out of focus",
            f"home cells, defocus blur of strength {severity} of 5 (images/corruptions.py), 224 pixels wide",
            blurred(severity),
        )
    return kinds


def _microscopy() -> list[tuple[str, str, np.ndarray]]:
    """Return what other microscopes see, as far as scikit-image, which carries it, is installed."""
    try:
        from skimage import data
    except ImportError:
        print("scikit-image is not installed: other microscopy is left out.", file=sys.stderr)
        return []
    return [
        ("tissue, immunohistochemistry", "ihc.png", data.immunohistochemistry()),
        ("cells, transmitted light", "cell.png", np.repeat(data.cell()[:, :, np.newaxis], 3, axis=2)),
    ]


def _crop_of(image: np.ndarray) -> Callable[[np.random.Generator, int], np.ndarray]:
    def draw(rng: np.random.Generator, side: int) -> np.ndarray:
        most = min(image.shape[:2])
        window = _window(image, rng, int(rng.integers(min(side, most), most + 1)))
        return cv2.resize(window, (side, side), interpolation=cv2.INTER_AREA)

    return draw


def _window(image: np.ndarray, rng: np.random.Generator, side: int) -> np.ndarray:
    side = min(side, *image.shape[:2])
    top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def _uniform(rng: np.random.Generator, side: int) -> np.ndarray:
    return rng.uniform(0, 255, (side, side, 3))


def _gaussian(rng: np.random.Generator, side: int) -> np.ndarray:
    return rng.uniform(90, 235, 3) + rng.normal(0, rng.uniform(5, 60), (side, side, 3))


def _clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    values = cv2.GaussianBlur(rng.normal(0, 1, (side, side, 3)), (0, 0), rng.uniform(1.5, 12))
    return rng.uniform(90, 220, 3) + rng.uniform(10, 50) * values / values.std()


def _dead_pixels(rng: np.random.Generator, side: int) -> np.ndarray:
    values = np.ones((side, side, 3)) * rng.uniform(90, 235, 3)
    which, share = rng.random((side, side)), rng.uniform(0.02, 0.3)
    values[which < share / 2], values[which > 1 - share / 2] = 0, 255
    return values


def _one_colour(rng: np.random.Generator, side: int) -> np.ndarray:
    return np.ones((side, side, 3)) * rng.uniform(0, 255, 3)


def _clear_glass(rng: np.random.Generator, side: int) -> np.ndarray:
    return rng.uniform((195, 200, 205), (245, 245, 250)) + rng.normal(0, 1.5, (side, side, 3))


def _gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    one, other, angle = rng.uniform(60, 250, 3), rng.uniform(60, 250, 3), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:side, :side] / side - 0.5
    share = np.clip(x * np.cos(angle) + y * np.sin(angle) + 0.5, 0, 1)[..., None]
    return one + (other - one) * share


DRAWN: dict[str, tuple[str, str, Callable[[np.random.Generator, int], np.ndarray]]] = {
    "noise: uniform": ("noise", "every value of every pixel at random", _uniform),
    "noise: Gaussian": ("noise", "about one colour, standard deviation 5 to 60", _gaussian),
    "noise: clouds": ("noise", "Gaussian noise blurred by 1.5 to 12 pixels", _clouds),
    "noise: dead pixels": ("noise", "2 to 30 % black or white pixels on one colour", _dead_pixels),
    "blank: one colour": ("blank", "any colour, without noise", _one_colour),
    "blank: clear glass": (
        "blank",
        "the colour of clear glass, camera noise of 1.5 grey levels",
        _clear_glass,
    ),
    "blank: gradient": ("blank", "from one colour to another in a straight line", _gradient),
}


# --- figures -------------------------------------------------------------------------------------


def auroc(home: np.ndarray, other: np.ndarray) -> float:
    """Return how often another image scores higher than a home cell."""
    truth = np.repeat([0, 1], [len(home), len(other)])
    return round(float(roc_auc_score(truth, np.concatenate([home, other]))), 4)


def with_intervals(home: Seen, other: Seen, scores: Sequence[np.ndarray], flagged: np.ndarray) -> list[Any]:
    """Return the area under the curve and the share flagged, each with its interval from drawing places."""
    foreign = np.repeat([False, True], [len(home.places), len(other.places)])
    values = np.concatenate(scores)

    def statistic(weights: np.ndarray) -> np.ndarray:
        own = weights[:, foreign]
        share = metrics.ratio(own @ flagged, own.sum(-1))
        return np.stack([metrics.auc(foreign, values, weights), share], axis=-1)

    places = [*(f"home {place}" for place in home.places), *(f"other {place}" for place in other.places)]
    found = metrics.group_bootstrap(places, statistic)
    return [
        {
            end: None if np.isnan(value) else round(float(value), 4)
            for end, value in zip(("value", "low", "high"), ends, strict=True)
        }
        for ends in zip(*found, strict=True)
    ]


def figures_of(familiarity: Familiarity, home: Seen, other: Seen) -> dict[str, Any]:
    """Return the area under the curve and the shares flagged of one kind of images."""
    scores = [familiarity.scores(seen.features, seen.statistics) for seen in (home, other)]
    kinds = np.array([one.kind for one in familiarity.judge(other.features, other.statistics)])
    area, flagged = with_intervals(
        home, other, [rarity(each).max(1) for each in scores], (kinds != "familiar").astype(float)
    )
    return {
        "images": len(kinds),
        "auroc": area,
        "auroc_of": {
            name: auroc(*(rarity(each)[:, place] for each in scores))
            for place, name in enumerate((*STATISTICS, FEATURES))
        },
        "flagged": flagged,
        "flagged_as_no_cell": round(float((kinds == "not_a_cell").mean()), 4),
        "nucleus_found": round(float(other.nucleus.mean()), 4),
        "features_score_median": round(float(np.median(scores[1][:, -1])), 2),
    }


def distances_compared(
    training: Seen, targets: np.ndarray, home: Seen, others: dict[str, Seen]
) -> dict[str, dict[str, float]]:
    """Return the area under the curve of several distances of features alone, for each kind."""

    def mahalanobis(stage: str, size: int) -> Callable[[Seen], np.ndarray]:
        space = FeatureSpace.fit(training.features[stage], targets, size)
        return lambda seen: space.distances(seen.features[stage])

    def relative(stage: str) -> Callable[[Seen], np.ndarray]:
        """Squared distance to the nearest class less that to all cells (J. Ren et al., 2021)."""
        near = FeatureSpace.fit(training.features[stage], targets)
        overall = FeatureSpace.fit(training.features[stage], np.zeros(len(targets), int))
        return lambda seen: (
            near.distances(seen.features[stage]) ** 2 - overall.distances(seen.features[stage]) ** 2
        )

    def neighbours(stage: str) -> Callable[[Seen], np.ndarray]:
        """1 - cosine to the tenth nearest training cell (Y. Sun et al., ICML 2022), which keeps them all."""
        unit = unit_length(training.features[stage])
        return lambda seen: 1 - np.sort(unit_length(seen.features[stage]) @ unit.T, axis=1)[:, -NEIGHBOUR]

    def averaged(seen: Seen) -> np.ndarray:
        """What is used: the mean of both stages' scores."""
        scores = []
        for stage in STAGES:
            distance = mahalanobis(stage, DIRECTIONS)
            scores.append(normal_score(distance(seen), np.percentile(distance(home), range(101))))
        return np.asarray(np.mean(scores, axis=0))

    candidates: dict[str, Callable[[Seen], np.ndarray]] = {"both stages": averaged}
    for stage in STAGES:
        for size in (16, 64, DIRECTIONS):
            candidates[f"{stage}: Mahalanobis, {size} directions"] = mahalanobis(stage, size)
        candidates[f"{stage}: relative Mahalanobis"] = relative(stage)
        candidates[f"{stage}: 10th neighbour"] = neighbours(stage)
    found = {}
    for name, distance in candidates.items():
        at_home = distance(home)
        found[name] = {kind: auroc(at_home, distance(seen)) for kind, seen in others.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder with best_model.pth and split.csv")
    parser.add_argument("--data", type=Path, required=True, help="the data set that it was trained on")
    parser.add_argument("--foreign", type=Path, action="append", default=[], help="another laboratory's")
    parser.add_argument(
        "--pictures", type=Path, action="append", default=[], help="folder of images that show no cell"
    )
    parser.add_argument("--images", type=int, default=100, help="of each kind that shows no cell")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn")
    parser.add_argument("--out", type=Path, default=Path("unlike_training.json"))
    options = parser.parse_args()
    command = shlex.join(["python", *sys.argv])

    weights, split_path = options.run / "best_model.pth", options.run / "split.csv"
    model, split, dataset = load_model_file(weights), read_split(split_path), read_dataset(options.data)
    parts = {part: cells_of(split, dataset, part) for part in ("train", "validation", "test")}
    model_hash = weights_hash(model.network)
    openings = record_opening(split_path, split_hash(split), model=model_hash, command=command)

    seen = {part: cells_seen(model, cells, part) for part, cells in parts.items()}
    targets = np.array([model.class_names.index(cell.label) for cell in parts["train"]])
    spaces = fit_spaces(seen["train"].features, targets)
    familiarity = fit_familiarity(
        spaces,
        seen["train"].statistics,
        distances_of(spaces, seen["validation"].features),
        seen["validation"].statistics,
        [cell.group for cell in parts["validation"]],
    )

    groups, sources, others = {}, {}, {}
    for root in options.foreign:
        foreign = read_dataset(root)
        name = f"cells of {foreign.known or root.name}"
        groups[name], sources[name] = "foreign cells", f"all {len(foreign.cells)} cells"
        others[name] = cells_seen(model, foreign.cells, name)
    for folder in options.pictures:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        groups[folder.name], sources[folder.name] = folder.name, f"all {len(paths)} images of the folder"
        others[folder.name] = seen_of(model, len(paths), reader_of(paths), folder.name)
    for name, (group, source, draw) in no_cells(parts["test"], options.seed).items():
        groups[name], sources[name] = group, source
        # Crops of one photograph are one source, however many.
        one_source = [name] * options.images if group in ("photograph", MICROSCOPY) else None
        others[name] = seen_of(model, options.images, draw, name, one_source)

    judged = {
        name: {"group": groups[name], "source": sources[name], **figures_of(familiarity, seen["test"], other)}
        for name, other in others.items()
    }
    of_home = figures_of(familiarity, seen["test"], seen["test"])
    content = {
        "provenance": provenance(command),
        "what": "Area under the ROC curve of how unlike the training cells an image is, test cells against "
        "each kind of other images, and the shares of each kind that are flagged. Of one network. Intervals: "
        "95 % percentile bootstrap of whole groups of cells, of photographs, and of drawn images one by one.",
        "weights": model_hash,
        "split": split_hash(split),
        "test_part": openings,
        "seed": options.seed,
        "fitted": {
            "training_cells": familiarity.usual.training_cells,
            "reference_cells": familiarity.usual.reference_cells,
            "reference_groups": familiarity.usual.reference_groups,
            "unlike_beyond": round(familiarity.usual.unlike_beyond, 3),
            "rate": round(familiarity.usual.rate, 4),
            "rate_asked": UNLIKE_RATE,
            "not_a_cell_beyond_standard_deviations": NOT_A_CELL,
            "directions": DIRECTIONS,
            "tensor_bytes": sum(tensor.nbytes for tensor in familiarity.tensors().values()),
        },
        "home": {key: of_home[key] for key in ("images", "flagged", "flagged_as_no_cell", "nucleus_found")},
        "groups": {
            group: figures_of(
                familiarity, seen["test"], pooled([others[name] for name in others if groups[name] == group])
            )
            for group in dict.fromkeys(groups.values())
        },
        "others": judged,
        "distances_compared_on_validation_cells": distances_compared(
            seen["train"], targets, seen["validation"], others
        ),
    }
    write_json(options.out, content)
    print(f"{options.out}: of {of_home['images']} home cells {of_home['flagged']['value']:.1%} are flagged")
    for name, figures in judged.items():
        area, flagged = figures["auroc"]["value"], figures["flagged"]["value"]
        print(f"  {name}: AUROC {area:.3f}, flagged {flagged:.1%}")


if __name__ == "__main__":
    main()
