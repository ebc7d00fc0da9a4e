"""The stages from the reference to the fast step: counted costs, and gains from the account."""

import pytest

from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments.derivation import CHAINS, derivation_table, variant_cost
from mmrec_helpers.models.step_cost import Workload, step_cost

WORKLOAD = Workload(100, 50, 1000, {"visual": 32, "textual": 16})


def total(variant, field="bytes"):
    cost = variant_cost(variant, WORKLOAD, parameters=1000)
    return (cost[f"forward_{field}"] + cost[f"backward_{field}"]).sum()


def test_counted_bytes():
    adam = 4 * 18 * 1000
    reference = step_cost("grcn", WORKLOAD)
    expected = (reference["forward_bytes"] + reference["backward_bytes"]).sum() + adam
    assert total("grcn") == total("grcn-live") == pytest.approx(expected)
    shipped = [total(name) for name in CHAINS["as shipped"]]
    assert shipped == sorted(shipped, reverse=True)
    assert total("grcn-fused-plain-adam") - total("grcn-fused") == pytest.approx(4 * 11 * 1000)
    assert total("grcn-live-fused") == pytest.approx(total("grcn-fused"))  # the iterations stay in the cache
    assert total("grcn-live-fused", "flops") > total("grcn-fused", "flops")


def test_gains_are_quotients_of_the_accounts_steps():
    steps_ms = {"grcn": 80.0, "grcn-0": 50.0, "grcn-sparse": 20.0, "grcn-fused": 8.0, "grcn-live": 90.0}
    rows = [
        {"variant": name, "label": name, "step_ms": ms, "ratio": {"median": 1, "q1": 1, "q3": 1, "rounds": 1}}
        | dict.fromkeys(("output_difference", "loss_difference", "gradient_difference"), 1e-16)
        for name, ms in steps_ms.items()
    ]
    roofline = {"copy_gb_s": 10.0, "matmul_gflop_s": 100.0}
    data = synthesize("embedded", scale=0.1)
    steps = {"variants": rows, "batch_size": 64, "control": {"noise": 0.01}}
    table = derivation_table(data, steps, roofline).set_index("variant")
    assert list(table.index) == ["grcn", "grcn-0", "grcn-sparse", "grcn-fused", "grcn-live"]
    assert table["gain"].dropna().tolist() == pytest.approx([1.6, 2.5, 2.5])
    assert table.loc["grcn-fused", "total_gain"] == pytest.approx(10)
    assert table["least_ms"].gt(0).all()
    assert table["difference"].isna().to_dict() == {name: name in ("grcn", "grcn-live") for name in table.index}
