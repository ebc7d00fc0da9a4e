"""The one list of what can be compared: every model variant that a study, a benchmark or an accuracy run may name.

A variant is a model with its options and backend. Its ``base`` is the variant that its time and its result are compared
with: steps are timed against the base's in the same rounds, outputs and gradients are compared with the base's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mmrec_helpers.config import choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.models import Recommender, build

REFERENCE = "grcn"  # what every other variant's step is expressed in
DIAGNOSED_TRAINING = {"max_grad_norm": 5.0, "learning_rate": 1e-4}  # public logs of jckuan/MMRec
MEMORY_SETTINGS = {
    "checkpointing": {"checkpointing": True},
    "mixed-precision": {"mixed_precision": "float16"},
    "features-on-host": {"features_on_host": True},
}
MEMORY_SETTINGS["all-three"] = {name: value for options in MEMORY_SETTINGS.values() for name, value in options.items()}


@dataclass(frozen=True)
class Variant:
    """One model to compare.

    name      fit for a command line and a file's name
    label     for readers
    model     "grcn", "dragon", "lightgcn" or "popularity", as ``build`` takes it
    backend   "reference" (what MMRec runs), "sparse" or "fused"
    base      the variant that time, output and gradients are compared with; "" for the reference itself
    options   of ``build``
    training  fields of ``TrainSettings`` that belong to it
    """

    name: str
    label: str
    model: str
    backend: str = "reference"
    base: str = REFERENCE
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def build(
        self, data: Interactions, seed: int = 0, device: torch.device | str = "cpu", **options: Any
    ) -> Recommender:
        """The model; ``options`` (``backend`` among them) win over the variant's own."""
        return build(
            self.model, data, **{"backend": self.backend, "seed": seed, "device": device, **self.options} | options
        )


def _live(iterations: int) -> dict[str, Any]:
    return {"routing": "live", "routing_iterations": iterations}


def _counted(iterations: int) -> str:
    return "1 iteration" if iterations == 1 else f"{iterations} iterations"


def _with_memory_settings(model: Variant) -> list[Variant]:
    labels = {"checkpointing": "checkpointing", "mixed-precision": "mixed precision"}
    labels |= {"features-on-host": "features on the host", "all-three": "all three memory settings"}
    return [
        replace(
            model, name=f"{model.name}-{name}", label=f"{model.label}, {labels[name]}", base=model.name, options=options
        )
        for name, options in MEMORY_SETTINGS.items()
    ]


_GRCN = Variant("grcn", "GRCN", "grcn", base="")
_DRAGON = Variant("dragon", "DRAGON", "dragon")
_PAPER = "GRCN, paper's routing"  # routing="live": users gather from their items, as the paper describes
_LIST = [
    _GRCN,
    Variant("grcn-2", "GRCN, 2 iterations", "grcn", options={"routing_iterations": 2}),
    Variant("grcn-1", "GRCN, 1 iteration", "grcn", options={"routing_iterations": 1}),
    Variant("grcn-0", "GRCN, no routing loop", "grcn", options={"routing_iterations": 0}),
    Variant("grcn-batched", "GRCN, modalities batched", "grcn", options={"batched_modalities": True}),
    Variant("grcn-cached", "GRCN, attention cached", "grcn", options={"cached_attention": True}),
    Variant("grcn-sparse", "GRCN, sparse", "grcn", "sparse"),
    Variant(
        "grcn-fused-adam-loop", "GRCN, fused, Adam by operations", "grcn", "fused", training={"fused_optimizer": False}
    ),
    Variant("grcn-fused", "GRCN, fused", "grcn", "fused"),
    Variant("grcn-mean", "GRCN, mean pooling", "grcn", options={"preference_update": "mean"}),
    Variant(
        "grcn-mean-fused", "GRCN, mean pooling, fused", "grcn", "fused", "grcn-mean", {"preference_update": "mean"}
    ),
    Variant("grcn-learned", "GRCN, learned-query attention", "grcn", options={"preference_update": "learned"}),
    Variant(
        "grcn-learned-fused",
        "GRCN, learned-query attention, fused",
        "grcn",
        "fused",
        "grcn-learned",
        {"preference_update": "learned"},
    ),
    Variant("grcn-live", _PAPER, "grcn", options=_live(3)),
    *(
        Variant(f"grcn-live-{n}", f"{_PAPER}, {_counted(n)}", "grcn", base="grcn-live", options=_live(n))
        for n in (2, 1)
    ),
    Variant(
        "grcn-live-batched",
        f"{_PAPER}, modalities batched",
        "grcn",
        base="grcn-live",
        options=_live(3) | {"batched_modalities": True},
    ),
    Variant(
        "grcn-live-cached",
        f"{_PAPER}, attention cached",
        "grcn",
        base="grcn-live",
        options=_live(3) | {"cached_attention": True},
    ),
    Variant("grcn-live-sparse", f"{_PAPER}, sparse", "grcn", "sparse", "grcn-live", _live(3)),
    Variant("grcn-live-fused", f"{_PAPER}, fused", "grcn", "fused", "grcn-live", _live(3)),
    Variant("grcn-live-1-fused", f"{_PAPER}, 1 iteration, fused", "grcn", "fused", "grcn-live-1", _live(1)),
    _DRAGON,
    Variant("dragon-sparse", "DRAGON, sparse", "dragon", "sparse", "dragon"),
    Variant("dragon-fused", "DRAGON, fused", "dragon", "fused", "dragon"),
    Variant(
        "grcn-diagnosed",
        "GRCN, diagnosed settings",
        "grcn",
        options=MEMORY_SETTINGS["all-three"],
        training=DIAGNOSED_TRAINING,
    ),
    Variant(
        "dragon-diagnosed",
        "DRAGON, diagnosed settings",
        "dragon",
        base="grcn-diagnosed",
        options=MEMORY_SETTINGS["all-three"] | {"feature_hidden": 128, "train_features": False},
        training=DIAGNOSED_TRAINING,
    ),
    *_with_memory_settings(_GRCN),
    *_with_memory_settings(_DRAGON),
    Variant("lightgcn", "LightGCN", "lightgcn"),
    Variant("popularity", "popularity", "popularity"),
]
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _LIST}


def find_variants(names: Iterable[str]) -> list[Variant]:
    """The variants of these names; InputError lists the known ones for a name that is none."""
    return [VARIANTS[choose("variant", name, VARIANTS)] for name in names]


def with_bases(names: Iterable[str]) -> list[Variant]:
    """These variants and all that they are compared with, each after its base; the reference is always the first."""
    wanted = {REFERENCE}
    for variant in find_variants(names):
        while variant.name not in wanted:
            wanted.add(variant.name)
            variant = VARIANTS[variant.base]
    return [variant for variant in _LIST if variant.name in wanted]
