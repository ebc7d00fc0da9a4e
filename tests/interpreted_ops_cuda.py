"""The Triton kernels on the CPU, under Triton's interpreter: run by test_ops_cuda.py with TRITON_INTERPRET=1.

The interpreter takes milliseconds for one program of one kernel, hence tiny graphs, and tiles of two and four
neighbours, with which rows of three and of seven already take the ways of long rows.
"""

import numpy as np
import pytest
import torch

from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import fused_cuda
from mmrec_helpers.ops.fused_cuda import FusedCudaOps, Launch
from tests.attention_oracle import (
    attention_block,
    differences,
    edge_weights,
    l2_normalize,
    normalized_propagate,
    values_and_gradients,
    weighted_propagate,
)


@pytest.fixture(autouse=True)
def tiny_tiles(monkeypatch):
    tiny = Launch(2, 1, True), Launch(4, 1, True), Launch(4, 1, False)
    monkeypatch.setattr(fused_cuda, "launches", lambda width: tiny)


# users with 7 (a loop over tiles), 3 (one tile of four), 1 and 0 items; items with 0 to 3 users
MIXED = BipartiteGraph.from_pairs(np.array([[0] * 7 + [1] * 3 + [2], [*range(7), 0, 2, 5, 0]]), n_users=4, n_items=8)


def attention_differences(graph, width, iterations, dtype=torch.float64, oracle=attention_block, scale=1.0):
    preference = l2_normalize(graph.n_users, width, 0, dtype)
    features = (scale * l2_normalize(graph.n_items, width, 1, dtype).detach()).requires_grad_()
    ops = FusedCudaOps(graph)
    return differences(
        lambda p, f: ops.attention_block(p, f, iterations, "live"),
        lambda p, f: oracle(graph, p, f, iterations, "live"),
        (preference, features),
    )


@pytest.mark.parametrize(("iterations", "width", "scale"), [(0, 16, 1.0), (1, 20, 1.0), (2, 16, 30.0), (3, 16, 1.0)])
def test_attention_block_equals_the_oracle(iterations, width, scale):
    assert max(attention_differences(MIXED, width, iterations, scale=scale)) < 1e-10


def test_attention_block_in_float32():
    assert max(attention_differences(MIXED, 64, 2, torch.float32)) < 1e-5


@pytest.mark.parametrize("pairs", [[[], []], [[1], [2]]], ids=["no edge", "single edge"])
def test_attention_block_with_next_to_nothing(pairs):
    graph = BipartiteGraph.from_pairs(np.array(pairs, dtype=np.int64), n_users=2, n_items=3)
    assert max(attention_differences(graph, 16, 1)) < 1e-10


def test_as_shipped_ignores_the_iterations():
    ops = FusedCudaOps(MIXED)
    inputs = l2_normalize(4, 16, 0), l2_normalize(8, 16, 1)
    shipped, none = (ops.attention_block(*inputs, *setting) for setting in ((3, "as_shipped"), (0, "live")))
    assert all(torch.equal(a, b) for a, b in zip(shipped, none))


def test_the_comparison_notices_swapped_weights():
    def swapped(*arguments):
        user_out, item_out, to_item, to_user = attention_block(*arguments)
        return user_out, item_out, to_user, to_item

    assert min(attention_differences(MIXED, 16, 1, oracle=swapped)) > 1e-2


def test_propagations_equal_the_oracle():
    graph = MIXED
    ops = FusedCudaOps(graph)
    x = l2_normalize(graph.n_nodes, 20, 2)
    weights = edge_weights(graph.n_edges, 3), edge_weights(graph.n_edges, 4)
    assert max(differences(ops.weighted_propagate, lambda *a: weighted_propagate(graph, *a), (x, *weights))) < 1e-10
    assert max(differences(ops.normalized_propagate, lambda *a: normalized_propagate(graph, *a), (x,))) < 1e-10


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_product_equals_the_dense_one():
    dense = torch.rand(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense[dense < 0.5] = 0
    dense[3] = 0
    matrix, transposed = dense.to_sparse_csr(), dense.T.to_sparse_csr()
    ops = FusedCudaOps(MIXED)
    x = l2_normalize(9, 16, 5)
    assert max(differences(lambda x: ops.sparse_product(matrix, transposed, x), lambda x: dense @ x, (x,))) < 1e-10


def test_half_precision_is_computed_in_float32():
    inputs = [l2_normalize(4, 16, 0, torch.bfloat16), l2_normalize(8, 16, 1, torch.bfloat16)]
    ops = FusedCudaOps(MIXED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {x.dtype for x in ops.attention_block(*inputs, 1, "live")} == {torch.float32}
        values, gradients = values_and_gradients(lambda p, f: ops.attention_block(p, f, 1, "live"), inputs)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    expected, expected_gradients = values_and_gradients(lambda p, f: ops.attention_block(p, f, 1, "live"), wide)
    assert all(torch.equal(a, b) for a, b in zip(values, expected))
    assert all(torch.equal(a, b.bfloat16().double()) for a, b in zip(gradients, expected_gradients))
