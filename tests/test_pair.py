"""Training models side by side, and the tables that compare them."""

import pytest

from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments.pair import curves, outcome_table, popularity_metrics, train_models
from mmrec_helpers.models import build
from mmrec_helpers.training import evaluate


@pytest.fixture(scope="module")
def data():
    return synthesize("embedded", seed=0, scale=0.1)


@pytest.fixture(scope="module")
def histories(data):
    options = {"epochs": 3, "batch_size": 512, "backend": "sparse", "progress": False}
    return train_models(data, {"grcn": 1e-2, "dragon": 1e-3}, **options)


def test_the_popularity_floor_is_the_ranking_by_training_counts(data):
    assert popularity_metrics(data) == evaluate(build("popularity", data), data, "test")


def test_each_model_has_a_row_and_so_has_the_floor(data, histories):
    table = outcome_table(histories, popularity_metrics(data)).set_index("model")
    assert table.index.tolist() == ["GRCN", "DRAGON", "popularity"]
    assert table.loc["GRCN", "epochs"] == 3
    assert table.loc["GRCN", "test recall@20"] == histories["GRCN"].test["recall@20"]
    assert table.loc["DRAGON", "training s"] == pytest.approx(sum(r["epoch_s"] for r in histories["DRAGON"].epochs))


def test_curves_have_a_row_an_epoch_with_the_seconds_so_far(histories):
    frame = curves(histories)
    grcn = frame[frame["model"] == "GRCN"]
    assert grcn["epoch"].tolist() == [1, 2, 3]
    assert grcn["training_s"].is_monotonic_increasing
    assert grcn["training_s"].iloc[0] == histories["GRCN"].epochs[0]["epoch_s"]
