"""GRCN: attention over the training graph per modality, whose weights refine the graph for an embedding branch.

Source: Wei et al., "Graph-Refined Convolutional Network for Multimedia Recommendation with Implicit Feedback",
ACM MM 2020, as the public MMRec code (enoche/MMRec) computes it. U users, I items, N = U + I nodes, E training edges,
d the embedding width, M modalities.

The ``reference`` backend runs PyG layers, the same ones in the same order as MMRec, repeated work included, on the
data set's own order of edges. The other backends compute the same numbers through ``mmrec_helpers.ops``.

Differences to MMRec, none of which changes a number: the batch is left as it is; text alone works; the zero that
starts the content penalty is on the model's device, so the model runs on a CPU; the penalty on ``model_specific_conf``,
which MMRec computes and then drops from the loss, is not computed; log(sigmoid(x)) is computed by ``logsigmoid``, which
stays finite where sigmoid(x) underflows to 0 and MMRec's loss becomes infinite. Scores come from a fresh forward pass;
MMRec's come from the last training step's, which is one optimizer step old.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.models.base import BRANCHES, RawFeatures, Recommender
from mmrec_helpers.models.content_variants import CachedRouting, FastPooling, ReferencePooling
from mmrec_helpers.models.settings import GrcnOptions
from mmrec_helpers.ops import GraphOps
from mmrec_helpers.ops.reference import EdgeAttention, WeightedSum, both_directions

LEAKY_SLOPE = 0.01  # leaky_relu's default
FastTables = tuple[Tensor, dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Tensor, ...]]]  # see ``fast_tables``


@dataclass(frozen=True)
class FastBranch:
    """What ``fast_tables`` reads of a modality.

    preference  (U, d); linear: () -> W raw + b of the items (I, d)
    iterations  of the routing; update: what takes its place, unit features (I, d) -> (U, d) to be added
    """

    preference: Tensor
    linear: Callable[[], Tensor]
    iterations: int
    update: Callable[[Tensor], Tensor] | None = None


def fast_tables(
    ops: GraphOps,
    branches: Mapping[str, FastBranch],
    routing: str,
    confidence: Tensor | None,
    id_embedding: Tensor,
    batch: Tensor | None = None,
    checkpointed: Callable = lambda region, function, *inputs: function(*inputs),
) -> FastTables:
    """The ID representation (N, d); per modality those of users (U, d) and of items (I, d); and, with a batch (3, B)
    with items counted from 0, mean squares: "id": of the ``id_embedding`` (N, d) rows of its users, positive and
    negative items; per modality: of the preferences of its users, and of all if visual.

    confidence  (N, M) of each node in each modality; None: an edge's weight is the mean over the modalities
    """
    blocks, squares = [], {}
    for name, branch in branches.items():
        picked: Sequence[Tensor | None] = () if batch is None else (batch[0], None)[: 2 if name == "visual" else 1]
        with record_function(f"features.{name}"):
            preference, squares[name] = ops.unit_rows_and_squares(branch.preference, picked)
            features = ops.l2_normalize(branch.linear(), LEAKY_SLOPE)
        if branch.update is not None:
            with record_function(f"routing.{name}.0"):
                preference = ops.l2_normalize(preference + branch.update(features))
        region = f"final_attention.{name}"  # live routing happens in the same pass
        with record_function(region):
            inputs = (preference, features, branch.iterations, routing)
            blocks.append(checkpointed(region, ops.attention_block, *inputs))
    with record_function("confidence"):
        to_item, to_user = [block[2] for block in blocks], [block[3] for block in blocks]
        if confidence is None:
            weights = sum(to_item) / len(blocks), sum(to_user) / len(blocks)
        else:
            weights = ops.refined_weights(to_item, to_user, confidence)
    nodes = () if batch is None else _nodes(batch, ops.graph.n_users).unbind()

    def id_branch(to_item: Tensor, to_user: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, of_nodes = ops.unit_rows_and_squares(id_embedding, nodes)
        return ops.propagate_twice(x, to_item, to_user), of_nodes

    with record_function("id_branch"):
        ids, squares["id"] = checkpointed("id_branch", id_branch, *weights)
    return ids, dict(zip(branches, (block[:2] for block in blocks))), squares


def fast_terms(ops: GraphOps, tables: FastTables, batch: Tensor, reg_weight: float) -> dict[str, Tensor]:
    """The terms of the loss, see ``GRCN.loss_terms``; the batch's rows are read from the tables themselves."""
    ids, content, squares = tables
    differences = ops.score_differences(ids, None, _nodes(batch, ops.graph.n_users))
    for users, items in content.values():
        differences = differences + ops.score_differences(users, items, batch)
    user, positive, negative = squares["id"]
    terms = {"bpr": -F.logsigmoid(differences).mean(), "reg.id": reg_weight * (user + (positive + negative) / 2)}
    if "visual" in content:
        terms["reg.preference.visual.table"] = reg_weight * squares["visual"][1]
    return terms | {f"reg.preference.{name}": reg_weight * squares[name][0] for name in content}


def side_by_side(tables: FastTables) -> Tensor:
    """[ID, visual, textual]: (N, (1 + M) d)."""
    return torch.cat([tables[0]] + [torch.cat(both) for both in tables[1].values()], dim=1)


def _nodes(batch: Tensor, n_users: int) -> Tensor:
    """The batch (3, B) with items counted as nodes, from U."""
    return torch.cat((batch[:1], batch[1:] + n_users))


class ContentBranch(nn.Module):
    """One modality: users' preferences, a linear layer for the items' raw features, an attention layer."""

    weighting: nn.Parameter | None  # (d,), see ``content_variants``

    def __init__(self, features: RawFeatures, n_users: int, width: int) -> None:
        super().__init__()
        self.preference = nn.Parameter(nn.init.xavier_normal_(torch.empty(n_users, width)))
        self.attention = EdgeAttention()
        self.features = features
        self.MLP = nn.Linear(features.width, width)
        nn.init.xavier_normal_(self.MLP.weight)

    def encode(self) -> tuple[Tensor, Tensor]:
        """Unit rows: preference (U, d) and features leaky_relu(W raw + b) (I, d)."""
        return F.normalize(self.preference), F.normalize(F.leaky_relu(self.linear()))

    def linear(self) -> Tensor:
        """W raw + b: (I, d)."""
        return self.MLP(self.features(self.preference.device))

    def route(self, preference: Tensor, features: Tensor, edge_index: Tensor) -> Tensor:
        """One routing iteration: the user rows (U, d) of attention over edge_index (2, E) from [preference; features].

        They are exactly zero if the edges lead from users to items, since then no message arrives at a user.
        """
        x = torch.cat((preference, features))  # (N, d)
        return self.attention(x, edge_index)[0][: len(preference)]


class IdBranch(nn.Module):
    """Two weighted sums over both directions of the edges, from the normalised embeddings e0: e0 + e1 + e2."""

    def __init__(self, n_nodes: int, width: int) -> None:
        super().__init__()
        self.id_embedding = nn.Parameter(nn.init.xavier_normal_(torch.empty(n_nodes, width)))
        self.first = WeightedSum()
        self.second = WeightedSum()

    def forward(self, edge_index: Tensor, weight: Tensor) -> Tensor:
        """edge_index (2, E) user to item, weight (2 E, 1) -> (N, d)."""
        edge_index = both_directions(edge_index)
        x = F.normalize(self.id_embedding)
        first = self.first(x, edge_index, weight)
        second = self.second(first, edge_index, weight)
        return x + first + second


class GRCN(Recommender):
    """Graph-refined convolution; see the module for source and differences, ``GrcnOptions`` for the options.

    Per modality unit rows p (U, d) of users' preferences and f (I, d) of leaky_relu(W raw + b); routing and a final
    attention over both directions of the edges (``GraphOps.attention_block``), which gives rows z (N, d) and weights
    alpha_e of every edge and direction. An edge's weight in the ID branch is
        w_e = relu(max over the modalities of alpha_e confidence(source of e))
    and that branch is e0 + e1 + e2 with e0 the unit rows of ``id_embedding`` (N, d), e_k+1 = sum of w_e e_k(source),
    both directions. ``representation`` is [ID, visual, textual]: (N, (1 + M) d).

    In backends other than ``reference`` live routing and final attention are one pass: the region ``final_attention``.
    """

    name = "grcn"
    edge_index: Tensor  # (2, E), user to item; only in the reference backend

    def __init__(
        self, data: Interactions, settings: GrcnOptions, backend: str, seed: int, device: torch.device
    ) -> None:
        if not data.modalities:
            raise InputError(f"grcn: {data.name} has no features: expected visual or textual ones, or both")
        super().__init__(data, settings, backend, seed, device)
        width, n_nodes = settings.embedding_dim, data.n_users + data.n_items
        self.modalities = data.modalities
        self.id_gcn = IdBranch(n_nodes, width)
        for modality in data.modalities:
            features = RawFeatures(data.features[modality], settings.features_on_host)
            setattr(self, BRANCHES[modality], ContentBranch(features, data.n_users, width))
        self.model_specific_conf = nn.Parameter(nn.init.xavier_normal_(torch.empty(n_nodes, len(data.modalities))))
        if backend == "reference":
            edges = torch.from_numpy(data.train) + torch.tensor([[0], [data.n_users]])
            self.register_buffer("edge_index", edges, persistent=False)
        self._make_variants(data)

    def _make_variants(self, data: Interactions) -> None:
        """What ``content_variants`` adds, if the settings ask for it."""
        settings, reference = self.settings, self.backend == "reference"
        for name in ("batched_modalities", "cached_attention"):
            if getattr(settings, name) and not reference:
                raise InputError(f"grcn: {name} is True with backend {self.backend!r}: expected backend 'reference'")
        if settings.preference_update != "routing":
            self.pooling = ReferencePooling() if reference else FastPooling(data.graph)
        for _, branch in self._branches():
            learned = settings.preference_update == "learned"
            branch.weighting = nn.Parameter(torch.zeros(settings.embedding_dim)) if learned else None
        if settings.batched_modalities:
            self.batched_attention = EdgeAttention()
        if settings.cached_attention:
            self.cached_routing = CachedRouting()

    def representation(self) -> Tensor:
        if self.backend == "reference":
            return self._reference()
        tables = self._fast()
        with record_function("id_branch"):
            return side_by_side(tables)

    def loss_terms(self, batch: Tensor) -> dict[str, Tensor]:
        """bpr: mean of -log sigmoid(positive - negative). reg.id: mean of squares of the batch's ``id_embedding`` rows
        (users count twice). reg.preference.visual.table: of the whole visual preference table. reg.preference.*: of
        the batch's preference rows. All reg terms are times ``reg_weight``."""
        batch = self._checked_batch(batch)
        with self._autocast():
            if self.backend == "reference":
                representation = self._reference()
                with record_function("loss"):
                    return self._reference_terms(representation, batch)
            tables = self._fast(batch)
            with record_function("loss"):
                return fast_terms(self.ops, tables, batch, self.settings.reg_weight)

    def _reference_terms(self, representation: Tensor, batch: Tensor) -> dict[str, Tensor]:
        users = batch[0].repeat_interleave(2)  # (2 B,)
        items = batch[1:].T.reshape(-1) + self.n_users  # (2 B,): positive, negative, positive, ...
        scores = (representation[users] * representation[items]).sum(dim=1).view(-1, 2)
        terms = {"bpr": -F.logsigmoid(scores[:, 0] - scores[:, 1]).mean()}
        embedding, weight = self.id_gcn.id_embedding, self.settings.reg_weight
        terms["reg.id"] = weight * (embedding[users] ** 2 + embedding[items] ** 2).mean()
        for modality, branch in self._branches():
            if modality == "visual":
                terms["reg.preference.visual.table"] = weight * (branch.preference**2).mean()
            terms[f"reg.preference.{modality}"] = weight * (branch.preference[users] ** 2).mean()
        return terms

    def _branches(self) -> list[tuple[str, ContentBranch]]:
        return [(modality, getattr(self, BRANCHES[modality])) for modality in self.modalities]

    def _reference(self) -> Tensor:
        if self.settings.batched_modalities:
            content = self._batched_content()
        else:
            content = [self._content(modality, branch) for modality, branch in self._branches()]
        with record_function("confidence"):
            weight = self._edge_weight([alpha for _, alpha in content])
        with record_function("id_branch"):
            content_rep = torch.cat([rep for rep, _ in content], dim=1)  # (N, M d)
            ids = self._checkpointed("id_branch", self.id_gcn, self.edge_index, weight)
            return torch.cat((ids, content_rep), dim=1)

    def _content(self, modality: str, branch: ContentBranch) -> tuple[Tensor, Tensor]:
        """The modality's representation (N, d) and the attention weights (2 E, 1) of both directions."""
        with record_function(f"features.{modality}"):
            preference, features = branch.encode()
        preference = self._update_preference(modality, branch, preference, features)
        region = f"final_attention.{modality}"
        with record_function(region):
            x = torch.cat((preference, features))  # (N, d)
            h, alpha = self._checkpointed(region, branch.attention, x, both_directions(self.edge_index))
            return x + h, alpha.view(-1, 1)

    def _update_preference(self, modality: str, branch: ContentBranch, preference: Tensor, features: Tensor) -> Tensor:
        """The preferences (U, d) of the users as they enter the final attention."""
        if self.settings.preference_update != "routing":
            region = f"routing.{modality}.0"
            with record_function(region):
                pooled = (preference, features, self.edge_index, branch.weighting)
                return F.normalize(preference + self._checkpointed(region, self.pooling, *pooled))
        weights = None
        for iteration in range(self.settings.routing_iterations):
            region = f"routing.{modality}.{iteration}"
            with record_function(region):
                inputs = (preference, features, self._routing_edges())
                if self.settings.cached_attention:
                    update, weights = self._checkpointed(region, self.cached_routing, *inputs, weights)
                else:
                    update = self._checkpointed(region, branch.route, *inputs)
                preference = F.normalize(preference + update)
        return preference

    def _routing_edges(self) -> Tensor:
        """(2, E): user to item as shipped, item to user live."""
        return self.edge_index if self.settings.routing == "as_shipped" else self.edge_index[[1, 0]]

    def _batched_content(self) -> list[tuple[Tensor, Tensor]]:
        """As ``_content`` for all M modalities, every attention in one call for all of them."""
        encoded = []
        for modality, branch in self._branches():
            with record_function(f"features.{modality}"):
                encoded.append(torch.cat(branch.encode()))
        x, attend, name = torch.stack(encoded, dim=1), self.batched_attention, "+".join(self.modalities)  # (N, M, d)
        for iteration in range(self.settings.routing_iterations):
            region = f"routing.{name}.{iteration}"
            with record_function(region):
                h, _ = self._checkpointed(region, attend, x, self._routing_edges())
                preference, features = x.split((self.n_users, self.n_items))
                x = torch.cat((F.normalize(preference + h[: self.n_users], dim=-1), features))
        region = f"final_attention.{name}"
        with record_function(region):
            h, alpha = self._checkpointed(region, attend, x, both_directions(self.edge_index))
            return list(zip((x + h).unbind(dim=1), alpha.split(1, dim=1), strict=True))

    def _edge_weight(self, alphas: list[Tensor]) -> Tensor:
        """relu of the largest over the modalities of alpha times the confidence of the edge's source: (2 E, 1)."""
        confidence = self.model_specific_conf
        source = torch.cat((confidence[self.edge_index[0]], confidence[self.edge_index[1]]))  # (2 E, M)
        weight = (torch.cat(alphas, dim=1) * source).max(dim=1).values
        return torch.relu(weight.view(-1, 1))

    def _fast(self, batch: Tensor | None = None) -> FastTables:
        settings, branches = self.settings, {}
        for modality, branch in self._branches():
            update, iterations = None, settings.routing_iterations
            if settings.preference_update != "routing":
                update, iterations = partial(self.pooling, self.ops, weighting=branch.weighting), 0
            branches[modality] = FastBranch(branch.preference, branch.linear, iterations, update)
        inputs = (settings.routing, self.model_specific_conf, self.id_gcn.id_embedding, batch, self._checkpointed)
        return fast_tables(self.ops, branches, *inputs)
