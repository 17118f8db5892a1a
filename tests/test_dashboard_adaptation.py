"""Adapting on the page: from images enough, beside the page, for one list, and with its warnings."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from serving import CLASSES, encoded, small_classifier, whole_server

from cervicyte.dashboard import adaptation, events
from cervicyte.dashboard.adaptation import Adapting, not_adaptable
from cervicyte.dashboard.batching import Asked, Batcher, Busy
from cervicyte.dashboard.events import Events
from cervicyte.dashboard.intake import Arrived
from cervicyte.dashboard.session import NOT_KEPT
from cervicyte.inference.classifier import Classifier
from cervicyte.network.model_file import load_model_file, weights_hash

KEY, OTHER = "a" * 64, "b" * 64
FEWEST = 6  # in these tests: the network is small, the machine may be slow


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier()


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(adaptation, "FEWEST_IMAGES", FEWEST)


@pytest.fixture
def asked(classifier, tmp_path) -> Iterator[Events]:
    with contextlib.closing(Batcher(classifier)) as batcher:
        batcher.ready.wait(60)
        found = Events(classifier, "run/model", batcher, tmp_path, samples=tmp_path / "none")
        yield found
        found.sessions.close()


def pictured(seed: int) -> bytes:
    """Return a picture that is brighter than those that the network knows."""
    pixels = np.random.default_rng(seed).integers(120, 256, (30, 40, 3), np.uint8)
    return encoded(Image.fromarray(pixels))


def give(asked: Events, key: str, count: int, start: int = 0) -> None:
    worklist = asked.sessions.of(key).worklist
    arrived = [Arrived(f"{number}.png", pictured(number)) for number in range(start, start + count)]
    list(worklist.read(asked.classifier, arrived))


def test_a_list_of_few_images_says_how_many_it_takes_and_has_no_button(asked):
    give(asked, KEY, FEWEST - 1)
    *_, said = asked.adapt(KEY)
    assert f"takes {FEWEST} images or more" in said[events.ADAPTATION]
    assert f"this list has {FEWEST - 1}" in said[events.ADAPTATION]
    assert 'data-send="adapt"' not in said[events.ADAPTATION]
    assert asked.sessions.of(KEY).adaptation is None


def test_what_failed_before_the_page_followed_it_is_said_all_the_same(asked, monkeypatch):
    def failing(*ignored: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(events, "adapt_to_worklist", failing)
    give(asked, KEY, FEWEST)
    saying = asked.adapt(KEY)
    next(saying)
    end = time.monotonic() + 30
    while asked.sessions.of(KEY).adapting is not None and time.monotonic() < end:
        time.sleep(0.01)
    *_, last = saying
    assert "The server failed to adapt the model" in last[events.ADAPTATION]


def test_images_that_are_too_large_together_are_refused(asked, monkeypatch):
    give(asked, KEY, FEWEST)
    assert not_adaptable(asked.classifier, asked.sessions.of(KEY).worklist) == ""
    monkeypatch.setattr(adaptation, "MAX_ADAPTED_PIXELS", 1_000)
    assert "more than 0 million pixels" in not_adaptable(asked.classifier, asked.sessions.of(KEY).worklist)


def test_the_adapted_model_answers_for_its_list_alone_and_the_original_stays(asked, classifier, tmp_path):
    original = classifier.torch_model().weights_sha256
    give(asked, KEY, FEWEST)
    give(asked, OTHER, 2)
    before = [entry.prediction for entry in asked.sessions.of(KEY).worklist.entries]
    first, *_, last = asked.adapt(KEY)
    assert "data-send" not in first[events.ADAPTATION]  # at work: not to be asked again
    assert "Use the adapted model for this list" in last[events.ADAPTATION]
    assert [entry.prediction for entry in asked.sessions.of(KEY).worklist.entries] == before
    asked.open_first(KEY)
    said = asked.use(KEY, True)
    assert f"adapted to {FEWEST} images of this list" in said[events.ANSWER]
    session = asked.sessions.of(KEY)
    assert session.adaptation is not None
    path = session.adaptation.path
    assert path.parent == tmp_path
    own = Classifier(load_model_file(path))
    assert own.weights_sha256 != original
    for entry in session.worklist.entries:
        (alone,) = own.predict([entry.image()])
        assert entry.prediction is not None
        assert entry.prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    # What comes in now is answered by it, too; others' lists are not.
    give_more = asked.sessions.of(KEY).worklist
    list(give_more.read(asked._answering(session), [Arrived("late.png", pictured(99))]))
    assert asked._answering(asked.sessions.of(OTHER)) is asked.classifier
    saved = asked.save(KEY, "json", "list")[events.SAVED]
    assert own.weights_sha256 in decoded(saved)
    said = asked.use(KEY, False)
    assert "adapted to" not in said[events.ANSWER]
    entries = asked.sessions.of(KEY).worklist.entries
    assert [entry.prediction for entry in entries[:FEWEST]] == before
    (late,) = classifier.predict([entries[FEWEST].image()])
    assert entries[FEWEST].prediction is not None
    assert entries[FEWEST].prediction.probabilities == pytest.approx(late.probabilities, abs=1e-5)
    assert classifier.torch_model().weights_sha256 == original
    asked.clear(KEY)
    assert not path.exists()


def test_cells_that_come_in_while_the_model_is_changed_are_answered_by_the_one_that_is_chosen(
    asked, classifier, tmp_path
):
    give(asked, KEY, FEWEST)
    list(asked.adapt(KEY))
    files = []
    for number in range(10, 22):
        files.append(str(tmp_path / f"{number}.png"))
        (tmp_path / f"{number}.png").write_bytes(pictured(number))
    reading = asked.read_uploads(KEY, files)
    next(reading)
    asked.use(KEY, True)
    for _ in reading:
        pass
    session = asked.sessions.of(KEY)
    assert session.adaptation is not None
    entries = session.worklist.entries
    assert len(entries) == FEWEST + 12
    for entry in entries:
        (alone,) = session.adaptation.classifier.predict([entry.image()])
        assert entry.prediction is not None
        assert entry.prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


def test_a_change_of_the_model_that_finds_no_place_is_told_and_can_be_asked_for_again(asked, monkeypatch):
    give(asked, KEY, FEWEST)
    list(asked.adapt(KEY))
    give(asked, KEY, 1, start=50)  # not answered by the adapted one yet

    def refuse(*_: object) -> None:
        raise Busy

    with monkeypatch.context() as full:
        full.setitem(Batcher.in_turn.__kwdefaults__, "patience", 0.05)
        full.setattr(asked._batcher, "submit", refuse)
        said = asked.use(KEY, True)
    assert events.BUSY in said[events.ADAPTATION]
    assert 'data-send="use"' in said[events.ADAPTATION]
    assert "what the <b>original</b> says" in said[events.ADAPTATION]
    assert "data-stamp" in said[events.VIEWER]  # or the browser would wait for its answer
    asked.clear(KEY)
    assert "data-stamp" in asked.use(KEY, True)[events.VIEWER]


def test_an_adapted_model_that_finds_no_place_or_memory_leaves_the_one_before_in_use(
    asked, tmp_path, monkeypatch
):
    give(asked, KEY, FEWEST)
    list(asked.adapt(KEY))
    asked.use(KEY, True)
    session = asked.sessions.of(KEY)
    before = session.adaptation
    assert before is not None
    assert before.held_bytes > sum(
        one.nbytes for one in before.classifier.model.network.state_dict().values()
    )
    with monkeypatch.context() as full:
        full.setattr(asked.sessions, "make_room", lambda *_: False)
        *_, said = asked.adapt(KEY)
    assert NOT_KEPT in said[events.ADAPTATION].replace("&#x27;", "'")
    with monkeypatch.context() as full:

        def refuse(*_: object) -> None:
            raise Busy

        full.setattr(asked, "_use", refuse)
        *_, said = asked.adapt(KEY)
    assert events.BUSY in said[events.ADAPTATION]
    assert session.adaptation is before
    assert before.in_use
    assert list(tmp_path.glob("adapted-*")) == [before.path]


def test_list_and_cell_are_of_one_model_when_the_cell_finds_no_place(asked, monkeypatch):
    give(asked, KEY, FEWEST)
    asked.open_first(KEY)
    list(asked.adapt(KEY))
    with monkeypatch.context() as full:

        def refuse(*_: object) -> None:
            raise Busy

        full.setattr(events, "look", refuse)  # every cell is answered, but there is no place for its map
        said = asked.use(KEY, True)
    assert events.BUSY in said[events.ADAPTATION]
    assert "what the <b>original</b> says" in said[events.ADAPTATION]
    assert "adapted to" not in said[events.ANSWER]
    session = asked.sessions.of(KEY)
    assert session.looked is not None
    assert session.looked.prediction == session.worklist.entries[session.looked.entry.key].prediction


def test_a_session_that_is_forgotten_at_the_last_moment_leaves_no_file(asked, tmp_path, monkeypatch):
    give(asked, KEY, FEWEST)
    keep = asked._keep

    def forgotten(session, made) -> None:
        asked.sessions.close()
        keep(session, made)

    monkeypatch.setattr(asked, "_keep", forgotten)
    list(asked.adapt(KEY))
    assert list(tmp_path.glob("adapted-*")) == []


def decoded(saved: str) -> str:
    return base64.b64decode(json.loads(saved)["data"]).decode("utf-8")


def test_warnings_stand_above_what_changed(asked, monkeypatch):
    monkeypatch.setattr("cervicyte.inference.adapt.ONE_CLASS", 0.0)
    give(asked, KEY, FEWEST)
    *_, said = asked.adapt(KEY)
    text = said[events.ADAPTATION]
    assert "look like a single class" in text
    assert f"{FEWEST} images are too few" in text
    assert text.index("too few") < text.index("<table")
    for name in CLASSES:
        assert name in text


def test_one_list_at_a_time_is_adapted_to_and_the_next_is_told(asked):
    give(asked, KEY, FEWEST)
    assert asked._one_at_a_time.acquire(blocking=False)
    (said,) = asked.adapt(KEY)
    assert events.OTHERS_FIRST in said[events.ADAPTATION]
    asked._one_at_a_time.release()
    *_, said = asked.adapt(KEY)
    assert "Adapt anew" in said[events.ADAPTATION]
    assert asked._one_at_a_time.acquire(blocking=False)  # given back


def test_a_failure_is_told_in_a_sentence_and_leaves_no_file(asked, tmp_path, monkeypatch):
    give(asked, KEY, FEWEST)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("what belongs to a user")

    monkeypatch.setattr("cervicyte.inference.adapt.load_model_file", fail)
    *_, said = asked.adapt(KEY)
    assert "The server failed to adapt the model; its log says where." in said[events.ADAPTATION]
    assert "belongs to a user" not in said[events.ADAPTATION]
    assert list(tmp_path.glob("adapted-*")) == []


def test_a_list_that_is_cleared_meanwhile_gets_no_model(asked, tmp_path):
    give(asked, KEY, FEWEST)
    working = asked.adapt(KEY)
    next(working)
    asked.clear(KEY)
    for _ in working:
        pass
    assert asked.sessions.of(KEY).adaptation is None
    assert list(tmp_path.glob("adapted-*")) == []


def test_a_page_that_is_loaded_again_follows_the_adaptation(asked):
    give(asked, KEY, FEWEST)
    working = asked.adapt(KEY)
    next(working)
    working.close()  # the browser has gone
    *_, said = asked.opened(KEY, True, "page")
    assert "Use the adapted model for this list" in said[events.ADAPTATION]


def test_between_its_steps_others_go_first(classifier):
    with contextlib.closing(Batcher(classifier)) as batcher:
        batcher.ready.wait(60)
        others = [Asked(pictured(number), f"{number}.png") for number in range(3)]
        batcher.submit(others)
        Adapting(batcher).advance()
        assert all(one.answer.done() for one in others)


def test_it_does_not_stand_back_for_ever(classifier, monkeypatch):
    monkeypatch.setattr(adaptation, "LONGEST_PAUSE", 0.05)
    with contextlib.closing(Batcher(classifier)) as batcher:
        batcher.ready.wait(60)
        monkeypatch.setattr(batcher, "_at_work", {"batch"})
        begun = time.monotonic()
        Adapting(batcher).advance()
        assert time.monotonic() - begun < 2


def test_the_file_is_given_to_who_knows_the_page_s_key_and_goes_with_the_server(
    classifier, tmp_path, monkeypatch
):
    with whole_server(classifier, tmp_path, monkeypatch) as (client, asked):
        give(asked, KEY, FEWEST)
        list(asked.adapt(KEY))
        adapted = asked.sessions.of(KEY).adaptation
        assert adapted is not None
        assert adapted.path.is_file()
        response = client.post("/adapted-model", data={"key": KEY})
        assert (
            response.headers["content-disposition"] == 'attachment; filename="cervicyte_adapted.safetensors"'
        )
        assert response.headers["cache-control"] == "no-store"
        (tmp_path / "got.safetensors").write_bytes(response.content)
        got = load_model_file(tmp_path / "got.safetensors")
        assert weights_hash(got.network) == adapted.classifier.weights_sha256
        assert got.metadata["adaptation"]["images"] == FEWEST
        for key in (OTHER, "no key", ""):
            assert client.post("/adapted-model", data={"key": key}).status_code == 404
        # What is no such form is neither read whole nor put on the disk.
        with monkeypatch.context() as diskless:
            diskless.setattr("tempfile.SpooledTemporaryFile", None)
            files = {"file": bytes(2 << 20)}
            assert client.post("/adapted-model", data={"key": KEY}, files=files).status_code == 404
        assert len(list(adapted.path.parent.glob("adapted-*"))) == 1  # sent from where it lies
        foreign = {"origin": "http://elsewhere.example"}
        assert client.post("/adapted-model", data={"key": KEY}, headers=foreign).status_code == 403
    assert not adapted.path.exists()
