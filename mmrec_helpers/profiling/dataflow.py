"""Every operator of a training step with its inputs: which line called it, in which module, how long, on what values.

Values are numbered by how they came about: two results have one number if the same operator made them from arguments
with the same numbers. A number stands for a storage's content; an operator that writes to a storage gives it a new one.
So equal numbers prove equal values, within a step and between steps, whatever the numbers in them are; equal values
with different numbers merely came out equal.
"""

import functools
import linecache
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import torch
import torch_geometric
from torch import Tensor, nn

from mmrec_helpers.profiling.flow import Flow, Operations, Reads, around_calls, is_shape_only, tells_numbers
from mmrec_helpers.profiling.nested_tensors import dense_parts, tensors_in
from mmrec_helpers.profiling.timing import synchronize

PARAMETER, BATCH, RANDOM, UNKNOWN = 1, 2, 4, 8  # what a value depends on, besides constants
_INSIDE = tuple(module.__path__[0] for module in (torch, torch_geometric)) + (
    str(Path(__file__).parent),
    str(Path(__file__).parent.parent / "mmrec"),
    str(Path(functools.__file__).parent / "functools.py"),
    str(Path(functools.__file__).parent / "contextlib.py"),
)
_SMALLEST_TRACKED = 2  # a Python number up to this stands in too many places to tell where it came from
_HASHED_MS = 0.005  # results of cheaper operators are not compared by value


@dataclass(frozen=True)
class Place:
    """A source line: ``str()`` gives "folder/file.py:12 function"."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{'/'.join(Path(self.file).parts[-2:])}:{self.line} {self.function}"


def source_line(place: Place | None) -> str:
    return linecache.getline(place.file, place.line).strip() if place else ""


@dataclass
class Operation:
    """One call of an operator.

    index     among those of its step; position: among those outside the backward pass, recomputation included
    name      such as "aten::mm"; phase: "forward", "backward" or "recompute"
    module    path of the innermost module in whose forward it ran; of a backward operator that of the forward one
    place     the source line, of a backward operator that of the forward one
    ms        its own time; host_ms: time since the one before it ended
    depends   PARAMETER | BATCH | RANDOM | UNKNOWN
    same_as   index of the earlier operator of the step that computed the same, if there is one
    known     a step before this one computed the same
    creates, writes  storages that it made or wrote to; reads_tensors: whether it has any tensor argument
    view      whether it computes nothing: its result is a view of an argument
    digest    of its result's content, None if not taken
    """

    index: int
    position: int
    name: str
    phase: str
    module: str
    place: Place | None
    ms: float
    host_ms: float
    depends: int
    same_as: int | None
    known: bool
    creates: tuple[int, ...]
    writes: tuple[int, ...]
    reads_tensors: bool
    view: bool
    digest: int | None


@dataclass
class RecordedStep:
    """The operators of a step in order, and the lines that called each module: (path, number of the call) to place."""

    operations: list[Operation] = field(default_factory=list)
    calls: dict[tuple[str, int], Place | None] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per operator: operator, place, source (the line's text), module, phase, calls (1), ms, and host_ms,
        of which only what lies beyond the median operator's."""
        usual = statistics.median(o.host_ms for o in self.operations)
        rows = [
            {
                "operator": o.name.removeprefix("aten::"),
                "place": str(o.place or "unknown"),
                "source": source_line(o.place),
                "module": o.module,
                "phase": o.phase,
                "calls": 1,
                "ms": o.ms,
                "host_ms": max(0.0, o.host_ms - usual),
            }
            for o in self.operations
        ]
        return pd.DataFrame(rows)


class Recorder:
    """Records the steps that run inside ``recorder.step(batch)``, all with the same numbering.

    A Python number taken out of a tensor (``.item()``) is followed by its value: an operator with that number among
    its arguments depends on what it was taken from. Numbers up to 2, and branches taken on them, are not followed.
    Memory that was handed out (``tensor.numpy()``) may change unseen: what it holds is unknown from then on.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self.steps: list[RecordedStep] = []
        self._flow = Flow()
        self._numbers: dict[Hashable, int] = {}
        self._contents: dict[int, int] = {}  # by address of a storage
        self._shared: set[int] = set()  # addresses of storages that were handed out
        self._known: set[int] = set()
        self._keys: set[int] = set()
        self._modules = [""]
        self._last_backward: tuple[Place | None, str] = (None, "")

    @contextmanager
    def step(self, batch: Any) -> Iterator[RecordedStep]:
        """Record what runs in the block as one step on this batch."""
        recorded = RecordedStep()
        self.steps.append(recorded)
        self._known |= self._keys
        self._keys = set()
        self._first: dict[Hashable, int] = {}
        self._escaped: dict[float, int] = {}
        self._made_at: dict[int, tuple[Place | None, str]] = {}
        for parameter in self.model.parameters():
            self._flow.mark(parameter, PARAMETER if parameter.requires_grad else 0)
        for tensor in tensors_in(batch):
            self._flow.mark(tensor, BATCH)
            self._set(self._flow.keys(tensor), "batch", self._fresh())
        around = around_calls(dict(self.model.named_modules()), self._around)
        with around, Reads(self._read), Operations(self._note):
            self._ended = time.perf_counter_ns()
            yield recorded

    def _around(self, path: str, call: int, run: Callable[[], Any]) -> Any:
        self.steps[-1].calls[path, call] = calling_place()
        self._modules.append(path)
        try:
            return run()
        finally:
            self._modules.pop()

    def _read(self, tensors: list[Tensor], shared: bool) -> None:
        self._shared.update(key for tensor in tensors if shared for key in self._flow.keys(tensor))

    def _note(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if is_mark(func):
            return func(*args, **kwargs)
        began = time.perf_counter_ns()
        waited = (began - self._ended) / 1e6
        place, module, phase = self._where()
        key, more = self._key(func, args, kwargs)
        given = self._flow.given(args, kwargs)
        start = time.perf_counter_ns()
        out = func(*args, **kwargs)
        synchronize(self.device)
        ms = (time.perf_counter_ns() - start) / 1e6
        if torch.Tag.nondeterministic_seeded in func.tags:
            key, more = self._fresh(), more | RANDOM
        made, changed = self._flow.pass_on(given, func, args, kwargs, out, more)
        self._set(changed, key, "changed")
        self._set(made, key, "made")
        results = tensors_in(out)
        depends = more | (0 if is_shape_only(func) else given.marks)
        if depends and tells_numbers(func, out):
            self._escape((out, *(size for tensor in results for size in tensor.shape)), depends)
        operations = self.steps[-1].operations
        index, first = len(operations), self._first.setdefault(key, len(operations))
        view = bool(results) and not made and not changed
        hashed = phase != "backward" and not view and ms >= _HASHED_MS and results
        operations.append(
            Operation(
                index=index,
                position=(operations[-1].position if operations else -1) + (phase != "backward"),
                name=str(func._schema.name),
                phase=phase,
                module=module,
                place=place,
                ms=ms,
                host_ms=waited,
                depends=depends,
                same_as=None if first == index else first,
                known=key in self._known,
                creates=tuple(made),
                writes=tuple(changed),
                reads_tensors=bool(given.keys) and not is_shape_only(func),
                view=view,
                digest=_digest(results[0]) if hashed else None,
            )
        )
        self._keys.add(key)
        self._ended = time.perf_counter_ns()
        return out

    def _where(self) -> tuple[Place | None, str, str]:
        """Line, module path and phase of the operator that is being called."""
        node = torch._C._current_autograd_node()
        if node is not None and not torch.is_grad_enabled():
            place, module = self._made_at.get(node._sequence_nr(), self._last_backward)
            self._last_backward = place, module
            return place, module, "backward"
        place, module = calling_place(), self._modules[-1]
        self._last_backward = place, module
        # The node that autograd made for this operator has the number before the one it will give next.
        self._made_at.setdefault(torch._C._autograd._get_sequence_nr() - 1, (place, module))
        return place, module, "forward" if node is None else "recompute"

    def _number(self, of: Hashable) -> int:
        return self._numbers.setdefault(of, len(self._numbers))

    def _fresh(self) -> int:
        return self._number(("fresh", len(self._numbers)))

    def _set(self, storages: Iterable[int], *of: Hashable) -> None:
        """Number the content of what was written or made."""
        for position, storage in enumerate(storages):
            self._contents[storage] = self._number((*of, position))

    def _key(self, func: Any, args: tuple, kwargs: dict) -> tuple[int, int]:
        """The number of this computation, and what it depends on besides the marks of its arguments."""
        depends, shape_only = 0, is_shape_only(func)

        def described(value: Any) -> Hashable:
            nonlocal depends
            if isinstance(value, Tensor) and shape_only:
                return str(value.layout), str(value.dtype), tuple(value.shape), str(value.device)
            if isinstance(value, Tensor):
                number = self._value(value)
                depends |= UNKNOWN if number is None else 0
                return "tensor", self._fresh() if number is None else number
            if isinstance(value, (list, tuple)):
                return tuple(described(one) for one in value)
            if isinstance(value, (int, float)) and value in self._escaped:
                depends |= self._escaped[value]
            return type(value).__name__, str(value)

        parts = (str(func), tuple(map(described, args)), tuple((k, described(v)) for k, v in sorted(kwargs.items())))
        return self._number(parts), depends

    def _value(self, tensor: Tensor) -> int | None:
        """The number of a tensor's content; None if it cannot be followed."""
        storages, numbers = self._flow.keys(tensor), []
        for storage, part in zip(storages, dense_parts(tensor)):
            if storage not in self._contents:  # made outside the steps (a constant), or within one without torch
                self._set([storage], "outside", storage)
                self._flow.mark(part, PARAMETER if tensor.requires_grad else 0)
            geometry = (part.dtype, part.storage_offset(), tuple(part.shape), part.stride(), part.is_conj())
            numbers.append((self._contents[storage], geometry))
        known = storages and self._shared.isdisjoint(storages)
        return self._number((tensor.layout, tuple(tensor.shape), tuple(numbers))) if known else None

    def _escape(self, values: Iterable[Any], depends: int) -> None:
        for value in values:
            if isinstance(value, (int, float)) and not (isinstance(value, int) and abs(value) <= _SMALLEST_TRACKED):
                self._escaped[value] = self._escaped.get(value, 0) | depends


def calling_place() -> Place | None:
    """The innermost line on the stack that is not torch's, torch_geometric's or of this folder."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not _is_inside(code.co_filename):
            return Place(code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    return None


@functools.cache
def _is_inside(file: str) -> bool:
    generated = "_propagate_" in file or "_edge_updater_" in file  # torch_geometric's, written for each class
    return generated or file.startswith(_INSIDE) or (file.startswith("<") and "torch" in file)


def is_mark(func: Any) -> bool:
    """Whether this is ``record_function``'s, which computes nothing."""
    return func.namespace == "profiler"


def _digest(tensor: Tensor) -> int | None:
    """A number for shape, type and content; None where that cannot be read."""
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return None
    array = tensor.detach().cpu().contiguous().view(-1)
    seed = zlib.crc32(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    return zlib.crc32(array.view(torch.uint8).numpy().data, seed)
