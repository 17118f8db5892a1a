"""Every opening of a test part is recorded, counted, and said in the report."""

from __future__ import annotations

import json
import threading

import pytest

from cervicyte.errors import SplitError
from cervicyte.evaluation.ledger import ledger_path, openings, record_opening, times_opened
from cervicyte.provenance import RESEARCH_USE_ONLY

SPLIT_HASH, OTHER_HASH = "a" * 64, "b" * 64


@pytest.fixture
def split(tmp_path):
    return tmp_path / "folds" / "split.csv"


def test_a_split_without_a_ledger_was_never_opened(split):
    assert openings(split, SPLIT_HASH) == []
    assert times_opened([]) == "0 openings by 0 models"


def test_an_opening_says_when_what_and_by_which_model(split):
    assert record_opening(split, SPLIT_HASH, model="m1", command="cervicyte evaluate") == (
        "1 opening by 1 model"
    )
    assert ledger_path(split).name == "split.openings.jsonl"
    (line,) = ledger_path(split).read_text().splitlines()
    opening = json.loads(line)
    assert opening.pop("when").endswith("+00:00")
    assert opening == {
        "split_hash": SPLIT_HASH,
        "part": "test",
        "model": "m1",
        "command": "cervicyte evaluate",
        "notice": RESEARCH_USE_ONLY,
    }


def test_the_same_model_again_is_an_opening_by_no_further_model(split):
    for model in ("m1", "m2", "m1"):
        said = record_opening(split, SPLIT_HASH, model=model)
    assert said == "3 openings by 2 models"
    assert [opening["model"] for opening in openings(split, SPLIT_HASH)] == ["m1", "m2", "m1"]


def test_openings_of_another_split_under_the_same_name_do_not_count(split):
    record_opening(split, OTHER_HASH, model="m1")
    assert record_opening(split, SPLIT_HASH, model="m1") == "1 opening by 1 model"
    assert len(openings(split, OTHER_HASH)) == 1


def test_a_line_that_was_cut_off_still_counts_and_spoils_no_other(split):
    record_opening(split, SPLIT_HASH, model="m1")
    with open(ledger_path(split), "a") as file:
        file.write('{"when": "2026-01-01T00:')
    assert record_opening(split, SPLIT_HASH, model="m1") == "3 openings by 2 models"


def test_openings_at_the_same_time_are_all_recorded(split):
    def open_often(model):
        for _ in range(20):
            record_opening(split, SPLIT_HASH, model=model)

    threads = [threading.Thread(target=open_often, args=(f"m{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times_opened(openings(split, SPLIT_HASH)) == "80 openings by 4 models"


def test_nothing_is_opened_where_it_cannot_be_recorded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SplitError, match=r"split\.openings\.jsonl: .* cannot be recorded"):
        record_opening(tmp_path / "file" / "split.csv", SPLIT_HASH, model="m1")
