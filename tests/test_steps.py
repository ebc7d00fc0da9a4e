"""The one measurement of steps: variants against their bases, a control, and numbers that add up."""

import pandas as pd
import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments import steps as module
from mmrec_helpers.experiments.equality import absolute_differences, relative_differences, result_of
from mmrec_helpers.experiments.steps import (
    CONTROL,
    STEP_VARIANTS,
    MeasureOptions,
    control_of,
    full_batches,
    measure_steps,
    step_rows,
    steps_frame,
)
from mmrec_helpers.models import build
from mmrec_helpers.models.variants import REFERENCE, VARIANTS, find_variants, with_bases
from mmrec_helpers.profiling.timing import Timings

OPTIONS = MeasureOptions(batch_size=64, repeats=2, warmup=1)


@pytest.fixture(scope="module")
def data():
    return synthesize("embedded", seed=0, scale=0.1)


@pytest.fixture(scope="module")
def content(data):
    return measure_steps(data, OPTIONS)


@pytest.fixture(scope="module")
def frame(content):
    return steps_frame(content)


def test_every_variant_has_a_row(content, frame):
    assert set(frame.index) == set(STEP_VARIANTS)
    assert content["left_out"] == []
    assert (frame["rounds"] == 2).all()


def test_shares_and_milliseconds_agree_by_construction(frame):
    for row in frame.itertuples():
        base = frame.loc[row.base]
        assert row.step_ms == pytest.approx(row.ratio * base["step_ms"])
        assert row.share == pytest.approx(row.step_ms / frame.loc[REFERENCE, "step_ms"])
    assert frame.loc[REFERENCE, "ratio"] == frame.loc[REFERENCE, "share"] == 1


def test_rearranged_work_is_exact_and_another_model_is_not(frame):
    grcn = frame[frame["model"] == "grcn"].drop(index="grcn-diagnosed")
    changed = {"grcn-live", "grcn-live-1", "grcn-live-2", "grcn-live-cached", "grcn-mean", "grcn-learned"}
    assert set(grcn.index[~grcn["exact"].astype(bool)]) == changed
    assert frame.loc["dragon-fused", "exact"]
    assert frame.loc["dragon", "exact"] is None  # another model than its base: nothing to compare
    assert pd.isna(frame.loc["grcn-diagnosed", "output_difference"])  # computes in 16 bits


def test_iterations_take_memory_that_sparse_and_fused_do_not(frame):
    peaks = frame["peak_bytes"]
    assert peaks["grcn"] > peaks["grcn-1"] > peaks["grcn-0"] > peaks["grcn-sparse"]


def test_an_epoch_is_its_steps(content, frame, data):
    assert content["steps_per_epoch"] == -(-data.train.shape[1] // 64)
    assert frame["epoch_steps_s"].to_numpy() == pytest.approx(content["steps_per_epoch"] * frame["step_ms"] / 1e3)


def timings(**ms):
    return Timings("cpu", {name: tuple(values) for name, values in ms.items()})


def test_the_control_sets_the_noise_by_hand():
    found = timings(grcn=(10, 10, 10), control=(10, 11, 10.5), **{"grcn-1": (9.2, 9.9, 10)}, dragon=(5, 5, 5))
    control = control_of(found)
    assert (control["median"], control["q1"], control["q3"]) == pytest.approx((1.05, 1.025, 1.075))
    assert control["noise"] == pytest.approx(0.075)
    rows = {row["variant"]: row for row in step_rows(found)}
    assert rows["grcn-1"]["within_noise"]  # 0.99
    assert not rows["dragon"]["within_noise"]
    assert rows["dragon"]["step_ms"] == 5


def test_a_ratio_that_disagrees_with_its_medians_is_marked():
    apart = timings(grcn=(10, 20, 30), control=(10, 20, 30), **{"grcn-1": (20, 20, 3)})
    row = next(row for row in step_rows(apart) if row["variant"] == "grcn-1")
    assert row["ratio"]["median"] == 1.0
    assert row["agrees"]
    apart = timings(grcn=(10, 20, 30), control=(10, 20, 30), **{"grcn-1": (5, 30, 40)})
    row = next(row for row in step_rows(apart) if row["variant"] == "grcn-1")
    assert row["ratio"]["median"] == pytest.approx(4 / 3)
    assert row["ratio_of_medians"] == 1.5
    assert not row["agrees"]


def test_what_needs_too_much_memory_is_left_out_with_its_number(data, monkeypatch):
    monkeypatch.setattr("mmrec_helpers.profiling.memory.HOST_LIMIT_BYTES", 4e6)
    content = measure_steps(data, OPTIONS, ["grcn-fused", "grcn-live-fused"])
    assert [row["variant"] for row in content["left_out"]] == ["grcn", "grcn-live"]
    assert "predicted to need" in content["left_out"][0]["reason"]
    assert {row["variant"] for row in content["variants"]} == {"grcn-fused", "grcn-live-fused"}
    assert content["control"]["noise"] is None


def test_a_backend_that_cannot_run_is_left_out_and_none_at_all_is_refused(data, monkeypatch):
    monkeypatch.setattr("mmrec_helpers.ops._fused_needs", lambda device: "numba")
    content = measure_steps(data, OPTIONS, ["grcn-fused"], compare=False)
    assert "numba" in content["left_out"][0]["reason"]
    monkeypatch.setattr("mmrec_helpers.profiling.memory.HOST_LIMIT_BYTES", 1.0)
    with pytest.raises(InputError, match="no variant can run here"):
        measure_steps(data, OPTIONS, ["grcn-fused"])


def test_the_same_seed_compares_the_same(data, monkeypatch):
    names = ["grcn-live", "grcn-fused"]
    batch = full_batches(data, 64, 0, "cpu")[0]
    first, second = (module._differences([REFERENCE, *names], data, batch, OPTIONS) for _ in range(2))
    assert first == second


# ---------------------------------------------------------------------------------------------- variants


def test_bases_come_before_what_is_compared_with_them():
    order = [variant.name for variant in with_bases(["grcn-live-1-fused", "dragon-fused"])]
    assert order == ["grcn", "grcn-live", "grcn-live-1", "grcn-live-1-fused", "dragon", "dragon-fused"]
    for position, name in enumerate(order[1:], start=1):
        assert VARIANTS[name].base in order[:position]


def test_names_are_unique_and_fit_for_files():
    assert len({variant.label for variant in VARIANTS.values()}) == len(VARIANTS)
    assert all(name == name.lower() and name.replace("-", "").isalnum() for name in VARIANTS)
    assert CONTROL not in VARIANTS
    with pytest.raises(InputError, match="unknown variant 'ngcf': expected one of grcn, grcn-2"):
        find_variants(["ngcf"])


@pytest.mark.parametrize(
    "bad", [{"batch_size": 0}, {"repeats": 1.5}, {"seed": -1}, {"max_seconds": 0}, {"device": "x"}]
)
def test_bad_options_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        MeasureOptions(**bad)


# ---------------------------------------------------------------------------------------------- equality


def test_differences_by_hand():
    class Two(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([weight, 2.0]))

        def representation(self):
            return self.weight * 3

        def loss(self, batch):
            return (self.weight**2).sum()

    result, base = (result_of(Two(w), torch.zeros(1)) for w in (1.0, 1.5))
    assert absolute_differences(result, base) == {
        "output_difference": 1.5,
        "loss_difference": 1.25,
        "gradient_difference": 1.0,
    }
    assert relative_differences(result, base)["output_difference"] == pytest.approx(1.5 / 6)
    assert max(relative_differences(base, base).values()) == 0


def test_a_gradient_that_is_missing_counts_as_zero(data):
    model = build("grcn", data, backend="reference")
    batch = full_batches(data, 64, 0, "cpu")[0]
    whole = result_of(model, batch)
    name = next(iter(whole.gradients))
    dict(model.named_parameters())[name].requires_grad_(False)
    assert relative_differences(result_of(model, batch), whole)["gradient_difference"] == 1
