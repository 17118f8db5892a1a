"""Recipes: what is wrong is said in one sentence, with the nearest right name."""

from __future__ import annotations

import pytest
import yaml
from conftest import PROJECT

from cervicyte.errors import RecipeError
from cervicyte.training.recipe import Recipe, parse_override, read_recipe, recipe_keys, write_recipe
from cervicyte.yaml_files import load_yaml


def test_an_unknown_key_is_refused_with_the_nearest_valid_name(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rat: 0.1\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: .*learning_rat; did you mean learning_rate\?"):
        read_recipe(path)


def test_an_unknown_key_of_a_section_is_found_too():
    with pytest.raises(RecipeError, match=r"did you mean preprocessing\.image_size\?"):
        read_recipe(overrides={"preprocessing.imagesize": 96})


def test_a_key_named_without_its_section_is_pointed_to_it():
    with pytest.raises(RecipeError, match=r"did you mean preprocessing\.image_size\?"):
        read_recipe(overrides={"image_size": 96})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**32),
        ("warm_up_epochs", float("inf")),
        ("gradient_clip_norm", float("inf")),
        ("epochs", "many"),
        ("epochs", 0),
        ("placement", "everywhere"),
        ("learning_rate", None),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key, value):
    with pytest.raises(RecipeError, match=rf"{key} = .* will not do") as refused:
        read_recipe(overrides={key: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    ["- a\n- b\n", "just words", "a: [1\n", "\x00", "[]", "false", "a: " + 3000 * "["],
    ids=range(7),
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        read_recipe(path)


def test_a_key_that_stands_twice_is_refused_by_name_and_a_merge_is_none(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 1\naugmentation:\n  jpeg: 0.1\n  jpeg: 0.2\nseed: 3\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: .*the key jpeg stands twice"):
        read_recipe(path)
    assert load_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")["b"] == {"x": 3, "y": 2}
    path.write_text("")
    assert read_recipe(path) == Recipe()


def test_a_missing_recipe_is_refused_by_name(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        read_recipe(tmp_path / "gone.yaml")


def test_a_value_inside_a_single_value_is_refused():
    with pytest.raises(RecipeError, match="epochs is a single value"):
        read_recipe(overrides={"epochs": 3, "epochs.deep": 3})


@pytest.mark.parametrize("text", ["epochs", "=3", "epochs=[1"])
def test_an_override_without_form_is_refused(text):
    with pytest.raises(RecipeError):
        parse_override(text)


def test_every_value_can_be_set_and_a_written_recipe_reads_the_same(tmp_path):
    recipe = read_recipe(overrides=dict([parse_override("augmentation.flips=false"), ("epochs", 2)]))
    assert recipe.augmentation.flips is False
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert set(written) == set(Recipe.model_fields)


def test_the_shipped_recipes_are_valid():
    paths = sorted((PROJECT / "recipes").glob("*.yaml"))
    assert paths
    for path in paths:
        read_recipe(path)


def test_the_documentation_lists_every_key_of_the_recipe():
    text = (PROJECT / "docs" / "recipe.md").read_text()
    for key, description in recipe_keys().items():
        assert f"`{key}`" in text, key
        assert description in text, key
