"""What the server keeps for open pages: found again after a reload, bounded, and forgotten in time."""

from __future__ import annotations

import contextlib
import html
import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import CLASSES, png_of, small_classifier

from cervicyte.dashboard import events, limits, session, worklist
from cervicyte.dashboard.batching import Asked, Batcher, Busy, QueuedClassifier
from cervicyte.dashboard.events import Events
from cervicyte.dashboard.intake import Arrived
from cervicyte.dashboard.reading import Reading
from cervicyte.dashboard.session import Gone, Sessions
from cervicyte.dashboard.worklist import Entry
from cervicyte.errors import ReadingLogError, UsageError
from cervicyte.inference.classifier import Classifier

KEY, OTHER = "a" * 64, "b" * 64


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock) -> Sessions:
    return Sessions(CLASSES, clock)


def put(sessions: Sessions, key: str, count: int = 1000) -> None:
    """Put a file into the list of an open page."""
    if not sessions.of(key).pages:
        sessions.open(key, f"page of {key}", resumed=False)
    listed = sessions.of(key).worklist
    listed.entries.append(Entry(0, "a.png", bytes(count)))
    listed.held_bytes += count


def why_gone(sessions: Sessions, key: str) -> str:
    with pytest.raises(Gone) as gone:
        sessions.of(key)
    return str(gone.value)


# --- the store -------------------------------------------------------------------------------------


def test_a_page_that_is_loaded_again_finds_its_cells_and_no_other_page_does(sessions, clock):
    sessions.open(KEY, "page 1", resumed=False)
    put(sessions, KEY)
    sessions.leave("page 1")
    clock.now = limits.SECONDS_AFTER_LEAVING - 1
    assert len(sessions.open(KEY, "page 2", resumed=True).worklist.entries) == 1
    assert sessions.open(OTHER, "page 3", resumed=False).is_empty


def test_cells_of_a_page_that_was_left_are_forgotten_and_the_page_is_told_once(sessions, clock):
    sessions.open(KEY, "page", resumed=False)
    put(sessions, KEY)
    sessions.leave("page")
    clock.now = limits.SECONDS_AFTER_LEAVING
    sessions.sweep()
    assert (len(sessions), sessions.held_bytes) == (0, 0)
    with pytest.raises(Gone, match=r"left for 15 minutes.*Choose their files again\.$"):
        sessions.open(KEY, "page 2", resumed=True)
    assert sessions.of(KEY).is_empty


def test_a_page_of_two_that_is_closed_takes_nothing_from_the_other(sessions, clock):
    for page in ("old", "new"):
        sessions.open(KEY, page, resumed=page == "new")
        put(sessions, KEY)
    sessions.leave("old")  # said after the new one came, as in a reload
    clock.now = limits.SECONDS_KEPT - 1
    assert not sessions.of(KEY).is_empty


def test_cells_that_nobody_asks_for_are_forgotten_after_hours(sessions, clock):
    put(sessions, KEY)
    clock.now = limits.SECONDS_KEPT
    assert why_gone(sessions, KEY).startswith("Nothing was asked here for 4 hours")


def test_what_a_page_asked_before_it_was_left_keeps_its_cells_no_longer_than_leaving_does(sessions, clock):
    put(sessions, KEY)
    sessions.leave(f"page of {KEY}")
    clock.now = 5
    sessions.of(KEY)  # a map's test, whose turn comes now
    clock.now = 5 + limits.SECONDS_AFTER_LEAVING - 1
    sessions.sweep()
    assert len(sessions) == 1
    clock.now = 5 + limits.SECONDS_AFTER_LEAVING
    assert why_gone(sessions, KEY).startswith("This page was left for 15 minutes")


def test_a_page_that_was_told_its_cells_are_gone_is_left_like_any_other(sessions, clock):
    put(sessions, KEY)
    clock.now = limits.SECONDS_KEPT
    why_gone(sessions, KEY)
    sessions.of(KEY).worklist.entries.append(Entry(0, "b.png"))  # the page goes on
    clock.now += limits.SECONDS_AFTER_LEAVING + 1  # it is open: it has longer
    assert not sessions.of(KEY).is_empty
    sessions.leave(f"page of {KEY}")
    clock.now += limits.SECONDS_AFTER_LEAVING
    assert why_gone(sessions, KEY).startswith("This page was left for 15 minutes")


def test_a_server_that_was_started_anew_says_so_only_to_who_had_cells(sessions):
    assert sessions.open(OTHER, "page", resumed=False).is_empty
    with pytest.raises(Gone, match="started anew"):
        sessions.open(KEY, "page", resumed=True)
    assert sessions.of(KEY).is_empty


def test_the_oldest_idle_cells_make_room_and_those_in_use_do_not(sessions, clock, monkeypatch):
    monkeypatch.setattr(session, "MAX_SESSIONS_MB", 1)
    put(sessions, "c" * 64, 600_000)
    clock.now = 1
    put(sessions, OTHER, 400_000)
    clock.now = session.SECONDS_UNTIL_IDLE + 0.5
    assert not sessions.make_room(1 << 21, sessions.of(KEY))  # more than all
    assert why_gone(sessions, "c" * 64).startswith("The server's memory was needed for others")
    assert sessions.make_room(600_000, sessions.of(KEY))
    assert not sessions.make_room(700_000, sessions.of(KEY))
    assert not sessions.of(OTHER).is_empty
    assert sessions.make_room(0, sessions.of(KEY))  # what takes up nothing is always let in


def test_so_many_pages_are_kept_and_no_more(sessions, clock, monkeypatch):
    monkeypatch.setattr(session, "MAX_SESSIONS", 3)
    for number in range(5):
        clock.now = number
        put(sessions, f"{number:064x}")
    assert len(sessions) == 3
    assert "memory was needed" in why_gone(sessions, f"{0:064x}")


def test_pages_that_were_only_loaded_take_no_cells_from_others(sessions, clock, monkeypatch):
    monkeypatch.setattr(session, "MAX_SESSIONS", 3)
    put(sessions, KEY)
    for number in range(5):
        clock.now = number + 1
        sessions.open(f"{number:064x}", f"page {number}", resumed=False)
    assert len(sessions) == 3
    assert not sessions.of(KEY).is_empty


def test_who_looks_whether_there_is_a_session_begins_none_and_takes_no_reason_away(sessions, clock):
    assert sessions.there(OTHER) is None
    assert len(sessions) == 0
    put(sessions, KEY)
    assert sessions.there(KEY) is sessions.of(KEY)
    clock.now = limits.SECONDS_KEPT
    sessions.sweep()
    assert sessions.there(KEY) is None
    assert why_gone(sessions, KEY).startswith("Nothing was asked here for 4 hours")


@pytest.mark.parametrize("key", ["", "short", "../../etc/passwd", "A" * 64, "a" * 65])
def test_what_is_no_key_opens_nothing(sessions, key):
    why_gone(sessions, key)
    assert len(sessions) == 0


def test_memory_is_counted_from_what_lies_in_it(classifier, tmp_path):
    with pages(classifier, tmp_path) as asked:
        assert asked.sessions.held_bytes == 0
        list(asked.read_samples(KEY))
        files = asked.sessions.held_bytes
        asked.open_first(KEY)
        looked = asked.sessions.of(KEY).looked
        assert looked is not None
        assert looked.held_bytes >= looked.image.nbytes + len(CLASSES) * looked.shown.nbytes
        assert asked.sessions.held_bytes == files + looked.held_bytes
        (entry,) = asked.sessions.of(KEY).worklist.entries
        assert files > len(entry.content) + len(entry.thumbnail) + deep_size(entry.prediction)
        asked.clear(KEY)
        assert asked.sessions.held_bytes == 0


def deep_size(value: Any) -> int:
    """Return the bytes of a value with all that it holds."""
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, (tuple, list)):
        parts = list(value)
    elif hasattr(value, "__dict__"):
        parts = [vars(value)]
    return sys.getsizeof(value) + sum(map(deep_size, parts))


# --- the page's events -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier()


@pytest.fixture
def samples(tmp_path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(png_of(seed))
    return folder


@contextlib.contextmanager
def pages(
    classifier: Classifier, folder: Path, samples: Path | None = None, most_waiting: int = 96
) -> Iterator[Events]:
    if samples is None:
        samples = folder / "some"
        samples.mkdir()
        (samples / "0.png").write_bytes(png_of(0))
    with contextlib.closing(Batcher(classifier, most_waiting)) as batcher:
        batcher.ready.wait(60)
        yield Events(classifier, "run/model", batcher, folder, samples=samples)


@pytest.fixture
def held(classifier, monkeypatch) -> Iterator[threading.Event]:
    """Hold the network until the event is set, once it is warm."""
    go = threading.Event()
    plain = classifier.engine.run
    calls: list[int] = []

    def run(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            assert go.wait(30)
        return plain(*arguments, **settings)

    monkeypatch.setattr(classifier.engine, "run", run)
    yield go
    go.set()


def test_a_full_queue_is_told_on_the_page_in_a_sentence(classifier, tmp_path, held, monkeypatch):
    monkeypatch.setitem(Batcher.in_turn.__kwdefaults__, "patience", 0.05)
    with pages(classifier, tmp_path, most_waiting=1) as asked:
        batcher = asked.classifier._batcher
        batcher.submit([Asked(png_of(1), "at work")])
        while batcher.waiting:
            pass
        waits = Asked(png_of(2), "waits")
        batcher.submit([waits])
        (said,) = asked.read_samples(KEY)
        assert events.NOT_ALL_READ in said[events.PROGRESS]
        held.set()
        waits.answer.result(30)
        *_, said = asked.read_samples(KEY)
        assert "1 cell read" in said[events.PROGRESS]
        assert asked.open_first(KEY)[events.VERDICT]
        monkeypatch.setattr(batcher, "submit", refuse)
        assert events.NOT_TESTED in asked.judge(KEY)[events.VERDICT]
        (asked_for,) = asked.sessions.of(KEY).worklist.entries
        shown = asked.sessions.of(KEY).looked
        for said in (asked.open_cell(KEY, 0), asked.explain(KEY, 0, CLASSES[0], "layercam", "layer4")):
            assert f"{events.BUSY} {events.STAYS}" in said[events.VIEWER]
            assert "data-stamp" in said[events.VIEWER]  # or the browser would wait for its answer
            assert "data-refused" in said[events.VIEWER]
            assert said[events.VIEWER].count("<img") == 2 + 1 + len(
                CLASSES
            )  # the picture, its scale, all maps
            assert '<option value="grad-cam" selected>' in said[events.VIEWER]  # not what was not computed
            assert asked_for.name in said[events.ANSWER]
            assert asked.sessions.of(KEY).looked is shown
        monkeypatch.undo()
        assert "data-refused" not in asked.open_cell(KEY, 0)[events.VIEWER]


def test_a_cell_that_finds_no_place_leaves_the_one_before_whole(classifier, tmp_path, samples, monkeypatch):
    monkeypatch.setitem(Batcher.in_turn.__kwdefaults__, "patience", 0.05)
    with pages(classifier, tmp_path, samples) as asked:
        list(asked.read_samples(KEY))
        monkeypatch.setattr(asked.classifier._batcher, "submit", refuse)
        said = asked.open_cell(KEY, 1)
        assert events.BUSY in said[events.VIEWER]
        assert "No cell chosen" in said[events.VIEWER]  # there was none before
        monkeypatch.undo()
        asked.open_cell(KEY, 0)
        monkeypatch.setitem(Batcher.in_turn.__kwdefaults__, "patience", 0.05)
        monkeypatch.setattr(asked.classifier._batcher, "submit", refuse)
        said = asked.open_cell(KEY, 1)
        assert 'data-key="0"' in said[events.VIEWER]
        assert "0.png" in said[events.ANSWER]  # answer and picture are of one cell


def test_a_cell_whose_pictures_find_no_memory_is_not_opened(classifier, tmp_path, samples, monkeypatch):
    with pages(classifier, tmp_path, samples) as asked:
        list(asked.read_samples(KEY))
        asked.open_cell(KEY, 0)
        give = asked.sessions.of(OTHER).worklist
        large = Arrived("large.png", png_of(9, 600, 800))
        list(give.read(asked.classifier, [large]))
        monkeypatch.setattr(session, "MAX_SESSIONS_MB", (asked.sessions.held_bytes >> 20) + 2)
        said = asked.open_cell(OTHER, 0)
        assert session.NOT_OPENED in html.unescape(said[events.VIEWER])
        assert session.NOT_OPENED in html.unescape(asked.open_first(OTHER)[events.ANSWER])
        assert asked.sessions.of(OTHER).looked is None
        assert 'data-key="1"' in asked.open_cell(KEY, 1)[events.VIEWER]  # no more than the one before
        assert asked.sessions.held_bytes <= session.MAX_SESSIONS_MB << 20


def test_a_map_that_there_is_not_leaves_the_picture_and_says_why(classifier, tmp_path, samples):
    with pages(classifier, tmp_path, samples) as asked:
        list(asked.read_samples(KEY))
        asked.open_cell(KEY, 0)
        said = asked.explain(KEY, 0, "Nobody", "grad-cam", "layer4")
        assert "There is no class &#x27;Nobody&#x27;" in said[events.VIEWER]
        assert 'data-key="0"' in said[events.VIEWER]
        assert said[events.VERDICT]


def test_an_answer_that_was_listed_counts_as_seen_when_the_list_is_cleared(classifier, tmp_path, samples):
    with pages(classifier, tmp_path, samples) as asked:
        list(asked.read_samples(KEY))
        asked.clear(KEY)
        list(asked.samples_to_read(KEY))
        said = asked.record(KEY, "0", CLASSES[0], "")
        assert "does not count as blind" in said[events.READING]
        assert not asked.sessions.of(KEY).reading.taken[0].blind


def test_who_reads_in_a_second_tab_is_told_and_shown_the_cell_that_is_next(classifier, tmp_path, samples):
    with pages(classifier, tmp_path, samples) as asked:
        list(asked.samples_to_read(KEY))
        asked.record(KEY, "0", CLASSES[0], "")
        asked.next_to_read(KEY)
        said = asked.record(KEY, "0", CLASSES[1], "")
        assert "was not kept" in said[events.READ_PROGRESS]
        assert 'name="cell" value="1"' in said[events.READING]


def test_a_reading_that_cannot_be_kept_leaves_what_the_reader_entered(
    classifier, tmp_path, samples, monkeypatch
):
    with pages(classifier, tmp_path, samples) as asked:
        list(asked.samples_to_read(KEY))

        def fail(*_: Any, **__: Any) -> None:
            raise ReadingLogError("The disk is full.")

        with monkeypatch.context() as full:
            full.setattr(Reading, "record", fail)
            said = asked.record(KEY, "0", CLASSES[0], "a remark")
        assert "The disk is full." in said.pop(events.READ_PROGRESS)
        assert said == {}
        said = asked.record(KEY, "0", CLASSES[0], "a remark")
        assert "disk" not in said[events.READ_PROGRESS]
        assert "Next cell" in said[events.READING]


def refuse(*_: Any) -> None:
    raise Busy


def test_pages_and_api_wait_in_one_queue(classifier, held):
    with contextlib.closing(Batcher(classifier, most_waiting=4)) as batcher:
        batcher.ready.wait(60)
        images = [np.zeros((20, 20, 3), np.uint8)] * 3
        at_work = Asked(png_of(0), "at work")
        batcher.submit([at_work])
        while batcher.waiting:
            pass
        asked = threading.Thread(target=QueuedClassifier(classifier, batcher).predict, args=[images])
        asked.start()
        while batcher.waiting < 3:
            pass
        with pytest.raises(Busy):
            batcher.submit([Asked(png_of(1), "1"), Asked(png_of(2), "2")])
        held.set()
        asked.join(30)
        assert not asked.is_alive()
    with pytest.raises(Busy):
        QueuedClassifier(classifier, batcher).predict(images)


def test_a_page_s_answers_are_the_classifier_s_own(classifier):
    image = np.asarray(Image.open(io.BytesIO(png_of(7))).convert("RGB"))
    with contextlib.closing(Batcher(classifier)) as batcher:
        asked = QueuedClassifier(classifier, batcher)
        assert asked.predict([image])[0].probabilities == pytest.approx(
            classifier.predict([image])[0].probabilities, abs=1e-6
        )
        assert asked.predict([]) == []
        preprocessed = classifier.model.preprocessing(image)
        own = classifier.judge(preprocessed, CLASSES[0])
        assert asked.judge(preprocessed, CLASSES[0]).score == pytest.approx(own.score, abs=1e-4, nan_ok=True)
        for name, values in asked.explain(image).items():
            np.testing.assert_allclose(values, classifier.explain(image)[name], atol=1e-5)


def test_the_next_cell_does_not_wait_for_the_test_of_a_map(classifier, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(Classifier, "judge", lambda *_: go.wait(30))
    with contextlib.closing(Batcher(classifier, most_waiting=3)) as batcher:
        asked = QueuedClassifier(classifier, batcher)
        preprocessed = np.zeros((32, 32, 3), np.uint8)
        judging = [threading.Thread(target=asked.judge, args=[preprocessed, CLASSES[0]]) for _ in range(2)]
        for one in judging:
            one.start()
        while batcher.waiting != 1:  # the other is at work
            pass
        assert len(asked.predict([np.zeros((30, 30, 3), np.uint8)])) == 1
        with pytest.raises(Busy):  # it has a place in the same queue
            batcher.submit([Asked(png_of(seed), f"{seed}.png") for seed in range(3)])
        go.set()
        for one in judging:
            one.join(30)


def test_an_error_of_a_page_s_question_is_its_own_and_the_next_is_answered(classifier):
    with contextlib.closing(Batcher(classifier)) as batcher:
        asked = QueuedClassifier(classifier, batcher)
        with pytest.raises(UsageError, match="uint8 arrays"):
            asked.predict([np.zeros((3, 3), np.uint8)])
        assert len(asked.predict([np.zeros((30, 30, 3), np.uint8)])) == 1


def test_a_reloaded_page_shows_list_cell_and_reading_as_they_were(classifier, tmp_path, samples):
    with pages(classifier, tmp_path, samples) as asked:
        (said,) = asked.opened(KEY, False, "page")
        assert said == {}
        list(asked.read_samples(KEY))
        shown = asked.open_first(KEY)
        list(asked.samples_to_read(KEY))
        asked.record(KEY, "0", CLASSES[0], "small")
        (again,) = asked.opened(KEY, True, "page 2")
        assert again[events.ANSWER] == shown[events.ANSWER]
        assert again[events.LISTED].count("data-open") == 3
        assert "3 cells read" in again[events.PROGRESS]
        assert "Next cell" in again[events.READING]
        assert "1 reading." in again[events.SUMMARY]
        (nothing,) = asked.opened(OTHER, True, "page 3")
        assert "started anew" in nothing[events.ANSWER]
        assert "No cells yet" in nothing[events.LISTED]


def test_what_is_gone_is_said_by_whatever_is_asked_next_and_then_all_begins_anew(
    classifier, tmp_path, samples, monkeypatch
):
    clock = Clock()
    with pages(classifier, tmp_path, samples) as asked:
        monkeypatch.setattr(asked.sessions, "_clock", clock)
        list(asked.opened(KEY, False, "page"))
        for ask in (
            lambda: asked.open_cell(KEY, 0),
            lambda: asked.judge(KEY),
            lambda: next(asked.read_samples(KEY)),
            lambda: asked.save(KEY, "json", "list"),
        ):
            list(asked.read_samples(KEY))
            clock.now += limits.SECONDS_KEPT
            said = ask()
            assert "for 4 hours" in said[events.ANSWER]
            assert "No cells yet" in said[events.LISTED]
            assert asked.sessions.of(KEY).is_empty


def test_a_page_that_is_left_while_files_are_read_is_told_that_some_are_missing(classifier, tmp_path):
    names = tmp_path / "many"
    names.mkdir()
    for seed in range(20):
        (names / f"{seed:02}.png").write_bytes(png_of(seed))
    with pages(classifier, tmp_path, names) as asked:
        reading = asked.read_samples(KEY)
        next(reading)
        reading.close()  # as Gradio does when the browser has gone
        (said,) = asked.opened(KEY, True, "page")
        assert events.BROKEN_OFF in said[events.PROGRESS]
        *_, said = asked.read_samples(KEY)
        assert events.BROKEN_OFF not in said[events.PROGRESS]


def test_a_long_list_is_not_sent_again_for_every_few_files(classifier, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for seed in range(60):
        (many / f"{seed:02}.png").write_bytes(png_of(seed))
    with pages(classifier, tmp_path, many) as asked:
        said = list(asked.read_samples(KEY))
        sent = [one[events.LISTED].count("data-open") for one in said if events.LISTED in one]
        assert sent == [8, 16, 24, 40, 60, 60]
        assert all(events.PROGRESS in one for one in said)
        assert len(said) == 9


def test_drawn_cells_do_not_come_into_a_list_that_is_more_than_full(
    classifier, tmp_path, samples, monkeypatch
):
    monkeypatch.setattr(worklist, "MAX_CELLS", 2)
    with pages(classifier, tmp_path, samples) as asked:
        list(asked.read_samples(KEY))
        listed = asked.sessions.of(KEY).worklist
        listed.entries.append(Entry(2, "Further images", error="Further images were left out."))
        list(asked.read_samples(KEY))
        assert [entry.name for entry in listed.entries] == ["0.png", "1.png", "Further images"]


def test_files_that_find_no_memory_are_left_out_in_one_sentence(classifier, tmp_path, samples, monkeypatch):
    monkeypatch.setattr(session, "MAX_SESSIONS_MB", 0)
    with pages(classifier, tmp_path, samples) as asked:
        *_, said = asked.read_samples(KEY)
        assert said[events.LISTED].count("<li") == 1
        assert "memory for open pages is full; send them again later." in said[events.LISTED]


def test_a_cell_that_is_not_in_the_list_any_more_is_told(classifier, tmp_path, samples):
    with pages(classifier, tmp_path, samples) as asked:
        for said in (asked.open_cell(KEY, 7), asked.explain(KEY, 7, CLASSES[0], "grad-cam", "layer4")):
            assert events.NOT_HERE in said[events.ANSWER]


def test_a_map_is_that_of_the_cell_it_was_asked_for_whatever_another_tab_looks_at(
    classifier, tmp_path, samples
):
    with pages(classifier, tmp_path, samples) as asked:
        list(asked.read_samples(KEY))
        asked.open_cell(KEY, 0)
        asked.open_cell(KEY, 1)  # a copy of the tab
        asked.explain(KEY, 0, CLASSES[2], "grad-cam", "layer4")
        looked = asked.sessions.of(KEY).looked
        assert looked is not None
        assert (looked.entry.key, looked.class_name) == (0, CLASSES[2])


def test_limits_leave_room_for_a_whole_worklist():
    from cervicyte.dashboard.intake import MAX_WORKLIST_MB

    assert limits.MAX_SESSIONS_MB > 2 * MAX_WORKLIST_MB
    assert limits.MAX_WAITING >= worklist.AT_ONCE
