"""``train``: a record of the course, one clear error for what cannot be trained."""

from dataclasses import replace
from functools import partial

import pytest

from mmrec_helpers import training
from mmrec_helpers.cli import main
from mmrec_helpers.records import read_record

SMALL = ["--dataset", "embedded", "--scale", "0.1", "--epochs", "2", "--batch-size", "512", "--device", "cpu"]


def test_training_leaves_a_record_of_every_epoch(tmp_path, capsys):
    out = tmp_path / "records" / "training-grcn.json"
    options = ["-o", "reg_weight", "0.01", "-o", "routing", "live", "--backend", "sparse"]
    assert main(["train", "grcn", *SMALL, *options, "--out", str(tmp_path)]) == 0
    content = read_record(out, "training")["content"]
    assert content["options"] == {"reg_weight": 0.01, "routing": "live"}
    assert [row["epoch"] for row in content["epochs"]] == [0, 1]
    assert content["test"]["recall@20"] > 0
    assert "2 epochs trained" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_record(tmp_path):
    found = []
    for name in ("a", "b"):
        main(["train", "lightgcn", *SMALL, "--backend", "sparse", "--out", str(tmp_path / name)])
        content = read_record(tmp_path / name / "records" / "training-lightgcn.json")["content"]
        found.append(([row["loss"] for row in content["epochs"]], content["test"]))
    assert found[0] == found[1]


def test_an_interrupted_training_does_not_replace_the_record_of_a_complete_one(tmp_path, capsys, monkeypatch):
    words, record = ["train", "lightgcn", *SMALL, "--out", str(tmp_path)], "records/training-lightgcn.json"
    whole = training.fit
    interrupted = partial(_stopped, whole, "interrupted")
    monkeypatch.setattr(training, "fit", interrupted)
    assert main(words) == 130
    assert read_record(tmp_path / record)["content"]["stopped"] == "interrupted"
    monkeypatch.setattr(training, "fit", whole)
    assert main(words) == 0  # one that was interrupted is replaced
    complete = (tmp_path / record).read_bytes()
    monkeypatch.setattr(training, "fit", interrupted)
    assert main(words) == 130
    assert (tmp_path / record).read_bytes() == complete
    assert "the record of an earlier, complete training stays" in capsys.readouterr().err


def _stopped(fit, why, *args, **options):
    return replace(fit(*args, **options), stopped=why)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-o", "depth", "3"], "unknown grcn option 'depth'"),
        (["-o", "routing", "dead"], "unknown routing 'dead'"),
        (["--learning-rate", "-1"], "learning_rate is -1.0"),
        (["--epochs", "-1"], "epochs is -1"),
    ],
)
def test_bad_settings_are_one_clear_error_and_leave_no_record(tmp_path, capsys, arguments, text):
    out = tmp_path / "out"
    assert main(["train", "grcn", *SMALL, *arguments, "--out", str(out)]) == 2
    assert text in capsys.readouterr().err
    assert not out.exists()
