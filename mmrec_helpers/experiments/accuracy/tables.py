"""Tables of an accuracy record, and its answers in sentences."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmrec_helpers.config import counted, listed
from mmrec_helpers.experiments.accuracy.intervals import BETTER, EQUIVALENT, OPEN, WORSE, find_pair
from mmrec_helpers.experiments.accuracy.study import MONITOR
from mmrec_helpers.models.variants import REFERENCE, VARIANTS

# Whose differences to which baseline are shown: all to GRCN, iterations, alternatives to routing, two baselines.
SHOWN_DIFFERENCES = {
    REFERENCE: (
        *("grcn-live", "grcn-live-2", "grcn-live-1", "grcn-mean", "grcn-learned"),
        *("dragon", "lightgcn", "popularity"),
    ),
    "grcn-live-1": ("grcn-live-2", "grcn-live"),
    "grcn-live": ("grcn-mean", "grcn-learned", "lightgcn"),
    "lightgcn": ("dragon",),
}
_COMPARED = {
    BETTER: "better than GRCN",
    EQUIVALENT: "equal to GRCN within the margin of {margin:g}",
    WORSE: "worse than GRCN",
    OPEN: "not distinguishable from GRCN with these runs",
}


def accuracy_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row per variant: variant (its label), learning rate and reg weight that validation chose, seeds, recall@20 of
    the test split with low and high of its interval, seed sd (its standard deviation over seeds), NDCG@20, and epochs
    (mean over seeds)."""
    rows = [
        {
            "variant": row["label"],
            "learning rate": row["setting"].get("learning_rate"),
            "reg weight": row["setting"].get("reg_weight"),
            "seeds": row["seeds"],
            "recall@20": row["recall@20"],
            "low": row["recall@20_low"],
            "high": row["recall@20_high"],
            "seed sd": row["recall@20_seed_sd"],
            "NDCG@20": row["ndcg@20"],
            "epochs": row["epochs"],
        }
        for row in summary["variants"]
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(("learning rate", "reg weight", "seed sd", "epochs"), float))


def difference_table(summary: Mapping[str, Any], metric: str = MONITOR) -> pd.DataFrame:
    """The shown differences that there are: group ("difference to GRCN"), label (of the variant), seeds, difference,
    low, high, and verdict (of recall@20)."""
    rows = []
    for baseline, variants in SHOWN_DIFFERENCES.items():
        for variant in variants:
            if pair := find_pair(summary, variant, baseline):
                interval = [pair[metric], pair[f"{metric}_low"], pair[f"{metric}_high"]]
                group = f"difference to {VARIANTS[baseline].label}"
                rows.append([group, VARIANTS[variant].label, pair["seeds"], *interval, pair["verdict"]])
    return pd.DataFrame(rows, columns=["group", "label", "seeds", "difference", "low", "high", "verdict"])


def answers(summary: Mapping[str, Any]) -> str:
    """Which variants are better than GRCN, equal to it, or worse, with their differences of test recall@20, such as
    "LightGCN (+0.0120) is better than GRCN; mean pooling (-0.0099) is worse than GRCN."."""
    found = [find_pair(summary, row["variant"], REFERENCE) for row in summary["variants"]]
    pairs = sorted((pair for pair in found if pair), key=lambda pair: -pair[MONITOR])
    if not pairs:
        return "No variant has been compared with GRCN yet."
    clauses = []
    for verdict, words in _COMPARED.items():
        named = [f"{_short(pair['first'])} ({pair[MONITOR]:+.4f})" for pair in pairs if pair["verdict"] == verdict]
        words = words.format(margin=summary["margin"])
        if len(named) == len(pairs) > 1:
            clauses.append(f"all {len(named)} compared variants are {words}: {listed(named)}")
        elif named:
            clauses.append(f"{listed(named)} {'is' if len(named) == 1 else 'are'} {words}")
        elif verdict == BETTER and len({pair["verdict"] for pair in pairs}) > 1:
            clauses.append("no variant is better than GRCN")
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def state_of(summary: Mapping[str, Any]) -> str:
    """How far the study is, such as "8 variants were trained with 5 paired seeds each and tested on 6,125 users."."""
    seeds = [row["seeds"] for row in summary["variants"] if row["trained"]]
    if not seeds:
        return "No variant has been trained yet."
    few, many = min(seeds), max(seeds)
    were = "variant was" if len(seeds) == 1 else "variants were"
    each = " each" if len(seeds) > 1 and few == many else ""
    how = f"{few} to {many} paired seeds" if few < many else counted(few, "paired seed") + each
    enough = "" if summary["full"] else f"; fewer than {summary['full_seeds']} seeds decide nothing"
    return f"{len(seeds)} {were} trained with {how} and tested on {counted(summary['users'], 'user')}{enough}."


def _short(variant: str) -> str:
    """A variant's label where GRCN is named anyway: "paper's routing with 1 iteration"."""
    return VARIANTS[variant].label.removeprefix("GRCN, ").replace(", ", " with ")
