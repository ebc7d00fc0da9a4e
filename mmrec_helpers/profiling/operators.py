"""The most expensive operators of each stage of a step, and how busy the device was."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mmrec_helpers.config import check_at_least
from mmrec_helpers.profiling.attribution import UNATTRIBUTED
from mmrec_helpers.profiling.regions import IDLE, StepProfile


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
    names = table["operator"].str.removeprefix("aten::")
    table = table.assign(stage=table["region"].str.partition(".")[0], operator=names)
    sums = table.groupby(["stage", "phase", "operator"])[["calls", by, "bytes", "operations"]].sum(min_count=1)
    sums = sums.rename(columns={by: "ms"}).reset_index()
    step_ms = profile.regions["ms"].sum()
    sums["share"] = sums["ms"] / step_ms
    stage_ms = sums.groupby("stage")["ms"].sum().sort_values(ascending=False)
    sums = sums.sort_values("ms", ascending=False, kind="stable")
    kept = [sums[sums["stage"] == stage].head(top) for stage in stage_ms.index[stage_ms >= least_share * step_ms]]
    found = pd.concat(kept, ignore_index=True) if kept else sums.head(0)
    found["megabytes"], found["megaflop"] = found["bytes"] / 1e6, found["operations"] / 1e6
    found["gbytes_s"] = (found["megabytes"] / found["ms"]).where(found["ms"] > 0, np.nan)
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
