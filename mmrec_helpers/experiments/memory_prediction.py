"""How much memory a reference training step will take, predicted before it is run."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mmrec_helpers.config import choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.models import Recommender
from mmrec_helpers.models.settings import DragonOptions, GrcnOptions
from mmrec_helpers.profiling import memory

# Arrays of (edges, width) that are alive at the peak for each edge a layer call visits, fitted to measured peaks on
# data sets of 12,000 to 408,000 interactions (tests/test_memory_prediction.py holds the prediction to the measurement).
LOOP_COPIES, ATTENTION_COPIES, CONVOLUTION_COPIES = 2.2, 2.4, 0.6
CHECKPOINTED_COPIES = 13.0  # of (E, width) in all, whatever the number of iterations
ELEMENT_BYTES = 4
USER_K = 40  # neighbours of a user in DRAGON's user graph, gathered after the convolutions have let go of theirs


def predicted_step_bytes(
    name: str, data: Interactions, options: GrcnOptions | DragonOptions, backend: str = "reference"
) -> float:
    """Predicted peak of a float32 training step's memory beyond what it began with, for "grcn" or "dragon".

    The reference keeps arrays of (edges, width) from every layer call for its backward pass. The other backends keep
    none, and their prediction is the arrays of (nodes, width) alone. Right to about a third.
    """
    choose("model", name, _EDGE_COPIES)
    width, modalities = options.embedding_dim, len(data.modalities)
    edge_copies = _EDGE_COPIES[name](options, modalities) if backend == "reference" else 0.0
    hidden = getattr(options, "feature_hidden", 0)
    nodes = 6 * modalities * (data.n_users + data.n_items) * width + 2 * modalities * data.n_items * hidden
    neighbours = data.n_users * USER_K * modalities * width if name == "dragon" and backend == "reference" else 0
    return ELEMENT_BYTES * (max(edge_copies * data.train.shape[1] * width, neighbours) + nodes)


def step_limit_bytes(device: torch.device) -> float:
    """What a step may need: 16 GiB of host memory, or what is free on the GPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.HOST_LIMIT_BYTES


def refuse_too_large(models: Iterable[Recommender], data: Interactions) -> None:
    """Raise an InputError for the first GRCN or DRAGON on the CPU whose step is predicted to pass 16 GiB."""
    for model in models:
        if model.device.type == "cpu":
            predicted = predicted_step_bytes(model.name, data, model.settings, model.backend)
            what = f"a step of {model.name} ({model.backend}) on {data.name}"
            memory.check_host_memory(predicted, memory.HOST_LIMIT_BYTES, what)


def _grcn_copies(options: GrcnOptions, modalities: int) -> float:
    if options.checkpointing:
        return CHECKPOINTED_COPIES
    loop, final, ids = modalities * options.routing_iterations, 2 * modalities, 4
    return LOOP_COPIES * loop + ATTENTION_COPIES * (final + ids)


def _dragon_copies(options: DragonOptions, modalities: int) -> float:
    return CONVOLUTION_COPIES * 4 * modalities


_EDGE_COPIES = {"grcn": _grcn_copies, "dragon": _dragon_copies}
