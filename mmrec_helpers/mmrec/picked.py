"""Rows picked by an index, not written out until somebody needs them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mmrec_helpers.config import InputError

MULTIPLY = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
_SUM, _MATMUL = {torch.sum, Tensor.sum}, {torch.matmul, Tensor.matmul, Tensor.__matmul__}
_ABOUT = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad")}
_ABOUT |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}


class _StandIn(torch.autograd.Function):
    """nan in place of rows. It has no gradient: who computed with it did so behind torch's functions."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        return table.new_full((), float("nan")).expand(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise InputError(
            "rows that were picked reached code that accelerate cannot follow (an autograd.Function, TorchScript): "
            "train this model without it"
        )


class Picked(Tensor):
    """Rows of a table that are picked by an index (n, k), times a factor (k, d) if there is one: (n, k, d).

    A product with others and a sum of it, or a weighted sum, are computed without them. Any other function gets them
    written out, once, and from then on all do. What stands in the tensor itself is nan.

    weighted  computes (U, 1, d) sums of rows by constant weights without writing them, or returns None
    note      is told when a sum is computed without writing the rows
    """

    table: Tensor
    rows: Tensor
    factor: Tensor | None
    weighted: Callable[[Tensor, Tensor, Tensor], Tensor | None]
    note: Callable[[str], None]
    written: Tensor | None
    versions: tuple[int, int]

    @staticmethod
    def of(table: Tensor, index: Tensor, weighted: Any, note: Any, factor: Tensor | None = None) -> "Picked":
        picked = _StandIn.apply(table, (*index.shape, table.shape[1])).as_subclass(Picked)
        picked.table, picked.rows, picked.factor, picked.written = table, index, factor, None
        picked.weighted, picked.note = weighted, note
        picked.versions = table._version, index._version
        return picked

    def check(self) -> None:
        if (self.table._version, self.rows._version) != self.versions:
            raise InputError(
                "rows were picked from a table that was changed in place before they were used: accelerate cannot "
                "follow that; train this model without it"
            )

    def written_out(self) -> Tensor:
        if self.written is None:
            self.check()
            rows = pick(self.table, self.rows)
            self.written = rows if self.factor is None else rows * self.factor
        return self.written

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        out = _without_writing(func, args, kwargs)
        if out is not None:
            return out
        args, kwargs = tree_map_only(Picked, Picked.written_out, (args, kwargs))
        return func(*args, **kwargs)


def _without_writing(func: Any, args: tuple, kwargs: dict) -> Tensor | None:
    """The function of picked rows, computed without them; None if it is none of those that can be."""
    first: Any = args[0]
    second: Any = args[1] if len(args) > 1 else None
    by_rows = func in MULTIPLY and _plain(first) and not kwargs and type(second) is Tensor
    if by_rows and second.dim() == 2 and second.shape == first.shape[1:]:
        return Picked.of(first.table, first.rows, first.weighted, first.note, second)
    if func in _SUM and isinstance(first, Picked) and first.written is None and first.factor is not None:
        return _sum_of_products(first, args, kwargs)
    by_weights = func in _MATMUL and _plain(second) and type(first) is Tensor and not first.requires_grad
    if by_weights and first.dim() == second.dim() == 3:
        second.check()
        return second.weighted(first, second.table, second.rows)
    return None


def _sum_of_products(picked: Picked, args: tuple, kwargs: dict) -> Tensor | None:
    """Over the last dimension, where each row's k are one and the same row of the table: a matrix product."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if len(args) + len(kwargs) != 2 or not kwargs.keys() <= {"dim"} or dim not in (-1, 2):
        return None
    index, factor = picked.rows, picked.factor
    if factor is None or not bool((index == index[:, :1]).all()):
        return None
    picked.check()
    picked.note("sums")
    return pick(picked.table, index[:, 0]) @ factor.T


def _plain(value: Any) -> bool:
    return isinstance(value, Picked) and value.factor is None and value.written is None


def pick(table: Tensor, index: Tensor) -> Tensor:
    """table[index], negative numbers counted from the end; the gradient of a row is the sum over its places."""
    return F.embedding(torch.where(index < 0, index + len(table), index), table)
