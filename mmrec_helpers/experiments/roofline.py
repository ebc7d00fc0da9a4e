"""What each stage of a step should cost on this device, counted before it is timed, and how far steps are from it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.epoch import MODEL_LABELS, stage_times
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.models.step_cost import Workload, bytes_per_edge, roofline_ms, step_cost
from mmrec_helpers.profiling.device_rates import measure_rates


def workload_of(data: Interactions, batch_size: int) -> Workload:
    """The sizes of a step on this data set, with MMRec's default settings of both models."""
    widths = {m: data.features[m].shape[1] for m in data.modalities}
    return Workload(data.n_users, data.n_items, data.train.shape[1], widths, batch_size)


def measure_roofline(data: Interactions, options: MeasureOptions) -> dict[str, Any]:
    """The content of a record of kind "roofline": the device's rates, measured, and what the stages of a step need.

    stages          per model and stage: model, stage, calls, gbytes, gflop, least_ms (the roofline at the rates below),
                    flop_per_byte
    bytes_per_edge  of an attention call and of a convolution, from the cost model
    rates           of ``measure_rates``; copy_gb_s and matmul_gflop_s are the two that the roofline takes
    """
    rates = measure_rates(options.device)
    workload = workload_of(data, options.batch_size)
    frames = [
        _stages(label, workload, rates.copy_gb_s, rates.matmul_gflop_s).assign(model=label)
        for label in MODEL_LABELS.values()
    ]
    return {
        "batch_size": options.batch_size,
        "stages": pd.concat(frames, ignore_index=True),
        "bytes_per_edge": bytes_per_edge(workload),
        "rates": rates.to_dict(),
        "copy_gb_s": rates.copy_gb_s,
        "matmul_gflop_s": rates.matmul_gflop_s,
    }


def compare_stages(roofline: Mapping[str, Any], epoch: Mapping[str, Any], steps: Mapping[str, Any]) -> pd.DataFrame:
    """The stages of a "roofline" record beside the stage times of the run (``epoch.stage_times``): its columns, and
    measured_ms, factor (measured over least)."""
    times = stage_times(epoch, steps)
    times = times.assign(stage=times["region"].str.partition(".")[0]).groupby(["model", "stage"])["ms"].sum()
    table = pd.DataFrame(roofline["stages"])
    keys = pd.MultiIndex.from_frame(table[["model", "stage"]])
    table["measured_ms"] = times.reindex(keys).fillna(0.0).to_numpy()
    return table.assign(factor=table["measured_ms"] / table["least_ms"])


def _stages(label: str, workload: Workload, copy_gb_s: float, matmul_gflop_s: float) -> pd.DataFrame:
    costs = step_cost(label.lower(), workload)
    costs = costs[costs["calls"] > 0].reset_index(drop=True)
    gbytes = (costs["forward_bytes"] + costs["backward_bytes"]) / 1e9
    gflop = (costs["forward_flops"] + costs["backward_flops"]) / 1e9
    table = pd.DataFrame({"stage": costs["stage"], "calls": costs["calls"], "gbytes": gbytes, "gflop": gflop})
    return table.assign(least_ms=roofline_ms(costs, copy_gb_s, matmul_gflop_s), flop_per_byte=gflop / gbytes)
