"""DRAGON's graphs of its own: items linked to the nearest by features, users to those with most items in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.data.cache import Expected, cached_arrays
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops.rows import top_items

STORED, USED = 200, 40  # neighbours of a user, as in MMRec
ITEM_BLOCK_BYTES = 128 * 2**20  # of the block of similarities that is in memory at a time
USER_BLOCK_BYTES = 256 * 2**20  # of the counts that are in memory at a time
_VERSION = 2  # of the computations below; part of the cache's fingerprints


def item_graph(data: Interactions, knn_k: int, visual_weight: float, device: torch.device | str = "cpu") -> Tensor:
    """S = visual_weight S_visual + (1 - visual_weight) S_textual; with one modality, its S alone.

    Entry (i, j) of one modality's S is 1 / sqrt(links of i, links of j), so 1 / knn_k, if j is among the knn_k nearest
    of i, itself included (``nearest_items``). Returns a sparse COO tensor float32 (I, I) on the CPU. As in MMRec it is
    not coalesced: a place may be stored twice and counts as the sum. The neighbours are cached under the data
    set's fingerprint, knn_k and the kind of device that they are computed on.
    """
    if knn_k > data.n_items:
        raise InputError(f"dragon: knn_k is {knn_k}: expected at most the number of items, {data.n_items}")
    device = torch.device(device)
    parts = [_normalized_links(_cached_neighbors(data, m, knn_k, device)) for m in data.modalities]
    return parts[0] if len(parts) == 1 else visual_weight * parts[0] + (1.0 - visual_weight) * parts[1]


def nearest_items(
    features: np.ndarray, k: int, device: torch.device | str = "cpu", block_bytes: int = ITEM_BLOCK_BYTES
) -> np.ndarray:
    """Each item's k nearest by cosine, nearest first: int32 (I, k), from features (I, width).

    The item itself always comes first. Equal similarities go to the lower item number. An item without features (a row
    of zeros) has no cosine: it is linked with itself alone, and -1 fills the rest of its row and of any row with fewer
    candidates than k. Never holds I x I similarities: beyond the features, a normalised copy of them and some blocks
    of about ``block_bytes``.
    """
    rows = torch.from_numpy(features).to(device)
    norms = rows.norm(dim=1, keepdim=True)
    unit = rows / norms.clamp_min(torch.finfo(rows.dtype).tiny)  # (I, width); zero rows stay zero
    empty = norms.squeeze(1) == 0
    block = max(1, block_bytes // (unit.element_size() * len(unit)))
    found = [
        _nearest_in_block(unit, empty, range(at, min(at + block, len(unit))), k) for at in range(0, len(unit), block)
    ]
    return torch.cat(found).to("cpu", torch.int32).numpy()


def _nearest_in_block(unit: Tensor, empty: Tensor, rows: range, k: int) -> Tensor:
    """The k nearest (len(rows), k) of the items ``rows``; -1 where there is none."""
    similarity = unit[rows.start : rows.stop] @ unit.T  # (block, I)
    similarity[:, empty] = -torch.inf
    similarity[empty[rows.start : rows.stop]] = -torch.inf
    own = torch.arange(rows.start, rows.stop, device=unit.device)
    similarity[torch.arange(len(rows), device=unit.device), own] = torch.inf
    items = top_items(similarity, k)
    return torch.where(similarity.gather(1, items) == -torch.inf, -1, items)


def _cached_neighbors(data: Interactions, modality: str, k: int, device: torch.device) -> np.ndarray:
    fingerprint = f"{_VERSION} {data.fingerprint} {modality} k={k} {device.type}"
    features = data.features[modality]
    expected = {"neighbors": Expected((data.n_items, k), np.int32, -1, data.n_items - 1)}
    return cached_arrays(
        "item-neighbors", fingerprint, lambda: {"neighbors": nearest_items(features, k, device)}, expected
    )["neighbors"]


def _normalized_links(neighbors: np.ndarray) -> Tensor:
    """neighbors (I, k) with -1 for none -> sparse COO float32 (I, I) with entries 1 / sqrt(links_i links_j)."""
    nearest = torch.from_numpy(neighbors).long()
    there = nearest >= 0
    links = there.sum(dim=1)  # (I,)
    items = torch.arange(len(neighbors)).unsqueeze(1).expand_as(nearest)
    indices = torch.stack((items[there], nearest[there]))
    inverse_root = (1e-7 + links.float()).pow(-0.5)
    values = inverse_root[indices[0]] * inverse_root[indices[1]]
    return torch.sparse_coo_tensor(indices, values, (len(links), len(links)), check_invariants=False)


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
        """The graph of a data set's training interactions, cached under the data set's fingerprint."""
        fingerprint = f"{_VERSION} {data.fingerprint} stored={STORED}"
        shape = (data.n_users, min(STORED, data.n_users))
        expected = {
            "neighbors": Expected(shape, np.int32, 0, data.n_users - 1),
            "counts": Expected(shape, np.int32, 0, data.n_items),
        }
        return cls(**cached_arrays("user-neighbors", fingerprint, lambda: vars(cls.count(data.graph)), expected))

    @classmethod
    def count(cls, graph: BipartiteGraph, block_bytes: int = USER_BLOCK_BYTES) -> UserGraph:
        """Count the items in common, block by block of users; never holds U x U counts unless they fit a block."""
        n_users = graph.n_users
        ones = np.ones(graph.n_edges, dtype=np.int32)
        counted_in = np.int32 if graph.n_edges <= np.iinfo(np.int32).max else np.int64
        indices, offsets = (part.numpy().astype(counted_in) for part in (graph.edge_item, graph.user_ptr))
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
    block = np.arange(len(dense))
    dense[block, first_user + block] = 0  # nobody is a neighbour of himself
    n_users = dense.shape[1]
    stored = min(STORED, n_users)
    keys = dense.astype(np.int64) * n_users + (n_users - 1 - np.arange(n_users))  # larger count, then lower number
    top = -np.sort(-np.partition(keys, n_users - stored, axis=1)[:, n_users - stored :], axis=1)
    top_counts = (top // n_users).astype(np.int32)
    return np.where(top_counts > 0, n_users - 1 - top % n_users, 0).astype(np.int32), top_counts
