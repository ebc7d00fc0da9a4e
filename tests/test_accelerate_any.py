"""``accelerate`` for any other model of MMRec's kind: exact rewrites, used where they are found, and undone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import add_self_loops, degree, remove_self_loops

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.accelerated import in_float64
from mmrec_helpers.mmrec import restore
from mmrec_helpers.mmrec.accelerate import accelerate
from mmrec_helpers.mmrec.picked import pick
from mmrec_helpers.mmrec.rewrites import Rewrites, untrained_attributes
from tests.models_data import random_batch, small_data
from tests.test_accelerate import MODULE
from tests.test_goldens import relative_error

DATA = small_data()
USERS, ITEMS, WIDTH = DATA.n_users, DATA.n_items, 8
NODES = USERS + ITEMS
EDGES = torch.from_numpy(DATA.train) + torch.tensor([[0], [USERS]])


class Model(nn.Module):
    """What MMRec's recommenders have in common."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.n_users, self.n_items = USERS, ITEMS
        self.table = nn.Parameter(torch.randn(NODES, WIDTH))

    def forward(self):
        return self.table

    def calculate_loss(self, interaction):
        out = self.forward()
        users, positive, negative = out[interaction[0]], out[interaction[1] + USERS], out[interaction[2] - ITEMS]
        return -F.logsigmoid((users * (positive - negative)).sum(1)).mean() + 1e-3 * (users**2).mean()

    def full_sort_predict(self, interaction):
        out = self.forward()
        return out[interaction[0]] @ out[USERS:].T


class Products(Model):
    """A sparse matrix, replaced for each epoch, and a dense one that is nearly empty."""

    def __init__(self):
        super().__init__()
        self.register_buffer("dense", torch.zeros(1100, 1100))  # large enough to be worth it
        self.dense[:NODES, :NODES].fill_diagonal_(0.5)
        self.pre_epoch_processing()

    def pre_epoch_processing(self):
        both = torch.cat((EDGES, EDGES.flip(0)), dim=1)
        self.adjacency = torch.sparse_coo_tensor(both, torch.rand(both.shape[1]), (NODES, NODES)).to(self.table.dtype)

    def forward(self):
        x = torch.sparse.mm(self.adjacency, torch.sparse.mm(self.adjacency, self.table))
        padded = torch.cat((x, x.new_zeros(len(self.dense) - NODES, WIDTH)))
        return x + torch.mm(self.dense, padded)[:NODES]


class Layer(MessagePassing):
    """Messages weighed by degrees, as DualGNN's; learned: also by a parameter."""

    def __init__(self, aggr, learned=False):
        super().__init__(aggr=aggr)
        self.learned = nn.Parameter(torch.rand(())) if learned else None
        self.bias = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x, edge_index):
        edge_index, _ = remove_self_loops(edge_index)
        edge_index, _ = add_self_loops(edge_index, num_nodes=len(x))
        return self.propagate(edge_index, size=(len(x), len(x)), x=x)

    def message(self, x_j, edge_index, size):
        norm = degree(edge_index[0], size[0], dtype=x_j.dtype).pow(-0.5)
        weight = norm[edge_index[0]] * norm[edge_index[1]]
        return (weight if self.learned is None else weight * self.learned).view(-1, 1) * x_j

    def update(self, out):
        out = out + self.bias
        return F.dropout(F.normalize(out) if self.learned is None else out.tanh(), 0.1, self.training)


class Messages(Model):
    def __init__(self, aggr="add", learned=False):
        super().__init__()
        self.edge_index, self.layer = torch.cat((EDGES, EDGES.flip(0)), dim=1), Layer(aggr, learned)

    def forward(self):
        return self.layer(self.layer(F.normalize(self.table), self.edge_index), self.edge_index)


class Sums(Model):
    """A weighted sum over picked neighbours, as DRAGON's, and the largest product with many others, as MVGAE's."""

    def __init__(self):
        super().__init__()
        self.neighbors = torch.randint(NODES, (NODES, 5)).tolist()  # a nested list, as MMRec has it
        self.weight = torch.rand(NODES, 5)

    def forward(self):
        return self.table + torch.matmul(self.weight.unsqueeze(1), self.table[self.neighbors]).squeeze()

    def calculate_loss(self, interaction):
        out, users = self.forward(), interaction[0].unsqueeze(1)
        many, negative = users.repeat(1, interaction.shape[1]), interaction[2] + USERS
        return torch.max(torch.sum(out[many] * out[negative], -1), dim=-1).values.mean() + super().calculate_loss(
            interaction
        )


class Untrained(Model):
    """An attribute that requires a gradient and is no parameter, as MMGCN's preference."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.preference = torch.randn(NODES, WIDTH, requires_grad=True)

    def forward(self):
        return self.table + self.layer(torch.cat((self.preference, self.preference.sin()), dim=1)[:, ::2])


class Zero(Model):
    """Terms of the loss times a setting that is 0, as FREEDOM's and PGL's; one of them draws random numbers."""

    def __init__(self):
        super().__init__()
        self.layer, self.weight = nn.Linear(WIDTH, WIDTH), 0

    def calculate_loss(self, interaction):
        drawn = F.dropout(self.layer(self.table), 0.5).square().mean()
        return super().calculate_loss(interaction) + self.weight * drawn + self.layer.weight.sum() * 0.0


class UntrainedMessages(Untrained):
    """With message passing, whose generated code names hooks of its own, as MMGCN."""

    def __init__(self):
        super().__init__()
        self.edge_index, self.passing = EDGES, Layer("add")

    def forward(self):
        return super().forward() + self.passing(self.table, self.edge_index)


class Layers(Model):
    """Layers that are stacked and averaged or added up, weighed by cosines, and picked as ``[users, :]``."""

    def __init__(self, dim=1):
        super().__init__()
        self.dim = dim

    def forward(self):
        layers = [self.table, self.table.tanh(), self.table**2]
        cosine = F.cosine_similarity(layers[1], self.table, dim=-1)
        layers.append(cosine.unsqueeze(1) * layers[1])
        stacked = torch.stack(layers, dim=self.dim)
        return torch.sum(stacked, dim=0) if self.dim == 0 else stacked.mean(dim=1, keepdim=False)

    def calculate_loss(self, interaction):
        out = self.forward()
        users, items = out[interaction[0], :], out[interaction[1] + USERS, :]
        return -F.cosine_similarity(users, items.detach()).mean() + 0.1 * users.square().mean()


class StackRead(Layers):
    """A stack that somebody reads, sums over another dimension, and weighs."""

    def forward(self):
        stacked = torch.stack([self.table, self.table.tanh()])
        weighed = (stacked * torch.tensor([[[0.2]], [[0.8]]], dtype=stacked.dtype)).sum(0)
        return weighed + stacked.mean(dim=-1)[0].unsqueeze(1) + stacked[1] * torch.stack([self.table] * 2).mean(0)


class Contrast(Model):
    """All pairs of a batch compared at a temperature, as contrastive losses do, and such products used otherwise."""

    def calculate_loss(self, interaction):
        users, items = self.table[interaction[0]], self.table[interaction[1] + USERS]
        close = torch.exp(torch.matmul(users, items.transpose(0, 1)) / 0.2).sum(dim=1)
        scaled = 3 * (users[:500] @ items.T).mul(0.5)
        in_place = torch.mm(users, items.T)
        in_place /= 2
        alone = torch.mm(users.detach(), items.T).exp().mean()
        return close.log().mean() + scaled.tanh().mean() + in_place.square().mean() + 1e-3 * alone


MODELS = {
    "products": (Products, {"product", "rows"}),
    "messages add": (Messages, {"message", "rows", "unit rows"}),
    "messages mean": (lambda: Messages("mean"), {"message", "rows", "unit rows"}),
    "messages in a list": (lambda: Messages(["add"]), {"message", "rows", "unit rows"}),
    "messages learned": (lambda: Messages(learned=True), {"rows", "unit rows"}),
    "sums": (Sums, {"sums", "rows"}),
    "untrained": (Untrained, {"rows", "untrained"}),
    "untrained messages": (UntrainedMessages, {"message", "rows", "unit rows", "untrained"}),
    "zero": (Zero, {"rows", "zero"}),
    "contrast": (Contrast, {"rows", "scale"}),
    "layers averaged": (Layers, {"rows", "cosine", "stack"}),
    "layers added up": (lambda: Layers(dim=0), {"rows", "cosine", "stack"}),
    "a stack that is read": (StackRead, {"rows", "cosine", "stack"}),
}


@pytest.fixture(autouse=True)
def _whatever_it_gains(monkeypatch):
    monkeypatch.setattr(MODULE, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(MODULE, "ROUNDS", 1)


def step(model, batch):
    model.zero_grad()
    loss = model.calculate_loss(batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        return {"loss": loss.detach(), "scores": model.full_sort_predict([torch.arange(7)]), **gradients}


def trained(model, steps=6, epoch=3):
    """What each of some steps gives, with updates between them and other graphs in each epoch."""
    torch.manual_seed(1)
    optimizer, found = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for number in range(steps):
        if number % epoch == 0 and hasattr(model, "pre_epoch_processing"):
            model.pre_epoch_processing()
        found.append(step(model, random_batch(DATA, seed=number)))
        optimizer.step()
    return found


def assert_same(own, other, tolerance):
    for one, two in zip(own, other, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            same = torch.equal(two[name], one[name])  # all zeros, for one
            assert same or relative_error(two[name].numpy(), one[name].numpy()) <= tolerance, name


@pytest.mark.parametrize("case", MODELS)
def test_training_is_the_same_and_the_rewrites_are_listed(case):
    make, kinds = MODELS[case]
    own = make()
    fast = accelerate(copy.deepcopy(own))
    assert {kind for kind, _ in fast.accelerated.rewrites} - {"constant"} == kinds | {"fused Adam"}
    places = dict(fast.accelerated.rewrites)["rows"]
    assert any("test_accelerate_any.py" in place and "calculate_loss" in place for place in places)
    assert_same(trained(own), trained(fast), 2e-5)


@pytest.mark.parametrize("case", MODELS)
def test_in_float64_to_the_last_digits(case):
    own = in_float64(MODELS[case][0]())
    fast = accelerate(copy.deepcopy(own))
    assert_same(trained(own), trained(fast), 1e-9)


def test_what_no_optimizer_trains_gets_no_gradient_and_is_a_constant():
    own, fast = Untrained(), accelerate(Untrained())
    for model in (own, fast):
        for _ in range(3):
            step(model, random_batch(DATA))
    assert own.preference.grad.abs().max() > 0
    assert fast.preference.grad is None
    assert any("forward" in place for place in dict(fast.accelerated.rewrites)["constant"])
    restore(fast)
    step(fast, random_batch(DATA))
    assert fast.preference.grad is not None


def test_what_a_parameter_reaches_is_not_untrained():
    model = Untrained()
    model.moved = nn.Parameter(torch.rand(3)) + 0  # a graph is left, as by .to(device) on a GPU
    model.reached = model.table[0] + model.moved.sum()
    model.constant = torch.rand(3)
    assert {id(one) for one in untrained_attributes(model)} == {id(model.preference), id(model.moved)}


def test_an_optimizer_of_what_gets_no_gradient_is_refused():
    fast = accelerate(Untrained())
    torch.optim.SGD(fast.parameters(), lr=0.1).step()
    with pytest.raises(InputError, match="trains a tensor that is no parameter of Untrained"):
        torch.optim.SGD([*fast.parameters(), fast.preference], lr=0.1).step()
    torch.optim.SGD([*restore(fast).parameters(), fast.preference], lr=0.1).step()


@pytest.mark.parametrize("weight", [0, 0.0, -0.0, 0.5, True])
def test_only_a_term_times_zero_is_not_traced_back(weight):
    own = Zero()
    fast = accelerate(copy.deepcopy(own))
    own.weight = fast.weight = weight
    assert_same(trained(own), trained(fast), 2e-5)
    grad = step(fast, random_batch(DATA))["layer.weight"]
    assert bool(grad.any()) == bool(weight)


def test_hooks_on_a_term_times_zero_are_called():
    fast, called = accelerate(Zero()), []
    fast.layer.register_full_backward_hook(lambda *_: called.append(1))
    step(fast, random_batch(DATA))
    assert called


def test_what_is_changed_in_place_is_not_taken_for_constant():
    model = Products()
    fast = accelerate(copy.deepcopy(model))
    batch = random_batch(DATA)
    for one in (model, fast):
        for _ in range(3):
            before = step(one, batch)
        one.adjacency._values().mul_(2)
        one.dense.mul_(0.5)
        batch[0] = batch[0].flip(0)
        after = step(one, batch)
        batch[0] = batch[0].flip(0)
        one.results = [before, after]
    assert relative_error(model.results[0]["loss"].numpy(), model.results[1]["loss"].numpy()) > 1e-3  # it matters
    assert_same(model.results, fast.results, 2e-5)


class Keeps(Model):
    """Its constants are written to by the code itself."""

    def __init__(self, writes):
        super().__init__()
        self.edge_index, self.writes = EDGES, writes

    def forward(self):
        counts = torch.sort(self.edge_index[0])[0].clone()
        if self.writes:
            counts += 1
        return self.table * (1 + counts.sum() / 1000)


@pytest.mark.parametrize("writes", [False, True])
def test_a_kept_result_that_is_written_to_is_computed_anew(writes):
    own = Keeps(writes)
    fast = accelerate(copy.deepcopy(own))
    assert_same(
        [step(own, random_batch(DATA)) for _ in range(5)], [step(fast, random_batch(DATA)) for _ in range(5)], 1e-5
    )


def test_constants_are_kept():
    model, calls = Keeps(False), []
    sort = torch.sort
    rewrites = Rewrites(model)

    def counted(*args):
        calls.append(1)
        return sort(*args)

    def run():
        with rewrites.step():
            return rewrites._constant(counted, (model.edge_index[0],), {})

    results = [run() for _ in range(5)]
    assert len(calls) == 2  # the first step cannot know
    assert torch.equal(results[-1][0], sort(EDGES[0])[0])
    model.edge_index = EDGES.flip(1)
    assert torch.equal(run()[0], sort(EDGES.flip(1)[0])[0])
    assert len(calls) == 3


@pytest.mark.parametrize(
    "use",
    [
        lambda rows, other: rows.sum(),
        lambda rows, other: rows[0] ** 2,
        lambda rows, other: torch.cat((rows, rows)).mean(0),
        lambda rows, other: (rows * other).sum(1),
        lambda rows, other: (rows * other).sum(-1, keepdim=True),
        lambda rows, other: (other * rows).sum(-1),
        lambda rows, other: torch.einsum("nkd,kd->nk", rows, other),
        lambda rows, other: (rows * other * 2).sum(dim=2),
        lambda rows, other: rows.detach().sum() * rows.sum(),
        lambda rows, other: (rows * other.requires_grad_()).sum(-1),
    ],
)
@pytest.mark.parametrize("same", [True, False])
def test_picked_rows_may_be_used_in_any_way(use, same):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 4, generator=generator, requires_grad=True)
    index = torch.randint(-9, 9, (5, 1) if same else (5, 3), generator=generator).expand(5, 3)

    def results(pick_rows):
        other = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
        out = use(pick_rows(table, index), other)
        gradients = torch.autograd.grad(out.sum(), [table], allow_unused=True)
        return [out.detach(), *(one for one in gradients if one is not None)]

    rewrites = Rewrites(Model())
    own = results(lambda t, i: t[i])
    with rewrites.step():
        found = results(lambda t, i: t[i])
    assert len(own) == len(found)
    for one, two in zip(own, found):
        assert type(two) is torch.Tensor
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


def test_rows_picked_outside_the_table_are_refused_as_ever():
    table = torch.randn(4, 2, requires_grad=True)
    for index in (4, -5):
        with pytest.raises(IndexError):
            pick(table, torch.tensor([index]))


def test_it_is_undone():
    model, batch = Products(), random_batch(DATA)
    own = step(model, batch)
    attributes = dict(vars(model))
    optimizer = torch.optim.Adam(model.parameters())
    restore(accelerate(model))
    assert vars(model) == attributes
    step(model, batch)
    optimizer.step()
    assert not optimizer.param_groups[0]["fused"]
    assert own.keys() == step(model, batch).keys()


def test_the_optimizer_is_fused_and_as_near_to_float64():
    """20 steps: Adam by one kernel is no farther from the same steps in float64 than the plain one (which is not exact
    either); an optimizer of another model is left alone."""
    model = accelerate(Products())
    stranger = nn.Linear(2, 2)
    fused, other = torch.optim.Adam(model.parameters(), lr=1e-2), torch.optim.Adam(stranger.parameters())
    plain_model, exact_model = Products(), in_float64(Products())
    plain, exact = (torch.optim.Adam(one.parameters(), lr=1e-2) for one in (plain_model, exact_model))
    for number in range(20):
        gradient = torch.randn(NODES, WIDTH, generator=torch.Generator().manual_seed(number))
        for one, optimizer in ((model, fused), (plain_model, plain), (exact_model, exact)):
            one.table.grad = gradient.to(one.table.dtype)
            optimizer.step()
    stranger(torch.ones(1, 2)).sum().backward()
    other.step()
    assert fused.param_groups[0]["fused"]
    assert not plain.param_groups[0]["fused"]
    assert not other.param_groups[0]["fused"]
    errors = [(one.table.double() - exact_model.table).abs().max().item() for one in (model, plain_model)]
    assert 0 < errors[0] <= 1.5 * errors[1]
    restore(model)
    assert not fused.param_groups[0]["fused"]


def test_what_gains_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(MODULE, "LEAST_GAIN", 1000.0)
    model = Products()
    attributes = dict(vars(model))
    with pytest.raises(InputError, match=r"Products gains nothing: its own step takes [\d.]+ times"):
        accelerate(model)
    assert vars(model) == attributes


class Wrong(Rewrites):
    def _rows(self, table, index):
        out = super()._rows(table, index)
        return out if out is None else out * 1.001


def test_a_rewrite_that_computes_something_else_is_refused(monkeypatch):
    """The control: were a rewrite wrong, the comparison would see it."""
    monkeypatch.setattr(MODULE, "Rewrites", Wrong)
    with pytest.raises(InputError, match="loss differs by"):
        accelerate(Products())


class Cancels(Model):
    """A bias whose gradient is zero but for rounding, as an attention's is before its softmax."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.rand(1))

    def forward(self):
        return self.table * torch.softmax(self.table[:, :2] + self.bias, dim=1)[:, :1]


def test_numbers_that_are_all_rounding_may_differ_as_their_own_rounding_does():
    model = accelerate(Cancels())
    (bias,) = [found for found in model.accelerated.checked if found.what == "gradient of bias"]
    assert bias.within
    assert all(found.tolerance <= 2e-4 for found in model.accelerated.checked if found.what != "gradient of bias")


def test_what_fails_by_itself_is_said():
    model = Model()
    model.table = None
    model.other = nn.Parameter(torch.ones(1))
    with pytest.raises(InputError, match="Model: its own step fails on one batch"):
        accelerate(model)
