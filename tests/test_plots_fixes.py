"""The plots of fixes and of differences draw what the frames say."""

import pandas as pd
import pytest

from mmrec_helpers.plots import batch_size_epochs, fix_times, forest, styled


def test_each_fix_is_a_bar_of_its_ratio_and_one_wild_quartile_does_not_shrink_the_others():
    arms = pd.DataFrame(
        [("reference", 1.0, 1.0, 1.0, True), ("fused", 0.2, 0.18, 0.22, True), ("cached", 0.9, 0.8, 100.0, False)],
        columns=["arm", "median", "q1", "q3", "exact"],
    )
    with styled() as (_, axes):
        fix_times(axes, arms, "reference")
    assert [bar.get_width() for bar in axes.patches] == [1.0, 0.2, 0.9]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 3  # the reference, the same, another model
    assert axes.get_xlim()[1] == pytest.approx(1.3)
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.20", "0.90"]


def test_each_pair_is_a_line_from_low_to_high_and_the_margin_a_band():
    pairs = pd.DataFrame(
        [("a less b", 0.003, 0.001, 0.005, "better"), ("a less c", 0.0, -0.001, 0.001, "equivalent")],
        columns=["label", "difference", "low", "high", "verdict"],
    )
    with styled() as (_, axes):
        forest(axes, pairs, 0.002)
    intervals = [list(line.get_xdata()) for line in axes.lines if len(set(line.get_xdata())) == 2]
    assert intervals == [[0.001, 0.005], [-0.001, 0.001]]
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-0.002, 0.002))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["margin, 0.002", "better", "equivalent"]


def test_each_backend_is_a_line_over_the_batch_sizes():
    rows = pd.DataFrame(
        [("reference", 512, 4.0), ("reference", 2048, 1.0), ("fused", 512, 0.5)],
        columns=["backend", "batch_size", "epoch_s"],
    )
    with styled() as (_, axes):
        batch_size_epochs(axes, rows)
    drawn = {line.get_label(): list(zip(line.get_xdata(), line.get_ydata())) for line in axes.lines}
    assert drawn == {"reference": [(512, 4.0), (2048, 1.0)], "fused": [(512, 0.5)]}
