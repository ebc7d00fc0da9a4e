"""Numba kernels of the fused CPU backend, compiled once per row width and cached on disk.

Notation. Users u with preferences p_u, items i with features f_i, rows of ``width`` numbers. Edges are numbered as in
``BipartiteGraph``: those of a user are contiguous. A kernel computes the rows ``first <= row < last`` and releases the
GIL, so that several threads can work on separate ranges of rows. No kernel allocates more than a few rows and a few
numbers per neighbour of the longest row.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import njit

from mmrec_helpers.ops.fused_cpu_vectors import FAST_ARITHMETIC, copy_row, gather_dots, gather_sum, scatter_mix

_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": set(FAST_ARITHMETIC)}
SMALLEST_NORM = 1e-12  # as in torch.nn.functional.normalize


@njit(**_OPTIONS)
def _softmax(values, count):
    """Replace the first ``count`` values by their softmax."""
    largest = -np.inf
    for k in range(count):
        largest = max(largest, values[k])
    total = values.dtype.type(0)
    for k in range(count):
        values[k] = math.exp(values[k] - largest)
        total += values[k]
    for k in range(count):
        values[k] /= total


@njit(**_OPTIONS)
def _normalize(rows, row):
    """Divide a row by its Euclidean norm, or by SMALLEST_NORM if that is larger; return the norm."""
    square = rows.dtype.type(0)
    for j in range(rows.shape[1]):
        square += rows[row, j] * rows[row, j]
    norm = math.sqrt(square)
    factor = rows.dtype.type(1) / max(norm, rows.dtype.type(SMALLEST_NORM))
    for j in range(rows.shape[1]):
        rows[row, j] *= factor
    return norm


@njit(**_OPTIONS)
def _normalize_backward(gradient, rows, row, norm):
    """Turn the gradient of a normalized row y = z / norm into that of z: (g - <g, y> y) / norm."""
    along = rows.dtype.type(0)
    if norm > SMALLEST_NORM:
        for j in range(rows.shape[1]):
            along += gradient[0, j] * rows[row, j]
    factor = rows.dtype.type(1) / max(norm, rows.dtype.type(SMALLEST_NORM))
    for j in range(rows.shape[1]):
        gradient[0, j] = (gradient[0, j] - along * rows[row, j]) * factor


@cache
def attention_kernels(width: int) -> SimpleNamespace:
    """The kernels of the attention block for rows of ``width`` numbers."""

    @njit(**_OPTIONS)
    def users_forward(
        first, last, longest, user_ptr, edge_item, preference, features, iterations, routed, user_out, logits, alpha
    ):
        """Route each user `iterations` times, then attend over its items once more.

        Writes routed[u] = p_u after the iterations, logits[e] = <routed_u, f_i>, alpha = softmax over the user's edges
        and user_out[u] = routed_u + sum_i alpha_ui f_i.
        """
        weights = np.empty(longest, features.dtype)
        current = np.empty((1, width), features.dtype)
        for user in range(first, last):
            begin, end = user_ptr[user], user_ptr[user + 1]
            copy_row(width, current, 0, preference, user)
            for _ in range(iterations):
                gather_dots(width, weights, current, 0, features, edge_item, begin, end)
                _softmax(weights, end - begin)
                gather_sum(width, current, 0, weights, features, edge_item, begin, end)
                _normalize(current, 0)
            copy_row(width, routed, user, current, 0)
            gather_dots(width, weights, current, 0, features, edge_item, begin, end)
            for edge in range(begin, end):
                logits[edge] = weights[edge - begin]
            _softmax(weights, end - begin)
            for edge in range(begin, end):
                alpha[edge] = weights[edge - begin]
            gather_sum(width, current, 0, weights, features, edge_item, begin, end)
            copy_row(width, user_out, user, current, 0)

    @njit(**_OPTIONS)
    def items_forward(first, last, longest, item_ptr, item_user, item_edge, routed, features, logits, item_out, alpha):
        """alpha = softmax of the logits over the item's edges; item_out[i] = f_i + sum_u alpha_iu routed_u."""
        weights = np.empty(longest, features.dtype)
        for item in range(first, last):
            begin, end = item_ptr[item], item_ptr[item + 1]
            for place in range(begin, end):
                weights[place - begin] = logits[item_edge[place]]
            _softmax(weights, end - begin)
            for place in range(begin, end):
                alpha[item_edge[place]] = weights[place - begin]
            copy_row(width, item_out, item, features, item)
            gather_sum(width, item_out, item, weights, routed, item_user, begin, end)

    @njit(**_OPTIONS)
    def items_backward(first, last, item_ptr, item_edge, features, item_out, alpha, grad_out, grad_alpha, delta):
        """delta[i] = sum over the item's edges of alpha * (gradient of alpha), which its softmax subtracts.

        Through the output the gradient of alpha_iu is <g_i, p_u>, and sum_u alpha_iu p_u = item_out_i - f_i.
        """
        for item in range(first, last):
            total = features.dtype.type(0)
            for j in range(width):
                total += grad_out[item, j] * (item_out[item, j] - features[item, j])
            for place in range(item_ptr[item], item_ptr[item + 1]):
                edge = item_edge[place]
                total += alpha[edge] * grad_alpha[edge]
            delta[item] = total

    @njit(**_OPTIONS)
    def users_backward(
        first,
        last,
        longest,
        user_ptr,
        edge_item,
        preference,
        features,
        iterations,
        alpha_to_item,
        alpha_to_user,
        grad_user_out,
        grad_item_out,
        grad_alpha_to_item,
        grad_alpha_to_user,
        item_delta,
        grad_preference,
        grad_features,
    ):
        """Recompute the routing of each user, then go back through the final attention and the iterations.

        Every gradient that reaches f_i through user u is a weighted sum of the same 2 (iterations + 1) vectors: the
        routed preferences p^0 .. p^R with the logits' gradients as weights, and the outputs' gradients d^0 .. d^R with
        the softmax weights. `vectors` holds them in this order, `mix` the weights of each neighbour.
        """
        states = iterations + 1
        dtype = features.dtype
        vectors = np.empty((2 * states, width), dtype)
        mix = np.empty((2 * states, longest), dtype)
        to_item = np.empty(longest, dtype)
        gradient = np.empty((1, width), dtype)
        norms = np.empty(states, dtype)
        for user in range(first, last):
            begin, end = user_ptr[user], user_ptr[user + 1]
            count = end - begin
            copy_row(width, vectors, 0, preference, user)
            for r in range(iterations):
                weights = mix[states + r]
                gather_dots(width, weights, vectors, r, features, edge_item, begin, end)
                _softmax(weights, count)
                copy_row(width, vectors, r + 1, vectors, r)
                gather_sum(width, vectors, r + 1, weights, features, edge_item, begin, end)
                norms[r] = _normalize(vectors, r + 1)

            copy_row(width, vectors, states + iterations, grad_user_out, user)
            copy_row(width, gradient, 0, grad_user_out, user)
            weights, slopes = mix[states + iterations], mix[iterations]
            gather_dots(width, slopes, grad_user_out, user, features, edge_item, begin, end)
            gather_dots(width, to_item, vectors, iterations, grad_item_out, edge_item, begin, end)
            delta = dtype.type(0)
            for k in range(count):
                slopes[k] += grad_alpha_to_user[begin + k]
                weights[k] = alpha_to_user[begin + k]
                delta += weights[k] * slopes[k]
            for k in range(count):
                edge = begin + k
                slope_to_item = to_item[k] + grad_alpha_to_item[edge] - item_delta[edge_item[edge]]
                to_item[k] = alpha_to_item[edge]
                slopes[k] = weights[k] * (slopes[k] - delta) + to_item[k] * slope_to_item
            gather_sum(width, gradient, 0, slopes, features, edge_item, begin, end)
            gather_sum(width, gradient, 0, to_item, grad_item_out, edge_item, begin, end)

            for r in range(iterations - 1, -1, -1):
                weights, slopes = mix[states + r], mix[r]
                _normalize_backward(gradient, vectors, r + 1, norms[r])
                copy_row(width, vectors, states + r, gradient, 0)
                gather_dots(width, slopes, gradient, 0, features, edge_item, begin, end)
                delta = dtype.type(0)
                for k in range(count):
                    delta += weights[k] * slopes[k]
                for k in range(count):
                    slopes[k] = weights[k] * (slopes[k] - delta)
                gather_sum(width, gradient, 0, slopes, features, edge_item, begin, end)
            copy_row(width, grad_preference, user, gradient, 0)
            scatter_mix(width, grad_features, edge_item, begin, end, mix, vectors, 2 * states)

    return SimpleNamespace(
        users_forward=users_forward,
        items_forward=items_forward,
        items_backward=items_backward,
        users_backward=users_backward,
    )


@cache
def propagation_kernels(width: int) -> SimpleNamespace:
    """The kernels of weighted sums over neighbours for rows of ``width`` numbers."""

    @njit(**_OPTIONS)
    def weighted_rows(first, last, longest, pointer, column, edge, weight, table, offset_in, out, offset_out):
        """out[offset_out + row] = sum over its places of weight[edge[place]] * table[offset_in + column[place]]."""
        weights = np.empty(longest, table.dtype)
        rows = table[offset_in:]
        for row in range(first, last):
            begin, end = pointer[row], pointer[row + 1]
            for place in range(begin, end):
                weights[place - begin] = weight[edge[place]]
            for j in range(width):
                out[offset_out + row, j] = 0
            gather_sum(width, out, offset_out + row, weights, rows, column, begin, end)

    @njit(**_OPTIONS)
    def edge_gradients(first, last, longest, user_ptr, edge_item, n_users, x, gradient, grad_to_item, grad_to_user):
        """Gradients of both weights of each edge: <x_u, g_i> (to the item) and <g_u, x_i> (to the user)."""
        dots = np.empty(longest, x.dtype)
        x_items, gradient_items = x[n_users:], gradient[n_users:]
        for user in range(first, last):
            begin, end = user_ptr[user], user_ptr[user + 1]
            gather_dots(width, dots, x, user, gradient_items, edge_item, begin, end)
            for edge in range(begin, end):
                grad_to_item[edge] = dots[edge - begin]
            gather_dots(width, dots, gradient, user, x_items, edge_item, begin, end)
            for edge in range(begin, end):
                grad_to_user[edge] = dots[edge - begin]

    @njit(**_OPTIONS)
    def sparse_rows(first, last, pointer, column, weight, table, out):
        """out[row] = sum over the row's places of weight[place] * table[column[place]]."""
        for row in range(first, last):
            begin, end = pointer[row], pointer[row + 1]
            for j in range(width):
                out[row, j] = 0
            gather_sum(width, out, row, weight[begin:end], table, column, begin, end)

    return SimpleNamespace(weighted_rows=weighted_rows, edge_gradients=edge_gradients, sparse_rows=sparse_rows)
