"""Tensors stacked to be added up: the stack is not written."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from mmrec_helpers.mmrec.deferred import Deferred

_SUM, _MEAN = {torch.sum, Tensor.sum}, {torch.mean, Tensor.mean}


class Stacked(Deferred):
    """``torch.stack(parts, dim)``. Their sum or mean is computed without it.

    note  is told when it was not written
    """

    parts: tuple[Tensor, ...]
    dimension: int
    note: Callable[[str], None]

    @classmethod
    def from_parts(cls, parts: Sequence[Tensor], dim: int, note: Callable[[str], None]) -> Any:
        """parts: of one shape and type, one of which requires a gradient; dim: from 0"""
        shape = (*parts[0].shape[:dim], len(parts), *parts[0].shape[dim:])
        source = next(part for part in parts if part.requires_grad)
        stacked = cls.of(shape, source, partial(torch.stack, tuple(parts), dim), "tensors were stacked", tuple(parts))
        stacked.parts, stacked.dimension, stacked.note = tuple(parts), dim, note
        return stacked

    @classmethod
    def without_writing(cls, func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        """The sum or mean over the dimension of the stack."""
        if func not in _SUM | _MEAN or not args or not Stacked.is_open(args[0]):
            return None
        stacked, named = args[0], dict(zip(("dim", "keepdim"), args[1:])) | kwargs
        if len(args) > 3 or not named.keys() <= {"dim", "keepdim"} or named.get("keepdim"):
            return None
        if named.get("dim") not in (stacked.dimension, stacked.dimension - stacked.dim()):
            return None
        stacked.check()
        stacked.note("stack")
        total = reduce(torch.add, stacked.parts)
        return total / len(stacked.parts) if func in _MEAN else total
