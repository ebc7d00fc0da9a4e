import numpy as np
import pytest
import torch
from attention_oracle import (
    attention_block,
    differences,
    random_graph,
    unit_rows,
)

from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops.fused_cpu import FusedCpuOps

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def star(n_leaves: int) -> BipartiteGraph:
    """User 0 with every item, user 1 with item 0 alone, user 2 and the last item with nothing."""
    pairs = np.array([[0] * n_leaves + [1], [*range(n_leaves), 0]])
    return BipartiteGraph.from_pairs(pairs, n_users=3, n_items=n_leaves + 1)


GRAPHS = {
    "random": random_graph(40, 30, 0.1, seed=3),
    "single edge": BipartiteGraph.from_pairs(np.array([[1], [2]]), n_users=3, n_items=4),
    "no edge": BipartiteGraph.from_pairs(np.empty((2, 0), dtype=np.int64), n_users=2, n_items=3),
    "long row": star(3000),
}


def attention_differences(graph, inputs, iterations=1, routing="live", oracle=attention_block):
    ops = FusedCpuOps(graph)
    return differences(
        lambda p, f: ops.attention_block(p, f, iterations, routing),
        lambda p, f: oracle(graph, p, f, iterations, routing),
        inputs,
    )


def inputs_for(graph, width=16, dtype=torch.float64, seed=0):
    return unit_rows(graph.n_users, width, seed, dtype), unit_rows(graph.n_items, width, seed + 1, dtype)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
def test_attention_block_equals_the_dense_oracle(name, iterations):
    graph = GRAPHS[name]
    assert max(attention_differences(graph, inputs_for(graph), iterations)) < 1e-10


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 64), (torch.float32, 17), (torch.float32, 256)])
def test_attention_block_over_types_and_widths(dtype, width):
    graph = GRAPHS["random"]
    assert max(attention_differences(graph, inputs_for(graph, width, dtype), iterations=2)) < TOLERANCE[dtype]
