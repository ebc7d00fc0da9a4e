"""Operations on rows for the fused CPU backend: each forward and each backward is one pass over memory.

A step's tables do not fit the caches, so what a torch expression costs on a CPU is the number of times that it passes
over them. Rows that a batch picks are summed into one gradient table, every thread on columns of its own: no copies, no
atomic operations, and the order of the sums is the same every time. Indices are not checked here.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec_helpers.ops.fused_cpu_kernels import SMALLEST_NORM, _kernel
from mmrec_helpers.ops.fused_cpu_threads import even_ranges, run_over_ranges
from mmrec_helpers.ops.fused_cpu_vectors import row_dot

_FEWEST_ROWS = 512  # share of a thread: less does not repay waking it
_FEWEST_COLUMNS = 16  # one cache line of float32


class UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope, *picked):
        """``picked`` only with a slope of 1."""
        unit, length = torch.empty_like(x), x.new_empty(len(x))
        values, u, norm = _numpy(x, unit, length)
        _by_rows(len(x), _kernels(x.shape[1]).unit_forward, values, u.dtype.type(slope), u, norm)
        ctx.slope, ctx.picked = slope, picked
        ctx.save_for_backward(unit, length)
        rows = [x if index is None else x.index_select(0, index) for index in picked]
        return unit, *(torch.linalg.vector_norm(some).square() / some.numel() for some in rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *grad_squares):
        unit, length = ctx.saved_tensors
        kernels, width, out = _kernels(unit.shape[1]), unit.shape[1], torch.empty_like(unit)
        g, u, norm, d = _numpy(grad, unit, length, out)
        whole, parts = 0.0, []
        for index, slope in zip(ctx.picked, grad_squares, strict=True):
            if index is None:
                whole += 2 * slope.item() / unit.numel()
            else:
                parts.append((index, 2 * slope.item() / (len(index) * width)))
        _by_rows(len(unit), kernels.unit_backward, g, u, norm, u.dtype.type(ctx.slope), u.dtype.type(whole), d)
        for index, factor in parts:
            _by_columns(width, kernels.add_scaled_rows, index.numpy(), u, norm, u.dtype.type(factor), d)
        return out, None, *(None for _ in grad_squares)


class ScoreDifferences(torch.autograd.Function):
    @staticmethod
    def forward(ctx, user_table, item_table, batch):
        out = user_table.new_empty(batch.shape[1])
        items = user_table if item_table is None else item_table
        _by_rows(len(out), _kernels(user_table.shape[1]).score_differences, *_numpy(user_table, items, batch, out))
        ctx.save_for_backward(user_table, item_table, batch)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        user_table, item_table, batch = ctx.saved_tensors
        grad_users = torch.zeros_like(user_table)
        items, grad_items = (user_table, grad_users) if item_table is None else (item_table, None)
        if grad_items is None:
            grad_items = torch.zeros_like(item_table)
        arrays = _numpy(user_table, items, batch, grad, grad_users, grad_items)
        _by_columns(user_table.shape[1], _kernels(user_table.shape[1]).score_differences_backward, *arrays)
        return grad_users, None if item_table is None else grad_items, None


class WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, index, weight):
        out = table.new_empty(len(index), table.shape[1])
        _by_rows(len(out), _kernels(table.shape[1]).weighted_rows, *_numpy(table, index, weight, out))
        ctx.save_for_backward(index, weight)
        ctx.shape = table.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        index, weight = ctx.saved_tensors
        out = grad.new_zeros(ctx.shape)
        _by_columns(ctx.shape[1], _kernels(ctx.shape[1]).scatter_weighted, *_numpy(grad, index, weight, out))
        return out, None, None


@cache
def _kernels(width: int) -> SimpleNamespace:
    """The kernels for rows of ``width`` numbers; those with ``first`` and ``last`` work on these rows, the others on
    the columns from ``left`` to before ``right``."""

    @_kernel
    def unit_forward(first, last, x, slope, unit, length):
        for row in range(first, last):
            for j in range(width):
                unit[row, j] = x[row, j] * (slope if x[row, j] < 0 else x.dtype.type(1))
            norm = math.sqrt(row_dot(width, unit, row, unit, row))
            if norm < x.dtype.type(SMALLEST_NORM):
                norm = x.dtype.type(SMALLEST_NORM)
            length[row] = norm
            for j in range(width):
                unit[row, j] /= norm

    @_kernel
    def unit_backward(first, last, grad, unit, length, slope, square, out):
        """Through the unit rows and the slope of numbers below 0 (and at 0, as torch has it), and square * x for the
        mean square of the whole table."""
        for row in range(first, last):
            norm = length[row]
            along = grad.dtype.type(0)
            if not norm <= grad.dtype.type(SMALLEST_NORM):  # there the length is constant
                along = row_dot(width, grad, row, unit, row)
            for j in range(width):
                through = (grad[row, j] - along * unit[row, j]) / norm + square * norm * unit[row, j]
                out[row, j] = through * (grad.dtype.type(1) if unit[row, j] > 0 else slope)

    @_kernel
    def add_scaled_rows(left, right, index, unit, length, factor, out):
        """out[i] += factor * x[i] for each i in ``index``, where x = length * unit."""
        for b in range(len(index)):
            row = index[b]
            scale = factor * length[row]
            wanted, given = out[row, left:right], unit[row, left:right]
            for j in range(right - left):
                wanted[j] += scale * given[j]

    @_kernel
    def score_differences(first, last, users, items, batch, out):
        for b in range(first, last):
            u, p, n = batch[0, b], batch[1, b], batch[2, b]
            out[b] = row_dot(width, users, u, items, p) - row_dot(width, users, u, items, n)

    @_kernel
    def score_differences_backward(left, right, users, items, batch, grad, d_users, d_items):
        for b in range(len(grad)):
            u, p, n, slope = batch[0, b], batch[1, b], batch[2, b], grad[b]
            user, positive, negative = users[u, left:right], items[p, left:right], items[n, left:right]
            d_user, d_positive, d_negative = d_users[u, left:right], d_items[p, left:right], d_items[n, left:right]
            for j in range(right - left):
                d_user[j] += slope * (positive[j] - negative[j])
            for j in range(right - left):
                d_positive[j] += slope * user[j]
            for j in range(right - left):
                d_negative[j] -= slope * user[j]

    @_kernel
    def weighted_rows(first, last, table, index, weight, out):
        for b in range(first, last):
            for j in range(width):
                out[b, j] = 0
            for k in range(index.shape[1]):
                row, factor = index[b, k], weight[b, k]
                for j in range(width):
                    out[b, j] += factor * table[row, j]

    @_kernel
    def scatter_weighted(left, right, grad, index, weight, out):
        for b in range(index.shape[0]):
            for k in range(index.shape[1]):
                row, factor = index[b, k], weight[b, k]
                if factor != 0:
                    wanted, given = out[row, left:right], grad[b, left:right]
                    for j in range(right - left):
                        wanted[j] += factor * given[j]

    return SimpleNamespace(
        unit_forward=unit_forward,
        unit_backward=unit_backward,
        add_scaled_rows=add_scaled_rows,
        score_differences=score_differences,
        score_differences_backward=score_differences_backward,
        weighted_rows=weighted_rows,
        scatter_weighted=scatter_weighted,
    )


def _split(fewest: int, count: int, kernel: Callable, *arrays) -> None:
    run_over_ranges(kernel, even_ranges(count, fewest), *arrays)


_by_rows, _by_columns = partial(_split, _FEWEST_ROWS), partial(_split, _FEWEST_COLUMNS)


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
