"""The one list of what can be compared: every model variant that a study, a benchmark or an accuracy run may name.

A variant is a model with its options and backend. Its ``base`` is the variant that its time and its result are compared
with: steps are timed against the base's in the same rounds, outputs and gradients are compared with the base's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mmrec_helpers.config import choose
from mmrec_helpers.data import Interactions
from mmrec_helpers.models import Recommender, build

REFERENCE = "grcn"  # what every other variant's step is expressed in
DIAGNOSED_TRAINING = {"max_grad_norm": 5.0, "learning_rate": 1e-4}  # public logs of jckuan/MMRec
MEMORY_SETTINGS: dict[str, dict[str, Any]] = {
    "checkpointing": {"checkpointing": True},
    "mixed-precision": {"mixed_precision": "float16"},
    "features-on-host": {"features_on_host": True},
}
_ALL_THREE = {name: value for options in MEMORY_SETTINGS.values() for name, value in options.items()}
MEMORY_SETTINGS["all-three"] = _ALL_THREE


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


def _with_memory_settings(model: str, label: str) -> list[Variant]:
    return [
        Variant(f"{model}-{name}", f"{label}, {_SETTING_LABELS[name]}", model, "reference", model, options)
        for name, options in MEMORY_SETTINGS.items()
    ]


_SETTING_LABELS = {"checkpointing": "checkpointing", "mixed-precision": "mixed precision"}
_SETTING_LABELS |= {"features-on-host": "features on the host", "all-three": "all three memory settings"}
_BATCHED, _CACHED = {"batched_modalities": True}, {"cached_attention": True}
_MEAN, _LEARNED = {"preference_update": "mean"}, {"preference_update": "learned"}
_FORK = _ALL_THREE | {"feature_hidden": 128, "train_features": False}  # DRAGON in the diagnosed fork
_PAPER = "GRCN, paper's routing"  # routing="live": users gather from their items, as the paper describes
_LIST = [
    Variant("grcn", "GRCN", "grcn", base=""),
    Variant("grcn-2", "GRCN, 2 iterations", "grcn", options={"routing_iterations": 2}),
    Variant("grcn-1", "GRCN, 1 iteration", "grcn", options={"routing_iterations": 1}),
    Variant("grcn-0", "GRCN, no routing loop", "grcn", options={"routing_iterations": 0}),
    Variant("grcn-batched", "GRCN, modalities batched", "grcn", options=_BATCHED),
    Variant("grcn-cached", "GRCN, attention cached", "grcn", options=_CACHED),
    Variant("grcn-sparse", "GRCN, sparse", "grcn", "sparse"),
    Variant("grcn-fused-plain-adam", "GRCN, fused, plain Adam", "grcn", "fused", training={"fused_optimizer": False}),
    Variant("grcn-fused", "GRCN, fused", "grcn", "fused"),
    Variant("grcn-mean", "GRCN, mean pooling", "grcn", options=_MEAN),
    Variant("grcn-mean-fused", "GRCN, mean pooling, fused", "grcn", "fused", "grcn-mean", _MEAN),
    Variant("grcn-learned", "GRCN, learned-query attention", "grcn", options=_LEARNED),
    Variant("grcn-learned-fused", "GRCN, learned-query attention, fused", "grcn", "fused", "grcn-learned", _LEARNED),
    Variant("grcn-live", _PAPER, "grcn", options=_live(3)),
    Variant("grcn-live-2", f"{_PAPER}, 2 iterations", "grcn", "reference", "grcn-live", _live(2)),
    Variant("grcn-live-1", f"{_PAPER}, 1 iteration", "grcn", "reference", "grcn-live", _live(1)),
    Variant("grcn-live-batched", f"{_PAPER}, batched", "grcn", "reference", "grcn-live", _live(3) | _BATCHED),
    Variant("grcn-live-cached", f"{_PAPER}, attention cached", "grcn", "reference", "grcn-live", _live(3) | _CACHED),
    Variant("grcn-live-sparse", f"{_PAPER}, sparse", "grcn", "sparse", "grcn-live", _live(3)),
    Variant("grcn-live-fused", f"{_PAPER}, fused", "grcn", "fused", "grcn-live", _live(3)),
    Variant("grcn-live-1-fused", f"{_PAPER}, 1 iteration, fused", "grcn", "fused", "grcn-live-1", _live(1)),
    Variant("dragon", "DRAGON", "dragon"),
    Variant("dragon-sparse", "DRAGON, sparse", "dragon", "sparse", "dragon"),
    Variant("dragon-fused", "DRAGON, fused", "dragon", "fused", "dragon"),
    Variant("grcn-diagnosed", "GRCN, diagnosed", "grcn", options=_ALL_THREE, training=DIAGNOSED_TRAINING),
    Variant(
        "dragon-diagnosed", "DRAGON, diagnosed", "dragon", "reference", "grcn-diagnosed", _FORK, DIAGNOSED_TRAINING
    ),
    *_with_memory_settings("grcn", "GRCN"),
    *_with_memory_settings("dragon", "DRAGON"),
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
