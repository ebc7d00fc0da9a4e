"""The item graph: nearest items by cosine, without an n x n matrix."""

import numpy as np
import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.models.graphs import item_graph, nearest_items


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


def data_with(**features):
    n_items = len(next(iter(features.values())))
    features = {modality: np.asarray(rows, dtype=np.float32) for modality, rows in features.items()}
    return Interactions.from_arrays(2, n_items, train=np.array([[0, 1], [0, 1]]), features=features)


def test_nearest_by_angle_whatever_the_length():
    rows = np.array([[1, 0], [0, 5], [10, 1], [1, 1], [-1, 0]], dtype=np.float32)
    assert nearest_items(rows, 3).tolist() == [[0, 2, 3], [1, 3, 2], [2, 0, 3], [3, 2, 0], [4, 1, 3]]


def test_equal_similarities_go_to_the_lower_number():
    rows = np.array([[1, 0], [2, 0], [0, 1], [4, 0], [8, 0]], dtype=np.float32)
    assert nearest_items(rows, 3).tolist() == [[0, 1, 3], [1, 0, 3], [2, 0, 1], [3, 0, 1], [4, 0, 1]]


def test_items_without_features_are_linked_with_themselves_alone():
    rows = np.array([[1, 0], [0, 0], [-1, 0.1], [0, 0]], dtype=np.float32)
    assert nearest_items(rows, 3).tolist() == [[0, 2, -1], [1, -1, -1], [2, 0, -1], [3, -1, -1]]
    graph = item_graph(data_with(visual=rows), 2, 0.1).to_dense()
    expected = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(graph, expected)


def test_blocks_give_what_one_block_gives():
    rows = np.random.default_rng(0).normal(size=(57, 6)).astype(np.float32)
    whole = nearest_items(rows, 4)
    assert np.array_equal(whole, nearest_items(rows, 4, block_bytes=4 * 57 * 5))
    cosine = rows @ rows.T / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows, axis=1)[:, None]
    assert np.array_equal(np.sort(whole), np.sort(np.argsort(-cosine)[:, :4]))


def test_two_modalities_are_weighted():
    visual, textual = np.eye(4, 3) + 0.1, np.random.default_rng(1).normal(size=(4, 2))
    both = item_graph(data_with(visual=visual, textual=textual), 2, 0.25).to_dense()
    alone = [item_graph(data_with(**one), 2, 0.25).to_dense() for one in ({"visual": visual}, {"textual": textual})]
    torch.testing.assert_close(both, 0.25 * alone[0] + 0.75 * alone[1])
    torch.testing.assert_close(both.sum(dim=1), torch.ones(4))
    assert not torch.allclose(both, 0.75 * alone[0] + 0.25 * alone[1])


def test_neighbors_are_cached_by_features_and_k(tmp_path, monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", str(tmp_path))
    data = data_with(visual=np.random.default_rng(1).normal(size=(6, 2)))
    first = item_graph(data, 2, 0.1).to_dense()
    monkeypatch.setattr("mmrec_helpers.models.graphs.nearest_items", None)  # so that computing again would fail
    assert torch.equal(item_graph(data, 2, 0.1).to_dense(), first)
    with pytest.raises(TypeError):
        item_graph(data, 3, 0.1)


def test_an_altered_cache_file_changes_no_graph(tmp_path, monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", str(tmp_path))
    data = data_with(visual=np.random.default_rng(1).normal(size=(6, 2)))
    first = item_graph(data, 3, 0.1).to_dense()
    (path,) = tmp_path.iterdir()
    neighbors = np.load(path)["neighbors"]
    for altered in (neighbors[:, 1:], neighbors - 5, neighbors + 1, neighbors.astype(np.int64)):
        np.savez(path, neighbors=altered)
        with pytest.warns(RuntimeWarning, match="computing it again"):
            assert torch.equal(item_graph(data, 3, 0.1).to_dense(), first)


def test_more_neighbors_than_items():
    with pytest.raises(InputError, match="knn_k is 4: expected at most the number of items, 3"):
        item_graph(data_with(visual=np.eye(3)), 4, 0.1)
