"""The fused CUDA backend: Triton kernels, forward and backward, one program for each user or item.

As ``fused_cpu``: nothing of size E x d, no atomic operations, bitwise the same results every time. Forward keeps the
routed preferences (iterations + 1, U, d); backward adds the iterations' gradients (iterations, U, d) while it runs. No
step waits for the device, so that it can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrec_helpers.config import InputError, check_at_least, choose
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops import fused_cuda_kernels as kernels

_SHORT_ROW = 16  # neighbours, and the smallest tile
_TILE_NUMBERS = 4096  # neighbours times columns of a long row's tile
_NUMBERS_PER_WARP = 512  # 16 registers of each of its 32 threads


@dataclass(frozen=True)
class Launch:
    """How a program works on its row."""

    tile: int  # neighbours at once
    num_warps: int
    whole: bool  # the row fits one tile


@cache
def launches(width: int) -> tuple[Launch, Launch, Launch]:
    """How to work on rows of ``width`` numbers that have up to 16 neighbours, up to a tile of them, any number."""
    columns = triton.next_power_of_2(width)
    tile = max(_SHORT_ROW, _TILE_NUMBERS // columns)

    def warps(neighbours: int) -> int:
        return max(1, min(8, neighbours * columns // _NUMBERS_PER_WARP))

    return (
        Launch(_SHORT_ROW, warps(_SHORT_ROW), True),
        Launch(tile, warps(tile), True),
        Launch(tile, warps(tile), False),
    )


class _Side:
    """The users or the items of a graph as rows of a CSR, grouped by length."""

    def __init__(self, pointer: Tensor, column: Tensor, edge: Tensor | None = None):
        """pointer (rows + 1,), column (entries,), and the edge of each entry: None where entries are in edge order."""
        self.pointer, self.column = pointer.contiguous(), column.contiguous()
        self.edge = self.column if edge is None else edge.contiguous()
        self.by_edge = edge is None
        self.n_rows = len(pointer) - 1
        lengths, self._order = pointer.diff().sort(descending=True, stable=True)
        self._lengths = lengths.cpu()
        self._groups: dict[int, list[tuple[Tensor, Launch]]] = {}

    def groups(self, width: int) -> list[tuple[Tensor, Launch]]:
        """The rows of each launch, longest first, and how to work on them."""
        if width not in self._groups:
            short, middle, long = launches(width)
            bounds = [0, *((self._lengths > limit).sum().item() for limit in (middle.tile, short.tile)), self.n_rows]
            parts = zip(bounds, bounds[1:], (long, middle, short), strict=False)
            self._groups[width] = [(self._order[a:b].clone(), launch) for a, b, launch in parts if b > a]
        return self._groups[width]


def _run(kernel, side: _Side, width: int, arguments: tuple, **constants) -> None:
    """Launch the kernel on all rows of one side, in groups of similar length."""
    takes_whole = "WHOLE" in kernel.arg_names
    with torch.cuda.device_of(arguments[0]):
        for order, launch in side.groups(width):
            whole = {"WHOLE": launch.whole} if takes_whole else {}
            kernel[(len(order),)](
                order,
                side.pointer,
                *arguments,
                **constants,
                **whole,
                TILE=launch.tile,
                WIDTH=width,
                COLUMNS=triton.next_power_of_2(width),
                num_warps=launch.num_warps,
                enable_fp_fusion=True,
            )


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
        kept = (states, features, user_lse, item_lse)
        _run(
            kernels.items_backward,
            items,
            width,
            (items.column, items.edge, *kept, *outside, grad_features, n_users),
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


class _NormalizedPropagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, nodes):
        ctx.nodes, ctx.weight = nodes, weight
        out = torch.empty_like(x)
        _run(kernels.weighted_rows, nodes, x.shape[1], (nodes.column, nodes.edge, weight, x, out), BY_EDGE=True)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):  # the operator is symmetric
        return _NormalizedPropagate.apply(grad_out.contiguous(), ctx.weight, ctx.nodes), None, None


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, matrix, transposed):
        ctx.transposed = transposed
        return _product(matrix, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        return _product(ctx.transposed, grad_out.contiguous()), None, None


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """Rows in their own order, all as long ones: a matrix may be another in every step, and sorting it would wait."""
    n_rows, width = matrix.shape[0], x.shape[1]
    out = x.new_empty(n_rows, width)
    pointer, column, value = matrix.crow_indices(), matrix.col_indices(), matrix.values().to(x.dtype)
    launch = launches(width)[-1]
    with torch.cuda.device_of(x):
        kernels.weighted_rows[(n_rows,)](
            torch.arange(n_rows, device=x.device),
            pointer,
            column,
            column,
            value,
            x,
            out,
            BY_EDGE=True,
            TILE=launch.tile,
            WIDTH=width,
            COLUMNS=triton.next_power_of_2(width),
            num_warps=launch.num_warps,
            enable_fp_fusion=True,
        )
    return out


class FusedCudaOps:
    """Attention and propagation over one bipartite graph, fused, on a CUDA device.

    Gradients reach every floating-point tensor but the values of a sparse matrix. Half-precision inputs, inside
    autocast or not, are computed and returned in float32; float64 stays float64.
    """

    def __init__(self, graph: BipartiteGraph):
        self._device = graph.user_ptr.device
        if self._device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise InputError(f"fused CUDA backend: the graph is on {self._device}: expected cuda")
        self.graph = graph
        self._users = _Side(graph.user_ptr, graph.edge_item)
        self._items = _Side(graph.item_ptr, graph.item_user, graph.item_edge)
        self._nodes: _Side | None = None
        self._node_weight: dict[torch.dtype, Tensor] = {}

    def attention_block(
        self, preference: Tensor, features: Tensor, iterations: int, routing: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The content branch of one modality; see ``FusedCpuOps.attention_block``."""
        choose("routing", routing, ("as_shipped", "live"))
        check_at_least("routing", 0, iterations=iterations)
        self._check_rows("preference", preference, self.graph.n_users)
        self._check_rows("features", features, self.graph.n_items, preference.shape[1])
        preference, features = _same_float(preference, features)
        steps = int(iterations) if routing == "live" else 0
        return _AttentionBlock.apply(preference, features, self._users, self._items, steps)

    def weighted_propagate(self, x: Tensor, weight_to_item: Tensor, weight_to_user: Tensor) -> Tensor:
        """Sum over neighbours in both directions, with a weight for each; see ``FusedCpuOps.weighted_propagate``."""
        self._check_rows("x", x, self.graph.n_nodes)
        for name, weight in (("weight_to_item", weight_to_item), ("weight_to_user", weight_to_user)):
            if weight.shape != (self.graph.n_edges,):
                raise InputError(f"{name} has shape {tuple(weight.shape)}: expected ({self.graph.n_edges},)")
        x, to_item, to_user = _same_float(x, weight_to_item, weight_to_user)
        return _WeightedPropagate.apply(x, to_item, to_user, self._users, self._items)

    def normalized_propagate(self, x: Tensor) -> Tensor:
        """Sum over both directions of x[source] / sqrt(deg(source) deg(target)). x (N, d); returns (N, d)."""
        self._check_rows("x", x, self.graph.n_nodes)
        (x,) = _same_float(x)
        if self._nodes is None:
            self._nodes = _both_directions(self.graph)
        if x.dtype not in self._node_weight:
            self._node_weight[x.dtype] = _inverse_root_degrees(self.graph).to(x.dtype)
        return _NormalizedPropagate.apply(x, self._node_weight[x.dtype], self._nodes)

    def sparse_product(self, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        """matrix @ x for a sparse CSR tensor (rows, columns) and x (columns, d); see ``FusedCpuOps.sparse_product``."""
        self._check_rows("x", x, matrix.shape[1])
        if transposed.shape != matrix.shape[::-1]:
            raise InputError(f"transposed has shape {tuple(transposed.shape)}: expected {tuple(matrix.shape[::-1])}")
        return _SparseProduct.apply(*_same_float(x), matrix, transposed)

    def _check_rows(self, name: str, x: Tensor, rows: int, width: int | None = None) -> None:
        if x.ndim != 2 or x.shape[0] != rows or (width is not None and x.shape[1] != width):
            expected = f"({rows}, {'width' if width is None else width})"
            raise InputError(f"{name} has shape {tuple(x.shape)}: expected {expected}")
        if x.device != self._device:
            raise InputError(f"{name} is on {x.device}: the graph is on {self._device}")


def _same_float(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one type: float64 if any is, else float32. Half precision is widened, inside autocast too."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def _both_directions(graph: BipartiteGraph) -> _Side:
    """All N nodes as rows: the items of each user, then the users of each item."""
    pointer = torch.cat([graph.user_ptr, graph.n_edges + graph.item_ptr[1:]])
    return _Side(pointer, torch.cat([graph.n_users + graph.edge_item, graph.item_user]))


def _inverse_root_degrees(graph: BipartiteGraph) -> Tensor:
    """1 / sqrt(deg(u) deg(i)) in float64 for each entry of ``_both_directions``, (2E,)."""
    degree = torch.cat([graph.user_degree, graph.item_degree]).to(torch.float64)
    weight = (degree[graph.edge_user] * degree[graph.n_users + graph.edge_item]).rsqrt()
    return torch.cat([weight, weight[graph.item_edge]])
