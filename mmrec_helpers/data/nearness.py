"""How near a data set is to the workload of the diagnosis."""

from __future__ import annotations

import pandas as pd

from mmrec_helpers.data import PRESETS, Interactions


def compare_to_diagnosed(data: Interactions) -> pd.DataFrame:
    """One row a size that the cost depends on: quantity, here, diagnosed, and their ratio ("here / diagnosed").

    The diagnosed sizes are those of the "music4all" preset: training logs of jckuan/MMRec (facts.csv).
    """
    diagnosed = PRESETS["music4all"]
    widths = {m: data.features[m].shape[1] if m in data.features else 0 for m in ("visual", "textual")}
    rows = [
        ("users", data.n_users, diagnosed.n_users),
        ("items", data.n_items, diagnosed.n_items),
        ("training interactions", data.train.shape[1], diagnosed.n_train),
        ("interactions per user", data.train.shape[1] / data.n_users, diagnosed.n_train / diagnosed.n_users),
        ("interactions per item", data.train.shape[1] / data.n_items, diagnosed.n_train / diagnosed.n_items),
        ("visual feature width", widths["visual"], diagnosed.visual),
        ("textual feature width", widths["textual"], diagnosed.textual),
    ]
    table = pd.DataFrame(rows, columns=["quantity", "here", "diagnosed"])
    return table.assign(**{"here / diagnosed": table["here"] / table["diagnosed"]})
