"""What a routing iteration of GRCN costs and what it buys: 0 to 3 iterations, as shipped, live, and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.epoch import step_runners
from mmrec_helpers.experiments.memory_prediction import refuse_too_large
from mmrec_helpers.models import build
from mmrec_helpers.ops import ROUTINGS
from mmrec_helpers.ops.reference import EdgeAttention, NormalizedSum, both_directions
from mmrec_helpers.profiling.memory import peak_bytes
from mmrec_helpers.profiling.regions import StepProfile, profile_steps
from mmrec_helpers.profiling.timing import Timings, measure
from mmrec_helpers.training import NegativeSampler, TrainSettings

ITERATIONS = (0, 1, 2, 3)


def measure_routing(
    data: Interactions,
    *,
    backend: str = "reference",
    batch_size: int = 2048,
    repeats: int = 9,
    seed: int = 0,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The content of a record of kind "routing": 0 to 3 iterations of both routings, their steps interleaved.

    arms    one row a routing and number of iterations: step_ms_median and quartiles, loop_ms (the loop's regions under
            the profiler, all phases) of step_profiled_ms, peak_bytes of a step, and the changes of
            ``iteration_effects`` (float64)
    ratios  three iterations over 0, 1 and 2: median and quartiles of the ratios within rounds
    fits    fixed_ms and per_iteration_ms of a straight line through the medians, with the quartiles over rounds
    """
    models = {
        (routing, n): build(
            "grcn", data, backend=backend, seed=seed, device=device, routing=routing, routing_iterations=n
        )
        for routing in ROUTINGS
        for n in ITERATIONS
    }
    refuse_too_large(models.values(), data)
    settings = TrainSettings(batch_size=batch_size, seed=seed)
    runners = step_runners({_arm_name(*arm): model for arm, model in models.items()}, data, settings)
    timings = measure(runners, repeats=repeats, device=device, max_seconds=max_seconds, progress=progress)
    profiles = {name: profile_steps(runner, steps=2, device=device) for name, runner in runners.items()}
    peaks = {name: peak_bytes(runner, device) for name, runner in runners.items()}
    batch = next(NegativeSampler(data, device).batches(batch_size, seed))
    effects = iteration_effects(data, batch, seed, device).set_index(["routing", "iterations"])
    return {
        "backend": backend,
        "batch_size": batch_size,
        "arms": [_arm(arm, timings, profiles, peaks, effects) for arm in models],
        "ratios": [_ratio(timings, routing, n) for routing in ROUTINGS for n in ITERATIONS[:-1]],
        "fits": [_fit(timings, routing) for routing in ROUTINGS],
    }


def measure_attention(
    data: Interactions, *, width: int = 64, repeats: int = 9, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """The content of a record of kind "attention": one attention call against DRAGON's convolution, same edges.

    Forward and backward over both directions of the training graph, rows of unit length, interleaved. Gives the median
    milliseconds of each and attention_to_convolution, the ratio within rounds.
    """
    edges = both_directions(torch.from_numpy(data.train) + torch.tensor([[0], [data.n_users]])).to(device)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(data.n_users + data.n_items, width, generator=generator)
    x = nn.functional.normalize(x).to(device).requires_grad_()
    layers = {"attention": EdgeAttention().to(device), "convolution": NormalizedSum().to(device)}
    timings = measure(
        {name: _forward_backward(layer, x, edges) for name, layer in layers.items()}, repeats=repeats, device=device
    )
    ratio = timings.ratio("attention", "convolution")
    return {
        "edges": edges.shape[1],
        "width": width,
        "ms": {name: timings.median_ms(name) for name in layers},
        "attention_to_convolution": {"median": ratio.median, "q1": ratio.q1, "q3": ratio.q3, "rounds": ratio.rounds},
    }


def iteration_effects(
    data: Interactions,
    batch: Tensor,
    seed: int = 0,
    device: torch.device | str = "cpu",
    iterations: Iterable[int] = ITERATIONS,
    dtype: torch.dtype = torch.float64,
) -> pd.DataFrame:
    """What the iterations change, from the same parameters: one row a routing and number of iterations.

    Columns: routing, iterations, output_change, loss_change, gradient_change: the largest absolute difference to no
    iteration at all, in the representation, in the loss, and over the gradients of all parameters.
    """
    rows = []
    for routing in ROUTINGS:
        base = None
        for n in iterations:
            model = build(
                "grcn", data, backend="reference", seed=seed, device=device, routing=routing, routing_iterations=n
            )
            result = _output_loss_gradients(model.to(dtype), batch)
            base = result if base is None else base
            changes = [_distance(now, then) for now, then in zip(result, base, strict=True)]
            rows.append((routing, n, *changes))
    return pd.DataFrame(rows, columns=["routing", "iterations", "output_change", "loss_change", "gradient_change"])


def _output_loss_gradients(model: nn.Module, batch: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    output = model.representation().detach()
    loss = model.loss(batch)
    loss.backward()
    return [output], [loss.detach()], [p.grad for p in model.parameters() if p.grad is not None]


def _distance(now: list[Tensor], then: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(now, then, strict=True))


def _arm_name(routing: str, iterations: int) -> str:
    return f"{routing} {iterations}"


def _arm(
    arm: tuple[str, int],
    timings: Timings,
    profiles: dict[str, StepProfile],
    peaks: dict[str, int],
    effects: pd.DataFrame,
) -> dict[str, Any]:
    name = _arm_name(*arm)
    q1, median, q3 = np.percentile(timings.ms[name], (25, 50, 75))
    regions = profiles[name].regions
    loop = regions[regions["region"].str.startswith("routing.")]
    return {
        "routing": arm[0],
        "iterations": arm[1],
        "step_ms_median": median,
        "step_ms_q1": q1,
        "step_ms_q3": q3,
        "loop_ms": loop["ms"].sum(),
        "step_profiled_ms": regions["ms"].sum(),
        "peak_bytes": peaks[name],
        **effects.loc[arm].to_dict(),
    }


def _ratio(timings: Timings, routing: str, iterations: int) -> dict[str, Any]:
    ratio = timings.ratio(_arm_name(routing, ITERATIONS[-1]), _arm_name(routing, iterations))
    numbers = {"median": ratio.median, "q1": ratio.q1, "q3": ratio.q3, "rounds": ratio.rounds}
    return {"routing": routing, "numerator": ITERATIONS[-1], "denominator": iterations, **numbers}


def _fit(timings: Timings, routing: str) -> dict[str, Any]:
    """A line through the times of each round; the medians and quartiles of its two coefficients over the rounds."""
    rounds = np.array([timings.ms[_arm_name(routing, n)] for n in ITERATIONS])  # (iterations, rounds)
    slope, fixed = np.polyfit(ITERATIONS, rounds, 1)
    return {
        "routing": routing,
        "fixed_ms": np.median(fixed),
        "fixed_ms_quartiles": _quartiles(fixed),
        "per_iteration_ms": np.median(slope),
        "per_iteration_ms_quartiles": _quartiles(slope),
    }


def _quartiles(values: Sequence[float] | np.ndarray) -> list[float]:
    return [float(q) for q in np.percentile(values, (25, 75))]


def _forward_backward(layer: nn.Module, x: Tensor, edges: Tensor) -> Callable[[], None]:
    def run() -> None:
        out = layer(x, edges)
        (out[0] if isinstance(out, tuple) else out).sum().backward()
        x.grad = None

    return run
