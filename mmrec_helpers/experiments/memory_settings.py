"""What checkpointing, mixed precision and features on the host do to time and memory, each alone and all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmrec_helpers.config import choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.epoch import StepRunner, step_runners
from mmrec_helpers.experiments.memory_prediction import predicted_step_bytes, refuse_too_large
from mmrec_helpers.models import build
from mmrec_helpers.models.settings import PRECISIONS
from mmrec_helpers.profiling.allocator import DEFAULT, TRIMMING_DISABLED, controllable, trimming_disabled
from mmrec_helpers.profiling.memory import measure_memory
from mmrec_helpers.profiling.regions import profile_steps
from mmrec_helpers.profiling.timing import Timings, measure
from mmrec_helpers.training import TrainSettings

NONE, CHECKPOINTING, PRECISION, HOST, ALL = (
    "none",
    "checkpointing",
    "mixed precision",
    "features on the host",
    "all three",
)
TIMELINE_POINTS = 400
COPY_REGION = "copy.features"


def arms(precision: str = "float16") -> dict[str, dict[str, Any]]:
    """The settings to compare: name to options of ``build``, each memory setting alone and all three together."""
    choose("precision", precision, PRECISIONS)
    alone = {
        CHECKPOINTING: {"checkpointing": True},
        PRECISION: {"mixed_precision": precision},
        HOST: {"features_on_host": True},
    }
    return {NONE: {}, **alone, ALL: {name: value for options in alone.values() for name, value in options.items()}}


def measure_memory_settings(
    data: Interactions,
    *,
    precision: str = "float16",
    batch_size: int = 2048,
    repeats: int = 7,
    seed: int = 0,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The content of a record of kind "memory": the reference GRCN and DRAGON under each of the memory settings.

    arms       one row a model and setting: step_ms_median and quartiles, time_ratio to no setting (median and quartiles
               of the ratios within rounds), peak_bytes (of a step, above what it began with), held_bytes (what the
               device holds between steps: features, parameters, gradients, Adam's state), total_bytes (the two
               together), predicted_bytes (of peak_bytes; None where nothing is predicted), edge_bytes (a forward
               pass's arrays of (E, d) or (2 E, d), by type), copied_bytes (features copied to the device a step, from
               the trace; None on a CPU, where nothing is copied)
    features   bytes of the raw features: what a step copies if they are kept on the host, and an epoch of such steps
    profiles   for no setting and all three: timeline, regions, largest pieces at the peak, lines (on CUDA)

    The arms of a model are interleaved. On a CPU the heap keeps its memory meanwhile, where that can be set.
    ``max_seconds`` bounds the timing of each model. Raises InputError if a step is predicted to pass 16 GiB on a CPU.
    """
    device = torch.device(device)
    settings = TrainSettings(batch_size=batch_size, seed=seed)
    on_cpu = device.type == "cpu"
    rows, profiles = [], []
    for name in ("grcn", "dragon"):
        models = {
            arm: build(name, data, backend="reference", seed=seed, device=device, **options)
            for arm, options in arms(precision).items()
        }
        refuse_too_large(models.values(), data)
        runners = step_runners(models, data, settings)
        with trimming_disabled() if on_cpu else nullcontext():
            timings = measure(runners, repeats=repeats, device=device, max_seconds=max_seconds, progress=progress)
        for arm, runner in runners.items():
            memory = measure_memory(runner, device=device)
            rows.append(_row(name.upper(), arm, runner, timings, memory.peak_bytes, data))
            if arm in (NONE, ALL):
                profiles.append({"model": name.upper(), "arm": arm, **memory.to_dict(TIMELINE_POINTS)})
    steps = -(-data.train.shape[1] // batch_size)
    per_step = sum(values.nbytes for values in data.features.values())
    return {
        "precision": precision,
        "batch_size": batch_size,
        "steps_per_epoch": steps,
        "heap": TRIMMING_DISABLED if on_cpu and controllable() else DEFAULT,
        "features": {"bytes_per_step": per_step, "bytes_per_epoch": per_step * steps, "device": device.type},
        "arms": rows,
        "profiles": profiles,
    }


def held_bytes(runner: StepRunner) -> int:
    """Bytes of the storages that lie on the model's device between steps, each counted once."""
    model, device = runner.model, runner.model.device
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [value for state in runner.optimizer.state.values() for value in state.values()]
    storages = {}
    for tensor in _dense_parts(tensors):
        if tensor.device.type == device.type:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def edge_bytes(model: nn.Module, batch: Tensor, n_edges: int, width: int) -> dict[str, int]:
    """Bytes of the arrays of ``n_edges`` or twice as many rows, ``width`` wide, that a forward pass makes, by type."""
    with _EdgeTypes({n_edges, 2 * n_edges}, width) as log:
        model.loss(batch)
    return {name.removeprefix("torch."): count for name, count in sorted(log.bytes.items())}


class _EdgeTypes(TorchDispatchMode):
    """Adds up the bytes of new arrays (rows, width), by type; views of an array at hand are not new."""

    def __init__(self, rows: set[int], width: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        given = {_storage(value) for value in args if isinstance(value, Tensor)}
        for value in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point():
                fits = value.shape[0] in self.rows and value.shape[1] == self.width
                if fits and value.layout == torch.strided and _storage(value) not in given:
                    self.bytes[str(value.dtype)] += value.numel() * value.element_size()
        return output


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _dense_parts(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield from (value._indices(), value._values()) if value.layout == torch.sparse_coo else (value,)


def _row(
    model: str, arm: str, runner: StepRunner, timings: Timings, peak_bytes: int, data: Interactions
) -> dict[str, Any]:
    options = runner.model.settings
    table = timings.table().set_index("name")
    ratio = timings.ratio(arm, NONE)
    held = held_bytes(runner)
    batch = runner.batches[0]
    predicted = predicted_step_bytes(model.lower(), data, options) if options.mixed_precision is None else None
    return {
        "model": model,
        "arm": arm,
        "checkpointing": options.checkpointing,
        "mixed_precision": options.mixed_precision,
        "features_on_host": options.features_on_host,
        **{f"step_ms_{name}": table.loc[arm, f"{name}_ms"] for name in ("median", "q1", "q3")},
        "time_ratio": {"median": ratio.median, "q1": ratio.q1, "q3": ratio.q3, "rounds": ratio.rounds},
        "peak_bytes": peak_bytes,
        "held_bytes": held,
        "total_bytes": peak_bytes + held,
        "predicted_bytes": predicted,
        "edge_bytes": edge_bytes(runner.model, batch, data.train.shape[1], options.embedding_dim),
        "copied_bytes": _copied_bytes(runner) if options.features_on_host else 0,
    }


def _copied_bytes(runner: StepRunner) -> float | None:
    """Bytes of features copied to the device in a step, as its trace has them; None where there is nothing to copy."""
    if runner.model.device.type == "cpu":
        return None
    copies = profile_steps(runner, steps=1, warmup=0, device=runner.model.device).copies
    return float(copies.loc[copies["region"] == COPY_REGION, "bytes"].sum())


def arms_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """The arms of a record of kind "memory" for reading: model, setting, ms a step, times as long, MB."""
    table = pd.DataFrame(content["arms"])
    return pd.DataFrame(
        {
            "model": table["model"],
            "setting": table["arm"],
            "step, ms": table["step_ms_median"],
            "times": [ratio["median"] for ratio in table["time_ratio"]],
            "q1": [ratio["q1"] for ratio in table["time_ratio"]],
            "q3": [ratio["q3"] for ratio in table["time_ratio"]],
            "held, MB": table["held_bytes"] / 1e6,
            "peak, MB": table["peak_bytes"] / 1e6,
            "predicted, MB": table["predicted_bytes"].astype(float) / 1e6,
        }
    )


def types_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """MB of edge arrays made in a forward pass, by type: model, setting, and a column a type."""
    rows = [
        {"model": row["model"], "setting": row["arm"]} | {name: size / 1e6 for name, size in row["edge_bytes"].items()}
        for row in content["arms"]
    ]
    return pd.DataFrame(rows).fillna(0.0)


def largest_table(content: Mapping[str, Any], rows: int = 6) -> pd.DataFrame:
    """The largest pieces alive at the peak with no setting: model, MB, and where and by what they were made.

    On CUDA the lines of Python that made them, and how much each made, follow in rows of their own.
    """
    frames = []
    for profile in (p for p in content["profiles"] if p["arm"] == NONE):
        columns = ["bytes", "region", "phase", "operator", "shapes"]
        pieces = pd.DataFrame(profile["largest"], columns=columns).head(rows)
        lines = pd.DataFrame(profile["lines"], columns=["bytes", "line"]).head(rows)
        frames += [frame.assign(model=profile["model"]) for frame in (pieces, lines) if len(frame)]
    table = pd.concat(frames, ignore_index=True)
    table.insert(0, "MB", table.pop("bytes") / 1e6)
    table.insert(0, "model", table.pop("model"))
    return table
