"""MMRec's Adam as one kernel a step, for the models whose optimizer steps have been accelerated; and no optimizer may
train what their steps give no gradient any more.

MMRec's trainer makes its optimizer after the model. So a hook looks at each optimizer at its steps: torch's Adam over
parameters of an accelerated model on a CPU becomes ``fused``, the same formula in one pass over memory in place of some
ten. It rounds a little otherwise: after 20 steps 99 % of the numbers are the same, and the others are as near to the
same steps in float64 (tests/test_accelerate_any.py).
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmrec_helpers.config import InputError

# Each model with what gives the ids of the tensors that get no gradient.
_models: weakref.WeakKeyDictionary[nn.Module, Callable[[], set[int]] | None] = weakref.WeakKeyDictionary()
_seen: weakref.WeakKeyDictionary[torch.optim.Optimizer, bool] = weakref.WeakKeyDictionary()  # whether it was switched
_hooked: list[Any] = []


def fuse_adam_of(model: nn.Module, untrained: Callable[[], set[int]] | None = None) -> None:
    """Let the Adam that trains this model be fused from its next step on: ``fuse_adam_of(model)``.

    untrained  gives the ids of tensors: a step of an optimizer that has one of these raises InputError
    """
    if not _hooked:
        _hooked.append(register_optimizer_step_pre_hook(_look))
    _models[model] = untrained
    _seen.clear()  # one that has stepped before is looked at again


def is_watched(model: nn.Module) -> bool:
    return model in _models


def leave_adam_of(model: nn.Module) -> None:
    """Undo ``fuse_adam_of``."""
    _models.pop(model, None)
    for optimizer, switched in list(_seen.items()):
        if switched and not _trained_by(optimizer) & _parameters():
            for group in optimizer.param_groups:
                group["fused"] = None
    _seen.clear()


def _look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for model, untrained in _models.items():
        if untrained is not None and (left_out := untrained()) and left_out & _trained_by(optimizer):
            raise InputError(
                f"the optimizer trains a tensor that is no parameter of {type(model).__name__}, and accelerate has "
                "left its gradient out: register it as a parameter before, or give it model.parameters() alone"
            )
    if optimizer in _seen:
        return
    ours = _parameters()
    _seen[optimizer] = type(optimizer) is torch.optim.Adam and bool(_trained_by(optimizer) & ours)
    if _seen[optimizer]:
        for group in optimizer.param_groups:
            if can_be_fused(group) and all(id(parameter) in ours for parameter in group["params"]):
                group["fused"] = True


def can_be_fused(group: dict[str, Any]) -> bool:
    """Whether torch has a fused Adam for a group of parameters on the CPU, and nothing else was asked for. (It is wrong
    for parameters that are not contiguous.)"""
    asked = any(group.get(name) for name in ("fused", "foreach", "capturable", "differentiable"))
    return not asked and all(
        p.device.type == "cpu" and p.is_floating_point() and p.is_contiguous() for p in group["params"]
    )


def _trained_by(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _parameters() -> set[int]:
    return {id(parameter) for model in _models for parameter in model.parameters()}
