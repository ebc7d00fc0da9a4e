"""How far one GPU goes: the memory that training takes as a workload grows, and the largest that fits. Predicted by the
formulas of ``models.step_cost``, which tests hold to counted bytes; nothing here was measured on a GPU.

Counted are what lies on the device between steps, a step, and the sampler of ``training.fit``, which keeps the
interactions and the epoch's batches on the device. Not counted: what the allocator holds back, and CUDA's own
half gigabyte or so.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from mmrec_helpers.data import PRESETS
from mmrec_helpers.experiments.prediction import MODELS as KINDS
from mmrec_helpers.models import MODELS
from mmrec_helpers.models.step_cost import Workload, held_bytes, predicted_peak_bytes
from mmrec_helpers.models.variants import VARIANTS

DEVICES_GB = (24, 80, 141)  # RTX 3090 and 4090; A100 and H100; H200
SAMPLER_BYTES = 24  # per interaction: its key, user and item; see ``training.sampling``
EPOCH_BYTES = 24  # per interaction, of an epoch's batches
SAMPLING_BYTES = 64  # per interaction, at the peak of drawing them, the batches themselves among it
_MOST = 1e12  # interactions, or numbers of a row: beyond anything that fits


def published_workload() -> Workload:
    """Music4All's, as the diagnosed runs trained on it."""
    preset = PRESETS["music4all"]
    widths = {"visual": preset.visual, "textual": preset.textual}
    return Workload(preset.n_users, preset.n_items, preset.n_train, widths, batch_size=4096)


def training_bytes(name: str, w: Workload) -> float:
    """The most memory that ``fit`` of a variant of ``KINDS`` holds on the device, in bytes.

    >>> round(training_bytes("grcn-fused", published_workload()) / 1e9, 1)  # GB
    1.6
    """
    model, backend = VARIANTS[name].model, VARIANTS[name].backend
    step = predicted_peak_bytes(model, w, MODELS[model][1](embedding_dim=w.embedding_dim), backend)
    batches = max(EPOCH_BYTES * w.n_edges + step, SAMPLING_BYTES * w.n_edges)
    return held_bytes(model, w, backend) + SAMPLER_BYTES * w.n_edges + batches


def with_interactions(w: Workload, interactions: float, items_too: bool = False) -> Workload:
    """The workload with so many interactions, users in proportion, and items in proportion too or as many as before."""
    factor = interactions / w.n_edges
    users, items = (max(1, round(count * factor)) for count in (w.n_users, w.n_items))
    return replace(w, n_users=users, n_items=items if items_too else w.n_items, n_edges=max(1, round(interactions)))


def capacity_table(w: Workload) -> pd.DataFrame:
    """Per device (memory_gb) and variant (variant, label) the most that fits, 0 where nothing does: interactions and
    users with the catalogue of ``w``; interactions_items_too, with items growing as well; width of embeddings on ``w``.
    """
    rows = []
    for gb in DEVICES_GB:
        for name in KINDS:
            interactions = _most(name, gb, lambda n: with_interactions(w, n))
            all_grow = _most(name, gb, lambda n: with_interactions(w, n, items_too=True))
            width = int(_most(name, gb, lambda d: replace(w, embedding_dim=int(d))))
            users = with_interactions(w, interactions).n_users
            rows.append((gb, name, VARIANTS[name].label, interactions, users, all_grow, width))
    names = ["memory_gb", "variant", "label", "interactions", "users", "interactions_items_too", "width"]
    return pd.DataFrame(rows, columns=names)


def memory_curves(w: Workload, interactions: Iterable[float]) -> pd.DataFrame:
    """variant, label, interactions and gb of every variant, with the catalogue of ``w``."""
    rows = [
        (name, VARIANTS[name].label, n, training_bytes(name, with_interactions(w, n)) / 1e9)
        for name in KINDS
        for n in interactions
    ]
    return pd.DataFrame(rows, columns=["variant", "label", "interactions", "gb"])


def _most(name: str, gb: float, grown: Callable[[float], Workload]) -> float:
    """The largest size whose workload ``grown(size)`` fits, by bisection; 0 where not even 1 does."""
    low, high = 0.0, np.log(_MOST)
    if training_bytes(name, grown(1.0)) > gb * 1e9:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if training_bytes(name, grown(np.exp(middle))) <= gb * 1e9 else (low, middle)
    return float(np.exp(low))
