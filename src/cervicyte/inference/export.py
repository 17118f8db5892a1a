"""Writes a model in another format, for those who use it without Cervicyte."""

from __future__ import annotations

from pathlib import Path

from cervicyte.errors import UsageError
from cervicyte.images.preprocessing import ORIGINAL_PREPROCESSING
from cervicyte.network.model_file import ModelFile, save_model

FORMATS = ("pth", "safetensors")


def export_model(model: ModelFile, path: Path, file_format: str, *, force: bool = False) -> list[str]:
    """Write a model file atomically; return what its user must know.

    Args:
        model: as read from a file of either format. It is not changed.
        path: ends with the format's name.
        file_format: `pth`, in float32, with the keys that the original notebook reads, or `safetensors`,
            see `save_model`. Both carry all metadata.
        force: replace a file that is there.

    Raises:
        UsageError: there is no such format, `path` ends otherwise, or there is a file and no `force`.
        ModelFileError: `safetensors` cannot hold the weights.
    """
    if file_format not in FORMATS:
        raise UsageError(f"There is no format {file_format!r} to export to; choose {' or '.join(FORMATS)}.")
    if path.suffix != f".{file_format}":
        raise UsageError(f"{path}: does not end with .{file_format}; name the file so with --out.")
    if path.exists() and not force:
        raise UsageError(f"{path}: is there already; choose another name, or replace it with --force.")
    save_model(path, model)
    return _notes_on_pth(model) if file_format == "pth" else []


def _notes_on_pth(model: ModelFile) -> list[str]:
    """Say what the original notebook, which knows one network and one preprocessing, makes of the file."""
    if model.network.placement != "stage":
        return [
            "The original notebook's network has CBAM after each stage; it cannot load this one, whose "
            f"placement is {model.network.placement}. Cervicyte can."
        ]
    if model.preprocessing != ORIGINAL_PREPROCESSING:
        return [
            "The original notebook prepares images in its own way, not as this model was trained: its "
            "answers there will differ from Cervicyte's."
        ]
    return []
