"""GRCN and DRAGON as MMRec computes them, and two plain rankings; no files, no sampling."""

from typing import Any

import torch

from mmrec_helpers.config import InputError, check_at_least, choose, resolve_device, settings_from
from mmrec_helpers.data import Interactions
from mmrec_helpers.models.base import Recommender
from mmrec_helpers.models.baselines import LightGCN, Popularity
from mmrec_helpers.models.dragon import DRAGON
from mmrec_helpers.models.grcn import GRCN
from mmrec_helpers.models.settings import DragonOptions, GrcnOptions, LightgcnOptions, PopularityOptions
from mmrec_helpers.ops import BACKENDS

MODELS: dict[str, tuple[type[Recommender], type[Any]]] = {
    "grcn": (GRCN, GrcnOptions),
    "dragon": (DRAGON, DragonOptions),
    "lightgcn": (LightGCN, LightgcnOptions),
    "popularity": (Popularity, PopularityOptions),
}

__all__ = ["DRAGON", "GRCN", "MODELS", "LightGCN", "Popularity", "Recommender", "build"]


def build(
    name: str,
    data: Interactions,
    backend: str = "auto",
    seed: int = 0,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Recommender:
    """Build a model for a data set: "grcn", "dragon", "lightgcn" or "popularity", ready for ``loss`` and ``scores``.

    data     needs features for "grcn" and "dragon": visual, textual or both
    backend  "reference" (what MMRec runs), "sparse", "fused", or "auto": the fastest exact one for the device
    seed     of the initial parameters and of DRAGON's user graphs; global random states are left alone, and the same
             seed gives the same parameters whatever the backend and device
    device   "auto", "cpu", "cuda" or "cuda:N"
    options  fields of ``GrcnOptions``, ``DragonOptions`` or ``LightgcnOptions`` in ``mmrec_helpers.models.settings``

    Raises InputError for an unknown name, backend, device or option, a value out of range, missing features, or a
    backend that cannot run here (saying what it needs).

        model = build("grcn", synthesize("embedded"), routing_iterations=3)
        model.loss(torch.tensor([[0], [5], [7]])).backward()  # user 0 should prefer item 5 to item 7
    """
    model_class, options_class = MODELS[choose("model", name, MODELS)]
    choose("backend", backend, BACKENDS)
    if not isinstance(data, Interactions):
        raise InputError(f"data is {type(data).__name__}: expected Interactions")
    check_at_least("build", 0, seed=seed)
    settings = settings_from(options_class, name, options)
    device = resolve_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        model = model_class(data, settings, backend, seed, device)
    return model.to(device)
