"""What all models share: building, checking input, scores, parameters by MMRec's names, memory settings."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._C._profiler import RecordScope
from torch.profiler import ProfilerActivity, profile

from mmrec_helpers.config import InputError
from mmrec_helpers.data import Interactions
from mmrec_helpers.models import MODELS, build
from tests.models_data import assert_same_step, loss_and_gradients, random_batch, small_data

DATA = small_data()
BATCH = random_batch(DATA)
TRAINED = ("grcn", "dragon", "lightgcn")
MULTIMODAL = ("grcn", "dragon")


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sage", {}, "unknown model 'sage': expected one of grcn, dragon"),
        ("grcn", {"backend": "dense"}, "unknown backend 'dense'"),
        ("grcn", {"layers": 2}, "unknown grcn option 'layers': expected one of .*routing_iterations"),
        ("grcn", {"routing": "alive"}, "unknown routing 'alive': expected one of as_shipped, live"),
        ("grcn", {"routing_iterations": -1}, "grcn: routing_iterations is -1: expected an integer of at least 0"),
        ("grcn", {"routing_iterations": 1.5}, "routing_iterations is 1.5"),
        ("grcn", {"reg_weight": -1e-3}, "grcn: reg_weight is -0.001"),
        ("grcn", {"reg_weight": float("nan")}, "reg_weight is nan"),
        ("grcn", {"embedding_dim": 0}, "embedding_dim is 0"),
        ("grcn", {"mixed_precision": "float8"}, "unknown grcn mixed_precision 'float8'"),
        ("grcn", {"checkpointing": 1}, "grcn: checkpointing is 1: expected True or False"),
        ("grcn", {"device": "tpu"}, "unknown device 'tpu'"),
        ("grcn", {"seed": -1}, "seed is -1"),
        ("dragon", {"knn_k": 25}, "knn_k is 25: expected at most the number of items, 24"),
        ("dragon", {"visual_weight": 1.5}, "visual_weight is 1.5: expected a number from 0 to 1"),
        ("dragon", {"feature_hidden": 0}, "feature_hidden is 0"),
        ("lightgcn", {"n_layers": -2}, "n_layers is -2"),
        ("popularity", {"reg_weight": 0.1}, "unknown popularity option 'reg_weight'"),
    ],
)
def test_build_names_what_is_wrong(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, DATA, **options)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_build_needs_features(name):
    with pytest.raises(InputError, match=f"{name}: unnamed has no features"):
        build(name, small_data(modalities=()))


def test_build_needs_interactions():
    with pytest.raises(InputError, match="data is dict: expected Interactions"):
        build("grcn", {"train": None})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (BATCH[:2], r"batch is \(2, 40\): expected a tensor \(3, B\)"),
        (BATCH[:, :0], r"batch is \(3, 0\)"),
        (BATCH.numpy(), "batch is ndarray"),
        (BATCH.float(), "batch has type torch.float32: expected int64"),
        (torch.tensor([[50], [0], [0]]), "batch: users hold 50: expected 0 to 49"),
        (torch.tensor([[0], [0], [-1]]), "batch: items hold -1: expected 0 to 23"),
    ],
)
def test_loss_names_a_bad_batch(batch, message):
    with pytest.raises(InputError, match=message):
        build("lightgcn", DATA).loss(batch)


@pytest.mark.parametrize(
    ("users", "message"), [([0, 50], "users hold 50"), ([[0]], r"shape \(1, 1\)"), ([0.5], "torch.float32")]
)
def test_scores_name_bad_users(users, message):
    with pytest.raises(InputError, match=message):
        build("popularity", DATA).scores(users)


@pytest.mark.parametrize("name", MULTIMODAL)
@pytest.mark.parametrize("modalities", [("visual",), ("textual",), ("visual", "textual")])
def test_either_modality_may_be_absent(name, modalities):
    data = small_data(modalities)
    model = build(name, data, backend="reference")
    assert model.representation().shape[0] == data.n_users + data.n_items
    terms = model.loss_terms(BATCH)
    assert model.loss(BATCH).item() == pytest.approx(sum(term.item() for term in terms.values()))
    assert model.scores([0, 49]).shape == (2, data.n_items)


@pytest.mark.parametrize("name", TRAINED)
def test_one_seed_one_model_whatever_the_backend_and_nothing_else_moves(name):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    models = [build(name, DATA, backend=backend, seed=7) for backend in ("reference", "sparse")]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    other = build(name, DATA, backend="sparse", seed=8).state_dict()
    assert not any(torch.equal(states[0][key], other[key]) for key in other)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_inner_products_of_a_fresh_representation(name):
    model = build(name, DATA, backend="sparse")
    model.train()
    stale = model.scores([1, 2])
    if name != "popularity":
        torch.optim.SGD(model.parameters(), lr=5.0).step(lambda: loss_and_gradients(model, BATCH)[0])
        assert not torch.allclose(model.scores([1, 2]), stale)
    representation = model.representation().detach()
    expected = representation[[1, 2]] @ representation[DATA.n_users :].T
    torch.testing.assert_close(model.scores(torch.tensor([1, 2])), expected)
    torch.testing.assert_close(model.scores(np.array([1, 2]), representation), expected)
    assert model.training
    assert not model.scores([0]).requires_grad


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
@pytest.mark.parametrize(("name", "options"), [("grcn", {}), ("grcn", {"routing": "live"}), ("dragon", {})])
def test_checkpointing_changes_no_number(name, options, backend):
    plain = build(name, DATA, backend=backend, **options).double()
    saving = build(name, DATA, backend=backend, checkpointing=True, **options).double()
    assert_same_step(plain, saving, BATCH, 1e-12)


@pytest.mark.parametrize(("name", "region"), [("grcn", "routing.visual.1"), ("dragon", "convolution.textual.0")])
def test_checkpointing_computes_regions_again(name, region):
    for checkpointing, times in ((False, 1), (True, 2)):
        model = build(name, DATA, backend="reference", checkpointing=checkpointing)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model.loss(BATCH).backward()
        assert [event.name for event in profiler.events()].count(region) == times


@pytest.mark.parametrize(
    ("name", "regions"),
    [
        ("grcn", "features.M routing.M.0 routing.M.1 final_attention.M confidence id_branch loss"),
        ("dragon", "features.M convolution.M.0 convolution.M.1 modal_weighting item_graph user_graph loss"),
    ],
)
def test_regions_of_a_step(name, regions):
    options = {"routing_iterations": 2} if name == "grcn" else {}
    model = build(name, DATA, backend="reference", features_on_host=True, **options)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        model.loss(BATCH)
    names = {event.name for event in profiler.events() if event.scope == RecordScope.USER_SCOPE.value}
    expected = {"copy.features"}
    for region in regions.split():
        expected |= {region.replace("M", modality) for modality in DATA.modalities}
    assert names == expected


@pytest.mark.parametrize("name", MULTIMODAL)
def test_features_are_there_once_and_are_not_state(name):
    model = build(name, DATA)
    assert not any(key.endswith("_embedding.weight") or "features" in key for key in model.state_dict())
    pointers = {m: DATA.features[m].__array_interface__["data"][0] for m in DATA.modalities}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for modality, pointer in pointers.items():
        width = DATA.features[modality].shape[1]
        found = [tensor for tensor in tensors.values() if tensor.shape == (DATA.n_items, width)]
        assert [tensor.data_ptr() for tensor in found] == [pointer]


@pytest.mark.parametrize("name", MULTIMODAL)
def test_features_on_the_host_change_no_number(name):
    plain, on_host = (build(name, DATA, features_on_host=setting).double() for setting in (False, True))
    assert_same_step(plain, on_host, BATCH, 0.0)


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
@pytest.mark.parametrize("name", TRAINED)
def test_mixed_precision_stays_near_full_precision(name, backend):
    full = build(name, DATA, backend=backend)
    mixed = build(name, DATA, backend=backend, mixed_precision="bfloat16")
    (loss, grads), (mixed_loss, mixed_grads) = loss_and_gradients(full, BATCH), loss_and_gradients(mixed, BATCH)
    assert mixed_loss.item() == pytest.approx(loss.item(), rel=2e-2)
    assert grads.keys() == mixed_grads.keys()
    assert all(bool(grad.isfinite().all()) for grad in mixed_grads.values())
    if name != "lightgcn":  # which has nothing that autocast computes in half precision
        assert mixed_loss.item() != loss.item()


@pytest.mark.parametrize("backend", ["reference", "sparse"])
@pytest.mark.parametrize("name", MULTIMODAL)
def test_loss_stays_finite_where_sigmoid_underflows(name, backend):
    model = build(name, DATA, backend=backend)
    with torch.no_grad():
        (model.model_specific_conf if name == "grcn" else model.weight_u).mul_(1e4)
    scores = model.scores(BATCH[0])
    margin = (scores.gather(1, BATCH[1:2].T) - scores.gather(1, BATCH[2:].T)).squeeze(1)
    assert torch.log(torch.sigmoid(margin)).min() == -torch.inf
    expected = F.softplus(-margin.double()).mean().item() / (np.log(2) if name == "dragon" else 1)
    assert model.loss_terms(BATCH)["bpr"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", MULTIMODAL)
class TestLoadMmrecState:
    @pytest.fixture
    def model(self, name):
        return build(name, DATA, backend="sparse", seed=1)

    @pytest.fixture
    def state(self, name):
        return {key: value.numpy() for key, value in build(name, DATA, backend="sparse", seed=2).state_dict().items()}

    def test_takes_over_every_parameter(self, name, model, state):
        model.load_mmrec_state(state)
        assert all(np.array_equal(model.state_dict()[key].numpy(), value) for key, value in state.items())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("v_gcn.MLP.bias"), r"state: v_gcn.MLP.bias is missing: expected shape"),
            (lambda state: state.update(extra=np.ones(1)), "state: unknown name 'extra'"),
            (
                lambda state: state.update({"t_gcn.preference": np.ones((3, 64))}),
                r"state: t_gcn.preference has shape \(3, 64\): expected \(50, 64\)",
            ),
        ],
    )
    def test_names_what_does_not_fit_and_changes_nothing(self, name, model, state, change, message):
        change(state)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(InputError, match=message):
            model.load_mmrec_state(state)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_deep_copy_is_another_model(name, backend):
    model = build(name, DATA, backend=backend)
    loss_and_gradients(model, BATCH)
    copied = copy.deepcopy(model)
    # PyG's scatter sums add in the order in which threads arrive; the other backends are bitwise repeatable
    assert_same_step(model, copied, BATCH, 1e-5 if backend == "reference" else 0.0)
    with torch.no_grad():
        next(iter(copied.parameters())).mul_(2)
    assert not torch.equal(next(iter(copied.parameters())), next(iter(model.parameters())))


def test_popularity_counts_training_interactions():
    data = Interactions.from_arrays(3, 3, train=np.array([[0, 1, 2, 0], [1, 1, 1, 2]]))
    model = build("popularity", data)
    assert model.scores([0, 2]).tolist() == [[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]]
    assert not list(model.parameters())
    with pytest.raises(InputError, match="popularity has nothing to train"):
        model.loss(torch.zeros(3, 1, dtype=torch.int64))


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
def test_lightgcn_is_the_mean_of_normalised_propagations(backend):
    model = build("lightgcn", DATA, backend=backend, n_layers=2, reg_weight=0.1, embedding_dim=8).double()
    adjacency = torch.zeros(DATA.n_users, DATA.n_items, dtype=torch.float64)
    adjacency[DATA.train[0], DATA.train[1]] = 1
    full = torch.zeros(74, 74, dtype=torch.float64)
    full[: DATA.n_users, DATA.n_users :], full[DATA.n_users :, : DATA.n_users] = adjacency, adjacency.T
    degree = full.sum(dim=1)
    full = full / (degree[:, None] * degree[None]).sqrt().clamp_min(1)
    x = model.embedding.detach()
    expected = (x + full @ x + full @ full @ x) / 3
    torch.testing.assert_close(model.representation().detach(), expected)
    users, positive, negative = BATCH + torch.tensor([[0], [50], [50]])
    margin = (expected[users] * (expected[positive] - expected[negative])).sum(dim=1)
    squares = sum((x[rows] ** 2).sum() for rows in (users, positive, negative))
    loss = -torch.log(torch.sigmoid(margin)).mean() + 0.1 * squares / (2 * BATCH.shape[1])
    torch.testing.assert_close(model.loss(BATCH).detach(), loss)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["reference", "sparse", "fused"])
@pytest.mark.parametrize("name", TRAINED)
def test_cuda_equals_cpu(name, backend):
    on_cpu, on_cuda = (build(name, DATA, backend=backend, device=device).double() for device in ("cpu", "cuda"))
    loss, grads = loss_and_gradients(on_cpu, BATCH)
    cuda_loss, cuda_grads = loss_and_gradients(on_cuda, BATCH)
    torch.testing.assert_close(cuda_loss.cpu(), loss)
    for parameter, grad in grads.items():
        torch.testing.assert_close(cuda_grads[parameter].cpu(), grad)
