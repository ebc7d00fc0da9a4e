"""What an accelerated GRCN or DRAGON runs in place of its own ``forward`` and ``calculate_loss``.

The numbers are the model's own up to rounding; its parameters and submodules are used where they stand. What is
constant is made once and again only when the model's ``edge_index``, ``mm_adj`` or drawn user graph is replaced, or
the model moves to another device. U users, I items, N = U + I, E training edges, d width, M modalities, B a batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrec_helpers.mmrec.recognise import branches, raw_features, training_graph
from mmrec_helpers.ops import GraphOps, make_ops
from mmrec_helpers.ops.sparse import ConstantMatrix

_FREE_PER_FEATURES = 4  # features kept on the host move to the GPU if it has this many times their size free


class FastStep:
    """Common to both models: operations on the training graph, features on the device, the shape of the loss."""

    def __init__(self, model: nn.Module, backend: str) -> None:
        self.model, self.backend = model, backend
        self.branches = branches(model)
        self.loss_shape = torch.Size()  # MMRec's GRCN returns its loss as (1,)
        self._constants: dict[str, tuple[tuple, Any]] = {}

    @property
    def device(self) -> torch.device:
        return getattr(self.model, self.branches[0]).preference.device

    @property
    def ops(self) -> GraphOps:
        model, device = self.model, self.device
        return self._once("ops", (model.edge_index,), lambda: make_ops(self.backend, training_graph(model), device))

    def features(self, branch: str) -> Tensor:
        """Raw features (I, width) of a modality on the model's device; copied there each time if memory is short."""
        features, device = raw_features(self.model, branch), self.device
        if features.device == device:
            return features
        size = features.numel() * features.element_size()
        if f"features.{branch}" in self._constants or torch.cuda.mem_get_info(device)[0] > _FREE_PER_FEATURES * size:
            return self._once(f"features.{branch}", (features,), lambda: features.to(device))
        return features.to(device, non_blocking=True)

    def batch_nodes(self, interaction: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Users, positive and negative items of a batch as nodes (B,) each; the batch is left as it is."""
        users, positive, negative = (interaction[row].to(self.device) for row in range(3))
        return users, positive + self.model.n_users, negative + self.model.n_users

    def _once(self, name: str, sources: tuple, make) -> Any:
        """What ``make`` returned last, unless a source is another object now, was changed, or the device is another."""
        key = (self.device, *((id(source), getattr(source, "_version", None)) for source in sources))
        if name not in self._constants or self._constants[name][0] != key:
            self._constants[name] = (key, make(), sources)  # holding the sources keeps their ids from being reused
        return self._constants[name][1]


class FastGrcn(FastStep):
    """GRCN: ``routing`` "as_shipped" for the public code, "live" for a routing loop that reaches the users."""

    def __init__(self, model: nn.Module, backend: str, routing: str) -> None:
        super().__init__(model, backend)
        self.routing = routing

    def forward(self) -> Tensor:
        """The representation [ID, visual, textual] (N, (1 + M) d), kept in ``result`` for scoring as MMRec does."""
        content = [self._content(branch) for branch in self.branches]
        to_item, to_user = self._edge_weights([c[2] for c in content], [c[3] for c in content])
        x = F.normalize(self.model.id_gcn.id_embedding)
        first = self.ops.weighted_propagate(x, to_item, to_user)
        second = self.ops.weighted_propagate(first, to_item, to_user)
        result = torch.cat([x + first + second] + [torch.cat(c[:2]) for c in content], dim=1)
        vars(self.model)["result"] = result
        return result

    def calculate_loss(self, interaction: Any) -> Tensor:
        """The loss of a batch: indexable, rows users, positive items, negative items; it is not changed."""
        users, positive, negative = self.batch_nodes(interaction)
        nodes, batch = torch.cat((users, positive, negative)), len(users)
        user, wanted, other = F.embedding(nodes, self.model.forward()).split(batch)  # (B, (1 + M) d) each
        loss = -F.logsigmoid((user * (wanted - other)).sum(dim=1)).mean()
        user, wanted, other = F.embedding(nodes, self.model.id_gcn.id_embedding).split(batch)
        penalty = (user**2).mean() + ((wanted**2).mean() + (other**2).mean()) / 2  # users count twice
        if "v_gcn" in self.branches:
            penalty = penalty + (self.model.v_gcn.preference**2).mean()
        for branch in self.branches:
            penalty = penalty + (F.embedding(users, getattr(self.model, branch).preference) ** 2).mean()
        return (loss + self.model.reg_weight * penalty).reshape(self.loss_shape)

    def _content(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A modality's users (U, d), items (I, d), and attention weights (E,) to items and to users."""
        branch = getattr(self.model, name)
        features = F.normalize(F.leaky_relu(branch.MLP(self.features(name))))
        return self.ops.attention_block(F.normalize(branch.preference), features, int(branch.num_routing), self.routing)

    def _edge_weights(self, to_item: list[Tensor], to_user: list[Tensor]) -> tuple[Tensor, Tensor]:
        """relu of the largest over the modalities of attention times confidence of the edge's source: (E,) twice."""
        graph, n_users = self.ops.graph, self.model.n_users
        users, items = self.model.model_specific_conf.split((n_users, self.model.n_items))
        pairs = ((to_item, F.embedding(graph.edge_user, users)), (to_user, F.embedding(graph.edge_item, items)))
        return tuple(torch.relu((torch.stack(a, dim=1) * conf).max(dim=1).values) for a, conf in pairs)


class FastDragon(FastStep):
    """DRAGON. ``pre_epoch_processing`` stays as it is; the user graph it draws becomes a sparse matrix once."""

    def forward(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Scores of the positive and of the negative items (B,), (B,); the batch is not changed.

        Keeps what MMRec keeps: ``result_embed`` for scoring, and ``v_rep``, ``v_preference``, ``t_rep``, ...
        """
        result = self._representation()
        vars(self.model)["result_embed"] = (
            result  # on a CPU MMRec registers a parameter of this name: it stays as it is
        )
        nodes = self.batch_nodes(interaction)
        user, positive, negative = F.embedding(torch.cat(nodes), result).split(len(nodes[0]))  # (B, M d) each
        return (user * positive).sum(dim=1), (user * negative).sum(dim=1)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """The loss of a batch: indexable, rows users, positive items, negative items; it is not changed."""
        positive, negative = self.model.forward(interaction)
        users = interaction[0].to(self.device)
        penalty = (self.model.weight_u**2).mean()
        for branch in self.branches:
            penalty = penalty + (F.embedding(users, getattr(self.model, branch).preference) ** 2).mean()
        loss = -F.logsigmoid(positive - negative).mean() / math.log(2)
        return (loss + self.model.reg_weight * penalty).reshape(self.loss_shape)

    def _representation(self) -> Tensor:
        model, n_users = self.model, self.model.n_users
        reps = {branch: self._content(branch) for branch in self.branches}  # (N, d) each
        for branch, rep in reps.items():
            setattr(model, f"{branch[0]}_rep", rep.unsqueeze(2) if len(reps) == 2 else rep)
            setattr(model, f"{branch[0]}_preference", getattr(model, branch).preference)
        users = [rep[:n_users] for rep in reps.values()]
        if len(users) == 2:
            users = [rep * model.weight_u[:, k] for k, rep in enumerate(users)]
        users, items = torch.cat(users, dim=1), torch.cat([rep[n_users:] for rep in reps.values()], dim=1)
        h = items
        for _ in range(int(model.n_layers)):
            h = self.ops.sparse_product(*self._item_matrices(), h)
        return torch.cat((users + self.ops.sparse_product(*self._user_matrices(), users), items + h))

    def _content(self, name: str) -> Tensor:
        branch = getattr(self.model, name)
        features = branch.MLP_1(F.leaky_relu(branch.MLP(self.features(name))))
        x = F.normalize(torch.cat((branch.preference, features.to(branch.preference.dtype))))  # (N, d)
        h = self.ops.normalized_propagate(x)
        return h + x + self.ops.normalized_propagate(h)

    def _item_matrices(self) -> tuple[Tensor, Tensor]:
        """``mm_adj`` and its transpose (I, I) as CSR."""
        return self._once("items", (self.model.mm_adj,), lambda: self._item_matrix(self.model.mm_adj)).pair()

    def _user_matrices(self) -> tuple[Tensor, Tensor]:
        """The user graph of this epoch and its transpose (U, U) as CSR."""
        sources = (self.model.epoch_user_graph, self.model.user_weight_matrix)
        return self._once("users", sources, lambda: self._user_matrix(*sources)).pair()

    def _item_matrix(self, matrix: Tensor) -> ConstantMatrix:
        matrix = matrix.detach().to(self.device)
        matrix = matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()
        return ConstantMatrix(matrix._indices(), matrix._values(), tuple(matrix.shape))

    def _user_matrix(self, neighbors: Any, weights: Tensor) -> ConstantMatrix:
        """From neighbours (U, k), a nested list in MMRec, and their weights (U, k)."""
        neighbors = neighbors if isinstance(neighbors, Tensor) else torch.from_numpy(np.asarray(neighbors))
        neighbors, weights = neighbors.to(self.device, torch.int64), weights.to(self.device)
        users, places = (weights != 0).nonzero(as_tuple=True)
        indices = torch.stack((users, neighbors[users, places]))
        return ConstantMatrix(indices, weights[users, places], (self.model.n_users, self.model.n_users))
