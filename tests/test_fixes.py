"""Compiling and batch sizes beside a reference and a control; every other fix is a variant."""

import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments.fixes import FIXES, compile_model, count_graphs, fixes_frame, measure_fixes
from mmrec_helpers.experiments.steps import MeasureOptions, measure_steps, step_runners
from mmrec_helpers.models import build
from mmrec_helpers.models.variants import VARIANTS
from mmrec_helpers.profiling.memory import measure_memory, peak_bytes
from mmrec_helpers.training import NegativeSampler, TrainSettings

OPTIONS = MeasureOptions(batch_size=64, repeats=2, warmup=1)


@pytest.fixture(scope="module")
def data():
    return synthesize("embedded", seed=0, scale=0.1)


@pytest.fixture(scope="module")
def content(data):
    return measure_fixes(data, OPTIONS, compile_backend="", batch_sizes=(32, 64, 10**6))


def test_every_fix_is_a_variant_that_is_measured(data):
    assert {name for names in FIXES.values() for name in names} <= set(VARIANTS)
    steps = measure_steps(data, OPTIONS, ["grcn-live-1", "grcn-0", "grcn-live-fused"], compare=False)
    frame = fixes_frame(steps)
    assert set(frame["fix"]) == {"iterations", "fused"}
    assert (frame["ratio"] == frame["share"]).all()
    assert frame.loc["grcn-live-1", "ratio_to_base"] != frame.loc["grcn-live-1", "ratio"]


def test_the_loss_of_a_compiled_model_compiles_nothing_and_the_control_does(content):
    graphs = content["compile"]["graphs"]
    assert graphs["loss_of_compiled_model"] == {"graphs": 0, "breaks": 0, "operators": 0}
    assert graphs["forward_of_compiled_model"]["graphs"] > 0
    (row,) = content["compile"]["rows"]
    assert (row["way"], row["exact"], row["ratio"]["rounds"]) == ("model", True, 2)
    assert content["compile"]["control"]["noise"] is not None


def test_larger_batches_make_fewer_steps(content, data):
    rows = [row for row in content["batch_sizes"]["rows"] if row["backend"] == "reference"]
    n_train = data.train.shape[1]
    assert [row["batch_size"] for row in rows] == [32, 64, n_train]  # no more than there are interactions
    assert [row["steps_per_epoch"] for row in rows] == [-(-n_train // size) for size in (32, 64, n_train)]
    own = rows[1]
    assert own["epoch_ratio"] == pytest.approx(own["ratio"]["median"])


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
