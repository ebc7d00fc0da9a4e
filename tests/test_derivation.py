"""The stages from the reference to the fast step: same numbers, counted costs, gains; and the table of curves."""

import json

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments import derivation
from mmrec_helpers.experiments.derivation import STAGES, measure_derivation, stage_cost
from mmrec_helpers.experiments.same_curve_table import same_curve_table
from mmrec_helpers.models.step_cost import Workload, step_cost
from mmrec_helpers.plots import stage_gains

matplotlib.use("Agg")
WORKLOAD = Workload(100, 50, 1000, {"visual": 32, "textual": 16})
DATA = synthesize("embedded", scale=0.1)


def total(stage, **options):
    cost = stage_cost(stage, WORKLOAD, parameters=1000)
    return (cost["forward_bytes"] + cost["backward_bytes"]).sum()


@pytest.fixture(scope="module")
def content():
    return measure_derivation(DATA, batch_size=256, repeats=2)


def test_every_stage_computes_the_same_and_is_timed(content):
    stages = pd.DataFrame(content["stages"])
    assert list(stages["stage"]) == list(STAGES)
    assert stages["largest_difference"].between(0, derivation.ROUNDING).all()
    assert (stages["median_ms"] > 0).all()
    assert stages["gain"].isna().sum() == stages["routing"].nunique() == 2
    figure = Figure()
    axes = stage_gains(figure.subplots(), stages)
    assert len(axes.get_yticklabels()) == len(STAGES)


def test_a_stage_that_computes_something_else_is_refused(monkeypatch):
    wrong = dict(STAGES) | {"as shipped: fused": ({"backend": "fused", "routing": "live"}, False)}
    monkeypatch.setattr(derivation, "STAGES", wrong)
    with pytest.raises(ArithmeticError, match="as shipped: fused: loss or gradients differ by"):
        measure_derivation(DATA, batch_size=256, repeats=1)


def test_counted_bytes():
    adam = 4 * 18 * 1000
    reference = step_cost("grcn", WORKLOAD)
    expected = (reference["forward_bytes"] + reference["backward_bytes"]).sum() + adam
    assert total("as shipped: reference") == total("live: reference") == pytest.approx(expected)
    shipped = [total(stage) for stage in STAGES if stage.startswith("as shipped")]
    assert shipped == sorted(shipped, reverse=True)
    assert total("as shipped: fused") - total("as shipped: fused Adam") == pytest.approx(4 * 11 * 1000)
    assert total("live: fused, fused Adam") == pytest.approx(total("as shipped: fused Adam"))  # in the cache
    flops = [stage_cost(f"{name}: fused{more}", WORKLOAD, 0)["forward_flops"].sum() for name, more in
             (("as shipped", ""), ("live", ", fused Adam"))]  # fmt: skip
    assert flops[1] > flops[0]


def test_the_table_of_curves(tmp_path):
    assert same_curve_table(tmp_path / "none.json")[0].empty
    arm = {
        "arm": "DRAGON",
        "epochs": 2,
        "loss_differences": [1e-7, 3e-6],
        "metric_differences": [],
        "runs": {"reference": {"epoch_s": [4.0, 2.0]}, "fused": {"epoch_s": [2.0, 1.0]}},
        "time_ratio": 2.0,
    }
    record = {"schema": 1, "kind": "same_curve", "provenance": {"data": {"name": "toy"}}, "content": {"arms": [arm]}}
    (tmp_path / "curves.json").write_text(json.dumps(record))
    table, caption = same_curve_table(tmp_path / "curves.json")
    assert table.loc[0, ["largest difference", "reference, s", "times faster"]].tolist() == [3e-6, 6.0, 2.0]
    assert "toy" in caption
