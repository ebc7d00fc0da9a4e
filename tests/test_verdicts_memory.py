"""The claims about the memory settings: a record on which each rule decides, and changes that turn the verdict."""

import copy

import pytest

from mmrec_helpers.claims import decide_claim
from mmrec_helpers.claims.ledger import REPORTED_N_TRAIN
from tests.test_ledger import record

ARMS = ("none", "checkpointing", "mixed precision", "features on the host")


def ratio(value):
    return {"median": value, "q1": value - 0.02, "q3": value + 0.02, "rounds": 5}


def arm(model, name, peak_mb, times, held_mb=1000.0, narrow=0):
    return {
        "model": model,
        "arm": name,
        "peak_bytes": peak_mb * 1e6,
        "held_bytes": held_mb * 1e6,
        "total_bytes": (peak_mb + held_mb) * 1e6,
        "time_ratio": ratio(times),
        "edge_bytes": {"float32": 100 - narrow, "float16": narrow},
    }


def memory(changes=(), device="cuda", n_train=REPORTED_N_TRAIN):
    """Checkpointing trades, mixed precision does nothing, features on the host save 500 MB and cost time."""
    arms = []
    for model in ("GRCN", "DRAGON"):
        arms += [arm(model, "none", 800.0, 1.0), arm(model, "checkpointing", 400.0, 1.3)]
        arms += [arm(model, "mixed precision", 800.0, 1.0), arm(model, "features on the host", 800.0, 1.1, 500.0)]
    for place, field, value in changes:
        for model in range(2):
            arms[4 * model + ARMS.index(place)][field] = value
    return record("memory", {"arms": copy.deepcopy(arms), "precision": "float16"}, device=device, n_train=n_train)


def verdict(claim, *changes, **more):
    return decide_claim(claim, [memory(changes, **more)]).verdict


@pytest.mark.parametrize(
    ("claim", "before", "changes", "after"),
    [
        ("memory.checkpoint", "supported", [("checkpointing", "peak_bytes", 800e6)], "refuted"),
        ("memory.checkpoint", "supported", [("checkpointing", "time_ratio", ratio(0.9))], "partly"),
        ("memory.amp", "refuted", [("mixed precision", "edge_bytes", {"float16": 9, "float32": 1})], "partly"),
        (
            "memory.amp",
            "refuted",
            [("mixed precision", "edge_bytes", {"float16": 9}), ("mixed precision", "peak_bytes", 400e6)],
            "supported",
        ),
        ("memory.cpu_features", "supported", [("features on the host", "total_bytes", 1800e6)], "refuted"),
        ("memory.no_time", "supported", [("checkpointing", "time_ratio", ratio(0.8))], "partly"),
        ("memory.no_time", "supported", [(name, "time_ratio", ratio(0.8)) for name in ARMS[1:]], "refuted"),
    ],
)
def test_a_changed_record_turns_the_verdict(claim, before, changes, after):
    assert verdict(claim) == before
    assert verdict(claim, *changes) == after


def test_one_model_of_two_is_part_of_a_verdict():
    changed = memory()
    changed["content"]["arms"][1]["peak_bytes"] = 800e6
    assert decide_claim("memory.checkpoint", [changed]).verdict == "partly"


@pytest.mark.parametrize("claim", ["memory.amp", "memory.cpu_features", "memory.no_time"])
def test_what_only_a_gpu_can_tell_stays_undecided_on_a_cpu_and_says_so(claim):
    told = decide_claim(claim, [memory(device="cpu")])
    assert told.verdict == "undecided"
    assert "CUDA" in told.sentence
    assert verdict("memory.checkpoint", device="cpu") == "supported"  # which a CPU can tell


def test_features_on_the_host_are_computed_at_the_diagnosed_size_without_a_record():
    told = decide_claim("memory.cpu_features", [])
    assert told.verdict == "undecided"
    assert told.numbers["copied_mb_per_step"] == pytest.approx(99_596 * (1024 + 384) * 4 / 1e6)
    assert "561 MB" in told.sentence
    assert "997 steps" in told.sentence
    assert verdict("memory.cpu_features", n_train=10_000) == "undecided"  # a smaller data set does not decide it
