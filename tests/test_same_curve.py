"""Reference and fused from one seed give the same losses; another seed or another model does not."""

import json

import pytest

from mmrec_helpers.__main__ import main
from mmrec_helpers.config import InputError
from mmrec_helpers.data import synthesize
from mmrec_helpers.experiments import same_curve as module
from mmrec_helpers.experiments.same_curve import ARMS, CurveArm, same_curve

DATA = synthesize("embedded", scale=0.15)
QUICK = {"epochs": 3, "batch_size": 256}


@pytest.mark.parametrize("arm", ARMS)
def test_two_backends_train_the_same_curve(arm):
    content = same_curve(DATA, arm, **QUICK)
    assert content["same"], content["loss_differences"]
    assert max(content["loss_differences"]) < 1e-4
    assert len(content["metric_differences"]) == 3
    assert content["time_ratio"] > 0
    reference = content["runs"]["reference"]["loss"]
    assert len(set(reference)) == 3


def test_control_two_models_do_not(monkeypatch):
    losses = {arm: same_curve(DATA, arm, **QUICK)["runs"]["fused"]["loss"] for arm in ("GRCN as shipped", "GRCN live")}
    shipped, live = losses.values()
    assert max(abs(a - b) / a for a, b in zip(shipped, live, strict=True)) > 1e-4
    monkeypatch.setitem(ARMS, "GRCN live", CurveArm("grcn", {"routing": "live"}, learning_rate=2e-3))
    assert same_curve(DATA, "GRCN live", **QUICK)["runs"]["fused"]["loss"] != live


def test_control_a_difference_beyond_rounding_is_told(monkeypatch):
    monkeypatch.setattr(module, "ROUNDING", 0.0)
    assert not same_curve(DATA, "DRAGON", **QUICK)["same"]


def test_bad_input():
    with pytest.raises(InputError, match="arm"):
        same_curve(DATA, "NGCF")
    with pytest.raises(InputError, match="two different"):
        same_curve(DATA, "DRAGON", backends=("fused", "fused"))


def test_command_adds_an_arm_to_its_record(tmp_path, capsys):
    record = tmp_path / "curves.json"
    plain = ["curves", "--scale", "0.15", "--epochs", "1", "--device", "cpu", "--out", str(record)]
    assert main([*plain, "--arms", "DRAGON"]) == 0
    assert main([*plain, "--arms", "GRCN live", "--add"]) == 0
    assert "GRCN live: the same curve" in capsys.readouterr().out
    content = json.loads(record.read_text())["content"]
    assert [arm["arm"] for arm in content["arms"]] == ["DRAGON", "GRCN live"]
    assert main([*plain, "--seed", "1", "--arms", "DRAGON", "--add"]) == 2
    assert "of other data" in capsys.readouterr().err
