"""What checkpointing, mixed precision and features on the host do to time and memory, each alone and all together."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mmrec_helpers.config import choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import (
    CONTROL,
    MeasureOptions,
    StepRunner,
    control_of,
    quoted_malloc,
    refuse_too_large,
    step_rows,
    step_runners,
    steps_per_epoch,
    within_noise,
)
from mmrec_helpers.models import Recommender
from mmrec_helpers.models.settings import PRECISIONS
from mmrec_helpers.models.step_cost import predicted_step_bytes
from mmrec_helpers.models.variants import MEMORY_SETTINGS, REFERENCE, VARIANTS, Variant
from mmrec_helpers.profiling.flow import Operations
from mmrec_helpers.profiling.memory import measure_memory
from mmrec_helpers.profiling.nested_tensors import dense_parts, tensors_in
from mmrec_helpers.profiling.regions import profile_steps
from mmrec_helpers.profiling.timing import measure
from mmrec_helpers.progress import progress

NONE, *ALONE, ALL = ("none", *MEMORY_SETTINGS)  # no setting; each alone; all three
LABELS = {"none": "none", "checkpointing": "checkpointing", "mixed-precision": "mixed precision"}
LABELS |= {"features-on-host": "features on the host", "all-three": "all three"}
MODELS = {"GRCN": "grcn", "DRAGON": "dragon"}
TIMELINE_POINTS = 400
COPY_REGION = "copy.features"


def measure_memory_settings(data: Interactions, options: MeasureOptions, precision: str = "float16") -> dict[str, Any]:
    """The content of a record of kind "memory-settings": the reference GRCN and DRAGON under each memory setting, all
    interleaved in one run with a control.

    precision  of mixed precision: "float16" (as diagnosed) or "bfloat16"

    rows      per model and setting: those of ``step_rows`` (ratio: to the model without any setting), peak_bytes (of a
              step, above what it began with), held_bytes (what the device holds between steps: features, parameters,
              gradients, Adam's state), total_bytes (the two together), memory_ratio (total_bytes over those without a
              setting), predicted_bytes (of peak_bytes; None where nothing is predicted), edge_bytes (a forward pass's
              arrays of (E, d) or (2 E, d), by type), copied_bytes (features copied to the device per step, from the
              trace; None on a CPU, where nothing is copied)
    features  bytes of the raw features: what a step copies if they are kept on the host, and an epoch of such steps
    profiles  for no setting and all three: timeline, regions, largest pieces at the peak, lines (on CUDA)

    Raises InputError if a step is predicted to pass 16 GiB on a CPU.
    """
    choose("precision", precision, PRECISIONS)
    variants = {variant.name: variant for variant in map(_variant, MODELS.values(), [NONE] * 2)}
    for setting in MEMORY_SETTINGS:
        for base in MODELS.values():
            variant = _with_precision(_variant(base, setting), precision)
            variants[variant.name] = variant
    models = {name: variant.build(data, options.seed, options.device) for name, variant in variants.items()}
    refuse_too_large(models.values(), data)
    control = {CONTROL: VARIANTS[REFERENCE].build(data, options.seed, options.device)}
    runners = step_runners(models | control, data, options.training())
    with quoted_malloc(options.device) as malloc:
        timings = measure(runners, **options.timing)
    rows, profiles = [], []
    for row in progress(step_rows(timings), "measuring memory"):
        setting = _setting_of(row["variant"])
        memory = measure_memory(runners[row["variant"]], device=options.device)
        rows.append(row | {"setting": setting} | _memory(runners[row["variant"]], memory.peak_bytes, data))
        if setting in (NONE, ALL):
            about = {"model": row["model"].upper(), "setting": setting}
            profiles.append(about | memory.to_dict(TIMELINE_POINTS))
    without = {row["variant"]: row["total_bytes"] for row in rows}
    for row in rows:
        row["memory_ratio"] = row["total_bytes"] / without[row["model"]]
    steps = steps_per_epoch(data, options.batch_size)
    per_step, where = sum(values.nbytes for values in data.features.values()), torch.device(options.device).type
    return {
        "precision": precision,
        "batch_size": options.batch_size,
        "steps_per_epoch": steps,
        "malloc": malloc,
        "control": control_of(timings),
        "features": {"bytes_per_step": per_step, "bytes_per_epoch": per_step * steps, "device": where},
        "rows": rows,
        "profiles": profiles,
    }


def memory_frame(content: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a record of kind "memory-settings", with model as "GRCN" or "DRAGON", the setting's label, and the
    ratio's median, q1 and q3 as time, q1 and q3."""
    rows = [
        row
        | {"model": row["model"].upper(), "label": LABELS[row["setting"]], "time": row["ratio"]["median"]}
        | {name: row["ratio"][name] if row["setting"] != NONE else 1.0 for name in ("q1", "q3")}
        | ({"time": 1.0} if row["setting"] == NONE else {})
        for row in content["rows"]
    ]
    table = pd.DataFrame(rows).astype({"predicted_bytes": float, "copied_bytes": float})
    quiet = within_noise(table.assign(ratio=table["time"]), content["control"]["noise"])
    return table.assign(within_noise=quiet).sort_values("model", ascending=False, kind="stable", ignore_index=True)


def _variant(base: str, setting: str) -> Variant:
    return VARIANTS[base if setting == NONE else f"{base}-{setting}"]


def _setting_of(variant: str) -> str:
    return variant.partition("-")[2] or NONE


def _with_precision(variant: Variant, precision: str) -> Variant:
    if "mixed_precision" not in variant.options:
        return variant
    return dataclasses.replace(variant, options={**variant.options, "mixed_precision": precision})


def held_bytes(runner: StepRunner) -> int:
    """Bytes of the storages that lie on the model's device between steps, each counted once."""
    model, device = runner.model, runner.model.device
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [value for state in runner.optimizer.state.values() for value in state.values()]
    storages = {}
    for tensor in (part for held in tensors_in(tensors) for part in dense_parts(held)):
        if tensor.device.type == device.type:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def edge_bytes(model: Recommender, batch: Tensor, n_edges: int, width: int) -> dict[str, int]:
    """Bytes of the arrays of ``n_edges`` or twice as many rows, ``width`` wide, that a forward pass makes, by type."""
    made: Counter[str] = Counter()

    def note(func: Any, args: tuple, kwargs: dict) -> Any:
        output = func(*args, **kwargs)
        given = {_storage(tensor) for tensor in tensors_in(args)}
        for tensor in tensors_in(output):  # views of an array at hand are not new
            fits = tensor.shape in ((n_edges, width), (2 * n_edges, width)) and tensor.is_floating_point()
            if fits and tensor.layout == torch.strided and _storage(tensor) not in given:
                made[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.element_size()
        return output

    with Operations(note):
        model.loss(batch)
    return dict(sorted(made.items()))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _memory(runner: StepRunner, peak_bytes: int, data: Interactions) -> dict[str, Any]:
    options = runner.model.settings
    held = held_bytes(runner)
    known = options.mixed_precision is None
    return {
        "peak_bytes": peak_bytes,
        "held_bytes": held,
        "total_bytes": peak_bytes + held,
        "predicted_bytes": predicted_step_bytes(runner.model.name, data, options) if known else None,
        "edge_bytes": edge_bytes(runner.model, runner.batches[0], data.train.shape[1], options.embedding_dim),
        "copied_bytes": _copied_bytes(runner) if options.features_on_host else 0,
    }


def _copied_bytes(runner: StepRunner) -> float | None:
    """Bytes of features copied to the device in a step, as its trace has them; None where there is nothing to copy."""
    if runner.model.device.type == "cpu":
        return None
    copies = profile_steps(runner, steps=1, warmup=0, device=runner.model.device).copies
    return float(copies.loc[copies["region"] == COPY_REGION, "bytes"].sum())


def types_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """MB of edge arrays made in a forward pass, by type: model, setting, and a column per type, that of mixed precision
    among them whether anything is of it or not."""
    rows = [
        {"model": row["model"], "setting": row["label"]}
        | {name: size / 1e6 for name, size in row["edge_bytes"].items()}
        for row in memory_frame(content).to_dict("records")
    ]
    table = pd.DataFrame(rows)
    return table.assign(**{content["precision"]: table.get(content["precision"], 0.0)}).fillna(0.0)


def largest_table(content: Mapping[str, Any], rows: int = 6) -> pd.DataFrame:
    """The largest pieces alive at the peak with no setting: model, MB, and where and by what they were made.

    On CUDA the lines of Python that made them, and how much each made, follow in rows of their own.
    """
    frames = []
    for profile in (p for p in content["profiles"] if p["setting"] == NONE):
        columns = ["bytes", "region", "phase", "operator", "shapes"]
        pieces = pd.DataFrame(profile["largest"], columns=columns).head(rows)
        lines = pd.DataFrame(profile["lines"], columns=["bytes", "line"]).head(rows)
        frames += [frame.assign(model=profile["model"]) for frame in (pieces, lines) if len(frame)]
    table = pd.concat(frames, ignore_index=True)
    table.insert(0, "MB", table.pop("bytes") / 1e6)
    table.insert(0, "model", table.pop("model"))
    return table
