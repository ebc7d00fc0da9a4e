"""The one place that knows torch-tb-profiler: it reads that plugin's tables from today's traces, and reads them right.

The plugin (last released in 2023) silently drops or misreads what newer versions of torch write. A copy of the trace is
normalised for it:

- ``cuda_runtime`` and ``cuda_driver`` become ``runtime``; otherwise every operator's device time is 0
- ``user_annotation`` becomes ``cpu_op``; otherwise record_function regions vanish and the data loader shows 0
- ``fwdbwd`` becomes ``forward_backward``
- times become multiples of 1/1024 microsecond from the trace's start, and no event ends after the one around it;
  otherwise rounding makes the plugin drop operators whose ends touch
- a CUDA call and what it launched get the number of the operator around the call, which is how the plugin links them

``adapter_against_trace`` checks what the plugin then says against sums taken straight from the trace.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.traces import load_trace, read_trace, write_trace

_CATEGORIES = {
    "cuda_runtime": "runtime",
    "cuda_driver": "runtime",
    "user_annotation": "cpu_op",
    "fwdbwd": "forward_backward",
}
_QUANTUM = 1024  # a power of two, so that sums of such times are exact in floating point
_ROUNDING_MS = 1e-5  # the plugin's times are floored to 1/1024 microsecond, per event
_ROLES = ("Kernel", "Memcpy", "Memset", "Communication", "Runtime", "DataLoader", "CpuOp", "Other", "Total")


@dataclass(frozen=True)
class TbTables:
    """torch-tb-profiler's tables of one trace. Times are sums over the whole trace except in ``overview_ms``.

    operators    one row per name, regions included: name, calls, host_total_ms, host_self_ms (without CUDA calls),
                 device_total_ms, device_self_ms
    kernels      one row per device kernel: name, calls, total_ms, mean_ms, min_ms, max_ms (empty without a GPU)
    overview_ms  milliseconds per step by role: Kernel, Memcpy, Memset, Communication, Runtime, DataLoader, CpuOp,
                 Other, Total

        read_tb_profiler("GRCN.trace.json.gz").overview_ms["Total"]
    """

    operators: pd.DataFrame
    kernels: pd.DataFrame
    overview_ms: dict[str, float]


def read_tb_profiler(trace: str | Path | dict[str, Any]) -> TbTables:
    """Let torch-tb-profiler read a trace of torch.profiler (a file, or its JSON data), normalised; returns its tables.

    Raises InputError where the plugin is not installed, or for what is no trace.

        read_tb_profiler("GRCN.trace.json.gz").operators.head()
    """
    data = _parse(normalise_for_tb_plugin(trace if isinstance(trace, dict) else load_trace(trace)))
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


def write_tensorboard(trace: dict[str, Any], folder: str | Path, worker: str = "steps") -> Path:
    """Write a trace where TensorBoard's profiler plugin looks for it: ``<folder>/<worker>.1.pt.trace.json.gz``.

    It is normalised, so that the plugin's page shows regions and device times. View it with ``tensorboard --logdir
    <folder>``; the page needs a network. Returns the path, raises NotWritten.

        write_tensorboard(load_trace("GRCN.trace.json.gz"), "tensorboard", worker="GRCN")
    """
    return write_trace(normalise_for_tb_plugin(trace), Path(folder) / f"{worker}.1.pt.trace.json.gz")


def normalise_for_tb_plugin(trace: dict[str, Any]) -> dict[str, Any]:
    """A copy of a trace (JSON data) changed as the module says; the trace itself stays as it is.

    normalise_for_tb_plugin(record_trace(step))["traceEvents"]
    """
    events = read_trace(trace)
    host, device = events.host, events.device
    normal = [_renamed(event, events.base_us) for event in trace["traceEvents"]]
    for table in (host, device):
        for position, start, end in zip(table["position"], table["start_us"], table["end_us"]):
            first, last = _quantised(start), _quantised(end)
            normal[position] |= {"ts": first, "dur": last - first}
    numbers = _operator_numbers(host)
    launched = [numbers[row] if row >= 0 else 0 for row in device["launched_by"]]
    for position, number in zip([*host["position"], *device["position"]], [*numbers, *launched]):
        normal[position]["args"] = normal[position].get("args", {}) | {"External id": number}
    return trace | {"traceEvents": normal}


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


def adapter_against_trace(trace: str | Path | dict[str, Any]) -> pd.DataFrame:
    """One row per operator or region, the longest first: both ways of adding up its time over the whole trace.

    Columns: name, calls, adapter_ms, trace_ms, difference_ms (beyond what flooring every event's times to 1/1024
    microsecond can make; 0 where the two agree). An operator that does nothing but call one of its own name counts
    once, as the plugin has it. Left out are torch's own marks of steps and of the optimizer, which the plugin does not
    list as operators.

        adapter_against_trace("GRCN.trace.json.gz")["difference_ms"].max()
    """
    content = trace if isinstance(trace, dict) else load_trace(trace)
    direct = _direct_sums(content)
    adapter = read_tb_profiler(content).operators.set_index("name")
    table = direct.join(adapter[["calls", "host_total_ms"]].rename(columns={"host_total_ms": "adapter_ms"}), how="left")
    table["adapter_ms"] = table["adapter_ms"].fillna(0.0)
    apart = (table["adapter_ms"] - table["trace_ms"]).abs()
    table["difference_ms"] = np.where(apart <= _ROUNDING_MS * table["events"], 0.0, apart)
    table["calls"] = table["calls"].fillna(0).astype(int)
    table = table.sort_values("trace_ms", ascending=False).rename_axis("name").reset_index()
    return table[["name", "calls", "adapter_ms", "trace_ms", "difference_ms"]]


def adapter_summary(trace: str | Path, longest: int = 6) -> dict[str, Any] | None:
    """For a record: ``names`` (operators and regions compared), ``agree``, and the ``longest`` rows of the comparison.

    None where torch-tb-profiler is not installed.

        adapter_summary("GRCN.trace.json.gz")["agree"]
    """
    try:
        table = adapter_against_trace(trace)
    except InputError:
        return None
    agree = int((table["difference_ms"] == 0).sum())
    return {"names": len(table), "agree": agree, "longest": table.head(longest).to_dict("records")}


def _direct_sums(trace: dict[str, Any]) -> pd.DataFrame:
    """Index name; trace_ms and events: the durations that the file gives, of all operators and regions of that name."""
    host = read_trace(trace).host
    marks = host["kind"].isin(("runtime", "step")) | host["name"].str.startswith("Optimizer.")
    host = host[~marks]
    alone = host.groupby("parent")["name"].transform("size") == 1
    around = host["name"].reindex(host["parent"]).to_numpy()
    host = host[~(alone & (host["name"] == around))]
    duration_ms = pd.Series([float(trace["traceEvents"][at]["dur"]) / 1e3 for at in host["position"]], dtype=float)
    grouped = duration_ms.groupby(host["name"].to_numpy())
    return pd.DataFrame({"trace_ms": grouped.sum(), "events": grouped.size()})
