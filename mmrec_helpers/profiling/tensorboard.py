"""The one place that knows torch-tb-profiler: it reads that plugin's tables from today's traces, and reads them right.

The plugin (last released in 2023) silently drops or misreads what newer versions of torch write. The cures, made on a
copy of the trace:

- ``cuda_runtime`` and ``cuda_driver`` become ``runtime``; otherwise every operator's device time is 0
- ``user_annotation`` becomes ``cpu_op``; otherwise record_function regions vanish and the data loader shows 0
- ``fwdbwd`` becomes ``forward_backward``
- times become multiples of 1/1024 microsecond from the trace's start, and no event ends after the one around it;
  otherwise rounding makes the plugin drop operators whose ends touch
- a CUDA call and what it launched get the number of the operator around the call, which is how the plugin links them
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.trace_events import load_trace, read_trace

_CATEGORIES = {
    "cuda_runtime": "runtime",
    "cuda_driver": "runtime",
    "user_annotation": "cpu_op",
    "fwdbwd": "forward_backward",
}
_QUANTUM = 1024  # a power of two, so that sums of such times are exact in floating point
_ROLES = ("Kernel", "Memcpy", "Memset", "Communication", "Runtime", "DataLoader", "CpuOp", "Other", "Total")


@dataclass(frozen=True)
class TbTables:
    """torch-tb-profiler's tables of one trace. Times are sums over the whole trace except in ``overview_ms``.

    operators    one row a name, regions included: name, calls, host_total_ms, host_self_ms (without CUDA calls),
                 device_total_ms, device_self_ms
    kernels      one row a device kernel: name, calls, total_ms, mean_ms, min_ms, max_ms (empty without a GPU)
    overview_ms  milliseconds per step by role: Kernel, Memcpy, Memset, Communication, Runtime, DataLoader, CpuOp,
                 Other, Total
    steps        the names of the steps
    """

    operators: pd.DataFrame
    kernels: pd.DataFrame
    overview_ms: dict[str, float]
    steps: tuple[str, ...]


def read_tb_profiler(trace: str | Path | dict[str, Any]) -> TbTables:
    """Let torch-tb-profiler read a trace of torch.profiler (a file, or its JSON data), cured, and return its tables."""
    data = _parse(as_plugin_expects(trace if isinstance(trace, dict) else load_trace(trace)))
    operators = [
        (
            op.name,
            op.calls,
            op.host_duration / 1e3,
            op.self_host_duration / 1e3,
            op.device_duration / 1e3,
            op.self_device_duration / 1e3,
        )
        for op in data.op_list_groupby_name
    ]
    columns = ["name", "calls", "host_total_ms", "host_self_ms", "device_total_ms", "device_self_ms"]
    table = pd.DataFrame(operators, columns=columns).sort_values("host_total_ms", ascending=False, ignore_index=True)
    return TbTables(
        operators=table,
        kernels=_kernels(data.kernel_stat),
        overview_ms={role: cost / 1e3 for role, cost in zip(_ROLES, data.avg_costs.costs)},
        steps=tuple(data.steps_names),
    )


def _parse(trace: dict[str, Any]) -> Any:
    try:
        from torch_tb_profiler.profiler.data import RunProfileData
    except ImportError as error:
        raise InputError("reading a trace this way needs torch-tb-profiler: pip install torch-tb-profiler") from error
    logging.getLogger("torch_tb_profiler").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas on the plugin's use of astype(copy=)
        return RunProfileData.from_json("steps", "1", trace)


def _kernels(stat: pd.DataFrame | None) -> pd.DataFrame:
    columns = {"count": "calls", "sum": "total_ms", "mean": "mean_ms", "min": "min_ms", "max": "max_ms"}
    if stat is None:
        return pd.DataFrame(columns=["name", *columns.values()])
    table = stat[list(columns)].rename(columns=columns)
    times = [name for name in table.columns if name.endswith("_ms")]
    table[times] = table[times].astype(float) / 1e3
    return table.rename_axis("name").reset_index().astype({"name": object})


def as_plugin_expects(trace: dict[str, Any]) -> dict[str, Any]:
    """A copy of a trace with the cures above; the trace itself stays as it is."""
    events = read_trace(trace)
    cured = [_renamed(event, events.base_us) for event in trace["traceEvents"]]
    host, device = events.host, events.device
    number = _operator_numbers(host)
    for table in (host, device):
        for position, start, end in zip(table["position"], table["start_us"], table["end_us"]):
            first, last = _quantised(start), _quantised(end)
            cured[position] |= {"ts": first, "dur": last - first}
    for position, own in zip(host["position"], number):
        cured[position]["args"] = cured[position].get("args", {}) | {"External id": int(own)}
    for position, launched_by in zip(device["position"], device["launched_by"]):
        own = int(number[launched_by]) if launched_by >= 0 else 0
        cured[position]["args"] = cured[position].get("args", {}) | {"External id": own}
    return trace | {"traceEvents": cured}


def _renamed(event: dict[str, Any], base_us: float) -> dict[str, Any]:
    category = event.get("cat")
    event = event | ({"cat": _CATEGORIES[category]} if category in _CATEGORIES else {})
    return event | {"ts": _quantised(float(event["ts"]) - base_us)} if "ts" in event else event


def _quantised(time_us: float) -> float:
    return math.floor(time_us * _QUANTUM) / _QUANTUM


def _operator_numbers(host: pd.DataFrame) -> list[int]:
    """A number from 1 for each operator and region; a CUDA call has that of the one around it (0 if there is none)."""
    numbers: list[int] = []
    for row, (kind, parent) in enumerate(zip(host["kind"], host["parent"])):
        around = numbers[parent] if parent >= 0 else 0
        numbers.append(around if kind == "runtime" else row + 1)
    return numbers
