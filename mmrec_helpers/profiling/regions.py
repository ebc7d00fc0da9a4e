"""Where a training step goes: time by region and phase, the operators behind it, and what the device waits for."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmrec_helpers.config import check_at_least, resolve_device
from mmrec_helpers.profiling.attribution import UNATTRIBUTED, Attribution, attribute
from mmrec_helpers.profiling.opcost import operator_cost
from mmrec_helpers.profiling.timing import gc_paused, time_once_ms
from mmrec_helpers.profiling.traces import read_trace, record_trace, write_trace

IDLE = "device idle"
_TIMELINE_EVENTS = 400  # of each timeline in a record; what is around an event is longer, so it is there too
_KEYS = ["region", "phase"]
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "hipLaunch")


@dataclass(frozen=True)
class StepProfile:
    """What a profile of some training steps says: the tables are of one of them, that of the median duration (the
    shorter of two), so that a step which something disturbed is in none of them.

    regions     one row per region and phase: calls (entries of the region; for backward the autograd nodes evaluated),
                self_ms (host), device_ms (kernels, copies and fills launched there), ms (what adds up to the step: host
                time on the CPU, device time on CUDA with the idle time as a row of its own)
    operators   one row per region, phase, operator and input shapes, the most expensive first: calls, self_ms,
                device_ms, and bytes and operations computed from the shapes (``operator_cost``; NaN where not known)
    kernels     one row per region, phase and device kernel: calls, device_ms (empty on the CPU)
    timeline    the nested host events for a flame chart: thread, depth, start_ms, ms, name, kind, region, phase
    device_timeline  what ran on the device: start_ms, ms, name, region, phase (empty on the CPU)
    copies      one row per region and kind of copy between host and device ("Memcpy HtoD ..."): calls, bytes (empty on
                the CPU)
    step_ms, profiled_step_ms   each step's wall time without and with the profiler
    step        which of the profiled ones, from 0, the tables are of

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
    step: int
    step_ms: tuple[float, ...] = ()
    launches_per_step: int = 0

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
            "step": self.step,
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
    parts = attribute(read_trace(trace))
    durations = [(end - start) / 1e3 for start, end in parts.events.windows]
    step = int(np.argsort(durations, kind="stable")[(len(durations) - 1) // 2])
    host, kernels, segments = (table[table["step"] == step] for table in (parts.host, parts.device, parts.segments))
    start_us = parts.events.windows[step][0]
    launches = host["name"].str.startswith(_LAUNCHES) & (host["kind"] == "runtime")
    counted = kernels.assign(calls=1, device_ms=kernels["ms"], kernel=kernels["name"], copy=kernels["name"])
    copies = counted[counted["category"] == "gpu_memcpy"]
    return StepProfile(
        device=device,
        steps=len(durations),
        step=step,
        regions=_regions(parts, host, kernels, segments, durations[step]),
        operators=_operators(parts, host, kernels, segments),
        kernels=_sums(counted, [*_KEYS, "kernel"], ["calls", "device_ms"], "device_ms"),
        copies=_sums(copies, ["region", "copy"], ["calls", "bytes"], "bytes"),
        timeline=_timeline(host, start_us, ["thread", "depth", "start_ms", "ms", "name", "kind", *_KEYS]),
        device_timeline=_timeline(kernels, start_us, ["start_ms", "ms", "name", *_KEYS]),
        profiled_step_ms=tuple(durations),
        launches_per_step=int(launches.sum()),
    )


def _sums(table: pd.DataFrame, keys: list[str], values: list[str], by: str) -> pd.DataFrame:
    """Sums of the values, the largest ``by`` first."""
    sums = table.groupby(keys)[values].sum(min_count=1)
    return sums.reset_index().sort_values(by, ascending=False, ignore_index=True)


def _timeline(events: pd.DataFrame, start_us: float, columns: list[str]) -> pd.DataFrame:
    """The events, times from the step's start."""
    return events.assign(start_ms=(events["start_us"] - start_us) / 1e3)[columns].reset_index(drop=True)


def _regions(
    parts: Attribution, host: pd.DataFrame, kernels: pd.DataFrame, segments: pd.DataFrame, step_ms: float
) -> pd.DataFrame:
    # Of kernels that overlap, the one that began first has the time: nothing counts twice.
    begun = kernels["end_us"].cummax().shift(fill_value=-np.inf)
    own = (kernels["end_us"] - kernels["start_us"].clip(lower=begun)).clip(lower=0) / 1e3
    columns = {
        "calls": _region_calls(parts, host),
        "self_ms": segments.groupby(_KEYS)["ms"].sum(),
        "device_ms": kernels.groupby(_KEYS)["ms"].sum(),
        "ms": kernels.assign(ms=own).groupby(_KEYS)["ms"].sum(),
    }
    table = pd.DataFrame(columns).rename_axis(_KEYS).fillna(0.0).reset_index()
    if kernels.empty:
        table["ms"] = table["self_ms"]
    else:
        table.loc[len(table)] = [IDLE, "other", 0.0, 0.0, 0.0, max(step_ms - table["ms"].sum(), 0.0)]
    return table.sort_values("ms", ascending=False, ignore_index=True)


def _region_calls(parts: Attribution, host: pd.DataFrame) -> pd.Series:
    """How often each region was entered; for backward, how many autograd nodes were evaluated for it."""
    around = parts.host[_KEYS].reindex(host["parent"]).set_axis(host.index)
    entered = (host["kind"] == "region") & (host["region"] != UNATTRIBUTED) & (host[_KEYS] != around).any(axis=1)
    nodes = host["kind"] == "engine"
    again = host[host.index.isin(parts.recomputing)].assign(phase="recompute")
    return pd.concat([host[entered | nodes], again]).groupby(_KEYS).size()


def _operators(parts: Attribution, host: pd.DataFrame, kernels: pd.DataFrame, segments: pd.DataFrame) -> pd.DataFrame:
    table = host.assign(
        self_ms=segments.groupby("event")["ms"].sum().reindex(host.index, fill_value=0.0),
        device_ms=kernels.groupby("launched_by")["ms"].sum().reindex(host.index, fill_value=0.0),
    )
    table = _with_costs(table[table["kind"] == "op"], parts.host).rename(columns={"name": "operator"})
    values = ["calls", "self_ms", "device_ms", "bytes", "operations"]
    keys, by = [*_KEYS, "operator", "shapes"], "device_ms" if len(kernels) else "self_ms"
    return _sums(table.assign(shapes=table["shapes"].map(shapes_text)), keys, values, by)


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


def top_operators(profile: StepProfile, top: int = 3, least_share: float = 0.01) -> pd.DataFrame:
    """The ``top`` most expensive operators of each stage that takes at least ``least_share`` of the step.

    A stage is what region names begin with (``routing.visual.0`` belongs to ``routing``); the most expensive comes
    first. Columns: stage, phase, operator, calls (per step), ms (host time on the CPU, device time on CUDA), share (of
    the step), megabytes and megaflop (per step, see ``operator_cost``; NaN where not known), gbytes_s (megabytes / ms).

        top_operators(profile_steps(step), top=1)
    """
    check_at_least("top operators", 1, top=top)
    by = "device_ms" if len(profile.kernels) else "self_ms"
    table = profile.operators[profile.operators["region"] != UNATTRIBUTED]
    table = table.assign(stage=table["region"].str.partition(".")[0], ms=table[by])
    table["operator"] = table["operator"].str.removeprefix("aten::")
    sums = _sums(table, ["stage", "phase", "operator"], ["calls", "ms", "bytes", "operations"], "ms")
    stage_ms = sums.groupby("stage")["ms"].transform("sum")
    sums = sums.assign(stage_ms=stage_ms, share=sums["ms"] / profile.regions["ms"].sum())
    sums = sums[stage_ms >= least_share * profile.regions["ms"].sum()]
    sums = sums.sort_values(["stage_ms", "stage", "ms"], ascending=False, kind="stable")
    found = sums.groupby("stage", sort=False).head(top).reset_index(drop=True)
    found["megabytes"], found["megaflop"] = found["bytes"] / 1e6, found["operations"] / 1e6
    found["gbytes_s"] = (found["megabytes"] / found["ms"]).where(found["ms"] > 0)
    return found[["stage", "phase", "operator", "calls", "ms", "share", "megabytes", "megaflop", "gbytes_s"]]


def device_use(profiles: Mapping[str, StepProfile]) -> pd.DataFrame:
    """One row per model: launches_per_step, busy_ms, idle_ms, idle_share of the profiled step; NaN on the CPU.

    device_use({"GRCN": profile_steps(step, device="cuda")})
    """
    rows = []
    for model, profile in profiles.items():
        total = profile.regions["ms"].sum()
        idle = profile.regions.loc[profile.regions["region"] == IDLE, "ms"].sum()
        used = (profile.launches_per_step, total - idle, idle, idle / total)
        rows.append((model, *(used if len(profile.kernels) else [np.nan] * len(used))))
    return pd.DataFrame(rows, columns=["model", "launches_per_step", "busy_ms", "idle_ms", "idle_share"])
