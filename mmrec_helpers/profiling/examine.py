"""``examine``: what a training step of any torch module costs, line by line, and which of it is waste."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, check_at_least, counted
from mmrec_helpers.profiling.dataflow import RecordedStep, Recorder
from mmrec_helpers.profiling.dead_work import NOT_TRIED, Finding, find_dead_work, with_costs
from mmrec_helpers.profiling.dead_work.comparison import apart
from mmrec_helpers.profiling.dead_work.costs import steps_without
from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment
from mmrec_helpers.profiling.memory import peak_bytes
from mmrec_helpers.profiling.nested_tensors import copied
from mmrec_helpers.profiling.state import preserved
from mmrec_helpers.profiling.timing import gc_paused, measure, time_once_ms
from mmrec_helpers.profiling.waste import (
    EQUAL,
    PROVED,
    Changed,
    LeavingOut,
    Waste,
    dead_work,
    lost_gradients,
    lost_tensors,
    only_equal,
    plan_of,
    removable,
    work_by_line,
)
from mmrec_helpers.progress import duration

DEAD_SECONDS = 300.0
_LEAST_PASSES = 60  # in forward passes, what the search takes on any model
_BATCHES = 2  # that the step is recorded on, and dead work looked for
_COPIES = ("_to_copy", "copy_", "_local_scalar_dense", "lift_fresh")
_SMALLEST_SHARE = 0.002  # of a recorded step: smaller lines are not listed
_MOST_LINES = 20  # of proved waste
_ROUNDING_EPS = 8
_NOISE = 1e-3  # by how much parameters are moved between the recorded steps, of their largest entry


@dataclass(frozen=True)
class Examination:
    """What ``examine`` found. Times are milliseconds per step; ``share`` is of the recorded step's time.

    step_ms      median of a step without any instrument: forward, backward and Adam, which ``phases`` has apart
    phases       phase, ms, q1_ms, q3_ms: batch (drawing one), forward, backward, optimizer
    epoch_s      step and batch times the steps of an epoch; None where the number of batches is not known
    peak_bytes   most memory that a step needs above what is held before it
    modules      module, phase, ms (of operators), host_ms (between them), share
    operators    operator, place, source, phase, calls, ms, share, module (all in which the line runs): by source line,
                 the most expensive first
    host         place, source, calls, ms, share, what: time outside torch's operators before a line's operators, beyond
                 what every operator has; and copies (between types or devices, lists and numbers)
    waste        one row per piece (see ``Waste``)
    equal        whether loss and gradients with all constant and repeated work left out were the same up to rounding (8
                 epsilons of the largest entry); None if there was none
    all_saving_ms  median saving per step with all of that left out at once, with its quartiles; None if not measured
    notes        what could not be done
    """

    device: str
    step_ms: float
    epoch_s: float | None
    peak_bytes: int
    phases: pd.DataFrame
    modules: pd.DataFrame
    operators: pd.DataFrame
    host: pd.DataFrame
    waste: pd.DataFrame
    equal: bool | None
    all_saving_ms: tuple[float, float, float] | None
    notes: tuple[str, ...]

    def to_dict(self, rows: int = 40) -> dict[str, Any]:
        """Plain data for a record: the tables with at most ``rows`` rows each (waste: all)."""
        content = dict(vars(self))
        for name, value in content.items():
            if isinstance(value, pd.DataFrame):
                content[name] = (value if name == "waste" else value.head(rows)).to_dict("records")
        return content


def examine(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Iterable[Any],
    *,
    repeats: int = 5,
    dead_seconds: float = DEAD_SECONDS,
    most_savings: int = 6,
    steps_per_epoch: int | None = None,
    max_seconds: float | None = 60.0,
) -> Examination:
    """What a training step of any module costs and which of it is waste. The model is left as it was found.

    model, batches  in the mode to examine; batches are copied before use, three at least are drawn (one may be used
                    again). ``len(batches)``, if it has one, or ``steps_per_epoch`` says how many an epoch has
    loss            called with a batch; a scalar, or several in a tuple, which are added
    repeats         interleaved rounds of each timing; max_seconds ends those of the savings early, not before three
    dead_seconds    of each of two searches for dead work (``find_dead_work``), which takes a few steps for every module
                    call: one that would take longer is given up, which ``notes`` says. 0: none is looked for
    most_savings    of how many of the most expensive pieces the saving is measured, by leaving them out

    The step is timed plainly, with Adam at learning rate 0. Then two steps are recorded, the second with another batch
    and parameters moved a little, operator by operator with all that each reads (see ``dataflow``): equal work in both
    that no trainable parameter, batch or random number reaches is constant; work with the same inputs as before in one
    step is repeated. What depends on a Python list or a NumPy array made in the step is never called constant. Raises
    InputError for no batches, or a loss that is no finite scalar.

        examine(model, model.loss, batches).waste[["kind", "place", "ms", "saving_ms", "advice"]]
    """
    check_at_least("examine", 1, repeats=repeats)
    examined = _Examined(model, loss, batches)
    if steps_per_epoch is None and isinstance(batches, Sized):
        steps_per_epoch = len(batches)
    notes: list[str] = []
    with _garbage_aside(), preserved(model, loss), examined.checked():
        first_findings = _dead_findings(examined, notes, dead_seconds)  # before anything has run
        with gc_paused():
            phases = examined.phases(repeats)
        model.zero_grad(set_to_none=True)
        peak = peak_bytes(lambda: examined.step(0), examined.device)
        before, step = examined.recorded()
        lost = lost_gradients(model, examined.lost)
        found = removable(step)
        works = work_by_line(step, found, PROVED)
        total = sum(o.ms + o.host_ms for o in step.operations)
        listed = works[:_MOST_LINES]
        findings = _dead_findings(examined, notes, dead_seconds) if not notes else []
        dead_pieces = dead_work(findings, step.calls, first_findings)
        savings = _Savings(examined, step, found, listed[:most_savings], dead_pieces)
        passes_ms = float(phases.loc[phases["phase"].isin(("forward", "backward")), "ms"].sum())
        savings.measure(passes_ms, repeats, max_seconds, notes)
        pieces = savings.pieces + [work for work, _ in listed[most_savings:]]
        equal = work_by_line(step, only_equal(step, before, found), EQUAL)
        seemingly = [work for work, _ in equal if (work.ms or 0) >= _SMALLEST_SHARE * total]
    step_ms = float(phases.loc[phases["phase"] != "batch", "ms"].sum())
    drawing_ms = float(phases.loc[phases["phase"] == "batch", "ms"].sum())
    every = sorted([*lost, *pieces, *seemingly], key=lambda piece: -(piece.saving_ms or piece.ms or 0))
    modules, operators, host = _tables(step, type(model).__name__)
    return Examination(
        device=str(examined.device),
        step_ms=step_ms,
        epoch_s=None if steps_per_epoch is None else (step_ms + drawing_ms) * steps_per_epoch / 1e3,
        peak_bytes=peak,
        phases=phases,
        modules=modules,
        operators=operators,
        host=host,
        waste=pd.DataFrame([asdict(piece) for piece in every], columns=list(Waste.__dataclass_fields__)),
        equal=savings.equal,
        all_saving_ms=savings.together,
        notes=tuple(notes),
    )


class _Examined:
    """A model with its loss and some batches, and one step of it."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Any], batches: Iterable[Any]) -> None:
        self.model, self._loss = model, loss
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        source = iter(batches)
        self.drawn: list[Any] = []
        times = [time_once_ms(lambda: self.drawn.extend(islice(source, 1)), self.device) for _ in range(1 + _BATCHES)]
        self.batch_ms = times[: len(self.drawn)]
        if not self.drawn:
            raise InputError("examine: batches is empty: expected at least one")
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._adam = torch.optim.Adam(parameters, lr=0.0) if parameters else None

    def batch(self, number: int) -> Any:
        """A copy: some models change their batch in place."""
        return copied(self.drawn[number % len(self.drawn)])

    def loss(self, batch: Any) -> Tensor:
        losses: Any = self._loss(batch)
        total: Any = sum(losses) if isinstance(losses, (tuple, list)) else losses
        return total

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Check the loss; inside the block ``self.lost`` are the tensors that receive a gradient and are no parameters.
        They are put back after it."""
        batch = self.batch(0)
        with preserved(self.model):  # so that dead work is looked for in the state that was given
            begun = time.perf_counter()
            loss = self.loss(batch)
            self.loss_s = time.perf_counter() - begun
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"examine: the loss is {shown}: expected a tensor with one number")
        if loss.grad_fn is None:
            raise InputError("examine: the loss is computed from nothing that requires a gradient: nothing trains")
        self._one = torch.ones_like(loss)  # of the backward pass, so that no step makes one
        if not bool(loss.detach().isfinite()):
            raise InputError(f"examine: the loss is {float(loss.detach())}: expected a finite number")
        self.lost = lost_tensors(self.model, loss, batch)
        del loss
        with preserved(*self.lost):
            yield

    def step(self, number: int, around: Callable[[Any], Any] | None = None) -> Tensor:
        """One forward and backward pass; ``around`` may give a context for it."""
        self.model.zero_grad(set_to_none=True)
        batch = self.batch(number)
        with around(batch) if around else nullcontext():
            loss = self.loss(batch)
            loss.backward(self._one)
        return loss.detach()

    def phases(self, repeats: int) -> pd.DataFrame:
        """Plain steps, timed in three parts; the first, which warms up, is not counted."""
        times: dict[str, list[float]] = {"batch": self.batch_ms[1:] or self.batch_ms}
        given: list[Any] = []
        losses: list[Tensor] = []
        parts: dict[str, Callable[[], Any]] = {
            "forward": lambda: losses.append(self.loss(given.pop())),
            "backward": lambda: losses.pop().backward(),
            "optimizer": self._adam.step if self._adam else lambda: None,
        }
        for number in range(repeats + 1):
            self.model.zero_grad(set_to_none=True)
            given.append(self.batch(number))
            for name, part in parts.items():
                times.setdefault(name, []).append(time_once_ms(part, self.device))
        counted = {name: ms if name == "batch" else ms[1:] for name, ms in times.items()}
        rows = [(name, *np.percentile(ms, (50, 25, 75)).tolist()) for name, ms in counted.items()]
        return pd.DataFrame(rows, columns=["phase", "ms", "q1_ms", "q3_ms"])

    def recorded(self) -> tuple[RecordedStep, RecordedStep]:
        """Two recorded steps, the second with other parameters and another batch."""
        recorder = Recorder(self.model, self.device)
        with preserved(self.model):
            self.step(0, recorder.step)
            with torch.no_grad():
                for parameter in self.model.parameters():
                    if parameter.requires_grad and parameter.is_floating_point() and parameter.numel():
                        parameter.add_(torch.randn_like(parameter), alpha=_NOISE * float(parameter.abs().max()))
            self.step(1, recorder.step)
        first, step = recorder.steps
        if [o.name for o in first.operations] == [o.name for o in step.operations]:
            for operation, twin in zip(step.operations, first.operations):  # what the machine did besides counts less
                operation.ms, operation.host_ms = min(operation.ms, twin.ms), min(operation.host_ms, twin.host_ms)
        return first, step


class _Savings:
    """Pieces of waste with what a step takes less without them, measured in pairs."""

    def __init__(
        self,
        examined: _Examined,
        step: RecordedStep,
        found: Mapping[int, str],
        works: Sequence[tuple[Waste, list[int]]],
        dead: Sequence[tuple[Waste, list[Call]]],
    ) -> None:
        self.examined, self.step, self.found = examined, step, found
        self.pieces = [piece for piece, _ in (*works, *dead)]
        self._plans = [plan_of(step, indices, found) for _, indices in works]
        self._dead_calls = [set(calls) for _, calls in dead]
        self.equal: bool | None = None
        self.together: tuple[float, float, float] | None = None

    def measure(self, step_ms: float, repeats: int, max_seconds: float | None, notes: list[str]) -> None:
        """Time the step with all its work, without each piece, and without all of the proved work; the shares saved
        are stated of ``step_ms``."""
        every = plan_of(self.step, self.found, self.found)
        plans = {str(number): plan for number, plan in enumerate(self._plans)}
        if every:
            plans["all"] = every
        try:
            kept = self._kept(every)
            self.equal = self._is_equal(every, kept) if every else None
        except Changed as changed:
            notes.append(f"No saving was measured: the step does not call the same operators each time ({changed}).")
            return
        if self.equal is False:
            notes.append("Without the proved work the loss or a gradient is another: no saving is stated for it.")
            plans = {}
        functions = {"plain": self._runner({}, kept)}
        functions |= {name: self._runner(plan, kept) for name, plan in plans.items()}
        functions |= self._without_dead(len(self._plans))
        if len(functions) == 1:
            return
        limits: dict[str, Any] = {"repeats": max(repeats, 3), "warmup": 1, "max_seconds": max_seconds}
        timings = measure(functions, device=self.examined.device, **limits)

        def saving(name: str) -> tuple[float, float, float] | None:
            if name not in timings.ms:
                return None
            ratio = timings.ratio(name, "plain")
            return step_ms * (1 - ratio.median), step_ms * (1 - ratio.q3), step_ms * (1 - ratio.q1)

        self.pieces = [piece.with_saving(saving(str(number))) for number, piece in enumerate(self.pieces)]
        self.together = saving("all")

    def _kept(self, plan: Mapping[int, tuple[str, int]]) -> dict[int, Any]:
        """The constant results, from a step on another batch than the one that they are used on."""
        own = [position for position, (_, source) in plan.items() if source == position]
        mode = LeavingOut({}, {}, own)
        self.examined.step(0, lambda _: mode)
        return mode.results

    def _runner(self, plan: Mapping[int, tuple[str, int]], kept: dict[int, Any]) -> Callable[[], Any]:
        return lambda: self.examined.step(1, lambda _: LeavingOut(plan, kept))

    def _is_equal(self, plan: Mapping[int, tuple[str, int]], kept: dict[int, Any]) -> bool:
        results = []
        for chosen in ({}, plan):
            with preserved(self.examined.model):
                loss = self._runner(chosen, kept)()
                gradients = [p.grad for p in self.examined.model.parameters()]
            results.append([loss, *gradients])
        return all(_agree(own, other) for own, other in zip(*results))

    def _without_dead(self, first: int) -> dict[str, Callable[[], Any]]:
        """Steps in which dead calls do not run, and return what they did; those that fail so are left out."""
        groups = {str(number): calls for number, calls in enumerate(self._dead_calls, start=first) if calls}
        if not groups:
            return {}
        experiment = Experiment(self.examined.model, self.examined.loss)
        return steps_without(experiment, self.examined.batch(1), groups, self._runner({}, {}))


@contextmanager
def _garbage_aside() -> Iterator[None]:
    """What is there already is not gone through by each of the collections that timing asks for."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _agree(own: Tensor | None, other: Tensor | None) -> bool:
    """Equal, or apart by rounding: several threads do not add up in the same order each time."""
    kind = next((tensor.dtype for tensor in (own, other) if tensor is not None), torch.float32)
    return apart(own, other) <= _ROUNDING_EPS * torch.finfo(kind).eps


def _dead_findings(examined: _Examined, notes: list[str], seconds: float) -> list[Finding]:
    if not seconds:
        return []
    least = _LEAST_PASSES * examined.loss_s
    if least > seconds:
        said = f"the search would take {duration(least)} at least, {seconds:g} s are allowed"
        notes.append(f"Dead work was not looked for: {said}.")
        return []
    try:
        batches = [examined.batch(number) for number in range(_BATCHES)]
        findings = find_dead_work(examined.model, examined.loss, batches, costs=False, max_seconds=seconds)
    except Exception as error:  # it runs the model many times, in ways that not every model allows
        notes.append(f"Dead work was not looked for: {type(error).__name__}: {str(error).splitlines()[0]}")
        return []
    late = sum(finding.reason == NOT_TRIED for finding in findings)
    if late:
        said = f"{counted(late, 'module call')} could not be tried within {seconds:g} s; allow more time"
        notes.append(f"Dead work was not decided: {said}.")
        return []
    return with_costs(findings, {}, examined.model)


# --------------------------------------------------------------------------------------------------------- tables


def _tables(step: RecordedStep, root: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The step's time by module and phase, by source line and operator, and what the host does, by source line."""
    table = step.table()
    every = table.assign(module=table["module"].replace("", f"({root})"), whole=table["ms"] + table["host_ms"])
    forward = every[every["phase"] != "backward"]
    before = forward.assign(ms=forward["host_ms"], what="Python and conversions before its operators")
    copies = forward[forward["operator"].isin(_COPIES)].assign(what=lambda table: table["operator"])

    def summed(table: pd.DataFrame, keys: list[str], by: str = "ms") -> pd.DataFrame:
        sums = table.groupby(keys, sort=False)[["calls", "ms", "host_ms", "whole"]].sum()
        sums = sums.assign(share=sums[by] / every["whole"].sum()).drop(columns="whole")
        return sums.sort_values("share", ascending=False).reset_index()

    def lines(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
        sums = summed(table, keys).drop(columns="host_ms")
        return sums[sums["share"] >= _SMALLEST_SHARE]

    modules = every.groupby(["operator", "place", "phase"])["module"].agg(lambda names: ", ".join(dict.fromkeys(names)))
    operators = lines(every, ["operator", "place", "source", "phase"]).join(modules, on=["operator", "place", "phase"])
    host = lines(pd.concat([before, copies]), ["place", "source", "what"])
    return summed(every, ["module", "phase"], "whole"), operators, host
