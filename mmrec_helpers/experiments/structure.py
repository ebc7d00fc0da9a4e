"""What GRCN and DRAGON compute in a forward pass, counted: calls, edges visited, operators, parameters."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.steps import MeasureOptions, full_batches
from mmrec_helpers.models import Recommender, build
from mmrec_helpers.ops.reference import both_directions
from mmrec_helpers.profiling.flow import Operations, around_calls

ITERATIONS = (0, 1, 2, 3)
N_MM_LAYERS = (1, 2, 3)


def measure_structure_grcn(data: Interactions, options: MeasureOptions) -> dict[str, Any]:
    """The content of a record of kind "structure-grcn": the reference model as shipped, three routing iterations.

    calls            one row per call of a graph layer, see ``record_calls``
    sweep            calls of the loop's attention in a forward pass, for 0 to 3 iterations
    attention_heads  attention weights per edge
    parameters       see ``parameter_rows``
    """
    batch = full_batches(data, options.batch_size, options.seed, options.device)[0]
    models = {n: _reference("grcn", data, options, routing_iterations=n) for n in ITERATIONS}
    counted = {n: record_calls(model, batch) for n, model in models.items()}
    return {
        "modalities": list(data.modalities),
        "n_train": data.train.shape[1],
        "calls": counted[ITERATIONS[-1]],
        "sweep": [{"iterations": n, "loop_calls": _one_way(calls)} for n, calls in counted.items()],
        "attention_heads": _attention_heads(models[ITERATIONS[-1]], batch),
        "parameters": parameter_rows(models[ITERATIONS[-1]], batch),
    }


def measure_structure_dragon(data: Interactions, options: MeasureOptions) -> dict[str, Any]:
    """The content of a record of kind "structure-dragon": the reference model with MMRec's settings.

    calls, parameters     as in ``measure_structure_grcn``
    convolution_distance  largest absolute difference between the layer's output and the mean, the sum and the
                          symmetric normalised sum of the neighbours' rows
    item_graph_sweep      products with the item graph in a forward pass, for one to three item layers
    *_edges               stored entries of the item graph and of the user graph (its zero weights not counted)
    """
    batch = full_batches(data, options.batch_size, options.seed, options.device)[0]
    models = {n: _reference("dragon", data, options, n_mm_layers=n) for n in N_MM_LAYERS}
    model = models[1]
    operators = {n: _operators(one, batch) for n, one in models.items()}
    return {
        "modalities": list(data.modalities),
        "n_train": data.train.shape[1],
        "calls": record_calls(model, batch),
        "convolution_distance": convolution_distance(data, options.device),
        "item_graph_sweep": [
            {"n_mm_layers": n, "item_graph_runs": count["aten::_sparse_mm"]} for n, count in operators.items()
        ],
        "item_graph_edges": int(model.get_buffer("item_matrix").coalesce().values().numel()),
        "user_graph_runs": operators[1]["user_graph"],
        "user_graph_edges": int((model.get_buffer("user_weights") != 0).sum()),
        "parameters": parameter_rows(model, batch),
    }


def parameter_rows(model: Recommender, batch: Tensor) -> list[dict[str, Any]]:
    """Per parameter: name, shape, entries, trainable (``requires_grad``) and receives_gradient (one that is not all
    zero, from the loss of a batch)."""
    model.zero_grad(set_to_none=True)
    model.loss(batch).backward()
    rows = [
        {
            "name": name,
            "shape": "x".join(map(str, p.shape)),
            "entries": p.numel(),
            "trainable": p.requires_grad,
            "receives_gradient": p.grad is not None and bool(p.grad.any()),
        }
        for name, p in model.named_parameters()
    ]
    model.zero_grad(set_to_none=True)
    return rows


def parameter_counts(structure: Mapping[str, Any]) -> dict[str, int]:
    """Of a record of kind "structure-...": trainable (entries with ``requires_grad``), receiving_gradient (of those,
    entries of parameters that receive one), without_gradient (parameters, not entries, that receive none)."""
    rows = [row for row in structure["parameters"] if row["trainable"]]
    return {
        "trainable": sum(row["entries"] for row in rows),
        "receiving_gradient": sum(row["entries"] for row in rows if row["receives_gradient"]),
        "without_gradient": sum(not row["receives_gradient"] for row in rows),
    }


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


def _reference(name: str, data: Interactions, options: MeasureOptions, **model: Any) -> Recommender:
    return build(name, data, backend="reference", seed=options.seed, device=options.device, **model)


def _one_way(calls) -> int:
    """Attention calls over one direction: those of the routing loop."""
    attention = calls[~calls["module"].str.startswith("id_gcn.")]
    return int(((attention["from_users"] == 0) | (attention["from_items"] == 0)).sum())


def _attention_heads(model: Recommender, batch: Tensor) -> int:
    """Attention weights an edge, from the second output of the first call of an attention layer."""
    heads: list[int] = []

    def count(name: str, call: int, run: partial) -> Any:
        output = run()
        if isinstance(output, tuple):
            heads.append(output[1].numel() // run.args[1].shape[1])
        return output

    with around_calls(_graph_layers(model), count), torch.no_grad():
        model.loss(batch)
    return heads[0]


def _graph_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MessagePassing)}


def _operators(model: Recommender, batch: Tensor) -> Counter[str]:
    """How often each operator and each named region ran in one forward pass."""
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        model.loss(batch)
    return Counter({event.key: event.count for event in profiler.key_averages()})


def record_calls(model: Recommender, batch: Tensor) -> pd.DataFrame:
    """Run ``model.loss(batch)`` once and return one row for each call of a graph layer (a PyG MessagePassing).

    Columns: module (as in named_modules), call (0, 1, ... of that module), layer (class name), edges (columns of the
    edge list), from_users and from_items (how many of the edges start at a user, at an item), users_max_abs and
    items_max_abs (largest absolute value in the output's user rows and item rows), operators (a mapping of ATen
    operator name to count). Messages run from an edge's first node to its second (PyG's default flow).
    """
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    layers = _graph_layers(model)

    def count(func: Any, args: tuple, kwargs: dict) -> Any:
        counts[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs)

    def record(name: str, call: int, run: partial) -> Any:
        before = counts.copy()
        output = run()
        edges = _edge_list([*run.args, *run.keywords.values()])
        rows.append(_row(name, call, layers[name], edges, output, dict(counts - before), model.n_users))
        return output

    with around_calls(layers, record), Operations(count), torch.no_grad():
        model.loss(batch)
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = ["module", "call", "layer", "edges", "from_users", "from_items", "users_max_abs", "items_max_abs"]
_COLUMNS += ["operators"]


def _edge_list(values: list[Any]) -> Tensor:
    def is_edge_list(value: Any) -> bool:
        return isinstance(value, Tensor) and value.dtype == torch.int64 and value.dim() == 2 and value.shape[0] == 2

    return next(value for value in values if is_edge_list(value))


def _row(name: str, call: int, module: nn.Module, edges: Tensor, output: Any, operators: dict, n_users: int) -> dict:
    out = next(o for o in (output if isinstance(output, tuple) else (output,)) if isinstance(o, Tensor))
    size = [float(part.abs().max()) if part.numel() else 0.0 for part in (out[:n_users], out[n_users:])]
    from_users = int((edges[0] < n_users).sum())
    values = (name, call, type(module).__name__, edges.shape[1], from_users, edges.shape[1] - from_users, *size)
    return dict(zip(_COLUMNS, (*values, operators), strict=True))
