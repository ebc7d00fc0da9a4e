"""The plots draw what the frames say: bar lengths, labels, the marked best epoch; the docstrings' examples run."""

import doctest
import inspect
import re
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mmrec_helpers import pages, plots
from mmrec_helpers.plots import (
    batch_size_epochs,
    degree_distribution,
    epoch_parts,
    learning_curves,
    memory_timeline,
    predicted_against_measured,
    stage_gains,
    stage_legend,
    stage_of,
    step_anatomy,
    style,
    styled,
    time_against_memory,
    times_along,
)

REGIONS = pd.DataFrame(
    [
        ("GRCN", "routing.visual.0", "forward", 10.0),
        ("GRCN", "routing.textual.2", "backward", 20.0),
        ("GRCN", "final_attention.visual", "recompute", 5.0),
        ("GRCN", "somewhere", "other", 1.0),
        ("DRAGON", "user_graph", "forward", 12.0),
    ],
    columns=["model", "region", "phase", "ms"],
)


def bars(axes):
    return [(round(p.get_y() + p.get_height() / 2), p.get_x(), p.get_width()) for p in axes.patches]


@pytest.mark.parametrize("name", [name for name in plots.__all__ if inspect.isfunction(getattr(plots, name))])
def test_the_example_in_a_docstring_runs(name):
    names = {"pd": pd, name: getattr(plots, name), "axes": Figure().subplots()}
    (found,) = doctest.DocTestFinder(recurse=False).find(names[name], name, globs=names)
    assert len(found.examples) == (0 if name in ("stage_of", "styled") else 2)
    assert doctest.DocTestRunner().run(found).failed == 0


@pytest.mark.parametrize(
    ("region", "stage"),
    [
        ("routing.visual.0", "routing loop"),
        ("copy.features", "feature copy"),
        ("id_branch", "ID branch"),
        ("x", "everything else"),
    ],
)
def test_a_region_belongs_to_its_stage(region, stage):
    assert stage_of(region) == stage


def test_step_anatomy_stacks_every_millisecond_of_a_model_without_gaps():
    with styled() as (_, axes):
        step_anatomy(axes, REGIONS)
    drawn = bars(axes)
    for row, total in ((0, 36.0), (1, 12.0)):
        ends = 0.0
        for _, left, width in sorted(b for b in drawn if b[0] == row):
            assert left == pytest.approx(ends)
            ends = left + width
        assert ends == pytest.approx(total)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["GRCN", "DRAGON"]
    assert {"36 ms", "12 ms"} <= {t.get_text().strip() for t in axes.texts}


def test_step_anatomy_names_only_stages_that_take_time():
    with styled() as (_, axes):
        step_anatomy(axes, REGIONS)
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend == ["routing loop", "final attention", "user graph", "everything else", "backward", "recompute"]


def test_epoch_parts_end_at_the_total():
    epochs = pd.DataFrame({"training": [3.0, 1.0], "sampling": [1.0, 0.5]}, index=["GRCN", "DRAGON"])
    with styled() as (_, axes):
        epoch_parts(axes, epochs)
    assert max(p.get_x() + p.get_width() for p in axes.patches) == pytest.approx(4.0)
    assert {"4.00 s", "1.50 s"} <= {t.get_text().strip() for t in axes.texts}


def test_learning_curves_mark_the_best_epoch_and_skip_epochs_without_a_value():
    history = pd.DataFrame({"model": "GRCN", "epoch": [0, 1, 2], "recall": [0.1, 0.3, None]})
    with styled() as (_, axes):
        learning_curves(axes, history, "epoch", "recall", baselines={"popularity": 0.05})
    marked = next(line for line in axes.lines if line.get_marker() == "o")
    assert (marked.get_xdata()[0], marked.get_ydata()[0]) == (1, 0.3)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["GRCN", "popularity"]


def test_degree_distribution_leaves_out_degree_zero():
    degrees = pd.DataFrame({"side": ["user", "user", "item"], "degree": [0, 4, 2], "share_at_least": [1.0, 0.5, 1.0]})
    with styled() as (_, axes):
        degree_distribution(axes, degrees)
    assert [list(line.get_xdata()) for line in axes.lines] == [[4], [2]]


def test_stage_gains_show_the_least_beside_the_measured():
    stages = pd.DataFrame({"label": ["reference", "fused"], "step_ms": [400.0, 4.5], "least_ms": [200.0, 3.0]})
    with styled() as (_, axes):
        stage_gains(axes, stages)
    assert [bar.get_width() for bar in axes.patches] == [400.0, 4.5, 200.0, 3.0]
    assert [t.get_text() for t in axes.texts] == ["400 ms, 2.0 times the least", "4.5 ms, 1.5 times the least"]


def test_each_backend_is_a_line_over_the_batch_sizes():
    columns = ["backend", "batch_size", "epoch_s"]
    rows = pd.DataFrame([("reference", 512, 4.0), ("reference", 2048, 1.0), ("fused", 512, 0.5)], columns=columns)
    with styled() as (_, axes):
        batch_size_epochs(axes, rows)
    drawn = {line.get_label(): list(zip(line.get_xdata(), line.get_ydata())) for line in axes.lines}
    assert drawn == {"reference": [(512, 4.0), (2048, 1.0)], "fused": [(512, 0.5)]}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "2,048"]


POINTS = pd.DataFrame(
    [
        ("GRCN reference", "middle", 100, 64, 50.0, 55.0),
        ("GRCN reference", "interactions", 300, 64, 120.0, 110.0),
        ("GRCN reference", "width", 100, 16, 20.0, 25.0),
        ("DRAGON reference", "middle", 100, 64, 80.0, 70.0),
        ("DRAGON reference", "width", 100, 16, 30.0, 31.0),
        ("GRCN reference", "held out", 900, 64, 900.0, 500.0),
    ],
    columns=["label", "sweep", "n_edges", "width", "step_ms", "predicted_step_ms"],
)


def test_the_panels_of_a_growth_share_one_scale_and_leave_out_held_out_points():
    sweeps = {"interactions": ("n_edges", "interactions"), "width": ("width", "width")}
    with styled(columns=2) as (_, panels):
        times_along(panels, POINTS, sweeps)
    drawn = [{line.get_label(): list(line.get_ydata()) for line in panel.lines} for panel in panels]
    assert drawn[0] == {"GRCN reference": [50.0, 120.0]}  # DRAGON has one size only
    assert drawn[1] == {"GRCN reference": [20.0, 50.0], "DRAGON reference": [30.0, 80.0]}
    assert panels[0].get_ylim() == panels[1].get_ylim() == (0, pytest.approx(1.06 * 120))


def test_predictions_are_drawn_against_measurements_and_held_out_points_ringed():
    with styled() as (_, axes):
        predicted_against_measured(axes, POINTS, "step_ms", "s per step", scale=1e3)
    grcn, ringed, *_ = (points.get_offsets().tolist() for points in axes.collections)
    assert ([0.12, 0.11] in grcn, ringed) == (True, [[0.9, 0.5]])
    assert (axes.get_xlabel(), axes.get_xlim()) == ("measured s per step", axes.get_ylim())
    assert "held out of the fit" in axes.get_legend_handles_labels()[1]


def test_memory_is_drawn_over_a_step_and_against_time():
    timeline = pd.DataFrame({"ms": [0.0, 3.0, 9.0], "bytes": [0, 4e6, 0], "region": ["features", "loss", "loss"]})
    rows = pd.DataFrame({"model": ["GRCN", "DRAGON"], "label": ["all", "checkpointing"], "ratio": [1.0, 1.3]})
    with styled(columns=2) as (figure, (left, right)):
        memory_timeline(left, timeline, predicted_bytes=5e6)
        time_against_memory(right, rows.assign(q1=[1.0, 1.2], q3=[1.0, 1.5], memory_ratio=[1.0, 0.4]), noise=0.05)
        stage_legend(figure, timeline["region"])
    assert [list(line.get_ydata()) for line in left.lines] == [[0, 4, 0], [5, 5]]
    marks = {line.get_marker(): (line.get_xdata()[0], line.get_ydata()[0]) for line in right.lines}
    assert {at for shape, at in marks.items() if shape not in ("None", "|", "_")} == {(1.0, 1.0), (0.4, 1.3)}
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["GRCN", "DRAGON", "noise (control), ±5 %"]
    assert [t.get_text() for t in right.texts] == ["all", "checkpointing"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["feature layers", "loss"]


def contrast(one, other):
    """The contrast of two colours by WCAG 2, from 1 to 21."""
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(x)] for x in (one, other)]
    low, high = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (high + 0.05) / (low + 0.05)


PAPERS = ("#fdfdfb", "#14171b")  # of a page, light and dark
MARKS = {
    *style.stage_colors().values(),
    *style.MODEL_COLORS.values(),
    style.BLUE,
    style.ORANGE,
    style.GREEN,
    style.GREY,
}
MARKS |= {color for looks in style._LOOKS.values() for color, _ in looks}


@pytest.mark.parametrize("color", sorted(MARKS))
def test_marks_are_seen_on_light_and_dark_paper_and_text_in_them_is_read(color):
    assert min(contrast(color, paper) for paper in PAPERS) >= 3
    assert contrast(color, style.text_on(color)) >= 4.3
    assert contrast("#332288", PAPERS[1]) < 3  # control: an indigo of the same scheme is lost on dark paper


def test_the_papers_are_those_of_the_page():
    css = (Path(pages.__file__).parent / "template" / "page.css").read_text(encoding="utf-8")
    assert re.findall(r"--paper: (#\w{6})", css)[:2] == list(PAPERS)


def test_bar_ends_stand_clear_of_their_bars():
    epochs = pd.DataFrame({"training": [3.0, 1.0], "sampling": [1.0, 0.5]}, index=["GRCN", "DRAGON"])
    with styled() as (figure, axes):
        epoch_parts(axes, epochs)
        step_anatomy(figure.add_subplot(), REGIONS)
        figure.draw_without_rendering()
        for panel in figure.axes:
            bars = [patch.get_window_extent() for patch in panel.patches]
            ends = [text.get_window_extent() for text in panel.texts if text.get_fontweight() == "bold"]
            assert len(ends) == 2
            assert not any(bar.padded(2).overlaps(end) for bar in bars for end in ends)
