"""Dead work: ways to the loss around a call's return value, each by its smallest example, with its dead counterpart."""

import copy
from collections import defaultdict, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmrec_helpers.config import InputError
from mmrec_helpers.profiling.dead_work import find_dead_work
from mmrec_helpers.profiling.dead_work.costs import dead_calls, steps_without
from mmrec_helpers.profiling.dead_work.interventions import Experiment
from tests.test_dead_work import WIDTH, Model, batch, linear, verdicts


def dead(found):
    return {(name, call) for (name, call), verdict in found.items() if verdict == "dead"}


def calls(found):
    return {key: verdict for key, verdict in found.items() if key[1] is not None}


@pytest.mark.parametrize("keep", ["dict", "list", "attribute", "doubled"])
def test_a_hook_of_the_user_is_a_way_to_the_loss(keep):
    kept = {"dict": {}, "list": [], "attribute": nn.Identity(), "doubled": {}}[keep]
    put = {
        "dict": lambda m, i, o: kept.update(t=o),
        "list": lambda m, i, o: kept.append(o),
        "attribute": lambda m, i, o: setattr(kept, "t", o),
        "doubled": lambda m, i, o: kept.update(t=2 * o),
    }[keep]
    get = {"list": lambda: kept[-1], "attribute": lambda: kept.t}.get(keep, lambda: kept["t"])
    teacher, student = nn.Sequential(linear(), nn.ReLU(), nn.Linear(WIDTH, 3)), linear()
    teacher[0].register_forward_hook(put)

    def loss(x):
        with torch.no_grad():
            teacher(x)
        return F.mse_loss(student(x), get())

    found = verdicts(nn.ModuleDict({"teacher": teacher, "student": student}), loss=loss)
    assert ("teacher.0", 0) not in dead(found)
    assert ("teacher", 0) not in dead(found)
    if keep != "list":  # a list that grows outlasts the step
        assert {("teacher.1", 0), ("teacher.2", 0), ("teacher.2.weight", None)} <= dead(found)
    assert not isinstance(kept, (dict, list)) or not kept


@pytest.mark.parametrize("factor", [1, 2])
def test_a_hook_of_the_user_before_a_call_is_a_way_to_the_loss(factor):
    """It keeps what it is given, or what it computes, which is work of the call that it comes before."""
    kept, teacher, student = {}, nn.Sequential(linear(), nn.ReLU(), linear()), linear()
    teacher[1].register_forward_pre_hook(lambda m, given: kept.update(t=factor * given[0] if factor > 1 else given[0]))

    def loss(x):
        teacher(x)
        return F.mse_loss(student(x), kept["t"].detach())

    found = verdicts(nn.ModuleDict({"teacher": teacher, "student": student}), loss=loss)
    assert ("teacher.0", 0) not in dead(found)
    assert (("teacher.1", 0) in dead(found)) == (factor == 1)
    assert ("teacher.2", 0) in dead(found)
    assert not kept
    assert len(teacher[1]._forward_pre_hooks) == 1


def test_a_forward_that_is_called_by_name_is_a_call():
    def loss(m, x):
        m.layer(x)
        return m.layer.forward(x).square().mean() + 0 * m.layer.forward(x).sum()

    model = Model(loss, layer=linear())
    assert verdicts(model) == {("layer", 0): "dead", ("layer", 2): "dead"}
    findings = find_dead_work(model, model.loss, [batch()], costs=False)
    experiment = Experiment(model, model.loss)
    groups = {"all": dead_calls(findings)}
    (run,) = steps_without(experiment, batch(), groups, lambda: model.loss(batch()).backward()).values()
    experiment.step(batch())
    whole = model.layer.weight.grad
    model.zero_grad()
    run()
    assert torch.equal(model.layer.weight.grad, whole)


class Average(nn.Module):
    """A running average that is assigned, not changed in place."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.register_buffer("c", torch.ones(WIDTH))
        self.held = {"c": [torch.ones(WIDTH)]}

    def read(self):
        return self.held["c"][0] if self.way == "container" else self.c.clone()

    def forward(self, z):
        new = 0.9 * self.read() + 0.1 * z.detach().mean(0)
        if self.way == "copied":
            self.c.copy_(new)
        elif self.way == "container":
            self.held["c"] = [new]
        else:
            self.c = new
        return z + 1


@pytest.mark.parametrize("way", ["assigned", "copied", "container"])
def test_state_for_the_next_step_is_undecided_however_it_is_written(way):
    def loss(m, x):
        z = m.used(x)
        old = m.average.read()
        m.average(z)
        return (z - old).square().sum()

    model = Model(loss, used=linear(), average=Average(way))
    assert verdicts(model) == {("average", 0): "undecided"}
    assert torch.equal(model.average.c, torch.ones(WIDTH))
    assert torch.equal(model.average.held["c"][0], torch.ones(WIDTH))

    unread = Model(
        lambda m, x: (m.average(m.used(x)) * 0 + m.used(x)).square().sum(), used=linear(), average=Average(way)
    )
    expected = "undecided" if way == "container" else "dead"  # nobody else can see whether a container is read later
    assert verdicts(unread)["average", 0] == expected


@pytest.mark.parametrize("steps", [2, 6])
def test_state_that_is_read_steps_later_is_undecided(steps):
    class Delay(nn.Module):
        def __init__(self):
            super().__init__()
            for k in range(steps):
                self.register_buffer(f"b{k}", torch.ones(WIDTH))

        def forward(self, z):
            for k in reversed(range(1, steps)):
                getattr(self, f"b{k}").copy_(getattr(self, f"b{k - 1}"))
            self.b0.copy_(z.detach().mean(0))
            return z + 1

    def loss(m, x):
        z = m.used(x) - getattr(m.delay, f"b{steps - 1}")
        m.delay(z)
        return z.square().sum()

    assert verdicts(Model(loss, used=linear(), delay=Delay())) == {("delay", 0): "undecided"}


def test_a_counter_that_the_loss_reads_is_undecided():
    class Counts(nn.Module):
        n = 0

        def forward(self, x):
            self.n += 1
            return x + 1

    def loss(m, x):
        m.counts(x)
        return m.used(x).square().sum() * m.counts.n

    assert verdicts(Model(loss, used=linear(), counts=Counts())) == {("counts", 0): "undecided"}


class Mask(nn.Module):
    def forward(self, t):
        return t.eq(0)


class Router(nn.Linear):
    def forward(self, x):
        return (super().forward(x) - torch.arange(WIDTH) * 100.0).argmax(1)


def test_booleans_are_flipped():
    used = Model(lambda m, x: m.used(x).masked_fill(m.mask(x), 0.0).square().sum(), used=linear(), mask=Mask())
    assert verdicts(used) == {}
    unused = Model(lambda m, x: (m.mask(x), m.used(x).square().sum())[1], used=linear(), mask=Mask())
    assert verdicts(unused) == {("mask", 0): "dead"}
    silenced = Model(lambda m, x: (m.used(x) + 0 * m.mask(x)).square().sum(), used=linear(), mask=Mask())
    assert verdicts(silenced) == {("mask", 0): "undecided"}


def test_integers_take_other_values():
    def loss(m, x):
        return m.used(x).gather(1, m.router(x)[:, None]).square().sum()

    assert calls(verdicts(Model(loss, used=linear(), router=Router(WIDTH, WIDTH)))) == {}
    unused = Model(lambda m, x: (m.router(x), m.used(x).square().sum())[1], used=linear(), router=Router(WIDTH, WIDTH))
    assert verdicts(unused)["router", 0] == "dead"


def test_integers_that_cannot_take_others_say_so():
    class Order(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), dtype=torch.long)

    only_row = torch.ones(1, WIDTH)  # no other row could be picked
    model = Model(lambda m, x: (m.used(x) * only_row[m.order(x)]).sum(), used=linear(), order=Order())
    [finding] = find_dead_work(model, model.loss, [batch()], costs=False)
    assert (finding.verdict, finding.difference) == ("undecided", None)
    assert "IndexError" in finding.reason


def test_complex_numbers_are_tried():
    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.cfloat))

        def forward(self, x):
            return x.to(torch.cfloat) @ self.weight

    model = Model(lambda m, x: m.used(x).square().sum() + m.wave(x).abs().sum(), used=linear(), wave=Wave())
    model.unread = nn.Parameter(torch.randn(4, 4, dtype=torch.cfloat))
    assert verdicts(model) == {("unread", None): "dead"}
    silenced = Model(lambda m, x: (m.used(x) + (0 * m.wave(x)).real).square().sum(), used=linear(), wave=Wave())
    assert dead(verdicts(silenced)) == {("wave", 0), ("wave.weight", None)}


def test_floating_outputs_are_tried_before_lengths():
    class WithLengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear()

        def forward(self, x):
            return self.linear(x), torch.tensor([3, 2])

    def loss(m, x):
        out, lengths = m.layer(x)
        padded = torch.stack([out[:3], out[2:]])
        return nn.utils.rnn.pack_padded_sequence(padded, lengths, batch_first=True).data.square().sum()

    assert verdicts(Model(loss, layer=WithLengths())) == {}


def test_gradients_inside_the_loss_matter():
    def loss(m, x):
        x = x.clone().requires_grad_()
        energy = m.second(torch.tanh(m.first(x))).sum() + 0 * m.silenced(x).sum()
        m.idle(x)
        force = torch.autograd.grad(energy, x, create_graph=True)[0]
        return (force - 1).square().mean()

    found = verdicts(Model(loss, first=linear(), second=linear(), silenced=linear(), idle=linear()))
    assert not {name.partition(".")[0] for name, _ in found if name != "second.bias"} & {"first", "second"}
    assert {("idle", 0), ("silenced", 0)} <= dead(found)


def test_nested_containers_are_restored():
    model = Model(None, used=linear(), dead=linear())
    model.hist, model.last, model.seen = {"loss": []}, deque([1], maxlen=3), defaultdict(list)
    outside, generator, array = {"runs": [0]}, np.random.default_rng(1), np.zeros(2)
    optimizer = torch.optim.Adam(model.parameters())
    total = 0

    def loss(x):
        nonlocal total
        total += 1
        outside["runs"].append(len(outside["runs"]))
        array[0] += 1
        out = (m_used(x) * (1 + generator.random())).square().mean() + 0 * model.dead(x).sum()
        model.hist["loss"].append(1.0)
        model.last.append(len(model.last))
        model.seen["a"].append(total)
        optimizer.state[model.used.weight]["step"] = total
        return out / len(model.hist["loss"]) / len(outside["runs"]) / total / array[0]

    m_used = model.used
    before = copy.deepcopy(generator.bit_generator.state)
    found = find_dead_work(model, loss, [batch()])
    assert {f.name for f in found if f.verdict == "dead"} == {"dead", "dead.weight", "dead.bias"}
    assert (model.hist, list(model.last), dict(model.seen)) == ({"loss": []}, [1], {})
    assert (outside, total, array[0]) == ({"runs": [0]}, 0, 0)
    assert generator.bit_generator.state == before
    assert not optimizer.state


def test_flags_and_gradients_of_other_tensors_are_restored():
    free = torch.randn(WIDTH, requires_grad=True)
    free.grad = torch.ones(WIDTH)
    model = Model(None, used=linear(), head=linear())

    def loss(x):
        model.head.weight.requires_grad_(False)
        model.used.train(False)
        return (model.used(x) * free + model.head(x)).square().mean()

    verdicts(model, loss=loss)
    assert model.head.weight.requires_grad
    assert model.used.training
    assert torch.equal(free.grad, torch.ones(WIDTH))


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, batch())])
def test_a_scripted_module_is_a_leaf(make):
    def loss(m, x):
        return (m.used(x) + 0 * m.idle(x)).square().mean()

    parts = {name: make(nn.Sequential(linear(), nn.Tanh())) for name in ("used", "idle")}
    model = Model(loss, **parts)
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found = find_dead_work(model, model.loss, [batch()])
    assert {(f.name, f.call) for f in found} == {("idle", 0), ("idle.0.weight", None), ("idle.0.bias", None)}
    assert all(f.verdict == "dead" for f in found)
    assert all(torch.equal(kept[name], parameter) for name, parameter in model.named_parameters())
    assert not model.used._forward_hooks


def test_a_parameter_that_is_returned_is_replaced_by_one():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.preference = nn.Parameter(torch.randn(5, WIDTH))
            self.linear = linear()

        def forward(self, x):
            return self.linear(x) + self.preference, self.preference

    class Recommender(nn.Module):
        def __init__(self):
            super().__init__()
            self.gcn = Convolution()
            self.preference = self.gcn.preference

        def loss(self, x):
            self.rep, self.preference = self.gcn(x)
            return self.rep.square().mean() + self.preference.square().mean()

    model = Recommender()
    kept = model.preference
    assert verdicts(model) == {}
    assert model.preference is kept
    assert not hasattr(model, "rep")


def test_an_optimizer_in_a_hook_takes_no_gradients():
    model = Model(lambda m, x: m.used(x).square().mean() + 0 * m.idle(x).sum(), used=linear(), idle=linear())
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=1.0)

        def hook(p, optimizer=optimizer):
            optimizer.step()
            p.grad = None

        parameter.register_post_accumulate_grad_hook(hook)
    assert dead(verdicts(model)) == {("idle", 0), ("idle.weight", None), ("idle.bias", None)} == set(verdicts(model))
    assert all(torch.equal(kept[name], p) for name, p in model.named_parameters())
    model.loss(batch()).backward()
    assert all(p.grad is None for p in model.parameters())  # the hooks are back


def test_wrapped_models_are_refused_by_name():
    with pytest.raises(InputError, match=r"model is DataParallel: expected the module inside it, model\.module"):
        find_dead_work(nn.DataParallel(linear()), lambda x: x.sum(), [batch()])


def test_a_bias_before_batch_norm_is_not_reported():
    model = Model(lambda m, x: m.norm(m.layer(x)).pow(3).mean(), layer=linear(), norm=nn.BatchNorm1d(WIDTH))
    assert verdicts(model) == {}


@pytest.mark.parametrize("seed", range(40))
def test_a_scorer_behind_a_comparison_is_never_dead(seed):
    """Of 400 random scorers, 8 had a weight or a bias whose change left every comparison as it was."""
    torch.manual_seed(seed)

    def loss(m, x):
        with torch.no_grad():
            best = m.scorer(x).argmax(dim=1)
        return m.used(x).gather(1, best[:, None]).sum()

    assert dead(verdicts(Model(loss, scorer=linear(), used=linear()), [batch()])) == set()


@pytest.mark.parametrize(
    "read", [lambda t: t.mean().item(), lambda t: float(t.numpy().mean()), lambda t: t.tolist()[0]]
)
def test_what_python_reads_is_never_dead(read):
    def loss(m, x):
        with torch.no_grad():
            scale = 1.0 if read(m.gate(x)[0]) < 1e9 else 2.0
        return scale * m.used(x).square().mean()

    assert dead(verdicts(Model(loss, gate=linear(), used=linear()))) == set()


def test_a_number_that_is_read_inside_a_dead_call_is_its_own_affair():
    class Largest(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return out * (2 if out.max().item() > 0 else 1)

    class Tells(Largest):
        def forward(self, x):
            return super().forward(x), x.max().item()

    quiet = Model(lambda m, x: (m.layer(x), m.used(x).sum())[1], layer=Largest(WIDTH, WIDTH), used=linear())
    assert verdicts(quiet)["layer", 0] == "dead"
    tells = Model(lambda m, x: m.used(x).sum() * m.layer(x)[1], layer=Tells(WIDTH, WIDTH), used=linear())
    assert verdicts(tells)["layer", 0] == "undecided"


def test_a_view_of_memory_is_the_memory():
    """A second name for a weight's memory: a change of the weight is a change of it."""
    model = Model(lambda m, x: (m.used(x) * m.alias).sum(), used=linear())
    model.table = nn.Parameter(torch.randn(WIDTH))
    model.alias = model.table.detach()
    assert verdicts(model) == {("table", None): "undecided"}


def test_zero_rows_that_the_data_made_prove_nothing():
    model = Model(
        lambda m, x: m.used(x).sum() + m.relu(m.layer(x))[0].sum(), used=linear(), layer=linear(), relu=nn.ReLU()
    )
    with torch.no_grad():
        model.layer.weight.fill_(0.1)
        model.layer.bias.fill_(-0.05)
    x = torch.ones(5, WIDTH)
    x[0] = 0.0  # so the row of zeros is the one that is kept
    assert verdicts(model, [x])["relu", 0] == "undecided"
