"""The training loop: epochs, validation, early stopping, checkpoints, and the test split read once."""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from tqdm import tqdm

from mmrec_helpers.config import InputError, settings_from
from mmrec_helpers.data import Interactions
from mmrec_helpers.progress import progress as watched
from mmrec_helpers.training.checkpoint import check_checkpoint_path, load_checkpoint, save_checkpoint
from mmrec_helpers.training.evaluation import evaluate, evaluation_users, model_device
from mmrec_helpers.training.sampling import NegativeSampler, split_batches
from mmrec_helpers.training.settings import History, TrainSettings
from mmrec_helpers.training.step import (
    GraphedStep,
    TrainingError,
    cannot_be_graphed,
    make_optimizer,
    make_scaler,
    train_step,
)

CUDA_CHECK_STEPS = 50  # on CUDA the losses are looked at (which waits for the device) once in this many steps


def fit(
    model: nn.Module,
    data: Interactions,
    settings: TrainSettings | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> History:
    """Train ``model`` on ``data`` with Adam, keep the weights of the best validation epoch, then read the test split.
    Returns the ``History``.

    settings, options  fields of ``TrainSettings``; options win over ``settings``
    checkpoint         a file, written after every epoch. If it is there already, training goes on from it, to the same
                       result as if never interrupted (bit for bit on the CPU); a file of another run (data, model,
                       settings other than ``epochs``) raises InputError and stays as it is
    progress           a bar with the time left (at most; early stopping is not foreseen), the loss and the best metric

    A model needs ``loss(batch)`` and ``scores(users)``; if it has ``on_epoch_start(epoch)``, that is called before each
    epoch (and once more for the best epoch, when its weights are put back). Batches depend on (seed, epoch) alone; the
    global random state is neither seeded nor read here, but resuming sets torch's to the one saved.

    The model stays on its device. At the end it has the weights of the best epoch; without a validation split, those
    of the last one, and the history's ``note`` says so. Ctrl-C ends training early: the history comes back with
    ``stopped="interrupted"`` and no test metrics, the model has the best weights so far, and the last epoch's
    checkpoint stands; a second Ctrl-C is raised.

    Raises InputError for settings or models that cannot be used, and TrainingError for a loss that is not finite,
    naming epoch and step. On the CPU every step is checked before it changes the parameters, and the term is named too;
    on CUDA every 50th step looks back over the losses.

        history = fit(build("grcn", data), data, epochs=20, batch_size=2048)
        history.test["recall@20"], history.epochs[-1]["epoch_s"]
    """
    settings = _merged(settings, options)
    run = _Run(model, data, settings, checkpoint)
    mode = model.training
    bar = tqdm(
        total=settings.epochs * run.n_steps,
        initial=len(run.course.rows) * run.n_steps,
        disable=not progress,
        unit="step",
        mininterval=0.5,
    )
    try:
        stopped = run.train(bar)
        run.restore_best()
        test = run.test()
    except KeyboardInterrupt:
        stopped, test = "interrupted", None
        run.restore_best()
        tqdm.write(f"training interrupted: {run.note(stopped)}; a further Ctrl-C is raised", file=sys.stderr)
    finally:
        bar.close()
        model.train(mode)
    return History(
        settings=settings,
        epochs=run.course.rows,
        best_epoch=run.course.best_epoch,
        valid=run.course.best_metrics,
        test=test,
        stopped=stopped,
        steps_per_epoch=run.n_steps,
        note=run.note(stopped),
    )


@dataclasses.dataclass
class _Course:
    """What a run has come to after its last whole epoch; all of it goes into the checkpoint."""

    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best_epoch: int | None = None
    best_metrics: dict[str, float] | None = None
    best_state: dict[str, Tensor] | None = None
    waited: int = 0  # validations since the best one


class _Run:
    def __init__(self, model: nn.Module, data: Interactions, settings: TrainSettings, checkpoint: Any):
        _check_model(model, data)
        self.model, self.data, self.settings = model, data, settings
        self.optimizer, self.scaler = make_optimizer(model, settings), make_scaler(model)
        self.device = model_device(model)
        self.graphed = None
        if settings.cuda_graph:
            reason = cannot_be_graphed(model, self.device)
            if reason is not None:
                raise InputError(f"training: cuda_graph is True, but {reason}: expected False")
            self.graphed = GraphedStep(model, self.optimizer, settings.max_grad_norm)
        self.check_steps = CUDA_CHECK_STEPS if self.device.type == "cuda" else 1
        self.sampler = NegativeSampler(data, self.device)
        self.n_steps = self.sampler.n_steps(settings.batch_size)
        self.can_validate = evaluation_users(data, "valid").size > 0
        self.can_test = evaluation_users(data, "test").size > 0
        self.course = _Course()
        self.checkpoint = None if checkpoint is None else check_checkpoint_path(checkpoint)
        if self.checkpoint is not None and self.checkpoint.exists():
            self._resume(self.checkpoint)

    def train(self, bar: tqdm) -> str:
        """Train what is left; returns why it ended, "epochs" or "early"."""
        for _ in watched(range(self.settings.epochs - len(self.course.rows)), "epoch"):
            if self.settings.patience is not None and self.course.waited >= self.settings.patience:
                return "early"
            self._describe(bar)
            self._epoch(len(self.course.rows), bar)
            if self.checkpoint is not None:
                save_checkpoint(self.checkpoint, self._content())
        self._describe(bar)
        return "epochs"

    def test(self) -> dict[str, float] | None:
        return evaluate(self.model, self.data, "test", self.settings.ks) if self.can_test else None

    def restore_best(self) -> None:
        if self.course.best_state is not None and self.course.best_epoch is not None:
            self.model.load_state_dict(self.course.best_state)
            self._start_epoch(self.course.best_epoch)

    def note(self, stopped: str) -> str:
        kept = "the last weights are kept" if self.course.best_epoch is None else ""
        notes = []
        if stopped == "interrupted":
            done = len(self.course.rows)
            best = self.course.best_epoch
            weights = "as the last step left them" if best is None else f"of epoch {best}, the best so far"
            notes.append(f"interrupted after {done} whole epochs; weights {weights}")
        elif not self.can_validate:
            notes.append(f"no validation split: all epochs trained, {kept}")
        elif kept:
            notes.append(f"no epoch was validated ({self.settings.epochs} trained): {kept}")
        if not self.can_test:
            notes.append("no test split")
        return "; ".join(notes)

    def _epoch(self, epoch: int, bar: tqdm) -> None:
        start = time.perf_counter()
        self._start_epoch(epoch)
        sampling_start = time.perf_counter()
        with record_function("sampling"):
            triples = self.sampler.epoch(self.settings.seed, epoch)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        sampling_s = time.perf_counter() - sampling_start
        loss = self._steps(epoch, triples, bar).mean().item()
        epoch_s = time.perf_counter() - start
        row = {"epoch": epoch, "loss": loss, "epoch_s": epoch_s, "sampling_s": sampling_s}
        row |= {"train_s": epoch_s - sampling_s, "validation_s": 0.0}
        if self.can_validate and (epoch + 1) % self.settings.eval_every == 0:
            metrics = self._validate(epoch)
            row["validation_s"] = time.perf_counter() - start - epoch_s
            row |= {f"valid.{name}": value for name, value in metrics.items()}
        self.course.rows.append(row)

    def _validate(self, epoch: int) -> dict[str, float]:
        course, monitor = self.course, self.settings.monitor
        try:
            metrics = evaluate(self.model, self.data, "valid", self.settings.ks)
        except InputError as error:
            raise TrainingError(f"validation after epoch {epoch}: {error}") from error
        if course.best_metrics is None or metrics[monitor] > course.best_metrics[monitor]:
            state = {name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()}
            course.best_state, course.best_metrics, course.best_epoch, course.waited = state, metrics, epoch, 0
        else:
            course.waited += 1
        return metrics

    def _steps(self, epoch: int, triples: Tensor, bar: tqdm) -> Tensor:
        """All steps of an epoch; returns their losses (n_steps,) on the model's device."""
        self.model.train()
        losses = torch.zeros(self.n_steps, dtype=torch.float64, device=self.device)
        for step, batch in enumerate(split_batches(triples, self.settings.batch_size)):
            losses[step] = self._step(epoch, step, batch)
            bar.update()
            if self.check_steps > 1 and ((step + 1) % self.check_steps == 0 or step + 1 == self.n_steps):
                bad = (~losses[: step + 1].isfinite()).nonzero()
                if bad.numel():
                    first = int(bad[0])
                    raise TrainingError(
                        f"epoch {epoch}, step {first} of {self.n_steps}: the loss is {losses[first].item()}, seen "
                        f"after step {step}; train on the CPU to have the term named"
                    )
        return losses

    def _step(self, epoch: int, step: int, batch: Tensor) -> Tensor:
        if self.graphed is not None:
            return self.graphed(batch)
        check = self.check_steps == 1
        try:
            return train_step(self.model, self.optimizer, batch, self.settings.max_grad_norm, self.scaler, check)
        except TrainingError as error:
            raise TrainingError(f"epoch {epoch}, step {step} of {self.n_steps}: {error}") from None

    def _start_epoch(self, epoch: int) -> None:
        hook = getattr(self.model, "on_epoch_start", None)
        if hook is not None:
            hook(epoch)

    def _describe(self, bar: tqdm) -> None:
        course = self.course
        bar.set_description(f"epoch {min(len(course.rows) + 1, self.settings.epochs)}/{self.settings.epochs}", False)
        parts = [f"loss {course.rows[-1]['loss']:.5g}"] if course.rows else []
        if course.best_metrics is not None and course.best_epoch is not None:
            best = course.best_metrics[self.settings.monitor]
            parts.append(f"best {self.settings.monitor} {best:.4f} (epoch {course.best_epoch + 1})")
        bar.set_postfix_str(", ".join(parts), refresh=False)

    def _content(self) -> dict[str, Any]:
        """The run and its course, and what a step changes: parameters, optimizer, scaler, and the random state that a
        model may draw from."""
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "identity": _identity(self.model, self.data, self.settings, self.device),
            "epochs_done": len(self.course.rows),
            "progress": dict(vars(self.course)),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "rng": rng,
        }

    def _resume(self, checkpoint: Path) -> None:
        identity = _identity(self.model, self.data, self.settings, self.device)
        content = load_checkpoint(checkpoint, identity)
        if content["epochs_done"] > self.settings.epochs:
            raise InputError(
                f"checkpoint {checkpoint} has {content['epochs_done']} epochs behind it: epochs is "
                f"{self.settings.epochs}, expected at least as many"
            )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["rng"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(content["rng"]["cuda"], self.device)
        self.course = _Course(**content["progress"])


def _merged(settings: TrainSettings | None, options: dict[str, Any]) -> TrainSettings:
    if not isinstance(settings, TrainSettings | None):
        raise InputError(f"settings are {settings!r}: expected TrainSettings, or options such as epochs=20")
    return settings_from(TrainSettings, "training", (dataclasses.asdict(settings) if settings else {}) | options)


def _check_model(model: Any, data: Interactions) -> None:
    if not callable(getattr(model, "loss", None)) or not callable(getattr(model, "scores", None)):
        raise InputError(
            f"{type(model).__name__} cannot be trained: expected a model with loss(batch) and scores(users)"
        )
    for name in ("n_users", "n_items"):
        there, here = getattr(data, name), getattr(model, name, None)
        if here is not None and here != there:
            raise InputError(f"the model has {name} {here}, the data set {data.name} {there}: expected the same")


def _identity(model: nn.Module, data: Interactions, settings: TrainSettings, device: torch.device) -> dict[str, Any]:
    """What must be equal for a checkpoint to be resumed: everything the result depends on, except how long."""
    plain = dataclasses.asdict(settings)
    del plain["epochs"]
    options: Any = getattr(model, "settings", None)
    has_options = dataclasses.is_dataclass(options) and not isinstance(options, type)
    return {
        "data fingerprint": data.fingerprint,
        "model": type(model).__name__,
        "model backend": getattr(model, "backend", None),
        "model seed": getattr(model, "seed", None),
        "model setting": dataclasses.asdict(options) if has_options else {},
        "parameter": {name: list(value.shape) for name, value in model.state_dict().items()},
        "training setting": plain | {"ks": list(settings.ks)},
        "device": device.type,
    }
