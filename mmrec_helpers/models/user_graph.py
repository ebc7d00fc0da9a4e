"""DRAGON's user graph: every user linked to the users with most training items in common."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from mmrec_helpers.data import Interactions, cached_arrays
from mmrec_helpers.data.graph import BipartiteGraph

STORED, USED = 200, 40  # neighbours of a user, as in MMRec
BLOCK_BYTES = 256 * 2**20  # of the counts that are in memory at a time
_VERSION = 1  # of the computation below; part of the cache's fingerprint


@dataclass(frozen=True, eq=False)
class UserGraph:
    """Each user's nearest users, most items in common first; equal counts go to the lower user number.

    neighbors  int32 (U, at most 200); 0 where there is none
    counts     int32 (U, at most 200): training items in common; 0 where there is no neighbour
    """

    neighbors: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, data: Interactions) -> UserGraph:
        """The graph of a data set's training interactions, cached under a fingerprint of them."""
        graph = data.graph
        fingerprint = f"{_VERSION} {_edges_digest(graph)} stored={STORED}"
        return cls(**cached_arrays("user-neighbors", fingerprint, lambda: vars(cls.count(graph))))

    @classmethod
    def count(cls, graph: BipartiteGraph, block_bytes: int = BLOCK_BYTES) -> UserGraph:
        """Count the items in common, block by block of users; never holds U x U counts unless they fit a block."""
        n_users = graph.n_users
        ones = np.ones(graph.n_edges, dtype=np.int32)
        indices, offsets = graph.edge_item.numpy().astype(np.int32), graph.user_ptr.numpy().astype(np.int32)
        interactions = csr_array((ones, indices, offsets), shape=(n_users, graph.n_items))
        transposed = interactions.T.tocsr()
        block = max(1, block_bytes // (32 * n_users))  # sparse and dense counts, keys and their order
        parts = [_top_of_block(interactions[at : at + block] @ transposed, at) for at in range(0, n_users, block)]
        return cls(*(np.concatenate([part[which] for part in parts]) for which in (0, 1)))

    def draw(self, generator: np.random.Generator, used: int = USED) -> tuple[Tensor, Tensor]:
        """Neighbours int64 (U, used) and weights float32 (U, used), a softmax over each user's counts.

        A user with fewer neighbours repeats random ones until there are ``used``, each time one of those already
        there, repeats included, as MMRec does. One with none has neighbour 0 with weight 0.
        """
        place = np.tile(np.arange(used), (len(self.counts), 1))  # (U, used): which of the stored ones
        found = np.minimum((self.counts > 0).sum(axis=1), used)  # (U,)
        for column in range(1, used):
            short = np.flatnonzero((found <= column) & (found > 0))
            place[short, column] = place[short, generator.integers(0, column, size=len(short))]
        place[found == 0] = 0
        counts = torch.from_numpy(np.take_along_axis(self.counts, place, axis=1)).float()
        weights = torch.softmax(counts, dim=1) * torch.from_numpy(found > 0).unsqueeze(1)
        return torch.from_numpy(np.take_along_axis(self.neighbors, place, axis=1)).long(), weights


def _top_of_block(counts: csr_array, first_user: int) -> tuple[np.ndarray, np.ndarray]:
    """The stored neighbours and counts of the users of a block, from their counts with all users (block, U)."""
    dense = counts.toarray()
    n_block, n_users = dense.shape
    dense[np.arange(n_block), first_user + np.arange(n_block)] = 0  # nobody is a neighbour of himself
    stored = min(STORED, n_users)
    keys = dense.astype(np.int64) * n_users + (n_users - 1 - np.arange(n_users))  # larger count, then lower number
    top = -np.sort(-np.partition(keys, n_users - stored, axis=1)[:, n_users - stored :], axis=1)
    top_counts = (top // n_users).astype(np.int32)
    neighbors = (n_users - 1 - top % n_users).astype(np.int32)
    return np.where(top_counts > 0, neighbors, 0), top_counts


def _edges_digest(graph: BipartiteGraph) -> str:
    digest = hashlib.sha256(f"{graph.n_users} {graph.n_items}".encode())
    for tensor in (graph.user_ptr, graph.edge_item):
        digest.update(tensor.numpy())
    return digest.hexdigest()
