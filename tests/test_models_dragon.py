"""DRAGON: its graphs in use, what it carries along unused, and that every backend computes the same step."""

import numpy as np
import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.models import build
from mmrec_helpers.models.graphs import item_graph
from tests.models_data import assert_same_step, loss_and_gradients, random_batch, small_data

DATA = small_data()
BATCH = random_batch(DATA)
UNUSED = {
    "image_embedding.weight",
    "text_embedding.weight",
    "image_trs.weight",
    "image_trs.bias",
    "text_trs.weight",
    "text_trs.bias",
    "MLP_v.weight",
    "MLP_t.weight",
    "MLP_user.weight",
    "MLP_user.bias",
    "weight_i",
}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


@pytest.mark.parametrize("backend", ["sparse", "fused"])
@pytest.mark.parametrize("modalities", [("visual",), ("textual",), ("visual", "textual")])
def test_backends_compute_the_reference_step(backend, modalities):
    data = small_data(modalities)
    models = [build("dragon", data, backend=name, n_mm_layers=2) for name in ("reference", backend)]
    assert_same_step(*models, BATCH, 1e-5)
    for model in models:
        model.on_epoch_start(3)
    assert_same_step(models[0].double(), models[1].double(), BATCH, 1e-10)


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
def test_item_and_user_graph_in_use(backend):
    model = build("dragon", DATA, backend=backend).double()
    rng = np.random.default_rng(0)
    neighbors, weights = rng.integers(0, 50, (50, 3)), rng.random((50, 3))
    weights[7] = 0
    model.set_user_graph(neighbors, np.zeros_like(weights))
    users = model.representation().detach()[:50]
    model.set_user_graph(neighbors, weights)
    expected = users + (torch.from_numpy(weights).unsqueeze(2) * users[neighbors]).sum(dim=1)
    torch.testing.assert_close(model.representation().detach()[:50], expected)
    torch.testing.assert_close(expected[7], users[7])
    items = model.representation().detach()[50:]
    with_graph = build("dragon", DATA, backend=backend, n_mm_layers=1).double()
    without = build("dragon", DATA, backend=backend, n_mm_layers=0).double()
    raw = without.representation().detach()[50:] / 2  # no layers: items + items
    graph = item_graph(DATA, 10, 0.1).to_dense().double()
    torch.testing.assert_close(items, raw + graph @ raw)
    torch.testing.assert_close(with_graph.representation().detach()[50:], items)


def test_an_epoch_draws_its_own_user_graph():
    data = small_data(n_users=30)  # fewer than 40 others: all repeat some
    model, same = (build("dragon", data, backend="reference", seed=4) for _ in range(2))
    at_build = model._neighbors
    model.on_epoch_start(1)
    model.on_epoch_start(2)
    same.on_epoch_start(2)
    assert model._neighbors == same._neighbors != at_build
    assert build("dragon", data, backend="reference", seed=5)._neighbors != at_build


@pytest.mark.parametrize("backend", ["reference", "sparse"])
def test_what_it_carries_along_gets_no_gradient(backend):
    model = build("dragon", DATA, backend=backend)
    _, grads = loss_and_gradients(model, BATCH)
    parameters = dict(model.named_parameters())
    assert parameters.keys() - grads.keys() == UNUSED
    assert all(parameters[name].requires_grad for name in UNUSED)


def test_features_can_be_frozen_as_in_the_fork():
    frozen = build("dragon", DATA, train_features=False, feature_hidden=128)
    fixed = {name for name, parameter in frozen.named_parameters() if not parameter.requires_grad}
    assert fixed == {"image_embedding.weight", "text_embedding.weight"}
    assert frozen.v_gcn.MLP.weight.shape == (128, 10)


def test_weights_of_modalities_start_as_shares():
    weights = build("dragon", DATA).weight_u.detach()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(50, 1))
    assert weights.min() > 0


@pytest.mark.parametrize(
    ("neighbors", "weights", "message"),
    [
        (np.zeros((49, 2), int), np.zeros((49, 2)), r"are \(49, 2\) and \(49, 2\): expected \(50, k\) twice"),
        (np.zeros((50, 2), int), np.zeros((50, 3)), r"are \(50, 2\) and \(50, 3\)"),
        (np.full((50, 2), 50), np.zeros((50, 2)), "neighbors hold 50: expected 0 to 49"),
        (np.zeros((50, 2)), np.zeros((50, 2)), "neighbors have type torch.float64: expected integers"),
        (np.zeros((50, 2), int), np.full((50, 2), np.nan), "weights hold nan or infinite values"),
    ],
)
def test_set_user_graph_names_what_is_wrong(neighbors, weights, message):
    with pytest.raises(InputError, match=f"dragon user graph: .*{message}"):
        build("dragon", DATA, backend="sparse").set_user_graph(neighbors, weights)


class TestOptionalNamesInState:
    @pytest.fixture
    def state(self):
        return build("dragon", DATA, backend="sparse", seed=2).state_dict()

    def test_may_be_there(self, state):
        model = build("dragon", DATA, backend="sparse", seed=1)
        state["v_preference"], state["t_preference"] = state["v_gcn.preference"], state["t_gcn.preference"]
        state["image_embedding.weight"] = torch.from_numpy(DATA.features["visual"])
        state["result_embed"] = torch.ones(74, 64)
        model.load_mmrec_state(state)
        assert torch.equal(model.v_gcn.preference, state["v_gcn.preference"])

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("image_embedding.weight", torch.ones(24, 9), r"has shape \(24, 9\): expected \(24, 10\)"),
            ("v_preference", torch.ones(50, 3), r"has shape \(50, 3\): expected \(50, 64\)"),
            ("t_preference", torch.ones(50, 64), "differs from t_gcn.preference"),
            ("audio_preference", torch.ones(50, 64), "unknown name 'audio_preference'"),
        ],
    )
    def test_must_fit(self, state, name, value, message):
        state[name] = value
        with pytest.raises(InputError, match=message):
            build("dragon", DATA, backend="sparse").load_mmrec_state(state)
