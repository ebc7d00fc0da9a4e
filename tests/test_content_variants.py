"""What stands in place of GRCN's routing, and its loop rearranged: by hand, and backend against backend."""

import pytest
import torch
import torch.nn.functional as F

from mmrec_helpers.config import InputError
from mmrec_helpers.models import build
from tests.models_data import assert_same_step, loss_and_gradients, random_batch, small_data, tiny_grcn

DATA = small_data()
BATCH = random_batch(DATA)


def users_by_hand(updated):
    """The users' content rows from their updated preferences: the final attention over their items."""
    f = torch.eye(2).double()
    return torch.stack([updated[0] + torch.softmax(f @ updated[0], 0) @ f, updated[1] + f[1]])


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
def test_mean_takes_the_mean_of_a_users_items(backend):
    content = tiny_grcn(backend, preference_update="mean").representation()[:2, 2:].detach()
    updated = F.normalize(torch.tensor([[1.5, 0.5], [0.0, 2.0]]).double())
    torch.testing.assert_close(content, users_by_hand(updated))


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
def test_learned_weights_items_by_a_vector_of_its_own(backend):
    content = tiny_grcn(backend, preference_update="learned").representation()[:2, 2:].detach()
    share = torch.softmax(torch.tensor([2.0, 1.0]).double(), 0)  # <v, f_0>, <v, f_1>
    updated = F.normalize(torch.stack([torch.tensor([1.0, 0.0]) + share, torch.tensor([0.0, 2.0])]).double())
    torch.testing.assert_close(content, users_by_hand(updated))


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
def test_learned_begins_as_mean_and_learns_away_from_it(backend):
    learned, mean = (
        build("grcn", DATA, backend=backend, preference_update=name).double() for name in ("learned", "mean")
    )
    torch.testing.assert_close(learned.representation(), mean.representation())
    gradients = loss_and_gradients(learned, BATCH)[1]
    assert gradients["v_gcn.weighting"].abs().max() > 0
    assert gradients["t_gcn.weighting"].abs().max() > 0


@pytest.mark.parametrize("backend", ["sparse", "fused"])
@pytest.mark.parametrize("preference_update", ["mean", "learned"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_backends_compute_the_same_update(backend, preference_update, checkpointing):
    options = {"preference_update": preference_update, "checkpointing": checkpointing}
    models = [build("grcn", DATA, backend=name, **options) for name in ("reference", backend)]
    with_vector(*models)
    assert_same_step(*models, BATCH, 1e-5)
    assert_same_step(models[0].double(), models[1].double(), BATCH, 1e-10)


@pytest.mark.parametrize("preference_update", ["mean", "learned"])
def test_control_an_update_is_another_model(preference_update):
    shipped = build("grcn", DATA, backend="sparse").double()
    other = build("grcn", DATA, backend="sparse", preference_update=preference_update).double()
    assert (shipped.representation() - other.representation()).abs().max() > 1e-2


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
def test_the_gradient_of_the_learned_vector_is_the_difference_quotient(backend):
    model = build("grcn", DATA, backend=backend, preference_update="learned", embedding_dim=4).double()
    with_vector(model)
    gradient, step = loss_and_gradients(model, BATCH)[1]["v_gcn.weighting"], 1e-6
    for k in range(4):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                model.v_gcn.weighting[k] += sign * step
                losses.append(model.loss(BATCH))
                model.v_gcn.weighting[k] -= sign * step
        assert float((losses[0] - losses[1]) / (2 * step)) == pytest.approx(float(gradient[k]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
def test_a_large_learned_vector_gives_finite_numbers(backend):
    model = build("grcn", DATA, backend=backend, preference_update="learned")
    with torch.no_grad():
        model.v_gcn.weighting.fill_(50.0)
    loss, gradients = loss_and_gradients(model, BATCH)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("routing", ["as_shipped", "live"])
@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("modalities", [("visual",), ("visual", "textual")])
def test_batched_modalities_compute_the_same_step(routing, iterations, modalities):
    data, options = small_data(modalities), {"routing": routing, "routing_iterations": iterations}
    one_by_one = build("grcn", data, backend="reference", **options).double()
    together = build("grcn", data, backend="reference", batched_modalities=True, **options).double()
    assert_same_step(one_by_one, together, BATCH, 1e-12)


def test_cached_attention_is_exact_up_to_one_iteration_and_another_model_after():
    def distance(routing, iterations):
        options = {"backend": "reference", "routing": routing, "routing_iterations": iterations}
        pair = [build("grcn", DATA, cached_attention=cached, **options).double() for cached in (False, True)]
        return float((pair[0].representation() - pair[1].representation()).detach().abs().max())

    assert [distance("live", n) < 1e-12 for n in (0, 1, 2, 3)] == [True, True, False, False]
    assert distance("live", 3) > distance("live", 2)
    assert distance("as_shipped", 3) < 1e-12


def test_cached_attention_keeps_the_first_weights():
    content = tiny_grcn(routing="live", routing_iterations=2, cached_attention=True).representation()[:2, 2:].detach()
    f = torch.eye(2).double()
    update = torch.stack([torch.softmax(f[0], 0) @ f, f[1]])
    updated = F.normalize(F.normalize(f + update) + update)
    torch.testing.assert_close(content, users_by_hand(updated))


@pytest.mark.parametrize("option", ["batched_modalities", "cached_attention"])
def test_rearranged_loops_with_checkpointing_compute_the_same(option):
    options = {"backend": "reference", "routing": "live", option: True}
    plain, checkpointed = (build("grcn", DATA, checkpointing=on, **options).double() for on in (False, True))
    assert_same_step(plain, checkpointed, BATCH, 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preference_update": "max"}, "unknown preference_update 'max'"),
        ({"cached_attention": True, "backend": "sparse"}, "cached_attention is True with backend 'sparse'"),
        ({"batched_modalities": True, "cached_attention": True}, "both True"),
        (
            {"batched_modalities": True, "preference_update": "mean"},
            "batched_modalities is True with preference_update 'mean'",
        ),
        ({"batched_modalities": 1}, "batched_modalities is 1"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        build("grcn", DATA, **({"backend": "reference"} | options))


def with_vector(*models):
    """Give every learned vector of the models the same values, other than zero."""
    generator = torch.Generator().manual_seed(3)
    vector = 2 * torch.randn(64, generator=generator)
    with torch.no_grad():
        for model in models:
            for _, branch in model._branches():
                if branch.weighting is not None:
                    branch.weighting.copy_(vector[: len(branch.weighting)])
