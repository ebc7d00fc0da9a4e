"""Differences between models with confidence intervals, from the test metrics of every user in every paired run.

Two things vary when a model is trained and tested again: the seed, and who the test users are. Both are resampled: a
bootstrap sample draws as many seeds and as many users, with replacement, and averages the differences of the drawn
users in the drawn seeds. A difference within a margin fixed beforehand counts as none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.accuracy.study import ARMS, MONITOR, USER_METRICS, unpack, validated

EQUIVALENCE_MARGIN = 0.002  # of test recall@20, fixed before the study was run
CONFIDENCE = 0.95
RESAMPLES = 4000
FULL_SEEDS = 5  # fewer decide nothing
_BLOCK = 500  # resamples in memory at a time

EQUIVALENT, BETTER, WORSE, OPEN = "equivalent", "better", "worse", "open"
_TURNED = {BETTER: WORSE, WORSE: BETTER}


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and users, and where a bootstrap over both puts it."""

    mean: float
    low: float
    high: float
    seeds: int
    users: int


def bootstrap_mean(
    values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """The mean of ``values`` (seeds, users) with its percentile interval over resampled seeds and users.

    For a difference of two models, ``values`` are the differences of their paired runs. Raises InputError for another
    shape, no value, or a value that is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise InputError(f"values have shape {values.shape}: expected finite numbers (seeds, users)")
    return _interval(values.mean(), _means_of_drawn_users(values, seed, resamples), values.shape[1], seed, confidence)


def _means_of_drawn_users(table: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """The mean of each row of ``table`` (rows, users) over as many users, drawn with replacement: (resamples, rows).
    The draws are the same for all rows, and for all tables of as many users."""
    n_users = table.shape[1]
    generator = np.random.default_rng([seed, 0])
    means = []
    for start in range(0, resamples, _BLOCK):
        count = min(_BLOCK, resamples - start)
        drawn = generator.integers(0, n_users, (count, n_users)) + n_users * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n_users).reshape(count, n_users)
        means.append(times.astype(np.float64) @ table.T / n_users)
    return np.concatenate(means)


def _interval(
    mean: float, drawn_means: np.ndarray, users: int, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """The interval of a mean over seeds, from each seed's mean over the drawn users: (resamples, seeds)."""
    resamples, seeds = drawn_means.shape
    generator = np.random.default_rng([seed, 1])
    times = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)  # (resamples, seeds)
    low, high = np.quantile((times * drawn_means).sum(axis=1) / seeds, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(mean), float(low), float(high), seeds, users)


def judge(difference: Interval, margin: float = EQUIVALENCE_MARGIN) -> str:
    """What an interval says: "equivalent" (all within the margin), "better" or "worse" (all on one side of zero and
    not within the margin), or "open" (zero and more than the margin are both possible)."""
    if -margin <= difference.low and difference.high <= margin:
        return EQUIVALENT
    if difference.low > 0:
        return BETTER
    return WORSE if difference.high < 0 else OPEN


def accuracy_summary(runs: Sequence[Mapping[str, Any]], resamples: int = RESAMPLES) -> dict[str, Any]:
    """The content of a record of kind "accuracy", from the contents of all finished runs of one study.

    arms   one row an arm whose search is done: arm, label, the chosen setting and what the search found, seeds done,
           mean, interval and standard deviation over seeds of test recall@20 and NDCG@20, epochs, and seconds an epoch
    pairs  one row a pair of arms with seeds in common: difference (first less second) of both metrics with its interval
           over their paired runs, and the verdict of ``judge`` on recall@20
    full   whether every arm of the study has at least five paired seeds
    """
    chosen = {arm: found for arm in ARMS if (found := _chosen_runs(arm, runs))}
    digests = {run["users"]["digest"] for found in chosen.values() for run in found.values()}
    if len(digests) > 1:
        raise InputError("the runs were tested on different users: expected the records of one study")
    tested = {arm: _Tested.of(found, resamples) for arm, found in chosen.items()}
    arms = [_arm_row(arm, found, runs) | _metric_row(tested[arm].mean_of) for arm, found in chosen.items()]
    return {
        "metric": MONITOR,
        "margin": EQUIVALENCE_MARGIN,
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "full_seeds": FULL_SEEDS,
        "users": next((of.users for of in tested.values()), 0),
        "arms": arms,
        "pairs": list(_pair_rows(tested)),
        "full": bool(arms) and all(row["seeds"] >= FULL_SEEDS or not row["trained"] for row in arms),
    }


def find_pair(summary: Mapping[str, Any], first: str, second: str) -> dict[str, Any] | None:
    """The row of ``pairs`` for two arms, turned so that it is first less second; None if there is none."""
    for row in summary["pairs"]:
        if (row["first"], row["second"]) == (first, second):
            return dict(row)
        if (row["first"], row["second"]) == (second, first):
            turned = {"first": first, "second": second, "verdict": _TURNED.get(row["verdict"], row["verdict"])}
            for metric in USER_METRICS:
                turned |= {metric: -row[metric], f"{metric}_low": -row[f"{metric}_high"]}
                turned[f"{metric}_high"] = -row[f"{metric}_low"]
            return row | turned
    return None


@dataclass(frozen=True)
class _Tested:
    """An arm's test metrics, by metric and seed: the mean over users, and over the users of each resample."""

    trained: bool
    users: int
    means: Mapping[str, Mapping[int, float]]
    drawn: Mapping[str, Mapping[int, np.ndarray]]  # (resamples,)

    @classmethod
    def of(cls, found: Mapping[int, Mapping[str, Any]], resamples: int) -> _Tested:
        means, drawn = {}, {}
        for metric in USER_METRICS:
            table = np.stack([unpack(run["users"][metric]) for run in found.values()]).astype(np.float64)
            means[metric] = dict(zip(found, table.mean(axis=1), strict=True))
            drawn[metric] = dict(zip(found, _means_of_drawn_users(table, 0, resamples).T, strict=True))
        trained = any("learning_rate" in run["identity"] for run in found.values())
        return cls(trained, table.shape[1], means, drawn)

    @property
    def seeds(self) -> list[int]:
        return sorted(self.means[MONITOR])

    def mean_of(self, metric: str) -> tuple[Interval, list[float]]:
        """Mean and interval of a metric over seeds and users, and each seed's mean."""
        per_seed = [self.means[metric][seed] for seed in self.seeds]
        drawn = np.stack([self.drawn[metric][seed] for seed in self.seeds], axis=1)
        return _interval(np.mean(per_seed), drawn, self.users), per_seed

    def less(self, other: _Tested, metric: str, seeds: Sequence[int]) -> tuple[Interval, list[float]]:
        """The same of the difference to another arm, paired by seed."""
        pairs = [(self._seed(seed), other._seed(seed)) for seed in seeds]
        per_seed = [self.means[metric][a] - other.means[metric][b] for a, b in pairs]
        drawn = np.stack([self.drawn[metric][a] - other.drawn[metric][b] for a, b in pairs], axis=1)
        return _interval(np.mean(per_seed), drawn, self.users), per_seed

    def _seed(self, seed: int) -> int:
        return seed if self.trained else self.seeds[0]  # without training all seeds are the same

    def common_seeds(self, other: _Tested) -> list[int]:
        if self.trained == other.trained:
            return sorted(set(self.seeds) & set(other.seeds))
        return self.seeds if self.trained else other.seeds


def _chosen_runs(arm: str, runs: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The runs of an arm at the setting that validation chose, by seed.

    Of the settings with the most seeds, the one with the best mean validation over them. Without further seeds that is
    the best of seed 0; a wider search may have given a second setting all seeds, and then one seed does not decide.
    """
    own = [run for run in runs if run["identity"]["arm"] == arm and run["test"] is not None]
    own.sort(key=lambda run: (run["setting"] or 0, run["identity"]["seed"]))  # of equal settings the first is chosen
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for run in own:
        settings.setdefault(_without_seed(run), []).append(run)
    searched = [found for found in settings.values() if any(run["search"] for run in found)]
    most = max(map(len, searched), default=0)
    finalists = [found for found in searched if len(found) == most]
    best = max(finalists, key=lambda found: _mean([validated(run) for run in found]), default=[])
    return {run["identity"]["seed"]: run for run in best}


def _without_seed(run: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in run["identity"].items() if name != "seed"}, sort_keys=True)


def _arm_row(arm: str, found: Mapping[int, Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = next(iter(found.values()))
    trained = "learning_rate" in first["identity"]
    epoch_s = [row["epoch_s"] for run in found.values() for row in run["epochs"]]
    return {
        "arm": arm,
        "label": first["label"],
        "trained": trained,
        "seeds": len(found),
        "setting": _setting(first),
        "searched": [_searched(run) for run in runs if run["identity"]["arm"] == arm and run["search"]],
        "valid_recall@20": _mean([run["valid"][MONITOR] for run in found.values()]) if trained else None,
        "epochs": _mean([len(run["epochs"]) for run in found.values()]) if trained else None,
        "epoch_s_median": float(np.median(epoch_s)) if epoch_s else None,
        "beside_other_work": any(run.get("beside_other_work") for run in found.values()),
    }


def _pair_rows(tested: Mapping[str, _Tested]) -> Iterator[dict[str, Any]]:
    for first, second in combinations(tested, 2):
        seeds = tested[first].common_seeds(tested[second])
        if seeds:
            less = partial(tested[first].less, tested[second], seeds=seeds)
            row = {"first": first, "second": second, "seeds": len(seeds)} | _metric_row(less)
            yield row | {"verdict": judge(less(MONITOR)[0])}


def _metric_row(of: Callable[[str], tuple[Interval, list[float]]]) -> dict[str, float | None]:
    """Each metric's mean, interval, and standard deviation over seeds (None with one seed)."""
    row = {}
    for metric in USER_METRICS:
        interval, per_seed = of(metric)
        row |= {metric: interval.mean, f"{metric}_low": interval.low, f"{metric}_high": interval.high}
        row[f"{metric}_seed_sd"] = float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None
    return row


def _setting(run: Mapping[str, Any]) -> dict[str, Any]:
    names = ("learning_rate", "reg_weight", "eval_every")
    return {name: run["identity"][name] for name in names if name in run["identity"]}


def _searched(run: Mapping[str, Any]) -> dict[str, Any]:
    found = None if run["valid"] is None else run["valid"][MONITOR]
    return _setting(run) | {"valid_recall@20": found, "epochs": len(run["epochs"]), "failed": run["failed"]}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
