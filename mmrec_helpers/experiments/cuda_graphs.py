"""What a CUDA graph saves: the fast steps replayed from a graph against the same steps launched kernel by kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from mmrec_helpers.config import InputError, resolve_device
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.epoch import step_runners
from mmrec_helpers.models import build
from mmrec_helpers.profiling.operators import device_use
from mmrec_helpers.profiling.regions import profile_steps
from mmrec_helpers.profiling.timing import measure
from mmrec_helpers.training import TrainSettings
from mmrec_helpers.training.graphed_step import WARM_UP_STEPS, cannot_be_graphed

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "GRCN as shipped": ("grcn", {}),
    "GRCN live": ("grcn", {"routing": "live"}),
    "DRAGON": ("dragon", {}),
}
_PROFILED_STEPS = 5


def measure_graphed_steps(
    data: Interactions,
    *,
    batch_size: int = 2048,
    repeats: int = 9,
    seed: int = 0,
    device: str | torch.device = "cuda",
    max_seconds: float | None = None,
) -> dict[str, Any]:
    """The content of a record of kind "cuda-graphs": steps of the fused backend, eager and graphed, interleaved.

    InputError where a step cannot be captured: on a CPU, or where the fused backend does not run.

    arms     one row a model: model, eager_ms and graphed_ms (medians), ratio, q1 and q3 (eager over graphed, within
             rounds), and of the eager step under the profiler launches_per_step, busy_ms, idle_ms and idle_share
    timings  all rounds of all steps
    """
    device = resolve_device(device)
    eager, graphed = ({label: _built(label, data, seed, device) for label in ARMS} for _ in range(2))
    settings = TrainSettings(batch_size=min(batch_size, data.train.shape[1]), seed=seed)
    runners = step_runners(eager, data, settings)
    replayed = step_runners(graphed, data, dataclasses.replace(settings, cuda_graph=True))
    for runner in replayed.values():
        for _ in range(WARM_UP_STEPS + 1):  # the last of them captures
            runner()
    both = runners | {_graphed(label): runner for label, runner in replayed.items()}
    timings = measure(both, repeats=repeats, device=device, max_seconds=max_seconds)
    profiles = {label: profile_steps(runner, steps=_PROFILED_STEPS, device=device) for label, runner in runners.items()}
    use = device_use(profiles).set_index("model")
    arms = []
    for label in ARMS:
        ratio = timings.ratio(label, _graphed(label))
        times = {"eager_ms": timings.median_ms(label), "graphed_ms": timings.median_ms(_graphed(label))}
        gain = {"ratio": ratio.median, "q1": ratio.q1, "q3": ratio.q3}
        arms.append({"model": label} | times | gain | use.loc[label].to_dict())
    return {"batch_size": settings.batch_size, "arms": arms, "timings": timings.to_dict()}


def _built(label: str, data: Interactions, seed: int, device: torch.device) -> torch.nn.Module:
    name, options = ARMS[label]
    model = build(name, data, backend="fused", seed=seed, device=device, **options)
    reason = cannot_be_graphed(model, device)
    if reason is not None:
        raise InputError(f"CUDA graphs: {reason}: expected the fused backend on a CUDA device")
    return model


def _graphed(label: str) -> str:
    return f"{label}, CUDA graph"
