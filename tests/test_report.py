"""What an evaluation leaves behind: complete, honest about what is undefined, and safe to open."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT
from PIL import Image

from cervicyte.errors import RunFolderError, UsageError
from cervicyte.evaluation.report import REPORT_FILES, write_evaluation
from cervicyte.evaluation.tables import (
    comparison_table,
    confident_mistakes,
    evaluate_predictions,
    read_predictions,
    write_table,
)
from cervicyte.metrics import upper_bound_of_none
from cervicyte.pages import counted
from cervicyte.provenance import RESEARCH_USE_ONLY

SIPAKMED = ("Dyskeratotic", "Koilocytotic", "Metaplastic", "Parabasal", "Superficial-Intermediate")
RESULTS = PROJECT / "docs" / "results"
DRAWS = 200
VOID = {"meta", "br", "img"}


def made(names=SIPAKMED, count=120, groups=30, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % len(names)
    scores = rng.random((count, len(names))) + 0.6 * np.eye(len(names))[truth]
    probabilities = scores / scores.sum(1, keepdims=True)
    return with_predictions(names, truth, probabilities, rng.integers(0, groups, count))


def with_predictions(names, truth, probabilities, groups) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "path": [f"im_{names[index]}/{number:03d}.png" for number, index in enumerate(truth)],
            "group": [f"g{group}" for group in groups],
            "true_class": [names[index] for index in truth],
            "predicted_class": [names[index] for index in probabilities.argmax(1)],
            "confidence": probabilities.max(1),
        }
    )
    return table.assign(**{f"p_{name}": probabilities[:, index] for index, name in enumerate(names)})


HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "train_loss": [1.2, 0.9, 0.7],
        "train_accuracy": [0.5, 0.7, 0.8],
        "validation_loss": [1.0, 0.8, 0.7],
        "validation_accuracy": [0.6, 0.9, 0.9],
    }
)
CONTEXT = {
    "title": "A title",
    "data": "cells",
    "split": {"by": "group", "hash": "ab" * 32, "train": {"cells": 400, "groups": 90}},
    "model": {"parameters": 24214989, "weights_sha256": "cd" * 32, "backbone": None},
    "recipe": {"epochs": 3, "preprocessing": {"image_size": 224}},
    "command": "cervicyte train cells --out 'a & b'",
    "seed": 3,
    "caveats": ["Groups are not patients."],
}


def picture(path: str) -> np.ndarray:
    return np.full((400, 200, 3), 120, np.uint8)


class Page(HTMLParser):
    """Collects tags, and holds that every one that opens is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    returned = write_evaluation(out, made(), SIPAKMED, history=HISTORY, context=CONTEXT, draws=DRAWS)
    return out, returned


@pytest.fixture(scope="module")
def page(folder):
    return (folder[0] / "report.html").read_text()


def test_a_recipe_that_keeps_the_last_epoch_is_said_to_have_kept_it(tmp_path):
    history = HISTORY.assign(validation_accuracy=[0.9, 0.8, 0.7])
    for keep, kept in (("best", 1), ("last", 3)):
        context = {**CONTEXT, "recipe": {"keep": keep}}
        content = write_evaluation(
            tmp_path / keep, made(), SIPAKMED, history=history, context=context, draws=DRAWS
        )
        assert content["training"]["kept_epoch"] == kept
        assert f"epoch {kept} was kept" in (tmp_path / keep / "report.html").read_text()


# --- the run folder ------------------------------------------------------------------------------


def test_all_files_are_written_and_nothing_else(folder):
    assert {path.name for path in folder[0].iterdir()} == set(REPORT_FILES)


def test_metrics_json_is_what_was_returned_and_says_it_all(folder):
    out, returned = folder
    content = json.loads((out / "metrics.json").read_text())
    assert content == returned
    assert content["notice"] == RESEARCH_USE_ONLY
    assert content["context"] == CONTEXT
    assert content["provenance"]["command"] == CONTEXT["command"]
    assert content["training"] == {"epochs": 3, "kept_epoch": 3}
    assert content["cells"] == np.sum(content["confusion_matrix"]) == 120
    table = made()
    share = (table["true_class"] == table["predicted_class"]).mean()
    accuracy = content["overall"]["accuracy"]
    assert accuracy["value"] == pytest.approx(share)
    assert accuracy["low"] < share < accuracy["high"]


def test_metrics_json_is_written_last(tmp_path, monkeypatch):
    written = []
    from cervicyte import provenance
    from cervicyte.evaluation import report

    def noting(path, value):
        written.extend(sorted(one.name for one in tmp_path.iterdir()))
        provenance.write_json(path, value)

    monkeypatch.setattr(report, "write_json", noting)
    write_evaluation(tmp_path, made(), SIPAKMED, history=HISTORY, context={}, draws=20)
    assert set(written) == set(REPORT_FILES) - {"metrics.json"}


def test_the_class_table_has_every_metric_with_its_interval(folder):
    table = pd.read_csv(folder[0] / "per_class_metrics.csv")
    assert list(table["class"]) == [*SIPAKMED, "macro average", "overall"]
    for metric in ("accuracy", "precision", "recall", "specificity", "f1", "auc"):
        classes = table.iloc[: len(SIPAKMED)]
        assert (classes[f"{metric}_low"] <= classes[metric]).all()
        assert (classes[metric] <= classes[f"{metric}_high"]).all()
    assert table["support"].tolist() == [24] * 5 + [120, 120]
    last = table.iloc[-1]
    assert last["accuracy"] == pytest.approx(folder[1]["overall"]["accuracy"]["value"])
    assert np.isnan(last["recall"])


def test_predictions_are_read_back_as_they_were_written(folder):
    pd.testing.assert_frame_equal(read_predictions(folder[0]), made(), check_dtype=False)


def test_predictions_with_awkward_names_are_read_back(tmp_path):
    table = made(("NA", 'a "b", #c'), count=8)
    table["path"] = [f"0{index}#x.png" for index in range(8)]
    table["group"] = [f"00{index}" for index in range(8)]
    write_table(table, tmp_path / "test_predictions.csv")
    read = read_predictions(tmp_path)
    assert read["true_class"].tolist() == table["true_class"].tolist()
    assert read["path"].tolist() == table["path"].tolist()
    assert read["group"].tolist() == table["group"].tolist()


@pytest.mark.parametrize("content", [None, b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b"# x\npath\n"])
def test_what_is_no_predictions_table_is_refused_by_name(tmp_path, content):
    path = tmp_path / "test_predictions.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFolderError, match=re.escape(str(path))):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.iloc[:0], "holds no cell"),
        (lambda table: table.drop(columns=["p_a", "p_b"]), "is not a table of predictions"),
        (lambda table: table.assign(confidence="nan"), "0.png has confidence = nan, which is not"),
        (lambda table: table.assign(confidence=-3.0), "0.png has confidence = -3.0, which is not"),
        (lambda table: table.assign(p_b=7.5), "0.png has p_b = 7.5, which is not from 0 to 1"),
        (lambda table: table.assign(p_b=float("inf")), "0.png has p_b = inf, which is not"),
        (lambda table: table.assign(predicted_class="c"), "0.png is called c, but there is no column p_c"),
        (lambda table: pd.concat([table, table["p_a"]], axis=1), "has the column p_a twice"),
        (lambda table: pd.concat([table, table["group"]], axis=1), "has the column group twice"),
        (lambda table: table.assign(seed=0), "is not a table of predictions"),
    ],
)
def test_damaged_predictions_are_refused_by_name(tmp_path, change, said):
    table = made(("a", "b"), count=8).assign(path=[f"{index}.png" for index in range(8)])
    path = tmp_path / "mine.csv"
    write_table(table, path)
    assert len(read_predictions(path)) == 8
    write_table(change(table), path)
    with pytest.raises(RunFolderError, match=rf"^{re.escape(str(path))}: {said}.*; \w+ .*\.$"):
        read_predictions(path)


def test_rows_longer_than_their_header_are_refused(tmp_path):
    path = tmp_path / "mine.csv"
    write_table(made(("a", "b"), count=8), path)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{row},0.5" for row in rows)]))
    with pytest.raises(RunFolderError, match="is not a table of predictions"):
        read_predictions(path)


def test_the_predictions_of_earlier_runs_are_still_read():
    files = [*RESULTS.rglob("test_predictions.csv"), *RESULTS.glob("ablation/base/*/*_predictions.csv")]
    assert len(files) > 9
    for file in files:
        assert len(read_predictions(file)) == len(pd.read_csv(file))


def test_a_class_that_a_compared_model_does_not_know_is_named_with_the_run():
    table = made(("a", "b"), count=8)
    other = table.assign(true_class="c")
    with pytest.raises(UsageError, match=r"^second: the true class c is none of its model's classes"):
        comparison_table({"first": table, "second": other}, draws=DRAWS)


def test_pictures_carry_the_notice_and_do_not_change_from_run_to_run(folder, tmp_path):
    write_evaluation(tmp_path, made(), SIPAKMED, history=HISTORY, context={}, draws=20)
    for name in ("confusion_matrix.png", "training_history.png"):
        assert (tmp_path / name).read_bytes() == (folder[0] / name).read_bytes()
        with Image.open(tmp_path / name) as image:
            assert image.info["Description"] == RESEARCH_USE_ONLY
            assert image.width > 600


def test_without_a_history_there_is_no_chart_of_it(tmp_path):
    content = write_evaluation(tmp_path, made(), SIPAKMED, context={}, draws=20)
    assert not (tmp_path / "training_history.png").exists()
    assert "training" not in content
    assert "Training history" not in (tmp_path / "report.html").read_text()


# --- the page ------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_anywhere(page):
    assert "http" not in page
    assert "@import" not in page
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed"), tag
        for name in ("src", "href", "data", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith("#"), (tag, target)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_the_page_says_first_and_last_that_it_is_for_research_only(page):
    text = [piece.strip() for piece in Page(page[page.index("<body>") :].split("</html>")[0]).text]
    text = [piece for piece in text if piece]
    assert text[0] == text[-1] == RESEARCH_USE_ONLY


def test_the_page_holds_all_that_was_promised(page, folder):
    for said in ("ROC curves", "Precision-recall curves", "Reliability", "Training history", "Brier score",
                 "Confusion matrix", "Abnormal cells called normal", "Groups are not patients.", "ab" * 32,
                 "24,214,989", "cervicyte train cells --out &#x27;a &amp; b&#x27;",
                 "Preprocessing, image size"):  # fmt: skip
        assert said.casefold() in page.casefold(), said
    accuracy = folder[1]["overall"]["accuracy"]
    shown = f"{accuracy['value']:.1%}".replace("%", " %")
    assert f"<b>{shown}</b>" in page
    assert f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]" in page
    worst = confident_mistakes(made(), 1).iloc[0]
    assert worst["path"] in page


def test_ids_are_unique_and_every_reference_has_its_target(page):
    ids = [attributes["id"] for _, attributes in Page(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)


def test_headings_descend_and_tables_and_charts_are_described(page):
    tags = Page(page).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in tags if tag == "th")
    charts = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(charts) == 4
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)


def test_cells_are_shown_only_where_their_images_are_given(page, tmp_path):
    assert "<img" not in page
    assert "data:image" not in page
    write_evaluation(tmp_path, made(), SIPAKMED, context={}, image_of=picture, draws=20)
    images = [
        attributes for tag, attributes in Page((tmp_path / "report.html").read_text()).tags if tag == "img"
    ]
    wrong = (made()["true_class"] != made()["predicted_class"]).sum()
    assert len(images) == min(24, wrong) > 0
    for attributes in images:
        assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
        assert "called" in str(attributes["alt"])
        assert max(int(attributes["width"] or 0), int(attributes["height"] or 0)) == 112


def test_names_and_context_are_escaped(tmp_path):
    names = ("<b>", 'x" onload="y', "$a$ & _b")
    context = {
        "title": "<script>1</script>",
        "caveats": ["<i>c</i>"],
        "data": "<u>",
        "model": {"<k>": "<v>"},
        "command": "</style><s>",
    }
    table = made(names, count=60)
    table["path"] = [f"<img src=x>{index}" for index in range(60)]
    write_evaluation(tmp_path, table, names, context=context, image_of=picture, draws=20)
    parsed = Page((tmp_path / "report.html").read_text())
    tags = [tag for tag, _ in parsed.tags]
    assert not {"script", "i", "u", "k", "v", "s"} & set(tags)
    assert all("onload" not in attributes for _, attributes in parsed.tags)
    text = "".join(parsed.text)
    for said in (*names, "<script>1</script>", "<i>c</i>", "<u>", "<v>", "</style><s>", "<img src=x>"):
        assert said in text
    assert all(tag != "img" or attributes.get("src") != "x" for tag, attributes in parsed.tags)


def test_a_page_without_context_is_still_a_page(tmp_path):
    write_evaluation(tmp_path, made(), SIPAKMED, context={}, draws=20)
    page = (tmp_path / "report.html").read_text()
    assert "Evaluation" in page
    assert ">None<" not in page
    assert "nan" not in "".join(Page(page).text)


# --- what is undefined or extreme ----------------------------------------------------------------


def test_an_absent_class_is_null_empty_and_a_dash(tmp_path):
    table = made()
    table = table[table["true_class"] != "Metaplastic"]
    content = write_evaluation(tmp_path, table, SIPAKMED, context={}, draws=DRAWS)
    recall = content["per_class"]["Metaplastic"]["recall"]
    assert recall == {"value": None, "low": None, "high": None}
    row = (tmp_path / "per_class_metrics.csv").read_text().split("Metaplastic,")[1].splitlines()[0]
    assert row.startswith("0,,,,")
    page = (tmp_path / "report.html").read_text()
    after = page.split("<th scope=row>Metaplastic</th><td>0</td>")[1]
    assert after.startswith("<td>\N{EN DASH}<br>")
    assert "nan" not in "".join(Page(page).text)


def test_one_group_has_figures_but_no_intervals_and_the_page_says_why(tmp_path):
    content = write_evaluation(tmp_path, made(groups=1), SIPAKMED, context={}, draws=DRAWS)
    accuracy = content["overall"]["accuracy"]
    assert accuracy["value"] is not None
    assert accuracy["low"] is accuracy["high"] is None
    assert "one group" in content["intervals"]["method"]
    assert "one group" in (tmp_path / "report.html").read_text()


def test_a_table_without_mistakes_says_so_and_does_not_claim_certainty(tmp_path):
    truth = np.arange(50) % 5
    table = with_predictions(SIPAKMED, truth, 0.6 * np.eye(5)[truth] + 0.08, np.arange(50) // 5)
    content = write_evaluation(tmp_path, table, SIPAKMED, context={}, image_of=picture, draws=DRAWS)
    page = (tmp_path / "report.html").read_text()
    assert "There are none." in page
    assert "is no certainty" in page
    missed = content["roll_up"]["abnormal"]["called_normal"]
    assert (missed["count"], missed["of"], missed["value"], missed["low"]) == (0, 20, 0, 0)
    assert missed["high"] == pytest.approx(upper_bound_of_none(10))


def test_the_roll_up_counts_abnormal_cells_called_normal_by_hand():
    truth = np.array([0, 0, 1, 1, 2, 3, 4, 4])
    called = np.array([3, 0, 4, 2, 4, 0, 4, 3])  # two of four abnormal cells are called normal
    table = with_predictions(SIPAKMED, truth, np.eye(5)[called] * 0.9 + 0.02, np.arange(8))
    roll_up = evaluate_predictions(table, SIPAKMED, DRAWS).roll_up
    assert roll_up is not None
    assert roll_up.counts["abnormal"] == {"normal": 2, "benign": 1, "abnormal": 1, "unknown": 0}
    assert roll_up.counts["normal"] == {"normal": 2, "benign": 0, "abnormal": 1, "unknown": 0}
    assert roll_up.counts["benign"] == {"normal": 1, "benign": 0, "abnormal": 0, "unknown": 0}
    assert roll_up.rates["abnormal", "normal"].value == 0.5


def test_classes_that_nobody_grouped_get_no_roll_up(tmp_path):
    content = write_evaluation(tmp_path, made(("dark", "light")), ("dark", "light"), context={}, draws=20)
    assert "roll_up" not in content
    assert "Abnormal" not in (tmp_path / "report.html").read_text()


def test_ten_classes_with_long_names_and_one_class_alone_are_drawn(tmp_path):
    names = tuple(f"A rather long name of class number {index}" for index in range(12))
    write_evaluation(tmp_path / "many", made(names), names, context={}, draws=20)
    write_evaluation(tmp_path / "one", made(("only",)), ("only",), context={}, draws=20)
    assert (tmp_path / "one" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.iloc[:0], "no cell"),
        (lambda table: table.drop(columns="p_Parabasal"), "p_Parabasal"),
        (lambda table: table.replace({"true_class": {"Parabasal": "strange"}}), "strange"),
        (lambda table: table.assign(p_Parabasal=np.nan), "not numbers"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, change, said):
    with pytest.raises(UsageError, match=said):
        write_evaluation(tmp_path, change(made()), SIPAKMED, context={})
    assert list(tmp_path.iterdir()) == []


# --- comparison ----------------------------------------------------------------------------------


def test_a_comparison_table_sets_every_run_against_the_first():
    first = made()
    better = first.assign(predicted_class=first["true_class"])
    table = comparison_table({"first": first, "better": better}, draws=DRAWS)
    assert table["run"].tolist() == ["first", "better"]
    itself, other = table.to_dict("records")
    assert itself["accuracy_difference"] == itself["macro_f1_difference_high"] == 0
    assert itself["p_value"] == 1
    assert other["accuracy_difference"] == pytest.approx(other["accuracy"] - itself["accuracy"])
    assert other["accuracy_difference_low"] > 0
    assert other["macro_f1_difference_low"] > 0


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 twin passes show"), (1, "1 twin pass shows"), (1200, "1,200 twin passes show")]
)
def test_word_and_verb_agree_with_their_count(count, said):
    assert counted(count, "twin pass", "shows", "show") == said
    assert counted(count, "twin pass") == said.removesuffix(" show").removesuffix(" shows")
