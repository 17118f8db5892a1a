"""The loop learns, can be killed at any moment, and ends in the same weights all the same."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cervicyte.errors import RunFolderError
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.network.model_file import load_model_file
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import Progress
from cervicyte.training.augmentation import JPEG, Magnification, StainJitter, build_augmentation
from cervicyte.training.cells import EpochBatches, TrainingCells, normalised
from cervicyte.training.loop import (
    CHECKPOINT_NAME,
    HISTORY_NAME,
    MODEL_NAME,
    AveragedWeights,
    LabelledImages,
    balanced_weights,
    has_compiler,
    parameter_groups,
    scheduled_rate,
    share_of_newest,
    train,
)
from cervicyte.training.recipe import Augmentation, Recipe

NAMES = ("dark", "light")
RECIPE = Recipe(
    backbone="none",
    preprocessing=Preprocessing(image_size=32, canvas_size=32),
    epochs=3,
    batch_size=8,
    learning_rate=1e-3,
    layer_decay=1.0,
    ema_decay=0.5,
    precision="float32",
)


EVERY_OPTION = RECIPE.model_copy(
    update={
        "mixup_alpha": 0.4,
        "cutmix_alpha": 1.0,
        "loss": "focal",
        "averaging": "swa",
        "swa_share": 0.9,
        "keep": "last",
    }
)


def spots(count: int, seed: int) -> LabelledImages:
    """Grey images of two classes that differ in brightness."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 2
    images = rng.integers(0, 60, (count, 32, 32, 3)) + 140 * targets[:, None, None, None]
    return LabelledImages(images.astype(np.uint8), targets.astype(np.int64))


def weights_of(path):
    return torch.load(path, weights_only=True)["model_state_dict"]


class Stop(Progress):
    """Raises what it is told to, in the middle of an epoch: as good as a kill for what is on disk."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise SystemExit


def test_two_plain_classes_are_learnt(tmp_path, one_thread):
    recipe = RECIPE.model_copy(update={"ema_decay": 0.0, "learning_rate": 3e-3, "epochs": 4})
    history = train(recipe, spots(64, 0), spots(16, 1), NAMES, tmp_path)
    assert history["validation_accuracy"].max() == 1.0
    model = load_model_file(tmp_path / MODEL_NAME)
    assert model.class_names == NAMES
    assert model.best_validation_accuracy == 1.0
    assert len(pd.read_csv(tmp_path / HISTORY_NAME)) == len(history) == 4


@pytest.mark.parametrize("recipe", [RECIPE, EVERY_OPTION], ids=["default", "every option"])
@pytest.mark.parametrize(
    "stopped_after", [7, *(pytest.param(step, marks=pytest.mark.full) for step in (2, 11))]
)
def test_an_interrupted_run_ends_in_the_same_weights_bit_for_bit(tmp_path, stopped_after, recipe):
    train(recipe, spots(32, 0), spots(16, 1), NAMES, tmp_path / "whole")
    with pytest.raises(SystemExit):
        train(recipe, spots(32, 0), spots(16, 1), NAMES, tmp_path / "broken", progress=Stop(stopped_after))
    train(recipe, spots(32, 0), spots(16, 1), NAMES, tmp_path / "broken", resume=True)
    for name in (MODEL_NAME, CHECKPOINT_NAME):
        whole = torch.load(tmp_path / "whole" / name, weights_only=True)
        resumed = torch.load(tmp_path / "broken" / name, weights_only=True)
        key = "model_state_dict" if name == MODEL_NAME else "network"
        assert all(torch.equal(resumed[key][k], v) for k, v in whole[key].items())


def test_one_process_may_train_in_one_precision_after_another(tmp_path):
    for precision in ("float32", "bfloat16", "float32"):
        recipe = RECIPE.model_copy(update={"epochs": 1, "precision": precision})
        train(recipe, spots(16, 0), spots(8, 1), NAMES, tmp_path / precision)
        assert load_model_file(tmp_path / precision / MODEL_NAME).metadata["precision"] == precision


@pytest.mark.full
def test_the_number_of_workers_does_not_matter(tmp_path):
    for workers in (0, 2):
        recipe = EVERY_OPTION.model_copy(update={"epochs": 1, "workers": workers})
        train(recipe, spots(16, 0), spots(8, 1), NAMES, tmp_path / str(workers))
    none, two = (weights_of(tmp_path / str(workers) / MODEL_NAME) for workers in (0, 2))
    assert all(torch.equal(two[key], value) for key, value in none.items())


def test_another_seed_ends_in_other_weights(tmp_path):
    one = RECIPE.model_copy(update={"epochs": 1})
    train(one, spots(16, 0), spots(8, 1), NAMES, tmp_path / "a")
    train(one.model_copy(update={"seed": 1}), spots(16, 0), spots(8, 1), NAMES, tmp_path / "b")
    a, b = weights_of(tmp_path / "a" / MODEL_NAME), weights_of(tmp_path / "b" / MODEL_NAME)
    assert not torch.equal(a["conv1.weight"], b["conv1.weight"])


@pytest.mark.parametrize("change", ["recipe", "cells"])
def test_a_checkpoint_of_another_run_is_not_gone_on_with(tmp_path, change):
    one = RECIPE.model_copy(update={"epochs": 1})
    train(one, spots(16, 0), spots(8, 1), NAMES, tmp_path)
    other = one.model_copy(update={"weight_decay": 0.1}) if change == "recipe" else one
    cells = spots(16, 5) if change == "cells" else spots(16, 0)
    with pytest.raises(RunFolderError, match=r"checkpoint\.pth"):
        train(other, cells, spots(8, 1), NAMES, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"half a file")
    with pytest.raises(RunFolderError, match=r"checkpoint\.pth: is damaged"):
        train(RECIPE, spots(16, 0), spots(8, 1), NAMES, tmp_path, resume=True)


def test_ctrl_c_finishes_the_step_and_keeps_the_last_epoch(tmp_path):
    class PressAfterFirstEpoch(Progress):
        def say(self, text: str) -> None:
            signal.raise_signal(signal.SIGINT)  # in this thread, now: one that comes late ends the tests

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, spots(32, 0), spots(16, 1), NAMES, tmp_path, progress=PressAfterFirstEpoch())
    assert (tmp_path / MODEL_NAME).is_file()
    assert torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)["epoch"] == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_training_stops_early_when_nothing_gets_better(tmp_path):
    rng = np.random.default_rng(0)
    noise = LabelledImages(rng.integers(0, 255, (16, 32, 32, 3)).astype(np.uint8), np.arange(16) % 2)
    recipe = RECIPE.model_copy(update={"epochs": 12, "patience": 1, "learning_rate": 1e-8})
    assert len(train(recipe, noise, noise, NAMES, tmp_path)) < 12


def test_the_last_weights_are_kept_where_the_recipe_says_so_and_no_patience_ends_it(tmp_path):
    rng = np.random.default_rng(0)
    noise = LabelledImages(rng.integers(0, 255, (16, 32, 32, 3)).astype(np.uint8), np.arange(16) % 2)
    recipe = RECIPE.model_copy(update={"epochs": 4, "patience": 1, "learning_rate": 1e-8, "keep": "last"})
    history = train(recipe, noise, noise, NAMES, tmp_path)
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert load_model_file(tmp_path / MODEL_NAME).epoch == 4


def test_without_a_compiler_training_goes_on_uncompiled_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = []

    class Listening(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    one = RECIPE.model_copy(update={"epochs": 1})
    recipe = one.model_copy(update={"compiled": True})
    train(recipe, spots(16, 0), spots(8, 1), NAMES, tmp_path / "asked", progress=Listening())
    assert any("no C++ compiler" in text for text in said)
    train(one, spots(16, 0), spots(8, 1), NAMES, tmp_path / "plain")
    plain, asked = (weights_of(tmp_path / name / MODEL_NAME) for name in ("plain", "asked"))
    assert all(torch.equal(asked[key], value) for key, value in plain.items())


@pytest.mark.full
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler, and there is none")
def test_a_compiled_network_learns_the_same_but_for_rounding(tmp_path):
    # Three stages stand still, so that compiling takes a minute and rounding is not blown up.
    recipe = RECIPE.model_copy(update={"epochs": 1, "frozen_stages": 3, "learning_rate": 1e-4})
    plain = train(recipe, spots(32, 0), spots(16, 1), NAMES, tmp_path / "plain")
    asked = recipe.model_copy(update={"compiled": True})
    compiled = train(asked, spots(32, 0), spots(16, 1), NAMES, tmp_path / "compiled")
    before, after = (weights_of(tmp_path / name / MODEL_NAME) for name in ("plain", "compiled"))
    assert before.keys() == after.keys()
    assert not all(torch.equal(after[key], value) for key, value in before.items()), "nothing was compiled"
    assert compiled["train_loss"].tolist() == pytest.approx(plain["train_loss"].tolist(), rel=0.02)
    for key, value in before.items():
        if key.startswith("layer4") and value.is_floating_point():
            torch.testing.assert_close(after[key], value, rtol=0.05, atol=1e-3)


def test_the_default_recipe_trains_as_the_plainest_loop_does_bit_for_bit(tmp_path):
    recipe, cells = RECIPE.model_copy(update={"epochs": 2}), spots(24, 0)
    train(recipe, cells, spots(8, 1), NAMES, tmp_path)
    trained = torch.load(tmp_path / CHECKPOINT_NAME, weights_only=True)

    torch.manual_seed(recipe.seed)
    network = CBAMResNet50(2).to(memory_format=torch.channels_last).train()
    network.compensate_fresh_gates()
    average = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(parameter_groups(network, recipe))
    augmented = TrainingCells(cells.images, cells.targets, build_augmentation(recipe.augmentation), 0)
    batches = EpochBatches(24, 8, 0)
    for step in range(6):
        batches.epoch = 1 + step // 3
        images, targets = zip(*[augmented[place] for place in list(batches)[step % 3]], strict=True)
        for group in optimiser.param_groups:
            group["lr"] = group["base_rate"] * scheduled_rate(step, 3, recipe)
        logits = network(normalised(torch.stack(images), recipe.preprocessing))
        torch.nn.functional.cross_entropy(
            logits, torch.tensor(targets), weight=torch.ones(2), label_smoothing=recipe.label_smoothing
        ).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        decay = min(recipe.ema_decay, (1 + step) / (10 + step))
        values = network.state_dict()
        for key, mean in average.state_dict().items():
            mean.lerp_(values[key], 1 - decay) if mean.is_floating_point() else mean.copy_(values[key])
    for key, value in network.state_dict().items():
        assert torch.equal(trained["network"][key], value), key
    for key, value in average.state_dict().items():
        assert torch.equal(trained["average"][key], value), key


# --- the parts ---------------------------------------------------------------------------------


def test_gates_and_classifier_learn_at_the_full_rate_and_the_stem_at_the_least():
    network = CBAMResNet50(5)
    groups = parameter_groups(network, Recipe(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1))
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(network.named_parameters())
    assert rate_of[id(named["fc.weight"])] == 1.0
    assert rate_of[id(named["cbam1.channel_attention.fc.0.weight"])] == 1.0
    assert rate_of[id(named["layer4.0.conv1.weight"])] == 0.5
    assert rate_of[id(named["conv1.weight"])] == 0.5**5
    assert len(rate_of) == len(named)
    assert all(group["weight_decay"] == 0 for group in groups for p in group["params"] if p.ndim == 1)


def test_frozen_stages_do_not_change_and_the_rest_does(tmp_path):
    recipe = RECIPE.model_copy(update={"epochs": 1, "frozen_stages": 2})
    train(recipe, spots(16, 0), spots(8, 1), NAMES, tmp_path)
    torch.manual_seed(recipe.seed)
    fresh = CBAMResNet50(2)
    fresh.compensate_fresh_gates()
    trained = weights_of(tmp_path / MODEL_NAME)
    for key, value in fresh.state_dict().items():
        frozen = key.startswith(("conv1", "bn1", "layer1.", "layer2."))
        if frozen:
            assert torch.equal(trained[key], value), key
    assert not torch.equal(trained["layer3.0.conv1.weight"], fresh.state_dict()["layer3.0.conv1.weight"])


def test_the_rate_warms_up_and_then_falls_along_a_cosine():
    recipe = Recipe(epochs=10, warm_up_epochs=2)
    rates = [scheduled_rate(step, 10, recipe) for step in range(100)]
    assert np.all(np.diff(rates[:20]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)
    assert max(rates) == pytest.approx(1, abs=0.05)
    assert rates[-1] < 0.02


def test_rarer_classes_weigh_more_only_where_classes_are_uneven():
    even, uneven = np.repeat([0, 1], [10, 12]), np.repeat([0, 1], [10, 30])
    assert balanced_weights(even, 2, "auto").tolist() == [1, 1]
    assert balanced_weights(even, 2, "balanced").tolist() == pytest.approx([22 / 20, 22 / 24])
    assert balanced_weights(uneven, 2, "auto").tolist() == pytest.approx([2, 2 / 3])
    assert balanced_weights(uneven, 2, "none").tolist() == [1, 1]


def averages_of(weights: list[float], recipe: Recipe) -> list[float]:
    """Return the averages after each step, of a network whose one weight takes these values (at first 1)."""
    network = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(network.weight, 1.0)
    average = AveragedWeights(network)  # type: ignore[arg-type]
    averages = []
    for step, weight in enumerate(weights):
        torch.nn.init.constant_(network.weight, weight)
        average.update(network, share_of_newest(step, len(weights), recipe))
        averages.append(average.network.weight.item())
    return averages


def test_the_moving_average_of_the_weights_follows_its_formula():
    weights, recipe = [2.0, 3.0, 5.0, 7.0], Recipe(epochs=1, ema_decay=0.15)
    first = 0.1 * 1 + 0.9 * 2  # decay 1/10
    second = 0.15 * first + 0.85 * 3  # 2/11 is more than 0.15
    assert averages_of(weights, recipe)[:2] == pytest.approx([first, second], rel=1e-12)


@pytest.mark.parametrize("recipe", [Recipe(averaging="none"), Recipe(ema_decay=0)])
def test_without_averaging_the_last_weights_are_evaluated(recipe):
    assert averages_of([2.0, 3.0, 5.0], recipe) == [2.0, 3.0, 5.0]


@pytest.mark.parametrize(("share", "averaged"), [(1.0, 10), (0.4, 4), (0.25, 2), (0.01, 1)])
def test_swa_is_the_plain_mean_of_the_last_share_of_the_steps(share, averaged):
    weights = list(np.random.default_rng(0).normal(size=10))
    averages = averages_of(weights, Recipe(epochs=1, averaging="swa", swa_share=share))
    for step, average in enumerate(averages):
        seen = weights[10 - averaged : step + 1] or weights[step : step + 1]
        assert average == pytest.approx(np.mean(seen), rel=1e-12)


def test_the_averaged_network_is_the_mean_of_weights_and_statistics(tmp_path):
    recipe = RECIPE.model_copy(update={"averaging": "swa", "swa_share": 0.5, "epochs": 1, "keep": "last"})
    taken = []

    class Taking(AveragedWeights):
        def update(self, network, share):
            super().update(network, share)
            taken.append({key: value.double().clone() for key, value in network.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cervicyte.training.loop.AveragedWeights", Taking)
        train(recipe, spots(32, 0), spots(8, 1), NAMES, tmp_path)
    assert len(taken) == 4
    for key, value in weights_of(tmp_path / MODEL_NAME).items():
        if value.is_floating_point():
            expected = (taken[2][key] + taken[3][key]) / 2
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_what_happens_to_an_image_depends_on_seed_epoch_and_index_alone():
    cells = spots(4, 0)
    augmented = TrainingCells(cells.images, cells.targets, build_augmentation(Augmentation()), 7)
    first = augmented[3, 1][0]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(augmented[3, 1][0], first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(augmented[4, 1][0], first)


def test_every_epoch_goes_through_all_cells_in_another_order():
    batches = EpochBatches(16, 4, 0)
    orders = []
    for epoch in (1, 2):
        batches.epoch = epoch
        orders.append([index for batch in batches for _, index in batch])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(16))


def test_stain_jitter_without_strength_changes_nothing():
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(StainJitter(0.0)(image).int(), image.int(), atol=1, rtol=0)


def test_compression_changes_an_image_but_little():
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 16, 1)
    compressed = JPEG(40, 95)(image)
    assert compressed.shape == image.shape
    assert 0 < (compressed.int() - image.int()).abs().float().mean() < 8


@pytest.mark.parametrize("factor", [0.5, 0.25])
def test_a_smaller_magnification_shows_mirrored_surroundings_not_a_border(factor):
    image = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    assert torch.equal(Magnification(factor, factor)(image), image)


# --- a real kill -------------------------------------------------------------------------------

SCRIPT = """
import sys; sys.path.insert(0, sys.argv[3])
from pathlib import Path
from test_training import NAMES, RECIPE, spots
from cervicyte.training.loop import train
train(RECIPE.model_copy(update={"epochs": 6}), spots(64, 0), spots(16, 1), NAMES, Path(sys.argv[1]),
      resume=sys.argv[2] == "resume")
"""


@pytest.mark.full
def test_after_kill_9_a_resumed_run_ends_in_the_same_weights(tmp_path):
    def start(out, how):
        command = [sys.executable, "-c", SCRIPT, str(out), how, str(Path(__file__).parent)]
        return subprocess.Popen(command)

    assert start(tmp_path / "whole", "anew").wait() == 0
    broken = tmp_path / "broken"
    killed = start(broken, "anew")
    while not (broken / CHECKPOINT_NAME).exists():
        assert killed.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert torch.load(broken / CHECKPOINT_NAME, weights_only=True)["epoch"] < 6
    assert start(broken, "resume").wait() == 0
    whole, resumed = weights_of(tmp_path / "whole" / MODEL_NAME), weights_of(broken / MODEL_NAME)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


@pytest.mark.full
def test_two_processes_train_together(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    script = tmp_path / "both.py"
    script.write_text(SCRIPT)
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(script)]
    finished = subprocess.run(
        [*command, str(tmp_path / "run"), "anew", str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert len(pd.read_csv(tmp_path / "run" / HISTORY_NAME)) == 6
    assert load_model_file(tmp_path / "run" / MODEL_NAME).class_names == NAMES
