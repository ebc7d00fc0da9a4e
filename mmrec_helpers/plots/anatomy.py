"""What a step and an epoch consist of, as stacked bars."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from mmrec_helpers.plots.style import OTHER_STAGE, stage_colors, stage_of

PHASES = ("forward", "recompute", "backward")
_HATCH = {"recompute": "xxx", "backward": "///"}


def by_stage(regions: pd.DataFrame) -> pd.DataFrame:
    """Sum a region table (columns model, region, phase, ms) over the stages: columns model, stage, phase, ms."""
    stages = regions.assign(stage=regions["region"].map(stage_of))
    return stages.groupby(["model", "stage", "phase"], as_index=False, sort=False)["ms"].sum()


def step_anatomy(axes: Axes, regions: pd.DataFrame) -> Axes:
    """One stacked bar a model: its step's time by stage; forward plain, backward and recomputation hatched.

    regions: columns model, region, phase ("forward", "recompute", "backward" or "other"), ms (per step).
    """
    table = by_stage(regions)
    models = list(dict.fromkeys(table["model"]))
    longest = table.groupby("model")["ms"].sum().max()
    for row, model in enumerate(models):
        _stacked_bar(axes, row, table[table["model"] == model], longest)
    axes.set_yticks(range(len(models)), models)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, longest * 1.12)
    axes.set_xlabel("milliseconds a step")
    _stage_legend(axes, table)
    return axes


def _stacked_bar(axes: Axes, row: int, table: pd.DataFrame, longest: float) -> None:
    left = 0.0
    for stage, color in stage_colors().items():
        part = table[table["stage"] == stage].groupby("phase")["ms"].sum()
        start = left
        for phase in (*PHASES, "other"):
            if part.get(phase, 0) > 0:
                style = {"hatch": _HATCH.get(phase), "edgecolor": "white", "linewidth": 0.5}
                axes.barh(row, part[phase], left=left, height=0.62, color=color, **style)
                left += part[phase]
        if left - start > 0.055 * longest:
            axes.text((start + left) / 2, row, f"{left - start:.0f}", ha="center", va="center", **_label_style(color))
    axes.text(left + 0.01 * longest, row, f"{left:.0f} ms", va="center", fontweight="bold")


def _label_style(color: str) -> dict:
    red, green, blue = to_rgb(color)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.6
    box = {"boxstyle": "round,pad=0.15", "facecolor": color, "edgecolor": "none"}
    return {"color": "white" if dark else "black", "fontsize": 9, "bbox": box}


def _stage_legend(axes: Axes, table: pd.DataFrame) -> None:
    total = table.groupby("stage")["ms"].sum()
    shown = [Patch(color=color, label=stage) for stage, color in stage_colors().items() if total.get(stage, 0) > 0]
    for phase in ("backward", "recompute"):
        if (table["phase"] == phase).any():
            shown.append(Patch(facecolor="#888888", edgecolor="white", hatch=_HATCH[phase], label=phase))
    axes.legend(handles=shown, loc="upper center", bbox_to_anchor=(0.45, -0.28), ncols=4, fontsize=9)


def anatomies_side_by_side(left: Axes, right: Axes, regions: pd.DataFrame) -> None:
    """Steps on several data sets: on the left as shares, on the right in microseconds a training interaction.

    regions: columns data, n_train, model, region, ms, in drawing order. Each bar's milliseconds stand at its end.
    """
    table = regions.assign(stage=regions["region"].map(stage_of))
    names = []
    for row, ((data, model), own) in enumerate(table.groupby(["data", "model"], sort=False)):
        names.append(f"{data}, {model}")
        stages = own.groupby("stage")["ms"].sum()
        total, edges = stages.sum(), int(own["n_train"].iloc[0])
        at = 0.0
        for stage, color in stage_colors().items():
            ms = stages.get(stage, 0.0)
            style = {"height": 0.7, "color": color, "edgecolor": "white", "linewidth": 0.4}
            left.barh(row, 100 * ms / total, left=100 * at / total, **style)
            right.barh(row, 1e3 * ms / edges, left=1e3 * at / edges, **style)
            at += ms
        right.text(1e3 * total / edges, row, f" {total:,.0f} ms", va="center", fontsize=9)
    for axes in (left, right):
        axes.set_yticks(range(len(names)), names if axes is left else [""] * len(names))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    left.set_xlim(0, 100)
    left.set_xlabel("per cent of a step")
    right.margins(x=0.22)
    right.set_xlim(left=0)
    right.set_xlabel("microseconds a training interaction")
    present = set(table["stage"])
    patches = [Patch(color=color, label=stage) for stage, color in stage_colors().items() if stage in present]
    left.get_figure().legend(handles=patches, loc="outside lower center", ncols=5, fontsize=9)


def epoch_parts(axes: Axes, epochs: pd.DataFrame) -> Axes:
    """One stacked bar a model: seconds of an epoch by part.

    epochs: index model, one column a part, in seconds, in drawing order.
    """
    left = pd.Series(0.0, index=epochs.index)
    for part, color in zip(epochs.columns, ("#4477AA", "#EE8866", "#228833", OTHER_STAGE[2])):
        axes.barh(epochs.index, epochs[part], left=left, height=0.55, color=color, label=part)
        left = left + epochs[part]
    for row, total in enumerate(left):
        axes.text(total + 0.01 * left.max(), row, f"{total:.2f} s", va="center", fontweight="bold")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, left.max() * 1.14)
    axes.set_xlabel("seconds an epoch")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.28), ncols=4, fontsize=9)
    return axes
