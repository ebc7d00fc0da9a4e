"""The sparse operations equal the PyG ones: outputs and every gradient, on random and on awkward graphs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_helpers.config import InputError
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import make_ops
from mmrec_helpers.ops.sparse import ConstantMatrix
from tests.attention_oracle import differences, values_and_gradients


def graph_of(n_users, n_items, edges):
    pairs = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2).T
    return BipartiteGraph.from_pairs(pairs, n_users, n_items)


@st.composite
def graphs(draw):
    n_users, n_items = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    edge = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    return graph_of(n_users, n_items, draw(st.sets(edge, min_size=1, max_size=30)))


def block(ops, iterations, routing):
    """The attention block from rows of any length."""
    return lambda p, f: ops.attention_block(F.normalize(p), F.normalize(f), iterations, routing)


def cases(graph, width, dtype=torch.float64):
    """name -> (function of a backend's operations, inputs)."""
    generator = torch.Generator().manual_seed(graph.n_edges)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = random(graph.n_users, width), random(graph.n_items, width)
    x, weights = random(graph.n_nodes, width), (random(graph.n_edges), random(graph.n_edges))
    return {
        "live 3": (lambda ops: block(ops, 3, "live"), rows),
        "shipped 2": (lambda ops: block(ops, 2, "as_shipped"), rows),
        "weighted": (lambda ops: ops.weighted_propagate, (x, *weights)),
        "normalized": (lambda ops: ops.normalized_propagate, (x,)),
    }


def assert_equal_to_reference(graph, width, dtype=torch.float64, tolerance=1e-10):
    reference, sparse = make_ops("reference", graph), make_ops("sparse", graph)
    for name, (function, inputs) in cases(graph, width, dtype).items():
        inputs = [x.requires_grad_() for x in inputs]
        expected = values_and_gradients(function(reference), inputs)
        actual = values_and_gradients(function(sparse), inputs)
        for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
            assert float((a - e).abs().max()) <= tolerance * max(1.0, float(e.abs().max())), name


@settings(max_examples=25, deadline=None)
@given(graph=graphs(), width=st.sampled_from([1, 16, 33]))
def test_random_graphs(graph, width):
    assert_equal_to_reference(graph, width)


@pytest.mark.parametrize(
    "graph",
    [
        graph_of(1, 1, {(0, 0)}),
        graph_of(5, 4, {(3, 2)}),
        graph_of(4, 3000, {(1, i) for i in range(2500)} | {(3, 7)}),
        graph_of(2000, 3, {(u, 1) for u in range(1500)}),
    ],
    ids=["single edge", "isolated nodes", "a user with thousands", "an item with thousands"],
)
def test_awkward_graphs(graph):
    assert_equal_to_reference(graph, 16)


@pytest.mark.parametrize("width", [16, 64, 256])
def test_float32(width):
    edges = {(int(u), int(i)) for u, i in np.random.default_rng(0).integers(0, 40, size=(300, 2))}
    assert_equal_to_reference(graph_of(40, 40, edges), width, torch.float32, tolerance=1e-5)


def test_control_swapped_weights_differ():
    graph = graph_of(3, 3, {(0, 0), (0, 1), (1, 1), (2, 0)})
    _, (x, to_item, to_user) = cases(graph, 4)["weighted"]
    expected = make_ops("reference", graph).weighted_propagate(x, to_item, to_user)
    swapped = make_ops("sparse", graph).weighted_propagate(x, to_user, to_item)
    assert (expected - swapped).abs().max() > 1e-3


def test_half_precision_is_computed_in_float32():
    graph = graph_of(3, 3, {(0, 0), (0, 1), (1, 1), (2, 0)})
    p, f = (F.normalize(rows).half() for rows in cases(graph, 8, torch.float32)["live 3"][1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        users = make_ops("sparse", graph).attention_block(p, f, 1, "live")[0]
    expected = make_ops("sparse", graph).attention_block(p.float(), f.float(), 1, "live")[0]
    assert users.dtype == torch.float32
    assert torch.equal(users, expected)


@pytest.mark.parametrize("backend", ["reference", "sparse"])
def test_sparse_product_sums_equal_places(backend):
    graph = graph_of(1, 1, {(0, 0)})
    indices, values = torch.tensor([[0, 0, 2], [1, 1, 0]]), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    matrix, transposed = ConstantMatrix(indices, values, (3, 2)).pair()
    dense = torch.tensor([[0.0, 3.0], [0.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    x = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    ops = make_ops(backend, graph)
    assert max(differences(lambda x: ops.sparse_product(matrix, transposed, x), lambda x: dense @ x, (x,))) < 1e-12


def test_sparse_product_names_shapes():
    graph = graph_of(1, 1, {(0, 0)})
    matrix, transposed = ConstantMatrix(torch.tensor([[0], [1]]), torch.ones(1), (3, 2)).pair()
    with pytest.raises(InputError, match=r"x has shape \(3, 2\): expected \(2, width\)"):
        make_ops("sparse", graph).sparse_product(matrix, transposed, torch.ones(3, 2))
