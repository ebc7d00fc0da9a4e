"""What a backend computes over one training graph: the operations, the checks of their inputs, and what all share."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrec_helpers.config import InputError, check_at_least, choose
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import rows
from mmrec_helpers.ops.rows import ConstantProduct, EdgeGroups, csr, same_float

ROUTINGS = ("as_shipped", "live")  # see models.settings.GrcnOptions


class GraphOps:
    """Attention, propagation, and operations on rows and edges, over one bipartite graph on one device.

    U users, I items, N = U + I nodes (item i is node U + i), E edges in the graph's numbering, rows of d numbers.
    Gradients reach every floating-point tensor but the values of a sparse matrix. Half-precision inputs, inside
    autocast or not, are computed and returned in float32; float64 stays float64. Inputs of another shape or on another
    device raise InputError. The fused backends allocate nothing of size E x d, and their results are bitwise the same
    every time (on the CPU with the same number of threads).

    A backend gives ``_attend``, ``_propagate``, ``_prepared`` and ``_product``, and its own versions of what it has
    faster ones for. The reference does all its own way: PyG's layers, without the checks.
    """

    fused = False  # whether a step runs in kernels of this package, which a CUDA graph can capture

    def __init__(self, graph: BipartiteGraph) -> None:
        self.graph = graph
        self._adjacency: dict[torch.dtype, Any] = {}

    @cached_property
    def _groups(self) -> tuple[EdgeGroups, EdgeGroups]:
        return EdgeGroups.by_user(self.graph), EdgeGroups.by_item(self.graph)

    def attention_block(
        self, preference: Tensor, features: Tensor, iterations: int, routing: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """GRCN's content branch of one modality, from unit rows: preference (U, d) and features (I, d).

        routing "live": ``iterations`` times
            p_u <- normalize(p_u + sum_i softmax_i(<p_u, f_i>) f_i)    over the user's items (messages item to user).
        "as_shipped": the public code's messages go from user to item and the user rows of the result are zero, so the
        loop changes nothing; fast backends skip it. Then one attention over both directions of every edge:
            z_u = p_u + sum_i a_ui f_i    a_ui = softmax of <p_u, f_i> over the user's items (item to user)
            z_i = f_i + sum_u b_iu p_u    b_iu = softmax of <p_u, f_i> over the item's users (user to item)
        Returns z of the users (U, d), z of the items (I, d), b (E,) and a (E,).
        """
        choose("routing", routing, ROUTINGS)
        check_at_least("routing", 0, iterations=iterations)
        self._check_rows("preference", preference, self.graph.n_users)
        self._check_rows("features", features, self.graph.n_items, preference.shape[1])
        preference, features = same_float(preference, features)
        return self._attend(preference, features, int(iterations) if routing == "live" else 0)

    def weighted_propagate(self, x: Tensor, weight_to_item: Tensor, weight_to_user: Tensor) -> Tensor:
        """x (N, d), weights (E,) -> (N, d): item i gets the sum over its edges of weight_to_item[e] x_user(e),
        user u the sum over its edges of weight_to_user[e] x_item(e)."""
        return self._propagate(*self._checked_propagation(x, weight_to_item, weight_to_user))

    def normalized_propagate(self, x: Tensor) -> Tensor:
        """x (N, d) -> (N, d): the sum over both directions of x_source / sqrt(deg_source deg_target)."""
        self._check_rows("x", x, self.graph.n_nodes)
        (x,) = same_float(x)
        if x.dtype not in self._adjacency:
            shape = (self.graph.n_nodes, self.graph.n_nodes)
            adjacency = csr(*self.graph.node_csr(), self.graph.normalized_weights(x.dtype), shape)
            self._adjacency[x.dtype] = self._prepared(adjacency, lasting=True)
        matrix = self._adjacency[x.dtype]
        return ConstantProduct.apply(x, self._product, matrix, matrix)  # symmetric: its own transpose

    def sparse_product(self, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        """matrix @ x for a constant sparse CSR tensor (m, n) and x (n, d); ``transposed``, its transpose as CSR, is
        for the backward pass. No gradient reaches the matrix."""
        self._check_rows("x", x, matrix.shape[1])
        if transposed.shape != matrix.shape[::-1]:
            raise InputError(f"transposed has shape {tuple(transposed.shape)}: expected {tuple(matrix.shape[::-1])}")
        (x,) = same_float(x)
        pair = (self._prepared(one.detach().to(x.dtype), lasting=False) for one in (matrix, transposed))
        return ConstantProduct.apply(x, self._product, *pair)

    def l2_normalize(self, x: Tensor, negative_slope: float = 1.0) -> Tensor:
        """x (n, d) with rows of length 1, as ``torch.nn.functional.normalize`` makes them; numbers below 0 are first
        multiplied by the slope (above 0), as ``leaky_relu`` does."""
        return rows.l2_normalize(x if negative_slope == 1 else F.leaky_relu(x, negative_slope))

    def unit_rows_and_squares(
        self, table: Tensor, picked: Sequence[Tensor | None]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``l2_normalize`` of a table (n, d), and for each of ``picked``, int64 indices, the mean of the squares of
        these rows as they are in the table (None: of all rows): scalars, for a step's penalties."""
        squares = (rows.mean_square(table if some is None else F.embedding(some, table)) for some in picked)
        return rows.l2_normalize(table), tuple(squares)

    def score_differences(self, user_table: Tensor, item_table: Tensor | None, batch: Tensor) -> Tensor:
        """(B,): <u, p - n> for each column of batch, int64 (3, B): a row of ``user_table`` (n, d), and a positive and a
        negative row of ``item_table`` (m, d); None: of ``user_table`` too."""
        items = user_table if item_table is None else item_table
        positive, negative = F.embedding(batch[1:], items)
        return (F.embedding(batch[0], user_table) * (positive - negative)).sum(dim=1)

    def weighted_rows(self, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """(n, d): the sum over k of weight[:, k] table[index[:, k]], from table (rows, d), index and weight (n, k).

        A product with a sparse matrix of k entries per row, of which rows can be picked by indexing ``index`` and
        ``weight`` (``rows.padded_rows`` makes them). No gradient reaches the weights.
        """
        return F.embedding_bag(index, table.contiguous(), per_sample_weights=weight.to(table.dtype), mode="sum")

    def refined_weights(
        self, to_item: Sequence[Tensor], to_user: Sequence[Tensor], confidence: Tensor
    ) -> tuple[Tensor, Tensor]:
        """GRCN's weights of the edges to items (E,) and to users (E,), from those of M modalities, (E,) each, and each
        node's confidence in the modalities (N, M): the largest over the modalities of weight times the confidence of
        the edge's source (of equal ones the first, as ``torch.max`` has it), and not less than 0."""
        by_user, by_item = self._groups
        users, items = confidence.T.contiguous().split((self.graph.n_users, self.graph.n_items), dim=1)
        return _largest(to_item, users, by_user), _largest(to_user, items, by_item)

    def propagate_twice(self, x: Tensor, weight_to_item: Tensor, weight_to_user: Tensor) -> Tensor:
        """x + A x + A A x (N, d), with A x for ``weighted_propagate``."""
        first = self.weighted_propagate(x, weight_to_item, weight_to_user)
        return x + first + self.weighted_propagate(first, weight_to_item, weight_to_user)

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
        """``attention_block`` with live routing, of checked inputs in one type."""
        raise NotImplementedError

    def _propagate(self, x: Tensor, to_item: Tensor, to_user: Tensor) -> Tensor:
        """``weighted_propagate`` of checked inputs in one type."""
        raise NotImplementedError

    @staticmethod
    def _prepared(matrix: Tensor, lasting: bool) -> Any:
        """A sparse CSR tensor as ``_product`` takes it; not ``lasting``: it may be another in the next step."""
        raise NotImplementedError

    @staticmethod
    def _product(matrix: Any, x: Tensor) -> Tensor:
        """matrix @ x."""
        raise NotImplementedError


def _largest(alphas: Sequence[Tensor], confidence: Tensor, sources: EdgeGroups) -> Tensor:
    """alphas (E,) each, confidence (M, nodes) -> (E,)."""
    weights = [alpha * sources.expand_to_edges(confidence[m]) for m, alpha in enumerate(alphas)]
    largest = weights[0]
    for weight in weights[1:]:
        largest = torch.where(weight > largest, weight, largest)
    return torch.relu(largest)
