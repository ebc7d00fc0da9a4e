"""The dead-work finder on GRCN, on DRAGON, and on planted examples whose answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import pandas as pd
import torch
from torch import nn

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.planted import planted
from mmrec_helpers.models import build
from mmrec_helpers.profiling.dead_work import find_dead_work, findings_table
from mmrec_helpers.training import NegativeSampler

NOTHING = "not reported"
REFERENCES = ["GRCN as shipped", "GRCN live", "DRAGON"]  # the names of ``reference_arms``


def reference_arms(data: Interactions, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, nn.Module]:
    """The reference models to examine: GRCN as shipped and live, with three iterations, and DRAGON."""
    common = {"backend": "reference", "seed": seed, "device": device}
    shipped = build("grcn", data, routing="as_shipped", **common)
    live = build("grcn", data, routing="live", **common)
    return dict(zip(REFERENCES, (shipped, live, build("dragon", data, **common)), strict=True))


def examine_references(
    data: Interactions,
    *,
    batch_size: int = 512,
    n_batches: int = 2,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """``examine_models`` on ``reference_arms``: the content of a record of kind "dead-work"."""
    models = reference_arms(data, seed, device)
    return examine_models(models, data, batch_size=batch_size, n_batches=n_batches, seed=seed)


def examine_models(
    models: Mapping[str, nn.Module], data: Interactions, *, batch_size: int = 512, n_batches: int = 2, seed: int = 0
) -> pd.DataFrame:
    """The findings in each model on some training batches: a column ``model`` and the fields of ``Finding``."""
    frames = []
    for name, model in models.items():
        device = next(model.parameters()).device
        batches = list(islice(NegativeSampler(data, device).batches(batch_size, seed), n_batches))
        frames.append(findings_table(find_dead_work(model, model.loss, batches)).assign(model=name))
    return pd.concat(frames, ignore_index=True)


def planted_table() -> pd.DataFrame:
    """What was planted and what was found: columns example, name, call, planted, found.

    A row for everything planted, and for everything found that was not (planted: "not reported").
    """
    rows = []
    for example, plant in planted().items():
        found = {
            (f.name, f.call): f.verdict for f in find_dead_work(plant.model, plant.loss, plant.batches, costs=False)
        }
        for name, call in [*plant.expected, *(key for key in found if key not in plant.expected)]:
            rows.append(
                (example, name, call, plant.expected.get((name, call), NOTHING), found.get((name, call), NOTHING))
            )
        if not plant.expected and not found:
            rows.append((example, "(anything)", None, NOTHING, NOTHING))
    return pd.DataFrame(rows, columns=["example", "name", "call", "planted", "found"])
