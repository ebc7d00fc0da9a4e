"""``accelerate``: make an MMRec GRCN or DRAGON object fast without changing a number."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, check_ids, choose
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.mmrec.fast_steps import FastDragon, FastGrcn, FastStep
from mmrec_helpers.mmrec.recognise import recognise, training_graph
from mmrec_helpers.ops import ROUTINGS
from mmrec_helpers.profiling.state import preserved

BACKENDS = ("auto", "fused", "sparse")
_REPLACED = ("forward", "calculate_loss")
BATCH, SCORED_USERS = 1024, 16  # of the step that is compared
TOLERANCES = {  # relative to the largest value of each tensor
    torch.float64: {"loss": 1e-10, "scores": 1e-10, "gradient": 1e-10},
    torch.float32: {"loss": 1e-5, "scores": 1e-5, "gradient": 2e-5},
}
ZERO_ONE_WAY = 0.01  # share of a gradient's entries that may be zero one way and not the other, by rounding


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
    for name in (*_REPLACED, "accelerated"):
        del attributes[name]
    attributes.update(attributes.pop("_before_acceleration"))
    if "result_embed" in target._parameters:
        attributes.pop("result_embed", None)
    return model


def _batch(model: nn.Module, given: Any) -> Tensor:
    graph, device = training_graph(model), next(model.parameters()).device
    return _drawn_batch(graph, device) if given is None else _checked_batch(given, graph, device)


def _own_step(kind: str, model: nn.Module, batch: Tensor) -> Step:
    try:
        return _run_step(model, batch)
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
                return fast, _run_step(model, batch), fallback
        except Exception as error:
            if name != "fused" or backend != "auto":
                raise
            fallback = f"{kind} accelerated with backend sparse, not fused: {type(error).__name__}: {error}"
    raise AssertionError


def _checked(kind: str, own: Step, fast: Step, routing: str) -> list[Difference]:
    found = []
    for difference in _differences(own, fast):
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


# ------------------------------------------------------------------- one step, one way or the other


def _drawn_batch(graph: BipartiteGraph, device: torch.device) -> Tensor:
    """A batch (3, B) of users, items they have, and any items, from the training graph; leaves random states alone."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randperm(graph.n_edges, generator=generator)[:BATCH].to(graph.edge_user.device)
    negatives = torch.randint(graph.n_items, edges.shape, generator=generator)
    return torch.stack((graph.edge_user[edges].to(device), graph.edge_item[edges].to(device), negatives.to(device)))


def _checked_batch(batch: Any, graph: BipartiteGraph, device: torch.device) -> Tensor:
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


def _run_step(model: Any, batch: Tensor) -> Step:
    """Loss, scores and gradients of a batch by the model's methods as they stand; everything is put back afterwards:
    parameters' .grad, attributes of all modules (results, attention weights, ...) and random states."""
    with preserved(model), usable_on_cpu(model):
        if not hasattr(model, "epoch_user_graph") and hasattr(model, "pre_epoch_processing"):
            model.pre_epoch_processing()  # DRAGON before its first epoch: draws its user graph
        parameters = dict(model.named_parameters())  # before the pass: DRAGON registers second names in it
        for parameter in parameters.values():
            parameter.grad = None
        losses = model.calculate_loss(batch.clone())
        loss = losses if isinstance(losses, Tensor) else sum(losses)
        loss.sum().backward()
        with torch.no_grad():
            scores = model.full_sort_predict([batch[0].unique()[:SCORED_USERS]])
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        return Step(loss.detach(), scores, gradients)


def _differences(own: Step, other: Step) -> Iterator[Difference]:
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
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]  # for the time of the block
    try:
        yield
    finally:
        torch.Tensor.cuda = cuda  # type: ignore[method-assign]  # as it was
