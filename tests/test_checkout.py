"""A checkout of MMRec: its models built by its own code, and what that code needs supplied for that time only."""

import os
import sys

import numpy as np
import pytest
import torch
from scipy.sparse import dok_matrix

from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.data import DataSource, Interactions, write_mmrec
from mmrec_helpers.mmrec import open_checkout, write_user_graph
from tests.mmrec_checkout import laid_out_data, make_checkout

REAL = "../../MMRec"  # where a real checkout may lie; MMREC names another place


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path)


def files_of(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_its_models_are_listed_from_its_root_or_its_src_folder(checkout):
    assert open_checkout(checkout).models == ("BPR", "Broken", "DRAGON", "GRCN", "ItemKNN", "Old")
    assert open_checkout(checkout / "src") == open_checkout(checkout)


def test_a_model_is_built_by_the_checkouts_own_settings_data_and_loader(checkout):
    model, batches = open_checkout(checkout).build("GRCN", laid_out_data(), batch_size=64, device="cpu", seed=3)
    assert model.reg_weight == 0.1  # the first of those that the settings file lists
    assert len(batches) == -(-laid_out_data().train.shape[1] // 64)
    seen = torch.cat(list(batches), dim=1)
    assert seen.shape == (3, laid_out_data().train.shape[1])
    model.calculate_loss(seen).backward()
    again, others = open_checkout(checkout).build("GRCN", laid_out_data(), batch_size=64, device="cpu", seed=3)
    assert torch.equal(torch.cat(list(others), dim=1), seen)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_settings_take_the_place_of_the_checkouts(checkout):
    mmrec = open_checkout(checkout)
    model, batches = mmrec.build("GRCN", laid_out_data(), device="cpu", settings={"reg_weight": 0.5, "n_layers": 0})
    assert model.reg_weight == 0.5
    assert batches.config["n_layers"] == 0
    with pytest.raises(InputError, match=r"unknown setting of MMRec 'n_layer': expected one of .*n_layers"):
        mmrec.build("GRCN", laid_out_data(), device="cpu", settings={"n_layer": 0})


def test_what_old_code_expects_is_there_for_its_time_only_and_listed(checkout):
    had_update = hasattr(dok_matrix, "_update")
    before = list(sys.path), os.getcwd(), set(sys.modules), torch.load, np.load, vars(torch.Tensor).get("cuda")
    model, batches = open_checkout(checkout).build("Old", laid_out_data(), device="cpu")
    for _ in range(2):
        model.calculate_loss(next(iter(batches))).backward()
    assert (list(sys.path), os.getcwd()) == before[:2]
    assert (torch.load, np.load, vars(torch.Tensor).get("cuda")) == before[3:]
    assert hasattr(dok_matrix, "_update") == had_update
    assert not {"models", "common", "utils", "torch_scatter", "torchvision"} & (set(sys.modules) - before[2])
    with pytest.raises(AttributeError):
        np.int  # noqa: B018
    told = " ".join(batches.supplied)
    for what in ("np.int", "torch_scatter", ".cuda()", "models.common", "torchvision", "lmdb", "nn.Parameter(...).to"):
        assert what in told, what


def test_on_a_cpu_a_moved_parameter_is_no_parameter_as_on_a_gpu(checkout):
    model, batches = open_checkout(checkout).build("Old", laid_out_data(), device="cpu")
    assert [name for name, _ in model.named_parameters()] == ["weight"]
    model.calculate_loss(next(iter(batches))).backward()
    assert model.hidden.grad is not None


def test_no_file_is_left_in_the_checkout_or_in_the_data(checkout, tmp_path):
    folder = write_mmrec(laid_out_data(), tmp_path / "toys")
    before = files_of(checkout), files_of(folder)
    for name in ("GRCN", "DRAGON", "Old"):
        open_checkout(checkout).build(name, folder, visual="image_feat.npy", textual="text_feat.npy", device="cpu")
    assert (files_of(checkout), files_of(folder)) == before


def test_the_user_graph_is_made_when_it_is_missing_and_taken_when_it_is_there(checkout, tmp_path):
    folder, files = write_mmrec(laid_out_data(), tmp_path / "toys"), {"visual": "image_feat.npy"}
    files |= {"textual": "text_feat.npy", "device": "cpu"}
    made, _ = open_checkout(checkout).build("DRAGON", folder, **files)
    assert len(made.user_graph_dict) == 50
    graph = {user: [[0], [1.0]] for user in range(50)}
    np.save(folder / "user_graph_dict.npy", graph, allow_pickle=True)
    taken, _ = open_checkout(checkout).build("DRAGON", folder, **files)
    assert taken.user_graph_dict == graph


def test_a_preset_is_generated(checkout):
    model, _ = open_checkout(checkout).build("GRCN", "embedded", scale=0.2, device="cpu")
    assert model.n_users == DataSource("embedded", scale=0.2).open().n_users


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("NGCF", laid_out_data(), r"unknown model 'NGCF': expected one of BPR, Broken, DRAGON, GRCN"),
        (
            "Broken",
            laid_out_data(),
            r"Broken cannot be built on .*the package torchvision.* \(models/broken.py, line 6\)",
        ),
        (
            "GRCN",
            laid_out_data(("visual",)),
            r"No such file.*text_feat.npy.*base.py.*the data set has no textual features",
        ),
        ("GRCN", "no-such", r"unknown data set 'no-such'"),
    ],
)
def test_a_model_that_cannot_be_built_says_what_it_lacks(checkout, name, data, message):
    cwd, path = os.getcwd(), list(sys.path)
    with pytest.raises(InputError, match=message):
        open_checkout(checkout).build(name, data, device="cpu")
    assert (os.getcwd(), sys.path) == (cwd, path)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no checkout of MMRec: expected src/utils/configurator.py"):
        open_checkout(tmp_path)


def test_a_model_without_training_says_so(checkout):
    _, batches = open_checkout(checkout).build("ItemKNN", laid_out_data(), device="cpu")
    assert not batches.trains


# ---------------------------------------------------------------------------------------------- the user graph


def slow_user_graph(data, most=200):
    """What MMRec's script computes, pair by pair: {user: {other: items in common}}, the counts it may keep."""
    items = [set(data.train[1][data.train[0] == user]) for user in range(data.n_users)]
    graph = {}
    for user in range(data.n_users):
        common = {other: len(items[user] & items[other]) for other in range(data.n_users) if other != user}
        common = {other: count for other, count in common.items() if count}
        graph[user] = common, sorted(common.values(), reverse=True)[:most]
    return graph


def crowd():
    """260 users, most of whom share items with more than 200 others."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, (260, 12), size=(900, 2)), axis=0).T
    return Interactions.from_arrays(260, 12, pairs, name="crowd")


@pytest.mark.parametrize("data", [laid_out_data(), crowd()], ids=["few", "more than 200"])
def test_the_user_graph_is_that_of_a_slow_count(data, tmp_path):
    graph = np.load(write_user_graph(data, tmp_path), allow_pickle=True).item()
    expected = slow_user_graph(data)
    assert graph.keys() == expected.keys()
    for user, (others, counts) in graph.items():
        common, largest = expected[user]
        assert counts == largest
        assert [common[other] for other in others] == counts
        assert len(set(others)) == len(others)
    assert max(len(others) for others, _ in graph.values()) == min(200, max(len(c) for c, _ in expected.values()))


def test_the_command_writes_it_and_never_replaces_another(tmp_path, capsys):
    folder = write_mmrec(laid_out_data(), tmp_path / "toys")
    file = folder / "user_graph_dict.npy"
    assert main(["data", "user-graph", str(folder)]) == 0
    written = file.read_bytes()
    assert main(["data", "user-graph", str(folder)]) == 0
    file.write_bytes(b"mine")
    capsys.readouterr()
    assert main(["data", "user-graph", str(folder)]) == 2
    assert "there is another one already" in capsys.readouterr().err
    assert file.read_bytes() == b"mine"
    assert len(written) > 1000


# --------------------------------------------------------------------------------------------- the real checkout


@pytest.mark.real
def test_most_of_mmrecs_own_models_build_and_step():
    mmrec = open_checkout(os.environ.get("MMREC", REAL))
    stepped = []
    for name in mmrec.models:
        try:
            model, batches = mmrec.build(name, "tiktok", scale=0.02, device="cpu")
            losses = model.calculate_loss(next(iter(batches)))
            sum(losses if isinstance(losses, tuple) else (losses,)).backward()
            stepped.append(name)
        except (InputError, RuntimeError) as error:
            print(name, error)
    assert len(stepped) >= 17
