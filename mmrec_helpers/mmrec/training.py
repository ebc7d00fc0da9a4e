"""A model of a checkout trained by MMRec's own trainer, with the ranking that its validation chose."""

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, out_of_memory
from mmrec_helpers.data import Interactions
from mmrec_helpers.mmrec.accelerate import accelerate
from mmrec_helpers.mmrec.checkout import SEED, Batches, Checkout
from mmrec_helpers.training.evaluation import metrics_of_hits
from mmrec_helpers.training.step import TrainingError

RANKS = 20  # of each user that are kept
_ROUNDED = 6e-5  # MMRec's metrics have four decimals


@dataclass
class Trained:
    """What training by MMRec leaves.

    log        in MMRec's own format, as ``read_log`` reads it
    steps      training steps made
    note       what ``accelerate`` did, or why the model was trained as it is
    supplied   what old code needed, in plain words
    users      those of the test split, ascending: int64 (n,)
    metrics    by split ("valid", "test"), of each user in the epoch that validation chose: {"recall@20": (n,), ...};
               empty where none was validated
    """

    log: str = ""
    steps: int = 0
    note: str = ""
    supplied: tuple[str, ...] = ()
    users: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    metrics: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def train_by_mmrec(
    checkout: Checkout,
    name: str,
    data: Interactions,
    *,
    device: torch.device | str = "cpu",
    seed: int = SEED,
    settings: Mapping[str, Any] | None = None,
    accelerated: bool = True,
    beside: str | Path = "",
) -> Trained:
    """Train a model as MMRec's ``quick_start`` does for one combination of its hyper-parameters.

    Call it in a process of its own, since MMRec sets up the root logger.

    settings     in place of MMRec's, see ``Checkout.build``
    accelerated  by ``accelerate``; a model that it refuses is trained as it is, and ``note`` says why

    MMRec ranks the test split after every validation; what is kept, and so read, is that of the epoch that validation
    chose. Raises InputError where the model cannot be built, and TrainingError where MMRec's code fails in training.
    """
    with checkout.built(name, data, device, seed, settings or {}, beside) as (model, batches):
        if not batches.trains:
            raise InputError(f"{name} has no training: its settings say req_training: False")
        note = _accelerate(model) if accelerated else "as it is"
        trained = Trained(note=note, supplied=batches.supplied)
        try:
            _fit(model, batches, {"seed": seed, **(settings or {})}, trained)
        except Exception as error:
            if isinstance(error, InputError) or out_of_memory(error):
                raise
            raise TrainingError(f"{name}: {checkout.failure(error, data)}") from error
        finally:
            logging.shutdown()  # MMRec's file is in a folder that goes
        return trained


def _accelerate(model: nn.Module) -> str:
    try:
        return str(accelerate(model).accelerated)
    except InputError as error:
        return f"as it is: {str(error).partition('. ')[0]}"


def _fit(model: nn.Module, batches: Batches, named: Mapping[str, Any], trained: Trained) -> None:
    """MMRec's trainer, with its logger, its loaders and its log."""
    load, config = importlib.import_module, batches.config
    load("utils.logger").init_logger(config)
    say = logging.getLogger().info
    say(config)
    every, train, valid, test = batches.datasets
    for title, part in (("", every), ("Training", train), ("Validation", valid), ("Testing", test)):
        say(f"\n===={title}====\n{part}" if title else str(part))
    evaluation = load("utils.dataloader").EvalDataLoader
    size = config["eval_batch_size"]
    rankings = [evaluation(config, part, additional_dataset=train, batch_size=size) for part in (valid, test)]
    say(f"=========1/1: Parameters:{list(named)}={tuple(named.values())}=======")
    trainer = load("utils.utils").get_trainer()(config, model)
    trainer.evaluator = kept = _Evaluator(trainer, *rankings)
    result = trainer.fit(batches.loader, valid_data=rankings[0], test_data=rankings[1], saved=False)
    trained.steps = len(batches) * len(trainer.train_loss_dict)
    trained.log = next(Path("log").glob("*.log")).read_text(encoding="utf-8").replace(str(Path.cwd()), ".")
    if kept.best:
        _, trained.metrics["valid"] = _of_users(rankings[0], kept.best["valid"])
        trained.users, trained.metrics["test"] = _of_users(rankings[1], kept.best["test"])
        _check_same(trained.metrics["test"], result[-1])


class _Evaluator:
    """MMRec's evaluator, which also keeps the rankings of the epoch that validation has just chosen."""

    def __init__(self, trainer: Any, valid: Any, test: Any) -> None:
        self.own, self.trainer, self.valid, self.test = trainer.evaluator, trainer, valid, test
        self.last: Any = None
        self.best: dict[str, Tensor] = {}

    def evaluate(self, batches: list[Tensor], data: Any, *args: Any, **named: Any) -> dict[str, float]:
        top = torch.cat(batches)[:, :RANKS].cpu()
        if top.shape[1] < RANKS:
            raise InputError(f"topk goes up to {top.shape[1]}: expected at least {RANKS}")
        if data is self.valid:
            self.last = top
        elif self.trainer.cur_step == 0:  # MMRec counts the validations since the best
            self.best = {"valid": self.last, "test": top}
        return self.own.evaluate(batches, data, *args, **named)


def _of_users(loader: Any, top: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Users (n,) ascending, and each one's metrics, from the items at each rank (n, ranks), in the loader's order."""
    users, wanted = np.asarray(loader.get_eval_users()), loader.get_eval_items()
    hits = torch.tensor(np.stack([np.isin(ranked, items) for ranked, items in zip(top.numpy(), wanted)]))
    metrics = metrics_of_hits(hits, torch.tensor([len(items) for items in wanted]), [RANKS])
    order = np.argsort(users)
    return users[order], {name: values.numpy()[order] for name, values in metrics.items()}


def _check_same(metrics: Mapping[str, np.ndarray], reported: Mapping[str, float]) -> None:
    """What was kept must be what MMRec reports."""
    for name, values in metrics.items():
        if name in reported and abs(values.mean() - reported[name]) > _ROUNDED:
            raise TrainingError(
                f"MMRec reports {name} {reported[name]} of its best epoch, kept were {values.mean():.4f}"
            )
