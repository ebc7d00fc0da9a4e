"""A folder of computed arrays that are slow to make: graphs of items and users, large generated data sets."""

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrec_helpers.config import InputError
from mmrec_helpers.files import NotWritten, atomic_file

FOLDER_VARIABLE = "MMREC_HELPERS_CACHE"  # a folder, or "off"


@dataclass(frozen=True)
class Expected:
    """What an array in the cache must be: its shape, its type, and the least and the greatest value that make sense."""

    shape: tuple[int, ...]
    dtype: type[np.generic]
    least: float
    greatest: float

    def check(self, name: str, array: np.ndarray) -> None:
        """Raise a ValueError for an array that is something else."""
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            expected = f"{np.dtype(self.dtype)} {self.shape}"
            raise ValueError(f"{name} is {array.dtype} {array.shape}: expected {expected}")
        if array.size and not (self.least <= array.min() and array.max() <= self.greatest):
            raise ValueError(
                f"{name} goes from {array.min()} to {array.max()}: expected {self.least} to {self.greatest}"
            )


def cached_arrays(
    kind: str,
    fingerprint: str,
    compute: Callable[[], dict[str, np.ndarray]],
    expected: Mapping[str, Expected],
) -> dict[str, np.ndarray]:
    """Return ``compute()``, from disk where an earlier call with the same ``kind`` and ``fingerprint`` left it.

    kind         what the arrays are: lower-case letters, digits, "-" and "_" (it begins the file's name)
    fingerprint  everything that decides their values, as text: the data's fingerprint, settings, a version
    compute      returns {name: array}; arrays of objects are refused (ValueError), since nothing here is pickled
    expected     {name: what that array must be}

    A file is written whole or not at all. One that is corrupt or holds something else is computed again, and a folder
    that cannot be written (full disk included) costs only the cache: both are RuntimeWarnings. ``MMREC_HELPERS_CACHE``
    names another folder or, as "off", turns the cache off; see ``cache_folder``.
    """
    if not re.fullmatch(r"[a-z0-9_-]+", kind):
        raise InputError(f"cache kind {kind!r}: expected lower-case letters, digits, '-' and '_'")
    folder = cache_folder()
    if folder is None:
        return _as_arrays(compute())
    path = folder / f"{kind}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:24]}.npz"
    arrays = _read(path, expected)
    if arrays is None:
        arrays = _as_arrays(compute())
        _write(path, arrays)
    return arrays


def cache_folder() -> Path | None:
    """Where the cache lies (the folder need not exist yet); None when it is off.

    The environment variable first; then ``data/cache`` of the checkout that this package runs from, if it can be
    written; else ``$XDG_CACHE_HOME`` or ``~/.cache``, as for torch. A user without a home has no cache.
    """
    chosen = os.environ.get(FOLDER_VARIABLE, "")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and os.access(checkout / "data", os.W_OK):
        return checkout / "data" / "cache"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrec_helpers"
    except RuntimeError:  # no HOME, and no entry among the users
        return None


def _as_arrays(computed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(array) for name, array in computed.items()}
    objects = [name for name, array in arrays.items() if array.dtype.hasobject]
    if objects:  # told here: savez takes allow_pickle=False only since NumPy 2.1, and before that stores it as an array
        raise ValueError(f"Object arrays cannot be cached: {', '.join(objects)}")
    return arrays


def _read(path: Path, expected: Mapping[str, Expected]) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in expected}
        for name, array in arrays.items():
            expected[name].check(name, array)
        return arrays
    except Exception as error:  # whatever NumPy stumbles over in a damaged file
        warnings.warn(f"cache file {path} cannot be read ({error}): computing it again", RuntimeWarning, stacklevel=3)
        return None


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    try:
        with atomic_file(path, "wb") as file:
            np.savez(file, **arrays)
    except NotWritten as error:
        warnings.warn(f"cache: {error}; going on without", RuntimeWarning, stacklevel=3)
