"""What can be set when a model is built: one frozen dataclass per model, checked when it is made."""

from dataclasses import dataclass

from mmrec_helpers.config import InputError, check_at_least, check_bool, check_positive, choose
from mmrec_helpers.ops import ROUTINGS

PRECISIONS = ("float16", "bfloat16")
PREFERENCE_UPDATES = ("routing", "mean", "learned")


@dataclass(frozen=True)
class PopularityOptions:
    """The popularity ranking has nothing to set."""


@dataclass(frozen=True)
class CommonOptions:
    """Options of every trained model.

    reg_weight       factor of all penalties in the loss, 0 or more
    embedding_dim    width d of embeddings and of each modality's representation (MMRec: embedding_size, feat_embed_dim)
    mixed_precision  None, "float16" or "bfloat16": autocast in the loss (scaling the gradients is the trainer's task)
    """

    reg_weight: float = 1e-3
    embedding_dim: int = 64
    mixed_precision: str | None = None

    def __post_init__(self) -> None:
        _check_not_negative(self._name, reg_weight=self.reg_weight)
        check_at_least(self._name, 1, embedding_dim=self.embedding_dim)
        if self.mixed_precision is not None:
            choose(f"{self._name} mixed_precision", self.mixed_precision, PRECISIONS)

    @property
    def _name(self) -> str:
        return type(self).__name__.removesuffix("Options").lower()


@dataclass(frozen=True)
class MemoryOptions(CommonOptions):
    """The memory settings of the runs that the reported claims are about.

    checkpointing     compute parts of the forward pass again in the backward pass instead of keeping their results:
                      routing iterations, final attention and ID branch (GRCN); feature layers and convolutions (DRAGON)
    features_on_host  keep the raw features in host memory (pinned if there is CUDA) and copy them in every forward pass
    """

    checkpointing: bool = False
    features_on_host: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool(self._name, checkpointing=self.checkpointing, features_on_host=self.features_on_host)


@dataclass(frozen=True)
class GrcnOptions(MemoryOptions):
    """Options of GRCN.

    routing             "as_shipped": the routing loop's messages go from users to items and change nothing, as in the
                        public code; "live": the routing as the paper describes it, users gathering from their items
    routing_iterations  0 or more (MMRec's own name: n_layers)
    preference_update   what updates the users' preferences before the final attention: "routing", or in its place
                        "mean" (of the user's items) or "learned" (learned-query attention), for which the two options
                        above are not read; see ``content_variants``
    batched_modalities  attend in all modalities in one call (reference backend, preference_update "routing")
    cached_attention    routing iterations after the first take its attention weights (reference backend,
                        preference_update "routing", not batched)
    """

    routing: str = "as_shipped"
    routing_iterations: int = 3
    preference_update: str = "routing"
    batched_modalities: bool = False
    cached_attention: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("routing", self.routing, ROUTINGS)
        choose("preference_update", self.preference_update, PREFERENCE_UPDATES)
        check_at_least(self._name, 0, routing_iterations=self.routing_iterations)
        rearranged = {"batched_modalities": self.batched_modalities, "cached_attention": self.cached_attention}
        check_bool(self._name, **rearranged)
        for name in (name for name, on in rearranged.items() if on and self.preference_update != "routing"):
            raise InputError(
                f"grcn: {name} is True with preference_update {self.preference_update!r}: expected 'routing'"
            )
        if all(rearranged.values()):
            raise InputError("grcn: batched_modalities and cached_attention are both True: expected at most one")


@dataclass(frozen=True)
class DragonOptions(MemoryOptions):
    """Options of DRAGON.

    knn_k           items that each item is linked to in the item graph, itself included
    visual_weight   weight of the visual item graph, 0 to 1; the textual one has the rest (MMRec: mm_image_weight)
    n_mm_layers     propagations over the item graph
    feature_hidden  width of the feature layer's hidden part: 256 in MMRec, 128 in the fork of the reported claims
    train_features  whether the raw features, which MMRec registers as parameters, require a gradient (they never get
                    one): True in MMRec, False in that fork
    """

    knn_k: int = 10
    visual_weight: float = 0.1
    n_mm_layers: int = 1
    feature_hidden: int = 256
    train_features: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self._name, 1, knn_k=self.knn_k, feature_hidden=self.feature_hidden)
        check_at_least(self._name, 0, n_mm_layers=self.n_mm_layers)
        _check_not_negative(self._name, visual_weight=self.visual_weight)
        if self.visual_weight > 1:
            raise InputError(f"dragon: visual_weight is {self.visual_weight!r}: expected a number from 0 to 1")
        check_bool(self._name, train_features=self.train_features)


@dataclass(frozen=True)
class LightgcnOptions(CommonOptions):
    """Options of LightGCN: ``n_layers`` convolutions, 0 or more, averaged with the embeddings themselves."""

    reg_weight: float = 1e-4
    n_layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self._name, 0, n_layers=self.n_layers)


def _check_not_negative(kind: str, **values: float) -> None:
    for name, value in values.items():
        if value != 0:
            check_positive(kind, **{name: value})
        elif isinstance(value, bool):
            raise InputError(f"{kind}: {name} is {value!r}: expected a number of at least 0")
