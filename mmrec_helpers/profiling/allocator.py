"""The C library's allocator as a confounder of CPU timings: how much of a step's time is page faults on temporaries.

By default glibc takes large blocks from the kernel and gives them back at once, so every large temporary costs a page
fault for each 4 KiB touched. A heap that keeps its memory does not pay that. The environment variables
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set it for a whole process; here it is set within one, with glibc's
``mallopt``, so that both are measured in one interleaved run.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmrec_helpers.config import check_at_least
from mmrec_helpers.profiling.timing import Ratio, Timings, gc_paused, round_order, time_once_ms

DEFAULT, TRIMMING_DISABLED = "default malloc", "malloc trimming disabled"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
# Where glibc's default arrives by itself once a block of 32 MiB has been released (mallopt(3), "dynamic threshold").
_SETTLED = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 64 * 2**20}
_SETTLING_CALLS = 2  # a small block that lands in a large gap makes the heap grow once more
_LARGEST_BLOCK, _SMALLEST_BLOCK = 2**30, 2**17
_FROM_KERNEL = 2  # the bit of a block's size field that says it was mapped for itself alone
_KEEPING = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}


@dataclass(frozen=True)
class AllocatorEffect:
    """A function's time with glibc's default and with a heap that keeps its memory, interleaved in one run.

    timings  names "default malloc" and "malloc trimming disabled"
    ratio    time with the default over time with the malloc trimming disabled
    faults   page faults of each timed call, by the same names
    """

    timings: Timings
    ratio: Ratio
    faults: dict[str, tuple[int, ...]]

    def median_faults(self, name: str) -> float:
        return float(np.median(self.faults[name]))

    def to_dict(self) -> dict[str, Any]:
        faults = {name: list(values) for name, values in self.faults.items()}
        return {"timings": self.timings.to_dict(), "ratio": vars(self.ratio), "faults": faults}


def controllable() -> bool:
    """Whether the allocator can be set from within this process (glibc on Linux, not replaced by a preloaded one)."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    own, libc = ctypes.CDLL(None), ctypes.CDLL("libc.so.6")
    return ctypes.cast(own.malloc, ctypes.c_void_p).value == ctypes.cast(libc.malloc, ctypes.c_void_p).value


@contextmanager
def trimming_disabled() -> Iterator[bool]:
    """Keep released memory in the heap inside the block; yields whether that could be set.

    Afterwards the allocator behaves as glibc's default does after releasing a block of 32 MiB, but what was kept stays
    with the process.
    """
    possible = controllable()
    if possible:
        _set(_KEEPING)
    try:
        yield possible
    finally:
        if possible:
            _set(_SETTLED)


def measure_allocator_effect(function: Callable[[], Any], *, repeats: int = 7) -> AllocatorEffect | None:
    """Time ``function`` on the CPU both ways; None where the allocator cannot be set from within the process.

    Each timed call follows two untimed ones under the same setting, so that a malloc trimming disabled has its memory already.
    """
    check_at_least("allocator effect", 1, repeats=repeats)
    if not controllable():
        return None
    times: dict[str, list[float]] = {DEFAULT: [], TRIMMING_DISABLED: []}
    faults: dict[str, list[int]] = {DEFAULT: [], TRIMMING_DISABLED: []}
    device = torch.device("cpu")
    for k in range(repeats):
        with gc_paused():
            for name in round_order([DEFAULT, TRIMMING_DISABLED], k):
                with trimming_disabled() if name == TRIMMING_DISABLED else _free_blocks_taken():
                    for _ in range(_SETTLING_CALLS):
                        function()
                    before = _page_faults()
                    times[name].append(time_once_ms(function, device))
                    faults[name].append(_page_faults() - before)
    timings = Timings("cpu", {name: tuple(values) for name, values in times.items()})
    counts = {name: tuple(values) for name, values in faults.items()}
    return AllocatorEffect(timings, timings.ratio(DEFAULT, TRIMMING_DISABLED), counts)


@contextmanager
def _free_blocks_taken() -> Iterator[None]:
    """glibc's default, with the large free blocks that a malloc trimming disabled left behind taken out of its reach.

    malloc serves a request from a free block before it asks the kernel, so without this the default would live on what
    the malloc trimming disabled has kept.
    """
    libc = _libc()
    taken, size = [], _LARGEST_BLOCK
    _set(_SETTLED | {_M_MMAP_THRESHOLD: _SMALLEST_BLOCK})  # what no free block can serve then comes from the kernel
    while size >= _SMALLEST_BLOCK:
        block = libc.malloc(size)
        if block and not ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value & _FROM_KERNEL:
            taken.append(block)
        else:
            libc.free(block)
            size //= 2
    _set(_SETTLED)
    try:
        yield
    finally:
        _set(_KEEPING)
        for block in taken:
            libc.free(block)
        _set(_SETTLED)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc


def _set(options: dict[int, int]) -> None:
    libc = _libc()
    for option, value in options.items():
        libc.mallopt(option, value)


def _page_faults() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
