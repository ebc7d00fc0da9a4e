"""What the commands refuse to write over, and that they say so before the work begins: nothing lost, one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.data import DataSource, synthesize, write_mmrec
from mmrec_helpers.experiments import catalogue
from mmrec_helpers.experiments.steps import memory_advice
from mmrec_helpers.files import NotWritten, check_file, check_folder, only_writer
from mmrec_helpers.records import check_record_path, read_record, write_record

SMALL = ["--scale", "0.1", "--device", "cpu", "--batch-size", "256"]
TRAIN = ["train", "lightgcn", *SMALL, "--epochs", "1", "--backend", "sparse"]
STUDY = ["study", *SMALL, "--epochs", "1", "--variants", "popularity", "--backend", "sparse"]
MEASURE = ["measure", "data", *SMALL]
LOG = (
    "Mon 05 Jan 2026 10:00:00 INFO ██Model: \tGRCN\nMon 05 Jan 2026 10:00:00 INFO ██Dataset: \tbaby\n"
    "Mon 05 Jan 2026 10:00:09 INFO epoch 0 training [time: 8.50s, train loss: 12.5000]\n"
)


@pytest.fixture
def no_work(monkeypatch):
    """Any work is a failure: the refusal has to come first."""
    monkeypatch.setattr(DataSource, "open", lambda self: pytest.fail("the data set was opened"))
    monkeypatch.setattr("mmrec_helpers.data.synthesize", lambda *_, **__: pytest.fail("generated"))
    monkeypatch.setattr("mmrec_helpers.mmrec.read_log", lambda *_: pytest.fail("the log was read"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a user's own files, which must be the same afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("precious.txt", "records/training-lightgcn.json", "records/01-data.json", "records/accuracy.json"):
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", name).write_text("my own")
    Path("run.log").write_text(LOG, encoding="utf-8")
    yield tmp_path
    assert {path.read_text() for path in Path("mine").rglob("*") if path.is_file()} == {"my own"}
    assert len(list(Path("mine").rglob("*"))) == 5
    assert Path("run.log").read_text(encoding="utf-8") == LOG
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "run.log"]


def refused(capsys, words, status=2):
    assert main(words) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TRAIN, "--out", "mine"], "training-lightgcn.json exists and is no record of kind 'training'"),
        ([*STUDY, "--out", "mine"], "accuracy.json exists and is no record of kind 'accuracy'"),
        ([*MEASURE, "--out", "mine"], "01-data.json exists and is no record of kind 'data'"),
        ([*TRAIN, "--out", "new", "--checkpoint", "mine/precious.txt"], "precious.txt exists and is no checkpoint"),
        ([*TRAIN, "--out", "new", "--checkpoint", "mine"], "checkpoint mine is a folder"),
        (["log", "run.log", "--csv", "mine/precious.txt"], "precious.txt exists and is no table of epochs"),
        (["log", "run.log", "--csv", "run.log"], "run.log exists and is no table of epochs"),
        (["log", "run.log", "--csv", os.devnull], f"{os.devnull} exists and is no table of epochs"),
        (["log", "run.log", "--csv", ""], "the path is empty"),
        ([*TRAIN, "--out", ""], "path is empty"),
        ([*STUDY, "--out", ""], "path is empty"),
        ([*MEASURE, "--out", ""], "path is empty"),
        ([*TRAIN, "--out", "new", "--checkpoint", ""], "the path is empty"),
        (["data", "synthesize", "embedded", ""], "path is empty"),
        (["data", "synthesize", "embedded", "mine"], "exists already"),
        ([*TRAIN, "--out", "new", "--checkpoint", "new"], "--checkpoint new: the record"),
        ([*TRAIN, "--out", "new", "--checkpoint", "new/records"], "--checkpoint new/records: the record"),
        ([*TRAIN, "--out", "new", "--checkpoint", "./new/records/training-lightgcn.json"], "expected another file"),
        ([*TRAIN, "--out", "new", "--seed", "18446744073709551616"], "seed is 18446744073709551616"),
        ([*TRAIN, "--out", "new", "--seed", "-1"], "seed is -1"),
        ([*TRAIN, "--out", "new", "-o", "seed", "3"], "-o seed: expected --seed 3"),
        ([*TRAIN, "--out", "new", "-o", "depth", "3"], "unknown lightgcn option 'depth'"),
        ([*TRAIN, "--out", "new", "--backend", "slow"], "unknown backend 'slow'"),
        ([*STUDY, "--out", "new", "--backend", "slow"], "unknown backend 'slow'"),
        ([*STUDY, "--out", "new", "--device", "tpu"], "unknown device 'tpu'"),
        ([*STUDY, "--out", "new", "--batch-size", "0"], "batch_size is 0"),
        ([*STUDY, "--out", "new", "--jobs", "0"], "jobs is 0"),
        ([*STUDY, "--out", "new", "--jobs", "2", "--scheduler", "tcp://host:1"], "--jobs 2 is the size of a cluster"),
        ([*MEASURE, "--out", "new", "--seed", str(2**64)], "seed is 18446744073709551616"),
        ([*MEASURE, "--out", "new", "--variants", "grcn-slow"], "unknown variant 'grcn-slow'"),
    ],
)
def test_bad_targets_and_options_are_refused_before_the_work(no_work, place, capsys, words, message):
    assert message in refused(capsys, words)


@pytest.mark.parametrize(
    "words",
    [
        [*TRAIN, "--out", "mine/precious.txt"],
        [*STUDY, "--out", "mine/precious.txt/sub"],
        [*MEASURE, "--out", "mine/precious.txt"],
        [*TRAIN, "--out", "new", "--checkpoint", "mine/precious.txt/c.pt"],
        ["log", "run.log", "--csv", "mine/precious.txt/e.csv"],
        ["data", "synthesize", "embedded", "mine/precious.txt"],
        ["data", "synthesize", "embedded", "mine/precious.txt/sub"],
    ],
)
def test_a_place_under_a_file_is_refused_before_the_work(no_work, place, capsys, words):
    assert "Not a directory" in refused(capsys, words, status=1)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no file system on which not even root may write")
@pytest.mark.parametrize(
    "words",
    [
        [*TRAIN, "--out", "/proc/x"],
        [*STUDY, "--out", "/proc/x"],
        [*MEASURE, "--out", "/proc/x"],
        [*TRAIN, "--out", "new", "--checkpoint", "/proc/x"],
        ["log", "run.log", "--csv", "/proc/x"],
        ["data", "synthesize", "embedded", "/proc/x"],
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(no_work, place, capsys, words):
    assert "cannot write to /proc" in refused(capsys, words, status=1)


def test_a_record_is_replaced_only_by_one_of_its_kind(tmp_path):
    path = write_record(tmp_path / "a.json", "data", {"n": 1})
    write_record(path, "data", {"n": 2})  # also one that lacks what its kind must hold now
    with pytest.raises(InputError, match="exists and is no record of kind 'steps'"):
        write_record(path, "steps", {})
    assert '"n": 2' in path.read_text()


def test_our_own_files_are_replaced(tmp_path, capsys):
    words = [*TRAIN, "--out", str(tmp_path), "--checkpoint", str(tmp_path / "new" / "c.pt")]
    assert [main(words), main([*words, "--epochs", "2"])] == [0, 0]
    assert len(read_record(tmp_path / "records" / "training-lightgcn.json")["content"]["epochs"]) == 2
    (tmp_path / "run.log").write_text(LOG, encoding="utf-8")
    words = ["log", str(tmp_path / "run.log"), "--csv", str(tmp_path / "e.csv")]
    assert [main(words), main(words)] == [0, 0]
    leftovers = [path for path in tmp_path.rglob(".*") if path.is_file()]
    assert leftovers == []


def test_a_full_disk_is_one_line_before_the_work(no_work, place, capsys, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmrec_helpers.files.tempfile.TemporaryFile", full)
    for words in ([*TRAIN, "--out", "new"], ["data", "synthesize", "embedded", "new"]):
        assert refused(capsys, words, status=1) == "error: cannot write to new: No space left on device\n"


# ------------------------------------------------------------------------------------------------ data sets


def test_a_data_set_goes_into_the_empty_folder_that_is_given(tmp_path):
    folder = tmp_path / "mount"
    folder.mkdir()
    inode = folder.stat().st_ino
    write_mmrec(synthesize("embedded", scale=0.1), folder)
    assert folder.stat().st_ino == inode
    assert sorted(path.suffix for path in folder.iterdir()) == [".inter", ".npy", ".npy"]


@pytest.mark.parametrize("there", [False, True])
def test_a_data_set_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch, there):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "new"
    if there:
        folder.mkdir()
    monkeypatch.setattr("mmrec_helpers.data.mmrec_files.np.save", full)
    with pytest.raises(NotWritten, match="No space left"):
        write_mmrec(synthesize("embedded", scale=0.1), folder)
    assert list(tmp_path.rglob("*")) == ([folder] if there else [])


def test_what_a_killed_one_left_is_no_obstacle_but_a_users_file_is(tmp_path):
    data, killed = synthesize("embedded", scale=0.1), f".x.inter.{'0' * 32}.tmp"
    for number, (names, free) in enumerate(
        [([killed], True), ([killed, "image_feat.npy"], True), (["image_feat.npy"], False), ([killed, "a.txt"], False)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
        if free:
            write_mmrec(data, folder)
            assert len(list(folder.iterdir())) == 3
        else:
            with pytest.raises(InputError, match="exists already"):
                write_mmrec(data, folder)
            assert sorted(path.name for path in folder.iterdir()) == sorted(names)


# ------------------------------------------------------------------------------------------------ two at once

HOLD = """
import sys, time
from mmrec_helpers.files import only_writer
with only_writer(*sys.argv[1:]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    """Starts another process that holds a lock."""
    started = []

    def start(*words):
        process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, words)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_of_two_writers_is_told_of_the_other_and_a_killed_one_is_in_nobodys_way(tmp_path, holder):
    process = holder(tmp_path / "run")
    with pytest.raises(NotWritten, match="another process is writing it"), only_writer(tmp_path / "run"):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / "run" / ".folder.lock").exists()
    with only_writer(tmp_path / "run"), only_writer(tmp_path / "run", "other.json"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "lock"),
    [
        ([*TRAIN, "--out", "{}"], ["{}/records", "training-lightgcn.json"]),
        ([*TRAIN, "--out", "other", "--checkpoint", "{}/c.pt"], ["{}", "c.pt"]),
        ([*STUDY, "--out", "{}"], ["{}"]),
        ([*MEASURE, "--out", "{}"], ["{}/records", "01-data.json"]),
        (["data", "synthesize", "embedded", "{}", "--scale", "0.1"], ["{}"]),
    ],
)
def test_a_second_command_on_one_target_says_that_the_first_is_there(
    tmp_path, monkeypatch, capsys, holder, words, lock
):
    monkeypatch.chdir(tmp_path)
    holder(*(word.format("out") for word in lock))
    assert main([word.format("out") for word in words]) == 1
    out, err = capsys.readouterr()
    assert (out + err).count("another process is writing it") == 1
    assert "Traceback" not in err
    assert [path for path in Path("out").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_lock_and_a_temporary_that_are_in_use_stay(tmp_path):
    used, left = (tmp_path / f".a.json.{digit * 32}.tmp" for digit in "01")
    left.write_text("half")
    import fcntl

    with open(used, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_record(tmp_path / "b.json", "data", {})
        assert used.exists()
    assert not left.exists()


def test_two_processes_on_one_cache_both_complete(tmp_path):
    code = (
        "import numpy as np; from mmrec_helpers.data.cache import Expected, cached_arrays\n"
        "expected = {'x': Expected((200_000,), np.int64, 0, 300_000)}\n"
        "for k in range(40): cached_arrays('g', str(k % 8), lambda: {'x': np.arange(200_000) + k % 8}, expected)\n"
    )
    environment = os.environ | {"MMREC_HELPERS_CACHE": str(tmp_path), "PYTHONWARNINGS": "error"}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 8


# ------------------------------------------------------------------------------------------------ failures on the way


def test_a_diverging_run_ends_in_one_line(tmp_path, capsys):
    words = ["train", "grcn", *SMALL, "--epochs", "3", "--learning-rate", "1e38", "--backend", "sparse"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(error) == 1
    assert "the loss is nan" in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 7 GiB"), "host memory is exhausted (Unable to allocate 7 GiB); predicted"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "GPU memory is"),
        (RuntimeError("[enforce] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), "8 bytes"),
        (RuntimeError("std::bad_alloc"), "host memory is exhausted (std::bad_alloc)"),
    ],
)
def test_exhausted_memory_is_one_line_that_names_what_would_fit(tmp_path, monkeypatch, capsys, error, said):
    def exhausted(*_, **__):
        raise error

    write_record(tmp_path / "records" / "run.json", "run", {})
    for place in ("mmrec_helpers.training.fit", "mmrec_helpers.experiments.accuracy.study.train_run"):
        monkeypatch.setattr(place, exhausted)
    part = catalogue.PARTS["data"]
    monkeypatch.setitem(catalogue.PARTS, "data", type(part)(part.name, part.home, part.about, exhausted))
    for words in (TRAIN, STUDY, MEASURE):
        assert main([*words, "--out", str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        line = next(line for line in (out + err).splitlines() if "exhausted" in line)
        assert said in line
        assert "grcn-fused" in line
        assert "--batch-size below 256" in line
        assert "--scale" in line
        assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["run.json"]


def test_other_errors_are_none_of_memory():
    with pytest.raises(RuntimeError, match="a bug"), memory_advice(synthesize("embedded", scale=0.1), "cpu", 1):
        raise RuntimeError("a bug")


LIMITED = """
import resource, sys, psutil
from mmrec_helpers import cli
from mmrec_helpers.experiments import steps, catalogue
from mmrec_helpers.models import build
build("lightgcn", steps.Interactions.from_arrays(1, 1, [[0], [0]]))
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 300 * 2**20, -1))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no limit on memory")
def test_memory_that_really_ends_is_one_line(tmp_path):
    words = ["train", "grcn", "--backend", "reference", "--epochs", "1", "--device", "cpu", "--scale", "3"]
    command = [sys.executable, "-c", LIMITED, *words, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: host memory is exhausted" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ other users


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
@pytest.mark.parametrize("place", ["out", "locked/out"])
def test_another_user_without_a_home_and_with_a_checkout_that_is_read_only(tmp_path, place):
    for path in (tmp_path, *tmp_path.parents):
        if not path.stat().st_mode & 0o005:
            path.chmod(path.stat().st_mode | 0o055)
    (tmp_path / "locked").mkdir()
    tmp_path.chmod(0o777)
    # It may read everything, since the interpreter may lie in root's home, but write only what is its own.
    user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    user += [
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=-all,+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    ]
    user += ["env", "-u", "HOME", "-u", "COVERAGE_PROCESS_CONFIG"]  # nor may it write coverage's file
    words = [*TRAIN[:2], *SMALL, "--epochs", "1", "--out", place]
    done = subprocess.run(
        [*user, f"PYTHONPATH={Path.cwd()}", sys.executable, "-m", "mmrec_helpers", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if place == "out" else 1), done.stderr
    if place != "out":
        assert done.stderr == "error: cannot write to locked/out: Permission denied\n"
    else:
        read_record(tmp_path / "out" / "records" / "training-lightgcn.json")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["locked", "out"]  # and no folder named "~"


def test_the_checks_leave_nothing_behind(tmp_path):
    check_folder(tmp_path / "a" / "b")
    check_file(tmp_path / "a" / "c.txt", "text", lambda path: True)
    check_record_path(tmp_path / "a" / "d.json", "data")
    assert list(tmp_path.iterdir()) == []
