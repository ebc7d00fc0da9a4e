"""Two plain rankings to compare with: popularity, and LightGCN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.models.base import Recommender
from mmrec_helpers.models.settings import LightgcnOptions, PopularityOptions


class Popularity(Recommender):
    """Every user gets the items by their number of training interactions. No parameters, nothing to train.

    ``representation`` (N, 1): 1 for users, the count for items.
    """

    name = "popularity"
    counts: Tensor  # (N, 1)

    def __init__(
        self, data: Interactions, settings: PopularityOptions, backend: str, seed: int, device: torch.device
    ) -> None:
        super().__init__(data, settings, backend, seed, device)
        counts = torch.cat((torch.ones(data.n_users), data.graph.item_degree.float()))
        self.register_buffer("counts", counts.unsqueeze(1), persistent=False)

    def _make_ops(self, device: torch.device) -> None:
        self._device = device  # and no operations: nothing is propagated

    def representation(self) -> Tensor:
        return self.counts

    def loss_terms(self, batch: Tensor) -> dict[str, Tensor]:
        raise InputError("popularity has nothing to train: evaluate it as it is built")


class LightGCN(Recommender):
    """x_k+1 = sum of x_k(source) / sqrt(deg deg) over both directions of the edges; the mean of all layers (N, d).

    Source: He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020.
    """

    name = "lightgcn"
    reference_needs_ops = True

    def __init__(
        self, data: Interactions, settings: LightgcnOptions, backend: str, seed: int, device: torch.device
    ) -> None:
        super().__init__(data, settings, backend, seed, device)
        shape = (data.n_users + data.n_items, settings.embedding_dim)
        self.embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape)))

    def representation(self) -> Tensor:
        x: Tensor = self.embedding
        total = x
        for _ in range(self.settings.n_layers):
            x = self.ops.normalized_propagate(x)
            total = total + x
        return total / (self.settings.n_layers + 1)

    def loss_terms(self, batch: Tensor) -> dict[str, Tensor]:
        """bpr: mean of -log sigmoid(positive - negative). reg: half the squares of the batch's embedding rows, summed
        over users, positive and negative items, divided by the batch size, times ``reg_weight``."""
        batch = self._checked_batch(batch)
        rows = batch + batch.new_tensor([[0], [self.n_users], [self.n_users]])
        with self._autocast():
            representation = self.representation()
            with record_function("loss"):
                users, positive, negative = representation[rows]
                bpr = -F.logsigmoid((users * (positive - negative)).sum(dim=1)).mean()
                squares = (self.embedding[rows] ** 2).sum() / (2 * batch.shape[1])
                return {"bpr": bpr, "reg": self.settings.reg_weight * squares}
