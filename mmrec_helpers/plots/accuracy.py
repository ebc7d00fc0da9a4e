"""Accuracy against epochs and against seconds of training."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from mmrec_helpers.plots.style import MODEL_COLORS


def learning_curves(axes: Axes, history: pd.DataFrame, x: str, y: str, anchors: dict[str, float] | None = None) -> Axes:
    """One line a model of column ``y`` against column ``x``; the best epoch marked; anchors as dashed lines.

    history: columns model, epoch, and those named by ``x`` and ``y``.
    """
    for model, rows in history.groupby("model", sort=False):
        rows = rows.dropna(subset=[y])
        color = MODEL_COLORS.get(model)
        axes.plot(rows[x], rows[y], label=model, color=color, linewidth=1.8)
        best = rows.loc[rows[y].idxmax()]
        axes.plot(best[x], best[y], "o", color=color, markersize=6)
    for label, value in (anchors or {}).items():
        axes.axhline(value, linestyle="--", linewidth=1.2, color=MODEL_COLORS.get(label, "#777777"), label=label)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", fontsize=9)
    return axes
