"""Whether the map of one image can be relied on: does it find better than three controls what counts?

Definition. A map's score is insertion minus deletion: the area under the class's probability while the
map's most important pixels are put back into the blurred image, minus the area while they are taken out
of the image (`faithfulness.deletion_and_insertion`, `STEPS` steps). A map beats the controls if its score
exceeds that of each by more than `MARGIN`: the centre blob, the image's own darkness, and the same method
at the same layer of a network with random weights (`controls`). It must exceed 0 by as much, too: a map and
its reverse have scores of opposite signs but for what replaces the pixels, so that with 0 what it marks
counts for no more than what it leaves out, and being ahead of controls that are worse still is worth nothing.

What it cannot tell. It asks which pixels this network relies on, not whether it should, nor whether its
answer is right. Images with pixels taken out are like none that the network was trained on, and few steps
make a coarse measure: of maps drawn blindly about one in four would pass. A map that fails is not shown to
be wrong; the centre or the darkness may be what the network relies on. The audit has the figures over many
cells, with intervals.

A class that the network gives next to no probability leaves nothing to take away: its map is not tested, and
does not beat anything. The unchanged image alone settles that, in one pass for all classes of an image. Nor
is a map tested that marks nothing: its pixels would be ranked by a draw, which may well win.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cervicyte.explanation import cam
from cervicyte.explanation.controls import CONTROLS, control_maps
from cervicyte.explanation.faithfulness import Score, deletion_and_insertion, of_target, probabilities_of
from cervicyte.network.frozen import FrozenModel

if TYPE_CHECKING:
    from cervicyte.network.model_file import ModelFile

STEPS = 6
MARGIN = 0.01  # of a score between -1 and 1; what is closer is not called a difference
LEAST_PROBABILITY = 0.05  # of the class: below, there is next to nothing to take away or to put back
FORWARD_PASSES = 3 + 2 * (1 + len(CONTROLS)) * (STEPS - 1) + 1
"""Images that the test of one map sends through a network: whole, empty and blurred, the steps of the map
and of each control in both directions, and the random network's own map (which also takes a backward pass).
Several maps of one image share the first three and the steps of centre and darkness. A map that is not tested
costs no more than its share in the whole image's pass."""

NAMES = {
    "centre": "a blob in the centre",
    "darkness": "the image's own darkness",
    "random": "a network with random weights",
}


@dataclass(frozen=True)
class Verdict:
    """What was measured for one map.

    Attributes:
        score: insertion minus deletion, -1 to 1; NaN if the map was not tested.
        controls: the same of each control, by the names in `controls.CONTROLS`; none if not tested.
        forward_passes: images sent through a network for this verdict. What several verdicts on one image
            share is counted with the first of them that needs it.
        probability: of what is explained, on the whole image, as the network gives it, before calibration;
            below `LEAST_PROBABILITY` no map is tested.
        empty: whether the map marks nothing.
    """

    score: float
    controls: dict[str, float]
    forward_passes: int
    probability: float
    empty: bool = False

    @property
    def tested(self) -> bool:
        """Whether the class has enough probability, and a map, to be held against the controls."""
        return self.probability >= LEAST_PROBABILITY and not self.empty

    @property
    def unbeaten(self) -> list[str]:
        """The controls whose scores the map's does not exceed by more than `MARGIN`."""
        return [name for name, score in self.controls.items() if self.score <= score + MARGIN]

    @property
    def beats_controls(self) -> bool:
        """Whether it was tested and beats every control, and is worth something itself."""
        return self.tested and bool(is_ahead(self.score, list(self.controls.values())))

    @property
    def sentence(self) -> str:
        """The verdict in words for the person who looks at the map."""
        if self.empty:
            return "The map is empty: at this layer nothing in the image speaks for this class."
        if not self.tested:
            return (
                f"Not to be relied on: before calibration the network gives this class "
                f"{100 * self.probability:.1f} %, too little for the map to be tested."
            )
        if self.beats_controls:
            best = max(self.controls, key=lambda name: self.controls[name])
            return (
                f"On this image the map beats all {len(self.controls)} controls: score {self.score:z.2f}; "
                f"the best control, {NAMES[best]}, {self.controls[best]:z.2f}."
            )
        if not self.unbeaten:
            return (
                "On this image what the map marks counts for no more than what it leaves out: score "
                f"{self.score:z.2f}, if above all {len(self.controls)} controls. Do not rely on where it "
                "points."
            )
        listed = ", ".join(f"{NAMES[name]} ({self.controls[name]:z.2f})" for name in self.unbeaten)
        return (
            f"On this image the map does not beat {listed}: score {self.score:z.2f}. Do not rely on where it "
            "points."
        )

    @property
    def short(self) -> str:
        """The verdict in a few words, for a place below a picture."""
        if self.empty:
            return "not tested: the map is empty"
        if not self.tested:
            return f"not tested: under {100 * LEAST_PROBABILITY:.0f} %, uncalibrated"
        if self.beats_controls:
            return "beats the controls"
        return f"does not beat: {', '.join(self.unbeaten)}" if self.unbeaten else "marks what counts no more"


def is_ahead(score: np.ndarray | float, controls: Sequence[np.ndarray | float]) -> np.ndarray:
    """Return whether scores exceed 0 and those of all controls by more than `MARGIN`; arrays of one shape."""
    best: np.ndarray = functools.reduce(np.maximum, controls, np.zeros(np.shape(score)))
    return np.asarray(score > best + MARGIN)


def verdicts(
    model: ModelFile | FrozenModel,
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
        inputs: preprocessed images, uint8 [N, S, S, 3], RGB; an image stands there once for each of its maps.
        maps: of what speaks for the class, float [N, h, w], edge to edge over the inputs.
        targets: what each map explains: a class by its index, or a contrast of two named ones, of which the
            probability among these two alone is measured.
        method, layer: how the maps were made; the random network is asked for the same.
        score: what is measured; the network's probabilities unless given, as it must be of a frozen model.
    """
    if not len(inputs) == len(maps) == len(targets):
        raise ValueError(f"{len(inputs)} images, {len(maps)} maps and {len(targets)} targets do not match")
    if not len(inputs):
        return []
    if score is None:
        assert not isinstance(model, FrozenModel)  # only an engine computes it
        score = probabilities_of(model)
    rows_of: dict[bytes, list[int]] = {}
    for row, image in enumerate(inputs):
        rows_of.setdefault(image.tobytes(), []).append(row)
    whole = score(inputs[[rows[0] for rows in rows_of.values()]])
    found: dict[int, Verdict] = {}
    for rows, probabilities in zip(rows_of.values(), whole, strict=True):
        for row, passes in zip(rows, [1] + [0] * (len(rows) - 1), strict=True):
            probability = float(of_target(probabilities, targets[row]))
            found[row] = Verdict(math.nan, {}, passes, probability, empty=not (maps[row] > 0).any())
        tested = [row for row in rows if found[row].tested]
        if tested:
            image, asked = inputs[rows[0]], [targets[row] for row in tested]
            controls = control_maps(model, inputs[tested], asked, method, layer)
            tried = [maps[row] for row in tested] + [values for name in CONTROLS for values in controls[name]]
            measured = deletion_and_insertion(
                score, image, tried, asked * (1 + len(CONTROLS)), STEPS, probabilities
            )
            scores = (measured.insertion - measured.deletion).reshape(1 + len(CONTROLS), len(tested))
            for place, (row, (own, *others)) in enumerate(zip(tested, scores.T.tolist(), strict=True)):
                found[row] = Verdict(
                    own,
                    dict(zip(CONTROLS, others, strict=True)),
                    found[row].forward_passes + (measured.scored if place == 0 else 0) + 1,
                    found[row].probability,
                )
    return [found[row] for row in range(len(inputs))]
