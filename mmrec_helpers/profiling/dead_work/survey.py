"""Where the marks of calls and parameters arrive: in the loss, in gradients, in what Python reads, in a later step."""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor, nn

from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment, Outcome, Watch
from mmrec_helpers.profiling.flow import Flow
from mmrec_helpers.profiling.nested_tensors import zeros

_MOST_PASSES = 4


@dataclass
class Arrivals:
    """What the marks of one run tell.

    bits     the mark of each call and of each parameter (by name)
    first    marks in the loss, the gradients or what Python read of the step itself; ``later``: of the steps after it
    steps    those of them that came through a comparison, rounding or an index
    read     those that Python or NumPy looked at
    kept     marks of what something other than a module's own tensors still holds at the end
    changed  marks of watched calls that changed attributes or containers in something else than a tensor
    lost     why not all could be followed, or None
    peak_bytes  by mark, the most that what a call computed held at once
    """

    bits: dict[Call | str, int]
    first: int
    later: int
    steps: int
    read: int
    kept: int
    changed: int
    lost: str | None
    peak_bytes: dict[int, int]

    def of(self, what: Call | str) -> int:
        return self.bits.get(what, 0)

    def proves_dead(self, what: Call | str) -> bool:
        """Whether nothing that depends on a call or parameter arrives anywhere."""
        return self.lost is None and not self.of(what) & (self.first | self.later | self.kept)


def survey(experiment: Experiment, batch: Any) -> Arrivals:
    """Mark every call and every parameter, and follow the marks through a step and those after it."""
    bits: dict[Call | str, int] = {}
    flow = Flow()
    for name, parameter in experiment.parameters.items():
        bits[name] = 1 << len(bits)
        flow.mark(parameter, bits[name])
    watch = Watch(flow=flow, marks=lambda call: bits.setdefault(call, 1 << len(bits)))
    return _follow(experiment, batch, flow, watch, bits, _MOST_PASSES)


def around_outputs(experiment: Experiment, batch: Any, calls: Sequence[Call], later: bool) -> Arrivals:
    """Follow what calls compute while zeros stand in place of their outputs: what arrives took another way. ``later``:
    into the steps after it, too.

    The zeros have no graph: through one, gradients of zero would carry the calls' marks back.
    """
    bits: dict[Call | str, int] = {call: 1 << number for number, call in enumerate(calls)}
    replaced = dict.fromkeys(calls, lambda tensor: zeros(tensor.detach()))
    flow = Flow(weigh=True)
    watch = Watch(replaced, flow, lambda one: bits.get(one, 0), state=experiment.state)
    return _follow(experiment, batch, flow, watch, bits, _MOST_PASSES if later else 1)


def _follow(
    experiment: Experiment, batch: Any, flow: Flow, watch: Watch, bits: dict[Call | str, int], passes: int
) -> Arrivals:
    """As many steps as it takes until the modules' own tensors carry no new marks."""
    held: list[dict[tuple[str, str], int]] = [{}]

    def settled(outcome: Outcome) -> bool:
        for parameter in experiment.parameters.values():
            parameter.grad = None
        held.append(_marks_of_state(experiment.model, flow))
        return len(held) > 2 and held[-1] == held[-2]

    outcomes = experiment.run(batch, passes=passes, watch=watch, after=settled)
    first, *later = (outcome.marks for outcome in outcomes if outcome.marks is not None)
    on_their_way = held[-1].values() if later and held[-1] != held[-2] else ()
    return Arrivals(
        bits=bits,
        first=first.anywhere,
        later=_union(marks.anywhere for marks in later),
        steps=_union(marks.through_steps for marks in (first, *later)),
        read=_union(marks.read for marks in (first, *later)),
        kept=_kept(experiment.model, flow) | _union(on_their_way),
        changed=watch.changed,
        lost=flow.lost,
        peak_bytes=flow.peaks,
    )


def _union(marks: Iterable[int]) -> int:
    return reduce(or_, marks, 0)


def _own_tensors(model: nn.Module) -> Mapping[tuple[str, str], Tensor]:
    """Parameters, buffers and tensors in attributes, by module and name."""
    found = {}
    for name, module in model.named_modules():
        for held in (module._parameters, module._buffers, vars(module)):
            found.update({(name, key): value for key, value in held.items() if isinstance(value, Tensor)})
    return found


def _marks_of_state(model: nn.Module, flow: Flow) -> dict[tuple[str, str], int]:
    return {name: marks for name, tensor in _own_tensors(model).items() if (marks := flow.of([tensor])[0])}


def _kept(model: nn.Module, flow: Flow) -> int:
    own = {key for tensor in _own_tensors(model).values() for key in flow.keys(tensor)}
    if flow.alive().keys() - own:
        gc.collect()  # what only a cycle holds is not kept
    return _union(marks for key, marks in flow.alive().items() if key not in own)
