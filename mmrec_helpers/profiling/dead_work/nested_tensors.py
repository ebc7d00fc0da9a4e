"""Tensors in nested structures: found, copied, compared, replaced."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Replace = Callable[[Tensor], Tensor]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses.

    >>> tensors_in({"a": [torch.ones(1), 2], "b": (torch.zeros(1),)})
    [tensor([1.]), tensor([0.])]
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, (tuple, list)):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, entry.name) for entry in dataclasses.fields(value)]
    else:
        return []
    return [tensor for part in parts if not isinstance(part, (int, float, str)) for tensor in tensors_in(part)]


def with_tensors(value: Any, replace: Replace) -> Any:
    """The same structure with every tensor replaced; what holds no tensor is passed on as it is.

    >>> with_tensors((torch.ones(2), "kept"), zeros)
    (tensor([0., 0.]), 'kept')
    """
    if isinstance(value, Tensor):
        return replace(value)
    if isinstance(value, tuple):
        parts = [with_tensors(part, replace) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        return type(value)([with_tensors(part, replace) for part in value])
    if isinstance(value, dict):
        changed = copy.copy(value)
        for key, part in value.items():
            changed[key] = with_tensors(part, replace)
        return changed
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = copy.copy(value)
        for entry in dataclasses.fields(value):
            object.__setattr__(changed, entry.name, with_tensors(getattr(value, entry.name), replace))
        return changed
    return value


def copied(batch: Any) -> Any:
    """A batch of its own for each run, since a model may change the one that it is given."""

    def clone(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    holds_tensors = isinstance(batch, Tensor) or bool(tensors_in(batch))
    return with_tensors(batch, clone) if holds_tensors else copy.deepcopy(batch)


def same(left: Tensor, right: Tensor) -> bool:
    """Equal number by number, NaN equal to NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if torch.equal(left, right):
        return True
    return left.is_floating_point() and bool(((left == right) | (left.isnan() & right.isnan())).all())


def zeros(tensor: Tensor) -> Tensor:
    """Zeros of the tensor's shape and type."""
    return torch.zeros_like(tensor.detach())


def noise(tensor: Tensor) -> Tensor:
    """Random numbers of the tensor's own size (of size 1 where it is all zero); integers and booleans stay."""
    if not tensor.is_floating_point():
        return tensor.detach()
    value = tensor.detach()
    size = value.float().pow(2).mean().sqrt() if value.numel() else value.new_ones(())
    generator = torch.Generator().manual_seed(0)  # its own: the model's random numbers stay what they were
    drawn = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
    return drawn * torch.where(size > 0, size, torch.ones_like(size)).to(value.dtype)
