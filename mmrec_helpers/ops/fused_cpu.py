"""The fused CPU backend: one pass over a user's items does all routing iterations and the final attention.

Nothing of size E x d is allocated: forward keeps the E attention weights in both directions, and backward recomputes
the routing. No atomic operations: with the same inputs and number of threads, results are bitwise the same. Threads: as
many as ``torch.get_num_threads()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec_helpers.config import InputError, check_at_least, choose
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops.fused_cpu_kernels import attention_kernels, propagation_kernels
from mmrec_helpers.ops.fused_cpu_threads import row_ranges, run_on_threads

_PARTS_PER_THREAD = 4  # ranges of rows that a thread takes one after another, so that none waits long for the others
_MOST_PRIVATE_COPIES = 16  # of the features' gradient, which threads sum into separately


@dataclass(frozen=True)
class _Arrays:
    """The graph as NumPy arrays, and what the kernels need to know of it."""

    n_users: int
    n_items: int
    n_edges: int
    user_ptr: np.ndarray
    edge_item: np.ndarray
    item_ptr: np.ndarray
    item_user: np.ndarray
    item_edge: np.ndarray
    longest_user: int
    longest_item: int

    @classmethod
    def of(cls, graph: BipartiteGraph) -> _Arrays:
        names = ("user_ptr", "edge_item", "item_ptr", "item_user", "item_edge")
        return cls(
            n_users=graph.n_users,
            n_items=graph.n_items,
            n_edges=graph.n_edges,
            **{name: getattr(graph, name).contiguous().numpy() for name in names},
            longest_user=_longest(graph.user_ptr.numpy()),
            longest_item=_longest(graph.item_ptr.numpy()),
        )


def _longest(pointer: np.ndarray) -> int:
    return int(np.diff(pointer).max(initial=0))


def _over_rows(kernel, pointer: np.ndarray, *arguments) -> None:
    """Run kernel(first, last, *arguments) over all rows of a CSR, in ranges of about equal work."""
    ranges = row_ranges(pointer, torch.get_num_threads() * _PARTS_PER_THREAD)
    run_on_threads([partial(kernel, a, b, *arguments) for a, b in ranges])


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _same_float(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one type: float64 if any is, else float32. Half precision is widened, inside autocast too."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return [tensor.to(dtype).contiguous() for tensor in tensors]


class _AttentionBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, preference, features, arrays, iterations):
        g, kernels = arrays, attention_kernels(features.shape[1])
        user_out, item_out = torch.empty_like(preference), torch.empty_like(features)
        to_item, to_user = features.new_empty(g.n_edges), features.new_empty(g.n_edges)
        routed, logits = torch.empty_like(preference), torch.empty_like(to_user)
        p, f, z_u, z_i, a_i, a_u, r, s = _numpy(
            preference, features, user_out, item_out, to_item, to_user, routed, logits
        )
        users = (g.longest_user, g.user_ptr, g.edge_item, p, f, iterations, r, z_u, s, a_u)
        items = (g.longest_item, g.item_ptr, g.item_user, g.item_edge, r, f, s, z_i, a_i)
        _over_rows(kernels.users_forward, g.user_ptr, *users)
        _over_rows(kernels.items_forward, g.item_ptr, *items)
        ctx.arrays, ctx.iterations = arrays, iterations
        ctx.save_for_backward(preference, features, item_out, to_item, to_user)
        return user_out, item_out, to_item, to_user

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_user_out, grad_item_out, grad_to_item, grad_to_user):
        preference, features, item_out, to_item, to_user = ctx.saved_tensors
        g, kernels = ctx.arrays, attention_kernels(features.shape[1])
        p, f, z_i, a_i, a_u, g_u, g_i, g_ai, g_au = _numpy(
            preference, features, item_out, to_item, to_user, grad_user_out, grad_item_out, grad_to_item, grad_to_user
        )
        (delta,) = _numpy(features.new_empty(g.n_items))
        _over_rows(kernels.items_backward, g.item_ptr, g.item_ptr, g.item_edge, f, z_i, a_i, g_i, g_ai, delta)
        ranges = row_ranges(g.user_ptr, min(torch.get_num_threads(), _MOST_PRIVATE_COPIES))
        grad_preference = torch.empty_like(preference)
        grad_features = [torch.empty_like(features) for _ in ranges]  # summed into separately, then together
        d_p, *copies = _numpy(grad_preference, *grad_features)
        inputs = (g.longest_user, g.user_ptr, g.edge_item, p, f, ctx.iterations, a_i, a_u, g_u, g_i, g_ai, g_au, delta)

        def sum_one_range(number: int) -> None:
            copies[number][:] = g_i if number == 0 else 0
            kernels.users_backward(*ranges[number], *inputs, d_p, copies[number])

        run_on_threads([partial(sum_one_range, number) for number in range(len(ranges))])
        _sum_into_first(copies)
        return grad_preference, grad_features[0], None, None


def _sum_into_first(copies: list[np.ndarray]) -> None:
    """Add all other arrays to the first, always in the same order."""

    def add(rows: slice) -> None:
        for copy in copies[1:]:
            copies[0][rows] += copy[rows]

    bounds = np.linspace(0, len(copies[0]), len(copies) + 1, dtype=int)
    run_on_threads([partial(add, slice(a, b)) for a, b in pairwise(bounds)])


class _WeightedPropagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, to_item, to_user, arrays):
        out = torch.empty_like(x)
        _propagate(arrays, *_numpy(x, to_item, to_user, out))
        ctx.arrays = arrays
        ctx.save_for_backward(x, to_item, to_user)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, to_item, to_user = ctx.saved_tensors
        g = ctx.arrays
        grad_x, grad_to_item, grad_to_user = torch.empty_like(x), torch.empty_like(to_item), torch.empty_like(to_user)
        v, w_i, w_u, g_out, g_x, g_i, g_u = _numpy(x, to_item, to_user, grad_out, grad_x, grad_to_item, grad_to_user)
        _propagate(g, g_out, w_u, w_i, g_x)  # the transposed operator: each edge's weights change places
        kernel, n = propagation_kernels(x.shape[1]).edge_gradients, g.n_users
        rows = (v[:n], v[n:], g_out[:n], g_out[n:])
        _over_rows(kernel, g.user_ptr, g.longest_user, g.user_ptr, g.edge_item, *rows, g_i, g_u)
        return grad_x, grad_to_item, grad_to_user, None


def _propagate(g: _Arrays, x: np.ndarray, to_item: np.ndarray, to_user: np.ndarray, out: np.ndarray) -> None:
    kernel, n = propagation_kernels(x.shape[1]).weighted_rows, g.n_users
    users = (g.longest_user, g.user_ptr, g.edge_item, None, to_user, x[n:], out[:n])
    items = (g.longest_item, g.item_ptr, g.item_user, g.item_edge, to_item, x[:n], out[n:])
    _over_rows(kernel, g.user_ptr, *users)
    _over_rows(kernel, g.item_ptr, *items)


class _SparseProduct(torch.autograd.Function):
    """Product of a CSR matrix, as (pointer, column, value) arrays, with dense rows; `transposed` is for backward."""

    @staticmethod
    def forward(ctx, x, matrix, transposed):
        ctx.transposed = transposed
        return _product(matrix, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        return _product(ctx.transposed, grad_out), None, None


def _product(matrix: tuple[np.ndarray, np.ndarray, np.ndarray], x: Tensor) -> Tensor:
    pointer, column, value = matrix
    out = x.new_empty(len(pointer) - 1, x.shape[1])
    table, rows = _numpy(x, out)
    kernel = propagation_kernels(x.shape[1]).weighted_rows
    _over_rows(kernel, pointer, _longest(pointer), pointer, column, None, value, table, rows)
    return out


def _csr_arrays(matrix: Tensor, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(_numpy(matrix.crow_indices().long(), matrix.col_indices().long(), matrix.values().to(dtype)))


def _normalized_adjacency(graph: BipartiteGraph, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The symmetric (N, N) matrix with 1 / sqrt(deg(u) deg(i)) for every edge, both ways, as CSR arrays."""
    degree = torch.cat([graph.user_degree, graph.item_degree]).to(torch.float64)
    weight = (degree[graph.edge_user] * degree[graph.n_users + graph.edge_item]).rsqrt()
    pointer = torch.cat([graph.user_ptr, graph.n_edges + graph.item_ptr[1:]])
    column = torch.cat([graph.n_users + graph.edge_item, graph.item_user])
    return tuple(_numpy(pointer, column, torch.cat([weight, weight[graph.item_edge]]).to(dtype)))


class FusedCpuOps:
    """Attention and propagation over one bipartite graph, fused, on the CPU.

    Gradients reach every floating-point tensor but the values of a sparse matrix. Half-precision inputs, inside
    autocast or not, are computed and returned in float32; float64 stays float64.
    """

    def __init__(self, graph: BipartiteGraph):
        if graph.user_ptr.device.type != "cpu":
            raise InputError(f"fused CPU backend: the graph is on {graph.user_ptr.device}: expected cpu")
        self.graph = graph
        self._arrays = _Arrays.of(graph)
        self._normalized: dict[torch.dtype, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def attention_block(
        self, preference: Tensor, features: Tensor, iterations: int, routing: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The content branch of one modality: routing, then attention over both directions of every edge.

        preference (U, d), features (I, d). With routing "live", ``iterations`` times
            p_u <- normalize(p_u + sum_i softmax_i(<p_u, f_i>) f_i)       over the user's items;
        with "as_shipped" the iterations change nothing (for rows of unit length) and are skipped. Then
            user_out_u = p_u + sum_i alpha_to_user f_i                    alpha_to_user: softmax over the user's items
            item_out_i = f_i + sum_u alpha_to_item p_u                    alpha_to_item: softmax over the item's users
        of the same logits <p_u, f_i>. Returns user_out (U, d), item_out (I, d), alpha_to_item (E,), alpha_to_user (E,).
        The softmax subtracts each row's maximum, so rows need not have unit length for "live".
        """
        choose("routing", routing, ("as_shipped", "live"))
        check_at_least("routing", 0, iterations=iterations)
        self._check_rows("preference", preference, self.graph.n_users)
        self._check_rows("features", features, self.graph.n_items, preference.shape[1])
        preference, features = _same_float(preference, features)
        return _AttentionBlock.apply(preference, features, self._arrays, int(iterations) if routing == "live" else 0)

    def weighted_propagate(self, x: Tensor, weight_to_item: Tensor, weight_to_user: Tensor) -> Tensor:
        """Sum over neighbours in both directions, with a weight for each.

        x (N, d), weights (E,) in the graph's edge order. Row u: sum of weight_to_user[e] x[U + i] over the user's
        edges; row U + i: sum of weight_to_item[e] x[u] over the item's edges. Returns (N, d).
        """
        self._check_rows("x", x, self.graph.n_nodes)
        for name, weight in (("weight_to_item", weight_to_item), ("weight_to_user", weight_to_user)):
            if weight.shape != (self.graph.n_edges,):
                raise InputError(f"{name} has shape {tuple(weight.shape)}: expected ({self.graph.n_edges},)")
        return _WeightedPropagate.apply(*_same_float(x, weight_to_item, weight_to_user), self._arrays)

    def normalized_propagate(self, x: Tensor) -> Tensor:
        """Sum over both directions of x[source] / sqrt(deg(source) deg(target)). x (N, d); returns (N, d)."""
        self._check_rows("x", x, self.graph.n_nodes)
        (x,) = _same_float(x)
        if x.dtype not in self._normalized:
            self._normalized[x.dtype] = _normalized_adjacency(self.graph, x.dtype)
        matrix = self._normalized[x.dtype]
        return _SparseProduct.apply(x, matrix, matrix)  # symmetric: its own transpose

    def sparse_product(self, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        """matrix @ x for a sparse CSR tensor (rows, columns) and x (columns, d); backward uses ``transposed``.

        ``transposed`` is the transpose of ``matrix``, also as sparse CSR (the caller makes it once). No gradient
        reaches the values of the matrix.
        """
        self._check_rows("x", x, matrix.shape[1])
        if transposed.shape != matrix.shape[::-1]:
            raise InputError(f"transposed has shape {tuple(transposed.shape)}: expected {tuple(matrix.shape[::-1])}")
        (x,) = _same_float(x)
        return _SparseProduct.apply(x, _csr_arrays(matrix, x.dtype), _csr_arrays(transposed, x.dtype))

    @staticmethod
    def _check_rows(name: str, x: Tensor, rows: int, width: int | None = None) -> None:
        if x.ndim != 2 or x.shape[0] != rows or (width is not None and x.shape[1] != width):
            expected = f"({rows}, {'width' if width is None else width})"
            raise InputError(f"{name} has shape {tuple(x.shape)}: expected {expected}")
        if x.device.type != "cpu":
            raise InputError(f"{name} is on {x.device}: the fused CPU backend expects cpu")
