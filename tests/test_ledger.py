"""The ledger carries every claim, puts records together that belong together, and never guesses."""

import contextlib

import pytest

from mmrec_helpers.claims import ledger
from mmrec_helpers.claims.ledger import FASTER, NOISE, SLOWER, Missing, Records, Verdict, decide, direction, find
from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.catalogue import PARTS
from tests import claim_contents


def record(kind, content=None, device="cpu", n_train=1000, name="embedded", time="2026-01-01T00:00:00+00:00"):
    made = {
        "time": time,
        "device": {"type": device, "name": "Toy 1"},
        "machine": {"threads": 2},
        "data": {"name": name, "n_train": n_train},
    }
    return {"schema": 1, "kind": kind, "provenance": made, "content": content}


def test_every_claim_is_there_once_with_a_hypothesis_its_records_and_a_rule():
    claims = ledger.load_claims()
    ids = [claim.id for claim in claims]
    assert len(ids) == len(set(ids)) == 36
    assert set(ids) == set(ledger._RULES)
    assert all(claim.claim.endswith((".", ")")) and claim.hypothesis and claim.decided_by for claim in claims)
    assert {part for claim in claims for part in claim.decided_by} <= {*PARTS, "accuracy", "published"}


def test_without_records_nothing_measured_is_decided_and_each_claim_says_what_is_missing():
    measured = {claim.id for claim in ledger.load_claims() if claim.decided_by != ("published",)}
    verdicts = {v.claim_id: v for v in decide([]) if v.claim_id in measured}
    assert {v.verdict for v in verdicts.values()} == {"undecided"}
    assert all("issing" in v.sentence for v in verdicts.values())


class Spy(Records):
    """Notes which parts are asked for, and has none."""

    asked: set

    def all(self, part):
        self.asked.add(part)
        return super().all(part)

    def where(self, condition):
        return self


@pytest.mark.parametrize("claim", ledger.load_claims(), ids=lambda claim: claim.id)
def test_a_rule_reads_what_its_claim_names(claim):
    spy = Spy([record("steps", claim_contents.steps()), record("routing", claim_contents.routing())])
    spy.asked = set()
    with contextlib.suppress(Missing):
        ledger._judge(claim, spy)
    assert spy.asked <= {*claim.decided_by} - {"published"}


def test_the_ledger_keeps_its_order_and_shows_each_claim():
    table = ledger.ledger_table(decide([]))
    assert list(table["claim_id"]) == [claim.id for claim in ledger.load_claims()]
    assert table.columns.tolist() == ["claim_id", "claim", "verdict", "why", "machine"]


def test_the_nearest_record_is_on_cuda_then_largest_then_latest():
    small, large = record("data", n_train=10), record("data", n_train=10**6)
    newer = record("data", n_train=10**6, time="2026-02-01T00:00:00+00:00")
    on_gpu = record("data", device="cuda", n_train=100)
    assert Records([small, large]).together("data").records == (large,)
    assert Records([newer, small, large]).together("data").records == (newer,)
    assert Records([newer, small, on_gpu]).together("data").records == (on_gpu,)


def test_records_belong_together_by_data_device_and_batch_size():
    steps, epoch = claim_contents.steps(), claim_contents.epoch()
    pair = (record("steps", steps), record("epoch", epoch))
    apart = [record("steps", steps, n_train=10**6), record("steps", steps, device="cuda")]
    apart.append(record("steps", steps | {"batch_size": 4096}, time="2027"))
    diagnosed = record("epoch", claim_contents.epoch(settings="diagnosed"), time="2027")
    assert Records([*apart, diagnosed, *pair]).together("steps", "epoch").records == pair
    with pytest.raises(Missing, match="'steps', 'epoch' of one data set, device and batch size"):
        Records([*apart, pair[1]]).together("steps", "epoch")
    with pytest.raises(Missing, match="a record of kind 'epoch' and a record of kind 'routing'"):
        Records([pair[0]]).together("steps", "epoch", "routing")


def test_a_quantity_is_filled_in_with_its_unit_and_its_noise():
    here = Records([record("steps", claim_contents.steps({"grcn-2": 98.5}))]).together("steps")
    assert here.fill("{grcn.step}, {loop.saving, grcn-0}, {iterations.three-to-two, grcn-2}.") == (
        "100 ms, 42.0%, 1.02 times (within noise)."
    )
    with pytest.raises(Missing, match=r"GRCN's epoch in a record of kind 'epoch'"):
        here.fill("{grcn.epoch}")


def test_a_ratio_is_inverted_with_its_quartiles():
    here = Records([record("steps", claim_contents.steps({"dragon": (50.0, 25.0, 20.0)}))]).together("steps")
    assert here.base_over("dragon") == pytest.approx({"median": 4, "q1": 1 / 0.375, "q3": 1 / 0.225})


@pytest.mark.parametrize(
    ("median", "spread", "found"), [(0.9, 0.05, FASTER), (0.9, 0.2, NOISE), (0.97, 0.0, NOISE), (1.1, 0.05, SLOWER)]
)
def test_what_the_control_or_the_quartiles_do_not_set_apart_is_noise(median, spread, found):
    row = {"ratio": claim_contents.ratio(median, spread)}
    assert direction(row, {"noise": 0.05}) == found
    assert direction(row | {"within_noise": True}) == NOISE


def test_a_row_that_is_not_there_is_named():
    assert find([{"a": 1}, {"a": 2, "b": 3}], a=2) == {"a": 2, "b": 3}
    with pytest.raises(Missing, match="a row with a 3, b 'x'"):
        find([{"a": 1, "b": "x"}], a=3, b="x")


def test_a_record_without_the_field_a_rule_needs_is_an_error():
    with pytest.raises(InputError, match=r"dragon\.one_conv.*'calls'"):
        decide([record("structure-dragon", {})])


def test_a_verdict_outside_the_five_is_refused():
    with pytest.raises(InputError, match=r"unknown verdict 'maybe'.*undecided"):
        Verdict("time.ratio", "maybe", "")


def test_a_larger_measurement_of_some_variants_takes_nothing_from_a_smaller_one_of_all():
    some = claim_contents.steps(left_out=set(claim_contents.MS) - {"grcn", "dragon"})
    large = record("steps", some, n_train=4_000_000, name="music4all")
    small = [record("steps", claim_contents.steps()), record("routing", claim_contents.routing())]
    verdicts = {verdict.claim_id: verdict for verdict in decide([large, *small])}
    assert verdicts["time.ratio"].machine.startswith("music4all")
    assert verdicts["depth.multiplies"].machine.startswith("embedded")
    alone = {verdict.claim_id: verdict for verdict in decide([large])}
    assert "three iterations over that with one" in alone["depth.multiplies"].sentence
