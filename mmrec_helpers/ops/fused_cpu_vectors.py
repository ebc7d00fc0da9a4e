"""Vector primitives for the CPU kernels: loops over neighbours that keep whole rows in the processor's registers.

Each primitive is compiled for one row width, a constant, and writes its loop as LLVM vector instructions. Plain Numba
loops over ``row[j]`` would go through memory for every neighbour, because the compiler cannot know that the arrays do
not overlap. Rows are those of C-contiguous float32 or float64 arrays (rows, width); ``index`` arrays are int64. Nothing
is checked for bounds.

The arithmetic may be reordered and contracted to fused multiply-adds, but NaN and infinity pass through as they should.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

# No "nnan" and no "ninf": a loss that is not finite must stay so.
FAST_ARITHMETIC = ("reassoc", "contract", "nsz")

_BLOCK_BYTES = 256  # columns summed at once: eight registers of 32 bytes
_PREFETCH_AHEAD = 8  # neighbours


def _width(width) -> int:
    if not isinstance(width, types.IntegerLiteral):
        raise TypingError("the row width must be a constant")
    return width.literal_value


def _item_type(array):
    return array.dtype


class _Rows:
    """Loads and stores of whole rows, or blocks of columns, of one array inside a primitive."""

    def __init__(self, context, builder, array_type, value):
        self._context, self._builder, self._type = context, builder, array_type
        self._array = make_array(array_type)(context, builder, value)
        self.element = context.get_data_type(array_type.dtype)
        self.itemsize = context.get_abi_sizeof(self.element)

    def pointer(self, *position):
        return cgutils.get_item_pointer(
            self._context, self._builder, self._type, self._array, list(position), wraparound=False
        )

    def scalar(self, *position):
        return self._builder.load(self.pointer(*position))

    def store_scalar(self, value, *position):
        self._builder.store(value, self.pointer(*position))

    def _vector_pointer(self, row, column: int, lanes: int):
        pointer = self.pointer(row, ir.Constant(ir.IntType(64), column))
        return self._builder.bitcast(pointer, ir.VectorType(self.element, lanes).as_pointer())

    def load(self, row, column: int, lanes: int):
        return self._builder.load(self._vector_pointer(row, column, lanes), align=self.itemsize)

    def store(self, vector, row, column: int, lanes: int):
        self._builder.store(vector, self._vector_pointer(row, column, lanes), align=self.itemsize)

    def blocks(self, width: int) -> list[tuple[int, int]]:
        """First column and number of columns of each block of a row."""
        lanes = _BLOCK_BYTES // self.itemsize
        return [(first, min(lanes, width - first)) for first in range(0, width, lanes)]

    def prefetch(self, row, width: int):
        """Ask for a row that will be read soon."""
        byte_pointer = ir.IntType(8).as_pointer()
        int32 = ir.IntType(32)
        module = self._builder.module
        function = cgutils.get_or_insert_function(
            module, ir.FunctionType(ir.VoidType(), [byte_pointer, int32, int32, int32]), "llvm.prefetch.p0"
        )
        read, keep, data = (ir.Constant(int32, value) for value in (0, 3, 1))
        for column in range(0, width, max(1, 64 // self.itemsize)):
            pointer = self.pointer(row, ir.Constant(ir.IntType(64), column))
            self._builder.call(function, [self._builder.bitcast(pointer, byte_pointer), read, keep, data])


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=FAST_ARITHMETIC), c, flags=FAST_ARITHMETIC)


def _splat(builder, scalar, lanes: int):
    vector_type = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(vector_type, ir.Undefined), mask)


def _horizontal_sum(builder, vector):
    element = vector.type.element
    suffix = {"float": "f32", "double": "f64"}[str(element)]
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}{suffix}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(element, [element, vector.type]), name)
    return builder.call(function, [ir.Constant(element, -0.0), vector], fastmath=FAST_ARITHMETIC)


def _prefetch_later(builder, rows: _Rows, index: _Rows, position, last, width: int):
    ahead = builder.add(position, ir.Constant(position.type, _PREFETCH_AHEAD))
    within = builder.icmp_signed("<", ahead, last)
    rows.prefetch(index.scalar(builder.select(within, ahead, position)), width)


@intrinsic
def gather_dots(typingctx, width, out, vectors, row, table, index, begin, end):
    """out[k - begin] = <vectors[row], table[index[k]]> for begin <= k < end."""
    columns = _width(width)

    def generate(context, builder, signature, args):
        _, out_t, vectors_t, _, table_t, index_t, _, _ = signature.args
        _, out_v, vectors_v, row_v, table_v, index_v, begin_v, end_v = args
        target = _Rows(context, builder, out_t, out_v)
        given = _Rows(context, builder, vectors_t, vectors_v)
        rows = _Rows(context, builder, table_t, table_v)
        indices = _Rows(context, builder, index_t, index_v)
        vector = given.load(row_v, 0, columns)
        available = builder.extract_value(make_array(index_t)(context, builder, index_v).shape, 0)
        with cgutils.for_range_slice(builder, begin_v, end_v, ir.Constant(begin_v.type, 1), inc=True) as (k, _count):
            _prefetch_later(builder, rows, indices, k, available, columns)
            product = builder.fmul(vector, rows.load(indices.scalar(k), 0, columns), flags=FAST_ARITHMETIC)
            target.store_scalar(_horizontal_sum(builder, product), builder.sub(k, begin_v))
        return context.get_dummy_value()

    return types.void(width, out, vectors, types.int64, table, index, types.int64, types.int64), generate


def _accumulate(builder, first_k, last_k, start, step):
    """Loop k from first_k to last_k, carrying a vector in registers: vector = step(k, vector)."""
    accumulator = cgutils.alloca_once_value(builder, start)
    with cgutils.for_range_slice(builder, first_k, last_k, ir.Constant(first_k.type, 1), inc=True) as (k, _count):
        builder.store(step(k, builder.load(accumulator)), accumulator)
    return builder.load(accumulator)


@intrinsic
def gather_sum(typingctx, width, out, row, weights, table, index, begin, end):
    """out[row] += sum over begin <= k < end of weights[k - begin] * table[index[k]]."""
    columns = _width(width)

    def generate(context, builder, signature, args):
        _, out_t, _, weights_t, table_t, index_t, _, _ = signature.args
        _, out_v, row_v, weights_v, table_v, index_v, begin_v, end_v = args
        target = _Rows(context, builder, out_t, out_v)
        weight = _Rows(context, builder, weights_t, weights_v)
        rows = _Rows(context, builder, table_t, table_v)
        indices = _Rows(context, builder, index_t, index_v)
        for column, lanes in target.blocks(columns):

            def step(k, total, column=column, lanes=lanes):
                factor = _splat(builder, weight.scalar(builder.sub(k, begin_v)), lanes)
                return _multiply_add(builder, factor, rows.load(indices.scalar(k), column, lanes), total)

            total = _accumulate(builder, begin_v, end_v, target.load(row_v, column, lanes), step)
            target.store(total, row_v, column, lanes)
        return context.get_dummy_value()

    return types.void(width, out, types.int64, weights, table, index, types.int64, types.int64), generate


@intrinsic
def scatter_mix(typingctx, width, table, index, begin, end, mix, vectors, count):
    """table[index[k]] += sum over x < count of mix[x, k - begin] * vectors[x], for begin <= k < end."""
    columns = _width(width)

    def generate(context, builder, signature, args):
        _, table_t, index_t, _, _, mix_t, vectors_t, _ = signature.args
        _, table_v, index_v, begin_v, end_v, mix_v, vectors_v, count_v = args
        rows = _Rows(context, builder, table_t, table_v)
        indices = _Rows(context, builder, index_t, index_v)
        coefficients = _Rows(context, builder, mix_t, mix_v)
        given = _Rows(context, builder, vectors_t, vectors_v)
        available = builder.extract_value(make_array(index_t)(context, builder, index_v).shape, 0)
        zero = ir.Constant(count_v.type, 0)
        with cgutils.for_range_slice(builder, begin_v, end_v, ir.Constant(begin_v.type, 1), inc=True) as (k, _count):
            _prefetch_later(builder, rows, indices, k, available, columns)
            target_row = indices.scalar(k)
            place = builder.sub(k, begin_v)
            for column, lanes in rows.blocks(columns):

                def step(x, total, place=place, column=column, lanes=lanes):
                    factor = _splat(builder, coefficients.scalar(x, place), lanes)
                    return _multiply_add(builder, factor, given.load(x, column, lanes), total)

                total = _accumulate(builder, zero, count_v, rows.load(target_row, column, lanes), step)
                rows.store(total, target_row, column, lanes)
        return context.get_dummy_value()

    return types.void(width, table, index, types.int64, types.int64, mix, vectors, types.int64), generate


@intrinsic
def copy_row(typingctx, width, out, row, table, source):
    """out[row] = table[source]."""
    columns = _width(width)

    def generate(context, builder, signature, args):
        _, out_t, _, table_t, _ = signature.args
        _, out_v, row_v, table_v, source_v = args
        value = _Rows(context, builder, table_t, table_v).load(source_v, 0, columns)
        _Rows(context, builder, out_t, out_v).store(value, row_v, 0, columns)
        return context.get_dummy_value()

    return types.void(width, out, types.int64, table, types.int64), generate
