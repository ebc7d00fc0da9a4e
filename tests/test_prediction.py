"""The prediction for GPUs: arithmetic by hand, what must make a step longer, and that a prediction decides nothing."""

import pandas as pd
import pytest
import torch

from mmrec_helpers.claims import decide, evidence, ledger_table
from mmrec_helpers.claims.predicted import predicted_verdicts
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments import prediction
from mmrec_helpers.experiments.roofline import workload_of
from mmrec_helpers.models import build
from mmrec_helpers.models.step_cost import Workload, step_cost, trained_parameters

DIAGNOSED = Workload(14_127, 99_596, 4_082_045, {"visual": 1024, "textual": 384}, batch_size=4096)
LAUNCHES = {"routing": {"forward": 30.0, "backward": 60.0}, "features": {"forward": 10.0, "backward": 20.0}}
DEVICE = {
    "device": "made up",
    "memory_gb": 1,
    "memory_gb_s": 1000.0,
    "l2_mb": 1.0,
    "l2_gb_s": 4000.0,
    "pcie_gb_s": 10.0,
}
DEVICE |= {"float32_gflop_s": 1e4, "tensor_gflop_s": 1e5, "launch_us": 4.0, "waited_us": 10.0}


def one_stage(**values):
    """10 GB, of which 2 are gathered and 1 is scattered, 2000 Gflop and 5 launches, all of it forward."""
    names = ("bytes", "flops", "gathered_bytes", "scattered_bytes", "launches")
    row = {"stage": "only", "table_bytes": 5e5, "tensor": False, "copied_bytes": 0.0, "host_ms": 0.0}
    row |= {f"backward_{name}": 0.0 for name in names}
    row |= dict(zip((f"forward_{name}" for name in names), (10e9, 2e12, 2e9, 1e9, 5.0), strict=True))
    return pd.DataFrame([row | values])


def predicted(device=DEVICE, **values):
    return tuple(prediction.predict_stages(one_stage(**values), device).loc[0, ["least_ms", "most_ms"]])


def test_both_bounds_by_hand():
    # least: the operations (2000 Gflop at 10 Tflop/s: 200 ms); most: 17 GB at 500 GB/s, 400 ms and 5 x 10 us
    assert predicted() == pytest.approx((200.0, 34.0 + 400.0 + 0.05))
    assert predicted(tensor=True) == pytest.approx((20.0, 34.0 + 40.0 + 0.05))
    assert predicted(forward_flops=0.0)[0] == pytest.approx(7.0)  # what is gathered or scattered lies in the cache
    assert predicted(forward_flops=0.0, table_bytes=2e6)[0] == pytest.approx(10.0)  # the table does not fit there
    assert predicted(DEVICE | {"l2_gb_s": 0.0}, forward_flops=0.0)[0] == pytest.approx(10.0)
    assert predicted(forward_flops=0.0, forward_launches=5000.0)[0] == pytest.approx(20.0)


def test_copies_and_the_host_by_hand():
    quick = {"forward_flops": 0.0, "forward_launches": 0.0}
    assert predicted(**quick, copied_bytes=1e9) == pytest.approx((7.0 + 100.0, 34.0 + 200.0))
    assert predicted(**quick, host_ms=50.0) == pytest.approx((7.0 + 25.0, 34.0 + 50.0))
    before = pd.concat([one_stage(forward_flops=0.0), one_stage(**quick, host_ms=50.0)], ignore_index=True)
    least = prediction.predict_stages(before, DEVICE)["least_ms"]
    assert least.tolist() == pytest.approx([7.0, 7.0 + 25.0 - 7.0])  # beside the first stage the host is free


@pytest.mark.parametrize(("name", "settings"), prediction.CASES)
def test_every_case_has_a_range_on_every_device_and_none_comes_from_nothing(name, settings):
    costs = prediction.case_costs(name, DIAGNOSED, LAUNCHES, 100.0, prediction.SETTINGS[settings])
    for device in prediction.devices():
        table = prediction.predict_stages(costs, device).set_index("stage")
        assert (table["least_ms"] <= table["most_ms"]).all()
        assert table.loc["features", "least_ms"] > 0
        assert device["source"]
        assert device["memory_gb_s"] > 0


def step_ms(name, settings="plain", workload=DIAGNOSED):
    costs = prediction.case_costs(name, workload, LAUNCHES, 100.0, prediction.SETTINGS[settings])
    return prediction.predict_stages(costs, DEVICE)[["least_ms", "most_ms"]].sum()


def test_what_makes_a_step_longer():
    assert (step_ms("grcn", "checkpointing") > step_ms("grcn")).all()
    assert (step_ms("grcn", "features-on-host") > step_ms("grcn")).all()
    assert (step_ms("dragon", "mixed-precision") < step_ms("dragon")).all()
    assert (step_ms("grcn-1", "diagnosed") < step_ms("grcn", "diagnosed")).all()
    assert (5 * step_ms("grcn-fused") < step_ms("grcn")).all()


def test_gathered_and_scattered_bytes_are_parts_of_the_bytes():
    for model in ("grcn", "dragon"):
        costs = step_cost(model, DIAGNOSED)
        for phase in ("forward", "backward"):
            parts = costs[f"{phase}_gathered_bytes"] + costs[f"{phase}_scattered_bytes"]
            assert (parts <= costs[f"{phase}_bytes"]).all()
            assert parts.sum() > 0


@pytest.mark.parametrize("name", ["grcn", "dragon"])
def test_parameters_are_those_of_the_model_that_get_a_gradient(name):
    data = synthesize("embedded", scale=0.1)
    model = build(name, data, backend="sparse")
    model.loss(data_batch(data)).backward()
    trained = sum(p.numel() for p in model.parameters() if p.grad is not None)
    assert trained_parameters(name, workload_of(data, 8)) == trained


def data_batch(data):
    users, items = (torch.from_numpy(row[:8].copy()) for row in data.train)
    return torch.stack((users, items, items.flip(0)))


def test_parameters_of_the_diagnosed_grcn_are_those_in_its_public_log():
    assert trained_parameters("grcn", DIAGNOSED) == 9_404_214


def test_launches_are_counted_per_stage():
    three, one = (prediction.count_launches(name) for name in ("grcn", "grcn-1"))
    assert three["routing"]["forward"] == 3 * one["routing"]["forward"] > 0
    assert three["final_attention"] == one["final_attention"]
    assert three["final_attention"]["backward"] > 10


def test_the_committed_record_was_made_without_a_gpu_and_reaches_no_verdict():
    record = prediction.committed_record()
    assert record["provenance"]["device"]["type"] == "cpu"
    assert record["content"]["workload"]["n_edges"] == 4_082_045
    assert {row["device"] for row in record["content"]["steps"]} == {d["device"] for d in prediction.devices()}
    records = evidence.committed_records()
    assert "prediction" not in {r["kind"] for r in records}
    assert decide(records) == decide([*records, record | {"source": None}])


def test_the_devices_are_those_that_the_committed_prediction_was_made_with():
    kept = prediction.committed_record()["content"]["devices"]
    figures = [{name: value for name, value in row.items() if name != "source"} for row in prediction.devices()]
    assert figures == [{name: value for name, value in row.items() if name != "source"} for row in kept]


def test_predictions_stand_beside_undecided_claims_alone():
    told = predicted_verdicts(prediction.committed_record()["content"])
    assert set(told) == {"time.grcn", "memory.amp", "memory.cpu_features", "memory.no_time"}
    verdicts = decide(evidence.committed_records())
    table = ledger_table(verdicts, told | {"fix.heads": "not to be shown"}).set_index("claim_id")
    assert table.loc["time.grcn", "predicted"] == told["time.grcn"]
    assert table.loc["fix.heads", "verdict"] != "undecided"
    assert table.loc["fix.heads", "predicted"] == ""
    assert "predicted" not in ledger_table(verdicts)
    assert predicted_verdicts({}) == {}


def test_a_claim_of_time_is_refuted_only_where_every_device_excludes_it():
    content = prediction.committed_record()["content"]
    slow = [row for row in content["steps"] if row["device"] in ("H100", "H200")]
    assert predicted_verdicts(content)["time.grcn"].startswith("open")
    assert predicted_verdicts({"steps": slow})["time.grcn"].startswith("refuted")


def steps_record(device, batch_size=4096):
    content = {"batch_size": batch_size, "variants": [{"variant": "grcn", "step_ms": 100.0}]}
    data = {"n_users": 14_127, "n_items": 99_596}
    return {"content": content, "provenance": {"device": {"name": device}, "data": data}}


def test_a_measured_step_is_set_beside_its_own_device_and_workload():
    content = prediction.committed_record()["content"]
    found = prediction.measured_beside(content, [steps_record("NVIDIA H100 80GB HBM3")])
    assert found[["device", "variant", "settings"]].values.tolist() == [["H100", "grcn", "plain"]]
    assert prediction.measured_beside(content, [steps_record("NVIDIA A100-SXM4-80GB")])["device"].tolist() == [
        "A100 80 GB"
    ]
    others = [steps_record("AMD EPYC"), steps_record("NVIDIA H100 80GB HBM3", batch_size=2048)]
    assert prediction.measured_beside(content, others).empty


@pytest.mark.parametrize(("measured", "factor"), [(5.0, 1.0), (30.0, 3.0), (1.0, 0.5)])
def test_how_far_outside_its_range_a_time_lies(measured, factor):
    assert prediction.outside({"least_ms": 2.0, "most_ms": 10.0, "measured_ms": measured}) == pytest.approx(factor)
