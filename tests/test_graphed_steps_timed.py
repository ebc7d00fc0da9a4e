"""Fused steps against the same as CUDA graphs: captured before the rounds, every model timed both ways."""

import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments import cuda_graphs as graphed
from mmrec_helpers.experiments import epoch as epochs
from mmrec_helpers.training.graphed_step import WARM_UP_STEPS
from tests.test_graphed_step import OnTheHost
from tests.toy_model import toy_data

DATA = toy_data(features=True)
QUICK = {"batch_size": 32, "repeats": 3}


def test_graphs_are_captured_before_the_rounds_and_each_model_is_timed_both_ways(monkeypatch):
    made = []

    def on_the_host(*arguments):
        made.append(OnTheHost(*arguments))
        return made[-1]

    monkeypatch.setattr(epochs, "GraphedStep", on_the_host)
    monkeypatch.setattr(graphed, "cannot_be_graphed", lambda model, device: None)
    content = graphed.measure_graphed_steps(DATA, device="cpu", **QUICK)
    assert [arm["model"] for arm in content["arms"]] == ["GRCN as shipped", "GRCN live", "DRAGON"]
    assert len(made) == 3
    for step in made:
        assert step.done[: WARM_UP_STEPS + 2] == ["warm-up"] * WARM_UP_STEPS + ["capture", "replay"]
        assert set(step.done[WARM_UP_STEPS + 1 :]) == {"replay"}
    for arm in content["arms"]:
        ratios = sorted(
            eager / replayed
            for eager, replayed in zip(
                content["timings"]["ms"][arm["model"]], content["timings"]["ms"][f"{arm['model']}, CUDA graph"]
            )
        )
        assert arm["ratio"] == pytest.approx(ratios[1])


def test_a_cpu_is_refused():
    with pytest.raises(
        InputError, match="CUDA graphs: the model is on cpu: expected the fused backend on a CUDA device"
    ):
        graphed.measure_graphed_steps(DATA, device="cpu", **QUICK)


@pytest.mark.gpu
def test_on_a_gpu_launches_are_counted():
    content = graphed.measure_graphed_steps(DATA, device="cuda", **QUICK)
    assert all(arm["launches_per_step"] > 1 and arm["graphed_ms"] > 0 for arm in content["arms"])
