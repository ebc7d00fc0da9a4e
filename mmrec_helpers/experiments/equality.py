"""Whether two models compute the same: output, loss and gradients from the same parameters on the same batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrec_helpers.models import Recommender

EXACT = 1e-10  # the largest relative difference in float64 that counts as rounding
EXACT_FLOAT32 = 1e-4  # and in float32, where something runs in that alone


@dataclass(frozen=True)
class Result:
    """output (N, width), loss (scalar), and the gradients by name of parameter."""

    output: Tensor
    loss: Tensor
    gradients: Mapping[str, Tensor]


def result_of(model: Recommender, batch: Tensor, with_loss: Recommender | None = None) -> Result:
    """Output, loss and gradients of a model on a batch (3, B); it keeps no gradients.

    with_loss  the module whose ``loss`` is called, where that is another one (a compiled model)
    """
    caller = model if with_loss is None else with_loss
    output = model.representation().detach()
    caller.zero_grad(set_to_none=True)
    loss = caller.loss(batch)
    loss.backward()
    named = ((name.removeprefix("_orig_mod."), p) for name, p in caller.named_parameters())
    gradients = {name: p.grad for name, p in named if p.grad is not None}
    caller.zero_grad(set_to_none=True)
    return Result(output, loss.detach(), gradients)


def relative_differences(result: Result, base: Result) -> dict[str, float]:
    """output_difference, loss_difference, gradient_difference: the largest one over the base's largest value (of
    gradients: parameter by parameter).

        relative_differences(result_of(fast, batch), result_of(slow, batch))
    """
    return {name: max(_relative(a, b) for a, b in pairs) for name, pairs in _pairs(result, base).items()}


def absolute_differences(result: Result, base: Result) -> dict[str, float]:
    """The same three, as the largest absolute difference."""
    return {name: max(float((a - b).abs().max()) for a, b in pairs) for name, pairs in _pairs(result, base).items()}


def _pairs(result: Result, base: Result) -> dict[str, list[tuple[Tensor, Tensor]]]:
    gradients = [
        (result.gradients.get(name, torch.zeros_like(gradient)), gradient) for name, gradient in base.gradients.items()
    ]
    return {
        "output_difference": [(result.output, base.output)],
        "loss_difference": [(result.loss, base.loss)],
        "gradient_difference": gradients,
    }


def _relative(value: Tensor, base: Tensor) -> float:
    return float((value - base).abs().max() / base.abs().max().clamp_min(torch.finfo(base.dtype).tiny))
