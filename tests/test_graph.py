"""The training graph as CSR from both sides, on a graph that can be checked by hand and on random ones."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_helpers.data import BipartiteGraph, Interactions

#          user 0: items 2, 0    user 1: none    user 2: items 2, 1    (item 3: no user)
PAIRS = np.array([[2, 0, 2, 0], [2, 2, 1, 0]])


def test_by_hand():
    graph = BipartiteGraph.from_pairs(PAIRS, n_users=3, n_items=4)
    assert graph.user_ptr.tolist() == [0, 2, 2, 4]
    assert graph.edge_user.tolist() == [0, 0, 2, 2]
    assert graph.edge_item.tolist() == [0, 2, 1, 2]
    assert graph.item_ptr.tolist() == [0, 1, 2, 4, 4]
    assert graph.item_user.tolist() == [0, 2, 0, 2]
    assert graph.item_edge.tolist() == [0, 2, 1, 3]
    assert graph.user_degree.tolist() == [2, 0, 2]
    assert graph.item_degree.tolist() == [1, 1, 2, 0]
    assert (graph.n_edges, graph.n_nodes) == (4, 7)


def test_order_of_the_pairs_does_not_matter():
    one, other = (BipartiteGraph.from_pairs(pairs, 3, 4) for pairs in (PAIRS, PAIRS[:, ::-1]))
    for name, value in vars(one).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(vars(other)[name])), name


def test_users_and_items_are_not_interchangeable():
    swapped = BipartiteGraph.from_pairs(PAIRS[::-1], n_users=4, n_items=3)
    assert swapped.user_degree.tolist() == [1, 1, 2, 0]
    assert swapped.edge_item.tolist() != BipartiteGraph.from_pairs(PAIRS, 3, 4).edge_item.tolist()


def test_single_edge_and_moved_graph():
    graph = BipartiteGraph.from_pairs(np.array([[0], [0]]), 1, 1).to("cpu")
    assert graph.user_ptr.tolist() == graph.item_ptr.tolist() == [0, 1]
    assert graph.item_edge.tolist() == [0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_both_sides_hold_the_same_edges(n_users, n_items, data):
    chosen = data.draw(st.sets(st.integers(0, n_users * n_items - 1), min_size=1))
    pairs = np.array([divmod(key, n_items) for key in data.draw(st.permutations(sorted(chosen)))]).T
    graph = BipartiteGraph.from_pairs(pairs, n_users, n_items)
    assert (graph.edge_user * n_items + graph.edge_item).tolist() == sorted(chosen)
    for item in range(n_items):
        places = slice(graph.item_ptr[item], graph.item_ptr[item + 1])
        assert (graph.edge_item[graph.item_edge[places]] == item).all()
        assert graph.item_user[places].tolist() == sorted(pairs[0][pairs[1] == item].tolist())
        assert torch.equal(graph.edge_user[graph.item_edge[places]], graph.item_user[places])


def test_a_data_set_builds_its_graph_from_training_alone_and_once():
    data = Interactions.from_arrays(3, 4, train=PAIRS, test=np.array([[1], [3]]))
    assert data.graph.n_edges == 4
    assert data.graph is data.graph
