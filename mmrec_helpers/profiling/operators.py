"""The operators behind the regions of a step, the dearest of each stage, and what the device had to do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mmrec_helpers.config import check_at_least
from mmrec_helpers.profiling.attribution import UNATTRIBUTED
from mmrec_helpers.profiling.regions import IDLE, StepProfile


def top_operators(profile: StepProfile, top: int = 3, least_share: float = 0.01) -> pd.DataFrame:
    """The ``top`` dearest operators of each stage that takes at least ``least_share`` of the step, dearest stage first.

    A stage is what region names begin with (``routing.visual.0`` belongs to ``routing``). Columns: stage, phase,
    operator, calls (a step), ms (host time on the CPU, device time on CUDA), share (of the step), megabytes and
    megaflop (a step, counted from the shapes; NaN where no cost is known), gbytes_s (the two divided).
    """
    check_at_least("top operators", 1, top=top)
    table, by = profile.operators, _time_column(profile)
    table = table[table["region"] != UNATTRIBUTED]
    table = table.assign(stage=table["region"].str.partition(".")[0], operator=table["operator"].map(_short))
    sums = table.groupby(["stage", "phase", "operator"])[["calls", by, "bytes", "operations"]].sum(min_count=1)
    sums = sums.rename(columns={by: "ms"}).reset_index()
    step_ms = profile.regions["ms"].sum()
    sums["share"] = sums["ms"] / step_ms
    stage_ms = sums.groupby("stage")["ms"].sum().sort_values(ascending=False)
    kept = [_largest(sums[sums["stage"] == stage], top) for stage in stage_ms.index[stage_ms >= least_share * step_ms]]
    found = pd.concat(kept, ignore_index=True) if kept else sums.head(0)
    found["megabytes"], found["megaflop"] = found["bytes"] / 1e6, found["operations"] / 1e6
    found["gbytes_s"] = (found["megabytes"] / found["ms"]).where(found["ms"] > 0, np.nan)
    return found[["stage", "phase", "operator", "calls", "ms", "share", "megabytes", "megaflop", "gbytes_s"]]


def device_use(profiles: Mapping[str, StepProfile]) -> pd.DataFrame:
    """One row a model: launches_per_step, busy_ms, idle_ms, idle_share of the profiled step; NaN where no device ran.

    A step on the CPU launches nothing, so there these numbers do not apply.
    """
    rows = []
    for model, profile in profiles.items():
        total = profile.regions["ms"].sum()
        idle = profile.regions.loc[profile.regions["region"] == IDLE, "ms"].sum()
        used = (profile.launches_per_step, total - idle, idle, idle / total)
        rows.append((model, *(used if len(profile.kernels) else [np.nan] * len(used))))
    return pd.DataFrame(rows, columns=["model", "launches_per_step", "busy_ms", "idle_ms", "idle_share"])


def device_sentence(use: pd.DataFrame) -> str:
    """``device_use`` in a sentence for a reader."""
    if use["idle_share"].isna().all():
        return "The steps ran on a CPU: kernel launches and idle time of a GPU are not applicable."
    told = [
        f"{row.model} launches {row.launches_per_step:,.0f} kernels a step and leaves the device idle for "
        f"{row.idle_share:.0%} of it"
        for row in use.itertuples()
    ]
    return "; ".join(told) + " (under the profiler, which lengthens the host's part)."


def _largest(stage: pd.DataFrame, top: int) -> pd.DataFrame:
    return stage.sort_values("ms", ascending=False, kind="stable").head(top)


def _short(operator: str) -> str:
    return operator.removeprefix("aten::")


def _time_column(profile: StepProfile) -> str:
    return "device_ms" if len(profile.kernels) else "self_ms"
