"""Memory: peaks that can be computed by hand, attributed to regions, and a refusal with the numbers."""

import pandas as pd
import pytest
import torch
from torch.profiler import record_function

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.memory import (
    _lines_alive_at_peak,
    _thinned,
    check_host_memory,
    measure_memory,
    memory_of_trace,
)

MIB = 2**20


def two_stages():
    with record_function("features.visual"):
        kept = torch.ones(MIB)  # 4 MiB
        torch.ones(2 * MIB)  # 8 MiB, released at once
    with record_function("final_attention.visual"):
        more = kept + 1  # 4 MiB
        return (more * torch.ones(4 * MIB).view(4, -1)).sum()  # 16 MiB, and 16 MiB of products


def test_a_peak_by_hand():
    memory = measure_memory(two_stages)
    assert memory.peak_bytes == pytest.approx((4 + 4 + 16 + 16) * MIB, rel=1e-3)
    regions = memory.regions.set_index("region")
    assert regions.loc["features.visual", "peak_bytes"] == pytest.approx(12 * MIB, rel=1e-3)
    assert regions.loc["features.visual", "net_bytes"] == pytest.approx(4 * MIB, rel=1e-3)
    assert regions.index[0] == "final_attention.visual"
    assert memory.largest["bytes"].head(4).tolist() == [16 * MIB, 16 * MIB, 4 * MIB, 4 * MIB]
    assert "aten::mul" in set(memory.largest["operator"].head(4))
    assert memory.largest["region"].iloc[0] == "final_attention.visual"
    assert memory.timeline["bytes"].max() == memory.peak_bytes
    assert memory.lines.empty
    assert memory.to_dict(points=3)["peak_bytes"] == memory.peak_bytes


def test_twice_the_tensors_take_twice_the_memory():
    one = measure_memory(lambda: torch.ones(MIB)).peak_bytes
    two = measure_memory(lambda: torch.ones(2 * MIB)).peak_bytes
    assert two == pytest.approx(2 * one, rel=1e-3)


def test_memory_made_while_recomputing_has_its_own_phase():
    def mark(at, size, address):
        args = {"Addr": address, "Bytes": size, "Total Allocated": 0, "Device Type": 0}
        return {"ph": "i", "name": "[memory]", "ts": at, "args": args}

    def span(name, start, end, category="cpu_op", **args):
        return {"ph": "X", "cat": category, "name": name, "tid": 1, "ts": start, "dur": end - start, "args": args}

    events = [
        span("ProfilerStep#0", 0, 100, "user_annotation"),
        span("loss", 0, 40, "user_annotation"),
        span("aten::mul", 10, 20, **{"Sequence number": 3}),
        span("autograd::engine::evaluate_function: MulBackward0", 50, 90, **{"Sequence number": 3, "Fwd thread id": 1}),
        span("aten::exp", 60, 70, **{"Sequence number": 4}),
        mark(15, 100, 1),
        mark(65, 50, 2),
        mark(75, 30, 3),
        mark(85, -100, 1),
    ]
    timeline, regions, largest = memory_of_trace({"traceEvents": events})
    assert timeline["bytes"].tolist() == [100, 150, 180, 80]
    assert timeline["phase"].tolist() == ["forward", "recompute", "backward", "backward"]
    assert set(timeline["region"]) == {"loss"}
    assert largest["bytes"].tolist() == [100, 50, 30]
    assert regions.set_index("phase").loc["backward", "net_bytes"] == -70


def test_too_much_is_refused_with_the_numbers():
    check_host_memory(16 * 2**30)
    with pytest.raises(InputError, match=r"GRCN is predicted to take 16\.5 GiB .* at most 16\.0 GiB"):
        check_host_memory(16.5 * 2**30, what="GRCN")
    with pytest.raises(InputError, match=r"at most 1\.0 GiB"):
        check_host_memory(2 * 2**30, limit_bytes=2**30)
    with pytest.raises(InputError):
        check_host_memory(float("nan"))


def test_a_cuda_history_is_replayed_to_its_peak():
    def frames(line):
        inner = {"filename": "/x/site-packages/torch/nn/functional.py", "line": 1, "name": "relu"}
        return [inner, {"filename": "/home/me/models/grcn.py", "line": line, "name": "forward"}]

    history = [
        {"action": "alloc", "addr": 1, "size": 100, "frames": frames(10)},
        {"action": "alloc", "addr": 2, "size": 300, "frames": frames(20)},
        {"action": "free_requested", "addr": 2, "size": 300},
        {"action": "free_completed", "addr": 2, "size": 300},
        {"action": "alloc", "addr": 3, "size": 250, "frames": frames(20)},
        {"action": "alloc", "addr": 4, "size": 60, "frames": []},
    ]
    lines = _lines_alive_at_peak(history)
    assert list(lines.itertuples(index=False, name=None)) == [
        (250, "models/grcn.py:20 forward"),
        (100, "models/grcn.py:10 forward"),
        (60, "unknown"),
    ]


def test_a_thinned_timeline_keeps_its_peak():
    timeline = pd.DataFrame({"ms": range(1000), "bytes": [0] * 1000})
    timeline.loc[777, "bytes"] = 5
    assert _thinned(timeline, 10)["bytes"].max() == 5
    assert len(_thinned(timeline, 10)) <= 11
