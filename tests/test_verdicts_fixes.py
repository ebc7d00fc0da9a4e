"""For each claim about a fix: records on which the rule gives one verdict, and changes that turn it."""

import pytest

from mmrec_helpers.claims import decide
from mmrec_helpers.claims.rules_fixes import FULL_N_TRAIN
from tests.claim_contents import MS, pair, ratio, routing, steps
from tests.test_ledger import record
from tests.test_verdicts import decided

TIKTOK = FULL_N_TRAIN + 9541


def accuracy(**pairs):
    """Iterations make no difference; all else is a little worse, but for mean pooling, of which nothing is known.

    pairs  other intervals, given as live_1__live=(low, high)
    """
    intervals = {
        "grcn__live": (-0.010, -0.006),
        "live_1__live_2": (-0.001, 0.001),
        "live_1__live": (-0.001, 0.001),
        "live_2__live": (-0.001, 0.001),
        "live__mean": (-0.004, 0.005),
        "live__learned": (0.004, 0.008),
    }
    rows = []
    for names, interval in (intervals | pairs).items():
        first, second = (f"grcn-{n.replace('_', '-')}".replace("grcn-grcn", "grcn") for n in names.split("__"))
        rows.append(pair(first, second, *interval))
    return {"pairs": rows}


def verdict(claim_id, n_train=TIKTOK, **contents):
    return decided(claim_id, contents, n_train=n_train)


@pytest.mark.parametrize(("claim_id", "gain"), [("fix.accuracy", "live_1__live"), ("fix.retention", "live_1__live_2")])
def test_iterations_buy_no_accuracy_as_shipped_and_may_as_in_the_paper(claim_id, gain):
    refuted = verdict(claim_id, routing=routing(), accuracy=accuracy())
    assert refuted.verdict == "refuted"
    assert "same model" in refuted.sentence
    assert "With routing as in the paper" in refuted.sentence
    gains = accuracy(**{gain: (-0.005, -0.001)})
    assert verdict(claim_id, routing=routing(), accuracy=gains).verdict == "partly"
    assert verdict(claim_id, routing=routing(shipped=0.1), accuracy=gains).verdict == "supported"
    assert verdict(claim_id, routing=routing(shipped=0.1), accuracy=accuracy()).verdict == "refuted"


@pytest.mark.parametrize("claim_id", ["fix.accuracy", "fix.retention"])
def test_the_routing_record_alone_decides_what_is_shipped_and_says_what_is_open(claim_id):
    alone = verdict(claim_id, routing=routing())
    assert alone.verdict == "refuted"
    assert "open, missing: a study" in alone.sentence
    dead_control = {"routing": routing(paper=0.0), "accuracy": accuracy()}
    for contents in ({"accuracy": accuracy()}, dead_control, {"routing": routing(shipped=0.1)}):
        found = verdict(claim_id, **contents)
        assert found.verdict == "undecided"
        assert "Missing: a" in found.sentence


def test_three_iterations_are_too_many_where_fewer_are_as_good():
    contents = {"routing": routing(), "accuracy": accuracy()}
    assert verdict("overkill", **contents).verdict == "supported"
    worse = accuracy(live_1__live=(-0.006, -0.003), live_2__live=(-0.006, -0.003))
    assert verdict("overkill", **contents | {"accuracy": worse}).verdict == "partly"
    assert verdict("overkill", **contents | {"routing": routing(shipped=0.1)}).verdict == "partly"
    assert verdict("overkill", accuracy=worse, routing=routing(shipped=0.1)).verdict == "refuted"
    alone = verdict("overkill", routing=routing())
    assert alone.verdict == "undecided"
    assert "same model" in alone.sentence


def test_the_papers_sizes_differ_and_three_iterations_must_pay_too(monkeypatch):
    from mmrec_helpers.claims import rules_fixes

    assert verdict("paper.sizes", accuracy=accuracy()).verdict == "partly"
    pays = accuracy(live_1__live=(-0.005, -0.001), live_2__live=(-0.005, -0.001))
    assert verdict("paper.sizes", accuracy=pays).verdict == "supported"
    without = verdict("paper.sizes")
    assert without.verdict == "undecided"
    assert "1,239,508" in without.sentence
    monkeypatch.setattr(rules_fixes, "published_interactions", lambda: (1_000_000, [900_000, 800_000]))
    assert verdict("paper.sizes", accuracy=accuracy()).verdict == "refuted"


def test_something_faster_and_as_accurate_can_replace_routing():
    assert verdict("fix.alternative", steps=steps(), accuracy=accuracy()).verdict == "supported"  # one iteration
    worse = accuracy(live_1__live=(-0.008, -0.003))
    left_open = verdict("fix.alternative", steps=steps(), accuracy=worse)
    assert left_open.verdict == "undecided"
    assert "Open: mean pooling" in left_open.sentence
    all_worse = accuracy(live_1__live=(-0.008, -0.003), live__mean=(0.003, 0.008))
    assert verdict("fix.alternative", steps=steps(), accuracy=all_worse).verdict == "refuted"
    for ms in (100.0, 99.0):  # as slow, or faster by less than the noise
        slow = steps(dict.fromkeys(("grcn-0", "grcn-live-1", "grcn-mean", "grcn-learned"), ms))
        found = verdict("fix.alternative", steps=slow, accuracy=accuracy())
        assert found.verdict == "refuted"
        assert "(within noise)" in found.sentence


ACCURACY_CLAIMS = ("fix.alternative", "overkill", "paper.sizes")


@pytest.mark.parametrize("claim_id", ACCURACY_CLAIMS)
def test_a_small_or_short_study_decides_nothing_and_does_not_hide_a_full_one(claim_id):
    contents = {"steps": steps(), "routing": routing(), "accuracy": accuracy()}
    assert verdict(claim_id, **contents).verdict != "undecided"
    short = {"pairs": [row | {"seeds": 4} for row in accuracy()["pairs"]]}
    for little in (verdict(claim_id, n_train=1000, **contents), verdict(claim_id, **contents | {"accuracy": short})):
        assert little.verdict == "undecided"
        assert "5 paired seeds" in little.sentence
    full = [record(kind, content, n_train=TIKTOK) for kind, content in contents.items()]
    for records in ([*full, record("accuracy", short, n_train=TIKTOK)], [record("accuracy", short), *full]):
        (found,) = (one for one in decide(records) if one.claim_id == claim_id)
        assert found.verdict != "undecided"


@pytest.mark.parametrize(
    ("claim_id", "shipped", "paper", "first"),
    [
        ("fix.vectorise", "grcn-batched", "grcn-live-batched", "refuted"),
        ("fix.cache_attention", "grcn-cached", "grcn-live-cached", "partly"),
        ("fix.sparse", "grcn-sparse", "grcn-live-sparse", "supported"),
    ],
)
def test_rearranged_work_must_be_faster_and_exact(claim_id, shipped, paper, first):
    def found(noise=0.02, differences=(), **ms):
        changed = {shipped: ms.get("shipped", MS[shipped]), paper: ms.get("paper", MS[paper])}
        exact = {paper: 0.0} | dict(differences)
        return verdict(claim_id, steps=steps(changed, noise, exact))

    assert verdict(claim_id, steps=steps()).verdict == first
    assert found(shipped=80.0, paper=80.0).verdict == "supported"
    assert found(shipped=80.0, paper=110.0).verdict == "partly"
    assert found(shipped=110.0, paper=110.0).verdict == "refuted"
    changing = found(shipped=80.0, paper=80.0, differences={paper: 0.05}).verdict
    assert changing == ("partly" if claim_id == "fix.cache_attention" else "refuted")
    assert found(shipped=99.0, paper=99.0).verdict == "refuted"  # no difference beyond a small noise
    hidden = found(shipped=90.0, paper=90.0, noise=0.2)
    assert hidden.verdict == "undecided"
    assert "less noise than 20%" in hidden.sentence
    not_compared = found(differences={shipped: None})
    assert not_compared.verdict == "undecided"
    assert "are compared" in not_compared.sentence


def test_sparse_operations_are_judged_on_the_largest_graph():
    assert verdict("fix.sparse", n_train=1000, steps=steps()).verdict == "undecided"
    slow = steps({"grcn-sparse": 120.0, "grcn-live-sparse": 150.0})
    records = [record("steps", slow, n_train=TIKTOK, device="cuda"), record("steps", steps(), n_train=2 * TIKTOK)]
    (found,) = (one for one in decide(records) if one.claim_id == "fix.sparse")
    assert found.verdict == "supported"


def compiled(called=1.0, graphs=0, control=12, with_loss=True):
    counted = {"loss_of_compiled_model": graphs, "forward_of_compiled_model": control}
    rows = [{"way": "model", "ratio": ratio(called)}]
    if with_loss:
        counted["compiled_loss"] = 18
        rows.append({"way": "loss", "ratio": ratio(0.9)})
    graphs = {way: {"graphs": count} for way, count in counted.items()}
    return {"compile": {"graphs": graphs, "rows": rows, "control": {"noise": 0.03}}, "compile_backend": "inductor"}


def test_compiling_must_compile_something_and_be_faster():
    refuted = verdict("compile.noop", fixes=compiled())
    assert refuted.verdict == "refuted"
    assert "18 graphs" in refuted.sentence
    assert "1.00 (within noise)" in refuted.sentence
    assert verdict("compile.noop", fixes=compiled(0.75, graphs=3)).verdict == "supported"
    assert verdict("compile.noop", fixes=compiled(0.95, graphs=3)).verdict == "partly"
    assert verdict("compile.noop", fixes=compiled(0.98, graphs=3)).verdict == "refuted"  # within noise
    assert verdict("compile.noop", fixes=compiled(0.95, graphs=3, control=0)).verdict == "undecided"
    assert verdict("compile.noop", fixes=compiled(with_loss=False)).verdict == "refuted"


def test_a_record_with_the_compiled_loss_is_preferred():
    records = [record("fixes", compiled()), record("fixes", compiled(with_loss=False), n_train=TIKTOK)]
    (found,) = (one for one in decide(records) if one.claim_id == "compile.noop")
    assert found.records == (records[0],)


REARRANGED = ("fix.vectorise", "fix.cache_attention", "fix.sparse")


@pytest.mark.parametrize(
    ("claims", "kind"), [((*REARRANGED, "fix.alternative"), "steps"), (("compile.noop",), "fixes")]
)
def test_without_its_record_nothing_is_decided(claims, kind):
    for claim_id in claims:
        found = verdict(claim_id, accuracy=accuracy())
        assert found.verdict == "undecided"
        assert f"a record of kind {kind!r}" in found.sentence


def test_every_rule_of_the_module_is_turned_above():
    from mmrec_helpers.claims.ledger import _RULES

    here = {name for name, (rule, _) in _RULES.items() if rule.__module__.endswith("rules_fixes")}
    assert here == {"fix.accuracy", "fix.retention", *ACCURACY_CLAIMS, *REARRANGED, "compile.noop"}
