"""Traces of torch.profiler: taken over a few steps, written as Chrome traces, and read into tables."""

import gzip
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile, schedule

from mmrec_helpers.config import InputError, check_at_least, resolve_device
from mmrec_helpers.files import atomic_file, check_file
from mmrec_helpers.profiling.timing import gc_paused, synchronize

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch 2.13 prints a line for each probe otherwise
STEP_PREFIX = "ProfilerStep#"
_ENGINE_PREFIX = "autograd::engine::evaluate_function"
_ABOUT_THE_MACHINE = ("host_name", "traceName")
_DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
_HOST_KINDS = {"cpu_op": "op", "user_annotation": "region", "cuda_runtime": "runtime", "cuda_driver": "runtime"}
_TOLERANCE_US = 0.002  # times are rounded to nanoseconds, so an end may pass its parent's or the next event's start


def record_trace(
    step: Callable[[int], Any], *, steps: int = 3, device: str | torch.device = "cpu", memory: bool = False
) -> dict[str, Any]:
    """Run ``step(k)`` ``steps`` + 1 times under torch.profiler and return the trace of all but the first as JSON data.

    Each step ends with a synchronised device, so that what it launched lies inside it. ``memory`` adds an event for
    each allocation and release. The trace carries operator shapes; its fields that name the machine are left out.

    >>> trace = record_trace(lambda k: torch.ones(3) + k, steps=2)
    >>> {"aten::add", "ProfilerStep#1", "ProfilerStep#2"} <= {event["name"] for event in trace["traceEvents"]}
    True
    """
    check_at_least("record_trace", 1, steps=steps)
    device = resolve_device(device)
    cuda = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler = profile(
            activities=[ProfilerActivity.CPU, *cuda],
            schedule=schedule(wait=0, warmup=1, active=steps, repeat=1),
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
            record_shapes=True,
            profile_memory=memory,
        )
        with gc_paused(), profiler:
            for k in range(steps + 1):
                step(k)
                synchronize(device)
                profiler.step()
        trace = load_trace(path)
    return {key: value for key, value in trace.items() if key not in _ABOUT_THE_MACHINE}


def write_trace(trace: dict[str, Any], path: str | Path) -> Path:
    """Write a trace for Perfetto (ui.perfetto.dev) or chrome://tracing, gzipped if the name ends in ``.gz``.

    Written whole or not at all; returns the path. Raises NotWritten, and InputError for a file that is there and is no
    trace. ``load_trace`` reads it again.

        write_trace(record_trace(lambda k: model.loss(batch).backward()), "step.trace.json.gz")
    """
    path = check_file(path, "trace", _is_trace)
    content = json.dumps(trace, separators=(",", ":")).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with atomic_file(path, "wb") as file:
        file.write(content)
    return path


def _is_trace(path: Path) -> bool:
    try:
        return bool(load_trace(path))
    except InputError:
        return False


@dataclass(frozen=True)
class TraceEvents:
    """The events of one trace. Times are microseconds from the first event.

    host    one row per event, sorted by start, parents before children. Columns: name, kind ("op", "engine" (one
            autograd node being evaluated), "region" (record_function), "step" or "runtime" (a CUDA call)), thread,
            start_us, end_us, ms, sequence (-1 if none), backward (True where the event names the forward thread of its
            node), external_id, correlation (-1 if none), shapes, dtypes, position (in the trace's list), parent (row,
            -1 if none), depth, caller (row: of a CUDA call the nearest event around it that is none, -1 if there is
            none; any other event's own)
    device  one row per kernel, copy or fill on the device. Columns: name, category, start_us, end_us, ms, bytes (of a
            copy or fill, else 0), position, launched_by (row of ``host``: the caller, -1 if not known)
    memory  one row per allocation or release: at_us, address, bytes (negative when freed), device
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
    """The JSON data of a Chrome trace, gzipped or not; raises InputError when it cannot be read as one.

    >>> load_trace("missing.json")
    Traceback (most recent call last):
    mmrec_helpers.config.InputError: no trace missing.json
    """
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
    """Read a trace (a file, or its JSON data) into tables; raises InputError when it has no host events.

    >>> events = read_trace(record_trace(lambda k: torch.ones(3), steps=2))
    >>> len(events.windows), "aten::ones" in set(events.host["name"])
    (2, True)
    """
    content = trace if isinstance(trace, dict) else load_trace(trace)
    spans = [(position, e) for position, e in enumerate(content["traceEvents"]) if e.get("ph") == "X"]
    host_rows = [_host_row(e) | {"position": position} for position, e in spans if e.get("cat") in _HOST_KINDS]
    if not host_rows:
        raise InputError("the trace has no host events: expected one of torch.profiler with CPU activity")
    base = min(row["start_us"] for row in host_rows)
    host = _nested(pd.DataFrame(host_rows), base)
    device = _device_table([(position, e) for position, e in spans if e.get("cat") in _DEVICE_CATEGORIES], host, base)
    marks = [e for e in content["traceEvents"] if e.get("name") == "[memory]"]
    return TraceEvents(host, device, _memory_table(marks, base), base)


def _host_row(event: dict[str, Any]) -> dict[str, Any]:
    args = event.get("args", {})
    name, kind = event["name"], _HOST_KINDS[event["cat"]]
    if name.startswith(STEP_PREFIX):
        kind = "step"
    elif name.startswith(_ENGINE_PREFIX):
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
    parent, depth, caller = np.full(len(host), -1), np.zeros(len(host), dtype=int), np.arange(len(host))
    calls = (host["kind"] == "runtime").to_numpy()
    stacks: dict[int, list[int]] = {}
    for row in range(len(host)):
        stack = stacks.setdefault(threads[row], [])
        while stack and ends[stack[-1]] <= starts[row] + _TOLERANCE_US:
            ends[stack[-1]] = min(ends[stack[-1]], starts[row])
            stack.pop()
        if stack:
            parent[row], depth[row] = stack[-1], len(stack)
            ends[row] = min(ends[row], ends[stack[-1]])
        if calls[row]:
            caller[row] = caller[parent[row]] if stack else -1
        stack.append(row)
    return host.assign(end_us=ends, ms=(ends - starts) / 1e3, parent=parent, depth=depth, caller=caller)


def _device_table(events: list[tuple[int, dict[str, Any]]], host: pd.DataFrame, base: float) -> pd.DataFrame:
    calls, callers = host[host["kind"] == "runtime"], host[(host["kind"] != "runtime") & (host["external_id"] >= 0)]
    by_correlation = dict(zip(calls["correlation"], calls["caller"]))
    by_external_id = dict(zip(callers["external_id"], callers["caller"]))
    rows = []
    for position, event in events:
        args = event.get("args", {})
        launched_by = by_correlation.get(args.get("correlation"), by_external_id.get(args.get("External id"), -1))
        start = float(event["ts"]) - base
        end = start + float(event.get("dur", 0))
        rows.append((event["name"], event["cat"], start, end, args.get("bytes", 0), position, launched_by))
    columns = ["name", "category", "start_us", "end_us", "bytes", "position", "launched_by"]
    types = {"start_us": float, "end_us": float, "bytes": int, "position": int, "launched_by": int}
    table = pd.DataFrame(rows, columns=columns).astype(types).sort_values("start_us", ignore_index=True)
    return table.assign(ms=(table["end_us"] - table["start_us"]) / 1e3)


def _memory_table(marks: list[dict[str, Any]], base: float) -> pd.DataFrame:
    rows = []
    for mark in marks:
        args = mark["args"]
        device = "cpu" if args.get("Device Type", 0) == 0 else "cuda"
        rows.append((float(mark["ts"]) - base, args["Addr"], args["Bytes"], device))
    columns = ["at_us", "address", "bytes", "device"]
    return pd.DataFrame(rows, columns=columns).sort_values("at_us", kind="stable", ignore_index=True)
