"""The roofline: how fast each stage runs against what moving and computing allow."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mmrec_helpers.plots import style


def roofline(axes: Axes, stages: pd.DataFrame, copy_gb_s: float, matmul_gflop_s: float) -> Axes:
    """Stages as points under the roof min(copy rate x intensity, matrix rate); both axes logarithmic.

    stages: columns model, stage (such as "routing"), flop_per_byte, gflop_s.

    >>> stages = pd.DataFrame({"model": "GRCN", "stage": ["routing"], "flop_per_byte": 0.085, "gflop_s": 1.4})
    >>> axes = roofline(axes, stages, copy_gb_s=28.8, matmul_gflop_s=154)
    """
    ridge = matmul_gflop_s / copy_gb_s
    low, high = stages["flop_per_byte"].min() / 3, max(stages["flop_per_byte"].max(), ridge) * 6
    at = np.geomspace(low, high, 400)
    roof = np.minimum(copy_gb_s * at, matmul_gflop_s)
    axes.plot(at, roof, color=style.DARK, linewidth=1.6)
    drawn = style.looks(stages["model"])
    for model, rows in stages.groupby("model", sort=False):
        look = {"color": style.model_color(model), "s": 42, "marker": drawn[model][1], "label": model, "zorder": 3}
        axes.scatter(rows["flop_per_byte"], rows["gflop_s"], **look)
    axes.set_xlabel("operations per byte moved")
    axes.set_ylabel("Gflop/s reached")
    axes.set(xlim=(low, high), ylim=(min(stages["gflop_s"].min() / 2, roof[0]), 2.5 * matmul_gflop_s))
    style.plain_log(axes)
    axes.legend(loc="lower right")
    slope = np.sqrt(low * ridge)  # the middle of the slope
    rates = [(f"copy {copy_gb_s:,.0f} GB/s", slope, copy_gb_s * slope)]
    rates += [(f"matrix product {matmul_gflop_s:,.0f} Gflop/s", ridge, matmul_gflop_s)]
    names = list(zip(stages["stage"].map(style.stage_of), stages["flop_per_byte"], stages["gflop_s"]))
    colors = [style.DARK, style.DARK, *(style.ink(style.model_color(model)) for model in stages["model"])]
    style.name_marks(axes, rates + names, colors, avoid=zip(at, roof))
    return axes
