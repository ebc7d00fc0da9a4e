"""From the reference's GRCN step to the fast one, stage by stage: what each should save by counting, and what it saved.

Nothing is measured here: the steps are those of the run's "steps" record, the rates those of its "roofline" record.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.roofline import workload_of
from mmrec_helpers.experiments.steps import steps_frame
from mmrec_helpers.models.step_cost import (
    Cost,
    Pair,
    Workload,
    dragon_features,
    linear_call,
    phase_columns,
    plus,
    roofline_ms,
    step_cost,
    times,
)
from mmrec_helpers.models.variants import VARIANTS

# The variants from the reference to the fast step; those of one chain compute the same numbers.
CHAINS = {
    "as shipped": ("grcn", "grcn-0", "grcn-sparse", "grcn-fused-plain-adam", "grcn-fused"),
    "as in the paper": ("grcn-live", "grcn-live-sparse", "grcn-live-fused"),
}
_DIFFERENCES = ("output_difference", "loss_difference", "gradient_difference")
_ADAM_NUMBERS = {False: 18, True: 7}  # read or written per parameter: one pass an operation, or one pass in all


def derivation_table(data: Interactions, steps: Mapping[str, Any], roofline: Mapping[str, Any]) -> pd.DataFrame:
    """One row per variant of ``CHAINS``: chain, variant, label, difference (the largest relative one to the chain's
    first, float64; none for the first itself), gbytes, gflop, least_ms (roofline), step_ms (of the "steps" record),
    predicted_gain and gain (over the row before, of least_ms and of step_ms), total_gain (over the chain's first)."""
    frame, rows = steps_frame(steps), []
    workload, parameters = workload_of(data, steps["batch_size"]), _parameters(data)
    for chain, names in CHAINS.items():
        before = first = None
        for name in (name for name in names if name in frame.index):
            cost, found = variant_cost(name, workload, parameters), frame.loc[name]
            row = {
                "chain": chain,
                "variant": name,
                "label": found["label"],
                "difference": None if first is None else max(found[list(_DIFFERENCES)]),
                "gbytes": float((cost["forward_bytes"] + cost["backward_bytes"]).sum()) / 1e9,
                "gflop": float((cost["forward_flops"] + cost["backward_flops"]).sum()) / 1e9,
                "least_ms": float(roofline_ms(cost, roofline["copy_gb_s"], roofline["matmul_gflop_s"]).sum()),
                "step_ms": found["step_ms"],
            }
            if before is not None and first is not None:
                row["predicted_gain"] = before["least_ms"] / row["least_ms"]
                row["gain"], row["total_gain"] = before["step_ms"] / row["step_ms"], first["step_ms"] / row["step_ms"]
            rows.append(row)
            before, first = row, first or row
    return pd.DataFrame(rows)


def variant_cost(name: str, w: Workload, parameters: int) -> pd.DataFrame:
    """What a variant of ``CHAINS``, or DRAGON or its fused step, moves and computes in one step, in the columns of
    ``step_cost``."""
    variant = VARIANTS[name]
    iterations = variant.options.get("routing_iterations", w.routing_iterations)
    live = variant.options.get("routing") == "live"
    if variant.backend == "reference":
        frame = step_cost(variant.model, replace(w, routing_iterations=iterations))
    else:
        counts = _FAST[variant.model, variant.backend](w, iterations if live else 0)
        frame = pd.DataFrame([{"stage": name, "calls": 1, **phase_columns(pair, w)} for name, pair in counts.items()])
    fused_adam = variant.training.get("fused_optimizer", variant.backend != "reference")
    adam = phase_columns((Cost(_ADAM_NUMBERS[fused_adam] * parameters, 0, 12 * parameters), Cost()), w)
    return pd.concat([frame, pd.DataFrame([{"stage": "optimizer", "calls": 1, **adam}])], ignore_index=True)


def _parameters(data: Interactions) -> int:
    return sum(p.numel() for p in VARIANTS["grcn"].build(data).parameters())


def _fused_stages(w: Workload, iterations: int) -> dict[str, Pair]:
    """Rows of users and items pass once; a neighbour's row is gathered once for all that a pass does with it."""
    users, items, wide = (count * w.embedding_dim for count in (w.n_users, w.n_items, w.n_edges))
    rows, count = users + items, len(w.widths)
    rounds = iterations + 1
    attention = (
        Cost(2 * wide + 3 * users + 2 * items + 7 * w.n_edges, 3 * w.n_edges, (4 * rounds + 2) * wide, 2 * wide),
        Cost(4 * wide + 3 * users + 4 * items + 6 * w.n_edges, 3 * w.n_edges, (12 * rounds + 4) * wide, 4 * wide),
    )
    layer = (
        Cost(2 * wide + 3 * rows + 2 * w.n_edges, 2 * w.n_edges, 4 * wide, 2 * wide),
        Cost(4 * wide + 4 * rows + 4 * w.n_edges, 2 * w.n_edges, 8 * wide, 4 * wide),
    )
    return {
        "features": _features(w),
        "l2_normalize": (Cost(2 * (count * users + rows)), Cost(3 * (count * users + rows))),
        "final_attention": times(attention, count),
        "confidence": (Cost(w.n_edges * (2 * count + 4)), Cost(w.n_edges * (5 * count + 6))),
        "id_branch": times(layer, 2),
        "loss": _loss(w),
    }


def _sparse_stages(w: Workload, iterations: int) -> dict[str, Pair]:
    """Inner products at the edges and products with sparse rows, each a pass of its own."""
    wide, rows = w.n_edges * w.embedding_dim, w.n_nodes * w.embedding_dim
    inner = (Cost(2 * wide + w.n_edges, 2 * w.n_edges, 2 * wide), Cost(2 * wide + 2 * rows, 4 * w.n_edges, 4 * wide))
    product = (Cost(wide + rows, w.n_edges, 2 * wide), Cost(3 * wide + 2 * rows, 3 * w.n_edges, 4 * wide))
    softmax = (Cost(8 * w.n_edges, 2 * w.n_edges, 4 * w.n_edges), Cost(8 * w.n_edges, 2 * w.n_edges, 4 * w.n_edges))
    routing = plus(plus(inner, product), plus(softmax, (Cost(6 * rows), Cost(8 * rows))))
    final = plus(plus(inner, times(product, 2)), plus(times(softmax, 2), (Cost(5 * rows), Cost(5 * rows))))
    count = len(w.widths)
    return {
        "features": _features(w),
        "routing": times(routing, count * iterations),
        "final_attention": times(final, count),
        "confidence": (Cost(w.n_edges * 14 * count), Cost(w.n_edges * 16 * count)),
        "id_branch": plus(times(product, 4), (Cost(7 * rows), Cost(12 * rows))),
        "loss": _loss(w),
    }


def _fused_dragon_stages(w: Workload, iterations: int) -> dict[str, Pair]:
    """The modalities side by side; of the user and the item graph, the rows of the batch alone."""
    width, both = len(w.widths) * w.embedding_dim, 2 * w.n_edges
    rows = w.n_nodes * width
    layer = Cost(both * (width + 1) + 4 * rows, both, 2 * both * width, both * width)
    weighting = Cost(3 * w.n_users * width, 0, w.n_users * width)
    return {
        "features": dragon_features(w),
        "convolution": times((layer, layer), 2),
        "modal_weighting": (weighting, weighting),
        "item_graph": _picked(2 * w.batch_size, w.knn_k * len(w.widths), w.n_items, width),
        "user_graph": _picked(w.batch_size, w.user_k, w.n_users, width),
        "loss": (Cost(14 * w.batch_size * width), Cost(14 * w.batch_size * width)),
    }


def _picked(picked: int, neighbours: int, n_rows: int, width: int) -> Pair:
    """Weighted sums over the neighbours of ``picked`` rows; their gradient is added into a table of zeros."""
    entries = picked * neighbours
    wide, own = entries * width, 3 * picked * width
    forward = Cost(wide + own, 2 * entries, 2 * wide, wide)
    return forward, Cost(3 * wide + own + n_rows * width, 2 * entries, 2 * wide, 0, 2 * wide)


_FAST = {("grcn", "fused"): _fused_stages, ("grcn", "sparse"): _sparse_stages}
_FAST |= {("dragon", "fused"): _fused_dragon_stages}


def _features(w: Workload) -> Pair:
    total: Pair = (Cost(), Cost())
    for width in w.widths.values():
        total = plus(total, linear_call(w.n_items, width, w.embedding_dim, False))
    rows = len(w.widths) * w.n_items * w.embedding_dim
    return plus(total, (Cost(2 * rows), Cost(4 * rows)))


def _loss(w: Workload) -> Pair:
    """The batch's rows, and in the backward pass the tables of zeros that they are added to."""
    tables = (1 + len(w.widths)) * w.embedding_dim
    return Cost(3 * w.batch_size * tables), Cost(9 * w.batch_size * tables + w.n_nodes * tables)
