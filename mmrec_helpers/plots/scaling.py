"""How cost grows: measured against predicted, and along each quantity that was varied."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from mmrec_helpers.plots.axes_text import plain_log

ARM_LOOKS = {
    "GRCN reference": ("#4477AA", "o"),
    "GRCN fast, as shipped": ("#66CCEE", "^"),
    "GRCN fast, live": ("#228833", "s"),
    "DRAGON reference": ("#EE6677", "D"),
    "DRAGON fast": ("#CCBB44", "v"),
}
_OTHER = ("#777777", "x")


def predicted_against_measured(axes: Axes, table: pd.DataFrame, quantity: str, label: str, scale: float = 1.0) -> Axes:
    """Every point of every arm, logarithmic on both axes; held-out points are ringed, the diagonal is a perfect fit.

    table: arm, sweep, ``quantity`` and ``predicted_<quantity>``, each divided by ``scale`` for the axes.
    """
    for arm, rows in table.groupby("arm", sort=False):
        color, marker = ARM_LOOKS.get(arm, _OTHER)
        x, y = rows[quantity] / scale, rows[f"predicted_{quantity}"] / scale
        axes.scatter(x, y, s=22, color=color, marker=marker, label=arm, linewidth=0)
        held = rows["sweep"] == "held out"
        axes.scatter(x[held], y[held], s=110, facecolors="none", edgecolors=color, linewidth=1.4)
    values = pd.concat([table[quantity], table[f"predicted_{quantity}"]]) / scale
    ends = [values.min() * 0.8, values.max() * 1.25]
    axes.plot(ends, ends, color="#999999", linewidth=0.9, zorder=0)
    axes.set(xlim=ends, ylim=ends, xlabel=f"measured {label}", ylabel=f"predicted {label}")
    plain_log(axes)
    return axes


def times_along(axes: Sequence[Axes], points: pd.DataFrame, sweeps: dict[str, tuple[str, str]]) -> None:
    """One panel a sweep: step time against what was varied, arms in colours, held-out points left out.

    points: arm, sweep, step_ms and the sizes; sweeps: name of the sweep to (column of the size, label of the axis).
    """
    for panel, (sweep, (column, label)) in zip(axes, sweeps.items(), strict=True):
        shown = points[points["sweep"].isin((sweep, "middle"))]
        for arm, rows in shown.groupby("arm", sort=False):
            if rows[column].nunique() < 2:
                continue
            rows = rows.sort_values(column)
            color, marker = ARM_LOOKS.get(arm, _OTHER)
            panel.plot(
                rows[column], rows["step_ms"], color=color, marker=marker, markersize=4, linewidth=1.2, label=arm
            )
        panel.set_xlabel(label)
        panel.set_ylim(bottom=0)
        panel.locator_params(axis="x", nbins=4)
    axes[0].set_ylabel("milliseconds a step")
