"""A model is put back as it was: what examine, find_dead_work and accelerate promise of it."""

import random

import numpy as np
import torch
from torch import nn

from mmrec_helpers.profiling.state import preserved

WIDTH = 4


class Model(nn.Module):
    """Holds what a step may change: parameters, buffers, sparse constants, containers, generators, an optimizer."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), torch.jit.script(nn.Linear(WIDTH, 1))
        self.register_buffer("average", torch.full((WIDTH,), torch.nan))
        self.register_buffer("graph", torch.eye(WIDTH).to_sparse())
        self.table, self.history = torch.ones(WIDTH), {"loss": [1.0]}
        self.generator = np.random.default_rng(0)
        self.optimizer = torch.optim.Adam(self.layer.parameters())


def change(model):
    model.table.zero_()
    model.history["loss"].append(model.generator.random())
    model.average.data = torch.zeros(2)
    model.graph._values().fill_(7.0)
    model.layer.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH))
    model.layer.register_buffer("more", torch.ones(1))
    model.layer.register_forward_hook(lambda *_: None)
    model.head.weight.data.zero_()
    model.layer.bias.grad = torch.ones(WIDTH)
    model.optimizer.step()
    model.eval()
    model.result = torch.rand(1) + random.random() + np.random.rand()


def test_what_a_step_may_change_is_put_back():
    model = Model()
    model.layer.weight.grad = gradient = torch.ones(WIDTH, WIDTH)
    weight, head, bits = model.layer.weight, model.head.weight.clone(), model.generator.bit_generator.state
    registries = {name: (vars(module)["_parameters"], vars(module)["_buffers"]) for name, module in named(model)}
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    with preserved(model):
        change(model)
    assert model.layer.weight is weight
    assert weight.grad is gradient
    assert torch.equal(model.head.weight, head)
    assert model.layer.bias.grad is None
    assert model.average.isnan().all()
    assert len(model.average) == WIDTH
    assert torch.equal(model.graph.to_dense(), torch.eye(WIDTH))
    assert torch.equal(model.table, torch.ones(WIDTH))
    assert model.history == {"loss": [1.0]}
    assert model.generator.bit_generator.state == bits
    assert not model.optimizer.state
    assert not model.layer._forward_hooks
    assert model.training
    assert not hasattr(model, "result")
    assert not hasattr(model.layer, "more")
    for name, module in named(model):  # others may hold the same dictionaries
        assert (vars(module)["_parameters"], vars(module)["_buffers"]) == registries[name]
        assert vars(module)["_parameters"] is registries[name][0]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]


def named(model):
    return [(name, module) for name, module in model.named_modules() if not isinstance(module, torch.jit.ScriptModule)]


def test_what_was_not_changed_keeps_its_version_and_an_error_changes_nothing():
    model = Model()
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    try:
        with preserved(model):
            model.layer.weight.data = torch.zeros(WIDTH, WIDTH)
            raise KeyError
    except KeyError:
        pass
    assert model.layer.weight.any()
    assert {name: parameter._version for name, parameter in model.named_parameters()} == versions
    assert model.average._version == 0  # not even one that holds NaN


def test_what_a_loss_holds_is_put_back_with_it():
    seen = []

    def loss(batch):
        seen.append(batch)
        return batch.sum()

    with preserved(loss):
        loss(torch.ones(2))
    assert seen == []
