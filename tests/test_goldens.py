"""GRCN and DRAGON against numbers of the public MMRec code (see golden/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmrec_helpers.data import Interactions
from mmrec_helpers.models import build
from mmrec_helpers.models.graphs import item_graph
from mmrec_helpers.ops.reference import EdgeAttention

GOLDEN = Path(__file__).parent / "golden"
GRCN, DRAGON = ("grcn_small", "grcn_single_visual"), ("dragon_small", "dragon_single_visual")
BACKENDS = ("reference", "sparse", "fused")


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def golden_data(golden):
    modalities = [m for m in ("visual", "textual") if f"{m}_features" in golden]
    return Interactions.from_arrays(
        n_users=int(golden["n_users"]),
        n_items=int(golden["n_items"]),
        train=np.stack((golden["train_user"], golden["train_item"])),
        features={m: golden[f"{m}_features"] for m in modalities},
    )


def golden_model(name, backend="reference", **options):
    """The model with the golden's parameters and settings, and the golden."""
    golden = load(name)
    options["reg_weight"] = float(golden["reg_weight"])
    if name.startswith("grcn"):
        options.setdefault("routing_iterations", int(golden["routing_iterations"]))
        model = build("grcn", golden_data(golden), backend, **options)
    else:
        options.update(knn_k=int(golden["knn_k"]), visual_weight=float(golden["visual_weight"]))
        model = build("dragon", golden_data(golden), backend, **options)
        model.set_user_graph(golden["user_graph_neighbors"], golden["user_graph_weights"])
    state = {key.removeprefix("param."): value for key, value in golden.items() if key.startswith("param.")}
    model.load_mmrec_state(state)
    return model, golden


def golden_batch(golden):
    return torch.from_numpy(golden["batch"]).long()


def gradients(golden):
    """The golden gradients by parameter name."""
    names = {"v_preference": "v_gcn.preference", "t_preference": "t_gcn.preference"}
    found = {key.removeprefix("grad."): value for key, value in golden.items() if key.startswith("grad.")}
    return {names.get(name, name): value for name, value in found.items()}


def relative_error(actual, expected):
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GRCN + DRAGON)
def test_representation_scores_loss_and_gradients(name, backend):
    model, golden = golden_model(name, backend)
    batch = golden_batch(golden)
    before = batch.clone()
    np.testing.assert_allclose(model.representation().detach().numpy(), golden["representation"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.scores(range(8)).numpy(), golden["scores_first_users"], rtol=1e-5, atol=1e-5)
    loss = model.loss(batch)
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    loss.backward()
    assert torch.equal(batch, before)
    expected = gradients(golden)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in expected:
            assert relative_error(parameter.grad.numpy(), expected.pop(parameter_name)) < 1e-4, parameter_name
        else:
            assert parameter.grad is None, parameter_name
    assert not expected


@pytest.mark.parametrize("name", GRCN)
def test_control_reversed_edges_do_not_match(name):
    model, golden = golden_model(name, routing="live")
    representation = model.representation().detach().numpy()
    assert np.abs(representation - golden["representation"]).max() > 1e-2


def test_control_one_direction_alone_does_not_match(monkeypatch):
    model, golden = golden_model("grcn_small")
    plain = EdgeAttention.forward
    monkeypatch.setattr(EdgeAttention, "forward", lambda self, x, edges: plain(self, x, edges[[1, 0]]))
    assert np.abs(model.representation().detach().numpy() - golden["representation"]).max() > 1e-2


@pytest.mark.parametrize("name", GRCN + DRAGON)
def test_control_every_loss_term_is_needed(name):
    model, golden = golden_model(name)
    terms = model.loss_terms(golden_batch(golden))
    assert len(terms) >= 3
    for dropped in terms:
        partial = sum(value for term, value in terms.items() if term != dropped)
        assert partial.item() != pytest.approx(float(golden["loss"]), rel=1e-5), dropped


@pytest.mark.parametrize("name", DRAGON)
def test_item_graph(name):
    golden = load(name)
    graph = item_graph(golden_data(golden), int(golden["knn_k"]), float(golden["visual_weight"]))
    np.testing.assert_allclose(graph.to_dense().numpy(), golden["item_graph_dense"], rtol=0, atol=1e-6)
    wrong = item_graph(golden_data(golden), int(golden["knn_k"]) - 1, float(golden["visual_weight"]))
    assert np.abs(wrong.to_dense().numpy() - golden["item_graph_dense"]).max() > 1e-2
