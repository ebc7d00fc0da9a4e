"""For each measured claim: a record on which the rule gives one verdict, and a change of the record that turns it."""

import pytest

from mmrec_helpers.claims import decide
from mmrec_helpers.claims.ledger import _RULES, REPORTED_N_TRAIN
from tests.claim_contents import epoch, ratio, routing, steps
from tests.test_ledger import record

GRCN, DRAGON = "structure-grcn", "structure-dragon"


def call(module, edges, from_users, operators=None):
    directions = {"from_users": from_users, "from_items": edges - from_users}
    return {"module": module, "call": 0, "edges": edges, "operators": operators or {}} | directions


def parameter(entries, gradient):
    return {"entries": entries, "trainable": True, "receives_gradient": gradient}


def contents():
    """By kind, what the measuring code writes."""
    softmax = {"exp": 1}
    grcn = [call("v_gcn.attention", 100, 100, softmax)] * 3 + [call("v_gcn.attention", 200, 100, softmax)]
    grcn += [call("id_gcn.convolution", 200, 100)] * 2
    return {
        GRCN: {
            "calls": grcn,
            "n_train": 100,
            "modalities": ["visual"],
            "sweep": [{"iterations": n, "loop_calls": n} for n in range(4)],
            "attention_heads": 1,
            "parameters": [parameter(9, True), parameter(1, False)],
        },
        DRAGON: {
            "calls": [call("v_gcn.convolution", 200, 100)] * 2,
            "n_train": 100,
            "modalities": ["visual"],
            "convolution_distance": {"mean": 0.3, "sum": 0.8, "symmetric normalised sum": 1e-8},
            "item_graph_sweep": [{"n_mm_layers": n, "item_graph_runs": n} for n in (1, 2)],
            "user_graph_runs": 1,
            "user_graph_edges": 400,
            "item_graph_edges": 80,
            "parameters": [parameter(8, True), parameter(12, False)],
        },
        "steps": steps(),
        "epoch": epoch(),
        "routing": routing(),
        "roofline": {
            "stages": [{"model": "GRCN", "stage": "final_attention", "flop_per_byte": 0.2}],
            "matmul_gflop_s": 100.0,
            "copy_gb_s": 20.0,
            "bytes_per_edge": {"attention": 9000.0, "convolution": 4000.0},
        },
    }


def decided_all(changed, **made):
    verdicts = decide([record(kind, content, **made) for kind, content in changed.items()])
    return {verdict.claim_id: verdict for verdict in verdicts}


def decided(claim_id, changed, **made):
    return decided_all(changed, **made)[claim_id]


@pytest.fixture(scope="module")
def before():
    return decided_all(contents())


def set_at(content, path, value):
    *parents, last = path
    for step in parents:
        content = content[step]
    content[last] = value


ATTENTION = ("routing", "attention", "attention_to_convolution")
INTENSITY = ("roofline", "stages", 0, "flop_per_byte")
SPREAD_ALONE = steps({"dragon": (14.0, 12.0, 10.0)}, left_out=["dragon-diagnosed"])
CONVOLUTION = call("v_gcn.convolution", 200, 100)
TURNS = [
    ("time.ratio", "refuted", {("steps",): steps({"dragon": 14.0, "dragon-diagnosed": 21.0})}, "supported"),
    ("time.ratio", "refuted", {("steps",): steps({"dragon": 14.0})}, "partly"),
    ("time.ratio", "refuted", {("steps",): SPREAD_ALONE}, "partly"),
    ("routing.bottleneck", "partly", {("steps",): steps({"grcn-0": 40.0}), ("epoch",): epoch(100.0)}, "supported"),
    ("routing.bottleneck", "partly", {("steps",): steps({"grcn-0": 80.0}), ("epoch",): epoch(20.0)}, "refuted"),
    ("routing.bottleneck", "partly", {("steps",): steps({"grcn-0": 58.0}, 0.5), ("epoch",): epoch(20.0)}, "refuted"),
    ("depth.multiplies", "refuted", {("steps",): steps({"grcn-1": 35.0})}, "supported"),
    ("fix.one_iteration", "refuted", {("steps",): steps({"grcn-1": 33.0})}, "partly"),
    ("fix.two_iterations", "refuted", {("steps",): steps({"grcn-2": 66.0})}, "supported"),
    ("attention.cost", "supported", {("epoch",): epoch(10.0, 10.0)}, "refuted"),
    ("attention.cost", "supported", {ATTENTION: ratio(0.9)}, "partly"),
    ("attention.cost", "supported", {ATTENTION: ratio(1.015)}, "partly"),  # within the control's noise
    ("params.fewer", "partly", {(GRCN, "parameters", 0): parameter(7, True)}, "supported"),
    ("params.fewer", "partly", {(GRCN, "parameters", 1): parameter(12, False)}, "refuted"),
    ("routing.where", "supported", {(GRCN, "sweep", 2, "loop_calls"): 1}, "refuted"),
    ("routing.full_graph", "supported", {(GRCN, "calls", 0): call("v_gcn.attention", 50, 50)}, "refuted"),
    ("routing.updates", "refuted", {("routing",): routing(shipped=0.2)}, "supported"),
    ("routing.updates", "refuted", {("routing",): routing(paper=0.0)}, "undecided"),  # a dead control
    ("routing.final_conv", "supported", {(GRCN, "calls", 3): call("v_gcn.attention", 100, 100)}, "refuted"),
    ("grcn.id_branch", "supported", {(GRCN, "calls", 5): call("v_gcn.x", 200, 100)}, "refuted"),
    ("dragon.one_conv", "refuted", {(DRAGON, "calls"): [CONVOLUTION]}, "supported"),
    ("dragon.sage", "refuted", {(DRAGON, "convolution_distance", "mean"): 1e-8}, "supported"),
    ("dragon.no_attention", "supported", {(DRAGON, "calls", 0, "operators"): {"exp": 1}}, "refuted"),
    ("dragon.item_graph", "supported", {(DRAGON, "item_graph_sweep", 1, "item_graph_runs"): 1}, "refuted"),
    ("dragon.user_graph", "supported", {(DRAGON, "user_graph_runs"): 0}, "refuted"),
    ("dragon.batching", "partly", {(DRAGON, "calls"): [CONVOLUTION] * 9}, "refuted"),
    ("dragon.sparser", "partly", {(DRAGON, "item_graph_edges"): 300}, "refuted"),
    ("dragon.sparser", "partly", {(DRAGON, "user_graph_edges"): 10, (DRAGON, "calls"): []}, "supported"),
    ("memory.attention", "refuted", {INTENSITY: 10.0}, "partly"),
    ("memory.attention", "refuted", {INTENSITY: 10.0, ("roofline", "bytes_per_edge", "attention"): 9.0}, "supported"),
    ("fix.heads", "not applicable", {(GRCN, "attention_heads"): 4}, "undecided"),
]  # fmt: skip


@pytest.mark.parametrize(("claim_id", "first", "changes", "after"), TURNS)
def test_a_changed_record_turns_the_verdict(before, claim_id, first, changes, after):
    changed = contents()
    for path, value in changes.items():
        set_at(changed, path, value)
    assert before[claim_id].verdict == first
    assert decided(claim_id, changed).verdict == after


@pytest.mark.parametrize("kind", contents())
def test_without_a_record_that_it_needs_a_claim_is_undecided_and_names_it(before, kind):
    without = decided_all({name: content for name, content in contents().items() if name != kind})
    for claim_id in {turn[0] for turn in TURNS}:
        needed = kind in {record["kind"] for record in before[claim_id].records}
        assert (without[claim_id].verdict == "undecided") == needed
        assert not needed or f"{kind!r}" in without[claim_id].sentence


def test_the_time_of_grcn_needs_the_diagnosed_size_settings_and_device():
    records = {"steps": steps({"grcn-diagnosed": 150_000.0}), "epoch": epoch(settings="diagnosed")}
    large = {"n_train": REPORTED_N_TRAIN, "device": "cuda"}
    found = decided("time.grcn", records, **large)
    assert (found.verdict, len(found.records)) == ("supported", 2)
    assert "1500 s" in found.sentence
    assert decided("time.grcn", records, n_train=REPORTED_N_TRAIN).verdict == "undecided"
    assert decided("time.grcn", records, n_train=10**5, device="cuda").verdict == "undecided"
    assert decided("time.grcn", records | {"epoch": epoch()}, **large).verdict == "undecided"
    assert decided("time.grcn", records | {"steps": steps()}, **large).verdict == "refuted"


def test_the_two_shares_of_the_loop_are_named_for_what_they_are(before):
    sentence = before["routing.bottleneck"].sentence
    assert "Under the profiler 40% of GRCN's step lies in the routing loop" in sentence
    assert "leaving the loop out makes the step 42.0% shorter (100 ms to 58.0 ms)" in sentence


def test_the_published_logs_decide_the_time_of_dragon(monkeypatch):
    from mmrec_helpers.claims import rules_time

    assert decided("time.dragon", {}).verdict == "refuted"
    monkeypatch.setattr(rules_time, "logged_epochs", lambda model, setting, dataset="": [230.0])
    assert decided("time.dragon", {}).verdict == "supported"


def test_every_rule_is_turned_by_a_test():
    here = {"rules_structure", "rules_time"}  # the other modules of rules have test modules of their own
    rules = {claim_id for claim_id, (rule, _) in _RULES.items() if rule.__module__.rpartition(".")[2] in here}
    assert {turn[0] for turn in TURNS} | {"time.grcn", "time.dragon"} == rules
