"""Data sets: in memory, in MMRec's layout on disk, generated; and the training graph as CSR both ways."""

from mmrec_helpers.data.cache import cached_arrays
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.data.interactions import MODALITIES, Interactions, subset
from mmrec_helpers.data.mmrec_files import load_mmrec, write_mmrec
from mmrec_helpers.data.presets import PRESETS, scaled_shape
from mmrec_helpers.data.sources import DataSource
from mmrec_helpers.data.summary import compare_to_reported, degree_table, describe
from mmrec_helpers.data.synthetic import synthesize

__all__ = [
    "MODALITIES",
    "PRESETS",
    "BipartiteGraph",
    "DataSource",
    "Interactions",
    "cached_arrays",
    "compare_to_reported",
    "degree_table",
    "describe",
    "load_mmrec",
    "scaled_shape",
    "subset",
    "synthesize",
    "write_mmrec",
]
