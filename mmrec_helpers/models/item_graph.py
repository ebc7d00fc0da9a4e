"""DRAGON's item graph: every item linked to its nearest by the cosine of the raw features."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions, cached_arrays

BLOCK_BYTES = 128 * 2**20  # of the block of similarities that is in memory at a time
_VERSION = 1  # of the computation below; part of the cache's fingerprint


def item_graph(data: Interactions, knn_k: int, visual_weight: float, device: torch.device | str = "cpu") -> Tensor:
    """S = visual_weight S_visual + (1 - visual_weight) S_textual; with one modality, its S alone.

    Entry (i, j) of one modality's S is 1 / sqrt(links of i, links of j), so 1 / knn_k, if j is among the knn_k nearest
    of i, itself included (``nearest_items``). Returns a sparse COO tensor float32 (I, I) on the CPU. As in MMRec it is
    not coalesced: a place may be stored twice and counts as the sum. The neighbours are cached under a fingerprint of
    features, knn_k and the kind of device that they are computed on.
    """
    if knn_k > data.n_items:
        raise InputError(f"dragon: knn_k is {knn_k}: expected at most the number of items, {data.n_items}")
    device = torch.device(device)
    parts = [_normalized_links(_cached_neighbors(data.features[m], knn_k, device)) for m in data.modalities]
    return parts[0] if len(parts) == 1 else visual_weight * parts[0] + (1.0 - visual_weight) * parts[1]


def nearest_items(
    features: np.ndarray, k: int, device: torch.device | str = "cpu", block_bytes: int = BLOCK_BYTES
) -> np.ndarray:
    """Each item's k nearest by cosine, nearest first: int32 (I, k), from features (I, width).

    The item itself always comes first. Equal similarities go to the lower item number. An item without features (a row
    of zeros) has no cosine: it is linked with itself alone, and -1 fills the rest of its row and of any row with fewer
    candidates than k. Never holds I x I similarities: beyond the features, a normalised copy of them and two blocks of
    about ``block_bytes``.
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
    n_items = len(unit)
    similarity = unit[rows.start : rows.stop] @ unit.T  # (block, I)
    similarity[:, empty] = -torch.inf
    similarity[empty[rows.start : rows.stop]] = -torch.inf
    own = torch.arange(rows.start, rows.stop, device=unit.device)
    similarity[torch.arange(len(rows), device=unit.device), own] = torch.inf
    values, items = similarity.topk(min(k + 1, n_items), dim=1)
    # topk promises nothing about ties: rows where equal values meet the cut, or each other, are sorted in full
    tied = ((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)).any(dim=1).nonzero().squeeze(1)
    for row in tied.tolist():
        items[row] = similarity[row].sort(descending=True, stable=True).indices[: items.shape[1]]
        values[row] = similarity[row, items[row]]
    return torch.where(values == -torch.inf, -1, items)[:, :k]


def _cached_neighbors(features: np.ndarray, k: int, device: torch.device) -> np.ndarray:
    digest = hashlib.sha256(np.ascontiguousarray(features)).hexdigest()
    fingerprint = f"{_VERSION} {features.shape} {features.dtype} {digest} k={k} {device.type}"
    return cached_arrays("item-neighbors", fingerprint, lambda: {"neighbors": nearest_items(features, k, device)})[
        "neighbors"
    ]


def _normalized_links(neighbors: np.ndarray) -> Tensor:
    """neighbors (I, k) with -1 for none -> sparse COO float32 (I, I) with entries 1 / sqrt(links_i links_j)."""
    neighbors = torch.from_numpy(neighbors).long()
    there = neighbors >= 0
    links = there.sum(dim=1)  # (I,)
    items = torch.arange(len(neighbors)).unsqueeze(1).expand_as(neighbors)
    indices = torch.stack((items[there], neighbors[there]))
    inverse_root = (1e-7 + links.float()).pow(-0.5)
    values = inverse_root[indices[0]] * inverse_root[indices[1]]
    return torch.sparse_coo_tensor(indices, values, (len(links), len(links)), check_invariants=False)
