"""Text on plots: plain numbers on logarithmic axes, names that lie neither on each other nor on marks."""

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from mmrec_helpers.plots import styled
from mmrec_helpers.plots.axes_text import name_marks, plain_log


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def x_labels(low, high):
    with styled() as (figure, axes):
        axes.set_xlim(low, high)
        plain_log(axes, "x")
        drawn(figure)
        return [t.get_text() for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]


def test_logarithmic_ticks_are_plain_numbers():
    assert x_labels(0.09, 1.2) == ["0.1", "0.2", "0.5", "1"]
    assert x_labels(0.5, 20_000) == ["1", "10", "100", "1,000", "10,000"]


@pytest.mark.parametrize("places", [[(1, 1)] * 5, [(1, 1), (1.05, 1), (1.1, 1.02), (2, 2), (0.02, 0.02)]])
def test_names_lie_neither_on_each_other_nor_on_marks(places):
    with styled(7, 4) as (figure, axes):
        axes.set(xlim=(0, 3), ylim=(0, 3))
        figure.set_layout_engine("none")
        name_marks(axes, [(f"name {i}", x, y) for i, (x, y) in enumerate(places)])
        renderer = drawn(figure)
        names = [text.get_window_extent(renderer) for text in axes.texts]
        size = 3 * figure.dpi / 72  # inside a mark of 4 points
        marks = [Bbox.from_extents(x - size, y - size, x + size, y + size) for x, y in axes.transData.transform(places)]
        assert len(names) == len(places)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(names, 2))
        assert not any(name.overlaps(mark) for name in names for mark in marks)
        assert all(name.x0 > axes.bbox.x0 and name.y0 > axes.bbox.y0 for name in names)
