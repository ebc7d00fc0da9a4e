"""Training, evaluation and resuming with the models of the package."""

import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.models import build
from mmrec_helpers.training import evaluate, fit
from tests.test_training import without_times
from tests.toy_model import toy_data

QUICK = {"progress": False, "batch_size": 128, "learning_rate": 0.01, "max_grad_norm": 5.0, "ks": (5, 20)}


@pytest.mark.parametrize("name", ["grcn", "dragon", "lightgcn"])
def test_trained_models_beat_popularity(name):
    data = toy_data(features=True)
    history = fit(build(name, data, backend="sparse"), data, epochs=8, **QUICK)
    popularity = evaluate(build("popularity", data), data, ks=(5, 20))
    assert history.test["recall@5"] > 1.5 * popularity["recall@5"]
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]


@pytest.mark.parametrize("name", ["grcn", "dragon"])
def test_resumed_models_and_restored_weights_are_the_same(name, tmp_path):
    """DRAGON draws part of its user graph anew each epoch: the best epoch's draw must come back with its weights."""
    data = toy_data(n_users=36, features=True)  # fewer than DRAGON's 40 neighbours: every user has random ones

    def train(epochs, checkpoint=None):
        model = build(name, data, backend="sparse", seed=3)
        return model, fit(model, data, epochs=epochs, checkpoint=checkpoint, **QUICK | {"learning_rate": 0.05})

    whole, expected = train(6)
    train(2, tmp_path / "run.pt")
    resumed, history = train(6, tmp_path / "run.pt")
    assert without_times(history) == without_times(expected)
    assert history.test == expected.test
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    assert history.best_epoch < 5  # or the next line shows nothing
    assert evaluate(resumed, data, "valid", ks=(5, 20)) == history.valid


@pytest.mark.parametrize(("name", "options"), [("grcn", {}), ("grcn", {"routing": "live"}), ("dragon", {})])
@pytest.mark.parametrize("backend", ["sparse", "fused"])
def test_the_same_seed_trains_bitwise_the_same_curve(name, options, backend):
    data = synthesize("embedded", scale=0.3)  # enough users to be shared among threads

    def train(seed):
        model = build(name, data, backend=backend, seed=seed, **options)
        history = fit(model, data, epochs=2, seed=seed, progress=False, batch_size=512, ks=(20,))
        return [row["loss"] for row in history.epochs], model.state_dict()

    (first, state), (again, state_again) = train(0), train(0)
    assert again == first
    assert all(torch.equal(value, state_again[key]) for key, value in state.items())
    assert train(1)[0] != first


def test_other_options_or_backend_do_not_resume(tmp_path):
    data, path = toy_data(features=True), tmp_path / "run.pt"
    fit(build("grcn", data, backend="sparse"), data, epochs=1, checkpoint=path, **QUICK)
    with pytest.raises(InputError, match=r"model setting: reg_weight is 0\.001 there and 0\.1 here"):
        fit(build("grcn", data, backend="sparse", reg_weight=0.1), data, epochs=1, checkpoint=path, **QUICK)
    with pytest.raises(InputError, match="model backend is 'sparse' there and 'reference' here"):
        fit(build("grcn", data, backend="reference"), data, epochs=1, checkpoint=path, **QUICK)


def test_popularity_has_nothing_to_train():
    data = toy_data()
    with pytest.raises(InputError, match="Popularity has no parameters to train"):
        fit(build("popularity", data), data, epochs=1)
