"""Dead work: module calls and parameters that change neither the loss nor any gradient, on the batches given.

Two kinds of evidence. **Data flow** (``flow``) proves that a call is dead: nothing that it computes leads to the loss,
a gradient, a number that Python reads, or a state that a later step reads. **Values** decide where data flow leads
somewhere and yet nothing arrives (rows multiplied by zero, rows that are dropped): other numbers in place of its output
change nothing. That is evidence, not proof, so it counts only where small changes would show: not behind comparisons,
rounding or indices. Only values show that a call is alive. Everything is run again from the same state.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, check_positive
from mmrec_helpers.profiling.dead_work.costs import measure_savings, with_costs
from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment, Loss, Outcome, Seen, repeatable
from mmrec_helpers.profiling.dead_work.nested_tensors import Replace, has_scale, noise, other_values, same, zeros
from mmrec_helpers.profiling.dead_work.survey import Arrivals, around_output, survey
from mmrec_helpers.progress import progress

# Differences up to so many epsilons of a tensor's type, relative to the tensor's largest entry, are rounding. For types
# coarser than float32 its epsilon counts: with their own, all work that is small would pass as rounding.
_ROUNDING_EPS = 4
_COARSEST_EPS = torch.finfo(torch.float32).eps
_UNREPEATABLE = 1e-3  # runs from the same state that differ by more than this cannot be compared
_NEAR, _SIZES = noise(0.01, around=1.0), (1, 30)  # of the random numbers: beside the output, and in its place
_MATTERS = "matters"


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
                 parameter with its gradient, if one is made. None if costs were not asked for

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
) -> list[Finding]:
    """Find the module calls and parameters that contribute nothing to ``loss(batch)`` or any gradient.

    model     any module, in the mode (training or evaluation) and state to examine; left exactly as it was found,
              with what ``loss`` holds in closures, containers and optimizers
    loss      called with a copy of a batch; returns a scalar tensor, repeatable under a restored random state
    batches   any batches that ``loss`` takes. Work that matters on one of them is not reported, so give batches of
              every kind that the model treats differently
    rounding  relative difference (of the loss, and of each parameter's gradient against its largest entry) up to which
              two runs count as equal; default: four epsilons of the tensor's type, of float32 at most
    costs     also measure time and memory of what was found

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
    experiment = Experiment(model, loss)
    with experiment.restored():
        search = _Search(experiment, batches, rounding)
        with repeatable():
            search.look()
            search.try_calls()
            search.try_together()
            findings = search.call_findings() + search.parameter_findings()
    if not costs:
        return [replace(finding, cost_bytes=None) for finding in findings]
    return with_costs(findings, measure_savings(model, loss, batches, findings), model)


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """The findings as a table, one row each, the fields as columns.

    findings_table(find_dead_work(model, loss, batches)).sort_values("cost_ms")
    """
    return pd.DataFrame([asdict(f) for f in findings], columns=list(Finding.__dataclass_fields__))


@dataclass
class _Suspect:
    """A call that has changed nothing so far; ``proven``: by data flow, on all batches; ``doubts``: why not dead."""

    parent: Call | None
    proven: bool = True
    batches: int = 0
    difference: float = 0.0
    peak_bytes: int | None = None
    doubts: list[str] = field(default_factory=list)


class _Search:
    """The state of one search: reference runs, the calls still suspected, and what to say of them."""

    def __init__(self, experiment: Experiment, batches: list[Any], rounding: float | None) -> None:
        self.experiment, self.batches, self.rounding = experiment, batches, rounding
        self.references: list[Outcome] = []
        self.arrivals: list[Arrivals] = []
        self.suspects: dict[Call, _Suspect] = {}
        self._references: dict[tuple[int, int, float], list[Outcome]] = {}
        self._parents: dict[Call, Call | None] = {}
        self.unrepeatable: str | None = None
        self._noise_level = 0.0

    def look(self) -> None:
        """Run every batch twice as it is: what is called, and how far equal runs differ; and see where data flows."""
        for number, batch in enumerate(self.batches):
            [reference] = self.experiment.run(batch)
            if not reference.loss.isfinite():
                raise InputError(f"batch {number}: the loss is {reference.loss.item()}: expected a finite number")
            [again] = self.experiment.run(batch)
            level = max(_apart(*pair) for pair in _side_by_side(reference, again))
            if reference.calls.keys() != again.calls.keys() or level > _UNREPEATABLE:
                self.unrepeatable = f"the loss is not repeatable: two equal runs of batch {number} differ"
            self._noise_level = max(self._noise_level, level)
            self.references.append(reference)
            self._references[number, 1, 0.0] = [reference]
            self.arrivals.append(survey(self.experiment, batch))
            for call, seen in reference.calls.items():
                self._parents.setdefault(call, seen.parent)
                self.suspects.setdefault(call, _Suspect(seen.parent)).batches += 1

    def try_calls(self) -> None:
        """Try other values in place of one call's output at a time; a call that matters on a batch is dropped."""
        if self.unrepeatable:
            for suspect in self.suspects.values():
                suspect.doubts.append(self.unrepeatable)
            return
        for call in progress(list(self.suspects), "trying calls"):
            if (outer := self._dead_around(call)) is not None:
                proven, difference = outer.proven, outer.difference
                self.suspects[call] = replace(self.suspects[call], proven=proven, difference=difference)
                continue
            for number, reference in enumerate(self.references):
                if call in reference.calls and call in self.suspects:
                    self._try(number, call)

    def _dead_around(self, call: Call) -> _Suspect | None:
        """The call that a call runs inside of on all batches, if it is dead: all that is computed in it is, then."""
        parents = {reference.calls[call].parent for reference in self.references if call in reference.calls}
        outer = self.suspects.get(parents.pop())
        return None if parents or outer is None or outer.doubts else outer

    def _try(self, number: int, call: Call) -> None:
        suspect, arrivals = self.suspects[call], self.arrivals[number]
        seen, proven = self.references[number].calls[call], arrivals.proves_dead(call)
        suspect.proven &= proven
        if not seen.floats + seen.others:
            suspect.doubts.append("its output holds no tensor that could be replaced")
            return
        passes = 2 if arrivals.of(call) & arrivals.later else 1
        for trial in _trials(seen, proven):
            try:
                apart, *later = self._differences(
                    number, passes, trial.size, trial.retrained, replaced={call: trial.value}
                )
            except (MemoryError, torch.cuda.OutOfMemoryError):
                raise
            except Exception as error:  # whatever the model does with values where it expects others
                suspect.doubts.append(f"other values in place of its output end in {type(error).__name__}: {error}")
                continue
            if apart == inf and trial.doubt is None:
                del self.suspects[call]
                return
            if inf in (apart, *later):
                suspect.doubts.append(trial.doubt if apart == inf else "it changes nothing but a later step")
                break
            suspect.difference = max(suspect.difference, apart)
        suspect.doubts += self._doubts(number, call, suspect)

    def _doubts(self, number: int, call: Call, suspect: _Suspect) -> Iterator[str]:
        """Why a call that no other value showed to matter is not dead for all that."""
        arrivals = self.arrivals[number]
        if not arrivals.proves_dead(call):
            yield from _not_by_value(arrivals, call)
            if call.name in self.references[number].called_in_backward:
                yield "its module runs again in the backward pass: switch checkpointing off to decide"
        around = around_output(self.experiment, self.batches[number], call, bool(arrivals.of(call) & arrivals.later))
        suspect.peak_bytes = max(suspect.peak_bytes or 0, around.peak_bytes)
        if around.changed:
            yield "it changes a counter, a container or another attribute that is no tensor"
        if not around.proves_dead(call):
            yield "what it computes reaches the loss by another way than its output, in this step or a later one"

    def _differences(
        self, number: int, passes: int = 1, size: float = 1.0, retrained: float = 0.0, **intervention: Any
    ) -> list[float]:
        """The relative difference that an intervention makes in each pass; infinite if it is more than rounding, which
        grows with the ``size`` of what was put in. ``retrained``: the size of
        random numbers that are added to all trainable parameters before."""
        trained = [name for name in self.experiment.parameters if self._trained(name) and self._has_numbers(name)]
        values = dict.fromkeys(trained if retrained else (), noise(retrained, around=1.0))
        if (number, passes, retrained) not in self._references:
            found = self.experiment.run(self.batches[number], passes=passes, values=values)
            self._references[number, passes, retrained] = found
        references = self._references[number, passes, retrained]
        intervention["values"] = values | intervention.get("values", {})
        loss = references[0].loss
        outcomes = self.experiment.run(
            self.batches[number],
            passes=passes,
            expected_loss=lambda other: _apart(loss, other) <= size * self._allowed(loss),
            **intervention,
        )
        return [self._difference(*pair, size) for pair in zip(references, outcomes)]

    def _difference(self, reference: Outcome, outcome: Outcome, size: float) -> float:
        largest = 0.0
        for before, after in _side_by_side(reference, outcome):
            apart = _apart(before, after)
            largest = max(largest, apart if apart <= size * self._allowed(before if after is None else after) else inf)
        return largest

    def _allowed(self, tensor: Tensor | None) -> float:
        has_eps = tensor is not None and has_scale(tensor)
        eps = min(torch.finfo(tensor.dtype).eps, _COARSEST_EPS) if has_eps else 0.0
        return max(_ROUNDING_EPS * eps if self.rounding is None else self.rounding, 4 * self._noise_level)

    def try_together(self) -> None:
        """Zeros in place of all dead calls at once. What data flow proves needs no such trial."""
        dead = [call for call, suspect in self.suspects.items() if not suspect.doubts]
        by_value = [call for call in dead if not self.suspects[call].proven]
        if by_value and len(dead) > 1 and not self._unchanged(replaced=dict.fromkeys(dead, zeros)):
            for call in by_value:
                self.suspects[call].doubts.append("it changes nothing alone, but all such calls together do")

    def _unchanged(self, **options: Any) -> bool:
        try:
            return all(inf not in self._differences(n, **options) for n in range(len(self.batches)))
        except Exception:  # as in _try: it ends in an error, so it is not without effect
            return False

    def call_findings(self) -> list[Finding]:
        return [self._call_finding(call, suspect) for call, suspect in self.suspects.items()]

    def _call_finding(self, call: Call, suspect: _Suspect) -> Finding:
        outermost, parent = None, suspect.parent
        while parent is not None:
            outermost, parent = parent if parent in self.suspects else outermost, self._parents[parent]
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
        """Parameters without a gradient, or with zeros or rounding only, on all batches: do their values matter?"""
        suspects = [name for name in self.experiment.parameters if not self._gets_gradient(name)]
        if self.unrepeatable:
            return [self._parameter_finding(n, self.unrepeatable) for n in suspects if self._trained(n)]
        all_inert = len(suspects) > 1 and self._inert(suspects)
        found = [(name, self._parameter_doubt(name, all_inert or self._inert([name]))) for name in suspects]
        return [self._parameter_finding(name, doubt) for name, doubt in found if doubt != _MATTERS]

    def _parameter_doubt(self, name: str, inert: bool) -> str | None:
        """Why a suspected parameter is not dead, or None; ``_MATTERS`` if it is not to be reported."""
        if inert and all(arrivals.proves_dead(name) for arrivals in self.arrivals):
            return None
        doubts = [why for arrivals in self.arrivals for why in _not_by_value(arrivals, name)]
        if inert and self._has_numbers(name) and not doubts:
            return None
        if not self._trained(name):
            return _MATTERS
        return doubts[0] if inert and doubts else "no gradient arrives, but its value matters"

    def _inert(self, names: list[str]) -> bool:
        """Whether other values of the parameters change nothing; true of those whose values cannot be tried."""
        tried = [name for name in names if self._has_numbers(name)]
        passes = 2 if any(arrivals.of(name) & arrivals.later for arrivals in self.arrivals for name in tried) else 1
        sizes = _SIZES if tried else ()
        return all(
            self._unchanged(values=dict.fromkeys(tried, noise(size, around=1.0)), size=size, passes=passes)
            for size in sizes
        )

    def _has_numbers(self, name: str) -> bool:
        parameter = self.experiment.parameters[name]
        return parameter.layout == torch.strided and has_scale(parameter)

    def _parameter_finding(self, name: str, doubt: str | None) -> Finding:
        made = any(reference.grads.get(name) is not None for reference in self.references)
        gradient = "its gradient is exactly zero" if made else "it gets no gradient"
        gradient = gradient if self._trained(name) else "it is frozen"
        parameter = self.experiment.parameters[name]
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

    def _trained(self, name: str) -> bool:
        return self.experiment.parameters[name].requires_grad

    def _gets_gradient(self, name: str) -> bool:
        grads = (reference.grads.get(name) for reference in self.references)
        return any(gradient is not None and _size(gradient) > 0 for gradient in grads)


@dataclass(frozen=True)
class _Trial:
    """What to put in place of an output, and its size. ``doubt``: what a change says; None: that the call is alive."""

    value: Replace
    size: float = 1.0
    retrained: float = 0.0
    doubt: str | None = None


def _trials(seen: Seen, proven: bool) -> Iterator[_Trial]:
    """Zeros and slight changes show that a call is alive. Random numbers show only that other numbers would matter, and
    so does all where the output is zero. What data flow proves needs no more than one confirmation."""
    others = "zeros in place of its output change nothing, but other numbers matter"
    if seen.floats and not seen.all_zero:
        yield _Trial(zeros)
        if not proven:
            yield _Trial(_NEAR)
            for size in _SIZES:
                yield _Trial(zeros, retrained=size, doubt="it changes nothing now, but with other parameters it does")
    if seen.floats and (seen.all_zero or not proven):
        yield from (_Trial(noise(size), size, doubt=others) for size in _SIZES)
    if seen.others and not (proven and seen.floats):
        yield _Trial(other_values)


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


def _side_by_side(reference: Outcome, outcome: Outcome) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """The losses of two runs, and their gradients by parameter (an outcome without gradients has only its loss)."""
    yield reference.loss, outcome.loss
    for name, gradient in reference.grads.items() if outcome.complete else ():
        yield gradient, outcome.grads.get(name)


def _apart(left: Tensor | None, right: Tensor | None) -> float:
    """Largest difference over the largest entry of ``left``; no gradient counts as zeros; infinite where NaN."""
    if left is None or right is None:
        other = right if left is None else left
        return 0.0 if other is None or not _size(other) else float("inf") if left is None else 1.0
    left, right = _dense(left), _dense(right)
    if same(left, right):
        return 0.0
    largest, apart = _size(left), _size(left - right)
    return apart / largest if largest > 0 and apart == apart else float("inf")


def _size(tensor: Tensor) -> float:
    return float(_dense(tensor).abs().max()) if tensor.numel() else 0.0


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.layout != torch.strided else tensor
