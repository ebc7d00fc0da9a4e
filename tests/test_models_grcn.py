"""GRCN: what routing does as shipped and live, and that every backend computes the same step."""

import pytest
import torch
import torch.nn.functional as F

from mmrec_helpers.models import build
from tests.models_data import assert_same_step, loss_and_gradients, random_batch, small_data, tiny_grcn

DATA = small_data()
BATCH = random_batch(DATA)


def test_final_attention_goes_both_ways():
    content = tiny_grcn(routing_iterations=0).representation()[:, 2:].detach()
    p, f = torch.eye(2).double(), F.normalize(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]).double())
    to_user_0 = torch.softmax(f[:2] @ p[0], dim=0)
    to_item_1 = torch.softmax(p @ f[1], dim=0)
    torch.testing.assert_close(content[0], p[0] + to_user_0 @ f[:2])
    torch.testing.assert_close(content[1], p[1] + f[1])
    torch.testing.assert_close(content[2], f[0] + p[0])
    torch.testing.assert_close(content[3], f[1] + to_item_1 @ p)
    torch.testing.assert_close(content[4], f[2])


def test_live_routing_moves_preferences_towards_the_items():
    content = tiny_grcn(routing="live", routing_iterations=1).representation()[:, 2:].detach()
    p, f = torch.eye(2).double(), torch.eye(2).double()
    routed = F.normalize(p[0] + torch.softmax(f @ p[0], dim=0) @ f, dim=0)
    torch.testing.assert_close(content[0], routed + torch.softmax(f @ routed, dim=0) @ f)
    torch.testing.assert_close(content[2], f[0] + routed)


def test_routing_updates_are_zero_as_shipped_and_not_live():
    model = tiny_grcn()
    preference, features = model.v_gcn.encode()
    assert not model.v_gcn.route(preference, features, model.edge_index).any()
    assert model.v_gcn.route(preference, features, model.edge_index[[1, 0]]).any(dim=1).all()


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
def test_iterations_change_nothing_as_shipped(backend):
    base = build("grcn", DATA, backend=backend, routing_iterations=0).double()
    for iterations in (1, 2, 3):
        other = build("grcn", DATA, backend=backend, routing_iterations=iterations).double()
        assert_same_step(base, other, BATCH, 1e-12)


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
def test_control_iterations_change_much_live(backend):
    before = build("grcn", DATA, backend=backend, routing="live", routing_iterations=0).double()
    for iterations in (1, 2, 3):
        after = build("grcn", DATA, backend=backend, routing="live", routing_iterations=iterations).double()
        assert (after.representation() - before.representation()).abs().max() > 1e-2
        grads = [loss_and_gradients(model, BATCH)[1]["v_gcn.preference"] for model in (before, after)]
        assert (grads[0] - grads[1]).abs().max() > 1e-2 * grads[0].abs().max()
        before = after


@pytest.mark.parametrize("backend", ["sparse", "fused"])
@pytest.mark.parametrize("modalities", [("visual",), ("textual",), ("visual", "textual")])
@pytest.mark.parametrize("routing", ["as_shipped", "live"])
def test_backends_compute_the_reference_step(backend, modalities, routing):
    data = small_data(modalities)
    models = [build("grcn", data, backend=name, routing=routing) for name in ("reference", backend)]
    assert_same_step(*models, BATCH, 1e-5)
    assert_same_step(models[0].double(), models[1].double(), BATCH, 1e-10)


@pytest.mark.parametrize("width", [16, 48, 256])
def test_other_widths(width):
    models = [build("grcn", DATA, backend=name, embedding_dim=width) for name in ("reference", "sparse")]
    assert models[0].representation().shape == (74, 3 * width)
    assert_same_step(models[0].double(), models[1].double(), BATCH, 1e-10)


def test_control_confidences_belong_to_the_source():
    models = [build("grcn", DATA, backend=name).double() for name in ("reference", "sparse")]
    with torch.no_grad():
        for model in models:
            model.model_specific_conf.abs_()
        models[1].model_specific_conf.copy_(models[1].model_specific_conf.flip(0))
    with pytest.raises(AssertionError):
        assert_same_step(*models, BATCH, 1e-10)


def test_same_device_same_seed_same_bits():
    first, again = (loss_and_gradients(build("grcn", DATA, backend="sparse"), BATCH) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
