"""The plots of variants draw what the frames say: bars and bands, intervals and verdicts, fits and what is claimed."""

import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from mmrec_helpers.plots import fix_times, forest, heat_map, iteration_times, pareto, styled

FIXES = pd.DataFrame(
    [
        ("no loop", "GRCN", 1.0, 0.97, 1.02, 480.0, True, True),
        ("fused", "GRCN", 0.2, 0.18, 0.22, 96.0, True, False),
        ("mean pooling", "GRCN", 0.9, 0.8, 100.0, 432.0, False, False),
    ],
    columns=["label", "model", "ratio", "q1", "q3", "step_ms", "exact", "within_noise"],
)
PAIRS = pd.DataFrame(
    [
        ("a", 0.003, 0.001, 0.005, "better", "models"),
        ("b", 0.0, -0.001, 0.001, "equivalent", "models"),
        ("c", -0.004, -0.006, -0.003, "worse", "baselines"),
        ("d", 0.001, -0.003, 0.004, "open", "baselines"),
    ],
    columns=["label", "difference", "low", "high", "verdict", "group"],
)


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def ends(axes):
    """Low and high of each horizontal interval, in drawing order."""
    return [tuple(ends[:, 0]) for lines in axes.collections for ends in lines.get_segments()]


def rows_named(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


def test_fixes_are_bars_sorted_by_their_ratio_and_one_wild_quartile_does_not_shrink_the_others():
    with styled() as (_, axes):
        fix_times(axes, FIXES, noise=0.08)
    band, *bars = axes.patches
    assert [bar.get_width() for bar in bars] == [0.2, 0.9, 1.0]
    assert rows_named(axes) == ["fused", "mean pooling", "no loop"]
    assert ends(axes) == [(0.18, 0.22), (0.8, 100.0), (0.97, 1.02)]
    assert axes.get_xlim()[1] == pytest.approx(1.03 * 1.3)
    assert (band.get_x(), band.get_width()) == pytest.approx((0.92, 0.16))


def test_another_result_is_hatched_and_the_legend_says_so_in_words():
    with styled() as (_, axes):
        fix_times(axes, FIXES, noise=0.08)
    assert [bool(bar.get_hatch()) for bar in axes.patches[1:]] == [False, True, False]
    assert legend(axes) == ["same result up to rounding", "another result", "noise (control), ±8 %"]
    with styled() as (_, axes):
        fix_times(axes, pd.concat([FIXES[FIXES["exact"]], FIXES[:1].assign(model="DRAGON")]), noise=None)
    assert legend(axes) == ["GRCN", "DRAGON", "same result up to rounding"]


def test_no_text_of_a_fix_lies_on_the_line_at_one():
    with styled() as (figure, axes):
        fix_times(axes, FIXES, noise=0.08)
        figure.draw_without_rendering()
        texts = [*axes.texts, *axes.get_yticklabels()]
        assert not any(text.get_window_extent().overlaps(axes.bbox) for text in texts)
    assert [text.get_text() for text in axes.texts] == ["0.20, 96 ms", "0.90, 432 ms", "1.00, 480 ms, within noise"]


def test_each_pair_is_a_line_from_low_to_high_and_the_margin_a_band():
    with styled() as (_, axes):
        forest(axes, PAIRS.drop(columns="group"), 0.002)
    assert ends(axes) == [(0.001, 0.005), (-0.001, 0.001), (-0.006, -0.003), (-0.003, 0.004)]
    assert (axes.patches[0].get_x(), axes.patches[0].get_width()) == pytest.approx((-0.002, 0.004))
    assert legend(axes) == ["margin, ±0.002", "better", "equivalent", "worse", "open"]
    assert rows_named(axes) == list("abcd")


def test_verdicts_differ_in_colour_and_shape_and_groups_have_headings():
    with styled() as (_, axes):
        forest(axes, PAIRS, 0.002)
    marks = [line for line in axes.lines if line.get_marker() != "None"]
    assert len({line.get_marker() for line in marks}) == len({line.get_color() for line in marks}) == 4
    assert [line.get_ydata()[0] for line in marks] == [1, 2, 4, 5]
    assert rows_named(axes) == ["models", "a", "b", "baselines", "c", "d"]
    bold = [text.get_text() for text in axes.get_yticklabels() if text.get_fontweight() == "bold"]
    assert bold == ["models", "baselines"]


def test_what_is_unbeaten_is_filled_and_every_variant_is_named():
    rows = pd.DataFrame({"label": ["fused", "reference"], "ratio": [0.1, 1.0], "peak_mb": [50.0, 500.0]})
    with styled() as (_, axes):
        pareto(axes, rows.assign(recall=0.08, low=0.07, high=0.09, best=[True, False]))
    fused, reference = (dots for dots in axes.collections if isinstance(dots, PathCollection))
    assert fused.get_sizes()[0] < reference.get_sizes()[0]
    assert reference.get_facecolor()[0].tolist() == [1, 1, 1, 1] != fused.get_facecolor()[0].tolist()
    assert [text.get_text() for text in axes.texts] == ["fused", "reference"]
    assert legend(axes) == ["unbeaten in time, memory and recall", "peak 50 MB", "peak 500 MB"]


def test_a_heat_map_names_rows_and_columns_and_marks_the_largest_of_what_is_there():
    table = pd.DataFrame([[0.05, 0.07], [None, 0.01]], index=pd.Index([0.001, 0.01], name="rate"))
    with styled() as (_, axes):
        heat_map(axes, table.set_axis(pd.Index(["add", "mean"], name="mode"), axis=1))
    assert [(text.get_text(), text.get_fontweight()) for text in axes.texts] == [
        *[("0.0500", "normal"), ("0.0700", "bold"), ("0.0100", "normal")],
    ]
    assert (rows_named(axes), [text.get_text() for text in axes.get_xticklabels()]) == (
        ["0.001", "0.01"],
        ["add", "mean"],
    )
    assert axes.patches[0].get_xy() == (0.5, -0.5)


@pytest.mark.parametrize("claimed", [True, False])
def test_iteration_times_draw_the_fit_and_where_asked_what_is_claimed(claimed):
    times = {"step_ms": [50.0, 70.0, 90.0, 50.0, 40.0], "iterations": [0, 1, 2, 0, 1]}
    rows = pd.DataFrame({"routing": ["as_shipped"] * 3 + ["live"] * 2, **times})
    rows = rows.assign(q1_ms=rows["step_ms"] - 1, q3_ms=rows["step_ms"] + 2)
    with styled() as (_, axes):
        iteration_times(axes, rows, claimed)
    assert [text.get_text() for text in axes.texts] == ["claimed: 2 times", "measured: 1.29 times"] * claimed
    lines = {line.get_linestyle(): line for line in axes.lines if line.get_marker() == "None"}
    fits = [line.get_ydata() for line in axes.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
    assert [list(fit) for fit in fits] == [pytest.approx([50, 90]), pytest.approx([50, 40])]
    assert ("--" in lines) == claimed
    if claimed:
        assert (list(lines["--"].get_xdata()), list(lines["--"].get_ydata())) == ([1, 2], [70.0, 140.0])
    expected = ["as shipped: 50 ms + 20 ms per iteration", "as in the paper: 50 ms − 10 ms per iteration"]
    assert legend(axes) == ["claimed: proportional to iterations"] * claimed + expected
