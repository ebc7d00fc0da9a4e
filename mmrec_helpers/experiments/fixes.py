"""What each proposed fix does to the time and the memory of GRCN's step, and whether it changes the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.compiled import compile_model, count_graphs, quiet_compiler
from mmrec_helpers.experiments.epoch import step_runners, time_sampling
from mmrec_helpers.experiments.memory_prediction import refuse_too_large
from mmrec_helpers.models import build
from mmrec_helpers.profiling.memory import peak_bytes
from mmrec_helpers.profiling.timing import Timings, measure
from mmrec_helpers.training import NegativeSampler, TrainSettings

SHIPPED, LIVE = "as shipped, 3 iterations", "live, 3 iterations"  # the reference of all ratios; and of live routing
EXACT = 1e-10  # largest relative difference in float64 that counts as rounding
EXACT_COMPILED = 1e-4  # in float32, in which what is compiled is run
BATCH_SIZES = (512, 2048, 8192)
WARMUP = 1  # untimed calls of each arm


@dataclass(frozen=True)
class Fix:
    """One measured variant: options of ``build``, the fix it belongs to, and the arm whose result it should keep.

    against   name of the arm in the reference backend that it is compared with; None for that arm itself
    compiled  None, or one of ``compiled.WAYS``
    """

    fix: str
    backend: str = "reference"
    against: str | None = SHIPPED
    options: Mapping[str, Any] = field(default_factory=dict)
    compiled: str | None = None


def _iterations(routing: str, count: int) -> dict[str, Any]:
    return {"routing": routing, "routing_iterations": count}


_LIVE = _iterations("live", 3)
FIXES: dict[str, Fix] = {
    SHIPPED: Fix("iterations", against=None),
    "as shipped, 2 iterations": Fix("iterations", options=_iterations("as_shipped", 2)),
    "as shipped, 1 iteration": Fix("iterations", options=_iterations("as_shipped", 1)),
    "as shipped, none": Fix("iterations", options=_iterations("as_shipped", 0)),
    LIVE: Fix("iterations", against=None, options=_LIVE),
    "live, 2 iterations": Fix("iterations", against=LIVE, options=_iterations("live", 2)),
    "live, 1 iteration": Fix("iterations", against=LIVE, options=_iterations("live", 1)),
    "modalities batched, as shipped": Fix("vectorise", options={"batched_modalities": True}),
    "modalities batched, live": Fix("vectorise", against=LIVE, options=_LIVE | {"batched_modalities": True}),
    "attention cached, as shipped": Fix("cache attention", options={"cached_attention": True}),
    "attention cached, live": Fix("cache attention", against=LIVE, options=_LIVE | {"cached_attention": True}),
    "sparse, as shipped": Fix("sparse", "sparse"),
    "sparse, live": Fix("sparse", "sparse", LIVE, _LIVE),
    "fused, as shipped": Fix("fused", "fused"),
    "fused, live": Fix("fused", "fused", LIVE, _LIVE),
    "mean pooling": Fix("alternative", options={"preference_update": "mean"}),
    "mean pooling, fused": Fix("alternative", "fused", options={"preference_update": "mean"}),
    "learned weighting": Fix("alternative", options={"preference_update": "learned"}),
    "learned weighting, fused": Fix("alternative", "fused", options={"preference_update": "learned"}),
    "torch.compile(model)": Fix("compile", compiled="model"),
    "torch.compile(loss)": Fix("compile", compiled="loss"),
}


def measure_fixes(
    data: Interactions,
    *,
    batch_size: int = 2048,
    repeats: int = 9,
    seed: int = 0,
    device: torch.device | str = "cpu",
    compile_backend: str = "inductor",
    arms: Sequence[str] = tuple(FIXES),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The content of a record of kind "fixes": the arms' steps interleaved in one run.

    compile_backend  of the arms with torch.compile; "" leaves out the one whose loss is compiled. "inductor" is what
                     torch.compile takes by itself; it needs a C++ compiler (CPU) or Triton (CUDA), and minutes to
                     compile on a CPU; "aot_eager" captures the graphs and runs them as they are
    arms             names in ``FIXES``; the two references are always there

    arms         one row an arm: step_ms_median and quartiles; ratio, its step over that of three iterations as shipped
                 (median, q1, q3 within rounds), and ratio_to_against, over that of the arm named in ``against``;
                 epoch_s; peak_bytes of a step (tensors beyond what it began with; None for compiled arms, whose kernels
                 allocate out of the profiler's sight); from the same parameters in float64 (compiled arms: float32),
                 beside the arm named in ``against``: output_difference and gradient_difference (largest, relative to
                 the largest value), and exact
    compile      what is compiled when the loss is called on ``torch.compile(model)``, when the compiled model itself is
                 called, as a control (without iterations, to be quick), and when the loss itself is compiled
    batch_sizes  one row a batch size and backend: steps_per_epoch, step_ms_median and quartiles, epoch_s
    left_out     arms that cannot run here, and why
    """
    chosen = {name: fix for name, fix in FIXES.items() if name in {SHIPPED, LIVE, *arms}}
    if not compile_backend:
        chosen.pop("torch.compile(loss)", None)
    built, left_out = _build_all(chosen, data, seed, device)
    refuse_too_large(built.values(), data)
    settings = TrainSettings(batch_size=batch_size, seed=seed)
    batch = next(NegativeSampler(data, device).batches(batch_size, seed))
    plain = {name: fix for name, fix in chosen.items() if name in built and fix.compiled is None}
    differences = _differences(plain, data, batch, seed, device)
    models = {name: _compiled(model, chosen[name], compile_backend) for name, model in built.items()}
    graphs = _compile_and_count(models, chosen, batch, differences, data, seed)
    runners = step_runners(models, data, settings)
    timed = {"repeats": repeats, "warmup": WARMUP, "device": device, "max_seconds": max_seconds, "progress": progress}
    with quiet_compiler():
        timings = measure(runners, **timed)
    peaks = {name: peak_bytes(runners[name], device) for name in plain}
    sampling_s = float(np.median(time_sampling(data, device, seed)))
    steps = math.ceil(data.train.shape[1] / batch_size)
    return {
        "batch_size": batch_size,
        "steps_per_epoch": steps,
        "sampling_s": sampling_s,
        "reference": SHIPPED,
        "compile_backend": compile_backend,
        "arms": [
            _row(name, chosen[name], timings, steps, sampling_s, peaks.get(name), differences[name]) for name in models
        ],
        "compile": graphs,
        "batch_sizes": _measure_batch_sizes(data, batch_sizes, seed, sampling_s, timed),
        "left_out": left_out,
    }


def _build_all(
    chosen: Mapping[str, Fix], data: Interactions, seed: int, device: torch.device | str
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The models, and why some cannot be built here (a backend that lacks its package)."""
    built, left_out = {}, {}
    for name, fix in chosen.items():
        try:
            built[name] = build("grcn", data, backend=fix.backend, seed=seed, device=device, **fix.options)
        except InputError as error:
            left_out[name] = str(error)
    return built, left_out


def _compiled(model: nn.Module, fix: Fix, compile_backend: str) -> nn.Module:
    return model if fix.compiled is None else compile_model(model, fix.compiled, compile_backend or "eager")


def _row(
    name: str,
    fix: Fix,
    timings: Timings,
    steps: int,
    sampling_s: float,
    peak_bytes: int | None,
    differences: Mapping[str, float],
) -> dict[str, Any]:
    q1, median, q3 = np.percentile(timings.ms[name], (25, 50, 75))
    return {
        "arm": name,
        "fix": fix.fix,
        "backend": fix.backend,
        "against": fix.against or name,
        "step_ms_median": median,
        "step_ms_q1": q1,
        "step_ms_q3": q3,
        "ratio": _ratio(timings, name, SHIPPED),
        "ratio_to_against": _ratio(timings, name, fix.against or name),
        "epoch_s": steps * median / 1e3 + sampling_s,
        "peak_bytes": peak_bytes,
        **differences,
        "exact": max(differences.values()) < (EXACT if fix.compiled is None else EXACT_COMPILED),
    }


def _ratio(timings: Timings, name: str, other: str) -> dict[str, float]:
    ratio = timings.ratio(name, other)
    return {"median": ratio.median, "q1": ratio.q1, "q3": ratio.q3, "rounds": ratio.rounds}


def _differences(
    chosen: Mapping[str, Fix], data: Interactions, batch: Tensor, seed: int, device: torch.device | str
) -> dict[str, dict[str, float]]:
    """By arm, the largest difference of output and gradients to its reference, from the same parameters in float64."""
    results, found = {}, {}
    for name, fix in chosen.items():  # a reference stands before what is compared with it
        model = build("grcn", data, backend=fix.backend, seed=seed, device=device, **fix.options).double()
        result = _output_and_gradients(model, model, batch)
        if fix.against is None:
            results[name] = result
        found[name] = _difference(result, results[fix.against or name])
    return found


def _compile_and_count(
    models: Mapping[str, nn.Module],
    chosen: Mapping[str, Fix],
    batch: Tensor,
    differences: dict[str, dict[str, float]],
    data: Interactions,
    seed: int,
) -> dict[str, dict[str, int]]:
    """Call the compiled arms once, so that they are compiled when they are timed; counts what is compiled and adds the
    arms' differences to the reference (float32)."""
    plain, counted = models[SHIPPED], {}
    base = _output_and_gradients(plain, plain, batch)
    torch._dynamo.reset()
    quick = build("grcn", data, backend="reference", seed=seed, device=batch.device, routing_iterations=0)
    control = torch.compile(quick, backend="eager")
    counted["forward_of_compiled_model"] = count_graphs(lambda: control().sum())
    torch._dynamo.reset()
    for name in (name for name in models if chosen[name].compiled is not None):
        compiled = models[name]
        way = "compiled_loss" if chosen[name].compiled == "loss" else "loss_of_compiled_model"
        counted[way] = count_graphs(lambda compiled=compiled: compiled.loss(batch).backward())
        compiled.zero_grad()
        differences[name] = _difference(_output_and_gradients(plain, compiled, batch), base)
        compiled.zero_grad()
    plain.zero_grad()
    return counted


def _output_and_gradients(model: nn.Module, with_loss: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The model's output, and the gradients of the loss of ``with_loss``, by the parameters' own names."""
    output = model.representation().detach()
    with quiet_compiler():
        with_loss.loss(batch).backward()
    named = ((name.removeprefix("_orig_mod."), p) for name, p in with_loss.named_parameters())
    return output, {name: p.grad.clone() for name, p in named if p.grad is not None}


def _difference(result: tuple[Tensor, dict[str, Tensor]], base: tuple[Tensor, dict[str, Tensor]]) -> dict[str, float]:
    gradients, base_gradients = result[1], base[1]
    return {
        "output_difference": _relative(result[0], base[0]),
        "gradient_difference": max(_relative(gradients[name], base_gradients[name]) for name in base_gradients),
    }


def _relative(value: Tensor, base: Tensor) -> float:
    return float((value - base).abs().max() / base.abs().max())


def _measure_batch_sizes(
    data: Interactions, batch_sizes: Sequence[int], seed: int, sampling_s: float, timed: Mapping[str, Any]
) -> list[dict[str, Any]]:
    sizes = [size for size in batch_sizes if size <= data.train.shape[1]]
    runners, of = {}, {}
    for backend in ("reference", "fused"):
        for size in sizes:
            try:
                model = build("grcn", data, backend=backend, seed=seed, device=timed["device"])
            except InputError:
                break
            name = f"{backend} {size}"
            runners |= step_runners({name: model}, data, TrainSettings(batch_size=size, seed=seed))
            of[name] = backend, size
    if not runners:
        return []
    timings = measure(runners, **timed)
    return [_batch_row(*of[name], timings.ms[name], data.train.shape[1], sampling_s) for name in runners]


def _batch_row(backend: str, size: int, ms: Sequence[float], n_train: int, sampling_s: float) -> dict[str, Any]:
    q1, median, q3 = np.percentile(ms, (25, 50, 75))
    steps = math.ceil(n_train / size)
    return {
        "backend": backend,
        "batch_size": size,
        "steps_per_epoch": steps,
        "step_ms_median": median,
        "step_ms_q1": q1,
        "step_ms_q3": q3,
        "epoch_s": steps * median / 1e3 + sampling_s,
    }


def fixes_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """The arms of a record of kind "fixes" with the ratio's median, q1 and q3 as columns, and ratio_to_own, the median
    of ``ratio_to_against``."""
    rows = []
    for arm in content["arms"]:
        flat = {name: value for name, value in arm.items() if not name.startswith("ratio")}
        quartiles = {name: arm["ratio"][name] for name in ("median", "q1", "q3")}
        rows.append(flat | quartiles | {"ratio_to_own": arm["ratio_to_against"]["median"]})
    return pd.DataFrame(rows).astype({"peak_bytes": float})
