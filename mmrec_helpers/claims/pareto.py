"""Time, memory and accuracy of the variants side by side, and which of them nothing else beats in all three."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mmrec_helpers.claims.full_studies import full_studies, full_variants
from mmrec_helpers.claims.ledger import Missing, Records


def steps_with_accuracy(records: Records) -> pd.DataFrame:
    """The timed variants whose accuracy was studied with enough seeds on the same data set, one row each.

    Columns: variant, label, ratio (of its step to the reference's), peak_mb, recall, low, high (test recall@20 and its
    interval), seeds, dataset, best (no other is at least as good in all of ratio, peak_mb and recall, and better in
    one). What is exact against its base has the base's accuracy. Raises Missing without a record of kind "steps" and a
    full one of kind "accuracy" of one data set.
    """
    for accuracy in full_studies(records):
        for steps in records.all("steps"):
            if _data(accuracy) == _data(steps) and len(table := _joined(steps["content"]["variants"], accuracy)):
                return table.assign(dataset=accuracy["provenance"]["data"]["name"], best=_unbeaten(table))
    raise Missing("a record of the steps and a full accuracy study of one data set")


def pareto_table(table: pd.DataFrame) -> pd.DataFrame:
    """What ``steps_with_accuracy`` found, for reading, the fastest first: variant, step ratio, peak MB, recall@20, low,
    high, seeds, unbeaten."""
    names = {"label": "variant", "ratio": "step ratio", "peak_mb": "peak MB", "recall": "recall@20", "low": "low"}
    names |= {"high": "high", "seeds": "seeds", "best": "unbeaten"}
    return table.sort_values("ratio", kind="stable", ignore_index=True)[list(names)].rename(columns=names)


def _joined(steps: list[Mapping[str, Any]], accuracy: Mapping[str, Any]) -> pd.DataFrame:
    studied = {row["variant"]: row for row in full_variants(accuracy)}
    timed = {row["variant"]: row for row in steps}
    rows = []
    for row in steps:
        found = studied.get(_same_result(row["variant"], timed))
        if found and row["share"] is not None and row["peak_bytes"] is not None:
            own = {"variant": row["variant"], "label": row["label"], "ratio": row["share"]}
            own |= {"peak_mb": row["peak_bytes"] / 1e6, "recall": found["recall@20"]}
            rows.append(own | {"low": found["recall@20_low"], "high": found["recall@20_high"], "seeds": found["seeds"]})
    return pd.DataFrame(rows)


def _same_result(variant: str, timed: Mapping[str, Mapping[str, Any]]) -> str:
    """The variant whose result this one has up to rounding: base after base, as far as each is exact."""
    while (row := timed.get(variant)) and row["exact"] and row["base"] != variant:
        variant = row["base"]
    return variant


def _unbeaten(table: pd.DataFrame) -> list[bool]:
    costs = table[["ratio", "peak_mb"]].assign(loss=-table["recall"]).to_numpy()
    return [not ((costs <= own).all(axis=1) & (costs < own).any(axis=1)).any() for own in costs]


def _data(record: Mapping[str, Any]) -> str:
    return (record["provenance"].get("data") or {}).get("fingerprint", "")
