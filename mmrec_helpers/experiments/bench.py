"""The benchmark: steps, attention block, sampler and evaluation of the backends, in pairs within one run.

On the CPU everything is timed twice: with glibc's default malloc, and with one that keeps released memory (see
``allocator``). Ratios are medians of the ratios within rounds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmrec_helpers.config import InputError, check_at_least, resolve_device
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.epoch import step_runners
from mmrec_helpers.experiments.memory_prediction import predicted_step_bytes
from mmrec_helpers.models import build
from mmrec_helpers.ops import GraphOps, make_ops
from mmrec_helpers.ops.rows import l2_normalize
from mmrec_helpers.profiling.allocator import DEFAULT, TRIMMING_DISABLED, controllable, trimming_disabled
from mmrec_helpers.profiling.memory import HOST_LIMIT_BYTES, measure_memory
from mmrec_helpers.profiling.timing import Timings, measure
from mmrec_helpers.training import NegativeSampler, TrainSettings, evaluate

BACKENDS = ("reference", "sparse", "fused")
MODELS = ("grcn", "dragon")
GROUPS = ("step", "attention", "evaluation")  # besides the sampler, which is always timed
OWN = "MMRec"
_LIVE = {1: {"routing": "live", "routing_iterations": 1}, 3: {"routing": "live", "routing_iterations": 3}}
_JUDGED = {"cpu": ("baby", TRIMMING_DISABLED), "cuda": ("music4all", "")}  # where the targets are meant
_GIB = 2**30
_TOLD_EVERY_S = 15.0


@dataclass(frozen=True)
class Target:
    """What a ratio of two arms' times should reach: at least ``least`` and better ``aim`` (``below``: at most)."""

    what: str
    group: str
    numerator: str
    denominator: str
    least: float | None = None
    aim: float | None = None
    below: bool = False

    def verdict(self, ratio: float) -> str:
        """ "aim reached", "reached" or "missed"; empty if there is no limit."""
        if self.least is None:
            return ""
        sign = -1 if self.below else 1
        if sign * ratio >= sign * self.aim:
            return "aim reached"
        return "reached" if sign * ratio >= sign * self.least else "missed"


def targets(fast: str, cpu: bool) -> list[Target]:
    """The ratios that are told, for the fast backend, with the limits of a CPU or a GPU."""
    grcn, dragon = f"GRCN {fast}", f"DRAGON {fast}"
    found = [
        Target("GRCN step, as shipped", "step", "GRCN reference", grcn, 8 if cpu else 10, 10 if cpu else 15),
        Target("GRCN step, live, 3 iterations", "step", "GRCN reference", f"{grcn} live 3", 5.5, 7),
        Target("GRCN live step, 3 iterations / 1", "step", f"{grcn} live 3", f"{grcn} live 1", 1.4, 1.25, below=True),
        Target("DRAGON step", "step", "DRAGON reference", dragon, 4, 6),
        Target("fast GRCN, live, 3 / reference DRAGON", "step", f"{grcn} live 3", "DRAGON reference", 0.5, 0.25, True),
        Target("attention block, live, 3 iterations", "attention", "reference live 3", f"{fast} live 3", 8, 12),
        Target("attention block, as shipped, 3 iterations", "attention", "reference live 3", fast),
        Target("evaluation of GRCN", "evaluation", "GRCN reference", grcn),
    ]
    for model, least in (("GRCN", 8), ("DRAGON", 4)):
        own = f"{OWN} {model}"
        found.append(Target(f"{own}, accelerated", "step", own, f"{own} accelerated", least, least))
        found.append(
            Target(f"{model} reference / {OWN}'s own", "step", f"{model} reference", own, 1.1, 1.1, below=True)
        )
    return found


def run_bench(
    data: Interactions,
    *,
    backends: tuple[str, ...] = BACKENDS,
    models: tuple[str, ...] = MODELS,
    groups: tuple[str, ...] = GROUPS,
    batch_size: int = 2048,
    repeats: int = 9,
    seed: int = 0,
    device: str | torch.device = "cpu",
    max_seconds: float | None = None,
    own_models: Mapping[str, nn.Module] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The content of a record of kind "bench".

    backends     those compared; one that cannot run here is left out, and so is an arm whose step is predicted to need
                 more than 16 GiB of host memory, or more than is free on the GPU
    models       of "grcn" and "dragon", those whose steps are timed
    groups       of "step", "attention" and "evaluation", what is timed besides the sampler
    max_seconds  for the rounds of each group of arms that are timed together; steps end with Adam as ``make_optimizer``
                 sets it up: torch's default for the reference, as in MMRec, one fused pass for the other backends
    own_models   more models to time a step of: name to a module with ``loss(batch)``
    say          called with a line on what is being done

    groups    per group and heap: the timings of its arms, interleaved
    ratios    per target and heap: median and quartiles of the ratios within rounds, peak_ratio (of peak memory); limits
              and verdict where they are meant: a Baby-sized graph on a CPU with a malloc trimming disabled (two threads), a
              Music4All-sized one on a GPU
    memory    peak bytes of one call of each arm, beyond what it began with
    epochs    per model and heap: steps, seconds of an epoch's steps at the median, seconds of sampling it
    left_out  arms and why
    """
    check_at_least("bench", 1, repeats=repeats, batch_size=batch_size)
    device = resolve_device(device)
    usable, left_out = _usable(backends, data, device)
    built, too_large = _models(data, models, usable, seed, device)
    left_out |= too_large
    for name, model in (own_models or {}).items():
        reason = too_large.get(f"{name.split()[1]} reference")  # MMRec's own needs as much
        if reason and "accelerated" not in name:
            left_out[name] = reason
        else:
            built[name] = model
    fits = not any("GRCN" in arm for arm in too_large)
    arms_of = _groups(groups, data, built, usable, fits, batch_size, seed, device)
    fast = next((name for name in ("fused", "sparse") if name in usable), "reference")
    timed = []
    for heap, kept in _heaps(device):
        with kept:
            for group, arms in arms_of.items():
                say(f"{group}: {', '.join(arms)}{f' ({heap})' if heap else ''}")
                told = _rounds_told(group, say)
                timings = measure(arms, repeats=repeats, device=device, max_seconds=max_seconds, progress=told)
                timed.append({"group": group, "heap": heap, "timings": timings})
    memory = _memory(arms_of, device, say)
    return {
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "fast": fast,
        "groups": [entry | {"timings": entry["timings"].to_dict()} for entry in timed],
        "ratios": _ratios(timed, targets(fast, device.type == "cpu"), data, device, memory),
        "memory": memory,
        "epochs": _epochs(timed, data, batch_size),
        "left_out": [{"arm": arm, "reason": reason} for arm, reason in left_out.items()],
    }


def _rounds_told(group: str, say: Callable[[str], None]) -> Callable[[int, int], None]:
    """For ``measure``: say which round of a group is done, now and then where rounds take long."""
    last = time.perf_counter()

    def tell(done: int, rounds: int) -> None:
        nonlocal last
        if time.perf_counter() - last >= _TOLD_EVERY_S:
            last = time.perf_counter()
            say(f"{group}: {done} of at most {rounds} rounds")

    return tell


def _usable(
    backends: tuple[str, ...], data: Interactions, device: torch.device
) -> tuple[dict[str, GraphOps], dict[str, str]]:
    """Operations by backend, and why those that cannot run cannot."""
    usable, left_out = {}, {}
    for backend in backends:
        try:
            usable[backend] = make_ops(backend, data.graph, device)
        except InputError as error:
            left_out[backend] = str(error)
    if not usable:
        raise InputError(f"bench: none of the backends runs here: {'; '.join(left_out.values())}")
    return usable, left_out


def _models(
    data: Interactions, names: tuple[str, ...], backends: Mapping[str, Any], seed: int, device: torch.device
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The models by arm, and why some are left out."""
    fast = [backend for backend in backends if backend != "reference"]
    wanted = {f"GRCN {backend}": ("grcn", backend, {}) for backend in backends}
    wanted |= {f"GRCN {fast[-1]} live {n}": ("grcn", fast[-1], options) for n, options in _LIVE.items() if fast}
    wanted |= {f"DRAGON {backend}": ("dragon", backend, {}) for backend in backends}
    wanted = {arm: what for arm, what in wanted.items() if what[0] in names}
    models, left_out = {}, {}
    limit = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else HOST_LIMIT_BYTES
    for arm, (name, backend, options) in wanted.items():
        model = build(name, data, backend=backend, seed=seed, device=device, **options)
        predicted = predicted_step_bytes(name, data, model.settings, backend)
        if predicted > limit:
            told = f"predicted to need {predicted / _GIB:.1f} GiB, more than {limit / _GIB:.1f} GiB"
            left_out[arm] = told
        else:
            models[arm] = model
    return models, left_out


def _groups(
    wanted: tuple[str, ...],
    data: Interactions,
    models: Mapping[str, nn.Module],
    backends: Mapping[str, GraphOps],
    reference_fits: bool,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Arms by group, of the wanted groups and the sampler; those of a group are timed interleaved."""
    settings = TrainSettings(batch_size=min(batch_size, data.train.shape[1]), seed=seed)
    blocks = {name: ops for name, ops in backends.items() if name != "reference" or reference_fits}
    makers = {
        "step": lambda: dict(step_runners(models, data, settings)),
        "attention": lambda: _attention_arms(data, blocks, seed, device),
        "sampler": lambda: _sampler_arm(data, seed, device),
        "evaluation": lambda: _evaluation_arms(data, models),
    }
    groups = {name: make() for name, make in makers.items() if name in (*wanted, "sampler")}
    return {name: arms for name, arms in groups.items() if arms}


def _sampler_arm(data: Interactions, seed: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    sampler = NegativeSampler(data, device)
    return {"epoch": lambda: sampler.epoch(seed, 0)}


def _evaluation_arms(data: Interactions, models: Mapping[str, nn.Module]) -> dict[str, Callable[[], Any]]:
    """Ranking for all users of a held-out split; no arms where there is none."""
    split = next((split for split in ("valid", "test") if getattr(data, split).shape[1]), None)
    ranked = {name: model for name, model in models.items() if name.startswith("GRCN") and "live" not in name}
    return {name: lambda m=model: evaluate(m, data, split) for name, model in ranked.items() if split}


def _attention_arms(
    data: Interactions, backends: Mapping[str, GraphOps], seed: int, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """One modality's attention block, forward and backward, from unit rows of width 64."""
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(n, 64, generator=generator).to(device) for n in (data.n_users, data.n_items)]
    leaves = [l2_normalize(table).requires_grad_() for table in tables]

    def arm(ops: GraphOps, iterations: int, routing: str) -> Callable[[], None]:
        def run() -> None:
            outputs = ops.attention_block(*leaves, iterations, routing)
            torch.autograd.grad(sum(output.sum() for output in outputs), leaves)

        return run

    arms = {}
    for name, ops in backends.items():
        if name != "reference":
            arms[name] = arm(ops, 3, "as_shipped")
            arms[f"{name} live 1"] = arm(ops, 1, "live")
        arms[f"{name} live 3"] = arm(ops, 3, "live")
    return arms


def _heaps(device: torch.device) -> Iterator[tuple[str, contextlib.AbstractContextManager]]:
    """The allocator's settings to time under, the default first: the other leaves its memory with the process."""
    if device.type != "cpu" or not controllable():
        yield "", contextlib.nullcontext()
        return
    yield DEFAULT, contextlib.nullcontext()
    yield TRIMMING_DISABLED, trimming_disabled()


def _ratios(
    timed: list[dict[str, Any]],
    wanted: list[Target],
    data: Interactions,
    device: torch.device,
    memory: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    peaks = {(entry["group"], entry["arm"]): entry["peak_bytes"] for entry in memory}
    meant = _JUDGED[device.type]
    rows = []
    for entry in timed:
        timings: Timings = entry["timings"]
        judged = data.name.startswith(meant[0]) and entry["heap"] in ("", meant[1])
        for target in wanted:
            if target.group == entry["group"] and {target.numerator, target.denominator} <= set(timings.ms):
                ratio = timings.ratio(target.numerator, target.denominator)
                top, bottom = (peaks[target.group, arm] for arm in (target.numerator, target.denominator))
                limits = vars(target) if judged else vars(target) | {"least": None, "aim": None}
                verdict = target.verdict(ratio.median) if judged else ""
                peak = {"peak_ratio": top / bottom if bottom else None}
                rows.append({"heap": entry["heap"], **limits, **vars(ratio), **peak, "verdict": verdict})
    return rows


def _memory(
    groups: Mapping[str, Mapping[str, Callable[[], Any]]], device: torch.device, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    rows = []
    for group, arms in groups.items():
        say(f"memory: {group}")
        for name, function in arms.items():
            rows.append({"group": group, "arm": name, "peak_bytes": measure_memory(function, device=device).peak_bytes})
    return rows


def _epochs(timed: list[dict[str, Any]], data: Interactions, batch_size: int) -> list[dict[str, Any]]:
    """Steps an epoch times the median step, besides the sampling."""
    steps = -(-data.train.shape[1] // batch_size)
    sampling = {entry["heap"]: entry["timings"].median_ms("epoch") for entry in timed if entry["group"] == "sampler"}
    return [
        {
            "arm": name,
            "heap": entry["heap"],
            "steps": steps,
            "steps_s": steps * entry["timings"].median_ms(name) / 1e3,
            "sampling_s": sampling[entry["heap"]] / 1e3,
        }
        for entry in timed
        if entry["group"] == "step"
        for name in entry["timings"].ms
    ]
