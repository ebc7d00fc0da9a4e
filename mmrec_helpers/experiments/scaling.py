"""How time and memory of a step grow with the graph, the widths, the iterations and the batch.

One quantity at a time is varied around a middle workload that is smaller than the data set; the whole data set is
measured too, and kept out of every fit, so that a prediction can be checked on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mmrec_helpers.config import check_at_least, choose, resolve_device
from mmrec_helpers.data import Interactions, subset
from mmrec_helpers.experiments.epoch import StepRunner, step_runners
from mmrec_helpers.experiments.memory_prediction import predicted_step_bytes
from mmrec_helpers.models import Recommender, build
from mmrec_helpers.profiling.allocator import TRIMMING_DISABLED, controllable, trimming_disabled
from mmrec_helpers.profiling.memory import HOST_LIMIT_BYTES, peak_bytes
from mmrec_helpers.profiling.timing import measure
from mmrec_helpers.training import TrainSettings

HELD_OUT = "held out"
_WARMUP = 2


@dataclass(frozen=True)
class Arm:
    """What is measured at every point: a model with its options, and whether its iterations cost anything."""

    label: str
    model: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    has_loop: bool = True


ARMS = (
    Arm("GRCN reference", "grcn", "reference"),
    Arm("GRCN fast, as shipped", "grcn", "auto", has_loop=False),
    Arm("GRCN fast, live", "grcn", "auto", {"routing": "live"}),
    Arm("DRAGON reference", "dragon", "reference", has_loop=False),
    Arm("DRAGON fast", "dragon", "auto", has_loop=False),
)
_BY_LABEL = {arm.label: arm for arm in ARMS}


@dataclass(frozen=True)
class Point:
    """One workload: shares of the data set, the settings of the step, and a share of the batch size asked for."""

    sweep: str
    users: float = 0.5
    items: float = 0.5
    interactions: float = 1.0
    width: int = 64
    iterations: int = 3
    batch: float = 1.0


POINTS = (
    Point("middle"),
    Point("interactions", interactions=0.25),
    Point("interactions", interactions=0.5),
    Point("interactions", users=0.7, items=0.7),
    Point("users", users=0.25),
    Point("items", items=0.25),
    Point("width", width=16),
    Point("width", width=32),
    Point("iterations", iterations=0),
    Point("iterations", iterations=1),
    Point("iterations", iterations=2),
    Point("batch", batch=0.25),
    Point(HELD_OUT, users=1.0, items=1.0),
)


def measure_scaling(
    data: Interactions,
    *,
    arms: Sequence[str] | None = None,
    batch_size: int = 2048,
    repeats: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The content of a record of kind "scaling".

    points    one row an arm and workload: arm, sweep, sizes (n_users, n_items, n_edges, feature_width, hidden_width,
              width, iterations, batch_size, modalities), step_ms (median, interleaved over all points of an arm) with
              its quartiles, peak_bytes of a step
    left_out  arms and points whose step is predicted to need more than 16 GiB (CPU) or than is free (CUDA)
    heap      on the CPU the allocator's setting

    arms, labels of ``ARMS``, chooses some of them (None: all). max_seconds bounds the rounds of each arm. Iterations
    are varied only where they cost something.
    """
    check_at_least("scaling", 1, repeats=repeats, batch_size=batch_size)
    device = resolve_device(device)
    sets = {shares: subset(data, *shares, seed=seed) for shares in dict.fromkeys(map(_shares, POINTS))}
    chosen = [_BY_LABEL[choose("scaling arm", label, _BY_LABEL)] for label in arms or _BY_LABEL]
    rows, left_out = [], []
    with trimming_disabled() if device.type == "cpu" else torch.cuda.device(device):
        for number, arm in enumerate(chosen):
            runners, too_large = _runners(arm, sets, batch_size, seed, device)
            left_out += too_large
            rows += _measured(arm, runners, repeats, device, max_seconds)
            if progress is not None:
                progress(number + 1, len(chosen))
    heap = TRIMMING_DISABLED if device.type == "cpu" and controllable() else ""
    return {"batch_size": batch_size, "heap": heap, "points": rows, "left_out": left_out}


def _shares(point: Point) -> tuple[float, float, float]:
    return point.users, point.items, point.interactions


def _runners(
    arm: Arm,
    sets: Mapping[tuple[float, float, float], Interactions],
    batch_size: int,
    seed: int,
    device: torch.device,
) -> tuple[dict[Point, tuple[StepRunner, Interactions]], list[dict[str, Any]]]:
    """A runner a point, with its data; and what is left out."""
    runners, left_out = {}, []
    for point in POINTS:
        if point.sweep == "iterations" and not arm.has_loop:
            continue
        data = sets[_shares(point)]
        model = _model(arm, point, data, seed, device)
        predicted = predicted_step_bytes(arm.model, data, model.settings, model.backend)
        limit = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else HOST_LIMIT_BYTES
        if predicted > limit:
            left_out.append({"arm": arm.label, **asdict(point), "predicted_bytes": predicted})
            continue
        size = min(max(1, round(point.batch * batch_size)), data.train.shape[1])
        settings = TrainSettings(batch_size=size, seed=seed)
        runners[point] = (step_runners({"": model}, data, settings)[""], data)
    return runners, left_out


def _model(arm: Arm, point: Point, data: Interactions, seed: int, device: torch.device) -> Recommender:
    options = dict(arm.options) | {"embedding_dim": point.width}
    if arm.model == "grcn":
        options["routing_iterations"] = point.iterations
    return build(arm.model, data, backend=arm.backend, seed=seed, device=device, **options)


def _measured(
    arm: Arm,
    runners: Mapping[Point, tuple[StepRunner, Interactions]],
    repeats: int,
    device: torch.device,
    max_seconds: float | None,
) -> list[dict[str, Any]]:
    functions = {repr(point): runner for point, (runner, _) in runners.items()}
    timings = measure(functions, repeats=repeats, warmup=_WARMUP, device=device, max_seconds=max_seconds)
    table = timings.table().set_index("name")
    return [
        {
            "arm": arm.label,
            "sweep": point.sweep,
            **_sizes(arm, point, runner, data),
            "step_ms": table.loc[repr(point), "median_ms"],
            "step_ms_q1": table.loc[repr(point), "q1_ms"],
            "step_ms_q3": table.loc[repr(point), "q3_ms"],
            "peak_bytes": peak_bytes(runner, device),
        }
        for point, (runner, data) in runners.items()
    ]


def _sizes(arm: Arm, point: Point, runner: StepRunner, data: Interactions) -> dict[str, int]:
    return {
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_edges": data.train.shape[1],
        "feature_width": sum(data.features[m].shape[1] for m in data.modalities),
        "hidden_width": getattr(runner.model.settings, "feature_hidden", 0),
        "modalities": len(data.modalities),
        "width": point.width,
        "iterations": point.iterations if arm.has_loop else 0,
        "batch_size": runner.batches[0].shape[1],
    }
