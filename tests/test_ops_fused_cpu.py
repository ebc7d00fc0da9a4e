import ctypes
import multiprocessing
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite.binding import llvm_version_info
from torch.utils._python_dispatch import TorchDispatchMode

from mmrec_helpers.config import InputError
from mmrec_helpers.ops import fused_cpu_kernels, fused_cpu_threads
from mmrec_helpers.ops.fused_cpu import FusedCpuOps
from mmrec_helpers.ops.fused_cpu_threads import even_ranges, row_ranges, run_over_ranges
from tests.attention_oracle import (
    GRAPHS,
    attention_block,
    attention_differences,
    differences,
    edge_weights,
    l2_normalize,
    largest_difference,
    product_differences,
    propagation_differences,
    random_graph,
    swapped_weights,
    values_and_gradients,
    weighted_propagate,
)


def attention_inputs(graph, width=16, dtype=torch.float64, seed=0):
    return l2_normalize(graph.n_users, width, seed, dtype), l2_normalize(graph.n_items, width, seed + 1, dtype)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
def test_attention_block_equals_the_oracle(name, iterations):
    graph = GRAPHS[name]
    assert max(attention_differences(FusedCpuOps(graph), attention_inputs(graph), iterations)) < 1e-10


@pytest.mark.parametrize("width", [20, 64, 256])
def test_attention_block_in_float32_over_widths(width):
    graph = GRAPHS["random"]
    assert (
        max(attention_differences(FusedCpuOps(graph), attention_inputs(graph, width, torch.float32), iterations=2))
        < 1e-5
    )


def test_every_thread_takes_part_and_the_sum_of_their_gradients_is_right():
    graph = random_graph(600, 200, 0.05, seed=8)
    assert len(row_ranges(graph.user_ptr.numpy(), 2)) == 2
    assert max(attention_differences(FusedCpuOps(graph), attention_inputs(graph), iterations=3)) < 1e-10


def test_as_shipped_ignores_the_iterations():
    graph = GRAPHS["random"]
    inputs = attention_inputs(graph)
    assert max(attention_differences(FusedCpuOps(graph), inputs, iterations=3, routing="as_shipped")) < 1e-10
    live, shipped = (FusedCpuOps(graph).attention_block(*inputs, 3, routing)[0] for routing in ("live", "as_shipped"))
    assert (live - shipped).abs().max() > 0.1  # the control: live routing does move the users


@given(
    n_users=st.integers(1, 12),
    n_items=st.integers(1, 12),
    density=st.floats(0.0, 1.0),
    iterations=st.integers(0, 3),
    scale=st.sampled_from([1e-6, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_attention_block_on_any_graph(n_users, n_items, density, iterations, scale, seed):
    graph = random_graph(n_users, n_items, density, seed)
    preference, features = attention_inputs(graph, seed=seed)
    inputs = preference, (scale * features.detach()).requires_grad_()  # logits up to 30, not only those of unit rows
    assert max(attention_differences(FusedCpuOps(graph), inputs, iterations)) < 1e-9


@pytest.mark.parametrize("wrong", ["swapped weights", "no iteration", "user side only"])
def test_the_comparison_notices_a_wrong_result(wrong):
    def user_side_only(graph, p, f, iterations, routing):
        z_user, _, to_item, to_user = attention_block(graph, p, f, iterations, routing)
        return z_user, f, to_item, to_user

    def no_iteration(graph, p, f, iterations, routing):
        return attention_block(graph, p, f, 0, routing)

    oracle = {"swapped weights": swapped_weights, "no iteration": no_iteration, "user side only": user_side_only}[wrong]
    graph = GRAPHS["random"]
    assert min(attention_differences(FusedCpuOps(graph), attention_inputs(graph), 1, oracle=oracle)) > 1e-2


@given(n_users=st.integers(1, 12), n_items=st.integers(1, 12), density=st.floats(0.0, 1.0), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_propagations_on_any_graph(n_users, n_items, density, seed):
    graph = random_graph(n_users, n_items, density, seed)
    weights = edge_weights(graph.n_edges, seed), edge_weights(graph.n_edges, seed + 1)
    inputs = l2_normalize(graph.n_nodes, 16, seed), *weights
    assert max(propagation_differences(FusedCpuOps(graph), inputs)) < 1e-10


def test_propagations_in_float32_and_a_control():
    graph = GRAPHS["random"]
    ops = FusedCpuOps(graph)
    x = l2_normalize(graph.n_nodes, 64, 0, torch.float32)
    weights = [edge_weights(graph.n_edges, seed, torch.float32) for seed in (1, 2)]
    assert max(propagation_differences(ops, (x, *weights))) < 1e-5
    swapped = differences(ops.weighted_propagate, lambda x, a, b: weighted_propagate(graph, x, b, a), (x, *weights))
    assert min(swapped) > 1e-2


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_product_equals_the_dense_one():
    ops = FusedCpuOps(GRAPHS["random"])
    assert max(product_differences(ops, 50, 40, 16)) < 1e-10
    matrix = torch.rand(50, 40).to_sparse_csr()
    with pytest.raises(InputError, match=r"transposed has shape \(50, 40\): expected \(40, 50\)"):
        ops.sparse_product(matrix, matrix, torch.rand(40, 16))


def test_results_are_bitwise_the_same_every_time():
    graph = random_graph(600, 200, 0.05, seed=8)
    ops = FusedCpuOps(graph)
    inputs = attention_inputs(graph, 64, torch.float32)

    def run():
        return values_and_gradients(lambda p, f: ops.attention_block(p, f, 2, "live"), inputs)

    values, gradients = run()
    for again, gradients_again in (run(), run()):
        assert largest_difference(again + gradients_again, values + gradients) == 0
    torch.set_num_threads(1)  # another order of the sums over threads
    assert largest_difference(run()[0], values) < 1e-6


def places_that_change_the_result(kernels, tries):
    """How many of ``tries`` calls of users_backward differ from the first, when its arrays lie elsewhere each time."""
    graph = random_graph(600, 200, 0.05, seed=8)
    side = FusedCpuOps(graph)._users
    random = np.random.default_rng(0)
    rows = [random.standard_normal((n, 64), np.float32) for n in (600, 200, 600, 200)]
    per_edge = [random.random(graph.n_edges, np.float32) for _ in range(4)]
    delta = random.random(200, np.float32)

    def run(edges):
        out, copies = np.zeros((600, 64), np.float32), np.zeros((1, 200, 64), np.float32)
        inputs = *rows[:2], 2, *edges[:2], *rows[2:], *edges[2:], delta
        kernels.users_backward(0, 600, side.longest, side.pointer, side.column, *inputs, out, np.array([0]), copies)
        return np.concatenate((out, copies[0]))

    def elsewhere(array):
        start = int(random.integers(64))
        moved = np.empty(start + len(array), array.dtype)[start:]
        moved[:] = array
        return moved

    first, filler, different = run(per_edge), [], 0
    for _ in range(tries):
        filler.append(np.empty(random.integers(1, 4000), np.float32))
        if len(filler) > 50:
            del filler[random.integers(50)]  # leaves holes for what is allocated next
        different += not np.array_equal(run([elsewhere(array) for array in per_edge]), first)
    return different


def test_results_do_not_depend_on_where_the_arrays_lie():
    assert places_that_change_the_result(fused_cpu_kernels.attention_kernels(64), tries=1500) == 0


_REORDERING = """
from mmrec_helpers.ops import fused_cpu_kernels as module
from tests.test_ops_fused_cpu import places_that_change_the_result
module._OPTIONS["fastmath"] = {"reassoc", "contract"}
print(places_that_change_the_result(module.attention_kernels(64), tries=4000))
"""


@pytest.mark.skipif(llvm_version_info < (22,), reason="with LLVM 15 and 20 no place changed a result")
def test_control_sums_that_the_compiler_may_reorder_depend_on_it(tmp_path):
    """Plain loops compiled so are vectorised behind a check, made at run time, of whether their arrays may overlap.

    In a fresh process each time: the first compiles, which leaves a heap where arrays rarely lie close to each other.
    """
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _REORDERING]
    runs = (subprocess.run(command, env=environment, capture_output=True, check=True).stdout for _ in range(8))
    assert any(int(out) > 0 for out in runs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast_is_computed_in_float32(dtype):
    graph = GRAPHS["random"]
    ops = FusedCpuOps(graph)
    weight = l2_normalize(16, 64, 3, torch.float32)
    leaves = [x.detach().requires_grad_() for x in (*attention_inputs(graph, 16, torch.float32), weight)]
    with torch.autocast("cpu", dtype=dtype):
        low = [leaves[0] @ leaves[2], leaves[1] @ leaves[2]]  # half precision, as a model's layers put it out
        assert {x.dtype for x in low} == {dtype}
        outputs = ops.attention_block(*low, 1, "live")
        loss = sum(x.square().sum() for x in outputs)
    assert {x.dtype for x in outputs} == {torch.float32}
    exact = attention_block(graph, *(x.detach().double() for x in low), 1, "live")
    assert largest_difference([x.detach() for x in outputs], [x.detach() for x in exact]) < 1e-5
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = torch.autograd.grad(scaler.scale(loss), leaves, retain_graph=True)
    plain = torch.autograd.grad(loss, leaves)
    for a, b in zip(scaled, plain):
        assert (a / 1024 - b).abs().max() < 0.02 * b.abs().max()  # the half-precision layer in front rounds


def test_large_logits_do_not_overflow_and_nan_is_not_hidden():
    graph = GRAPHS["random"]
    ops = FusedCpuOps(graph)
    preference, features = (1000 * x.detach() for x in attention_inputs(graph, 64, torch.float32))
    assert all(x.isfinite().all() for x in ops.attention_block(preference, features, 2, "live"))
    user, item = graph.edge_user[0], graph.edge_item[0]
    features[item, 3] = float("nan")
    user_out, item_out, to_item, to_user = ops.attention_block(preference, features, 2, "live")
    assert user_out[user].isnan().all()
    assert item_out[item].isnan().any()
    assert to_user[0].isnan()
    assert to_item[0].isnan()


class LargestAllocation(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation put out."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_nothing_of_size_edges_by_width_is_allocated():
    graph = random_graph(150, 100, 0.9, seed=2)
    ops = FusedCpuOps(graph)
    inputs = attention_inputs(graph, 64, torch.float32)
    weights = [edge_weights(graph.n_edges, seed, torch.float32) for seed in (1, 2)]
    with LargestAllocation() as largest:
        values_and_gradients(lambda p, f: ops.attention_block(p, f, 3, "live"), inputs)
        values_and_gradients(ops.weighted_propagate, (torch.cat(inputs), *weights))
    assert largest.elements <= max(graph.n_edges, graph.n_nodes * 64)


def test_refused_inputs_are_named():
    graph = GRAPHS["random"]
    ops = FusedCpuOps(graph)
    preference, features = attention_inputs(graph)
    with pytest.raises(InputError, match="unknown routing 'dead': expected one of as_shipped, live"):
        ops.attention_block(preference, features, 1, "dead")
    with pytest.raises(InputError, match=r"features has shape \(30, 8\): expected \(30, 16\)"):
        ops.attention_block(preference, features[:, :8], 1, "live")
    with pytest.raises(InputError, match=r"x has shape \(40, 16\): expected \(70, width\)"):
        ops.normalized_propagate(preference)
    with pytest.raises(InputError, match="weight_to_user has shape"):
        ops.weighted_propagate(torch.cat([preference, features]), torch.ones(graph.n_edges), torch.ones(3))
    with pytest.raises(InputError, match="iterations is -1"):
        ops.attention_block(preference, features, -1, "live")


def test_row_ranges_share_the_work():
    pointer = np.array([0, 9100, 9100, 12000, 15000, 18000])
    assert row_ranges(pointer, 2).tolist() == [[0, 1], [1, 5]]
    assert row_ranges(pointer, 1).tolist() == [[0, 5]]
    assert row_ranges(np.array([0, 3, 5]), 8).tolist() == [[0, 2]]  # too little work to share
    assert row_ranges(np.array([0]), 4).tolist() == [[0, 0]]


@pytest.fixture(params=["torch's threads", "Python threads"])
def pool(request, monkeypatch):
    if request.param == "Python threads":
        monkeypatch.setattr(fused_cpu_threads, "_openmp", lambda: None)
    elif fused_cpu_threads._openmp() is None:
        pytest.skip("torch's OpenMP cannot be reached here")


LIBC = ctypes.CDLL(None)
LIBC.pthread_self.argtypes, LIBC.pthread_self.restype = (), ctypes.c_ulong
LIBC.usleep.argtypes = (ctypes.c_uint,)
pthread_self, usleep = LIBC.pthread_self, LIBC.usleep


@numba.njit(nogil=True)
def note_and_wait(first, last, counts, threads):
    for row in range(first, last):
        counts[row] += 1
        threads[row] = pthread_self()
    usleep(10_000)  # so that the other thread takes the next range


@numba.njit(nogil=True)
def allocate(first, last, sizes):
    for row in range(first, last):
        np.empty(sizes[row])[0] = 1


def test_every_range_runs_once_on_two_threads(pool):
    counts, threads = np.zeros(40, np.int64), np.zeros(40, np.uint64)
    run_over_ranges(note_and_wait, even_ranges(40, 20), counts, threads)
    run_over_ranges(note_and_wait, np.arange(40).reshape(20, 2) + [0, 1], counts, threads)
    assert list(counts) == [2] * 40
    assert len(set(threads)) == 2


def test_an_error_on_any_thread_reaches_the_caller(pool):
    ranges = np.array([(row, row + 1) for row in range(8)])
    run_over_ranges(allocate, ranges, np.full(8, 100))
    with pytest.raises(MemoryError):
        run_over_ranges(allocate, ranges, np.where(np.arange(8) == 5, 2**58, 100))


def test_arguments_of_another_type_get_machine_code_of_their_own(pool):
    ranges = np.array([(0, 2), (2, 4)])
    for dtype in (np.int64, np.int32, np.int64):
        run_over_ranges(note_and_wait, ranges, counts := np.zeros(4, dtype), np.zeros(4, np.uint64))
        assert list(counts) == [1] * 4
    strided = np.zeros(8, np.int64)
    run_over_ranges(note_and_wait, ranges, strided[::2], np.zeros(4, np.uint64))
    assert list(strided) == [1, 0] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_threads_start_anew_after_a_fork():
    ranges = np.array([(0, 2), (2, 4)])

    def run():
        run_over_ranges(note_and_wait, ranges, counts := np.zeros(4, np.int64), np.zeros(4, np.uint64))
        return int(counts.sum())

    def child():
        os._exit(10 + run())

    assert run() == 4
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == 14


def test_kernels_compile_without_a_place_for_the_cache(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CompileResultCacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(lambda x: x)
    assert fused_cpu_kernels._kernel(lambda x: x + 1)(1) == 2
