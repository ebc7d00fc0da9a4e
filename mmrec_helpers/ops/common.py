"""What every backend computes on rows and edges besides attention and propagation, by torch expressions.

The fused CPU backend has its own versions of the operations that are defined here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import rows
from mmrec_helpers.ops.rows import EdgeGroups


class CommonOps:
    """To be inherited beside ``weighted_propagate``. U users, I items, N = U + I nodes, E edges, rows of d numbers.

    Half precision is widened to float32. Gradients reach the tables and the weights of edges, never an index.
    """

    graph: BipartiteGraph

    @cached_property
    def _groups(self) -> tuple[EdgeGroups, EdgeGroups]:
        return EdgeGroups.by_user(self.graph), EdgeGroups.by_item(self.graph)

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
        """(n, d): the sum over k of weight[:, k] table[index[:, k]]; see ``rows.weighted_rows``."""
        return rows.weighted_rows(table, index, weight)

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


def _largest(alphas: Sequence[Tensor], confidence: Tensor, sources: EdgeGroups) -> Tensor:
    """alphas (E,) each, confidence (M, nodes) -> (E,)."""
    weights = [alpha * sources.expand_to_edges(confidence[m]) for m, alpha in enumerate(alphas)]
    largest = weights[0]
    for weight in weights[1:]:
        largest = torch.where(weight > largest, weight, largest)
    return torch.relu(largest)
