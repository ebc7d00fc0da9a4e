"""The user graph: users with most training items in common, drawn to a fixed number of neighbours."""

import numpy as np
import pytest
import torch

from mmrec_helpers.data import Interactions
from mmrec_helpers.data.graph import BipartiteGraph
from mmrec_helpers.models.graphs import STORED, USED, UserGraph

# items of users: 0: {0, 1, 2}, 1: {0, 1}, 2: {2, 3}, 3: {1, 2}, 4: {4}, 5: {}
PAIRS = np.array([[0, 0, 0, 1, 1, 2, 2, 3, 3, 4], [0, 1, 2, 0, 1, 2, 3, 1, 2, 4]])
GRAPH = BipartiteGraph.from_pairs(PAIRS, 6, 5)


def random_graph(n_users, n_items, n_edges, seed=0):
    keys = np.unique(np.random.default_rng(seed).integers(0, n_users * n_items, n_edges))
    return BipartiteGraph.from_pairs(np.stack((keys // n_items, keys % n_items)), n_users, n_items)


def test_counts_of_items_in_common():
    found = UserGraph.count(GRAPH)
    assert found.neighbors[:4, :3].tolist() == [[1, 3, 2], [0, 3, 0], [0, 3, 0], [0, 1, 2]]
    assert found.counts[:4, :3].tolist() == [[2, 2, 1], [2, 1, 0], [1, 1, 0], [2, 1, 1]]
    assert not found.counts[4:].any()  # nothing in common with anyone; no items at all


def test_equals_the_dense_product_in_any_block():
    graph = random_graph(260, 60, 2500)
    dense = torch.zeros(260, 60, dtype=torch.int64)
    dense[graph.edge_user, graph.edge_item] = 1
    counts = (dense @ dense.T).fill_diagonal_(0)
    order = torch.argsort(counts, dim=1, descending=True, stable=True)[:, :STORED]
    expected = counts.gather(1, order)
    for found in (UserGraph.count(graph), UserGraph.count(graph, block_bytes=32 * 260 * 7)):
        assert np.array_equal(found.counts, expected.numpy())
        assert np.array_equal(found.neighbors, torch.where(expected > 0, order, 0).numpy())


def test_draw_takes_the_nearest_and_weighs_them_by_softmax():
    graph = random_graph(100, 10, 600)
    stored = UserGraph.count(graph)
    neighbors, weights = stored.draw(np.random.default_rng(0))
    full = np.flatnonzero((stored.counts > 0).sum(axis=1) >= USED)
    assert len(full) > 50
    assert np.array_equal(neighbors[full].numpy(), stored.neighbors[full, :USED])
    expected = torch.softmax(torch.from_numpy(stored.counts[full, :USED]).float(), dim=1)
    torch.testing.assert_close(weights[full], expected)


def test_few_neighbours_are_repeated_and_none_weigh_nothing():
    neighbors, weights = UserGraph.count(GRAPH).draw(np.random.default_rng(0))
    assert neighbors.shape == weights.shape == (6, USED)
    assert neighbors[0, :3].tolist() == [1, 3, 2]
    assert set(neighbors[0].tolist()) == {1, 2, 3}
    torch.testing.assert_close(weights.sum(dim=1), torch.tensor([1.0, 1, 1, 1, 0, 0]))
    assert not weights[4:].any()
    own = {1: 2.0, 3: 2.0, 2: 1.0}  # user 0's counts: repeats carry the count of what they repeat
    counts = torch.tensor([own[user] for user in neighbors[0].tolist()])
    torch.testing.assert_close(weights[0], torch.softmax(counts, dim=0))


def test_repeats_are_drawn_from_all_that_are_there():
    # user 2 has two neighbours: the third is one of them at even odds, the fourth one of three that are there
    draws = [UserGraph.count(GRAPH).draw(np.random.default_rng(seed))[0][2] for seed in range(400)]
    same = np.mean([len(set(neighbors[2:4].tolist())) == 1 for neighbors in draws])
    assert 0.58 < same < 0.76  # 2 / 3; independent even draws would give 1 / 2


def test_draws_depend_on_the_generator_alone():
    stored = UserGraph.count(GRAPH)
    first, again = (stored.draw(np.random.default_rng(5))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, stored.draw(np.random.default_rng(6))[0])


def test_cached_by_the_training_edges(tmp_path, monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", str(tmp_path))
    data = Interactions.from_arrays(6, 5, train=PAIRS)
    first = UserGraph.of(data)
    assert np.array_equal(UserGraph.of(data).counts, first.counts)
    assert len(list(tmp_path.iterdir())) == 1
    UserGraph.of(Interactions.from_arrays(6, 5, train=PAIRS[:, 1:]))
    assert len(list(tmp_path.iterdir())) == 2


def test_an_altered_cache_file_changes_no_graph(tmp_path, monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", str(tmp_path))
    data = Interactions.from_arrays(6, 5, train=PAIRS)
    first = UserGraph.of(data)
    (path,) = tmp_path.iterdir()
    for altered in (
        {"neighbors": first.neighbors[:, 1:]},
        {"neighbors": first.neighbors - 5},
        {"counts": -first.counts},
    ):
        np.savez(path, **(vars(first) | altered))
        with pytest.warns(RuntimeWarning, match="computing it again"):
            again = UserGraph.of(data)
        assert np.array_equal(again.neighbors, first.neighbors)
        assert np.array_equal(again.counts, first.counts)
