"""Text on plots: plain numbers on logarithmic axes, names that lie neither on each other nor on marks."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mmrec_helpers.plots import roofline, styled
from mmrec_helpers.plots.style import looks, name_marks, plain_log


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
        names = [Text.get_window_extent(text, renderer) for text in axes.texts]
        size = 3 * figure.dpi / 72  # inside a mark of 4 points
        marks = [Bbox.from_extents(x - size, y - size, x + size, y + size) for x, y in axes.transData.transform(places)]
        assert len(names) == len(places)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(names, 2))
        assert not any(name.overlaps(mark) for name in names for mark in marks)
        assert all(name.x0 > axes.bbox.x0 and name.y0 > axes.bbox.y0 for name in names)


def test_names_under_a_roof_lie_neither_on_each_other_nor_on_the_roof():
    four = {"stage": ["routing", "final_attention", "id_branch", "loss"], "gflop_s": [1.42, 1.4, 1.45, 1.38]}
    stages = pd.DataFrame({"model": "GRCN", "flop_per_byte": [0.083, 0.084, 0.085, 0.086], "measured_ms": 9.0, **four})
    stages.loc[4] = ["GRCN", 0.084, 0.1, "confidence", 1.3]  # too short to be named
    with styled(7, 4) as (figure, axes):
        roofline(axes, stages, copy_gb_s=28.8, matmul_gflop_s=154.0)
        renderer = drawn(figure)
        # An annotation's own extent includes the line that leads to it.
        names = {text.get_text(): Text.get_window_extent(text, renderer) for text in axes.texts}
        roof = axes.transData.transform(np.column_stack(axes.lines[0].get_data()))
    assert {"routing loop", "final attention", "ID branch", "loss", "copy 29 GB/s"} < set(names)
    assert "confidence" not in names
    assert not any(a.overlaps(b) for a, b in itertools.combinations(names.values(), 2))
    assert not any(name.contains(x, y) for name in names.values() for x, y in roof)


def test_a_label_keeps_the_colour_of_its_model_whatever_else_is_drawn():
    labels = ["GRCN, reference", "GRCN, fused", "DRAGON, reference", "GRCN, reference", "another"]
    drawn = looks(labels)
    assert drawn["DRAGON, reference"] == looks(labels[2:])["DRAGON, reference"]
    assert len({color for color, _ in drawn.values()}) == len({marker for _, marker in drawn.values()}) == 4
