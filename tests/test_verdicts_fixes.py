"""For each claim about a fix: records on which the rule gives one verdict, and changes that turn it."""

import copy

import pytest

from mmrec_helpers.claims import decide_claim
from mmrec_helpers.claims.rules_fixes import FULL_N_TRAIN
from mmrec_helpers.experiments.accuracy.study import USER_METRICS
from tests.test_ledger import record

TIKTOK = FULL_N_TRAIN + 9541


def ratio(value):
    return {"median": value, "q1": value - 0.01, "q3": value + 0.01}


def arm(name, fix, value, output=0.0, step_ms=None):
    return {
        "arm": name,
        "fix": fix,
        "step_ms_median": 100.0 * value if step_ms is None else step_ms,
        "ratio_to_against": ratio(value),
        "output_difference": output,
        "gradient_difference": output,
        "exact": output < 1e-10,
    }


def fixes():
    rows = [
        arm("as shipped, none", "iterations", 0.5, step_ms=50.0),
        arm("live, 3 iterations", "iterations", 1.0),
        arm("live, 1 iteration", "iterations", 0.7, 0.4),
        arm("modalities batched, as shipped", "vectorise", 1.05),
        arm("modalities batched, live", "vectorise", 1.04),
        arm("attention cached, as shipped", "cache attention", 0.9),
        arm("attention cached, live", "cache attention", 0.85, 0.05),
        arm("sparse, as shipped", "sparse", 0.3),
        arm("sparse, live", "sparse", 0.4),
        arm("mean pooling", "alternative", 0.7, 0.6),
        arm("learned weighting", "alternative", 0.8, 0.6),
        arm("torch.compile(model)", "compile", 1.0),
        arm("torch.compile(loss)", "compile", 0.9),
    ]
    counted = {"loss_of_compiled_model": 0, "forward_of_compiled_model": 12, "compiled_loss": 18}
    compiled = {way: {"graphs": graphs} for way, graphs in counted.items()}
    return {"arms": rows, "compile": compiled, "compile_backend": "inductor"}


def pair(first, second, low, high, seeds=5):
    middle = (low + high) / 2
    metrics = {f"{name}{end}": v for name in USER_METRICS for end, v in (("", middle), ("_low", low), ("_high", high))}
    return {"first": first, "second": second, "seeds": seeds, "verdict": "open"} | metrics


def accuracy():
    """Iterations make no difference; all else is a little worse, but for mean pooling, of which nothing is known."""
    return {
        "pairs": [
            pair("as-shipped", "live-3", -0.010, -0.006),
            pair("live-1", "live-2", -0.001, 0.001),
            pair("live-1", "live-3", -0.001, 0.001),
            pair("live-2", "live-3", -0.001, 0.001),
            pair("live-3", "mean", -0.004, 0.005),
            pair("live-3", "learned", 0.004, 0.008),
        ]
    }


def routing(shipped=0.0, live=0.3):
    changes = {"as_shipped": shipped, "live": live}
    return {"arms": [{"routing": name, "output_change": change} for name, change in changes.items()]}


def verdict(claim_id, n_train=TIKTOK, **contents):
    return decide_claim(claim_id, [record(kind, content, n_train=n_train) for kind, content in contents.items()])


def changed(content, **pairs):
    """The accuracy content with the intervals of some pairs replaced, given as first__second=(low, high)."""
    content = copy.deepcopy(content)
    for names, (low, high) in pairs.items():
        first, second = (name.replace("_", "-") for name in names.split("__"))
        content["pairs"] = [row for row in content["pairs"] if {row["first"], row["second"]} != {first, second}]
        content["pairs"].append(pair(first, second, low, high))
    return content


@pytest.mark.parametrize(
    ("claim_id", "fewer", "more"), [("fix.accuracy", "live_1", "live_3"), ("fix.retention", "live_1", "live_2")]
)
def test_iterations_buy_no_accuracy_as_shipped_and_may_live(claim_id, fewer, more):
    refuted = verdict(claim_id, routing=routing(), accuracy=accuracy())
    assert refuted.verdict == "refuted"
    assert "same model" in refuted.sentence
    assert "Live" in refuted.sentence
    gain = changed(accuracy(), **{f"{fewer}__{more}": (-0.005, -0.001)})
    assert verdict(claim_id, routing=routing(), accuracy=gain).verdict == "partly"
    assert verdict(claim_id, routing=routing(shipped=0.1), accuracy=gain).verdict == "supported"
    assert verdict(claim_id, routing=routing(shipped=0.1), accuracy=accuracy()).verdict == "refuted"


@pytest.mark.parametrize("claim_id", ["fix.accuracy", "fix.retention"])
def test_the_routing_record_alone_decides_what_is_shipped_and_says_what_is_open(claim_id):
    alone = verdict(claim_id, routing=routing())
    assert alone.verdict == "refuted"
    assert "open: missing" in alone.sentence
    assert verdict(claim_id, accuracy=accuracy()).verdict == "undecided"
    assert verdict(claim_id, routing=routing(live=0.0), accuracy=accuracy()).verdict == "undecided"  # control is dead
    assert verdict(claim_id, routing=routing(shipped=0.1)).verdict == "undecided"


def test_three_iterations_are_too_many_where_fewer_are_as_good():
    contents = {"routing": routing(), "accuracy": accuracy()}
    assert verdict("overkill", **contents).verdict == "supported"
    worse = changed(accuracy(), live_1__live_3=(-0.006, -0.003), live_2__live_3=(-0.006, -0.003))
    assert verdict("overkill", **contents | {"accuracy": worse}).verdict == "partly"
    assert verdict("overkill", **contents | {"routing": routing(shipped=0.1)}).verdict == "partly"
    assert verdict("overkill", accuracy=worse, routing=routing(shipped=0.1)).verdict == "refuted"
    alone = verdict("overkill", routing=routing())
    assert alone.verdict == "undecided"
    assert "same model" in alone.sentence


def test_the_papers_sizes_differ_and_three_iterations_must_pay_too():
    assert verdict("paper.sizes", accuracy=accuracy()).verdict == "partly"
    pays = changed(accuracy(), live_1__live_3=(-0.005, -0.001), live_2__live_3=(-0.005, -0.001))
    assert verdict("paper.sizes", accuracy=pays).verdict == "supported"
    without = decide_claim("paper.sizes", [])
    assert without.verdict == "undecided"
    assert "1,239,508" in without.sentence


def test_the_papers_sizes_are_compared_with_the_diagnosed_one(monkeypatch):
    from mmrec_helpers.claims import rules_fixes

    sizes = {"Music4All": "1 x 1 x 1000000", "GRCN paper: A, B": "900000, 800000"}
    facts = tuple({"kind": "dataset", "dataset": name, "value": value} for name, value in sizes.items())
    monkeypatch.setattr(rules_fixes, "published_facts", lambda: facts)
    assert verdict("paper.sizes", accuracy=accuracy()).verdict == "refuted"


def test_something_faster_and_as_accurate_can_replace_routing():
    contents = {"fixes": fixes(), "accuracy": accuracy()}
    assert verdict("fix.alternative", **contents).verdict == "supported"  # one live iteration
    worse = changed(accuracy(), live_1__live_3=(-0.008, -0.003))
    left_open = verdict("fix.alternative", **contents | {"accuracy": worse})
    assert left_open.verdict == "undecided"
    assert "Open: mean pooling" in left_open.sentence
    all_worse = changed(worse, mean__live_3=(-0.008, -0.003))
    assert verdict("fix.alternative", **contents | {"accuracy": all_worse}).verdict == "refuted"
    slow = copy.deepcopy(fixes())
    for row in slow["arms"]:
        row["step_ms_median"] = 100.0
    assert verdict("fix.alternative", **contents | {"fixes": slow}).verdict == "refuted"


ACCURACY_CLAIMS = ("fix.alternative", "overkill", "paper.sizes")


@pytest.mark.parametrize("claim_id", ACCURACY_CLAIMS)
def test_a_small_or_short_study_decides_nothing(claim_id):
    contents = {"fixes": fixes(), "routing": routing(), "accuracy": accuracy()}
    assert verdict(claim_id, **contents).verdict != "undecided"
    small = verdict(claim_id, n_train=1000, **contents)
    assert small.verdict == "undecided"
    assert "5 paired seeds" in small.sentence
    for row in contents["accuracy"]["pairs"]:
        row["seeds"] = 4
    assert verdict(claim_id, **contents).verdict == "undecided"


@pytest.mark.parametrize("claim_id", ACCURACY_CLAIMS)
@pytest.mark.parametrize("first", ["full", "short"])
def test_a_short_study_of_the_same_data_does_not_hide_the_full_one(claim_id, first):
    short = {"pairs": [row | {"seeds": 2} for row in accuracy()["pairs"]]}
    studies = [accuracy(), short] if first == "full" else [short, accuracy()]
    kinds = [("fixes", fixes()), ("routing", routing()), *(("accuracy", study) for study in studies)]
    found = decide_claim(claim_id, [record(kind, content, n_train=TIKTOK) for kind, content in kinds])
    assert found.verdict != "undecided"


def set_arm(name, **values):
    content = fixes()
    row = next(row for row in content["arms"] if row["arm"] == name)
    row.update(values)
    return content


def test_batched_modalities_must_be_faster_and_exact():
    assert verdict("fix.vectorise", fixes=fixes()).verdict == "refuted"
    one = set_arm("modalities batched, live", ratio_to_against=ratio(0.9))
    assert verdict("fix.vectorise", fixes=one).verdict == "partly"
    one["arms"][3]["ratio_to_against"] = ratio(0.9)
    assert verdict("fix.vectorise", fixes=one).verdict == "supported"
    one["arms"][3]["exact"] = False
    assert verdict("fix.vectorise", fixes=one).verdict == "refuted"


def test_cached_attention_is_faster_and_changes_the_live_result():
    assert verdict("fix.cache_attention", fixes=fixes()).verdict == "partly"
    exact = set_arm("attention cached, live", exact=True)
    assert verdict("fix.cache_attention", fixes=exact).verdict == "supported"
    slow = set_arm("attention cached, live", ratio_to_against=ratio(1.1))
    slow["arms"][5]["ratio_to_against"] = ratio(1.1)
    assert verdict("fix.cache_attention", fixes=slow).verdict == "refuted"


def test_sparse_operations_must_be_faster_on_a_large_graph():
    assert verdict("fix.sparse", fixes=fixes()).verdict == "supported"
    assert verdict("fix.sparse", n_train=1000, fixes=fixes()).verdict == "undecided"
    slow = set_arm("sparse, live", ratio_to_against=ratio(1.5))
    slow["arms"][7]["ratio_to_against"] = ratio(1.2)
    assert verdict("fix.sparse", fixes=slow).verdict == "refuted"
    large = record("fixes", fixes(), n_train=2 * TIKTOK)
    assert decide_claim("fix.sparse", [record("fixes", slow, n_train=TIKTOK), large]).verdict == "supported"


def test_compiling_must_compile_something_and_be_faster():
    refuted = verdict("compile.noop", fixes=fixes())
    assert refuted.verdict == "refuted"
    assert "18 graphs" in refuted.sentence
    content = set_arm("torch.compile(model)", ratio_to_against=ratio(0.75))
    content["compile"]["loss_of_compiled_model"]["graphs"] = 3
    assert verdict("compile.noop", fixes=content).verdict == "supported"
    content["arms"][-2]["ratio_to_against"] = ratio(0.95)
    assert verdict("compile.noop", fixes=content).verdict == "partly"
    content["compile"]["forward_of_compiled_model"]["graphs"] = 0
    assert verdict("compile.noop", fixes=content).verdict == "undecided"


@pytest.mark.parametrize("claim_id", ["fix.vectorise", "fix.cache_attention", "fix.sparse", "compile.noop"])
def test_without_a_record_of_fixes_nothing_is_decided(claim_id):
    assert decide_claim(claim_id, []).verdict == "undecided"


def test_a_record_without_compiled_loss_decides_as_well():
    content = fixes()
    content["arms"].pop()
    del content["compile"]["compiled_loss"]
    assert verdict("compile.noop", fixes=content).verdict == "refuted"


def test_every_rule_of_the_module_is_turned_above():
    from mmrec_helpers.claims.ledger import _RULES

    here = {name for name, decide in _RULES.items() if decide.__module__.endswith("rules_fixes")}
    accuracy_rules = {"fix.accuracy", "fix.retention", *ACCURACY_CLAIMS}
    assert here == accuracy_rules | {"fix.vectorise", "fix.cache_attention", "fix.sparse", "compile.noop"}
