"""A small random data set for the tests of models, and how they compare two models."""

import numpy as np
import torch

from mmrec_helpers.data import Interactions
from mmrec_helpers.models import build


def small_data(modalities=("visual", "textual"), n_users=50, n_items=24, seed=0):
    """50 users, 24 items; user 49 and item 23 have no interactions. Edges in random order."""
    rng = np.random.default_rng(seed)
    pairs = np.unique(rng.integers(0, (n_users - 1, n_items - 1), size=(260, 2)), axis=0)
    widths = {"visual": 10, "textual": 7}
    return Interactions.from_arrays(
        n_users,
        n_items,
        train=rng.permutation(pairs).T,
        features={m: rng.normal(size=(n_items, widths[m])) for m in modalities},
    )


def random_batch(data, size=40, seed=1):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, count, size) for count in (data.n_users, data.n_items, data.n_items)]
    return torch.from_numpy(np.stack(rows))


def tiny_grcn(backend="reference", **options):
    """User 0 with items 0 and 1, user 1 with item 1; the identity as feature layer, so that unit features are (1, 0),
    (0, 1), (1, 1) / sqrt(2); preferences (1, 0) and (0, 1), learned query (2, 1) if there is one; in float64."""
    features = {"visual": np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])}
    data = Interactions.from_arrays(2, 3, train=np.array([[0, 1, 0], [0, 1, 1]]), features=features)
    model = build("grcn", data, backend=backend, embedding_dim=2, **options).double()
    with torch.no_grad():
        model.v_gcn.MLP.weight.copy_(torch.eye(2))
        model.v_gcn.MLP.bias.zero_()
        model.v_gcn.preference.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        if model.v_gcn.weighting is not None:
            model.v_gcn.weighting.copy_(torch.tensor([2.0, 1.0]))
    return model


def loss_and_gradients(model, batch):
    """The loss and {parameter name: gradient} of the parameters that get one."""
    model.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model, other, batch, tolerance):
    """Representation, loss and every gradient agree, relative to the largest value of each."""
    (loss, grads), (other_loss, other_grads) = loss_and_gradients(model, batch), loss_and_gradients(other, batch)
    assert grads.keys() == other_grads.keys()
    pairs = {"representation": (model.representation(), other.representation()), "loss": (loss, other_loss)}
    pairs.update({name: (grads[name], other_grads[name]) for name in grads})
    for name, (a, b) in pairs.items():
        assert float((a - b).detach().abs().max()) <= tolerance * float(a.detach().abs().max()), name
