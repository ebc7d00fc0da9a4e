"""What every backend computes on rows and edges besides attention and propagation, against plain torch: values and
gradients. The small operations of ``rows`` on their own stand at the end."""

import pytest
import torch
import torch.nn.functional as F

from mmrec_helpers.config import InputError
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import make_ops
from mmrec_helpers.ops.rows import EdgeGroups, cosine_similarity, l2_normalize, mean_square, padded_rows

SMALL = BipartiteGraph.from_pairs([[0, 2, 0, 2, 2], [1, 1, 3, 0, 3]], 4, 4)  # users 1 and 3, item 2 alone
BACKENDS = ("reference", "sparse", "fused")


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same(function, plain, *inputs):
    results = []
    for one in (function, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = one(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = sum((out * torch.arange(1, out.numel() + 1).view(out.shape).cos()).sum() for out in outputs)
        results.append([*outputs, *torch.autograd.grad(total, leaves)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=BACKENDS)
def ops(request):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield make_ops(request.param, SMALL)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(5, 3), (1500, 32)])  # the second is shared among threads
def test_unit_rows_and_mean_squares(ops, shape):
    rows = torch.arange(2000) % 5 * 3 % shape[0]  # each row many times

    def plain(x):
        return F.normalize(x), (x[rows] ** 2).mean(), (x**2).mean(), (x[:2] ** 2).mean()

    def actual(x):
        unit, squares = ops.unit_rows_and_squares(x, (rows, None, torch.tensor([0, 1])))
        return unit, *squares

    assert_same(actual, plain, drawn(*shape))
    assert_same(ops.l2_normalize, F.normalize, drawn(*shape))
    leaky = drawn(*shape)
    leaky[0, :2] = 0
    assert_same(lambda x: ops.l2_normalize(x, 0.01), lambda x: F.normalize(F.leaky_relu(x, 0.01)), leaky)
    assert ops.unit_rows_and_squares(drawn(*shape), ())[1] == ()


def test_unit_rows_of_next_to_nothing(ops):
    x = torch.tensor([[0.0, 0.0], [3e-13, 4e-13], [3.0, 4.0], [float("nan"), 1.0]], dtype=torch.float64)
    assert_same(ops.l2_normalize, F.normalize, x[:3])
    assert ops.l2_normalize(x)[3].isnan().all()
    assert ops.l2_normalize(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("width", [3, 40])
def test_score_differences(ops, width):
    batch = torch.tensor([[0, 3, 3, 1], [1, 1, 0, 2], [2, 0, 0, 1]])  # the third: positive is negative

    def plain(users, items):
        return (users[batch[0]] * (items[batch[1]] - items[batch[2]])).sum(1)

    tables = drawn(4, width), drawn(3, width, seed=1)
    assert_same(lambda users, items: ops.score_differences(users, items, batch), plain, *tables)
    assert_same(lambda table: ops.score_differences(table, None, batch), lambda table: plain(table, table), tables[0])


@pytest.mark.parametrize("width", [3, 40])
def test_weighted_rows(ops, width):
    index, weight = torch.tensor([[0, 2, 2], [1, 1, 0]]), torch.tensor([[1.0, 0.5, 2.0], [3.0, 0.0, -1.0]])

    def plain(x):
        return (x[index] * weight.double().unsqueeze(2)).sum(1)

    assert_same(lambda x: ops.weighted_rows(x, index, weight), plain, drawn(3, width))


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_refined_weights(ops, modalities):
    graph, confidence = ops.graph, drawn(8, modalities, seed=2)
    alphas = [drawn(5, seed=seed).abs() for seed in range(2 * modalities)]
    if modalities > 1:
        confidence[1:3, 1], alphas[1] = confidence[1:3, 0], alphas[0]  # a tie: the first wins

    def plain(confidence, *alphas):
        to_item = torch.stack(alphas[:modalities], 1) * confidence[graph.edge_user]
        to_user = torch.stack(alphas[modalities:], 1) * confidence[4 + graph.edge_item]
        return torch.relu(to_item.max(1).values), torch.relu(to_user.max(1).values)

    def actual(confidence, *alphas):
        return ops.refined_weights(alphas[:modalities], alphas[modalities:], confidence)

    assert_same(actual, plain, confidence, *alphas)


def test_propagate_twice(ops):
    adjacency = torch.zeros(8, 8, dtype=torch.float64)
    users, items = ops.graph.edge_user, 4 + ops.graph.edge_item

    def plain(x, to_item, to_user):
        a = adjacency.index_put((items, users), to_item).index_put((users, items), to_user)
        return x + a @ x + a @ (a @ x)

    assert_same(ops.propagate_twice, plain, drawn(8, 16), drawn(5, seed=1), drawn(5, seed=2))


def test_control_the_directions_differ(ops):
    x, weights = drawn(8, 16), (drawn(5, seed=1), drawn(5, seed=2))
    assert not torch.allclose(ops.propagate_twice(x, *weights), ops.propagate_twice(x, *weights[::-1]))


@pytest.mark.parametrize("bad", [-1, 4])
def test_rows_out_of_range_are_refused(bad):
    ops, table, rows = make_ops("fused", SMALL), drawn(4, 16), torch.tensor([0, bad])
    for call in (
        lambda: ops.unit_rows_and_squares(table, (rows,)),
        lambda: ops.score_differences(table, None, rows.view(1, 2).expand(3, 2)),
        lambda: ops.weighted_rows(table, rows.view(1, 2), torch.ones(1, 2)),
    ):
        with pytest.raises(InputError, match=f"hold {bad}: expected 0 to 3"):
            call()


# The operations of rows.


@pytest.mark.parametrize("shape", [(4, 2, 6), (1, 1)])
def test_unit_rows_of_any_shape(shape):
    assert_same(l2_normalize, lambda x: F.normalize(x, dim=-1), drawn(*shape))


def test_cosines_of_rows():
    x, y = drawn(5, 6), drawn(5, 6)
    with torch.no_grad():
        x[0], x[1], y[1] = 0, 1e-9, 1e-9  # of no length, and of one too small
    assert_same(cosine_similarity, lambda x, y: F.cosine_similarity(x, y, dim=-1), x, y)
    fixed = y.detach()
    assert_same(lambda x: cosine_similarity(fixed, x), lambda x: F.cosine_similarity(fixed, x), x)


def test_mean_square():
    assert_same(mean_square, lambda x: (x**2).mean(), drawn(4, 3))
    assert_same(mean_square, lambda x: (x**2).mean(), drawn(4, 3).T)


@pytest.mark.parametrize(
    ("groups", "node"), [(EdgeGroups.by_user, SMALL.edge_user), (EdgeGroups.by_item, SMALL.edge_item)]
)
def test_groups_of_edges(groups, node):
    x = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25], dtype=torch.float64)

    def shares(x):
        return x / torch.zeros(4, dtype=x.dtype).index_add(0, node, x)[node]

    assert_same(groups(SMALL).softmax, shares, x)
    assert_same(groups(SMALL).expand_to_edges, lambda values: values[node], x[:4])


def test_weighted_rows_of_a_sparse_matrix():
    sparse = make_ops("sparse", SMALL)
    dense = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 0.0], [5.0, 0.5, 0.25], [0.0, 0.0, 1.0]], dtype=torch.float64)
    indices = torch.tensor([[2, 0, 2, 3, 0, 2], [1, 1, 0, 2, 1, 2]])  # (0, 1) twice: 1 + 2
    values = torch.tensor([0.5, 1.0, 5.0, 1.0, 2.0, 0.25], dtype=torch.float64)
    index, weight = padded_rows(indices, values, 4)
    assert index.shape == weight.shape == (4, 3)
    assert_same(lambda x: sparse.weighted_rows(x, index, weight), lambda x: dense @ x, drawn(3, 5))
    some = torch.tensor([2, 0, 2])
    assert_same(lambda x: sparse.weighted_rows(x, index[some], weight[some]), lambda x: dense[some] @ x, drawn(3, 5))


def test_control_the_groups_differ():
    x = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])
    by_user, by_item = EdgeGroups.by_user(SMALL), EdgeGroups.by_item(SMALL)
    assert not torch.allclose(by_user.softmax(x), by_item.softmax(x))
