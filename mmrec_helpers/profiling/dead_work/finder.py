"""Dead work: module calls and parameters that change neither the loss nor any gradient, found by intervention.

A call is dead if zeros in place of its output leave the loss and every gradient unchanged on every batch. The call
still runs, so everything else (random numbers above all) stays as it was; what it leaves in tensor attributes of its
module is replaced too. Everything is run again from the same state: parameters, buffers, attributes, random numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmrec_helpers.config import InputError, check_positive
from mmrec_helpers.profiling.dead_work.costs import call_costs, parameter_cost
from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment, Loss, Outcome, Seen, repeatable
from mmrec_helpers.profiling.dead_work.nested_tensors import noise, zeros

# Differences up to so many epsilons of a tensor's type, relative to the tensor's largest entry, are rounding. For types
# coarser than float32 its epsilon counts: with their own, all work that is small would pass as rounding.
_ROUNDING_EPS = 4
_COARSEST_EPS = torch.finfo(torch.float32).eps
_UNREPEATABLE = 1e-3  # runs from the same state that differ by more than this cannot be compared
_SLOW_S = 10.0


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
                 for bit); None where no intervention was possible
    cost_ms      time per step: a call's forward and backward (those of calls inside it included); for a parameter an
                 Adam update where a gradient is made, else 0. None if costs were not asked for
    cost_bytes   memory: the most that a call adds while it runs; a parameter with its gradient, if one is made

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

    model     any module, in the mode (training or evaluation) and state to examine; left exactly as it was found
    loss      called with a copy of a batch; returns a scalar tensor, repeatable under a restored random state
    batches   any batches that ``loss`` takes. Work that matters on one of them is not reported, so give batches of
              every kind that the model treats differently
    rounding  relative difference (of the loss, and of each parameter's gradient against its largest entry) up to which
              two runs count as equal; default: four epsilons of the tensor's type, of float32 at most
    costs     also measure time and memory of what was found

    A progress bar appears after ten seconds. Calls come first, in the order in which they ran, then parameters.
    "undecided" is what cannot be decided: the loss is not repeatable, a call returns no tensor, changes its inputs in
    place, reaches the loss around its output, runs again in the backward pass (checkpointing: switch it off), already
    puts out zeros on all batches although other numbers would matter, or is dead alone but not together with the
    others. A trainable parameter that gets no gradient although its value matters is undecided; a frozen one is
    reported only if its value does not matter. Raises InputError for no batches, a loss that is no scalar, or one that
    is not finite.

    >>> model = nn.ModuleDict({"used": nn.Linear(3, 1), "dead": nn.Linear(3, 1)})
    >>> loss = lambda x: (model["used"](x) + 0 * model["dead"](x)).sum()
    >>> [(f.name, f.call) for f in find_dead_work(model, loss, [torch.randn(5, 3)])]
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
            search.survey()
            search.try_calls()
            search.settle()
            findings = search.call_findings() + search.parameter_findings()
        return _with_costs(findings, search) if costs else findings


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """The findings as a table, one row each, the fields as columns.

    findings_table(find_dead_work(model, loss, batches)).sort_values("cost_ms")
    """
    return pd.DataFrame([asdict(f) for f in findings], columns=list(Finding.__dataclass_fields__))


@dataclass
class _Suspect:
    """A call that has changed nothing so far."""

    seen: Seen
    batches: int = 0
    difference: float = 0.0
    all_zero: bool = True
    undecided: str | None = None
    dead_because: str = "zeros in place of its output change nothing"


class _Search:
    """The state of one search: reference runs, the calls still suspected, and what to say of them."""

    def __init__(self, experiment: Experiment, batches: list[Any], rounding: float | None) -> None:
        self.experiment, self.batches, self.rounding = experiment, batches, rounding
        self.references: list[Outcome] = []
        self.suspects: dict[Call, _Suspect] = {}
        self._parents: dict[Call, Call | None] = {}
        self.unrepeatable: str | None = None
        self._noise_level = 0.0

    def survey(self) -> None:
        """Run every batch twice as it is: what is called, and how far two equal runs differ."""
        for number, batch in enumerate(self.batches):
            reference = self.experiment.run(batch)
            if not reference.loss.isfinite():
                raise InputError(f"batch {number}: the loss is {reference.loss.item()}: expected a finite number")
            again = self.experiment.run(batch)
            level = max(_apart(*pair) for pair in _side_by_side(reference, again))
            if reference.calls.keys() != again.calls.keys() or level > _UNREPEATABLE:
                self.unrepeatable = f"the loss is not repeatable: two equal runs of batch {number} differ"
            self._noise_level = max(self._noise_level, level)
            self.references.append(reference)
            for call, seen in reference.calls.items():
                self._parents.setdefault(call, seen.parent)
                suspect = self.suspects.setdefault(call, _Suspect(seen))
                suspect.batches += 1
                self._note(suspect, seen, call.name in reference.called_in_backward)

    def _note(self, suspect: _Suspect, seen: Seen, in_backward: bool) -> None:
        suspect.all_zero &= seen.all_zero
        suspect.seen.changes_state |= seen.changes_state
        if self.unrepeatable:
            suspect.undecided = self.unrepeatable
        elif in_backward:
            suspect.undecided = "its module runs again in the backward pass: switch checkpointing off to decide"
        elif seen.in_place:
            suspect.undecided = "it changes a tensor that it was given, which zeros in place of its output do not undo"
        elif not seen.tensors:
            suspect.undecided = "its output holds no tensor that could be replaced"

    def try_calls(self) -> None:
        """Put zeros in place of one call's output at a time; a call that matters on a batch is dropped."""
        if self.unrepeatable:
            self.suspects = {c: replace(s, undecided=self.unrepeatable) for c, s in self.suspects.items()}
            return
        trials = [(n, call) for n, reference in enumerate(self.references) for call in reference.calls]
        for number, call in tqdm(trials, desc="dead work", unit="trial", delay=_SLOW_S):
            if call in self.suspects:
                self._try_zeros(number, call)

    def _try_zeros(self, number: int, call: Call) -> None:
        suspect = self.suspects[call]
        if not suspect.seen.tensors:
            return
        try:
            outcome, apart = self._compare(number, replaced={call: zeros})
        except Exception as error:  # whatever the model does with zeros where it expects something else
            suspect.undecided = (
                suspect.undecided or f"zeros in place of its output end in {type(error).__name__}: {error}"
            )
            return
        if apart is None:
            del self.suspects[call]
            return
        suspect.difference = max(suspect.difference, apart)
        if outcome.leaked and suspect.undecided is None:
            suspect.undecided = "what it computes reaches the loss by another way than its output"

    def _compare(self, number: int, **intervention: Any) -> tuple[Outcome, float | None]:
        """A run of a batch with an intervention, and its difference to the reference; None for more than rounding."""
        reference = self.references[number]
        if intervention.get("passes", 1) > 1:
            reference = self.experiment.run(self.batches[number], passes=intervention["passes"])
        outcome = self.experiment.run(
            self.batches[number],
            **intervention,
            expected_loss=lambda loss: _apart(reference.loss, loss) <= self._allowed(loss),
        )
        pairs = [*_side_by_side(reference, outcome)]
        apart = [_apart(before, after) for before, after in pairs]
        rounding = [self._allowed(before if after is None else after) for before, after in pairs]
        return outcome, max(apart) if all(a <= b for a, b in zip(apart, rounding)) else None

    def _allowed(self, tensor: Tensor | None) -> float:
        eps = torch.finfo(tensor.dtype).eps if tensor is not None and tensor.is_floating_point() else 0.0
        eps = min(eps, _COARSEST_EPS)
        return max(_ROUNDING_EPS * eps if self.rounding is None else self.rounding, 4 * self._noise_level)

    def settle(self) -> None:
        """Second looks at the calls that zeros leave without effect: zeros anyway, state, all together."""
        for call, suspect in self.suspects.items():
            if suspect.undecided is None and suspect.all_zero:
                self._second_look(
                    call,
                    suspect,
                    "its output is zero on all batches, and random numbers in its place change nothing either",
                    "its output is zero on all batches, but random numbers in its place matter",
                    replaced={call: noise},
                )
            if suspect.undecided is None and suspect.seen.changes_state:
                self._second_look(
                    call,
                    suspect,
                    f"{suspect.dead_because}, nor does the state that it updates in the step after",
                    "it changes parameters or buffers of its module, which matter in the step after",
                    replaced={call: zeros},
                    undo_state=call,
                    passes=2,
                )
        dead = [call for call, suspect in self.suspects.items() if suspect.undecided is None]
        if len(dead) > 1 and not self._unchanged(replaced=dict.fromkeys(dead, zeros)):
            for call in dead:
                self.suspects[call].undecided = "it changes nothing alone, but all such calls together do"

    def _second_look(self, call: Call, suspect: _Suspect, if_dead: str, if_not: str, **intervention: Any) -> None:
        where = [n for n, reference in enumerate(self.references) if call in reference.calls]
        if self._unchanged(where, **intervention):
            suspect.dead_because = if_dead
        else:
            suspect.undecided = if_not

    def _unchanged(self, numbers: Iterable[int] | None = None, **intervention: Any) -> bool:
        numbers = range(len(self.batches)) if numbers is None else numbers
        try:
            return all(self._compare(number, **intervention)[1] is not None for number in numbers)
        except Exception:  # as in _try_zeros: it ends in an error, so it is not without effect
            return False

    def call_findings(self) -> list[Finding]:
        return [self._call_finding(call, suspect) for call, suspect in self.suspects.items()]

    def around(self, call: Call) -> list[Call]:
        """The reported calls that a call ran inside of, the innermost first."""
        found, outer = [], self._parents[call]
        while outer is not None:
            found += [outer] if outer in self.suspects else []
            outer = self._parents[outer]
        return found

    def _call_finding(self, call: Call, suspect: _Suspect) -> Finding:
        around = self.around(call)
        return Finding(
            name=call.name,
            call=call.index,
            verdict="undecided" if suspect.undecided else "dead",
            kind="call",
            reason=suspect.undecided or suspect.dead_because,
            inside=f"{around[-1].name}#{around[-1].index}" if around else None,
            batches=suspect.batches,
            difference=None if suspect.undecided else suspect.difference,
        )

    def parameter_findings(self) -> list[Finding]:
        """Parameters without a gradient, or with exact zeros only, on all batches; then whether their values matter."""
        parameters = self.experiment.parameters
        suspects = [name for name in parameters if not any(_gradient_seen(r, name) for r in self.references)]
        if self.unrepeatable:
            return [self._parameter_finding(n, self.unrepeatable) for n in suspects if parameters[n].requires_grad]
        if not suspects or self._values_do_not_matter(suspects):
            return [self._parameter_finding(name) for name in suspects]
        findings = []
        for name in suspects:
            if self._values_do_not_matter([name]):
                findings.append(self._parameter_finding(name))
            elif parameters[name].requires_grad:
                findings.append(self._parameter_finding(name, "no gradient arrives, but its value matters"))
        return findings

    def _values_do_not_matter(self, names: list[str]) -> bool:
        values = {name: self.experiment.parameters[name].data for name in names}
        if any(value.layout != torch.strided or not value.is_floating_point() for value in values.values()):
            return False
        return self._unchanged(values={name: value + noise(value) for name, value in values.items()})

    def _parameter_finding(self, name: str, undecided: str | None = None) -> Finding:
        made = self.gradient_made(name)
        frozen = not self.experiment.parameters[name].requires_grad
        gradient = "its gradient is exactly zero" if made else "it is frozen" if frozen else "it gets no gradient"
        return Finding(
            name=name,
            call=None,
            verdict="undecided" if undecided else "dead",
            kind="parameter",
            reason=undecided or f"{gradient} on all batches, and another value changes nothing",
            batches=len(self.batches),
            difference=None if undecided else 0.0,
        )

    def gradient_made(self, name: str) -> bool:
        return any(reference.grads.get(name) is not None for reference in self.references)


def _gradient_seen(outcome: Outcome, name: str) -> bool:
    gradient = outcome.grads.get(name)
    return gradient is not None and bool((gradient._values() if gradient.is_sparse else gradient).any())


def _side_by_side(reference: Outcome, outcome: Outcome) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """The losses of two runs, and their gradients by parameter (an outcome without gradients has only its loss)."""
    yield reference.loss, outcome.loss
    for name, gradient in reference.grads.items() if outcome.grads else ():
        yield gradient, outcome.grads.get(name)


def _apart(left: Tensor | None, right: Tensor | None) -> float:
    """Largest difference over the largest entry of ``left``; no gradient counts as zeros; infinite where NaN."""
    if left is None or right is None:
        other = right if left is None else left
        return 0.0 if other is None or not _dense(other).any() else float("inf") if left is None else 1.0
    left, right = _dense(left), _dense(right)
    if torch.equal(left, right):
        return 0.0
    largest = float(left.abs().max())
    apart = float((left - right).abs().max())
    if largest == 0 or apart != apart:
        return float("inf")
    return apart / largest


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


def _with_costs(findings: list[Finding], search: _Search) -> list[Finding]:
    around = {call: search.around(call) for call in search.suspects}
    costs = call_costs(search.experiment, around, search.batches) if around else {}
    priced = []
    for finding in findings:
        if finding.kind == "call":
            cost_ms, cost_bytes = costs[Call(finding.name, finding.call)]
        else:
            parameter = search.experiment.parameters[finding.name]
            cost_ms, cost_bytes = parameter_cost(parameter, search.gradient_made(finding.name))
        priced.append(replace(finding, cost_ms=cost_ms, cost_bytes=cost_bytes))
    return priced
