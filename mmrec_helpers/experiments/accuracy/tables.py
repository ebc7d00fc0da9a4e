"""Tables of an accuracy record, and its answers in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmrec_helpers.experiments.accuracy.intervals import BETTER, EQUIVALENT, OPEN, WORSE, find_pair
from mmrec_helpers.experiments.accuracy.study import ARMS, MONITOR

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
BASELINE = "as-shipped"  # what the other arms are told against


def accuracy_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row an arm: its setting (learning rate, weight of the penalties), seeds, test recall@20 with interval and
    standard deviation over seeds, test NDCG@20, epochs trained."""
    rows = []
    for arm in summary["arms"]:
        setting = [f"{arm['setting'][name]:g}" for name in ("learning_rate", "reg_weight") if name in arm["setting"]]
        rows.append(
            {
                "arm": arm["label"],
                "rate, reg": ", ".join(setting) or "–",
                "seeds": arm["seeds"],
                "recall@20": arm["recall@20"],
                "95 % interval": f"{arm['recall@20_low']:.4f} to {arm['recall@20_high']:.4f}",
                "sd of seeds": arm["recall@20_seed_sd"],
                "NDCG@20": arm["ndcg@20"],
                "epochs": arm["epochs"],
            }
        )
    return pd.DataFrame(rows).astype({"sd of seeds": float, "epochs": float})


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


def answers(summary: Mapping[str, Any]) -> str:
    """Each arm's difference of test recall@20 to GRCN as shipped, by what its interval says, such as
    "better: LightGCN +0.0120; worse: live, 1 iteration -0.0075"."""
    found = [find_pair(summary, arm["arm"], BASELINE) for arm in summary["arms"]]
    pairs = sorted((pair for pair in found if pair is not None), key=lambda pair: -pair[MONITOR])
    words = {BETTER: "better", EQUIVALENT: "equal within the margin", OPEN: "open", WORSE: "worse"}
    told = {word: [_told(pair) for pair in pairs if pair["verdict"] == verdict] for verdict, word in words.items()}
    return "; ".join(f"{word}: {', '.join(arms)}" for word, arms in told.items() if arms) or "no arm is compared yet"


def _told(pair: Mapping[str, Any]) -> str:
    return f"{_short(pair['first'])} {pair[MONITOR]:+.4f}"


def state_of(summary: Mapping[str, Any]) -> str:
    """How far the study is, in words."""
    seeds = [arm["seeds"] for arm in summary["arms"] if arm["trained"]]
    if not seeds:
        return "no arm is trained yet"
    many = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    enough = "complete" if summary["full"] else f"not complete: {summary['full_seeds']} seeds an arm decide"
    return f"arms: {len(summary['arms'])}, paired seeds: {many}, test users: {summary['users']:,}; {enough}"


def _short(arm: str) -> str:
    return ARMS[arm].label.removeprefix("GRCN ").removeprefix("GRCN, ")
