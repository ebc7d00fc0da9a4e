"""The PyG operations against sums written out by hand, on graphs small enough to check."""

import pytest
import torch
import torch.nn.functional as F

from mmrec_helpers.config import InputError
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import make_ops
from mmrec_helpers.ops.reference import EdgeAttention, ReferenceOps

# user 0 has items 0 and 1, user 1 has item 1, user 2 has none; item 2 has nobody
GRAPH = BipartiteGraph.from_pairs([[0, 0, 1], [0, 1, 1]], 3, 3)


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float64))


PREFERENCE = unit([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])
FEATURES = unit([1.0, 0.0], [0.0, 1.0], [1.0, -1.0])


def test_attention_goes_from_source_to_target():
    x = torch.cat((PREFERENCE, FEATURES))
    out, weights = EdgeAttention()(x, torch.tensor([[0, 1], [4, 4]]))  # users 0 and 1 to item 1
    expected = torch.softmax(torch.stack((x[0] @ x[4], x[1] @ x[4])), dim=0)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(out[4], expected[0] * x[0] + expected[1] * x[1])
    assert not out[[0, 1, 2, 3, 5]].any()


def test_self_loops_are_dropped():
    x = torch.cat((PREFERENCE, FEATURES))
    out, weights = EdgeAttention()(x, torch.tensor([[0, 4], [4, 4]]))
    assert weights.shape == (1,)
    torch.testing.assert_close(out[4], x[0])


def test_live_routing_gathers_from_items():
    ops = ReferenceOps(GRAPH)
    users, items, to_item, to_user = ops.attention_block(PREFERENCE, FEATURES, 1, "live")
    attention = torch.softmax(FEATURES[:2] @ PREFERENCE[0], dim=0)
    routed = F.normalize(PREFERENCE[0] + attention @ FEATURES[:2], dim=0)
    again = torch.softmax(FEATURES[:2] @ routed, dim=0)
    torch.testing.assert_close(users[0], routed + again @ FEATURES[:2])
    torch.testing.assert_close(to_user, torch.tensor([again[0], again[1], 1.0], dtype=torch.float64))
    torch.testing.assert_close(users[2], PREFERENCE[2])  # no items: nothing arrives
    torch.testing.assert_close(items[2], FEATURES[2])
    assert to_item[0] == 1.0  # item 0 has one user
    shipped = ops.attention_block(PREFERENCE, FEATURES, 1, "as_shipped")[0]
    assert not torch.allclose(users[0], shipped[0])


def test_routing_as_shipped_changes_nothing():
    ops = ReferenceOps(GRAPH)
    for iterations in (1, 3):
        for actual, expected in zip(
            ops.attention_block(PREFERENCE, FEATURES, iterations, "as_shipped"),
            ops.attention_block(PREFERENCE, FEATURES, 0, "as_shipped"),
        ):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_weighted_propagation():
    x = torch.arange(12, dtype=torch.float64).view(6, 2)
    to_item, to_user = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    out = ReferenceOps(GRAPH).weighted_propagate(x, to_item, to_user)
    expected = torch.zeros_like(x)
    expected[0], expected[1] = 4 * x[3] + 5 * x[4], 6 * x[4]
    expected[3], expected[4] = 1 * x[0], 2 * x[0] + 3 * x[1]
    torch.testing.assert_close(out, expected)
    swapped = ReferenceOps(GRAPH).weighted_propagate(x, to_user, to_item)
    assert not torch.allclose(swapped, expected)


def test_normalized_propagation():
    x = torch.arange(12, dtype=torch.float64).view(6, 2)
    expected = torch.zeros_like(x)
    expected[0], expected[1] = x[3] / 2**0.5 + x[4] / 2, x[4] / 2**0.5
    expected[3], expected[4] = x[0] / 2**0.5, x[0] / 2 + x[1] / 2**0.5
    torch.testing.assert_close(ReferenceOps(GRAPH).normalized_propagate(x), expected)


@pytest.mark.parametrize(("missing", "chosen"), [(None, "FusedCpuOps"), ("numba", "SparseOps")])
def test_auto_takes_the_fastest_that_runs(monkeypatch, missing, chosen):
    monkeypatch.setattr("mmrec_helpers.ops.find_spec", lambda package: None if package == missing else package)
    assert type(make_ops("auto", GRAPH)).__name__ == chosen


@pytest.mark.parametrize(("device", "package"), [("cpu", "numba"), ("cuda", "triton")])
def test_fused_says_what_it_needs(monkeypatch, device, package):
    monkeypatch.setattr("mmrec_helpers.ops.find_spec", lambda _: None)
    monkeypatch.setattr(BipartiteGraph, "to", lambda graph, device: graph)
    with pytest.raises(InputError, match=f"backend 'fused' on {device} needs {package}, which is not installed"):
        make_ops("fused", GRAPH, device)


def test_unknown_backend_is_named():
    with pytest.raises(InputError, match="unknown backend 'dense': expected one of auto, reference, sparse, fused"):
        make_ops("dense", GRAPH)
