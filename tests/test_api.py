"""The API: what it answers, what it refuses and how, and that its description is true."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import CLASSES, api_of, encoded, png_of, png_that_states, small_classifier

from cervicyte.dashboard import api, limits
from cervicyte.dashboard.api import (
    Answers,
    Model,
    PredictRequest,
    about_model,
    answer_schema,
    plain_name,
)
from cervicyte.dashboard.model_view import limits as limits_of
from cervicyte.dashboard.problems import Problem
from cervicyte.evaluation.familiarity import Judgement
from cervicyte.explanation.colours import overlay
from cervicyte.inference.classifier import Classifier, Prediction
from cervicyte.network.description import Metadata
from cervicyte.network.model_file import weights_hash
from cervicyte.provenance import RESEARCH_USE_ONLY

BASE = "/api/v1"
CELL = png_of(0)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier()


@pytest.fixture(scope="module")
def client(classifier) -> Iterator[TestClient]:
    with api_of(classifier) as app:
        yield TestClient(app, raise_server_exceptions=False)


def form(*contents: bytes, name: str = "cell.png") -> dict[str, Any]:
    return {"files": [("images", (name, content)) for content in contents]}


def encoded_images(*contents: bytes) -> dict[str, Any]:
    images = [
        {"name": f"{at}.png", "data": base64.b64encode(one).decode()} for at, one in enumerate(contents)
    ]
    return {"json": {"images": images}}


def checked(response: Any) -> dict[str, Any]:
    """Return an answer after holding it against the published schema."""
    assert response.status_code == 200, response.text
    jsonschema.Draft202012Validator(answer_schema()).validate(response.json())
    Answers.model_validate(response.json())
    return response.json()


def refused(response: Any, status: int) -> str:
    """Return a problem's sentence after looking at its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(response.json())
    assert problem.status == status
    assert re.fullmatch(r"[^\n]+\.", problem.detail)
    assert "Traceback" not in problem.detail
    return problem.detail


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("send", [form, encoded_images], ids=["multipart", "base64"])
def test_images_are_answered_in_their_order_as_the_classifier_answers(client, classifier, send):
    contents = [png_of(1), png_of(2, 50, 20), png_of(3)]
    answer = checked(client.post(f"{BASE}/predict", **send(*contents)))
    images = [np.array(Image.open(io.BytesIO(one))) for one in contents]
    assert answer["notice"] == RESEARCH_USE_ONLY
    assert answer["model"]["sha256"] == weights_hash(classifier.model.network)
    for content, image, expected, result in zip(
        contents, images, classifier.predict(images), answer["results"], strict=True
    ):
        assert result["image_sha256"] == hashlib.sha256(content).hexdigest()
        assert (result["height"], result["width"]) == image.shape[:2]
        assert result["predicted_class"] == expected.class_name
        assert result["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
        assert result["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert result["sentence"] == expected.sentence
        assert result["maps"] == []


def test_what_the_model_says_of_itself_is_passed_on(classifier):
    """Prediction set, verdict, sentence and reasons are the classifier's."""
    unlike = Judgement({}, 99.7, "unlike_training", ("smaller than 99 % of the training cells",))
    said = Prediction(
        "Parabasal", 0.7, {"Parabasal": 0.7, "Koilocytotic": 0.3}, ("Parabasal",), "unlike_training", unlike
    )
    asked = api.Asked(CELL, "cell.png")
    found = api.answered(asked, "0" * 64, api.Found(None, 3, 4, said), "overlay")
    assert found.prediction_set == ["Parabasal"]
    assert found.verdict == "unlike_training"
    assert found.sentence == said.sentence
    assert found.unlike == api.Unlike(percentile=99.7, kind="unlike_training", reasons=list(unlike.reasons))


def test_maps_are_the_classifiers_on_one_scale_as_pictures_and_numbers(client, classifier):
    answer = checked(client.post(f"{BASE}/explain", params={"maps": "both"}, **form(CELL)))
    image = np.array(Image.open(io.BytesIO(CELL)))
    expected = classifier.explain(image)
    (result,) = answer["results"]
    assert [one["class_name"] for one in result["maps"]] == list(CLASSES)
    scale = max(float(values.max()) for values in expected.values())
    for one in result["maps"]:
        numbers = np.frombuffer(base64.b64decode(one["values"]["base64"]), one["values"]["dtype"])
        numbers = numbers.reshape(one["values"]["shape"])
        np.testing.assert_allclose(numbers, expected[one["class_name"]], rtol=1e-3, atol=1e-7)
        assert one["scale"] == pytest.approx(scale, rel=1e-3)
        assert one["highest"] == pytest.approx(float(numbers.max()))
        picture = Image.open(io.BytesIO(base64.b64decode(one["overlay_png"])))
        difference = np.array(picture).astype(int) - overlay(image, expected[one["class_name"]], scale)
        assert np.abs(difference).max() <= 2


def test_maps_of_chosen_classes_layer_and_method(client, classifier):
    asked = {"class": ["Parabasal"], "method": "grad-cam", "layer": "layer3", "maps": "values"}
    (one,) = checked(client.post(f"{BASE}/explain", params=asked, **form(CELL)))["results"][0]["maps"]
    assert (one["class_name"], one["layer"], one["method"]) == ("Parabasal", "layer3", "grad-cam")
    assert one["overlay_png"] is None
    image = np.array(Image.open(io.BytesIO(CELL)))
    expected = classifier.explain(image, ["Parabasal"], "layer3", "grad-cam")["Parabasal"]
    assert one["highest"] == pytest.approx(float(expected.max()), rel=1e-3)


def test_a_map_is_held_against_controls_if_that_is_asked_for(client):
    (result,) = checked(client.post(f"{BASE}/explain", params={"verdict": True}, **form(CELL)))["results"]
    assert result["map_verdict"]["class_name"] == result["predicted_class"]
    assert result["map_verdict"]["sentence"].endswith(".")
    (plain,) = checked(client.post(f"{BASE}/explain", **form(CELL)))["results"]
    assert plain["map_verdict"] is None


def test_pictures_and_maps_of_large_images_are_given_smaller(client):
    large = encoded(Image.new("RGB", (2 * limits.SHOWN_SIDE, 100)))
    asked = {"class": ["Parabasal"], "maps": "both"}
    (one,) = checked(client.post(f"{BASE}/explain", params=asked, **form(large)))["results"][0]["maps"]
    assert one["values"]["shape"] == [50, limits.SHOWN_SIDE]
    picture = Image.open(io.BytesIO(base64.b64decode(one["overlay_png"])))
    assert picture.size == (limits.SHOWN_SIDE, 50)


def test_one_bad_image_of_several_is_refused_and_the_others_answered(client):
    answer = checked(client.post(f"{BASE}/predict", **form(CELL, b"text", CELL)))
    assert [one["status"] for one in answer["results"]] == ["answered", "refused", "answered"]
    assert answer["results"][1]["error"].startswith("cell.png: is not an image")
    first, _, third = answer["results"]
    assert first["probabilities"] == pytest.approx(third["probabilities"], abs=1e-6)


# --- the rest of the API -------------------------------------------------------------------------


def test_the_model_tells_what_it_is(client, classifier):
    about = client.get(f"{BASE}/model").json()
    assert about["notice"] == RESEARCH_USE_ONLY
    assert about["class_names"] == list(CLASSES)
    assert about["model"] == {
        "name": "run/best_model.pth",
        "sha256": weights_hash(classifier.model.network),
        "version": about["model"]["version"],
    }
    assert about["default_method"] in about["methods"]
    assert about["default_layer"] in about["layers"]
    assert about["card"].startswith("# Model card")
    assert about["notes"] == list(classifier.answerer.notes)


def test_api_and_page_say_why_another_engine_answers(classifier, monkeypatch):
    said = "openvino answers, since onnx cannot open the graph."
    monkeypatch.setattr(classifier.engine, "notes", (said,))
    about = about_model(classifier, Model(name="a", sha256="b", version="c"))
    assert about.notes[-1] == said
    assert said in limits_of(classifier, Metadata())


def test_health_and_readiness(client, classifier):
    assert client.get(f"{BASE}/health").json()["status"] == "ok"
    assert client.get(f"{BASE}/ready").json()["status"] == "ready"
    assert [client.head(f"{BASE}/{path}").status_code for path in ("health", "ready")] == [200, 200]
    batcher = client.app.state.batcher
    batcher.ready.clear()
    batcher.tried.clear()
    try:
        assert client.head(f"{BASE}/ready").status_code == 503
        response = client.get(f"{BASE}/ready")
        assert "being made ready" in refused(response, 503)
        assert int(response.headers["retry-after"]) > 0
        assert client.get(f"{BASE}/health").status_code == 200
        batcher.tried.set()
        assert "failed at a first image" in refused(client.get(f"{BASE}/ready"), 503)
    finally:
        batcher.tried.set()
        batcher.ready.set()


def test_metrics_count_requests_images_and_batches_and_name_nothing(client):
    client.post(f"{BASE}/predict", **form(CELL, b"text", name="private-name.png"))
    client.get(f"{BASE}/no/such/private-name.png")
    response = client.get(f"{BASE}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert float(counted['cervicyte_requests_total{route="/predict",status="200"}']) >= 1
    assert float(counted['cervicyte_requests_total{route="other",status="404"}']) >= 1
    assert float(counted['cervicyte_images_total{outcome="refused"}']) >= 1
    assert float(counted["cervicyte_batch_images_sum"]) >= 1
    assert float(counted["cervicyte_waiting_images"]) == 0
    assert "private" not in response.text


def test_the_schema_is_published_and_true_to_the_answers(client):
    schema = client.get(f"{BASE}/schema").json()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == answer_schema()
    answer = client.post(f"{BASE}/predict", **form(CELL)).json()
    jsonschema.validate(answer, schema)
    answer["results"][0]["confidence"] = 1.5
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer, schema)


def test_the_description_has_every_address_and_examples_that_fit(client):
    described = client.get(f"{BASE}/openapi.json").json()
    assert set(described["paths"]) == {
        *("/predict", "/explain", "/model", "/health", "/ready", "/metrics", "/schema"),
    }
    assert described["servers"] == [{"url": BASE}]
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert {"401", "403", "421"} <= set(described["paths"]["/predict"]["post"]["responses"])
    assert "401" not in described["paths"]["/health"]["get"]["responses"]
    for path in ("/predict", "/explain"):
        post = described["paths"][path]["post"]
        content = post["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}
        PredictRequest.model_validate(content["application/json"]["example"])
        Answers.model_validate(post["responses"]["200"]["content"]["application/json"]["example"])
        for status in ("400", "413", "415", "422", "500", "503"):
            assert list(post["responses"][status]["content"]) == ["application/problem+json"]
            Problem.model_validate(
                post["responses"][status]["content"]["application/problem+json"]["example"]
            )
    references = set(re.findall(r'"#/components/schemas/(\w+)"', client.get(f"{BASE}/openapi.json").text))
    assert references <= set(described["components"]["schemas"])


def test_every_answer_has_an_example_that_looks_like_it(client):
    described = client.get(f"{BASE}/openapi.json").json()
    for path in ("/model", "/health", "/ready", "/schema"):
        content = described["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        jsonschema.validate(content["example"], {**content["schema"], "components": described["components"]})
        answer = client.get(f"{BASE}{path}").json()
        assert set(content["example"]) <= set(answer)
        assert path == "/schema" or set(content["example"]) == set(answer)
    content = described["paths"]["/metrics"]["get"]["responses"]["200"]["content"]["text/plain"]
    heading = content["example"].partition("cervicyte_images_total{")[0]
    assert heading in client.get(f"{BASE}/metrics").text


def test_the_descriptions_example_can_be_sent_as_it_stands(client):
    described = client.get(f"{BASE}/openapi.json").json()
    body = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    checked(client.post(f"{BASE}/predict", json=body))


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_that_loads_scripts_from_elsewhere(client, path):
    assert "no such address" in refused(client.get(BASE + path), 404)


# --- refusals ------------------------------------------------------------------------------------


def test_a_file_that_is_no_image_is_refused_in_the_readers_words(client):
    for content, said in (
        (b"this is text", "is not an image in a known format"),
        (b"", "is empty"),
        (CELL[:60], "is truncated"),
        (encoded(Image.new("RGB", (9, 9)), "GIF"), "is a GIF file"),
    ):
        assert f"cell.png: {said}" in refused(client.post(f"{BASE}/predict", **form(content)), 422)
    response = client.post(f"{BASE}/predict", **form(b"a", b"b"))
    assert "None of the 2 images" in refused(response, 422)
    assert len(response.json()["errors"]) == 2


def test_too_many_pixels_are_refused_before_they_are_decoded(client):
    """The file holds no pixels to speak of: whoever decoded it would call it damaged."""
    said = refused(client.post(f"{BASE}/predict", **form(png_that_states(20_000, 20_000))), 422)
    assert "20000x20000 pixels, more than the 20,000,000" in said
    wide = encoded(Image.new("L", (5000, 1001)))
    assert "5,000,000" in refused(client.post(f"{BASE}/explain", **form(wide)), 422)
    checked(client.post(f"{BASE}/predict", **form(wide)))


def test_too_many_images_are_refused(client):
    assert "more than 32" in refused(client.post(f"{BASE}/predict", **form(*[CELL] * 33)), 422)
    assert "more than 4" in refused(client.post(f"{BASE}/explain", **form(*[CELL] * 5)), 422)
    assert "at most 32" in refused(client.post(f"{BASE}/predict", **encoded_images(*[CELL] * 33)), 422)
    assert "at most 4" in refused(client.post(f"{BASE}/explain", **encoded_images(*[CELL] * 5)), 422)


def test_too_many_bytes_are_refused_with_or_without_a_stated_length(client, monkeypatch):
    monkeypatch.setattr(api, "MAX_UPLOAD_MB", 1)
    large = bytes(1 << 20)
    assert "larger than 1 MB" in refused(client.post(f"{BASE}/predict", **form(large)), 413)
    assert "larger than 1 MB" in refused(client.post(f"{BASE}/predict", **encoded_images(large)), 413)
    request = client.build_request("POST", f"{BASE}/predict", **form(large))
    chunks = (request.read()[at : at + 65536] for at in range(0, len(request.read()), 65536))
    kind = {"content-type": request.headers["content-type"]}
    response = client.post(f"{BASE}/predict", content=chunks, headers=kind)
    assert "larger than 1 MB" in refused(response, 413)


def test_all_bodies_together_are_bounded_and_let_go(client, monkeypatch):
    monkeypatch.setattr(api, "MAX_BODIES_MB", 0)
    response = client.post(f"{BASE}/predict", **form(CELL))
    assert "at its limit" in refused(response, 503)
    assert int(response.headers["retry-after"]) > 0
    monkeypatch.undo()
    checked(client.post(f"{BASE}/predict", **form(CELL)))


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"content": b"{"}, 415, "multipart/form-data or application/json"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "JSON"),
        ({"json": {}}, 422, "images: Field required"),
        ({"json": {"images": []}}, 422, "images: List should have at least 1"),
        ({"json": {"images": [{"data": "äöü"}]}}, 422, "image 1 are no valid base64"),
        ({"json": {"images": [{"data": "AA==", "path": "/etc"}]}}, 422, "images.0.path: Extra inputs"),
        ({"files": [("other", ("a.png", CELL))]}, 422, "file in the field 'images'"),
        ({"files": {"images": (None, b"no file")}}, 422, "file in the field 'images'"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "no valid multipart"),
        (
            {
                "content": b"--x\r\nA: b\r\n\r\nc\r\n--x--\r\n",
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            400,
            "no valid multipart",
        ),
        (
            {"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            422,
            "has no image",
        ),
    ],
)
def test_malformed_requests_are_told_what_is_wrong(client, request_, status, said):
    assert said in refused(client.post(f"{BASE}/predict", **request_), status)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"class": "Endocervical"}, "no class 'Endocervical'; choose from Dyskeratotic"),
        ({"method": "guess"}, "no explanation method 'guess'"),
        ({"layer": "cbam9"}, "no layer 'cbam9'"),
        ({"maps": "all"}, "maps: Input should be 'overlay', 'values' or 'both'"),
    ],
)
def test_maps_that_there_are_not_are_refused(client, params, said):
    assert said in refused(client.post(f"{BASE}/explain", params=params, **form(CELL)), 422)


def test_a_method_that_an_address_does_not_take(client):
    response = client.get(f"{BASE}/predict")
    assert "does not take this method" in refused(response, 405)
    assert response.headers["allow"] == "POST"


def test_a_failure_of_the_program_is_told_without_its_insides(client, classifier, monkeypatch, caplog):
    def fail(images: object, evidence: bool) -> None:
        raise ValueError("secret of a user")

    monkeypatch.setattr(classifier, "answered", fail)
    said = refused(client.post(f"{BASE}/predict", **form(CELL)), 500)
    assert said == "cell.png: the server failed on this image; its log says where."
    assert "secret" not in caplog.text
    assert re.search(r"ValueError in test_api\.py:\d+", caplog.text)
    monkeypatch.undo()
    checked(client.post(f"{BASE}/predict", **form(CELL)))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        (r"C:\cells\a.png", "a.png"),
        ("/", "image"),
        ("", "image"),
        ("a\r\nSet-Cookie: x", "a  Set-Cookie: x"),
        ("x" * 500, "x" * 200),
    ],
)
def test_names_are_shown_and_never_paths(name, shown):
    assert plain_name(name) == shown
