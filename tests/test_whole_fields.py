"""Overlapping photographs are matched whatever was cut from them, and join the groups of their crops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cervicyte.datasets.inspection import inspect_dataset
from cervicyte.datasets.layouts import read_dataset
from cervicyte.datasets.synthetic_fields import Photograph, Scene, draw_scene, photograph
from cervicyte.datasets.whole_fields import FieldMatches, field_files, match_fields

HEIGHT, WIDTH = 480, 640
SHIFT = (290, -120)


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    return [draw_scene(3, number, 760, 1240, 5) for number in range(3)]


def photographs_of(scene: Scene, seed: int) -> tuple[Photograph, Photograph]:
    """Return a place photographed twice: shifted, turned a little, less sharp, darker."""
    again = photograph(
        scene, HEIGHT, WIDTH, shift_px=SHIFT, degrees=1.5, blur_px=1.2, exposure=0.85, seed=seed + 50
    )
    return photograph(scene, HEIGHT, WIDTH, seed=seed), again


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def archive(scenes, tmp_path_factory) -> Path:
    """Two classes as in SIPaKMeD's archive; field 001 of one is the place of field 001 of the other.

    From each field one crop is cut, at its outer edge, where the other photograph does not reach.
    """
    root = tmp_path_factory.mktemp("archive")
    places = {"im_Parabasal": (scenes[0], scenes[1]), "im_Metaplastic": (scenes[0], scenes[2])}
    for which, (name, shown) in enumerate(places.items()):
        for number, scene in enumerate(shown, start=1):
            field = photographs_of(scene, seed=10 * which + number)[which].image
            folder = root / name / name
            write(folder / f"{number:03d}.bmp", field)
            left = 10 if which == 0 else WIDTH - 150
            write(folder / "CROPPED" / f"{number:03d}_01.bmp", field[200:330, left : left + 140])
    return root


def test_overlapping_photographs_are_matched_and_no_others(scenes, tmp_path):
    files = {}
    for number, scene in enumerate(scenes):
        for name, shot in zip("ab", photographs_of(scene, number), strict=True):
            files[f"{number}{name}"] = write(tmp_path / f"{number}{name}.png", shot.image)
    found = match_fields(files)
    assert {(pair.first, pair.second) for pair in found.pairs} == {(f"{n}a", f"{n}b") for n in range(3)}
    for pair in found.pairs:
        # A place of the first lies to the left in the second, which was moved to the right.
        assert np.hypot(pair.shift_px[0] + SHIFT[0], pair.shift_px[1] + SHIFT[1]) < 15
        assert pair.degrees == pytest.approx(1.5, abs=0.2)
        assert pair.share == pytest.approx((1 - 290 / WIDTH) * (1 - 120 / HEIGHT), abs=0.05)


def test_fields_are_found_one_level_above_their_crops(archive):
    files = field_files(read_dataset(archive, known_groups=False).cells)
    assert {name: path.relative_to(archive).as_posix() for name, path in files.items()} == {
        "Parabasal/field:001": "im_Parabasal/im_Parabasal/001.bmp",
        "Parabasal/field:002": "im_Parabasal/im_Parabasal/002.bmp",
        "Metaplastic/field:001": "im_Metaplastic/im_Metaplastic/001.bmp",
        "Metaplastic/field:002": "im_Metaplastic/im_Metaplastic/002.bmp",
    }


def test_overlapping_fields_join_the_groups_of_crops_that_share_nothing(archive, tmp_path):
    inspection = inspect_dataset(archive, tmp_path / "out", known_groups=False)
    assert inspection.twins == []
    groups = pd.read_csv(tmp_path / "out" / "groups.csv").set_index("path")["group"]
    crops = [f"im_{label}/im_{label}/CROPPED/001_01.bmp" for label in ("Parabasal", "Metaplastic")]
    assert groups[crops[0]] == groups[crops[1]]
    assert groups.nunique() == 3
    content = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert [(pair["first"], pair["second"]) for pair in content["field_pairs"]] == [
        ("Metaplastic/field:001", "Parabasal/field:001")
    ]
    page = (tmp_path / "out" / "inspection.html").read_text()
    assert "<h2>Overlapping fields</h2>" in page
    assert page.count('alt="Parabasal/field:001"') == 1


def test_a_field_that_cannot_be_read_matches_none(tmp_path, scenes):
    shots = photographs_of(scenes[0], 1)
    files = {name: write(tmp_path / f"{name}.png", shots[place].image) for place, name in enumerate("ab")}
    files["c"] = tmp_path / "c.png"
    files["c"].write_bytes(b"no picture")
    assert [(pair.first, pair.second) for pair in match_fields(files).pairs] == [("a", "b")]


def test_small_pictures_that_are_numbered_like_fields_are_none(tmp_path, scenes):
    image = photographs_of(scenes[0], 1)[0].image[:300, :300]
    assert match_fields({name: write(tmp_path / f"{name}.png", image) for name in "ab"}).pairs == ()


def test_a_data_set_without_fields_has_none(tmp_path):
    assert match_fields({}) == FieldMatches({})
