"""Bytes and floating-point operations of the operators that matter here, from the shapes in a trace.

Bytes are what the operator has to read and write if nothing stays in a cache; an operator that adds into its output
(scatter_add_, index_add_) reads and writes it.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

_ITEM_BYTES = {
    "float": 4,
    "double": 8,
    "c10::Half": 2,
    "c10::BFloat16": 2,
    "long int": 8,
    "long": 8,
    "int": 4,
    "short int": 2,
    "signed char": 1,
    "unsigned char": 1,
    "bool": 1,
}
_UNKNOWN = (math.nan, math.nan)

# By the operator's name without "aten::" and a trailing underscore: read all inputs and write one result of the shape
# that they broadcast to; operations per element of the result.
_ELEMENTWISE = {
    **dict.fromkeys(("clone", "_to_copy"), 0),
    **dict.fromkeys(("neg", "abs", "sqrt", "rsqrt", "reciprocal", "relu", "leaky_relu", "clamp", "clamp_min"), 1),
    **dict.fromkeys(("exp", "log", "log2", "sigmoid", "tanh", "log_sigmoid_forward", "softplus", "square", "pow"), 1),
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "maximum", "minimum", "eq", "ne", "lt", "gt", "le", "ge"), 1),
    **dict.fromkeys(("where", "addcmul", "addcdiv", "lerp", "hypot"), 2),
    **dict.fromkeys(("threshold_backward", "leaky_relu_backward", "sigmoid_backward", "tanh_backward"), 2),
    **dict.fromkeys(("log_sigmoid_backward", "_softmax_backward_data", "_log_softmax_backward_data"), 3),
    **dict.fromkeys(("_softmax", "_log_softmax"), 5),
}
# Pass once over all that they are given, which is all that they touch; operations per element of the first.
_PASSES = {
    **dict.fromkeys(("copy", "fill", "zero"), 0),
    **dict.fromkeys(("sum", "mean", "max", "min", "amax", "amin", "prod", "cumsum"), 1),
    **dict.fromkeys(("norm", "linalg_vector_norm", "dot"), 2),
}


def operator_cost(name: str, shapes: Any, dtypes: Any) -> tuple[float, float]:
    """(bytes, operations) of one call of an operator; (nan, nan) where it is not listed or its shapes are not known.

    name    as in a trace, "aten::mul_"
    shapes  the trace's ``Input Dims``, or None
    dtypes  the trace's ``Input type``, or None

    >>> operator_cost("aten::mm", [[30, 20], [20, 10]], ["float", "float"])  # 4 (mk + kn + mn) bytes, 2 mkn operations
    (4400.0, 12000.0)
    """
    base = name.removeprefix("aten::")
    base = base.removesuffix("_") or base
    if not name.startswith("aten::") or not shapes or not dtypes:
        return _UNKNOWN
    tensors = [(s, _ITEM_BYTES[t]) for s, t in zip(shapes, dtypes) if t in _ITEM_BYTES and _is_shape(s)]
    read = float(sum(_size(s) * b for s, b in tensors))
    try:
        if base in _LISTED:
            return _LISTED[base](tensors, shapes)
        if base in _ELEMENTWISE:
            count = _size(np.broadcast_shapes(*(tuple(s) for s, _ in tensors)))
            return read + count * max(b for _, b in tensors), float(count * _ELEMENTWISE[base])
        return (read, float(_size(tensors[0][0]) * _PASSES[base])) if base in _PASSES else _UNKNOWN
    except (IndexError, ValueError):  # shapes that the operator does not have as it is known here
        return _UNKNOWN


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(size, int) for size in value)


def _size(shape: Any) -> int:
    return math.prod(shape)


def _product(tensors, shapes) -> tuple[float, float]:
    """mm (m, k) x (k, n), addmm with a bias before them, bmm with a batch in front."""
    (left, item), (right, _) = tensors[-2:]
    *batch, rows, inner = left
    columns = right[-1]
    bias = sum(_size(s) * b for s, b in tensors[:-2])
    moved = item * math.prod(batch) * (rows * inner + inner * columns + rows * columns) + bias
    return float(moved), 2.0 * math.prod(batch) * rows * inner * columns


def _select_rows(tensors, shapes) -> tuple[float, float]:
    """index_select(table, dim 0, index) and embedding(table, index): whole rows are read and written."""
    (table, item), (index, index_item) = tensors[:2]
    moved = _size(index) * math.prod(table[1:]) * item
    return float(2 * moved + _size(index) * index_item), 0.0


def _gather(tensors, shapes) -> tuple[float, float]:
    (_, item), (index, index_item) = tensors[:2]
    return float(_size(index) * (2 * item + index_item)), 0.0


def _index(tensors, shapes) -> tuple[float, float]:
    """table[index] with one int64 index tensor, which a trace lists as a list of shapes."""
    (index,) = shapes[1]
    return _select_rows([tensors[0], (index, 8)], shapes)


def _scatter(tensors, shapes) -> tuple[float, float]:
    """scatter_add_, scatter_reduce_, index_add_ (out, dim, index, source): the touched output is read and written."""
    _, (index, index_item), (source, item) = tensors[:3]
    count = _size(source)
    return float(3 * count * item + _size(index) * index_item), float(count)


def _concatenate(tensors, shapes) -> tuple[float, float]:
    return 2.0 * 4 * sum(_size(s) for s in shapes[0]), 0.0


_LISTED: dict[str, Callable[[Any, Any], tuple[float, float]]] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
    **dict.fromkeys(("index_select", "embedding"), _select_rows),
    **dict.fromkeys(("scatter_add", "scatter_reduce", "index_add"), _scatter),
    "gather": _gather,
    "index": _index,
    "cat": _concatenate,
}
