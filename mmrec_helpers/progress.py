"""Progress of long work: loops report where they are, and whoever watches draws it.

Without a watcher a loop runs as if it reported nothing. Commands watch with ``TerminalBar``, notebooks with
``pages.display.NotebookBar``; both say the same text (``describe``).
"""

import operator
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_EVERY_S = 0.2  # a watcher is told no more often than this, but for the first step of a loop


@dataclass(frozen=True)
class Level:
    """One loop under way: what it does, and how many of its steps are done."""

    text: str
    done: int
    total: int


class Bar(Protocol):
    """What watches: it is given the loops under way, the outermost first."""

    def __call__(self, levels: Sequence[Level]) -> None: ...

    def close(self) -> None: ...


_watcher: ContextVar[Bar | None] = ContextVar("watcher", default=None)
_levels: ContextVar[tuple[Level, ...]] = ContextVar("levels", default=())


@contextmanager
def watch(bar: Bar) -> Iterator[None]:
    """Show ``bar`` the loops that run inside the block, and close it at the end.

    with watch(TerminalBar("steps")):
        measure_steps(data, options)
    """
    token = _watcher.set(bar)
    try:
        bar(())
        yield
    finally:
        _watcher.reset(token)
        bar.close()


def progress(items: Iterable[T], text: str, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items``, telling the watcher about each.

    text   what the loop does, such as "timing 24 variants"
    total  how many items there are, where ``items`` has no length

        for round_ in progress(range(9), "timing"):
            ...
    """
    watcher = _watcher.get()
    if watcher is None:
        yield from items
        return
    outer, told = _levels.get(), 0.0
    level = Level(text, 0, operator.length_hint(items) if total is None else total)
    try:
        for done, item in enumerate(items):
            _levels.set((*outer, replace(level, done=done)))
            if done == 0 or time.perf_counter() - told >= _EVERY_S:
                told = time.perf_counter()
                watcher(_levels.get())
            yield item
    finally:
        _levels.set(outer)


@contextmanager
def under_way(level: Level) -> Iterator[None]:
    """Tell the watcher of one step, which may hold loops of its own: ``with under_way(Level("run", 2, 9)): ...``."""
    outer = _levels.get()
    _levels.set((*outer, level))
    if (watcher := _watcher.get()) is not None:
        watcher(_levels.get())
    try:
        yield
    finally:
        _levels.set(outer)


def describe(title: str, levels: Sequence[Level], elapsed_s: float, expected_s: float | None = None) -> str:
    """What a bar says: ``steps: timing 24 variants 3/9 · 41 s of about 2 min``."""
    where = ", ".join(f"{level.text} {level.done + 1}/{level.total}" for level in levels)
    expected = f" of about {duration(expected_s)}" if expected_s else ""
    return f"{title}{': ' if where else ''}{where} · {duration(elapsed_s)}{expected}"


def duration(seconds: float) -> str:
    """Rounded for reading: ``8 s``, ``2 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class TerminalBar:
    """Watches on a terminal; draws nothing where standard error is none.

    title       of the work
    expected_s  how long it takes, where that is known
    """

    def __init__(self, title: str, expected_s: float | None = None) -> None:
        self.title, self.expected_s, self._began = title, expected_s, time.perf_counter()
        self._bar = tqdm(total=1, bar_format="{desc} {bar:20}", leave=False, disable=None)

    def __call__(self, levels: Sequence[Level]) -> None:
        elapsed = time.perf_counter() - self._began
        self._bar.n = share_done(levels, elapsed, self.expected_s) or 0
        self._bar.set_description_str(describe(self.title, levels, elapsed, self.expected_s))

    def close(self) -> None:
        self._bar.close()


def share_done(levels: Sequence[Level], elapsed_s: float, expected_s: float | None) -> float | None:
    """How much of the work is done, by time where it is known how long it takes, else by the outermost loop; None where
    neither says."""
    if expected_s:
        return min(elapsed_s / expected_s, 0.99)
    return levels[0].done / levels[0].total if levels and levels[0].total else None
