"""Data sets: in memory, in MMRec's layout on disk, generated; and the training graph as CSR both ways."""

from mmrec_helpers.data.cache import cached_arrays
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.data.interactions import MODALITIES, Interactions

__all__ = ["MODALITIES", "BipartiteGraph", "Interactions", "cached_arrays"]
