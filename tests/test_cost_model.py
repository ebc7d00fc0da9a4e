"""The cost model against counts by hand, and the ways in which cost must follow the workload."""

import pandas as pd
import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.models.step_cost import Workload, attention_call, linear_call, roofline_ms, step_cost

SMALL = Workload(n_users=3, n_items=2, n_edges=4, widths={"visual": 5}, batch_size=2, embedding_dim=2)


def stages(model, workload):
    return step_cost(model, workload).set_index("stage")


def test_an_attention_call_counted_by_hand():
    # 4 edges, width 2: two gathers (4 x 8), product (3 x 8), its sum (8), weighting (2 x 8), scatter (3 x 8) = 13 x 8;
    # the softmax's 12 passes over 4 edges; the 5 x 2 zeros that the scatter begins with.
    forward, _ = attention_call(4, SMALL)
    assert forward.numbers == 13 * 8 + 12 * 4 + 10
    assert forward.flops == 4 * 8 + 4 * 4


def test_a_linear_layer_counted_by_hand():
    forward, backward = linear_call(rows=3, width_in=5, width_out=2, input_gradient=False)
    assert (forward.numbers, forward.flops) == (3 * 5 + 3 * 2 + 5 * 2, 2 * 3 * 5 * 2)
    assert backward.flops == forward.flops
    assert linear_call(3, 5, 2, input_gradient=True)[1].flops == 2 * forward.flops


def test_the_routing_stage_grows_with_iterations_and_nothing_else_does():
    one, three = (stages("grcn", Workload(30, 20, 100, {"visual": 8}, routing_iterations=n)) for n in (1, 3))
    assert three.loc["routing", "forward_bytes"] == pytest.approx(3 * one.loc["routing", "forward_bytes"])
    others = [s for s in one.index if s != "routing"]
    pd.testing.assert_frame_equal(one.loc[others], three.loc[others])


def test_no_iterations_cost_nothing():
    row = stages("grcn", Workload(30, 20, 100, {"visual": 8}, routing_iterations=0)).loc["routing"]
    assert row.sum() == 0


def test_half_precision_halves_the_numbers_but_not_the_indices():
    full, half = (Workload(300, 200, 5000, {"visual": 8}, element_bytes=b) for b in (4, 2))
    at = [stages("dragon", w).loc["convolution", "backward_bytes"] for w in (full, half)]
    indices = 2 * 2 * 2 * 5000 * 8  # two layers, two index arrays over both directions, 8 bytes
    assert at[0] - indices == pytest.approx(2 * (at[1] - indices))


def test_the_roofline_takes_the_larger_of_moving_and_computing():
    costs = pd.DataFrame(
        {"forward_bytes": [8e6], "backward_bytes": [0.0], "forward_flops": [1e6], "backward_flops": [6e6]}
    )
    # 8 MB at 1 GB/s is 8 ms, 1 Mflop at 2 Gflop/s 0.5 ms: forward 8; backward 6 Mflop: 3 ms
    assert roofline_ms(costs, bandwidth_gb_s=1.0, rate_gflop_s=2.0)[0] == pytest.approx(11.0)


def test_the_diagnosed_step_moves_hundreds_of_gigabytes_most_of_them_in_attention():
    diagnosed = Workload(14_127, 99_596, 4_082_045, {"visual": 1024, "textual": 384}, batch_size=4096)
    costs = stages("grcn", diagnosed)
    moved = costs["forward_bytes"] + costs["backward_bytes"]
    assert 3e11 < moved.sum() < 6e11
    assert moved["routing"] + moved["final_attention"] > 0.75 * moved.sum()


@pytest.mark.parametrize(("model", "field"), [("mf", {}), ("grcn", {"n_users": 0}), ("grcn", {"batch_size": 2.5})])
def test_bad_input_is_refused(model, field):
    with pytest.raises(InputError):
        step_cost(model, Workload(**({"n_users": 3, "n_items": 2, "n_edges": 4} | field)))
