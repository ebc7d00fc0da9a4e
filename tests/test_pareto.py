"""Studies with enough seeds, and their accuracy beside the time and memory of the steps."""

import pytest

from mmrec_helpers.claims.full_studies import difference_text, full_pair, full_studies, full_variants
from mmrec_helpers.claims.ledger import Missing, Records
from mmrec_helpers.claims.pareto import pareto_table, steps_with_accuracy
from tests.test_ledger import record


def steps(*rows, fingerprint="abc"):
    names = ("variant", "base", "exact", "share", "peak_bytes")
    made = record("steps", {"variants": [dict(zip(names, row, strict=True), label=row[0].upper()) for row in rows]})
    made["provenance"]["data"]["fingerprint"] = fingerprint
    return made


def accuracy(seeds, fingerprint="abc", **recall):
    """A study of these variants, given as grcn_live=0.09; its one pair is the first minus the last."""
    names = [name.replace("_", "-") for name in recall]
    rows = [
        {"variant": name, "trained": True, "seeds": seeds, "recall@20": mean}
        | {"recall@20_low": mean - 0.01, "recall@20_high": mean + 0.01}
        for name, mean in zip(names, recall.values(), strict=True)
    ]
    differences = {f"{metric}{end}": 0.003 for metric in ("recall@20", "ndcg@20") for end in ("", "_low", "_high")}
    pair = {"first": names[0], "second": names[-1], "seeds": seeds, "verdict": "better"} | differences
    made = record("accuracy", {"variants": rows, "pairs": [pair]})
    made["provenance"]["data"]["fingerprint"] = fingerprint
    return made


STEPS = steps(
    ("grcn", "grcn", True, 1.0, 100e6),
    ("grcn-fused", "grcn", True, 0.1, 10e6),
    ("grcn-live", "grcn", False, 1.2, 120e6),
    ("grcn-live-cached", "grcn-live", False, 0.9, 90e6),
    ("grcn-live-fused", "grcn-live", True, 0.2, 20e6),
    ("dragon", "grcn", None, 0.5, 50e6),
    ("dragon-fused", "dragon", True, 0.05, 5e6),
    ("dragon-sparse", "dragon", True, None, 50e6),
)


def test_what_is_exact_against_its_base_has_the_bases_accuracy_and_what_is_not_has_none():
    table = steps_with_accuracy(Records([STEPS, accuracy(5, grcn=0.08, grcn_live=0.07, dragon=0.09)]))
    assert table.set_index("variant")["recall"].to_dict() == {
        "grcn": 0.08,
        "grcn-fused": 0.08,
        "grcn-live": 0.07,
        "grcn-live-fused": 0.07,
        "dragon": 0.09,
        "dragon-fused": 0.09,
    }


def test_only_what_nothing_beats_in_all_three_is_best():
    table = steps_with_accuracy(Records([STEPS, accuracy(5, grcn=0.08, grcn_live=0.09)])).set_index("label")
    assert set(table.index[table["best"]]) == {"GRCN-FUSED", "GRCN-LIVE-FUSED"}
    shown = pareto_table(table.reset_index())
    assert shown.columns.tolist()[:3] == ["variant", "step ratio", "peak MB"]
    assert shown["step ratio"].tolist() == [0.1, 0.2, 1.0, 1.2]
    assert set(shown.loc[shown["unbeaten"], "variant"]) == {"GRCN-FUSED", "GRCN-LIVE-FUSED"}


@pytest.mark.parametrize(
    "studied",
    [
        accuracy(4, grcn=0.08, grcn_live=0.09),
        accuracy(5, "other", grcn=0.08, grcn_live=0.09),
        accuracy(5, lightgcn=0.1, popularity=0.1),
    ],
)
def test_without_a_full_study_of_the_same_data_and_variants_nothing_is_joined(studied):
    with pytest.raises(Missing):
        steps_with_accuracy(Records([STEPS, studied]))


def test_a_variant_that_is_half_done_takes_nothing_from_the_others():
    growing = accuracy(5, grcn_live=0.07, grcn=0.08)
    content = growing["content"]
    content["variants"].append(dict(content["variants"][0], variant="dragon", seeds=1))
    content["pairs"].append(dict(content["pairs"][0], second="dragon", seeds=1))
    assert [row["variant"] for row in full_variants(growing)] == ["grcn-live", "grcn"]
    assert full_pair(growing, "dragon", "grcn-live") is None
    assert difference_text(full_pair(growing, "grcn", "grcn-live")) == "-0.0030 (-0.0030 to -0.0030)"


def test_the_study_that_compares_most_comes_first_then_the_larger_and_small_ones_can_be_left_out():
    few, more, large = (accuracy(5, grcn=0.08, grcn_live=0.09) for _ in range(3))
    more["content"]["pairs"] *= 2
    large["provenance"]["data"] = {"name": "large", "n_train": 10**6}
    records = Records([few, more, large, accuracy(4, grcn=0.08, grcn_live=0.09)])
    assert full_studies(records) == [more, large, few]
    assert full_studies(records, n_train=10**5) == [large]
