"""Drawing: a frame and axes in, axes out. Nothing here measures, reads or writes a file."""

from mmrec_helpers.plots.accuracy import learning_curves
from mmrec_helpers.plots.anatomy import epoch_parts, step_anatomy
from mmrec_helpers.plots.degrees import degree_distribution
from mmrec_helpers.plots.flame import flame_chart
from mmrec_helpers.plots.iterations import iteration_times
from mmrec_helpers.plots.roofline import roofline
from mmrec_helpers.plots.scaling import predicted_against_measured, times_along
from mmrec_helpers.plots.style import MODEL_COLORS, STAGES, stage_of, styled

__all__ = [
    "MODEL_COLORS",
    "STAGES",
    "degree_distribution",
    "epoch_parts",
    "flame_chart",
    "iteration_times",
    "learning_curves",
    "predicted_against_measured",
    "roofline",
    "stage_of",
    "step_anatomy",
    "styled",
    "times_along",
]
