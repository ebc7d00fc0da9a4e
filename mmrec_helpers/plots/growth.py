"""How something goes with a size, an epoch or a count: cost, predictions, batch sizes, degrees, learning curves."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from mmrec_helpers.plots import style

_BACKENDS = {"reference": (style.ORANGE, "o"), "fused": (style.BLUE, "s")}


def times_along(axes: Sequence[Axes], points: pd.DataFrame, sweeps: Mapping[str, tuple[str, str]]) -> None:
    """One panel for each sweep, on one scale of time: the step against what was varied, variants in colours.

    points  columns label (of the variant), sweep, step_ms, and the sizes; points of the sweep "middle" belong to every
            panel, others ("held out") to none
    sweeps  name of the sweep to (column of the size, label of the axis)

    >>> points = pd.DataFrame({"label": "GRCN", "sweep": "batch", "batch_size": [512, 2048], "step_ms": [114.0, 129.0]})
    >>> times_along([axes], points, {"batch": ("batch_size", "batch size")})
    """
    drawn, top = style.looks(points["label"]), 0.0
    for panel, (sweep, (column, axis_label)) in zip(axes, sweeps.items(), strict=True):
        for label, rows in points[points["sweep"].isin((sweep, "middle"))].groupby("label", sort=False):
            if rows[column].nunique() < 2:
                continue
            rows, (color, marker) = rows.sort_values(column), drawn[label]
            look: style.Look = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.2}
            panel.plot(rows[column], rows["step_ms"], label=label, **look)
            top = max(top, rows["step_ms"].max())
        panel.set_xlabel(axis_label)
        panel.locator_params(axis="x", nbins=4)
        panel.xaxis.set_major_formatter("{x:,g}")
        panel.tick_params(axis="y", labelleft=panel is axes[0])
    for panel in axes:
        panel.set_ylim(0, 1.06 * top or 1)
    axes[0].set_ylabel("milliseconds per step")


def predicted_against_measured(axes: Axes, table: pd.DataFrame, quantity: str, label: str, scale: float = 1.0) -> Axes:
    """Every point of every variant, both axes logarithmic; held-out points are ringed, the diagonal is a perfect fit.

    table  columns label (of the variant), sweep ("held out" or another), ``quantity`` and ``predicted_<quantity>``
    label  the quantity and its unit on the axes, where it is divided by ``scale``

    >>> table = pd.DataFrame({"label": "GRCN", "sweep": "batch", "step_ms": [114.0, 129.0], "predicted_step_ms": 120.0})
    >>> axes = predicted_against_measured(axes, table, "step_ms", "milliseconds per step")
    """
    drawn = style.looks(table["label"])
    ring: style.Look = {"facecolors": "none", "linewidth": 1.4}
    for name, rows in table.groupby("label", sort=False):
        color, marker = drawn[name]
        x, y = rows[quantity] / scale, rows[f"predicted_{quantity}"] / scale
        axes.scatter(x, y, s=22, color=color, marker=marker, label=name, linewidth=1)
        held = rows["sweep"] == "held out"
        axes.scatter(x[held], y[held], s=110, edgecolors=color, **ring)
    if (table["sweep"] == "held out").any():
        axes.scatter([], [], s=110, edgecolors=style.GREY, label="held out of the fit", **ring)
    values = pd.concat([table[quantity], table[f"predicted_{quantity}"]]) / scale
    ends = [values.min() * 0.8, values.max() * 1.25]
    axes.plot(ends, ends, color=style.LINE, linewidth=0.9, zorder=0)
    axes.set(xlim=ends, ylim=ends, xlabel=f"measured {label}", ylabel=f"predicted {label}")
    style.plain_log(axes)
    return axes


def memory_growth(axes: Axes, curves: pd.DataFrame, limits_gb: Sequence[float]) -> Axes:
    """Peak memory against interactions, one line for each label, and a horizontal one for each device's memory; both
    axes logarithmic.

    curves  columns label, interactions, gb

    >>> curves = pd.DataFrame({"label": "GRCN", "interactions": [1e6, 1e7], "gb": [9.3, 85.0]})
    >>> axes = memory_growth(axes, curves, [24, 80, 141])
    """
    drawn = style.looks(curves["label"])
    for label, rows in curves.groupby("label", sort=False):
        color, marker = drawn[label]
        axes.plot(rows["interactions"] / 1e6, rows["gb"], color=color, marker=marker, markersize=4, label=label)
    for gb in limits_gb:
        axes.axhline(gb, color=style.LINE, linewidth=0.9, linestyle="--", zorder=0)
        axes.text(curves["interactions"].min() / 1e6, gb, f"{gb:g} GB", ha="left", va="bottom", fontsize=8)
    style.plain_log(axes)
    axes.set_xlabel("training interactions, millions")
    axes.set_ylabel("peak memory, GB")
    axes.legend(loc="upper left", fontsize=9)
    return axes


def batch_size_epochs(axes: Axes, rows: pd.DataFrame) -> Axes:
    """Seconds per epoch against the batch size, one line for each backend, both axes logarithmic.

    rows: columns backend, batch_size (interactions), epoch_s.

    >>> rows = pd.DataFrame({"backend": "fused", "batch_size": [512, 2048], "epoch_s": [5.3, 1.4]})
    >>> axes = batch_size_epochs(axes, rows)
    """
    for backend, own in rows.groupby("backend", sort=False):
        color, marker = _BACKENDS.get(backend, (style.GREY, "D"))
        axes.plot(own["batch_size"], own["epoch_s"], marker=marker, color=color, linewidth=1.6, label=backend)
        for size, seconds in zip(own["batch_size"], own["epoch_s"]):
            look: style.Look = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"{seconds:.2g} s", (size, seconds), xytext=(0, 7), **look)
    axes.set_ylim(rows["epoch_s"].min() / 1.6, rows["epoch_s"].max() * 1.9)
    style.plain_log(axes, "x", ticks=sorted(set(rows["batch_size"])))
    style.plain_log(axes, "y")
    axes.set_xlabel("batch size, interactions per step")
    axes.set_ylabel("seconds per epoch")
    axes.legend(loc="upper right", fontsize=9)
    return axes


def degree_distribution(axes: Axes, degrees: pd.DataFrame) -> Axes:
    """The share of users and of items with at least so many training interactions, both axes logarithmic.

    degrees: columns side ("user" or "item"), degree, share_at_least (0 to 1).

    >>> degrees = pd.DataFrame({"side": "user", "degree": [1, 4, 9], "share_at_least": [1.0, 0.5, 0.1]})
    >>> axes = degree_distribution(axes, degrees)
    """
    for side, color, line in (("user", style.BLUE, "-"), ("item", style.ORANGE, "--")):
        rows = degrees[(degrees["side"] == side) & (degrees["degree"] > 0)]
        look: style.Look = {"color": color, "linestyle": line, "linewidth": 1.8, "label": f"{side}s"}
        axes.step(rows["degree"], rows["share_at_least"], where="post", **look)
    style.plain_log(axes)
    axes.set_xlabel("training interactions")
    axes.set_ylabel("share with at least as many")
    axes.legend(loc="lower left")
    return axes


def learning_curves(
    axes: Axes, history: pd.DataFrame, x: str, y: str, baselines: Mapping[str, float] | None = None
) -> Axes:
    """One line for each model of column ``y`` against column ``x``, its best epoch marked; baselines as dashed lines.

    history: columns model, epoch, and those named by ``x`` and ``y``; rows without ``y`` are left out.

    >>> history = pd.DataFrame({"model": "GRCN", "epoch": [0, 1, 2], "valid.recall@20": [0.01, 0.05, 0.04]})
    >>> axes = learning_curves(axes, history, "epoch", "valid.recall@20", {"popularity": 0.03})
    """
    drawn = style.looks(history["model"])
    for model, rows in history.dropna(subset=[y]).groupby("model", sort=False):
        best, (color, marker) = rows.loc[rows[y].idxmax()], drawn[model]
        color = style.MODEL_COLORS.get(model, color)
        axes.plot(rows[x], rows[y], label=model, color=color, linewidth=1.8)
        axes.plot(best[x], best[y], marker, color=color, markersize=6)
    for label, value in (baselines or {}).items():
        axes.axhline(value, linestyle="--", linewidth=1.2, color=style.model_color(label), label=label)
    axes.set(xlabel=x, ylabel=y)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", fontsize=9)
    return axes
