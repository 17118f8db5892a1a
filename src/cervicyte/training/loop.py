"""The training loop: read it from top to bottom once and you know it.

`train` fits one network on given training and validation images and leaves in a folder
`best_model.pth`, `training_history.csv` and `checkpoint.pth`, from which an interrupted run goes on to
the same weights as one that was never interrupted. Whoever evaluates the model takes the checkpoint away.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from cervicyte.errors import RecipeError, RunFolderError
from cervicyte.network.heads import Head, parted, wide_names
from cervicyte.network.model_file import ModelFile, save_model
from cervicyte.network.precision import computes_in_bfloat16
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import write_text, written_atomically
from cervicyte.training.augmentation import build_augmentation
from cervicyte.training.cells import EpochBatches, EvenBatches, TrainingCells, normalised
from cervicyte.training.heads import HeadsLoss, refuse_for_heads
from cervicyte.training.loss import classification_loss, cost_of_classes
from cervicyte.training.mixing import BatchMixing, dominant_class
from cervicyte.training.recipe import NO_PARENT, Recipe
from cervicyte.training.start import first_network

MODEL_NAME = "best_model.pth"
HISTORY_NAME = "training_history.csv"
CHECKPOINT_NAME = "checkpoint.pth"
EVALUATION_BATCH = 64
FINAL_RATE = 0.01  # of the highest, at the end of the cosine


@dataclass(frozen=True)
class LabelledImages:
    """Images with the index of their class: uint8 [N, S, S, 3] and int64 [N]."""

    images: np.ndarray
    targets: np.ndarray


@dataclass
class State:
    """All that changes while training; what a checkpoint holds."""

    network: CBAMResNet50
    average: AveragedWeights
    optimiser: torch.optim.Optimizer
    step: int = 0
    epoch: int = 0  # finished epochs
    best_accuracy: float = -1.0  # of the epoch whose weights are kept
    best_loss: float = math.inf
    best_epoch: int = 0


def train(
    recipe: Recipe,
    training: LabelledImages,
    validation: LabelledImages | None,
    class_names: Sequence[str],
    out: Path,
    *,
    heads: Sequence[Head] = (),
    metadata: dict[str, Any] | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Train one network and return its history, one row an epoch.

    Args:
        recipe: every setting.
        training, validation: preprocessed as the recipe says; validation chooses the epoch, unless the
            recipe keeps the last, and then there may be none.
        class_names: in the order of the targets.
        out: folder that takes the model, the history and the checkpoint.
        heads: several class lists, learnt together; `class_names` are then their `wide_names`.
        metadata: JSON values that are to travel in the model file, such as the split's hash.
        resume: go on from `out/checkpoint.pth` if it is there.
        progress: is told of every step.

    Raises:
        RecipeError: errors are to cost differently, and it is not known which classes are abnormal; or the
            best epoch is to be kept, and there is no validation part to tell it by.
        WeightsError, ModelFileError: the first weights are missing or do not fit.
        RunFolderError: the checkpoint belongs to another recipe or other data.
        KeyboardInterrupt: after Ctrl-C, when the best model and the last epoch are safely on disk.
    """
    costs = cost_of_classes(class_names, recipe.missed_abnormal_cost)
    if validation is None and recipe.keep == "best":
        raise RecipeError("Without validation cells no epoch is the best; set keep to last.")
    if heads:
        refuse_for_heads(recipe)
        assert list(class_names) == wide_names(heads)
    torch.manual_seed(recipe.seed)
    in_bfloat16 = computes_in_bfloat16(recipe.precision)
    # Accelerate keeps the precision of the first training for the whole process, unless told otherwise.
    AcceleratorState._reset_state(reset_partial_state=False)
    compiled = recipe.compiled and has_compiler()
    if recipe.compiled and not compiled:
        progress.say("Note: no C++ compiler was found; training goes on without torch.compile, slower.")
    accelerator = Accelerator(
        mixed_precision="bf16" if in_bfloat16 else "no",
        dynamo_backend="inductor" if compiled else "no",
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    network, origin = first_network(recipe, class_names)
    frozen = network.freeze(recipe.frozen_stages, gates=recipe.parent != NO_PARENT)
    optimiser = torch.optim.AdamW(parameter_groups(network, recipe))
    if accelerator.num_processes > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)

    together = HeadsLoss(heads, recipe, accelerator.device) if heads else None
    batches = EpochBatches(len(training.images), recipe.batch_size, recipe.seed)
    if together is not None:
        batches = EvenBatches(training.targets, together.head_of, recipe.batch_size, recipe.seed)
    augmented = TrainingCells(
        training.images, training.targets, build_augmentation(recipe.augmentation), recipe.seed
    )
    workers = recipe.workers if recipe.workers >= 0 else default_workers(accelerator.device)
    loader = DataLoader(
        augmented,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=accelerator.device.type == "cuda",
    )
    network = network.to(memory_format=torch.channels_last)
    network, optimiser, loader = accelerator.prepare(network, optimiser, loader)
    plain: CBAMResNet50 = accelerator.unwrap_model(network, keep_torch_compile=False)
    state = State(plain, AveragedWeights(plain), optimiser)

    class_weights = balanced_weights(training.targets, len(class_names), recipe.class_weights)
    class_weights = (class_weights * costs).to(accelerator.device)
    mixing = BatchMixing(recipe, len(class_names))
    steps_per_epoch = len(batches)
    rows: list[dict[str, float]] = []
    fingerprint = _fingerprint(recipe, training, validation, [*class_names, *map(repr, heads)])
    if resume and (out / CHECKPOINT_NAME).exists():
        rows = restore_checkpoint(out, state, fingerprint)
        progress.say(f"Going on after epoch {state.epoch} of {recipe.epochs}.")

    with stop_on_interrupt() as interrupted:
        progress.start("Training", recipe.epochs * steps_per_epoch, done=state.step)
        while state.epoch < recipe.epochs and not out_of_patience(state, recipe):
            began = time.monotonic()
            batches.epoch = state.epoch + 1
            network.train()
            for module in frozen:
                module.eval()
            loss_sum = torch.zeros((), device=accelerator.device)
            correct = torch.zeros((), device=accelerator.device)
            seen = 0

            for images, targets in loader:
                rate = scheduled_rate(state.step, steps_per_epoch, recipe)
                for group in optimiser.param_groups:
                    group["lr"] = group["base_rate"] * rate
                images, targets = mixing(images, targets, state.step)
                logits = network(normalised(images, recipe.preprocessing))
                if together is None:
                    loss = classification_loss(logits.float(), targets, class_weights, recipe)
                else:
                    loss = together(logits.float(), targets)
                    logits = together.among_own(logits, targets)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(network.parameters(), recipe.gradient_clip_norm)
                optimiser.step()
                optimiser.zero_grad()
                state.average.update(plain, share_of_newest(state.step, steps_per_epoch, recipe))
                state.step += 1

                seen += len(targets)
                loss_sum += loss.detach() * len(targets)
                correct += (logits.argmax(1) == dominant_class(targets)).sum()
                speed = seen * accelerator.num_processes / (time.monotonic() - began)
                # Reading a figure back waits for a GPU; on the CPU it costs nothing.
                note = f"epoch {state.epoch + 1}, {speed:.1f} images/s"
                if accelerator.device.type == "cpu":
                    note += f", loss {loss_sum.item() / seen:.3f}, accuracy {correct.item() / seen:.1%}"
                progress.advance(note=note)
                if interrupted.is_set():
                    progress.close()
                    raise KeyboardInterrupt

            trained_seconds = time.monotonic() - began
            totals = accelerator.reduce(torch.stack([loss_sum, correct]), "sum")
            count = steps_per_epoch * batches.batch_size
            validated: dict[str, float] = {}
            if validation is not None:
                validated = evaluate(state.average.network, validation, recipe, accelerator, together)
            state.epoch += 1
            row = {
                "epoch": state.epoch,
                "train_loss": totals[0].item() / count,
                "train_accuracy": totals[1].item() / count,
                **validated,
                "learning_rate": recipe.learning_rate * rate,
                "images_per_second": count / trained_seconds,
                "seconds": time.monotonic() - began,
            }
            rows.append(row)
            progress.say(
                f"Epoch {state.epoch}: loss {row['train_loss']:.3f}, accuracy {row['train_accuracy']:.1%}; "
                + "".join(f"{key.replace('_', ' ')} {value:.3f}; " for key, value in validated.items())
                + f"{row['images_per_second']:.1f} images/s, {row['seconds']:.0f} s"
            )
            now = (validated.get("validation_accuracy", 0.0), validated.get("validation_loss", 0.0))
            if recipe.keep == "last" or (now[0], -now[1]) > (state.best_accuracy, -state.best_loss):
                state.best_accuracy, state.best_loss = now
                state.best_epoch = state.epoch
            if accelerator.is_main_process:
                if state.best_epoch == state.epoch:
                    kept = ModelFile(
                        network=state.average.network,
                        class_names=tuple(class_names),
                        preprocessing=recipe.preprocessing,
                        epoch=state.epoch,
                        best_validation_accuracy=now[0],
                        metadata={
                            "recipe": recipe.model_dump(mode="json"),
                            **origin,
                            "device": accelerator.device.type,
                            "precision": "bfloat16" if in_bfloat16 else "float32",
                            "metrics": {"validation": row} if validated else {},
                            **(metadata or {}),
                        },
                    )
                    save_model(out / MODEL_NAME, parted(kept, heads) if heads else kept)
                write_history(out, rows)
                save_checkpoint(out, state, rows, fingerprint)
            accelerator.wait_for_everyone()
        progress.close()

    accelerator.free_memory()
    return pd.DataFrame(rows)


# --- the parts of a step -----------------------------------------------------------------------


def parameter_groups(network: CBAMResNet50, recipe: Recipe) -> list[dict[str, Any]]:
    """Group the parameters by learning rate: full for classifier and gates, less towards the input.

    Layer-wise decay after Howard & Ruder, "Universal Language Model Fine-tuning", ACL 2018. Fresh gates
    start from zero and have nothing to keep, so they learn at the full rate; a parent's learn as their
    stage does. Biases and normalisation are not decayed.
    """
    depth_of = {f"{name}{stage}": stage for stage in range(1, 5) for name in ("layer", "cbam")}
    fresh_gates = recipe.parent == NO_PARENT
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        part = name.split(".")[0]
        depth = 5 if (fresh_gates and "cbam" in name) or part == "fc" else depth_of.get(part, 0)
        rate = recipe.learning_rate * recipe.layer_decay ** (5 - depth)
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_rate": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def scheduled_rate(step: int, steps_per_epoch: int, recipe: Recipe) -> float:
    """Return the factor of the learning rate at `step`: linear warm-up, then a cosine."""
    warm_up = recipe.warm_up_epochs * steps_per_epoch
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    share = (step - warm_up) / max(1.0, recipe.epochs * steps_per_epoch - warm_up)
    return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def out_of_patience(state: State, recipe: Recipe) -> bool:
    """Return whether training for the best epoch has gone on for long enough without a better one."""
    return recipe.keep == "best" and state.epoch - state.best_epoch >= recipe.patience


def balanced_weights(targets: np.ndarray, class_count: int, choice: str) -> Tensor:
    """Return a weight for each class with mean 1 over the cells; all 1 where classes are even."""
    counts = np.bincount(targets, minlength=class_count).astype(float)
    uneven = counts.max() >= 1.5 * max(1.0, counts.min())
    if choice == "none" or (choice == "auto" and not uneven):
        return torch.ones(class_count)
    weights = len(targets) / (class_count * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32)


def share_of_newest(step: int, steps_per_epoch: int, recipe: Recipe) -> float:
    """Return how much the weights after `step` (from 0) count in the average, from 0 to 1.

    `ema`: an exponential moving average, whose decay warms up as (1 + t) / (10 + t), so that the first
    steps are forgotten (as in timm). `swa`: the plain mean of the last `swa_share` of all steps (Izmailov et
    al., "Averaging weights leads to wider optima and better generalization", UAI 2018), here of every step
    and along the same cosine; before them, and with `none`, the newest weights alone.
    """
    if recipe.averaging == "ema":
        return 1 - min(recipe.ema_decay, (1 + step) / (10 + step))
    if recipe.averaging == "none":
        return 1.0
    steps = recipe.epochs * steps_per_epoch
    first = steps - max(1, round(recipe.swa_share * steps))
    return 1 / max(1, step - first + 1)


class AveragedWeights:
    """The moving average of a network, kept as a second network.

    The statistics of batch normalisation are averaged like the weights. Izmailov et al. compute them anew
    for the averaged weights, which would take a pass over the training cells before each evaluation; the
    weights of neighbouring steps lie so close together that the mean of their statistics serves.
    """

    def __init__(self, network: CBAMResNet50) -> None:
        """Start from a copy of `network`."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, share: float) -> None:
        """Move the average by `share`, from 0 to 1, of the way to the weights of `network`."""
        averages, currents = [], []
        for average, current in zip(
            self.network.state_dict().values(), network.state_dict().values(), strict=True
        ):
            if average.dtype.is_floating_point:
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        torch._foreach_lerp_(averages, currents, share)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    cells: LabelledImages,
    recipe: Recipe,
    accelerator: Accelerator,
    together: HeadsLoss | None = None,
) -> dict[str, float]:
    """Return validation loss and accuracy over all cells; each device computes its share of them.

    Of several heads, each cell is told among the classes of its own, and every data set counts the same.
    """
    network.eval()
    weights = np.ones(len(cells.images))
    if together is not None:
        weights = together.even_weights(cells.targets)
    totals = torch.zeros(2, device=accelerator.device)
    mine = range(accelerator.process_index, len(cells.images), accelerator.num_processes)
    for start in range(0, len(mine), EVALUATION_BATCH):
        chosen = list(mine[start : start + EVALUATION_BATCH])
        images = torch.from_numpy(cells.images[chosen]).permute(0, 3, 1, 2).to(accelerator.device)
        targets = torch.from_numpy(cells.targets[chosen]).to(accelerator.device)
        with accelerator.autocast():
            logits = network(normalised(images, recipe.preprocessing)).float()
        if together is not None:
            logits = together.among_own(logits, targets)
        weight = torch.from_numpy(weights[chosen]).float().to(accelerator.device)
        totals[0] += (weight * functional.cross_entropy(logits, targets, reduction="none")).sum()
        totals[1] += (weight * (logits.argmax(1) == targets)).sum()
    totals = accelerator.reduce(totals, "sum") / max(1, len(cells.images))
    return {"validation_loss": totals[0].item(), "validation_accuracy": totals[1].item()}


def has_compiler() -> bool:
    """Return whether there is the C++ compiler that torch.compile calls."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "cl"]))


def default_workers(device: torch.device) -> int:
    """Return how many processes augment: on the CPU none, since they would take the cores away."""
    if device.type == "cpu":
        return 0
    return min(8, max(1, (os.cpu_count() or 2) - 1))


# --- interruption, checkpoint and history ------------------------------------------------------


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so that a step is finished before the loop stops."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread only
        return

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def write_history(out: Path, rows: list[dict[str, float]]) -> None:
    """Write the history so far, one row an epoch, atomically."""
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
    write_text(out / HISTORY_NAME, text.getvalue())


def save_checkpoint(out: Path, state: State, rows: list[dict[str, float]], fingerprint: str) -> None:
    """Write everything that the next epoch depends on. Random draws depend on the epoch alone."""
    content = {
        "fingerprint": fingerprint,
        "network": state.network.state_dict(),
        "average": state.average.network.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "step": state.step,
        "epoch": state.epoch,
        "best": [state.best_accuracy, state.best_loss, state.best_epoch],
        "rows": rows,
    }
    with written_atomically(out / CHECKPOINT_NAME) as partial:
        torch.save(content, partial)


def restore_checkpoint(out: Path, state: State, fingerprint: str) -> list[dict[str, float]]:
    """Put a checkpoint's values into `state` and return the history so far."""
    path = out / CHECKPOINT_NAME
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        same = content["fingerprint"] == fingerprint
    except Exception as error:  # a foreign or damaged file raises errors of many modules
        raise RunFolderError(f"{path}: is damaged; start anew with --force.") from error
    if not same:
        raise RunFolderError(
            f"{path}: belongs to another recipe or other cells; repeat the first command with "
            "--resume, or start anew with --force."
        )
    state.network.load_state_dict(content["network"])
    state.average.network.load_state_dict(content["average"])
    state.optimiser.load_state_dict(content["optimiser"])
    state.step, state.epoch = content["step"], content["epoch"]
    state.best_accuracy, state.best_loss, state.best_epoch = content["best"]
    return list(content["rows"])


def _fingerprint(
    recipe: Recipe, training: LabelledImages, validation: LabelledImages | None, class_names: Sequence[str]
) -> str:
    """Return a hash of all that a run's weights follow from, but for the libraries."""
    digest = hashlib.sha256(repr((recipe.model_dump(mode="json"), list(class_names))).encode())
    for part in (training,) if validation is None else (training, validation):
        digest.update(np.ascontiguousarray(part.images).data)
        digest.update(np.ascontiguousarray(part.targets).data)
    return digest.hexdigest()
