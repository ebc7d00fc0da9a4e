"""torch-tb-profiler's tables, as the adapter reads them, against sums taken straight from the trace file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.tensorboard import read_tb_profiler
from mmrec_helpers.profiling.trace_events import load_trace, read_trace

ROUNDING_MS = 1e-5  # the plugin's times are floored to 1/1024 microsecond, an event


def adapter_against_trace(trace: str | Path | dict[str, Any]) -> pd.DataFrame:
    """One row an operator or region, the longest first: both ways of adding up its time over the whole trace.

    Columns: name, calls, adapter_ms, trace_ms, difference_ms (beyond what flooring every event's times to 1/1024
    microsecond can make; 0 where the two agree). An operator that does nothing but call one of its own name counts
    once, as the plugin has it. Left out are torch's own marks of steps and of the optimizer, which the plugin does not
    list as operators.
    """
    content = trace if isinstance(trace, dict) else load_trace(trace)
    direct = _direct_sums(content)
    adapter = read_tb_profiler(content).operators.set_index("name")
    table = direct.join(adapter[["calls", "host_total_ms"]].rename(columns={"host_total_ms": "adapter_ms"}), how="left")
    table["adapter_ms"] = table["adapter_ms"].fillna(0.0)
    apart = (table["adapter_ms"] - table["trace_ms"]).abs()
    table["difference_ms"] = np.where(apart <= ROUNDING_MS * table["events"], 0.0, apart)
    table["calls"] = table["calls"].fillna(0).astype(int)
    table = table.sort_values("trace_ms", ascending=False).rename_axis("name").reset_index()
    return table[["name", "calls", "adapter_ms", "trace_ms", "difference_ms"]]


def adapter_summary(trace: str | Path, longest: int = 6) -> dict[str, Any] | None:
    """For a record: ``names`` (operators and regions compared), ``agree``, and the ``longest`` rows of the comparison.

    None where torch-tb-profiler is not installed.
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
