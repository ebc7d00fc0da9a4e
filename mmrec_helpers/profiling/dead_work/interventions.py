"""Running a loss again and again from the same state, with something replaced: what ``find_dead_work`` decides by."""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.dead_work.nested_tensors import Replace, copied, same, tensors_in, with_tensors

Loss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a submodule in a run: its name (as in named_modules) and its number among that module's calls."""

    name: str
    index: int


@dataclass
class Seen:
    """What was seen of one call while it ran."""

    parent: Call | None
    tensors: int = 0  # in its output
    all_zero: bool = True  # every number in its output
    in_place: bool = False  # it changed a tensor that it was given
    changes_state: bool = False  # it changed a parameter or buffer of its module
    nodes: tuple[int, int] = (0, 0)  # range of the numbers of the autograd nodes made in it


@dataclass
class Outcome:
    """Loss and gradients of one run. ``leaked``: a replaced call still reached the loss by a way around its output."""

    loss: Tensor
    grads: dict[str, Tensor | None] = field(default_factory=dict)
    calls: dict[Call, Seen] = field(default_factory=dict)
    called_in_backward: set[str] = field(default_factory=set)
    leaked: bool = False


class Experiment:
    """A model with its loss, and the state that every run starts from.

    A run starts with the parameters, buffers and attributes of all modules and the random states (Python, NumPy, torch
    on all devices, generators that modules hold) of the moment this was made, without gradients, and with a copy of
    the batch.

    model  any module; lazy parameters must have their shape (InputError)
    loss   called with a batch; returns a scalar tensor, or a tuple of them that is summed

        experiment = Experiment(model, loss)
        with experiment.restored():
            experiment.run(batch, replaced={Call("layer", 0): zeros}).grads
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self._loss = model, loss
        self.modules = {name: module for name, module in model.named_modules() if name}
        self.parameters = dict(model.named_parameters())
        self._tensors = {**self.parameters, **dict(model.named_buffers())}
        for name, tensor in self._tensors.items():
            if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
                raise InputError(f"{name} has no shape yet: run the model once before looking for dead work")
        self._kept = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._grads = {name: parameter.grad for name, parameter in self.parameters.items()}
        self._attributes = [_Attributes(module) for module in model.modules()]
        self._random = [(restore, copy.deepcopy(read())) for read, restore in _random_states(model)]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put everything back, gradients included, however the block ends."""
        try:
            yield
        finally:
            self._rewind()
            for name, parameter in self.parameters.items():
                parameter.grad = self._grads[name]

    def run(
        self,
        batch: Any,
        replaced: dict[Call, Replace] | None = None,
        values: dict[str, Tensor] | None = None,
        *,
        passes: int = 1,
        undo_state: Call | None = None,
        marks: dict[Call, str] | None = None,
        expected_loss: Callable[[Tensor], bool] | None = None,
    ) -> Outcome:
        """One run: the loss of a copy of the batch, and the gradients of all parameters that require one.

        replaced       calls whose output is replaced, tensor by tensor, once they have run
        values         parameters that hold other values in this run
        passes         how often the loss and its gradients are computed in a row; the outcome is the last one's
        undo_state     a call after which its module's parameters and buffers are set back
        marks          calls to run inside a record_function region of this name
        expected_loss  gradients are computed only if this says that the loss is the one expected
        """
        self._rewind()
        with ExitStack() as stack:
            for name, value in (values or {}).items():
                kept = self.parameters[name].data
                self.parameters[name].data = value
                stack.callback(setattr, self.parameters[name], "data", kept)
            for _ in range(passes):
                watch = _Watch(self.modules, replaced or {}, undo_state, marks or {})
                with watch:
                    outcome = self._once(batch, watch, expected_loss if passes == 1 else None)
        return outcome

    def _once(self, batch: Any, watch: _Watch, expected_loss: Callable[[Tensor], bool] | None) -> Outcome:
        for parameter in self.parameters.values():
            parameter.grad = None
        loss = self._scalar(self._loss(copied(batch)))
        outcome = Outcome(loss.detach().clone(), calls=watch.calls, called_in_backward=watch.called_in_backward)
        outcome.leaked = any(_reaches(loss, watch.calls[call].nodes) for call in watch.replaced if call in watch.calls)
        if expected_loss is not None and not expected_loss(outcome.loss):
            return outcome
        watch.in_backward = True
        if loss.requires_grad:
            loss.backward()
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                outcome.grads[name] = None if parameter.grad is None else parameter.grad.detach().clone()
        return outcome

    def _scalar(self, loss: Any) -> Tensor:
        if isinstance(loss, tuple) and loss and all(isinstance(term, Tensor) for term in loss):
            loss = sum(loss)  # a loss in terms, as MMRec's trainer takes it
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"loss(batch) is {given}: expected a scalar tensor")
        return loss

    def _rewind(self) -> None:
        for attributes in self._attributes:
            attributes.restore()
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                kept = self._kept[name]
                if tensor.layout == torch.strided and not same(tensor, kept):
                    tensor.data.copy_(kept)
        for restore, state in self._random:
            restore(state)


class _Attributes:
    """What a module holds: which buffers, and its plain attributes (tensors, lists and mappings with their content)."""

    _INTERNAL = frozenset(vars(nn.Module())) - {"training"}

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._buffers = dict(module._buffers)
        self._values = {key: value for key, value in vars(module).items() if key not in self._INTERNAL}
        self._contents = {key: copy.copy(v) for key, v in self._values.items() if isinstance(v, (list, dict))}
        self._tensors = {key: v.detach().clone() for key, v in self._values.items() if isinstance(v, Tensor)}

    def restore(self) -> None:
        self._module._buffers.update(self._buffers)
        held = vars(self._module)
        for key in [key for key in held if key not in self._INTERNAL and key not in self._values]:
            del held[key]
        held.update(self._values)
        for key, content in self._contents.items():
            value = self._values[key]
            value.clear()
            value.update(content) if isinstance(value, dict) else value.extend(content)
        for key, kept in self._tensors.items():
            if self._values[key].layout == torch.strided and not same(self._values[key], kept):
                self._values[key].data.copy_(kept)


@dataclass(frozen=True)
class _Opened:
    """A call that has begun: the tensors it was given with their versions, and its module's state before it."""

    call: Call
    given: list[tuple[Tensor, int]]
    versions: dict[str, int]
    attributes: dict[tuple[nn.Module, str], int]
    state: dict[Tensor, Tensor]
    region: Any


class _Watch:
    """Hooks on all submodules of a model for one pass: counts calls, notes what they do, replaces outputs."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        replaced: dict[Call, Replace],
        undo_state: Call | None,
        marks: dict[Call, str],
    ) -> None:
        self.modules, self.replaced, self.undo_state, self.marks = modules, replaced, undo_state, marks
        self.calls: dict[Call, Seen] = {}
        self.called_in_backward: set[str] = set()
        self.in_backward = False
        self._count: Counter[str] = Counter()
        self._open: list[_Opened] = []
        self._stack = ExitStack()

    def __enter__(self) -> _Watch:
        for name, module in self.modules.items():
            before = module.register_forward_pre_hook(self._before(name), with_kwargs=True, prepend=True)
            after = module.register_forward_hook(self._after(name), with_kwargs=True)
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def _before(self, name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self.in_backward:
                self.called_in_backward.add(name)
                return
            call = Call(name, self._count[name])
            self._count[name] += 1
            self.calls[call] = Seen(parent=self._open[-1].call if self._open else None, nodes=(_node_number(), 0))
            opened = _Opened(
                call=call,
                given=[(tensor, tensor._version) for tensor in tensors_in((args, kwargs))],
                versions=_versions(module),
                attributes=_attributes(module),
                state=_state_of(module) if call == self.undo_state else {},
                region=record_function(self.marks[call]) if call in self.marks else nullcontext(),
            )
            opened.region.__enter__()
            self._open.append(opened)

        return hook

    def _after(self, name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            if self.in_backward:
                return None
            while self._open[-1].call.name != name:  # calls inside that ended in an exception which the model caught
                self._open.pop().region.__exit__(None, None, None)
            opened = self._open.pop()
            opened.region.__exit__(None, None, None)
            call, seen = opened.call, self.calls[opened.call]
            seen.nodes = (seen.nodes[0], _node_number())
            seen.in_place = any(tensor._version != version for tensor, version in opened.given)
            seen.changes_state = _versions(module) != opened.versions
            tensors = tensors_in(output)
            seen.tensors = len(tensors)
            seen.all_zero = all(t.layout == torch.strided and not t.detach().any() for t in tensors)
            for tensor, value in opened.state.items():
                tensor.data.copy_(value)
            if call not in self.replaced:
                return None
            replace = self.replaced[call]
            _replace_new_attributes(module, opened.attributes, replace)
            return with_tensors(output, replace)

        return hook


def _reaches(loss: Tensor, nodes: tuple[int, int]) -> bool:
    """Whether the loss depends on an autograd node whose number lies in the range."""
    if loss.grad_fn is None or nodes[0] == nodes[1]:
        return False
    to_visit, visited = [loss.grad_fn], set()
    while to_visit:
        node = to_visit.pop()
        if node in visited:
            continue
        visited.add(node)
        if nodes[0] < node._sequence_nr() < nodes[1]:
            return True
        to_visit.extend(parent for parent, _ in node.next_functions if parent is not None)
    return False


def _node_number() -> int:
    """The number that autograd gives a node made now (they ascend within a thread)."""
    with torch.enable_grad():
        return torch.zeros((), requires_grad=True).clone().grad_fn._sequence_nr()


def _versions(module: nn.Module) -> dict[str, int]:
    return {name: t._version for name, t in (*module.named_parameters(), *module.named_buffers())}


def _state_of(module: nn.Module) -> dict[Tensor, Tensor]:
    return {t: t.detach().clone() for t in (*module.parameters(), *module.buffers())}


def _attributes(module: nn.Module) -> dict[tuple[nn.Module, str], int]:
    """Tensors that the module and those inside it hold as plain attributes."""
    found = {}
    for part in module.modules():
        found.update({(part, key): id(value) for key, value in vars(part).items() if isinstance(value, Tensor)})
    return found


def _replace_new_attributes(module: nn.Module, before: dict, replace: Replace) -> None:
    """A result may leave a call through an attribute (attention weights, say): replace that as well."""
    for (part, key), identity in _attributes(module).items():
        if before.get((part, key)) != identity:
            setattr(part, key, replace(getattr(part, key)))


def _random_states(model: nn.Module) -> Iterator[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """How to read and how to restore each random state: Python's, NumPy's, torch's, those of what modules hold."""
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    yield torch.get_rng_state, torch.set_rng_state
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all
    for held in (value for module in model.modules() for value in vars(module).values()):
        if isinstance(held, np.random.Generator):
            bits = held.bit_generator
            yield partial(getattr, bits, "state"), partial(setattr, bits, "state")
        elif isinstance(held, random.Random):
            yield held.getstate, held.setstate
        elif isinstance(held, (torch.Generator, np.random.RandomState)):
            yield held.get_state, held.set_state


@contextmanager
def repeatable() -> Iterator[None]:
    """Ask torch for kernels that sum in a fixed order, which atomics on CUDA and on several CPU threads do not.

    Where torch has no such kernel it goes on without: ``with repeatable(): loss.backward()``.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a pass over memory
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.utils.deterministic.fill_uninitialized_memory = fills
