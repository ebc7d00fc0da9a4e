"""Negative sampling, the training loop, checkpoints, and full-ranking evaluation."""

from mmrec_helpers.training.evaluation import evaluate, evaluation_users, per_user_metrics, ranking_metrics
from mmrec_helpers.training.sampling import NegativeSampler
from mmrec_helpers.training.settings import History, TrainSettings
from mmrec_helpers.training.step import TrainingError, make_optimizer, make_scaler, train_step
from mmrec_helpers.training.trainer import fit

__all__ = [
    "History",
    "NegativeSampler",
    "TrainSettings",
    "TrainingError",
    "evaluate",
    "evaluation_users",
    "fit",
    "make_optimizer",
    "make_scaler",
    "per_user_metrics",
    "ranking_metrics",
    "train_step",
]
