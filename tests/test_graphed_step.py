"""Steps as a CUDA graph: what decides between running, capturing and replaying, and, on a GPU, the same losses."""

import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.models import build
from mmrec_helpers.training import fit
from mmrec_helpers.training.step import WARM_UP_STEPS, GraphedStep, cannot_be_graphed, make_optimizer, train_step
from tests.toy_model import ToyModel, toy_data

DATA = toy_data(features=True)


class OnTheHost(GraphedStep):
    """Tells what it does; a "replay" runs the step on the kept batch."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.done = []

    def _eager(self, batch):
        self.done.append("eager")
        return super()._eager(batch)

    def _warm_up(self, batch):
        loss = self._eager(batch)
        self.done[-1] = "warm-up"
        return loss

    def _capture(self, batch):
        self.done.append("capture")

        def replay():
            self.done.append("replay")
            return train_step(self.model, self.optimizer, self._batch, self.max_grad_norm)

        return replay


def batches(count, size=32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(40, (3, size), generator=generator) for _ in range(count)]


def test_warm_up_then_capture_then_replay_with_the_losses_of_plain_steps():
    steps = [*batches(6), *batches(1, size=7), *batches(1)]
    models = ToyModel(DATA), ToyModel(DATA)
    graphed = OnTheHost(models[0], make_optimizer(models[0]))
    optimizer = make_optimizer(models[1])
    for batch in steps:
        assert torch.equal(graphed(batch), train_step(models[1], optimizer, batch))
    expected = ["warm-up"] * WARM_UP_STEPS + ["capture", *["replay"] * 3, "eager", "replay"]
    assert graphed.done == expected
    assert torch.equal(models[0].embedding, models[1].embedding)


def test_a_replaced_tensor_is_captured_anew():
    model = ToyModel(DATA)
    graphed = OnTheHost(model, make_optimizer(model))
    for batch in batches(5):
        graphed(batch)
    model.embedding.data = model.embedding.data.clone()
    for batch in batches(5):
        graphed(batch)
    assert graphed.done.count("capture") == 2
    assert graphed.done[-1] == "replay"


def test_what_cannot_be_graphed_is_refused():
    cuda = torch.device("cuda")
    assert cannot_be_graphed(build("grcn", DATA, backend="fused"), cuda) is None
    assert "on cpu" in cannot_be_graphed(build("grcn", DATA, backend="fused"), torch.device("cpu"))
    assert "backend is 'reference'" in cannot_be_graphed(build("grcn", DATA, backend="reference"), cuda)
    for option in ({"checkpointing": True}, {"mixed_precision": "bfloat16"}, {"features_on_host": True}):
        assert next(iter(option)) in cannot_be_graphed(build("dragon", DATA, backend="fused", **option), cuda)
    with pytest.raises(InputError, match="cuda_graph is True, but the model is on cpu: expected False"):
        fit(build("grcn", DATA), DATA, epochs=1, cuda_graph=True, progress=False)
    with pytest.raises(InputError, match="cuda_graph is 1: expected True or False"):
        fit(build("grcn", DATA), DATA, epochs=1, cuda_graph=1, progress=False)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["grcn", "dragon"])
def test_a_graph_trains_as_plain_steps_do(name):
    quick = {"progress": False, "batch_size": 64, "epochs": 3, "learning_rate": 0.02, "max_grad_norm": 5.0}
    losses = []
    for graph in (False, True):
        model = build(name, DATA, backend="fused", device="cuda")
        losses.append([row["loss"] for row in fit(model, DATA, cuda_graph=graph, **quick).epochs])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
