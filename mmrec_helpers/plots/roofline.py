"""The roofline: how fast each stage runs against what moving and computing allow."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mmrec_helpers.plots import style


def roofline(axes: Axes, stages: pd.DataFrame, copy_gb_s: float, matmul_gflop_s: float) -> Axes:
    """Stages as marks under the roof min(copy rate x intensity, matrix rate), their area by the measured time; both
    axes logarithmic. Named are the stages that take a twentieth of their model's time or more.

    stages: columns model, stage (such as "routing"), flop_per_byte, gflop_s, measured_ms.

    >>> stages = pd.DataFrame({"model": "GRCN", "stage": ["routing"], "flop_per_byte": 0.085, "gflop_s": 1.4})
    >>> axes = roofline(axes, stages.assign(measured_ms=69.0), copy_gb_s=28.8, matmul_gflop_s=154)
    """
    ridge = matmul_gflop_s / copy_gb_s
    low, high = stages["flop_per_byte"].min() / 3, max(stages["flop_per_byte"].max(), ridge) * 6
    at = np.geomspace(low, high, 400)
    roof = np.minimum(copy_gb_s * at, matmul_gflop_s)
    axes.plot(at, roof, color=style.TEXT, linewidth=1.6)
    drawn, areas = style.looks(stages["model"]), 12 + 140 * stages["measured_ms"] / stages["measured_ms"].max()
    for model, rows in stages.groupby("model", sort=False):
        color, marker = drawn[model]
        look: style.Look = {"color": color, "marker": marker, "alpha": 0.8, "linewidth": 0, "zorder": 3}
        axes.scatter(rows["flop_per_byte"], rows["gflop_s"], s=areas[rows.index], **look)
        axes.scatter([], [], label=model, s=42, **look)
    axes.scatter([], [], s=12, color=style.GREY, label="area: measured time; named: 5 % of a step or more")
    axes.set_xlabel("operations per byte moved")
    axes.set_ylabel("Gflop/s reached")
    axes.set(xlim=(low, high), ylim=(min(stages["gflop_s"].min() / 2, roof[0]), 2.5 * matmul_gflop_s))
    style.plain_log(axes)
    style.legend_below(axes, axes.get_legend_handles_labels()[0])
    slope = np.sqrt(low * ridge)  # the middle of the slope
    rates = [(f"copy {copy_gb_s:,.0f} GB/s", slope, copy_gb_s * slope)]
    rates += [(f"matrix product {matmul_gflop_s:,.0f} Gflop/s", ridge, matmul_gflop_s)]
    shares = stages["measured_ms"] / stages.groupby("model")["measured_ms"].transform("sum")
    names = stages["stage"].map(style.stage_of).where(shares >= 0.05, "")
    marks = [*rates, *zip(names, stages["flop_per_byte"], stages["gflop_s"])]
    style.name_marks(axes, marks, radii=[4.0, 4.0, *np.sqrt(areas / np.pi)], avoid=zip(at, roof))
    return axes
