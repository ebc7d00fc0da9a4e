"""One look for all plots: figures, colours, stages, intervals, names beside marks, legends, logarithmic axes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
from matplotlib.transforms import Bbox, ScaledTranslation

# Mid-tones: 3:1 or more against light and against dark paper. Black and white become the page's text and paper
# (``pages.show_figure``), so that what is neutral is black with an alpha.
BLUE, ORANGE, GREEN, GREY = "#4477AA", "#DB6B22", "#2C8A3E", "#838383"
TEXT, PAPER, LINE, BAND = "black", "white", (0, 0, 0, 0.5), (0, 0, 0, 0.15)
MODEL_COLORS = {"GRCN": BLUE, "DRAGON": "#E4576B", "LightGCN": GREEN, "popularity": GREY}
_LOOKS = {
    "GRCN": [(BLUE, "o"), ("#B0892A", "^"), (GREEN, "s"), ("#6B5FD3", "P")],
    "DRAGON": [("#E4576B", "D"), ("#1F9E89", "v"), ("#B14FA8", "X")],
}

# The stages of a training step: region-name prefix, label, colour; drawn in this order.
STAGES = [
    ("copy", "feature copy", "#7F8C99"),
    ("features", "feature layers", "#3C97C2"),
    ("routing", "routing loop", "#D0486A"),
    ("final_attention", "final attention", "#B0892A"),
    ("confidence", "confidence", "#7590B5"),
    ("id_branch", "ID branch", "#6B5FD3"),
    ("convolution", "convolutions", "#1F9E89"),
    ("modal_weighting", "modal weighting", "#5A86D8"),
    ("item_graph", "item graph", GREEN),
    ("user_graph", "user graph", "#B14FA8"),
    ("loss", "loss", "#A65E2E"),
    ("optimizer", "optimizer", "#877A6B"),
    ("sampling", "sampling", "#DB6B33"),
    ("data", "waiting for data", "#D36A9B"),
]
OTHER_STAGE = ("", "everything else", GREY)
_RC: dict[Any, Any] = {
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
    "grid.color": TEXT,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
Look = dict[str, Any]  # keyword arguments of matplotlib
_LETTER, _LINE = 4.9, 10.0  # width of a letter and height of a line of 8 points
_HEIGHTS = [height for apart in range(0, 80, 9) for height in (-4 - apart, 5 + apart)]  # of a name over its mark


@contextmanager
def styled(width: float = 7.5, height: float = 3.2, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A figure of ``width`` x ``height`` inches with this project's look and its axes, an array if they have several
    ``columns``: ``with styled() as (figure, axes): ...``."""
    with mpl.rc_context(_RC):
        # A bare Figure registers with no window manager, so nothing is shown twice and nothing leaks.
        figure = Figure(figsize=(width, height))
        yield figure, figure.subplots(1, columns)


def stage_of(region: str) -> str:
    """The label of the stage that a region name such as ``routing.visual.0`` belongs to."""
    head = region.split(".")[0]
    return next((label for prefix, label, _ in STAGES if prefix == head), OTHER_STAGE[1])


def stage_colors() -> dict[str, str]:
    """Stage label to colour, in drawing order, "everything else" last."""
    return {label: color for _, label, color in [*STAGES, OTHER_STAGE]}


def stage_patches(present: Iterable[str]) -> list[Patch]:
    """What a legend shows of the stages (labels) that are ``present``."""
    present = set(present)
    return [Patch(color=color, label=stage) for stage, color in stage_colors().items() if stage in present]


def model_color(model: str) -> str:
    return MODEL_COLORS.get(model, GREY)


def looks(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label such as "GRCN, reference", by its model and the order of first appearance."""
    left = {model: iter(own) for model, own in _LOOKS.items()}
    models = {label: next((model for model in left if label.startswith(model)), None) for label in labels}
    return {label: next(left.get(model or "", iter(())), (GREY, "x")) for label, model in models.items()}


def text_on(color: Any) -> str:
    """The colour of text inside such a mark, on light and on dark paper alike: that of the higher contrast."""
    luminance = np.dot((0.2126, 0.7152, 0.0722), np.power(to_rgb(color), 2.2))
    return "#010101" if luminance > 0.18 else "#FEFEFE"


def milliseconds(value: float) -> str:
    """Such as "4.25 ms", "36 ms", "1,234 ms"."""
    return f"{value:,.0f} ms" if value >= 20 else f"{value:.3g} ms"


def bar_rows(axes: Axes, names: Sequence[str], **look: Any) -> None:
    """Name the rows 0, 1, ... of horizontal bars or lines, the first on top."""
    axes.set_yticks(range(len(names)), names, **look)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def bar_end(axes: Axes, x: float, row: float, text: str, away: float = 5, **look: Any) -> None:
    """Write beside the end of a horizontal bar, so many points away from it."""
    look = {"textcoords": "offset points", "va": "center", "fontsize": 9, **look}
    axes.annotate(text, (x, row), (away, 0), **look)


def interval(axes: Axes, x: Any, y: Any, low: Any, high: Any, along: Literal["x", "y"] = "y", **look: Any) -> Any:
    """Draw intervals (quartiles, confidence) from ``low`` to ``high`` through (x, y), ``fmt`` the middle too; returns
    what to legend."""
    middle = np.asarray(y if along == "y" else x)
    reach = np.maximum([middle - low, high - middle], 0).reshape(2, -1)
    return axes.errorbar(x, y, **{f"{along}err": reach, "fmt": "none", "capsize": 2.5, "elinewidth": 1.3, **look})


def noise_band(axes: Axes, noise: float | None, along: Literal["x", "y"]) -> list[Patch]:
    """A line at the ratio 1 and the band of what a control that changes nothing reaches; returns what to legend."""
    line, band = (axes.axvline, axes.axvspan) if along == "x" else (axes.axhline, axes.axhspan)
    line(1, color=LINE, linewidth=0.9, zorder=0.6)
    look: Look = {"color": BAND, "linewidth": 0, "zorder": 0.5}
    return [band(1 - noise, 1 + noise, label=f"noise (control), ±{100 * noise:.2g} %", **look)] if noise else []


def legend_below(axes: Axes, handles: Sequence[Any]) -> None:
    """A legend below the ticks and the label of the axes, in as many columns as fit their width (with that of the
    labels on their left)."""
    widths = [32 + 5.2 * len(str(one.get_label())) for one in handles]
    room, ncols = 1.2 * axes.bbox.width * 72 / axes.figure.dpi, len(widths)
    while ncols > 1 and sum(max(column) for column in np.array_split(widths, ncols)) > room:
        ncols -= 1
    look: Look = {"fontsize": 9, "handlelength": 1.6, "columnspacing": 1.3, "borderaxespad": 0}
    below = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)  # inches
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=ncols, **look)


def plain_log(axes: Axes, which: str = "xy", ticks: Sequence[float] | None = None) -> None:
    """Make axes logarithmic with ticks such as 0.1, 0.2, 0.5, 1 (or at ``ticks``); powers of ten alone over more than
    three decades. To be called once the limits are what they will be."""
    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        low, high = axis.get_view_interval()
        decades = LogLocator(subs=(1, 2, 5) if high / low <= 1000 else (1,))
        axis.set_major_locator(FixedLocator(ticks) if ticks else decades)
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_locator(NullLocator())


def name_marks(
    axes: Axes,
    marks: Iterable[tuple[str, float, float]],
    radii: float | Sequence[float] = 4.0,
    avoid: Iterable[tuple[float, float]] = (),
) -> None:
    """Write each name beside its mark (name, x, y; "" only keeps the others away) where no other name, no mark, no line
    to a name and no point to ``avoid`` lies; a thin line leads to a name that stands apart.

    To be called last: scales, limits, labels and legend must be what they will be. radii: of the marks in points;
    avoid: points (x, y), close to each other, of lines.
    """
    axes.figure.figure.draw_without_rendering()  # the layout decides where the marks lie
    marks = list(marks)

    def points(where: Any) -> np.ndarray:
        return axes.transData.transform(np.reshape(where, (-1, 2))) * 72 / axes.figure.dpi

    places, reaches = points([at for _, *at in marks]), np.broadcast_to(radii, len(marks))
    taken = [Bbox([place - radius, place + radius]) for place, radius in zip(places, reaches)]
    lines = _dots(points([*avoid]))
    walls = Bbox(axes.bbox.get_points() * 72 / axes.figure.dpi)
    for own, ((name, x, y), place, radius) in enumerate(zip(marks, places, reaches, strict=True)):
        tried: list[tuple] = []
        width = _LETTER * len(name)
        for dy in _HEIGHTS if name else ():
            for dx, left in ((radius + 2, radius + 2), (-radius - 2, -radius - 2 - width)):
                box = Bbox.from_bounds(place[0] + left, place[1] + dy, width, _LINE)
                apart = not -radius - 8 <= dy <= radius + 5
                leader = _dots(np.linspace(place, place + (dx, dy + _LINE / 2), 9)) if apart else []
                others = taken[:own] + taken[own + 1 :]
                crossed = sum(10 * dot.count_overlaps(others) + dot.count_overlaps(lines) for dot in leader)
                inside = walls.contains(*box.p0) and walls.contains(*box.p1)
                covered = 100 * box.count_overlaps(taken) + 20 * box.count_overlaps(lines) + crossed
                tried.append((not inside, covered, len(tried), dx, dy, box, leader))
        if not name:
            continue
        *_, dx, dy, box, leader = min(tried, key=lambda one: one[:3])  # equally free: the first that was tried
        taken.append(box)
        lines += leader
        look: Look = {"fontsize": 8, "ha": "left" if dx > 0 else "right"}
        if leader:
            near = (float(dx < 0), 0.5)  # of the name's box, the middle of its near side
            look["arrowprops"] = {"arrowstyle": "-", "color": LINE, "linewidth": 0.5, "relpos": near}
        axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", **look)


def _dots(places: np.ndarray) -> list[Bbox]:
    return [Bbox([place - 1, place + 1]) for place in places]
