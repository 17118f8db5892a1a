"""The overlays of a whole list: each tested, named and stamped; made beside the page, gone with the list."""

from __future__ import annotations

import contextlib
import csv
import io
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from serving import encoded, small_classifier, whole_server

from cervicyte.dashboard import events, limits, overlays, session
from cervicyte.dashboard.batching import Batcher, Busy, QueuedClassifier
from cervicyte.dashboard.downloads import table_csv
from cervicyte.dashboard.events import Events
from cervicyte.dashboard.intake import Arrived
from cervicyte.dashboard.overlays import INDEX, README, MakingOverlays, Overlays, overlays_html, progress_html
from cervicyte.evaluation.familiarity import Judgement
from cervicyte.inference.classifier import Classifier
from cervicyte.provenance import RESEARCH_USE_ONLY

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier()


@pytest.fixture
def asked(classifier, tmp_path) -> Iterator[Events]:
    with contextlib.closing(Batcher(classifier)) as batcher:
        batcher.ready.wait(60)
        found = Events(classifier, "run/model", batcher, tmp_path, samples=tmp_path / "none")
        yield found
        found.sessions.close()
        ended(found)


def ended(asked: Events) -> None:
    """Wait until no list's overlays are at work."""
    for _ in range(limits.MAX_OVERLAID_LISTS):
        assert asked._few_lists.acquire(timeout=60)
    for _ in range(limits.MAX_OVERLAID_LISTS):
        asked._few_lists.release()


def pictured(seed: int) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)))


def give(asked: Events, key: str, *names: str) -> None:
    arrived = [Arrived(name, b"text" if "note" in name else pictured(i)) for i, name in enumerate(names)]
    list(asked.sessions.of(key).worklist.read(asked.classifier, arrived))


def made_of(asked: Events, key: str = KEY) -> Overlays:
    list(asked.overlays(key))
    made = asked.sessions.of(key).overlays
    assert made is not None
    return made


def rows_of(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(archive.read(INDEX).decode("utf-8"))))


def test_each_cell_has_a_tested_stamped_picture_that_is_found_by_the_row_of_the_table(asked, classifier):
    give(asked, KEY, "a/../x$ cell.png", "x__cell.png", "=1+1.png", "note.png", "fünf" + "長" * 200 + ".png")
    listed = asked.sessions.of(KEY).worklist
    doubted = listed.entries[1].prediction
    assert doubted is not None
    unlike = Judgement({}, 99.9, "not_a_cell", ("far too large",))
    listed.say({1: replace(doubted, verdict="not_a_cell", unlike=unlike)})
    made = made_of(asked)
    table = list(csv.DictReader(io.StringIO(table_csv(classifier, listed.sorted()))))
    with zipfile.ZipFile(made.path) as archive:
        assert archive.testzip() is None
        index, readme = rows_of(archive), archive.read(README).decode("utf-8")
        assert [row["number"] for row in index] == ["1", "2", "3", "4", "5"]
        for row, of_table in zip(index, table, strict=True):
            assert (row["path"], row["sha256"]) == (of_table["path"], of_table["sha256"])
            assert row["notice"] == RESEARCH_USE_ONLY
            assert bool(row["overlay"]) == (row["outcome"] not in ("declined", "error"))
        pictures = [row for row in index if row["overlay"]]
        assert len(pictures) == 3
        assert sorted(archive.namelist()) == sorted([INDEX, README, *(row["overlay"] for row in pictures)])
        for row in pictures:
            assert row["overlay"].startswith(f"overlays/00{row['number']}_")
            assert len(row["overlay"].encode()) < 255
            assert not set(row["overlay"].removeprefix("overlays/")) & set('/\\:*?"<>|$= ')
            text = dict(PngImageFile(io.BytesIO(archive.read(row["overlay"]))).text)
            assert text["Copyright"] == RESEARCH_USE_ONLY
            for part in (row["sha256"], classifier.weights_sha256, row["sentence"], row["predicted_class"]):
                assert part in text["Description"]
    kinds = {row["path"]: row for row in index}
    assert kinds["x__cell.png"]["outcome"] == "declined"
    assert kinds["note.png"]["outcome"] == "error"
    assert readme.startswith(RESEARCH_USE_ONLY)
    assert classifier.weights_sha256 in readme
    unlike_sentence = "This does not look like a single cervical cell: far too large."
    assert f"  {kinds['x__cell.png']['number']} x__cell.png: {unlike_sentence}\n" in readme
    assert "  5 note.png: is not an image in a known format" in readme
    for row in pictures:  # of random weights, which map beats the controls is chance: all are named
        assert f": {row['sentence']}\n" in readme


def test_the_verdicts_are_those_that_the_page_shows(asked):
    give(asked, KEY, "a.png", "b.png")
    made = made_of(asked)
    for one in made.outcomes:
        asked.open_cell(KEY, one.entry.key)
        asked.judge(KEY)
        looked = asked.sessions.of(KEY).looked
        assert looked is not None
        assert looked.verdict is not None
        assert one.verdict is not None
        assert one.verdict.sentence == looked.verdict.sentence
        assert one.kind == (
            ("beats_controls" if looked.verdict.beats_controls else "does_not_beat_controls")
            if looked.verdict.tested
            else "not_tested"
        )


def test_without_verdicts_every_map_is_said_to_be_untested(classifier, tmp_path):
    with contextlib.closing(Batcher(classifier)) as batcher:
        asked = Events(
            classifier, "run/model", batcher, tmp_path, with_verdicts=False, samples=tmp_path / "x"
        )
        give(asked, KEY, "a.png")
        made = made_of(asked)
        with zipfile.ZipFile(made.path) as archive:
            (row,) = rows_of(archive)
            assert (row["outcome"], row["score"]) == ("not_tested", "")
            picture = PngImageFile(io.BytesIO(archive.read(row["overlay"])))
            assert "The map was not tested against controls." in dict(picture.text)["Description"]
            assert "Maps that were not tested against controls" in archive.read(README).decode("utf-8")


def test_how_far_it_is_and_how_long_it_takes_stand_on_the_page(asked):
    give(asked, KEY, "a.png", "b.png", "note.png")
    first, *between, last = asked.overlays(KEY)
    assert 'data-send="stop"' in first[events.OVERLAYS]
    assert any(" of 3 done" in changes.get(events.OVERLAID, "") for changes in between)
    assert "2 overlays made" in last[events.OVERLAYS]
    assert "1 without an overlay" in last[events.OVERLAYS]
    assert 'data-fetch="overlays"' in last[events.OVERLAYS]
    assert last[events.OVERLAID] == ""
    making = MakingOverlays(10)
    assert "left" not in progress_html(making)
    making.done, making.began = 4, time.monotonic() - 80
    assert "4 of 10 done, about 2 min 00 s left" in progress_html(making)


def test_one_is_not_called_several(asked):
    give(asked, KEY, "a.png")
    made = made_of(asked)
    for kind, said in (
        ("beats_controls", "1 map beats the controls"),
        ("does_not_beat_controls", "1 does not"),
        ("not_tested", "1 was not tested"),
    ):
        one = replace(made, outcomes=(replace(made.outcomes[0], kind=kind),))
        shown = overlays_html(False, one, asked.sessions.of(KEY).worklist)
        assert f"<b>1 overlay made</b>: {said}." in shown


def test_overlays_that_are_stopped_leave_nothing(asked, tmp_path):
    give(asked, KEY, *(f"{number}.png" for number in range(30)))
    making = asked.overlays(KEY)
    next(making)
    assert "Stopping" in asked.stop_overlays(KEY)[events.OVERLAID]
    assert (
        asked.sessions.of(KEY).making is None or "just ending" in next(asked.overlays(KEY))[events.OVERLAYS]
    )
    *_, last = making
    assert events.STOPPED in last[events.OVERLAYS]
    assert asked.sessions.of(KEY).overlays is None
    assert list(tmp_path.glob("overlays-*")) == []


def test_overlays_of_a_list_that_is_cleared_or_forgotten_meanwhile_leave_nothing(asked, tmp_path):
    for forget in (lambda: asked.clear(KEY), asked.sessions.close):
        give(asked, KEY, *(f"{number}.png" for number in range(30)))
        next(asked.overlays(KEY))
        forget()
        ended(asked)
        assert list(tmp_path.glob("overlays-*")) == []
        for one in asked.sessions._sessions.values():
            assert one.overlays is None
        asked.sessions._gone.clear()


def test_overlays_go_with_the_list_and_are_told_to_be_old_when_it_grows(asked):
    give(asked, KEY, "a.png")
    path = made_of(asked).path
    assert "has changed since" not in asked._list(asked.sessions.of(KEY))[events.OVERLAYS]
    give(asked, KEY, "b.png")
    assert "has changed since" in asked._list(asked.sessions.of(KEY))[events.OVERLAYS]
    again = made_of(asked).path
    assert not path.exists()
    assert len(asked.sessions.of(KEY).overlays.outcomes) == 2
    asked.clear(KEY)
    assert not again.exists()


def test_others_are_answered_while_overlays_are_made(asked):
    give(asked, KEY, *(f"{number}.png" for number in range(40)))
    give(asked, OTHER, "a.png")
    next(asked.overlays(KEY))
    assert "<h2>" in asked.open_first(OTHER)[events.ANSWER]
    assert "through the network" in asked.judge(OTHER)[events.VERDICT]
    making = asked.sessions.of(KEY).making
    assert making is not None
    assert making.done < 40


def test_a_full_queue_is_waited_for(asked, monkeypatch):
    give(asked, KEY, "a.png")
    monkeypatch.setattr(overlays, "SECONDS_TO_RETRY", 0.01)
    refused: list[object] = []
    aside = QueuedClassifier.aside

    def full_at_first(self, do):
        if len(refused) < 3:
            refused.append(do)
            raise Busy
        return aside(self, do)

    monkeypatch.setattr(QueuedClassifier, "aside", full_at_first)
    assert made_of(asked).outcomes[0].overlay
    assert len(refused) == 3


def test_one_cell_s_failure_is_named_and_is_not_the_others(asked, monkeypatch):
    give(asked, KEY, "a.png", "b.png")
    look = overlays.look

    def fails_for_a(classifier, entry):
        if entry.name == "a.png":
            raise RuntimeError
        return look(classifier, entry)

    monkeypatch.setattr(overlays, "look", fails_for_a)
    found = {one.entry.name: one for one in made_of(asked).outcomes}
    assert (found["a.png"].kind, found["a.png"].sentence) == ("error", overlays.NOT_MADE)
    assert found["b.png"].overlay


def test_where_the_disk_has_no_room_the_page_says_so_and_nothing_is_left(asked, tmp_path, monkeypatch):
    give(asked, KEY, "a.png", "b.png")
    monkeypatch.setattr(session, "MAX_OVERLAYS_MB", 0)
    *_, last = asked.overlays(KEY)
    assert session.NO_DISK in last[events.OVERLAYS]
    monkeypatch.undo()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", no_space)
    *_, last = asked.overlays(KEY)
    assert events.DISK_FULL in last[events.OVERLAYS]
    assert list(tmp_path.glob("overlays-*")) == []


def test_so_many_lists_are_worked_on_at_once_and_the_next_is_told(asked):
    give(asked, KEY, "a.png")
    for _ in range(limits.MAX_OVERLAID_LISTS):
        asked._few_lists.acquire()
    assert events.OTHER_LISTS_FIRST in next(asked.overlays(KEY))[events.OVERLAYS]
    for _ in range(limits.MAX_OVERLAID_LISTS):
        asked._few_lists.release()
    made_of(asked)


def test_a_page_that_is_loaded_again_follows_the_overlays_and_an_open_one_keeps_its_cells(asked):
    give(asked, KEY, *(f"{number}.png" for number in range(6)))
    asked.sessions.open(KEY, "page", resumed=False)
    asked.sessions.of(KEY).used -= 100
    used = asked.sessions.there(KEY).used
    asked._begun_overlays(asked.sessions.there(KEY))
    *_, last = asked.opened(KEY, True, "page 2")
    assert "6 overlays made" in last[events.OVERLAYS]
    assert asked.sessions.there(KEY).used > used + 50


def test_the_archive_is_given_to_who_knows_the_page_s_key_and_goes_with_the_server(
    classifier, tmp_path, monkeypatch
):
    with whole_server(classifier, tmp_path, monkeypatch) as (client, asked):
        give(asked, KEY, "a.png")
        archive: Path = made_of(asked).path
        response = client.post("/overlays", data={"key": KEY})
        assert response.headers["content-disposition"] == 'attachment; filename="cervicyte_overlays.zip"'
        assert response.headers["cache-control"] == "no-store"
        assert response.content == archive.read_bytes()
        assert client.post("/overlays", data={"key": OTHER}).status_code == 404
        foreign = {"origin": "http://elsewhere.example"}
        assert client.post("/overlays", data={"key": KEY}, headers=foreign).status_code == 403
    assert not archive.exists()
