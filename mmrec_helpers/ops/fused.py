"""What the fused backends for CPU and CUDA share: their operations' meaning, checks of the inputs, and constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrec_helpers.config import InputError, check_at_least, choose
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import ROUTINGS
from mmrec_helpers.ops.common import CommonOps
from mmrec_helpers.ops.rows import ConstantProduct, same_float


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
        """See ``GraphOps``. Softmaxes subtract their row's maximum: rows of any length are right for "live"."""
        choose("routing", routing, ROUTINGS)
        check_at_least("routing", 0, iterations=iterations)
        self._check_rows("preference", preference, self.graph.n_users)
        self._check_rows("features", features, self.graph.n_items, preference.shape[1])
        preference, features = same_float(preference, features)
        return self._attend(preference, features, int(iterations) if routing == "live" else 0)

    def weighted_propagate(self, x: Tensor, weight_to_item: Tensor, weight_to_user: Tensor) -> Tensor:
        """See ``GraphOps``."""
        return self._propagate(*self._checked_propagation(x, weight_to_item, weight_to_user))

    def normalized_propagate(self, x: Tensor) -> Tensor:
        """See ``GraphOps``."""
        self._check_rows("x", x, self.graph.n_nodes)
        (x,) = same_float(x)
        if x.dtype not in self._adjacency:
            weights = self.graph.normalized_weights(x.dtype)
            self._adjacency[x.dtype] = self._constant_matrix(*self.graph.node_csr(), weights)
        matrix = self._adjacency[x.dtype]
        return ConstantProduct.apply(x, self._product, matrix, matrix)  # symmetric: its own transpose

    def sparse_product(self, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        """See ``GraphOps``."""
        self._check_rows("x", x, matrix.shape[1])
        if transposed.shape != matrix.shape[::-1]:
            raise InputError(f"transposed has shape {tuple(transposed.shape)}: expected {tuple(matrix.shape[::-1])}")
        (x,) = same_float(x)
        pair = (self._passing_matrix(*_parts(csr, x.dtype)) for csr in (matrix, transposed))
        return ConstantProduct.apply(x, self._product, *pair)

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
        """A matrix as ``_product`` takes it, prepared for many products."""
        raise NotImplementedError

    def _passing_matrix(self, pointer: Tensor, column: Tensor, value: Tensor) -> Any:
        """A matrix as ``_product`` takes it, which may be another in the next step."""
        return self._constant_matrix(pointer, column, value)

    def _product(self, matrix: Any, x: Tensor) -> Tensor:
        """matrix @ x."""
        raise NotImplementedError


def _parts(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return matrix.crow_indices().long(), matrix.col_indices().long(), matrix.values().detach().to(dtype)
