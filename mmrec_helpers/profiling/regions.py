"""Where a training step goes: time by region and phase, the operators behind it, and what the device waits for."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmrec_helpers.config import check_at_least, resolve_device
from mmrec_helpers.profiling.attribution import UNATTRIBUTED, Attribution, attribute, union
from mmrec_helpers.profiling.opcost import operator_cost
from mmrec_helpers.profiling.timing import gc_paused, time_once_ms
from mmrec_helpers.profiling.traces import read_trace, record_trace, write_trace

IDLE = "device idle"
_TIMELINE_EVENTS = 400  # of each timeline in a record; what is around an event is longer, so it is there too
_REGION_COLUMNS = ["region", "phase", "calls", "self_ms", "device_ms", "ms"]
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "hipLaunch")


@dataclass(frozen=True)
class StepProfile:
    """What a profile of some training steps says; all times and counts are means per step.

    regions     one row per region and phase: calls (entries of the region; for backward the autograd nodes evaluated),
                self_ms (host), device_ms (kernels, copies and fills launched there), ms (what adds up to the step: host
                time on the CPU, device time on CUDA with the idle time as a row of its own)
    operators   one row per region, phase, operator and input shapes, the most expensive first: calls, self_ms,
                device_ms, and bytes and operations computed from the shapes (``operator_cost``; NaN where not known)
    kernels     one row per region, phase and device kernel: calls, device_ms (empty on the CPU)
    timeline    the nested host events of the last step for a flame chart: thread, depth, start_ms, ms, name, kind,
                region, phase
    device_timeline  what ran on the device in that step: start_ms, ms, name, region, phase (empty on the CPU)
    copies      one row per region and kind of copy between host and device ("Memcpy HtoD ..."): calls, bytes (empty on
                the CPU)
    step_ms, profiled_step_ms   each step's wall time without and with the profiler

        profile_steps(step).regions.groupby("region")["ms"].sum()
    """

    device: str
    steps: int
    regions: pd.DataFrame
    operators: pd.DataFrame
    kernels: pd.DataFrame
    copies: pd.DataFrame
    timeline: pd.DataFrame
    device_timeline: pd.DataFrame
    profiled_step_ms: tuple[float, ...]
    step_ms: tuple[float, ...] = ()
    launches_per_step: float = 0.0

    @property
    def unattributed_share(self) -> float:
        """The part of the profiled step that lies in no named region (idle time of the device not counted as such)."""
        unnamed = self.regions["region"] == UNATTRIBUTED
        return float(self.regions.loc[unnamed, "ms"].sum() / self.regions["ms"].sum())

    def to_dict(self, operators: int = 60) -> dict[str, Any]:
        """Plain data for a record: times, the tables (``operators`` rows at most of operators and kernels), and the
        longest events of the timelines as CSV text (see ``timeline_of``)."""
        return {
            "device": self.device,
            "steps": self.steps,
            "step_ms": list(self.step_ms),
            "profiled_step_ms": list(self.profiled_step_ms),
            "unattributed_share": self.unattributed_share,
            "launches_per_step": self.launches_per_step,
            "regions": self.regions.to_dict("records"),
            "operators": self.operators.head(operators).to_dict("records"),
            "kernels": self.kernels.head(operators).to_dict("records"),
            "copies": self.copies.to_dict("records"),
            "timeline": _csv(self.timeline),
            "device_timeline": _csv(self.device_timeline),
        }


def timeline_of(text: str) -> pd.DataFrame:
    """A timeline as ``StepProfile`` has it (its longest events), from the CSV text in a record.

    timeline_of(profile.to_dict()["timeline"])
    """
    return pd.read_csv(io.StringIO(text), keep_default_na=False)


def _csv(timeline: pd.DataFrame) -> str:
    longest = timeline.nlargest(_TIMELINE_EVENTS, "ms", keep="first").sort_index()
    return longest.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def profile_steps(
    step: Callable[[int], Any],
    *,
    steps: int = 3,
    warmup: int = 1,
    device: str | torch.device = "cpu",
    trace_path: str | Path | None = None,
) -> StepProfile:
    """Run ``step(k)`` some times with and without torch.profiler and return where its time goes.

    step        called with k = 0, 1, ...; names its regions with ``torch.profiler.record_function``
    steps       how many are profiled, and how many run plain: half of these before and half after the profiled ones
    warmup      steps before the first
    trace_path  keeps the Chrome trace of the profiled steps (gzipped if it ends in ``.gz``)

    Raises InputError for counts that make no sense.

    >>> profile = profile_steps(lambda k: torch.ones(100, 100).exp(), steps=2)
    >>> set(profile.operators["operator"]) >= {"aten::ones", "aten::exp"}
    True
    """
    check_at_least("profile_steps", 1, steps=steps)
    check_at_least("profile_steps", 0, warmup=warmup)
    device = resolve_device(device)
    numbers = count()

    def run(_: int = 0) -> None:
        step(next(numbers))

    for _ in range(warmup):
        run()
    plain = _plain_ms(run, (steps + 1) // 2, device)
    trace = record_trace(run, steps=steps, device=device)
    plain += _plain_ms(run, steps - (steps + 1) // 2, device)
    if trace_path is not None:
        write_trace(trace, trace_path)
    return replace(profile_of_trace(trace, device=str(device)), step_ms=tuple(plain))


def _plain_ms(run: Callable[[], None], steps: int, device: torch.device) -> list[float]:
    with gc_paused():
        return [time_once_ms(run, device) for _ in range(steps)]


def profile_of_trace(trace: str | Path | dict[str, Any], device: str = "cpu") -> StepProfile:
    """The tables of a trace taken earlier (a file, or its JSON data); times without the profiler stay empty.

    profile_of_trace("GRCN.trace.json.gz").regions
    """
    events = read_trace(trace)
    parts = attribute(events)
    windows = events.windows
    steps = len(windows)
    kernels = parts.device[parts.device["step"] >= 0]
    launches = events.host["name"].str.startswith(_LAUNCHES) & (events.host["kind"] == "runtime")
    return StepProfile(
        device=device,
        steps=steps,
        regions=_regions(parts, kernels, steps),
        operators=_operators(parts, kernels, steps),
        kernels=_kernels(kernels, steps),
        copies=_copies(kernels, steps),
        timeline=_timeline(parts),
        device_timeline=_device_timeline(kernels, windows[-1][0], steps - 1),
        profiled_step_ms=tuple((end - start) / 1e3 for start, end in windows),
        launches_per_step=float(_inside(events.host[launches], windows).sum() / steps),
    )


def _inside(table: pd.DataFrame, windows: list[tuple[float, float]]) -> pd.Series:
    inside = pd.Series(False, index=table.index)
    for start, end in windows:
        inside |= table["start_us"].between(start, end)
    return inside


def _idle_ms(kernels: pd.DataFrame, windows: list[tuple[float, float]]) -> float:
    """Time inside the steps in which nothing runs on the device, summed over the steps."""
    busy = union(kernels[["start_us", "end_us"]].to_numpy())
    idle = 0.0
    for start, end in windows:
        clipped = np.clip(busy, start, end)
        idle += (end - start) - (clipped[:, 1] - clipped[:, 0]).sum()
    return idle / 1e3


def _regions(parts: Attribution, kernels: pd.DataFrame, steps: int) -> pd.DataFrame:
    keys = ["region", "phase"]
    table = pd.DataFrame(
        {
            "calls": _region_calls(parts) / steps,
            "self_ms": _duration_ms(parts.segments).groupby([parts.segments[k] for k in keys]).sum() / steps,
            "device_ms": _duration_ms(kernels).groupby([kernels[k] for k in keys]).sum() / steps,
        }
    )
    table = table.rename_axis(keys).fillna(0.0).reset_index()
    if kernels.empty:
        table["ms"] = table["self_ms"]
    else:
        table["ms"] = _shared_out(kernels, steps).reindex(pd.MultiIndex.from_frame(table[keys])).fillna(0).to_numpy()
        table.loc[len(table)] = [IDLE, "other", 0.0, 0.0, 0.0, _idle_ms(kernels, parts.events.windows) / steps]
    return table[_REGION_COLUMNS].sort_values("ms", ascending=False, ignore_index=True)


def _shared_out(kernels: pd.DataFrame, steps: int) -> pd.Series:
    """Device time by region with nothing counted twice: of kernels that overlap, the one that began first has it."""
    end = kernels["end_us"].cummax().shift(fill_value=-np.inf)
    own = (kernels["end_us"] - kernels["start_us"].clip(lower=end)).clip(lower=0) / 1e3
    return own.groupby([kernels["region"], kernels["phase"]]).sum() / steps


def _duration_ms(table: pd.DataFrame) -> pd.Series:
    return (table["end_us"] - table["start_us"]) / 1e3


def _region_calls(parts: Attribution) -> pd.Series:
    """How often each region was entered; for backward, how many autograd nodes were evaluated for it."""
    host = parts.events.host.assign(region=parts.labels["region"], phase=parts.labels["phase"])
    host = host[_inside(host, parts.events.windows)]
    around = parts.labels.reindex(host["parent"]).set_index(host.index)
    entered = (host["kind"] == "region") & (host["region"] != UNATTRIBUTED)
    entered &= (host["region"] != around["region"]) | (host["phase"] != around["phase"])
    nodes = host["kind"] == "engine"
    again = host[host.index.isin(parts.recomputing)].assign(phase="recompute")
    return pd.concat([host[entered | nodes], again]).groupby(["region", "phase"]).size()


def _operators(parts: Attribution, kernels: pd.DataFrame, steps: int) -> pd.DataFrame:
    host = parts.events.host
    own = _duration_ms(parts.segments).groupby(parts.segments["event"]).sum()
    launched = kernels["launched_by"].map(_operator_of(host)) if len(kernels) else kernels["launched_by"]
    table = host.assign(
        region=parts.labels["region"],
        phase=parts.labels["phase"],
        self_ms=own.reindex(host.index, fill_value=0.0),
        device_ms=_duration_ms(kernels).groupby(launched).sum().reindex(host.index, fill_value=0.0),
    )
    table = table[(table["kind"] == "op") & _inside(table, parts.events.windows)]
    table = _with_costs(table, host).assign(shapes=table["shapes"].map(shapes_text))
    keys = ["region", "phase", "name", "shapes"]
    sums = table.groupby(keys)[["calls", "self_ms", "device_ms", "bytes", "operations"]].sum(min_count=1) / steps
    sums = sums.reset_index().rename(columns={"name": "operator"})
    by = "device_ms" if len(kernels) else "self_ms"
    return sums.sort_values(by, ascending=False, ignore_index=True)


def _operator_of(host: pd.DataFrame) -> pd.Series:
    """For each host event the operator that it is, or the nearest around it (a CUDA call lies inside its operator)."""
    nearest = np.arange(len(host))
    kinds, parents = host["kind"].to_numpy(), host["parent"].to_numpy()
    for row in range(len(host)):
        if kinds[row] == "runtime" and parents[row] >= 0:
            nearest[row] = nearest[parents[row]]
    return pd.Series(nearest, index=host.index)


def _with_costs(table: pd.DataFrame, host: pd.DataFrame) -> pd.DataFrame:
    """Add calls, bytes and operations. An operator inside one whose cost is known (or of its own name) adds no cost."""
    names, parents = host["name"].to_numpy(), host["parent"].to_numpy()
    counted: set[int] = set()
    calls, costs = [], []
    for row, name, shapes, dtypes in zip(table.index, table["name"], table["shapes"], table["dtypes"]):
        cost = operator_cost(name, shapes, dtypes)
        inside = parents[row] in counted
        calls.append(0 if parents[row] >= 0 and names[parents[row]] == name else 1)
        costs.append((np.nan, np.nan) if inside else cost)
        if inside or not np.isnan(cost[0]):
            counted.add(row)
    return table.assign(calls=calls, bytes=[c[0] for c in costs], operations=[c[1] for c in costs])


def shapes_text(shapes: Any) -> str:
    """A trace's input shapes in short; numbers and lists of tensors are left out.

    >>> shapes_text([[30, 20], [], [20, 10]])
    '30x20 20x10'
    """
    lists = [s for s in shapes or [] if isinstance(s, list) and s]
    return " ".join("x".join(map(str, s)) for s in lists if all(isinstance(size, int) for size in s))


def _kernels(kernels: pd.DataFrame, steps: int) -> pd.DataFrame:
    table = kernels.assign(calls=1, device_ms=_duration_ms(kernels)).rename(columns={"name": "kernel"})
    sums = table.groupby(["region", "phase", "kernel"])[["calls", "device_ms"]].sum() / steps
    return sums.reset_index().sort_values("device_ms", ascending=False, ignore_index=True)


def _copies(kernels: pd.DataFrame, steps: int) -> pd.DataFrame:
    table = kernels[kernels["category"] == "gpu_memcpy"].assign(calls=1).rename(columns={"name": "copy"})
    sums = table.groupby(["region", "copy"])[["calls", "bytes"]].sum() / steps
    return sums.reset_index().sort_values("bytes", ascending=False, ignore_index=True)


def _timeline(parts: Attribution) -> pd.DataFrame:
    """The host events of the last step, times from its start."""
    start, end = parts.events.windows[-1]
    host = parts.events.host
    host = host[(host["start_us"] >= start) & (host["end_us"] <= end)]
    table = pd.DataFrame(
        {
            "thread": host["thread"],
            "depth": host["depth"],
            "start_ms": (host["start_us"] - start) / 1e3,
            "ms": _duration_ms(host),
            "name": host["name"],
            "kind": host["kind"],
        }
    )
    return table.join(parts.labels).reset_index(drop=True)


def _device_timeline(kernels: pd.DataFrame, start_us: float, step: int) -> pd.DataFrame:
    """What the last step launched, times from the start of that step."""
    own = kernels[kernels["step"] == step]
    times = {"start_ms": (own["start_us"] - start_us) / 1e3, "ms": _duration_ms(own)}
    return pd.DataFrame({**times, **{name: own[name] for name in ("name", "region", "phase")}}).reset_index(drop=True)
