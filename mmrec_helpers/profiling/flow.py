"""Which results were computed from which: marks that spread from tensor to tensor while a model runs.

A mark is a bit. It is put on a parameter, or on all that a module call computes, and every operation passes the marks
of what it reads on to what it writes. Marks lie on memory, not on tensor objects, so views and changes in place are
followed, through a backward pass too. What carries no mark of a call cannot depend on that call, whatever the numbers
are; what carries it may depend on it. So marks prove that work is dead, and only other numbers prove that it is not.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmrec_helpers.profiling.nested_tensors import dense_parts, has_scale, holds_numbers, tensors_in

# Results that depend on the shape of what they are given, not on its numbers.
_SHAPE_ONLY = {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"}
_SHAPE_ONLY |= {"new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"}
# Steps that end in floating numbers; those that end in integers or booleans are known by that.
_STEPS = {"sign", "sgn", "round", "floor", "ceil", "trunc", "fix", "heaviside", "floor_divide", "bernoulli", "poisson"}
_STEPS |= {"binomial", "histc", "quantize_per_tensor", "quantize_per_channel"}
_STEPS |= {"fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"}
_SAY_NOTHING = {"is_same_size", "sym_size", "sym_stride", "sym_numel", "is_pinned", "_is_zerotensor"}
_SHARING = {getattr(Tensor, n) for n in ("numpy", "data_ptr", "storage", "untyped_storage", "__array__", "__dlpack__")}
_READING = {getattr(Tensor, name) for name in ("tolist", "__deepcopy__", "__reduce_ex__")}


class Given(NamedTuple):
    """What an operation reads: the addresses of its memory, its marks, and those that came through a step."""

    keys: set[int]
    marks: int
    steps: int


class Flow:
    """The marks of one run.

    open   the marks of the calls that are running: everything that is computed gets them
    read   marks of what left torch: numbers that Python or NumPy looked at, or that decided on a shape
    lost   why marks could not be followed everywhere, or None
    peaks  by mark, the most bytes that were held at once by what was computed while the mark was open; with ``weigh``

        flow = Flow()
        with flow.following():
            flow.mark(weight, 1)
            loss = model(x).sum()
        flow.of([loss])  # (marks, marks that came through a step: a comparison, rounding, an index)
    """

    def __init__(self, weigh: bool = False) -> None:
        self._weighs = weigh
        self.open, self.read, self._looked = 0, 0, 0
        self.peaks: dict[int, int] = {}
        self.lost: str | None = None
        self._marks: dict[int, tuple[int, int]] = {}
        self._memory: dict[int, StorageWeakRef] = {}  # keeps an address from being used again
        self._made: dict[int, tuple[int, int]] = {}  # what was computed in calls: its bytes, and the calls' marks

    @contextmanager
    def following(self) -> Iterator[None]:
        with Reads(lambda tensors, _: self.look(self.of(tensors)[0])), Operations(self.note):
            yield

    def mark(self, tensor: Tensor, marks: int, steps: int = 0) -> None:
        """Add marks to a tensor's memory; ``steps``: those of them that came through a step."""
        for key in self.keys(tensor):
            before = self._marks.get(key, (0, 0))
            self._marks[key] = before[0] | marks, before[1] | steps

    def of(self, tensors: Iterable[Tensor]) -> tuple[int, int]:
        """The marks of the tensors together, and those that came through a step."""
        marks = steps = 0
        for tensor in tensors:
            for key in self.keys(tensor):
                here = self._marks.get(key, (0, 0))
                marks, steps = marks | here[0], steps | here[1]
        return marks, steps

    def look(self, marks: int) -> None:
        """Something with these marks is read. What is read inside a call is that call's own affair at first."""
        self.read |= marks & ~self.open
        self._looked |= marks & self.open

    def give_numbers(self, marks: int) -> None:
        """A call with these marks returns numbers that are no tensors: what it read inside may be in them."""
        self.read |= marks & self._looked

    def alive(self) -> dict[int, int]:
        """Memory that something still holds, and its marks."""
        return {k: marks for k, (marks, _) in self._marks.items() if marks and not self._memory[k].expired()}

    def keys(self, tensor: Tensor) -> list[int]:
        """The addresses of a tensor's memory."""
        keys = []
        with suppress(Exception), torch._C.DisableTorchFunction():  # some kinds of tensors have no memory of their own
            keys = [self._key(part) for part in dense_parts(tensor)]
        if not keys:
            self.lost = self.lost or f"a {tensor.layout} tensor cannot be followed"
        return keys

    def _key(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._memory:
            self._memory[key] = StorageWeakRef(storage)
        return key

    def note(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Run an operation and pass the marks on."""
        given = self.given(args, kwargs)
        out = func(*args, **kwargs)
        self.pass_on(given, func, args, kwargs, out)
        return out

    def given(self, args: tuple, kwargs: dict) -> Given:
        """What an operation is about to read."""
        tensors = tensors_in((args, kwargs))
        return Given({key for tensor in tensors for key in self.keys(tensor)}, *self.of(tensors))

    def pass_on(
        self, given: Given, func: Any, args: tuple, kwargs: dict, out: Any, more: int = 0
    ) -> tuple[list[int], list[int]]:
        """Pass the marks of what an operation read, and ``more``, on to the memory that it made and that it changed;
        returns the addresses of both."""
        made: list[int] = []
        if not isinstance(func, torch._ops.OpOverload):
            self.lost = self.lost or f"{func} cannot be followed"
            return made, []
        name, changed = base_name(func), written_arguments(func, args, kwargs)
        marks, steps = (more, 0) if is_shape_only(func) else (given.marks | more, given.steps)
        if tells_numbers(func, out):
            self.look(self.of(_deciding(name, args, kwargs))[0])
        a_step = name in _STEPS or kwargs.get("rounding_mode") is not None
        for tensor in (*tensors_in(out), *changed):
            through, keys = marks if a_step or not has_scale(tensor) else steps, self.keys(tensor)
            new = given.keys.isdisjoint(keys)
            if new or any(tensor is one for one in changed):
                self.mark(tensor, marks | self.open, through & ~self.open)
            if new and self.open and self._weighs:
                self._made.update(dict.fromkeys(keys, (tensor.numel() * tensor.element_size(), self.open)))
            made += keys if new else []
        if self.open and self._weighs:
            self._weigh()
        return made, [key for tensor in changed for key in self.keys(tensor)]

    def _weigh(self) -> None:
        alive = [made for key, made in self._made.items() if not self._memory[key].expired()]
        for mark in (1 << bit for bit in range(self.open.bit_length()) if self.open >> bit & 1):
            held = sum(size for size, marks in alive if marks & mark)
            self.peaks[mark] = max(self.peaks.get(mark, 0), held)


class Operations(TorchDispatchMode):
    """Hands every operator that runs inside to ``note(func, args, kwargs)``, which runs it."""

    def __init__(self, note: Callable[[Any, tuple, dict], Any]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self.note(func, args, kwargs or {})


class Reads(TorchFunctionMode):
    """Sees what leaves torch without an operation of its own, ``tensor.numpy()`` and its like: calls ``look(tensors,
    shared)``, shared if the memory is handed out and so may also be written to unseen."""

    def __init__(self, look: Callable[[list[Tensor], bool], None]) -> None:
        super().__init__()
        self.look = look

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in _SHARING or func in _READING:
            with torch._C.DisableTorchFunction():
                self.look(tensors_in(args), func in _SHARING)
        return func(*args, **(kwargs or {}))


@contextmanager
def around_calls(modules: Mapping[str, nn.Module], around: Callable[[str, int, partial], Any]) -> Iterator[None]:
    """Inside the block every ``forward`` of the modules, called as a module or by name, runs as ``around(name, number
    of the call, run)``: ``run()`` runs it (a ``functools.partial`` with the arguments), and what ``around`` returns
    takes the place of its output."""
    counts: Counter[str] = Counter()

    def watched(name: str, forward: Callable) -> Callable:
        @wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return around(name, counts[name] - 1, partial(forward, *args, **kwargs))

        return call

    own = [(name, module, vars(module).get("forward")) for name, module in modules.items()]
    try:
        for name, module, _ in own:
            vars(module)["forward"] = watched(name, module.forward)
        yield
    finally:
        for _, module, before in own:
            vars(module).pop("forward", None)
            if before is not None:
                vars(module)["forward"] = before


def base_name(func: Any) -> str:
    """An operator's name, of the one in place too: "add" of ``aten::add_``."""
    return func._schema.name.partition("::")[2].rstrip("_")


def is_shape_only(func: Any) -> bool:
    """Whether results depend on the shape of the arguments alone, not on their numbers."""
    return base_name(func) in _SHAPE_ONLY


def tells_numbers(func: Any, out: Any) -> bool:
    """Whether Python learns something of the numbers: one of them, or a shape that depends on them."""
    return (holds_numbers(out) and base_name(func) not in _SAY_NOTHING) or torch.Tag.dynamic_output_shape in func.tags


def written_arguments(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that an operator changes in place, by its schema."""
    changed = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed += tensors_in(args[number] if number < len(args) else kwargs.get(argument.name))
    return changed


def _deciding(name: str, args: tuple, kwargs: dict) -> list[Tensor]:
    """What a result's shape depends on: of indexing, the masks."""
    if name not in ("index", "index_put", "_index_put_impl", "masked_select"):
        return tensors_in((args, kwargs))
    return [tensor for tensor in tensors_in(args[1]) if tensor.dtype in (torch.bool, torch.uint8)]
