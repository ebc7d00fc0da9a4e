"""The fused CPU backend: Numba kernels on as many threads as ``torch.get_num_threads()``.

One pass over a user's items does all routing iterations and the user's side of the final attention. Forward keeps the
E attention weights in both directions; backward recomputes the routing. No atomic operations: every thread sums
gradients of the features into a copy of its own.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec_helpers.config import InputError, check_ids
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops.common import GraphOps
from mmrec_helpers.ops.fused_cpu_kernels import (
    attention_kernels,
    propagation_kernels,
    refined_backward,
    refined_forward,
)
from mmrec_helpers.ops.fused_cpu_rows import ScoreDifferences, UnitRows, WeightedRows, _by_rows, _numpy
from mmrec_helpers.ops.fused_cpu_threads import row_ranges, run_over_ranges
from mmrec_helpers.ops.rows import same_float

_RANGES_PER_THREAD = 4  # of rows, taken one after another, so that no thread waits long for the others
_MOST_COPIES = 16  # of the features' gradient


class _Side:
    """The users or the items of a graph, or a sparse matrix, as rows of a CSR of NumPy arrays."""

    def __init__(self, pointer: Tensor, column: Tensor, edge: Tensor | None = None):
        """pointer (rows + 1,), column (entries,), and the edge of each entry: None where entries are in edge order."""
        self.pointer, self.column = _numpy(pointer, column)
        self.edge = None if edge is None else edge.numpy()
        self.longest = int(np.diff(self.pointer).max(initial=0))
        self.arguments = self.longest, self.pointer, self.column  # what every kernel takes after its range of rows
        self._ranges: dict[int, np.ndarray] = {}

    def ranges(self, count: int) -> np.ndarray:
        """At most ``count`` ranges (first, last) of rows of about equal work."""
        if count not in self._ranges:
            self._ranges[count] = row_ranges(self.pointer, count)
        return self._ranges[count]

    def run(self, kernel, *arguments) -> None:
        """Run kernel(first, last, longest, pointer, column, ...) over all rows."""
        ranges = self.ranges(torch.get_num_threads() * _RANGES_PER_THREAD)
        run_over_ranges(kernel, ranges, *self.arguments, *arguments)


class _AttentionBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, preference, features, users, items, iterations):
        kernels = attention_kernels(features.shape[1])
        user_out, item_out = torch.empty_like(preference), torch.empty_like(features)
        to_item, to_user = (features.new_empty(len(users.column)) for _ in range(2))
        routed, logits = torch.empty_like(preference), torch.empty_like(to_user)
        p, f, z_u, z_i, a_i, a_u, r, s = _numpy(
            preference, features, user_out, item_out, to_item, to_user, routed, logits
        )
        users.run(kernels.users_forward, p, f, iterations, r, z_u, s, a_u)
        items.run(kernels.items_forward, items.edge, r, f, s, z_i, a_i)
        ctx.users, ctx.items, ctx.iterations = users, items, iterations
        ctx.save_for_backward(preference, features, item_out, to_item, to_user)
        return user_out, item_out, to_item, to_user

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        preference, features, item_out, to_item, to_user = ctx.saved_tensors
        users, items, kernels = ctx.users, ctx.items, attention_kernels(features.shape[1])
        p, f, z_i, a_i, a_u, delta = _numpy(
            preference, features, item_out, to_item, to_user, features.new_empty(len(features))
        )
        g_u, g_i, g_ai, g_au = _numpy(*gradients)
        items.run(kernels.items_backward, items.edge, f, z_i, a_i, g_i, g_ai, delta)
        ranges = users.ranges(min(torch.get_num_threads(), _MOST_COPIES))
        grad_preference = torch.empty_like(preference)
        grad_features = features.new_empty((len(ranges), *features.shape))
        d_p, copies = _numpy(grad_preference, grad_features)
        inputs = *users.arguments, p, f, ctx.iterations, a_i, a_u, g_u, g_i, g_ai, g_au, delta
        run_over_ranges(kernels.users_backward, ranges, *inputs, d_p, ranges[:, 0].copy(), copies)
        _by_rows(len(features), kernels.sum_copies, copies)
        return grad_preference, grad_features[0], None, None, None


class _Propagate(torch.autograd.Function):
    """A x, or, if ``twice``, x + A x + A A x: the sums of rows are taken while they are written."""

    @staticmethod
    def forward(ctx, x, to_item, to_user, users, items, twice):
        kernel, n = propagation_kernels(x.shape[1]).weighted_rows, len(users.pointer) - 1
        first = torch.empty_like(x)
        v, w_i, w_u, h = _numpy(x, to_item, to_user, first)
        users.run(kernel, None, w_u, v[n:], None, None, h[:n])
        items.run(kernel, items.edge, w_i, v[:n], None, None, h[n:])
        ctx.users, ctx.items, ctx.twice = users, items, twice
        if not twice:
            ctx.save_for_backward(x, x, to_item, to_user)
            return first
        out = torch.empty_like(x)
        (z,) = _numpy(out)
        users.run(kernel, None, w_u, h[n:], v[:n], h[:n], z[:n])
        items.run(kernel, items.edge, w_i, h[:n], v[n:], h[n:], z[n:])
        ctx.save_for_backward(x, first, to_item, to_user)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, first, to_item, to_user = ctx.saved_tensors
        users, items, kernels, n = ctx.users, ctx.items, propagation_kernels(x.shape[1]), len(ctx.users.pointer) - 1
        grads = torch.empty_like(x), torch.empty_like(to_item), torch.empty_like(to_user)
        v, h, w_i, w_u, g, d_x, d_i, d_u = _numpy(x, first, to_item, to_user, grad_out, *grads)
        base = (g[:n], g[n:]) if ctx.twice else (None, None)
        passes = [(v, g, d_x, False)]
        if ctx.twice:
            (d_h,) = _numpy(torch.empty_like(first))
            passes = [(h, g, d_h, False), (v, d_h, d_x, True)]
        for table, given, wanted, add in passes:  # wanted = base + transpose(A) given
            rows = table[:n], table[n:], given[:n], given[n:]
            users.run(kernels.weighted_users_backward, w_i, *rows, wanted[:n], base[0], add, d_i, d_u)
            items.run(kernels.weighted_rows, items.edge, w_u, given[:n], base[1], None, wanted[n:])
        return *grads, None, None, None


class _RefinedWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, confidence, users, items, *alphas):
        ctx.users, ctx.items = users, items
        weights = confidence.new_empty(2, len(users.column))
        c, w, *arrays = _numpy(confidence, weights, *alphas)
        half = len(arrays) // 2
        users.run(refined_forward, tuple(arrays[:half]), tuple(arrays[half:]), c, w)
        ctx.save_for_backward(confidence, weights, *alphas)
        return weights[0], weights[1]

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        confidence, weights, *alphas = ctx.saved_tensors
        half, n_users = len(alphas) // 2, len(ctx.users.pointer) - 1
        grads = [torch.empty_like(alpha) for alpha in alphas]
        grad_confidence = torch.empty_like(confidence)
        c, w, d_c, *arrays = _numpy(confidence, weights, grad_confidence, *alphas, *grads, *gradients)
        a, d_a, g = arrays[: 2 * half], arrays[2 * half : 4 * half], arrays[4 * half :]
        ctx.users.run(refined_backward, None, 0, tuple(a[:half]), c, w[0], g[0], tuple(d_a[:half]), d_c)
        ctx.items.run(refined_backward, ctx.items.edge, n_users, tuple(a[half:]), c, w[1], g[1], tuple(d_a[half:]), d_c)
        return grad_confidence, None, None, *grads


class FusedCpuOps(GraphOps):
    """The fused operations on the CPU, by Numba. The graph must be on the CPU."""

    fused = True

    def __init__(self, graph: BipartiteGraph):
        if graph.user_ptr.device.type != "cpu":
            raise InputError(f"fused CPU backend: the graph is on {graph.user_ptr.device}: expected cpu")
        super().__init__(graph)
        self._users = _Side(graph.user_ptr, graph.edge_item)
        self._items = _Side(graph.item_ptr, graph.item_user, graph.item_edge)

    def l2_normalize(self, x, negative_slope=1.0):
        return UnitRows.apply(*same_float(x), negative_slope)[0]

    def unit_rows_and_squares(self, table, picked):
        for index in picked:
            if index is not None:
                check_ids("rows", index, len(table))
        unit, *squares = UnitRows.apply(*same_float(table), 1.0, *picked)
        return unit, tuple(squares)

    def score_differences(self, user_table, item_table, batch):
        check_ids("rows", batch if item_table is None else batch[0], len(user_table))
        if item_table is not None:
            check_ids("rows", batch[1:], len(item_table))
            (item_table,) = same_float(item_table)
        return ScoreDifferences.apply(*same_float(user_table), item_table, batch.contiguous())

    def weighted_rows(self, table, index, weight):
        check_ids("rows", index, len(table))  # the kernels check no bounds
        (table,) = same_float(table)
        return WeightedRows.apply(table, index.contiguous(), weight.detach().to(table.dtype).contiguous())

    def refined_weights(self, to_item, to_user, confidence):
        confidence, *alphas = same_float(confidence, *to_item, *to_user)
        return _RefinedWeights.apply(confidence, self._users, self._items, *alphas)

    def propagate_twice(self, x, weight_to_item, weight_to_user):
        inputs = self._checked_propagation(x, weight_to_item, weight_to_user)
        return _Propagate.apply(*inputs, self._users, self._items, True)

    def _attend(self, preference, features, iterations):
        return _AttentionBlock.apply(preference, features, self._users, self._items, iterations)

    def _propagate(self, x, to_item, to_user):
        return _Propagate.apply(x, to_item, to_user, self._users, self._items, False)

    @staticmethod
    def _prepared(matrix, lasting):
        side = _Side(matrix.crow_indices().long(), matrix.col_indices().long())
        return side, matrix.values().contiguous().numpy()

    @staticmethod
    def _product(matrix, x):
        side, value = matrix
        out = x.new_empty(len(side.pointer) - 1, x.shape[1])
        v, z = _numpy(x, out)
        side.run(propagation_kernels(x.shape[1]).weighted_rows, None, value, v, None, None, z)
        return out
