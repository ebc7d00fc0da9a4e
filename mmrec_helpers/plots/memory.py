"""Memory over a step, and time against memory."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mmrec_helpers.plots.style import MODEL_COLORS, stage_colors, stage_of

_ARM_MARKERS = ("o", "s", "^", "D", "*")


def memory_timeline(axes: Axes, timeline: pd.DataFrame, predicted_bytes: float | None = None) -> Axes:
    """Memory above what a step began with, in MB over its milliseconds, coloured by the stage that runs.

    timeline: columns ms, bytes, region, phase (``MemoryProfile.timeline``); predicted_bytes: a dashed line.
    """
    stage = timeline["region"].map(stage_of)
    colors, height = stage_colors(), timeline["bytes"] / 1e6
    for _, run in timeline.groupby((stage != stage.shift()).cumsum(), sort=False):
        last = min(run.index[-1] + 1, timeline.index[-1])
        span = slice(run.index[0], last)
        color = colors[stage[run.index[0]]]
        axes.fill_between(timeline.loc[span, "ms"], height.loc[span], step="post", color=color, linewidth=0)
    axes.plot(timeline["ms"], height, drawstyle="steps-post", color="#333333", linewidth=0.7)
    if predicted_bytes is not None:
        axes.axhline(predicted_bytes / 1e6, linestyle="--", linewidth=1.2, color="#333333")
        axes.text(0, predicted_bytes / 1e6, "predicted peak", va="bottom", fontsize=9)
        axes.margins(y=0.1)  # the words stand below the title
    axes.set_ylim(bottom=0)
    axes.set_xlabel("milliseconds of the step, under the profiler")
    axes.set_ylabel("MB")
    return axes


def stage_legend(axes: Axes, regions: Sequence[str]) -> Axes:
    """A legend below ``axes`` of the stages that ``regions`` belong to."""
    present = {stage_of(region) for region in regions}
    patches = [Patch(color=color, label=stage) for stage, color in stage_colors().items() if stage in present]
    axes.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8)
    return axes


def time_against_memory(axes: Axes, arms: pd.DataFrame) -> Axes:
    """One marker a setting: how many times as long and how many times as much memory as without any, a colour a model.

    arms: columns model, arm, time (ratio), q1, q3 (of it), memory (ratio).
    """
    markers = dict(zip(dict.fromkeys(arms["arm"]), _ARM_MARKERS))
    for row in arms.itertuples():
        color = MODEL_COLORS[row.model]
        spread = [[max(row.time - row.q1, 0)], [max(row.q3 - row.time, 0)]]
        style = {"color": color, "markersize": 8, "markerfacecolor": color, "capsize": 2, "linestyle": "none"}
        axes.errorbar(row.memory, row.time, yerr=spread, marker=markers[row.arm], **style)
    axes.axhline(1, color="#999999", linewidth=0.8)
    axes.axvline(1, color="#999999", linewidth=0.8)
    models = [Patch(color=MODEL_COLORS[model], label=model) for model in dict.fromkeys(arms["model"])]
    plain = {"color": "#555555", "linestyle": "none"}
    shapes = [axes.plot([], [], marker=marker, label=arm, **plain)[0] for arm, marker in markers.items()]
    axes.legend(handles=models + shapes, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("memory at the peak, times that of no setting")
    axes.set_ylabel("time of a step, times")
    return axes
