"""Stand-ins for MMRec's GRCN and DRAGON objects: its attribute and submodule names, signatures and computations.

Written for these tests from a description of what the public code computes, and held to its golden numbers in
test_accelerate.py. As there: edges lead from user to item, features, edges and results are plain tensors, results pass
through attributes, and DRAGON changes its batch. Options give the variants of forks: checkpointing, features that stay
on the host, and what fails on a CPU (GRCN's ``.cuda()``, DRAGON's result registered as a parameter).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.utils import degree, remove_self_loops, softmax

from mmrec_helpers.models.graphs import UserGraph, item_graph
from tests.models_data import small_data
from tests.test_goldens import golden_data, load


def xavier(*shape):
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(*shape)))


def reversed_edges(edges):
    return torch.stack((edges[1], edges[0]))


class AttentionLayer(MessagePassing):
    def __init__(self):
        super().__init__(aggr="add")
        self.self_loops = False

    def forward(self, x, edge_index):
        edge_index, _ = remove_self_loops(edge_index)
        return self.propagate(edge_index, x=x)

    def message(self, x_i, x_j, index, size_i):
        self.alpha = softmax((x_i * x_j).sum(-1), index, num_nodes=size_i)
        return x_j * self.alpha.view(-1, 1)


class WeightedLayer(MessagePassing):
    def forward(self, x, edge_index, weight_vector):
        self.weight_vector = weight_vector
        return self.propagate(edge_index, x=x)

    def message(self, x_j):
        return x_j * self.weight_vector


class NormalizedLayer(MessagePassing):
    def forward(self, x, edge_index):
        edge_index, _ = remove_self_loops(edge_index)
        return self.propagate(edge_index, size=(len(x), len(x)), x=x)

    def message(self, x_j, edge_index, size):
        root = degree(edge_index[0], size[0], dtype=x_j.dtype).pow(-0.5)
        return (root[edge_index[0]] * root[edge_index[1]]).view(-1, 1) * x_j


class IdGcn(nn.Module):
    def __init__(self, n_nodes, width):
        super().__init__()
        self.has_norm, self.has_act, self.aggr_mode = True, False, "add"
        self.id_embedding = xavier(n_nodes, width)
        self.conv_embed_1, self.conv_embed_2 = WeightedLayer(aggr="add"), WeightedLayer(aggr="add")

    def forward(self, edge_index, weight_vector):
        edge_index = torch.cat((edge_index, reversed_edges(edge_index)), dim=1)
        x = F.normalize(self.id_embedding)
        first = self.conv_embed_1(x, edge_index, weight_vector)
        return x + first + self.conv_embed_2(first, edge_index, weight_vector)


class ContentGcn(nn.Module):
    """GRCN's v_gcn and t_gcn. ``live``: the routing loop's messages go to the users."""

    def __init__(self, features, n_users, width, num_routing, use_checkpoint, live):
        super().__init__()
        self.num_user, self.num_routing, self.live = n_users, num_routing, live
        self.has_norm, self.has_act, self.is_word, self.use_checkpoint = True, False, False, use_checkpoint
        self.preference = xavier(n_users, width)
        self.conv_embed_1 = AttentionLayer()
        self.features = features
        self.MLP = nn.Linear(features.size(1), width)

    def activation(self, x):
        return F.leaky_relu(x)

    def attend(self, x, edge_index):
        if self.use_checkpoint and self.training:
            return checkpoint(self.conv_embed_1, x, edge_index, use_reentrant=False)
        return self.conv_embed_1(x, edge_index)

    def forward(self, edge_index):
        features = F.normalize(self.activation(self.MLP(self.features.to(self.preference.device))))
        preference = F.normalize(self.preference)
        for _ in range(self.num_routing):
            update = self.attend(
                torch.cat((preference, features)), reversed_edges(edge_index) if self.live else edge_index
            )
            preference = F.normalize(preference + update[: self.num_user])
        x = torch.cat((preference, features))
        h = self.attend(x, torch.cat((edge_index, reversed_edges(edge_index)), dim=1))
        return x + h, self.conv_embed_1.alpha.view(-1, 1)


class MmrecModel(nn.Module):
    """What MMRec's base class gives: sizes and features (None for a modality that is not there)."""

    result_name = "result"

    def __init__(self, data):
        super().__init__()
        self.n_users, self.n_items = self.num_user, self.num_item = data.n_users, data.n_items
        features = {name: torch.tensor(values) for name, values in data.features.items()}
        self.v_feat, self.t_feat = features.get("visual"), features.get("textual")
        self.edge_index = torch.from_numpy(data.train) + torch.tensor([[0], [data.n_users]])

    def pre_epoch_processing(self):
        pass

    def full_sort_predict(self, interaction):
        result = getattr(self, self.result_name)
        return result[: self.n_users][interaction[0], :] @ result[self.n_users :].t()


class GRCN(MmrecModel):
    def __init__(
        self, data, n_layers=3, reg_weight=1e-3, use_checkpoint=False, live=False, calls_cuda=False, content=ContentGcn
    ):
        super().__init__(data)
        self.reg_weight, self.dropout, self.calls_cuda = reg_weight, 0, calls_cuda
        self.weight_mode, self.fusion_mode, self.aggr_mode, self.pruning = "confid", "concat", "add", True
        self.weight = torch.tensor([[1.0], [-1.0]])
        n_nodes, present = self.n_users + self.n_items, [f for f in (self.v_feat, self.t_feat) if f is not None]
        self.id_gcn = IdGcn(n_nodes, 64)
        if self.v_feat is not None:
            self.v_gcn = content(self.v_feat, self.n_users, 64, n_layers, use_checkpoint, live)
        if self.t_feat is not None:
            self.t_gcn = content(self.t_feat, self.n_users, 64, n_layers, use_checkpoint, live)
        self.model_specific_conf = xavier(n_nodes, len(present))
        self.result = torch.randn(n_nodes, 64)

    def forward(self):
        edge_index = self.edge_index
        branches = [gcn for gcn in (getattr(self, "v_gcn", None), getattr(self, "t_gcn", None)) if gcn is not None]
        reps, weights = zip(*(gcn(edge_index) for gcn in branches))
        confidence = torch.cat((self.model_specific_conf[edge_index[0]], self.model_specific_conf[edge_index[1]]))
        weight = torch.cat(weights, dim=1) * (confidence if self.weight_mode == "confid" else 1)
        weight = weight.mean(dim=1) if self.weight_mode == "mean" else weight.max(dim=1)[0]
        weight = torch.relu(weight.view(-1, 1))
        self.result = torch.cat((self.id_gcn(edge_index, weight), *reps), dim=1)
        return self.result

    def calculate_loss(self, interaction):
        users = interaction[0].repeat_interleave(2)
        items = (torch.stack((interaction[1], interaction[2])) + self.n_users).t().reshape(-1)
        out = self.forward()
        score = (out[users] * out[items]).sum(1).view(-1, 2)
        loss = -torch.log(torch.sigmoid(score @ self.weight)).mean()
        embedding = self.id_gcn.id_embedding
        of_ids = (embedding[users] ** 2 + embedding[items] ** 2).mean()
        of_content = torch.zeros(1).cuda() if self.calls_cuda else embedding.new_zeros(1)
        if self.v_feat is not None:
            of_ids = of_ids + (self.v_gcn.preference**2).mean()
            of_content = of_content + (self.v_gcn.preference[users] ** 2).mean()
        if self.t_feat is not None:
            of_content = of_content + (self.t_gcn.preference[users] ** 2).mean()
        return loss + self.reg_weight * (of_ids + of_content)


class FeatureGcn(nn.Module):
    """DRAGON's v_gcn and t_gcn."""

    def __init__(self, feature_width, n_users, hidden, use_checkpoint):
        super().__init__()
        self.dim_latent, self.aggr_mode, self.use_checkpoint = 64, "add", use_checkpoint
        self.preference = xavier(n_users, 64)
        self.MLP, self.MLP_1 = nn.Linear(feature_width, hidden), nn.Linear(hidden, 64)
        self.conv_embed_1 = NormalizedLayer(aggr="add")

    def run(self, function, *inputs):
        if self.use_checkpoint and self.training:
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def forward(self, edge_index_drop, edge_index, features):
        features = features.to(self.preference.device)
        transformed = self.run(lambda x: self.MLP_1(F.leaky_relu(self.MLP(x))), features)
        x = F.normalize(torch.cat((self.preference, transformed)))
        h = self.run(self.conv_embed_1, x, edge_index)
        return h + x + self.run(self.conv_embed_1, h, edge_index), self.preference


class UserGraphSample(nn.Module):
    def forward(self, features, user_graph, user_matrix):
        return torch.matmul(user_matrix.unsqueeze(1), features[torch.tensor(user_graph)]).squeeze()


class DRAGON(MmrecModel):
    result_name = "result_embed"

    def __init__(
        self, data, reg_weight=1e-3, n_layers=1, hidden=256, use_checkpoint=False, registers_result=False, knn_k=10
    ):
        super().__init__(data)
        self.reg_weight, self.n_layers, self.k, self.device = reg_weight, n_layers, 40, "cpu"
        self.construction, self.aggr_mode, self.user_aggr_mode = "cat", "add", "softmax"
        self.v_rep = self.t_rep = self.v_preference = self.t_preference = None
        self.MLP_v, self.MLP_t = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        if self.v_feat is not None:
            self.image_embedding = nn.Embedding.from_pretrained(self.v_feat, freeze=False)
            self.image_trs = nn.Linear(self.v_feat.shape[1], 64)
        if self.t_feat is not None:
            self.text_embedding = nn.Embedding.from_pretrained(self.t_feat, freeze=False)
            self.text_trs = nn.Linear(self.t_feat.shape[1], 64)
        self.mm_adj = item_graph(data, knn_k, 0.1)
        self.edge_index = torch.cat((self.edge_index, reversed_edges(self.edge_index)), dim=1)
        self.edge_index_dropv = self.edge_index_dropt = self.edge_index[:, :-2]
        self.weight_u, self.weight_i = (nn.Parameter(xavier(n, 2, 1).softmax(1)) for n in (self.n_users, self.n_items))
        self.MLP_user = nn.Linear(128, 64)
        if self.v_feat is not None:
            self.v_gcn = FeatureGcn(self.v_feat.shape[1], self.n_users, hidden, use_checkpoint)
        if self.t_feat is not None:
            self.t_gcn = FeatureGcn(self.t_feat.shape[1], self.n_users, hidden, use_checkpoint)
        self.user_graph = UserGraphSample()
        result = xavier(self.n_users + self.n_items, 64)
        self.result_embed = result if registers_result else result.detach()
        stored = UserGraph.count(data.graph)
        self.user_graph_dict = {
            user: [row[count > 0].tolist(), count[count > 0].tolist()]
            for user, (row, count) in enumerate(zip(stored.neighbors, stored.counts))
        }

    def pre_epoch_processing(self):
        """Draws a nested list of ``k`` users a user, and the softmax of their counts, from NumPy's global state."""
        self.epoch_user_graph, self.user_weight_matrix = [], torch.zeros(self.n_users, self.k)
        for user, (found, counts) in self.user_graph_dict.items():
            found, counts = found[: self.k], counts[: self.k]
            while found and len(found) < self.k:
                place = np.random.randint(0, len(found))
                found, counts = [*found, found[place]], [*counts, counts[place]]
            if found:
                self.user_weight_matrix[user] = torch.tensor(counts, dtype=torch.float32).softmax(0)
            self.epoch_user_graph.append(found or [0] * self.k)

    def forward(self, interaction):
        users, positive, negative = interaction[0], interaction[1], interaction[2]
        positive += self.n_users
        negative += self.n_users
        reps = []
        if self.v_feat is not None:
            self.v_rep, self.v_preference = self.v_gcn(self.edge_index_dropv, self.edge_index, self.v_feat)
            reps.append(self.v_rep)
        if self.t_feat is not None:
            self.t_rep, self.t_preference = self.t_gcn(self.edge_index_dropt, self.edge_index, self.t_feat)
            reps.append(self.t_rep)
        user_rep, item_rep = reps[0][: self.n_users], torch.cat(reps, dim=1)[self.n_users :]
        if len(reps) == 2:
            self.v_rep, self.t_rep = self.v_rep.unsqueeze(2), self.t_rep.unsqueeze(2)
            both = torch.cat((self.v_rep[: self.n_users], self.t_rep[: self.n_users]), dim=2)
            both = self.weight_u.transpose(1, 2) * both
            user_rep = torch.cat((both[:, :, 0], both[:, :, 1]), dim=1)
        h = item_rep
        for _ in range(self.n_layers):
            h = torch.sparse.mm(self.mm_adj, h)
        neighbours = self.user_graph(user_rep, self.epoch_user_graph, self.user_weight_matrix)
        self.result_embed = torch.cat((user_rep + neighbours, item_rep + h))
        rows = [self.result_embed[nodes] for nodes in (users, positive, negative)]
        return (rows[0] * rows[1]).sum(1), (rows[0] * rows[2]).sum(1)

    def calculate_loss(self, interaction):
        users = interaction[0]
        positive, negative = self.forward(interaction)
        loss = -torch.log2(torch.sigmoid(positive - negative)).mean()
        preferences = [p for p in (self.v_preference, self.t_preference) if p is not None]
        penalty = sum((p[users] ** 2).mean() for p in preferences) + (self.weight_u**2).mean()
        return loss + self.reg_weight * penalty


def make_grcn(data=None, seed=0, **options):
    torch.manual_seed(seed)
    return GRCN(data or small_data(), **options)


def make_dragon(data=None, seed=0, drawn=True, **options):
    torch.manual_seed(seed)
    np.random.seed(seed)
    model = DRAGON(data or small_data(), **options)
    if drawn:
        model.pre_epoch_processing()
    return model


def golden_object(name):
    """The object with the golden's parameters and graphs, and the golden."""
    golden = load(name)
    data, reg_weight = golden_data(golden), float(golden["reg_weight"])
    if name.startswith("grcn"):
        model = make_grcn(data, reg_weight=reg_weight, n_layers=int(golden["routing_iterations"]))
    else:
        model = make_dragon(data, reg_weight=reg_weight, knn_k=int(golden["knn_k"]))
        model.mm_adj = torch.from_numpy(golden["item_graph_dense"]).to_sparse_coo()
        model.epoch_user_graph = golden["user_graph_neighbors"].tolist()
        model.user_weight_matrix = torch.from_numpy(golden["user_graph_weights"])
    state = {key.removeprefix("param."): torch.tensor(v) for key, v in golden.items() if key.startswith("param.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"image_embedding.weight", "text_embedding.weight"}
    assert not unexpected
    return model, golden
