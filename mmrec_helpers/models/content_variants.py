"""GRCN's content branch, changed as the claims propose: other preference updates than routing, the loop rearranged.

U users, I items, N = U + I nodes, E training edges, d the embedding width, M modalities; p (U, d) and f (I, d) have
unit rows. An update lets a user's preference take up the features of the user's items before the final attention:

    routing   ``routing_iterations`` times  p_u <- normalize(p_u + sum_i softmax_i(<p_u, f_i>) f_i)     (live)
    mean      once                          p_u <- normalize(p_u + mean_i f_i)
    learned   once                          p_u <- normalize(p_u + sum_i softmax_i(<v, f_i>) f_i)

sums, means and softmaxes over the user's items, messages from item to user; v (d,) is the learned query, one vector per
modality (parameter ``weighting``), zero at the start, where "learned" equals "mean". "One attention pass" needs no
update of its own: it is live routing with one iteration (a pass before the final attention), or ``routing_iterations``
0, which the shipped code computes whatever the number of iterations (the final attention alone).

The loop rearranged, in the reference backend: ``EdgeAttention`` takes all modalities in one call, sharing edge list,
gathers and scatters, equal to one call each. With the attention of the first iteration kept (``cached_attention``),
later ones skip products and softmax; live, that is another model from two iterations on.
"""

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import SimpleConv
from torch_geometric.utils import softmax

from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import GraphOps
from mmrec_helpers.ops.reference import EdgeAttention, WeightedSum
from mmrec_helpers.ops.sparse import ConstantMatrix


class ReferencePooling(nn.Module):
    """The preference updates "mean" and "learned" as PyG layers over the edges of the training graph."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.learned = SimpleConv(aggr="mean"), WeightedSum()

    def forward(self, preference: Tensor, features: Tensor, edge_index: Tensor, weighting: Tensor | None) -> Tensor:
        """preference (U, d), features (I, d), edge_index (2, E) user to item, weighting (d,) or None for the mean ->
        the weighted mean over each user's items (U, d)."""
        x, edge_index = torch.cat((preference, features)), edge_index[[1, 0]]  # (N, d), item to user
        if weighting is None:
            return self.mean(x, edge_index)[: len(preference)]
        logit = (x * weighting).sum(dim=1, keepdim=True)  # (N, 1); those of users are not read
        weight = softmax(logit[edge_index[0]], edge_index[1], num_nodes=len(x))  # (E, 1), over each user's items
        return self.learned(x, edge_index, weight)[: len(preference)]


class FastPooling(nn.Module):
    """The same by one product with a sparse matrix: nothing of size E x d."""

    count: Tensor  # (U, 1)

    def __init__(self, graph: BipartiteGraph) -> None:
        super().__init__()
        places = torch.stack((graph.edge_user, graph.edge_item))  # (2, E)
        self.user_items = ConstantMatrix(places, torch.ones(graph.n_edges), (graph.n_users, graph.n_items))
        self.register_buffer("count", graph.user_degree.clamp(min=1).float().unsqueeze(1), persistent=False)

    def forward(self, ops: GraphOps, features: Tensor, weighting: Tensor | None) -> Tensor:
        """features (I, d) -> the weighted mean over each user's items (U, d), zero for a user without any.

        The softmax's exponentials belong to the items, since <v, f_i> does not depend on the user: they are taken once
        per item, below the largest, and divided out per user. A user whose items all lie 87 or more below the largest
        (float32) is left without an update.
        """
        if weighting is None:
            return ops.sparse_product(*self.user_items.pair(), features) / self.count
        logit = (features * weighting).sum(dim=1, keepdim=True)  # (I, 1)
        exponential = (logit - logit.detach().amax()).exp()
        sums = ops.sparse_product(*self.user_items.pair(), torch.cat((exponential * features, exponential), dim=1))
        total = sums[:, -1:]  # (U, 1)
        return sums[:, :-1] / torch.where(total > 0, total, 1)


class CachedRouting(nn.Module):
    """A routing iteration that takes the attention weights of an earlier one where they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.weighted = EdgeAttention(), WeightedSum()

    def forward(
        self, preference: Tensor, features: Tensor, edge_index: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """preference (U, d), features (I, d), edge_index (2, E), weights (E,) or None -> the user rows (U, d) of the
        weighted sum over edge_index, and its weights (E,)."""
        x = torch.cat((preference, features))  # (N, d)
        if weights is None:
            out, weights = self.attention(x, edge_index)
        else:
            out = self.weighted(x, edge_index, weights.view(-1, 1))
        return out[: len(preference)], weights
