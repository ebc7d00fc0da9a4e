"""Least and measured time of each stage of a derivation."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

_COLORS = {"as shipped": "#4477AA", "live": "#CC6677"}


def stage_gains(axes: Axes, stages: pd.DataFrame) -> Axes:
    """Bars of the median time with its quartiles, and a mark at the least time, first stage on top.

    stages: columns stage, routing, median_ms, q1_ms, q3_ms, least_ms.
    """
    at = np.arange(len(stages))
    middle = stages["median_ms"]
    spread = [middle - stages["q1_ms"], stages["q3_ms"] - middle]
    axes.barh(at, middle, xerr=spread, color=stages["routing"].map(_COLORS), height=0.62, capsize=2)
    axes.scatter(stages["least_ms"], at, marker="|", s=160, color="black", label="least, by counting", zorder=3)
    for place, value in zip(at, stages["q3_ms"], strict=True):
        axes.annotate(f"{middle.iloc[place]:.0f}", (value, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(at, stages["stage"])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("milliseconds a step")
    axes.legend(loc="lower right", fontsize=9)
    return axes
