"""Rows picked by an index, not written out until somebody needs them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrec_helpers.mmrec.deferred import Deferred

MULTIPLY = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
_SUM, _MATMUL = {torch.sum, Tensor.sum}, {torch.matmul, Tensor.matmul, Tensor.__matmul__}


class Picked(Deferred):
    """Rows of a table that are picked by an index (n, k), times a factor (k, d) if there is one: (n, k, d).

    A product with others and a sum of it, or a weighted sum, are computed without them.

    weighted  computes (U, 1, d) sums of rows by constant weights without writing them, or returns None
    note      is told when a sum is computed without writing the rows
    """

    table: Tensor
    rows: Tensor
    factor: Tensor | None
    weighted: Callable[[Tensor, Tensor, Tensor], Tensor | None]
    note: Callable[[str], None]

    @classmethod
    def from_table(cls, table: Tensor, index: Tensor, weighted: Any, note: Any, factor: Tensor | None = None) -> Any:
        shape, write = (*index.shape, table.shape[1]), partial(_written, table, index, factor)
        picked = cls.of(shape, table, write, "rows were picked from tensors", (table, index))
        picked.table, picked.rows, picked.factor = table, index, factor
        picked.weighted, picked.note = weighted, note
        return picked

    @classmethod
    def without_writing(cls, func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        first: Any = args[0] if args else None
        second: Any = args[1] if len(args) > 1 else None
        by_rows = func in MULTIPLY and _plain(first) and not kwargs and type(second) is Tensor
        if by_rows and second.dim() == 2 and second.shape == first.shape[1:]:
            return Picked.from_table(first.table, first.rows, first.weighted, first.note, second)
        if func in _SUM and Picked.is_open(first) and first.factor is not None:
            return _sum_of_products(first, args, kwargs)
        by_weights = func in _MATMUL and _plain(second) and type(first) is Tensor and not first.requires_grad
        if by_weights and first.dim() == second.dim() == 3:
            second.check()
            return second.weighted(first, second.table, second.rows)
        return None


def _written(table: Tensor, index: Tensor, factor: Tensor | None) -> Tensor:
    rows = pick(table, index)
    return rows if factor is None else rows * factor


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
    return Picked.is_open(value) and value.factor is None


def pick(table: Tensor, index: Tensor) -> Tensor:
    """table[index], negative numbers counted from the end; the gradient of a row is the sum over its places."""
    return F.embedding(torch.where(index < 0, index + len(table), index), table)
