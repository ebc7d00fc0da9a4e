"""A matrix factorisation and a data set small enough for the tests of training."""

import numpy as np
import torch
from torch import nn

from mmrec_helpers.data import Interactions


class ToyModel(nn.Module):
    """BPR matrix factorisation with the interface that training relies on."""

    def __init__(self, data, width=8, seed=0):
        super().__init__()
        self.n_users, self.n_items = data.n_users, data.n_items
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(0.1 * torch.randn(data.n_users + data.n_items, width, generator=generator))
        self.epochs_started = []

    def on_epoch_start(self, epoch):
        self.epochs_started.append(epoch)

    def loss_terms(self, batch):
        users, positives, negatives = self.embedding[batch + batch.new_tensor([[0], [self.n_users], [self.n_users]])]
        margin = (users * (positives - negatives)).sum(-1)
        return {"bpr": -nn.functional.logsigmoid(margin).mean(), "reg": 1e-4 * (users**2).mean()}

    def loss(self, batch):
        return sum(self.loss_terms(batch).values())

    def representation(self):
        return self.embedding

    def scores(self, users):
        return self.embedding[users] @ self.embedding[self.n_users :].T


def toy_data(n_users=60, n_items=40, seed=0, valid=True, test=True, features=False):
    """Two groups of users, each liking one half of the items, which the features show too: 12 interactions per user."""
    rng = np.random.default_rng(seed)
    likes = (np.arange(n_users)[:, None] % 2) == (np.arange(n_items)[None] % 2)
    pairs = np.stack(np.nonzero(rng.random((n_users, n_items)) < np.where(likes, 0.7, 0.05)))
    split = rng.choice(3, size=pairs.shape[1], p=[0.8, 0.1, 0.1])
    kept = {"valid": pairs[:, split == 1] if valid else None, "test": pairs[:, split == 2] if test else None}
    if features:
        liked_by = np.where(np.arange(n_items)[:, None] % 2, 1.0, -1.0)
        kept["features"] = {m: liked_by + rng.normal(size=(n_items, w)) for m, w in (("visual", 6), ("textual", 4))}
    return Interactions.from_arrays(n_users, n_items, train=pairs[:, split == 0], name="toy", **kept)
