"""Several class lists over one network: a last layer for each, its head, and one unit that all share.

A model file holds one head as the network's own last layer, so that whatever takes a model takes this one.
The others lie beside the weights with all that belongs to them (calibration, figures, split, familiarity),
and `with_head` changes places with one of them. The unit that all share tells abnormal cells from others,
whatever list a cell's class is in.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cervicyte.datasets.classes import Grouping
from cervicyte.errors import ModelFileError, UsageError
from cervicyte.network.description import REMEDY, Described
from cervicyte.network.plain import STAGE_CHANNELS

if TYPE_CHECKING:
    from cervicyte.network.model_file import ModelFile

ABNORMAL = "abnormal."  # begins the names of the shared unit's tensors
LAYER = "fc."  # begins, after the head's own beginning, those of its last layer
OF_A_HEAD = (
    "data",
    "data_set",
    "split",
    "leak",
    "caveats",
    "background",
    "calibration",
    "familiarity",
    "metrics",
)
"""Metadata that are of one head's data set alone, and stand aside with it."""


@dataclass(frozen=True)
class Head:
    """A class list, under its data set's name.

    Attributes:
        name: of the data set.
        class_names: in the order of its logits.
        groupings: of each class; None where it is not known whether it is abnormal.
    """

    name: str
    class_names: tuple[str, ...]
    groupings: tuple[Grouping | None, ...]


def wide_names(heads: Sequence[Head]) -> list[str]:
    """Return the rows of a last layer that is all heads at once: each head's classes, then the shared unit.

    Example:
        >>> wide_names([Head("A", ("x", "y"), ("normal", "abnormal")), Head("B", ("x",), (None,))])
        ['A: x', 'A: y', 'B: x', 'abnormal']
    """
    return [f"{head.name}: {name}" for head in heads for name in head.class_names] + ["abnormal"]


def parted(wide: ModelFile, heads: Sequence[Head]) -> ModelFile:
    """Return a model whose last layer is the first head, with the others beside it.

    Args:
        wide: its last layer has the rows that `wide_names` names.
        heads: in the order of those rows.
    """
    from cervicyte.network.model_file import ModelFile

    weight, bias = wide.network.fc.weight.detach(), wide.network.fc.bias.detach()
    tensors, start = dict(wide.tensors), 0
    for position, head in enumerate(heads):
        rows = slice(start, start + len(head.class_names))
        tensors[f"{_beginning(position)}{LAYER}weight"] = weight[rows].clone()
        tensors[f"{_beginning(position)}{LAYER}bias"] = bias[rows].clone()
        start = rows.stop
    tensors[f"{ABNORMAL}weight"], tensors[f"{ABNORMAL}bias"] = weight[start:].clone(), bias[start:].clone()
    described = [
        {
            "name": head.name,
            "class_names": list(head.class_names),
            "groupings": list(head.groupings),
            "metadata": {},
        }
        for head in heads
    ]
    whole = ModelFile(
        network=wide.network,
        class_names=wide.class_names,
        preprocessing=wide.preprocessing,
        epoch=wide.epoch,
        best_validation_accuracy=wide.best_validation_accuracy,
        metadata={**wide.metadata, "heads": described},
        tensors=tensors,
    )
    return _put_on(whole, 0)


def heads_of(model: Described) -> tuple[Head, ...]:
    """Return the heads of a model; none if it has one class list, as most have.

    Raises:
        ModelFileError: what the file says of them is damaged.
    """
    try:
        return tuple(
            Head(str(one["name"]), tuple(one["class_names"]), tuple(one["groupings"]))
            for one in model.metadata.get("heads", ())
        )
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"The model's heads are damaged; {REMEDY}.") from error


def with_head(model: ModelFile, name: str) -> ModelFile:
    """Return the model with the head of this name as its last layer; the one that it had stands aside.

    Raises:
        UsageError: it has no such head.
        ModelFileError: what the file says of its heads is damaged.
    """
    names = [head.name for head in heads_of(model)]
    if not names:
        raise UsageError(f"--head {name}: the model has one class list and no heads; leave the option out.")
    if name not in names:
        raise UsageError(f"--head {name}: the model has no such head; choose one of {', '.join(names)}.")
    chosen = model.metadata.get("head")
    if chosen == name:
        return model
    if chosen not in names:
        raise ModelFileError(f"The model's heads are damaged; {REMEDY}.")
    return _put_on(_put_aside(model, names.index(chosen)), names.index(name))


def load_with_head(path: Path, head: str | None = None) -> ModelFile:
    """Read a model file, with the named head as its last layer; without a name, with the one it has there.

    Raises:
        ModelFileError: the file is missing, damaged, or no model.
        UsageError: it has no such head.
    """
    from cervicyte.network.model_file import load_model_file

    model = load_model_file(path)
    return model if head is None else with_head(model, head)


def without_other_heads(model: ModelFile) -> ModelFile:
    """Return the model with its last layer and the shared unit alone.

    For a copy whose features are no longer those on which the other heads' answers were fitted.
    """
    if not heads_of(model):
        return model
    metadata = {**model.metadata}
    metadata["heads"] = [one for one in metadata["heads"] if one["name"] == metadata.get("head")]
    return _copied(
        model,
        metadata=metadata,
        tensors={name: value for name, value in model.tensors.items() if not _is_aside(name)},
    )


def abnormal_unit(model: Described) -> tuple[np.ndarray, float] | None:
    """Return weights [2048] and bias of the shared unit over the last stage's means; None without heads.

    Raises:
        ModelFileError: the model has heads, and the unit is missing or of another shape.
    """
    if not heads_of(model):
        return None
    try:
        weight, bias = (
            np.asarray(model.tensors[f"{ABNORMAL}{part}"], np.float32) for part in ("weight", "bias")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"The model's answer on normal and abnormal is damaged; {REMEDY}.") from error
    if weight.shape != (1, STAGE_CHANNELS[-1]) or bias.shape != (1,):
        raise ModelFileError(f"The model's answer on normal and abnormal is damaged; {REMEDY}.")
    return weight[0], float(bias[0])


# --- changing places -------------------------------------------------------------------------------


def _beginning(position: int) -> str:
    return f"head{position}."


def _is_aside(name: str) -> bool:
    first = name.split(".")[0]
    return first.startswith("head") and first[4:].isdigit()


def _put_aside(model: ModelFile, position: int) -> ModelFile:
    """Return the model with its last layer, and what belongs to it, among those beside the weights."""
    metadata = copy.deepcopy(model.metadata)
    own = {key: metadata.pop(key) for key in OF_A_HEAD if key in metadata}
    metadata["heads"][position]["metadata"] = own
    metadata["head"] = None
    tensors = {}
    for name, value in model.tensors.items():
        shared = name.startswith(ABNORMAL) or _is_aside(name)
        tensors[name if shared else _beginning(position) + name] = value
    for name, value in model.network.fc.state_dict().items():
        tensors[_beginning(position) + LAYER + name] = value.detach().cpu().clone()
    return _copied(model, metadata=metadata, tensors=tensors)


def _put_on(model: ModelFile, position: int) -> ModelFile:
    """Return the model with a head that stood aside as its last layer."""
    import torch
    from torch import nn

    metadata = copy.deepcopy(model.metadata)
    try:
        head = metadata["heads"][position]
        metadata |= head.pop("metadata", {})
        metadata["head"] = head["name"]
        beginning = _beginning(position)
        tensors = {name.removeprefix(beginning): value for name, value in model.tensors.items()}
        weight, bias = tensors.pop(f"{LAYER}weight"), tensors.pop(f"{LAYER}bias")
        class_names = tuple(head["class_names"])
        network = copy.deepcopy(model.network)
        network.fc = nn.Linear(network.fc.in_features, len(class_names)).to(network.fc.weight.device)
        network.fc.eval().requires_grad_(False)
        with torch.no_grad():
            network.fc.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelFileError(f"The model's heads are damaged; {REMEDY}.") from error
    return _copied(model, network=network, class_names=class_names, metadata=metadata, tensors=tensors)


def _copied(model: ModelFile, **changes: Any) -> ModelFile:
    from cervicyte.network.model_file import ModelFile

    return ModelFile(**{**vars(model), "sha256_as_read": "", **changes})
