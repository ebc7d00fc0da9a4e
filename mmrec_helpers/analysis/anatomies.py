"""Epoch records of several data sets and settings side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def step_regions(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The regions of every model in records of kind "epoch", the smallest data set first.

    Columns: data, n_train, settings, model, region, phase, ms (a step under the profiler), scaled so that a step's
    regions add up to the median step without the profiler.
    """
    frames = []
    for record in _by_size(records):
        for model in record["content"]["models"]:
            regions = pd.DataFrame(model["regions"])[["region", "phase", "ms"]]
            regions["ms"] *= model["step_ms_median"] / regions["ms"].sum()
            frames.append(regions.assign(model=model["model"], **_place(record)))
    columns = ["data", "n_train", "settings", "model", "region", "phase", "ms"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def epoch_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a record: data, n_train, settings, device, each model's step in ms and epoch in s, their ratio."""
    rows = []
    for record in _by_size(records):
        content = record["content"]
        ratio = content["ratio_grcn_to_dragon"]
        by_model = {model["model"]: model for model in content["models"]}
        rows.append(
            {
                **_place(record),
                "batch": content["batch_size"],
                "GRCN, ms": by_model["GRCN"]["step_ms_median"],
                "DRAGON, ms": by_model["DRAGON"]["step_ms_median"],
                "GRCN, s an epoch": by_model["GRCN"]["epoch_s"],
                "DRAGON, s an epoch": by_model["DRAGON"]["epoch_s"],
                "ratio": ratio["median"],
                "q1": ratio["q1"],
                "q3": ratio["q3"],
                "ratio's heap": ratio["heap"],
            }
        )
    return pd.DataFrame(rows)


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
