"""Tensors stacked to be added up: the stack is not written."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from mmrec_helpers.mmrec.deferred import ABOUT, Deferred
from mmrec_helpers.mmrec.picked import check_unchanged

_SUM, _MEAN = {torch.sum, Tensor.sum}, {torch.mean, Tensor.mean}


class Stacked(Deferred):
    """``torch.stack(parts, dim)``. Their sum or mean is computed without it; any other function gets it written out.

    note  is told when it was not written
    """

    parts: tuple[Tensor, ...]
    dimension: int
    check: Callable[[], None]
    note: Callable[[str], None]

    @classmethod
    def from_parts(cls, parts: Sequence[Tensor], dim: int, note: Callable[[str], None]) -> Any:
        """parts: of one shape and type, one of which requires a gradient; dim: from 0"""
        shape = (*parts[0].shape[:dim], len(parts), *parts[0].shape[dim:])
        source = next(part for part in parts if part.requires_grad)
        check = partial(check_unchanged, "tensors were stacked", tuple(parts), tuple(part._version for part in parts))
        stacked: Any = cls.of(shape, source, partial(_written, tuple(parts), dim, check))
        stacked.parts, stacked.dimension, stacked.check, stacked.note = tuple(parts), dim, check, note
        return stacked

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = None if func in ABOUT else _added_up(func, args, kwargs or {})
        return super().__torch_function__(func, types, args, kwargs) if out is None else out


def _written(parts: tuple[Tensor, ...], dim: int, check: Callable[[], None]) -> Tensor:
    check()
    return torch.stack(parts, dim)


def _added_up(func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The sum or mean over the dimension of the stack, else None."""
    stacked = args[0] if args else None
    if not isinstance(stacked, Stacked) or stacked.written is not None or func not in _SUM | _MEAN:
        return None
    named = dict(zip(("dim", "keepdim"), args[1:])) | kwargs
    if len(args) > 3 or not named.keys() <= {"dim", "keepdim"} or named.get("keepdim"):
        return None
    if named.get("dim") not in (stacked.dimension, stacked.dimension - stacked.dim()):
        return None
    stacked.check()
    stacked.note("stack")
    total = reduce(torch.add, stacked.parts)
    return total / len(stacked.parts) if func in _MEAN else total
