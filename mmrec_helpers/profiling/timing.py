"""Timing functions against each other: warmed up, synchronised, and interleaved in one run.

A time taken now and a time taken a minute ago are not comparable on a busy machine. So every function is timed in every
round, the order changes from round to round, and functions are compared within rounds (``Ratio``).

On a CPU the C library's allocator is a confounder. By default glibc takes large blocks from the kernel and gives them
back at once, so every large temporary costs a page fault per 4 KiB touched. With malloc trimming disabled it keeps
released memory, and does not pay that. The environment variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set
it for a whole process; here it is set within one, by ``mallopt``, so that both can be measured one after the other.
"""

import ctypes
import gc
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmrec_helpers.config import InputError, check_at_least, check_positive, choose, counted, resolve_device
from mmrec_helpers.progress import progress

MIN_ROUNDS = 3
DEFAULT, TRIMMING_DISABLED = "default malloc", "malloc trimming disabled"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
# Where glibc's default arrives by itself once a block of 32 MiB has been released (mallopt(3), "dynamic threshold").
_SETTLED = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 64 * 2**20}
_KEEPING = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}


@dataclass(frozen=True)
class Ratio:
    """How many times as long one function takes as another: the median of the paired ratios.

    A pair is the two times of one round, r_k = t_k(numerator) / t_k(denominator); ``q1``, ``median`` and ``q3`` are the
    quartiles of r_1 ... r_rounds. This is not the ratio of the medians: what slows both times of a round cancels.

    >>> Timings("cpu", {"a": (2.0, 6.0, 4.0), "b": (1.0, 3.0, 1.0)}).ratio("a", "b").to_dict()
    {'median': 2.0, 'q1': 2.0, 'q3': 3.0, 'rounds': 3}
    """

    median: float
    q1: float
    q3: float
    rounds: int

    def to_dict(self) -> dict[str, float]:
        """Plain data for a record: the median of the paired ratios, their quartiles, and how many rounds there were."""
        return asdict(self)


@dataclass(frozen=True)
class Timings:
    """Times of several functions from one interleaved run, in milliseconds.

    ``ms[name][k]`` is the time of ``name`` in round k. An unknown name raises InputError.

    >>> Timings("cpu", {"a": (2.0, 6.0, 4.0)}).row("a")
    {'median_ms': 4.0, 'q1_ms': 3.0, 'q3_ms': 5.0}
    """

    device: str
    ms: Mapping[str, tuple[float, ...]]

    @property
    def rounds(self) -> int:
        return min(len(values) for values in self.ms.values())

    def row(self, name: str) -> dict[str, float]:
        """Quartiles of one function's times: median_ms, q1_ms, q3_ms."""
        q1, median, q3 = np.percentile(self._of(name), (25, 50, 75))
        return {"median_ms": float(median), "q1_ms": float(q1), "q3_ms": float(q3)}

    def median_ms(self, name: str) -> float:
        return self.row(name)["median_ms"]

    def ratio(self, numerator: str, denominator: str) -> Ratio:
        """The median of the paired ratios: time of ``numerator`` over time of ``denominator`` within each round."""
        pairs = np.asarray(self._of(numerator)) / np.asarray(self._of(denominator))
        q1, median, q3 = np.percentile(pairs, (25, 50, 75))
        return Ratio(float(median), float(q1), float(q3), len(pairs))

    def table(self) -> pd.DataFrame:
        """One row per function: name, median_ms, q1_ms, q3_ms, rounds."""
        return pd.DataFrame([{"name": n, **self.row(n), "rounds": len(values)} for n, values in self.ms.items()])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record: device, rounds, the raw times and the table."""
        return {
            "device": self.device,
            "rounds": self.rounds,
            "ms": {name: list(values) for name, values in self.ms.items()},
            "table": self.table().to_dict("records"),
        }

    def _of(self, name: str) -> tuple[float, ...]:
        choose("timed function", name, self.ms)
        return self.ms[name]


def measure(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 9,
    warmup: int = 2,
    device: str | torch.device = "cpu",
    max_seconds: float | None = None,
) -> Timings:
    """Time each function ``repeats`` times, interleaved, and return the wall times of all rounds.

    functions    name to a callable without arguments; what it returns is dropped outside the timed part
    warmup       untimed calls of each function before the first round
    device       where the work runs: on CUDA the device is synchronised before and after each timed call
    max_seconds  stop after the first round that passes this, though not before three rounds (or ``repeats``)

    Python's garbage collector runs before each round and is paused in it. Raises InputError for an empty mapping or
    counts that make no sense; an exception of a timed function passes through.

    >>> x = torch.ones(100, 100)
    >>> ratio = measure({"product": lambda: x @ x, "sum": lambda: x + x}, repeats=3).ratio("product", "sum")
    """
    if not functions:
        raise InputError("measure: functions is empty: expected at least one name with its callable")
    check_at_least("measure", 1, repeats=repeats)
    check_at_least("measure", 0, warmup=warmup)
    if max_seconds is not None:
        check_positive("measure", max_seconds=max_seconds)
    device = resolve_device(device)
    what = counted(len(functions), "function")
    for _ in progress(range(warmup), f"warming up {what}"):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    started = time.perf_counter()
    for k in progress(range(repeats), f"timing {what}, round"):
        with gc_paused():
            for name in round_order(list(functions), k):
                times[name].append(time_once_ms(functions[name], device))
        late = max_seconds is not None and time.perf_counter() - started > max_seconds
        if late and k + 1 >= min(MIN_ROUNDS, repeats):
            break
    return Timings(str(device), {name: tuple(values) for name, values in times.items()})


def round_order(names: list[str], k: int) -> list[str]:
    """The order of round k: turned by one place each round, and reversed in every second full turn.

    >>> ["".join(round_order(["A", "B"], k)) for k in range(4)]
    ['AB', 'BA', 'BA', 'AB']
    """
    turn = k % len(names)
    order = names[turn:] + names[:turn]
    return order[::-1] if (k // len(names)) % 2 else order


def time_once_ms(function: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call in milliseconds, the device synchronised before and after.

    >>> time_once_ms(lambda: time.sleep(0.002), torch.device("cpu")) >= 2
    True
    """
    synchronize(device)
    start = time.perf_counter_ns()
    result = function()
    synchronize(device)
    elapsed = time.perf_counter_ns() - start
    del result
    return elapsed / 1e6


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work; nothing to do on the CPU: ``synchronize(torch.device("cuda"))``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Collect garbage, then keep the collector off in the block (``with gc_paused():``); it is put back as it was."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def controllable() -> bool:
    """Whether the allocator can be set from within this process (glibc on Linux, not replaced by a preloaded one).

    >>> names = [DEFAULT, TRIMMING_DISABLED] if controllable() else [DEFAULT]
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    own, libc = ctypes.CDLL(None), ctypes.CDLL("libc.so.6")
    return ctypes.cast(own.malloc, ctypes.c_void_p).value == ctypes.cast(libc.malloc, ctypes.c_void_p).value


@contextmanager
def trimming_disabled() -> Iterator[bool]:
    """Keep released memory in the process inside the block; yields whether that could be set.

    Afterwards the allocator behaves as glibc's default does after releasing a block of 32 MiB, but what was kept stays
    with the process: measure the default first.

    >>> with trimming_disabled() as possible:
    ...     label = TRIMMING_DISABLED if possible else DEFAULT
    """
    possible = controllable()
    if possible:
        _set(_KEEPING)
    try:
        yield possible
    finally:
        if possible:
            _set(_SETTLED)


def _set(options: dict[int, int]) -> None:
    libc = ctypes.CDLL("libc.so.6")
    for option, value in options.items():
        libc.mallopt(option, value)
