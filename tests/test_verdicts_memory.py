"""The claims about the memory settings: a record on which each rule decides, and changes that turn the verdict."""

import pytest

from mmrec_helpers.claims.ledger import REPORTED_N_TRAIN
from tests.claim_contents import ratio
from tests.test_verdicts import decided

ALONE = ("checkpointing", "mixed-precision", "features-on-host")
LARGE = {"n_train": REPORTED_N_TRAIN, "device": "cuda"}


def row(model, setting, peak_mb, times, held_mb=1000.0):
    sizes = {"peak_bytes": peak_mb * 1e6, "total_bytes": (peak_mb + held_mb) * 1e6, "edge_bytes": {"float32": 100}}
    return {"model": model, "setting": setting, "ratio": ratio(times, 0.02), "within_noise": times == 1} | sizes


def memory(*changes, models=("grcn", "dragon")):
    """Checkpointing trades, mixed precision does nothing, features on the host save 500 MB and cost time. Changes are
    (setting, field, value), of these models."""
    rows = []
    for model in ("grcn", "dragon"):
        rows += [row(model, "none", 800.0, 1.0), row(model, "checkpointing", 400.0, 1.3)]
        rows += [row(model, "mixed-precision", 800.0, 1.0), row(model, "features-on-host", 800.0, 1.1, 500.0)]
    for setting, field, value in changes:
        for one in rows:
            if one["setting"] == setting and one["model"] in models:
                one[field] = value
    return {"memory-settings": {"rows": rows, "precision": "float16"}}


HALF = ("mixed-precision", "edge_bytes", {"float16": 9, "float32": 1})


@pytest.mark.parametrize(
    ("claim", "before", "changes", "after"),
    [
        ("memory.checkpoint", "supported", [("checkpointing", "peak_bytes", 800e6)], "refuted"),
        ("memory.checkpoint", "supported", [("checkpointing", "ratio", ratio(0.9))], "partly"),
        ("memory.checkpoint", "supported", [("checkpointing", "within_noise", True)], "partly"),
        ("memory.amp", "refuted", [HALF], "partly"),
        ("memory.amp", "refuted", [HALF, ("mixed-precision", "peak_bytes", 400e6)], "supported"),
        ("memory.cpu_features", "supported", [("features-on-host", "total_bytes", 1800e6)], "refuted"),
        ("memory.no_time", "supported", [("checkpointing", "ratio", ratio(0.8))], "partly"),
        ("memory.no_time", "supported", [(name, "ratio", ratio(0.8)) for name in ALONE], "partly"),  # one within noise
        (
            "memory.no_time",
            "supported",
            [
                (name, field, value)
                for name in ALONE
                for field, value in (("ratio", ratio(0.8)), ("within_noise", False))
            ],
            "refuted",
        ),
    ],
)
def test_a_changed_record_turns_the_verdict(claim, before, changes, after):
    assert decided(claim, memory(), **LARGE).verdict == before
    assert decided(claim, memory(*changes), **LARGE).verdict == after


def test_one_model_of_two_is_part_of_a_verdict():
    changed = memory(("checkpointing", "peak_bytes", 800e6), models=("grcn",))
    assert decided("memory.checkpoint", changed, **LARGE).verdict == "partly"


def test_what_is_noise_is_called_so():
    sentence = decided("memory.no_time", memory(), **LARGE).sentence
    assert "GRCN with mixed precision 1.00 times (within noise) (quartiles 0.98 to 1.02)" in sentence
    assert "GRCN with checkpointing 1.30 times (quartiles 1.28 to 1.32)" in sentence


@pytest.mark.parametrize("claim", ["memory.amp", "memory.cpu_features", "memory.no_time"])
def test_what_only_a_gpu_can_tell_stays_undecided_on_a_cpu_and_says_so(claim):
    found = decided(claim, memory(), n_train=REPORTED_N_TRAIN)
    assert found.verdict == "undecided"
    assert "CUDA" in found.sentence
    assert decided("memory.checkpoint", memory()).verdict == "supported"  # which a CPU can tell


@pytest.mark.parametrize("claim", ["memory.checkpoint", "memory.amp", "memory.cpu_features", "memory.no_time"])
def test_without_a_record_a_claim_is_undecided_and_names_it(claim):
    found = decided(claim, {})
    assert found.verdict == "undecided"
    assert "a record of kind 'memory-settings'" in found.sentence


def test_features_on_the_host_are_computed_at_the_diagnosed_size_without_a_record():
    found = decided("memory.cpu_features", {})
    assert "561 MB" in found.sentence
    assert "997 steps" in found.sentence
    small = decided("memory.cpu_features", memory(), n_train=10_000, device="cuda")
    assert small.verdict == "undecided"  # a smaller data set does not decide it
