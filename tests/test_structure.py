"""What the reference models call, counted on a graph that can be checked by hand."""

import numpy as np
import pytest
import torch

from mmrec_helpers.data import Interactions
from mmrec_helpers.experiments.routing import iteration_effects, measure_routing
from mmrec_helpers.experiments.steps import MeasureOptions
from mmrec_helpers.experiments.structure import (
    convolution_distance,
    measure_structure_dragon,
    measure_structure_grcn,
    parameter_counts,
    parameter_rows,
    record_calls,
)
from mmrec_helpers.models import build

OPTIONS = MeasureOptions(batch_size=4, repeats=2)
BATCH = torch.tensor([[0, 1, 2], [0, 1, 2], [3, 3, 0]])


@pytest.fixture(scope="module")
def data():
    """Three users, twelve items, seven edges, two modalities."""
    random = np.random.default_rng(0)
    train = np.array([[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 2, 2, 3]])
    features = {m: random.standard_normal((12, w)) for m, w in (("visual", 6), ("textual", 4))}
    return Interactions.from_arrays(3, 12, train, features=features, name="toy")


def test_grcn_calls_by_hand(data):
    structure = measure_structure_grcn(data, OPTIONS)
    calls = structure["calls"]
    # per modality three one-way calls over 7 edges and one over both directions; then two in the ID branch
    assert calls["edges"].tolist() == [7, 7, 7, 14] * 2 + [14, 14]
    assert (calls["from_items"] > 0).tolist() == [False, False, False, True] * 2 + [True, True]
    loop = calls[calls["from_items"] == 0]
    assert (loop["users_max_abs"] == 0).all()
    assert (loop["items_max_abs"] > 0).all()
    assert [p["loop_calls"] for p in structure["sweep"]] == [0, 2, 4, 6]
    assert structure["attention_heads"] == 1
    assert all(row.get("exp") == 1 for row in calls["operators"][:8])


def test_the_control_with_live_routing_fills_the_user_rows(data):
    calls = record_calls(build("grcn", data, backend="reference", routing="live"), BATCH)
    loop = calls[calls["from_users"] == 0]
    assert len(loop) == 6
    assert (loop["users_max_abs"] > 0).all()


def test_dragon_calls_by_hand(data):
    structure = measure_structure_dragon(data, OPTIONS)
    assert structure["calls"]["edges"].tolist() == [14] * 4
    assert [p["item_graph_runs"] for p in structure["item_graph_sweep"]] == [1, 2, 3]
    assert structure["user_graph_runs"] == 1
    assert structure["user_graph_edges"] == 3 * 40  # every user shares an item with another, so forty each
    assert not any("exp" in row for row in structure["calls"]["operators"])


def test_the_convolution_is_the_symmetric_one_and_the_comparison_tells_them_apart(data):
    distance = convolution_distance(data, "cpu")
    assert distance["symmetric normalised sum"] < 1e-6
    assert min(distance["mean"], distance["sum"]) > 0.01


def test_parameter_counts_leave_out_what_gets_no_gradient():
    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used = torch.nn.Parameter(torch.ones(3))
            self.zero = torch.nn.Parameter(torch.ones(5))
            self.unused = torch.nn.Parameter(torch.ones(7))
            self.frozen = torch.nn.Parameter(torch.ones(11), requires_grad=False)

        def loss(self, batch):
            return (self.used * self.frozen[:3]).sum() + (self.zero * 0).sum()

    counts = parameter_counts({"parameters": parameter_rows(Toy(), BATCH)})
    assert counts == {"trainable": 15, "receiving_gradient": 3, "without_gradient": 2}


def test_iterations_change_nothing_as_shipped_and_something_live(data):
    effects = iteration_effects(data, BATCH).set_index(["routing", "iterations"])
    changes = effects[["output_difference", "loss_difference", "gradient_difference"]]
    assert (changes.loc["as_shipped"] < 1e-14).all(axis=None)
    assert (changes.loc["live"].drop(index=0) > 1e-6).all(axis=None)


def test_the_attention_is_compared_with_the_convolution_beside_a_control(data):
    attention = measure_routing(data, OPTIONS)["attention"]
    assert attention["edges"] == 14
    assert attention["attention_to_convolution"]["rounds"] == attention["control"]["rounds"] == 2


def test_counting_leaves_no_hook_behind(data):
    model = build("grcn", data, backend="reference")
    record_calls(model, BATCH)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
