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
_OPERATOR = {
    "name": "name",
    "calls": "calls",
    "host_duration": "host_total_ms",
    "self_host_duration": "host_self_ms",
    "device_duration": "device_total_ms",
    "self_device_duration": "device_self_ms",
}
_KERNEL = {"count": "calls", "sum": "total_ms", "mean": "mean_ms", "min": "min_ms", "max": "max_ms"}
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
    operators = pd.DataFrame([[getattr(op, name) for name in _OPERATOR] for op in data.op_list_groupby_name])
    operators = operators.set_axis(_OPERATOR.values(), axis=1).sort_values("host_total_ms", ascending=False)
    kernels = pd.DataFrame(columns=_KERNEL) if data.kernel_stat is None else data.kernel_stat[list(_KERNEL)]
    return TbTables(
        operators=_milliseconds(operators.reset_index(drop=True)),
        kernels=_milliseconds(kernels.rename(columns=_KERNEL).rename_axis("name").reset_index()),
        overview_ms={role: cost / 1e3 for role, cost in zip(_ROLES, data.avg_costs.costs)},
    )


def _milliseconds(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: table[name].astype(float) / 1e3 for name in table if name.endswith("_ms")})


def _parse(trace: dict[str, Any]) -> Any:
    try:
        from torch_tb_profiler.profiler.data import RunProfileData
    except ImportError as error:
        raise InputError("reading a trace this way needs torch-tb-profiler: pip install torch-tb-profiler") from error
    logging.getLogger("torch_tb_profiler").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas on the plugin's use of astype(copy=)
        return RunProfileData.from_json("steps", "1", trace)


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
    normal = [_renamed(event, events.base_us) for event in trace["traceEvents"]]
    for table, caller in ((events.host, "caller"), (events.device, "launched_by")):
        for position, start, end, around in zip(*(table[c] for c in ("position", "start_us", "end_us", caller))):
            first, last = _quantised(start), _quantised(end)
            args = normal[position].get("args", {}) | {"External id": around + 1}  # 0 where nothing is around a call
            normal[position] |= {"ts": first, "dur": last - first, "args": args}
    return trace | {"traceEvents": normal}


def _renamed(event: dict[str, Any], base_us: float) -> dict[str, Any]:
    category = event.get("cat")
    event = event | ({"cat": _CATEGORIES[category]} if category in _CATEGORIES else {})
    return event | {"ts": _quantised(float(event["ts"]) - base_us)} if "ts" in event else event


def _quantised(time_us: float) -> float:
    return math.floor(time_us * _QUANTUM) / _QUANTUM


def adapter_against_trace(trace: str | Path | dict[str, Any]) -> pd.DataFrame:
    """One row per operator or region, the longest first: both ways of adding up its time over the whole trace.

    Columns: name, calls, adapter_ms, trace_ms, difference_ms (beyond what flooring every event's times to 1/1024
    microsecond can make; 0 where the two agree). An operator that does nothing but call one of its own name counts
    once, as the plugin has it. Left out are torch's own marks of steps and of the optimizer, which the plugin does not
    list as operators.

        adapter_against_trace("GRCN.trace.json.gz")["difference_ms"].max()
    """
    content = trace if isinstance(trace, dict) else load_trace(trace)
    host = read_trace(content).host
    host = host[~(host["kind"].isin(("runtime", "step")) | host["name"].str.startswith("Optimizer."))]
    alone = host.groupby("parent")["name"].transform("size") == 1
    host = host[~(alone & (host["name"] == host["name"].reindex(host["parent"]).to_numpy()))]
    durations_ms = [float(content["traceEvents"][at]["dur"]) / 1e3 for at in host["position"]]
    table = host.assign(trace_ms=durations_ms).groupby("name")["trace_ms"].agg(trace_ms="sum", events="size")
    adapter = read_tb_profiler(content).operators.set_index("name")[["calls", "host_total_ms"]]
    table = table.join(adapter.rename(columns={"host_total_ms": "adapter_ms"})).fillna({"adapter_ms": 0.0, "calls": 0})
    apart = (table["adapter_ms"] - table["trace_ms"]).abs()
    table["difference_ms"] = np.where(apart <= _ROUNDING_MS * table["events"], 0.0, apart)
    table = table.astype({"calls": int}).sort_values("trace_ms", ascending=False).reset_index()
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
