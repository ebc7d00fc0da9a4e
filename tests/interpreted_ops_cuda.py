"""The Triton kernels on the CPU, under Triton's interpreter: run by test_ops_cuda.py with TRITON_INTERPRET=1.

The interpreter takes milliseconds for one program of one kernel, hence tiny graphs, and tiles of two and four
neighbours, with which rows of three and of seven already take the ways of long rows.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmrec_helpers.data import Interactions
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.experiments.kernels import CASES
from mmrec_helpers.experiments.roofline import workload_of
from mmrec_helpers.models import base, build
from mmrec_helpers.models.step_cost import held_bytes, predicted_step_bytes
from mmrec_helpers.ops import fused_cuda
from mmrec_helpers.ops.fused_cuda import FusedCudaOps, Launch
from mmrec_helpers.profiling.memory import peak_bytes
from mmrec_helpers.training.step import make_optimizer, train_step
from tests.attention_oracle import (
    attention_differences,
    edge_weights,
    l2_normalize,
    product_differences,
    propagation_differences,
    swapped_weights,
    values_and_gradients,
)


@pytest.fixture(autouse=True)
def tiny_tiles(monkeypatch):
    tiny = Launch(2, 1, True), Launch(4, 1, True), Launch(4, 1, False)
    monkeypatch.setattr(fused_cuda, "launches", lambda width: tiny)


# users with 7 (a loop over tiles), 3 (one tile of four), 1 and 0 items; items with 0 to 3 users
MIXED = BipartiteGraph.from_pairs(np.array([[0] * 7 + [1] * 3 + [2], [*range(7), 0, 2, 5, 0]]), n_users=4, n_items=8)


def inputs(graph, width, dtype=torch.float64, scale=1.0):
    features = scale * l2_normalize(graph.n_items, width, 1, dtype).detach()
    return l2_normalize(graph.n_users, width, 0, dtype), features.requires_grad_()


@pytest.mark.parametrize(("iterations", "width", "scale"), [(0, 16, 1.0), (1, 20, 1.0), (2, 16, 30.0), (3, 16, 1.0)])
def test_attention_block_equals_the_oracle(iterations, width, scale):
    assert max(attention_differences(FusedCudaOps(MIXED), inputs(MIXED, width, scale=scale), iterations)) < 1e-10


def test_attention_block_in_float32():
    assert max(attention_differences(FusedCudaOps(MIXED), inputs(MIXED, 64, torch.float32), 2)) < 1e-5


@pytest.mark.parametrize("pairs", [[[], []], [[1], [2]]], ids=["no edge", "single edge"])
def test_attention_block_with_next_to_nothing(pairs):
    graph = BipartiteGraph.from_pairs(np.array(pairs, dtype=np.int64), n_users=2, n_items=3)
    assert max(attention_differences(FusedCudaOps(graph), inputs(graph, 16), 1)) < 1e-10


def test_as_shipped_ignores_the_iterations():
    ops = FusedCudaOps(MIXED)
    shipped, none = (ops.attention_block(*inputs(MIXED, 16), *setting) for setting in ((3, "as_shipped"), (0, "live")))
    assert all(torch.equal(a, b) for a, b in zip(shipped, none))


def test_the_comparison_notices_swapped_weights():
    assert min(attention_differences(FusedCudaOps(MIXED), inputs(MIXED, 16), 1, oracle=swapped_weights)) > 1e-2


def test_propagations_equal_the_oracle():
    x, weights = l2_normalize(MIXED.n_nodes, 20, 2), [edge_weights(MIXED.n_edges, seed) for seed in (3, 4)]
    assert max(propagation_differences(FusedCudaOps(MIXED), (x, *weights))) < 1e-10


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_product_equals_the_dense_one():
    assert max(product_differences(FusedCudaOps(MIXED), 6, 9, 16)) < 1e-10


def test_half_precision_is_computed_in_float32():
    half = inputs(MIXED, 16, torch.bfloat16)
    ops = FusedCudaOps(MIXED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {x.dtype for x in ops.attention_block(*half, 1, "live")} == {torch.float32}
        values, gradients = values_and_gradients(lambda p, f: ops.attention_block(p, f, 1, "live"), half)
    wide = [x.detach().float().requires_grad_() for x in half]
    expected, expected_gradients = values_and_gradients(lambda p, f: ops.attention_block(p, f, 1, "live"), wide)
    assert all(torch.equal(a, b) for a, b in zip(values, expected))
    assert all(torch.equal(a, b.bfloat16().double()) for a, b in zip(gradients, expected_gradients))


def test_the_kernels_that_are_compiled_elsewhere_are_those_that_a_step_launches(monkeypatch):
    seen = []
    monkeypatch.setattr(fused_cuda, "_run", lambda kernel, *_, **constants: seen.append((kernel.__name__, constants)))
    ops, x = FusedCudaOps(MIXED), l2_normalize(MIXED.n_nodes, 16, 2)
    for iterations in (0, 3):
        outputs = ops.attention_block(*inputs(MIXED, 16), iterations, "live")
        sum(output.sum() for output in outputs).backward()
    weights = [edge_weights(MIXED.n_edges, seed) for seed in (3, 4)]
    ops.weighted_propagate(ops.normalized_propagate(x), *weights).sum().backward()
    assert {repr(case) for case in seen} == {repr(case) for case in CASES}


def random_data(n_users, n_items, n_edges):
    random = np.random.default_rng(0)
    places = random.choice(n_users * n_items, n_edges, replace=False)
    features = {name: random.normal(size=(n_items, 8)).astype(np.float32) for name in ("visual", "textual")}
    pairs = np.stack(np.divmod(places, n_items))
    return Interactions.from_arrays(n_users=n_users, n_items=n_items, train=pairs, features=features)


def storages(value, found):
    """The bytes of all tensors that an object holds, by address."""
    if isinstance(value, torch.Tensor):
        parts = (value.crow_indices(), value.col_indices(), value.values()) if value.layout != torch.strided else ()
        for one in parts or (value,):
            found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    elif isinstance(value, (dict, list, tuple)):
        for one in value.values() if isinstance(value, dict) else value:
            storages(one, found)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        storages(vars(value), found)
    return found


@pytest.mark.parametrize("name", ["grcn", "dragon"])
@pytest.mark.parametrize("sizes", [(600, 600, 150_000), (3000, 3000, 6000)], ids=["many edges", "many nodes"])
def test_memory_of_a_step_is_as_predicted(monkeypatch, name, sizes):
    """Of the code for CUDA, whose tensors are made on the CPU and whose kernels do nothing."""
    monkeypatch.setattr(base, "make_ops", lambda backend, graph, device: FusedCudaOps(graph))
    monkeypatch.setattr(fused_cuda, "_run", lambda *_, **__: None)
    data = random_data(*sizes)
    model = build(name, data, backend="fused", embedding_dim=32)
    optimizer, batch = make_optimizer(model), torch.zeros(3, 64, dtype=torch.int64)

    def step():
        train_step(model, optimizer, batch, check=False)

    step()
    predicted = predicted_step_bytes(name, data, model.settings, "fused")
    assert 0.75 * peak_bytes(step) < predicted < 1.33 * peak_bytes(step)
    optimizer.zero_grad()
    kept = (*model.named_parameters(), *model.named_buffers())
    found = sum(storages([dict(kept), vars(model.ops), optimizer.state], {}).values())
    workload = replace(workload_of(data, 64), embedding_dim=32)
    assert held_bytes(name, workload, "fused") == pytest.approx(found, rel=0.1)
