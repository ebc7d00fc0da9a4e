"""Runs on a local cluster and on a scheduler elsewhere: what comes back, and what a loss leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from mmrec_helpers.cli import main
from mmrec_helpers.config import InputError
from mmrec_helpers.data import DataSource
from mmrec_helpers.experiments import cluster
from mmrec_helpers.experiments.accuracy.runs import read_study, run_study
from mmrec_helpers.experiments.accuracy.study import StudySettings
from mmrec_helpers.experiments.cluster import Payload, do_runs, open_engine
from mmrec_helpers.progress import describe, watch
from mmrec_helpers.training.step import TrainingError
from tests.models_data import small_data

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
ROOT = Path(__file__).resolve().parents[1]
SOURCE = DataSource(scale=0.1)
TINY = StudySettings(
    variants=("grcn", "lightgcn", "popularity"), seeds=2, searched=2, epochs=2, batch_size=128, backend="sparse"
)


@dataclass(frozen=True)
class Named:
    name: str


class Numbers:
    """Runs named 0, 1, ..."""

    def __init__(self, total):
        self.total, self.done = total, {}

    def ready(self):
        return [Named(str(n)) for n in range(self.total) if str(n) not in self.done]

    def keep(self, run, result):
        self.done[run.name] = result
        return f"gave {result}"


def square(payload, run):
    return int(run.name) ** 2


def threads(payload, run):
    return torch.get_num_threads()


def is_profiled(payload, run):
    import dask

    return dask.config.get("distributed.worker.profile.enabled")


def fingerprint(payload, run):
    return payload.fingerprint


def die(folder, payload, run):
    """Run 1 kills its worker: each time, or the first time where there is a folder for a mark."""
    if run.name == "1" and not (folder and (Path(folder) / "died").exists()):
        if folder:
            (Path(folder) / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(payload, run)


def die_afterwards(folder, payload, run):
    """Run 1 gives its result, and its worker dies before that has been fetched; the first time."""
    if run.name == "1" and not (Path(folder) / "died").exists():
        (Path(folder) / "died").touch()
        threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGKILL]).start()
        return square(payload, run), bytes(10**8)
    return square(payload, run)


def out_of_memory(payload, run):
    if run.name == "1":
        raise MemoryError("16 GiB")
    return square(payload, run)


def diverge(payload, run):
    if run.name == "1":
        raise TrainingError("the loss is nan")
    return square(payload, run)


def done_by(make, engine=None, total=3, **where):
    """The results by name, and what was said of them."""
    runs, said = Numbers(total), []
    with nullcontext(engine) if engine else open_engine(Payload(small_data()), **where) as engine:
        try:
            do_runs(engine, make, runs, said.append)
        except TrainingError as error:
            said.append(str(error))
    return runs.done, said


@pytest.fixture(scope="module")
def engines():
    """One job, and a local cluster of two, as if there were six cores."""
    payload = Payload(small_data())
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "_cores", lambda: 6)
        with open_engine(payload) as here, open_engine(payload, jobs=2) as two:
            yield {"here": here, "local cluster": two}
    assert {name: os.environ.get(name) for name in before} == before


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Elsewhere:
    """A scheduler and a worker in processes of their own."""

    def __init__(self, folder, port=0, nthreads=1):
        self.file = Path(folder) / f"scheduler-{time.monotonic_ns()}.json"
        common = ["--host", "127.0.0.1", "--no-dashboard"]
        self.scheduler = self.start("scheduler", "--scheduler-file", self.file, "--port", port, *common)
        while not self.file.exists():
            assert self.scheduler.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)
        self.address = json.loads(self.file.read_text())["address"]
        self.worker = self.start(
            "worker", self.address, "--nthreads", nthreads, "--host", "127.0.0.1", "--no-dashboard"
        )

    def start(self, what, *options):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *map(str, options)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)

    def stop(self):
        for process in (self.scheduler, self.worker):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    there = Elsewhere(tmp_path_factory.mktemp("elsewhere"))
    yield there
    there.stop()


def without_the_engine(code, *arguments):
    """What a process says in which dask cannot be imported; here it would be missing to engines that are open, too."""
    code = f"import sys\nsys.modules |= {{'dask': None, 'distributed': None}}\n{code}"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_one_job_starts_no_cluster():
    code = "from tests.test_cluster import *; print(done_by(square)[0])\ntry: done_by(square, jobs=2)\n"
    done = without_the_engine(f"{code}except ModuleNotFoundError as error: print(error.name)")
    assert done.stdout.splitlines() == ["{'0': 0, '1': 1, '2': 4}", "dask"], done.stderr


def test_without_the_engine_a_command_says_what_to_install(tmp_path):
    code = "from mmrec_helpers.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["study", "--scale", "0.1", "--jobs", "2", "--variants", "popularity", "--out", str(tmp_path)]
    done = without_the_engine(code, *arguments)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: `study` needs dask, which is not installed: pip install 'mmrec-helpers[notebooks]'")


def test_records_are_equal_whatever_makes_the_runs(tmp_path, one_thread, elsewhere):
    from tests.test_kills import without_times

    run_study(SOURCE, TINY, tmp_path / "here")
    expected = {name: without_times(record["content"]) for name, record in read_study(tmp_path / "here").items()}
    assert len(expected) == 7
    for place, where in (("two", {"jobs": 2}), ("elsewhere", {"scheduler": elsewhere.address})):
        run_study(SOURCE, TINY, tmp_path / place, **where)
        found = {name: without_times(record["content"]) for name, record in read_study(tmp_path / place).items()}
        assert found == expected
        assert all(record["content"]["beside_other_work"] for record in read_study(tmp_path / place).values())


def test_a_run_whose_worker_dies_is_made_again_and_one_that_kills_every_worker_is_named(tmp_path, engines):
    found, said = done_by(partial(die, str(tmp_path)), engines["local cluster"])
    assert (tmp_path / "died").exists()
    assert (found, len(said)) == ({"0": 0, "1": 1, "2": 4}, 3)
    found, said = done_by(partial(die, ""), engines["local cluster"], total=6)
    assert found == {str(n): n**2 for n in range(6) if n != 1}
    assert said[-1].startswith("1 was not made: its workers died, most likely for want of memory")


def test_a_result_that_is_lost_on_its_way_is_made_again(tmp_path, engines):
    found, said = done_by(partial(die_afterwards, str(tmp_path)), engines["local cluster"])
    assert (tmp_path / "died").exists()
    assert (found, len(said)) == ({"0": 0, "1": 1, "2": 4}, 3)


@pytest.mark.parametrize("where", ["here", "local cluster"])
@pytest.mark.parametrize(
    ("make", "why"), [(out_of_memory, "host memory is exhausted (16 GiB)"), (diverge, "the loss is nan")]
)
def test_a_run_that_fails_is_named_and_the_others_are_made(make, why, where, engines):
    found, said = done_by(make, engines[where])
    assert found == {"0": 0, "2": 4}
    assert said[-1] == f"1 was not made: {why}; what is done is kept: the same command tries the rest again"


def test_anything_else_that_a_run_raises_is_raised():
    with pytest.raises(ValueError, match="invalid literal"):
        done_by(lambda payload, run: int("x"))


def test_workers_share_the_cores(engines):
    assert done_by(threads, engines["local cluster"])[0] == {"0": 3, "1": 3, "2": 3}


def test_workers_here_do_not_sample_their_stacks(engines):
    assert done_by(is_profiled, engines["local cluster"])[0] == {"0": False, "1": False, "2": False}


def test_the_data_is_known_by_its_fingerprint(elsewhere):
    here = Payload(small_data()).fingerprint
    assert set(done_by(fingerprint, scheduler=elsewhere.address)[0].values()) == {here}
    assert Payload(small_data(), {"a": b"1"}).fingerprint != Payload(small_data(), {"a": b"2"}).fingerprint != here


class LostAfterTwo(Numbers):
    """Kills a process when it has two results."""

    def __init__(self, total, process):
        super().__init__(total)
        self.process = process

    def keep(self, run, result):
        if len(self.done) == 1:
            self.process.kill()
        return super().keep(run, result)


def test_a_lost_scheduler_loses_no_finished_run(tmp_path):
    there = Elsewhere(tmp_path)
    runs = LostAfterTwo(8, there.scheduler)
    try:
        with (
            pytest.raises(TrainingError, match="scheduler or its workers' data are lost; finished runs are kept"),
            open_engine(Payload(small_data()), scheduler=there.address) as engine,
        ):
            do_runs(engine, slow_square, runs, print)
    finally:
        there.stop()
    kept, said, again = len(runs.done), [], Elsewhere(tmp_path)
    assert 2 <= kept < 8
    try:
        with open_engine(Payload(small_data()), scheduler=again.address) as engine:
            do_runs(engine, square, runs, said.append)
    finally:
        again.stop()
    assert len(runs.done) == 8
    assert len(said) == 8 - kept


def slow_square(payload, run):
    time.sleep(0.3)
    return square(payload, run)


def other_code():
    return "0" * 16


def other_torch(own):
    def get_versions(client, **options):
        found = own(client, **options)
        for worker in found["workers"].values():
            worker["packages"]["torch"] = "2.4.1+cpu"
        return found

    return get_versions


def test_workers_with_other_versions_or_code_are_refused(elsewhere, monkeypatch):
    import distributed

    where = {"scheduler": elsewhere.address}
    monkeypatch.setattr(cluster, "code_digest", other_code)
    with pytest.raises(InputError, match=r"worker tcp://.* has other code of mmrec_helpers"):
        done_by(square, **where)
    monkeypatch.undo()
    monkeypatch.setattr(distributed.Client, "get_versions", other_torch(distributed.Client.get_versions))
    with pytest.raises(InputError, match=rf"worker tcp://.* has torch 2\.4\.1: expected {torch.__version__[:4]}.*here"):
        done_by(square, **where)
    monkeypatch.undo()
    assert done_by(square, **where)[0] == {"0": 0, "1": 1, "2": 4}


def test_builds_of_one_version_are_not_other_versions():
    there, here = {"packages": {"torch": "2.13.0+cu130", "python": "3.11.9.final.0"}}, "2.13.0+cpu"
    cluster._check_versions("worker", there, {"torch": here, "python": "3.11.7.final.0"}, ("torch", "python"))
    with pytest.raises(InputError, match=r"worker has python 3.11: expected 3.12"):
        cluster._check_versions("worker", there, {"torch": here, "python": "3.12.1.final.0"}, ("torch", "python"))


def test_a_worker_of_several_threads_is_refused(tmp_path):
    there = Elsewhere(tmp_path, nthreads=2)
    try:
        with pytest.raises(InputError, match=r"worker tcp://.* has 2 threads: expected one"):
            done_by(square, scheduler=there.address)
    finally:
        there.stop()


def test_a_scheduler_that_does_not_answer_is_one_line_before_any_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cluster, "_CONNECT_S", 1)
    arguments = ["study", "--scale", "0.1", "--out", str(tmp_path / "out"), "--scheduler"]
    assert main([*arguments, "tcp://127.0.0.1:9"]) == 2
    assert main([*arguments, "nonsense"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: --scheduler ") and "no dask scheduler answers" in line for line in said] == [
        True
    ] * 2
    assert not (tmp_path / "out").exists()


def test_a_scheduler_without_workers_is_refused(monkeypatch, tmp_path):
    there = Elsewhere(tmp_path)
    there.worker.kill()
    there.worker.wait()
    monkeypatch.setattr(cluster, "_WORKERS_S", 1)
    try:
        with pytest.raises(InputError, match=r"no worker came in 1 s: start some by `dask worker tcp://"):
            done_by(square, scheduler=there.address)
    finally:
        there.stop()


def test_the_bar_says_what_runs_and_what_failed(engines):
    seen = []

    class Bar:
        def __call__(self, levels):
            seen.append(describe("study", levels, 1))

        def close(self):
            pass

    with watch(Bar()):
        done_by(diverge)
        done_by(square, engines["local cluster"])
    text = "\n".join(seen)
    assert "study: training run 1/3 · 1 s" in seen
    assert "1 failed, about 0 s left, training run 3/3" in text
    assert "2 running, training run 1/3" in text
