from pathlib import Path

import numpy as np
import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.training import evaluate, per_user_metrics, ranking_metrics
from mmrec_helpers.training.evaluation import top_items
from tests.toy_model import ToyModel, toy_data

KS = range(1, 21)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "metrics_small.npz") as file:
        return dict(file)


def pairs(golden, split):
    return np.stack([golden[f"{split}_user"], golden[f"{split}_item"]])


def distance(metrics, golden):
    names = ("recall", "ndcg", "precision", "map")
    return max(abs(metrics[f"{name}@{k}"] - golden[name][k - 1]) for name in names for k in KS)


class Table:
    """Not a module: anything with ``scores`` can be evaluated."""

    def __init__(self, scores):
        self.table, self.rows = torch.as_tensor(scores), []

    def scores(self, users):
        self.rows.append(len(users))
        return self.table[users]


@pytest.mark.parametrize("block_bytes", [1, 16 * 120 * 7, 2**28])
def test_metrics_equal_the_golden(golden, block_bytes):
    train, test = pairs(golden, "train"), pairs(golden, "test")
    assert distance(ranking_metrics(golden["scores"], train, test, KS, block_bytes), golden) < 1e-6
    shuffled = np.random.default_rng(0).permutation(test.shape[1])
    assert distance(ranking_metrics(torch.tensor(golden["scores"]), train, test[:, shuffled], KS), golden) < 1e-6


def test_controls_differ_from_the_golden(golden):
    train, test = pairs(golden, "train"), pairs(golden, "test")
    assert distance(ranking_metrics(golden["scores"], train[:, :0], test, KS), golden) > 1e-3  # nothing masked
    assert distance(ranking_metrics(golden["scores"], test[:, ::2], test, KS), golden) > 1e-3  # the wrong items masked
    assert distance(ranking_metrics(-golden["scores"], train, test, KS), golden) > 1e-3


def test_evaluate_equals_the_golden_in_blocks(golden):
    data = Interactions.from_arrays(50, 120, pairs(golden, "train"), test=pairs(golden, "test"))
    model = Table(golden["scores"])
    before = model.table.clone()
    assert distance(evaluate(model, data, ks=KS, block_bytes=16 * 120 * 8), golden) < 1e-6
    assert model.rows == [8] * 6 + [2]
    assert torch.equal(model.table, before)  # masking leaves the model's scores alone


def test_by_hand():
    scores = np.array([[9.0, 8, 7, 6, 5, 4]])
    metrics = ranking_metrics(scores, train=np.array([[0], [1]]), test=np.array([[0, 0], [0, 3]]), ks=(1, 2, 3))
    # ranking without item 1: items 0, 2, 3, ...; items 0 and 3 are wanted: hits at ranks 1 and 3
    assert [metrics[f"recall@{k}"] for k in (1, 2, 3)] == [0.5, 0.5, 1.0]
    assert [metrics[f"precision@{k}"] for k in (1, 2, 3)] == pytest.approx([1, 1 / 2, 2 / 3])
    assert [metrics[f"map@{k}"] for k in (1, 2, 3)] == pytest.approx([1, 1 / 2, (1 + 2 / 3) / 2])
    ideal = 1 + 1 / np.log2(3)
    assert [metrics[f"ndcg@{k}"] for k in (1, 2, 3)] == pytest.approx([1, 1 / ideal, 1.5 / ideal])


def test_equal_scores_go_by_item_number():
    scores = torch.tensor([[1.0, 3, 3, 1, 3, 3], [2, 2, 2, 2, 2, 2], [0, 5, 4, 3, 2, 1]])
    assert top_items(scores, 2).tolist() == [[1, 2], [0, 1], [1, 2]]
    assert top_items(scores, 5).tolist() == [[1, 2, 4, 5, 0], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert top_items(scores, 9).tolist()[0] == [1, 2, 4, 5, 0, 3]


def test_top_items_equal_a_stable_sort():
    scores = torch.randint(0, 30, (200, 300), generator=torch.Generator().manual_seed(0)).float()
    scores[::7] = torch.randn(29, 300, generator=torch.Generator().manual_seed(1))
    scores[3, 10:] = -torch.inf
    expected = scores.sort(dim=1, descending=True, stable=True).indices
    for k in (1, 5, 20, 299, 300):
        assert torch.equal(top_items(scores, k), expected[:, :k])


def test_fewer_items_than_k_and_masked_test_items():
    scores = np.array([[3.0, 2, 1]])
    metrics = ranking_metrics(scores, np.array([[0], [0]]), np.array([[0, 0], [0, 2]]), ks=(5,))
    assert metrics["recall@5"] == 0.5  # item 0 is masked, so it is never found, though it is wanted
    assert metrics["precision@5"] == pytest.approx(1 / 5)


def test_users_without_training_interactions_are_dropped():
    train, test = np.array([[0, 2], [0, 1]]), np.array([[0, 1, 2], [1, 2, 0]])
    data = Interactions.from_arrays(3, 3, train, test=test)
    scores = np.array([[0.0, 1, 0], [0, 0, 1], [0, 0, 1]])
    users, values = per_user_metrics(Table(scores), data, ks=(1,))
    assert users.tolist() == [0, 2]
    assert values["recall@1"].tolist() == [1.0, 0.0]
    assert evaluate(Table(scores), data, ks=(1,))["recall@1"] == 0.5
    assert ranking_metrics(scores, train, test, ks=(1,))["recall@1"] == pytest.approx(2 / 3)  # control: none dropped


def test_per_user_values_average_to_evaluate():
    data = toy_data()
    users, values = per_user_metrics(ToyModel(data), data, "valid")
    assert all(v.shape == users.shape for v in values.values())
    assert {name: v.mean() for name, v in values.items()} == evaluate(ToyModel(data), data, "valid")


def test_only_training_items_are_masked():
    scores = torch.tensor([[5.0, 4, 3, 2]])
    data = Interactions.from_arrays(1, 4, *(np.array([[0], [item]]) for item in (0, 1, 2)))
    assert evaluate(Table(scores), data, ks=(1, 2))["recall@1"] == 0  # the validation item 1 stands before item 2
    assert evaluate(Table(scores), data, ks=(1, 2))["recall@2"] == 1


def test_representation_is_computed_once_where_scores_take_it():
    data = toy_data()

    class Cached(ToyModel):
        calls = 0

        def representation(self):
            type(self).calls += 1
            assert not self.training
            assert not torch.is_grad_enabled()
            return self.embedding

        def scores(self, users, representation=None):
            representation = self.representation() if representation is None else representation
            return representation[users] @ representation[self.n_users :].T

    model = Cached(data)
    assert evaluate(model, data, block_bytes=1) == evaluate(ToyModel(data), data)
    assert Cached.calls == 1
    assert model.training


def test_bad_input_is_named(golden):
    data = toy_data()
    train, test = pairs(golden, "train"), pairs(golden, "test")
    spoiled = golden["scores"].copy()
    spoiled[17, 4] = np.nan
    with pytest.raises(InputError, match="scores of users 16 to 19: the score of user 17 for item 4 is nan"):
        ranking_metrics(spoiled, train, test, block_bytes=16 * 120 * 4)
    with pytest.raises(InputError, match=r"scores of users .* have shape \(\d+, 39\): expected \(\d+, 40\)"):
        evaluate(Table(np.zeros((60, 39))), data)
    with pytest.raises(InputError, match="unknown split 'tests'"):
        evaluate(ToyModel(data), data, "tests")
    with pytest.raises(InputError, match="no user of the valid split"):
        evaluate(ToyModel(data), toy_data(valid=False), "valid")
    with pytest.raises(InputError, match="k is 0"):
        evaluate(ToyModel(data), data, ks=(0, 5))
    with pytest.raises(InputError, match="test: item 120 in column 0: expected 0 to 119"):
        ranking_metrics(golden["scores"], train, np.array([[0], [120]]))
    with pytest.raises(InputError, match=r"test: the pair \(user 0, item 1\) stands there more than once"):
        ranking_metrics(golden["scores"], train, np.array([[0, 0], [1, 1]]))
    with pytest.raises(InputError, match=r"scores have shape \(50,\)"):
        ranking_metrics(golden["scores"][:, 0], train, test)


def test_huge_finite_scores_are_accepted():
    scores = np.full((2, 3), 3e38, dtype=np.float32)  # their float32 sum overflows
    assert ranking_metrics(scores, np.zeros((2, 0), int), np.array([[0], [0]]), ks=(1,))["recall@1"] == 1
