"""Edge attention, weighted propagation and normalised propagation over the training graph, in several backends.

``reference`` is what the public MMRec code runs (PyG); ``sparse`` uses torch's sparse rows on any device; ``fused``
uses Numba on the CPU and Triton on CUDA. All compute the same numbers up to rounding.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from mmrec_helpers.config import InputError, choose
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.ops.common import ROUTINGS, GraphOps
from mmrec_helpers.ops.rows import ConstantProduct
from mmrec_helpers.ops.sparse import ConstantMatrix, SparseOps

BACKENDS = ("auto", "reference", "sparse", "fused")

__all__ = ["BACKENDS", "ROUTINGS", "GraphOps", "constant_product", "make_ops"]


def make_ops(backend: str, graph: BipartiteGraph, device: torch.device | str = "cpu") -> GraphOps:
    """Make the operations of one backend for one graph on one device; constants are computed here, once.

    backend  "reference" (PyG, what MMRec runs), "sparse" (torch CSR), "fused" (Numba on the CPU, Triton on CUDA), or
             "auto": the fastest that runs on the device, fused, else sparse
    Raises InputError for another name, and for a backend that cannot run, saying what it needs.

        ops = make_ops("auto", data.graph)
        ops.normalized_propagate(torch.randn(data.graph.n_nodes, 64))
    """
    return _class_of(backend, torch.device(device))(graph.to(device))


def constant_product(matrix: ConstantMatrix) -> Callable[[Tensor], Tensor]:
    """A function of x (n, d) that returns matrix @ x by the fastest backend of the device; the gradient of x takes the
    transpose, the matrix gets none. The parts are prepared once, in the matrix's type.

    product = constant_product(ConstantMatrix(indices, values, (m, n)))
    """
    pair = matrix.pair()
    ops = _class_of("auto", pair[0].device)
    prepared, transposed = (ops._prepared(one, lasting=True) for one in pair)
    return lambda x: ConstantProduct.apply(x.contiguous(), ops._product, prepared, transposed)


def _class_of(backend: str, device: torch.device) -> type[GraphOps]:
    backend = choose("backend", backend, BACKENDS)
    if backend == "auto":
        backend = "fused" if _fused_needs(device) is None else "sparse"
    if backend == "reference":
        from mmrec_helpers.ops.reference import ReferenceOps

        return ReferenceOps
    if backend == "sparse":
        return SparseOps
    needs = _fused_needs(device)
    if needs is not None:
        raise InputError(f"backend 'fused' on {device.type} needs {needs}, which is not installed: use sparse or auto")
    if device.type == "cpu":
        from mmrec_helpers.ops.fused_cpu import FusedCpuOps

        return FusedCpuOps
    from mmrec_helpers.ops.fused_cuda import FusedCudaOps

    return FusedCudaOps


def _fused_needs(device: torch.device) -> str | None:
    """The package that the fused backend lacks on this device; None when it has what it needs."""
    package = "numba" if device.type == "cpu" else "triton"
    return None if find_spec(package) else package
