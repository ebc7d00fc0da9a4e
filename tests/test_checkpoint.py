import dataclasses

import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.files import NotWritten
from mmrec_helpers.training import TrainingError, checkpoint, fit
from tests.test_training import without_times
from tests.toy_model import ToyModel, toy_data

QUICK = {"progress": False, "batch_size": 64, "learning_rate": 0.05, "ks": (5, 20)}


class Noisy(ToyModel):
    """Draws from torch's global random state in every step, as a model with dropout would."""

    def loss_terms(self, batch):
        terms = super().loss_terms(batch)
        return terms | {"noise": (self.embedding * torch.randn(())).mean()}


class Interrupted(Noisy):
    """Ctrl-C in the given call of ``loss``."""

    def __init__(self, data, at):
        super().__init__(data)
        self.left = at

    def loss(self, batch):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().loss(batch)


# the class names of an interrupted run and of its continuation must agree
Interrupted.__name__ = "Noisy"


@pytest.fixture
def data():
    return toy_data()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


def assert_same(first, second, first_model, second_model):
    assert without_times(first) == without_times(second)
    assert dataclasses.replace(first, epochs=[]) == dataclasses.replace(second, epochs=[])
    assert torch.equal(first_model.embedding, second_model.embedding)


@pytest.mark.parametrize("eval_every", [1, 2, 100])
def test_an_interrupted_run_resumes_to_the_same_result(data, path, eval_every):
    torch.manual_seed(0)
    whole = Noisy(data)
    expected = fit(whole, data, epochs=6, eval_every=eval_every, **QUICK)
    torch.manual_seed(0)
    broken = Interrupted(data, at=3 * expected.steps_per_epoch + 4)
    first = fit(broken, data, epochs=6, eval_every=eval_every, checkpoint=path, **QUICK)
    assert (first.stopped, len(first.epochs)) == ("interrupted", 3)
    torch.manual_seed(123)
    resumed = Noisy(data, seed=55)  # its own weights are replaced
    history = fit(resumed, data, epochs=6, eval_every=eval_every, checkpoint=path, **QUICK)
    assert_same(expected, history, whole, resumed)
    torch.manual_seed(123)
    other = Noisy(data)
    assert without_times(fit(other, data, epochs=6, **QUICK)) != without_times(expected)  # control: the noise matters


def test_training_longer_equals_training_at_once(data, path):
    torch.manual_seed(0)
    whole = Noisy(data)
    expected = fit(whole, data, epochs=5, **QUICK)
    torch.manual_seed(0)
    fit(Noisy(data), data, epochs=2, checkpoint=path, **QUICK)
    longer = Noisy(data)
    assert_same(expected, fit(longer, data, epochs=5, checkpoint=path, **QUICK), whole, longer)


def test_early_stopping_carries_over_and_a_finished_run_only_reads_the_test_split(data, path):
    options = QUICK | {"learning_rate": 0.3, "patience": 3}
    whole = ToyModel(data)
    expected = fit(whole, data, epochs=50, **options)
    assert expected.stopped == "early"
    fit(ToyModel(data), data, epochs=expected.best_epoch + 2, checkpoint=path, **options)
    for _ in range(2):  # the second time nothing is left to train
        resumed = ToyModel(data)
        assert_same(expected, fit(resumed, data, epochs=50, checkpoint=path, **options), whole, resumed)


def test_a_checkpoint_of_another_run_is_refused_and_kept(data, path):
    fit(ToyModel(data), data, epochs=2, checkpoint=path, **QUICK)
    before = path.read_bytes()

    def refused(message, model=None, data=data, epochs=3, **options):
        with pytest.raises(InputError, match=message):
            fit(model or ToyModel(data), data, epochs=epochs, checkpoint=path, **QUICK | options)
        assert path.read_bytes() == before

    refused("another run: training setting: learning_rate is 0.05 there and 0.5 here", learning_rate=0.5)
    refused("another run: training setting: seed is 0 there and 4 here", seed=4)
    refused("another run: data fingerprint", data=toy_data(seed=1))
    refused(r"another run: parameter: embedding is \[100, 8\] there and \[100, 9\] here", ToyModel(data, width=9))
    refused("another run: model is 'ToyModel' there and 'Noisy' here", Noisy(data))
    refused("has 2 epochs behind it: epochs is 1", epochs=1)


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "text", "other", "pickle"])
def test_a_damaged_checkpoint_is_named(data, path, damage):
    fit(ToyModel(data), data, epochs=1, checkpoint=path, **QUICK)
    if damage == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    elif damage == "flipped bit":
        weights = torch.load(path, weights_only=True)["model"]["embedding"].numpy().tobytes()
        content = bytearray(path.read_bytes())
        content[content.index(weights)] ^= 1  # the lowest bit of the first weight: torch alone reads it without a word
        path.write_bytes(content)
    elif damage == "pickle":
        torch.save(print, path)  # a file that would import something when read
    else:
        path.write_bytes({"truncated": path.read_bytes()[:-500], "empty": b"", "text": b"epoch,loss\n"}[damage])
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"run\.pt"):
        fit(ToyModel(data), data, epochs=2, checkpoint=path, **QUICK)
    assert path.read_bytes() == before


ALTERED = [
    lambda c: c.update(epochs_done="1"),
    lambda c: c.update(epochs_done=None),
    lambda c: c.update(model=[]),
    lambda c: c["model"].update(embedding="text"),
    lambda c: c["model"].update(embedding=c["model"]["embedding"].double()),
    lambda c: c["model"].update(embedding=c["model"]["embedding"] + 1e-6),
    lambda c: c["optimizer"].update(state={}),
    lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    lambda c: c["optimizer"]["param_groups"][0].update(lr="fast"),
    lambda c: c["progress"].update(rows=None),
    lambda c: c["progress"].update(best_state={}),
    lambda c: c["progress"].update(waited=-5),
    lambda c: c["progress"].update(more=1),
    lambda c: c["rng"].update(cpu=torch.zeros(3)),
    lambda c: c["rng"].clear(),
    lambda c: c["identity"].update(parameter={1: 2}),
]


@pytest.mark.parametrize("alter", ALTERED)
def test_an_altered_checkpoint_is_refused_and_kept(data, path, alter):
    fit(ToyModel(data), data, epochs=1, checkpoint=path, **QUICK)
    content = torch.load(path, weights_only=True)  # the digest at the end does not hinder others
    alter(content)
    torch.save(content, path)
    before, model = path.read_bytes(), ToyModel(data)
    untouched = model.embedding.detach().clone()
    with pytest.raises(InputError, match=r"run\.pt cannot be read .*its digest is not that of its content"):
        fit(model, data, epochs=2, checkpoint=path, **QUICK)
    assert path.read_bytes() == before
    assert torch.equal(model.embedding, untouched)


def test_targets_that_cannot_be_written_are_refused_before_training(data, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotWritten, match="Not a directory"):
        fit(ToyModel(data), data, epochs=1, checkpoint=tmp_path / "file" / "run.pt", **QUICK)
    with pytest.raises(InputError, match="file exists and is no checkpoint"):
        fit(ToyModel(data), data, epochs=1, checkpoint=tmp_path / "file", **QUICK)
    with pytest.raises(InputError, match="is a folder"):
        fit(ToyModel(data), data, epochs=1, checkpoint=tmp_path, **QUICK)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("write failed"), KeyboardInterrupt()]
)
def test_a_failed_write_leaves_the_checkpoint_before(data, path, monkeypatch, error):
    fit(ToyModel(data), data, epochs=1, checkpoint=path, **QUICK)
    before = path.read_bytes()
    plain = torch.save

    def failing(content, target):
        plain(content["progress"], target)  # half of it is written when the disk is full
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", failing)
    if isinstance(error, KeyboardInterrupt):
        assert fit(ToyModel(data), data, epochs=2, checkpoint=path, **QUICK).stopped == "interrupted"
    else:
        with pytest.raises(TrainingError, match=r"run\.pt could not be written .* the one before is untouched"):
            fit(ToyModel(data), data, epochs=2, checkpoint=path, **QUICK)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]
