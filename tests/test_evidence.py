"""Recommendations, the committed evidence, and the ledger with its links."""

import pytest

from mmrec_helpers.claims import decide, evidence, load_claims
from mmrec_helpers.claims.ledger import Records
from mmrec_helpers.claims.recommendations import recommend, recommendation_table
from mmrec_helpers.config import InputError
from mmrec_helpers.records import write_record
from tests.test_ledger import record


def bench(what, median, heap="malloc trimming disabled", peak=12.0):
    return {"what": what, "heap": heap, "median": median, "q1": median - 1, "q3": median + 1, "peak_ratio": peak}


def routing(ratio):
    arms = [{"routing": "as_shipped", "output_change": 2e-16}, {"routing": "live", "output_change": 0.8}]
    row = {"routing": "as_shipped", "numerator": 3, "denominator": 0, "median": ratio, "q1": ratio, "q3": ratio}
    return record("routing", {"arms": arms, "ratios": [row]})


def accuracy(seeds, mean=-0.003):
    pair = {"first": "as-shipped", "second": "live-3", "seeds": seeds, "recall@20": mean}
    pair |= {"recall@20_low": mean - 0.001, "recall@20_high": mean + 0.001, "verdict": "worse"}
    pair |= {"ndcg@20": mean, "ndcg@20_low": mean - 0.001, "ndcg@20_high": mean + 0.001}
    arms = [
        {"arm": name, "label": label, "trained": True, "seeds": seeds, "recall@20": 0.08}
        | {"recall@20_low": 0.07, "recall@20_high": 0.09}
        for name, label in (("as-shipped", "GRCN as shipped"), ("live-3", "GRCN live"))
    ]
    return record("accuracy", {"arms": arms, "pairs": [pair]})


def gains(*records):
    return {r.situation: r.gain for r in recommend(Records(records))}


def find(found, part):
    (gain,) = [gain for situation, gain in found.items() if part in situation]
    return gain


def test_without_records_every_recommendation_says_what_is_missing():
    found = recommend(Records([]))
    assert all("missing" in r.gain and not r.machine for r in found)
    assert list(recommendation_table(found)["situation"]) == [r.situation for r in found]


def test_the_gain_of_leaving_the_loop_out_follows_the_record():
    assert "50% of its time" in find(gains(routing(2.0)), "faster today")
    assert "25% of its time" in find(gains(routing(4.0)), "faster today")


def test_the_switch_quotes_the_retained_heap_and_the_nearest_record_that_has_the_ratio():
    rows = [bench("GRCN step, as shipped", 10.0, "default malloc"), bench("GRCN step, as shipped", 8.0)]
    rows.append(bench("DRAGON step", 5.0))
    small, large = record("bench", {"ratios": rows}), record("bench", {"ratios": []}, n_train=10**6)
    told = find(gains(small, large), "can install")
    assert "GRCN 8.0 times faster" in told
    assert "DRAGON 5.0 times faster" in told


def test_an_accuracy_difference_is_quoted_with_its_sign_turned_and_only_from_enough_seeds():
    rows = record("bench", {"ratios": [bench("GRCN step, live, 3 iterations", 5.0)]})
    assert "test recall@20 +0.0030 (+0.0020 to +0.0040), 5 paired seeds" in find(gains(rows, accuracy(5)), "the paper")
    assert "waits for a study" in find(gains(rows, accuracy(4)), "the paper")


def test_an_arm_that_is_half_done_takes_nothing_from_the_others():
    growing = accuracy(5)
    half = dict(growing["content"]["arms"][0], arm="dragon", label="DRAGON", seeds=1)
    growing["content"]["arms"].append(half | {"recall@20": 0.2})
    growing["content"]["pairs"].append(dict(growing["content"]["pairs"][0], second="dragon", seeds=1))
    told = find(gains(growing), "choose a model")
    assert "GRCN as shipped 0.0800" in told
    assert "DRAGON" not in told


def test_models_are_ranked_only_by_a_study_with_enough_seeds():
    assert "GRCN as shipped 0.0800" in find(gains(accuracy(5)), "choose a model")
    assert "missing" in find(gains(accuracy(2)), "choose a model")


@pytest.fixture
def reports(tmp_path):
    (tmp_path / "evidence.txt").write_text("# why\nlong\n\nelsewhere/records  # another machine\n")
    write_record(tmp_path / "long" / "bench.json", "bench", {"ratios": []})
    write_record(tmp_path / "elsewhere" / "records" / "05-routing.json", "routing", {"arms": []})
    write_record(tmp_path / "elsewhere" / "records" / "05-answer.json", "answer", {})
    return tmp_path


def test_the_listed_folders_are_read_and_what_measures_nothing_left_out(reports):
    found = evidence.committed_records(reports)
    assert [(r["kind"], r["source"].name) for r in found] == [("bench", "bench.json"), ("routing", "05-routing.json")]
    assert evidence.committed_records(reports / "long") == []


def test_a_listed_folder_that_is_not_there_is_named(reports):
    (reports / "evidence.txt").write_text("gone\n")
    with pytest.raises(InputError, match="'gone'"):
        evidence.committed_records(reports)


def test_links_lead_to_the_page_of_a_run_and_else_to_the_record(reports):
    (reports / "elsewhere" / "05-what-a-routing-iteration-costs.html").touch()
    run = reports / "mine"
    shelf = Records(evidence.committed_records(reports))
    claim = next(c for c in load_claims() if c.decided_by == ("routing",))
    assert evidence.evidence_links(claim, shelf, run) == (
        "[elsewhere 05](../elsewhere/05-what-a-routing-iteration-costs.html)"
    )
    (reports / "elsewhere" / "05-what-a-routing-iteration-costs.html").unlink()
    assert evidence.evidence_links(claim, shelf, run) == "[records/05-routing](../elsewhere/records/05-routing.json)"
    assert evidence.evidence_links(claim, Records([]), run) == "no routing yet"


def test_the_ledger_shows_both_judgements(reports):
    verdicts = decide([])
    table = evidence.ledger_with_links(load_claims(), verdicts, verdicts, Records([]), reports)
    assert len(table) == len(load_claims())
    assert set(table["on this run"]) == {v.verdict for v in verdicts}
    assert table["verdict"].str.startswith("**").all()


def test_the_checkout_lists_folders_that_are_there():
    assert evidence.committed_records()
