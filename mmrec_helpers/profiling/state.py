"""Everything that a run may change and the next one would see, found by walking from a model and its loss."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrec_helpers.profiling.nested_tensors import dense_parts, same

_PLAIN = (int, float, complex, str, bytes, bool, np.generic, type(None), type, ModuleType, torch.dtype, torch.device)
_CONTAINERS = (dict, list, set, deque)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_OPAQUE = ("pandas", "scipy", "logging", "threading", "concurrent", "asyncio", "tqdm", "_pytest", "hypothesis")
_LONG = 10_000  # of longer containers only the length is compared around a call


@contextmanager
def preserved(*roots: Any) -> Iterator[None]:
    """Put back, after the block, what can be reached from the roots (see ``State``): ``with preserved(model): ...``."""
    state = State(*roots)
    try:
        yield
    finally:
        state.restore()


class State:
    """What can be reached from some roots: attributes, containers in containers, tensors, arrays, generators, what
    functions hold in closures and read of their globals; and the random states of Python, NumPy and torch.

    Objects of pandas and scipy, iterators, files and what only C code holds are not looked into.

        state = State(model, loss)
        loss(batch).backward()
        state.restore()
    """

    def __init__(self, *roots: Any) -> None:
        self._found = list(_reachable(roots))
        self.tensors = [value for value in self._found if isinstance(value, Tensor)]
        self._grads = [(tensor, tensor.grad) for tensor in self.tensors if tensor.is_leaf]
        self._undo = [undo for value in self._found for undo in _undo(value)]
        cuda = [torch.cuda] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        self._undo += map(_random_state, [random, np.random, torch, *cuda])

    def restore(self, gradients: bool = True) -> None:
        """Put everything back; without ``gradients`` leave none on any tensor."""
        for undo in self._undo:
            undo()
        for tensor, grad in self._grads:
            if tensor.grad is not (kept := grad if gradients else None):
                tensor.grad = kept

    def in_python(self) -> list[Any]:
        """All but the tensors' numbers and the random states, in a form that can be compared."""
        return [_contents(value) for value in self._found if isinstance(value, (*_CONTAINERS, CellType))]


def _reachable(roots: Iterable[Any]) -> Iterator[Any]:
    seen: dict[int, Any] = {}  # holds what it has seen, so that no address is used twice
    waiting = list(roots)
    while waiting:
        value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        waiting.extend(_parts(value))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return list(value)
    if isinstance(value, CellType):
        return _filled(value)
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, FunctionType):
        return [*(value.__closure__ or ()), *(value.__defaults__ or ()), *_globals(value).values()]
    if isinstance(value, (Tensor, np.ndarray, *_GENERATORS)) or type(value).__module__.partition(".")[0] in _OPAQUE:
        return ()
    held = getattr(value, "__dict__", None)
    called = "forward" if isinstance(value, nn.Module) else "__call__"
    hidden = (*value.parameters(), *value.buffers()) if isinstance(value, torch.jit.ScriptModule) else ()
    return (held, getattr(type(value), called, None), *hidden) if isinstance(held, dict) else ()


def _globals(function: FunctionType) -> dict[str, Any]:
    """The globals that a function names, modules, classes and functions left out."""
    held, names = function.__globals__, function.__code__.co_names
    kinds = (*_CONTAINERS, tuple, Tensor, np.ndarray, nn.Module, int, float, type(None), *_GENERATORS)
    return {name: held[name] for name in names if name in held and isinstance(held[name], kinds)}


def _filled(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # not filled yet
        return []


def _undo(value: Any) -> Iterator[Callable[[], Any]]:
    """What puts one value back as it is now."""
    if isinstance(value, _CONTAINERS):
        yield partial(_restore_container, value, _content(value))
    elif isinstance(value, CellType):
        for content in _filled(value):
            yield partial(setattr, value, "cell_contents", content)
    elif isinstance(value, FunctionType):
        yield partial(value.__globals__.update, _globals(value))
    elif isinstance(value, Tensor):
        yield partial(_restore_flag, value, value.requires_grad)
        if value.layout == torch.sparse_coo:
            yield partial(_restore_parts, value, value.detach())
        for part in dense_parts(value):
            yield partial(_restore_tensor, part, part.detach(), part.detach().clone())
    elif isinstance(value, np.ndarray) and value.dtype != object and value.flags.writeable:
        yield partial(np.copyto, value, value.copy())
    elif isinstance(value, np.random.Generator):
        yield partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    elif isinstance(value, _GENERATORS):
        yield _random_state(value)


def _content(value: Any) -> list:
    """A container's content in order: of a dict all keys, then all values."""
    return [*value, *value.values()] if isinstance(value, dict) else [*value]


def _restore_container(value: Any, kept: list) -> None:
    if [*map(id, _content(value))] == [*map(id, kept)]:
        return
    value.clear()
    if isinstance(value, dict):
        value.update(zip(kept[: len(kept) // 2], kept[len(kept) // 2 :]))
    elif isinstance(value, set):
        value.update(kept)
    else:
        value.extend(kept)


def _restore_flag(tensor: Tensor, requires_grad: bool) -> None:
    if tensor.is_leaf and tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)


def _restore_parts(tensor: Tensor, before: Tensor) -> None:
    """Give a sparse tensor back the indices and values that it held: writing to it in place may put others there."""
    if tensor._values().data_ptr() != before._values().data_ptr():
        tensor.data = before


def _restore_tensor(tensor: Tensor, memory: Tensor, kept: Tensor) -> None:
    if tensor.data_ptr() != memory.data_ptr() or tensor.shape != memory.shape:
        tensor.data = memory
    if not same(tensor, kept):  # an equal one keeps its version
        with torch.no_grad():
            memory.copy_(kept)


def _random_state(source: Any) -> Callable[[], Any]:
    """What puts a generator, or the state that a module keeps, back as it is now."""
    ways = (way for way in ("state", "_state", "_rng_state_all", "_rng_state") if hasattr(source, f"get{way}"))
    way = next(ways)
    return partial(getattr(source, f"set{way}"), getattr(source, f"get{way}")())


def _contents(value: Any) -> tuple:
    """A container's content: numbers and strings as they are, other things by identity, a dict's tensors left out."""
    if not isinstance(value, CellType) and len(value) > _LONG:
        return (len(value),)
    if isinstance(value, dict):
        return tuple((_shown(k), _shown(v)) for k, v in value.items() if not isinstance(v, Tensor))
    return tuple(map(_shown, _filled(value) if isinstance(value, CellType) else value))


def _shown(value: Any) -> Any:
    return Tensor if isinstance(value, Tensor) else value if isinstance(value, _PLAIN) else id(value)
