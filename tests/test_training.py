import copy
import json

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mmrec_helpers.config import InputError
from mmrec_helpers.training import TrainingError, TrainSettings, evaluate, fit, make_optimizer, train_step, trainer
from tests.toy_model import ToyModel, toy_data

QUICK = {"progress": False, "batch_size": 64, "learning_rate": 0.02, "ks": (5, 20)}


def without_times(history):
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in history.epochs]


def popularity(data):
    class Popularity:
        def scores(self, users):
            return data.graph.item_degree.float().expand(len(users), -1)

    return Popularity()


def test_training_learns_what_popularity_does_not():
    data = toy_data()
    model = ToyModel(data)
    before = evaluate(model, data)["recall@5"]
    history = fit(model, data, epochs=30, **QUICK)
    assert history.epochs[-1]["loss"] < 0.8 * history.epochs[0]["loss"]
    assert history.test["recall@5"] > 1.5 * before
    assert history.test["recall@5"] > 1.5 * evaluate(popularity(data), data)["recall@5"]
    assert history.steps_per_epoch == int(np.ceil(data.train.shape[1] / 64))
    assert history.stopped == "epochs"
    assert history.note == ""


def test_the_same_seed_gives_the_same_history():
    data = toy_data()
    first = fit(ToyModel(data), data, epochs=3, **QUICK)
    torch.manual_seed(7)  # the global random state plays no part
    again = fit(ToyModel(data), data, epochs=3, **QUICK)
    other = fit(ToyModel(data), data, epochs=3, seed=1, **QUICK)
    assert without_times(first) == without_times(again)
    assert first.test == again.test
    assert without_times(first) != without_times(other)


def test_best_weights_are_restored_and_the_test_split_is_read_once(monkeypatch):
    data = toy_data()
    model, calls = ToyModel(data), []

    def spy(model, data, split="test", *args):
        calls.append((split, model.embedding.detach().clone()))
        return evaluate(model, data, split, *args)

    monkeypatch.setattr(trainer, "evaluate", spy)
    history = fit(model, data, epochs=8, patience=None, **QUICK | {"learning_rate": 0.3})
    assert [split for split, _ in calls] == ["valid"] * 8 + ["test"]
    curve = [row["valid.recall@20"] for row in history.epochs]
    assert history.best_epoch == int(np.argmax(curve))
    assert history.best_epoch < 7  # or the test shows nothing
    assert torch.equal(model.embedding, calls[history.best_epoch][1])
    assert not torch.equal(model.embedding, calls[7][1])
    assert history.valid["recall@20"] == max(curve)
    assert history.valid == evaluate(model, data, "valid", ks=(5, 20))
    assert history.test == evaluate(model, data, "test", ks=(5, 20))
    assert model.epochs_started == [*range(8), history.best_epoch]


def test_early_stopping_counts_validations_without_improvement():
    data = toy_data()
    history = fit(ToyModel(data), data, epochs=60, patience=3, **QUICK | {"learning_rate": 0.3})
    assert history.stopped == "early"
    assert len(history.epochs) == history.best_epoch + 1 + 3
    assert history.epochs[-1]["epoch"] == len(history.epochs) - 1


def test_an_equal_validation_is_no_improvement():
    data = toy_data()

    class Constant(ToyModel):
        def scores(self, users):
            return torch.zeros(len(users), self.n_items)

    history = fit(Constant(data), data, epochs=9, patience=2, **QUICK)
    assert (history.best_epoch, len(history.epochs), history.stopped) == (0, 3, "early")


def test_eval_every():
    data = toy_data()
    history = fit(ToyModel(data), data, epochs=5, eval_every=2, **QUICK)
    assert ["valid.recall@20" in row for row in history.epochs] == [False, True, False, True, False]
    assert history.best_epoch in (1, 3)
    never = fit(ToyModel(data), data, epochs=2, eval_every=3, **QUICK)
    assert never.best_epoch is None
    assert "no epoch was validated (2 trained)" in never.note


def test_without_validation_or_test_split():
    data = toy_data(valid=False, test=False)
    model = ToyModel(data)
    history = fit(model, data, epochs=3, patience=1, **QUICK)
    assert (len(history.epochs), history.best_epoch, history.valid, history.test) == (3, None, None, None)
    assert "no validation split: all epochs trained, the last weights are kept" in history.note
    assert "no test split" in history.note


def test_no_epochs_only_evaluates():
    data = toy_data()
    model = ToyModel(data)
    history = fit(model, data, epochs=0, **QUICK)
    assert history.epochs == []
    assert history.test == evaluate(ToyModel(data), data, ks=(5, 20))


def test_history_is_plain_data():
    data = toy_data()
    history = fit(ToyModel(data), data, TrainSettings(epochs=9, seed=5), **QUICK | {"epochs": 2})
    assert history.settings == TrainSettings(epochs=2, seed=5, batch_size=64, learning_rate=0.02, ks=(5, 20))
    plain = json.loads(json.dumps(history.to_dict()))
    assert plain["settings"]["ks"] == [5, 20]
    assert plain["epochs"] == history.epochs
    row = plain["epochs"][0]
    assert row["epoch_s"] == pytest.approx(row["sampling_s"] + row["train_s"])
    assert {"epoch", "loss", "validation_s", "valid.recall@20", "valid.map@5"} <= set(row)


@pytest.mark.parametrize("option", ["on", "off"])
def test_the_step_is_adam_on_the_clipped_gradient(option):
    data, clip = toy_data(), 1e-3 if option == "on" else None
    model = ToyModel(data)
    plain = copy.deepcopy(model)
    batch = torch.tensor([[0, 1, 2], [0, 1, 2], [5, 6, 7]])
    loss = train_step(model, make_optimizer(model, TrainSettings(learning_rate=0.1)), batch, max_grad_norm=clip)
    assert loss.ndim == 0
    assert not loss.requires_grad
    assert float(loss) == float(plain.loss(batch).detach())
    grad = torch.autograd.grad(plain.loss(batch), plain.embedding)[0]
    assert model.embedding.grad.norm() == pytest.approx(1e-3 if clip else float(grad.norm()), rel=1e-3)
    expected = plain.embedding - 0.1 * grad.sign() * (grad != 0)  # Adam's first step is the sign, but for epsilon
    assert torch.allclose(model.embedding, expected, atol=2e-3 if clip else 1e-5)


def test_regions_are_named():
    data = toy_data()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        history = fit(ToyModel(data), data, epochs=2, **QUICK)
    counts = {event.key: event.count for event in recorded.key_averages()}
    steps = 2 * history.steps_per_epoch
    assert counts["sampling"] == 2
    assert [counts[name] for name in ("data", "forward", "backward", "optimizer")] == [steps] * 4


class Diverging(ToyModel):
    """One term is not finite in the given call of ``loss``, and stays so for that batch."""

    def __init__(self, data, at):
        super().__init__(data)
        self.at, self.calls, self.bad_batch = at, 0, None

    def loss(self, batch):
        if self.calls == self.at:
            self.bad_batch = batch.clone()
        self.calls += 1
        return super().loss(batch)

    def loss_terms(self, batch):
        terms = super().loss_terms(batch)
        if self.bad_batch is not None and torch.equal(batch, self.bad_batch):
            terms["reg"] = terms["reg"] * torch.nan
        return terms


def test_a_loss_that_is_not_finite_stops_with_term_epoch_and_step():
    data = toy_data()
    n_steps = fit(ToyModel(data), data, epochs=0, **QUICK).steps_per_epoch
    model = Diverging(data, at=n_steps + 2)
    with pytest.raises(TrainingError, match=rf"epoch 1, step 2 of {n_steps}: .*reg = nan.*before this step: none"):
        fit(model, data, epochs=3, **QUICK)
    assert model.embedding.isfinite().all()
    with pytest.raises(TrainingError) as stopped:
        fit(Diverging(data, at=1), data, epochs=1, **QUICK)
    assert "bpr" not in str(stopped.value)  # only the term that is not finite is named


@pytest.mark.parametrize(("check_steps", "seen"), [(4, 3), (1000, 11)])
def test_losses_looked_at_afterwards_as_on_cuda_name_the_first_bad_step(monkeypatch, check_steps, seen):
    data = toy_data()
    plain = trainer._Run.__init__

    def patched(self, *args):
        plain(self, *args)
        self.check_steps = check_steps

    monkeypatch.setattr(trainer._Run, "__init__", patched)
    with pytest.raises(TrainingError, match=rf"epoch 1, step 2 of 12: the loss is nan, seen after step {seen};"):
        fit(Diverging(data, at=12 + 2), data, epochs=3, **QUICK)


def test_scores_that_are_not_finite_stop_training():
    data = toy_data()

    class Spoiled(ToyModel):
        def scores(self, users):
            return super().scores(users) * torch.inf

    with pytest.raises(TrainingError, match=r"validation after epoch 0: scores of users .* expected finite"):
        fit(Spoiled(data), data, epochs=2, **QUICK)


@pytest.mark.parametrize("validated", [True, False])
def test_ctrl_c_returns_the_history_with_the_best_weights(validated, capsys):
    data = toy_data(valid=validated)
    n_steps = fit(ToyModel(data), data, epochs=0, **QUICK).steps_per_epoch
    model = ToyModel(data)
    plain_loss, calls = model.loss, []

    def interrupted(batch):
        calls.append(batch)
        if len(calls) == 2 * n_steps + 3:
            raise KeyboardInterrupt
        return plain_loss(batch)

    model.loss = interrupted
    history = fit(model, data, epochs=5, **QUICK)
    assert (history.stopped, len(history.epochs), history.test) == ("interrupted", 2, None)
    assert "interrupted after 2 whole epochs" in history.note
    assert "training interrupted" in capsys.readouterr().err
    if validated:
        assert evaluate(model, data, "valid", ks=(5, 20)) == history.valid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs is -1: expected an integer of at least 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: expected a number greater than 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"patience": 0}, "patience is 0"),
        ({"eval_every": 0}, "eval_every is 0"),
        ({"max_grad_norm": -5}, "max_grad_norm is -5"),
        ({"seed": -1}, "seed is -1"),
        ({"ks": ()}, r"ks is \(\)"),
        ({"ks": (5, 10)}, "unknown training monitor 'recall@20': expected one of recall@5, recall@10"),
        ({"monitor": "loss"}, "unknown training monitor 'loss'"),
        ({"lr": 0.1}, "unknown training option 'lr': expected one of epochs, batch_size, learning_rate"),
    ],
)
def test_settings_are_checked(options, message):
    data = toy_data()
    with pytest.raises(InputError, match=message):
        fit(ToyModel(data), data, progress=False, **options)


def test_models_that_cannot_be_trained_are_refused():
    data = toy_data()
    frozen = ToyModel(data)
    frozen.embedding.requires_grad_(False)
    with pytest.raises(InputError, match="ToyModel has no parameters to train"):
        fit(frozen, data, epochs=1)
    with pytest.raises(InputError, match="Popularity cannot be trained: expected a model with loss"):
        fit(popularity(data), data, epochs=1)
    with pytest.raises(InputError, match="the model has n_users 60, the data set toy 61"):
        fit(ToyModel(data), toy_data(n_users=61), epochs=1)


def test_the_bar_shows_loss_and_best_metric(capsys):
    data = toy_data()
    fit(ToyModel(data), data, epochs=2, **QUICK | {"progress": True})
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown
    assert "loss 0." in shown
    assert "best recall@20 0." in shown
    fit(ToyModel(data), data, epochs=1, **QUICK)
    assert capsys.readouterr().err == ""
