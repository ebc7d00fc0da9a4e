"""One training run in two backends from one seed: is it the same curve, and what does it take?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mmrec_helpers.config import InputError, check_at_least, choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.models import build
from mmrec_helpers.training.settings import History, TrainSettings
from mmrec_helpers.training.trainer import fit

ROUNDING = 1e-3  # relative: what counts as the same loss; see ``same_curve``


@dataclass(frozen=True)
class CurveArm:
    """A model to train: its name for ``build``, options of it, and the learning rate."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3


ARMS = {
    "GRCN as shipped": CurveArm("grcn"),
    "GRCN live": CurveArm("grcn", {"routing": "live"}),
    "DRAGON": CurveArm("dragon", learning_rate=1e-4),
}


def same_curve(
    data: Interactions,
    arm: str,
    *,
    epochs: int = 5,
    batch_size: int = 2048,
    backends: tuple[str, str] = ("reference", "fused"),
    seed: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train one of ``ARMS`` in two backends from the same parameters, on the same batches, and compare the courses.

    Returns plain data: arm, model, options, learning_rate, epochs, batch_size, steps_per_epoch, seed, ``runs`` (per
    backend: loss, epoch_s and "valid.recall@20" of each epoch), ``loss_differences`` (relative, of each epoch),
    ``metric_differences`` (absolute, of each epoch's validation recall@20; empty without a validation split), ``same``
    (all losses within ROUNDING), ``rounding`` and ``time_ratio`` (of the epochs' training times, first backend over
    second, without the first epoch, in which kernels are compiled, if there are more).

    The two backends sum in other orders, and Adam divides each gradient by its size, so that a number that is next to
    nothing moves a parameter by a whole step either way: differences grow with the steps. What stays within ROUNDING is
    called the same curve.
    """
    chosen = ARMS[choose("arm", arm, ARMS)]
    check_at_least("same curve", 1, epochs=epochs, batch_size=batch_size)
    if len(set(backends)) != 2:
        raise InputError(f"same curve: backends are {', '.join(backends)}: expected two different ones")
    settings = TrainSettings(
        epochs=epochs, batch_size=batch_size, seed=seed, patience=None, learning_rate=chosen.learning_rate
    )
    histories = {}
    for backend in backends:
        say(f"{arm}: {epochs} epochs, {backend}")
        model = build(chosen.model, data, backend=backend, seed=seed, device=device, **chosen.options)
        histories[backend] = fit(model, data, settings, progress=False)
    return {
        "arm": arm,
        "model": chosen.model,
        "options": dict(chosen.options),
        "learning_rate": chosen.learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "steps_per_epoch": histories[backends[0]].steps_per_epoch,
        "seed": seed,
        "runs": {backend: _course(history) for backend, history in histories.items()},
        **_compared(*(histories[backend] for backend in backends)),
    }


def _course(history: History) -> dict[str, list[float]]:
    names = ("loss", "epoch_s", "valid.recall@20")
    return {name: [row[name] for row in history.epochs if name in row] for name in names}


def _compared(first: History, second: History) -> dict[str, Any]:
    pairs = list(zip(first.epochs, second.epochs, strict=True))
    losses = [abs(b["loss"] - a["loss"]) / abs(a["loss"]) for a, b in pairs]
    metric = "valid.recall@20"
    timed = pairs[1:] or pairs
    return {
        "loss_differences": losses,
        "metric_differences": [abs(b[metric] - a[metric]) for a, b in pairs if metric in a],
        "same": max(losses) <= ROUNDING,
        "rounding": ROUNDING,
        "time_ratio": sum(a["epoch_s"] for a, _ in timed) / sum(b["epoch_s"] for _, b in timed),
    }
