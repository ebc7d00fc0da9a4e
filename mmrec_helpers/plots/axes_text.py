"""Readable text on axes: logarithmic ticks as plain numbers, and names beside marks without overlap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

_LETTER, _LINE = 4.9, 10.0  # width of a letter and height of a line of 8 points
_HEIGHTS = (-4, 5, -13, 14, -22, 23, -31, 32, -40)  # of a name's lower edge over its mark's middle, the nearest first
Box = tuple[float, float, float, float]  # left, bottom, right, top in points


def plain_log(axes: Axes, which: Literal["x", "y", "both"] = "both") -> None:
    """Make axes logarithmic with ticks such as 0.1, 0.2, 0.5, 1; powers of ten alone over more than three decades.

    To be called once the limits are what they will be.
    """
    for name in ("x", "y") if which == "both" else which:
        getattr(axes, f"set_{name}scale")("log")
        low, high = getattr(axes, f"get_{name}lim")()
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if np.log10(high / low) <= 3 else (1,)))
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter(NullFormatter())


def name_marks(
    axes: Axes,
    marks: Iterable[tuple[str, float, float]],
    colors: Iterable[str] | None = None,
    radii: Iterable[float] | None = None,
) -> None:
    """Write each name beside its mark (name, x, y), right or left of it, where no other name and no mark stands.

    To be called once scales and limits are what they will be. colors: one a mark, default black; radii: of the marks in
    points, default 4.
    """
    marks = list(marks)
    colors = list(colors) if colors is not None else ["black"] * len(marks)
    radii = list(radii) if radii is not None else [4.0] * len(marks)
    places = [axes.transData.transform((x, y)) * 72 / axes.figure.dpi for _, x, y in marks]
    wall, floor = axes.bbox.p0 * 72 / axes.figure.dpi
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(places, radii, strict=True)]
    for (name, *at), place, color, radius in zip(marks, places, colors, radii, strict=True):
        tried = [(shift, _beside(name, place, shift)) for shift in _shifts(radius)]
        free = [one for one in tried if _is_free(one[1], wall, floor, taken)]
        (dx, dy), box = (free or tried)[0]
        taken.append(box)
        side = "left" if dx > 0 else "right"
        axes.annotate(name, at, (dx, dy), textcoords="offset points", fontsize=8, color=color, ha=side)


def _shifts(radius: float) -> list[tuple[float, float]]:
    """From a mark's middle to the near lower corner of its name, in points, the best first."""
    return [(side * (radius + 2), height) for height in _HEIGHTS for side in (1, -1)]


def _beside(name: str, place: Iterable[float], shift: tuple[float, float]) -> Box:
    (x, y), (dx, dy) = place, shift
    width = _LETTER * len(name)
    left = x + dx if dx > 0 else x + dx - width
    return left, y + dy, left + width, y + dy + _LINE


def _is_free(box: Box, wall: float, floor: float, taken: list[Box]) -> bool:
    return box[0] > wall and box[1] > floor and not any(_meet(box, other) for other in taken)


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
