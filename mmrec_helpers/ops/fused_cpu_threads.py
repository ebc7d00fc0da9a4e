"""Splitting rows into ranges of about equal work, and running kernels that release the GIL on several threads.

The threads are those that torch's own operations run on (OpenMP's), where they can be reached: after each operation
they spin for some milliseconds in wait for the next, so that other threads would have to share the cores with them.
Elsewhere, and in a forked process, plain Python threads do the work: they sleep when idle, and start anew after a fork.
"""

import ctypes
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch

SMALLEST_RANGE = 2048  # entries and rows: less does not repay waking a thread

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_process = os.getpid()  # OpenMP's threads do not survive a fork


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
    """Run all tasks, in any order, on up to ``torch.get_num_threads()`` threads, the calling one included.

    What a task raises is raised here once no task runs any more.
    """
    threads = min(torch.get_num_threads(), len(tasks))
    remaining = iter(tasks)  # next() on a list's iterator is atomic

    def work() -> None:
        for task in remaining:
            task()

    parallel = _openmp() if os.getpid() == _process else None
    if threads <= 1:
        work()
    elif parallel is not None:
        _run_on_openmp(parallel, work, threads)
    else:
        _run_on_python_threads(work, threads)


def _run_on_openmp(parallel: Callable, work: Callable[[], None], threads: int) -> None:
    errors: list[BaseException] = []

    def guarded(_: None) -> None:  # an exception cannot pass through OpenMP
        try:
            work()
        except BaseException as error:
            errors.append(error)

    parallel(_BODY(guarded), None, threads, 0)  # without the GIL; each thread takes it to call ``guarded``
    if errors:
        raise errors[0]


def _run_on_python_threads(work: Callable[[], None], threads: int) -> None:
    pool = _pool(os.getpid(), threads - 1)
    helpers = [pool.submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()


@cache
def _openmp() -> Callable | None:
    """``GOMP_parallel(body, argument, threads, flags)`` of the OpenMP library that torch is linked with, or None.

    GNU's and Intel's libraries have it on Linux. A symbol looked up in torch's library is looked up in those that it
    depends on too, so another OpenMP in the process is not taken by mistake.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.restype, parallel.argtypes = None, [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return parallel


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mmrec-helpers")
