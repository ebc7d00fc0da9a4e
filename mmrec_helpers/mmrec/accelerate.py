"""``accelerate``: make an MMRec GRCN or DRAGON object fast without changing a number."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmrec_helpers.config import InputError, choose
from mmrec_helpers.mmrec.both_ways import Difference, Step, check_batch, differences, draw_batch, preserved, run_step
from mmrec_helpers.mmrec.fast_steps import FastDragon, FastGrcn, FastStep
from mmrec_helpers.mmrec.recognise import recognise, training_graph
from mmrec_helpers.ops import ROUTINGS

BACKENDS = ("auto", "fused", "sparse")
_REPLACED = ("forward", "calculate_loss")


@dataclass(frozen=True)
class Acceleration:
    """What ``accelerate`` did, as ``model.accelerated``.

    model    "GRCN" or "DRAGON", as recognised
    backend  "fused" or "sparse"; fallback: why it is not the fused one, empty if it is or another was asked for
    routing  of GRCN: "as_shipped" or "live"
    checked  what was compared on one batch, with the largest relative difference and the tolerance of each
    """

    model: str
    backend: str
    routing: str
    device: str
    checked: tuple[Difference, ...]
    fallback: str = ""

    def __str__(self) -> str:
        worst = max(self.checked, key=lambda found: found.relative / found.tolerance)
        summary = f"{self.model} accelerated on {self.device}, backend {self.backend}; largest relative difference on "
        summary += f"one batch: {worst.relative:.1e} ({worst.what}, tolerance {worst.tolerance:g})"
        return f"{summary}; {self.fallback}" if self.fallback else summary


def accelerate(
    model: nn.Module, check_batch: Any = None, *, routing: str = "as_shipped", backend: str = "auto"
) -> nn.Module:
    """Make the ``forward`` and ``calculate_loss`` of an MMRec GRCN or DRAGON object fast; returns the same object.

    The model is recognised by its structure, whatever its class is called. Its parameters stay the same objects, so
    its optimizer and checkpoints go on working; ``full_sort_predict`` and ``pre_epoch_processing`` stay its own and
    find the results where MMRec leaves them. Unlike MMRec's DRAGON, it leaves the batch unchanged.

    check_batch  integers (3, B): users, positive, negative items counted from 0; default: drawn from the model's edges
    routing      of GRCN: "as_shipped", or "live" for a model whose routing loop was changed to reach the users
    backend      "fused", "sparse", or "auto": fused, and where that cannot run sparse, with a warning that says why

    Before it returns, loss, scores and all gradients of that batch are computed both ways. Raises InputError for a
    model that is not recognised, saying what was looked for and is missing, and for one that computes something else,
    naming the first difference. The model is then as it was. ``restore`` undoes it; ``model.accelerated``, an
    ``Acceleration``, says what was done.

        model = GRCN(config, train_data).to(config["device"])  # as MMRec makes it
        accelerate(model)
    """
    choose("routing", routing, ROUTINGS)
    choose("backend", backend, BACKENDS)
    target = getattr(model, "_orig_mod", model)  # what torch.compile wraps; its calculate_loss is what is called
    if isinstance(target, nn.Module) and "accelerated" in vars(target):
        restore(target)
    kind = recognise(target)
    if kind == "DRAGON" and routing != "as_shipped":
        raise InputError(f"routing is {routing!r}: DRAGON has no routing, expected it left out")
    batch = _batch(target, check_batch)
    own = _own_step(kind, target, batch)
    fast, step, fallback = _fast_step(kind, target, batch, backend, routing)
    fast.loss_shape = own.loss.shape
    checked = tuple(_checked(kind, own, step, routing))
    vars(target)["_before_acceleration"] = _install(target, fast)
    device = str(fast.device)
    vars(target)["accelerated"] = Acceleration(kind, fast.backend, routing, device, checked, fallback)
    if fallback:
        warnings.warn(fallback, stacklevel=2)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Put an accelerated model's own methods back; returns the same object. InputError if it is not accelerated."""
    target = getattr(model, "_orig_mod", model)
    if not isinstance(target, nn.Module) or "accelerated" not in vars(target):
        raise InputError(f"{type(target).__name__} is not accelerated: expected what accelerate returned")
    attributes = vars(target)
    _uninstall(target, attributes.pop("_before_acceleration"))
    del attributes["accelerated"]
    if "result_embed" in target._parameters:
        attributes.pop("result_embed", None)
    return model


def _batch(model: nn.Module, given: Any) -> Tensor:
    graph, device = training_graph(model), next(model.parameters()).device
    return draw_batch(graph, device) if given is None else check_batch(given, graph, device)


def _own_step(kind: str, model: nn.Module, batch: Tensor) -> Step:
    try:
        return run_step(model, batch)
    except Exception as error:
        raise InputError(
            f"{kind}: its own step fails on one batch, so there is nothing to compare with: "
            f"{type(error).__name__}: {error}"
        ) from error


def _fast_step(kind: str, model: nn.Module, batch: Tensor, backend: str, routing: str) -> tuple[FastStep, Step, str]:
    """The first backend that runs, its step, and why an earlier one does not."""
    fallback = ""
    for name in ("fused", "sparse") if backend == "auto" else (backend,):
        fast = FastGrcn(model, name, routing) if kind == "GRCN" else FastDragon(model, name)
        try:
            with preserved(model):
                _install(model, fast)
                return fast, run_step(model, batch), fallback
        except Exception as error:
            if name != "fused" or backend != "auto":
                raise
            fallback = f"{kind} accelerated with backend sparse, not fused: {type(error).__name__}: {error}"
    raise AssertionError


def _checked(kind: str, own: Step, fast: Step, routing: str) -> list[Difference]:
    found = []
    for difference in differences(own, fast):
        found.append(difference)
        if not difference.within:
            hint = "; if its routing loop reaches the users, pass routing='live'"
            raise InputError(
                f"{kind}: it computes something else than MMRec's: {difference}"
                f"{hint if kind == 'GRCN' and routing == 'as_shipped' else ''}. The model is left as it was"
            )
    return found


def _install(model: nn.Module, fast: FastStep) -> dict[str, Any]:
    """Put the fast methods on the object; returns what it had there of its own, besides its class's."""
    attributes = vars(model)
    before = {name: attributes[name] for name in _REPLACED if name in attributes}
    attributes.update({name: getattr(fast, name) for name in _REPLACED})
    return before


def _uninstall(model: nn.Module, before: dict[str, Any]) -> None:
    for name in _REPLACED:
        vars(model).pop(name)
    vars(model).update(before)
