"""Triton kernels of the fused CUDA backend: one program for a row of a CSR, no atomics, nothing of size E x width.

Notation as in ``fused_cpu_kernels``. A row's neighbours are worked on in tiles of TILE; with WHOLE, the row is known to
fit one tile, whose table rows then stay in registers for all iterations. COLUMNS is WIDTH rounded up to a power of two.
``order`` lists the rows of a launch, long ones first. All floating-point tensors have one type, float32 or float64.
Index tensors are int64, and so is every product that offsets are made of: Triton passes a size that fits as int32.

Softmaxes are kept as the logarithm of their denominator, ``lse``: alpha = exp(logit - lse).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(pointer, index, row, start, TILE: tl.constexpr):
    """Places of the neighbours start .. start + TILE - 1 of a row, their columns, and which of them exist."""
    begin = tl.load(pointer + row)
    end = tl.load(pointer + row + 1)
    place = begin + start + tl.arange(0, TILE)
    valid = place < end
    return place, tl.load(index + place, mask=valid, other=0), valid


@triton.jit
def _rows(table, row, valid, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """(TILE, COLUMNS): the given rows of a (.., WIDTH) table; zero where there are none."""
    column = tl.arange(0, COLUMNS)
    mask = valid[:, None] & (column < WIDTH)[None, :]
    return tl.load(table + row[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)


@triton.jit
def _row(table, row, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """(COLUMNS,): one row of a (.., WIDTH) table."""
    column = tl.arange(0, COLUMNS)
    return tl.load(table + row * WIDTH + column, mask=column < WIDTH, other=0.0)


@triton.jit
def _store_row(table, row, value, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    tl.store(table + row * WIDTH + column, value, mask=column < WIDTH)


@triton.jit
def _edges(edge, place, valid, BY_EDGE: tl.constexpr):
    """The edges at the given places: the places themselves where rows are users (BY_EDGE)."""
    if BY_EDGE:
        return place
    else:
        return tl.load(edge + place, mask=valid, other=0)


@triton.jit
def attend(
    order,
    pointer,
    index,
    edge,
    states,
    table,
    norms,
    lse,
    out,
    alpha,
    n_rows,
    ITERATIONS: tl.constexpr,
    BY_EDGE: tl.constexpr,
    WHOLE: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Route a row p over its neighbours t_k in the table, then attend once more.

    ITERATIONS times p <- normalize(p + sum_k softmax_k(<p, t_k>) t_k); then out = p + sum_k alpha_k t_k.
    states (ITERATIONS + 1, n_rows, WIDTH): the first is read, the others written, as are norms (ITERATIONS, n_rows),
    which each iteration divided by, lse (ITERATIONS + 1, n_rows), out and alpha (by edge).
    """
    n_rows = tl.cast(n_rows, tl.int64)
    row = tl.load(order + tl.program_id(0))
    count = tl.load(pointer + row + 1) - tl.load(pointer + row)
    p = _row(states, row, WIDTH, COLUMNS)
    if WHOLE:
        place, neighbour, valid = _tile(pointer, index, row, 0, TILE)
        t = _rows(table, neighbour, valid, WIDTH, COLUMNS)
    for r in tl.static_range(ITERATIONS + 1):
        if WHOLE:
            logit = tl.where(valid, tl.sum(t * p[None, :], 1), float("-inf"))
            largest = tl.where(count > 0, tl.max(logit, 0), 0.0)
            weight = tl.exp(logit - largest)
            total = tl.sum(weight, 0)
            moved = tl.sum(weight[:, None] * t, 0)
        else:
            largest = tl.full([], float("-inf"), dtype=states.dtype.element_ty)
            total = tl.full([], 0.0, dtype=states.dtype.element_ty)
            moved = tl.zeros([COLUMNS], dtype=states.dtype.element_ty)
            for start in range(0, count, TILE):
                place, neighbour, valid = _tile(pointer, index, row, start, TILE)
                t = _rows(table, neighbour, valid, WIDTH, COLUMNS)
                logit = tl.where(valid, tl.sum(t * p[None, :], 1), float("-inf"))
                larger = tl.maximum(largest, tl.max(logit, 0))
                weight = tl.exp(logit - larger)
                shrink = tl.exp(largest - larger)
                total = total * shrink + tl.sum(weight, 0)
                moved = moved * shrink + tl.sum(weight[:, None] * t, 0)
                largest = larger
        total = tl.where(count > 0, total, 1.0)
        denominator = tl.where(count > 0, largest + tl.log(total), 0.0)
        tl.store(lse + r * n_rows + row, denominator)
        moved = p + moved / total
        if r < ITERATIONS:
            norm = tl.maximum(tl.sqrt(tl.sum(moved * moved, 0)), 1e-12)
            p = moved / norm
            tl.store(norms + r * n_rows + row, norm)
            _store_row(states, (r + 1) * n_rows + row, p, WIDTH, COLUMNS)
        else:
            _store_row(out, row, moved, WIDTH, COLUMNS)
            if WHOLE:
                tl.store(alpha + _edges(edge, place, valid, BY_EDGE), tl.exp(logit - denominator), mask=valid)
            else:
                for start in range(0, count, TILE):
                    place, neighbour, valid = _tile(pointer, index, row, start, TILE)
                    t = _rows(table, neighbour, valid, WIDTH, COLUMNS)
                    weight = tl.exp(tl.sum(t * p[None, :], 1) - denominator)
                    tl.store(alpha + _edges(edge, place, valid, BY_EDGE), weight, mask=valid)


@triton.jit
def softmax_deltas(
    order,
    pointer,
    edge,
    own,
    out,
    grad_out,
    alpha,
    grad_alpha,
    deltas,
    BY_EDGE: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """deltas[row] = sum over its edges of alpha * (gradient of alpha), which the softmax's backward subtracts.

    Through the output the gradient of alpha_k is <g, t_k>, and sum_k alpha_k t_k = out - own.
    """
    row = tl.load(order + tl.program_id(0))
    begin = tl.load(pointer + row)
    end = tl.load(pointer + row + 1)
    moved = _row(out, row, WIDTH, COLUMNS) - _row(own, row, WIDTH, COLUMNS)
    delta = tl.sum(moved * _row(grad_out, row, WIDTH, COLUMNS), 0)
    for start in range(begin, end, TILE):
        place = start + tl.arange(0, TILE)
        valid = place < end
        at = _edges(edge, place, valid, BY_EDGE)
        weight = tl.load(alpha + at, mask=valid, other=0.0)
        delta += tl.sum(weight * tl.load(grad_alpha + at, mask=valid, other=0.0), 0)
    tl.store(deltas + row, delta)


@triton.jit
def _final_slopes(
    f, q, p, g, place, item, valid, lse, item_lse, delta, item_delta, grad_alpha_to_user, grad_alpha_to_item
):
    """Of a tile of a user's edges: the gradient of the shared logit of both softmaxes, and the weight to the item."""
    logit = tl.sum(f * p[None, :], 1)
    to_user = tl.where(valid, tl.exp(logit - lse), 0.0)
    to_item = tl.where(valid, tl.exp(logit - tl.load(item_lse + item, mask=valid, other=0.0)), 0.0)
    slope_user = tl.sum(f * g[None, :], 1) + tl.load(grad_alpha_to_user + place, mask=valid, other=0.0) - delta
    slope_item = tl.sum(q * p[None, :], 1) + tl.load(grad_alpha_to_item + place, mask=valid, other=0.0)
    slope_item -= tl.load(item_delta + item, mask=valid, other=0.0)
    return to_user * slope_user + to_item * slope_item, to_item


@triton.jit
def users_backward(
    order,
    pointer,
    index,
    states,
    features,
    norms,
    user_lse,
    item_lse,
    grad_user_out,
    grad_item_out,
    grad_alpha_to_user,
    grad_alpha_to_item,
    item_deltas,
    user_deltas,
    duals,
    grad_preference,
    n_users,
    ITERATIONS: tl.constexpr,
    WHOLE: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of each user, back through the final attention and then the iterations.

    Reads user_deltas[ITERATIONS]; writes the others, the gradient of each iteration's unnormalized result,
    duals (ITERATIONS, n_users, WIDTH), and grad_preference.
    """
    n_users = tl.cast(n_users, tl.int64)
    user = tl.load(order + tl.program_id(0))
    count = tl.load(pointer + user + 1) - tl.load(pointer + user)
    last = ITERATIONS * n_users
    g = _row(grad_user_out, user, WIDTH, COLUMNS)
    p = _row(states, last + user, WIDTH, COLUMNS)
    lse = tl.load(user_lse + last + user)
    delta = tl.load(user_deltas + last + user)
    gradient = g
    if WHOLE:
        place, item, valid = _tile(pointer, index, user, 0, TILE)
        f = _rows(features, item, valid, WIDTH, COLUMNS)
        q = _rows(grad_item_out, item, valid, WIDTH, COLUMNS)
        slope, to_item = _final_slopes(
            f, q, p, g, place, item, valid, lse, item_lse, delta, item_deltas, grad_alpha_to_user, grad_alpha_to_item
        )
        gradient += tl.sum(slope[:, None] * f + to_item[:, None] * q, 0)
    else:
        for start in range(0, count, TILE):
            place, item, valid = _tile(pointer, index, user, start, TILE)
            f = _rows(features, item, valid, WIDTH, COLUMNS)
            q = _rows(grad_item_out, item, valid, WIDTH, COLUMNS)
            slope, to_item = _final_slopes(
                f,
                q,
                p,
                g,
                place,
                item,
                valid,
                lse,
                item_lse,
                delta,
                item_deltas,
                grad_alpha_to_user,
                grad_alpha_to_item,
            )
            gradient += tl.sum(slope[:, None] * f + to_item[:, None] * q, 0)
    for back in tl.static_range(ITERATIONS):
        r = ITERATIONS - 1 - back
        before = _row(states, r * n_users + user, WIDTH, COLUMNS)
        after = _row(states, (r + 1) * n_users + user, WIDTH, COLUMNS)
        norm = tl.load(norms + r * n_users + user)
        lse = tl.load(user_lse + r * n_users + user)
        along = tl.where(norm > 1e-12, tl.sum(gradient * after, 0), 0.0)
        dual = (gradient - along * after) / norm
        delta = tl.sum(dual * (after * norm - before), 0)
        _store_row(duals, r * n_users + user, dual, WIDTH, COLUMNS)
        tl.store(user_deltas + r * n_users + user, delta)
        gradient = dual
        if WHOLE:
            weight = tl.where(valid, tl.exp(tl.sum(f * before[None, :], 1) - lse), 0.0)
            slope = weight * (tl.sum(f * dual[None, :], 1) - delta)
            gradient += tl.sum(slope[:, None] * f, 0)
        else:
            for start in range(0, count, TILE):
                place, item, valid = _tile(pointer, index, user, start, TILE)
                f = _rows(features, item, valid, WIDTH, COLUMNS)
                weight = tl.where(valid, tl.exp(tl.sum(f * before[None, :], 1) - lse), 0.0)
                slope = weight * (tl.sum(f * dual[None, :], 1) - delta)
                gradient += tl.sum(slope[:, None] * f, 0)
    _store_row(grad_preference, user, gradient, WIDTH, COLUMNS)


@triton.jit
def items_backward(
    order,
    pointer,
    index,
    edge,
    states,
    features,
    user_lse,
    item_lse,
    grad_user_out,
    grad_item_out,
    grad_alpha_to_user,
    grad_alpha_to_item,
    item_deltas,
    user_deltas,
    duals,
    grad_features,
    n_users,
    ITERATIONS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient of each item's features: gathers, over its users and all iterations, weight * dual + slope * state."""
    n_users = tl.cast(n_users, tl.int64)
    item = tl.load(order + tl.program_id(0))
    count = tl.load(pointer + item + 1) - tl.load(pointer + item)
    f = _row(features, item, WIDTH, COLUMNS)
    g = _row(grad_item_out, item, WIDTH, COLUMNS)
    own_lse = tl.load(item_lse + item)
    own_delta = tl.load(item_deltas + item)
    gradient = g
    for start in range(0, count, TILE):
        place, user, valid = _tile(pointer, index, item, start, TILE)
        at = tl.load(edge + place, mask=valid, other=0)
        for r in tl.static_range(ITERATIONS + 1):
            p = _rows(states, r * n_users + user, valid, WIDTH, COLUMNS)
            if r < ITERATIONS:
                d = _rows(duals, r * n_users + user, valid, WIDTH, COLUMNS)
            else:
                d = _rows(grad_user_out, user, valid, WIDTH, COLUMNS)
            logit = tl.sum(p * f[None, :], 1)
            lse = tl.load(user_lse + r * n_users + user, mask=valid, other=0.0)
            weight = tl.where(valid, tl.exp(logit - lse), 0.0)
            slope = tl.sum(d * f[None, :], 1) - tl.load(user_deltas + r * n_users + user, mask=valid, other=0.0)
            if r == ITERATIONS:
                slope += tl.load(grad_alpha_to_user + at, mask=valid, other=0.0)
            slope *= weight
            if r == ITERATIONS:
                to_item = tl.where(valid, tl.exp(logit - own_lse), 0.0)
                grad_to_item = tl.sum(p * g[None, :], 1) + tl.load(grad_alpha_to_item + at, mask=valid, other=0.0)
                slope += to_item * (grad_to_item - own_delta)
            gradient += tl.sum(weight[:, None] * d + slope[:, None] * p, 0)
    _store_row(grad_features, item, gradient, WIDTH, COLUMNS)


@triton.jit
def weighted_rows(
    order,
    pointer,
    index,
    edge,
    weight,
    table,
    out,
    BY_EDGE: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[row] = sum over its places of weight[edge of place] * table[index[place]]."""
    row = tl.load(order + tl.program_id(0))
    count = tl.load(pointer + row + 1) - tl.load(pointer + row)
    total = tl.zeros([COLUMNS], dtype=table.dtype.element_ty)
    for start in range(0, count, TILE):
        place, neighbour, valid = _tile(pointer, index, row, start, TILE)
        w = tl.load(weight + _edges(edge, place, valid, BY_EDGE), mask=valid, other=0.0)
        total += tl.sum(w[:, None] * _rows(table, neighbour, valid, WIDTH, COLUMNS), 0)
    _store_row(out, row, total, WIDTH, COLUMNS)


@triton.jit
def weighted_users_backward(
    order,
    pointer,
    index,
    weight_to_item,
    x_users,
    x_items,
    grad_users,
    grad_items,
    grad_x_users,
    grad_to_item,
    grad_to_user,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of each user: the gradient of x_u = sum_i w_to_item g_i, and of its edges' weights <x_u, g_i> and <g_u, x_i>."""
    user = tl.load(order + tl.program_id(0))
    count = tl.load(pointer + user + 1) - tl.load(pointer + user)
    x = _row(x_users, user, WIDTH, COLUMNS)
    g = _row(grad_users, user, WIDTH, COLUMNS)
    total = tl.zeros([COLUMNS], dtype=x_users.dtype.element_ty)
    for start in range(0, count, TILE):
        place, item, valid = _tile(pointer, index, user, start, TILE)
        g_items = _rows(grad_items, item, valid, WIDTH, COLUMNS)
        w = tl.load(weight_to_item + place, mask=valid, other=0.0)
        total += tl.sum(w[:, None] * g_items, 0)
        tl.store(grad_to_item + place, tl.sum(g_items * x[None, :], 1), mask=valid)
        dots = tl.sum(_rows(x_items, item, valid, WIDTH, COLUMNS) * g[None, :], 1)
        tl.store(grad_to_user + place, dots, mask=valid)
    _store_row(grad_x_users, user, total, WIDTH, COLUMNS)
