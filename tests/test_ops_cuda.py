"""The fused CUDA backend. Its kernels run here under Triton's interpreter, and ``test_kernels`` compiles them;
gpu-marked tests need a CUDA device. Triton is part of the test requirements on Linux: without it these tests fail and
are not skipped."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from mmrec_helpers.config import InputError
from tests.attention_oracle import GRAPHS as SMALL_GRAPHS
from tests.attention_oracle import (
    TOLERANCE,
    attention_block,
    attention_differences,
    edge_weights,
    l2_normalize,
    product_differences,
    propagation_differences,
    random_graph,
    values_and_gradients,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

ROOT = Path(__file__).parents[1]


def triton_is_old() -> bool:
    """As torch 2.4's is: its compiler takes the kernels, called in another way, and its interpreter refuses them."""
    try:
        return Version(metadata.version("triton")) < Version("3.4")
    except metadata.PackageNotFoundError:
        return False  # to fail, not to be skipped


needs_triton_3_4 = pytest.mark.skipif(triton_is_old(), reason="needs Triton 3.4")


@needs_triton_3_4
def test_the_kernels_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted_ops_cuda.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


def test_a_graph_on_the_cpu_is_refused():
    from mmrec_helpers.ops.fused_cuda import FusedCudaOps

    with pytest.raises(InputError, match="the graph is on cpu: expected cuda"):
        FusedCudaOps(random_graph(3, 3, 0.5, seed=0))


# On a CUDA device.

RANDOM = random_graph(400, 300, 0.1, seed=3)
GRAPHS = SMALL_GRAPHS | {"random": RANDOM}


def cuda_ops(graph):
    from mmrec_helpers.ops.fused_cuda import FusedCudaOps

    return FusedCudaOps(graph.to("cuda"))


def cuda_inputs(graph, width, dtype=torch.float32):
    return tuple(l2_normalize(n, width, seed, dtype, "cuda") for seed, n in enumerate((graph.n_users, graph.n_items)))


@pytest.mark.gpu
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_attention_block_equals_the_oracle(name, iterations, dtype):
    graph = GRAPHS[name]
    assert max(attention_differences(cuda_ops(graph), cuda_inputs(graph, 64, dtype), iterations)) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("width", [16, 20, 32, 96, 128, 256])
def test_cuda_attention_block_over_widths(width):
    assert max(attention_differences(cuda_ops(RANDOM), cuda_inputs(RANDOM, width), 2)) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_propagations_equal_the_oracle(name, dtype):
    graph = GRAPHS[name]
    x = l2_normalize(graph.n_nodes, 64, 2, dtype, "cuda")
    weights = [edge_weights(graph.n_edges, seed, dtype, "cuda") for seed in (3, 4)]
    assert max(propagation_differences(cuda_ops(graph), (x, *weights))) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Sparse")
def test_cuda_sparse_product_equals_the_dense_one():
    assert max(product_differences(cuda_ops(RANDOM), 500, 400, 128, torch.float32, "cuda")) < 1e-5


@pytest.mark.gpu
def test_cuda_results_are_bitwise_the_same_every_time():
    graph = RANDOM
    ops = cuda_ops(graph)
    inputs = cuda_inputs(graph, 64)
    x = l2_normalize(graph.n_nodes, 64, 2, torch.float32, "cuda")
    weights = [edge_weights(graph.n_edges, seed, torch.float32, "cuda") for seed in (3, 4)]

    def run():
        attention = values_and_gradients(lambda p, f: ops.attention_block(p, f, 3, "live"), inputs)
        weighted = values_and_gradients(ops.weighted_propagate, (x, *weights))
        return [tensor for part in (*attention, *weighted) for tensor in part]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_autocast_and_gradient_scaling(dtype):
    graph = RANDOM
    ops = cuda_ops(graph)
    layer = l2_normalize(64, 64, 3, torch.float32, "cuda")
    leaves = [*cuda_inputs(graph, 64), layer]
    with torch.autocast("cuda", dtype=dtype):
        low = [leaves[0] @ layer, leaves[1] @ layer]
        assert {x.dtype for x in low} == {dtype}
        outputs = ops.attention_block(*low, 1, "live")
        loss = sum(x.square().sum() for x in outputs)
    assert {x.dtype for x in outputs} == {torch.float32}
    exact = attention_block(graph, *(x.detach().double().cpu() for x in low), 1, "live")
    for got, expected in zip(outputs, exact, strict=True):
        assert (got.detach().cpu() - expected).abs().max() < 1e-5 * expected.abs().max()
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    scaled = torch.autograd.grad(scaler.scale(loss), leaves, retain_graph=True)
    plain = torch.autograd.grad(loss, leaves)
    for a, b in zip(scaled, plain, strict=True):
        assert (a / 1024 - b).abs().max() < 0.02 * b.abs().max()  # the half-precision layer in front rounds


def training_step(ops, inputs, weights):
    """Forward and backward of everything that a step of GRCN does with the graph; returns the gradients."""
    user_out, item_out, to_item, to_user = ops.attention_block(*inputs, 3, "live")
    x = ops.weighted_propagate(torch.cat([user_out, item_out]), to_item * weights[0], to_user * weights[1])
    return torch.autograd.grad(ops.normalized_propagate(x).square().sum(), (*inputs, *weights))


@pytest.mark.gpu
def test_cuda_step_does_not_wait_and_replays_from_a_cuda_graph():
    graph = RANDOM
    ops = cuda_ops(graph)
    inputs = cuda_inputs(graph, 64)
    weights = [edge_weights(graph.n_edges, seed, torch.float32, "cuda") for seed in (3, 4)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = training_step(ops, inputs, weights)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            training_step(ops, inputs, weights)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        gradients = training_step(ops, inputs, weights)
    captured.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.gpu
def test_cuda_memory_stays_below_edges_by_width():
    graph = random_graph(600, 500, 0.9, seed=2)
    ops = cuda_ops(graph)
    inputs = cuda_inputs(graph, 64)
    run = lambda: values_and_gradients(lambda p, f: ops.attention_block(p, f, 3, "live"), inputs)  # noqa: E731
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    assert torch.cuda.max_memory_allocated() - before < graph.n_edges * 64 * 4 // 2
