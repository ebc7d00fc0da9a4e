"""The bipartite training graph as compressed sparse rows, from both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class BipartiteGraph:
    """The E training edges between U users and I items, grouped by user and, again, by item.

    An edge's number is its place in the user-grouped order (users ascending, and within a user items ascending), so
    that whatever is stored per edge is contiguous for a user. Items are counted from 0. All tensors are int64.

    user_ptr    (n_users + 1,)  edges user_ptr[u]:user_ptr[u + 1] belong to user u
    edge_item   (E,)            the item of each edge
    edge_user   (E,)            the user of each edge
    item_ptr    (n_items + 1,)  places item_ptr[i]:item_ptr[i + 1] of the two arrays below belong to item i
    item_user   (E,)            the user at each place, ascending within an item
    item_edge   (E,)            the number of the edge at each place
    """

    n_users: int
    n_items: int
    user_ptr: Tensor
    edge_item: Tensor
    edge_user: Tensor
    item_ptr: Tensor
    item_user: Tensor
    item_edge: Tensor

    @classmethod
    def from_pairs(cls, pairs: np.ndarray, n_users: int, n_items: int) -> BipartiteGraph:
        """Build the graph from an integer array (2, E) of users and items, in any order, without duplicates."""
        users, items = np.asarray(pairs, dtype=np.int64)
        by_user = np.argsort(users * n_items + items, kind="stable")
        users, items = users[by_user], items[by_user]
        by_item = np.argsort(items, kind="stable")  # users stay ascending within an item
        return cls(
            n_users=n_users,
            n_items=n_items,
            user_ptr=_offsets(users, n_users),
            edge_item=torch.from_numpy(items),
            edge_user=torch.from_numpy(users),
            item_ptr=_offsets(items, n_items),
            item_user=torch.from_numpy(users[by_item]),
            item_edge=torch.from_numpy(by_item.astype(np.int64)),
        )

    @property
    def n_edges(self) -> int:
        return self.edge_item.numel()

    @property
    def n_nodes(self) -> int:
        return self.n_users + self.n_items

    @property
    def user_degree(self) -> Tensor:  # (n_users,)
        return self.user_ptr.diff()

    @property
    def item_degree(self) -> Tensor:  # (n_items,)
        return self.item_ptr.diff()

    def node_csr(self) -> tuple[Tensor, Tensor]:
        """Both directions of all edges as one square pattern of N = U + I rows (item i is node U + i), whose transpose
        has the same rows and columns: offsets (N + 1,) and columns (2 E,)."""
        pointer = torch.cat((self.user_ptr, self.n_edges + self.item_ptr[1:]))
        return pointer, torch.cat((self.n_users + self.edge_item, self.item_user))

    def normalized_weights(self, dtype: torch.dtype) -> Tensor:
        """1 / sqrt(deg(u) deg(i)) for each entry of ``node_csr``: (2 E,)."""
        degree = torch.cat((self.user_degree, self.item_degree)).to(torch.float64)
        weight = (degree[self.edge_user] * degree[self.n_users + self.edge_item]).rsqrt()  # (E,)
        return torch.cat((weight, weight[self.item_edge])).to(dtype)

    def to(self, device: torch.device | str) -> BipartiteGraph:
        """The same graph with its tensors on ``device``."""
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return BipartiteGraph(**moved)


def _offsets(sorted_ids: np.ndarray, count: int) -> Tensor:
    counts = np.bincount(sorted_ids, minlength=count)
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
