"""Every operator of a training step with its inputs: which line called it, in which module, how long, on what values.

Values are numbered by how they came about: two results have one number if the same operator made them from arguments
with the same numbers. A number stands for a storage's content; an operator that writes to a storage gives it a new one.
So equal numbers prove equal values, within a step and between steps, whatever the numbers in them are; equal values
with different numbers merely came out equal.
"""

import functools
import sys
import time
import zlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch_geometric
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmrec_helpers.profiling.timing import synchronize

PARAMETER, BATCH, RANDOM, UNKNOWN = 1, 2, 4, 8  # what a value depends on, besides constants
_INSIDE = tuple(module.__path__[0] for module in (torch, torch_geometric)) + (
    str(Path(__file__).parent),
    str(Path(__file__).parent.parent / "mmrec"),
    str(Path(functools.__file__).parent / "functools.py"),
    str(Path(functools.__file__).parent / "contextlib.py"),
)
_ESCAPES = ("_local_scalar_dense", "equal", "is_nonzero")
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


@dataclass
class Operation:
    """One call of an operator.

    index     among those of its step; position: among those outside the backward pass, recomputation included
    name      such as "aten::mm"; phase: "forward", "backward" or "recompute"
    module    path of the innermost module in whose forward it ran; of a backward operator that of the forward one
    place     the source line, of a backward operator that of the forward one
    ms        its own time; host_ms: time since the one before it ended
    key       number of what it computes (operator and arguments)
    depends   PARAMETER | BATCH | RANDOM | UNKNOWN
    same_as   index of the earlier operator of the step that computed the same, if there is one
    known     a step before this one computed the same
    creates, writes  storages that it made or wrote to; reads_tensors: whether it has any tensor argument
    view      whether it computes nothing: its result is a view of an argument
    digest    of its result's content, None if not taken; shape: of the first result
    """

    index: int
    position: int
    name: str
    phase: str
    module: str
    place: Place | None
    ms: float
    host_ms: float
    key: int
    depends: int
    same_as: int | None
    known: bool
    creates: tuple[int, ...]
    writes: tuple[int, ...]
    reads_tensors: bool
    view: bool
    digest: int | None
    shape: tuple[int, ...]


@dataclass
class RecordedStep:
    """The operators of a step in order, and the lines that called each module: (path, number of the call) to place."""

    operations: list[Operation] = field(default_factory=list)
    calls: dict[tuple[str, int], Place | None] = field(default_factory=dict)


class Recorder(TorchDispatchMode):
    """Records the steps that run inside ``recorder.step(batch)``, all with the same numbering.

    A Python number taken out of a tensor (``.item()``) is followed by its value: an operator with that number among
    its arguments depends on what it was taken from. Numbers up to 2, and branches taken on them, are not followed.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model, self.device = model, device
        self.steps: list[RecordedStep] = []
        self._numbers: dict[Hashable, int] = {}
        self._states: dict[int, tuple[StorageWeakRef, int, int]] = {}  # storage: (kept address, number, depends)
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
        self._trained = {p.untyped_storage()._cdata for p in self.model.parameters() if p.requires_grad}
        for tensor in tree_leaves(batch):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._set(tensor, self._number(("batch", len(self.steps), len(self._numbers))), BATCH)
        with watched_modules(self.model, self._enter, self._leave), self:
            self._ended = time.perf_counter_ns()
            yield recorded

    def _enter(self, path: str, call: int) -> None:
        self.steps[-1].calls[path, call] = calling_place()
        self._modules.append(path)

    def _leave(self, path: str, call: int, output: Any) -> None:
        self._modules.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if is_mark(func):
            return func(*args, **kwargs)
        began = time.perf_counter_ns()
        waited = (began - self._ended) / 1e6
        place, module, phase = self._where()
        key, depends, read = self._key(func, args, kwargs)
        start = time.perf_counter_ns()
        out = func(*args, **kwargs)
        synchronize(self.device)
        ms = (time.perf_counter_ns() - start) / 1e6
        if torch.Tag.nondeterministic_seeded in func.tags:
            key, depends = self._number(("random", len(self._numbers))), depends | RANDOM
        written = written_arguments(func, args, kwargs)
        creates, view = self._set_results(func, out, key, depends, read, written)
        operations = self.steps[-1].operations
        hashed = phase != "backward" and not view and ms >= _HASHED_MS
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        operations.append(
            Operation(
                index=len(operations),
                position=self._next_position(phase),
                name=str(func._schema.name),
                phase=phase,
                module=module,
                place=place,
                ms=ms,
                host_ms=waited,
                key=key,
                depends=depends,
                same_as=self._first.setdefault(key, len(operations)),
                known=key in self._known,
                creates=creates,
                writes=tuple(storage for tensor in written for storage in _storages(tensor)),
                reads_tensors=bool(read),
                view=view,
                digest=_digest(results[0]) if hashed and results else None,
                shape=tuple(results[0].shape) if results else (),
            )
        )
        self._keys.add(key)
        if operations[-1].same_as == operations[-1].index:
            operations[-1].same_as = None
        self._ended = time.perf_counter_ns()
        return out

    def _next_position(self, phase: str) -> int:
        operations = self.steps[-1].operations
        before = operations[-1].position if operations else -1
        return before + (phase != "backward")

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

    def _key(self, func: Any, args: tuple, kwargs: dict) -> tuple[int, int, set[int]]:
        """The number of this computation, what it depends on, and the storages of its tensor arguments."""
        depends, read = 0, set()
        name = func._schema.name.removeprefix("aten::")
        shape_only = name.endswith("_like") or name.startswith("new_")

        def described(value: Any) -> Hashable:
            nonlocal depends
            if isinstance(value, Tensor) and shape_only:
                return str(value.layout), str(value.dtype), tuple(value.shape), str(value.device)
            if isinstance(value, Tensor):
                number, more = self._value(value)
                depends |= more
                read.update(_storages(value))
                return "tensor", number
            if isinstance(value, (list, tuple)):
                return tuple(described(one) for one in value)
            if isinstance(value, (int, float)) and value in self._escaped:
                depends |= self._escaped[value]
            return type(value).__name__, str(value)

        parts = (str(func), tuple(map(described, args)), tuple((k, described(v)) for k, v in sorted(kwargs.items())))
        return self._number(parts), depends, read

    def _value(self, tensor: Tensor) -> tuple[int, int]:
        """The number of a tensor's content, and what it depends on."""
        parts = _strided_parts(tensor)
        if parts is None:
            return self._number(("opaque", len(self._numbers))), UNKNOWN
        numbers, depends = [], 0
        for part in parts:
            storage = part.untyped_storage()
            state = self._states.get(storage._cdata)
            if state is None:  # made outside the steps (a constant), or within one without torch
                trained = storage._cdata in self._trained or tensor.requires_grad
                state = self._set(part, self._number(("outside", storage._cdata)), PARAMETER if trained else 0)
            geometry = (part.dtype, part.storage_offset(), tuple(part.shape), part.stride(), part.is_conj())
            numbers.append((state[1], geometry))
            depends |= state[2]
        return self._number((tensor.layout, tuple(tensor.shape), tuple(numbers))), depends

    def _set(self, tensor: Tensor, number: int, depends: int) -> tuple[StorageWeakRef, int, int]:
        storage = tensor.untyped_storage()
        before = self._states.get(storage._cdata)
        # A weak reference keeps the address taken, so that no later storage is mistaken for this one.
        state = (before[0] if before else StorageWeakRef(storage), number, depends)
        self._states[storage._cdata] = state
        return state

    def _set_results(
        self, func: Any, out: Any, key: int, depends: int, read: set[int], written: list[Tensor]
    ) -> tuple[tuple[int, ...], bool]:
        """Number what was written and made; returns the storages made, and whether all results are views."""
        for number, tensor in enumerate(written):
            for part in _strided_parts(tensor) or ():
                self._set(part, self._number((key, "written", number)), depends)
        creates, results = [], [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for number, part in enumerate(part for tensor in results for part in _strided_parts(tensor) or ()):
            storage = part.untyped_storage()._cdata
            if storage not in read:
                self._set(part, self._number((key, "made", number)), depends)
                creates.append(storage)
        if depends and func._schema.name.rpartition("::")[2] in _ESCAPES:
            self._escape(out, depends)
        elif depends and torch.Tag.dynamic_output_shape in func.tags:
            for size in (size for tensor in results for size in tensor.shape):
                self._escape(size, depends)
        return tuple(creates), bool(results) and not creates and not written

    def _escape(self, value: Any, depends: int) -> None:
        if isinstance(value, (int, float)) and not (isinstance(value, int) and abs(value) <= _SMALLEST_TRACKED):
            self._escaped[value] = self._escaped.get(value, 0) | depends


@contextmanager
def watched_modules(
    model: nn.Module, enter: Callable[[str, int], Any], leave: Callable[[str, int, Any], None]
) -> Iterator[None]:
    """Inside the block every ``forward``, called as a module or by name, is announced: ``enter(path, number of the
    call)`` before it and ``leave(path, number, output)`` after it (None if it raises). What ``enter`` returns, if not
    None, takes the place of the call."""
    counts: dict[str, int] = {}

    def watched(path: str, forward: Callable) -> Callable:
        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            number = counts[path] = counts.get(path, -1) + 1
            instead = enter(path, number)
            if instead is not None:
                return instead
            output = None
            try:
                output = forward(*args, **kwargs)
                return output
            finally:
                leave(path, number, output)

        return call

    replaced = []
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            replaced.append((vars(module), vars(module).get("forward")))
            vars(module)["forward"] = watched(path, module.forward)
    try:
        yield
    finally:
        for attributes, before in replaced:
            del attributes["forward"]
            if before is not None:
                attributes["forward"] = before


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


def _strided_parts(tensor: Tensor) -> tuple[Tensor, ...] | None:
    """The tensors that hold a tensor's content: itself, or what a sparse one consists of; None if not known."""
    if tensor.layout == torch.strided:
        return (tensor,)
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout == torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return None


def _storages(tensor: Tensor) -> list[int]:
    return [part.untyped_storage()._cdata for part in _strided_parts(tensor) or ()]


def is_mark(func: Any) -> bool:
    """Whether this is ``record_function``'s, which computes nothing."""
    return func.namespace == "profiler"


def written_arguments(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The arguments that an operator writes to, by its schema."""
    written = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return written


def _digest(tensor: Tensor) -> int | None:
    """A number for shape, type and content; None where that cannot be read."""
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return None
    array = tensor.detach().cpu().contiguous().view(-1)
    seed = zlib.crc32(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    return zlib.crc32(array.view(torch.uint8).numpy().data, seed)
