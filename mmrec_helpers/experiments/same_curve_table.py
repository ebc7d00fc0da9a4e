"""The committed record of training in two backends, as a table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mmrec_helpers.files import reports_folder
from mmrec_helpers.records.record import read_record


def same_curve_table(path: str | Path = "") -> tuple[pd.DataFrame, str]:
    """One row a model of a record of kind "same_curve", and a caption; an empty frame if there is no such file.

    path  the record; "" for the one that comes with the checkout, ``reports/same-curve/tiktok-cpu.json``
    """
    path = Path(path) if path else reports_folder() / "same-curve" / "tiktok-cpu.json"
    if not path.exists():
        return pd.DataFrame(), "No record of training in two backends"
    record = read_record(path, "same_curve")
    rows = []
    for arm in record["content"]["arms"]:
        seconds = {f"{backend}, s": sum(run["epoch_s"]) for backend, run in arm["runs"].items()}
        rows.append(
            {
                "model": arm["arm"],
                "epochs": arm["epochs"],
                "largest difference": max(arm["loss_differences"]),
                "of recall@20": max(arm["metric_differences"], default=None),
                **seconds,
                "times faster": arm["time_ratio"],
            }
        )
    data = record["provenance"]["data"]["name"]
    return pd.DataFrame(
        rows
    ), f"Training on {data} from one seed in two backends: losses (relative), recall@20, seconds"
