"""What dead work costs: what a step saves without it, measured in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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

_ROUNDS, _SECONDS = 51, 8.0
_STEP, _CONTROL, _TOGETHER = "step", "control", "together"


@dataclass(frozen=True)
class Saving:
    """What one step in pairs with the full one saves: quartiles of the differences, in milliseconds.

    share  of the full step: 1 - the median of the paired ratios
    """

    ms: float
    q1_ms: float
    q3_ms: float
    share: float


def measure_savings(
    model: nn.Module, loss: Loss, batches: Iterable[Any], findings: Sequence[Finding]
) -> dict[str, Any]:
    """What leaving dead calls out of a step saves, forward and backward, on the first batch.

    Each dead call that runs inside no other reported one is left out: its module is not run and returns the output
    that it had, without a graph. The full step, the step without each, without all of them, and a control (the full
    step once more, whose "saving" is noise) are timed in turn in every round, and compared within the rounds.

    findings  of ``find_dead_work`` with the same model, loss and batches

    Returns step_ms (the full step's median), rounds, and ``Saving`` for "together", "control" and by call
    ("name#call"). A step without a call that ends in an error has no saving.

        measure_savings(model, loss, batches, find_dead_work(model, loss, batches, costs=False))["together"].share
    """
    experiment = Experiment(model, loss)
    with experiment.restored():
        return _measure(experiment, next(iter(batches)), findings)


def _measure(experiment: Experiment, batch: Any, findings: Sequence[Finding]) -> dict[str, Any]:
    dead = [Call(f.name, f.call) for f in findings if f.kind == "call" and f.verdict == "dead" and f.inside is None]
    watch = Watch(record=dead)
    experiment.run(batch, watch=watch)
    steps = {_STEP: {}, _CONTROL: {}, _TOGETHER: watch.outputs}
    steps |= {str(call): {call: output} for call, output in watch.outputs.items()}
    runs = {name: partial(_step_without, experiment, batch, outputs) for name, outputs in steps.items()}
    runs = {name: run for name, run in runs.items() if _works(run)}
    device = next((p.device for p in experiment.parameters.values()), torch.device("cpu"))
    timings = measure(runs, repeats=_ROUNDS, warmup=1, device=device, max_seconds=_SECONDS)
    full = np.asarray(timings.ms[_STEP])
    savings = {name: _saving(full, np.asarray(ms)) for name, ms in timings.ms.items() if name != _STEP}
    return {"step_ms": float(np.median(full)), "rounds": timings.rounds} | savings


def _saving(full: np.ndarray, without: np.ndarray) -> Saving:
    q1, median, q3 = np.percentile(full - without, (25, 50, 75))
    return Saving(float(median), float(q1), float(q3), float(1 - np.median(without / full)))


def _step_without(experiment: Experiment, batch: Any, outputs: Mapping[Call, Any]) -> None:
    with experiment.left_out(outputs):
        experiment.step(batch)


def _works(run: Callable[[], None]) -> bool:
    try:
        run()
    except Exception:  # the model needs what the call leaves besides its output
        return False
    return True


def with_costs(findings: Sequence[Finding], experiment: Experiment, batches: Sequence[Any]) -> list[Finding]:
    """The findings with what they save, see ``Finding``."""
    savings = _measure(experiment, batches[0], findings) if any(f.kind == "call" for f in findings) else {}
    return [_with_cost(finding, savings, experiment) for finding in findings]


def _with_cost(finding: Finding, savings: Mapping[str, Any], experiment: Experiment) -> Finding:
    if finding.kind == "parameter":
        return replace(finding, cost_ms=_update_ms(experiment.parameters[finding.name], finding))
    saving = savings.get(str(Call(finding.name, finding.call)))
    if saving is None:
        return finding
    return replace(finding, cost_ms=saving.ms, cost_q1_ms=saving.q1_ms, cost_q3_ms=saving.q3_ms)


def _update_ms(parameter: nn.Parameter, finding: Finding) -> float:
    """An Adam update where a gradient is made (the finding counts its bytes), the best of three."""
    if finding.cost_bytes == parameter.numel() * parameter.element_size():
        return 0.0
    twin = nn.Parameter(parameter.detach().clone())
    twin.grad = torch.zeros_like(twin)
    optimizer = torch.optim.Adam([twin])
    optimizer.step()
    return min(time_once_ms(optimizer.step, parameter.device) for _ in range(3))
