"""What `cervicyte inspect` finds with a network: likely label errors, and shortcuts.

Both rest on out-of-fold probabilities of logistic regression on frozen features. The features are kept
in the inspection's folder, so that a second look takes seconds and an interrupted one goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cervicyte.datasets.inspection import LABEL_ERRORS_FILE
from cervicyte.datasets.inspection_findings import Addition, Finding, Inspection
from cervicyte.datasets.layouts import Cell
from cervicyte.errors import ModelFileError
from cervicyte.evaluation.cross_validation import cached_features, features_key
from cervicyte.evaluation.label_errors import label_error_addition
from cervicyte.evaluation.out_of_fold import (
    FOLDS,
    classes_in_enough_groups,
    fitted_probe,
    out_of_fold_probabilities,
)
from cervicyte.evaluation.seen import refuse_seen
from cervicyte.evaluation.shortcuts import (
    BACKGROUND,
    WHOLE,
    BackgroundOnly,
    row_of,
    shortcut_addition,
    statistics_rows,
)
from cervicyte.evaluation.tables import write_table
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import load_model_file
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import sha256_of_file

FEATURES_FOLDER = "features"
CELLS_IN_FILE = 1000  # of features: what an interruption may cost


def closer_look(
    out: Path,
    *,
    label_errors: bool,
    shortcuts: bool,
    backbone: str = "imagenet",
    preprocessing: Preprocessing | None = None,
    allow_seen: bool = False,
    progress: Progress = SILENT,
) -> Callable[[Inspection], Addition]:
    """Return what `inspect_dataset` asks for findings that need a network.

    Args:
        out: the inspection's folder, which takes `label_errors.csv` and the features.
        label_errors: look for likely label errors.
        shortcuts: look for what predicts the class besides the cell.
        backbone: see `load_backbone`.
        preprocessing: of the crops; the default unless given.
        allow_seen: look even if the weights were trained on some of the cells; a finding then says so.
        progress: is told of every step.

    Raises (when called):
        SplitError: the weights are of a model that was trained on some of the cells.
        WeightsError: the weights cannot be read.
    """
    preprocessing = preprocessing or Preprocessing()

    def look(inspection: Inspection) -> Addition:
        class_names = classes_in_enough_groups(inspection.statistics)
        table = inspection.statistics[inspection.statistics["label"].isin(class_names)].reset_index(drop=True)
        left_out = sorted(set(inspection.statistics["label"]) - set(class_names))
        if len(class_names) < 2:
            return _impossible(progress)
        if left_out:
            progress.say(f"Note: {', '.join(left_out)}: in fewer than {FOLDS} groups, and so not judged.")

        cell_of = {cell.name: cell for cell in inspection.dataset.cells}
        cells = [cell_of[path] for path in table["path"]]
        contents = [sha256_of_file(cell.path) for cell in cells]
        targets = np.searchsorted(np.asarray(class_names), table["label"].to_numpy(str))
        groups = list(table["group"])

        def probe_of(seen: Preprocessing, name: str) -> np.ndarray:
            kept = Path(out) / FEATURES_FOLDER
            features = _features(cells, contents, backbone, seen, kept, name, progress)
            return out_of_fold_probabilities(features, targets, groups, len(class_names), fitted_probe)

        seen_before = _seen_by(backbone, cells, inspection.dataset.root, allow_seen)
        whole = probe_of(preprocessing, WHOLE)
        added = Addition(seen_before, content={"classes_in_too_few_groups": left_out})
        if label_errors:
            addition, doubted = label_error_addition(inspection, table, whole, class_names)
            write_table(doubted, Path(out) / LABEL_ERRORS_FILE)
            added = _together(added, addition)
        if shortcuts:
            background = probe_of(BackgroundOnly(**preprocessing.model_dump()), BACKGROUND)
            progress.start("Shortcuts", 1)
            rows = statistics_rows(table, cells, class_names)
            rows.append(row_of(BACKGROUND, cells, groups, background, class_names))
            rows.append(row_of(WHOLE, cells, groups, whole, class_names))
            progress.close()
            added = _together(added, shortcut_addition(inspection, rows, class_names))
        return added

    return look


def _seen_by(backbone: str, cells: Sequence[Cell], data: Path, allow_seen: bool) -> list[Finding]:
    """Return what is to be said of cells that trained the weights; unless allowed, they are refused."""
    if not Path(backbone).is_file():
        return []
    try:
        model = load_model_file(Path(backbone))
    except ModelFileError:  # weights alone, which know no cell of a laboratory
        return []
    remedy = "look with other weights, or say --allow-seen"
    seen = refuse_seen(model, cells, data, allow_seen, remedy)
    if not seen:
        return []
    text = (
        f"{len(seen):,} of {len(cells):,} cells took part in training the network that looks, or show the "
        "same place as one that did: it has learnt their labels, right or wrong."
    )
    return [Finding("seen-in-training", text, tuple(cell.name for cell in seen))]


def _features(
    cells: Sequence[Cell],
    contents: Sequence[str],
    backbone: str,
    preprocessing: Preprocessing,
    kept: Path,
    name: str,
    progress: Progress,
) -> np.ndarray:
    """Return frozen features, float32 [N, 2048], kept in files of `CELLS_IN_FILE` cells each.

    Args:
        cells: the N cells; `contents` are the SHA-256 of their files.
        backbone, preprocessing: see `frozen_features`.
        kept: the folder of the files, which begin with `name`.
    """
    parts = []
    for start in range(0, len(cells), CELLS_IN_FILE):
        part = slice(start, start + CELLS_IN_FILE)
        key = features_key(contents[part], backbone, preprocessing)
        file = kept / f"{name}_{start // CELLS_IN_FILE:03d}.npz"
        if len(cells) > CELLS_IN_FILE and not file.exists():
            progress.say(f"{name.replace('_', ' ').capitalize()}: from cell {start:,} of {len(cells):,}")
        parts.append(cached_features(cells[part], key, backbone, preprocessing, file, progress))
    return np.concatenate(parts)


def _together(one: Addition, other: Addition) -> Addition:
    return Addition(
        one.findings + other.findings, one.sections + other.sections, {**one.content, **other.content}
    )


def _impossible(progress: Progress) -> Addition:
    reason = (
        f"Likely label errors and shortcuts were not looked for: a cross-validation needs two classes or "
        f"more that each lie in {FOLDS} groups or more."
    )
    progress.say(f"Note: {reason}")
    return Addition(
        sections=[("Likely label errors and shortcuts", f"<p>{reason}</p>")],
        content={"not_looked_for": reason},
    )
