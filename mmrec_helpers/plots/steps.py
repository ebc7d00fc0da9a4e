"""What a step and an epoch consist of, as bars: by stage, by part, on several data sets, and from stage to stage."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from mmrec_helpers.plots import style

PHASES = ("forward", "recompute", "backward", "other")
_HATCHES = {"recompute": "xxx", "backward": "///"}
_PARTS = (style.BLUE, style.ORANGE, style.GREEN, style.GREY)


def step_anatomy(axes: Axes, regions: pd.DataFrame) -> Axes:
    """One stacked bar for each model: its step's time by stage; forward plain, backward and recomputation hatched.

    regions: columns model, region (such as ``routing.visual.0``), phase ("forward", "recompute", "backward" or
    "other"), ms (per step).

    >>> regions = pd.DataFrame({"model": "GRCN", "region": ["features", "loss"], "phase": "forward", "ms": [9.0, 4.0]})
    >>> axes = step_anatomy(axes, regions)
    """
    table = regions.assign(stage=regions["region"].map(style.stage_of))
    parts = table.groupby(["model", "stage", "phase"])["ms"].sum()
    totals = parts.groupby("model").sum()
    models = list(dict.fromkeys(table["model"]))
    for row, model in enumerate(models):
        own, start = parts[model], 0.0
        for stage, color in style.stage_colors().items():
            pieces = [(own.get((stage, phase), 0.0), color, _HATCHES.get(phase)) for phase in PHASES]
            end = _stack(axes, row, pieces, start)
            share = (end - start) / totals.max()
            if share > 0.055:
                text = style.milliseconds(end - start).removesuffix(" ms")
                text = f"{stage}\n{text}" if 85 * share > len(stage) else text  # some 85 letters fill the longest bar
                box = {"boxstyle": "round,pad=0.15", "facecolor": color, "edgecolor": "none"}
                look: style.Look = {"color": style.text_on(color), "ha": "center", "va": "center", "bbox": box}
                axes.text((start + end) / 2, row, text, fontsize=9, **look)
            start = end
        style.bar_end(axes, start, row, style.milliseconds(start), fontweight="bold")
    _rows(axes, models, "milliseconds per step", totals.max())
    taking = table.loc[table["ms"] > 0]
    hatched = [phase for phase in ("backward", "recompute") if (taking["phase"] == phase).any()]
    look = {"facecolor": style.GREY, "edgecolor": style.PAPER}
    phases = [Patch(**look, hatch=_HATCHES[phase], label=phase) for phase in hatched]
    style.legend_below(axes, style.stage_patches(taking["stage"]) + phases)
    return axes


def anatomies_side_by_side(left: Axes, right: Axes, regions: pd.DataFrame) -> None:
    """Steps on several data sets: on the left as shares, on the right in microseconds per training interaction.

    regions: columns data, n_train (interactions), model, region, ms (per step), in drawing order. Each bar's
    milliseconds stand at its end.

    >>> regions = pd.DataFrame({"data": "a", "n_train": 50, "model": "GRCN", "region": ["features", "loss"], "ms": 4.0})
    >>> anatomies_side_by_side(axes, axes.figure.add_subplot(), regions)
    """
    table = regions.assign(stage=regions["region"].map(style.stage_of))
    names, longest = [], 0.0
    for row, ((data, model), own) in enumerate(table.groupby(["data", "model"], sort=False)):
        names.append(f"{data}, {model}")
        stages = own.groupby("stage")["ms"].sum()
        present = [(stages[stage], color) for stage, color in style.stage_colors().items() if stage in stages]
        total, per_interaction = stages.sum(), 1e3 / int(own["n_train"].iloc[0])
        _stack(left, row, [(100 * ms / total, color, None) for ms, color in present])
        end = _stack(right, row, [(per_interaction * ms, color, None) for ms, color in present])
        style.bar_end(right, end, row, style.milliseconds(total))
        longest = max(longest, end)
    _rows(left, names, "per cent of a step", 100 / 1.14)
    left.set_xticks(range(0, 100, 20))  # the next axes begin where 100 would stand
    _rows(right, [""] * len(names), "microseconds per training interaction", longest * 1.1)
    patches = style.stage_patches(table["stage"])
    left.figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=9)


def epoch_parts(axes: Axes, epochs: pd.DataFrame) -> Axes:
    """One stacked bar for each model: seconds of an epoch by part.

    epochs: index model, one column for each part (at most four), in seconds, in drawing order.

    >>> epochs = pd.DataFrame({"training steps": [14.0, 15.1], "validation": [0.8, 0.9]}, index=["GRCN", "DRAGON"])
    >>> axes = epoch_parts(axes, epochs)
    """
    for row, (_, seconds) in enumerate(epochs.iterrows()):
        total = _stack(axes, row, [(value, color, None) for value, color in zip(seconds, _PARTS)])
        style.bar_end(axes, total, row, f"{total:.2f} s", fontweight="bold")
    _rows(axes, list(epochs.index), "seconds per epoch", epochs.sum(axis=1).max())
    style.legend_below(axes, [Patch(color=color, label=part) for part, color in zip(epochs.columns, _PARTS)])
    return axes


def stage_gains(axes: Axes, stages: pd.DataFrame) -> Axes:
    """One bar for each stage of a derivation, the first on top: the measured step, and a mark at its least time.

    stages: columns label, step_ms (median), least_ms (by counting bytes and operations); with q1_ms and q3_ms the bars
    carry their quartiles.

    >>> stages = pd.DataFrame({"label": ["reference", "fused"], "step_ms": [458.0, 44.2], "least_ms": [271.0, 30.0]})
    >>> axes = stage_gains(axes, stages)
    """
    at, step, least = range(len(stages)), stages["step_ms"], stages["least_ms"]
    axes.barh(at, step, color=style.BLUE, height=0.66, label="measured")
    least_look: style.Look = {"color": style.ORANGE, "edgecolor": style.PAPER, "height": 0.3}
    axes.barh(at, least, label="least, by counting bytes and operations", **least_look)
    ends = np.maximum(step, least)
    if "q1_ms" in stages:
        style.interval(axes, step, at, stages["q1_ms"], stages["q3_ms"], "x", color=style.TEXT, label="quartiles")
        ends = np.maximum(ends, stages["q3_ms"])
    for row, end, ms, bound in zip(at, ends, step, least, strict=True):
        text = f"{style.milliseconds(ms)}, {ms / bound:.1f} times the least"
        style.bar_end(axes, end, row, text)
    _rows(axes, list(stages["label"]), "milliseconds per step", ends.max() * 1.3)
    style.legend_below(axes, axes.get_legend_handles_labels()[0])
    return axes


def _stack(axes: Axes, row: int, parts: Iterable[tuple[float, str, str | None]], start: float = 0.0) -> float:
    """Draw the parts (length, colour, hatch) of a bar one after the other from ``start``; returns where it ends."""
    for length, color, hatch in parts:
        if length > 0:
            look: style.Look = {"color": color, "hatch": hatch, "edgecolor": style.PAPER, "linewidth": 0.5}
            axes.barh(row, length, left=start, height=0.64, **look)
            start += length
    return start


def _rows(axes: Axes, names: list[str], label: str, longest: float) -> None:
    """The axes of horizontal bars: names from the top, room for a text after the longest bar."""
    style.bar_rows(axes, names)
    axes.set_xlim(0, longest * 1.14)
    axes.set_xlabel(label)
