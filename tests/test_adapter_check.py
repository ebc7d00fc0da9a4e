"""torch-tb-profiler's sums, read through the adapter, against the trace file's own durations."""

import torch
from torch import nn
from torch.profiler import record_function

from mmrec_helpers.profiling import tensorboard as tb_adapter
from mmrec_helpers.profiling import tensorboard_check as adapter_check
from mmrec_helpers.profiling.tensorboard_check import adapter_against_trace
from mmrec_helpers.profiling.traces import record_trace


def a_trace(autocast=True):
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 1))
    x = torch.randn(50, 20)

    def step(k):
        with record_function("loss"), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = torch.cat((model(x), x.mean(dim=1, keepdim=True))).square().mean()
        loss.backward()

    return record_trace(step, steps=2)


def test_every_operator_and_region_agrees():
    table = adapter_against_trace(a_trace())
    assert {"loss", "aten::addmm", "aten::cat", "aten::linear", "aten::mean"} <= set(table["name"])
    assert (table["difference_ms"] == 0).all()
    assert table["trace_ms"].is_monotonic_decreasing


def test_a_plugin_that_drops_regions_or_time_shows(monkeypatch):
    trace = a_trace()
    as_it_is = adapter_check.read_tb_profiler

    def losing(content):
        tables = as_it_is(content)
        kept = tables.operators[tables.operators["name"] != "loss"]
        kept.loc[kept["name"] == "aten::addmm", "host_total_ms"] *= 0.9
        return tb_adapter.TbTables(kept, tables.kernels, tables.overview_ms, tables.steps)

    monkeypatch.setattr(adapter_check, "read_tb_profiler", losing)
    table = adapter_against_trace(trace).set_index("name")
    assert set(table.index[table["difference_ms"] > 0]) == {"loss", "aten::addmm"}
    assert table.loc["loss", "difference_ms"] == table.loc["loss", "trace_ms"]
