"""Every setting of a training run, with its default, its unit and a remark: the recipe.

A recipe is written in YAML; a key that is left out keeps its default. On the command line
`--set key=value` changes any of them, with a dot for those inside a section
(`--set preprocessing.image_size=160`).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cervicyte.errors import RecipeError
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.provenance import write_text
from cervicyte.yaml_files import load_yaml

NO_PARENT = "none"
SHIPPED = "shipped"


class Augmentation(BaseModel):
    """What is done to a training image at random, anew in every epoch.

    Zero switches a step off, and so does a magnification of 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    flips: bool = Field(True, description="mirror left-right and up-down, each for half the images")
    quarter_turns: bool = Field(True, description="turn by 0, 90, 180 or 270 degrees")
    foreign: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of images that framing, stain_shift, illumination, white_balance, focus, "
        "resolution and noise may change; the others keep what is of their own laboratory",
    )
    framing: float = Field(
        1.0,
        ge=1,
        le=2,
        description="largest magnification about the middle, where the nucleus is; outwards, its root",
    )
    scale_low: float = Field(0.8, gt=0.2, le=1, description="smallest magnification")
    scale_high: float = Field(1.2, ge=1, lt=5, description="largest magnification")
    stain: float = Field(
        0.1, ge=0, le=1, description="largest relative change of each stain's optical density"
    )
    stain_shift: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="largest optical density added to each stain or taken away, in the background too",
    )
    illumination: float = Field(
        0.0, ge=0, le=0.5, description="largest relative change of brightness across the field"
    )
    white_balance: float = Field(
        0.0, ge=0, le=0.5, description="largest relative change of each colour channel"
    )
    colour: float = Field(
        0.15, ge=0, le=1, description="largest relative change of brightness, contrast, saturation"
    )
    blur: float = Field(0.2, ge=0, le=1, description="share of images that are blurred")
    focus: float = Field(0.0, ge=0, le=1, description="share of images that are put out of focus")
    focus_radius: float = Field(
        3.0, gt=0, le=8, description="largest radius of the disc that focus blurs by, pixels"
    )
    resolution: float = Field(
        0.0, ge=0, le=1, description="share of images seen as by a camera of fewer pixels"
    )
    resolution_low: float = Field(
        0.5, ge=0.1, le=1, description="smallest share of the pixels along a side that resolution leaves"
    )
    noise: float = Field(
        0.0, ge=0, le=96, description="largest standard deviation of the sensor's noise at white, grey levels"
    )
    jpeg: float = Field(0.2, ge=0, le=1, description="share of images that are compressed as JPEG")


class Recipe(BaseModel):
    """All settings of one training run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, lt=2**32, description="draws weights, batches and augmentation")
    backbone: str = Field("imagenet", description="imagenet (torchvision's), none, or a weights file")
    parent: str = Field(
        NO_PARENT,
        description="a model to start from, instead of the backbone: none, shipped, or a model file; brings "
        "its preprocessing, network and placement along",
    )
    network: str = Field("cbam-resnet50", description="its kind: the one that ships, or one that was added")
    placement: Literal["stage", "block", "none"] = Field("stage", description="where CBAM stands")
    frozen_stages: int = Field(
        0, ge=0, le=4, description="stages that keep their first weights, with the stem; 0: all train"
    )
    classifier: Literal["gradient", "logistic", "covariance", "last_stage"] = Field(
        "gradient",
        description="gradient: learns with the network, as all below says; logistic: alone, by logistic "
        "regression on what the network sees, none of whose weights change; covariance: likewise, on how the "
        "channels before the last stage vary together, which takes that stage's place; last_stage: as "
        "logistic first, and then for a few epochs with the last stage, the others frozen",
    )
    preprocessing: Preprocessing = Field(Preprocessing(), description="what every image goes through")
    augmentation: Augmentation = Field(Augmentation(), description="random changes in training")
    epochs: int = Field(15, ge=1, description="passes over the training cells, at most")
    keep: Literal["best", "last"] = Field(
        "best", description="which epoch's weights: the best on the validation cells, or the last"
    )
    patience: int = Field(
        6,
        ge=1,
        description="epochs without a better validation score after which training stops (keep: best)",
    )
    batch_size: int = Field(32, ge=2, description="images in one step, over all devices")
    learning_rate: float = Field(4e-4, gt=0, le=1, description="highest rate, of classifier and gates")
    layer_decay: float = Field(
        0.7, gt=0, le=1, description="factor of the learning rate from each stage to the one before"
    )
    weight_decay: float = Field(0.05, ge=0, le=1, description="AdamW's decoupled decay")
    warm_up_epochs: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="epochs of linear warm-up before the cosine"
    )
    mixup_alpha: float = Field(
        0.0, ge=0, le=10, description="mixup: two images over one another, shares from Beta(alpha, alpha)"
    )
    cutmix_alpha: float = Field(
        0.0, ge=0, le=10, description="CutMix: a rectangle of another image; with mixup, one of both a batch"
    )
    loss: Literal["cross_entropy", "focal"] = Field(
        "cross_entropy", description="focal: cells already told with certainty weigh less"
    )
    focal_gamma: float = Field(2.0, ge=0, le=10, description="how much less (focal); 0 is the cross-entropy")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="share spread over the other classes")
    class_weights: Literal["auto", "balanced", "none"] = Field(
        "auto", description="balanced: rarer classes weigh more; auto: if one is 1.5 times another"
    )
    missed_abnormal_cost: float = Field(
        1.0,
        ge=1,
        le=100,
        description="weight of an error on an abnormal cell, in errors on others",
    )
    averaging: Literal["ema", "swa", "none"] = Field(
        "ema",
        description="which weights are evaluated: their moving average (ema), the mean of late ones (swa), "
        "the newest (none)",
    )
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="weight averaging a step; 0 evaluates the last weights"
    )
    swa_share: float = Field(
        0.25, gt=0, le=1, description="share of all steps, the last ones, whose weights are averaged (swa)"
    )
    gradient_clip_norm: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="longest gradient; a longer one is cut"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor or GPU computes in it"
    )
    compiled: bool = Field(
        False,
        description="fuse the network with torch.compile: a quarter faster after a minute's wait; needs a "
        "C++ compiler, without which it is left out",
    )
    workers: int = Field(
        -1, ge=-1, description="processes that augment; -1: none on the CPU, up to 8 for a GPU"
    )


def read_recipe(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply overrides (dotted keys); without a path, start from the defaults.

    Raises:
        RecipeError: one sentence with the file, the key, what was wrong and the nearest valid name.
    """
    content: Any = {}
    where = str(path) if path else "recipe"
    if path is not None:
        try:
            content = load_yaml(path.read_text(encoding="utf-8"))
            content = {} if content is None else content
        except FileNotFoundError as error:
            raise RecipeError(f"{path}: no such recipe file; check the path.") from error
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise RecipeError(f"{path}: is not readable YAML ({reason}); mend the file.") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{where}: must be a list of `key: value` lines.")
    for dotted, value in (overrides or {}).items():
        _set(content, dotted, value, where)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from error


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value` as given on the command line; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text}: must have the form key=value, such as epochs=5.")
    try:
        return key.strip(), load_yaml(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: the value cannot be read; quote it.") from error


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, every key of it, as YAML."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


def recipe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, str]:
    """Return every dotted key with its description, for documentation and for error messages."""
    keys: dict[str, str] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys |= recipe_keys(info.annotation, f"{prefix}{name}.")
        else:
            keys[prefix + name] = info.description or ""
    return keys


def differing_keys(one: Recipe, other: Recipe) -> list[str]:
    """Return the dotted keys whose values are not the same in both recipes."""
    return [key for key in recipe_keys() if _value_of(one, key) != _value_of(other, key)]


def _value_of(recipe: Recipe, dotted: str) -> Any:
    value: Any = recipe
    for key in dotted.split("."):
        value = getattr(value, key)
    return value


def _set(content: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise RecipeError(f"{where}: {section} is a single value and has no key {key}.")
    content[key] = value


def _explain(error: ValidationError) -> str:
    """Make one sentence of the first thing that is wrong."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        valid = list(recipe_keys())
        in_a_section = [name for name in valid if name.endswith("." + key)]
        near = in_a_section or difflib.get_close_matches(key, valid, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(valid)}."
        return f"there is no key {key}; {hint}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} = {first['input']!r} will not do: {message}."
