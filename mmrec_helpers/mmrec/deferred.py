"""Tensors that are not computed until somebody needs them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mmrec_helpers.config import InputError

# What asks about a tensor without its numbers.
_ABOUT = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad")}
_ABOUT |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}


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
    """A tensor of which shape, type and device are known, and whose numbers are written, once, when a torch function is
    given it that does not only ask for these. A subclass may know functions that can do ``without_writing``. What
    stands in the tensor itself is nan.

        model.result = Deferred.of((n, 2 * d), left, partial(torch.cat, (left, right), dim=1))
    """

    write: Callable[[], Tensor]
    written: Tensor | None
    check: Callable[[], None]

    @classmethod
    def of(
        cls, shape: tuple[int, ...], source: Tensor, write: Callable[[], Tensor], what: str = "", parts: Any = ()
    ) -> Any:
        """
        source  a tensor of the same type and device, which requires a gradient if the numbers will
        write   computes the numbers
        what    was done to ``parts``, tensors, for messages: these may not be changed in place before it is written
        """
        deferred = _StandIn.apply(source, shape).as_subclass(cls)
        deferred.write, deferred.written = write, None
        deferred.check = partial(_check_unchanged, what, parts, [part._version for part in parts])
        return deferred

    def written_out(self) -> Tensor:
        """The numbers as a plain tensor, with the gradient that they have where autograd is at work."""
        if self.written is None:
            self.check()
            with torch.inference_mode(False), torch.set_grad_enabled(self.requires_grad):
                self.written = self.write()
            del self.write  # and what it holds
        return self.written

    @classmethod
    def without_writing(cls, func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        """The function of one that is not written yet, where there is a shorter way; else None."""
        return None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        out = cls.without_writing(func, args, kwargs)
        if out is not None:
            return out
        args, kwargs = tree_map_only(Deferred, Deferred.written_out, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def is_open(cls, value: Any) -> bool:
        """Whether a value is one of this class that is not written yet."""
        return isinstance(value, cls) and value.written is None


def _check_unchanged(what: str, tensors: tuple[Tensor, ...], versions: list[int]) -> None:
    if [tensor._version for tensor in tensors] != versions:
        raise InputError(
            f"{what} that were changed in place before the result was used: accelerate cannot follow that; train this "
            "model without it"
        )
