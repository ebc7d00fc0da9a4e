"""Variants side by side: step times, differences in accuracy, time against accuracy, routing iterations."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from mmrec_helpers.plots import style

_VERDICTS = {"better": (style.BLUE, "^"), "worse": (style.ORANGE, "v"), "equivalent": (style.GREEN, "s")}
_VERDICTS["open"] = (style.GREY, "o")
_SHADES = LinearSegmentedColormap.from_list("blue", ["#D3E1EF", "#27527F"])
_ROUTINGS = {"as_shipped": (style.BLUE, "o", "as shipped"), "live": (style.ORANGE, "s", "as in the paper")}


def fix_times(axes: Axes, rows: pd.DataFrame, noise: float | None) -> Axes:
    """One bar for each variant, the fastest on top: its step over the reference's with quartiles, filled where the
    result stays the same up to rounding, else hatched.

    rows   columns label, model, ratio (median of the paired ratios to the reference), q1, q3 (of the ratio), step_ms,
           exact (bool), within_noise (bool); a colour for each model
    noise  how far from 1 the ratio of a control that changes nothing was, such as 0.08: a band; None without a control

    >>> rows = pd.DataFrame({"label": ["fused"], "model": "GRCN", "ratio": 0.11, "step_ms": 54.0})
    >>> axes = fix_times(axes, rows.assign(q1=0.1, q3=0.12, exact=True, within_noise=False), noise=0.08)
    """
    rows = rows.sort_values("ratio", kind="stable").reset_index(drop=True)
    band = style.noise_band(axes, noise, "x")
    for row in rows.itertuples():
        axes.barh(row.Index, row.ratio, height=0.68, **_bar(style.model_color(row.model), row.exact))
        text = f"{row.ratio:.2f}, {style.milliseconds(row.step_ms)}" + (", within noise" if row.within_noise else "")
        style.bar_end(
            axes, 1, row.Index, text, xycoords=axes.get_yaxis_transform(), alpha=0.65 if row.within_noise else 1
        )
    style.interval(axes, rows["ratio"], rows.index, rows["q1"], rows["q3"], "x", color=style.TEXT)
    style.bar_rows(axes, rows["label"], fontsize=9)
    widest = min(rows["q3"].max(), 1.3 * rows["ratio"].max())  # a wild quartile must not shrink the bars
    axes.set_xlim(0, 1.03 * max(widest, 1 + (noise or 0)))
    axes.set_xlabel("step time, ratio to the reference (bar: median, whisker: quartiles)")
    models = list(dict.fromkeys(rows["model"]))
    plain = style.GREY if len(models) > 1 else style.model_color(models[0])
    words = {True: "same result up to rounding", False: "another result"}
    shown = [Patch(**_bar(plain, exact), label=words[exact]) for exact in words if (rows["exact"] == exact).any()]
    colors = [Patch(color=style.model_color(model), label=model) for model in models] if len(models) > 1 else []
    style.legend_below(axes, colors + shown + band)
    return axes


def _bar(color: str, filled: bool) -> dict:
    hatched = {"facecolor": style.PAPER, "edgecolor": color, "hatch": "////", "linewidth": 0.8}
    return {"color": color} if filled else hatched


def forest(axes: Axes, pairs: pd.DataFrame, margin: float, unit: str = "test recall@20") -> Axes:
    """One row for each pair: the difference, its interval as a line, its verdict as colour and shape; the margin as a
    band. With a column ``group`` the pairs of a group stand below its heading.

    pairs: columns label, difference, low, high (in ``unit``), verdict ("equivalent", "better", "worse" or "open").

    >>> pairs = pd.DataFrame({"label": ["LightGCN"], "difference": 0.012, "low": 0.006, "high": 0.019})
    >>> axes = forest(axes, pairs.assign(verdict="better", group="difference to GRCN as shipped"), margin=0.002)
    """
    band = axes.axvspan(-margin, margin, color=style.BAND, linewidth=0, label=f"margin, ±{margin:g}", zorder=0.5)
    axes.axvline(0, color=style.LINE, linewidth=1, zorder=0.6)
    names: list[str] = []
    shown: dict = {}  # by verdict
    headings = []
    for group, own in pairs.groupby("group", sort=False) if "group" in pairs else [("", pairs)]:
        if group:
            headings.append(len(names))
            names.append(group)
        for pair in own.itertuples():
            color, marker = _VERDICTS[pair.verdict]
            look: style.Look = {"fmt": marker, "color": color, "markersize": 6.5, "elinewidth": 2.2, "capsize": 0}
            look["markerfacecolor"] = style.PAPER if pair.verdict == "open" else color
            look |= {"low": pair.low, "high": pair.high, "along": "x", "label": pair.verdict}
            shown.setdefault(pair.verdict, style.interval(axes, pair.difference, len(names), **look))
            names.append(pair.label)
    style.bar_rows(axes, names, fontsize=9)
    for row in headings:
        axes.get_yticklabels()[row].set_fontweight("bold")
        axes.yaxis.get_major_ticks()[row].tick1line.set_visible(False)
    axes.set_xlabel(f"difference in {unit}")
    style.legend_below(axes, [band, *shown.values()])
    return axes


def heat_map(axes: Axes, table: pd.DataFrame, digits: int = 4) -> Axes:
    """A square for each value of ``table`` with the value in it, the darker the larger, the largest framed; empty where
    there is none. Rows and columns are named by the table's.

    >>> table = pd.DataFrame({0.1: [0.05, 0.07]}, index=pd.Index([1e-3, 1e-2], name="learning_rate"))
    >>> axes = heat_map(axes, table.rename_axis(columns="reg_weight"))
    """
    values = table.to_numpy(dtype=float)
    drawn = axes.imshow(np.ma.masked_invalid(values), cmap=_SHADES, aspect="auto")
    best = np.unravel_index(np.nanargmax(values), values.shape)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = style.text_on(drawn.to_rgba(np.array([value]))[0])
            weight = "bold" if (row, column) == best else "normal"
            axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=color, fontweight=weight)
    axes.add_patch(Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, edgecolor=style.LINE, linewidth=2.5))
    for place, names in ((axes.set_xticks, table.columns), (axes.set_yticks, table.index)):
        place(range(len(names)), [name if isinstance(name, str) else f"{name:g}" for name in names])
    axes.set(xlabel=table.columns.name, ylabel=table.index.name)
    axes.grid(False)
    return axes


def pareto(axes: Axes, rows: pd.DataFrame) -> Axes:
    """Test recall@20 with its interval against the step time (logarithmic), one mark for each variant, its area by peak
    memory; filled where no other variant is better in all three.

    rows: columns label, ratio (step time to the reference's), peak_mb (MB), recall, low, high, best (bool).

    >>> rows = pd.DataFrame({"label": ["fused", "reference"], "ratio": [0.11, 1.0], "peak_mb": [43.0, 523.0]})
    >>> axes = pareto(axes, rows.assign(recall=0.078, low=0.072, high=0.084, best=[True, False]))
    """
    area = 30 + 400 * rows["peak_mb"] / rows["peak_mb"].max()
    for row, size in zip(rows.itertuples(), area, strict=True):
        edge, inside = (style.BLUE, f"{style.BLUE}BB") if row.best else (style.GREY, style.PAPER)
        style.interval(axes, row.ratio, row.recall, row.low, row.high, color=edge, elinewidth=0.8, zorder=1)
        axes.scatter(row.ratio, row.recall, s=size, facecolor=inside, edgecolor=edge, linewidth=1.3, zorder=2)
    axes.set_xscale("log")
    axes.margins(x=0.2, y=0.12)
    style.plain_log(axes, "x")
    axes.set_xlabel("step time, ratio to the reference")
    axes.set_ylabel("test recall@20")
    circle = style.Look(linestyle="none", marker="o", markeredgecolor=style.GREY, markerfacecolor=style.PAPER)
    sizes = [(area[at] ** 0.5, rows["peak_mb"][at]) for at in (rows["peak_mb"].idxmin(), rows["peak_mb"].idxmax())]
    shown = [Line2D([], [], **circle, markersize=size, label=f"peak {mb:,.0f} MB") for size, mb in sizes]
    circle |= {"markeredgecolor": style.BLUE, "markerfacecolor": style.BLUE}
    style.legend_below(axes, [Line2D([], [], **circle, label="unbeaten in time, memory and recall"), *shown])
    whiskers = [(row.ratio, y) for row in rows.itertuples() for y in np.linspace(row.low, row.high, 40)]
    marks = zip(rows["label"], rows["ratio"], rows["recall"])
    style.name_marks(axes, marks, radii=np.sqrt(area / np.pi), avoid=whiskers)
    return axes


def iteration_times(axes: Axes, rows: pd.DataFrame, claimed: bool = True) -> Axes:
    """Step times against routing iterations with quartiles, and the straight line through the medians, whose value at 0
    is the fixed part; where ``claimed``, dashed what a time proportional to the iterations would be. At the right end
    of both stands how many times one iteration that is.

    rows: columns routing ("as_shipped", "live"), iterations, step_ms (median), q1_ms, q3_ms.

    >>> rows = pd.DataFrame({"routing": "as_shipped", "iterations": [0, 1, 3], "step_ms": [232.0, 302.0, 419.0]})
    >>> axes = iteration_times(axes, rows.assign(q1_ms=rows["step_ms"] - 9, q3_ms=rows["step_ms"] + 9))
    """
    routings = rows.groupby("routing", sort=False)
    for aside, (routing, own) in zip(np.linspace(-0.02, 0.02, len(routings)), routings):
        color, marker, label = _ROUTINGS[routing]
        slope, fixed = np.polyfit(own["iterations"], own["step_ms"], 1)
        sum_of = f"{style.milliseconds(fixed)} {'+' if slope >= 0 else '−'} {style.milliseconds(abs(slope))}"
        look: style.Look = {"fmt": marker, "color": color, "markersize": 5, "label": f"{label}: {sum_of} per iteration"}
        style.interval(axes, own["iterations"] + aside, own["step_ms"], own["q1_ms"], own["q3_ms"], **look)
        at = np.array([0, own["iterations"].max()])
        axes.plot(at + aside, fixed + slope * at, color=color, linewidth=1.2)
    shipped = rows[rows["routing"] == "as_shipped"].set_index("iterations")["step_ms"]
    most = shipped.index.max()
    if claimed and 1 in shipped and most > 1:
        at = np.arange(1, most + 1)
        label = "claimed: proportional to iterations"
        axes.plot(at, shipped[1] * at, "--", color=style.TEXT, linewidth=1.2, label=label)
        for said, end in (("claimed", most * shipped[1]), ("measured", shipped[most])):
            style.bar_end(axes, most, end, f"{said}: {end / shipped[1]:.3g} times", away=12, fontweight="bold")
        axes.set_xlim(right=1.35 * most)
    axes.set_xticks(sorted(rows["iterations"].unique()))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("routing iterations")
    axes.set_ylabel("milliseconds per step")
    style.legend_below(axes, axes.get_legend_handles_labels()[0])
    return axes
