"""The predicted memory of a step against the measured one, and the refusal that follows from it."""

import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments.epoch import measure_epoch
from mmrec_helpers.experiments.memory_settings import measure_memory_settings
from mmrec_helpers.experiments.steps import MeasureOptions, step_runners
from mmrec_helpers.models import build
from mmrec_helpers.models.step_cost import predicted_step_bytes
from mmrec_helpers.profiling.memory import measure_memory
from mmrec_helpers.training import TrainSettings

CASES = [
    ("grcn", {"routing_iterations": 3}),
    ("grcn", {"routing_iterations": 0}),
    ("grcn", {"routing_iterations": 3, "checkpointing": True}),
    ("dragon", {}),
]


@pytest.fixture(scope="module")
def data():
    return synthesize("embedded", seed=0)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_prediction_is_right_to_about_a_third(data, name, options):
    model = build(name, data, backend="reference", **options)
    runner = step_runners({name: model}, data, TrainSettings(batch_size=2048))[name]
    measured = measure_memory(runner).peak_bytes
    assert 0.65 * measured < predicted_step_bytes(name, data, model.settings) < 1.5 * measured


@pytest.mark.parametrize("measurement", [measure_epoch, measure_memory_settings])
def test_a_step_predicted_to_pass_the_limit_is_refused_with_the_number(data, monkeypatch, measurement):
    monkeypatch.setattr("mmrec_helpers.profiling.memory.HOST_LIMIT_BYTES", 50e6)
    with pytest.raises(InputError, match=r"grcn.*predicted to take 0\.1 GiB"):
        measurement(data, MeasureOptions())
