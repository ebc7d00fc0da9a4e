"""Calling a compiled kernel from OpenMP's threads without Python in between, as LLVM code."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.callconv import RETCODE_NONE, RETCODE_OK
from numba.core.cgutils import unpack_tuple
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from mmrec_helpers.ops.fused_cpu_kernels import _kernel

_INT, _INT32, _BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
_NEXT, _FAILED, _COUNT, _RANGES, _KERNEL, _ARGUMENTS = range(6)  # what the threads share


@_kernel
def run_natively(parallel, kernel, threads, ranges, arguments):
    """kernel(first, last, *arguments) for all ``ranges`` int64 (n, 2); returns whether one of the calls failed.

    parallel  address of GOMP_parallel; kernel: that of machine code, compiled for two int64 and these arguments
    """
    return _run(parallel, kernel, threads, ranges, arguments)  # type: ignore[call-arg]  # without the typingctx


@intrinsic
def _run(typingctx, parallel, kernel, threads, ranges, arguments):
    kinds = (types.int64, types.int64, *arguments.types)

    def generate(context, builder, signature, args):
        parallel, kernel, threads, ranges, arguments = args
        rows = make_array(signature.args[3])(context, builder, ranges)
        parts = [_INT(0), _INT(0), builder.extract_value(rows.shape, 0), rows.data, kernel, arguments]
        shared = builder.alloca(ir.LiteralStructType([part.type for part in parts]))
        for number, part in enumerate(parts):
            builder.store(part, _part(builder, shared, number))
        body = _body(context, builder.module, shared.type, kinds)
        function = ir.FunctionType(ir.VoidType(), [body.type, _BYTES, _INT32, _INT32])
        given = [body, builder.bitcast(shared, _BYTES), builder.trunc(threads, _INT32), _INT32(0)]
        builder.call(builder.inttoptr(parallel, function.as_pointer()), given)
        return builder.load(_part(builder, shared, _FAILED))

    return types.int64(types.int64, types.int64, types.int64, ranges, arguments), generate


def _body(context: Any, module: ir.Module, shared_type: ir.Type, kinds: tuple) -> ir.Function:
    """What each thread runs: it takes the next range until there is none."""
    name = module.get_unique_name("take_ranges")
    body = ir.Function(module, ir.FunctionType(ir.VoidType(), [_BYTES]), name)
    body.linkage = "internal"
    builder = ir.IRBuilder(body.append_basic_block())
    shared = builder.bitcast(body.args[0], shared_type)
    count, ranges, kernel, arguments = (builder.load(_part(builder, shared, n)) for n in range(_COUNT, _ARGUMENTS + 1))
    function = context.call_conv.get_function_type(types.none, kinds)
    returned = [builder.alloca(kind.pointee) for kind in function.args[:2]]  # None, and what was raised
    take, work, done = (builder.append_basic_block() for _ in range(3))
    builder.branch(take)
    builder.position_at_end(take)
    number = builder.atomic_rmw("add", _part(builder, shared, _NEXT), _INT(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", number, count), work, done)
    builder.position_at_end(work)
    place = builder.mul(number, _INT(2))
    rows = [builder.load(builder.gep(ranges, [builder.add(place, _INT(end))])) for end in range(2)]
    given = context.get_arg_packer(kinds).as_arguments(builder, [*rows, *unpack_tuple(builder, arguments)])
    code = builder.call(builder.inttoptr(kernel, function.as_pointer()), [*returned, *given])
    fine = builder.or_(*(builder.icmp_signed("==", code, right) for right in (RETCODE_OK, RETCODE_NONE)))
    with builder.if_then(builder.not_(fine), likely=False):
        builder.store(_INT(1), _part(builder, shared, _FAILED))
    builder.branch(take)
    builder.position_at_end(done)
    builder.ret_void()
    return body


def _part(builder: ir.IRBuilder, shared: Any, number: int) -> Any:
    return builder.gep(shared, [_INT32(0), _INT32(number)])
