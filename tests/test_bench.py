"""The benchmark: its arms and ratios, what it leaves out, MMRec's own objects, the command."""

import dataclasses
import sys
import textwrap

import numpy as np
import pytest
import torch

from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.experiments import bench
from mmrec_helpers.experiments.bench import Target, run_bench, targets
from mmrec_helpers.mmrec.checkout import make_models, own_steps
from mmrec_helpers.records import read_record
from tests.models_data import random_batch, small_data

DATA = small_data()
CHECKOUT = {  # stand-ins with MMRec's constructors: they read the configuration, the loader and the files it names
    "common/base.py": """
        import os
        import numpy as np
        from mmrec_helpers.data import Interactions

        def interactions(config, loader):
            matrix = loader.inter_matrix(form="coo")
            folder = config["data_path"] + config["dataset"]
            files = {"visual": config["vision_feature_file"], "textual": config["text_feature_file"]}
            features = {m: np.load(os.path.join(folder, f)) for m, f in files.items()}
            users, items = loader.dataset.get_user_num(), loader.dataset.get_item_num()
            assert config["not there"] is None
            return Interactions.from_arrays(users, items, train=np.stack((matrix.row, matrix.col)), features=features)
        """,
    "models/grcn.py": """
        from common.base import interactions
        from tests import mmrec_objects

        class GRCN(mmrec_objects.GRCN):
            def __init__(self, config, dataset):
                super().__init__(interactions(config, dataset), n_layers=config["n_layers"], calls_cuda=True)
        """,
    "models/dragon.py": """
        import os
        import numpy as np
        from common.base import interactions
        from tests import mmrec_objects

        class DRAGON(mmrec_objects.DRAGON):
            def __init__(self, config, dataset):
                super().__init__(interactions(config, dataset), n_layers=config["n_mm_layers"], registers_result=True)
                path = os.path.join(config["data_path"] + config["dataset"], config["user_graph_dict_file"])
                self.user_graph_dict = np.load(path, allow_pickle=True).item()
        """,
}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("MMREC_HELPERS_CACHE", "off")


@pytest.fixture
def checkout(tmp_path):
    for name, text in CHECKOUT.items():
        file = tmp_path / "MMRec" / "src" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return tmp_path / "MMRec"


@pytest.fixture
def quick(monkeypatch):
    """Memory is not measured: that runs every arm under the profiler."""
    profile = type("Profile", (), {"peak_bytes": 4096})()
    monkeypatch.setattr(bench, "measure_memory", lambda function, device: (function(), profile)[1])


def test_arms_ratios_and_epochs(quick):
    content = run_bench(DATA, backends=("reference", "sparse"), batch_size=64, repeats=3)
    heaps = {entry["heap"] for entry in content["groups"]}
    arms = {entry["group"]: [row["name"] for row in entry["timings"]["table"]] for entry in content["groups"]}
    assert arms["step"] == [
        *("GRCN reference", "GRCN sparse", "GRCN sparse live 1", "GRCN sparse live 3"),
        *("DRAGON reference", "DRAGON sparse"),
    ]
    assert arms["attention"] == ["reference live 3", "sparse", "sparse live 1", "sparse live 3"]
    assert "evaluation" not in arms  # neither validation nor test data
    ratios = [row for row in content["ratios"] if row["what"] == "GRCN step, as shipped"]
    assert [row["rounds"] for row in ratios] == [3] * len(heaps)
    step = next(entry["timings"]["ms"] for entry in content["groups"] if entry["group"] == "step")
    expected = np.median(np.array(step["GRCN reference"]) / np.array(step["GRCN sparse"]))
    assert ratios[0]["median"] == pytest.approx(expected)
    assert all(row["verdict"] == "" and row["least"] is None for row in content["ratios"])  # not the data they are for
    epoch = content["epochs"][0]
    assert epoch["steps"] == -(-DATA.train.shape[1] // 64)
    assert epoch["steps_s"] == pytest.approx(epoch["steps"] * np.median(step["GRCN reference"]) / 1e3)
    assert {(entry["group"], entry["arm"]) for entry in content["memory"]} >= {("sampler", "epoch")}
    assert content["left_out"] == []


@pytest.mark.parametrize(
    ("ratio", "below", "verdict"),
    [(10, False, "aim reached"), (8, False, "reached"), (7.9, False, "missed"), (12, True, "missed")],
)
def test_verdicts(ratio, below, verdict):
    limits = (10, 8) if below else (8, 10)
    assert Target("x", "step", "a", "b", *limits, below).verdict(ratio) == verdict


def test_limits_are_told_for_the_data_they_are_meant_for(quick):
    baby = dataclasses.replace(DATA, name="baby")
    content = run_bench(baby, backends=("reference", "sparse"), batch_size=64, repeats=1)
    judged = [row for row in content["ratios"] if row["least"] is not None]
    assert {row["heap"] for row in judged} <= {"malloc trimming disabled", ""}
    assert all(row["verdict"] for row in judged)
    assert {target.least for target in targets("fused", cpu=False)} >= {10}


def test_what_would_not_fit_is_left_out_and_said(quick, monkeypatch, checkout):
    monkeypatch.setattr(bench, "HOST_LIMIT_BYTES", 2 * 2**20)
    with own_steps(checkout, DATA) as own:
        content = run_bench(DATA, backends=("reference", "sparse"), batch_size=64, repeats=1, own_models=own)
    left_out = {entry["arm"]: entry["reason"] for entry in content["left_out"]}
    assert {"GRCN reference", "MMRec GRCN"} <= left_out.keys()
    assert "predicted to need 0.0 GiB, more than 0.0 GiB" in left_out["GRCN reference"]
    arms = {row["name"] for entry in content["groups"] for row in entry["timings"]["table"]}
    assert {"GRCN sparse", "MMRec GRCN accelerated"} <= arms
    assert not {"GRCN reference", "MMRec GRCN", "reference live 3"} & arms


def test_a_backend_that_cannot_run_is_left_out(quick, monkeypatch):
    monkeypatch.setattr("mmrec_helpers.ops._fused_needs", lambda device: "numba")
    content = run_bench(DATA, backends=("sparse", "fused"), batch_size=64, repeats=1)
    assert content["fast"] == "sparse"
    assert [(e["arm"], "needs numba" in e["reason"]) for e in content["left_out"]] == [("fused", True)]
    with pytest.raises(InputError, match=r"none of the backends runs here: .* needs numba"):
        run_bench(DATA, backends=("fused",))


def test_mmrecs_own_objects_and_the_same_accelerated(checkout):
    with own_steps(checkout, DATA) as steps:
        assert list(steps) == ["MMRec GRCN", "MMRec GRCN accelerated", "MMRec DRAGON", "MMRec DRAGON accelerated"]
        batch = random_batch(DATA)
        before = batch.clone()
        losses = {name: step.loss(batch).item() for name, step in steps.items()}
        assert torch.equal(batch, before)
    for name in ("MMRec GRCN", "MMRec DRAGON"):
        assert losses[name] == pytest.approx(losses[f"{name} accelerated"], rel=1e-5)
    assert losses["MMRec GRCN"] != pytest.approx(losses["MMRec DRAGON"], rel=1e-2)


def test_a_checkout_leaves_no_names_behind(checkout):
    path, modules = list(sys.path), set(sys.modules)
    make_models(checkout, DATA)
    assert sys.path == path
    assert not {"models", "common"} & (set(sys.modules) - modules)


def test_no_checkout_is_refused(tmp_path, checkout):
    with pytest.raises(InputError, match=r"is not a checkout of MMRec: expected .*grcn\.py"):
        make_models(tmp_path, DATA)
    (checkout / "src" / "models" / "dragon.py").write_text("class DRAGON: pass\n")
    with pytest.raises(InputError, match=r"its DRAGON cannot be made for .*: TypeError"):
        make_models(checkout, DATA)


def test_the_command_prints_tables_and_writes_a_record(tmp_path, capsys, checkout):
    record = tmp_path / "bench.json"
    arguments = ["bench", "--dataset", "embedded", "--scale", "0.1", "--device", "cpu", "--repeats", "1"]
    arguments += ["--backends", "reference", "sparse", "--batch-size", "64"]
    assert main([*arguments, "--mmrec", str(checkout), "--out", str(record), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "MMRec GRCN, accelerated" in printed
    assert "evaluation" in printed
    assert "peak MB" in printed
    stored = read_record(record, "bench")
    assert stored["provenance"]["settings"]["batch_size"] == 64
    assert stored["content"]["threads"] == 1
    peaks = {(entry["group"], entry["arm"]): entry["peak_bytes"] for entry in stored["content"]["memory"]}
    assert peaks["step", "GRCN reference"] > 2 * peaks["step", "GRCN sparse"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "dense"], "unknown backend 'dense': expected one of reference, sparse, fused"),
        (["--repeats", "0"], "repeats is 0: expected an integer of at least 1"),
        (["--threads", "-1"], "threads is -1: expected an integer of at least 0"),
        (["--mmrec", "nowhere"], "nowhere is not a checkout of MMRec"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(["bench", "--device", "cpu", "--scale", "0.1", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_only_the_models_asked_for_are_timed():
    content = run_bench(DATA, backends=("sparse",), models=("dragon",), batch_size=64, repeats=1)
    arms = {arm["name"] for entry in content["groups"] if entry["group"] == "step" for arm in entry["timings"]["table"]}
    assert arms == {"DRAGON sparse"}


@pytest.mark.parametrize(("every_s", "told"), [(0.0, True), (3600.0, False)])
def test_long_groups_tell_their_rounds(quick, monkeypatch, every_s, told):
    monkeypatch.setattr(bench, "_TOLD_EVERY_S", every_s)
    lines = []
    run_bench(DATA, backends=("sparse",), models=("grcn",), batch_size=64, repeats=2, say=lines.append)
    assert ("step: 1 of at most 2 rounds" in lines) == told


def test_only_the_groups_asked_for_are_timed(quick):
    content = run_bench(DATA, backends=("sparse",), models=("grcn",), groups=("attention",), batch_size=64, repeats=1)
    assert {entry["group"] for entry in content["groups"]} == {"attention", "sampler"}
    assert main(["bench", "--groups", "step", "epochs"]) == 2
