"""Differences with their intervals, against a margin."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

_COLORS = {"equivalent": "#4477AA", "better": "#228833", "worse": "#CC6677", "open": "#999999"}


def forest(axes: Axes, pairs: pd.DataFrame, margin: float, unit: str = "test recall@20") -> Axes:
    """One row a pair: the difference, its interval as a line, and its verdict as colour; the margin as a band.

    pairs: columns label, difference, low, high, verdict ("equivalent", "better", "worse" or "open").
    """
    axes.axvspan(-margin, margin, color="#DDDDDD", alpha=0.6, linewidth=0, label=f"margin, {margin:g}")
    axes.axvline(0, color="#444444", linewidth=1)
    told: set[str] = set()
    for row, pair in enumerate(pairs.itertuples()):
        color, label = _COLORS[pair.verdict], None if pair.verdict in told else pair.verdict
        axes.plot([pair.low, pair.high], [row, row], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot(pair.difference, row, "o", color=color, markersize=6, label=label)
        told.add(pair.verdict)
    axes.set_yticks(range(len(pairs)), pairs["label"], fontsize=9)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"difference in {unit}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=5, fontsize=9)
    return axes
