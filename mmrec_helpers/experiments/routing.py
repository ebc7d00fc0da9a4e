"""What a routing iteration changes, and what its attention costs beside a convolution.

What the iterations take is in the run's "steps" record, like every step time; ``iteration_steps`` reads it there.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.equality import absolute_differences, result_of
from mmrec_helpers.experiments.steps import CONTROL, MeasureOptions, control_of, full_batches, steps_frame
from mmrec_helpers.models import build
from mmrec_helpers.ops import ROUTINGS
from mmrec_helpers.ops.reference import EdgeAttention, NormalizedSum, both_directions
from mmrec_helpers.profiling.timing import measure
from mmrec_helpers.progress import progress

ITERATIONS = (0, 1, 2, 3)
# Which variant has how many iterations; without any the two routings are one model.
ITERATION_VARIANTS = {
    "as_shipped": ("grcn-0", "grcn-1", "grcn-2", "grcn"),
    "live": ("grcn-0", "grcn-live-1", "grcn-live-2", "grcn-live"),
}
_WIDTH = 64


def measure_routing(data: Interactions, options: MeasureOptions) -> dict[str, Any]:
    """The content of a record of kind "routing".

    effects    what 0 to 3 iterations change, as shipped and as in the paper, from the same parameters in float64
               (``iteration_effects``)
    attention  one attention call against DRAGON's convolution over the same edges, forward and backward: ms of each,
               attention_to_convolution (the median of the paired ratios, with its quartiles), and the control's
    """
    batch = full_batches(data, options.batch_size, options.seed, options.device)[0]
    return {
        "batch_size": options.batch_size,
        "effects": iteration_effects(data, batch, options.seed, options.device),
        "attention": _attention(data, options),
    }


def iteration_effects(
    data: Interactions,
    batch: Tensor,
    seed: int = 0,
    device: torch.device | str = "cpu",
    iterations: Iterable[int] = ITERATIONS,
    dtype: torch.dtype = torch.float64,
) -> pd.DataFrame:
    """One row per routing and number of iterations: routing, iterations, output_difference, loss_difference,
    gradient_difference: the largest absolute difference to no iteration at all."""
    rows = []
    for routing in progress(ROUTINGS, "comparing iterations"):
        base = None
        for n in iterations:
            options: dict[str, Any] = {"backend": "reference", "routing": routing, "routing_iterations": n}
            result = result_of(build("grcn", data, seed=seed, device=device, **options).to(dtype), batch)
            base = base or result
            rows.append({"routing": routing, "iterations": n} | absolute_differences(result, base))
    return pd.DataFrame(rows)


def iteration_steps(steps: Mapping[str, Any]) -> pd.DataFrame:
    """The steps with 0 to 3 iterations from a record of kind "steps": routing, iterations, share (of the reference's
    step), step_ms, q1_ms and q3_ms (scaled alike), peak_bytes."""
    frame = steps_frame(steps)
    rows = []
    for routing, names in ITERATION_VARIANTS.items():
        for iterations, name in enumerate(names):
            row = frame.loc[name]
            scale = row["step_ms"] / row["median_ms"]
            times = {"step_ms": row["step_ms"], "q1_ms": row["q1_ms"] * scale, "q3_ms": row["q3_ms"] * scale}
            about = {"routing": routing, "iterations": iterations, "variant": name, "label": row["label"]}
            rows.append(about | {"share": row["share"]} | times | {"peak_bytes": row["peak_bytes"]})
    return pd.DataFrame(rows)


def iteration_costs(steps: Mapping[str, Any], routing: str = "as_shipped") -> dict[str, float]:
    """fixed_ms and per_iteration_ms of the straight line through the steps with 0 to 3 iterations (least squares), and
    three_to_one, three_to_two: the step with three iterations over that with one, with two."""
    table = iteration_steps(steps)
    step_ms = table[table["routing"] == routing].set_index("iterations")["step_ms"]
    slope, fixed = np.polyfit(step_ms.index.to_numpy(float), step_ms.to_numpy(), 1)
    ratios = {"three_to_one": step_ms[3] / step_ms[1], "three_to_two": step_ms[3] / step_ms[2]}
    return {"fixed_ms": float(fixed), "per_iteration_ms": float(slope)} | ratios


def _attention(data: Interactions, options: MeasureOptions) -> dict[str, Any]:
    edges = both_directions(torch.from_numpy(data.train) + torch.tensor([[0], [data.n_users]])).to(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    x = torch.randn(data.n_users + data.n_items, _WIDTH, generator=generator)
    x = nn.functional.normalize(x).to(options.device).requires_grad_()
    layers: dict[str, Any] = {"attention": EdgeAttention(), "convolution": NormalizedSum(), CONTROL: EdgeAttention()}
    calls = {name: _forward_backward(layer.to(options.device), x, edges) for name, layer in layers.items()}
    timings = measure(calls, **options.timing)
    return {
        "edges": edges.shape[1],
        "width": _WIDTH,
        "ms": {name: timings.median_ms(name) for name in ("attention", "convolution")},
        "attention_to_convolution": timings.ratio("attention", "convolution").to_dict(),
        "control": control_of(timings, reference="attention"),
    }


def _forward_backward(layer: nn.Module, x: Tensor, edges: Tensor) -> Callable[[], None]:
    def run() -> None:
        out = layer(x, edges)
        (out[0] if isinstance(out, tuple) else out).sum().backward()
        x.grad = None

    return run
