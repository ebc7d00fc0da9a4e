"""Time against accuracy, memory as the size of the marks."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

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
    for recall, rows in table.groupby("recall"):
        for place, (_, row) in enumerate(rows.sort_values("step_ratio").iterrows()):
            shift = (6, 8 if place % 2 else -14)
            axes.annotate(row["arm"], (row["step_ratio"], recall), shift, textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel("step time over the reference's with three iterations as shipped")
    axes.set_ylabel("test recall@20")
    return axes
