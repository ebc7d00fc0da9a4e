"""Timing: pairs in one run, medians that outliers do not move, the allocator's part, and what the device can do."""

import gc
import subprocess
import sys
import time

import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.device_rates import measure_rates
from mmrec_helpers.profiling.timing import Timings, controllable, measure, round_order, trimming_disabled


def test_a_ratio_is_taken_within_rounds():
    # The machine slows down threefold half-way: medians of all times mislead, the ratio within rounds does not.
    timings = Timings("cpu", {"slow": (20.0, 20.0, 60.0, 60.0, 60.0), "fast": (10.0, 10.0, 30.0, 30.0, 10.0)})
    assert timings.ratio("slow", "fast").median == 2
    assert timings.median_ms("slow") / timings.median_ms("fast") == 6


def test_sleeping_longer_takes_longer():
    functions = {"short": lambda: time.sleep(0.004), "long": lambda: time.sleep(0.024)}
    timings = measure(functions, repeats=5, warmup=0)
    assert timings.rounds == 5
    assert timings.ratio("long", "short").median > 1.5  # 6 on an idle machine
    assert timings.row("short")["q1_ms"] >= 4
    assert timings.median_ms("long") >= 24


def test_functions_take_turns():
    calls = []
    measure({name: lambda name=name: calls.append(name) for name in "AB"}, repeats=4, warmup=1)
    assert "".join(calls) == "AB" + "AB" + "BA" + "BA" + "AB"
    assert [round_order(list("ABC"), k)[0] for k in range(3)] == ["A", "B", "C"]


def test_the_collector_is_off_while_timing_and_back_afterwards():
    seen = []

    def fails():
        seen.append(gc.isenabled())
        raise RuntimeError("the timed function's own")

    with pytest.raises(RuntimeError, match="own"):
        measure({"fails": fails}, warmup=0)
    assert seen == [False]
    assert gc.isenabled()


def test_the_time_limit_stops_after_three_rounds():
    assert measure({"nap": lambda: time.sleep(0.002)}, repeats=50, warmup=0, max_seconds=0.001).rounds == 3


def test_records_are_plain_data():
    timings = measure({"none": lambda: None}, repeats=3, warmup=0)
    record = timings.to_dict()
    assert record["table"] == [{"name": "none", **timings.row("none"), "rounds": len(record["ms"]["none"])}]
    assert timings.ratio("none", "none").to_dict() == {"median": 1, "q1": 1, "q3": 1, "rounds": 3}


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}, {"max_seconds": 0}, {"device": "tpu"}])
def test_bad_settings_are_refused(options):
    with pytest.raises(InputError):
        measure({"none": lambda: None}, **options)


def test_nothing_to_time_is_refused():
    with pytest.raises(InputError, match="functions is empty"):
        measure({})
    with pytest.raises(InputError, match="timed function"):
        Timings("cpu", {"a": (1.0,)}).ratio("a", "b")


TEMPORARIES = """
import contextlib, resource, statistics, sys, torch
from mmrec_helpers.profiling.timing import trimming_disabled

faults = []
with trimming_disabled() if sys.argv[1] == "disabled" else contextlib.nullcontext():
    for _ in range(16):  # the first few may still find no hole that is large enough
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 * 2**20).add(1)  # 64 MiB twice
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(faults)))
"""


@pytest.mark.skipif(not controllable(), reason="the allocator is not glibc's")
def test_with_trimming_disabled_a_temporary_takes_no_page_faults():
    # In a process of its own: in one whose heap other tests have cut up, a block may not fit where the last one was.
    faults = {}
    for trimming in ("default", "disabled"):
        command = [sys.executable, "-c", TEMPORARIES, trimming]
        faults[trimming] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["disabled"] < 1000 < faults["default"]  # of 32768 pages


def test_where_the_allocator_cannot_be_set_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with trimming_disabled() as possible:
        assert not possible


def test_rates_are_positive_and_plain():
    rates = measure_rates(products=((16, 16), (64, 16)), rows=256, copy_mib=4, max_seconds=0.2)
    assert rates.copy_gb_s > 0.1
    assert rates.gather_gb_s > 0.1
    assert (rates.matmul["gflop_s"] > 0).all()  # on a busy machine hardly more
    assert rates.to_dict()["matmul"][1]["inner"] == 64
    assert rates.matmul_gflop_s == rates.matmul["gflop_s"][1]  # of the largest product
