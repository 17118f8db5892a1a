"""One model out of several: their weights averaged, so that it costs no more than one to ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cervicyte.errors import ModelFileError, UsageError
from cervicyte.network.model_file import ModelFile, load_model_file
from cervicyte.provenance import sha256_of_file


def soup(paths: Sequence[Path]) -> ModelFile:
    """Return the uniform soup of several model files: the mean of their weights.

    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time", ICML 2022. It holds for networks fine-tuned from the same first
    weights, which differ in seed or settings. The statistics of batch normalisation are averaged too,
    which in theory they should not be (Jordan et al., "REPAIR", ICLR 2023): compare a soup with its
    ingredients on validation cells before using it.

    The metadata that all the files share stay, so that cells seen in training are still known; `soup`
    lists the files with their SHA-256 and recipes. Epoch and validation accuracy are 0: it has none.

    Raises:
        UsageError: fewer than two files.
        ModelFileError: a file is no model, or differs from the first in architecture, classes,
            preprocessing, split or first weights.
    """
    paths = [Path(path) for path in paths]
    if len(paths) < 2:
        raise UsageError("A soup is made of two model files or more; name another.")
    models = [load_model_file(path) for path in paths]
    for path, model in zip(paths, models, strict=True):
        _check_alike(path, model, paths[0], models[0])
    first = models[0]
    first.network.load_state_dict(mean_weights([model.network.state_dict() for model in models]))
    shared = {
        key: value
        for key, value in first.metadata.items()
        if key not in OF_ONE_NETWORK and all(one.metadata.get(key) == value for one in models)
    }
    ingredients = [
        {"file": path.name, "sha256": sha256_of_file(path), "recipe": model.metadata["recipe"]}
        for path, model in zip(paths, models, strict=True)
    ]
    return ModelFile(
        network=first.network,
        class_names=first.class_names,
        preprocessing=first.preprocessing,
        metadata={**shared, "soup": ingredients},
    )


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts of one architecture; whole numbers, such as counts, are the first's."""
    return {
        key: torch.stack([state[key] for state in states]).double().mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }


# What was measured or fitted on one network, and is not true of a mean of several.
OF_ONE_NETWORK = ("provenance", "metrics", "calibration", "familiarity", "cross_validation")

# What ingredients must have in common, by the name that an error gives it.
IN_COMMON: dict[str, Callable[[ModelFile], Any]] = {
    "architecture": lambda model: (model.network.kind, model.network.placement),
    "classes": lambda model: model.class_names,
    "preprocessing": lambda model: model.preprocessing,
    "split": lambda model: model.metadata["split"]["hash"],
    "first weights": lambda model: _first_weights(model.metadata),
}


def _check_alike(path: Path, model: ModelFile, first_path: Path, first: ModelFile) -> None:
    for name, fact_of in IN_COMMON.items():
        try:
            alike = fact_of(model) == fact_of(first)
        except (KeyError, TypeError) as error:
            raise ModelFileError(
                f"{path}: does not say its {name}; make a soup of files that `cervicyte train` wrote."
            ) from error
        if not alike:
            raise ModelFileError(
                f"{path}: differs from {first_path} in its {name}; make a soup of models of one split that "
                "were fine-tuned from the same weights."
            )


def _first_weights(metadata: dict[str, Any]) -> str | int:
    """Return what the first weights followed from: the backbone's file or, without one, the seed."""
    return metadata["backbone"]["sha256"] or metadata["recipe"]["seed"]
