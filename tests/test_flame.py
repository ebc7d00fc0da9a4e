"""The flame chart: lanes, blocks and tooltips from a hand-made step, small and without a script."""

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from mmrec_helpers.plots import flame_chart
from mmrec_helpers.plots.flame import LARGEST_BYTES, short_name
from mmrec_helpers.profiling.regions import _csv, timeline_of

NODE = "autograd::engine::evaluate_function: MulBackward0"


def timeline(events):
    columns = ["thread", "depth", "start_ms", "ms", "name", "kind", "region", "phase"]
    return pd.DataFrame([(1, *event) for event in events], columns=columns)


def a_step():
    return timeline(
        [
            (0, 0.0, 100.0, "ProfilerStep#1", "step", "unattributed", "other"),
            (1, 0.0, 40.0, "forward", "region", "unattributed", "forward"),
            (2, 0.0, 10.0, "routing.visual.0", "region", "routing.visual.0", "forward"),
            (3, 1.0, 8.0, "aten::mul", "op", "routing.visual.0", "forward"),
            (2, 10.0, 10.0, "routing.visual.1", "region", "routing.visual.1", "forward"),
            (2, 20.0, 20.0, "loss", "region", "loss", "forward"),
            (1, 40.0, 50.0, "backward", "region", "unattributed", "backward"),
            (2, 40.0, 20.0, NODE, "engine", "loss", "backward"),
            (3, 40.0, 19.0, "MulBackward0", "op", "loss", "backward"),
            (4, 41.0, 18.0, "aten::mul", "op", "loss", "backward"),
            (2, 60.0, 30.0, NODE, "engine", "routing.visual.1", "backward"),
            (3, 61.0, 12.0, "aten::add", "op", "routing.visual.1", "recompute"),
        ]
    )


def blocks(markup):
    """Tooltip to (x, y, width) of each block."""
    soup = BeautifulSoup(markup, "html.parser")
    place = ("x", "y", "width")
    return [(r.title.string, *(float(r[name]) for name in place)) for r in soup.find_all("rect") if r.title]


def test_stages_are_runs_and_lie_above_their_regions_and_operators():
    found = blocks(flame_chart(a_step()))
    rows = {text: y for text, _, y, _ in found}
    loop = rows["routing loop: 20 ms, routing loop"]  # both iterations in one block
    first, second = rows["visual.0: 10 ms, routing loop"], rows["visual.1: 10 ms, routing loop"]
    assert loop < first == second < rows["mul: 8 ms, routing loop"]


def test_forward_and_backward_have_rows_of_their_own_on_one_axis_of_time():
    found = blocks(flame_chart(a_step()))
    forward = [(x + width, y) for text, x, y, width in found if text == "loss: 20 ms, loss"]
    backward = [(x, y) for text, x, y, _ in found if text.startswith("MulBackward0")]
    assert backward
    assert max(y for _, y in forward) < min(y for _, y in backward)
    assert max(end for end, _ in forward) <= min(x for x, _ in backward) + 0.2


def test_a_nodes_own_operator_is_not_drawn_twice_and_recomputation_is_named():
    texts = [title for title, *_ in blocks(flame_chart(a_step()))]
    assert sum(title.startswith("MulBackward0: 20 ms") for title in texts) == 1
    assert not any(title.startswith("MulBackward0: 19 ms") for title in texts)
    assert "add: 12 ms, routing loop, recomputed" in texts


def test_the_device_has_a_lane_of_its_own():
    kernels = pd.DataFrame(
        [(5.0, 30.0, "void gather_kernel<float>(float*)", "routing.visual.0", "forward")],
        columns=["start_ms", "ms", "name", "region", "phase"],
    )
    assert ">device<" not in flame_chart(a_step())
    with_device = flame_chart(a_step(), kernels)
    assert ">device<" in with_device
    assert "gather_kernel: 30 ms, routing loop" in [text for text, *_ in blocks(with_device)]


def test_thousands_of_events_stay_small():
    many = [(0, 0.0, 4000.0, "loss", "region", "loss", "forward")]
    many += [(1, float(k), 1.0 + k / 4000, f"aten::op_{k}", "op", "loss", "forward") for k in range(4000)]
    markup = flame_chart(timeline(many), title="a <title> & more")
    assert len(markup.encode()) <= LARGEST_BYTES
    assert len(blocks(markup)) > 100
    assert "a &lt;title&gt; &amp; more" in markup
    assert "<script" not in markup


def test_the_timeline_of_a_record_draws_the_same():
    steps = timeline_of(_csv(a_step()))
    assert flame_chart(steps) == flame_chart(a_step())


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("aten::index_select", "index_select"),
        (NODE, "MulBackward0"),
        ("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", "AccumulateGrad"),
        ("void at::native::vectorized_kernel<4, at::native::Add<float>>(int)", "vectorized_kernel"),
        ("Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD "),
    ],
)
def test_names_are_shortened(name, short):
    assert short_name(name) == short
