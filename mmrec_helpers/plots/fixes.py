"""What the fixes do to the step's time, and how the epoch goes with the batch."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mmrec_helpers.plots.axes_text import plain_log

_EXACT, _OTHER, _REFERENCE = "#4477AA", "#CC6677", "#444444"
_LINES = {"reference": ("#CC6677", "o"), "fused": ("#4477AA", "s")}


def fix_times(axes: Axes, arms: pd.DataFrame, reference: str) -> Axes:
    """One bar an arm: its step over the reference's, with quartiles; coloured by whether the result stays the same.

    arms: columns arm, median, q1, q3 (of the ratio), step_ms_median, exact.
    """
    limit = 1.3 * arms["median"].max()  # a wild quartile must not shrink the bars
    for row, arm in enumerate(arms.itertuples()):
        color = _REFERENCE if arm.arm == reference else _EXACT if arm.exact else _OTHER
        axes.barh(row, arm.median, height=0.68, color=color)
        axes.plot([arm.q1, arm.q3], [row, row], color="#222222", linewidth=1.2)
        axes.text(min(max(arm.median, arm.q3), 0.92 * limit) + 0.015, row, f"{arm.median:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(arms)), arms["arm"], fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.axvline(1, color=_REFERENCE, linewidth=1, linestyle="--")
    axes.set_xlim(0, limit)
    axes.set_xlabel(f"step time over that of the reference {reference}")
    shown = {"the reference": _REFERENCE, "same result": _EXACT, "another model": _OTHER}
    handles = [Patch(color=color, label=label) for label, color in shown.items()]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.4, -0.09), ncols=3, fontsize=9)
    return axes


def batch_size_epochs(axes: Axes, rows: pd.DataFrame) -> Axes:
    """Seconds an epoch against the batch size, one line a backend, both axes logarithmic.

    rows: columns backend, batch_size, epoch_s.
    """
    for backend, own in rows.groupby("backend", sort=False):
        color, marker = _LINES.get(backend, ("#777777", "o"))
        axes.plot(own["batch_size"], own["epoch_s"], marker=marker, color=color, linewidth=1.6, label=backend)
        for size, seconds in zip(own["batch_size"], own["epoch_s"]):
            axes.annotate(f"{seconds:.2g} s", (size, seconds), textcoords="offset points", xytext=(0, 6), fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(rows["batch_size"])), [f"{size:,}" for size in sorted(set(rows["batch_size"]))])
    axes.minorticks_off()
    axes.set_ylim(rows["epoch_s"].min() / 1.6, rows["epoch_s"].max() * 1.9)
    plain_log(axes, "y")
    axes.set_xlabel("interactions a step")
    axes.set_ylabel("seconds an epoch")
    axes.legend(loc="upper right", fontsize=9)
    return axes
