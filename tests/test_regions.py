"""Region tables: every microsecond of a step has one place, on hand-made traces and on real ones."""

import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.opcost import operator_cost
from mmrec_helpers.profiling.regions import IDLE, profile_of_trace, profile_steps

MAIN, ENGINE = 10, 11


def host(name, start, end, thread=MAIN, category="cpu_op", **args):
    named = {"sequence": "Sequence number", "forward_thread": "Fwd thread id", "correlation": "correlation"}
    args = {named.get(key, key): value for key, value in args.items()}
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 1,
        "tid": thread,
        "ts": 5000 + start,
        "dur": end - start,
        "args": args,
    }


def region(name, start, end, thread=MAIN):
    return host(name, start, end, thread, "user_annotation")


def node(start, end, thread=MAIN, **args):
    return host("autograd::engine::evaluate_function: SomeBackward0", start, end, thread, forward_thread=1, **args)


def kernel(name, start, end, correlation):
    return host(name, start, end, thread=7, category="kernel", correlation=correlation, stream=7)


def launch(start, end, correlation, thread=MAIN):
    return host("cudaLaunchKernel", start, end, thread, "cuda_runtime", correlation=correlation)


def table(events, **options):
    profile = profile_of_trace({"traceEvents": events}, **options)
    return profile, profile.regions.set_index(["region", "phase"])


def cpu_step():
    """A step of 1000 us on one thread; the comment says how much of each span is its own."""
    return [
        region("ProfilerStep#0", 0, 1000),  # 0-10, 950-1000
        region("sampling", 10, 110),  # 100
        region("forward", 110, 500),  # 110-120, 480-500
        region("routing.visual.0", 120, 320),  # 120-130, 310-320 and both operators
        host("aten::mul", 130, 230, sequence=4),
        host("aten::add", 230, 310, sequence=5),
        region("loss", 320, 480),  # all 160, and its operator
        host("aten::mean", 330, 400, sequence=6),
        region("backward", 500, 900),  # 500-510, 890-900
        node(510, 560, sequence=6),  # of the loss
        node(560, 700, sequence=5),  # of routing: 560-570, 690-700 backward; 570-690 below
        host("aten::mul", 570, 640, sequence=8),  # run again: it builds a graph
        host("aten::add", 650, 690, sequence=9),  # and again, with Python between the two
        node(700, 860, sequence=4),  # of routing
        node(860, 890),  # gradient accumulation, fed by the node before it
        region("Optimizer.step#Adam.step", 900, 950),
    ]


def test_a_step_on_one_thread_adds_up_by_hand():
    profile, regions = table(cpu_step())
    expected = {
        ("sampling", "other"): (100, 1),
        ("routing.visual.0", "forward"): (200, 1),
        ("loss", "forward"): (160, 1),
        ("loss", "backward"): (50, 1),
        ("routing.visual.0", "recompute"): (120, 1),
        ("routing.visual.0", "backward"): (20 + 160 + 30, 3),
        ("optimizer", "other"): (50, 1),
        ("unattributed", "forward"): (30, 0),
        ("unattributed", "backward"): (20, 0),
        ("unattributed", "other"): (60, 0),
    }
    got = {key: (round(row.self_ms * 1e3, 6), row.calls) for key, row in regions.iterrows()}
    assert got == expected
    assert regions["ms"].sum() == pytest.approx(1)
    assert profile.unattributed_share == pytest.approx(0.11)


def test_without_sequence_numbers_backward_is_not_guessed():
    events = cpu_step()
    for event in events:
        event["args"].pop("Sequence number", None)
    _, regions = table(events)
    assert ("loss", "backward") not in regions.index
    assert regions.loc[("unattributed", "backward"), "self_ms"] == pytest.approx(0.4)


def test_an_inner_region_run_again_keeps_its_name():
    events = [*cpu_step(), region("confidence", 565, 645)]
    _, regions = table(events)
    assert regions.loc[("confidence", "recompute"), ["self_ms", "calls"]].tolist() == pytest.approx([0.080, 1])


def cuda_step():
    """A step of 1000 us; the engine's thread evaluates nodes while the main thread waits in backward."""
    return [
        region("ProfilerStep#0", 0, 1000),
        region("forward", 0, 300),
        region("final_attention.visual", 0, 200),
        host("aten::mul", 0, 100, sequence=5),
        launch(10, 20, 1),
        region("loss", 200, 300),
        host("aten::mean", 200, 290, sequence=6),
        launch(210, 220, 2),
        region("backward", 300, 800),
        node(320, 400, ENGINE, sequence=6),
        launch(330, 340, 3, ENGINE),
        node(420, 700, ENGINE, sequence=5),
        host("aten::mul", 430, 500, ENGINE, sequence=1),
        launch(440, 450, 4, ENGINE),
        launch(600, 610, 5, ENGINE),
        host("gather", 0, 900, thread=99),  # a loader's thread beside the step
        kernel("mul_kernel", 50, 250, 1),
        kernel("mean_kernel", 250, 350, 2),
        kernel("mean_backward", 350, 450, 3),
        kernel("mul_kernel", 460, 560, 4),
        kernel("mul_backward", 620, 820, 5),
        kernel("of another step", 1500, 1600, 77),
    ]


def test_device_time_follows_the_launch_into_region_and_phase():
    profile, regions = table(cuda_step(), device="cuda")
    device_us = (regions["device_ms"] * 1e3).round(6)
    assert device_us[("final_attention.visual", "forward")] == 200
    assert device_us[("loss", "forward")] == 100
    assert device_us[("loss", "backward")] == 100
    assert device_us[("final_attention.visual", "recompute")] == 100
    assert device_us[("final_attention.visual", "backward")] == 200
    assert profile.launches_per_step == 5
    assert regions.loc[(IDLE, "other"), "ms"] == pytest.approx(0.3)
    assert regions["ms"].sum() == pytest.approx(1)
    assert profile.kernels.set_index(["phase", "kernel"]).loc[("recompute", "mul_kernel"), "device_ms"].item() == 0.1
    assert profile.operators.set_index(["phase", "operator"]).loc[("recompute", "aten::mul"), "device_ms"].item() == 0.1


def test_waiting_for_the_engine_is_counted_once():
    _, regions = table(cuda_step(), device="cuda")
    host_us = (regions["self_ms"] * 1e3).round(6)
    assert host_us[("final_attention.visual", "backward")] == 210
    assert host_us[("final_attention.visual", "recompute")] == 70
    assert host_us[("loss", "backward")] == 80
    assert host_us[("unattributed", "backward")] == 500 - 360
    assert host_us.sum() == pytest.approx(1000)


def test_overlapping_kernels_do_not_count_twice():
    _, regions = table([*cuda_step(), kernel("mul_kernel", 100, 300, 1)], device="cuda")
    assert regions["ms"].sum() == pytest.approx(1)
    assert regions.loc[("final_attention.visual", "forward"), "device_ms"] == pytest.approx(0.4)


def steps_of(*loss_us):
    """Steps in which routing takes 100 us and the loss so many."""
    events, at = [], 0
    for k, us in enumerate(loss_us):
        events += [region(f"ProfilerStep#{k}", at, at + 100 + us), region("routing.visual.0", at, at + 100)]
        events += [region("loss", at + 100, at + 100 + us), launch(at + 10, at + 20, k), kernel("k", at, at + us, k)]
        at += 100 + us
    return events


@pytest.mark.parametrize("disturbed", [0, 1, 2])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_tables_and_the_timeline_are_those_of_the_median_step_whichever_was_disturbed(disturbed, device):
    loss_us = [300, 300, 300]
    loss_us[disturbed] = 2600
    events = [e for e in steps_of(*loss_us) if device == "cuda" or e["cat"] != "kernel"]
    profile, regions = table(events, device=device)
    assert regions["self_ms"].groupby("region").sum()["loss"] == pytest.approx(0.3)
    assert (regions["ms"].sum(), profile.launches_per_step) == (pytest.approx(0.4), 1)
    assert profile.profiled_step_ms[profile.step] == pytest.approx(0.4)
    loss = profile.timeline[profile.timeline["name"] == "loss"]
    assert (loss["start_ms"].tolist(), loss["ms"].tolist()) == ([pytest.approx(0.1)], [pytest.approx(0.3)])


def test_where_most_steps_are_long_the_tables_show_a_long_one():
    profile, regions = table(steps_of(300, 2600, 2600))
    assert profile.profiled_step_ms[profile.step] == pytest.approx(2.7)
    assert regions["self_ms"].groupby("region").sum()["loss"] == pytest.approx(2.6)


class Toy(nn.Module):
    """Two stages that sleep unequally in forward, one of them checkpointed, with sleeping backwards."""

    def __init__(self, reentrant):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.reentrant = reentrant

    def loss(self):
        with record_function("features.visual"):
            x = _Nap.apply(self.weight, 0.004, 0.008)
        with record_function("final_attention.visual"):
            x = checkpoint(lambda value: _Nap.apply(value * 2, 0.006, 0.003), x, use_reentrant=self.reentrant)
        with record_function("loss"):
            return x.sum()


class _Nap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, forward_s, backward_s):
        time.sleep(forward_s)
        ctx.save_for_backward(x)
        ctx.backward_s = backward_s
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        _ = ctx.saved_tensors
        time.sleep(ctx.backward_s)
        return grad, None, None


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_real_step_finds_its_naps(reentrant, tmp_path):
    model = Toy(reentrant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(k):
        with record_function("sampling"):
            time.sleep(0.002)
        with record_function("forward"):
            loss = model.loss()
        with record_function("backward"):
            loss.backward()
        with record_function("optimizer"):
            optimizer.step()

    profile = profile_steps(step, steps=2, trace_path=tmp_path / "trace.json.gz")
    ms = profile.regions.set_index(["region", "phase"])["ms"]
    naps = {
        ("sampling", "other"): 2,
        ("features.visual", "forward"): 4,
        ("features.visual", "backward"): 8,
        ("final_attention.visual", "forward"): 6,
        ("final_attention.visual", "recompute"): 6,
        ("final_attention.visual", "backward"): 3,
    }
    for place, expected in naps.items():
        assert ms[place] >= expected, place  # a nap in the wrong place would be missing here
    assert ms.sum() == pytest.approx(profile.profiled_step_ms[profile.step], rel=1e-3)
    assert profile.unattributed_share < 0.25
    assert len(profile.step_ms) == 2
    again = profile_of_trace(tmp_path / "trace.json.gz")
    pd.testing.assert_frame_equal(again.regions, profile.regions)


def test_operators_carry_bytes_and_operations():
    x, w = torch.ones(30, 20), torch.ones(20, 10, requires_grad=True)
    index = torch.zeros(50, dtype=torch.int64)

    def step(k):
        with record_function("features.visual"):
            (x @ w).index_select(0, index)

    operators = profile_steps(step, steps=1).operators.set_index("operator")
    assert operators.loc["aten::mm", ["calls", "operations", "bytes"]].tolist() == [1, 12000, 4 * (600 + 200 + 300)]
    assert operators.loc["aten::index_select", "bytes"] == 50 * 8 + 2 * 50 * 10 * 4
    assert np.isnan(operators.loc["aten::matmul", "bytes"])


@pytest.mark.parametrize(
    ("name", "shapes", "dtypes", "expected"),
    [
        ("aten::mul", [[6, 4], [6, 1]], ["float", "float"], (4 * (24 + 6 + 24), 24)),
        ("aten::add_", [[6, 4], [6, 4], []], ["c10::Half", "c10::Half", "Scalar"], (2 * 72, 24)),
        ("aten::scatter_add_", [[3, 4], [], [6, 4], [6, 4]], ["float", "Scalar", "long int", "float"], (480, 24)),
        ("aten::bmm", [[2, 3, 4], [2, 4, 5]], ["float", "float"], (4 * (24 + 40 + 30), 240)),
        ("aten::index", [[9, 4], [[6]]], ["float", "TensorList"], (6 * (32 + 8), 0)),
        ("aten::sum", [[6, 4], [], []], ["float", "", ""], (96, 24)),
        ("aten::sort", [[6, 4]], ["float"], None),
        ("aten::mul", None, None, None),
        ("custom::mul", [[6]], ["float"], None),
    ],
)
def test_costs_by_hand(name, shapes, dtypes, expected):
    got = operator_cost(name, shapes, dtypes)
    assert got == expected if expected else np.isnan(got).all()


def test_what_is_no_trace_is_refused(tmp_path):
    (tmp_path / "text.json").write_text("{}")
    (tmp_path / "broken.json.gz").write_bytes(b"\x1f\x8bbroken")
    for name, message in [("text.json", "traceEvents"), ("broken.json.gz", "cannot be read"), ("none", "no trace")]:
        with pytest.raises(InputError, match=message):
            profile_of_trace(tmp_path / name)
    with pytest.raises(InputError, match="no host events"):
        profile_of_trace({"traceEvents": []})
    with pytest.raises(InputError, match="steps"):
        profile_steps(lambda k: None, steps=0)
