"""Fused steps against the same as CUDA graphs: captured before the rounds, every model timed both ways."""

import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments import cuda_graphs, steps
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.training.step import WARM_UP_STEPS
from tests.test_graphed_step import OnTheHost
from tests.toy_model import toy_data

DATA = toy_data(features=True)
OPTIONS = MeasureOptions(batch_size=32, repeats=3)


def test_graphs_are_captured_before_the_rounds_and_each_model_is_timed_both_ways(monkeypatch):
    made = []

    def on_the_host(*arguments):
        made.append(OnTheHost(*arguments))
        return made[-1]

    monkeypatch.setattr(steps, "GraphedStep", on_the_host)
    monkeypatch.setattr(cuda_graphs, "cannot_be_graphed", lambda model, device: None)
    content = cuda_graphs.measure_cuda_graphs(DATA, OPTIONS)
    assert [row["variant"] for row in content["rows"]] == list(cuda_graphs.GRAPHED)
    assert len(made) == 3
    for step in made:
        assert step.done[: WARM_UP_STEPS + 2] == ["warm-up"] * WARM_UP_STEPS + ["capture", "replay"]
        assert set(step.done[WARM_UP_STEPS + 1 :]) == {"replay"}
    for row in content["rows"]:
        eager, replayed = (content["timings"]["ms"][f"{row['variant']}{how}"] for how in ("", " graphed"))
        assert row["ratio"]["median"] == pytest.approx(sorted(a / b for a, b in zip(eager, replayed))[1])
    assert content["control"]["rounds"] == 3


def test_a_cpu_is_refused():
    with pytest.raises(
        InputError, match="CUDA graphs: the model is on cpu: expected the fused backend on a CUDA device"
    ):
        cuda_graphs.measure_cuda_graphs(DATA, OPTIONS)


@pytest.mark.gpu
def test_on_a_gpu_launches_are_counted():
    content = cuda_graphs.measure_cuda_graphs(DATA, MeasureOptions(device="cuda", batch_size=32, repeats=3))
    assert all(row["launches_per_step"] > 1 and row["graphed_ms"] > 0 for row in content["rows"])
