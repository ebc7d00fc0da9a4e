"""GRCN and DRAGON trained side by side, and the tables that compare them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from mmrec_helpers.data import Interactions
from mmrec_helpers.models import build
from mmrec_helpers.training.evaluation import evaluate
from mmrec_helpers.training.settings import History
from mmrec_helpers.training.trainer import fit

LABELS = {"grcn": "GRCN", "dragon": "DRAGON", "lightgcn": "LightGCN"}


def train_models(
    data: Interactions,
    learning_rates: Mapping[str, float],
    *,
    backend: str = "auto",
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    **options: Any,
) -> dict[str, History]:
    """Train the models named in ``learning_rates`` ("grcn", "dragon", "lightgcn"), one after the other, from one seed.

    options  fields of ``TrainSettings`` other than learning_rate and seed. Returns each model's history by its label.
    """
    histories = {}
    for name, rate in learning_rates.items():
        model = build(name, data, backend=backend, seed=seed, device=device)
        histories[LABELS[name]] = fit(model, data, learning_rate=rate, seed=seed, progress=progress, **options)
    return histories


def popularity_metrics(data: Interactions, split: str = "test") -> dict[str, float]:
    """What ranking by the count of training interactions reaches."""
    return evaluate(build("popularity", data), data, split)


def outcome_table(histories: Mapping[str, History], popularity: Mapping[str, float]) -> pd.DataFrame:
    """One row a model, and one for the popularity ranking: epochs trained, seconds, validation and test metrics."""
    rows = [
        {
            "model": name,
            "epochs": len(history.epochs),
            "best epoch": None if history.best_epoch is None else history.best_epoch + 1,
            "training s": sum(row["epoch_s"] for row in history.epochs),
            "valid recall@20": (history.valid or {}).get("recall@20"),
            "test recall@20": (history.test or {}).get("recall@20"),
            "test ndcg@20": (history.test or {}).get("ndcg@20"),
        }
        for name, history in histories.items()
    ]
    rows.append(
        {"model": "popularity", "test recall@20": popularity["recall@20"], "test ndcg@20": popularity["ndcg@20"]}
    )
    return pd.DataFrame(rows)


def curves(histories: Mapping[str, History]) -> pd.DataFrame:
    """One row an epoch: model, epoch (from 1), training_s (so far, without validation), loss, valid.recall@20."""
    frames = []
    for name, history in histories.items():
        frame = pd.DataFrame(history.epochs)
        frame.insert(0, "model", name)
        frame["epoch"] += 1
        frame["training_s"] = frame["epoch_s"].cumsum()
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
