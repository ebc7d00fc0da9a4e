"""What each fix does: a row an arm, exact where it should be, and torch.compile seen to compile or not."""

import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments.compiled import compile_model, count_graphs
from mmrec_helpers.experiments.epoch import step_runners
from mmrec_helpers.experiments.fixes import FIXES, LIVE, SHIPPED, measure_fixes
from mmrec_helpers.models import build
from mmrec_helpers.profiling.memory import measure_memory, peak_bytes
from mmrec_helpers.training import NegativeSampler, TrainSettings


@pytest.fixture(scope="module")
def data():
    return synthesize("embedded", seed=0, scale=0.1)


@pytest.fixture(scope="module")
def content(data):
    return measure_fixes(data, batch_size=64, repeats=2, compile_backend="", batch_sizes=(32, 64, 10**6))


@pytest.fixture(scope="module")
def arms(content):
    return {arm["arm"]: arm for arm in content["arms"]}


def test_every_arm_has_a_row_but_the_one_that_takes_minutes_to_compile(arms):
    assert set(arms) == set(FIXES) - {"torch.compile(loss)"}
    assert all(arm["step_ms_median"] > 0 and arm["ratio"]["rounds"] == 2 for arm in arms.values())


def test_rearranged_work_is_exact_and_another_model_is_not(arms):
    exact = {name for name, arm in arms.items() if arm["exact"]}
    assert exact == {
        *(name for name in arms if name.startswith("as shipped")),
        *(f"{what}, {routing}" for what in ("sparse", "fused") for routing in ("as shipped", "live")),
        "modalities batched, as shipped",
        "modalities batched, live",
        "attention cached, as shipped",
        LIVE,
        "torch.compile(model)",
    }
    assert arms["attention cached, live"]["output_difference"] > 1e-3
    assert arms["mean pooling"]["output_difference"] == pytest.approx(arms["mean pooling, fused"]["output_difference"])


def test_an_epoch_is_its_steps_and_its_sampling(content, arms):
    for arm in arms.values():
        expected = content["steps_per_epoch"] * arm["step_ms_median"] / 1e3 + content["sampling_s"]
        assert arm["epoch_s"] == pytest.approx(expected)


def test_iterations_take_memory_that_sparse_and_fused_do_not(arms):
    peaks = {name: arm["peak_bytes"] for name, arm in arms.items()}
    assert peaks[SHIPPED] > peaks["as shipped, 1 iteration"] > peaks["as shipped, none"] > peaks["sparse, as shipped"]
    assert peaks["torch.compile(model)"] is None


def test_larger_batches_make_fewer_steps(content, data):
    rows = [row for row in content["batch_sizes"] if row["backend"] == "reference"]
    assert [row["batch_size"] for row in rows] == [32, 64]  # more than all interactions is left out
    assert [row["steps_per_epoch"] for row in rows] == [-(-data.train.shape[1] // size) for size in (32, 64)]


def test_the_loss_of_a_compiled_model_compiles_nothing_and_the_control_does(content):
    assert content["compile"]["loss_of_compiled_model"] == {"graphs": 0, "breaks": 0, "operators": 0}
    assert content["compile"]["forward_of_compiled_model"]["graphs"] > 0


def test_the_loss_compiled_itself_compiles_and_keeps_the_loss(data):
    model = build("lightgcn", data, backend="sparse")
    batch = next(NegativeSampler(data).batches(64))
    before = model.loss(batch).detach()
    compiled = compile_model(model, "loss", "eager")
    counted = count_graphs(lambda: torch.testing.assert_close(compiled.loss(batch).detach(), before))
    assert counted["graphs"] > 0
    torch._dynamo.reset()


def test_the_short_way_to_the_peak_is_the_long_way(data):
    model = build("grcn", data, backend="reference", routing_iterations=1)
    runner = step_runners({"grcn": model}, data, TrainSettings(batch_size=64))["grcn"]
    assert peak_bytes(runner) == pytest.approx(measure_memory(runner).peak_bytes, rel=0.01)


def test_an_unknown_way_to_compile_is_refused(data):
    with pytest.raises(InputError, match="unknown way to compile 'step'"):
        compile_model(build("lightgcn", data, backend="sparse"), "step")
