"""How long an epoch takes and what it consists of: models measured as a matched pair on the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mmrec_helpers.config import choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.memory_prediction import refuse_too_large
from mmrec_helpers.models import build
from mmrec_helpers.profiling.allocator import DEFAULT, TRIMMING_DISABLED, controllable, trimming_disabled
from mmrec_helpers.profiling.operators import device_use, top_operators
from mmrec_helpers.profiling.regions import StepProfile, profile_steps
from mmrec_helpers.profiling.tensorboard import adapter_summary
from mmrec_helpers.profiling.timing import Timings, measure, synchronize
from mmrec_helpers.training import NegativeSampler, TrainSettings, evaluate
from mmrec_helpers.training.graphed_step import GraphedStep
from mmrec_helpers.training.sampling import split_batches
from mmrec_helpers.training.step import make_optimizer, make_scaler, train_step

SAMPLED_EPOCHS = 3

# Options of build (shared, then DRAGON's own) and of training, by the name of the settings. "plain": MMRec's defaults.
# "diagnosed": the settings of the diagnosed runs, read from their public logs (jckuan/MMRec).
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {"model": {}, "dragon": {}, "training": {}},
    "diagnosed": {
        "model": {"checkpointing": True, "mixed_precision": "float16", "features_on_host": True},
        "dragon": {"feature_hidden": 128, "train_features": False},
        "training": {"max_grad_norm": 5.0, "learning_rate": 1e-4},
    },
}


def trace_name(model: str) -> str:
    """The file of a model's trace in the folder given to ``measure_epoch``."""
    return f"{model}.trace.json.gz"


def build_pair(
    data: Interactions, settings_name: str = "plain", seed: int = 0, device: torch.device | str = "cpu", **options: Any
) -> dict[str, nn.Module]:
    """GRCN and DRAGON under the same named settings; ``options`` (backend and others of ``build``) go to both."""
    chosen = SETTINGS[choose("settings", settings_name, SETTINGS)]
    shared = {"backend": "reference"} | chosen["model"] | options
    return {
        "GRCN": build("grcn", data, seed=seed, device=device, **shared),
        "DRAGON": build("dragon", data, seed=seed, device=device, **shared, **chosen["dragon"]),
    }


def training_settings(settings_name: str = "plain", **options: Any) -> TrainSettings:
    """The named settings' options of training, with ``options`` over them."""
    return TrainSettings(**(SETTINGS[choose("settings", settings_name, SETTINGS)]["training"] | options))


def measure_epoch(
    data: Interactions,
    settings_name: str = "plain",
    *,
    batch_size: int = 2048,
    repeats: int = 9,
    warmup: int = 2,
    seed: int = 0,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    profiled_steps: int = 3,
    trace_folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], dict[str, StepProfile]]:
    """Measure an epoch of GRCN and DRAGON as a matched pair: the content of a record of kind "epoch", and the profiles.

    Same graph, modalities, batches, settings and machine; steps interleaved in one run. ``max_seconds`` bounds the
    interleaved part. On the CPU the steps are timed a second time with a heap that keeps its memory, where that can be
    set (``heaps``): page faults on temporaries weigh on the two models differently, and the ratio to quote is the one
    without them. Epoch times are those of the allocator as it is. The profiled steps (``profiled_steps`` of each model)
    also draw their share of the epoch's negatives and cut out their batch; ``trace_folder`` keeps their traces as
    ``<model>.trace.json.gz``.
    """
    models = build_pair(data, settings_name, seed, device)
    refuse_too_large(models.values(), data)
    settings = training_settings(settings_name, batch_size=batch_size, seed=seed)
    runners = step_runners(models, data, settings)
    timed = {"repeats": repeats, "warmup": warmup, "device": device, "max_seconds": max_seconds, "progress": progress}
    timings = {DEFAULT: measure(runners, **timed)}
    if torch.device(device).type == "cpu" and controllable():
        with trimming_disabled():
            timings[TRIMMING_DISABLED] = measure(runners, **timed)
    profiles = {}
    for name, runner in runners.items():
        trace_path = Path(trace_folder) / trace_name(name) if trace_folder else None
        step = LoadedStep(runner, data, device)
        profiles[name] = profile_steps(step, steps=profiled_steps, device=device, trace_path=trace_path)
    sampling_s = time_sampling(data, device, seed)
    content = epoch_summary(data, settings, timings, profiles, sampling_s, time_validation(models, data, device))
    for row in content["models"] if trace_folder else ():
        path = Path(trace_folder) / trace_name(row["model"])
        row |= {"trace_bytes": path.stat().st_size, "adapter": adapter_summary(path)}
    return {"settings_name": settings_name, **content}, profiles


def epoch_content(data: Interactions, settings_name: str = "plain", **options: Any) -> dict[str, Any]:
    """The content of a record of kind "epoch", as ``measure_epoch`` measures it."""
    return measure_epoch(data, settings_name, **options)[0]


class StepRunner:
    """Trains a model one step a call, on the batches of one epoch, over and over.

    batches   int64 (3, B) each, on the model's device; only full ones, so that all steps do the same work
    settings  with ``cuda_graph`` the first steps run as they are, then one is captured, and from there on replayed
    """

    def __init__(self, model: nn.Module, batches: list[Tensor], settings: TrainSettings) -> None:
        self.model, self.batches, self.settings = model, batches, settings
        self.optimizer, self.scaler = make_optimizer(model, settings), make_scaler(model)
        self.graphed = GraphedStep(model, self.optimizer, settings.max_grad_norm) if settings.cuda_graph else None
        self.done = 0

    def __call__(self, *_: Any) -> Tensor:
        return self.train_on(self.next_batch())

    def next_batch(self) -> Tensor:
        self.done += 1
        return self.batches[(self.done - 1) % len(self.batches)]

    def train_on(self, batch: Tensor) -> Tensor:
        if self.graphed is not None:
            return self.graphed(batch)
        return train_step(self.model, self.optimizer, batch, self.settings.max_grad_norm, self.scaler)


class LoadedStep:
    """A runner's step with its share of what an epoch does beside training, in regions of their own.

    sampling  negatives for as many interactions as a batch holds, taken in the order in which an epoch draws them, and
              their shuffling (what is drawn is thrown away: the runner's batches stay the same for every model)
    data      the batch, copied out as the epoch's loader does
    """

    def __init__(self, runner: StepRunner, data: Interactions, device: torch.device | str) -> None:
        self.runner, self.sampler = runner, NegativeSampler(data, device)
        self.users = data.graph.edge_user.to(self.sampler.device)  # (E,)
        self.generator = torch.Generator(self.sampler.device).manual_seed(runner.settings.seed)
        self.drawn = 0

    def __call__(self, *_: Any) -> Tensor:
        with record_function("sampling"):
            start = self.drawn % len(self.users)
            users = self.users[start : start + self.runner.settings.batch_size]
            self.drawn = start + len(users)
            negatives = self.sampler.negatives(users, self.generator)
            order = torch.randperm(len(users), generator=self.generator, device=users.device)
            torch.stack([column.index_select(0, order) for column in (users, negatives, negatives)])
        with record_function("data"):
            batch = self.runner.next_batch().clone()
        return self.runner.train_on(batch)


def step_runners(models: Mapping[str, nn.Module], data: Interactions, settings: TrainSettings) -> dict[str, StepRunner]:
    """A runner a model, all on the same batches (those of ``settings.seed``'s epoch 0)."""
    batches = {}
    for model in models.values():
        device = next(model.parameters()).device
        if device not in batches:
            triples = NegativeSampler(data, device).epoch(settings.seed, 0)
            batches[device] = _full_batches(triples, settings.batch_size)
    return {
        name: StepRunner(model.train(), batches[next(model.parameters()).device], settings)
        for name, model in models.items()
    }


def time_sampling(data: Interactions, device: str | torch.device, seed: int = 0) -> list[float]:
    """Seconds to shuffle an epoch's interactions and draw their negatives, for three epochs."""
    device = torch.device(device)
    sampler = NegativeSampler(data, device)
    sampler.epoch(seed, 0)
    return [_seconds(lambda epoch=epoch: sampler.epoch(seed, epoch), device) for epoch in range(1, SAMPLED_EPOCHS + 1)]


def time_validation(
    models: Mapping[str, nn.Module], data: Interactions, device: str | torch.device
) -> dict[str, float]:
    """Seconds to rank all items for the validation users, a model each; 0 without a validation split."""
    if not data.valid.shape[1]:
        return dict.fromkeys(models, 0.0)
    device = torch.device(device)
    return {name: _seconds(lambda m=model: evaluate(m, data, "valid"), device) for name, model in models.items()}


def epoch_summary(
    data: Interactions,
    settings: TrainSettings,
    timings: Mapping[str, Timings],
    profiles: Mapping[str, StepProfile],
    sampling_s: list[float],
    validation_s: Mapping[str, float],
) -> dict[str, Any]:
    """The content of a record of kind "epoch": each model's epoch in seconds and its step by region.

    epoch_s is steps an epoch times the median step, plus sampling: the training time of MMRec's logs, to which
    validation is not counted.
    """
    steps = -(-data.train.shape[1] // settings.batch_size)
    as_it_is = timings[DEFAULT]
    names = list(as_it_is.ms)
    table = as_it_is.table().set_index("name")
    return {
        "steps_per_epoch": steps,
        "batch_size": settings.batch_size,
        "models": [
            {
                **profiles[name].to_dict(operators=30),
                "top_operators": top_operators(profiles[name]),
                "device_use": device_use({name: profiles[name]}).to_dict("records")[0],
                "model": name,
                "step_ms": list(as_it_is.ms[name]),
                "step_ms_median": table.loc[name, "median_ms"],
                "step_ms_q1": table.loc[name, "q1_ms"],
                "step_ms_q3": table.loc[name, "q3_ms"],
                "sampling_s": float(np.median(sampling_s)),
                "steps_s": steps * table.loc[name, "median_ms"] / 1e3,
                "epoch_s": steps * table.loc[name, "median_ms"] / 1e3 + float(np.median(sampling_s)),
                "validation_s": validation_s[name],
            }
            for name in names
        ],
        "heaps": [_heap(heap, one) for heap, one in timings.items()],
        "ratio_grcn_to_dragon": _heap(*list(timings.items())[-1])["ratio_grcn_to_dragon"],
    }


def _heap(heap: str, timings: Timings) -> dict[str, Any]:
    """Median steps and the ratio GRCN over DRAGON under one setting of the allocator."""
    ratio = timings.ratio("GRCN", "DRAGON")
    return {
        "heap": heap,
        "step_ms_median": {name: timings.median_ms(name) for name in timings.ms},
        "ratio_grcn_to_dragon": {
            "heap": heap,
            "median": ratio.median,
            "q1": ratio.q1,
            "q3": ratio.q3,
            "rounds": ratio.rounds,
        },
    }


def _full_batches(triples: Tensor, batch_size: int) -> list[Tensor]:
    batches = list(split_batches(triples, batch_size))
    return batches[:-1] if len(batches) > 1 and batches[-1].shape[1] < batch_size else batches


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start
