"""Traces: small files that say nothing of the machine, and torch-tb-profiler's tables against sums from the trace."""

import gzip
import json
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.profiler import record_function

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling import tensorboard as tb_adapter
from mmrec_helpers.profiling.tensorboard import (
    TbTables,
    adapter_against_trace,
    normalise_for_tb_plugin,
    read_tb_profiler,
    write_tensorboard,
)
from mmrec_helpers.profiling.traces import record_trace, write_trace


@pytest.fixture(scope="module")
def trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(50, 20)

    def step(k):
        with record_function("routing.visual.0"):
            loss = model(x).square().mean()
        loss.backward()
        optimizer.step()

    return record_trace(step, steps=2)


def spans(trace, *categories):
    return [e for e in trace["traceEvents"] if e.get("ph") == "X" and e.get("cat") in categories]


def unchanged(trace):
    """What torch-tb-profiler makes of a trace as it is."""
    return tb_adapter._parse(trace)


def test_regions_and_operators_equal_sums_from_the_trace(trace):
    direct = defaultdict(float)
    for event in spans(trace, "cpu_op", "user_annotation"):
        direct[event["name"]] += event["dur"] / 1e3
    tables = read_tb_profiler(trace)
    operators = tables.operators.set_index("name")
    # Operators that call one of their own name count once there and twice in the plain sum.
    for name in (
        "routing.visual.0",
        "aten::addmm",
        "aten::mm",
        "aten::relu",
        "aten::linear",
        "aten::threshold_backward",
    ):
        assert operators.loc[name, "host_total_ms"] == pytest.approx(direct[name], abs=0.005), name
    assert operators.loc["routing.visual.0", "calls"] == 2
    assert operators.loc["aten::linear", "calls"] == 4
    steps_ms = sum(e["dur"] for e in spans(trace, "user_annotation") if e["name"].startswith("ProfilerStep#")) / 1e3
    assert tables.overview_ms["Total"] == pytest.approx(steps_ms / 2, rel=1e-3)


def test_without_normalising_regions_vanish(trace):
    names = {op.name for op in unchanged(trace).op_list_groupby_name}
    assert "aten::addmm" in names
    assert "routing.visual.0" not in names


def host(name, start, end, category="cpu_op", **args):
    event = {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": 9e12 + start, "dur": end - start}
    return event | {"args": args}


def cuda_trace():
    launched = {"device": 0, "stream": 7, "grid": [1, 1, 1], "block": [1, 1, 1]}
    events = [
        host("ProfilerStep#1", 0, 1000, "user_annotation", **{"External id": 1}),
        host("final_attention.visual", 0, 600, "user_annotation", **{"External id": 2}),
        host("aten::mul", 10, 200.0006, **{"External id": 3}),
        host("cudaLaunchKernel", 20, 30, "cuda_runtime", correlation=71, **{"External id": 3}),
        host("aten::add", 200, 400, **{"External id": 4}),
        host("cudaLaunchKernel", 210, 220, "cuda_runtime", correlation=72, **{"External id": 4}),
        host("cuLaunchKernelEx", 230, 240, "cuda_driver", correlation=73),
        host("mul_kernel", 50, 350, "kernel", correlation=71, **launched),
        host("add_kernel", 350, 450, "kernel", correlation=72, **launched),
        host("add_kernel", 450, 500, "kernel", correlation=73, **launched),
    ]
    for event in events[-3:]:
        event.update(pid=0, tid=7)
    return {"traceEvents": events, "deviceProperties": [{"id": 0, "computeMajor": 9}]}


def test_device_times_equal_sums_from_the_trace():
    tables = read_tb_profiler(cuda_trace())
    operators = tables.operators.set_index("name")
    assert operators.loc["aten::mul", "device_self_ms"] == pytest.approx(0.3)
    assert operators.loc["aten::add", "device_self_ms"] == pytest.approx(0.15)
    assert operators.loc["final_attention.visual", "device_total_ms"] == pytest.approx(0.45)
    assert operators.loc["aten::add", "host_self_ms"] == pytest.approx(0.18, abs=1e-5)
    kernels = tables.kernels.set_index("name")
    assert kernels.loc["add_kernel", ["calls", "total_ms"]].tolist() == pytest.approx([2, 0.15])
    assert tables.overview_ms["Kernel"] == pytest.approx(0.45)


def test_without_normalising_device_times_are_zero():
    data = unchanged(cuda_trace())
    assert sum(op.device_duration for op in data.op_list_groupby_name) == 0


def test_a_trace_stays_as_it_was(trace):
    before = json.dumps(trace)
    read_tb_profiler(trace)
    assert json.dumps(trace) == before


def test_files_are_compressed_and_say_nothing_of_the_machine(trace, tmp_path):
    path = write_trace(trace, tmp_path / "deep" / "trace.json.gz")
    content = json.loads(gzip.decompress(path.read_bytes()))
    assert len(content["traceEvents"]) == len(trace["traceEvents"])
    assert not {"host_name", "traceName"} & content.keys()
    assert path.stat().st_size < 200_000
    plain = write_trace(trace, tmp_path / "trace.json")
    assert json.loads(plain.read_bytes()) == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "trace.json"]


OLD = '{"traceEvents": []}'


def test_a_file_that_cannot_be_written_leaves_the_old_one(trace, tmp_path, monkeypatch):
    path = tmp_path / "trace.json"
    path.write_text(OLD)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_trace(trace, path)
    assert path.read_text() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_tensorboard_finds_a_trace_with_regions(trace, tmp_path):
    path = write_tensorboard(trace, tmp_path, worker="grcn")
    assert path.name == "grcn.1.pt.trace.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    categories = {e.get("cat") for e in content["traceEvents"]}
    assert not categories & {"user_annotation", "cuda_runtime", "fwdbwd"}
    assert "routing.visual.0" in {e["name"] for e in spans(content, "cpu_op")}
    assert normalise_for_tb_plugin(content)["traceEvents"]


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="steps"):
        record_trace(lambda k: None, steps=0)


def cast_trace():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 1))
    x = torch.randn(50, 20)

    def step(k):
        with record_function("loss"), torch.autocast("cpu", dtype=torch.bfloat16):
            loss = torch.cat((model(x), x.mean(dim=1, keepdim=True))).square().mean()
        loss.backward()

    return record_trace(step, steps=2)


def test_every_operator_and_region_agrees():
    table = adapter_against_trace(cast_trace())
    assert {"loss", "aten::addmm", "aten::cat", "aten::linear", "aten::mean"} <= set(table["name"])
    assert (table["difference_ms"] == 0).all()
    assert table["trace_ms"].is_monotonic_decreasing


def test_a_plugin_that_drops_regions_or_time_shows(monkeypatch):
    trace = cast_trace()
    as_it_is = tb_adapter.read_tb_profiler

    def losing(content):
        tables = as_it_is(content)
        kept = tables.operators[tables.operators["name"] != "loss"]
        kept.loc[kept["name"] == "aten::addmm", "host_total_ms"] *= 0.9
        return TbTables(kept, tables.kernels, tables.overview_ms)

    monkeypatch.setattr(tb_adapter, "read_tb_profiler", losing)
    table = adapter_against_trace(trace).set_index("name")
    assert set(table.index[table["difference_ms"] > 0]) == {"loss", "aten::addmm"}
    assert table.loc["loss", "difference_ms"] == table.loc["loss", "trace_ms"]


def test_a_trace_replaces_nothing_but_a_trace(tmp_path):
    path = write_trace({"traceEvents": []}, tmp_path / "a.json.gz")
    assert write_trace({"traceEvents": [{}]}, path) == path
    path.write_text("my own")
    with pytest.raises(InputError, match="exists and is no trace"):
        write_trace({"traceEvents": []}, path)
    assert path.read_text() == "my own"
