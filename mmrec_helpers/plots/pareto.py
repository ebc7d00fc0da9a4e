"""Time against accuracy, memory as the size of the marks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mmrec_helpers.plots.axes_text import name_marks, plain_log

_BEST, _BEATEN = "#228833", "#999999"


def pareto(axes: Axes, table: pd.DataFrame) -> Axes:
    """Test recall@20 with its interval against the step time (logarithmic), one mark an arm, its area by peak memory.

    table: arm, step_ratio, peak_mb, recall, low, high, best (drawn in colour: nothing else beats it in all three).
    """
    area = 30 + 500 * table["peak_mb"] / table["peak_mb"].max()
    for (_, row), size in zip(table.iterrows(), area, strict=True):
        color = _BEST if row["best"] else _BEATEN
        reach = [[row["recall"] - row["low"]], [row["high"] - row["recall"]]]
        axes.errorbar(row["step_ratio"], row["recall"], reach, color=color, linewidth=0.8, capsize=2, zorder=1)
        axes.scatter(row["step_ratio"], row["recall"], s=size, color=color, alpha=0.55, linewidth=0, zorder=2)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.15)
    plain_log(axes, "x")
    axes.set_xlabel("step time over the reference's with three iterations as shipped")
    axes.set_ylabel("test recall@20")
    name_marks(axes, zip(table["arm"], table["step_ratio"], table["recall"]), radii=np.sqrt(area / np.pi))
    return axes
