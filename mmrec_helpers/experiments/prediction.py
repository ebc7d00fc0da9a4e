"""Steps of GRCN and DRAGON on GPUs that were not at hand, predicted from counts before any measurement, as ranges.

Counted are bytes, operations and launches of every stage. With what a device publishes (``devices.csv``) they give a
least time and a most:

    least  published rates; rows of a table that fits the L2 cache are gathered and added to there; launches, and the
           host's own work at twice the pace of this one, run beside the device's
    most   half the published rates; every row from device memory; an atomic addition of 4 bytes moves a sector of 32;
           the device waits for every launch and for the host

The factors in ``BOUNDS`` are assumptions, made before measuring. The same two bounds for this CPU, with the rates
measured here, stand beside its measured stages: that shows how good such a prediction is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from importlib import resources
from typing import Any

import pandas as pd
import torch

from mmrec_helpers.data import PRESETS, Interactions, synthesize
from mmrec_helpers.experiments.derivation import variant_cost
from mmrec_helpers.experiments.epoch import find_pairs, stage_times
from mmrec_helpers.experiments.roofline import workload_of
from mmrec_helpers.experiments.steps import MeasureOptions, step_runners, steps_per_epoch
from mmrec_helpers.files import reports_folder
from mmrec_helpers.models import MODELS as MODEL_CLASSES
from mmrec_helpers.models.step_cost import Workload, held_bytes, predicted_peak_bytes, trained_parameters
from mmrec_helpers.models.variants import MEMORY_SETTINGS, VARIANTS
from mmrec_helpers.profiling.regions import UNATTRIBUTED, profile_steps
from mmrec_helpers.profiling.timing import measure
from mmrec_helpers.records import read_record

SETTINGS: dict[str, dict[str, Any]] = {"plain": {}, **MEMORY_SETTINGS}
SETTINGS["diagnosed"] = SETTINGS.pop("all-three")
MODELS = ("grcn", "dragon", "grcn-fused", "dragon-fused")
CASES = [(name, settings) for settings in SETTINGS for name in MODELS if settings in ("plain", "diagnosed")]
CASES += [(name, settings) for settings in SETTINGS for name in MODELS[:2] if settings not in ("plain", "diagnosed")]
CASES += [("grcn-1", "diagnosed")]  # what the public log of GRCN ran
FOLDER = "gpu-prediction"  # under reports: the prediction that is committed
# share: of the published rates that is reached; atomic: bytes moved per byte scattered; waits: nothing overlaps; host:
# how long the host of a GPU takes, over this one
BOUNDS: dict[str, dict[str, Any]] = {
    "least": {"share": 1.0, "atomic": 1.0, "waits": False, "host": 0.5},
    "most": {"share": 0.5, "atomic": 8.0, "waits": True, "host": 1.0},
}
LEFT_OUT = (
    "sampling and the loader; validation; memory that the allocator holds back; clocks below the published ones under "
    "load; conflicts of atomic additions to one row; tiles of the fused kernels that are read twice; PCIe below its "
    "published rate (least), and copies that run beside the step (most)"
)
MEASURED_HERE = ("tiktok-cpu", "measured")  # under reports: what one CPU measured; its rates lie in the first
HERE, CPU_CACHE_MB = "this CPU", 32  # the last-level cache of that CPU
_RECOMPUTED = {"grcn": ("routing", "final_attention", "id_branch"), "dragon": ("features", "convolution")}
_LENGTH_GROUPS = 3  # launches of one fused kernel: long, middle and short rows
_FUSED_KERNELS = {"final_attention": (2 * 2, 2 * 4), "id_branch": (2 * 2, 2 * 2), "convolution": (2, 2)}
_PHASES = ("forward", "backward")
_BESIDE = ("device", "variant", "settings", "least_ms", "most_ms")
_NOT_LAUNCHED = "view|as_strided|::t$|transpose|expand|squeeze|slice|select$|detach|empty|reshape|alias|permute|narrow"
_NOT_LAUNCHED += "|split|unbind|resize|lift|result_type|item|local_scalar|chunk|set_data|to$|is_nonzero|unsafe"


def devices() -> list[dict[str, Any]]:
    """The rows of ``devices.csv``, rates as published, in 10^9 bytes or operations per second; l2_gb_s is 0 where none
    is known. launch_us: per kernel in a row of short ones, and waited_us where each is waited for, both in NVIDIA's
    example of CUDA graphs on a V100 (https://developer.nvidia.com/blog/cuda-graphs)."""
    with resources.files("mmrec_helpers.experiments").joinpath("devices.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file).fillna({"l2_gb_s": 0.0}).to_dict("records")


def measure_prediction(data: Interactions, options: MeasureOptions) -> dict[str, Any]:
    """The content of a record of kind "prediction": nothing of it is measured on a GPU.

    workload, steps_per_epoch, devices, bounds, left_out
    launches   per model: stage, forward, backward (operators that launch something, counted on a small data set)
    list_ns    to make a tensor of a nested list, per entry, on this machine (DRAGON's user graph, in every step)
    steps      per device, variant and settings: least_ms, most_ms, least_epoch_s, most_epoch_s, largest_least and
               largest_most (stages), step_gb (peak of a step beyond what is held), held_gb, fits (the device's memory)
    stages     the same per stage, plain and diagnosed: least_ms, most_ms
    here       this CPU by the same model, beside the records under ``reports``: data, variant, stage ("step": whole),
               least_ms, most_ms, measured_ms
    """
    workload, steps = workload_of(data, options.batch_size), steps_per_epoch(data, options.batch_size)
    launches = {name: count_launches(name) for name in dict.fromkeys(name for name, _ in CASES)}
    list_ns, rows, stages = list_ns_per_entry(), [], []
    for name, settings in CASES:
        w = replace(workload, feature_hidden=128) if settings == "diagnosed" else workload  # as in the diagnosed fork
        costs, held = case_costs(name, w, launches[name], list_ns, SETTINGS[settings]), _memory(name, w, settings)
        for device in devices():
            about = {"device": device["device"], "variant": name, "settings": settings}
            found = predict_stages(costs, device)
            fits = {"fits": sum(held.values()) <= device["memory_gb"]}
            rows.append(about | _step(found, steps) | held | fits)
            if settings in ("plain", "diagnosed"):
                stages += [about | row for row in found.to_dict("records")]
    return {
        "batch_size": options.batch_size,
        "workload": asdict(workload),
        "steps_per_epoch": steps,
        "devices": devices(),
        "bounds": BOUNDS,
        "left_out": LEFT_OUT,
        "launches": {name: [{"stage": s, **n} for s, n in counts.items()] for name, counts in launches.items()},
        "list_ns": list_ns,
        "steps": rows,
        "stages": stages,
        "here": _predicted_here(launches, list_ns),
    }


def case_costs(
    name: str, w: Workload, launches: Mapping[str, Mapping[str, float]], list_ns: float, settings: Mapping[str, Any]
) -> pd.DataFrame:
    """The stages of a variant under memory settings: ``variant_cost``, with forward_launches, backward_launches,
    table_bytes (of the rows gathered), tensor (16-bit products), copied_bytes (to the device), host_ms (list made)."""
    variant = VARIANTS[name]
    costs = variant_cost(name, w, trained_parameters(variant.model, w)).set_index("stage")
    costs = costs.reindex([*costs.index, *(stage for stage in launches if stage not in costs.index)], fill_value=0.0)
    for phase in _PHASES:
        costs[f"{phase}_launches"] = [launches.get(stage, {}).get(phase, 0.0) for stage in costs.index]
    if settings.get("checkpointing"):
        for column in ("bytes", "flops", "gathered_bytes", "scattered_bytes", "launches"):
            again = costs[f"forward_{column}"].where(costs.index.isin(_RECOMPUTED[variant.model]), 0.0)
            costs[f"backward_{column}"] += again
    costs["table_bytes"] = [_table_bytes(stage, variant.backend, w) for stage in costs.index]
    costs["tensor"] = (costs.index == "features") & bool(settings.get("mixed_precision"))
    copied = sum(w.widths.values()) * w.n_items * w.element_bytes if settings.get("features_on_host") else 0
    costs["copied_bytes"] = (costs.index == "features") * float(copied)
    from_list = w.n_users * w.user_k * list_ns / 1e6 if name == "dragon" else 0.0
    costs["host_ms"] = (costs.index == "user_graph") * from_list
    return costs.reset_index(names="stage")


def predict_stages(costs: pd.DataFrame, device: Mapping[str, Any]) -> pd.DataFrame:
    """stage, least_ms and most_ms of ``case_costs`` on a device."""
    table = costs[["stage"]].copy()
    for name, bound in BOUNDS.items():
        forward, backward = (_phase_ms(costs, phase, device, **bound) for phase in _PHASES)
        host_ms = costs["host_ms"]
        if device["device"] != HERE:
            beside = 0.0 if bound["waits"] else forward.cumsum() - forward
            host_ms = (bound["host"] * host_ms - beside).clip(lower=0.0)
        table[f"{name}_ms"] = forward + backward + host_ms
    return table


def _phase_ms(
    costs: pd.DataFrame, phase: str, device: Mapping[str, Any], share: float, atomic: float, waits: bool, **_: float
) -> pd.Series:
    total, gathered, scattered = (costs[f"{phase}_{n}"] for n in ("bytes", "gathered_bytes", "scattered_bytes"))
    fits = (costs["table_bytes"] <= device["l2_mb"] * 1e6) & (device["l2_gb_s"] > 0) & (not waits)
    cached = (gathered + scattered).where(fits, 0.0)
    moved = (total - cached + (atomic - 1) * scattered) / (device["memory_gb_s"] * share * 1e6)
    rate = costs["tensor"].map({True: device["tensor_gflop_s"], False: device["float32_gflop_s"]})
    computed = costs[f"{phase}_flops"] / (rate * share * 1e6)
    launched = costs[f"{phase}_launches"] * device["waited_us" if waits else "launch_us"] / 1e3
    copied = costs["copied_bytes"] / (device["pcie_gb_s"] * share * 1e6) if phase == "forward" else 0.0
    if waits:
        return moved + computed + launched + copied
    in_cache = cached / ((device["l2_gb_s"] or 1.0) * 1e6)
    return pd.concat([moved, in_cache, computed, launched], axis=1).max(axis=1) + copied


def count_launches(name: str) -> dict[str, dict[str, float]]:
    """By stage, forward and backward, the operators that would launch a kernel: those of a profiled step that contain
    no other and are no view. Of the fused backend, the torch operators are those of the sparse one, which shares them,
    and its own kernels (``ops.fused_cuda``) are counted per group of rows."""
    variant, data = VARIANTS[name], synthesize("embedded", scale=0.25)
    fused = variant.backend == "fused"
    model = variant.build(data, backend="sparse" if fused else variant.backend)
    runner = step_runners({name: model}, data, MeasureOptions(batch_size=64).training(batch_size=64))[name]
    events = profile_steps(runner, steps=1).timeline
    leaves = events[(events["kind"] == "op") & (events["depth"].shift(-1, fill_value=0) <= events["depth"])]
    leaves = leaves[~leaves["name"].str.contains(_NOT_LAUNCHED)]
    stage = leaves["region"].str.partition(".")[0]
    phase = (leaves["phase"] == "backward").map({True: "backward", False: "forward"})
    table = pd.crosstab(stage, phase).reindex(columns=_PHASES, fill_value=0).astype(float)
    found = table[table.index != "data"].to_dict("index")
    for stage, counts in _FUSED_KERNELS.items() if fused else ():
        if stage in found:
            found[stage] = dict(zip(_PHASES, (_LENGTH_GROUPS * count for count in counts), strict=True))
    return found


def _step(stages: pd.DataFrame, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for bound in BOUNDS:
        ms = stages.set_index("stage")[f"{bound}_ms"]
        found |= {f"{bound}_ms": ms.sum(), f"{bound}_epoch_s": steps * ms.sum() / 1e3, f"largest_{bound}": ms.idxmax()}
    return found


def _memory(name: str, w: Workload, settings: str) -> dict[str, float]:
    """step_gb: the peak of a step; held_gb: see ``step_cost.held_bytes``."""
    variant, chosen = VARIANTS[name], SETTINGS[settings]
    kept = {key: value for key, value in {**variant.options, **chosen}.items() if key != "routing"}
    options = MODEL_CLASSES[variant.model][1](**kept)
    options = replace(options, feature_hidden=w.feature_hidden) if variant.model == "dragon" else options
    peak = predicted_peak_bytes(variant.model, w, options, variant.backend)
    held = held_bytes(variant.model, w, variant.backend)
    raw = w.n_items * sum(w.widths.values()) * w.element_bytes
    copied = raw if chosen.get("features_on_host") else 0  # kept from the forward to the backward pass
    return {"step_gb": (peak + copied) / 1e9, "held_gb": (held - copied) / 1e9}


def _table_bytes(stage: str, backend: str, w: Workload) -> float:
    """Of the table that a stage gathers rows of: one modality's, or those of both side by side."""
    both = len(w.widths)
    rows = {"user_graph": w.n_users * both, "item_graph": w.n_items * both}
    if backend == "fused":
        rows["convolution"] = w.n_nodes * both
    return rows.get(stage, w.n_nodes) * w.embedding_dim * w.element_bytes


def list_ns_per_entry(rows: int = 2000, columns: int = 40) -> float:
    """Nanoseconds per entry of ``torch.tensor`` of a nested list, on this machine."""
    nested = [list(range(columns)) for _ in range(rows)]
    return 1e6 * _fastest_ms(lambda: torch.tensor(nested)) / (rows * columns)


def _fastest_ms(function: Callable[[], Any]) -> float:
    return min(measure({"": function}, repeats=30, warmup=1, max_seconds=3.0).ms[""])


def _this_cpu() -> dict[str, Any]:
    """The CPU of the committed records as a device, by its measured rates; its cache's: the fastest gather's."""
    folder = reports_folder() / MEASURED_HERE[0] / "records"
    roofline, scaling = (read_record(folder / f"{n}.json")["content"] for n in ("07-roofline", "11-scaling"))
    one = torch.ones(1)
    operator_us = _fastest_ms(lambda: [one.add_(1.0) for _ in range(1000)])
    found = {"device": HERE, "l2_mb": CPU_CACHE_MB, "l2_gb_s": max(point["gb_s"] for point in scaling["gather"])}
    found |= dict.fromkeys(("memory_gb_s", "pcie_gb_s"), roofline["copy_gb_s"])
    found |= dict.fromkeys(("float32_gflop_s", "tensor_gflop_s"), roofline["matmul_gflop_s"])
    return found | dict.fromkeys(("launch_us", "waited_us"), operator_us)


def _predicted_here(launches: Mapping[str, Any], list_ns: float) -> list[dict[str, Any]]:
    """Every stage of the reference and every whole step of ``MODELS`` that was measured on this CPU."""
    device, rows, folders = _this_cpu(), [], [reports_folder() / name for name in MEASURED_HERE]
    pairs = [pair for pair in find_pairs(folders) if pair[0]["content"]["settings_name"] == "plain"]
    for path in (path for folder in folders for path in sorted(folder.glob("**/records/04-steps.json"))):
        record = read_record(path, "steps")
        made, content = record["provenance"]["data"], record["content"]
        preset = PRESETS[made["name"].partition("-x")[0]]
        widths = {"visual": preset.visual, "textual": preset.textual}
        w = Workload(made["n_users"], made["n_items"], made["n_train"], widths, content["batch_size"])
        stages = next((_stage_ms(epoch["content"], content) for epoch, steps in pairs if steps == record), {})
        for name in MODELS:
            step_ms = [row["step_ms"] for row in content["variants"] if row["variant"] == name]
            measured = stages.get(name, {}) | dict(zip(["step"], step_ms, strict=False))
            found = predict_stages(case_costs(name, w, launches[name], list_ns, {}), device).set_index("stage")
            found.loc["step"] = found.sum()
            both = found.join(pd.Series(measured, name="measured_ms", dtype=float), how="inner")
            rows += both.reset_index(names="stage").assign(data=made["name"], variant=name).to_dict("records")
    return rows


def _stage_ms(epoch: Mapping[str, Any], steps: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    times = stage_times(epoch, steps)
    sums = times.assign(stage=times["region"].str.partition(".")[0]).groupby(["model", "stage"])["ms"].sum()
    return {model.lower(): sums[model].drop(UNATTRIBUTED).to_dict() for model in sums.index.unique("model")}


def committed_record(kind: str = "prediction") -> dict[str, Any] | None:
    """The record of this kind that is committed under ``reports`` beside the prediction, or None."""
    path = reports_folder() / FOLDER / "records" / f"11-{kind}.json"
    return read_record(path, kind) if path.is_file() else None


def measured_beside(content: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Measured steps beside a "prediction" record's ranges: device, variant, settings, least_ms, most_ms, measured_ms.

    records  of kind "steps"; taken are those of the predicted workload, made on a device whose name holds all words of
             a predicted one's
    """
    rows, sizes = [], ("n_users", "n_items", "batch_size")
    for record in records:
        made, measured = record["provenance"], record["content"]
        own = (made["data"] or {}) | {"batch_size": measured["batch_size"]}
        if [own.get(size) for size in sizes] == [content["workload"][size] for size in sizes]:
            steps = {row["variant"]: row["step_ms"] for row in measured["variants"]}
            for row in content["steps"]:
                name = row["variant"] + {"plain": "", "diagnosed": "-diagnosed"}.get(row["settings"], " alone")
                words = row["device"].replace(" GB", "GB").split()
                if name in steps and all(word in made["device"]["name"] for word in words):
                    rows.append({key: row[key] for key in _BESIDE} | {"measured_ms": steps[name]})
    return pd.DataFrame(rows, columns=[*_BESIDE, "measured_ms"])


def outside(row: Mapping[str, float]) -> float:
    """How far a measured time lies outside its range: 1 inside, above 1 measured over most, below 1 over least."""
    return max(1.0, row["measured_ms"] / row["most_ms"]) * min(1.0, row["measured_ms"] / row["least_ms"])


def aims_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """Per device, reference over fused GRCN under plain settings: device, quantity, same_low and same_high (both at the
    same bound), worst (the reference at its least, the fused step at its most)."""
    plain, rows = pd.DataFrame(content["steps"]).query("settings == 'plain'"), []
    for device, own in plain.set_index("variant").groupby("device", sort=False):
        fused, total = own.loc["grcn-fused"], own["step_gb"] + own["held_gb"]
        for name in ("grcn", "dragon"):
            ratios = [own.loc[name, f"{bound}_ms"] / fused[f"{bound}_ms"] for bound in BOUNDS]
            worst = own.loc[name, "least_ms"] / fused["most_ms"]
            rows.append((device, f"step of {name.upper()}", min(ratios), max(ratios), worst))
        rows.append((device, "memory of GRCN", *[total["grcn"] / total["grcn-fused"]] * 3))
    return pd.DataFrame(rows, columns=["device", "quantity", "same_low", "same_high", "worst"])
