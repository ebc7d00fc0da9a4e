"""What a step costs by line and which of it is waste: on planted examples, each with a control."""

import inspect
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.examine import PLANTED, Planting, planted_waste
from mmrec_helpers.profiling import examine

SIZE = 64


@pytest.fixture(scope="module")
def planted():
    return planted_waste().set_index("example")


@pytest.mark.parametrize("example", [name.replace("_", " ") for name in PLANTED])
def test_what_was_planted_is_found_and_nothing_in_the_controls(planted, example):
    assert planted.loc[example, "found"] == planted.loc[example, "planted"]


class Layer(nn.Module):
    """A layer whose output is multiplied by what ``extra`` makes of it."""

    def __init__(self, extra):
        super().__init__()
        self.layer, self.extra = nn.Linear(SIZE, SIZE), extra
        self.register_buffer("edges", torch.arange(4 * SIZE) % SIZE)
        self.register_buffer("matrix", torch.rand(SIZE, SIZE))

    def loss(self, batch):
        hidden = self.layer(batch)
        return (hidden * self.extra(self, hidden)).square().mean()


def batches(number=3):
    return [torch.rand(SIZE, SIZE) for _ in range(number)]


def found(extra, verdict="proved"):
    """(kind, operators) of the waste in the lines of ``extra``."""
    model = Layer(extra)
    waste = examine(model, model.loss, batches(), repeats=1, dead_seconds=0.0, most_savings=0).waste
    return [(row.kind, row.what) for row in waste.itertuples() if row.verdict == verdict]


def degrees(model, hidden):
    return torch.zeros(SIZE).scatter_add_(0, model.edges, torch.rand(4 * SIZE) * 0 + 1.0)


def constant_degrees(model, hidden):
    return torch.zeros(SIZE).scatter_add_(0, model.edges, model.matrix.flatten()[: 4 * SIZE])


def test_a_constant_made_in_place_counts_as_a_whole_and_one_with_a_random_part_does_not():
    assert [kind for kind, _ in found(constant_degrees)] == ["constant"]
    assert "scatter_add_" in found(constant_degrees)[0][1]
    assert found(degrees) == []


def written_later(model, hidden):
    """A constant that is written to with what changes: keeping it would keep the changes."""
    table = model.matrix.exp()
    table[0] = hidden.detach()[0]
    return table


def test_a_constant_that_is_changed_afterwards_is_not_removable():
    assert found(written_later) == []


def changed_in_place(model, hidden):
    moved = hidden.detach().clone()
    first = moved.softmax(dim=1)
    moved[0] += 1.0
    return first * moved.softmax(dim=1)


def unchanged(model, hidden):
    moved = hidden.detach().clone()
    first = moved.softmax(dim=1)
    return first * moved.softmax(dim=1)


def changed_result(model, hidden):
    first = hidden.detach().exp()
    first += 1.0
    return first * hidden.detach().exp()


def test_the_same_operator_on_what_was_written_to_between_is_no_repetition():
    assert found(unchanged) == [("repeated", "_softmax")]
    assert found(changed_in_place) == []
    assert found(changed_result) == []


def by_number(model, hidden):
    size = float(model.layer.weight.detach().mul(0.0).add(7.5).mean().item())  # a number from a parameter
    return torch.full((SIZE, SIZE), size) @ model.matrix


def by_literal(model, hidden):
    return torch.full((SIZE, SIZE), 7.5) @ model.matrix


def by_numpy(model, hidden):
    return torch.from_numpy(np.full((SIZE, SIZE), 7.5, dtype=np.float32)) @ model.matrix


def by_numpy_in_place(model, hidden):
    table = torch.empty(SIZE, SIZE)
    table.numpy()[:] = hidden.detach().numpy()  # as compiled kernels do
    return table @ model.matrix


def by_torch_in_place(model, hidden):
    table = torch.empty(SIZE, SIZE)
    table.fill_(7.5)
    return table @ model.matrix


def test_what_is_written_outside_of_torch_is_never_proved_constant():
    assert found(by_numpy_in_place) == []
    assert ("constant", "mm") in found(by_torch_in_place)  # the control


def test_what_passes_through_python_is_never_proved_constant():
    assert "mm" in found(by_literal)[0][1]
    assert not [what for _, what in found(by_number) if "mm" in what]
    assert not [what for _, what in found(by_numpy) if "mm" in what]
    assert ("constant", "mm") in found(by_numpy, "only equal")


def test_what_is_left_out_changes_nothing_and_its_saving_is_measured():
    def large(model, hidden):
        return (torch.mm(model.matrix.repeat(8, 1), model.matrix) + unchanged(model, hidden).sum()).sum()

    model = Layer(large)
    result = examine(model, model.loss, batches(), repeats=3, dead_seconds=0.0)
    assert result.equal is True
    rows = result.waste.dropna(subset=["saving_ms"])
    assert set(rows["kind"]) == {"constant", "repeated"}
    assert (rows["saving_q1_ms"] <= rows["saving_q3_ms"]).all()
    assert result.all_saving_ms is not None


# ------------------------------------------------------------------------------------------------- what it costs


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def again(self, x):
        return torch.tanh(self.first(x))

    def loss(self, batch):
        hidden = checkpoint(self.again, batch, use_reentrant=False)
        weights = torch.tensor([[float(k) for k in range(SIZE)] for _ in range(200)])  # a list becomes a tensor
        return (self.second.forward(hidden) * weights[:SIZE]).square().mean()


@pytest.fixture(scope="module")
def deep():
    model = Deep()
    with pytest.MonkeyPatch.context() as patch:  # a pause of a busy machine must not make all other lines small
        patch.setattr(sys.modules["mmrec_helpers.profiling.examine"], "_SMALLEST_SHARE", 0.0)
        return examine(model, model.loss, batches(), repeats=2, dead_seconds=0.0)


def test_time_is_given_by_module_and_phase_without_marks(deep):
    seen = set(zip(deep.modules["module"], deep.modules["phase"]))
    assert {(m, p) for m in ("first", "second") for p in ("forward", "backward")} <= seen
    assert ("first", "recompute") in seen
    assert ("second", "recompute") not in seen
    assert deep.modules["share"].sum() == pytest.approx(1.0)


def test_operators_name_the_line_that_called_them_also_in_the_backward_pass(deep):
    line = next(k for k, text in enumerate(inspect.getsource(Deep).splitlines()) if "torch.tanh" in text)
    place = f"tests/test_examine.py:{inspect.getsourcelines(Deep)[1] + line} again"
    tanh = deep.operators[deep.operators["operator"].str.startswith("tanh")]
    assert set(zip(tanh["operator"], tanh["phase"])) >= {("tanh", "forward"), ("tanh_backward", "backward")}
    assert set(tanh["place"]) == {place}
    assert set(tanh["source"]) == {"return torch.tanh(self.first(x))"}


def test_a_line_that_several_modules_run_is_one_row():
    model = nn.ModuleDict({"visual": Scaled(), "textual": Scaled()})
    tables = examine(model, lambda x: model["visual"](x) + model["textual"](x), batches(), repeats=1, dead_seconds=0.0)
    rows = tables.operators[tables.operators["source"] == "return (self.weight @ x).square().mean()"]
    assert not rows.duplicated(["operator", "phase"]).any()
    [product] = rows[(rows["operator"] == "mm") & (rows["phase"] == "forward")].itertuples()
    assert (product.calls, product.module) == (2, "visual, textual")
    assert {"visual", "textual"} <= set(tables.modules["module"])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(SIZE, SIZE))

    def forward(self, x):
        return (self.weight @ x).square().mean()


def test_host_work_is_given_by_line(deep):
    assert "torch.tensor([[" in deep.host.iloc[0]["source"]


def test_the_step_its_parts_and_the_epoch_add_up(deep):
    parts = deep.phases.set_index("phase")["ms"]
    assert list(parts.index) == ["batch", "forward", "backward", "optimizer"]
    assert deep.step_ms == pytest.approx(parts.drop("batch").sum())
    assert deep.epoch_s == pytest.approx(3 * parts.sum() / 1e3)
    assert deep.peak_bytes > SIZE * SIZE * 4


def test_recomputed_work_is_told_from_repeated(deep):
    rows = deep.waste[deep.waste["kind"] == "repeated"]
    assert all(why.startswith("recomputed") for why in rows["because"])


# ----------------------------------------------------------------------------------------- lost gradients, the model


class Lost(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(SIZE, SIZE)
        self.table = torch.rand(SIZE, requires_grad=True)
        self.moved = nn.Parameter(torch.rand(SIZE)).to(torch.float64)  # what .to makes of a parameter is none
        self.kept = nn.Parameter(torch.rand(SIZE))
        self.unused = torch.rand(SIZE, requires_grad=True)

    def loss(self, batch):
        return (self.layer(batch) * self.table * self.kept * self.moved.float()).square().mean()


def test_lost_gradients_are_named_with_the_line_that_made_them():
    model = Lost()
    waste = examine(model, model.loss, batches(), repeats=1, dead_seconds=0.0).waste
    lost = waste[waste["kind"] == "lost gradient"].set_index("what")
    assert set(lost.index) == {"table", "moved"}
    assert lost.loc["table", "source"] == "self.table = torch.rand(SIZE, requires_grad=True)"
    assert model.table.grad is None


def test_the_model_is_left_as_it_was():
    model = Lost()
    model.kept.grad = torch.ones(SIZE)
    before, state = {n: p.detach().clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    given = batches()
    copies, names = [batch.clone() for batch in given], set(vars(model))
    state = torch.get_rng_state()
    examine(model, model.loss, given, repeats=1)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(model.kept.grad, torch.ones(SIZE))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(vars(model)) == names
    assert "forward" not in vars(model.layer)
    assert all(torch.equal(a, b) for a, b in zip(given, copies))


@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        (lambda model, batch: model.layer(batch).sum(), [], "batches is empty"),
        (lambda model, batch: model.layer(batch), None, r"the loss is \(64, 64\): expected a tensor with one number"),
        (lambda model, batch: model.layer(batch).sum() / 0, None, "the loss is (inf|-inf|nan): expected a finite"),
        (lambda model, batch: batch.sum(), None, "computed from nothing that requires a gradient"),
        (lambda model, batch: nn.Parameter(torch.ones(())), None, "computed from nothing that requires a gradient"),
        (lambda model, batch: 3.0, None, "the loss is float"),
    ],
)
def test_bad_input_is_refused_in_one_line(loss, given, message):
    model = Layer(unchanged)
    with pytest.raises(InputError, match=message):
        examine(model, lambda batch: loss(model, batch), batches() if given is None else given, repeats=1)


def test_several_losses_are_added():
    model = Layer(unchanged)
    result = examine(
        model, lambda batch: (model.loss(batch), model.loss(batch)), batches(), repeats=1, dead_seconds=0.0
    )
    assert "repeated" in set(result.waste["kind"])


class OnceUsed(nn.Module):
    """A layer whose output is used in the first step alone."""

    def __init__(self):
        super().__init__()
        self.layer, self.table, self.spare = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.made = None

    def loss(self, batch):
        table = self.table(batch)
        self.spare(batch)
        self.made = table if self.made is None else self.made.detach()
        return (self.layer(batch) * self.made).square().mean()


def test_what_only_later_steps_do_not_need_is_undecided():
    model = OnceUsed()
    waste = examine(model, model.loss, batches(), repeats=1).waste
    calls = waste[waste["kind"] == "dead call"].set_index("module")
    assert calls.loc["spare", "verdict"] == "proved"
    assert calls.loc["table", "verdict"] == "undecided"
    assert "not in the first one" in calls.loc["table", "because"]


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        (60, "Dead work was not looked for: the search would take 0 s at least, 1e-09 s are allowed."),
        (0, "Dead work was not decided: 2 module calls could not be tried within 1e-09 s; allow more time."),
    ],
)
def test_a_search_for_dead_work_that_would_take_too_long_says_so(monkeypatch, passes, said):
    monkeypatch.setattr(sys.modules[examine.__module__], "_LEAST_PASSES", passes)
    model = Planting("dead")
    found = examine(model, model.loss, [torch.rand(96, 96) for _ in range(3)], repeats=1, dead_seconds=1e-9)
    assert not found.waste["kind"].str.startswith("dead").any()
    assert found.notes == (said,)
