"""What differs on CUDA: draws on the device, losses looked at afterwards, scaled gradients."""

import numpy as np
import pytest
import torch

from mmrec_helpers.models import build
from mmrec_helpers.training import NegativeSampler, TrainingError, evaluate, fit, make_scaler, trainer
from tests.test_training import Diverging, without_times
from tests.toy_model import ToyModel, toy_data

pytestmark = pytest.mark.gpu
QUICK = {"progress": False, "batch_size": 64, "learning_rate": 0.02, "max_grad_norm": 5.0, "ks": (5, 20)}


def test_an_epoch_on_the_device_is_exact():
    data = toy_data()
    triples = NegativeSampler(data, "cuda").epoch(seed=0, epoch=1)
    assert triples.device.type == "cuda"
    assert torch.equal(triples, NegativeSampler(data, "cuda").epoch(seed=0, epoch=1))
    users, positives, negatives = triples.cpu().numpy()
    known = set(zip(*data.train.tolist()))
    assert sorted(zip(users.tolist(), positives.tolist())) == sorted(known)
    assert not known & set(zip(users.tolist(), negatives.tolist()))


def test_evaluation_on_the_device_equals_the_cpu():
    data = toy_data()
    model = ToyModel(data)
    with torch.no_grad():
        model.embedding.copy_(torch.randint(-2, 3, model.embedding.shape))  # exact scores, with ties
    expected = evaluate(model, data, block_bytes=1)
    assert evaluate(model.cuda(), data) == pytest.approx(expected, abs=1e-12)


def test_training_on_the_device_learns_and_resumes(tmp_path):
    data = toy_data()
    expected = fit(ToyModel(data).cuda(), data, epochs=6, **QUICK)
    fit(ToyModel(data).cuda(), data, epochs=2, checkpoint=tmp_path / "run.pt", **QUICK)
    history = fit(ToyModel(data).cuda(), data, epochs=6, checkpoint=tmp_path / "run.pt", **QUICK)
    losses = [[row["loss"] for row in h.epochs] for h in (expected, history)]
    assert np.allclose(*losses, rtol=1e-4)  # sums on CUDA are not in a fixed order
    assert losses[0][-1] < losses[0][0]
    assert len(without_times(history)) == 6


@pytest.mark.parametrize("check_steps", [4, 50])
def test_the_step_of_a_loss_that_is_not_finite_is_named_afterwards(monkeypatch, check_steps):
    monkeypatch.setattr(trainer, "CUDA_CHECK_STEPS", check_steps)
    data = toy_data()
    model = Diverging(data, at=5).cuda()
    with pytest.raises(TrainingError, match=r"epoch 0, step 5 of \d+: the loss is nan"):
        fit(model, data, epochs=2, **QUICK)


@pytest.mark.parametrize("name", ["grcn", "dragon"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision_trains(name, precision):
    data = toy_data(features=True)
    model = build(name, data, device="cuda", mixed_precision=precision, checkpointing=True, features_on_host=True)
    assert (make_scaler(model) is None) == (precision == "bfloat16")
    history = fit(model, data, epochs=5, **QUICK)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    assert history.test["recall@5"] > evaluate(build("popularity", data, device="cuda"), data, ks=(5,))["recall@5"]
