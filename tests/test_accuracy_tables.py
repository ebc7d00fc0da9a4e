"""Tables and sentences of an accuracy record say what its numbers say."""

import pytest

from mmrec_helpers.experiments.accuracy.intervals import accuracy_summary
from mmrec_helpers.experiments.accuracy.tables import accuracy_table, answers, difference_table, state_of
from tests.test_statistics import study_runs


@pytest.fixture(scope="module")
def summary():
    return accuracy_summary(study_runs(0.01), resamples=200)


def test_each_arm_has_a_row_with_its_setting_and_interval(summary):
    table = accuracy_table(summary).set_index("arm")
    assert table.loc["GRCN as shipped", "rate, reg"] == "0.001, 0.001"
    assert table.loc["popularity", "rate, reg"] == "–"
    for _, row in table.iterrows():
        low, high = map(float, row["95 % interval"].split(" to "))
        assert low <= row["recall@20"] <= high


def test_differences_are_turned_to_the_shown_order(summary):
    table = difference_table(summary).set_index("label")
    row = table.loc["live, 3 iterations less as shipped"]
    assert row["difference"] == pytest.approx(0.01, abs=1e-6)
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["verdict"] == "better"


def test_the_answer_names_only_what_was_compared(summary):
    told = answers(summary)
    assert told.startswith("better: live, 3 iterations +0.0100")
    assert "mean pooling" not in told
    assert answers({"arms": summary["arms"], "pairs": []}) == "no arm is compared yet"


def test_the_state_says_whether_the_study_decides(summary):
    assert state_of(summary) == "arms: 3, paired seeds: 5, test users: 400; complete"
    assert "not complete" in state_of(accuracy_summary(study_runs(0.01, seeds=2), resamples=50))
