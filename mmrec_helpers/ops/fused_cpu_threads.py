"""Splitting rows into ranges of about equal work, and running compiled kernels over them on several threads.

The threads are those that torch's own operations run on (OpenMP's), where they can be reached: after each operation
they spin for some milliseconds in wait for the next, so that other threads would have to share the cores with them.
Elsewhere, and in a forked process, plain Python threads do the work: they sleep when idle, and start anew after a fork.
"""

import ctypes
import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import typeof, types

from mmrec_helpers.ops.fused_cpu_native import run_natively

SMALLEST_RANGE = 2048  # entries and rows: less does not repay waking a thread

_process = os.getpid()  # OpenMP's threads do not survive a fork
_addresses: dict[Any, int] = {}  # of machine code, by kernel and kinds of arguments


def row_ranges(pointer: np.ndarray, count: int) -> np.ndarray:
    """Split the rows of a CSR into at most ``count`` consecutive ranges (first, last) of about equal work: (n, 2).

    The work of a row is its number of entries plus one; a range has SMALLEST_RANGE of it or more, so that small graphs
    are not split. The ranges depend on the arguments alone.
    """
    n_rows = len(pointer) - 1
    work = pointer + np.arange(n_rows + 1)
    count = max(1, min(count, work[-1] // SMALLEST_RANGE))
    bounds = np.searchsorted(work, np.linspace(0, work[-1], count + 1)).clip(0, n_rows)
    bounds[0], bounds[-1] = 0, n_rows
    return np.array([(a, b) for a, b in itertools.pairwise(bounds) if b > a] or [(0, n_rows)], dtype=np.int64)


def even_ranges(count: int, fewest: int) -> np.ndarray:
    """0 .. count as ranges (n, 2) of about equal length, ``fewest`` or more, one per thread."""
    return _even_ranges(count, max(1, min(torch.get_num_threads(), count // fewest)))


@cache
def _even_ranges(count: int, parts: int) -> np.ndarray:
    return np.array([*itertools.pairwise(np.linspace(0, count, parts + 1).astype(np.int64))])


def run_over_ranges(kernel: Any, ranges: np.ndarray, *arguments: Any) -> None:
    """kernel(first, last, *arguments) for all ``ranges`` (n, 2), in any order, on up to ``torch.get_num_threads()``
    threads, the calling one included.

    What a kernel raises is raised here once none runs any more. OpenMP's threads call its machine code, whose address
    is looked up once: Python threads wait for the GIL to begin, 40 to 100 us a call, as long as a small kernel takes.
    """
    threads = min(torch.get_num_threads(), len(ranges))
    parallel = _openmp() if os.getpid() == _process else None
    if threads <= 1 or parallel is None:
        _run_on_python_threads(lambda first, last: kernel(first, last, *arguments), ranges.tolist(), threads)
        return
    kinds = (kernel, *map(_kind, arguments))
    if kinds not in _addresses:
        _addresses[kinds] = _address(kernel, (types.int64, types.int64, *map(typeof, arguments)))
    if run_natively(parallel, _addresses[kinds], threads, ranges, arguments):
        raise MemoryError(f"{kernel.__name__}: there is no memory for its scratch")


def _kind(argument: Any) -> Any:
    """Stands for the compiled type of an argument."""
    if type(argument) is np.ndarray:
        return argument.dtype, argument.ndim, argument.flags.num  # its layout, and whether it may be written to
    return tuple(map(_kind, argument)) if type(argument) is tuple else type(argument)


def _address(kernel: Any, signature: tuple) -> int:
    kernel.compile(signature)
    compiled = kernel.overloads[signature]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def _run_on_python_threads(run: Callable[[int, int], None], ranges: list, threads: int) -> None:
    remaining = iter(ranges)  # next() on a list's iterator is atomic

    def work() -> None:
        for first, last in remaining:
            run(first, last)

    helpers = [_pool(os.getpid(), threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()


@cache
def _openmp() -> int | None:
    """The address of ``GOMP_parallel(body, argument, threads, flags)`` of the OpenMP library that torch is linked with,
    or None.

    GNU's and Intel's libraries have it on Linux. A symbol looked up in torch's library is looked up in those that it
    depends on too, so another OpenMP in the process is not taken by mistake.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    return ctypes.cast(parallel, ctypes.c_void_p).value


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mmrec-helpers")
