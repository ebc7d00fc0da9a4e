"""What GRCN and DRAGON compute in a forward pass, counted: calls, edges visited, operators, parameters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.calls import record_calls
from mmrec_helpers.models import build
from mmrec_helpers.ops.reference import both_directions

ITERATIONS = (0, 1, 2, 3)
N_MM_LAYERS = (1, 2, 3)


def grcn_structure(data: Interactions, batch: Tensor, seed: int, device: torch.device | str) -> dict[str, Any]:
    """The content of a record of kind "structure.grcn": the reference model as shipped, three routing iterations.

    calls            one row a graph layer's call, see ``record_calls``
    sweep            calls of the loop's attention in a forward pass, for 0 to 3 iterations
    attention_heads  attention weights an edge
    parameters       entries with ``requires_grad``, and of those in parameters that get a gradient other than zero
    """
    models = {n: _reference("grcn", data, seed, device, routing_iterations=n) for n in ITERATIONS}
    counted = {n: record_calls(model, batch) for n, model in models.items()}
    return {
        "modalities": list(data.modalities),
        "n_train": data.train.shape[1],
        "calls": counted[ITERATIONS[-1]],
        "sweep": [{"iterations": n, "loop_calls": _one_way(calls)} for n, calls in counted.items()],
        "attention_heads": _attention_heads(models[ITERATIONS[-1]], batch),
        "parameters": parameter_counts(models[ITERATIONS[-1]], batch),
    }


def dragon_structure(data: Interactions, batch: Tensor, seed: int, device: torch.device | str) -> dict[str, Any]:
    """The content of a record of kind "structure.dragon": the reference model with MMRec's settings.

    calls, parameters     as in ``grcn_structure``
    convolution_distance  largest absolute difference between the layer's output and the mean, the sum and the
                          symmetric normalised sum of the neighbours' rows
    item_graph_sweep      products with the item graph in a forward pass, for one to three item layers
    *_edges               stored entries of the item graph and of the user graph (its zero weights not counted)
    """
    models = {n: _reference("dragon", data, seed, device, n_mm_layers=n) for n in N_MM_LAYERS}
    model = models[1]
    operators = {n: _operators(one, batch) for n, one in models.items()}
    return {
        "modalities": list(data.modalities),
        "n_train": data.train.shape[1],
        "calls": record_calls(model, batch),
        "convolution_distance": convolution_distance(data, device),
        "item_graph_sweep": [
            {"n_mm_layers": n, "item_graph_runs": count["aten::_sparse_mm"]} for n, count in operators.items()
        ],
        "item_graph_edges": int(model.item_matrix.coalesce().values().numel()),
        "user_graph_runs": operators[1]["user_graph"],
        "user_graph_edges": int((model.user_weights != 0).sum()),
        "parameters": parameter_counts(model, batch),
    }


def parameter_counts(model: nn.Module, batch: Tensor) -> dict[str, int]:
    """Entries of the parameters: with ``requires_grad``, and of those in parameters whose gradient is not all zero."""
    model.zero_grad(set_to_none=True)
    model.loss(batch).backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    reached = [p for p in trainable if p.grad is not None and bool(p.grad.any())]
    model.zero_grad(set_to_none=True)
    return {"trainable": sum(p.numel() for p in trainable), "receiving_gradient": sum(p.numel() for p in reached)}


def convolution_distance(data: Interactions, device: torch.device | str, width: int = 8) -> dict[str, float]:
    """How far DRAGON's layer is from three ways to gather neighbours, on random rows (N, width) from a fixed seed."""
    from mmrec_helpers.ops.reference import NormalizedSum

    graph = data.graph
    edges = both_directions(torch.stack((graph.edge_user, graph.edge_item + graph.n_users))).to(device)
    x = torch.rand(graph.n_nodes, width, generator=torch.Generator().manual_seed(0)).to(device)
    degree = torch.bincount(edges[1], minlength=graph.n_nodes).clamp(min=1).to(x.dtype)
    total = torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]])
    scaled = (degree[edges[0]] * degree[edges[1]]).rsqrt().view(-1, 1) * x[edges[0]]
    ways = {
        "mean": total / degree.view(-1, 1),
        "sum": total,
        "symmetric normalised sum": torch.zeros_like(x).index_add_(0, edges[1], scaled),
    }
    output = NormalizedSum()(x, edges)
    return {name: float((output - way).abs().max()) for name, way in ways.items()}


def _reference(name: str, data: Interactions, seed: int, device: torch.device | str, **options: Any) -> nn.Module:
    return build(name, data, backend="reference", seed=seed, device=device, **options)


def _one_way(calls) -> int:
    """Attention calls over one direction: those of the routing loop."""
    attention = calls[~calls["module"].str.startswith("id_gcn.")]
    return int(((attention["from_users"] == 0) | (attention["from_items"] == 0)).sum())


def _attention_heads(model: nn.Module, batch: Tensor) -> int:
    """Attention weights an edge, from the second output of the first call of an attention layer."""
    heads: list[int] = []

    def count(module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, tuple):
            heads.append(output[1].numel() // args[1].shape[1])

    handles = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad():
            model.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    return heads[0]


def _operators(model: nn.Module, batch: Tensor) -> Counter[str]:
    """How often each operator and each named region ran in one forward pass."""
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        model.loss(batch)
    return Counter({event.key: event.count for event in profiler.key_averages()})
