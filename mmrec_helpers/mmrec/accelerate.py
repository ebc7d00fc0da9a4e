"""``accelerate``: make an MMRec object fast without changing a number."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_helpers.config import InputError, choose
from mmrec_helpers.mmrec.fast_steps import FastDragon, FastGrcn, FastStep
from mmrec_helpers.mmrec.fused_adam import can_be_fused, fuse_adam_of, leave_adam_of
from mmrec_helpers.mmrec.recognise import METHODS, MODELS, is_mmrec, recognise, training_graph
from mmrec_helpers.mmrec.rewrites import KINDS, Forgetting, Rewrites, Rewritten
from mmrec_helpers.mmrec.step_check import (
    Difference,
    Step,
    differences,
    last_digit_changed,
    make_batch,
    own_step,
    ready_to_step,
    run_steps,
)
from mmrec_helpers.ops import ROUTINGS
from mmrec_helpers.profiling.state import preserved
from mmrec_helpers.profiling.timing import measure

BACKENDS = ("auto", "fused", "sparse")
STEPS = 3  # until constants are known to be constant, and what they give is used
ROUNDS, MOST_SECONDS = 9, 20.0  # of the timing of an own and a rewritten step in turn
LEAST_GAIN = 1.02
OPTIMIZER = "fused Adam"
Used = tuple[tuple[str, tuple[str, ...]], ...]  # kinds of rewrites, each with its lines
EPOCH_METHODS = ("pre_epoch_processing", "post_epoch_processing")  # that MMRec's trainer calls around an epoch


@dataclass(frozen=True)
class Acceleration:
    """What ``accelerate`` did, as ``model.accelerated``.

    model     the name of the model, as recognised, or of its class
    backend   of GRCN and DRAGON "fused" or "sparse", of others "rewrites"; fallback: why it is not the fused one, empty
              if it is or another was asked for
    routing   of GRCN: "as_shipped" or "live"
    checked   what was compared on one batch, with the largest relative difference and the tolerance of each
    rewrites  the fused optimizer, and of others each kind of ``rewrites`` with the lines where it is used
    gain      of others: median of own over rewritten time of a step with its update, measured in turn on one batch
    """

    model: str
    backend: str
    routing: str
    device: str
    checked: tuple[Difference, ...]
    fallback: str = ""
    rewrites: Used = ()
    gain: float | None = None

    def __str__(self) -> str:
        worst = max(self.checked, key=lambda found: found.relative / found.tolerance)
        summary = f"{self.model} accelerated on {self.device}, backend {self.backend}"
        if self.rewrites:
            summary += f" ({', '.join(kind for kind, _ in self.rewrites)})"
        if self.gain is not None:
            summary += f", {self.gain:.2f} times as fast on one batch"
        summary += f"; largest relative difference on one batch: {worst.relative:.1e} ({worst.what}, "
        summary += f"tolerance {worst.tolerance:g})"
        return f"{summary}; {self.fallback}" if self.fallback else summary


def accelerate(
    model: nn.Module, check_batch: Any = None, *, routing: str = "as_shipped", backend: str = "auto"
) -> nn.Module:
    """Make an MMRec object's training step fast; returns the same object.

    GRCN and DRAGON are recognised by their structure, whatever the class is called, and get another ``forward`` and
    ``calculate_loss``, whose results lie where MMRec leaves them. Any other model keeps its code, some operations of
    which are computed another way (``rewrites``). On a CPU the model's Adam is fused. Parameters stay the same objects,
    so the optimizer and checkpoints go on working. Unlike MMRec's own DRAGON, the accelerated one leaves the batch as
    it was.

    check_batch  integers (3, B): users, positive, negative items counted from 0; default: drawn from the model's edges
                 or, where it has none, from all users and items
    routing      of GRCN: "as_shipped", or "live" for a model whose routing loop was changed to reach the users
    backend      of GRCN and DRAGON: "fused", "sparse", or "auto": fused, and where that cannot run sparse, with a
                 warning that says why

    Before it returns, loss, scores and all gradients of that batch are computed both ways. Raises InputError for what
    is no model of MMRec's, for one that would compute something else, naming the first difference, and for one that
    would gain nothing. The model is then as it was. ``restore`` undoes it; ``model.accelerated``, an ``Acceleration``,
    says what was done.

        model = GRCN(config, train_data).to(config["device"])  # as MMRec makes it
        accelerate(model)
    """
    choose("routing", routing, ROUTINGS)
    choose("backend", backend, BACKENDS)
    target = getattr(model, "_orig_mod", model)  # what torch.compile wraps; its calculate_loss is what is called
    if isinstance(target, nn.Module) and "accelerated" in vars(target):
        restore(target)
    try:
        kind = recognise(target)
    except InputError as unknown:
        if not is_mmrec(target) or routing != "as_shipped" or backend != "auto":
            raise
        try:
            _rewrite(target, check_batch)
        except InputError as error:
            if type(target).__name__ not in MODELS:
                raise
            raise InputError(f"{error}. Nor has it the step of MMRec's {' or '.join(MODELS)}: {unknown}") from error
        return model
    if kind == "DRAGON" and routing != "as_shipped":
        raise InputError(f"routing is {routing!r}: DRAGON has no routing, expected it left out")
    _replace(kind, target, check_batch, backend, routing)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Put an accelerated model's own methods back; returns the same object. InputError if it is not accelerated."""
    target = getattr(model, "_orig_mod", model)
    if not isinstance(target, nn.Module) or "accelerated" not in vars(target):
        raise InputError(f"{type(target).__name__} is not accelerated: expected what accelerate returned")
    attributes = vars(target)
    del attributes["accelerated"]
    for name, own in attributes.pop("_before_acceleration").items():
        attributes[name] = own
        if own is None:
            del attributes[name]
    if "result_embed" in target._parameters:
        attributes.pop("result_embed", None)
    leave_adam_of(target)
    return model


# -------------------------------------------------------------------------------- GRCN and DRAGON: steps of our own


def _replace(kind: str, model: Any, check_batch: Any, backend: str, routing: str) -> None:
    device = next(model.parameters()).device
    batch = make_batch(check_batch, model.n_users, model.n_items, training_graph(model), device)
    own = _own_steps(kind, model, batch)
    fast, step, fallback = _fast_step(kind, model, batch, backend, routing)
    fast.loss_shape = own.loss.shape
    hint = "; if its routing loop reaches the users, pass routing='live'"
    checked = _checked(kind, differences(own, step), hint if kind == "GRCN" and routing == "as_shipped" else "")
    vars(model)["_before_acceleration"] = _install(model, {name: getattr(fast, name) for name in METHODS[:2]})
    fused = _fuse_adam(model)
    vars(model)["accelerated"] = Acceleration(kind, fast.backend, routing, str(fast.device), checked, fallback, fused)
    if fallback:
        warnings.warn(fallback, stacklevel=3)


def _own_steps(name: str, model: nn.Module, batch: Tensor, **options: Any) -> Step:
    try:
        return run_steps(model, batch, **options)
    except Exception as error:
        raise InputError(
            f"{name}: its own step fails on one batch, so there is nothing to compare with: "
            f"{type(error).__name__}: {error}"
        ) from error


def _fast_step(kind: str, model: nn.Module, batch: Tensor, backend: str, routing: str) -> tuple[FastStep, Step, str]:
    """The first backend that runs, its step, and why an earlier one does not."""
    fallback = ""
    for name in ("fused", "sparse") if backend == "auto" else (backend,):
        fast = FastGrcn(model, name, routing) if kind == "GRCN" else FastDragon(model, name)
        try:
            with preserved(model):
                _install(model, {name: getattr(fast, name) for name in METHODS[:2]})
                return fast, run_steps(model, batch), fallback
        except Exception as error:
            if name != "fused" or backend != "auto":
                raise
            fallback = f"{kind} accelerated with backend sparse, not fused: {type(error).__name__}: {error}"
    raise AssertionError


def _checked(name: str, found: Any, hint: str = "") -> tuple[Difference, ...]:
    checked = []
    for difference in found:
        checked.append(difference)
        if not difference.within:
            raise InputError(
                f"{name}: it computes something else than MMRec's: {difference}{hint}. The model is left as it was"
            )
    return tuple(checked)


def _takes_fused_adam(model: nn.Module) -> bool:
    return can_be_fused(torch.optim.Adam(model.parameters()).param_groups[0])


def _fuse_adam(model: nn.Module, untrained: Callable[[], set[int]] | None = None) -> Used:
    """Let the model's Adam be fused where it can be; returns that as a rewrite."""
    fuse_adam_of(model, untrained)
    return ((OPTIMIZER, ()),) if _takes_fused_adam(model) else ()


def _install(model: nn.Module, methods: dict[str, Any]) -> dict[str, Any]:
    """Put methods on the object; returns what it had there of its own, None where only its class has one."""
    before = {name: vars(model).get(name) for name in methods}
    vars(model).update(methods)
    return before


# ------------------------------------------------------------------------------------ any other model: its own code


def _rewrite(model: Any, check_batch: Any) -> None:
    name, device = type(model).__name__, next(model.parameters()).device
    batch = make_batch(check_batch, model.n_users, model.n_items, None, device)
    own = _own_steps(name, model, batch, count=STEPS)
    rewrites, step = _rewritten_steps(model, batch, KINDS)
    if not all(found.within for found in differences(own, step)):
        changed = _own_steps(name, model, batch, count=STEPS, before=last_digit_changed(model))
    else:
        changed = None
    checked = _checked(name, differences(own, step, changed))
    gain = _gain(model, batch, rewrites)
    used = [(kind, tuple(sorted(rewrites.used[kind]))) for kind in KINDS if kind in rewrites.used]
    if gain < LEAST_GAIN:
        tried = ", ".join([*(kind for kind, _ in used), *([OPTIMIZER] if _takes_fused_adam(model) else [])])
        raise InputError(
            f"{name} gains nothing: its own step takes {gain:.2f} times the rewritten one's "
            f"({tried or 'nothing to rewrite'}). The model is left as it was"
        )
    vars(model)["_before_acceleration"] = _install(model, _methods(model, rewrites))
    used += _fuse_adam(model, rewrites.untrained_leaves)
    vars(model)["accelerated"] = Acceleration(
        name, "rewrites", "", str(device), checked, rewrites=tuple(used), gain=gain
    )


def _methods(model: nn.Module, rewrites: Rewrites) -> dict[str, Any]:
    epochs = {name: Forgetting(rewrites, getattr(model, name)) for name in EPOCH_METHODS if hasattr(model, name)}
    return epochs | {name: Rewritten(rewrites, getattr(model, name)) for name in METHODS[1:]}


def _rewritten_steps(model: nn.Module, batch: Tensor, kinds: tuple[str, ...]) -> tuple[Rewrites, Step]:
    rewrites = Rewrites(model, kinds)
    rewrites.noting = True
    try:
        with preserved(model):
            _install(model, _methods(model, rewrites))
            return rewrites, run_steps(model, batch, STEPS)
    except Exception as error:
        name = type(model).__name__
        raise InputError(f"{name}: its step cannot be rewritten: {type(error).__name__}: {error}") from error
    finally:
        rewrites.noting = False


def _gain(model: nn.Module, batch: Tensor, rewrites: Rewrites) -> float:
    """Median of own over rewritten time of a step with its update, in turn; the model is left as it was."""
    rewritten, fused = _methods(model, rewrites), _takes_fused_adam(model)
    own = {name: getattr(model, name) for name in rewritten}

    def step(methods: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        _install(model, methods)
        own_step(model, batch)
        optimizer.step()

    with ready_to_step(model):
        plain, one_kernel = (torch.optim.Adam(model.parameters(), lr=1e-9, fused=way) for way in (None, fused or None))
        ways = {
            "own": partial(step, own, plain),
            "rewritten": partial(step, rewritten, one_kernel),
        }
        timings = measure(ways, device=batch.device, repeats=ROUNDS, warmup=1, max_seconds=MOST_SECONDS)
    return timings.ratio("own", "rewritten").median
