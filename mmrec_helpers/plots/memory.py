"""Memory over a step, and time against memory."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmrec_helpers.plots import style

_MARKERS = "os^D*vP"


def memory_timeline(axes: Axes, timeline: pd.DataFrame, predicted_bytes: float | None = None) -> Axes:
    """Memory above what a step began with, in MB over its milliseconds, coloured by the stage that runs.

    timeline         columns ms, bytes, region (one row for each change)
    predicted_bytes  the peak that counting predicts: a dashed line

    >>> timeline = pd.DataFrame({"ms": [0.0, 3.0, 9.0], "bytes": [0, 4e6, 0], "region": ["features", "loss", "loss"]})
    >>> axes = memory_timeline(axes, timeline, predicted_bytes=4.2e6)
    """
    stage = timeline["region"].map(style.stage_of)
    colors, height = style.stage_colors(), timeline["bytes"] / 1e6
    for _, run in timeline.groupby((stage != stage.shift()).cumsum(), sort=False):
        span = slice(run.index[0], min(run.index[-1] + 1, timeline.index[-1]))
        look = {"color": colors[stage[run.index[0]]], "linewidth": 0}
        axes.fill_between(timeline.loc[span, "ms"], height.loc[span], step="post", **look)
    axes.plot(timeline["ms"], height, drawstyle="steps-post", color=style.DARK, linewidth=0.7)
    if predicted_bytes is not None:
        axes.axhline(predicted_bytes / 1e6, linestyle="--", linewidth=1.2, color=style.DARK)
        axes.text(timeline["ms"].min(), predicted_bytes / 1e6, "predicted peak", va="bottom", fontsize=9)
        axes.margins(y=0.1)  # the words stand below the title
    axes.set_ylim(bottom=0)
    axes.set_xlabel("milliseconds of the step, profiled")
    axes.set_ylabel("MB")
    return axes


def stage_legend(axes: Axes, regions: Sequence[str]) -> Axes:
    """A legend below ``axes`` of the stages that ``regions`` (names such as ``routing.visual.0``) belong to.

    >>> timeline = pd.DataFrame({"ms": [0.0, 3.0], "bytes": [0, 4e6], "region": ["features", "loss"]})
    >>> axes = stage_legend(axes, timeline["region"])
    """
    style.legend_below(axes, style.stage_patches(map(style.stage_of, regions)))
    return axes


def time_against_memory(axes: Axes, rows: pd.DataFrame, noise: float | None = None) -> Axes:
    """Step time against peak memory as ratios to those without any setting: a shape for each setting, a colour for each
    model.

    rows   columns model, label (of the setting), ratio (of the step time), q1, q3 (of it), memory_ratio (of the peak)
    noise  how far from 1 the ratio of a control that changes nothing was: a band

    >>> rows = pd.DataFrame({"model": "GRCN", "label": ["none", "checkpointing"], "memory_ratio": [1.0, 0.44]})
    >>> axes = time_against_memory(axes, rows.assign(ratio=[1.0, 1.31], q1=[1.0, 1.2], q3=[1.0, 1.4]), noise=0.08)
    """
    band = style.noise_band(axes, noise, "y")
    axes.axvline(1, color="#999999", linewidth=0.9, zorder=0.6)
    markers = dict(zip(dict.fromkeys(rows["label"]), _MARKERS))
    for row in rows.itertuples():
        look = {"fmt": markers[row.label], "color": style.model_color(row.model), "markersize": 8}
        style.interval(axes, row.memory_ratio, row.ratio, row.q1, row.q3, **look)
    models = [Patch(color=style.model_color(model), label=model) for model in dict.fromkeys(rows["model"])]
    plain = {"color": "#555555", "linestyle": "none"}
    shapes = [Line2D([], [], marker=marker, label=label, **plain) for label, marker in markers.items()]
    axes.legend(handles=models + shapes + band, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("peak memory, ratio to no setting")
    axes.set_ylabel("step time, ratio to no setting")
    return axes
