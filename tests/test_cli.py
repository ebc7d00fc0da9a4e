"""The command line besides ``report`` (see test_runner): help, data, errors."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mmrec_helpers import cli
from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.data import load_mmrec
from mmrec_helpers.files import NotWritten
from mmrec_helpers.training.step import TrainingError


def test_help_needs_nothing_heavy():
    code = (
        "import sys; from mmrec_helpers.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'papermill'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"    {name}" in done.stdout for name in cli.available_commands())


@pytest.mark.parametrize("name", cli.available_commands())
def test_each_command_explains_itself_with_examples(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"examples:\n  python -m mmrec_helpers {name}" in capsys.readouterr().out


def test_the_commands_that_the_design_names_are_there():
    assert {"report", "log", "data"} <= set(cli.available_commands())


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["reprot"])
    assert stop.value.code == 2
    assert "invalid choice: 'reprot'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (InputError("x is 3: expected 4"), 2, "error: x is 3: expected 4\n"),
        (
            NotWritten("cannot write a.json: No space left on device"),
            1,
            "error: cannot write a.json: No space left on device\n",
        ),
        (KeyboardInterrupt(), 130, "\ninterrupted; go on with: python -m mmrec_helpers data\n"),
        (TrainingError("epoch 0: the loss is nan"), 1, "error: epoch 0: the loss is nan\n"),
        (MemoryError("Unable to allocate 7 GiB"), 1, "error: host memory is exhausted (Unable to allocate 7 GiB)\n"),
    ],
)
def test_expected_errors_are_one_line(monkeypatch, capsys, error, status, text):
    monkeypatch.setattr("mmrec_helpers.cli.data.run", lambda args: (_ for _ in ()).throw(error))
    assert main(["data"]) == status
    assert capsys.readouterr().err == text


def test_what_the_notebooks_need_is_named_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbformat", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "mmrec_helpers.pages.collection", raising=False)
    assert main(["report", "--list"]) == 2
    assert "error: `report` needs nbformat, which is not installed: pip install" in capsys.readouterr().err


def test_what_an_interrupt_leaves_half_made_goes_quietly(monkeypatch, capsys):
    class Half:
        def __del__(self):
            raise AttributeError("no _ptr")

    def run(args):
        half = Half()
        raise KeyboardInterrupt(repr(half))

    monkeypatch.setattr("mmrec_helpers.cli.data.run", run)
    monkeypatch.setattr("sys.unraisablehook", print)
    assert main(["data"]) == 130
    assert capsys.readouterr().out == ""


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("mmrec_helpers.cli.data.run", lambda args: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["data"])


def test_data_lists_the_presets(capsys):
    assert main(["data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "preset",
        "embedded",
        "music4all",
        "baby",
        "sports",
        "clothing",
        "tiktok",
    ]
    assert "4,082,045" in lines[2]


def test_a_preset_is_written_and_checked(tmp_path, capsys):
    folder = str(tmp_path / "small")
    assert main(["data", "synthesize", "embedded", folder, "--seed", "1", "--scale", "0.5"]) == 0
    written = capsys.readouterr().out
    assert main(["data", "check", folder, "--visual", "image_feat.npy"]) == 0
    checked = capsys.readouterr().out
    assert "users     400" in written
    assert "features  visual 64 wide, textual 32 wide" in written
    assert "features  visual 64 wide\n" in checked
    assert load_mmrec(folder).n_users == 400


def test_a_bad_data_set_is_one_clear_error(tmp_path, capsys):
    (tmp_path / "x.inter").write_text("userID\titemID\tx_label\n0\t0\t0\n1\t1\t7\n")
    np.save(tmp_path / "image_feat.npy", np.ones((2, 3), dtype=np.float32))
    assert main(["data", "check", str(tmp_path), "--visual", "image_feat.npy"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "x.inter" in error
    assert "7" in error


LOG = """\
Mon 05 Jan 2026 10:00:00 INFO ██Model: \tGRCN
Mon 05 Jan 2026 10:00:00 INFO ██Dataset: \tbaby
Mon 05 Jan 2026 10:00:00 INFO
=========1/1: Parameters:['seed']=(999,)=======
Mon 05 Jan 2026 10:00:09 INFO epoch 0 training [time: 8.50s, train loss: 12.5000]
Mon 05 Jan 2026 10:00:11 INFO epoch 0 evaluating [time: 1.20s, valid_score: 0.050000]
Mon 05 Jan 2026 10:00:11 INFO valid result:
recall@20: 0.0500    ndcg@20: 0.0200
"""


def test_a_log_is_printed_and_written_as_csv(tmp_path, capsys):
    log = tmp_path / "GRCN-baby-Jan-05-2026-10-00-00.log"
    log.write_text(LOG, encoding="utf-8")
    assert main(["log", str(log)]) == 0
    head, run, _, epoch = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("GRCN-baby-Jan-05-2026-10-00-00.log: GRCN on baby")
    assert "seed 999; median epoch 8.5 s" in run
    assert epoch.split()[:4] == ["0", "8.5", "12.5", "0.05"]
    out = tmp_path / "epochs.csv"
    again = tmp_path / "GRCN-baby-Jan-06-2026-10-00-00.log"
    again.write_text(LOG, encoding="utf-8")
    assert main(["log", str(log), str(again), "--csv", str(out)]) == 0
    table = pd.read_csv(out)
    assert table["epoch_s"].tolist() == [8.5, 8.5]
    assert table["file"].tolist() == [log.name, again.name]
    assert table["parameters"].tolist() == ['{"seed": 999}'] * 2
    assert main(["log", str(tmp_path / "none.log")]) == 2
    assert "none.log" in capsys.readouterr().err
