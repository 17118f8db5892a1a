"""The audit of a model's explanations: what they are worth, over many cells that the model has not seen."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cervicyte.datasets.layouts import Cell, read_dataset
from cervicyte.datasets.splits import cells_of, read_split, split_hash, verify_contents
from cervicyte.errors import UsageError
from cervicyte.evaluation.ledger import record_opening
from cervicyte.evaluation.run import facts_of_model, mapped_classes, part_of_split
from cervicyte.evaluation.seen import NOT_PATIENTS, note_on_unknown_training, refuse_seen, remedy_by_split
from cervicyte.explanation import cam
from cervicyte.explanation.audit_cells import (
    ANOTHER_CELL,
    DEFAULT_LAYERS,
    LAYERS_WITHOUT_GATES,
    Auditor,
    AuditSettings,
    stages_of,
)
from cervicyte.explanation.audit_figures import figures_of
from cervicyte.explanation.audit_page import write_audit
from cervicyte.explanation.audit_records import RECORDS_FORMAT, RECORDS_NAME, Audit, append, begin
from cervicyte.explanation.faithfulness import score_precision
from cervicyte.network.model_file import ModelFile, load_model_file, weights_hash
from cervicyte.pages import agreeing, counted
from cervicyte.progress import SILENT, Progress


def audit_model(
    model_path: Path,
    data: Path,
    out: Path,
    *,
    settings: AuditSettings | None = None,
    split_file: Path | None = None,
    part: str | None = None,
    class_map: Mapping[str, str] | None = None,
    allow_seen: bool = False,
    with_pictures: bool = True,
    known_groups: bool = True,
    resume: bool = False,
    force: bool = False,
    command: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Audit the explanations of a model on labelled cells, and write page, figures and table.

    Args:
        model_path: ours, or the original notebook's checkpoint.
        data: folder or manifest of labelled cells.
        out: folder for `explanation_audit.html`, `.json`, `.csv` and the record of each cell.
        settings: how many cells, methods, layers.
        split_file, part: take only the cells of this part; None is the test part.
        class_map: the data set's class names -> the model's, where they differ.
        allow_seen: audit even on cells that took part in training; every artefact then says so.
        with_pictures: whether the page shows cells.
        known_groups: whether SIPaKMeD's fields are grouped by the table that ships with Cervicyte.
        resume: go on with an audit that was interrupted; where there is none, begin it, as training does.
        force: throw away what an earlier audit left in `out`.
        command: the command line, recorded in every artefact.
        progress: is told of every cell.

    Returns:
        The content of `explanation_audit.json`.

    Raises:
        SplitError: cells were seen in training.
        RunFolderError: `out` holds an audit and neither `resume` nor `force` is given, or another one.
        UsageError: a method or layer does not exist, there are no cells, or options have no meaning
            together.
    """
    began = time.monotonic()
    settings = settings or AuditSettings()
    part = part_of_split(split_file, part)
    model = load_model_file(model_path)
    if not settings.layers:
        gated = cam.gated_layers(model.network)
        layers = DEFAULT_LAYERS if gated else LAYERS_WITHOUT_GATES
        # Behind pooling by covariance, no gate stands after the last layer: it is the same layer twice.
        own = tuple(layer for layer in layers if not layer.startswith("cbam") or layer in gated)
        settings = replace(settings, layers=own)
    cam.check_layers(model.network, settings.layers)
    for method in settings.methods:
        cam.method_named(method)
    if settings.sanity_cells == 1:
        raise UsageError(
            "One cell for randomised weights has no other to be held against; give two or more, or 0."
        )
    dataset = read_dataset(data, known_groups)
    for warning in dataset.warnings:
        progress.say(f"Note: {warning}")
    split = None
    candidates: Sequence[Cell] = dataset.cells
    if split_file is not None:
        split = read_split(split_file)
        verify_contents(split, dataset)
        candidates = cells_of(split, dataset, part)
    seen = refuse_seen(model, candidates, data, allow_seen, remedy_by_split("audit"))
    chosen = stratified(candidates, settings.cells, settings.seed)
    if not chosen:
        raise UsageError(f"{data}: has no cells to audit with; choose another part or data set.")
    true_classes = mapped_classes(chosen, model.class_names, class_map or {}, data, dataset.classes)
    header = {
        "records_format": RECORDS_FORMAT,
        "settings": json.loads(json.dumps(asdict(settings))),
        "model": {key: value for key, value in facts_of_model(model).items() if value is not None},
        "class_names": list(model.class_names),
        "score_precision": score_precision(),
        "data": dataset.root.name,
        "cells": [cell.name for cell in chosen],
        "cells_available": len(candidates),
        "cells_seen_in_training": len({cell.name for cell in seen} & {cell.name for cell in chosen}),
        "split": None if split is None else {"hash": split_hash(split), "part": part},
        "caveats": _caveats(model, chosen, seen),
    }
    audit = begin(out, header, resume=resume, force=force)
    if split is not None and split_file is not None and part == "test" and not audit.records:
        record_opening(split_file, split_hash(split), model=weights_hash(model.network), command=command)
    measure(audit, Auditor(model, settings, chosen, true_classes), out / RECORDS_NAME, progress)
    figures = figures_of(audit)
    figures["minutes_of_last_run"] = round((time.monotonic() - began) / 60, 1)
    pictured = {cell.name: cell for cell in chosen} if with_pictures else None
    write_audit(out, figures, model, pictured, command)
    return figures


def stratified(cells: Sequence[Cell], count: int, seed: int) -> list[Cell]:
    """Choose cells: as many of each class as of any other, from as many groups of it as there are.

    They come class by class in turn, so that the first of them are stratified as well.
    """
    rng = np.random.default_rng(seed)
    of_class: dict[str, dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        of_class[cell.label][cell.group].append(cell)
    queues = []
    for label in sorted(of_class):
        groups = list(of_class[label].values())
        shuffled = [[group[place] for place in rng.permutation(len(group))] for group in groups]
        order = rng.permutation(len(shuffled))
        rounds = range(max(map(len, shuffled)))
        queues.append([shuffled[at][turn] for turn in rounds for at in order if turn < len(shuffled[at])])
    longest = max(map(len, queues), default=0)
    in_turn = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return in_turn[:count]


def _caveats(model: ModelFile, chosen: Sequence[Cell], seen: Sequence[Cell]) -> list[str]:
    caveats = [
        NOT_PATIENTS,
        "Maps are measured by taking pixels away; such images are like none that the network was trained on.",
    ]
    of_training = {cell.name for cell in seen} & {cell.name for cell in chosen}
    if of_training:
        caveats.insert(
            0,
            f"{len(of_training)} of {counted(len(chosen), 'cell')} "
            f"{agreeing(len(of_training), 'was', 'were')} seen in training: this audit says nothing of "
            "new cells.",
        )
    if unknown := note_on_unknown_training(model):
        caveats.insert(0, unknown)
    return caveats


def measure(audit: Audit, auditor: Auditor, path: Path, progress: Progress = SILENT) -> None:
    """Measure what is not yet recorded, and append it to the file of records."""
    done = {record["name"] for record in audit.records}
    left = [index for index, cell in enumerate(auditor.cells) if cell.name not in done]
    progress.start("Auditing cells", len(left))
    for index in left:
        audit.records.append(append(path, auditor.record(index)))
        progress.advance(note=auditor.cells[index].label)
    progress.close()
    missing = {ANOTHER_CELL, *(stage for stage, _ in stages_of(auditor.model.network))} - audit.stages.keys()
    if missing and auditor.settings.sanity_cells:
        for stage, maps in auditor.randomised_stages(progress).items():
            if stage in missing:
                audit.stages[stage] = append(path, {"stage": stage, "maps": maps})["maps"]
