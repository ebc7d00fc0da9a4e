"""Rules for the claims about the memory settings: checkpointing, mixed precision, features on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrec_helpers.claims.ledger import Missing, Records, Verdict, machine_of, matches_reported_size, rule
from mmrec_helpers.data import PRESETS

NONE, CHECKPOINTING, PRECISION, HOST = "none", "checkpointing", "mixed precision", "features on the host"
NOTICEABLE = 0.01  # a change of memory below this share is none
PROMISED_FALL, CLAIMED_MB = 0.4, (400.0, 620.0)
HALF_TYPES = ("float16", "bfloat16")
FLOAT_BYTES, DIAGNOSED_BATCH = 4, 4096


@rule("memory.checkpoint")
def memory_checkpoint(records: Records) -> Verdict:
    record = records.nearest("memory")
    falls, ratios, told = {}, {}, []
    for model in _models(record):
        falls[model] = 1 - _arm(record, model, CHECKPOINTING)["peak_bytes"] / _arm(record, model, NONE)["peak_bytes"]
        ratios[model] = _arm(record, model, CHECKPOINTING)["time_ratio"]
        told.append(f"{model}'s peak falls by {falls[model]:.0%} and its step takes {_times(ratios[model])} as long")
    less = [fall > NOTICEABLE for fall in falls.values()]
    longer = [ratio["q1"] > 1 for ratio in ratios.values()]
    verdict = "supported" if all(less) and all(longer) else "partly" if any(less) else "refuted"
    numbers = {f"{model}_fall": fall for model, fall in falls.items()}
    numbers |= {f"{model}_time": ratio["median"] for model, ratio in ratios.items()}
    sentence = f"With checkpointing alone {'; '.join(told)}."
    return Verdict("memory.checkpoint", verdict, sentence, numbers, machine_of(record))


@rule("memory.amp")
def memory_amp(records: Records) -> Verdict:
    record = records.nearest("memory")
    numbers, told = {}, []
    for model in _models(record):
        arm, without = _arm(record, model, PRECISION), _arm(record, model, NONE)
        narrow = sum(size for name, size in arm["edge_bytes"].items() if name in HALF_TYPES)
        numbers[f"{model}_narrow"] = narrow / sum(arm["edge_bytes"].values())
        numbers[f"{model}_fall"] = 1 - arm["peak_bytes"] / without["peak_bytes"]
        told.append(
            f"{numbers[f'{model}_narrow']:.0%} of {model}'s edge arrays are 16 bits wide and its peak "
            f"{_changes(numbers[f'{model}_fall'])}"
        )
    narrow = [value for name, value in numbers.items() if name.endswith("_narrow")]
    falls = [value for name, value in numbers.items() if name.endswith("_fall")]
    sentence = f"With {record['content']['precision']} autocast alone {'; '.join(told)} (promised: 40 to 50 %)."
    if not _on_cuda(record):
        sentence += " Autocast narrows other operators on CUDA. Missing: a memory record on CUDA."
        return Verdict("memory.amp", "undecided", sentence, numbers, machine_of(record))
    kept = min(narrow) > 0.5 and min(falls) >= PROMISED_FALL
    verdict = "supported" if kept else "refuted" if max(narrow) < 0.5 and max(falls) < PROMISED_FALL else "partly"
    return Verdict("memory.amp", verdict, sentence, numbers, machine_of(record))


@rule("memory.cpu_features")
def memory_cpu_features(records: Records) -> Verdict:
    features_mb, steps = _diagnosed_features()
    numbers = {"copied_mb_per_step": features_mb, "copied_gb_per_epoch": features_mb * steps / 1e3}
    computed = (
        f"At the diagnosed sizes the raw features are {features_mb:.0f} MB, copied in each of {steps} steps: "
        f"{numbers['copied_gb_per_epoch']:.0f} GB an epoch."
    )
    record = next((r for r in records.all("memory") if _on_cuda(r) and matches_reported_size(r)), None)
    if record is None:
        sentence = f"{computed} Missing: a memory record on CUDA at the diagnosed size (on a CPU nothing is copied)."
        return Verdict("memory.cpu_features", "undecided", sentence, numbers)
    saved = {model: _saved_mb(record, model) for model in _models(record)}
    inside = [CLAIMED_MB[0] <= mb <= CLAIMED_MB[1] for mb in saved.values()]
    verdict = "supported" if all(inside) else "partly" if any(inside) else "refuted"
    told = ", ".join(f"{mb:.0f} MB with {model}" for model, mb in saved.items())
    sentence = f"Peak device memory (held and of a step) falls by {told}. {computed}"
    numbers |= {f"{model}_saved_mb": mb for model, mb in saved.items()}
    return Verdict("memory.cpu_features", verdict, sentence, numbers, machine_of(record))


@rule("memory.no_time")
def memory_no_time(records: Records) -> Verdict:
    record = records.nearest("memory")
    on_cuda = _on_cuda(record)
    alone = (CHECKPOINTING, PRECISION, *((HOST,) if on_cuda else ()))
    numbers, helps, told = {}, set(), []
    for setting in alone:
        for model in _models(record):
            ratio = _arm(record, model, setting)["time_ratio"]
            numbers[f"{model} {setting}"] = ratio["median"]
            told.append(f"{setting} {model} {_times(ratio)}")
            if ratio["q3"] < 1:
                helps.add(setting)
    sentence = f"Each alone, times as long as without: {'; '.join(told)}."
    if not on_cuda:
        sentence += " On a CPU nothing is copied from the host, and autocast has no fast units. Missing: one on CUDA."
        return Verdict("memory.no_time", "undecided", sentence, numbers, machine_of(record))
    verdict = "supported" if not helps else "refuted" if helps == set(alone) else "partly"
    sentence += f" Shorter with: {', '.join(sorted(helps)) or 'none of them'}."
    return Verdict("memory.no_time", verdict, sentence, numbers, machine_of(record))


def _models(record: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in record["content"]["arms"]))


def _arm(record: Mapping[str, Any], model: str, arm: str) -> Mapping[str, Any]:
    for row in record["content"]["arms"]:
        if (row["model"], row["arm"]) == (model, arm):
            return row
    raise Missing(f"memory of {model} with {arm}")


def _saved_mb(record: Mapping[str, Any], model: str) -> float:
    return (_arm(record, model, NONE)["total_bytes"] - _arm(record, model, HOST)["total_bytes"]) / 1e6


def _diagnosed_features() -> tuple[float, int]:
    """Megabytes of the diagnosed workload's raw features in float32, and the steps of its epoch."""
    shape = PRESETS["music4all"]
    features_mb = shape.n_items * (shape.visual + shape.textual) * FLOAT_BYTES / 1e6
    return features_mb, -(-shape.n_train // DIAGNOSED_BATCH)


def _on_cuda(record: Mapping[str, Any]) -> bool:
    return record["provenance"]["device"]["type"] == "cuda"


def _times(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} times ({ratio['q1']:.2f} to {ratio['q3']:.2f})"


def _changes(fall: float) -> str:
    return f"falls by {fall:.0%}" if fall > NOTICEABLE else "rises" if fall < -NOTICEABLE else "stays as it is"
