"""Time, memory and accuracy of the fixes side by side, and which of them nothing else beats in all three."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmrec_helpers.claims.full_studies import full_arms, full_studies
from mmrec_helpers.claims.ledger import Missing, Records

# Arm of a "fixes" record to the arm of the accuracy study that has the same result up to rounding.
ACCURACY_OF = {
    "as shipped, 3 iterations": "as-shipped",
    "as shipped, none": "as-shipped",
    "modalities batched, as shipped": "as-shipped",
    "sparse, as shipped": "as-shipped",
    "fused, as shipped": "as-shipped",
    "live, 1 iteration": "live-1",
    "live, 2 iterations": "live-2",
    "live, 3 iterations": "live-3",
    "sparse, live": "live-3",
    "fused, live": "live-3",
    "mean pooling": "mean",
    "mean pooling, fused": "mean",
    "learned weighting": "learned",
    "learned weighting, fused": "learned",
}


def fixes_with_accuracy(records: Records) -> pd.DataFrame:
    """The fixes whose accuracy was studied with enough seeds on the same data set, one row an arm.

    Columns: arm, step_ratio (of the step to the reference's with three iterations as shipped), peak_mb, recall, low,
    high (test recall@20 and its interval), seeds, dataset, best (no other arm is at least as good in all of step_ratio,
    peak_mb and recall, and better in one). Raises Missing without both records of one data set.
    """
    for accuracy in full_studies(records):
        for fixes in records.all("fixes"):
            if _data(accuracy) == _data(fixes):
                table = _joined(fixes["content"], accuracy)
                if len(table):
                    return table.assign(dataset=accuracy["provenance"]["data"]["name"], best=_unbeaten(table))
    raise Missing("a record of the fixes and a full accuracy study on one data set")


def pareto_table(table: pd.DataFrame) -> pd.DataFrame:
    """What ``fixes_with_accuracy`` found, for reading: one row an arm, the fastest first."""
    ordered = table.sort_values("step_ratio", kind="stable")
    return pd.DataFrame(
        {
            "fix": ordered["arm"],
            "step ratio": ordered["step_ratio"],
            "peak MB": ordered["peak_mb"],
            "recall@20": ordered["recall"],
            "95 % interval": [f"{low:.4f} to {high:.4f}" for low, high in zip(ordered["low"], ordered["high"])],
            "seeds": ordered["seeds"],
            "unbeaten": ordered["best"],
        }
    )


def _joined(fixes: Mapping[str, Any], accuracy: Mapping[str, Any]) -> pd.DataFrame:
    studied = {arm["arm"]: arm for arm in full_arms(accuracy)}
    rows = []
    for arm in fixes["arms"]:
        found = studied.get(ACCURACY_OF.get(arm["arm"], ""))
        if found and arm["peak_bytes"] is not None:
            rows.append(
                {
                    "arm": arm["arm"],
                    "step_ratio": arm["ratio"]["median"],
                    "peak_mb": arm["peak_bytes"] / 1e6,
                    "recall": found["recall@20"],
                    "low": found["recall@20_low"],
                    "high": found["recall@20_high"],
                    "seeds": found["seeds"],
                }
            )
    return pd.DataFrame(rows)


def _unbeaten(table: pd.DataFrame) -> list[bool]:
    costs = table[["step_ratio", "peak_mb"]].assign(loss=-table["recall"]).to_numpy()
    return [not ((costs <= own).all(axis=1) & (costs < own).any(axis=1)).any() for own in costs]


def _data(record: Mapping[str, Any]) -> str:
    return (record["provenance"].get("data") or {}).get("fingerprint", "")
