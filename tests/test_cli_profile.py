"""``profile``: the records of a notebook without a notebook, traces that open, and what is printed."""

import gzip
import json

import pytest

from mmrec_helpers.cli import main
from mmrec_helpers.records import read_record

SMALL = ["--scale", "0.1", "--batch-size", "256", "--repeats", "3", "--profiled-steps", "1", "--device", "cpu"]


def test_both_settings_leave_a_record_a_trace_and_a_tensorboard_log(tmp_path, capsys):
    assert main(["profile", *SMALL, "--settings", "plain", "diagnosed", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "GRCN's step over DRAGON's" in printed
    assert "routing.visual.0" in printed
    for name in ("plain", "diagnosed"):
        record = read_record(tmp_path / "records" / f"embedded-0.1-{name}.json", "epoch")
        assert record["content"]["settings_name"] == name
        assert [m["model"] for m in record["content"]["models"]] == ["GRCN", "DRAGON"]
        assert record["content"]["models"][0]["top_operators"]
        assert record["provenance"]["settings"]["settings"] == name
        assert str(tmp_path) not in json.dumps(record)
        folder = tmp_path / "traces" / f"embedded-0.1-{name}"
        names = {
            e["name"] for e in json.loads(gzip.decompress((folder / "GRCN.trace.json.gz").read_bytes()))["traceEvents"]
        }
        assert {"sampling", "data", "forward", "backward", "id_branch"} <= names
        assert ("copy.features" in names) == (name == "diagnosed")
        assert {path.name for path in (folder / "tensorboard").iterdir()} == {
            "GRCN.1.pt.trace.json.gz",
            "DRAGON.1.pt.trace.json.gz",
        }


def test_without_traces_there_are_records_alone(tmp_path, capsys):
    assert main(["profile", *SMALL, "--no-traces", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["records"]
    assert "trace:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--settings", "fast"], "settings"), (["--repeats", "0"], "repeats"), (["--profiled-steps", "0"], "profiled")],
)
def test_bad_options_are_refused_before_anything_runs(tmp_path, capsys, options, message):
    assert main(["profile", *options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
