"""Attention block, evaluation and sampler by backend; and MMRec's own models beside the reference."""

import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.backends import measure_backends
from mmrec_helpers.experiments.mmrec_steps import measure_mmrec_steps
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.mmrec.checkout import own_steps
from tests.mmrec_checkout import laid_out_data, make_checkout
from tests.models_data import random_batch, small_data

OPTIONS = MeasureOptions(batch_size=64, repeats=2, warmup=1)
DATA = small_data()


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path)


def test_mmrecs_own_objects_and_the_same_accelerated(checkout):
    steps = own_steps(checkout, laid_out_data())
    assert list(steps) == ["MMRec GRCN", "MMRec GRCN accelerated", "MMRec DRAGON", "MMRec DRAGON accelerated"]
    batch = random_batch(DATA)
    before = batch.clone()
    losses = {name: step.loss(batch).item() for name, step in steps.items()}
    assert torch.equal(batch, before)
    for name in ("MMRec GRCN", "MMRec DRAGON"):
        assert losses[name] == pytest.approx(losses[f"{name} accelerated"], rel=1e-5)
    assert losses["MMRec GRCN"] != pytest.approx(losses["MMRec DRAGON"], rel=1e-2)


def test_the_parts_of_a_step_are_timed_by_backend():
    content = measure_backends(DATA, OPTIONS)
    rows = {(row["part"], row["backend"]): row for row in content["rows"]}
    assert {part for part, _ in rows} <= {"attention block", "evaluation"}
    assert {backend for _, backend in rows} == {"reference", "sparse", "fused"}
    assert all(row["ratio"]["rounds"] == 2 and row["median_ms"] > 0 for row in rows.values())
    reference, fused = (rows["attention block", backend]["peak_bytes"] for backend in ("reference", "fused"))
    assert reference > fused
    assert content["controls"]["attention block"]["noise"] is not None
    assert content["sampler_s"] > 0


def test_a_backend_that_cannot_run_is_left_out(monkeypatch):
    monkeypatch.setattr("mmrec_helpers.ops._fused_needs", lambda device: "numba")
    content = measure_backends(DATA, OPTIONS)
    assert [row["backend"] for row in content["left_out"]] == ["fused"]
    assert "numba" in content["left_out"][0]["reason"]


def test_mmrecs_own_models_beside_the_accelerated_and_the_reference(checkout):
    content = measure_mmrec_steps(laid_out_data(), OPTIONS, checkout)
    assert [row["model"] for row in content["rows"]] == ["GRCN", "DRAGON"]
    assert all(row["factor"]["rounds"] == 2 and row["own_peak_bytes"] > 0 for row in content["rows"])
    assert content["control"]["rounds"] == 2
    with pytest.raises(InputError, match="--mmrec is missing"):
        measure_mmrec_steps(DATA, OPTIONS)
