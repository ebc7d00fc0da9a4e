"""Time against accuracy, memory as the size of the marks."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

_BEST, _BEATEN = "#228833", "#999999"
_LETTER, _LINE = 4.9, 10.0  # width of a letter and height of a line of 8 points
_SHIFTS = (8, -14, 20, -26, 32, -38)  # points above or below the mark, the nearest first


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
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel("step time over the reference's with three iterations as shipped")
    axes.set_ylabel("test recall@20")
    _label(axes, table)
    return axes


def _label(axes: Axes, table: pd.DataFrame) -> None:
    """Write each arm's name beside its mark, at the nearest height where no other name stands."""
    taken: list[tuple[float, float, float, float]] = []  # left, bottom, right, top in points
    for _, row in table.sort_values("step_ratio").iterrows():
        x, y = axes.transData.transform((row["step_ratio"], row["recall"])) * 72 / axes.figure.dpi
        boxes = {shift: (x + 6, y + shift, x + 6 + _LETTER * len(row["arm"]), y + shift + _LINE) for shift in _SHIFTS}
        shift = next((shift for shift, box in boxes.items() if not any(_meet(box, other) for other in taken)), 8)
        taken.append(boxes[shift])
        axes.annotate(
            row["arm"], (row["step_ratio"], row["recall"]), (6, shift), textcoords="offset points", fontsize=8
        )


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
