"""The fused CUDA backend: Triton kernels, forward and backward, one program for each user or item.

As ``fused_cpu``: nothing of size E x d, no atomic operations, bitwise the same results every time. Forward keeps the
routed preferences (iterations + 1, U, d); backward adds the iterations' gradients (iterations, U, d) while it runs. No
step waits for the device, so that it can be captured in a CUDA graph.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec_helpers.config import InputError
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import fused_cuda_kernels as kernels
from mmrec_helpers.ops.common import GraphOps

_SHORT_ROW = 16  # neighbours, and the smallest tile
_TILE_NUMBERS = 4096  # neighbours times columns of a whole row's tile
_NUMBERS_PER_WARP = 512  # 16 registers of each of its 32 threads


@dataclass(frozen=True)
class Launch:
    """How a program works on its row."""

    tile: int  # neighbours at once
    num_warps: int
    whole: bool  # the row fits one tile


@cache
def launches(width: int) -> tuple[Launch, Launch, Launch]:
    """How to work on rows of ``width`` numbers that have up to 16 neighbours, up to a tile of them, any number.

    The last take half a tile at once: the compiled kernels then need fewer registers and leave room for more warps
    (``experiments.kernels``; no GPU has timed it).
    """
    columns = triton.next_power_of_2(width)
    tile = max(_SHORT_ROW, _TILE_NUMBERS // columns)
    per_warp = _NUMBERS_PER_WARP if columns < 256 else _NUMBERS_PER_WARP // 2  # with more, rows of 256 numbers spill

    def warps(neighbours: int) -> int:
        return max(1, min(8, neighbours * columns // per_warp))

    return (
        Launch(_SHORT_ROW, warps(_SHORT_ROW), True),
        Launch(tile, warps(tile), True),
        Launch(tile // 2, warps(tile // 2), False),
    )


def launch_of(kernel, launch: Launch, width: int) -> Launch:
    """As ``launch``, one of ``launches``, but no larger tile than a long row's for a kernel that keeps no row whole."""
    return launch if "WHOLE" in kernel.arg_names else min(launch, launches(width)[2], key=lambda one: one.tile)


class _Side:
    """The users or the items of a graph, or a sparse matrix, as rows of a CSR, grouped by length."""

    def __init__(self, pointer: Tensor, column: Tensor, edge: Tensor | None = None, by_length: bool = True):
        """pointer (rows + 1,), column (entries,), and the edge of each entry: None where entries are in edge order.

        Without ``by_length``, which has to wait for the device, all rows are taken in their order and as long ones.
        """
        self.pointer, self.column = pointer.contiguous(), column.contiguous()
        self.edge = self.column if edge is None else edge.contiguous()  # not read when entries are in edge order
        self.n_rows = len(pointer) - 1
        self._lengths = None
        if by_length:
            lengths, self._order = pointer.diff().sort(descending=True, stable=True)
            self._lengths = lengths.cpu()
        self._groups: dict[int, list[tuple[Tensor, Launch]]] = {}

    def groups(self, width: int) -> list[tuple[Tensor, Launch]]:
        """The rows of each launch, longest first, and how to work on them."""
        if self._lengths is None:
            return [(torch.arange(self.n_rows, device=self.pointer.device), launches(width)[2])]
        if width not in self._groups:
            short, middle, long = launches(width)
            bounds = [0, *(int((self._lengths > launch.tile).sum()) for launch in (middle, short)), self.n_rows]
            parts = zip(pairwise(bounds), (long, middle, short), strict=True)
            self._groups[width] = [(self._order[a:b].clone(), launch) for (a, b), launch in parts if b > a]
        return self._groups[width]


def constants_of(kernel, launch: Launch, width: int, **constants) -> dict[str, int | bool]:
    """What ``kernel`` is compiled with for rows of ``width`` numbers, its own ``constants`` among it."""
    shape = {"TILE": launch.tile, "WIDTH": width, "COLUMNS": triton.next_power_of_2(width), "WHOLE": launch.whole}
    return {name: value for name, value in (constants | shape).items() if name in kernel.arg_names}


def options_of(launch: Launch) -> dict[str, int | bool]:
    """The compiler's options for a launch."""
    return {"num_warps": launch.num_warps, "enable_fp_fusion": True}


def _run(kernel, side: _Side, width: int, arguments: tuple, **constants) -> None:
    """Launch the kernel on all rows of one side, in groups of similar length."""
    with torch.cuda.device_of(arguments[0]):
        for order, group in side.groups(width):
            launch = launch_of(kernel, group, width)
            compiled_for = constants_of(kernel, launch, width, **constants)
            kernel[(len(order),)](order, side.pointer, *arguments, **compiled_for, **options_of(launch))


class _AttentionBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, preference, features, users, items, iterations):
        (n_users, width), n_items = preference.shape, len(features)
        new = features.new_empty
        user_out, item_out = torch.empty_like(preference), torch.empty_like(features)
        to_item, to_user = new(len(users.column)), new(len(users.column))
        states, norms = new(iterations + 1, n_users, width), new(iterations, n_users)
        user_lse, item_lse = new(iterations + 1, n_users), new(1, n_items)
        states[0] = preference
        routed = (users.column, users.edge, states, features, norms, user_lse, user_out, to_user, n_users)
        _run(kernels.attend, users, width, routed, ITERATIONS=iterations, BY_EDGE=True)
        attended = (items.column, items.edge, features, states[-1], norms, item_lse, item_out, to_item, n_items)
        _run(kernels.attend, items, width, attended, ITERATIONS=0, BY_EDGE=False)
        ctx.users, ctx.items, ctx.iterations = users, items, iterations
        ctx.save_for_backward(features, user_out, item_out, to_item, to_user, states, norms, user_lse, item_lse)
        return user_out, item_out, to_item, to_user

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        features, user_out, item_out, to_item, to_user, states, norms, user_lse, item_lse = ctx.saved_tensors
        g_user_out, g_item_out, g_to_item, g_to_user = (gradient.contiguous() for gradient in gradients)
        users, items, iterations = ctx.users, ctx.items, ctx.iterations
        n_users, width = user_out.shape
        user_deltas, item_deltas = torch.empty_like(user_lse), torch.empty_like(item_lse)
        duals = torch.empty_like(states[1:])
        grad_preference, grad_features = torch.empty_like(user_out), torch.empty_like(features)
        user_side = (users.edge, states[-1], user_out, g_user_out, to_user, g_to_user, user_deltas[-1])
        item_side = (items.edge, features, item_out, g_item_out, to_item, g_to_item, item_deltas)
        _run(kernels.softmax_deltas, users, width, user_side, BY_EDGE=True)
        _run(kernels.softmax_deltas, items, width, item_side, BY_EDGE=False)
        outside = (g_user_out, g_item_out, g_to_user, g_to_item, item_deltas, user_deltas, duals)
        kept = (states, features, norms, user_lse, item_lse)
        _run(
            kernels.users_backward,
            users,
            width,
            (users.column, *kept, *outside, grad_preference, n_users),
            ITERATIONS=iterations,
        )
        _run(
            kernels.items_backward,
            items,
            width,
            (items.column, items.edge, states, features, user_lse, item_lse, *outside, grad_features, n_users),
            ITERATIONS=iterations,
        )
        return grad_preference, grad_features, None, None, None


class _WeightedPropagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, to_item, to_user, users, items):
        n, width = users.n_rows, x.shape[1]
        out = torch.empty_like(x)
        user_side = (users.column, users.edge, to_user, x[n:], out[:n])
        item_side = (items.column, items.edge, to_item, x[:n], out[n:])
        _run(kernels.weighted_rows, users, width, user_side, BY_EDGE=True)
        _run(kernels.weighted_rows, items, width, item_side, BY_EDGE=False)
        ctx.users, ctx.items = users, items
        ctx.save_for_backward(x, to_item, to_user)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, to_item, to_user = ctx.saved_tensors
        users, items = ctx.users, ctx.items
        n, width = users.n_rows, x.shape[1]
        g = grad_out.contiguous()
        grad_x, grad_to_item, grad_to_user = torch.empty_like(x), torch.empty_like(to_item), torch.empty_like(to_user)
        user_side = (users.column, to_item, x[:n], x[n:], g[:n], g[n:], grad_x[:n], grad_to_item, grad_to_user)
        item_side = (items.column, items.edge, to_user, g[:n], grad_x[n:])
        _run(kernels.weighted_users_backward, users, width, user_side)
        _run(kernels.weighted_rows, items, width, item_side, BY_EDGE=False)
        return grad_x, grad_to_item, grad_to_user, None, None


class FusedCudaOps(GraphOps):
    """The fused operations on a CUDA device, by Triton. The graph must be on that device."""

    fused = True

    def __init__(self, graph: BipartiteGraph):
        device = graph.user_ptr.device
        if device.type != "cuda" and isinstance(kernels.attend, triton.JITFunction):  # what the interpreter runs is not
            raise InputError(f"fused CUDA backend: the graph is on {device}: expected cuda")
        super().__init__(graph)
        self._users = _Side(graph.user_ptr, graph.edge_item)
        self._items = _Side(graph.item_ptr, graph.item_user, graph.item_edge)

    def _attend(self, preference, features, iterations):
        return _AttentionBlock.apply(preference, features, self._users, self._items, iterations)

    def _propagate(self, x, to_item, to_user):
        return _WeightedPropagate.apply(x, to_item, to_user, self._users, self._items)

    @staticmethod
    def _prepared(matrix, lasting):
        side = _Side(matrix.crow_indices().long(), matrix.col_indices().long(), by_length=lasting)
        return side, matrix.values().contiguous()

    @staticmethod
    def _product(matrix, x):
        side, value = matrix
        out = x.new_empty(side.n_rows, x.shape[1])
        _run(kernels.weighted_rows, side, x.shape[1], (side.column, side.edge, value, x, out), BY_EDGE=True)
        return out
