"""Running a loss again and again from the same state, with something replaced: what ``find_dead_work`` decides by."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.flow import Flow, around_calls
from mmrec_helpers.profiling.nested_tensors import (
    Replace,
    copied,
    has_scale,
    holds_numbers,
    tensors_in,
    with_tensors,
)
from mmrec_helpers.profiling.state import State

Loss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a submodule in a run: its name (as in named_modules) and its number among that module's calls."""

    name: str
    index: int

    def __str__(self) -> str:
        return f"{self.name}#{self.index}"


@dataclass
class Seen:
    """What was seen of one call while it ran: the kinds of its output's tensors, and whether they are all zero."""

    parent: Call | None
    floats: int = 0
    others: int = 0
    all_zero: bool = True


@dataclass
class Outcome:
    """Loss and gradients of one pass, the calls in it, the modules that ran again in the backward pass; where the marks
    arrived, if the pass was followed."""

    loss: Tensor
    grads: dict[str, Tensor | None] = field(default_factory=dict)
    calls: dict[Call, Seen] = field(default_factory=dict)
    called_in_backward: set[str] = field(default_factory=set)
    marks: Marks | None = None
    complete: bool = True  # not stopped before its gradients


class Marks(NamedTuple):
    """Where the marks of a run arrived: anywhere (in a pass's loss, its gradients, what Python read), of these those
    that came through a step, and those that Python read. Of marks in gradients alone those count that are not in the
    loss: the gradients of continuous functions have steps too (relu's mask), which say nothing of their own."""

    anywhere: int
    through_steps: int
    read: int


class Experiment:
    """A model with its loss, and the state that every run starts from (``State``: without gradients).

    model  any module; lazy parameters must have their shape (InputError). Hooks that run after a gradient is
           accumulated (an optimizer in the backward pass) are left out of every run
    loss   called with a copy of a batch; returns a scalar tensor, or a tuple of them that is summed

        experiment = Experiment(model, loss)
        with experiment.restored():
            experiment.run(batch, replaced={Call("layer", 0): zeros})[0].grads
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            raise InputError(f"model is {type(model).__name__}: expected the module inside it, model.module")
        self.model, self._loss = model, loss
        scripted = [name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        inside = tuple(f"{name}." if name else "" for name in scripted)
        self.modules = {n: m for n, m in model.named_modules() if n and not n.startswith(inside)}
        self.parameters = dict(model.named_parameters())
        for name, tensor in (*self.parameters.items(), *model.named_buffers()):
            if nn.parameter.is_lazy(tensor):
                raise InputError(f"{name} has no shape yet: run the model once before looking for dead work")
        hooks = {n: getattr(p, "_post_accumulate_grad_hooks", None) for n, p in self.parameters.items()}
        self.hooked = {name: held for name, held in hooks.items() if held}
        self._hooks = {name: dict(held) for name, held in self.hooked.items()}
        self.state = State(model, loss)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put everything back, gradients included, however the block ends."""
        try:
            for held in self.hooked.values():
                held.clear()
            yield
        finally:
            self.state.restore()
            for name, held in self.hooked.items():
                held.update(self._hooks[name])

    def run(
        self,
        batch: Any,
        *,
        passes: int = 1,
        watch: Watch | None = None,
        values: Mapping[str, Replace] | None = None,
        replaced: Mapping[Call, Replace] | None = None,
        expected_loss: Callable[[Tensor], bool] | None = None,
        after: Callable[[Outcome], bool] | None = None,
    ) -> list[Outcome]:
        """One run of some passes in a row, each with the loss of a copy of the batch and all parameters' gradients.

        watch          what looks at the first pass's calls; by default one that only replaces
        values         parameters that hold other values in this run, made from their own
        replaced       calls of the first pass whose output is replaced once they have run
        expected_loss  a run goes on to gradients and further passes only if this says that the loss is the one expected
        after          called with each outcome, the gradients still in place; a run ends where it says so
        """
        self.state.restore(gradients=False)
        outcomes = []
        with torch.no_grad():
            for name, other in (values or {}).items():
                self.parameters[name].data.copy_(other(self.parameters[name].detach()))
        for number in range(passes):
            looking = watch or Watch(replaced)
            later = Watch(flow=looking.flow), None
            outcome = self._pass(batch, *(later if number else (looking, expected_loss)))
            outcomes.append(outcome)
            if not outcome.complete or (after is not None and after(outcome)):
                break
        return outcomes

    def _pass(self, batch: Any, watch: Watch, expected_loss: Callable[[Tensor], bool] | None) -> Outcome:
        for parameter in self.parameters.values():
            parameter.grad = None
        batch = copied(batch)
        with watch.on(self.modules):
            loss = self._scalar(self._loss(batch))
        outcome = Outcome(loss.detach().clone(), calls=watch.calls, called_in_backward=watch.called_in_backward)
        if expected_loss is not None and not expected_loss(outcome.loss):
            outcome.complete = False
            return outcome
        watch.in_backward = True
        if loss.requires_grad:
            with watch.on(self.modules):
                loss.backward()
        trained = {name: parameter.grad for name, parameter in self.parameters.items() if parameter.requires_grad}
        outcome.grads = {name: None if grad is None else grad.detach().clone() for name, grad in trained.items()}
        if watch.flow is not None:
            grads = watch.flow.of(grad for grad in trained.values() if grad is not None)
            own, read = watch.flow.of([loss]), watch.flow.read
            outcome.marks = Marks(own[0] | grads[0] | read, own[1] | (grads[1] & ~own[0]) | read, read)
            watch.flow.read = 0
        return outcome

    def step(self, batch: Any) -> None:
        """A step as it is, from the state that the last one left: its loss and its gradients."""
        self.model.zero_grad(set_to_none=True)
        loss = self._scalar(self._loss(copied(batch)))
        if loss.requires_grad:
            loss.backward()

    def left_out(self, watch: Watch, calls: Collection[Call]) -> AbstractContextManager:
        """Inside the block calls that ``watch`` has recorded are not run in a step: they return what they did then."""
        skipped: Counter[str] = Counter()  # calls that do not happen since they are inside of one that is left out

        def around(name: str, index: int, run: partial) -> Any:
            call = Call(name, index + skipped[name])
            if call not in calls:
                return run()
            skipped.update(watch.inside(call))
            return watch.outputs[call]

        return around_calls({call.name: self.modules[call.name] for call in calls}, around)

    def _scalar(self, loss: Any) -> Tensor:
        if isinstance(loss, tuple) and loss and all(isinstance(term, Tensor) for term in loss):
            loss = sum(loss)  # a loss in terms, as MMRec's trainer takes it
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"loss(batch) is {given}: expected a scalar tensor")
        return loss


class Watch:
    """Stands around all calls of a model's submodules in one pass: counts them, notes what they do, replaces outputs.

    replaced   calls whose output is replaced, tensor by tensor, once they have run; hooks of the user see the new one
    flow       follows the pass, if given
    marks      the marks of a call, for ``flow``
    record     calls whose output is kept, in ``outputs``
    state      if given: ``changed`` holds the marks of calls that changed something in it that is no tensor
    """

    def __init__(
        self,
        replaced: Mapping[Call, Replace] | None = None,
        flow: Flow | None = None,
        marks: Callable[[Call], int] = lambda call: 0,
        record: Collection[Call] = (),
        state: State | None = None,
    ) -> None:
        self.replaced, self.flow, self.marks, self.record, self.state = replaced or {}, flow, marks, record, state
        self.calls: dict[Call, Seen] = {}
        self.outputs: dict[Call, Any] = {}
        self.called_in_backward: set[str] = set()
        self.in_backward, self.changed = False, 0
        self._modules: Mapping[str, nn.Module] = {}
        self._count: Counter[str] = Counter()
        self._open: list[tuple[Call, int, dict, Any]] = []
        self._early: list[Call] = []  # begun by a hook that runs before the call

    def inside(self, call: Call) -> list[str]:
        """The names of the calls that ran inside a call."""
        found, names = {call}, []
        for one, seen in self.calls.items():  # in order: what is around a call comes before it
            if seen.parent in found:
                found.add(one)
                names.append(one.name)
        return names

    @contextmanager
    def on(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        self._modules = modules
        with ExitStack() as stack:
            for name, module in modules.items():
                if module._forward_pre_hooks:  # what hooks of the user do before a call belongs to it
                    begin = partial(self._begin, name, early=True)
                    stack.callback(nn.Module.register_forward_pre_hook(module, begin, prepend=True).remove)
            stack.enter_context(around_calls(modules, self._around))
            stack.enter_context(self.flow.following() if self.flow is not None else nullcontext())
            yield

    def _begin(self, name: str, *_: Any, early: bool = False) -> None:
        if self.in_backward:
            return
        call = Call(name, self._count[name])
        self._count[name] += 1
        self.calls[call] = Seen(parent=self._open[-1][0] if self._open else None)
        marks = self.marks(call)
        attributes = _attributes(self._modules[name]) if call in self.replaced else {}
        self._open.append((call, marks, attributes, self.state.in_python() if self.state and marks else None))
        self._early += [call] if early else []
        self._say_open()

    def _around(self, name: str, index: int, run: partial) -> Any:
        if self.in_backward:
            self.called_in_backward.add(name)
            output = run()
            for tensor in tensors_in(output):
                self._mark(tensor, [call for call in self.calls if call.name == name])
            return output
        if self._early and self._early[-1].name == name:
            self._early.pop()
        else:
            self._begin(name)
        depth = len(self._open) - 1
        call, marks, attributes, before = self._open[depth]
        try:
            output = run()
        finally:
            del self._open[depth:]
            self._say_open()
        return self._end(call, marks, attributes, before, output)

    def _end(self, call: Call, marks: int, attributes: dict, before: Any, output: Any) -> Any:
        """What takes the place of a call's output."""
        tensors = tensors_in(output)
        if self.state and before is not None and self.state.in_python() != before:
            self.changed |= marks
        if self.flow is None:
            _look(self.calls[call], tensors)
        elif holds_numbers(output):
            self.flow.give_numbers(self.marks(call))
        if call in self.record:
            self.outputs[call] = with_tensors(output, Tensor.detach)
        if call in self.replaced:
            _replace_attributes(self._modules[call.name], attributes, self.replaced[call])
            return with_tensors(output, self.replaced[call])
        for tensor in tensors:
            self._mark(tensor, [call])
        return output

    def _mark(self, tensor: Tensor, calls: list[Call]) -> None:
        marks = 0
        for call in calls:
            marks |= self.marks(call)
        if self.flow is not None:
            self.flow.mark(tensor, marks, 0 if has_scale(tensor) else marks)

    def _say_open(self) -> None:
        if self.flow is not None:
            self.flow.open = 0
            for _, marks, *_ in self._open:
                self.flow.open |= marks


def _look(seen: Seen, tensors: list[Tensor]) -> None:
    seen.floats = sum(map(has_scale, tensors))
    seen.others = len(tensors) - seen.floats
    seen.all_zero = all(t.layout == torch.strided and not t.detach().any() for t in tensors if has_scale(t))


def _attributes(module: nn.Module) -> dict[tuple[nn.Module, str], int]:
    """Tensors that the module and those inside it hold as plain attributes."""
    held = [(part, key, value) for part in module.modules() for key, value in vars(part).items()]
    return {(part, key): id(value) for part, key, value in held if isinstance(value, Tensor)}


def _replace_attributes(module: nn.Module, before: dict, replace: Replace) -> None:
    """A result may leave a call through an attribute (attention weights, say): replace that as well."""
    for (part, key), identity in _attributes(module).items():
        if before.get((part, key)) != identity:
            setattr(part, key, replace(getattr(part, key)))


@contextmanager
def repeatable() -> Iterator[None]:
    """Ask torch for kernels that sum in a fixed order, which atomics on CUDA and on several CPU threads do not.

    Where torch has no such kernel it goes on without: ``with repeatable(): loss.backward()``.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    fills = deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a pass over memory
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            deterministic.fill_uninitialized_memory = fills
