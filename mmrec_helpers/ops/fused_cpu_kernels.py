"""Numba kernels of the fused CPU backend, compiled once per row width and cached on disk.

Notation. Users u with preferences p_u, items i with features f_i, rows of ``width`` numbers. Edges are numbered as in
``BipartiteGraph``: those of a user are contiguous. A kernel computes the rows ``first <= row < last`` and releases the
GIL, so that several threads can work on separate ranges of rows. It goes through them in blocks and allocates only
scratch: a few rows, and a few numbers per neighbour of the longest row, for each row of a block.
"""

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import njit

from mmrec_helpers.ops.fused_cpu_vectors import (
    BLOCK,
    LANES,
    combine_rows,
    copy_rows,
    gather_dots,
    gather_sum,
    row_dot,
    scatter_sums,
    softmax,
)

SMALLEST_NORM = 1e-12  # as in torch.nn.functional.normalize

# Sums are reordered inside the vector primitives alone. In a plain loop that also writes, the compiler would choose at
# run time, by where the arrays happen to lie, between two orders of one sum, and the same call would give two results.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def _kernel(function):
    """Compile when first called; keep the result on disk where there is a place to write."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        return njit(**_OPTIONS)(function)


@cache
def attention_kernels(width: int) -> SimpleNamespace:
    """The kernels of the attention block for rows of ``width`` numbers."""

    @_kernel
    def users_forward(
        first, last, longest, user_ptr, edge_item, preference, features, iterations, routed, user_out, logits, alpha
    ):
        """Route each user ``iterations`` times, then attend over its items once more.

        Writes routed[u] = p_u after the iterations, logits[e] = <routed_u, f_i>, alpha = softmax over the user's edges
        and user_out[u] = routed_u + sum_i alpha_ui f_i.
        """
        dtype = features.dtype
        weights = np.empty((BLOCK, longest + LANES), dtype)
        p = np.empty((BLOCK, width), dtype)
        for start in range(first, last, BLOCK):
            rows = min(BLOCK, last - start)
            copy_rows(width, p, 0, preference, start, rows)
            for r in range(iterations):
                gather_dots(width, weights, 0, p, 0, features, r == 0, edge_item, user_ptr, start, rows)
                softmax(weights, 0, user_ptr, start, rows)
                gather_sum(width, p, 0, weights, 0, features, False, edge_item, user_ptr, start, rows)
                for b in range(rows):
                    norm = max(math.sqrt(row_dot(width, p, b, p, b)), dtype.type(SMALLEST_NORM))
                    combine_rows(width, p, b, dtype.type(1) / norm, p, b, dtype.type(0), p, b)
            copy_rows(width, routed, start, p, 0, rows)
            gather_dots(width, weights, 0, p, 0, features, iterations == 0, edge_item, user_ptr, start, rows)
            for b in range(rows):
                begin = user_ptr[start + b]
                for edge in range(begin, user_ptr[start + b + 1]):
                    logits[edge] = weights[b, edge - begin]
            softmax(weights, 0, user_ptr, start, rows)
            gather_sum(width, p, 0, weights, 0, features, False, edge_item, user_ptr, start, rows)
            copy_rows(width, user_out, start, p, 0, rows)
            for b in range(rows):
                begin = user_ptr[start + b]
                for edge in range(begin, user_ptr[start + b + 1]):
                    alpha[edge] = weights[b, edge - begin]

    @_kernel
    def items_forward(first, last, longest, item_ptr, item_user, item_edge, routed, features, logits, item_out, alpha):
        """alpha = softmax of the logits over the item's edges; item_out[i] = f_i + sum_u alpha_iu routed_u."""
        weights = np.empty((BLOCK, longest + LANES), features.dtype)
        for start in range(first, last, BLOCK):
            rows = min(BLOCK, last - start)
            for b in range(rows):
                begin = item_ptr[start + b]
                for place in range(begin, item_ptr[start + b + 1]):
                    weights[b, place - begin] = logits[item_edge[place]]
            softmax(weights, 0, item_ptr, start, rows)
            copy_rows(width, item_out, start, features, start, rows)
            gather_sum(width, item_out, start, weights, 0, routed, True, item_user, item_ptr, start, rows)
            for b in range(rows):
                begin = item_ptr[start + b]
                for place in range(begin, item_ptr[start + b + 1]):
                    alpha[item_edge[place]] = weights[b, place - begin]

    @_kernel
    def items_backward(
        first, last, longest, item_ptr, item_user, item_edge, features, item_out, alpha, grad_out, grad_alpha, delta
    ):
        """delta[i] = sum over the item's edges of alpha * (gradient of alpha), which its softmax subtracts.

        Through the output the gradient of alpha_iu is <g_i, p_u>, and sum_u alpha_iu p_u = item_out_i - f_i.
        """
        for item in range(first, last):
            total = row_dot(width, grad_out, item, item_out, item) - row_dot(width, grad_out, item, features, item)
            for place in range(item_ptr[item], item_ptr[item + 1]):
                edge = item_edge[place]
                total += alpha[edge] * grad_alpha[edge]
            delta[item] = total

    @_kernel
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
        firsts,
        copies,
    ):
        """Recompute the routing of each user, then go back through the final attention and the iterations.

        Every gradient that reaches f_i through user u is a weighted sum of the same 2 (R + 1) vectors: the routed
        preferences p^0 .. p^R with the logits' gradients as weights (``slopes``), and the gradients d^0 .. d^R of the
        attention's outputs with the softmax weights. ``vectors`` holds them in this order, BLOCK rows for each, and
        ``mix`` the weights of each neighbour.

        The features' gradient is summed in one of ``copies`` (ranges, I, d): that of the range whose first row stands
        at its place in ``firsts``. The first copy begins with grad_item_out, the others with 0.
        """
        dtype = features.dtype
        number = np.searchsorted(firsts, first)
        grad_features = copies[number]
        if number == 0:
            grad_features[:] = grad_item_out
        else:
            grad_features[:] = 0
        last_state, states = BLOCK * iterations, BLOCK * (iterations + 1)  # rows of p^R, of d^0
        to_item = 2 * states
        vectors = np.empty((2 * states, width), dtype)
        mix = np.empty((2 * states + BLOCK, longest + LANES), dtype)
        gradient = np.empty((BLOCK, width), dtype)
        norms = np.empty((iterations, BLOCK), dtype)
        for start in range(first, last, BLOCK):
            rows = min(BLOCK, last - start)
            copy_rows(width, vectors, 0, preference, start, rows)
            for r in range(iterations):
                p, p_next, weights = BLOCK * r, BLOCK * (r + 1), states + BLOCK * r
                gather_dots(width, mix, weights, vectors, p, features, r == 0, edge_item, user_ptr, start, rows)
                softmax(mix, weights, user_ptr, start, rows)
                copy_rows(width, vectors, p_next, vectors, p, rows)
                gather_sum(width, vectors, p_next, mix, weights, features, False, edge_item, user_ptr, start, rows)
                for b in range(rows):
                    x = p_next + b
                    norms[r, b] = max(math.sqrt(row_dot(width, vectors, x, vectors, x)), dtype.type(SMALLEST_NORM))
                    combine_rows(width, vectors, x, dtype.type(1) / norms[r, b], vectors, x, dtype.type(0), vectors, x)

            copy_rows(width, gradient, 0, grad_user_out, start, rows)
            copy_rows(width, vectors, states + last_state, grad_user_out, start, rows)
            gather_dots(
                width, mix, last_state, gradient, 0, features, iterations == 0, edge_item, user_ptr, start, rows
            )
            gather_dots(width, mix, to_item, vectors, last_state, grad_item_out, True, edge_item, user_ptr, start, rows)
            for b in range(rows):
                begin, end = user_ptr[start + b], user_ptr[start + b + 1]
                slopes, weights = last_state + b, states + last_state + b
                delta = dtype.type(0)
                for edge in range(begin, end):
                    k = edge - begin
                    mix[slopes, k] += grad_alpha_to_user[edge]
                    mix[weights, k] = alpha_to_user[edge]
                    delta += mix[weights, k] * mix[slopes, k]
                for edge in range(begin, end):
                    k = edge - begin
                    slope = mix[to_item + b, k] + grad_alpha_to_item[edge] - item_delta[edge_item[edge]]
                    mix[to_item + b, k] = alpha_to_item[edge]
                    mix[slopes, k] = mix[weights, k] * (mix[slopes, k] - delta) + alpha_to_item[edge] * slope
            gather_sum(width, gradient, 0, mix, last_state, features, False, edge_item, user_ptr, start, rows)
            gather_sum(width, gradient, 0, mix, to_item, grad_item_out, False, edge_item, user_ptr, start, rows)

            for r in range(iterations - 1, -1, -1):
                slopes, p_next, weights = BLOCK * r, BLOCK * (r + 1), states + BLOCK * r
                for b in range(rows):
                    factor = dtype.type(1) / norms[r, b]
                    along = dtype.type(0)
                    if norms[r, b] > dtype.type(SMALLEST_NORM):
                        along = row_dot(width, gradient, b, vectors, p_next + b) * factor
                    combine_rows(width, gradient, b, factor, gradient, b, -along, vectors, p_next + b)
                copy_rows(width, vectors, weights, gradient, 0, rows)
                gather_dots(width, mix, slopes, gradient, 0, features, False, edge_item, user_ptr, start, rows)
                for b in range(rows):
                    count = user_ptr[start + b + 1] - user_ptr[start + b]
                    delta = dtype.type(0)
                    for k in range(count):
                        delta += mix[weights + b, k] * mix[slopes + b, k]
                    for k in range(count):
                        mix[slopes + b, k] = mix[weights + b, k] * (mix[slopes + b, k] - delta)
                gather_sum(width, gradient, 0, mix, slopes, features, False, edge_item, user_ptr, start, rows)
            copy_rows(width, grad_preference, start, gradient, 0, rows)
            scatter_sums(width, grad_features, edge_item, user_ptr, start, rows, mix, vectors, 2 * (iterations + 1))

    @_kernel
    def sum_copies(first, last, copies):
        """Add all other copies (copies, I, d) to the first, in their order."""
        for row in range(first, last):
            for number in range(1, len(copies)):
                for j in range(width):
                    copies[0, row, j] += copies[number, row, j]

    return SimpleNamespace(
        users_forward=users_forward,
        items_forward=items_forward,
        items_backward=items_backward,
        users_backward=users_backward,
        sum_copies=sum_copies,
    )


@cache
def propagation_kernels(width: int) -> SimpleNamespace:
    """The kernels of weighted sums over neighbours for rows of ``width`` numbers."""

    @_kernel
    def weighted_rows(first, last, longest, pointer, column, edge, weight, table, base, base_too, out):
        """out[row] = sum over its places of weight[edge[place]] * table[column[place]], plus the rows of ``base`` and
        of ``base_too``, each if not None; edge None: edge = place."""
        weights = np.empty((BLOCK, longest), table.dtype)
        for start in range(first, last, BLOCK):
            rows = min(BLOCK, last - start)
            for b in range(rows):
                begin = pointer[start + b]
                for place in range(begin, pointer[start + b + 1]):
                    weights[b, place - begin] = weight[place if edge is None else edge[place]]
                for j in range(width):
                    value = table.dtype.type(0)
                    if base is not None:
                        value += base[start + b, j]
                    if base_too is not None:
                        value += base_too[start + b, j]
                    out[start + b, j] = value
            gather_sum(width, out, start, weights, 0, table, True, column, pointer, start, rows)

    @_kernel
    def weighted_users_backward(
        first,
        last,
        longest,
        user_ptr,
        edge_item,
        to_item,
        x_user,
        x_item,
        g_user,
        g_item,
        d_x_user,
        base,
        add,
        d_to_item,
        d_to_user,
    ):
        """Gradients of x_u: sum_i to_item * g_i, plus the rows of ``base`` if not None, and of each edge's weights: to
        item <x_u, g_i>, to user <g_u, x_i>, added to what is there if ``add``."""
        dots, table_zero = np.empty((2 * BLOCK, longest), x_user.dtype), x_user.dtype.type(0)
        for start in range(first, last, BLOCK):
            rows = min(BLOCK, last - start)
            gather_dots(width, dots, 0, x_user, start, g_item, True, edge_item, user_ptr, start, rows)
            gather_dots(width, dots, BLOCK, g_user, start, x_item, True, edge_item, user_ptr, start, rows)
            for b in range(rows):
                begin = user_ptr[start + b]
                for edge in range(begin, user_ptr[start + b + 1]):
                    k = edge - begin
                    d_to_item[edge] = dots[b, k] + d_to_item[edge] if add else dots[b, k]
                    d_to_user[edge] = dots[BLOCK + b, k] + d_to_user[edge] if add else dots[BLOCK + b, k]
                    dots[b, k] = to_item[edge]
                for j in range(width):
                    d_x_user[start + b, j] = table_zero if base is None else base[start + b, j]
            gather_sum(width, d_x_user, start, dots, 0, g_item, False, edge_item, user_ptr, start, rows)

    return SimpleNamespace(weighted_rows=weighted_rows, weighted_users_backward=weighted_users_backward)


@_kernel
def refined_forward(first, last, longest, user_ptr, edge_item, alphas_to_item, alphas_to_user, confidence, weights):
    """weights[0, e], to the item, and weights[1, e], to the user, of the edges of the users ``first`` to ``last``: the
    largest over the modalities of alpha times the confidence of the edge's source, and not less than 0.

    alphas: tuples of (E,), one a modality; confidence (N, modalities).
    """
    n_users = len(user_ptr) - 1
    for user in range(first, last):
        for edge in range(user_ptr[user], user_ptr[user + 1]):
            item = n_users + edge_item[edge]
            to_item, to_user = (
                alphas_to_item[0][edge] * confidence[user, 0],
                alphas_to_user[0][edge] * confidence[item, 0],
            )
            for m in range(1, len(alphas_to_item)):
                other_to_item = alphas_to_item[m][edge] * confidence[user, m]
                other_to_user = alphas_to_user[m][edge] * confidence[item, m]
                to_item = other_to_item if other_to_item > to_item else to_item
                to_user = other_to_user if other_to_user > to_user else to_user
            weights[0, edge] = 0 if to_item <= 0 else to_item
            weights[1, edge] = 0 if to_user <= 0 else to_user


@_kernel
def refined_backward(
    first, last, longest, pointer, column, edge_of, node, alphas, confidence, weight, grad, d_alphas, d_confidence
):
    """Gradients to alpha and to the confidence of the sources, which are the rows ``first`` to ``last`` (users, whose
    places are edges: ``edge_of`` None; or items), from that of the edges' weights. ``node``: the first row's number in
    ``confidence``."""
    for row in range(first, last):
        source = node + row
        for m in range(len(alphas)):
            d_confidence[source, m] = 0
        for place in range(pointer[row], pointer[row + 1]):
            edge = place if edge_of is None else edge_of[place]
            largest, winner = alphas[0][edge] * confidence[source, 0], 0
            for m in range(1, len(alphas)):
                d_alphas[m][edge] = 0
                value = alphas[m][edge] * confidence[source, m]
                if value > largest:
                    largest, winner = value, m
            d_alphas[0][edge] = 0
            if not weight[edge] <= 0:
                d_alphas[winner][edge] = grad[edge] * confidence[source, winner]
                d_confidence[source, winner] += grad[edge] * alphas[winner][edge]
