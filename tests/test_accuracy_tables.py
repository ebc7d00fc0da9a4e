"""Tables and sentences of an accuracy record say what its numbers say."""

import pytest

from mmrec_helpers.experiments.accuracy.intervals import accuracy_summary
from mmrec_helpers.experiments.accuracy.study import SEARCH
from mmrec_helpers.experiments.accuracy.tables import (
    SHOWN_DIFFERENCES,
    accuracy_table,
    answers,
    difference_table,
    state_of,
)
from tests.test_statistics import study_runs


@pytest.fixture(scope="module")
def summary():
    return accuracy_summary(study_runs(0.01), resamples=200)


def compared(**verdicts):
    """A summary in which these variants are compared with GRCN, given as live_1=("better", 0.01)."""
    names = {name: f"grcn-{name.replace('_', '-')}" for name in verdicts}
    metrics = ("recall@20", "recall@20_low", "recall@20_high", "ndcg@20", "ndcg@20_low", "ndcg@20_high")
    pairs = [
        {"first": names[name], "second": "grcn", "verdict": verdict, "seeds": 5} | dict.fromkeys(metrics, difference)
        for name, (verdict, difference) in verdicts.items()
    ]
    rows = [{"variant": name, "trained": True, "seeds": 5} for name in ("grcn", *names.values())]
    return {"variants": rows, "pairs": pairs, "margin": 0.002, "users": 400, "full": True, "full_seeds": 5}


def test_each_variant_has_a_row_with_its_setting_and_interval(summary):
    table = accuracy_table(summary).set_index("variant")
    assert table.loc["GRCN", ["learning rate", "reg weight"]].tolist() == [0.001, 0.001]
    assert table.loc["popularity", ["learning rate", "reg weight", "seed sd", "epochs"]].isna().all()
    assert (table["low"] <= table["recall@20"]).all()
    assert (table["recall@20"] <= table["high"]).all()


def test_differences_are_reversed_to_the_shown_order_and_grouped_by_baseline(summary):
    table = difference_table(summary)
    assert set(table["group"]) == {"difference to GRCN"}
    row = table.set_index("label").loc["GRCN, paper's routing"]
    assert row["difference"] == pytest.approx(0.01, abs=1e-6)
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["verdict"] == "better"


def test_only_studied_variants_are_shown_and_each_difference_once():
    shown = [(variant, baseline) for baseline, variants in SHOWN_DIFFERENCES.items() for variant in variants]
    assert {name for pair in shown for name in pair} == set(SEARCH)
    assert len({frozenset(pair) for pair in shown}) == len(shown)


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ({}, "No variant has been compared with GRCN yet."),
        ({"mean": ("better", 0.003)}, "Mean pooling (+0.0030) is better than GRCN."),
        ({"live_1": ("worse", -0.01)}, "Paper's routing with 1 iteration (-0.0100) is worse than GRCN."),
        (
            {"mean": ("equivalent", 0.0), "live": ("equivalent", -0.001)},
            "All 2 compared variants are equal to GRCN within the margin of 0.002: mean pooling (+0.0000) and paper's "
            "routing (-0.0010).",
        ),
        (
            {
                "live": ("worse", -0.02),
                "mean": ("open", -0.001),
                "live_1": ("worse", -0.01),
                "live_2": ("worse", -0.015),
            },
            "No variant is better than GRCN; paper's routing with 1 iteration (-0.0100), paper's routing with 2 "
            "iterations (-0.0150) and paper's routing (-0.0200) are worse than GRCN; mean pooling (-0.0010) is not "
            "distinguishable from GRCN with these runs.",
        ),
    ],
)
def test_the_answer_is_a_sentence_for_the_numbers_it_holds(verdicts, sentence):
    assert answers(compared(**verdicts)) == sentence


def test_the_state_says_whether_the_study_decides(summary):
    assert state_of(summary) == "2 variants were trained with 5 paired seeds each and tested on 400 users."
    short = accuracy_summary(study_runs(0.01, seeds=2), resamples=50)
    assert state_of(short).endswith("2 paired seeds each and tested on 400 users; fewer than 5 seeds decide nothing.")
    assert state_of(compared()) == "1 variant was trained with 5 paired seeds and tested on 400 users."
    short["variants"][0]["seeds"] = 1
    assert state_of(short).startswith("2 variants were trained with 1 to 2 paired seeds and tested")
    assert state_of(short | {"variants": []}) == "No variant has been trained yet."
