"""MMRec's Adam as one kernel a step, for the models whose optimizer steps have been accelerated; and no optimizer may
train what their steps give no gradient any more.

MMRec's trainer makes its optimizer after the model. So a hook looks at each optimizer once, at its first step: torch's
Adam over parameters of an accelerated model on a CPU becomes ``fused``, the same formula in one pass over memory in
place of some ten. It rounds a little otherwise: after 20 steps 99 % of the numbers are the same, and the others are as
near to the same steps in float64 (tests/test_accelerate_any.py).
"""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmrec_helpers.config import InputError

_models: weakref.WeakKeyDictionary[nn.Module, list[Tensor]] = weakref.WeakKeyDictionary()  # with what gets no gradient
_seen: weakref.WeakKeyDictionary[torch.optim.Optimizer, bool] = weakref.WeakKeyDictionary()  # whether it was switched


def fuse_adam_of(model: nn.Module, untrained: Sequence[Tensor] = ()) -> None:
    """Let the Adam that trains this model be fused from its next step on: ``fuse_adam_of(model)``.

    untrained  the first step of an optimizer that is given one of these raises InputError
    """
    if not _hooked:
        _hooked.append(register_optimizer_step_pre_hook(_look))
    _models[model] = list(untrained)
    _seen.clear()  # one that has stepped before is looked at again


def leave_adam_of(model: nn.Module) -> None:
    """Undo ``fuse_adam_of``."""
    _models.pop(model, None)
    for optimizer, switched in list(_seen.items()):
        if switched and not any(_trains(optimizer, other.parameters()) for other in _models):
            for group in optimizer.param_groups:
                group["fused"] = None
    _seen.clear()


_hooked: list[Any] = []


def _look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if optimizer in _seen:
        return
    for model, untrained in _models.items():
        if _trains(optimizer, untrained):
            raise InputError(
                f"the optimizer trains a tensor that is no parameter of {type(model).__name__}, and accelerate has "
                "left its gradient out: register it as a parameter before, or give it model.parameters() alone"
            )
    ours = any(_trains(optimizer, model.parameters()) for model in _models)
    _seen[optimizer] = type(optimizer) is torch.optim.Adam and ours
    if _seen[optimizer]:
        for group in optimizer.param_groups:
            if can_be_fused(group):
                group["fused"] = True


def can_be_fused(group: dict[str, Any]) -> bool:
    """Whether torch has a fused Adam for a group of parameters on the CPU, and nothing else was asked for."""
    asked = any(group.get(name) for name in ("fused", "foreach", "capturable", "differentiable"))
    return not asked and all(p.device.type == "cpu" and p.is_floating_point() for p in group["params"])


def _trains(optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor]) -> bool:
    own = {id(tensor) for tensor in tensors}
    return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])
