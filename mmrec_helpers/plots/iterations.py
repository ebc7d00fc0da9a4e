"""Step time against routing iterations."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

_LOOK = {"as_shipped": ("#4477AA", "o", "as shipped"), "live": ("#CC6677", "s", "live")}


def iteration_times(axes: Axes, arms: pd.DataFrame, fits: pd.DataFrame) -> Axes:
    """Median step times with their quartiles, and the fitted line whose value at 0 is the fixed part.

    arms: columns routing, iterations, step_ms_median, step_ms_q1, step_ms_q3; fits: index routing, columns fixed_ms,
    per_iteration_ms.
    """
    for routing, rows in arms.groupby("routing", sort=False):
        color, marker, label = _LOOK[routing]
        middle = rows["step_ms_median"]
        below, above = (middle - rows["step_ms_q1"]), (rows["step_ms_q3"] - middle)
        fixed, slope = fits.loc[routing, ["fixed_ms", "per_iteration_ms"]]
        label = f"{label}: {fixed:.0f} ms + {slope:.0f} ms an iteration"
        axes.errorbar(rows["iterations"], middle, [below, above], fmt=marker, color=color, capsize=3, label=label)
        at = np.array([0, rows["iterations"].max()])
        axes.plot(at, fixed + slope * at, color=color, linewidth=1.2)
    axes.set_xticks(sorted(arms["iterations"].unique()))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("routing iterations")
    axes.set_ylabel("milliseconds a step")
    axes.legend(loc="lower right", fontsize=9)
    return axes
