"""The plots draw what the frames say: bar lengths, labels, the marked best epoch."""

import pandas as pd
import pytest

from mmrec_helpers.plots import (
    degree_distribution,
    epoch_parts,
    iteration_times,
    learning_curves,
    stage_of,
    step_anatomy,
    styled,
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
    assert {"36 ms", "12 ms"} <= {t.get_text() for t in axes.texts}


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
    assert {"4.00 s", "1.50 s"} <= {t.get_text() for t in axes.texts}


def test_learning_curves_mark_the_best_epoch_and_skip_epochs_without_a_value():
    history = pd.DataFrame({"model": "GRCN", "epoch": [0, 1, 2], "recall": [0.1, 0.3, None]})
    with styled() as (_, axes):
        learning_curves(axes, history, "epoch", "recall", anchors={"popularity": 0.05})
    marked = next(line for line in axes.lines if line.get_marker() == "o")
    assert (marked.get_xdata()[0], marked.get_ydata()[0]) == (1, 0.3)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["GRCN", "popularity"]


def test_degree_distribution_leaves_out_degree_zero():
    degrees = pd.DataFrame({"side": ["user", "user", "item"], "degree": [0, 4, 2], "share_at_least": [1.0, 0.5, 1.0]})
    with styled() as (_, axes):
        degree_distribution(axes, degrees)
    assert [list(line.get_xdata()) for line in axes.lines] == [[4], [2]]


def test_iteration_times_draw_the_fit_and_name_its_parts():
    times = {"step_ms_median": [50.0, 70.0], "step_ms_q1": [49.0, 69.0], "step_ms_q3": [52.0, 72.0]}
    arms = pd.DataFrame({"routing": "as_shipped", "iterations": [0, 1], **times})
    fits = pd.DataFrame({"fixed_ms": [50.0], "per_iteration_ms": [20.0]}, index=["as_shipped"])
    with styled() as (_, axes):
        iteration_times(axes, arms, fits)
    line = next(line for line in axes.lines if line.get_marker() == "None" and len(line.get_xdata()) == 2)
    assert list(line.get_ydata()) == [50.0, 70.0]
    assert axes.get_legend().get_texts()[0].get_text() == "as shipped: 50 ms + 20 ms an iteration"
