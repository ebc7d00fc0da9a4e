"""Tables of an accuracy record, and its answers in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmrec_helpers.analysis.statistics import BETTER, EQUIVALENT, WORSE, find_pair
from mmrec_helpers.training.study import ARMS

# Which differences are shown, first less second: iterations, live against shipped, alternatives, other models.
SHOWN_PAIRS = (
    ("live-3", "live-1"),
    ("live-2", "live-1"),
    ("live-1", "as-shipped"),
    ("live-3", "as-shipped"),
    ("mean", "live-3"),
    ("learned", "live-3"),
    ("mean", "as-shipped"),
    ("learned", "as-shipped"),
    ("dragon", "as-shipped"),
    ("lightgcn", "as-shipped"),
    ("lightgcn", "live-3"),
    ("dragon", "lightgcn"),
    ("as-shipped", "popularity"),
)


def accuracy_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row an arm: its setting, seeds, validation and test metrics with intervals, epochs trained."""
    rows = []
    for arm in summary["arms"]:
        setting = arm["setting"]
        rows.append(
            {
                "arm": arm["label"],
                "learning rate": setting.get("learning_rate"),
                "reg weight": setting.get("reg_weight"),
                "seeds": arm["seeds"],
                "valid recall@20": arm["valid_recall@20"],
                "test recall@20": arm["recall@20"],
                "interval": f"{arm['recall@20_low']:.4f} to {arm['recall@20_high']:.4f}",
                "sd over seeds": arm["recall@20_seed_sd"],
                "test NDCG@20": arm["ndcg@20"],
                "epochs": arm["epochs"],
            }
        )
    return pd.DataFrame(rows)


def difference_table(summary: Mapping[str, Any], metric: str = "recall@20") -> pd.DataFrame:
    """The shown pairs that there are: columns label, seeds, difference, low, high, verdict (of recall@20)."""
    rows = []
    for first, second in SHOWN_PAIRS:
        pair = find_pair(summary, first, second)
        if pair is not None:
            label = f"{_short(first)} less {_short(second)}"
            interval = {"difference": pair[metric], "low": pair[f"{metric}_low"], "high": pair[f"{metric}_high"]}
            rows.append({"label": label, "seeds": pair["seeds"], **interval, "verdict": pair["verdict"]})
    return pd.DataFrame(rows, columns=["label", "seeds", "difference", "low", "high", "verdict"])


def says(summary: Mapping[str, Any], first: str, second: str) -> str:
    """One clause on a pair, such as "live, 3 iterations is better than as shipped by 0.0040 (0.0021 to 0.0060)"."""
    pair = find_pair(summary, first, second)
    one, other = _short(first), _short(second)
    if pair is None:
        return f"{one} and {other} are not compared yet"
    told = f"{pair['recall@20']:+.4f} ({pair['recall@20_low']:+.4f} to {pair['recall@20_high']:+.4f})"
    words = {
        EQUIVALENT: f"{one} equals {other} within the margin, {told}",
        BETTER: f"{one} is better than {other}, {told}",
        WORSE: f"{one} is worse than {other}, {told}",
    }
    return words.get(pair["verdict"], f"whether {one} or {other} is better is open, {told}")


def state_of(summary: Mapping[str, Any]) -> str:
    """How far the study is, in words."""
    seeds = [arm["seeds"] for arm in summary["arms"] if arm["trained"]]
    if not seeds:
        return "no arm is trained yet"
    many = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    enough = "complete" if summary["full"] else f"not complete: {summary['full_seeds']} seeds an arm decide"
    return f"{len(summary['arms'])} arms, {many} paired seeds, {summary['users']:,} test users; {enough}"


def _short(arm: str) -> str:
    return ARMS[arm].label.removeprefix("GRCN ").removeprefix("GRCN, ")
