"""Epoch records of several data sets and settings side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def step_regions(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The regions of every model in records of kind "epoch", the smallest data set first.

    Columns: data, n_train, settings, model, region, phase, ms (a step): shares from the profiler, scaled so that a
    step's regions add up to the median step without it (on a CPU that of the heap that keeps its memory).
    """
    frames = []
    for record in _by_size(records):
        for model in record["content"]["models"]:
            regions = pd.DataFrame(model["regions"])[["region", "phase", "ms"]]
            regions["ms"] *= _quoted(record)["step_ms_median"][model["model"]] / regions["ms"].sum()
            frames.append(regions.assign(model=model["model"], **_place(record)))
    columns = ["data", "n_train", "settings", "model", "region", "phase", "ms"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def epoch_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a record: data, n_train, settings, batch, each model's median step in ms, their ratio with its quartiles,
    the heap of these, the number of pairs."""
    rows = []
    for record in _by_size(records):
        heap = _quoted(record)
        ratio, steps = heap["ratio_grcn_to_dragon"], heap["step_ms_median"]
        rows.append(
            {
                **_place(record),
                "batch": record["content"]["batch_size"],
                "GRCN, ms": steps["GRCN"],
                "DRAGON, ms": steps["DRAGON"],
                "ratio": ratio["median"],
                "q1": ratio["q1"],
                "q3": ratio["q3"],
                "pairs": ratio["rounds"],
                "heap": heap["heap"],
            }
        )
    return pd.DataFrame(rows)


def _quoted(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The measurement to quote: the last, which on a CPU is that of the heap that keeps its memory."""
    return record["content"]["heaps"][-1]


def _place(record: Mapping[str, Any]) -> dict[str, Any]:
    made = record["provenance"]
    return {
        "data": made["data"]["name"],
        "n_train": made["data"]["n_train"],
        "settings": record["content"]["settings_name"],
    }


def _by_size(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(
        records, key=lambda r: (r["content"]["settings_name"] != "plain", int(r["provenance"]["data"]["n_train"]))
    )
