"""Training batches: shuffled interactions, each with one uniform negative that is exact and drawn in bulk."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from mmrec_helpers.config import InputError, check_at_least, resolve_device
from mmrec_helpers.data import Interactions

RANDOM_RANGE = 2**62  # drawn from this range, modulo a count of items: no item is favoured by more than 1e-13


class NegativeSampler:
    """Draws negatives uniformly over the items seen in training that the user has no training interaction with.

    That is MMRec's distribution (it redraws while the item is one of the user's own). Here nothing is redrawn: with S
    items seen in training and d of them the user's, a number r in [0, S - d) is drawn and becomes the r-th item that
    is not the user's. If the user's items, ascending, are numbered c_0 < c_1 < ... among the S, then c_j - j items
    that are not the user's come before c_j, so r is shifted by the count of j with c_j - j <= r: one binary search
    over all edges, for any number of users at once. A known positive cannot come out.

    data    the training set; a user who has every item seen in training raises InputError, because nothing is left
    device  where to draw; the draws of one device type differ from those of another
    """

    def __init__(self, data: Interactions, device: torch.device | str = "cpu"):
        self.device = resolve_device(device)
        graph = data.graph
        seen = graph.item_degree > 0  # (n_items,)
        n_seen = int(seen.sum())
        full = (graph.user_degree == n_seen).nonzero().flatten()
        if full.numel():
            raise InputError(
                f"{data.name}: user {int(full[0])} has a training interaction with every one of the {n_seen} items "
                f"seen in training ({full.numel()} such users): expected at least one item left as a negative"
            )
        rank = seen.cumsum(0) - 1  # (n_items,) number of each seen item among the seen ones
        place = torch.arange(graph.n_edges) - graph.user_ptr[graph.edge_user]  # (E,) j of each edge within its user
        self._stride = n_seen + 1
        self._keys = (graph.edge_user * self._stride + rank[graph.edge_item] - place).to(self.device)  # (E,) ascending
        self._free = (n_seen - graph.user_degree).to(self.device)  # (n_users,) items that may be drawn
        self._first = graph.user_ptr[:-1].to(self.device)  # (n_users,)
        self._seen_items = seen.nonzero().flatten().to(self.device)  # (S,)
        self._users, self._items = graph.edge_user.to(self.device), graph.edge_item.to(self.device)  # (E,)

    @property
    def n_interactions(self) -> int:
        return self._users.numel()

    def n_steps(self, batch_size: int) -> int:
        """Batches in an epoch, the short last one included."""
        return math.ceil(self.n_interactions / batch_size)

    def negatives(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One negative item for each of ``users`` (n,) int64, in any order and repeated at will: (n,) int64."""
        free, first = self._free.index_select(0, users), self._first.index_select(0, users)
        drawn = torch.randint(RANDOM_RANGE, users.shape, generator=generator, device=self.device) % free
        found = torch.searchsorted(self._keys, users * self._stride + drawn, right=True)
        return self._seen_items.index_select(0, drawn + found - first)

    def epoch(self, seed: int, epoch: int) -> Tensor:
        """All training interactions, shuffled, each with a fresh negative: (3, E) int64: user, positive, negative.

        Depends on ``seed``, ``epoch`` and the device's type only, so that a resumed run sees the same epochs.
        """
        generator = epoch_generator(seed, epoch, self.device)
        order = torch.randperm(self.n_interactions, generator=generator, device=self.device)
        negatives = self.negatives(self._users, generator)  # before shuffling: neighbouring searches share their cache
        return torch.stack([column.index_select(0, order) for column in (self._users, self._items, negatives)])

    def batches(self, batch_size: int, seed: int = 0, epoch: int = 0) -> Iterator[Tensor]:
        """The batches of one epoch, each (3, B) int64 and contiguous; the last one may be short."""
        check_at_least("batches", 1, batch_size=batch_size)
        with record_function("sampling"):
            triples = self.epoch(seed, epoch)
        yield from split_batches(triples, batch_size)


def split_batches(triples: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Cut an epoch (3, E) into contiguous batches (3, B); the last one is kept even if short."""
    for start in range(0, triples.shape[1], batch_size):
        with record_function("data"):
            batch = triples[:, start : start + batch_size].contiguous()
        yield batch


def epoch_generator(seed: int, epoch: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator whose state follows from (seed, epoch) alone."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
