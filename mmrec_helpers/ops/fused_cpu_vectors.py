"""Vector primitives for the CPU kernels, on a block of rows of a CSR at a time.

Each primitive is compiled for one row width, a constant, and writes its loop as LLVM vector instructions, so that a
whole row stays in the processor's registers while its neighbours pass. Plain Numba loops over ``row[j]`` would go
through memory for every neighbour, because the compiler cannot know that the arrays do not overlap.

A block is the rows ``start`` to ``start + rows - 1`` of a CSR with offsets ``pointer`` and columns ``index``. What
belongs to its row b stands in row ``first + b`` of small scratch arrays: vectors (.., width), and one number for each
neighbour (.., longest row + LANES). Doing each step for all rows of a block before the next step hides the latency of
one row's chain of dependent steps behind the other rows.

Compiled kernels are cached on disk by the age of the file that holds them: after a change here, touch that one too.

Tables and scratch are C-contiguous float32 or float64 arrays; pointers and indices are int64. Nothing is checked for
bounds. Sums are reordered and contracted to fused multiply-adds, the same way in every call, since the order is written
down here; NaN and infinity pass through as they should.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

BLOCK = 8  # rows of a CSR that a kernel works on at once
LANES = 8  # numbers of room that softmax needs after a row's values
FAST_ARITHMETIC = ("reassoc", "contract", "nsz")  # no "nnan", no "ninf": a loss that is not finite must stay so

_VECTOR_BYTES = 32
_COLUMN_BYTES = 256  # columns summed at once: eight registers
_PREFETCH_AHEAD = 8  # neighbours
_CACHE_LINE_BYTES = 64
_INT = ir.IntType(64)
_EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_EXP_LOWEST = -70.0  # exp of less is taken as exp(-70), which keeps quotients clear of slow subnormal numbers

_primitive: Callable[..., Callable] = intrinsic  # kernels call what it makes without the typingctx


@_primitive
def copy_rows(typingctx, width, out, out_first, table, first, rows):
    """out[out_first + b] = table[first + b] for b < rows."""
    columns = _constant(width)

    def generate(context, builder, signature, args):
        target, source = _arrays(context, builder, signature, args, 1, 3)
        _, _, out_first, _, first, rows = args
        with _range(builder, _int(0), rows) as b:
            target.store(source.load(builder.add(first, b), 0, columns), builder.add(out_first, b), 0, columns)
        return context.get_dummy_value()

    return types.void(width, out, types.int64, table, types.int64, types.int64), generate


@_primitive
def row_dot(typingctx, width, a, i, b, j):
    """<a[i], b[j]>."""
    columns = _constant(width)

    def generate(context, builder, signature, args):
        left, right = _arrays(context, builder, signature, args, 1, 3)
        product = builder.fmul(left.load(args[2], 0, columns), right.load(args[4], 0, columns), flags=FAST_ARITHMETIC)
        return _sum_lanes(builder, product)

    return a.dtype(width, a, types.int64, b, types.int64), generate


@_primitive
def combine_rows(typingctx, width, out, row, s, a, i, t, b, j):
    """out[row] = s * a[i] + t * b[j]."""
    columns = _constant(width)

    def generate(context, builder, signature, args):
        target, left, right = _arrays(context, builder, signature, args, 1, 4, 7)
        _, _, row, s, _, i, t, _, j = args
        scaled = builder.fmul(_splat(builder, t, columns), right.load(j, 0, columns), flags=FAST_ARITHMETIC)
        total = _multiply_add(builder, _splat(builder, s, columns), left.load(i, 0, columns), scaled)
        target.store(total, row, 0, columns)
        return context.get_dummy_value()

    return types.void(width, out, types.int64, out.dtype, a, types.int64, out.dtype, b, types.int64), generate


@_primitive
def gather_dots(typingctx, width, out, out_first, vectors, first, table, cold, index, pointer, start, rows):
    """out[out_first + b, k] = <vectors[first + b], table's row of b's neighbour k>.

    ``cold``: these rows of the table were not read just before, and are worth prefetching.
    """
    columns = _constant(width)

    def generate(context, builder, signature, args):
        target, given, source, indices, offsets = _arrays(context, builder, signature, args, 1, 3, 5, 7, 8)
        _, _, out_first, _, first, _, cold, _, _, start, rows = args
        with _range(builder, _int(0), rows) as b:
            begin, end = _neighbours(builder, offsets, start, b)
            vector = given.load(builder.add(first, b), 0, columns)
            target_row = builder.add(out_first, b)
            with _range(builder, begin, end) as place:
                with builder.if_then(cold):
                    _prefetch_later(builder, source, indices, place, columns)
                product = builder.fmul(vector, source.load(indices.scalar(place), 0, columns), flags=FAST_ARITHMETIC)
                target.store_scalar(_sum_lanes(builder, product), target_row, builder.sub(place, begin))
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(width, out, int64, vectors, int64, table, types.boolean, index, pointer, int64, int64), generate


@_primitive
def gather_sum(typingctx, width, out, out_first, weights, first, table, cold, index, pointer, start, rows):
    """out[out_first + b] += sum over b's neighbours k of weights[first + b, k] * table's row of k."""
    columns = _constant(width)

    def generate(context, builder, signature, args):
        target, weight, source, indices, offsets = _arrays(context, builder, signature, args, 1, 3, 5, 7, 8)
        _, _, out_first, _, first, _, cold, _, _, start, rows = args
        with _range(builder, _int(0), rows) as b:
            begin, end = _neighbours(builder, offsets, start, b)
            target_row, weight_row = builder.add(out_first, b), builder.add(first, b)
            for column, lanes in target.column_blocks(columns):

                def add(place, total, column=column, lanes=lanes, weight_row=weight_row, begin=begin):
                    if column == 0:
                        with builder.if_then(cold):
                            _prefetch_later(builder, source, indices, place, columns)
                    factor = _splat(builder, weight.scalar(weight_row, builder.sub(place, begin)), lanes)
                    return _multiply_add(builder, factor, source.load(indices.scalar(place), column, lanes), total)

                total = _accumulate(builder, begin, end, target.load(target_row, column, lanes), add)
                target.store(total, target_row, column, lanes)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(width, out, int64, weights, int64, table, types.boolean, index, pointer, int64, int64), generate


@_primitive
def scatter_sums(typingctx, width, table, index, pointer, start, rows, weights, vectors, count):
    """Table's row of b's neighbour k += sum over x < count of weights[BLOCK x + b, k] * vectors[BLOCK x + b]."""
    columns = _constant(width)

    def generate(context, builder, signature, args):
        target, indices, offsets, weight, given = _arrays(context, builder, signature, args, 1, 2, 3, 6, 7)
        _, _, _, _, start, rows, _, _, count = args
        with _range(builder, _int(0), rows) as b:
            begin, end = _neighbours(builder, offsets, start, b)
            with _range(builder, begin, end) as place:
                _prefetch_later(builder, target, indices, place, columns)
                target_row = indices.scalar(place)
                k = builder.sub(place, begin)
                for column, lanes in target.column_blocks(columns):

                    def add(x, total, b=b, k=k, column=column, lanes=lanes):
                        row = builder.add(builder.mul(x, _int(BLOCK)), b)
                        factor = _splat(builder, weight.scalar(row, k), lanes)
                        return _multiply_add(builder, factor, given.load(row, column, lanes), total)

                    total = _accumulate(builder, _int(0), count, target.load(target_row, column, lanes), add)
                    target.store(total, target_row, column, lanes)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(width, table, index, pointer, int64, int64, weights, vectors, int64), generate


@_primitive
def softmax(typingctx, values, first, pointer, start, rows):
    """Replace the numbers in values[first + b] by their softmax. Overwrites up to LANES numbers after them."""

    def generate(context, builder, signature, args):
        array, offsets = _arrays(context, builder, signature, args, 0, 2)
        _, first, _, start, rows = args
        with _range(builder, _int(0), rows) as b:
            begin, end = _neighbours(builder, offsets, start, b)
            _softmax_row(builder, array, builder.add(first, b), builder.sub(end, begin))
        return context.get_dummy_value()

    return types.void(values, types.int64, pointer, types.int64, types.int64), generate


def _softmax_row(builder, array: _Array, row, count):
    lanes = _VECTOR_BYTES // array.itemsize
    suffix = f"v{lanes}f{8 * array.itemsize}"
    vector = ir.VectorType(array.element, lanes)
    lowest = ir.Constant(vector, [float("-inf")] * lanes)
    numbers = ir.Constant(ir.VectorType(_INT, lanes), list(range(lanes)))

    def load(k):  # minus infinity past the count
        within = builder.icmp_signed(
            "<", builder.add(_splat(builder, k, lanes), numbers), _splat(builder, count, lanes)
        )
        return builder.select(within, array.load(row, k, lanes), lowest)

    def maximum(k, largest):
        return _call(builder, f"llvm.maxnum.{suffix}", vector, [largest, load(k)])

    largest = _accumulate(builder, _int(0), count, lowest, maximum, step=lanes)
    largest = _call(builder, f"llvm.vector.reduce.fmax.{suffix}", array.element, [largest])

    def exponentiate(k, total):
        exponential = _exp(builder, builder.fsub(load(k), _splat(builder, largest, lanes)))
        array.store(exponential, row, k, lanes)
        return builder.fadd(total, exponential)

    total = _accumulate(builder, _int(0), count, ir.Constant(vector, [0.0] * lanes), exponentiate, step=lanes)
    scale = builder.fdiv(ir.Constant(array.element, 1.0), _sum_lanes(builder, total))
    with _range(builder, _int(0), count, step=lanes) as k:
        array.store(builder.fmul(array.load(row, k, lanes), _splat(builder, scale, lanes)), row, k, lanes)


def _exp(builder, x):
    """exp of a vector of numbers <= 0. float64: the C library's. float32: to 1e-7 relative.

    x = n ln 2 + y with |y| <= ln 2 / 2; exp(y) by a polynomial; 2^n by writing its exponent bits.
    """
    lanes = x.type.count
    if isinstance(x.type.element, ir.DoubleType):
        return _call(builder, f"llvm.exp.v{lanes}f64", x.type, [x])
    integers = ir.VectorType(ir.IntType(32), lanes)

    def constant(value: float):
        return ir.Constant(x.type, [float(np.float32(value))] * lanes)

    def multiply_add(a, b, c):
        return _call(builder, f"llvm.fmuladd.v{lanes}f32", x.type, [a, b, c])

    too_low = builder.fcmp_ordered("<", x, constant(_EXP_LOWEST))  # false for NaN, which stays
    x = builder.select(too_low, constant(_EXP_LOWEST), x)
    n = builder.fptosi(multiply_add(x, constant(1.44269504), constant(-0.5)), integers)
    whole = builder.sitofp(n, x.type)
    y = multiply_add(whole, constant(-0.693359375), x)
    y = multiply_add(whole, constant(2.12194440e-4), y)
    z = constant(_EXP_POLYNOMIAL[0])
    for coefficient in _EXP_POLYNOMIAL[1:]:
        z = multiply_add(z, y, constant(coefficient))
    z = builder.fadd(multiply_add(builder.fmul(z, y), y, y), constant(1.0))
    exponent = builder.shl(builder.add(n, ir.Constant(integers, [127] * lanes)), ir.Constant(integers, [23] * lanes))
    return builder.fmul(z, builder.bitcast(exponent, x.type))


class _Array:
    """Loads and stores of one array's rows inside a primitive."""

    def __init__(self, context, builder, array_type, value):
        self._context, self._builder, self._type = context, builder, array_type
        self._struct = make_array(array_type)(context, builder, value)
        self.element = context.get_data_type(array_type.dtype)
        self.itemsize = context.get_abi_sizeof(self.element)

    def pointer(self, *position):
        places = [_int(at) if isinstance(at, int) else at for at in position]
        return cgutils.get_item_pointer(
            self._context, self._builder, self._type, self._struct, places, wraparound=False
        )

    def length(self):
        return self._builder.extract_value(self._struct.shape, 0)

    def scalar(self, *position):
        return self._builder.load(self.pointer(*position))

    def store_scalar(self, value, *position):
        self._builder.store(value, self.pointer(*position))

    def _vector_pointer(self, row, column, lanes: int):
        return self._builder.bitcast(self.pointer(row, column), ir.VectorType(self.element, lanes).as_pointer())

    def load(self, row, column, lanes: int):
        return self._builder.load(self._vector_pointer(row, column, lanes), align=self.itemsize)

    def store(self, vector, row, column, lanes: int):
        self._builder.store(vector, self._vector_pointer(row, column, lanes), align=self.itemsize)

    def column_blocks(self, width: int) -> list[tuple[int, int]]:
        """First column and number of columns of each part of a row that is summed in registers."""
        lanes = _COLUMN_BYTES // self.itemsize
        return [(first, min(lanes, width - first)) for first in range(0, width, lanes)]

    def prefetch(self, row, width: int):
        byte_pointer, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        read, keep, data = (ir.Constant(int32, value) for value in (0, 3, 1))
        for column in range(0, width, _CACHE_LINE_BYTES // self.itemsize):
            address = self._builder.bitcast(self.pointer(row, column), byte_pointer)
            _call(self._builder, "llvm.prefetch.p0", ir.VoidType(), [address, read, keep, data])


def _arrays(context, builder, signature, args, *numbers: int) -> list[_Array]:
    return [_Array(context, builder, signature.args[n], args[n]) for n in numbers]


def _constant(literal) -> int:
    if not isinstance(literal, types.IntegerLiteral):
        raise TypingError("the width must be a constant")
    return literal.literal_value


def _int(value: int):
    return ir.Constant(_INT, value)


@contextmanager
def _range(builder, begin, end, step: int = 1):
    """The loop ``for place in range(begin, end, step)``."""
    with cgutils.for_range_slice(builder, begin, end, _int(step), inc=True) as (place, _):
        yield place


def _accumulate(builder, begin, end, initial, update, step: int = 1):
    """The loop ``for place in range(begin, end, step): value = update(place, value)``, its value kept in registers."""
    value = cgutils.alloca_once_value(builder, initial)
    with _range(builder, begin, end, step) as place:
        builder.store(update(place, builder.load(value)), value)
    return builder.load(value)


def _neighbours(builder, pointer: _Array, start, b):
    row = builder.add(start, b)
    return pointer.scalar(row), pointer.scalar(builder.add(row, _int(1)))


def _prefetch_later(builder, table: _Array, index: _Array, place, width: int):
    ahead = builder.add(place, _int(_PREFETCH_AHEAD))
    table.prefetch(index.scalar(builder.select(builder.icmp_signed("<", ahead, index.length()), ahead, place)), width)


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=FAST_ARITHMETIC), c, flags=FAST_ARITHMETIC)


def _splat(builder, scalar, lanes: int):
    vector = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _sum_lanes(builder, vector):
    element = vector.type.element
    bits = 64 if isinstance(element, ir.DoubleType) else 32
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f{bits}"
    return _call(builder, name, element, [ir.Constant(element, -0.0), vector], fastmath=FAST_ARITHMETIC)


def _call(builder, name: str, returned, arguments: list, **options):
    function_type = ir.FunctionType(returned, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments, **options)
