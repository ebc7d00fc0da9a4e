"""Memory over a step, and time against memory."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmrec_helpers.plots import style


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
        look: style.Look = {"color": colors[stage[run.index[0]]], "linewidth": 0}
        axes.fill_between(timeline.loc[span, "ms"], height.loc[span], step="post", **look)
    axes.plot(timeline["ms"], height, drawstyle="steps-post", color=style.TEXT, linewidth=0.7)
    if predicted_bytes is not None:
        axes.axhline(predicted_bytes / 1e6, linestyle="--", linewidth=1.2, color=style.TEXT)
        axes.text(timeline["ms"].min(), predicted_bytes / 1e6, "predicted peak", va="bottom", fontsize=9)
        axes.margins(y=0.1)  # the words stand below the title
    axes.set_ylim(bottom=0)
    axes.set_xlabel("milliseconds of the step, profiled")
    axes.set_ylabel("MB")
    return axes


def stage_legend(figure: Figure, regions: Iterable[str]) -> None:
    """A legend below all axes of the stages that ``regions`` (names such as ``routing.visual.0``) belong to.

    >>> timeline = pd.DataFrame({"ms": [0.0, 3.0], "bytes": [0, 4e6], "region": ["features", "loss"]})
    >>> stage_legend(axes.figure, timeline["region"])
    """
    patches = style.stage_patches(map(style.stage_of, regions))
    figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=9)


def time_against_memory(axes: Axes, rows: pd.DataFrame, noise: float | None = None) -> Axes:
    """Step time against memory as ratios to those without any setting, the crossing of the lines: a shape and a
    colour for each model, each setting named beside its mark.

    rows   columns model, label (of the setting), ratio (of the step time), q1, q3 (of it), memory_ratio
    noise  how far from 1 the ratio of a control that changes nothing was: a band

    >>> rows = pd.DataFrame({"model": "GRCN", "label": ["offloading", "checkpointing"], "memory_ratio": [1.0, 0.44]})
    >>> axes = time_against_memory(axes, rows.assign(ratio=[1.0, 1.31], q1=[1.0, 1.2], q3=[1.0, 1.4]), noise=0.08)
    """
    band = style.noise_band(axes, noise, "y")
    axes.axvline(1, color=style.LINE, linewidth=0.9, zorder=0.6)
    drawn, shown = style.looks(rows["model"]), []
    for model, own in rows.groupby("model", sort=False):
        color, marker = drawn[model]
        look: style.Look = {"fmt": marker, "color": color, "markersize": 7, "label": model}
        shown.append(style.interval(axes, own["memory_ratio"], own["ratio"], own["q1"], own["q3"], **look))
    axes.margins(0.14)
    axes.set_xlabel("memory, ratio to no setting")
    axes.set_ylabel("step time, ratio to no setting")
    style.legend_below(axes, shown + band)
    lines = [(row.memory_ratio, y) for row in rows.itertuples() for y in np.linspace(row.q1, row.q3, 20)]
    lines += [(x, 1) for x in np.linspace(*axes.get_xlim(), 100)] + [(1, y) for y in np.linspace(*axes.get_ylim(), 60)]
    style.name_marks(axes, zip(rows["label"], rows["memory_ratio"], rows["ratio"]), avoid=lines)
    return axes
