"""The three operations as PyG message passing: what the public MMRec code runs, with the work that it repeats.

Edges are a tensor (2, edges): row 0 sources, row 1 targets. Messages go from source to target (PyG's default flow).
Nodes are users 0 to U - 1, then items U to U + I - 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.utils import degree, remove_self_loops, softmax

from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops.common import GraphOps


class EdgeAttention(MessagePassing):
    """One head of dot-product attention without weights: GRCN's attention layer.

    For target i with sources j: a_ij = softmax over j of <x_i, x_j>, out_i = sum over j of a_ij x_j.
    Every call drops self-loops from the edge list (a bipartite graph has none), as the public code does.
    Source: Wei et al., "Graph-Refined Convolutional Network for Multimedia Recommendation with Implicit Feedback",
    ACM MM 2020; enoche/MMRec, src/models/grcn.py.
    """

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=0)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, d), edge_index (2, edges) -> out (N, d), attention weights (edges,) in the order of the edges. x may be
        (N, M, d), for M modalities in one call; the weights are then (edges, M)."""
        edge_index, _ = remove_self_loops(edge_index)
        kept: list[Tensor] = []
        out = self.propagate(edge_index, x=x, kept=kept)
        return out, kept[0]

    def message(self, x_i: Tensor, x_j: Tensor, index: Tensor, size_i: int, kept: list) -> Tensor:
        weights = softmax((x_i * x_j).sum(dim=-1), index, num_nodes=size_i)  # (edges,)
        kept.append(weights)
        return x_j * weights.unsqueeze(-1)


class WeightedSum(MessagePassing):
    """out_i = sum over incoming edges of weight_e x_source(e): the layer of GRCN's ID branch."""

    def __init__(self) -> None:
        super().__init__(aggr="add")

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        """x (N, d), edge_index (2, edges), weight (edges, 1) -> (N, d)."""
        return self.propagate(edge_index, x=x, weight=weight)

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        return x_j * weight


class NormalizedSum(MessagePassing):
    """out_i = sum over incoming edges of x_j / sqrt(deg_i deg_j): DRAGON's convolution.

    Every call drops self-loops and counts the degrees anew, as the public code does (enoche/MMRec,
    src/models/dragon.py). Degrees are counted at the sources: the edge list must hold both directions of every edge.
    """

    def __init__(self) -> None:
        super().__init__(aggr="add")

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """x (N, d), edge_index (2, 2 E) in both directions -> (N, d)."""
        edge_index, _ = remove_self_loops(edge_index)
        return self.propagate(edge_index, size=(x.size(0), x.size(0)), x=x)

    def message(self, x_j: Tensor, edge_index: Tensor, size: tuple[int, int]) -> Tensor:
        source, target = edge_index
        inverse_root = degree(source, size[0], dtype=x_j.dtype).pow(-0.5)  # (N,)
        norm = inverse_root[source] * inverse_root[target]  # (2 E,)
        return norm.view(-1, 1) * x_j


def both_directions(edge_index: Tensor) -> Tensor:
    """(2, E) -> (2, 2 E): the edges, then the reversed edges."""
    return torch.cat((edge_index, edge_index[[1, 0]]), dim=1)


class ReferenceOps(GraphOps):
    """The operations of ``GraphOps`` through the layers above, on the graph's canonical edges."""

    def __init__(self, graph: BipartiteGraph) -> None:
        super().__init__(graph)
        self.edge_index = torch.stack((graph.edge_user, graph.edge_item + graph.n_users))  # (2, E), user to item
        self._attention = EdgeAttention()
        self._weighted = WeightedSum()
        self._normalized = NormalizedSum()

    def attention_block(self, preference: Tensor, features: Tensor, iterations: int, routing: str):
        """As shipped, the loop is run although it changes nothing."""
        routing_edges = self.edge_index if routing == "as_shipped" else self.edge_index[[1, 0]]
        for _ in range(iterations):
            update, _ = self._attention(torch.cat((preference, features)), routing_edges)
            preference = F.normalize(preference + update[: self.graph.n_users])
        x = torch.cat((preference, features))  # (N, d)
        h, weights = self._attention(x, both_directions(self.edge_index))
        users, items = (x + h).split((self.graph.n_users, self.graph.n_items))
        to_item, to_user = weights.split(self.graph.n_edges)
        return users, items, to_item, to_user

    def weighted_propagate(self, x: Tensor, weight_to_item: Tensor, weight_to_user: Tensor) -> Tensor:
        weight = torch.cat((weight_to_item, weight_to_user)).view(-1, 1)
        return self._weighted(x, both_directions(self.edge_index), weight)

    def normalized_propagate(self, x: Tensor) -> Tensor:
        return self._normalized(x, both_directions(self.edge_index))

    def sparse_product(self, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        """Autograd makes what it needs of the matrix, so ``transposed`` is not read."""
        return torch.sparse.mm(matrix, x)
