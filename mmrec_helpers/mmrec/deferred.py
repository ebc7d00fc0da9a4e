"""Tensors that are not computed until somebody needs them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mmrec_helpers.config import InputError

# What asks about a tensor without its numbers.
ABOUT = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad")}
ABOUT |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}


class _StandIn(torch.autograd.Function):
    """nan in place of numbers. It has no gradient: who computed with it did so behind torch's functions."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, shape: tuple[int, ...]) -> Tensor:
        return source.new_full((), float("nan")).expand(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise InputError(
            "a tensor that is computed only where it is needed reached code that accelerate cannot follow (an "
            "autograd.Function, TorchScript): train this model without it"
        )


class Deferred(Tensor):
    """A tensor of which shape, type and device are known, and whose numbers are computed once any torch function but
    those that ask for these is given it. What stands in the tensor itself is nan.

        model.result = Deferred.of((n, 2 * d), left, lambda: torch.cat((left, right), dim=1))
    """

    write: Callable[[], Tensor]
    written: Tensor | None

    @classmethod
    def of(cls, shape: tuple[int, ...], source: Tensor, write: Callable[[], Tensor]) -> "Deferred":
        """source: a tensor of the same type and device, which requires a gradient if the numbers will"""
        deferred = _StandIn.apply(source, shape).as_subclass(cls)
        deferred.write, deferred.written = write, None
        return deferred

    def written_out(self) -> Tensor:
        """The numbers as a plain tensor, with the gradient that they have where autograd is at work."""
        if self.written is None:
            with torch.inference_mode(False), torch.set_grad_enabled(self.requires_grad):
                self.written = self.write()
            del self.write  # and what it holds
        return self.written

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        args, kwargs = tree_map_only(Deferred, Deferred.written_out, (args, kwargs))
        return func(*args, **kwargs)
