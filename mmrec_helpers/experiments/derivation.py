"""From the reference's GRCN step to the fast one, stage by stage: what each should save, and what it saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.epoch import StepRunner
from mmrec_helpers.experiments.roofline import workload_of
from mmrec_helpers.models import build
from mmrec_helpers.models.step_cost import Cost, Pair, Workload, linear_call, pair_bytes, roofline_ms, step_cost
from mmrec_helpers.profiling.device_rates import measure_rates
from mmrec_helpers.profiling.timing import measure
from mmrec_helpers.training import NegativeSampler, TrainSettings
from mmrec_helpers.training.sampling import split_batches

# Stage: options of build, and whether Adam is one kernel. Stages of a routing compute the same numbers.
STAGES: dict[str, tuple[dict[str, Any], bool]] = {
    "as shipped: reference": ({"backend": "reference"}, False),
    "as shipped: no loop": ({"backend": "reference", "routing_iterations": 0}, False),
    "as shipped: sparse": ({"backend": "sparse"}, False),
    "as shipped: fused": ({"backend": "fused"}, False),
    "as shipped: fused Adam": ({"backend": "fused"}, True),
    "live: reference": ({"backend": "reference", "routing": "live"}, False),
    "live: sparse": ({"backend": "sparse", "routing": "live"}, False),
    "live: fused, fused Adam": ({"backend": "fused", "routing": "live"}, True),
}
ROUNDING = 1e-4  # of float32: the largest difference of a gradient, relative to its largest number
_ADAM_NUMBERS = {False: 18, True: 7}  # read or written per parameter: one pass an operation, or one pass in all


def measure_derivation(
    data: Interactions,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 2048,
    repeats: int = 7,
    seed: int = 0,
    max_seconds: float | None = None,
) -> dict[str, Any]:
    """The content of a record of kind "derivation": ``STAGES`` checked against their routing's reference, then
    timed interleaved in one run, beside the least time that counting gives them.

    stages  one row each: stage, routing, largest_difference (of the loss and the gradients on one batch, relative),
            gbytes, gflop, least_ms (roofline), predicted_gain (of the least times, over the stage before), median_ms,
            q1_ms, q3_ms, gain (of the medians within rounds, over the stage before) and total_gain (over the first)
    rates   of ``measure_rates``

    Raises ArithmeticError, before anything is timed, if a stage computes something else.
    """
    batch_size = min(batch_size, data.train.shape[1])
    models = {stage: build("grcn", data, seed=seed, device=device, **options) for stage, (options, _) in STAGES.items()}
    batches = [
        batch
        for batch in split_batches(NegativeSampler(data, device).epoch(seed, 0), batch_size)
        if batch.shape[1] == batch_size
    ]
    differences = _differences(models, batches[0])
    runners = {}
    for stage, (_, fused) in STAGES.items():
        settings = TrainSettings(batch_size=batch_size, seed=seed, fused_optimizer=fused)
        runners[stage] = StepRunner(models[stage].train(), batches, settings)
    rates = measure_rates(device)
    timings = measure(runners, repeats=repeats, device=device, max_seconds=max_seconds)
    table = timings.table().set_index("name")
    workload, parameters = (
        workload_of(data, batch_size),
        sum(p.numel() for p in models[next(iter(STAGES))].parameters()),
    )
    rows, before, first = [], None, None
    for stage in STAGES:
        routing = stage.split(":")[0]
        if before is None or not before["stage"].startswith(routing):
            before = first = None
        cost = stage_cost(stage, workload, parameters)
        least_ms = float(roofline_ms(cost, rates.copy_gb_s, rates.matmul_gflop_s).sum())
        row = {
            "stage": stage,
            "routing": routing,
            "largest_difference": differences[stage],
            "gbytes": float((cost["forward_bytes"] + cost["backward_bytes"]).sum()) / 1e9,
            "gflop": float((cost["forward_flops"] + cost["backward_flops"]).sum()) / 1e9,
            "least_ms": least_ms,
            "predicted_gain": before["least_ms"] / least_ms if before else None,
            **{name: float(table.loc[stage, name]) for name in ("median_ms", "q1_ms", "q3_ms")},
            "gain": timings.ratio(before["stage"], stage).median if before else None,
            "total_gain": timings.ratio(first, stage).median if first else None,
        }
        rows.append(row)
        before, first = row, first or stage
    return {"batch_size": batch_size, "stages": rows, "rates": rates.to_dict()}


def stage_cost(stage: str, w: Workload, parameters: int) -> pd.DataFrame:
    """What a stage of ``STAGES`` moves and computes in one step, in the columns of ``cost_model.step_cost``."""
    options, fused_adam = STAGES[stage]
    iterations = options.get("routing_iterations", w.routing_iterations)
    live = options.get("routing") == "live"
    if options["backend"] == "reference":
        frame = step_cost("grcn", replace(w, routing_iterations=iterations))
    else:
        counts = _FAST[options["backend"]](w, iterations if live else 0)
        frame = pd.DataFrame([{"stage": name, "calls": 1, **_phases(pair, w)} for name, pair in counts.items()])
    adam = _phases((Cost(_ADAM_NUMBERS[fused_adam] * parameters, 0, 12 * parameters), Cost()), w)
    return pd.concat([frame, pd.DataFrame([{"stage": "optimizer", "calls": 1, **adam}])], ignore_index=True)


def _fused_stages(w: Workload, iterations: int) -> dict[str, Pair]:
    """Rows of users and items pass once; a neighbour's row is gathered once for all that a pass does with it."""
    users, items, wide = (count * w.embedding_dim for count in (w.n_users, w.n_items, w.n_edges))
    rows, count = users + items, len(w.widths)
    rounds = iterations + 1
    attention = (
        Cost(2 * wide + 3 * users + 2 * items + 7 * w.n_edges, 3 * w.n_edges, (4 * rounds + 2) * wide),
        Cost(4 * wide + 3 * users + 4 * items + 6 * w.n_edges, 3 * w.n_edges, (12 * rounds + 4) * wide),
    )
    layer = (
        Cost(2 * wide + 3 * rows + 2 * w.n_edges, 2 * w.n_edges, 4 * wide),
        Cost(4 * wide + 4 * rows + 4 * w.n_edges, 2 * w.n_edges, 8 * wide),
    )
    return {
        "features": _features(w),
        "l2_normalize": (Cost(2 * (count * users + rows)), Cost(3 * (count * users + rows))),
        "final_attention": _times(attention, count),
        "confidence": (Cost(w.n_edges * (2 * count + 4)), Cost(w.n_edges * (5 * count + 6))),
        "id_branch": _times(layer, 2),
        "loss": _loss(w),
    }


def _sparse_stages(w: Workload, iterations: int) -> dict[str, Pair]:
    """Inner products at the edges and products with sparse rows, each a pass of its own."""
    wide, rows = w.n_edges * w.embedding_dim, w.n_nodes * w.embedding_dim
    inner = (Cost(2 * wide + w.n_edges, 2 * w.n_edges, 2 * wide), Cost(2 * wide + 2 * rows, 4 * w.n_edges, 4 * wide))
    product = (Cost(wide + rows, w.n_edges, 2 * wide), Cost(3 * wide + 2 * rows, 3 * w.n_edges, 4 * wide))
    softmax = (Cost(8 * w.n_edges, 2 * w.n_edges, 4 * w.n_edges), Cost(8 * w.n_edges, 2 * w.n_edges, 4 * w.n_edges))
    routing = _plus(_plus(inner, product), _plus(softmax, (Cost(6 * rows), Cost(8 * rows))))
    final = _plus(_plus(inner, _times(product, 2)), _plus(_times(softmax, 2), (Cost(5 * rows), Cost(5 * rows))))
    count = len(w.widths)
    return {
        "features": _features(w),
        "routing": _times(routing, count * iterations),
        "final_attention": _times(final, count),
        "confidence": (Cost(w.n_edges * 14 * count), Cost(w.n_edges * 16 * count)),
        "id_branch": _plus(_times(product, 4), (Cost(7 * rows), Cost(12 * rows))),
        "loss": _loss(w),
    }


_FAST = {"fused": _fused_stages, "sparse": _sparse_stages}


def _features(w: Workload) -> Pair:
    total: Pair = (Cost(), Cost())
    for width in w.widths.values():
        total = _plus(total, linear_call(w.n_items, width, w.embedding_dim, False))
    rows = len(w.widths) * w.n_items * w.embedding_dim
    return _plus(total, (Cost(2 * rows), Cost(4 * rows)))


def _loss(w: Workload) -> Pair:
    """The batch's rows, and in the backward pass the tables of zeros that they are added to."""
    tables = (1 + len(w.widths)) * w.embedding_dim
    return Cost(3 * w.batch_size * tables), Cost(9 * w.batch_size * tables + w.n_nodes * tables)


def _times(pair: Pair, times: float) -> Pair:
    return pair[0] * times, pair[1] * times


def _plus(a: Pair, b: Pair) -> Pair:
    return a[0] + b[0], a[1] + b[1]


def _phases(pair: Pair, w: Workload) -> dict[str, float]:
    moved = pair_bytes(pair, w)
    return {
        "forward_bytes": moved[0],
        "backward_bytes": moved[1],
        "forward_flops": pair[0].flops,
        "backward_flops": pair[1].flops,
    }


def _differences(models: dict[str, nn.Module], batch: Tensor) -> dict[str, float]:
    """The largest difference of loss and gradients to the first stage of the same routing."""
    first: dict[str, dict[str, Tensor]] = {}
    found = {}
    for stage, model in models.items():
        values = _loss_and_gradients(model, batch)
        expected = first.setdefault(stage.split(":")[0], values)
        found[stage] = max(
            float((values[name] - value).abs().max() / value.abs().max().clamp_min(1e-30))
            for name, value in expected.items()
        )
        if not found[stage] <= ROUNDING:
            raise ArithmeticError(f"{stage}: loss or gradients differ by {found[stage]:.1e}: expected {ROUNDING:g}")
    return found


def _loss_and_gradients(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    loss = model.loss(batch)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {"loss": loss.detach(), **dict(zip(parameters, gradients, strict=True))}
