"""Timing functions against each other: warmed up, synchronised, and interleaved in one run.

A time taken now and a time taken a minute ago are not comparable on a busy machine, so every function is timed in every
round, the order changes from round to round, and a ratio is the median of the ratios within rounds.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmrec_helpers.config import InputError, check_at_least, check_positive, choose, resolve_device

MIN_ROUNDS = 3


@dataclass(frozen=True)
class Ratio:
    """How many times as long one function takes as another: quartiles of the ratios within rounds."""

    numerator: str
    denominator: str
    median: float
    q1: float
    q3: float
    rounds: int

    def to_dict(self) -> dict[str, float]:
        """median, q1, q3 and rounds, for a record."""
        return {name: getattr(self, name) for name in ("median", "q1", "q3", "rounds")}


@dataclass(frozen=True)
class Timings:
    """Times of several functions from one interleaved run. ``ms[name][k]`` is the time of ``name`` in round k."""

    device: str
    ms: Mapping[str, tuple[float, ...]]

    @property
    def rounds(self) -> int:
        return min(len(values) for values in self.ms.values())

    def median_ms(self, name: str) -> float:
        return float(np.median(self._of(name)))

    def ratio(self, numerator: str, denominator: str) -> Ratio:
        """Time of ``numerator`` over time of ``denominator``, pair by pair within the rounds of this run."""
        pairs = np.asarray(self._of(numerator)) / np.asarray(self._of(denominator))
        q1, median, q3 = np.percentile(pairs, (25, 50, 75))
        return Ratio(numerator, denominator, float(median), float(q1), float(q3), len(pairs))

    def row(self, name: str) -> dict[str, float]:
        """median_ms, q1_ms and q3_ms of one function, for a record."""
        quartiles = np.percentile(self._of(name), (50, 25, 75))
        return dict(zip(("median_ms", "q1_ms", "q3_ms"), map(float, quartiles), strict=True))

    def table(self) -> pd.DataFrame:
        """One row a function: name, median_ms, q1_ms, q3_ms, spread_ms (q3 - q1), min_ms, rounds."""
        rows = []
        for name, values in self.ms.items():
            q1, median, q3 = (float(q) for q in np.percentile(values, (25, 50, 75)))
            rows.append((name, median, q1, q3, q3 - q1, float(min(values)), len(values)))
        columns = ["name", "median_ms", "q1_ms", "q3_ms", "spread_ms", "min_ms", "rounds"]
        return pd.DataFrame(rows, columns=columns)

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
    progress: Callable[[int, int], None] | None = None,
) -> Timings:
    """Time each function ``repeats`` times, interleaved, and return the times of all rounds.

    functions    name to a callable without arguments; what it returns is dropped outside the timed part
    warmup       untimed calls of each function before the first round
    device       where the work runs: on CUDA the device is synchronised before and after each timed call
    max_seconds  stop after the first round that passes this, though not before three rounds (or ``repeats``)
    progress     called with (rounds done, rounds) after each round

    Python's garbage collector runs before each round and is paused in it. Raises InputError for an empty mapping or
    counts that make no sense; an exception of a timed function passes through.
    """
    if not functions:
        raise InputError("measure: functions is empty: expected at least one name with its callable")
    check_at_least("measure", 1, repeats=repeats)
    check_at_least("measure", 0, warmup=warmup)
    if max_seconds is not None:
        check_positive("measure", max_seconds=max_seconds)
    device = resolve_device(device)
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    started = time.perf_counter()
    for k in range(repeats):
        with gc_paused():
            for name in round_order(list(functions), k):
                times[name].append(time_once_ms(functions[name], device))
        if progress is not None:
            progress(k + 1, repeats)
        late = max_seconds is not None and time.perf_counter() - started > max_seconds
        if late and k + 1 >= min(MIN_ROUNDS, repeats):
            break
    return Timings(str(device), {name: tuple(values) for name, values in times.items()})


def round_order(names: list[str], k: int) -> list[str]:
    """The order of round k: turned by one place each round, and reversed in every second full turn (AB BA BA AB)."""
    turn = k % len(names)
    order = names[turn:] + names[:turn]
    return order[::-1] if (k // len(names)) % 2 else order


def time_once_ms(function: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call in milliseconds, the device synchronised before and after."""
    synchronize(device)
    start = time.perf_counter_ns()
    result = function()
    synchronize(device)
    elapsed = time.perf_counter_ns() - start
    del result
    return elapsed / 1e6


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work; nothing to do on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Collect garbage, then keep the collector off inside the block; it is put back as it was."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
