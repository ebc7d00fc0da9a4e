"""Commands that are killed at random moments: started again, they end as if nothing had happened.

The plain run kills a few; ``pytest -m slow tests/test_kills.py`` kills two hundred (some 20 minutes on two cores).
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from mmrec_helpers.cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

SMALL = ["--scale", "0.1", "--device", "cpu", "--batch-size", "64"]
LOG = "Mon 05 Jan 2026 10:00:00 INFO ██Model: \tGRCN\nMon 05 Jan 2026 10:00:00 INFO ██Dataset: \tbaby\n"
EPOCH = "Mon 05 Jan 2026 10:00:09 INFO epoch {} training [time: 8.50s, train loss: 12.5]\n"
LOG += "".join(EPOCH.format(number) for number in range(999))
COMMANDS = {
    "synthesize": ["data", "synthesize", "embedded", "out"],
    "train": ["train", "grcn", *SMALL, "--epochs", "12", "--out", "out", "--checkpoint", "out/c.pt"],
    "train-anew": ["train", "lightgcn", *SMALL, "--epochs", "12", "--out", "out"],
    "study": ["study", *SMALL, "--epochs", "2", "--seeds", "2", "--searched", "2", "--out", "out"],
    "measure": ["measure", "data", "structure-grcn", "structure-dragon", *SMALL, "--out", "out"],
    "log": ["log", "run.log", "--csv", "out/epochs.csv"],
    "report": ["report", "--notebooks", "books", "--run", "./out", "--scale", "0.1", "--device", "cpu"],
}
COMMANDS["study"] += ["--variants", "grcn", "lightgcn", "popularity"]
COMMANDS["study-jobs"] = [*COMMANDS["study"], "--jobs", "2"]
KILLS = {"synthesize": 40, "train": 40, "train-anew": 10, "study": 36, "study-jobs": 6, "measure": 32, "log": 20}
KILLS["report"] = 16
FEW = {"synthesize": 1, "train": 2, "study": 1, "study-jobs": 1, "measure": 1, "log": 1}
FRESH = 0.1  # of the kills go to a process that starts from nothing, and may so come while it imports
_TIMES = re.compile(r"time|seconds|.*_s(_median)?|beside_other_work|modified")  # what may differ between two runs
PRELOADED = ["mmrec_helpers.experiments.catalogue", "mmrec_helpers.experiments.accuracy.runs", "mmrec_helpers.mmrec"]


@dataclass
class Place:
    """A working directory for one command, and the processes that are started there."""

    folder: Path
    fresh: bool = False

    def start(self, words):
        self.output = self.folder.with_suffix(".output")
        self.output.unlink(missing_ok=True)
        if self.fresh:
            with open(self.output, "w") as output:
                command = [sys.executable, "-m", "mmrec_helpers", *words]
                started = subprocess.Popen(
                    command, cwd=self.folder, stdout=output, stderr=output, start_new_session=True
                )
            self.wait = started.wait
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)
            started = context.Process(target=_child, args=(words, str(self.folder), str(self.output)))
            started.start()
            while started.is_alive() and not self.output.exists():  # until then it is not the command that is killed
                time.sleep(0.005)
            self.wait = lambda: (started.join(), started.exitcode)[1]
        self.process = psutil.Process(started.pid)

    def run(self, words):
        """Seconds that an undisturbed run takes."""
        self.start(words)
        began = time.perf_counter()
        assert self.wait() == 0, self.output.read_text()
        return time.perf_counter() - began

    def disturb(self, words, after_s, number):
        """Start the command and send it the signal; how it ended, and seconds until it had."""
        self.start(words)
        time.sleep(after_s)
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = self.process.children(recursive=True)
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            send = os.killpg if number == signal.SIGINT else os.kill  # as a terminal does, and as the kernel does
            send(self.process.pid, number)
        began = time.perf_counter()
        status = self.wait()
        took_s = time.perf_counter() - began
        _, alive = psutil.wait_procs(family, timeout=60)  # a worker may still be importing
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert not alive, f"{[process.name() for process in alive]} lived on"
        return status, took_s


def _child(words, folder, output):
    os.setsid()
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(main(words))


def prepare(folder):
    folder.mkdir(parents=True)
    (folder / "run.log").write_text(LOG, encoding="utf-8")
    from tests.test_runner import SHARED, WORK, write

    write(folder / "books", "00-start", "Start here", ['run = ""  # the folder'], ["x = 1"])
    write(folder / "books", "01-data", "What is the data?", SHARED, WORK[:2])


def outcome(folder):
    """What a command left: every file's name, and what is in it apart from times."""
    found = {}
    for path in sorted(path for path in (folder / "out").rglob("*") if path.is_file() and path.suffix != ".lock"):
        if path.suffix == ".json":
            content = without_times(json.loads(path.read_text(encoding="utf-8")))
        else:
            content = path.suffix if path.suffix in (".pt", ".html", ".ipynb") else path.read_bytes()
        found[str(path.relative_to(folder))] = content
    return found


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if not _TIMES.fullmatch(name)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """By command: its outcome, and the seconds that it takes in a process that is forked and in a fresh one."""
    known = {}
    monkeypatch = pytest.MonkeyPatch()
    for name, value in (("OMP_NUM_THREADS", "1"), ("MMREC_HELPERS_CACHE", str(tmp_path_factory.mktemp("cache")))):
        monkeypatch.setenv(name, value)  # one thread: with two, each waits for the other while the machine is busy
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:resource_tracker")  # killed processes leave a lock of tqdm's
    place = Place(tmp_path_factory.mktemp("first") / "work")
    prepare(place.folder)
    place.run(["data"])  # starts the server that the others are forked from

    def of(name, thorough):
        if name not in known:
            results = []
            for fresh in (False, True, False) if thorough else (False,):
                place = Place(tmp_path_factory.mktemp(name) / "work", fresh)
                prepare(place.folder)
                results.append((place.run(COMMANDS[name]), outcome(place.folder)))
            assert results[0][1]
            assert all(result[1] == results[0][1] for result in results)  # else no comparison would mean anything
            known[name] = results[0][1], {False: results[-1][0], True: results[thorough][0]}
        return known[name]

    yield of
    monkeypatch.undo()


def kill_and_run_again(name, seed, folder, undisturbed, thorough=True):
    """One kill; returns what happened in a line, beginning with "ok" unless something is wrong."""
    draw = random.Random(f"{name} {seed}")
    number, fresh = (signal.SIGINT, signal.SIGKILL)[seed % 2], thorough and draw.random() < FRESH
    expected, seconds = undisturbed(name, thorough)
    after_s = draw.random() * seconds[fresh]
    place = Place(folder, fresh)
    prepare(folder)
    while (ended := place.disturb(COMMANDS[name], after_s, number))[0] == 0:  # it was faster than the undisturbed one
        after_s *= 0.7
        folder = place.folder = folder.with_name(f"{folder.name}-again")
        prepare(folder)
    status, took_s = ended
    about = f"{name} {seed}: {number.name} after {after_s:.2f} s of {seconds[fresh]:.2f}{' (fresh)' if fresh else ''}"
    said = place.output.read_text() if place.output.exists() else ""
    about += f", ended {status} in {took_s:.2f} s"
    if number == signal.SIGINT and not (status == -number and outcome(folder) == expected):  # at its very end
        line = "interrupted; go on with: python -m mmrec_helpers "
        line += "report" if name == "report" else shlex.join(COMMANDS[name])  # report may name --resume
        busy = max(1, os.getloadavg()[0] / os.cpu_count())
        if status not in (130, -number) or took_s > 2 * busy or said.count(line) != 1 or "Traceback" in said:
            return f"WRONG at the interrupt: {about}\n{said}"
    if outcome(folder) == expected:
        return f"ok, all was there: {about}"
    place.fresh = False
    place.start(COMMANDS[name])
    if place.wait() != 0:
        return f"WRONG, a second run fails: {about}\n{place.output.read_text()}"
    if outcome(folder) != expected:
        names = {n for n in expected | outcome(folder) if expected.get(n) != outcome(folder).get(n)}
        return f"WRONG, another outcome: {about}: {sorted(names)}"
    return f"ok: {about}"


@pytest.mark.parametrize("name", FEW)
def test_a_few_kills(name, tmp_path, undisturbed):
    for seed in range(FEW[name]):
        line = kill_and_run_again(name, seed, tmp_path / str(seed), undisturbed, thorough=False)
        print(line)
        assert line.startswith("ok"), line


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_two_hundred_kills(name, tmp_path, undisturbed):
    wrong = []
    for seed in range(KILLS[name]):
        line = kill_and_run_again(name, seed, tmp_path / str(seed), undisturbed)
        print(line, flush=True)
        wrong += [] if line.startswith("ok") else [line]
    assert wrong == []


def test_the_comparison_sees_what_differs(tmp_path):
    assert sum(KILLS.values()) == 200
    (tmp_path / "out").mkdir()
    for name, content in (("a.json", '{"loss": 1, "epoch_s": 1}'), ("b.csv", "1")):
        (tmp_path / "out" / name).write_text(content)
    before = outcome(tmp_path)
    (tmp_path / "out" / "a.json").write_text('{"loss": 1, "epoch_s": 2}')
    assert outcome(tmp_path) == before
    for name, content in (("a.json", '{"loss": 2}'), ("b.csv", "2"), (".c.tmp", "")):
        (tmp_path / "out" / name).write_text(content)
        assert outcome(tmp_path) != before
        before = outcome(tmp_path)
