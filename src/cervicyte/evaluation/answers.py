"""What is said of an image: a class with its calibrated probability, or that the program does not know.

A model that carries a calibration answers in calibrated probabilities and prediction sets; one that carries
what its training cells are like also says how unlike them an image is. `fit_answers` makes both from cells
that did not train the network, and `attach` puts them into the model, in whose file they travel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from cervicyte.datasets.layouts import Cell
from cervicyte.evaluation.calibration import Calibration, calibration_of, fit_calibration
from cervicyte.evaluation.familiarity import (
    Familiarity,
    Judgement,
    distances_of,
    fit_familiarity,
    fit_spaces,
)
from cervicyte.evaluation.framing import is_small, second_look
from cervicyte.evaluation.prediction_sets import SEPARATOR
from cervicyte.evaluation.predictions import BATCH, logistic, predictions_table, softmax
from cervicyte.evaluation.tables import ANSWER_COLUMNS
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.images.reader import read_image
from cervicyte.images.statistics import background_of, image_statistics
from cervicyte.network.description import Described
from cervicyte.network.heads import abnormal_unit
from cervicyte.progress import SILENT, Progress

if TYPE_CHECKING:  # torch and accelerate take seconds to come, and answering needs them not
    from cervicyte.network.graph import Output
    from cervicyte.network.model_file import ModelFile
    from cervicyte.training.loop import LabelledImages

Verdict = Literal["answer", "uncertain", "unlike_training", "not_a_cell"]
SECOND_LOOK = "Its class comes from a second look, enlarged no more than a usual cell."
Network = Callable[[np.ndarray], np.ndarray]
"""Gives logits [N, C] for what it is shown, preprocessed, uint8 [N, S, S, 3]."""
UNLIKE: tuple[Verdict, ...] = ("unlike_training", "not_a_cell")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image. Class and probabilities stand there whatever the verdict.

    Attributes:
        class_name: the class with the highest probability.
        confidence: its probability, in [0, 1].
        probabilities: class -> probability, in the model's order; they sum to 1. Calibrated, if the model
            carries a calibration.
        prediction_set: the classes that the cell may well have, likeliest first; none if the model carries
            no calibration.
        verdict: `answer`; `uncertain`, if the set holds several classes or the confidence is too low;
            `unlike_training` or `not_a_cell`, if the image is too unlike the training cells for any answer.
        unlike: how unlike them it is, and in what; None if the model carries nothing to say so by.
        abnormal: the probability that the cell is abnormal, whatever its class list, by the unit that several
            heads share, not calibrated; None if the model has one class list.
        looked_again: whether class and probabilities come from a second look, see `framing`. How unlike the
            image is was said by the first.
    """

    class_name: str
    confidence: float
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...] = ()
    verdict: Verdict = "answer"
    unlike: Judgement | None = None
    abnormal: float | None = None
    looked_again: bool = False

    @property
    def doubt(self) -> str | None:
        """The sentence, where it says more than the class."""
        return None if self.verdict == "answer" else self.sentence

    @property
    def sentence(self) -> str:
        """The verdict in plain words, such as "Uncertain between Koilocytotic and Metaplastic"."""
        if self.unlike is not None and self.verdict in UNLIKE:
            begin = {
                "not_a_cell": "This does not look like a single cervical cell",
                "unlike_training": "Unlike the cells that this model was trained on",
            }[self.verdict]
            told = f"{begin}: {'; '.join(self.unlike.reasons)}." if self.unlike.reasons else f"{begin}."
            return f"{told} {SECOND_LOOK}" if self.looked_again else told
        if self.verdict == "uncertain":
            likeliest = sorted(self.probabilities, key=lambda name: -self.probabilities[name])[:2]
            between = list(self.prediction_set) if len(self.prediction_set) > 1 else likeliest
            return f"Uncertain between {', '.join(between[:-1])} and {between[-1]}."
        return f"{self.class_name}."


@dataclass(frozen=True)
class Answerer:
    """Turns what a network gives into predictions.

    Attributes:
        class_names: in the order of the logits.
        calibration, familiarity: None where the model carries none; then nothing is said of it.
        is_adapted: whether the model was fitted to another laboratory's images, see `adaptation`.
        abnormal_unit: weights and bias of what several heads share, see `network.heads`; None without heads.
        second_look: how an image is seen once more that is unlike the training cells, see `framing`.
    """

    class_names: tuple[str, ...]
    calibration: Calibration | None = None
    familiarity: Familiarity | None = None
    is_adapted: bool = False
    abnormal_unit: tuple[np.ndarray, float] | None = None
    second_look: Preprocessing | None = None

    @classmethod
    def of(cls, model: Described) -> Answerer:
        """Read what a model carries.

        Raises:
            CalibrationError, FamiliarityError: it is damaged, or of other classes.
            ModelFileError: its heads are damaged.
        """
        calibration = calibration_of(model)
        usual = model.metadata.get("familiarity")
        familiarity = (
            Familiarity.from_parts(usual, model.tensors, "The model's familiarity") if usual else None
        )
        is_adapted = "adaptation" in model.metadata
        again = second_look(model)
        return cls(model.class_names, calibration, familiarity, is_adapted, abnormal_unit(model), again)

    @property
    def notes(self) -> tuple[str, ...]:
        """What this model cannot say, a sentence each, for people."""
        notes = list(self.calibration.notes) if self.calibration else []
        if self.calibration is None:
            notes.append(
                "The model carries no calibration: its probabilities are the network's own, which are often "
                "too certain, and there are no prediction sets."
            )
        if self.is_adapted:
            notes.append(
                "The model was adapted to another laboratory's unlabelled images: what its probabilities and "
                "prediction sets promise was measured on its training laboratory's cells, and on none there."
            )
        if self.familiarity is None:
            notes.append("The model cannot tell whether an image is unlike its training cells.")
        else:
            notes += self.familiarity.notes_if_adapted if self.is_adapted else self.familiarity.notes
        return tuple(notes)

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities [N, C] for logits [N, C], calibrated if the model can."""
        raw = softmax(logits)
        return raw if self.calibration is None else self.calibration.apply(raw)

    def predictions(
        self,
        logits: np.ndarray,
        features: Mapping[str, np.ndarray],
        statistics: np.ndarray,
        images: Sequence[np.ndarray | None] = (),
        network: Network | None = None,
    ) -> list[Prediction]:
        """Return one prediction an image; those that are unlike the training cells are looked at once more.

        Args:
            logits: [N, C].
            features: see `features.pooled_features`.
            statistics: see `images.statistics.image_statistics`, [N, statistics], of the images as read.
            images: as read, uint8 [H, W, 3]; of those for which `has_second_look` says no, None will do.
            network: takes a second look; without it there is none.
        """
        count = len(logits)
        judgements: Sequence[Judgement | None] = [None] * count
        if self.familiarity is not None and count:
            judgements = self.familiarity.judge(features, statistics)
        again = []
        if network is not None and self.second_look is not None:
            again = [at for at, one in enumerate(judgements) if self._asks_again(one, images[at])]
        if again:
            assert network is not None
            assert self.second_look is not None
            seen = np.stack([self.second_look(image) for at in again if (image := images[at]) is not None])
            logits = logits.copy()
            logits[again] = network(seen)
        probabilities = self.calibrated(logits)
        in_set = np.zeros_like(probabilities, bool)
        declined = np.zeros(count, bool)
        if self.calibration is not None:
            in_set, declined = self.calibration.sets(probabilities), self.calibration.declines(probabilities)
        abnormal: Sequence[float | None] = [None] * count
        if self.abnormal_unit is not None:
            weight, bias = self.abnormal_unit
            abnormal = logistic(features["stage4"] @ weight + bias).tolist()
        return [
            self._prediction(
                probabilities[at], in_set[at], bool(declined[at]), judgements[at], abnormal[at], at in again
            )
            for at in range(count)
        ]

    def has_second_look(self, image: np.ndarray) -> bool:
        """Return whether an image, uint8 [H, W, 3], gets a second look if it is unlike the training cells."""
        return is_small(image, self.second_look)

    def _asks_again(self, unlike: Judgement | None, image: np.ndarray | None) -> bool:
        is_unlike = unlike is not None and unlike.kind != "familiar"
        return is_unlike and image is not None and self.has_second_look(image)

    def seen_through(self, model: Described, prediction: Prediction) -> Preprocessing:
        """Return what an image went through for its answer by a model, which this was read from.

        The answer may be of another model, on a page that has changed it since: then it is what the image
        would go through here.
        """
        again = self.second_look if prediction.looked_again else None
        return again or model.preprocessing

    def _prediction(
        self,
        probabilities: np.ndarray,
        in_set: np.ndarray,
        declined: bool,
        unlike: Judgement | None,
        abnormal: float | None,
        looked_again: bool,
    ) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")
        chosen = tuple(self.class_names[at] for at in order if in_set[at])
        verdict: Verdict = "uncertain" if declined or len(chosen) > 1 else "answer"
        if unlike is not None and unlike.kind != "familiar":
            verdict = unlike.kind
        best = int(order[0])
        return Prediction(
            self.class_names[best],
            float(probabilities[best]),
            dict(zip(self.class_names, probabilities.tolist(), strict=True)),
            chosen,
            verdict,
            unlike,
            abnormal,
            looked_again,
        )


# --- asking ------------------------------------------------------------------------------------


def answers_for(
    model: ModelFile, answerer: Answerer, images: Sequence[np.ndarray], inputs: np.ndarray
) -> list[Prediction]:
    """Return one prediction an image of a batch.

    Args:
        model: is asked.
        answerer: `Answerer.of(model)`.
        images: as they were read, uint8 [H, W, 3] each; looked at only if the model knows what is usual.
        inputs: the same, preprocessed, uint8 [N, S, S, 3].
    """
    from cervicyte.evaluation.features import logits_of_means, pooled_features

    def network(seen: np.ndarray) -> np.ndarray:
        means = pooled_features(model.network, seen, model.preprocessing)["stage4"]
        return logits_of_means(model.network, means)

    features = pooled_features(model.network, inputs, model.preprocessing)
    logits = logits_of_means(model.network, features["stage4"])
    asked_for = images if answerer.familiarity is not None else ()
    statistics = np.array([image_statistics(image) for image in asked_for])
    return answerer.predictions(logits, features, statistics, images, network)


def answers_and_output(
    answerer: Answerer,
    run: Callable[[np.ndarray], Output],
    inputs: np.ndarray,
    images: Sequence[np.ndarray | None],
    statistics: np.ndarray,
) -> tuple[list[Prediction], Output]:
    """Return one prediction an image, and what an engine gave for it in the look that it was answered by.

    Args:
        answerer: of the engine's model.
        run: gives the network's output for images, preprocessed, uint8 [N, S, S, 3].
        inputs: the images, preprocessed as they are at first.
        images, statistics: see `Answerer.predictions`.
    """
    output = run(inputs)
    again: list[Output] = []

    def look_again(seen: np.ndarray) -> np.ndarray:
        again.append(run(seen))
        return again[-1].logits

    said = answerer.predictions(output.logits, output.means, statistics, images, look_again)
    places = [at for at, one in enumerate(said) if one.looked_again]
    for second in again:
        logits = output.logits.copy()
        logits[places] = second.logits
        evidence = None if output.evidence is None else output.evidence.copy()
        if evidence is not None:
            evidence[places] = second.evidence
        output = output._replace(logits=logits, evidence=evidence)
    return said, output


def answered_cells(
    model: ModelFile,
    cells: Sequence[Cell],
    true_classes: Sequence[str] | None = None,
    progress: Progress = SILENT,
    title: str = "Classifying",
    inputs: np.ndarray | None = None,
    *,
    framing: bool = True,
) -> pd.DataFrame:
    """Return one row a cell: see `predictions_table`, and `ANSWER_COLUMNS` of what the model can say.

    Args:
        model: carries the preprocessing that the images go through, and what it answers by.
        cells: in the order of the rows.
        true_classes: in the model's names, where the data set's labels are others.
        progress: is told of every batch.
        title: of the progress.
        inputs: the cells' images, preprocessed, where they are at hand: uint8 [N, S, S, 3].
        framing: take a second look at what is unlike the training cells; without, for comparison alone.

    Raises:
        ImageError: a file cannot be read; the text names it.
        CalibrationError, FamiliarityError: what the model answers by is damaged.
    """
    from cervicyte.training.cells import READING_THREADS

    answerer = Answerer.of(model)
    if not framing:
        answerer = replace(answerer, second_look=None)
    answers: list[Prediction] = []
    progress.start(title, len(cells))
    with ThreadPoolExecutor(READING_THREADS) as threads:
        for start in range(0, len(cells), BATCH):
            paths = [cell.path for cell in cells[start : start + BATCH]]
            images: list[np.ndarray] = []
            if inputs is None or answerer.familiarity is not None:
                images = list(threads.map(read_image, paths))
            if inputs is None:
                batch = np.stack(list(threads.map(model.preprocessing, images)))
            else:
                batch = inputs[start : start + BATCH]
            answers += answers_for(model, answerer, images, batch)
            progress.advance(len(paths))
    progress.close()
    truth = [cell.label for cell in cells] if true_classes is None else true_classes
    probabilities = np.array([list(one.probabilities.values()) for one in answers])
    probabilities = probabilities.reshape(len(answers), len(model.class_names))
    table = predictions_table(cells, truth, probabilities, model.class_names)
    said: dict[str, list[Any]] = {
        "prediction_set": [SEPARATOR.join(one.prediction_set) for one in answers],
        "abnormal": [one.abnormal for one in answers],
        "unlike_percentile": [one.unlike.unlike_percentile if one.unlike else None for one in answers],
        "verdict": [one.verdict for one in answers],
    }
    known = {
        "abnormal": answerer.abnormal_unit is not None,
        "prediction_set": answerer.calibration is not None,
        "unlike_percentile": answerer.familiarity is not None,
        "verdict": answerer.calibration is not None or answerer.familiarity is not None,
    }
    for name in ANSWER_COLUMNS:
        if known[name]:
            table[name] = said[name]
    return table


# --- fitting ---------------------------------------------------------------------------------------


def attach(model: ModelFile, calibration: Calibration, familiarity: Familiarity) -> None:
    """Put into a model what it answers by; `Answerer.of` reads it."""
    model.metadata["calibration"] = calibration.to_json()
    model.metadata["familiarity"] = familiarity.to_json()
    model.tensors |= familiarity.tensors()


def fit_answers(
    model: ModelFile,
    training: LabelledImages,
    training_cells: Sequence[Cell],
    held_out: LabelledImages,
    held_out_cells: Sequence[Cell],
    progress: Progress = SILENT,
) -> tuple[Calibration, Familiarity]:
    """Fit calibration and familiarity for a model on cells that did not train it.

    Args:
        model: the trained network.
        training, training_cells: that trained it; images as the network sees them.
        held_out, held_out_cells: that did not, in whole groups.
        progress: is told of every step.
    """
    from cervicyte.evaluation.features import logits_of_means, pooled_features

    of_training, of_held_out = (
        pooled_features(model.network, images, model.preprocessing, progress, f"Features of {part} cells")
        for part, images in (("training", training.images), ("validation", held_out.images))
    )
    # The last stage's means are all that the classifier sees: one pass through the network is enough.
    logits = logits_of_means(model.network, of_held_out["stage4"])
    table = predictions_table(
        held_out_cells, [cell.label for cell in held_out_cells], softmax(logits), model.class_names
    )
    calibration = fit_calibration(table, model.class_names)
    spaces = fit_spaces(of_training, training.targets)
    familiarity = fit_familiarity(
        spaces,
        statistics_of(training_cells, progress),
        distances_of(spaces, of_held_out),
        statistics_of(held_out_cells, progress),
        [cell.group for cell in held_out_cells],
    )
    return calibration, familiarity


def statistics_of(cells: Sequence[Cell], progress: Progress = SILENT) -> np.ndarray:
    """Return the statistics of cells' images as they are read, float64 [N, statistics]."""
    progress.start("Looking at light, stain and focus", len(cells))
    rows = []
    for cell in cells:
        rows.append(image_statistics(read_image(cell.path)))
        progress.advance()
    progress.close()
    return np.array(rows)


def usual_background(cells: Sequence[Cell], progress: Progress = SILENT) -> list[float]:
    """Return the light where the glass is clear, red, green and blue, 0 to 255: the median over the cells."""
    progress.start("Looking at the background", len(cells))
    levels = []
    for cell in cells:
        levels.append(background_of(read_image(cell.path)))
        progress.advance()
    progress.close()
    return [float(level) for level in np.median(levels, axis=0)]
