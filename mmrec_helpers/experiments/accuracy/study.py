"""The accuracy study: which models are trained with what, so that they can be compared in pairs.

Every variant first tries its settings (learning rate and regularisation) with seed 0; the one with the best validation
recall@20 is then trained with further seeds. A seed decides the initial parameters, the order of the interactions and
the negatives, so that all variants see the same batches with one seed; the splits are the same in all runs. Validation
chooses the epoch; the test split is ranked with the weights of that epoch alone. Nothing here reads or writes a file.
"""

import base64
import hashlib
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from mmrec_helpers.config import InputError, check_at_least, choose, counted
from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.cluster import Payload, do_runs, open_engine
from mmrec_helpers.experiments.steps import memory_advice
from mmrec_helpers.models.variants import VARIANTS
from mmrec_helpers.ops import BACKENDS
from mmrec_helpers.progress import duration
from mmrec_helpers.training.evaluation import per_user_metrics
from mmrec_helpers.training.settings import TrainSettings
from mmrec_helpers.training.step import TrainingError
from mmrec_helpers.training.trainer import fit

MONITOR = "recall@20"
USER_METRICS = (MONITOR, "ndcg@20")  # kept for every test user
_KEPT_COLUMNS = ("epoch", "loss", "epoch_s", "valid.recall@20", "valid.ndcg@20")


@dataclass(frozen=True)
class Setting:
    """What the search tries: learning rate of Adam, weight of the penalties, epochs between validations."""

    learning_rate: float
    reg_weight: float
    eval_every: int = 1


# The first four are the default search; what follows looks beyond the rates at its ends (`--searched 7`).
_GRCN_BEYOND = (Setting(3e-4, 0.1), Setting(3e-4, 1e-3), Setting(1e-2, 0.1))
_GRCN = (Setting(1e-3, 0.1), Setting(1e-3, 1e-3), Setting(3e-3, 0.1), Setting(3e-3, 1e-3), *_GRCN_BEYOND)
_LIGHTGCN_BEYOND = (Setting(1e-2, 1e-4), Setting(1e-2, 1e-3))
_LIGHTGCN = (Setting(1e-3, 1e-4), Setting(1e-3, 1e-3), Setting(3e-3, 1e-4), Setting(3e-3, 1e-3), *_LIGHTGCN_BEYOND)
# With 1e-4 DRAGON learns so slowly at first that patience runs out on noise when every epoch is validated.
_DRAGON_BEYOND = (Setting(3e-5, 0.1, 10), Setting(3e-4, 0.1, 3), Setting(3e-4, 1e-3, 3))
_DRAGON_SLOW = (Setting(1e-4, 1e-3, 5), Setting(1e-4, 0.1, 5))
_DRAGON = (*_DRAGON_SLOW, Setting(1e-3, 1e-3, 2), Setting(1e-3, 0.1, 2), *_DRAGON_BEYOND)

# By variant, as in ``models.variants``; nothing to try: nothing to train.
SEARCH: dict[str, tuple[Setting, ...]] = {
    "grcn": _GRCN,
    "grcn-live-1": _GRCN,
    "grcn-live-2": _GRCN,
    "grcn-live": _GRCN,
    "grcn-mean": _GRCN,
    "grcn-learned": _GRCN,
    "dragon": _DRAGON,
    "lightgcn": _LIGHTGCN,
    "popularity": (),
}


@dataclass(frozen=True)
class StudySettings:
    """What holds for all runs of a study.

    variants         names in ``SEARCH``, in the order in which they are run
    seeds            paired runs of each variant at its best setting, seeds 0, 1, ...
    searched         settings tried of each variant: the first so many
    epochs           most epochs of a run
    patience         validations without a better one before a run stops
    batch_size       interactions per step
    backend          of the models: "auto" takes the fastest exact one
    fused_optimizer  Adam in one pass over memory; rounds differently from torch's default
    """

    variants: tuple[str, ...] = tuple(SEARCH)
    seeds: int = 5
    searched: int = 4
    epochs: int = 300
    patience: int = 20
    batch_size: int = 2048
    backend: str = "auto"
    fused_optimizer: bool = True

    kind: ClassVar[str] = "study-run"
    first_seed: ClassVar[int] = 0
    shared: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if not self.variants:
            raise InputError(f"study: variants is empty: expected some of {', '.join(SEARCH)}")
        for name in self.variants:
            choose("variant of a study", name, SEARCH)
        counts = ("seeds", "searched", "epochs", "patience", "batch_size")
        check_at_least("study", 1, **{name: getattr(self, name) for name in counts})
        choose("backend", self.backend, BACKENDS)
        object.__setattr__(self, "variants", tuple(dict.fromkeys(self.variants)))

    def search(self, variant: str) -> list["Run"]:
        settings = range(len(SEARCH[variant][: self.searched])) if SEARCH[variant] else (None,)
        return [Run(variant, setting, 0) for setting in settings]

    def identity(self, run: "Run") -> dict[str, Any]:
        """All that the result depends on besides the data and the code."""
        variant = VARIANTS[run.variant]
        identity: dict[str, Any] = {"variant": variant.name, "model": variant.model, "options": dict(variant.options)}
        identity["seed"] = run.seed
        if run.chosen is None:
            return identity
        shared = ("epochs", "patience", "batch_size", "backend", "fused_optimizer")
        return identity | vars(run.chosen) | {name: getattr(self, name) for name in shared}

    def train(self, payload: Payload, run: "Run", device: torch.device) -> dict[str, Any]:
        with memory_advice(payload.data, device, self.batch_size):
            return train_run(payload.data, run, self, device)


@dataclass(frozen=True)
class Run:
    """One training of a study. setting: place among those tried; None where there is nothing to train."""

    variant: str
    setting: int | None
    seed: int

    @property
    def name(self) -> str:
        """Fit for a file name, and different for different runs of a study."""
        chosen = self.chosen
        tried = "" if chosen is None else f"-lr{chosen.learning_rate:g}-reg{chosen.reg_weight:g}"
        return f"{self.variant}{tried}-seed{self.seed}"

    @property
    def chosen(self) -> Setting | None:
        return None if self.setting is None else SEARCH[self.variant][self.setting]


# What a study has to know of the runs that it compares; ``StudySettings`` is one, ``sweep.SweepSettings`` another.
#
# kind        of its runs' records
# variants    what is compared, in the order in which it is run, each at its best setting with ``seeds`` paired seeds
# first_seed  that of the search
# shared      what is the same in all its runs' identities, so that a folder holds one study
# search      the runs with the first seed that choose a variant's setting (None in a run: nothing is trained)
# identity    what a finished run is recognised by: all that its result depends on besides the data and the code
# train       a run's content
Plan = Any


def search_runs(study: Plan) -> list[Any]:
    """The runs with the first seed that choose each variant's setting."""
    return [run for variant in study.variants for run in study.search(variant)]


def best_run(study: Plan, variant: str, done: Mapping[str, Mapping[str, Any]]) -> Any | None:
    """The variant's run of its search with the best validation; None while one is not done, or when all failed.

    done: content of each finished run by its name.
    """
    runs = study.search(variant)
    if any(run.name not in done for run in runs):
        return None
    found = [run for run in runs if run.setting is None or done[run.name]["valid"] is not None]
    return max(found, key=lambda run: validated(done[run.name]), default=None)


def runs_ready(study: Plan, done: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The runs not done that can be started now, in the order to start them: the search of all variants, then seed by
    seed over those variants whose search is done."""
    best = [run for variant in study.variants if (run := best_run(study, variant, done)) and run.setting is not None]
    seeds = range(study.first_seed + 1, study.first_seed + study.seeds)
    further = [replace(run, seed=seed) for seed in seeds for run in best]
    return [run for run in search_runs(study) + further if run.name not in done]


def count_runs(study: Plan, done: Mapping[str, Mapping[str, Any]]) -> int:
    """How many runs the whole study has, as far as that is known: a variant whose whole search failed has no others."""
    search = search_runs(study)
    trained = {run.variant for run in search if run.setting is not None}
    open_ = {run.variant for run in search if run.name not in done or done[run.name]["valid"] is not None}
    return len(search) + (study.seeds - 1) * len(trained & open_)


def train_run(data: Interactions, run: Run, study: StudySettings, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Train one run and return the content of its record (kind "study-run").

    identity    see ``Plan``; setting: its place among those tried; search: whether the run chooses among them
    epochs      one row per epoch: epoch, loss, epoch_s and, where validated, valid.recall@20 and valid.ndcg@20
    best_epoch, valid, test   of the best validation epoch; failed: why a run ended without a result (else None)
    users       count and digest of the test users, and their metrics, packed (``unpack``), in ascending order of users

    Raises KeyboardInterrupt where ``fit`` was interrupted.
    """
    started = time.perf_counter()
    setting = run.chosen
    content: dict[str, Any] = {
        "identity": study.identity(run),
        "name": run.name,
        "setting": run.setting,
        "search": run.seed == 0,
        "epochs": [],
        "best_epoch": None,
        "valid": None,
        "test": None,
        "users": None,
        "failed": None,
    }
    penalty = {} if setting is None else {"reg_weight": setting.reg_weight}
    model = VARIANTS[run.variant].build(data, run.seed, device, backend=study.backend, **penalty)
    content["backend"] = type(model.ops).__name__ if hasattr(model, "ops") else study.backend
    if setting is not None:
        try:
            history = fit(model, data, _train_settings(run, setting, study), progress=False)
        except TrainingError as error:
            return content | {"failed": str(error), "seconds": time.perf_counter() - started}
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        rows = [{name: row[name] for name in _KEPT_COLUMNS if name in row} for row in history.epochs]
        content |= {"epochs": rows, "best_epoch": history.best_epoch, "valid": history.valid}
        content["stopped"] = history.stopped
    content |= packed_users(*per_user_metrics(model, data, "test", (20,)))
    return content | {"seconds": time.perf_counter() - started}


class Runs:
    """The runs of a study under way: what there is to do, and the content of each that is done by name."""

    def __init__(self, study: Plan) -> None:
        self.study = study
        self.done: dict[str, dict[str, Any]] = {}

    @property
    def total(self) -> int:
        return count_runs(self.study, self.done)

    def ready(self) -> Sequence[Run]:
        return runs_ready(self.study, self.done)

    def keep(self, run: Any, result: dict[str, Any]) -> str:
        self.done[run.name] = result
        return outcome(result)


def run_here(data: Interactions, study: StudySettings, device: torch.device | str = "cpu") -> dict[str, dict[str, Any]]:
    """Do all runs of a small study one after the other, keeping nothing on disk; the contents by name."""
    runs = Runs(study)
    with open_engine(Payload(data)) as engine:
        do_runs(engine, lambda payload, run: train_run(payload.data, run, study, device), runs, lambda _: None)
    return runs.done


def outcome(content: Mapping[str, Any]) -> str:
    """A finished run in a line."""
    if content["failed"]:
        return f"failed ({content['failed']})"
    parts = [f"test recall@20 {content['test'][MONITOR]:.4f}"]
    if content["valid"] is not None:
        parts.insert(0, f"validation {content['valid'][MONITOR]:.4f} in epoch {content['best_epoch'] + 1}")
    return f"{', '.join(parts)}, {counted(len(content['epochs']), 'epoch')} in {duration(content['seconds'])}"


def pack(values: np.ndarray) -> str:
    """Numbers as text: float32, compressed, base64."""
    return base64.b64encode(zlib.compress(np.asarray(values, dtype="<f4").tobytes(), 9)).decode("ascii")


def unpack(text: str, most: int = 10**9) -> np.ndarray:
    """What ``pack`` packed: float32 (n,); of more than ``most`` numbers the first ``most`` + 1. Text that it did not
    make is an InputError."""
    try:
        packed = base64.b64decode(text, validate=True)
        return np.frombuffer(zlib.decompressobj().decompress(packed, 4 * (min(most, 10**9) + 1)), dtype="<f4")
    except (ValueError, zlib.error) as error:
        raise InputError(f"{text[:40]!r} are no packed numbers ({error})") from error


def _train_settings(run: Run, setting: Setting, study: StudySettings) -> TrainSettings:
    return TrainSettings(
        epochs=study.epochs,
        batch_size=study.batch_size,
        learning_rate=setting.learning_rate,
        seed=run.seed,
        patience=study.patience,
        eval_every=min(setting.eval_every, study.epochs),
        monitor=MONITOR,
        fused_optimizer=study.fused_optimizer,
    )


def packed_users(users: np.ndarray, metrics: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """test: the metrics' means; users: count and digest of users (n,), and their packed metrics (n,) each."""
    packed = {name: pack(metrics[name]) for name in USER_METRICS}
    digest = hashlib.sha256(users.astype("<i8").tobytes()).hexdigest()[:16]
    means = {name: float(values.mean()) for name, values in metrics.items()}
    return {"test": means, "users": {"count": len(users), "digest": digest} | packed}


def validated(content: Mapping[str, Any]) -> float:
    """Validation recall@20 of a finished run; -1, which loses to every other, for one that was not validated."""
    return -1.0 if content["valid"] is None else content["valid"][MONITOR]
