"""Dead work in generated models: layers that are dead or live by construction, through every way to the loss.

Each way states what a layer reached by it is: "live" must never be called dead, nor what runs inside it; of "around",
what a hook does before the call matters, and its body does not. "dead" by data flow must be found, so
must "inert" (its values arrive nowhere) unless the rest of the model compares, rounds or reads what it could reach; and
"either" may be dead or undecided, but is not alive.
"""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmrec_helpers.profiling.dead_work import find_dead_work

WIDTH = 4


class Double(torch.autograd.Function):
    """The output does not depend on the second input, the gradient does."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(scale)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 + ctx.saved_tensors[0].square()), None


def summary(out):
    """Means over the rows of something that batch normalization does not make constant."""
    return (out.detach() + 1).tanh().mean(0)


class Layer(nn.Module):
    """A body with a way out: what its output is used for is up to ``WAYS``."""

    def __init__(self, body, way):
        super().__init__()
        self.body, self.way, self.kept, self.box = body, way, None, {"a": []}
        self.register_buffer("state", torch.ones(WIDTH))

    def forward(self, x):
        out = self.body(x)
        if self.way in ("attribute", "attribute-unread"):
            self.kept = out
            return x + 1
        if self.way == "container":
            self.box["a"] = [out]
            return x + 1
        if self.way == "next-step":
            self.state = 0.9 * self.state + 0.1 * summary(out)
        if self.way == "next-step-copied":
            self.state.mul_(0.9).add_(summary(out))
        if self.way == "own-average":
            self.state.copy_(0.9 * self.state + summary(out))
        if self.way == "in-place":
            x.add_(out.detach().tanh())
        return out


def table(x):
    return torch.arange(WIDTH * 3.0).view(WIDTH, 3) + 1


# way: (what the layer's call is, what its output adds to h; m is the Layer, o its output, h the rest)
WAYS = {
    "used": ("live", lambda m, o, h: h + o),
    "product": ("live", lambda m, o, h: h * o.sigmoid()),
    "detached": ("live", lambda m, o, h: h + o.detach()),
    "attribute": ("live", lambda m, o, h: h * m.kept.tanh()),
    "container": ("live", lambda m, o, h: h * m.box["a"][-1].tanh()),
    "hook": ("live", lambda m, o, h: h * m.hooked["t"].tanh()),
    "hook-before": ("around", lambda m, o, h: h * m.hooked["t"].tanh()),
    "by-name": ("live", lambda m, o, h: h + o),
    "next-step": ("live", lambda m, o, h: h),
    "next-step-copied": ("live", lambda m, o, h: h),
    "in-place": ("live", lambda m, o, h: h),
    "argmax": ("live", lambda m, o, h: h * table(h)[o.argmax(1)][:, :1]),
    "comparison": ("live", lambda m, o, h: torch.where(o > 0, h, 2 * h)),
    "rounded": ("live", lambda m, o, h: h + (1e-3 * o).round() + o.sign()),
    "masked": ("live", lambda m, o, h: h + h[o.sum(1) > o.sum(1).median()].sum()),
    "integer": ("live", lambda m, o, h: h + (100 * o).long().float()),
    "item": ("live", lambda m, o, h: h * (1 + abs(o.sum().item()))),
    "numpy": ("live", lambda m, o, h: h * float(abs(o.detach().numpy()).sum())),
    "list": ("live", lambda m, o, h: h * (1 + abs(o.sum(1).tolist()[0]))),
    "backward-only": ("live", lambda m, o, h: Double.apply(h, o.detach())),
    "gradient-hook": ("live", lambda m, o, h: hooked_gradient(h, o)),
    "inner-gradient": ("live", lambda m, o, h: h * torch.autograd.grad(o.tanh().sum(), m.given, create_graph=True)[0]),
    "complex": ("live", lambda m, o, h: h + torch.fft.ifft(torch.fft.fft(o)).real),
    "view-written": ("live", lambda m, o, h: written(h, o)),
    "small": ("live", lambda m, o, h: h + 1e-3 * o),
    "dropped": ("dead", lambda m, o, h: h),
    "by-name-dropped": ("dead", lambda m, o, h: h),
    "attribute-unread": ("either", lambda m, o, h: h),
    "own-average": ("dead", lambda m, o, h: h),
    "shape-only": ("dead", lambda m, o, h: h + torch.ones_like(o)),
    "empty-rows": ("inert", lambda m, o, h: h + o[:0].sum()),
    "times-zero": ("inert", lambda m, o, h: h + 0 * o),
    "zero-rows": ("inert", lambda m, o, h: h + (o * torch.tensor([[0.0], [1], [1], [1], [1], [1]]))[:1]),
    "cancelled": ("either", lambda m, o, h: h + (o - o)),
    "compared-and-dropped": ("dead", lambda m, o, h: ((o > 0).float(), h)[1]),
    "comparison-times-zero": ("either", lambda m, o, h: h + 0 * (o > 0).float()),
}


def hooked_gradient(h, o):
    h = h.clone()
    if h.requires_grad:
        scale = o.detach().square() + 1
        h.register_hook(lambda gradient: gradient * scale)
    return h


def written(h, o):
    h = h.clone()
    h[1:3, :2] = o[1:3, :2]
    return h


BODIES = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "relu": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)),
    "dropout": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)),
    "norm": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)),
    "deep": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)),
    "no-parameters": lambda: nn.Softplus(),
}
DISCRETE = {"argmax", "comparison", "rounded", "masked", "integer", "item", "numpy", "list"}
DISCRETE |= {"comparison-times-zero"}  # behind these values prove nothing


class Generated(nn.Module):
    def __init__(self, spec, seed, shared, checkpointed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        layers = [Layer(BODIES[body](), way) for way, body in spec]
        if shared:  # one body for the first two layers: its calls are told apart by number
            layers[1].body = layers[0].body
        self.layers, self.checkpointed = nn.ModuleList(layers), checkpointed
        for layer in layers:
            if layer.way == "hook":
                layer.hooked = {}
                layer.register_forward_hook(lambda m, args, out: m.hooked.update(t=out))
            if layer.way == "hook-before":
                layer.hooked = {}
                layer.register_forward_pre_hook(lambda m, args: m.hooked.update(t=2 * args[0].detach()))

    def loss(self, x):
        h = self.first(x)
        for layer in self.layers:
            old = layer.state.clone()
            layer.given = x.clone().requires_grad_() if layer.way == "inner-gradient" else h.clone()
            given = layer.given
            if self.checkpointed and layer.way in ("used", "dropped", "times-zero", "product"):
                out = checkpoint(layer, given, use_reentrant=False)
            else:
                out = (layer.forward if layer.way.startswith("by-name") else layer)(given)
            rest = given if layer.way == "in-place" else h
            if layer.way.startswith("next-step"):
                rest = h + old
            h = WAYS[layer.way][1](layer, out, rest).tanh() + 0.5 * h
            layer.given = None
        return self.last(h).square().mean()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


cases = st.builds(
    lambda *parts: parts,
    st.lists(st.tuples(st.sampled_from(sorted(WAYS)), st.sampled_from(sorted(BODIES))), min_size=2, max_size=3),
    st.integers(0, 10_000),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


def check(case):
    """Judge a generated model; returns the verdicts of its layers for the count."""
    spec, seed, training, shared, checkpointed = case
    model = Generated(spec, seed, shared, checkpointed).train(training)
    batches = [torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(seed + k)) for k in range(2)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = {(f.name, f.call): f for f in find_dead_work(model, model.loss, batches, costs=False)}
    seen = []
    for number, layer in enumerate(model.layers):
        expected, finding = WAYS[layer.way][0], found.get((f"layers.{number}", 0))
        verdict = "live" if finding is None else finding.verdict
        seen.append((layer.way, verdict))
        about = (layer.way, finding, case)
        inside = [f for (name, _), f in found.items() if name.startswith(f"layers.{number}.") and not shared]
        if expected in ("live", "around"):
            assert verdict != "dead", about
            assert expected == "around" or not [f for f in inside if f.verdict == "dead" and f.kind == "call"], (
                inside,
                about,
            )
        elif expected == "dead" or (
            expected == "inert" and not {way for way, _ in spec} & DISCRETE and not checkpointed
        ):
            assert verdict == "dead", about
        else:
            assert verdict in ("dead", "undecided"), about
    assert not {name for name, _ in found if name.partition(".")[0] in ("first", "last")}, (found, case)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(layer.kept is None and layer.box == {"a": []} for layer in model.layers)
    return seen


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=30, deadline=None, suppress_health_check=QUIET, derandomize=True)
@given(cases)
def test_generated_models_are_judged_right(case):
    check(case)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_each_way(way):
    check(([(way, "linear"), ("used", "relu")], 1, True, False, False))


@pytest.mark.slow
def test_thousands_of_generated_models_are_judged_right(capsys):
    counts = Counter()

    @settings(max_examples=2500, deadline=None, suppress_health_check=QUIET)
    @given(cases)
    def run(case):
        counts["models"] += 1
        counts.update(check(case))

    try:
        run()
    finally:
        with capsys.disabled():
            print(f"\n{counts.pop('models')} models:", *sorted(counts.items(), key=str), sep="\n")
