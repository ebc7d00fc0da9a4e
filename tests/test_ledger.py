"""The ledger carries every claim, orders records by nearness to the diagnosed workload, and never guesses."""

import pytest

from mmrec_helpers.claims import ledger
from mmrec_helpers.claims.ledger import Records, Verdict, decide, decide_claim, ledger_table, load_claims
from mmrec_helpers.config import InputError


def record(kind, content=None, device="cpu", n_train=1000, name="embedded", time="2026-01-01T00:00:00+00:00"):
    made = {
        "time": time,
        "device": {"type": device, "name": "Toy 1"},
        "machine": {"threads": 2},
        "data": {"name": name, "n_train": n_train},
    }
    return {"schema": 1, "kind": kind, "provenance": made, "content": content}


def test_every_claim_is_there_once_with_a_hypothesis_and_its_records():
    claims = load_claims()
    ids = [claim.id for claim in claims]
    assert len(ids) == len(set(ids)) == 36
    assert all(claim.claim.endswith((".", ")")) and claim.hypothesis and claim.decided_by for claim in claims)


def test_without_records_nothing_measured_is_decided():
    measured = {claim.id for claim in load_claims() if "published" not in claim.decided_by}
    assert {v.verdict for v in decide([]) if v.claim_id in measured} == {"undecided"}


def test_the_ledger_keeps_its_order_and_shows_each_claim():
    table = ledger_table(decide([]))
    assert list(table["claim_id"]) == [claim.id for claim in load_claims()]
    assert table.columns.tolist() == ["claim_id", "claim", "verdict", "why", "machine"]


def test_the_nearest_record_is_on_cuda_then_largest_then_latest():
    small, large = record("epoch", n_train=10), record("epoch", n_train=10**6)
    newer = record("epoch", n_train=10**6, time="2026-02-01T00:00:00+00:00")
    on_gpu = record("epoch", device="cuda", n_train=100)
    assert Records([small, large]).nearest("epoch") is large
    assert Records([newer, small, large]).nearest("epoch") is newer
    assert Records([newer, small, on_gpu]).nearest("epoch") is on_gpu


def test_a_missing_record_leaves_the_claim_undecided_and_is_named(monkeypatch):
    monkeypatch.setitem(ledger._RULES, "time.ratio", lambda r: r.nearest("epoch"))
    verdict = decide_claim("time.ratio", [record("routing")])
    assert verdict.verdict == "undecided"
    assert "'epoch'" in verdict.sentence


def test_a_record_without_the_field_a_rule_needs_is_an_error(monkeypatch):
    monkeypatch.setitem(ledger._RULES, "time.ratio", lambda r: r.nearest("epoch")["content"]["ratio"])
    with pytest.raises(InputError, match=r"time\.ratio.*'ratio'"):
        decide_claim("time.ratio", [record("epoch", content={})])


def test_a_verdict_outside_the_five_is_refused():
    with pytest.raises(InputError, match=r"unknown verdict 'maybe'.*undecided"):
        Verdict("time.ratio", "maybe", "")


def test_an_unknown_claim_is_refused():
    with pytest.raises(InputError, match=r"unknown claim 'time\.rat'"):
        decide_claim("time.rat", [])


def test_the_machine_is_told_with_its_data_set():
    assert ledger.machine_of(record("epoch")) == "Toy 1, 2 threads; embedded"
    assert ledger.machine_of(record("epoch", device="cuda")) == "Toy 1; embedded"
    alone = record("epoch")
    alone["provenance"]["machine"]["threads"] = 1
    assert ledger.machine_of(alone) == "Toy 1, 1 thread; embedded"
