"""Waste in a training step, by what the data flow proves: repeated and constant work, and lost gradients."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mmrec_helpers.profiling.dataflow import Operation, Place, RecordedStep, is_mark, source_line
from mmrec_helpers.profiling.dead_work import Finding
from mmrec_helpers.profiling.dead_work.interventions import Call
from mmrec_helpers.profiling.flow import written_arguments

CONSTANT, REPEATED, LOST = "constant", "repeated", "lost gradient"
DEAD_CALL, DEAD_PARAMETER = "dead call", "dead parameter"
PROVED, EQUAL, UNDECIDED = "proved", "only equal", "undecided"
_ADVICE = {
    CONSTANT: "Compute it once, where what it reads is made, and keep the result: nothing in it changes from step to "
    "step (if what it reads is drawn anew each epoch, compute it there).",
    REPEATED: "Compute it once and use the result again: {first} has computed the same before.",
    LOST: "Register it: assign it as nn.Parameter, after any .to(device). Today no optimizer that is given "
    "model.parameters() moves it; a model in which it learns is another model, so compare its accuracy.",
    DEAD_CALL: "Leave it out under these settings: zeros in place of its result change no loss and no gradient.",
    DEAD_PARAMETER: "Remove it, or freeze it under these settings: the optimizer keeps it for nothing.",
}
_LATER = "dead in later steps, but not in the first one (of an epoch, for MMRec's models): compute it there alone"
_EQUAL_ADVICE = "Do not rely on it: the values were equal here, but what they are computed from may differ elsewhere."

_FILLS = re.compile(r"aten::(zeros|ones|full|empty|scalar_tensor|lift_fresh)\w*|aten::new_\w+|aten::\w+_like")


@dataclass(frozen=True)
class Waste:
    """One piece of waste in a step, by source line or name.

    kind       "constant", "repeated", "lost gradient", "dead call" or "dead parameter"
    verdict    "proved" by the data flow (dead: by intervention), "only equal" (what was computed came out equal, but
               nothing shows that it must), "undecided" (of dead work alone)
    what       the operators, or the name of the tensor, module call or parameter
    place, source  the line ("folder/file.py:12 function") and its text
    module     path of the module in which it runs
    calls      operators, or calls, per step
    ms         their own time per step (of dead calls the saving); None for a tensor without work of its own
    saving_ms, saving_q1_ms, saving_q3_ms  of a step: the share that it takes less without this work, measured in pairs,
               of its forward and backward pass; None if not measured
    because    what was seen; advice: what to do
    """

    kind: str
    verdict: str
    what: str
    place: str
    source: str
    module: str
    calls: int
    ms: float | None
    because: str
    advice: str
    saving_ms: float | None = None
    saving_q1_ms: float | None = None
    saving_q3_ms: float | None = None

    def with_saving(self, saving: tuple[float, float, float] | None) -> "Waste":
        if saving is None:
            return self
        own = max(saving[0], 0.0) if self.kind == DEAD_CALL else self.ms
        return replace(self, ms=own, saving_ms=saving[0], saving_q1_ms=saving[1], saving_q3_ms=saving[2])


# ------------------------------------------------------------------------------------ repeated and constant work


def removable(step: RecordedStep) -> dict[int, str]:
    """Index of each operator outside the backward pass that could be left out, to "constant" or "repeated".

    Work on a storage that is made anew counts only as a whole: an operator whose result is written to by one that must
    stay, or that writes to what such a one has made, must stay too.
    """
    operations = step.operations
    found = {}
    for operation in operations:
        if operation.phase != "backward" and not operation.view:
            if operation.known and not operation.depends:
                found[operation.index] = CONSTANT
            elif operation.same_as is not None:
                found[operation.index] = REPEATED
    makers = {storage: operation.index for operation in operations for storage in operation.creates}
    writers: dict[int, list[int]] = {}
    for operation in operations:
        for storage in operation.writes:
            writers.setdefault(storage, []).append(operation.index)
    while True:
        stays = [index for index in found if _must_stay(operations[index], operations, found, makers, writers)]
        if not stays:
            return found
        for index in stays:
            del found[index]


def _must_stay(
    operation: Operation,
    operations: Sequence[Operation],
    found: Mapping[int, str],
    makers: Mapping[int, int],
    writers: Mapping[int, list[int]],
) -> bool:
    written = [index for storage in operation.creates for index in writers.get(storage, ())]
    if any(index not in found for index in written):
        return True
    if any(makers.get(storage) not in found for storage in operation.writes):
        return True
    if _FILLS.fullmatch(operation.name) and not written:
        return True  # to keep it costs as much as to fill it anew
    if found[operation.index] == CONSTANT or operation.same_as is None:
        return False
    mirrored = {operations[index].same_as for index in found}
    first = operations[operation.same_as]
    return any(index not in mirrored for storage in first.creates for index in writers.get(storage, ()))


def only_equal(step: RecordedStep, before: RecordedStep, proved: Mapping[int, str]) -> dict[int, str]:
    """Operators of the forward pass whose result had the same content in the step before (with other parameters and
    another batch: "constant") or as an earlier one of the same name in the step ("repeated"), without proof."""
    earlier = {o.position: o for o in before.operations if o.phase != "backward"}
    seen: set[tuple[str, int]] = set()
    found = {}
    for operation in step.operations:
        if operation.digest is None or not operation.reads_tensors or operation.phase != "forward":
            continue
        twin, same = earlier.get(operation.position), (operation.name, operation.digest)
        if operation.index not in proved:
            if twin is not None and (twin.name, twin.digest) == same:
                found[operation.index] = CONSTANT
            elif same in seen:
                found[operation.index] = REPEATED
        seen.add(same)
    return found


def work_by_line(step: RecordedStep, found: Mapping[int, str], verdict: str) -> list[tuple[Waste, list[int]]]:
    """One piece of waste per kind and source line, the most expensive first, with the operators' indices."""
    groups: dict[tuple[str, Place | None], list[int]] = {}
    for index, kind in found.items():
        groups.setdefault((kind, step.operations[index].place), []).append(index)
    pieces = [(_work(step, kind, place, verdict, indices), indices) for (kind, place), indices in groups.items()]
    return sorted(pieces, key=lambda piece: -(piece[0].ms or 0))


def _work(step: RecordedStep, kind: str, place: Place | None, verdict: str, indices: list[int]) -> Waste:
    operations = [step.operations[index] for index in indices]
    firsts = [step.operations[o.same_as].place for o in operations if o.same_as is not None]
    first = str(firsts[0]) if firsts else "an operator"
    names = dict.fromkeys(o.name.removeprefix("aten::") for o in sorted(operations, key=lambda o: -o.ms))
    if verdict == EQUAL:
        because = "came out equal in two steps" if kind == CONSTANT else "came out equal to an earlier result"
    elif kind == CONSTANT:
        because = "the same operators on the same values in two steps: no parameter, batch or random number reaches it"
    elif any(o.phase == "recompute" for o in operations):
        because = "recomputed in the backward pass: checkpointing trades this time for memory"
    else:
        because = f"the same operators on the same values as {first}"
    return Waste(
        kind=kind,
        verdict=verdict,
        what=", ".join(names),
        place=str(place or "unknown"),
        source=source_line(place),
        module=operations[0].module,
        calls=len(operations),
        ms=sum(o.ms for o in operations),
        because=because,
        advice=_ADVICE[kind].format(first=first) if verdict == PROVED else _EQUAL_ADVICE,
    )


class Changed(Exception):
    """A step that did not call the operators that the recorded one did."""


class LeavingOut(TorchDispatchMode):
    """Runs a step without some of its operators: their results are kept ones.

    plan   position of an operator to leave out -> its name, and the position of the one whose result it takes (its own:
           kept from an earlier run)
    kept   results by position: the ``results`` of a run with ``plan`` empty and ``keep`` set to those positions
    """

    def __init__(self, plan: Mapping[int, tuple[str, int]], kept: dict[int, Any], keep: Iterable[int] = ()) -> None:
        super().__init__()
        self.plan, self.kept = plan, kept
        self._keep = set(keep) | {source for position, (_, source) in plan.items() if source != position}
        self.results: dict[int, Any] = {}
        self._position = -1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        in_backward = torch._C._current_autograd_node() is not None and not torch.is_grad_enabled()
        if in_backward or is_mark(func):
            return func(*args, **kwargs)
        self._position += 1
        planned = self.plan.get(self._position)
        if planned is None:
            out = func(*args, **kwargs)
            if self._position in self._keep:
                self.results[self._position] = _alias(out)  # not itself: torch treats a result that others hold apart
            return out
        name, source = planned
        if func._schema.name != name:
            raise Changed(f"{func._schema.name} at the place of {name}")
        written = written_arguments(func, args, kwargs)
        if written:
            return written[0]  # what its storage holds is the kept result already
        return _alias(self.kept[source] if source == self._position else self.results[source])


def _alias(result: Any) -> Any:
    return tree_map_only(Tensor, torch.ops.aten.detach.default, result)


def plan_of(step: RecordedStep, indices: Iterable[int], found: Mapping[int, str]) -> dict[int, tuple[str, int]]:
    """What ``LeavingOut`` needs to leave these operators out."""
    plan = {}
    for index in indices:
        operation = step.operations[index]
        same = operation.same_as
        first = operation if found[index] == CONSTANT or same is None else step.operations[same]
        plan[operation.position] = (operation.name, first.position)
    return plan


# ------------------------------------------------------------------------------------------------ lost gradients


def lost_tensors(model: nn.Module, loss: Tensor, batch: Any) -> list[Tensor]:
    """The tensors that ``loss.backward()`` will give a gradient and that are neither parameters nor in the batch."""
    known = {id(tensor) for tensor in (*model.parameters(), *tree_leaves(batch))}
    return [tensor for tensor in leaves_of(loss) if id(tensor) not in known]


def leaves_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that ``tensor.backward()`` would give a gradient; itself, if it was computed from none."""
    if tensor.grad_fn is None:
        return [tensor] if tensor.requires_grad else []
    found: list[Tensor] = []
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def lost_gradients(model: nn.Module, tensors: Iterable[Tensor]) -> list[Waste]:
    """Those of the tensors that did receive a gradient that is not zero, named by the attribute that holds them."""
    return [_lost(model, tensor) for tensor in tensors if tensor.grad is not None and bool(tensor.grad.any())]


def _lost(model: nn.Module, tensor: Tensor) -> Waste:
    module, name = _holder(model, tensor)
    path = next((path for path, one in model.named_modules() if one is module), "")
    place = _assignment(module, name)
    size = f"{' x '.join(map(str, tensor.shape))} of {str(tensor.dtype).removeprefix('torch.')}"
    return Waste(
        kind=LOST,
        verdict=PROVED,
        what=f"{path}.{name}".strip(".") or f"a tensor {size}",
        place=str(place or "unknown"),
        source=source_line(place),
        module=path,
        calls=1,
        ms=None,
        because=f"{size} requires a gradient, receives one, and is not among the model's parameters",
        advice=_ADVICE[LOST],
    )


def _holder(model: nn.Module, tensor: Tensor) -> tuple[nn.Module | None, str]:
    """The module and attribute that hold the tensor, or what was made of it (``nn.Parameter(...).to(device)``)."""

    def comes_from(value: Any) -> bool:
        if value is tensor:
            return True
        node = getattr(value, "grad_fn", None) if isinstance(value, Tensor) else None
        return node is not None and any(getattr(n, "variable", None) is tensor for n, _ in node.next_functions)

    for exactly in (lambda value: value is tensor, comes_from):
        for module in model.modules():
            for name, value in vars(module).items():
                if exactly(value):
                    return module, name
    return None, ""


def _assignment(module: nn.Module | None, name: str) -> Place | None:
    """The first line in the methods of the module's class that assigns the attribute."""
    for cls in type(module).__mro__ if name else ():
        for method in filter(inspect.isfunction, vars(cls).values()):
            try:
                lines, start = inspect.getsourcelines(method)
            except OSError:
                continue
            for number, line in enumerate(lines):
                if re.search(rf"\bself\.{re.escape(name)}\s*(:[^=]*)?=[^=]", line):
                    return Place(method.__code__.co_filename, start + number, method.__name__)
    return None


# ---------------------------------------------------------------------------------------------------- dead work


def dead_work(
    findings: Iterable[Finding], calls: Mapping[tuple[str, int], Place | None], at_first: Iterable[Finding]
) -> list[tuple[Waste, list[Call]]]:
    """The findings of ``find_dead_work`` as waste, with the calls of each: outermost calls by line, and parameters.

    at_first  the findings before the model's first step: what is not dead there too is undecided
    """
    dead = {(f.name, f.call) for f in at_first if f.verdict == "dead"}
    groups: dict[tuple, list[Finding]] = {}
    for finding in findings:
        if finding.verdict == "dead" and (finding.name, finding.call) not in dead:
            finding = replace(finding, verdict="undecided", reason=_LATER)
        if finding.inside is None:
            place = None if finding.call is None else calls.get((finding.name, finding.call))
            groups.setdefault((finding.call is None, finding.verdict, place, finding.reason), []).append(finding)
    pieces = [(_dead(group, place), _calls(group)) for (_, _, place, _), group in groups.items()]
    return sorted(pieces, key=lambda piece: (piece[0].kind, piece[0].verdict != PROVED, -(piece[0].ms or 0)))


def _calls(findings: Sequence[Finding]) -> list[Call]:
    return [Call(f.name, f.call) for f in findings if f.call is not None and f.verdict == "dead"]


def _dead(findings: Sequence[Finding], place: Place | None) -> Waste:
    first = findings[0]
    numbers: dict[str, list[int | None]] = {}
    for finding in findings:
        numbers.setdefault(finding.name, []).append(finding.call)
    named = [name if first.call is None else f"{name} (call {', '.join(map(str, n))})" for name, n in numbers.items()]
    kind = DEAD_PARAMETER if first.call is None else DEAD_CALL
    return Waste(
        kind=kind,
        verdict=PROVED if first.verdict == "dead" else UNDECIDED,
        what=", ".join(named),
        place=str(place or ""),
        source=source_line(place),
        module=first.name if len(numbers) == 1 and first.call is not None else "",
        calls=len(findings),
        ms=sum(finding.cost_ms or 0.0 for finding in findings),
        because=first.reason,
        advice=_ADVICE[kind] if first.verdict == "dead" else "",
    )
