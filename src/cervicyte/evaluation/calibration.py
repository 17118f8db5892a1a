"""Calibration: probabilities that come true as often as they say, and what is built on them.

A `Calibration` is fitted on predictions for cells that the networks had not seen, and turns raw
probabilities into calibrated ones, prediction sets, and a word on which cells to decline. It holds JSON
values only, and travels in a model's file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from scipy.special import softmax

from cervicyte import metrics
from cervicyte.errors import CalibrationError
from cervicyte.evaluation.prediction_sets import SET_LEVEL, fewest_groups, prediction_sets, threshold_of
from cervicyte.evaluation.tables import arrays_of
from cervicyte.network.description import Described

CALIBRATION_NAME = "calibration.json"
COVERAGE = 0.9  # share of cells that are answered, not declined
HIGHEST_TEMPERATURE = 20.0  # and its inverse the lowest
REMEDY = "cross-validate anew with `cervicyte cross-validate`"

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=CHECKED)
class ClassThreshold:
    """From which calibrated probability on a class is in a prediction set, and what that was fitted on.

    Attributes:
        name: of the class.
        threshold: None if there were too few groups: the class is then in every set.
        cells, groups: of the class, that the threshold was fitted on.
    """

    name: str
    threshold: Share | None
    cells: Count
    groups: Count


@dataclass(frozen=True, config=CHECKED)
class Calibration:
    """What turns raw probabilities into calibrated ones, into sets, and into answers or none.

    Attributes:
        temperature: divides the logits; None if none could be fitted, see `fit_temperature`.
        classes: in the model's order.
        level: share of cells of each class that are to have it in their set.
        decline_below: calibrated confidence below which a cell is declined.
        coverage: share of the calibration cells that were not.
        cells, groups: that all of it was fitted on.
    """

    temperature: Annotated[float, Field(gt=0)] | None
    classes: Annotated[tuple[ClassThreshold, ...], Field(min_length=1)]
    level: Annotated[float, Field(gt=0, lt=1)]
    decline_below: Share
    coverage: Annotated[float, Field(gt=0, le=1)]
    cells: Count
    groups: Count

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the model's order."""
        return tuple(one.name for one in self.classes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be fitted, and what is done instead: a sentence each, for people."""
        needed = fewest_groups(self.level)
        notes = [
            f"{one.name} has {one.groups} calibration {'group' if one.groups == 1 else 'groups'} where "
            f"{needed} are needed, so it stands in every prediction set."
            for one in self.classes
            if one.threshold is None
        ]
        if self.temperature is None:
            notes.append(
                "No temperature could be fitted: the calibration cells were all called right, or no better "
                "than by chance. The probabilities stay as the network gives them."
            )
        return tuple(notes)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities [..., C] for raw ones [..., C]; their order does not change.

        Raises:
            CalibrationError: they are of another number of classes.
        """
        if probabilities.shape[-1] != len(self.classes):
            raise CalibrationError(
                f"The calibration is of {len(self.classes)} classes and the probabilities are of "
                f"{probabilities.shape[-1]}; use the calibration that came with the model."
            )
        if self.temperature is None:
            return probabilities
        return np.asarray(softmax(_logits(probabilities) / self.temperature, axis=-1))

    def sets(self, calibrated: np.ndarray) -> np.ndarray:
        """Return which classes are in each set, bool [N, C], for calibrated probabilities [N, C]."""
        return prediction_sets(calibrated, [one.threshold for one in self.classes])

    def declines(self, calibrated: np.ndarray) -> np.ndarray:
        """Return which cells are too uncertain to be answered, bool [N], for probabilities [N, C]."""
        return calibrated.max(1) < self.decline_below

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, which `from_json` reads."""
        return dict(_ADAPTER.dump_python(self, mode="json"))

    @classmethod
    def from_json(cls, content: Any, name: str = "The calibration") -> Calibration:
        """Read what `to_json` returned.

        Args:
            content: JSON values.
            name: where they come from, with which an error begins.

        Raises:
            CalibrationError: a value is missing, unknown, of the wrong kind or out of range.
        """
        try:
            calibration = _ADAPTER.validate_json(json.dumps(content, allow_nan=False))
        except (TypeError, ValueError) as error:  # a ValidationError is such
            raise CalibrationError(f"{name}: is damaged ({_first_fault(error)}); {REMEDY}.") from error
        if len(set(calibration.class_names)) < len(calibration.classes):
            raise CalibrationError(f"{name}: names a class twice; {REMEDY}.")
        return calibration


_ADAPTER = TypeAdapter(Calibration)


def read_calibration(path: Path) -> Calibration:
    """Read the `calibration.json` of a cross-validation, or of its folder.

    Raises:
        CalibrationError: it is missing or damaged.
    """
    path = path / CALIBRATION_NAME if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}); {REMEDY}.") from error
    except ValueError as error:
        raise CalibrationError(f"{path}: is not JSON; {REMEDY}.") from error
    if not isinstance(content, dict) or "calibration" not in content:
        raise CalibrationError(f"{path}: holds no calibration; {REMEDY}.")
    return Calibration.from_json(content["calibration"], str(path))


def calibration_of(model: Described) -> Calibration | None:
    """Return the calibration that a model carries, None if it carries none.

    Raises:
        CalibrationError: it is damaged, or of other classes than the model.
    """
    if not (stated := model.metadata.get("calibration")):
        return None
    calibration = Calibration.from_json(stated, "The model's calibration")
    if calibration.class_names != model.class_names:
        raise CalibrationError(
            "The model's calibration is of other classes than the model; export the model anew from the run "
            "that trained it."
        )
    return calibration


# --- fitting -------------------------------------------------------------------------------------


def fit_calibration(
    predictions: pd.DataFrame,
    class_names: Sequence[str],
    level: float = SET_LEVEL,
    coverage: float = COVERAGE,
) -> Calibration:
    """Fit temperature, thresholds of sets and certainty on predictions for cells not seen in training.

    The temperature and the certainty count each row once, as calibration error and coverage do; the
    thresholds count each group once, see `prediction_sets`. They are fitted on the tempered
    probabilities of the same cells. Strictly, the promise of sets wants a temperature from other cells;
    one scalar cannot follow the cells that it is fitted on, and the simulation in the tests, which fits
    both on the same, finds the promise kept.

    Args:
        predictions: see `predictions.predictions_table`; a cell may stand there once a seed.
        class_names: in the model's order.
        level: of the sets.
        coverage: the share of rows that are certain enough to be answered.

    Raises:
        UsageError: the table is empty, lacks a column, or does not fit the classes.
    """
    truth, _, raw = arrays_of(predictions, class_names)
    paths, groups = (predictions[column].to_numpy(str) for column in ("path", "group"))
    fitted = Calibration(
        temperature=fit_temperature(raw, truth),
        classes=tuple(ClassThreshold(name, None, 0, 0) for name in class_names),
        level=level,
        decline_below=0.0,
        coverage=coverage,
        cells=len(np.unique(paths)),
        groups=len(np.unique(groups)),
    )
    calibrated = fitted.apply(raw)
    classes = []
    for index, name in enumerate(class_names):
        own = truth == index
        threshold = threshold_of(calibrated[own, index], groups[own], level)
        classes.append(
            ClassThreshold(name, threshold, len(np.unique(paths[own])), len(np.unique(groups[own])))
        )
    certain = np.sort(calibrated.max(1))[::-1]
    least_certain = certain[math.ceil(coverage * len(certain) - 1e-9) - 1]
    return replace(fitted, classes=tuple(classes), decline_below=float(least_certain))


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float | None:
    """Return the temperature of lowest negative log-likelihood (Guo et al., ICML 2017, section 4.2).

    The logarithms of probabilities are the logits but for a constant, which the softmax takes out. The
    loss is convex in the inverse temperature, so its one optimum is where the slope is 0. Where that is,
    the sign of the slope at the ends says; a minimiser would stop anywhere where the loss has become flat.

    Args:
        probabilities: [N, C]; below `metrics.LEAST_PROBABILITY` they count as that.
        truth: int [N].

    Returns:
        None if the optimum lies beyond 1/20 to 20: no cell was called wrong, so that ever more
        confidence looks better, or confidence says nothing.
    """
    from scipy.optimize import brentq  # takes a third of a second to come, and answering needs it not

    logits = _logits(probabilities)
    of_truth = logits[np.arange(len(truth)), truth]

    def slope(log_inverse: float) -> float:
        expected = softmax(logits * math.exp(log_inverse), axis=1) * logits
        return float((expected.sum(1) - of_truth).mean())

    farthest = math.log(HIGHEST_TEMPERATURE)
    if slope(-farthest) >= 0 or slope(farthest) <= 0:
        return None
    return math.exp(-brentq(slope, -farthest, farthest))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, metrics.LEAST_PROBABILITY))


def _first_fault(error: Exception) -> str:
    """Return in a few words what is wrong, with the key where it is."""
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else fault["msg"]
