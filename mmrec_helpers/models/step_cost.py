"""What each stage of a reference training step should cost: bytes moved and operations, as formulas of the workload.

Counted from the operators that the PyG layers run, each reading its inputs from memory once and writing its output
once (nothing stays in cache, nothing is fused): a gather of r rows of width d moves 2 r d numbers, a product of two
such arrays 3 r d, a scatter-sum 3 r d (the message, and the target row read and written). An attention call over e
edges so moves 13 e d numbers forward and 21 e d backward, besides some 22 e for the softmax. Index arrays count
8 bytes an entry. A roofline then divides: a stage takes at least the larger of bytes over bandwidth and operations
over rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from functools import reduce

import pandas as pd

from mmrec_helpers.config import check_at_least, choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.models.settings import DragonOptions, GrcnOptions

INDEX_BYTES = 8  # int64
# Arrays of (edges, width) that are alive at the peak for each edge a layer call visits, fitted to measured peaks on
# data sets of 12,000 to 408,000 interactions (tests/test_memory_prediction.py holds the prediction to the measurement).
LOOP_COPIES, ATTENTION_COPIES, CONVOLUTION_COPIES = 2.2, 2.4, 0.6
CHECKPOINTED_COPIES = 13.0  # of (E, width) in all, whatever the number of iterations
ELEMENT_BYTES = 4
USER_K = 40  # neighbours of a user in DRAGON's user graph, gathered after the convolutions have let go of theirs


@dataclass(frozen=True)
class Workload:
    """The sizes that a step's cost depends on. widths: modality to raw feature width, such as {"visual": 1024}."""

    n_users: int
    n_items: int
    n_edges: int
    widths: Mapping[str, int] = field(default_factory=dict)
    batch_size: int = 2048
    embedding_dim: int = 64
    routing_iterations: int = 3
    feature_hidden: int = 256
    knn_k: int = 10
    user_k: int = USER_K
    element_bytes: int = ELEMENT_BYTES

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if name not in ("widths", "routing_iterations")}
        check_at_least("workload", 1, **sizes, **self.widths)
        check_at_least("workload", 0, routing_iterations=self.routing_iterations)

    @property
    def n_nodes(self) -> int:
        return self.n_users + self.n_items


@dataclass(frozen=True)
class Cost:
    """Numbers read or written, index entries read, and floating-point operations, of one pass.

    gathered   of the numbers, those read from rows of a table in the order of an index
    scattered  of the numbers, those of rows that a scatter-sum reads and writes (atomically, on a GPU)
    """

    numbers: float = 0.0
    indices: float = 0.0
    flops: float = 0.0
    gathered: float = 0.0
    scattered: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(times * value for value in astuple(self)))


Pair = tuple[Cost, Cost]  # forward, backward


def step_cost(model: str, workload: Workload) -> pd.DataFrame:
    """The stages of one training step of the reference ``model`` ("grcn" or "dragon").

    Columns: stage (as the profiler's regions begin), calls, and per phase, forward_ and backward_, the bytes, flops,
    gathered_bytes and scattered_bytes (parts of bytes, see ``Cost``) of all the stage's calls together.
    """
    choose("model", model, _STAGES)
    stages = _STAGES[model](workload)
    return pd.DataFrame([{"stage": name, "calls": n, **phase_columns(pair, workload)} for name, n, pair in stages])


def roofline_ms(costs: pd.DataFrame, bandwidth_gb_s: float, rate_gflop_s: float) -> pd.Series:
    """The least milliseconds each stage can take, forward and backward, at the given copy bandwidth and matrix rate."""
    total = pd.Series(0.0, index=costs.index)
    for phase in ("forward", "backward"):
        moved_ms = costs[f"{phase}_bytes"] / bandwidth_gb_s / 1e6
        computed_ms = costs[f"{phase}_flops"] / rate_gflop_s / 1e6
        total += pd.concat([moved_ms, computed_ms], axis=1).max(axis=1)
    return total


def attention_call(edges: int, w: Workload) -> Pair:
    """One attention call of the PyG layer over ``edges``: gathers, product, softmax, weighting, scatter."""
    wide, d = edges * w.embedding_dim, w.embedding_dim
    rows = w.n_nodes * d
    forward = Cost(13 * wide + 12 * edges + rows, 8 * edges, 4 * wide + 4 * edges, 2 * wide, 2 * wide)
    backward = Cost(21 * wide + 10 * edges + 3 * rows, 6 * edges, 8 * wide + 6 * edges, wide, 4 * wide)
    return forward, backward


def weighted_sum_call(edges: int, w: Workload) -> Pair:
    """One layer of the ID branch: gather, multiply by the edge weight, scatter; gradients to rows and weights."""
    wide, rows = edges * w.embedding_dim, w.n_nodes * w.embedding_dim
    forward = Cost(7 * wide + rows, 2 * edges, 2 * wide, wide, 2 * wide)
    return forward, Cost(11 * wide + 2 * rows, 2 * edges, 4 * wide, wide, 2 * wide)


def normalized_sum_call(edges: int, w: Workload) -> Pair:
    """One convolution of DRAGON: degrees counted, norms gathered, rows gathered, scaled, scattered."""
    wide, rows = edges * w.embedding_dim, w.n_nodes * w.embedding_dim
    forward = Cost(7 * wide + rows + 8 * edges, 7 * edges, 2 * wide + 2 * edges, wide, 2 * wide)
    return forward, Cost(7 * wide + rows, 2 * edges, 2 * wide, wide, 2 * wide)


def linear_call(rows: int, width_in: int, width_out: int, input_gradient: bool) -> Pair:
    """A linear layer with its gradient to the weights, and to the input if that is wanted."""
    flops = 2.0 * rows * width_in * width_out
    moved = rows * width_in + rows * width_out + width_in * width_out
    times = 2 if input_gradient else 1
    return Cost(moved, 0, flops), Cost(moved * times, 0, flops * times)


def _grcn_stages(w: Workload) -> list[tuple[str, int, Pair]]:
    modalities, both, d = len(w.widths), 2 * w.n_edges, w.embedding_dim
    features = [
        plus(linear_call(w.n_items, width, d, False), _elementwise(9 * w.n_items * d)) for width in w.widths.values()
    ]
    loop = plus(attention_call(w.n_edges, w), _elementwise(8 * w.n_users * d + 4 * w.n_nodes * d))
    confidence = _elementwise(both * (7 * modalities + 4))
    return [
        ("features", modalities, reduce(plus, features)),
        ("routing", modalities * w.routing_iterations, times(loop, modalities * w.routing_iterations)),
        ("final_attention", modalities, times(attention_call(both, w), modalities)),
        ("confidence", 1, confidence),
        ("id_branch", 2, times(weighted_sum_call(both, w), 2)),
        ("loss", 1, _elementwise(14 * w.batch_size * (1 + modalities) * d)),
    ]


def _dragon_stages(w: Workload) -> list[tuple[str, int, Pair]]:
    modalities, both, d = len(w.widths), 2 * w.n_edges, w.embedding_dim
    width = modalities * d
    gathered = w.n_users * w.user_k * width
    item_edges = w.n_items * w.knn_k * (2 if modalities == 2 else 1)
    item_pass = Cost(
        item_edges * (width + 1) + w.n_items * width, item_edges, 2 * item_edges * width, item_edges * width
    )
    user = (
        Cost(3 * gathered, w.n_users * w.user_k, 2 * gathered, gathered),
        Cost(5 * gathered, w.n_users * w.user_k, 2 * gathered, 0, 2 * gathered),
    )
    return [
        ("features", modalities, dragon_features(w)),
        ("convolution", 2 * modalities, times(normalized_sum_call(both, w), 2 * modalities)),
        ("modal_weighting", 1, _elementwise(3 * w.n_users * width)),
        ("item_graph", 1, (item_pass, item_pass)),
        ("user_graph", 1, user),
        ("loss", 1, _elementwise(14 * w.batch_size * width)),
    ]


def dragon_features(w: Workload) -> Pair:
    """DRAGON's two linear layers of every modality, and the rows of users and items scaled to unit length."""
    d, hidden = w.embedding_dim, w.feature_hidden
    parts = [
        plus(
            plus(linear_call(w.n_items, raw, hidden, False), _elementwise(2 * w.n_items * hidden)),
            plus(linear_call(w.n_items, hidden, d, True), _elementwise(6 * w.n_nodes * d)),
        )
        for raw in w.widths.values()
    ]
    return reduce(plus, parts)


_STAGES = {"grcn": _grcn_stages, "dragon": _dragon_stages}


def phase_columns(pair: Pair, w: Workload) -> dict[str, float]:
    """A pair as the columns of ``step_cost``."""
    columns: dict[str, float] = {}
    for phase, cost, size in zip(("forward", "backward"), pair, pair_bytes(pair, w), strict=True):
        columns |= {f"{phase}_bytes": size, f"{phase}_flops": cost.flops}
        columns |= {
            f"{phase}_{name}_bytes": getattr(cost, name) * w.element_bytes for name in ("gathered", "scattered")
        }
    return columns


def pair_bytes(pair: Pair, w: Workload) -> tuple[float, float]:
    """The bytes that the forward and the backward pass move."""
    forward, backward = (cost.numbers * w.element_bytes + cost.indices * INDEX_BYTES for cost in pair)
    return forward, backward


def _elementwise(numbers: float) -> Pair:
    """A few element-wise operations that move ``numbers`` forward and about as many backward."""
    return Cost(numbers, 0, numbers / 3), Cost(numbers, 0, numbers / 3)


def plus(a: Pair, b: Pair) -> Pair:
    return a[0] + b[0], a[1] + b[1]


def times(pair: Pair, times: float) -> Pair:
    return pair[0] * times, pair[1] * times


def bytes_per_edge(workload: Workload) -> dict[str, float]:
    """Bytes that one call moves per edge it visits, forward and backward, for GRCN's attention and DRAGON's layer."""
    edges = 2 * workload.n_edges
    calls = {"attention": attention_call(edges, workload), "convolution": normalized_sum_call(edges, workload)}
    return {name: sum(pair_bytes(pair, workload)) / edges for name, pair in calls.items()}


def predicted_step_bytes(
    name: str, data: Interactions, options: GrcnOptions | DragonOptions, backend: str = "reference"
) -> float:
    """``predicted_peak_bytes`` of a step on a data set."""
    widths = {name: values.shape[1] for name, values in data.features.items()}
    workload = Workload(data.n_users, data.n_items, data.train.shape[1], widths)
    return predicted_peak_bytes(name, workload, options, backend)


def predicted_peak_bytes(
    name: str, w: Workload, options: GrcnOptions | DragonOptions, backend: str = "reference"
) -> float:
    """Predicted peak of a float32 training step's memory beyond what it began with, for "grcn" or "dragon".

    The reference keeps arrays of (edges, width) from every layer call for its backward pass. The other backends keep
    arrays of (nodes, width) and, of GRCN, of (edges,). Right to about a third.
    """
    choose("model", name, _STAGES)
    width, modalities, edge_copies, neighbours = options.embedding_dim, len(w.widths), 0.0, 0
    if backend == "reference":
        if isinstance(options, DragonOptions):
            edge_copies, neighbours = CONVOLUTION_COPIES * 4 * modalities, w.n_users * USER_K * modalities * width
        elif options.checkpointing:
            edge_copies = CHECKPOINTED_COPIES
        else:
            final_and_ids = 2 * modalities + 4
            edge_copies = LOOP_COPIES * modalities * options.routing_iterations + ATTENTION_COPIES * final_and_ids
    hidden = options.feature_hidden if isinstance(options, DragonOptions) else 0
    nodes = 6 * modalities * w.n_nodes * width + 2 * modalities * w.n_items * hidden
    edges = _edge_numbers(modalities, options, backend) * w.n_edges if isinstance(options, GrcnOptions) else 0
    return ELEMENT_BYTES * (max(edge_copies * w.n_edges * width, neighbours) + edges + nodes)


def _edge_numbers(modalities: int, options: GrcnOptions, backend: str) -> int:
    """Numbers per edge that are alive at the peak of GRCN's step. Fused, on a GPU: of each modality two weights and
    their gradients or the confidences they are multiplied with, and of the ID branch two weights with two gradients
    each; sparse: as many as were counted."""
    if backend == "sparse":
        return 33 * modalities * (2 if options.routing == "live" and options.routing_iterations else 1)
    return 4 * modalities + 6 if backend == "fused" else 0


def held_bytes(name: str, w: Workload, backend: str = "reference") -> float:
    """What lies on the device between two steps of "grcn" or "dragon": raw features, the parameters that are trained
    with Adam's two states, and the indices and weights of all graphs, on the GPU of a backend (reference or fused)."""
    choose("model", name, _STAGES)
    raw = w.n_items * sum(w.widths.values()) * w.element_bytes
    per_edge, users, items = _HELD[name, backend]
    graphs = per_edge * w.n_edges
    if name == "dragon":
        graphs += users * w.user_k * w.n_users + items * w.knn_k * len(w.widths) * w.n_items
    return raw + 3 * ELEMENT_BYTES * trained_parameters(name, w) + graphs


# Bytes per edge of the training graph, and per link of DRAGON's user graph and item graph. The reference keeps the
# edges one way (GRCN) or both (DRAGON), and DRAGON's user graph as a list on the host, its weights alone on the device.
_HELD = {
    ("grcn", "reference"): (2 * INDEX_BYTES, 0, 0),
    ("grcn", "fused"): (4 * INDEX_BYTES, 0, 0),
    ("dragon", "reference"): (4 * INDEX_BYTES, ELEMENT_BYTES, 2 * INDEX_BYTES + ELEMENT_BYTES),
    ("dragon", "fused"): (4 * INDEX_BYTES + 2 * (INDEX_BYTES + ELEMENT_BYTES), *[INDEX_BYTES + ELEMENT_BYTES] * 2),
}


def trained_parameters(name: str, w: Workload) -> int:
    """How many numbers of "grcn" or "dragon" receive a gradient."""
    d, hidden, modalities = w.embedding_dim, w.feature_hidden, len(w.widths)
    users = modalities * w.n_users * d
    if name == "grcn":
        return users + w.n_nodes * (d + modalities) + sum(d * (width + 1) for width in w.widths.values())
    layers = sum(hidden * (width + 1) + d * (hidden + 1) for width in w.widths.values())
    return users + layers + (2 * w.n_users if modalities == 2 else 0)
