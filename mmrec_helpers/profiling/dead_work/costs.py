"""What module calls and parameters cost per step, in time and memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmrec_helpers.profiling.attribution import Attribution, attribute
from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment
from mmrec_helpers.profiling.timing import time_once_ms
from mmrec_helpers.profiling.traces import STEP_PREFIX, read_trace, record_trace

_STEPS = 3
_MARK = "dead work "


def call_costs(
    experiment: Experiment, around: Mapping[Call, Sequence[Call]], batches: Sequence[Any]
) -> dict[Call, tuple[float, int]]:
    """(milliseconds, bytes) of each call per step: its forward and backward, and the most memory it adds while it runs.

    Read from a profile of up to three steps (one per batch) in which each call is a region of its own; what ran inside
    another of the calls counts for both. On CUDA the time is the device's.

    around  each call to those of the calls that it runs inside of

        call_costs(Experiment(model, loss), {Call("layer", 0): []}, batches)
    """
    marks = {call: f"{_MARK}{number}" for number, call in enumerate(around)}
    steps = min(len(batches), _STEPS)
    device = next((p.device for p in experiment.parameters.values()), torch.device("cpu"))
    trace = record_trace(
        lambda k: experiment.run(batches[k % steps], marks=marks), steps=steps, device=device, memory=True
    )
    # The model's own regions would take what lies in them from the call around them.
    ours = (_MARK, STEP_PREFIX)
    kept = [e for e in trace["traceEvents"] if e.get("cat") != "user_annotation" or e["name"].startswith(ours)]
    parts = attribute(read_trace({"traceEvents": kept}))
    # The first of the steps + 1 runs is not in the trace: the rest are batches 1, 2, ..., 0, each once.
    spent_ms = (parts.device if device.type == "cuda" else parts.segments).groupby("region")["ms"].sum() / steps
    total = dict.fromkeys(around, 0.0)
    for call, outer in around.items():
        for one in (call, *outer):
            total[one] += float(spent_ms.get(marks[call], 0.0))
    peaks = _peak_bytes(parts, device.type)
    return {call: (total[call], peaks.get(mark, 0)) for call, mark in marks.items()}


def _peak_bytes(parts: Attribution, device_type: str) -> dict[str, int]:
    """For each mark the largest sum of allocations minus releases since it began."""
    memory = parts.events.memory[parts.events.memory["device"] == device_type]
    peaks: dict[str, int] = {}
    marks = parts.host[parts.host["name"].str.startswith(_MARK)]
    for name, start, end in zip(marks["name"], marks["start_us"], marks["end_us"]):
        held = memory["bytes"][memory["at_us"].between(start, end)].cumsum()
        peaks[name] = max(peaks.get(name, 0), int(max(held, default=0)))
    return peaks


def parameter_cost(parameter: nn.Parameter, gradient_made: bool) -> tuple[float, int]:
    """(milliseconds, bytes) of a parameter per step: an Adam update and a gradient's bytes only where one is made.

    >>> parameter_cost(nn.Parameter(torch.zeros(10)), gradient_made=False)
    (0.0, 40)
    """
    size = parameter.numel() * parameter.element_size()
    if not gradient_made:
        return 0.0, size
    twin = nn.Parameter(parameter.detach().clone())
    twin.grad = torch.zeros_like(twin)
    optimizer = torch.optim.Adam([twin])
    optimizer.step()
    return min(time_once_ms(optimizer.step, parameter.device) for _ in range(3)), 2 * size
