"""What dead work costs: what a step saves without it, measured in pairs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment, Loss, Watch
from mmrec_helpers.profiling.timing import measure, time_once_ms

if TYPE_CHECKING:
    from mmrec_helpers.profiling.dead_work.finder import Finding

_ROUNDS, _SECONDS = 51, 5.0  # of the control and all calls together, and of each call
_STEP, CONTROL, TOGETHER = "step", "control", "together"


@dataclass(frozen=True)
class Saving:
    """What a step saves beside the full one, timed in pairs.

    ms, q1_ms, q3_ms           median and quartiles of the differences within the rounds
    share, q1_share, q3_share  of the full step: the same of 1 - t(without) / t(full)
    rounds                     how many pairs there were
    """

    ms: float
    q1_ms: float
    q3_ms: float
    share: float
    q1_share: float
    q3_share: float
    rounds: int


def measure_savings(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    findings: Sequence[Finding],
    beside: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Saving]:
    """What leaving dead calls out of a step (forward and backward, no optimizer) saves, on the first batch.

    Each dead call that runs inside no other reported one is left out: its module is not run and returns the output
    that it had, without a graph. The full step, the step without all of them and a control (the full step once more,
    whose "saving" is noise) are timed in turn in every round, and compared within the rounds; then in the same way the
    full step and the step without each of them.

    findings  of ``find_dead_work`` with the same model, loss and batches
    beside    by name, other steps (of another model, say), timed in the rounds of all calls together and the control

    Returns a ``Saving`` by call ("name#call"), for "together" and "control", and by the names of ``beside``; none where
    no call is dead. A step without a call that ends in an error has no saving.

        measure_savings(model, loss, batches, find_dead_work(model, loss, batches, costs=False))["together"].share
    """
    dead = dead_calls(findings)
    if not dead:
        return {}
    experiment, batch = Experiment(model, loss), next(iter(batches))
    device = next((p.device for p in experiment.parameters.values()), torch.device("cpu"))
    savings: dict[str, Saving] = {}
    with experiment.restored():
        for groups in ({CONTROL: [], TOGETHER: dead}, {str(call): [call] for call in dead}):
            runs = steps_without(experiment, batch, {_STEP: [], **groups}, partial(experiment.step, batch))
            runs |= (beside or {}) if CONTROL in groups else {}
            times = dict(measure(runs, repeats=_ROUNDS, warmup=1, device=device, max_seconds=_SECONDS).ms)
            full = np.asarray(times.pop(_STEP))
            savings |= {name: _saving(full, np.asarray(ms)) for name, ms in times.items()}
    return savings


def dead_calls(findings: Iterable[Finding]) -> list[Call]:
    """The dead calls that run inside no other reported one."""
    return [Call(f.name, f.call) for f in findings if f.call is not None and f.verdict == "dead" and f.inside is None]


def steps_without(
    experiment: Experiment, batch: Any, groups: Mapping[str, Collection[Call]], step: Callable[[], Any]
) -> dict[str, Callable[[], Any]]:
    """By name, a step in which a group of calls does not run: each returns what it did on the batch. Left out are
    groups of which none runs, and steps that end in an error."""
    watch = Watch(record=set().union(*groups.values()))
    experiment.run(batch, watch=watch)

    def run(calls: Collection[Call]) -> Any:
        with experiment.left_out(watch, watch.outputs.keys() & set(calls)):
            return step()

    there = {name: calls for name, calls in groups.items() if not calls or watch.outputs.keys() & set(calls)}
    runs = {name: partial(run, calls) for name, calls in there.items()}
    return {name: run for name, run in runs.items() if _works(run)}


def _saving(full: np.ndarray, without: np.ndarray) -> Saving:
    q1_ms, ms, q3_ms = np.percentile(full - without, (25, 50, 75)).tolist()
    q1_share, share, q3_share = np.percentile(1 - without / full, (25, 50, 75)).tolist()
    return Saving(ms, q1_ms, q3_ms, share, q1_share, q3_share, len(full))


def _works(run: Callable[[], Any]) -> bool:
    try:
        run()
    except Exception:  # the model needs what the call leaves besides its output
        return False
    return True


def with_costs(findings: Sequence[Finding], savings: Mapping[str, Saving], model: nn.Module) -> list[Finding]:
    """The findings with their cost_ms: ``with_costs(findings, measure_savings(...), model)``."""
    parameters, priced = dict(model.named_parameters()), []
    for finding in findings:
        if finding.call is None:
            priced.append(replace(finding, cost_ms=_update_ms(parameters[finding.name], finding)))
        elif saving := savings.get(str(Call(finding.name, finding.call))):
            priced.append(replace(finding, cost_ms=saving.ms, cost_q1_ms=saving.q1_ms, cost_q3_ms=saving.q3_ms))
        else:
            priced.append(finding)
    return priced


def _update_ms(parameter: nn.Parameter, finding: Finding) -> float:
    """An Adam update where a gradient is made (the finding counts its bytes), the best of three."""
    if finding.cost_bytes == parameter.numel() * parameter.element_size():
        return 0.0
    twin = nn.Parameter(parameter.detach().clone())
    twin.grad = torch.zeros_like(twin)
    optimizer = torch.optim.Adam([twin])
    optimizer.step()
    return min(time_once_ms(optimizer.step, parameter.device) for _ in range(3))
