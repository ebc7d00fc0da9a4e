"""What published training logs say: each run with its settings, an epoch as a fixed part and a part per iteration, and
what a matched comparison of two models would have been.

Logs come as the tables of ``mmrec_helpers.mmrec.read_log``; figures that no log at hand shows come from facts.csv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from mmrec_helpers.claims.ledger import published_facts
from mmrec_helpers.config import InputError

# Settings of MMRec and of the forks whose logs are public, that a comparison of times has to match.
MATCHED = (
    "modalities",
    "n_users",
    "n_items",
    "n_train",
    "train_batch_size",
    "use_amp",
    "use_checkpoint",
    "keep_features_on_cpu",
)
SHOWN = ("train_batch_size", "n_layers", "use_amp", "use_checkpoint", "keep_features_on_cpu", "use_torch_compile")


def run_summary(logs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a run of each log: log, model, modalities (joined by +), sizes, epochs, the median, smallest and largest
    seconds an epoch, and the settings of ``SHOWN`` (missing where the log does not name them)."""
    rows = []
    for name, table in logs.items():
        settings = table.attrs.get("settings", {})
        for run, epochs in table.groupby("run", sort=False):
            first = epochs.iloc[0]
            seconds = epochs["epoch_s"]
            rows.append(
                {
                    "log": name,
                    "run": int(run),
                    "model": first["model"],
                    "modalities": "+".join(first["modalities"]),
                    **{size: first[size] for size in ("n_users", "n_items", "n_train")},
                    "epochs": len(epochs),
                    "median_s": seconds.median(),
                    "min_s": seconds.min(),
                    "max_s": seconds.max(),
                    **{key: (settings | first["parameters"]).get(key) for key in SHOWN},
                }
            )
    return pd.DataFrame(rows)


def published_summary() -> pd.DataFrame:
    """The published epoch times of facts.csv: model, dataset, setting, seconds, source."""
    rows = [fact for fact in published_facts() if fact["kind"] == "epoch_time"]
    table = pd.DataFrame(rows)[["model", "dataset", "setting", "quantity", "value", "source"]]
    return table.assign(value=table["value"].astype(float)).rename(columns={"value": "epoch_s"})


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """In which of ``MATCHED`` two runs of ``run_summary`` differ: name to both values, None where a log is silent."""
    pairs = {name: tuple(None if pd.isna(run[name]) else run[name] for run in (first, second)) for name in MATCHED}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def match_table(summary: pd.DataFrame, model: str = "GRCN", other: str = "DRAGON") -> pd.DataFrame:
    """Every run of ``model`` beside every run of ``other``: columns of both logs, ratio (of the medians of the seconds
    an epoch) and differences (in words; "none" for a matched comparison)."""
    rows = []
    for first in summary[summary["model"] == model].to_dict("records"):
        for second in summary[summary["model"] == other].to_dict("records"):
            found = differences(first, second)
            told = "; ".join(f"{name}: {a} against {b}" for name, (a, b) in found.items()) or "none"
            ratio = first["median_s"] / second["median_s"]
            rows.append({model: first["log"], other: second["log"], "ratio": ratio, "differences": told})
    return pd.DataFrame(rows, columns=[model, other, "ratio", "differences"])


@dataclass(frozen=True)
class Decomposition:
    """An epoch as fixed_s + iterations x per_iteration_s, each with the smallest and largest value that the published
    points allow; ``predicted_s`` is what it says of one number of iterations."""

    fixed_s: tuple[float, float]
    per_iteration_s: tuple[float, float]

    def predicted_s(self, iterations: int) -> tuple[float, float]:
        corners = [f + iterations * p for f, p in zip(self.fixed_s, reversed(self.per_iteration_s), strict=True)]
        return min(corners), max(corners)

    def ratio(self, slow: int, fast: int) -> tuple[float, float]:
        """Epoch with ``slow`` iterations over one with ``fast``, smallest and largest."""
        pairs = zip(self.fixed_s, reversed(self.per_iteration_s), strict=True)
        ratios = [(f + slow * p) / (f + fast * p) for f, p in pairs]
        return min(ratios), max(ratios)


def decompose(few: tuple[int, Sequence[float]], many: tuple[int, Sequence[float]]) -> Decomposition:
    """The straight lines through published points at two numbers of iterations: (iterations, seconds of its epochs).

    Every pair of a point with few and a point with many iterations gives a line; the result holds their extremes. It
    treats the points as runs on the same machine under the same settings, which the caller has to have checked.
    """
    if few[0] >= many[0]:
        raise InputError(f"decomposition: {few[0]} and {many[0]} iterations: expected fewer in the first")
    lines = []
    for low, high in product(few[1], many[1]):
        slope = (high - low) / (many[0] - few[0])
        lines.append((low - few[0] * slope, slope))
    if not lines:
        raise InputError("decomposition: there are no epochs: expected at least one at each number of iterations")
    fixed, slopes = zip(*lines, strict=True)
    return Decomposition((min(fixed), max(fixed)), (min(slopes), max(slopes)))


def published_decomposition() -> Decomposition:
    """From the public log with one iteration, both of its epochs, and the diagnosis's figure for three."""
    one = _seconds("GRCN", "n_layers=1")
    three = _seconds("GRCN", "n_layers=3")
    return decompose((1, one), (3, three))


def comparison_table() -> pd.DataFrame:
    """GRCN's epoch over DRAGON's, from published figures: as the diagnosis compares, and as matched as they allow.

    Columns: comparison, grcn_s and dragon_s (smallest and largest, as text), ratio_low, ratio_high.
    """
    three, one = _seconds("GRCN", "n_layers=3"), _seconds("GRCN", "n_layers=1")
    claimed, both = _seconds("DRAGON", "as the diagnosis states"), _dragon_both()
    rows = [
        ("as the diagnosis compares: three iterations, two modalities, against the DRAGON figure", three, claimed),
        ("three iterations (the diagnosis's figure) against DRAGON with two modalities, logged", three, both),
        ("one iteration against DRAGON, two modalities each, both logged", one, both),
    ]
    return pd.DataFrame(
        [
            {
                "comparison": name,
                "grcn_s": _span(grcn),
                "dragon_s": _span(dragon),
                "ratio_low": min(grcn) / max(dragon),
                "ratio_high": max(grcn) / min(dragon),
            }
            for name, grcn, dragon in rows
        ]
    )


def _span(values: list[float]) -> str:
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def _dragon_both() -> list[float]:
    """DRAGON on the data set of the GRCN log, with both modalities."""
    return [
        float(fact["value"])
        for fact in published_facts()
        if fact["kind"] == "epoch_time" and fact["model"] == "DRAGON"
        if "cs_lowcount_10" in fact["dataset"] and "both" in fact["setting"]
    ]


def _seconds(model: str, setting: str) -> list[float]:
    return [
        float(fact["value"])
        for fact in published_facts()
        if fact["kind"] == "epoch_time" and fact["model"] == model and setting in fact["setting"]
    ]
