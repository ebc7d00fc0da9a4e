"""Settings, devices and seeds: what every layer below may import."""

import inspect
import random
from collections.abc import Iterable
from numbers import Number
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor

T = TypeVar("T")


class InputError(ValueError):
    """What a user gave cannot be used. The message names where it stands, the value, and what was expected."""


def choose(kind: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``known``; otherwise raise an InputError that lists them."""
    known = list(known)
    if value not in known:
        raise InputError(f"unknown {kind} {value!r}: expected one of {', '.join(known)}")
    return value


def settings_from(cls: type[T], kind: str, options: dict[str, Any]) -> T:
    """Build the settings dataclass ``cls`` from keyword options, refusing names that it does not have."""
    known = list(inspect.signature(cls).parameters)
    for name in options:
        choose(f"{kind} option", name, known)
    return cls(**options)


def check_positive(kind: str, **values: float) -> None:
    """Raise an InputError for the first value that is not a finite number greater than zero."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise InputError(f"{kind}: {name} is {value!r}: expected a number greater than 0")


def check_at_least(kind: str, minimum: int, **values: int) -> None:
    """Raise an InputError for the first value that is not an integer of at least ``minimum``, or needs over 64 bits."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
            raise InputError(f"{kind}: {name} is {value!r}: expected an integer of at least {minimum}")
        if value >= 2**63:
            raise InputError(f"{kind}: {name} is {value}: expected an integer below 2**63")


def check_bool(kind: str, **values: bool) -> None:
    """Raise an InputError for the first value that is neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InputError(f"{kind}: {name} is {value!r}: expected True or False")


def check_ids(where: str, ids: Tensor, count: int) -> None:
    """Raise an InputError that begins with ``where`` if an integer of the tensor is not from 0 to ``count`` - 1."""
    if ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= count:
            raise InputError(f"{where} hold {low if low < 0 else high}: expected 0 to {count - 1}")


def check_memory(what: str, needed_bytes: float) -> None:
    """Raise an InputError with the sizes if ``what`` needs more than the host memory that is free, before it is taken.

    check_memory("toy: 3 users and 4 items", 7 * 16)
    """
    free_bytes = psutil.virtual_memory().available
    if not needed_bytes <= free_bytes:
        needed, free = (f"{count / 2**30:,.1f} GiB" for count in (needed_bytes, free_bytes))
        raise InputError(f"{what}: needs {needed} of memory: expected at most the {free} that are free")


def counted(count: int, noun: str) -> str:
    """Count and noun, with an s unless it is one: ``no threads``, ``1 thread``, ``2 threads``."""
    return f"{f'{count:,}' if count else 'no'} {noun}{'' if count == 1 else 's'}"


def listed(names: Iterable[str], none: str = "none") -> str:
    """Names in a sentence: ``a``, ``a and b``, ``a, b and c``, or with semicolons where one of three or more
    has a comma; ``none`` where there are none."""
    *most, last = [*names] or [none]
    if len(most) > 1 and any(", " in name for name in (*most, last)):
        return "; ".join((*most, f"and {last}"))
    return f"{', '.join(most)} and {last}" if most else last


def number(value: float | int | bool | str | None, digits: int = 3) -> str:
    """A value for reading: 1,234,567; 0.0804; 1.2e-07; a dash for a missing one; yes and no; a text as it is."""
    if _is_missing(value):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if not isinstance(value, Number):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if not 1e-4 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{float(f'{value:.{digits}g}'):.{max(0, digits - 1 - _exponent(value))}f}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _is_missing(value: Any) -> bool:
    """None, NaN, and pandas' NA and NaT (told by name: this module does without pandas)."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Turn ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` into a device that exists here, or raise InputError."""
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {str(name)!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {str(name)!r}: this torch ({torch.__version__}) sees no CUDA device; use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {str(name)!r}: only {torch.cuda.device_count()} CUDA device(s) are here")
    return device


def out_of_memory(error: BaseException) -> str | None:
    """What an error says that host or GPU memory is exhausted, in one line; None for any other error."""
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA error: out of memory" in first:
        return f"GPU memory is exhausted ({first.partition(' GPU ')[0]})"
    if isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in first or "bad_alloc" in first):
        return f"host memory is exhausted ({first.rpartition('DefaultCPUAllocator: ')[2]})"
    return f"host memory is exhausted{f' ({first})' if first else ''}" if isinstance(error, MemoryError) else None


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    check_at_least("seed", 0, seed=seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
