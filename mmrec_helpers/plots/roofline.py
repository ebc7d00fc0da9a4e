"""The roofline: how fast each stage runs against what moving and computing allow."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mmrec_helpers.plots.axes_text import name_marks, plain_log
from mmrec_helpers.plots.style import MODEL_COLORS, stage_of

_MARKERS = {"GRCN": "o", "DRAGON": "s"}


def roofline(axes: Axes, stages: pd.DataFrame, copy_gb_s: float, matmul_gflop_s: float) -> Axes:
    """Stages as points under the roof min(copy rate x intensity, matrix rate); both axes logarithmic.

    stages: columns model, stage, flop_per_byte, gflop_s.
    """
    low, high = stages["flop_per_byte"].min() / 3, max(stages["flop_per_byte"].max(), matmul_gflop_s / copy_gb_s) * 4
    at = np.geomspace(low, high, 200)
    axes.plot(at, np.minimum(copy_gb_s * at, matmul_gflop_s), color="#333333", linewidth=1.6)
    axes.text(high, matmul_gflop_s * 1.12, f"matrix product {matmul_gflop_s:,.0f} Gflop/s", ha="right", fontsize=9)
    bend = np.sqrt(low * matmul_gflop_s / copy_gb_s)  # the middle of the slope, where no stage can lie above it
    axes.text(bend, copy_gb_s * bend * 1.12, f"copy {copy_gb_s:,.0f} GB/s ", ha="right", fontsize=9)
    for model, rows in stages.groupby("model", sort=False):
        style = {"color": MODEL_COLORS[model], "s": 42, "marker": _MARKERS.get(model, "o"), "label": model, "zorder": 3}
        axes.scatter(rows["flop_per_byte"], rows["gflop_s"], **style)
    plain_log(axes)
    names = stages["stage"].map(stage_of)
    marks = zip(names, stages["flop_per_byte"], stages["gflop_s"])
    name_marks(axes, marks, stages["model"].map(MODEL_COLORS))
    axes.set_xlabel("operations a byte moved")
    axes.set_ylabel("Gflop/s reached")
    axes.legend(loc="lower right")
    return axes
