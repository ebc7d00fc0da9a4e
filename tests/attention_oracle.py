"""A slow float64 oracle for the fused backends: dense matrices, one line an equation, gradients by torch's autograd."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmrec_helpers.data.graph import BipartiteGraph


def adjacency(graph: BipartiteGraph) -> Tensor:
    """(U, I), True where there is an edge."""
    dense = torch.zeros(graph.n_users, graph.n_items, dtype=torch.bool)
    for user, item in zip(graph.edge_user.tolist(), graph.edge_item.tolist()):
        dense[user, item] = True
    return dense


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of each row over the entries in the mask; rows without any are zero."""
    weights = torch.where(mask, (scores - scores.detach().amax(1, keepdim=True)).exp(), 0.0)
    return weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


def attention_block(graph, preference, features, iterations, routing):
    mask = adjacency(graph)
    for _ in range(iterations if routing == "live" else 0):
        weights = masked_softmax(preference @ features.T, mask)
        preference = torch.nn.functional.normalize(preference + weights @ features)
    to_user = masked_softmax(preference @ features.T, mask)  # (U, I)
    to_item = masked_softmax(features @ preference.T, mask.T)  # (I, U)
    edges = graph.edge_user, graph.edge_item
    return (
        preference + to_user @ features,
        features + to_item @ preference,
        to_item[edges[1], edges[0]],
        to_user[edges[0], edges[1]],
    )


def weighted_propagate(graph, x, weight_to_item, weight_to_user):
    user, item = graph.edge_user, graph.n_users + graph.edge_item
    operator = torch.zeros(graph.n_nodes, graph.n_nodes, dtype=x.dtype)
    operator = operator.index_put((item, user), weight_to_item).index_put((user, item), weight_to_user)
    return operator @ x


def normalized_propagate(graph, x):
    degree = torch.cat([graph.user_degree, graph.item_degree]).to(x.dtype)
    weight = 1 / (degree[graph.edge_user] * degree[graph.n_users + graph.edge_item]).sqrt()
    return weighted_propagate(graph, x, weight, weight)


def random_graph(n_users: int, n_items: int, density: float, seed: int) -> BipartiteGraph:
    """Random edges, with some users and items left without any."""
    random = np.random.default_rng(seed)
    pairs = np.argwhere(random.random((n_users, n_items)) < density).T
    return BipartiteGraph.from_pairs(random.permutation(pairs.T).T, n_users, n_items)


GRAPHS = {
    "random": random_graph(40, 30, 0.1, seed=3),
    "single edge": BipartiteGraph.from_pairs(np.array([[1], [2]]), n_users=3, n_items=4),
    "no edge": BipartiteGraph.from_pairs(np.empty((2, 0), dtype=np.int64), n_users=2, n_items=3),
    # user 0 has 3,000 items, user 1 one of them; user 2 and the last item have nothing
    "long row": BipartiteGraph.from_pairs(np.array([[0] * 3000 + [1], [*range(3000), 0]]), n_users=3, n_items=3001),
    "long column": BipartiteGraph.from_pairs(np.array([[*range(3000), 0], [0] * 3000 + [1]]), n_users=3001, n_items=3),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def l2_normalize(rows: int, width: int, seed: int, dtype=torch.float64, device="cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(x).to(device=device, dtype=dtype).requires_grad_()


def edge_weights(count: int, seed: int, dtype=torch.float64, device="cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype).requires_grad_()


def values_and_gradients(function, inputs) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of function(*inputs), and the gradients of a fixed linear form of them, in float64 on the CPU."""
    outputs = function(*inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(
        123_456
    )  # a seed of no input: unit rows have no gradient along themselves
    form = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, inputs, form)
    return [x.detach().double().cpu() for x in outputs], [x.double().cpu() for x in gradients]


def largest_difference(got: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference of any entry, relative to the largest entry of its tensor."""
    pairs = [(a, b) for a, b in zip(got, expected, strict=True) if b.numel()]
    return max((float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs), default=0.0)


def differences(function, oracle, inputs) -> tuple[float, float]:
    """Largest relative difference of outputs and of gradients between a backend and the oracle run in float64."""
    values, gradients = values_and_gradients(function, inputs)
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    expected, expected_gradients = values_and_gradients(oracle, exact)
    return largest_difference(values, expected), largest_difference(gradients, expected_gradients)


def attention_differences(ops, inputs, iterations, routing="live", oracle=attention_block):
    return differences(
        lambda p, f: ops.attention_block(p, f, iterations, routing),
        lambda p, f: oracle(ops.graph.to("cpu"), p, f, iterations, routing),
        inputs,
    )


def propagation_differences(ops, inputs):
    """Of the weighted and of the normalised propagation, from x (N, d) and the weights (E,) of both directions."""
    graph = ops.graph.to("cpu")
    weighted = differences(ops.weighted_propagate, lambda *a: weighted_propagate(graph, *a), inputs)
    return weighted + differences(ops.normalized_propagate, lambda x: normalized_propagate(graph, x), inputs[:1])


def product_differences(ops, n_rows, n_columns, width, dtype=torch.float64, device="cpu"):
    """Of the product with a sparse matrix, one row of which is empty."""
    dense = torch.rand(n_rows, n_columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense[dense < 0.8] = 0
    dense[3] = 0
    matrix, transposed = dense.to(device).to_sparse_csr(), dense.T.to(device).to_sparse_csr()
    x = l2_normalize(n_columns, width, 5, dtype, device)
    return differences(lambda x: ops.sparse_product(matrix, transposed, x), lambda x: dense @ x, (x,))


def swapped_weights(*arguments):
    """A wrong oracle: the attention weights of the two directions exchanged."""
    user_out, item_out, to_item, to_user = attention_block(*arguments)
    return user_out, item_out, to_user, to_item
