"""The weights a network starts from: torchvision's ImageNet weights, a file, or none."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import ResNet50_Weights

from cervicyte.errors import WeightsError
from cervicyte.network.resnet import CBAMResNet50
from cervicyte.provenance import sha256_of_file

TORCHVISION_WEIGHTS = ResNet50_Weights.IMAGENET1K_V2
OTHER_CHOICES = "give a weights file with --backbone FILE, or train from scratch with --backbone none"


def load_backbone(network: CBAMResNet50, backbone: str) -> dict[str, str]:
    """Fill a new network with weights, so that it computes what plain ResNet-50 computes.

    Args:
        network: fresh from its constructor. Its classifier keeps its random weights.
        backbone: `imagenet` (torchvision's, downloaded once and announced), `none`, or the path of a
            ResNet-50 state dict in torchvision's layout (`.safetensors`, `.pth`, `.pt`).

    Returns:
        The source and, unless it is `none`, its SHA-256, for the model file.

    Raises:
        WeightsError: the file is missing, unreadable or does not fit; or there is no network.
    """
    if backbone == "none":
        # Random weights need no exactness, but without the factor the signal would die out.
        network.compensate_fresh_gates()
        return {"source": "none"}
    if backbone == "imagenet":
        state, source = _torchvision_weights(), str(TORCHVISION_WEIGHTS)
        digest = _sha256_of_tensors(state)
    else:
        path = Path(backbone)
        state, source, digest = read_state_dict(path), path.name, sha256_of_file(path)
    _fill(network, state, source)
    network.compensate_fresh_gates()
    return {"source": source, "sha256": digest}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from `.safetensors` or from a `.pth`/`.pt` that holds only tensors.

    Raises:
        WeightsError: missing, of another kind, or damaged; the text names the file and the remedy.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; check the path, or {OTHER_CHOICES}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise WeightsError(
            f"{path}: not readable as weights ({_first_line(error)}); {OTHER_CHOICES}."
        ) from error
    except Exception as error:  # torch raises pickle errors of several modules for foreign files
        raise WeightsError(f"{path}: not a file of plain tensors; {OTHER_CHOICES}.") from error
    if isinstance(content, dict):
        for key in ("model_state_dict", "state_dict"):
            content = content.get(key, content)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path}: holds no state dict of tensors; {OTHER_CHOICES}.")
    return content


def _fill(network: CBAMResNet50, state: dict[str, Tensor], source: str) -> None:
    """Copy every backbone tensor, after checking that keys and shapes are those of ResNet-50."""
    own = network.state_dict()
    wanted = {key for key in own if "cbam" not in key and not key.startswith("fc.")}
    missing = sorted(wanted - state.keys())
    if missing:
        raise WeightsError(
            f"{source}: is not a ResNet-50 in torchvision's layout: {len(missing)} of {len(wanted)} "
            f"tensors are missing, first {missing[0]}; {OTHER_CHOICES}."
        )
    unknown = sorted(key for key in state.keys() - wanted if not key.startswith("fc."))
    if unknown:
        raise WeightsError(
            f"{source}: is not a plain ResNet-50: it has {len(unknown)} unknown tensors, first "
            f"{unknown[0]}; {OTHER_CHOICES}."
        )
    for key in sorted(wanted):
        if own[key].shape != state[key].shape:
            raise WeightsError(
                f"{source}: tensor {key} has shape {list(state[key].shape)}, ResNet-50 needs "
                f"{list(own[key].shape)}; {OTHER_CHOICES}."
            )
    network.load_state_dict({key: state[key] for key in wanted}, strict=False)


def _torchvision_weights() -> dict[str, Tensor]:
    """Return torchvision's weights from its cache, or download them once, saying so."""
    address = TORCHVISION_WEIGHTS.url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(address).name
    if not cached.is_file():
        megabytes = TORCHVISION_WEIGHTS.meta["_file_size"]
        print(
            f"Downloading the ImageNet weights {TORCHVISION_WEIGHTS} once: {megabytes:.0f} MB from {address}",
            file=sys.stderr,
        )
    try:
        return dict(TORCHVISION_WEIGHTS.get_state_dict(progress=sys.stderr.isatty(), check_hash=True))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash a RuntimeError
        raise WeightsError(
            f"{address}: ImageNet weights could not be downloaded ({_first_line(error)}); {OTHER_CHOICES}."
        ) from error


def _sha256_of_tensors(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
