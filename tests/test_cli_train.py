"""``train``: a record of the course, one clear error for what cannot be trained."""

import pytest

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
