"""Each small operation against the plain torch expression: values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops.rows import EdgeGroups, l2_normalize, mean_square, padded_rows, weighted_rows

GRAPH = BipartiteGraph.from_pairs([[0, 2, 0, 2, 2], [1, 1, 3, 0, 3]], 4, 4)  # users 1 and 3, item 2 alone


def value_and_gradient(function, x):
    x = x.clone().requires_grad_()
    out = function(x)
    factor = torch.arange(1, out.numel() + 1, dtype=out.dtype).view(out.shape).cos()
    return out.detach(), torch.autograd.grad((out * factor).sum(), x)[0]


def assert_same(function, plain, x):
    for actual, expected in zip(value_and_gradient(function, x), value_and_gradient(plain, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 6), (1, 1)])
def test_unit_rows(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_same(l2_normalize, lambda x: F.normalize(x, dim=-1), x)


def test_unit_rows_of_next_to_nothing():
    assert_same(l2_normalize, F.normalize, torch.tensor([[0.0, 0.0], [3e-13, 4e-13], [3.0, 4.0]], dtype=torch.float64))


def test_unit_rows_widen_half_precision():
    assert l2_normalize(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_mean_square():
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_same(mean_square, lambda x: (x**2).mean(), x)
    assert_same(mean_square, lambda x: (x**2).mean(), x.T)


@pytest.mark.parametrize(
    ("groups", "node"), [(EdgeGroups.by_user, GRAPH.edge_user), (EdgeGroups.by_item, GRAPH.edge_item)]
)
def test_groups_of_edges(groups, node):
    x = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25], dtype=torch.float64)

    def shares(x):
        return x / torch.zeros(4, dtype=x.dtype).index_add(0, node, x)[node]

    assert_same(groups(GRAPH).softmax, shares, x)
    assert_same(groups(GRAPH).expand_to_edges, lambda values: values[node], x[:4])


def test_weighted_rows_of_a_sparse_matrix():
    dense = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 0.0], [5.0, 0.5, 0.25], [0.0, 0.0, 1.0]], dtype=torch.float64)
    indices = torch.tensor([[2, 0, 2, 3, 0, 2], [1, 1, 0, 2, 1, 2]])  # (0, 1) twice: 1 + 2
    values = torch.tensor([0.5, 1.0, 5.0, 1.0, 2.0, 0.25], dtype=torch.float64)
    index, weight = padded_rows(indices, values, 4)
    assert index.shape == weight.shape == (4, 3)
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_same(lambda x: weighted_rows(x, index, weight), lambda x: dense @ x, x)
    picked = torch.tensor([2, 0, 2])
    assert_same(lambda x: weighted_rows(x, index[picked], weight[picked]), lambda x: dense[picked] @ x, x)


def test_control_the_groups_differ():
    x = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])
    by_user, by_item = EdgeGroups.by_user(GRAPH), EdgeGroups.by_item(GRAPH)
    assert not torch.allclose(by_user.softmax(x), by_item.softmax(x))
