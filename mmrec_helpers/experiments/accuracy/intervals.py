"""Differences between models with confidence intervals, from the test metrics of every user in every paired run.

Two things vary when a model is trained and tested again: the seed, and who the test users are. Both are resampled: a
bootstrap sample draws as many seeds and as many users, with replacement, and averages the differences of the drawn
users in the drawn seeds. A difference within a margin fixed beforehand counts as none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.accuracy.study import MONITOR, SEARCH, USER_METRICS, unpack, validated
from mmrec_helpers.models.variants import VARIANTS

EQUIVALENCE_MARGIN = 0.002  # of test recall@20, fixed before the study was run
CONFIDENCE = 0.95
RESAMPLES = 4000
FULL_SEEDS = 5  # fewer decide nothing
_BLOCK = 500  # resamples in memory at a time

EQUIVALENT, BETTER, WORSE, OPEN = "equivalent", "better", "worse", "open"
_REVERSED = {BETTER: WORSE, WORSE: BETTER}


def judge(low: float, high: float, margin: float = EQUIVALENCE_MARGIN) -> str:
    """What the interval of a difference says: "equivalent" (all within the margin), "better" or "worse" (all on one
    side of zero and not within the margin), or "open" (zero and more than the margin are both possible)."""
    if -margin <= low and high <= margin:
        return EQUIVALENT
    if low > 0:
        return BETTER
    return WORSE if high < 0 else OPEN


def accuracy_summary(runs: Sequence[Mapping[str, Any]], resamples: int = RESAMPLES) -> dict[str, Any]:
    """The content of a record of kind "accuracy", from the contents of all finished runs of one study.

    variants  one row per variant whose search is done: variant, label, the chosen setting and what the search found,
              seeds done, mean, interval and standard deviation over seeds of test recall@20 and NDCG@20, epochs, and
              seconds per epoch
    pairs     one row per pair of variants with seeds in common: difference (first minus second) of both metrics with
              its interval over their paired runs, and the verdict of ``judge`` on recall@20
    full      whether every variant of the study has at least five paired seeds

    Raises InputError for runs of different test users, and for one without a finite value of every test user.
    """
    names = dict.fromkeys([*SEARCH, *(run["identity"]["variant"] for run in runs)])
    chosen = {name: found for name in names if (found := _chosen_runs(name, runs))}
    digests = {(run["users"] or {}).get("digest") for found in chosen.values() for run in found.values()}
    if len(digests) > 1:
        raise InputError("the runs were tested on different users: expected the records of one study")
    tested = {name: _Tested.of(found, resamples) for name, found in chosen.items()}
    rows = [_variant_row(name, found, runs) | tested[name].row() for name, found in chosen.items()]
    return {
        "metric": MONITOR,
        "margin": EQUIVALENCE_MARGIN,
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "full_seeds": FULL_SEEDS,
        "users": next((of.users for of in tested.values()), 0),
        "variants": rows,
        "pairs": list(_pair_rows(tested)),
        "full": bool(rows) and all(row["seeds"] >= FULL_SEEDS or not row["trained"] for row in rows),
    }


def find_pair(summary: Mapping[str, Any], first: str, second: str) -> dict[str, Any] | None:
    """The row of ``pairs`` for two variants as first minus second, in whichever order it stands; None without one."""
    for row in summary["pairs"]:
        if (row["first"], row["second"]) == (first, second):
            return dict(row)
        if (row["first"], row["second"]) == (second, first):
            opposite = {"first": first, "second": second, "verdict": _REVERSED.get(row["verdict"], row["verdict"])}
            for metric in USER_METRICS:
                opposite |= {metric: -row[metric], f"{metric}_low": -row[f"{metric}_high"]}
                opposite[f"{metric}_high"] = -row[f"{metric}_low"]
            return row | opposite
    return None


@dataclass(frozen=True)
class _Tested:
    """A variant's test metrics, or the differences of two variants', seed by seed.

    means  by metric, each seed's mean over users: (seeds,)
    drawn  by metric, each seed's mean over the users of each resample: (resamples, seeds)
    """

    trained: bool
    users: int
    seeds: list[int]
    means: Mapping[str, np.ndarray]
    drawn: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, found: Mapping[int, Mapping[str, Any]], resamples: int) -> _Tested:
        tables = {metric: np.stack([_of_users(found[seed], metric) for seed in found]) for metric in USER_METRICS}
        means = {metric: table.mean(axis=1) for metric, table in tables.items()}
        drawn = {metric: _means_of_drawn_users(table, resamples) for metric, table in tables.items()}
        trained = any(run["setting"] is not None for run in found.values())
        return cls(trained, tables[MONITOR].shape[1], list(found), means, drawn)

    def minus(self, other: _Tested) -> _Tested:
        """The differences to another variant at the seeds that both have; without training all seeds are the same."""
        if self.trained == other.trained:
            seeds = sorted(set(self.seeds) & set(other.seeds))
        else:
            seeds = self.seeds if self.trained else other.seeds
        a, b = self._places(seeds), other._places(seeds)
        means = {metric: self.means[metric][a] - other.means[metric][b] for metric in USER_METRICS}
        drawn = {metric: self.drawn[metric][:, a] - other.drawn[metric][:, b] for metric in USER_METRICS}
        return _Tested(True, self.users, seeds, means, drawn)

    def _places(self, seeds: Sequence[int]) -> list[int]:
        return [self.seeds.index(seed) if self.trained else 0 for seed in seeds]

    def row(self) -> dict[str, float | None]:
        """Each metric's mean, interval, and standard deviation over seeds (None with one seed)."""
        row: dict[str, float | None] = {}
        for metric, means in self.means.items():
            low, high = _interval(self.drawn[metric])
            row |= {metric: float(means.mean()), f"{metric}_low": low, f"{metric}_high": high}
            row[f"{metric}_seed_sd"] = float(np.std(means, ddof=1)) if len(means) > 1 else None
        return row


def _of_users(run: Mapping[str, Any], metric: str) -> np.ndarray:
    """A metric of every test user of a run: float64 (users,)."""
    users = run["users"] or {"count": 0, metric: ""}
    values, count = unpack(users[metric], users["count"]).astype(np.float64), users["count"]
    if values.shape != (count,) or count == 0 or not np.isfinite(values).all():
        raise InputError(f"{run['name']}: expected a finite {metric} of each of its {count} test users")
    return values


def _means_of_drawn_users(table: np.ndarray, resamples: int) -> np.ndarray:
    """The mean of each row of ``table`` (rows, users) over as many users, drawn with replacement: (resamples, rows).
    The draws are the same for all rows, and for all tables of as many users."""
    n_users = table.shape[1]
    generator = np.random.default_rng([0, 0])
    means = []
    for start in range(0, resamples, _BLOCK):
        count = min(_BLOCK, resamples - start)
        drawn = generator.integers(0, n_users, (count, n_users)) + n_users * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n_users).reshape(count, n_users)
        means.append(times.astype(np.float64) @ table.T / n_users)
    return np.concatenate(means)


def _interval(drawn_means: np.ndarray) -> tuple[float, float]:
    """The interval of a mean over seeds, from each seed's mean over the drawn users: (resamples, seeds)."""
    resamples, seeds = drawn_means.shape
    generator = np.random.default_rng([0, 1])
    times = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)  # (resamples, seeds)
    low, high = np.quantile((times * drawn_means).sum(axis=1) / seeds, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _chosen_runs(variant: str, runs: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The runs of a variant at the setting that validation chose, by seed.

    Of the settings with the most seeds, the one with the best mean validation over them. Without further seeds that is
    the best of seed 0; a wider search may have given a second setting all seeds, and then one seed does not decide.
    """
    tested = [run for run in runs if run["identity"]["variant"] == variant and run["test"] is not None]
    own = [run for run in tested if run["setting"] is None or run["valid"] is not None]  # as in ``best_run``
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


def _variant_row(
    variant: str, found: Mapping[int, Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    first = next(iter(found.values()))
    trained = first["setting"] is not None
    epoch_s = [row["epoch_s"] for run in found.values() for row in run["epochs"] if row["epoch_s"] is not None]
    return {
        "variant": variant,
        "label": VARIANTS[variant].label if variant in VARIANTS else variant,
        "trained": trained,
        "seeds": len(found),
        "setting": _setting(first),
        "searched": [_searched(run) for run in runs if run["identity"]["variant"] == variant and run["search"]],
        "valid_recall@20": _mean([run["valid"][MONITOR] for run in found.values()]) if trained else None,
        "epochs": _mean([len(run["epochs"]) for run in found.values()]) if trained else None,
        "epoch_s_median": float(np.median(epoch_s)) if epoch_s else None,
        "beside_other_work": any(run.get("beside_other_work") for run in found.values()),
    }


def _pair_rows(tested: Mapping[str, _Tested]) -> Iterator[dict[str, Any]]:
    for first, second in combinations(tested, 2):
        difference = tested[first].minus(tested[second])
        if difference.seeds:
            row: dict[str, Any] = {"first": first, "second": second, "seeds": len(difference.seeds)} | difference.row()
            yield row | {"verdict": judge(row[f"{MONITOR}_low"], row[f"{MONITOR}_high"])}


def _setting(run: Mapping[str, Any]) -> dict[str, Any]:
    if "chosen" in run["identity"]:  # of a sweep
        return run["identity"]["chosen"]
    names = ("learning_rate", "reg_weight", "eval_every")
    return {name: run["identity"][name] for name in names if name in run["identity"]}


def _searched(run: Mapping[str, Any]) -> dict[str, Any]:
    found = None if run["valid"] is None else run["valid"][MONITOR]
    return _setting(run) | {"valid_recall@20": found, "epochs": len(run["epochs"]), "failed": run["failed"]}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
