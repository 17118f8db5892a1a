"""Many clients at once: every answer is the one for its image, none is lost, and a full queue says so."""

from __future__ import annotations

import asyncio
import base64
import functools
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import CLASSES, api_of, encoded, png_of, served, small_classifier

from cervicyte.dashboard import api
from cervicyte.dashboard.batching import Asked, Batcher, Busy, Wanted
from cervicyte.dashboard.limits import MAX_EXPLAINED_PIXELS, SHOWN_SIDE
from cervicyte.errors import ImageError
from cervicyte.inference.classifier import Classifier

PREDICT, EXPLAIN = "/api/v1/predict", "/api/v1/explain"
MAPS = Wanted(CLASSES, "layer4", "grad-cam++")
JUDGED = Wanted(CLASSES[:1], "layer4", "grad-cam", with_verdict=True)
CLIENTS = 32


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier()


@pytest.fixture
def slow(classifier, monkeypatch) -> Iterator[threading.Event]:
    """Hold the network until the event is set, from its second batch on (the first is the warm-up)."""
    go = threading.Event()
    plain = classifier.answered
    calls = []

    def held(images: Any, evidence: bool) -> Any:
        calls.append(len(images))
        if len(calls) > 1:
            assert go.wait(30)
        return plain(images, evidence)

    monkeypatch.setattr(classifier, "answered", held)
    yield go
    go.set()


def waited_for(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


async def asked(client: httpx.AsyncClient, seed: int, explain: bool) -> dict[str, Any]:
    content = png_of(seed, 20 + seed, 60 - seed)  # each of its own size, too
    response = await client.post(
        EXPLAIN if explain else PREDICT,
        params={"maps": "values"} if explain else {},
        files={"images": (f"{seed}.png", content)},
    )
    assert response.status_code == 200, response.text
    return response.json()["results"][0]


async def at_once(address: str, seeds: range) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        return await asyncio.gather(*(asked(client, seed, seed % 4 == 0) for seed in seeds))


async def one_by_one(address: str, seeds: range) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        return [await asked(client, seed, seed % 4 == 0) for seed in seeds]


def test_32_clients_get_the_answers_and_maps_of_their_own_images(classifier):
    with api_of(classifier) as app, served(app) as address:
        together = asyncio.run(at_once(address, range(CLIENTS)))
        alone = asyncio.run(one_by_one(address, range(CLIENTS)))
        text = httpx.get(f"{address}/api/v1/metrics").text
    assert len({one["image_sha256"] for one in alone}) == CLIENTS
    for one, other in zip(together, alone, strict=True):
        assert {key: one[key] for key in ("name", "image_sha256", "height", "width", "predicted_class")} == {
            key: other[key] for key in ("name", "image_sha256", "height", "width", "predicted_class")
        }
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert len(one["maps"]) == len(other["maps"])
        for map_of_one, map_of_other in zip(one["maps"], other["maps"], strict=True):
            assert map_of_one["class_name"] == map_of_other["class_name"]
            values, others = (
                np.frombuffer(base64.b64decode(which["values"]["base64"]), "<f4")
                for which in (map_of_one, map_of_other)
            )
            np.testing.assert_allclose(values, others, rtol=1e-3, atol=1e-6)
    assert sum(len(one["maps"]) for one in together) == CLIENTS // 4 * len(CLASSES)
    batches = float(text.split("\ncervicyte_batch_images_count ")[1].split()[0])
    assert batches < 2 * CLIENTS  # some went through the network together


def test_images_that_wait_together_go_through_the_network_together(classifier, slow):
    sizes: list[int] = []
    batcher = Batcher(classifier, on_batch=sizes.append)
    first = Asked(png_of(0), "0.png")
    batcher.submit([first])
    waited_for(lambda: sizes)
    others = [Asked(png_of(seed), f"{seed}.png") for seed in range(1, 6)]
    for one in others:
        batcher.submit([one])
    slow.set()
    for one in [first, *others]:
        one.answer.result(30)
    batcher.close()
    assert sizes == [1, 5]


def test_a_full_queue_takes_all_images_of_a_request_or_none(classifier, slow):
    begun: list[int] = []
    batcher = Batcher(classifier, most_waiting=2, on_batch=begun.append)
    batcher.submit([Asked(png_of(0), "at work")])
    waited_for(lambda: begun)
    kept = Asked(png_of(1), "waits")
    batcher.submit([kept])
    with pytest.raises(Busy):
        batcher.submit([Asked(png_of(2), "a"), Asked(png_of(3), "b")])
    assert batcher.waiting == 1
    kept.answer.cancel()  # who has gone keeps no place
    batcher.submit([Asked(png_of(2), "a"), Asked(png_of(3), "b")])
    slow.set()
    batcher.close()
    with pytest.raises(Busy):
        batcher.submit([kept])


def test_a_full_server_says_when_to_come_again_and_answers_who_waits(classifier, slow):
    with api_of(classifier, most_waiting=2) as app, served(app) as address:

        async def flood() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                sent = [
                    asyncio.create_task(client.post(PREDICT, files={"images": png_of(seed)}))
                    for seed in range(12)
                ]
                while sum(one.done() for one in sent) < 8:  # refused at once, while the network is held
                    await asyncio.sleep(0.01)
                slow.set()
                return await asyncio.gather(*sent)

        responses = asyncio.run(asyncio.wait_for(flood(), 60))
        refused = [one for one in responses if one.status_code == 503]
        assert {one.status_code for one in responses} == {200, 503}
        assert len(refused) >= 8
        for one in refused:
            assert int(one.headers["retry-after"]) > 0
            assert one.json()["detail"].startswith("The server is at its limit")
        assert httpx.post(f"{address}{PREDICT}", files={"images": png_of(1)}).status_code == 200


def test_a_closed_connection_is_not_worked_for_and_harms_no_other(classifier, slow):
    sizes: list[int] = []
    with api_of(classifier) as app, served(app) as address:
        batcher = app.state.batcher
        batcher._on_batch = sizes.append
        host, port = address.removeprefix("http://").split(":")
        request = httpx.Request("POST", f"{address}{PREDICT}", files={"images": ("gone.png", png_of(1))})
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        body = request.read()

        def send() -> socket.socket:
            connection = socket.create_connection((host, int(port)))
            connection.sendall(f"POST {PREDICT} HTTP/1.1\r\n{head}\r\n".encode() + body)
            return connection

        at_work = send()
        waited_for(lambda: sizes == [1])
        waiting = [send() for _ in range(3)]
        half = socket.create_connection((host, int(port)))
        half.sendall(f"POST {PREDICT} HTTP/1.1\r\n{head}\r\n".encode() + body[: len(body) // 2])
        waited_for(lambda: batcher.waiting == 3)
        for connection in (at_work, waiting[0], waiting[2], half):
            connection.close()
        waited_for(lambda: sum(one.answer.cancelled() for one in batcher._waiting) == 2)
        slow.set()
        answer = waiting[1].recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        waiting[1].close()
        assert sizes == [1, 1]
        assert httpx.post(f"{address}{PREDICT}", files={"images": png_of(2)}).status_code == 200


def test_one_image_on_which_the_program_fails_does_not_take_others_along(classifier, monkeypatch):
    plain = classifier.answered

    def fail(images: list[np.ndarray], evidence: bool) -> Any:
        if any(image.shape[:2] == (13, 13) for image in images):
            raise RuntimeError("this shape")
        return plain(images, evidence)

    monkeypatch.setattr(classifier, "answered", fail)
    batcher = Batcher(classifier)
    together = [
        Asked(png_of(0), "a"),
        Asked(png_of(1, 13, 13), "b"),
        Asked(b"text", "c"),
        Asked(png_of(2), "d"),
    ]
    batcher.submit(together)
    assert together[0].answer.result(30).prediction == plain([np.array(_pixels(0))], False)[0][0]
    assert isinstance(together[1].answer.exception(30), RuntimeError)
    assert isinstance(together[2].answer.exception(30), ImageError)
    assert together[3].answer.result(30)
    batcher.close()


def _pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)


def test_at_the_end_those_who_wait_are_let_go(classifier, slow):
    begun: list[int] = []
    batcher = Batcher(classifier, on_batch=begun.append)
    first, second = Asked(png_of(0), "a"), Asked(png_of(1), "b")
    batcher.submit([first])
    waited_for(lambda: begun)
    batcher.submit([second])
    threading.Timer(0.2, slow.set).start()
    batcher.close()
    assert first.answer.result(1)
    with pytest.raises(CancelledError):
        second.answer.result(1)


def _note(order: list[str], name: str, answer: object) -> None:
    order.append(name)


def test_who_wants_no_maps_does_not_wait_for_those_of_others(classifier):
    order: list[str] = []
    batcher = Batcher(classifier)
    batcher.ready.wait(60)
    maps = Asked(png_of(0), "maps", MAPS)
    plain = Asked(png_of(1), "plain")
    for one in (maps, plain):
        one.answer.add_done_callback(functools.partial(_note, order, one.name))
    batcher.submit([maps, plain])
    maps.answer.result(30)
    batcher.close()
    assert order == ["plain", "maps"]


@pytest.fixture
def judging(classifier, monkeypatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Yield an event that says that a verdict has begun, and one until which it is held."""
    begun, go = threading.Event(), threading.Event()
    plain = classifier.judge

    def held(*arguments: Any) -> Any:
        begun.set()
        assert go.wait(30)
        return plain(*arguments)

    monkeypatch.setattr(classifier, "judge", held)
    yield begun, go
    go.set()


def test_a_prediction_overtakes_a_verdict(classifier, judging):
    begun, go = judging
    batcher = Batcher(classifier)
    judged, plain = Asked(png_of(0), "judged", JUDGED), Asked(png_of(1), "plain")
    batcher.submit([judged])
    assert begun.wait(30)
    batcher.submit([plain])
    assert plain.answer.result(20).verdict is None
    assert not judged.answer.done()
    go.set()
    found = judged.answer.result(30)
    batcher.close()
    assert found.verdict is not None
    assert list(found.maps) == list(JUDGED.classes)


def test_who_waits_for_a_verdict_has_a_place_until_it_begins_or_nobody_wants_it(classifier, judging):
    begun, go = judging
    batcher = Batcher(classifier, most_waiting=2)
    first, second, third = (Asked(png_of(seed), f"{seed}", JUDGED) for seed in range(3))
    batcher.submit([first])
    assert begun.wait(30)
    batcher.submit([second, third])
    waited_for(lambda: len(batcher._aside) == 2)
    plain = Asked(png_of(3), "plain")
    with pytest.raises(Busy):
        batcher.submit([plain])
    third.answer.cancel()
    batcher.submit([plain])
    assert plain.answer.result(20)
    assert len(batcher._aside) == 1
    threading.Timer(0.2, go.set).start()
    batcher.close()
    assert first.answer.result(1).verdict is not None
    with pytest.raises(CancelledError):
        second.answer.result(1)


def test_who_is_at_work_has_a_place_for_the_verdict_that_is_to_come(classifier, slow):
    begun: list[int] = []
    batcher = Batcher(classifier, most_waiting=1, on_batch=begun.append)
    batcher.submit([Asked(png_of(0), "judged", JUDGED)])
    waited_for(lambda: begun)
    with pytest.raises(Busy):
        batcher.submit([Asked(png_of(1), "plain")])
    slow.set()
    batcher.close()


def test_at_the_end_who_is_to_wait_for_a_verdict_is_let_go(classifier, slow):
    begun: list[int] = []
    batcher = Batcher(classifier, on_batch=begun.append)
    judged = Asked(png_of(0), "judged", JUDGED)
    batcher.submit([judged])
    waited_for(lambda: begun)
    threading.Timer(0.2, slow.set).start()
    batcher.close()
    with pytest.raises(CancelledError):
        judged.answer.result(1)


def test_a_verdict_on_which_the_program_fails_is_logged_and_harms_no_other(classifier, monkeypatch, caplog):
    def fail(*arguments: Any) -> None:
        raise RuntimeError("secret of a user")

    monkeypatch.setattr(classifier, "judge", fail)
    batcher = Batcher(classifier)
    judged = [Asked(png_of(seed), f"{seed}", JUDGED) for seed in range(2)]
    batcher.submit([*judged, Asked(b"text", "text", JUDGED)])
    assert all(isinstance(one.answer.exception(30), RuntimeError) for one in judged)
    monkeypatch.undo()
    again = Asked(png_of(0), "again", JUDGED)
    batcher.submit([again])
    assert again.answer.result(30).verdict is not None
    batcher.close()
    assert caplog.text.count("RuntimeError in test_serving.py") == 2
    assert "secret" not in caplog.text


def test_of_a_large_image_no_more_is_kept_than_is_shown(classifier):
    large = Image.radial_gradient("L").convert("RGB").resize((2500, MAX_EXPLAINED_PIXELS // 2500))
    batcher = Batcher(classifier)
    asked = [Asked(encoded(large, compress_level=1), f"{at}", MAPS) for at in range(4)]
    batcher.submit(asked)
    found = [one.answer.result(60) for one in asked]
    batcher.close()
    expected = classifier.explain(np.asarray(large), CLASSES, MAPS.layer, MAPS.method)
    for one in found:
        assert one.image is not None
        held = one.image.nbytes + sum(values.nbytes for values in one.maps.values())
        assert held <= SHOWN_SIDE**2 * (3 + 4 * len(CLASSES))
        assert (one.height, one.width) == (large.height, large.width)
        assert {values.shape for values in one.maps.values()} == {one.image.shape[:2]}
        assert one.highest == pytest.approx(
            {name: float(values.max()) for name, values in expected.items()}, rel=1e-3
        )


def test_maps_that_are_being_written_leave_room_for_no_more_than_the_bound(classifier, monkeypatch):
    """The network is free meanwhile: nothing but the bound holds them back."""
    monkeypatch.setattr(api, "MAX_EXPLAINED_AT_ONCE", 2)
    go = threading.Event()
    plain = api.maps_of

    def held(*arguments: Any) -> Any:
        assert go.wait(30)
        return plain(*arguments)

    monkeypatch.setattr(api, "maps_of", held)
    with api_of(classifier) as app, served(app) as address:

        async def flood() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                sent = [
                    asyncio.create_task(client.post(EXPLAIN, files={"images": png_of(seed)}))
                    for seed in range(6)
                ]
                while sum(one.done() for one in sent) < 4:
                    await asyncio.sleep(0.01)
                assert (await client.post(PREDICT, files={"images": png_of(0)})).status_code == 200
                go.set()
                return await asyncio.gather(*sent)

        try:
            responses = asyncio.run(asyncio.wait_for(flood(), 60))
        finally:
            go.set()
        assert sorted(one.status_code for one in responses) == [200] * 2 + [503] * 4
        assert all(int(one.headers["retry-after"]) > 0 for one in responses if one.status_code == 503)
        two = [("images", (f"{seed}.png", png_of(seed))) for seed in range(2)]
        assert httpx.post(f"{address}{EXPLAIN}", files=two, timeout=60).status_code == 200


@pytest.mark.full
def test_memory_stays_flat_under_load(classifier):
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell its memory so")

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    with api_of(classifier) as app, served(app) as address:
        for _ in range(3):
            asyncio.run(at_once(address, range(CLIENTS)))
        before = resident()
        for _ in range(5):
            asyncio.run(at_once(address, range(CLIENTS)))
        assert resident() - before < 60 << 20
