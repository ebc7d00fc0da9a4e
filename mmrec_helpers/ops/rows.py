"""Small operations on dense rows and on edges, each with a backward pass of few passes over memory.

They compute what the usual torch expressions compute, which keep more and pass over their tensors more often.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec_helpers.data.graph import BipartiteGraph

_SHORTEST = 1e-8  # length of a row in a cosine, as in torch.nn.functional.cosine_similarity


def l2_normalize(x: Tensor) -> Tensor:
    """x (..., d) with the last dimension scaled to length 1, as ``torch.nn.functional.normalize`` does (rows shorter
    than 1e-12 are divided by that). Half precision is widened to float32."""
    return _UnitRows.apply(*same_float(x))


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """<x_n, y_n> / (|x_n| |y_n|) of rows x, y (n, d) -> (n,), as ``torch.nn.functional.cosine_similarity`` computes it
    (a length below 1e-8 counts as that, but its derivative is that of the length)."""
    return _Cosine.apply(x, y)


def mean_square(x: Tensor) -> Tensor:
    """The mean of the squares of all elements: a scalar."""
    return _MeanSquare.apply(x)


def same_float(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one type: float64 if any is, else float32. Half precision is widened, inside autocast too."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def csr(pointer: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse CSR tensor of parts that are known to be right, without torch's notice that CSR is in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(pointer, column, value, shape, check_invariants=False)


class ConstantProduct(torch.autograd.Function):
    """``product(matrix, x)`` for a matrix that gets no gradient; its transpose is for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, product: Callable[[Any, Tensor], Tensor], matrix: Any, transposed: Any) -> Tensor:
        ctx.product, ctx.transposed = product, transposed
        return product(matrix, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return ctx.product(ctx.transposed, grad.contiguous()), None, None, None


def padded_rows(indices: Tensor, values: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """The entries of a sparse matrix, indices int64 (2, n) and values (n,), as ``index`` and ``weight`` (n_rows, k) for
    ``GraphOps.weighted_rows``, where k is the largest number of entries in a row; rows with fewer end in weights 0."""
    order = torch.argsort(indices[0], stable=True)
    row, column, value = indices[0, order], indices[1, order], values[order]
    counts = torch.bincount(row, minlength=n_rows)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    index = column.new_zeros(n_rows, int(counts.max()))
    weight = value.new_zeros(index.shape)
    index[row, place], weight[row, place] = column, value
    return index, weight


def top_items(scores: Tensor, k: int) -> Tensor:
    """The k items with the highest scores of each row, best first, equal scores by ascending item number.

    scores (n, n_items) -> (n, min(k, n_items)) int64. ``topk`` alone leaves open which of equal scores it takes.
    """
    n_items = scores.shape[1]
    k = min(k, n_items)
    values, items = scores.topk(min(k + 1, n_items))
    items, at = items.sort(dim=1)
    values, at = values.gather(1, at).sort(dim=1, descending=True, stable=True)
    items = items.gather(1, at)[:, :k]
    if k == n_items:
        return items
    tied = (values[:, k - 1] == values[:, k]).nonzero().flatten()  # rows that had to choose among equal scores
    if tied.numel():
        cutoff = values[tied, k - 1 : k]  # (t, 1)
        descending = torch.arange(n_items, 0, -1, dtype=torch.int32, device=scores.device)  # n_items - item
        equal = torch.where(scores[tied] == cutoff, descending, 0).topk(k).values  # (t, k) lowest item numbers first
        above = (values[tied, :k] > cutoff).sum(1, keepdim=True)
        place = torch.arange(k, device=scores.device) - above  # (t, k) which of the equal ones stands here, if >= 0
        chosen = n_items - equal.long().gather(1, place.clamp(min=0))
        items[tied] = torch.where(place >= 0, chosen, items[tied])
    return items


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        short = length < 1e-12  # there the length is held at 1e-12, so its derivative is 0
        length.clamp_min_(1e-12)
        unit = x / length
        ctx.save_for_backward(unit, length, short)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        unit, length, short = ctx.saved_tensors
        along = (grad * unit).sum(dim=-1, keepdim=True).masked_fill_(short, 0)
        return torch.addcmul(grad, unit, along, value=-1).div_(length)


class _Cosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        lengths = [torch.linalg.vector_norm(rows, dim=1) for rows in (x, y)]
        cosine = torch.linalg.vecdot(x, y)
        for length in lengths:
            cosine /= length.clamp(min=_SHORTEST)
        ctx.save_for_backward(x, y, cosine, *lengths)
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y, cosine, *lengths = ctx.saved_tensors
        sizes = [length.clamp(min=_SHORTEST) for length in lengths]
        across = (grad / (sizes[0] * sizes[1])).unsqueeze(1)
        out: list[Tensor | None] = []
        for needed, own, other, length, size in zip(ctx.needs_input_grad, (x, y), (y, x), lengths, sizes, strict=True):
            along = (grad * cosine / (size * length)).masked_fill_(length == 0, 0).unsqueeze(1)
            out.append(torch.addcmul(across * other, along, own, value=-1) if needed else None)
        return out[0], out[1]


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.linalg.vector_norm(x).square() / x.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (grad * (2 / x.numel()))


@dataclass(frozen=True)
class EdgeGroups:
    """The E edges of a graph, in canonical numbering, grouped by the node at one end.

    pointer  (nodes + 1,)  places pointer[n]:pointer[n + 1] of ``order`` belong to node n
    node     (E,)          the node of each edge
    order    (E,)          the edge at each place; None if edges and places are the same
    """

    pointer: Tensor
    node: Tensor
    order: Tensor | None

    @classmethod
    def by_user(cls, graph: BipartiteGraph) -> EdgeGroups:
        return cls(graph.user_ptr, graph.edge_user, None)

    @classmethod
    def by_item(cls, graph: BipartiteGraph) -> EdgeGroups:
        return cls(graph.item_ptr, graph.edge_item, graph.item_edge)

    def softmax(self, exponential: Tensor) -> Tensor:
        """(E,) positive numbers -> each edge's share of the sum over its group."""
        return _Shares.apply(exponential, self)

    def expand_to_edges(self, values: Tensor) -> Tensor:
        """(nodes,) -> (E,): the value of each edge's node. The gradient is summed without atomics, so that it is the
        same in every run."""
        return _ExpandToEdges.apply(values, self)

    def _take(self, values: Tensor) -> Tensor:
        return values.index_select(0, self.node)

    def _sum(self, values: Tensor) -> Tensor:
        """(E,) -> (nodes,)."""
        placed = values if self.order is None else values.index_select(0, self.order)
        return torch.segment_reduce(placed.contiguous(), "sum", offsets=self.pointer, unsafe=True)


class _Shares(torch.autograd.Function):
    @staticmethod
    def forward(ctx, exponential: Tensor, groups: EdgeGroups) -> Tensor:
        total = groups._take(groups._sum(exponential))  # (E,)
        share = exponential / total
        ctx.groups = groups
        ctx.save_for_backward(share, total)
        return share

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        share, total = ctx.saved_tensors
        mean = ctx.groups._take(ctx.groups._sum(grad * share))
        return (grad - mean).div_(total), None


class _ExpandToEdges(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, groups: EdgeGroups) -> Tensor:
        ctx.groups = groups
        return groups._take(values)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return ctx.groups._sum(grad), None
