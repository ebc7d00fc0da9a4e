"""What each stage of a step should cost on this device, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from mmrec_helpers.data import Interactions
from mmrec_helpers.models.step_cost import Workload, bytes_per_edge, roofline_ms, step_cost
from mmrec_helpers.profiling.device_rates import measure_rates


def workload_of(data: Interactions, batch_size: int) -> Workload:
    """The sizes of a step on this data set, with MMRec's default settings of both models."""
    widths = {m: data.features[m].shape[1] for m in data.modalities}
    return Workload(data.n_users, data.n_items, data.train.shape[1], widths, batch_size)


def measured_roofline(data: Interactions, device: torch.device | str, epoch: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a record of kind "roofline": the device's rates, measured now, and the stages of ``epoch`` (the
    content of a record of kind "epoch" of the same data) against them.

    stages          as ``compare_stages`` gives them
    bytes_per_edge  of an attention call and of a convolution, from the cost model
    rates           of ``measure_rates``; copy_gb_s and matmul_gflop_s are the two that the roofline takes
    """
    rates = measure_rates(device)
    workload = workload_of(data, epoch["batch_size"])
    return {
        "stages": compare_stages(epoch["models"], workload, rates.copy_gb_s, rates.matmul_gflop_s),
        "bytes_per_edge": bytes_per_edge(workload),
        "rates": rates.to_dict(),
        "copy_gb_s": rates.copy_gb_s,
        "matmul_gflop_s": rates.matmul_gflop_s,
    }


def compare_stages(
    measured: Sequence[Mapping[str, Any]], workload: Workload, copy_gb_s: float, matmul_gflop_s: float
) -> pd.DataFrame:
    """Predicted beside measured, one row a model and stage.

    measured  the ``models`` of a record of kind "epoch" (their ``regions`` are summed over the stage's regions)
    Columns: model, stage, calls, gbytes, gflop, least_ms (roofline at the given copy and matrix rates), measured_ms,
    factor (measured over least), flop_per_byte, gflop_s (reached).
    """
    frames = []
    for model in measured:
        costs = step_cost(model["model"].lower(), workload)
        costs = costs[costs["calls"] > 0].reset_index(drop=True)
        frames.append(
            pd.DataFrame(
                {
                    "model": model["model"],
                    "stage": costs["stage"],
                    "calls": costs["calls"],
                    "gbytes": (costs["forward_bytes"] + costs["backward_bytes"]) / 1e9,
                    "gflop": (costs["forward_flops"] + costs["backward_flops"]) / 1e9,
                    "least_ms": roofline_ms(costs, copy_gb_s, matmul_gflop_s),
                    "measured_ms": [_stage_ms(model["regions"], stage) for stage in costs["stage"]],
                }
            )
        )
    table = pd.concat(frames, ignore_index=True)
    table["factor"] = table["measured_ms"] / table["least_ms"]
    table["flop_per_byte"] = table["gflop"] / table["gbytes"]
    table["gflop_s"] = 1e3 * table["gflop"] / table["measured_ms"]
    return table


def _stage_ms(regions: Sequence[Mapping[str, Any]], stage: str) -> float:
    return sum(row["ms"] for row in regions if row["region"].split(".")[0] == stage)
