"""Dead work: planted examples with expected findings, and work that must never be reported."""

import random
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments.dead_work import beside_the_calls, operator_counts, planted
from mmrec_helpers.models import build
from mmrec_helpers.profiling.dead_work import (
    NOT_TRIED,
    find_dead_work,
    findings_table,
    measure_savings,
    with_costs,
)
from mmrec_helpers.profiling.dead_work.costs import dead_calls, steps_without
from mmrec_helpers.profiling.dead_work.interventions import Call, Experiment
from mmrec_helpers.training import NegativeSampler

WIDTH = 6


def batch(rows=5, seed=0):
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def linear():
    return nn.Linear(WIDTH, WIDTH)


def verdicts(model, batches=None, loss=None, **options):
    options = {"costs": False} | options
    findings = find_dead_work(model, loss or model.loss, batches or [batch(), batch(seed=1)], **options)
    return {(finding.name, finding.call): finding.verdict for finding in findings}


class Model(nn.Module):
    """Modules by keyword, and a loss that is given as a function of the model and the batch."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def loss(self, batch):
        return self._forward(self, batch)


@pytest.mark.parametrize("name", list(planted()))
def test_planted_examples(name):
    example = planted()[name]
    assert verdicts(example.model, example.batches, example.loss) == example.expected


def test_a_model_without_dead_work_has_no_findings():
    model = nn.Sequential(linear(), nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=True), nn.Dropout(0.5), linear())
    assert verdicts(model, loss=lambda x: model(x).square().mean()) == {}


def test_a_dead_container_is_reported_with_what_runs_inside():
    branch = nn.Sequential(linear(), nn.Tanh())
    model = Model(lambda m, x: (m.used(x) + 0 * m.branch(x)).sum(), used=linear(), branch=branch)
    findings = find_dead_work(model, model.loss, [batch()], costs=False)
    calls = {f.name: f.inside for f in findings if f.kind == "call"}
    assert calls == {"branch": None, "branch.0": "branch#0", "branch.1": "branch#0"}


def test_dead_dropout_and_batch_norm_leave_no_trace():
    def loss(m, x):
        m.dropout(x)  # takes random numbers that the next dropout would have had
        m.norm(x)
        return m.second(m.used(x)).square().mean()

    dropouts = {"dropout": nn.Dropout(0.5), "second": nn.Dropout(0.5)}
    model = Model(loss, used=linear(), norm=nn.BatchNorm1d(WIDTH, affine=False), **dropouts)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert verdicts(model) == {("dropout", 0): "dead", ("norm", 0): "dead"}
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())


def test_a_call_whose_result_is_only_compared_is_work():
    torch.manual_seed(0)  # of 400 random scorers, 8 had a weight or a bias whose change left every comparison as it was

    def loss(m, x):
        with torch.no_grad():
            best = m.scorer(x).argmax(dim=1)
        return m.used(x).gather(1, best[:, None]).sum()

    found = verdicts(Model(loss, scorer=linear(), used=linear()))
    assert ("scorer", 0) not in found
    assert found == {("scorer.weight", None): "undecided", ("scorer.bias", None): "undecided"}


def test_results_through_an_attribute_are_work():
    class Keeps(nn.Linear):
        def forward(self, x):
            self.kept = super().forward(x).detach()
            return x + 1

    def loss(m, x):
        m.layer(x)
        return (m.used(x) * m.layer.kept).sum()

    assert ("layer", 0) not in verdicts(Model(loss, layer=Keeps(WIDTH, WIDTH), used=linear()))


def test_results_around_the_output_are_never_called_dead():
    stash = []

    class Leaks(nn.Linear):
        def forward(self, x):
            stash.append(super().forward(x))
            return x + 1

    def loss(m, x):
        m.layer(x)
        return (m.used(x) * stash.pop()).sum()

    assert verdicts(Model(loss, layer=Leaks(WIDTH, WIDTH), used=linear())) == {("layer", 0): "undecided"}


def test_changes_of_an_input_are_never_called_dead():
    def loss(m, x):
        x = x.clone()
        m.relu(x)
        return m.used(x).square().mean()

    found = verdicts(Model(loss, relu=nn.ReLU(inplace=True), used=linear()))
    assert found == {("relu", 0): "undecided"}


def test_state_that_matters_in_the_next_step_is_never_called_dead():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.ones(WIDTH))

        def forward(self, x):
            self.mean.mul_(0.9).add_(x.mean(dim=0), alpha=0.1)
            return x

    def loss(m, x):
        out = (m.used(x) * m.average.mean.clone()).sum()
        m.average(x)
        return out

    assert verdicts(Model(loss, average=Average(), used=linear())) == {("average", 0): "undecided"}


def test_zeros_that_the_data_made_prove_nothing():
    def loss(m, x):
        return (m.used(x) + m.relu(x)).square().mean()

    model = Model(loss, relu=nn.ReLU(), used=linear())
    negative = -batch().abs()
    assert verdicts(model, [negative, 2 * negative]) == {("relu", 0): "undecided"}
    assert verdicts(model, [negative, -negative]) == {}


def test_zeros_that_nothing_reads_are_dead():
    def loss(m, x):
        m.relu(x)
        return m.used(x).square().mean()

    assert verdicts(Model(loss, relu=nn.ReLU(), used=linear()), [-batch().abs()]) == {("relu", 0): "dead"}


def test_what_is_dead_alone_but_not_together_is_undecided():
    def loss(m, x):
        both = torch.stack((m.one(x).detach().abs().sum(), m.two(x).detach().abs().sum()))
        return m.used(x).square().mean() * (both.max() > 0)

    found = verdicts(Model(loss, one=nn.Identity(), two=nn.Identity(), used=linear()))
    assert found == {("one", 0): "undecided", ("two", 0): "undecided"}


def test_calls_are_matched_by_number_over_batches():
    def loss(m, x):
        if len(x) > 5:
            m.layer(x)  # call 0 of long batches is dropped, of short ones it is the only one
        return m.layer(x).square().mean()

    model = Model(loss, layer=linear())
    assert verdicts(model, [batch(8)]) == {("layer", 0): "dead"}
    assert verdicts(model, [batch(8), batch(4)]) == {}


class Pair(NamedTuple):
    first: torch.Tensor
    label: str


@dataclass
class Out:
    values: list
    more: dict


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda x: (x, 1), lambda out: out[0]),
        (lambda x: {"a": [x]}, lambda out: out["a"][0]),
        (lambda x: Pair(x, "label"), lambda out: out.first),
        (lambda x: Out([x], {"b": None}), lambda out: out.values[0]),
    ],
)
def test_outputs_of_any_structure_are_replaced(wrap, unwrap):
    class Wraps(nn.Linear):
        def forward(self, x):
            return wrap(super().forward(x))

    used = Model(lambda m, x: unwrap(m.layer(x)).square().mean(), layer=Wraps(WIDTH, WIDTH))
    assert verdicts(used) == {}
    unused = Model(
        lambda m, x: (0 * unwrap(m.layer(x)) + m.used(x)).square().mean(), layer=Wraps(WIDTH, WIDTH), used=linear()
    )
    assert verdicts(unused)[("layer", 0)] == "dead"


def test_an_output_without_tensors_is_undecided():
    class Silent(nn.Module):
        def forward(self, x):
            return None

    def loss(m, x):
        m.silent(x)
        return m.used(x).sum()

    assert verdicts(Model(loss, silent=Silent(), used=linear())) == {("silent", 0): "undecided"}


def test_what_there_was_no_time_to_try_is_undecided():
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "dead": nn.Linear(3, 1)})
    found = find_dead_work(
        model, lambda x: (model["used"](x) + 0 * model["dead"](x)).sum(), [torch.randn(5, 3)], max_seconds=0.0
    )
    assert {(f.name, f.verdict, f.reason) for f in found if f.kind == "call"} == {
        ("used", "undecided", NOT_TRIED),
        ("dead", "undecided", NOT_TRIED),
    }


def test_a_loss_that_cannot_be_repeated_decides_nothing():
    numbers = iter(range(1000))
    model = Model(lambda m, x: m.used(x).sum() * next(numbers) + 0 * m.dead(x).sum(), used=linear(), dead=linear())
    assert set(verdicts(model).values()) == {"undecided"}


def test_sums_in_parallel_do_not_blur_the_comparison():
    """The gradient of indexing sums into rows; with several threads the order of the sums is not fixed by itself."""
    index = torch.randint(0, 40, (100_000,), generator=torch.Generator().manual_seed(0))
    model = Model(lambda m, x: m.table[index].sin().mean() + 0 * m.dead(x).sum(), dead=linear())
    model.table = nn.Parameter(torch.randn(40, 16))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        finding = find_dead_work(model, model.loss, [batch()], costs=False)[0]
    finally:
        torch.set_num_threads(threads)
    assert (finding.name, finding.verdict, finding.difference) == ("dead", "dead", 0.0)
    assert not torch.are_deterministic_algorithms_enabled()


def test_random_numbers_of_every_kind_are_restored():
    model = Model(None, used=linear(), dead=linear())
    model.generator, model.numpy = torch.Generator().manual_seed(3), np.random.default_rng(3)

    def loss(x):
        scale = random.random() + np.random.random() + model.numpy.random() + torch.rand(())
        scale = scale + torch.rand((), generator=model.generator)
        model.dead(x)
        return scale * model.used(x).square().mean()

    before = torch.get_rng_state(), model.generator.get_state()
    assert verdicts(model, loss=loss)[("dead", 0)] == "dead"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(model.generator.get_state(), before[1])


def test_counters_and_lists_that_modules_hold_are_restored():
    class Counts(nn.Linear):
        calls = 0

        def __init__(self):
            super().__init__(WIDTH, WIDTH)
            self.history = []

        def forward(self, x):
            self.calls += 1
            self.history.append(1)
            return super().forward(x) * self.calls * len(self.history)

    model = Model(lambda m, x: m.layer(x).square().mean(), layer=Counts())
    assert verdicts(model) == {}
    assert "calls" not in vars(model.layer)
    assert model.layer.history == []


def test_checkpointed_calls_are_undecided_unless_they_matter():
    def loss(m, x):
        def block(h):
            return m.used(h) + 0 * m.dead(h)

        return m.out(checkpoint(block, x, use_reentrant=False)).square().mean()

    found = verdicts(Model(loss, used=linear(), dead=linear(), out=linear()))
    assert found[("dead", 0)] == "undecided"
    assert not {name for name, _ in found} & {"used", "out"}


def test_a_parameter_without_gradient_whose_value_matters_is_no_dead_work():
    model = Model(lambda m, x: (m.used(x) * m.table.detach()[:5]).sum(), used=linear())
    model.table = nn.Parameter(torch.rand(5, WIDTH))
    model.spare = nn.Parameter(torch.rand(5), requires_grad=False)
    assert verdicts(model) == {("table", None): "undecided", ("spare", None): "dead"}
    model.table.requires_grad_(False)
    assert verdicts(model) == {("spare", None): "dead"}


def test_everything_is_as_before_even_after_an_error():
    model = nn.Sequential(linear(), nn.BatchNorm1d(WIDTH))
    model(batch()).sum().backward()
    model[1].eval()
    kept = {name: p.grad for name, p in model.named_parameters()}
    values = {name: p.grad.clone() for name, p in model.named_parameters()}
    runs = iter(range(100))

    def loss(x):
        model.train()
        if next(runs) == 3:
            raise RuntimeError("the model's own")
        return model(x).square().mean()

    with pytest.raises(RuntimeError, match="own"):
        find_dead_work(model, loss, [batch(), batch(), batch()])
    assert not model[1].training
    assert model[1].num_batches_tracked == 1
    assert all(p.grad is kept[name] for name, p in model.named_parameters())
    assert all(torch.equal(p.grad, values[name]) for name, p in model.named_parameters())
    assert not model[0]._forward_hooks


def test_batches_are_not_changed():
    def loss(m, x):
        return m.used(x["x"].add_(1)).square().mean()

    given = {"x": batch()}
    verdicts(Model(loss, used=linear()), [given])
    assert torch.equal(given["x"], batch())


def test_memory_grows_with_the_work():
    def loss(m, x):
        m.large(x.repeat(300, 1).repeat(1, 40))
        m.small(x)
        return m.used(x).square().mean()

    model = Model(loss, large=nn.Linear(40 * WIDTH, 400), small=linear(), used=linear())
    findings = {(f.name, f.call): f for f in find_dead_work(model, model.loss, [batch(), batch()])}
    assert findings["large", 0].cost_bytes == 5 * 300 * 400 * 4
    assert findings["small", 0].cost_bytes == 5 * WIDTH * 4
    assert findings["large.weight", None].cost_bytes == 400 * 40 * WIDTH * 4
    table = findings_table(list(findings.values()))
    assert list(table["name"][:2]) == ["large", "small"]


class Slow(nn.Linear):
    """A layer whose call takes a known time at least, forward and backward."""

    def __init__(self, seconds):
        super().__init__(WIDTH, WIDTH)
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(lambda gradient: time.sleep(self.seconds))
        return out


def test_a_cost_is_what_a_step_saves_without_the_call():
    def loss(m, x):
        m.once(x)
        return (m.used(x) + 0 * m.twice(x)).square().mean()

    model = Model(loss, once=Slow(0.02), twice=Slow(0.02), used=linear())
    findings = find_dead_work(model, model.loss, [batch()], costs=False)
    savings = measure_savings(model, model.loss, [batch()], findings)
    assert set(savings) == {"once#0", "twice#0", "together", "control"}
    once, twice, together, control = (savings[n] for n in ("once#0", "twice#0", "together", "control"))
    assert once.ms > 15  # its forward pass; nothing goes back through it
    assert twice.ms > once.ms + 10  # and its backward pass
    assert together.ms > once.ms + twice.ms - 15
    assert abs(control.ms) < 10 < 20 < together.q1_ms <= together.ms <= together.q3_ms
    assert 0.5 < together.share < 1
    priced = with_costs(findings, savings, model)
    assert [f.cost_ms for f in priced if f.kind == "call"] == [once.ms, twice.ms]
    assert "forward" not in vars(model.once)


def test_a_call_inside_a_dead_call_has_no_saving_of_its_own():
    branch = nn.Sequential(Slow(0.001), nn.Tanh())
    model = Model(lambda m, x: (m.used(x) + 0 * m.branch(x)).sum(), used=linear(), branch=branch)
    costs = {f.name: f.cost_ms for f in find_dead_work(model, model.loss, [batch()]) if f.kind == "call"}
    assert costs["branch"] is not None
    assert costs["branch.0"] is costs["branch.1"] is None


def test_what_runs_inside_a_call_that_is_left_out_does_not_shift_the_numbers_of_other_calls():
    """The same layer is called inside a dead block, dead by itself, and for the loss: the last must not be left out."""

    def loss(m, x):
        m.block(x)
        m.layer(x)
        return m.layer(x).square().mean()

    layer = linear()
    model = Model(loss, layer=layer, block=nn.Sequential(nn.Tanh(), nn.Sequential(layer)))
    findings = find_dead_work(model, model.loss, [batch()], costs=False)
    dead = dead_calls(findings)
    assert dead == [Call("block", 0), Call("layer", 1)]
    experiment = Experiment(model, model.loss)
    (run,) = steps_without(experiment, batch(), {"all": dead}, lambda: model.loss(batch()).backward()).values()
    experiment.step(batch())
    whole = layer.weight.grad
    model.zero_grad()
    run()
    assert torch.equal(layer.weight.grad, whole)


def test_zero_gradients_cost_an_update():
    model = Model(lambda m, x: (m.used(x) + 0 * m.dead(x)).sum(), used=linear(), dead=linear())
    findings = {(f.name, f.call): f for f in find_dead_work(model, model.loss, [batch()])}
    assert findings["dead.weight", None].cost_ms > 0
    assert findings["dead.weight", None].cost_bytes == 2 * WIDTH * WIDTH * 4


def test_a_small_part_of_a_half_precision_loss_is_work():
    model = Model(lambda m, x: (m.used(x) ** 2 * (1 + 0.03 * m.part(x))).mean(), used=linear(), part=nn.Sigmoid())
    assert verdicts(model.bfloat16(), [batch().bfloat16()]) == {}


def test_rounding_is_not_taken_for_work():
    shifts = Model(
        lambda m, x: F.log_softmax(m.used(x) + m.shift(x).mean(), dim=1)[:, 0].mean(), used=linear(), shift=nn.Tanh()
    )
    assert verdicts(shifts, rounding=1e-4) == {("shift", 0): "dead"}
    assert verdicts(shifts, rounding=1e-12) == {}


@pytest.mark.parametrize(
    ("loss", "batches", "message"),
    [
        (lambda x: x.sum(), [], "batches is empty"),
        (lambda x: x, [batch()], r"shape \(5, 6\)"),
        (lambda x: 3.0, [batch()], "float"),
        (lambda x: x.sum() * float("nan"), [batch()], "batch 0: the loss is nan"),
    ],
)
def test_bad_input_is_refused(loss, batches, message):
    with pytest.raises(InputError, match=message):
        find_dead_work(linear(), loss, batches)
    with pytest.raises(InputError, match="run the model once"):
        find_dead_work(nn.LazyLinear(3), lambda x: x.sum(), [batch()])


CARRIED_BY_DRAGON = {"weight_i", "MLP_v.weight", "MLP_t.weight", "MLP_user.weight", "MLP_user.bias"} | {
    f"{layer}.{part}" for layer in ("image_trs", "text_trs") for part in ("weight", "bias")
}


def on_real_model(name, **options):
    data = synthesize("embedded", scale=0.1)
    model = build(name, data, backend="reference", **options).train()
    triples = NegativeSampler(data).epoch(0, 0)
    return verdicts(model, [triples[:, :300], triples[:, 300:600]])


def test_grcn_as_shipped_routes_for_nothing():
    found = on_real_model("grcn", routing="as_shipped", routing_iterations=3)
    dead = {(f"{branch}.attention", k) for branch in ("v_gcn", "t_gcn") for k in range(3)}
    inside = {(f"{name}.aggr_module", k) for name, k in dead}
    assert found == dict.fromkeys(dead | inside, "dead")  # and not call 3, the final attention


def test_the_dead_calls_and_what_stands_between_them_are_all_that_the_loop_runs():
    """Operators of a step with three iterations, less the dead calls', less those between them: a step without any."""
    data = synthesize("embedded", scale=0.1)
    model, without = (build("grcn", data, backend="reference", routing_iterations=k) for k in (3, 0))
    triples = NegativeSampler(data).epoch(0, 0)[:, :300]
    findings = find_dead_work(model, model.loss, [triples], costs=False)
    rows = beside_the_calls(model, without, triples, findings)
    assert {row["name"].rpartition(" ")[2] for row in rows} == {"route", "_update_preference"}  # the loop's own lines
    assert all(row["operators"] > 0 and row["cost_ms"] > 0 for row in rows)
    assert sum("normalize" in row["reason"] for row in rows) == 1
    between = sum(row["operators"] for row in rows)
    whole, calls_left_out, none = (
        operator_counts(m, step, triples)["calls"].sum()
        for m, step in (
            (model, lambda: model.loss(triples).backward()),
            (model, next(iter(steps_of(model, triples, findings).values()))),
            (without, lambda: without.loss(triples).backward()),
        )
    )
    assert calls_left_out - between == none
    assert whole - calls_left_out > between > 0
    assert beside_the_calls(without, without, triples, []) == []  # the control


def steps_of(model, given, findings):
    calls = {"all": dead_calls(findings)}
    return steps_without(Experiment(model, model.loss), given, calls, lambda: model.loss(given).backward())


def test_grcn_with_live_routing_does_not():
    assert on_real_model("grcn", routing="live", routing_iterations=3) == {}


def test_dragon_carries_parameters_along():
    found = on_real_model("dragon")
    dead = {name for (name, call), verdict in found.items() if verdict == "dead" and call is None}
    assert dead >= CARRIED_BY_DRAGON
    assert {name for name, _ in found} <= CARRIED_BY_DRAGON | {"image_embedding.weight", "text_embedding.weight"}
