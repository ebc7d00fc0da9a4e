"""The C library's allocator as a confounder of CPU timings: page faults on temporaries.

By default glibc takes large blocks from the kernel and gives them back at once, so every large temporary costs a page
fault per 4 KiB touched. With malloc trimming disabled it keeps released memory, and does not pay that. The environment
variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set it for a whole process; here it is set within one, by
``mallopt``, so that both can be measured one after the other.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

DEFAULT, TRIMMING_DISABLED = "default malloc", "malloc trimming disabled"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
# Where glibc's default arrives by itself once a block of 32 MiB has been released (mallopt(3), "dynamic threshold").
_SETTLED = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 64 * 2**20}
_KEEPING = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}


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
