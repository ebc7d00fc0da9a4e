"""The most expensive operators of each stage, and the device's launches and idle time, from hand-made traces."""

import pytest

from mmrec_helpers.pages.display import device_sentence
from mmrec_helpers.profiling.regions import device_use, profile_of_trace, top_operators
from tests.test_regions import host, kernel, launch, region

FLOATS = {"Input Dims": [[1000, 64], [1000, 64]], "Input type": ["float", "float"]}


def a_step():
    return [
        region("ProfilerStep#0", 0, 1000),
        region("routing.visual.0", 0, 400),
        host("aten::mul", 10, 210, **FLOATS),
        host("aten::add", 210, 260, **FLOATS),
        region("routing.textual.0", 400, 800),
        host("aten::mul", 410, 510, **FLOATS),
        host("aten::sort", 510, 520),
        region("loss", 800, 1000),
        host("aten::mean", 801, 805),
    ]


def test_the_most_expensive_operators_of_each_stage_with_what_they_move():
    table = top_operators(profile_of_trace({"traceEvents": a_step()}), top=2)
    assert table["stage"].tolist() == ["routing", "routing"]  # the loss is below a hundredth of the step
    first = table.iloc[0]
    assert (first["operator"], first["calls"]) == ("mul", 2)
    assert first["ms"] == pytest.approx(0.3)
    assert first["share"] == pytest.approx(0.3)
    assert first["megabytes"] == pytest.approx(2 * 3 * 64_000 * 4 / 1e6)  # two read and one written, twice
    assert first["megaflop"] == pytest.approx(2 * 0.064)
    assert first["gbytes_s"] == pytest.approx(1.536 / 0.3)
    assert top_operators(profile_of_trace({"traceEvents": a_step()}), top=1, least_share=0.0)["stage"].tolist() == [
        "routing",
        "loss",
    ]


def test_launches_and_idle_time_on_a_device():
    events = [
        region("ProfilerStep#0", 0, 1000),
        region("routing.visual.0", 0, 900),
        host("aten::mul", 10, 200, **FLOATS),
        launch(20, 30, 1),
        host("aten::add", 200, 400, **FLOATS),
        launch(210, 220, 2),
        kernel("mul_kernel", 100, 400, 1),
        kernel("add_kernel", 600, 700, 2),
    ]
    profiles = {"GRCN": profile_of_trace({"traceEvents": events}, device="cuda")}
    use = device_use(profiles)
    row = use.iloc[0]
    assert (row["launches_per_step"], row["busy_ms"], row["idle_ms"]) == pytest.approx((2, 0.4, 0.6))
    assert "GRCN launches 2 kernels per step and leaves the device idle for 60%" in device_sentence(use)
    assert top_operators(profiles["GRCN"])["ms"].tolist() == pytest.approx([0.3, 0.1])  # device time, not the host's
    timeline = profiles["GRCN"].device_timeline
    assert timeline["name"].tolist() == ["mul_kernel", "add_kernel"]
    assert timeline["start_ms"].tolist() == pytest.approx([0.1, 0.6])


def test_copies_from_the_host_are_counted_by_region():
    events = [
        region("ProfilerStep#0", 0, 1000),
        region("copy.features", 0, 900),
        launch(20, 30, 1),
        kernel("Memcpy HtoD (Pinned -> Device)", 100, 400, 1) | {"cat": "gpu_memcpy"},
    ]
    events[-1]["args"]["bytes"] = 4096
    copies = profile_of_trace({"traceEvents": events}, device="cuda").copies
    assert copies.to_dict("records") == [
        {"region": "copy.features", "copy": "Memcpy HtoD (Pinned -> Device)", "calls": 1.0, "bytes": 4096.0}
    ]


def test_on_a_cpu_nothing_is_launched_and_that_is_said():
    use = device_use({"GRCN": profile_of_trace({"traceEvents": a_step()})})
    assert use.drop(columns="model").isna().all(axis=None)
    assert "not applicable" in device_sentence(use)
