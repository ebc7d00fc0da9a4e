"""Dead work: module calls and parameters that change neither the loss nor any gradient, on the batches given.

Two kinds of evidence. **Data flow** (``flow``) proves that a call is dead: nothing that it computes leads to the loss,
a gradient, a number that Python reads, or a state that a later step reads. **Values** decide where data flow leads
somewhere and yet nothing arrives (rows multiplied by zero, rows that are dropped): other numbers in place of its output
change nothing. That is evidence, not proof, so it counts only where small changes would show: not behind comparisons,
rounding or indices. Only values show that a call is alive. Everything is run again from the same state.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import inf
from typing import Any

import pandas as pd
import torch
from torch import nn

from mmrec_helpers.config import InputError, check_positive
from mmrec_helpers.profiling.dead_work.comparison import Comparison, can_vary
from mmrec_helpers.profiling.dead_work.costs import measure_savings, with_costs
from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment, Loss, Seen, repeatable
from mmrec_helpers.profiling.dead_work.survey import Arrivals, around_outputs, survey
from mmrec_helpers.profiling.nested_tensors import Replace, noise, other_values, zeros
from mmrec_helpers.progress import progress

_SLIGHT, _SIZES = 0.01, (1, 30)  # of the random numbers that are put beside or in place of an output
NOT_TRIED = "it was not tried within max_seconds"
_MATTERS = "matters"
_CHECKPOINTED = "its module runs again in the backward pass: switch checkpointing off to decide"


@dataclass(frozen=True)
class Finding:
    """One piece of dead work, or one that cannot be decided.

    name, call   the module as in named_modules and the number of its call (from 0); for a parameter its name as in
                 named_parameters and None
    verdict      "dead" or "undecided"
    kind         "call" or "parameter"
    reason       what was seen
    inside       for a call, the outermost reported call that it ran inside of ("name#call"), or None
    batches      on how many of the batches the call happened (for a parameter: all)
    difference   the largest relative difference that the interventions made in the loss or a gradient (0: none, bit
                 for bit); None where it is undecided
    cost_ms      what a step is faster by without it, the median of the pairs, with its quartiles cost_q1_ms and
                 cost_q3_ms: a dead call that runs inside no other reported one is left out, its recorded output in
                 its place. For a dead parameter an Adam update where a gradient is made, else 0. None if that was not
                 measured
    cost_bytes   memory: the most that tensors made in a call hold at once (None for one inside a dead call); a
                 parameter with its gradient, if one is made

        dead = [finding for finding in find_dead_work(model, loss, batches) if finding.verdict == "dead"]
    """

    name: str
    call: int | None
    verdict: str
    kind: str
    reason: str
    inside: str | None = None
    batches: int = 0
    difference: float | None = None
    cost_ms: float | None = None
    cost_q1_ms: float | None = None
    cost_q3_ms: float | None = None
    cost_bytes: int | None = None


def find_dead_work(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    rounding: float | None = None,
    costs: bool = True,
    max_seconds: float | None = None,
) -> list[Finding]:
    """Find the module calls and parameters that contribute nothing to ``loss(batch)`` or any gradient.

    model     any module, in the mode (training or evaluation) and state to examine; left exactly as it was found,
              with what ``loss`` holds in closures, containers and optimizers
    loss      called with a copy of a batch; returns a scalar tensor, repeatable under a restored random state
    batches   any batches that ``loss`` takes. Work that matters on one of them is not reported, so give batches of
              every kind that the model treats differently
    rounding  relative difference (of the loss, and of each parameter's gradient against its largest entry) up to which
              two runs count as equal; default: four epsilons of the tensor's type, of float32 at most
    costs     also measure what a step saves without what was found
    max_seconds  the calls that have not been tried after so long are undecided (``NOT_TRIED``); default: all are tried

    A call is "dead" if, on every batch, one of these holds, and no other value that was tried contradicts it:

    - no data flows from anything that it computes to the loss, a gradient, a number that Python reads, or what later
      steps read. This is a proof;
    - data flows from its output, and only from there, to the loss or a gradient along operations in which small changes
      show, and yet zeros (with other values in the trainable parameters, too), slight changes and random numbers of 1
      and 30 times its size in the entries that are not zero change nothing beyond rounding.

    "undecided" is what neither decides: comparisons, rounding, indices or a read by Python or NumPy (``item``, a shape
    that depends on numbers) lie on the way; it reaches the loss around its output, by attributes, containers or
    changes in place; it matters in a later step only, or something keeps what it computes; it changes counters or
    other attributes that are no tensors; its output is zero and other numbers would matter, or holds no tensor; it
    runs again in the backward pass (switch checkpointing off); the loss is not repeatable; the call is dead alone, but
    not together with the others. Calls inside a scripted module are not looked at. Hooks that run after a gradient was
    accumulated do not run; of a DistributedDataParallel give ``model.module``.

    A parameter without a gradient is judged in the same way. A trainable one whose value matters is undecided; a frozen
    one is reported only if it is dead. One whose gradient is nothing but rounding (a bias before batch normalization)
    is not reported.

    Calls come first, in the order in which they ran, then parameters. Raises InputError for no batches, a loss that is
    no scalar, or one that is not finite.

    >>> model = nn.ModuleDict({"used": nn.Linear(3, 1), "dead": nn.Linear(3, 1)})
    >>> loss = lambda x: (model["used"](x) + 0 * model["dead"](x)).sum()
    >>> [(f.name, f.call) for f in find_dead_work(model, loss, [torch.randn(5, 3)], costs=False)]
    [('dead', 0), ('dead.weight', None), ('dead.bias', None)]
    """
    batches = list(batches)
    if not batches:
        raise InputError("find_dead_work: batches is empty: expected at least one")
    if rounding is not None:
        check_positive("find_dead_work", rounding=rounding)
    begun, experiment = time.monotonic(), Experiment(model, loss)
    with experiment.restored(), repeatable():
        search = _Search(Comparison(experiment, batches, rounding), inf if max_seconds is None else begun + max_seconds)
        search.try_calls()
        search.try_together()
        findings = search.call_findings() + search.parameter_findings()
    return with_costs(findings, measure_savings(model, loss, batches, findings), model) if costs else findings


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """The findings as a table, one row each, the fields as columns.

    findings_table(find_dead_work(model, loss, batches)).sort_values("cost_ms")
    """
    return pd.DataFrame([asdict(f) for f in findings], columns=list(Finding.__dataclass_fields__))


@dataclass
class _Suspect:
    """A call that has changed nothing so far; ``proven``: by data flow, on all batches; ``doubts``: why not dead."""

    parent: Call | None
    depth: int
    proven: bool = True
    batches: int = 0
    difference: float = 0.0
    peak_bytes: int | None = None
    doubts: list[str] = field(default_factory=list)


class _Search:
    """The state of one search: what arrives where, the calls still suspected, and what to say of them."""

    def __init__(self, compared: Comparison, until: float) -> None:
        self.until = until  # by time.monotonic: then no more calls are tried
        self.compared, self.experiment, self.batches = compared, compared.experiment, compared.batches
        self.arrivals = [survey(self.experiment, batch) for batch in self.batches]
        self.suspects: dict[Call, _Suspect] = {}
        for number, outcome in enumerate(compared.outcomes):
            for call, seen in outcome.calls.items():
                depth = 0 if seen.parent is None else self.suspects[seen.parent].depth + 1
                suspect = self.suspects.setdefault(call, _Suspect(seen.parent, depth))
                suspect.batches += 1
                suspect.proven &= self.arrivals[number].proves_dead(call)
        self._all = dict(self.suspects)

    def try_calls(self) -> None:
        """Drop the calls that matter, and doubt those of which neither data flow nor values decide."""
        if self.compared.unrepeatable:
            for suspect in self.suspects.values():
                suspect.doubts.append(self.compared.unrepeatable)
            return
        for depth in sorted({suspect.depth for suspect in self.suspects.values()}):
            level = [call for call, suspect in self.suspects.items() if suspect.depth == depth]
            fresh = [call for call in level if not self._is_in_dead_call(call)]
            for call in progress(fresh, "trying calls"):
                if time.monotonic() < self.until:
                    self._try_first(call)
                else:
                    self.suspects[call].doubts.append(NOT_TRIED)
            for number in range(len(self.batches)):
                self._try_more(number, self._undoubted(fresh, number))
            for number in range(len(self.batches)):
                self._look_around(number, self._undoubted(fresh, number))

    def _undoubted(self, calls: list[Call], number: int) -> list[Call]:
        there = [call for call in calls if call in self.suspects and call in self.compared.outcomes[number].calls]
        return [call for call in there if not self.suspects[call].doubts]

    def _is_in_dead_call(self, call: Call) -> bool:
        """Whether it runs inside of one dead call on all batches: what it computes is part of what is dead, then."""
        parents = {outcome.calls[call].parent for outcome in self.compared.outcomes if call in outcome.calls}
        parent = parents.pop()
        outer = None if parent is None else self.suspects.get(parent)
        if parents or outer is None or outer.doubts:
            return False
        self.suspects[call] = replace(self.suspects[call], proven=outer.proven, difference=outer.difference)
        return True

    def _try_first(self, call: Call) -> None:
        """Zeros (of integers other values) in place of the output, on each batch."""
        for number, outcome in enumerate(self.compared.outcomes):
            if call not in outcome.calls or call not in self.suspects:
                continue
            seen, proven = outcome.calls[call], self.arrivals[number].proves_dead(call)
            if not seen.floats + seen.others:
                self.suspects[call].doubts.append("its output holds no tensor that could be replaced")
            for value in _first_trials(seen, proven):
                if call in self.suspects:
                    self._try(number, call, value)
            if call in self.suspects and not proven:
                self.suspects[call].doubts += _not_by_value(self.arrivals[number], call)
                if call.name in outcome.called_in_backward:
                    self.suspects[call].doubts.append(_CHECKPOINTED)

    def _try(self, number: int, call: Call, value: Replace, doubt: str | None = None, **options: Any) -> None:
        """Put a value in place of an output. A change says that the call is alive, or what ``doubt`` says."""
        suspect = self.suspects[call]
        try:
            apart, *later = self.compared.differences(
                number, self._passes(number, call), replaced={call: value}, **options
            )
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the model does with values where it expects others
            suspect.doubts.append(f"other values in place of its output end in {type(error).__name__}: {error}")
            return
        if apart == inf and doubt is None:
            del self.suspects[call]
        elif inf in (apart, *later):
            suspect.doubts.append(doubt if doubt and apart == inf else "it changes nothing but a later step")
        else:
            suspect.difference = max(suspect.difference, apart)

    def _try_more(self, number: int, calls: list[Call]) -> None:
        """What zeros alone do not show, for calls that data flow does not prove dead: slight changes, random numbers,
        zeros with other parameters. All calls at once; one by one where that changes something."""
        outcome, arrivals = self.compared.outcomes[number], self.arrivals[number]
        calls = [call for call in calls if not arrivals.proves_dead(call)]
        nonzero = [call for call in calls if not outcome.calls[call].all_zero]
        for trial in _more_trials():
            tried = nonzero if trial.needs_numbers else calls
            passes = max((self._passes(number, call) for call in tried), default=1)
            together = {call: trial.make(k) for k, call in enumerate(tried)}
            options = {"size": trial.size, "retrained": trial.retrained}
            if tried and not self.compared.unchanged([number], passes=passes, replaced=together, **options):
                for call, value in together.items():
                    if call in self.suspects and not self.suspects[call].doubts:
                        self._try(number, call, value, trial.doubt, **options)

    def _look_around(self, number: int, calls: list[Call]) -> None:
        """Doubt calls that leave more than their output; then again without those, which hid what others leave."""
        arrivals, doubted = self.arrivals[number], True
        while calls and doubted:
            later = any(arrivals.of(call) & arrivals.later for call in calls)
            around = around_outputs(self.experiment, self.batches[number], calls, later)
            for call in calls:
                suspect = self.suspects[call]
                suspect.peak_bytes = max(suspect.peak_bytes or 0, around.peak_bytes.get(around.of(call), 0))
                if around.of(call) & around.changed:
                    suspect.doubts.append("it changes a counter, a container or another attribute that is no tensor")
                if not around.proves_dead(call):
                    suspect.doubts.append("what it computes reaches the loss or a later step around its output")
            doubted = any(self.suspects[call].doubts for call in calls)
            calls = [call for call in calls if not self.suspects[call].doubts]

    def _passes(self, number: int, call: Call) -> int:
        return 2 if self.arrivals[number].of(call) & self.arrivals[number].later else 1

    def try_together(self) -> None:
        """Zeros in place of all dead calls at once. What data flow proves needs no such trial."""
        dead = [call for call, suspect in self.suspects.items() if not suspect.doubts]
        by_value = [call for call in dead if not self.suspects[call].proven]
        every = list(range(len(self.batches)))
        if by_value and len(dead) > 1 and not self.compared.unchanged(every, replaced=dict.fromkeys(dead, zeros)):
            for call in by_value:
                self.suspects[call].doubts.append("it changes nothing alone, but all such calls together do")

    def call_findings(self) -> list[Finding]:
        return [self._call_finding(call, suspect) for call, suspect in self.suspects.items()]

    def _call_finding(self, call: Call, suspect: _Suspect) -> Finding:
        outermost, parent = None, suspect.parent
        while parent is not None:
            outermost, parent = parent if parent in self.suspects else outermost, self._all[parent].parent
        dead = "no data flows from it to the loss, a gradient or a later step"
        if not suspect.proven:
            dead = "other values in place of its output change nothing"
        return Finding(
            name=call.name,
            call=call.index,
            verdict="undecided" if suspect.doubts else "dead",
            kind="call",
            reason=suspect.doubts[0] if suspect.doubts else dead,
            inside=None if outermost is None else str(outermost),
            batches=suspect.batches,
            difference=None if suspect.doubts else suspect.difference,
            cost_bytes=suspect.peak_bytes,
        )

    def parameter_findings(self) -> list[Finding]:
        """Parameters without a gradient, or with zeros only, on all batches: do their values matter?"""
        suspects = [name for name in self.experiment.parameters if not self.compared.gets_gradient(name)]
        if why := self.compared.unrepeatable:
            return [self._parameter_finding(n, why) for n in suspects if self.experiment.parameters[n].requires_grad]
        all_inert = len(suspects) > 1 and self._inert(suspects)
        found = [(name, self._parameter_doubt(name, all_inert or self._inert([name]))) for name in suspects]
        return [self._parameter_finding(name, doubt) for name, doubt in found if doubt != _MATTERS]

    def _parameter_doubt(self, name: str, inert: bool) -> str | None:
        """Why a suspected parameter is not dead, or None; ``_MATTERS`` if it is not to be reported."""
        parameter = self.experiment.parameters[name]
        proven = all(arrivals.proves_dead(name) for arrivals in self.arrivals)
        doubts = [why for arrivals in self.arrivals for why in _not_by_value(arrivals, name)]
        if inert and (proven or (can_vary(parameter) and not doubts)):
            return None
        if not parameter.requires_grad:
            return _MATTERS
        return doubts[0] if inert and doubts else "no gradient arrives, but its value matters"

    def _inert(self, names: list[str]) -> bool:
        """Whether other values of the parameters change nothing; true of those whose values cannot be tried."""
        tried = [name for name in names if can_vary(self.experiment.parameters[name])]
        passes = 2 if any(arrivals.of(name) & arrivals.later for arrivals in self.arrivals for name in tried) else 1
        every = list(range(len(self.batches)))
        others = [(size, {name: noise(size, 1.0, seed=k) for k, name in enumerate(tried)}) for size in _SIZES if tried]
        return all(self.compared.unchanged(every, values=values, size=size, passes=passes) for size, values in others)

    def _parameter_finding(self, name: str, doubt: str | None) -> Finding:
        made = any(outcome.grads.get(name) is not None for outcome in self.compared.outcomes)
        parameter = self.experiment.parameters[name]
        gradient = "its gradient is exactly zero" if made else "it gets no gradient"
        gradient = gradient if parameter.requires_grad else "it is frozen"
        return Finding(
            name=name,
            call=None,
            verdict="undecided" if doubt else "dead",
            kind="parameter",
            reason=doubt or f"{gradient} on all batches, and another value changes nothing",
            batches=len(self.batches),
            difference=None if doubt else 0.0,
            cost_bytes=parameter.numel() * parameter.element_size() * (1 + made),
        )


def _first_trials(seen: Seen, proven: bool) -> Iterator[Replace]:
    if seen.floats and not seen.all_zero:
        yield zeros
    if seen.others and not (proven and seen.floats):
        yield other_values


@dataclass(frozen=True)
class _Trial:
    """``make(k)``: what to put in place of the k-th output, of a size. ``doubt``: what a change says (None: alive).
    ``needs_numbers``: it says something only of outputs that are not zero already."""

    make: Callable[[int], Replace]
    size: float = 1.0
    retrained: float = 0.0
    doubt: str | None = None
    needs_numbers: bool = True


def _more_trials() -> Iterator[_Trial]:
    """Slight changes show that a call is alive; random numbers show only that other numbers would matter."""
    yield _Trial(lambda k: noise(_SLIGHT, 1.0, seed=k))
    others = "zeros in place of its output change nothing, but other numbers matter"
    for size in _SIZES:
        yield _Trial(lambda k: zeros, retrained=size, doubt="it changes nothing now, but with other parameters it does")
        yield _Trial(partial(_drawn, size), size, doubt=others, needs_numbers=False)


def _drawn(size: float, k: int) -> Replace:
    return noise(size, seed=k)


def _not_by_value(arrivals: Arrivals, what: Call | str) -> Iterator[str]:
    """Why values that change nothing do not show that something is dead."""
    marks = arrivals.of(what)
    if arrivals.lost is not None:
        yield f"the data flow could not be followed: {arrivals.lost}"
    if marks & arrivals.read:
        yield "Python or NumPy reads a number or a shape that depends on it"
    if marks & arrivals.kept:
        yield "what it computes is kept where a later step could read it"
    if marks & arrivals.steps:
        yield "comparisons, rounding or indices lie on its way to the loss: that values change nothing proves nothing"
