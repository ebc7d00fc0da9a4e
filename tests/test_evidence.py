"""Recommendations, the committed evidence, and the ledger with its links."""

import re

import pytest

from mmrec_helpers.claims import VERDICTS, Verdict, decide, evidence, load_claims
from mmrec_helpers.claims.recommendations import FIRST, first_answer, recommend
from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.catalogue import PARTS
from mmrec_helpers.files import project_root
from mmrec_helpers.records import write_record
from tests.claim_contents import epoch, pair, routing, steps
from tests.test_ledger import record
from tests.toy_model import toy_data

ITERATIONS, ACCELERATE, REPAIR, PAPER, MEMORY, COMPARISON, CHOICE = range(7)


def accuracy(seeds, *names):
    rows = [
        {"variant": name, "label": name.upper(), "trained": True, "seeds": seeds, "recall@20": 0.08 + 0.01 * n}
        | {"recall@20_low": 0.07, "recall@20_high": 0.09}
        for n, name in enumerate(names or ("grcn", "grcn-live", "grcn-live-1"))
    ]
    pairs = [pair("grcn", "grcn-live", 0.002, 0.004, seeds), pair("grcn-live-1", "grcn-live", 0.001, 0.003, seeds)]
    return record("accuracy", {"variants": rows, "pairs": pairs})


def advice(which, *records):
    return recommend(records)[which]


def test_without_records_every_recommendation_says_what_is_missing_and_is_not_complete():
    found = recommend([])
    assert all("missing: a" in r.gain and not r.complete and not r.machine for r in found)
    assert first_answer(found, []).endswith("Nothing of this is measured yet.")


def test_the_first_is_to_leave_the_loop_out_with_the_gain_of_the_record():
    found = advice(ITERATIONS, record("steps", steps()), record("routing", routing(shipped=2e-16)))
    assert found.complete
    assert found.copy.startswith("n_layers: 0")
    same = (
        "output, loss and gradients stay the same (to 2e-16) and the step is 42.0% shorter: 58.0 ms instead of 100 ms."
    )
    assert found.gain == f"As shipped the loop's messages arrive nowhere: {same}"
    assert found.machine == "embedded on Toy 1, 2 threads"
    noisy = advice(ITERATIONS, record("steps", steps({"grcn-0": 99.0})), record("routing", routing()))
    assert "1.00% (within noise) shorter" in noisy.gain


def test_each_gain_is_a_registered_quantity_of_the_nearest_record():
    small, large = record("steps", steps()), record("steps", steps({"grcn-fused": 20.0}), n_train=10**6)
    found = [r.gain for r in recommend([small, large])]
    told = "GRCN's step becomes 5 times faster than as shipped (20 ms), DRAGON's 5 times (10 ms)"
    assert told in re.sub("<.*?>", "", found[ACCELERATE])
    assert found[PAPER] == "Its step becomes 5 times faster."
    assert "GRCN 5 times, DRAGON 5 times" in found[MEMORY]
    assert "takes 2 times DRAGON's (quartiles 2.00 to 2.00)" in found[COMPARISON]


def test_the_run_itself_goes_before_what_is_nearer_to_the_diagnosed_workload_and_its_numbers_are_marked():
    own, larger = record("steps", steps({"grcn-fused": 20.0})), record("steps", steps(), n_train=10**6)
    mark = '<data class="quantity" data-quantity="grcn-fused.factor" value="5">5 times</data>'
    assert mark in recommend([own, larger], [own])[ACCELERATE].gain
    assert "10 times faster" in recommend([own, larger])[ACCELERATE].gain
    assert "10 times faster" in recommend([own, larger], [record("routing", routing())])[ACCELERATE].gain


def test_the_first_screen_gives_the_lines_to_copy_and_says_where_it_was_measured():
    records = [record("steps", steps()), record("routing", routing()), accuracy(5)]
    text = first_answer(recommend(records), records)
    assert [f"{n}. **" in text for n in range(1, FIRST + 2)] == [True] * FIRST + [False]
    assert "   ```\n   n_layers: 0" in text
    assert "   model = accelerate(model)" in text
    assert "about 7 times slower than DRAGON. Under the same settings, GRCN's step takes 2 times DRAGON's" in text
    assert "7 times slower" not in first_answer(recommend([]), [])
    assert "*Nothing is measured on a GPU yet. Measured on" in text
    assert "embedded on Toy 1, 2 threads (1 and 2 and 3)." in text
    on_gpu = [record("steps", steps(), device="cuda")]
    assert "GPU yet" not in first_answer(recommend(on_gpu), on_gpu)


def test_what_is_accelerated_in_python_is_a_line_that_runs_as_it_stands():
    for found in recommend([]):
        if "import" in found.copy:
            compile(found.copy, found.situation, "exec")


@pytest.mark.parametrize(
    ("low", "high", "verdict", "said"),
    [
        (-0.004, -0.002, "worse", "lowers recall@20 by 0.0030 (0.0020 to 0.0040) with three iterations"),
        (0.003, 0.005, "better", "raises recall@20 by 0.0040 (0.0030 to 0.0050) with three iterations"),
        (-0.001, 0.001, "equivalent", "leaves recall@20 as it is (-0.0010 to +0.0010)"),
        (-0.004, 0.003, "open", "may change recall@20 (-0.0040 to +0.0030)"),
    ],
)
def test_what_routing_as_in_the_paper_does_is_said_as_the_interval_has_it(low, high, verdict, said):
    study = accuracy(5)
    study["content"]["pairs"][:1] = [pair("grcn-live", "grcn", low, high, 5) | {"verdict": verdict}]
    found = advice(REPAIR, study)
    assert said in found.gain
    assert "5 paired seeds" in found.gain
    assert found.complete
    few = advice(REPAIR, accuracy(4))
    assert not few.complete
    assert "missing: an accuracy study of routing as in the paper" in few.gain


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
    answer = {"question": "Why?", "answer": "Because.", "page": "05-routing"}
    (tmp_path / "evidence.txt").write_text("# why\nlong\n\nelsewhere/records  # another machine\n")
    write_record(tmp_path / "long" / "steps.json", "steps", {}, data=toy_data())
    write_record(tmp_path / "elsewhere" / "records" / "04-epoch.json", "epoch", epoch(), data=toy_data())
    write_record(tmp_path / "elsewhere" / "records" / "05-answer.json", "answer", answer)
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
