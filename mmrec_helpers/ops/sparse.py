"""The three operations with torch's sparse CSR tensors: any device, no further dependency.

Both directions of the training graph are one square matrix of N = U + I rows whose pattern is symmetric, so that its
transpose has the same rows and columns and only the two directions' weights change places. Products with it are sparse
times dense, gradients to its entries are inner products sampled at the pattern; nothing of size edges x d is kept.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops.common import GraphOps
from mmrec_helpers.ops.rows import csr, l2_normalize


class ConstantMatrix(nn.Module):
    """A matrix that gets no gradient, and its transpose, for ``GraphOps.sparse_product``.

    Kept as plain buffers (not in ``state_dict``), since a CSR tensor can neither be copied deeply nor saved.
    """

    def __init__(self, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        """indices int64 (2, n), values (n,). Entries with the same place stay apart; products count their sum."""
        super().__init__()
        self.shape = shape
        for side, places, size in (("", indices, shape), ("t_", indices.flip(0), shape[::-1])):
            for name, part in zip(("pointer", "column", "value"), _csr_parts(places, values, size), strict=True):
                self.register_buffer(side + name, part, persistent=False)

    def pair(self) -> tuple[Tensor, Tensor]:
        """The matrix and its transpose as sparse CSR tensors, made without copying."""
        pointer, column, value, t_pointer, t_column, t_value = self.buffers()
        matrix = csr(pointer, column, value, self.shape)
        return matrix, csr(t_pointer, t_column, t_value, self.shape[::-1])


def _csr_parts(indices: Tensor, values: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.argsort(indices[0] * shape[1] + indices[1], stable=True)  # by row, then by column
    counts = torch.bincount(indices[0], minlength=shape[0])
    return torch.cat((counts.new_zeros(1), counts.cumsum(0))), indices[1, order], values[order]


def _narrow(pointer: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets and columns in int32, which MKL and cuSPARSE take as it is, unless there are too many entries."""
    fits = column.numel() <= torch.iinfo(torch.int32).max
    return (pointer.int(), column.int()) if fits else (pointer, column)


class _Pattern:
    """Where a matrix (rows, columns) has entries, and the same of its transpose.

    ``order``: place in this matrix of each entry of the transpose.
    """

    def __init__(self, pointer, column, t_pointer, t_column, order, shape: tuple[int, int]) -> None:
        self.pointer, self.column = _narrow(pointer, column)
        self.t_pointer, self.t_column = _narrow(t_pointer, t_column)
        self.order, self.shape = order, shape

    def product(self, value: Tensor, x: Tensor) -> Tensor:
        """(rows, d): the matrix with entries ``value`` times x (columns, d)."""
        return csr(self.pointer, self.column, value, self.shape) @ x

    def transposed_product(self, value: Tensor, x: Tensor) -> Tensor:
        """(columns, d): the transpose of the matrix with entries ``value`` times x (rows, d)."""
        return csr(self.t_pointer, self.t_column, value.index_select(0, self.order), self.shape[::-1]) @ x

    def inner_products(self, left: Tensor, right: Tensor) -> Tensor:
        """(entries,): <left row, right row> at each place of the pattern. left (rows, d), right (columns, d)."""
        zeros = csr(self.pointer, self.column, left.new_zeros(len(self.column)), self.shape)
        return torch.sparse.sampled_addmm(zeros, left.contiguous(), right.T, beta=0.0).values()


class _Product(torch.autograd.Function):
    """Sparse times dense with gradients to the entries and to the dense rows."""

    @staticmethod
    def forward(ctx, value: Tensor, x: Tensor, pattern: _Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(value, x)
        return pattern.product(value, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        value, x = ctx.saved_tensors
        grad = grad.contiguous()
        to_value = ctx.pattern.inner_products(grad, x) if ctx.needs_input_grad[0] else None
        to_x = ctx.pattern.transposed_product(value, grad) if ctx.needs_input_grad[1] else None
        return to_value, to_x, None


class _InnerProducts(torch.autograd.Function):
    """Inner products of rows at the places of a pattern."""

    @staticmethod
    def forward(ctx, left: Tensor, right: Tensor, pattern: _Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(left, right)
        return pattern.inner_products(left, right)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        left, right = ctx.saved_tensors
        return ctx.pattern.product(grad, right), ctx.pattern.transposed_product(grad, left), None


class SparseOps(GraphOps):
    """The operations by products of torch's sparse matrices."""

    def __init__(self, graph: BipartiteGraph) -> None:
        super().__init__(graph)
        sides = graph.user_ptr, graph.edge_item, graph.item_ptr, graph.item_user
        self._users = _Pattern(*sides, graph.item_edge, (graph.n_users, graph.n_items))  # rows are users
        pointer, column = graph.node_csr()
        place = torch.empty_like(graph.item_edge)  # of each edge among those grouped by item
        place[graph.item_edge] = torch.arange(graph.n_edges, device=place.device)
        order = torch.cat((graph.n_edges + place, graph.item_edge))
        self._nodes = _Pattern(pointer, column, pointer, column, order, (graph.n_nodes, graph.n_nodes))

    def _attend(self, preference, features, iterations):
        """Rows must be of unit length: exp needs no maximum then."""
        with torch.autocast(preference.device.type, enabled=False):
            by_user, by_item = self._groups
            for _ in range(iterations):
                weight = by_user.softmax(_InnerProducts.apply(preference, features, self._users).exp())
                preference = l2_normalize(preference + _Product.apply(weight, features, self._users))
            exponential = _InnerProducts.apply(preference, features, self._users).exp()  # (E,), for both directions
            to_user, to_item = by_user.softmax(exponential), by_item.softmax(exponential)
            x = torch.cat((preference, features))  # (N, d)
            users, items = (x + self._propagate(x, to_item, to_user)).split((self.graph.n_users, self.graph.n_items))
            return users, items, to_item, to_user

    def _propagate(self, x, to_item, to_user):
        with torch.autocast(x.device.type, enabled=False):
            value = torch.cat((to_user, to_item.index_select(0, self.graph.item_edge)))
            return _Product.apply(value, x, self._nodes)

    @staticmethod
    def _prepared(matrix, lasting):
        """Its parts, since a CSR tensor cannot be copied deeply; not as views of it, which torch.compile fails on."""
        pointer, column = matrix.crow_indices(), matrix.col_indices()
        if lasting:
            pointer, column = _narrow(pointer, column)
        return pointer, column, matrix.values().data, matrix.shape

    @staticmethod
    def _product(matrix, x):
        with torch.autocast(x.device.type, enabled=False):
            return csr(*matrix) @ x
