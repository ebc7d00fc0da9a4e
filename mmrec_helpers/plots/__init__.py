"""Drawing: a frame and axes in, axes out. Nothing here measures, reads or writes a file."""

from mmrec_helpers.plots.accuracy import learning_curves
from mmrec_helpers.plots.anatomy import anatomies_side_by_side, epoch_parts, step_anatomy
from mmrec_helpers.plots.degrees import degree_distribution
from mmrec_helpers.plots.fixes import batch_size_epochs, fix_times
from mmrec_helpers.plots.flame import flame_chart
from mmrec_helpers.plots.forest import forest
from mmrec_helpers.plots.iterations import iteration_times
from mmrec_helpers.plots.memory import memory_timeline, stage_legend, time_against_memory
from mmrec_helpers.plots.pareto import pareto
from mmrec_helpers.plots.roofline import roofline
from mmrec_helpers.plots.scaling import predicted_against_measured, times_along
from mmrec_helpers.plots.stage_gains import stage_gains
from mmrec_helpers.plots.style import MODEL_COLORS, STAGES, stage_of, styled

__all__ = [
    "MODEL_COLORS",
    "STAGES",
    "anatomies_side_by_side",
    "batch_size_epochs",
    "degree_distribution",
    "epoch_parts",
    "fix_times",
    "flame_chart",
    "forest",
    "iteration_times",
    "learning_curves",
    "memory_timeline",
    "pareto",
    "predicted_against_measured",
    "roofline",
    "stage_gains",
    "stage_legend",
    "stage_of",
    "step_anatomy",
    "styled",
    "time_against_memory",
    "times_along",
]
