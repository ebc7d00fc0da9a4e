"""Recommendations, the committed evidence, and the ledger with its links."""

import pytest

from mmrec_helpers.claims import VERDICTS, Records, Verdict, decide, evidence, load_claims
from mmrec_helpers.claims.recommendations import recommend, recommendation_table
from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.catalogue import PARTS
from mmrec_helpers.files import project_root
from mmrec_helpers.records import write_record
from tests.claim_contents import epoch, pair, routing, steps
from tests.test_ledger import record

ITERATIONS, ACCELERATE, PAPER, MEMORY, COMPARISON, CHOICE = range(6)


def accuracy(seeds, *names):
    rows = [
        {"variant": name, "label": name.upper(), "trained": True, "seeds": seeds, "recall@20": 0.08 + 0.01 * n}
        | {"recall@20_low": 0.07, "recall@20_high": 0.09}
        for n, name in enumerate(names or ("grcn", "grcn-live", "grcn-live-1"))
    ]
    pairs = [pair("grcn", "grcn-live", 0.002, 0.004, seeds), pair("grcn-live-1", "grcn-live", 0.001, 0.003, seeds)]
    return record("accuracy", {"variants": rows, "pairs": pairs})


def advice(which, *records):
    return recommend(Records(records))[which]


def test_without_records_every_recommendation_says_what_is_missing_and_is_not_complete():
    found = recommend(Records([]))
    assert all("missing: a" in r.gain and not r.complete and not r.machine for r in found)
    assert recommendation_table(found)["situation"].tolist() == [r.situation for r in found]


def test_the_first_is_to_leave_the_loop_out_with_the_gain_of_the_record():
    found = advice(ITERATIONS, record("steps", steps()), record("routing", routing(shipped=2e-16)))
    assert found.complete
    assert found.copy == "n_layers: 0"
    assert found.gain == "The output is the same to 2e-16, and the step 42.0 % shorter: 58.0 ms in place of 100 ms."
    assert found.machine == "Toy 1, 2 threads; embedded"
    noisy = advice(ITERATIONS, record("steps", steps({"grcn-0": 99.0})), record("routing", routing()))
    assert "1.00 % (within noise) shorter" in noisy.gain


def test_each_gain_is_a_registered_quantity_of_the_nearest_record():
    small, large = record("steps", steps()), record("steps", steps({"grcn-fused": 20.0}), n_train=10**6)
    found = [r.gain for r in recommend(Records([small, large]))]
    assert "GRCN 5.00 times, DRAGON 5.00 times" in found[ACCELERATE]
    assert "The reference's step over the fast one: 5.00 times." in found[PAPER]
    assert "GRCN 5.00 times, DRAGON 5.00 times" in found[MEMORY]
    assert "takes 2.00 times DRAGON's (quartiles 2.00 to 2.00)" in found[COMPARISON]


def test_what_is_accelerated_in_python_is_a_line_that_runs_as_it_stands():
    for found in recommend(Records([])):
        if "import" in found.copy:
            compile(found.copy, found.situation, "exec")


def test_an_accuracy_difference_has_the_sign_of_its_order_and_comes_only_from_enough_seeds():
    found = advice(PAPER, record("steps", steps()), accuracy(5))
    assert '"GRCN, paper\'s routing" minus "GRCN", test recall@20: -0.0030 (-0.0040 to -0.0020)' in found.gain
    assert "5 paired seeds" in found.gain
    assert found.complete
    few = advice(PAPER, record("steps", steps()), accuracy(4))
    assert not few.complete
    assert "5.00 times" in few.gain
    assert few.gain.count("missing: an accuracy study of") == 1


def test_models_are_ranked_by_a_study_with_enough_seeds_and_a_variant_half_done_takes_nothing_from_the_others():
    growing = accuracy(5)
    growing["content"]["variants"].append(dict(accuracy(1, "dragon")["content"]["variants"][0], **{"recall@20": 0.2}))
    found = advice(CHOICE, growing)
    assert found.gain.startswith(
        "Test recall@20, best first, over 5 seeds or more: GRCN-LIVE-1 0.1000 (0.0700 to 0.0900);"
    )
    assert "DRAGON" not in found.gain
    assert not advice(CHOICE, accuracy(2)).complete


@pytest.fixture
def reports(tmp_path):
    (tmp_path / "evidence.txt").write_text("# why\nlong\n\nelsewhere/records  # another machine\n")
    write_record(tmp_path / "long" / "steps.json", "steps", {})
    write_record(tmp_path / "elsewhere" / "records" / "04-epoch.json", "epoch", epoch())
    write_record(tmp_path / "elsewhere" / "records" / "05-answer.json", "answer", {})
    return tmp_path


def test_the_listed_folders_are_read_and_what_measures_nothing_left_out(reports):
    found = evidence.committed_records(reports)
    assert [(r["kind"], r["source"].name) for r in found] == [("steps", "steps.json"), ("epoch", "04-epoch.json")]
    assert evidence.committed_records(reports / "long") == []
    assert [r["kind"] for r in evidence.run_records(reports / "elsewhere")] == ["epoch"]


def test_a_listed_folder_that_is_not_there_is_named(reports):
    (reports / "evidence.txt").write_text("gone\n")
    with pytest.raises(InputError, match="'gone'"):
        evidence.committed_records(reports)


def test_links_lead_to_the_page_of_a_kinds_home_and_else_to_the_record(reports):
    records = tuple(evidence.committed_records(reports))
    verdict = Verdict("routing.bottleneck", "partly", "", records)
    assert evidence.evidence_links(verdict, reports / "mine") == (
        "[long/steps](../long/steps.json), [records/04-epoch](../elsewhere/records/04-epoch.json)"
    )
    (reports / "elsewhere" / "04-epoch.html").touch()
    verdict = Verdict("routing.bottleneck", "partly", "", records[1:])
    assert evidence.evidence_links(verdict, reports / "mine") == "[elsewhere, 04-epoch](../elsewhere/04-epoch.html)"
    assert evidence.evidence_links(verdict, reports / "elsewhere") == "[04-epoch](04-epoch.html)"
    assert evidence.evidence_links(Verdict("time.dragon", "refuted", ""), reports) == "public logs"
    assert evidence.evidence_links(Verdict("overkill", "undecided", ""), reports) == ""


def test_every_kind_that_decides_has_a_page():
    parts = {part for claim in load_claims() for part in claim.decided_by} - {"published"}
    assert all(evidence._page_of(part).startswith(evidence.HOMES[part]) for part in parts)
    homes = {path.name[:2] for path in (project_root() / "notebooks").glob("*.ipynb")}
    assert {part.home for part in PARTS.values()} <= homes


def test_the_ledger_is_grouped_by_verdict_and_names_this_runs_only_where_it_differs(reports):
    records = [record("routing", routing()) | {"source": reports / "long" / "routing.json"}]
    verdicts, here = decide(records), decide([])
    table = evidence.ledger_with_links(verdicts, here, reports)
    assert sorted(table["claim_id"]) == sorted(claim.id for claim in load_claims())
    order = [VERDICTS.index(verdict) for verdict in table["verdict"]]
    assert order == sorted(order)
    rows = table.set_index("claim_id")
    assert rows.loc["routing.updates", ["verdict", "this_run"]].tolist() == ["refuted", "undecided"]
    assert rows.loc["time.dragon", "this_run"] == ""
    assert rows.loc["routing.updates", "evidence"] == "[long/routing](long/routing.json)"


def test_the_checkout_lists_folders_that_are_there():
    assert evidence.committed_records()
