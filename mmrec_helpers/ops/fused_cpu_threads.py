"""Splitting rows into ranges of about equal work, and running kernels that release the GIL on several threads.

Plain Python threads rather than Numba's own parallel loops: they sleep when idle instead of spinning against torch's
threads, can be used from several threads at once, and start anew in a forked process.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

SMALLEST_RANGE = 2048  # entries and rows: less does not repay waking a thread

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def row_ranges(pointer: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Split the rows of a CSR into at most ``count`` consecutive ranges (first, last) of about equal work.

    The work of a row is its number of entries plus one; a range has SMALLEST_RANGE of it or more, so that small graphs
    are not split. The ranges depend on the arguments alone.
    """
    n_rows = len(pointer) - 1
    work = pointer + np.arange(n_rows + 1)
    count = max(1, min(count, work[-1] // SMALLEST_RANGE))
    bounds = np.searchsorted(work, np.linspace(0, work[-1], count + 1)).clip(0, n_rows)
    bounds[0], bounds[-1] = 0, n_rows
    return [(int(a), int(b)) for a, b in itertools.pairwise(bounds) if b > a] or [(0, n_rows)]


def run_on_threads(tasks: Sequence[Callable[[], None]]) -> None:
    """Run all tasks, in any order, on up to ``torch.get_num_threads()`` threads, the calling one included."""
    threads = min(torch.get_num_threads(), len(tasks))
    remaining = iter(tasks)  # next() on a list's iterator is atomic

    def work() -> None:
        for task in remaining:
            task()

    helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), threads)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="mmrec-helpers")
    return _pools[key]
