"""The model card: what a model is for, what is known of it and what is not, from its file alone.

After M. Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. Every figure stands in the model
file, where a command put it; of what is not there the card says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cervicyte.datasets.classes import CITATIONS, grouping_of, proper_names
from cervicyte.datasets.splits import PARTS
from cervicyte.evaluation.cross_fitting import AFTER, BEFORE
from cervicyte.evaluation.cross_validation_page import DECIMALS, interval_text, number_text, title_of_figure
from cervicyte.evaluation.report import NOT_IN_PERCENT, OVERALL_TITLES
from cervicyte.evaluation.seen import NOT_PATIENTS, note_on_unknown_training
from cervicyte.evaluation.tables import UNDEFINED
from cervicyte.network.description import DEFAULT_NETWORK, Described, Metadata
from cervicyte.network.heads import heads_of
from cervicyte.pages import flat_facts, title_of
from cervicyte.provenance import RESEARCH_USE_ONLY

NOT_MEASURED = "not measured"
RECALL = "recall, "  # begins the key of a class's recall, as in `cross_validation.json`
OF_THE_RECIPE = (
    "seed", "frozen_stages", "epochs", "batch_size", "learning_rate", "layer_decay", "weight_decay",
    "label_smoothing", "class_weights", "ema_decay",
)  # fmt: skip
FIGURE_TITLES = {key: title for key, (title, _) in OVERALL_TITLES.items()}
# What cytologists look for first, where the data set's classes do not have it.
ABSENT_CLASSES = {"SIPaKMeD": "High-grade lesions (HSIL), carcinoma and glandular cells"}
TERMS = {
    "SIPaKMeD": "SIPaKMeD's authors offer its images for experiments and ask to be cited; there is no "
    "licence to pass the images on.",
    "Herlev": "Herlev's images must be had from their authors; under which terms, the file does not know.",
}


def model_card(model: Described) -> str:
    """Return the card of a model as Markdown."""
    about = Metadata.model_validate(model.metadata)
    sections: dict[str, Iterable[str]] = {
        "Intended use": _intended_use(model.class_names),
        "Classes": _classes(model),
        "Data": _data(model, about),
        "Training": _training(model, about),
        **({"Adaptation": _adaptation(about)} if about.adaptation else {}),
        "Figures": _figures(model, about),
        "Calibration": _calibration(about),
        "Known failures": _known_failures(about),
        "Weights and preprocessing": _weights_and_preprocessing(model),
        "Licence": _licence(model, about),
    }
    blocks = [
        f"# Model card: CBAM-ResNet50 for {len(model.class_names)} classes of cervical cells",
        f"**{RESEARCH_USE_ONLY}**",
        "Written by `cervicyte card` from what the model file holds; no figure was typed.",
    ]
    for title, content in sections.items():
        blocks += [f"## {title}", *content]
    return "\n\n".join(blocks) + "\n"


def _intended_use(class_names: Sequence[str]) -> Iterable[str]:
    yield (
        "For researchers, teachers and engineers who study how single cells of Pap smears can be told apart "
        "in images of one cell each, and how far such a network and its explanations can be trusted."
    )
    data_set = (proper_names(class_names) or ("",))[0]
    absent = ABSENT_CLASSES.get(data_set)
    yield (
        "**Out of scope:** diagnosis, screening, and any decision about a person. Cells are judged one by "
        "one, not slides and not patients. Whatever an image shows is called one of the classes below. "
        + (f"{absent} are not among them." if absent else "What is not among them cannot be named.")
    )


def _classes(model: Described) -> Iterable[str]:
    heads = {head.name: head for head in heads_of(model)}
    if chosen := heads.get(str(model.metadata.get("head"))):
        rows = [
            (name, side or "not known")
            for name, side in zip(chosen.class_names, chosen.groupings, strict=True)
        ]
        yield _table(("Class", "Grouping, published or declared by who trained it"), rows)
        others = ", ".join(f"`{name}`" for name in heads if name != chosen.name) or "none"
        yield (
            f"This is the class list of `{chosen.name}`, and so is all below that is of one data set. Other "
            f"lists in the file, for `--head`: {others}. One unit, which all share, tells abnormal cells "
            "from others; its probability is not calibrated."
        )
        return
    groupings = grouping_of(model.class_names)
    rows = [(name, groupings[name] or "not known") for name in model.class_names]
    yield _table(("Class", "Grouping by the data set's authors"), rows)


def _data(model: Described, about: Metadata) -> Iterable[str]:
    if about.data is None:
        yield "The file does not name the data."
    else:
        yield f"Trained on `{about.data}`" + (f", which is {about.data_set}." if about.data_set else ".")
    parts = {part: about.split[part] for part in PARTS if isinstance(about.split.get(part), Mapping)}
    if parts:
        rows = [
            (part, _count(facts.get("cells")), _count(facts.get("groups"))) for part, facts in parts.items()
        ]
        yield _table(("Part", "Cells", "Groups"), rows)
        yield _facts({f"Split, {key}": value for key, value in about.split.items() if key not in PARTS})
        yield about.leak or "No group stands in more than one part."
    yield note_on_unknown_training(model) or (
        f"The file carries the hashes of {len(about.seen.sha256):,} cells that trained it or chose its "
        f"epoch, and {len(about.seen.groups):,} known groups of theirs: `evaluate`, `audit` and `inspect` "
        "refuse such cells unless `--allow-seen` is given."
    )
    caveats = about.caveats or [NOT_PATIENTS]
    yield "\n".join(f"- {caveat}" for caveat in caveats if caveat != about.leak)


def _training(model: Described, about: Metadata) -> Iterable[str]:
    if model.original:
        yield "By the original notebook; the file says no more of it."
        return
    further = about.model_extra or {}
    yield _facts(
        {
            "backbone": about.backbone,
            "started_from": {key: about.parent.get(key) for key in ("file", "sha256", "data")},
            "classifier": about.classifier,
            "network": None if model.kind == DEFAULT_NETWORK else model.kind,
            "placement": model.placement,
            **{key: about.recipe[key] for key in OF_THE_RECIPE if key in about.recipe},
            "epoch_that_was_kept": model.epoch or None,
            "its_validation_accuracy": f"{100 * model.best_validation_accuracy:.1f} %"
            if model.epoch and model.best_validation_accuracy
            else None,  # trained on all cells
            **{key: further.get(key) for key in ("precision", "device", "training_minutes")},
            **{key: about.provenance.get(key) for key in ("written", "commit", "machine", "versions")},
        }
    )


def _adaptation(about: Metadata) -> Iterable[str]:
    yield (
        "After training, the model was fitted to another laboratory's unlabelled images. Figures and "
        "calibration below are those from before; how good it is there has not been measured."
    )
    yield _facts(about.adaptation)


def _figures(model: Described, about: Metadata) -> Iterable[str]:
    tested, of_classes = (about.metrics.get(key) or {} for key in ("test", "test_per_class"))
    validated = cross_validated(about)
    if not tested and not validated:
        yield f"{title_of(NOT_MEASURED)}."
        return
    if tested:
        yield "On the test part:"
        recalls = {f"{RECALL}{name}": figures.get("recall") for name, figures in of_classes.items()}
        yield _figure_table({**tested, **recalls})
    if validated:
        counts = {key: about.cross_validation.get(key) for key in ("cells", "groups")}
        said = ", ".join(f"{_count(count)} {key}" for key, count in counts.items() if count is not None)
        yield f"In a cross-validation of networks trained alike{f' ({said})' if said else ''}:"
        rows = [(validated_title(key), validated_text(key, validated[key])) for key in validated]
        yield _table(("Figure", "Value"), rows)
    yield "In brackets: 95 % intervals from a bootstrap over groups."
    if "rounded_from_sha256" in model.metadata:
        yield (
            "The weights were rounded to float16 when this file was written; what training measured was "
            "measured before."
        )


def _calibration(about: Metadata) -> Iterable[str]:
    if not about.calibration:
        yield f"{title_of(NOT_MEASURED)}."
        return
    yield _facts({key: value for key, value in about.calibration.items() if key != "classes"})
    of_classes = about.calibration.get("classes") or []
    rows = [
        (
            str(one["name"]),
            "in every set" if one["threshold"] is None else f"{one['threshold']:.3f}",
            _count(one["cells"]),
            _count(one["groups"]),
        )
        for one in of_classes
    ]
    if rows:
        yield "In a prediction set from this probability on, and what that was fitted on:"
        yield _table(("Class", "Threshold", "Cells", "Groups"), rows)


def _known_failures(about: Metadata) -> Iterable[str]:
    validated = cross_validated(about)
    recalls = {
        "on the test part": {
            name: figures.get("recall")
            for name, figures in (about.metrics.get("test_per_class") or {}).items()
        },
        "in cross-validation": {
            key.removeprefix(RECALL): figure for key, figure in validated.items() if key.startswith(RECALL)
        },
    }
    abnormal = (about.metrics.get("test_roll_up") or {}).get("abnormal", {})
    missed = {
        "on the test part": abnormal.get("called_normal"),
        "in cross-validation": validated.get("abnormal_called_normal"),
    }
    worst = [f"{_worst(figures)} {where}" for where, figures in recalls.items() if _worst(figures)]
    called = [f"{_share(figure)} {where}" for where, figure in missed.items() if is_defined(figure)]
    yield f"- Class that is most often missed: {'; '.join(worst) or NOT_MEASURED}."
    yield f"- Abnormal cells called normal: {'; '.join(called) or NOT_MEASURED}."


def _weights_and_preprocessing(model: Described) -> Iterable[str]:
    yield _facts(
        {
            "sha256_of_the_weights": model.weights_sha256,
            "rounded_to_float16_from": model.metadata.get("rounded_from_sha256"),
            "parameters": model.parameter_count,
            "preprocessing": {
                **model.preprocessing.model_dump(),
                "fingerprint": model.preprocessing.fingerprint(),
            },
        }
    )


def _licence(model: Described, about: Metadata) -> Iterable[str]:
    licence = (about.model_extra or {}).get("licence")
    yield f"Weights: {licence}." if licence else "The file states no licence of the weights."
    if about.data_set in TERMS:
        yield f"{TERMS[about.data_set]} Cite: {CITATIONS[about.data_set]}."
    else:
        yield "Under which terms the training images may be used is not known."
    source = about.backbone.get("source")
    if source not in (None, "none"):
        yield f"The first weights, {source}, have terms of their own."


# --- figures as text ---------------------------------------------------------------------------


def cross_validated(about: Metadata) -> dict[str, Any]:
    """Return the figures of `cross_validation.json`, as far as the model file has them."""
    return about.cross_validation.get("figures") or {}


def _worst(recalls: Mapping[str, Any]) -> str | None:
    """Return the class of lowest recall with its figure, or None if no recall is known."""
    known = {name: figure for name, figure in recalls.items() if is_defined(figure)}
    if not known:
        return None
    name = min(known, key=lambda name: known[name]["value"])
    return f"{name}, recall {figure_text('recall', known[name])}"


def _share(figure: Mapping[str, Any]) -> str:
    counts = f"{figure['count']:,} of {figure['of']:,}, " if {"count", "of"} <= figure.keys() else ""
    return counts + figure_text("rate", figure)


def is_defined(figure: Any) -> bool:
    """Return whether a figure was measured and has a value."""
    return isinstance(figure, Mapping) and figure.get("value") is not None


def _figure_table(figures: Mapping[str, Any]) -> str:
    rows = [(FIGURE_TITLES.get(key, _sentence_case(key)), figure_text(key, figures[key])) for key in figures]
    return _table(("Figure", "Value"), rows)


def validated_title(key: str) -> str:
    """Return how a figure of a cross-validation is called."""
    name, _, when = key.rpartition("_")
    if when in (BEFORE, AFTER):
        return f"{title_of_figure(name)}, {'calibrated' if when == AFTER else 'as the network gives it'}"
    return title_of_figure(key).replace("_", " ")


def validated_text(key: str, figure: Any) -> str:
    """Return a figure of a cross-validation with its interval, as on that one's page."""
    if not is_defined(figure):
        return UNDEFINED
    unit = "" if key in DECIMALS else " %"
    if figure.get("low") is None or figure.get("high") is None:
        return number_text(figure["value"], key) + unit
    value, interval = interval_text(figure, key).split(" ", 1)
    return f"{value}{unit} {interval}"


def _sentence_case(key: str) -> str:
    """Return a key in words; a class in it keeps its capitals."""
    return (key[:1].upper() + key[1:]).replace("_", " ")


def figure_text(key: str, figure: Any) -> str:
    """Return value and interval, in percent unless it is no share."""
    if not is_defined(figure):
        return UNDEFINED
    as_it_is = key in NOT_IN_PERCENT or key.endswith("_auc")

    def text(value: float, unit: str = "") -> str:
        return f"{value:.3f}" if as_it_is else f"{100 * value:.1f}{unit}"

    if figure.get("low") is None or figure.get("high") is None:
        return text(figure["value"], " %")
    return f"{text(figure['value'], ' %')} [{text(figure['low'])}, {text(figure['high'])}]"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "not known"


def _facts(facts: Mapping[str, Any]) -> str:
    """Return names and JSON values as a table; what is None is left out."""
    return _table(("", ""), list(flat_facts(facts)))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_in_a_cell(text) for text in line)} |" for line in lines)


def _in_a_cell(text: str) -> str:
    """Return text that ends no cell of a table and begins no markup: classes are named as folders are."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
