"""The form of the results that the dashboard gives away as JSON; its schema is published beside the docs."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cervicyte import __version__
from cervicyte.dashboard.cell_view import Looked
from cervicyte.dashboard.worklist import Entry, Worklist
from cervicyte.inference.classifier import Classifier
from cervicyte.provenance import RESEARCH_USE_ONLY

SCHEMA_ID = "urn:cervicyte:schemas:results-1"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """No further keys, no numbers that JSON does not have."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ModelFacts(Strict):
    """Which model answered."""

    name: str
    weights_sha256: Sha256
    preprocessing_fingerprint: str
    classes: list[str]


class ImageFacts(Strict):
    """Which image was asked about; the hash is of the file's bytes."""

    name: str
    sha256: Sha256 | None = None
    height: int | None = None
    width: int | None = None


class Unlike(Strict):
    """How unlike the training cells the image is, see docs/unlike_training.md."""

    percentile: float = Field(ge=0, le=100)
    kind: Literal["familiar", "unlike_training", "not_a_cell"]
    percentiles: dict[str, float]
    reasons: list[str]


class Answer(Strict):
    """What the model says."""

    predicted_class: str
    confidence: Share
    probabilities: dict[str, Share]
    prediction_set: list[str]
    abnormal: Share | None = Field(description="probability of the abnormal classes together, if known")
    verdict: Literal["answer", "uncertain", "unlike_training", "not_a_cell"]
    sentence: str
    unlike: Unlike | None


class MapVerdict(Strict):
    """Whether a map beats its controls, see docs/explanation_audit.md."""

    class_name: str
    method: str
    layer: str
    tested: bool
    beats_controls: bool
    score: float | None
    controls: dict[str, float]
    sentence: str


class Areas(Strict):
    """Pixels of the outlines that a program drew, in the image as it is shown."""

    nucleus: int
    cell: int
    ratio: Share


class CellResult(Strict):
    """One image: an answer or an error."""

    image: ImageFacts
    answer: Answer | None
    error: str | None = None
    maps: list[MapVerdict] = []
    areas: Areas | None = None


class Results(Strict):
    """What a download holds: one cell, or a worklist in its order, most abnormal first."""

    model_config = ConfigDict(
        json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID}
    )

    notice: Literal["For research use only. Not for diagnostic procedures."]
    format: Literal["cervicyte-results-1"] = "cervicyte-results-1"
    program: str
    written: str = Field(description="UTC, ISO 8601")
    model: ModelFacts
    cells: list[CellResult]


def results_of(
    classifier: Classifier, model_name: str, worklist: Worklist, entries: list[Entry], looked: Looked | None
) -> Results:
    """Return the results of entries; maps and areas only of the cell that is looked at."""
    model = classifier.model
    return Results(
        notice=RESEARCH_USE_ONLY,
        program=f"Cervicyte {__version__}",
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        model=ModelFacts(
            name=model_name,
            weights_sha256=classifier.weights_sha256,
            preprocessing_fingerprint=model.preprocessing.fingerprint(),
            classes=list(classifier.class_names),
        ),
        cells=[_cell(worklist, entry, looked) for entry in entries],
    )


def _cell(worklist: Worklist, entry: Entry, looked: Looked | None) -> CellResult:
    if entry.prediction is None:
        return CellResult(image=ImageFacts(name=entry.name), answer=None, error=entry.error)
    own = looked if looked is not None and looked.entry is entry else None
    areas = own.areas if own else None
    return CellResult(
        image=ImageFacts(name=entry.name, sha256=entry.sha256, height=entry.height, width=entry.width),
        answer=_answer(worklist, entry),
        maps=[
            MapVerdict(
                class_name=class_name,
                method=method,
                layer=layer,
                tested=verdict.tested,
                beats_controls=verdict.beats_controls,
                score=None if math.isnan(verdict.score) else verdict.score,
                controls=verdict.controls,
                sentence=verdict.sentence,
            )
            for (class_name, method, layer), verdict in (own.verdicts.items() if own else ())
        ],
        areas=Areas(nucleus=areas[0], cell=areas[1], ratio=areas[0] / areas[1]) if areas else None,
    )


def _answer(worklist: Worklist, entry: Entry) -> Answer:
    prediction = entry.prediction
    assert prediction is not None
    abnormal = worklist.abnormal(prediction)
    unlike = prediction.unlike
    return Answer(
        predicted_class=prediction.class_name,
        confidence=_share(prediction.confidence),
        probabilities={name: _share(value) for name, value in prediction.probabilities.items()},
        prediction_set=list(prediction.prediction_set),
        abnormal=None if abnormal is None else _share(abnormal),
        verdict=prediction.verdict,
        sentence=prediction.sentence,
        unlike=None
        if unlike is None
        else Unlike(
            percentile=unlike.unlike_percentile,
            kind=unlike.kind,
            percentiles=unlike.percentiles,
            reasons=list(unlike.reasons),
        ),
    )


def _share(value: float) -> float:
    """Return a probability in its bounds, which a sum of rounded ones may overstep by 1e-7."""
    return min(1.0, max(0.0, float(value)))


def schema() -> dict[str, Any]:
    """Return the JSON schema of `Results`, as docs/schemas/results-1.json holds it."""
    return Results.model_json_schema()
