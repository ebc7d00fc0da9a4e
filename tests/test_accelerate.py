"""The switch for MMRec's GRCN, and what it does for both models: same numbers, parameters and side effects."""

import copy
import importlib
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.accelerated import in_float64
from mmrec_helpers.mmrec import accelerate, restore
from tests.mmrec_objects import GRCN, ContentGcn, golden_object, make_dragon
from tests.mmrec_objects import make_grcn as make
from tests.models_data import random_batch, small_data
from tests.test_goldens import gradients, relative_error

MODULE = importlib.import_module("mmrec_helpers.mmrec.accelerate")  # the package has a function of that name
DATA = small_data()
BATCH = random_batch(DATA)
BACKENDS = ("sparse", "auto")
MODALITIES = [("visual",), ("textual",), ("visual", "textual")]
BOTH_MODELS = pytest.mark.parametrize("make", [make, make_dragon], ids=["GRCN", "DRAGON"])


def step(model, batch=BATCH):
    """Loss, representation, scores and gradients by parameter name."""
    model.zero_grad()
    loss = model.calculate_loss(batch.clone())
    loss.sum().backward()
    found = {"loss": loss.detach(), "scores": model.full_sort_predict([torch.arange(9)]).detach()}
    found["representation"] = getattr(model, model.result_name).detach()
    return found | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(own, fast, tolerance):
    assert own.keys() == fast.keys()
    for name in own:
        assert own[name].shape == fast[name].shape, name
        assert relative_error(fast[name].numpy(), own[name].numpy()) <= tolerance, name


def twins(make, **options):
    """Two equal objects."""
    model = make(**options)
    return model, copy.deepcopy(model)


@pytest.mark.parametrize("name", ["grcn_small", "grcn_single_visual", "dragon_small", "dragon_single_visual"])
def test_the_accelerated_object_computes_mmrecs_golden_numbers(name):
    model, golden = golden_object(name)
    accelerate(model)
    found = step(model, torch.from_numpy(golden["batch"]).long())
    np.testing.assert_allclose(found["representation"], golden["representation"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["scores"][:8], golden["scores_first_users"], rtol=1e-5, atol=1e-5)
    assert found["loss"].item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    expected = gradients(golden)
    names = {"v_preference": "v_gcn.preference", "t_preference": "t_gcn.preference"}  # DRAGON's second names come first
    found = {names.get(name, name): value for name, value in found.items()}
    assert expected.keys() == found.keys() - {"loss", "scores", "representation"}
    for parameter, gradient in expected.items():
        assert relative_error(found[parameter].numpy(), gradient) < 1e-4, parameter


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("modalities", MODALITIES)
def test_same_step(backend, modalities):
    own, fast = twins(make, data=small_data(modalities))
    assert accelerate(fast, backend=backend) is fast
    assert_same(step(own), step(fast), 1e-5)
    in_float64(own)
    assert_same(step(own), step(in_float64(fast)), 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_other_ways_to_weigh_an_edge(mode, backend):
    own, fast = twins(make)
    usual = step(own)["loss"]
    own.weight_mode = fast.weight_mode = mode
    accelerate(fast, backend=backend)
    assert_same(step(own), step(fast), 1e-5)
    assert abs(step(own)["loss"] - usual) > 1e-6
    in_float64(own)
    assert_same(step(own), step(in_float64(fast)), 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_layers", [0, 1, 3])
def test_live_routing_where_it_is_asked_for(backend, n_layers):
    own, fast = twins(make, live=True, n_layers=n_layers)
    accelerate(fast, routing="live", backend=backend)
    assert_same(step(own), step(fast), 1e-5)
    assert_same(step(in_float64(own)), step(in_float64(fast)), 1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_variant(training):
    own, fast = twins(make, use_checkpoint=True)
    accelerate(fast.train(training))
    assert_same(step(own.train(training)), step(fast), 1e-5)


def test_it_really_runs_something_else(monkeypatch):
    model = accelerate(make())
    monkeypatch.setattr(ContentGcn, "forward", lambda *_: pytest.fail("MMRec's own layers ran"))
    step(model)
    restore(model)
    with pytest.raises(pytest.fail.Exception, match="own layers ran"):
        step(model)


def test_parameters_optimizer_and_checkpoints_go_on():
    own, fast = twins(make)
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-2) for model in (own, fast)]
    before = list(fast.parameters())
    accelerate(fast)
    assert all(a is b for a, b in zip(before, fast.parameters(), strict=True))
    for k in range(4):
        for model, optimizer in zip((own, fast), optimizers):
            optimizer.zero_grad()
            model.calculate_loss(random_batch(DATA, seed=k)).sum().backward()
            optimizer.step()
    # Adam divides by the gradient's size, which enlarges the rounding of gradients near zero
    for (name, a), b in zip(own.named_parameters(), fast.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4, msg=name)
    state = fast.state_dict()
    assert state.keys() == own.state_dict().keys()
    fresh = make(seed=5)
    fresh.load_state_dict(state)
    assert_same(step(fast), step(accelerate(fresh)), 1e-6)


def test_scoring_uses_the_last_forward_pass_as_mmrecs_does():
    own, fast = twins(make)
    accelerate(fast)
    for model in (own, fast):
        model.calculate_loss(BATCH)
        with torch.no_grad():
            model.id_gcn.id_embedding.mul_(2)  # not seen by scoring before the next forward pass
    stale = [model.full_sort_predict([torch.arange(9)]) for model in (own, fast)]
    torch.testing.assert_close(*stale)
    own.forward()
    torch.testing.assert_close(fast.forward(), own.result)
    torch.testing.assert_close(fast(), fast.result)


def test_the_batch_is_left_as_it_is():
    batch = BATCH.clone()
    model = accelerate(make(), check_batch=batch)
    model.calculate_loss(batch)
    assert torch.equal(batch, BATCH)


def test_nothing_is_changed_by_the_comparison():
    model = make()
    model.v_gcn.preference.grad = torch.ones_like(model.v_gcn.preference)
    result, state = model.result, {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)
    accelerate(model)
    assert (torch.rand(1).item(), np.random.rand()) == (
        torch.manual_seed(3) and torch.rand(1).item(),
        0.5507979025745755,
    )
    assert model.v_gcn.preference.grad.eq(1).all()
    assert model.id_gcn.id_embedding.grad is None
    assert model.result is result
    assert not hasattr(model.v_gcn.conv_embed_1, "alpha")
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_the_loss_that_calls_cuda_runs_on_a_cpu():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    own, fast = make(), make(calls_cuda=True)
    with pytest.raises((AssertionError, RuntimeError)):
        fast.calculate_loss(BATCH)
    accelerate(fast)
    assert_same(step(own), step(fast), 1e-5)
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).cuda()
    accelerate(in_float64(fast))  # its zero stays in float32, and so does its loss: compared as such
    assert step(fast)["loss"].dtype == torch.float64


@BOTH_MODELS
def test_restore_puts_everything_back(make):
    model = make()
    attributes = dict(vars(model))
    restore(accelerate(accelerate(model)))
    assert vars(model) == attributes
    with pytest.raises(InputError, match=f"{type(model).__name__} is not accelerated"):
        restore(model)


@BOTH_MODELS
def test_copies_are_independent_and_pickle(make):
    model = accelerate(make())
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    expected = step(model)
    for copied in copies:
        assert_same(expected, step(copied), 0)
        with torch.no_grad():
            copied.v_gcn.preference.mul_(-1)
        assert not torch.equal(step(copied)["representation"], expected["representation"])
    assert_same(expected, step(model), 0)


def test_a_compiled_wrapper_is_looked_into():
    model = make()
    wrapper = nn.Module()
    wrapper._orig_mod = model
    assert accelerate(wrapper) is wrapper
    assert model.accelerated.model == "GRCN"


def test_replaced_edges_are_seen():
    own, fast = twins(make)
    accelerate(fast)
    own.edge_index = fast.edge_index = own.edge_index[:, :200]
    assert_same(step(own), step(fast), 1e-5)


def test_what_was_done_is_said():
    done = accelerate(make()).accelerated
    assert (done.model, done.routing, done.device, done.fallback) == ("GRCN", "as_shipped", "cpu", "")
    assert [found.what for found in done.checked[:3]] == ["loss", "scores", "gradient of model_specific_conf"]
    assert all(found.within for found in done.checked)
    assert str(done).startswith(f"GRCN accelerated on cpu, backend {done.backend} (fused Adam); largest relative")


def test_the_optimizer_is_fused_until_the_model_is_restored():
    model = accelerate(make())
    optimizer = torch.optim.Adam(model.parameters())
    step(model)
    optimizer.step()
    assert optimizer.param_groups[0]["fused"]
    restore(model)
    assert not optimizer.param_groups[0]["fused"]


def test_without_the_fused_backend_the_fallback_is_named(monkeypatch):
    monkeypatch.setattr("mmrec_helpers.ops._fused_needs", lambda device: "numba")
    own, fast = twins(make)
    with pytest.warns(UserWarning, match="backend sparse, not fused: .* needs numba, which is not installed"):
        accelerate(fast)
    assert fast.accelerated.backend == "sparse"
    assert "needs numba" in str(fast.accelerated)
    assert_same(step(own), step(fast), 1e-5)
    with pytest.raises(InputError, match="needs numba"):
        accelerate(make(), backend="fused")


class ExtraTerm(GRCN):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) + 1e-3 * (self.model_specific_conf**2).mean()


class OtherActivation(ContentGcn):
    def activation(self, x):
        return F.leaky_relu(x, 0.02)


class MoreInTheScores(GRCN):
    def full_sort_predict(self, interaction):
        return super().full_sort_predict(interaction) + self.forward().mean()


def reversed_object():
    model = make()
    model.edge_index = model.edge_index[[1, 0]]
    return model


REFUSED = {
    "live routing loop": (lambda: make(live=True), r"(loss|scores|gradient of .*) differs by .*routing='live'"),
    "reversed edges": (reversed_object, r"(loss|scores|gradient of .*) differs by .*routing='live'"),
    "added term": (lambda: ExtraTerm(DATA), r"loss differs by .* of its largest value \(tolerance 1e-05\), 0\.\d+ by"),
    "activation": (lambda: make(content=OtherActivation), r"(loss|scores|gradient of .*) differs by"),
    "plain layer": (lambda: nn.Linear(2, 2), "Linear is not one of MMRec's .*GRCN by n_users .*missing: n_users"),
    "no module": (lambda: "model", "str is not one of MMRec's models"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_and_left_as_it_was(case):
    build, message = REFUSED[case]
    model = build()
    attributes = dict(vars(model)) if isinstance(model, nn.Module) else None
    with pytest.raises(InputError, match=message):
        accelerate(model)
    assert attributes is None or vars(model) == attributes


def test_live_is_refused_where_the_loop_is_as_shipped():
    with pytest.raises(InputError, match="differs by"):
        accelerate(make(), routing="live")


def lightgcn_like(model):
    del model.v_gcn, model.t_gcn, model.model_specific_conf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lightgcn_like, "missing: model_specific_conf, v_gcn or t_gcn"),
        (lambda m: m.__delattr__("v_gcn"), r"model_specific_conf has shape \(74, 2\): expected \(74, 1\)"),
        (lambda m: m.__delattr__("reg_weight"), "missing: reg_weight; DRAGON"),
        (lambda m: m.t_gcn.__delattr__("MLP"), "missing: t_gcn.MLP; DRAGON"),
        (lambda m: setattr(m, "fusion_mode", "mean"), "GRCN: fusion_mode is 'mean': accelerate expects 'concat'"),
        (lambda m: setattr(m, "dropout", 0.1), "dropout is 0.1: accelerate expects 0"),
        (lambda m: setattr(m.v_gcn, "has_act", True), "v_gcn.has_act is True: accelerate expects False"),
        (lambda m: setattr(m, "edge_index", m.edge_index + 2), "edge_index holds edges 2 to 50 with .*users 0 to 49"),
        (lambda m: setattr(m, "t_feat", None), r"model_specific_conf has shape"),
        (
            lambda m: setattr(m.v_gcn, "features", torch.ones(3, 10)),
            r"v_gcn.features has shape \(3, 10\): expected \(24, width\)",
        ),
        (lambda m: setattr(m, "calculate_loss", lambda _: 1 / 0), "its own step fails .*ZeroDivisionError"),
    ],
)
def test_what_is_wrong_is_named(change, message, monkeypatch):
    monkeypatch.setattr(MODULE, "LEAST_GAIN", 1000.0)  # what only other settings make another model gains nothing
    model = make()
    change(model)
    with pytest.raises(InputError, match=message):
        accelerate(model)


def test_a_term_added_on_the_instance():
    """An object whose term is added by assignment to the instance is refused, and keeps that assignment."""
    model = make()
    own = model.calculate_loss
    model.calculate_loss = added = lambda batch: own(batch) + (model.t_gcn.preference**2).sum() * 1e-3
    with pytest.raises(InputError, match="loss differs by"):
        accelerate(model)
    assert model.calculate_loss is added


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), r"check_batch is \(2, 4\) of torch.int64"),
        (torch.zeros(3, 4), r"of torch.float32: expected an integer tensor"),
        (torch.full((3, 4), 24), "check_batch: items hold 24: expected 0 to 23"),
        ("batch", "check_batch is a str"),
    ],
)
def test_a_check_batch_must_fit(batch, message):
    with pytest.raises(InputError, match=message):
        accelerate(make(), check_batch=batch)


def test_a_penalty_too_small_for_the_loss_is_found_in_what_had_no_gradient():
    model = make()
    own = model.calculate_loss
    model.calculate_loss = lambda batch: own(batch) + 1e-9 * (model.model_specific_conf**2).mean()
    with pytest.raises(InputError, match=r"model_specific_conf .* \d+% of the entries are zero one way only"):
        accelerate(model)


def test_scores_are_compared_too():
    torch.manual_seed(0)
    assert accelerate(MoreInTheScores(DATA)).accelerated.model == "GRCN"  # its own scores of the same representation
