"""Whether the map of one image can be relied on: does it find better than three controls what counts?

Definition. A map's score is insertion minus deletion: the area under the class's probability while the
map's most important pixels are put back into the blurred image, minus the area while they are taken out
of the image (`faithfulness.deletion_and_insertion`, `STEPS` steps). A map beats the controls if its score
exceeds that of each by more than `MARGIN`: the centre blob, the image's own darkness, and the same method
at the same layer of a network with random weights (`controls`).

What it cannot tell. It asks which pixels this network relies on, not whether it should, nor whether its
answer is right. Images with pixels taken out are like none that the network was trained on, and few steps
make a coarse measure: of maps drawn blindly about one in four would pass. A map that fails is not shown to
be wrong; the centre or the darkness may be what the network relies on. The audit has the figures over many
cells, with intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cervicyte.explanation import cam
from cervicyte.explanation.controls import CONTROLS, control_maps
from cervicyte.explanation.faithfulness import Score, deletion_and_insertion, probability_of
from cervicyte.network.model_file import ModelFile

STEPS = 6
MARGIN = 0.01  # of a score between -1 and 1; what is closer is not called a difference
LEAST_PROBABILITY = 0.05  # of the class: below, there is next to nothing to take away or to put back
FORWARD_PASSES = 3 + 2 * (1 + len(CONTROLS)) * (STEPS - 1) + 1
"""Images that one verdict sends through a network: whole, empty and blurred, the steps of the map and of
each control in both directions, and the random network's own map (which also takes a backward pass)."""

NAMES = {
    "centre": "a blob in the centre",
    "darkness": "the image's own darkness",
    "random": "a network with random weights",
}


@dataclass(frozen=True)
class Verdict:
    """What was measured for one map.

    Attributes:
        beats_controls: its score exceeds that of every control by more than `MARGIN`, and the class has
            some probability to begin with.
        score: insertion minus deletion, -1 to 1.
        controls: the same of each control, by the names in `controls.CONTROLS`.
        forward_passes: images sent through a network for this verdict.
        probability: of the explained class on the whole image; below `LEAST_PROBABILITY` nothing beats.
    """

    beats_controls: bool
    score: float
    controls: dict[str, float]
    forward_passes: int
    probability: float

    @property
    def sentence(self) -> str:
        """The verdict in words for the person who looks at the map."""
        if self.probability < LEAST_PROBABILITY:
            return (
                f"Not to be relied on: the network gives this class {100 * self.probability:.1f} %, too "
                "little for the map to be tested."
            )
        if self.beats_controls:
            best = max(self.controls, key=lambda name: self.controls[name])
            return (
                f"On this image the map beats all {len(self.controls)} controls: score {self.score:.2f}; the "
                f"best control, {NAMES[best]}, {self.controls[best]:.2f}."
            )
        ahead = [name for name in self.controls if self.score <= self.controls[name] + MARGIN]
        listed = ", ".join(f"{NAMES[name]} ({self.controls[name]:.2f})" for name in ahead)
        return (
            f"On this image the map does not beat {listed}: score {self.score:.2f}. Do not rely on where it "
            "points."
        )


def verdicts(
    model: ModelFile,
    inputs: np.ndarray,
    maps: Sequence[np.ndarray] | np.ndarray,
    targets: Sequence[cam.Target],
    method: str = cam.DEFAULT_METHOD,
    layer: str = cam.DEFAULT_LAYER,
    score: Score | None = None,
) -> list[Verdict]:
    """Return a verdict for each map. Nothing about the network changes: threads may share it.

    Args:
        model: its network lies on any device, in evaluation mode.
        inputs: preprocessed images, uint8 [N, S, S, 3], RGB.
        maps: of what speaks for the class, float [N, h, w], edge to edge over the inputs.
        targets: what the map of each image explains: a class by its index, or a contrast of two named ones,
            whose score is the probability among these two alone.
        method, layer: how the maps were made; the random network is asked for the same.
        score: what is measured; the probability unless given.
    """
    if not len(inputs) == len(maps) == len(targets):
        raise ValueError(f"{len(inputs)} images, {len(maps)} maps and {len(targets)} targets do not match")
    if not len(inputs):
        return []
    controls = control_maps(model, inputs, targets, method, layer)
    found = []
    for index, (image, target) in enumerate(zip(inputs, targets, strict=True)):
        tried = [maps[index], *(controls[name][index] for name in CONTROLS)]
        of, against = _classes_of(target)
        measured = deletion_and_insertion(score or probability_of(model, against), image, of, tried, STEPS)
        own, *others = (float(value) for value in measured.insertion - measured.deletion)
        probable = measured.whole >= LEAST_PROBABILITY
        found.append(
            Verdict(
                beats_controls=probable and all(own > other + MARGIN for other in others),
                score=own,
                controls=dict(zip(CONTROLS, others, strict=True)),
                forward_passes=measured.scored + 1,
                probability=measured.whole,
            )
        )
    return found


def _classes_of(target: cam.Target) -> tuple[int, int | None]:
    """Return the class explained, and of a contrast the one that it is held against."""
    if not isinstance(target, cam.Contrast):
        return int(target), None
    if target.of is None or target.against is None:
        raise ValueError("a contrast to be judged names both classes")
    return target.of, target.against
