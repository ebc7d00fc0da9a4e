"""Tensors in nested structures: found, copied, compared, replaced."""

import copy
import dataclasses
from collections.abc import Callable, Iterable
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
        parts: Iterable[Any] = value.values()
    elif isinstance(value, (tuple, list)):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, entry.name) for entry in dataclasses.fields(value)]
    else:
        return []
    return [tensor for part in parts if not isinstance(part, (int, float, str)) for tensor in tensors_in(part)]


def dense_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that hold a tensor's content: itself, or what a sparse one consists of; none for other layouts."""
    if tensor.layout == torch.strided:
        return (tensor,)
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()


def holds_numbers(value: Any) -> bool:
    """Whether nested tuples, lists and mappings hold a number that is no tensor.

    >>> holds_numbers((torch.ones(1), [2]))
    True
    """
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return isinstance(value, (int, float, complex)) or any(map(holds_numbers, parts))


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
        changed: Any = copy.copy(value)
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
    """Zeros of the tensor's shape and type; other types than floating and complex stay."""
    return in_place_of(tensor, torch.zeros_like(tensor.detach())) if has_scale(tensor) else tensor


def noise(size: float, around: float = 0.0, seed: int = 0) -> Replace:
    """Random numbers of ``size`` times the tensor's own root mean square, added to ``around`` times the tensor. Zeros
    in it stay, unless it is zero everywhere (then of ``size``); so do other types than floating and complex.

    >>> noise(30)(torch.ones(2)).shape
    torch.Size([2])
    """

    def draw(tensor: Tensor) -> Tensor:
        value = tensor.detach()
        if not has_scale(value) or value.layout != torch.strided:
            return tensor
        own = value.abs().float().square().mean().sqrt() if value.numel() else value.new_ones(())
        generator = torch.Generator().manual_seed(seed)  # its own: the model's random numbers stay what they were
        kind = torch.complex64 if value.is_complex() else torch.float32
        drawn = torch.randn(value.shape, generator=generator, dtype=kind).to(value.device, value.dtype)
        drawn = drawn * size * torch.where(own > 0, own, torch.ones_like(own)).to(value.dtype)
        return in_place_of(tensor, value * around + torch.where((value != 0) | (own == 0), drawn, 0))

    return draw


def other_values(tensor: Tensor) -> Tensor:
    """Booleans flipped; integers in reverse order, or where they are all the same one more (0: 1) or one less."""
    value = tensor.detach()
    if has_scale(value) or value.layout != torch.strided or not value.numel():
        return tensor
    if value.dtype == torch.bool:
        return ~value
    turned = value.flatten().flip(0).view_as(value)
    return value + (1 if value.flatten()[0] == 0 else -1) if torch.equal(turned, value) else turned


def has_scale(tensor: Tensor) -> bool:
    """Whether its numbers are floating or complex: ``has_scale(torch.ones(2))``."""
    return tensor.is_floating_point() or tensor.is_complex()


class _InPlaceOf(torch.autograd.Function):
    """Another value that depends on the tensor with gradient zero: who asks for that gradient is not refused."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(gradient), None


def in_place_of(tensor: Tensor, value: Tensor) -> Tensor:
    """``value`` as it can stand where ``tensor`` stood: a parameter for a parameter, attached to what it came from."""
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(value, requires_grad=tensor.requires_grad)
    return _InPlaceOf.apply(tensor, value) if tensor.requires_grad and tensor.layout == torch.strided else value
