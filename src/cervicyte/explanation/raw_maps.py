"""Where the maps of a gallery come from: the gradients of the network, or one pass of an engine."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cervicyte.evaluation.answers import Answerer, Prediction, answers_and_output, answers_for
from cervicyte.evaluation.predictions import softmax
from cervicyte.explanation import cam
from cervicyte.explanation.cam import Contrast
from cervicyte.explanation.faithfulness import SCORED_AT_ONCE, Score
from cervicyte.images.statistics import image_statistics
from cervicyte.network.frozen import FrozenModel
from cervicyte.network.graph import Output
from cervicyte.pages import counted

if TYPE_CHECKING:
    from cervicyte.network.model_file import ModelFile


class Computes(Protocol):
    """An engine: gives the answer and, at the network's last layer, the maps in one pass."""

    @property
    def name(self) -> str:
        """As the command line has it."""
        ...

    def run(self, images: np.ndarray, evidence: bool = False) -> Output:
        """See `inference.engines.Engine.run`."""
        ...


@dataclass(frozen=True)
class Raw:
    """What the network makes of N cells.

    Attributes:
        logits: float32 [N, C].
        said: of each cell.
        pairs: of each contrast, the two classes of each cell.
        maps: layer -> evidence for, and for minus against, float32 [N, T, h, w] each, of every class and
            then of every contrast.
    """

    logits: np.ndarray
    said: list[Prediction]
    pairs: dict[Contrast, list[list[int]]]
    maps: dict[str, tuple[np.ndarray, np.ndarray]]


def put_second_looks(
    answerer: Answerer, images: Sequence[np.ndarray], said: Sequence[Prediction], inputs: np.ndarray
) -> None:
    """Replace in `inputs`, uint8 [N, S, S, 3], what was looked at once more."""
    for at, one in enumerate(said):
        if one.looked_again:
            assert answerer.second_look is not None
            inputs[at] = answerer.second_look(images[at])


@dataclass
class OfNetwork:
    """Maps by the gradients of the network itself.

    Attributes:
        layers, method: of the maps.
        contrasts: that are asked for beside every class.
        score: what verdicts measure; None is the network's own.
        unexplained: the largest difference between HiResCAM's sum at the last layer and a logit.
    """

    model: ModelFile
    layers: tuple[str, ...]
    method: str
    contrasts: tuple[Contrast, ...]
    score: Score | None = None
    unexplained: float = 0.0

    def __post_init__(self) -> None:
        """Read what the model answers by."""
        self.answerer = Answerer.of(self.model)

    def raw(self, images: Sequence[np.ndarray], inputs: np.ndarray) -> Raw:
        """Return what the network makes of images, as read and as preprocessed, uint8 [N, S, S, 3].

        In `inputs`, images that were looked at once more are replaced by what was seen then.
        """
        import torch

        from cervicyte.explanation.controls import network_input

        said = answers_for(self.model, self.answerer, images, inputs)
        put_second_looks(self.answerer, images, said, inputs)
        count = len(self.model.class_names)
        last = self.model.network.layers[-1]
        found = cam.differentiate(
            self.model.network,
            network_input(self.model, inputs),
            tuple(dict.fromkeys([*self.layers, last])),
            [*range(count), *self.contrasts],
        )
        of_classes = found._replace(gradients={last: found.gradients[last][:, :count]})
        left_over = cam.unexplained_by_hirescam(self.model.network, of_classes)
        self.unexplained = max(self.unexplained, left_over)
        pairs = {one: torch.stack(cam.contrasted(found.logits, one), 1).tolist() for one in self.contrasts}
        formula = cam.method_named(self.method)
        maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for layer in self.layers:
            both = found.activations[layer], found.gradients[layer]
            maps[layer] = formula.maps(*both).cpu().numpy(), formula.signed_maps(*both).cpu().numpy()
        return Raw(found.logits.float().cpu().numpy(), said, pairs, maps)

    def note(self, cells: int) -> str:
        """Return what is to be said of the maps of so many cells."""
        kept = self.unexplained <= 1e-4
        return (
            f"HiResCAM at {self.model.layers[-1]} plus the class's bias {'is' if kept else 'IS NOT'} its "
            f"logit: the largest difference over {counted(cells, 'cell')} and "
            f"{len(self.model.class_names)} classes is {self.unexplained:.1e}."
        )


@dataclass
class OfEngine:
    """Maps that an engine gives together with the answer."""

    model: ModelFile | FrozenModel
    engine: Computes
    contrasts: tuple[Contrast, ...]

    def __post_init__(self) -> None:
        """Read what the model answers by."""
        self.answerer = Answerer.of(self.model)

    def raw(self, images: Sequence[np.ndarray], inputs: np.ndarray) -> Raw:
        """See `OfNetwork.raw`."""
        asked_for = images if self.answerer.familiarity is not None else ()
        statistics = np.array([image_statistics(image) for image in asked_for])
        run = functools.partial(self.engine.run, evidence=True)
        said, output = answers_and_output(self.answerer, run, inputs, images, statistics)
        assert output.evidence is not None
        put_second_looks(self.answerer, images, said, inputs)
        pairs = {
            one: [list(cam.contrasted_of(logits, one)) for logits in output.logits] for one in self.contrasts
        }
        signed = [
            np.stack(
                [
                    *evidence,
                    *(cam.evidence_for(evidence, Contrast(*of_cells[n])) for of_cells in pairs.values()),
                ]
            )
            for n, evidence in enumerate(output.evidence)
        ]
        both = np.stack(signed).clip(min=0), np.stack(signed)
        return Raw(output.logits, said, pairs, {self.model.layers[-1]: both})

    def score(self, images: np.ndarray) -> np.ndarray:
        """Return every class's probability, float64 [N, C], for verdicts."""
        parts = [
            softmax(self.engine.run(images[start : start + SCORED_AT_ONCE]).logits)
            for start in range(0, len(images), SCORED_AT_ONCE)
        ]
        return np.concatenate(parts)

    def note(self, cells: int) -> str:
        """Return what is to be said of the maps of so many cells."""
        return (
            f"Answers and maps are of {self.engine.name}, both from the same pass: how much each place at "
            f"{self.model.layers[-1]} adds to the logit of a class."
        )
