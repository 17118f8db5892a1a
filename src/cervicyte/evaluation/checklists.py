"""What a run knows of a reporting checklist, and what only its author can say: a first draft for a paper.

Two checklists: CLAIM 2024 (A. S. Tejani et al., Radiology: Artificial Intelligence 2024) and TRIPOD+AI (G. S.
Collins et al., BMJ 2024). Their items stand shortly, in our own words, in `checklists.yaml`, the BibTeX of
what is cited in `references.bib`. Every figure is read from the run folder; nothing is claimed that is not
there. Of a cross-validation the figures are those of all folds' predictions together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cervicyte import __version__
from cervicyte.datasets.classes import CITATIONS, grouping_of
from cervicyte.errors import RunFolderError, UsageError
from cervicyte.evaluation import last_stage
from cervicyte.evaluation.cross_validation import POOLED_NAME, SUMMARY_NAME, read_summary
from cervicyte.evaluation.cross_validation_page import interval_text
from cervicyte.evaluation.model_card import TERMS
from cervicyte.evaluation.report import NOT_IN_PERCENT, OVERALL_TITLES, figures_of
from cervicyte.evaluation.run import read_metrics
from cervicyte.evaluation.seen import NOT_PATIENTS
from cervicyte.evaluation.tables import PREDICTIONS_NAME, evaluate_predictions, read_predictions
from cervicyte.metrics import DRAWS
from cervicyte.network.description import Metadata
from cervicyte.network.graph import COMBINATIONS
from cervicyte.network.model_file import load_model_file
from cervicyte.network.resnet import NETWORKS, CBAMResNet50, CBAMResNet50Covariance
from cervicyte.pages import counted
from cervicyte.provenance import RESEARCH_USE_ONLY, write_text
from cervicyte.training.loop import MODEL_NAME
from cervicyte.training.recipe import Recipe
from cervicyte.training.start import kind_made

HERE = Path(__file__).parent
DATA_SET_REFERENCES = {"SIPaKMeD": "plissiti2018sipakmed", "Herlev": "jantzen2005herlev"}
REPOSITORY = "https://github.com/cervicyte/cervicyte"
OFF_AT_ONE = ("framing", "scale_low", "scale_high", "foreign")  # augmentations that 1 switches off
PART_OF = {"focus_radius": "focus", "resolution_low": "resolution"}  # a setting -> what switches it on
AUTHOR_ONLY = "**Only the author can say:**"


@dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Attributes:
        item: its number in the source.
        section: where in a paper it belongs.
        text: what it asks for, shortly, in our own words.
        facts: what of `facts_of_run` answers it.
        author: what a run cannot know; empty if there is nothing.
    """

    item: str
    section: str
    text: str
    facts: tuple[str, ...] = ()
    author: str = ""

    def answered(self, facts: Mapping[str, str]) -> tuple[str, list[str]]:
        """Return "known", "partly" or "author", and the sentences that answer the item."""
        said = [facts[name] for name in self.facts if name in facts]
        if not said:
            return "author", said
        complete = len(said) == len(self.facts) and not self.author
        return ("known" if complete else "partly"), said


@dataclass(frozen=True)
class Checklist:
    """A checklist: its title, where its wording stands, and its items in order."""

    title: str
    source: str
    reference: str
    items: tuple[Item, ...]


def read_checklists() -> dict[str, Checklist]:
    """Return name -> checklist, as they are called on the command line."""
    content = yaml.safe_load((HERE / "checklists.yaml").read_text(encoding="utf-8"))
    return {
        name: Checklist(
            title=one["title"],
            source=one["source"].strip(),
            reference=one["reference"],
            items=tuple(Item(**{**item, "facts": tuple(item["facts"])}) for item in one["items"]),
        )
        for name, one in content.items()
    }


def write_checklist(run: Path, name: str, out: Path | None = None, *, force: bool = False) -> Path:
    """Write the draft for a paper, Markdown, and return where it lies.

    Args:
        run: a run folder of `train`, `evaluate` or `probe`, or the folder of a `cross-validate`.
        name: of the checklist, see `read_checklists`.
        out: the file; None is `RUN/checklist_NAME.md`.
        force: replace a draft that is there, which its author may have gone on with.

    Raises:
        RunFolderError: there is no finished run, or a draft is there already.
        UsageError: no such checklist.
    """
    checklists = read_checklists()
    if name not in checklists:
        raise UsageError(f"There is no checklist {name!r}; choose one of {', '.join(checklists)}.")
    metrics = pooled_metrics(run) if (run / SUMMARY_NAME).is_file() else read_metrics(run)
    path = out or run / f"checklist_{name}.md"
    if path.exists() and not force:
        raise RunFolderError(
            f"{path}: is there already, perhaps with what its author added; name another file with --out, or "
            "replace it with --force."
        )
    model = run / MODEL_NAME
    carried = load_model_file(model).metadata if model.is_file() else None
    write_text(path, draft(metrics, checklists[name], carried))
    return path


def draft(metrics: Mapping[str, Any], checklist: Checklist, carried: Mapping[str, Any] | None = None) -> str:
    """Return the draft as Markdown: what is known, what is open, a methods paragraph, BibTeX.

    Args:
        metrics: content of `metrics.json`, or `pooled_metrics`.
        checklist: one of `read_checklists`.
        carried: the metadata of the run's model file, if it is there.
    """
    facts = facts_of_run(metrics, carried)
    answers = [(item, *item.answered(facts)) for item in checklist.items]
    states = [state for _, state, _ in answers]
    lines = [
        f"# {checklist.title}: {metrics['context']['title']}",
        "",
        f"**{RESEARCH_USE_ONLY}**",
        "",
        "A draft, written by `cervicyte report` from the run folder; every figure comes from there. The "
        "items "
        f"are said shortly here; what counts is the source: {checklist.source}.",
        "",
        f"Of {len(checklist.items)} items the run answers {states.count('known')}, and "
        f"{states.count('partly')} in "
        f"part; {states.count('author')} are left to the author.",
        "",
        "## What the run says",
        "",
    ]
    section = ""
    for item, state, said in answers:
        if state == "author":
            continue
        if item.section != section:
            section = item.section
            lines += [f"### {section}", ""]
        lines += [f"**{item.item}. {item.text}.** {' '.join(said)}", ""]
        if item.author:
            lines += [f"{AUTHOR_ONLY} {item.author}", ""]
    lines += [
        "## What only the author can say",
        "",
        "| item | section | asked for | hint |",
        "| --- | --- | --- | --- |",
    ]
    for item, state, _ in answers:
        if state == "author":
            hint = item.author or "The run folder does not say."
            lines.append(f"| {item.item} | {item.section} | {item.text} | {hint} |")
    lines += [
        "",
        "## A methods paragraph",
        "",
        methods_paragraph(metrics, facts),
        "",
        "## BibTeX",
        "",
        "```bibtex",
        bibtex(metrics, facts, checklist),
        "```",
        "",
    ]
    return "\n".join(lines)


def pooled_metrics(folder: Path, draws: int = DRAWS) -> dict[str, Any]:
    """Return the figures of a finished cross-validation in the form of a run's `metrics.json`.

    Predictions of all folds and seeds are taken together, as in its `cross_validation.json`, whose accuracy
    they have; intervals are of the same bootstrap over groups. `context.cross_validation` says what the folds
    were.

    Args:
        folder: holds `cross_validation.json` and the pooled `predictions.csv`.
        draws: of the bootstrap over groups.

    Raises:
        RunFolderError: one of them is missing or damaged.
    """
    summary, file = read_summary(folder), folder / POOLED_NAME
    if not file.is_file():
        raise RunFolderError(
            f"{file}: no such file; finish the cross-validation, or put {POOLED_NAME} beside {SUMMARY_NAME}."
        )
    pooled = read_predictions(file, beside=("seed", "fold"))
    stated, recipe, names = summary["context"], summary["recipe"], summary["class_names"]
    if {*pooled["true_class"]} - {*names} or {f"p_{name}" for name in names} - {*pooled.columns}:
        raise RunFolderError(f"{file}: has other classes than {SUMMARY_NAME}; cross-validate anew.")
    folds = {key: stated[key] for key in ("folds", "seeds", "by")}
    folds |= {key: summary[key] for key in ("figures", "fold_accuracy")}
    context = {**stated, "cross_validation": folds}
    if recipe is not None:
        context["recipe"] = recipe
    if recipe is not None and (settings := Recipe.model_validate(recipe)).classifier != "logistic":
        network = NETWORKS[kind_made(settings)](len(names), settings.placement)
        context["model"] = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "network": network.kind,
            "placement": settings.placement,
            "backbone": {"source": stated["model"]["backbone"]},
            "image_size": stated["model"]["image_size"],
        }
        if parent := stated["model"].get("started_from"):
            context["model"]["started_from"] = {"file": parent}
    figures = figures_of(evaluate_predictions(pooled, names, draws), None, context)
    return {**figures, **{key: summary[key] for key in ("cells", "groups", "provenance")}}


# --- what a run knows ----------------------------------------------------------------------------


def facts_of_run(metrics: Mapping[str, Any], carried: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return name -> sentences, of all that a run folder knows; what it does not know is not there.

    Args:
        metrics: content of `metrics.json`, or `pooled_metrics`.
        carried: the metadata of its model file, if it is there.
    """
    context = metrics["context"]
    classes = metrics["class_names"]
    folds = context.get("cross_validation")
    seeds = len(folds["seeds"]) if folds else 1  # each of which tested every cell
    facts = {
        "intended_use": "Research on single cells, each in an image of its own; not slides, not patients, no "
        "diagnosis and no screening.",
        "classes": f"Each cell has one of {len(classes)} classes, as its data set labels it: "
        f"{', '.join(classes)}.{_groupings(classes)}",
        "predictors": "The pixels of one colour image of one cell, and nothing else; no predictor was chosen "
        "or measured by hand.",
        "missing": "Nothing was imputed. An image that cannot be read ends the command; none was left out.",
        "metrics": "Accuracy, balanced accuracy, macro F1, area under the ROC curve of each class against "
        "the "
        "rest, Cohen's kappa, Matthews correlation, calibration error, Brier score; of each class precision, "
        "recall, specificity and F1; confusion matrix, ROC, precision-recall and reliability curves.",
        "uncertainty": _uncertainty(metrics),
        "performance": _performance(metrics),
        "per_class": _per_class(metrics),
        "test_classes": "Tested cells: "
        + ", ".join(f"{name} {one['support'] // seeds:,}" for name, one in metrics["per_class"].items())
        + ".",
        "failures": _failures(metrics),
        "limitations": " ".join(context.get("caveats") or [NOT_PATIENTS]),
        "software": _software(metrics["provenance"]),
        "protocol": _protocol(context, "each fold's folder" if folds else "the run folder"),
        "availability": f"Code: Cervicyte {__version__}, Apache-2.0, {REPOSITORY}, commit "
        f"`{metrics['provenance'].get('commit', 'unknown')}`; predictions of every tested cell: "
        f"`{POOLED_NAME if folds else PREDICTIONS_NAME}`.",
        "output": "A probability for each class, which sum to 1; the class called is the one with the "
        "highest, "
        "without any other threshold.",
    }
    facts |= _facts_of_data(metrics)
    facts |= _facts_of_folds(metrics) if folds else _facts_of_split(metrics)
    facts |= _facts_of_model(context)
    if recipe := _recipe_of(context):
        facts |= _facts_of_recipe(recipe, metrics)
        if recipe.classifier == "logistic":
            facts |= _facts_of_logistic(recipe)
        elif recipe.classifier == "covariance":
            facts |= _facts_of_covariance(recipe)
        elif recipe.classifier == "last_stage":
            facts |= _facts_of_last_stage(recipe)
    if (abnormal := metrics.get("roll_up", {}).get("abnormal")) is not None:
        facts["diagnostic"] = _diagnostic(abnormal, seeds)
    if carried is not None:
        facts["calibration"] = _calibration(Metadata.model_validate(carried))
    return facts


def _facts_of_data(metrics: Mapping[str, Any]) -> dict[str, str]:
    context, name = metrics["context"], data_set_of(metrics)
    facts = {
        "data_source": f"{name}: {CITATIONS[name]}."
        if name
        else f"The folder `{context['data']}`, "
        f"read as {context['layout']}; it is no published data set that the program knows."
    }
    notes = [note for note in context.get("caveats", ()) if note != NOT_PATIENTS]
    facts["data_notes"] = " ".join(notes) if notes else "Every cell of the folder took part."
    if name:
        facts["design"] = "Retrospective: the images were published before."
        facts["data_terms"] = TERMS[name]
    return facts


def _cells_in_groups(counts: Mapping[str, Any]) -> str:
    return f"{counted(counts['cells'], 'cell')} in {counted(counts['groups'], 'group')}"


def _facts_of_split(metrics: Mapping[str, Any]) -> dict[str, str]:
    context = metrics["context"]
    tested = _cells_in_groups(metrics)
    facts, split = {}, context.get("split")
    if _trained_here(context):
        facts["internal_test"] = f"Tested on {tested} that took no part in training."
        facts["external_test"] = "None in this run: all its cells are of one data set."
    elif context.get("cells_seen_in_training"):
        facts["internal_test"] = context["seen_in_training"]
    if opened := context.get("test_part_opened"):
        facts["internal_test"] = (
            f"{facts.get('internal_test', '')} The test part was opened: {opened}, this one among them."
        ).strip()
    if split is None:
        facts["counts"] = f"{tested} were tested."
        return facts
    parts = [
        f"{part} {_cells_in_groups(split[part])}" for part in ("train", "validation", "test") if part in split
    ]
    facts["counts"] = f"{_sentence('; '.join(parts))}."
    if split.get("folds"):
        facts["partition"] = (
            f"At random, by {split['by']}, stratified by class, into {split['folds']} folds (seed "
            f"{split.get('seed')}): fold {split['fold']} is the test part, about an eighth of the rest the "
            f"validation part. Split file `split.csv`, SHA-256 `{split['hash'][:16]}…`."
        )
    else:
        facts["partition"] = f"By {split.get('by')}; split file `split.csv`, SHA-256 `{split['hash'][:16]}…`."
    facts["disjoint"] = context.get("leak") or (
        "No group of cells, all that is known to show the same place on the glass, stands in two parts. "
        + NOT_PATIENTS
    )
    return facts


def _facts_of_folds(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return what the folds of a cross-validation say of data, partitions and calibration."""
    context = metrics["context"]
    folds, figures = context["cross_validation"], context["cross_validation"]["figures"]
    seeds = ", ".join(map(str, folds["seeds"]))
    times = "once" if len(folds["seeds"]) == 1 else f"once with each of {len(folds['seeds'])} seeds ({seeds})"
    shares = [one["accuracy"] for one in folds["fold_accuracy"]]
    after, before = "expected_calibration_error_after", "expected_calibration_error_before"
    facts = {
        "counts": f"{_cells_in_groups(metrics)}, each tested {times}.",
        "partition": f"At random, by {folds['by']}, stratified by class, into {folds['folds']} folds (seed "
        f"{seeds}). Each fold was the test part once; about an eighth of the rest was the validation part. "
        "Split files: `split.csv` in each fold's folder.",
        "disjoint": context.get("leak")
        or "No group of cells, all that is known to show the same place on the glass, stands in two parts. "
        + NOT_PATIENTS,
        "internal_test": "Every cell was tested by a model in whose training neither it nor a cell of its "
        f"{folds['by']} took part. Accuracy of single folds: {min(shares):.1%} to {max(shares):.1%}. Test "
        f"parts were opened: {context['test_parts_opened']}.",
        "external_test": "None in this run: all its cells are of one data set.",
    }
    if figures[after]["value"] is not None:
        facts["calibration"] = (
            "Probabilities are calibrated by one temperature, for each fold fitted on the predictions of the "
            f"other folds; calibration error before {interval_text(figures[before], before)}, after "
            f"{interval_text(figures[after], after)}. No class is called otherwise for it."
        )
    return facts


def _protocol(context: Mapping[str, Any], where: str) -> str:
    settings = f"every setting stands in `recipe.yaml` and `split.csv` of {where}."
    return f"`{context['command']}`; {settings}" if context.get("command") else _sentence(settings)


def _facts_of_model(context: Mapping[str, Any]) -> dict[str, str]:
    model = context.get("model") or {}
    if "kind" in model:  # of the linear probe
        return {
            "technology": f"Machine learning: {model['kind']}.",
            "model": f"{_sentence(model['kind'])}, at {model['image_size']} pixels.",
            "initialisation": f"Frozen weights: {model['backbone']}.",
            "ensembling": "None: one model.",
        }
    kind = model.get("network", CBAMResNet50.kind)
    network, stages = {
        CBAMResNet50.kind: ("ResNet-50", "four"),
        CBAMResNet50Covariance.kind: (
            "ResNet-50, its last stage replaced by pooling by covariance,",
            "first three",
        ),
    }.get(kind, (f"the network `{kind}`, a ResNet,", "four"))
    attention = {
        "stage": "a CBAM attention module (channel gate, then spatial gate) behind each of its "
        f"{stages} stages",
        "block": "a CBAM attention module in every residual block",
        "none": "no attention module",
    }.get(model.get("placement", ""), "attention modules")
    facts = {
        "technology": f"Deep learning: a convolutional network, {network} with {attention}.",
        "model": f"{_sentence(network)} with {attention}, average pooling and one linear layer; "
        f"{model.get('parameters', 0):,} parameters; input {model.get('image_size')} x "
        f"{model.get('image_size')} pixels, RGB.",
        "ensembling": "None: one network"
        + (", that of its fold, answered for each cell." if context.get("cross_validation") else "."),
        "prediction": f"By the model file{_hash_of_weights(model)}: "
        "`cervicyte predict IMAGES --model MODEL`, or `cervicyte.load_model(MODEL).predict(images)`.",
        "poor_input": "The program refuses files that it cannot read. A model that carries what its training "
        "cells are like says of an image that it is unlike them; what it misses stands in "
        "docs/unlike_training.md.",
    }
    if parent := model.get("started_from"):
        trained = f", which was trained on {parent['data']}" if parent.get("data") else ""
        facts["initialisation"] = f"From another model's weights, `{parent['file']}`{trained}."
    elif backbone := model.get("backbone"):
        first = "at random" if backbone["source"] == "none" else f"from `{Path(backbone['source']).name}`"
        digest = f", SHA-256 `{backbone['sha256'][:16]}…`" if backbone.get("sha256") else ""
        facts["initialisation"] = (
            f"Backbone {first}{digest}; the gates at one half, the classifier at random."
        )
    return facts


def _hash_of_weights(model: Mapping[str, Any]) -> str:
    stated = model.get("weights_sha256")
    return f", weights SHA-256 `{stated[:16]}…`" if stated else " of each fold"


def _facts_of_logistic(recipe: Recipe) -> dict[str, str]:
    """Return what is otherwise where a network keeps its weights and only a classifier was fitted."""
    return {
        "training": "The network kept its weights. Its classifier was fitted to the training cells by "
        "logistic regression on what the network sees; how strongly it is held back, inner folds decided; "
        f"seed {recipe.seed}.",
        "augmentation": "None: each image was seen as it is.",
        "selection": "None: there is one fit and no epochs.",
    }


def _facts_of_covariance(recipe: Recipe) -> dict[str, str]:
    """Return what is otherwise where pooling by covariance took the place of the last stage."""
    return _facts_of_logistic(recipe) | {
        "training": "The network kept its weights but for its last stage, in whose place stands the matrix "
        f"square root of the covariance of {COMBINATIONS} combinations of its channels over the "
        "places of an image: the principal components of the training cells. The classifier was fitted to "
        "the training cells by logistic regression on it; how strongly it is held back, inner folds "
        f"decided; seed {recipe.seed}.",
    }


def _facts_of_last_stage(recipe: Recipe) -> dict[str, str]:
    """Return what is otherwise where the last stage learnt alone, after a regression."""
    return {
        "training": "The classifier was fitted to the training cells by logistic regression on what the "
        "network sees; how strongly it is held back, inner folds decided. Then it learnt together with the "
        f"last stage, all before which stood still: AdamW for {last_stage.EPOCHS} epochs, {last_stage.STEP} "
        f"cells a step, highest learning rate {last_stage.LEARNING_RATE:g} with one epoch of warm-up and a "
        f"cosine, weight decay {last_stage.WEIGHT_DECAY:g}; cross-entropy; gradients cut at norm "
        f"{last_stage.LONGEST_GRADIENT:g}; seed {recipe.seed}.",
        "augmentation": "Each training image was turned by 0, 90, 180 or 270 degrees at random, anew in each "
        "epoch.",
        "selection": "The weights of the last epoch were kept, with no choice by validation.",
    }


def _facts_of_recipe(recipe: Recipe, metrics: Mapping[str, Any]) -> dict[str, str]:
    seen, changed = recipe.preprocessing, recipe.augmentation
    steps = [name for name in ("denoise", "clahe", "white_point") if getattr(seen, name)]
    scale = "its longer side filling it" if seen.scale == "fit" else "all at one scale"
    rest = "its mirror image"
    if seen.scale == "fit" and seen.least_side:
        scale += f" if it has {seen.least_side} pixels or more, and else in proportion"
        rest = "the colour of its border"
    kept = metrics.get("training", {}).get("kept_epoch") or metrics["context"]["model"].get("epoch")
    epoch = f"epoch {kept}" if kept else "one epoch of each fold"
    values = ", ".join(
        f"{name.replace('_', ' ')}{'' if value is True else f' {value:g}'}"
        for name, value in changed.model_dump().items()
        if value and not (name in OFF_AT_ONE and value == 1) and getattr(changed, PART_OF.get(name, name))
    )
    losses = {
        "cross_entropy": f"cross-entropy with label smoothing {recipe.label_smoothing:g}",
        "focal": f"focal loss, gamma {recipe.focal_gamma:g}, label smoothing {recipe.label_smoothing:g}",
    }
    averages = {
        "ema": f"an exponential moving average of the weights (decay {recipe.ema_decay:g}) was evaluated",
        "swa": f"the mean of the weights over the last {recipe.swa_share:.0%} of the steps was evaluated",
        "none": "the last weights were evaluated",
    }
    weights = {
        "auto": "classes weighed by their rarity if one was 1.5 times as frequent as another, else alike",
        "balanced": "classes weighed by their rarity",
        "none": "all classes weighed alike",
    }[recipe.class_weights]
    cost = recipe.missed_abnormal_cost
    return {
        "preprocessing": f"Each image lies on a square of {seen.canvas_size} pixels, {scale}, the rest "
        f"filled "
        f"with {rest} ({seen.resampling} resampling), is resized to {seen.image_size} x "
        f"{seen.image_size} pixels"
        + (f", after {', '.join(steps)}" if steps else "")
        + ", and is normalised channel by channel with fixed constants.",
        "augmentation": f"Random changes of the training images, anew in each epoch: {values or 'none'}.",
        "training": f"AdamW for at most {recipe.epochs} epochs, batches of {recipe.batch_size}, highest "
        f"learning rate {recipe.learning_rate:g} with {_counted(recipe.warm_up_epochs, 'epoch')} of warm-up "
        f"and a cosine, factor {recipe.layer_decay:g} from each stage to the one before, weight decay "
        f"{recipe.weight_decay:g}; {losses[recipe.loss]}; gradients cut at norm "
        f"{recipe.gradient_clip_norm:g}; {_counted(recipe.frozen_stages, 'frozen stage')}; "
        f"{averages[recipe.averaging]}; seed {recipe.seed}.",
        "selection": f"The weights of {epoch} were kept: "
        + (
            "the one with the highest validation accuracy."
            if recipe.keep == "best"
            else "the last one, with no choice by validation."
        ),
        "imbalance": f"In the loss, {weights}"
        + (f"; errors on abnormal cells weighed {cost:g} times." if cost != 1 else "."),
    }


def _recipe_of(context: Mapping[str, Any]) -> Recipe | None:
    """Return the recipe of a run; keys that came later take their defaults, which switch them off."""
    stated = context.get("recipe")
    return Recipe.model_validate(stated) if stated else None


def _trained_here(context: Mapping[str, Any]) -> bool:
    """Return whether the run trained what it tested, and did not load it."""
    return bool(context.get("recipe")) or "kind" in (context.get("model") or {})


def _counted(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _groupings(classes: list[str]) -> str:
    of_class = grouping_of(classes)
    named = {
        kind: [name for name in classes if of_class[name] == kind]
        for kind in ("normal", "benign", "abnormal")
    }
    if not any(named.values()):
        return ""
    said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in named.items() if names)
    return f" Grouped by the data set's authors as {said}."


def _uncertainty(metrics: Mapping[str, Any]) -> str:
    stated = metrics["intervals"]
    return (
        f"{stated['level']:.0%} percentile intervals from {stated['draws']:,} bootstrap draws of whole "
        f"groups "
        f"(seed {stated['seed']}). They do not contain what another training, laboratory or stain would "
        f"change."
    )


def _performance(metrics: Mapping[str, Any]) -> str:
    said = [
        f"{OVERALL_TITLES[name][0]} {_figure(figure, name)}"
        for name, figure in metrics["overall"].items()
        if name in OVERALL_TITLES
    ]
    folds = metrics["context"].get("cross_validation")
    spread = folds["figures"]["accuracy"]["standard_deviation_over_seeds"] if folds else None
    over_seeds = "" if spread is None else f" Standard deviation of the accuracy over seeds: {spread:.2%}."
    return f"On {_cells_in_groups(metrics)}: {'; '.join(said)}.{over_seeds}"


def _per_class(metrics: Mapping[str, Any]) -> str:
    said = [
        f"{name}: precision {_figure(one['precision'])}, recall {_figure(one['recall'])}, "
        f"specificity {_figure(one['specificity'])}"
        for name, one in metrics["per_class"].items()
    ]
    return f"{'; '.join(said)}."


def _diagnostic(abnormal: Mapping[str, Any], seeds: int) -> str:
    called, missed = abnormal["called_abnormal"], abnormal["called_normal"]
    return (
        f"Of {called['of']:,} {_tests('cells of abnormal classes', seeds)} {called['count']:,} were called "
        f"abnormal, {_figure(called)}, and {missed['count']:,} normal, {_figure(missed)}."
    )


def _tests(what: str, seeds: int) -> str:
    return what if seeds == 1 else f"tests of {what} ({seeds} seeds)"


def _failures(metrics: Mapping[str, Any]) -> str:
    names = metrics["class_names"]
    wrong = [
        (count, names[row], names[column])
        for row, counts in enumerate(metrics["confusion_matrix"])
        for column, count in enumerate(counts)
        if row != column and count
    ]
    if not wrong:
        return "No cell was called wrongly."
    most = sorted(wrong, key=lambda one: (-one[0], one[1:]))[:3]
    said = ", ".join(f"{true} called {called} {count:,}" for count, true, called in most)
    count, tests = sum(count for count, _, _ in wrong), sum(map(sum, metrics["confusion_matrix"]))
    what = _tests("cells", tests // metrics["cells"])
    return f"{count:,} of {tests:,} {what} were called wrongly; most: {said}."


def _software(origin: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    return f"{versions}; commit `{origin.get('commit', 'unknown')}`; on {origin['machine']}."


def _calibration(about: Metadata) -> str:
    if not about.calibration:
        return "The model file carries no calibration: its probabilities are the network's own."
    temperature = about.calibration.get("temperature")
    scaled = (
        f"by one temperature, {temperature:.3f}"
        if temperature
        else "by no temperature, which could not be fitted"
    )
    return (
        f"Probabilities are calibrated {scaled}, fitted on "
        f"{_cells_in_groups(about.calibration)} that trained no network and were not tested; no class is "
        "called otherwise for it."
    )


def data_set_of(metrics: Mapping[str, Any]) -> str | None:
    """Return the published data set that a run's cells are of, or None."""
    name = str(metrics["context"]["title"]).partition(":")[0]
    return name if name in CITATIONS else None


def _figure(figure: Mapping[str, Any], name: str = "") -> str:
    if figure["value"] is None:
        return "undefined"
    if name in NOT_IN_PERCENT:
        ends = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
        return f"{figure['value']:.3f}{ends}"
    if figure["low"] is None:
        return f"{figure['value']:.1%}"
    value, _, ends = interval_text(figure).partition(" ")
    return f"{value} % {ends}"


# --- the paragraph and the references ------------------------------------------------------------


# What a paragraph says, in its order. Answers to a checklist's items need not be sentences; here they are: of
# each, how it may begin, and what stands in running text instead.
RUNNING_TEXT: dict[str, tuple[tuple[str, str], ...]] = {
    "data_source": ((r"^The folder", "The cells are those of the folder"), (r"^", "The cells are those of ")),
    "counts": (
        (r", each tested", " were each tested"),
        (
            r"^Train (.*); validation (.*); test (.*)\.$",
            r"\1 were used for training, \2 for validation, and \3 for testing.",
        ),
    ),
    "partition": ((r"^At random", "Cells were assigned at random"), (r"^By", "Cells were assigned by")),
    "disjoint": (),
    "preprocessing": (),
    "model": (
        (r"^ResNet", "The model is a ResNet"),
        (r"^The network", "The model is the network"),
        (r"^Logistic", "The model is a logistic"),
    ),
    "initialisation": (
        (r"^Backbone", "Its backbone began"),
        (r"^From", "It began from"),
        (r"^Frozen weights:", "Its frozen weights are"),
    ),
    "training": ((r"^AdamW", "It was trained by AdamW"),),
    "augmentation": (
        (r"^Random changes of the training images, .*: none", "Training images were not changed"),
        (r"^Random changes of the training images,", "Training images were changed at random,"),
        (r"^None: each image", "In training each image"),
    ),
    "selection": ((r"^None: there is one fit and no epochs\.", ""),),
    "calibration": (),
    "uncertainty": ((r"^(\d+%)", r"In brackets stand \1"),),
    "performance": (),
    "diagnostic": (),
    "software": ((r"^python", "Software: Python"),),
}


def methods_paragraph(metrics: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """Return methods and main result as running text, of what the run knows."""
    sentences = [f"Cells were classified with Cervicyte {__version__} ({REPOSITORY})."]
    for name, changes in RUNNING_TEXT.items():
        said = facts.get(name, "")
        for beginning, instead in changes if said else ():
            changed = re.sub(beginning, instead, said, count=1)
            if changed != said:
                said = changed
                break
        sentences += [said] if said else []
    return " ".join(sentences)


def bibtex(metrics: Mapping[str, Any], facts: Mapping[str, str], checklist: Checklist) -> str:
    """Return the entries of what this run used, and of the program itself."""
    entries = references()
    model = metrics["context"].get("model") or {}
    wanted = [DATA_SET_REFERENCES[name]] if (name := data_set_of(metrics)) else []
    wanted.append("he2016resnet")
    if model.get("placement", "none") != "none":
        wanted.append("woo2018cbam")
    if "training" in facts:
        wanted.append("loshchilov2019adamw")
    if "temperature" in facts.get("calibration", ""):
        wanted.append("guo2017calibration")
    wanted.append(checklist.reference)
    program = f"""@software{{cervicyte,
  title   = {{Cervicyte}},
  author  = {{{{The Cervicyte contributors}}}},
  version = {{{__version__}}},
  url     = {{{REPOSITORY}}},
  note    = {{commit {metrics["provenance"].get("commit", "unknown")}}}
}}"""
    return "\n\n".join([program, *(entries[key] for key in wanted)])


def references() -> dict[str, str]:
    """Return key -> BibTeX entry, of everything in `references.bib`."""
    text = (HERE / "references.bib").read_text(encoding="utf-8")
    return {
        re.split(r"[{,]", entry, maxsplit=2)[1]: entry.strip()
        for entry in re.split(r"\n(?=@)", text)
        if entry.strip()
    }
