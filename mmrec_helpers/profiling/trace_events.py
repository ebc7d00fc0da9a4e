"""Reading torch.profiler's Chrome traces: host events as a nested table, device events with what launched them."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmrec_helpers.config import InputError

STEP_PREFIX = "ProfilerStep#"
ENGINE_PREFIX = "autograd::engine::evaluate_function"
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
_HOST_KINDS = {"cpu_op": "op", "user_annotation": "region", "cuda_runtime": "runtime", "cuda_driver": "runtime"}
_TOLERANCE_US = 0.002  # times are rounded to nanoseconds, so an end may pass its parent's or the next event's start


@dataclass(frozen=True)
class TraceEvents:
    """The events of one trace. Times are microseconds from the first event.

    host    one row an event, sorted by start, parents before children. Columns: name, kind ("op", "engine" (one
            autograd node being evaluated), "region" (record_function), "step" or "runtime" (a CUDA call)), thread,
            start_us, end_us, sequence (-1 if none), backward (True where the event names the forward thread of its
            node), external_id, correlation (-1 if none), shapes, dtypes, position (in the trace's list), parent (row,
            -1 if none), depth
    device  one row a kernel, copy or fill on the device. Columns: name, category, start_us, end_us, stream, bytes (of a
            copy or fill, else 0), position, launched_by (row of ``host``, -1 if not known)
    memory  one row an allocation or release: at_us, address, bytes (negative when freed), total_bytes, device
    base_us the trace's own time of the first host event
    """

    host: pd.DataFrame
    device: pd.DataFrame
    memory: pd.DataFrame
    base_us: float

    @property
    def main_thread(self) -> int:
        """The thread that runs the steps (without step marks: the one with the most operators)."""
        steps = self.host[self.host["kind"] == "step"]
        return int((steps if len(steps) else self.host)["thread"].mode().iloc[0])

    @property
    def windows(self) -> list[tuple[float, float]]:
        """Start and end of each profiled step in microseconds; the whole trace when it carries no step marks."""
        steps = self.host[self.host["kind"] == "step"]
        if len(steps):
            return list(zip(steps["start_us"], steps["end_us"]))
        return [(float(self.host["start_us"].min()), float(self.host["end_us"].max()))]


def load_trace(path: str | Path) -> dict[str, Any]:
    """The JSON of a Chrome trace, compressed or not; raises InputError when it cannot be read as one."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except FileNotFoundError:
        raise InputError(f"no trace {path}") from None
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a trace: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("traceEvents"), list):
        raise InputError(f"{path}: not a trace of torch.profiler: expected a field traceEvents")
    return content


def read_trace(trace: str | Path | dict[str, Any]) -> TraceEvents:
    """Read a trace file (or the loaded JSON of one) into tables; raises InputError when it has no host events."""
    content = trace if isinstance(trace, dict) else load_trace(trace)
    spans = [(position, e) for position, e in enumerate(content["traceEvents"]) if e.get("ph") == "X"]
    host_rows = [_host_row(e) | {"position": position} for position, e in spans if e.get("cat") in _HOST_KINDS]
    if not host_rows:
        raise InputError("the trace has no host events: expected one of torch.profiler with CPU activity")
    base = min(row["start_us"] for row in host_rows)
    host = _nested(pd.DataFrame(host_rows), base)
    device = _device_table([(position, e) for position, e in spans if e.get("cat") in DEVICE_CATEGORIES], host, base)
    marks = [e for e in content["traceEvents"] if e.get("name") == "[memory]"]
    return TraceEvents(host, device, _memory_table(marks, base), base)


def _host_row(event: dict[str, Any]) -> dict[str, Any]:
    args = event.get("args", {})
    name, kind = event["name"], _HOST_KINDS[event["cat"]]
    if name.startswith(STEP_PREFIX):
        kind = "step"
    elif name.startswith(ENGINE_PREFIX):
        kind = "engine"
    return {
        "name": name,
        "kind": kind,
        "thread": int(event["tid"]),
        "start_us": float(event["ts"]),
        "end_us": float(event["ts"]) + float(event.get("dur", 0)),
        "sequence": int(args.get("Sequence number", -1)),
        "backward": int(args.get("Fwd thread id", 0)) > 0,
        "external_id": int(args.get("External id", -1)),
        "correlation": int(args.get("correlation", -1)),
        "shapes": args.get("Input Dims"),
        "dtypes": args.get("Input type"),
    }


def _nested(host: pd.DataFrame, base: float) -> pd.DataFrame:
    """Sort the events and find each one's parent and depth from the times on its thread."""
    host[["start_us", "end_us"]] -= base
    host["minus_end"] = -host["end_us"]
    host = host.sort_values(["start_us", "minus_end", "external_id"], kind="stable", ignore_index=True)
    host = host.drop(columns="minus_end")
    starts, ends, threads = host["start_us"].to_numpy(), host["end_us"].to_numpy(copy=True), host["thread"].to_numpy()
    parent, depth = np.full(len(host), -1), np.zeros(len(host), dtype=int)
    stacks: dict[int, list[int]] = {}
    for row in range(len(host)):
        stack = stacks.setdefault(threads[row], [])
        while stack and ends[stack[-1]] <= starts[row] + _TOLERANCE_US:
            ends[stack[-1]] = min(ends[stack[-1]], starts[row])
            stack.pop()
        if stack:
            parent[row], depth[row] = stack[-1], len(stack)
            ends[row] = min(ends[row], ends[stack[-1]])
        stack.append(row)
    return host.assign(end_us=ends, parent=parent, depth=depth)


def _device_table(events: list[tuple[int, dict[str, Any]]], host: pd.DataFrame, base: float) -> pd.DataFrame:
    by_correlation = _last_row(host[host["kind"] == "runtime"], "correlation")
    by_external_id = _last_row(host[host["kind"] != "runtime"], "external_id")
    rows = []
    for position, event in events:
        args = event.get("args", {})
        launched_by = by_correlation.get(args.get("correlation"), by_external_id.get(args.get("External id"), -1))
        start = float(event["ts"]) - base
        end = start + float(event.get("dur", 0))
        moved = (args.get("stream", -1), args.get("bytes", 0))
        rows.append((event["name"], event["cat"], start, end, *moved, position, launched_by))
    columns = ["name", "category", "start_us", "end_us", "stream", "bytes", "position", "launched_by"]
    types = {"start_us": float, "end_us": float, "bytes": int, "position": int, "launched_by": int}
    return pd.DataFrame(rows, columns=columns).astype(types).sort_values("start_us", ignore_index=True)


def _last_row(host: pd.DataFrame, column: str) -> dict[int, int]:
    known = host[host[column] >= 0]
    return dict(zip(known[column], known.index))


def _memory_table(marks: list[dict[str, Any]], base: float) -> pd.DataFrame:
    rows = []
    for mark in marks:
        args = mark["args"]
        device = "cpu" if args.get("Device Type", 0) == 0 else "cuda"
        rows.append((float(mark["ts"]) - base, args["Addr"], args["Bytes"], args.get("Total Allocated", 0), device))
    columns = ["at_us", "address", "bytes", "total_bytes", "device"]
    return pd.DataFrame(rows, columns=columns).sort_values("at_us", kind="stable", ignore_index=True)
