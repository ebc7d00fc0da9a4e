"""Published figures: training logs, each run with its settings; an epoch as a fixed part and a part per iteration; what
a comparison of two models under identical settings would have been.

Logs come as the tables of ``mmrec_helpers.mmrec.read_log``; figures that no log at hand shows come from facts.csv.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import product
from typing import Any

import pandas as pd

REPORTED = "the reported claims"  # the source of figures that no log shows
GRCN_DATASET = "cs_lowcount_10"  # on which GRCN's public log was made, in the names of facts.csv

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


@cache
def published_facts(kind: str) -> pd.DataFrame:
    """The rows of facts.csv of one kind ("epoch_time", "accuracy", "dataset"), each with its source."""
    with resources.files("mmrec_helpers.claims").joinpath("facts.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file, keep_default_na=False)
    return table[table["kind"] == kind].drop(columns="kind")


def published_summary() -> pd.DataFrame:
    """The published epoch times: model, dataset, setting, quantity, epoch_s, source."""
    table = published_facts("epoch_time").rename(columns={"value": "epoch_s"}).astype({"epoch_s": float})
    return table[["model", "dataset", "setting", "quantity", "epoch_s", "source"]]


def logged_epochs(model: str, setting: str, dataset: str = "") -> list[float]:
    """Seconds per epoch from public logs of a model, with ``setting`` and ``dataset`` as parts of those fields."""
    table = published_summary().query("model == @model and source != @REPORTED")
    found = [setting in row.setting and dataset in row.dataset for row in table.itertuples()]
    return table.loc[found, "epoch_s"].tolist()


def reported_epoch(model: str) -> float:
    """Seconds per epoch of a model according to the reported claims."""
    return published_summary().query("model == @model and source == @REPORTED")["epoch_s"].item()


def published_interactions() -> tuple[int, list[int]]:
    """Training interactions of the diagnosed data set, and interactions of those in GRCN's paper."""
    value = published_facts("dataset").set_index("dataset")["value"]
    here, paper = (value[value.index.str.startswith(name)].item() for name in ("Music4All", "GRCN paper"))
    return int(here.split(" x ")[-1]), [int(size) for size in paper.split(", ")]


def span(values: Sequence[float]) -> str:
    """Smallest to largest, in whole numbers."""
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def run_summary(logs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per run of each log: log, model, modalities (joined by +), sizes, epochs, median, smallest and largest
    seconds per epoch, and the settings of ``SHOWN`` (missing where the log does not name them)."""
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


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """In which of ``MATCHED`` two runs of ``run_summary`` differ: name to both values, None where a log is silent."""
    pairs = {name: tuple(None if pd.isna(run[name]) else run[name] for run in (first, second)) for name in MATCHED}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def match_table(summary: pd.DataFrame, model: str = "GRCN", other: str = "DRAGON") -> pd.DataFrame:
    """Every run of ``model`` beside every run of ``other``: columns of both logs, ratio (of the medians of the seconds
    per epoch) and differences (in words; "none" under identical settings)."""
    rows = []
    for first in summary[summary["model"] == model].to_dict("records"):
        for second in summary[summary["model"] == other].to_dict("records"):
            found = differences(first, second)
            text = "; ".join(f"{name}: {a} against {b}" for name, (a, b) in found.items()) or "none"
            ratio = first["median_s"] / second["median_s"]
            rows.append({model: first["log"], other: second["log"], "ratio": ratio, "differences": text})
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
    lines = [((high - low) / (many[0] - few[0]), low) for low, high in product(few[1], many[1])]
    slopes, fixed = [slope for slope, _ in lines], [low - few[0] * slope for slope, low in lines]
    return Decomposition((min(fixed), max(fixed)), (min(slopes), max(slopes)))


def published_decomposition() -> Decomposition:
    """From the public log with one iteration, both of its epochs, and the reported figure for three."""
    return decompose((1, logged_epochs("GRCN", "n_layers=1")), (3, [reported_epoch("GRCN")]))


def comparison_table() -> pd.DataFrame:
    """GRCN's epoch over DRAGON's, from published figures: as reported, and with settings as equal as they allow.

    Columns: comparison, grcn_s and dragon_s (smallest and largest, as text), ratio_low, ratio_high.
    """
    three, one = [reported_epoch("GRCN")], logged_epochs("GRCN", "n_layers=1")
    both = logged_epochs("DRAGON", "both modalities", GRCN_DATASET)
    rows = [
        ("as reported: three iterations, two modalities, against the DRAGON figure", three, [reported_epoch("DRAGON")]),
        ("three iterations (the reported figure) against DRAGON with two modalities, logged", three, both),
        ("one iteration against DRAGON, two modalities each, both logged", one, both),
    ]
    shown = [
        (name, span(grcn), span(dragon), min(grcn) / max(dragon), max(grcn) / min(dragon))
        for name, grcn, dragon in rows
    ]
    return pd.DataFrame(shown, columns=["comparison", "grcn_s", "dragon_s", "ratio_low", "ratio_high"])
