"""Where an epoch of GRCN and of DRAGON goes: a step by stage and by operator, sampling, validation, and their sum.

The profiler lengthens a step, so its times are shares: ``stage_times`` scales them to the step of the run's "steps"
record, and an epoch is so many of those steps, and the sampling. Epoch, step and stage tables of a run add up.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mmrec_helpers.config import choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import (
    MeasureOptions,
    StepRunner,
    refuse_too_large,
    step_runners,
    steps_frame,
    steps_per_epoch,
)
from mmrec_helpers.models.variants import VARIANTS
from mmrec_helpers.profiling.regions import device_use, profile_steps, top_operators
from mmrec_helpers.profiling.tensorboard import adapter_summary
from mmrec_helpers.profiling.timing import synchronize
from mmrec_helpers.records import readable_records
from mmrec_helpers.training import NegativeSampler, evaluate

SETTINGS = {"plain": ("grcn", "dragon"), "diagnosed": ("grcn-diagnosed", "dragon-diagnosed")}  # to their variants
MODEL_LABELS = {"grcn": "GRCN", "dragon": "DRAGON"}
PROFILED_STEPS, SAMPLED_EPOCHS = 3, 3
_LISTED_OPERATORS = 30


def measure_epoch(
    data: Interactions, options: MeasureOptions, settings: str = "plain", trace_folder: str | Path | None = None
) -> dict[str, Any]:
    """The content of a record of kind "epoch": GRCN and DRAGON under the profiler, and what surrounds their steps.

    settings      "plain" (MMRec's defaults) or "diagnosed" (those of the diagnosed runs, from their public logs)
    trace_folder  keeps the traces as ``<model>.trace.json.gz``

    settings_name, batch_size, steps_per_epoch
    sampling_s    to shuffle an epoch's interactions and draw their negatives (median of three)
    models        per model: model, variant, regions, operators, timeline and what else ``StepProfile.to_dict`` has,
                  top_operators, device_use, validation_s (ranking all items for the validation users) and, with traces,
                  trace_bytes and adapter (torch-tb-profiler's sums against the trace's)
    """
    models = {
        MODEL_LABELS[VARIANTS[name].model]: VARIANTS[name].build(data, options.seed, options.device)
        for name in SETTINGS[choose("settings", settings, SETTINGS)]
    }
    refuse_too_large(models.values(), data)
    training = options.training(**VARIANTS[SETTINGS[settings][0]].training)
    rows = []
    for variant, (label, runner) in zip(SETTINGS[settings], step_runners(models, data, training).items(), strict=True):
        path = Path(trace_folder) / trace_name(label) if trace_folder else None
        profile = profile_steps(
            LoadedStep(runner, data, options.device), steps=PROFILED_STEPS, device=options.device, trace_path=path
        )
        row = {
            **profile.to_dict(operators=_LISTED_OPERATORS),
            "model": label,
            "variant": variant,
            "top_operators": top_operators(profile),
            "device_use": device_use({label: profile}).to_dict("records")[0],
            "validation_s": time_validation(runner.model, data, options.device),
        }
        rows.append(row | ({"trace_bytes": path.stat().st_size, "adapter": adapter_summary(path)} if path else {}))
    return {
        "settings_name": settings,
        "batch_size": options.batch_size,
        "steps_per_epoch": steps_per_epoch(data, options.batch_size),
        "sampling_s": float(np.median(time_sampling(data, options.device, options.seed))),
        "models": rows,
    }


def epoch_table(epoch: Mapping[str, Any], steps: Mapping[str, Any]) -> pd.DataFrame:
    """One row per model: step_ms (of the "steps" record), steps_s, sampling_s, epoch_s (the two together: the training
    time of MMRec's logs) and validation_s, indexed by model."""
    frame = steps_frame(steps)
    rows = []
    for model in epoch["models"]:
        steps_s = epoch["steps_per_epoch"] * frame.loc[model["variant"], "step_ms"] / 1e3
        times = {"steps_s": steps_s, "sampling_s": epoch["sampling_s"], "epoch_s": steps_s + epoch["sampling_s"]}
        step = {"step_ms": frame.loc[model["variant"], "step_ms"]}
        rows.append({"model": model["model"]} | step | times | {"validation_s": model["validation_s"]})
    return pd.DataFrame(rows).set_index("model")


def stage_times(epoch: Mapping[str, Any], steps: Mapping[str, Any], table: str = "regions") -> pd.DataFrame:
    """The regions (or ``top_operators``) of every model, with ``ms`` scaled so that a model's regions add up to its
    step in the "steps" record (and gbytes_s with it). Columns of the record's table, and model.

    Sampling, which the profiled steps hold too, is left out: it stands beside an epoch's steps, not in them.
    """
    frame = steps_frame(steps)
    found = []
    for model in epoch["models"]:
        factor = frame.loc[model["variant"], "step_ms"] / _profiled_ms(model["regions"])
        rows = pd.DataFrame(model[table]).assign(model=model["model"])
        rows = rows[rows["region" if "region" in rows else "stage"] != "sampling"]
        rates = {"gbytes_s": rows["gbytes_s"] / factor} if "gbytes_s" in rows else {}
        found.append(rows.assign(ms=rows["ms"] * factor, **rates))
    return pd.concat(found, ignore_index=True)


def loop_share(epoch: Mapping[str, Any], model: str = "GRCN") -> float:
    """The share of a profiled step that lies in regions of the routing loop, backward and recomputation included:
    what ``stage_times`` gives to them."""
    regions = next(row["regions"] for row in epoch["models"] if row["model"] == model)
    return sum(r["ms"] for r in regions if r["region"].startswith("routing.")) / _profiled_ms(regions)


def find_pairs(folders: Iterable[str | Path], device_type: str = "cpu") -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The records (epoch, steps) that lie together in a run below a folder, made on one data set with one batch size on
    such a device; of each data set and settings the newest of the last folder that has any.

        side_by_side(find_pairs(["reports", run_folder]))
    """
    found: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
    for folder in folders:
        found |= _newest_pairs(Path(folder), device_type)
    return list(found.values())


def _newest_pairs(folder: Path, device_type: str) -> dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]]:
    newest: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
    for records in sorted({path.parent for path in folder.glob("**/records/*steps*.json")}):
        found = readable_records(sorted(records.glob("*.json"))).values()
        of_kind = {kind: [record for record in found if record["kind"] == kind] for kind in ("epoch", "steps")}
        for epoch, steps in itertools.product(of_kind["epoch"], of_kind["steps"]):
            made = _conditions(epoch)
            key = (made[0], epoch["content"].get("settings_name"))
            newer = key not in newest or newest[key][0]["provenance"]["time"] < epoch["provenance"]["time"]
            if made == _conditions(steps) and made[1] == device_type and key[1] and newer:
                newest[key] = (epoch, steps)
    return newest


def side_by_side(pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> pd.DataFrame:
    """The stages of several data sets: ``stage_times`` of each (epoch record, steps record), the smallest first, with
    the columns data, n_train and settings."""
    frames = []
    for epoch, steps in sorted(pairs, key=lambda pair: pair[0]["provenance"]["data"]["n_train"]):
        about = epoch["provenance"]["data"]
        table = stage_times(epoch["content"], steps["content"])[["region", "phase", "ms", "model"]]
        table = table.assign(data=about["name"], n_train=about["n_train"], settings=epoch["content"]["settings_name"])
        frames.append(table)
    columns = ["data", "n_train", "settings", "model", "region", "phase", "ms"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def trace_name(model: str) -> str:
    """The file of a model's trace in the folder given to ``measure_epoch``."""
    return f"{model}.trace.json.gz"


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


def time_sampling(data: Interactions, device: str | torch.device, seed: int = 0) -> list[float]:
    """Seconds to shuffle an epoch's interactions and draw their negatives, for three epochs."""
    device = torch.device(device)
    sampler = NegativeSampler(data, device)
    sampler.epoch(seed, 0)
    return [_seconds(partial(sampler.epoch, seed, epoch), device) for epoch in range(1, SAMPLED_EPOCHS + 1)]


def time_validation(model: nn.Module, data: Interactions, device: str | torch.device) -> float:
    """Seconds to rank all items for the validation users; 0 without a validation split."""
    if not data.valid.shape[1]:
        return 0.0
    return _seconds(lambda: evaluate(model, data, "valid"), torch.device(device))


def _profiled_ms(regions: Iterable[Mapping[str, Any]]) -> float:
    return sum(row["ms"] for row in regions if row["region"] != "sampling")


def _conditions(record: Mapping[str, Any]) -> tuple[str, str, int]:
    made = record["provenance"]
    return made["data"]["fingerprint"], made["device"]["type"], record["content"].get("batch_size")


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start
