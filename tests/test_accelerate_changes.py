"""``accelerate`` where what looked constant changes: training goes on as the model's own, or stops and says why."""

import copy
import io
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import MessagePassing

from mmrec_helpers.config import InputError
from mmrec_helpers.mmrec.accelerate import accelerate
from tests.models_data import random_batch
from tests.test_accelerate import MODULE
from tests.test_accelerate_any import DATA, EDGES, NODES, USERS, WIDTH, Model
from tests.test_goldens import relative_error

BOTH = torch.cat((EDGES, EDGES.flip(0)), dim=1)


@pytest.fixture(autouse=True)
def _whatever_it_gains(monkeypatch):
    monkeypatch.setattr(MODULE, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(MODULE, "ROUNDS", 1)


def trained(model, epochs=3, steps=3, batch_of=random_batch):
    """What MMRec's trainer would see: losses and gradients of each epoch's steps, then scores in evaluation mode."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    optimizer, found = torch.optim.Adam(model.parameters(), lr=0.02), []
    for epoch in range(epochs):
        if hasattr(model, "pre_epoch_processing"):
            model.pre_epoch_processing()
        for number in range(steps):
            optimizer.zero_grad()
            loss = model.calculate_loss(batch_of(DATA, seed=10 * epoch + number))
            loss.backward()
            found += [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
            optimizer.step()
        model.eval()
        with torch.no_grad():
            found += [model.full_sort_predict([torch.arange(7)]).clone() for _ in range(3)]
        model.train()
    return found


def assert_as_its_own(make, used=None, **how):
    """The accelerated model trains as its own does; ``used``: a rewrite without which this would show nothing."""
    own, fast = make(), accelerate(make())
    if used is not None:
        assert used in dict(fast.accelerated.rewrites)
    for number, (one, other) in enumerate(zip(trained(own, **how), trained(fast, **how), strict=True)):
        assert relative_error(other.numpy(), one.numpy()) <= 1e-4, number


class Epochs(Model):
    """Counts its epochs, and in each does what ``change`` does."""

    def __init__(self, change=lambda model: None):
        super().__init__()
        self.epoch, self.change = 0, change

    def pre_epoch_processing(self):
        self.epoch += 1
        self.change(self)


class Layer(MessagePassing):
    def __init__(self, message, **attributes):
        super().__init__(aggr="add")
        self.of, self.p, self.scale, self.scaled = message, 0.0, 1.0, message
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.propagate(BOTH, x=x)


class Scaling(Layer):
    def message(self, x_j):
        return self.scale * x_j / 5


class Dropping(Layer):
    def message(self, x_j):
        return F.dropout(x_j, self.p, self.training)


class Clamping(Layer):
    def message(self, x_j):
        return x_j.clamp(-10, 10)


class Passing(Epochs):
    def __init__(self, layer, change=lambda model: None):
        super().__init__(change)
        self.layer = layer

    def forward(self):
        return self.table + self.layer(self.table)


@pytest.mark.parametrize(
    ("make", "used"),
    [
        (lambda: Passing(Scaling(None, scale=nn.Parameter(torch.tensor(0.7)))), None),
        (lambda: Passing(Scaling(None), lambda m: setattr(m.layer, "scale", 1.0 / m.epoch)), "message"),
        (lambda: Passing(Scaling(None), lambda m: setattr(m.layer, "scale", torch.rand(BOTH.shape[1], 1))), "message"),
        (lambda: Passing(Dropping(None), lambda m: setattr(m.layer, "p", 0.0 if m.epoch < 3 else 0.5)), "message"),
        (lambda: Passing(Clamping(None), lambda m: m.table.data.mul_(5.0)), None),
    ],
    ids=["a parameter", "a number per epoch", "weights per epoch", "dropout later", "clamped"],
)
def test_what_a_message_reads_may_change(make, used):
    assert_as_its_own(make, used)


class Weighted(Epochs):
    """Scores weighed by something that looks constant, as ``weigh`` makes it of the counts."""

    def __init__(self, weigh, change=lambda model: None):
        super().__init__(change)
        self.weigh, self.counts = weigh, torch.rand(NODES) + 1
        self.norm = nn.BatchNorm1d(WIDTH, affine=False)
        self.features = torch.randn(NODES, WIDTH)
        self.adjacency = torch.sparse_coo_tensor(BOTH, torch.rand(BOTH.shape[1]), (NODES, NODES)).coalesce()

    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) * self.weigh(self, interaction)

    def forward(self):
        return self.table + torch.sparse.mm(self.adjacency, self.table)


def two_of_one_kind(model, batch):
    first, second = torch.zeros_like(model.counts), torch.zeros_like(model.counts)
    first[batch[0]] = 1
    return 1 + (first - second).sum() / 10


def two_ranges(model, batch):
    first, second = torch.arange(len(batch[0])), torch.arange(len(batch[0]))
    first += 1
    return 1 + (first - second).sum() / 1000


def through_numpy(model, batch):
    weights = torch.pow(model.counts, 0.75).numpy()
    weights[batch[0]] = 0
    return float(weights.sum()) / 100


def through_data(model, batch):
    weights = torch.pow(model.counts, 0.75)
    weights.data[batch[0]] = 0
    return weights.sum() / 100


def statistics(model, batch):
    return model.norm(model.features).abs().mean() + model.norm.running_var.sqrt().mean()


def squared(model, batch):
    return model.counts.square().mean()


@pytest.mark.parametrize("weigh", [two_of_one_kind, two_ranges, through_numpy, through_data, statistics])
def test_what_is_written_behind_torchs_back_is_no_constant(weigh):
    assert_as_its_own(lambda: Weighted(weigh))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.counts.data.mul_(0.5),
        lambda m: np.multiply(m.counts.numpy(), 0.5, out=m.counts.numpy()),
        lambda m: m.adjacency.mul_(0.5),
        lambda m: m.adjacency._values().mul_(0.5),
        lambda m: m.adjacency.copy_(m.adjacency * 2),
    ],
    ids=["data", "numpy", "sparse", "values", "copied"],
)
def test_what_an_epoch_changes_is_seen(change):
    assert_as_its_own(lambda: Weighted(squared, change), "product")


class Picking(Epochs):
    """Rows picked by a nested list; ``use`` gets them."""

    def __init__(self, use, change=lambda model: None):
        super().__init__(change)
        self.use, self.neighbors = use, torch.randint(NODES, (NODES, 3)).tolist()

    def forward(self):
        self.result = self.table[self.neighbors]
        return self.table + self.use(self, self.result)

    def full_sort_predict(self, interaction):
        return self.result.sum(1)[
            interaction[0]
        ]  # of the last training step, one update old, as MMRec's models have it


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def written_to(model, rows):
    rows.mul_(2)
    return rows.sum(1)


def hooked(model, rows):
    rows.register_hook(lambda gradient: gradient * 3)
    return rows.sum(1)


@pytest.mark.parametrize(
    "use", [lambda model, rows: rows.mean(1), lambda model, rows: rows.mT.mean(2), written_to, hooked]
)
def test_picked_rows_are_what_they_were_in_their_step(use):
    assert_as_its_own(lambda: Picking(use))


def stacked_then(use):
    """A model that stacks tables, and uses that in its third epoch as ``use`` does."""

    def summed(model, rows):
        parts = [model.table * 1, model.table.tanh()]
        stacked = torch.stack(parts)
        return use(model, parts, stacked) if model.epoch > 2 else stacked.sum(0)

    return lambda: Picking(summed)


def kept_for_later(model, parts, stacked):
    before, model.kept = getattr(model, "kept", stacked), stacked
    return stacked.mean(0) + before.detach()[1]


def heard(model, parts, stacked):
    stacked.register_hook(lambda grad: 2 * grad)
    return stacked.sum(dim=0)


def changed_itself(model, parts, stacked):
    stacked[0] *= 3
    return stacked.sum(0)


def changed_after(model, parts, stacked):
    total = stacked.sum(0)
    parts[0].mul_(2)
    return total + parts[0]


@pytest.mark.parametrize("use", [kept_for_later, heard, changed_itself, changed_after])
def test_a_stack_is_what_it_was_in_its_step(use):
    assert_as_its_own(stacked_then(use))


def test_tensors_that_change_in_place_between_stack_and_sum_stop_the_training():
    def changed_between(model, parts, stacked):
        parts[0].mul_(2)
        return stacked.sum(0)

    fast = accelerate(stacked_then(changed_between)())
    with pytest.raises(InputError, match="tensors were stacked that were changed in place"):
        trained(fast, epochs=4)


def multiplied_then(use):
    """A model that multiplies tables, and uses that in its third epoch as ``use`` does."""

    def summed(model, rows):
        left, right = model.table * 1, model.table.T * 1
        product = left @ right
        found = use(model, left, product) if model.epoch > 2 else product / 30
        return (found.exp() @ model.table) / NODES

    return lambda: Picking(summed)


def product_kept(model, left, product):
    before, model.kept = getattr(model, "kept", product), product
    return product / 30 + before.detach()


def product_changed(model, left, product):
    other = product.div_(7)
    return product + other


@pytest.mark.parametrize("use", [product_kept, product_changed])
def test_a_large_product_is_what_it_was_in_its_step(use):
    assert_as_its_own(multiplied_then(use))


def test_a_factor_that_changes_in_place_before_the_product_is_used_stops_the_training():
    def changed(model, left, product):
        left.mul_(2)
        return product / 30

    fast = accelerate(multiplied_then(changed)())
    with pytest.raises(InputError, match="matrices were multiplied that were changed in place"):
        trained(fast, epochs=4)


def test_a_list_that_is_changed_in_place_is_read_anew():
    weights = torch.rand(NODES, 1, 3)

    def summed(model, rows):
        random.shuffle(model.neighbors)
        return torch.matmul(weights, model.table[model.neighbors]).squeeze()

    assert_as_its_own(lambda: Picking(summed))


def test_rows_that_reach_code_that_cannot_be_followed_stop_the_training():
    fast = accelerate(Picking(lambda model, rows: rows.mean(1) if model.epoch < 3 else Doubled.apply(rows).mean(1)))
    with pytest.raises(InputError, match="reached code that accelerate cannot follow"):
        trained(fast, epochs=4)


def test_a_batch_that_is_filled_anew_is_no_constant():
    kept = random_batch(DATA)

    def refilled(data, seed):
        kept.numpy()[:] = random_batch(data, seed=seed).numpy()
        return kept

    weigh = lambda model, batch: 1 + batch[0].float().mean() / USERS  # noqa: E731
    assert_as_its_own(lambda: Weighted(weigh), batch_of=refilled)


def test_autocast_on_a_cpu_is_the_models_own():
    own = Weighted(squared)
    fast = accelerate(copy.deepcopy(own))
    found = []
    for model in (own, fast):
        with torch.autocast("cpu", torch.bfloat16):
            found.append([model.calculate_loss(random_batch(DATA)).item() for _ in range(3)])
    assert found[0] == found[1]


def test_a_model_that_uses_gradients_itself_keeps_those_of_its_attributes():
    class Steps(Model):
        def __init__(self):
            super().__init__()
            self.preference = torch.randn(NODES, WIDTH, requires_grad=True)

        def forward(self):
            if self.preference.grad is not None:
                with torch.no_grad():
                    self.preference -= 0.1 * self.preference.grad
                self.preference.grad = None
            return self.table + self.preference.sin()

    assert_as_its_own(Steps)


@pytest.mark.parametrize(
    "parameter", [lambda: torch.randn(NODES, 2 * WIDTH)[:, :WIDTH], lambda: torch.randn(WIDTH, NODES).T]
)
def test_adam_is_fused_for_contiguous_parameters_alone(parameter):
    class Strided(Model):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(parameter())
            self.adjacency = torch.sparse_coo_tensor(BOTH, torch.ones(BOTH.shape[1]), (NODES, NODES)).coalesce()

        def forward(self):
            return self.table + torch.sparse.mm(self.adjacency, self.table)

    assert_as_its_own(Strided, "product")
    assert "fused Adam" not in dict(accelerate(Strided()).accelerated.rewrites)


def copied(model):
    return copy.deepcopy(model)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


class Untrained(Model):
    def __init__(self):
        super().__init__()
        self.preference = torch.randn(NODES, WIDTH, requires_grad=True)

    def forward(self):
        return self.table + self.preference.sin()


@pytest.mark.parametrize("again", [copied, saved])
def test_a_copy_trains_as_the_original(again):
    own, fast = Untrained(), again(accelerate(Untrained()))
    for one, other in zip(trained(own), trained(fast), strict=True):
        assert relative_error(other.numpy(), one.numpy()) <= 1e-4
    with pytest.raises(InputError, match="trains a tensor that is no parameter"):
        torch.optim.SGD([*fast.parameters(), fast.preference], lr=0.1).step()


def test_a_model_within_an_accelerated_one_can_be_accelerated_too():
    outer = Model()
    outer.inner = Passing(Scaling(None))
    accelerate(outer)
    accelerate(outer.inner)
    outer.inner.calculate_loss(random_batch(DATA)).backward()
    outer.calculate_loss(random_batch(DATA)).backward()


def test_an_error_of_the_models_own_stays_one():
    model = Weighted(squared)
    fast = accelerate(copy.deepcopy(model))
    for one in (model, fast):
        one.table = nn.Parameter(torch.randn(NODES - 20, WIDTH))
        with pytest.raises(RuntimeError):
            one.calculate_loss(random_batch(DATA))
