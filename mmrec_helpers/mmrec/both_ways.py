"""One step of a model computed by its own methods and by others, and the first difference between the two."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, check_ids
from mmrec_helpers.data.graph import BipartiteGraph

BATCH, SCORED_USERS = 1024, 16
TOLERANCES = {  # relative to the largest value of each tensor
    torch.float64: {"loss": 1e-10, "scores": 1e-10, "gradient": 1e-10},
    torch.float32: {"loss": 1e-5, "scores": 1e-5, "gradient": 2e-5},
}
ZERO_ONE_WAY = 0.01  # share of a gradient's entries that may be zero one way and not the other, by rounding
_REGISTRIES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class Step:
    """What one step gave: loss, scores (users, I) by the representation it left, gradients by parameter name."""

    loss: Tensor
    scores: Tensor
    gradients: dict[str, Tensor | None]


@dataclass(frozen=True)
class Difference:
    """The largest difference of one compared thing, relative to its largest value, and what is allowed; infinite for
    what cannot be compared or is zero one way only, as ``text`` then says."""

    what: str
    relative: float
    tolerance: float
    text: str = ""

    @property
    def within(self) -> bool:
        return self.relative <= self.tolerance  # False for nan

    def __str__(self) -> str:
        summary = f"{self.what} differs by {self.relative:.2g} of its largest value (tolerance {self.tolerance:g})"
        return f"{summary}, {self.text}" if self.text else summary


def draw_batch(graph: BipartiteGraph, device: torch.device) -> Tensor:
    """A batch (3, B) of users, items they have, and any items, from the training graph; leaves random states alone."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randperm(graph.n_edges, generator=generator)[:BATCH].to(graph.edge_user.device)
    negatives = torch.randint(graph.n_items, edges.shape, generator=generator)
    return torch.stack((graph.edge_user[edges].to(device), graph.edge_item[edges].to(device), negatives.to(device)))


def check_batch(batch: Any, graph: BipartiteGraph, device: torch.device) -> Tensor:
    """The batch as int64 (3, B) on the device; raises InputError for another shape, type or range."""
    try:
        batch = torch.as_tensor(batch)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"check_batch is a {type(batch).__name__}: expected an integer tensor (3, B)") from error
    floating = batch.is_floating_point() or batch.dtype == torch.bool
    if batch.dim() != 2 or batch.shape[0] != 3 or batch.shape[1] == 0 or floating:
        raise InputError(f"check_batch is {tuple(batch.shape)} of {batch.dtype}: expected an integer tensor (3, B)")
    check_ids("check_batch: users", batch[0], graph.n_users)
    check_ids("check_batch: items", batch[1:], graph.n_items)
    return batch.to(device, torch.int64)


def run_step(model: nn.Module, batch: Tensor) -> Step:
    """Loss, scores and gradients of a batch by the model's methods as they stand; everything is put back afterwards:
    parameters' .grad, attributes of all modules (results, attention weights, ...) and random states."""
    with preserved(model), usable_on_cpu(model):
        if not hasattr(model, "epoch_user_graph") and hasattr(model, "pre_epoch_processing"):
            model.pre_epoch_processing()  # DRAGON before its first epoch: draws its user graph
        parameters = dict(model.named_parameters())  # before the pass: DRAGON registers second names in it
        for parameter in parameters.values():
            parameter.grad = None
        losses = model.calculate_loss(batch.clone())
        loss = sum(losses) if isinstance(losses, (tuple, list)) else losses
        loss.sum().backward()
        with torch.no_grad():
            scores = model.full_sort_predict([batch[0].unique()[:SCORED_USERS]])
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        return Step(loss.detach(), scores, gradients)


def differences(own: Step, other: Step) -> Iterator[Difference]:
    """Loss, then scores, then each parameter's gradient, in the model's order."""
    fine = own.loss.dtype == own.scores.dtype == torch.float64
    tolerances = TOLERANCES[torch.float64 if fine else torch.float32]
    values = f"{own.loss.sum().item():.8g} by the model's own methods, {other.loss.sum().item():.8g} accelerated"
    yield _difference("loss", own.loss, other.loss, tolerances["loss"], values)
    yield _difference("scores", own.scores, other.scores, tolerances["scores"])
    for name, gradient in own.gradients.items():
        yield _difference(f"gradient of {name}", gradient, other.gradients[name], tolerances["gradient"])


def _difference(what: str, own: Tensor | None, other: Tensor | None, tolerance: float, text: str = "") -> Difference:
    if own is None or other is None:
        text = "none by the model's own methods" if own is None else "none accelerated"
        return Difference(what, 0.0 if own is other else float("inf"), tolerance, text if own is not other else "")
    if own.numel() != other.numel():
        return Difference(what, float("inf"), tolerance, f"shapes {tuple(own.shape)} and {tuple(other.shape)}")
    own, other = own.double().flatten(), other.double().flatten().to(own.device)
    largest, difference = float(own.abs().max()), float((own - other).abs().max())
    one_way = float(((own == 0) != (other == 0)).double().mean())
    if one_way > ZERO_ONE_WAY:  # a penalty too small to be seen beside a gradient still moves what has none
        return Difference(what, float("inf"), tolerance, f"{one_way:.0%} of the entries are zero one way only")
    return Difference(what, difference / largest if largest > 0 else difference, tolerance, text)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back, after the block, every module's attributes and registries, parameters' .grad and random states."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    kept = [(module, _copied(vars(module))) for module in model.modules()]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        for module, attributes in kept:
            _put_back(vars(module), attributes)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for index, state in enumerate(cuda):
            torch.cuda.set_rng_state(state, index)


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    return attributes | {name: dict(attributes[name]) for name in _REGISTRIES}


def _put_back(attributes: dict[str, Any], kept: dict[str, Any]) -> None:
    registries = {name: attributes[name] for name in _REGISTRIES}  # the same dictionaries: others may hold them
    attributes.clear()
    attributes.update(kept)
    for name, registry in registries.items():
        registry.clear()
        registry.update(kept[name])
        attributes[name] = registry


@contextmanager
def usable_on_cpu(model: nn.Module) -> Iterator[None]:
    """Inside the block MMRec's own models run on a CPU too, though GRCN's loss calls ``Tensor.cuda`` and
    DRAGON's ``result_embed`` is registered as a parameter there and then assigned a tensor. Within ``preserved``."""
    if next(model.parameters()).device.type != "cpu":
        yield
        return
    registered = model._parameters.pop("result_embed", None)
    if registered is not None:
        vars(model)["result_embed"] = registered.detach()
    cuda: Callable = torch.Tensor.cuda
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    try:
        yield
    finally:
        torch.Tensor.cuda = cuda
