"""What a training starts from: a backbone's weights, or a model that was trained before, its parent.

A parent brings its preprocessing and the place of its gates along, unless the recipe states others. Its
classifier is replaced; classes of the same name keep their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cervicyte.errors import RecipeError
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.backbone import load_backbone
from cervicyte.network.description import shipped_model
from cervicyte.network.model_file import ModelFile, load_model_file, weights_hash
from cervicyte.network.resnet import NETWORKS, CBAMResNet50, CBAMResNet50Covariance
from cervicyte.provenance import sha256_of_file
from cervicyte.training.recipe import NO_PARENT, SHIPPED, Recipe


def parent_path(recipe: Recipe) -> Path | None:
    """Return the model file that the recipe starts from, None if it starts from a backbone.

    Raises:
        ModelFileError: the shipped model is named, and this build ships none.
    """
    if recipe.parent == NO_PARENT:
        return None
    return shipped_model() if recipe.parent == SHIPPED else Path(recipe.parent)


def load_parent(recipe: Recipe) -> ModelFile | None:
    """Return the model that the recipe starts from, None if it starts from a backbone.

    Raises:
        ModelFileError: it is missing, damaged or foreign.
    """
    path = parent_path(recipe)
    return None if path is None else load_model_file(path)


def with_parents_settings(recipe: Recipe, parent: ModelFile | None) -> Recipe:
    """Return the recipe with the parent's preprocessing, network and placement where it states none.

    Raises:
        RecipeError: it states another network or placement, for which the parent has no weights.
    """
    if parent is None:
        return recipe
    stated = recipe.preprocessing.model_dump(include=recipe.preprocessing.model_fields_set)
    preprocessing = Preprocessing.model_validate({**parent.preprocessing.model_dump(), **stated})
    placement, network = parent.network.placement, parent.network.kind
    if "network" in recipe.model_fields_set and recipe.network != network:
        raise RecipeError(
            f"network = {recipe.network!r} will not do: the model to start from is a {network}; leave the "
            "key out."
        )
    if "placement" in recipe.model_fields_set and recipe.placement != placement:
        raise RecipeError(
            f"placement = {recipe.placement!r} will not do: the model to start from has its gates at "
            f"{placement!r}; leave the key out."
        )
    return recipe.model_copy(
        update={"preprocessing": preprocessing, "network": network, "placement": placement}
    )


def kind_made(recipe: Recipe) -> str:
    """Return which network the training of a recipe leaves, of `resnet.NETWORKS`."""
    return CBAMResNet50Covariance.kind if recipe.classifier == "covariance" else recipe.network


def refuse_few_cells(recipe: Recipe, what: str) -> None:
    """Refuse a recipe that starts from a model, or that fits a classifier alone.

    Raises:
        RecipeError: the text begins with `what`.
    """
    if recipe.parent != NO_PARENT or recipe.classifier != "gradient":
        raise RecipeError(
            f"{what} of a network from its backbone on; leave parent and classifier out of the recipe."
        )


def first_network(recipe: Recipe, class_names: Sequence[str]) -> tuple[CBAMResNet50, dict[str, Any]]:
    """Return a network with the weights that a training starts from, and what its model file says of them.

    Args:
        recipe: names backbone or parent.
        class_names: in the order of the logits.

    Returns:
        The network, and `backbone` and, if there is one, `parent` for the metadata.

    Raises:
        RecipeError: there is no network of its kind.
        WeightsError: the backbone's weights are missing or do not fit.
        ModelFileError: the parent is missing, damaged or foreign.
    """
    if recipe.network not in NETWORKS:
        raise RecipeError(f"network = {recipe.network!r} will not do: choose one of {', '.join(NETWORKS)}.")
    network = NETWORKS[recipe.network](len(class_names), recipe.placement)
    parent = load_parent(recipe)
    if parent is None and isinstance(network, CBAMResNet50Covariance):
        raise RecipeError(
            f"network = {recipe.network!r} will not do: it is made of a trained model; give one as parent, "
            "with classifier = 'covariance'."
        )
    if parent is None:
        return network, {"backbone": load_backbone(network, recipe.backbone)}
    state = parent.network.state_dict()
    own = network.fc.state_dict()
    kept = [name for name in class_names if name in parent.class_names]
    for name in kept:
        for key, rows in own.items():
            rows[class_names.index(name)] = state[f"fc.{key}"][parent.class_names.index(name)]
    with torch.no_grad():
        network.load_state_dict({**state, **{f"fc.{key}": rows for key, rows in own.items()}})
    path = parent_path(recipe)
    assert path is not None
    about = {
        "file": path.name,
        "sha256": sha256_of_file(path),
        "weights_sha256": weights_hash(parent.network),
        "class_names": list(parent.class_names),
        "rows_kept": kept,
        "knows_its_cells": "seen" in parent.metadata,
        **{key: parent.metadata.get(key) for key in ("data", "data_set", "licence")},
    }
    if adaptation := parent.metadata.get("adaptation"):
        about["adaptation"] = adaptation
    return network, {"backbone": parent.metadata.get("backbone", {}), "parent": about}
