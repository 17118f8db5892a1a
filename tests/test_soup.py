"""Model soups: the mean of the weights of models that belong together, and of no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cervicyte.errors import ModelFileError, UsageError
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import ModelFile, load_model_file, save_model
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import sha256_of_file
from cervicyte.training.soup import mean_weights, soup

NAMES = ("Dyskeratotic", "Parabasal")


def metadata(**changes: Any) -> dict[str, Any]:
    return {
        "recipe": {"seed": 0},
        "backbone": {"source": "a.pth", "sha256": "aa"},
        "split": {"hash": "one"},
        "seen": {"sha256": ["cell"], "groups": []},
        "metrics": {"validation": {"accuracy": 0.9}},
        **changes,
    }


def written(
    path: Path, seed: int = 0, placement="stage", names=NAMES, size: int = 32, **changes: Any
) -> Path:
    torch.manual_seed(seed)
    network = CBAMResNet50(len(names), placement).eval()
    save_model(path, ModelFile(network, names, Preprocessing(image_size=size), 3, 0.9, metadata(**changes)))
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("models") / "first.pth")


def test_a_soup_is_the_mean_of_its_models_and_can_be_saved(first, tmp_path):
    paths = [first, *(written(tmp_path / f"{seed}.pth", seed, recipe={"seed": seed}) for seed in (1, 2))]
    path = tmp_path / "soup.pth"
    save_model(path, soup(paths))
    states = [load_model_file(one).network.state_dict() for one in paths]
    mixed = load_model_file(path)
    for key, value in mixed.network.state_dict().items():
        expected = (states[0][key].double() + states[1][key] + states[2][key]) / 3
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-8)
    assert mixed.class_names == NAMES
    assert mixed.preprocessing == Preprocessing(image_size=32)


def test_a_soup_says_what_it_is_made_of_and_which_cells_it_has_seen(first, tmp_path):
    other = written(tmp_path / "other.pth", 1, recipe={"seed": 1})
    mixed = soup([first, other])
    assert mixed.metadata["seen"] == {"sha256": ["cell"], "groups": []}
    assert mixed.metadata["split"] == {"hash": "one"}
    assert mixed.metadata["soup"] == [
        {"file": "first.pth", "sha256": sha256_of_file(first), "recipe": {"seed": 0}},
        {"file": "other.pth", "sha256": sha256_of_file(other), "recipe": {"seed": 1}},
    ]
    assert "metrics" not in mixed.metadata, "those of its parts are not its own"
    assert "recipe" not in mixed.metadata
    assert mixed.best_validation_accuracy == 0


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("architecture", {"placement": "none"}),
        ("classes", {"names": ("Parabasal", "Dyskeratotic")}),
        ("classes", {"names": (*NAMES, "Metaplastic")}),
        ("preprocessing", {"size": 48}),
        ("split", {"split": {"hash": "other"}}),
        ("first weights", {"backbone": {"source": "a.pth", "sha256": "bb"}}),
    ],
)
def test_what_does_not_belong_together_is_refused_by_name(first, tmp_path, named, changes):
    other = written(tmp_path / "other.pth", **changes)
    with pytest.raises(
        ModelFileError, match=rf"other\.pth: differs from .*first\.pth in its {named};"
    ) as refused:
        soup([first, other])
    assert "\n" not in str(refused.value)


def test_models_trained_from_scratch_share_their_first_weights_only_with_the_seed(tmp_path):
    scratch = {"source": "none", "sha256": ""}
    one, same, other = (
        written(tmp_path / f"{name}.pth", recipe={"seed": seed, "epochs": epochs}, backbone=scratch)
        for name, seed, epochs in (("one", 0, 3), ("same", 0, 5), ("other", 1, 3))
    )
    assert len(soup([one, same]).metadata["soup"]) == 2
    with pytest.raises(ModelFileError, match="first weights"):
        soup([one, other])


def test_a_model_of_the_original_notebook_says_too_little_for_a_soup(first, tmp_path):
    path = tmp_path / "original.pth"
    state = CBAMResNet50(2).state_dict()
    torch.save({"model_state_dict": state, "class_names": list(NAMES)}, path)
    with pytest.raises(ModelFileError, match=re.escape("original.pth: does not say its split")):
        soup([path, path])


def test_one_model_is_no_soup(first):
    with pytest.raises(UsageError, match="two model files"):
        soup([first])


def test_the_mean_of_one_state_is_that_state_bit_for_bit():
    state = CBAMResNet50(2).state_dict()
    for key, value in mean_weights([state, state, state]).items():
        assert torch.equal(value, state[key]), key
