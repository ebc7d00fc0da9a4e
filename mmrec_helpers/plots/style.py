"""One look for all plots: the palette, the stages of a step with their colours, and figure defaults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Paul Tol's "bright" and "muted" qualitative schemes (SRON/EPS/TN/09-002), distinct for colour-blind readers.
MODEL_COLORS = {"GRCN": "#4477AA", "DRAGON": "#EE6677", "LightGCN": "#228833", "popularity": "#777777"}

# The stages of a training step: region-name prefix, label, colour; drawn in this order.
STAGES = [
    ("copy", "feature copy", "#BBBBBB"),
    ("features", "feature layers", "#88CCEE"),
    ("routing", "routing loop", "#CC6677"),
    ("final_attention", "final attention", "#DDCC77"),
    ("confidence", "confidence", "#999933"),
    ("id_branch", "ID branch", "#332288"),
    ("convolution", "convolutions", "#44AA99"),
    ("modal_weighting", "modal weighting", "#6699CC"),
    ("item_graph", "item graph", "#117733"),
    ("user_graph", "user graph", "#AA4499"),
    ("loss", "loss", "#882255"),
    ("optimizer", "optimizer", "#997700"),
    ("sampling", "sampling", "#EE8866"),
    ("data", "waiting for data", "#FFAABB"),
]
OTHER_STAGE = ("", "everything else", "#DDDDDD")
_RC = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def stage_of(region: str) -> str:
    """The label of the stage that a region name such as ``routing.visual.0`` belongs to."""
    head = region.split(".")[0]
    return next((label for prefix, label, _ in STAGES if prefix == head), OTHER_STAGE[1])


def stage_colors() -> dict[str, str]:
    """Stage label to colour, in drawing order, "everything else" last."""
    return {label: color for _, label, color in [*STAGES, OTHER_STAGE]}


@contextmanager
def styled(width: float = 7.5, height: float = 3.2, columns: int = 1) -> Iterator[tuple[Figure, Axes]]:
    """A figure of ``width`` x ``height`` inches with this project's look: ``with styled() as (figure, axes): ...``."""
    with mpl.rc_context(_RC):
        # A bare Figure registers with no window manager, so nothing is shown twice and nothing leaks.
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(1, columns)
        yield figure, axes
