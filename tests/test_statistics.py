"""Intervals over seeds and users: against known spreads, paired, and judged against the margin."""

import numpy as np
import pytest

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.accuracy.intervals import EQUIVALENCE_MARGIN, accuracy_summary, judge
from mmrec_helpers.experiments.accuracy.study import SEARCH, USER_METRICS, Run, StudySettings, pack, unpack

N_USERS = 400


def run_content(variant, setting, seed, valid, users, digest="same"):
    """The record of a finished run, as ``train_run`` writes it, with these values of every user."""
    run = Run(variant, setting, seed)
    return {
        "identity": StudySettings().identity(run),
        "name": run.name,
        "setting": setting,
        "search": seed == 0,
        "epochs": [{"epoch": 0, "loss": 1.0, "epoch_s": 2.0}] if setting is not None else [],
        "valid": None if valid is None else {"recall@20": valid},
        "test": {"recall@20": float(users.sum()) / max(len(users), 1)},
        "users": {"count": len(users), "digest": digest} | {metric: pack(users) for metric in USER_METRICS},
        "failed": None,
        "beside_other_work": True,
    }


def interval(values, resamples=4000):
    """Mean, low and high of a variant whose runs, one per seed, have these values (seeds, users)."""
    runs = [run_content("grcn", 0, seed, 0.5, users) for seed, users in enumerate(values)]
    (row,) = accuracy_summary(runs, resamples)["variants"]
    return row["recall@20"], row["recall@20_low"], row["recall@20_high"]


def test_the_interval_of_independent_values_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(0.3, 1.0, size=(1, 4000))
    mean, low, high = interval(values)
    expected = 1.96 * values.std() / np.sqrt(values.size)
    assert mean == pytest.approx(values.mean())
    assert high - mean == pytest.approx(expected, rel=0.1)
    assert mean - low == pytest.approx(expected, rel=0.1)


def test_the_interval_holds_the_spread_of_the_seeds_too():
    rng = np.random.default_rng(2)
    users = rng.normal(0, 0.01, size=(8, 500))
    among_seeds = users + rng.normal(0, 1.0, size=(8, 1))
    (_, low, high), (_, wide_low, wide_high) = interval(users), interval(among_seeds)
    expected = 2 * 1.96 * among_seeds.mean(axis=1).std() / np.sqrt(8)
    assert wide_high - wide_low == pytest.approx(expected, rel=0.15)
    assert high - low < 0.01 * (wide_high - wide_low)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    found = [interval(rng.normal(0, 1, size=(1, 60)), resamples=500) for _ in range(200)]
    covered = np.mean([low <= 0 <= high for _, low, high in found])
    assert 0.90 <= covered <= 0.99


def test_constant_values_have_no_spread_and_the_same_values_the_same_interval():
    assert interval(np.full((5, 10), 0.25)) == (0.25, 0.25, 0.25)
    values = np.random.default_rng(4).random((3, 50))
    assert interval(values) == interval(values)
    assert interval(values) != interval(values + 0.1)


@pytest.mark.parametrize("users", [np.zeros(0), np.array([0.5, np.nan]), np.array([0.5, np.inf]), np.zeros((2, 2))])
def test_a_run_without_a_finite_value_of_every_user_is_refused(users):
    with pytest.raises(InputError, match=r"grcn-lr0\.001-reg0\.1-seed0: expected a finite recall@20 of each of its"):
        accuracy_summary([run_content("grcn", 0, 0, 0.5, users)], resamples=10)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.0015, 0.0015, "equivalent"),
        (0.0005, 0.0015, "equivalent"),
        (0.001, 0.004, "better"),
        (-0.004, -0.001, "worse"),
        (-0.001, 0.004, "open"),
        (-EQUIVALENCE_MARGIN, EQUIVALENCE_MARGIN, "equivalent"),
    ],
)
def test_an_interval_is_judged_against_the_margin(low, high, verdict):
    assert judge(low, high) == verdict


def test_packing_keeps_numbers():
    values = np.random.default_rng(5).random(1000).astype(np.float32)
    np.testing.assert_array_equal(unpack(pack(values)), values)
    assert len(pack(np.zeros(10_000))) < 200


def study_runs(gain, seeds=5):
    """Two variants whose users vary much, and together: the second is better by ``gain`` for every user and seed."""
    rng = np.random.default_rng(6)
    users = rng.random(N_USERS)
    runs = []
    for seed in range(seeds):
        shared = users + 0.01 * rng.normal()
        runs.append(run_content("grcn", 1, seed, 0.5, shared))
        runs.append(run_content("grcn-live", 0, seed, 0.6, shared + gain))
    runs.append(run_content("grcn", 0, 0, 0.4, users + 0.5))  # better on test, worse on validation
    return [*runs, run_content("popularity", None, 0, None, 0 * users)]


def test_pairing_takes_out_what_users_and_seeds_share():
    summary = accuracy_summary(study_runs(0.01), resamples=500)
    pair = next(row for row in summary["pairs"] if (row["first"], row["second"]) == ("grcn", "grcn-live"))
    assert pair["seeds"] == 5
    assert pair["recall@20"] == pytest.approx(-0.01, abs=1e-6)
    assert pair["recall@20_low"] == pytest.approx(pair["recall@20_high"], abs=1e-6)
    assert pair["verdict"] == "worse"
    row = summary["variants"][0]
    assert row["recall@20_high"] - row["recall@20_low"] > 0.05  # control: unpaired, the users' spread is there


def test_a_difference_within_the_margin_is_none():
    summary = accuracy_summary(study_runs(0.0015), resamples=500)
    assert summary["pairs"][0]["verdict"] == "equivalent"


def test_validation_chooses_the_setting_not_the_test():
    summary = accuracy_summary(study_runs(0.01), resamples=100)
    row = next(row for row in summary["variants"] if row["variant"] == "grcn")
    assert row["setting"]["reg_weight"] == SEARCH["grcn"][1].reg_weight
    assert [one["valid_recall@20"] for one in row["searched"]] == [0.5, 0.4]


@pytest.mark.parametrize(
    ("first", "others", "seeds", "chosen"),
    [
        (0.7, 0.4, 5, 0),  # better with seed 0, worse over all
        (0.55, 0.9, 5, 1),
        (0.7, 0.9, 4, 0),  # not done
    ],
)
def test_of_two_settings_with_all_seeds_the_mean_validation_chooses(first, others, seeds, chosen):
    wider = [
        run_content("grcn-live", 1, seed, others if seed else first, np.full(N_USERS, seed / 10))
        for seed in range(seeds)
    ]
    summary = accuracy_summary([*study_runs(0.01), *wider], resamples=100)
    row = next(row for row in summary["variants"] if row["variant"] == "grcn-live")
    assert row["setting"]["reg_weight"] == SEARCH["grcn-live"][chosen].reg_weight
    assert row["seeds"] == 5


def test_a_variant_without_training_pairs_with_every_seed():
    summary = accuracy_summary(study_runs(0.01), resamples=100)
    pair = next(row for row in summary["pairs"] if (row["first"], row["second"]) == ("grcn-live", "popularity"))
    assert pair["seeds"] == 5
    assert pair["verdict"] == "better"


def test_a_study_is_full_with_five_seeds_of_every_trained_variant():
    assert accuracy_summary(study_runs(0.01), resamples=100)["full"]
    assert not accuracy_summary(study_runs(0.01, seeds=4), resamples=100)["full"]


def test_runs_on_different_users_are_refused():
    runs = study_runs(0.01)
    runs[1]["users"]["digest"] = "other"
    with pytest.raises(InputError, match="different users"):
        accuracy_summary(runs, resamples=100)
