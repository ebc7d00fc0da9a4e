"""Steps of an MMRec object computed one way and another: loss, scores and all gradients of a batch, compared."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, check_ids
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.profiling.state import preserved

BATCH, SCORED_USERS = 1024, 16  # of the step that is compared
TOLERANCES = {  # relative to the largest value of each tensor
    torch.float64: {"loss": 1e-10, "scores": 1e-10, "gradient": 1e-10},
    torch.float32: {"loss": 1e-5, "scores": 1e-5, "gradient": 2e-5},
}
ZERO_ONE_WAY = 0.01  # share of a gradient's entries that may be zero one way and not the other, by rounding
TIMES_OWN_ROUNDING = 4  # what a change of the parameters in their last digit moves a number by, times this, is allowed


@dataclass(frozen=True)
class Step:
    """What one step gave: loss, scores (users, I) by the representation it left, gradients by parameter name."""

    loss: Tensor
    scores: Tensor
    gradients: dict[str, Tensor | None]

    def named(self) -> dict[str, Tensor | None]:
        """Everything by what it is called in messages, in the model's order."""
        return {
            "loss": self.loss,
            "scores": self.scores,
            **{f"gradient of {name}": gradient for name, gradient in self.gradients.items()},
        }


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


def make_batch(given: Any, n_users: int, n_items: int, graph: BipartiteGraph | None, device: torch.device) -> Tensor:
    """The batch to compare on, int64 (3, B): the one that was given, checked, or one drawn from the training graph, or
    where that is not known from all users and items. Random states are left alone."""
    if given is not None:
        return _checked_batch(given, n_users, n_items, device)
    generator = torch.Generator().manual_seed(0)
    if graph is None:
        return torch.stack([torch.randint(n, (BATCH,), generator=generator) for n in (n_users, n_items, n_items)]).to(
            device
        )
    edges = torch.randperm(graph.n_edges, generator=generator)[:BATCH].to(graph.edge_user.device)
    negatives = torch.randint(n_items, edges.shape, generator=generator)
    return torch.stack((graph.edge_user[edges].to(device), graph.edge_item[edges].to(device), negatives.to(device)))


def _checked_batch(batch: Any, n_users: int, n_items: int, device: torch.device) -> Tensor:
    """The batch as int64 (3, B) on the device; raises InputError for another shape, type or range."""
    try:
        batch = torch.as_tensor(batch)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"check_batch is a {type(batch).__name__}: expected an integer tensor (3, B)") from error
    floating = batch.is_floating_point() or batch.dtype == torch.bool
    if batch.dim() != 2 or batch.shape[0] != 3 or batch.shape[1] == 0 or floating:
        raise InputError(f"check_batch is {tuple(batch.shape)} of {batch.dtype}: expected an integer tensor (3, B)")
    check_ids("check_batch: users", batch[0], n_users)
    check_ids("check_batch: items", batch[1:], n_items)
    return batch.to(device, torch.int64)


def run_steps(model: Any, batch: Tensor, count: int = 1, before: Callable[[], Any] | None = None) -> Step:
    """Loss, scores and gradients of the last of ``count`` steps without updates by the model's methods as they stand.

    before  called first. Everything is put back: parameters and their .grad, attributes of all modules (results,
    attention weights, ...) and random states.
    """
    with ready_to_step(model):
        if before is not None:
            before()
        parameters = dict(model.named_parameters())  # before the pass: DRAGON registers second names in it
        for number in reversed(range(count)):  # on other batches at first, on this one at last
            loss = own_step(model, torch.stack((batch[0], batch[1].roll(number), batch[2].roll(2 * number))))
        with torch.no_grad():
            scores = model.full_sort_predict([batch[0].unique()[:SCORED_USERS]])
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        return Step(loss.detach(), scores, gradients)


def own_step(model: Any, batch: Tensor) -> Tensor:
    """The loss of a batch by the model's ``calculate_loss``, and its gradients in place of those that were there."""
    model.zero_grad(set_to_none=True)
    losses = model.calculate_loss(batch.clone())
    loss = losses if isinstance(losses, Tensor) else sum(losses)
    loss.sum().backward()
    return loss


@contextmanager
def ready_to_step(model: Any) -> Iterator[None]:
    """Inside the block the model can step as at an epoch's beginning; afterwards it is as it was."""
    with preserved(model), usable_on_cpu(model):
        if not hasattr(model, "epoch_user_graph") and hasattr(model, "pre_epoch_processing"):
            model.pre_epoch_processing()  # draws user graphs, prunes edges, ...
        yield


def last_digit_changed(model: nn.Module, seed: int = 0) -> Callable[[], None]:
    """Changes each parameter by the rounding of its numbers, up or down: what a number of the step moves by then, its
    own rounding may move it by."""

    def change() -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and parameter.layout == torch.strided:
                    signs = torch.rand(parameter.shape, generator=generator).sub_(0.5).sign_().to(parameter)
                    parameter.add_(parameter * signs, alpha=torch.finfo(parameter.dtype).eps)

    return change


def differences(own: Step, other: Step, own_changed: Step | None = None) -> Iterator[Difference]:
    """Loss, then scores, then each parameter's gradient, in the model's order.

    own_changed  the own step with parameters changed in their last digit: what that moves is allowed to differ, too
    """
    fine = own.loss.dtype == own.scores.dtype == torch.float64
    tolerances = TOLERANCES[torch.float64 if fine else torch.float32]
    values = f"{own.loss.sum().item():.8g} by the model's own methods, {other.loss.sum().item():.8g} accelerated"
    others, changed = other.named(), own_changed.named() if own_changed else {}
    for what, value in own.named().items():
        tolerance = tolerances[what.partition(" ")[0]]
        if own_changed is not None:
            moved = _difference(what, value, changed[what], tolerance).relative
            tolerance = max(tolerance, TIMES_OWN_ROUNDING * moved)
        yield _difference(what, value, others[what], tolerance, values if what == "loss" else "")


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
