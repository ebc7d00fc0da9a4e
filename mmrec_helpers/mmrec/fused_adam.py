"""MMRec's Adam as one kernel a step, for the models whose optimizer steps have been accelerated.

MMRec's trainer makes its optimizer after the model. So a hook looks at each optimizer once, at its first step: torch's
Adam over parameters of an accelerated model on a CPU becomes ``fused``, the same formula in one pass over memory in
place of some ten. It rounds a little otherwise: after 20 steps 99 % of the numbers are the same, and the others are as
near to the same steps in float64 (tests/test_accelerate_any.py).
"""

import weakref
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_seen: weakref.WeakKeyDictionary[torch.optim.Optimizer, bool] = weakref.WeakKeyDictionary()  # whether it was switched


def fuse_adam_of(model: nn.Module) -> None:
    """Let the Adam that trains this model be fused from its next step on: ``fuse_adam_of(model)``."""
    if not _hooked:
        _hooked.append(register_optimizer_step_pre_hook(_look))
    _models.add(model)
    _seen.clear()  # one that has stepped before is looked at again


def leave_adam_of(model: nn.Module) -> None:
    """Undo ``fuse_adam_of``."""
    _models.discard(model)
    for optimizer, switched in list(_seen.items()):
        if switched and not any(_trains(optimizer, other) for other in _models):
            for group in optimizer.param_groups:
                group["fused"] = None
    _seen.clear()


_hooked: list[Any] = []


def _look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if optimizer in _seen:
        return
    _seen[optimizer] = type(optimizer) is torch.optim.Adam and any(_trains(optimizer, model) for model in _models)
    if _seen[optimizer]:
        for group in optimizer.param_groups:
            if can_be_fused(group):
                group["fused"] = True


def can_be_fused(group: dict[str, Any]) -> bool:
    """Whether torch has a fused Adam for a group of parameters on the CPU, and nothing else was asked for."""
    asked = any(group.get(name) for name in ("fused", "foreach", "capturable", "differentiable"))
    return not asked and all(p.device.type == "cpu" and p.is_floating_point() for p in group["params"])


def _trains(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    own = {id(parameter) for parameter in model.parameters()}
    return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])
