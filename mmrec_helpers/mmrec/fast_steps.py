"""What an accelerated GRCN or DRAGON runs in place of its own ``forward`` and ``calculate_loss``.

The numbers are the model's own up to rounding; its parameters and submodules are used where they stand. What is
constant is made once and again only when the model's ``edge_index``, ``mm_adj`` or drawn user graph is replaced, or
the model moves to another device. U users, I items, N = U + I, E training edges, d width, M modalities, B a batch.
"""

import math
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrec_helpers.mmrec.deferred import Deferred
from mmrec_helpers.mmrec.recognise import branches, raw_features, training_graph
from mmrec_helpers.models.base import BRANCHES
from mmrec_helpers.models.grcn import FastBranch, FastTables, fast_tables, fast_terms, side_by_side
from mmrec_helpers.ops import GraphOps, make_ops
from mmrec_helpers.ops.rows import mean_square
from mmrec_helpers.ops.sparse import ConstantMatrix

MODALITY_OF = {branch: modality for modality, branch in BRANCHES.items()}
_FREE_PER_FEATURES = 4  # features kept on the host move to the GPU if it has this many times their size free


class FastStep:
    """Common to both models: operations on the training graph, features on the device, the shape of the loss."""

    def __init__(self, model: Any, backend: str) -> None:
        self.model, self.backend = model, backend
        self.branches = branches(model)
        self.loss_shape = torch.Size()  # MMRec's GRCN returns its loss as (1,)
        self._constants: dict[str, tuple[tuple, Any, tuple]] = {}

    @property
    def device(self) -> torch.device:
        return getattr(self.model, self.branches[0]).preference.device

    @property
    def ops(self) -> GraphOps:
        model, device = self.model, self.device
        return self._once("ops", (model.edge_index,), lambda: make_ops(self.backend, training_graph(model), device))

    def linear(self, branch: str) -> Tensor:
        """W raw + b of a modality's items."""
        return getattr(self.model, branch).MLP(self.features(branch))

    def features(self, branch: str) -> Tensor:
        """Raw features (I, width) of a modality on the model's device; copied there each time if memory is short."""
        features, device = raw_features(self.model, branch), self.device
        if features.device == device:
            return features
        size = features.numel() * features.element_size()
        if f"features.{branch}" in self._constants or torch.cuda.mem_get_info(device)[0] > _FREE_PER_FEATURES * size:
            return self._once(f"features.{branch}", (features,), lambda: features.to(device))
        return features.to(device, non_blocking=True)

    def batch_ids(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Users (B,), and positive then negative items (2 B,) counted from 0; the batch is left as it is."""
        users, positive, negative = (interaction[row].to(self.device) for row in range(3))
        return users, torch.cat((positive, negative))

    def _once(self, name: str, sources: tuple, make) -> Any:
        """What ``make`` returned last, unless a source is another object now, was changed, or the device is another."""
        key = (self.device, *((id(source), getattr(source, "_version", None)) for source in sources))
        if name not in self._constants or self._constants[name][0] != key:
            self._constants[name] = (key, make(), sources)  # holding the sources keeps their ids from being reused
        return self._constants[name][1]


class FastGrcn(FastStep):
    """GRCN: ``routing`` "as_shipped" for the public code, "live" for a routing loop that reaches the users."""

    def __init__(self, model: Any, backend: str, routing: str) -> None:
        super().__init__(model, backend)
        self.routing = routing

    def forward(self) -> Tensor:
        """The representation [ID, visual, textual] (N, (1 + M) d), kept in ``result`` for scoring as MMRec does."""
        vars(self.model)["result"] = result = side_by_side(self._tables())
        return result

    def calculate_loss(self, interaction: Any) -> Tensor:
        """The loss of a batch: indexable, rows users, positive items, negative items; it is not changed.

        The rows are gathered from the tables that ``result`` is put together from, once it is read: the numbers are the
        same.
        """
        batch = torch.cat(self.batch_ids(interaction)).view(3, -1)
        tables = self._tables(batch)
        shape = (len(tables[0]), (1 + len(tables[1])) * tables[0].shape[1])
        vars(self.model)["result"] = Deferred.of(shape, tables[0], partial(side_by_side, tables))
        terms = fast_terms(self.ops, tables, batch, self.model.reg_weight)
        return reduce(Tensor.add, terms.values()).reshape(self.loss_shape)

    def _tables(self, batch: Tensor | None = None) -> FastTables:
        model, branches = self.model, {}
        for name in self.branches:
            branch, linear = getattr(model, name), partial(self.linear, name)
            branches[MODALITY_OF[name]] = FastBranch(branch.preference, linear, int(branch.num_routing))
        inputs = (self.routing, self._confidence(), model.id_gcn.id_embedding, batch)
        return fast_tables(self.ops, branches, *inputs)

    def _confidence(self) -> Tensor | None:
        """What an edge's weights are multiplied by before the largest is taken; None for their mean."""
        given, mode = self.model.model_specific_conf, getattr(self.model, "weight_mode", "confid")
        if mode == "mean":
            return None
        return given if mode == "confid" else self._once("ones", (given,), lambda: torch.ones_like(given.detach()))


class FastDragon(FastStep):
    """DRAGON. ``pre_epoch_processing`` stays as it is; the user graph it draws becomes a sparse matrix once."""

    def forward(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Scores of the positive and of the negative items (B,), (B,); the batch is not changed.

        Keeps what MMRec keeps: ``result_embed`` for scoring, and ``v_rep``, ``v_preference``, ``t_rep``, ...
        """
        user, positive, negative, _ = self._rows(interaction)
        return (user * positive).sum(dim=1), (user * negative).sum(dim=1)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """The loss of a batch: indexable, rows users, positive items, negative items; it is not changed."""
        user, positive, negative, users = self._rows(interaction)
        loss = -F.logsigmoid((user * (positive - negative)).sum(dim=1)).mean() / math.log(2)
        penalty = mean_square(self.model.weight_u)
        for branch in self.branches:
            penalty = penalty + mean_square(F.embedding(users, getattr(self.model, branch).preference))
        return (loss + self.model.reg_weight * penalty).reshape(self.loss_shape)

    def _rows(self, interaction: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The batch's rows of users, positive and negative items (B, M d), and the users (B,)."""
        users, items = self.batch_ids(interaction)
        user_table, item_table = self._tables()
        # where result_embed is a registered parameter, as MMRec has it on a CPU, that one stays as it is
        shape = (len(user_table) + len(item_table), user_table.shape[1])
        write = partial(torch.cat, (user_table, item_table))
        vars(self.model)["result_embed"] = Deferred.of(shape, user_table, write)
        positive, negative = F.embedding(items, item_table).split(len(users))
        return F.embedding(users, user_table), positive, negative, users

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Users (U, M d) and items (I, M d); the modalities go through the convolutions side by side."""
        model, ops = self.model, self.ops
        parts = [(ops.l2_normalize(getattr(model, name).preference), self._transformed(name)) for name in self.branches]
        x = torch.cat([torch.cat(tables, dim=1) for tables in zip(*parts)])  # (N, M d)
        rep = x + ops.normalized_propagate(x + ops.normalized_propagate(x))  # x + C x + C C x
        self._keep_parts(rep)
        users, items = rep.split((model.n_users, model.n_items))
        if len(parts) == 2:
            users = (users.reshape(model.n_users, 2, -1) * model.weight_u).view(model.n_users, -1)
        h = items
        for _ in range(int(model.n_layers)):
            h = ops.sparse_product(*self._item_matrices(), h)
        return users + ops.sparse_product(*self._user_matrices(), users), items + h

    def _transformed(self, name: str) -> Tensor:
        return self.ops.l2_normalize(getattr(self.model, name).MLP_1(F.leaky_relu(self.linear(name))))

    def _keep_parts(self, rep: Tensor) -> None:
        """The modalities' columns of the representation, (N, d), or (N, d, 1) if there are two, and preferences."""
        parts = rep.chunk(len(self.branches), dim=1)
        for name, part in zip(self.branches, parts, strict=True):
            setattr(self.model, f"{name[0]}_rep", part.unsqueeze(2) if len(parts) == 2 else part)
            setattr(self.model, f"{name[0]}_preference", getattr(self.model, name).preference)

    def _item_matrices(self) -> tuple[Tensor, Tensor]:
        """``mm_adj`` and its transpose (I, I) as CSR."""

        def make() -> ConstantMatrix:
            matrix = self.model.mm_adj.detach().to(self.device)
            matrix = matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()
            return ConstantMatrix(matrix._indices(), matrix._values(), tuple(matrix.shape))

        return self._once("items", (self.model.mm_adj,), make).pair()

    def _user_matrices(self) -> tuple[Tensor, Tensor]:
        """The user graph of this epoch, neighbours (U, k), a nested list in MMRec, and their weights (U, k), and its
        transpose (U, U) as CSR."""
        sources = (self.model.epoch_user_graph, self.model.user_weight_matrix)

        def make() -> ConstantMatrix:
            neighbors, weights = sources[0], sources[1].to(self.device)
            neighbors = neighbors if isinstance(neighbors, Tensor) else torch.from_numpy(np.asarray(neighbors))
            users, places = (weights != 0).nonzero(as_tuple=True)
            indices = torch.stack((users, neighbors.to(self.device, torch.int64)[users, places]))
            return ConstantMatrix(indices, weights[users, places], (self.model.n_users, self.model.n_users))

        return self._once("users", sources, make).pair()
