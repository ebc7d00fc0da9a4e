"""For each measured claim: a record on which the rule gives one verdict, and a change of the record that turns it."""

import copy

import pytest

from mmrec_helpers.claims import decide_claim
from mmrec_helpers.claims.ledger import _RULES, REPORTED_N_TRAIN
from tests.test_ledger import record

GRCN, DRAGON = "structure.grcn", "structure.dragon"


def call(module, edges, from_users, operators=None):
    return {
        "module": module,
        "call": 0,
        "edges": edges,
        "from_users": from_users,
        "from_items": edges - from_users,
        "operators": operators or {},
    }


def ratio(value, **more):
    return {"median": value, "q1": value - 0.01, "q3": value + 0.01} | more


def shipped(value, iterations):
    return ratio(value, routing="as_shipped", numerator=3, denominator=iterations)


def arm(routing, iterations, step_ms, loop_ms, change):
    named = {"routing": routing, "iterations": iterations, "output_change": change}
    return named | {"step_ms_median": step_ms, "step_profiled_ms": step_ms, "loop_ms": loop_ms}


def contents():
    """By kind, what the measuring code writes, in the shape of the public models: loop dead, three iterations."""
    softmax = {"exp": 1}
    grcn = [call("v_gcn.conv_embed_1", 100, 100, softmax)] * 3 + [call("v_gcn.conv_embed_1", 200, 100, softmax)]
    grcn += [call("id_gcn.conv_embed_1", 200, 100), call("id_gcn.conv_embed_2", 200, 100)]
    dragon = [call("v_gcn.conv_embed_1", 200, 100)] * 2
    regions = [
        {"region": "routing.visual.0", "phase": "forward", "ms": 60.0},
        {"region": "final_attention.visual", "phase": "backward", "ms": 30.0},
        {"region": "features.visual", "phase": "forward", "ms": 30.0},
    ]
    dragon_regions = [
        {"region": "user_graph", "phase": "forward", "ms": 40.0},
        {"region": "convolution.visual.0", "phase": "forward", "ms": 40.0},
    ]
    times = {0: 65.0, 1: 80.0, 2: 95.0, 3: 110.0}
    return {
        GRCN: {
            "calls": grcn,
            "n_train": 100,
            "modalities": ["visual"],
            "sweep": [{"iterations": n, "loop_calls": n} for n in range(4)],
            "attention_heads": 1,
            "parameters": {"trainable": 10, "receiving_gradient": 9},
        },
        DRAGON: {
            "calls": dragon,
            "n_train": 100,
            "modalities": ["visual"],
            "convolution_distance": {"mean": 0.3, "sum": 0.8, "symmetric normalised sum": 1e-8},
            "item_graph_sweep": [{"n_mm_layers": n, "item_graph_runs": n} for n in (1, 2)],
            "user_graph_runs": 1,
            "user_graph_edges": 400,
            "item_graph_edges": 80,
            "parameters": {"trainable": 20, "receiving_gradient": 8},
        },
        "epoch": {
            "settings_name": "plain",
            "models": [
                {"model": "GRCN", "epoch_s": 20.0, "regions": regions},
                {"model": "DRAGON", "epoch_s": 10.0, "regions": dragon_regions},
            ],
            "ratio_grcn_to_dragon": ratio(2.0, heap="default malloc"),
        },
        "attention": {"attention_to_convolution": ratio(2.5)},
        "roofline": {
            "stages": [{"model": "GRCN", "stage": "final_attention", "gbytes": 10.0, "gflop": 2.0}],
            "matmul_gflop_s": 100.0,
            "copy_gb_s": 20.0,
            "bytes_per_edge": {"attention": 9000.0, "convolution": 4000.0},
        },
        "routing": {
            "arms": [arm("as_shipped", n, times[n], 15.0 * n, 0.0) for n in times]
            + [arm("live", n, times[n], 15.0 * n, 0.1 * n) for n in times],
            "ratios": [ratio(times[3] / times[n], routing="as_shipped", numerator=3, denominator=n) for n in (0, 1, 2)],
            "fits": [{"routing": "as_shipped", "fixed_ms": 65.0, "per_iteration_ms": 15.0}],
        },
    }


def verdict_of(claim_id, changed, n_train=1000, device="cpu"):
    records = [record(kind, content, n_train=n_train, device=device) for kind, content in changed.items()]
    return decide_claim(claim_id, records).verdict


def set_at(content, path, value):
    *parents, last = path
    for step in parents:
        content = content[step]
    content[last] = value


TURNS = [
    ("time.ratio", "refuted", [(("epoch", "ratio_grcn_to_dragon"), ratio(7.0, heap=""))], "supported"),
    ("time.ratio", "refuted", [(("epoch", "ratio_grcn_to_dragon"), ratio(5.5, heap=""))], "partly"),
    (
        "routing.bottleneck",
        "partly",
        [(("routing", "arms", 3, "loop_ms"), 70.0), (("routing", "ratios", 0), shipped(2.5, 0))],
        "supported",
    ),
    (
        "routing.bottleneck",
        "partly",
        [(("routing", "arms", 3, "loop_ms"), 20.0), (("routing", "ratios", 0), shipped(1.2, 0))],
        "refuted",
    ),
    ("depth.multiplies", "refuted", [(("routing", "ratios", 1), shipped(2.9, 1))], "supported"),
    ("fix.one_iteration", "refuted", [(("routing", "ratios", 1), shipped(3.0, 1))], "partly"),
    ("fix.two_iterations", "refuted", [(("routing", "ratios", 2), shipped(1.5, 2))], "supported"),
    ("attention.cost", "supported", [(("epoch", "models", 0, "regions", 2, "ms"), 200.0)], "refuted"),
    ("attention.cost", "supported", [(("attention", "attention_to_convolution"), ratio(0.9))], "partly"),
    ("params.fewer", "partly", [((GRCN, "parameters", "receiving_gradient"), 7)], "supported"),
    ("params.fewer", "partly", [((GRCN, "parameters", "trainable"), 21)], "refuted"),
    ("routing.where", "supported", [((GRCN, "sweep", 2, "loop_calls"), 1)], "refuted"),
    ("routing.full_graph", "supported", [((GRCN, "calls", 0, "edges"), 50)], "refuted"),
    ("routing.updates", "refuted", [(("routing", "arms", 3, "output_change"), 0.2)], "supported"),
    ("routing.final_conv", "supported", [((GRCN, "calls", 3), call("v_gcn.conv_embed_1", 100, 100))], "refuted"),
    ("grcn.id_branch", "supported", [((GRCN, "calls", 5), call("v_gcn.x", 200, 100))], "refuted"),
    ("dragon.one_conv", "refuted", [((DRAGON, "calls"), [call("v_gcn.conv_embed_1", 200, 100)])], "supported"),
    ("dragon.sage", "refuted", [((DRAGON, "convolution_distance", "mean"), 1e-8)], "supported"),
    ("dragon.no_attention", "supported", [((DRAGON, "calls", 0, "operators"), {"exp": 1})], "refuted"),
    ("dragon.item_graph", "supported", [((DRAGON, "item_graph_sweep", 1, "item_graph_runs"), 1)], "refuted"),
    ("dragon.user_graph", "supported", [((DRAGON, "user_graph_runs"), 0)], "refuted"),
    ("dragon.batching", "partly", [((DRAGON, "calls"), [call("v_gcn.conv_embed_1", 200, 100)] * 9)], "refuted"),
    ("dragon.sparser", "partly", [((DRAGON, "item_graph_edges"), 300)], "refuted"),
    ("dragon.sparser", "partly", [((DRAGON, "user_graph_edges"), 10), ((DRAGON, "calls"), [])], "supported"),
    ("memory.attention", "refuted", [(("roofline", "stages", 0, "gflop"), 100.0)], "partly"),
    (
        "memory.attention",
        "refuted",
        [(("roofline", "stages", 0, "gflop"), 100.0), (("roofline", "bytes_per_edge", "attention"), 100.0)],
        "supported",
    ),
    ("fix.heads", "not applicable", [((GRCN, "attention_heads"), 4)], "undecided"),
]  # fmt: skip


@pytest.mark.parametrize(("claim_id", "before", "changes", "after"), TURNS)
def test_a_changed_record_turns_the_verdict(claim_id, before, changes, after):
    original = contents()
    changed = copy.deepcopy(original)
    for path, value in changes:
        set_at(changed, path, value)
    assert verdict_of(claim_id, original) == before
    assert verdict_of(claim_id, changed) == after


def test_the_time_of_grcn_needs_the_diagnosed_size_settings_and_device():
    records = contents()
    records["epoch"]["settings_name"] = "diagnosed"
    records["epoch"]["models"][0]["epoch_s"] = 1500.0
    assert verdict_of("time.grcn", records, n_train=REPORTED_N_TRAIN, device="cuda") == "supported"
    assert verdict_of("time.grcn", records, n_train=REPORTED_N_TRAIN) == "undecided"
    assert verdict_of("time.grcn", records, n_train=10**5, device="cuda") == "undecided"
    records["epoch"]["models"][0]["epoch_s"] = 400.0
    assert verdict_of("time.grcn", records, n_train=REPORTED_N_TRAIN, device="cuda") == "refuted"


def test_pairs_under_two_settings_on_the_same_data_are_told_apart_and_must_agree():
    """Nearest device and data set alone; of each settings the newest record."""
    seven, one = {"ratio_grcn_to_dragon": ratio(7.0, heap="")}, {"ratio_grcn_to_dragon": ratio(1.0, heap="")}
    pair = [
        record("epoch", {"settings_name": "plain", **one}),
        record("epoch", {"settings_name": "diagnosed", **seven}),
        record("epoch", {"settings_name": "diagnosed", **one}, n_train=10),
    ]
    told = decide_claim("time.ratio", pair)
    assert told.verdict == "partly"
    assert told.numbers == {"ratio_plain": 1.0, "ratio_diagnosed": 7.0}
    pair[0] = record("epoch", {"settings_name": "plain", **seven})
    assert decide_claim("time.ratio", pair).verdict == "supported"
    newer = record("epoch", {"settings_name": "plain", **one}, time="2026-02-01T00:00:00+00:00")
    assert decide_claim("time.ratio", [*pair, newer]).verdict == "partly"


def test_the_published_logs_decide_the_time_of_dragon(monkeypatch):
    from mmrec_helpers.claims import rules_time

    assert decide_claim("time.dragon", []).verdict == "refuted"
    told = {"kind": "epoch_time", "model": "DRAGON", "source": "log"}
    facts = ({**told, "setting": "both modalities", "value": "230"}, {**told, "setting": "text only", "value": "120"})
    monkeypatch.setattr(rules_time, "published_facts", lambda: facts)
    assert decide_claim("time.dragon", []).verdict == "supported"


def test_a_control_that_shows_nothing_leaves_the_claim_undecided():
    records = contents()
    for one in records["routing"]["arms"]:
        one["output_change"] = 0.0
    assert verdict_of("routing.updates", records) == "undecided"


def test_every_rule_is_turned_by_a_test():
    here = {"rules_structure", "rules_time"}  # the other modules of rules have test modules of their own
    rules = {claim_id for claim_id, rule in _RULES.items() if rule.__module__.rpartition(".")[2] in here}
    assert {turn[0] for turn in TURNS} | {"time.grcn", "time.dragon"} == rules
