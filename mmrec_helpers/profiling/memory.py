"""Memory of a step: its peak and timeline, by region, what is alive at the peak; and a refusal of what is too much."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmrec_helpers.config import InputError, check_positive, resolve_device
from mmrec_helpers.profiling.attribution import UNATTRIBUTED, Attribution, attribute
from mmrec_helpers.profiling.regions import shapes_text
from mmrec_helpers.profiling.timing import synchronize
from mmrec_helpers.profiling.traces import read_trace, record_trace

HOST_LIMIT_BYTES = 16 * 2**30
_HISTORY_ENTRIES = 200_000
_GIB = 2**30


@dataclass(frozen=True)
class MemoryProfile:
    """Memory of one call of a function on one device. All bytes are above what was held before the call.

    peak_bytes  largest sum of tensor memory (CPU: from the allocator's events under the profiler; CUDA:
                torch.cuda.max_memory_allocated without it)
    timeline    one row per allocation or release: ms, bytes (the sum after it), region, phase
    regions     one row per region and phase: peak_bytes (largest sum while there), allocated_bytes (of all its
                allocations), net_bytes (allocations minus releases there), allocations
    largest     the largest pieces alive at the peak: bytes, region, phase, operator, shapes (of its inputs)
    lines       on CUDA the same by the Python line that made them: bytes, line; else empty

        measure_memory(lambda: model.loss(batch).backward()).largest
    """

    device: str
    peak_bytes: int
    timeline: pd.DataFrame
    regions: pd.DataFrame
    largest: pd.DataFrame
    lines: pd.DataFrame

    def to_dict(self, points: int = 2000) -> dict[str, Any]:
        """Plain data for a record; the timeline is thinned to about ``points`` rows, its peak kept."""
        return {
            "device": self.device,
            "peak_bytes": self.peak_bytes,
            "timeline": _thinned(self.timeline, points).to_dict("records"),
            "regions": self.regions.to_dict("records"),
            "largest": self.largest.to_dict("records"),
            "lines": self.lines.to_dict("records"),
        }


def measure_memory(
    function: Callable[[], Any], *, device: str | torch.device = "cpu", largest: int = 15
) -> MemoryProfile:
    """Call ``function`` a few times (first to warm up, later under the profiler) and return its memory.

    ``largest`` is the number of pieces kept of what is alive at the peak.

    >>> measure_memory(lambda: torch.ones(2**20)).peak_bytes  # float32
    4194304
    """
    device = resolve_device(device)
    function()
    trace = record_trace(lambda _: function(), steps=1, device=device, memory=True)
    timeline, regions, alive = memory_of_trace(trace, device.type, largest)
    on_cpu = int(max(timeline["bytes"], default=0))
    return MemoryProfile(
        device=str(device),
        peak_bytes=peak_bytes(function, device) if device.type == "cuda" else on_cpu,
        timeline=timeline,
        regions=regions,
        largest=alive,
        lines=_cuda_lines(function, device, largest),
    )


def peak_bytes(function: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """``measure_memory``'s peak_bytes of a call that has been warmed up, without the rest of the profile.

    >>> peak_bytes(lambda: torch.ones(2**20) + torch.ones(2**20))  # three float32 tensors
    12582912
    """
    device = resolve_device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    trace = record_trace(lambda _: function(), steps=1, device=device, memory=True)
    marks = sorted((e for e in trace["traceEvents"] if e["name"] == "[memory]"), key=lambda e: e["ts"])
    return int(np.cumsum([0] + [mark["args"]["Bytes"] for mark in marks]).max())


def check_host_memory(predicted_bytes: float, limit_bytes: float = HOST_LIMIT_BYTES, what: str = "this run") -> None:
    """Raise an InputError with the numbers if ``what`` is predicted to pass the limit on host memory (16 GiB).

    >>> check_host_memory(2 * 2**30, what="the dense similarity matrix")
    """
    check_positive("host memory", limit_bytes=limit_bytes)
    if not predicted_bytes <= limit_bytes:
        raise InputError(
            f"{what} is predicted to take {predicted_bytes / _GIB:.1f} GiB of host memory: expected at most "
            f"{limit_bytes / _GIB:.1f} GiB; take a smaller scale, another backend, or raise the limit"
        )


def memory_of_trace(
    trace: dict[str, Any], device_type: str = "cpu", largest: int = 15
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(timeline, regions, largest) of the last step of a trace taken with memory events; see MemoryProfile.

    >>> trace = record_trace(lambda k: torch.ones(2**20), steps=1, memory=True)
    >>> timeline, regions, largest = memory_of_trace(trace)
    """
    parts = attribute(read_trace(trace))
    start, end = parts.events.windows[-1]
    marks = parts.events.memory
    marks = marks[marks["at_us"].between(start, end) & (marks["device"] == device_type)]
    marks = _placed(marks.assign(total=marks["bytes"].cumsum()), parts)
    timeline = pd.DataFrame({"ms": (marks["at_us"] - start) / 1e3, "bytes": marks["total"].astype("int64")})
    timeline = timeline.join(marks[["region", "phase"]])
    return timeline, _by_region(marks), _alive_at_peak(marks, largest)


def _placed(marks: pd.DataFrame, parts: Attribution) -> pd.DataFrame:
    """The marks with region, phase, operator and input shapes: those of the innermost host event at each time."""
    pieces = parts.segments.drop(columns="ms").join(parts.host[["name", "kind", "shapes"]], on="event")
    marks = pd.merge_asof(marks, pieces, left_on="at_us", right_on="start_us")
    inside = marks["at_us"] <= marks["end_us"]
    in_operator = inside & marks["kind"].isin(("op", "engine"))
    return marks.assign(
        region=marks["region"].where(inside, UNATTRIBUTED),
        phase=marks["phase"].where(inside, "other"),
        operator=marks["name"].where(in_operator, ""),
        shapes=marks["shapes"].where(in_operator, None).map(shapes_text),
    )


def _by_region(marks: pd.DataFrame) -> pd.DataFrame:
    table = marks.assign(allocated=marks["bytes"].clip(lower=0), allocation=marks["bytes"] > 0)
    grouped = table.groupby(["region", "phase"], sort=False).agg(
        peak_bytes=("total", "max"),
        allocated_bytes=("allocated", "sum"),
        net_bytes=("bytes", "sum"),
        allocations=("allocation", "sum"),
    )
    return grouped.reset_index().sort_values("peak_bytes", ascending=False, ignore_index=True)


def _alive_at_peak(marks: pd.DataFrame, largest: int) -> pd.DataFrame:
    alive: dict[int, int] = {}
    if len(marks):
        peak = int(marks["total"].idxmax())
        for row, (address, size) in enumerate(zip(marks["address"][: peak + 1], marks["bytes"])):
            if size > 0:
                alive[address] = row
            else:
                alive.pop(address, None)
    columns = ["bytes", "region", "phase", "operator", "shapes"]
    table = marks.loc[list(alive.values()), columns]
    return table.sort_values("bytes", ascending=False, kind="stable").head(largest).reset_index(drop=True)


def _thinned(timeline: pd.DataFrame, points: int) -> pd.DataFrame:
    """Every n-th row so that about ``points`` stay, with the row of the peak."""
    if len(timeline) <= points:
        return timeline
    rows = np.unique(np.append(np.linspace(0, len(timeline) - 1, points).astype(int), timeline["bytes"].idxmax()))
    return timeline.iloc[rows].reset_index(drop=True)


def _cuda_lines(function: Callable[[], Any], device: torch.device, largest: int) -> pd.DataFrame:
    if device.type != "cuda":
        return pd.DataFrame(columns=["bytes", "line"])
    torch.cuda.memory._record_memory_history(max_entries=_HISTORY_ENTRIES, stacks="python")
    try:
        function()
        synchronize(device)
        history = torch.cuda.memory._snapshot(device)["device_traces"]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    index = torch.cuda.current_device() if device.index is None else device.index
    return _lines_alive_at_peak(history[index], largest)


def _lines_alive_at_peak(history: Sequence[Mapping[str, Any]], largest: int = 15) -> pd.DataFrame:
    """Replay a CUDA allocator history (entries with action, addr, size, frames) to its peak: bytes by Python line."""
    alive: dict[int, tuple[int, str]] = {}
    total, peak, at_peak = 0, -1, {}
    for entry in history:
        if entry["action"] == "alloc":
            alive[entry["addr"]] = (entry["size"], _line(entry.get("frames", ())))
            total += entry["size"]
        elif entry["action"] == "free_completed" and entry["addr"] in alive:
            total -= alive.pop(entry["addr"])[0]
        if total > peak:
            peak, at_peak = total, dict(alive)
    table = pd.DataFrame(list(at_peak.values()), columns=["bytes", "line"])
    table = table.groupby("line", as_index=False)["bytes"].sum()[["bytes", "line"]]
    return table.sort_values("bytes", ascending=False, kind="stable").head(largest).reset_index(drop=True)


def _line(frames: Sequence[Mapping[str, Any]]) -> str:
    """The innermost frame outside torch itself, as ``folder/file.py:line function``."""
    for frame in frames:
        parts = PurePath(frame["filename"].replace("\\", "/")).parts
        if parts and "torch" not in parts:
            return f"{'/'.join(parts[-2:])}:{frame['line']} {frame['name']}"
    return "unknown"
