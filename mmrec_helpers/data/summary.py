"""What a data set is, in numbers, and beside the workload that the reported claims are about."""

from typing import Any

import numpy as np
import pandas as pd

from mmrec_helpers.data.interactions import MODALITIES, Interactions
from mmrec_helpers.data.presets import PRESETS

QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def describe(data: Interactions) -> dict[str, Any]:
    """The sizes of ``data`` as plain numbers, ready for a record.

    density                    training interactions per pair of user and item
    *_without_train            users and items with no training interaction
    valid_users, test_users    users with at least one interaction in that split
    pairs_in_two_splits        pairs that occur in more than one split (leakage; 0 in a clean split)
    user_degree, item_degree   training interactions per user and per item: mean, std, min, p10, median, p90, p99, max
    widths                     feature width of each modality
    feature_bytes, pair_bytes  float32 features and int64 pairs in memory
    """
    graph = data.graph
    splits = {split: getattr(data, split) for split in ("train", "valid", "test")}
    keys = np.sort(np.concatenate([pairs[0] * data.n_items + pairs[1] for pairs in splits.values()]))
    degrees = {"user": graph.user_degree.numpy(), "item": graph.item_degree.numpy()}
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "n_users": data.n_users,
        "n_items": data.n_items,
        **{f"n_{split}": pairs.shape[1] for split, pairs in splits.items()},
        "density": data.train.shape[1] / (data.n_users * data.n_items),
        "users_without_train": int((degrees["user"] == 0).sum()),
        "items_without_train": int((degrees["item"] == 0).sum()),
        "valid_users": len(np.unique(data.valid[0])),
        "test_users": len(np.unique(data.test[0])),
        "pairs_in_two_splits": int((keys[1:] == keys[:-1]).sum()),
        **{f"{side}_degree": _quantiles(degree) for side, degree in degrees.items()},
        "widths": {modality: data.features[modality].shape[1] for modality in data.modalities},
        "feature_bytes": sum(array.nbytes for array in data.features.values()),
        "pair_bytes": sum(pairs.nbytes for pairs in splits.values()),
    }


def degree_table(data: Interactions) -> pd.DataFrame:
    """How many users and items have each number of training interactions.

    One row per side and degree that occurs, degrees ascending: side ("user", "item"), degree, count (of nodes),
    share_at_least (share of the side's nodes with at least this degree: the complementary distribution function).
    """
    sides = {"user": data.graph.user_degree.numpy(), "item": data.graph.item_degree.numpy()}
    return pd.concat([_distribution(side, degree) for side, degree in sides.items()], ignore_index=True)


def compare_to_reported(data: Interactions) -> pd.DataFrame:
    """One row per size that the cost depends on: quantity, here, reported, and their ratio ("here / reported").

    The reported claims are about the sizes of the "music4all" preset: training logs of jckuan/MMRec (facts.csv).
    """
    reported = PRESETS["music4all"]
    n_train = data.train.shape[1]
    rows = [
        ("users", data.n_users, reported.n_users),
        ("items", data.n_items, reported.n_items),
        ("training interactions", n_train, reported.n_train),
        ("interactions per user", n_train / data.n_users, reported.n_train / reported.n_users),
        ("interactions per item", n_train / data.n_items, reported.n_train / reported.n_items),
    ]
    for modality in MODALITIES:
        width = data.features[modality].shape[1] if modality in data.features else 0
        rows.append((f"{modality} feature width", width, getattr(reported, modality)))
    table = pd.DataFrame(rows, columns=["quantity", "here", "reported"])
    return table.assign(**{"here / reported": table["here"] / table["reported"]})


def _quantiles(degree: np.ndarray) -> dict[str, float]:
    quantiles = np.quantile(degree, list(QUANTILES.values()))
    return {"mean": float(degree.mean()), "std": float(degree.std()), **dict(zip(QUANTILES, quantiles.tolist()))}


def _distribution(side: str, degree: np.ndarray) -> pd.DataFrame:
    values, counts = np.unique(degree, return_counts=True)
    at_least = counts[::-1].cumsum()[::-1] / len(degree)
    return pd.DataFrame({"side": side, "degree": values, "count": counts, "share_at_least": at_least})
