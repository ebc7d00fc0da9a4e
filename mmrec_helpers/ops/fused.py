"""What the fused backends for CPU and CUDA share: their operations' meaning, checks of the inputs, and constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrec_helpers.config import InputError, check_at_least, choose
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops.common import CommonOps


class FusedOps(CommonOps):
    """Attention and propagation over one bipartite graph, without anything of size E x d.

    U users, I items, N = U + I nodes (item i is node U + i), E edges in the graph's numbering, rows of d numbers.
    Gradients reach every floating-point tensor but the values of a sparse matrix. Half-precision inputs, inside
    autocast or not, are computed and returned in float32; float64 stays float64. Results are bitwise the same every
    time (on the CPU with the same number of threads). Inputs of another shape or on another device raise InputError.
    """

    def __init__(self, graph: BipartiteGraph):
        self.graph = graph
        self._adjacency: dict[torch.dtype, Any] = {}

    def attention_block(
        self, preference: Tensor, features: Tensor, iterations: int, routing: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The content branch of one modality: routing, then attention over both directions of every edge.

        preference (U, d), features (I, d). With routing "live", ``iterations`` times
            p_u <- normalize(p_u + sum_i softmax_i(<p_u, f_i>) f_i)       over the user's items;
        with "as_shipped" the iterations change nothing for rows of unit length, and are skipped. Then
            user_out_u = p_u + sum_i alpha_to_user f_i                    alpha_to_user: softmax over the user's items
            item_out_i = f_i + sum_u alpha_to_item p_u                    alpha_to_item: softmax over the item's users
        of the same logits <p_u, f_i>. Returns user_out (U, d), item_out (I, d), alpha_to_item (E,), alpha_to_user (E,).
        Softmaxes subtract their row's maximum: rows of any length are right for "live".
        """
        choose("routing", routing, ("as_shipped", "live"))
        check_at_least("routing", 0, iterations=iterations)
        self._check_rows("preference", preference, self.graph.n_users)
        self._check_rows("features", features, self.graph.n_items, preference.shape[1])
        preference, features = same_float(preference, features)
        return self._attend(preference, features, int(iterations) if routing == "live" else 0)

    def weighted_propagate(self, x: Tensor, weight_to_item: Tensor, weight_to_user: Tensor) -> Tensor:
        """Sum over neighbours in both directions, with a weight for each.

        x (N, d), weights (E,). Row u of the result: sum of weight_to_user[e] x[U + i] over the user's edges; row U + i:
        sum of weight_to_item[e] x[u] over the item's edges. Returns (N, d).
        """
        return self._propagate(*self._checked_propagation(x, weight_to_item, weight_to_user))

    def normalized_propagate(self, x: Tensor) -> Tensor:
        """Sum over both directions of x[source] / sqrt(deg(source) deg(target)). x (N, d); returns (N, d)."""
        self._check_rows("x", x, self.graph.n_nodes)
        (x,) = same_float(x)
        if x.dtype not in self._adjacency:
            self._adjacency[x.dtype] = self._constant_matrix(*_normalized_adjacency(self.graph, x.dtype))
        matrix = self._adjacency[x.dtype]
        return self._multiply(x, matrix, matrix)  # symmetric: its own transpose

    def sparse_product(self, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        """matrix @ x for a sparse CSR tensor (m, n) and x (n, d); returns (m, d).

        ``transposed``, the transpose of ``matrix`` as sparse CSR, is for the backward pass. No gradient reaches either.
        """
        self._check_rows("x", x, matrix.shape[1])
        if transposed.shape != matrix.shape[::-1]:
            raise InputError(f"transposed has shape {tuple(transposed.shape)}: expected {tuple(matrix.shape[::-1])}")
        (x,) = same_float(x)
        return self._multiply(x, *(self._passing_matrix(*_parts(csr, x.dtype)) for csr in (matrix, transposed)))

    def _checked_propagation(self, x: Tensor, weight_to_item: Tensor, weight_to_user: Tensor) -> list[Tensor]:
        self._check_rows("x", x, self.graph.n_nodes)
        for name, weight in (("weight_to_item", weight_to_item), ("weight_to_user", weight_to_user)):
            if weight.shape != (self.graph.n_edges,):
                raise InputError(f"{name} has shape {tuple(weight.shape)}: expected ({self.graph.n_edges},)")
        return same_float(x, weight_to_item, weight_to_user)

    def _check_rows(self, name: str, x: Tensor, rows: int, width: int | None = None) -> None:
        if x.ndim != 2 or x.shape[0] != rows or (width is not None and x.shape[1] != width):
            expected = f"({rows}, {'width' if width is None else width})"
            raise InputError(f"{name} has shape {tuple(x.shape)}: expected {expected}")
        if x.device != self.graph.user_ptr.device:
            raise InputError(f"{name} is on {x.device}: the graph is on {self.graph.user_ptr.device}")

    def _attend(self, preference: Tensor, features: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def _propagate(self, x: Tensor, to_item: Tensor, to_user: Tensor) -> Tensor:
        raise NotImplementedError

    def _constant_matrix(self, pointer: Tensor, column: Tensor, value: Tensor) -> Any:
        """A matrix as ``_multiply`` takes it, prepared for many products."""
        raise NotImplementedError

    def _passing_matrix(self, pointer: Tensor, column: Tensor, value: Tensor) -> Any:
        """A matrix as ``_multiply`` takes it, which may be another in the next step."""
        return self._constant_matrix(pointer, column, value)

    def _multiply(self, x: Tensor, matrix: Any, transposed: Any) -> Tensor:
        raise NotImplementedError


def same_float(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one type: float64 if any is, else float32. Half precision is widened, inside autocast too."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def _parts(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return matrix.crow_indices().long(), matrix.col_indices().long(), matrix.values().detach().to(dtype)


def _normalized_adjacency(graph: BipartiteGraph, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """CSR offsets, columns and values of the symmetric (N, N) matrix with 1 / sqrt(deg(u) deg(i)) for every edge."""
    degree = torch.cat([graph.user_degree, graph.item_degree]).to(torch.float64)
    weight = (degree[graph.edge_user] * degree[graph.n_users + graph.edge_item]).rsqrt()
    pointer = torch.cat([graph.user_ptr, graph.n_edges + graph.item_ptr[1:]])
    column = torch.cat([graph.n_users + graph.edge_item, graph.item_user])
    return pointer, column, torch.cat([weight, weight[graph.item_edge]]).to(dtype)
