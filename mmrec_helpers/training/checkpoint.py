"""Checkpoints of a training run: written whole or not at all, and resumed only by the run they belong to."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.files import atomic_file, check_file
from mmrec_helpers.training.step import TrainingError

FORMAT = 1
KEYS = {"format", "identity", "epochs_done", "model", "optimizer", "scaler", "progress", "rng"}


def check_checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """The path, if a checkpoint can be written there without loss (see ``files.check_file``)."""
    return check_file(path, "checkpoint", zipfile.is_zipfile)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; the old one stays until the new one is whole. Raises TrainingError if that fails."""
    try:
        with atomic_file(path, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise TrainingError(
            f"checkpoint {path} could not be written ({error.__cause__ or error}); the one before is untouched"
        ) from error


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of the run that ``identity`` describes; tensors come to the CPU.

    Raises InputError naming the file if it cannot be read, or the first entry in which it belongs to another run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums that it writes
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the reader stumbles over in a damaged file
        raise InputError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error}): it is damaged or no checkpoint; "
            "move it away or name another file"
        ) from error
    if not isinstance(content, dict) or set(content) != KEYS or content["format"] != FORMAT:
        raise InputError(f"checkpoint {path} is not a training checkpoint of format {FORMAT}: name another file")
    difference = _first_difference(content["identity"], identity)
    if difference:
        raise InputError(f"checkpoint {path} belongs to another run: {difference}; name another file")
    return content


def _first_difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name in dict.fromkeys([*now, *saved]):
        if name not in saved or name not in now:
            return f"{name} is only {'here' if name in now else 'there'}"
        if isinstance(now[name], Mapping) and isinstance(saved[name], Mapping):
            inner = _first_difference(saved[name], now[name])
            if inner:
                return f"{name}: {inner}"
        elif saved[name] != now[name]:
            return f"{name} is {saved[name]!r} there and {now[name]!r} here"
    return None
