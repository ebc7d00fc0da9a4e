"""Checkpoints of a training run: written whole or not at all, and resumed only by the run they belong to."""

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.files import atomic_file, check_file
from mmrec_helpers.training.step import TrainingError

FORMAT = 2  # since 2 the SHA-256 of all that is before it ends the file; torch.load passes over it
DIGEST_BYTES = 32
KEYS = {"format", "identity", "epochs_done", "model", "optimizer", "scaler", "progress", "rng"}


def check_checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """The path, if a checkpoint can be written there without loss (see ``files.check_file``)."""
    return check_file(path, "checkpoint", zipfile.is_zipfile)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; the old one stays until the new one is whole. Raises TrainingError if that fails."""
    try:
        with atomic_file(path, "wb") as file:
            sealed: Any = _Sealed(file)  # torch calls write and flush alone
            torch.save({"format": FORMAT, **content}, sealed)
            file.write(sealed.digest.digest())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise TrainingError(
            f"checkpoint {path} could not be written ({error.__cause__ or error}); the one before is untouched"
        ) from error


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of the run that ``identity`` describes; tensors come to the CPU.

    Raises InputError naming the file if it is not as ``save_checkpoint`` left it, down to the last bit, or the first
    entry in which it belongs to another run.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no file")  # a device would be read without end
        sealed = path.read_bytes()
        written, digest = sealed[:-DIGEST_BYTES], sealed[-DIGEST_BYTES:]
        if hashlib.sha256(written).digest() != digest:
            raise ValueError("its digest is not that of its content")
        content = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the reader stumbles over
        raise InputError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error}): it was damaged or altered, or is no "
            f"checkpoint of format {FORMAT}; move it away or name another file"
        ) from error
    if not isinstance(content, dict) or set(content) != KEYS or content["format"] != FORMAT:
        raise InputError(f"checkpoint {path} is not a training checkpoint of format {FORMAT}: name another file")
    difference = _first_difference(content["identity"], identity)
    if difference:
        raise InputError(f"checkpoint {path} belongs to another run: {difference}; name another file")
    return content


class _Sealed:
    """Passes on what is written, and keeps its digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.file, self.flush = file, file.flush

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self.file.write(content)


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
