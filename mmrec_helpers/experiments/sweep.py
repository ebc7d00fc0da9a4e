"""Models of an MMRec checkout over a grid of settings, by MMRec's own trainer, each run in a process of its own.

The plan is a study's (``accuracy.study``): every point of a model's grid is tried with the first seed, the one with the
best validation recall@20 is trained with all seeds. Validation alone chooses; MMRec's own summary would take the
combination with the best *test* result.
"""

import hashlib
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from mmrec_helpers.config import InputError, check_at_least, counted
from mmrec_helpers.data import DataSource, Interactions
from mmrec_helpers.experiments.accelerated import measure_gain
from mmrec_helpers.experiments.accuracy.intervals import accuracy_summary, find_pair
from mmrec_helpers.experiments.accuracy.study import MONITOR, USER_METRICS, packed_users
from mmrec_helpers.experiments.cluster import Payload, in_own_process
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.mmrec import Checkout, open_checkout, read_log, write_user_graph
from mmrec_helpers.mmrec.checkout import SEED, beside_of
from mmrec_helpers.mmrec.training import train_by_mmrec
from mmrec_helpers.mmrec.user_graph import USER_GRAPH_FILE
from mmrec_helpers.progress import duration
from mmrec_helpers.training.step import TrainingError

_KINDS: dict[str, tuple[type, ...]] = {"a number": (int, float), "text": (str,)}
_NAN = re.compile(r"Loss is nan at epoch: \d+, batch index: \d+")


@dataclass(frozen=True)
class SweepRun:
    """One training of a model: its place in the grid, and the parameters there."""

    variant: str
    setting: int
    seed: int
    chosen: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Fit for a file name: ``GRCN-learning_rate0.001-reg_weight0.1-seed999``."""
        return "-".join([self.variant, *(f"{key}{_label(value)}" for key, value in self.chosen.items()), self._seed])

    @property
    def _seed(self) -> str:
        return f"seed{self.seed}"


@dataclass(frozen=True)
class SweepSettings:
    """What holds for all runs of a sweep; a ``Plan`` of ``accuracy.study``.

    grid         by model, the points to try: its parameters' values
    checkout     fingerprint of the checkout's code
    settings     in place of MMRec's, in all runs
    seeds        paired runs of each model at its best point: MMRec's seed 999, 1000, ...
    accelerated  whether models are accelerated where ``accelerate`` can
    """

    grid: Mapping[str, Sequence[Mapping[str, Any]]]
    checkout: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 5
    accelerated: bool = True

    kind: ClassVar[str] = "sweep-run"
    first_seed: ClassVar[int] = SEED

    def __post_init__(self) -> None:
        check_at_least("sweep", 1, seeds=self.seeds)

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.grid)

    @property
    def shared(self) -> dict[str, Any]:
        return {"checkout": self.checkout, "options": self.settings, "accelerated": self.accelerated}

    def search(self, variant: str) -> list[SweepRun]:
        return [SweepRun(variant, place, SEED, point) for place, point in enumerate(self.grid[variant])]

    def identity(self, run: SweepRun) -> dict[str, Any]:
        return {"variant": run.variant, "model": run.variant, "seed": run.seed, "chosen": run.chosen} | self.shared

    def train(self, payload: Payload, run: SweepRun, device: torch.device) -> dict[str, Any]:
        about = {"identity": self.identity(run), "name": run.name, "setting": run.setting, "search": run.seed == SEED}
        return about | in_own_process(train_run, payload, run, self, str(device))


def plan_sweep(
    checkout: str | Path,
    models: Sequence[str],
    dataset: str,
    grid: Mapping[str, Sequence[Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> SweepSettings:
    """The runs of a sweep, checked against the checkout's own settings.

    grid      parameter to values, for every model; None for each model's own: the lists of its settings files
    settings  in place of MMRec's, in all runs; dataset: its name
    options   seeds, accelerated

    Raises InputError for an unknown model, setting or kind of value, a model without training, and an empty grid.
    """
    mmrec, settings, points = open_checkout(checkout), dict(settings or {}), {}
    for name in settings.keys() & {"seed", *(grid or {})} | {"seed"} & {*(grid or {})}:
        raise InputError(f"{name} is given twice: expected " + ("--seeds" if name == "seed" else "--grid or --set"))
    for name in (name for name, values in (grid or {}).items() if not values):
        raise InputError(f"--grid {name}: it has no values: expected NAME=VALUE,VALUE")
    for name in dict.fromkeys(models):
        own = mmrec.configuration(name, dataset, {**settings, **(grid or {})})
        if own.get("req_training") is False:
            raise InputError(f"{name} has no training: its settings say req_training: False")
        searched = {key: own[key] for key in own["hyper_parameters"] if key != "seed" and key not in settings}
        chosen = grid or {key: values for key, values in searched.items() if isinstance(values, list)}
        for key, values in [*((name, [value]) for name, value in settings.items()), *chosen.items()]:
            _check_values(name, key, values, own.get(key))
        points[name] = [dict(zip(chosen, values)) for values in itertools.product(*map(_distinct, chosen.values()))]
    return SweepSettings(points, _fingerprint(_code_of(mmrec)), settings, **options)


def make_payload(checkout: str | Path, source: DataSource, models: Sequence[str]) -> Payload:
    """What the runs need: the data set with the files beside it, the user graph where a model reads it, and the
    checkout's code; workers need none of them."""
    mmrec, data = open_checkout(checkout), source.open()
    files = {f"beside/{file.name}": file.read_bytes() for file in beside_of(source)}
    if any(map(mmrec.needs_users, models)) and f"beside/{USER_GRAPH_FILE}" not in files:
        with tempfile.TemporaryDirectory() as folder:
            files[f"beside/{USER_GRAPH_FILE}"] = write_user_graph(data, folder).read_bytes()
    return Payload(data, files | _code_of(mmrec))


def train_run(payload: Payload, run: SweepRun, plan: SweepSettings, device: str) -> dict[str, Any]:
    """Train one run, and return what its record (kind "sweep-run") holds besides its identity, and its log.

    epochs, best_epoch, valid, test, users, failed   as a study's run (``accuracy.study.train_run``)
    steps, seconds, peak_bytes  training steps made; time of the run; memory of its process, on CUDA of the device
    note, supplied              what ``accelerate`` did, and what old code needed
    gain                        with the first seed: what a step takes both ways (``measure_gain``), in pairs
    """
    with tempfile.TemporaryDirectory() as place:
        for name, text in payload.files.items():
            (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(place) / name).write_bytes(text)
        how: dict[str, Any] = {"device": device, "seed": run.seed, "settings": {**plan.settings, **run.chosen}}
        how["beside"] = f"{place}/beside" if (Path(place) / "beside").is_dir() else ""
        mmrec, began = open_checkout(place), time.perf_counter()
        content = _trained(mmrec, payload.data, run, how, plan.accelerated)
        content |= {"seconds": time.perf_counter() - began, "peak_bytes": _peak_bytes(device), "gain": None}
        if run.seed == SEED and plan.accelerated and not content["failed"]:
            options = MeasureOptions(device=torch.device(device), repeats=5, max_seconds=20.0)
            content["gain"] = measure_gain(mmrec, run.variant, payload.data, options, how, whole=False)
        return content


def _trained(
    mmrec: Checkout, data: Interactions, run: SweepRun, how: Mapping[str, Any], accelerated: bool
) -> dict[str, Any]:
    content: dict[str, Any] = dict.fromkeys(("best_epoch", "valid", "test", "users", "failed"))
    content |= {"epochs": [], "log": "", "steps": 0, "note": "", "supplied": []}
    try:
        trained = train_by_mmrec(mmrec, run.variant, data, accelerated=accelerated, **how)
    except (InputError, TrainingError) as error:
        return content | {"failed": str(error)}
    content |= {name: getattr(trained, name) for name in ("log", "steps", "note", "supplied")}
    content["epochs"], content["best_epoch"] = _epochs(trained.log)
    diverged = _NAN.search(trained.log)
    if diverged or not trained.metrics:
        return content | {"failed": diverged[0] if diverged else "no epoch was validated"}
    content |= packed_users(trained.users, trained.metrics["test"])
    return content | {"valid": {name: float(trained.metrics["valid"][name].mean()) for name in USER_METRICS}}


def _epochs(log: str) -> tuple[list[dict[str, Any]], int | None]:
    """The epochs of a log of MMRec's, and the one that it calls the best."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.log"
        path.write_text(log, encoding="utf-8")
        table = read_log(path)
    kept = [name for name in ("epoch", "loss", "epoch_s", *(f"valid.{name}" for name in USER_METRICS)) if name in table]
    best = table.loc[table["improved"].astype(bool), "epoch"]
    rows = table[kept].astype(object).where(table[kept].notna(), None)
    return rows.to_dict("records"), int(best.iloc[-1]) if len(best) else None


# ------------------------------------------------------------------------------------------------ summary


def sweep_summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of a record of kind "sweep", from those of all finished runs.

    variants, pairs, ...  as in an accuracy record, a variant being a model at the point that validation chose
    grid                  one row per run of the search: model, chosen, valid_recall@20, epochs, seconds, peak_bytes,
                          note, failed
    cost                  one row per model: model, runs, failed, steps, seconds (of all its runs), peak_bytes (of the
                          largest), factor (of a step: own over accelerated) and as_it_is_s (what the runs would have
                          taken as MMRec has them) with quartiles; None where nothing was accelerated
    """
    order = sorted(runs, key=lambda run: (run["identity"]["variant"], run["setting"], run["identity"]["seed"]))
    names = dict.fromkeys(run["identity"]["variant"] for run in order)
    grid = [_grid_row(run) for run in order if run["search"]]
    cost = [_cost_row(name, [run for run in order if run["identity"]["variant"] == name]) for name in names]
    return accuracy_summary(order) | {"grid": grid, "cost": cost}


def _grid_row(run: Mapping[str, Any]) -> dict[str, Any]:
    row = {"model": run["identity"]["variant"], "chosen": run["identity"]["chosen"], "epochs": len(run["epochs"])}
    row["valid_recall@20"] = run["valid"][MONITOR] if run["valid"] else None
    return row | {name: run[name] for name in ("seconds", "peak_bytes", "note", "failed")}


def _cost_row(model: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A run as MMRec has it takes longer by what each of its steps takes longer, as measured at its own point."""
    gains = {_point(run): run["gain"] for run in runs if run["gain"] and "factor" in run["gain"]}
    row: dict[str, Any] = {"model": model, "runs": len(runs), "failed": sum(bool(run["failed"]) for run in runs)}
    row |= {name: sum(run[name] for run in runs) for name in ("steps", "seconds")}
    row["peak_bytes"] = max(run["peak_bytes"] for run in runs)
    for end, name in (("", "median"), ("_q1", "q1"), ("_q3", "q3")):
        saved = [(gains[_point(run)], run["steps"]) for run in runs if _point(run) in gains]
        more = sum(steps * gain["own_ms"] * (1 - 1 / gain["factor"][name]) / 1e3 for gain, steps in saved)
        row[f"factor{end}"] = float(np.median([gain["factor"][name] for gain in gains.values()])) if gains else None
        row[f"as_it_is_s{end}"] = row["seconds"] + more if gains else None
    return row


def _point(run: Mapping[str, Any]) -> str:
    return json.dumps(run["identity"]["chosen"], sort_keys=True)


# ------------------------------------------------------------------------------------------------ for reading


def grid_frame(summary: Mapping[str, Any], model: str) -> pd.DataFrame:
    """What validation found at each point of a model's grid that was trained: a column per parameter that was varied,
    and ``recall``; of more than two parameters the first two, with the best over the others."""
    rows = [row for row in summary["grid"] if row["model"] == model and row["valid_recall@20"] is not None]
    frame = pd.DataFrame([{name: _drawn(value) for name, value in row["chosen"].items()} for row in rows])
    varied = [name for name in frame if frame[name].nunique() > 1][:2]
    found = frame[varied].assign(recall=[row["valid_recall@20"] for row in rows])
    return found.groupby(varied, as_index=False).max() if varied else found.head(1)


def spans_decades(values: pd.Series) -> bool:
    """Whether a parameter's values are positive numbers of several sizes, to be drawn on a logarithmic axis."""
    numbers = pd.api.types.is_numeric_dtype(values)
    return bool(numbers and values.min() > 0 and values.max() >= 10 * values.min())


def best_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row per model that was trained, the best first: model, settings that validation chose, seeds, recall@20 of
    the test split with low and high of its interval, NDCG@20, epochs (mean over seeds)."""
    kept = ["variant", "setting", "seeds", MONITOR, f"{MONITOR}_low", f"{MONITOR}_high", "ndcg@20", "epochs"]
    table = pd.DataFrame(summary["variants"], columns=kept).sort_values(MONITOR, ascending=False, ignore_index=True)
    shown = ["model", "settings", "seeds", "recall@20", "low", "high", "NDCG@20", "epochs"]
    return table.assign(setting=table["setting"].map(named)).set_axis(shown, axis=1)


def pair_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The differences of the best model to each other one: label, difference, low, high, verdict."""
    best = best_table(summary)["model"]
    pairs = [pair for model in best[1:] if (pair := find_pair(summary, best[0], model))]
    kept = ["second", MONITOR, f"{MONITOR}_low", f"{MONITOR}_high", "verdict"]
    return pd.DataFrame(pairs, columns=kept).set_axis(["label", "difference", "low", "high", "verdict"], axis=1)


def cost_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row per model: model, runs, failed, minutes (of all runs), a run (its minutes), MB (the largest run's), times
    as fast (a step), and as it is (minutes that the runs would have taken unaccelerated)."""
    cost = pd.DataFrame(summary["cost"]).astype({"factor": float, "as_it_is_s": float})
    minutes = {"minutes": cost["seconds"] / 60, "a run": cost["seconds"] / 60 / cost["runs"]}
    more = {"MB": cost["peak_bytes"] / 1e6, "times as fast": cost["factor"], "as it is": cost["as_it_is_s"] / 60}
    return cost[["model", "runs", "failed"]].assign(**minutes, **more)


def sweep_answer(summary: Mapping[str, Any], data: str) -> str:
    """Which model is best where, on data of that name, and what finding it took and would have taken unaccelerated."""
    table, cost = best_table(summary), summary["cost"]
    said = f"No model could be trained on {data}. "
    for best in table.head(1).itertuples():
        said = f"On {data} the highest mean test recall@20 is that of {best.model}, {table['recall@20'][0]:.4f} "
        said += f"({best.low:.4f} to {best.high:.4f}), at {best.settings}. "
    took, runs = sum(row["seconds"] for row in cost), sum(row["runs"] for row in cost)
    said += f"{counted(runs, 'run')} took {duration(took)} of computing"
    ends = [[row["seconds"] if row["factor"] is None else row[f"as_it_is_s_{q}"] for row in cost] for q in ("q1", "q3")]
    low, high = (duration(sum(end)) for end in ends)
    if all(row["factor"] is None for row in cost):
        return f"{said}; none was accelerated."
    return f"{said}; unaccelerated {low if low == high else f'{low} to {high}'}, by what their steps take in pairs."


def named(point: Mapping[str, Any]) -> str:
    """A point of a grid in words: ``learning_rate 0.001, reg_weight 0.1``; "MMRec's own" for none."""
    return ", ".join(f"{name} {_label(value)}" for name, value in point.items()) or "MMRec's own"


def _drawn(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


# ------------------------------------------------------------------------------------------------ small parts


def _check_values(model: str, key: str, values: Sequence[Any], own: Any) -> None:
    """Refuse a value of another kind than MMRec's own, where that is a number or text."""
    like = own[0] if isinstance(own, list) and own else own
    for kind, types in _KINDS.items():
        for value in values if isinstance(like, types) and not isinstance(like, bool) else ():
            if isinstance(value, bool) or not isinstance(value, types):
                raise InputError(f"{key}={value} for {model}: expected {kind}, as MMRec's own {like!r}")


def _distinct(values: Sequence[Any]) -> list[Any]:
    return list({_label(value): value for value in values}.values())


def _label(value: Any) -> str:
    """A value fit for a file name, and different for different values."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    plain = re.sub(r"[^\w.+-]+", "_", text)[:40]
    return plain if plain == text else f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _code_of(mmrec: Checkout) -> dict[str, bytes]:
    files = [path for path in sorted(mmrec.source.rglob("*")) if path.suffix in (".py", ".yaml")]
    return {f"src/{path.relative_to(mmrec.source).as_posix()}": path.read_bytes() for path in files}


def _fingerprint(files: Mapping[str, bytes]) -> str:
    return hashlib.sha256(b"".join(name.encode() + content for name, content in files.items())).hexdigest()[:16]


def _peak_bytes(device: str) -> int:
    """The most memory so far: of the CUDA device what torch took, else of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # the maximum of getrusage would count the parent's
        return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
    import psutil

    found = psutil.Process().memory_info()
    return getattr(found, "peak_wset", found.rss)
