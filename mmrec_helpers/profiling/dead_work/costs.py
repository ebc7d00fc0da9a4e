"""What module calls and parameters cost per step, in time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from mmrec_helpers.profiling.attribution import attribute
from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment
from mmrec_helpers.profiling.timing import time_once_ms
from mmrec_helpers.profiling.traces import STEP_PREFIX, TraceEvents, read_trace, record_trace

_STEPS = 3
_MARK = "dead work "


def call_costs(experiment: Experiment, calls: Sequence[Call], batches: Sequence[Any]) -> dict[Call, tuple[float, int]]:
    """(milliseconds, bytes) of each call per step: its forward and backward, and the most memory it adds while it runs.

    Read from a profile of up to three steps (one per batch) in which each call is a region of its own; what ran inside
    another of the calls counts for both. On CUDA the time is the device's.

        call_costs(Experiment(model, loss), [Call("layer", 0)], batches)
    """
    marks = {call: f"{_MARK}{number}" for number, call in enumerate(calls)}
    steps = min(len(batches), _STEPS)
    device = next((p.device for p in experiment.parameters.values()), torch.device("cpu"))
    trace = record_trace(
        lambda k: experiment.run(batches[k % steps], marks=marks), steps=steps, device=device, memory=True
    )
    events = read_trace({"traceEvents": [e for e in trace["traceEvents"] if not _is_other_region(e)]})
    # The first of the steps + 1 runs is not in the trace: the rest are batches 1, 2, ..., 0, each once.
    spent_ms = _region_ms(events, device.type) / steps
    outer = _enclosing(events)
    total = {mark: float(spent_ms.get(mark, 0.0)) for mark in marks.values()}
    for mark, around in outer.items():
        for name in around:
            total[name] += float(spent_ms.get(mark, 0.0))
    peaks = _peak_bytes(events, device.type)
    return {call: (total[mark], peaks.get(mark, 0)) for call, mark in marks.items()}


def _is_other_region(event: dict[str, Any]) -> bool:
    """The model's own regions, which would take what lies in them from the call around them."""
    return event.get("cat") == "user_annotation" and not event["name"].startswith((_MARK, STEP_PREFIX))


def _region_ms(events: TraceEvents, device_type: str) -> pd.Series:
    parts = attribute(events)
    table = parts.device if device_type == "cuda" else parts.segments
    return (table["end_us"] - table["start_us"]).groupby(table["region"]).sum() / 1e3


def _enclosing(events: TraceEvents) -> dict[str, set[str]]:
    """Mark to the marks that it ran inside of."""
    host = events.host
    found: dict[str, set[str]] = {}
    for row in host.index[host["name"].str.startswith(_MARK)]:
        around, parent = found.setdefault(host["name"][row], set()), host["parent"][row]
        while parent >= 0:
            if host["name"][parent].startswith(_MARK):
                around.add(host["name"][parent])
            parent = host["parent"][parent]
    return found


def _peak_bytes(events: TraceEvents, device_type: str) -> dict[str, int]:
    """For each mark the largest sum of allocations minus releases since it began."""
    marks = events.memory[events.memory["device"] == device_type]
    peaks: dict[str, int] = {}
    host = events.host
    for name, start, end in host.loc[host["name"].str.startswith(_MARK), ["name", "start_us", "end_us"]].to_numpy():
        inside = marks[marks["at_us"].between(start, end)]
        peak = int(max(inside["bytes"].cumsum().max(), 0)) if len(inside) else 0
        peaks[name] = max(peaks.get(name, 0), peak)
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
