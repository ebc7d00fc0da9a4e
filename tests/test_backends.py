"""Attention block, evaluation and sampler by backend."""

import pytest

from mmrec_helpers.experiments.backends import measure_backends
from mmrec_helpers.experiments.steps import MeasureOptions
from tests.models_data import small_data

OPTIONS = MeasureOptions(batch_size=64, repeats=2, warmup=1)
DATA = small_data()


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


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
