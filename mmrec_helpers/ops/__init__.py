"""Edge attention, weighted propagation and normalised propagation over the training graph, in several backends.

``reference`` is what the public MMRec code runs (PyG); ``sparse`` uses torch's sparse rows on any device; ``fused``
uses Numba on the CPU and Triton on CUDA. All compute the same numbers up to rounding.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from mmrec_helpers.config import InputError, choose
from mmrec_helpers.data.graph import BipartiteGraph

BACKENDS = ("auto", "reference", "sparse", "fused")
ROUTINGS = ("as_shipped", "live")  # see models.settings.GrcnOptions

__all__ = ["BACKENDS", "ROUTINGS", "GraphOps", "make_ops"]


class GraphOps(Protocol):
    """What a backend computes, besides the operations of ``common.CommonOps`` on rows and edges; every operation is
    differentiable in its float tensors.

    U users, I items, N = U + I nodes (item i is node U + i), E edges in the graph's numbering, rows of d numbers.
    """

    graph: BipartiteGraph

    def attention_block(
        self, preference: Tensor, features: Tensor, iterations: int, routing: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """GRCN's content branch of one modality, from unit rows: preference (U, d) and features (I, d).

        routing "live": ``iterations`` times
            p_u <- normalize(p_u + sum_i softmax_i(<p_u, f_i>) f_i)    over the user's items (messages item to user).
        "as_shipped": the public code's messages go from user to item and the user rows of the result are zero, so the
        loop changes nothing; fast backends skip it. Then one attention over both directions of every edge:
            z_u = p_u + sum_i a_ui f_i    a_ui = softmax of <p_u, f_i> over the user's items (item to user)
            z_i = f_i + sum_u b_iu p_u    b_iu = softmax of <p_u, f_i> over the item's users (user to item)
        Returns z of the users (U, d), z of the items (I, d), b (E,) and a (E,).
        """
        ...

    def weighted_propagate(self, x: Tensor, weight_to_item: Tensor, weight_to_user: Tensor) -> Tensor:
        """x (N, d), weights (E,) -> (N, d): item i gets the sum over its edges of weight_to_item[e] x_user(e),
        user u the sum over its edges of weight_to_user[e] x_item(e)."""
        ...

    def normalized_propagate(self, x: Tensor) -> Tensor:
        """x (N, d) -> (N, d): the sum over both directions of x_source / sqrt(deg_source deg_target)."""
        ...

    def sparse_product(self, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        """matrix @ x for a constant sparse CSR tensor (m, n) and x (n, d); ``transposed``, its transpose as CSR, is
        for the backward pass. No gradient reaches the matrix."""
        ...


def make_ops(backend: str, graph: BipartiteGraph, device: torch.device | str = "cpu") -> GraphOps:
    """Make the operations of one backend for one graph on one device; constants are computed here, once.

    backend  "reference" (PyG, what MMRec runs), "sparse" (torch CSR), "fused" (Numba on the CPU, Triton on CUDA), or
             "auto": the fastest that runs on the device, fused, else sparse
    Raises InputError for another name, and for a backend that cannot run, saying what it needs.

        ops = make_ops("auto", data.graph)
        ops.normalized_propagate(torch.randn(data.graph.n_nodes, 64))
    """
    device = torch.device(device)
    backend = choose("backend", backend, BACKENDS)
    if backend == "auto":
        backend = "fused" if _fused_needs(device) is None else "sparse"
    graph = graph.to(device)
    if backend == "reference":
        from mmrec_helpers.ops.reference import ReferenceOps

        return ReferenceOps(graph)
    if backend == "sparse":
        from mmrec_helpers.ops.sparse import SparseOps

        return SparseOps(graph)
    needs = _fused_needs(device)
    if needs is not None:
        raise InputError(f"backend 'fused' on {device.type} needs {needs}, which is not installed: use sparse or auto")
    if device.type == "cpu":
        from mmrec_helpers.ops.fused_cpu import FusedCpuOps

        return FusedCpuOps(graph)
    from mmrec_helpers.ops.fused_cuda import FusedCudaOps

    return FusedCudaOps(graph)


def _fused_needs(device: torch.device) -> str | None:
    """The package that the fused backend lacks on this device; None when it has what it needs."""
    package = "numba" if device.type == "cpu" else "triton"
    return None if find_spec(package) else package
