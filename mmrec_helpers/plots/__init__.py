"""Drawing: a frame and axes in, axes out. Nothing here measures, reads or writes a file.

    with styled(height=2.6) as (figure, axes):
        step_anatomy(axes, regions)

style        figures, colours, the stages of a step, names, legends, logarithmic axes
steps        what a step and an epoch consist of: bars
flame        one step as a flame chart
comparisons  variants side by side: fixes, differences in accuracy, time against accuracy, routing iterations
growth       cost against size, predictions, batch sizes, degrees, learning curves
memory       memory over a step, time against memory
roofline     stages under the roof
"""

from mmrec_helpers.plots.comparisons import fix_times, forest, heat_map, iteration_times, pareto
from mmrec_helpers.plots.flame import flame_chart
from mmrec_helpers.plots.growth import (
    batch_size_epochs,
    degree_distribution,
    learning_curves,
    memory_growth,
    predicted_against_measured,
    times_along,
)
from mmrec_helpers.plots.memory import memory_timeline, stage_legend, time_against_memory
from mmrec_helpers.plots.roofline import roofline
from mmrec_helpers.plots.steps import anatomies_side_by_side, epoch_parts, stage_gains, step_anatomy
from mmrec_helpers.plots.style import MODEL_COLORS, STAGES, stage_of, styled

__all__ = ["MODEL_COLORS", "STAGES", "stage_of", "styled"]
__all__ += ["anatomies_side_by_side", "epoch_parts", "stage_gains", "step_anatomy"]
__all__ += ["flame_chart", "memory_timeline", "roofline", "stage_legend", "time_against_memory"]
__all__ += ["fix_times", "forest", "heat_map", "iteration_times", "memory_growth", "pareto"]
__all__ += ["batch_size_epochs", "degree_distribution", "learning_curves", "predicted_against_measured", "times_along"]
