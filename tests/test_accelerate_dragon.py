"""The switch for MMRec's DRAGON: same numbers, user graphs and side effects."""

import numpy as np
import pytest
import torch

from mmrec_helpers.config import InputError
from mmrec_helpers.experiments.accelerated import in_float64
from mmrec_helpers.mmrec import accelerate, restore
from tests.mmrec_objects import DRAGON, FeatureGcn, UserGraphSample
from tests.mmrec_objects import make_dragon as make
from tests.models_data import random_batch, small_data
from tests.test_accelerate import MODALITIES, MODULE, assert_same, step, twins

DATA = small_data()  # 49 users with others in common, so that some repeat random ones, and one without any
BATCH = random_batch(DATA)


@pytest.mark.parametrize("backend", ["sparse", "auto"])
@pytest.mark.parametrize("modalities", MODALITIES)
def test_same_step(backend, modalities):
    own, fast = twins(make, data=small_data(modalities), n_layers=2)
    assert accelerate(fast, backend=backend) is fast
    assert_same(step(own), step(fast), 1e-5)
    assert_same(step(in_float64(own)), step(in_float64(fast)), 1e-10)


@pytest.mark.parametrize("options", [{"use_checkpoint": True}, {"hidden": 128}])
def test_variants_of_forks(options):
    own, fast = twins(make, **options)
    assert_same(step(own), step(accelerate(fast)), 1e-5)


def test_it_really_runs_something_else(monkeypatch):
    model = accelerate(make())
    monkeypatch.setattr(FeatureGcn, "forward", lambda *_: pytest.fail("MMRec's own layers ran"))
    monkeypatch.setattr(UserGraphSample, "forward", lambda *_: pytest.fail("MMRec's own layers ran"))
    step(model)
    restore(model)
    with pytest.raises(pytest.fail.Exception, match="own layers ran"):
        step(model)


def test_epochs_draw_the_same_user_graphs_and_train_the_same():
    own, fast = twins(make)
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in (own, fast)]
    accelerate(fast)
    graphs = []
    for epoch in range(3):
        losses = []
        for model, optimizer in zip((own, fast), optimizers):
            np.random.seed(epoch)
            model.pre_epoch_processing()
            for k in range(2):
                optimizer.zero_grad()
                loss = model.calculate_loss(random_batch(DATA, seed=k))
                loss.backward()
                optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert own.epoch_user_graph == fast.epoch_user_graph
        graphs.append(fast.epoch_user_graph)
    assert graphs[0] != graphs[1]  # the drawn graph does change
    assert_same(step(own), step(fast), 1e-4)
    assert own.state_dict().keys() == fast.state_dict().keys()  # second names of preferences included


def test_the_user_graph_becomes_a_matrix_once_an_epoch():
    model = accelerate(make())
    fast = model.forward.__self__
    model.calculate_loss(BATCH.clone())
    kept = fast._constants["users"][1]
    model.calculate_loss(BATCH.clone())
    assert fast._constants["users"][1] is kept
    model.pre_epoch_processing()
    model.calculate_loss(BATCH.clone())
    assert fast._constants["users"][1] is not kept


def test_the_batch_is_left_as_it_is_though_mmrecs_is_changed():
    own, fast = twins(make)
    accelerate(fast)
    batches = BATCH.clone(), BATCH.clone()
    assert own.calculate_loss(batches[0]).item() == pytest.approx(fast.calculate_loss(batches[1]).item(), rel=1e-5)
    assert torch.equal(batches[0][1:], BATCH[1:] + DATA.n_users)
    assert torch.equal(batches[1], BATCH)


def test_forward_gives_scores_and_keeps_what_mmrec_keeps():
    own, fast = twins(make)
    accelerate(fast)
    pairs = [model(BATCH.clone()) for model in (own, fast)]
    torch.testing.assert_close(pairs[0], pairs[1])
    for name in ("v_rep", "t_rep", "result_embed"):
        torch.testing.assert_close(getattr(own, name), getattr(fast, name))
    assert fast.v_preference is fast.v_gcn.preference


def test_before_the_first_epoch_a_graph_is_drawn_for_the_comparison_alone():
    model = make(drawn=False)
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    accelerate(model)
    assert np.random.rand() == expected
    assert not hasattr(model, "epoch_user_graph")
    model.pre_epoch_processing()
    step(model)


def test_a_registered_result_as_on_a_cpu():
    own, fast = make(), make(registers_result=True)
    fast.load_state_dict(own.state_dict(), strict=False)
    names = list(dict(fast.named_parameters()))
    assert "result_embed" in names
    with pytest.raises(TypeError, match="result_embed"):
        fast.calculate_loss(BATCH.clone())
    own, fast = twins(make)
    fast.result_embed = torch.nn.Parameter(fast.result_embed)
    order = list(dict(fast.named_parameters()))
    accelerate(fast)
    assert list(dict(fast.named_parameters())) == order
    found = step(fast)
    assert_same(step(own), found, 1e-5)
    assert "result_embed" in fast.state_dict()
    restore(fast)
    assert isinstance(fast.result_embed, torch.nn.Parameter)


class ExtraTerm(DRAGON):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) + 1e-3 * (self.weight_i**2).mean()


class NoSecondConvolution(FeatureGcn):
    def forward(self, edge_index_drop, edge_index, features):
        rep, preference = super().forward(edge_index_drop, edge_index, features)
        return rep * 0.999, preference


def with_other_content():
    model = make()
    model.t_gcn.__class__ = NoSecondConvolution
    return model


def of_class(cls):
    model = make()
    model.__class__ = cls
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: of_class(ExtraTerm), r"DRAGON: it computes something else .*: loss differs by .*\(tolerance 1e-05\)"),
        (with_other_content, "(loss|scores) differs by"),
    ],
)
def test_what_computes_something_else_is_refused(build, message):
    model = build()
    attributes = dict(vars(model))
    with pytest.raises(InputError, match=message) as error:
        accelerate(model)
    assert "routing" not in str(error.value)
    assert vars(model) == attributes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.__delattr__("weight_u"), r"DRAGON by .*missing: weight_u$"),
        (lambda m: m.v_gcn.__delattr__("MLP_1"), r"missing: v_gcn.MLP_1$"),
        (lambda m: setattr(m, "mm_adj", m.mm_adj.to_dense()), r"missing: mm_adj$"),
        (lambda m: setattr(m, "construction", "weighted_sum"), "DRAGON: construction is 'weighted_sum'"),
        (
            lambda m: setattr(m.t_gcn.conv_embed_1, "aggr", "mean"),
            "t_gcn.conv_embed_1.aggr is 'mean': .*'add'",
        ),
        (lambda m: setattr(m, "epoch_user_graph", [[1]]), "its own step fails on one batch"),
    ],
)
def test_what_is_wrong_is_named(change, message, monkeypatch):
    monkeypatch.setattr(MODULE, "LEAST_GAIN", 1000.0)  # what only other settings make another model gains nothing
    model = make()
    change(model)
    with pytest.raises(InputError, match=message):
        accelerate(model)


def test_routing_is_grcns_alone():
    with pytest.raises(InputError, match="DRAGON has no routing"):
        accelerate(make(), routing="live")
