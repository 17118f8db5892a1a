"""The API: what the dashboard shows, for programs. See docs/dashboard_server.md.

Images come as multipart or as base64 in JSON. Answers are the models below, whose JSON schema `/schema`
gives; errors are problem details (RFC 9457), one sentence each. Images stay in memory and are gone with the
answer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cervicyte import __version__
from cervicyte.dashboard.access import OPEN_TO_ALL
from cervicyte.dashboard.batching import Asked, Batcher, Busy, Found, Wanted, log_failure
from cervicyte.dashboard.limits import (
    MAX_BODIES_MB,
    MAX_EXPLAINED_AT_ONCE,
    MAX_EXPLAINED_IMAGES,
    MAX_EXPLAINED_PIXELS,
    MAX_IMAGES,
    MAX_NAME,
    MAX_PIXELS,
    MAX_UPLOAD_MB,
    SHOWN_SIDE,
)
from cervicyte.dashboard.monitoring import CONTENT_TYPE, Monitor
from cervicyte.dashboard.problems import MEDIA_TYPE, RETRY, Problem, ProblemError, busy
from cervicyte.errors import CervicyteError
from cervicyte.evaluation.answers import Verdict
from cervicyte.evaluation.model_card import model_card
from cervicyte.explanation import cam
from cervicyte.explanation.colours import overlay
from cervicyte.inference.classifier import Classifier
from cervicyte.provenance import RESEARCH_USE_ONLY

PREFIX = "/api/v1"
FIELD = "images"  # of a form
DIALECT = "https://json-schema.org/draft/2020-12/schema"
CLIENT_GONE = 499  # nobody reads it; for the counters

# --- what goes in and out --------------------------------------------------------------------------


class Closed(BaseModel):
    """Takes no other fields than its own."""

    model_config = ConfigDict(extra="forbid")


class EncodedImage(Closed):
    """An image in JSON."""

    name: str = Field("image", description="As the answer is to call it; never used as a path.")
    data: str = Field(
        description="The bytes of a BMP, PNG, JPEG or TIFF file, in base64.",
        json_schema_extra={"contentEncoding": "base64"},
    )


class PredictRequest(Closed):
    """Images to classify."""

    images: list[EncodedImage] = Field(min_length=1, max_length=MAX_IMAGES)


class ExplainRequest(Closed):
    """Images to explain."""

    images: list[EncodedImage] = Field(min_length=1, max_length=MAX_EXPLAINED_IMAGES)


class Model(Closed):
    """Which model answered."""

    name: str
    sha256: str = Field(description="Of all weights, by name and value.")
    version: str = Field(description="Of Cervicyte.")


class Unlike(Closed):
    """How unlike the training cells an image is."""

    percentile: float = Field(
        ge=0, le=100, description="Share of the training laboratory's cells that are less unlike, %."
    )
    kind: Literal["familiar", "unlike_training", "not_a_cell"]
    reasons: list[str] = Field(description="In what, the strongest first; none if it is familiar.")


class Values(Closed):
    """Numbers of a map."""

    dtype: Literal["<f4"] = Field("<f4", description="float32, little-endian, row by row.")
    shape: tuple[int, int] = Field(description="Rows, columns.")
    base64: str


class Map(Closed):
    """The places that speak for one class, edge to edge over the image."""

    class_name: str
    layer: str
    method: str
    highest: float = Field(ge=0, description="The map's highest value, in units of the method.")
    scale: float = Field(ge=0, description="The value shown hottest: the same for all maps of an image.")
    overlay_png: str | None = Field(
        description=f"The map over the image, PNG in base64; no side longer than {SHOWN_SIDE} pixels."
    )
    values: Values | None = Field(description="Its numbers, no side longer than the overlay's.")


class MapVerdict(Closed):
    """Whether a map finds better than controls what the network relies on."""

    class_name: str
    tested: bool
    beats_controls: bool
    sentence: str
    score: float | None
    controls: dict[str, float]


class Answered(Closed):
    """What the model says of one image."""

    status: Literal["answered"] = "answered"
    name: str
    image_sha256: str = Field(description="Of the file's bytes.")
    height: int
    width: int
    predicted_class: str = Field(description="The likeliest class, whatever the verdict.")
    confidence: float = Field(ge=0, le=1, description="Its probability.")
    probabilities: dict[str, float]
    prediction_set: list[str] = Field(
        description="The classes that it may well be, likeliest first; none if the model has no calibration."
    )
    verdict: Verdict
    sentence: str = Field(description="The verdict in plain words.")
    unlike: Unlike | None = Field(description="None if the model cannot tell.")
    maps: list[Map] = Field(description="Empty unless they were asked for.")
    map_verdict: MapVerdict | None = Field(description="On the predicted class's map, if it was asked for.")


class Refused(Closed):
    """Why one image of several was not used."""

    status: Literal["refused"] = "refused"
    name: str
    image_sha256: str
    error: str


Result = Annotated[Answered | Refused, Field(discriminator="status")]


class Answers(Closed):
    """What the model says of the images, in their order."""

    notice: str = RESEARCH_USE_ONLY
    model: Model
    notes: list[str] = Field(description="What this model cannot say.")
    results: list[Result]


class Figure(BaseModel):
    """A measured figure with the ends of its 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Limits(Closed):
    """How much one request may hold."""

    megabytes: int = MAX_UPLOAD_MB
    pixels: int = MAX_PIXELS
    images: int = MAX_IMAGES
    explained_pixels: int = MAX_EXPLAINED_PIXELS
    explained_images: int = MAX_EXPLAINED_IMAGES


class AboutModel(Closed):
    """What is known of the model."""

    notice: str = RESEARCH_USE_ONLY
    model: Model
    class_names: list[str]
    image_size: int = Field(description="Side of the square that the network sees, in pixels.")
    methods: list[str]
    layers: list[str]
    default_method: str
    default_layer: str
    notes: list[str] = Field(description="What this model cannot say.")
    cross_validation: dict[str, Figure] = Field(description="Measured on the folds; empty if it was not.")
    card: str = Field(description="The model card, Markdown.")
    limits: Limits


class Health(Closed):
    """The server's state."""

    notice: str = RESEARCH_USE_ONLY
    status: Literal["ok", "ready"]
    model: str
    version: str


def answer_schema() -> dict[str, Any]:
    """Return the JSON schema of `Answers`."""
    return {
        "$schema": DIALECT,
        **Answers.model_json_schema(mode="serialization"),
    }


# --- the application -------------------------------------------------------------------------------


def build_api(classifier: Classifier, model_name: str, batcher: Batcher, monitor: Monitor) -> FastAPI:
    """Return the API, to be mounted at `PREFIX`.

    Args:
        classifier: of the batcher.
        model_name: as answers name the model.
        batcher: answers.
        monitor: counts.
    """
    asking = Asking(classifier, model_name, batcher, monitor)
    about = about_model(classifier, asking.model)
    names = list(classifier.class_names)
    api = DescribedAPI(
        title="Cervicyte",
        version=__version__,
        summary="Names the class of a Pap-smear cell and shows what spoke for it.",
        description=RESEARCH_USE_ONLY,
        # FastAPI's pages of documentation load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    api.add_middleware(Counted, monitor=monitor)
    for kind in (HTTPException, RequestValidationError, CervicyteError, ProblemError):
        api.add_exception_handler(kind, problem_of)

    @api.post(
        "/predict",
        summary="Classify images",
        responses=answered_responses(),
        openapi_extra=request_body(PredictRequest),
    )
    async def predict(request: Request) -> Response:
        return await asking.answer(request, None)

    @api.post(
        "/explain",
        summary="Classify images and show which places spoke for each class",
        responses=answered_responses(),
        openapi_extra=request_body(ExplainRequest),
    )
    async def explain(
        request: Request,
        classes: Annotated[
            list[str] | None, Query(description="Of which maps are wanted; all unless given.", alias="class")
        ] = None,
        method: Annotated[str, Query(description=f"One of {', '.join(cam.METHODS)}.")] = cam.DEFAULT_METHOD,
        layer: Annotated[
            str | None, Query(description="Of the network, see `/model`, which names the default, too.")
        ] = None,
        maps: Annotated[
            Literal["overlay", "values", "both"], Query(description="As pictures, as numbers, or both.")
        ] = "overlay",
        verdict: Annotated[
            bool,
            Query(description="Hold the predicted class's map against controls: takes many times as long."),
        ] = False,
    ) -> Response:
        for name in classes or ():
            if name not in names:
                raise ProblemError(422, f"There is no class {name!r}; choose from {', '.join(names)}.")
        layer = layer or classifier.default_layer
        classifier.check_map(layer, method)
        wanted = Wanted(tuple(dict.fromkeys(classes or names)), layer, method, verdict)
        return await asking.answer(request, wanted, maps)

    @api.get("/model", summary="Which model answers, and what is known of it")
    async def model() -> AboutModel:
        return about

    @api.head("/health", include_in_schema=False)
    @api.get("/health", summary="Whether the server lives")
    async def health() -> Health:
        return Health(status="ok", model=model_name, version=__version__)

    @api.head("/ready", include_in_schema=False)
    @api.get("/ready", summary="Whether the model answers", responses=problems(503))
    async def ready() -> Health:
        if not batcher.ready.is_set():
            if batcher.tried.is_set():
                raise ProblemError(503, "The model failed at a first image: see the server's log.")
            raise ProblemError(503, "The model is being made ready; ask again.", headers=RETRY)
        return Health(status="ready", model=model_name, version=__version__)

    @api.get(
        "/metrics",
        summary="Counters, for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        return Response(monitor.text(), headers={"Content-Type": CONTENT_TYPE})

    @api.get("/schema", summary="JSON schema of the answers of `/predict` and `/explain`")
    async def schema() -> dict[str, Any]:
        return answer_schema()

    return api


def about_model(classifier: Classifier, model: Model) -> AboutModel:
    """Return what is known of a model."""
    figures = classifier.model.metadata.get("cross_validation", {}).get("figures", {})
    return AboutModel(
        model=model,
        class_names=list(classifier.class_names),
        image_size=classifier.model.preprocessing.image_size,
        methods=list(classifier.methods),
        layers=list(classifier.layers),
        default_method=cam.DEFAULT_METHOD,
        default_layer=classifier.default_layer,
        notes=list(classifier.notes),
        cross_validation={name: Figure.model_validate(figure) for name, figure in figures.items()},
        card=model_card(classifier.model),
        limits=Limits(),
    )


class Asking:
    """Takes a request's images to the network and its answers back."""

    def __init__(self, classifier: Classifier, model_name: str, batcher: Batcher, monitor: Monitor) -> None:
        """Take what `build_api` was given."""
        self.model = Model(name=model_name, sha256=classifier.weights_sha256, version=__version__)
        self.notes = list(classifier.notes)
        self.batcher = batcher
        self.monitor = monitor
        self.bodies = Bodies()

    async def answer(self, request: Request, wanted: Wanted | None, shown: str = "overlay") -> Response:
        """Answer a request.

        Args:
            request: holds images.
            wanted: which maps are asked for.
            shown: how: `overlay`, `values` or `both`.

        Raises:
            ProblemError: there is nothing to answer.
        """
        with self.bodies.held() as held:
            images = await images_of(request, wanted, held)
            asked = [Asked(content, name, wanted) for name, content in images]
            if wanted is not None:
                held.add_explained(len(asked))
            try:
                self.batcher.submit(asked)
            except Busy:
                raise busy() from None
            found = await _answers(request, asked)
            if found is None:
                return Response(status_code=CLIENT_GONE)
            return await run_in_threadpool(self._response, asked, found, shown)

    def _response(
        self, asked: Sequence[Asked], found: Sequence[Found | BaseException], shown: str
    ) -> Response:
        results: list[Answered | Refused] = []
        for one, outcome in zip(asked, found, strict=True):
            digest = hashlib.sha256(one.content).hexdigest()
            if isinstance(outcome, Found):
                results.append(answered(one, digest, outcome, shown))
                self.monitor.images.labels(outcome.prediction.verdict).inc()
            elif isinstance(outcome, CervicyteError):
                results.append(Refused(name=one.name, image_sha256=digest, error=str(outcome)))
                self.monitor.images.labels("refused").inc()
            else:  # the batcher has logged it
                self.monitor.images.labels("failed").inc()
                raise ProblemError(500, f"{one.name}: the server failed on this image; its log says where.")
        errors = [one.error for one in results if isinstance(one, Refused)]
        if len(errors) == len(results):
            detail = errors[0] if len(errors) == 1 else f"None of the {len(errors)} images can be used."
            raise ProblemError(422, detail, errors)
        answers = Answers(model=self.model, notes=self.notes, results=results)
        return Response(answers.model_dump_json(), media_type="application/json")


def answered(asked: Asked, digest: str, found: Found, shown: str) -> Answered:
    """Return what goes out for one image; arguments as in `Asking`."""
    prediction = found.prediction
    unlike = None
    if prediction.unlike is not None:
        unlike = Unlike(
            percentile=prediction.unlike.unlike_percentile,
            kind=prediction.unlike.kind,
            reasons=list(prediction.unlike.reasons),
        )
    verdict = None
    if found.verdict is not None:
        verdict = MapVerdict(
            class_name=prediction.class_name,
            tested=found.verdict.tested,
            beats_controls=found.verdict.beats_controls,
            sentence=found.verdict.sentence,
            score=None if math.isnan(found.verdict.score) else found.verdict.score,
            controls=found.verdict.controls,
        )
    return Answered(
        name=asked.name,
        image_sha256=digest,
        height=found.height,
        width=found.width,
        predicted_class=prediction.class_name,
        confidence=prediction.confidence,
        probabilities=prediction.probabilities,
        prediction_set=list(prediction.prediction_set),
        verdict=prediction.verdict,
        sentence=prediction.sentence,
        unlike=unlike,
        maps=maps_of(found, asked.wanted, shown) if asked.wanted is not None else [],
        map_verdict=verdict,
    )


def maps_of(found: Found, wanted: Wanted, shown: str) -> list[Map]:
    """Return the maps as pictures over the image, as numbers, or both."""
    assert found.image is not None
    scale = max(found.highest.values(), default=0.0)
    return [
        Map(
            class_name=name,
            layer=wanted.layer,
            method=wanted.method,
            highest=found.highest[name],
            scale=scale,
            overlay_png=png(overlay(found.image, values, scale)) if shown in ("overlay", "both") else None,
            values=numbers(values) if shown in ("values", "both") else None,
        )
        for name, values in found.maps.items()
    ]


def png(image: np.ndarray) -> str:
    """Return uint8 [H, W, 3] as PNG in base64."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", compress_level=1)
    return base64.b64encode(data.getvalue()).decode()


def numbers(values: np.ndarray) -> Values:
    """Return float32 [H, W] as they go out."""
    height, width = values.shape
    return Values(shape=(height, width), base64=base64.b64encode(values.astype("<f4").tobytes()).decode())


async def _answers(request: Request, asked: Sequence[Asked]) -> list[Found | BaseException] | None:
    """Wait for all answers, or until the client has gone: then what has not begun is cancelled."""
    awaited = [asyncio.wrap_future(one.answer) for one in asked]
    answers = asyncio.gather(*awaited, return_exceptions=True)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {answers, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            return None
        found = answers.result()
        if any(isinstance(one, asyncio.CancelledError) for one in found):  # the server ends
            raise busy()
        return found
    finally:
        gone.cancel()
        for one in awaited:
            one.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- what comes in ---------------------------------------------------------------------------------


class Bodies:
    """Counts what lies in memory of all requests: their bytes, and the images whose maps they ask for."""

    def __init__(self) -> None:
        """Count from zero."""
        self.bytes = self.explained = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[Held]:
        """Yield what one request holds; at the end it is let go."""
        held = Held(self)
        try:
            yield held
        finally:
            self.bytes -= held.bytes
            self.explained -= held.explained


@dataclass
class Held:
    """What lies in memory of one request."""

    of: Bodies
    bytes: int = 0
    explained: int = 0

    def add(self, count: int) -> None:
        """Count so many more bytes.

        Raises:
            ProblemError: this request has too many, or all together have.
        """
        self.bytes += count
        self.of.bytes += count
        if self.bytes > MAX_UPLOAD_MB << 20:
            raise too_large()
        if self.of.bytes > MAX_BODIES_MB << 20:
            raise busy()

    def add_explained(self, count: int) -> None:
        """Count so many images whose maps will lie in memory until the request is answered.

        Raises:
            ProblemError: those of all requests are too many.
        """
        self.explained += count
        self.of.explained += count
        if self.of.explained > MAX_EXPLAINED_AT_ONCE:
            raise busy()


class InMemory(MultiPartParser):
    """Keeps files in memory, whatever their size: no image is to lie on the disk."""

    spool_max_size = (MAX_UPLOAD_MB << 20) + 1


async def images_of(request: Request, wanted: Wanted | None, held: Held) -> list[tuple[str, bytes]]:
    """Return names and bytes of a request's images, one at least.

    Raises:
        ProblemError: there are none, too many or too large ones, or the body is malformed.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > MAX_UPLOAD_MB << 20:
        raise too_large()

    async def counted() -> Message:
        message = await request.receive()
        held.add(len(message.get("body", b"")))
        return message

    most = MAX_IMAGES if wanted is None else MAX_EXPLAINED_IMAGES
    bounded = Request(request.scope, counted)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            return await _images_of_form(bounded, most)
        if kind == "application/json":
            shape = PredictRequest if wanted is None else ExplainRequest
            return await run_in_threadpool(_images_of_json, await bounded.body(), shape)
    except ClientDisconnect:
        raise ProblemError(400, "The request ended early; send it again.") from None
    raise ProblemError(
        415, "The body must be multipart/form-data or application/json; set its Content-Type accordingly."
    )


async def _images_of_form(request: Request, most: int) -> list[tuple[str, bytes]]:
    parser = InMemory(request.headers, request.stream(), max_files=most, max_fields=0, max_part_size=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise ProblemError(422, f"The request has more than {most} images; send fewer at once.") from None
        if "Too many fields" in error.message:
            raise ProblemError(
                422, f"Every part must be a file in the field {FIELD!r}, with a name."
            ) from None
        raise ProblemError(400, "The body is no valid multipart/form-data; send it anew.") from None
    images = []
    for name, part in form.multi_items():
        if name != FIELD or not isinstance(part, UploadFile):
            raise ProblemError(422, f"Every part must be a file in the field {FIELD!r}, with a name.")
        images.append((plain_name(part.filename or ""), part.file.read()))
    if not images:
        raise ProblemError(422, f"The request has no image; send files in the field {FIELD!r}.")
    return images


def _images_of_json(body: bytes, shape: type[PredictRequest | ExplainRequest]) -> list[tuple[str, bytes]]:
    try:
        asked = shape.model_validate_json(body)
    except ValidationError as error:
        raise ProblemError(422, _first_fault(error.errors(include_input=False))) from None
    images = []
    for number, image in enumerate(asked.images, 1):
        try:
            images.append((plain_name(image.name), base64.b64decode(image.data, validate=True)))
        except ValueError:  # binascii's, too
            raise ProblemError(
                422, f"The data of image {number} are no valid base64; encode them anew."
            ) from None
    return images


def plain_name(name: str) -> str:
    """Return the last part of a path, in characters that can be shown, of bounded length.

    Example:
        >>> plain_name("../../etc/cell\\n1.png")
        'cell 1.png'
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(sign if sign.isprintable() else " " for sign in last).strip()
    return shown[:MAX_NAME] or "image"


# --- problems --------------------------------------------------------------------------------------

IN_WORDS = {
    404: "There is no such address here; /api/v1/openapi.json lists all.",
    405: "This address does not take this method; /api/v1/openapi.json says which it takes.",
}


def too_large() -> ProblemError:
    """Return what a request is told that has too many bytes."""
    return ProblemError(
        413, f"The request is larger than {MAX_UPLOAD_MB} MB; send fewer or smaller images at once."
    )


async def problem_of(request: Request, error: Exception) -> Response:
    """Return what a request that failed is answered."""
    if isinstance(error, ProblemError):
        return error.response()
    if isinstance(error, RequestValidationError):
        return ProblemError(422, _first_fault(error.errors())).response()
    if isinstance(error, HTTPException):
        detail = IN_WORDS.get(error.status_code, str(error.detail))
        headers = dict(error.headers) if error.headers else None
        return ProblemError(error.status_code, detail, headers=headers).response()
    return ProblemError(422, str(error)).response()


def _first_fault(errors: Sequence[Any]) -> str:
    """Return the first of pydantic's errors in a sentence, without what was sent."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    return f"{place or 'body'}: {first['msg'].rstrip('.')}; see /api/v1/openapi.json."


class Counted:
    """Counts and times requests, and answers those on which the program fails."""

    def __init__(self, app: ASGIApp, monitor: Monitor) -> None:
        """Wrap the API."""
        self.app, self.monitor = app, monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        begun = time.perf_counter()
        try:
            await self.app(scope, receive, send_noting)
        except Exception as error:
            log_failure(error)
            if not status:
                failed = ProblemError(500, "The server failed on this request; its log says where.")
                await failed.response()(scope, receive, send_noting)
        route = getattr(scope.get("route"), "path", "other")  # a fixed set, unlike addresses
        self.monitor.requests.labels(route, str(status)).inc()
        self.monitor.seconds.labels(route).observe(time.perf_counter() - begun)


# --- description -----------------------------------------------------------------------------------

EXAMPLE_IMAGE = (  # two by two pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGO8t2ofAwMDEwMDAwMDAwAbkgJK+Op4OQ"
    "AAAABJRU5ErkJggg=="
)
EXAMPLE_REQUEST = {"images": [{"name": "cell.png", "data": EXAMPLE_IMAGE}]}
EXAMPLE_ANSWER: dict[str, Any] = {
    "notice": RESEARCH_USE_ONLY,
    "model": {"name": "model/cervicyte.safetensors", "sha256": "0" * 64, "version": __version__},
    "notes": [],
    "results": [
        {
            "status": "answered",
            "name": "cell.png",
            "image_sha256": "1" * 64,
            "height": 120,
            "width": 140,
            "predicted_class": "Koilocytotic",
            "confidence": 0.61,
            "probabilities": {"Koilocytotic": 0.61, "Metaplastic": 0.39},
            "prediction_set": ["Koilocytotic", "Metaplastic"],
            "verdict": "uncertain",
            "sentence": "Uncertain between Koilocytotic and Metaplastic.",
            "unlike": {"percentile": 41.5, "kind": "familiar", "reasons": []},
            "maps": [],
            "map_verdict": None,
        },
        {
            "status": "refused",
            "name": "note.png",
            "image_sha256": "2" * 64,
            "error": "note.png: is not an image in a known format; give a BMP, PNG, JPEG or TIFF file.",
        },
    ],
}

EXAMPLE_HEALTH = Health(status="ok", model=EXAMPLE_ANSWER["model"]["name"], version=__version__)
EXAMPLES: dict[tuple[str, str], tuple[str, Any]] = {  # method and address -> media type, what it answers
    ("post", "/predict"): ("application/json", EXAMPLE_ANSWER),
    ("post", "/explain"): ("application/json", EXAMPLE_ANSWER),
    ("get", "/model"): (
        "application/json",
        AboutModel(
            model=Model(**EXAMPLE_ANSWER["model"]),
            class_names=["Koilocytotic", "Metaplastic"],
            image_size=224,
            methods=list(cam.METHODS),
            layers=["layer4"],
            default_method=cam.DEFAULT_METHOD,
            default_layer="layer4",
            notes=[],
            cross_validation={"accuracy": Figure(value=0.9, low=0.87, high=0.93)},
            card="# Model card",
            limits=Limits(),
        ).model_dump(mode="json"),
    ),
    ("get", "/health"): ("application/json", EXAMPLE_HEALTH.model_dump()),
    ("get", "/ready"): ("application/json", {**EXAMPLE_HEALTH.model_dump(), "status": "ready"}),
    ("get", "/metrics"): (
        "text/plain",
        "# HELP cervicyte_images_total Images by what became of them.\n"
        "# TYPE cervicyte_images_total counter\n"
        'cervicyte_images_total{outcome="answer"} 12.0\n',
    ),
    ("get", "/schema"): (
        "application/json",
        {"$schema": DIALECT, "title": "Answers", "type": "object"},  # cut short
    ),
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's responses of so many statuses, all problems."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": ProblemError(status, "What was wrong, and what to do.").problem().model_dump(),
                }
            },
        }
        for status in statuses
    }


def answered_responses() -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's responses of what answers images."""
    return {200: {"model": Answers}, **problems(400, 413, 415, 422, 500, 503)}


def request_body(shape: type[BaseModel]) -> dict[str, Any]:
    """Return OpenAPI's description of a body that takes images either way."""
    most = MAX_IMAGES if shape is PredictRequest else MAX_EXPLAINED_IMAGES
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    files = {"type": "array", "items": file, "minItems": 1, "maxItems": most}
    form = {
        "type": "object",
        "properties": {FIELD: files},
        "required": [FIELD],
        "additionalProperties": False,
    }
    content = {
        "application/json": {
            "schema": {"$ref": f"#/components/schemas/{shape.__name__}"},
            "example": EXAMPLE_REQUEST,
        },
        "multipart/form-data": {"schema": form},
    }
    return {"requestBody": {"required": True, "content": content}}


TOKEN_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "Where the server was started with a token, or others than this machine can reach it.",
}


class DescribedAPI(FastAPI):
    """Describes what its functions read by themselves, and its problems as what they are."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI description."""
        if self.openapi_schema is None:
            described = super().openapi()
            models = [(one, "validation") for one in (PredictRequest, ExplainRequest, Problem)]
            _, more = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
            schemas = described.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(more["$defs"])
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            # What stands before the API may ask for a token, and refuses what other sites' pages send.
            described["components"]["securitySchemes"] = {"token": TOKEN_SCHEME}
            described["security"] = [{}, {"token": []}]
            for path, operations in described["paths"].items():
                refusals = problems(421) if PREFIX + path in OPEN_TO_ALL else problems(401, 403, 421)
                for operation in operations.values():
                    operation["responses"] |= {str(status): said for status, said in refusals.items()}
            for (method, path), (kind, example) in EXAMPLES.items():  # FastAPI would leave out what is null
                answer = described["paths"][path][method]["responses"]["200"]
                answer["content"][kind]["example"] = example
        assert self.openapi_schema is not None
        return self.openapi_schema
