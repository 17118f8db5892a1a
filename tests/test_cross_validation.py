"""Every cell is tested once, finished folds stay, and the splits are compared on the same cells."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import draw_two_classes
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from cervicyte import metrics
from cervicyte.errors import RunFolderError, SplitError, UsageError
from cervicyte.evaluation import cross_validation, run
from cervicyte.evaluation.calibration import fit_calibration, read_calibration
from cervicyte.evaluation.cross_validation import (
    cross_validate,
    figures_of_cells,
    pooled_figures,
    sensitivity_at_specificity,
)
from cervicyte.evaluation.cross_validation_page import number_text, title_of_figure
from cervicyte.evaluation.linear_probe import frozen_features
from cervicyte.evaluation.optimism import optimism
from cervicyte.evaluation.tables import comparison_table, read_predictions
from cervicyte.provenance import RESEARCH_USE_ONLY, sha256_of_file

SMALL = {"preprocessing.image_size": 32, "preprocessing.canvas_size": 32, "backbone": "none"}
TINY = {**SMALL, "epochs": 1, "batch_size": 8, "frozen_stages": 4}
FOLDS = 3


def draw(path, level, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 120, (40, 50, 3)) + level
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two classes, six fields each, two cells a field."""
    return draw_two_classes(tmp_path_factory.mktemp("data") / "cells", 6, 2)


@pytest.fixture(scope="module")
def probed(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("probed")
    cross_validate(cells, out, overrides=SMALL, folds=FOLDS, seeds=(0, 1), frozen=True, command="a command")
    return out


@pytest.fixture(scope="module")
def trained(cells, tmp_path_factory):
    """Two folds, stopped when the second was about to be tested, then taken up again.

    Returns the folder, the first fold's files with their times before the second call, and the summary.
    """
    out = tmp_path_factory.mktemp("trained")
    predict, calls = run.answered_cells, []

    def stops(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "answered_cells", stops)
        with pytest.raises(KeyboardInterrupt):
            cross_validate(cells, out, overrides=TINY, folds=2)
        before = {path: path.stat().st_mtime_ns for path in (out / "seed_0" / "fold_0").iterdir()}
        assert not (out / "cross_validation.json").exists()
        summary = cross_validate(cells, out, overrides=TINY, folds=2)
    assert len(calls) == 3
    return out, before, summary


def test_every_cell_is_tested_once_a_seed(probed, cells):
    pooled = pd.read_csv(probed / "predictions.csv")
    names = sorted(str(path.relative_to(cells)) for path in cells.rglob("*.png"))
    assert list(pooled.columns[:3]) == ["seed", "fold", "path"]
    for _, rows in pooled.groupby("seed"):
        assert list(rows["path"]) == names
        assert (rows.groupby("group")["fold"].nunique() == 1).all()
    assert sorted(read_predictions(probed)["path"]) == names


def test_an_interrupted_cross_validation_goes_on_and_keeps_the_finished_folds(trained, cells):
    out, before, summary = trained
    assert {path: path.stat().st_mtime_ns for path in (out / "seed_0" / "fold_0").iterdir()} == before
    assert summary["cells"] == len(list(cells.rglob("*.png")))


def test_a_test_part_opened_again_after_an_interruption_is_counted_as_such(trained):
    assert trained[2]["context"]["test_parts_opened"] == "3 openings by 2 models of 2 test parts"


def test_a_fold_says_how_often_its_test_part_was_opened(trained):
    out, _, _ = trained
    for fold, said in (("fold_0", "1 opening by 1 model"), ("fold_1", "2 openings by 1 model")):
        about = json.loads((out / "seed_0" / fold / "metrics.json").read_text())
        assert about["context"]["test_part_opened"] == said
        assert said in (out / "seed_0" / fold / "report.html").read_text()


def test_all_tables_and_the_report_are_there_and_carry_the_notice(probed):
    names = ["cross_validation.json", "cross_validation.md", "calibration.json", "report.html"]
    for name in [*names, "metrics.json", "seed_0/fold_0/probe.json"]:
        assert RESEARCH_USE_ONLY in (probed / name).read_text(), name
    table = pd.read_csv(probed / "cross_validation.csv")
    assert list(table["figure"]) == [
        "accuracy", "macro_f1", "recall, dark", "recall, light", "abnormal_auc",
        "abnormal_sensitivity_at_95_specificity", "abnormal_called_normal",
        "expected_calibration_error_before", "expected_calibration_error_after",
        "adaptive_calibration_error_before", "adaptive_calibration_error_after",
        "negative_log_likelihood_before", "negative_log_likelihood_after",
        "set_coverage, dark", "set_coverage_of_groups, dark",
        "set_coverage, light", "set_coverage_of_groups, light",
        "mean_set_size", "sets_of_one_class", "accuracy_at_90_coverage", "answered", "accuracy_of_answered",
    ]  # fmt: skip
    assert {"value", "low", "high", "standard_deviation_over_seeds", "seed_0", "seed_1"} < set(table.columns)
    assert np.allclose(table["value"][0], table[["seed_0", "seed_1"]].to_numpy(float)[0].mean())


def test_reports_show_no_cell_where_that_is_asked(trained, cells, tmp_path, monkeypatch):
    in_report = "<th scope=col>Picture</th>"
    assert in_report in (trained[0] / "seed_0/fold_0/report.html").read_text()
    begun = tmp_path / "seed_0" / "fold_0"
    shutil.copytree(trained[0] / "seed_0" / "fold_0", begun)  # finished before, with pictures
    before = (begun / "report.html").read_text()
    monkeypatch.setattr(cross_validation, "picture_reader", None)  # would fail
    monkeypatch.setattr(run, "picture_reader", None)
    cross_validate(cells, tmp_path, overrides=TINY, folds=2, with_pictures=False)
    reports = list(tmp_path.rglob("report.html"))
    assert len(reports) == 3
    for report in reports:
        assert "The most confident mistakes" in report.read_text()
        assert in_report not in report.read_text()
    # Nothing else of it changes, to the identifiers that charts draw.
    assert texts(re.sub(r"<td><img[^>]*></td>|<th scope=col>Picture</th>", "", before)) == texts(
        (begun / "report.html").read_text()
    )


def texts(page):
    return re.findall(r">([^<>]+)<", re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", page, flags=re.DOTALL))


def test_what_a_model_takes_along_is_fitted_on_all_folds_and_seeds_and_says_so(probed):
    content = json.loads((probed / "calibration.json").read_text())
    pooled = pd.read_csv(probed / "predictions.csv", dtype=str)
    columns = ["p_dark", "p_light", "confidence"]
    again = fit_calibration(pooled.astype(dict.fromkeys(columns, float)), ["dark", "light"])
    assert read_calibration(probed) == again
    assert [(one.name, one.cells, one.groups) for one in again.classes] == [("dark", 12, 6), ("light", 12, 6)]
    about = content["fitted_on"]
    assert about["seeds"] == [0, 1]
    assert about["predictions_sha256"] == sha256_of_file(probed / "predictions.csv")
    assert content["leak"] is None
    assert sum("where 19 are needed" in caveat for caveat in content["caveats"]) == 2
    assert content["provenance"]["command"] == "a command"


def test_calibrated_predictions_stand_beside_the_raw_ones_which_stay(probed):
    raw, calibrated = (
        pd.read_csv(probed / name, dtype={"group": str})
        for name in ("predictions.csv", "calibrated_predictions.csv")
    )
    assert list(calibrated.columns) == [*raw.columns, "prediction_set", "declined"]
    kept = ["seed", "fold", "path", "group", "true_class", "predicted_class"]
    pd.testing.assert_frame_equal(calibrated[kept], raw[kept])
    assert set(calibrated["prediction_set"]) == {"dark | light"}  # 6 groups a class: none can be left out
    assert calibrated[["p_dark", "p_light"]].sum(axis=1).to_numpy() == pytest.approx(1)
    alone = read_predictions(probed)["confidence"]
    assert raw.loc[raw["seed"] == 0, "confidence"].to_numpy() == pytest.approx(alone.to_numpy())


def test_the_page_shows_every_figure_of_the_json_and_every_caveat(probed):
    page = (probed / "cross_validation.md").read_text()
    content = json.loads((probed / "cross_validation.json").read_text())
    for name, figure in content["figures"].items():
        if figure["value"] is not None:
            title = title_of_figure(name.removesuffix("_before").removesuffix("_after"))
            if name.startswith("set_coverage"):
                title = name.split(", ")[1]
            (row,) = [line for line in page.splitlines() if line.startswith(f"| {title} |")]
            ends = ", ".join(number_text(figure[end], name) for end in ("low", "high"))
            assert f"[{ends}]" in row, name
    for caveat in content["context"]["caveats"]:
        assert f"- {caveat}" in page
    assert sum("fewer than 19 groups" in caveat for caveat in content["context"]["caveats"]) == 2
    assert len(content["calibrations"]) == 2 * FOLDS


def test_features_are_computed_once(cells, tmp_path, monkeypatch):
    calls = []

    def counted(*given):
        calls.append(given)
        return frozen_features(*given)

    monkeypatch.setattr(cross_validation, "frozen_features", counted)
    optimism(cells, tmp_path, overrides=SMALL, folds=FOLDS)
    assert len(calls) == 1
    shutil.rmtree(tmp_path / "group" / "seed_0" / "fold_1")
    options = {"folds": FOLDS, "frozen": True, "features_file": tmp_path / "features.npz"}
    cross_validate(cells, tmp_path / "group", overrides=SMALL, **options)
    assert len(calls) == 1
    changed = {**SMALL, "preprocessing.image_size": 48}
    with pytest.raises(RunFolderError, match="other features"):
        cross_validate(cells, tmp_path / "group", overrides=changed, **options)


def test_damaged_features_are_computed_anew(cells, probed, tmp_path):
    (tmp_path / "features.npz").write_bytes((probed / "features.npz").read_bytes()[:1000])
    cross_validate(cells, tmp_path, overrides=SMALL, folds=FOLDS, frozen=True)
    pd.testing.assert_frame_equal(read_predictions(tmp_path), read_predictions(probed))


def test_a_split_that_leaks_is_refused_unless_it_is_asked_for(cells, tmp_path):
    with pytest.raises(SplitError, match="--allow-leak"):
        cross_validate(cells, tmp_path, overrides=SMALL, folds=FOLDS, frozen=True, by="cell")
    assert not any(tmp_path.iterdir())


def test_another_recipe_or_split_is_refused_in_a_folder_in_use(trained, probed, cells):
    out, _, _ = trained
    for folder, recipe, folds, frozen, what in (
        (out, {**TINY, "epochs": 2}, 2, False, "another recipe"),
        (out, TINY, FOLDS, False, "another split"),
        (out, TINY, 2, True, "a trained network"),
        (probed, TINY, FOLDS, False, "a linear probe"),
    ):
        with pytest.raises(RunFolderError, match=what):
            cross_validate(cells, folder, overrides=recipe, folds=folds, frozen=frozen)


def test_parts_of_its_own_and_seeds_given_twice_are_refused(cells, tmp_path):
    with pytest.raises(UsageError, match="given once"):
        cross_validate(cells, tmp_path, seeds=(1, 1))
    for part in ("train", "test"):
        shutil.copytree(cells, tmp_path / "data" / part)
    with pytest.raises(UsageError, match="parts of its own"):
        cross_validate(tmp_path / "data", tmp_path / "out")


def test_two_cross_validations_compare(trained, probed):
    table = comparison_table({"a": read_predictions(probed), "b": read_predictions(trained[0])}, draws=50)
    assert list(table["cells"]) == [24, 24]


# --- optimism --------------------------------------------------------------------------------------


def test_the_difference_is_zero_where_each_group_is_one_cell(tmp_path):
    rng = np.random.default_rng(1)
    files = [f"{label}_{number:02d}.png" for label in ("Dyskeratotic", "Parabasal") for number in range(9)]
    for file in files:
        draw(tmp_path / "data" / file, 40 if file.startswith("D") else 60, rng)
    manifest = pd.DataFrame({"path": files, "label": [file.split("_")[0] for file in files]})
    manifest.assign(group=files).to_csv(tmp_path / "data" / "cells.csv", index=False)
    content = optimism(tmp_path / "data" / "cells.csv", tmp_path / "out", overrides=SMALL, folds=FOLDS)
    for figures in content["figures"].values():
        assert figures["cell - group"]["value"] == figures["field - group"]["value"] == 0
        assert figures["cell - group"]["low"] == figures["cell - group"]["high"] == 0
    assert [row["tests"] for row in content["company_in_training"]] == [0, 18, 0, 18]
    page = (tmp_path / "out" / "optimism.md").read_text()
    assert RESEARCH_USE_ONLY in page
    assert "| Accuracy |" in page


def test_cells_in_company_gain_what_they_are_copies_of(tmp_path):
    """Pictures and labels are random, and copies share them: only who saw a copy can tell a label."""
    rng = np.random.default_rng(2)
    rows = []
    for group in range(12):
        pixels = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        for copy in range(3):
            file = f"{group:03d}_{copy}.png"
            noisy = pixels.repeat(10, 0).repeat(10, 1)
            noisy[0, 0, 0] = copy  # other contents, the same picture
            (tmp_path / "data").mkdir(exist_ok=True)
            Image.fromarray(noisy).save(tmp_path / "data" / file)
            rows.append({"path": file, "label": "ab"[group % 2], "group": f"g{group:02d}"})
    pd.DataFrame(rows).to_csv(tmp_path / "data" / "cells.csv", index=False)
    content = optimism(tmp_path / "data" / "cells.csv", tmp_path / "out", overrides=SMALL, folds=FOLDS)
    accuracy = content["figures"]["accuracy"]
    assert accuracy["cell - group"]["value"] > 0.2
    seen = content["company_in_training"][0]
    assert seen["tests"] >= 30
    assert seen["difference"]["value"] > 0.2
    assert content["figures"]["abnormal_auc"]["cell"] == {"value": None, "low": None, "high": None}
    for name in ("report.html", "calibration.json", "cross_validation.json", "cross_validation.md"):
        assert "stand in more than one part" in (tmp_path / "out" / "cell" / name).read_text()
        assert "stand in more than one part" not in (tmp_path / "out" / "group" / name).read_text()


# --- figures ---------------------------------------------------------------------------------------


def random_table(seed, cells=200):
    rng = np.random.default_rng(seed)
    names = ["Dyskeratotic", "Koilocytotic", "Metaplastic", "Parabasal"]
    truth = rng.integers(0, 4, cells)
    scores = rng.dirichlet(np.ones(4), cells) + 0.4 * np.eye(4)[truth]
    scores /= scores.sum(1, keepdims=True)
    table = pd.DataFrame(
        {
            "seed": 0,
            "group": [f"g{one}" for one in rng.integers(0, 40, cells)],
            "true_class": [names[one] for one in truth],
            "predicted_class": [names[one] for one in scores.argmax(1)],
        }
    )
    return table.assign(**{f"p_{name}": scores[:, place] for place, name in enumerate(names)}), names


def test_abnormal_figures_are_those_of_scikit_learn():
    table, names = random_table(3)
    figures = pooled_figures(table, names)
    positive = table["true_class"].isin(names[:2])
    score = table["p_Dyskeratotic"] + table["p_Koilocytotic"]
    assert np.isclose(figures["abnormal_auc"]["value"], roc_auc_score(positive, score))
    false_positive, true_positive, _ = roc_curve(positive, score, drop_intermediate=False)
    expected = true_positive[false_positive <= 0.05 + 1e-9].max()
    assert np.isclose(figures["abnormal_sensitivity_at_95_specificity"]["value"], expected)
    called = (table.loc[positive, "predicted_class"] == "Parabasal").mean()
    assert np.isclose(figures["abnormal_called_normal"]["value"], called)


def test_a_weight_of_two_is_the_cell_standing_there_twice():
    table, names = random_table(4, cells=60)
    weights = np.random.default_rng(0).integers(0, 3, 60)
    repeated = table.loc[table.index.repeat(weights)]
    weighted = figures_of_cells(table, names)[1](weights[None].astype(float))
    assert np.allclose(weighted, figures_of_cells(repeated, names)[1](np.ones((1, len(repeated)))))


def test_without_positives_or_negatives_there_is_no_sensitivity():
    scores, ones = np.array([0.1, 0.9]), np.ones((1, 2))
    assert np.isnan(sensitivity_at_specificity(np.array([True, True]), scores, ones))
    assert np.isnan(sensitivity_at_specificity(np.array([False, False]), scores, ones))
    assert sensitivity_at_specificity(np.array([False, True]), scores, ones) == 1
    assert sensitivity_at_specificity(np.array([True, False]), scores, ones) == 0


def test_no_abnormal_cell_called_normal_does_not_mean_that_none_ever_is():
    table, names = random_table(5)
    table["predicted_class"] = table["true_class"]
    abnormal = table.loc[table["true_class"].isin(names[:2]), "group"].nunique()
    figure = pooled_figures(table, names)["abnormal_called_normal"]
    assert figure["value"] == 0
    assert figure["high"] == metrics.upper_bound_of_none(abnormal)


def test_figures_of_classes_without_a_known_grouping_are_undefined():
    table, names = random_table(6)
    renamed = table.replace("Parabasal", "Other").rename(columns={"p_Parabasal": "p_Other"})
    figures = pooled_figures(renamed, [*names[:3], "Other"])
    for name in ("abnormal_auc", "abnormal_sensitivity_at_95_specificity", "abnormal_called_normal"):
        assert figures[name]["value"] is None
    assert figures["accuracy"]["value"] is not None


def test_folds_may_be_done_one_by_one_and_the_tables_are_then_those_of_one_call(cells, tmp_path):
    for fold in (1, 0):
        assert cross_validate(cells, tmp_path / "a", overrides=TINY, folds=2, only_folds=[fold]) == {}
        assert not (tmp_path / "a" / "cross_validation.json").exists()
        assert (tmp_path / "a" / "seed_0" / f"fold_{fold}" / "metrics.json").is_file()
    apart = cross_validate(cells, tmp_path / "a", overrides=TINY, folds=2)
    together = cross_validate(cells, tmp_path / "b", overrides=TINY, folds=2)
    assert apart["figures"] == together["figures"]
    assert len(apart["training_minutes"]) == 2
    with pytest.raises(UsageError, match="from 0 to 1"):
        cross_validate(cells, tmp_path / "a", overrides=TINY, folds=2, only_folds=[2])
