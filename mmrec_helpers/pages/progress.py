"""How far a run is, on the terminal: a line that is kept up to date, or one line a notebook when piped."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any


class Progress:
    """Use as a context manager; ``notebook``, ``cell`` and ``done`` are called as the run goes on."""

    def __init__(self, n_notebooks: int) -> None:
        self._n_notebooks, self._at = n_notebooks, 0
        self._name, self._n_cells, self._cell, self._began = "", 0, 0, 0.0
        self._live = sys.stderr.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        if self._live:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        if self._live:
            self._thread.join()
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def notebook(self, name: str, n_cells: int) -> None:
        """A notebook begins."""
        self._at, self._name, self._n_cells, self._cell = self._at + 1, name, n_cells, 0
        self._began = time.perf_counter()
        self._show()

    def cell(self, cell: Any, cell_index: int) -> None:
        """A cell begins (nbclient's hook)."""
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", []):
            self._cell += 1
            self._show()

    def done(self, problems: Sequence[str] = ()) -> None:
        """The notebook ran to its end."""
        seconds = time.perf_counter() - self._began
        start = "\r\x1b[K" if self._live else ""
        print(f"{start}{self._head()}: {self._n_cells} cells in {seconds:.1f} s", file=sys.stderr, flush=True)
        for problem in problems:
            print(f"    warning: {problem}", file=sys.stderr, flush=True)

    def _head(self) -> str:
        return f"notebook {self._at} of {self._n_notebooks}, {self._name}"

    def _show(self) -> None:
        if self._live:
            seconds = time.perf_counter() - self._began
            line = f"{self._head()}: cell {self._cell} of {self._n_cells}, {seconds:.0f} s"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self._stop.wait(1.0):
            self._show()
