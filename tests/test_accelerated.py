"""What ``accelerate`` brings to a model of a checkout, and how near its training stays to float64."""

import copy

import pandas as pd
import pytest
import torch

from mmrec_helpers.experiments import accelerated
from mmrec_helpers.experiments.accelerated import OWN_TRAININGS, STEPS, drift_summary, gains_table, measure_gain
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.mmrec import accelerate, open_checkout
from mmrec_helpers.mmrec.step_check import last_digit_changed
from tests.mmrec_checkout import laid_out_data, make_checkout

OPTIONS = MeasureOptions(batch_size=64, repeats=1, warmup=0)


def gain_of(path, **more):
    how = {"batch_size": 64, "device": "cpu", "seed": 0}
    return measure_gain(open_checkout(make_checkout(path)), "GRCN", laid_out_data(), OPTIONS, how, **more)


def test_the_accelerated_training_is_as_near_to_float64_as_the_own_ones(tmp_path, monkeypatch):
    begun_apart = []

    def noted(model, seed):
        begun_apart.append(seed)
        return last_digit_changed(model, seed)

    monkeypatch.setattr(accelerated, "last_digit_changed", noted)
    gain = gain_of(tmp_path)
    drift = gain["drift"]
    assert drift["steps"] == STEPS
    assert len(drift["own"]) == OWN_TRAININGS
    assert begun_apart == [1, 2, 3]
    assert max(drift["own"]) < 1e-5
    assert drift["accelerated"] < 3 * max(drift["own"])
    (row,) = gains_table([{"model": "GRCN", "accelerate": gain}]).to_dict("records")
    assert row["drift_own_least"] == min(drift["own"])
    assert row["drift_own_most"] == max(drift["own"])


def test_what_is_left_of_a_step_is_its_dense_products(tmp_path):
    gain = gain_of(tmp_path, training_steps=0)
    assert gain["drift"] == {"steps": 0, "why": "not asked for"}
    assert 0 < gain["products_ms"] < gain["own_ms"]
    (row,) = gains_table([{"model": "GRCN", "accelerate": gain}]).to_dict("records")
    assert row["at_most"] == gain["own_ms"] / gain["products_ms"] > 1
    both = gain["trimming_disabled"]
    assert both is None or both["factor"]["median"] == row["untrimmed"]


def test_a_training_that_is_another_shows(tmp_path, monkeypatch):
    def altered(model):
        fast = accelerate(model)
        own = fast.calculate_loss
        fast.calculate_loss = lambda batch: own(batch) * 1.0001
        return fast

    monkeypatch.setattr(accelerated, "accelerate", altered)
    drift = gain_of(tmp_path)["drift"]
    assert drift["accelerated"] > 10 * max(drift["own"])


def test_a_change_in_the_last_digit_is_one_rounding_and_another_for_each_seed():
    before, moved = torch.nn.Linear(30, 20), []
    for seed in (1, 1, 2):
        layer = copy.deepcopy(before)
        last_digit_changed(layer, seed)()
        moved.append((layer.weight - before.weight) / before.weight)
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
    assert float(moved[0].detach().abs().max()) < 3 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("fast", "said"), [(2e-7, "2 of 2 accelerated"), (4e-7, "1 of 2 accelerated"), (float("nan"), "No training")]
)
def test_the_summary_counts_the_trainings_that_stay_as_near(fast, said):
    drifts = [fast if fast == fast else None, None if fast != fast else 1e-7]
    rows = [
        {"model": name, "drift_own_least": 1e-7, "drift_own_most": 3e-7 if drift else None, "drift_accelerated": drift}
        for name, drift in zip(("GRCN", "BPR"), drifts)
    ]
    assert drift_summary(pd.DataFrame(rows)).startswith(said)
