"""Timing: pairs in one run, medians that outliers do not move, settings that are checked."""

import gc
import time

import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.timing import Timings, measure, round_order


def test_a_ratio_is_taken_within_rounds():
    # The machine slows down threefold half-way: medians of all times mislead, the ratio within rounds does not.
    timings = Timings("cpu", {"slow": (20.0, 20.0, 60.0, 60.0, 60.0), "fast": (10.0, 10.0, 30.0, 30.0, 10.0)})
    assert timings.ratio("slow", "fast").median == 2
    assert timings.median_ms("slow") / timings.median_ms("fast") == 6


def test_sleeping_twice_as_long_takes_twice_as_long():
    functions = {"one": lambda: time.sleep(0.004), "two": lambda: time.sleep(0.008)}
    timings = measure(functions, repeats=7, warmup=0)
    assert timings.rounds == 7
    assert timings.ratio("two", "one").median > 1.3
    assert timings.table().set_index("name").loc["one", "min_ms"] >= 4


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


def test_a_record_is_plain_data():
    record = measure({"none": lambda: None}, repeats=3, warmup=0).to_dict()
    assert record["table"][0]["rounds"] == len(record["ms"]["none"]) == 3


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}, {"max_seconds": 0}, {"device": "tpu"}])
def test_bad_settings_are_refused(options):
    with pytest.raises(InputError):
        measure({"none": lambda: None}, **options)


def test_nothing_to_time_is_refused():
    with pytest.raises(InputError, match="functions is empty"):
        measure({})
    with pytest.raises(InputError, match="timed function"):
        Timings("cpu", {"a": (1.0,)}).ratio("a", "b")
