"""DRAGON: convolutions over the training graph per modality, then an item graph and a user graph.

Source: Zhou et al., "Enhancing Dyadic Relations with Homogeneous Graphs for Multimodal Recommendation", ECAI 2023, as
the public MMRec code (enoche/MMRec) computes it. U users, I items, N = U + I nodes, E training edges, d the embedding
width, M modalities.

The ``reference`` backend runs PyG layers, the same ones in the same order as MMRec, repeated work included, on the
data set's own order of edges; the user graph is a nested list that is indexed with in every step. The other backends
compute the same numbers through ``mmrec_helpers.ops``.

What MMRec carries along and never uses in the forward pass is there by name: ``image_embedding`` and ``text_embedding``
(the raw features as parameters; here they share memory with the data set and are left out of ``state_dict``),
``image_trs``, ``text_trs``, ``MLP_v``, ``MLP_t``, ``MLP_user``, ``weight_i``. Its edge lists with a tenth of the items'
edges dropped, built and never used either, are not built.

Differences to MMRec, none of which changes a number: the batch is left as it is; the result is not assigned to a
registered parameter, so the model runs on a CPU; log(sigmoid(x)) is computed by ``logsigmoid``, which stays finite
where sigmoid(x) underflows to 0; an item without features (a row of zeros) is linked with itself alone instead of
spreading NaN. Scores come from a fresh forward pass.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from mmrec_helpers.config import InputError, check_ids
from mmrec_helpers.data import Interactions
from mmrec_helpers.models.base import BRANCHES, RawFeatures, Recommender, check_shape
from mmrec_helpers.models.graphs import UserGraph, item_graph
from mmrec_helpers.models.settings import DragonOptions
from mmrec_helpers.ops.reference import NormalizedSum, both_directions
from mmrec_helpers.ops.rows import mean_square, padded_rows

EMBEDDINGS = {"visual": "image_embedding", "textual": "text_embedding"}
TRANSFORMS = {"visual": "image_trs", "textual": "text_trs"}
ALIASES = {"v_preference": "v_gcn.preference", "t_preference": "t_gcn.preference"}


class ContentBranch(nn.Module):
    """One modality: users' preferences, two linear layers for the items' raw features, a convolution."""

    def __init__(self, n_users: int, feature_width: int, hidden: int, width: int) -> None:
        super().__init__()
        self.preference = nn.Parameter(nn.init.xavier_normal_(torch.empty(n_users, width)))
        self.MLP = nn.Linear(feature_width, hidden)
        self.MLP_1 = nn.Linear(hidden, width)
        self.convolution = NormalizedSum()

    def feature_layer(self, features: Tensor) -> Tensor:
        """Raw features (I, width) -> (I, d)."""
        return self.MLP_1(F.leaky_relu(self.MLP(features)))


def _softmax_pairs(count: int) -> nn.Parameter:
    """(count, 2, 1): Xavier-normal numbers, softmax over each pair, at initialisation only."""
    return nn.Parameter(torch.softmax(nn.init.xavier_normal_(torch.empty(count, 2, 1)), dim=1))


class DRAGON(Recommender):
    """Homogeneous graphs beside the training graph; see the module for source and differences, ``DragonOptions`` for
    the options.

    Per modality unit rows x (N, d): users' preferences, and W2 leaky_relu(W1 raw + b1) + b2 of items; x + C x + C C x
    with C x the sum of x_source / sqrt(deg deg) over both directions of the edges. The modalities stand side by side,
    users' times their weights ``weight_u`` if there are two. Then items + S items (``item_graph``), and users + the
    weighted sum over their neighbours (``user_graph``). ``representation`` is (N, M d). Ready for ``loss`` when built:
    the user graph is drawn, and drawn anew by ``on_epoch_start``.

    Backends other than ``reference`` run the convolutions of two modalities as one of twice the width, in the regions
    ``convolution.visual+textual.0`` and ``.1``.
    """

    name = "dragon"
    item_matrix: Tensor  # (I, I), of the reference backend, as the next
    edge_index: Tensor  # (2, 2 E)
    item_neighbors: Tensor  # (I, at most M knn_k), of the other backends, as the next two
    item_weights: Tensor
    user_neighbors: Tensor  # (U, k)
    user_weights: Tensor  # (U, k)

    def __init__(
        self, data: Interactions, settings: DragonOptions, backend: str, seed: int, device: torch.device
    ) -> None:
        if not data.modalities:
            raise InputError(f"dragon: {data.name} has no features: expected visual or textual ones, or both")
        super().__init__(data, settings, backend, seed, device)
        self.modalities = data.modalities
        self._make_parameters(data, settings)
        items = item_graph(data, settings.knn_k, settings.visual_weight, device)
        if backend == "reference":
            self.register_buffer("item_matrix", items, persistent=False)
            edges = torch.from_numpy(data.train) + torch.tensor([[0], [data.n_users]])
            self.register_buffer("edge_index", both_directions(edges), persistent=False)
        else:
            index, weight = padded_rows(items._indices(), items._values(), data.n_items)
            self.register_buffer("item_neighbors", index, persistent=False)
            self.register_buffer("item_weights", weight, persistent=False)
        self._stored_users = UserGraph.of(data)
        self.on_epoch_start(0)

    def _make_parameters(self, data: Interactions, settings: DragonOptions) -> None:
        width = settings.embedding_dim
        self.MLP_v = nn.Linear(width, width, bias=False)
        self.MLP_t = nn.Linear(width, width, bias=False)
        for modality in data.modalities:
            features = RawFeatures(data.features[modality], settings.features_on_host, settings.train_features)
            setattr(self, EMBEDDINGS[modality], features)
            setattr(self, TRANSFORMS[modality], nn.Linear(features.width, width))
        self.weight_u = _softmax_pairs(data.n_users)
        self.weight_i = _softmax_pairs(data.n_items)
        self.MLP_user = nn.Linear(2 * width, width)
        for modality in data.modalities:
            feature_width = data.features[modality].shape[1]
            branch = ContentBranch(data.n_users, feature_width, settings.feature_hidden, width)
            setattr(self, BRANCHES[modality], branch)

    def on_epoch_start(self, epoch: int) -> None:
        """Draw the user graph of this epoch (from 0); the same seed and epoch give the same graph."""
        self.set_user_graph(*self._stored_users.draw(np.random.default_rng([self.seed, epoch])))

    def set_user_graph(self, neighbors: Tensor | np.ndarray, weights: Tensor | np.ndarray) -> None:
        """Use these neighbours, integers (n_users, k), and weights, floats (n_users, k), until the next draw.

        Row u of the user graph: users[u] + sum over j of weights[u, j] users[neighbors[u, j]]. Raises InputError for
        other shapes or types, users that do not exist, and weights that are not finite.
        """
        neighbors, weights = torch.as_tensor(neighbors).cpu(), torch.as_tensor(weights).cpu()
        if neighbors.dim() != 2 or len(neighbors) != self.n_users or neighbors.shape != weights.shape:
            shapes = f"{tuple(neighbors.shape)} and {tuple(weights.shape)}"
            raise InputError(f"dragon user graph: the shapes are {shapes}: expected ({self.n_users}, k) twice")
        if neighbors.is_floating_point():
            raise InputError(f"dragon user graph: neighbors have type {neighbors.dtype}: expected integers")
        check_ids("dragon user graph: neighbors", neighbors, self.n_users)
        if not weights.isfinite().all():
            raise InputError("dragon user graph: weights hold nan or infinite values: expected finite numbers")
        self._keep("user_weights", weights.to(self.weight_u.dtype))
        if self.backend == "reference":
            self._neighbors = neighbors.tolist()
        else:
            self._keep("user_neighbors", neighbors.long())

    def _keep(self, name: str, value: Tensor) -> None:
        """Keep a tensor as a buffer; one of the same shape is overwritten, so that a captured CUDA graph sees it."""
        kept = getattr(self, name, None)
        if kept is not None and kept.shape == value.shape:
            kept.copy_(value)
        else:
            self.register_buffer(name, value.to(self.weight_u.device, copy=True), persistent=False)

    def load_mmrec_state(self, state: Mapping[str, Tensor | np.ndarray]) -> None:
        """As ``Recommender.load_mmrec_state``. May be there or not: ``image_embedding.weight`` and
        ``text_embedding.weight`` (the shape is checked; the data set's features are what is used), ``result_embed``
        (ignored), ``v_preference`` and ``t_preference`` (second names of ``*_gcn.preference``, with equal values)."""
        given = {name: torch.as_tensor(value) for name, value in state.items() if name != "result_embed"}
        for modality in self.modalities:
            name = f"{EMBEDDINGS[modality]}.weight"
            if name in given:
                check_shape(self.name, name, given.pop(name), tuple(self.get_parameter(name).shape))
        for alias, name in ALIASES.items():
            if alias in given and name in given:
                value = given.pop(alias)
                check_shape(self.name, alias, value, tuple(given[name].shape))
                if not torch.equal(value, given[name]):
                    raise InputError(f"dragon state: {alias} differs from {name}: expected two names of one parameter")
        super().load_mmrec_state(given)

    def representation(self) -> Tensor:
        if self.backend == "reference":
            return self._reference()
        users, items = self._fast()
        every_user, every_item = (torch.arange(len(table), device=self.device) for table in (users, items))
        return torch.cat((self._with_users(users, every_user), self._with_items(items, every_item)))

    def loss_terms(self, batch: Tensor) -> dict[str, Tensor]:
        """bpr: mean of -log2 sigmoid(positive - negative). reg.preference.*: mean of squares of the batch's preference
        rows; reg.weight_u: of ``weight_u``; both times ``reg_weight``."""
        batch = self._checked_batch(batch)
        with self._autocast():
            if self.backend == "reference":
                representation = self._reference()
                with record_function("loss"):
                    return self._reference_terms(representation, batch)
            users, items = self._fast()
            users = self._with_users(users, batch[0])  # (B, M d): nothing else of the two graphs reaches the loss
            items = self._with_items(items, batch[1:].reshape(-1))  # (2 B, M d)
            with record_function("loss"):
                return self._fast_terms(users, items, batch)

    def _reference_terms(self, representation: Tensor, batch: Tensor) -> dict[str, Tensor]:
        users = representation[batch[0]]  # (B, M d)
        positive = (users * representation[batch[1] + self.n_users]).sum(dim=1)
        negative = (users * representation[batch[2] + self.n_users]).sum(dim=1)
        terms = {"bpr": -F.logsigmoid(positive - negative).mean() / math.log(2)}
        for modality, branch in self._branches():
            terms[f"reg.preference.{modality}"] = self.settings.reg_weight * (branch.preference[batch[0]] ** 2).mean()
        terms["reg.weight_u"] = self.settings.reg_weight * (self.weight_u**2).mean()
        return terms

    def _fast_terms(self, users: Tensor, items: Tensor, batch: Tensor) -> dict[str, Tensor]:
        """As ``_reference_terms``, from the rows of the batch's users (B, M d) and items (2 B, M d)."""
        positive, negative = items.split(batch.shape[1])
        differences = (users * (positive - negative)).sum(dim=1)
        terms = {"bpr": -F.logsigmoid(differences).mean() / math.log(2)}
        for modality, branch in self._branches():
            rows = F.embedding(batch[0], branch.preference)
            terms[f"reg.preference.{modality}"] = self.settings.reg_weight * mean_square(rows)
        terms["reg.weight_u"] = self.settings.reg_weight * mean_square(self.weight_u)
        return terms

    def _branches(self) -> list[tuple[str, ContentBranch]]:
        return [(modality, getattr(self, BRANCHES[modality])) for modality in self.modalities]

    def _reference(self) -> Tensor:
        reps = [self._content(modality, branch) for modality, branch in self._branches()]
        with record_function("modal_weighting"):
            users, items = self._combine(reps)
        with record_function("item_graph"):
            items = items + self._item_propagate(items)
        with record_function("user_graph"):
            neighbours = users[torch.tensor(self._neighbors)]  # (U, k, M d), from a nested list in every step
            users = users + torch.matmul(self.user_weights.unsqueeze(1), neighbours).squeeze(1)
            return torch.cat((users, items))

    def _content(self, modality: str, branch: ContentBranch) -> Tensor:
        """The modality's representation x + h1 + h2, with h the convolutions: (N, d)."""
        with record_function(f"features.{modality}"):
            x = F.normalize(torch.cat((branch.preference, self._transformed(modality, branch))))  # (N, d)
        convolve, edge_index = branch.convolution, self.edge_index
        with record_function(f"convolution.{modality}.0"):
            h1 = self._checkpointed(f"convolution.{modality}.0", convolve, x, edge_index)
        with record_function(f"convolution.{modality}.1"):
            h2 = self._checkpointed(f"convolution.{modality}.1", convolve, h1, edge_index)
            return h1 + x + h2

    def _transformed(self, modality: str, branch: ContentBranch) -> Tensor:
        """The feature layer's output (I, d)."""
        features = getattr(self, EMBEDDINGS[modality])(self.device)
        return self._checkpointed(f"features.{modality}", branch.feature_layer, features)

    def _combine(self, reps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Users (U, M d), each modality times the user's weight for it if there are two, and items (I, M d)."""
        items = torch.cat(reps, dim=1)[self.n_users :]
        if len(reps) == 1:
            return reps[0][: self.n_users], items
        users = torch.stack([rep[: self.n_users] for rep in reps], dim=2)  # (U, d, 2)
        users = self.weight_u.transpose(1, 2) * users
        return torch.cat((users[:, :, 0], users[:, :, 1]), dim=1), items

    def _item_propagate(self, items: Tensor) -> Tensor:
        """S items, ``n_mm_layers`` times: (I, M d) -> (I, M d). Sparse products need full precision."""
        h = items
        for _ in range(self.settings.n_mm_layers):
            with torch.autocast(self.device.type, enabled=False):
                h = torch.sparse.mm(self.item_matrix, h.to(self.item_matrix.dtype))
        return h

    def _fast(self) -> tuple[Tensor, Tensor]:
        """Users (U, M d) and items (I, M d) before the two graphs of their own; the modalities stand side by side from
        the first convolution on."""
        parts = []
        for modality, branch in self._branches():
            with record_function(f"features.{modality}"):
                items = self.ops.l2_normalize(self._transformed(modality, branch))
                parts.append((self.ops.l2_normalize(branch.preference), items))
        region = f"convolution.{'+'.join(self.modalities)}"
        with record_function(f"{region}.0"):
            x = torch.cat([torch.cat(tables, dim=1) for tables in zip(*parts, strict=True)])  # (N, M d)
            x_h1 = x + self._checkpointed(f"{region}.0", self.ops.normalized_propagate, x)
        with record_function(f"{region}.1"):  # x + h1 + h2 = x + C (x + C x) for the convolution C
            x_h1_h2 = x + self._checkpointed(f"{region}.1", self.ops.normalized_propagate, x_h1)
        with record_function("modal_weighting"):
            users, items = x_h1_h2.split((self.n_users, self.n_items))
            if len(parts) == 2:
                users = (users.reshape(self.n_users, 2, -1) * self.weight_u).view(self.n_users, -1)
        return users, items

    def _with_users(self, users: Tensor, picked: Tensor) -> Tensor:
        """Rows ``picked`` (n,) of what the user graph makes of users (U, M d): (n, M d)."""
        with record_function("user_graph"):
            return F.embedding(picked, users) + self._picked_sums(users, self.user_neighbors, self.user_weights, picked)

    def _with_items(self, items: Tensor, picked: Tensor) -> Tensor:
        """Rows ``picked`` (n,) of what the item graph makes of items (I, M d): (n, M d)."""
        with record_function("item_graph"):
            h, layers = items, self.settings.n_mm_layers
            for _ in range(layers - 1):
                h = self.ops.weighted_rows(h, self.item_neighbors, self.item_weights)
            own = F.embedding(picked, items)
            if not layers:
                return own + own
            return own + self._picked_sums(h, self.item_neighbors, self.item_weights, picked)

    def _picked_sums(self, table: Tensor, neighbors: Tensor, weights: Tensor, picked: Tensor) -> Tensor:
        """Rows ``picked`` (n,) of the weighted sums over all rows' neighbours; of fewer rows than n, each once."""
        if len(neighbors) < len(picked):
            return F.embedding(picked, self.ops.weighted_rows(table, neighbors, weights))
        return self.ops.weighted_rows(table, neighbors[picked], weights[picked])
