"""Memory of a step: its peak and timeline, by region, what is alive at the peak; and a refusal of what is too much."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from mmrec_helpers.config import InputError, check_positive, resolve_device
from mmrec_helpers.profiling.attribution import UNATTRIBUTED, Attribution, attribute
from mmrec_helpers.profiling.regions import shapes_text
from mmrec_helpers.profiling.timing import synchronize
from mmrec_helpers.profiling.trace_events import read_trace
from mmrec_helpers.profiling.traces import record_trace

HOST_LIMIT_BYTES = 16 * 2**30
_SAMPLE_S = 0.002
_HISTORY_ENTRIES = 200_000
_GIB = 2**30


@dataclass(frozen=True)
class MemoryProfile:
    """Memory of one call of a function on one device. All bytes are above what was held before the call.

    peak_bytes      largest sum of tensor memory (CPU: from the allocator's events under the profiler; CUDA:
                    torch.cuda.max_memory_allocated without it)
    peak_rss_bytes  largest growth of the process's resident memory, sampled every 2 ms without the profiler (what
                    other libraries take is in it; memory that the allocator kept from earlier calls is not)
    timeline        one row an allocation or release: ms, bytes (the sum after it), region, phase
    regions         one row a region and phase: peak_bytes (largest sum while there), allocated_bytes (of all its
                    allocations), net_bytes (allocations minus releases there), allocations
    largest         the largest pieces alive at the peak: bytes, region, phase, operator, shapes (of its inputs)
    lines           on CUDA the same by the Python line that made them: bytes, line; else empty
    """

    device: str
    peak_bytes: int
    peak_rss_bytes: int
    timeline: pd.DataFrame
    regions: pd.DataFrame
    largest: pd.DataFrame
    lines: pd.DataFrame

    def to_dict(self, points: int = 2000) -> dict[str, Any]:
        """Plain data for a record; the timeline is thinned to about ``points`` rows, its peak kept."""
        return {
            "device": self.device,
            "peak_bytes": self.peak_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "timeline": thinned(self.timeline, points).to_dict("records"),
            "regions": self.regions.to_dict("records"),
            "largest": self.largest.to_dict("records"),
            "lines": self.lines.to_dict("records"),
        }


def measure_memory(
    function: Callable[[], Any], *, device: str | torch.device = "cpu", largest: int = 15
) -> MemoryProfile:
    """Call ``function`` a few times (once to warm up, once plain, twice under the profiler) and return its memory."""
    device = resolve_device(device)
    function()
    synchronize(device)
    with peak_rss() as rss, _cuda_peak(device) as cuda:
        function()
        synchronize(device)
    trace = record_trace(lambda _: function(), steps=1, device=device, memory=True)
    timeline, regions, alive = memory_of_trace(trace, device.type, largest)
    return MemoryProfile(
        device=str(device),
        peak_bytes=cuda.get("peak_bytes", int(max(timeline["bytes"].max(), 0)) if len(timeline) else 0),
        peak_rss_bytes=rss["peak_bytes"],
        timeline=timeline,
        regions=regions,
        largest=alive,
        lines=_cuda_lines(function, device, largest),
    )


def peak_bytes(function: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """``measure_memory``'s peak_bytes of a call that has been warmed up, without all else that it takes apart."""
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
    """Raise an InputError with the numbers if ``what`` is predicted to pass the limit on host memory."""
    check_positive("host memory", limit_bytes=limit_bytes)
    if not predicted_bytes <= limit_bytes:
        raise InputError(
            f"{what} is predicted to take {predicted_bytes / _GIB:.1f} GiB of host memory: expected at most "
            f"{limit_bytes / _GIB:.1f} GiB; take a smaller scale, another backend, or raise the limit"
        )


def memory_of_trace(
    trace: dict[str, Any], device_type: str = "cpu", largest: int = 15
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(timeline, regions, largest) of the last step of a trace taken with memory events; see MemoryProfile."""
    parts = attribute(read_trace(trace))
    start, end = parts.events.windows[-1]
    marks = parts.events.memory
    marks = marks[marks["at_us"].between(start, end) & (marks["device"] == device_type)].reset_index(drop=True)
    marks["total"] = marks["bytes"].cumsum()
    marks = pd.concat([marks, _place(marks["at_us"].to_numpy(), parts)], axis=1)
    timeline = pd.DataFrame({"ms": (marks["at_us"] - start) / 1e3, "bytes": marks["total"].astype("int64")})
    timeline = timeline.join(marks[["region", "phase"]])
    return timeline, _by_region(marks), _alive_at_peak(marks, largest)


def _place(at_us: np.ndarray, parts: Attribution) -> pd.DataFrame:
    """Region, phase, operator and input shapes at each time: those of the innermost host event."""
    segments, host = parts.segments, parts.events.host
    row = np.searchsorted(segments["start_us"].to_numpy(), at_us, side="right") - 1
    inside = (row >= 0) & (segments["end_us"].to_numpy()[row] >= at_us)
    event = segments["event"].to_numpy()[row]
    in_operator = inside & np.isin(host["kind"].to_numpy()[event], ("op", "engine"))
    shapes = host["shapes"].to_numpy()[event]
    return pd.DataFrame(
        {
            "region": np.where(inside, segments["region"].to_numpy()[row], UNATTRIBUTED),
            "phase": np.where(inside, segments["phase"].to_numpy()[row], "other"),
            "operator": np.where(in_operator, host["name"].to_numpy()[event], ""),
            "shapes": [shapes_text(s) if ok else "" for s, ok in zip(shapes, in_operator)],
        }
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


def thinned(timeline: pd.DataFrame, points: int) -> pd.DataFrame:
    """Every n-th row so that about ``points`` stay, with the row of the peak."""
    if len(timeline) <= points:
        return timeline
    rows = np.unique(np.append(np.linspace(0, len(timeline) - 1, points).astype(int), timeline["bytes"].idxmax()))
    return timeline.iloc[rows].reset_index(drop=True)


@contextmanager
def peak_rss() -> Iterator[dict[str, int]]:
    """Sample the process's resident memory in the block; afterwards ``peak_bytes`` is its largest growth."""
    process = psutil.Process()
    before = process.memory_info().rss
    found = {"peak_bytes": 0}
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            found["peak_bytes"] = max(found["peak_bytes"], process.memory_info().rss - before)
            done.wait(_SAMPLE_S)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield found
    finally:
        done.set()
        sampler.join()
        found["peak_bytes"] = max(found["peak_bytes"], process.memory_info().rss - before)


@contextmanager
def _cuda_peak(device: torch.device) -> Iterator[dict[str, int]]:
    """On CUDA: ``peak_bytes`` allocated above the start of the block; elsewhere nothing."""
    found: dict[str, int] = {}
    if device.type != "cuda":
        yield found
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield found
    found["peak_bytes"] = torch.cuda.max_memory_allocated(device) - before


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
    return lines_alive_at_peak(history[index], largest)


def lines_alive_at_peak(history: Sequence[Mapping[str, Any]], largest: int = 15) -> pd.DataFrame:
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
